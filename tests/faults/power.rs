//! The power is cut under the blob store, and under the log: what is announced, or logged, is on the disk by then, and not
//! in the system's memory alone.

use std::ffi::OsString;

use stillwell::version::Checksum;
use stillwell_tests::campaign::instance::Instance;
use stillwell_tests::volume::{self, WAIVED};
use stillwell_tests::{Disk, Setting, scratch, wait_until};
use xxhash_rust::xxh3::xxh3_64;

use crate::SCHEMA;
use crate::ground::{instance, reaches};
use crate::history::{DEADLINE, History, good};

/// Megabytes of the store's disk.
const DISK: u64 = 64;
/// Megabytes of the log's: RocksDB's buffers have to fit on it several times, or the source is paused.
const LOG_DISK: u64 = 128;

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

/// How far the log of a process that runs reaches.
fn logged(producer: &Instance, setting: &Setting) -> Result<i64, String> {
    let ranges = producer.logged(setting.dataset())?;
    ranges.iter().map(|range| range.to).max().ok_or_else(|| "nothing is logged".to_owned())
}

/// What is logged may be nowhere else: Kafka's retention need not wait for it. So a power cut must leave all that was said
/// to be durable, and a log whose commits are not synced loses it here.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_logged_outlives_a_power_cut_under_the_log_when_kafka_has_it_no_more() {
    let mut setting = Setting::new("power-log", 1, SCHEMA);
    let mut producer = instance(&setting, "one", Some("producer"));
    let log = producer.data().join("log");
    std::fs::create_dir_all(&log).expect("the folder can be made");
    let Some(disk) = Disk::mount(&log, LOG_DISK) else {
        return println!("not allowed to mount, or without the tools to: no power was cut");
    };
    let first: Vec<_> = (0..20).map(|n| good(&mut setting, &format!("P-{n}"), 1.0)).collect();
    setting.topic.produce(first);
    producer.start(None);
    reaches(&setting, 20).await;
    producer.kill();
    // All that this life wrote is on the disk by that, synced or not: the next one's records are what is judged.
    disk.again();

    // Logged, and not published: the store is away.
    producer.start(Some("store.put=return(error)"));
    let reaches_to = |producer: &Instance, setting: &Setting, offset: i64| {
        wait_until(&format!("the log reaches to offset {offset}"), DEADLINE, || {
            match logged(producer, setting)? {
                to if to >= offset => Ok(()),
                to => Err(format!("it reaches to {to}")),
            }
        });
    };
    let second: Vec<_> = (20..40).map(|n| good(&mut setting, &format!("P-{n}"), 2.0)).collect();
    setting.topic.produce(second);
    reaches_to(&producer, &setting, 40);
    // What can be read of the log may be on its way to the disk yet. One thread writes it, each group after the one before
    // is synced: where this record can be read, those are durable.
    let behind = good(&mut setting, "behind", 3.0);
    setting.topic.produce([behind]);
    reaches_to(&producer, &setting, 41);
    // At once, and long before the system writes anything by itself.
    if !disk.breaks() {
        return println!("without the right to make a file immutable: no power was cut");
    }
    producer.kill();
    disk.cut();
    let left = logged(&producer, &setting);
    assert!(
        left.as_ref().is_ok_and(|left| *left >= 40),
        "of a log that reached to 40 there is left: {left:?}"
    );

    // Kafka could not give them again.
    setting.topic.delete_before(0, 40);
    assert_eq!(setting.topic.watermarks()[0].0, 40);
    producer.start(None);
    reaches(&setting, 41).await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    producer.kill();
    History::of(&setting).assert_gapless().assert_no_branch();
}

/// A check of these tests themselves: whoever is to run all of them does not pass for want of a disk.
#[test]
fn who_is_to_run_all_tests_does_not_pass_without_a_disk() {
    let needed = |set: &[(&str, &str)]| {
        let variable = |name: &'static str| set.iter().find(|(known, _)| *known == name);
        volume::is_needed(|name| variable(name).map(|(_, value)| OsString::from(*value)))
    };
    assert!(needed(&[("CI", "true")]), "CI, whoever runs it");
    assert!(!needed(&[("CI", "true"), (WAIVED, "none")]), "said otherwise");
    assert_eq!(needed(&[("CI", "false")]), needed(&[]), "by the user alone");
}
