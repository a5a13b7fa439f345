//! A record with its headers, as Kafka lays them out, read by all that looks at headers: ids of schemas, letters of any writer.
//!
//! ```text
//!  key length | key | value length | value | headers | ( name length | name | value length | value ) …
//! ```
//!
//! Lengths and the count are zig-zag varints; a length of -1 is a null.

use std::sync::Arc;

use bytes::Bytes;
use stillwell::codec::{
    Codec, Encoded, ExtraFields, Format, KEY_HEADER, KeyFormat, KeyRule, Kind, SchemaId, Unread,
    VALUE_HEADER, Written,
};
use stillwell::dead::found::{Found, Raw, Source, Writer};
use stillwell::dead::held::Held;
use stillwell::format::letter::{Elsewhere, Letter, header};
use stillwell::record::SourcePartition;
use stillwell::schema::Schema;
use stillwell::schema::wire::take_long;

use crate::values::{FILE, SCHEMA};

/// The ids that the registry knows, each of its kind.
pub const AVRO: u32 = 7;
/// Avro, of keys.
pub const AVRO_KEY: u32 = 8;
/// Protobuf.
pub const PROTOBUF: u32 = 9;
/// JSON.
pub const JSON: u32 = 10;

/// Bytes that a failure adds to a record, at most: its texts are bounded.
const MOST_ADDED: usize = 4 << 10;

struct Record<'a> {
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: Vec<(&'a str, Option<&'a [u8]>)>,
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    match take_long(rest)? {
        -1 => Some(None),
        length => {
            let (field, behind) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            *rest = behind;
            Some(Some(field))
        }
    }
}

fn parse(mut rest: &[u8]) -> Option<Record<'_>> {
    let rest = &mut rest;
    let (key, value) = (field(rest)?, field(rest)?);
    let mut headers = Vec::new();
    for _ in 0..take_long(rest)? {
        headers.push((std::str::from_utf8(field(rest)??).ok()?, field(rest)?));
    }
    rest.is_empty().then_some(Record { key, value, headers })
}

/// Reads it in every way.
pub fn record(bytes: &[u8]) -> Result<String, String> {
    let record = parse(bytes).ok_or("no record as Kafka lays it out")?;
    as_letter(&record);
    as_anybodys_letter(&record);
    let read: Vec<Result<String, String>> = [
        Format::registered(Kind::Avro).with_keys(KeyFormat::Registered(Kind::Avro)),
        Format::registered(Kind::Protobuf),
        Format::json(ExtraFields::Ignore).checked(),
    ]
    .into_iter()
    .map(|format| decoded(format, &record))
    .collect();
    match read.iter().find_map(|read| read.as_ref().ok()) {
        Some(read) => Ok(read.clone()),
        None => Err(read.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("; ")),
    }
}

/// By the ids that it names.
fn decoded(format: Format, record: &Record<'_>) -> Result<String, String> {
    let schema = Arc::clone(&SCHEMA);
    let mut codec = Codec::new(format, KeyRule::Kafka, Arc::clone(&schema)).expect("they go together");
    let key = Arc::new(Schema::parse("\"string\"").expect("a schema"));
    for (id, written) in [
        (AVRO, Written::Avro(Arc::clone(&schema))),
        (AVRO_KEY, Written::Avro(key)),
        (PROTOBUF, Written::Protobuf(Arc::clone(&FILE))),
        (JSON, Written::Json),
    ] {
        codec.learn(SchemaId::Number(id), Ok(&written));
    }
    let last = |wanted: &str| record.headers.iter().rev().find(|(name, _)| *name == wanted)?.1;
    let encoded = Encoded {
        key: record.key,
        value: record.value,
        key_header: last(KEY_HEADER),
        value_header: last(VALUE_HEADER),
        ..Encoded::default()
    };
    let unknown = codec.unknown(encoded);
    match codec.read(encoded) {
        Ok(decoded) => {
            if let Some(datum) = decoded.value {
                assert_eq!(schema.validate(datum), Ok(datum.len()));
            }
            Ok(format!("a key of {} bytes", decoded.key.len()))
        }
        Err(unread) => {
            if let Unread::Unknown { .. } = unread {
                assert!(unknown.is_some(), "who asks before it reads would not have asked");
            }
            let misfit = unread.misfit();
            assert!(misfit.message.len() < 2_000, "{misfit}");
            Err(misfit.message)
        }
    }
}

/// Fails, becomes a letter, and comes back out of it byte for byte, whatever its headers are called.
fn as_letter(record: &Record<'_>) {
    let copy = |bytes: Option<&[u8]>| bytes.map(Bytes::copy_from_slice);
    let letter = Letter {
        source: SourcePartition { topic: "orders".into(), topic_id: Default::default(), partition: 3 },
        offset: 7,
        timestamp: 8,
        stage: "VALUE_CONVERTER".to_owned(),
        class: "stillwell.codec.Syntax".to_owned(),
        message: "it ends too early".to_owned(),
        key: copy(record.key),
        value: copy(record.value),
        headers: record.headers.iter().map(|(name, value)| ((*name).to_owned(), copy(*value))).collect(),
    };
    let mut bytes = Vec::new();
    letter.encode(&mut bytes);
    let again = Letter::decode(&bytes).expect("what it says is said again");
    assert_eq!((&again.key, &again.value, &again.headers), (&letter.key, &letter.value, &letter.headers));
    let sent = letter.kafka_headers("products", 0, 55, &Elsewhere::Nothing);
    let size = |headers: &[(String, Option<Bytes>)]| -> usize {
        headers.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Bytes::len)).sum()
    };
    assert!(size(&sent) <= size(&letter.headers) + MOST_ADDED, "what is added is bounded");
    let raw = Raw { partition: 0, offset: 1, timestamp: 2, key: record.key, value: record.value };
    let found = Found::read(raw, sent.iter().map(|(name, value)| (name.as_str(), value.as_deref())));
    assert_eq!(found.writer, Writer::Stillwell);
    assert_eq!(found.source, Some(Source { topic: "orders", partition: 3, offset: 7 }));
    let of_replays = |name: &str| name == header::REPLAYS || name == header::ORIGIN;
    let own: Vec<_> = record.headers.iter().filter(|(name, _)| !of_replays(name)).copied().collect();
    assert_eq!(found.headers, own, "byte for byte");
}

/// Is taken for a letter of Kafka Connect's, of Spring's, or of nobody's.
fn as_anybodys_letter(record: &Record<'_>) {
    let raw = Raw { partition: 0, offset: 1, timestamp: 2, key: record.key, value: record.value };
    let found = Found::read(raw, record.headers.iter().copied());
    if let Some(source) = found.source {
        assert!(!source.topic.is_empty() && source.partition >= 0 && source.offset >= 0, "{source:?}");
    }
    let mut rest = record.headers.iter();
    let in_order = found.headers.iter().all(|kept| rest.any(|header| header == kept));
    assert!(in_order, "its headers are some of the record's, as they were");
    assert!(found.class.ends_with(found.short_class()));
    let held = Held::of(&found);
    assert_eq!((held.encoded().key, held.encoded().value), (record.key, record.value));
}
