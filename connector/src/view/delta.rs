//! A delta in memory, checked whole.
//!
//! Owns: its bytes and where its entries lie. Does not own: what becomes of several (`overlay`).

use std::fs;
use std::sync::Arc;

use super::cache::Held;
use super::charge::Charge;
use super::line::{as_announced, schema_of};
use super::map::Map;
use super::{Error, Identity};
use crate::format::container::{Counts, Head, Header, Kind};
use crate::format::index;
use crate::schema::Schema;
use crate::threads;
use crate::version::{Checksum, DeltaRef};

/// Smaller deltas are read rather than mapped: a map costs more than such a copy, and a kernel object besides.
pub(super) const MAP_FROM: u64 = 256 << 10;

/// Bytes of deltas from which on a thread more is worth what it takes to begin one.
const PARALLEL_FROM: u64 = 1 << 20;

#[derive(Debug)]
pub(super) enum Data {
    Mapped(Map),
    Owned(Box<[u8]>),
}

impl Data {
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Data::Mapped(map) => map.bytes(),
            Data::Owned(bytes) => bytes,
        }
    }
}

/// An entry: its key's hash, and where it lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ref {
    pub hash: u64,
    /// 24 bits: which of the run's files; 40 bits: offset there.
    pub at: u64,
}

/// A delta's bytes, and what it takes to read them: all that a run keeps of it.
#[derive(Debug)]
pub(super) struct Content {
    pub header: Header,
    pub schema: Arc<Schema>,
    pub data: Data,
    pub charge: Charge,
}

impl Content {
    /// Bytes of memory, besides what is mapped.
    pub fn memory_bytes(&self) -> u64 {
        let data = match &self.data {
            Data::Mapped(_) => 0,
            Data::Owned(bytes) => bytes.len(),
        };
        (data + self.header.entry_schema.len() + size_of::<Content>()) as u64
    }
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
        Begun::open(held, delta, known)?.checked(identity)
    }

    /// Whether a delta of these bytes is read into memory and not mapped, so that who has them needs no file to read it.
    pub fn is_small(plain: &[u8]) -> bool {
        (plain.len() as u64) < MAP_FROM
    }

    /// Once it is what was announced.
    fn checked(self, held: &Held, identity: &Identity, delta: &DeltaRef) -> Result<DeltaFile, String> {
        let blob = &delta.blob;
        let counts = Counts { upserts: delta.upserts, deletes: delta.deletes };
        identity.expect(self.header(), Kind::Delta, delta.version, delta.epoch)?;
        if self.checksum != blob.plain_checksum {
            return Err(format!("its checksum is {} instead of {}", self.checksum, blob.plain_checksum));
        }
        if self.counts != counts {
            return Err(format!("it holds {:?} instead of {counts:?}", self.counts));
        }
        Ok(DeltaFile { held: Some(held.clone()), ..self })
    }

    /// Opens deltas of the cache that follow one another, as [`DeltaFile::open`] does, several at a time. From the newest on,
    /// whose schema may be `known`: neighbours share theirs. One that comes back after another is not shared, or what was
    /// written before could not be told from what was written since.
    ///
    /// # Errors
    /// As [`DeltaFile::open`], of one of those that fail.
    pub fn open_all(
        deltas: &[(&Held, &DeltaRef)],
        identity: &Identity,
        known: &Arc<Schema>,
    ) -> Result<Vec<DeltaFile>, Error> {
        let mut begun: Vec<Begun<'_>> = Vec::with_capacity(deltas.len());
        for (held, delta) in deltas.iter().rev() {
            let known = begun.last().map_or(known, |next| &next.schema);
            begun.push(Begun::open(held, delta, known)?);
        }
        begun.reverse();
        let bytes: u64 = deltas.iter().map(|(held, _)| held.bytes()).sum();
        if bytes < PARALLEL_FROM {
            return begun.into_iter().map(|begun| begun.checked(identity)).collect();
        }
        threads::several(begun, |begun| begun.checked(identity)).into_iter().collect()
    }

    /// A delta that was just written by this process, or came inline; checked as one from disk is.
    ///
    /// # Errors
    /// [`Error::Foreign`] if it is not a delta of this shard.
    pub fn from_plain(bytes: Vec<u8>, identity: &Identity, known: &Arc<Schema>) -> Result<DeltaFile, Error> {
        let foreign = |detail| Error::Foreign { what: "a delta in memory".into(), detail };
        let data = Data::Owned(bytes.into());
        let head = Head::parse(data.bytes()).map_err(|error| foreign(error.to_string()))?;
        let schema = schema_of(head.header(), known).map_err(foreign)?;
        let file = DeltaFile::read(data, head, schema).map_err(foreign)?;
        identity
            .expect(file.header(), Kind::Delta, file.header().version, file.header().life.epoch)
            .map_err(foreign)?;
        Ok(file)
    }

    /// Reads the entries behind its head, whose values are of `schema`.
    fn read(data: Data, head: Head, schema: Arc<Schema>) -> Result<DeltaFile, String> {
        let reader = head.reader(data.bytes());
        let mut refs = Vec::with_capacity(reader.header().counts.map_or(0, |counts| {
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
        let content = Arc::new(Content { header, schema, data, charge: Charge::default() });
        Ok(DeltaFile { content, refs: refs.into(), counts, checksum, held: None })
    }

    /// What a run keeps of it: its bytes, and its entries in the order of their keys.
    pub(super) fn parts(&self) -> (&Arc<Content>, &Arc<[Ref]>) {
        (&self.content, &self.refs)
    }

    /// With its schema as it was announced, where it is another than `view`'s: the blob's text may have a namespace more.
    pub fn announced_as(mut self, view: &Arc<Schema>, announced: &Schema) -> DeltaFile {
        if !Arc::ptr_eq(view, self.schema())
            && let Some(schema) = as_announced(self.header(), announced)
            && let Some(content) = Arc::get_mut(&mut self.content)
        {
            content.schema = schema;
        }
        self
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

fn bytes_of(held: &Held, delta: &DeltaRef) -> Result<Data, Error> {
    let path = held.path();
    if held.bytes() >= MAP_FROM {
        return Ok(Data::Mapped(Map::open(path, delta.blob.plain_bytes)?));
    }
    Ok(Data::Owned(fs::read(path).map_err(|source| Error::io("reading", path, source))?.into()))
}

/// A delta of the cache of which the header was read.
struct Begun<'a> {
    held: &'a Held,
    delta: &'a DeltaRef,
    data: Data,
    head: Head,
    schema: Arc<Schema>,
}

impl<'a> Begun<'a> {
    fn open(held: &'a Held, delta: &'a DeltaRef, known: &Arc<Schema>) -> Result<Begun<'a>, Error> {
        let data = bytes_of(held, delta)?;
        let corrupt = |detail| Error::corrupt(held.path(), detail);
        let head = Head::parse(data.bytes()).map_err(|error| corrupt(error.to_string()))?;
        let schema = schema_of(head.header(), known).map_err(corrupt)?;
        Ok(Begun { held, delta, data, head, schema })
    }

    /// It, once all of it is what was announced.
    fn checked(self, identity: &Identity) -> Result<DeltaFile, Error> {
        let Begun { held, delta, data, head, schema } = self;
        DeltaFile::read(data, head, schema)
            .and_then(|file| file.checked(held, identity, delta))
            .map_err(|detail| Error::corrupt(held.path(), detail))
    }
}
