//! A topic full of records on the broker that was given, deleted at the end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::made::{json, key};
use super::{Measured, Settings, measured, quantile};
use crate::clock::{Clock, Entropy};
use crate::format::announcement;
use crate::kafka::{
    self, Admin, Outcome, Outgoing, Polled, Poller, Receipt, Sender, TopicSpec, Transaction, Tuning,
};
use crate::record::{Position, SourcePartition, TopicId};
use crate::version::Shard;
use crate::{Error, ErrorKind, Result};

/// Records under way to the broker at a time.
const IN_LINE: usize = 50_000;
const DEADLINE: Duration = Duration::from_secs(600);
/// Longest that a step of a transaction may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How records are consumed where nothing is done with them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bare {
    /// One call of `rd_kafka_consumer_poll` a record, as librdkafka's users read.
    Poll,
    /// In batches, as our source reads: nothing in front of it can be faster.
    Batches,
}

/// Ours against both ways of bare consumption, in records a second.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) ours: Vec<f64>,
    pub(super) poll: Vec<f64>,
    pub(super) batches: Vec<f64>,
}

impl Compared {
    pub(super) fn lines(mut self, bench: &'static str) -> Vec<Measured> {
        let ours = (quantile(&mut self.ours, 0.5), "records/s");
        let poll = ("bare consumption by rd_kafka_consumer_poll", quantile(&mut self.poll, 0.5));
        let batches = ("bare consumption in batches, as ours reads", quantile(&mut self.batches, 0.5));
        vec![
            measured(bench, "records_per_second", ours, poll),
            measured(bench, "records_per_second_to_batches", ours, batches),
        ]
    }
}

/// The bench's topic.
pub(super) struct Filled {
    pub(super) name: String,
    pub(super) kafka: kafka::Options,
    admin: Admin,
    /// What else was made on the broker.
    others: Vec<String>,
}

pub(super) fn failed(error: kafka::Error) -> Error {
    Error::because(error.kind(), "benching with Kafka", error)
}

/// Records on their way, at most [`IN_LINE`] at a time, of which each is waited for.
pub(super) struct Line {
    sender: Sender,
    under_way: VecDeque<Receipt>,
}

impl Line {
    /// Puts one in line, and waits for the first where the line is full.
    pub(super) async fn send(&mut self, record: &Outgoing<'_>) -> Result<()> {
        let sent = self.sender.put_in_line(record, None).await.map_err(failed)?;
        self.under_way.push_back(sent);
        if self.under_way.len() >= IN_LINE
            && let Some(first) = self.under_way.pop_front()
        {
            first.delivered().await.map_err(failed)?;
        }
        Ok(())
    }

    /// Waits for all that are left.
    pub(super) async fn end(self) -> Result<()> {
        for sent in self.under_way {
            sent.delivered().await.map_err(failed)?;
        }
        Ok(())
    }
}

impl Filled {
    /// A topic with one partition that holds `records` records: one partition is what one shard reads at its fastest.
    pub(super) async fn new(settings: &Settings, records: u64) -> Result<Filled> {
        Filled::with(settings, records, |_| false).await
    }

    /// The same, with one record in a hundred that is no JSON.
    pub(super) async fn poisoned(settings: &Settings, records: u64) -> Result<Filled> {
        Filled::with(settings, records, |number| number % 100 == 50).await
    }

    async fn with(settings: &Settings, records: u64, poison: impl Fn(u64) -> bool) -> Result<Filled> {
        let filled = Filled::there(settings, format!("stillwell-bench-{}", Entropy::system().uuid()))?;
        let name = filled.name.clone();
        let spec = TopicSpec { name, partitions: 1, replication: None, config: Default::default() };
        filled.admin.create(&spec).await.map_err(failed)?;
        filled.fill(settings, records, poison).await?;
        Ok(filled)
    }

    /// A topic that another process of the bench has made.
    pub(super) fn there(settings: &Settings, name: String) -> Result<Filled> {
        let kafka = kafka::Options {
            bootstrap_servers: settings.bootstrap()?.to_owned(),
            client_id: "stillwell-bench".into(),
            ..Default::default()
        };
        let admin = Admin::new(&kafka).map_err(failed)?;
        Ok(Filled { name, kafka, admin, others: Vec::new() })
    }

    async fn fill(&self, settings: &Settings, records: u64, poison: impl Fn(u64) -> bool) -> Result<()> {
        let mut line = self.line()?;
        for number in 0..records {
            let (key, mut value) = (key(number), json(number, settings.value_bytes));
            if poison(number) {
                value.replace_range(..1, "[");
            }
            let record = Outgoing {
                topic: &self.name,
                key: Some(key.as_bytes()),
                value: Some(value.as_bytes()),
                ..Outgoing::default()
            };
            line.send(&record).await?;
        }
        line.end().await
    }

    /// A line of records to the topic's broker.
    pub(super) fn line(&self) -> Result<Line> {
        Ok(Line { sender: Sender::new(&self.kafka).map_err(failed)?, under_way: VecDeque::new() })
    }

    /// The beginning of its only partition.
    pub(super) async fn start(&self) -> Result<Position> {
        let info = self.admin.describe(&self.name).await.map_err(failed)?;
        let id = info.map(|info| info.id).unwrap_or_default();
        let source = SourcePartition { topic: self.name.as_str().into(), topic_id: id, partition: 0 };
        Ok(Position { source, offset: 0 })
    }

    /// Makes another topic of one partition, `NAME.SUFFIX`, deleted at the end too; gives its name and id.
    pub(super) async fn make(&mut self, suffix: &str) -> Result<(String, TopicId)> {
        let name = format!("{}.{suffix}", self.name);
        let spec =
            TopicSpec { name: name.clone(), partitions: 1, replication: None, config: Default::default() };
        self.admin.create(&spec).await.map_err(failed)?;
        self.and(name.clone());
        // The broker that is asked may hear of it a moment later.
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            match self.admin.describe(&name).await.map_err(failed)? {
                Some(info) => return Ok((name, info.id)),
                None if tokio::time::Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                None => {
                    let doing = format!("topic {name} was made, and is not there after {PATIENCE:?}");
                    return Err(Error::new(ErrorKind::Unavailable, doing));
                }
            }
        }
    }

    /// Also deletes `topic` at the end.
    pub(super) fn and(&mut self, topic: String) {
        self.others.push(topic);
    }

    /// Seconds that bare consumption of all records takes, from the first record on. Blocks.
    pub(super) fn consume(&self, how: Bare, records: u64, clock: &Clock) -> Result<f64> {
        let tuning = Tuning::source("stillwell.bench", 64 << 20);
        let mut poller = Poller::new(&self.kafka, &tuning).map_err(failed)?;
        poller.assign(&[(&self.name, 0, 0)]).map_err(failed)?;
        let deadline = clock.now() + DEADLINE;
        let (mut first, mut seen, mut bytes) = (None, 0, 0usize);
        while seen < records {
            let wait = Duration::from_millis(100);
            let polled = match how {
                Bare::Poll => poller.poll_one(wait),
                Bare::Batches => poller.poll(wait),
            };
            match polled {
                Some(Polled::Record { message, .. }) => {
                    first.get_or_insert_with(|| clock.now());
                    seen += 1;
                    bytes += message.value().map_or(0, <[u8]>::len);
                }
                Some(Polled::Error(error)) if !error.is_transient() => return Err(failed(error)),
                _ if clock.now() > deadline => {
                    let doing = format!("only {seen} of {records} records came within {DEADLINE:?}");
                    return Err(Error::new(ErrorKind::Unavailable, doing));
                }
                _ => {}
            }
        }
        std::hint::black_box(bytes);
        Ok(first.map_or(0.0, |first| (clock.now() - first).as_secs_f64()))
    }

    /// As [`Filled::consume`], in records a second, from an async task.
    pub(super) async fn bare(self: &Arc<Self>, how: Bare, records: u64, clock: &Clock) -> Result<f64> {
        let (filled, timer) = (self.clone(), clock.clone());
        let seconds = tokio::task::spawn_blocking(move || filled.consume(how, records, &timer))
            .await
            .map_err(|error| Error::because(ErrorKind::Internal, "bare consumption panicked", error))??;
        Ok(records as f64 / seconds)
    }

    /// Deletes what was made.
    pub(super) async fn delete(self) {
        for topic in self.others.iter().chain([&self.name]) {
            if let Err(error) = self.admin.delete(topic).await {
                tracing::warn!(topic, %error, "the bench's topic is left behind");
            }
        }
    }
}

/// Announces versions of the dataset that has the topic's name, each in a transaction, as its producer does.
pub(super) struct Announcer {
    transaction: Transaction,
    announcements: String,
    key: String,
    clock: Clock,
}

impl Announcer {
    /// Into the topic `announcements`. Blocks.
    pub(super) fn new(topic: &Filled, announcements: String, clock: &Clock) -> Result<Announcer> {
        let id = format!("{}/announcer", topic.name);
        let transaction = Transaction::new(&topic.kafka, &id, clock.clone()).map_err(failed)?;
        transaction.init(PATIENCE).map_err(failed)?;
        let key = announcement::key(&topic.name, Shard(0));
        Ok(Announcer { transaction, announcements, key, clock: clock.clone() })
    }

    /// When the transaction was committed. Blocks.
    pub(super) fn announce(&mut self, encoded: &[u8]) -> Result<Instant> {
        self.transaction.begin().map_err(failed)?;
        let record = Outgoing {
            topic: &self.announcements,
            key: Some(self.key.as_bytes()),
            value: Some(encoded),
            ..Outgoing::default()
        };
        self.transaction.send(&record, PATIENCE).map_err(failed)?;
        match self.transaction.commit(PATIENCE) {
            Outcome::Committed => Ok(self.clock.now()),
            Outcome::Aborted(error)
            | Outcome::Unknown(error)
            | Outcome::Fenced(error)
            | Outcome::Fatal(error) => Err(failed(error)),
        }
    }
}
