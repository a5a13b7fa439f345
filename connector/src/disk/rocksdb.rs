//! One RocksDB per log: opened with care, written in batches, read by number.
//!
//! Owns: options, opening and what is put aside, the five things that a log needs of a database. All calls block.

use std::fs::{self, File};
use std::io::{ErrorKind as IoKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ::rocksdb::{
    BlockBasedOptions, ColumnFamily, ColumnFamilyDescriptor, CompactOptions, DB, ErrorKind, FlushOptions,
    LogLevel, ReadOptions, WaitForCompactOptions, WriteBatch, WriteOptions,
};
use bytes::Bytes;

use super::held::Held;
use super::keys::{Kind, key, seq};
use super::lock::lock;
use super::pages::Pages;
use super::raw::{self, Broken};
use super::{Error, beside};
use crate::clock::Clock;
use crate::error::chain;
use crate::failpoint;
use crate::format::chunk::{Chunk, Packer, Summary};

/// The column family with everything in it.
pub(super) const FAMILY: &str = "log";
/// Says that RocksDB found its own files corrupt while running: the next opening puts them aside.
const SUSPECT: &str = "SUSPECT";
/// Says at which number a clean close left the log.
const CLEAN: &str = "CLEAN";
/// Values from this size on lie in blob files. Below it the entry in the sorted file would hardly be smaller.
const MIN_BLOB: u64 = 1024;

/// How a database is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// For the name of what is put aside.
    pub clock: Clock,
    /// Bytes held in memory (and in the write-ahead log) before RocksDB writes a file of them.
    pub write_buffer_bytes: usize,
}

/// A database, and what happened while it was opened.
#[derive(Debug)]
pub struct Opened {
    /// The database.
    pub database: Database,
    /// Where a database that RocksDB refused was put, and why it was.
    pub aside: Option<(PathBuf, String)>,
    /// What is in it.
    pub survey: Survey,
}

/// What a database holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// What it was begun for; `None`: nobody has said.
    pub origin: Option<Vec<u8>>,
    /// The chunks, in order.
    pub chunks: Vec<(u64, Summary)>,
    /// The number for the next chunk: above all that were used.
    pub next: u64,
    /// Where the log had to be cut, and why.
    pub cut: Option<(u64, String)>,
    /// Chunks that a clean close had left and that are not there.
    pub missing: u64,
    /// Files that RocksDB read up to a place only, in silence: what was behind it is not among the chunks.
    pub broken: Vec<Broken>,
}

impl Survey {
    /// How many chunks are gone of those that a clean close had left: of the last ones, and of the first.
    pub(super) fn missing_of(&self, (next, needed): (u64, u64)) -> u64 {
        let first = self.chunks.first().map_or(0, |(first, _)| *first);
        next.saturating_sub(self.next.max(needed)) + first.saturating_sub(needed)
    }
}

/// The database.
pub struct Database {
    db: DB,
    dir: PathBuf,
    packer: Mutex<Packer>,
    /// Held as long as the database is open; released by the system if the process dies.
    _lock: Held,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Database {
    /// Opens the database in `dir`, or makes it, and looks through it. One that RocksDB refuses is put aside and an
    /// empty one made in its place: that costs time, not data, since Kafka has it all.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Directory`], [`Error::Failed`].
    pub fn open(dir: &Path, options: &Options) -> Result<Opened, Error> {
        prepare(dir)?;
        Database::open_locked(dir, lock(dir)?, options)
    }

    /// As [`Database::open`], by who holds the directory's lock already.
    pub(super) fn open_locked(dir: &Path, lock: Held, options: &Options) -> Result<Opened, Error> {
        let mut aside = None;
        if let Some(why) = suspect(dir) {
            aside = Some(put_aside(dir, why, options)?);
        }
        // Looked at before RocksDB writes new files in the place of these.
        let unread = |error: std::io::Error| Error::refused("reading", dir, error.to_string());
        raw::defuse(dir).map_err(unread)?;
        let broken = raw::broken(dir).map_err(unread)?;
        let clean = take_clean(dir);
        let db = match open_db(dir, options) {
            Ok(db) => db,
            Err(error) => {
                // Only a database that is broken is put aside: one on a full or failing disk, or held by somebody who
                // does not know our lock, is left as it is.
                aside = Some(put_aside(dir, refused(dir, "opening", &error)?, options)?);
                open_db(dir, options)
                    .map_err(|error| Error::refused("making anew", dir, error.to_string()))?
            }
        };
        let database = Database { db, dir: dir.to_owned(), packer: Mutex::default(), _lock: lock };
        let mut survey = database.survey()?;
        survey.broken = broken;
        if let (Some(clean), None) = (clean, &aside) {
            survey.missing = survey.missing_of(clean);
            survey.next = survey.next.max(clean.0);
        }
        Ok(Opened { database, aside, survey })
    }

    /// Where it lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn family(&self) -> &ColumnFamily {
        self.db.cf_handle(FAMILY).expect("the database was opened with this column family")
    }

    /// Looks through all summaries, and at the last chunk itself. What cannot be read is cut off, with everything
    /// behind it, and said: nothing is lost by that, it comes again from Kafka.
    ///
    /// # Errors
    /// [`Error::Failed`], if what is to be cut cannot be.
    pub fn survey(&self) -> Result<Survey, Error> {
        let (mut survey, damaged) = summaries(&self.db, self.family());
        if let Some(error) = damaged {
            if passes(&error) {
                return Err(self.failed("looking through", &error));
            }
            // The sorted files themselves are damaged: sooner or later compaction would stop on them.
            self.suspect(error.as_ref());
        }
        while let Some((number, _)) = survey.chunks.last() {
            let number = *number;
            match self.chunk(number) {
                Ok(_) => break,
                Err(Error::Corrupt { why, .. }) => {
                    survey.cut = Some((number, why));
                    survey.chunks.pop();
                }
                Err(other) => return Err(other),
            }
        }
        if let Some((from, _)) = &survey.cut {
            self.forget(*from, u64::MAX, true)?;
        }
        survey.origin = match self.origin() {
            Ok(origin) => origin,
            Err(error) if passes(&error) => return Err(self.failed("reading", &error)),
            // Whose the chunks are is not known then.
            Err(error) => {
                self.suspect(error.as_ref());
                None
            }
        };
        Ok(survey)
    }

    /// Chunk number `seq`, whole and verified, and verified to be the one that its summary speaks of.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is not there, not whole, or not readable; [`Error::Failed`] if the system has no
    /// means left to read it.
    pub fn chunk(&self, seq: u64) -> Result<Chunk, Error> {
        chunk(&self.db, self.family(), &self.dir, seq)
    }

    /// For reading many chunks in order. Sees what was durable at this moment.
    pub fn pages(&self) -> Pages<'_> {
        Pages::new(self, &self.db, self.family())
    }

    /// What chunk number `seq` accounts for, without reading it.
    ///
    /// # Errors
    /// As [`Database::chunk`].
    pub fn summary(&self, seq: u64) -> Result<Summary, Error> {
        summary(&self.db, self.family(), &self.dir, seq)
    }

    /// Writes the chunks, with their summaries, in one batch, and returns once they are on the disk.
    ///
    /// # Errors
    /// [`Error::Failed`]: none, some or all of them may be there after the next opening.
    pub fn append<'a>(&self, chunks: impl Iterator<Item = (u64, &'a Chunk)> + Clone) -> Result<(), Error> {
        // RocksDB copies a value once into the batch and once into its memtable; the room for the first is made at
        // once, as growing would copy again and again. What packing leaves of it unused is never touched.
        let bytes: usize =
            chunks.clone().map(|(_, chunk)| chunk.len() + chunk.ranges().len() * 80 + 128).sum();
        let mut batch = WriteBatch::with_capacity_bytes(bytes);
        // A panic in there leaves a buffer whose content is of no use, which is what it is between two chunks.
        let mut packer = self.packer.lock().unwrap_or_else(PoisonError::into_inner);
        for (seq, chunk) in chunks {
            batch.put_cf(self.family(), key(Kind::Summary, seq), chunk.summary().encode());
            batch.put_cf(self.family(), key(Kind::Chunk, seq), packer.pack(chunk));
        }
        drop(packer);
        self.write(batch, true, "appending to")
    }

    /// Puts each of these chunks, durably, in the place of all from its first number to its last: all of them or none.
    ///
    /// # Errors
    /// [`Error::Failed`]: the old or the new ones are there after the next opening.
    pub fn replace<'a>(&self, chunks: impl Iterator<Item = (u64, u64, &'a Chunk)>) -> Result<(), Error> {
        let (mut batch, mut packer) = (WriteBatch::default(), Packer::default());
        for (first, last, chunk) in chunks {
            for kind in [Kind::Summary, Kind::Chunk] {
                // What comes later in a batch is newer: the new one is not deleted with the old ones.
                batch.delete_range_cf(self.family(), key(kind, first), key(kind, last + 1));
            }
            batch.put_cf(self.family(), key(Kind::Summary, first), chunk.summary().encode());
            batch.put_cf(self.family(), key(Kind::Chunk, first), packer.pack(chunk));
        }
        self.write(batch, true, "making room in")?;
        failpoint::pass("log.shed");
        Ok(())
    }

    /// Deletes the chunks `[from, to)`. Without `sync` they may be there again after a crash.
    ///
    /// # Errors
    /// [`Error::Failed`].
    pub fn forget(&self, from: u64, to: u64, sync: bool) -> Result<(), Error> {
        let mut batch = WriteBatch::default();
        for kind in [Kind::Summary, Kind::Chunk] {
            batch.delete_range_cf(self.family(), key(kind, from), key(kind, to));
        }
        self.write(batch, sync, "deleting from")?;
        failpoint::pass("log.forgotten");
        Ok(())
    }

    /// The last chunk; `None`: there is none.
    ///
    /// # Errors
    /// As [`Database::chunk`].
    pub fn last(&self) -> Result<Option<Chunk>, Error> {
        let mut read = ReadOptions::default();
        read.set_iterate_lower_bound(key(Kind::Summary, 0));
        read.set_iterate_upper_bound(key(Kind::Chunk, 0));
        let mut entries = self.db.raw_iterator_cf_opt(self.family(), read);
        entries.seek_to_last();
        entries.key().and_then(|entry| seq(Kind::Summary, entry)).map(|number| self.chunk(number)).transpose()
    }

    /// What the log was begun for; `None`: nobody has said.
    fn origin(&self) -> Result<Option<Vec<u8>>, ::rocksdb::Error> {
        self.db.get_cf(self.family(), key(Kind::Origin, 0))
    }

    /// What the log was begun for; `None` also where that cannot be read, which [`Database::survey`] says.
    pub fn begun_for(&self) -> Option<Vec<u8>> {
        self.origin().ok().flatten()
    }

    /// Deletes all chunks and says what those to come belong to, both at once, and returns once that is on the disk: a
    /// chunk must never be found under an origin that is not its own.
    ///
    /// # Errors
    /// [`Error::Failed`].
    pub fn begin(&self, origin: &[u8]) -> Result<(), Error> {
        let mut batch = WriteBatch::default();
        for kind in [Kind::Summary, Kind::Chunk] {
            batch.delete_range_cf(self.family(), key(kind, 0), key(kind, u64::MAX));
        }
        batch.put_cf(self.family(), key(Kind::Origin, 0), origin);
        self.write(batch, true, "beginning")
    }

    fn write(&self, batch: WriteBatch, sync: bool, doing: &'static str) -> Result<(), Error> {
        let mut write = WriteOptions::default();
        write.set_sync(sync);
        self.db.write_opt(batch, &write).map_err(|error| self.failed(doing, &error))
    }

    fn failed(&self, doing: &'static str, error: &::rocksdb::Error) -> Error {
        if error.kind() == ErrorKind::Corruption {
            self.suspect(error.as_ref());
        }
        Error::refused(doing, &self.dir, error.to_string())
    }

    /// Gives the room of what was forgotten back to the file system: writes out the memtable, which lets go of the
    /// write-ahead log, and compacts the keys, which lets go of the blob files that nothing points to any more.
    /// Reads and writes keys and summaries only.
    ///
    /// # Errors
    /// [`Error::Failed`].
    pub fn reclaim(&self) -> Result<(), Error> {
        let failed = |error| self.failed("reclaiming the room of", &error);
        let mut flush = FlushOptions::default();
        flush.set_wait(true);
        self.db.flush_cf_opt(self.family(), &flush).map_err(failed)?;
        let mut compact = CompactOptions::default();
        compact.set_exclusive_manual_compaction(false);
        self.db.compact_range_cf_opt(self.family(), None::<&[u8]>, None::<&[u8]>, &compact);
        self.db.wait_for_compact(&WaitForCompactOptions::default()).map_err(failed)
    }

    /// Says that the log was closed in order with `next` as its next number, and that chunks from `needed` on are still
    /// there, for the next opening to compare.
    pub fn clean(&self, next: u64, needed: u64) {
        // Not synced: without it the next opening only knows less.
        let _ = fs::write(self.dir.join(CLEAN), format!("{next} {needed}"));
    }

    /// Changes the bytes of a chunk where it lies, without the care that [`Database::append`] takes.
    #[cfg(test)]
    pub fn damage(&self, seq: u64, how: impl Fn(&mut Vec<u8>)) {
        let mut bytes = self.db.get_cf(self.family(), key(Kind::Chunk, seq)).unwrap().unwrap();
        how(&mut bytes);
        self.db.put_cf(self.family(), key(Kind::Chunk, seq), bytes).unwrap();
    }

    /// As if nobody had said what the log belongs to.
    #[cfg(test)]
    pub fn forget_origin(&self) {
        self.db.delete_cf(self.family(), key(Kind::Origin, 0)).unwrap();
    }

    fn suspect(&self, why: &str) {
        tracing::error!(
            dir = %self.dir.display(), why,
            "RocksDB found its files corrupt; the next opening puts the log aside and reads from Kafka"
        );
        let _ = fs::write(self.dir.join(SUSPECT), why);
    }
}

/// All summaries, in order, up to the first that cannot be read, which `cut` names; and what is wrong with the sorted
/// files, if it is they that cannot be read. Deletes nothing.
pub(super) fn summaries(db: &DB, family: &ColumnFamily) -> (Survey, Option<::rocksdb::Error>) {
    let mut survey = Survey::default();
    let mut read = ReadOptions::default();
    read.fill_cache(false);
    read.set_iterate_lower_bound(key(Kind::Summary, 0));
    read.set_iterate_upper_bound(key(Kind::Chunk, 0));
    let mut entries = db.raw_iterator_cf_opt(family, read);
    entries.seek_to_first();
    while let Some((entry, value)) = entries.item() {
        let Some(number) = seq(Kind::Summary, entry) else {
            survey.cut = Some((survey.next, "a key that is none of a log's".into()));
            break;
        };
        match Summary::parse(value) {
            Ok(summary) => survey.chunks.push((number, summary)),
            Err(error) => {
                survey.cut = Some((number, format!("its summary: {}", chain(&error))));
                break;
            }
        }
        survey.next = number + 1;
        entries.next();
    }
    let damaged = entries.status().err();
    if let Some(error) = &damaged {
        survey.cut = Some((survey.next, error.to_string()));
    }
    (survey, damaged)
}

/// Chunk number `seq`, whole and verified, and verified to be the one that its summary speaks of.
pub(super) fn chunk(db: &DB, family: &ColumnFamily, dir: &Path, seq: u64) -> Result<Chunk, Error> {
    let summary = summary(db, family, dir, seq)?;
    let bytes = Bytes::from(get(db, family, dir, (Kind::Chunk, seq))?);
    let chunk = Chunk::parse(bytes).map_err(|error| corrupt(dir, seq, chain(&error)))?;
    if !summary.is_of(&chunk) {
        return Err(corrupt(dir, seq, "it is another chunk than its summary says".into()));
    }
    Ok(chunk)
}

fn summary(db: &DB, family: &ColumnFamily, dir: &Path, seq: u64) -> Result<Summary, Error> {
    let bytes = get(db, family, dir, (Kind::Summary, seq))?;
    Summary::parse(&bytes).map_err(|error| corrupt(dir, seq, chain(&error)))
}

fn get(db: &DB, family: &ColumnFamily, dir: &Path, (kind, seq): (Kind, u64)) -> Result<Vec<u8>, Error> {
    let mut read = ReadOptions::default();
    read.fill_cache(false);
    match db.get_cf_opt(family, key(kind, seq), &read) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(corrupt(dir, seq, "it is not there".into())),
        Err(error) if passes(&error) => Err(Error::refused("reading", dir, error.to_string())),
        Err(error) => Err(corrupt(dir, seq, error.to_string())),
    }
}

fn corrupt(dir: &Path, seq: u64, why: String) -> Error {
    Error::Corrupt { seq, dir: dir.to_owned(), why }
}

/// Why RocksDB refuses a directory, if it does so for what its files hold.
///
/// # Errors
/// [`Error::Locked`], [`Error::Failed`]: it is the system that refuses, or somebody else has it open.
pub(super) fn refused(dir: &Path, doing: &'static str, error: &::rocksdb::Error) -> Result<String, Error> {
    let why = error.to_string();
    // The directory's own name may contain anything.
    let said = why.replace(&*dir.to_string_lossy(), "");
    let missing = ["No such file", "Not a directory"].iter().any(|missing| said.contains(missing));
    match error.kind() {
        _ if said.contains("lock hold by") || said.contains("/LOCK: ") => {
            Err(Error::Locked { dir: dir.to_owned(), by: String::new() })
        }
        ErrorKind::IOError if !missing => Err(Error::refused(doing, dir, why)),
        _ => Ok(why),
    }
}

/// Bytes of the files in `dir`.
pub fn bytes_in(dir: &Path) -> u64 {
    let Ok(files) = fs::read_dir(dir) else { return 0 };
    files.flatten().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}

/// Bytes of the files in `dir` that hold chunks: of those that are forgotten too, until [`Database::reclaim`].
pub fn chunk_bytes_in(dir: &Path) -> u64 {
    let files = raw::files(dir).unwrap_or_default();
    files.iter().filter(|(_, kind, _)| *kind == raw::FileKind::Blob).map(|(_, _, bytes)| bytes).sum()
}

/// Whether the system only lacks the means at the moment. All else that goes wrong with a read goes wrong again: a log
/// that tried once more would try for ever.
pub(super) fn passes(error: &::rocksdb::Error) -> bool {
    ["Too many open files", "Cannot allocate memory"].iter().any(|lack| error.as_ref().contains(lack))
}

fn open_db(dir: &Path, options: &Options) -> Result<DB, ::rocksdb::Error> {
    let (db, families) = configured(options.write_buffer_bytes);
    DB::open_cf_descriptors(&db, dir, families)
}

/// Opens without a lock, and without writing anything: what is in the write-ahead log stays there and is read into
/// memory. Sees what was there at this moment, beside a process that goes on writing.
pub(super) fn open_read_only(dir: &Path) -> Result<DB, ::rocksdb::Error> {
    let (mut db, families) = configured(64 << 20);
    // All sorted files at once: a process that has it open may delete them meanwhile.
    db.set_max_open_files(-1);
    db.create_if_missing(false);
    db.create_missing_column_families(false);
    DB::open_cf_descriptors_read_only(&db, dir, families, false)
}

fn configured(write_buffer_bytes: usize) -> (::rocksdb::Options, [ColumnFamilyDescriptor; 2]) {
    let mut db = ::rocksdb::Options::default();
    db.create_if_missing(true);
    db.create_missing_column_families(true);
    // A torn tail of the write-ahead log is cut at the last whole record (this is the default; it is relied on).
    db.set_wal_recovery_mode(::rocksdb::DBRecoveryMode::PointInTime);
    db.set_max_background_jobs(2);
    db.set_max_open_files(256);
    db.set_log_level(LogLevel::Warn);
    db.set_keep_log_file_num(2);
    db.set_stats_dump_period_sec(0);
    db.set_stats_persist_period_sec(0);
    db.set_max_manifest_file_size(4 << 20);
    let mut log = ::rocksdb::Options::default();
    log.set_write_buffer_size(write_buffer_bytes);
    // One being filled, one being written out, one to spare: a flush that is slower than the appends stalls them.
    log.set_max_write_buffer_number(3);
    log.set_enable_blob_files(true);
    log.set_min_blob_size(MIN_BLOB);
    log.set_blob_file_size(256 << 20);
    log.set_enable_blob_gc(false);
    // `reclaim` compacts when there is something to gain; on its own RocksDB would do so as the log grows.
    log.set_disable_auto_compactions(true);
    log.set_periodic_compaction_seconds(0);
    let mut blocks = BlockBasedOptions::default();
    blocks.disable_cache();
    log.set_block_based_table_factory(&blocks);
    // Nothing is ever in it; but the room that RocksDB allocates for a write-ahead log goes by the largest of both.
    let mut unused = ::rocksdb::Options::default();
    unused.set_write_buffer_size(write_buffer_bytes);
    let families = [
        ColumnFamilyDescriptor::new(::rocksdb::DEFAULT_COLUMN_FAMILY_NAME, unused),
        ColumnFamilyDescriptor::new(FAMILY, log),
    ];
    (db, families)
}

/// Makes the directory and tries to write there, so that the error says so, and not what RocksDB stumbled on.
pub(super) fn prepare(dir: &Path) -> Result<(), Error> {
    // A full disk is no mistake of the configuration: it passes.
    let unusable = |why: std::io::Error| match Error::refused("opening", dir, why.to_string()) {
        full @ Error::Full { .. } => full,
        _ => Error::Directory { dir: dir.to_owned(), why: why.to_string() },
    };
    fs::create_dir_all(dir).map_err(unusable)?;
    let probe = dir.join("WRITABLE");
    File::create(&probe).and_then(|mut file| file.write_all(b"?")).map_err(unusable)?;
    fs::remove_file(&probe).map_err(unusable)
}

/// Why the files in `dir` must not be opened, though RocksDB might.
pub(super) fn suspect(dir: &Path) -> Option<String> {
    let mark = dir.join(SUSPECT);
    // Looked for before it is read: that takes a descriptor, and to be short of those says nothing of the log.
    let read = mark.try_exists().and_then(|there| there.then(|| fs::read_to_string(&mark)).transpose());
    match read {
        Ok(Some(why)) => return Some(format!("corrupt when it was last used: {why}")),
        Ok(None) => {}
        Err(error) if error.kind() == IoKind::NotFound => {}
        Err(error) => return Some(format!("{SUSPECT} cannot be read: {error}")),
    }
    // Without CURRENT RocksDB makes a new database over the old one's files, and says nothing.
    let files: Vec<PathBuf> = fs::read_dir(dir).ok()?.flatten().map(|file| file.path()).collect();
    let data = files.iter().any(|file| {
        file.extension().is_some_and(|extension| ["sst", "blob", "log"].iter().any(|data| extension == *data))
    });
    (data && !files.iter().any(|file| file.ends_with("CURRENT"))).then(|| "the file CURRENT is gone".into())
}

/// Reads and removes what the last clean close said.
fn take_clean(dir: &Path) -> Option<(u64, u64)> {
    let clean = clean(dir);
    let _ = fs::remove_file(dir.join(CLEAN));
    clean
}

/// What the last clean close said, if it was the last that happened here: the next number, and the first needed.
pub(super) fn clean(dir: &Path) -> Option<(u64, u64)> {
    let text = fs::read_to_string(dir.join(CLEAN)).ok()?;
    let (next, needed) = text.split_once(' ')?;
    Some((next.parse().ok()?, needed.parse().ok()?))
}

pub(super) fn put_aside(dir: &Path, why: String, options: &Options) -> Result<(PathBuf, String), Error> {
    let failed = |error: std::io::Error| Error::refused("putting aside", dir, error.to_string());
    let stamp = options.clock.wall_ms();
    let aside = (0..)
        .map(|n| match n {
            0 => beside(dir, &format!("refused-{stamp}")),
            n => beside(dir, &format!("refused-{stamp}-{n}")),
        })
        .find(|path| !path.exists())
        .expect("some number is free");
    fs::rename(dir, &aside).map_err(failed)?;
    fs::create_dir_all(dir).map_err(failed)?;
    Ok((aside, why))
}

#[cfg(test)]
pub(super) mod tests;
