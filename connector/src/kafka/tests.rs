//! The room against the embedded broker; what needs a real one is in `tests/flow/kafka`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::*;
use crate::clock::Clock;
use crate::record::TopicId;
use crate::telemetry::Metrics;

const LONG: Duration = Duration::from_secs(120);

fn now() -> Instant {
    Clock::system().now()
}

fn cluster(topics: &[(&str, i32)]) -> (Cluster, Options) {
    let cluster = Cluster::start(1).expect("it starts");
    for (topic, partitions) in topics {
        cluster.create_topic(topic, *partitions).expect("created");
    }
    let options = cluster.options("test");
    (cluster, options)
}

fn record<'a>(topic: &'a str, key: &'a str, value: &'a str) -> Outgoing<'a> {
    Outgoing { topic, key: Some(key.as_bytes()), value: Some(value.as_bytes()), ..Outgoing::default() }
}

/// All values up to the end of each partition.
fn read(options: &Options, partitions: &[(&str, i32, i64)]) -> Vec<String> {
    let mut poller = Poller::new(options, &Tuning::source("group", 1 << 20)).expect("a poller");
    poller.assign(partitions).expect("assigned");
    let (mut values, mut ended) = (Vec::new(), vec![false; partitions.len()]);
    let deadline = now() + LONG;
    while ended.contains(&false) {
        assert!(now() < deadline, "{values:?} {ended:?}");
        match poller.poll(Duration::from_millis(100)) {
            Some(Polled::Record { message, slot }) => {
                assert_eq!(message.topic(), partitions[slot].0);
                values.push(String::from_utf8(message.value().expect("a value").to_vec()).expect("text"));
            }
            Some(Polled::End { slot, .. }) => ended[slot] = true,
            Some(Polled::Lost { detail, .. }) => panic!("{detail}"),
            Some(Polled::Error(error)) => panic!("{error}"),
            None => {}
        }
    }
    values
}

#[test]
fn options_show_no_secret() {
    let mut options = Options { client_id: "me".to_owned(), ..Options::default() };
    options.properties.insert("sasl.password".to_owned(), "hunter2".to_owned());
    let shown = format!("{options:?}");
    assert!(shown.contains("sasl.password") && !shown.contains("hunter2"), "{shown}");
    let refused = |key: &str, value: &str| {
        let mut options = options.clone();
        options.properties.insert(key.to_owned(), value.to_owned());
        match Poller::new(&options, &Tuning::source("group", 1 << 20)) {
            Err(error) => error,
            Ok(_) => panic!("{key}={value} was taken"),
        }
    };
    for error in [refused("no.such.property", "s3cret"), refused("security.protocol", "s3cret")] {
        assert!(matches!(error, Error::Options { .. }), "{error:?}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
    assert!(refused("no.such.property", "s3cret").to_string().contains("no.such.property"));
}

#[test]
fn a_poller_needs_a_group() {
    let error = match Poller::new(&Options::default(), &Tuning::source("", 1 << 20)) {
        Err(error) => error,
        Ok(_) => panic!("taken"),
    };
    assert!(error.to_string().contains("group.id"), "{error}");
}

#[tokio::test]
async fn what_is_sent_is_read_from_where_it_went() {
    let (_cluster, options) = cluster(&[("a", 2), ("b", 1)]);
    let sender = Sender::new(&options).expect("a sender");
    let mut waiting = Vec::new();
    for n in 0..100 {
        let (key, value) = (n.to_string(), format!("value {n}"));
        waiting.push(sender.enqueue(&record("a", &key, &value)).await.expect("in line"));
    }
    let mut counts = [0; 2];
    for delivered in waiting {
        counts[delivered.await.expect("delivered").partition as usize] += 1;
    }
    assert!(counts[0] > 20 && counts[1] > 20, "{counts:?}");
    sender.send(&Outgoing { partition: Some(0), ..record("b", "", "b") }).await.expect("delivered");
    sender.flush(LONG).await.expect("flushed");
    let options = options.clone();
    let read = tokio::task::spawn_blocking(move || read(&options, &[("b", 0, 0), ("a", 1, 0), ("a", 0, 0)]));
    let read = read.await.expect("read");
    assert_eq!(read.len(), 101);
    assert!(read.contains(&"b".to_owned()));
}

/// A client that had no broker left for a while asks one that takes its time to answer: that is no outage.
#[tokio::test]
async fn a_slow_answer_after_an_outage_is_not_another_one() {
    let (cluster, mut options) = cluster(&[("there", 1)]);
    let clock = Clock::manual(0);
    options.reach = Reach::new(clock.clone());
    let (first, second) = (Admin::new(&options).expect("an admin"), Admin::new(&options).expect("an admin"));
    first.brokers().await.expect("answered");
    cluster.set_up(false).expect("down");
    // Nothing is heard of the first while it is not asked; the second hears it at about the same time.
    {
        let mut asked = std::pin::pin!(second.brokers());
        let deadline = now() + LONG;
        while !options.reach.is_away() {
            assert!(now() < deadline, "no outage is heard of");
            let _ = tokio::time::timeout(Duration::from_millis(20), asked.as_mut()).await;
        }
        assert!(options.reach.why().is_some_and(|why| !why.is_empty()), "it has a reason");
        cluster.set_up(true).expect("up");
        asked.await.expect("answered");
    }
    assert!(!options.reach.is_away());
    clock.advance(LONG);
    cluster.set_slow(Duration::from_millis(1_500)).expect("slow");
    let reach = options.reach.clone();
    let mut asked = std::pin::pin!(first.brokers());
    let answer = loop {
        match tokio::time::timeout(Duration::from_millis(20), asked.as_mut()).await {
            Ok(answer) => break answer,
            Err(_) => assert!(!reach.is_away(), "it only takes its time"),
        }
    };
    assert_eq!(answer.expect("answered at last"), 1);
}

#[tokio::test]
async fn administration_does_what_the_embedded_broker_can() {
    let (_cluster, options) = cluster(&[("there", 3)]);
    let admin = Admin::new(&options).expect("an admin");
    assert_eq!(admin.describe("missing").await.expect("answered"), None);
    assert_eq!(admin.describe("missing").await.expect("asking does not create it"), None);
    let there = admin.describe("there").await.expect("answered");
    assert_eq!(there, Some(TopicInfo { id: TopicId::default(), partitions: 3 }));
    assert_eq!(admin.topic_config("there").await.expect("answered"), BTreeMap::new());
    assert_eq!(admin.watermarks("there", 2).await.expect("answered"), (0, 0));
    admin.delete_records("there", 0, 0).await.expect("nothing to do");
    assert_eq!(admin.brokers().await.expect("answered"), 1);
    let spec = TopicSpec { name: "new".into(), partitions: 1, replication: None, config: BTreeMap::new() };
    let error = admin.create(&spec).await.expect_err("only through the cluster");
    assert!(error.to_string().contains("Cluster"), "{error}");
}

#[tokio::test]
async fn an_outage_is_heard_of_while_a_request_waits_and_is_over_with_the_next_answer() {
    let (cluster, options) = cluster(&[("there", 1)]);
    let admin = Admin::new(&options).expect("an admin");
    admin.brokers().await.expect("it answers");
    assert!(!options.reach.is_away());
    cluster.set_up(false).expect("down");
    let heard = async {
        while !options.reach.is_away() {
            tokio::task::yield_now().await;
        }
        cluster.set_up(true).expect("up");
    };
    // Whether that request is still answered depends on when the client tries again.
    let both = async { tokio::join!(admin.brokers(), heard) };
    tokio::time::timeout(LONG, both)
        .await
        .map(|_| ())
        .expect("it is heard of within the time of the request");
    admin.brokers().await.expect("it answers again");
    assert!(!options.reach.is_away());
}

#[test]
fn transactions_commit_and_abort() {
    let (_cluster, options) = cluster(&[("tx", 1)]);
    let mut send = Transaction::new(&options, "me", Clock::system()).expect("a client");
    send.init(LONG).expect("init");
    for value in ["first", "second"] {
        send.begin().expect("begin");
        send.send(&record("tx", "k", value), LONG).expect("sent");
        let outcome = send.commit(LONG);
        assert!(matches!(outcome, Outcome::Committed), "{outcome:?}");
        assert_eq!(send.delivered().len(), 1);
    }
    send.begin().expect("begin");
    send.send(&record("tx", "k", "aborted"), LONG).expect("sent");
    send.abort(LONG).expect("aborted");
    // The embedded broker writes no markers and hides nothing: that is for a real one to show.
    let read = read(&options, &[("tx", 0, 0)]);
    assert_eq!(read.get(..2), Some(&["first".to_owned(), "second".to_owned()][..]), "{read:?}");
}

/// The broker goes away in the middle: the outcome is not claimed to be known, nor waited for longer than told.
#[test]
fn a_commit_without_an_answer_is_unknown() {
    let (cluster, options) = cluster(&[("gone", 1)]);
    let mut send = Transaction::new(&options, "me", Clock::system()).expect("a client");
    send.init(LONG).expect("init");
    send.begin().expect("begin");
    send.send(&record("gone", "k", "v"), LONG).expect("sent");
    let deadline = now() + LONG;
    while send.delivered().is_empty() {
        assert!(now() < deadline);
        std::thread::yield_now();
    }
    cluster.set_up(false).expect("down");
    let started = now();
    let outcome = send.commit(Duration::from_millis(1_500));
    assert!(matches!(outcome, Outcome::Unknown(_)), "{outcome:?}");
    assert!(started.elapsed() < LONG, "{:?}", started.elapsed());

    // What was never delivered cannot have been committed: that much is known.
    let mut send = Transaction::new(&options, "other", Clock::system()).expect("a client");
    cluster.set_up(true).expect("up");
    send.init(LONG).expect("init");
    send.begin().expect("begin");
    cluster.set_up(false).expect("down");
    send.send(&record("gone", "k", "v"), LONG).expect("in line");
    let outcome = send.commit(Duration::from_millis(500));
    assert!(matches!(outcome, Outcome::Aborted(_)), "{outcome:?}");
}

#[tokio::test]
async fn a_member_joins_and_owns() {
    let (_cluster, options) = cluster(&[("owned", 1)]);
    let mut member = Member::join(&options, "group", "owned", "me").expect("a member");
    let event = tokio::time::timeout(LONG, member.next()).await.expect("in time");
    assert!(matches!(&event, Some(Event::Assigned(partitions)) if partitions == &[0]), "{event:?}");
    let membership = member.membership();
    assert!(membership.owns(0) && !membership.owns(1));
    let metadata = membership.group_metadata().expect("it is a member");
    let taken = tokio::task::spawn_blocking(move || {
        let mut send = Transaction::new(&options, "me", Clock::system()).expect("a client");
        send.init(LONG).expect("init");
        send.begin().expect("begin");
        send.send(&record("owned", "k", "v"), LONG).expect("sent");
        send.send_offsets(&[("owned", 0, 1)], &metadata, LONG).expect("taken and forgotten");
        matches!(send.commit(LONG), Outcome::Committed)
    });
    assert!(taken.await.expect("no panic"));
    member.close().await;
    assert!(!membership.owns(0) && membership.group_metadata().is_none());
}

#[test]
fn a_broker_that_comes_back_is_found_again_and_read_on() {
    let (cluster, options) = cluster(&[("back", 1)]);
    let metrics = Metrics::new();
    let mut measured = options.measured(&metrics, "back/0");
    measured.properties.insert("statistics.interval.ms".to_owned(), "100".to_owned());
    let mut poller =
        Poller::new(&measured, &Tuning::tail("group", Duration::from_secs(1))).expect("a poller");
    poller.assign(&[("back", 0, 0)]).expect("assigned");
    let sender = Sender::new(&measured).expect("a sender");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut seen = 0;
    for round in 1..=2 {
        runtime.block_on(sender.send(&record("back", "k", "v"))).expect("delivered");
        let deadline = now() + LONG;
        while seen < round {
            assert!(now() < deadline, "round {round}");
            if let Some(Polled::Record { message, .. }) = poller.poll(Duration::from_millis(50)) {
                assert_eq!(message.offset() + 1, round);
                seen = round;
            }
        }
        assert_eq!(poller.position(0), Some(round));
        cluster.set_up(false).expect("down");
        let told = loop {
            assert!(now() < deadline, "round {round}: nobody says that the broker is away");
            if let Some(Polled::Error(error)) = poller.poll(Duration::from_secs(5)) {
                break error;
            }
        };
        assert!(told.is_transient() && told.to_string().starts_with("reaching Kafka"), "{told:?}");
        cluster.set_up(true).expect("up");
    }
    let deadline = now() + LONG;
    loop {
        poller.poll(Duration::from_millis(50));
        let text = metrics.text();
        let received = text.contains("kafka_received_messages_total{client=\"back/0/tail\"} 2");
        if received && text.contains("kafka_sent_messages_total{client=\"back/0/sender\"} 2") {
            return;
        }
        assert!(now() < deadline, "{text}");
    }
}

/// Assigned anew or closed while librdkafka still stops what was assigned before, it would abort the process. To stop many
/// partitions takes it long enough for that to happen.
#[test]
fn what_is_assigned_again_and_again_is_read_from_where_it_was_told_last() {
    const RECORDS: i64 = 8;
    const PARTITIONS: i32 = 64;
    let (_cluster, options) = cluster(&[("again", PARTITIONS)]);
    let sender = Sender::new(&options).expect("a sender");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for _ in 0..RECORDS {
        let record = Outgoing { partition: Some(0), ..record("again", "k", "v") };
        runtime.block_on(sender.send(&record)).expect("delivered");
    }
    for round in 0..40 {
        let mut poller = Poller::new(&options, &Tuning::source("group", 1 << 20)).expect("a poller");
        let mut from = 0;
        for step in 0..6 {
            from = (round + 3 * step) % RECORDS;
            let at = |partition| ("again", partition, if partition == 0 { from } else { 0 });
            let at: Vec<_> = (0..PARTITIONS).map(at).collect();
            poller.assign(&at).expect("assigned");
        }
        // Some are closed at once, some are assigned once more, by being resumed.
        match round % 3 {
            0 => continue,
            1 => {
                poller.pause(poller.all()).expect("paused");
                poller.resume(poller.all()).expect("resumed");
            }
            _ => {}
        }
        let deadline = now() + LONG;
        for offset in from..RECORDS {
            loop {
                assert!(now() < deadline, "round {round}: nothing at {offset}, begun at {from}");
                match poller.poll(Duration::from_millis(50)) {
                    Some(Polled::Record { slot, message }) => {
                        let came = (slot, message.offset());
                        assert_eq!(came, (0, offset), "round {round}, begun at {from}");
                        break;
                    }
                    Some(Polled::Lost { detail, .. }) => panic!("round {round}: {detail}"),
                    Some(Polled::Error(error)) if !error.is_transient() => panic!("round {round}: {error}"),
                    Some(Polled::Error(_) | Polled::End { .. }) | None => {}
                }
            }
        }
    }
}

/// Nobody polls while nothing is there: what comes has to be told.
#[tokio::test]
async fn what_comes_is_told_to_who_waits_for_other_things_too() {
    let (_cluster, options) = cluster(&[("told", 1)]);
    let sender = Sender::new(&options).expect("a sender");
    let mut poller =
        Poller::new(&options, &Tuning::tail("group", Duration::from_millis(100))).expect("a poller");
    let arrivals = poller.arrivals();
    poller.assign(&[("told", 0, 0)]).expect("assigned");
    for sent in 0..5 {
        // The word that the partition has ended, and whatever else there is; until nothing came for a while.
        while tokio::time::timeout(Duration::from_millis(500), arrivals.notified()).await.is_ok() {
            while poller.poll(Duration::ZERO).is_some() {}
        }
        sender.send(&record("told", "k", "v")).await.expect("delivered");
        let deadline = now() + LONG;
        loop {
            let told = tokio::time::timeout(deadline - now(), arrivals.notified()).await;
            assert!(told.is_ok(), "record {sent} was not told of within {LONG:?}");
            let mut came = Vec::new();
            while let Some(polled) = poller.poll(Duration::ZERO) {
                if let Polled::Record { message, .. } = polled {
                    came.push(message.offset());
                }
            }
            match came.as_slice() {
                [] => {}
                came => {
                    assert_eq!(came, [sent]);
                    break;
                }
            }
        }
    }
}
