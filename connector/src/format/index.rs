//! A snapshot's index: its own blob, mapped beside the snapshot, made in the same pass.
//!
//! ```text
//!   0  magic "STWINDEX"
//!   8  u32 format version (2)        12  u32 bytes of a page (16384)
//!  16  u64 checksum of [24, body)    24  u64 bytes of this file
//!  32  u64 bytes of the snapshot     40  u64 checksum of the snapshot      (both of its plain form)
//!  48  u64 entries                   56  u64 of them with a value
//!  64  u64 home slots                72  u64 slots in the table
//!  80  u64 blocks                    88  u64 where the body starts
//!  96  page checksums of the snapshot, u64 each
//!      page checksums of the body, u64 each
//!      zeros up to a multiple of the page
//! body slots, u64 each:  12-bit fingerprint | 12-bit length of the entry | 40-bit offset of the entry in the snapshot
//!                        0: free; length 0: 4096 bytes or more
//!      blocks, u64 each: offset of the block in the snapshot, ascending
//! ```
//!
//! All integers are little-endian; checksums are XXH3-64. A key's hash is XXH3-64 of its bytes: the high bits choose
//! the home slot, the low 12 are the fingerprint. Entries are laid out by ascending hash, each in its home slot or in
//! the next free one after the entry before it; the last slot is always free, so a probe ends without wrapping. Load is
//! at most one half.
//!
//! The length spares a reader the walk over the value that would find its end. Format 1 had none: its fingerprints have
//! 24 bits. It is still read.
//!
//! Whoever opens it checks the header and the table of page checksums, half a thousandth of the bytes; each page of
//! snapshot and body is checked when it is first touched. So opening costs nothing, and yet no byte is believed unseen.
//!
//! The blocks' offsets are the sparse key index: a scan finds its block by the first keys of blocks. One per block,
//! and not one per so many entries, since who starts in the middle of a block could not see where it ends.
//!
//! Owns: this layout. Does not own: mapping and the lazy checks (`view/map.rs`).

use std::io::Write;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::format::container::{Error, Summary};
use crate::version::Checksum;

/// Bytes that one checksum covers.
pub const PAGE: usize = 16 << 10;

/// The version of this layout.
pub const FORMAT: u32 = 2;

const MAGIC: &[u8; 8] = b"STWINDEX";
const FIXED: usize = 96;
const OFFSET_BITS: u32 = 40;
const OFFSET_MASK: u64 = (1 << OFFSET_BITS) - 1;
const LENGTH_BITS: u32 = 12;
const LENGTH_MASK: u64 = (1 << LENGTH_BITS) - 1;

/// Home slots for each entry: load one half.
const SPREAD: u64 = 2;

/// A key's hash.
#[inline]
pub fn hash(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// The slot where the search for a hash starts.
#[inline]
pub fn home(hash: u64, homes: u64) -> u64 {
    ((u128::from(hash) * u128::from(homes)) >> 64) as u64
}

/// How slots are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Division {
    /// Where the fingerprint begins, which goes on to the highest bit.
    print_at: u32,
    length_mask: u64,
}

impl Division {
    const V1: Division = Division { print_at: OFFSET_BITS, length_mask: 0 };
    const V2: Division = Division { print_at: OFFSET_BITS + LENGTH_BITS, length_mask: LENGTH_MASK };

    /// The fingerprint of a hash: its low bits.
    #[inline(always)]
    fn print(self, hash: u64) -> u64 {
        hash & (u64::MAX >> self.print_at)
    }
}

/// A slot that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Whether its fingerprint is that of the hash that was asked for.
    pub is_alike: bool,
    /// Bytes of the entry; 0: not known.
    pub length: usize,
    /// Where the entry lies in the snapshot.
    pub offset: usize,
}

/// Checksums of consecutive pages.
pub(super) struct PageSums {
    sums: Vec<u64>,
    open: Xxh3,
    filled: usize,
}

impl PageSums {
    pub(super) fn new() -> PageSums {
        PageSums { sums: Vec::new(), open: Xxh3::new(), filled: 0 }
    }

    pub(super) fn bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PAGE - self.filled));
            self.open.update(now);
            self.filled += now.len();
            if self.filled == PAGE {
                self.close();
            }
            bytes = later;
        }
    }

    fn close(&mut self) {
        self.sums.push(self.open.digest());
        self.open.reset();
        self.filled = 0;
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        if self.filled > 0 {
            self.close();
        }
        self.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect()
    }
}

/// Gathers an index while its snapshot is written. Memory: 16 bytes an entry.
pub struct Builder {
    pages: PageSums,
    /// (hash, length and offset as in the slot), parted by the hash's highest byte, so that each part sorts within the CPU's cache.
    parts: Vec<Vec<(u64, u64)>>,
    blocks: Vec<u64>,
    summary: Option<Summary>,
}

/// The index, as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its bytes.
    pub bytes: u64,
    /// Its checksum.
    pub checksum: Checksum,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder::new()
    }
}

impl Builder {
    /// Nothing gathered.
    pub fn new() -> Builder {
        Builder { pages: PageSums::new(), parts: vec![Vec::new(); 256], blocks: Vec::new(), summary: None }
    }

    /// The snapshot's next bytes.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.pages.bytes(bytes);
    }

    /// A block starts at `offset`.
    pub(super) fn block(&mut self, offset: u64) {
        self.blocks.push(offset);
    }

    /// An entry of `length` bytes lies at `offset`.
    pub(super) fn entry(&mut self, hash: u64, offset: u64, length: usize) {
        let length = if length as u64 > LENGTH_MASK { 0 } else { length as u64 };
        if let Some(part) = self.parts.get_mut((hash >> 56) as usize) {
            part.push((hash, length << OFFSET_BITS | offset));
        }
    }

    /// The snapshot is written.
    pub(super) fn end(&mut self, summary: &Summary) {
        self.summary = Some(*summary);
    }

    /// Writes the index.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a snapshot of a tebibyte or more, which a slot's 40 bits cannot point into;
    /// [`Error::Io`].
    pub fn write(mut self, out: &mut impl Write) -> Result<Written, Error> {
        let summary = self.summary.ok_or_else(|| Error::malformed(0, "the snapshot is not written yet"))?;
        if summary.plain_bytes > OFFSET_MASK {
            return Err(Error::malformed(OFFSET_MASK, "a snapshot of a tebibyte or more: use more shards"));
        }
        for part in &mut self.parts {
            part.sort_unstable();
        }
        let homes = summary.counts.entries() * SPREAD;
        // The body is made twice, first for its checksums, which stand before it: cheaper than holding it.
        let mut pages = PageSums::new();
        let (slots, body_bytes) = self.body(homes, |bytes| {
            pages.bytes(bytes);
            Ok(())
        })?;
        let snapshot_sums = std::mem::replace(&mut self.pages, PageSums::new()).finish();
        let body_sums = pages.finish();
        let tables = FIXED + snapshot_sums.len() + body_sums.len();
        let body_at = tables.next_multiple_of(PAGE);
        let bytes = body_at as u64 + body_bytes;

        let mut head = Vec::with_capacity(body_at);
        for field in [
            bytes,
            summary.plain_bytes,
            summary.plain_checksum.0,
            summary.counts.entries(),
            summary.counts.upserts,
            homes,
            slots,
            self.blocks.len() as u64,
            body_at as u64,
        ] {
            head.extend_from_slice(&field.to_le_bytes());
        }
        head.extend_from_slice(&snapshot_sums);
        head.extend_from_slice(&body_sums);
        head.resize(body_at - 24, 0);
        let mut first = MAGIC.to_vec();
        first.extend_from_slice(&FORMAT.to_le_bytes());
        first.extend_from_slice(&(PAGE as u32).to_le_bytes());
        first.extend_from_slice(&xxh3_64(&head).to_le_bytes());

        let mut checksum = Xxh3::new();
        let mut emit = |bytes: &[u8]| -> Result<(), Error> {
            checksum.update(bytes);
            out.write_all(bytes)?;
            Ok(())
        };
        emit(&first)?;
        emit(&head)?;
        self.body(homes, &mut emit)?;
        out.flush()?;
        Ok(Written { bytes, checksum: Checksum(checksum.digest()) })
    }

    /// Makes the body in pieces; says how many slots and bytes it has.
    fn body(
        &self,
        homes: u64,
        mut emit: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(u64, u64), Error> {
        let mut piece: Vec<u8> = Vec::with_capacity(PAGE);
        let mut total = 0;
        let mut put = |word: u64| -> Result<(), Error> {
            piece.extend_from_slice(&word.to_le_bytes());
            if piece.len() == PAGE {
                total += PAGE as u64;
                emit(&piece)?;
                piece.clear();
            }
            Ok(())
        };
        let mut slots = 0;
        for &(hash, place) in self.parts.iter().flatten() {
            let home = home(hash, homes);
            while slots < home {
                put(0)?;
                slots += 1;
            }
            put(Division::V2.print(hash) << Division::V2.print_at | place)?;
            slots += 1;
        }
        while slots < homes {
            put(0)?;
            slots += 1;
        }
        put(0)?;
        slots += 1;
        for &block in &self.blocks {
            put(block)?;
        }
        total += piece.len() as u64;
        emit(&piece)?;
        Ok((slots, total))
    }
}

/// An index's header: where everything is. Only numbers, so that it can live beside the map that it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of the index.
    pub bytes: u64,
    /// Bytes of the snapshot.
    pub snapshot_bytes: u64,
    /// Checksum of the snapshot.
    pub snapshot_checksum: Checksum,
    /// Entries.
    pub entries: u64,
    /// Entries with a value.
    pub records: u64,
    /// Home slots.
    pub homes: u64,
    /// Slots.
    pub slots: u64,
    /// Blocks.
    pub blocks: u64,
    /// Where the body starts.
    pub body: u64,
    division: Division,
}

impl Layout {
    /// Reads and checks the header and the table of page checksums. Cost: one pass over that table.
    ///
    /// # Errors
    /// [`Error::Short`] if the file is not as long as it says; [`Error::Malformed`].
    pub fn parse(file: &[u8]) -> Result<Layout, Error> {
        let short = || Error::Short { at: file.len() as u64 };
        if !file.get(..8).ok_or_else(short)?.starts_with(MAGIC) {
            return Err(Error::malformed(0, "not an index of Stillwell"));
        }
        let format = u64_at(file, 8).ok_or_else(short)?;
        let division = match format as u32 {
            1 => Division::V1,
            FORMAT => Division::V2,
            format => {
                let what = format!("format {format}; this build reads up to {FORMAT}: upgrade it");
                return Err(Error::malformed(8, what));
            }
        };
        if (format >> 32) as usize != PAGE {
            return Err(Error::malformed(12, "pages of another size"));
        }
        let field = |number: usize| u64_at(file, 24 + 8 * number).ok_or_else(short);
        let layout = Layout {
            bytes: field(0)?,
            snapshot_bytes: field(1)?,
            snapshot_checksum: Checksum(field(2)?),
            entries: field(3)?,
            records: field(4)?,
            homes: field(5)?,
            slots: field(6)?,
            blocks: field(7)?,
            body: field(8)?,
            division,
        };
        if layout.bytes != file.len() as u64 {
            return Err(short());
        }
        let checked = file.get(24..layout.body as usize).ok_or_else(short)?;
        if Some(xxh3_64(checked)) != u64_at(file, 16) {
            return Err(Error::malformed(16, "the header's checksum is not that of its bytes"));
        }
        // From here on the numbers are the writer's; that they fit each other guards against a bug there, not damage.
        let sums = (layout.snapshot_pages() + layout.body_pages()) * 8;
        let words = layout.slots.checked_add(layout.blocks);
        if layout.body < FIXED as u64 + sums
            || layout.slots <= layout.homes
            || words.and_then(|words| words.checked_mul(8)) != layout.bytes.checked_sub(layout.body)
        {
            return Err(Error::malformed(24, "the header's numbers contradict each other"));
        }
        Ok(layout)
    }

    /// Pages of the snapshot.
    pub fn snapshot_pages(&self) -> u64 {
        self.snapshot_bytes.div_ceil(PAGE as u64)
    }

    /// Pages of the body.
    pub fn body_pages(&self) -> u64 {
        self.bytes.saturating_sub(self.body).div_ceil(PAGE as u64)
    }

    /// The checksums of the snapshot's pages, out of the index file.
    pub fn snapshot_sums(&self, file: &[u8]) -> Vec<u64> {
        words(file, FIXED, self.snapshot_pages())
    }

    /// The checksums of the body's pages.
    pub fn body_sums(&self, file: &[u8]) -> Vec<u64> {
        words(file, FIXED + 8 * self.snapshot_pages() as usize, self.body_pages())
    }

    /// Where in the file a slot lies.
    #[inline]
    pub fn slot_at(&self, slot: u64) -> u64 {
        self.body + 8 * slot
    }

    /// What a slot says to who looks for `hash`; `None` for a free one, where the search ends.
    #[inline(always)]
    pub fn slot(&self, word: u64, hash: u64) -> Option<Slot> {
        let offset = (word & OFFSET_MASK) as usize;
        if offset == 0 {
            return None;
        }
        let Division { print_at, length_mask } = self.division;
        let length = (word >> OFFSET_BITS & length_mask) as usize;
        Some(Slot { is_alike: word >> print_at == self.division.print(hash), length, offset })
    }

    /// Where in the file a block's offset lies.
    #[inline]
    pub fn block_at(&self, block: u64) -> u64 {
        self.body + 8 * (self.slots + block)
    }
}

/// `count` words from `at` on.
pub(super) fn words(file: &[u8], at: usize, count: u64) -> Vec<u64> {
    let bytes = file.get(at..at + 8 * count as usize).unwrap_or_default();
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

/// The word at `at`.
#[inline]
pub fn u64_at(file: &[u8], at: usize) -> Option<u64> {
    file.get(at..)?.first_chunk::<8>().map(|word| u64::from_le_bytes(*word))
}
