//! What changed since the base: deltas, merged into few sorted runs.
//!
//! ```text
//! newest                                             oldest
//! run: [refs by key | hash table] -> deltas n, n-1      run -> deltas n-2 .. n-20      run -> ..      base
//! ```
//!
//! A run refers to entries that lie in deltas; nothing is copied. A new delta is a run. Runs are of classes: up to 1,024 entries,
//! four times as many, and so on. Once four runs are of the newest's class or below it, they become one; two that are tiny
//! together do at once. So there are at most three of each class: of 10,000 entries at most 9 runs, of a million 18, and half as
//! many more often than not. Three of four deltas of one size merge nothing: what a version costs is its delta; an
//! entry is merged once for each class.
//!
//! Owns: deltas in memory, runs. Does not own: the base, the order of versions (`mod`).

use std::cmp::Ordering;
use std::sync::Arc;

use super::charge::Charge;
use super::delta::{Content, Data, DeltaFile, Ref};
use super::map::prefetch;
use super::table::Tables;
use super::{Error, Found};
use crate::format::container;
use crate::format::index;
use crate::gauge::Budget;
use crate::schema::Schema;
use crate::version::Version;

/// Two newest runs with no more entries than this together are merged whatever their sizes: it takes microseconds.
const TINY: usize = 1024;

/// Runs of one class that stay apart.
const APART: usize = 3;

/// Entries ahead of those that are compared whose keys are asked for: a merge would wait for each one.
const AHEAD: usize = 8;

const OFFSET_BITS: u32 = 40;
const OFFSET_MASK: u64 = (1 << OFFSET_BITS) - 1;

/// Entries of one or more deltas by key, each key once.
#[derive(Clone, Debug)]
struct Sorted {
    files: Vec<Arc<Content>>,
    refs: Arc<[Ref]>,
}

impl Sorted {
    fn of(delta: &DeltaFile) -> Sorted {
        let (content, refs) = delta.parts();
        Sorted { refs: refs.clone(), files: vec![content.clone()] }
    }

    #[inline]
    fn file(&self, at: Ref) -> Result<(&Arc<Content>, &[u8]), Error> {
        let file = self
            .files
            .get((at.at >> OFFSET_BITS) as usize)
            .ok_or(Error::Internal("a run refers to no file"))?;
        let window = file.data.bytes().get((at.at & OFFSET_MASK) as usize..);
        Ok((file, window.ok_or(Error::Internal("a run refers beyond its file"))?))
    }

    #[inline]
    fn key(&self, at: Ref) -> Result<&[u8], Error> {
        let (file, window) = self.file(at)?;
        container::entry_key(window).map(|(key, _)| key).map_err(|_| changed(file))
    }

    #[inline]
    fn entry(&self, at: Ref) -> Result<Found<'_>, Error> {
        let (file, window) = self.file(at)?;
        let (entry, length) = container::entry(window, &file.schema).map_err(|_| changed(file))?;
        Ok(Found { entry, raw: window.get(..length).unwrap_or_default(), schema: &file.schema })
    }

    /// All of them as one, newest first; of a key that several have the newest entry counts. Each key is read once.
    fn merge(all: &[&Sorted]) -> Result<Sorted, Error> {
        let files: usize = all.iter().map(|sorted| sorted.files.len()).sum();
        if files > (u32::MAX >> 8) as usize {
            return Err(Error::Internal(
                "an overlay of more than 16 million deltas: it was never merged into a base",
            ));
        }
        let mut refs: Vec<Ref> = Vec::with_capacity(all.iter().map(|sorted| sorted.refs.len()).sum());
        let mut walks = Vec::with_capacity(all.len());
        let mut before = 0;
        for sorted in all {
            walks.extend(Walk::begin(sorted, (before as u64) << OFFSET_BITS)?);
            before += sorted.files.len();
        }
        while walks.len() > 1 {
            // The first of those with the least key, which is the newest.
            let mut least = 0;
            let mut key = walks.first().map(|walk| walk.key).unwrap_or_default();
            let mut repeated = false;
            for (number, walk) in walks.iter().enumerate().skip(1) {
                match walk.key.cmp(key) {
                    Ordering::Less => (least, key, repeated) = (number, walk.key, false),
                    Ordering::Equal => repeated = true,
                    Ordering::Greater => {}
                }
            }
            refs.extend(walks.get(least).map(|walk| walk.at));
            if repeated {
                let mut number = least;
                while let Some(walk) = walks.get_mut(number) {
                    if walk.key == key && !walk.step()? {
                        walks.remove(number);
                    } else {
                        number += 1;
                    }
                }
            } else if let Some(walk) = walks.get_mut(least)
                && !walk.step()?
            {
                walks.remove(least);
            }
        }
        if let Some(last) = walks.pop() {
            last.rest(&mut refs);
        }
        let files = all.iter().flat_map(|sorted| &sorted.files).cloned().collect();
        Ok(Sorted { files, refs: refs.into() }.without_idle_files())
    }

    /// Lets go of files that no entry is left of: where the same keys change again and again that is most of them.
    fn without_idle_files(mut self) -> Sorted {
        let mut places: Vec<Option<u64>> = vec![None; self.files.len()];
        for at in self.refs.iter() {
            if let Some(place) = places.get_mut((at.at >> OFFSET_BITS) as usize) {
                *place = Some(0);
            }
        }
        if places.iter().all(Option::is_some) {
            return self;
        }
        for (kept, place) in places.iter_mut().flatten().enumerate() {
            *place = kept as u64;
        }
        let mut used = places.iter();
        self.files.retain(|_| used.next().is_some_and(Option::is_some));
        let place = |at: u64| places.get((at >> OFFSET_BITS) as usize).copied().flatten().unwrap_or_default();
        self.refs = self
            .refs
            .iter()
            .map(|at| Ref { hash: at.hash, at: place(at.at) << OFFSET_BITS | at.at & OFFSET_MASK })
            .collect();
        self
    }

    /// Only what deltas above `version` brought.
    fn above(&self, version: Version) -> Sorted {
        let newer = |at: &&Ref| {
            let file = self.files.get((at.at >> OFFSET_BITS) as usize);
            file.is_some_and(|file| file.header.version > version)
        };
        let refs = self.refs.iter().filter(newer).copied().collect();
        Sorted { files: self.files.clone(), refs }.without_idle_files()
    }
}

/// Walks a run in key order, with what comes next on its way from memory.
struct Walk<'a> {
    sorted: &'a Sorted,
    /// What is added to where its entries lie, in a list of files that has others before its own.
    moved: u64,
    /// Number of the entry after the one at hand.
    next: usize,
    /// The entry at hand, as it lies in that list.
    at: Ref,
    key: &'a [u8],
}

impl<'a> Walk<'a> {
    /// `None` for a run without entries.
    fn begin(sorted: &'a Sorted, moved: u64) -> Result<Option<Walk<'a>>, Error> {
        let mut walk = Walk { sorted, moved, next: 0, at: Ref { hash: 0, at: 0 }, key: &[] };
        Ok(walk.step()?.then_some(walk))
    }

    /// Goes on to the next entry. False: there is none.
    #[inline]
    fn step(&mut self) -> Result<bool, Error> {
        let refs = &self.sorted.refs;
        if let Some(ahead) = refs.get(self.next + AHEAD)
            && let Some(byte) = self.sorted.file(*ahead)?.1.first()
        {
            prefetch(byte);
        }
        let Some(at) = refs.get(self.next) else { return Ok(false) };
        self.next += 1;
        self.key = self.sorted.key(*at)?;
        self.at = Ref { hash: at.hash, at: at.at + self.moved };
        Ok(true)
    }

    /// The entry at hand and all that follow.
    fn rest(self, refs: &mut Vec<Ref>) {
        refs.push(self.at);
        let rest = self.sorted.refs.get(self.next..).unwrap_or_default();
        refs.extend(rest.iter().map(|at| Ref { hash: at.hash, at: at.at + self.moved }));
    }
}

/// A delta was whole when it was opened and now is not: its file was changed under the map.
#[cold]
fn changed(file: &Content) -> Error {
    let what = format!("the delta of version {}", file.header.version);
    match &file.data {
        Data::Mapped(map) => Error::corrupt(map.path(), format!("{what} has changed since it was opened")),
        Data::Owned(_) => Error::Internal("a delta in memory has changed"),
    }
}

/// A sorted run with its hash table.
#[derive(Debug)]
pub(super) struct Run {
    sorted: Sorted,
    /// Open addressing, load at most one half: low half of the hash | number of the entry + 1; 0 is free.
    table: Box<[u64]>,
    tables: Tables,
    charge: Charge,
}

impl Run {
    fn new(sorted: Sorted) -> Run {
        let slots = (sorted.refs.len() * 2 + 1).max(2);
        let mut table = vec![0u64; slots].into_boxed_slice();
        for (number, at) in sorted.refs.iter().enumerate() {
            let mut slot = index::home(at.hash, slots as u64) as usize;
            // Ends: at least half of the slots are free.
            loop {
                match table.get_mut(slot) {
                    Some(free @ 0) => {
                        *free = at.hash << 32 | (number as u64 + 1);
                        break;
                    }
                    Some(_) => slot += 1,
                    None => slot = 0,
                }
            }
        }
        Run { sorted, table, tables: Tables::default(), charge: Charge::default() }
    }

    /// Entries in it.
    pub fn len(&self) -> usize {
        self.sorted.refs.len()
    }

    /// Bytes of memory, besides its deltas and lookup tables.
    fn memory_bytes(&self) -> u64 {
        (self.table.len() * 8 + self.sorted.refs.len() * 16 + self.sorted.files.len() * 8) as u64
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
        let mut slot = index::home(hash, self.table.len() as u64) as usize;
        loop {
            match self.table.get(slot) {
                Some(0) => return false,
                Some(&taken) if taken >> 32 == hash & 0xffff_ffff => return true,
                Some(_) => slot += 1,
                None => slot = 0,
            }
        }
    }

    /// The entry of a key.
    #[inline]
    pub fn find(&self, hash: u64, key: &[u8]) -> Result<Option<Found<'_>>, Error> {
        let mut slot = index::home(hash, self.table.len() as u64) as usize;
        loop {
            match self.table.get(slot) {
                Some(0) => return Ok(None),
                Some(&taken) => {
                    if taken >> 32 == hash & 0xffff_ffff
                        && let Some(at) = self.sorted.refs.get((taken as u32 - 1) as usize)
                        && self.sorted.key(*at)? == key
                    {
                        return self.sorted.entry(*at).map(Some);
                    }
                    slot += 1;
                }
                None => slot = 0,
            }
        }
    }

    /// Whether a delta above `version` has an entry in it.
    pub fn reaches_above(&self, version: Version) -> bool {
        self.sorted.files.iter().any(|file| file.header.version > version)
    }

    /// Entries from the first at or above `from` on that deltas above `version` brought.
    pub fn cursor(&self, from: &[u8], version: Version) -> Result<RunCursor<'_>, Error> {
        let refs = &self.sorted.refs;
        let (mut low, mut high) = (0, refs.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let at = refs.get(middle).ok_or(Error::Internal("a run shorter than itself"))?;
            if self.sorted.key(*at)? < from {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let all_above = self.sorted.files.iter().all(|file| file.header.version > version);
        let above = if all_above { Version(0) } else { version };
        let mut cursor = RunCursor { run: self, next: low, key: None, above };
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

/// All runs of a view, newest first. Immutable; what is added makes another.
#[derive(Clone, Debug, Default)]
pub(super) struct Overlay {
    runs: Vec<Arc<Run>>,
}

impl Overlay {
    /// Out of deltas in the order of their versions.
    pub fn of(deltas: &[DeltaFile]) -> Result<Overlay, Error> {
        let newest_first = deltas.iter().rev().filter(|delta| !delta.parts().1.is_empty());
        let mut layer: Vec<Sorted> = newest_first.map(Sorted::of).collect();
        // A few neighbours at a time, since each entry is compared with all heads; only the last result is hashed.
        while layer.len() > 1 {
            let several = layer.chunks(APART + 1).map(|some| Sorted::merge(&some.iter().collect::<Vec<_>>()));
            layer = several.collect::<Result<_, _>>()?;
        }
        Ok(Overlay { runs: layer.into_iter().map(|sorted| Arc::new(Run::new(sorted))).collect() })
    }

    /// With one more delta on top. Cost: the delta's entries, and now and then the merging of runs (see above).
    pub fn with(&self, delta: &DeltaFile) -> Result<Overlay, Error> {
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
            let all = std::iter::once(&newest).chain(merged.iter().map(|run| &run.sorted));
            newest = Sorted::merge(&all.collect::<Vec<_>>())?;
            rest = older;
        }
        let mut runs = Vec::with_capacity(rest.len() + 1);
        runs.push(Arc::new(Run::new(newest)));
        runs.extend(rest.iter().cloned());
        Ok(Overlay { runs })
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
            if let Some(slot) = run.table.get(index::home(hash, run.table.len() as u64) as usize) {
                prefetch(slot);
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
