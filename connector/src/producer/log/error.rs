//! Why the log cannot be used, and what that costs.

use std::path::PathBuf;

use crate::ErrorKind;
use crate::disk;
use crate::record::SourcePartition;

/// Why the log cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The disk, or who else holds it.
    #[error("using the log on disk")]
    Disk(#[from] disk::Error),
    /// A chunk could not be read: it is gone with all behind it, and the next life reads it from Kafka.
    #[error(
        "the log in {dir} was cut at chunk {seq}, which cannot be read; {records} records come again from Kafka",
        dir = .dir.display()
    )]
    Cut {
        /// The log's directory.
        dir: PathBuf,
        /// The first chunk that is gone.
        seq: u64,
        /// Records that are gone with it.
        records: u64,
        /// Why it cannot be read.
        #[source]
        source: disk::Error,
    },
    /// A chunk was appended that leaves offsets out: a bug, refused before it could lose anything.
    #[error("a chunk of {source_partition} begins at {from}, the log ends at {end:?}")]
    Gap {
        /// The partition.
        source_partition: SourcePartition,
        /// Where the chunk's range begins.
        from: i64,
        /// Where the log ends; `None`: the partition is none of this life's.
        end: Option<i64>,
    },
    /// It was closed, or a later life has begun.
    #[error("the log is closed")]
    Closed,
}

impl Error {
    /// Whether the next life may do better, without anybody's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Disk(error) => error.is_transient(),
            Error::Cut { .. } => true,
            Error::Gap { .. } | Error::Closed => false,
        }
    }

    /// What the operator does about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Disk(error) => error.kind(),
            Error::Cut { .. } => ErrorKind::Corrupt,
            Error::Gap { .. } => ErrorKind::Internal,
            Error::Closed => ErrorKind::Closed,
        }
    }
}
