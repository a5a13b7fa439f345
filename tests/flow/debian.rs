//! Real data: the list of all packages that this Debian machine knows, some 60,000 records with long and short
//! strings, lists and sizes; as JSON and as Avro, with updates and tombstones.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Command;
use std::sync::OnceLock;

use apache_avro::types::Value as Avro;
use serde_json::{Value, json};
use stillwell::{Consumer, Producer};
use stillwell_tests::{Record, bootstrap, scratch};

use crate::setting::Setting;

const SCHEMA: &str = r#"{"type": "record", "name": "Package", "namespace": "debian", "fields": [
    {"name": "package", "type": "string"},
    {"name": "version", "type": "string"},
    {"name": "section", "type": ["null", "string"], "default": null},
    {"name": "priority", "type": {"type": "enum", "name": "Priority",
        "symbols": ["required", "important", "standard", "optional", "extra"]}},
    {"name": "installed_size", "type": "long"},
    {"name": "depends", "type": {"type": "array", "items": "string"}},
    {"name": "description", "type": "string"}
]}"#;

/// The packages, as the JSON that the dataset is to hold. The last stanza of a name wins, as the last record of a key.
fn packages() -> &'static [(String, Value)] {
    static PACKAGES: OnceLock<Vec<(String, Value)>> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        let listed = Command::new("apt-cache").arg("dumpavail").output();
        let has_lists = listed.is_ok();
        let text = match listed {
            Ok(listed) => listed.stdout,
            // No apt at all, as on another distribution with dpkg: what is installed is a list, too.
            Err(_) => {
                std::fs::read("/var/lib/dpkg/status").expect("a Debian machine, as docs/testing.md says")
            }
        };
        let text = String::from_utf8_lossy(&text);
        let packages: Vec<_> = text.split("\n\n").filter_map(package).collect();
        // Past the test runner's capture: a test that has grown thin is seen in every run.
        let _ = writeln!(std::io::stderr(), "debian: {} package records", packages.len());
        let least = if has_lists { 10_000 } else { 100 };
        assert!(
            packages.len() > least,
            "{} packages: run apt-get update, as .ci/setup test does",
            packages.len()
        );
        packages
    })
}

fn package(stanza: &str) -> Option<(String, Value)> {
    let field = |name: &str| {
        stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    let name = field("Package")?;
    let depends: Vec<&str> = field("Depends").map(|list| list.split(", ").collect()).unwrap_or_default();
    let priority = field("Priority")
        .filter(|priority| ["required", "important", "standard", "optional", "extra"].contains(priority));
    let value = json!({
        "package": name,
        "version": field("Version")?,
        "section": field("Section"),
        "priority": priority.unwrap_or("optional"),
        "installed_size": field("Installed-Size").and_then(|size| size.parse::<i64>().ok()).unwrap_or(0),
        "depends": depends,
        "description": field("Description").unwrap_or_default(),
    });
    Some((name.to_owned(), value))
}

/// The value as a datum of the reference implementation.
fn avro(schema: &apache_avro::Schema, value: &Value) -> Vec<u8> {
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let priority = text("priority");
    let symbols = ["required", "important", "standard", "optional", "extra"];
    let index = symbols.iter().position(|symbol| *symbol == priority).expect("a symbol") as u32;
    let section = match value["section"].as_str() {
        Some(section) => Avro::Union(1, Box::new(Avro::String(section.into()))),
        None => Avro::Union(0, Box::new(Avro::Null)),
    };
    let depends = value["depends"].as_array().expect("a list").iter();
    let depends = depends.map(|item| Avro::String(item.as_str().expect("text").into())).collect();
    let record = Avro::Record(vec![
        ("package".into(), Avro::String(text("package"))),
        ("version".into(), Avro::String(text("version"))),
        ("section".into(), section),
        ("priority".into(), Avro::Enum(index, priority)),
        ("installed_size".into(), Avro::Long(value["installed_size"].as_i64().expect("a number"))),
        ("depends".into(), Avro::Array(depends)),
        ("description".into(), Avro::String(text("description"))),
    ]);
    apache_avro::to_avro_datum(schema, record).expect("it fits the schema")
}

#[derive(Clone, Copy, PartialEq)]
enum Encoding {
    Json,
    Avro,
}

async fn run(name: &str, encoding: Encoding) {
    let mut setting = Setting::new(name, 4, SCHEMA);
    let schema = apache_avro::Schema::parse_str(SCHEMA).expect("it parses");
    let encode = |key: &str, value: &Value| match encoding {
        Encoding::Json => Record::upsert(key, value.to_string()),
        Encoding::Avro => Record::upsert(key, avro(&schema, value)),
    };
    let caches = [scratch(), scratch()];
    let records: Vec<_> = packages().iter().map(|(key, value)| encode(key, value)).collect();
    setting.topic.produce(records);
    setting.model = packages().iter().map(|(key, value)| (key.clone().into_bytes(), value.clone())).collect();

    let builder = Producer::builder(setting.dataset())
        .bootstrap_servers(bootstrap())
        .source(setting.dataset())
        .schema(SCHEMA)
        .data_dir(setting.data_dir())
        .blobs(setting.blobs());
    let builder = if encoding == Encoding::Avro { builder.avro() } else { builder.json() };
    let producer = builder.start().await.expect("the producer starts");
    let consumers: Vec<Consumer> =
        futures::future::join_all(caches.iter().map(|cache| setting.consumer(cache.path()))).await;
    for consumer in &consumers {
        setting.settled(consumer).await;
    }

    // An afternoon of updates: every fifth package is upgraded, every seventh is gone.
    let mut changes = Vec::new();
    let mut model: BTreeMap<_, _> = std::mem::take(&mut setting.model);
    for (index, (key, value)) in packages().iter().enumerate() {
        if index % 5 == 0 {
            let mut value = value.clone();
            value["version"] = json!(format!("{}+1", value["version"].as_str().expect("text")));
            changes.push(encode(key, &value));
            model.insert(key.clone().into_bytes(), value);
        }
        if index % 7 == 0 {
            changes.push(Record::delete(key));
            model.remove(key.as_bytes());
        }
    }
    setting.model = model;
    setting.topic.produce(changes);
    for consumer in &consumers {
        setting.settled(consumer).await;
    }
    let farewell = producer.shutdown().await.expect("the producer stops");
    println!("{name}: {farewell}");
    for consumer in consumers {
        consumer.shutdown().await.expect("it stops");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_packages_as_json() {
    run("debian-json", Encoding::Json).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_packages_as_avro() {
    run("debian-avro", Encoding::Avro).await;
}
