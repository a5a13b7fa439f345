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
//! Owns: the source client, which part of which partition has been appended. Does not own: membership
//! (`kafka::Member`), durability (`log`), what was announced (`announce`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::intake::{Intake, Turn};
use super::log::{self, Appender};
use super::validate::Validator;
use crate::clock::Clock;
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
}

/// The stage; runs on a thread of its own.
pub struct Source {
    poller: Poller,
    partitions: Vec<Partition>,
    validator: Validator,
    appender: Appender,
    chunk: ChunkBuilder,
    intake: Intake,
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
        let partitions = positions
            .iter()
            .map(|position| Partition {
                source: position.source.clone(),
                next: position.offset,
                ended: false,
            })
            .collect();
        Ok(Source {
            poller,
            partitions,
            validator,
            appender,
            chunk: ChunkBuilder::new(),
            intake,
            clock,
            metrics,
        })
    }

    /// Polls until `stop` is cancelled, then appends what has been polled. Blocks: for a thread of its own.
    ///
    /// # Errors
    /// [`Error`]; the life ends with it, nothing is skipped.
    pub fn run(mut self, stop: &CancellationToken) -> Result<(), Error> {
        let mut began: Option<Instant> = None;
        while !stop.is_cancelled() {
            self.obey_intake()?;
            let spills = self.intake.spills();
            let linger = if spills { SPILL_LINGER } else { LINGER };
            let wait = match began {
                Some(began) => linger.saturating_sub(self.clock.now() - began),
                None => IDLE_POLL,
            };
            let idle = !self.poll_once(wait)?;
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
        Ok(())
    }

    /// Whether every partition has been read to where it ended when last heard of.
    fn all_ended(&self) -> bool {
        self.partitions.iter().all(|partition| partition.ended)
    }

    /// Takes what the poller has, up to a chunk's worth. False: nothing was there.
    fn poll_once(&mut self, wait: Duration) -> Result<bool, Error> {
        let Source { poller, partitions, validator, chunk, metrics, intake, .. } = self;
        let mut wait = wait;
        let (mut any, mut records, mut bytes) = (false, 0u64, 0u64);
        while chunk.bytes() < CHUNK_BYTES {
            let Some(polled) = poller.poll(wait) else { break };
            wait = Duration::ZERO;
            match polled {
                Polled::Record { slot, message } => {
                    let Some(partition) = partitions.get_mut(slot) else { continue };
                    // A record before the position can come after a resume (prefetched twice): it is in the log.
                    if message.offset() < partition.next {
                        continue;
                    }
                    let slot = chunk.slot(&partition.source, partition.next);
                    let taken = validator.take(&message, &partition.source, slot, chunk);
                    partition.next = message.offset() + 1;
                    partition.ended = false;
                    any = true;
                    records += 1;
                    bytes += (message.key().map_or(0, <[u8]>::len) + message.value().map_or(0, <[u8]>::len))
                        as u64;
                    if intake.is_a_storm(taken) {
                        break;
                    }
                }
                Polled::End { slot, offset } => {
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
                Polled::Lost { slot, detail } => {
                    if let Some(partition) = partitions.get(slot) {
                        let position = Position { source: partition.source.clone(), offset: partition.next };
                        return Err(Error::Lost { position, detail });
                    }
                }
                Polled::Error(error) if error.is_transient() => {
                    tracing::warn!(error = %error, "reading the source topics; the client tries again");
                }
                Polled::Error(error) => return Err(Error::Kafka(error)),
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

    fn obey_intake(&mut self) -> Result<(), Error> {
        match self.intake.turn() {
            Turn::Stay => Ok(()),
            Turn::Shut => self.poller.pause(self.poller.all()).map_err(Error::Kafka),
            Turn::Open => self.poller.resume(self.poller.all()).map_err(Error::Kafka),
        }
    }
}
