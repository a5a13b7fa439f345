//! More than can be announced: the source pauses and nobody in the group sees it, the pace changes while it runs, a
//! full disk passes, and what a shed strategy loses is counted to the record.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stillwell::Producer;
use stillwell::blob::Store;
use stillwell::blob::faulty::{Faults, Faulty};
use stillwell::clock::{Clock, Entropy};
use stillwell::format::announcement::Message;
use stillwell::producer::own::State;
use stillwell::producer::{Batching, Pacing, Performance, Shed, Spill};
use stillwell::telemetry::ProducerMetrics;
use stillwell_tests::{Topic, Volume, scratch, wait_until, wait_until_async};

use crate::line::SCHEMA;
use crate::setting::Setting;

const LONG: Duration = Duration::from_secs(180);
/// The group's patience with a member that does not poll, and with one that says nothing: no shorter than a stall of a
/// loaded machine's broker, or that would be taken for the rebalance that must not be.
const PATIENCE_MS: &str = "12000";
const UNLIMITED: Pacing = Pacing { max_records_per_second: 0, max_bytes_per_second: 0, pressure_high: 0.8 };

/// Records of half a kilobyte, each with a key of its own.
fn half_kilobytes(setting: &mut Setting, numbers: std::ops::Range<i32>) -> Vec<stillwell_tests::Record> {
    let padding = "x".repeat(450);
    numbers
        .map(|i| {
            let value = json!({"id": format!("{i}{padding}"), "price": f64::from(i), "stock": i});
            setting.upsert(&format!("P-{i}"), value)
        })
        .collect()
}

/// A producer that hardly gets anything out, and holds little in memory, so that what comes stays in the log.
async fn slow(setting: &Setting, spill: Spill, records_per_second: u32) -> (Producer, Arc<ProducerMetrics>) {
    let metrics = ProducerMetrics::detached();
    let batching = Batching { max_batch_size: 100, max_pending_records: 100, ..Batching::default() };
    let producer = setting
        .builder()
        .kafka_property("max.poll.interval.ms", PATIENCE_MS)
        .kafka_property("session.timeout.ms", PATIENCE_MS)
        .batching(batching)
        .pacing(Pacing { max_records_per_second: records_per_second, ..UNLIMITED })
        .spill(spill)
        .metrics(metrics.clone())
        .start()
        .await
        .expect("the producer starts");
    (producer, metrics)
}

/// Lives that the announcement topic has seen.
fn epochs(setting: &Setting) -> usize {
    let topic = Topic::named(&format!("{}.announcements", setting.dataset()));
    let values = topic.read().into_iter().filter_map(|message| message.value);
    let decoded = values.map(|value| Message::decode(&value).expect("it is one of ours"));
    decoded.filter(|message| matches!(message, Message::Epoch(_))).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_paused_beyond_max_poll_interval_sees_no_rebalance_and_nothing_is_lost() {
    let mut setting = Setting::new("paused", 3, SCHEMA);
    let records = half_kilobytes(&mut setting, 0..20_000);
    setting.topic.produce(records);
    let spill = Spill { max_log_size: 3_000_000, shed: Shed::None };
    let (producer, metrics) = slow(&setting, spill, 20).await;

    // Longer than the group's patience with a member that does not poll.
    let clock = Clock::system();
    let mut since = None;
    wait_until_async("the source has been paused for fourteen seconds", LONG, || {
        let now = clock.now();
        let state = match metrics.source_paused.get() {
            0 => {
                assert!(since.is_none(), "it went on while the log was full");
                Err("not paused".to_owned())
            }
            _ if now - *since.get_or_insert(now) > Duration::from_secs(14) => Ok(()),
            _ => Err(format!("paused since {:?}", since.map(|since| now - since))),
        };
        std::future::ready(state)
    })
    .await;
    let status = producer.status();
    assert_eq!(status.state, Some(State::Running));
    assert_eq!((status.error, status.failures), (None, 0));
    let why = status.paused.expect("it says why");
    assert!(why.contains("max_log_size"), "{why}");
    let received = metrics.records_total.get();
    assert!((2_000..15_000).contains(&received), "{received} of 20,000 records were taken");
    assert!(metrics.spilled_records.get() > 1_000, "what was taken waits on disk");
    assert!(metrics.pressure.get() >= 0.6, "{}", metrics.pressure.get());
    assert_eq!(metrics.pace_records_per_second.get(), 20.0, "a full log does not slow what empties it");

    // While it runs: all of the rest at once.
    producer.set_pacing(UNLIMITED).expect("no limits are limits too");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    wait_until("the source goes on", LONG, || match producer.status().paused {
        None => Ok(()),
        Some(why) => Err(why),
    });
    assert_eq!(metrics.source_paused.get(), 0);
    assert_eq!(metrics.records_total.get(), 20_000, "each was taken once");
    assert_eq!(epochs(&setting), 1, "no partition was taken away, no life began anew");
    let farewell = producer.shutdown().await.expect("the producer stops");
    assert_eq!(farewell.left_in_log, 0, "{farewell}");
    consumer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_store_brings_the_pace_down_and_is_forgotten_when_it_is_quick_again() {
    let mut setting = Setting::new("slow-store", 1, SCHEMA);
    let records = half_kilobytes(&mut setting, 0..6_000);
    setting.topic.produce(records);
    let metrics = ProducerMetrics::detached();
    let store = Store::open(&setting.blobs()).expect("it opens");
    // Seven tenths of the time that a write may take: from half of it on it is full pressure, once it stays so.
    let faults = Faults { delay: Duration::from_millis(1_400), ..Faults::default() };
    let (store, slow) = Faulty::wrap(store, faults, Entropy::seeded(5));
    let producer = setting
        .builder()
        .store(store)
        .batching(Batching { max_batch_size: 100, ..Batching::default() })
        .performance(Performance { write_timeout: Duration::from_secs(2), ..Performance::default() })
        .metrics(metrics.clone())
        .start()
        .await
        .expect("the producer starts");
    let paced = wait_until_async("the pace comes down, step by step", LONG, || {
        let (pace, pressure) = (metrics.pace_records_per_second.get(), metrics.pressure.get());
        let slowed = pace > 0.0 && pace < 500.0 && pressure >= 0.8;
        std::future::ready(if slowed { Ok(pace) } else { Err(format!("{pace} at {pressure}")) })
    })
    .await;
    assert!(paced >= 1.0, "{paced}");
    assert_eq!(metrics.source_paused.get(), 0, "what goes out slowly does not keep anything from coming in");

    slow.set(false);
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    wait_until_async("nothing is held back any more", LONG, || {
        let pace = metrics.pace_records_per_second.get();
        std::future::ready(if pace == 0.0 { Ok(()) } else { Err(format!("{pace}")) })
    })
    .await;
    assert_eq!((producer.status().failures, epochs(&setting)), (0, 1));
    producer.shutdown().await.expect("the producer stops");
    consumer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_shed_strategy_loses_and_what_is_published_are_all_there_was() {
    const ALL: i32 = 20_000;
    for shed in [Shed::DropOldest, Shed::DropNewest, Shed::Sample, Shed::DeadLetter] {
        let mut setting = Setting::new(shed.label(), 1, SCHEMA);
        let records = half_kilobytes(&mut setting, 0..ALL);
        setting.topic.produce(records);
        let (producer, metrics) = slow(&setting, Spill { max_log_size: 6_000_000, shed }, 50).await;
        wait_until_async("everything was taken from Kafka", LONG, || {
            std::future::ready(match metrics.records_total.get() {
                taken if taken == ALL as u64 => Ok(()),
                taken => Err(format!("{taken} records, {:?}", producer.status())),
            })
        })
        .await;
        producer.set_pacing(UNLIMITED).expect("no limits are limits too");
        let mut announced = producer.announced();
        let all = announced.wait_for(|announced| {
            announced.as_ref().is_some_and(|last| {
                last.positions.iter().map(|position| position.offset).sum::<i64>() >= i64::from(ALL)
            })
        });
        let last = tokio::time::timeout(LONG, all).await.expect("all is accounted for in time");
        let view = last.expect("it runs").as_ref().expect("it was just looked at").view.clone();
        let farewell = producer.shutdown().await.expect("the producer stops");
        assert_eq!(farewell.positions.iter().map(|position| position.offset).sum::<i64>(), i64::from(ALL));

        let lost = metrics.shed_records_total.with(&[shed.label()]).get();
        assert_eq!(view.records() + lost, ALL as u64, "{shed}: published and shed are all, exactly");
        assert!(lost > 5_000, "{shed}: {lost}");
        let has = |i: i32| view.get(format!("P-{i}")).expect("it reads").is_some();
        match shed {
            Shed::DropOldest => assert!(has(ALL - 1), "the newest stay"),
            Shed::DropNewest => assert!((0..5_000).all(has), "the oldest stay"),
            Shed::Sample => assert!((1_000..ALL).filter(|i| has(*i)).count() > 100, "some of all stay"),
            _ => letters_hold_what_the_view_does_not(&setting, &view),
        }
    }
}

fn letters_hold_what_the_view_does_not(setting: &Setting, view: &stillwell::View) {
    let letters = Topic::named(&format!("{}.dlq", setting.dataset())).read();
    let mut keys = BTreeSet::new();
    for letter in &letters {
        assert_eq!(letter.header("__connect.errors.exception.class.name"), Some("stillwell.Shed"));
        let key = letter.key.clone().expect("it has its key");
        let value: Value = serde_json::from_slice(letter.value.as_deref().expect("it has its value"))
            .expect("the value can be replayed");
        assert_eq!(setting.model.get(&key), Some(&value));
        assert!(view.get(&key).expect("it reads").is_none(), "published, or a letter, never both");
        assert!(keys.insert(key), "one letter each");
    }
    assert_eq!(letters.len() as u64 + view.records(), setting.model.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_pauses_the_source_says_so_and_passes() {
    let mut setting = Setting::new("full", 1, SCHEMA);
    let log = setting.data_dir().join("log");
    std::fs::create_dir_all(&log).expect("the folder can be made");
    let Some(volume) = Volume::mount(&log, 256) else {
        eprintln!("not allowed to mount: the log's own tests cover what can be without");
        return;
    };
    let records = half_kilobytes(&mut setting, 0..1_000);
    setting.topic.produce(records);
    let (producer, metrics) = slow(&setting, Spill::default(), 0).await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;

    volume.fill();
    wait_until("the source is paused", LONG, || match producer.status().paused {
        Some(why) if why.contains("disk") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let records = half_kilobytes(&mut setting, 500..3_000);
    setting.topic.produce(records);
    let clock = Clock::system();
    let began = clock.now();
    wait_until("it has stayed so for three seconds", LONG, || {
        let taken = metrics.records_total.get();
        assert_eq!(taken, 1_000, "nothing is taken while there is no room");
        if clock.now() - began > Duration::from_secs(3) { Ok(()) } else { Err(format!("{taken} taken")) }
    });
    volume.make_room();
    setting.settled(&consumer).await;
    wait_until("all is well again", LONG, || {
        let status = producer.status();
        if status.paused.is_none() && status.error.is_none() { Ok(()) } else { Err(format!("{status:?}")) }
    });
    producer.shutdown().await.expect("the producer stops");
    consumer.shutdown().await.expect("it stops");
}
