//! A dead-letter topic as a list: one line for each record, however often it failed.
//!
//! A record that was replayed and failed again has another letter, and so may one that was not ([`super::record`]): the
//! line shows the last, and how many there are. Of those that were replayed equally often the last is the one that was
//! written last: the later one of a partition, and of two partitions that which says the later time. (The topic itself could hold only
//! the last of each key by compaction, but a letter's key is its record's, so that many records would share one line, and
//! letters without key could not be written at all: docs/operations.md.)
//!
//! ```text
//!  1  all letters --> which is the last of its record, and how many there are     32 bytes a letter, 40 a record
//!  2  the chosen ones once more --> lines
//! ```
//!
//! Owns: which letter of a record is the last. Does not own: which are of one record (`record`), reading them (`topic`), what
//! replays made of them (`fate`), how a line looks (`cli/dlq`).

use std::collections::hash_map::Entry;
use std::ops::ControlFlow;

use super::Error;
use super::fate::{Fate, Replays};
use super::found::{Found, Writer};
use super::held::Place;
use super::record::Record;
use super::table::Map;
use super::topic::Reader;
use crate::format::letter::Elsewhere;

/// A letter without its value and headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its partition in the dead-letter topic.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// Who wrote it.
    pub writer: Writer,
    /// The dataset, connector or consumer group that gave up.
    pub owner: String,
    /// Where the record was.
    pub source: Option<Place>,
    /// The record's timestamp, milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// When it failed last.
    pub failed_at: i64,
    /// Where it failed.
    pub stage: String,
    /// The kind of failure.
    pub class: String,
    /// What was wrong.
    pub message: String,
    /// The record's key.
    pub key: Option<Vec<u8>>,
    /// How often it was replayed.
    pub replays: u32,
    /// How many letters of it there are.
    pub failures: u32,
    /// Bytes of its value; `None` where it has none.
    pub value_bytes: Option<usize>,
    /// What of it lies in a blob.
    pub elsewhere: Elsewhere,
    /// What replays have made of this letter; `None` where that is not known.
    pub fate: Option<Fate>,
}

impl Line {
    /// Of a letter, seen once.
    pub fn of(found: &Found<'_>) -> Line {
        Line {
            partition: found.raw.partition,
            offset: found.raw.offset,
            writer: found.writer,
            owner: found.owner.to_owned(),
            source: found.source.map(Place::of),
            timestamp: found.timestamp,
            failed_at: found.failed_at,
            stage: found.stage.to_owned(),
            class: found.class.to_owned(),
            message: found.message.to_owned(),
            key: found.raw.key.map(<[u8]>::to_vec),
            replays: found.replays,
            failures: 1,
            value_bytes: found.raw.value.map(<[u8]>::len),
            elsewhere: found.elsewhere.clone(),
            fate: None,
        }
    }
}

/// The first reading: which letters are the last of their records.
#[derive(Debug)]
pub struct Listing {
    /// In the order of the topic.
    rows: Vec<Row>,
    /// The last one of each record so far.
    of: Map<Record, u32>,
    most: usize,
    replays: Option<Replays>,
}

#[derive(Debug)]
struct Row {
    offset: i64,
    failed_at: i64,
    partition: i32,
    replays: u32,
    /// Of the last one of a record, how many there are; of another, a row that has replaced it.
    count: u32,
    is_last: bool,
    is_meant: bool,
}

impl Row {
    fn of(found: &Found<'_>, is_meant: bool) -> Row {
        Row {
            offset: found.raw.offset,
            failed_at: found.failed_at,
            partition: found.raw.partition,
            replays: found.replays,
            count: 1,
            is_last: true,
            is_meant,
        }
    }

    /// Whether it comes after another one of its record that was read before it. Each replay follows one failure, whatever
    /// clocks say.
    fn is_after(&self, other: &Row) -> bool {
        let written_after = self.partition == other.partition || self.failed_at >= other.failed_at;
        self.replays > other.replays || self.replays == other.replays && written_after
    }
}

impl Default for Listing {
    fn default() -> Listing {
        Listing::within(u32::MAX as usize)
    }
}

impl Listing {
    /// Of a topic with at most so many letters: each takes memory, some 80 bytes.
    pub fn within(most: usize) -> Listing {
        Listing { rows: Vec::new(), of: Map::default(), most: most.min(u32::MAX as usize), replays: None }
    }

    /// Has the lines say what replays have made of their letters.
    pub fn knowing(&mut self, replays: Option<Replays>) {
        self.replays = replays;
    }

    /// Takes a letter, in the order of the topic. One that is not meant counts all the same: it may be the last of a
    /// record whose earlier ones are.
    ///
    /// # Errors
    /// [`Error::TooManyLetters`].
    pub fn take(&mut self, found: &Found<'_>, is_meant: bool) -> Result<(), Error> {
        if self.rows.len() >= self.most {
            return Err(Error::TooManyLetters(self.most));
        }
        let at = self.rows.len() as u32;
        let mut row = Row::of(found, is_meant);
        if let Some(record) = Record::of(found) {
            match self.of.entry(record) {
                Entry::Vacant(none) => {
                    none.insert(at);
                }
                Entry::Occupied(mut known) => {
                    if let Some(last) = self.rows.get_mut(*known.get() as usize) {
                        if row.is_after(last) {
                            row.count += last.count;
                            (last.count, last.is_last) = (at, false);
                            known.insert(at);
                        } else {
                            last.count += 1;
                            (row.count, row.is_last) = (*known.get(), false);
                        }
                    }
                }
            }
        }
        self.rows.push(row);
        Ok(())
    }

    /// The first `most` of those that are meant, and the last of their records: the lines are made of them by a second reading.
    pub fn chosen(self, most: usize) -> Chosen {
        let Listing { rows, replays, .. } = self;
        let rows = rows.into_iter().filter(|row| row.is_meant && row.is_last).take(most).collect();
        Chosen { rows, next: 0, replays, lines: Vec::new() }
    }

    /// The first `most` of those that are meant, also those that a later one has replaced.
    pub fn all(mut self, most: usize) -> Chosen {
        let mut rows = Vec::new();
        for at in 0..self.rows.len() as u32 {
            if rows.len() >= most {
                break;
            }
            let last = self.last(at);
            let count = self.rows.get(last as usize).map_or(1, |row| row.count);
            if let Some(row) = self.rows.get(at as usize).filter(|row| row.is_meant) {
                rows.push(Row { count, ..*row });
            }
        }
        Chosen { rows, next: 0, replays: self.replays, lines: Vec::new() }
    }

    /// The last one of the record that a row is of. The way there is made short for the next one that asks.
    fn last(&mut self, at: u32) -> u32 {
        let mut last = at;
        while let Some(row) = self.rows.get(last as usize).filter(|row| !row.is_last) {
            last = row.count;
        }
        let mut on = at;
        while let Some(row) = self.rows.get_mut(on as usize).filter(|row| !row.is_last) {
            on = std::mem::replace(&mut row.count, last);
        }
        last
    }
}

/// A letter that was chosen, among those of its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Among {
    /// How many there are.
    pub failures: u32,
    /// Whether it is the last one.
    pub is_last: bool,
}

/// The letters of which lines are made.
#[derive(Debug)]
pub struct Chosen {
    rows: Vec<Row>,
    next: usize,
    replays: Option<Replays>,
    lines: Vec<Line>,
}

impl Chosen {
    /// Where the next one stands, partition and offset: to be read from there on.
    pub fn next(&self) -> Option<(i32, i64)> {
        self.rows.get(self.next).map(|row| (row.partition, row.offset))
    }

    /// A letter of the second reading, in the same order: what is known of it, where it is chosen; and whether the partition
    /// has more of them.
    pub fn meet(&mut self, found: &Found<'_>) -> (Option<Among>, bool) {
        let (partition, offset) = (found.raw.partition, found.raw.offset);
        let mut among = None;
        while let Some(row) = self.rows.get(self.next).filter(|row| row.partition == partition) {
            if row.offset > offset {
                return (among, true);
            }
            // Else retention has taken it meanwhile.
            if row.offset == offset {
                among = Some(Among { failures: row.count, is_last: row.is_last });
            }
            self.next += 1;
        }
        (among, false)
    }

    /// Takes a letter of the second reading, in the same order. False: the partition has no more of them.
    pub fn take(&mut self, found: &Found<'_>) -> bool {
        let (among, more) = self.meet(found);
        if let Some(Among { failures, .. }) = among {
            let fate = self.replays.as_ref();
            let fate = fate.map(|replays| replays.fate(found.raw.partition, found.raw.offset));
            self.lines.push(Line { failures, fate, ..Line::of(found) });
        }
        more
    }

    /// The second reading.
    ///
    /// # Errors
    /// Kafka's; [`Error::Stopped`].
    pub fn read(&mut self, reader: &mut Reader) -> Result<(), Error> {
        while let Some((partition, from)) = self.next() {
            reader.begin(partition, from)?;
            reader.read(partition, |found| {
                Ok(if self.take(&found) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            self.leave(partition);
        }
        Ok(())
    }

    /// What was not found of a partition is gone.
    pub fn leave(&mut self, partition: i32) {
        while self.next().is_some_and(|(at, _)| at == partition) {
            self.next += 1;
        }
    }

    /// The lines, in the order of the topic.
    pub fn lines(self) -> Vec<Line> {
        self.lines
    }
}

#[cfg(test)]
mod tests;
