//! Kafka is away: what was held is readable, says so, and is ready only where that was asked for.

use serde_json::json;
use stillwell::{Consumer, Producer};
use stillwell_tests::{scratch, wait_until_async};

use crate::instance::LONG;
use crate::line::SCHEMA;
use crate::setting::{Setting, contents};

/// The discard port of this machine, where nobody listens.
const NOWHERE: &str = "127.0.0.1:9";

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_version_is_readable_at_once_marked_stale_and_ready_as_configured() {
    let mut setting = Setting::new("away", 1, SCHEMA);
    let records: Vec<_> = (0..100)
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
    let version = consumer.view().version();
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("the producer stops");

    let away = |serve_stale: bool| {
        Consumer::builder(setting.dataset())
            .bootstrap_servers(NOWHERE)
            .blobs(setting.blobs())
            .cache_dir(cache.path())
            .serve_stale(serve_stale)
    };
    let served = away(true).start().await.expect("the cached version will do");
    assert!(served.is_ready());
    assert_eq!(contents(&served.view()), setting.model);
    assert!(served.view().version() >= version);
    assert!(served.status().readable.stale, "it says that it may be old");

    let strict = away(false).spawn().expect("it starts");
    wait_until_async("the cached version is readable", LONG, || {
        std::future::ready(match strict.view().records() {
            100 => Ok(()),
            records => Err(format!("{records} records")),
        })
    })
    .await;
    assert!(!strict.is_ready(), "a version that Kafka has not confirmed is not what was asked for");
    for consumer in [served, strict] {
        consumer.shutdown().await.expect("it stops");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_without_kafka_waits_says_so_and_stops_when_told() {
    let setting = Setting::new("nowhere", 1, SCHEMA);
    let producer = Producer::builder(setting.dataset())
        .bootstrap_servers(NOWHERE)
        .source("orders")
        .schema(SCHEMA)
        .data_dir(setting.data_dir())
        .blobs(setting.blobs())
        .start()
        .await
        .expect("Kafka need not be there yet");
    wait_until_async("it says that Kafka is away", LONG, || {
        std::future::ready(match producer.status().error {
            Some(error) => Ok(error),
            None => Err("no error yet"),
        })
    })
    .await;
    let farewell = producer.shutdown().await.expect("it stops");
    assert_eq!(farewell.version, None);
}
