//! The power is cut under the blob store: what is announced is on the disk by then, and not in the system's memory alone.

use stillwell::version::Checksum;
use stillwell_tests::{Disk, Setting, scratch};
use xxhash_rust::xxh3::xxh3_64;

use crate::SCHEMA;
use crate::ground::{instance, reaches};
use crate::history::{History, good};

/// Megabytes of the disk.
const DISK: u64 = 64;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_announced_outlives_a_power_cut_under_the_blob_store() {
    let mut setting = Setting::new("power", 1, SCHEMA);
    let blobs = setting.dir.path().join("blobs");
    std::fs::create_dir(&blobs).expect("the folder can be made");
    let Some(disk) = Disk::mount(&blobs, DISK) else {
        return println!("not allowed to mount, or without the tools to: no power was cut");
    };
    let mut producer = instance(&setting, "one", Some("producer"));
    producer.start(None);
    for round in 1..=5 {
        let records: Vec<_> =
            (0..40).map(|n| good(&mut setting, &format!("P-{n}"), f64::from(round))).collect();
        setting.topic.produce(records);
        reaches(&setting, i64::from(round) * 40).await;
    }
    // The moment after the last one was announced, and long before the system writes anything by itself.
    if !disk.breaks() {
        return println!("without the right to make a file immutable: no power was cut");
    }
    producer.kill();
    disk.cut();

    let history = History::of(&setting);
    history.assert_gapless().assert_no_branch();
    assert!(history.valid.len() > 5, "{} versions", history.valid.len());
    for announcement in &history.valid {
        let snapshot = announcement.snapshot.iter().flat_map(|snapshot| [&snapshot.blob, &snapshot.index]);
        for blob in snapshot.chain([&announcement.delta.blob]) {
            let (version, name) = (announcement.version, &blob.name);
            let bytes = std::fs::read(blobs.join(name));
            let bytes = bytes.unwrap_or_else(|error| panic!("version {version} names {name}: {error}"));
            let held = (bytes.len() as u64, Checksum(xxh3_64(&bytes)));
            assert_eq!(held, (blob.bytes, blob.checksum), "version {version} names {name}");
        }
    }
    producer.start(None);
    let more = [good(&mut setting, "after", 6.0)];
    setting.topic.produce(more);
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    producer.kill();
}
