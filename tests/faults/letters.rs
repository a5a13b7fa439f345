//! Misfits that their dead-letter topic does not take: none may stand in the way of its position, and no position may pass
//! one that has no letter.

use stillwell::format::letter::Letter;
use stillwell::{Producer, blob::Store};
use stillwell_tests::{Broker, Record, Setting, Topic, scratch, wait_until};

use crate::SCHEMA;
use crate::ground::{instance_with, reaches, says};
use crate::history::{DEADLINE, History, announced, dead_letters, good, limit, misfit};

/// Larger than the million bytes that a topic takes by default, smaller than what this source topic does.
const LARGE: usize = 3_000_000;

/// Somebody lowers the topic's limit while the producer runs: one life fails by it, and the next one knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_was_lowered_costs_one_life() {
    let mut setting = Setting::new("lowered", 1, SCHEMA);
    let producer = setting.producer().await;
    announced(&producer, 1).await;
    limit(&dead_letters(&setting), "50000");
    let records = [Record::upsert("misfit", "{".repeat(100_000)), good(&mut setting, "beside it", 1.0)];
    setting.topic.produce(records);
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    assert_eq!(producer.status().failures, 1, "{:?}", producer.status());
    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
    History::of(&setting).assert_gapless().assert_no_branch();
    let letters = dead_letters(&setting).read();
    assert_eq!(letters.len(), 1);
    assert!(letters[0].header("stillwell.value-blob").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misfit_of_any_shape_goes_out_and_lets_its_position_go() {
    let mut setting = Setting::new("shapes", 1, SCHEMA);
    let source = Topic::create_on(
        Broker::shared(),
        &format!("{}-in", setting.dataset()),
        1,
        &[("max.message.bytes", "10000000")],
    );
    let large = |with: &str| with.repeat(LARGE / with.len());
    let header = |name: &str, value: String| (name.to_owned(), Some(value.into_bytes()));
    let shapes = [
        Record::upsert("value", large("v")),
        Record::upsert(large("k"), "{"),
        Record { headers: vec![header("h", large("h"))], ..Record::upsert("headers", "{") },
        Record {
            headers: (0..30_000)
                .map(|at| header(&format!("header {at}"), large("x")[..80].to_owned()))
                .collect(),
            ..Record::upsert("many headers", "{")
        },
        Record {
            headers: vec![header("h", large("h")), header("stillwell.replays", "2".to_owned())],
            ..Record::upsert(large("k"), large("v"))
        },
    ];
    let last = good(&mut setting, "good", 1.0);
    source.produce(shapes.iter().cloned().chain([last]));
    let producer = Producer::builder(setting.dataset())
        .bootstrap_servers(&setting.bootstrap)
        // As `Setting::builder` has it: failures are counted.
        .kafka_property("session.timeout.ms", "20000")
        .source(source.name())
        .schema(SCHEMA)
        .data_dir(setting.data_dir())
        .blobs(setting.blobs())
        .start()
        .await
        .expect("it starts");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    assert_eq!(producer.status().failures, 0, "{:?}", producer.status());
    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
    History::of(&setting).assert_gapless();

    let store = Store::open(&setting.blobs()).expect("it opens");
    let mut letters = dead_letters(&setting).read();
    letters
        .sort_by_key(|letter| letter.header("__connect.errors.offset").and_then(|at| at.parse::<i64>().ok()));
    assert_eq!(letters.len(), shapes.len());
    for (at, (letter, shape)) in letters.iter().zip(&shapes).enumerate() {
        let key = shape.key.clone().expect("each has one");
        if at == 0 {
            let blob = letter.header("stillwell.value-blob").expect("only the value is elsewhere");
            let value = store.get_bytes(blob).await.expect("it is there");
            assert_eq!((Some(value.to_vec()), &letter.key), (shape.value.clone(), &Some(key)));
            continue;
        }
        let blob = letter.header("stillwell.letter-blob").expect("all of it is elsewhere");
        let whole = Letter::decode(&store.get_bytes(blob).await.expect("it is there")).expect("it reads");
        assert_eq!(whole.key.as_deref(), Some(&*key));
        assert_eq!(whole.value.as_deref(), shape.value.as_deref());
        let headers: Vec<_> = whole
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), value.as_ref().map(|value| value.to_vec())))
            .collect();
        assert_eq!(headers, shape.headers, "byte for byte");
        assert_eq!(letter.value, None);
        assert_eq!(letter.key, (key.len() <= 1024).then_some(key), "a short key is still a key");
    }
    assert_eq!(letters[4].header("stillwell.replays"), Some("2"), "the loop guard still counts");
}

/// Somebody deletes the dead-letter topic, and nobody here may make it anew: the source waits at the first record that would
/// need it. What lies behind waits too, since positions are told in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_topic_that_is_gone_holds_up_the_source_until_it_is_given_back() {
    let mut setting = Setting::new("unlettered", 1, SCHEMA);
    let kept: &[_] = &[("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")];
    let compacted: &[_] = &[("cleanup.policy", "compact")];
    for (name, config) in [("announcements", kept), ("control", compacted), ("dlq", kept)] {
        Topic::create_on(Broker::shared(), &format!("{}.{name}", setting.dataset()), 1, config);
    }
    let mut producer = instance_with(&setting, "one", Some("producer"), "create_topics = false");
    let first = [good(&mut setting, "before", 1.0)];
    setting.topic.produce(first);
    producer.start(None);
    reaches(&setting, 1).await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;

    let letters = dead_letters(&setting);
    letters.delete();
    wait_until("the dead-letter topic is gone", DEADLINE, || match letters.partitions() {
        0 => Ok(()),
        partitions => Err(format!("{partitions} partitions")),
    });
    let more = [good(&mut setting, "in time", 1.0), misfit("unfit"), good(&mut setting, "behind", 2.0)];
    setting.topic.produce(more);
    // By the life after the one whose transaction failed, and that is how it stays.
    says(&mut producer, "/health", "asking what the dead-letter topic takes");
    says(&mut producer, "/health", letters.name());
    let history = History::of(&setting);
    for announcement in &history.valid {
        let (version, at) = (announcement.version, announcement.positions[0].offset);
        assert!(at <= 2, "version {version} is announced up to {at}, past a record without its letter");
    }
    let shown = consumer.view();
    assert!(shown.get(b"behind").expect("it reads").is_none(), "nothing from behind it is shown");

    Topic::create_on(Broker::shared(), letters.name(), 1, kept);
    reaches(&setting, 4).await;
    setting.settled(&consumer).await;
    let letters = letters.read();
    let keys: Vec<_> = letters.iter().map(|letter| letter.key.as_deref()).collect();
    assert_eq!(keys, [Some(&b"unfit"[..])], "one letter");
    assert_eq!(letters[0].header("__connect.errors.offset"), Some("2"));
    producer.kill();
    consumer.shutdown().await.expect("it stops");
    History::of(&setting).assert_gapless().assert_no_branch();
}
