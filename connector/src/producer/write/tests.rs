//! What is refused, what is sent where, and who is told of which version; against the embedded broker.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::watch::Watchers;
use super::*;
use crate::codec::{Bound, ExtraFields, Format, KeyRule, Stage};
use crate::format::announcement::SourcePosition;
use crate::kafka::{Cluster, Polled, Poller, Tuning};
use crate::producer::ProducerBuilder;
use crate::record::{SourcePartition, TopicId};
use crate::schema::Schema;
use crate::version::Version;

const SCHEMA: &str = r#"{"type":"record","name":"Product","fields":[
    {"name":"id","type":"string"},{"name":"price","type":["null","double"],"default":null}]}"#;
/// What a topic was written with before the dataset's schema grew.
const OLDER: &str = r#"{"type":"record","name":"Product","fields":[{"name":"id","type":"string"}]}"#;

fn schema() -> Arc<Schema> {
    Arc::new(Schema::dataset(SCHEMA).unwrap())
}

fn topics(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

fn json_format() -> Format {
    Format::json(ExtraFields::Ignore)
}

fn by_id() -> KeyRule {
    KeyRule::Fields(vec!["id".into()])
}

fn encoder(format: Format, key: KeyRule, schema: Arc<Schema>) -> Encoder {
    Encoder::new(&format, &key, &schema).unwrap()
}

fn prepared(encoder: &mut Encoder, record: Write) -> Ready {
    encoder.prepare(record, &topics(&["products"])).unwrap()
}

fn misfit(encoder: &mut Encoder, record: Write) -> (Stage, String) {
    match encoder.prepare(record, &topics(&["products"])).unwrap_err() {
        Refused::Misfit(misfit) => (misfit.stage, misfit.message),
        other => panic!("{other}"),
    }
}

#[test]
fn json_goes_to_a_json_topic_as_it_was_given() {
    let mut encoder = encoder(json_format(), KeyRule::Kafka, schema());
    let text = "{ \"price\": 2.50, \"id\":\"P-1\", \"more\": 1 }";
    let ready = prepared(&mut encoder, Write::upsert("P-1", text).header("a", "1").timestamp_ms(7));
    assert_eq!((&ready.key[..], ready.value.as_deref()), (&b"P-1"[..], Some(text.as_bytes())));
    assert_eq!((ready.headers.len(), ready.timestamp), (1, Some(7)));
    let gone = prepared(&mut encoder, Write::delete("P-1"));
    assert_eq!((&gone.key[..], gone.value), (&b"P-1"[..], None));

    for (value, stage) in [
        ("{\"id\": ", Stage::Decode),
        ("null", Stage::Decode),
        ("", Stage::Decode),
        ("{\"id\": 1}", Stage::Validate),
        ("{\"price\": 1.0}", Stage::Validate),
    ] {
        assert_eq!(misfit(&mut encoder, Write::upsert("P-1", value)).0, stage, "{value}");
    }
    assert_eq!(misfit(&mut encoder, Write::value(r#"{"id":"P-1"}"#)).0, Stage::Key);
}

#[test]
fn what_would_be_too_large_is_refused_before_it_is_sent() {
    let mut encoder = encoder(json_format(), KeyRule::Kafka, schema()).bounded(Bound::of(20));
    let (stage, message) = misfit(&mut encoder, Write::upsert("P-1", r#"{"id":"P-1234567"}"#));
    assert_eq!((stage, message.contains("max_record_size is 20")), (Stage::Oversized, true), "{message}");
    assert_eq!(misfit(&mut encoder, Write::delete("k".repeat(21))).0, Stage::Oversized);
    prepared(&mut encoder, Write::upsert("P-1", r#"{"id":"P-12345"}"#));
    prepared(&mut encoder, Write::delete("k".repeat(20)));
}

#[test]
fn keys_of_fields_are_made_and_one_that_is_given_must_be_the_same() {
    let mut encoder = encoder(json_format(), by_id(), schema());
    let value = r#"{"id":"P-1"}"#;
    assert_eq!(&prepared(&mut encoder, Write::value(value)).key[..], b"P-1");
    assert_eq!(&prepared(&mut encoder, Write::upsert("P-1", value)).key[..], b"P-1");
    let (stage, message) = misfit(&mut encoder, Write::upsert("P-2", value));
    assert_eq!(stage, Stage::Key);
    assert!(!message.contains("P-1"), "a reason holds nothing of the value: {message}");
    assert_eq!(&prepared(&mut encoder, Write::delete("P-1")).key[..], b"P-1");
}

#[test]
fn keys_can_be_made_for_a_dataset_that_takes_the_kafka_key() {
    let mut plain = encoder(json_format(), KeyRule::Kafka, schema());
    assert!(!plain.makes_keys());
    plain.key_by(&["id".into()]).unwrap();
    assert!(plain.makes_keys());
    assert_eq!(&prepared(&mut plain, Write::value(r#"{"id":"P-1"}"#)).key[..], b"P-1");
    // One that is given stays: the dataset's key is not the field.
    assert_eq!(&prepared(&mut plain, Write::upsert("K", r#"{"id":"P-1"}"#)).key[..], b"K");
    assert!(plain.key_by(&["name".into()]).is_err());
    let mut keyed = encoder(json_format(), by_id(), schema());
    keyed.key_by(&["id".into()]).unwrap();
    assert!(keyed.key_by(&["price".into()]).unwrap_err().to_string().contains("made of id"));
}

#[test]
fn an_avro_topic_gets_datums_of_its_own_schema() {
    let writer = Arc::new(Schema::parse(OLDER).unwrap());
    let mut encoder = encoder(Format::avro(writer.clone()), KeyRule::Kafka, schema());
    let datum = b"\x06P-1";
    let ready = prepared(&mut encoder, Write::upsert("k", r#"{"id":"P-1","price":2.5}"#));
    assert_eq!(ready.value.as_deref(), Some(&datum[..]), "without what the topic's schema has no place for");
    assert_eq!(
        prepared(&mut encoder, Write::upsert("k", &datum[..]).encoded()).value.as_deref(),
        Some(&datum[..])
    );
    assert_eq!(misfit(&mut encoder, Write::upsert("k", &b"\x06P"[..]).encoded()).0, Stage::Decode);
    // Datums of another schema are resolved.
    for _ in 0..2 {
        let larger = Write::datum(Some("k".into()), schema(), &b"\x06P-1\x02\0\0\0\0\0\0\x04\x40"[..]);
        assert_eq!(prepared(&mut encoder, larger).value.as_deref(), Some(&datum[..]));
    }
    let stranger = Arc::new(Schema::parse(r#"{"type":"array","items":"int"}"#).unwrap());
    assert_eq!(misfit(&mut encoder, Write::datum(Some("k".into()), stranger, &b"\0"[..])).0, Stage::Validate);
}

#[test]
fn a_json_topic_gets_a_datum_as_json() {
    let mut encoder = encoder(json_format(), by_id(), schema());
    let datum = Write::datum(None, schema(), &b"\x06P-1\x02\0\0\0\0\0\0\x04\x40"[..]);
    let ready = prepared(&mut encoder, datum);
    let value: Value = serde_json::from_slice(ready.value.as_deref().unwrap()).unwrap();
    assert_eq!((&ready.key[..], value), (&b"P-1"[..], json!({ "id": "P-1", "price": 2.5 })));
    assert_eq!(misfit(&mut encoder, Write::datum(None, schema(), &b"\x06P"[..])).0, Stage::Decode);
}

/// Of a file that was exported before the schema changed, say.
#[test]
fn a_json_topic_gets_a_datum_of_another_schema_as_it_resolves() {
    let dataset = r#"{"type":"record","name":"P","fields":[{"name":"id","type":"string"},
        {"name":"cost","type":["null","double"],"default":null,"aliases":["price"]}]}"#;
    let dataset = Arc::new(Schema::parse(dataset).unwrap());
    let former = |record: &str, name: &str, kind: &str| {
        let text = format!(
            r#"{{"type":"record","name":"{record}","fields":[{{"name":"id","type":"string"}},{{"name":"{name}","type":{kind}}}]}}"#
        );
        Arc::new(Schema::parse(&text).unwrap())
    };
    let mut encoder = encoder(json_format(), by_id(), dataset.clone());
    let mut told = |schema: &Arc<Schema>, datum: &'static [u8]| {
        let ready = prepared(&mut encoder, Write::datum(None, Arc::clone(schema), datum));
        serde_json::from_slice::<Value>(ready.value.as_deref().unwrap()).unwrap()
    };
    let (renamed, stranger) = (former("P", "price", "\"int\""), former("Q", "cost", "\"int\""));
    for _ in 0..2 {
        assert_eq!(told(&renamed, b"\x06P-1\x0a"), json!({ "id": "P-1", "cost": 5.0 }));
        // What does not resolve is told by its names, and taken where the value itself fits.
        assert_eq!(told(&stranger, b"\x06P-1\x0a"), json!({ "id": "P-1", "cost": 5 }));
    }
    let strict = Format::json(ExtraFields::Reject);
    let mut encoder = self::encoder(strict, by_id(), dataset);
    let extra = Write::datum(None, renamed, &b"\x06P-1\x0a"[..]);
    assert_eq!(misfit(&mut encoder, extra).0, Stage::Validate);
}

#[test]
fn a_raw_topic_gets_bytes() {
    let raw = Arc::new(Schema::raw());
    let mut encoder = encoder(Format::raw(), KeyRule::Kafka, raw.clone());
    for record in [
        Write::upsert("k", &b"\xff\0"[..]),
        Write::json(Some("k".into()), r#""/wA=""#),
        Write::datum(Some("k".into()), raw, &b"\x04\xff\0"[..]),
    ] {
        assert_eq!(prepared(&mut encoder, record).value.as_deref(), Some(&b"\xff\0"[..]));
    }
    assert_eq!(prepared(&mut encoder, Write::upsert("k", "")).value.as_deref(), Some(&b""[..]));
    assert_eq!(misfit(&mut encoder, Write::datum(Some("k".into()), schema(), &b""[..])).0, Stage::Validate);
}

#[test]
fn a_topic_is_named_where_there_are_several() {
    let mut encoder = encoder(json_format(), KeyRule::Kafka, schema());
    let record = || Write::delete("k");
    let both = topics(&["a", "b"]);
    assert_eq!(encoder.prepare(record().topic("b"), &both).unwrap().topic, 1);
    for record in [record(), record().topic("c")] {
        let refused = encoder.prepare(record, &both).unwrap_err().to_string();
        assert!(refused.contains("a, b"), "{refused}");
    }
}

fn at(partition: i32, offset: i64) -> SourcePosition {
    let source = SourcePartition { topic: "products".into(), topic_id: TopicId([1; 16]), partition };
    SourcePosition { source, start: 0, offset, target: 0 }
}

fn told(ticket: &mut super::watch::Ticket) -> Option<Option<Version>> {
    futures::FutureExt::now_or_never(ticket.version())
}

#[test]
fn a_ticket_is_told_the_first_version_that_passes_its_record() {
    let watchers = Watchers::default();
    let topic: Arc<str> = "products".into();
    // Before anybody writes, nothing is kept.
    watchers.announced(Version(1), &[at(0, 5)]);
    watchers.begin();
    assert!(!watchers.known().passes("products", 0, 4));
    watchers.announced(Version(2), &[at(0, 5), at(1, 3)]);
    assert!(watchers.known().passes("products", 0, 4));
    assert!(!watchers.known().passes("products", 0, 5));

    let mut five = watchers.wait_for(&topic, 0, 5);
    let mut seven = watchers.wait_for(&topic, 0, 7);
    let mut other = watchers.wait_for(&topic, 1, 3);
    let gone = watchers.wait_for(&topic, 1, 9);
    assert_eq!(*watchers.waiting().borrow(), 4);
    drop(gone);
    assert_eq!(*watchers.waiting().borrow(), 3, "who gives up gives its place up");
    // The position is the next offset to read: 5 is not yet in a version that ends at 5.
    watchers.announced(Version(3), &[at(0, 5), at(1, 3)]);
    assert_eq!((told(&mut five), told(&mut other)), (None, None));
    watchers.announced(Version(4), &[at(0, 7), at(1, 3)]);
    assert_eq!(told(&mut five), Some(Some(Version(4))));
    assert_eq!((told(&mut seven), told(&mut other)), (None, None));
    // Of versions that came before the acknowledgement, the first that has the record.
    watchers.announced(Version(5), &[at(0, 9), at(1, 3)]);
    watchers.announced(Version(6), &[at(0, 11), at(1, 4)]);
    assert_eq!(told(&mut seven), Some(Some(Version(5))));
    assert_eq!(told(&mut other), Some(Some(Version(6))));
    assert_eq!(*watchers.waiting().borrow(), 0);
    assert_eq!(told(&mut watchers.wait_for(&topic, 0, 8)), Some(Some(Version(5))));
    assert_eq!(told(&mut watchers.wait_for(&topic, 0, 10)), Some(Some(Version(6))));

    // Another source of announcements begins further back: nothing is told wrongly.
    let mut twelve = watchers.wait_for(&topic, 0, 12);
    watchers.announced(Version(4), &[at(0, 7), at(1, 3)]);
    assert_eq!(told(&mut twelve), None);
    watchers.close();
    assert_eq!(told(&mut twelve), Some(None), "nothing more will be told");
    assert_eq!(told(&mut watchers.wait_for(&topic, 0, 99)), Some(None));
}

fn cluster(partitions: i32) -> Cluster {
    let cluster = Cluster::start(1).unwrap();
    cluster.create_topic("products", partitions).unwrap();
    cluster
}

fn writer(cluster: &Cluster, build: impl FnOnce(ProducerBuilder) -> ProducerBuilder) -> (Writer, Watchers) {
    let watchers = Watchers::default();
    let builder = crate::Producer::builder("products").kafka(cluster.options("test")).schema(SCHEMA);
    let store = crate::blob::Store::open("memory://").unwrap();
    let options = build(builder.store(store).data_dir("unused")).options().unwrap();
    (Writer::new(&options, watchers.clone()).unwrap(), watchers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_durable_then_published() {
    let cluster = cluster(1);
    let (writer, watchers) = writer(&cluster, |builder| builder.source("products"));
    let records = [
        Write::upsert("P-1", r#"{"id":"P-1"}"#).header("why", "test").timestamp_ms(1_700_000_000_000),
        Write::delete("P-2"),
    ];
    let durable = writer.write(records).await.unwrap().published(Duration::ZERO).await;
    let Publication::Durable { records } = &durable else { panic!("{durable}") };
    assert_eq!(records.iter().map(|landed| landed.offset).collect::<Vec<_>>(), [0, 1]);
    assert_eq!((durable.version(), records[0].to_string()), (None, "products[0] offset 0".into()));

    let written = writer.write([Write::upsert("P-1", r#"{"id":"P-1","price":1.5}"#)]).await.unwrap();
    let told = watchers.clone();
    let (published, ()) = tokio::join!(written.published(Duration::from_secs(60)), async move {
        let mut waiting = told.waiting();
        waiting.wait_for(|waiting| *waiting == 1).await.unwrap();
        told.announced(Version(7), &[at(0, 2)]);
        told.announced(Version(8), &[at(0, 3)]);
    });
    assert_eq!(published.version(), Some(Version(8)), "{published}");
    assert_eq!(writer.0.records.used(), 0, "what is acknowledged takes no room");

    // As they lie in the topic.
    let mut poller = Poller::new(&cluster.options("test"), &Tuning::source("test", 1 << 20)).unwrap();
    poller.assign(&[("products", 0, 0)]).unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        if let Some(Polled::Record { message, .. }) = poller.poll(Duration::from_secs(10)) {
            seen.push((message.key().map(<[u8]>::to_vec), message.value().map(<[u8]>::to_vec)));
        }
    }
    let key = |key: &str| Some(key.as_bytes().to_vec());
    assert_eq!(seen[0], (key("P-1"), key(r#"{"id":"P-1"}"#)));
    assert_eq!(seen[1], (key("P-2"), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_write_that_does_not_fit_nothing_is_sent() {
    let cluster = cluster(1);
    let (writer, _) = writer(&cluster, |builder| builder.source("products"));
    let records = [Write::upsert("P-1", r#"{"id":"P-1"}"#), Write::upsert("P-2", r#"{"id":2}"#)];
    let error = writer.write(records).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.chain().contains("record 1 of the write"), "{}", error.chain());
    // Larger than the topic takes; a topic of the embedded broker has the default.
    let large = format!(r#"{{"id":"{}"}}"#, "x".repeat(TOPIC_LIMIT));
    let error = writer.write([Write::upsert("P-1", large)]).await.unwrap_err();
    assert!(matches!(
        std::error::Error::source(&error).unwrap().downcast_ref::<Refused>(),
        Some(Refused::TooLarge { .. })
    ));
    let landed = writer.write([Write::delete("P-1")]).await.unwrap().published(Duration::ZERO).await;
    let Publication::Durable { records } = landed else { panic!("{landed}") };
    assert_eq!(records[0].offset, 0, "nothing came before it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_not_there_is_not_made() {
    let cluster = cluster(1);
    let (writer, _) = writer(&cluster, |builder| builder.source("orders"));
    let error = writer.write([Write::delete("P-1")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.chain().contains("orders"), "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_may_be_under_way_waits_and_arrives() {
    let cluster = cluster(4);
    let (writer, _) =
        writer(&cluster, |builder| builder.source("products").raw().schema(r#"{"type":"bytes"}"#));
    // Four times the budget, and nobody takes what becomes of the first ones before the last is in line.
    let value = vec![b'x'; 500_000];
    let count = 4 * MOST_BYTES as usize / value.len();
    let mut all = Vec::new();
    for n in 0..count {
        let taken = writer.write([Write::upsert(n.to_string(), value.clone())]);
        let taken = tokio::time::timeout(Duration::from_secs(60), taken).await;
        all.push(taken.expect("what is acknowledged makes room").unwrap());
        assert!(writer.0.bytes.used() <= MOST_BYTES);
    }
    for written in all {
        let publication = written.published(Duration::ZERO).await;
        assert!(matches!(publication, Publication::Durable { .. }), "{publication}");
    }
    assert_eq!((writer.0.bytes.used(), writer.0.records.used()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_end_nothing_is_taken() {
    let cluster = cluster(1);
    let (writer, _) = writer(&cluster, |builder| builder.source("products"));
    let written = writer.write([Write::delete("P-1")]).await.unwrap();
    writer.close();
    // Durable all the same; nobody will tell of the version.
    let publication = written.published(Duration::from_secs(60)).await;
    assert!(matches!(publication, Publication::Durable { .. }), "{publication}");
    assert_eq!(writer.write([Write::delete("P-1")]).await.unwrap_err().kind(), ErrorKind::Closed);
}

/// Writes wait for room when the producer ends: what was in line is told of, and of the rest that it was not sent.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_sent_before_the_end_is_not_unknown() {
    let cluster = cluster(1);
    let (writer, _) = writer(&cluster, |builder| builder.source("products"));
    writer.connect().await.unwrap();
    // Nothing is acknowledged, so that nothing makes room.
    cluster.set_up(false).unwrap();
    let _taken = writer.0.records.force_lease(MOST_RECORDS - 1);
    let records: Vec<Write> = (0..3).map(|n| Write::delete(format!("P-{n}"))).collect();
    let mut some = std::pin::pin!(writer.write(records));
    assert!(futures::poll!(&mut some).is_pending());
    assert_eq!(writer.0.records.used(), MOST_RECORDS, "one is in line");
    let mut none = std::pin::pin!(writer.write([Write::delete("P-9")]));
    assert!(futures::poll!(&mut none).is_pending());
    writer.0.closed.cancel();
    assert_eq!(none.await.unwrap_err().kind(), ErrorKind::Closed);
    let written = some.await.unwrap();
    cluster.set_up(true).unwrap();
    let publication = written.published(Duration::ZERO).await;
    let Publication::Unsent { at, records, .. } = &publication else { panic!("{publication}") };
    assert_eq!((*at, records.len()), (1, 3), "{publication}");
    assert!(records[0].is_some() && records[1..] == [None, None], "{publication}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_acknowledged_is_unknown() {
    let cluster = cluster(1);
    let (writer, _) =
        writer(&cluster, |builder| builder.source("products").kafka_property("message.timeout.ms", "1000"));
    writer.connect().await.unwrap();
    cluster.set_up(false).unwrap();
    let written = writer.write([Write::delete("P-1"), Write::delete("P-2")]).await.unwrap();
    let publication = written.published(Duration::ZERO).await;
    let Publication::Unknown { at, records, .. } = &publication else { panic!("{publication}") };
    assert_eq!((*at, records), (0, &vec![None, None]));
    // Once Kafka is back, what is written again is there.
    cluster.set_up(true).unwrap();
    let mut last = publication;
    for _ in 0..30 {
        last = writer.write([Write::delete("P-1")]).await.unwrap().published(Duration::ZERO).await;
        if let Publication::Durable { .. } = last {
            return;
        }
    }
    panic!("30 s later: {last}");
}

#[test]
fn a_record_is_written_as_its_topic_is() {
    let older = Arc::new(Schema::dataset(OLDER).unwrap());
    let changes = json_format().within(crate::codec::Envelope::Debezium);
    let format = json_format().but("older", Format::avro(older)).but("changes", changes);
    let mut encoder = encoder(format, by_id(), schema());
    let topics = topics(&["products", "older", "changes"]);
    let mut sent = |topic: &str| {
        let record = Write { topic: Some(topic.into()), ..Write::upsert("P-1", r#"{"id":"P-1"}"#) };
        encoder.prepare(record, &topics)
    };
    let json = sent("products").unwrap();
    assert_eq!((json.topic, json.value.as_deref()), (0, Some(&br#"{"id":"P-1"}"#[..])));
    let avro = sent("older").unwrap();
    assert_eq!((avro.topic, avro.value.as_deref()), (1, Some(&b"\x06P-1"[..])));
    assert!(matches!(sent("changes"), Err(Refused::ReadOnly(_))));
}
