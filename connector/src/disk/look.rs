//! Looking at a log without touching it: no lock, nothing written, beside a process that has it open.
//!
//! What lies in the write-ahead log is read into memory and stays where it is. A running process writes on meanwhile, so
//! what looks damaged may only be half written, or deleted since: damage counts once it was found twice, unchanged.
//!
//! Owns: what is there, what is checked, what counts as damage. Does not own: what is done about it (`repair`).

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ::rocksdb::{ColumnFamily, DB, ReadOptions};

use super::keys::{Kind, key, seq};
use super::raw::{self, Broken, FileKind};
use super::rocksdb::{FAMILY, chunk, clean, open_read_only, passes, refused, summaries, suspect};
use super::{Error, beside};
use crate::format::chunk::Summary;

/// How often a log is checked that looks different each time.
const PASSES: usize = 5;

/// What lies in a log's directory, and beside it.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// The chunks, in order.
    pub chunks: Vec<(u64, Summary)>,
    /// The number of the next chunk.
    pub next: u64,
    /// Why RocksDB does not open it; then no chunk is seen.
    pub refused: Option<String>,
    /// The first chunk that cannot be seen, and why.
    pub cut: Option<(u64, String)>,
    /// Whether the last that happened here was a stop in order: no process has it open, none was killed.
    pub closed: bool,
    /// The process that has it open, where the system tells.
    pub held_by: Option<u32>,
    /// Its files: name, kind, bytes.
    pub files: Vec<(String, FileKind, u64)>,
    /// What was put aside or cut out of it before, and lies beside it.
    pub beside: Vec<PathBuf>,
}

impl Look {
    /// Looks at `dir`: at summaries, not into chunks. Holds up to the write-ahead log's bytes in memory for a moment.
    ///
    /// # Errors
    /// [`Error::NoLog`]; [`Error::Failed`]: the system refuses to read it.
    pub fn at(dir: &Path) -> Result<Look, Error> {
        let files = listed(dir)?;
        let mut look = Look {
            closed: clean(dir).is_some(),
            held_by: holder(dir),
            beside: siblings(dir),
            files,
            ..Look::default()
        };
        if look.files.is_empty() {
            return Ok(look);
        }
        for _ in 0..PASSES {
            match opened(dir)? {
                Ok(db) => {
                    let (survey, _) = summaries(&db, family(&db));
                    look.next = survey.next.max(clean(dir).map_or(0, |(next, _)| next));
                    (look.chunks, look.cut, look.refused) = (survey.chunks, survey.cut, None);
                    break;
                }
                // A file that a running process has deleted since the list was read is not missing the next time.
                Err(why) if look.refused.as_ref() == Some(&why) => break,
                Err(why) => look.refused = Some(why),
            }
        }
        Ok(look)
    }
}

/// What is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// RocksDB does not open it, or must not: the next `run` puts all of it aside.
    Refused(String),
    /// The sorted files: RocksDB stops on them sooner or later, and then puts all of it aside.
    Sorted(String),
    /// A file that RocksDB reads up to a place, in silence.
    Broken(Broken),
    /// A chunk: the log ends before it.
    Chunk {
        /// Its number.
        number: u64,
        /// What is wrong with it.
        why: String,
    },
    /// Chunks are gone that were there when the log was closed.
    Missing(u64),
}

impl Damage {
    /// Whether nothing of the database can be kept as it is.
    pub fn is_of_all(&self) -> bool {
        matches!(self, Damage::Refused(_) | Damage::Sorted(_))
    }
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Damage::Refused(why) => write!(f, "RocksDB does not open it: {why}"),
            Damage::Sorted(why) => write!(f, "its sorted files are damaged: {why}"),
            Damage::Broken(broken) => broken.fmt(f),
            Damage::Chunk { number, why } => write!(f, "chunk {number} is not whole: {why}"),
            Damage::Missing(chunks) => {
                write!(f, "{chunks} chunk(s) are gone that were there when it was closed")
            }
        }
    }
}

/// A log that was read from one end to the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Chunks that are whole.
    pub chunks: u64,
    /// Records in them.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is damaged: what hits everything first, then chunks in order.
    pub damage: Vec<Damage>,
}

/// Reads all of the log in `dir` and checks it: every checksum of RocksDB's (manifest, write-ahead log, blocks, blobs),
/// every chunk's own, and that each chunk is the one its summary speaks of. `done` is told how many chunks were read.
///
/// # Errors
/// [`Error::NoLog`]; [`Error::Failed`]: the system refuses to read it.
pub fn check(dir: &Path, done: &mut dyn FnMut(u64)) -> Result<Checked, Error> {
    let mut before: Option<Checked> = None;
    for _ in 0..PASSES {
        let mut checked = pass(dir, done)?;
        if checked.damage.is_empty() {
            return Ok(checked);
        }
        if let Some(before) = &before {
            let both: Vec<Damage> =
                checked.damage.iter().filter(|damage| before.damage.contains(damage)).cloned().collect();
            if !both.is_empty() {
                checked.damage = both;
                return Ok(checked);
            }
        }
        before = Some(checked);
    }
    // Never the same twice: being written. Unless it never opened.
    let mut checked = before.unwrap_or_default();
    checked.damage.retain(Damage::is_of_all);
    Ok(checked)
}

fn pass(dir: &Path, done: &mut dyn FnMut(u64)) -> Result<Checked, Error> {
    let mut checked = Checked::default();
    if listed(dir)?.is_empty() {
        return Ok(checked);
    }
    let broken = raw::broken(dir).map_err(|error| unreadable(dir, &error))?;
    let db = match opened(dir)? {
        Ok(db) => db,
        Err(why) => {
            checked.damage.push(Damage::Refused(why));
            checked.damage.extend(broken.into_iter().map(Damage::Broken));
            return Ok(checked);
        }
    };
    if let Some(why) = sorted(&db, dir)? {
        checked.damage.push(Damage::Sorted(why));
    }
    checked.damage.extend(broken.into_iter().map(Damage::Broken));
    let (survey, _) = summaries(&db, family(&db));
    for (number, summary) in &survey.chunks {
        match chunk(&db, family(&db), dir, *number) {
            Ok(_) => {
                checked.chunks += 1;
                checked.records += u64::from(summary.records);
                checked.bytes += u64::from(summary.bytes);
            }
            Err(Error::Corrupt { why, .. }) => {
                checked.damage.push(Damage::Chunk { number: *number, why });
            }
            Err(other) => return Err(other),
        }
        done(checked.chunks);
    }
    let missing = clean(dir).map_or(0, |clean| survey.missing_of(clean));
    if let Some((number, why)) = survey.cut {
        checked.damage.push(Damage::Chunk { number, why });
    }
    if missing > 0 {
        checked.damage.push(Damage::Missing(missing));
    }
    Ok(checked)
}

/// Reads all blocks of the sorted files, those of trimmed chunks too; what is wrong with them.
fn sorted(db: &DB, dir: &Path) -> Result<Option<String>, Error> {
    let damaged = |error: ::rocksdb::Error| {
        let why = error.to_string();
        // A blob that cannot be read is its chunk's damage; the keys around it are whole.
        let is_blob = why.replace(&*dir.to_string_lossy(), "").to_lowercase().contains("blob");
        match passes(&error) {
            true => Err(Error::Failed { doing: "reading", dir: dir.to_owned(), why }),
            false => Ok((!is_blob).then_some(why)),
        }
    };
    #[expect(
        deprecated,
        reason = "for speed it is of no use any more; here it is what trimmed chunks are seen by"
    )]
    let entries = |kind| {
        let mut read = ReadOptions::default();
        read.fill_cache(false);
        read.set_ignore_range_deletions(true);
        read.set_iterate_lower_bound(key(kind, 0));
        read.set_iterate_upper_bound(key(kind, u64::MAX));
        db.raw_iterator_cf_opt(family(db), read)
    };
    let mut numbers = Vec::new();
    let mut summaries = entries(Kind::Summary);
    summaries.seek_to_first();
    while let Some(entry) = summaries.key() {
        numbers.extend(seq(Kind::Summary, entry));
        summaries.next();
    }
    if let Err(error) = summaries.status() {
        return damaged(error);
    }
    // By number: an iterator that meets a blob it cannot read goes no further by itself.
    let mut chunks = entries(Kind::Chunk);
    for number in numbers {
        chunks.seek(key(Kind::Chunk, number));
        if let Err(error) = chunks.status()
            && let Some(why) = damaged(error)?
        {
            return Ok(Some(why));
        }
    }
    Ok(None)
}

/// The database, read-only; or why RocksDB does not open it, or must not.
pub(super) fn opened(dir: &Path) -> Result<Result<DB, String>, Error> {
    if let Some(why) = suspect(dir) {
        return Ok(Err(why));
    }
    if let Some((file, at)) = raw::endless(dir).map_err(|error| unreadable(dir, &error))? {
        return Ok(Err(format!("it would read {file} for ever: byte {at} is not what was written")));
    }
    match open_read_only(dir) {
        Ok(db) if db.cf_handle(FAMILY).is_some() => Ok(Ok(db)),
        Ok(_) => Ok(Err(format!("it has no column family {FAMILY}"))),
        Err(error) => refused(dir, "reading", &error).map(Err),
    }
}

pub(super) fn family(db: &DB) -> &ColumnFamily {
    db.cf_handle(FAMILY).expect("opened() has seen that it is there")
}

/// The files of the directory, if it is a log's.
pub(super) fn listed(dir: &Path) -> Result<Vec<(String, FileKind, u64)>, Error> {
    let no_log = |why: &str| Error::NoLog { dir: dir.to_owned(), why: why.to_owned() };
    match raw::files(dir) {
        // An empty one is what a repair leaves that has put all aside.
        Ok(files) if files.is_empty() || files.iter().any(|(_, kind, _)| *kind != FileKind::Other) => {
            Ok(files)
        }
        Ok(_) => Err(no_log("no log lies there")),
        Err(error) if error.kind() == IoKind::NotFound => Err(no_log("there is no such directory")),
        Err(error) if error.kind() == IoKind::NotADirectory => Err(no_log("it is no directory")),
        Err(error) => Err(unreadable(dir, &error)),
    }
}

fn unreadable(dir: &Path, error: &std::io::Error) -> Error {
    Error::Failed { doing: "reading", dir: dir.to_owned(), why: error.to_string() }
}

/// What lies beside the directory under its name: `DIR.refused-…`, `DIR.cut-…`.
fn siblings(dir: &Path) -> Vec<PathBuf> {
    let Some(parent) = dir.parent() else { return Vec::new() };
    let begins: Vec<_> = ["refused-", "cut-"]
        .iter()
        .filter_map(|kind| Some(beside(dir, kind).file_name()?.to_string_lossy().into_owned()))
        .collect();
    let mut found: Vec<PathBuf> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            begins.iter().any(|begin| name.starts_with(begin))
        })
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// The process that holds `DIR.lock`, as Linux tells; the lock itself is left alone, since a process that starts at this
/// moment would find it taken. `None` also where the system does not tell.
pub fn holder(dir: &Path) -> Option<u32> {
    let inode = fs::metadata(beside(dir, "lock")).ok()?.ino();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| holds(line, inode))
}

/// The process in a line of `/proc/locks`, `1: FLOCK ADVISORY WRITE 4711 fd:00:1234 0 EOF`, if it is about this inode.
fn holds(line: &str, inode: u64) -> Option<u32> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, "FLOCK", _, "WRITE", process, file, ..] = words.as_slice() else { return None };
    (file.rsplit(':').next()?.parse::<u64>().ok()? == inode).then_some(())?;
    process.parse().ok()
}

/// The raw bytes of chunks as they lie in blob files, by number: also those that RocksDB does not give out.
pub(super) fn lying(dir: &Path, wanted: &dyn Fn(u64) -> bool) -> Result<BTreeMap<u64, Vec<u8>>, Error> {
    let mut lying = BTreeMap::new();
    for (name, kind, _) in listed(dir)? {
        if kind == FileKind::Blob {
            let walked = raw::blob::walk(&dir.join(name), &mut |blob| {
                if let Some(number) = seq(Kind::Chunk, blob.key).filter(|number| wanted(*number)) {
                    lying.insert(number, blob.value.to_vec());
                }
            });
            walked.map_err(|error| unreadable(dir, &error))?;
        }
    }
    Ok(lying)
}

#[cfg(test)]
mod tests;
