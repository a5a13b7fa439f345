//! What topics hold goes away under a dataset, while it runs or between two lives: emptied, trimmed beyond who is slow,
//! the announcements' history gone. A clear error where something is lost, and nothing at all where nothing is.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use stillwell::clock::Clock;
use stillwell_tests::campaign::instance::Instance;
use stillwell_tests::{Broker, Record, Setting, Topic, scratch, wait_until, wait_until_async};

use crate::SCHEMA;
use crate::history::{DEADLINE, History, announced, announcements, good};

/// All that a topic of one partition has goes, as retention takes it.
fn empty(topic: &Topic) {
    let (_, end) = topic.watermarks()[0];
    topic.delete_before(0, end);
    assert_eq!(topic.read().len(), 0);
}

/// An instance of the dataset, as a process that can be stopped where it is.
pub fn instance(setting: &Setting, name: &str, role: Option<&'static str>) -> Instance {
    instance_with(setting, name, role, "")
}

/// The same, with more in its section `[kafka]`.
pub fn instance_with(setting: &Setting, name: &str, role: Option<&'static str>, kafka: &str) -> Instance {
    let dir = setting.dir.path();
    std::fs::write(dir.join("dataset.avsc"), &setting.schema).expect("the schema is written");
    let text = format!(
        r#"
[kafka]
bootstrap_servers = "{servers}"
{kafka}
[storage]
data_dir = "DATA_DIR"
blobs = "{blobs}"
[producer.batching]
batch_timeout = "50ms"
[datasets."{dataset}"]
source = {{ topics = ["{dataset}"], format = "json" }}
schema = "{schema}"
"#,
        servers = setting.bootstrap,
        blobs = setting.blobs(),
        dataset = setting.dataset(),
        schema = dir.join("dataset.avsc").display(),
    );
    Instance::new(dir, name, role, &text)
}

/// Waits until a route of it says `text`.
pub fn says(instance: &mut Instance, path: &str, text: &str) {
    wait_until(&format!("{path} says {text:?}"), DEADLINE, || match instance.ask(path) {
        Ok(answer) if answer.body.contains(text) => Ok(()),
        Ok(answer) => Err(answer.body),
        Err(error) => Err(error),
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_that_passes_a_slow_producer_is_an_error_and_no_gap() {
    let mut setting = Setting::new("passed", 1, SCHEMA);
    let cache = scratch();
    let mut producer = instance(&setting, "slow", Some("producer"));
    let first: Vec<_> = (0..40).map(|n| good(&mut setting, &format!("P-{n}"), 1.0)).collect();
    setting.topic.produce(first);
    producer.start(None);
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;

    // So slow that it stands, for less than would lose it its shard.
    producer.signal("STOP");
    // The broker holds its last fetch for a tenth of a second, and would answer it with what is produced meanwhile.
    let (clock, fetched) = (Clock::system(), Duration::from_secs(1));
    let stopped = clock.now();
    wait_until("the last fetch is answered", DEADLINE, || match clock.now() - stopped {
        passed if passed >= fetched => Ok(()),
        passed => Err(format!("{passed:?} have passed")),
    });
    let missed: Vec<_> = (40..80).map(|n| good(&mut setting, &format!("P-{n}"), 2.0)).collect();
    setting.topic.produce(missed);
    setting.topic.delete_before(0, 60);
    producer.signal("CONT");
    says(&mut producer, "/health", "is not in Kafka any more");
    says(&mut producer, "/health", "stillwell rebuild");
    let more = [good(&mut setting, "after", 3.0)];
    setting.topic.produce(more);
    // Nor does a next life step over it.
    producer.kill();
    producer.start(None);
    says(&mut producer, "/health", "is not in Kafka any more");
    let history = History::of(&setting);
    history.assert_gapless().assert_no_branch();
    for announcement in &history.valid {
        assert!(announcement.positions[0].offset <= 40, "nothing is announced from behind the gap");
    }
    assert_eq!(consumer.view().records(), 40);
    producer.kill();
    consumer.shutdown().await.expect("it stops");
}

/// What was logged before retention passed is not behind the gap: it is published, though every life finds the gap at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_holds_is_published_before_a_gap_behind_it_ends_the_life() {
    let mut setting = Setting::new("logged", 1, SCHEMA);
    let mut producer = instance(&setting, "one", Some("producer"));
    let first: Vec<_> = (0..20).map(|n| good(&mut setting, &format!("P-{n}"), 1.0)).collect();
    setting.topic.produce(first);
    producer.start(None);
    reaches(&setting, 20).await;
    producer.kill();
    // Logged, and not published: the store is away.
    let logged: Vec<_> = (20..40).map(|n| good(&mut setting, &format!("P-{n}"), 2.0)).collect();
    setting.topic.produce(logged);
    producer.start(Some("store.put=return(error)"));
    let of_log = format!("stillwell_pending_records{{dataset=\"{}\",shard=\"0\"}} 20", setting.dataset());
    says(&mut producer, "/metrics", &of_log);
    producer.kill();
    setting.topic.produce((0..10).map(|n| Record::upsert(format!("gone-{n}"), "{}")));
    setting.topic.delete_before(0, 45);

    // Slow enough for a life that ends at its first poll to publish nothing.
    producer.start(Some("store.put=sleep(1500)"));
    reaches(&setting, 40).await;
    says(&mut producer, "/health", "is not in Kafka any more");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    producer.kill();
    let history = History::of(&setting);
    history.assert_gapless().assert_no_branch();
    assert_eq!(history.valid.last().map(|last| last.positions[0].offset), Some(40));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_emptied_of_what_is_announced_loses_nothing() {
    let mut setting = Setting::new("emptied", 1, SCHEMA);
    let cache = scratch();
    let producer = setting.producer().await;
    let first: Vec<_> = (0..20).map(|n| good(&mut setting, &format!("P-{n}"), 1.0)).collect();
    setting.topic.produce(first);
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;

    empty(&setting.topic);
    let more = [good(&mut setting, "P-0", 2.0), setting.delete("P-1")];
    setting.topic.produce(more);
    setting.settled(&consumer).await;
    assert_eq!(producer.status().failures, 0, "{:?}", producer.status());
    producer.shutdown().await.expect("it stops");

    // And so for the next life, which finds an empty topic with an end above 0.
    empty(&setting.topic);
    let producer = setting.producer().await;
    let more = [good(&mut setting, "P-2", 3.0)];
    setting.topic.produce(more);
    setting.settled(&consumer).await;
    assert_eq!(producer.status().failures, 0, "{:?}", producer.status());
    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
    History::of(&setting).assert_gapless().assert_no_branch();
}

#[tokio::test(flavor = "multi_thread")]
async fn announcements_trimmed_beyond_a_slow_reader_make_it_jump() {
    let mut setting = Setting::new("behind", 1, SCHEMA);
    let producer = setting.producer().await;
    let record = good(&mut setting, "first", 1.0);
    setting.topic.produce([record]);
    let mut reader = instance(&setting, "reader", Some("consumer"));
    reader.start(None);
    let record = format!("/v1/datasets/{}/records/", setting.dataset());
    says(&mut reader, &format!("{record}first"), r#""price":1.0"#);

    reader.signal("STOP");
    let versions = announcements(&setting);
    for round in 2..6 {
        let record = good(&mut setting, "first", f64::from(round));
        setting.topic.produce([record]);
        announced(&producer, round as u64 + 1).await;
    }
    let last = versions.read().pop().expect("announcements").offset;
    versions.delete_before(0, last);
    reader.signal("CONT");
    says(&mut reader, &format!("{record}first"), r#""price":5.0"#);
    // It follows on.
    let next = good(&mut setting, "next", 6.0);
    setting.topic.produce([next]);
    says(&mut reader, &format!("{record}next"), r#""price":6.0"#);
    assert!(reader.stop(DEADLINE).success());
    producer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announcement_topic_that_was_emptied_is_an_error_and_no_first_start() {
    let mut setting = Setting::new("history", 1, SCHEMA);
    let cache = scratch();
    let producer = setting.producer().await;
    let record = good(&mut setting, "kept", 1.0);
    setting.topic.produce([record]);
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    producer.shutdown().await.expect("it stops");

    let versions = announcements(&setting);
    empty(&versions);
    let producer = setting.producer().await;
    wait_until_async("the producer says that the history is gone", DEADLINE, || {
        let error = producer.status().error.unwrap_or_default();
        std::future::ready(if error.contains("its history was deleted") { Ok(()) } else { Err(error) })
    })
    .await;
    assert_eq!(versions.read().len(), 0, "nothing is announced, and no life begins");
    producer.shutdown().await.expect("it stops");
    // Who holds a version keeps it.
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
}

/// Writes a transaction of some records to the topic, and commits or aborts it.
fn transaction(setting: &Setting, commit: bool) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &setting.bootstrap)
        .set("transactional.id", format!("{}-{commit}", setting.dataset()))
        .create()
        .expect("a transactional producer");
    producer.init_transactions(DEADLINE).expect("init");
    producer.begin_transaction().expect("begin");
    for n in 0..5 {
        let (key, value) = (format!("T-{n}"), format!(r#"{{"id": "T-{n}", "price": {n}.0}}"#));
        let record = BaseRecord::to(setting.topic.name()).key(&key).payload(&value);
        producer.send(record).map_err(|(error, _)| error).expect("queued");
    }
    producer.flush(DEADLINE).expect("flushed");
    match commit {
        true => producer.commit_transaction(DEADLINE),
        false => producer.abort_transaction(DEADLINE),
    }
    .expect("it ends");
}

/// What no reader is given counts all the same: positions are the offset behind a marker, or a dataset whose source ends
/// with one would never have caught up.
#[tokio::test(flavor = "multi_thread")]
async fn markers_and_aborted_records_at_the_end_of_a_source_are_passed() {
    let mut setting = Setting::new("markers", 1, SCHEMA);
    let cache = scratch();
    let record = good(&mut setting, "first", 1.0);
    setting.topic.produce([record]);
    transaction(&setting, false);
    let producer = setting.producer().await;
    // Returns once it has caught up.
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let end = |setting: &Setting| setting.topic.watermarks()[0].1;
    assert_eq!(end(&setting), 7, "a record, five that were aborted, and their marker");
    reaches(&setting, 7).await;

    transaction(&setting, true);
    for n in 0..5 {
        let id = format!("T-{n}");
        let value = serde_json::json!({"id": id, "price": f64::from(n)});
        drop(setting.upsert(&id, value));
    }
    setting.settled(&consumer).await;
    transaction(&setting, false);
    reaches(&setting, end(&setting)).await;
    producer.shutdown().await.expect("it stops");

    // The next life finds nothing to do.
    let before = History::of(&setting).valid.len();
    let producer = setting.producer().await;
    let record = good(&mut setting, "last", 2.0);
    setting.topic.produce([record]);
    setting.settled(&consumer).await;
    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
    let history = History::of(&setting);
    history.assert_gapless().assert_no_branch();
    assert_eq!(history.valid[before].upserts, 1, "only what is new");
}

/// Waits until the announced position of partition 0 is `offset`.
pub async fn reaches(setting: &Setting, offset: i64) {
    wait_until_async(&format!("position {offset} is announced"), DEADLINE, || {
        let at = History::of(setting).valid.last().map(|last| last.positions[0].offset);
        std::future::ready(if at == Some(offset) { Ok(()) } else { Err(format!("{at:?}")) })
    })
    .await;
}

/// All announcements of a shard have one key, so that compaction leaves the last. That one is enough for whoever reads or
/// writes on; a new process says that its topic forgets, since rollback and who is slow need what lies before.
#[tokio::test(flavor = "multi_thread")]
async fn announcements_that_are_compacted_under_it_lose_nothing_and_the_next_start_says_so() {
    let broker = Broker::own_with(&[("log.cleaner.backoff.ms", "100")]);
    let mut setting = Setting::on(&broker, "forgetful", 1, SCHEMA);
    let (cache, late) = (scratch(), scratch());
    let producer = setting.producer().await;
    let consumer = setting.consumer(cache.path()).await;
    let versions = announcements(&setting);
    versions.set(&[
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.01"),
    ]);
    let mut written = 0;
    wait_until_async("the broker has compacted", DEADLINE, || {
        // A segment that is written to is never compacted: each version closes the one before.
        written += 1;
        let record = good(&mut setting, &format!("P-{written}"), 1.0);
        setting.topic.produce([record]);
        let left = versions.read().len();
        let (_, end) = versions.watermarks()[0];
        // Half of what was written are the ends of transactions.
        std::future::ready(if written > 10 && (left as i64) < end / 4 {
            Ok(())
        } else {
            Err(format!("{left} of {end}"))
        })
    })
    .await;
    setting.settled(&consumer).await;
    let newcomer = setting.consumer(late.path()).await;
    setting.settled(&newcomer).await;
    producer.shutdown().await.expect("it stops");

    let mut next = setting.producer().await;
    let ended = tokio::time::timeout(DEADLINE, next.ended()).await.expect("it ends");
    let said = ended.expect_err("over a topic that forgets nothing begins").chain();
    let _ = next.shutdown().await;
    assert!(said.contains("cleanup.policy=compact") && said.contains("set cleanup.policy=delete"), "{said}");

    let kept = [("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")];
    versions.set(&kept);
    let producer = setting.producer().await;
    let last = good(&mut setting, "after", 2.0);
    setting.topic.produce([last]);
    for consumer in [consumer, newcomer] {
        setting.settled(&consumer).await;
        consumer.shutdown().await.expect("it stops");
    }
    producer.shutdown().await.expect("it stops");
}

/// What compaction takes from a source was followed by a later record of its key, so that who comes late reads less and
/// misses nothing: offsets without records are no gap, and a delete is still there.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_kafka_compacts_under_a_slow_producer_loses_nothing() {
    let broker = Broker::own_with(&[("log.cleaner.backoff.ms", "100")]);
    let mut setting = Setting::on(&broker, "overtaken", 1, SCHEMA);
    setting.topic.set(&[
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.01"),
    ]);
    let mut producer = instance(&setting, "slow", Some("producer"));
    let first: Vec<_> = (0..20).map(|n| good(&mut setting, &format!("P-{n}"), 1.0)).collect();
    setting.topic.produce(first);
    producer.start(None);
    reaches(&setting, 20).await;

    // So slow that it stands.
    producer.signal("STOP");
    let gone = [setting.delete("P-15"), good(&mut setting, "once", 1.0)];
    let (mut round, mut written) = (1.0, gone.len());
    setting.topic.produce(gone);
    wait_until("the broker has compacted what the producer has not read", DEADLINE, || {
        // A segment that is written to is never compacted: each round closes the one before.
        round += 1.0;
        let records: Vec<_> = (0..10).map(|n| good(&mut setting, &format!("P-{n}"), round)).collect();
        written += setting.topic.produce(records);
        let left = setting.topic.read_from(&[20]).len();
        if written > 100 && left < written / 2 {
            Ok(())
        } else {
            Err(format!("{left} of {written} are left"))
        }
    });
    producer.signal("CONT");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let (_, end) = setting.topic.watermarks()[0];
    reaches(&setting, end).await;
    assert!(!producer.log().contains("is not in Kafka any more"), "{}", producer.log());

    // Nor for the next life, which begins where nothing is.
    producer.kill();
    let last = [good(&mut setting, "P-3", 0.5), setting.delete("once")];
    setting.topic.produce(last);
    producer.start(None);
    setting.settled(&consumer).await;
    producer.kill();
    consumer.shutdown().await.expect("it stops");
    History::of(&setting).assert_gapless().assert_no_branch();
}

/// Who runs needs nothing of what was announced before: the writer goes on with the next version, whoever holds the last one
/// follows, and since an announcement is self-sufficient, whoever comes later finds all of it in the next.
#[tokio::test(flavor = "multi_thread")]
async fn announcements_emptied_under_a_running_writer_cost_the_history_and_nothing_else() {
    let mut setting = Setting::new("forgotten", 1, SCHEMA);
    let (cache, late) = (scratch(), scratch());
    let producer = setting.producer().await;
    let first: Vec<_> = (0..20).map(|n| good(&mut setting, &format!("P-{n}"), 1.0)).collect();
    setting.topic.produce(first);
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;

    let versions = announcements(&setting);
    let last = versions.read().len();
    assert!(last > 1, "an epoch record and versions");
    wait_until("nothing is left of the announcements", DEADLINE, || {
        let (_, end) = versions.watermarks()[0];
        versions.delete_before(0, end);
        // A snapshot may be announced meanwhile.
        match versions.read().len() {
            0 => Ok(()),
            left => Err(format!("{left} are left")),
        }
    });
    let more = [good(&mut setting, "P-0", 2.0), setting.delete("P-1"), good(&mut setting, "new", 2.0)];
    setting.topic.produce(more);
    setting.settled(&consumer).await;
    let newcomer = setting.consumer(late.path()).await;
    setting.settled(&newcomer).await;
    assert_eq!(producer.status().failures, 0, "{:?}", producer.status());
    producer.shutdown().await.expect("it stops");

    // The next life finds that version, and carries it on.
    let producer = setting.producer().await;
    let record = good(&mut setting, "after", 3.0);
    setting.topic.produce([record]);
    for consumer in [consumer, newcomer] {
        setting.settled(&consumer).await;
        consumer.shutdown().await.expect("it stops");
    }
    assert_eq!(producer.status().failures, 0, "{:?}", producer.status());
    producer.shutdown().await.expect("it stops");
    let history = History::of(&setting);
    history.assert_no_branch();
    assert!(history.valid[0].version.0 > 2, "begins at {}", history.valid[0].version);
    assert!(!history.lives.is_empty(), "the next life has begun");
    for two in history.valid.windows(2) {
        assert_eq!(two[1].version.0, two[0].version.0 + 1, "versions go on without a gap");
        assert_eq!(two[1].previous, Some((two[0].version, two[0].life.epoch)));
    }
}
