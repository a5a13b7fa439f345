//! RocksDB's blob file.
//!
//! ```text
//!  file    30 bytes of header, record, record, ..., 32 bytes of footer once it is finished
//!  record  u64 key's length, u64 value's length, u64 expiry (0); u32 CRC (masked) of these three; u32 CRC (masked) of key
//!          and value; key; value
//! ```
//!
//! Source: `db/blob/blob_log_format.h` of RocksDB 11.8. Ours are not compressed.

use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use super::{fill, unmask};
use crate::format::chunk::{Carved, carve};
use crate::format::wire::Take;

const HEADER: usize = 30;
const FOOTER: u64 = 32;
const RECORD: usize = 32;

/// One value, as it lies there.
#[derive(Clone, Copy, Debug)]
pub struct Blob<'a> {
    /// Where the value begins in the file.
    pub at: u64,
    /// Its key; empty where the record around the value cannot be read.
    pub key: &'a [u8],
    /// Its bytes, whether they are what was written or not.
    pub value: &'a [u8],
    /// Whether the record's checksum says that they are.
    pub whole: bool,
}

/// Gives all values of a file. Where a record's own header cannot be read, chunks behind it are found by their own magic
/// and checksum.
///
/// # Errors
/// The system's.
pub fn walk(path: &Path, each: &mut dyn FnMut(Blob<'_>)) -> io::Result<()> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let length = file.get_ref().metadata()?.len();
    let mut header = [0; HEADER];
    fill(&mut file, &mut header)?;
    let (mut at, mut bytes) = (HEADER as u64, Vec::new());
    loop {
        let mut head = [0; RECORD];
        let filled = fill(&mut file, &mut head)?;
        let Some((key, value, crc)) = record(&head).filter(|_| filled == RECORD) else { break };
        let size = key.saturating_add(value);
        if size > length.saturating_sub(at + RECORD as u64) {
            break;
        }
        // Not longer than the file, so no more memory than it has bytes.
        bytes.resize(usize::try_from(size).map_err(io::Error::other)?, 0);
        if fill(&mut file, &mut bytes)? < bytes.len() {
            break;
        }
        let whole = crc32c::crc32c(&bytes) == unmask(crc);
        let (key_bytes, value_bytes) = bytes.split_at_checked(key as usize).unwrap_or_default();
        each(Blob { at: at + RECORD as u64 + key, key: key_bytes, value: value_bytes, whole });
        at += RECORD as u64 + size;
    }
    if length.saturating_sub(at) > FOOTER {
        file.seek(SeekFrom::Start(at))?;
        bytes.clear();
        file.read_to_end(&mut bytes)?;
        for (found, carved) in carve(&bytes) {
            if let Carved::Chunk(chunk) = carved {
                each(Blob { at: at + found as u64, key: &[], value: chunk.encoded(), whole: true });
            }
        }
    }
    Ok(())
}

/// What a record's header says: the lengths of key and value, and their checksum. `None` if it is not whole.
fn record(head: &[u8; RECORD]) -> Option<(u64, u64, u32)> {
    let mut take = Take::new(head);
    let (key, value) = (u64::from_le_bytes(take.fixed().ok()?), u64::from_le_bytes(take.fixed().ok()?));
    take.raw(8).ok()?;
    let summed = head.get(..take.at())?;
    let crc = u32::from_le_bytes(take.fixed().ok()?);
    (crc32c::crc32c(summed) == unmask(crc)).then_some(())?;
    Some((key, value, u32::from_le_bytes(take.fixed().ok()?)))
}
