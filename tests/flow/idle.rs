//! Nothing is announced: the broker is asked rarely, and a version that comes then is readable as soon as any other. Or it
//! fails: then too.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use stillwell::clock::Clock;
use stillwell::producer::Batching;
use stillwell::retry::Circuit;
use stillwell::{Consumer, ConsumerBuilder};
use stillwell_tests::{
    Broker, Running, Tap, Then, mostly_within, protocol, scratch, wait_until, wait_until_async,
};

use crate::instance::{Instance, LONG};
use crate::line::SCHEMA;
use crate::setting::Setting;

const MAX_BACKOFF: Duration = Duration::from_millis(1_500);

fn product(setting: &mut Setting, price: f64) {
    let record = setting.upsert("P-1", json!({"id": "P-1", "price": price, "stock": null}));
    setting.topic.produce([record]);
}

/// A reader whose requests go through `tap`, not started yet.
fn behind(tap: &Tap, setting: &Setting, cache: &Path) -> ConsumerBuilder {
    Consumer::builder(setting.dataset())
        .bootstrap_servers(tap.bootstrap())
        .blobs(setting.blobs())
        .cache_dir(cache)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_reader_fetches_once_in_max_backoff_and_wakes_at_once() {
    let mut setting = Setting::new("idle", 1, SCHEMA);
    product(&mut setting, 1.0);
    // Announced soon after it is produced.
    let soon = Batching { batch_timeout: Duration::from_millis(20), ..Batching::default() };
    let producer = setting.builder().batching(soon).start().await.expect("it starts");
    let tap = Tap::on(Broker::shared().bootstrap());
    let fetches = Arc::new(Mutex::new(Vec::new()));
    let seen = fetches.clone();
    tap.watch(move |request| {
        if request.key == protocol::key::FETCH {
            let fetch = (Clock::system().now(), request.frame.clone());
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(fetch);
        }
        Then::Forward
    });
    let cache = scratch();
    let reader = behind(&tap, &setting, cache.path()).max_backoff(MAX_BACKOFF);
    let consumer = reader.start().await.expect("it starts");
    setting.settled(&consumer).await;

    // Some fetches of the start are under way; then one after another. Those of the control topic, one in a long while, are
    // another client's. Newer forms of a fetch have the topic's id in the place of its name.
    let (id, name) = (consumer.view().identity().topic_id, format!("{}.announcements", setting.dataset()));
    let names = |frame: &[u8], part: &[u8]| frame.windows(part.len()).any(|there| there == part);
    let of_tail = |frame: &[u8]| names(frame, &id.0) || names(frame, name.as_bytes());
    let gap = wait_until_async("the reader idles", LONG, || {
        let fetches = fetches.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let fetches: Vec<_> = fetches.iter().filter(|(_, frame)| of_tail(frame)).map(|(at, _)| *at).collect();
        let gaps: Vec<_> = fetches.windows(2).map(|two| two[1] - two[0]).collect();
        std::future::ready(match gaps.as_slice() {
            [.., a, b, c, d] if [a, b, c, d].iter().all(|gap| **gap >= MAX_BACKOFF.mul_f64(0.9)) => {
                Ok(**[a, b, c, d].iter().min().expect("four"))
            }
            gaps => Err(format!("{gaps:?}")),
        })
    })
    .await;
    println!("idle: at least {gap:?} from a fetch to the next");

    // Each comes at the beginning of a wait, which has most of MAX_BACKOFF still to go.
    let (mut readable, mut price) = (consumer.watch(), 1.0);
    let took = mostly_within("from announced to readable", MAX_BACKOFF / 2, async || {
        let before = consumer.view().version();
        price += 1.0;
        product(&mut setting, price);
        let held = tokio::time::timeout(LONG, readable.wait_for(|readable| readable.version > before)).await;
        let announced = held.expect("it is readable").expect("it runs").announced_at_ms;
        Duration::from_millis((Clock::system().wall_ms() - announced).max(0) as u64)
    })
    .await;
    println!("idle: {took:?} from announced to readable");
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("it stops");
}

/// Longer than anything here may take: a version that is readable before has ended the wait.
const VERY_LONG: Duration = Duration::from_secs(280);

#[tokio::test(flavor = "multi_thread")]
async fn after_an_idle_hour_an_announcement_ends_the_wait_at_once() {
    let mut setting = Setting::new("idle-hour", 1, SCHEMA);
    product(&mut setting, 1.0);
    let producer = setting.producer().await;
    let tap = Tap::on(Broker::shared().bootstrap());
    let asked: Arc<Mutex<(Option<Instant>, usize)>> = Arc::default();
    let seen = asked.clone();
    tap.watch(move |request| {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match request.key == protocol::key::FETCH {
            true => seen.0 = Some(Clock::system().now()),
            false => seen.1 += 1,
        }
        Then::Forward
    });
    let asked = || *asked.lock().unwrap_or_else(PoisonError::into_inner);
    let clock = Clock::manual(Clock::system().wall_ms());
    let cache = scratch();
    let reader = behind(&tap, &setting, cache.path()).max_backoff(VERY_LONG).clock(clock.clone());
    let consumer = reader.start().await.expect("it starts");
    setting.settled(&consumer).await;
    wait_until_async("the broker is not asked any more", LONG, || {
        let since = asked().0.map(|at| at.elapsed());
        std::future::ready(match since {
            Some(since) if since > Duration::from_secs(4) => Ok(()),
            since => Err(format!("{since:?}")),
        })
    })
    .await;
    let before = asked();
    clock.advance(Duration::from_secs(3_600));
    wait_until_async("the hour is noticed: the topic is looked at", LONG, || {
        let now = asked().1;
        std::future::ready(if now > before.1 { Ok(()) } else { Err(now) })
    })
    .await;
    product(&mut setting, 2.0);
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("it stops");
}

/// The source is assigned when a life begins, and read once the start of its partitions is announced. Before that its client
/// reports all the same.
#[test]
fn a_source_that_is_not_to_be_read_yet_is_looked_after() {
    let setting = Setting::new("not-yet", 1, SCHEMA);
    let instance = Instance::new(&setting, "one");
    instance.append("[producer.monitoring]\nmetrics_interval = \"100ms\"\n");
    let mut command = instance.command_to_run(&["--role", "producer"]);
    let process = Running::start(command.env("FAILPOINTS", "store.put=return(error)"));
    let requests = format!("stillwell_kafka_requests_total{{client=\"{}/0/source\"}}", setting.dataset());
    wait_until("the source's statistics are shown", LONG, || match instance.metric(&requests) {
        Some(requests) if requests > 0.0 => Ok(()),
        requests => Err(format!("{requests:?}")),
    });
    assert_eq!(instance.metric("stillwell_versions_total"), Some(0.0), "nothing is announced");
    process.stop(LONG);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_back_off_behind_the_breaker_and_the_last_version_stays() {
    let mut setting = Setting::new("broken-off", 1, SCHEMA);
    product(&mut setting, 1.0);
    let producer = setting.producer().await;
    let cache = scratch();
    let consumer = Consumer::builder(setting.dataset())
        .bootstrap_servers(&setting.bootstrap)
        .blobs(setting.blobs())
        .cache_dir(cache.path())
        .max_backoff(Duration::from_millis(200))
        .look_every(Duration::from_millis(200))
        .start()
        .await
        .expect("it starts");
    setting.settled(&consumer).await;
    producer.shutdown().await.expect("it stops");
    setting.topic.beside(&format!("{}.announcements", setting.dataset())).delete();
    let tail = wait_until_async("the breaker opens", LONG, || {
        let tail = consumer.status().tail;
        std::future::ready(if tail.circuit == Circuit::Closed { Err(format!("{tail:?}")) } else { Ok(tail) })
    })
    .await;
    assert_eq!(tail.reachable, Some(false));
    assert!(tail.error.as_deref().is_some_and(|error| error.contains("was deleted")), "{tail:?}");
    setting.settled(&consumer).await;
    let readable = consumer.status().readable;
    assert!(consumer.view().is_stale() && readable.stale, "{readable:?}");
    assert_eq!(readable.announced_at_ms, consumer.view().announced_at_ms(), "how old it is can be told");
    assert!(readable.announced_at_ms > 0, "{readable:?}");
    assert!(consumer.reader().not_ready().is_some_and(|why| why.contains("was deleted")));
    consumer.shutdown().await.expect("it stops");
}
