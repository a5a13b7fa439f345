//! Reading: lost offsets, ends, open transactions, pausing, waiting; and the sender, whose records are read.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stillwell::clock::Clock;
use stillwell::kafka::{
    Admin, Kept, Outcome, Outgoing, Polled, Poller, Sender, Transaction, Tuning, read_back,
};
use stillwell_tests::{Record, Topic, unique};

use super::{LONG, now, options, read_to_ends, runtime, source, transaction};

/// Waits until what was sent is in the log, neither committed nor aborted.
fn deliver(send: &mut Transaction) {
    let deadline = now() + LONG;
    while send.delivered().is_empty() {
        assert!(now() < deadline);
        std::thread::yield_now();
    }
}

/// A position that retention has passed, and one beyond the end, are told, with their slot; others read on.
#[test]
fn a_lost_offset_is_told_and_never_skipped() {
    let (trimmed, whole) = (Topic::create("lost", 1), Topic::create("whole", 1));
    trimmed.produce((0..10).map(|n| Record::upsert("k", n.to_string())));
    whole.produce((0..3).map(|n| Record::upsert("k", n.to_string())));
    trimmed.delete_before(0, 5);
    let mut poller = source();
    poller.assign(&[(whole.name(), 0, 0), (trimmed.name(), 0, 4)]).expect("assigned");
    let read = read_to_ends(&mut poller);
    assert_eq!(read.lost, BTreeSet::from([1]));
    assert_eq!(read.records.len(), 3);
    assert!(read.records.iter().all(|(slot, ..)| *slot == 0));
    assert_eq!(poller.position(1), Some(4), "it stays where it was");

    poller.assign(&[(trimmed.name(), 0, 5), (whole.name(), 0, 4)]).expect("assigned");
    let read = read_to_ends(&mut poller);
    assert_eq!((read.lost, read.records.len()), (BTreeSet::from([1]), 5));
}

/// Who reads back from the end of a topic that is trimmed meanwhile begins again with what is left.
#[test]
fn reading_back_over_what_is_trimmed_begins_again() {
    let topic = Topic::create("trimmed", 1);
    topic.produce((0..100).map(|n| Record::upsert("k", n.to_string())));
    let back = |enough: usize| {
        let clock = Clock::system();
        let deadline = clock.now() + LONG;
        let mut poller = source();
        // As the ends were when they were asked for.
        let ends = (0, 100);
        let enough = |records: &[Kept]| records.len() >= enough;
        let window =
            read_back(&mut poller, topic.name(), 0, ends, &clock, deadline, &Default::default(), enough);
        let window = window.expect("it is read");
        (window.records.first().map(|record| record.offset), window.records.len(), window.whole)
    };
    assert_eq!(back(usize::MAX), (Some(0), 100, true));
    topic.delete_before(0, 60);
    assert_eq!(back(30), (Some(68), 32, false), "nothing of it was trimmed");
    assert_eq!(back(usize::MAX), (Some(60), 40, false), "not what it was");
    topic.delete_before(0, 100);
    assert_eq!(back(1), (None, 0, false), "nothing is left, and there was something");
}

/// Transactions on two topics whose partitions have the same number: ends lie behind markers and aborted records.
#[test]
fn ends_count_markers_and_aborted_records() {
    let (first, second) = (Topic::create("ends-a", 1), Topic::create("ends-b", 1));
    let mut send = transaction(&unique("ends"));
    for (topic, value, commit) in [
        (&first, "kept", true),
        (&first, "aborted", false),
        (&second, "kept", true),
        (&first, "kept too", true),
    ] {
        send.begin().expect("begin");
        let record = Outgoing { topic: topic.name(), value: Some(value.as_bytes()), ..Outgoing::default() };
        send.send(&record, LONG).expect("sent");
        if commit {
            assert!(matches!(send.commit(LONG), Outcome::Committed));
        } else {
            deliver(&mut send);
            send.abort(LONG).expect("aborted");
            send = transaction(&unique("ends"));
        }
    }
    send.begin().expect("begin");
    send.send(&Outgoing { topic: first.name(), value: Some(b"last, aborted"), ..Outgoing::default() }, LONG)
        .expect("sent");
    deliver(&mut send);
    send.abort(LONG).expect("aborted");

    let mut poller = source();
    poller.assign(&[(second.name(), 0, 0), (first.name(), 0, 0)]).expect("assigned");
    let read = read_to_ends(&mut poller);
    let of =
        |slot| read.records.iter().filter(move |record| record.0 == slot).map(|record| record.2.as_str());
    assert_eq!(of(0).collect::<Vec<_>>(), ["kept"]);
    assert_eq!(of(1).collect::<Vec<_>>(), ["kept", "kept too"]);
    let ends = |topic: &Topic| topic.watermarks()[0].1;
    assert_eq!((ends(&first), ends(&second)), (8, 2), "each record with its marker");
    assert_eq!(read.ends, BTreeMap::from([(0, ends(&second)), (1, ends(&first))]));
    assert_eq!(poller.position(1), Some(ends(&first)));
    // Started behind the last record, among markers: the end is told at once.
    poller.assign(&[(first.name(), 0, ends(&first))]).expect("assigned");
    assert_eq!(read_to_ends(&mut poller).ends, BTreeMap::from([(0, ends(&first))]));
}

/// An open transaction holds the end back: nothing beyond it is shown, and when it ends the rest follows.
#[test]
fn an_open_transaction_holds_back_what_follows_it() {
    let topic = Topic::create("open", 1);
    topic.produce([Record::upsert("k", "before")]);
    let mut send = transaction(&unique("open"));
    send.begin().expect("begin");
    send.send(&Outgoing { topic: topic.name(), value: Some(b"open"), ..Outgoing::default() }, LONG)
        .expect("sent");
    deliver(&mut send);
    topic.produce([Record::upsert("k", "behind")]);
    let admin = Admin::new(&options()).expect("an admin");
    let runtime = runtime();
    assert_eq!(
        runtime.block_on(admin.watermarks(topic.name(), 0)).expect("ends").1,
        1,
        "the last stable offset"
    );

    let mut poller = source();
    poller.assign(&[(topic.name(), 0, 0)]).expect("assigned");
    let mut seen = Vec::new();
    let started = now();
    // Some time behind what is there, which on a busy machine may be long in coming.
    while started.elapsed() < Duration::from_secs(2) || (seen.is_empty() && started.elapsed() < LONG) {
        match poller.poll(Duration::from_millis(50)) {
            Some(Polled::Record { message, .. }) => seen.push(message.offset()),
            Some(Polled::End { offset, .. }) => assert_eq!(offset, 1),
            Some(Polled::Error(error)) => panic!("{error}"),
            Some(Polled::Lost { .. }) => panic!("lost"),
            None => {}
        }
    }
    assert_eq!(seen, [0]);
    assert!(matches!(send.commit(LONG), Outcome::Committed));
    let deadline = now() + LONG;
    let mut end = None;
    while end != Some(4) {
        assert!(now() < deadline, "{seen:?} {end:?}");
        match poller.poll(Duration::from_millis(50)) {
            Some(Polled::Record { message, .. }) => seen.push(message.offset()),
            Some(Polled::End { offset, .. }) => end = Some(offset),
            _ => {}
        }
    }
    assert_eq!(seen, [0, 1, 2]);
}

#[test]
fn pausing_loses_nothing_and_repeats_nothing() {
    const EACH: i64 = 20_000;
    let topic = Topic::create("pause", 2);
    topic.produce((0..2 * EACH).map(|n| Record {
        value: Some(n.to_string().into_bytes()),
        partition: Some((n % 2) as i32),
        ..Record::default()
    }));
    let mut poller = source();
    poller.assign(&[(topic.name(), 0, 0), (topic.name(), 1, 0)]).expect("assigned");
    let mut next = [0; 2];
    let mut paused: Option<usize> = None;
    let mut after_pause = 0;
    let deadline = now() + LONG;
    let mut ends = BTreeSet::new();
    while ends.len() < 2 {
        assert!(now() < deadline, "{next:?}");
        match poller.poll(Duration::from_millis(20)) {
            Some(Polled::Record { slot, message }) => {
                assert_eq!(message.offset(), next[slot], "slot {slot}");
                next[slot] += 1;
                if paused == Some(slot) {
                    after_pause += 1;
                }
                let count = next[0] + next[1];
                if count % 997 == 0 {
                    if let Some(slot) = paused.take() {
                        poller.resume([slot]).expect("resumed");
                        assert!(after_pause < 256, "{after_pause} records after a pause");
                    } else {
                        let slot = (count / 997 % 2) as usize;
                        poller.pause([slot]).expect("paused");
                        (paused, after_pause) = (Some(slot), 0);
                    }
                }
            }
            Some(Polled::End { slot, offset }) => {
                assert_eq!(offset, EACH);
                ends.insert(slot);
            }
            Some(Polled::Lost { detail, .. }) => panic!("{detail}"),
            Some(Polled::Error(error)) => panic!("{error}"),
            None => {
                if let Some(slot) = paused.take() {
                    poller.resume([slot]).expect("resumed");
                }
            }
        }
    }
    assert_eq!(next, [EACH; 2]);
}

/// The end of a partition is told, and takes no offset: what comes there while it is paused is read.
#[test]
fn what_comes_while_a_partition_is_paused_at_its_end_is_read() {
    let topic = Topic::create("pause-end", 2);
    let produce = |partition: i32, from: i32, to: i32| {
        topic.produce((from..to).map(|n| Record {
            value: Some(n.to_string().into_bytes()),
            partition: Some(partition),
            ..Record::default()
        }));
    };
    produce(0, 0, 10);
    produce(1, 0, 10);
    let mut poller = source();
    poller.assign(&[(topic.name(), 0, 0), (topic.name(), 1, 0)]).expect("assigned");
    let mut next = [0; 2];
    let until = |poller: &mut Poller, next: &mut [i64; 2], ends: [i64; 2]| {
        let deadline = now() + LONG;
        let mut ended = [false; 2];
        while *next != ends || ended != [true; 2] {
            assert!(now() < deadline, "{next:?} of {ends:?}, ended: {ended:?}");
            match poller.poll(Duration::from_millis(20)) {
                Some(Polled::Record { slot, message }) => {
                    assert_eq!(message.offset(), next[slot], "slot {slot}: nothing skipped, nothing twice");
                    next[slot] += 1;
                }
                Some(Polled::End { slot, offset }) => ended[slot] = offset == ends[slot],
                Some(Polled::Lost { slot, detail }) => panic!("slot {slot} at {next:?}: {detail}"),
                Some(Polled::Error(error)) => panic!("{error}"),
                None => {}
            }
        }
    };
    until(&mut poller, &mut next, [10, 10]);
    // Paused at the end: once with something coming meanwhile, once with nothing, once one of two.
    poller.pause(poller.all()).expect("paused");
    produce(0, 10, 11);
    poller.resume(poller.all()).expect("resumed");
    until(&mut poller, &mut next, [11, 10]);
    poller.pause(poller.all()).expect("paused");
    poller.resume(poller.all()).expect("resumed");
    until(&mut poller, &mut next, [11, 10]);
    poller.pause(poller.all()).expect("paused");
    produce(0, 11, 13);
    produce(1, 10, 13);
    poller.resume([1]).expect("resumed");
    let deadline = now() + LONG;
    while next[1] < 13 {
        assert!(now() < deadline, "{next:?}");
        if let Some(Polled::Record { slot, message }) = poller.poll(Duration::from_millis(20)) {
            assert_eq!((slot, message.offset()), (1, next[1]), "the other one is still paused");
            next[1] += 1;
        }
    }
    poller.resume([0]).expect("resumed");
    until(&mut poller, &mut next, [13, 13]);
}

/// What was fetched before a partition was held is dropped for good: let go, it says nothing until it is resumed, and then goes
/// on with the record at which it was held.
#[test]
fn what_is_let_go_says_nothing_until_it_is_resumed_and_skips_nothing() {
    const EACH: i64 = 200;
    /// More than are taken out of the client's queue at a time.
    const POLLS: usize = 512;
    let topic = Topic::create("let-go", 2);
    topic.produce((0..2 * EACH).map(|n| Record {
        value: Some(n.to_string().into_bytes()),
        partition: Some((n % 2) as i32),
        ..Record::default()
    }));
    let mut poller = source();
    poller.assign(&[(topic.name(), 0, 0), (topic.name(), 1, 0)]).expect("assigned");
    let mut next = [0; 2];
    // Polls so often, and until `done`. What comes is in order; nothing comes of the slot that is silent.
    let poll = |poller: &mut Poller,
                next: &mut [i64; 2],
                silent: Option<usize>,
                polls: usize,
                done: &dyn Fn(&[i64; 2]) -> bool| {
        let deadline = now() + 3 * LONG;
        let mut polled = 0;
        while polled < polls || !done(next) {
            assert!(now() < deadline, "{next:?}, silent: {silent:?}");
            polled += 1;
            match poller.poll(Duration::from_millis(1)) {
                Some(Polled::Record { slot, message }) => {
                    assert_ne!(Some(slot), silent, "offset {} came at {next:?}", message.offset());
                    assert_eq!(message.offset(), next[slot], "slot {slot}: nothing skipped, nothing twice");
                    next[slot] += 1;
                }
                Some(Polled::End { slot, offset }) => {
                    assert_ne!(Some(slot), silent, "the end at {offset} came at {next:?}");
                    assert_eq!((offset, next[slot]), (EACH, EACH), "slot {slot}");
                }
                Some(Polled::Lost { slot, detail }) => panic!("slot {slot} at {next:?}: {detail}"),
                Some(Polled::Error(error)) => panic!("{error}"),
                None => {}
            }
        }
    };
    // Held at a record that was handed out; more of them lie ready behind it.
    poll(&mut poller, &mut next, None, 0, &|next| next[0] == 50);
    next[0] = 49;
    poller.hold(0, 49).expect("held");
    poller.let_go(0);
    poller.let_go(0);
    poll(&mut poller, &mut next, Some(0), POLLS, &|next| next[1] == EACH);
    assert_eq!(poller.position(0), Some(49), "it stays where it was held");
    poller.resume([0]).expect("resumed");
    poll(&mut poller, &mut next, None, 0, &|next| next[0] == 100);
    // Others are resumed while it is held, and before it is let go.
    next[0] = 99;
    poller.hold(0, 99).expect("held");
    poller.resume([1]).expect("resumed");
    poll(&mut poller, &mut next, Some(0), POLLS, &|_| true);
    poller.let_go(0);
    poll(&mut poller, &mut next, Some(0), POLLS, &|_| true);
    assert_eq!(poller.position(0), Some(99), "it stays where it was held");
    poller.resume(poller.all()).expect("resumed");
    poll(&mut poller, &mut next, None, 0, &|next| *next == [EACH; 2]);
}

#[test]
fn a_record_comes_back_as_it_was_sent() {
    let topic = Topic::create("whole-record", 1);
    let sender = Sender::new(&options()).expect("a sender");
    let headers = [
        ("a".to_owned(), Some("1".into())),
        ("b".to_owned(), None),
        ("a".to_owned(), Some(Default::default())),
    ];
    let record = Outgoing {
        topic: topic.name(),
        partition: None,
        key: Some(b""),
        value: None,
        headers: &headers,
        behind: &[("c", &b"2"[..]), ("a", &b""[..])],
        timestamp: Some(1_700_000_000_123),
    };
    let delivered = runtime().block_on(sender.send(&record)).expect("delivered");
    assert_eq!((delivered.partition, delivered.offset), (0, 0));
    let mut poller = source();
    poller.assign(&[(topic.name(), 0, 0)]).expect("assigned");
    let deadline = now() + LONG;
    loop {
        assert!(now() < deadline);
        let Some(Polled::Record { message, .. }) = poller.poll(Duration::from_millis(100)) else { continue };
        assert_eq!((message.topic(), message.partition(), message.offset()), (topic.name(), 0, 0));
        assert_eq!((message.key(), message.value()), (Some(&b""[..]), None));
        assert_eq!(message.timestamp_ms(), 1_700_000_000_123);
        let headers: Vec<_> = message.headers().collect();
        let text = |text: &'static str| Some(text.as_bytes());
        let sent = [("a", text("1")), ("b", None), ("a", text("")), ("c", text("2")), ("a", text(""))];
        assert_eq!(headers, sent);
        return;
    }
}

/// A long fetch and a long wait cost no latency: what arrives ends both. So does the waker.
#[test]
fn an_arrival_ends_a_long_wait_at_once() {
    let topic = Topic::create("wake", 1);
    let mut poller =
        Poller::new(&options(), &Tuning::tail(&unique("group"), Duration::from_secs(5))).expect("a poller");
    poller.assign(&[(topic.name(), 0, 0)]).expect("assigned");
    assert_eq!(read_to_ends(&mut poller).ends, BTreeMap::from([(0, 0)]));
    let mut send = transaction(&unique("wake"));
    let mut waits = Vec::new();
    for round in 0..10 {
        let waiter = std::thread::spawn(move || {
            loop {
                match poller.poll(Duration::from_secs(20)) {
                    Some(Polled::Record { message, .. }) => {
                        assert_eq!(message.value(), Some(&b"now"[..]));
                        break;
                    }
                    Some(Polled::End { .. }) => {}
                    _ => panic!("neither record nor end"),
                }
            }
            (poller, now())
        });
        // Let it fall asleep in its fetch.
        let started = now();
        while now() - started < Duration::from_millis(100 + 10 * round) {
            std::thread::yield_now();
        }
        send.begin().expect("begin");
        send.send(&Outgoing { topic: topic.name(), value: Some(b"now"), ..Outgoing::default() }, LONG)
            .expect("sent");
        assert!(matches!(send.commit(LONG), Outcome::Committed));
        let committed = now();
        let (back, seen) = waiter.join().expect("the waiter lives");
        poller = back;
        waits.push(seen.saturating_duration_since(committed));
    }
    // Who sleeps on would do so each time, for nearly five seconds; a busy machine is slow now and then.
    waits.sort();
    println!("an announcement is seen {waits:?} after its commit returned");
    assert!(waits[waits.len() / 2] < Duration::from_secs(2), "{waits:?}");

    let waker = poller.waker();
    let woken = std::thread::spawn(move || {
        let started = now();
        while let Some(Polled::End { .. } | Polled::Record { .. }) = poller.poll(LONG * 2) {}
        (started.elapsed(), poller)
    });
    std::thread::yield_now();
    waker.wake();
    let (took, poller) = woken.join().expect("the waiter lives");
    assert!(took < LONG, "{took:?}");
    drop(poller);
    waker.wake();
}
/// Kafka's own `UtilsTest.testMurmur2`, masked to 31 bits, modulo 4.
#[test]
fn the_sender_places_keys_as_java_does() {
    let topic = Topic::create("placement", 4);
    let sender = Sender::new(&options()).expect("a sender");
    let runtime = runtime();
    for (key, hash) in [
        ("21", -973_932_308_i32),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
    ] {
        let record = Outgoing { topic: topic.name(), key: Some(key.as_bytes()), ..Outgoing::default() };
        let delivered = runtime.block_on(sender.send(&record)).expect("delivered");
        assert_eq!(delivered.partition, (hash & 0x7fff_ffff) % 4, "{key}");
    }
}
