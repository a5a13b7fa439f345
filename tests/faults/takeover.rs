//! A takeover that is told to end: it is waited for, and that does not take long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use stillwell_tests::protocol::{End, key};
use stillwell_tests::{Setting, Tap, Then, scratch, wait_until};

use crate::SCHEMA;
use crate::history::{DEADLINE, History, good};

/// Starts a producer, loses what `loses` says, and stops it once that has happened.
async fn stopped_while(name: &str, loses: fn(i16, bool) -> bool) {
    let mut setting = Setting::new(name, 1, SCHEMA);
    let cache = scratch();
    let tap = Tap::on(&setting.bootstrap);
    let lost = Arc::new(AtomicBool::new(false));
    tap.watch({
        let lost = Arc::clone(&lost);
        move |request| {
            if !loses(request.key, End::of(request).is_some()) {
                return Then::Forward;
            }
            lost.store(true, Ordering::Release);
            Then::Lose
        }
    });
    let producer = setting.builder().bootstrap_servers(tap.bootstrap()).start().await.expect("it starts");
    wait_until("the takeover stands still", DEADLINE, || {
        if lost.load(Ordering::Acquire) { Ok(()) } else { Err("nothing is lost yet") }
    });
    let stopped = tokio::time::timeout(Duration::from_secs(5), producer.shutdown()).await;
    stopped.expect("it looks at its token").expect("it stops well");
    drop(tap);

    // What it left under way is nobody's obstacle.
    let record = good(&mut setting, "next", 1.0);
    setting.topic.produce([record]);
    let producer = setting.producer().await;
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
    let history = History::of(&setting);
    history.assert_gapless().assert_no_branch();
    assert_eq!(history.lives.len(), 1, "what was stopped never began: {:?}", history.lives);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_while_it_registers() {
    stopped_while("stop-init", |asked, _| asked == key::INIT_PRODUCER_ID).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_while_it_commits_its_epoch_record() {
    stopped_while("stop-epoch", |_, ends| ends).await;
}
