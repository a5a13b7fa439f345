//! Which letters are of one record.
//!
//! ```text
//!   source partition   7 ........... 100 ............... 180
//!                      the record    replayed            replayed again
//!                                    origin 7, 1 time    origin 7, 2 times
//!   letters            A  A'         B                   C                     one record; C is its last letter
//! ```
//!
//! A record is where it failed first: topic, partition, offset, and its timestamp there, since a topic that was made anew has
//! the same offsets. A replay tells the record that it sends of all four, in `stillwell.origin`, so that the letter of that one, should it fail
//! too, is known by them, whatever its own offset is, and its timestamp where the topic writes the time of arrival. The key
//! must be the same; not so where it is too long for a letter that lies in a blob.
//!
//! The same position has a second letter (A') where a transaction of the dataset was made again; where a listener died before
//! it had noted what it handled; where it refused the record again, after a rollback or a reset.
//!
//! Who gave up is a part of it: of two datasets, or connectors, that read one topic, each has letters of its own. What a
//! listener did not handle is another matter than that a record could not be taken, and each listener's its own; there a value
//! and the delete of that value are two changes, though both name the same record.
//!
//! Owns: what letters of one record have in common, and which are replaced by a later one. Does not own: what follows from
//! it (`listing`, `replay`).

use std::collections::hash_map::Entry;

use xxhash_rust::xxh3::xxh3_128;

use super::Error;
use super::found::{Found, Source};
use super::table::Map;
use crate::codec::append_integer;
use crate::format::letter::MAX_KEY;

/// The record that failed first, in the partition that all its replays go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its offset.
    pub offset: i64,
    /// Its timestamp, milliseconds since the Unix epoch.
    pub timestamp: i64,
}

impl Origin {
    /// As a replay writes it into a header, `TOPIC/PARTITION/OFFSET@TIMESTAMP`, read of a record that was at `source`; `None` where it
    /// is nothing of the kind, or of another partition. Whoever makes records of records copies headers (Kafka Streams,
    /// MirrorMaker): what was made is not what it was made of, and of one record there may be several.
    pub fn read(text: &str, source: Source<'_>) -> Option<Origin> {
        let (partition, numbers) = text.strip_prefix(source.topic)?.strip_prefix('/')?.split_once('/')?;
        let (offset, timestamp) = numbers.split_once('@')?;
        let (offset, timestamp) = (offset.parse().ok()?, timestamp.parse().ok()?);
        (offset >= 0 && partition.parse() == Ok(source.partition)).then_some(Origin { offset, timestamp })
    }

    /// Appends what [`Origin::read`] reads of a record in this partition.
    pub fn write(self, topic: &str, partition: i32, out: &mut Vec<u8>) {
        out.extend_from_slice(topic.as_bytes());
        for (before, number) in [(b'/', partition.into()), (b'/', self.offset), (b'@', self.timestamp)] {
            out.push(before);
            append_integer(number, out);
        }
    }
}

/// What all letters of a record have in common, hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record(u128);

impl Record {
    /// Of a letter; `None` where it does not say where the record was.
    pub fn of(found: &Found<'_>) -> Option<Record> {
        let Source { topic, partition, offset } = found.source?;
        let own = Origin { offset, timestamp: found.timestamp };
        let Origin { offset, timestamp } = found.origin.unwrap_or(own);
        // At once: a hash that is fed piece by piece has half a kilobyte to set up, for each letter.
        let mut all = Vec::with_capacity(256);
        let mut put = |bytes: &[u8]| {
            all.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            all.extend_from_slice(bytes);
        };
        put(topic.as_bytes());
        put(&partition.to_le_bytes());
        put(&offset.to_le_bytes());
        put(&timestamp.to_le_bytes());
        put(&[found.writer as u8]);
        put(found.owner.as_bytes());
        // A longer one is not in each of them.
        let key = found.raw.key.filter(|key| key.len() <= MAX_KEY);
        put(&[u8::from(key.is_some())]);
        put(key.unwrap_or_default());
        if super::letter::CHANGES.contains(&found.stage) {
            put(found.stage.as_bytes());
            put(found.listener.as_bytes());
            put(&[u8::from(found.raw.value.is_some())]);
        }
        Some(Record(xxh3_128(&all)))
    }
}

/// Most records of a topic that were replayed and have failed again: a gigabyte of memory for them.
const MOST_AGAIN: usize = 20_000_000;

/// A letter by which others are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    /// Its own offset.
    pub offset: i64,
    /// Its partition in the dead-letter topic.
    pub partition: i32,
    /// How often its record was replayed.
    pub replays: u32,
}

/// The last letters of those records that were replayed and have failed again. Some 50 bytes of memory for each of them.
#[derive(Debug)]
pub struct Again {
    of: Map<Record, Last>,
    most: usize,
}

impl Default for Again {
    fn default() -> Again {
        Again::within(MOST_AGAIN)
    }
}

impl Again {
    /// Of at most so many records.
    pub fn within(most: usize) -> Again {
        Again { of: Map::default(), most }
    }

    /// Whether no record was replayed and has failed again.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// Takes a letter, in any order.
    ///
    /// # Errors
    /// [`Error::TooManyAgain`]: which letters are replaced cannot be known, and an older value could land behind a newer one.
    pub fn take(&mut self, found: &Found<'_>) -> Result<(), Error> {
        let (partition, offset, replays) = (found.raw.partition, found.raw.offset, found.replays);
        if replays == 0 {
            return Ok(());
        }
        let Some(record) = Record::of(found) else { return Ok(()) };
        let last = Last { offset, partition, replays };
        let is_full = self.of.len() >= self.most;
        match self.of.entry(record) {
            Entry::Occupied(mut known) if replays >= known.get().replays => {
                known.insert(last);
            }
            Entry::Occupied(_) => {}
            Entry::Vacant(_) if is_full => return Err(Error::TooManyAgain(self.most)),
            Entry::Vacant(none) => {
                none.insert(last);
            }
        }
        Ok(())
    }

    /// The letter of the same record that has replaced one whose record was replayed so often.
    pub fn replaced(&self, record: Option<Record>, replays: u32) -> Option<Last> {
        self.of.get(&record?).copied().filter(|last| last.replays > replays)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead::found::{Raw, Writer};
    use crate::format::letter::Elsewhere;

    fn found<'a>() -> Found<'a> {
        Found {
            raw: Raw { partition: 0, offset: 12, timestamp: 99, key: Some(b"k"), value: Some(b"{") },
            writer: Writer::Stillwell,
            source: Some(Source { topic: "orders", partition: 3, offset: 7 }),
            timestamp: 1_000,
            stage: "VALUE_CONVERTER",
            class: "",
            message: "",
            owner: "products",
            failed_at: 5,
            replays: 0,
            origin: None,
            listener: "",
            headers: Vec::new(),
            elsewhere: Elsewhere::Nothing,
        }
    }

    /// A letter of the same record, replayed so often, to this offset.
    fn again<'a>(offset: i64, replays: u32) -> Found<'a> {
        Found {
            source: Some(Source { topic: "orders", partition: 3, offset }),
            replays,
            origin: Some(Origin { offset: 7, timestamp: 1_000 }),
            ..found()
        }
    }

    #[test]
    fn an_origin_is_written_as_it_is_read() {
        let at = |topic, partition| Source { topic, partition, offset: 100 };
        for origin in [Origin { offset: 7, timestamp: 1_000 }, Origin { offset: 0, timestamp: -1 }] {
            let mut written = Vec::new();
            origin.write("orders", 3, &mut written);
            let written = String::from_utf8(written).expect("it is text");
            assert_eq!(written, format!("orders/3/{}@{}", origin.offset, origin.timestamp));
            assert_eq!(Origin::read(&written, at("orders", 3)), Some(origin));
            for made in [at("orders", 4), at("orders", 33), at("order", 3), at("orders.eu", 3)] {
                assert_eq!(Origin::read(&written, made), None, "{made:?}");
            }
        }
        for wrong in ["", "7", "@", "7@", "@8", "-7@8", "7@8@9", "x@8", "99999999999999999999@1"] {
            assert_eq!(Origin::read(&format!("orders/3/{wrong}"), at("orders", 3)), None, "{wrong}");
        }
        for wrong in ["7@8", "orders/7@8", "orders//7@8", "/3/7@8", "orders/3/1/7@8"] {
            assert_eq!(Origin::read(wrong, at("orders", 3)), None, "{wrong}");
        }
    }

    #[test]
    fn a_record_is_the_same_wherever_it_is_replayed_to_and_whenever_that_is() {
        let first = Record::of(&found());
        assert!(first.is_some());
        // The topic writes the time of arrival; it fails at another stage, for another reason.
        let later = Found { timestamp: 2_000, stage: "TRANSFORMATION", failed_at: 9, ..again(100, 1) };
        assert_eq!(Record::of(&later), first);
        assert_eq!(Record::of(&again(180, 2)), first);
        // Where it lies in a blob, and its key is too long to go out with it.
        let long = [b'k'; MAX_KEY + 1];
        let key = |mut found: Found<'static>, key: Option<&'static [u8]>| {
            found.raw.key = key;
            Record::of(&found)
        };
        let mended = {
            let mut found = again(100, 1);
            found.raw.key = Some(&long);
            Record::of(&found)
        };
        assert_eq!(mended, key(found(), None));

        assert_eq!(Record::of(&Found { source: None, ..found() }), None);
        assert_ne!(Record::of(&Found { timestamp: 1_001, ..found() }), first, "of a topic made anew");
        assert_ne!(Record::of(&Found { owner: "orders", ..found() }), first, "another dataset's");
        assert_ne!(Record::of(&Found { writer: Writer::Connect, ..found() }), first);
        assert_ne!(Record::of(&Found { origin: None, ..again(100, 1) }), first, "which one, nobody says");
        let (one, other) = (Found { origin: None, ..again(500, 1) }, Found { origin: None, ..again(501, 1) });
        assert_ne!(Record::of(&one), Record::of(&other), "two that were made of one that was replayed");
        assert_ne!(key(found(), Some(b"other")), first);
        assert_ne!(key(found(), None), key(found(), Some(b"")), "no key is not the empty one");
    }

    #[test]
    fn changes_are_of_a_listener_and_not_of_the_record() {
        let change = |stage, listener| Found { stage, listener, ..found() };
        let webhook = Record::of(&change("webhook", "hook"));
        assert_ne!(webhook, Record::of(&found()));
        assert_ne!(webhook, Record::of(&change("webhook", "other")));
        assert_ne!(webhook, Record::of(&change("listener", "hook")));
        let mut gone = change("webhook", "hook");
        gone.raw.value = None;
        assert_ne!(webhook, Record::of(&gone), "the delete of that record");
    }

    #[test]
    fn a_letter_is_replaced_by_one_of_a_later_replay_in_whatever_order_they_are_read() {
        let at = |mut found: Found<'static>, partition, offset| {
            (found.raw.partition, found.raw.offset) = (partition, offset);
            found
        };
        let letters = [at(found(), 1, 5), at(again(180, 2), 0, 30), at(again(100, 1), 1, 20)];
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            let mut later = Again::default();
            order.iter().for_each(|at| later.take(&letters[*at]).unwrap());
            let replaced = |found: &Found<'_>| later.replaced(Record::of(found), found.replays);
            let last = Some(Last { offset: 30, partition: 0, replays: 2 });
            assert_eq!(letters.each_ref().map(replaced), [last, None, last]);
            // Another record of the key, at the same time.
            let source = Some(Source { topic: "orders", partition: 3, offset: 8 });
            assert_eq!(replaced(&Found { source, ..found() }), None);
            assert_eq!(later.replaced(None, 0), None);
        }
    }

    #[test]
    fn no_more_records_are_remembered_than_there_is_room_for() {
        let mut later = Again::within(2);
        let of = |offset, replays| Found {
            origin: Some(Origin { offset, timestamp: 1_000 }),
            ..again(100 + offset, replays)
        };
        later.take(&of(7, 1)).unwrap();
        later.take(&of(8, 1)).unwrap();
        later.take(&of(7, 2)).unwrap();
        later.take(&Found { replays: 0, ..of(9, 0) }).unwrap();
        let error = later.take(&of(9, 1)).unwrap_err();
        assert!(matches!(error, Error::TooManyAgain(2)), "{error}");
        let replaced = |found: &Found<'_>| later.replaced(Record::of(found), found.replays);
        assert!(replaced(&of(7, 1)).is_some() && replaced(&of(8, 0)).is_some());
    }
}
