//! Offsets sent ahead: while a version is being built and stored, the transaction that will announce it takes its source
//! offsets, which cost two round trips.
//!
//! ```text
//!  builder --Coming--> begin -> source offsets ==the version is stored==> announcements -> commit
//!                                              ==it takes longer than HOLD==> offsets of the version before -> commit
//! ```
//!
//! A transaction has a time limit, and a store may hang for longer than that. So the wait is short, and what was sent is
//! then replaced by what is announced already: within a transaction the last offset of a partition counts. A life does
//! not end of it.
//!
//! Only versions without letters: letters go before offsets (`announce`).
//!
//! Owns: what was sent, and for how long it stands. Does not own: the transaction.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Carried;
use crate::format::announcement::SourcePosition;
use crate::record::Position;
use crate::version::Version;

/// Longest that a transaction waits for its version: far below its time limit of 15 s, far above what a store takes.
const HOLD: Duration = Duration::from_secs(1);

/// A version that is being built, and has no letters.
#[derive(Clone, Debug)]
pub struct Coming {
    /// Its number.
    pub version: Version,
    /// The positions that it moves.
    pub positions: Vec<Position>,
}

/// Hears of versions to come.
#[derive(Debug)]
pub struct Comes(Option<watch::Receiver<Option<Coming>>>);

impl Comes {
    /// What the builder tells.
    pub fn of(told: watch::Receiver<Option<Coming>>) -> Comes {
        Comes(Some(told))
    }

    /// Nobody tells.
    pub fn never() -> Comes {
        Comes(None)
    }

    /// Waits for the next one. Loses nothing if it is dropped while it waits.
    pub(super) async fn next(&mut self) -> Coming {
        loop {
            let Some(told) = &mut self.0 else { return std::future::pending().await };
            if told.changed().await.is_err() {
                self.0 = None;
            } else if let Some(coming) = told.borrow_and_update().clone() {
                return coming;
            }
        }
    }
}

/// What the open transaction holds already.
#[derive(Debug)]
pub(super) struct Ahead {
    /// The positions whose offsets were sent.
    pub(super) positions: Vec<SourcePosition>,
    /// When they are taken back.
    pub(super) until: Instant,
}

impl Ahead {
    /// Of the version after what is carried; `None`: it is another one, or nothing is announced that could be gone back to.
    pub(super) fn of(coming: &Coming, carried: &Carried, now: Instant) -> Option<Ahead> {
        let (last, _) = carried.previous?;
        if coming.version != last.next() {
            return None;
        }
        let mut positions = carried.positions.clone();
        moved(&mut positions, &coming.positions);
        Some(Ahead { positions, until: now + HOLD })
    }
}

/// Moves `positions` on to what a version says of them.
pub(super) fn moved(positions: &mut [SourcePosition], to: &[Position]) {
    for to in to {
        if let Some(position) = positions.iter_mut().find(|known| known.source == to.source) {
            position.offset = position.offset.max(to.offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::record::{SourcePartition, TopicId};

    fn source(partition: i32) -> SourcePartition {
        SourcePartition { topic: "t".into(), topic_id: TopicId([1; 16]), partition }
    }

    fn at(partition: i32, offset: i64) -> SourcePosition {
        SourcePosition { source: source(partition), start: 0, offset, target: 0 }
    }

    #[test]
    fn only_the_next_version_goes_ahead_and_only_of_one_to_go_back_to() {
        let now = Clock::manual(0).now();
        let carried = Carried {
            previous: Some((Version(4), 1)),
            positions: vec![at(0, 10), at(1, 20)],
            ..Carried::default()
        };
        let coming = |version| Coming {
            version: Version(version),
            positions: vec![
                Position { source: source(1), offset: 25 },
                Position { source: source(0), offset: 9 },
            ],
        };
        let ahead = Ahead::of(&coming(5), &carried, now).expect("it is the next one");
        assert_eq!(ahead.positions, [at(0, 10), at(1, 25)], "forward only");
        assert_eq!(ahead.until, now + HOLD);
        assert!(Ahead::of(&coming(4), &carried, now).is_none(), "announced already");
        assert!(Ahead::of(&coming(6), &carried, now).is_none(), "another is before it");
        assert!(Ahead::of(&coming(1), &Carried::default(), now).is_none(), "nothing to go back to");
    }

    #[tokio::test]
    async fn what_comes_is_heard_once_and_its_end_is_no_version() {
        let (told, heard) = watch::channel(None);
        let mut comes = Comes::of(heard);
        let coming = Coming { version: Version(2), positions: Vec::new() };
        told.send_replace(Some(coming.clone()));
        assert_eq!(comes.next().await.version, coming.version);
        let next = comes.next();
        drop(told);
        let ended = tokio::time::timeout(Duration::from_millis(20), next).await;
        assert!(ended.is_err(), "{ended:?}");
    }
}
