//! What of the log joins what has been announced: per partition, without a gap, exact to the record.
//!
//! ```text
//!  announced                P
//!  one partition   [old ) [   |      ) [joins ) [joins )      [a gap )   .... Kafka continues here: the first `)`
//!  in the log             enters at P                         discarded        after P that nothing joins
//! ```
//!
//! A range that does not join is left out, and the search goes on behind it: the range that fills the gap may come
//! later, since a life that discarded something fetched it again and appended it. What is between the two offsets of a
//! range never changes (one topic id, one content), so it does not matter which of two copies is used. One thing breaks
//! that: an unclean leader election cuts a partition, whose offsets then go to other records. The rebuild that such a
//! partition needs takes out what the log holds past its end (`found::cut_back`) before its version is announced.
//!
//! Owns: that rule, which resuming and reading both go by. Pure.

use std::collections::HashMap;

use crate::format::chunk::{Chunk, Range, Summary};
use crate::record::{Position, SourcePartition};

/// How far each partition has been followed through the log.
#[derive(Clone, Debug, Default)]
pub struct Cursor(HashMap<SourcePartition, i64>);

/// What one range of a chunk is to a [`Cursor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// All of it has been followed before.
    Behind {
        /// How far.
        next: i64,
    },
    /// It goes on from here (which may be inside of it).
    From(i64),
    /// Something is missing before it, or its partition is none of ours (any more).
    Apart,
}

impl Cursor {
    /// At `positions`.
    pub fn at(positions: &[Position]) -> Cursor {
        Cursor(positions.iter().map(|position| (position.source.clone(), position.offset)).collect())
    }

    /// The next offset of a partition; `None` if it is none of ours.
    pub fn next(&self, source: &SourcePartition) -> Option<i64> {
        self.0.get(source).copied()
    }

    /// Follows one range.
    pub fn follow(&mut self, range: &Range) -> Join {
        match self.0.get_mut(&range.source) {
            Some(next) if range.to <= *next => Join::Behind { next: *next },
            Some(next) if range.from <= *next => Join::From(std::mem::replace(next, range.to)),
            _ => Join::Apart,
        }
    }

    /// Follows a chunk: what is to be handed on of it, with the first offset that counts of each of its slots; `None`
    /// if there is nothing new in it.
    pub fn enter(&mut self, chunk: &Chunk) -> Option<(Chunk, Vec<i64>)> {
        let joins: Vec<Join> = chunk.ranges().iter().map(|range| self.follow(range)).collect();
        if !joins.iter().any(|join| matches!(join, Join::From(_))) {
            return None;
        }
        let from = joins
            .iter()
            .filter_map(|join| match join {
                Join::Behind { next } => Some(*next),
                Join::From(from) => Some(*from),
                Join::Apart => None,
            })
            .collect();
        // A slot that stands apart must not be seen at all: its range would say that what is missing was read.
        let apart = joins.contains(&Join::Apart);
        let chunk = if apart {
            chunk.with_only(|slot| joins.get(slot).is_some_and(|join| *join != Join::Apart))
        } else {
            chunk.clone()
        };
        Some((chunk, from))
    }
}

/// What resuming does with the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Where Kafka continues, in the order of the positions given.
    pub next: Vec<Position>,
    /// By chunk: whether anything in it joins.
    pub keep: Vec<bool>,
    /// Ranges that stand apart, or whose partition is not ours: offsets that will be read from Kafka again, or never.
    pub apart: Vec<Range>,
}

/// Judges all chunks, in order.
pub fn judge<'a>(positions: &[Position], chunks: impl IntoIterator<Item = &'a Summary>) -> Judged {
    let mut cursor = Cursor::at(positions);
    let mut apart = Vec::new();
    let keep = chunks
        .into_iter()
        .map(|chunk| {
            let mut keep = false;
            for range in &chunk.ranges {
                match cursor.follow(range) {
                    Join::From(_) => keep = true,
                    Join::Behind { .. } => {}
                    Join::Apart => apart.push(range.clone()),
                }
            }
            keep
        })
        .collect();
    let next = positions
        .iter()
        .map(|position| Position {
            source: position.source.clone(),
            offset: cursor.next(&position.source).unwrap_or(position.offset),
        })
        .collect();
    // A gap that a later range has filled is none.
    apart.retain(|range: &Range| cursor.next(&range.source).is_none_or(|next| range.to > next));
    Judged { next, keep, apart }
}

/// Joins ranges where they join, per partition: what the log holds, for people.
pub fn joined<'a>(ranges: impl IntoIterator<Item = &'a Range>) -> Vec<Range> {
    let mut sorted: Vec<Range> = ranges.into_iter().cloned().collect();
    sorted.sort_by(|a, b| (&a.source, a.from).cmp(&(&b.source, b.from)));
    let mut joined: Vec<Range> = Vec::new();
    for range in sorted {
        match joined.last_mut() {
            Some(last) if last.source == range.source && range.from <= last.to => {
                last.to = last.to.max(range.to)
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// Consecutive numbers as `[from, to)`.
pub fn runs(numbers: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, to)) if *to == number => *to += 1,
            _ => runs.push((number, number + 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(partition: i32, from: i64, to: i64) -> Range {
        let source = SourcePartition { topic: "t".into(), topic_id: Default::default(), partition };
        Range { source, from, to }
    }

    fn summary(ranges: Vec<Range>) -> Summary {
        Summary { bytes: 0, records: 0, misfits: 0, sum: 0, ranges }
    }

    fn at(partition: i32, offset: i64) -> Position {
        Position { source: range(partition, 0, 0).source, offset }
    }

    #[test]
    fn each_partition_is_judged_by_itself() {
        let chunks = [
            summary(vec![range(0, 0, 10), range(1, 0, 5)]),
            summary(vec![range(0, 10, 20), range(1, 7, 9)]),
            summary(vec![range(1, 9, 12), range(2, 0, 3)]),
        ];
        let judged = judge(&[at(0, 4), at(1, 5)], &chunks);
        assert_eq!(judged.next, [at(0, 20), at(1, 5)]);
        assert_eq!(judged.keep, [true, true, false]);
        assert_eq!(judged.apart, [range(1, 7, 9), range(1, 9, 12), range(2, 0, 3)]);
    }

    #[test]
    fn a_gap_that_was_filled_later_is_none() {
        // what a life leaves that discarded [20, 30) and fetched from 10 on again
        let chunks = [
            summary(vec![range(0, 0, 10)]),
            summary(vec![range(0, 20, 30)]),
            summary(vec![range(0, 10, 25)]),
            summary(vec![range(0, 25, 40)]),
        ];
        let judged = judge(&[at(0, 0)], &chunks);
        assert_eq!((judged.next, judged.keep), (vec![at(0, 40)], vec![true, false, true, true]));
        assert!(judged.apart.is_empty());
        // with a position beyond the gap the other copy serves
        let judged = judge(&[at(0, 22)], &chunks);
        assert_eq!((judged.next, judged.keep), (vec![at(0, 40)], vec![false, true, false, true]));
    }

    #[test]
    fn ranges_join_for_people() {
        let ranges = [range(1, 5, 9), range(0, 0, 5), range(0, 5, 9), range(0, 12, 13), range(0, 3, 7)];
        assert_eq!(joined(&ranges), [range(0, 0, 9), range(0, 12, 13), range(1, 5, 9)]);
    }

    proptest! {
        /// Whatever ranges lie in the log: what is handed on is every offset from P to where Kafka continues, once,
        /// in order.
        #[test]
        fn no_offset_is_missed_or_taken_twice(
            ranges in prop::collection::vec((0i64..40, 0i64..15), 0..20), position in 0i64..40,
        ) {
            let ranges: Vec<Range> = ranges.iter().map(|(from, len)| range(0, *from, from + len)).collect();
            let mut cursor = Cursor::at(&[at(0, position)]);
            let mut taken = Vec::new();
            for range in &ranges {
                if let Join::From(from) = cursor.follow(range) {
                    taken.extend(from..range.to);
                }
            }
            let judged = judge(&[at(0, position)], &ranges.iter().map(|r| summary(vec![r.clone()])).collect::<Vec<_>>());
            prop_assert_eq!(&taken, &(position..judged.next[0].offset).collect::<Vec<_>>());
        }
    }
}
