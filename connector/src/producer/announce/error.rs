//! Why a life can announce no more.

use crate::kafka;
use crate::producer::read_back;
use crate::version::Version;

/// Why no more can be announced in this life.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A newer life writes the shard.
    #[error("fenced: a newer life writes the shard")]
    Fenced(#[source] kafka::Error),
    /// Kafka refused, or the outcome is not known: the next life reads what became of it.
    #[error("announcing {what}")]
    Kafka {
        /// Which versions, which step.
        what: String,
        /// Kafka's reason.
        #[source]
        source: kafka::Error,
    },
    /// Committed, but not found as valid in the topic.
    #[error("reading back the announcement of version {version}")]
    ReadBack {
        /// The version.
        version: Version,
        /// Why.
        #[source]
        source: read_back::Error,
    },
}

impl Error {
    /// Whether Kafka is the trouble, and not a newer life.
    pub fn is_of_kafka(&self) -> bool {
        match self {
            Error::Fenced(_) => false,
            Error::Kafka { .. } => true,
            Error::ReadBack { source, .. } => source.is_of_kafka(),
        }
    }
}
