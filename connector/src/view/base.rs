//! The base: a snapshot and its index, mapped.
//!
//! Owns: lookup and walk in them. Does not own: what changed since (`overlay`).

use std::sync::Arc;

use super::cache::{Held, Temporary, made_name};
use super::charge::Charge;
use super::line::schema_of;
use super::map::{Map, Paged};
use super::table::Tables;
use super::{Error, Found, Identity};
use crate::format::container::{self, BlockHead, Header, Kind, Reader, SYNC_BYTES};
use crate::format::index::{self, Layout};
use crate::gauge::Budget;
use crate::schema::{Schema, wire};
use crate::version::{Checksum, SnapshotRef, Version};

/// A snapshot's two files.
#[derive(Clone, Debug)]
pub struct BaseFiles {
    /// The snapshot, plain.
    pub snapshot: Held,
    /// Its index.
    pub index: Held,
}

/// A mapped snapshot. Every page is checked when it is first touched.
#[derive(Debug)]
pub struct Base {
    header: Header,
    schema: Arc<Schema>,
    layout: Layout,
    sync: [u8; SYNC_BYTES],
    snapshot: Paged,
    index: Paged,
    /// `None` for a base that only this process has.
    files: Option<BaseFiles>,
    /// Says of which version the files are, where no announcement names them (`kept`).
    note: Option<(Version, Held)>,
    tables: Tables,
    charge: Charge,
}

impl Base {
    /// Maps a snapshot of the cache. Blocking, yet quick at any size: reads the index's header, its table of page
    /// checksums and the snapshot's first page.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the two are not the snapshot that is spoken of; [`Error::Io`].
    pub fn open(
        files: &BaseFiles,
        identity: &Identity,
        snapshot: &SnapshotRef,
        known: &Arc<Schema>,
    ) -> Result<Base, Error> {
        let data = Map::open(files.snapshot.path(), snapshot.blob.plain_bytes)?;
        let index = Map::open(files.index.path(), snapshot.index.plain_bytes)?;
        let base = Base::map(data, index, known, Some(files.clone()))?;
        identity
            .expect(&base.header, Kind::Snapshot, snapshot.version, snapshot.epoch)
            .map_err(|detail| Error::corrupt(files.snapshot.path(), detail))?;
        if base.layout.snapshot_checksum != snapshot.blob.plain_checksum {
            return Err(Error::corrupt(files.index.path(), "it is the index of another snapshot"));
        }
        Ok(base)
    }

    /// Maps a snapshot that was just merged, whose files are then unlinked: they are gone with the last view on it.
    pub(super) fn adopt(
        snapshot: Temporary,
        index: Temporary,
        bytes: (u64, u64),
        known: &Arc<Schema>,
    ) -> Result<Base, Error> {
        let data = Map::open(snapshot.path(), bytes.0)?;
        let index_map = Map::open(index.path(), bytes.1)?;
        Base::map(data, index_map, known, None)
    }

    fn map(snapshot: Map, index: Map, known: &Arc<Schema>, files: Option<BaseFiles>) -> Result<Base, Error> {
        let layout =
            Layout::parse(index.bytes()).map_err(|error| Error::corrupt(index.path(), error.to_string()))?;
        if layout.snapshot_bytes != snapshot.bytes().len() as u64 {
            return Err(Error::corrupt(index.path(), "it is the index of a snapshot of another length"));
        }
        let snapshot_sums = layout.snapshot_sums(index.bytes());
        let body_sums = layout.body_sums(index.bytes());
        let snapshot = Paged::new(snapshot, 0, snapshot_sums);
        let index = Paged::new(index, layout.body as usize, body_sums);
        let reader = snapshot.growing(0, |window| Reader::parse(window).ok())?;
        let (sync, header) = (reader.sync(), reader.into_header());
        let schema = schema_of(&header, known).map_err(|detail| Error::corrupt(snapshot.path(), detail))?;
        Ok(Base {
            header,
            schema,
            layout,
            sync,
            snapshot,
            index,
            files,
            note: None,
            tables: Tables::default(),
            charge: Charge::default(),
        })
    }

    /// The same, found by the note of a version, which stays in the cache for as long as its files do.
    pub(super) fn noted(self, version: Version, note: Held) -> Base {
        Base { note: Some((version, note)), ..self }
    }

    pub(super) fn note(&self) -> Option<&(Version, Held)> {
        self.note.as_ref()
    }

    /// What it is.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The version that it holds.
    pub fn version(&self) -> Version {
        self.header.version
    }

    /// The schema of its values.
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// Keys in it.
    pub fn records(&self) -> u64 {
        self.layout.records
    }

    /// Bytes of snapshot and index.
    pub fn bytes(&self) -> u64 {
        self.layout.snapshot_bytes + self.layout.bytes
    }

    /// Its files in the cache; `None` for a base that only this process has.
    pub fn files(&self) -> Option<&BaseFiles> {
        self.files.as_ref()
    }

    /// Its files if a page of one was found damaged: they have to be discarded and fetched again.
    pub fn damaged(&self) -> Option<[&std::path::Path; 2]> {
        let damaged = self.snapshot.is_damaged() || self.index.is_damaged();
        damaged.then(|| [self.snapshot.path(), self.index.path()])
    }

    /// Whether it is the same snapshot, perhaps mapped a second time.
    pub(super) fn is_same_as(&self, other: &Base) -> bool {
        std::ptr::eq(self, other)
            || self.header == other.header && self.layout.snapshot_checksum == other.layout.snapshot_checksum
    }

    /// Checks every byte now: the index against its announced checksum, then all pages of the snapshot against the
    /// index. Cost: a pass over both.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn check_all(&self, snapshot: &SnapshotRef) -> Result<(), Error> {
        let (have, want) = (Checksum::of(self.index.map().bytes()), snapshot.index.plain_checksum);
        if have != want {
            return Err(Error::corrupt(
                self.index.path(),
                format!("its checksum is {have} instead of {want}"),
            ));
        }
        self.index.check_all()?;
        self.snapshot.map().pass(|_| self.snapshot.check_all())
    }

    #[inline]
    fn word(&self, at: u64) -> Result<u64, Error> {
        self.index.word(at.wrapping_sub(self.layout.body) as usize)
    }

    /// Asks for the slot that a lookup begins at.
    #[inline]
    pub(super) fn prefetch_slot(&self, hash: u64) {
        let slot = self.layout.slot_at(index::home(hash, self.layout.homes));
        self.index.prefetch(slot.wrapping_sub(self.layout.body) as usize);
    }

    /// Asks for the entry that a lookup will compare, if its slot is the first.
    #[inline]
    pub(super) fn prefetch_entry(&self, hash: u64) {
        // An error is the lookup's to tell.
        if let Ok(word) = self.word(self.layout.slot_at(index::home(hash, self.layout.homes)))
            && let Some(taken) = self.layout.slot(word, hash)
            && taken.is_alike
        {
            self.snapshot.prefetch(taken.offset);
        }
    }

    /// The entry of a key.
    #[inline]
    pub(super) fn find(&self, hash: u64, key: &[u8]) -> Result<Option<Found<'_>>, Error> {
        let mut slot = index::home(hash, self.layout.homes);
        while slot < self.layout.slots {
            let Some(taken) = self.layout.slot(self.word(self.layout.slot_at(slot))?, hash) else {
                return Ok(None);
            };
            if taken.is_alike
                && let Some(found) = self.entry_if(taken.offset, key)?
            {
                return Ok(Some(found));
            }
            slot += 1;
        }
        Ok(None)
    }

    /// The key of an entry as it is here, and what follows it, up to the entry's end: as [`Base::find`], for a key that
    /// is here, in an entry whose length is known, on one page that was seen before. `None`: ask `find`.
    #[inline(always)]
    pub(super) fn glance(&self, hash: u64, key: &[u8]) -> Option<(&[u8], &[u8])> {
        let mut slot = index::home(hash, self.layout.homes);
        loop {
            let taken = self.layout.slot(self.index.seen_word(8 * slot as usize)?, hash)?;
            if taken.is_alike {
                let entry = self.snapshot.seen(taken.offset, taken.length)?;
                let (have, rest) = wire::split_bytes(entry)?;
                if is_same(have, key) {
                    return Some((have, rest));
                }
            }
            slot += 1;
        }
    }

    /// The entry at `offset`, if it is that of `key`.
    #[inline]
    fn entry_if(&self, offset: usize, key: &[u8]) -> Result<Option<Found<'_>>, Error> {
        self.snapshot.growing(offset, |window| {
            let (have, mut rest) = container::entry_key(window).ok()?;
            if have != key {
                return Some(None);
            }
            let entry = container::entry_rest(have, &mut rest, &self.schema).ok()?;
            let raw = window.get(..window.len() - rest.rest().len()).unwrap_or_default();
            Some(Some(Found { entry, raw, schema: &self.schema }))
        })
    }

    /// The entry at `offset`, as [`Base::each`] gave it.
    pub(super) fn entry_at(&self, offset: u64) -> Result<Found<'_>, Error> {
        self.snapshot.growing(offset as usize, |window| {
            let (entry, length) = container::entry(window, &self.schema).ok()?;
            let raw = window.get(..length).unwrap_or_default();
            Some(Found { entry, raw, schema: &self.schema })
        })
    }

    /// All entries in the order of their keys, each with where it lies.
    pub(super) fn each(
        &self,
        mut each: impl FnMut(u64, &Found<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let start = self.snapshot.map().bytes().as_ptr().addr();
        let mut cursor = self.cursor(&[])?;
        while let Some(found) = cursor.advance()? {
            each((found.raw.as_ptr().addr() - start) as u64, &found)?;
        }
        Ok(())
    }

    /// Bytes of memory: a checksum and a bit for each page.
    pub(super) fn memory_bytes(&self) -> u64 {
        (self.layout.snapshot_pages() + self.layout.body_pages()) * 65 / 8
    }

    pub(super) fn charge(&self, memory: &Budget) {
        self.charge.to(memory, self.memory_bytes());
    }

    /// Checksum of the snapshot's plain form.
    pub(super) fn checksum(&self) -> Checksum {
        self.layout.snapshot_checksum
    }

    /// Bytes of the snapshot's plain form.
    pub(super) fn snapshot_bytes(&self) -> u64 {
        self.layout.snapshot_bytes
    }

    /// Pages of the snapshot that were read, and all there are.
    #[cfg(test)]
    pub(super) fn touched(&self) -> (u32, u64) {
        (self.snapshot.touched(), self.layout.snapshot_pages())
    }

    /// The name in the cache of what is made of it, and is said to be of `subject`.
    pub(super) fn made_name(&self, subject: &[u8], suffix: &str) -> String {
        made_name(self.version(), self.header.life.epoch, subject, suffix)
    }

    /// Its tables for lookups by fields.
    pub(super) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The frame of a block, and where it starts.
    fn block(&self, number: u64) -> Result<(usize, BlockHead), Error> {
        let at = self.word(self.layout.block_at(number))? as usize;
        Ok((at, self.snapshot.growing(at, |window| BlockHead::parse(window).ok())?))
    }

    fn first_key(&self, number: u64) -> Result<&[u8], Error> {
        let (at, head) = self.block(number)?;
        self.snapshot.growing(at + head.frame, |window| container::entry_key(window).ok().map(|(key, _)| key))
    }

    /// Entries from the first at or above `from` on.
    pub(super) fn cursor(&self, from: &[u8]) -> Result<BaseCursor<'_>, Error> {
        // The last block whose first key is not above `from` is where it would be.
        let (mut low, mut high) = (0, self.layout.blocks);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.first_key(middle)? <= from {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let mut cursor =
            BaseCursor { base: self, block: low.saturating_sub(1), rest: &[], left: 0, head: None };
        cursor.advance()?;
        while cursor.head.as_ref().is_some_and(|head| head.entry.key < from) {
            cursor.advance()?;
        }
        Ok(cursor)
    }
}

/// `a == b`, without a call where keys are as long as most are.
#[inline(always)]
fn is_same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    match (a.first_chunk::<16>(), b.first_chunk::<16>(), a.last_chunk::<16>(), b.last_chunk::<16>()) {
        (Some(a_first), Some(b_first), Some(a_last), Some(b_last)) if a.len() <= 32 => {
            (u128::from_ne_bytes(*a_first) ^ u128::from_ne_bytes(*b_first))
                | (u128::from_ne_bytes(*a_last) ^ u128::from_ne_bytes(*b_last))
                == 0
        }
        _ => a == b,
    }
}

/// Walks a base in key order.
pub(super) struct BaseCursor<'a> {
    base: &'a Base,
    /// The next block to open.
    block: u64,
    /// What is left of the open one.
    rest: &'a [u8],
    left: u64,
    head: Option<Found<'a>>,
}

impl<'a> BaseCursor<'a> {
    /// The entry at hand; `None` at the end.
    #[inline]
    pub fn head(&self) -> Option<&Found<'a>> {
        self.head.as_ref()
    }

    /// Goes on to the next entry; gives the one before.
    #[inline]
    pub fn advance(&mut self) -> Result<Option<Found<'a>>, Error> {
        if self.left == 0 && !self.open_block()? {
            return Ok(self.head.take());
        }
        let base = self.base;
        let (entry, length) = container::entry(self.rest, &base.schema).map_err(|_| base.contradicts())?;
        let (raw, rest) =
            self.rest.split_at_checked(length).ok_or(Error::Internal("an entry beyond its window"))?;
        self.rest = rest;
        self.left -= 1;
        Ok(self.head.replace(Found { entry, raw, schema: &base.schema }))
    }

    fn open_block(&mut self) -> Result<bool, Error> {
        let base = self.base;
        if self.block >= base.layout.blocks {
            return Ok(false);
        }
        let (at, head) = base.block(self.block)?;
        let whole = head.whole().and_then(|whole| at.checked_add(whole)).ok_or_else(|| base.contradicts())?;
        let bytes = base.snapshot.range(at, whole)?;
        let entries = bytes.get(head.frame..head.frame + head.bytes);
        match entries {
            Some(entries) if head.count > 0 && bytes.ends_with(&base.sync) => {
                self.block += 1;
                self.rest = entries;
                self.left = head.count;
                Ok(true)
            }
            _ => Err(base.contradicts()),
        }
    }
}

impl Base {
    /// Pages are what was written, and yet it makes no sense: whoever wrote it has a bug, or used another schema.
    #[cold]
    fn contradicts(&self) -> Error {
        Error::corrupt(self.snapshot.path(), "its blocks are not what its index says")
    }
}
