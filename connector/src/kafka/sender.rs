//! The plain producer: idempotent, outside any transaction. For the demo's generator, tests, and written records.
//!
//! Owns: one record at a time reaching Kafka, in order per partition. Does not own: what is sent.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::producer::{DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use tokio::sync::oneshot;

use super::client::{Context, make};
use super::tokens::Kept;
use super::transaction::base_record;
use super::{Delivered, Error, Options, Outgoing};

/// A producer that places keys as Java's does and sends each record once. Cheap to clone.
#[derive(Clone)]
pub struct Sender(Arc<Kept<ThreadedProducer<Reports>>>);

type Report = Result<Delivered, Code>;

/// What waits for a record's report.
struct Awaited {
    report: oneshot::Sender<Report>,
    /// Let go with the report, whoever waits for it: a place in a budget.
    held: Option<Box<dyn Send + Sync>>,
}

struct Reports(Context);

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.0.line(level, facility, line);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.0.stats_raw(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Awaited>;

    fn delivery(&self, result: &DeliveryResult<'_>, awaited: Self::DeliveryOpaque) {
        let Awaited { report, held } = *awaited;
        drop(held);
        // Nobody may be waiting for it; that is theirs to decide.
        let _ = report.send(match result {
            Ok(message) => Ok(Delivered { partition: message.partition(), offset: message.offset() }),
            Err((error, _)) => Err(error.rdkafka_error_code().unwrap_or(Code::Fail)),
        });
    }
}

impl Sender {
    /// A producer. Does not wait for Kafka.
    ///
    /// # Errors
    /// [`Error::Options`] for a property that librdkafka refuses.
    pub fn new(options: &Options) -> Result<Sender, Error> {
        let producer = make(
            options,
            &[
                ("linger.ms", "5"),
                ("message.max.bytes", "10485760"),
                // Above this many bytes under way, `send` waits.
                ("queue.buffering.max.kbytes", "65536"),
            ],
            &[("enable.idempotence", "true"), ("acks", "all"), ("partitioner", "murmur2_random")],
            Reports(Context::new("sender", options)),
            || format!("making the sender for {}", options.bootstrap_servers),
        )?;
        Ok(Sender(Arc::new(producer)))
    }

    /// Sends a record and waits until it is acknowledged by all replicas in sync.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it was not acknowledged in time; it may have arrived all the same.
    pub async fn send(&self, record: &Outgoing<'_>) -> Result<Delivered, Error> {
        let sent = self.enqueue(record).await?.await;
        sent.map_err(|error| self.over(record.topic).unwrap_or(error))
    }

    /// Why it can send nothing to `topic` any more, where it cannot: for another one to be made. Who cannot go on empties its
    /// line: why it cannot is said by itself, not by what was in the line.
    pub fn over(&self, topic: &str) -> Option<Error> {
        let (code, words) = self.0.client().fatal_error()?;
        Some(Error::from_code(format!("sending to {topic}"), code, &words))
    }

    /// Puts a record in line, waiting only while the line is full; what is returned resolves when it is acknowledged.
    /// Records of one partition arrive in the order in which they were put in line.
    pub async fn enqueue(
        &self,
        record: &Outgoing<'_>,
    ) -> Result<impl Future<Output = Result<Delivered, Error>> + Send + 'static, Error> {
        Ok(self.put_in_line(record, None).await?.delivered())
    }

    /// As [`Sender::enqueue`]; `held` is dropped when the record's fate is known, whether anybody asks for it or not.
    pub async fn put_in_line(
        &self,
        record: &Outgoing<'_>,
        held: Option<Box<dyn Send + Sync>>,
    ) -> Result<Receipt, Error> {
        let (report, reported) = oneshot::channel();
        let topic = record.topic.to_owned();
        let mut outgoing = Some(Box::new(Awaited { report, held }));
        while let Some(awaited) = outgoing.take() {
            match self.0.send(base_record(record, awaited)) {
                Ok(()) => {}
                Err((KafkaError::MessageProduction(Code::QueueFull), back)) => {
                    outgoing = Some(back.delivery_opaque);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Err((error, _)) => return Err(Error::from_kafka(format!("sending to {topic}"), &error)),
            }
        }
        Ok(Receipt { topic, reported })
    }

    /// Waits until everything in line is acknowledged or has failed.
    pub async fn flush(&self, timeout: Duration) -> Result<(), Error> {
        let producer = Arc::clone(&self.0);
        let flushed = tokio::task::spawn_blocking(move || producer.flush(timeout)).await;
        flushed
            .expect("flushing does not panic")
            .map_err(|error| Error::from_kafka("waiting for what was sent", &error))
    }
}

/// A record in line. Dropping it changes nothing for the record.
#[derive(Debug)]
pub struct Receipt {
    topic: String,
    reported: oneshot::Receiver<Report>,
}

impl Receipt {
    /// Waits until the record is acknowledged by all replicas in sync.
    ///
    /// # Errors
    /// [`Error::Rejected`]: the broker will not have it. [`Error::Unavailable`], [`Error::Closed`]: it was not
    /// acknowledged; it may have arrived all the same.
    pub async fn delivered(self) -> Result<Delivered, Error> {
        let doing = || format!("sending to {}", self.topic);
        match self.reported.await {
            Ok(Ok(delivered)) => Ok(delivered),
            Ok(Err(code)) => Err(Error::from_code(doing(), code, "")),
            Err(_) => Err(Error::Closed { doing: doing() }),
        }
    }
}
