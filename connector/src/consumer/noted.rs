//! What the cache notes as its newest version, for a start without Kafka.
//!
//! Owns: how often. Does not own: the note's form and place (`view/notes`), which version it is (`follow`).

use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::view::{Cache, Error, Identity};

/// A note replaces a file. Done for each of hundreds of versions a second, that costs the disk more than it spares the
/// next start, which Kafka tells what came since.
const EVERY: Duration = Duration::from_secs(1);

/// The note of one shard. Dropped, it notes what it has put off: a stop must not cost the next start a version.
#[derive(Debug)]
pub struct Noted {
    cache: Cache,
    dataset: String,
    clock: Clock,
    /// What is to be noted.
    newest: Option<(Identity, Vec<u8>)>,
    /// When something was noted last.
    at: Option<Instant>,
}

impl Noted {
    /// Nothing is noted yet.
    pub fn new(cache: Cache, dataset: &str, clock: Clock) -> Noted {
        Noted { cache, dataset: dataset.to_owned(), clock, newest: None, at: None }
    }

    /// This is the newest version now; [`Noted::if_due`] notes it, a second after the last one, or, if it is `urgent`, at
    /// once.
    pub fn newest(&mut self, identity: &Identity, announcement: &[u8], urgent: bool) {
        self.newest = Some((identity.clone(), announcement.to_vec()));
        if urgent {
            self.at = None;
        }
    }

    /// Notes what has been put off for long enough.
    pub async fn if_due(&mut self) {
        let now = self.clock.now();
        if self.at.is_some_and(|at| now.saturating_duration_since(at) < EVERY) {
            return;
        }
        let Some((identity, announcement)) = self.newest.take() else { return };
        self.at = Some(now);
        let cache = self.cache.clone();
        let noted = tokio::task::spawn_blocking(move || cache.save_current(&identity, &announcement)).await;
        if let Ok(noted) = noted {
            self.told(noted);
        }
    }

    fn told(&self, noted: Result<(), Error>) {
        if let Err(error) = noted {
            // Costs the next start some time, nothing else.
            tracing::warn!(dataset = self.dataset, %error, "the cache cannot note its newest version");
        }
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if let Some((identity, announcement)) = self.newest.take() {
            self.told(self.cache.save_current(&identity, &announcement));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::TopicId;
    use crate::version::Shard;

    #[tokio::test]
    async fn a_note_a_second_and_the_newest_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), u64::MAX).unwrap();
        let (clock, shard) = (Clock::manual(0), Shard(0));
        let identity = Identity { dataset: "products".into(), topic_id: TopicId([1; 16]), shard, shards: 1 };
        let mut noted = Noted::new(cache.clone(), "products", clock.clone());
        let held = || cache.load_current("products", shard).unwrap().map(|(_, announcement)| announcement);
        noted.newest(&identity, b"1", false);
        noted.if_due().await;
        assert_eq!(held().as_deref(), Some(&b"1"[..]), "the first one at once");
        noted.newest(&identity, b"2", false);
        noted.newest(&identity, b"3", false);
        noted.if_due().await;
        assert_eq!(held().as_deref(), Some(&b"1"[..]));
        clock.advance(EVERY);
        noted.if_due().await;
        assert_eq!(held().as_deref(), Some(&b"3"[..]));
        noted.newest(&identity, b"0", true);
        noted.if_due().await;
        assert_eq!(held().as_deref(), Some(&b"0"[..]), "whatever the time");
        noted.newest(&identity, b"4", false);
        drop(noted);
        assert_eq!(held().as_deref(), Some(&b"4"[..]), "what was put off");
    }
}
