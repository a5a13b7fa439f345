//! The host over fronts, and over a consumer whose Kafka is away.

use super::*;
use crate::blob::Store;
use crate::clock::Entropy;
use crate::kafka;
use crate::telemetry::ConsumerMetrics;
use crate::view;

fn options(timeout: Duration) -> Options {
    Options {
        graceful_shutdown_timeout: timeout,
        health_check_interval: Duration::from_secs(30),
        clock: Clock::system(),
    }
}

async fn host(timeout: Duration) -> Host {
    Host::start(Vec::new(), options(timeout)).await.unwrap()
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_front_that_ends_by_itself_ends_the_process() {
    let mut host = host(LONG).await;
    host.front("HTTP", async |_| Err(Error::new(ErrorKind::Unavailable, "the socket broke")));
    let end = host.next_end().await;
    assert_eq!((end.label.to_string().as_str(), end.meaning), ("HTTP", Meaning::ProcessEnds));
    assert_eq!(end.error.chain(), "the socket broke");
    assert!(host.shutdown().await.is_clean(), "what has been reported is not reported again");
}

#[tokio::test]
async fn a_panic_is_an_end_with_its_message() {
    let mut host = host(LONG).await;
    host.front("HTTP", async |_| panic!("no answer to this"));
    let end = host.next_end().await;
    assert_eq!(end.error.kind(), ErrorKind::Internal);
    assert!(end.error.chain().contains("no answer to this"), "{}", end.error.chain());
}

#[tokio::test]
async fn a_stop_waits_for_what_finishes() {
    let mut host = host(LONG).await;
    let directory = host.directory().clone();
    host.front("HTTP", async move |stop| {
        stop.cancelled().await;
        assert!(!directory.not_ready().is_empty(), "nothing is ready before the first front is stopped");
        Ok(())
    });
    let goodbye = host.shutdown().await;
    assert!(goodbye.is_clean(), "{goodbye}");
}

#[tokio::test]
async fn what_does_not_finish_is_cut_off_at_the_deadline_and_named() {
    let mut host = host(Duration::from_millis(50)).await;
    host.front("HTTP", |_| std::future::pending());
    let goodbye = host.shutdown().await;
    assert_eq!(goodbye.to_string(), "HTTP was cut off with answers under way");
    let error = goodbye.into_result().unwrap_err();
    assert!(error.to_string().contains("graceful_shutdown_timeout"), "{error}");
}

#[test]
fn the_last_of_a_kind_takes_the_process_with_it() {
    assert_eq!(Task::Producer.meaning(1), Meaning::OthersLiveOn);
    assert_eq!(Task::Producer.meaning(0), Meaning::ProcessEnds);
    assert_eq!(Task::Consumer.meaning(0), Meaning::ProcessEnds);
    assert_eq!(Task::Watch.meaning(0), Meaning::OthersLiveOn);
}

/// A consumer whose Kafka is away: nobody listens on port 1.
fn away(dir: &std::path::Path, name: &str) -> consumer::Options {
    consumer::Options {
        dataset: name.into(),
        kafka: kafka::Options { bootstrap_servers: "127.0.0.1:1".into(), ..kafka::Options::default() },
        announcements: format!("{name}.announcements"),
        control: format!("{name}.control"),
        reader: "here".into(),
        fixed: None,
        guards: consumer::Guards::default(),
        store: Store::open("memory://").unwrap(),
        cache_dir: dir.join("cache"),
        cache_bytes: 1 << 20,
        poll_interval: Duration::from_millis(10),
        max_backoff: Duration::from_millis(100),
        look_every: crate::consumer::options::DEFAULT_LOOK_EVERY,
        control_wait: crate::consumer::options::DEFAULT_CONTROL_WAIT,
        max_errors_per_minute: 10,
        freshness_slo: None,
        hold: std::sync::Arc::default(),
        listeners: Vec::new(),
        listener_dir: dir.join("listeners"),
        dead_letters: format!("{name}.dlq"),
        memory_limit: 1 << 20,
        ready_when_any: false,
        serve_stale: false,
        clock: Clock::system(),
        entropy: Entropy::seeded(1),
        metrics: ConsumerMetrics::detached(),
    }
}

#[test]
fn without_kafka_a_consumer_starts_waits_and_stops() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let consumer = away(dir.path(), "products");
    runtime.block_on(async {
        let part = Part { name: "products".into(), producer: None, schema: None, consumer: Some(consumer) };
        let host = Host::start(vec![part], options(LONG)).await.unwrap();
        let why = host.directory().not_ready();
        assert!(why.iter().any(|why| why.starts_with("products: Kafka is not reached")), "{why:?}");
        let (status, health) = host.directory().health();
        assert_eq!((status, health.len()), (Status::Degraded, 1), "{health:?}");
        let goodbye = host.shutdown().await;
        assert!(goodbye.is_clean(), "{goodbye}");
    });
    // librdkafka still waits for its broker on a thread; nobody waits for it.
    runtime.shutdown_background();
}

/// What one of them reads, no other one evicts.
#[test]
fn datasets_of_one_process_share_the_cache_of_their_directory() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    runtime.block_on(async {
        let (mut caches, mut consumers) = (Caches::new(), Vec::new());
        for (dir, name) in [(&dir, "products"), (&dir, "orders"), (&elsewhere, "others")] {
            let consumer = Some(away(dir.path(), name));
            let part = Part { name: name.into(), producer: None, schema: None, consumer };
            let started = start(part, &mut caches).await;
            consumers.push(started.unwrap().consumer.unwrap());
        }
        assert_eq!(caches.len(), 2, "one for each directory");
        let identity = view::Identity {
            dataset: "products".into(),
            topic_id: crate::TopicId([1; 16]),
            shard: crate::Shard(0),
            shards: 1,
        };
        let name = view::FileName {
            kind: crate::blob::name::Kind::Delta,
            version: crate::Version(1),
            epoch: 1,
            checksum: crate::version::Checksum::of(b"x"),
            bytes: 1,
        };
        let held = consumers[0].cache().put(&identity, &name, b"x").unwrap();
        assert_eq!(consumers[1].cache().used(), consumers[0].cache().used());
        consumers[1].cache().relieve().unwrap();
        assert!(held.path().exists(), "the first one holds it");
        drop(held);
        consumers[1].cache().relieve().unwrap();
        assert_eq!(consumers[0].cache().used(), 0);
        for consumer in consumers {
            consumer.shutdown().await.unwrap();
        }
    });
    runtime.shutdown_background();
}

/// A restart would take the version away that is still served, and bring nothing back.
#[test]
fn what_is_away_degrades_however_often_it_is_tried() {
    let metrics = ConsumerMetrics::detached();
    let identity = view::Identity {
        dataset: "products".into(),
        topic_id: crate::record::TopicId([1; 16]),
        shard: crate::version::Shard(0),
        shards: 1,
    };
    let view = view::View::empty(identity, std::sync::Arc::new(crate::schema::Schema::raw()));
    let side = ReadingSide::new(consumer::Reader::of(view), metrics.clone(), 10);
    let directory = Directory::new([Dataset::new("products", Some(side), None)], Clock::system());
    directory.health();
    for stage in ["kafka", "store", "disk"] {
        metrics.errors_total.with(&[stage]).inc_by(1_000);
    }
    let (status, health) = directory.health();
    let errors: Vec<_> =
        health.iter().map(|health| (health.error_count, health.errors_last_minute)).collect();
    assert_eq!(
        (status, errors),
        (Status::Degraded, vec![(3_000, 0)]),
        "nothing is readable yet, and no worse"
    );
    metrics.errors_total.with(&["follow"]).inc_by(11);
    assert_eq!(directory.health().0, Status::Unhealthy);
}
