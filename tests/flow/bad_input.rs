//! What does not fit, what is too large, what is damaged, and who is not allowed: a clear error or a dead letter,
//! and the line goes on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use stillwell::{Consumer, ErrorKind, Producer};
use stillwell_tests::{Broker, Message, Record, Topic, bootstrap, scratch, wait_until};

use crate::line::SCHEMA;
use crate::setting::Setting;

const DEADLINE: Duration = Duration::from_secs(90);

fn letters(dataset: &str, count: usize) -> Vec<Message> {
    let topic = Topic::named(&format!("{dataset}.dlq"));
    wait_until("the dead letters are there", DEADLINE, || {
        let letters = topic.read();
        if letters.len() < count { Err(format!("{} of {count}", letters.len())) } else { Ok(letters) }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn misfits_become_letters_once_and_the_rest_goes_on() {
    let mut setting = Setting::new("misfits", 1, SCHEMA);
    let misfit = |key: &str, value: &str| Record {
        headers: vec![("trace".into(), Some(b"abc".to_vec()))],
        ..Record::upsert(key, value)
    };
    let good = setting.upsert("good", json!({"id": "good", "price": 1.0, "stock": null}));
    let last = setting.upsert("last", json!({"id": "last", "price": 2.0, "stock": 7}));
    let records = vec![
        misfit("malformed", "{\"id\": "),
        misfit("wrong type", r#"{"id": 7, "price": 1.0}"#),
        misfit("missing", r#"{"id": "missing"}"#),
        misfit("too large", r#"{"id": "x", "price": 1.0, "stock": 3000000000}"#),
        misfit("empty", ""),
        misfit("null", "null"),
        Record { key: None, ..misfit("", r#"{"id": "keyless", "price": 1.0}"#) },
        good,
        last,
    ];
    let bad: Vec<Record> = records.iter().take(7).cloned().collect();
    setting.topic.produce(records);
    let producer = setting.producer().await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;

    let letters = letters(setting.dataset(), bad.len());
    for (offset, (record, letter)) in bad.iter().zip(&letters).enumerate() {
        assert_eq!((&record.key, &record.value), (&letter.key, &letter.value), "byte for byte");
        assert_eq!(letter.header("trace"), Some("abc"), "original headers come first, untouched");
        assert_eq!(letter.header("__connect.errors.topic"), Some(setting.dataset()));
        assert_eq!(letter.header("__connect.errors.offset"), Some(offset.to_string().as_str()));
        assert!(letter.header("__connect.errors.exception.message").is_some_and(|text| !text.is_empty()));
    }
    producer.shutdown().await.expect("the producer stops");

    // A restart neither forgets a letter nor sends one twice.
    let producer = setting.producer().await;
    let more = setting.upsert("more", json!({"id": "more", "price": 3.0, "stock": 1}));
    setting.topic.produce([more]);
    setting.settled(&consumer).await;
    assert_eq!(self::letters(setting.dataset(), bad.len()).len(), bad.len());
    producer.shutdown().await.expect("the producer stops");
    consumer.shutdown().await.expect("it stops");
}

/// Kafka 4 takes no timestamp of more than an hour ahead, and an operator may say the same of the past: a letter that is
/// refused for it would stop the dataset for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_misfit_of_a_time_that_the_letters_topic_does_not_take_stops_nothing() {
    const HOUR: i64 = 3_600_000;
    let set = |topic: &Topic, ms: i64| topic.set(&[("message.timestamp.after.max.ms", &ms.to_string())]);
    let mut setting = Setting::new("dated", 1, SCHEMA);
    set(&setting.topic, i64::MAX);
    let letters = Topic::create_on(
        Broker::shared(),
        &format!("{}.dlq", setting.dataset()),
        1,
        &[("message.timestamp.after.max.ms", "3600000"), ("message.timestamp.before.max.ms", "3600000")],
    );
    let now = stillwell::clock::Clock::system().wall_ms();
    let times = [("ahead", now + 2 * HOUR), ("past", now - 2 * HOUR)];
    let mut records: Vec<_> =
        times.iter().map(|(key, at)| Record { timestamp: Some(*at), ..Record::upsert(key, "{") }).collect();
    records.push(setting.upsert("good", json!({"id": "good", "price": 1.0, "stock": null})));
    setting.topic.produce(records);
    let producer = setting.producer().await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let found = self::letters(setting.dataset(), 2);
    for (letter, (key, at)) in found.iter().zip(times) {
        assert_eq!(letter.key.as_deref(), Some(key.as_bytes()));
        assert_eq!(letter.header("stillwell.original-timestamp"), Some(at.to_string().as_str()));
        let dated = letter.timestamp.expect("it has one");
        assert!((dated - now).abs() < HOUR, "{key} is dated {dated}, and it is {now}");
    }
    assert_eq!(letters.read().len(), 2);

    // They go back with their own; where the source takes it no more, that is said, and holds up nothing else.
    set(&setting.topic, HOUR);
    let instance = crate::instance::Instance::new(&setting, "operator");
    let fix = r#"printf '{"id": "%s", "price": 2.0, "stock": null}' "$STILLWELL_KEY""#;
    let replay = |code: i32| instance.run(&["dlq", "replay"], &["--fix", fix]).expect_code(code).stdout;
    let left = replay(1);
    assert!(
        left.contains("2 letters selected: 1 replayed") && left.contains("1 timestamp not taken"),
        "{left}"
    );
    set(&setting.topic, i64::MAX);
    replay(0);
    let back = setting.topic.read().into_iter().filter(|record| record.header("stillwell.replays").is_some());
    let back: Vec<_> = back.map(|record| record.timestamp).collect();
    assert_eq!(back, [Some(times[1].1), Some(times[0].1)]);
    for (key, _) in times {
        setting.upsert(key, json!({"id": key, "price": 2.0, "stock": null}));
    }
    setting.settled(&consumer).await;
    producer.shutdown().await.expect("the producer stops");
    consumer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_five_megabytes_pass_and_a_misfit_as_large_keeps_its_value_in_a_blob() {
    let mut setting = Setting::new("large", 1, SCHEMA);
    let topic = Topic::create_on(
        Broker::shared(),
        &format!("{}-in", setting.dataset()),
        1,
        &[("max.message.bytes", "10000000")],
    );
    let large = "x".repeat(5_000_000);
    let value = json!({"id": large, "price": 1.0, "stock": null});
    let records = [
        setting.upsert("large", value),
        Record::upsert("misfit", format!("{{\"id\": {large}")),
        setting.upsert("small", json!({"id": "small", "price": 1.0, "stock": 1})),
    ];
    topic.produce(records);
    let producer = Producer::builder(setting.dataset())
        .bootstrap_servers(bootstrap())
        .source(topic.name())
        .schema(SCHEMA)
        .data_dir(setting.data_dir())
        .blobs(setting.blobs())
        .start()
        .await
        .expect("the producer starts");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let letters = letters(setting.dataset(), 1);
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].key.as_deref(), Some(b"misfit".as_slice()));
    let blobs = files(&setting.dir.path().join("blobs"), ".letter");
    assert_eq!(blobs.len(), 1, "the value is in a blob");
    assert_eq!(std::fs::metadata(&blobs[0]).expect("it is there").len(), 5_000_007);
    producer.shutdown().await.expect("the producer stops");
    consumer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_producer_on_the_same_directory_is_refused() {
    let setting = Setting::new("second", 1, SCHEMA);
    let producer = setting.producer().await;
    let second = setting.builder().instance_id("another").start().await.expect_err("the directory is taken");
    assert_eq!(second.kind(), ErrorKind::Config, "{}", second.chain());
    assert!(second.chain().contains(&*setting.data_dir().to_string_lossy()), "{}", second.chain());
    producer.shutdown().await.expect("the producer stops");
    let third = setting.producer().await;
    third.shutdown().await.expect("after the first has ended, the directory is free");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_be_made_is_a_clear_error() {
    let setting = Setting::new("unwritable", 1, SCHEMA);
    std::fs::write(setting.data_dir(), "a file where the directory should be").expect("it can be written");
    let error = setting.builder().start().await.expect_err("there is a file in the way");
    assert_eq!(error.kind(), ErrorKind::Config, "{}", error.chain());
    let cache = setting.data_dir();
    let error = Consumer::builder(setting.dataset())
        .bootstrap_servers(bootstrap())
        .blobs(setting.blobs())
        .cache_dir(cache);
    assert_eq!(error.spawn().expect_err("there is a file in the way").kind(), ErrorKind::Config);
}

/// All files below `dir` whose names end so.
pub fn files(dir: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            found.extend(files(&path, end));
        } else if path.to_string_lossy().ends_with(end) {
            found.push(path);
        }
    }
    found
}

/// Changes one byte in the middle of a file.
pub fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).expect("it can be read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(path, bytes).expect("it can be written");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_of_the_cache_are_found_and_fetched_again() {
    let mut setting = Setting::new("damaged", 1, SCHEMA);
    let records: Vec<_> = (0..3_000)
        .map(|i| {
            let id = format!("P-{i}");
            setting.upsert(&id, json!({"id": id, "price": f64::from(i), "stock": i}))
        })
        .collect();
    setting.topic.produce(records);
    let producer = setting.producer().await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    // A graceful stop leaves a snapshot, so that a start maps one.
    producer.shutdown().await.expect("the producer stops");
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");

    for (end, damage) in [
        ("delta.avro", flip as fn(&Path)),
        ("snapshot.avro", |path: &Path| {
            let file = std::fs::OpenOptions::new().write(true).open(path).expect("it opens");
            let length = file.metadata().expect("it has a length").len();
            file.set_len(length / 2).expect("it is cut");
        }),
        ("index", |path: &Path| std::fs::write(path, "nonsense").expect("it can be written")),
    ] {
        let found = files(cache.path(), end);
        assert!(!found.is_empty(), "the cache holds a {end}");
        found.iter().for_each(|path| damage(path));
        let consumer = setting.consumer(cache.path()).await;
        setting.settled(&consumer).await;
        consumer.shutdown().await.expect("it stops");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_damaged_in_the_store_is_never_served() {
    let mut setting = Setting::new("store", 1, SCHEMA);
    let records: Vec<_> = (0..5_000)
        .map(|i| {
            let id = format!("P-{i}");
            setting.upsert(&id, json!({"id": id, "price": f64::from(i) * 1.75, "stock": i}))
        })
        .collect();
    setting.topic.produce(records);
    let producer = setting.producer().await;
    let first = scratch();
    let consumer = setting.consumer(first.path()).await;
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("the producer stops");

    let snapshots = files(&setting.dir.path().join("blobs"), "snapshot.avro");
    assert!(!snapshots.is_empty());
    snapshots.iter().for_each(|path| flip(path));
    let cache = scratch();
    let consumer = Consumer::builder(setting.dataset())
        .bootstrap_servers(bootstrap())
        .blobs(setting.blobs())
        .cache_dir(cache.path())
        .spawn()
        .expect("it starts");
    // The deltas since the beginning are still there and lead to the same version; that they had to is said.
    setting.settled(&consumer).await;
    let mut readable = consumer.watch();
    let restored = readable.wait_for(|readable| readable.restored.is_some());
    let restored = tokio::time::timeout(DEADLINE, restored).await.expect("it is said in time");
    let said = restored.expect("it runs").restored.clone().unwrap_or_default();
    assert!(said.contains("the snapshot of version"), "{said}");
    consumer.shutdown().await.expect("it stops");

    // Mended in the store, it is read as it was announced.
    snapshots.iter().for_each(|path| flip(path));
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    assert_eq!(consumer.status().readable.restored, None);
    consumer.shutdown().await.expect("it stops");
}
