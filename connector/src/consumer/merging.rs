//! Merges of base and overlay, and of runs within the overlay, beside the flow: one of each at a time, of bases where there is room
//! for it, and less and less often while they fail. Where the overlay has become large; and where the newest version's chain begins with a snapshot that the cache
//! does not have, and a start could begin with nothing of this machine's.
//!
//! A merge writes a whole base. Where it cannot be finished, trying again at each version would fill the disk as often, which
//! the writer's log may lie on too.
//!
//! Runs that a version did not wait for are merged as soon as it is readable: lookups ask each run.
//!
//! Owns: whether and when a merge runs. Does not own: what it does (`view/merge`), what becomes of it (`follow`).

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinSet};

use crate::clock::{Clock, Entropy};
use crate::disk;
use crate::format::announcement::Announcement;
use crate::retry::Backoff;
use crate::threads;
use crate::version::Version;
use crate::view::{Base, Cache, Compaction, Error, View};

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);

/// What was merged.
#[derive(Debug)]
pub enum Done {
    /// All, into a base.
    Base(Arc<Base>),
    /// Runs of the overlay.
    Runs(Compaction),
}

impl Done {
    /// The version that is held by now, on what was merged; `None`: it has other runs.
    ///
    /// # Errors
    /// As [`View::rebase`] and [`View::compacted`].
    pub fn below(&self, held: &View) -> Result<Option<View>, Error> {
        match self {
            Done::Base(base) => held.rebase(base.clone()).map(Some),
            Done::Runs(runs) => held.compacted(runs),
        }
    }

    /// As [`Done::below`], on a thread for blocking work: tables for lookups by fields may have to be made for it, of all of a base
    /// where the schema has changed since the merge began.
    ///
    /// # Errors
    /// As there; outside, a panic, or the end of the runtime.
    pub async fn put_below(self, held: Arc<View>) -> Result<Result<(Done, Option<View>), Error>, JoinError> {
        tokio::task::spawn_blocking(move || {
            let view = self.below(&held)?;
            Ok((self, view))
        })
        .await
    }
}

/// What came of a merge.
pub type Merged = Result<Result<Done, Error>, JoinError>;

/// What a start begins with is another one where this is: the version and epoch of the snapshot that the chain begins with,
/// and the schema's hash.
type Beginning = (Option<(Version, u64)>, u64);

/// `None`: there was nothing to be merged for.
type Outcome = Result<Option<Arc<Base>>, Error>;

/// The merges of one shard.
pub struct Merging {
    cache: Cache,
    clock: Clock,
    entropy: Entropy,
    running: JoinSet<(Beginning, Outcome)>,
    /// Merges of runs.
    compacting: JoinSet<Result<Option<Compaction>, Error>>,
    /// For which the cache has what it takes.
    begins: Option<Beginning>,
    bases: Tries,
    /// Apart: a disk that is full is nothing to these.
    runs: Tries,
}

/// How often merges of one kind are tried.
struct Tries {
    backoff: Backoff,
    /// Not before, after one that failed.
    again_at: Option<Instant>,
}

impl Tries {
    fn new() -> Tries {
        Tries { backoff: Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF), again_at: None }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.again_at.is_none_or(|at| now >= at)
    }

    fn tried(&mut self, succeeded: bool, now: Instant, entropy: &Entropy) {
        if succeeded {
            self.backoff.reset();
        }
        self.again_at = (!succeeded).then(|| now + self.backoff.next(entropy));
    }
}

impl Merging {
    /// Into `cache`.
    pub fn new(cache: Cache, clock: Clock, entropy: Entropy) -> Merging {
        Merging {
            cache,
            clock,
            entropy,
            running: JoinSet::new(),
            compacting: JoinSet::new(),
            begins: None,
            bases: Tries::new(),
            runs: Tries::new(),
        }
    }

    /// Begins to merge `view`, which is of this announcement, if its overlay is large enough, or if the cache may lack what
    /// a start begins with, and nothing speaks against it now. Whether it did.
    pub fn begin(&mut self, view: &View, announcement: &Announcement, memory_limit: u64) -> bool {
        let now = self.clock.now();
        if self.compacting.is_empty() && self.runs.is_due(now) && view.wants_compaction() {
            let view = view.clone();
            self.compacting.spawn_blocking(move || threads::apart("compact", || view.compact()));
        }
        if !self.bases.is_due(now) || !self.running.is_empty() || view.version() != announcement.version {
            return false;
        }
        let snapshot = announcement.snapshot.as_ref().map(|snapshot| (snapshot.version, snapshot.epoch));
        let beginning = (snapshot, view.whole_schema().text_hash());
        let is_large = view.wants_merge(memory_limit);
        if !is_large && self.begins == Some(beginning) {
            return false;
        }
        let (view, cache) = (view.clone(), self.cache.clone());
        let (life, chain) = (announcement.life, announcement.chain());
        let merge = move || {
            if !is_large && view.can_begin(&chain, &cache) {
                return Ok(None);
            }
            let needed = view.base().map_or(0, |base| base.bytes()) + view.overlay().plain_bytes;
            let free = || disk::space(cache.dir()).map(|space| space.free);
            if !is_large && (needed > cache.budget() / 2 || free().is_some_and(|free| free < needed)) {
                // For the next start's sake nothing else is evicted.
                tracing::debug!(
                    needed,
                    "no room for what a start could begin with: it will fetch a snapshot"
                );
                return Ok(None);
            }
            make_room(needed, &cache, free)?;
            let base = view.merge_kept(life, &chain, &cache)?;
            // Makes the base's indexes, which the newest view then finds made.
            view.rebase(base.clone())?;
            Ok(Some(base))
        };
        self.running.spawn_blocking(move || (beginning, threads::apart("merge", merge)));
        true
    }

    /// After `done`: the base before it is let go of, and its files go, where the cache's budget asks for it. Of runs no file goes.
    pub fn tidy(&self, done: &Done) {
        let Done::Base(_) = done else { return };
        let cache = self.cache.clone();
        drop(tokio::task::spawn_blocking(move || {
            if let Err(error) = cache.tidy() {
                tracing::debug!(%error, "the blob cache cannot be tidied");
            }
        }));
    }

    /// The next one that is done; `None` while none runs.
    pub async fn next(&mut self) -> Option<Merged> {
        loop {
            let (merged, is_base) = tokio::select! {
                Some(compacted) = self.compacting.join_next() => match compacted {
                    Ok(Ok(None)) => continue,
                    Ok(Ok(Some(runs))) => (Ok(Ok(Done::Runs(runs))), false),
                    Ok(Err(error)) => (Ok(Err(error)), false),
                    Err(panic) => (Err(panic), false),
                },
                Some(merged) = self.running.join_next() => match merged {
                    Ok((beginning, Ok(merged))) => {
                        self.begins = Some(beginning);
                        match merged {
                            Some(base) => (Ok(Ok(Done::Base(base))), true),
                            None => continue,
                        }
                    }
                    Ok((_, Err(error))) => (Ok(Err(error)), true),
                    Err(panic) => (Err(panic), true),
                },
                else => return None,
            };
            let tries = if is_base { &mut self.bases } else { &mut self.runs };
            tries.tried(matches!(merged, Ok(Ok(_))), self.clock.now(), &self.entropy);
            return Some(merged);
        }
    }
}

/// Sees that `needed` bytes can be written, and evicts what is not in use where they cannot. What is not told (`free`) is
/// tried.
fn make_room(needed: u64, cache: &Cache, free: impl Fn() -> Option<u64>) -> Result<(), Error> {
    let lacks = || free().filter(|free| *free < needed);
    if lacks().is_none() {
        return Ok(());
    }
    cache.relieve()?;
    match lacks() {
        None => Ok(()),
        Some(free) => {
            let source = format!("it takes {needed} bytes, and {free} are free");
            let source = io::Error::new(io::ErrorKind::StorageFull, source);
            Err(Error::Io { doing: "merging in", path: cache.dir().to_owned(), source })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::super::follow::tests::World;
    use super::*;
    use crate::blob::name::Kind;
    use crate::version::{Checksum, Version};
    use crate::view::{Fetcher, FileName};

    #[tokio::test]
    async fn a_merge_that_fails_is_not_tried_at_each_version() {
        let mut world = World::new();
        let announced = world.write(0..3_000).await;
        let view = world.view().clone();
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), u64::MAX).unwrap();
        let clock = Clock::manual(0);
        let mut merging = Merging::new(cache, clock.clone(), Entropy::seeded(1));
        let begin = |merging: &mut Merging| merging.begin(&view, &announced.announcement, 1);
        // A file in the place of the dataset's folder.
        let blocked = dir.path().join("products");
        std::fs::write(&blocked, "").unwrap();
        for wait in [FIRST_BACKOFF, 2 * FIRST_BACKOFF, 4 * FIRST_BACKOFF] {
            assert!(begin(&mut merging) && !begin(&mut merging), "one at a time");
            assert!(matches!(merging.next().await, Some(Ok(Err(_)))));
            assert!(!begin(&mut merging));
            clock.advance(wait / 2 - Duration::from_millis(1));
            assert!(!begin(&mut merging), "from half of {wait:?} on");
            clock.advance(wait);
        }
        std::fs::remove_file(&blocked).unwrap();
        assert!(begin(&mut merging));
        let merged = merging.next().await.unwrap().unwrap().unwrap();
        assert!(matches!(merged, Done::Base(base) if base.records() == 3_000));
        assert!(begin(&mut merging), "at once, now that it works");
        assert!(merging.next().await.is_some() && merging.next().await.is_none());
    }

    #[tokio::test]
    async fn runs_are_merged_also_while_no_base_can_be() {
        let mut world = World::new();
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), u64::MAX).unwrap();
        let fetcher = Fetcher::new(world.options().store, cache.clone()).leaving_merges();
        let mut view = View::empty(world.identity().clone(), world.view().schema().clone());
        let mut last = None;
        for version in 0..4 {
            let announced = world.write(version * 3_000..version * 3_000 + 3_000).await;
            let delta = announced.announcement.chain.last().unwrap().clone();
            view = fetcher.apply(&view, &delta, None, world.view().about().clone()).await.unwrap();
            last = Some(announced);
        }
        assert_eq!(view.overlay().runs, 4);
        let clock = Clock::manual(0);
        let mut merging = Merging::new(cache, clock.clone(), Entropy::seeded(1));
        merging.bases.again_at = Some(clock.now() + LONGEST_BACKOFF);
        let announcement = &last.unwrap().announcement;
        assert!(!merging.begin(&view, announcement, u64::MAX), "the disk is full");
        assert!(!merging.begin(&view, announcement, u64::MAX));
        let done = merging.next().await.unwrap().unwrap().unwrap();
        assert!(matches!(done, Done::Runs(_)));
        let compacted = done.below(&view).unwrap().unwrap();
        assert_eq!((compacted.version(), compacted.overlay().runs), (view.version(), 1));
        assert!(merging.next().await.is_none(), "one at a time, and it was one");
        assert!(!merging.begin(&compacted, announcement, u64::MAX) && merging.next().await.is_none());
    }

    #[test]
    fn room_is_made_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), u64::MAX).unwrap();
        let world = World::new();
        let name = FileName {
            kind: Kind::Delta,
            version: Version(1),
            epoch: 1,
            checksum: Checksum::of(b"x"),
            bytes: 1,
        };
        let path = cache.put(world.identity(), &name, b"x").unwrap().path().to_owned();
        let asked = AtomicU64::new(0);
        let free = |answers: [u64; 2]| {
            asked.store(0, Ordering::Relaxed);
            let asked = &asked;
            move || answers.get(asked.fetch_add(1, Ordering::Relaxed) as usize).copied()
        };
        make_room(10, &cache, free([10, 0])).unwrap();
        make_room(10, &cache, || None).unwrap();
        assert!(path.exists(), "there was room");
        make_room(10, &cache, free([9, 10])).unwrap();
        assert!(!path.exists(), "what is not in use went");
        let error = make_room(10, &cache, free([9, 9])).unwrap_err();
        assert!(error.is_full());
        assert!(crate::error::chain(&error).contains("it takes 10 bytes, and 9 are free"), "{error:?}");
    }
}
