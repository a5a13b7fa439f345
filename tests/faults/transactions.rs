//! What can happen to the one transaction that makes versions visible: its order, its read-back, the new producer
//! after an abort, an outcome that nobody knows, an id that the broker forgot, a newer writer.
//!
//! A tap stands between the producer and the broker. Duplicates are the client's own requests, sent once more later.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, Producer as _};
use stillwell::blob::faulty::{Beside, Call, Faulty};
use stillwell::blob::{self, Store};
use stillwell::producer::Batching;
use stillwell_tests::protocol::{End, add_partitions_again, code, describe_transaction, key};
use stillwell_tests::tap::Request;
use stillwell_tests::{Broker, Setting, Tap, Then, Topic, scratch, unique, wait_until, wait_until_async};
use tokio::sync::watch;

use crate::SCHEMA;
use crate::history::{DEADLINE, History, announced, announcements, dead_letters, ended, good, limit, misfit};

/// Whether a frame names this topic.
fn names(request: &Request, topic: &Topic) -> bool {
    let name = topic.name().as_bytes();
    request.frame.windows(name.len()).any(|window| window == name)
}

/// What the tap has seen and is to do, shared with the test.
#[derive(Default)]
struct Script {
    /// The last commit, and the last abort, of the writer.
    commit: Option<End>,
    abort: Option<End>,
    /// The last AddPartitionsToTxn.
    partitions: Option<Request>,
    /// Set by the test: the fault is due at the next chance.
    armed: bool,
    /// A transaction was aborted, and no producer has begun since.
    aborted: bool,
    /// And yet another transaction has.
    reused: bool,
    /// Set by the hook: what the broker said to what was sent by hand.
    answered: Option<i16>,
}

impl Script {
    fn see(&mut self, request: &Request) {
        if let Some(end) = End::of(request) {
            let last = if end.commits() { &mut self.commit } else { &mut self.abort };
            self.aborted |= !end.commits();
            *last = Some(end);
        }
        match request.key {
            key::INIT_PRODUCER_ID => self.aborted = false,
            key::ADD_PARTITIONS | key::ADD_OFFSETS => self.reused |= self.aborted,
            _ => {}
        }
        if request.key == key::ADD_PARTITIONS {
            self.partitions = Some(request.clone());
        }
    }
}

/// What goes out in the transaction goes out in this order: letters, source offsets, announcements.
#[tokio::test(flavor = "multi_thread")]
async fn within_the_transaction_letters_come_first_and_announcements_last() {
    let mut setting = Setting::new("order", 1, SCHEMA);
    let tap = Tap::on(&setting.bootstrap);
    let (letters, versions) = (dead_letters(&setting), announcements(&setting));
    let seen = Arc::new(Mutex::new(vec![String::new()]));
    tap.watch({
        let seen = Arc::clone(&seen);
        move |request| {
            let mut seen = seen.lock().expect("no hook panics");
            let step = match request.key {
                key::PRODUCE if names(request, &letters) => "letters ",
                key::PRODUCE if names(request, &versions) => "announcements ",
                key::COMMIT_OFFSETS => "offsets ",
                key::END => {
                    seen.push(String::new());
                    return Then::Forward;
                }
                _ => return Then::Forward,
            };
            // One step may be several requests: records that the client had not all at once, or one that is sent again.
            let steps = seen.last_mut().expect("never empty");
            if !steps.ends_with(step) {
                steps.push_str(step);
            }
            Then::Forward
        }
    });
    let producer = setting.builder().bootstrap_servers(tap.bootstrap()).start().await.expect("it starts");
    announced(&producer, 1).await;
    let records = [misfit("a"), good(&mut setting, "b", 1.0), misfit("c")];
    setting.topic.produce(records);
    announced(&producer, 2).await;
    producer.shutdown().await.expect("it stops");
    let seen = seen.lock().expect("no hook panics").clone();
    assert!(seen.iter().any(|steps| steps == "letters offsets announcements "), "{seen:?}");
    for steps in &seen {
        // An epoch record goes alone; a version without misfits has no letters.
        let known = ["", "announcements ", "offsets announcements ", "letters offsets announcements "];
        assert!(known.contains(&steps.as_str()), "{seen:?}");
    }
}

/// How long the store of [`Gate`] hangs before the test takes it that nothing was sent ahead.
const SOON: Duration = Duration::from_secs(15);

/// A store in which deltas wait before a gate.
#[derive(Debug)]
struct Gate(watch::Sender<bool>);

impl Beside for Gate {
    fn before<'a>(&'a self, call: Call, name: &'a str) -> BoxFuture<'a, Result<(), blob::Error>> {
        Box::pin(async move {
            if call == Call::Put && name.contains("delta") {
                let opened = self.0.subscribe().wait_for(|open| *open).await.map(drop);
                opened.expect("the gate is there");
            }
            Ok(())
        })
    }
}

/// What the group has committed of the source's only partition.
fn committed(setting: &Setting) -> Option<i64> {
    let committed = setting.topic.committed(&format!("stillwell.{}", setting.dataset()), DEADLINE);
    committed.expect("the coordinator answers").first().copied().flatten()
}

/// Offsets go ahead of a version that waits for nothing but its store. Where that hangs, its transaction ends with those of
/// the version before, and no life with it.
#[tokio::test(flavor = "multi_thread")]
async fn offsets_sent_ahead_are_taken_back_where_the_store_hangs() {
    let mut setting = Setting::new("ahead", 1, SCHEMA);
    let cache = scratch();
    let tap = Tap::on(&setting.bootstrap);
    let versions = announcements(&setting);
    // The steps of each transaction.
    let seen = Arc::new(Mutex::new(vec![String::new()]));
    tap.watch({
        let seen = Arc::clone(&seen);
        move |request| {
            let mut seen = seen.lock().expect("no hook panics");
            match request.key {
                key::PRODUCE if names(request, &versions) => {
                    seen.last_mut().expect("never empty").push_str("announcements ");
                }
                key::COMMIT_OFFSETS => seen.last_mut().expect("never empty").push_str("offsets "),
                key::END => seen.push(String::new()),
                _ => {}
            }
            Then::Forward
        }
    });
    let gate = Arc::new(Gate(watch::Sender::new(true)));
    let store = Faulty::beside(Store::open(&setting.blobs()).expect("it opens"), gate.clone());
    let batching = Batching { batch_timeout: Duration::ZERO, ..Batching::default() };
    let builder = setting.builder().bootstrap_servers(tap.bootstrap()).store(store).batching(batching);
    let producer = builder.start().await.expect("it starts");
    announced(&producer, 1).await;
    let record = good(&mut setting, "before", 1.0);
    setting.topic.produce([record]);
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;

    // A version that only lists a snapshot may be before the gate already, and nothing is sent ahead of what is behind it.
    let mut records: i64 = 1;
    let has_hung = loop {
        gate.0.send_replace(false);
        let from = seen.lock().expect("no hook panics").len() - 1;
        let record = good(&mut setting, "while it hangs", records as f64);
        setting.topic.produce([record]);
        records += 1;
        // Twice: those of the version to come, and in their place those of the one before.
        let is_back = || {
            let steps = seen.lock().expect("no hook panics");
            steps[from..steps.len() - 1].iter().any(|steps| steps == "offsets offsets ")
        };
        let waited = tokio::time::timeout(SOON, async {
            while !is_back() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        if waited.await.is_ok() || records > 10 {
            break is_back();
        }
        gate.0.send_replace(true);
        setting.settled(&consumer).await;
    };
    assert!(has_hung, "no transaction ends without its version: {:?}", seen.lock());
    // The end is on its way to the broker when the tap sees it: what it commits is looked for until it is there.
    let stands = Some(records - 1);
    wait_until_async("the group stands where the announcement does", DEADLINE, || {
        let (now, status) = (committed(&setting), producer.status());
        assert!(now <= stands && status.failures == 0, "{now:?}, {status:?}");
        std::future::ready(if now == stands { Ok(()) } else { Err(format!("{now:?}")) })
    })
    .await;

    gate.0.send_replace(true);
    setting.settled(&consumer).await;
    wait_until_async("the group follows", DEADLINE, || {
        let now = committed(&setting);
        std::future::ready(if now == Some(records) { Ok(()) } else { Err(format!("{now:?}")) })
    })
    .await;
    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
    let history = History::of(&setting);
    history.assert_gapless().assert_no_branch();
    assert_eq!(history.lives.len(), 1, "one life for all of it");
}

/// A duplicate of an earlier commit arrives before the last of the three steps of the next transaction, whatever their
/// order, and commits the others. Since announcements come last, those are letters and offsets of a version that is not
/// announced, and the next life makes it again; were it the letters, they would be lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_commit_in_the_midst_of_the_next_transaction_loses_nothing() {
    let mut setting = Setting::new("late-commit", 1, SCHEMA);
    let (broker, cache) = (setting.bootstrap.clone(), scratch());
    let tap = Tap::on(&broker);
    let (letters, versions) = (dead_letters(&setting), announcements(&setting));
    let script = Arc::new(Mutex::new(Script::default()));
    tap.watch({
        let (script, letters, versions) = (Arc::clone(&script), letters.clone(), versions.clone());
        // Those of the transaction under way. A step begins when the broker has all of the one before.
        let mut steps = BTreeSet::new();
        move |request| {
            let mut script = script.lock().expect("no hook panics");
            script.see(request);
            let step = match request.key {
                key::PRODUCE if names(request, &letters) => "letters",
                key::PRODUCE if names(request, &versions) => "announcements",
                key::COMMIT_OFFSETS => "offsets",
                key::END => {
                    steps.clear();
                    return Then::Forward;
                }
                _ => return Then::Forward,
            };
            // Those of a version without letters are two.
            if steps.insert(step) && steps.len() == 3 && std::mem::take(&mut script.armed) {
                script.answered = Some(script.commit.as_ref().expect("it has committed").send(&broker));
            }
            Then::Forward
        }
    });
    let producer = setting.builder().bootstrap_servers(tap.bootstrap()).start().await.expect("it starts");
    announced(&producer, 1).await;
    let before = good(&mut setting, "before", 1.0);
    setting.topic.produce([before]);
    announced(&producer, 2).await;

    script.lock().expect("no hook panics").armed = true;
    let records = [misfit("lost?"), good(&mut setting, "with it", 2.0)];
    setting.topic.produce(records);
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    assert_eq!(
        script.lock().expect("no hook panics").answered,
        Some(code::NONE),
        "the broker took the duplicate: the fault has happened"
    );
    wait_until("the life has ended by it", DEADLINE, || match producer.status().failures {
        0 => Err("it goes on"),
        _ => Ok(()),
    });
    let last = good(&mut setting, "after", 3.0);
    setting.topic.produce([last]);
    setting.settled(&consumer).await;
    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");

    History::of(&setting).assert_gapless().assert_no_branch();
    let letters = letters.read();
    assert!(letters.iter().any(|letter| letter.key.as_deref() == Some(b"lost?")), "{letters:?}");
}

/// Kafka confirms a commit and has kept nothing of it: an abort and a new, empty transaction of the same producer got
/// in between. Only the read-back finds out.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_counts_only_once_it_is_read_back() {
    let mut setting = Setting::new("read-back", 1, SCHEMA);
    let (broker, cache) = (setting.bootstrap.clone(), scratch());
    let tap = Tap::on(&broker);
    let script = Arc::new(Mutex::new(Script::default()));
    tap.watch({
        let script = Arc::clone(&script);
        move |request| {
            let mut script = script.lock().expect("no hook panics");
            script.see(request);
            let Some(end) = End::of(request).filter(|end| end.commits() && script.armed) else {
                return Then::Forward;
            };
            script.armed = false;
            assert_eq!(end.aborting().send(&broker), code::NONE);
            let partitions = script.partitions.clone().expect("it has added its partitions");
            let begun = wait_until("the abort is written", DEADLINE, || {
                match add_partitions_again(&broker, &partitions) {
                    code::CONCURRENT_TRANSACTIONS => Err("the abort is under way"),
                    begun => Ok(begun),
                }
            });
            script.answered = Some(begun);
            Then::Forward
        }
    });
    let producer = setting.builder().bootstrap_servers(tap.bootstrap()).start().await.expect("it starts");
    announced(&producer, 1).await;
    script.lock().expect("no hook panics").armed = true;
    let record = good(&mut setting, "gone though committed", 1.0);
    setting.topic.produce([record]);
    let error = ended(&producer, 1).await;
    assert_eq!(script.lock().expect("no hook panics").answered, Some(code::NONE), "the fault has happened");
    assert!(error.contains("it was aborted though the commit said otherwise"), "{error}");

    let more = good(&mut setting, "after", 2.0);
    setting.topic.produce([more]);
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
    History::of(&setting).assert_gapless().assert_no_branch();
}

/// A duplicate of an abort arrives in a later transaction. It would abort that one too, were it the same producer's;
/// a new producer has a new epoch, and the broker refuses the duplicate.
#[tokio::test(flavor = "multi_thread")]
async fn after_an_abort_nothing_is_announced_by_the_same_producer() {
    let mut setting = Setting::new("late-abort", 1, SCHEMA);
    let (broker, cache) = (setting.bootstrap.clone(), scratch());
    let tap = Tap::on(&broker);
    let script = Arc::new(Mutex::new(Script::default()));
    tap.watch({
        let script = Arc::clone(&script);
        move |request| {
            let mut script = script.lock().expect("no hook panics");
            script.see(request);
            if request.key == key::COMMIT_OFFSETS && std::mem::take(&mut script.armed) {
                script.answered = script.abort.as_ref().map(|abort| abort.send(&broker));
            }
            Then::Forward
        }
    });
    let producer = setting.builder().bootstrap_servers(tap.bootstrap()).start().await.expect("it starts");
    announced(&producer, 1).await;
    // The topic takes no letter any more, so that the transaction with one in it is aborted.
    let letters = dead_letters(&setting);
    limit(&letters, "100");
    let records = [misfit("refused"), good(&mut setting, "with it", 1.0)];
    setting.topic.produce(records);
    ended(&producer, 1).await;
    {
        let mut script = script.lock().expect("no hook panics");
        assert!(script.abort.is_some(), "it was aborted");
        script.armed = true;
    }
    limit(&letters, "1000000");
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let answered = script.lock().expect("no hook panics").answered.expect("the duplicate was sent");
    assert!([code::INVALID_PRODUCER_EPOCH, code::PRODUCER_FENCED].contains(&answered), "{answered}");
    assert!(!script.lock().expect("no hook panics").reused, "the next transaction is a new producer's");
    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
    History::of(&setting).assert_gapless().assert_no_branch();
    assert_eq!(letters.read().len(), 1, "nothing of an abort is seen");
}

/// The answer to the commit is lost until the announcer gives up: committed it is all the same, and the next life must
/// neither announce it again nor leave it out.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_without_an_answer_is_for_the_next_life_to_read() {
    let mut setting = Setting::new("unknown", 1, SCHEMA);
    let cache = scratch();
    let tap = Tap::on(&setting.bootstrap);
    let script = Arc::new(Mutex::new(Script::default()));
    tap.watch({
        let script = Arc::clone(&script);
        move |request| {
            let script = script.lock().expect("no hook panics");
            // Asked again after a while, librdkafka would be told; so it is not told either.
            if script.armed && End::of(request).is_some() { Then::LoseTheAnswer } else { Then::Forward }
        }
    });
    let producer = setting.builder().bootstrap_servers(tap.bootstrap()).start().await.expect("it starts");
    announced(&producer, 1).await;
    // There before: a start may take as long as the writer waits, where all is slow.
    let consumer = setting.consumer(cache.path()).await;
    script.lock().expect("no hook panics").armed = true;
    let record = good(&mut setting, "answered or not", 1.0);
    setting.topic.produce([record]);
    setting.settled(&consumer).await;
    assert_eq!(producer.status().failures, 0, "readers have it while the writer still waits for the answer");
    ended(&producer, 1).await;
    script.lock().expect("no hook panics").armed = false;
    let more = good(&mut setting, "after", 2.0);
    setting.topic.produce([more]);
    setting.settled(&consumer).await;
    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
    let history = History::of(&setting);
    history.assert_gapless().assert_no_branch();
    assert_eq!(history.valid[1].upserts, 1, "it is in version 2, by the life that nobody answered");
    assert_eq!(history.valid[1].life, history.lives[0]);
}

/// After a quiet week the broker has forgotten the transactional id, and with it the producer's epoch.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_the_broker_forgot_costs_a_life_and_nothing_else() {
    let broker = Broker::own_with(&[
        // Longer than a life takes from its epoch record to its first version, or each would find it forgotten again.
        ("transactional.id.expiration.ms", "5000"),
        ("transaction.remove.expired.transaction.cleanup.interval.ms", "500"),
    ]);
    let mut setting = Setting::on(&broker, "quiet", 1, SCHEMA);
    let cache = scratch();
    let batching = Batching { batch_timeout: Duration::from_millis(20), ..Batching::default() };
    let producer = setting.builder().batching(batching).start().await.expect("it starts");
    let record = good(&mut setting, "before", 1.0);
    setting.topic.produce([record]);
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let id = format!("{}/0", setting.dataset());
    for week in ["first", "second"] {
        wait_until("the broker forgets the id", DEADLINE, || {
            match describe_transaction(&setting.bootstrap, &id) {
                code::TRANSACTIONAL_ID_NOT_FOUND => Ok(()),
                known => Err(format!("code {known}")),
            }
        });
        let records = [misfit(week), good(&mut setting, week, 2.0)];
        setting.topic.produce(records);
        setting.settled(&consumer).await;
    }
    assert!(producer.status().failures >= 2, "the broker did forget it: {:?}", producer.status());
    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
    let history = History::of(&setting);
    history.assert_gapless().assert_no_branch();
    assert_eq!(dead_letters(&setting).read().len(), 2, "each letter once");
}

/// Somebody registers with the same transactional id. The life is fenced, says so, leaves nothing behind, and since the
/// shard is still this instance's it lives again.
#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_life_ends_says_so_and_leaves_nothing() {
    let mut setting = Setting::new("fenced", 1, SCHEMA);
    let cache = scratch();
    let producer = setting.producer().await;
    let record = good(&mut setting, "before", 1.0);
    setting.topic.produce([record]);
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;

    let other: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &setting.bootstrap)
        .set("transactional.id", format!("{}/0", setting.dataset()))
        .create()
        .expect("a transactional producer");
    other.init_transactions(DEADLINE).expect("it fences who was there");
    let records = [misfit("once"), good(&mut setting, "after", 2.0)];
    setting.topic.produce(records);
    let error = ended(&producer, 1).await;
    assert!(error.contains("fenced"), "{error}");
    setting.settled(&consumer).await;
    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
    let history = History::of(&setting);
    history.assert_gapless().assert_no_branch();
    assert!(history.lives.len() >= 2, "{:?}", history.lives);
    // What the first life announced lies before the second life's beginning, as no branch says; nothing came after.
    assert_ne!(history.valid.last().map(|version| version.life), history.lives.first().copied());
    assert_eq!(dead_letters(&setting).read().len(), 1, "once");
}

/// What was never sent comes to nothing: a check of the tools of this file.
#[test]
fn the_coordinator_is_asked_by_hand() {
    let topic = Topic::create("by-hand", 1);
    let id = unique("nobody");
    assert_eq!(describe_transaction(Broker::shared().bootstrap(), &id), code::TRANSACTIONAL_ID_NOT_FOUND);
    let tap = Tap::on(Broker::shared().bootstrap());
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", tap.bootstrap())
        .set("transactional.id", &id)
        .create()
        .expect("a transactional producer");
    let ends = Arc::new(Mutex::new(Vec::new()));
    tap.watch({
        let ends = Arc::clone(&ends);
        move |request| {
            ends.lock().expect("no hook panics").extend(End::of(request));
            Then::Forward
        }
    });
    let wait = DEADLINE;
    producer.init_transactions(wait).expect("init, through the tap");
    producer.begin_transaction().expect("begin");
    producer
        .send(rdkafka::producer::BaseRecord::<str, str>::to(topic.name()).payload("one"))
        .map_err(|(error, _)| error)
        .expect("queued");
    producer.flush(wait).expect("flushed");
    producer.commit_transaction(wait).expect("committed");
    let end = ends.lock().expect("no hook panics").pop().expect("the tap saw the commit");
    assert!(end.commits());
    assert_eq!(describe_transaction(Broker::shared().bootstrap(), &id), code::NONE);
    // At rest a duplicate of the commit is harmless, and an abort is refused. The commit is confirmed before its markers
    // are written.
    let at_rest = |end: &End| {
        wait_until("the commit is at rest", DEADLINE, || match end.send(Broker::shared().bootstrap()) {
            code::CONCURRENT_TRANSACTIONS => Err("its markers are being written"),
            answer => Ok(answer),
        })
    };
    assert_eq!(at_rest(&end), code::NONE);
    assert_eq!(at_rest(&end.aborting()), code::INVALID_TXN_STATE);
    assert_eq!(topic.read().len(), 1);
}
