//! Dead letters: what could not be processed, kept with why, where and when; and its way back.
//!
//! ```text
//!  producer --letter--> dead-letter topic --topic--> found --select--> listing                    list, show, export
//!                            ^                                  |
//!                            |                                  +--> held --(rows), fix, stale--> replay --> source topic
//!                            +-- offsets, with what is left <-- progress <----------------------+   one transaction
//! ```
//!
//! Owns: what a letter is made of, what is read out of one, and how it goes back. Does not own: its bytes and headers
//! (`format/letter`), when it goes out (`producer/announce`), how it is asked for and shown (`cli/dlq`).

pub mod letter;
pub mod table;
pub mod found;
pub mod record;
pub mod select;
pub mod idle;
pub mod topic;
pub mod listing;
pub mod held;
pub mod fit;
pub mod rows;
pub mod fix;
pub mod stale;
pub mod progress;
pub mod fate;
pub mod outcome;
pub mod replay;
pub mod text;

use crate::error::ErrorKind;
use crate::{blob, codec, kafka, registry};

/// Why letters cannot be read, or not be replayed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka does not answer, or refuses.
    #[error("{doing}")]
    Kafka {
        /// What was being done.
        doing: String,
        /// Kafka's reason.
        #[source]
        source: kafka::Error,
    },
    /// There is no such topic.
    #[error(
        "there is no topic {0}: nothing has become a dead letter yet, or `dead_letters` names another one"
    )]
    NoTopic(String),
    /// The store does not answer, and holds what is too large for the topic.
    #[error("reading the blob {name} of a letter")]
    Blob {
        /// The blob.
        name: String,
        /// The store's reason.
        #[source]
        source: blob::Error,
    },
    /// The schema registry does not answer, and records name their schemas by its ids.
    #[error("reading the keys of the source")]
    Registry(#[source] registry::Error),
    /// Format, key rule and schema do not go together.
    #[error("preparing the codec")]
    Codec(#[from] codec::Error),
    /// The program that mends cannot be started.
    #[error("starting the program that mends values")]
    Fix(#[source] std::io::Error),
    /// There is no such program, or it may not be run.
    #[error("the program that is to mend values (--fix) cannot be run")]
    NoProgram(#[source] std::io::Error),
    /// Too much would have to be remembered.
    #[error(
        "the source has had more than {0} keys since the first of these letters, and where keys are made of fields all \
         of them are remembered: select fewer letters (--since), or do without the check (--force)"
    )]
    TooManyKeys(usize),
    /// Too much would have to be remembered of what replays came to.
    #[error(
        "the topic has letters of more than {0} records that were replayed and have failed again, and all of them are \
         remembered: let it keep less (its retention.ms), so that letters which are done with go"
    )]
    TooManyAgain(usize),
    /// Too much would have to be remembered beside other work.
    #[error(
        "the topic has more than {0} letters, and a list of it takes memory for each: list them with `stillwell dlq list`, \
         in a process of its own"
    )]
    TooManyLetters(usize),
    /// Letters of these stages are of records that the dataset has.
    #[error(
        "letters of stage {0} do not go back: their records are in the dataset. Rows that a program changes go there \
         (--into dataset --fix COMMAND)"
    )]
    InTheDataset(String),
    /// Told to stop.
    #[error("told to stop")]
    Stopped,
}

impl Error {
    /// Whether the same may succeed later with nothing changed.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Kafka { source, .. } => source.is_transient(),
            Error::Blob { source, .. } => source.is_transient(),
            Error::Registry(source) => source.is_transient(),
            Error::NoTopic(_)
            | Error::Codec(_)
            | Error::Fix(_)
            | Error::NoProgram(_)
            | Error::TooManyKeys(_)
            | Error::TooManyAgain(_)
            | Error::TooManyLetters(_)
            | Error::InTheDataset(_)
            | Error::Stopped => false,
        }
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Kafka { source, .. } => source.kind(),
            Error::Blob { source, .. } => source.kind(),
            Error::Registry(source) => source.kind(),
            Error::Codec(_) => ErrorKind::Config,
            Error::NoTopic(_)
            | Error::NoProgram(_)
            | Error::TooManyKeys(_)
            | Error::TooManyAgain(_)
            | Error::TooManyLetters(_)
            | Error::InTheDataset(_) => ErrorKind::Rejected,
            Error::Fix(_) => ErrorKind::Unavailable,
            Error::Stopped => ErrorKind::Closed,
        }
    }
}
