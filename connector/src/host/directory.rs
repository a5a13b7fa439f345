//! The datasets of the process as others see them: who serves or shows a dataset finds it here, by name.
//!
//! Owns: the way from a name to a view, and the facts that health and listings are made of. Does not own: the tasks
//! behind them (`host`), how they are shown (`http`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::health::{self, Facts, LastMinute, Reading, Status, Writing};
use super::letters::Letters;
use crate::clock::Clock;
pub use crate::clock::rfc3339;
use crate::consumer::listen::Told;
use crate::consumer::open::{DISK, STORE};
use crate::consumer::tail::{TAIL, UNREACHABLE};
use crate::consumer::{Reader, Steering};
use crate::format::control::Refusal;
use crate::producer::announce::Announced;
use crate::producer::circuit::Circuits;
use crate::producer::own::State;
use crate::producer::pace::Pace;
use crate::producer::storm::Storm;
use crate::record::Position;
use crate::retry::Circuit;
use crate::telemetry::{ConsumerMetrics, ProducerMetrics};
use crate::version::{ShardVersions, Version};
use crate::{consumer, producer};

/// The state of a writer that cannot begin yet, as it is shown.
const WAITING: &str = "waiting";

/// All datasets of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Directory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// By name, sorted; fixed from the start on, so that looking one up takes no lock.
    datasets: Vec<Arc<Dataset>>,
    draining: CancellationToken,
    clock: Clock,
}

impl Directory {
    /// A directory of these.
    pub fn new(datasets: impl IntoIterator<Item = Dataset>, clock: Clock) -> Directory {
        let mut datasets: Vec<_> = datasets.into_iter().map(Arc::new).collect();
        datasets.sort_by(|a, b| a.name.cmp(&b.name));
        Directory(Arc::new(Inner { datasets, draining: CancellationToken::new(), clock }))
    }

    /// The dataset of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<Dataset>> {
        let datasets = &self.0.datasets;
        let at = datasets.binary_search_by(|dataset| dataset.name.as_str().cmp(name)).ok()?;
        datasets.get(at)
    }

    /// All of them, by name.
    pub fn all(&self) -> &[Arc<Dataset>] {
        &self.0.datasets
    }

    /// From here on nothing is ready: the process is about to stop.
    pub fn drain(&self) {
        self.0.draining.cancel();
    }

    /// Whether the process is about to stop.
    pub fn is_draining(&self) -> bool {
        self.0.draining.is_cancelled()
    }

    /// Waits until the process is about to stop: answers that never end by themselves end then.
    pub async fn drained(&self) {
        self.0.draining.cancelled().await;
    }

    /// What keeps the process from being ready; nothing: it is.
    pub fn not_ready(&self) -> Vec<String> {
        if self.0.draining.is_cancelled() {
            return vec!["the process is shutting down".to_owned()];
        }
        self.0
            .datasets
            .iter()
            .filter_map(|dataset| dataset.not_ready().map(|why| format!("{}: {why}", dataset.name)))
            .collect()
    }

    /// The health of all, and the worst of it.
    pub fn health(&self) -> (Status, Vec<Health>) {
        let all: Vec<_> = self.0.datasets.iter().map(|dataset| dataset.health(&self.0.clock)).collect();
        (all.iter().map(|health| health.status).max().unwrap_or(Status::Healthy), all)
    }
}

/// A writer as its process has it: how it does, and what it takes from outside.
#[derive(Debug, Default)]
pub struct Writes {
    /// How it does.
    pub side: Option<WritingSide>,
    /// Writes its records.
    pub records: Option<producer::Writer>,
    /// How fast it is written.
    pub pace: Option<Pace>,
    /// What pauses its source when too much fails.
    pub storm: Option<Storm>,
    /// What could not be processed, and its way back.
    pub letters: Option<Letters>,
}

/// The writing side as others see it.
#[derive(Debug)]
pub struct WritingSide {
    pub(super) status: watch::Receiver<producer::Status>,
    pub(super) announced: watch::Receiver<Option<Announced>>,
    pub(super) circuits: Circuits,
    pub(super) metrics: Arc<ProducerMetrics>,
    pub(super) log_dir: PathBuf,
}

/// The reading side as others see it.
#[derive(Debug)]
pub struct ReadingSide {
    pub(super) reader: Reader,
    pub(super) metrics: Arc<ConsumerMetrics>,
    pub(super) max_errors_per_minute: u32,
}

/// One dataset of the process.
#[derive(Debug)]
pub struct Dataset {
    name: String,
    readable: Option<ReadingSide>,
    /// Set once: at the start, or when a writer that has waited begins.
    writes: OnceLock<Writes>,
    /// What a writer waits for that has not begun yet.
    awaited: Option<watch::Receiver<String>>,
    /// Pins it, and asks for snapshots.
    steering: Option<Steering>,
    /// Set once, by whoever joins a side that ended by a mistake.
    ended: OnceLock<String>,
    /// Taken only to judge, never by a read.
    errors: Mutex<LastMinute>,
    /// Wall time in milliseconds; 0: never.
    last_activity: AtomicI64,
}

/// A dataset's health as the route shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    /// Its name.
    pub name: String,
    /// The judgement.
    pub status: Status,
    /// What led to it.
    pub reasons: Vec<String>,
    /// The readable version; where nothing is read here, the last one announced.
    pub version: Version,
    /// When a version was last made readable or announced here (RFC 3339).
    pub last_activity: Option<String>,
    /// Errors since the start.
    pub error_count: u64,
    /// Errors of the last minute that are held against `max_errors_per_minute`: all but that Kafka or the blob store
    /// is away, or the cache's disk full.
    pub errors_last_minute: u64,
    /// Versions made readable; where nothing is read here, versions announced.
    pub processed_count: u64,
    /// What became a dead letter since the start; see `Dataset::dead_letters`.
    pub dead_letters: u64,
    /// Bytes of memory that its versions take, apart from mapped files.
    pub memory_usage: u64,
    /// Bytes of files that its versions have mapped; the system may drop them from memory.
    pub mapped_bytes: u64,
    /// The breakers: `kafka_tail` of the reading side, and each listener's by its name; `blob_store` and
    /// `kafka_transactions` of the writing side.
    pub circuit: BTreeMap<String, Circuit>,
    /// Who acts on changes, and how far each is.
    pub listeners: Vec<Told>,
    /// Records between what this process sees at the far end and what it has done: announced and not yet readable; plus,
    /// where it writes, at the source and not yet announced.
    pub lag: u64,
    /// When the readable version was announced (RFC 3339), and how many seconds ago that is; null while none is readable.
    pub announced_at: Option<String>,
    /// See `announced_at`.
    pub age_seconds: Option<f64>,
    /// What readers are held to; null: to nothing, the newest version is followed.
    pub pinned: Option<Held>,
    /// The newest version, where this reader's guard refuses it.
    pub refused: Option<Refused>,
    /// What the writing side does: `standby`, `recovering`, `running`, `draining`, `gone`, or `waiting` for Kafka or for
    /// the dataset's schema. Null where nothing is written here.
    pub writer: Option<&'static str>,
}

/// A pin as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct Held {
    /// The version of each shard; empty until it is known which one was the newest at the configured time.
    pub versions: ShardVersions,
    /// Who pinned; `configuration` where the reader's own does.
    pub by: String,
    /// Why; may be empty.
    pub reason: String,
    /// When (RFC 3339); null where it is configured.
    pub at: Option<String>,
}

impl Held {
    /// Of a pin.
    pub fn of(pinned: &consumer::Pinned) -> Held {
        Held {
            versions: pinned.versions.clone(),
            by: if pinned.fixed { "configuration".to_owned() } else { pinned.by.clone() },
            reason: pinned.reason.clone(),
            at: pinned.at.map(rfc3339),
        }
    }
}

/// A refusal as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct Refused {
    /// The version.
    pub version: Version,
    /// The version on which the reader stays; 0 where it holds none.
    pub held: Version,
    /// The reader.
    pub by: String,
    /// The guard's words.
    pub reason: String,
    /// When (RFC 3339).
    pub at: String,
}

impl Refused {
    /// Of a refusal.
    pub fn of(refusal: &Refusal) -> Refused {
        Refused {
            version: refusal.version,
            held: refusal.held,
            by: refusal.by.clone(),
            reason: refusal.reason.clone(),
            at: rfc3339(refusal.at),
        }
    }
}

impl Dataset {
    /// A dataset with the sides that this process has of it.
    pub fn new(name: impl Into<String>, readable: Option<ReadingSide>, writes: Option<Writes>) -> Dataset {
        Dataset {
            name: name.into(),
            readable,
            writes: writes.map_or_else(OnceLock::new, OnceLock::from),
            awaited: None,
            steering: None,
            ended: OnceLock::new(),
            errors: Mutex::default(),
            last_activity: AtomicI64::new(0),
        }
    }

    /// The same, whose writer begins later, and says here what it waits for until then.
    #[must_use]
    pub fn awaiting(mut self, why: watch::Receiver<String>) -> Dataset {
        self.awaited = Some(why);
        self
    }

    /// The writer that was waited for is there.
    pub(super) fn begin(&self, writes: Writes) {
        // There is one writer of a dataset in a process, and it begins once.
        let _ = self.writes.set(writes);
    }

    /// The same, with what pins it.
    #[must_use]
    pub fn steered_by(mut self, steering: Steering) -> Dataset {
        self.steering = Some(steering);
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes its records; `None` where this process has no writing side of it.
    pub fn records(&self) -> Option<&producer::Writer> {
        self.writes.get()?.records.as_ref()
    }

    /// What its writer waits for before it can begin; `None`: it has begun, has ended, or there is none.
    pub fn awaited(&self) -> Option<String> {
        let why = self.awaited.as_ref()?;
        (self.writes.get().is_none() && self.ended().is_none()).then(|| why.borrow().clone())
    }

    /// What pauses its source when too much fails; `None` where this process does not write it.
    pub fn storm(&self) -> Option<&Storm> {
        self.writes.get()?.storm.as_ref()
    }

    /// Its dead letters; `None` where this process does not write it.
    pub fn letters(&self) -> Option<&Letters> {
        self.writes.get()?.letters.as_ref()
    }

    /// How fast it is written; `None` where this process has no writing side of it.
    pub fn pace(&self) -> Option<&Pace> {
        self.writes.get()?.pace.as_ref()
    }

    /// Pins it, and asks its owner for snapshots; whatever sides this process has of it.
    pub fn steering(&self) -> Option<&Steering> {
        self.steering.as_ref()
    }

    /// Reads it; `None` where this process has no reading side of it.
    pub fn reader(&self) -> Option<&Reader> {
        self.readable.as_ref().map(|readable| &readable.reader)
    }

    /// The reading side; `None` where this process has none of it.
    pub fn reading(&self) -> Option<&ReadingSide> {
        self.readable.as_ref()
    }

    fn writer(&self) -> Option<&WritingSide> {
        self.writes.get()?.side.as_ref()
    }

    /// The last version that this process announced, with its positions.
    pub fn announced(&self) -> Option<(Version, Vec<Position>)> {
        let announced = self.writer()?.announced.borrow();
        announced.as_ref().map(|announced| (announced.version, announced.positions.clone()))
    }

    /// Where the log lies, and how many records in it are not announced.
    pub(super) fn log(&self) -> Option<(PathBuf, i64)> {
        self.writer().map(|writer| (writer.log_dir.clone(), writer.metrics.pending_records.get()))
    }

    /// The mistake by which one of its sides has ended.
    pub fn ended(&self) -> Option<&str> {
        self.ended.get().map(String::as_str)
    }

    pub(super) fn end(&self, mistake: String) {
        // The first mistake is the cause; what ends after it often ends because of it.
        let _ = self.ended.set(mistake);
    }

    pub(super) fn touch(&self, clock: &Clock) {
        self.last_activity.store(clock.wall_ms(), Ordering::Relaxed);
    }

    /// What keeps it from being ready. A standby is ready: it would take over at once, and waiting for more would hold
    /// up a rolling restart for ever. One that never could take over, and without somebody's doing never will, is not, so
    /// that such a restart ends there.
    pub fn not_ready(&self) -> Option<String> {
        if let Some(mistake) = self.ended() {
            return Some(format!("it has ended: {mistake}"));
        }
        let awaited = self.awaited();
        if let Some(reader) = self.reader() {
            return match (reader.not_ready(), awaited) {
                (Some(why), Some(awaited)) => Some(format!("{why}; its writer waits: {awaited}")),
                (None, _) => self.writer().and_then(WritingSide::never_ran),
                (why, None) => why,
            };
        }
        if awaited.is_some() {
            return awaited;
        }
        let status = self.writer()?.status.borrow();
        match (&status.error, status.state) {
            (Some(error), _) => Some(error.clone()),
            (None, None) => Some("Kafka has not answered yet".to_owned()),
            (None, Some(State::Recovering)) => Some("the last version is being recovered".to_owned()),
            (None, Some(State::Standby | State::Running | State::Draining | State::Gone)) => None,
        }
    }

    /// How it is doing.
    pub fn health(&self, clock: &Clock) -> Health {
        let reading = self.readable.as_ref().map(|side| side.facts(clock));
        let awaited = self.awaited().map(Writing::awaiting);
        let writer = match &awaited {
            Some(_) => Some(WAITING),
            None => self.writer().map(WritingSide::state),
        };
        let writing = self.writer().map(WritingSide::facts).or(awaited);
        let (error_count, counted) = self.count_errors();
        let errors_last_minute = {
            let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
            errors.sample(clock.now(), counted)
        };
        let listeners = reading.as_ref().map_or(Vec::new(), |reading| reading.listeners.clone());
        let of_listeners = listeners.iter().map(|told| (told.name.clone(), told.circuit));
        let of_tail = reading.iter().map(|reading| (TAIL.to_owned(), reading.circuit));
        let of_writer = writing.iter().flat_map(|writing| &writing.circuits);
        let of_writer = of_writer.map(|report| (report.dependency.name().to_owned(), report.state));
        let circuit = of_listeners.chain(of_tail).chain(of_writer).collect();
        let announced = self.writer().and_then(|writer| writer.announced.borrow().clone());
        let version = match &reading {
            Some(reading) => reading.version,
            None => announced.as_ref().map_or(Version(0), |announced| announced.version),
        };
        let mut lag = 0;
        let (mut memory_usage, mut mapped_bytes) = (0, 0);
        let mut views = Vec::new();
        let mut announced_at = None;
        if let Some(readable) = &self.readable {
            let status = readable.reader.status().readable;
            lag += status.lag;
            announced_at = (status.version > Version(0)).then_some(status.announced_at_ms);
            views.push(readable.reader.view());
        }
        if let Some(writer) = self.writer() {
            let source: i64 = writer.metrics.source_lag_records.all().iter().map(|lag| lag.get()).sum();
            // Both count from what is announced; the source is asked now and then only.
            lag += source.max(writer.metrics.pending_records.get()).unsigned_abs();
            views.extend(announced.map(|announced| announced.view));
        }
        for view in &views {
            let overlay = view.overlay();
            memory_usage += view.memory();
            mapped_bytes += overlay.plain_bytes + view.base().map_or(0, |base| base.bytes());
        }
        let last_activity = self.last_activity.load(Ordering::Relaxed);
        let pinned = reading.as_ref().and_then(|reading| reading.pin.pinned.as_ref()).map(Held::of);
        let refused = reading.as_ref().and_then(|reading| reading.refused.as_ref()).map(Refused::of);
        let facts = Facts { ended: self.ended.get().cloned(), errors_last_minute, reading, writing };
        let (status, reasons) = health::judge(&facts, self.max_errors_per_minute());
        Health {
            name: self.name.clone(),
            status,
            reasons,
            version,
            last_activity: (last_activity > 0).then(|| rfc3339(last_activity)),
            error_count,
            errors_last_minute,
            processed_count: self.processed_count(),
            dead_letters: self.dead_letters(),
            memory_usage,
            mapped_bytes,
            circuit,
            listeners,
            lag,
            announced_at: announced_at.map(rfc3339),
            age_seconds: announced_at.map(|at| (clock.wall_ms() - at).max(0) as f64 / 1_000.0),
            pinned,
            refused,
            writer,
        }
    }

    /// Errors since the start: all, and those whose number is held against the dataset. Kafka or the blob store being
    /// away, or the cache's disk full, is a state, in which the last good version is served; how often it was tried meanwhile
    /// makes it no worse.
    fn count_errors(&self) -> (u64, u64) {
        let (mut all, mut counted) = (0, 0);
        if let Some(side) = &self.readable {
            let errors = &side.metrics.errors_total;
            all = errors.all().iter().map(|errors| errors.get()).sum();
            let states = [UNREACHABLE, STORE, DISK].map(|stage| errors.with(&[stage]).get());
            counted = all.saturating_sub(states.iter().sum());
        }
        if let Some(side) = self.writer() {
            let (failures, unavailable) = {
                let status = side.status.borrow();
                (status.failures, status.unavailable)
            };
            all += side.metrics.write_failures_total.get() + failures;
            counted += failures.saturating_sub(unavailable);
        }
        (all, counted)
    }

    fn processed_count(&self) -> u64 {
        match (&self.readable, self.writer()) {
            (Some(readable), _) => readable.metrics.processed_versions_total.get(),
            (None, Some(writer)) => writer.metrics.versions_total.get(),
            (None, None) => 0,
        }
    }

    /// What became a dead letter here since the start of the process, whatever the stage: records that do not fit, records
    /// that were shed into letters, changes that a listener did not handle.
    fn dead_letters(&self) -> u64 {
        // Both sides count into one family: either one knows all.
        let letters = match (self.writer(), &self.readable) {
            (Some(writer), _) => writer.metrics.dead_letters_total.all(),
            (None, Some(readable)) => readable.metrics.dead_letters_total.all(),
            (None, None) => Vec::new(),
        };
        letters.iter().map(|letters| letters.get()).sum()
    }

    fn max_errors_per_minute(&self) -> u32 {
        let limit = self.readable.as_ref().map(|readable| readable.max_errors_per_minute);
        limit.unwrap_or(consumer::options::DEFAULT_MAX_ERRORS_PER_MINUTE)
    }
}

impl ReadingSide {
    /// The reading side of a dataset.
    pub fn new(reader: Reader, metrics: Arc<ConsumerMetrics>, max_errors_per_minute: u32) -> ReadingSide {
        ReadingSide { reader, metrics, max_errors_per_minute }
    }

    /// Counts it.
    pub fn metrics(&self) -> &ConsumerMetrics {
        &self.metrics
    }

    fn facts(&self, clock: &Clock) -> Reading {
        let consumer::Status { readable, tail, pin } = self.reader.status();
        Reading {
            version: readable.version,
            announced: readable.announced,
            caught_up: readable.caught_up,
            stale: readable.stale,
            late: readable
                .late
                .filter(|(_, at)| clock.now().saturating_duration_since(*at) < health::MINUTE)
                .map(|(late, _)| late),
            reachable: tail.reachable,
            circuit: tail.circuit,
            // An unreachable Kafka says more than what the follower could not do because of it.
            error: tail.error.or(readable.error),
            newer: tail.newer,
            restored: readable.restored,
            pin,
            refused: readable.refused,
            listeners: self.reader.listeners(),
        }
    }
}

impl WritingSide {
    pub(super) fn facts(&self) -> Writing {
        let status = self.status.borrow();
        Writing {
            reached: status.state.is_some(),
            running: status.state == Some(State::Running),
            circuits: self.circuits.report(),
            error: status.error.clone(),
            refused: status.refused,
            // By the guard itself where no source is there to say it: one that is lost has ended, and the log behind it waits.
            paused: status.paused.clone().or_else(|| self.circuits.storm.raging()),
            waiting: status.waiting.clone(),
        }
    }

    /// Why it has not written since the start, where waiting does not mend that.
    fn never_ran(&self) -> Option<String> {
        let status = self.status.borrow();
        status.error.clone().filter(|_| status.refused && !status.has_run)
    }

    fn state(&self) -> &'static str {
        match self.status.borrow().state {
            None => WAITING,
            Some(State::Standby) => "standby",
            Some(State::Recovering) => "recovering",
            Some(State::Running) => "running",
            Some(State::Draining) => "draining",
            Some(State::Gone) => "gone",
        }
    }
}
