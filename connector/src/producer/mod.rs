//! The producer side of one dataset: source topics in, announced versions out.
//!
//! ```text
//!  member (group stillwell.NAME) --Assigned/Revoked/Lost--> own --> a life (life.rs), and another, and another
//! ```
//!
//! Owns: the shard's supervisor, the log and the membership, which outlive each life. Does not own: reading
//! (`consumer`), several datasets in one process (`host`), the HTTP routes.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub mod options;
pub mod builder;
pub mod own;
mod supervise;
pub mod topics;
pub mod control;
pub mod rebuild;
pub mod recover;
pub mod read_back;
pub mod circuit;
pub mod life;
pub mod look;
pub mod keep;
pub mod source;
pub mod survey;
pub mod stall;
pub mod intake;
pub mod schemas;
pub mod validate;
pub mod log;
pub mod pace;
pub mod storm;
pub mod shed;
pub mod batch;
pub mod turns;
pub mod lap;
pub mod build;
pub mod snapshot;
pub mod store;
pub mod announce;
pub mod clean;
pub mod write;

pub use builder::ProducerBuilder;
pub use options::{Batching, Cleaning, Memory, Options, Pacing, Performance, Reliability, Spill};
pub use shed::Shed;
pub use write::{Landed, Publication, Write, Writer, Written};

use crate::error::{Error, ErrorKind, Result};
use crate::format::chunk::Range;
use crate::record::Position;
use crate::version::Version;
use crate::view::Cache;
use crate::words::counted;
use announce::Announced;
use circuit::Circuits;
use log::Log;
use own::State;
use pace::Pace;
use shed::Ledger;
use supervise::Supervisor;
use write::follow::Follower;
use write::watch::Watchers;

/// How long a stop waits for what was written here to be acknowledged by Kafka.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// What the producer is doing, for health and for who embeds it.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Where the shard stands; `None` until Kafka has answered once.
    pub state: Option<State>,
    /// Why the last life ended or the next one cannot begin, if it did not end well.
    pub error: Option<String>,
    /// Whether that error is one that nothing but somebody's doing mends: it is tried again, and fails again.
    pub refused: bool,
    /// Whether a life of this process has taken over.
    pub has_run: bool,
    /// Lives that ended with an error.
    pub failures: u64,
    /// Why the last of these ended. It stays once the next life has begun, which takes [`Status::error`] back.
    pub last_failure: Option<String>,
    /// Of these, lives that ended because Kafka was away: the circuits tell more.
    pub unavailable: u64,
    /// Why nothing is taken from Kafka at the moment; it goes on by itself.
    pub paused: Option<String>,
    /// Why some partitions of the source wait, if any do: their records' schemas cannot be had yet.
    pub waiting: Option<String>,
}

/// How a producer ended.
#[derive(Clone, Debug)]
pub struct Farewell {
    /// The last version that it announced, if any.
    pub version: Option<Version>,
    /// Its positions.
    pub positions: Vec<Position>,
    /// Records that are durable in the log and not announced; the next start takes them up.
    pub left_in_log: u64,
}

impl std::fmt::Display for Farewell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.version {
            Some(version) => write!(f, "last version {version}")?,
            None => f.write_str("no version announced")?,
        }
        for (i, position) in self.positions.iter().enumerate() {
            write!(f, "{} {position}", if i == 0 { "," } else { "" })?;
        }
        write!(f, ", {} left in the log", counted(self.left_in_log, "record"))
    }
}

/// A running producer of one dataset.
///
/// Dropping it cancels its tasks without waiting; [`Producer::shutdown`] lets them finish.
#[derive(Debug)]
pub struct Producer {
    tasks: JoinSet<Result<Farewell>>,
    stop: CancellationToken,
    status: watch::Receiver<Status>,
    announced: watch::Receiver<Option<Announced>>,
    circuits: Circuits,
    pace: Pace,
    writer: Writer,
    /// What tells who writes here of versions that are made elsewhere.
    follower: JoinSet<()>,
    stop_follower: CancellationToken,
    cache: Cache,
}

impl Producer {
    /// A builder for the producer of `dataset`.
    pub fn builder(dataset: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(dataset)
    }

    /// Starts the producer: opens log and cache, then joins the group in the background. Kafka need not be there yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where another process holds the log, it cannot be written, or librdkafka refuses a property.
    pub async fn start(options: Options) -> Result<Producer> {
        Producer::start_in(options, None).await
    }

    /// The same in a cache that others of this process have open.
    ///
    /// # Errors
    /// As [`Producer::start`].
    #[doc(hidden)]
    pub async fn start_in(options: Options, cache: Option<Cache>) -> Result<Producer> {
        options.kafka.check().map_err(|error| {
            Error::because(error.kind(), format!("starting the producer of {}", options.dataset), error)
        })?;
        let watchers = Watchers::default();
        let writer = Writer::new(&options, watchers.clone())?;
        let dir = options.log_dir();
        let doing = || format!("opening the log of dataset {} in {}", options.dataset, dir.display());
        let metrics = options.metrics.clone();
        let persisted = std::sync::Arc::new(move |took: Duration| {
            metrics.persist_latency_seconds.observe(took.as_secs_f64());
        });
        let memory = options.batching.memory();
        let ledger =
            Ledger::new(&options.dataset, options.spill.shed, options.clock.clone(), options.metrics.clone());
        let log = Log::open(
            &dir,
            log::Options {
                on_persisted: Some(persisted),
                max_waiting_bytes: memory.log_waiting,
                write_buffer_bytes: memory.write_buffer,
                max_log_bytes: options.spill.max_log_size,
                shed: options.spill.shed,
                on_shed: Some(std::sync::Arc::new({
                    let ledger = ledger.clone();
                    move |records, ranges: &[Range]| ledger.note(records, ranges)
                })),
                ..log::Options::new(options.clock.clone())
            },
        )
        .await
        .map_err(|error| Error::because(error.kind(), doing(), error))?;
        let cache = cache.map_or_else(|| options.open_cache(), Ok)?;
        let (status_in, status) = watch::channel(Status::default());
        let (announced_in, announced) = watch::channel(None);
        let stop = CancellationToken::new();
        let (mut follower, stop_follower) = (JoinSet::new(), CancellationToken::new());
        let follow = Follower::new(options.clone(), watchers.clone(), Some(status.clone()));
        follower.spawn(follow.run(stop_follower.clone()));
        let circuits = Circuits::of(&options);
        let pace = Pace::new(options.pacing.clone(), options.clock.clone());
        let supervisor = Supervisor {
            options,
            log,
            cache: cache.clone(),
            circuits: circuits.clone(),
            status: status_in,
            announced: announced_in,
            pace: pace.clone(),
            ledger,
            watchers,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(supervisor.run(stop.clone()));
        Ok(Producer {
            tasks,
            stop,
            status,
            announced,
            circuits,
            pace,
            writer,
            follower,
            stop_follower,
            cache,
        })
    }

    /// Its cache, for others of this process to share.
    #[doc(hidden)]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Follows what it is doing.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// The newest version that this process has announced.
    pub fn announced(&self) -> watch::Receiver<Option<Announced>> {
        self.announced.clone()
    }

    /// Changes how fast records leave the log, from now on; what waits at the old rate goes on at the new one. Until the
    /// process ends: the configuration is not touched.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a `pressure_high` that is not above 0 and at most 1.
    pub fn set_pacing(&self, pacing: Pacing) -> Result<()> {
        self.pace.set(pacing)
    }

    /// The limits of [`Producer::set_pacing`], and the rate of the moment; for who changes them without the producer.
    pub fn pace(&self) -> Pace {
        self.pace.clone()
    }

    /// Ends a storm of misfits: records may fail for that reason from now on, however many, until the process ends. What
    /// the source was paused for; `None` where there was none.
    pub fn let_through(&self) -> Option<String> {
        self.circuits.storm.let_through()
    }

    /// The breakers before what it depends on.
    #[doc(hidden)]
    pub fn circuits(&self) -> &Circuits {
        &self.circuits
    }

    /// What writes the dataset's records, for others to hold.
    #[doc(hidden)]
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// Waits until it ends by itself, which it does only for a mistake that it cannot wait out.
    ///
    /// # Errors
    /// That mistake.
    pub async fn ended(&mut self) -> Result<Farewell> {
        let ended = self.tasks.join_next().await;
        self.stop_follower.cancel();
        self.writer.close();
        match ended {
            Some(Ok(ended)) => ended,
            Some(Err(panic)) => Err(Error::because(ErrorKind::Internal, "the producer panicked", panic)),
            None => Err(Error::new(ErrorKind::Closed, "the producer has ended before")),
        }
    }

    /// Stops gracefully: records written here acknowledged, source paused, log synced, batch flushed, versions in flight
    /// announced, a last snapshot, the group left. Whoever cannot wait that long drops the future: what was not announced stays in the log.
    ///
    /// # Errors
    /// What went wrong on the way.
    pub async fn shutdown(mut self) -> Result<Farewell> {
        self.writer.flush(LAST_WRITES).await;
        self.stop.cancel();
        let ended = self.ended().await;
        while self.follower.join_next().await.is_some() {}
        ended
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.stop.cancel();
        self.stop_follower.cancel();
        self.writer.close();
    }
}
