//! Blobs are gone from the store, or damaged there: older ones and their deltas lead to the same version, for the
//! writer's takeover and for readers alike. Where none do, both say which blob is needed, and begin once it is back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use stillwell::{Producer, Version};
use stillwell_tests::{Record, scratch, wait_until_async};

use crate::instance::Instance;
use crate::line::SCHEMA;
use crate::setting::Setting;

const LONG: Duration = Duration::from_secs(180);

/// The store's files with this ending, of the oldest version first.
fn blobs(setting: &Setting, ending: &str) -> Vec<PathBuf> {
    let mut folders = vec![setting.dir.path().join("blobs")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("it can be listed") {
            let path = entry.expect("it can be listed").path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.to_string_lossy().ends_with(ending) => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    found
}

/// The version in a blob's name.
fn version_of(blob: &Path) -> u64 {
    let name = blob.file_name().expect("a file").to_string_lossy();
    name.split('-').next().expect("a number first").parse().expect("a version")
}

fn some(setting: &mut Setting, round: i32) -> Vec<Record> {
    (round * 10..round * 10 + 30)
        .map(|i| {
            let id = format!("P-{i}");
            setting.upsert(&id, json!({"id": id, "price": f64::from(round), "stock": i}))
        })
        .collect()
}

/// Too large to travel in an announcement: nothing in it can be compressed.
fn large(setting: &mut Setting) -> Vec<Record> {
    let entropy = stillwell::clock::Entropy::seeded(7);
    (0..40)
        .map(|i| {
            let text: String = (0..300).map(|_| format!("{:016x}", entropy.next_u64())).collect();
            let id = format!("large-{i}");
            setting.upsert(&id, json!({"id": text, "price": 1.0, "stock": null}))
        })
        .collect()
}

/// Produces, waits until it is readable, and stops the producer, which leaves a snapshot.
async fn round(setting: &mut Setting, number: i32, cache: &Path) {
    let records = some(setting, number);
    setting.topic.produce(records);
    let producer = setting.producer().await;
    let consumer = setting.consumer(cache).await;
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("the producer stops");
}

async fn error_of(producer: &Producer, what: &str) -> String {
    wait_until_async(&format!("the producer says {what:?}"), LONG, || {
        std::future::ready(match producer.status().error {
            Some(error) if error.contains(what) => Ok(error),
            error => Err(format!("{error:?}")),
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_gone_is_made_up_for_by_older_blobs() {
    let mut setting = Setting::new("gone", 1, SCHEMA);
    let cache = scratch();
    for number in 0..3 {
        round(&mut setting, number, cache.path()).await;
    }
    let snapshots = blobs(&setting, ".snapshot.avro");
    assert_eq!(snapshots.len(), 3, "one of each graceful stop: {snapshots:?}");
    // The newest is deleted, the one before it damaged: only the oldest will do.
    std::fs::remove_file(&snapshots[2]).expect("it was there");
    let mut bytes = std::fs::read(&snapshots[1]).expect("it is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&snapshots[1], bytes).expect("it can be damaged");
    // So are deltas on the way; what is as small as these travels in announcements too.
    let deltas: Vec<_> = blobs(&setting, ".delta.avro")
        .into_iter()
        .filter(|delta| version_of(delta) > version_of(&snapshots[0]))
        .collect();
    deltas.iter().for_each(|delta| std::fs::remove_file(delta).expect("it was there"));

    // A reader that starts late, while nobody writes.
    let fresh = scratch();
    let late = setting.consumer(fresh.path()).await;
    setting.settled(&late).await;
    let restored = late.status().readable.restored.expect("it says what it was made of");
    for gone in [&snapshots[2], &snapshots[1], &deltas[0]] {
        assert!(restored.contains(&gone.display().to_string()), "{restored} does not name {gone:?}");
    }

    // A writer whose disk is gone too.
    std::fs::remove_dir_all(setting.data_dir()).expect("the disk is wiped");
    let producer = setting.producer().await;
    let records = some(&mut setting, 3);
    setting.topic.produce(records);
    setting.settled(&late).await;
    let newest = wait_until_async("a new snapshot is there", LONG, || {
        let newest = blobs(&setting, ".snapshot.avro").last().map_or(0, |path| version_of(path));
        std::future::ready(if newest > version_of(&snapshots[2]) { Ok(newest) } else { Err(newest) })
    })
    .await;
    for delta in &deltas {
        assert!(delta.exists(), "{} was put back", delta.display());
    }
    // Once it is listed nobody depends on old blobs any more.
    wait_until_async("the reader has nothing to say", LONG, || {
        let readable = late.status().readable;
        std::future::ready(match readable.restored {
            None if readable.version >= Version(newest) => Ok(()),
            restored => Err(format!("{restored:?} at {}", readable.version)),
        })
    })
    .await;
    late.shutdown().await.expect("it stops");
    let last = scratch();
    let last_reader = setting.consumer(last.path()).await;
    setting.settled(&last_reader).await;
    assert_eq!(last_reader.status().readable.restored, None);
    last_reader.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("the producer stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_that_nothing_makes_up_for_is_named_and_nothing_begins_before_it_is_back() {
    let mut setting = Setting::new("lost", 1, SCHEMA);
    let (kept, fresh) = (scratch(), scratch());
    round(&mut setting, 0, kept.path()).await;
    let before = setting.model.clone();

    let large = large(&mut setting);
    let snapshots = blobs(&setting, ".snapshot.avro").len();
    setting.topic.produce(large);
    let producer = setting.producer().await;
    let consumer = setting.consumer(fresh.path()).await;
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    // Not gracefully: no snapshot is to cover it.
    drop(producer);
    assert_eq!(blobs(&setting, ".snapshot.avro").len(), snapshots);
    let delta = blobs(&setting, ".delta.avro")
        .into_iter()
        .max_by_key(|path| path.metadata().expect("it is there").len())
        .expect("there are deltas");
    assert!(delta.metadata().expect("it is there").len() > 64 << 10, "{delta:?} is large");
    let away = setting.dir.path().join("away");
    std::fs::rename(&delta, &away).expect("it can be moved");
    std::fs::remove_dir_all(setting.data_dir()).expect("the disk is wiped");

    let producer = wait_until_async("the log is free again", LONG, || async {
        setting.builder().start().await.map_err(|error| error.chain())
    })
    .await;
    let why = error_of(&producer, "cannot be restored").await;
    let said = format!("the delta of version {} at file://{} (missing)", version_of(&delta), delta.display());
    assert!(why.contains(&said), "{why}");
    // A reader that held something keeps it, and says the same.
    let reader = stillwell::Consumer::builder(setting.dataset())
        .bootstrap_servers(stillwell_tests::bootstrap())
        .blobs(setting.blobs())
        .cache_dir(kept.path())
        .spawn()
        .expect("it starts");
    wait_until_async("the reader says what is needed", LONG, || {
        std::future::ready(match reader.status().readable.error {
            Some(error) if error.contains(&said) => Ok(()),
            error => Err(format!("{error:?}")),
        })
    })
    .await;
    assert_eq!(crate::setting::contents(&reader.view()), before, "the last good version stays");
    assert!(!reader.is_ready(), "and is not shown as the newest");

    std::fs::rename(&away, &delta).expect("it is put back");
    setting.settled(&reader).await;
    let records = some(&mut setting, 5);
    setting.topic.produce(records);
    setting.settled(&reader).await;
    assert_eq!(producer.status().error, None);
    reader.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("the producer stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_is_lost_a_rebuild_with_deletes_begins_anew_from_the_source() {
    let mut setting = Setting::new("all-lost", 1, SCHEMA);
    let instance = Instance::new(&setting, "one");
    let records = large(&mut setting);
    setting.topic.produce(records);
    let process = instance.started();
    let kept = scratch();
    let reader = setting.consumer(kept.path()).await;
    setting.settled(&reader).await;
    process.stop(LONG).expect_code(0);
    let before = instance.newest();
    // Store and disk are gone, and of the source what retention took.
    std::fs::remove_dir_all(setting.dir.path().join("blobs")).expect("it was there");
    std::fs::remove_dir_all(setting.dir.path().join("one")).expect("it was there");
    setting.topic.delete_before(0, 5);
    for i in 0..5 {
        setting.model.remove(format!("large-{i}").as_bytes());
    }

    let mut process = instance.start();
    process.wait_for_text("cannot be restored", LONG);
    // Without deletes the next version would have to hold what cannot be had.
    instance.run(&["rebuild"], &["--yes", "--wait", "15s"]).expect_code(69);
    assert_eq!(instance.newest(), before);
    let done = instance.run(&["rebuild"], &["--yes", "--deletes", "--output", "json"]).expect_code(0);
    let done: serde_json::Value = serde_json::from_str(&done.stdout).expect("it is JSON");
    assert_eq!(done["version"], before + 1, "{done}");
    // For who held the version before, and for who held none.
    setting.settled(&reader).await;
    let fresh = scratch();
    let late = setting.consumer(fresh.path()).await;
    setting.settled(&late).await;
    let records = some(&mut setting, 2);
    setting.topic.produce(records);
    setting.settled(&reader).await;
    setting.settled(&late).await;
    for consumer in [reader, late] {
        consumer.shutdown().await.expect("it stops");
    }
    process.stop(LONG).expect_code(0);
    assert!(instance.newest() > before + 1);
}
