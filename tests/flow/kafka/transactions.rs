//! Transactions: all or nothing, and their outcomes told apart.

use std::time::Duration;

use stillwell::clock::Clock;
use stillwell::kafka::{Error, Member, Outcome, Outgoing, Transaction};
use stillwell_tests::{Topic, bootstrap, unique};

use super::membership::assigned;
use super::{LONG, options, read_to_ends, runtime, source, transaction};

#[test]
fn a_transaction_shows_letters_offsets_and_announcement_at_once() {
    let runtime = runtime();
    let (sources, letters, announcements) =
        (Topic::create("tx-source", 2), Topic::create("tx-letters", 1), Topic::create("tx-announcements", 1));
    let group = unique("tx-group");
    let mut member =
        Member::join(&options(), &group, announcements.name(), &unique("instance")).expect("a member");
    assert_eq!(runtime.block_on(assigned(&mut member)), [0]);
    let membership = member.membership();
    assert!(membership.owns(0) && !membership.owns(1));

    // The group's metadata is made by the member and used by another thread.
    let id = unique("tx");
    let (origin, letter, announcement) =
        (sources.name().to_owned(), letters.name().to_owned(), announcements.name().to_owned());
    std::thread::spawn(move || {
        let mut send = transaction(&id);
        for round in 1..=3 {
            send.begin().expect("begin");
            let value = format!("letter {round}");
            let record = Outgoing { topic: &letter, value: Some(value.as_bytes()), ..Outgoing::default() };
            send.send(&record, LONG).expect("sent");
            let metadata = membership.group_metadata().expect("a member has metadata");
            send.send_offsets(&[(&origin, 0, round), (&origin, 1, 10 * round)], &metadata, LONG)
                .expect("offsets");
            let value = format!("version {round}");
            let record = Outgoing {
                topic: &announcement,
                partition: Some(0),
                value: Some(value.as_bytes()),
                ..record
            };
            send.send(&record, LONG).expect("sent");
            let outcome = send.commit(LONG);
            assert!(matches!(outcome, Outcome::Committed), "{outcome:?}");
            let delivered: Vec<_> = send.delivered().iter().map(|at| at.offset).collect();
            assert_eq!(delivered, [2 * (round - 1); 2], "each round leaves a record and a marker");
        }
    })
    .join()
    .expect("the announcing thread lives");
    assert_eq!(committed(&group, sources.name(), 2), [Some(3), Some(30)]);
    let mut poller = source();
    poller.assign(&[(letters.name(), 0, 0), (announcements.name(), 0, 0)]).expect("assigned");
    let read = read_to_ends(&mut poller);
    assert_eq!(read.records.len(), 6);
    runtime.block_on(member.close());
}

/// With librdkafka's default backoff each would take 100 ms and more.
#[test]
fn transactions_follow_each_other_without_a_pause() {
    const COUNT: usize = 100;
    let (letters, announcements) = (Topic::create("pace-letters", 1), Topic::create("pace", 1));
    let mut send = transaction(&unique("pace"));
    let mut took = Vec::with_capacity(COUNT);
    for _ in 0..COUNT {
        let started = super::now();
        send.begin().expect("begin");
        for topic in [&letters, &announcements] {
            send.send(&Outgoing { topic: topic.name(), value: Some(b"x"), ..Outgoing::default() }, LONG)
                .expect("sent");
        }
        assert!(matches!(send.commit(LONG), Outcome::Committed));
        took.push(started.elapsed());
    }
    // A pause would be in all of them; a busy machine is slow now and then.
    took.sort();
    println!("a transaction on two topics takes {:?} at best, {:?} as a rule", took[0], took[COUNT / 2]);
    assert!(took[0] < Duration::from_millis(100), "{took:?}");
}

/// A second client with the same id fences the first: whatever it does next says so.
#[test]
fn a_newer_life_fences_the_older() {
    let topic = Topic::create("fenced", 1);
    let id = unique("fenced");
    let record = Outgoing { topic: topic.name(), value: Some(b"old"), ..Outgoing::default() };

    let mut old = transaction(&id);
    old.begin().expect("begin");
    old.send(&record, LONG).expect("sent");
    let mut new = transaction(&id);
    let outcome = old.commit(LONG);
    assert!(matches!(outcome, Outcome::Fenced(_)), "{outcome:?}");
    let error = old.begin().expect_err("it is over");
    assert!(matches!(error, Error::Fenced { .. }), "{error:?}");

    new.begin().expect("begin");
    new.send(&Outgoing { value: Some(b"new"), ..record }, LONG).expect("sent");
    assert!(matches!(new.commit(LONG), Outcome::Committed));
    let mut poller = source();
    poller.assign(&[(topic.name(), 0, 0)]).expect("assigned");
    let values: Vec<_> = read_to_ends(&mut poller).records.into_iter().map(|(.., value)| value).collect();
    assert_eq!(values, ["new"]);
}

/// A member that is out of the group cannot commit offsets: the transaction is aborted, and nothing of it is seen.
#[test]
fn offsets_of_a_member_that_is_out_abort_the_transaction() {
    let runtime = runtime();
    let (sources, announcements) = (Topic::create("out-source", 1), Topic::create("out-announcements", 1));
    let group = unique("out");
    let instance = unique("instance");
    let mut first = Member::join(&options(), &group, announcements.name(), &instance).expect("a member");
    runtime.block_on(assigned(&mut first));
    let stale = first.membership().group_metadata().expect("a member has metadata");
    let mut second = Member::join(&options(), &group, announcements.name(), &instance).expect("a member");
    runtime.block_on(assigned(&mut second));

    let mut send = transaction(&unique("out"));
    send.begin().expect("begin");
    let record = Outgoing { topic: announcements.name(), value: Some(b"zombie"), ..Outgoing::default() };
    send.send(&record, LONG).expect("sent");
    let error = send.send_offsets(&[(sources.name(), 0, 7)], &stale, LONG).expect_err("it is out");
    assert!(matches!(error, Error::Fenced { .. }), "{error:?}");
    send.abort(LONG).expect("aborted");
    assert_eq!(committed(&group, sources.name(), 1), [None]);
    let mut poller = source();
    poller.assign(&[(announcements.name(), 0, 0)]).expect("assigned");
    assert!(read_to_ends(&mut poller).records.is_empty());
    runtime.block_on(first.close());
    runtime.block_on(second.close());
}

/// One record that the broker does not take aborts all: the others are not seen either.
#[test]
fn a_record_that_is_too_large_aborts_the_transaction() {
    let (letters, small) = (Topic::create("large-letters", 1), Topic::create("large", 1));
    let mut send = transaction(&unique("large"));
    send.begin().expect("begin");
    send.send(&Outgoing { topic: small.name(), value: Some(b"fine"), ..Outgoing::default() }, LONG)
        .expect("sent");
    // Above the topic's limit (1 MB by default), below the client's.
    let large = vec![b'x'; 3 << 20];
    send.send(&Outgoing { topic: letters.name(), value: Some(&large), ..Outgoing::default() }, LONG)
        .expect("sent");
    let outcome = send.commit(LONG);
    assert!(matches!(&outcome, Outcome::Aborted(Error::Rejected { .. })), "{outcome:?}");
    let mut poller = source();
    poller.assign(&[(small.name(), 0, 0), (letters.name(), 0, 0)]).expect("assigned");
    assert!(read_to_ends(&mut poller).records.is_empty());

    // Above the client's own limit: refused before it is sent.
    let mut send = transaction(&unique("large"));
    send.begin().expect("begin");
    let huge = vec![b'x'; 11 << 20];
    let error = send
        .send(&Outgoing { topic: letters.name(), value: Some(&huge), ..Outgoing::default() }, LONG)
        .expect_err("too large");
    assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
    send.abort(LONG).expect("aborted");
}

#[test]
fn a_client_without_kafka_waits_no_longer_than_it_is_told() {
    let mut nowhere = options();
    nowhere.bootstrap_servers = "127.0.0.1:1".to_owned();
    let send = Transaction::new(&nowhere, "nobody", Clock::system()).expect("a client");
    let started = super::now();
    let error = send.init(Duration::from_millis(700)).expect_err("nobody there");
    assert!(error.is_transient(), "{error:?}");
    assert!(started.elapsed() < LONG, "{:?}", started.elapsed());
}

/// A group's committed offsets, by librdkafka alone.
fn committed(group: &str, topic: &str, partitions: i32) -> Vec<Option<i64>> {
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::{ClientConfig, Offset, TopicPartitionList};
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap())
        .set("group.id", group)
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, partitions - 1);
    let committed = consumer.committed_offsets(list, LONG).expect("answered");
    let elements = committed.elements();
    let offsets = elements.iter().map(|element| match element.offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    });
    offsets.collect()
}
