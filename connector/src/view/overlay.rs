//! What changed since the base: deltas, merged into few sorted runs.
//!
//! ```text
//! newest                                             oldest
//! run: [refs by key | hash table] -> deltas n, n-1      run -> deltas n-2 .. n-20      run -> ..      base
//! ```
//!
//! A run refers to entries that lie in deltas; nothing is copied. A new delta is a run; while the newest run has at
//! least half as many entries as the one before it, or both together are tiny, the two become one. So each run is more
//! than twice as large as the one before it, the newest two hold more than 1024, and so of n entries there are at most
//! 2 + log2(n / 683) runs: 5 for 10,000 entries, 12 for a million. An entry is merged about as often as there are runs.
//!
//! Owns: deltas in memory, runs. Does not own: the base, the order of versions (`mod`).

use std::cmp::Ordering;
use std::fs;
use std::sync::Arc;

use super::cache::Held;
use super::lookup::Tables;
use super::map::{Map, prefetch};
use super::{Error, Found, Identity};
use crate::format::container::{self, Counts, Header, Kind, Reader};
use crate::format::index;
use crate::schema::Schema;
use crate::version::{Checksum, DeltaRef, Version};

/// Smaller deltas are read rather than mapped: a map costs more than such a copy, and a kernel object besides.
const MAP_FROM: u64 = 256 << 10;

/// Two newest runs with no more entries than this together are merged whatever their sizes: it takes microseconds.
const TINY: usize = 1024;

const OFFSET_BITS: u32 = 40;
const OFFSET_MASK: u64 = (1 << OFFSET_BITS) - 1;

#[derive(Debug)]
enum Data {
    Mapped(Map),
    Owned(Box<[u8]>),
}

impl Data {
    #[inline]
    fn bytes(&self) -> &[u8] {
        match self {
            Data::Mapped(map) => map.bytes(),
            Data::Owned(bytes) => bytes,
        }
    }
}

/// An entry: its key's hash, and where it lies.
#[derive(Clone, Copy, Debug)]
struct Ref {
    hash: u64,
    /// 24 bits: which of the run's files; 40 bits: offset there.
    at: u64,
}

/// A delta's bytes, and what it takes to read them: all that a run keeps of it.
#[derive(Debug)]
struct Content {
    header: Header,
    schema: Arc<Schema>,
    data: Data,
}

/// A delta in memory, checked whole.
#[derive(Debug)]
pub struct DeltaFile {
    content: Arc<Content>,
    refs: Arc<[Ref]>,
    counts: Counts,
    checksum: Checksum,
    held: Option<Held>,
}

impl DeltaFile {
    /// Opens a delta of the cache and checks it whole: its checksum, that it is the one `delta` speaks of, each entry.
    /// `known` is shared where the delta's schema is the same. Blocking; cost: a pass over its bytes.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is anything else; [`Error::Io`].
    pub fn open(
        held: &Held,
        identity: &Identity,
        delta: &DeltaRef,
        known: &Arc<Schema>,
    ) -> Result<DeltaFile, Error> {
        let path = held.path();
        let data = if held.bytes() >= MAP_FROM {
            Data::Mapped(Map::open(path, delta.blob.plain_bytes)?)
        } else {
            Data::Owned(fs::read(path).map_err(|source| Error::io("reading", path, source))?.into())
        };
        let file = DeltaFile::parse(data, known).and_then(|file| {
            let blob = &delta.blob;
            let counts = Counts { upserts: delta.upserts, deletes: delta.deletes };
            identity.expect(file.header(), Kind::Delta, delta.version, delta.epoch)?;
            if file.checksum != blob.plain_checksum {
                return Err(format!("its checksum is {} instead of {}", file.checksum, blob.plain_checksum));
            }
            if file.counts != counts {
                return Err(format!("it holds {:?} instead of {counts:?}", file.counts));
            }
            Ok(DeltaFile { held: Some(held.clone()), ..file })
        });
        file.map_err(|detail| Error::corrupt(path, detail))
    }

    /// A delta that was just written by this process, or came inline; checked as one from disk is.
    ///
    /// # Errors
    /// [`Error::Foreign`] if it is not a delta of this shard.
    pub fn from_plain(bytes: Vec<u8>, identity: &Identity, known: &Arc<Schema>) -> Result<DeltaFile, Error> {
        let foreign = |detail| Error::Foreign { what: "a delta in memory".into(), detail };
        let file = DeltaFile::parse(Data::Owned(bytes.into()), known).map_err(foreign)?;
        identity
            .expect(file.header(), Kind::Delta, file.header().version, file.header().life.epoch)
            .map_err(foreign)?;
        Ok(file)
    }

    fn parse(data: Data, known: &Arc<Schema>) -> Result<DeltaFile, String> {
        let reader = Reader::parse(data.bytes()).map_err(|error| error.to_string())?;
        let header = reader.header();
        let schema = schema_of(header, known)?;
        let mut refs = Vec::with_capacity(header.counts.map_or(0, |counts| {
            // A hint from bytes that are not checked yet: an entry takes five bytes at least.
            counts.entries().min(data.bytes().len() as u64 / 5) as usize
        }));
        let mut counts = Counts::default();
        for located in reader.entries(&schema) {
            let located = located.map_err(|error| error.to_string())?;
            refs.push(Ref { hash: index::hash(located.entry.key), at: located.offset });
            match located.entry.value {
                Some(_) => counts.upserts += 1,
                None => counts.deletes += 1,
            }
        }
        let header = reader.into_header();
        let checksum = Checksum::of(data.bytes());
        let content = Arc::new(Content { header, schema, data });
        Ok(DeltaFile { content, refs: refs.into(), counts, checksum, held: None })
    }

    /// With its file in the cache, which then is kept for as long as a view needs it to be found after a restart.
    pub fn with_file(self, held: Held) -> DeltaFile {
        DeltaFile { held: Some(held), ..self }
    }

    /// Its file in the cache.
    pub fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// What it is.
    pub fn header(&self) -> &Header {
        &self.content.header
    }

    /// The schema of its values.
    pub fn schema(&self) -> &Arc<Schema> {
        &self.content.schema
    }

    /// Its entries, counted.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Its bytes.
    pub fn plain(&self) -> &[u8] {
        self.content.data.bytes()
    }

    /// Checksum of its bytes.
    pub fn checksum(&self) -> Checksum {
        self.checksum
    }
}

/// The schema of a blob's values: `known` if it is the same, since parsing one for each delta would cost more than the
/// delta.
pub(super) fn schema_of(header: &Header, known: &Arc<Schema>) -> Result<Arc<Schema>, String> {
    if *header.entry_schema == *known.entry_json() {
        return Ok(known.clone());
    }
    let schema = header.schema().map_err(|error| error.to_string())?;
    // Only documentation, defaults or the like differ: one schema for both spares every read a resolution.
    Ok(if schema.encodes_like(known) { known.clone() } else { Arc::new(schema) })
}

/// Entries of one or more deltas by key, each key once.
#[derive(Clone, Debug)]
struct Sorted {
    files: Vec<Arc<Content>>,
    refs: Arc<[Ref]>,
}

impl Sorted {
    fn of(delta: &DeltaFile) -> Sorted {
        Sorted { refs: delta.refs.clone(), files: vec![delta.content.clone()] }
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

    /// Both as one; where both have a key, `newer` counts.
    fn merge(newer: &Sorted, older: &Sorted) -> Result<Sorted, Error> {
        let shift = newer.files.len() as u64;
        if shift + older.files.len() as u64 > u64::from(u32::MAX >> 8) {
            return Err(Error::Internal(
                "an overlay of more than 16 million deltas: it was never merged into a base",
            ));
        }
        let mut refs: Vec<Ref> = Vec::with_capacity(newer.refs.len() + older.refs.len());
        let moved = |at: &Ref| Ref { hash: at.hash, at: at.at + (shift << OFFSET_BITS) };
        let (mut new, mut old) = (newer.refs.iter(), older.refs.iter());
        let mut heads = (head(newer, new.next())?, head(older, old.next())?);
        loop {
            match heads {
                (Some((at, key)), Some((before, beneath))) => match key.cmp(beneath) {
                    Ordering::Less => {
                        refs.push(*at);
                        heads.0 = head(newer, new.next())?;
                    }
                    Ordering::Greater => {
                        refs.push(moved(before));
                        heads.1 = head(older, old.next())?;
                    }
                    Ordering::Equal => {
                        refs.push(*at);
                        heads = (head(newer, new.next())?, head(older, old.next())?);
                    }
                },
                (Some((at, _)), None) => {
                    refs.push(*at);
                    refs.extend(new.copied());
                    break;
                }
                (None, Some((before, _))) => {
                    refs.push(moved(before));
                    refs.extend(old.map(moved));
                    break;
                }
                (None, None) => break,
            }
        }
        let files = newer.files.iter().chain(&older.files).cloned().collect();
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

type Head<'a> = Option<(&'a Ref, &'a [u8])>;

#[inline]
fn head<'a>(sorted: &'a Sorted, at: Option<&'a Ref>) -> Result<Head<'a>, Error> {
    match at {
        Some(at) => Ok(Some((at, sorted.key(*at)?))),
        None => Ok(None),
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
        Run { sorted, table, tables: Tables::default() }
    }

    /// Entries in it.
    pub fn len(&self) -> usize {
        self.sorted.refs.len()
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
        let above = if self.sorted.files.iter().all(|file| file.header.version > version) {
            Version(0)
        } else {
            version
        };
        let mut cursor = RunCursor { run: self, next: low, key: None, above };
        cursor.advance()?;
        Ok(cursor)
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

/// All runs of a view, newest first. Immutable; what is added makes another.
#[derive(Clone, Debug, Default)]
pub(super) struct Overlay {
    runs: Vec<Arc<Run>>,
}

impl Overlay {
    /// Out of deltas in the order of their versions.
    pub fn of(deltas: &[DeltaFile]) -> Result<Overlay, Error> {
        // In pairs of neighbours, then pairs of pairs: each entry moves log2 times, and only the last result is hashed.
        let mut layer: Vec<Sorted> =
            deltas.iter().filter(|delta| !delta.refs.is_empty()).map(Sorted::of).collect();
        while layer.len() > 1 {
            let mut above = Vec::with_capacity(layer.len().div_ceil(2));
            for pair in layer.chunks(2) {
                above.push(match pair {
                    [older, newer] => Sorted::merge(newer, older)?,
                    single => single.first().cloned().ok_or(Error::Internal("an empty pair"))?,
                });
            }
            layer = above;
        }
        Ok(Overlay { runs: layer.into_iter().map(|sorted| Arc::new(Run::new(sorted))).collect() })
    }

    /// With one more delta on top. Cost: the delta's entries, and now and then the merging of runs (see above).
    pub fn with(&self, delta: &DeltaFile) -> Result<Overlay, Error> {
        if delta.refs.is_empty() {
            return Ok(self.clone());
        }
        let mut newest = Sorted::of(delta);
        let mut rest = self.runs.as_slice();
        while let Some((next, older)) = rest.split_first() {
            let (new, old) = (newest.refs.len(), next.sorted.refs.len());
            if new + old > TINY && new * 2 < old {
                break;
            }
            newest = Sorted::merge(&newest, &next.sorted)?;
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

    /// Schemas that its entries are encoded in, each at least once.
    pub fn schemas(&self) -> impl Iterator<Item = &Arc<Schema>> {
        self.runs.iter().flat_map(|run| run.sorted.files.iter().map(|file| &file.schema))
    }

    /// What it takes.
    pub fn size(&self) -> super::OverlaySize {
        let mut size = super::OverlaySize { runs: self.runs.len(), ..Default::default() };
        for run in &self.runs {
            size.entries += run.sorted.refs.len() as u64;
            size.memory_bytes += (run.table.len() * 8 + run.sorted.refs.len() * 16) as u64;
            for file in &run.sorted.files {
                size.deltas += 1;
                size.plain_bytes += file.data.bytes().len() as u64;
                if let Data::Owned(bytes) = &file.data {
                    size.memory_bytes += bytes.len() as u64;
                }
            }
        }
        size
    }
}
