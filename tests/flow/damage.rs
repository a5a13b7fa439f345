//! Blobs that are damaged in the store: found by whoever fetches them, said, never served, and read again once mended.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use stillwell::Consumer;
use stillwell_tests::{bootstrap, scratch, wait_until};

use crate::bad_input::{files, flip};
use crate::line::SCHEMA;
use crate::setting::{Model, Setting, contents};

const DEADLINE: Duration = Duration::from_secs(90);
/// An announcement holds a copy of a delta that is no larger (`producer/build`).
const INLINE_BYTES: u64 = 64 * 1024;

/// Text that does not compress, so that it is as large in the store: the same for the same `seed`.
pub fn noise(seed: u64, bytes: usize) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let letter = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        char::from(b'0' + (*state >> 58) as u8)
    };
    (0..bytes).map(|_| letter(&mut state)).collect()
}

fn changes(setting: &mut Setting, round: u64) -> Vec<stillwell_tests::Record> {
    (0..400)
        .map(|i| {
            let value = json!({"id": noise(round * 1_000 + i, 400), "price": i as f64, "stock": round});
            setting.upsert(&format!("P-{i}"), value)
        })
        .collect()
}

/// A consumer with an empty cache says that it cannot read what there is, and shows nothing but what was a version.
async fn refused(setting: &Setting, cache: &Path, earlier: &Model) -> Consumer {
    let consumer = Consumer::builder(setting.dataset())
        .bootstrap_servers(bootstrap())
        .blobs(setting.blobs())
        .cache_dir(cache)
        .spawn()
        .expect("it starts");
    let mut readable = consumer.watch();
    // Another error may come first: a Kafka that is slow to answer.
    let words = ["corrupt", "checksum", "bytes"];
    let damage = |error: &String| words.iter().any(|word| error.contains(word));
    let said =
        async { readable.wait_for(|readable| readable.error.as_ref().is_some_and(damage)).await.is_ok() };
    let said = tokio::time::timeout(DEADLINE, said).await;
    assert_eq!(said, Ok(true), "it is said in time: {:?}", consumer.status());
    let held = contents(&consumer.view());
    assert!(held.is_empty() || held == *earlier, "{} keys that were never a version", held.len());
    assert!(!consumer.is_ready(), "the newest version is not there");
    consumer
}

fn largest(mut paths: Vec<PathBuf>) -> PathBuf {
    let bytes = |path: &PathBuf| std::fs::metadata(path).expect("it is there").len();
    paths.sort_by_key(bytes);
    paths.pop().expect("there are some")
}

/// What the store holds, before and after some time.
fn deltas(setting: &Setting) -> Vec<PathBuf> {
    files(&setting.dir.path().join("blobs"), "delta.avro")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_cut_short_in_the_store_is_never_served() {
    let mut setting = Setting::new("cut", 1, SCHEMA);
    let records = changes(&mut setting, 1);
    setting.topic.produce(records);
    let producer = setting.producer().await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    // A graceful stop leaves a snapshot, which the last announcement names.
    producer.shutdown().await.expect("the producer stops");

    let snapshots = files(&setting.dir.path().join("blobs"), "snapshot.avro");
    let whole: Vec<_> = snapshots.iter().map(|path| std::fs::read(path).expect("it can be read")).collect();
    assert!(!whole.is_empty());
    for keep in [0.5, 0.0] {
        for (path, whole) in snapshots.iter().zip(&whole) {
            let part = &whole[..(whole.len() as f64 * keep) as usize];
            std::fs::write(path, part).expect("it can be written");
        }
        // The deltas since the beginning lead to the same version; that they had to is said.
        let cache = scratch();
        let consumer = setting.consumer(cache.path()).await;
        setting.settled(&consumer).await;
        let said = consumer.status().readable.restored.unwrap_or_default();
        assert!(said.contains("the snapshot of version"), "{said}");
        consumer.shutdown().await.expect("it stops");
    }
    for (path, whole) in snapshots.iter().zip(&whole) {
        std::fs::write(path, whole).expect("it can be written");
    }
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    assert_eq!(consumer.status().readable.restored, None, "it is read as it was announced");
    consumer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_a_delta_without_a_copy_in_its_announcement_is_never_served() {
    let mut setting = Setting::new("flipped", 1, SCHEMA);
    let producer = setting.producer().await;
    let (cache, mut before, mut earlier) = (scratch(), Vec::new(), Model::new());
    let consumer = setting.consumer(cache.path()).await;
    for round in 1..=2 {
        before = deltas(&setting);
        earlier = setting.model.clone();
        let records = changes(&mut setting, round);
        setting.topic.produce(records);
        setting.settled(&consumer).await;
        // The snapshot of the first load, so that the second delta comes after it.
        wait_until("a snapshot is stored", DEADLINE, || {
            let found = files(&setting.dir.path().join("blobs"), "snapshot.avro");
            if found.is_empty() { Err("none") } else { Ok(()) }
        });
    }
    let newest = largest(deltas(&setting).into_iter().filter(|path| !before.contains(path)).collect());
    let bytes = std::fs::metadata(&newest).expect("it is there").len();
    assert!(bytes > INLINE_BYTES, "{bytes} bytes would travel in the announcement");
    // No snapshot covers it: whoever starts now has to fetch it.
    let version = newest.file_name().expect("a name").to_string_lossy().into_owned();
    for snapshot in files(&setting.dir.path().join("blobs"), "snapshot.avro") {
        assert!(snapshot.file_name().expect("a name").to_string_lossy().into_owned() < version);
    }
    flip(&newest);
    let fresh = scratch();
    let late = refused(&setting, fresh.path(), &earlier).await;
    // Who has it already is not disturbed.
    setting.settled(&consumer).await;
    flip(&newest);
    setting.settled(&late).await;
    producer.shutdown().await.expect("the producer stops");
    for consumer in [consumer, late] {
        consumer.shutdown().await.expect("it stops");
    }
}
