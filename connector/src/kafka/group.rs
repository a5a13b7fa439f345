//! A consumer group that nobody joins: offsets kept under its name, each with a note.
//!
//! The offsets go in by [`Transaction::send_positions`](super::Transaction), together with what they stand for, and are
//! read back here. Tools that show a group's lag show this one's too.
//!
//! Owns: asking for committed offsets. Does not own: what they mean, or the note (`dead/progress`).

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::{Offset, TopicPartitionList};

use super::client::{Context, make};
use super::rebalance::GroupMetadata;
use super::tokens::Kept;
use super::{Error, Options, describe, ids};

/// Longest answer: an offset whose transaction is not ended yet is asked for again until it is.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What is committed for a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// The next offset to read; `None` where nothing was committed, or it has expired.
    pub offset: Option<i64>,
    /// What was committed with it.
    pub note: String,
}

/// A group, for who commits by transactions only. Every call blocks.
pub struct Group {
    consumer: Kept<BaseConsumer<Context>>,
    id: String,
    embedded: bool,
}

impl Group {
    /// A client of the group `id`. Does not wait for Kafka.
    ///
    /// # Errors
    /// [`Error::Options`] for a property that librdkafka refuses.
    pub fn new(options: &Options, id: &str) -> Result<Group, Error> {
        let consumer = make(
            options,
            &[("statistics.interval.ms", "0")],
            &[
                ("group.id", id),
                ("enable.auto.commit", "false"),
                // An offset that a transaction holds is waited for.
                ("isolation.level", "read_committed"),
            ],
            Context::new("group", &Options { statistics: None, ..options.clone() }),
            || format!("making a client of the group {id}"),
        )?;
        Ok(Group { consumer, id: id.to_owned(), embedded: options.embedded })
    }

    /// What is committed for the partitions of `topic`, in their order. Nothing from the embedded broker, which forgets
    /// offsets.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the group's coordinator does not answer, or a transaction holds an offset for longer;
    /// [`Error::Denied`] without the right to describe the group.
    pub fn committed(&self, topic: &str, partitions: i32) -> Result<Vec<Committed>, Error> {
        let count = usize::try_from(partitions).unwrap_or(0);
        if self.embedded || count == 0 {
            return Ok(vec![Committed::default(); count]);
        }
        // Who may not is told so at once by this question; of the next one's answer librdkafka waits for its time to pass.
        let allowed = describe::group(self.consumer.client(), &self.id, TIMEOUT);
        ids::serve_unread(self.consumer.client(), false);
        if let Err((code @ Code::GroupAuthorizationFailed, words)) = allowed {
            return Err(Error::from_code(self.doing(topic), code, &words));
        }
        let mut asked = TopicPartitionList::with_capacity(count);
        asked.add_partition_range(topic, 0, partitions - 1);
        let found = self.consumer.committed_offsets(asked, TIMEOUT);
        ids::serve_unread(self.consumer.client(), false);
        let doing = || self.doing(topic);
        let excused = |error| self.consumer.client().context().excused(Error::from_kafka(doing(), &error));
        let found = found.map_err(excused)?;
        (0..partitions)
            .map(|partition| {
                let Some(element) = found.find_partition(topic, partition) else {
                    return Ok(Committed::default());
                };
                element.error().map_err(|error| Error::from_kafka(doing(), &error))?;
                let offset = match element.offset() {
                    Offset::Offset(offset) => Some(offset),
                    _ => None,
                };
                Ok(Committed { offset, note: element.metadata().to_owned() })
            })
            .collect()
    }

    fn doing(&self, topic: &str) -> String {
        format!("asking for the offsets of the group {} on {topic}", self.id)
    }

    /// The group's metadata, for [`Transaction::send_positions`](super::Transaction): of nobody, since nobody joins.
    ///
    /// # Errors
    /// [`Error::Closed`] where the client has none, which librdkafka does not say of one with a `group.id`.
    pub fn metadata(&self) -> Result<GroupMetadata, Error> {
        let metadata = self.consumer.group_metadata();
        let doing = || format!("asking for the metadata of the group {}", self.id);
        metadata.map(GroupMetadata::new).ok_or_else(|| Error::Closed { doing: doing() })
    }
}
