//! What became of letters, one by one and in all.
//!
//! Owns: the words for it. Does not own: deciding (`replay`), showing (`cli/dlq`).

use std::collections::BTreeMap;

use super::held::Held;
use super::record::Last;

/// Why a letter is left for a later run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Why {
    /// It was replayed as often as it may be.
    Capped,
    /// It does not say where it belongs, or not to this dataset's source.
    Misplaced,
    /// Whether it is stale cannot be told.
    Unjudged,
    /// As it is it would become a letter again.
    Unfit,
    /// The program would not mend it.
    Unmended,
    /// What of it lies in a blob is not there.
    BlobLost,
    /// The topic does not take a record so large.
    TooLarge,
    /// The topic does not take its timestamp.
    Untimely,
}

impl Why {
    /// In a few words.
    pub fn label(self) -> &'static str {
        match self {
            Why::Capped => "replayed too often",
            Why::Misplaced => "no place in the source",
            Why::Unjudged => "staleness unknown",
            Why::Unfit => "does not fit",
            Why::Unmended => "not mended",
            Why::BlobLost => "blob lost",
            Why::TooLarge => "too large",
            Why::Untimely => "timestamp not taken",
        }
    }
}

/// What became of a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the source again, at this partition and offset; nowhere yet in a dry run.
    Replayed(Option<(i32, i64)>),
    /// Dropped: a later record of its key stands at this offset of its partition.
    Stale(i64),
    /// Dropped: it lost to a record of its key in another partition, which its message names.
    Outdone,
    /// Passed over: its record was replayed and has failed again, of which this later letter tells.
    Replaced(Last),
    /// Dropped: it was replayed already, by another run or as a letter of the same record.
    Known(Option<i64>),
    /// Left, and why.
    Left(Why, String),
}

impl Outcome {
    /// In a word, as programs and people read it.
    pub fn word(&self, dry_run: bool) -> &'static str {
        match self {
            Outcome::Replayed(_) if dry_run => "would-replay",
            Outcome::Replayed(_) => "replayed",
            Outcome::Stale(_) | Outcome::Outdone => "stale",
            Outcome::Replaced(_) => "replaced",
            Outcome::Known(_) => "known",
            Outcome::Left(..) => "left",
        }
    }
}

/// What is told on the way.
#[derive(Debug)]
pub enum Told<'a> {
    /// So many letters are selected.
    Selected(u64),
    /// So many records of the source have been looked at.
    Looked(u64),
    /// A letter, once what became of it is committed.
    Done(&'a Held, &'a Outcome),
    /// All that was told so far stands.
    Through,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Letters selected.
    pub selected: u64,
    /// Replayed; in a dry run, those that would be.
    pub replayed: u64,
    /// Dropped as stale.
    pub stale: u64,
    /// Dropped as replayed already.
    pub known: u64,
    /// Passed over, since a later letter of the same record has replaced them.
    pub replaced: u64,
    /// Left, by why.
    pub left: BTreeMap<Why, u64>,
    /// Outside of the time that was asked for; a later run sees them.
    pub not_now: u64,
    /// It ended before all selected letters were seen, since too many are left among others to be remembered.
    pub full: bool,
}

impl Totals {
    /// Letters that were selected and not handled.
    pub fn unhandled(&self) -> u64 {
        self.left.values().sum()
    }

    pub(super) fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Replayed(_) => self.replayed += 1,
            Outcome::Stale(_) | Outcome::Outdone => self.stale += 1,
            Outcome::Known(_) => self.known += 1,
            Outcome::Replaced(_) => self.replaced += 1,
            Outcome::Left(why, _) => *self.left.entry(*why).or_default() += 1,
        }
    }
}
