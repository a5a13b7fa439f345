//! The disk: chunks in RocksDB, durable in the order in which they came.
//!
//! ```text
//!                      Writer (one thread)                    Keeper (one thread)
//!  chunks ==queue==> [ all that waits: one batch, one fsync ]   scans, pages back, forgets, reclaims
//!                                      |                                  |
//!                                      v                                  v
//!  Database   DIR/  column family "log":  summary of each chunk, chunk    (keys.rs)
//!             DIR.lock                    held by the process that has it open
//!             DIR.refused-TIMESTAMP/      a database that could not be opened, put aside
//!             DIR.cut-TIMESTAMP           bytes that `repair` took out, with an index beside it
//!
//!  look    reads and checks, without the lock, beside a running process; writes nothing
//!  repair  takes the lock, and out what is damaged
//! ```
//!
//! Owns: RocksDB (this room is its only user), its options, its files, its two threads, what a failed disk means.
//! Does not own: which chunks are still needed, what joins what (`producer/log`).
//!
//! A log is written once, read once or never, and trimmed from its beginning. So: chunks lie in blob files, which
//! compaction never copies, and the sorted files hold only keys and summaries; trimming is a range deletion, which
//! takes what the memtable still holds out of the next flush, so that in the usual case (announced before the memtable
//! is full) a record is written to disk once and never again.

mod held;
pub mod keys;
pub mod lock;
pub mod raw;
pub mod rocksdb;
pub mod pages;
pub mod thread;
pub mod look;
pub mod repair;

use crate::ErrorKind;
use std::path::{Path, PathBuf};

pub use self::lock::DataDir;
pub use self::look::{Checked, Damage, Look, check};
pub use self::pages::Pages;
pub use self::raw::{Broken, FileKind};
pub use self::repair::{Outcome, Repaired, repair};
pub use self::rocksdb::{Database, Opened, Options, Survey, bytes_in, chunk_bytes_in};
pub use self::thread::{Keeper, Pace, Persist, PushError, Waiting, Writer};

/// What is wrong with the disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another process has the directory open: stop it, or give this one another directory.
    #[error("{dir} is in use{by}: stop the process that holds it, or choose another storage.data_dir", dir = .dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// Which process, where it is known: ` by process 4711`.
        by: String,
    },
    /// The directory cannot be made or written: correct its path, its owner or its file system.
    #[error("{dir} cannot be written: {why}", dir = .dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// The system's reason.
        why: String,
    },
    /// There is no log to look at: name another directory.
    #[error("{dir}: {why}", dir = .dir.display())]
    NoLog {
        /// The directory.
        dir: PathBuf,
        /// What is there instead.
        why: String,
    },
    /// The disk is full. The log takes nothing more; open it again once there is room.
    #[error("{doing} {dir}: the disk is full ({why}): make room; nothing is lost meanwhile", dir = .dir.display())]
    Full {
        /// What was being done to it.
        doing: &'static str,
        /// The directory.
        dir: PathBuf,
        /// The system's reason.
        why: String,
    },
    /// The disk refuses: gone, failing. The log takes nothing more; open it again once the disk is well.
    #[error("{doing} {dir}: {why}", dir = .dir.display())]
    Failed {
        /// What was being done to it.
        doing: &'static str,
        /// The directory.
        dir: PathBuf,
        /// RocksDB's reason.
        why: String,
    },
    /// A chunk is not what was written: cut the log there and read on from Kafka.
    #[error("chunk {seq} of {dir} cannot be read: {why}", dir = .dir.display())]
    Corrupt {
        /// Its number.
        seq: u64,
        /// The directory.
        dir: PathBuf,
        /// Why.
        why: String,
    },
    /// It was closed.
    #[error("the log is closed")]
    Closed,
}

impl Error {
    /// Whether trying again, with the log opened anew, may help without anybody's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Full { .. } | Error::Failed { .. } | Error::Corrupt { .. } => true,
            Error::Locked { .. } | Error::Directory { .. } | Error::NoLog { .. } | Error::Closed => false,
        }
    }

    /// What the operator does about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Locked { .. } | Error::Directory { .. } => ErrorKind::Config,
            Error::NoLog { .. } => ErrorKind::Rejected,
            Error::Full { .. } | Error::Failed { .. } => ErrorKind::Unavailable,
            Error::Corrupt { .. } => ErrorKind::Corrupt,
            Error::Closed => ErrorKind::Closed,
        }
    }
}

impl Error {
    /// The disk's refusal, by its reason: full, or failing.
    fn refused(doing: &'static str, dir: &Path, why: String) -> Error {
        let dir = dir.to_owned();
        // Both by the system's words: RocksDB gives them on, and a code only where it has one.
        let full = ["No space left on device", "Disk quota exceeded"].iter().any(|words| why.contains(words));
        if full { Error::Full { doing, dir, why } } else { Error::Failed { doing, dir, why } }
    }
}

/// A file system, as far as a log cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that can still be written.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// The file system that holds `dir`; `None` where the system does not say. Takes a microsecond, on a disk that
/// answers.
pub fn space(dir: &Path) -> Option<Space> {
    let found = rustix::fs::statvfs(dir).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Some(Space { free: bytes(found.f_bavail), total: bytes(found.f_blocks) })
}

/// `DIR.suffix`: a sibling of a directory.
fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    dir.with_file_name(name)
}
