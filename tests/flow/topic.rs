//! Blobs in a topic, on a real broker: what a store in Kafka adds to the contract (`stores.rs`), and the flow through one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::json;
use stillwell::blob::{Body, Error, Options, Put, Store, TopicOptions};
use stillwell::clock::Entropy;
use stillwell::format::upload::{Upload, chunk_key, read_key, upload_key};
use stillwell::kafka;
use stillwell::producer::{Batching, Cleaning, Performance};
use stillwell_tests::campaign::Chance;
use stillwell_tests::{
    Broker, Message, Record, TOXICS, Topic, Toxic, bootstrap, scratch, unique, wait_until, wait_until_async,
};

use crate::instance::{Instance, LONG};
use crate::setting::Setting;

const SCHEMA: &str = r#"{"type": "record", "name": "Note", "fields": [
    {"name": "id", "type": "string"}, {"name": "text", "type": "string"}]}"#;
const NAME: &str = "products/a/0/00000000000000000007-3-00000000deadbeef.delta.avro";

/// A store in a topic, by clients of its own.
pub fn store(topic: &str, create: bool) -> Store {
    store_by(bootstrap(), topic, create)
}

fn store_by(servers: &str, topic: &str, create: bool) -> Store {
    let kafka = kafka::Options { bootstrap_servers: servers.to_owned(), ..kafka::Options::default() };
    let options = TopicOptions { kafka, create, replication: None };
    Store::open_among(&format!("kafka://{topic}"), &Options::default(), &options).expect("it opens")
}

fn bytes(length: usize, seed: u64) -> Bytes {
    let entropy = Entropy::seeded(seed);
    (0..length.div_ceil(8)).flat_map(|_| entropy.next_u64().to_le_bytes()).take(length).collect()
}

fn made(name: &str, partitions: i32, config: &[(&str, &str)]) -> Topic {
    Topic::create_on(Broker::shared(), &unique(name), partitions, config)
}

/// Of each key of the topic the newest record, as compaction leaves them; those that are not deletes.
fn left(topic: &Topic) -> BTreeMap<String, Message> {
    let mut newest = BTreeMap::new();
    for message in topic.read() {
        let key = String::from_utf8(message.key.clone().expect("all have keys")).expect("they are text");
        newest.insert(key, message);
    }
    newest.retain(|_, message: &mut Message| message.value.is_some());
    newest
}

#[tokio::test]
async fn a_topic_that_cannot_hold_blobs_says_why() {
    let body = || Bytes::from_static(b"body");
    let missing = store(&unique("nowhere"), false);
    for error in [
        missing.put("a/1", body()).await.unwrap_err(),
        missing.get_bytes("a/1").await.unwrap_err(),
        missing.head("a/1").await.unwrap_err(),
        missing.list("").await.unwrap_err(),
        missing.delete("a/1").await.unwrap_err(),
    ] {
        let said = error.to_string();
        assert!(matches!(error, Error::Refused { .. }) && error.is_transient(), "{error:?}");
        assert!(said.contains("does not exist") && said.contains("cleanup.policy=compact"), "{said}");
    }
    for (partitions, config, said) in [
        (1, &[("cleanup.policy", "compact")][..], "one partition"),
        (2, &[("cleanup.policy", "delete")][..], "set it to compact"),
        (2, &[("cleanup.policy", "compact,delete")][..], "set it to compact"),
        (2, &[("cleanup.policy", "compact"), ("max.message.bytes", "2000")][..], "max.message.bytes"),
    ] {
        let topic = made("blobs", partitions, config);
        let error = store(topic.name(), true).put("a/1", body()).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }) && error.to_string().contains(said), "{error}");
        assert_eq!(topic.read(), [], "nothing was written");
    }
    // Somebody else's topic: nothing is put between his records.
    let topic = made("blobs", 2, &[("cleanup.policy", "compact")]);
    topic.produce([Record { partition: Some(0), ..Record::upsert("P-1", "a product") }]);
    let error = store(topic.name(), true).put("a/1", body()).await.unwrap_err();
    assert!(
        matches!(error, Error::Refused { .. }) && error.to_string().contains("topic of their own"),
        "{error}"
    );
    assert_eq!(topic.read().len(), 1);
    let away = kafka::Options { bootstrap_servers: "127.0.0.1:1".to_owned(), ..kafka::Options::default() };
    let options = TopicOptions { kafka: away, create: true, replication: None };
    let away = Store::open_among("kafka://blobs", &Options::default(), &options).expect("it opens");
    let error = away.get_bytes("a/1").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    for url in ["kafka://", "kafka://a/b", "kafka://a b"] {
        let error = Store::open_among(url, &Options::default(), &options).unwrap_err();
        assert!(matches!(error, Error::Url { .. }), "{error:?}");
    }
}

/// Records are no larger than the topic takes; several uploads lie between each other; parts are what lies there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_are_cut_as_the_topic_wants_and_put_together_again() {
    let topic = made("blobs", 2, &[("cleanup.policy", "compact"), ("max.message.bytes", "20000")]);
    let (one, other) = (store(topic.name(), false), store(topic.name(), false));
    let folder = scratch();
    let blobs: Vec<(String, Bytes)> =
        (0..4).map(|n| (format!("products/a/0/{n}"), bytes(300_000 + n, n as u64))).collect();
    let put = blobs.iter().map(async |(name, content)| {
        let path = folder.path().join(name.rsplit('/').next().expect("it has a last part"));
        std::fs::write(&path, content).expect("it is written");
        let store = if content.len() % 2 == 0 { &one } else { &other };
        store.put(name, Body::File(path)).await
    });
    futures::future::try_join_all(put).await.expect("all are put");
    let records = topic.read();
    assert!(
        records.len() > 4 * 16
            && records
                .iter()
                .all(|record| { record.value.as_ref().is_none_or(|value| value.len() < 20_000) })
    );
    for (name, content) in &blobs {
        // Each is seen by the other process at once.
        for store in [&one, &other] {
            assert!(store.get_bytes(name).await.expect("it is there") == *content);
        }
        for range in [0..1, 18_000..60_000, 299_990..400_000, 0..300_000] {
            let part = one.get_range(name, range.clone(), None).await.expect("it is there");
            let pieces: Vec<Bytes> = part.content.map(|piece| piece.expect("it comes")).collect().await;
            let end = (range.end as usize).min(content.len());
            assert!(pieces.concat() == content[range.start as usize..end], "{range:?}");
        }
    }
    // Who comes later reads the catalogue, and finds them all.
    let late = store(topic.name(), false);
    let listed = late.list("products").await.expect("it lists");
    assert_eq!(listed.len(), 4);
    for ((name, content), listed) in blobs.iter().zip(listed) {
        assert_eq!((name, content.len() as u64), (&listed.name, listed.bytes));
        other.delete(name).await.expect("it is deleted");
    }
    assert_eq!(late.list("").await.expect("it lists"), []);
    assert_eq!(left(&topic).into_keys().collect::<Vec<_>>(), [] as [String; 0], "compaction takes all of it");
}

/// Of two that put the same name, or one that was given up and goes on, each is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_of_one_name_do_not_mix() {
    let topic = made("blobs", 3, &[("cleanup.policy", "compact"), ("max.message.bytes", "20000")]);
    let (one, other) = (store(topic.name(), false), store(topic.name(), false));
    let contents: Vec<Bytes> = (0..6).map(|n| bytes(200_000, n)).collect();
    let putting = contents.iter().enumerate().map(|(n, content)| {
        let store = if n % 2 == 0 { &one } else { &other };
        store.put_new(NAME, content.clone())
    });
    let put = futures::future::try_join_all(putting).await.expect("all have an answer");
    let first: Vec<usize> = (0..6).filter(|n| put[*n] == Put::Stored).collect();
    assert_eq!(first.len(), 1, "{put:?}");
    assert!(one.get_bytes(NAME).await.expect("it is there") == contents[first[0]]);

    // One that is in the midst of it when another replaces what was there: whichever was complete last, it is whole.
    let late = async {
        for content in &contents[..3] {
            one.put(NAME, content.clone()).await.expect("it is put");
        }
    };
    let also = async {
        for content in &contents[3..] {
            other.put(NAME, content.clone()).await.expect("it is put");
        }
    };
    tokio::join!(late, also);
    let read = one.get_bytes(NAME).await.expect("it is there");
    assert!(read == contents[2] || read == contents[5]);
    assert!(other.get_bytes(NAME).await.expect("it is there") == read, "all see the same");
    // What was replaced is gone, save where neither of two saw the other's complete: the next put takes that.
    one.put(NAME, contents[0].clone()).await.expect("it is put");
    let uploads: BTreeSet<String> =
        left(&topic).into_keys().filter(|key| read_key(key.as_bytes()).is_some()).collect();
    assert_eq!(uploads.len(), 1, "{uploads:?}");

    // Given up in the middle, or, where the machine is faster than our look, whole: nothing between.
    let content = bytes(4 << 20, 9);
    let before = topic.read().len();
    let started = wait_until_async("it is under way", LONG, || {
        let records = topic.read().len();
        std::future::ready(if records > before + 2 { Ok(()) } else { Err(records) })
    });
    tokio::select! {
        put = one.put("products/given-up", content.clone()) => put.expect("it is put"),
        () = started => {}
    }
    match other.get_bytes("products/given-up").await {
        Ok(whole) => assert!(whole == content),
        Err(error) => assert!(matches!(error, Error::Missing { .. }), "{error:?}"),
    }
    let failing = one.put(NAME, Body::File("/no/such/file".into())).await.unwrap_err();
    assert!(matches!(failing, Error::Refused { .. }), "{failing:?}");
    assert!(other.get_bytes(NAME).await.expect("it is there") == contents[0]);
}

/// The answers of several that ask at a time where the catalogue ends come in any order; the older one is no other topic.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_asks_while_others_put_never_misses_what_is_there() {
    let topic = made("blobs", 2, &[("cleanup.policy", "compact")]);
    let store = store(topic.name(), false);
    store.put("a/kept", Bytes::from_static(b"kept")).await.expect("it is put");
    let asking = (0..8).map(async |_| {
        for _ in 0..100 {
            assert_eq!(store.head("a/kept").await.expect("it answers"), Some(4));
        }
    });
    let putting = (0..4).map(async |one| {
        for n in 0..25 {
            let name = format!("a/{one}-{n}");
            assert_eq!(
                store.put_new(&name, Bytes::from_static(b"new")).await.expect("it is put"),
                Put::Stored
            );
            assert_eq!(
                store.put_new(&name, Bytes::from_static(b"old")).await.expect("it answers"),
                Put::Found
            );
        }
    });
    tokio::join!(futures::future::join_all(asking), futures::future::join_all(putting));
    assert_eq!(store.list("a").await.expect("it lists").len(), 101);
}

/// Whatever died in the middle of an upload is removed by who uploads a day later, by its record in the catalogue alone.
#[tokio::test]
async fn what_was_left_in_the_middle_goes_a_day_later() {
    let topic = made("blobs", 2, &[("cleanup.policy", "compact")]);
    let id = Entropy::seeded(1).uuid();
    let now = stillwell::clock::Clock::system().wall_ms();
    let hour = 60 * 60 * 1_000;
    let begun = |hours: i64| Upload {
        bytes: 2_500,
        chunk: 1_000,
        partition: 1,
        replaces: false,
        at: now - hours * hour,
        offsets: None,
    };
    let catalogue = |name: &str, hours: i64| Record {
        partition: Some(0),
        ..Record::upsert(upload_key(name, id), begun(hours).encode())
    };
    let chunk = |name: &str, number: u64| Record {
        partition: Some(1),
        ..Record::upsert(chunk_key(name, id, number), b"some of it")
    };
    topic.produce([catalogue("a/old", 25), catalogue("a/young", 23)]);
    topic.produce([chunk("a/old", 0), chunk("a/old", 1), chunk("a/young", 0)]);
    let store = store(topic.name(), false);
    assert_eq!(store.list("").await.expect("it lists"), [], "neither is seen");
    store.put("a/new", Bytes::from_static(b"new")).await.expect("it is put");
    let left = left(&topic);
    let of = |name: &str| left.keys().filter(|key| key.starts_with(name)).count();
    assert_eq!((of("a/old"), of("a/young"), of("a/new")), (0, 2, 2), "{:?}", left.keys());
}

/// One that nobody can remove (of a partition that is not there) is left, and stops no put.
#[tokio::test]
async fn what_was_left_and_cannot_be_removed_stops_no_put() {
    let topic = made("blobs", 2, &[("cleanup.policy", "compact")]);
    let at = stillwell::clock::Clock::system().wall_ms() - 25 * 60 * 60 * 1_000;
    let upload = Upload { bytes: 2_500, chunk: 1_000, partition: 7, replaces: false, at, offsets: None };
    let key = upload_key("a/left", Entropy::seeded(1).uuid());
    topic.produce([Record { partition: Some(0), ..Record::upsert(&key, upload.encode()) }]);
    let store = store(topic.name(), false);
    for name in ["a/1", "a/2"] {
        answer(|| store.put(name, Bytes::from_static(b"new"))).await;
        assert_eq!(store.get_bytes(name).await.expect("it is there"), "new");
    }
    assert!(left(&topic).contains_key(&key), "it is left for who can");
}

/// The answer of a store whose topic was made a moment ago: its brokers may not lead it yet.
async fn answer<T, F: Future<Output = Result<T, Error>>>(ask: impl FnMut() -> F) -> T {
    wait_until_async("the new topic's brokers lead it", LONG, ask).await
}

/// A topic that was deleted and made anew is another one, also where it has grown past what was read of the first: what
/// was in that is gone, and all of the new one is seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_anew_is_read_from_its_beginning_however_far_it_has_grown() {
    let config = [("cleanup.policy", "compact")];
    let topic = made("blobs", 3, &config);
    let one = store(topic.name(), false);
    answer(|| one.put("a/first", Bytes::from_static(b"first"))).await;
    assert_eq!(one.get_bytes("a/first").await.expect("it is there"), "first");
    let read = topic.watermarks()[0].1;
    topic.delete();
    wait_until("the topic is gone", LONG, || match topic.partitions() {
        0 => Ok(()),
        seen => Err(format!("{seen} partitions")),
    });
    let topic = Topic::create_on(Broker::shared(), topic.name(), 2, &config);
    let other = store(topic.name(), false);
    let names: Vec<String> = (0..6).map(|n| format!("a/{n}")).collect();
    for name in &names {
        answer(|| other.put(name, Bytes::from(name.clone()))).await;
    }
    assert!(topic.watermarks()[0].1 > read, "past what was read of the first");
    let listed = answer(|| one.list("")).await;
    assert_eq!(listed.into_iter().map(|blob| blob.name).collect::<Vec<_>>(), names);
    assert_eq!(one.head("a/first").await.expect("it answers"), None);
    assert_eq!(answer(|| one.get_bytes("a/0")).await, "a/0");
    // Its writer is another one, too: the new topic has fewer partitions.
    for n in 0..8 {
        let name = format!("b/{n}");
        answer(|| one.put(&name, Bytes::from_static(b"last"))).await;
        assert_eq!(other.get_bytes(&name).await.expect("it is there"), "last");
    }
}

/// A chunk that is not what was put is never handed out.
#[tokio::test]
async fn a_damaged_chunk_is_said() {
    let topic = made("blobs", 2, &[("cleanup.policy", "compact")]);
    let id = Entropy::seeded(2).uuid();
    topic.produce([Record {
        partition: Some(1),
        ..Record::upsert(chunk_key("a/1", id, 0), b"12345678wrong")
    }]);
    let upload =
        Upload { bytes: 5, chunk: 1_000, partition: 1, replaces: true, at: 0, offsets: Some(vec![0]) };
    topic.produce([Record { partition: Some(0), ..Record::upsert(upload_key("a/1", id), upload.encode()) }]);
    let error = store(topic.name(), false).get_bytes("a/1").await.unwrap_err();
    assert!(error.to_string().contains("offset 0 is not the chunk"), "{error}");
}

/// Whatever a network does between a process and its store in Kafka: a blob is whole, the one that was there or the one that is
/// put, for who asks through it and for who does not; and what was told to be stored is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_fails_tears_no_blob() {
    /// How long each is tried: longer than what is slow takes, shorter than what hears nothing waits.
    const A_WHILE: Duration = Duration::from_secs(6);
    let (broker, proxy) = Broker::own_behind_proxy(Chance::seeded(8));
    let config = [("cleanup.policy", "compact"), ("max.message.bytes", "40000")];
    let topic = Topic::create_on(&broker, &unique("blobs"), 2, &config);
    let direct = store_by(broker.bootstrap(), topic.name(), false);
    let through = store_by(&format!("127.0.0.1:{}", proxy.port()), topic.name(), false);
    answer(|| through.put("products/first", bytes(1_000, 1))).await;

    for (n, toxic) in (10..).zip(TOXICS) {
        let (old, new, after) = (bytes(300_000, n), bytes(300_001, n), bytes(300_002, n));
        let name = format!("products/{n}");
        direct.put(&name, old.clone()).await.expect("it is put");
        assert!(through.get_bytes(&name).await.expect("it is there") == old);
        proxy.set(toxic);
        let put = tokio::time::timeout(A_WHILE, through.put(&name, new.clone()));
        let got = tokio::time::timeout(A_WHILE, through.get_bytes(&name));
        let (put, got) = tokio::join!(put, got);
        let stored = matches!(put, Ok(Ok(())));
        println!("{toxic:?}: stored {stored}, read {}", matches!(got, Ok(Ok(_))));
        match got {
            Ok(Ok(read)) => assert!(read == old || read == new, "{toxic:?}: {} bytes", read.len()),
            // Neither gone nor damaged.
            Ok(Err(error)) => assert!(error.is_transient(), "{toxic:?}: {error:?}"),
            Err(_) => {}
        }
        if let Ok(Err(error)) = put {
            assert!(error.is_transient(), "{toxic:?}: {error:?}");
        }
        // While the network still does it.
        let there = direct.get_bytes(&name).await.expect("it is there");
        assert!(there == new || there == old && !stored, "{toxic:?}: stored {stored}, {} bytes", there.len());
        proxy.set(Toxic::Pass);
        let name = format!("products/after-{n}");
        answer(|| through.put(&name, after.clone())).await;
        for store in [&through, &direct] {
            assert!(store.get_bytes(&name).await.expect("it is there") == after, "{toxic:?}");
        }
    }
}

fn small() -> (Batching, Performance) {
    let batching = Batching { batch_timeout: Duration::from_millis(20), ..Batching::default() };
    let performance =
        Performance { snapshot_frequency: 1, snapshot_min_change: 0.0, ..Performance::default() };
    (batching, performance)
}

fn noise(entropy: &Entropy, length: usize) -> String {
    (0..length.div_ceil(16)).map(|_| format!("{:016x}", entropy.next_u64())).collect()
}

/// Nothing but Kafka: written, read, written on by another life on an empty disk, read by who starts from nothing, cleaned.
#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_lives_in_kafka_alone() {
    let mut setting = Setting::new("only-kafka", 2, SCHEMA);
    let topic = unique("blobs");
    setting.store = Some(format!("kafka://{topic}"));
    let entropy = Entropy::seeded(3);
    let records: Vec<_> = (0..600)
        .map(|n| {
            let id = format!("N-{n:03}");
            setting.upsert(&id, json!({"id": id, "text": noise(&entropy, 8_000)}))
        })
        .collect();
    setting.topic.produce(records);
    let (batching, performance) = small();
    let builder = |setting: &Setting| {
        let cleaning = Cleaning { keep_snapshots: 1, grace: Duration::from_millis(200) };
        setting.builder().batching(batching.clone()).performance(performance.clone()).cleaning(cleaning)
    };
    let producer = builder(&setting).start().await.expect("the producer starts");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;

    // Another life, of which the disk is empty, reads the view from the topic.
    producer.shutdown().await.expect("it stops");
    std::fs::remove_dir_all(setting.data_dir()).expect("the disk is wiped");
    let producer = builder(&setting).start().await.expect("the next life starts");
    for round in 0..4 {
        let change = setting.upsert("N-000", json!({"id": "N-000", "text": format!("round {round}")}));
        setting.topic.produce([change]);
        setting.settled(&consumer).await;
    }
    let late = scratch();
    let from_nothing = setting.consumer(late.path()).await;
    setting.settled(&from_nothing).await;
    assert!(blobs_on(late.path()) > 0, "what it read lies in its cache");

    // What is not kept any more goes: of the first life's snapshot nothing is left.
    let store = store(&topic, false);
    wait_until_async("old blobs are gone", LONG, || async {
        let listed = store.list("").await.map_err(|error| error.to_string())?;
        let snapshots = listed.iter().filter(|blob| blob.name.ends_with(".snapshot.avro")).count();
        let first = listed.iter().any(|blob| blob.name.contains("/00000000000000000001-"));
        if !first && snapshots <= 2 { Ok(()) } else { Err(format!("{listed:?}")) }
    })
    .await;
    consumer.shutdown().await.expect("it stops");
    from_nothing.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("it stops");
}

fn blobs_on(folder: &Path) -> usize {
    let inner = std::fs::read_dir(folder).expect("it is there").map(|entry| entry.expect("it reads").path());
    inner.map(|path| if path.is_dir() { blobs_on(&path) } else { 1 }).sum()
}

/// A writer that dies between two chunks of a blob: nobody sees it, the next life goes on, and commands read the topic.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_dies_in_the_middle_of_an_upload_leaves_nothing_to_see() {
    let mut setting = Setting::new("dies", 1, SCHEMA);
    let topic = made("blobs", 3, &[("cleanup.policy", "compact"), ("max.message.bytes", "20000")]);
    setting.store = Some(format!("kafka://{}", topic.name()));
    let instance = Instance::new(&setting, "writer");
    let entropy = Entropy::seeded(4);
    let records: Vec<_> = (0..40)
        .map(|n| {
            let id = format!("N-{n:02}");
            setting.upsert(&id, json!({"id": id, "text": noise(&entropy, 8_000)}))
        })
        .collect();
    setting.topic.produce(records);
    let mut dying = instance.command_to_run(&[]);
    dying.env("FAILPOINTS", "store.chunk=5*off->return(abort)");
    let died = stillwell_tests::Running::start(&mut dying).wait(LONG);
    assert!(!died.status.success(), "{}", died.stderr);
    let uploads = |whole: bool| {
        let of = |message: Message| {
            let (key, value) = (message.key?, message.value?);
            read_key(&key).is_some().then(|| Upload::decode(&value).expect("it is one"))
        };
        let all = left(&topic).into_values().filter_map(of);
        all.filter(|upload| upload.offsets.is_some() == whole).count()
    };
    assert!(uploads(false) > 0, "it died in the midst of one");

    let mut process = instance.started();
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    assert!(uploads(false) > 0 && uploads(true) > 0, "what the other left is not touched yet");
    // Commands that read blobs, and the one that cleans.
    let got = instance.run(&["get"], &["N-07"]).expect_code(0);
    assert!(got.stdout.contains("N-07"));
    let newest = instance.versions().pop().expect("a version");
    let url = newest["delta"]["url"].as_str().expect("a URL").to_owned();
    assert!(url.starts_with(&format!("kafka://{}/", topic.name())), "{url}");
    let config = instance.config().display().to_string();
    for command in ["inspect", "verify"] {
        let mut looks = stillwell_tests::stillwell(["blob", command, &url, "-c", &config]);
        let looked = stillwell_tests::run(&mut looks, LONG).expect_code(0);
        assert!(looked.stdout.contains(setting.dataset()), "{}", looked.stdout);
    }
    instance.run(&["blob", "gc"], &["--dry-run"]).expect_code(0);
    process.signal("KILL");
    process.wait(LONG);
    consumer.shutdown().await.expect("it stops");
}
