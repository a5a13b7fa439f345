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
//! What comes is taken on the thread that goes on with it (`mod`): to wake another takes milliseconds where all processors are busy.
//! Finding the end, which blocks, is done on another.
//!
//! Owns: the position in the announcement topic, the succession of lives. Does not own: blobs and views (`follow`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet, spawn_blocking};
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
use crate::threads;
use crate::version::Shard;

/// Errors in a row that open the breaker. It stays open for the longest backoff: a longer time would keep readers from
/// versions that are there, and what is spared is one request.
const BREAKER: u32 = 10;
/// How long reading back may take before it counts as an error.
const READ_BACK: Duration = Duration::from_secs(30);
/// How often log lines, statistics and what is wrong with the client are looked after while nothing comes.
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

/// The stage.
#[derive(Clone)]
pub struct Tail {
    options: Options,
    shard: Shard,
    out: mpsc::Sender<Seen>,
    status: watch::Sender<TailStatus>,
    clock: Clock,
    /// [`SLICE`], but where a test must see what ends a wait before it.
    slice: Duration,
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

/// The end of the topic was found.
struct Begun {
    admin: Admin,
    /// By which it was found, with fetches as short as can be: not the one that reads on.
    poller: Poller,
    topic_id: TopicId,
    /// The last valid announcement.
    last: Option<Seen>,
    succession: Succession,
    /// The next offset to read.
    next: i64,
}

impl Tail {
    /// A tail of one shard.
    pub fn new(
        options: Options,
        shard: Shard,
        out: mpsc::Sender<Seen>,
        status: watch::Sender<TailStatus>,
    ) -> Tail {
        let clock = options.clock.clone();
        Tail { options, shard, out, status, clock, slice: SLICE, topic_id: None }
    }

    /// Tails until `stop`. For a thread of its own ([`Handle::block_on`]): where it is dropped it ends a client, which blocks.
    pub async fn run(mut self, stop: &CancellationToken) {
        let mut backoff = Backoff::new(FIRST_BACKOFF, self.options.max_backoff);
        let mut breaker = Breaker::new(BREAKER, self.options.max_backoff);
        while !stop.is_cancelled() {
            if breaker.allows(self.clock.now()) {
                let error = match self.follow(stop, &mut backoff, &mut breaker).await {
                    Ok(Stopped) => return,
                    Err(_) if stop.is_cancelled() => return,
                    Err(error) => error,
                };
                if let Error::Recreated { .. } = &error {
                    // Nobody listens any more: the next thing that is handed on shows it.
                    let _ = self.out.send(Seen::Gone).await;
                }
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
            threads::until(stop, tokio::time::sleep(wait)).await;
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

    async fn follow(
        &mut self,
        stop: &CancellationToken,
        backoff: &mut Backoff,
        breaker: &mut Breaker,
    ) -> Result<Stopped, Error> {
        let (begin, until, first) = (self.clone(), stop.clone(), backoff.failures() == 0);
        let begun = spawn_blocking(move || begin.begin(first, &until)).await;
        let Some(begun) = ended(begun).transpose()?.flatten() else { return Ok(Stopped) };
        let Begun { admin, poller, topic_id, last, mut succession, next } = begun;
        // To end a client blocks, and nobody is to wait for it. It would go on fetching as often as it may, for as long as who follows
        // has no room.
        let dropped = spawn_blocking(move || drop(poller));
        self.topic_id = Some(topic_id);
        backoff.reset();
        breaker.succeeded();
        self.show(Circuit::Closed);
        self.status.send_modify(|status| *status = TailStatus { newer: status.newer.take(), ..good() });
        let mut gone = false;
        for seen in last.into_iter().chain([Seen::UpToDate]) {
            gone = gone || self.out.send(seen).await.is_err();
        }
        ended(dropped.await);
        if gone {
            return Ok(Stopped);
        }
        // From here on one long fetch after another, by a client made for it.
        let (options, partition) = (self.options.clone(), self.shard.0 as i32);
        let made = spawn_blocking(move || {
            let mut poller =
                Poller::new(&options.kafka, &Tuning::tail(&group(&options), options.max_backoff))?;
            poller.assign(&[(&options.announcements, partition, next)])?;
            Ok(poller)
        });
        let Some(made) = ended(made.await) else { return Ok(Stopped) };
        let mut poller = made.map_err(|source| self.kafka(source))?;
        let mut look = Look::new(admin, &self.options.announcements, self.options.look_every, &self.clock);
        let at = (topic_id, next);
        let outcome = self.keep_polling(&mut poller, &mut look, &mut succession, at, stop).await;
        // To end clients blocks.
        ended(spawn_blocking(move || drop((poller, look))).await);
        outcome
    }

    /// Finds the end of the topic, and what was announced last. `None`: told to stop. Blocks.
    fn begin(self, first: bool, stop: &CancellationToken) -> Result<Option<Begun>, Error> {
        let topic = &self.options.announcements;
        let partition = self.shard.0 as i32;
        let kafka = |source| self.kafka(source);
        let poller = || {
            let tuning = Tuning::tail(&group(&self.options), SHORT_FETCH);
            Poller::new(&self.options.kafka, &tuning).map_err(kafka)
        };
        // Made before anything is asked, it finds its broker meanwhile. Not for a topic that is not there yet, again and again.
        let early = if first { Some(poller()?) } else { None };
        let admin = Admin::new(&self.options.kafka).map_err(kafka)?;
        let described = Handle::current().block_on(threads::until(stop, async {
            (admin.describe(topic).await, admin.watermarks(topic, partition).await)
        }));
        let Some((described, ends)) = described else { return Ok(None) };
        let info = self.same_topic(described.map_err(kafka)?)?;
        let ends = match ends {
            // It is being made at this moment, and its partition not known everywhere.
            Err(kafka::Error::Missing { .. }) if self.topic_id.is_none() => {
                return Err(Error::NoTopic(topic.clone()));
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
        let window = kafka::read_back(&mut poller, topic, partition, ends, clock, deadline, stop, enough)
            .map_err(kafka)?;

        let mut succession = Succession::default();
        let mut last = None;
        for record in window.records {
            last = self.judge(&mut succession, info.id, record.offset, record.value)?.seen().or(last);
        }
        Ok(Some(Begun { admin, poller, topic_id: info.id, last, succession, next: window.next }))
    }

    fn kafka(&self, source: kafka::Error) -> Error {
        Error::Kafka { topic: self.options.announcements.clone(), source }
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
                Err(Error::Recreated { topic: topic.clone(), was, now: now.map(|info| info.id) })
            }
        }
    }

    async fn keep_polling(
        &self,
        poller: &mut Poller,
        look: &mut Look,
        succession: &mut Succession,
        (topic_id, mut next): (TopicId, i64),
        stop: &CancellationToken,
    ) -> Result<Stopped, Error> {
        let arrivals = poller.arrivals();
        // Grows while idle, as a gauge of how rarely the broker is asked; an arrival ends it whatever it is.
        let mut wait = self.options.poll_interval;
        // Once may be for what is passed over, with more behind it.
        let mut nothing = false;
        while !stop.is_cancelled() {
            self.options.metrics.backoff_seconds.set(wait.as_secs_f64());
            if let Some(described) = look.answer(&self.clock) {
                self.same_topic(described)?;
            }
            // Others of this thread have their turn also where one record after another comes.
            tokio::task::consume_budget().await;
            let longer = (wait * 2).min(self.options.max_backoff);
            let seen = match poller.poll(Duration::ZERO) {
                Some(Polled::Record { message, .. }) if message.offset() >= next => {
                    next = message.offset() + 1;
                    wait = self.options.poll_interval;
                    let value = message.value().map(<[u8]>::to_vec);
                    match self.judge(succession, topic_id, message.offset(), value)? {
                        Judged::Valid(seen) => Some(seen),
                        // A zombie's last words, or a topic that was made anew, in which epochs begin at 1 again.
                        Judged::Superseded => {
                            look.soon(&self.clock);
                            continue;
                        }
                        Judged::Other => continue,
                    }
                }
                Some(Polled::Record { .. }) => continue,
                Some(Polled::End { .. }) => {
                    wait = longer;
                    continue;
                }
                Some(Polled::Lost { detail, .. }) => {
                    let doing = format!("reading {} at offset {next}", self.options.announcements);
                    return Err(self.kafka(kafka::Error::Unavailable { doing, detail }));
                }
                // Nothing tells that Kafka is back but an answer: describing the topic anew asks for one.
                Some(Polled::Error(error)) => return Err(self.kafka(error)),
                None => None,
            };
            let Some(seen) = seen else {
                nothing = !nothing;
                if nothing {
                    continue;
                }
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    () = arrivals.notified() => {}
                    () = tokio::time::sleep(wait.min(self.slice)) => wait = longer,
                }
                continue;
            };
            nothing = false;
            if self.out.send(seen).await.is_err() {
                break;
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

fn group(options: &Options) -> String {
    format!("stillwell.{}", options.dataset)
}

/// What a thread for blocking work has done; `None`: the runtime ends. A panic there is one here.
fn ended<T>(done: Result<T, JoinError>) -> Option<T> {
    match done {
        Ok(done) => Some(done),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None,
        },
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
mod tests;
