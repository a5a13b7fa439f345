//! The logs that are damaged, as they come to be.

use std::fs;

use bytes::Bytes;

use super::super::*;
use super::{At, PATIENCE, Scene, fetched, positions};

/// A chunk in a write-ahead log.
pub struct InWal {
    pub file: String,
    /// Where its record ends.
    pub end: u64,
    /// The positions before it.
    pub before: At,
}

/// A log being made.
pub struct Maker {
    pub root: tempfile::TempDir,
    pub log: Log,
    pub end: At,
    announced: At,
    pub appended: u64,
    pub logged: Vec<InWal>,
    pub chunks: Vec<(Bytes, At, At)>,
    pub blobs: Vec<(Bytes, At, At)>,
}

pub fn small() -> Options {
    Options { write_buffer_bytes: 8 << 10, ..options() }
}

/// In memory where there is such a place: a log is opened some ten thousand times, with several fsyncs each.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

impl Maker {
    pub async fn new() -> Maker {
        let root = scratch();
        let log = Log::open(&root.path().join("log"), small()).await.unwrap();
        log.resume(&origin(1), &positions([0, 0])).await.unwrap();
        let (logged, chunks, blobs) = (vec![], vec![], vec![]);
        Maker { root, log, end: [0, 0], announced: [0, 0], appended: 0, logged, chunks, blobs }
    }

    /// Appends a chunk with so many offsets of each partition.
    pub async fn append(&mut self, by: At) {
        let before = self.end;
        self.end = [before[0] + by[0], before[1] + by[1]];
        let ranges = [(0, before[0], self.end[0]), (1, before[1], self.end[1])];
        let ranges: Vec<_> = ranges.into_iter().filter(|(_, from, to)| from < to).collect();
        let chunk = fetched(&ranges);
        self.chunks.push((chunk.encoded().clone(), before, self.end));
        let appender = self.log.appender();
        self.appended = self.appended.max(*appender.persisted().borrow()) + 1;
        appender.try_append(chunk).unwrap();
        persisted(&appender, self.appended).await;
        let (file, end) = self.newest_wal();
        self.logged.push(InWal { file, end, before });
    }

    fn newest_wal(&self) -> (String, u64) {
        let files = disk::raw::files(&self.root.path().join("log")).unwrap();
        let wals = files.into_iter().filter(|(_, kind, _)| *kind == disk::FileKind::WriteAheadLog);
        wals.map(|(name, _, bytes)| (name, bytes)).next_back().unwrap()
    }

    pub async fn on_disk(&self, job: impl FnOnce(&Database) -> Result<(), disk::Error> + Send + 'static) {
        let keeper = self.log.0.keeper().unwrap();
        blocking(move || Ok(keeper.call(job)?)).await.unwrap();
    }

    /// Has RocksDB write files of what it holds in memory.
    pub async fn flush(&mut self) {
        self.on_disk(Database::reclaim).await;
        self.logged.clear();
        self.blobs.append(&mut self.chunks);
    }

    /// Announces all up to `at`, and trims.
    pub async fn announce(&mut self, at: At) {
        let mut reader = roomy(&self.log);
        let mut seen = self.announced;
        while seen != self.end {
            let logged = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap().unwrap().unwrap();
            for range in logged.chunk.ranges() {
                seen[range.source.partition as usize] = range.to;
            }
        }
        self.announced = at;
        self.log.trim(&positions(at)).await.unwrap();
        self.on_disk(|_| Ok(())).await; // what was asked for before is done
    }

    pub async fn restart(&mut self) {
        self.log.close().await.unwrap();
        self.log = Log::open(&self.root.path().join("log"), small()).await.unwrap();
        let next = self.log.resume(&origin(1), &positions(self.announced)).await.unwrap();
        assert_eq!(next, positions(self.end));
        // The write-ahead log was written out and began anew.
        self.logged.clear();
        self.blobs.append(&mut self.chunks);
    }

    /// The log as a killed process leaves it.
    pub async fn crashed(self, name: &'static str) -> Scene {
        let dir = self.root.path().join("left");
        copy(&self.root.path().join("log"), &dir);
        self.log.close().await.unwrap();
        self.scene(name, dir)
    }

    /// The log as it is after a stop in order.
    pub async fn closed(self, name: &'static str) -> Scene {
        self.log.close().await.unwrap();
        let dir = self.root.path().join("log");
        self.scene(name, dir)
    }

    fn scene(self, name: &'static str, dir: PathBuf) -> Scene {
        let Maker { root, announced, end, logged, blobs, .. } = self;
        Scene { name, root, dir, announced, end, logged, blobs }
    }
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}
