//! Real data: all packages that this Debian machine knows, as Avro, with updates and tombstones, by the library. As JSON
//! they go through the binary, in `tests/cli/debian.rs`.

use std::collections::BTreeMap;

use apache_avro::types::Value as Avro;
use serde_json::{Value, json};
use stillwell::{Consumer, Producer};
use stillwell_tests::debian::{SCHEMA, packages};
use stillwell_tests::{Record, bootstrap, scratch};

use crate::setting::Setting;

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

#[tokio::test(flavor = "multi_thread")]
async fn all_packages_as_avro() {
    let name = "debian-avro";
    let mut setting = Setting::new(name, 4, SCHEMA);
    let schema = apache_avro::Schema::parse_str(SCHEMA).expect("it parses");
    let encode = |key: &str, value: &Value| Record::upsert(key, avro(&schema, value));
    let caches = [scratch(), scratch()];
    let records: Vec<_> = packages().iter().map(|(key, value)| encode(key, value)).collect();
    setting.topic.produce(records);
    setting.model = packages().iter().map(|(key, value)| (key.clone().into_bytes(), value.clone())).collect();

    let producer = Producer::builder(setting.dataset())
        .bootstrap_servers(bootstrap())
        .source(setting.dataset())
        .schema(SCHEMA)
        .data_dir(setting.data_dir())
        .blobs(setting.blobs())
        .avro()
        .start()
        .await
        .expect("the producer starts");
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
