//! The cache's directory when it is full: what is not in use makes room, and where that is not enough the last good version
//! stays, until there is room again.

use std::time::Duration;

use serde_json::json;
use stillwell::Consumer;
use stillwell::producer::Performance;
use stillwell_tests::{Volume, scratch, wait_until_async};

use crate::damage::noise;
use crate::instance::LONG;
use crate::line::SCHEMA;
use crate::setting::{Setting, contents};

/// Megabytes of the cache's disk. A version takes six tenths of one, a delta as much.
const DISK: u32 = 8;

/// Every value anew, in text that does not compress.
fn round(setting: &mut Setting, number: u64) {
    let records: Vec<_> = (0..300)
        .map(|i| {
            let value = json!({"id": noise(number * 1_000 + i, 2_000), "price": i as f64, "stock": number});
            setting.upsert(&format!("P-{i}"), value)
        })
        .collect();
    setting.topic.produce(records);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cache_makes_room_and_keeps_what_is_read() {
    let cache = scratch();
    let Some(volume) = Volume::mount(cache.path(), DISK) else {
        println!("this user may not mount: not tried on a disk of its own");
        return;
    };
    let mut setting = Setting::new("crowded", 1, SCHEMA);
    round(&mut setting, 0);
    let performance = Performance { snapshot_frequency: 2, ..Performance::default() };
    let producer = setting.builder().performance(performance).start().await.expect("the producer starts");
    let consumer = Consumer::builder(setting.dataset())
        .bootstrap_servers(&setting.bootstrap)
        .blobs(setting.blobs())
        .cache_dir(cache.path())
        .max_backoff(Duration::from_secs(1))
        .start()
        .await
        .expect("the consumer starts");
    setting.settled(&consumer).await;

    // More than the disk holds goes through; the budget, ten gigabytes, asks for nothing.
    for number in 1..=16 {
        round(&mut setting, number);
        setting.settled(&consumer).await;
    }
    assert!(consumer.status().readable.error.is_none(), "{:?}", consumer.status());

    // Somebody else takes the rest.
    volume.fill();
    let held = consumer.view();
    let before = contents(&held);
    round(&mut setting, 1_000);
    let error = wait_until_async("it says that the disk is full", LONG, || {
        // What was evicted meanwhile is filled again.
        volume.fill();
        std::future::ready(consumer.status().readable.error.ok_or("no error yet"))
    })
    .await;
    assert!(error.contains("os error 28") || error.contains("No space"), "{error}");
    assert!(error.contains(&*cache.path().display().to_string()), "{error}");
    assert_eq!(contents(&consumer.view()), before, "the last good version stays");
    assert!(consumer.is_ready(), "{:?}", consumer.status());
    volume.make_room();
    setting.settled(&consumer).await;
    // The version that lists its snapshot may have met the full disk, too.
    wait_until_async("it says no more that the disk is full", LONG, || {
        std::future::ready(consumer.status().readable.error.map_or(Ok(()), Err))
    })
    .await;

    // Another one in this process, in the same cache: both count the same bytes.
    let twin = Consumer::builder(setting.dataset())
        .bootstrap_servers(&setting.bootstrap)
        .blobs(setting.blobs())
        .cache_of(&consumer)
        .start()
        .await
        .expect("it starts");
    setting.settled(&twin).await;
    // Between the two questions a merge may end.
    wait_until_async("both count the same bytes", LONG, || {
        let used = (twin.cache().used(), consumer.cache().used());
        std::future::ready(if used.0 == used.1 { Ok(()) } else { Err(format!("{used:?}")) })
    })
    .await;
    twin.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("it stops");
}
