//! A listener over a writer's half made by hand: deltas in a store, announcements, no Kafka.

use std::collections::VecDeque;
use std::sync::Mutex;

use arc_swap::ArcSwapOption;
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::checkpoint::{self, Checkpoint, Doing, State};
use super::*;
use crate::blob::{self, Store};
use crate::clock::{Clock, Entropy};
use crate::consumer::earlier::Earlier;
use crate::consumer::recent::Recent;
use crate::consumer::{Options, Reader};
use crate::format::announcement::{Announcement, SourcePosition};
use crate::format::container::{Kind, LEVEL, Writer, compress};
use crate::kafka;
use crate::record::{Entry, SourcePartition, Stamp, TopicId};
use crate::retry::Circuit;
use crate::schema::Schema;
use crate::schema::wire::put_bytes;
use crate::telemetry::ConsumerMetrics;
use crate::version::{BlobRef, Checksum, DeltaRef, Life, Shard, SnapshotRef};
use crate::view::{About, Cache, DeltaFile, Fetcher, Hold, Identity, View};

mod day;
mod held;
mod keeping;
mod storm;

const LIFE: Life = Life { epoch: 1, writer: Uuid::nil() };
/// Longest that anything may take.
const LONG: Duration = Duration::from_secs(60);

pub(crate) struct World {
    dir: TempDir,
    store: Store,
    pub(crate) identity: Identity,
    pub(crate) schema: Arc<Schema>,
    /// What stands in a datum behind the value that is written.
    more: Vec<u8>,
    pub(crate) hold: Arc<Hold>,
    /// By version: the view, and what announced it.
    pub(crate) versions: Vec<(View, Announcement)>,
    pub(crate) recent: Recent,
    kafka: kafka::Options,
    stop: CancellationToken,
    metrics: Arc<ConsumerMetrics>,
}

impl World {
    pub(crate) fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open("memory://").unwrap();
        let topic_id = TopicId([7; 16]);
        let identity = Identity { dataset: "products".into(), topic_id, shard: Shard(0), shards: 1 };
        let stop = CancellationToken::new();
        let hold = Arc::<Hold>::default();
        let recent = recent(&dir, &store, &hold, &stop);
        let schema = Arc::new(Schema::raw());
        let metrics = ConsumerMetrics::detached();
        let (versions, more) = (Vec::new(), Vec::new());
        // Nobody listens on port 1.
        let kafka = kafka::Options { bootstrap_servers: "127.0.0.1:1".into(), ..Default::default() };
        World { dir, store, identity, schema, more, hold, versions, recent, kafka, stop, metrics }
    }

    /// The process starts again: nothing is held, nobody listens.
    pub(crate) fn restart(&mut self) {
        self.stop.cancel();
        self.stop = CancellationToken::new();
        self.recent = recent(&self.dir, &self.store, &self.hold, &self.stop);
    }

    /// Builds the next version and stores it.
    pub(crate) async fn write(&mut self, changes: &[(&str, Option<&str>)]) {
        let before = self.versions.last().map_or(0, |(view, _)| view.version().0);
        let (version, previous) = (Version(before + 1), Version(before));
        let source = SourcePartition { topic: "source".into(), topic_id: TopicId([1; 16]), partition: 0 };
        let header =
            self.identity.header(Kind::Delta, version, previous, LIFE, &self.schema, vec![source.clone()]);
        let mut writer = Writer::new(Vec::new(), &header).unwrap();
        for (key, value) in changes {
            let datum = value.map(|value| {
                let mut datum = Vec::new();
                put_bytes(&mut datum, value.as_bytes());
                datum.extend_from_slice(&self.more);
                datum
            });
            let stamp = Stamp { timestamp: 5, source: 0, offset: version.0 as i64 };
            writer.push(&Entry { key: key.as_bytes(), stamp, value: datum.as_deref() }).unwrap();
        }
        let (_, plain) = writer.finish().unwrap();
        let mut stored = Vec::new();
        compress(&plain, LEVEL, &mut stored).unwrap();
        let checksum = Checksum::of(&stored);
        let blob = BlobRef {
            name: self.identity.blob_name(blob::name::Kind::Delta, version, LIFE.epoch, checksum),
            bytes: stored.len() as u64,
            checksum,
            plain_bytes: plain.len() as u64,
            plain_checksum: Checksum::of(&plain),
            location: None,
        };
        self.store.put(&blob.name, stored).await.unwrap();
        let upserts = changes.iter().filter(|(_, value)| value.is_some()).count() as u64;
        let deletes = changes.len() as u64 - upserts;
        let delta = DeltaRef { version, epoch: LIFE.epoch, blob, upserts, deletes };
        let mut chain: Vec<_> = self.versions.last().map_or(Vec::new(), |(_, last)| last.chain.clone());
        chain.push(delta.clone());
        let announcement = Announcement {
            dataset: "products".into(),
            shard: Shard(0),
            shards: 1,
            life: LIFE,
            version,
            previous: (before > 0).then_some((previous, LIFE.epoch)),
            announced_at: 1_700_000_000_000 + version.0 as i64,
            caught_up: true,
            records: 0,
            upserts,
            deletes,
            letters: 0,
            coalesced: 0,
            unchanged: 0,
            schema: self.schema.json().to_owned(),
            schema_fingerprint: self.schema.fingerprint(),
            positions: vec![SourcePosition { source, start: 0, offset: version.0 as i64 + 1, target: 0 }],
            delta,
            inline: None,
            snapshot: self.versions.last().and_then(|(_, last)| last.snapshot.clone()),
            chain,
            oldest_kept: Version(0),
            newest_timestamp: None,
            traceparent: None,
        };
        announcement.check().unwrap();
        let file = DeltaFile::from_plain(plain, &self.identity, &self.schema).unwrap();
        let view = match self.versions.last() {
            Some((view, _)) => view.clone(),
            None => View::empty(self.identity.clone(), self.schema.clone()),
        };
        let about = About::announced(&announcement, self.schema.clone());
        let view = view.apply(Arc::new(file), about).unwrap();
        self.versions.push((view, announcement));
    }

    /// Makes a version that was written the newest.
    pub(crate) fn show(&self, version: u64) {
        let (view, announcement) = &self.versions[version as usize - 1];
        let cache = Cache::open(self.dir.path().join("cache"), u64::MAX).unwrap();
        self.recent.publish(view.clone().hold(&self.hold, &cache).unwrap(), announcement);
    }

    /// Writes a version, and makes it the newest.
    pub(crate) async fn advance(&mut self, changes: &[(&str, Option<&str>)]) {
        self.write(changes).await;
        self.show(self.versions.len() as u64);
    }

    /// Reads the newest version that was written, and those before it.
    pub(crate) fn reader(&self) -> Reader {
        let cache = Cache::open(self.dir.path().join("cache"), u64::MAX).unwrap();
        let earlier = Earlier::new(Fetcher::new(self.store.clone(), cache), Clock::system());
        let (view, announcement) = self.versions.last().unwrap();
        earlier.note(view, announcement);
        Reader::over(self.recent.clone(), view.clone()).finding(earlier)
    }

    pub(in crate::consumer) fn options(&self) -> Options {
        Options {
            dataset: "products".into(),
            kafka: self.kafka.clone(),
            announcements: "products.announcements".into(),
            control: "products.control".into(),
            reader: "reader".into(),
            fixed: None,
            guards: Default::default(),
            store: self.store.clone(),
            cache_dir: self.dir.path().join("cache"),
            cache_bytes: 1 << 20,
            poll_interval: Duration::from_millis(10),
            max_backoff: Duration::from_millis(100),
            look_every: Duration::from_secs(60),
            control_wait: Duration::from_secs(2),
            max_errors_per_minute: 10,
            freshness_slo: None,
            hold: self.hold.clone(),
            listeners: Vec::new(),
            listener_dir: self.dir.path().join("listeners"),
            dead_letters: "products.dlq".into(),
            memory_limit: 1 << 20,
            ready_when_any: false,
            serve_stale: false,
            clock: Clock::system(),
            entropy: Entropy::seeded(1),
            metrics: self.metrics.clone(),
        }
    }

    /// Starts the listener.
    fn listen(&self, listening: Listening) -> (Report, tokio::task::JoinHandle<()>) {
        let report = Report::new(&listening.name, &self.metrics);
        let options = self.options();
        let runner =
            Runner::new(listening, &options, self.recent.clone(), report.clone(), self.stop.clone()).unwrap();
        (report, tokio::task::spawn_blocking(move || runner.run()))
    }
}

impl Drop for World {
    /// A failed test must not wait for its listener.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn recent(dir: &TempDir, store: &Store, hold: &Arc<Hold>, stop: &CancellationToken) -> Recent {
    let cache = Cache::open(dir.path().join("cache"), u64::MAX).unwrap();
    let fetcher = Fetcher::new(store.clone(), cache).holding(hold.clone());
    Recent::new(Arc::new(ArcSwapOption::empty()), Some(fetcher), false, stop.clone())
}

/// A set as text: `1->2 rollback #0: a=1>2 b=>3`.
type Said = String;

/// Writes down what it is told, waits where it is held, fails where it is told to.
#[derive(Clone, Default)]
struct Scribe(Arc<Inner>);

#[derive(Default)]
struct Inner {
    sets: Mutex<Vec<(Said, String)>>,
    failures: Mutex<VecDeque<Failed>>,
    told: Notify,
    hold: Mutex<Option<Arc<Notify>>>,
    batch: Option<usize>,
}

impl Listener for Scribe {
    async fn changed(&self, set: &ChangeSet<'_>) -> Result<(), Failed> {
        let hold = self.0.hold.lock().unwrap().clone();
        if let Some(hold) = hold {
            hold.notified().await;
        }
        let failure = self.0.failures.lock().unwrap().pop_front();
        let text = |value: Option<&crate::view::Value<'_>>| {
            value.map_or(String::new(), |value| match value.raw() {
                Some(raw) => String::from_utf8_lossy(raw).into_owned(),
                None => value.to_json().unwrap(),
            })
        };
        let mut said = format!("{}->{}", set.from, set.version);
        said += if set.rollback { " rollback" } else { "" };
        said += if set.reset { " reset" } else { "" };
        said += if set.last { ":" } else { " more:" };
        for change in &set.changes {
            let (old, new) = (text(change.before()), text(change.after()));
            said += &format!(" {}={old}>{new}", String::from_utf8_lossy(change.key()));
        }
        said += if failure.is_some() { " failed" } else { "" };
        self.0.sets.lock().unwrap().push((said, set.id.clone()));
        self.0.told.notify_one();
        failure.map_or(Ok(()), Err)
    }

    fn batch_size(&self) -> usize {
        self.0.batch.unwrap_or(100)
    }
}

impl Scribe {
    /// What it was told since the last time, once there are `count` sets.
    async fn heard(&self, count: usize) -> Vec<Said> {
        self.heard_with_ids(count).await.into_iter().map(|(said, _)| said).collect()
    }

    async fn heard_with_ids(&self, count: usize) -> Vec<(Said, String)> {
        let enough = async {
            while self.0.sets.lock().unwrap().len() < count {
                self.0.told.notified().await;
            }
        };
        if tokio::time::timeout(LONG, enough).await.is_err() {
            panic!("waited for {count} sets: {:?}", self.0.sets.lock().unwrap());
        }
        std::mem::take(&mut self.0.sets.lock().unwrap())
    }

    fn fail(&self, failures: impl IntoIterator<Item = Failed>) {
        self.0.failures.lock().unwrap().extend(failures);
    }
}

fn quick(name: &str, scribe: &Scribe) -> Listening {
    let tries = Tries {
        more: 2,
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(5),
        breaker_threshold: 3,
        breaker_reset: Duration::from_millis(20),
    };
    Listening { tries, ..Listening::new(name, scribe.clone()) }
}

async fn ends(world: &World, task: tokio::task::JoinHandle<()>) {
    world.stop.cancel();
    tokio::time::timeout(LONG, task).await.expect("it ends when it is told to").unwrap();
}

/// Waits until the checkpoint says so.
async fn until(report: &Report, what: impl Fn(&Told) -> bool) {
    let reached = async {
        while !what(&report.told()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(LONG, reached).await.is_err() {
        panic!("{:?}", report.told());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_version_comes_once_in_order_and_a_rollback_as_one_set() {
    let mut world = World::new();
    let scribe = Scribe::default();
    world.write(&[("a", Some("1")), ("b", Some("1"))]).await;
    world.write(&[("a", Some("2")), ("c", Some("1"))]).await;
    world.write(&[("b", None)]).await;
    let (report, task) = world.listen(quick("audit", &scribe));
    for version in 1..=3 {
        world.show(version);
    }
    // The first may be any of the three: a new listener begins with all there is.
    until(&report, |told| told.version == Version(3)).await;
    let first = scribe.heard(1).await;
    assert!(first[0].starts_with("0->"), "{first:?}");
    world.advance(&[("d", Some("1"))]).await;
    world.advance(&[]).await;
    world.advance(&[("a", Some("2")), ("d", Some("2"))]).await;
    world.show(2);
    world.show(6);
    assert_eq!(
        scribe.heard(4).await,
        [
            "3->4: d=>1",
            // Version 5 changes nothing; nor does version 6 of a.
            "5->6: d=1>2",
            "6->2 rollback: b=>1 d=2>",
            "2->6: b=1> d=>2",
        ]
    );
    ends(&world, task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_where_it_stopped_version_by_version() {
    let mut world = World::new();
    let scribe = Scribe::default();
    world.advance(&[("a", Some("1"))]).await;
    let (report, task) = world.listen(quick("audit", &scribe));
    assert_eq!(scribe.heard(1).await, ["0->1: a=>1"]);
    until(&report, |told| told.version == Version(1)).await;
    ends(&world, task).await;
    for value in ["2", "3", "4"] {
        world.write(&[("a", Some(value))]).await;
    }
    world.restart();
    let (report, task) = world.listen(quick("audit", &scribe));
    world.show(4);
    assert_eq!(scribe.heard(3).await, ["1->2: a=1>2", "2->3: a=2>3", "3->4: a=3>4"]);
    until(&report, |told| told.version == Version(4)).await;
    ends(&world, task).await;

    // Nothing happened meanwhile: nothing comes twice.
    world.restart();
    let (report, task) = world.listen(quick("audit", &scribe));
    world.show(4);
    until(&report, |told| told.version == Version(4)).await;
    world.advance(&[("a", None)]).await;
    assert_eq!(scribe.heard(1).await, ["4->5: a=4>"]);
    ends(&world, task).await;

    // Too many meanwhile: one difference. A rollback meanwhile: one, marked.
    for number in 0..MOST_BEHIND + 5 {
        world.write(&[("a", Some("x")), (&format!("b{number:02}"), Some("1"))]).await;
    }
    world.restart();
    let scribe = Scribe::default();
    let (report, task) = world.listen(quick("audit", &scribe));
    world.show(world.versions.len() as u64);
    let heard = scribe.heard(1).await;
    assert!(heard[0].starts_with("5->42: a=>x b00=>1"), "{heard:?}");
    until(&report, |told| told.version == Version(42)).await;
    ends(&world, task).await;
    world.restart();
    let (_, task) = world.listen(quick("audit", &scribe));
    world.show(40);
    assert_eq!(scribe.heard(1).await, ["42->40 rollback: b35=1> b36=1>"]);
    ends(&world, task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_listener_is_given_several_versions_as_one_and_holds_nobody_up() {
    let mut world = World::new();
    let go = Arc::new(Notify::new());
    let scribe = Scribe(Arc::new(Inner { hold: Mutex::new(Some(go.clone())), ..Inner::default() }));
    world.advance(&[("a", Some("0"))]).await;
    let (_, task) = world.listen(quick("audit", &scribe));
    // It is in its first call when more versions come than are kept; readers are at the newest all the time.
    for number in 1..=MOST_BEHIND + 10 {
        let value = number.to_string();
        world.advance(&[("a", Some(&value))]).await;
        assert_eq!(world.recent.newest().unwrap().view.version(), Version(number as u64 + 1));
    }
    *scribe.0.hold.lock().unwrap() = None;
    go.notify_one();
    let last = (MOST_BEHIND + 11).to_string();
    let mut heard: Vec<Said> = Vec::new();
    while !heard.last().is_some_and(|said| said.contains(&format!("->{last}:"))) {
        heard.extend(scribe.heard(1).await);
    }
    // From one to the next without a gap, and fewer than there were versions.
    let ends: Vec<(u64, u64)> = heard
        .iter()
        .map(|said| {
            let (from, to) = said.split(':').next().unwrap().split_once("->").unwrap();
            (from.parse().unwrap(), to.parse().unwrap())
        })
        .collect();
    assert!(ends.windows(2).all(|pair| pair[0].1 == pair[1].0), "{ends:?}");
    assert!(ends.len() <= MOST_BEHIND + 2, "{ends:?}");
    assert!(ends.iter().any(|(from, to)| to - from > 1), "{ends:?}");
    self::ends(&world, task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_fails_comes_again_and_an_outage_costs_no_tries() {
    let mut world = World::new();
    let scribe = Scribe::default();
    let error = || std::io::Error::other("no");
    // Two more tries are allowed; what is away does not count, however often.
    scribe.fail([Failed::again(error()), Failed::refused(error())]);
    scribe.fail((0..9).map(|_| Failed::away(error())));
    world.advance(&[("a", Some("1"))]).await;
    let (report, task) = world.listen(quick("audit", &scribe));
    let heard = scribe.heard_with_ids(12).await;
    assert!(heard[..11].iter().all(|(said, _)| said == "0->1: a=>1 failed"), "{heard:?}");
    assert_eq!(heard[11].0, "0->1: a=>1");
    assert!(heard.iter().all(|(_, id)| *id == heard[0].1), "the same set has the same id: {heard:?}");
    until(&report, |told| told.version == Version(1) && told.error.is_none()).await;
    assert_eq!(report.told().circuit, Circuit::Closed);
    let metrics = &world.metrics;
    assert_eq!(metrics.listener_failures_total.with(&["audit"]).get(), 11);
    assert!(metrics.circuit_trips_total.with(&["audit"]).get() >= 1, "three in a row open the breaker");
    assert_eq!(metrics.dead_letters_total.with(&["listener"]).get(), 0);
    ends(&world, task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_cannot_be_written_holds_the_listener_and_a_panic_is_a_failure() {
    struct Panics;
    impl Listener for Panics {
        async fn changed(&self, _: &ChangeSet<'_>) -> Result<(), Failed> {
            panic!("on purpose")
        }
    }
    let mut world = World::new();
    world.advance(&[("a", Some("1"))]).await;
    let listening =
        Listening { tries: quick("x", &Scribe::default()).tries, ..Listening::new("audit", Panics) };
    let (report, task) = world.listen(listening);
    until(&report, |told| told.error.is_some()).await;
    until(&report, |told| {
        world.metrics.listener_failures_total.with(&["audit"]).get() == 3 && told.version == Version(0)
    })
    .await;
    ends(&world, task).await;
    assert_eq!(report.told().letters, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_version_comes_in_parts_and_goes_on_in_the_middle() {
    let mut world = World::new();
    let scribe = Scribe(Arc::new(Inner { batch: Some(2), ..Inner::default() }));
    let error = || std::io::Error::other("no");
    world
        .advance(&[("a", Some("1")), ("b", Some("1")), ("c", Some("1")), ("d", Some("1")), ("e", Some("1"))])
        .await;
    let (report, task) = world.listen(quick("audit", &scribe));
    let heard = scribe.heard_with_ids(3).await;
    let said: Vec<_> = heard.iter().map(|(said, _)| said.as_str()).collect();
    assert_eq!(said, ["0->1 more: a=>1 b=>1", "0->1 more: c=>1 d=>1", "0->1: e=>1"]);
    until(&report, |told| told.version == Version(1)).await;
    world.advance(&[("a", Some("2")), ("b", Some("2")), ("c", Some("2"))]).await;
    let first = scribe.heard_with_ids(2).await;
    assert_eq!(first[1].0, "1->2: c=1>2");
    until(&report, |told| told.version == Version(2)).await;

    // The next one does not get through before the process ends.
    scribe.fail((0..1_000).map(|_| Failed::away(error())));
    world.advance(&[("a", Some("3")), ("b", Some("3")), ("c", Some("3"))]).await;
    scribe.heard(1).await;
    ends(&world, task).await;
    scribe.0.failures.lock().unwrap().clear();
    scribe.0.sets.lock().unwrap().clear();
    world.write(&[("c", Some("4"))]).await;
    world.restart();
    let (report, task) = world.listen(quick("audit", &scribe));
    world.show(4);
    // What was begun is finished as it was begun, then comes what is new.
    assert_eq!(scribe.heard(3).await, ["2->3 more: a=2>3 b=2>3", "2->3: c=2>3", "3->4: c=3>4"]);
    until(&report, |told| told.version == Version(4)).await;
    ends(&world, task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_compared_comes_whole_and_says_so() {
    let mut world = World::new();
    let scribe = Scribe::default();
    world.advance(&[("a", Some("1"))]).await;
    world.advance(&[("b", Some("1"))]).await;
    let (report, task) = world.listen(quick("audit", &scribe));
    assert_eq!(scribe.heard(1).await, ["0->2: a=>1 b=>1"]);
    until(&report, |told| told.version == Version(2)).await;
    ends(&world, task).await;
    // Another history, by a new topic.
    let mut other = World::new();
    other.identity.topic_id = TopicId([8; 16]);
    std::mem::swap(&mut other.dir, &mut world.dir);
    other.advance(&[("z", Some("9"))]).await;
    let (report, task) = other.listen(quick("audit", &scribe));
    assert_eq!(scribe.heard(1).await, ["0->1 reset: z=>9"]);
    until(&report, |told| told.version == Version(1)).await;
    ends(&other, task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_one_may_begin_at_the_newest() {
    let mut world = World::new();
    let scribe = Scribe::default();
    world.advance(&[("a", Some("1"))]).await;
    let listening = Listening { begin: Begin::Newest, ..quick("audit", &scribe) };
    let (report, task) = world.listen(listening);
    until(&report, |told| told.version == Version(1)).await;
    world.advance(&[("a", Some("2"))]).await;
    assert_eq!(scribe.heard(1).await, ["1->2: a=1>2"]);
    ends(&world, task).await;
}
