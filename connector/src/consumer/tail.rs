//! The tail: reads the announcement topic from its last announcement on, and hands on what is valid.
//!
//! ```text
//!  describe -> read back from the end -> last valid announcement -> one long fetch after another
//!      ^                                                                     |
//!      +------------ backoff, through the breaker <-------- error, lost -----+
//! ```
//!
//! The second client does nothing else, so its long fetch blocks nobody: while nothing is announced the broker holds one
//! fetch for up to `max_backoff`, and an announcement that arrives ends it at once. Backing off costs no latency.
//!
//! Owns: the position in the announcement topic, the succession of lives. Does not own: blobs and views (`follow`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Options;
use crate::clock::Clock;
use crate::error::chain;
use crate::format::announcement::{self as format, Announcement, Message};
use crate::format::succession::{Succession, Verdict, window_is_enough};
use crate::kafka::{self, Admin, Kept, Polled, Poller, TopicInfo, Tuning};
use crate::record::TopicId;
use crate::repeat;
use crate::retry::{Backoff, Breaker, Circuit};
use crate::version::Shard;

/// Errors in a row that open the breaker. It stays open for the longest backoff: a longer time would keep readers from
/// versions that are there, and what is spared is one request.
const BREAKER: u32 = 10;
/// How long reading back may take before it counts as an error.
const READ_BACK: Duration = Duration::from_secs(30);
/// Longest that a poll blocks without looking whether it should stop.
const SLICE: Duration = Duration::from_millis(200);
/// The fetch by which the end of the topic is found: the end is told only by a fetch that comes back empty, which a start
/// waits for.
const SHORT_FETCH: Duration = Duration::from_millis(1);
/// Stage under which attempts to reach Kafka are counted as errors. Health shows them as unreachability, and does not hold
/// their number against the process: restarting it would only take away the version that it still serves.
pub const UNREACHABLE: &str = "kafka";
/// The tail's breaker, as metrics and health spell it.
pub const TAIL: &str = "kafka_tail";
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// How soon the topic is looked at when something in it does not count.
const LOOK_SOON: Duration = Duration::from_secs(1);

/// An announcement, as it was read.
#[derive(Debug)]
pub struct Announced {
    /// Id of the topic that it was read from: caches belong to one.
    pub topic_id: TopicId,
    /// It.
    pub announcement: Box<Announcement>,
    /// Its bytes, for a start without Kafka.
    pub encoded: Vec<u8>,
}

/// What the tail hands on; and what `pin` makes of it.
#[derive(Clone, Debug)]
pub enum Seen {
    /// A valid announcement. The first one after a (re)start is the last in the topic.
    Announced(Arc<Announced>),
    /// The version that the reader is pinned to (`pin`): to be held, whatever is announced.
    Pinned(Arc<Announced>),
    /// What is announced while the reader is pinned (`pin`): not to be shown.
    Newest(Arc<Announced>),
    /// The end of the topic was reached, so what was handed on is the newest there is.
    UpToDate,
    /// The topic is not the one any more that all before was read from: nothing confirms what is held.
    Gone,
}

/// How the tail is doing.
#[derive(Clone, Debug)]
pub struct TailStatus {
    /// Whether the last attempt to read announcements succeeded; `None` before the first.
    pub reachable: Option<bool>,
    /// The breaker's state.
    pub circuit: Circuit,
    /// The last error, until the next success.
    pub error: Option<String>,
    /// Kafka has answered, and what it said is the error: the topic is not there, or not the right one.
    pub answered: bool,
    /// What a newer release wrote and this one cannot read, until the next announcement that it can: what is held is not
    /// the newest.
    pub newer: Option<String>,
}

/// The stage; runs on a thread of its own.
pub struct Tail {
    options: Options,
    shard: Shard,
    out: mpsc::Sender<Seen>,
    status: watch::Sender<TailStatus>,
    clock: Clock,
    /// The topic that announcements were read from first.
    topic_id: Option<TopicId>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("announcement topic {0} does not exist yet: no producer has started")]
    NoTopic(String),
    /// For good: another topic holds another history, and who holds a version of the first must not be moved to it
    /// unasked.
    #[error(
        "announcement topic {topic} was deleted{} (its id was {was}): what it announced is confirmed by nothing any more. \
         Restore it; or, where a new history was begun on purpose, start this process again",
        now.map(|now| format!(" and created again as {now}")).unwrap_or_default()
    )]
    Recreated { topic: String, was: TopicId, now: Option<TopicId> },
    #[error(
        "announcement topic {topic} is that of dataset {found:?}, not of {dataset:?}: correct `announcements`"
    )]
    Stranger { topic: String, found: String, dataset: String },
    #[error("reading the announcement topic {topic}")]
    Kafka {
        topic: String,
        #[source]
        source: kafka::Error,
    },
}

/// Told to stop, or nobody listens.
struct Stopped;

impl Tail {
    /// A tail of one shard.
    pub fn new(
        options: Options,
        shard: Shard,
        out: mpsc::Sender<Seen>,
        status: watch::Sender<TailStatus>,
    ) -> Tail {
        let clock = options.clock.clone();
        Tail { options, shard, out, status, clock, topic_id: None }
    }

    /// Tails until `stop`. Blocks: for a thread of its own, within a runtime.
    pub fn run(mut self, stop: &CancellationToken) {
        let mut backoff = Backoff::new(FIRST_BACKOFF, self.options.max_backoff);
        let mut breaker = Breaker::new(BREAKER, self.options.max_backoff);
        while !stop.is_cancelled() {
            if breaker.allows(self.clock.now()) {
                let error = match self.follow(stop, &mut backoff, &mut breaker) {
                    Ok(Stopped) => return,
                    Err(_) if stop.is_cancelled() => return,
                    Err(error) => error,
                };
                if let Error::NoTopic(_) = &error {
                    breaker.abandoned();
                } else {
                    let trips = breaker.trips();
                    breaker.failed(self.clock.now());
                    self.options.metrics.circuit_trips_total.with(&[TAIL]).inc_by(breaker.trips() - trips);
                }
                self.failed(&error, breaker.state(self.clock.now()), &backoff);
            }
            self.show(breaker.state(self.clock.now()));
            let wait = backoff.next(&self.options.entropy);
            self.options.metrics.backoff_seconds.set(wait.as_secs_f64());
            Handle::current().block_on(async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(wait) => {}
                }
            });
        }
    }

    fn show(&self, circuit: Circuit) {
        self.options.metrics.circuit_state.with(&[TAIL]).set(circuit as i64);
    }

    fn failed(&self, error: &Error, circuit: Circuit, backoff: &Backoff) {
        let text = chain(error);
        let dataset = &self.options.dataset;
        let failures = backoff.failures() + 1;
        let said = repeat::is_said(u64::from(failures));
        // A first start, of a writer that is just making its topics or has not come yet: nothing has failed.
        if let Error::NoTopic(_) = error {
            if said {
                tracing::info!(dataset, "{text}; waiting for it");
            }
        } else {
            if said {
                tracing::warn!(
                    dataset,
                    servers = self.options.kafka.bootstrap_servers,
                    error = text,
                    failures,
                    "announcements cannot be read; the last good version stays readable; trying again"
                );
            }
            self.options.metrics.errors_total.with(&[UNREACHABLE]).inc();
        }
        let answered = !matches!(error, Error::Kafka { source, .. } if source.is_transient());
        self.status.send_modify(|status| {
            (status.reachable, status.circuit, status.error) = (Some(false), circuit, Some(text));
            status.answered = answered;
        });
    }

    fn follow(
        &mut self,
        stop: &CancellationToken,
        backoff: &mut Backoff,
        breaker: &mut Breaker,
    ) -> Result<Stopped, Error> {
        let topic = self.options.announcements.clone();
        let kafka = |source| Error::Kafka { topic: topic.clone(), source };
        let partition = self.shard.0 as i32;
        let group = format!("stillwell.{}", self.options.dataset);
        let poller = || Poller::new(&self.options.kafka, &Tuning::tail(&group, SHORT_FETCH)).map_err(kafka);
        // Made before anything is asked, it finds its broker meanwhile. Not for a topic that is not there yet, again and again.
        let early = if backoff.failures() == 0 { Some(poller()?) } else { None };
        let admin = Admin::new(&self.options.kafka).map_err(kafka)?;
        let described = Handle::current().block_on(async {
            tokio::select! {
                () = stop.cancelled() => None,
                described = async {
                    (admin.describe(&topic).await, admin.watermarks(&topic, partition).await)
                } => Some(described),
            }
        });
        let Some((described, ends)) = described else { return Ok(Stopped) };
        let info = self.same_topic(described.map_err(kafka)?)?;
        let ends = match ends {
            // It is being made at this moment, and its partition not known everywhere.
            Err(kafka::Error::Missing { .. }) if self.topic_id.is_none() => {
                return Err(Error::NoTopic(topic));
            }
            ends => ends.map_err(kafka)?,
        };

        let mut poller = match early {
            Some(poller) => poller,
            None => poller()?,
        };
        let enough = |records: &[Kept]| {
            window_is_enough(
                records
                    .iter()
                    .filter_map(|record| Some(Message::decode(record.value.as_deref()?).ok()?.step())),
            )
        };
        let deadline = self.clock.now() + READ_BACK;
        let clock = &self.clock;
        let window = kafka::read_back(&mut poller, &topic, partition, ends, clock, deadline, stop, enough)
            .map_err(kafka)?;

        let mut succession = Succession::default();
        let mut last = None;
        for record in window.records {
            last = self.judge(&mut succession, info.id, record.offset, record.value)?.seen().or(last);
        }
        self.topic_id = Some(info.id);
        backoff.reset();
        breaker.succeeded();
        self.show(Circuit::Closed);
        self.status.send_modify(|status| *status = TailStatus { newer: status.newer.take(), ..good() });
        // It would go on fetching as often as it may, for as long as who follows has no room. From here on one long fetch after
        // another, by a client made for it.
        drop(poller);
        for seen in last.into_iter().chain([Seen::UpToDate]) {
            if self.out.blocking_send(seen).is_err() {
                return Ok(Stopped);
            }
        }
        let mut poller = Poller::new(&self.options.kafka, &Tuning::tail(&group, self.options.max_backoff))
            .map_err(kafka)?;
        poller.assign(&[(&topic, partition, window.next)]).map_err(kafka)?;
        let look = Look::new(admin, &topic, self.options.look_every, &self.clock);
        self.keep_polling(&mut poller, look, &mut succession, (info.id, window.next), stop)
    }

    /// Whether the topic is there, and the one that was read from before. A name that stands for another topic is told
    /// by nothing else: reading goes on at the old offset, or finds lives that seem to be superseded for ever.
    fn same_topic(&self, described: Option<TopicInfo>) -> Result<TopicInfo, Error> {
        let topic = &self.options.announcements;
        match (described, self.topic_id) {
            (Some(info), None) => Ok(info),
            (Some(info), Some(was)) if info.id == was => Ok(info),
            (None, None) => Err(Error::NoTopic(topic.clone())),
            (now, Some(was)) => {
                let _ = self.out.blocking_send(Seen::Gone);
                Err(Error::Recreated { topic: topic.clone(), was, now: now.map(|info| info.id) })
            }
        }
    }

    fn keep_polling(
        &mut self,
        poller: &mut Poller,
        mut look: Look,
        succession: &mut Succession,
        (topic_id, mut next): (TopicId, i64),
        stop: &CancellationToken,
    ) -> Result<Stopped, Error> {
        let kafka = |source| Error::Kafka { topic: self.options.announcements.clone(), source };
        // Grows while idle, as a gauge of how rarely the broker is asked; an arrival wakes the poll whatever it is.
        let mut wait = self.options.poll_interval;
        while !stop.is_cancelled() {
            self.options.metrics.backoff_seconds.set(wait.as_secs_f64());
            if let Some(described) = look.answer(&self.clock) {
                self.same_topic(described)?;
            }
            match poller.poll(wait.min(SLICE)) {
                Some(Polled::Record { message, .. }) if message.offset() >= next => {
                    next = message.offset() + 1;
                    wait = self.options.poll_interval;
                    let value = message.value().map(<[u8]>::to_vec);
                    match self.judge(succession, topic_id, message.offset(), value)? {
                        Judged::Valid(seen) => {
                            if self.out.blocking_send(seen).is_err() {
                                return Ok(Stopped);
                            }
                        }
                        // A zombie's last words, or a topic that was made anew, in which epochs begin at 1 again.
                        Judged::Superseded => look.soon(&self.clock),
                        Judged::Other => {}
                    }
                }
                Some(Polled::Record { .. }) => {}
                Some(Polled::End { .. }) | None => wait = (wait * 2).min(self.options.max_backoff),
                Some(Polled::Lost { detail, .. }) => {
                    let doing = format!("reading {} at offset {next}", self.options.announcements);
                    return Err(kafka(kafka::Error::Unavailable { doing, detail }));
                }
                // Nothing tells that Kafka is back but an answer: describing the topic anew asks for one.
                Some(Polled::Error(error)) => return Err(kafka(error)),
            }
        }
        Ok(Stopped)
    }

    fn judge(
        &self,
        succession: &mut Succession,
        topic_id: TopicId,
        offset: i64,
        value: Option<Vec<u8>>,
    ) -> Result<Judged, Error> {
        let encoded = value.unwrap_or_default();
        let message = match Message::decode(&encoded) {
            Ok(message) => message,
            Err(error @ format::Error::UnknownSchema(_)) => {
                self.options.metrics.errors_total.with(&["tail"]).inc();
                let text =
                    format!("the record at offset {offset} of {} is {error}", self.options.announcements);
                tracing::error!(
                    dataset = self.options.dataset,
                    "{text}; the last version that can be read stays"
                );
                self.status.send_modify(|status| status.newer = Some(text));
                return Ok(Judged::Other);
            }
            Err(error) => {
                self.options.metrics.errors_total.with(&["tail"]).inc();
                tracing::error!(
                    topic = self.options.announcements, offset, %error,
                    "this record is not one of ours; it is passed over. Nobody but Stillwell may write here"
                );
                return Ok(Judged::Other);
            }
        };
        if message.dataset() != self.options.dataset {
            return Err(Error::Stranger {
                topic: self.options.announcements.clone(),
                found: message.dataset().to_owned(),
                dataset: self.options.dataset.clone(),
            });
        }
        match message {
            Message::Epoch(record) => Ok(match succession.epoch(record.life) {
                Verdict::Valid | Verdict::Repeated => Judged::Other,
                Verdict::Superseded => Judged::Superseded,
            }),
            Message::Announcement(announcement) => {
                let verdict = succession.announcement(announcement.life, announcement.version);
                if verdict == Verdict::Valid {
                    self.status.send_if_modified(|status| status.newer.take().is_some());
                    let announced = Announced { topic_id, announcement, encoded };
                    return Ok(Judged::Valid(Seen::Announced(Arc::new(announced))));
                }
                tracing::warn!(
                    offset, version = %announcement.version, life = %announcement.life, ?verdict,
                    "an announcement does not count"
                );
                Ok(Judged::Superseded)
            }
        }
    }
}

/// What a record of the topic is.
enum Judged {
    /// To be handed on.
    Valid(Seen),
    /// Of a life that is over, or announced before.
    Superseded,
    /// An epoch record, or none of ours.
    Other,
}

impl Judged {
    fn seen(self) -> Option<Seen> {
        match self {
            Judged::Valid(seen) => Some(seen),
            Judged::Superseded | Judged::Other => None,
        }
    }
}

/// Asks now and then what the topic is, beside the polling.
pub(super) struct Look {
    admin: Admin,
    topic: String,
    every: Duration,
    at: Instant,
    asked: JoinSet<Result<Option<TopicInfo>, kafka::Error>>,
}

impl Look {
    pub(super) fn new(admin: Admin, topic: &str, every: Duration, clock: &Clock) -> Look {
        let at = clock.now() + every;
        Look { admin, topic: topic.to_owned(), every, at, asked: JoinSet::new() }
    }

    /// Asks within a second.
    fn soon(&mut self, clock: &Clock) {
        self.at = self.at.min(clock.now() + LOOK_SOON);
    }

    /// An answer, if one has come; asks if it is time.
    pub(super) fn answer(&mut self, clock: &Clock) -> Option<Option<TopicInfo>> {
        if self.asked.is_empty() && clock.now() >= self.at {
            let (admin, topic) = (self.admin.clone(), self.topic.clone());
            self.asked.spawn_on(async move { admin.describe(&topic).await }, &Handle::current());
        }
        let answer = self.asked.try_join_next()?;
        self.at = clock.now() + self.every;
        match answer {
            Ok(Ok(described)) => Some(described),
            // That Kafka is away is told by the polling; this is asked again.
            Ok(Err(error)) => {
                tracing::debug!(topic = self.topic, %error, "the announcement topic cannot be described");
                None
            }
            Err(_) => None,
        }
    }
}

/// A status before anything was tried.
pub fn unknown() -> TailStatus {
    TailStatus { reachable: None, answered: false, ..good() }
}

/// The status of one that reads what there is.
pub fn good() -> TailStatus {
    TailStatus { reachable: Some(true), circuit: Circuit::Closed, error: None, answered: true, newer: None }
}

#[cfg(test)]
mod tests {
    use super::super::follow::tests::World;
    use super::*;
    use crate::kafka::{Cluster, Outgoing, Sender};

    /// Longest that all of it may take.
    const LONG: Duration = Duration::from_secs(300);
    /// Failures that are counted.
    const FAILURES: u64 = 60;

    /// Threads of Kafka's clients in this process, and descriptors that it has open. Other tests have some, too.
    fn held() -> (usize, usize) {
        let entries = |folder: &str| std::fs::read_dir(folder).expect("Linux has it").flatten();
        let is_kafkas = |task: &std::fs::DirEntry| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("rdk:"))
        };
        (entries("/proc/self/task").filter(is_kafkas).count(), entries("/proc/self/fd").count())
    }

    /// Each attempt makes clients anew. Here all of them connect, read, and find somebody else's announcement.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_tail_that_fails_again_and_again_leaves_no_client_behind() {
        let cluster = Cluster::start(1).unwrap();
        let topic = "announcements";
        cluster.create_topic(topic, 1).unwrap();
        let mut world = World::new();
        let theirs = world.write(0..1).await;
        let record =
            Outgoing { topic, partition: Some(0), value: Some(&theirs.encoded), ..Outgoing::default() };
        Sender::new(&cluster.options("somebody")).unwrap().send(&record).await.unwrap();

        let options = Options {
            dataset: "orders".into(),
            kafka: cluster.options("tail"),
            announcements: topic.into(),
            max_backoff: Duration::from_millis(1),
            ..world.options()
        };
        let metrics = options.metrics.clone();
        let (status_in, mut status) = watch::channel(unknown());
        let (out, _seen) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let tail = Tail::new(options, Shard(0), out, status_in);
        let running = tokio::task::spawn_blocking({
            let stop = stop.clone();
            move || tail.run(&stop)
        });
        let mut after = async |failures: u64| {
            // Each failure is told.
            let failed = status.wait_for(|_| metrics.errors_total.with(&[UNREACHABLE]).get() >= failures);
            let failed = tokio::time::timeout(LONG, failed).await.map(|failed| failed.unwrap().error.clone());
            let why = failed.unwrap_or_else(|_| panic!("not {failures} failures in {LONG:?}"));
            assert!(why.as_ref().is_some_and(|why| why.contains("that of dataset \"products\"")), "{why:?}");
            held()
        };
        let (threads, descriptors) = after(5).await;
        let (threads_then, descriptors_then) = after(5 + FAILURES).await;
        stop.cancel();
        running.await.unwrap();
        // A client has three threads and five descriptors at the least.
        assert!(
            threads_then < threads + 100,
            "{threads} threads of clients, {threads_then} after {FAILURES} failures"
        );
        assert!(
            descriptors_then < descriptors + 200,
            "{descriptors} descriptors, {descriptors_then} after {FAILURES} failures"
        );
    }
}
