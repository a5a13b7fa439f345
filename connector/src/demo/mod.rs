//! The demo: the whole system in one process, on librdkafka's embedded broker, held against a model.
//!
//! ```text
//!  feed (generator or a person's lines) ---> flight: room? ---> source topic ---> producer ---> announcements
//!    |                                                                              |                |
//!    | model            ^                                          letters <--------+        consumer, early and late
//!    v                  +------- mended, replayed --------------------+                              |
//!  comparison <---------------- each letter as its record, each key as last written <----------------+
//! ```
//!
//! The producer and the consumers are the ones that `run` starts, with no part left out or replaced. What is different
//! is Kafka: the embedded broker takes a transaction's source offsets and forgets them, fences nobody, knows no topic
//! ids, and forgets records beyond 5 MB a partition. So the demo shows the path; that nothing is lost when something
//! dies is shown by the tests on a real Kafka.
//!
//! Owns: the feed, how much of it is under way, what is measured, the judgement. Does not own: how any of it looks
//! (`cli/demo`).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub mod generator;
pub mod lines;
pub mod feed;
pub mod flight;
pub mod letters;
pub mod comparison;
pub mod measure;
mod system;
mod drive;
mod report;

pub use feed::{Counts, Source};
pub use report::{Blobs, Load, Reads, Report, Verdict};

use crate::clock::{Clock, Entropy};
use crate::error::ErrorKind;
use crate::{codec, dead, kafka};

/// How long, how fast.
#[derive(Clone, Debug)]
pub struct Options {
    /// Send for so long; `None`: no limit of time.
    pub time: Option<Duration>,
    /// Send so many records; `None`: no limit of number.
    pub records: Option<u64>,
    /// Records a second once the catalogue is loaded; 0: as many as there is room for. Lines always go as fast.
    pub rate: u32,
    /// Serve the HTTP routes here, `HOST:PORT`; lines that have ended then do not end the demo.
    pub listen: Option<String>,
    /// Time.
    pub clock: Clock,
    /// Chance.
    pub entropy: Entropy,
}

/// Where the demo stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// The broker, the producer and the first consumer start; version 1 is awaited.
    #[default]
    Starting,
    /// The catalogue, or the lines, go out as fast as there is room.
    Loading,
    /// Changes go out at their rate.
    Changing,
    /// Nothing goes out any more; the rest is awaited.
    Landing,
    /// Each consumer is compared with the model.
    Comparing,
}

/// What can be seen on the way.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Where it stands.
    pub phase: Phase,
    /// Since the first record went out.
    pub elapsed: Duration,
    /// Records sent.
    pub sent: u64,
    /// Records announced.
    pub announced: u64,
    /// The newest version announced.
    pub version: u64,
    /// By consumer, the version that it reads and the keys in it; those that have joined.
    pub readers: Vec<(u64, u64)>,
    /// Letters that came back.
    pub letters: u64,
    /// What the producer complains about, if it does.
    pub trouble: Option<String>,
    /// Where HTTP is served.
    pub serving: Option<SocketAddr>,
}

/// Why the demo did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The input cannot be read any further.
    #[error("reading {name}")]
    Input {
        /// The file, or standard input.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A line that the embedded broker cannot keep beside others.
    #[error(
        "line {number} of {name} has more than {longest} bytes, and the embedded broker keeps little; run Stillwell \
         beside a Kafka for such records"
    )]
    LongLine {
        /// The file, or standard input.
        name: String,
        /// The line's number, from 1.
        number: u64,
        /// Bytes that a line may have.
        longest: usize,
    },
    /// Schema, format and key do not go together.
    #[error("the schema and the key do not go together")]
    Config(#[source] codec::Error),
    /// The embedded broker or a client of it fails.
    #[error("{doing}")]
    Kafka {
        /// What was being done.
        doing: String,
        /// Why it failed.
        #[source]
        source: kafka::Error,
    },
    /// A part of the system cannot start, or has ended.
    #[error("{part}")]
    Part {
        /// Which part, and what it was doing.
        part: &'static str,
        /// Why.
        #[source]
        source: crate::Error,
    },
    /// What a consumer holds cannot be read.
    #[error("reading what a consumer holds")]
    Read(#[source] crate::Error),
    /// The poison cannot be replayed.
    #[error("replaying the dead letter")]
    Replay(#[source] dead::Error),
    /// Nothing moves any more.
    #[error("{0}")]
    Stuck(String),
    /// The folder for the demo's files.
    #[error("making a folder for the demo's files: set TMPDIR to one that can be written")]
    Folder(#[source] io::Error),
    /// A thread cannot be started.
    #[error("starting a thread")]
    Thread(#[source] io::Error),
}

impl Error {
    /// Whether the same again may come to another end.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Thread(_))
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::LongLine { .. } => ErrorKind::Rejected,
            Error::Config(_) => ErrorKind::Config,
            Error::Input { .. } => ErrorKind::Corrupt,
            Error::Folder(_) | Error::Thread(_) => ErrorKind::Unavailable,
            Error::Kafka { source, .. } => source.kind(),
            Error::Replay(source) => source.kind(),
            Error::Part { source, .. } | Error::Read(source) => source.kind(),
            Error::Stuck(_) => ErrorKind::Internal,
        }
    }
}

/// Runs it to its end, or to `stop`, which ends the feed early and nothing else: what was sent is awaited and compared
/// all the same.
///
/// # Errors
/// [`Error`]. That a consumer differs from the model is no error but a verdict in the report.
pub async fn run(
    source: Source,
    options: Options,
    progress: &watch::Sender<Progress>,
    stop: &CancellationToken,
) -> Result<Report, Error> {
    let feed = feed::Feed::new(source)?;
    let mut system = system::System::start(&feed, &options).await?;
    let report = drive::run(feed, &mut system, &options, progress, stop).await;
    // Also after an error: files and threads go in order. The first error is the one to tell.
    let stopped = system.stop().await;
    let mut report = report?;
    report.farewell = Some(stopped?);
    Ok(report)
}
