//! Letters out of misfits: the whole record, and why it could not be processed.
//!
//! Owns: what of the record a letter keeps (everything, so that it can be replayed). Does not own: the letter's bytes
//! and headers (`format/letter`), when it is sent (`producer/announce`).

use bytes::Bytes;

use crate::codec::{Format, Misfit, Stage, text};
use crate::format::chunk::{Body, ChunkRecord};
use crate::format::letter::{Letter, MAX_MESSAGE, bounded};
use crate::kafka::Message;
use crate::record::SourcePartition;
use crate::schema::{Malformed, Schema};

/// The class of letters that hold what did fit, but for which there was no room.
pub const SHED: &str = "stillwell.Shed";

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

/// The letter of a record that fits, and for which the log has no room. Of the record it has what the log has: key, value
/// in the source's format (JSON is written anew), timestamp; not the headers.
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
    let value = match (value, format) {
        (None, _) => None,
        (Some(datum), Format::Json { .. }) => {
            let mut json = String::with_capacity(datum.len() * 2);
            text::to_json(schema, datum, &mut json)?;
            Some(Bytes::from(json))
        }
        // Avro is taken only where it is written in the dataset's schema already (`config/check`).
        (Some(bytes), Format::Avro { .. } | Format::Raw) => Some(Bytes::copy_from_slice(bytes)),
    };
    Ok(Letter {
        source: source.clone(),
        offset: record.offset,
        timestamp: record.timestamp,
        stage: Stage::Shed.to_string(),
        class: SHED.to_owned(),
        message: "the log held more than max_log_size, and producer.spill.shed is dead_letter".to_owned(),
        key: key.map(Bytes::copy_from_slice),
        value,
        headers: Vec::new(),
    })
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
    fn the_letter_of_a_shed_record_can_be_replayed() {
        let source = SourcePartition { topic: "orders".into(), topic_id: Default::default(), partition: 1 };
        let json = r#"{"type": "record", "name": "P", "fields": [{"name": "id", "type": "string"}]}"#;
        let schema = std::sync::Arc::new(Schema::dataset(json).unwrap());
        let datum = b"\x04P1";
        let record = |body| ChunkRecord { slot: 0, offset: 7, timestamp: 8, body };
        let upsert = record(Body::Upsert { key: b"P1", value: datum });
        let value = |format: &Format| of_shed(&upsert, &source, format, &schema).unwrap().value.unwrap();
        let json = Format::Json { extra_fields: crate::codec::ExtraFields::Ignore };
        assert_eq!(value(&json), r#"{"id":"P1"}"#);
        assert_eq!(value(&Format::Avro { writer: schema.clone() }), &datum[..]);
        let letter = of_shed(&record(Body::Delete { key: b"P1" }), &source, &json, &schema).unwrap();
        assert_eq!((letter.key, letter.value), (Some(Bytes::from_static(b"P1")), None));
        assert_eq!((letter.offset, letter.timestamp, letter.stage.as_str()), (7, 8, "TASK_PUT"));
        let broken = record(Body::Upsert { key: b"P1", value: b"\x7f" });
        assert!(of_shed(&broken, &source, &json, &schema).is_err());
    }
}
