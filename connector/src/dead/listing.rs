//! A dead-letter topic as a list: one line for each record, however often it failed.
//!
//! A record that was replayed and failed again has another letter, with the same key, timestamp and partition, and with
//! `stillwell.replays` one higher; the line shows the last, and how many there are. (The topic itself could hold only the
//! last of each key by compaction, but a letter's key is its record's, so that many records would share one line, and
//! letters without key could not be written at all: docs/operations.md.)
//!
//! ```text
//!  1  all letters --> which is the last of its record, and how many there are     24 bytes a letter, 40 a record
//!  2  the chosen ones once more --> lines
//! ```
//!
//! Owns: which letters are of one record. Does not own: reading them (`topic`), what replays made of them (`fate`), how a line
//! looks (`cli/dlq`).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::ControlFlow;

use super::Error;
use super::fate::{Fate, Replays};
use super::found::{Found, Writer};
use super::held::Place;
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

/// What all letters of a record have in common, topic, partition, timestamp and key, and which of them it is: hashed.
fn hashed(found: &Found<'_>, replays: u32) -> Option<u128> {
    let source = found.source?;
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(&xxhash_rust::xxh3::xxh3_128(source.topic.as_bytes()).to_le_bytes());
    hash.update(&source.partition.to_le_bytes());
    hash.update(&found.timestamp.to_le_bytes());
    hash.update(&replays.to_le_bytes());
    if let Some(key) = found.raw.key {
        hash.update(&[1]);
        hash.update(key);
    }
    Some(hash.digest128())
}

/// No row.
const NONE: u32 = u32::MAX;

/// The first reading: which letters are the last of their records.
#[derive(Debug)]
pub struct Listing {
    /// In the order of the topic.
    rows: Vec<Row>,
    /// The newest of the rows that look the same, by which the others are found.
    of: HashMap<u128, u32>,
    most: usize,
    replays: Option<Replays>,
}

#[derive(Debug)]
struct Row {
    offset: i64,
    partition: i32,
    failures: u32,
    /// The one before that looks the same.
    next: u32,
    shown: bool,
}

impl Default for Listing {
    fn default() -> Listing {
        Listing::within(NONE as usize)
    }
}

impl Listing {
    /// Of a topic with at most so many letters: each takes memory, some 70 bytes.
    pub fn within(most: usize) -> Listing {
        Listing { rows: Vec::new(), of: HashMap::new(), most: most.min(NONE as usize), replays: None }
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
        let at = self.rows.len();
        if at >= self.most {
            return Err(Error::TooManyLetters(self.most));
        }
        let (offset, partition) = (found.raw.offset, found.raw.partition);
        let mut row = Row { offset, partition, failures: 1, next: NONE, shown: is_meant };
        // Each replay follows one failure: two records that look the same are still two.
        let before = found.replays.checked_sub(1).and_then(|replays| hashed(found, replays));
        if let Some(failures) = before.and_then(|record| self.replace(record)) {
            row.failures += failures;
        }
        if let Some(record) = hashed(found, found.replays) {
            row.next = self.of.insert(record, at as u32).unwrap_or(NONE);
        }
        self.rows.push(row);
        Ok(())
    }

    /// The newest letter that looks so is no record's last any more. How often it had failed.
    fn replace(&mut self, record: u128) -> Option<u32> {
        let Entry::Occupied(mut newest) = self.of.entry(record) else { return None };
        let row = self.rows.get_mut(*newest.get() as usize)?;
        row.shown = false;
        match row.next {
            NONE => drop(newest.remove()),
            next => *newest.get_mut() = next,
        }
        Some(row.failures)
    }

    /// The first `most` of those that are meant: the lines are made of them by a second reading.
    pub fn chosen(self, most: usize) -> Chosen {
        let Listing { rows, replays, .. } = self;
        let rows = rows.into_iter().filter(|row| row.shown).take(most).collect();
        Chosen { rows, next: 0, replays, lines: Vec::new() }
    }
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

    /// Takes a letter of the second reading, in the same order. False: the partition has no more of them.
    pub fn take(&mut self, found: &Found<'_>) -> bool {
        let (partition, offset) = (found.raw.partition, found.raw.offset);
        while let Some(row) = self.rows.get(self.next).filter(|row| row.partition == partition) {
            if row.offset > offset {
                return true;
            }
            // Else retention has taken it meanwhile.
            if row.offset == offset {
                let fate = self.replays.as_ref().map(|replays| replays.fate(partition, offset));
                self.lines.push(Line { failures: row.failures, fate, ..Line::of(found) });
            }
            self.next += 1;
        }
        false
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
mod tests {
    use super::*;
    use crate::dead::found::Raw;
    use crate::format::letter::header;

    /// A topic's letters: key, timestamp, replays, and whether it is meant.
    type Letter = (Option<&'static str>, i64, u32, bool);

    fn with<T>(offset: usize, letter: &Letter, take: impl FnOnce(&Found<'_>) -> T) -> T {
        let (key, timestamp, replays, _) = *letter;
        let raw = Raw {
            partition: 0,
            offset: offset as i64,
            timestamp,
            key: key.map(str::as_bytes),
            value: Some(b"{"),
        };
        let source = (offset + 100).to_string();
        let (replays, timestamp) = (replays.to_string(), timestamp.to_string());
        let headers = [
            (header::TOPIC, "orders"),
            (header::PARTITION, "0"),
            (header::OFFSET, &source),
            (header::REPLAYS, &replays),
            (header::FAILED_AT, "5"),
            (header::ORIGINAL_TIMESTAMP, &timestamp),
        ];
        take(&Found::read(raw, headers.iter().map(|(name, value)| (*name, Some(value.as_bytes())))))
    }

    fn chosen(letters: &[Letter], most: usize) -> Chosen {
        let mut listing = Listing::default();
        for (offset, letter) in letters.iter().enumerate() {
            with(offset, letter, |found| listing.take(found, letter.3)).unwrap();
        }
        listing.chosen(most)
    }

    fn shown(letters: &[Letter]) -> Vec<(i64, u32, u32)> {
        let mut chosen = chosen(letters, usize::MAX);
        for (offset, letter) in letters.iter().enumerate() {
            with(offset, letter, |found| chosen.take(found));
        }
        chosen.lines().iter().map(|line| (line.offset, line.replays, line.failures)).collect()
    }

    #[test]
    fn a_record_that_fails_again_is_still_one() {
        let (a, b) = (Some("a"), Some("b"));
        let letters = [(a, 1, 0, true), (b, 1, 0, true), (a, 1, 1, true), (a, 2, 0, true), (a, 1, 2, true)];
        assert_eq!(shown(&letters), [(1, 0, 1), (3, 0, 1), (4, 2, 3)]);
    }

    #[test]
    fn two_that_look_the_same_are_two() {
        let of = |replays| (None, 1, replays, true);
        assert_eq!(shown(&[of(0), of(0), of(1)]), [(0, 0, 1), (2, 1, 2)]);
        assert_eq!(shown(&[of(0), of(0), of(1), of(1)]), [(2, 1, 2), (3, 1, 2)]);
        assert_eq!(
            shown(&[of(1), (Some(""), 1, 2, true)]),
            [(0, 1, 1), (1, 2, 1)],
            "no key, and an empty one"
        );
    }

    #[test]
    fn a_last_letter_that_is_not_meant_hides_the_earlier_ones() {
        let (a, b) = (Some("a"), Some("b"));
        assert_eq!(shown(&[(a, 1, 0, true), (a, 1, 1, false), (b, 1, 0, true)]), [(2, 0, 1)]);
    }

    #[test]
    fn of_a_long_topic_only_what_is_shown_is_held() {
        assert!(size_of::<Row>() <= 24);
        let of = |timestamp| (Some("a"), timestamp, 0, true);
        let letters: Vec<Letter> = (0..100).map(of).collect();
        let mut chosen = chosen(&letters, 2);
        assert_eq!((chosen.rows.len(), chosen.next()), (2, Some((0, 0))));
        assert!(with(0, &letters[0], |found| chosen.take(found)));
        assert!(!with(1, &letters[1], |found| chosen.take(found)), "no more has to be read");
        assert_eq!((chosen.next(), chosen.lines().len()), (None, 2));

        let mut listing = Listing::within(2);
        for (offset, letter) in letters.iter().take(2).enumerate() {
            with(offset, letter, |found| listing.take(found, true)).unwrap();
        }
        let error = with(2, &letters[2], |found| listing.take(found, true)).unwrap_err();
        assert!(
            matches!(error, Error::TooManyLetters(2)) && error.to_string().contains("dlq list"),
            "{error}"
        );
    }

    #[test]
    fn what_retention_takes_between_the_readings_is_left_out() {
        let letters: Vec<Letter> = (0..4).map(|timestamp| (Some("a"), timestamp, 0, true)).collect();
        let mut chosen = chosen(&letters, usize::MAX);
        assert!(with(2, &letters[2], |found| chosen.take(found)));
        chosen.leave(0);
        assert_eq!(chosen.next(), None);
        assert_eq!(chosen.lines().iter().map(|line| line.offset).collect::<Vec<_>>(), [2]);
    }
}
