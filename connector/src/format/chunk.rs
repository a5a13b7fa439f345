//! A chunk: the records that arrived together, as the log keeps them, one RocksDB value each.
//!
//! ```text
//!  0  "SWCH"                          magic
//!  4  u16 = 1, u16 = 0                format, reserved; 3 where a record is of kind 3
//!  8  u64                             XXH3-64 of everything after this field
//! 16  u32 u32 u32 u32                 where the ranges start; records; misfits among them; ranges
//! 32  i64                             timestamp that the records count theirs from
//! 40  record, record, ...             in the order of arrival
//!     range, range, ...               one per source partition; a record names its own by number, its slot
//!
//! record  varint  slot * 4 + kind     kind 0 upsert, 1 delete, 2 misfit, 3 an upsert or delete with its original
//!         varint  offset - range.from
//!         varint  zigzag(timestamp - the chunk's)
//!         varint  length, then bytes  the key; of a misfit the letter
//!         varint  length, then bytes  the value; upserts only
//!         of kind 3 instead: varint 0 or 1, key and value as of that kind, varint length, then the original (`kept`)
//! range   [u8; 16] i32 i64 i64        topic id, partition, from, to
//!         u16, then bytes             topic name
//! ```
//!
//! Integers are little-endian. `[from, to)` is what the chunk accounts for, which may be more than its records: markers
//! and aborted records have offsets too. It describes itself, so that a log can be read by a later process, or by a
//! person, who knows nothing of the one that wrote it.
//!
//! The ranges come last so that a chunk is built in one buffer, in one pass, and never moved; the checksum covers the
//! header too, save for the first eight bytes, which have only two valid values: what is of kind 3 makes no sense in format
//! 1. On the disk a chunk may lie packed ([`Packer`]), which is format 2.
//!
//! Owns: the bytes of a chunk and of its [`Summary`]. Does not own: where they are kept (`disk/`), or when a chunk is
//! full enough (`producer/source`).

mod carve;
mod error;
mod kept;
mod pack;
mod summary;

use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::wire::{Malformed, Take, put_varint};
use crate::record::{SourcePartition, TopicId};

pub use self::carve::{Carved, carve};
pub use self::error::Error;
pub use self::kept::{Original, Whole};
pub use self::pack::Packer;
pub use self::summary::Summary;

const MAGIC: &[u8; 8] = b"SWCH\x01\x00\x00\x00";
/// Of a chunk in which a record has its original beside it.
const MAGIC_KEPT: &[u8; 8] = b"SWCH\x03\x00\x00\x00";
/// Where the checksummed part starts.
const SUMMED: usize = 16;
const HEADER: usize = 40;
const UPSERT: u64 = 0;
const DELETE: u64 = 1;
const MISFIT: u64 = 2;
const KEPT: u64 = 3;

/// What a chunk accounts for of one source partition: the offsets `[from, to)`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Range {
    /// The partition.
    #[serde(flatten)]
    pub source: SourcePartition,
    /// First offset.
    pub from: i64,
    /// The position after the last one.
    pub to: i64,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// The key has this value, a datum in the dataset's own schema.
    Upsert {
        /// The key.
        key: &'a [u8],
        /// The datum.
        value: &'a [u8],
    },
    /// The key has no value.
    Delete {
        /// The key.
        key: &'a [u8],
    },
    /// The record could not be processed.
    Misfit {
        /// Why, and what it was: an encoded [`super::letter::Letter`].
        letter: &'a [u8],
    },
}

impl Body<'_> {
    /// Bytes of key and value, or of the letter.
    pub fn bytes(&self) -> usize {
        match self {
            Body::Upsert { key, value } => key.len() + value.len(),
            Body::Delete { key } => key.len(),
            Body::Misfit { letter } => letter.len(),
        }
    }
}

/// One record of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRecord<'a> {
    /// Which of the chunk's ranges it belongs to.
    pub slot: u16,
    /// Its offset in that partition.
    pub offset: i64,
    /// Its timestamp, milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// What it says.
    pub body: Body<'a>,
    /// What it was before it was decoded, where that is kept; of upserts and deletes only.
    pub original: Option<Original<'a>>,
}

impl ChunkRecord<'_> {
    /// Bytes of all that is kept of it.
    pub fn bytes(&self) -> usize {
        self.body.bytes() + self.original.map_or(0, |original| original.len())
    }
}

/// A chunk being filled. Reuses its bookkeeping from chunk to chunk; the bytes go to the [`Chunk`].
#[derive(Debug, Default)]
pub struct ChunkBuilder {
    bytes: Vec<u8>,
    ranges: Vec<Range>,
    records: u32,
    misfits: u32,
    /// Whether any has its original beside it.
    kept: bool,
    base: i64,
    /// Bytes of the last chunk: what the next one will probably need.
    expected: usize,
}

impl ChunkBuilder {
    /// An empty chunk.
    pub fn new() -> ChunkBuilder {
        ChunkBuilder::default()
    }

    /// Whether it accounts for nothing at all, no record and no advance.
    pub fn is_empty(&self) -> bool {
        self.ranges.iter().all(|range| range.from == range.to) && self.records == 0
    }

    /// Bytes of its records.
    pub fn bytes(&self) -> usize {
        self.bytes.len().saturating_sub(HEADER)
    }

    /// Records in it.
    pub fn records(&self) -> usize {
        self.records as usize
    }

    /// The number of `source`'s range, opened at `from` if the chunk has none yet. Valid until [`ChunkBuilder::finish`].
    pub fn slot(&mut self, source: &SourcePartition, from: i64) -> u16 {
        let same = |range: &Range| {
            range.source.partition == source.partition
                && range.source.topic_id == source.topic_id
                && (Arc::ptr_eq(&range.source.topic, &source.topic) || range.source.topic == source.topic)
        };
        let slot = self.ranges.iter().position(same).unwrap_or_else(|| {
            self.ranges.push(Range { source: source.clone(), from, to: from });
            self.ranges.len() - 1
        });
        u16::try_from(slot).expect("a shard has fewer than 65,536 source partitions")
    }

    /// Adds a record; its range then ends behind it. Offsets of a slot only go up, and never below its `from`.
    pub fn push(&mut self, slot: u16, offset: i64, timestamp: i64, body: Body<'_>) {
        self.push_record(ChunkRecord { slot, offset, timestamp, body, original: None });
    }

    /// The same, of a record that may have its original beside it.
    pub fn push_record(&mut self, record: ChunkRecord<'_>) {
        let ChunkRecord { slot, offset, timestamp, body, original } = record;
        let range = self.ranges.get_mut(usize::from(slot)).expect("slot() gave this number for this chunk");
        debug_assert!(offset >= range.to, "offset {offset} of {} after {}", range.source, range.to);
        range.to = offset + 1;
        let relative = offset.wrapping_sub(range.from) as u64;
        if self.bytes.is_empty() {
            self.start(timestamp);
        }
        self.records += 1;
        let (kind, first, second) = match body {
            Body::Upsert { key, value } => (UPSERT, key, Some(value)),
            Body::Delete { key } => (DELETE, key, None),
            Body::Misfit { letter } => {
                self.misfits += 1;
                (MISFIT, letter, None)
            }
        };
        let original = original.filter(|_| kind != MISFIT);
        let out = &mut self.bytes;
        put_varint(out, u64::from(slot) << 2 | if original.is_some() { KEPT } else { kind });
        put_varint(out, relative);
        let since = timestamp.wrapping_sub(self.base);
        put_varint(out, ((since << 1) ^ (since >> 63)) as u64);
        if original.is_some() {
            put_varint(out, kind);
        }
        let parts = [Some(first), second, original.map(Original::encoded)];
        for part in parts.into_iter().flatten() {
            put_varint(out, part.len() as u64);
            out.extend_from_slice(part);
        }
        self.kept |= original.is_some();
    }

    /// Accounts for the offsets below `to` that hold no record: markers, aborted records, what compaction took.
    pub fn advance(&mut self, slot: u16, to: i64) {
        let range = self.ranges.get_mut(usize::from(slot)).expect("slot() gave this number for this chunk");
        range.to = range.to.max(to);
    }

    /// The chunk; the builder is empty again.
    ///
    /// # Panics
    /// If it reached 4 GiB. Chunks are finished at about 1 MB, and a record of Kafka's is below 2 GiB.
    pub fn finish(&mut self) -> Chunk {
        if self.bytes.is_empty() {
            self.start(0);
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        let ranges = std::mem::take(&mut self.ranges);
        let (records, misfits) = (std::mem::take(&mut self.records), std::mem::take(&mut self.misfits));
        let kept = std::mem::take(&mut self.kept);
        let ranges_at = bytes.len();
        for range in &ranges {
            put_range(&mut bytes, range);
        }
        let small = |number: usize| u32::try_from(number).expect("a chunk is finished long before 4 GiB");
        small(bytes.len());
        let mut header = [0; HEADER];
        let (magic, rest) = header.split_at_mut(8);
        magic.copy_from_slice(if kept { MAGIC_KEPT } else { MAGIC });
        let (_sum, rest) = rest.split_at_mut(8);
        let (counts, base) = rest.split_at_mut(16);
        for (out, number) in
            counts.chunks_exact_mut(4).zip([small(ranges_at), records, misfits, small(ranges.len())])
        {
            out.copy_from_slice(&number.to_le_bytes());
        }
        base.copy_from_slice(&self.base.to_le_bytes());
        let (head, _) = bytes.split_at_mut(HEADER);
        head.copy_from_slice(&header);
        let sum = seal(&mut bytes);
        self.expected = bytes.len();
        Chunk(Arc::new(Inner {
            bytes: bytes.into(),
            ranges,
            records,
            misfits,
            kept,
            base: self.base,
            ranges_at,
            sum,
        }))
    }

    fn start(&mut self, base: i64) {
        self.base = base;
        self.bytes.reserve(self.expected + self.expected / 16 + HEADER);
        self.bytes.extend_from_slice(&[0; HEADER]);
    }
}

/// Writes the checksum into its place, which must be there.
fn seal(bytes: &mut [u8]) -> u64 {
    let (head, rest) = bytes.split_at_mut(SUMMED);
    let sum = xxh3_64(rest);
    let (_, place) = head.split_at_mut(8);
    place.copy_from_slice(&sum.to_le_bytes());
    sum
}

/// Checks magic and checksum; gives what follows them.
fn unseal<'a>(bytes: &'a [u8], magic: &[u8; 8]) -> Result<(u64, Take<'a>), Error> {
    let mut take = Take::new(bytes);
    if take.fixed::<8>().ok() != Some(*magic) {
        return Err(Error::not_begun_by(magic, bytes));
    }
    let sum = u64::from_le_bytes(take.fixed().map_err(|_| Error::Checksum)?);
    if sum != xxh3_64(bytes.get(SUMMED..).unwrap_or_default()) {
        return Err(Error::Checksum);
    }
    Ok((sum, take))
}

fn put_range(out: &mut Vec<u8>, range: &Range) {
    let topic = range.source.topic.as_bytes();
    out.extend_from_slice(&range.source.topic_id.0);
    out.extend_from_slice(&range.source.partition.to_le_bytes());
    out.extend_from_slice(&range.from.to_le_bytes());
    out.extend_from_slice(&range.to.to_le_bytes());
    let len = u16::try_from(topic.len()).expect("Kafka's topic names have at most 249 characters");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(topic);
}

fn take_range(take: &mut Take<'_>) -> Result<Range, Malformed> {
    let topic_id = TopicId(take.fixed()?);
    let partition = i32::from_le_bytes(take.fixed()?);
    let from = i64::from_le_bytes(take.fixed()?);
    let to = i64::from_le_bytes(take.fixed()?);
    if from < 0 || to < from {
        return Err(take.malformed("a range that ends before it starts"));
    }
    let len = u16::from_le_bytes(take.fixed()?);
    let topic =
        std::str::from_utf8(take.raw(len.into())?).map_err(|_| take.malformed("a topic not in UTF-8"))?;
    Ok(Range { source: SourcePartition { topic: topic.into(), topic_id, partition }, from, to })
}

fn take_u32(take: &mut Take<'_>) -> Result<u32, Malformed> {
    Ok(u32::from_le_bytes(take.fixed()?))
}

/// A finished chunk: immutable, cheap to clone, known to be whole.
#[derive(Clone, Debug)]
pub struct Chunk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes: Bytes,
    ranges: Vec<Range>,
    records: u32,
    misfits: u32,
    /// Of format 3.
    kept: bool,
    base: i64,
    ranges_at: usize,
    sum: u64,
}

impl Chunk {
    /// Reads a chunk, and all of it: checksum, then every record's bounds. Copies nothing but the ranges; one that is
    /// packed it unpacks.
    pub fn parse(bytes: Bytes) -> Result<Chunk, Error> {
        Chunk::plain(pack::unpack(&bytes).unwrap_or(Ok(bytes))?)
    }

    /// Reads a chunk of format 1 or 3.
    fn plain(bytes: Bytes) -> Result<Chunk, Error> {
        let kept = bytes.starts_with(MAGIC_KEPT);
        let (sum, mut take) = unseal(&bytes, if kept { MAGIC_KEPT } else { MAGIC })?;
        let ranges_at = take_u32(&mut take)? as usize;
        let records = take_u32(&mut take)?;
        let misfits = take_u32(&mut take)?;
        let slots = take_u32(&mut take)?;
        let base = i64::from_le_bytes(take.fixed()?);
        let body = ranges_at.checked_sub(take.at()).ok_or(take.malformed("ranges inside the header"))?;
        take.raw(body)?;
        let mut ranges = Vec::new();
        for _ in 0..slots {
            ranges.push(take_range(&mut take)?);
        }
        take.end()?;
        let chunk = Chunk(Arc::new(Inner { bytes, ranges, records, misfits, kept, base, ranges_at, sum }));
        chunk.walk()?;
        Ok(chunk)
    }

    /// Goes over all records once, so that [`Chunk::iter`] and [`Chunk::at`] need not fail later.
    fn walk(&self) -> Result<(), Malformed> {
        let wrong = |what, at| Malformed { what, at };
        let mut next: Vec<i64> = self.0.ranges.iter().map(|range| range.from).collect();
        let (mut at, mut records, mut misfits, mut kept) = (HEADER, 0u64, 0u64, false);
        while at < self.0.ranges_at {
            let (record, end) = self.record(at).ok_or(wrong("a record that is cut off", at))?;
            let slot = usize::from(record.slot);
            let (Some(next), Some(range)) = (next.get_mut(slot), self.0.ranges.get(slot)) else {
                return Err(wrong("a record of no range", at));
            };
            if record.offset < *next || record.offset >= range.to {
                return Err(wrong("a record outside its range, or out of order", at));
            }
            if record.original.is_some_and(|original| !original.is_of(&record.body)) {
                return Err(wrong("an original that makes no sense", at));
            }
            *next = record.offset + 1;
            records += 1;
            kept |= record.original.is_some();
            misfits += u64::from(matches!(record.body, Body::Misfit { .. }));
            at = end;
        }
        // Each content has one form: format 3 is for what needs it.
        if kept != self.0.kept {
            return Err(wrong("a chunk of format 3 without originals", at));
        }
        if (records, misfits) != (self.0.records.into(), self.0.misfits.into()) {
            return Err(wrong("counts that are not the records'", at));
        }
        Ok(())
    }

    /// What it accounts for, by slot.
    pub fn ranges(&self) -> &[Range] {
        &self.0.ranges
    }

    /// Records in it, misfits included.
    pub fn records(&self) -> usize {
        self.0.records as usize
    }

    /// Misfits in it.
    pub fn misfits(&self) -> usize {
        self.0.misfits as usize
    }

    /// Its bytes.
    pub fn encoded(&self) -> &Bytes {
        &self.0.bytes
    }

    /// Its length in bytes: what it costs in memory and on disk.
    pub fn len(&self) -> usize {
        self.0.bytes.len()
    }

    /// Its checksum.
    pub fn sum(&self) -> u64 {
        self.0.sum
    }

    /// Whether it holds no record (it may account for offsets all the same).
    pub fn is_empty(&self) -> bool {
        self.0.records == 0
    }

    /// All records in order of arrival, each with the cursor at which [`Chunk::at`] finds it again.
    pub fn iter(&self) -> Iter<'_> {
        Iter { chunk: self, at: HEADER }
    }

    /// The cursor of the first record; of the end, if there is none.
    pub fn first(&self) -> u32 {
        HEADER as u32
    }

    /// The records from `cursor` on, which [`Chunk::iter`] or [`Chunk::first`] gave.
    pub fn iter_from(&self, cursor: u32) -> Iter<'_> {
        Iter { chunk: self, at: cursor as usize }
    }

    /// The record at a cursor that [`Chunk::iter`] of this chunk gave.
    ///
    /// # Panics
    /// On any other number.
    pub fn at(&self, cursor: u32) -> ChunkRecord<'_> {
        self.record(cursor as usize).expect("the cursor is from this chunk's iter").0
    }

    /// What the log keeps beside the chunk, so that it can be judged without being read.
    pub fn summary(&self) -> Summary {
        Summary {
            bytes: self.0.bytes.len() as u32,
            records: self.0.records,
            misfits: self.0.misfits,
            sum: self.0.sum,
            ranges: self.0.ranges.clone(),
        }
    }

    /// The same chunk with only some of its ranges, by slot, and their records.
    pub fn with_only(&self, keep: impl Fn(usize) -> bool) -> Chunk {
        let mut builder = ChunkBuilder::new();
        let slots: Vec<Option<u16>> = self
            .ranges()
            .iter()
            .enumerate()
            .map(|(slot, range)| keep(slot).then(|| builder.slot(&range.source, range.from)))
            .collect();
        for (_, record) in self.iter() {
            if let Some(Some(slot)) = slots.get(usize::from(record.slot)) {
                builder.push_record(ChunkRecord { slot: *slot, ..record });
            }
        }
        for (range, slot) in self.ranges().iter().zip(slots) {
            if let Some(slot) = slot {
                builder.advance(slot, range.to);
            }
        }
        builder.finish()
    }

    #[inline]
    fn record(&self, at: usize) -> Option<(ChunkRecord<'_>, usize)> {
        let bytes = self.0.bytes.get(..self.0.ranges_at)?;
        let mut rest = bytes.get(at..)?;
        let head = varint(&mut rest)?;
        let slot = u16::try_from(head >> 2).ok()?;
        let range = self.0.ranges.get(usize::from(slot))?;
        let offset = range.from.checked_add(i64::try_from(varint(&mut rest)?).ok()?)?;
        let since = varint(&mut rest)?;
        let timestamp = self.0.base.wrapping_add((since >> 1) as i64 ^ -((since & 1) as i64));
        let kept = head & 3 == KEPT;
        let kind = match kept {
            false => head & 3,
            true => varint(&mut rest).filter(|kind| self.0.kept && *kind != MISFIT)?,
        };
        let first = slice(&mut rest)?;
        let body = match kind {
            UPSERT => Body::Upsert { key: first, value: slice(&mut rest)? },
            DELETE => Body::Delete { key: first },
            MISFIT => Body::Misfit { letter: first },
            _ => return None,
        };
        let original = if kept { Some(Original::of(slice(&mut rest)?)) } else { None };
        Some((ChunkRecord { slot, offset, timestamp, body, original }, bytes.len() - rest.len()))
    }
}

#[inline]
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let (&first, tail) = rest.split_first()?;
    if first < 0x80 {
        *rest = tail;
        return Some(first.into());
    }
    let mut take = Take::new(rest);
    let value = take.varint().ok()?;
    *rest = rest.get(take.at()..)?;
    Some(value)
}

#[inline]
fn slice<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(varint(rest)?).ok()?;
    let (bytes, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(bytes)
}

/// The records of a chunk.
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    chunk: &'a Chunk,
    at: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (u32, ChunkRecord<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.chunk.0.ranges_at {
            return None;
        }
        let (record, end) = self.chunk.record(self.at)?;
        let cursor = std::mem::replace(&mut self.at, end);
        Some((cursor as u32, record))
    }
}

#[cfg(test)]
mod tests;
