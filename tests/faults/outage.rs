//! The blob store is away: nothing is lost, nothing is given up, no life ends, the store is left alone, and all goes on
//! by itself when it is back.

use std::time::Duration;

use stillwell::Producer;
use stillwell::blob::Store;
use stillwell::blob::faulty::{Control, Faults, Faulty};
use stillwell::clock::{Clock, Entropy};
use stillwell::producer::circuit::Report;
use stillwell::producer::{Batching, Reliability};
use stillwell::retry::Circuit;
use stillwell_tests::{Setting, scratch, wait_until_async};

use crate::SCHEMA;
use crate::history::{DEADLINE, History, announced, good};

/// How long the breaker stays open here.
const RESET: Duration = Duration::from_secs(2);

/// A producer whose store takes nothing while `Control` is on.
async fn producer(setting: &Setting) -> (Producer, Control) {
    let store = Store::open(&setting.blobs()).expect("it opens");
    let faults = Faults { put_fails: 1.0, other_fails: 1.0, ..Faults::default() };
    let (store, control) = Faulty::wrap(store, faults, Entropy::seeded(5));
    control.set(false);
    let reliability = Reliability {
        max_retry_attempts: 1,
        retry_backoff: Duration::from_millis(20),
        circuit_breaker_threshold: 3,
        circuit_breaker_reset: RESET,
        ..Reliability::default()
    };
    let batching = Batching { batch_timeout: Duration::from_millis(20), ..Batching::default() };
    let builder = setting.builder().store(store).reliability(reliability).batching(batching);
    (builder.start().await.expect("it starts"), control)
}

fn store(producer: &Producer) -> Report {
    producer.circuits().store.report()
}

async fn until(producer: &Producer, state: Circuit) {
    wait_until_async(&format!("the store's circuit is {state:?}"), DEADLINE, || {
        let report = store(producer);
        std::future::ready(if report.state == state { Ok(()) } else { Err(format!("{report:?}")) })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_stops_versions_and_nothing_else() {
    let mut setting = Setting::new("outage", 1, SCHEMA);
    let cache = scratch();
    let (producer, control) = producer(&setting).await;
    let record = good(&mut setting, "before", 1.0);
    setting.topic.produce([record]);
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;

    control.set(true);
    let before = control.injected();
    for half in ["before it opens", "while it is open"] {
        let records: Vec<_> =
            (0..100).map(|n| good(&mut setting, &format!("{half} {n}"), f64::from(n))).collect();
        setting.topic.produce(records);
        until(&producer, Circuit::Open).await;
    }
    let error = store(&producer).error.expect("it says why");
    assert!(error.contains("an injected failure"), "{error}");
    // Some attempts of each upload under way until it opens; then one for each time that it lets one through.
    let clock = Clock::system();
    // Before it is counted: whatever holds up this thread then, probes between are not taken for quicker ones.
    let began = clock.now();
    let at_opening = control.injected() - before;
    assert!(at_opening <= 5 * 2 * 3, "{at_opening} attempts");
    wait_until_async("three probes have failed", DEADLINE, || {
        let probes = control.injected() - before - at_opening;
        std::future::ready(if probes >= 3 { Ok(()) } else { Err(probes) })
    })
    .await;
    let took = clock.now() - began;
    assert!(took > RESET, "three probes in {took:?}: between two of them nothing is tried");
    let status = producer.status();
    assert_eq!(status.failures, 0, "no life ends by it: {status:?}");

    control.set(false);
    let back = clock.now();
    setting.settled(&consumer).await;
    let took = clock.now() - back;
    // Soon, which on a machine that is not shared is the next probe: the breaker's time does not grow with each of them.
    assert!(took < RESET * 40, "it goes on by itself soon after the store's return, not after {took:?}");
    until(&producer, Circuit::Closed).await;
    assert_eq!(store(&producer).error, None);
    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
    let history = History::of(&setting);
    history.assert_gapless().assert_no_branch();
    assert_eq!(history.lives.len(), 1, "one life for all of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_the_store_is_away_waits_for_nobody_and_loses_nothing() {
    let mut setting = Setting::new("stop-away", 1, SCHEMA);
    let cache = scratch();
    let (first, control) = producer(&setting).await;
    announced(&first, 1).await;
    control.set(true);
    let records: Vec<_> = (0..10).map(|n| good(&mut setting, &format!("left {n}"), f64::from(n))).collect();
    setting.topic.produce(records);
    until(&first, Circuit::Open).await;
    // Who waits for the store waits for as long as a stop may take, half a minute.
    let farewell = tokio::time::timeout(Duration::from_secs(28), first.shutdown()).await;
    let farewell = farewell.expect("it stops at once").expect("it stops well");
    assert!(farewell.left_in_log > 0, "{farewell}");

    let (second, _) = producer(&setting).await;
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    second.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
    History::of(&setting).assert_gapless().assert_no_branch();
}
