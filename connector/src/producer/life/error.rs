//! Why a life ended, by what its supervisor does next.

use crate::blob;
use crate::codec;
use crate::kafka;
use crate::producer::{announce, build, log, look, read_back, rebuild, recover, source};

/// Why a life ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It never began.
    #[error("taking over")]
    Recover(#[from] recover::Error),
    /// The source ended.
    #[error("the source ended")]
    Source(#[from] source::Error),
    /// The codec cannot be made.
    #[error("preparing the codec")]
    Codec(#[from] codec::Error),
    /// Kafka refuses a client, or what it asks.
    #[error("asking Kafka")]
    Kafka(#[from] kafka::Error),
    /// The log failed.
    #[error("the log failed")]
    Log(#[from] log::Error),
    /// No version can be built.
    #[error("building ended")]
    Build(#[from] build::Error),
    /// The source cannot be read anew.
    #[error("rebuilding ended")]
    Rebuild(#[from] rebuild::Error),
    /// Blobs cannot be stored.
    #[error("storing ended")]
    Store(#[from] blob::Error),
    /// Nothing can be announced.
    #[error("announcing ended")]
    Announce(#[from] announce::Error),
    /// A topic under it is not the one any more that it was.
    #[error("the ground has moved")]
    Moved(#[from] look::Moved),
    /// A stage panicked: a bug.
    #[error("a stage panicked")]
    Panicked(#[from] tokio::task::JoinError),
}

impl Error {
    /// Whether a newer life ended this one.
    pub fn is_fenced(&self) -> bool {
        match self {
            Error::Announce(announce::Error::Fenced(_)) => true,
            Error::Announce(announce::Error::ReadBack { source, .. }) => {
                matches!(source, read_back::Error::Superseded { .. })
            }
            Error::Recover(recover::Error::Kafka { source, .. }) => {
                matches!(source, kafka::Error::Fenced { .. })
            }
            _ => false,
        }
    }

    /// Whether Kafka's transactions, not this life, are the trouble: what the breaker counts.
    pub fn is_of_kafka(&self) -> bool {
        match self {
            Error::Announce(error) => error.is_of_kafka(),
            Error::Recover(recover::Error::Kafka { source, .. }) => {
                !matches!(source, kafka::Error::Fenced { .. })
            }
            Error::Recover(recover::Error::Announcements { source, .. }) => source.is_of_kafka(),
            _ => false,
        }
    }

    /// Whether Kafka or the blob store was away: a state that health shows as such, and not the life's failure.
    pub fn is_outage(&self) -> bool {
        match self {
            Error::Recover(recover::Error::View { source, .. }) => source.is_transient(),
            error => error.is_of_kafka(),
        }
    }

    /// Whether a next life may do better without anybody's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Recover(error) => error.is_transient(),
            Error::Rebuild(error) => error.is_transient(),
            Error::Source(source::Error::Lost { .. }) | Error::Codec(_) => false,
            _ => true,
        }
    }
}
