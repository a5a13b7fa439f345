//! The thread of one listener.
//!
//! ```text
//!  begin: checkpoint -> the view that was handled last -> cursor
//!     |
//!     v      .---------- next step <---------.
//!  doing = step; saved -> set -> call -> saved -> ... -> handled = step; saved, at the latest with what is begun next
//! ```
//!
//! Blocks, so that changes are borrowed from the maps, where a page may have to come from the disk.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::checkpoint::{self, Checkpoint, Doing, State};
use super::letters::{self, Letters};
use super::storm::Storm;
use super::{BATCH_SIZE, Begin, ChangeSet, Failed, Listening, Report, Why};
use crate::clock::{Clock, Entropy};
use crate::consumer::Options;
use crate::consumer::recent::{Cursor, Opening, Recent, Step, is_same};
use crate::error;
use crate::format::announcement::Announcement;
use crate::repeat;
use crate::retry::{Backoff, Breaker};
use crate::telemetry::ConsumerMetrics;
use crate::threads;
use crate::version::Version;
use crate::view::{Change, View};

/// Most bytes of keys and values in a set, a little over.
const SET_BYTES: usize = 4 << 20;
/// How long a call that is under way may go on when the consumer stops.
const GRACE: Duration = Duration::from_secs(5);
/// First wait after a failure of our own: the checkpoint's disk, a view's pages, the store.
const OWN_WAIT: Duration = Duration::from_millis(200);
/// Failures to read the changes of a step, after which it is given up for a newer one.
const READS: u32 = 5;

/// Runs one listener.
pub struct Runner {
    listening: Listening,
    dataset: String,
    /// Names what is held of it.
    held: u64,
    recent: Recent,
    checkpoint: Checkpoint,
    state: State,
    /// `state` says more than the file.
    unsaved: bool,
    letters: Letters,
    report: Report,
    breaker: Breaker,
    storm: Storm,
    clock: Clock,
    entropy: Entropy,
    metrics: std::sync::Arc<ConsumerMetrics>,
    stop: CancellationToken,
}

/// Told to stop.
struct Stopped;

type Flow<T = ()> = Result<T, Stopped>;

/// Where a step goes on that was begun in an earlier life.
#[derive(Default)]
struct Resumed {
    key: Vec<u8>,
    batch: u64,
    most: u64,
}

/// What became of a step.
enum Stepped {
    /// It is handled.
    Done,
    /// It cannot be read.
    Unreadable,
}

impl Runner {
    /// Opens the listener's checkpoint.
    ///
    /// # Errors
    /// `checkpoint::Error`: another process runs it, or the disk refuses.
    pub fn new(
        listening: Listening,
        options: &Options,
        recent: Recent,
        report: Report,
        stop: CancellationToken,
    ) -> Result<Runner, checkpoint::Error> {
        let (checkpoint, state) = Checkpoint::open(&options.listener_dir, &options.dataset, &listening.name)?;
        let state = state.unwrap_or_else(|| State {
            stamp: options.entropy.uuid().into_bytes(),
            topic_id: Default::default(),
            held: None,
            steps: 0,
            handled: None,
            doing: None,
        });
        let tries = &listening.tries;
        let breaker = Breaker::new(tries.breaker_threshold, tries.breaker_reset);
        let letters =
            Letters::new(options.kafka.clone(), options.dead_letters.clone(), options.dataset.clone());
        let runner = Runner {
            dataset: options.dataset.clone(),
            held: options.hold.mark(),
            recent,
            checkpoint,
            state,
            unsaved: false,
            letters,
            report,
            breaker,
            storm: Storm::new(tries.breaker_threshold),
            clock: options.clock.clone(),
            entropy: options.entropy.clone(),
            metrics: options.metrics.clone(),
            stop,
            listening,
        };
        runner.show();
        Ok(runner)
    }

    /// Runs until the consumer stops. Blocks: for a thread of its own, within a runtime.
    pub fn run(mut self) {
        // A listener that is gone must not look like one that has nothing to do: its end is the consumer's.
        let end = self.stop.clone().drop_guard();
        let stopped = self.follow();
        if self.unsaved
            && let Err(error) = self.checkpoint.save(&self.state)
        {
            tracing::warn!(
                dataset = self.dataset,
                listener = self.listening.name,
                error = error::chain(&error),
                "what was handled last is not written down: it will come again"
            );
        }
        if stopped.is_err() {
            end.disarm();
        }
    }

    fn follow(&mut self) -> Flow {
        let mut cursor = self.begin()?;
        loop {
            let step = match self.block_on(self.until_stopped(cursor.waiting()))? {
                Some(step) => step,
                None => {
                    self.save()?;
                    self.block_on(cursor.next()).ok_or(Stopped)?
                }
            };
            if is_same(cursor.at(), &step.view) {
                cursor.pass(step);
                continue;
            }
            match self.step(cursor.at().clone(), &step, None, false)? {
                Stepped::Done => cursor.pass(step),
                Stepped::Unreadable => cursor = self.anew()?,
            }
        }
    }

    /// A cursor where the checkpoint says, at the newest version or in front of it.
    fn begin(&mut self) -> Flow<Cursor> {
        let cursor = self.block_on(self.recent.first_cursor()).ok_or(Stopped)?;
        let newest = cursor.newest().clone();
        let topic_id = newest.view.identity().topic_id;
        let fresh = self.state.handled.is_none() && self.state.doing.is_none();
        if fresh {
            (self.state.topic_id, self.state.held) = (topic_id, Some(self.held));
            return match self.listening.begin {
                Begin::Newest => {
                    self.handled(&newest);
                    self.save()?;
                    Ok(cursor)
                }
                Begin::Everything => Ok(cursor.from(nothing(&newest.view))),
            };
        }
        if self.state.topic_id != topic_id {
            tracing::warn!(
                dataset = self.dataset, listener = self.listening.name, was = %self.state.topic_id, now = %topic_id,
                "the announcement topic is another one: the listener gets all records, marked as a reset"
            );
            return self.reset(cursor);
        }
        if self.state.held.is_some_and(|held| held != self.held) {
            tracing::warn!(
                dataset = self.dataset,
                listener = self.listening.name,
                "`filter` or `fields` of the consumer are others than those of what was handled last: the listener gets all \
                 records, marked as a reset"
            );
            return self.reset(cursor);
        }
        // A checkpoint of an earlier release does not say: as they are now.
        self.state.held = Some(self.held);
        let before = match self.state.handled.clone() {
            Some(announcement) => match self.open(&announcement)? {
                Some(view) => view,
                None => return self.reset(cursor),
            },
            None => nothing(&newest.view),
        };
        let Some(Doing { announcement, reset, key, batch, most }) = self.state.doing.clone() else {
            return Ok(cursor.from(before));
        };
        // What was begun is finished as it was begun, whatever is the newest by now.
        let Some(view) = self.open(&announcement)? else { return self.reset(cursor) };
        let before = if reset { nothing(&view) } else { before };
        let step = newest.leading_to(view, announcement.into());
        match self.step(before, &step, Some(Resumed { key, batch, most }), reset)? {
            Stepped::Done => Ok(cursor.from(step.view)),
            Stepped::Unreadable => self.anew(),
        }
    }

    /// All of the newest version, since what was handled cannot be compared with it.
    fn reset(&mut self, cursor: Cursor) -> Flow<Cursor> {
        let newest = cursor.newest().clone();
        self.state.topic_id = newest.view.identity().topic_id;
        self.state.held = Some(self.held);
        (self.state.handled, self.state.doing) = (None, None);
        match self.step(nothing(&newest.view), &newest, None, true)? {
            Stepped::Done => Ok(cursor),
            Stepped::Unreadable => self.anew(),
        }
    }

    /// The newest version there is by now, after one that cannot be read.
    fn anew(&mut self) -> Flow<Cursor> {
        let mut backoff = Backoff::new(OWN_WAIT, self.listening.tries.longest_wait);
        loop {
            self.wait(backoff.next(&self.entropy))?;
            let cursor = self.block_on(self.recent.first_cursor()).ok_or(Stopped)?;
            let newest = cursor.newest().clone();
            (self.state.handled, self.state.doing) = (None, None);
            if let Stepped::Done = self.step(nothing(&newest.view), &newest, None, true)? {
                return Ok(cursor);
            }
        }
    }

    /// The view of a version that was handled or begun in an earlier life. `None`: it cannot be had any more.
    fn open(&mut self, announcement: &Announcement) -> Flow<Option<View>> {
        let mut backoff = Backoff::new(OWN_WAIT, self.listening.tries.longest_wait);
        loop {
            let opened = self.block_on(self.until_stopped(self.recent.open_announced(announcement)))?;
            match opened {
                Opening::Open(view) => return Ok(Some(view)),
                Opening::Gone(error) => {
                    tracing::warn!(
                        dataset = self.dataset, listener = self.listening.name, version = %announcement.version, error,
                        "the version that was handled last cannot be opened any more: the listener gets all records, \
                         marked as a reset"
                    );
                    return Ok(None);
                }
                Opening::Failed(error) => {
                    let version = announcement.version;
                    self.report.tell(|told| {
                        told.error = Some(format!("version {version} cannot be opened: {error}"));
                    });
                    self.wait(backoff.next(&self.entropy))?;
                }
            }
        }
    }

    /// Handles the difference of two views, from the first key that was not.
    fn step(&mut self, before: View, step: &Step, resumed: Option<Resumed>, reset: bool) -> Flow<Stepped> {
        let Step { view, announcement, .. } = step;
        let version = view.version();
        let fresh = resumed.is_none();
        let Resumed { mut key, mut batch, most } = resumed.unwrap_or_default();
        let most = if most == 0 { self.batch_size() } else { most };
        let mut backoff = Backoff::new(OWN_WAIT, self.listening.tries.longest_wait);
        let failed = loop {
            let mut changes = view.changes_from_key(&before, &key).peekable();
            if fresh && self.state.doing.is_none() && changes.peek().is_some() {
                let Some(announcement) = announcement.earlier(version) else {
                    return Ok(Stepped::Unreadable);
                };
                self.state.steps += 1;
                let announcement = Box::new(announcement);
                self.state.doing = Some(Doing { announcement, reset, key: Vec::new(), batch: 0, most });
                self.unsaved = true;
            }
            let failed = loop {
                let set = match collect(&mut changes, most) {
                    Err(error) => break Some(error),
                    Ok(set) if set.is_empty() => break None,
                    Ok(set) => set,
                };
                let next = match changes.peek() {
                    None => None,
                    Some(Ok(change)) => Some(change.key().to_vec()),
                    // The same keys again, once the page can be read.
                    Some(Err(_)) => match changes.next() {
                        Some(Err(error)) => break Some(error),
                        _ => None,
                    },
                };
                // The id is that of a step on disk: after a crash it is never given to another.
                self.save()?;
                let set = ChangeSet {
                    dataset: view.identity().dataset.as_ref(),
                    version,
                    from: before.version(),
                    rollback: version < before.version(),
                    reset,
                    announced_at_ms: view.announced_at_ms(),
                    id: self.id(version, batch),
                    batch,
                    last: next.is_none(),
                    changes: set,
                };
                self.handle(&set)?;
                backoff.reset();
                batch += 1;
                let Some(next) = next else { break None };
                key = next;
                if let Some(doing) = &mut self.state.doing {
                    doing.key.clone_from(&key);
                    doing.batch = batch;
                    self.unsaved = true;
                }
            };
            match failed {
                None => {
                    self.handled(step);
                    return Ok(Stepped::Done);
                }
                Some(error) if backoff.failures() >= READS => break error,
                Some(error) => {
                    let text = error.chain();
                    self.report.tell(|told| told.error = Some(format!("version {version}: {text}")));
                    self.wait(backoff.next(&self.entropy))?;
                }
            }
        };
        tracing::error!(
            dataset = self.dataset, listener = self.listening.name, %version, error = failed.chain(),
            "the changes of a version cannot be read: the listener gets all records of a newer one, marked as a reset"
        );
        Ok(Stepped::Unreadable)
    }

    /// Most changes in a set. The listener's own code, as a call is: its panic must not end the consumer.
    fn batch_size(&self) -> u64 {
        let asked = std::panic::catch_unwind(AssertUnwindSafe(|| self.listening.handler.batch_size()));
        let most = asked.unwrap_or_else(|panic| {
            tracing::error!(
                dataset = self.dataset,
                listener = self.listening.name,
                panic = said(&*panic),
                "the listener's batch_size panicked: sets have {BATCH_SIZE} changes at most"
            );
            BATCH_SIZE
        });
        (most as u64).max(1)
    }

    fn id(&self, version: Version, batch: u64) -> String {
        let stamp = u128::from_be_bytes(self.state.stamp) >> 64;
        format!("{}.{stamp:016x}.{}.{version}.{batch}", self.dataset, self.state.steps)
    }

    /// Has the listener handle one set, or writes letters where that is allowed.
    fn handle(&mut self, set: &ChangeSet<'_>) -> Flow {
        let name = self.listening.name.clone();
        let tries = self.listening.tries;
        let mut backoff = Backoff::new(tries.first_wait, tries.longest_wait);
        let (mut tried, mut held) = (0, false);
        loop {
            while !self.breaker.allows(self.clock.now()) {
                self.show();
                self.wait(self.breaker.opens_in(self.clock.now()).unwrap_or(OWN_WAIT))?;
            }
            self.show();
            let began = self.clock.now();
            let Err(failed) = self.call(set)? else {
                let took = self.clock.now().saturating_duration_since(began);
                self.metrics.listener_seconds.with(&[&name]).observe(took.as_secs_f64());
                self.metrics.listener_changes_total.with(&[&name]).inc_by(set.changes.len() as u64);
                self.breaker.succeeded();
                self.report.tell(|told| (told.error, told.held) = (None, false));
                if self.storm.handled() {
                    self.report.guard_again();
                }
                self.show();
                return Ok(());
            };
            self.metrics.listener_failures_total.with(&[&name]).inc();
            let trips = self.breaker.trips();
            match failed.why {
                Why::Failed | Why::Away => self.breaker.failed(self.clock.now()),
                Why::Refused => self.breaker.succeeded(),
            }
            let stage = self.listening.stage.label();
            self.metrics.circuit_trips_total.with(&[&name]).inc_by(self.breaker.trips() - trips);
            tried += u32::from(failed.why != Why::Away);
            let why = error::chain(&*failed.error);
            self.show();
            // What is away now is no reason for a letter, though the set was refused before that and held.
            let spent = tried > tries.more && failed.why != Why::Away;
            let stays = spent && self.storm.rages() && self.report.hold(self.storm.said(&name, &why));
            if spent && !stays {
                return self.give_up(set, &why);
            }
            if stays && !std::mem::replace(&mut held, true) {
                tracing::error!(
                    dataset = self.dataset, listener = name, stage, version = %set.version, set = set.id, error = why,
                    "too many sets of changes were given up: this one is held, and nothing becomes a letter"
                );
            }
            if repeat::is_said(u64::from(backoff.failures()) + 1) {
                tracing::warn!(
                    dataset = self.dataset, listener = name, stage, version = %set.version, set = set.id, error = why,
                    failures = backoff.failures() + 1, "changes were not handled; trying again"
                );
            }
            let wait = backoff.next(&self.entropy);
            let wait = failed.wait.map_or(wait, |asked| asked.max(wait));
            if !stays {
                self.report.tell(|told| told.error = Some(why));
                self.wait(wait)?;
            } else if self.wait_to_be_let_through(wait)? {
                return self.give_up(set, &why);
            }
        }
    }

    /// Calls the listener. A call that is under way at the stop may end, within limits.
    fn call(&self, set: &ChangeSet<'_>) -> Flow<Result<(), Failed>> {
        if self.stop.is_cancelled() {
            return Err(Stopped);
        }
        let stop = &self.stop;
        self.block_on(async {
            let call = AssertUnwindSafe(async { self.listening.handler.handle(set).await }).catch_unwind();
            // Where the runtime ended first its timers are gone, and to ask one panics: then nothing is waited for.
            let grace = async {
                stop.cancelled().await;
                tokio::time::sleep(GRACE).await;
            };
            let grace = AssertUnwindSafe(grace).catch_unwind();
            tokio::select! {
                called = call => Ok(called.unwrap_or_else(|panic| {
                    Err(Failed::again(format!("the listener panicked: {}", said(&*panic))))
                })),
                _ = grace => Err(Stopped),
            }
        })
    }

    /// The last try is over: a letter for each change, and on. Until the letters are in their topic nothing is.
    fn give_up(&mut self, set: &ChangeSet<'_>, why: &str) -> Flow {
        let Listening { name, stage, .. } = self.listening.clone();
        let mut letters = Letters::of(set, &name, stage, why);
        let count = letters.len() as u64;
        let mut backoff = Backoff::new(letters::FIRST_WAIT, self.listening.tries.longest_wait);
        loop {
            let now = self.clock.wall_ms();
            let stop = self.stop.clone();
            let sent = {
                let sending = self.letters.send(&mut letters, now);
                Handle::current().block_on(threads::until(&stop, sending)).ok_or(Stopped)?
            };
            let Err(error) = sent else { break };
            let text = error::chain(&error);
            if repeat::is_said(u64::from(backoff.failures()) + 1) {
                tracing::error!(
                    dataset = self.dataset,
                    listener = name,
                    error = text,
                    "dead letters cannot be written; the listener waits"
                );
            }
            self.report.tell(|told| told.error = Some(text));
            self.wait(backoff.next(&self.entropy))?;
        }
        self.metrics.dead_letters_total.with(&[stage.label()]).inc_by(count);
        tracing::error!(
            dataset = self.dataset, listener = name, version = %set.version, set = set.id, letters = count, error = why,
            "changes were not handled, and are dead letters now; going on"
        );
        self.storm.gave_up();
        self.report.tell(|told| {
            (told.error, told.held) = (None, false);
            told.letters += count;
        });
        Ok(())
    }

    fn handled(&mut self, step: &Step) {
        let version = step.view.version();
        let announcement = match self.state.doing.take() {
            Some(doing) => Some(doing.announcement),
            None => step.announcement.earlier(version).map(Box::new),
        };
        if let Some(announcement) = announcement {
            self.state.handled = Some(announcement);
            self.unsaved = true;
        }
        self.show();
    }

    /// Writes the checkpoint, however long the disk refuses.
    fn save(&mut self) -> Flow {
        let mut backoff = Backoff::new(OWN_WAIT, self.listening.tries.longest_wait);
        while self.unsaved {
            match self.checkpoint.save(&self.state) {
                Ok(()) => self.unsaved = false,
                Err(error) => {
                    let text = error::chain(&error);
                    tracing::error!(
                        dataset = self.dataset,
                        listener = self.listening.name,
                        error = text,
                        "what was handled cannot be written down; the listener waits"
                    );
                    self.report.tell(|told| told.error = Some(text));
                    self.wait(backoff.next(&self.entropy))?;
                }
            }
        }
        Ok(())
    }

    fn show(&self) {
        let version = self.state.handled.as_ref().map_or(Version(0), |handled| handled.version);
        let circuit = self.breaker.state(self.clock.now());
        let name = [self.listening.name.as_str()];
        self.metrics.listener_version.with(&name).set(version.0 as i64);
        self.metrics.circuit_state.with(&name).set(circuit as i64);
        self.report.tell(|told| {
            told.version = version;
            told.circuit = circuit;
        });
    }

    fn wait(&self, wait: Duration) -> Flow {
        self.block_on(self.until_stopped(tokio::time::sleep(wait)))
    }

    /// Waits so long; true, and no longer, where an operator lets through what is held.
    fn wait_to_be_let_through(&self, wait: Duration) -> Flow<bool> {
        let through = tokio::time::timeout(wait, self.report.until_let_through());
        Ok(self.block_on(self.until_stopped(through))?.is_ok())
    }

    async fn until_stopped<T>(&self, work: impl Future<Output = T>) -> Flow<T> {
        threads::until(&self.stop, work).await.ok_or(Stopped)
    }

    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        Handle::current().block_on(work)
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it says no more")
}

/// The next set's changes.
fn collect<'a>(
    changes: &mut impl Iterator<Item = crate::Result<Change<'a>>>,
    most: u64,
) -> crate::Result<Vec<Change<'a>>> {
    let mut set = Vec::new();
    let mut bytes = 0;
    while (set.len() as u64) < most && bytes < SET_BYTES {
        let Some(change) = changes.next().transpose()? else { break };
        let values = [change.before(), change.after()];
        bytes +=
            change.key().len() + values.into_iter().flatten().map(|value| value.bytes().len()).sum::<usize>();
        set.push(change);
    }
    Ok(set)
}

/// The version before all others.
fn nothing(view: &View) -> View {
    View::empty(view.identity().clone(), view.schema().clone())
}
