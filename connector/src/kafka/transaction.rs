//! The transactional client that announces.
//!
//! ```text
//! new -> init -> begin -> send* -> settle? -> send_offsets? -> send* -> commit -> begin -> ...
//!                             any error, any outcome but Committed: drop it, and start a new life with a new client
//! ```
//!
//! A producer is never used again after an abort: librdkafka has no KIP-890 part 2, so a late duplicate of an ending
//! transaction could end the next one of the same producer. Why that is enough is told in the design, "Why nothing is
//! lost and nothing counts twice".
//!
//! Owns: order within a transaction, checking every delivery, and telling outcomes apart. Does not own: what is sent,
//! or what follows from an outcome. Every call blocks; meant for one dedicated thread.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

use super::client::{Context, make};
use super::rebalance::GroupMetadata;
use super::tokens::Kept;
use super::{Delivered, Error, Options, Outgoing};

/// Longest that a call goes on without looking whether it should stop. librdkafka resumes where it was when it is
/// called again, so that cutting a wait into pieces costs nothing.
const SLICE: Duration = Duration::from_millis(500);

/// Largest record of a [`Transaction::bulk`], with its headers.
pub const BULK_LIMIT: usize = 104_857_600;

/// How a commit ended.
#[derive(Debug)]
pub enum Outcome {
    /// It is committed.
    Committed,
    /// It is aborted: nothing of it will ever be seen.
    Aborted(Error),
    /// It may be committed or not: read the topic before anything else.
    Unknown(Error),
    /// A newer life has taken the transactional id. As for this transaction, as [`Outcome::Unknown`].
    Fenced(Error),
    /// The client cannot go on. As for this transaction, as [`Outcome::Unknown`].
    Fatal(Error),
}

/// A transactional producer.
pub struct Transaction {
    /// Its own thread takes delivery reports, log lines and statistics: an abort waits for the reports of all that was
    /// under way, and somebody has to take them meanwhile.
    producer: Kept<ThreadedProducer<Reports>>,
    reports: Arc<Tally>,
    sent: usize,
    id: String,
    clock: Clock,
    embedded: bool,
    stop: CancellationToken,
}

/// What became of the records of one transaction, in the order of sending.
#[derive(Default)]
struct Tally {
    reports: Mutex<Told>,
    /// Told when no report is missing any more, and now and then before: who waits for room in the queue looks again.
    changed: Condvar,
}

#[derive(Default)]
struct Told {
    reports: Vec<Option<Report>>,
    missing: usize,
}

type Report = Result<Delivered, Undelivered>;

/// Why a record did not arrive.
struct Undelivered {
    code: Code,
    topic: String,
}

impl Undelivered {
    /// Whether it was only taken out of the queue, since another had failed.
    fn is_purged(&self) -> bool {
        matches!(self.code, Code::PurgeQueue | Code::PurgeInflight)
    }
}

/// Reports after which those who wait are told though some are missing.
const TELL_EVERY: usize = 256;

impl Tally {
    fn lock(&self) -> std::sync::MutexGuard<'_, Told> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Reports {
    context: Context,
    tally: Arc<Tally>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.context.line(level, facility, line);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.context.stats_raw(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.context.error(error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        let report = match result {
            Ok(message) => Ok(Delivered { partition: message.partition(), offset: message.offset() }),
            Err((error, message)) => Err(Undelivered {
                code: error.rdkafka_error_code().unwrap_or(Code::Fail),
                topic: message.topic().to_owned(),
            }),
        };
        // A report of an earlier transaction cannot come this late: that one waited for all of its own.
        let mut told = self.tally.lock();
        if let Some(slot) = told.reports.get_mut(index)
            && slot.replace(report).is_none()
        {
            told.missing -= 1;
        }
        let missing = told.missing;
        drop(told);
        if missing.is_multiple_of(TELL_EVERY) {
            self.tally.changed.notify_all();
        }
    }
}

impl Transaction {
    /// A client with this transactional id. Call [`Transaction::init`] next.
    ///
    /// # Errors
    /// [`Error::Options`] for a property that librdkafka refuses. Does not wait for Kafka.
    pub fn new(options: &Options, transactional_id: &str, clock: Clock) -> Result<Transaction, Error> {
        let tuning = [("linger.ms", "0"), ("compression.type", "none"), ("message.max.bytes", "10485760")];
        Transaction::tuned(options, transactional_id, clock, "announce", &tuning)
    }

    /// The same for many records in few transactions: large batches, compressed; records of up to [`BULK_LIMIT`] bytes.
    ///
    /// # Errors
    /// As [`Transaction::new`].
    pub fn bulk(options: &Options, transactional_id: &str, clock: Clock) -> Result<Transaction, Error> {
        let tuning = [
            ("linger.ms", "5"),
            ("compression.type", "lz4"),
            ("batch.size", "1000000"),
            ("queue.buffering.max.messages", "200000"),
            ("queue.buffering.max.kbytes", "262144"),
            ("message.max.bytes", "104857600"),
        ];
        Transaction::tuned(options, transactional_id, clock, "replay", &tuning)
    }

    fn tuned(
        options: &Options,
        transactional_id: &str,
        clock: Clock,
        role: &'static str,
        tuning: &[(&str, &str)],
    ) -> Result<Transaction, Error> {
        // Back to back, with both at 1, a transaction takes 9 to 12 ms; with librdkafka's 100 it takes 117, since its
        // first request meets the marker of the one before and waits for a whole backoff.
        let backoff =
            [("retry.backoff.ms", "1"), ("retry.backoff.max.ms", "1"), ("transaction.timeout.ms", "15000")];
        let reports = Arc::new(Tally::default());
        let context = Reports { context: Context::new(role, options), tally: Arc::clone(&reports) };
        let producer = make(
            options,
            &[tuning, &backoff].concat(),
            &[
                ("transactional.id", transactional_id),
                ("enable.idempotence", "true"),
                ("acks", "all"),
                ("partitioner", "murmur2_random"),
            ],
            context,
            || format!("making the transactional client {transactional_id}"),
        )?;
        let embedded = options.embedded;
        let stop = CancellationToken::new();
        Ok(Transaction { producer, reports, sent: 0, id: transactional_id.to_owned(), clock, embedded, stop })
    }

    /// The same, but once `stop` is cancelled no call waits on: it ends within half a second (adding offsets: within
    /// its time limit), with [`Error::Closed`], or with an outcome that is not [`Outcome::Committed`]. What was under
    /// way is for the next life to end and to judge.
    #[must_use]
    pub fn stopped_by(mut self, stop: CancellationToken) -> Transaction {
        self.stop = stop;
        self
    }

    /// Registers with the coordinator: ends or aborts what a former life left open, and fences that life. After an
    /// [`Error::Unavailable`] it may be called again.
    pub fn init(&self, timeout: Duration) -> Result<(), Error> {
        self.resumed(timeout, |slice| self.producer.init_transactions(slice)).map_err(|error| match error {
            Some(error) => self.sort("registering", &error),
            None => self.stopped("registering"),
        })
    }

    /// Makes a call of librdkafka's that may be made again after a time-out, until it ends, the time is over, or
    /// `stop` is cancelled (`None`).
    fn resumed(
        &self,
        timeout: Duration,
        mut call: impl FnMut(Duration) -> Result<(), KafkaError>,
    ) -> Result<(), Option<KafkaError>> {
        let deadline = self.clock.now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(self.clock.now());
            let Err(error) = call(left.min(SLICE)) else { return Ok(()) };
            let again = matches!(&error, KafkaError::Transaction(native) if native.is_retriable());
            if !again || self.clock.now() >= deadline {
                return Err(Some(error));
            }
            if self.stop.is_cancelled() {
                return Err(None);
            }
            // It may say at once what it will say again: that another operation is under way.
            drop(self.reports.changed.wait_timeout(self.reports.lock(), Duration::from_millis(2)));
        }
    }

    fn stopped(&self, what: &str) -> Error {
        Error::Closed { doing: self.doing(what) }
    }

    /// Begins a transaction. Local: the broker hears of it with the first record.
    pub fn begin(&mut self) -> Result<(), Error> {
        self.sent = 0;
        *self.reports.lock() = Told::default();
        self.producer.begin_transaction().map_err(|error| self.sort("beginning", &error))
    }

    /// Adds a record. It is under way when this returns, not delivered; [`Transaction::commit`] checks every one.
    ///
    /// # Errors
    /// [`Error::Rejected`] where the record alone is too large for the client; then, as after any other error, the
    /// transaction is to be aborted.
    pub fn send(&mut self, record: &Outgoing<'_>, timeout: Duration) -> Result<(), Error> {
        let mut full_since = None;
        let index = self.sent;
        {
            let mut told = self.reports.lock();
            told.reports.push(None);
            told.missing += 1;
        }
        let mut outgoing = base_record(record, index);
        loop {
            match self.producer.send(outgoing) {
                Ok(()) => {
                    self.sent += 1;
                    return Ok(());
                }
                Err((KafkaError::MessageProduction(Code::QueueFull), back))
                    if self.is_within(timeout, &mut full_since) && !self.stop.is_cancelled() =>
                {
                    outgoing = back;
                    let reports = self.reports.lock();
                    drop(self.reports.changed.wait_timeout(reports, Duration::from_millis(10)));
                }
                Err((error, _)) => {
                    return Err(self.sort(&format!("sending to {}", record.topic), &error));
                }
            }
        }
    }

    /// Whether it is not for longer than that that the queue is full. Most records find it otherwise, and the time is not asked.
    fn is_within(&self, timeout: Duration, since: &mut Option<Instant>) -> bool {
        let now = self.clock.now();
        now.saturating_duration_since(*since.get_or_insert(now)) < timeout
    }

    /// Adds the group's offsets of source partitions.
    ///
    /// The embedded broker takes them and forgets them; there this does nothing.
    pub fn send_offsets(
        &mut self,
        offsets: &[(&str, i32, i64)],
        group: &GroupMetadata,
        timeout: Duration,
    ) -> Result<(), Error> {
        let offsets: Vec<_> =
            offsets.iter().map(|&(topic, partition, offset)| (topic, partition, offset, "")).collect();
        self.send_positions(&offsets, group, timeout)
    }

    /// The same, each with a note, which is read back with it ([`Group::committed`](super::Group)). Brokers take up to
    /// 4,096 bytes of one (`offset.metadata.max.bytes`).
    pub fn send_positions(
        &mut self,
        offsets: &[(&str, i32, i64, &str)],
        group: &GroupMetadata,
        timeout: Duration,
    ) -> Result<(), Error> {
        if self.embedded || offsets.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for (topic, partition, offset, note) in offsets {
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset))
                .map_err(|error| self.sort("adding offsets", &error))?;
            if let Some(mut element) = list.find_partition(topic, *partition).filter(|_| !note.is_empty()) {
                element.set_metadata(note);
            }
        }
        let result = self.producer.send_offsets_to_transaction(&list, group.native(), timeout);
        result.map_err(|error| self.sort("adding offsets", &error))
    }

    /// Waits until the broker has all that was sent so far. What is sent to one partition does not wait for what was sent
    /// to another before it: only who waits here knows that the one stands before the other.
    ///
    /// # Errors
    /// Those of a delivery; the transaction is to be aborted then.
    pub fn settle(&mut self, timeout: Duration) -> Result<(), Error> {
        self.wait_for_reports(timeout)?;
        self.failed_delivery().map_or(Ok(()), Err)
    }

    /// Waits for a report of every record. Not `Producer::flush`: it looks for the last delivery every 100 ms only.
    fn wait_for_reports(&self, timeout: Duration) -> Result<(), Error> {
        let deadline = self.clock.now() + timeout;
        let mut reports = self.reports.lock();
        while reports.missing > 0 {
            let left = deadline.saturating_duration_since(self.clock.now());
            if self.stop.is_cancelled() {
                return Err(self.stopped("delivering"));
            }
            if left.is_zero() {
                let detail = format!("not every record was delivered within {timeout:?}");
                return Err(Error::Unavailable { doing: self.doing("delivering"), detail });
            }
            let waited = self.reports.changed.wait_timeout(reports, left.min(SLICE));
            reports = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Waits for every delivery, then commits. At a failed delivery it aborts instead.
    ///
    /// After any outcome but [`Outcome::Committed`] drop this client.
    pub fn commit(&mut self, timeout: Duration) -> Outcome {
        let deadline = self.clock.now() + timeout;
        let left = |clock: &Clock| deadline.saturating_duration_since(clock.now());
        if let Err(error) = self.wait_for_reports(timeout) {
            return self.abort_after(error, timeout);
        }
        // The last report is told an instant before librdkafka counts its record as gone, and a commit in between
        // would sleep for 100 ms.
        let soon = self.clock.now() + Duration::from_millis(5);
        while self.producer.in_flight_count() > 0 && self.clock.now() < soon {
            std::thread::yield_now();
        }
        if let Some(error) = self.failed_delivery() {
            return self.abort_after(error, timeout);
        }
        let error = match self.resumed(left(&self.clock), |slice| self.producer.commit_transaction(slice)) {
            Ok(()) => return Outcome::Committed,
            Err(None) => return Outcome::Unknown(self.stopped("committing")),
            Err(Some(error)) => error,
        };
        let sorted = self.sort("committing", &error);
        match (&error, &sorted) {
            (_, Error::Fenced { .. }) => Outcome::Fenced(sorted),
            (KafkaError::Transaction(native), _) if native.is_fatal() => Outcome::Fatal(sorted),
            (_, Error::Fatal { .. }) => Outcome::Fatal(sorted),
            (KafkaError::Transaction(native), _) if native.txn_requires_abort() => {
                self.abort_after(sorted, timeout)
            }
            _ => Outcome::Unknown(sorted),
        }
    }

    /// Aborts. Where even that fails, the coordinator does so after `transaction.timeout.ms`, or the next life does.
    pub fn abort(&mut self, timeout: Duration) -> Result<(), Error> {
        self.resumed(timeout, |slice| self.producer.abort_transaction(slice)).map_err(|error| match error {
            Some(error) => self.sort("aborting", &error),
            None => self.stopped("aborting"),
        })
    }

    /// Where the records of the last transaction ended up, in the order of sending. Complete once committed.
    pub fn delivered(&self) -> Vec<Delivered> {
        self.reports
            .lock()
            .reports
            .iter()
            .filter_map(|report| report.as_ref()?.as_ref().ok().copied())
            .collect()
    }

    fn failed_delivery(&self) -> Option<Error> {
        let reports = self.reports.lock();
        let all = reports.reports.len();
        let failed = reports.reports.iter().enumerate().filter(|(_, report)| !matches!(report, Some(Ok(_))));
        // Of the first that did not go by itself: the others were purged for it.
        let (index, report) = failed.min_by_key(|(index, report)| {
            (matches!(report, Some(Err(undelivered)) if undelivered.is_purged()), *index)
        })?;
        let (code, to) = match report {
            Some(Err(Undelivered { code, topic })) => (*code, format!(" to {topic}")),
            _ => (Code::Fail, String::new()),
        };
        drop(reports);
        let doing = self.doing(&format!("delivering record {} of {all}{to}", index + 1));
        // In a failed transaction all that was queued is purged: the cause is what the client says, if it does.
        let said = self.producer.client().fatal_error().or_else(|| self.why_it_failed());
        let (code, words) = said.unwrap_or((code, String::new()));
        Some(self.excused(Error::from_code(doing, code, &words)))
    }

    fn excused(&self, error: Error) -> Error {
        self.producer.client().context().context.excused(error)
    }

    /// Why the transaction under way has failed; `None`: it has not. librdkafka keeps that, and says it to whoever asks for
    /// what cannot be done any more: here, to begin another, which within a transaction never can.
    fn why_it_failed(&self) -> Option<(Code, String)> {
        match self.producer.begin_transaction() {
            Err(KafkaError::Transaction(why)) if why.txn_requires_abort() => Some((why.code(), why.string())),
            _ => None,
        }
    }

    /// Ends a transaction in which `error` has come up. Aborts it where it can, since readers wait before whatever is
    /// not ended.
    pub fn abort_after(&mut self, error: Error, timeout: Duration) -> Outcome {
        match error {
            Error::Fatal { .. } => return Outcome::Fatal(error),
            // It may be the group's member that was fenced, and not this producer; if it is, it is told so at once.
            Error::Fenced { .. } => {
                let _ = self.abort(SLICE);
                return Outcome::Fenced(error);
            }
            _ => {}
        }
        match self.abort(timeout) {
            Ok(()) => Outcome::Aborted(error),
            Err(Error::Fenced { doing, detail }) => Outcome::Fenced(Error::Fenced { doing, detail }),
            // Why it is to be aborted says more than why it could not be: a right that is missing, say.
            Err(Error::Fatal { .. } | Error::Denied { .. }) => Outcome::Fatal(error),
            // Never told to commit, so it cannot be committed; but until it is ended, readers wait before it.
            Err(_) => Outcome::Aborted(error),
        }
    }

    fn doing(&self, what: &str) -> String {
        format!("{what} in the transaction of {}", self.id)
    }

    fn sort(&self, what: &str, error: &KafkaError) -> Error {
        let sorted = Error::from_kafka(self.doing(what), error);
        // The error that fenced a client often shows only as "fatal" or "purged": the client keeps the first cause.
        match self.producer.client().fatal_error() {
            Some((code, words)) => match Error::from_code(self.doing(what), code, &words) {
                known @ (Error::Fenced { .. } | Error::Denied { .. } | Error::Fatal { .. }) => known,
                _ => Error::Fatal { doing: self.doing(what), detail: format!("{words} ({code})") },
            },
            None => self.excused(sorted),
        }
    }
}

/// A record as rdkafka wants it.
pub(super) fn base_record<'a, D: rdkafka::util::IntoOpaque>(
    record: &Outgoing<'a>,
    opaque: D,
) -> BaseRecord<'a, [u8], [u8], D> {
    let mut base = BaseRecord::with_opaque_to(record.topic, opaque);
    base.partition = record.partition;
    base.key = record.key;
    base.payload = record.value;
    base.timestamp = record.timestamp;
    let count = record.headers.len() + record.behind.len();
    if count > 0 {
        let mut headers = OwnedHeaders::new_with_capacity(count);
        for (key, value) in record.headers {
            headers = headers.insert(Header { key, value: value.as_deref() });
        }
        for &(key, value) in record.behind {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        base.headers = Some(headers);
    }
    base
}
