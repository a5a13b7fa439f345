//! A tail, by librdkafka's broker for tests.

use super::super::follow::tests::World;
use super::*;
use crate::kafka::{Cluster, Outgoing, Sender};
use crate::view::tests::heap;

/// Longest that all of it may take.
const LONG: Duration = Duration::from_secs(300);
/// Failures that are counted.
const FAILURES: u64 = 60;

/// Threads of Kafka's clients in this process, and descriptors that it has open.
fn held() -> (usize, usize) {
    let entries = |folder: &str| std::fs::read_dir(folder).expect("Linux has it").flatten();
    let is_kafkas = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("rdk:"))
    };
    (entries("/proc/self/task").filter(is_kafkas).count(), entries("/proc/self/fd").count())
}

#[test]
fn a_tail_that_fails_again_and_again_leaves_no_client_behind() {
    heap::alone("consumer::tail::tests::fails_again_and_again");
}

/// Each attempt makes clients anew. Here all of them connect, read, and find somebody else's announcement.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "run by another test, as a process of its own"]
async fn fails_again_and_again() {
    let cluster = Cluster::start(1).unwrap();
    let topic = "announcements";
    cluster.create_topic(topic, 1).unwrap();
    let mut world = World::new();
    let theirs = world.write(0..1).await;
    let record = Outgoing { topic, partition: Some(0), value: Some(&theirs.encoded), ..Outgoing::default() };
    Sender::new(&cluster.options("somebody")).unwrap().send(&record).await.unwrap();

    let options = Options {
        dataset: "orders".into(),
        kafka: cluster.options("tail"),
        announcements: topic.into(),
        max_backoff: Duration::from_millis(1),
        ..world.options()
    };
    let metrics = options.metrics.clone();
    let (status_in, mut status) = watch::channel(unknown());
    let (out, _seen) = mpsc::channel(4);
    let stop = CancellationToken::new();
    let tail = Tail::new(options, Shard(0), out, status_in);
    let running = tokio::task::spawn_blocking({
        let stop = stop.clone();
        move || Handle::current().block_on(tail.run(&stop))
    });
    let mut after = async |failures: u64| {
        // Each failure is told.
        let failed = status.wait_for(|_| metrics.errors_total.with(&[UNREACHABLE]).get() >= failures);
        let failed = tokio::time::timeout(LONG, failed).await.map(|failed| failed.unwrap().error.clone());
        let why = failed.unwrap_or_else(|_| panic!("not {failures} failures in {LONG:?}"));
        assert!(why.as_ref().is_some_and(|why| why.contains("that of dataset \"products\"")), "{why:?}");
        held()
    };
    let (threads, descriptors) = after(5).await;
    let (threads_then, descriptors_then) = after(5 + FAILURES).await;
    stop.cancel();
    running.await.unwrap();
    // A client has three threads and five descriptors at the least.
    assert!(
        threads_then < threads + 100,
        "{threads} threads of clients, {threads_then} after {FAILURES} failures"
    );
    assert!(
        descriptors_then < descriptors + 200,
        "{descriptors} descriptors, {descriptors_then} after {FAILURES} failures"
    );
}

/// Announcements to a tail at rest, and how many of them must have ended its wait.
const ANNOUNCED: usize = 11;
const WOKEN: usize = 6;
/// For how long a tail at rest looks after nothing: far longer than it takes to be woken, on whatever machine.
const NEVER: Duration = Duration::from_secs(20);

/// What the tail looks after now and then would find an announcement too, and so hide that nothing wakes it: here it
/// does so too late.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_announcement_wakes_a_tail_at_rest() {
    let cluster = Cluster::start(1).unwrap();
    let topic = "announcements";
    cluster.create_topic(topic, 1).unwrap();
    let sender = Sender::new(&cluster.options("writer")).unwrap();
    let mut world = World::new();
    let options = Options {
        kafka: cluster.options("tail"),
        announcements: topic.into(),
        // The wait at rest is the shortest of these and of the slice.
        poll_interval: LONG,
        max_backoff: LONG,
        ..world.options()
    };
    let clock = options.clock.clone();
    let mut announce = async || {
        let announced = world.write(0..1).await;
        let record =
            Outgoing { topic, partition: Some(0), value: Some(&announced.encoded), ..Outgoing::default() };
        sender.send(&record).await.unwrap();
        (announced.announcement.version, clock.now())
    };
    announce().await;
    let (out, mut seen) = mpsc::channel(4);
    let stop = CancellationToken::new();
    let tail = Tail { slice: NEVER, ..Tail::new(options, Shard(0), out, watch::channel(unknown()).0) };
    let running = tokio::task::spawn_blocking({
        let stop = stop.clone();
        move || Handle::current().block_on(tail.run(&stop))
    });
    let mut next = async || tokio::time::timeout(LONG, seen.recv()).await.expect("in time").expect("it runs");
    while !matches!(next().await, Seen::UpToDate) {}

    let mut took = Vec::new();
    for _ in 0..ANNOUNCED {
        let (version, sent) = announce().await;
        let Seen::Announced(found) = next().await else { panic!("an announcement") };
        assert_eq!(found.announcement.version, version);
        took.push(clock.now() - sent);
        let in_time = took.iter().filter(|took| **took < NEVER / 2).count();
        // Most of them, not all: a machine that stands still for seconds is nothing that a tail can mend.
        if in_time == WOKEN {
            break;
        }
        assert!(took.len() - in_time <= ANNOUNCED - WOKEN, "nothing wakes it: {took:?}");
    }
    stop.cancel();
    running.await.unwrap();
}
