//! Versions before the newest, for who asks for one by its number.
//!
//! ```text
//!  newest announcement: snapshot 40, deltas 41 .. 57        at(50): snapshot 40 and deltas 41 .. 50, out of the cache
//! ```
//!
//! The chain of the newest version is that of the ones before it, cut off; its files lie in the cache until they are evicted, which
//! those below a merged base may be. So any version from its snapshot on can be opened without Kafka, and mostly without the store.
//!
//! Owns: those views, a few at a time. Does not own: which version is the newest (`follow`), pins (a consumer that is
//! pinned follows another version), versions below the newest snapshot (`history` finds them).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::recent::is_short;
use super::shelf::Shelf;
use crate::clock::Clock;
use crate::format::announcement::Announcement;
use crate::version::{Chain, Life, Version};
use crate::view::{self, About, Fetcher, Identity, Reads, View};

/// Views that stay open, so that a client which reads many records of one version pays for it once.
const OPEN: usize = 4;
/// How long one stays open that nobody asks for, once there is something newer and memory is not short.
const IDLE: Duration = Duration::from_secs(60);

/// See above. Clones share.
#[derive(Clone, Debug)]
pub struct Earlier(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    fetcher: Fetcher,
    clock: Clock,
    newest: ArcSwapOption<Newest>,
    /// Held to find one, never while one is opened: that may hang as long as a store does.
    open: Mutex<VecDeque<Open>>,
    opening: Shelf,
    /// Versions that are opened at a time: each costs a pass over its deltas.
    turns: Semaphore,
}

/// What the newest version is made of. Not its view, which would outlive the merge that replaces it.
#[derive(Debug)]
struct Newest {
    identity: Identity,
    about: About,
    chain: Chain,
    reads: Arc<Reads>,
}

#[derive(Debug)]
struct Open {
    view: View,
    used: Instant,
}

impl Earlier {
    /// Nothing is known yet.
    pub fn new(fetcher: Fetcher, clock: Clock) -> Earlier {
        let (newest, open) = (ArcSwapOption::empty(), Mutex::default());
        let (opening, turns) = (Shelf::default(), Semaphore::new(OPEN));
        Earlier(Arc::new(Shared { fetcher, clock, newest, open, opening, turns }))
    }

    fn held(&self) -> MutexGuard<'_, VecDeque<Open>> {
        // Each change leaves the list whole.
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest version is this one.
    pub fn note(&self, view: &View, announcement: &Announcement) {
        let identity = view.identity().clone();
        // What is held of them is made of the whole, by the dataset's own schema.
        let about = About { schema: view.whole_schema().clone(), ..view.about().clone() };
        let let_go: Vec<_> = {
            let (mut open, now) = (self.held(), self.0.clock.now());
            let room = !self.0.fetcher.memory().is_some_and(is_short);
            let (keep, let_go) = open.drain(..).partition(|open: &Open| {
                room && *open.view.identity() == identity && now.saturating_duration_since(open.used) < IDLE
            });
            *open = keep;
            Vec::from(let_go)
        };
        // Without the lock: it may unmap files.
        drop(let_go);
        let (chain, reads) = (announcement.chain(), view.reads().clone());
        self.0.newest.store(Some(Arc::new(Newest { identity, about, chain, reads })));
    }

    /// The oldest version that can be had.
    pub fn oldest(&self) -> Version {
        let newest = self.0.newest.load();
        let chain = newest.as_deref().map(|newest| &newest.chain);
        chain.and_then(|chain| chain.snapshot.as_ref()).map_or(Version(1), |snapshot| snapshot.version)
    }

    /// The view of a version before the newest, in the schema that it was written in. `None`: it lies below the newest
    /// snapshot, or was not announced yet. Cost: nothing for one that is open, else a pass over its deltas.
    ///
    /// Of what its announcement said only number and schema are known: its positions are the newest's, its time is 0.
    ///
    /// # Errors
    /// As [`Fetcher::open`].
    pub async fn at(&self, version: Version) -> Result<Option<View>, view::Error> {
        let Some(newest) = self.0.newest.load_full() else { return Ok(None) };
        let is =
            |open: &&mut Open| open.view.version() == version && open.view.identity() == &newest.identity;
        if let Some(open) = self.held().iter_mut().find(is) {
            open.used = self.0.clock.now();
            return Ok(Some(open.view.clone()));
        }
        let mut chain = newest.chain.clone();
        chain.deltas.retain(|delta| delta.version <= version);
        if version == Version(0) || chain.version() != version {
            return Ok(None);
        }
        let opening = async {
            let _turn = self.0.turns.acquire().await.expect("the semaphore is never closed");
            self.open(&newest, &chain).await
        };
        let view = self.0.opening.get(newest.identity.topic_id, version, opening).await?;
        let let_go = {
            let (mut open, now) = (self.held(), self.0.clock.now());
            match open.iter_mut().find(is) {
                // Of several who waited for it the first has put it here.
                Some(open) => {
                    open.used = now;
                    None
                }
                None => {
                    open.push_back(Open { view: view.clone(), used: now });
                    let oldest = (0..open.len()).min_by_key(|at| open.get(*at).map(|open| open.used));
                    oldest.filter(|_| open.len() > OPEN).and_then(|at| open.remove(at))
                }
            }
        };
        drop(let_go);
        Ok(Some(view))
    }

    async fn open(&self, newest: &Newest, chain: &Chain) -> Result<View, view::Error> {
        let fetcher = &self.0.fetcher;
        let epoch = chain.deltas.last().map(|delta| delta.epoch);
        let epoch = epoch.or(chain.snapshot.as_ref().map(|snapshot| snapshot.epoch)).unwrap_or_default();
        let about = About {
            version: chain.version(),
            life: Life { epoch, ..newest.about.life },
            announced_at_ms: 0,
            newest_timestamp_ms: None,
            ..newest.about.clone()
        };
        let view = fetcher.open(&newest.identity, chain, None, about).await?;
        let view = spawn_blocking(move || {
            let about = About { records: view.count()?, ..view.about().clone() };
            view.restate(about)
        });
        let view = view.await.map_err(|_| view::Error::Closed)??;
        Ok(view.counting(newest.reads.clone()))
    }
}
