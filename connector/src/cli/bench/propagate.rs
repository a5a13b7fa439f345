//! `bench propagate`: how long a record takes from being sent to being readable, at 1,000 records a second, with the
//! low-latency profile; and what each stage takes of that, of the oldest record in each version.
//!
//! Ours and two baselines take turns on one broker: a bare transaction of the same records, and a bare copy, which reads
//! them from a topic first: whatever publishes records of Kafka by transactions has that in front of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::made::{json, key};
use super::profiled::configured;
use super::topic::{Filled, failed};
use super::{Measured, Scratch, Settings, measured, ms, quantile};
use crate::clock::Clock;
use crate::consumer::Consumer;
use crate::kafka::{self, Outcome, Outgoing, Polled, Poller, Sender, Transaction, Tuning};
use crate::producer::Producer;
use crate::producer::lap::STAGES;
use crate::telemetry::{ConsumerMetrics, ProducerMetrics};
use crate::{Error, ErrorKind, Result};

const A_SECOND: u64 = 1_000;
/// Records that are due at once, of a bare transaction: what comes in ten milliseconds, about the time that one takes.
const TOGETHER: u64 = 10;
/// One turn of each.
const TURN: Duration = Duration::from_secs(4);
/// Turns of each that count, after as many that do not: a broker compiles what it runs often while it runs, for half a
/// minute at this load, and whoever came first would pay for all.
const TURNS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn run(settings: &Settings) -> Result<Vec<Measured>> {
    let clock = Clock::system();
    let mut topic = Filled::new(settings, 0).await?;
    let dataset = topic.name.clone();
    for suffix in ["announcements", "control", "dlq"] {
        topic.and(format!("{dataset}.{suffix}"));
    }
    let ((bare, _), (from, _), (to, _)) =
        (topic.make("bare").await?, topic.make("from").await?, topic.make("to").await?);
    let mut ours = Ours::start(&topic, settings, &clock).await?;
    let mut bare = Bare::start(&topic.kafka, bare, settings, &clock)?;
    let mut copy = Copy::start(&topic.kafka, from, to, settings, &clock)?;
    let (mut together, mut spread, mut transacted, mut copied) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut taken = Taken::none();
    for turn in 0..2 * TURNS {
        if turn == TURNS {
            for times in [&mut together, &mut spread, &mut transacted, &mut copied] {
                times.clear();
            }
            taken = Taken::none();
        }
        let before = ours.taken();
        together.extend(ours.turn(TOGETHER).await?);
        taken.add(&ours.taken(), &before);
        spread.extend(ours.turn(1).await?);
        (bare, copy) = {
            let turns = tokio::task::spawn_blocking(move || {
                let (transacted, copied) = (bare.turn()?, copy.turn()?);
                Ok::<_, Error>((bare, copy, transacted, copied))
            });
            let turned = turns.await;
            let (bare, copy, of_bare, of_copy) = turned
                .map_err(|error| Error::because(ErrorKind::Internal, "a baseline panicked", error))??;
            transacted.extend(of_bare);
            copied.extend(of_copy);
            (bare, copy)
        };
    }
    ours.end().await?;
    drop((bare, copy));
    topic.delete().await;

    let mean = together.iter().sum::<f64>() / together.len().max(1) as f64;
    let mut lines = Vec::new();
    for (what, ours) in [("", &mut together), ("spread_", &mut spread)] {
        for (metric, share) in [("p50_ms", 0.5), ("p99_ms", 0.99)] {
            let took = (quantile(ours, share), "ms");
            let bare = ("a bare transaction, begun to seen, ms", quantile(&mut transacted, share));
            lines.push(measured("propagate", &format!("{what}{metric}"), took, bare));
        }
    }
    for (metric, share) in [("p50_ms_to_copy", 0.5), ("p99_ms_to_copy", 0.99)] {
        let copy = ("read and written by a bare transaction, sent to seen, ms", quantile(&mut copied, share));
        lines.push(measured("propagate", metric, (quantile(&mut together, share), "ms"), copy));
    }
    lines.extend(taken.0.iter().map(|(stage, seconds, versions)| {
        let took = seconds * 1e3 / (*versions).max(1) as f64;
        measured("propagate", &format!("{stage}_ms"), (took, "ms"), ("all of the way, mean, ms", mean))
    }));
    Ok(lines)
}

/// What each stage has taken, in seconds, of how many versions; last the reader, from announced to readable.
struct Taken(Vec<(&'static str, f64, u64)>);

impl Taken {
    fn none() -> Taken {
        Taken(STAGES.iter().copied().chain(["reader"]).map(|stage| (stage, 0.0, 0)).collect())
    }

    /// What came between.
    fn add(&mut self, after: &Taken, before: &Taken) {
        for (sum, (after, before)) in self.0.iter_mut().zip(after.0.iter().zip(&before.0)) {
            sum.1 += after.1 - before.1;
            sum.2 += after.2 - before.2;
        }
    }
}

/// When the next records are due.
struct Due {
    start: Instant,
    together: u64,
}

impl Due {
    /// Of the record with this number in its turn.
    fn of(&self, number: u64) -> Instant {
        self.start + Duration::from_secs(1) * (number - number % self.together) as u32 / A_SECOND as u32
    }
}

/// A producer and a consumer of one dataset, and who sends to its source.
struct Ours {
    topic: String,
    producer: Producer,
    consumer: Consumer,
    sender: Sender,
    metrics: (Arc<ProducerMetrics>, Arc<ConsumerMetrics>),
    records: Records,
    _scratch: Scratch,
}

/// What is sent, and how much of it was.
struct Records {
    value_bytes: u64,
    sent: u64,
    clock: Clock,
}

impl Records {
    fn new(settings: &Settings, clock: &Clock) -> Records {
        Records { value_bytes: settings.value_bytes, sent: 0, clock: clock.clone() }
    }

    /// The first of a turn, and how many it has.
    fn turn(&mut self) -> (u64, u64) {
        let (first, count) = (self.sent, TURN.as_secs() * A_SECOND);
        self.sent += count;
        (first, count)
    }

    /// Sends those of a turn to `topic` when they are due, and tells when each was.
    async fn send(
        &self,
        sender: &Sender,
        topic: &str,
        (first, count): (u64, u64),
        together: u64,
        told: UnboundedSender<Instant>,
    ) -> Result<()> {
        let due = Due { start: self.clock.now(), together };
        let mut last = None;
        for number in 0..count {
            tokio::time::sleep_until(due.of(number).into()).await;
            let (key, value) = (key(first + number), json(first + number, self.value_bytes));
            let record = Outgoing {
                topic,
                key: Some(key.as_bytes()),
                value: Some(value.as_bytes()),
                ..Outgoing::default()
            };
            let _ = told.send(self.clock.now());
            last = Some(sender.enqueue(&record).await.map_err(failed)?);
        }
        match last {
            Some(last) => last.await.map(|_| ()).map_err(failed),
            None => Ok(()),
        }
    }
}

/// A sender to a source. What is measured begins where the record is sent, and not where its client has waited for others, as
/// the baseline's does not either; half a millisecond, since a request for each record would take more of the machine than
/// it saves.
fn sender(kafka: &kafka::Options) -> Result<Sender> {
    let mut sending = kafka.clone();
    sending.properties.insert("linger.ms".into(), "0.5".into());
    Sender::new(&sending).map_err(failed)
}

impl Ours {
    async fn start(topic: &Filled, settings: &Settings, clock: &Clock) -> Result<Ours> {
        let scratch = Scratch::new("propagate")?;
        let (writes, reads) = configured("low-latency", topic, &topic.name, &scratch)?;
        let metrics = (writes.metrics.clone(), reads.metrics.clone());
        let producer = Producer::start(writes).await?;
        let consumer = Consumer::spawn(reads)?;
        consumer.ready().await?;
        let (topic, sender) = (topic.name.clone(), sender(&topic.kafka)?);
        let records = Records::new(settings, clock);
        Ok(Ours { topic, producer, consumer, sender, metrics, records, _scratch: scratch })
    }

    fn taken(&self) -> Taken {
        let (writes, reads) = &self.metrics;
        let writer = STAGES.iter().map(|stage| (*stage, writes.publish_stage_seconds.with(&[stage])));
        let all = writer.chain([("reader", reads.processing_latency_seconds.clone())]);
        Taken(all.map(|(stage, of)| (stage, of.get_sample_sum(), of.get_sample_count())).collect())
    }

    /// Milliseconds that each record of a turn took from being sent to being readable.
    async fn turn(&mut self, together: u64) -> Result<Vec<f64>> {
        let turn = self.records.turn();
        let (told, sent) = unbounded_channel();
        let send = self.records.send(&self.sender, &self.topic, turn, together, told);
        let ((), times) = tokio::try_join!(send, self.watch(turn, sent))?;
        Ok(times)
    }

    async fn watch(
        &self,
        (first, count): (u64, u64),
        mut sent: UnboundedReceiver<Instant>,
    ) -> Result<Vec<f64>> {
        let mut readable = self.consumer.watch();
        let mut times = Vec::new();
        let mut waiting = sent.recv().await;
        while let Some(at) = waiting {
            let view = self.consumer.view();
            if view.get(key(first + times.len() as u64))?.is_some() {
                times.push(ms(self.records.clock.now() - at));
                waiting = if times.len() as u64 == count { None } else { sent.recv().await };
                continue;
            }
            let changed = tokio::time::timeout(PATIENCE, readable.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                let doing = format!("record {} was not readable within {PATIENCE:?}", times.len());
                return Err(Error::new(ErrorKind::Unavailable, doing));
            }
        }
        Ok(times)
    }

    async fn end(self) -> Result<()> {
        self.producer.shutdown().await?;
        self.consumer.shutdown().await?;
        Ok(())
    }
}

/// Reads what is committed to `topic`.
fn reader(kafka: &kafka::Options, topic: &str) -> Result<Poller> {
    let tuning = Tuning::tail("stillwell.bench", Duration::from_millis(500));
    let mut poller = Poller::new(kafka, &tuning).map_err(failed)?;
    poller.assign(&[(topic, 0, 0)]).map_err(failed)?;
    Ok(poller)
}

/// A transactional client of the bench's. Blocks.
fn transactional(kafka: &kafka::Options, topic: &str, clock: &Clock) -> Result<Transaction> {
    let transaction =
        Transaction::new(kafka, &format!("{topic}/transaction"), clock.clone()).map_err(failed)?;
    transaction.init(PATIENCE).map_err(failed)?;
    Ok(transaction)
}

fn commit(transaction: &mut Transaction) -> Result<()> {
    match transaction.commit(PATIENCE) {
        Outcome::Committed => Ok(()),
        Outcome::Aborted(error)
        | Outcome::Unknown(error)
        | Outcome::Fenced(error)
        | Outcome::Fatal(error) => Err(failed(error)),
    }
}

/// Milliseconds from what is told of each record to its being seen. Blocks.
fn seen(
    reader: &mut Poller,
    count: u64,
    clock: &Clock,
    mut told: impl FnMut() -> Option<Instant>,
) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    let mut last = clock.now();
    while (times.len() as u64) < count {
        match reader.poll(PATIENCE) {
            Some(Polled::Record { .. }) => {
                let Some(at) = told() else { break };
                last = clock.now();
                times.push(ms(last - at));
            }
            _ if clock.now() - last > PATIENCE => {
                let doing = format!("record {} was not seen within {PATIENCE:?}", times.len());
                return Err(Error::new(ErrorKind::Unavailable, doing));
            }
            _ => {}
        }
    }
    Ok(times)
}

fn panicked<T>(_: T) -> Error {
    Error::new(ErrorKind::Internal, "a reader of the bench's panicked")
}

/// The same records by bare transactions, begun to seen by a read_committed reader.
struct Bare {
    topic: String,
    transaction: Transaction,
    reader: Poller,
    records: Records,
}

impl Bare {
    fn start(kafka: &kafka::Options, topic: String, settings: &Settings, clock: &Clock) -> Result<Bare> {
        let transaction = transactional(kafka, &topic, clock)?;
        let reader = reader(kafka, &topic)?;
        Ok(Bare { topic, transaction, reader, records: Records::new(settings, clock) })
    }

    /// Blocks.
    fn turn(&mut self) -> Result<Vec<f64>> {
        let (first, count) = self.records.turn();
        let (told, begun) = std::sync::mpsc::channel::<Instant>();
        let Bare { topic, transaction, reader, records } = self;
        let clock = &records.clock;
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || seen(reader, count, clock, || begun.recv().ok()));
            let due = Due { start: clock.now(), together: TOGETHER };
            for round in 0..count / TOGETHER {
                std::thread::park_timeout(due.of(round * TOGETHER).saturating_duration_since(clock.now()));
                let at = clock.now();
                transaction.begin().map_err(failed)?;
                for number in first + round * TOGETHER..first + (round + 1) * TOGETHER {
                    let (key, value) = (key(number), json(number, records.value_bytes));
                    let record = Outgoing {
                        topic,
                        key: Some(key.as_bytes()),
                        value: Some(value.as_bytes()),
                        ..Outgoing::default()
                    };
                    let _ = told.send(at);
                    transaction.send(&record, PATIENCE).map_err(failed)?;
                }
                commit(transaction)?;
            }
            drop(told);
            reader.join().map_err(panicked)?
        })
    }
}

/// The same records read from one topic and written to another by bare transactions, without the offsets of what was read:
/// sent to seen by a read_committed reader.
struct Copy {
    from: String,
    to: String,
    sender: Sender,
    source: Poller,
    transaction: Transaction,
    reader: Poller,
    records: Records,
}

impl Copy {
    fn start(
        kafka: &kafka::Options,
        from: String,
        to: String,
        settings: &Settings,
        clock: &Clock,
    ) -> Result<Copy> {
        let (source, reader) = (reader(kafka, &from)?, reader(kafka, &to)?);
        let (transaction, sender) = (transactional(kafka, &to, clock)?, sender(kafka)?);
        let records = Records::new(settings, clock);
        Ok(Copy { from, to, sender, source, transaction, reader, records })
    }

    /// Blocks; within a runtime.
    fn turn(&mut self) -> Result<Vec<f64>> {
        let turn = self.records.turn();
        let (told, mut sent) = unbounded_channel();
        let Copy { from, to, sender, source, transaction, reader, records } = self;
        let (runtime, records) = (Handle::current(), &*records);
        let (_, count) = turn;
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || seen(reader, count, &records.clock, || sent.blocking_recv()));
            let mover = scope.spawn(move || moved(source, transaction, to, count));
            runtime.block_on(records.send(sender, from, turn, TOGETHER, told))?;
            mover.join().map_err(panicked)??;
            reader.join().map_err(panicked)?
        })
    }
}

/// Moves so many records. All that has come is in the next transaction. Blocks.
fn moved(source: &mut Poller, transaction: &mut Transaction, to: &str, count: u64) -> Result<()> {
    let mut moved = 0;
    while moved < count {
        let (mut open, mut wait) = (false, PATIENCE);
        while let Some(polled) = source.poll(wait) {
            match polled {
                Polled::Record { message, .. } => {
                    if !open {
                        transaction.begin().map_err(failed)?;
                    }
                    (open, wait) = (true, Duration::ZERO);
                    let record = Outgoing {
                        topic: to,
                        key: message.key(),
                        value: message.value(),
                        ..Outgoing::default()
                    };
                    transaction.send(&record, PATIENCE).map_err(failed)?;
                    moved += 1;
                }
                Polled::Error(error) if !error.is_transient() => return Err(failed(error)),
                _ if open => break,
                _ => {}
            }
        }
        if !open {
            let doing = format!("record {moved} did not come within {PATIENCE:?}");
            return Err(Error::new(ErrorKind::Unavailable, doing));
        }
        commit(transaction)?;
    }
    Ok(())
}
