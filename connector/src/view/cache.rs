//! Blobs on the local disk, uncompressed, as views map them.
//!
//! ```text
//! DIR/DATASET/TOPIC_ID/SHARD/VERSION-EPOCH-CHECKSUM.delta.avro | .snapshot.avro | .index
//! DIR/DATASET/TOPIC_ID/SHARD/VERSION-EPOCH-SUBJECT.lookup | .kept     what was made of such: an index's table (`table`), a part (`kept`)
//! DIR/DATASET/TOPIC_ID/SHARD/.tmp-PID-N          being written
//! DIR/DATASET/current-SHARD                      topic id and last announcement, for a start without Kafka
//! DIR/DATASET/pin, pin-topic                     the pin that was obeyed last and the control topic that it stood in, for such a start
//! DIR/DATASET/spared-SHARD                       the pinned version that the cleaner spares, and the control topic that says so
//! ```
//!
//! Names are those of the store (`blob/name`), save that the checksum is that of the file's own bytes, the plain form. A
//! file gets its name by a rename once it is
//! whole, and is never written again; so several processes may share a directory: the worst that two of them do to each
//! other is to fetch the same blob twice, or to evict what the other has mapped, which keeps its bytes until unmapped. SUBJECT is the
//! checksum of a text that says what the file was made of, and that stands in it whole: what two of them make of the same is
//! the same.
//!
//! Nothing is fsynced: after a power cut a file may be short, or full of zeros. A short one is seen when it is opened,
//! any other damage when a page is first read (`map`), and both are fetched again; the store holds the durable copy.
//!
//! Owns: names, temporary files, the budget, eviction, who holds what in this process. Does not own: fetching
//! (`fetch`), what is in a file (`map`, `overlay`, `base`).

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use super::parts::Room;
use super::{Error, Identity, away};
use crate::blob::name::{Kind, Name};
use crate::format::lookup;
use crate::version::{BlobRef, Checksum, DeltaRef, SnapshotRef, Version};

/// A file's place in the cache of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileName {
    /// What it is.
    pub kind: Kind,
    /// The version that it makes or holds.
    pub version: Version,
    /// Epoch of the life that wrote it.
    pub epoch: u64,
    /// Checksum of its bytes.
    pub checksum: Checksum,
    /// Its bytes.
    pub bytes: u64,
}

impl FileName {
    fn of(kind: Kind, version: Version, epoch: u64, blob: &BlobRef) -> FileName {
        FileName { kind, version, epoch, checksum: blob.plain_checksum, bytes: blob.plain_bytes }
    }

    /// Of a delta.
    pub fn delta(delta: &DeltaRef) -> FileName {
        FileName::of(Kind::Delta, delta.version, delta.epoch, &delta.blob)
    }

    /// Of a snapshot.
    pub fn snapshot(snapshot: &SnapshotRef) -> FileName {
        FileName::of(Kind::Snapshot, snapshot.version, snapshot.epoch, &snapshot.blob)
    }

    /// Of a snapshot's index.
    pub fn index(snapshot: &SnapshotRef) -> FileName {
        FileName::of(Kind::Index, snapshot.version, snapshot.epoch, &snapshot.index)
    }
}

/// A whole file of the cache. It is not evicted while this, or a map of it, lives.
#[derive(Clone, Debug)]
pub struct Held(Arc<HeldFile>);

#[derive(Debug)]
struct HeldFile {
    path: PathBuf,
    bytes: u64,
}

impl Held {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Whether both hold the same file.
    pub(super) fn is(&self, other: &Held) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Local files of blobs; clones share one.
#[derive(Clone, Debug)]
pub struct Cache(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    budget: u64,
    temporaries: AtomicU64,
    state: Mutex<State>,
    /// For what is on its way into the cache, whoever fetches it.
    room: Room,
}

#[derive(Debug, Default)]
struct State {
    /// What this process holds; dead entries are dropped when room is made.
    held: HashMap<PathBuf, Weak<HeldFile>>,
    /// Bytes in the directory, as far as this process knows: exact after each scan.
    used: u64,
    /// Beyond how many bytes room is looked for: the budget, or more where the last look found too little to evict.
    look_at: u64,
    /// How many of `held` are too many not to look for dead ones among them.
    sweep_at: usize,
    /// Said once, not at every version.
    said_full: bool,
}

/// How names end of the notes of what is held of a version.
pub(super) const KEPT: &str = ".kept";

/// The name of what was made of blobs of this version and epoch, and is said to be of `subject`.
pub(super) fn made_name(version: Version, epoch: u64, subject: &[u8], suffix: &str) -> String {
    format!("{:020}-{epoch}-{}{suffix}", version.0, Checksum::of(subject).hex())
}

/// Most of the bytes of a block on common file systems: a small file takes one whole.
const DISK_BLOCK: u64 = 4096;

/// A temporary file that nobody has written to for so long, and that nobody has locked, belongs to a process that is gone.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Whether somebody is still writing the file. Not, as far as is known, where that cannot be found out.
fn is_locked(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

fn on_disk(bytes: u64) -> u64 {
    bytes.next_multiple_of(DISK_BLOCK)
}

impl Cache {
    /// Opens the cache in `dir`, which is made if missing. `budget` bounds its bytes on disk: `u64::MAX` never evicts
    /// (for commands that read beside a running process, whose files they leave alone).
    ///
    /// Also removes temporary files that were abandoned.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be made or written.
    pub fn open(dir: impl Into<PathBuf>, budget: u64) -> Result<Cache, Error> {
        let dir = dir.into();
        away::begin();
        fs::create_dir_all(&dir).map_err(|source| Error::io("making", &dir, source))?;
        let cache = Cache(Arc::new(Shared {
            dir,
            budget,
            temporaries: AtomicU64::new(0),
            state: Mutex::new(State::default()),
            room: Room::default(),
        }));
        // A fresh file's time is the file system's own now, which is what the others' times compare with; and it shows
        // early that the directory can be written.
        let probe = cache.temporary_in(&cache.0.dir)?;
        let now = probe.file().metadata().and_then(|metadata| metadata.modified());
        let now = now.map_err(|source| Error::io("asking for the time of", probe.path(), source))?;
        drop(probe);
        let mut used = 0;
        for file in cache.scan()? {
            if !file.temporary {
                used += on_disk(file.bytes);
            } else if now.duration_since(file.modified).is_ok_and(|age| age > ABANDONED)
                && !is_locked(&file.path)
            {
                remove(&file.path)?;
            }
        }
        cache.state().used = used;
        cache.make_room()?;
        Ok(cache)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Most bytes that it is to have on disk.
    pub fn budget(&self) -> u64 {
        self.0.budget
    }

    /// Bytes on disk, as far as this process knows.
    pub fn used(&self) -> u64 {
        self.state().used
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is a single insertion or sum: a panic between two leaves nothing half done.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory of one shard.
    fn shard_dir(&self, identity: &Identity) -> Result<PathBuf, Error> {
        self.dataset_dir(&identity.dataset)?;
        Ok(self.0.dir.join(identity.folder().to_string()))
    }

    /// Where a file lies.
    pub(super) fn path(&self, identity: &Identity, file: &FileName) -> Result<PathBuf, Error> {
        self.dataset_dir(&identity.dataset)?;
        let FileName { kind, version, epoch, checksum, .. } = *file;
        let name = Name { folder: identity.folder(), version, epoch, checksum, kind };
        Ok(self.0.dir.join(name.to_string()))
    }

    pub(super) fn dataset_dir(&self, dataset: &str) -> Result<PathBuf, Error> {
        // A dataset's name becomes part of a path: Kafka's rule for topic names, and no name that climbs.
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if dataset.is_empty() || dataset.starts_with('.') || !dataset.chars().all(fits) {
            return Err(Error::Name(dataset.to_owned()));
        }
        Ok(self.0.dir.join(dataset))
    }

    /// Takes hold of a file that is here with its full length.
    ///
    /// A file of another length is removed: it is what a power cut left.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Name`].
    pub fn find(&self, identity: &Identity, name: &FileName) -> Result<Option<Held>, Error> {
        let path = self.path(identity, name)?;
        let mut state = self.state();
        match fs::metadata(&path) {
            Ok(found) if found.len() == name.bytes => Ok(Some(hold(&mut state, path, name.bytes))),
            Ok(_) => {
                remove(&path)?;
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::io("looking for", &path, source)),
        }
    }

    /// Starts a file for one shard. It is gone when dropped, unless kept.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Name`].
    pub fn temporary(&self, identity: &Identity) -> Result<Temporary, Error> {
        let dir = self.shard_dir(identity)?;
        fs::create_dir_all(&dir).map_err(|source| Error::io("making", &dir, source))?;
        self.temporary_in(&dir)
    }

    pub(super) fn temporary_in(&self, dir: &Path) -> Result<Temporary, Error> {
        loop {
            let number = self.0.temporaries.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!(".tmp-{}-{number}", std::process::id()));
            // Process ids repeat across containers that share a directory; that the file is new, the system decides.
            match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => {
                    // It may wait for hours, as a snapshot does whose store is away. The lock goes with the process; where the
                    // file system has none, its age alone is judged.
                    let _ = file.try_lock();
                    return Ok(Temporary { file, path: Some(path) });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(Error::io("making", &path, source)),
            }
        }
    }

    /// Gives a whole file its name. The caller has checked that its bytes are those that the name says.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Name`].
    pub fn keep(&self, identity: &Identity, name: &FileName, temporary: Temporary) -> Result<Held, Error> {
        self.keep_at(self.path(identity, name)?, name.bytes, temporary)
    }

    fn keep_at(&self, path: PathBuf, bytes: u64, temporary: Temporary) -> Result<Held, Error> {
        let held = {
            let mut state = self.state();
            let before = fs::metadata(&path).map_or(0, |metadata| on_disk(metadata.len()));
            temporary.rename(&path)?;
            state.used = (state.used + on_disk(bytes)).saturating_sub(before);
            hold(&mut state, path, bytes)
        };
        self.make_room()?;
        Ok(held)
    }

    /// As [`Cache::keep`], of what was made of blobs, by its [name](made_name).
    pub(super) fn keep_made(
        &self,
        identity: &Identity,
        name: &str,
        bytes: u64,
        temporary: Temporary,
    ) -> Result<Held, Error> {
        self.keep_at(self.shard_dir(identity)?.join(name), bytes, temporary)
    }

    /// Takes hold of what was made of blobs, if it is here; and its length, which the name does not say.
    pub(super) fn find_made(&self, identity: &Identity, name: &str) -> Result<Option<(Held, u64)>, Error> {
        let path = self.shard_dir(identity)?.join(name);
        let mut state = self.state();
        match fs::metadata(&path) {
            Ok(found) => Ok(Some((hold(&mut state, path, found.len()), found.len()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::io("looking for", &path, source)),
        }
    }

    /// Writes and keeps a small file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Name`].
    pub fn put(&self, identity: &Identity, name: &FileName, bytes: &[u8]) -> Result<Held, Error> {
        if let Some(held) = self.find(identity, name)? {
            return Ok(held);
        }
        let mut temporary = self.temporary(identity)?;
        temporary.write_all(bytes).map_err(|source| Error::io("writing", temporary.path(), source))?;
        self.keep(identity, name, temporary)
    }

    /// Removes a damaged file, so that it is fetched again. Who has it mapped keeps the damage until it lets go.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn discard(&self, path: &Path) -> Result<(), Error> {
        if !path.starts_with(&self.0.dir) {
            return Ok(());
        }
        let mut state = self.state();
        let bytes = fs::metadata(path).map_or(0, |metadata| on_disk(metadata.len()));
        remove(path)?;
        state.used = state.used.saturating_sub(bytes);
        Ok(())
    }

    /// Removes one shard's files of versions below `oldest` that nothing in this process holds.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Name`].
    pub fn trim(&self, identity: &Identity, oldest: Version) -> Result<(), Error> {
        let dir = self.shard_dir(identity)?;
        let mut files = Vec::new();
        list(&dir, &mut files)?;
        let mut state = self.state();
        for file in files.iter().filter(|file| file.version.is_some_and(|version| version < oldest)) {
            if !is_held(&state, &file.path) {
                remove(&file.path)?;
                state.used = state.used.saturating_sub(on_disk(file.bytes));
            }
        }
        Ok(())
    }

    /// Evicts down to nine tenths of the budget, once it is passed: files that nothing holds, oldest first.
    fn make_room(&self) -> Result<(), Error> {
        {
            let state = self.state();
            if state.used <= self.0.budget.max(state.look_at) {
                return Ok(());
            }
        }
        // Counted anew, since other processes add and remove too.
        let mut files = self.scan()?;
        files.retain(|file| !file.temporary);
        files.sort_by(|a, b| (a.modified, &a.path).cmp(&(b.modified, &b.path)));
        let mut used: u64 = files.iter().map(|file| on_disk(file.bytes)).sum();
        let enough = self.0.budget - self.0.budget / 10;
        let mut state = self.state();
        state.held.retain(|_, held| held.strong_count() > 0);
        if used > self.0.budget {
            for file in &files {
                if used <= enough {
                    break;
                }
                if !is_held(&state, &file.path) {
                    remove(&file.path)?;
                    used -= on_disk(file.bytes);
                }
            }
        }
        state.used = used;
        // Where all is in use, a scan for every small delta would find the same.
        state.look_at = if used > self.0.budget { used + self.0.budget / 10 } else { self.0.budget };
        if used > self.0.budget && !state.said_full {
            state.said_full = true;
            tracing::warn!(
                dir = %self.0.dir.display(), used_bytes = used, budget_bytes = self.0.budget,
                "the blob cache is over its budget with files that are in use; nothing can be evicted"
            );
        } else if used <= self.0.budget {
            state.said_full = false;
        }
        Ok(())
    }

    /// Room in memory for parts of blobs: the process's, as the cache is.
    pub(super) fn room(&self) -> Room {
        self.0.room.clone()
    }

    /// Evicts all that nothing in this process holds, whatever the budget: for who finds the disk full, where others may
    /// have taken what the budget allows. Gives the bytes that went.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn relieve(&self) -> Result<u64, Error> {
        let files = self.scan()?;
        let mut state = self.state();
        let mut gone = 0;
        let unheld = files.iter().filter(|file| !file.temporary && !is_held(&state, &file.path));
        let removed = unheld.map(|file| remove(&file.path).map(|()| on_disk(file.bytes)));
        let outcome = removed.into_iter().try_for_each(|removed| removed.map(|bytes| gone += bytes));
        state.used = state.used.saturating_sub(gone);
        outcome.map(|()| gone)
    }

    /// Looks for room now, if the cache is over its budget: a large file that was in use is so no more.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn tidy(&self) -> Result<(), Error> {
        self.state().look_at = 0;
        self.make_room()
    }

    fn scan(&self) -> Result<Vec<Found>, Error> {
        let mut files = Vec::new();
        walk(&self.0.dir, 3, &mut files)?;
        Ok(files)
    }
}

fn hold(state: &mut State, path: PathBuf, bytes: u64) -> Held {
    if let Some(held) = state.held.get(&path).and_then(Weak::upgrade) {
        return Held(held);
    }
    if state.held.len() >= state.sweep_at {
        state.held.retain(|_, held| held.strong_count() > 0);
        state.sweep_at = 1024.max(state.held.len() * 2);
    }
    let held = Arc::new(HeldFile { path: path.clone(), bytes });
    state.held.insert(path, Arc::downgrade(&held));
    Held(held)
}

fn is_held(state: &State, path: &Path) -> bool {
    state.held.get(path).is_some_and(|held| held.strong_count() > 0)
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(|source| Error::io("removing", path, source)),
    }
}

struct Found {
    path: PathBuf,
    bytes: u64,
    modified: SystemTime,
    temporary: bool,
    version: Option<Version>,
}

/// The files in `dir` and `depth` levels below.
fn walk(dir: &Path, depth: usize, files: &mut Vec<Found>) -> Result<(), Error> {
    for below in list(dir, files)? {
        if depth > 0 {
            walk(&below, depth - 1, files)?;
        }
    }
    Ok(())
}

/// Adds the cache's own files in `dir`, and gives the directories there. What is not ours is left alone.
fn list(dir: &Path, files: &mut Vec<Found>) -> Result<Vec<PathBuf>, Error> {
    let io = |source| Error::io("listing", dir, source);
    let mut dirs = Vec::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(dirs),
        Err(source) => return Err(io(source)),
    };
    for entry in entries {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        // Gone since it was listed: another process evicts too.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            dirs.push(path);
            continue;
        }
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let temporary = name.starts_with(".tmp-");
        let suffixes = [Kind::Delta, Kind::Snapshot, Kind::Index].map(Kind::suffix);
        let ours = suffixes.iter().chain(&[lookup::SUFFIX, KEPT]).any(|suffix| name.ends_with(suffix));
        if !temporary && !ours {
            continue;
        }
        let version = name.split('-').next().and_then(|digits| digits.parse().ok()).map(Version);
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        files.push(Found { path, bytes: metadata.len(), modified, temporary, version });
    }
    Ok(dirs)
}

/// A file that is being written; removed on drop.
#[derive(Debug)]
pub struct Temporary {
    file: File,
    /// `None` once it has its name.
    path: Option<PathBuf>,
}

impl Temporary {
    /// Where it lies for now.
    pub fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn rename(mut self, to: &Path) -> Result<(), Error> {
        if let Some(path) = self.path.take() {
            fs::rename(&path, to).map_err(|source| {
                let _ = fs::remove_file(&path);
                Error::io("renaming to", to, source)
            })?;
        }
        Ok(())
    }
}

impl Write for Temporary {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            // What stays is removed as abandoned by a later start.
            let _ = fs::remove_file(path);
        }
    }
}
