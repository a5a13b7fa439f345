//! The stage against the embedded broker: what it does while there is nothing to do, and what the gauge hears of it.

use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::format::announcement::EpochRecord;
use crate::gauge::Strain;
use crate::kafka::{Cluster, Member, Poller, Sender, Tuning};
use crate::producer::build::tests::{LIFE, versions};
use crate::producer::circuit::Circuits;
use crate::producer::shed::Shed;
use crate::producer::store::tests::stored;
use crate::producer::{Reliability, read_back};
use crate::telemetry::{KafkaMetrics, Metrics};
use crate::version::Shard;

const TOPIC: &str = "d.announcements";
const LONG: Duration = Duration::from_secs(60);

fn life(epoch: u64) -> Life {
    Life { epoch, writer: Uuid::from_u128(epoch.into()) }
}

/// Writes the epoch record of a life.
async fn begin(options: &kafka::Options, life: Life) {
    let record = EpochRecord { dataset: "d".into(), shard: Shard(0), shards: 1, life, at: 0 };
    let value = Message::Epoch(record).encode();
    let record = Outgoing { topic: TOPIC, partition: Some(0), value: Some(&value), ..Outgoing::default() };
    let sender = Sender::new(options).expect("a sender");
    sender.send(&record).await.expect("delivered");
}

/// Waits until `state` is so, which is looked at again and again.
async fn wait_until(what: &str, mut state: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(LONG, async {
        while !state() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what}: not within {LONG:?}"));
}

/// The stage of [`LIFE`] on a thread of its own, and what a test looks at.
struct Stage {
    _cluster: Cluster,
    options: kafka::Options,
    pressure: Pressure,
    /// Statistics of the tail's client, which come ten times a second.
    tail: Arc<KafkaMetrics>,
    stored: mpsc::Sender<Stored>,
    member: Member,
    ended: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Stage {
    async fn begun() -> Stage {
        let cluster = Cluster::start(1).expect("it starts");
        cluster.create_topic(TOPIC, 1).expect("created");
        let metrics = Metrics::new();
        let mut options = cluster.options("test").measured(&metrics, "d/0");
        options.properties.insert("statistics.interval.ms".to_owned(), "100".to_owned());
        begin(&options, LIFE).await;
        let member = Member::join(&options, "g", TOPIC, "me").expect("a member");
        let (stored, stored_in) = mpsc::channel(4);
        let pressure = Pressure::default();
        let of_thread =
            (options.clone(), member.membership(), pressure.clone(), metrics.producer("d", Shard(0)));
        let (begun, begins) = tokio::sync::oneshot::channel();
        let ended = tokio::task::spawn_blocking(move || {
            let (options, membership, pressure, metrics) = of_thread;
            let announcer = announcer(&options, membership, pressure, metrics);
            let _ = begun.send(());
            announcer.run(stored_in, &CancellationToken::new())
        });
        begins.await.expect("it takes over");
        let tail = metrics.kafka("d/0/tail");
        Stage { _cluster: cluster, options, pressure, tail, stored, member, ended }
    }
}

/// The stage of [`LIFE`], which has taken over.
fn announcer(
    options: &kafka::Options,
    member: Membership,
    pressure: Pressure,
    metrics: Arc<ProducerMetrics>,
) -> Announcer {
    let clock = Clock::system();
    let transaction = Transaction::new(options, "d/0", clock.clone()).expect("a client");
    transaction.init(LONG).expect("init");
    let poller = Poller::new(options, &Tuning::tail("g", Duration::from_millis(50))).expect("a poller");
    let ends = poller.reach(TOPIC, 0).expect("it answers");
    let deadline = clock.now() + LONG;
    let stop = CancellationToken::new();
    let mut read_back =
        ReadBack::open(poller, TOPIC, 0, ends, clock.clone(), deadline, stop).expect("it is read");
    assert_eq!(read_back.take_truth().highest_epoch, LIFE.epoch);
    let constants = Constants {
        dataset: "d".into(),
        shard: Shard(0),
        shards: 1,
        life: LIFE,
        announcements: TOPIC.into(),
        dead_letters: ("d.dlq".into(), kafka::Timestamps::of(&Default::default())),
        control: "d.control".into(),
        schema: Arc::new(crate::schema::Schema::raw()),
        max_letter_bytes: 1 << 20,
        ledger: Ledger::new("d", Shed::None, clock.clone(), metrics.clone()),
        at_once: false,
    };
    let gate = Circuits::new(&Reliability::default(), &clock, &metrics).kafka;
    Announcer::new(
        constants,
        Carried::default(),
        transaction,
        member,
        read_back,
        (mpsc::channel(1).1, watch::channel(Version(0)).1, Comes::never()),
        watch::channel(None).0,
        Watchers::default(),
        (gate, pressure),
        clock,
        metrics,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nothing_is_announced_the_tail_is_looked_after_and_another_life_ends_this_one() {
    let stage = Stage::begun().await;
    // Its client fetches all the time, and says so in statistics that somebody has to take. Those of taking over were.
    let requests = || stage.tail.kafka_requests_total.get();
    let before = requests();
    wait_until("statistics of the tail are taken", || requests() > before).await;
    assert!(!stage.ended.is_finished(), "nothing is wrong");
    begin(&stage.options, life(LIFE.epoch + 1)).await;
    let ended = tokio::time::timeout(LONG, stage.ended).await.expect("it notices").expect("no panic");
    match ended.expect_err("another life has begun") {
        Error::ReadBack { source: read_back::Error::Superseded { newer }, .. } => {
            assert_eq!(newer, life(LIFE.epoch + 1))
        }
        error => panic!("{error:?}"),
    }
    drop(stage.stored);
    stage.member.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gauge_hears_how_long_announcing_takes_and_that_it_fails() {
    let mut stage = Stage::begun().await;
    let joined = tokio::time::timeout(LONG, stage.member.next()).await.expect("it joins");
    assert!(matches!(joined, Some(kafka::Event::Assigned(_))), "{joined:?}");
    let (_ground, built) = versions(2);
    let mut versions = stored(built).await.into_iter();
    stage.stored.send(versions.next().expect("two")).await.expect("it runs");
    let of = |pressure: &Pressure, strain| pressure.of(strain);
    wait_until("its time is told", || of(&stage.pressure, Strain::AnnounceLatency) > 0.0).await;
    assert_eq!(of(&stage.pressure, Strain::AnnounceFailures), 0.0);

    // Who has left the group commits no offsets.
    stage.member.close().await;
    stage.stored.send(versions.next().expect("two")).await.expect("it runs");
    let ended = tokio::time::timeout(LONG, stage.ended).await.expect("it fails").expect("no panic");
    let error = ended.expect_err("it fails");
    assert!(error.is_of_kafka(), "{error:?}");
    let one = 1.0 / f64::from(Reliability::default().circuit_breaker_threshold);
    assert_eq!(of(&stage.pressure, Strain::AnnounceFailures), one);
}
