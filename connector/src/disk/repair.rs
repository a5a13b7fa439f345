//! Taking out of a log what is damaged, and keeping what was taken out.
//!
//! ```text
//!  what is damaged                       what is done                        what is kept of it
//!  nothing                               nothing
//!  a chunk, its blob, its summary        cut before it, with all behind it   DIR.cut-TIMESTAMP: the bytes as found
//!  write-ahead log, manifest: the end    what RocksDB reads of it stays      DIR.cut-TIMESTAMP.jsonl: one line each:
//!  chunks are gone since it was closed   nothing can be                        where in the file, what, why
//!  sorted files; RocksDB refuses         all is put aside                    DIR.refused-TIMESTAMP, and of its chunks
//!                                                                            those that are whole, as above
//! ```
//!
//! The next `run` does the same by itself, save that it keeps no copy. Kafka is asked again for what is not announced,
//! from the announced positions on. A second repair finds nothing to do; one that was interrupted is begun again, and
//! nothing is taken out before its bytes are on the disk elsewhere.
//!
//! Owns: that table, the form of the copy. Does not own: what is damage (`look`), who is told.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use ::rocksdb::{DB, ReadOptions};
use serde::Serialize;

use super::held::Held;
use super::keys::{Kind, key, seq};
use super::lock::lock;
use super::look::{family, holder, listed, lying, opened};
use super::raw::{self, FileKind, wal};
use super::rocksdb::put_aside;
use super::{Checked, Damage, Database, Error, Options, beside, check};
use crate::format::chunk::{Chunk, Range, Summary};

/// What a repair did.
#[derive(Clone, Debug)]
pub struct Repaired {
    /// What it found.
    pub found: Checked,
    /// What it did.
    pub outcome: Outcome,
    /// Chunks whose bytes were written elsewhere, and records in those that are whole.
    pub taken: Taken,
    /// The bytes that were taken out, and the index of them; `None` if there was not one.
    pub copy: Option<(PathBuf, PathBuf)>,
}

/// What a repair did to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: all of it is whole.
    Whole,
    /// Took out chunks from this number on, if any.
    Cut(Option<u64>),
    /// Renamed all of it to this; the next `run` begins an empty log.
    Aside(PathBuf),
}

/// What was taken out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Chunks, whole or not.
    pub chunks: u64,
    /// Those among them that are whole.
    pub whole: u64,
    /// Records, as far as it can be told.
    pub records: u64,
    /// What they account for.
    pub ranges: Vec<Range>,
}

/// Repairs the log in `dir`. `done` is told how many chunks were read.
///
/// # Errors
/// [`Error::Locked`]: a process has it open; [`Error::NoLog`]; [`Error::Failed`]: the system refuses; nothing has been
/// taken out then that is not in the copy.
pub fn repair(dir: &Path, options: &Options, done: &mut dyn FnMut(u64)) -> Result<Repaired, Error> {
    listed(dir)?;
    let held = lock(dir).map_err(|error| match (error, holder(dir)) {
        (Error::Locked { dir, by }, Some(process)) if by.is_empty() => {
            Error::Locked { dir, by: format!(" by process {process}") }
        }
        (error, _) => error,
    })?;
    raw::defuse(dir).map_err(|error| failed(dir, &error))?;
    let found = check(dir, done)?;
    if found.damage.is_empty() {
        return Ok(Repaired { found, outcome: Outcome::Whole, taken: Taken::default(), copy: None });
    }
    let mut copy = Copy::begin(dir, options)?;
    if found.damage.iter().any(Damage::is_of_all) {
        return aside(dir, held, options, found, copy);
    }
    let from = take_out(dir, &found, &mut copy)?;
    copy.sync()?;
    let opened = Database::open_locked(dir, held, options)?;
    if let Some((to, _)) = opened.aside {
        // Read-only it could be opened, and this way it cannot: what is whole is read from where it lies now.
        drop(opened.database);
        copy.salvage(&to)?;
        return copy.end(found, Outcome::Aside(to));
    }
    if let Some(from) = from {
        opened.database.forget(from, u64::MAX, true)?;
    }
    // What was kept leaves the damaged write-ahead log, and RocksDB deletes that.
    let reclaimed = opened.database.reclaim();
    drop(opened.database);
    if reclaimed.is_err() || !check(dir, done)?.damage.is_empty() {
        return aside(dir, lock(dir)?, options, found, copy);
    }
    copy.end(found, Outcome::Cut(from))
}

/// Copies what is whole, then puts all of it aside. Holds the lock until that is done.
fn aside(
    dir: &Path,
    held: Held,
    options: &Options,
    found: Checked,
    mut copy: Copy,
) -> Result<Repaired, Error> {
    copy.salvage(dir)?;
    copy.sync()?;
    let why = found.damage.first().map(ToString::to_string).unwrap_or_default();
    let (to, _) = put_aside(dir, why, options)?;
    drop(held);
    copy.end(found, Outcome::Aside(to))
}

/// Copies all that the log will not have any more; gives the number from which on chunks are to be deleted.
fn take_out(dir: &Path, found: &Checked, copy: &mut Copy) -> Result<Option<u64>, Error> {
    let bad: BTreeMap<u64, &str> = found
        .damage
        .iter()
        .filter_map(|damage| match damage {
            Damage::Chunk { number, why } => Some((*number, why.as_str())),
            _ => None,
        })
        .collect();
    let db = opened(dir)?.map_err(|why| Error::Failed { doing: "reading", dir: dir.to_owned(), why })?;
    let first = bad.keys().next().copied();
    if let Some(first) = first {
        let lying = lying(dir, &|number| bad.contains_key(&number))?;
        let follows = format!("it follows chunk {first}, which is not whole");
        for (number, summary) in from(&db, first) {
            let bytes = match db.get_cf(family(&db), key(Kind::Chunk, number)) {
                Ok(Some(bytes)) => bytes,
                Ok(None) | Err(_) => lying.get(&number).cloned().unwrap_or_default(),
            };
            let why = bad.get(&number).copied().unwrap_or(&follows);
            copy.chunk(Some(number), summary.as_ref(), &bytes, None, why)?;
        }
    }
    let kept: BTreeSet<u64> = from(&db, 0).map(|(number, _)| number).collect();
    let mut behind = false;
    for (name, kind, _) in listed(dir)? {
        let path = dir.join(&name);
        let broken = found.damage.iter().find_map(|damage| match damage {
            Damage::Broken(broken) if broken.file == name => Some(broken),
            _ => None,
        });
        if let Some(broken) = broken {
            copy.rest(&path, &name, broken.at, broken.why)?;
        }
        if kind == FileKind::WriteAheadLog && (behind || broken.is_some()) {
            let mut lost = Vec::new();
            let walked = wal::walk(&path, &mut |record| {
                let unread = behind || !record.reached;
                let chunks = raw::chunks(&record).filter(|(number, _)| unread && !kept.contains(number));
                lost.extend(chunks.map(|(number, bytes)| (number, record.at, bytes.to_vec())));
            });
            walked.map_err(|error| copy.failed(&error))?;
            for (number, at, bytes) in lost {
                let why = "RocksDB does not read beyond the damage before it";
                copy.chunk(Some(number), None, &bytes, Some((&name, at)), why)?;
            }
            behind = true;
        }
    }
    Ok(first)
}

/// The numbers in the log from `first` on, each with its summary if that can be read.
fn from(db: &DB, first: u64) -> impl Iterator<Item = (u64, Option<Summary>)> {
    let mut read = ReadOptions::default();
    read.fill_cache(false);
    read.set_iterate_lower_bound(key(Kind::Summary, first));
    read.set_iterate_upper_bound(key(Kind::Chunk, 0));
    let mut entries = db.raw_iterator_cf_opt(family(db), read);
    entries.seek_to_first();
    std::iter::from_fn(move || {
        let (entry, value) = entries.item()?;
        let found = (seq(Kind::Summary, entry)?, Summary::parse(value).ok());
        entries.next();
        Some(found)
    })
}

/// One line of the index.
#[derive(Debug, Serialize)]
struct Line<'a> {
    /// Where its bytes begin in the copy.
    at: u64,
    length: u64,
    /// `chunk`, or `bytes`: the end of a file, whatever it holds.
    what: &'static str,
    number: Option<u64>,
    whole: bool,
    records: Option<u32>,
    misfits: Option<u32>,
    ranges: &'a [Range],
    /// The file of RocksDB's that it lay in, and where there, if it was found without RocksDB's help.
    file: Option<&'a str>,
    file_at: Option<u64>,
    why: &'a str,
}

/// The copy of what is taken out: bytes, and an index of them.
struct Copy {
    dir: PathBuf,
    paths: (PathBuf, PathBuf),
    bytes: BufWriter<File>,
    index: BufWriter<File>,
    at: u64,
    lines: u64,
    taken: Taken,
}

impl Copy {
    fn begin(dir: &Path, options: &Options) -> Result<Copy, Error> {
        let failed = |error: io::Error| failed(dir, &error);
        let stamp = options.clock.wall_ms();
        let mut more = 0;
        loop {
            let name = if more == 0 { format!("cut-{stamp}") } else { format!("cut-{stamp}-{more}") };
            let paths = (beside(dir, &name), beside(dir, &format!("{name}.jsonl")));
            let bytes = match File::create_new(&paths.0) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    more += 1;
                    continue;
                }
                bytes => bytes.map_err(failed)?,
            };
            let index = File::create_new(&paths.1).map_err(failed)?;
            let (bytes, index) = (BufWriter::new(bytes), BufWriter::new(index));
            return Ok(Copy {
                dir: dir.to_owned(),
                paths,
                bytes,
                index,
                at: 0,
                lines: 0,
                taken: Taken::default(),
            });
        }
    }

    fn failed(&self, error: &io::Error) -> Error {
        failed(&self.dir, error)
    }

    fn chunk(
        &mut self,
        number: Option<u64>,
        summary: Option<&Summary>,
        bytes: &[u8],
        file: Option<(&str, u64)>,
        why: &str,
    ) -> Result<(), Error> {
        let parsed = Chunk::parse_copy(bytes).ok();
        let whole = parsed.as_ref().is_some_and(|chunk| summary.is_none_or(|summary| summary.is_of(chunk)));
        // Of what is damaged the summary says what it was.
        let said = summary.cloned().or_else(|| parsed.as_ref().map(Chunk::summary));
        self.taken.chunks += 1;
        self.taken.whole += u64::from(whole);
        if let Some(said) = &said {
            self.taken.records += u64::from(said.records);
            self.taken.ranges.extend(said.ranges.iter().cloned());
        }
        let line = Line {
            at: self.at,
            length: bytes.len() as u64,
            what: "chunk",
            number,
            whole,
            records: said.as_ref().map(|said| said.records),
            misfits: said.as_ref().map(|said| said.misfits),
            ranges: said.as_ref().map_or(&[], |said| &said.ranges),
            file: file.map(|(name, _)| name),
            file_at: file.map(|(_, at)| at),
            why,
        };
        self.write(bytes, &line)
    }

    /// The end of a file, as it lies there.
    fn rest(&mut self, path: &Path, name: &str, at: u64, why: &str) -> Result<(), Error> {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|mut file| {
            file.seek(SeekFrom::Start(at))?;
            file.read_to_end(&mut bytes)
        });
        read.map_err(|error| self.failed(&error))?;
        let line = Line {
            at: self.at,
            length: bytes.len() as u64,
            what: "bytes",
            number: None,
            whole: false,
            records: None,
            misfits: None,
            ranges: &[],
            file: Some(name),
            file_at: Some(at),
            why,
        };
        self.write(&bytes, &line)
    }

    fn write(&mut self, bytes: &[u8], line: &Line<'_>) -> Result<(), Error> {
        let written = self.bytes.write_all(bytes).and_then(|()| {
            serde_json::to_writer(&mut self.index, line)?;
            self.index.write_all(b"\n")
        });
        written.map_err(|error| self.failed(&error))?;
        self.at += bytes.len() as u64;
        self.lines += 1;
        Ok(())
    }

    /// All chunks that are whole in any file of `dir`.
    fn salvage(&mut self, dir: &Path) -> Result<(), Error> {
        let mut wrong = Ok(());
        let walked = raw::salvage(dir, &mut |found| {
            let place = Some((found.file.as_str(), found.at));
            let why = "it is whole, in files that RocksDB does not open; it may have been announced";
            if wrong.is_ok() {
                wrong = self.chunk(found.number, None, found.chunk.encoded(), place, why);
            }
            Ok(())
        });
        walked.map_err(|error| failed(dir, &error))?;
        wrong
    }

    /// Returns once it is on the disk.
    fn sync(&mut self) -> Result<(), Error> {
        let synced = (|| {
            self.bytes.flush()?;
            self.index.flush()?;
            self.bytes.get_ref().sync_all()?;
            self.index.get_ref().sync_all()?;
            match self.paths.0.parent() {
                Some(folder) => File::open(folder)?.sync_all(),
                None => Ok(()),
            }
        })();
        synced.map_err(|error| self.failed(&error))
    }

    fn end(mut self, found: Checked, outcome: Outcome) -> Result<Repaired, Error> {
        self.sync()?;
        let copy = if self.lines > 0 {
            Some(self.paths)
        } else {
            // An empty copy says nothing.
            let _ = fs::remove_file(&self.paths.0).and_then(|()| fs::remove_file(&self.paths.1));
            None
        };
        Ok(Repaired { found, outcome, taken: self.taken, copy })
    }
}

fn failed(dir: &Path, error: &io::Error) -> Error {
    Error::refused("repairing", dir, error.to_string())
}

#[cfg(test)]
mod tests;
