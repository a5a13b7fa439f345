//! The producer side of one dataset: source topics in, announced versions out.
//!
//! ```text
//!  member (group stillwell.NAME) --Assigned/Revoked/Lost--> own --> a life (life.rs), and another, and another
//! ```
//!
//! Owns: the shard's supervisor, the log and the membership, which outlive each life. Does not own: reading
//! (`consumer`), several datasets in one process (`host`), the HTTP routes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub mod options;
pub mod builder;
pub mod own;
pub mod topics;
pub mod control;
pub mod rebuild;
pub mod recover;
pub mod read_back;
pub mod life;
pub mod source;
pub mod survey;
pub mod intake;
pub mod validate;
pub mod log;
pub mod pace;
pub mod shed;
pub mod batch;
pub mod build;
pub mod snapshot;
pub mod store;
pub mod announce;
pub mod write;

pub use builder::ProducerBuilder;
pub use options::{Batching, Memory, Options, Pacing, Performance, Reliability, Spill};
pub use shed::Shed;
pub use write::{Landed, Publication, Write, Writer, Written};

use crate::error::{Error, ErrorKind, Result};
use crate::format::chunk::Range;
use crate::gauge::Pressure;
use crate::kafka::{self, Admin, Member};
use crate::record::Position;
use crate::retry::Backoff;
use crate::version::{Shard, Version};
use crate::view::Cache;
use announce::Announced;
use life::{End, Ground};
use log::Log;
use own::{Action, Event, Ownership, State};
use pace::Pace;
use recover::Recovery;
use shed::Ledger;
use write::follow::Follower;
use write::watch::Watchers;

/// Between lives, and between attempts to reach Kafka.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// How long a stop waits for what was written here to be acknowledged by Kafka.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// What the producer is doing, for health and for who embeds it.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Where the shard stands; `None` until Kafka has answered once.
    pub state: Option<State>,
    /// Why the last life ended or the next one cannot begin, if it did not end well.
    pub error: Option<String>,
    /// Lives that ended with an error.
    pub failures: u64,
    /// Why nothing is taken from Kafka at the moment; it goes on by itself.
    pub paused: Option<String>,
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
        write!(f, ", {} records left in the log", self.left_in_log)
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
    pace: Pace,
    writer: Writer,
    /// What tells who writes here of versions that are made elsewhere.
    follower: JoinSet<()>,
    stop_follower: CancellationToken,
}

impl Producer {
    /// A builder for the producer of `dataset`.
    pub fn builder(dataset: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(dataset)
    }

    /// Starts the producer: opens log and cache, then joins the group in the background. Kafka need not be there yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where another process holds the data directory, or it cannot be written.
    pub async fn start(options: Options) -> Result<Producer> {
        let watchers = Watchers::default();
        let writer = Writer::new(&options, watchers.clone())?;
        let dir = options.data_dir.join("log").join(&options.dataset);
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
        let cache_dir = options.data_dir.join("cache");
        let cache = Cache::open(&cache_dir, options.cache_bytes).map_err(|error| {
            Error::because(
                ErrorKind::Config,
                format!("opening the blob cache in {}", cache_dir.display()),
                error,
            )
        })?;
        let (status_in, status) = watch::channel(Status::default());
        let (announced_in, announced) = watch::channel(None);
        let stop = CancellationToken::new();
        let (mut follower, stop_follower) = (JoinSet::new(), CancellationToken::new());
        let follow = Follower::new(options.clone(), watchers.clone(), Some(status.clone()));
        follower.spawn(follow.run(stop_follower.clone()));
        let pace = Pace::new(options.pacing.clone(), options.clock.clone());
        let supervisor = Supervisor {
            options,
            log,
            cache,
            status: status_in,
            announced: announced_in,
            pace: pace.clone(),
            ledger,
            watchers,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(supervisor.run(stop.clone()));
        Ok(Producer { tasks, stop, status, announced, pace, writer, follower, stop_follower })
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

/// How a term in the group ended.
enum Next {
    /// Told to stop.
    Stop,
    /// The group's client cannot go on: a new one may.
    JoinAgain,
}

struct Supervisor {
    options: Options,
    log: Log,
    cache: Cache,
    status: watch::Sender<Status>,
    announced: watch::Sender<Option<Announced>>,
    pace: Pace,
    ledger: Ledger,
    watchers: Watchers,
}

/// A life under way.
struct Running {
    end: End,
    recovered: Option<oneshot::Receiver<()>>,
}

impl Supervisor {
    async fn run(self, stop: CancellationToken) -> Result<Farewell> {
        let dataset = self.options.dataset.clone();
        let mut backoff = Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF);
        let ended = loop {
            match self.supervise(stop.clone()).await {
                Ok(Next::Stop) => break Ok(()),
                Ok(Next::JoinAgain) => {
                    let wait = backoff.next(&self.options.entropy);
                    tracing::warn!(dataset, ?wait, "the group's client has ended; joining again");
                    tokio::select! {
                        () = stop.cancelled() => break Ok(()),
                        () = tokio::time::sleep(wait) => {}
                    }
                }
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = &ended {
            tracing::error!(dataset, error = %error.chain(), "the producer has ended");
        }
        let synced = self.log.close().await;
        let farewell = {
            let announced = self.announced.borrow();
            Farewell {
                version: announced.as_ref().map(|announced| announced.version),
                positions: announced
                    .as_ref()
                    .map(|announced| announced.positions.clone())
                    .unwrap_or_default(),
                left_in_log: self.log.stats().pending_records,
            }
        };
        ended?;
        synced
            .map_err(|error| Error::because(error.kind(), format!("closing the log of {dataset}"), error))?;
        Ok(farewell)
    }

    async fn supervise(&self, stop: CancellationToken) -> Result<Next> {
        let options = &self.options;
        let Some((admin, prepared)) = self.prepare(&stop).await? else { return Ok(Next::Stop) };
        let unavailable = |doing: &str, error: crate::kafka::Error| {
            Error::because(error.kind(), format!("{doing} for dataset {}", options.dataset), error)
        };
        let group = format!("stillwell.{}", options.dataset);
        let mut member = Member::join(&options.kafka, &group, &options.announcements, &options.instance_id)
            .map_err(|error| unavailable("joining the group", error))?;
        tracing::info!(dataset = options.dataset, group, instance = options.instance_id, "joining the group");
        let ground = Ground {
            recovery: Recovery {
                options: options.clone(),
                shard: Shard(0),
                admin,
                topic_id: prepared.announcements_id,
                cache: self.cache.clone(),
                log: self.log.clone(),
            },
            member: member.membership(),
            announced: self.announced.clone(),
            watchers: self.watchers.clone(),
            letter_limit: prepared.letter_limit,
            pressure: Pressure::new(options.clock.clone()),
            pace: self.pace.clone(),
            ledger: self.ledger.clone(),
            status: self.status.clone(),
        };

        let mut ownership = Ownership::default();
        let mut backoff = Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF);
        let mut lives = JoinSet::new();
        let mut running: Option<Running> = None;
        let mut release = None;
        let mut stopping = false;
        let (mut recovered_at, mut permanent) = (None, false);
        loop {
            self.status.send_modify(|status| status.state = Some(ownership.state()));
            let event = tokio::select! {
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    Event::Stop
                }
                event = member.next() => match event {
                    None => {
                        stop_life(&running, &mut lives).await;
                        return Ok(Next::JoinAgain);
                    }
                    Some(kafka::Event::Assigned(partitions)) if partitions.contains(&0) => {
                        tracing::info!(dataset = options.dataset, "the shard is ours; taking over");
                        Event::Assigned
                    }
                    Some(kafka::Event::Revoked(revoked)) => {
                        if !revoked.partitions.contains(&0) {
                            revoked.release();
                            continue;
                        }
                        release = Some(revoked);
                        Event::Revoked
                    }
                    Some(kafka::Event::Lost(partitions)) if partitions.contains(&0) => Event::Lost,
                    Some(kafka::Event::Assigned(_) | kafka::Event::Lost(_)) => continue,
                    // A broker that restarts looks like a refusal for a moment; the member goes on by itself, and where
                    // it cannot, nothing follows and the arm above joins again.
                    Some(kafka::Event::Failed(error)) => {
                        tracing::warn!(dataset = options.dataset, %error, "the group has trouble; going on");
                        continue;
                    }
                    Some(kafka::Event::Fenced(error)) => {
                        // Another process runs under this instance_id; two must not take turns.
                        stop_life(&running, &mut lives).await;
                        return Err(Error::because(
                            ErrorKind::Config,
                            format!(
                                "another process runs as instance {:?} of dataset {}: give each its own instance_id",
                                options.instance_id, options.dataset
                            ),
                            error,
                        ));
                    }
                },
                () = recovered(&mut running) => {
                    recovered_at = Some(options.clock.now());
                    self.status.send_modify(|status| status.error = None);
                    Event::Recovered
                }
                Some(ended) = lives.join_next() => {
                    running = None;
                    permanent = self.note_end(ended);
                    // Only a life that lasted was a success: one that fails at its first step must not be begun hot.
                    let lasted = recovered_at.take().map(|at| options.clock.now().saturating_duration_since(at));
                    if lasted.is_some_and(|lasted| lasted > LONGEST_BACKOFF) {
                        backoff.reset();
                    }
                    Event::Ended
                }
            };
            match ownership.on(event) {
                Action::Wait => {}
                action @ (Action::Begin | Action::BeginAgain) => {
                    let wait = match action {
                        Action::BeginAgain if permanent => LONGEST_BACKOFF,
                        Action::BeginAgain => backoff.next(&options.entropy),
                        _ => Duration::ZERO,
                    };
                    let end = End::default();
                    let (recovered, recovered_in) = oneshot::channel();
                    running = Some(Running { end: end.clone(), recovered: Some(recovered_in) });
                    let ground = ground.clone();
                    lives.spawn(async move {
                        tokio::select! {
                            () = end.kill.cancelled() => return Ok(()),
                            () = tokio::time::sleep(wait) => {}
                        }
                        life::live(ground, end, recovered).await
                    });
                }
                Action::Drain => {
                    if let Some(running) = &running {
                        running.end.last_snapshot.store(stopping, Ordering::Release);
                        running.end.drain.cancel();
                    }
                }
                Action::Kill => {
                    if let Some(running) = &running {
                        running.end.kill.cancel();
                    }
                }
                Action::Release => {
                    if let Some(ack) = release.take() {
                        ack.release();
                    }
                }
                Action::Leave => {
                    if let Some(ack) = release.take() {
                        ack.release();
                    }
                    member.close().await;
                    self.status.send_modify(|status| status.state = Some(ownership.state()));
                    return Ok(Next::Stop);
                }
            }
        }
    }

    /// Waits for Kafka, and for the topics. `None`: told to stop meanwhile.
    async fn prepare(&self, stop: &CancellationToken) -> Result<Option<(Admin, topics::Prepared)>> {
        let options = &self.options;
        let admin = Admin::new(&options.kafka).map_err(|error| {
            Error::because(
                error.kind(),
                format!("creating Kafka's admin client for {}", options.dataset),
                error,
            )
        })?;
        let mut backoff = Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF);
        loop {
            let error = tokio::select! {
                () = stop.cancelled() => return Ok(None),
                prepared = topics::prepare(&admin, options) => match prepared {
                    Ok(prepared) => {
                        self.status.send_modify(|status| status.error = None);
                        return Ok(Some((admin, prepared)));
                    }
                    Err(error) => error,
                },
            };
            let transient = error.is_transient();
            let error = Error::because(
                if transient { ErrorKind::Unavailable } else { ErrorKind::Config },
                format!("preparing the topics of dataset {}", options.dataset),
                error,
            );
            if !transient {
                return Err(error);
            }
            let wait = backoff.next(&options.entropy);
            tracing::warn!(
                dataset = options.dataset, servers = options.kafka.bootstrap_servers, error = %error.chain(), ?wait,
                "Kafka is not ready; trying again"
            );
            self.status.send_modify(|status| status.error = Some(error.chain()));
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Says how a life ended. True: nothing but somebody's doing will make the next one better.
    fn note_end(&self, ended: Result<Result<(), life::Error>, tokio::task::JoinError>) -> bool {
        let dataset = &self.options.dataset;
        let error = match ended {
            Ok(Ok(())) => {
                tracing::info!(dataset, "the life has ended");
                return false;
            }
            Ok(Err(error)) => error,
            Err(panic) => life::Error::Panicked(panic),
        };
        let fenced = error.is_fenced();
        let permanent = !fenced && !error.is_transient();
        let kind = match &error {
            _ if fenced => ErrorKind::Fenced,
            error if error.is_transient() => ErrorKind::Unavailable,
            _ => ErrorKind::Config,
        };
        let error = Error::because(kind, format!("writing dataset {dataset}"), error);
        if fenced {
            tracing::warn!(dataset, error = %error.chain(), "fenced; standing by, or beginning anew where still owner");
        } else {
            tracing::error!(dataset, error = %error.chain(), "the life has ended; nothing that was logged is lost");
        }
        self.status.send_modify(|status| {
            status.error = Some(error.chain());
            status.failures += 1;
        });
        permanent
    }
}

async fn stop_life(running: &Option<Running>, lives: &mut JoinSet<Result<(), life::Error>>) {
    if let Some(running) = running {
        running.end.kill.cancel();
    }
    while lives.join_next().await.is_some() {}
}

/// Resolves when the life under way has taken over.
async fn recovered(running: &mut Option<Running>) {
    let Some(Running { recovered, .. }) = running else { return std::future::pending().await };
    let Some(receiver) = recovered else { return std::future::pending().await };
    let taken = receiver.await;
    *recovered = None;
    if taken.is_err() {
        std::future::pending::<()>().await;
    }
}
