//! A follower over a writer's half made by hand: deltas and snapshots in a store that is watched, announcements, no Kafka.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::BoxFuture;
use tempfile::TempDir;
use uuid::Uuid;

use super::super::open::{DISK, STORE};
use super::super::{guard, tail};
use super::*;
use crate::blob::{self, BlobStore, Body, Content, Listed, Store};
use crate::clock::{Clock, Entropy};
use crate::consumer::{Fixed, Guards};
use crate::format::container::{Kind, LEVEL, Writer, compress};
use crate::format::control::{Pin, Pinned, Standing};
use crate::kafka;
use crate::record::{Entry, Position, SourcePartition, Stamp};
use crate::schema::Schema;
use crate::schema::wire::put_bytes;
use crate::telemetry::ConsumerMetrics;
use crate::version::{BlobRef, Checksum, DeltaRef, Life, SnapshotRef};
use crate::view::{self, DeltaFile, Fetcher, Identity};

mod compacting;
mod leaving;
mod starting;

const LIFE: Life = Life { epoch: 1, writer: Uuid::nil() };
const TOPIC: TopicId = TopicId([7; 16]);
/// Longest that anything may take.
const LONG: Duration = Duration::from_secs(60);

/// A store that writes down what is asked of it, and fails or waits where it is told to.
#[derive(Debug)]
struct Watched {
    inner: Store,
    asked: Mutex<Vec<String>>,
    fails: AtomicBool,
    /// Snapshots are waited for.
    slow: watch::Sender<bool>,
}

impl Watched {
    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl BlobStore for Watched {
    fn put<'a>(&'a self, name: &'a str, body: Body) -> BoxFuture<'a, Result<(), blob::Error>> {
        Box::pin(self.inner.put(name, body))
    }

    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Content, blob::Error>> {
        Box::pin(async move {
            self.asked.lock().unwrap().push(name.to_owned());
            if name.contains(".snapshot") {
                let mut slow = self.slow.subscribe();
                slow.wait_for(|slow| !slow).await.expect("the world is there");
            }
            if self.fails.load(Ordering::Acquire) {
                let (url, problem) = (name.to_owned(), "it is away".to_owned());
                return Err(blob::Error::Unavailable { doing: "reading", url, problem });
            }
            self.inner.get(name).await
        })
    }

    fn head<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<u64>, blob::Error>> {
        Box::pin(self.inner.head(name))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>, blob::Error>> {
        Box::pin(self.inner.list(prefix))
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), blob::Error>> {
        Box::pin(self.inner.delete(name))
    }
}

pub(in crate::consumer) struct World {
    dir: TempDir,
    watched: Arc<Watched>,
    identity: Identity,
    schema: Arc<Schema>,
    /// The writer's.
    view: View,
    snapshot: Option<SnapshotRef>,
    chain: Vec<DeltaRef>,
    metrics: Arc<ConsumerMetrics>,
    guards: Guards,
    fixed: Option<Fixed>,
}

/// A reader that runs.
struct Running {
    seen: mpsc::Sender<Seen>,
    readable: watch::Receiver<Readable>,
    slot: Slot,
    recent: Recent,
    told: watch::Sender<Told>,
    tail: watch::Sender<TailStatus>,
    stop: CancellationToken,
    task: tokio::task::JoinSet<()>,
    process: Process,
}

/// A reader's own runtime: what it does beside is over when its process is, and does not make files for the next one.
struct Process(Option<tokio::runtime::Runtime>);

impl Process {
    async fn end(mut self) {
        let runtime = self.0.take();
        tokio::task::spawn_blocking(|| drop(runtime)).await.expect("it waits for its threads");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Running {
    /// Waits until it holds the version.
    async fn holds(&mut self, version: Version) -> Readable {
        let holds = self.readable.wait_for(|readable| readable.version == version);
        let held = tokio::time::timeout(LONG, holds).await.map(|held| held.expect("it runs").clone());
        held.unwrap_or_else(|_| panic!("it does not hold version {version}: {:?}", self.readable.borrow()))
    }

    async fn announce(&self, announced: &Arc<Announced>) {
        self.seen.send(Seen::Announced(announced.clone())).await.expect("it runs");
    }

    fn view(&self) -> Arc<View> {
        self.slot.load_full().expect("a version")
    }

    async fn end(self) {
        self.stop.cancel();
        let mut task = self.task;
        task.join_next().await.expect("it runs").expect("it does not panic");
        self.process.end().await;
    }
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let waited = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(LONG, waited).await.is_ok(), "never: {what}");
}

/// An announcement of which nothing but its number counts.
pub(in crate::consumer) fn announced(version: u64) -> Announced {
    let checksum = Checksum(0);
    let blob = BlobRef {
        name: "delta".into(),
        bytes: 1,
        checksum,
        plain_bytes: 1,
        plain_checksum: checksum,
        location: None,
    };
    let delta = DeltaRef { version: Version(version), epoch: LIFE.epoch, blob, upserts: 0, deletes: 0 };
    let announcement = announcement(&Arc::new(Schema::raw()), None, delta.clone(), vec![delta]);
    Announced { topic_id: TOPIC, announcement: Box::new(announcement), encoded: Vec::new() }
}

fn announcement(
    schema: &Arc<Schema>,
    snapshot: Option<SnapshotRef>,
    delta: DeltaRef,
    chain: Vec<DeltaRef>,
) -> Announcement {
    let version = delta.version;
    let source = SourcePartition { topic: "source".into(), topic_id: TopicId([1; 16]), partition: 0 };
    Announcement {
        dataset: "products".into(),
        shard: Shard(0),
        shards: 1,
        life: LIFE,
        version,
        previous: (version > Version(1)).then(|| (Version(version.0 - 1), LIFE.epoch)),
        announced_at: 1_700_000_000_000 + version.0 as i64,
        caught_up: true,
        records: 0,
        upserts: delta.upserts,
        deletes: delta.deletes,
        letters: 0,
        coalesced: 0,
        unchanged: 0,
        schema: schema.json().to_owned(),
        schema_fingerprint: schema.fingerprint(),
        positions: vec![SourcePosition { source, start: 0, offset: version.0 as i64 + 1, target: 0 }],
        delta,
        inline: None,
        snapshot,
        chain,
        oldest_kept: Version(0),
        newest_timestamp: None,
        traceparent: None,
    }
}

impl World {
    pub fn new() -> World {
        World::of(TOPIC)
    }

    /// With announcements in this topic.
    pub fn of(topic_id: TopicId) -> World {
        let inner = Store::open("memory://").unwrap();
        let slow = watch::channel(false).0;
        let watched = Watched { inner, asked: Mutex::default(), fails: AtomicBool::new(false), slow };
        let identity = Identity { dataset: "products".into(), topic_id, shard: Shard(0), shards: 1 };
        let schema = Arc::new(Schema::raw());
        World {
            dir: tempfile::tempdir().unwrap(),
            watched: Arc::new(watched),
            view: View::empty(identity.clone(), schema.clone()),
            identity,
            schema,
            snapshot: None,
            chain: Vec::new(),
            metrics: ConsumerMetrics::detached(),
            guards: Guards::default(),
            fixed: None,
        }
    }

    pub fn view(&self) -> &View {
        &self.view
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    fn store(&self) -> Store {
        Store::new("watched://", self.watched.clone())
    }

    async fn put(&self, kind: blob::name::Kind, version: Version, plain: &[u8]) -> BlobRef {
        let mut stored = Vec::new();
        match kind {
            blob::name::Kind::Index => stored.extend_from_slice(plain),
            _ => compress(plain, LEVEL, &mut stored).map(|_| ()).unwrap(),
        }
        let checksum = Checksum::of(&stored);
        let blob = BlobRef {
            name: self.identity.blob_name(kind, version, LIFE.epoch, checksum),
            bytes: stored.len() as u64,
            checksum,
            plain_bytes: plain.len() as u64,
            plain_checksum: Checksum::of(plain),
            location: None,
        };
        self.store().put(&blob.name, stored).await.unwrap();
        blob
    }

    /// Builds and stores the next version: keys with these numbers have its own as their value.
    pub async fn write(&mut self, keys: std::ops::Range<u32>) -> Arc<Announced> {
        let previous = self.view.version();
        let version = previous.next();
        let source = SourcePartition { topic: "source".into(), topic_id: TopicId([1; 16]), partition: 0 };
        let header = self.identity.header(Kind::Delta, version, previous, LIFE, &self.schema, vec![source]);
        let mut writer = Writer::new(Vec::new(), &header).unwrap();
        let mut datum = Vec::new();
        put_bytes(&mut datum, format!("the value of this key in version {version}").as_bytes());
        for number in keys.clone() {
            let stamp = Stamp { timestamp: 5, source: 0, offset: version.0 as i64 };
            let key = format!("P-{number:06}");
            writer.push(&Entry { key: key.as_bytes(), stamp, value: Some(&datum) }).unwrap();
        }
        let (_, plain) = writer.finish().unwrap();
        let blob = self.put(blob::name::Kind::Delta, version, &plain).await;
        let delta = DeltaRef { version, epoch: LIFE.epoch, blob, upserts: keys.len() as u64, deletes: 0 };
        self.chain.push(delta.clone());
        let announcement = announcement(&self.schema, self.snapshot.clone(), delta, self.chain.clone());
        announcement.check().unwrap();
        let file = DeltaFile::from_plain(plain, &self.identity, &self.schema).unwrap();
        let about = About::announced(&announcement, self.schema.clone());
        self.view = self.view.apply(Arc::new(file), about).unwrap();
        let encoded = Message::Announcement(Box::new(announcement.clone())).encode();
        Arc::new(Announced { topic_id: TOPIC, announcement: Box::new(announcement), encoded })
    }

    /// Makes a snapshot of the version, which announcements name from the next one on. Gives its blob's name.
    async fn snap(&mut self) -> String {
        let elsewhere = tempfile::tempdir().unwrap();
        let cache = Cache::open(elsewhere.path(), u64::MAX).unwrap();
        let (version, made) = (self.view.version(), self.view.merge_snapshot(LIFE, &cache).unwrap());
        let plain = std::fs::read(made.snapshot_path()).unwrap();
        let index = std::fs::read(made.index_path()).unwrap();
        let snapshot = SnapshotRef {
            version,
            epoch: LIFE.epoch,
            blob: self.put(blob::name::Kind::Snapshot, version, &plain).await,
            index: self.put(blob::name::Kind::Index, version, &index).await,
            records: made.summary().counts.upserts,
        };
        let name = snapshot.blob.name.clone();
        self.snapshot = Some(snapshot);
        self.chain.clear();
        name
    }

    pub fn options(&self) -> Options {
        Options {
            dataset: "products".into(),
            kafka: kafka::Options { bootstrap_servers: "127.0.0.1:1".into(), ..Default::default() },
            announcements: "products.announcements".into(),
            control: "products.control".into(),
            reader: "reader".into(),
            fixed: self.fixed,
            guards: self.guards.clone(),
            store: self.store(),
            cache_dir: self.dir.path().to_owned(),
            cache_bytes: u64::MAX,
            poll_interval: Duration::from_millis(10),
            max_backoff: Duration::from_millis(50),
            look_every: LONG,
            // Only what the test says ends the wait.
            control_wait: 10 * LONG,
            max_errors_per_minute: 10,
            freshness_slo: None,
            hold: Arc::default(),
            listeners: Vec::new(),
            listener_dir: self.dir.path().join("listeners"),
            dead_letters: "products.dlq".into(),
            memory_limit: 1 << 30,
            ready_when_any: false,
            serve_stale: false,
            clock: Clock::system(),
            entropy: Entropy::seeded(1),
            metrics: self.metrics.clone(),
        }
    }

    /// A reader on the world's cache.
    fn start(&self) -> Running {
        let options = self.options();
        let cache = Cache::open(self.dir.path(), u64::MAX).unwrap();
        let slot: Slot = Arc::default();
        let stop = CancellationToken::new();
        let fetcher = Fetcher::new(self.store(), cache.clone());
        let recent = Recent::new(slot.clone(), Some(fetcher.clone()), false, stop.clone());
        let (readable_in, readable) = watch::channel(Readable::default());
        let (told, told_in) = watch::channel(Told::default());
        let (tail, tail_in) = watch::channel(tail::unknown());
        let gate = Gate::new(options.guards.clone(), watch::channel(guard::Judged::default()).0);
        let earlier = Earlier::new(fetcher, options.clock.clone());
        let outside = (told_in, tail_in, gate);
        let follower = Follower::new(options, Shard(0), cache, recent.clone(), readable_in, earlier, outside);
        let (seen, seen_in) = mpsc::channel(16);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut task = tokio::task::JoinSet::new();
        task.spawn_on(follower.run(seen_in, stop.clone()), runtime.handle());
        Running { seen, readable, slot, recent, told, tail, stop, task, process: Process(Some(runtime)) }
    }

    /// Those of the cache with this in their names.
    fn files(&self, part: &str) -> Vec<std::path::PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.dir.path().to_owned()];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else if path.to_string_lossy().contains(part) {
                    found.push(path);
                }
            }
        }
        found
    }

    fn errors(&self, stage: &str) -> u64 {
        self.metrics.errors_total.with(&[stage]).get()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_tried_often_and_counted_once() {
    let mut world = World::new();
    let (one, two) = (world.write(0..10).await, world.write(10..20).await);
    let mut reader = world.start();
    reader.announce(&one).await;
    reader.holds(Version(1)).await;
    world.watched.fails.store(true, Ordering::Release);
    reader.announce(&two).await;
    let name = &two.announcement.delta.blob.name;
    until("it is tried", || world.watched.asked().iter().filter(|asked| *asked == name).count() > 12).await;
    assert_eq!((world.errors(STORE), world.errors(DISK), world.errors("follow")), (1, 0, 0));
    let readable = reader.readable.borrow().clone();
    assert!(readable.version == Version(1) && readable.error.is_some(), "{readable:?}");
    world.watched.fails.store(false, Ordering::Release);
    assert_eq!(reader.holds(Version(2)).await.error, None);
    reader.end().await;
}

fn pin(version: u64) -> Told {
    let pin = Pin {
        dataset: "products".into(),
        history: TOPIC,
        id: Uuid::nil(),
        versions: vec![Pinned { version: Version(version), epoch: LIFE.epoch, offset: 0 }],
        by: String::new(),
        reason: String::new(),
        at: 0,
    };
    Told { known: true, standing: Standing { pin: Some(pin), ..Standing::default() }, ..Told::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_version_is_shown_only_once_no_other_one_can_be_pinned() {
    let mut world = World::new();
    // What is shown unpinned is judged before.
    let judged: Arc<Mutex<Vec<Version>>> = Arc::default();
    let seen = judged.clone();
    world.guards.push(Arc::new(move |_: Option<&View>, next: &View| {
        seen.lock().unwrap().push(next.version());
        Ok(())
    }));
    let (one, two) = (world.write(0..10).await, world.write(10..20).await);
    let mut reader = world.start();
    reader.announce(&one).await;
    reader.holds(Version(1)).await;
    reader.announce(&two).await;
    reader.holds(Version(2)).await;
    reader.end().await;

    // It was pinned meanwhile.
    judged.lock().unwrap().clear();
    let mut reader = world.start();
    reader.told.send(pin(1)).unwrap();
    reader.seen.send(Seen::Pinned(one.clone())).await.unwrap();
    assert!(reader.holds(Version(1)).await.pinned);
    assert_eq!(*judged.lock().unwrap(), [], "no other one was shown, not even for a moment");
    reader.end().await;

    // Kafka fails: what is there is shown, and says that it may be old.
    let mut reader = world.start();
    reader.told.send(Told { error: Some("away".into()), ..Told::default() }).unwrap();
    let readable = reader.holds(Version(1)).await;
    assert!(readable.stale && reader.view().is_stale(), "{readable:?}");
    reader.announce(&two).await;
    assert!(!reader.holds(Version(2)).await.stale);
    reader.end().await;
    // No pin, says the control topic; and nothing was announced since.
    let mut reader = world.start();
    reader.told.send(Told { known: true, ..Told::default() }).unwrap();
    assert!(reader.holds(Version(2)).await.stale);
    reader.end().await;
}

/// Of a reader whose cache was evicted meanwhile there is the note, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_good_version_is_fetched_where_the_newest_is_refused() {
    let mut world = World::new();
    world.guards.push(Arc::new(|_: Option<&View>, next: &View| match next.version() {
        Version(3) => Err("it is the third".to_owned()),
        _ => Ok(()),
    }));
    let one = world.write(0..10).await;
    world.snap().await;
    let (two, three) = (world.write(10..20).await, world.write(20..30).await);
    let mut reader = world.start();
    reader.announce(&one).await;
    reader.holds(Version(1)).await;
    reader.announce(&two).await;
    reader.holds(Version(2)).await;
    until("it is kept", || !world.files(".kept").is_empty()).await;
    reader.end().await;
    world.files(TOPIC.to_string().as_str()).iter().for_each(|path| std::fs::remove_file(path).unwrap());
    let mut reader = world.start();
    reader.told.send(Told { known: true, ..Told::default() }).unwrap();
    reader.announce(&three).await;
    let refused = reader.readable.wait_for(|readable| readable.refused.is_some());
    tokio::time::timeout(LONG, refused).await.expect("it is judged").expect("it runs");
    let readable = reader.holds(Version(2)).await;
    assert!(!readable.stale, "it lies on the way to what Kafka has just announced: {readable:?}");
    reader.end().await;
}

/// Flips a byte in the middle of a file that is mapped.
fn damage(path: &std::path::Path) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_base_is_mended_beside_the_flow_and_stays_until_it_is() {
    let mut world = World::new();
    world.write(0..3_000).await;
    let snapshot = world.snap().await;
    let (two, three) = (world.write(0..10).await, world.write(10..20).await);
    let mut reader = world.start();
    reader.announce(&two).await;
    reader.holds(Version(2)).await;
    let file = world.files(".snapshot").pop().unwrap();
    damage(&file);
    world.watched.slow.send_replace(true);
    let failing = |reader: &Running| reader.view().iter().filter(|value| value.is_err()).count();
    assert!(failing(&reader) > 0, "the page that is damaged");
    until("it is fetched again", || {
        world.watched.asked().iter().filter(|asked| **asked == snapshot).count() == 2
    })
    .await;
    // The store is slow: what is announced meanwhile is readable all the same, and the file is still there.
    reader.announce(&three).await;
    reader.holds(Version(3)).await;
    assert!(failing(&reader) > 0 && file.exists());
    world.watched.slow.send_replace(false);
    until("it is whole again", || failing(&reader) == 0).await;
    assert_eq!((reader.view().version(), reader.view().iter().count()), (Version(3), 3_000));
    assert_eq!(world.watched.asked().iter().filter(|asked| **asked == snapshot).count(), 2);
    reader.end().await;

    // The store is away, and the process is killed before it can be mended.
    damage(&file);
    world.watched.fails.store(true, Ordering::Release);
    let mut reader = world.start();
    reader.told.send(Told { known: true, ..Told::default() }).unwrap();
    reader.holds(Version(3)).await;
    assert!(failing(&reader) > 0);
    let mut readable = reader.readable.clone();
    let said = readable.wait_for(|readable| readable.error.is_some());
    tokio::time::timeout(LONG, said).await.expect("it is tried").expect("it runs");
    reader.end().await;
    let mut reader = world.start();
    reader.told.send(Told { known: true, ..Told::default() }).unwrap();
    reader.holds(Version(3)).await;
    world.watched.fails.store(false, Ordering::Release);
    let whole =
        (0..3_000).filter(|n| reader.view().get(format!("P-{n:06}")).is_ok_and(|value| value.is_some()));
    assert!(whole.count() > 0, "the other pages are good");
    reader.end().await;
}

#[test]
fn a_version_that_cannot_be_opened_counts_once_for_each_reason() {
    let mut counted = Counted::default();
    let (one, two) = ((Version(7), 1), (Version(7), 2));
    let tries = [(one, STORE), (one, STORE), (one, "follow"), (one, STORE), (two, STORE), (two, STORE)];
    let news: Vec<_> = tries.iter().map(|(of, stage)| counted.is_new(*of, stage)).collect();
    assert_eq!(news, [true, false, true, false, true, false]);
    let failed = |source| Error::View { version: Version(7), source };
    let io = |kind: std::io::ErrorKind| view::Error::Io {
        doing: "writing",
        path: "/cache/x".into(),
        source: kind.into(),
    };
    let gone = || blob::Error::Missing { url: "s3://x".into() };
    for (source, stage) in [
        (view::Error::Missing(gone()), STORE),
        (view::Error::Store(gone()), STORE),
        (io(std::io::ErrorKind::StorageFull), DISK),
        (io(std::io::ErrorKind::PermissionDenied), "follow"),
        (view::Error::Gap(String::new()), "follow"),
    ] {
        assert_eq!(failed(source).stage(), stage);
    }
}

#[test]
fn lag_joins_by_partition_and_counts_a_new_one_from_its_start() {
    let source = |partition| SourcePartition { topic: "t".into(), topic_id: TopicId([1; 16]), partition };
    let at =
        |partition, start, offset| SourcePosition { source: source(partition), start, offset, target: 0 };
    let held = [Position { source: source(1), offset: 70 }, Position { source: source(0), offset: 10 }];
    assert_eq!(behind(&held, &[at(0, 0, 10), at(1, 0, 70)]), 0);
    assert_eq!(behind(&held, &[at(0, 0, 15), at(1, 0, 71), at(2, 40, 42)]), 5 + 1 + 2);
    assert_eq!(behind(&[], &[at(0, 3, 10)]), 7);
    assert_eq!(behind(&held, &[at(0, 0, 5)]), 0, "never below zero");
}
