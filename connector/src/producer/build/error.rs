//! Why no version can be built.

use crate::format::container;
use crate::schema::Malformed;
use crate::version::Version;
use crate::view;

/// Why no more can be built in this life.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The view, which is mapped files, cannot be read or written.
    #[error("building version {version}")]
    View {
        /// The version that was to be built.
        version: Version,
        /// Why.
        #[source]
        source: view::Error,
    },
    /// The log's bytes are not what they were; they were checked when they were read.
    #[error("building version {version}: a record of the log cannot be read")]
    Record {
        /// The version that was to be built.
        version: Version,
        /// Why.
        #[source]
        source: crate::format::letter::Error,
    },
    /// A record that is shed cannot be made a letter: its value is none of the schema.
    #[error("building version {version}: a value of the log cannot be read")]
    Shed {
        /// The version that was to be built.
        version: Version,
        /// Why.
        #[source]
        source: Malformed,
    },
    /// The container could not be made.
    #[error("building version {version}: writing its delta")]
    Container {
        /// The version that was to be built.
        version: Version,
        /// Why.
        #[source]
        source: container::Error,
    },
    /// The build panicked: a bug.
    #[error("building a version panicked")]
    Panicked(#[source] tokio::task::JoinError),
}
