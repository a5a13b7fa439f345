//! Base and overlay as one sequence in key order: for scans, and for the next base or snapshot.
//!
//! Owns: the merge, and writing it out. Does not own: when it is worth it (producer/snapshot, consumer/follow).

use std::borrow::Cow;
use std::io::{BufWriter, Write};
use std::sync::Arc;

use super::base::{Base, BaseCursor, BaseFiles};
use super::cache::{Cache, FileName, Temporary};
use super::map::Map;
use super::overlay::{Compaction, Overlay, RunCursor};
use super::{Error, Found, Identity, Layers, View};
use crate::blob;
use crate::format::container::{Header, Kind, Stored, Summary, Writer, compress};
use crate::format::index;
use crate::record::Entry;
use crate::schema::Schema;
use crate::version::{Life, Version};

/// Entries of all layers in key order, of each key the newest. Deletes included.
pub(super) struct Merged<'a> {
    runs: Vec<RunCursor<'a>>,
    /// The run whose key is the lowest, the newest of those with the same one.
    lowest: Option<usize>,
    base: Option<BaseCursor<'a>>,
}

impl<'a> Merged<'a> {
    /// From the first key at or above `from` on.
    pub fn from(overlay: &'a Overlay, base: Option<&'a Base>, from: &[u8]) -> Result<Merged<'a>, Error> {
        let base = base.map(|base| base.cursor(from)).transpose()?;
        Ok(Merged { base, ..Merged::above(overlay, Version(0), from)? })
    }

    /// Only what deltas above `version` brought and no later one replaced, from the first key at or above `from` on.
    pub fn above(overlay: &'a Overlay, version: Version, from: &[u8]) -> Result<Merged<'a>, Error> {
        let runs = overlay.runs().iter().filter(|run| run.reaches_above(version));
        let runs = runs.map(|run| run.cursor(from, version)).collect::<Result<Vec<_>, _>>()?;
        let mut merged = Merged { runs, lowest: None, base: None };
        merged.find_lowest();
        Ok(merged)
    }

    /// No entry.
    pub fn nothing() -> Merged<'a> {
        Merged { runs: Vec::new(), lowest: None, base: None }
    }

    fn find_lowest(&mut self) {
        let keys = self.runs.iter().enumerate().filter_map(|(number, run)| Some((run.key()?, number)));
        self.lowest = keys.min().map(|(_, number)| number);
    }

    /// The next entry.
    #[inline]
    pub fn next(&mut self) -> Result<Option<Found<'a>>, Error> {
        let Some(run) = self.lowest.and_then(|lowest| self.runs.get(lowest)) else {
            return match &mut self.base {
                Some(base) => base.advance(),
                None => Ok(None),
            };
        };
        let key = run.key().ok_or(Error::Internal("the lowest run is at its end"))?;
        if let Some(base) = &mut self.base
            && let Some(beneath) = base.head()
        {
            match beneath.entry.key.cmp(key) {
                std::cmp::Ordering::Less => return base.advance(),
                std::cmp::Ordering::Equal => {
                    base.advance()?;
                }
                std::cmp::Ordering::Greater => {}
            }
        }
        let found = run.found()?;
        for run in &mut self.runs {
            if run.key() == Some(key) {
                run.advance()?;
            }
        }
        self.find_lowest();
        Ok(found)
    }
}

/// A snapshot and its index, merged and written, not yet named.
#[derive(Debug)]
pub struct Snapshot {
    header: Header,
    schema: Arc<Schema>,
    snapshot: Temporary,
    index: Temporary,
    summary: Summary,
    index_written: index::Written,
}

impl Snapshot {
    /// What it is.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The schema of its values.
    pub(super) fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// What the snapshot holds; `upserts` are its records.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Bytes and checksum of the index.
    pub fn index(&self) -> &index::Written {
        &self.index_written
    }

    /// The plain snapshot's file, to be compressed and uploaded.
    pub fn snapshot_path(&self) -> &std::path::Path {
        self.snapshot.path()
    }

    /// The index's file, to be uploaded as it is.
    pub fn index_path(&self) -> &std::path::Path {
        self.index.path()
    }

    /// Writes the stored form into another file of the cache without a name, to be uploaded from there. Blocking.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn pack(&self, level: i32, cache: &Cache, identity: &Identity) -> Result<(Temporary, Stored), Error> {
        let map = Map::open(self.snapshot.path(), self.summary.plain_bytes)?;
        let packed = cache.temporary(identity)?;
        let path = packed.path().to_owned();
        let mut out = BufWriter::with_capacity(1 << 20, packed);
        let stored = map
            .pass(|plain| compress(plain, level, &mut out))
            .map_err(|error| Error::writing(&path, error))?;
        let packed = out.into_inner().map_err(|error| Error::io("writing", &path, error.into_error()))?;
        Ok((packed, stored))
    }

    /// Gives both files their names in the cache, so that a restart finds them.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn keep(self, cache: &Cache, identity: &Identity) -> Result<BaseFiles, Error> {
        let name = |kind, checksum, bytes| FileName {
            kind,
            version: self.header.version,
            epoch: self.header.life.epoch,
            checksum,
            bytes,
        };
        let snapshot =
            name(blob::name::Kind::Snapshot, self.summary.plain_checksum, self.summary.plain_bytes);
        let index = name(blob::name::Kind::Index, self.index_written.checksum, self.index_written.bytes);
        Ok(BaseFiles {
            snapshot: cache.keep(identity, &snapshot, self.snapshot)?,
            index: cache.keep(identity, &index, self.index)?,
        })
    }

    /// As a base of this process alone: its files have no names, count against no budget, and are gone with the last
    /// view on it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn into_base(self) -> Result<Arc<Base>, Error> {
        let bytes = (self.summary.plain_bytes, self.index_written.bytes);
        Ok(Arc::new(Base::adopt(self.snapshot, self.index, bytes, &self.schema)?))
    }
}

/// Entries below which an overlay is merged only for the memory that it takes.
const MERGE_FROM: u64 = 10_000;

impl View {
    /// Whether a reader does well to merge the overlay into a base of its own: it has come to a quarter of the base, as for
    /// the writer's snapshots, and is more than a handful of entries; or it takes, with the tables of indexes over it, a
    /// quarter of `memory_limit`, in bytes.
    pub fn wants_merge(&self, memory_limit: u64) -> bool {
        let overlay = self.overlay();
        let base = self.base().map_or(0, |base| base.bytes());
        let large = overlay.entries >= MERGE_FROM && overlay.plain_bytes.saturating_mul(4) >= base;
        let tables: u64 = self.0.lookups.iter().map(|lookup| lookup.run_bytes()).sum();
        large || (overlay.memory_bytes + tables).saturating_mul(4) >= memory_limit
    }

    /// Whether runs of its overlay are to be merged that were not when they came.
    pub fn wants_compaction(&self) -> bool {
        self.0.overlay.wants_compaction()
    }

    /// Merges runs of its overlay that were left, where there are any, with their tables of indexes. Blocking; cost: their entries.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a delta has changed since it was opened.
    pub fn compact(&self) -> Result<Option<Compaction>, Error> {
        let Some(compaction) = self.0.overlay.compact()? else { return Ok(None) };
        // What looks things up by fields is made here, and found made by the newest view.
        self.compacted(&compaction)?;
        Ok(Some(compaction))
    }

    /// The same version with what was merged; `None`: it has other runs by now.
    ///
    /// # Errors
    /// As [`View::compact`].
    pub fn compacted(&self, compaction: &Compaction) -> Result<Option<View>, Error> {
        let inner = &*self.0;
        let Some(overlay) = inner.overlay.compacted(compaction) else { return Ok(None) };
        inner.remade(inner.about.clone(), Layers { overlay, ..inner.layers() }).map(Some)
    }

    /// The header of a snapshot of this version, written by `life`.
    pub fn snapshot_header(&self, life: Life) -> Header {
        let previous = Version(self.version().0.saturating_sub(1));
        let sources = self.about().positions.iter().map(|position| position.source.clone()).collect();
        let schema = self.schema();
        let header = self.identity().header(Kind::Snapshot, self.version(), previous, life, schema, sources);
        Header { former: self.former().clone(), ..header }
    }

    /// Merges base and overlay into a snapshot of this version and its index, in two files of the cache that have no
    /// names yet. Streams: memory is 16 bytes a record, for the index. Blocking. Drops deletes.
    ///
    /// Entries are copied as they are, save those of another schema than the view's, which are resolved to it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a page of the base is damaged; [`Error::Io`].
    pub fn merge_snapshot(&self, life: Life, cache: &Cache) -> Result<Snapshot, Error> {
        self.write_base(life, self.schema(), cache, |found| {
            Ok(match self.resolved(found)? {
                None => Kept::No,
                Some(Cow::Borrowed(_)) => Kept::AsItIs,
                Some(value) => Kept::Value(value),
            })
        })
    }

    /// The same of what `keep` says of each entry, in `schema`.
    pub(super) fn write_base<'a>(
        &'a self,
        life: Life,
        schema: &Arc<Schema>,
        cache: &Cache,
        mut keep: impl FnMut(&Found<'a>) -> Result<Kept<'a>, Error>,
    ) -> Result<Snapshot, Error> {
        let identity = self.identity();
        let header = Header { entry_schema: schema.entry_json().into(), ..self.snapshot_header(life) };
        let snapshot = cache.temporary(identity)?;
        let path = snapshot.path().to_owned();
        let writing = |error: crate::format::container::Error| Error::writing(&path, error);
        let mut writer =
            Writer::indexed(BufWriter::with_capacity(1 << 20, snapshot), &header).map_err(writing)?;
        let mut merged = self.merged(&[])?;
        while let Some(found) = merged.next()? {
            match keep(&found)? {
                Kept::No => {}
                Kept::AsItIs => writer.push_raw(found.raw, &found.entry).map_err(writing)?,
                Kept::Value(value) => {
                    let entry = Entry { value: Some(&value), ..found.entry };
                    writer.push(&entry).map_err(writing)?;
                }
            }
        }
        let (summary, out, builder) = writer.finish_indexed().map_err(writing)?;
        let snapshot = out.into_inner().map_err(|error| Error::io("writing", &path, error.into_error()))?;

        let index = cache.temporary(identity)?;
        let index_path = index.path().to_owned();
        let mut out = BufWriter::with_capacity(1 << 20, index);
        let index_written = builder.write(&mut out).map_err(|error| Error::writing(&index_path, error))?;
        out.flush().map_err(|source| Error::io("writing", &index_path, source))?;
        let index =
            out.into_inner().map_err(|error| Error::io("writing", &index_path, error.into_error()))?;
        Ok(Snapshot { header, schema: schema.clone(), snapshot, index, summary, index_written })
    }
}

/// What becomes of an entry on its way into a new base.
pub(super) enum Kept<'a> {
    /// It is left out.
    No,
    /// Its bytes are copied.
    AsItIs,
    /// It has this value there.
    Value(Cow<'a, [u8]>),
}
