//! The log in memory: what has been handed on, what lies ready, and what is on disk only.
//!
//! ```text
//!            taken                    memory              spilled
//!   [ handed on, not announced ] [ ready to hand on ] [ on disk only ]   <- appended
//!   ^ trimmed up to here                                                ^ durable up to here, or further back
//! ```
//!
//! The three follow one another in the order of the log. A chunk that was appended goes to memory if nothing is
//! spilled or waits before it and there is room; else once it is durable, or then its bytes are dropped and only its
//! number is kept: that is all that spilling does.
//!
//! Owns: that order and its counts. Does not own: reading back (`read`), deleting (`Log::trim`), locks.

use std::collections::VecDeque;
use std::time::Instant;

use super::Error;
use super::judge::Cursor;
use super::shed::Replaced;
use crate::disk::Waiting;
use crate::format::chunk::Chunk;
use crate::gauge::{Budget, Lease};
use crate::record::{Position, SourcePartition};

/// A chunk that lies ready.
#[derive(Debug)]
pub struct Ready {
    /// Its number.
    pub seq: u64,
    /// The chunk.
    pub chunk: Chunk,
    /// Its bytes.
    pub lease: Lease,
    /// When it was appended.
    pub received_at: Instant,
}

/// A chunk that is on disk only.
#[derive(Clone, Copy, Debug)]
pub struct Spilled {
    /// Its number.
    pub seq: u64,
    /// Its bytes.
    pub bytes: u32,
    /// Its records.
    pub records: u32,
    /// Misfits among them.
    pub misfits: u32,
    /// Its checksum.
    pub sum: u64,
    /// When it was appended; found at a resume: when that was.
    pub received_at: Instant,
}

/// A chunk that was handed on.
#[derive(Debug)]
struct Taken {
    seq: u64,
    bytes: u32,
    records: u32,
    /// What must be announced before it can go.
    ends: Vec<(SourcePartition, i64)>,
}

/// How much may lie ready; known once there is a reader.
#[derive(Clone, Debug)]
pub struct Room {
    /// Most records.
    pub records: usize,
    /// Most bytes, shared with the stages behind.
    pub memory: Budget,
}

/// The queue of one life.
#[derive(Debug, Default)]
pub struct Queue {
    /// Counts the lives that this process has had with the log.
    pub life: u64,
    /// Nothing is handed on any more, for good.
    pub closed: bool,
    /// Why nothing is handed on any more, until the next life.
    pub failed: Option<Error>,
    /// The disk or RocksDB has refused something, on whichever thread. RocksDB may have stopped over it: it goes on being
    /// read and takes no write until it is opened anew, which the next life does.
    pub refused: bool,
    /// A job is reading chunks back.
    pub paging: bool,
    /// A job is making room.
    pub shedding: bool,
    /// Chunks from this number on have not been sampled in the present pass.
    pub sample_from: u64,
    /// How much may lie ready.
    pub room: Option<Room>,
    /// How far the reader has followed each partition.
    pub cursor: Cursor,
    memory: VecDeque<Ready>,
    spilled: VecDeque<Spilled>,
    taken: VecDeque<Taken>,
    memory_records: u64,
    /// Bytes of the memory that the chunks which lie ready take.
    memory_bytes: u64,
    spilled_records: u64,
    records: u64,
    bytes: u64,
    /// Bytes of chunks that were handed on and are not trimmed.
    taken_bytes: u64,
    /// The number after the last durable chunk.
    durable: u64,
    /// The number after the last chunk that went to memory before it was durable.
    ahead: u64,
    /// Bytes of chunks that were appended, and wait for being durable to be taken in.
    coming_bytes: u64,
    /// All numbers below have been deleted, or are about to be.
    forgotten: u64,
    /// Bytes trimmed that are still there.
    pub trimmed_bytes: u64,
    /// Bytes deleted whose room has not been given back.
    pub unreclaimed_bytes: u64,
}

impl Queue {
    /// Before its first life nothing is known but the first chunk that is there. A log that is closed without one, since
    /// Kafka was never reached, would else say that all chunks from number 0 on were still needed.
    pub fn opened(&mut self, first: u64) {
        if self.durable == 0 {
            (self.durable, self.forgotten) = (first, first);
        }
    }

    /// The queue of the next life, with these chunks on disk and nothing in memory.
    pub fn next_life(&self, cursor: Cursor, durable: u64, spilled: VecDeque<Spilled>) -> Queue {
        let records = spilled.iter().map(|chunk| u64::from(chunk.records)).sum();
        Queue {
            life: self.life,
            closed: self.closed,
            refused: self.refused,
            cursor,
            durable,
            forgotten: spilled.front().map_or(durable, |first| first.seq),
            unreclaimed_bytes: self.unreclaimed_bytes + self.trimmed_bytes,
            spilled_records: records,
            records,
            bytes: spilled.iter().map(|chunk| u64::from(chunk.bytes)).sum(),
            spilled,
            ..Queue::default()
        }
    }

    /// Takes in a chunk that was appended, and is on its way to the disk. False: it has to wait until it is there, since
    /// something before it waits, or there is no room.
    pub fn appended(&mut self, seq: u64, chunk: &Chunk, received_at: Instant) -> bool {
        let (bytes, records) = (chunk.len() as u64, chunk.records());
        let is_next = self.spilled.is_empty() && seq == self.ahead.max(self.durable);
        let room = self.room.as_ref().filter(|_| is_next && self.has_room(records));
        let Some(lease) = room.and_then(|room| room.memory.try_lease(bytes)) else {
            self.coming_bytes += bytes;
            return false;
        };
        self.ahead = seq + 1;
        self.bytes += bytes;
        self.records += records as u64;
        self.ready(Ready { seq, chunk: chunk.clone(), lease, received_at });
        true
    }

    /// Bytes that were appended and are not taken in: they will be once they are durable.
    pub fn coming_bytes(&self) -> u64 {
        self.coming_bytes
    }

    /// Takes in a chunk that has become durable, unless it was before.
    pub fn committed(&mut self, Waiting { seq, chunk, received_at, .. }: Waiting) {
        let (bytes, records, misfits) = (chunk.len() as u64, chunk.records(), chunk.misfits());
        self.durable = seq + 1;
        if seq < self.ahead {
            return;
        }
        self.coming_bytes -= bytes;
        self.bytes += bytes;
        self.records += records as u64;
        if self.spilled.is_empty()
            && self.has_room(records)
            && let Some(lease) = self.room.as_ref().and_then(|room| room.memory.try_lease(bytes))
        {
            self.ready(Ready { seq, chunk, lease, received_at });
        } else {
            self.spilled_records += records as u64;
            self.spilled.push_back(Spilled {
                seq,
                bytes: bytes as u32,
                records: records as u32,
                misfits: misfits as u32,
                sum: chunk.sum(),
                received_at,
            });
        }
    }

    /// Whether so many records more may lie ready. One chunk always may.
    pub fn has_room(&self, records: usize) -> bool {
        self.memory.is_empty()
            || self.room.as_ref().is_some_and(|room| self.memory_records as usize + records <= room.records)
    }

    fn ready(&mut self, ready: Ready) {
        self.memory_records += ready.chunk.records() as u64;
        self.memory_bytes += ready.lease.bytes();
        self.memory.push_back(ready);
    }

    /// The share of the memory that is in use behind the log: by what was handed on and is not announced.
    pub fn behind(&self) -> f64 {
        self.room.as_ref().map_or(0.0, |room| {
            room.memory.used().saturating_sub(self.memory_bytes) as f64 / room.memory.capacity().max(1) as f64
        })
    }

    /// Whether less than half of the room is in use: time to read on.
    pub fn runs_low(&self) -> bool {
        self.memory.is_empty()
            || self.room.as_ref().is_some_and(|room| (self.memory_records as usize) < room.records / 2)
    }

    /// Bytes that have not been handed on.
    pub fn waiting_bytes(&self) -> u64 {
        self.bytes - self.taken_bytes
    }

    /// A run of chunks on disk only, from the oldest (or up to the newest) that has something to shed, as many as hold
    /// `bytes`, about `most` at most. An empty one before them comes along: what is left of all of them is one.
    pub fn to_shed(&self, newest: bool, bytes: u64, most: usize) -> Vec<Spilled> {
        let sheds = |chunk: &Spilled| chunk.records > chunk.misfits;
        let end =
            if newest { self.spilled.iter().rposition(sheds) } else { self.spilled.iter().position(sheds) };
        let Some(end) = end else { return Vec::new() };
        let mut found = 0;
        let mut wanted = |chunk: &&Spilled| {
            let more = found < bytes;
            found += if sheds(chunk) { u64::from(chunk.bytes) } else { 0 };
            more
        };
        let (mut from, to) = if newest {
            let count = self.spilled.range(..=end).rev().take(most).take_while(&mut wanted).count();
            (end + 1 - count, end + 1)
        } else {
            (end, end + self.spilled.range(end..).take(most).take_while(&mut wanted).count())
        };
        if from > 0 && self.spilled.get(from - 1).is_some_and(|before| before.records == 0) {
            from -= 1;
        }
        self.spilled.range(from..to).copied().collect()
    }

    /// The next chunks to sample. None: the pass has come to its end.
    pub fn to_sample(&self, most: usize) -> Vec<Spilled> {
        let from = self.spilled.partition_point(|chunk| chunk.seq < self.sample_from);
        let next = self.spilled.range(from..).filter(|chunk| chunk.records > chunk.misfits);
        next.take(most).copied().collect()
    }

    /// Chunks on disk only were replaced there; gives the bytes that are free by that.
    pub fn replaced(&mut self, new: &Replaced) -> u64 {
        let from = self.spilled.partition_point(|chunk| chunk.seq < new.first);
        let to = self.spilled.partition_point(|chunk| chunk.seq <= new.last);
        let Some(first) = self.spilled.get(from).copied() else { return 0 };
        let (mut bytes, mut records) = (0, 0);
        for chunk in self.spilled.range(from..to) {
            bytes += u64::from(chunk.bytes);
            records += u64::from(chunk.records);
        }
        let left = Spilled {
            bytes: new.chunk.len() as u32,
            records: new.chunk.records() as u32,
            misfits: new.chunk.misfits() as u32,
            sum: new.chunk.sum(),
            ..first
        };
        self.bytes = self.bytes - bytes + u64::from(left.bytes);
        self.records = self.records - records + u64::from(left.records);
        self.spilled_records = self.spilled_records - records + u64::from(left.records);
        if to - from > 1 {
            self.spilled.drain(from + 1..to);
        }
        if let Some(place) = self.spilled.get_mut(from) {
            *place = left;
        }
        bytes.saturating_sub(u64::from(left.bytes))
    }

    /// The chunks on disk only, next first.
    pub fn spilled(&self) -> impl Iterator<Item = &Spilled> {
        self.spilled.iter()
    }

    /// The first chunk on disk only is in memory again.
    pub fn paged(&mut self, chunk: Chunk, lease: Lease) {
        let Some(spilled) = self.spilled.pop_front() else { return };
        self.spilled_records -= u64::from(spilled.records);
        self.ready(Ready { seq: spilled.seq, chunk, lease, received_at: spilled.received_at });
    }

    /// All chunks on disk only are gone; gives their records.
    pub fn cut(&mut self) -> u64 {
        self.bytes -= self.spilled.iter().map(|chunk| u64::from(chunk.bytes)).sum::<u64>();
        self.records -= self.spilled_records;
        self.spilled.clear();
        std::mem::take(&mut self.spilled_records)
    }

    /// Hands on the next chunk that lies ready and has anything new in it.
    pub fn take(&mut self) -> Option<(Ready, Vec<i64>)> {
        while let Some(ready) = self.memory.pop_front() {
            let (bytes, records) = (ready.chunk.len() as u32, ready.chunk.records() as u32);
            self.memory_records -= u64::from(records);
            self.memory_bytes -= ready.lease.bytes();
            let entered = self.cursor.enter(&ready.chunk);
            let ends = entered.as_ref().map_or(Vec::new(), |(chunk, _)| {
                chunk.ranges().iter().map(|range| (range.source.clone(), range.to)).collect()
            });
            self.taken_bytes += u64::from(bytes);
            self.taken.push_back(Taken { seq: ready.seq, bytes, records, ends });
            if let Some((chunk, from)) = entered {
                return Some((Ready { chunk, ..ready }, from));
            }
        }
        None
    }

    /// Lets go of the chunks at the beginning that are wholly announced.
    pub fn trim(&mut self, announced: &[Position]) {
        let announced = Cursor::at(announced);
        let is_announced = |taken: &Taken| {
            taken.ends.iter().all(|(source, to)| announced.next(source).is_some_and(|next| *to <= next))
        };
        while self.taken.front().is_some_and(is_announced) {
            let Some(taken) = self.taken.pop_front() else { return };
            self.bytes -= u64::from(taken.bytes);
            self.taken_bytes -= u64::from(taken.bytes);
            self.trimmed_bytes += u64::from(taken.bytes);
            self.records -= u64::from(taken.records);
        }
    }

    /// The first number that is still needed. None that is not on the disk yet: deleted before it is written, it would
    /// stay there.
    fn needed(&self) -> u64 {
        let first = [
            self.taken.front().map(|taken| taken.seq),
            self.memory.front().map(|ready| ready.seq),
            self.spilled.front().map(|spilled| spilled.seq),
        ];
        first.into_iter().flatten().next().unwrap_or(self.durable).min(self.durable)
    }

    /// The numbers that are to be deleted now, `[from, to)`.
    pub fn take_forget(&mut self) -> (u64, u64) {
        let (from, to) = (self.forgotten, self.needed());
        self.forgotten = to;
        self.unreclaimed_bytes += std::mem::take(&mut self.trimmed_bytes);
        (from, to)
    }

    /// What it holds.
    pub fn stats(&self) -> super::Stats {
        super::Stats {
            log_bytes: self.bytes,
            pending_records: self.records,
            spilled_records: self.spilled_records,
        }
    }
}
