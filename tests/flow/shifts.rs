//! The ground shifts under a dataset: topics grow, or are made anew, while it runs.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use stillwell::blob::Store;
use stillwell::blob::faulty::{Faults, Faulty};
use stillwell::clock::{Clock, Entropy};
use stillwell::producer::announce::Announced;
use stillwell::{Consumer, Producer};
use stillwell_tests::{Broker, Record, Topic, bootstrap, scratch, wait_until, wait_until_async};

use crate::instance::Instance;
use crate::line::SCHEMA;
use crate::setting::Setting;

const DEADLINE: Duration = Duration::from_secs(180);
/// How often topics are looked at, in these tests.
const OFTEN: Duration = Duration::from_millis(200);
/// What an announcement topic must be set to.
const KEPT: &[(&str, &str)] =
    &[("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")];

fn products(setting: &mut Setting, numbers: Range<u32>) -> Vec<Record> {
    numbers
        .map(|n| {
            let id = format!("P-{n}");
            setting.upsert(&id, json!({"id": id, "price": f64::from(n), "stock": n}))
        })
        .collect()
}

fn produce(setting: &mut Setting, numbers: Range<u32>) {
    let records = products(setting, numbers);
    setting.topic.produce(records);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_added_while_it_runs_are_taken_in() {
    let mut setting = Setting::new("grows", 1, SCHEMA);
    produce(&mut setting, 0..100);
    let producer = setting.builder().look_every(OFTEN).start().await.expect("the producer starts");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;

    setting.topic.grow(3);
    let mut records = products(&mut setting, 100..160);
    for (n, record) in records.iter_mut().enumerate() {
        record.partition = Some(1 + n as i32 % 2);
    }
    setting.topic.produce(records);
    setting.settled(&consumer).await;
    let farewell = producer.shutdown().await.expect("the producer stops");
    let partitions: Vec<i32> = farewell.positions.iter().map(|position| position.source.partition).collect();
    assert_eq!(partitions, [0, 1, 2]);
    consumer.shutdown().await.expect("it stops");
}

/// The producer says an error that has all of `words` in it.
async fn says(producer: &Producer, words: &[&str]) -> String {
    wait_until_async(&format!("the producer says {words:?}"), DEADLINE, || {
        let error = producer.status().error.unwrap_or_default();
        std::future::ready(if words.iter().all(|word| error.contains(word)) { Ok(error) } else { Err(error) })
    })
    .await
}

/// The consumer's tail says so, and the last version stays readable, marked stale.
async fn doubts(consumer: &Consumer, setting: &Setting) {
    wait_until_async("the consumer says that the topic was made anew", DEADLINE, || {
        let status = consumer.status();
        let error = status.tail.error.unwrap_or_default();
        std::future::ready(match status.readable.stale {
            true if error.contains("created again") && consumer.view().is_stale() => Ok(()),
            stale => Err(format!("stale: {stale}, error: {error:?}")),
        })
    })
    .await;
    setting.settled(consumer).await;
    assert!(!consumer.is_ready(), "what nothing confirms is not what was asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announcement_topic_that_is_made_anew_is_an_error_on_both_sides_until_somebody_decides() {
    let mut setting = Setting::new("anew", 1, SCHEMA);
    produce(&mut setting, 0..100);
    let producer = setting.builder().look_every(OFTEN).start().await.expect("the producer starts");
    let (kept, fresh) = (scratch(), scratch());
    let consumer = Consumer::builder(setting.dataset())
        .bootstrap_servers(bootstrap())
        .blobs(setting.blobs())
        .cache_dir(kept.path())
        .look_every(OFTEN)
        .start()
        .await
        .expect("the consumer starts");
    setting.settled(&consumer).await;

    let announcements = format!("{}.announcements", setting.dataset());
    Topic::named(&announcements).delete();
    Topic::create_on(Broker::shared(), &announcements, 1, KEPT);
    says(&producer, &[&announcements, "was deleted and created again", "remove"]).await;
    doubts(&consumer, &setting).await;
    let _ = producer.shutdown().await;

    // The next process finds a log that was written for the old one, and writes nothing into the new one.
    let before = Topic::named(&announcements).read().len();
    let producer = setting.producer().await;
    let error = says(&producer, &[&announcements, "was deleted and created again", "remove"]).await;
    assert_eq!(Topic::named(&announcements).read().len(), before, "no epoch record either");
    producer.shutdown().await.expect("it stops");

    // The remedy that it names.
    let log = setting.data_dir().join("log").join(setting.dataset());
    assert!(error.contains(&*log.to_string_lossy()), "{error}");
    std::fs::remove_dir_all(log).expect("the log is removed");
    let producer = setting.producer().await;
    let second = setting.consumer(fresh.path()).await;
    setting.settled(&second).await;
    assert!(
        consumer.view().is_stale(),
        "a process that holds a version of the old history is not moved over"
    );
    consumer.shutdown().await.expect("it stops");
    let consumer = setting.consumer(kept.path()).await;
    setting.settled(&consumer).await;
    assert_eq!(consumer.view().identity().topic_id, second.view().identity().topic_id);
    producer.shutdown().await.expect("the producer stops");
    for consumer in [consumer, second] {
        consumer.shutdown().await.expect("it stops");
    }
}

/// A source is made anew while it is read: its offsets mean other records then. Nothing of it may be taken for what follows
/// the old one, and nothing is skipped; the way out is a rebuild, of this process too.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_made_anew_while_it_is_read_is_an_error_until_it_is_rebuilt() {
    let mut setting = Setting::new("source-anew", 1, SCHEMA);
    produce(&mut setting, 0..100);
    let producer = setting.builder().look_every(OFTEN).start().await.expect("the producer starts");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let commands = Instance::new(&setting, "commands");
    let rebuild = || {
        let asked = ["--yes", "--deletes", "--output", "json"];
        commands.run(&["rebuild"], &asked).expect_code(0);
    };
    let source = setting.topic.name().to_owned();
    let deleted = |setting: &Setting| {
        setting.topic.delete();
        wait_until("the source is gone", DEADLINE, || match setting.topic.partitions() {
            0 => Ok(()),
            partitions => Err(format!("{partitions} partitions")),
        });
    };
    let anew = [source.as_str(), "was deleted and created again since version", "Run `stillwell rebuild"];

    // Shorter than what was read of the old one: at the old offset there is nothing.
    deleted(&setting);
    says(&producer, &[&source, "does not exist: create it"]).await;
    Topic::create_on(Broker::shared(), &source, 1, &[]);
    let before = std::mem::take(&mut setting.model);
    produce(&mut setting, 90..120);
    let now = std::mem::replace(&mut setting.model, before);
    says(&producer, &anew).await;
    setting.settled(&consumer).await;
    let announced = producer.announced().borrow().clone().expect("it has announced");
    let (at, id) = (announced.positions[0].offset, announced.positions[0].source.topic_id);
    assert_eq!(at, 100, "nothing of the new topic is announced");
    setting.model = now;
    rebuild();
    setting.settled(&consumer).await;
    wait_until_async("a life goes on from there", DEADLINE, || {
        std::future::ready(producer.status().error.map_or(Ok(()), Err))
    })
    .await;

    // Longer, and there at once: who reads on at the old offset finds records there.
    deleted(&setting);
    Topic::create_on(Broker::shared(), &source, 1, &[]);
    setting.model.clear();
    produce(&mut setting, 100..300);
    says(&producer, &anew).await;
    rebuild();
    setting.settled(&consumer).await;
    produce(&mut setting, 0..10);
    setting.settled(&consumer).await;
    let farewell = producer.shutdown().await.expect("the producer stops");
    let ends: Vec<_> = farewell.positions.iter().map(|position| position.offset).collect();
    assert_eq!(ends, [210], "of the topic as it is");
    assert_ne!(farewell.positions[0].source.topic_id, id);
    consumer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_start_of_a_partition_is_announced_before_anything_of_it_is_logged() {
    let mut setting = Setting::new("start", 1, SCHEMA);
    produce(&mut setting, 0..100);
    let store = Store::open(&setting.blobs()).expect("the store opens");
    let faults = Faults { put_fails: 1.0, ..Faults::default() };
    let (store, control) = Faulty::wrap(store, faults, Entropy::seeded(1));
    let options = setting.builder().store(store).options().expect("they fit together");
    let metrics = Arc::clone(&options.metrics);
    let producer = Producer::start(options).await.expect("the producer starts");
    // Each attempt comes a second after the one before: time enough for a source that does not wait.
    wait_until_async("version 1 cannot be stored", DEADLINE, || {
        let injected = control.injected();
        std::future::ready(if injected >= 3 { Ok(()) } else { Err(injected) })
    })
    .await;
    assert_eq!(metrics.records_total.get(), 0, "nothing is read whose start is not announced");
    let lag = || metrics.source_lag_records.all().iter().map(|lag| lag.get()).sum::<i64>();
    wait_until_async("the lag is known", DEADLINE, || {
        std::future::ready(if lag() == 100 { Ok(()) } else { Err(lag()) })
    })
    .await;
    control.set(false);
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    wait_until_async("the lag is gone", DEADLINE, || {
        std::future::ready(if lag() == 0 { Ok(()) } else { Err(lag()) })
    })
    .await;
    producer.shutdown().await.expect("the producer stops");
    assert!(metrics.source_lag_records.all().is_empty(), "nobody here looks at the source any more");
    consumer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_source_left_unread_for_longer_than_it_remembers_deletes_is_an_error() {
    let mut setting = Setting::new("compacted", 1, SCHEMA);
    let compacted = |name: &str, remembers: &str| {
        let config = [("cleanup.policy", "compact"), ("delete.retention.ms", remembers)];
        let topic = Topic::create_on(Broker::shared(), &format!("{}-{name}", setting.dataset()), 1, &config);
        let producer = Producer::builder(topic.name())
            .bootstrap_servers(bootstrap())
            .source(topic.name())
            .schema(SCHEMA)
            .data_dir(setting.dir.path().join(name))
            .blobs(setting.blobs());
        (topic, producer)
    };
    let (short, long) = (compacted("short", "1000"), compacted("long", "86400000"));
    let (before, after) = (products(&mut setting, 0..100), products(&mut setting, 50..120));
    for (topic, builder) in [&short, &long] {
        topic.produce(before.clone());
        let producer = builder.clone().start().await.expect("the producer starts");
        let mut announced = producer.announced();
        let covers = |announced: &Option<Announced>| {
            announced.as_ref().is_some_and(|announced| announced.positions[0].offset == 100)
        };
        let first = announced.wait_for(covers).await.expect("it runs").as_ref().map(|first| first.version);
        if topic.name() == short.0.name() {
            // Rest does not count: it says that it has read all there is, again and again.
            let again = announced.wait_for(|now| now.as_ref().map(|now| now.version) > first);
            tokio::time::timeout(DEADLINE, again).await.expect("it says so").expect("it runs");
        }
        producer.shutdown().await.expect("the producer stops");
        topic.produce(after.clone());
    }
    let clock = Clock::system();
    let since = clock.now();
    wait_until_async("the source may have forgotten deletes", DEADLINE, || {
        let passed = clock.now().saturating_duration_since(since);
        std::future::ready(if passed > Duration::from_millis(1_100) {
            Ok(())
        } else {
            Err(format!("{passed:?}"))
        })
    })
    .await;
    let producer = short.1.start().await.expect("it starts");
    says(&producer, &["is compacted", "delete.retention.ms", short.0.name()]).await;
    producer.shutdown().await.expect("it stops");
    let producer = long.1.start().await.expect("it starts");
    let mut announced = producer.announced();
    let covers = announced.wait_for(|now| now.as_ref().is_some_and(|now| now.positions[0].offset == 170));
    tokio::time::timeout(DEADLINE, covers).await.expect("it goes on").expect("it runs");
    producer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_announcements_of_another_dataset_are_refused() {
    let mut setting = Setting::new("stranger", 1, SCHEMA);
    produce(&mut setting, 0..10);
    let producer = setting.producer().await;
    let (cache, strange) = (scratch(), scratch());
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let stranger = Consumer::builder("another")
        .bootstrap_servers(bootstrap())
        .announcements(format!("{}.announcements", setting.dataset()))
        .blobs(setting.blobs())
        .cache_dir(strange.path())
        .spawn()
        .expect("it starts");
    wait_until_async("it says whose they are", DEADLINE, || {
        let error = stranger.status().tail.error.unwrap_or_default();
        let says = error.contains(setting.dataset()) && error.contains("correct `announcements`");
        std::future::ready(if says { Ok(()) } else { Err(error) })
    })
    .await;
    assert_eq!(stranger.view().records(), 0);
    for consumer in [consumer, stranger] {
        consumer.shutdown().await.expect("it stops");
    }
    producer.shutdown().await.expect("the producer stops");
}
