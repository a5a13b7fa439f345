//! Why a version cannot be opened or read, by what the caller does next.

use std::path::{Path, PathBuf};

use super::past::{self, Need};
use crate::blob;
use crate::error::ErrorKind;
use crate::format::container;
use crate::kafka;
use crate::version::Version;

/// Why a version cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Bytes of a local file are not what they were: discard the file and fetch it again.
    #[error("{} is corrupt: {detail}; it is fetched again, and if this repeats the disk is failing", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A blob in the store is not what was announced: its source has to be mended, fetching again does not help.
    #[error("blob {url} came corrupt twice: {detail}; restore it, or have the writer make a new snapshot")]
    CorruptBlob {
        /// The blob.
        url: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A blob is what was announced, and yet cannot be read: a later release wrote it, or it is another dataset's.
    #[error(
        "blob {url} came as it was announced, and cannot be read: {detail}. If a later release of Stillwell wrote it, this one \
         has to be upgraded; else have the writer make a new snapshot"
    )]
    UnreadableBlob {
        /// The blob.
        url: String,
        /// Why not.
        detail: String,
    },
    /// A blob is not in the store: it was cleaned away, so go on from the newest announcement.
    #[error("a blob is gone")]
    Missing(#[source] blob::Error),
    /// The store does not answer, or refuses.
    #[error("a blob cannot be fetched")]
    Store(#[source] blob::Error),
    /// Blobs of the version are gone, and no older ones lead to it.
    #[error(
        "version {version} cannot be restored from any snapshot that was kept. Needed is {}. If another instance has \
         written it elsewhere, have both use the same store (storage.blobs). If it is gone, put it back, and this goes on by \
         itself; or have `stillwell rebuild --deletes` make the next version from the source alone",
        past::needed(snapshots, deltas)
    )]
    Unrestorable {
        /// The version.
        version: Version,
        /// Snapshots of which any would do.
        snapshots: Vec<Need>,
        /// Deltas, all of which would do.
        deltas: Vec<Need>,
    },
    /// Older announcements cannot be read.
    #[error("reading older announcements in {topic}")]
    Announcements {
        /// The announcement topic.
        topic: String,
        /// Kafka's reason.
        #[source]
        source: kafka::Error,
    },
    /// It belongs to another dataset, shard, version or life.
    #[error("{what} does not belong here: {detail}")]
    Foreign {
        /// What.
        what: String,
        /// How it differs.
        detail: String,
    },
    /// The delta or snapshot does not join the version at hand: open the chain anew.
    #[error("{0}")]
    Gap(String),
    /// Values of another schema cannot be read in the version's.
    #[error("values were written under a schema that cannot be read as the version's")]
    Schema(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What the consumer is to hold of its dataset cannot be had of this schema.
    #[error("`filter`, `fields` or `indexes` of the consumer do not fit the dataset's schema")]
    Unfit(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The disk refuses.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The dataset's name cannot be a directory's.
    #[error("{0:?} cannot be a dataset's name: letters, digits, '.', '_' and '-' only, and no '.' in front")]
    Name(String),
    /// The process is shutting down.
    #[error("shutting down")]
    Closed,
    /// A bug.
    #[error("{0}: this is a bug, please report it")]
    Internal(&'static str),
}

impl Error {
    pub(super) fn io(doing: &'static str, path: &Path, source: std::io::Error) -> Error {
        Error::Io { doing, path: path.to_owned(), source }
    }

    #[cold]
    pub(super) fn corrupt(path: &Path, detail: impl Into<String>) -> Error {
        Error::Corrupt { path: path.to_owned(), detail: detail.into() }
    }

    pub(super) fn writing(path: &Path, error: container::Error) -> Error {
        match error {
            container::Error::Io(source) => Error::io("writing", path, source),
            container::Error::Order => Error::Internal("entries were merged out of order"),
            error => Error::Foreign { what: path.display().to_string(), detail: error.to_string() },
        }
    }

    /// Whether the same again can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Io { .. } | Error::Corrupt { .. } => true,
            Error::Store(error) => error.is_transient(),
            Error::Announcements { source, .. } => source.is_transient(),
            _ => false,
        }
    }

    /// Whether the cache's disk is full.
    pub fn is_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Error::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// The file that cannot be opened or read, where it is to blame, and not this process, which has too many open, say.
    pub(super) fn unreadable(&self) -> Option<&Path> {
        use rustix::io::Errno;
        const OURS: [Errno; 5] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::INTR, Errno::AGAIN];
        match self {
            Error::Io { doing: "opening" | "reading", path, source } => {
                let ours = Errno::from_io_error(source).is_some_and(|errno| OURS.contains(&errno));
                (!ours).then_some(path.as_path())
            }
            _ => None,
        }
    }

    /// Whether the store does not have a blob as it was announced, or as this release can read it: older blobs may lead to the
    /// same version (`past`).
    pub fn is_gone(&self) -> bool {
        matches!(self, Error::Missing(_) | Error::CorruptBlob { .. } | Error::UnreadableBlob { .. })
    }
}

impl From<Error> for crate::Error {
    #[cold]
    fn from(error: Error) -> crate::Error {
        let kind = match &error {
            Error::Corrupt { .. } | Error::CorruptBlob { .. } | Error::UnreadableBlob { .. } => {
                ErrorKind::Corrupt
            }
            Error::Missing(error) | Error::Store(error) => error.kind(),
            Error::Announcements { source, .. } => source.kind(),
            Error::Io { .. } | Error::Unrestorable { .. } => ErrorKind::Unavailable,
            Error::Closed => ErrorKind::Closed,
            Error::Foreign { .. } | Error::Name(_) | Error::Schema(_) | Error::Unfit(_) => ErrorKind::Config,
            Error::Gap(_) | Error::Internal(_) => ErrorKind::Internal,
        };
        crate::Error::because(kind, "reading a version", error)
    }
}
