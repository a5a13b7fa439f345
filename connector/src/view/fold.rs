//! A fold of any number of records in bounded memory: sorted runs on disk, merged once, and held against a view.
//!
//! ```text
//!  records ==push==> [ buffer, 64 MiB ] --sorted, one entry a key--> run   run   run      temporary files, mapped
//!                                                                      \    |    /
//!                                            view (base + overlay) ==> merge by key ==> delta: what differs
//! ```
//!
//! Memory: the buffer and 48 bytes for each entry in it, and for each run the entry that is next. The runs lie in the
//! page cache at most. Disk: what was pushed, once, less what a later record of the same key replaced.
//!
//! Owns: the fold's order, and what a difference is. Does not own: where the records come from, what is to be deleted,
//! which version it becomes (`producer/rebuild`).

use std::borrow::Cow;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::io::BufWriter;
use std::sync::Arc;

use bytes::Bytes;

use super::cache::Temporary;
use super::map::Map;
use super::{Cache, Error, Identity, View};
use crate::format::container::{Entries, Header, Kind, Reader, Summary, Writer, compress};
use crate::record::{Entry, SourcePartition, Stamp};
use crate::schema::Schema;
use crate::version::{Checksum, Life, Version};

/// Bytes of keys and values that are sorted at a time.
const RUN_BYTES: usize = 64 << 20;
/// Entries of them.
const RUN_ENTRIES: usize = 1 << 20;

/// Where one pushed record lies in the buffer.
struct Slot {
    /// See [`prefix`]: decides most comparisons without touching the key.
    prefix: u64,
    at: usize,
    key: u32,
    /// `None` is a delete.
    value: Option<u32>,
    stamp: Stamp,
}

struct Run {
    map: Map,
    /// Removed with the run; the map keeps the bytes.
    _file: Temporary,
}

/// The fold under way.
pub struct Fold {
    cache: Cache,
    identity: Identity,
    schema: Arc<Schema>,
    sources: Arc<[SourcePartition]>,
    bytes: Vec<u8>,
    slots: Vec<Slot>,
    most: (usize, usize),
    runs: Vec<Run>,
    pushed: u64,
}

/// What to do with a key of the view that the fold does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// It is deleted.
    Delete,
    /// It stays.
    Keep,
}

/// What differs between a view and a fold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Keys that are added.
    pub added: u64,
    /// Keys whose value is another.
    pub changed: u64,
    /// Keys that are deleted.
    pub deleted: u64,
    /// Keys that the fold does not hold and that stay.
    pub kept: u64,
    /// Keys with the same value.
    pub unchanged: u64,
}

/// A delta that makes a fold of a view: written, not yet named.
pub struct Difference {
    /// Its plain form.
    pub file: Temporary,
    /// What was written.
    pub summary: Summary,
    /// What it consists of.
    pub counts: Counts,
}

impl Difference {
    /// Its stored form and the checksum of that, compressed where `level` says how. The bytes lie in a mapped file, which
    /// is gone with them. Blocking.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn pack(
        &self,
        level: Option<i32>,
        cache: &Cache,
        identity: &Identity,
    ) -> Result<(Bytes, Checksum), Error> {
        let plain = Map::open(self.file.path(), self.summary.plain_bytes)?;
        let Some(level) = level else {
            return Ok((Bytes::from_owner(plain), self.summary.plain_checksum));
        };
        let packed = cache.temporary(identity)?;
        let path = packed.path().to_owned();
        let mut out = BufWriter::with_capacity(1 << 20, packed);
        let stored = plain
            .pass(|plain| compress(plain, level, &mut out))
            .map_err(|error| Error::writing(&path, error))?;
        let packed = out.into_inner().map_err(|error| Error::io("writing", &path, error.into_error()))?;
        let bytes = packed.file().metadata().map_err(|source| Error::io("looking at", &path, source))?.len();
        Ok((Bytes::from_owner(Map::open(&path, bytes)?), stored.checksum))
    }
}

impl Fold {
    /// An empty fold of records of `sources` in `schema`, whose runs are temporary files of `cache`.
    pub fn new(
        cache: Cache,
        identity: Identity,
        schema: Arc<Schema>,
        sources: Arc<[SourcePartition]>,
    ) -> Fold {
        Fold {
            cache,
            identity,
            schema,
            sources,
            bytes: Vec::new(),
            slots: Vec::new(),
            most: (RUN_BYTES, RUN_ENTRIES),
            runs: Vec::new(),
            pushed: 0,
        }
    }

    /// The same with smaller runs.
    #[cfg(test)]
    fn with_runs_of(self, entries: usize) -> Fold {
        Fold { most: (RUN_BYTES, entries), ..self }
    }

    /// Records that were pushed.
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Takes a record; `None` deletes its key. Blocking, now and then: writes a run.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn push(&mut self, key: &[u8], value: Option<&[u8]>, stamp: Stamp) -> Result<(), Error> {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value.unwrap_or_default());
        let (length, value) = (key.len() as u32, value.map(|value| value.len() as u32));
        self.slots.push(Slot { prefix: prefix(key), at, key: length, value, stamp });
        self.pushed += 1;
        if self.bytes.len() >= self.most.0 || self.slots.len() >= self.most.1 {
            self.spill()?;
        }
        Ok(())
    }

    /// Sorts what is in the buffer, and writes it as a run.
    fn spill(&mut self) -> Result<(), Error> {
        if self.slots.is_empty() {
            return Ok(());
        }
        let mut slots = std::mem::take(&mut self.slots);
        let bytes = std::mem::take(&mut self.bytes);
        let key = |slot: &Slot| bytes.get(slot.at..slot.at + slot.key as usize).unwrap_or_default();
        // Stable: of one key the order of arrival stays.
        slots.sort_by(|a, b| a.prefix.cmp(&b.prefix).then_with(|| key(a).cmp(key(b))));
        let nobody = Life { epoch: 0, writer: uuid::Uuid::nil() };
        let header = self.identity.header(
            Kind::Delta,
            Version(1),
            Version(0),
            nobody,
            &self.schema,
            self.sources.to_vec(),
        );
        let file = self.cache.temporary(&self.identity)?;
        let path = file.path().to_owned();
        let writing = |error| Error::writing(&path, error);
        let mut writer = Writer::new(BufWriter::with_capacity(1 << 20, file), &header).map_err(writing)?;
        for group in slots.chunk_by(|a, b| a.prefix == b.prefix && key(a) == key(b)) {
            let Some((first, later)) = group.split_first() else { continue };
            let mut winner = first;
            for slot in later {
                if self.wins(&slot.stamp, &winner.stamp) {
                    winner = slot;
                }
            }
            let start = winner.at + winner.key as usize;
            let value =
                winner.value.map(|length| bytes.get(start..start + length as usize).unwrap_or_default());
            writer.push(&Entry { key: key(winner), stamp: winner.stamp, value }).map_err(writing)?;
        }
        let (summary, out) = writer.finish().map_err(writing)?;
        let file = out.into_inner().map_err(|error| Error::io("writing", &path, error.into_error()))?;
        self.runs.push(Run { map: Map::open(&path, summary.plain_bytes)?, _file: file });
        // Kept for the next run: their room is what was reckoned with.
        slots.clear();
        (self.slots, self.bytes) = (slots, bytes);
        self.bytes.clear();
        Ok(())
    }

    /// Whether a record that arrived later replaces an earlier one of its key: within a partition the higher offset
    /// does; of two partitions the later timestamp, then topic, partition and offset, as in building versions.
    fn wins(&self, later: &Stamp, earlier: &Stamp) -> bool {
        if later.source == earlier.source {
            return later.offset >= earlier.offset;
        }
        let rank = |stamp: &Stamp| {
            let source = self.sources.get(stamp.source as usize);
            (stamp.timestamp, source.map(|source| (source.topic.clone(), source.partition)), stamp.offset)
        };
        rank(later).cmp(&rank(earlier)) == Ordering::Greater
    }

    /// Writes what differs between `view` and this fold as the delta of the next version, which `life` writes.
    /// `absent` says what becomes of a key that only the view holds, by where it came from. Blocking; cost: a pass over
    /// the runs and the view.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a page of the view is damaged; [`Error::Io`].
    pub fn difference(
        mut self,
        view: &View,
        life: Life,
        absent: impl Fn(&Stamp) -> Absent,
    ) -> Result<Difference, Error> {
        self.spill()?;
        (self.slots, self.bytes) = (Vec::new(), Vec::new());
        let header = self.identity.header(
            Kind::Delta,
            view.version().next(),
            view.version(),
            life,
            view.schema(),
            self.sources.to_vec(),
        );
        let header = Header { former: view.former().clone(), ..header };
        let file = self.cache.temporary(&self.identity)?;
        let path = file.path().to_owned();
        let writing = |error| Error::writing(&path, error);
        let mut writer = Writer::new(BufWriter::with_capacity(1 << 20, file), &header).map_err(writing)?;

        let mut counts = Counts::default();
        let mut merged = view.merged(&[])?;
        let mut held = merged.next()?;
        let mut fold = Merge::over(&self)?;
        let mut next = fold.next()?;
        loop {
            let order = match (&held, &next) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(held), Some(next)) => held.entry.key.cmp(next.key),
            };
            match order {
                Ordering::Less => {
                    if let Some(found) = held.filter(|found| found.entry.value.is_some()) {
                        match absent(&found.entry.stamp) {
                            Absent::Keep => counts.kept += 1,
                            Absent::Delete => {
                                counts.deleted += 1;
                                let gone = Entry { value: None, ..found.entry };
                                writer.push(&gone).map_err(writing)?;
                            }
                        }
                    }
                }
                Ordering::Greater => {
                    if let Some(entry) = next.filter(|entry| entry.value.is_some()) {
                        counts.added += 1;
                        writer.push(&entry).map_err(writing)?;
                    }
                }
                Ordering::Equal => {
                    if let (Some(found), Some(entry)) = (&held, &next) {
                        let was: Option<Cow<'_, [u8]>> = view.resolved(found)?;
                        match (was.as_deref(), entry.value) {
                            (was, is) if was == is => counts.unchanged += u64::from(is.is_some()),
                            (None, _) => counts.added += 1,
                            (Some(_), None) => counts.deleted += 1,
                            (Some(_), Some(_)) => counts.changed += 1,
                        }
                        if was.as_deref() != entry.value {
                            writer.push(entry).map_err(writing)?;
                        }
                    }
                }
            }
            if order != Ordering::Greater {
                held = merged.next()?;
            }
            if order != Ordering::Less {
                next = fold.next()?;
            }
        }
        let (summary, out) = writer.finish().map_err(writing)?;
        let file = out.into_inner().map_err(|error| Error::io("writing", &path, error.into_error()))?;
        Ok(Difference { file, summary, counts })
    }
}

/// The entries of all runs in key order, of each key the one that counts.
struct Merge<'a> {
    fold: &'a Fold,
    runs: Vec<Entries<'a, 'a>>,
    /// The next entry of each run; of one key the earlier run first.
    heads: BinaryHeap<Reverse<Head<'a>>>,
}

struct Head<'a> {
    entry: Entry<'a>,
    run: usize,
}

impl Head<'_> {
    fn order(&self) -> (&[u8], usize) {
        (self.entry.key, self.run)
    }
}

impl PartialEq for Head<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Head<'_> {}

impl PartialOrd for Head<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Head<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

impl<'a> Merge<'a> {
    fn over(fold: &'a Fold) -> Result<Merge<'a>, Error> {
        let mut merge = Merge { fold, runs: Vec::with_capacity(fold.runs.len()), heads: BinaryHeap::new() };
        for (number, run) in fold.runs.iter().enumerate() {
            run.map.will_scan();
            let reader = Reader::parse(run.map.bytes())
                .map_err(|error| Error::corrupt(run.map.path(), error.to_string()))?;
            merge.runs.push(reader.entries(&fold.schema));
            merge.refill(number)?;
        }
        Ok(merge)
    }

    fn refill(&mut self, run: usize) -> Result<(), Error> {
        let next = self.runs.get_mut(run).and_then(Iterator::next).transpose();
        let next = next.map_err(|error| {
            let path = self.fold.runs.get(run).map(|run| run.map.path().to_owned()).unwrap_or_default();
            Error::corrupt(&path, error.to_string())
        })?;
        self.heads.extend(next.map(|located| Reverse(Head { entry: located.entry, run })));
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Entry<'a>>, Error> {
        let Some(Reverse(Head { entry: mut winner, run })) = self.heads.pop() else { return Ok(None) };
        self.refill(run)?;
        while let Some(Reverse(Head { entry, run })) = self.heads.peek()
            && entry.key == winner.key
        {
            let (entry, run) = (*entry, *run);
            self.heads.pop();
            if self.fold.wins(&entry.stamp, &winner.stamp) {
                winner = entry;
            }
            self.refill(run)?;
        }
        Ok(Some(winner))
    }
}

/// A key's first eight bytes, big-endian, zeros behind a shorter one: of two keys it decides the order unless it is the same.
pub(super) fn prefix(key: &[u8]) -> u64 {
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(key) {
        *to = *from;
    }
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests;
