//! Dead letters: a record that could not be processed, as it waits in the log, and as it goes out.
//!
//! In a chunk a letter is Avro, single-object encoding, schema `schemas/letter.avsc`. In the dead-letter topic it is
//! the original record, key, value and headers byte for byte, with why, where and when behind its own headers, under
//! the names of Kafka Connect's `DeadLetterQueueReporter` so that existing tools understand them.
//!
//! Owns: both forms, and that headers stay bounded. Does not own: making one of a misfit (`dead/letter`), when it is
//! sent (`producer/announce`).

use bytes::Bytes;

use super::wire::{self, Malformed, SINGLE_OBJECT, Take, put_bytes, put_long, put_some};
use crate::record::{SourcePartition, TopicId};

/// Fingerprint of `schemas/letter.avsc`.
pub const LETTER_FINGERPRINT: u64 = 0xe1f9_8e76_68a7_4553;

/// Longest message, in bytes.
pub const MAX_MESSAGE: usize = 1024;
/// Longest of the other texts that end up in headers.
const MAX_NAME: usize = 256;
/// Longest number in a header.
const MAX_COUNT: usize = 20;
/// Longest key that goes out with a letter whose whole lies in a blob.
pub const MAX_KEY: usize = 1024;
/// Longest [`header::ORIGIN`]: a topic's name, three numbers, and what is between them.
const MAX_ORIGIN: usize = 249 + 3 * MAX_COUNT + 3;

/// Headers of a letter; names and forms from Kafka Connect's `DeadLetterQueueReporter`
/// (<https://github.com/apache/kafka/blob/trunk/connect/runtime/src/main/java/org/apache/kafka/connect/runtime/errors/DeadLetterQueueReporter.java>).
pub mod header {
    /// Topic of the original record.
    pub const TOPIC: &str = "__connect.errors.topic";
    /// Its partition, in decimal.
    pub const PARTITION: &str = "__connect.errors.partition";
    /// Its offset, in decimal.
    pub const OFFSET: &str = "__connect.errors.offset";
    /// Connect's connector: here the dataset.
    pub const CONNECTOR_NAME: &str = "__connect.errors.connector.name";
    /// Connect's task: here the shard.
    pub const TASK_ID: &str = "__connect.errors.task.id";
    /// The failed stage.
    pub const STAGE: &str = "__connect.errors.stage";
    /// What executed the stage.
    pub const CLASS_NAME: &str = "__connect.errors.class.name";
    /// The kind of failure, stable across releases.
    pub const EXCEPTION_CLASS_NAME: &str = "__connect.errors.exception.class.name";
    /// What was wrong, in a sentence.
    pub const EXCEPTION_MESSAGE: &str = "__connect.errors.exception.message";
    /// How often the record has been replayed.
    pub const REPLAYS: &str = "stillwell.replays";
    /// Of a record that was replayed: `TOPIC/PARTITION/OFFSET@TIMESTAMP` of the record that failed first, numbers in decimal. It counts
    /// where topic and partition are the record's own: others copy headers.
    pub const ORIGIN: &str = "stillwell.origin";
    /// When it failed, milliseconds since the Unix epoch, in decimal.
    pub const FAILED_AT: &str = "stillwell.failed-at";
    /// The original record's timestamp, milliseconds since the Unix epoch, in decimal.
    pub const ORIGINAL_TIMESTAMP: &str = "stillwell.original-timestamp";
    /// The blob that holds the value, where that is too large for the topic.
    pub const VALUE_BLOB: &str = "stillwell.value-blob";
    /// The blob that holds the whole letter, where even key and headers are too large for the topic.
    pub const LETTER_BLOB: &str = "stillwell.letter-blob";
    /// How many of the original's headers stand here without their names, since those are not UTF-8, in decimal.
    pub const UNNAMED: &str = "stillwell.unnamed-headers";
    /// The version that holds the change, where a listener or webhook did not handle it.
    pub const VERSION: &str = "stillwell.version";
    /// The listener.
    pub const LISTENER: &str = "stillwell.listener";
    /// The fields that its reader keeps, with commas between them, where those are a part of the dataset's: the value has no
    /// others, and is no whole record.
    pub const FIELDS: &str = "stillwell.fields";

    /// All that describe a failure, that is, all but [`REPLAYS`] and [`ORIGIN`], which describe the record.
    pub const OF_A_FAILURE: [&str; 17] = [
        TOPIC,
        PARTITION,
        OFFSET,
        CONNECTOR_NAME,
        TASK_ID,
        STAGE,
        CLASS_NAME,
        EXCEPTION_CLASS_NAME,
        EXCEPTION_MESSAGE,
        FAILED_AT,
        ORIGINAL_TIMESTAMP,
        VALUE_BLOB,
        LETTER_BLOB,
        UNNAMED,
        VERSION,
        LISTENER,
        FIELDS,
    ];
}

/// What of a letter lies in a blob, because it is too large for its topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Elsewhere {
    /// Nothing: it goes out as it is.
    #[default]
    Nothing,
    /// The value, in the blob of this name.
    Value(String),
    /// Key, value and headers, as [`Letter::encode`] writes them, in the blob of this name. The record that goes out
    /// has a key of up to a kilobyte, no value, and none of the original's headers.
    Whole(String),
}

/// Why bytes are not a letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a letter.
    #[error("not a letter: it does not begin as Avro single-object encoding does")]
    Foreign,
    /// Of a later release.
    #[error("a letter with the schema of fingerprint {0:016x}, which this release does not know; upgrade it")]
    UnknownSchema(u64),
    /// The fields cannot be read.
    #[error("not readable by its schema")]
    Malformed(#[from] Malformed),
}

/// A record that could not be processed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Where it came from.
    pub source: SourcePartition,
    /// Its offset there.
    pub offset: i64,
    /// Its timestamp, milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// Where it failed.
    pub stage: String,
    /// The kind of failure.
    pub class: String,
    /// What was wrong.
    pub message: String,
    /// Its key, as it was.
    pub key: Option<Bytes>,
    /// Its value, as it was.
    pub value: Option<Bytes>,
    /// Its headers, as they were: names may repeat, values may be null.
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl Letter {
    /// Bytes that it takes in its topic, a little over.
    pub fn size(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + len(value) + 10).sum();
        len(&self.key) + len(&self.value) + headers + self.message.len() + 1024
    }

    /// Bytes that it takes in its topic without what lies elsewhere, a little over.
    pub fn size_without(&self, elsewhere: &Elsewhere) -> usize {
        match elsewhere {
            Elsewhere::Nothing => self.size(),
            Elsewhere::Value(_) => self.size() - self.value.as_ref().map_or(0, Bytes::len),
            Elsewhere::Whole(_) => 5 * MAX_KEY,
        }
    }

    /// Key and value with which it goes out.
    pub fn kafka_record(&self, elsewhere: &Elsewhere) -> (Option<&[u8]>, Option<&[u8]>) {
        let (key, value) = (self.key.as_deref(), self.value.as_deref());
        match elsewhere {
            Elsewhere::Nothing => (key, value),
            Elsewhere::Value(_) => (key, None),
            Elsewhere::Whole(_) => (key.filter(|key| key.len() <= MAX_KEY), None),
        }
    }

    /// What executed the stage.
    fn executor(&self) -> &'static str {
        match self.stage.as_str() {
            "listener" => "stillwell.consumer.Listener",
            "webhook" => "stillwell.consumer.Webhook",
            "conflict" => "stillwell.producer.Builder",
            _ => "stillwell.producer.Validator",
        }
    }

    /// Appends the form in which it waits in the log.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&SINGLE_OBJECT);
        out.extend_from_slice(&LETTER_FINGERPRINT.to_le_bytes());
        put_bytes(out, self.source.topic.as_bytes());
        out.extend_from_slice(&self.source.topic_id.0);
        for number in [self.source.partition.into(), self.offset, self.timestamp] {
            put_long(out, number);
        }
        for (text, most) in [(&self.stage, MAX_NAME), (&self.class, MAX_NAME), (&self.message, MAX_MESSAGE)] {
            put_bytes(out, bounded(text, most).as_bytes());
        }
        put_optional(out, self.key.as_deref());
        put_optional(out, self.value.as_deref());
        wire::put_array(out, &self.headers, |out, (name, value)| {
            put_bytes(out, name.as_bytes());
            put_optional(out, value.as_deref());
        });
    }

    /// Reads the form in which it waits in the log.
    pub fn decode(bytes: &[u8]) -> Result<Letter, Error> {
        let mut take = Take::new(bytes);
        let magic = take.fixed::<2>().map_err(|_| Error::Foreign)?;
        let fingerprint = u64::from_le_bytes(take.fixed().map_err(|_| Error::Foreign)?);
        if magic != SINGLE_OBJECT {
            return Err(Error::Foreign);
        }
        if fingerprint != LETTER_FINGERPRINT {
            return Err(Error::UnknownSchema(fingerprint));
        }
        let letter = Letter {
            source: SourcePartition {
                topic: take.string()?.into(),
                topic_id: TopicId(take.fixed()?),
                partition: take.int()?,
            },
            offset: take.long()?,
            timestamp: take.long()?,
            stage: take.string()?.to_owned(),
            class: take.string()?.to_owned(),
            message: take.string()?.to_owned(),
            key: take_optional(&mut take)?,
            value: take_optional(&mut take)?,
            headers: take
                .array(|take| Ok::<_, Malformed>((take.string()?.to_owned(), take_optional(take)?)))?,
        };
        take.end()?;
        Ok(letter)
    }

    /// The headers with which it goes out: the original ones first and untouched, then what failed, by Connect's
    /// names, then ours.
    ///
    /// What is put behind is bounded: a fixed number of headers, messages of at most [`MAX_MESSAGE`] bytes, no stack
    /// traces. A record that was replayed, and fails again, brings its count in `stillwell.replays`, and in
    /// `stillwell.origin` which record it was at first: both are kept, not repeated; and the headers of its earlier failure, should the replay have left them on, are not the original's
    /// but ours: they make way for the new ones, or each replay would make the record larger until no topic takes it.
    pub fn kafka_headers(
        &self,
        connector_name: &str,
        task_id: u32,
        failed_at_ms: i64,
        elsewhere: &Elsewhere,
    ) -> Vec<(String, Option<Bytes>)> {
        let replayed = self.headers.iter().any(|(name, _)| name == header::REPLAYS);
        let last = |wanted: &'static str, most: usize| {
            self.headers.iter().rfind(move |(name, value)| {
                name == wanted && value.as_ref().is_some_and(|value| value.len() <= most)
            })
        };
        let ours = |name: &str| replayed && header::OF_A_FAILURE.contains(&name);
        let mut headers: Vec<(String, Option<Bytes>)> = match elsewhere {
            Elsewhere::Whole(_) => {
                let count = last(header::REPLAYS, MAX_COUNT);
                let origin = count.and_then(|_| last(header::ORIGIN, MAX_ORIGIN));
                origin.into_iter().chain(count).cloned().collect()
            }
            _ => self.headers.iter().filter(|(name, _)| !ours(name)).cloned().collect(),
        };
        // As Kafka's client hands them out. An empty name is none that anybody gives.
        let unnamed = self.headers.iter().filter(|(name, _)| name.is_empty()).count();
        let mut put = |name: &str, value: &str| {
            headers.push((name.to_owned(), Some(Bytes::copy_from_slice(value.as_bytes()))));
        };
        put(header::TOPIC, &self.source.topic);
        put(header::PARTITION, &self.source.partition.to_string());
        put(header::OFFSET, &self.offset.to_string());
        put(header::CONNECTOR_NAME, bounded(connector_name, MAX_NAME));
        put(header::TASK_ID, &task_id.to_string());
        put(header::STAGE, bounded(&self.stage, MAX_NAME));
        put(header::CLASS_NAME, self.executor());
        put(header::EXCEPTION_CLASS_NAME, bounded(&self.class, MAX_NAME));
        put(header::EXCEPTION_MESSAGE, bounded(&self.message, MAX_MESSAGE));
        if !replayed {
            put(header::REPLAYS, "0");
        }
        put(header::FAILED_AT, &failed_at_ms.to_string());
        put(header::ORIGINAL_TIMESTAMP, &self.timestamp.to_string());
        if unnamed > 0 {
            put(header::UNNAMED, &unnamed.to_string());
        }
        match elsewhere {
            Elsewhere::Nothing => {}
            Elsewhere::Value(blob) => put(header::VALUE_BLOB, blob),
            Elsewhere::Whole(blob) => put(header::LETTER_BLOB, blob),
        }
        headers
    }
}

/// The start of `text`, cut between two characters.
pub fn bounded(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}

fn put_optional(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    put_some(out, bytes.is_some());
    if let Some(bytes) = bytes {
        put_bytes(out, bytes);
    }
}

fn take_optional(take: &mut Take<'_>) -> Result<Option<Bytes>, Malformed> {
    take.some()?.then(|| take.bytes().map(Bytes::copy_from_slice)).transpose()
}

#[cfg(test)]
mod tests;
