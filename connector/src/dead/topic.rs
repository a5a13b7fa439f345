//! The letters of a dead-letter topic, read from offset to offset, partition after partition.
//!
//! Partition after partition, so that two readings of the same stretch see the same letters in the same order. What comes
//! after the ends that were looked up is not read: a replay whose letters come back would never end.
//!
//! Owns: the reading. Does not own: what a letter means (`found`), where reading begins (`progress`).

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::found::{Found, Raw};
use super::idle::{Idle, PATIENCE};
use super::progress::Progress;
use crate::clock::Clock;
use crate::kafka::{self, Admin, Polled, Poller, Tuning};

/// Bytes that the client fetches ahead.
const FETCH_AHEAD: u64 = 32 << 20;

/// A dead-letter topic, as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Name.
    pub name: String,
    /// By partition, the first offset that is there, and where it ends for readers of committed records.
    pub ranges: Vec<(i64, i64)>,
}

impl Topic {
    /// Looks at a topic. Blocks, within a runtime.
    ///
    /// # Errors
    /// Kafka's; [`Error::NoTopic`] where there is none.
    pub fn look(admin: &Admin, name: &str) -> Result<Topic, Error> {
        let failed =
            |source| Error::Kafka { doing: format!("looking at the dead letters in {name}"), source };
        let look = async {
            let Some(info) = admin.describe(name).await.map_err(failed)? else {
                return Err(Error::NoTopic(name.to_owned()));
            };
            let mut ranges = Vec::new();
            for partition in 0..info.partitions {
                ranges.push(admin.watermarks(name, partition).await.map_err(failed)?);
            }
            Ok(Topic { name: name.to_owned(), ranges })
        };
        Handle::current().block_on(look)
    }

    /// Partitions.
    pub fn partitions(&self) -> i32 {
        self.ranges.len() as i32
    }
}

/// Hands out all letters that are there now. Blocks, within a runtime.
///
/// # Errors
/// Kafka's; [`Error::NoTopic`]; [`Error::Stopped`].
pub fn each(
    options: &kafka::Options,
    group: &str,
    topic: Topic,
    clock: &Clock,
    stop: &CancellationToken,
    mut each: impl FnMut(Found<'_>),
) -> Result<(), Error> {
    let ranges = topic.ranges.clone();
    let mut reader = Reader::new(options, group, topic, clock.clone(), stop.clone())?;
    for (partition, (low, _)) in (0..).zip(ranges) {
        reader.begin(partition, low)?;
        reader.read(partition, |found| {
            each(found);
            Ok(ControlFlow::<()>::Continue(()))
        })?;
    }
    Ok(())
}

/// Reads letters. Each call of [`Reader::read`] goes on with a partition where it is told to.
pub struct Reader {
    poller: Poller,
    topic: Topic,
    clock: Clock,
    stop: CancellationToken,
}

/// What the reader of letters makes of one.
pub type Flow<B> = Result<ControlFlow<B>, Error>;

impl Reader {
    /// A client for it.
    ///
    /// # Errors
    /// Kafka's, for a property that it refuses.
    pub fn new(
        options: &kafka::Options,
        group: &str,
        topic: Topic,
        clock: Clock,
        stop: CancellationToken,
    ) -> Result<Reader, Error> {
        let tuning = Tuning { role: "letters", ..Tuning::source(group, FETCH_AHEAD) };
        let poller = Poller::new(options, &tuning);
        let poller = poller.map_err(|source| Error::Kafka { doing: "making a client".to_owned(), source })?;
        Ok(Reader { poller, topic, clock, stop })
    }

    /// The topic.
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// Begins with a partition, at `from` or the first letter behind it.
    ///
    /// # Errors
    /// Kafka's.
    pub fn begin(&mut self, partition: i32, from: i64) -> Result<(), Error> {
        let (low, end) = self.range(partition);
        // Retention may have gone on since the ends were looked at.
        let low = self.poller.reach(&self.topic.name, partition).map_or(low, |(now, _)| now.max(low));
        let assigned = self.poller.assign(&[(&self.topic.name, partition, from.max(low).min(end))]);
        assigned.map_err(|source| Error::Kafka { doing: self.doing(partition), source })
    }

    /// Begins with a partition where `progress` does, if anything is new in it.
    ///
    /// # Errors
    /// Kafka's.
    pub fn begin_new(&mut self, partition: i32, progress: &Progress) -> Result<bool, Error> {
        let (_, end) = self.range(partition);
        let new = progress.start() < end;
        if new {
            self.begin(partition, progress.start())?;
        }
        Ok(new)
    }

    /// Hands out the letters of the partition that was begun, up to where it ended. Where `each` breaks off the next call
    /// goes on behind that letter. `idle` is asked while nothing comes. Blocks.
    ///
    /// # Errors
    /// Kafka's, those of `each`, [`Error::Stopped`].
    pub fn read<B>(
        &mut self,
        partition: i32,
        mut each: impl FnMut(Found<'_>) -> Flow<B>,
    ) -> Result<Option<B>, Error> {
        let (_, end) = self.range(partition);
        let doing = self.doing(partition);
        let failed = |source| Error::Kafka { doing: doing.clone(), source };
        let mut idle = Idle::default();
        while self.poller.position(0).is_some_and(|next| next < end) {
            if idle.is_stopped(&self.stop) {
                return Err(Error::Stopped);
            }
            match self.poller.poll(Duration::from_millis(100)) {
                Some(Polled::Record { message, .. }) if message.offset() < end => {
                    idle.came();
                    let raw = Raw {
                        partition,
                        offset: message.offset(),
                        timestamp: message.timestamp_ms(),
                        key: message.key(),
                        value: message.value(),
                    };
                    if let ControlFlow::Break(value) = each(Found::read(raw, message.headers()))? {
                        return Ok(Some(value));
                    }
                    continue;
                }
                Some(Polled::Record { .. } | Polled::End { .. }) => {
                    idle.came();
                    continue;
                }
                Some(Polled::Lost { detail, .. }) => {
                    return Err(failed(kafka::Error::Unavailable {
                        doing: "retention was faster".to_owned(),
                        detail,
                    }));
                }
                Some(Polled::Error(error)) if !error.is_transient() => return Err(failed(error)),
                Some(Polled::Error(error)) => tracing::debug!(%error, "reading letters"),
                None => {}
            }
            if idle.is_over(&self.clock) {
                let detail = format!("nothing came for {PATIENCE:?}");
                return Err(failed(kafka::Error::Unavailable {
                    doing: "waiting for letters".to_owned(),
                    detail,
                }));
            }
        }
        Ok(None)
    }

    /// The first offset of a partition that is there, and where it ended when it was looked at.
    pub fn range(&self, partition: i32) -> (i64, i64) {
        let range = usize::try_from(partition).ok().and_then(|at| self.topic.ranges.get(at));
        range.copied().unwrap_or_default()
    }

    fn doing(&self, partition: i32) -> String {
        format!("reading the dead letters in {}[{partition}]", self.topic.name)
    }
}
