//! A consumer that holds a part of its dataset, with an index, beside one that holds all of it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use stillwell::{Consumer, ErrorKind, Version};
use stillwell_tests::{Record, scratch, wait_until_async};

use crate::setting::{Setting, contents};

const SCHEMA: &str = r#"{"type": "record", "name": "Product", "fields": [
    {"name": "id", "type": "string"},
    {"name": "category", "type": ["null", "string"], "default": null},
    {"name": "price", "type": "double"},
    {"name": "note", "type": "string", "default": ""}
]}"#;
const DEADLINE: Duration = Duration::from_secs(180);

fn product(number: u32, round: u32) -> (String, Value) {
    let id = format!("P-{number:03}");
    let category = [Some("shoes"), Some("hats"), None][(number + round) as usize % 3];
    let value = json!({"id": id, "category": category, "price": f64::from(number % 7), "note": if number % 10 == 3 { "hidden".to_owned() } else { format!("round {round}") }});
    (id, value)
}

/// What the consumer below is to hold of the model: without `note`, and not everything.
fn part(setting: &Setting) -> BTreeMap<Vec<u8>, Value> {
    let fits = |value: &Value| {
        value["price"].as_f64() < Some(5.0) && !value["category"].is_null() && value["note"] != "hidden"
    };
    let rows = setting.model.iter().filter(|(_, value)| fits(value));
    rows.map(|(key, value)| (key.clone(), json!({"category": value["category"], "price": value["price"]})))
        .collect()
}

async fn start(setting: &Setting, cache: &std::path::Path) -> Consumer {
    Consumer::builder(setting.dataset())
        .bootstrap_servers(&setting.bootstrap)
        .blobs(setting.blobs())
        .cache_dir(cache)
        .filter("price < 5 and category is not null and note != 'hidden'")
        .fields(["price", "category"])
        .index(["category"])
        .start()
        .await
        .expect("the consumer starts")
}

async fn settled(setting: &Setting, consumer: &Consumer) {
    let expected = part(setting);
    wait_until_async("the subset is the model's", DEADLINE, || {
        let held = contents(&consumer.view());
        std::future::ready(if held == expected { Ok(()) } else { Err(format!("{} records", held.len())) })
    })
    .await;
    let view = consumer.view();
    assert_eq!(view.records(), expected.len() as u64);
    for category in ["shoes", "hats", "gloves"] {
        let found: Vec<_> = view.by("category", category).expect("there is an index").map(key).collect();
        let expected: Vec<_> = expected
            .iter()
            .filter(|(_, value)| value["category"] == category)
            .map(|(key, _)| key.clone())
            .collect();
        assert_eq!(found, expected, "{category}");
    }
}

fn key(value: stillwell::Result<stillwell::Value<'_>>) -> Vec<u8> {
    value.expect("it reads").key().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subset_is_what_its_filter_says_through_changes_and_restarts() {
    let mut setting = Setting::new("products", 2, SCHEMA);
    let caches = [scratch(), scratch()];
    let rows: Vec<_> = (0..300).map(|number| product(number, 0)).collect();
    let records: Vec<Record> = rows.into_iter().map(|(id, value)| setting.upsert(&id, value)).collect();
    setting.topic.produce(records);
    let producer = setting.producer().await;
    let whole = setting.consumer(caches[0].path()).await;
    let subset = start(&setting, caches[1].path()).await;
    setting.settled(&whole).await;
    settled(&setting, &subset).await;
    let then = part(&setting);

    // Records come into it, leave it, change within it and beside it.
    let rows: Vec<_> = (0..60).map(|number| product(number, 1)).collect();
    let mut records: Vec<Record> = rows.into_iter().map(|(id, value)| setting.upsert(&id, value)).collect();
    records.extend((60..70).map(|number| setting.delete(&format!("P-{number:03}"))));
    // Held before anything of it is there to be seen.
    let before = subset.view();
    setting.topic.produce(records);
    settled(&setting, &subset).await;
    setting.settled(&whole).await;
    let after = subset.view();
    let told: Vec<_> =
        after.changes_from(&before).map(|change| change.expect("it reads").key().to_vec()).collect();
    let now = part(&setting);
    let keys: std::collections::BTreeSet<_> = then.keys().chain(now.keys()).collect();
    let differ: Vec<_> = keys.into_iter().filter(|key| then.get(*key) != now.get(*key)).cloned().collect();
    assert_eq!(told, differ);

    earlier_versions(&mut setting, &whole, &subset).await;

    // A restart, of the writer too, which leaves a snapshot.
    subset.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("it stops");
    let subset = start(&setting, caches[1].path()).await;
    settled(&setting, &subset).await;
    let producer = setting.producer().await;
    let one =
        [setting.upsert("P-000", json!({"id": "P-000", "category": "gloves", "price": 1.0, "note": ""}))];
    setting.topic.produce(one);
    settled(&setting, &subset).await;
    for consumer in [whole, subset] {
        consumer.shutdown().await.expect("it stops");
    }
    producer.shutdown().await.expect("it stops");
}

/// The version before the newest, out of the cache, as each consumer holds it.
async fn earlier_versions(setting: &mut Setting, whole: &Consumer, subset: &Consumer) {
    // Below the newest snapshot there is nothing to open, and the one after the first load may be made just now.
    for note in ["once", "twice", "thrice"] {
        let (all, part_of_it) = (setting.model.clone(), part(setting));
        let (version, of_part) = (whole.view().version(), subset.view().version());
        let one =
            [setting.upsert("P-001", json!({"id": "P-001", "category": "hats", "price": 2.0, "note": note}))];
        setting.topic.produce(one);
        setting.settled(whole).await;
        wait_until_async("the subset is as far", DEADLINE, || {
            let (at, to) = (subset.view().version(), whole.view().version());
            std::future::ready(if at >= to { Ok(()) } else { Err(format!("{at} of {to}")) })
        })
        .await;
        let (Ok(before), Ok(part_before)) = (whole.at(version).await, subset.at(of_part).await) else {
            continue;
        };
        assert_eq!(
            (contents(&before), before.version(), before.records()),
            (all.clone(), version, all.len() as u64)
        );
        assert_eq!((contents(&part_before), part_before.version()), (part_of_it, of_part));
        let none = whole.at(Version(1_000_000)).await.expect_err("it is not there");
        assert_eq!(none.kind(), ErrorKind::Rejected, "{none}");
        return;
    }
    panic!("no version before the newest can be opened");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_cannot_be_read_is_refused_before_anything_starts() {
    let setting = Setting::new("products", 1, SCHEMA);
    let cache = scratch();
    let consumer = Consumer::builder(setting.dataset())
        .bootstrap_servers(&setting.bootstrap)
        .blobs(setting.blobs())
        .cache_dir(cache.path())
        .filter("price <");
    let error = consumer.start().await.expect_err("there is no such filter");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.chain().contains("at its end: expected text in quotes"), "{}", error.chain());
}
