//! Shedding: what gives way past `max_log_size`, where somebody has said that something shall.
//!
//! ```text
//!  drop_oldest        drop_newest         sample             dead_letter
//!  [....|====|====]   [====|====|....]    [= =| = |====]     =>[====|====|====]
//!  the next to be     the last that       one in ten stays,  what is handed on goes to
//!  handed on          came                oldest first       the dead-letter topic
//! ```
//!
//! What gives way is taken out of the log, where it is durable: the records go, and what the chunk accounts for stays,
//! so that positions move on over it, exactly, in this life and in any other. Misfits stay as well: a dead letter is
//! never lost to make room. What is in memory, handed on or ready to be, does not give way.
//!
//! Owns: the strategies, what they leave of a chunk, counting and saying what was lost. Does not own: when there is too
//! much in the log and how it is replaced there (`log/shed`), when the source pauses all the same (`intake`).

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::log::{Cursor, joined};
use crate::clock::Clock;
use crate::dead;
use crate::format::chunk::{Body, Chunk, ChunkBuilder, ChunkRecord, Range};
use crate::format::letter::Letter;
use crate::telemetry::ProducerMetrics;

/// The share of `max_log_size` at which the source pauses though a strategy makes room: it makes room behind what has
/// come, and must be given the time.
pub const OVERFLOW: f64 = 1.1;
/// Of so many records a sample keeps one.
const SAMPLE: u64 = 10;
/// Time between two lines that say what was shed.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Ranges named in such a line.
const NAMED: usize = 8;

/// What gives way once the log holds more than `max_log_size`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shed {
    /// Nothing: the source pauses before, since Kafka can wait. Loses nothing.
    #[default]
    None,
    /// The records that came last: the backlog is worked off, what happened meanwhile is missing.
    DropNewest,
    /// The records that came first: the newest are published, what they do not overwrite is missing.
    DropOldest,
    /// Nine of ten, oldest first: everything is sampled, and again if that is not enough.
    Sample,
    /// The records that are next: they go to the dead-letter topic, from where they can be replayed.
    DeadLetter,
}

impl Shed {
    /// All of them.
    pub const ALL: [Shed; 5] =
        [Shed::None, Shed::DropNewest, Shed::DropOldest, Shed::Sample, Shed::DeadLetter];

    /// As it is written in the configuration, and as metrics label it.
    pub fn label(self) -> &'static str {
        match self {
            Shed::None => "none",
            Shed::DropNewest => "drop_newest",
            Shed::DropOldest => "drop_oldest",
            Shed::Sample => "sample",
            Shed::DeadLetter => "dead_letter",
        }
    }

    /// Whether it makes room; if not, the source must stop earlier.
    pub fn makes_room(self) -> bool {
        self != Shed::None
    }
}

impl fmt::Display for Shed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl FromStr for Shed {
    type Err = String;

    fn from_str(text: &str) -> Result<Shed, String> {
        let found = Shed::ALL.into_iter().find(|shed| shed.label() == text);
        found.ok_or_else(|| format!("{text:?} is none of {}", Shed::ALL.map(Shed::label).join(", ")))
    }
}

/// A chunk that accounts for `ranges`, one per source partition, and holds nothing.
pub fn nothing_of(ranges: &[Range]) -> Chunk {
    let mut builder = ChunkBuilder::new();
    for range in ranges {
        let slot = builder.slot(&range.source, range.from);
        builder.advance(slot, range.to);
    }
    builder.finish()
}

/// The chunk without its records, misfits apart, and how many that are. What lies before `cursor` was handed on before,
/// and is not lost with the chunk.
pub fn misfits_of(chunk: &Chunk, cursor: &Cursor) -> (Chunk, u64) {
    rest_of(chunk, cursor, |_| false)
}

/// One in ten of the chunk's records from `cursor` on and all misfits, and how many are gone. `salt` decides which:
/// another salt keeps others, so that a sample of a sample is smaller.
pub fn sample_of(chunk: &Chunk, cursor: &Cursor, salt: u64) -> (Chunk, u64) {
    rest_of(chunk, cursor, |record| {
        // By offset and partition, not by key: each key's values grow older, and no key is lost for good.
        let place = (record.offset as u64) ^ (u64::from(record.slot) << 48);
        xxh3_64_with_seed(&place.to_le_bytes(), salt).is_multiple_of(SAMPLE)
    })
}

fn rest_of(chunk: &Chunk, cursor: &Cursor, keep: impl Fn(&ChunkRecord<'_>) -> bool) -> (Chunk, u64) {
    let mut builder = ChunkBuilder::new();
    let slots: Vec<(u16, i64)> = chunk
        .ranges()
        .iter()
        .map(|range| {
            (builder.slot(&range.source, range.from), cursor.next(&range.source).unwrap_or(range.from))
        })
        .collect();
    let mut gone = 0;
    for (_, record) in chunk.iter() {
        let Some((slot, next)) = slots.get(usize::from(record.slot)) else { continue };
        let ahead = record.offset >= *next;
        if matches!(record.body, Body::Misfit { .. }) || ahead && keep(&record) {
            builder.push_record(ChunkRecord { slot: *slot, ..record });
        } else {
            gone += u64::from(ahead);
        }
    }
    for (range, (slot, _)) in chunk.ranges().iter().zip(slots) {
        builder.advance(slot, range.to);
    }
    (builder.finish(), gone)
}

/// Counts what is lost, and says so, with positions and not too often. Clones are handles of the same one.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dataset: String,
    strategy: Shed,
    clock: Clock,
    metrics: Arc<ProducerMetrics>,
    untold: Mutex<Untold>,
}

/// What was shed since the last line.
#[derive(Debug, Default)]
struct Untold {
    records: u64,
    ranges: Vec<Range>,
    said: Option<Instant>,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(dataset: &str, strategy: Shed, clock: Clock, metrics: Arc<ProducerMetrics>) -> Ledger {
        let untold = Mutex::default();
        // Shown from the start, at zero: a series that appears with the first loss has no rate by which to alert.
        metrics.shed_records_total.with(&[strategy.label()]);
        Ledger(Arc::new(Inner { dataset: dataset.to_owned(), strategy, clock, metrics, untold }))
    }

    /// Takes note of records that were shed, durably, and of where.
    pub fn note(&self, records: u64, ranges: &[Range]) {
        let inner = &*self.0;
        inner.metrics.shed_records_total.with(&[inner.strategy.label()]).inc_by(records);
        {
            let mut untold = inner.untold.lock().unwrap_or_else(PoisonError::into_inner);
            untold.records += records;
            untold.ranges = joined(untold.ranges.iter().chain(ranges));
        }
        self.say();
    }

    /// Takes note of the shed records among letters that were announced.
    pub fn announced<'a>(&self, letters: impl Iterator<Item = &'a Letter>) {
        let shed = letters.filter(|letter| letter.class == dead::letter::SHED).map(|letter| Range {
            source: letter.source.clone(),
            from: letter.offset,
            to: letter.offset + 1,
        });
        let ranges: Vec<Range> = shed.collect();
        if !ranges.is_empty() {
            let stage = crate::codec::Stage::Shed.to_string();
            self.0.metrics.dead_letters_total.with(&[&stage]).inc_by(ranges.len() as u64);
            self.note(ranges.len() as u64, &ranges);
        }
    }

    /// Says what was not said yet, unless something was said within the last ten seconds. To be called all the time.
    pub fn say(&self) {
        let inner = &*self.0;
        let now = inner.clock.now();
        let mut untold = inner.untold.lock().unwrap_or_else(PoisonError::into_inner);
        let soon = untold.said.is_some_and(|said| now.saturating_duration_since(said) < SAY_EVERY);
        if untold.records == 0 || soon {
            return;
        }
        let Untold { records, ranges, .. } =
            std::mem::replace(&mut *untold, Untold { said: Some(now), ..Untold::default() });
        drop(untold);
        tracing::warn!(
            dataset = inner.dataset, strategy = %inner.strategy, records, offsets = places(&ranges),
            "the log holds more than max_log_size: records were shed, among these offsets"
        );
    }
}

/// Ranges for people.
fn places(ranges: &[Range]) -> String {
    let mut named: Vec<String> = ranges
        .iter()
        .take(NAMED)
        .map(|range| format!("{} {}..{}", range.source, range.from, range.to))
        .collect();
    if ranges.len() > NAMED {
        named.push(format!("and {} more", ranges.len() - NAMED));
    }
    named.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::chunk::Original;
    use crate::record::{Position, SourcePartition};

    fn source(partition: i32) -> SourcePartition {
        SourcePartition { topic: "t".into(), topic_id: Default::default(), partition }
    }

    /// 1,000 records in each of two partitions, each tenth a misfit.
    fn chunk() -> Chunk {
        let mut builder = ChunkBuilder::new();
        for partition in 0..2 {
            let slot = builder.slot(&source(partition), 5);
            for offset in 10..1_010 {
                let body = match offset % 10 {
                    0 => Body::Misfit { letter: b"letter" },
                    1 => Body::Delete { key: b"k" },
                    _ => Body::Upsert { key: b"k", value: b"v" },
                };
                let (mut noted, parts) = (Vec::new(), (Some(&b"k"[..]), Some(&b"was v"[..])));
                let original = Some(Original::note(&mut noted, &body, parts, [("h", None)].into_iter()));
                builder.push_record(ChunkRecord { slot, offset, timestamp: offset, body, original });
            }
            builder.advance(slot, 1_020);
        }
        builder.finish()
    }

    fn at(offset: i64) -> Cursor {
        let position = |partition| Position { source: source(partition), offset };
        Cursor::at(&[position(0), position(1)])
    }

    #[test]
    fn what_is_left_accounts_for_all_and_keeps_every_misfit() {
        let whole = chunk();
        for (rest, gone) in [misfits_of(&whole, &at(0)), sample_of(&whole, &at(0), 7)] {
            assert_eq!(rest.ranges(), whole.ranges());
            assert_eq!(rest.misfits(), 200);
            assert_eq!(rest.records() as u64 + gone, 2_000);
            let again = Chunk::parse(rest.encoded().clone()).expect("it is a chunk like any other");
            assert_eq!(again.ranges(), whole.ranges());
            let mut fitting = again.iter().filter(|(_, record)| !matches!(record.body, Body::Misfit { .. }));
            assert!(
                fitting.all(|(_, record)| record.original.is_some()),
                "what is left has its original still"
            );
        }
        let stub = nothing_of(whole.ranges());
        assert_eq!((stub.ranges(), stub.records()), (whole.ranges(), 0));
        assert!(stub.len() < 200, "{}", stub.len());
    }

    #[test]
    fn a_sample_keeps_a_tenth_and_a_sample_of_it_a_tenth_of_that() {
        let (once, gone) = sample_of(&chunk(), &at(0), 1);
        assert!((1_500..1_700).contains(&gone), "{gone} of 1,800");
        let (same, none) = sample_of(&once, &at(0), 1);
        assert_eq!((same.records(), none), (once.records(), 0), "by the same salt nothing more");
        let (twice, _) = sample_of(&once, &at(0), 2);
        assert!((200..260).contains(&twice.records()), "{} with 200 misfits", twice.records());
    }

    #[test]
    fn what_was_handed_on_before_is_not_lost_with_its_chunk() {
        let (rest, gone) = sample_of(&chunk(), &at(2_000), 1);
        assert_eq!((rest.records(), gone), (200, 0), "only misfits stay of it, and nothing is lost");
        assert_eq!(misfits_of(&chunk(), &at(10)).1, 1_800);
        assert_eq!(misfits_of(&chunk(), &at(510)).1, 900);
        assert_eq!(misfits_of(&chunk(), &at(2_000)).1, 0);
        assert_eq!(misfits_of(&chunk(), &Cursor::at(&[])).1, 1_800);
    }

    #[test]
    fn it_is_counted_always_and_said_not_too_often() {
        let (clock, metrics) = (Clock::manual(0), ProducerMetrics::detached());
        let ledger = Ledger::new("products", Shed::Sample, clock.clone(), metrics.clone());
        let range = |from, to| Range { source: source(0), from, to };
        let untold = |ledger: &Ledger| ledger.0.untold.lock().unwrap().records;
        ledger.note(10, &[range(0, 10)]);
        assert_eq!(untold(&ledger), 0, "the first at once");
        ledger.note(5, &[range(10, 15)]);
        ledger.note(5, &[range(15, 20)]);
        ledger.say();
        assert_eq!(untold(&ledger), 10);
        assert_eq!(ledger.0.untold.lock().unwrap().ranges, [range(10, 20)]);
        clock.advance(SAY_EVERY);
        ledger.say();
        assert_eq!(untold(&ledger), 0);
        assert_eq!(metrics.shed_records_total.with(&["sample"]).get(), 20);
        let many: Vec<Range> = (0..10).map(|n| range(n * 10, n * 10 + 5)).collect();
        assert!(places(&many).ends_with("t[0] 70..75, and 2 more"), "{}", places(&many));
    }

    #[test]
    fn every_strategy_has_a_word() {
        for shed in Shed::ALL {
            assert_eq!(shed.label().parse(), Ok(shed));
        }
        assert!("drop".parse::<Shed>().unwrap_err().contains("drop_newest"));
    }
}
