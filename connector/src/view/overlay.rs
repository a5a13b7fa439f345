//! What changed since the base: deltas, merged into few sorted runs.
//!
//! ```text
//! newest                                             oldest
//! run: [refs by key | hash table | filter] -> deltas n, n-1      run -> deltas n-2 .. n-20      run -> ..      base
//! ```
//!
//! A run refers to entries that lie in deltas; nothing is copied. A new delta is a run. Runs are of classes: up to 1,024 entries,
//! four times as many, and so on. Once four runs are of the newest's class or below it, they become one; two that are tiny
//! together do at once. So there are at most three of each class: of 10,000 entries at most 9 runs, of a million 18, and half as
//! many more often than not. Three of four deltas of one size merge nothing: what a version costs is its delta; an
//! entry is merged once for each class.
//!
//! Who reads as versions come does not wait for the larger ones of these: they are left, and made beside (a compaction). From two
//! dozen runs on nothing more is left, so that there are some thirty at most. A lookup asks each run's filter, whose words lie close
//! together, and looks only into those that may hold the key: two dozen runs then cost little more than a few.
//!
//! Owns: runs, and which of them become one. Does not own: their merging (`sorted`), the base, the order of versions (`mod`).

use std::sync::Arc;

use super::charge::Charge;
use super::delta::{DeltaFile, Ref};
use super::map::prefetch;
use super::sorted::Sorted;
use super::table::Tables;
use super::{Error, Found};
use crate::format::index;
use crate::gauge::Budget;
use crate::schema::Schema;
use crate::version::Version;

/// Two newest runs with no more entries than this together are merged whatever their sizes: it takes microseconds.
const TINY: usize = 1024;

/// Runs of one class that stay apart.
const APART: usize = 3;

/// Entries that are merged at once where larger merges are left to a compaction: less than a millisecond's work.
pub(super) const AT_ONCE: usize = 8 << 10;

/// Runs from which on nothing is left any more: a lookup may have to ask each of them.
pub(super) const MOST: usize = 24;

/// A sorted run with its hash table.
#[derive(Debug)]
pub(super) struct Run {
    sorted: Sorted,
    /// Open addressing, load at most one half: number of the entry + 1; 0 is free.
    table: Box<[u32]>,
    filter: Filter,
    tables: Tables,
    charge: Charge,
}

/// Which hashes a run may hold: a Bloom filter of which each key has all its bits in one word (Putze, Sanders and Singler, "Cache-,
/// Hash- and Space-Efficient Bloom Filters", 2007), so that it costs one look. Eleven bits an entry, four of them set: it says yes
/// of two or three in a hundred keys that are not there.
#[derive(Debug)]
struct Filter(Box<[u64]>);

impl Filter {
    const ENTRIES_A_WORD: usize = 6;

    fn of(sorted: &Sorted) -> Filter {
        let words = sorted.refs.len().div_ceil(Filter::ENTRIES_A_WORD).max(1);
        let mut filter = Filter(vec![0; words].into_boxed_slice());
        for at in sorted.refs.iter() {
            let word = index::home(at.hash, words as u64) as usize;
            if let Some(word) = filter.0.get_mut(word) {
                *word |= Filter::bits(at.hash);
            }
        }
        filter
    }

    /// The place is of the hash's highest bits; these are of its lowest.
    #[inline(always)]
    fn bits(hash: u64) -> u64 {
        1 << (hash & 63) | 1 << (hash >> 6 & 63) | 1 << (hash >> 12 & 63) | 1 << (hash >> 18 & 63)
    }

    #[inline(always)]
    fn word(&self, hash: u64) -> Option<&u64> {
        self.0.get(index::home(hash, self.0.len() as u64) as usize)
    }

    #[inline(always)]
    fn may_hold(&self, hash: u64) -> bool {
        let bits = Filter::bits(hash);
        self.word(hash).is_some_and(|word| word & bits == bits)
    }
}

impl Run {
    fn new(sorted: Sorted) -> Run {
        let slots = (sorted.refs.len() * 2 + 1).max(2);
        let mut table = vec![0u32; slots].into_boxed_slice();
        let filter = Filter::of(&sorted);
        for (number, at) in sorted.refs.iter().enumerate() {
            let mut slot = index::home(at.hash, slots as u64) as usize;
            // Ends: at least half of the slots are free.
            loop {
                match table.get_mut(slot) {
                    Some(free @ 0) => {
                        *free = number as u32 + 1;
                        break;
                    }
                    Some(_) => slot += 1,
                    None => slot = 0,
                }
            }
        }
        Run { sorted, table, filter, tables: Tables::default(), charge: Charge::default() }
    }

    /// Entries in it.
    pub fn len(&self) -> usize {
        self.sorted.refs.len()
    }

    /// Bytes of memory, besides its deltas and lookup tables.
    fn memory_bytes(&self) -> u64 {
        let entries = self.table.len() * 4 + self.filter.0.len() * 8 + self.sorted.refs.len() * 16;
        (entries + self.sorted.files.len() * 8) as u64
    }

    /// The entry of this number, in the order of the keys.
    pub fn nth(&self, number: usize) -> Result<Found<'_>, Error> {
        let at = self.sorted.refs.get(number).ok_or(Error::Internal("a run shorter than itself"))?;
        self.sorted.entry(*at)
    }

    /// Its tables for lookups by fields.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Whether it may hold a key of this hash: seldom wrong, and then only in saying yes.
    #[inline(always)]
    fn may_hold(&self, hash: u64) -> bool {
        self.filter.may_hold(hash) && self.holds(hash)
    }

    /// Whether it holds a key of this hash.
    fn holds(&self, hash: u64) -> bool {
        self.of_hash(hash).next().is_some()
    }

    /// Where the entries of this hash lie.
    #[inline]
    fn of_hash(&self, hash: u64) -> impl Iterator<Item = Ref> {
        let mut slot = index::home(hash, self.table.len() as u64) as usize;
        std::iter::from_fn(move || {
            loop {
                let Some(&taken) = self.table.get(slot) else {
                    slot = 0;
                    continue;
                };
                let at = *self.sorted.refs.get(taken.checked_sub(1)? as usize)?;
                slot += 1;
                if at.hash == hash {
                    return Some(at);
                }
            }
        })
    }

    /// The entry of a key.
    #[inline]
    pub fn find(&self, hash: u64, key: &[u8]) -> Result<Option<Found<'_>>, Error> {
        if !self.filter.may_hold(hash) {
            return Ok(None);
        }
        for at in self.of_hash(hash) {
            if self.sorted.key(at)? == key {
                return self.sorted.entry(at).map(Some);
            }
        }
        Ok(None)
    }

    /// Whether a delta above `version` has an entry in it.
    pub fn reaches_above(&self, version: Version) -> bool {
        self.sorted.files.iter().any(|file| file.header.version > version)
    }

    /// Entries from the first at or above `from` on that deltas above `version` brought.
    pub fn cursor(&self, from: &[u8], version: Version) -> Result<RunCursor<'_>, Error> {
        let all_above = self.sorted.files.iter().all(|file| file.header.version > version);
        let above = if all_above { Version(0) } else { version };
        let mut cursor = RunCursor { run: self, next: self.sorted.first_at(from)?, key: None, above };
        cursor.advance().map(|()| cursor)
    }
}

/// Walks a run in key order.
pub(super) struct RunCursor<'a> {
    run: &'a Run,
    /// Number of the entry after the one at hand.
    next: usize,
    key: Option<&'a [u8]>,
    /// Entries of deltas up to this version are passed over; 0: none is.
    above: Version,
}

impl<'a> RunCursor<'a> {
    /// Key of the entry at hand; `None` at the end.
    #[inline]
    pub fn key(&self) -> Option<&'a [u8]> {
        self.key
    }

    /// The entry at hand.
    pub fn found(&self) -> Result<Option<Found<'a>>, Error> {
        match self.next.checked_sub(1).and_then(|number| self.run.sorted.refs.get(number)) {
            Some(at) if self.key.is_some() => self.run.sorted.entry(*at).map(Some),
            _ => Ok(None),
        }
    }

    /// Goes on to the next entry.
    pub fn advance(&mut self) -> Result<(), Error> {
        let sorted = &self.run.sorted;
        if self.above > Version(0) {
            while let Some(at) = sorted.refs.get(self.next)
                && sorted.file(*at)?.0.header.version <= self.above
            {
                self.next += 1;
            }
        }
        self.key = match sorted.refs.get(self.next) {
            Some(at) => Some(sorted.key(*at)?),
            None => None,
        };
        self.next += 1;
        Ok(())
    }
}

/// The class of a run of so many entries: 0 up to [`TINY`], 1 up to four times that, and so on.
fn class(entries: usize) -> u32 {
    entries.div_ceil(TINY).next_power_of_two().ilog2().div_ceil(2)
}

/// Runs that were made one beside the flow.
#[derive(Debug)]
pub struct Compaction {
    /// What they were, newest first.
    replaced: Vec<Arc<Run>>,
    by: Arc<Run>,
}

/// All runs of a view, newest first. Immutable; what is added makes another.
#[derive(Clone, Debug, Default)]
pub(super) struct Overlay {
    runs: Vec<Arc<Run>>,
}

impl Overlay {
    /// Out of deltas in the order of their versions.
    pub fn of(deltas: &[DeltaFile]) -> Result<Overlay, Error> {
        let newest_first = deltas.iter().rev().filter(|delta| !delta.parts().1.is_empty());
        let all: Vec<Sorted> = newest_first.map(Sorted::of).collect();
        let runs = match all.as_slice() {
            [] => Vec::new(),
            all => vec![Arc::new(Run::new(Sorted::merge(&all.iter().collect::<Vec<_>>())?))],
        };
        Ok(Overlay { runs })
    }

    /// With one more delta on top. Cost: the delta's entries, and now and then the merging of runs (see above), of up to `most`
    /// entries: larger ones are left.
    pub fn with(&self, delta: &DeltaFile, most: usize) -> Result<Overlay, Error> {
        let most_entries = if self.runs.len() < MOST { most } else { usize::MAX };
        let mut newest = Sorted::of(delta);
        if newest.refs.is_empty() {
            return Ok(self.clone());
        }
        let mut rest = self.runs.as_slice();
        loop {
            let most = class(newest.refs.len());
            let alike = rest.iter().take_while(|run| class(run.len()) <= most).count();
            let tiny = rest.first().is_some_and(|next| newest.refs.len() + next.len() <= TINY);
            let taken = match alike {
                APART.. => alike,
                _ if tiny => 1,
                _ => break,
            };
            let (merged, older) = rest.split_at(taken);
            if newest.refs.len() + merged.iter().map(|run| run.len()).sum::<usize>() > most_entries {
                break;
            }
            let all = std::iter::once(&newest).chain(merged.iter().map(|run| &run.sorted));
            newest = Sorted::merge(&all.collect::<Vec<_>>())?;
            rest = older;
        }
        let mut runs = Vec::with_capacity(rest.len() + 1);
        runs.push(Arc::new(Run::new(newest)));
        runs.extend(rest.iter().cloned());
        Ok(Overlay { runs })
    }

    /// The runs that are to become one and were left: the newest first of which enough of its class or below lie behind it.
    fn due(&self) -> Option<&[Arc<Run>]> {
        self.runs.iter().enumerate().find_map(|(at, newest)| {
            let behind = self.runs.get(at + 1..)?;
            let alike = behind.iter().take_while(|run| class(run.len()) <= class(newest.len())).count();
            (alike >= APART).then(|| self.runs.get(at..=at + alike)).flatten()
        })
    }

    /// Whether a merge was left.
    pub fn wants_compaction(&self) -> bool {
        self.due().is_some()
    }

    /// Makes the merge that was left. Blocking; cost: its entries.
    pub fn compact(&self) -> Result<Option<Compaction>, Error> {
        let Some(replaced) = self.due() else { return Ok(None) };
        let all: Vec<&Sorted> = replaced.iter().map(|run| &run.sorted).collect();
        let by = Arc::new(Run::new(Sorted::merge(&all)?));
        Ok(Some(Compaction { replaced: replaced.to_vec(), by }))
    }

    /// With what was merged in the place of what it was made of; `None`: that is not here any more.
    pub fn compacted(&self, Compaction { replaced, by }: &Compaction) -> Option<Overlay> {
        let same = |some: &[Arc<Run>]| some.iter().zip(replaced).all(|(a, b)| Arc::ptr_eq(a, b));
        let at = self.runs.windows(replaced.len()).position(same)?;
        let mut runs = self.runs.clone();
        runs.splice(at..at + replaced.len(), [by.clone()]);
        Some(Overlay { runs })
    }

    /// Without what deltas up to `version` brought.
    pub fn above(&self, version: Version) -> Overlay {
        let mut runs = Vec::new();
        for run in &self.runs {
            if run.sorted.files.iter().all(|file| file.header.version > version) {
                runs.push(run.clone());
                continue;
            }
            let above = run.sorted.above(version);
            if !above.refs.is_empty() {
                runs.push(Arc::new(Run::new(above)));
            }
        }
        Overlay { runs }
    }

    /// The newest entry of a key.
    #[inline]
    pub fn find(&self, hash: u64, key: &[u8]) -> Result<Option<Found<'_>>, Error> {
        for run in &self.runs {
            if let Some(found) = run.find(hash, key)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Asks for the memory that a lookup will look at first.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        for run in &self.runs {
            if let Some(word) = run.filter.word(hash) {
                prefetch(word);
            }
        }
    }

    /// Whether a delta may hold a key of this hash.
    #[inline(always)]
    pub fn may_hold(&self, hash: u64) -> bool {
        self.runs.iter().any(|run| run.may_hold(hash))
    }

    /// Runs, newest first.
    pub fn runs(&self) -> &[Arc<Run>] {
        &self.runs
    }

    /// Schemas that its entries are encoded in, each at least once, with the version of a delta that is.
    pub fn schemas(&self) -> impl Iterator<Item = (Version, &Arc<Schema>)> {
        let files = self.runs.iter().flat_map(|run| &run.sorted.files);
        files.map(|file| (file.header.version, &file.schema))
    }

    /// Charges what was not charged before.
    pub fn charge(&self, memory: &Budget) {
        for run in &self.runs {
            if run.charge.to(memory, run.memory_bytes()) {
                for file in &run.sorted.files {
                    file.charge.to(memory, file.memory_bytes());
                }
            }
        }
    }

    /// What it takes.
    pub fn size(&self) -> super::OverlaySize {
        let mut size = super::OverlaySize { runs: self.runs.len(), ..Default::default() };
        for run in &self.runs {
            size.entries += run.sorted.refs.len() as u64;
            size.memory_bytes += run.memory_bytes();
            for file in &run.sorted.files {
                size.deltas += 1;
                size.plain_bytes += file.data.bytes().len() as u64;
                size.memory_bytes += file.memory_bytes();
            }
        }
        size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_says_yes_of_all_that_is_there_and_seldom_of_the_rest() {
        for entries in [0u64, 1, 5, 1_000, 20_000] {
            let hash = |number: u64| index::hash(&number.to_be_bytes());
            let refs = (0..entries).map(|number| Ref { hash: hash(number), at: 0 }).collect();
            let filter = Filter::of(&Sorted { refs, files: Vec::new() });
            assert!((0..entries).all(|number| filter.may_hold(hash(number))));
            let wrong = (entries..entries + 20_000).filter(|number| filter.may_hold(hash(*number))).count();
            assert!(wrong < 800, "{wrong} of 20,000 hashes that none of {entries} entries has");
        }
    }
}
