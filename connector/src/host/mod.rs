//! The datasets of one process: started, watched, and ended in order.
//!
//! ```text
//!                        +-- producer of a ---+
//!   parts --start-->     +-- consumer of a ---+--> ended early? what that means (task.rs): reported, or the process ends
//!                        +-- consumer of b ---+
//!                        +-- front (HTTP) ----+    stop: fronts and producers, then consumers, then the deadline
//!                                 |
//!                             directory <-- who serves or shows a dataset finds it there
//! ```
//!
//! Owns: the tasks that run sides of datasets and what serves them, the order in which they end, the judgement of health.
//! Does not own: what happens within a dataset (`producer`, `consumer`), routes (`http`), signals (`cli/run`).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

pub mod health;
pub mod directory;
pub mod letters;
pub mod task;
pub mod writer;
pub mod goodbye;

pub use directory::{Dataset, Directory, Health, ReadingSide, Writes, WritingSide};
pub use goodbye::Goodbye;
pub use health::Status;
pub use task::{End, Meaning, Task};
pub use writer::Later;

use crate::clock::Clock;
use crate::consumer::history::Topics;
use crate::consumer::{self, Consumer};
use crate::error::{Error, ErrorKind, Result};
use crate::producer::{self, Farewell};
use crate::view::Cache;
use task::{Finished, Label};
use writer::Writer;

/// One dataset and the sides that this process has of it.
#[derive(Debug)]
pub struct Part {
    /// Dataset name.
    pub name: String,
    /// Write it.
    pub producer: Option<producer::Options>,
    /// The schema to write it with, where the options do not have it: until it is known its writer waits, and nothing
    /// else does.
    pub schema: Option<Later>,
    /// Read it.
    pub consumer: Option<consumer::Options>,
}

/// What the host needs to know besides its parts.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a graceful stop may take.
    pub graceful_shutdown_timeout: Duration,
    /// How often health is judged for the log.
    pub health_check_interval: Duration,
    /// Time.
    pub clock: Clock,
}

/// How often errors are counted, so that "in the last minute" is right to within this.
const SAMPLE: Duration = Duration::from_secs(5);

/// The running datasets.
#[derive(Debug)]
pub struct Host {
    options: Options,
    directory: Directory,
    tasks: JoinSet<Finished>,
    labels: HashMap<Id, Label>,
    stop: Stop,
}

/// Ends the tasks, kind by kind.
#[derive(Debug, Default)]
struct Stop {
    fronts: CancellationToken,
    producers: CancellationToken,
    consumers: CancellationToken,
}

impl Host {
    /// Starts all parts. Kafka need not be there yet.
    ///
    /// # Errors
    /// The first part's that cannot start; those that have started are ended again. A process that begins with less than
    /// it was told to run would look well to whoever started it.
    pub async fn start(parts: Vec<Part>, options: Options) -> Result<Host> {
        let stop = Stop::default();
        let (mut started, mut caches) = (Vec::new(), Caches::new());
        for part in parts {
            match start(part, &mut caches).await {
                Ok(part) => started.push(part),
                Err(error) => {
                    for Started { writer, consumer, .. } in started {
                        end_early(writer, consumer).await;
                    }
                    return Err(error);
                }
            }
        }
        let mut sides = Vec::new();
        let directory = Directory::new(
            started.into_iter().map(|Started { dataset, writer, consumer }| {
                sides.push((dataset.name().to_owned(), writer, consumer));
                dataset
            }),
            options.clock.clone(),
        );
        let mut host = Host { options, directory, tasks: JoinSet::new(), labels: HashMap::new(), stop };
        for (name, writer, consumer) in sides {
            let dataset = host.directory.get(&name).expect("it has just been entered").clone();
            let clock = host.options.clock.clone();
            if let Some(writer) = writer {
                let run = writer.run(dataset.clone(), clock.clone(), host.stop.producers.clone());
                host.spawn(Label::new(Task::Producer, &name), run);
            }
            if let Some(consumer) = consumer {
                let run = run_consumer(consumer, dataset, clock, host.stop.consumers.clone());
                host.spawn(Label::new(Task::Consumer, &name), run);
            }
        }
        let watch = watch_health(host.directory.clone(), host.options.clone(), host.stop.consumers.clone());
        host.spawn(Label::new(Task::Watch, ""), watch);
        Ok(host)
    }

    /// The datasets, for who serves or shows them.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Runs what serves the datasets, such as HTTP, as long as they live. It is stopped before the consumers are, and
    /// must end soon after its token is cancelled.
    pub fn front<F>(&mut self, name: &str, serve: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let served = serve(self.stop.fronts.clone());
        self.spawn(Label::new(Task::Front, name), async move { served.await.map(|()| None) });
    }

    fn spawn(&mut self, label: Label, run: impl Future<Output = Result<Option<Farewell>>> + Send + 'static) {
        let handle = self.tasks.spawn(run);
        self.labels.insert(handle.id(), label);
    }

    /// Waits for the next task that ends before it was told to, and says what that means for the process. Cancel safe.
    pub async fn next_end(&mut self) -> End {
        let Some(joined) = self.tasks.join_next_with_id().await else {
            // Nothing runs any more, and what ended last has said so.
            return std::future::pending().await;
        };
        let (label, outcome) = self.joined(joined);
        let error = match outcome {
            Ok(_) => Error::new(ErrorKind::Internal, format!("{label} ended without being told to")),
            Err(error) => error,
        };
        let left = self.labels.values().filter(|other| other.task == label.task).count();
        let meaning = label.task.meaning(left);
        if let Some(dataset) = self.directory.get(&label.name) {
            dataset.end(error.chain());
        }
        tracing::error!(task = %label, error = %error.chain(), "{}", meaning.sentence());
        End { label, error, meaning }
    }

    fn joined(
        &mut self,
        joined: Result<(Id, Finished), tokio::task::JoinError>,
    ) -> (Label, Result<Option<Farewell>>) {
        let id = joined.as_ref().map_or_else(tokio::task::JoinError::id, |(id, _)| *id);
        let label = self.labels.remove(&id).expect("each task was labelled when it was spawned");
        let outcome = match joined {
            Ok((_, outcome)) => outcome,
            Err(error) if error.is_cancelled() => {
                Err(Error::new(ErrorKind::Closed, format!("{label} was cut off")))
            }
            Err(panic) => Err(Error::because(ErrorKind::Internal, format!("{label} panicked"), panic)),
        };
        (label, outcome)
    }

    /// Ends everything in order, within `graceful_shutdown_timeout`: nothing is ready any more; HTTP finishes what it
    /// answers while the producers finish what they have begun; then the consumers end. Whatever still runs at the
    /// deadline is cut off, and the answer says what it left where.
    pub async fn shutdown(mut self) -> Goodbye {
        let timeout = self.options.graceful_shutdown_timeout;
        let began = tokio::time::Instant::now();
        let deadline = began + timeout;
        self.directory.drain();
        self.stop.fronts.cancel();
        self.stop.producers.cancel();
        let mut goodbye = Goodbye::default();
        // A client that reads slowly must not take the consumers' share of the time.
        let fronts = began + timeout / 2;
        self.join_while(Task::Front, fronts, &mut goodbye).await;
        self.stop.consumers.cancel();
        self.join_all(deadline, &mut goodbye).await;
        goodbye
    }

    /// Joins until no task of this kind is left, or until `deadline`.
    async fn join_while(&mut self, task: Task, deadline: tokio::time::Instant, goodbye: &mut Goodbye) {
        while self.labels.values().any(|label| label.task == task) {
            if !self.join_one(deadline, goodbye).await {
                return;
            }
        }
    }

    async fn join_all(&mut self, deadline: tokio::time::Instant, goodbye: &mut Goodbye) {
        while !self.labels.is_empty() {
            if !self.join_one(deadline, goodbye).await {
                break;
            }
        }
        for label in self.labels.values() {
            goodbye.cut_off(label, self.directory.get(&label.name).map(|dataset| &**dataset));
        }
        // Aborted tasks drop what they hold, which cancels their own tasks.
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
    }

    /// Joins one task; false at the deadline.
    async fn join_one(&mut self, deadline: tokio::time::Instant, goodbye: &mut Goodbye) -> bool {
        let joined = tokio::time::timeout_at(deadline, self.tasks.join_next_with_id()).await;
        let Ok(Some(joined)) = joined else { return false };
        let (label, outcome) = self.joined(joined);
        goodbye.ended(&label, outcome);
        true
    }
}

/// A part that runs, before its tasks are the host's.
struct Started {
    dataset: Dataset,
    writer: Option<Writer>,
    consumer: Option<Consumer>,
}

/// Caches by directory: sides that cache in one place share it, under one budget.
type Caches = HashMap<PathBuf, Cache>;

async fn start(part: Part, caches: &mut Caches) -> Result<Started> {
    let Part { name, producer, schema, consumer } = part;
    let topics =
        consumer.as_ref().map(consumer::Options::topics).or_else(|| producer.as_ref().map(topics_of));
    let mut reading = None;
    let consumer = match consumer {
        Some(options) => {
            let (metrics, limit) = (options.metrics.clone(), options.max_errors_per_minute);
            let shared = caches.get(&options.cache_dir).cloned();
            let consumer = Consumer::spawn_in(options, shared)?;
            let cache = consumer.cache();
            caches.insert(cache.dir().to_owned(), cache.clone());
            reading = Some(ReadingSide::new(consumer.reader().clone(), metrics, limit));
            Some(consumer)
        }
        None => None,
    };
    let (mut writer, mut writes, mut awaited) = (None, None, None);
    if let Some(options) = producer {
        let dir = options.cache_dir();
        let begun = match (caches.get(&dir).cloned(), schema) {
            (shared, None) => writer::begin(options, shared).await.map(|(producer, its)| {
                caches.insert(dir, producer.cache().clone());
                writes = Some(its);
                Writer::Begun(Box::new(producer))
            }),
            // Opened before it is needed, so that whoever caches there shares it.
            (shared, Some(later)) => shared.map_or_else(|| options.open_cache(), Ok).map(|cache| {
                caches.insert(dir, cache.clone());
                awaited = Some(later.why.clone());
                Writer::Waits(Box::new(options), cache, later)
            }),
        };
        match begun {
            Ok(begun) => writer = Some(begun),
            Err(error) => {
                end_early(None, consumer).await;
                return Err(error);
            }
        }
    }
    let mut dataset = Dataset::new(name, reading, writes);
    if let Some(why) = awaited {
        dataset = dataset.awaiting(why);
    }
    if let Some(topics) = topics {
        dataset = dataset.steered_by(consumer::Steering::new(topics));
    }
    Ok(Started { dataset, writer, consumer })
}

/// Both sides know where the topics lie.
fn topics_of(options: &producer::Options) -> Topics {
    Topics {
        dataset: options.dataset.clone(),
        kafka: options.kafka.clone(),
        announcements: options.announcements.clone(),
        control: options.control.clone(),
        clock: options.clock.clone(),
        entropy: options.entropy.clone(),
    }
}

/// Ends what was started for nothing. Its own errors are not what the operator has to mend.
async fn end_early(writer: Option<Writer>, consumer: Option<Consumer>) {
    if let Some(Writer::Begun(producer)) = writer {
        let _ = producer.shutdown().await;
    }
    if let Some(consumer) = consumer {
        let _ = consumer.shutdown().await;
    }
}

async fn run_consumer(
    consumer: Consumer,
    dataset: Arc<Dataset>,
    clock: Clock,
    stop: CancellationToken,
) -> Result<Option<Farewell>> {
    let mut readable = consumer.watch();
    let mut version = readable.borrow().version;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            changed = readable.changed() => match changed {
                Ok(()) => {
                    let now = readable.borrow_and_update().version;
                    if std::mem::replace(&mut version, now) != now {
                        dataset.touch(&clock);
                    }
                }
                // Its tasks are gone: joining them says why.
                Err(watch::error::RecvError { .. }) => break,
            },
        }
    }
    consumer.shutdown().await.map(|()| None)
}

/// Says in the log what the health route would: once when it changes, and when it stays bad, each interval.
async fn watch_health(
    directory: Directory,
    options: Options,
    stop: CancellationToken,
) -> Result<Option<Farewell>> {
    let mut before: HashMap<String, Status> = HashMap::new();
    let mut since_judged = Duration::ZERO;
    let every = SAMPLE.min(options.health_check_interval).max(Duration::from_millis(100));
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(every) => {}
        }
        // Judging samples the error counts, so this happens also when nothing is logged.
        let (_, all) = directory.health();
        since_judged += every;
        if since_judged < options.health_check_interval {
            continue;
        }
        since_judged = Duration::ZERO;
        for health in all {
            let was = before.insert(health.name.clone(), health.status).unwrap_or(Status::Healthy);
            let (dataset, reasons) = (&health.name, health.reasons.join("; "));
            match (was, health.status) {
                (Status::Healthy, Status::Healthy) => {}
                (_, Status::Healthy) => tracing::info!(dataset, "healthy again"),
                (_, status) => tracing::warn!(dataset, reasons, "{}", status.name()),
            }
        }
    }
}

#[cfg(test)]
mod tests;
