//! A dead-letter topic as a list: one line for each record, however often it failed.
//!
//! A record that was replayed and failed again has another letter, with the same key, timestamp and partition, and with
//! `stillwell.replays` one higher; the line shows the last, and how many there are. (The topic itself could hold only the
//! last of each key by compaction, but a letter's key is its record's, so that many records would share one line, and
//! letters without key could not be written at all: docs/operations.md.)
//!
//! Owns: which letters are of one record. Does not own: reading them (`topic`), what replays made of them (`fate`), how a line
//! looks (`cli/dlq`).

use std::collections::HashMap;

use super::fate::{Fate, Replays};
use super::found::{Found, Writer};
use super::held::Place;

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

/// What all letters of a record have in common: topic and key hashed, partition, timestamp.
type Record = (u64, i32, i64, Option<u128>);

/// The list under way.
#[derive(Debug, Default)]
pub struct Listing {
    /// Its line where it is meant, replays, failures; in the order of the last letters.
    rows: Vec<Option<Row>>,
    of: HashMap<Record, Vec<usize>>,
    replays: Option<Replays>,
}

#[derive(Debug)]
struct Row {
    line: Option<Line>,
    replays: u32,
    failures: u32,
}

impl Listing {
    /// Has the lines say what replays have made of their letters.
    pub fn knowing(&mut self, replays: Option<Replays>) {
        self.replays = replays;
    }

    /// Takes a letter, in the order of the topic. One that is not meant counts all the same: it may be the last of a
    /// record whose earlier ones are.
    pub fn take(&mut self, found: &Found<'_>, is_meant: bool) {
        let mut row = Row { line: is_meant.then(|| Line::of(found)), replays: found.replays, failures: 1 };
        if let Some(source) = found.source {
            let topic = xxhash_rust::xxh3::xxh3_64(source.topic.as_bytes());
            let key = found.raw.key.map(xxhash_rust::xxh3::xxh3_128);
            let same = self.of.entry((topic, source.partition, found.timestamp, key)).or_default();
            // Each replay follows one failure: two records that look the same are still two.
            let rows = &mut self.rows;
            let before = same.iter().position(|at| {
                rows.get(*at).and_then(Option::as_ref).is_some_and(|before| before.replays + 1 == row.replays)
            });
            if let Some(before) =
                before.map(|at| same.swap_remove(at)).and_then(|at| rows.get_mut(at)?.take())
            {
                row.failures += before.failures;
            }
            same.push(self.rows.len());
        }
        self.rows.push(Some(row));
    }

    /// The lines, in the order of the topic.
    pub fn lines(self) -> impl Iterator<Item = Line> {
        let Listing { rows, replays, .. } = self;
        rows.into_iter().flatten().filter_map(move |row| {
            let failures = row.failures;
            let line = row.line?;
            let fate = replays.as_ref().map(|replays| replays.fate(line.partition, line.offset));
            Some(Line { failures, fate, ..line })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead::found::Raw;
    use crate::format::letter::header;

    fn take(listing: &mut Listing, key: Option<&str>, timestamp: i64, replays: u32, meant: bool) {
        let offset = listing.rows.len() as i64;
        let raw = Raw { partition: 0, offset, timestamp, key: key.map(str::as_bytes), value: Some(b"{") };
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
        let found = Found::read(raw, headers.iter().map(|(name, value)| (*name, Some(value.as_bytes()))));
        listing.take(&found, meant);
    }

    fn shown(listing: Listing) -> Vec<(i64, u32, u32)> {
        listing.lines().map(|line| (line.offset, line.replays, line.failures)).collect()
    }

    #[test]
    fn a_record_that_fails_again_is_still_one() {
        let mut listing = Listing::default();
        take(&mut listing, Some("a"), 1, 0, true);
        take(&mut listing, Some("b"), 1, 0, true);
        take(&mut listing, Some("a"), 1, 1, true);
        take(&mut listing, Some("a"), 2, 0, true);
        take(&mut listing, Some("a"), 1, 2, true);
        assert_eq!(shown(listing), [(1, 0, 1), (3, 0, 1), (4, 2, 3)]);
    }

    #[test]
    fn two_that_look_the_same_are_two() {
        let mut listing = Listing::default();
        for replays in [0, 0, 1] {
            take(&mut listing, None, 1, replays, true);
        }
        assert_eq!(shown(listing), [(1, 0, 1), (2, 1, 2)]);
    }

    #[test]
    fn a_last_letter_that_is_not_meant_hides_the_earlier_ones() {
        let mut listing = Listing::default();
        take(&mut listing, Some("a"), 1, 0, true);
        take(&mut listing, Some("a"), 1, 1, false);
        take(&mut listing, Some("b"), 1, 0, true);
        assert_eq!(shown(listing), [(2, 0, 1)]);
    }
}
