//! The whole line, by the library's public names: a topic in, versions out, two consumers that hold what a fold made
//! by other code holds.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use stillwell::{Consumer, Version};
use stillwell_tests::{read_by_avro_tools, scratch};

use crate::setting::{Model, Setting};

pub const SCHEMA: &str = r#"{"type": "record", "name": "Product", "fields": [
    {"name": "id", "type": "string"},
    {"name": "price", "type": "double"},
    {"name": "stock", "type": ["null", "int"], "default": null}
]}"#;

/// Names begin with the version, so that the last in order is the newest.
fn newest_snapshot(dir: &Path) -> PathBuf {
    let mut folders = vec![dir.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("it can be listed") {
            let path = entry.expect("it can be listed").path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.to_string_lossy().ends_with(".snapshot.avro") => found.push(path),
                false => {}
            }
        }
    }
    found.into_iter().max().expect("a graceful stop leaves a snapshot")
}

/// An entry as Avro's tools print it: unions tagged with their branch.
fn untagged(entry: &Value) -> (Vec<u8>, Value) {
    let value = &entry["value"]["Product"];
    let stock = value["stock"].get("int").cloned().unwrap_or(Value::Null);
    let key = entry["key"].as_str().expect("a key").as_bytes().to_vec();
    (key, json!({"id": value["id"], "price": value["price"], "stock": stock}))
}

#[tokio::test(flavor = "multi_thread")]
async fn records_become_versions_that_two_consumers_hold() {
    let mut setting = Setting::new("products", 2, SCHEMA);
    let caches = [scratch(), scratch(), scratch()];
    let first: Vec<_> = (0..2_500)
        .map(|i| {
            let id = format!("P-{i}");
            setting.upsert(&id, json!({"id": id, "price": f64::from(i) / 4.0, "stock": i}))
        })
        .collect();
    setting.topic.produce(first);

    let producer = setting.producer().await;
    let (one, two) = tokio::join!(setting.consumer(caches[0].path()), setting.consumer(caches[1].path()));
    assert!(one.view().caught_up(), "start() waits until the first load is whole");
    setting.settled(&one).await;
    setting.settled(&two).await;

    let held = one.view();
    let version = held.version();
    let changes = [
        setting.delete("P-7"),
        setting.upsert("P-1", json!({"id": "P-1", "price": 9.5, "stock": null})),
        setting.upsert("new", json!({"id": "new", "price": 1.0, "stock": 1})),
    ];
    setting.topic.produce(changes);
    setting.settled(&one).await;
    setting.settled(&two).await;
    assert_eq!(held.version(), version, "a view that is held never changes");
    assert!(held.get("P-7").expect("it reads").is_some());
    assert!(one.view().get("P-7").expect("it reads").is_none());

    let farewell = producer.shutdown().await.expect("the producer stops");
    assert_eq!(farewell.left_in_log, 0, "{farewell}");
    let late = setting.consumer(caches[2].path()).await;
    setting.settled(&late).await;
    // The blob in the store, read by another implementation of Avro, holds the same.
    let snapshot = newest_snapshot(&setting.dir.path().join("blobs"));
    let held: Model = read_by_avro_tools(&snapshot).iter().map(untagged).collect();
    assert_eq!(held, setting.model);
    for consumer in [one, two, late] {
        consumer.shutdown().await.expect("it stops");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_source_is_a_dataset_without_records_and_ready() {
    let mut setting = Setting::new("empty", 1, SCHEMA);
    let producer = setting.producer().await;
    let cache = scratch();
    let consumer = Consumer::builder(setting.dataset())
        .bootstrap_servers(&setting.bootstrap)
        .blobs(setting.blobs())
        .cache_dir(cache.path())
        .cache_size(1 << 20)
        .memory_limit(1 << 20)
        .start()
        .await
        .expect("there is nothing to wait for");
    let view = consumer.view();
    assert!(
        consumer.is_ready() && view.version() >= Version(1) && !view.is_stale(),
        "{:?}",
        consumer.status()
    );
    assert_eq!((view.records(), view.iter().count()), (0, 0));
    assert!(view.get("P-1").expect("it can be asked").is_none());
    // The first record is a version as any other.
    let record = setting.upsert("P-1", json!({"id": "P-1", "price": 1.0, "stock": null}));
    setting.topic.produce([record]);
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("it stops");
}
