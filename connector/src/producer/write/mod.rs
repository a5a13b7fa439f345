//! Writing a dataset from within a service: records go to the source topic like anybody's, and the writer is told in
//! which version they became readable.
//!
//! ```text
//!  write() -> encode -> source topic ... the line, here or in another instance ... announcement
//!               |            |                                                          |
//!               v            v offset                                                   v positions
//!            refused     Written  ------------------- watch ------------------->  Publication
//!          (never sent)                          ^            ^
//!                              this life's announcer        follow: the announcement topic, where another writes
//! ```
//!
//! The topic stays the only way in: what is written here is ordered with what others write there, is in the topic for
//! whoever else reads it, and is rebuilt with it.
//!
//! Owns: the plain sender to the source topics, what is under way in it, and who waits for a version. Does not own: the
//! line that makes the version (`life`), or asking for a write again: it says what is known, and the caller decides.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

mod encode;
pub mod follow;
mod publication;
mod record;
#[cfg(test)]
mod tests;
pub mod watch;

pub use encode::Refused;
pub use publication::{Landed, Publication, Written};
pub use record::{Ready, Write};

use super::{Options, Producer};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::gauge::Budget;
use crate::kafka::{self, Admin, Outgoing, Sender};
use crate::telemetry::ProducerMetrics;
use encode::Encoder;
use watch::{Ticket, Watchers};

/// Records that Kafka has not acknowledged yet, beyond which a write waits. Below librdkafka's own limit (100,000),
/// which is waited for by asking again and again.
const MOST_RECORDS: u64 = 50_000;
/// Their bytes; librdkafka takes 64 MiB.
const MOST_BYTES: u64 = 32 << 20;
/// How long Kafka may take to acknowledge a record, before its fate counts as unknown. librdkafka's five minutes are
/// too long for somebody who waits.
const DELIVERY_MS: &str = "30000";
/// A batch to a broker is accepted or refused as a whole: a small one takes few others down with it.
const BATCH_BYTES: usize = 256 << 10;
/// Largest record that the client takes (`message.max.bytes`).
const CLIENT_LIMIT: usize = 10 << 20;
/// What a record's batch adds to its key, value and headers, at most.
const FRAME: usize = 128;
/// A failure to connect that took this long is shared by those who waited, for as long.
const SHARED_FAILURE: Duration = Duration::from_secs(1);
/// Kafka's default of `max.message.bytes`.
const TOPIC_LIMIT: usize = 1_048_588;

/// Writes one dataset's records to its source topics. Cheap to clone.
///
/// Needs no shard and no log: any process that reaches Kafka can write so, beside the instance that makes the versions.
#[derive(Clone)]
pub struct Writer(Arc<Inner>);

struct Inner {
    dataset: String,
    kafka: kafka::Options,
    topics: Vec<Arc<str>>,
    encoder: Mutex<Encoder>,
    /// Made by the first write, and anew after a fatal error.
    line: ArcSwap<OnceCell<Line>>,
    /// When connecting failed last, and why, where it took long to fail.
    unreached: Mutex<Option<(Instant, ErrorKind, String)>>,
    records: Budget,
    bytes: Budget,
    watchers: Watchers,
    closed: CancellationToken,
    clock: Clock,
    metrics: Arc<ProducerMetrics>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("dataset", &self.0.dataset).finish_non_exhaustive()
    }
}

/// The connection to Kafka.
struct Line {
    sender: Sender,
    /// Largest record of each topic, in the order of [`Inner::topics`].
    limits: Vec<usize>,
}

impl Writer {
    /// A writer for the dataset of `options`; `watchers` are told of its announcements (see [`follow`]). Does not
    /// connect yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where format, key and schema do not go together.
    pub fn new(options: &Options, watchers: Watchers) -> Result<Writer> {
        let encoder = Encoder::new(&options.format, &options.key, &options.schema).map_err(|error| {
            let doing = format!("preparing to write dataset {}", options.dataset);
            Error::because(ErrorKind::Config, doing, error)
        })?;
        let encoder = encoder.bounded(options.bound);
        Ok(Writer(Arc::new(Inner {
            dataset: options.dataset.clone(),
            kafka: options.kafka.clone(),
            topics: options.topics.iter().map(|topic| Arc::from(topic.as_str())).collect(),
            encoder: Mutex::new(encoder),
            line: ArcSwap::default(),
            unreached: Mutex::new(None),
            records: Budget::new(MOST_RECORDS),
            bytes: Budget::new(MOST_BYTES),
            watchers,
            closed: CancellationToken::new(),
            clock: options.clock.clone(),
            metrics: options.metrics.clone(),
        })))
    }

    /// The same for records whose key is made of these fields of their value, though the dataset takes the Kafka key.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] where the schema has no such fields.
    pub fn keyed_by(&self, fields: &[String]) -> Result<()> {
        let doing = || format!("keying records of {} by {}", self.0.dataset, fields.join(", "));
        let keyed = self.encoder().key_by(fields);
        keyed.map_err(|error| Error::because(ErrorKind::Rejected, doing(), error))
    }

    /// Whether keys are made of the value's fields.
    pub fn makes_keys(&self) -> bool {
        self.encoder().makes_keys()
    }

    /// See [`Producer::write`].
    ///
    /// # Errors
    /// As there.
    pub async fn write(&self, records: impl IntoIterator<Item = Write>) -> Result<Written> {
        let mut ready = Vec::new();
        for (at, record) in records.into_iter().enumerate() {
            ready.push(self.prepare(record).map_err(|refused| self.refused(at, refused))?);
        }
        self.send(ready).await
    }

    /// Encodes one record for its topic and checks that the dataset will take it, as the source's validation would.
    ///
    /// # Errors
    /// [`Refused`]: it was not sent, and will not be taken however often it is.
    pub fn prepare(&self, record: Write) -> Result<Ready, Refused> {
        let prepared = self.encoder().prepare(record, &self.0.topics);
        let prepared = prepared.and_then(|ready| {
            // How large a record may be is known once connected; before, `send` says it.
            if let Some(line) = self.0.line.load().get() {
                self.fits(&ready, line)?;
            }
            Ok(ready)
        });
        if prepared.is_err() {
            self.0.metrics.written_records_total.with(&["rejected"]).inc();
        }
        prepared
    }

    /// Puts prepared records in line, waiting while too much is under way.
    ///
    /// # Errors
    /// As [`Producer::write`]; after an error nothing was put in line.
    pub async fn send(&self, records: Vec<Ready>) -> Result<Written> {
        let inner = &*self.0;
        // Held by this write: who makes a new one after a fatal error does not take it from those under way.
        let cell = inner.line.load_full();
        let line = self.unless_closed(cell.get_or_try_init(|| self.make_line())).await??;
        for (at, record) in records.iter().enumerate() {
            self.fits(record, line).map_err(|refused| self.refused(at, refused))?;
        }
        // From here on announcements are noted: one of them may come before the acknowledgement does.
        inner.watchers.begin();
        let mut written = Written::new(self.clone(), Arc::clone(&cell), inner.watchers.known());
        for record in records {
            let held = async {
                (inner.records.lease(1).await, inner.bytes.lease((record.bytes() + FRAME) as u64).await)
            };
            let topic = self.topic(record.topic);
            let receipt = match self.unless_closed(held).await {
                Ok(held) => {
                    let outgoing = Outgoing {
                        topic: &topic,
                        partition: None,
                        key: Some(&record.key),
                        value: record.value.as_deref(),
                        headers: &record.headers,
                        timestamp: record.timestamp,
                        ..Outgoing::default()
                    };
                    line.sender.put_in_line(&outgoing, Some(Box::new(held))).await
                }
                // Nothing is in line yet, and nobody has to be told of what was.
                Err(closed) if written.is_empty() => return Err(closed),
                Err(_) => Err(kafka::Error::Closed { doing: format!("writing to {topic}") }),
            };
            if let Err(kafka::Error::Fatal { .. }) = receipt {
                self.begin_anew(&cell);
            }
            written.add(topic, receipt);
        }
        Ok(written)
    }

    /// Takes no more writes; what is in line still goes, and who waits for a version waits no longer.
    pub(super) fn close(&self) {
        self.0.closed.cancel();
        self.0.watchers.close();
    }

    /// Takes no more writes, and waits until what is in line is acknowledged, or for as long as `patience`.
    pub(super) async fn flush(&self, patience: Duration) {
        self.0.closed.cancel();
        let cell = self.0.line.load_full();
        let Some(line) = cell.get() else { return };
        if let Err(error) = line.sender.flush(patience).await {
            tracing::warn!(
                dataset = self.0.dataset, %error,
                "records written here were not acknowledged before the end; they may be in the topic or not"
            );
        }
    }

    /// Connects to Kafka, as the first write does.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] while Kafka does not answer or the topic does not exist yet.
    pub async fn connect(&self) -> Result<()> {
        let cell = self.0.line.load_full();
        self.unless_closed(cell.get_or_try_init(|| self.make_line())).await?.map(|_| ())
    }

    fn fits(&self, record: &Ready, line: &Line) -> Result<(), Refused> {
        let limit = line.limits.get(record.topic).copied().unwrap_or(TOPIC_LIMIT);
        if record.bytes() + FRAME <= limit {
            return Ok(());
        }
        Err(Refused::TooLarge { bytes: record.bytes(), topic: self.topic(record.topic).to_string(), limit })
    }

    /// One at a time. Who waited meanwhile shares a failure that took long: one by one they would wait for hours.
    async fn make_line(&self) -> Result<Line> {
        let inner = &*self.0;
        let unreached = || inner.unreached.lock().unwrap_or_else(PoisonError::into_inner);
        let began = inner.clock.now();
        let before = unreached().clone();
        let fresh = |at: &Instant| began.saturating_duration_since(*at) < SHARED_FAILURE;
        if let Some((_, kind, why)) = before.filter(|(at, ..)| fresh(at)) {
            return Err(Error::new(kind, why));
        }
        let made = self.try_line().await;
        let now = inner.clock.now();
        let slow = now.saturating_duration_since(began) >= SHARED_FAILURE;
        *unreached() = made.as_ref().err().filter(|_| slow).map(|error| (now, error.kind(), error.chain()));
        made
    }

    async fn try_line(&self) -> Result<Line> {
        let inner = &*self.0;
        let failed = |error: kafka::Error| {
            let doing = format!("connecting to write dataset {}", inner.dataset);
            Error::because(error.kind(), doing, error)
        };
        let admin = Admin::new(&inner.kafka).map_err(failed)?;
        let mut limits = Vec::with_capacity(inner.topics.len());
        for topic in &inner.topics {
            // A send would create it with the broker's defaults, and nobody asked for those.
            if admin.describe(topic).await.map_err(failed)?.is_none() {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "source topic {topic} of dataset {} does not exist yet: its producer makes it when it starts",
                        inner.dataset
                    ),
                ));
            }
            let limit = match admin.topic_config(topic).await {
                Ok(config) => config.get("max.message.bytes").and_then(|value| value.parse().ok()),
                // Who may not ask is told by the broker what is too large.
                Err(error) => {
                    tracing::debug!(%error, topic = %topic, "the topic's settings cannot be read");
                    Some(CLIENT_LIMIT)
                }
            };
            limits.push(limit.unwrap_or(TOPIC_LIMIT).min(CLIENT_LIMIT));
        }
        let mut kafka = inner.kafka.clone();
        let batch = limits.iter().copied().min().unwrap_or(TOPIC_LIMIT).min(BATCH_BYTES);
        for (property, value) in [
            ("message.timeout.ms", DELIVERY_MS.to_owned()),
            ("batch.size", batch.to_string()),
            // Who writes one record waits for it; many at a time fill a batch sooner than this.
            ("linger.ms", "1".to_owned()),
        ] {
            kafka.properties.entry(property.to_owned()).or_insert(value);
        }
        Ok(Line { sender: Sender::new(&kafka).map_err(failed)?, limits })
    }

    /// After a fatal error of the idempotent client: the next write connects anew.
    fn begin_anew(&self, failed: &Arc<OnceCell<Line>>) {
        tracing::warn!(
            dataset = self.0.dataset,
            "the client that writes cannot go on; the next write makes another"
        );
        self.0.line.compare_and_swap(failed, Arc::default());
    }

    async fn unless_closed<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        let closed =
            || Error::new(ErrorKind::Closed, format!("the producer of {} has ended", self.0.dataset));
        if self.0.closed.is_cancelled() {
            return Err(closed());
        }
        tokio::select! {
            () = self.0.closed.cancelled() => Err(closed()),
            done = work => Ok(done),
        }
    }

    fn refused(&self, at: usize, refused: Refused) -> Error {
        let doing =
            format!("record {at} of the write is not for dataset {}; nothing was sent", self.0.dataset);
        Error::because(ErrorKind::Rejected, doing, refused)
    }

    fn topic(&self, at: usize) -> Arc<str> {
        self.0.topics.get(at).cloned().unwrap_or_else(|| Arc::from(""))
    }

    fn encoder(&self) -> std::sync::MutexGuard<'_, Encoder> {
        // A panic within leaves buffers that the next record clears.
        self.0.encoder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To wait for the version that holds these: one ticket per partition, since a version that has a partition's last
    /// record has those before it.
    pub(crate) fn tickets(&self, records: &[Landed]) -> Vec<Ticket> {
        let ends = publication::ends(records);
        ends.map(|(topic, partition, offset)| self.0.watchers.wait_for(topic, partition, offset)).collect()
    }

    fn clock(&self) -> &Clock {
        &self.0.clock
    }

    fn metrics(&self) -> &ProducerMetrics {
        &self.0.metrics
    }
}

impl Producer {
    /// Writes records to the source topics, in order within a key, and returns once they are in line; what is returned
    /// resolves to the version in which they became readable.
    ///
    /// Values are JSON, or bytes where the source is raw; they are encoded as the topic has them, and put where Java's
    /// clients would put their key. Each is checked first as the source's validation would: if one does not fit, none
    /// is sent. Waits while 50,000 records or 32 MiB are on the way to Kafka. The first write connects, which takes
    /// some milliseconds.
    ///
    /// It need not be this process that makes the version: a standby learns of it from the announcement topic. A record
    /// that a shed strategy gave up (`producer.spill.shed`, `none` by default) counts as published with the version that
    /// passes it.
    ///
    /// Dropping the future midway may leave some of the records sent.
    ///
    /// ```no_run
    /// # async fn write() -> stillwell::Result<()> {
    /// use std::time::Duration;
    /// use stillwell::{Producer, Publication, Write};
    ///
    /// let producer = Producer::builder("products")
    ///     .source("products")
    ///     .schema_file("schemas/product.avsc")
    ///     .start()
    ///     .await?;
    /// let written = producer
    ///     .write([
    ///         Write::upsert("P-100", r#"{"id":"P-100","name":"Kettle","price":24.5}"#),
    ///         Write::delete("P-7").header("reason", "sold out"),
    ///     ])
    ///     .await?; // fits, and is on its way
    /// match written.published(Duration::from_secs(10)).await {
    ///     Publication::Published { version, .. } => println!("readable from version {version} on"),
    ///     Publication::Durable { records } => println!("in Kafka at {}; the version will come", records[0]),
    ///     other => println!("not written for certain: {other}"), // writing again is safe: the later one wins
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] with the record's place and the reason, where one does not fit: nothing was sent.
    /// [`ErrorKind::Unavailable`] while Kafka does not answer or the topic does not exist yet: nothing was sent.
    /// [`ErrorKind::Closed`] once the producer has ended.
    pub async fn write(&self, records: impl IntoIterator<Item = Write>) -> Result<Written> {
        self.writer.write(records).await
    }
}
