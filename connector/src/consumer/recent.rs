//! The newest versions one by one, for who acts on each at a pace of its own: listeners and event streams.
//!
//! ```text
//!  follow --publish--> ring: at most 32 versions that some cursor has not passed --next--> Cursor (a listener)
//!             |                                                                     '----> Cursor (an event stream)
//!             '------> slot: the newest, for readers, who wait for nobody
//! ```
//!
//! A cursor is given each version by itself, in the order in which it became readable. One that is more than 32 versions
//! behind is given several as one step: the difference is that of the two views, so nothing is missed. So it is where memory
//! is short: once the dataset's versions take half of `memory_limit`, only the newest waits for cursors. Without a cursor
//! nothing is kept; with one, a version is kept until the last cursor has passed it.
//!
//! Owns: which versions somebody still has to see. Does not own: the newest view and when it changes (`follow`), what is
//! done with a version (`listen`, `http`).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::follow::Slot;
use super::shelf::Shelf;
use crate::error;
use crate::format::announcement::Announcement;
use crate::gauge::Budget;
use crate::schema::{self, Schema};
use crate::version::{Chain, Life, Version};
use crate::view::{self, About, Fetcher, View};

/// Versions that are kept for cursors which are behind; beyond it several become one step.
pub const MOST: usize = 32;
/// Versions that are kept also where memory is short: who is a moment behind is not to pay for who is stuck.
const LEAST: usize = 4;
/// Versions of the past that are opened at a time, for streams that go on where they ended.
const OPENED_AT_A_TIME: usize = 2;

/// Whether versions of a dataset take so much of what it may that those before the newest are let go of. Its overlay is merged
/// at a quarter, and another may gather while that goes on.
pub fn is_short(memory: &Budget) -> bool {
    memory.fill() > 0.5
}

/// One version that a cursor is to see. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Step {
    /// It.
    pub view: View,
    /// An announcement that leads to it: its own, or a later one whose chain goes through it.
    pub announcement: Arc<Announcement>,
    number: u64,
}

impl Step {
    /// A step to another version, by an announcement of its own.
    pub fn leading_to(&self, view: View, announcement: Arc<Announcement>) -> Step {
        Step { view, announcement, number: self.number }
    }
}

/// What became of opening an announced version.
pub enum Opening {
    /// It is readable.
    Open(View),
    /// It never will be: why.
    Gone(String),
    /// Not at the moment: why.
    Failed(String),
}

/// Shared by the follower, who publishes, and by cursors. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recent(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    slot: Slot,
    fetcher: Option<Fetcher>,
    /// Each version that is shown to readers is judged first; those that they never see are not, and so are not passed on.
    judged: bool,
    ring: Mutex<Ring>,
    /// Told when there is another version, or another base or fewer runs below the newest.
    wake: watch::Sender<()>,
    opening: Semaphore,
    /// Those: many may come back to one version.
    opened: Shelf,
    /// Held to look at it, or to parse the next one.
    schema: Mutex<Option<Arc<Schema>>>,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Ring {
    /// Counts what was published.
    number: u64,
    steps: VecDeque<Step>,
    /// Leads to the newest version; `None` before Kafka has confirmed one.
    announcement: Option<Arc<Announcement>>,
    /// The last one before a newer snapshot cut the chain: who is a little behind must not be lost by that.
    earlier: Option<Arc<Announcement>>,
    /// The newest one before a rollback, while that lasts: who has its version must not be lost by that.
    farthest: Option<Arc<Announcement>>,
    /// How far each cursor is.
    cursors: HashMap<u64, u64>,
    next_cursor: u64,
}

impl Ring {
    /// Lets go of what every cursor has passed, and of the oldest beyond the bound. What is given back is to be dropped
    /// without the lock: it may unmap files.
    fn trim(&mut self) -> Vec<Step> {
        let passed = self.cursors.values().min().copied().unwrap_or(u64::MAX);
        let passed = self.steps.partition_point(|step| step.number <= passed);
        let beyond = self.steps.len().saturating_sub(MOST);
        self.steps.drain(..passed.max(beyond)).collect()
    }
}

impl Recent {
    /// Of the views in `slot`. Without a `fetcher` versions of the past cannot be opened. Where versions are `judged`
    /// before they are shown, cursors see those alone that readers do.
    pub fn new(slot: Slot, fetcher: Option<Fetcher>, judged: bool, stop: CancellationToken) -> Recent {
        Recent(Arc::new(Inner {
            slot,
            fetcher,
            judged,
            ring: Mutex::default(),
            wake: watch::channel(()).0,
            opening: Semaphore::new(OPENED_AT_A_TIME),
            opened: Shelf::default(),
            schema: Mutex::default(),
            stop,
        }))
    }

    /// Where readers find the newest view.
    pub fn slot(&self) -> &Slot {
        &self.0.slot
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Each change leaves the ring whole.
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `version`, on the way to `newest`, is to be passed on as well.
    pub fn wants(&self, version: Version, newest: Version) -> bool {
        !self.0.judged
            && version < newest
            && newest.0 - version.0 < MOST as u64
            && !self.ring().cursors.is_empty()
    }

    /// Versions that were stepped over on the way to `announcement`'s, which is published next.
    pub fn pass(&self, views: Vec<View>, announcement: &Announcement) {
        if views.is_empty() {
            return;
        }
        let announcement = leading(announcement);
        let mut ring = self.ring();
        for view in views {
            ring.number += 1;
            let number = ring.number;
            ring.steps.push_back(Step { view, announcement: announcement.clone(), number });
        }
    }

    /// Makes a version the newest, for readers and for cursors.
    pub fn publish(&self, view: View, announcement: &Announcement) {
        let announcement = leading(announcement);
        let let_go = {
            let mut ring = self.ring();
            let replaced = self.0.slot.swap(Some(Arc::new(view.clone())));
            let base =
                |announcement: &Announcement| announcement.snapshot.as_ref().map(|snapshot| snapshot.version);
            let before = ring.announcement.replace(announcement.clone());
            let topic_id = |view: &View| view.identity().topic_id;
            if replaced.as_deref().is_some_and(|replaced| topic_id(replaced) != topic_id(&view)) {
                (ring.earlier, ring.farthest) = (None, None);
            } else {
                let farthest = ring.farthest.take().into_iter().chain(before.clone());
                let farthest = farthest.filter(|farthest| farthest.version > announcement.version);
                ring.farthest = farthest.max_by_key(|farthest| farthest.version);
                if let Some(before) = before.filter(|before| base(before) != base(&announcement)) {
                    ring.earlier = Some(before);
                }
            }
            ring.number += 1;
            let number = ring.number;
            ring.steps.push_back(Step { view, announcement, number });
            (replaced, ring.trim())
        };
        drop(let_go);
        self.relieve();
        self.0.wake.send_replace(());
    }

    /// Lets go of versions that somebody still has to see, oldest first, while memory is short: they become one step.
    fn relieve(&self) {
        while self.memory().is_some_and(is_short) {
            let oldest = {
                let mut ring = self.ring();
                if ring.steps.len() <= LEAST {
                    return;
                }
                ring.steps.pop_front()
            };
            drop(oldest);
        }
    }

    /// What the memory of its versions is charged to.
    pub fn memory(&self) -> Option<&Budget> {
        self.0.fetcher.as_ref().and_then(Fetcher::memory)
    }

    /// Tells that the newest view in the slot is the same version on another base: who waits at it lets go of the old one.
    pub fn rebased(&self) {
        self.0.wake.send_replace(());
    }

    /// The newest version that Kafka has confirmed.
    pub fn newest(&self) -> Option<Step> {
        self.newest_in(&self.ring())
    }

    fn newest_in(&self, ring: &Ring) -> Option<Step> {
        let announcement = ring.announcement.clone()?;
        let view = View::clone(self.0.slot.load().as_deref()?);
        Some(Step { view, announcement, number: ring.number })
    }

    /// A cursor at the newest version; `None` while Kafka has not confirmed one.
    pub fn cursor(&self) -> Option<Cursor> {
        let mut ring = self.ring();
        let at = self.newest_in(&ring)?;
        let id = ring.next_cursor;
        ring.next_cursor += 1;
        ring.cursors.insert(id, at.number);
        let wake = self.0.wake.subscribe();
        Some(Cursor { recent: self.clone(), id, wake, at: at.view.clone(), newest: at, behind: false })
    }

    /// As [`Recent::cursor`], once there is a version. `None`: the consumer has ended.
    pub async fn first_cursor(&self) -> Option<Cursor> {
        let mut wake = self.0.wake.subscribe();
        loop {
            wake.mark_unchanged();
            if let Some(cursor) = self.cursor() {
                return Some(cursor);
            }
            tokio::select! {
                () = self.0.stop.cancelled() => return None,
                _ = wake.changed() => {}
            }
        }
    }

    /// The chain to another version than the newest, and the announcement that has it. With `by_delta` one that ends with
    /// the version's delta, and not with a snapshot of it.
    fn leading_to(&self, version: Version, by_delta: bool) -> Option<(Arc<Announcement>, Chain)> {
        let known = {
            let ring = self.ring();
            [ring.announcement.clone(), ring.earlier.clone(), ring.farthest.clone()]
        };
        known.into_iter().flatten().find_map(|announcement| {
            let chain = upto(&announcement, version).filter(|chain| !by_delta || !chain.deltas.is_empty())?;
            Some((announcement, chain))
        })
    }

    /// Opens a version, as long as the newest one's chain, or the chain before the last snapshot, reaches back to it; while
    /// a rollback lasts, one above the newest too, if it was readable here before.
    pub async fn open(&self, version: Version) -> Option<View> {
        let newest = self.newest()?;
        if newest.view.version() == version {
            return Some(newest.view);
        }
        let (announcement, chain) = self.leading_to(version, false)?;
        let fetcher = self.0.fetcher.as_ref()?;
        let facts = facts(&announcement, &chain, self.schema(&announcement).ok()?);
        let identity = newest.view.identity();
        let open = async {
            let _turn = self.0.opening.acquire().await.expect("the semaphore is never closed");
            fetcher.open(identity, &chain, None, facts).await
        };
        let view = self.0.opened.get(identity.topic_id, version, open).await;
        view.inspect_err(
            |error| tracing::debug!(%version, %error, "another version than the newest cannot be opened"),
        )
        .ok()
    }

    /// An announcement's schema, parsed once as long as it stays the same. That of a view may be a part of it.
    fn schema(&self, announcement: &Announcement) -> Result<Arc<Schema>, schema::Error> {
        let mut known = self.0.schema.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some(known) if known.json() == announcement.schema => Ok(known.clone()),
            _ => Ok(known.insert(Arc::new(Schema::parse(&announcement.schema)?)).clone()),
        }
    }

    /// Opens the version of an announcement that was the newest once.
    pub async fn open_announced(&self, announcement: &Announcement) -> Opening {
        let (Some(newest), Some(fetcher)) = (self.newest(), self.0.fetcher.as_ref()) else {
            return Opening::Failed("no version is readable yet".to_owned());
        };
        if is_of(&newest.view, announcement) {
            return Opening::Open(newest.view);
        }
        let schema = match self.schema(announcement) {
            Ok(schema) => schema,
            Err(error) => return Opening::Gone(format!("its schema: {error}")),
        };
        let about = About::announced(announcement, schema);
        match fetcher.open(newest.view.identity(), &announcement.chain(), None, about).await {
            Ok(view) => Opening::Open(view),
            Err(error) => {
                let text = error::chain(&error);
                match error {
                    view::Error::Missing(_)
                    | view::Error::CorruptBlob { .. }
                    | view::Error::UnreadableBlob { .. }
                    | view::Error::Gap(_)
                    | view::Error::Foreign { .. }
                    // What is held of the dataset is another by now, and does not fit what it was then.
                    | view::Error::Unfit(_)
                    | view::Error::Schema(_) => Opening::Gone(text),
                    _ => Opening::Failed(text),
                }
            }
        }
    }
}

fn is_of(view: &View, announcement: &Announcement) -> bool {
    view.version() == announcement.version && view.about().life.epoch == announcement.life.epoch
}

/// An announcement as it is kept: the delta in it is in the store as well.
fn leading(announcement: &Announcement) -> Arc<Announcement> {
    Arc::new(Announcement { inline: None, ..announcement.clone() })
}

/// The part of an announcement's chain that makes an earlier version.
fn upto(announcement: &Announcement, version: Version) -> Option<Chain> {
    let mut chain = announcement.chain();
    chain.deltas.retain(|delta| delta.version <= version);
    (version > Version(0) && chain.version() == version).then_some(chain)
}

/// What is known of the version that `chain`, a part of the announcement's, makes.
fn facts(announcement: &Announcement, chain: &Chain, schema: Arc<Schema>) -> About {
    let epoch = match (chain.deltas.last(), &chain.snapshot) {
        (Some(delta), _) => delta.epoch,
        (None, Some(snapshot)) => snapshot.epoch,
        (None, None) => 0,
    };
    let life = Life { epoch, ..announcement.life };
    About { version: chain.version(), life, ..About::announced(announcement, schema) }
}

/// Sees each version once.
#[derive(Debug)]
pub struct Cursor {
    recent: Recent,
    id: u64,
    wake: watch::Receiver<()>,
    /// What was seen last.
    at: View,
    /// The newest version when this cursor began.
    newest: Step,
    /// It began behind `newest`, and has not reached it.
    behind: bool,
}

impl Cursor {
    /// The version that was seen last.
    pub fn at(&self) -> &View {
        &self.at
    }

    /// The version that was the newest when this cursor began.
    pub fn newest(&self) -> &Step {
        &self.newest
    }

    /// The same, for who has seen `view` last: first come the versions up to the newest one.
    #[must_use]
    pub fn from(mut self, view: View) -> Cursor {
        self.behind = !is_same(&view, &self.newest.view);
        self.at = view;
        self
    }

    /// The version to see next, once there is one. The same again until [`Cursor::pass`] is told of it. `None`: the consumer
    /// has ended.
    pub async fn next(&mut self) -> Option<Step> {
        loop {
            self.wake.mark_unchanged();
            if let Some(step) = self.waiting().await {
                return Some(step);
            }
            tokio::select! {
                () = self.recent.0.stop.cancelled() => return None,
                _ = self.wake.changed() => {}
            }
        }
    }

    /// The version to see next, if it is there already.
    pub async fn waiting(&mut self) -> Option<Step> {
        if self.behind {
            return Some(self.stride().await);
        }
        let number = self.newest.number;
        let step = {
            let ring = self.recent.ring();
            let next = ring.steps.partition_point(|step| step.number <= number);
            ring.steps.get(next).cloned()
        };
        if step.is_none() {
            self.refresh();
        }
        step
    }

    /// `step` was seen.
    pub fn pass(&mut self, step: Step) {
        let number = step.number;
        self.behind = self.behind && !is_same(&step.view, &self.newest.view);
        self.at = step.view.clone();
        if !self.behind {
            self.newest = step;
        }
        let let_go = {
            let mut ring = self.recent.ring();
            ring.cursors.insert(self.id, number);
            ring.trim()
        };
        drop(let_go);
    }

    /// From the version seen last toward the one that was the newest when the cursor began: one version, where a chain
    /// has it and not too many lie between, or all of it.
    async fn stride(&self) -> Step {
        let Step { view: newest, number, .. } = &self.newest;
        let next = self.at.version().next();
        // Who has seen nothing is given all there is, and not how it came about.
        let near = !self.recent.0.judged
            && self.at.version() > Version(0)
            && next < newest.version()
            && newest.version().0 - next.0 < MOST as u64;
        let on_the_line = self.at.identity() == newest.identity();
        let way = (near && on_the_line).then(|| self.recent.leading_to(next, true)).flatten();
        if let (Some(fetcher), Some((announcement, chain))) = (&self.recent.0.fetcher, way)
            && let Some(delta) = chain.deltas.last()
        {
            let facts = match self.recent.schema(&announcement) {
                Ok(schema) => facts(&announcement, &chain, schema),
                Err(_) => return self.newest.clone(),
            };
            match fetcher.apply(&self.at, delta, None, facts).await {
                Ok(view) => return Step { view, announcement, number: *number },
                Err(error) => {
                    tracing::info!(version = %next, %error, "versions are seen as one, since one of them is gone");
                }
            }
        }
        self.newest.clone()
    }

    /// Waits at the newest version: on its present base, so that the one before can go.
    fn refresh(&mut self) {
        let slot = self.recent.0.slot.load();
        if let Some(held) = slot.as_deref().filter(|held| is_same(held, &self.at)) {
            self.at = held.clone();
            self.newest.view = held.clone();
        }
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        let let_go = {
            let mut ring = self.recent.ring();
            ring.cursors.remove(&self.id);
            ring.trim()
        };
        drop(let_go);
    }
}

/// Whether both are one version of one history.
pub fn is_same(one: &View, other: &View) -> bool {
    one.version() == other.version()
        && one.about().life.epoch == other.about().life.epoch
        && one.identity().topic_id == other.identity().topic_id
}
