//! The model: the source topic, read by librdkafka and folded, one version's positions after the other's.
//!
//! Owns: what the source holds, what each key is at the positions folded so far. Does not own: what Stillwell made of
//! it (`announced`, `blobs`), the comparison (`oracle`).

use std::collections::BTreeMap;

use super::row::{Meaning, Row, digest};
use crate::topic::{Message, Topic};

/// A source record and what it does.
#[derive(Clone, Debug)]
pub struct Sourced {
    /// As it stands in the topic.
    pub message: Message,
    /// What it does.
    pub meaning: Meaning,
}

/// What a key is.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// Its value.
    pub row: Row,
    /// Where that came from.
    pub at: Stamp,
}

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "Kafka's words")]
pub struct Stamp {
    pub partition: i32,
    pub offset: i64,
    pub timestamp: i64,
}

/// What one version changes.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Keys that are not what they were, in order, with the record that made them so.
    pub entries: BTreeMap<Vec<u8>, (Option<Row>, Stamp)>,
    /// Records that cannot be processed, by partition and offset.
    pub misfits: Vec<(i32, i64)>,
    /// Records of any kind in it.
    pub records: u64,
}

/// The source and its fold.
#[derive(Debug)]
pub struct Fold {
    topic: Topic,
    partitions: Vec<Vec<Sourced>>,
    /// How many records of each partition are folded.
    folded: Vec<usize>,
    model: BTreeMap<Vec<u8>, Held>,
    sums: Sums,
}

/// Stand for a whole version, whatever the order of its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Of keys and values.
    pub rows: u128,
    /// Of these and where they came from.
    pub stamped: u128,
}

impl Sums {
    /// The entry comes in.
    pub fn add(&mut self, key: &[u8], row: &Row, at: Stamp) {
        let of = Sums::of(key, row, at);
        self.rows = self.rows.wrapping_add(of.rows);
        self.stamped = self.stamped.wrapping_add(of.stamped);
    }

    fn take(&mut self, key: &[u8], row: &Row, at: Stamp) {
        let of = Sums::of(key, row, at);
        self.rows = self.rows.wrapping_sub(of.rows);
        self.stamped = self.stamped.wrapping_sub(of.stamped);
    }

    fn of(key: &[u8], row: &Row, at: Stamp) -> Sums {
        let rows = digest(key, row);
        let mut bytes = rows.to_le_bytes().to_vec();
        bytes.extend([i64::from(at.partition), at.offset, at.timestamp].map(i64::to_le_bytes).as_flattened());
        Sums { rows, stamped: xxhash_rust::xxh3::xxh3_128(&bytes) }
    }
}

impl Fold {
    /// Nothing read, nothing folded.
    pub fn new(topic: Topic) -> Fold {
        let partitions = usize::try_from(topic.partitions()).expect("no fewer than none");
        Fold {
            topic,
            partitions: vec![Vec::new(); partitions],
            folded: vec![0; partitions],
            model: BTreeMap::new(),
            sums: Sums::default(),
        }
    }

    /// Reads what the source has by now: everything that is committed.
    pub fn read(&mut self) {
        let from: Vec<i64> = self
            .partitions
            .iter()
            .map(|records| records.last().map_or(0, |last| last.message.offset + 1))
            .collect();
        for message in self.topic.read_from(&from) {
            let meaning = Meaning::of(message.key.as_deref(), message.value.as_deref());
            if let Some(records) = self.partitions.get_mut(message.partition as usize) {
                records.push(Sourced { message, meaning });
            }
        }
    }

    /// The source itself.
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// Partitions of the source.
    pub fn partitions(&self) -> usize {
        self.partitions.len()
    }

    /// The record at a place, if the topic holds one there.
    pub fn at(&self, partition: i32, offset: i64) -> Option<&Sourced> {
        let records = self.partitions.get(usize::try_from(partition).ok()?)?;
        let at = records.binary_search_by_key(&offset, |record| record.message.offset).ok()?;
        records.get(at)
    }

    /// What lies at a place, committed or not, for a comparison that has failed already.
    pub fn whatever_is_at(&self, partition: i32, offset: i64) -> String {
        let around = |records: &Vec<Sourced>| {
            let at = records.partition_point(|record| record.message.offset < offset);
            let of = |record: &Sourced| record.message.offset;
            (at.checked_sub(1).and_then(|before| records.get(before)).map(of), records.get(at).map(of))
        };
        let known =
            usize::try_from(partition).ok().and_then(|partition| self.partitions.get(partition)).map(around);
        let raw = self.topic.uncommitted_at(partition, offset);
        let (first, last) = (raw.first().map(|record| record.offset), raw.last().map(|record| record.offset));
        let is_there =
            if raw.iter().any(|record| record.offset == offset) { "is a record" } else { "is none" };
        format!(
            "{is_there}, committed or not (of {first:?} to {last:?}); read were the offsets beside it {known:?}"
        )
    }

    /// Keys by now.
    pub fn records(&self) -> u64 {
        self.model.len() as u64
    }

    /// Stands for all keys and values by now.
    pub fn sums(&self) -> Sums {
        self.sums
    }

    /// Folds on to `positions`, the next offset of each partition; says what that changes.
    pub fn on_to(&mut self, positions: &[i64]) -> Changes {
        let mut last: BTreeMap<Vec<u8>, (Option<Row>, Stamp)> = BTreeMap::new();
        let mut changes = Changes::default();
        for ((records, folded), position) in self.partitions.iter().zip(&mut self.folded).zip(positions) {
            let new = records.iter().skip(*folded).take_while(|record| record.message.offset < *position);
            for Sourced { message, meaning } in new {
                *folded += 1;
                changes.records += 1;
                let row = match meaning {
                    Meaning::Misfit => {
                        changes.misfits.push((message.partition, message.offset));
                        continue;
                    }
                    Meaning::Upsert(row) => Some(row.clone()),
                    Meaning::Delete => None,
                };
                let at = Stamp {
                    partition: message.partition,
                    offset: message.offset,
                    timestamp: message.timestamp.unwrap_or(-1),
                };
                last.insert(message.key.clone().unwrap_or_default(), (row, at));
            }
        }
        for (key, (row, at)) in last {
            let before = self.model.get(&key);
            if before.map(|held| &held.row) == row.as_ref() {
                continue;
            }
            if let Some(held) = before {
                self.sums.take(&key, &held.row, held.at);
            }
            match &row {
                Some(row) => {
                    self.sums.add(&key, row, at);
                    self.model.insert(key.clone(), Held { row: row.clone(), at });
                }
                None => {
                    self.model.remove(&key);
                }
            }
            changes.entries.insert(key, (row, at));
        }
        changes
    }

    /// What the source says at `positions`, folded from the beginning: for a comparison that has failed already.
    pub fn anew(&self, positions: &[i64]) -> BTreeMap<Vec<u8>, Row> {
        let mut fold = Fold {
            topic: self.topic.clone(),
            partitions: self.partitions.clone(),
            folded: vec![0; self.partitions.len()],
            model: BTreeMap::new(),
            sums: Sums::default(),
        };
        fold.on_to(positions);
        fold.model.into_iter().map(|(key, held)| (key, held.row)).collect()
    }
}
