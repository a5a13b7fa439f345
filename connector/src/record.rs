//! What a record is made of: where it came from, and the position after it.
//!
//! Owns: the words *source partition*, *position*, *stamp*. Does not own: bytes on disk or on the wire (`format/`).

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// Kafka's topic id: 128 bits, new for each creation of a topic, so that a recreated topic is told from the old one.
///
/// Prints as Kafka prints it: URL-safe base64 without padding. The zero id stands for "the broker has no topic ids"
/// (librdkafka's embedded broker).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId(pub [u8; 16]);

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for TopicId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|error| format!("topic id {text:?}: {error}"))?;
        let id = bytes.try_into().map_err(|_| format!("topic id {text:?} is not 16 bytes"))?;
        Ok(TopicId(id))
    }
}

impl Serialize for TopicId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TopicId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One partition of one source topic, in one of that topic's lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SourcePartition {
    /// Topic name.
    pub topic: Arc<str>,
    /// Id of the topic's present life.
    pub topic_id: TopicId,
    /// Partition number.
    pub partition: i32,
}

impl fmt::Display for SourcePartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}

/// Which partitions of a dataset's append-only list are read: of each topic those of its newest life. A topic that was
/// made anew stands in the list once more, under its new id; what it was before stays, since entries name it.
pub fn which_are_read<'a>(list: impl DoubleEndedIterator<Item = &'a SourcePartition>) -> Vec<bool> {
    let mut newest: Vec<&SourcePartition> = Vec::new();
    let mut read: Vec<bool> = list
        .rev()
        .map(|source| match newest.iter().find(|newest| newest.topic == source.topic) {
            Some(newest) => newest.topic_id == source.topic_id,
            None => {
                newest.push(source);
                true
            }
        })
        .collect();
    read.reverse();
    read
}

/// The next offset to read from a source partition; a record's own offset is called `offset`, never position.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The partition.
    #[serde(flatten)]
    pub source: SourcePartition,
    /// The next offset to read.
    pub offset: i64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.source, self.offset)
    }
}

/// Where an entry came from. `source` is an index into the dataset's append-only list of source partitions, which
/// stands in every announcement and in every blob's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// The record's timestamp, milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// Index of its source partition.
    pub source: u32,
    /// Its offset there.
    pub offset: i64,
}

/// One key's entry in a version or a delta: what a blob holds for it. `value` is the Avro datum in the dataset's own
/// schema; `None` is a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The key's bytes.
    pub key: &'a [u8],
    /// Where it came from.
    pub stamp: Stamp,
    /// The datum, or `None` for a delete.
    pub value: Option<&'a [u8]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_topic_made_anew_only_the_newest_life_is_read() {
        let source = |topic: &str, id, partition| SourcePartition {
            topic: topic.into(),
            topic_id: TopicId([id; 16]),
            partition,
        };
        // Topic a had two partitions, then one, then three; b was added in between and never made anew.
        let list = [
            source("a", 1, 0),
            source("a", 1, 1),
            source("a", 2, 0),
            source("b", 7, 0),
            source("a", 3, 0),
            source("a", 3, 1),
            source("a", 3, 2),
            source("b", 7, 1),
        ];
        assert_eq!(which_are_read(list.iter()), [false, false, false, true, true, true, true, true]);
        assert_eq!(which_are_read([].iter()), [false; 0]);
    }

    #[test]
    fn a_topic_id_prints_as_kafka_prints_it_and_reads_back() {
        let id: TopicId = "AAAAAAAAAAAAAAAAAAAAAQ".parse().unwrap();
        assert_eq!(id.0[15], 1);
        assert_eq!(id.to_string(), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert!("short".parse::<TopicId>().is_err());
    }
}
