//! What we write, read by a client with a schema registry that is not ours: the programs of docs/formats.md, word for word.

use std::collections::BTreeMap;
use std::process::Command;

use apache_avro::types::Value as Avro;
use apache_avro::{Schema, to_avro_datum};
use serde_json::{Value, json};
use stillwell_tests::{Record, Registry, Running, Topic, bootstrap, python, scratch, wait_until, workspace};

use crate::instance::LONG;
use crate::setting::Setting;

/// The dataset's own.
const OWN: &str = r#"{"type": "record", "name": "Product", "fields": [
    {"name": "id", "type": "string"}, {"name": "price", "type": "double"},
    {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["NEW", "USED"]}}]}"#;
/// A state more: what is in it is no misfit of the schema but of the record.
const MORE: &str = r#"{"type": "record", "name": "Product", "fields": [
    {"name": "id", "type": "string"}, {"name": "price", "type": "double"},
    {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["LOST", "NEW", "USED"]}}]}"#;
/// Nothing of it fits.
const TEXT: &str = r#"{"type": "record", "name": "Product", "fields": [
    {"name": "id", "type": "string"}, {"name": "price", "type": "string"}]}"#;
const KEY: &str = r#"{"type": "record", "name": "Key", "fields": [{"name": "id", "type": "string"}]}"#;
/// As if an earlier release had announced so.
const EARLIER: &str = r#"{"type": "record", "name": "Announcement", "namespace": "stillwell", "fields": [
    {"name": "dataset", "type": "string"}, {"name": "version", "type": "long"}]}"#;

/// The page's program that reads this topic, told where the test's things are.
fn program(topic: &str, setting: &Setting, registry: &Registry) -> String {
    let page = std::fs::read_to_string(workspace().join("docs/formats.md")).expect("the page is there");
    let blocks = page.split("```python\n").skip(1).filter_map(|block| block.split("```").next());
    let found: Vec<&str> = blocks.filter(|block| block.contains(topic)).collect();
    let [program] = found[..] else { panic!("{} programs read {topic}", found.len()) };
    let places = [
        ("http://localhost:8081", registry.url()),
        ("localhost:9092", bootstrap().to_owned()),
        ("products", setting.dataset().to_owned()),
    ];
    places.iter().fold(program.to_owned(), |program, (word, place)| {
        assert!(program.contains(word), "{word} is not in\n{program}");
        program.replace(word, place)
    })
}

/// What it prints until that is enough, line by line.
fn printed(program: &str, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let python = python("confluent");
    let mut running =
        Running::start(Command::new(python).args(["-u", "-c", program]).current_dir(workspace()));
    wait_until("the program has read it all", LONG, || {
        let (ended, text) = (running.ended(), running.stdout());
        let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let lines: Vec<Value> = lines.map(|line| serde_json::from_str(line).expect("JSON")).collect();
        match (enough(&lines), ended) {
            (true, _) => Ok(lines),
            (false, Some(status)) => panic!("it ended ({status})\n{text}\n{}", running.stderr()),
            (false, None) => Err(text),
        }
    })
}

/// A datum by Avro's reference implementation, behind the id of its schema.
fn framed(id: u32, schema: &str, fields: &[(&str, Avro)]) -> Vec<u8> {
    let schema = Schema::parse_str(schema).expect("a schema");
    let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let datum = to_avro_datum(&schema, Avro::Record(fields)).expect("it fits");
    [&[0], &id.to_be_bytes()[..], &datum].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_a_registry_reads_letters_and_announcements_as_the_page_says() {
    let mut setting = Setting::new("foreign", 1, OWN);
    let registry = Registry::shared();
    let subject = |name: &str| format!("{}-{name}", setting.dataset());
    let key_id = registry.register(&subject("key"), KEY, &[]);
    let [own, more, text] = [("value", OWN), ("more", MORE), ("text", TEXT)]
        .map(|(name, schema)| registry.register(&subject(name), schema, &[]));
    let key = |id: &str| framed(key_id, KEY, &[("id", id.into())]);
    let product = |writer: (u32, &str), id: &str, (at, state): (u32, &str)| {
        let fields =
            [("id", id.into()), ("price", Avro::Double(1.5)), ("state", Avro::Enum(at, state.to_owned()))];
        framed(writer.0, writer.1, &fields)
    };
    let lost = product((more, MORE), "lost", (0, "LOST"));
    let whole = |id: &str| json!({"id": id, "price": 1.5, "state": "LOST"});
    let headed = Record {
        headers: vec![("__value_schema_id".to_owned(), Some(lost[..5].to_vec()))],
        ..Record::upsert(key("headed"), &product((more, MORE), "headed", (0, "LOST"))[5..])
    };
    let free = framed(text, TEXT, &[("id", "text".into()), ("price", "free".into())]);
    let bad = [
        (Record::upsert(key("lost"), &lost), "MalformedAvro", whole("lost")),
        (headed, "MalformedAvro", whole("headed")),
        (Record::upsert(key("text"), free), "Incompatible", json!({"id": "text", "price": "free"})),
        (Record::upsert(key("plain"), "plain text"), "NoSchemaId", Value::Null),
        (Record::upsert(key("nobody"), [0u8, 0x7f, 0, 0, 0, 0]), "UnknownSchema", Value::Null),
    ];
    setting.topic.produce(bad.iter().map(|(record, ..)| record.clone()));
    let good = [
        Record::upsert(key("a"), product((own, OWN), "a", (0, "NEW"))),
        Record::upsert(key("b"), product((more, MORE), "b", (2, "USED"))),
    ];
    setting.topic.produce(good);
    for (id, state) in [("a", "NEW"), ("b", "USED")] {
        setting.model.insert(id.into(), json!({"id": id, "price": 1.5, "state": state}));
    }
    let builder = setting.builder().schema_registry(registry.url()).avro_keys();
    let producer = builder.start().await.expect("the producer starts");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let newest = consumer.view().version();
    producer.shutdown().await.expect("the producer stops");
    consumer.shutdown().await.expect("it stops");

    // They are in the transaction of a version that is announced.
    let letters = Topic::named(&format!("{}.dlq", setting.dataset())).read();
    assert_eq!(letters.len(), bad.len());
    let read = printed(&program("products.dlq", &setting, registry), |lines| lines.len() >= bad.len());
    assert_eq!(read.len(), bad.len(), "{read:?}");
    for (((record, class, shown), letter), read) in bad.iter().zip(&letters).zip(&read) {
        assert_eq!((&letter.key, &letter.value), (&record.key, &record.value), "byte for byte");
        assert_eq!(read["why"], format!("stillwell.codec.{class}"), "{read}");
        assert_eq!(
            framed(key_id, KEY, &[("id", read["key"]["id"].as_str().expect("a key").into())]),
            letter.key.clone().expect("a key")
        );
        match shown {
            Value::Null => assert!(read["value"]["not read"].is_string(), "{read}"),
            shown => assert_eq!(&read["value"], shown),
        }
    }

    // A schema that is not meant, under the name of the one that is.
    registry.register("stillwell.Announcement", EARLIER, &[]);
    let done = |lines: &[Value]| lines.iter().any(|line| line[1]["version"] == newest.0);
    let told = printed(&program("products.announcements", &setting, registry), done);
    let mut versions = BTreeMap::new();
    assert_eq!(told[0][0], "stillwell.Epoch");
    assert_eq!(told[0][1]["life"]["epoch"], 1, "{}", told[0]);
    for line in told.iter().filter(|line| line[0] == "stillwell.Announcement") {
        let it = &line[1];
        assert_eq!((&it["dataset"], &it["shards"]), (&json!(setting.dataset()), &json!(1)), "{it}");
        versions.insert(it["version"].as_u64().expect("a number"), it.clone());
    }
    // A stop may have announced one more, for a snapshot.
    assert!(versions.keys().copied().eq(1..=versions.len() as u64), "{:?}", versions.keys());
    let of = |name: &str| versions.values().filter_map(|it| it[name].as_u64()).sum::<u64>();
    assert_eq!(of("letters"), bad.len() as u64);
    let last = &versions[&newest.0];
    assert_eq!((&last["records"], &last["positions"][0]["offset"]), (&json!(2), &json!(7)), "{last}");
}
