//! Either side stops and starts again, with what it had on disk or without.

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::json;
use stillwell::Version;
use stillwell::format::announcement::{Announcement, Message};
use stillwell_tests::{Running, scratch, wait_until, wait_until_async};

use crate::instance::{Instance, LONG};
use crate::line::SCHEMA;
use crate::setting::Setting;

/// Some changes each time: `n` upserts that overlap those before, and a delete.
fn changes(setting: &mut Setting, round: i32) -> Vec<stillwell_tests::Record> {
    let mut records: Vec<_> = (round * 50..round * 50 + 200)
        .map(|i| {
            let id = format!("P-{i}");
            setting.upsert(&id, json!({"id": id, "price": f64::from(round), "stock": i}))
        })
        .collect();
    records.push(setting.delete(&format!("P-{}", round * 50 + 3)));
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_starts_again_goes_on_where_it_was() {
    let mut setting = Setting::new("restart", 3, SCHEMA);
    let cache = scratch();
    let (mut consumer, mut last) = (None, Version(0));
    for round in 0..4 {
        let records = changes(&mut setting, round);
        setting.topic.produce(records);
        match round {
            // With all it had; without its log and cache, the blobs kept; with neither being asked for.
            2 => std::fs::remove_dir_all(setting.data_dir()).expect("the disk is wiped"),
            3 => std::fs::remove_dir_all(setting.data_dir().join("log")).expect("the log is lost"),
            _ => {}
        }
        let producer = setting.producer().await;
        if consumer.is_none() {
            consumer = Some(setting.consumer(cache.path()).await);
        }
        let consumer = consumer.as_ref().expect("just made");
        setting.settled(consumer).await;
        let farewell = producer.shutdown().await.expect("the producer stops");
        let version = farewell.version.expect("it announced");
        assert!(version > last, "version {version} after {last}: numbering never starts again");
        assert_eq!(farewell.left_in_log, 0);
        last = version;
    }
    consumer.expect("made").shutdown().await.expect("it stops");
}

/// A takeover fails, and the next one goes well: then all is well, though nothing is announced that would say so.
#[test]
fn a_failure_that_is_over_is_not_shown_until_the_next_version() {
    let mut setting = Setting::new("over", 1, SCHEMA);
    let records = changes(&mut setting, 0);
    setting.topic.produce(records);
    let instance = Instance::new(&setting, "one");
    instance.started().stop(LONG).expect_code(0);
    let before = instance.newest();
    let mut command = instance.command_to_run(&["--role", "producer"]);
    let mut process = Running::start(command.env("FAILPOINTS", "takeover.begun=1*return(error)"));
    process.wait_for_text("the life has ended", LONG);
    wait_until("health says that all is well", LONG, || match instance.get("/health") {
        Ok((200, body)) if body.contains("\"status\":\"healthy\"") => Ok(()),
        answer => Err(format!("{answer:?}")),
    });
    let versions = instance.versions();
    let since = versions.iter().filter(|version| version["version"].as_u64() > Some(before));
    let changes = since.filter(|version| version["upserts"] != 0 || version["deletes"] != 0);
    assert_eq!(changes.count(), 0, "nothing but what is only said is announced");
    process.stop(LONG).expect_code(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_starts_from_its_cache_and_from_nothing() {
    let mut setting = Setting::new("consumers", 1, SCHEMA);
    let (kept, fresh) = (scratch(), scratch());
    let records = changes(&mut setting, 0);
    setting.topic.produce(records);
    let producer = setting.producer().await;
    let consumer = setting.consumer(kept.path()).await;
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");

    // Behind by some versions, and with nothing at all: both find the newest.
    let records = changes(&mut setting, 1);
    setting.topic.produce(records);
    for cache in [&kept, &fresh] {
        let consumer = setting.consumer(cache.path()).await;
        setting.settled(&consumer).await;
        consumer.shutdown().await.expect("it stops");
    }
    producer.shutdown().await.expect("the producer stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_new_after_a_restart_at_rest_announces_nothing_but_the_life() {
    let mut setting = Setting::new("rest", 1, SCHEMA);
    let cache = scratch();
    let records = changes(&mut setting, 0);
    setting.topic.produce(records);
    let producer = setting.producer().await;
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let first = producer.shutdown().await.expect("the producer stops").version.expect("it announced");

    // Stopped again before anything came: there is nothing to announce, and nothing to wait for.
    let producer = setting.producer().await;
    wait_until_async("the shard is taken over", LONG, || {
        std::future::ready(match producer.status().state {
            Some(stillwell::producer::own::State::Running) => Ok(()),
            state => Err(format!("{state:?}")),
        })
    })
    .await;
    // Below the half minute that a stop with something to wait for may take.
    let idle = tokio::time::timeout(std::time::Duration::from_secs(28), producer.shutdown()).await;
    assert_eq!(idle.expect("it stops").expect("it stops well").version, Some(first));

    let producer = setting.producer().await;
    let more = setting.upsert("one more", json!({"id": "one more", "price": 1.0, "stock": null}));
    setting.topic.produce([more]);
    setting.settled(&consumer).await;
    let second = producer.shutdown().await.expect("the producer stops").version.expect("it announced");
    // The change, and the version that lists the snapshot of the graceful stop.
    assert!(second.0 - first.0 <= 2, "{first} to {second}: a restart at rest mints no version of its own");
    consumer.shutdown().await.expect("it stops");
}

/// All that was announced, in order.
fn announcements(setting: &Setting) -> Vec<Announcement> {
    let messages = setting.topic.beside(&format!("{}.announcements", setting.dataset())).read();
    let values = messages.into_iter().map(|message| message.value.expect("nothing in this topic is deleted"));
    let decoded = values.map(|value| Message::decode(&value).expect("only our own records are in it"));
    let announcement = |message| match message {
        Message::Announcement(announcement) => Some(*announcement),
        Message::Epoch(_) => None,
    };
    decoded.filter_map(announcement).collect()
}

/// Commits these offsets, one for each partition, as an operator resets a group. Kafka takes them once the group is empty: a
/// producer that has stopped is a member until its session ends.
fn reset_group(setting: &Setting, offsets: &[i64]) {
    let wanted: Vec<Offset> = offsets.iter().copied().map(Offset::Offset).collect();
    let mut list = TopicPartitionList::new();
    for (partition, offset) in (0..).zip(&wanted) {
        list.add_partition_offset(setting.dataset(), partition, *offset).expect("a plain offset");
    }
    wait_until("the group takes the offsets", LONG, || {
        let client: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &setting.bootstrap)
            .set("group.id", format!("stillwell.{}", setting.dataset()))
            .set("enable.auto.commit", "false")
            .create()
            .expect("a consumer can be made");
        client.commit(&list, CommitMode::Sync).map_err(|error| error.to_string())?;
        let committed = client.committed_offsets(list.clone(), LONG).map_err(|error| error.to_string())?;
        let committed: Vec<Offset> = committed.elements().iter().map(|element| element.offset()).collect();
        if committed == wanted { Ok(()) } else { Err(format!("{committed:?} are committed, not {wanted:?}")) }
    });
}

/// The group's offsets are for those who watch its lag. Where a life goes on is told by the last announcement alone.
#[tokio::test(flavor = "multi_thread")]
async fn offsets_that_somebody_resets_move_no_start() {
    let mut setting = Setting::new("reset", 2, SCHEMA);
    let cache = scratch();
    let (mut consumer, mut produced) = (None, 0);
    for round in 0..3 {
        // Each key once a round, with a value that it never had: what is read once is neither coalesced nor unchanged.
        let records: Vec<_> = (round * 20..round * 20 + 60)
            .map(|i| {
                let id = format!("P-{i}");
                setting.upsert(&id, json!({"id": id, "price": f64::from(round), "stock": i}))
            })
            .collect();
        produced += setting.topic.produce(records);
        let ends: Vec<i64> = setting.topic.watermarks().into_iter().map(|(_, end)| end).collect();
        match round {
            0 => {}
            // All was still to be read, by the group's offsets; then: what was produced meanwhile has been read.
            1 => reset_group(&setting, &vec![0; ends.len()]),
            _ => reset_group(&setting, &ends),
        }
        // The shortest session that brokers allow by default: nothing here counts lives, and each reset waits for its end.
        let producer = setting.builder().kafka_property("session.timeout.ms", "6000").start().await;
        let producer = producer.expect("the producer starts");
        if consumer.is_none() {
            consumer = Some(setting.consumer(cache.path()).await);
        }
        setting.settled(consumer.as_ref().expect("just made")).await;
        producer.shutdown().await.expect("the producer stops");

        let announced = announcements(&setting);
        let versions: Vec<Version> = announced.iter().map(|it| it.version).collect();
        let gapless: Vec<Version> = (1..=announced.len() as u64).map(Version).collect();
        assert_eq!(versions, gapless, "round {round}: versions are gapless, each announced once");
        let upserts: u64 = announced.iter().map(|it| it.upserts).sum();
        let others: u64 =
            announced.iter().map(|it| it.deletes + it.coalesced + it.unchanged + it.letters).sum();
        assert_eq!((upserts, others), (produced as u64, 0), "round {round}: each record is in one version");
        let last = announced.last().expect("there are some");
        let positions: Vec<i64> = last.positions.iter().map(|position| position.offset).collect();
        assert_eq!(positions, ends, "round {round}: all of the source was read");
    }
    consumer.expect("made").shutdown().await.expect("it stops");
}
