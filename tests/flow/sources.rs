//! Other sources than one topic of JSON: several topics whose keys are made of fields, and values that are plain bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::json;
use stillwell::Producer;
use stillwell_tests::{Record, Topic, bootstrap, scratch, wait_until, wait_until_async};

use crate::setting::Setting;

const DEADLINE: Duration = Duration::from_secs(180);

const STOCK: &str = r#"{"type": "record", "name": "Stock", "fields": [
    {"name": "shop", "type": ["null", "string"], "default": null},
    {"name": "item", "type": {"type": "record", "name": "Item", "fields": [{"name": "number", "type": "long"}]}},
    {"name": "left", "type": "int"}
]}"#;

/// Two topics make one dataset. A shop's records are in one topic, an item's in one partition; the Kafka key says
/// nothing, save for deletes, which have no fields.
#[tokio::test(flavor = "multi_thread")]
async fn two_topics_make_one_dataset_with_keys_of_several_fields() {
    let mut setting = Setting::new("stock", 2, STOCK);
    let second = Topic::create("stock-too", 3);
    let topics = [setting.topic.clone(), second];
    // As docs/formats.md spells keys: the parts joined by a slash, what would be mistaken for one escaped.
    let shops = [("north/1", "north%2F1"), ("50% off", "50%25 off")];
    let upsert = |setting: &mut Setting, shop: usize, number: i64, left: i32| {
        let value = json!({"shop": shops[shop].0, "item": {"number": number}, "left": left});
        setting.model.insert(format!("{}/{number}", shops[shop].1).into_bytes(), value.clone());
        let partition = Some((number.unsigned_abs() % 2) as i32);
        Record { partition, ..Record::upsert(format!("any {left}"), value.to_string()) }
    };
    let mut records = [Vec::new(), Vec::new()];
    for round in 0..3 {
        for number in -20..40 {
            for (shop, records) in records.iter_mut().enumerate() {
                records.push(upsert(&mut setting, shop, number, round * 100 + number as i32));
            }
        }
    }
    for (topic, records) in topics.iter().zip(records) {
        topic.produce(records);
    }

    let builder = || setting.builder().source(topics[1].name()).key_fields(["shop", "item.number"]);
    let producer = builder().start().await.expect("the producer starts");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let key = "50%25 off/-7";
    assert!(consumer.view().get(key).expect("it reads").is_some(), "{key}");
    producer.shutdown().await.expect("the producer stops");

    // After a restart: a delete in each topic, an update, and a record whose key is null.
    for (shop, topic) in topics.iter().enumerate() {
        let key = format!("{}/7", shops[shop].1);
        setting.model.remove(key.as_bytes());
        let update = upsert(&mut setting, shop, 8, -1);
        topic.produce([Record { partition: Some(1), ..Record::delete(key) }, update]);
    }
    topics[1].produce([Record::upsert("keyless", r#"{"item": {"number": 1}, "left": 1}"#)]);
    let builder = || setting.builder().source(topics[1].name()).key_fields(["shop", "item.number"]);
    let producer = builder().start().await.expect("the producer starts");
    setting.settled(&consumer).await;
    let dead = Topic::named(&format!("{}.dlq", setting.dataset()));
    let letters = wait_until("the letter is there", DEADLINE, || match dead.read() {
        letters if letters.is_empty() => Err("none"),
        letters => Ok(letters),
    });
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].header("__connect.errors.stage"), Some("KEY_CONVERTER"));
    assert_eq!(letters[0].header("__connect.errors.topic"), Some(topics[1].name()));

    // Each partition of both topics stands at its end.
    let farewell = producer.shutdown().await.expect("the producer stops");
    let positions: BTreeSet<_> = farewell
        .positions
        .iter()
        .map(|position| (position.source.topic.to_string(), position.source.partition, position.offset))
        .collect();
    let mut ends = BTreeSet::new();
    for topic in &topics {
        for (partition, (_, end)) in topic.watermarks().into_iter().enumerate() {
            ends.insert((topic.name().to_owned(), partition as i32, end));
        }
    }
    assert_eq!(positions, ends);
    consumer.shutdown().await.expect("it stops");
}

/// No schema, no decoding: every value is what it was, byte for byte, the empty one too, and keys need not be text.
#[tokio::test(flavor = "multi_thread")]
async fn raw_values_come_out_as_they_went_in() {
    let setting = Setting::new("raw", 2, "");
    let start = || async {
        let builder = Producer::builder(setting.dataset())
            .bootstrap_servers(bootstrap())
            .source(setting.dataset())
            .raw()
            .data_dir(setting.data_dir())
            .blobs(setting.blobs());
        builder.start().await.expect("the producer starts")
    };
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut records = Vec::new();
    let mut put = |key: &[u8], value: Option<Vec<u8>>, model: &mut BTreeMap<Vec<u8>, Vec<u8>>| {
        records.push(Record { key: Some(key.to_vec()), value: value.clone(), ..Record::default() });
        match value {
            Some(value) => model.insert(key.to_vec(), value),
            None => model.remove(key),
        };
    };
    for byte in 0..=255u8 {
        put(&[byte, 0xff], Some(vec![byte; usize::from(byte) * 3]), &mut model);
        put(&[b'k', byte], Some(b"null".to_vec()), &mut model);
    }
    put(b"", Some(b"the empty key".to_vec()), &mut model);
    put(b"empty", Some(Vec::new()), &mut model);
    put(&[9, 0xff], None, &mut model);
    put(b"k0", None, &mut model);
    setting.topic.produce(records);

    let producer = start().await;
    let (cache, late) = (scratch(), scratch());
    let consumer = setting.consumer(cache.path()).await;
    let held = |consumer: &stillwell::Consumer| {
        let view = consumer.view();
        view.iter()
            .map(|value| value.expect("it reads"))
            .map(|value| (value.key().to_vec(), value.raw().expect("raw bytes").to_vec()))
            .collect::<BTreeMap<_, _>>()
    };
    wait_until_async("the consumer holds the model", DEADLINE, || {
        let held = held(&consumer);
        std::future::ready(if held == model { Ok(()) } else { Err(format!("{} keys", held.len())) })
    })
    .await;
    let empty = consumer.view().get("empty").expect("it reads").map(|value| value.into_bytes());
    assert_eq!(empty.as_deref(), Some(&[0][..]), "a datum of no bytes, not an absence");
    producer.shutdown().await.expect("the producer stops");
    let dead = Topic::named(&format!("{}.dlq", setting.dataset()));
    assert_eq!(dead.read(), [], "nothing is a misfit");

    // From the snapshot as from the deltas.
    let late = setting.consumer(late.path()).await;
    assert_eq!(held(&late), model);
    for consumer in [consumer, late] {
        consumer.shutdown().await.expect("it stops");
    }
}
