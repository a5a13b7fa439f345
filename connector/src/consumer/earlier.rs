//! Versions before the newest, for who asks for one by its number.
//!
//! ```text
//!  newest announcement: snapshot 40, deltas 41 .. 57        at(50): snapshot 40 and deltas 41 .. 50, out of the cache
//! ```
//!
//! The chain of the newest version is that of the ones before it, cut off; its files lie in the cache as long as that
//! version is held. So any version from its snapshot on can be opened without Kafka, and mostly without the store.
//!
//! Owns: those views, a few at a time. Does not own: which version is the newest (`follow`), pins (a consumer that is
//! pinned follows another version), versions below the newest snapshot (`history` finds them).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use crate::clock::Clock;
use crate::format::announcement::Announcement;
use crate::version::{Chain, Life, Version};
use crate::view::{self, About, Fetcher, Identity, Reads, View};

/// Views that stay open, so that a client which reads many records of one version pays for it once.
const OPEN: usize = 4;
/// How long one stays open that nobody asks for, once there is something newer.
const IDLE: Duration = Duration::from_secs(60);

/// See above. Clones share.
#[derive(Clone, Debug)]
pub struct Earlier(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    fetcher: Fetcher,
    clock: Clock,
    newest: ArcSwapOption<Newest>,
    /// Held while one is opened: each costs a pass over its deltas, and who asks for all of them waits for himself.
    open: Mutex<VecDeque<Open>>,
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
        Earlier(Arc::new(Shared { fetcher, clock, newest, open }))
    }

    /// The newest version is this one.
    pub fn note(&self, view: &View, announcement: &Announcement) {
        let (identity, about) = (view.identity().clone(), view.about().clone());
        // Somebody may be opening one: then the next version comes by here too.
        if let Ok(mut open) = self.0.open.try_lock() {
            let now = self.0.clock.now();
            open.retain(|open| {
                *open.view.identity() == identity && now.saturating_duration_since(open.used) < IDLE
            });
        }
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
        let mut open = self.0.open.lock().await;
        let now = self.0.clock.now();
        let Some(newest) = self.0.newest.load_full() else { return Ok(None) };
        let is =
            |open: &&mut Open| open.view.version() == version && *open.view.identity() == newest.identity;
        if let Some(open) = open.iter_mut().find(is) {
            open.used = now;
            return Ok(Some(open.view.clone()));
        }
        let mut chain = newest.chain.clone();
        chain.deltas.retain(|delta| delta.version <= version);
        if version == Version(0) || chain.version() != version {
            return Ok(None);
        }
        let view = self.open(&newest, &chain).await?;
        open.push_back(Open { view: view.clone(), used: now });
        if open.len() > OPEN {
            let oldest = (0..open.len()).min_by_key(|at| open.get(*at).map(|open| open.used));
            oldest.and_then(|at| open.remove(at));
        }
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
