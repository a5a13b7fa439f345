//! Blobs in S3, on a real broker: from the source topic to a reader whose network breaks every few hundred kilobytes.

use serde_json::json;
use stillwell::blob::Store;
use stillwell::clock::Entropy;
use stillwell::{Consumer, ConsumerBuilder};
use stillwell_tests::campaign::Chance;
use stillwell_tests::{Cloud, Proxy, Toxic, scratch};

use crate::setting::Setting;

const SCHEMA: &str = r#"{"type": "record", "name": "Note", "fields": [
    {"name": "id", "type": "string"}, {"name": "text", "type": "string"}]}"#;

/// Longest that the reader behind the proxy may take; it takes some seconds.
const LONG: std::time::Duration = std::time::Duration::from_secs(300);

fn reader(setting: &Setting, store: Store, cache: &std::path::Path) -> ConsumerBuilder {
    Consumer::builder(setting.dataset()).bootstrap_servers(&setting.bootstrap).store(store).cache_dir(cache)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_behind_a_network_that_breaks_goes_on_where_it_broke() {
    let mut setting = Setting::new("s3", 2, SCHEMA);
    let s3 = Cloud::s3();
    let url = s3.url();
    let direct = s3.store_at(&url, s3.port());

    // What does not compress, so that there is something to download: some 14 MB, twice.
    let entropy = Entropy::seeded(7);
    let noise = |length: usize| -> String {
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        (0..length).map(|_| char::from(letters[(entropy.next_u64() % 64) as usize])).collect()
    };
    let records: Vec<_> = (0..1_200)
        .map(|i| {
            let id = format!("N-{i:04}");
            setting.upsert(&id, json!({"id": id, "text": noise(16_000)}))
        })
        .collect();
    setting.topic.produce(records);
    let producer = setting.builder().store(direct.clone()).start().await.expect("the producer starts");
    let cache = scratch();
    let consumer = reader(&setting, direct.clone(), cache.path()).start().await.expect("the consumer starts");
    setting.settled(&consumer).await;
    let change = setting.upsert("N-0001", json!({"id": "N-0001", "text": "changed"}));
    setting.topic.produce([change]);
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("the producer stops");
    let stored = direct.list("").await.expect("it lists");
    let bytes: u64 = stored.iter().map(|blob| blob.bytes).sum();
    assert!(stored.iter().any(|blob| blob.bytes > 5 << 20), "some are of several parts: {stored:?}");

    // One in ten pieces of 32 KiB at most ends its connection: no blob of a megabyte comes whole, and none has to.
    let proxy = Proxy::start(s3.port(), Chance::seeded(11));
    proxy.set(Toxic::Reset);
    std::fs::remove_dir_all(cache.path()).expect("the cache is wiped");
    let behind = s3.store_at(&url, proxy.port());
    let late = tokio::time::timeout(LONG, reader(&setting, behind, cache.path()).start()).await;
    let late = late.expect("it gets there").expect("the consumer starts");
    setting.settled(&late).await;
    let (carried, resets) = proxy.counts();
    assert!(resets > 10, "{resets} connections were reset");
    // What was sent after a break and never arrived is asked for again; nothing else is.
    assert!(carried < 2 * bytes, "{carried} bytes were carried for {bytes} that are stored");
    late.shutdown().await.expect("it stops");
}
