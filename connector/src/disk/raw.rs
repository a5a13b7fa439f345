//! RocksDB's files, read as bytes and without RocksDB: what it passes over in silence, and what is still there when it
//! refuses them.
//!
//! ```text
//!  NNNNNN.log    write-ahead log   wal.rs: records with a CRC each, the writes of one commit in each
//!  NNNNNN.blob   chunks            blob.rs: key and value with a CRC each
//!  NNNNNN.sst    keys, summaries, small chunks: found by their own magic and checksum (format::chunk::carve)
//!  MANIFEST-N    which of them count; CURRENT names it; OPTIONS-N, IDENTITY and LOG are of no use here
//! ```
//!
//! Owns: those formats, as far as they are needed to look for chunks. Does not own: what is done with what is found.
//! Nothing here writes, save [`defuse`].

pub mod blob;
pub mod wal;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use super::keys::{Kind, seq};
use crate::format::chunk::{Carved, Chunk, carve};

/// What a file of a log's directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    /// Which files count.
    Manifest,
    /// What was written last.
    WriteAheadLog,
    /// Keys, summaries, small chunks.
    Sorted,
    /// Chunks.
    Blob,
    /// RocksDB's notes, and ours.
    Other,
}

impl FileKind {
    /// By its name.
    pub fn of(name: &str) -> FileKind {
        match name.rsplit_once('.') {
            Some((_, "log")) => FileKind::WriteAheadLog,
            Some((_, "sst")) => FileKind::Sorted,
            Some((_, "blob")) => FileKind::Blob,
            _ if name == "CURRENT" || name.starts_with("MANIFEST-") => FileKind::Manifest,
            _ => FileKind::Other,
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            FileKind::Manifest => "manifest",
            FileKind::WriteAheadLog => "write-ahead log",
            FileKind::Sorted => "sorted",
            FileKind::Blob => "blob",
            FileKind::Other => "other",
        }
    }
}

/// Where a file stops being what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The file's name.
    pub file: String,
    /// The first byte that cannot be trusted.
    pub at: u64,
    /// Bytes from there to the end of the file.
    pub rest: u64,
    /// What is wrong there.
    pub why: &'static str,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Broken { file, at, rest, why } = self;
        write!(f, "{file} is not whole from byte {at} on ({rest} bytes): {why}")
    }
}

/// The files of a directory, by name.
///
/// # Errors
/// The system's.
pub fn files(dir: &Path) -> io::Result<Vec<(String, FileKind, u64)>> {
    let mut files = Vec::new();
    for file in fs::read_dir(dir)? {
        let file = file?;
        // One that went away meanwhile is no file of this log any more.
        let Ok(metadata) = file.metadata() else { continue };
        if metadata.is_file() {
            let name = file.file_name().to_string_lossy().into_owned();
            files.push((name.clone(), FileKind::of(&name), metadata.len()));
        }
    }
    files.sort();
    Ok(files)
}

/// Where the write-ahead logs of a directory stop being whole, each, and the manifest in use, which is written in the
/// same form: RocksDB reads them up to there, goes by what it has read, and says nothing.
///
/// # Errors
/// The system's.
pub fn broken(dir: &Path) -> io::Result<Vec<Broken>> {
    let mut broken = Vec::new();
    for name in walked(dir)? {
        match wal::walk(&dir.join(&name), &mut |_| {}) {
            Ok(found) => broken.extend(found),
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(broken)
}

/// The files that RocksDB reads from one end to the other: write-ahead logs, and the manifest in use.
fn walked(dir: &Path) -> io::Result<Vec<String>> {
    let current = fs::read(dir.join("CURRENT")).unwrap_or_default();
    let manifest = String::from_utf8_lossy(&current).trim_end().to_owned();
    let files = files(dir)?.into_iter();
    let walked = files.filter(|(name, kind, _)| *kind == FileKind::WriteAheadLog || *name == manifest);
    Ok(walked.map(|(name, ..)| name).collect())
}

/// The first damage on which RocksDB would read for ever ([`wal::endless`]); a directory with one must not be opened.
///
/// # Errors
/// The system's.
pub fn endless(dir: &Path) -> io::Result<Option<(String, u64)>> {
    for name in walked(dir)? {
        match wal::endless(&dir.join(&name)) {
            Ok(places) => {
                if let Some(at) = places.first() {
                    return Ok(Some((name, *at)));
                }
            }
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Makes of each such damage one that RocksDB cuts off like any other: a type that does not exist, under a checksum that
/// did not match before. For who holds the directory's lock.
///
/// # Errors
/// The system's.
pub fn defuse(dir: &Path) -> io::Result<()> {
    for name in walked(dir)? {
        let path = dir.join(&name);
        let places = wal::endless(&path)?;
        if places.is_empty() {
            continue;
        }
        let mut file = File::options().write(true).open(&path)?;
        for at in places {
            file.seek(SeekFrom::Start(at))?;
            file.write_all(&[0xff])?;
        }
        file.sync_all()?;
    }
    Ok(())
}

/// A chunk found in one of the files.
#[derive(Clone, Debug)]
pub struct Found {
    /// The file's name.
    pub file: String,
    /// Where in it: the chunk's first byte; in a write-ahead log that of the record that holds it.
    pub at: u64,
    /// Its number, where its key lies beside it.
    pub number: Option<u64>,
    /// The chunk, whole.
    pub chunk: Chunk,
}

/// Gives each whole chunk that any file of the directory holds, once, trimmed ones too, in the order of the files.
///
/// # Errors
/// The system's, and those of `each`.
pub fn salvage(dir: &Path, each: &mut dyn FnMut(Found) -> io::Result<()>) -> io::Result<()> {
    let mut seen = HashSet::new();
    let mut failed = Ok(());
    let mut give = |file: &str, at: u64, number: Option<u64>, chunk: Chunk| {
        if failed.is_ok() && seen.insert(chunk.sum()) {
            failed = each(Found { file: file.to_owned(), at, number, chunk });
        }
    };
    for (name, kind, _) in files(dir)? {
        let path = dir.join(&name);
        match kind {
            FileKind::WriteAheadLog => {
                wal::walk(&path, &mut |record| {
                    for (number, value) in chunks(&record) {
                        if let Ok(chunk) = Chunk::parse_copy(value) {
                            give(&name, record.at, Some(number), chunk);
                        }
                    }
                })?;
            }
            FileKind::Blob => {
                blob::walk(&path, &mut |blob| {
                    if let Ok(chunk) = Chunk::parse_copy(blob.value) {
                        give(&name, blob.at, seq(Kind::Chunk, blob.key), chunk);
                    }
                })?;
            }
            FileKind::Sorted => {
                let mut bytes = Vec::new();
                File::open(&path)?.read_to_end(&mut bytes)?;
                for (at, carved) in carve(&bytes) {
                    if let Carved::Chunk(chunk) = carved {
                        give(&name, at as u64, None, chunk);
                    }
                }
            }
            FileKind::Manifest | FileKind::Other => {}
        }
    }
    failed
}

/// The chunks that one record of a write-ahead log holds: number and bytes.
pub fn chunks<'a>(record: &wal::Record<'a>) -> impl Iterator<Item = (u64, &'a [u8])> {
    record.puts().filter_map(|(key, value)| Some((seq(Kind::Chunk, key)?, value)))
}

/// RocksDB never stores a CRC as it is, since the CRC of bytes that contain their own CRC is of no use.
fn unmask(crc: u32) -> u32 {
    crc.wrapping_sub(0xa282_ead8).rotate_left(15)
}

/// As much of `buffer` as the file still has.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read(room) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests;
