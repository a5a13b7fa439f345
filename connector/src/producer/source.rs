//! The source: polls the source partitions of this shard and appends what they hold to the log, in chunks.
//!
//! ```text
//!  Kafka ==Poller==> validate ==ChunkBuilder==> log's appender
//!             ^ paused while the intake is shut
//! ```
//!
//! The client assigns itself its partitions at the positions that recovery found and commits nothing: positions are
//! announced (`announce`). A chunk ends at a megabyte, or as soon as nothing more is there: waiting for more would
//! add latency, and the log's group commit makes small chunks cheap. Only where so much comes that a thousandth of a
//! second does not count, or while what comes is not handed on anyway, a chunk waits for more; not where every partition
//! has said that it was read to its end.
//!
//! A record whose schema is not known here yet holds up its own partition only: that one is paused at the record, and goes on
//! from it once the registry has answered (`schemas`). The first few milliseconds are waited for on the spot, since an answer
//! comes sooner than a fetch, and pausing drops what was fetched.
//!
//! Owns: the source client, which part of which partition has been appended. Does not own: membership
//! (`kafka::Member`), durability (`log`), what was announced (`announce`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::intake::{Intake, Turn};
use super::log::{self, Appender};
use super::schemas::{Desk, Learnt, Strangers};
use super::stall::{KnownEnds, Stalls};
use super::validate::Validator;
use crate::clock::Clock;
use crate::codec::{SchemaId, Unread};
use crate::format::chunk::ChunkBuilder;
use crate::kafka::{self, Polled, Poller};
use crate::record::{Position, SourcePartition};
use crate::telemetry::ProducerMetrics;

/// Bytes at which a chunk is handed to the log: RocksDB takes 1 MB chunks, each fsynced, at its best rate.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes from which on a chunk waits for more: records come at a rate at which they wait elsewhere for longer.
const BULK_BYTES: usize = 8 << 10;
/// Bytes from which on it waits no more once all partitions are at their ends.
const ENDED_BYTES: usize = 64 << 10;
/// Longest that such a chunk waits for the next record; in all, [`LINGERS`] times as long.
const LINGER: Duration = Duration::from_millis(1);
/// The same while records spill: nobody waits for them, and a backlog in few large chunks takes less of everything.
const SPILL_LINGER: Duration = Duration::from_millis(50);
/// See [`LINGER`].
const LINGERS: u32 = 20;
/// Longest wait for a schema on the spot, while none is waited for otherwise.
const ON_THE_SPOT: Duration = Duration::from_millis(20);
/// How often the client is looked after before records are taken: statistics come every few seconds.
const TEND_EVERY: Duration = Duration::from_secs(3);
/// How often intake and cancellation are looked at while nothing arrives.
const IDLE_POLL: Duration = Duration::from_millis(50);

/// Why the source ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka no longer holds what is to be read next.
    #[error(
        "{position} is not in Kafka any more ({detail}): records that were never published are gone. Nothing was \
         skipped. Lengthen the topic's retention; then `stillwell rebuild` publishes what the topic still holds"
    )]
    Lost {
        /// What was to be read.
        position: Position,
        /// Kafka's words.
        detail: String,
    },
    /// Kafka refuses; the client itself retries what can be retried.
    #[error("reading the source topics")]
    Kafka(#[source] kafka::Error),
    /// The log takes nothing any more.
    #[error("appending to the log")]
    Log(#[source] log::Error),
}

struct Partition {
    source: SourcePartition,
    next: i64,
    /// The last that was heard of it is that there is no more at the moment.
    ended: bool,
    /// It waits at `next` for this schema.
    held: Option<SchemaId>,
}

/// The stage; runs on a thread of its own.
pub struct Source {
    poller: Poller,
    partitions: Vec<Partition>,
    validator: Validator,
    appender: Appender,
    chunk: ChunkBuilder,
    intake: Intake,
    /// Where schemas are asked for, if the source's values name any.
    desk: Option<Desk>,
    /// Schemas that nobody knew.
    strangers: Strangers,
    stalls: Stalls,
    clock: Clock,
    metrics: Arc<ProducerMetrics>,
}

impl Source {
    /// A source that begins at `positions`.
    ///
    /// # Errors
    /// Kafka's, when the partitions cannot be assigned.
    pub fn new(
        mut poller: Poller,
        positions: &[Position],
        validator: Validator,
        appender: Appender,
        intake: Intake,
        clock: Clock,
        metrics: Arc<ProducerMetrics>,
    ) -> Result<Source, Error> {
        let assignment: Vec<(&str, i32, i64)> = positions
            .iter()
            .map(|position| (&*position.source.topic, position.source.partition, position.offset))
            .collect();
        poller.assign(&assignment).map_err(Error::Kafka)?;
        metrics.source_waiting_partitions.set(0);
        let partitions = positions
            .iter()
            .map(|position| Partition {
                source: position.source.clone(),
                next: position.offset,
                ended: false,
                held: None,
            })
            .collect();
        Ok(Source {
            poller,
            partitions,
            validator,
            appender,
            chunk: ChunkBuilder::new(),
            intake,
            desk: None,
            strangers: Strangers::default(),
            stalls: Stalls::new(KnownEnds::new(0), clock.now()),
            clock,
            metrics,
        })
    }

    /// The same, for values that name their schemas.
    #[must_use]
    pub fn asking(mut self, desk: Option<Desk>) -> Source {
        self.desk = desk;
        self
    }

    /// The same, which notices a partition that stands still before its end.
    #[must_use]
    pub fn knowing(mut self, ends: KnownEnds) -> Source {
        self.stalls = Stalls::new(ends, self.clock.now());
        self
    }

    /// Waits for `said` before anything is taken. Meanwhile the client, which fetches already, is looked after.
    pub async fn until<T>(&mut self, said: impl Future<Output = T>) -> T {
        let mut said = std::pin::pin!(said);
        loop {
            tokio::select! {
                said = &mut said => return said,
                () = tokio::time::sleep(TEND_EVERY) => self.poller.tend(),
            }
        }
    }

    /// Polls until `stop` is cancelled, then appends what has been polled. Blocks: for a thread of its own.
    ///
    /// # Errors
    /// [`Error`]; the life ends with it, nothing is skipped.
    pub fn run(mut self, stop: &CancellationToken) -> Result<(), Error> {
        let mut began: Option<Instant> = None;
        while !stop.is_cancelled() {
            self.obey_intake()?;
            self.hear()?;
            let spills = self.intake.spills();
            let linger = if spills { SPILL_LINGER } else { LINGER };
            let wait = match began {
                Some(began) => linger.saturating_sub(self.clock.now() - began),
                None => IDLE_POLL,
            };
            let idle = match self.poll_once(wait) {
                Ok(any) => !any,
                Err(error) => {
                    // What came before a gap may be nowhere else any more.
                    if !self.chunk.is_empty() {
                        self.append(stop)?;
                    }
                    return Err(error);
                }
            };
            self.look_for_stalls()?;
            if self.chunk.is_empty() {
                continue;
            }
            let began_at = *began.get_or_insert_with(|| self.clock.now());
            let bytes = self.chunk.bytes();
            let at_once = !spills && bytes < BULK_BYTES || bytes >= ENDED_BYTES && self.all_ended();
            let full = bytes >= CHUNK_BYTES || self.clock.now() - began_at >= linger * LINGERS;
            if at_once || idle || full {
                began = None;
                if !self.append(stop)? {
                    break;
                }
            }
        }
        if !self.chunk.is_empty() {
            self.append(stop)?;
        }
        self.metrics.source_waiting_partitions.set(0);
        Ok(())
    }

    /// Whether every partition has been read to where it ended when last heard of.
    fn all_ended(&self) -> bool {
        self.partitions.iter().all(|partition| partition.ended)
    }

    /// Takes what the poller has, up to a chunk's worth. False: nothing was there.
    fn poll_once(&mut self, wait: Duration) -> Result<bool, Error> {
        let Source { poller, partitions, validator, chunk, metrics, intake, desk, strangers, clock, .. } =
            self;
        let mut wait = wait;
        let (mut any, mut records, mut bytes) = (false, 0u64, 0u64);
        while chunk.bytes() < CHUNK_BYTES {
            let polled = poller.poll(wait);
            wait = Duration::ZERO;
            match polled {
                None => break,
                Some(Polled::Record { slot, message }) => {
                    let Some(partition) = partitions.get_mut(slot) else { continue };
                    // A record before the position can come after a resume (prefetched twice): it is in the log.
                    if message.offset() < partition.next {
                        continue;
                    }
                    let mut taken = validator.take(&message, &partition.source, partition.next, chunk);
                    // The value's schema may be unknown, then the key's.
                    while let (Err(Unread::Unknown { id, .. }), Some(desk)) = (&taken, desk.as_mut()) {
                        let id = *id;
                        if !learn_now(desk, validator, strangers, id, clock) {
                            break;
                        }
                        taken = validator.take(&message, &partition.source, partition.next, chunk);
                    }
                    let misfit = match taken {
                        Ok(()) => None,
                        Err(Unread::Misfit(misfit)) => Some(misfit),
                        Err(Unread::Unknown { id, .. }) => {
                            partition.held = Some(id);
                            metrics.source_waiting_partitions.inc();
                            let offset = message.offset();
                            poller.hold(slot, offset).map_err(Error::Kafka)?;
                            continue;
                        }
                    };
                    partition.next = message.offset() + 1;
                    partition.ended = false;
                    any = true;
                    records += 1;
                    bytes += (message.key().map_or(0, <[u8]>::len) + message.value().map_or(0, <[u8]>::len))
                        as u64;
                    if intake.is_a_storm(misfit.map_or(Ok(()), Err)) {
                        break;
                    }
                }
                Some(Polled::End { slot, offset }) => {
                    let Some(partition) = partitions.get_mut(slot) else { continue };
                    partition.ended = true;
                    // Markers and aborted records at the end are passed, or `caught_up` would wait for ever.
                    if offset > partition.next {
                        let slot = chunk.slot(&partition.source, partition.next);
                        chunk.advance(slot, offset);
                        partition.next = offset;
                        any = true;
                    }
                }
                Some(Polled::Lost { slot, detail }) => {
                    if let Some(partition) = partitions.get(slot) {
                        let position = Position { source: partition.source.clone(), offset: partition.next };
                        return Err(Error::Lost { position, detail });
                    }
                }
                Some(Polled::Error(error)) if error.is_transient() => {
                    tracing::warn!(error = %error, "reading the source topics; the client tries again");
                }
                Some(Polled::Error(error)) => return Err(Error::Kafka(error)),
            }
        }
        metrics.records_total.inc_by(records);
        metrics.bytes_total.inc_by(bytes);
        Ok(any)
    }

    /// Hands the chunk to the log. While the log takes no more, waits: the client's own queue is bounded, and Kafka can
    /// wait. False: told to stop meanwhile; what could not be
    /// appended is read from Kafka again by the next life.
    fn append(&mut self, stop: &CancellationToken) -> Result<bool, Error> {
        let mut chunk = self.chunk.finish();
        loop {
            match self.appender.append_within(chunk, IDLE_POLL) {
                Ok(()) => return Ok(true),
                Err(log::AppendError::Full(back)) if !stop.is_cancelled() => chunk = back,
                Err(log::AppendError::Full(_)) => return Ok(false),
                Err(log::AppendError::Failed(error)) => return Err(Error::Log(error)),
            }
        }
    }

    /// Takes what was answered, and lets the partitions go on that waited for it.
    fn hear(&mut self) -> Result<(), Error> {
        let Source {
            poller, partitions, validator, intake, desk: Some(desk), strangers, clock, metrics, ..
        } = self
        else {
            return Ok(());
        };
        let now = clock.now();
        strangers.due(now, |id| validator.forget(id));
        let mut free = Vec::new();
        while let Some((id, learnt)) = desk.answer(Duration::ZERO) {
            note(validator, strangers, id, &learnt, now);
            for (slot, partition) in partitions.iter_mut().enumerate() {
                if partition.held == Some(id) {
                    partition.held = None;
                    metrics.source_waiting_partitions.dec();
                    poller.let_go(slot);
                    free.push(slot);
                }
            }
        }
        for id in partitions.iter().filter_map(|partition| partition.held) {
            desk.ask(id);
        }
        // What was let go says nothing before it is resumed: with all the others when the intake opens.
        match free.is_empty() || intake.is_shut() {
            true => Ok(()),
            false => poller.resume(free).map_err(Error::Kafka),
        }
    }

    fn look_for_stalls(&mut self) -> Result<(), Error> {
        let shut = self.intake.is_shut();
        let next = self.partitions.iter();
        let next = next.map(|partition| (!shut && partition.held.is_none()).then_some(partition.next));
        let stalled = self.stalls.look(self.clock.now(), next);
        for partition in stalled.iter().filter_map(|slot| self.partitions.get(*slot)) {
            self.metrics.source_stalls_total.inc();
            tracing::warn!(
                source = %partition.source, offset = partition.next,
                "nothing comes of a partition that holds more; it is assigned anew from there"
            );
        }
        match stalled.is_empty() {
            true => Ok(()),
            false => self.poller.resume(stalled).map_err(Error::Kafka),
        }
    }

    fn obey_intake(&mut self) -> Result<(), Error> {
        match self.intake.turn() {
            Turn::Stay => Ok(()),
            Turn::Shut => self.poller.pause(self.poller.all()).map_err(Error::Kafka),
            Turn::Open => self.poller.resume(self.poller.all()).map_err(Error::Kafka),
        }
    }
}

/// Asks for a schema, and waits for it a moment. False: it takes longer.
fn learn_now(
    desk: &mut Desk,
    validator: &mut Validator,
    strangers: &mut Strangers,
    wanted: SchemaId,
    clock: &Clock,
) -> bool {
    // Where others are waited for already, the registry is slow or away.
    let at_once = desk.is_idle();
    if !desk.ask(wanted) || !at_once {
        return false;
    }
    match desk.answer(ON_THE_SPOT) {
        Some((id, learnt)) => {
            note(validator, strangers, id, &learnt, clock.now());
            id == wanted
        }
        None => false,
    }
}

fn note(validator: &mut Validator, strangers: &mut Strangers, id: SchemaId, learnt: &Learnt, now: Instant) {
    validator.learn(id, learnt);
    strangers.note(id, learnt, now);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Format, KeyRule, Kind, Misfit, Stage};
    use crate::format::origin::Origin;
    use crate::gauge::Pressure;
    use crate::kafka::{Cluster, Outgoing, Sender, Tuning};
    use crate::producer::log::Log;
    use crate::producer::pace::Pace;
    use crate::producer::schemas::{Librarian, Library};
    use crate::producer::storm::Storm;
    use crate::producer::validate::Misfits;
    use crate::producer::{Pacing, Reliability, Status};
    use crate::registry::stub::{SILENCE, Stub, schema};
    use crate::schema::Schema;

    const RECORDS: i64 = 40;
    const SEVEN: SchemaId = SchemaId::Number(7);
    const LONG: Duration = Duration::from_secs(90);

    /// A delete, then values of schema 7, in one batch: what is taken of it lies ready in the client together.
    async fn filled(cluster: &Cluster) {
        cluster.create_topic("numbers", 1).unwrap();
        let mut options = cluster.options("test");
        options.properties.insert("linger.ms".to_owned(), "500".to_owned());
        let sender = Sender::new(&options).unwrap();
        let mut sent = Vec::new();
        for n in 0..RECORDS {
            let value = [0, 0, 0, 0, 7, 2];
            let value = (n > 0).then_some(&value[..]);
            let record = Outgoing {
                topic: "numbers",
                partition: Some(0),
                key: Some(b"k"),
                value,
                ..Outgoing::default()
            };
            sent.push(sender.enqueue(&record).await.unwrap());
        }
        for (n, sent) in (0..).zip(sent) {
            assert_eq!(sent.await.unwrap().offset, n);
        }
    }

    fn library(registry: &Stub) -> Library {
        let builder = crate::Producer::builder("numbers").source("numbers").schema("\"int\"");
        let builder = builder.store(crate::blob::Store::open("memory://").unwrap());
        let builder = builder.metrics(ProducerMetrics::detached()).schema_registry(registry.url());
        Library::of(&builder.options().unwrap(), None).unwrap()
    }

    /// Behind the record at which a partition is held others lie ready. They are not taken when its schema comes while the intake
    /// is shut, in which case nothing is resumed.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_schema_that_comes_while_the_intake_is_shut_skips_no_record() {
        let cluster = Cluster::start(1).unwrap();
        filled(&cluster).await;
        let registry =
            Stub::start(
                |path| if path.contains("/7") { schema("\"int\"") } else { (SILENCE, String::new()) },
            );
        let registry = registry.await;
        let (clock, metrics) = (Clock::system(), ProducerMetrics::detached());
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), log::Options::new(clock.clone())).await.unwrap();
        let source = SourcePartition { topic: "numbers".into(), topic_id: Default::default(), partition: 0 };
        let from = log.resume(&Origin::any(), &[Position { source, offset: 0 }]).await.unwrap();
        let storm = Storm::new(&Reliability { misfit_window: 1, ..Reliability::default() });
        let (status, _) = tokio::sync::watch::channel(Status::default());
        let pace = Pace::new(Pacing::default(), clock.clone());
        let intake =
            Intake::new((log.clone(), storm.clone()), Pressure::default(), pace, status, metrics.clone());
        let poller = Poller::new(&cluster.options("test"), &Tuning::source("group", 1 << 20)).unwrap();
        let (librarian, desk) = Librarian::new(library(&registry), poller.waker());
        let cancel = CancellationToken::new();
        let mut task = tokio::task::JoinSet::new();
        task.spawn(librarian.run(cancel.clone()));
        let (format, schema) = (Format::registered(Kind::Avro), Arc::new(Schema::parse("\"int\"").unwrap()));
        let validator =
            Validator::new(format, KeyRule::Kafka, schema, metrics.clone(), Misfits::default()).unwrap();
        let source =
            Source::new(poller, &from, validator, log.appender(), intake, clock.clone(), metrics.clone());
        let mut source = source.unwrap().asking(Some(desk));

        // The registry is slow with another schema, so that this one is not waited for on the spot.
        assert!(source.desk.as_mut().unwrap().ask(SchemaId::Number(99)));
        let deadline = clock.now() + LONG;
        while source.partitions[0].held.is_none() {
            assert!(clock.now() < deadline, "nothing is held; at {}", source.partitions[0].next);
            source.poll_once(Duration::from_millis(20)).unwrap();
        }
        assert_eq!((source.partitions[0].held, source.partitions[0].next), (Some(SEVEN), 1));
        let misfit = Misfit { stage: Stage::Decode, class: "a", message: "it ends too early".to_owned() };
        assert!(storm.window().fails(&misfit));
        source.obey_intake().unwrap();
        assert!(source.intake.is_shut());
        while source.partitions[0].held.is_some() {
            assert!(clock.now() < deadline, "schema 7 does not come");
            source.hear().unwrap();
            tokio::task::yield_now().await;
        }
        // More polls than the client hands out records in one go.
        for _ in 0..300 {
            source.poll_once(Duration::from_millis(1)).unwrap();
        }
        assert_eq!((source.partitions[0].next, metrics.records_total.get()), (1, 1));
        assert!(storm.let_through().is_some());
        source.obey_intake().unwrap();
        while source.partitions[0].next < RECORDS {
            assert!(clock.now() < deadline, "at {} of {RECORDS}", source.partitions[0].next);
            source.poll_once(Duration::from_millis(20)).unwrap();
        }
        assert_eq!(metrics.records_total.get(), RECORDS as u64, "each of them was taken, once");

        drop(source);
        cancel.cancel();
        task.join_next().await.unwrap().unwrap();
        log.close().await.unwrap();
    }
}
