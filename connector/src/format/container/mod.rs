//! Delta and snapshot blobs: Avro object container files
//! (<https://avro.apache.org/docs/1.12.0/specification/#object-container-files>).
//!
//! ```text
//! "Obj" 01 | metadata: map<bytes> | sync (16)      the header
//! count | bytes | entries ..      | sync (16)      a block of about 64 KiB, or one larger entry
//! count | bytes | entries ..      | sync (16)
//!
//! an entry, in key order, each key once:
//! key: bytes | timestamp: long | source: int | offset: long | 00            (a delete)
//!                                                           | 02 datum      (an upsert; the dataset's own schema)
//! ```
//!
//! Two forms of one blob: **plain** (`avro.codec` = `null`), which caches map and indexes point into, and **stored**
//! (`zstandard`), block by block the same entries. The plain form is a function of the stored one, so that a checksum of
//! it can stand in the announcement; the reverse is not promised (another zstd may compress otherwise).
//!
//! The metadata says what the blob is (`stillwell.*`, see [`Header`]), so that it can be told without a catalogue. The
//! sync marker is made from that identity, not by chance: the same content gives the same bytes.
//!
//! Owns: the layout. Does not own: the datum's end, which only its schema knows ([`Schema::skip`]).

mod any;
mod header;
mod write;
mod portable;
mod read;
mod stored;
mod unpack;

pub use any::AnyReader;
pub use header::{Counts, Header, Kind};
pub use portable::Portable;
pub use read::{BlockHead, Entries, Head, Located, Reader};
pub use stored::{LEVEL, Stored, compress};
pub use unpack::{Unpacked, WriteAt, unpack, unpack_into};
pub use write::{Summary, Writer};

use crate::format::window::{Fault, Window};
use crate::record::{Entry, Stamp};
use crate::schema::Schema;
use crate::schema::wire::{put_bytes, put_long};

/// A block is closed once it holds this many bytes of entries. Half of the time that 16 KiB take to decompress goes into zstd's
/// tables; in return a scan passes over half a block before its first entry, some microseconds. A get looks at no block.
pub const BLOCK_BYTES: usize = 64 << 10;

/// Bytes of a sync marker.
pub const SYNC_BYTES: usize = 16;

/// The version of this layout, in the metadata as `stillwell.format`.
pub const FORMAT: u32 = 1;

/// What keeps bytes from being a container.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It ends too early.
    #[error("it is cut short at byte {at}")]
    Short {
        /// Where it ended.
        at: u64,
    },
    /// It is not what it says, or not ours.
    #[error("at byte {at}: {what}")]
    Malformed {
        /// Where.
        at: u64,
        /// What is wrong.
        what: String,
    },
    /// Entries were pushed out of key order: a bug in the caller, and a blob that no lookup could trust.
    #[error("entries out of key order")]
    Order,
    /// The reader or writer below failed.
    #[error("reading or writing it failed")]
    Io(#[from] std::io::Error),
}

impl Error {
    pub(crate) fn at(at: u64, fault: Fault) -> Error {
        match fault {
            Fault::Short => Error::Short { at },
            Fault::Bad(what) => Error::Malformed { at, what: what.to_owned() },
        }
    }

    pub(crate) fn malformed(at: u64, what: impl Into<String>) -> Error {
        Error::Malformed { at, what: what.into() }
    }
}

/// Appends the encoding of `entry`.
pub fn put_entry(out: &mut Vec<u8>, entry: &Entry<'_>) {
    put_bytes(out, entry.key);
    put_long(out, entry.stamp.timestamp);
    put_long(out, i64::from(entry.stamp.source));
    put_long(out, entry.stamp.offset);
    match entry.value {
        None => out.push(0),
        Some(datum) => {
            out.push(2);
            out.extend_from_slice(datum);
        }
    }
}

/// The key of the entry at the start of `window`, and the rest of the window.
#[inline]
pub fn entry_key(window: &[u8]) -> Result<(&[u8], Window<'_>), Fault> {
    let mut window = Window::new(window);
    Ok((window.bytes()?, window))
}

/// What follows an entry's key; the rest of the window afterwards starts at the next entry.
#[inline]
pub fn entry_rest<'a>(key: &'a [u8], window: &mut Window<'a>, schema: &Schema) -> Result<Entry<'a>, Fault> {
    let stamp = stamp(window)?;
    let value = match window.long()? {
        0 => None,
        1 => {
            // Whether the datum is malformed or only goes on beyond the window, its schema does not tell.
            let length = schema.skip(window.rest()).map_err(|_| Fault::Short)?;
            Some(window.take(length)?)
        }
        _ => return Err(Fault::Bad("a value that is neither null nor a datum")),
    };
    Ok(Entry { key, stamp, value })
}

/// An entry's stamp, which follows its key.
#[inline]
pub fn stamp(window: &mut Window<'_>) -> Result<Stamp, Fault> {
    let timestamp = window.long()?;
    let source = u32::try_from(window.long()?).map_err(|_| Fault::Bad("a negative source"))?;
    Ok(Stamp { timestamp, source, offset: window.long()? })
}

/// The entry at the start of `window`, and its length.
#[inline]
pub fn entry<'a>(window: &'a [u8], schema: &Schema) -> Result<(Entry<'a>, usize), Fault> {
    let (key, mut rest) = entry_key(window)?;
    let entry = entry_rest(key, &mut rest, schema)?;
    Ok((entry, window.len() - rest.rest().len()))
}

#[cfg(test)]
mod tests;
