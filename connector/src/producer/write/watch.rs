//! Who waits for which record to be in a version.
//!
//! ```text
//!  offset of a written record --wait_for--> Ticket ...... version()
//!                                             ^
//!  announced(version, positions) -------------+  the first version whose position lies behind the offset
//! ```
//!
//! What is told here has been read back from the announcement topic as valid, in order of the versions. An announcement
//! may come before the acknowledgement of the record that it holds; so the last ones are kept, from the first write on.
//!
//! Owns: the tickets, the last few positions. Does not own: where announcements come from (`announce`, `follow`).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};

use crate::format::announcement::{SourcePosition, read_positions};
use crate::version::Version;

/// Versions whose positions are kept: more than are announced between a record's being appended and that being told.
const KEPT: usize = 256;

/// The tickets of one dataset. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Watchers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Somebody writes here: until then announcements are not kept.
    begun: AtomicBool,
    /// How many wait, told to `follow` when the first comes and the last goes.
    waiting: watch::Sender<usize>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first.
    recent: VecDeque<(Version, Positions)>,
    /// By partition and offset, with a number that tells those of one offset apart.
    waiting: HashMap<Partition, BTreeMap<(i64, u64), oneshot::Sender<Version>>>,
    /// Tickets in `waiting`.
    count: usize,
    next: u64,
    closed: bool,
}

type Partition = (Arc<str>, i32);
type Positions = Arc<[SourcePosition]>;

/// How far partitions were published at a moment.
#[derive(Clone, Debug, Default)]
pub struct Known(Option<Positions>);

impl Known {
    /// Whether a record at this offset was published then.
    pub(super) fn passes(&self, topic: &str, partition: i32, offset: i64) -> bool {
        self.0.as_deref().is_some_and(|positions| passes(positions, topic, partition, offset))
    }
}

fn passes(positions: &[SourcePosition], topic: &str, partition: i32, offset: i64) -> bool {
    let found = positions
        .iter()
        .find(|position| position.source.partition == partition && *position.source.topic == *topic);
    found.is_some_and(|position| position.offset > offset)
}

impl Default for Watchers {
    /// Nobody waits.
    fn default() -> Watchers {
        let shared =
            Shared { begun: AtomicBool::new(false), waiting: watch::channel(0).0, state: Mutex::default() };
        Watchers(Arc::new(shared))
    }
}

impl Watchers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announcements are kept from here on. To be called before the first record is sent.
    pub fn begin(&self) {
        self.0.begun.store(true, Ordering::Release);
    }

    /// How far each partition is published, as far as it was told since [`Watchers::begin`].
    pub fn known(&self) -> Known {
        Known(self.lock().recent.back().map(|(_, positions)| Arc::clone(positions)))
    }

    /// A version is announced, and read back as valid. Costs one load where nobody writes.
    pub fn announced(&self, version: Version, positions: &[SourcePosition]) {
        if !self.0.begun.load(Ordering::Acquire) {
            return;
        }
        // What a topic that was made anew held before has offsets of its own.
        let positions: Vec<SourcePosition> = read_positions(positions).cloned().collect();
        let mut state = self.lock();
        let last = state.recent.back().map(|(last, _)| *last);
        if last == Some(version) {
            return;
        }
        if last.is_some_and(|last| version < last) {
            // Told anew from further back, by another source: what is kept would not be in order.
            state.recent.clear();
        }
        if state.recent.len() == KEPT {
            state.recent.pop_front();
        }
        state.recent.push_back((version, positions.as_slice().into()));
        if state.waiting.is_empty() {
            return;
        }
        for position in &positions {
            let partition = (Arc::clone(&position.source.topic), position.source.partition);
            let Some(waiting) = state.waiting.get_mut(&partition) else { continue };
            let later = waiting.split_off(&(position.offset, 0));
            let told = std::mem::replace(waiting, later);
            if waiting.is_empty() {
                state.waiting.remove(&partition);
            }
            state.count -= told.len();
            for ticket in told.into_values() {
                // Who gave up at this moment is not told.
                let _ = ticket.send(version);
            }
        }
        self.tell(&state);
    }

    /// A ticket for the version that holds the record at `offset`.
    pub(crate) fn wait_for(&self, topic: &Arc<str>, partition: i32, offset: i64) -> Ticket {
        let (told, version) = oneshot::channel();
        let mut ticket = Ticket { version, place: None, watchers: self.clone() };
        let mut state = self.lock();
        let held = state.recent.iter().find(|(_, positions)| passes(positions, topic, partition, offset));
        if let Some((version, _)) = held {
            let _ = told.send(*version);
            return ticket;
        }
        // Offsets begin at 0; a broker that tells none tells nothing that could be waited for, and what is closed is
        // told nothing more.
        if offset < 0 || state.closed {
            return ticket;
        }
        let number = state.next;
        state.next += 1;
        let key = (Arc::clone(topic), partition);
        state.waiting.entry(key.clone()).or_default().insert((offset, number), told);
        state.count += 1;
        ticket.place = Some((key, (offset, number)));
        self.tell(&state);
        ticket
    }

    /// How many wait; changes are told when the first comes and when the last goes.
    pub(super) fn waiting(&self) -> watch::Receiver<usize> {
        self.0.waiting.subscribe()
    }

    /// Nothing more will be told.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.waiting.clear();
        state.count = 0;
        self.tell(&state);
    }

    /// Under the lock, so that no count overtakes another.
    fn tell(&self, state: &State) {
        self.0
            .waiting
            .send_if_modified(|waiting| (std::mem::replace(waiting, state.count) == 0) != (state.count == 0));
    }
}

/// Waits for a version; gives its place up when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    version: oneshot::Receiver<Version>,
    /// Where it waits; `None`: it has been told, or never will be.
    place: Option<(Partition, (i64, u64))>,
    watchers: Watchers,
}

impl Ticket {
    /// The version that holds the record. `None`: nothing more will be told. Cancel safe.
    pub(crate) async fn version(&mut self) -> Option<Version> {
        (&mut self.version).await.ok()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some((partition, at)) = self.place.take() else { return };
        let mut state = self.watchers.lock();
        let Some(waiting) = state.waiting.get_mut(&partition) else { return };
        if waiting.remove(&at).is_none() {
            return;
        }
        if waiting.is_empty() {
            state.waiting.remove(&partition);
        }
        state.count -= 1;
        self.watchers.tell(&state);
    }
}
