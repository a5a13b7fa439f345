//! What this machine held last, at a start: whether it may be shown before Kafka has said which version is to be held.
//!
//! | what is known of pins | the cached version |
//! | --- | --- |
//! | it is the pinned one, by the control topic, the reader's own configuration, or as the cache remembers | shown |
//! | another one is pinned | not shown |
//! | none is, says the control topic | shown |
//! | none is, as far as the cache remembers; the control topic is being read | held back |
//! | the same; Kafka fails, or does not answer within `control_wait` | shown: it is all there is |
//! | the same; `serve_stale` | shown at once: a start does not wait for Kafka |
//!
//! What is shown here is marked stale until the tail confirms or replaces it.
//!
//! Owns: that judgement. Does not own: opening it (`open`), showing it (`follow`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::control::Told;
use super::pin::Fixed;
use super::tail::{Announced, TailStatus};
use crate::version::Shard;
use crate::view::View;

/// The version that the cache notes.
pub struct Cached {
    /// What announced it.
    pub announced: Arc<Announced>,
    /// It; `None`: its blobs are not all in the cache.
    pub view: Option<View>,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not known yet.
    Wait,
    /// It is shown.
    Show {
        /// The reader is pinned to it.
        pinned: bool,
    },
    /// It never is: the reader holds another one.
    Leave,
}

/// What the reader's own Kafka clients say.
pub struct Outside {
    told: watch::Receiver<Told>,
    tail: watch::Receiver<TailStatus>,
    /// How long they are waited for; `None` once that is over.
    until: Option<tokio::time::Instant>,
    /// The tail has come to its end: what it has not found by then is not there, or is not for this release to read.
    pub tail_at_end: bool,
}

impl Outside {
    /// By what the control topic (`told`) and the `tail` say, which are waited for as long as `wait`.
    pub fn new(told: watch::Receiver<Told>, tail: watch::Receiver<TailStatus>, wait: Duration) -> Outside {
        let until = (!wait.is_zero()).then(|| tokio::time::Instant::now() + wait);
        Outside { told, tail, until, tail_at_end: false }
    }

    /// Waits until one of them says something new, or has been waited for long enough.
    pub async fn changed(&mut self) {
        async fn next<T>(of: &mut watch::Receiver<T>) {
            if of.changed().await.is_err() {
                // It has ended: the process does too.
                std::future::pending::<()>().await;
            }
        }
        tokio::select! {
            () = next(&mut self.told) => {}
            () = next(&mut self.tail) => {}
            () = super::next::sleep_until(self.until) => self.until = None,
        }
    }

    /// Whether Kafka has failed to answer.
    pub fn is_away(&self) -> bool {
        self.told.borrow().error.is_some() || self.tail.borrow().reachable == Some(false)
    }

    /// What becomes of the cached version.
    pub fn judge(&self, fixed: Option<Fixed>, shard: Shard, announced: &Announced) -> Verdict {
        judge(fixed, shard, announced, &self.told.borrow(), self.until.is_none() || self.is_away())
    }
}

fn judge(fixed: Option<Fixed>, shard: Shard, announced: &Announced, told: &Told, waited: bool) -> Verdict {
    let announcement = &announced.announcement;
    if let Some(fixed) = fixed {
        return if fixed.admits(announcement) { Verdict::Show { pinned: true } } else { Verdict::Leave };
    }
    let epoch = announcement.life.epoch;
    match &told.standing.pin {
        Some(pin) if pin.names(shard, announced.topic_id, announcement.version, epoch) => {
            Verdict::Show { pinned: true }
        }
        Some(_) if told.known => Verdict::Leave,
        // It may have been taken back since.
        Some(_) => Verdict::Wait,
        None if told.known || waited => Verdict::Show { pinned: false },
        None => Verdict::Wait,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::follow::tests::announced;
    use super::*;
    use crate::format::control::{Pin, Pinned, Standing};
    use crate::version::Version;

    #[test]
    fn the_cached_version_is_shown_unless_another_one_is_or_may_be_pinned() {
        let announced = announced(7);
        let pin = |version| Pin {
            dataset: "products".into(),
            history: announced.topic_id,
            id: Uuid::nil(),
            versions: vec![Pinned {
                version: Version(version),
                epoch: announced.announcement.life.epoch,
                offset: 0,
            }],
            by: String::new(),
            reason: String::new(),
            at: 0,
        };
        let told =
            |known, pin| Told { known, standing: Standing { pin, ..Standing::default() }, ..Told::default() };
        let (free, held) = (Verdict::Show { pinned: false }, Verdict::Show { pinned: true });
        for (known, pinned, waited, verdict) in [
            (false, None, false, Verdict::Wait),
            (false, None, true, free),
            (true, None, false, free),
            (false, Some(7), false, held),
            (true, Some(7), false, held),
            (false, Some(6), false, Verdict::Wait),
            (false, Some(6), true, Verdict::Wait),
            (true, Some(6), true, Verdict::Leave),
        ] {
            let judged = judge(None, Shard(0), &announced, &told(known, pinned.map(pin)), waited);
            assert_eq!(judged, verdict, "known: {known}, pinned to {pinned:?}, waited: {waited}");
        }
        for (version, verdict) in [(7, held), (8, Verdict::Leave)] {
            let fixed = Some(Fixed::Version(Version(version)));
            assert_eq!(judge(fixed, Shard(0), &announced, &told(true, Some(pin(6))), true), verdict);
        }
    }
}
