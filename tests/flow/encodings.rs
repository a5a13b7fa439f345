//! What is written around and beside records: changes of a database, Protobuf, JSON with ids; by a real registry.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use apache_avro::types::Value as Avro;
use apache_avro::{Schema, to_avro_datum};
use serde_json::{Value, json};
use stillwell_tests::{Message, Record, Registry, Topic, scratch, wait_until};

use crate::instance::Instance;
use crate::setting::Setting;

const DEADLINE: Duration = Duration::from_secs(90);

/// The dataset's own.
const ROW: &str = r#"{"type": "record", "name": "Customer", "fields": [
    {"name": "id", "type": "long"}, {"name": "name", "type": "string"},
    {"name": "mail", "type": ["null", "string"], "default": null}]}"#;
/// As Debezium registers it.
const CHANGE: &str = r#"{"type": "record", "name": "Envelope", "namespace": "db.shop.customers", "fields": [
    {"name": "before", "type": ["null", {"type": "record", "name": "Value", "fields": [
        {"name": "id", "type": "int"}, {"name": "name", "type": "string"},
        {"name": "mail", "type": ["null", "string"], "default": null}]}], "default": null},
    {"name": "after", "type": ["null", "Value"], "default": null},
    {"name": "op", "type": "string"}, {"name": "ts_ms", "type": ["null", "long"], "default": null}]}"#;
const KEY: &str = r#"{"type": "record", "name": "Key", "namespace": "db.shop.customers", "fields": [
    {"name": "id", "type": "int"}]}"#;

fn letters(setting: &Setting, count: usize) -> Vec<Message> {
    let topic = setting.topic.beside(&format!("{}.dlq", setting.dataset()));
    wait_until("the letters are there", DEADLINE, || {
        let letters = if topic.partitions() == 0 { Vec::new() } else { topic.read() };
        if letters.len() < count { Err(format!("{} letters", letters.len())) } else { Ok(letters) }
    })
}

fn classes(letters: &[Message]) -> Vec<&str> {
    let name = "__connect.errors.exception.class.name";
    letters.iter().map(|letter| letter.header(name).expect("a class")).collect()
}

fn framed(id: u32, datum: &[u8]) -> Vec<u8> {
    [&[0], &id.to_be_bytes()[..], datum].concat()
}

fn row(id: i64, name: &str) -> Value {
    json!({"id": id, "name": name, "mail": null})
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_a_database_in_json_are_rows_and_deletes() {
    let mut setting = Setting::new("customers", 1, ROW);
    let plain = |op: &str, before: Value, after: Value| json!({"before": before, "after": after, "source": {"lsn": 1}, "op": op, "ts_ms": 5});
    let wrapped = |change: Value| json!({"schema": {"type": "struct", "fields": []}, "payload": change});
    let key =
        |id: i64| json!({"schema": {"type": "struct", "fields": []}, "payload": {"id": id}}).to_string();
    let record = |id: i64, change: &Value| Record::upsert(key(id), change.to_string());
    let mut records = vec![
        record(1, &wrapped(plain("r", Value::Null, row(1, "Ada")))),
        record(2, &plain("c", Value::Null, row(2, "Bob"))),
        record(3, &plain("c", Value::Null, row(3, "Cleo"))),
        record(4, &plain("c", Value::Null, row(4, "Dan"))),
        record(2, &wrapped(plain("u", row(2, "Bob"), row(2, "Rob")))),
        // A delete and what follows it; of what was there the database says the key only, or nothing.
        record(3, &plain("d", json!({"id": 3, "name": null}), Value::Null)),
        Record::delete(key(3)),
        record(4, &wrapped(plain("d", Value::Null, Value::Null))),
        Record::delete(key(4)),
        // What a compacted topic leaves of a delete.
        record(5, &plain("c", Value::Null, row(5, "Eve"))),
        Record::delete(json!({"id": 5}).to_string()),
    ];
    let truncated = plain("t", Value::Null, Value::Null).to_string();
    records.push(Record { key: None, ..Record::upsert("", &truncated) });
    records.push(record(6, &plain("x", Value::Null, row(6, "Flo"))));
    records.push(record(6, &row(6, "Flo")));
    setting.topic.produce(records);
    setting.model.insert("1".into(), row(1, "Ada"));
    setting.model.insert("2".into(), row(2, "Rob"));

    let builder = setting.builder().debezium().json_keys().key_fields(["id"]);
    let producer = builder.start().await.expect("the producer starts");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let letters = letters(&setting, 3);
    let expected = ["Truncated", "UnknownOperation", "NoEnvelope"];
    assert_eq!(classes(&letters), expected.map(|class| format!("stillwell.codec.{class}")));
    assert_eq!(letters[0].value.as_deref(), Some(truncated.as_bytes()), "byte for byte");
    producer.shutdown().await.expect("the producer stops");
    consumer.shutdown().await.expect("it stops");
}

fn change(op: &str, before: Option<(i32, &str)>, after: Option<(i32, &str)>) -> Vec<u8> {
    let value = |row: Option<(i32, &str)>| match row {
        None => Avro::Union(0, Box::new(Avro::Null)),
        Some((id, name)) => {
            let mail = Avro::Union(0, Box::new(Avro::Null));
            let fields = vec![("id".into(), id.into()), ("name".into(), name.into()), ("mail".into(), mail)];
            Avro::Union(1, Box::new(Avro::Record(fields)))
        }
    };
    let fields = vec![
        ("before".into(), value(before)),
        ("after".into(), value(after)),
        ("op".into(), op.into()),
        ("ts_ms".into(), Avro::Union(1, Box::new(Avro::Long(5)))),
    ];
    let schema = Schema::parse_str(CHANGE).expect("a schema");
    to_avro_datum(&schema, Avro::Record(fields)).expect("it fits")
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_a_database_in_avro_come_by_the_registry_keys_and_all() {
    let mut setting = Setting::new("customers-avro", 1, ROW);
    let registry = Registry::shared();
    let value_id = registry.register(&format!("{}-value", setting.dataset()), CHANGE, &[]);
    let key_id = registry.register(&format!("{}-key", setting.dataset()), KEY, &[]);
    // A key of one int: its datum is that int.
    let key = |id: i32| framed(key_id, &[(id << 1) as u8]);
    let record = |id: i32, change: Vec<u8>| Record::upsert(key(id), framed(value_id, &change));
    let truncated = framed(value_id, &change("t", None, None));
    setting.topic.produce([
        record(1, change("r", None, Some((1, "Ada")))),
        record(2, change("c", None, Some((2, "Bob")))),
        record(2, change("u", Some((2, "Bob")), Some((2, "Rob")))),
        record(3, change("c", None, Some((3, "Cleo")))),
        record(3, change("d", Some((3, "Cleo")), None)),
        Record::delete(key(3)),
        Record { key: None, ..Record::upsert("", &truncated) },
        record(4, change("c", None, Some((4, "Dan")))),
        record(4, change("d", None, None)),
        record(5, change("u", None, None)),
    ]);
    setting.model.insert("1".into(), row(1, "Ada"));
    setting.model.insert("2".into(), row(2, "Rob"));
    let builder = setting.builder().schema_registry(registry.url()).avro_keys().debezium();
    let producer = builder.start().await.expect("the producer starts");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let letters = letters(&setting, 2);
    assert_eq!(classes(&letters), ["stillwell.codec.Truncated", "stillwell.codec.MissingField"]);
    producer.shutdown().await.expect("the producer stops");
    consumer.shutdown().await.expect("it stops");
}

const MONEY: &str = r#"syntax = "proto3"; package bank; message Money { int64 cents = 1; }"#;
const SHOP: &str = r#"syntax = "proto3"; package shop; import "bank/money.proto";
    message Unused { int32 a = 1; }
    message Order { string id = 1; bank.Money total = 2; repeated int32 items = 3; optional string note = 4; }"#;

#[tokio::test(flavor = "multi_thread")]
async fn protobuf_comes_by_the_registry_with_what_it_refers_to() {
    let own = r#"{"type": "record", "name": "Order", "fields": [
        {"name": "id", "type": "string"},
        {"name": "total", "type": ["null", {"type": "record", "name": "Money", "fields": [{"name": "cents", "type": "long"}]}]},
        {"name": "items", "type": {"type": "array", "items": "int"}},
        {"name": "note", "type": ["null", "string"]}]}"#;
    let mut setting = Setting::new("orders", 1, own);
    let registry = Registry::shared();
    let name = setting.dataset().to_owned();
    registry.register_as("PROTOBUF", &format!("{name}-money"), MONEY, &[]);
    let id = registry.register_as(
        "PROTOBUF",
        &format!("{name}-value"),
        SHOP,
        &[("bank/money.proto", &format!("{name}-money"))],
    );
    let avro = registry.register(&format!("{name}-other"), r#"{"type": "string"}"#, &[]);
    // id "P-1", total of 7 cents, items 1 and 2 packed, a field that nobody knows.
    let message = b"\x0a\x03P-1\x12\x02\x08\x07\x1a\x02\x01\x02\x78\x01";
    let order = |indexes: &[u8], message: &[u8]| framed(id, &[indexes, message].concat());
    let bad = [
        order(&[2, 0], message),
        order(&[2, 4], message),
        order(&[2, 2], b"\x0a\x09P-1"),
        order(&[2, 2], b"\x0a\x02\xff\xff"),
        framed(avro, b"\x02x"),
        framed(999_999, message),
    ];
    let mut records = vec![
        Record::upsert("P-1", order(&[2, 2], message)),
        Record::upsert("P-2", order(&[2, 2], b"")),
        Record::upsert("P-3", order(&[2, 2], b"\x22\x00")),
        Record::upsert("P-4", order(&[2, 2], b"\x0a\x01x")),
        Record::delete("P-4"),
    ];
    records.extend(bad.iter().map(|value| Record::upsert("bad", value)));
    setting.topic.produce(records);
    let row = |id: &str, total: Value, items: Value, note: Value| json!({"id": id, "total": total, "items": items, "note": note});
    setting.model.insert("P-1".into(), row("P-1", json!({"cents": 7}), json!([1, 2]), Value::Null));
    setting.model.insert("P-2".into(), row("", Value::Null, json!([]), Value::Null));
    setting.model.insert("P-3".into(), row("", Value::Null, json!([]), json!("")));

    let producer =
        setting.builder().protobuf_registry(registry.url()).start().await.expect("the producer starts");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let letters = letters(&setting, bad.len());
    let expected = [
        "Incompatible",
        "UnknownMessage",
        "MalformedProtobuf",
        "MalformedProtobuf",
        "UnusableSchema",
        "UnknownSchema",
    ];
    assert_eq!(classes(&letters), expected.map(|class| format!("stillwell.codec.{class}")));
    for (value, letter) in bad.iter().zip(&letters) {
        assert_eq!(letter.value.as_deref(), Some(&value[..]), "byte for byte");
    }
    producer.shutdown().await.expect("the producer stops");
    consumer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn json_with_ids_is_checked_where_it_is_said() {
    let own = r#"{"type": "record", "name": "P", "fields": [{"name": "id", "type": "string"}]}"#;
    let mut setting = Setting::new("checked", 1, own);
    let registry = Registry::shared();
    let name = setting.dataset().to_owned();
    let schema = r#"{"type": "object", "properties": {"id": {"type": "string"}}}"#;
    let id = registry.register_as("JSON", &format!("{name}-value"), schema, &[]);
    let avro = registry.register(&format!("{name}-other"), r#"{"type": "string"}"#, &[]);
    let text = br#"{"id": "x"}"#;
    let header = vec![("__value_schema_id".to_owned(), Some(framed(id, b"")))];
    setting.topic.produce([
        Record::upsert("a", framed(id, text)),
        Record { headers: header, ..Record::upsert("b", text) },
        Record::upsert("bad", text),
        Record::upsert("bad", framed(avro, text)),
        Record::upsert("bad", framed(999_999, text)),
    ]);
    for key in ["a", "b"] {
        setting.model.insert(key.into(), json!({"id": "x"}));
    }
    let producer =
        setting.builder().json_registry(registry.url()).start().await.expect("the producer starts");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let letters = letters(&setting, 3);
    let expected = ["NoSchemaId", "UnusableSchema", "UnknownSchema"];
    assert_eq!(classes(&letters), expected.map(|class| format!("stillwell.codec.{class}")));
    producer.shutdown().await.expect("the producer stops");
    consumer.shutdown().await.expect("it stops");
}

const REVERSED: &str = r#"{"type": "record", "name": "P", "fields": [
    {"name": "name", "type": "string"}, {"name": "id", "type": "int"}]}"#;

/// A dataset of four topics, each written in its own way: its own in JSON, the others in Avro by a schema file, in Protobuf by
/// the registry, and as changes of a database, whose keys are JSON.
pub struct Several {
    pub setting: Setting,
    pub instance: Instance,
    pub avro: Topic,
    pub protobuf: Topic,
    pub changes: Topic,
    id: u32,
}

impl Several {
    pub fn new(name: &str) -> Several {
        let own = r#"{"type": "record", "name": "P", "fields": [
            {"name": "id", "type": "long"}, {"name": "name", "type": "string"}]}"#;
        let setting = Setting::new(name, 1, own);
        let name = setting.dataset().to_owned();
        let registry = Registry::shared();
        let message = r#"syntax = "proto3"; package shop; message P { int32 id = 1; string name = 2; }"#;
        let id = registry.register_as("PROTOBUF", &format!("{name}-protobuf"), message, &[]);
        let topic = |format: &str| Topic::create(&format!("{name}.{format}"), 1);
        let [avro, protobuf, changes] = ["avro", "protobuf", "changes"].map(topic);

        let instance = Instance::new(&setting, "one");
        let schema = setting.dir.path().join("reversed.avsc");
        std::fs::write(&schema, REVERSED).expect("the schema is written");
        let text = std::fs::read_to_string(instance.config()).expect("the configuration is there");
        let source = format!(
            r#"topics = ["{name}", "{avro}", "{protobuf}", "{changes}"],
            formats."{avro}" = {{ format = "avro", schema = "{schema}" }},
            formats."{protobuf}".format = "protobuf",
            formats."{changes}" = {{ format = "json", envelope = "debezium", key_format = "json" }},"#,
            avro = avro.name(),
            protobuf = protobuf.name(),
            changes = changes.name(),
            schema = schema.display(),
        );
        let text = text.replace(&format!("topics = [\"{name}\"],"), &source);
        std::fs::write(instance.config(), text).expect("the configuration is written");
        instance.append(&format!("[schema_registry]\nurl = \"{}\"\n", registry.url()));
        Several { setting, instance, avro, protobuf, changes, id }
    }

    /// A record of each topic.
    pub fn row(id: i64, name: &str) -> Value {
        json!({"id": id, "name": name})
    }

    /// As the topic in Protobuf has it; by its bytes.
    pub fn message(&self, message: &[u8]) -> Vec<u8> {
        framed(self.id, &[&[0], message].concat())
    }

    /// As the topic of changes has it: a row that is there from now on.
    pub fn created(id: i64, name: &str) -> Record {
        let change = json!({"before": null, "after": Several::row(id, name), "op": "c"});
        Record::upsert(json!({ "id": id }).to_string(), change.to_string())
    }

    /// A row that is not there any more.
    pub fn gone(id: i64) -> Record {
        let change = json!({"before": null, "after": null, "op": "d"});
        Record::upsert(json!({ "id": id }).to_string(), change.to_string())
    }
}

/// Several topics, each written in its own way, become one dataset; so do records that are written to them, and a letter is
/// judged by the topic that it came from.
#[test]
fn topics_of_several_formats_become_one_dataset() {
    let Several { mut setting, instance, avro, protobuf, changes, id } = Several::new("several");
    let row = Several::row;
    let text = |id: i64, name: &str| row(id, name).to_string();
    // As another topic's are: none of them fits its own.
    setting.topic.produce([Record::upsert("1", text(1, "Ada")), Record::upsert("bad-0", b"\x06Ada\x02")]);
    avro.produce([Record::upsert("2", b"\x06Bob\x04"), Record::upsert("bad-1", text(2, "Bob"))]);
    let framed_message = |message: &[u8]| framed(id, &[&[0], message].concat());
    protobuf.produce([
        Record::upsert("3", framed_message(b"\x08\x03\x12\x04Cleo")),
        Record::upsert("bad-2", text(3, "Cleo")),
    ]);
    changes.produce([
        Several::created(4, "Dan"),
        Several::created(5, "Eve"),
        Several::gone(5),
        Record::upsert("4", text(4, "Dan")),
    ]);
    for (key, name) in [(1, "Ada"), (2, "Bob"), (3, "Cleo"), (4, "Dan")] {
        setting.model.insert(key.to_string().into(), row(key, name));
    }
    let process = instance.started();
    let holds = |model: &BTreeMap<Vec<u8>, Value>| {
        wait_until("the dataset holds the model", DEADLINE, || {
            let scanned = instance.run(&["scan"], &["--prefix", ""]).expect_code(0);
            let rows = scanned.stdout.lines().map(|line| {
                let line: Value = serde_json::from_str(line).expect("each line is JSON");
                (line["key"].as_str().expect("a text").into(), line["value"].clone())
            });
            let held: BTreeMap<Vec<u8>, Value> = rows.collect();
            if held == *model { Ok(()) } else { Err(format!("{held:?}")) }
        });
    };
    holds(&setting.model);
    let read = letters(&setting, 4);
    let of: BTreeSet<_> = read.iter().map(|letter| letter.header("__connect.errors.topic")).collect();
    assert_eq!(of.len(), 4, "one of each topic: {of:?}");

    // Nothing fits that did not.
    let dry = instance.run(&["dlq", "replay"], &["--dry-run"]).expect_code(1);
    assert_eq!(dry.stdout.matches("as it is it does not fit: ").count(), 4, "{}", dry.stdout);
    // What fits the topic of one does not fit those of the others.
    let fix = format!("printf %s '{}'", text(9, "Fix"));
    let mended = instance.run(&["dlq", "replay"], &["--dry-run", "--fix", &fix]).expect_code(1);
    assert_eq!(mended.stdout.lines().filter(|line| line.starts_with("would-replay ")).count(), 1);

    // Written to a topic, a record is as the others there.
    let lines = setting.dir.path().join("more.jsonl");
    std::fs::write(&lines, format!("{{\"key\": \"6\", \"value\": {}}}\n", text(6, "Flo"))).expect("a file");
    let import = |to: &Topic, code: i32| {
        let file = lines.to_str().expect("a path");
        instance.run(&["import"], &[file, "--topic", to.name()]).expect_code(code)
    };
    import(&avro, 0);
    setting.model.insert("6".into(), row(6, "Flo"));
    holds(&setting.model);
    assert_eq!(avro.read().last().and_then(|last| last.value.clone()).as_deref(), Some(&b"\x06Flo\x0c"[..]));
    let refused = import(&protobuf, 65);
    assert!(refused.stderr.contains("ids of a schema registry"), "{}", refused.stderr);
    process.stop(DEADLINE);
}

const PLACE: &str = r#"{"type": "record", "name": "Place", "fields": [
    {"name": "shop", "type": "string"}, {"name": "number", "type": "int"}]}"#;

/// Keys of one schema in two topics: bare in the one, whose schema a file has, and with a registry's ids in the other.
#[test]
fn keys_in_avro_are_of_a_schema_in_a_file_or_in_the_registry() {
    let own = r#"{"type": "record", "name": "P", "fields": [{"name": "note", "type": "string"}]}"#;
    let setting = Setting::new("avro-keys", 1, own);
    let name = setting.dataset().to_owned();
    let registry = Registry::shared();
    let id = registry.register(&format!("{name}-key"), PLACE, &[]);
    let other = Topic::create(&format!("{name}.ids"), 1);
    let instance = Instance::new(&setting, "one");
    let schema = setting.dir.path().join("place.avsc");
    std::fs::write(&schema, PLACE).expect("the schema is written");
    let text = std::fs::read_to_string(instance.config()).expect("the configuration is there");
    let plain = format!("topics = [\"{name}\"], format = \"json\"");
    assert!(text.contains(&plain), "{text}");
    let source = format!(
        r#"topics = ["{name}", "{other}"], format = "json", key_format = "avro", key_schema = "{schema}",
            formats."{other}" = {{ format = "json", key_format = "avro" }}"#,
        other = other.name(),
        schema = schema.display(),
    );
    std::fs::write(instance.config(), text.replace(&plain, &source)).expect("the configuration is written");
    instance.append(&format!("[schema_registry]\nurl = \"{}\"\n", registry.url()));

    let key = |shop: &str, number: i32| {
        let fields = vec![("shop".into(), shop.into()), ("number".into(), number.into())];
        let schema = Schema::parse_str(PLACE).expect("a schema");
        to_avro_datum(&schema, Avro::Record(fields)).expect("it fits")
    };
    let with_id = |shop: &str, number: i32| framed(id, &key(shop, number));
    let record = |key: Vec<u8>, note: &str| Record::upsert(key, json!({"note": note}).to_string());
    // The first two of each fit.
    let bare = [
        record(key("a/b", 7), "one"),
        record(key("c", -2), "two"),
        record(with_id("d", 4), "an id before it"),
        record(b"\x02".to_vec(), "cut short"),
        // As the dataset has it, and not as the topic does.
        Record::delete("a%2Fb/7"),
    ];
    let with_ids = [
        record(with_id("e", 1), "three"),
        record(with_id("f", 1), "four"),
        record(key("g", 1), "no id"),
        record(framed(id, b"\x02"), "cut short"),
    ];
    setting.topic.produce(bare.clone());
    other.produce(with_ids.clone());
    let process = instance.started();
    let shows = |key: &str, note: Option<&str>| {
        wait_until(&format!("get {key} shows {note:?}"), DEADLINE, || {
            let got = instance.run(&["get"], &[key]);
            let expected = note.map(|note| format!("{}\n", json!({"note": note}))).unwrap_or_default();
            match got.stdout == expected && got.code() == i32::from(note.is_none()) {
                true => Ok(()),
                false => Err(format!("{}: {}{}", got.code(), got.stdout, got.stderr)),
            }
        });
    };
    for (key, note) in [("a%2Fb/7", "one"), ("c/-2", "two"), ("e/1", "three"), ("f/1", "four")] {
        shows(key, Some(note));
    }

    let of_schema = format!("the key is not an Avro datum of schema id {id}: ");
    let of_file = "the key is not an Avro datum of key_schema: ";
    let reasons = [
        ("MalformedAvro", of_file),
        ("MalformedAvro", of_file),
        ("MalformedAvro", of_file),
        ("NoSchemaId", "the key does not begin with a schema registry's id"),
        ("MalformedAvro", &*of_schema),
    ];
    let misfits = (2..).zip(&bare[2..]).map(|misfit| (&setting.topic, misfit));
    let misfits = misfits.chain((2..).zip(&with_ids[2..]).map(|misfit| (&other, misfit)));
    let read = letters(&setting, reasons.len());
    for ((topic, (offset, record)), (class, reason)) in misfits.zip(reasons) {
        let place = [topic.name().to_owned(), format!("{offset}")];
        let is_of = |letter: &&Message| {
            [letter.header("__connect.errors.topic"), letter.header("__connect.errors.offset")]
                == place.each_ref().map(|part| Some(part.as_str()))
        };
        let letter = read.iter().find(is_of).unwrap_or_else(|| panic!("no letter of {place:?}: {read:?}"));
        assert_eq!((&letter.key, &letter.value), (&record.key, &record.value), "byte for byte");
        assert_eq!(letter.header("__connect.errors.stage"), Some("KEY_CONVERTER"));
        assert_eq!(classes(std::slice::from_ref(letter)), [format!("stillwell.codec.{class}")]);
        let message = letter.header("__connect.errors.exception.message").expect("a message");
        assert!(message.starts_with(reason), "{message}");
    }

    // A delete of each topic, by the key as the topic has it.
    setting.topic.produce([Record::delete(key("a/b", 7))]);
    other.produce([Record::delete(with_id("e", 1))]);
    shows("a%2Fb/7", None);
    shows("e/1", None);
    shows("c/-2", Some("two"));
    shows("f/1", Some("four"));
    assert_eq!(letters(&setting, reasons.len()).len(), reasons.len(), "each delete had its key");
    process.stop(DEADLINE).expect_code(0);
}
