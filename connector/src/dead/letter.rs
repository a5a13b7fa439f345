//! Letters out of misfits: the whole record, and why it could not be processed.
//!
//! Owns: what of the record a letter keeps (everything, so that it can be replayed). Does not own: the letter's bytes
//! and headers (`format/letter`), when it is sent (`producer/announce`).

use bytes::Bytes;

use crate::codec::{Format, Misfit, Stage, Values, text};
use crate::format::chunk::{Body, ChunkRecord, Whole};
use crate::format::letter::header::{FIELDS, LISTENER, VERSION};
use crate::format::letter::{Letter, MAX_MESSAGE, bounded};
use crate::kafka::{Message, Timestamps};
use crate::record::{SourcePartition, Stamp, TopicId};
use crate::schema::wire::take_bytes;
use crate::schema::{Malformed, Node, Schema};
use crate::version::Version;
use crate::view::{Change, Value};

/// The class of letters that hold what did fit, but for which there was no room.
pub const SHED: &str = "stillwell.Shed";
/// The class of letters that hold a record than which another of its key, from another partition, is newer.
pub const CONFLICT: &str = "stillwell.Conflict";
/// Stages whose letters are changes of the dataset, and no records of its source.
pub const CHANGES: [&str; 2] = ["listener", "webhook"];
/// The class of letters that hold changes which a listener did not handle.
pub const UNHANDLED: &str = "stillwell.Unhandled";

/// The letter of a record that does not fit.
pub fn of(misfit: &Misfit, source: &SourcePartition, message: &Message<'_>) -> Letter {
    let record = Failed {
        source,
        offset: message.offset(),
        timestamp: message.timestamp_ms(),
        key: message.key(),
        value: message.value(),
    };
    record.letter(misfit, message.headers())
}

/// The letter of a record that fits, and for which the log has no room. Of the record it has what the log has: all of it where
/// its original is kept, else key, value in the source's format (JSON is written anew), timestamp; not the headers.
///
/// # Errors
/// [`Malformed`] where the value is none of `schema`, which the log would not have taken.
pub fn of_shed(
    record: &ChunkRecord<'_>,
    source: &SourcePartition,
    format: &Format,
    schema: &Schema,
) -> Result<Letter, Malformed> {
    let (key, value) = match record.body {
        Body::Upsert { key, value } => (Some(key), Some(value)),
        Body::Delete { key } => (Some(key), None),
        Body::Misfit { .. } => (None, None),
    };
    let value = match (value, &format.of_topic(&source.topic).values) {
        (None, _) => None,
        (Some(datum), Values::Json { .. }) => {
            let mut json = String::with_capacity(datum.len() * 2);
            text::to_json(schema, datum, &mut json)?;
            Some(Bytes::from(json))
        }
        // Others are taken only where what the log has is what was written (`config/check`).
        (Some(datum), Values::Raw) => {
            Some(Bytes::copy_from_slice(take_bytes(&mut { datum }).unwrap_or_default()))
        }
        (Some(bytes), _) => Some(Bytes::copy_from_slice(bytes)),
    };
    let Whole { key, value, headers } = original(record).unwrap_or(Whole {
        key: key.map(Bytes::copy_from_slice),
        value,
        headers: Vec::new(),
    });
    Ok(Letter {
        source: source.clone(),
        offset: record.offset,
        timestamp: record.timestamp,
        stage: Stage::Shed.to_string(),
        class: SHED.to_owned(),
        message: "the log held more than max_log_size, and producer.spill.shed is dead_letter".to_owned(),
        key,
        value,
        headers,
    })
}

/// The timestamp with which a letter goes out: its record's, as far as its topic takes it. None of a time to come, which Kafka 4
/// refuses by default, and none more than half as old as the topic takes: a letter that is refused stops its dataset, and the
/// broker has another clock. The record's own stands in a header.
pub fn dated(timestamp: i64, now: i64, takes: &Timestamps) -> i64 {
    match timestamp >= 0 && now.saturating_sub(timestamp) > takes.before_ms / 2 {
        true => now,
        false => timestamp.min(now),
    }
}

/// The letter of a record that lost to the one of `winner`, byte for byte; `None` where its original is not kept.
pub fn of_loser(
    record: &ChunkRecord<'_>,
    source: &SourcePartition,
    winner: (Option<&SourcePartition>, &Stamp),
) -> Option<Letter> {
    let Whole { key, value, headers } = original(record)?;
    let (from, Stamp { timestamp, offset, .. }) = winner;
    let from = from.map_or_else(|| "another partition".to_owned(), ToString::to_string);
    Some(Letter {
        source: source.clone(),
        offset: record.offset,
        timestamp: record.timestamp,
        stage: Stage::Conflict.to_string(),
        class: CONFLICT.to_owned(),
        message: format!(
            "{from} at offset {offset}, timestamp {timestamp}, has its key and won: across partitions the later timestamp \
             does, then topic, partition and offset decide"
        ),
        key,
        value,
        headers,
    })
}

/// The record as it came, where that is kept. What a chunk keeps was looked at when it was read.
fn original(record: &ChunkRecord<'_>) -> Option<Whole> {
    record.original?.whole(&record.body).ok()
}

/// What a listener did not handle, for the letter of each of its changes.
#[derive(Clone, Copy, Debug)]
pub struct Unhandled<'a> {
    /// The listener's name.
    pub listener: &'a str,
    /// The stage, as letters and metrics spell it: `listener` or `webhook`.
    pub stage: &'static str,
    /// Why, for people.
    pub why: &'a str,
    /// The version that holds the change.
    pub version: Version,
}

/// The letter of a change that a listener did not handle: the key, and the value as it is now: JSON, or the record's own
/// bytes where the dataset is raw or it is none of its schema, as the message then says; null is a delete. Topic, partition and offset are those of the record that brought the
/// value; of a delete, those of the record that is gone by it, since versions do not keep what deleted it. Where its reader keeps
/// some fields only, a header names them: what goes back by such a letter must not pass for the whole row.
pub fn of_change(change: &Change<'_>, unhandled: &Unhandled<'_>) -> Letter {
    let mut message = bounded(unhandled.why, MAX_MESSAGE).to_owned();
    let value = change.after().map(|value| {
        if let Some(raw) = value.raw() {
            return Bytes::copy_from_slice(raw);
        }
        let mut json = String::with_capacity(value.bytes().len() * 2);
        match text::to_json(value.schema(), value.bytes(), &mut json) {
            Ok(()) => Bytes::from(json),
            // Its page was checked, so a writer's bug wrote it. That must not cost the letter, nor those of the others.
            Err(malformed) => {
                message = format!(
                    "(its value, here as it is stored, is none of its schema: {malformed}) {message}"
                );
                message.truncate(bounded(&message, MAX_MESSAGE).len());
                Bytes::copy_from_slice(value.bytes())
            }
        }
    });
    let origin = change.after().or(change.before()).map(Value::source);
    let unknown = SourcePartition { topic: "".into(), topic_id: TopicId::default(), partition: -1 };
    let source = origin.and_then(|origin| origin.source.cloned()).unwrap_or(unknown);
    let (offset, timestamp) = origin.map_or((-1, 0), |origin| (origin.offset, origin.timestamp_ms));
    let header = |name: &str, value: String| (name.to_owned(), Some(Bytes::from(value)));
    let part = change.after().or(change.before()).and_then(kept_fields);
    let version = header(VERSION, unhandled.version.to_string());
    let listener = header(LISTENER, unhandled.listener.to_owned());
    Letter {
        source,
        offset,
        timestamp,
        stage: unhandled.stage.to_owned(),
        class: UNHANDLED.to_owned(),
        message,
        key: Some(Bytes::copy_from_slice(change.key())),
        value,
        headers: [version, listener].into_iter().chain(part.map(|names| header(FIELDS, names))).collect(),
    }
}

/// The names of a value's fields, where they are not all that the dataset has. Of very many the first: a letter has to fit into
/// its topic, and is a part whichever are named.
fn kept_fields(value: &Value<'_>) -> Option<String> {
    let schema = value.schema();
    if schema.encodes_like(value.whole_schema()) {
        return None;
    }
    let Node::Record(record) = schema.nodes.get(schema.nodes.root) else { return None };
    let names: Vec<&str> = record.fields.iter().map(|field| &*field.name).collect();
    Some(bounded(&names.join(","), MAX_MESSAGE).to_owned())
}

/// A record that failed, as it came.
struct Failed<'a> {
    source: &'a SourcePartition,
    offset: i64,
    timestamp: i64,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
}

impl Failed<'_> {
    fn letter<'h>(
        &self,
        misfit: &Misfit,
        headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>,
    ) -> Letter {
        Letter {
            source: self.source.clone(),
            offset: self.offset,
            timestamp: self.timestamp,
            stage: misfit.stage.to_string(),
            class: misfit.class.to_owned(),
            message: bounded(&misfit.message, MAX_MESSAGE).to_owned(),
            key: self.key.map(Bytes::copy_from_slice),
            value: self.value.map(Bytes::copy_from_slice),
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.map(Bytes::copy_from_slice)))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Stage;

    #[test]
    fn a_letter_keeps_the_record_as_it_came() {
        let source = SourcePartition { topic: "orders".into(), topic_id: Default::default(), partition: 1 };
        let failed = Failed { source: &source, offset: 7, timestamp: 8, key: None, value: Some(b"") };
        let misfit = Misfit { stage: Stage::Decode, class: "stillwell.Empty", message: "é".repeat(1_000) };
        let headers = [("a", Some(&b"1"[..])), ("a", None)];
        let letter = failed.letter(&misfit, headers.into_iter());
        assert_eq!((letter.source, letter.offset, letter.timestamp), (source, 7, 8));
        assert_eq!((letter.key, letter.value), (None, Some(Bytes::new())), "null and empty are kept apart");
        assert_eq!(letter.headers, [("a".into(), Some(Bytes::from_static(b"1"))), ("a".into(), None)]);
        assert_eq!((letter.stage.as_str(), letter.message.len()), ("VALUE_CONVERTER", 1024));
    }

    #[test]
    fn a_letter_is_dated_so_that_its_topic_takes_it() {
        let takes = |before_ms| Timestamps { before_ms, after_ms: 3_600_000 };
        let now = 1_000_000_000;
        let any = takes(i64::MAX);
        assert_eq!(dated(now - 5, now, &any), now - 5);
        assert_eq!(dated(0, now, &any), 0);
        assert_eq!(dated(now + 7_200_000, now, &any), now, "none of a time to come");
        assert_eq!(dated(-1, now, &takes(1_000)), -1, "it has none");
        assert_eq!(dated(now - 500, now, &takes(1_000)), now - 500);
        assert_eq!(dated(now - 501, now, &takes(1_000)), now);
    }

    #[test]
    fn the_letter_of_a_shed_record_can_be_replayed() {
        let source = SourcePartition { topic: "orders".into(), topic_id: Default::default(), partition: 1 };
        let json = r#"{"type": "record", "name": "P", "fields": [{"name": "id", "type": "string"}]}"#;
        let schema = std::sync::Arc::new(Schema::dataset(json).unwrap());
        let datum = b"\x04P1";
        let record = |body| ChunkRecord { slot: 0, offset: 7, timestamp: 8, body, original: None };
        let upsert = record(Body::Upsert { key: b"P1", value: datum });
        let value = |format: &Format| of_shed(&upsert, &source, format, &schema).unwrap().value.unwrap();
        let json = Format::json(crate::codec::ExtraFields::Ignore);
        assert_eq!(value(&json), r#"{"id":"P1"}"#);
        assert_eq!(value(&Format::avro(schema.clone())), &datum[..]);
        assert_eq!(value(&Format::raw()), &b"P1"[..], "without the length that is before it in the log");
        let letter = of_shed(&record(Body::Delete { key: b"P1" }), &source, &json, &schema).unwrap();
        assert_eq!((letter.key, letter.value), (Some(Bytes::from_static(b"P1")), None));
        assert_eq!((letter.offset, letter.timestamp, letter.stage.as_str()), (7, 8, "TASK_PUT"));
        let broken = record(Body::Upsert { key: b"P1", value: b"\x7f" });
        assert!(of_shed(&broken, &source, &json, &schema).is_err());
    }

    #[test]
    fn the_letter_of_a_change_holds_the_value_now_and_says_where_it_came_from() {
        use crate::schema::wire::put_bytes;
        use crate::version::{Life, Shard};
        use crate::view::{About, DeltaFile, Identity, View};
        let source = SourcePartition { topic: "orders".into(), topic_id: TopicId([3; 16]), partition: 1 };
        let json = r#"{"type": "record", "name": "P", "fields": [{"name": "id", "type": "string"}]}"#;
        let schema = std::sync::Arc::new(Schema::dataset(json).unwrap());
        let identity =
            Identity { dataset: "orders".into(), topic_id: TopicId([9; 16]), shard: Shard(0), shards: 1 };
        let life = Life { epoch: 1, writer: uuid::Uuid::nil() };
        let mut views = vec![View::empty(identity.clone(), schema.clone())];
        for (version, value) in [(1, Some(&b"A"[..])), (2, None), (3, Some(b"\xff\xfe"))] {
            let (version, before) = (Version(version), Version(version - 1));
            let kind = crate::format::container::Kind::Delta;
            let header = identity.header(kind, version, before, life, &schema, vec![source.clone()]);
            let mut writer = crate::format::container::Writer::new(Vec::new(), &header).unwrap();
            let datum = value.map(|value| {
                let mut datum = Vec::new();
                put_bytes(&mut datum, value);
                datum
            });
            let stamp = crate::record::Stamp { timestamp: 8, source: 0, offset: 40 + version.0 as i64 };
            let entry = crate::record::Entry { key: b"a", stamp, value: datum.as_deref() };
            writer.push(&entry).unwrap();
            let (_, plain) = writer.finish().unwrap();
            let delta = DeltaFile::from_plain(plain, &identity, &schema).unwrap();
            let positions = vec![crate::record::Position { source: source.clone(), offset: 50 }];
            let about = About { version, life, positions, ..About::nothing(schema.clone()) };
            let next = views.last().unwrap().apply(std::sync::Arc::new(delta), about).unwrap();
            views.push(next);
        }
        let unhandled =
            Unhandled { listener: "audit", stage: "webhook", why: "it answered 500", version: Version(7) };
        let letter = |before: usize, after: usize| {
            let change = views[after].changes_from(&views[before]).next().unwrap().unwrap();
            of_change(&change, &unhandled)
        };
        let upsert = letter(0, 1);
        assert_eq!((upsert.source.clone(), upsert.offset, upsert.timestamp), (source, 41, 8));
        assert_eq!((upsert.key, upsert.value), (Some("a".into()), Some(r#"{"id":"A"}"#.into())));
        assert_eq!((upsert.stage.as_str(), upsert.class.as_str()), ("webhook", UNHANDLED));
        let header =
            |name: &str, value: &str| (name.to_owned(), Some(Bytes::copy_from_slice(value.as_bytes())));
        assert_eq!(upsert.headers, [header("stillwell.version", "7"), header("stillwell.listener", "audit")]);
        let delete = letter(1, 2);
        assert_eq!((delete.value, delete.offset), (None, 41), "the record that is gone by it");
        // A text that is none, which only a bug can have written: as it is, and the letter says so.
        let malformed = letter(2, 3);
        assert_eq!((malformed.value, malformed.offset), (Some(Bytes::from_static(b"\x04\xff\xfe")), 43));
        let message = malformed.message;
        assert!(message.contains("is not UTF-8") && message.ends_with("it answered 500"), "{message}");
    }
}
