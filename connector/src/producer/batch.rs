//! Batches: how much of the log becomes one version.
//!
//! ```text
//!  log ==chunk==> [ records | bytes | time | memory ] ==Batch==> build
//! ```
//!
//! A batch may end inside a chunk: its positions are exact to the record. While the builder is busy a batch that is
//! due goes on growing to its limits, so that load makes versions larger rather than later; so does one that finds no
//! place in the line to the announcer (`turns`). Without a `batch_timeout` a batch is due as soon as it holds anything,
//! and that line alone decides how large it becomes. Where the memory is nearly all in use behind the log, a batch is due
//! whatever it holds: nothing more could come to fill it.
//!
//! Owns: when a batch ends, and its positions. Does not own: what becomes of its records (`build`), the chunks'
//! durability (`log`), the rate (`pace`).

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Batching;
use super::lap::Lap;
use super::log::{self, Logged, Reader};
use super::pace::{Debt, Pace};
use super::turns::{Turn, Turns};
use crate::clock::Clock;
use crate::format::chunk::{Body, Chunk};
use crate::gauge::Lease;
use crate::record::{Position, SourcePartition};
use crate::telemetry::ProducerMetrics;

/// Share of the memory for batches at which one is flushed whatever it holds.
const MEMORY_PRESSURE: f64 = 0.8;

/// A record of a batch: which of its chunks, and where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Index into [`Batch::chunks`].
    pub chunk: u32,
    /// See [`Chunk::at`].
    pub cursor: u32,
}

/// A run of the log that becomes one version: what it holds, and how far it goes.
#[derive(Debug, Default)]
pub struct Batch {
    /// The chunks that hold its records, in log order.
    pub chunks: Vec<Chunk>,
    /// Upserts and deletes, in log order.
    pub items: Vec<Item>,
    /// Misfits, in log order.
    pub misfits: Vec<Item>,
    /// Records that go to the dead-letter topic because the log is too full to keep them, in log order.
    pub shed: Vec<Item>,
    /// Per source partition that it touches, the next offset after it.
    pub positions: Vec<Position>,
    /// Bytes of its records in the log.
    pub bytes: u64,
    /// When its oldest record was received from Kafka.
    pub received_at: Option<Instant>,
    /// The bytes that it keeps in memory.
    pub leases: Vec<Lease>,
    /// Its place in the line to the announcer.
    pub turn: Option<Turn>,
    /// How long it has taken so far.
    pub lap: Lap,
}

impl Batch {
    /// Records, misfits and shed ones included.
    pub fn records(&self) -> usize {
        self.items.len() + self.misfits.len() + self.shed.len()
    }

    /// Whether it moves nothing on.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    fn advance(&mut self, source: &SourcePartition, to: i64) {
        match self.positions.iter_mut().find(|position| position.source == *source) {
            Some(position) => position.offset = position.offset.max(to),
            None => self.positions.push(Position { source: source.clone(), offset: to }),
        }
    }
}

/// A chunk that is being taken over into batches, record by record.
#[derive(Debug)]
struct Open {
    logged: Logged,
    cursor: Option<u32>,
}

/// The task: takes chunks from the log, hands batches to the builder.
pub struct Batcher {
    reader: Reader,
    pace: Pace,
    rules: Batching,
    clock: Clock,
    metrics: Arc<ProducerMetrics>,
    turns: Turns,
    out: mpsc::Sender<Batch>,
    open: Option<Open>,
    /// What was taken from the open chunk last, while the pace holds it against us.
    owed: Option<Debt>,
    batch: Batch,
    began: Option<Instant>,
}

impl Batcher {
    /// A batcher over `reader`.
    pub fn new(
        reader: Reader,
        pace: Pace,
        rules: Batching,
        clock: Clock,
        metrics: Arc<ProducerMetrics>,
        turns: Turns,
        out: mpsc::Sender<Batch>,
    ) -> Batcher {
        let (open, owed, batch, began) = (None, None, Batch::default(), None);
        Batcher { reader, pace, rules, clock, metrics, turns, out, open, owed, batch, began }
    }

    /// Runs until `drain` is cancelled (the batch that has begun is still handed on; what is in the log stays there)
    /// or the builder is gone.
    ///
    /// # Errors
    /// The log's, when it cannot be read.
    pub async fn run(mut self, drain: CancellationToken) -> Result<(), log::Error> {
        loop {
            // Taken first and paid for then: a batch never waits for a record that it has.
            if self.open.is_some() && self.owed.is_none() && !self.is_full() {
                let (records, bytes) = self.step();
                self.owed = Some(self.pace.owe(records, bytes));
            }
            let full = self.is_full();
            let late = self.began.is_some_and(|began| self.clock.now() >= began + self.rules.batch_timeout);
            let pressed = self.is_pressed();
            let due = full || late || pressed;
            let timer =
                self.began.map(|began| tokio::time::Instant::from_std(began + self.rules.batch_timeout));
            tokio::select! {
                biased;
                () = drain.cancelled() => {
                    if !self.batch.is_empty() {
                        let _ = self.out.send(std::mem::take(&mut self.batch)).await;
                    }
                    return Ok(());
                }
                room = room(&self.turns, &self.out), if due => {
                    let Some((turn, permit)) = room else { return Ok(()) };
                    if pressed && !late {
                        self.metrics.memory_pressure_events_total.inc();
                    }
                    let now = self.clock.now();
                    if let Some(began) = self.began.take() {
                        let took = now.saturating_duration_since(began);
                        self.metrics.batch_flush_seconds.observe(took.as_secs_f64());
                    }
                    self.batch.lap.pass("batch", now, &self.metrics);
                    permit.send(Batch { turn: Some(turn), ..std::mem::take(&mut self.batch) });
                }
                () = pay(&self.pace, &mut self.owed), if self.owed.is_some() => self.owed = None,
                next = self.reader.next(), if !full && self.open.is_none() && self.owed.is_none() => {
                    match next? {
                        Some(logged) => self.open = Some(Open { logged, cursor: None }),
                        None => return Ok(()),
                    }
                }
                () = wait_until(timer), if !due => {}
            }
        }
    }

    fn is_full(&self) -> bool {
        let records = self.batch.records();
        records >= self.rules.max_batch_size
            || self.batch.bytes >= self.rules.max_batch_bytes
            || records >= self.rules.memory_pressure_threshold
    }

    /// Whether the batch must go on because of the memory that it and those before it take, before it is as large or
    /// as old as it may be.
    fn is_pressed(&self) -> bool {
        let records = self.batch.records();
        !self.batch.is_empty()
            && records < self.rules.max_batch_size
            && self.batch.bytes < self.rules.max_batch_bytes
            && (records >= self.rules.memory_pressure_threshold || self.reader.behind() >= MEMORY_PRESSURE)
    }

    /// Moves a stretch of the open chunk into the batch: to the chunk's end, the batch's limits or the pace's step,
    /// whichever comes first.
    fn step(&mut self) -> (usize, u64) {
        let Some(open) = &mut self.open else { return (0, 0) };
        // Looked at for each stretch: a chunk that was opened in better times must not hold up what makes room. What is
        // shed must go as fast as it comes; the pace is for what is published.
        let shed = self.reader.overflows();
        let (records, bytes) =
            if shed { (usize::MAX, u64::MAX) } else { (self.pace.step(), self.pace.byte_step()) };
        let limit = self.rules.max_batch_size.min(self.rules.memory_pressure_threshold);
        let most = records.min(limit.saturating_sub(self.batch.records())).max(1);
        let room = bytes.min(self.rules.max_batch_bytes.saturating_sub(self.batch.bytes)).max(1);
        if self.began.is_none() {
            let now = self.clock.now();
            self.began = Some(now);
            self.batch.lap.begin(open.logged.received_at);
            self.batch.lap.pass("log", now, &self.metrics);
        }
        if open.cursor.is_none() || self.batch.chunks.is_empty() {
            self.batch.chunks.push(open.logged.chunk.clone());
        }
        let chunk_index = self.batch.chunks.len() as u32 - 1;
        let chunk = open.logged.chunk.clone();
        let received = self.batch.received_at.get_or_insert(open.logged.received_at);
        *received = (*received).min(open.logged.received_at);

        let (mut taken, mut bytes, mut kept) = (0, 0u64, 0u64);
        let mut reached: Vec<Option<i64>> = vec![None; chunk.ranges().len()];
        let mut stopped = None;
        let start = open.cursor.unwrap_or_else(|| chunk.first());
        for (cursor, record) in chunk.iter_from(start) {
            if taken >= most || kept >= room {
                stopped = Some(cursor);
                break;
            }
            let slot = usize::from(record.slot);
            // A life begins at the announced positions, which may lie inside a chunk.
            if open.logged.from.get(slot).is_some_and(|from| record.offset < *from) {
                continue;
            }
            let item = Item { chunk: chunk_index, cursor };
            bytes += record.body.bytes() as u64;
            // Originals may become letters, which a transaction holds so many bytes of.
            kept += record.bytes() as u64;
            taken += 1;
            match record.body {
                Body::Misfit { .. } => self.batch.misfits.push(item),
                Body::Upsert { .. } | Body::Delete { .. } if shed => self.batch.shed.push(item),
                Body::Upsert { .. } | Body::Delete { .. } => self.batch.items.push(item),
            }
            if let Some(reached) = reached.get_mut(slot) {
                *reached = Some(record.offset + 1);
            }
        }
        self.batch.bytes += kept;
        match stopped {
            Some(cursor) => {
                for (range, reached) in chunk.ranges().iter().zip(reached) {
                    if let Some(to) = reached {
                        self.batch.advance(&range.source, to);
                    }
                }
                open.cursor = Some(cursor);
            }
            None => {
                for (range, from) in chunk.ranges().iter().zip(&open.logged.from) {
                    // A chunk that lies wholly before the life's position moves nothing back.
                    self.batch.advance(&range.source, range.to.max(*from));
                }
                if let Some(lease) = self.open.take().and_then(|open| open.logged.lease) {
                    self.batch.leases.push(lease);
                }
            }
        }
        if shed { (0, 0) } else { (taken, bytes) }
    }
}

/// A place in the line to the announcer, and one before the builder; `None`: the builder is gone.
async fn room<'a>(turns: &Turns, out: &'a mpsc::Sender<Batch>) -> Option<(Turn, mpsc::Permit<'a, Batch>)> {
    tokio::select! {
        turn = turns.take() => Some((turn?, out.reserve().await.ok()?)),
        () = out.closed() => None,
    }
}

async fn pay(pace: &Pace, owed: &mut Option<Debt>) {
    if let Some(debt) = owed {
        pace.pay(debt).await;
    }
}

async fn wait_until(timer: Option<tokio::time::Instant>) {
    match timer {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
pub(super) mod tests;
