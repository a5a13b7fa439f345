//! A takeover that is told to end: it is waited for, and that does not take long. And one that loses the race for its
//! epoch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use stillwell::clock::Entropy;
use stillwell::format::announcement::{EpochRecord, Message, key as announcement_key};
use stillwell::version::{Life, Shard};
use stillwell_tests::protocol::{End, key};
use stillwell_tests::{Record, Setting, Tap, Then, scratch, wait_until};

use crate::SCHEMA;
use crate::history::{DEADLINE, History, announcements, good};

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
    // Who does not look waits for an answer, half a minute.
    let stopped = tokio::time::timeout(Duration::from_secs(28), producer.shutdown()).await;
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

/// Fencing keeps two lives of one transactional id apart, but for what is under way when one of them is fenced: the
/// epoch record of the other may come in between this one's look at the topic and its own record.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_lives_with_one_epoch_the_first_wins_and_the_other_starts_again() {
    const RACES: u64 = 2;
    let mut setting = Setting::new("race", 1, SCHEMA);
    let cache = scratch();
    let tap = Tap::on(&setting.bootstrap);
    let versions = announcements(&setting);
    let won = Arc::new(std::sync::Mutex::new(Vec::new()));
    tap.watch({
        let (won, dataset) = (Arc::clone(&won), setting.dataset().to_owned());
        move |request| {
            let name = versions.name().as_bytes();
            let writes = request.frame.windows(name.len()).any(|window| window == name);
            let mut won = won.lock().expect("no hook panics");
            if request.key == key::PRODUCE && writes && (won.len() as u64) < RACES {
                // Before the record of our life, which says the same epoch.
                let life = Life { epoch: won.len() as u64 + 1, writer: Entropy::system().uuid() };
                let record = EpochRecord {
                    dataset: dataset.clone(),
                    shard: Shard(0),
                    shards: 1,
                    life,
                    at: 1_700_000_000_000,
                };
                versions.produce([Record {
                    key: Some(announcement_key(&dataset, Shard(0)).into_bytes()),
                    value: Some(Message::Epoch(record).encode()),
                    partition: Some(0),
                    ..Record::default()
                }]);
                won.push(life);
            }
            Then::Forward
        }
    });
    let record = good(&mut setting, "after the races", 1.0);
    setting.topic.produce([record]);
    let producer = setting.builder().bootstrap_servers(tap.bootstrap()).start().await.expect("it starts");
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    assert_eq!(producer.status().failures, 0, "a lost race costs no life: {:?}", producer.status());
    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
    let history = History::of(&setting);
    history.assert_gapless().assert_no_branch();
    let won = won.lock().expect("no hook panics").clone();
    assert_eq!(won.len() as u64, RACES, "both were run");
    assert_eq!(history.lives[..won.len()], won[..], "the first of an epoch wins");
    assert_eq!(history.lives.len(), won.len() + 1);
    for announcement in &history.valid {
        assert_eq!(announcement.life.epoch, RACES + 1);
    }
}
