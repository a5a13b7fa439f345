//! What becomes of a write: acknowledged by Kafka, then readable in a version; or why that is not known.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::watch::{Known, Ticket};
use super::{Line, Writer};
use crate::kafka;
use crate::version::Version;

/// How long a write that is awaited as it is waits for its version.
const WAIT: Duration = Duration::from_secs(30);
/// A longer one would leave the range of the clock.
const LONGEST_WAIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Where a record lies in the source topic. Durable: all replicas in sync have it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Landed {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition, as Java's clients choose it.
    pub partition: i32,
    /// The record's own offset.
    pub offset: i64,
}

impl fmt::Display for Landed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}] offset {}", self.topic, self.partition, self.offset)
    }
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Publication {
    /// All its records are in this version, which is announced, and in those after it.
    Published {
        /// The first version that holds all of them; where another instance writes and had been faster than its
        /// announcements were followed, a later one.
        version: Version,
        /// Where they lie in the source, in the order of the write.
        records: Vec<Landed>,
    },
    /// All are in the source topic, and no version has them yet: one will.
    Durable {
        /// Where they lie, in the order of the write.
        records: Vec<Landed>,
    },
    /// The broker refused a record: it is not in the topic, and will not be the next time either.
    Rejected {
        /// Which, counted from 0.
        at: usize,
        /// The broker's words.
        reason: String,
        /// Where the others lie.
        records: Vec<Option<Landed>>,
    },
    /// A record was not sent, since the producer ended before there was room for it, or its client could not go on: it is
    /// not in the topic, and can be written again. No other record's fate is unknown.
    Unsent {
        /// Which, counted from 0; the first of several.
        at: usize,
        /// Why.
        reason: String,
        /// Where the others lie.
        records: Vec<Option<Landed>>,
    },
    /// Kafka did not acknowledge a record in time: it may be in the topic or not.
    Unknown {
        /// Which, counted from 0; the first of several.
        at: usize,
        /// What is known.
        reason: String,
        /// Where those lie that were acknowledged.
        records: Vec<Option<Landed>>,
    },
}

impl Publication {
    /// The version in which all records are readable, if there is one.
    pub fn version(&self) -> Option<Version> {
        match self {
            Publication::Published { version, .. } => Some(*version),
            _ => None,
        }
    }

    /// The outcome as metrics label it.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Publication::Published { .. } => "published",
            Publication::Durable { .. } => "durable",
            Publication::Rejected { .. } => "rejected",
            Publication::Unsent { .. } => "unsent",
            Publication::Unknown { .. } => "unknown",
        }
    }
}

impl fmt::Display for Publication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Publication::Published { version, .. } => write!(f, "published in version {version}"),
            Publication::Durable { .. } => f.write_str("durable in the source topic, not yet published"),
            Publication::Rejected { at, reason, .. } => write!(f, "record {at} was refused: {reason}"),
            Publication::Unsent { at, reason, .. } => write!(f, "record {at} was not sent: {reason}"),
            Publication::Unknown { at, reason, .. } => {
                write!(f, "whether record {at} is in the topic is unknown: {reason}")
            }
        }
    }
}

/// Records on their way. Dropping it does not call them back: they go on, and nobody is told.
///
/// Awaited as it is, it waits for 30 s as [`Written::published`] does.
#[must_use = "await it to learn what becomes of the records"]
pub struct Written {
    writer: Writer,
    /// Kept until all is acknowledged: what a sender that is dropped has in line is purged.
    line: Arc<OnceCell<Line>>,
    /// How far each partition was published before anything was sent.
    known: Known,
    began: std::time::Instant,
    receipts: Vec<(Arc<str>, Result<kafka::Receipt, kafka::Error>)>,
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Written({} records)", self.receipts.len())
    }
}

impl Written {
    pub(super) fn new(writer: Writer, line: Arc<OnceCell<Line>>, known: Known) -> Written {
        let began = writer.clock().now();
        Written { writer, line, known, began, receipts: Vec::new() }
    }

    /// Whether there is no record in it yet.
    pub(super) fn is_empty(&self) -> bool {
        self.receipts.is_empty()
    }

    pub(super) fn add(&mut self, topic: Arc<str>, receipt: Result<kafka::Receipt, kafka::Error>) {
        self.receipts.push((topic, receipt));
    }

    /// Waits until Kafka has acknowledged the records (or has not for 30 s), and, from now on, for up to `wait` until
    /// they are readable in an announced version. With `wait` zero, the answer most often is
    /// [`Publication::Durable`].
    pub async fn published(self, wait: Duration) -> Publication {
        let until = Instant::now() + wait.min(LONGEST_WAIT);
        let (writer, began) = (self.writer.clone(), self.began);
        let count = self.receipts.len() as u64;
        let publication = self.outcome(until).await;
        let metrics = writer.metrics();
        metrics.written_records_total.with(&[publication.label()]).inc_by(count);
        if publication.version().is_some() {
            let took = writer.clock().now().saturating_duration_since(began);
            metrics.written_latency_seconds.observe(took.as_secs_f64());
        }
        publication
    }

    async fn outcome(mut self, until: Instant) -> Publication {
        let records = match self.acknowledged().await {
            Ok(records) => records,
            Err(publication) => return publication,
        };
        let mut tickets = match self.tickets(&records) {
            Some(tickets) => tickets,
            None => return Publication::Durable { records },
        };
        let mut version = Version(0);
        for ticket in &mut tickets {
            // One that is known already is so at the deadline, too.
            match tokio::time::timeout_at(until, ticket.version()).await {
                Ok(Some(passed)) => version = version.max(passed),
                Ok(None) | Err(_) => return Publication::Durable { records },
            }
        }
        Publication::Published { version, records }
    }

    /// Waits for the acknowledgements. `Err`: not all were given.
    async fn acknowledged(&mut self) -> Result<Vec<Landed>, Publication> {
        let mut landed = Vec::with_capacity(self.receipts.len());
        let mut failed: Option<(Failure, usize, kafka::Error)> = None;
        for (at, (topic, receipt)) in std::mem::take(&mut self.receipts).into_iter().enumerate() {
            let (sent, delivered) = match receipt {
                Ok(receipt) => (true, receipt.delivered().await),
                Err(error) => (false, Err(error)),
            };
            match delivered {
                Ok(kafka::Delivered { partition, offset }) => {
                    landed.push(Some(Landed { topic, partition, offset }))
                }
                Err(error) => {
                    if let kafka::Error::Fatal { .. } = error {
                        self.writer.begin_anew(&self.line);
                    }
                    let failure = match (refused(&error), sent) {
                        (true, _) => Failure::Rejected,
                        (false, true) => Failure::Unknown,
                        (false, false) => Failure::Unsent,
                    };
                    if failed.as_ref().is_none_or(|(worst, ..)| failure > *worst) {
                        failed = Some((failure, at, error));
                    }
                    landed.push(None);
                }
            }
        }
        let Some((failure, at, error)) = failed else { return Ok(landed.into_iter().flatten().collect()) };
        let (reason, records) = (error.to_string(), landed);
        Err(match failure {
            Failure::Unsent => Publication::Unsent { at, reason, records },
            Failure::Unknown => Publication::Unknown { at, reason, records },
            Failure::Rejected => Publication::Rejected { at, reason, records },
        })
    }

    /// `None`: a record lies where something else was published before, and no version can be told to hold it.
    fn tickets(&self, records: &[Landed]) -> Option<Vec<Ticket>> {
        let stranger = records.iter().find(|at| self.known.passes(&at.topic, at.partition, at.offset));
        if let Some(landed) = stranger {
            tracing::error!(
                %landed, "a record was written below what is published: the topic seems to have been created anew"
            );
            return None;
        }
        Some(self.writer.tickets(records))
    }
}

/// What of several failures is told, the last first: a refusal is certain, and says more than that something else is not;
/// who may have been written is of more concern than who was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Failure {
    Unsent,
    Unknown,
    Rejected,
}

/// The last offset of each partition.
pub(super) fn ends(records: &[Landed]) -> impl Iterator<Item = (&Arc<str>, i32, i64)> {
    let mut ends: BTreeMap<(&Arc<str>, i32), i64> = BTreeMap::new();
    for Landed { topic, partition, offset } in records {
        let end = ends.entry((topic, *partition)).or_insert(*offset);
        *end = (*end).max(*offset);
    }
    ends.into_iter().map(|((topic, partition), offset)| (topic, partition, offset))
}

/// Whether the record certainly is not in the topic, and never will be.
fn refused(error: &kafka::Error) -> bool {
    match error {
        kafka::Error::Rejected { .. } | kafka::Error::Denied { .. } | kafka::Error::Options { .. } => true,
        kafka::Error::Unavailable { .. }
        | kafka::Error::Missing { .. }
        | kafka::Error::Exists { .. }
        | kafka::Error::Fenced { .. }
        | kafka::Error::Fatal { .. }
        | kafka::Error::Closed { .. } => false,
    }
}

impl IntoFuture for Written {
    type Output = Publication;
    type IntoFuture = Pin<Box<dyn Future<Output = Publication> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.published(WAIT))
    }
}
