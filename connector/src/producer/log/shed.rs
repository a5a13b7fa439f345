//! Making room: chunks on disk only are replaced by what a strategy leaves of them, durably, under their own numbers.
//!
//! ```text
//!  before    [ 7 ][ 8 ][ 9 ][10 ]      drop_oldest, two chunks too many
//!  after     [ 7 accounts for 7..8 ][ 9 ][10 ]
//! ```
//!
//! All of it happens on the keeper's thread, as paging back does: a chunk is replaced before it is read or after, never
//! between. What is replaced counts as shed once it is on the disk.
//!
//! Owns: which chunks, and how many. Does not own: what is left of them (`producer/shed`).

use std::sync::Arc;

use super::judge::Cursor;
use super::queue::Spilled;
use super::read::settle;
use super::room::reclaim_if_due;
use super::{Log, Options, Shared};
use crate::disk::{self, Database};
use crate::format::chunk::{Chunk, Range};
use crate::producer::shed::{Shed, misfits_of, nothing_of, sample_of};

/// Chunks that are replaced by one write: what is shed in the same breath costs one fsync.
const AT_ONCE: usize = 64;
/// The same, for chunks that have to be read.
const READ_AT_ONCE: usize = 8;

/// Told of records that were shed, once they are gone from the disk, and of the offsets among which they were.
pub type OnShed = Arc<dyn Fn(u64, &[Range]) + Send + Sync>;

/// A run of chunks, by number, and what takes its place under the first number.
#[derive(Debug)]
pub(super) struct Replaced {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) chunk: Chunk,
}

/// What is done to the log.
#[derive(Debug, Default)]
struct Work {
    replaced: Vec<Replaced>,
    /// A run that may go on.
    open: Option<(u64, u64, Vec<Range>)>,
    records: u64,
    ranges: Vec<Range>,
    /// Where sampling goes on.
    sampled: u64,
}

impl Work {
    /// Nothing is left of chunk `seq`, which accounts for `ranges`. Joins the run before it where all of them do.
    fn empty(&mut self, seq: u64, ranges: &[Range]) {
        if let Some((_, last, joined)) = &mut self.open
            && ranges.iter().all(|range| joins(joined, range))
        {
            *last = seq;
            for range in ranges {
                match joined.iter_mut().find(|other| other.source == range.source) {
                    Some(other) => other.to = other.to.max(range.to),
                    None => joined.push(range.clone()),
                }
            }
        } else {
            self.close();
            self.open = Some((seq, seq, ranges.to_vec()));
        }
    }

    fn replace(&mut self, seq: u64, chunk: Chunk) {
        self.close();
        self.replaced.push(Replaced { first: seq, last: seq, chunk });
    }

    fn close(&mut self) {
        if let Some((first, last, ranges)) = self.open.take() {
            self.replaced.push(Replaced { first, last, chunk: nothing_of(&ranges) });
        }
    }
}

/// Whether `range` goes on where its partition's range ends, or is of another partition.
fn joins(ranges: &[Range], range: &Range) -> bool {
    let same = ranges.iter().find(|other| other.source == range.source);
    same.is_none_or(|other| range.from >= other.from && range.from <= other.to)
}

impl Log {
    /// Begins to make room, where the log holds more than it shall and has a strategy for that. Never blocks.
    pub fn make_room(&self) {
        let inner = &*self.0;
        if !matches!(inner.options.shed, Shed::DropNewest | Shed::DropOldest | Shed::Sample) {
            return;
        }
        let Some(keeper) = inner.keeper() else { return };
        let mut queue = inner.shared.queue();
        let full = queue.stats().log_bytes > inner.options.max_log_bytes;
        if !full || queue.shedding || queue.failed.is_some() || queue.spilled().next().is_none() {
            return;
        }
        let (shared, options, life) = (inner.shared.clone(), inner.options.clone(), queue.life);
        queue.shedding = keeper.run(move |database| {
            let made = make_room(database, &shared, &options, life);
            settle(database, &shared, life, made);
            let mut queue = shared.queue();
            if queue.life == life {
                queue.shedding = false;
            }
        });
    }
}

fn make_room(database: &Database, shared: &Shared, options: &Options, life: u64) -> Result<(), disk::Error> {
    let mut fruitless = false;
    loop {
        let (chosen, cursor, excess) = {
            let queue = shared.queue();
            let excess = queue.stats().log_bytes.saturating_sub(options.max_log_bytes);
            if queue.life != life || queue.closed || queue.failed.is_some() || excess == 0 {
                return Ok(());
            }
            let chosen = match options.shed {
                Shed::Sample => queue.to_sample(READ_AT_ONCE),
                shed => queue.to_shed(shed == Shed::DropNewest, excess, AT_ONCE),
            };
            (chosen, queue.cursor.clone(), excess)
        };
        let work = match options.shed {
            // Another time keeps others, so that a sample of a sample is smaller.
            Shed::Sample => sample(database, &chosen, &cursor, excess, options.clock.wall_ms() as u64)?,
            _ => drop_all(database, &chosen, &cursor)?,
        };
        if options.shed == Shed::Sample {
            shared.queue().sample_from = work.sampled;
            // At the end of a pass that found nothing there is nothing left to find.
            if chosen.is_empty() && std::mem::replace(&mut fruitless, true) {
                return Ok(());
            }
        }
        if work.replaced.is_empty() {
            if options.shed == Shed::Sample {
                continue;
            }
            return Ok(());
        }
        fruitless = false;
        database.replace(work.replaced.iter().map(|new| (new.first, new.last, &new.chunk)))?;
        {
            let mut queue = shared.queue();
            // The next life finds them as they are now.
            if queue.life == life {
                let freed: u64 = work.replaced.iter().map(|new| queue.replaced(new)).sum();
                queue.unreclaimed_bytes += freed;
            }
        }
        if let Some(told) = options.on_shed.as_ref().filter(|_| work.records > 0) {
            told(work.records, &work.ranges);
        }
        reclaim_if_due(database, shared, options.reclaim_bytes())?;
    }
}

fn drop_all(database: &Database, chosen: &[Spilled], cursor: &Cursor) -> Result<Work, disk::Error> {
    let mut work = Work::default();
    for spilled in chosen {
        let summary = database.summary(spilled.seq)?;
        let entered = |range: &Range| cursor.next(&range.source).is_some_and(|next| next > range.from);
        if summary.misfits == 0 && !summary.ranges.iter().any(entered) {
            work.empty(spilled.seq, &summary.ranges);
            work.records += u64::from(summary.records);
        } else {
            let (rest, gone) = misfits_of(&database.chunk(spilled.seq)?, cursor);
            work.replace(spilled.seq, rest);
            work.records += gone;
        }
        work.ranges.extend(summary.ranges);
    }
    work.close();
    Ok(work)
}

fn sample(
    database: &Database,
    chosen: &[Spilled],
    cursor: &Cursor,
    excess: u64,
    salt: u64,
) -> Result<Work, disk::Error> {
    let mut work = Work::default();
    let mut freed = 0;
    for spilled in chosen {
        if freed >= excess {
            break;
        }
        let (rest, gone) = sample_of(&database.chunk(spilled.seq)?, cursor, salt);
        work.sampled = spilled.seq + 1;
        // What was announced before is nobody's loss, but room that can be had.
        if rest.records() < spilled.records as usize {
            freed += u64::from(spilled.bytes).saturating_sub(rest.len() as u64);
            work.ranges.extend_from_slice(rest.ranges());
            work.replace(spilled.seq, rest);
            work.records += gone;
        }
    }
    Ok(work)
}
