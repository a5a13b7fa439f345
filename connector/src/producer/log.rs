//! The log (interface first; the bodies follow within the hour).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::clock::Clock;
use crate::format::chunk::{Chunk, Range};
use crate::gauge::{Budget, Lease};
use crate::record::Position;

/// Why the log cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds the directory: stop it, or use another directory.
    #[error("{dir} is locked by another process", dir = dir.display())]
    Locked {
        /// The directory.
        dir: std::path::PathBuf,
    },
    /// It was closed.
    #[error("the log is closed")]
    Closed,
}

impl Error {
    /// Whether trying again may help without anybody's doing.
    pub fn is_transient(&self) -> bool {
        false
    }
}

/// Why a chunk was not taken.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Too much waits to be persisted: here is the chunk back, try again.
    #[error("the log takes no more at the moment")]
    Full(Chunk),
    /// The log refuses all chunks from now on.
    #[error("the log has failed")]
    Failed(#[source] Error),
}

/// Told once per chunk, when it is durable: how long that took since it was appended.
pub type Persisted = Arc<dyn Fn(Duration) + Send + Sync>;

/// How the log is kept.
#[derive(Clone)]
pub struct Options {
    /// Time.
    pub clock: Clock,
    /// Most bytes that wait to be persisted.
    pub max_waiting_bytes: u64,
    /// Bytes that RocksDB keeps in memory before it writes a file.
    pub write_buffer_bytes: usize,
    /// Told of each chunk that became durable.
    pub on_persisted: Option<Persisted>,
}

impl Options {
    /// The defaults.
    pub fn new(clock: Clock) -> Options {
        Options { clock, max_waiting_bytes: 32 << 20, write_buffer_bytes: 64 << 20, on_persisted: None }
    }
}

/// What the log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of chunks not yet trimmed.
    pub log_bytes: u64,
    /// Records durable and not yet announced (to the chunk).
    pub pending_records: u64,
    /// Records on disk only.
    pub spilled_records: u64,
}

/// One shard's log.
#[derive(Clone, Debug)]
pub struct Log;

impl Log {
    /// Opens it, or makes it.
    pub async fn open(_dir: &Path, _options: Options) -> Result<Log, Error> {
        unimplemented!()
    }
    /// What is on disk, per partition, joined where it joins.
    pub fn retained(&self) -> Vec<Range> {
        unimplemented!()
    }
    /// Begins a life at `positions`; gives where Kafka continues, in the same order. Appenders and readers of the life before are closed.
    pub async fn resume(&self, _positions: &[Position]) -> Result<Vec<Position>, Error> {
        unimplemented!()
    }
    /// Appends, for this life.
    pub fn appender(&self) -> Appender {
        unimplemented!()
    }
    /// Reads, for this life.
    pub fn reader(&self, _max_pending_records: usize, _memory: Budget) -> Reader {
        unimplemented!()
    }
    /// What is announced need not be kept.
    pub async fn trim(&self, _announced: &[Position]) -> Result<(), Error> {
        unimplemented!()
    }
    /// What it holds.
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }
    /// Persists what waits, and closes the database.
    pub async fn close(&self) -> Result<(), Error> {
        unimplemented!()
    }
}

/// Appends chunks.
#[derive(Clone, Debug)]
pub struct Appender;

impl Appender {
    /// Takes the chunk, or gives it back. Never blocks.
    pub fn try_append(&self, _chunk: Chunk) -> Result<(), AppendError> {
        unimplemented!()
    }
    /// Waits up to `patience` for room. Blocks.
    pub fn append_within(&self, _chunk: Chunk, _patience: Duration) -> Result<(), AppendError> {
        unimplemented!()
    }
    /// How many chunks of this log were persisted, in all: goes up only.
    pub fn persisted(&self) -> watch::Receiver<u64> {
        unimplemented!()
    }
}

/// Reads chunks in the order in which they were appended, once they are durable.
#[derive(Debug)]
pub struct Reader;

impl Reader {
    /// The next chunk; `None` once the log is closed or a later life has begun. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Logged>, Error> {
        unimplemented!()
    }
}

/// A chunk as the log hands it on.
#[derive(Debug)]
pub struct Logged {
    /// The chunk.
    pub chunk: Chunk,
    /// By slot: records below this offset have been announced, or handed on, before. Never below the range's `from`.
    pub from: Vec<i64>,
    /// Its bytes in memory.
    pub lease: Option<Lease>,
    /// When it was appended; after a restart, when it was read back.
    pub received_at: Instant,
}
