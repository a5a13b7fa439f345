//! The stage, over topics of the embedded broker.

use super::*;
use crate::blob::faulty::{Beside, Call, Faulty};
use crate::format::control;
use crate::producer::Options;
use crate::view::{Cache, Spared};

/// Keeps one blob from being deleted, while it is locked.
#[derive(Debug)]
struct Locked {
    blob: String,
    locked: Arc<AtomicBool>,
}

impl Beside for Locked {
    fn before<'a>(&'a self, call: Call, name: &'a str) -> BoxFuture<'a, Result<(), blob::Error>> {
        let is_locked = call == Call::Delete && name == self.blob && self.locked.load(Ordering::Acquire);
        let refused = || blob::Error::Refused {
            doing: "deleting",
            url: name.to_owned(),
            problem: "it is locked".to_owned(),
        };
        Box::pin(std::future::ready(if is_locked { Err(refused()) } else { Ok(()) }))
    }
}

/// What a cleaner works on.
struct Ground {
    _cluster: Cluster,
    sender: Sender,
    options: Options,
    /// The store without what is wrong with it.
    store: Store,
    life: Life,
}

impl Ground {
    /// The world's topic, and its blobs in a store that `made` makes of the given one.
    async fn of(world: &World, made: impl FnOnce(Store) -> Store) -> Ground {
        let cluster = Cluster::start(1).unwrap();
        for topic in ["d.announcements", "d.control"] {
            cluster.create_topic(topic, 1).unwrap();
        }
        let sender = Sender::new(&cluster.options("test")).unwrap();
        let store = Store::open("memory://").unwrap();
        for name in &world.store {
            store.put(name, b"x".to_vec()).await.unwrap();
        }
        let schema = r#"{"type":"record","name":"P","fields":[{"name":"id","type":"string"}]}"#;
        let options = crate::Producer::builder("d").source("products").kafka(cluster.options("test"));
        let options = options.schema(schema).store(made(store.clone())).data_dir("unused").options().unwrap();
        let ground = Ground { _cluster: cluster, sender, options, store, life: world.life() };
        for (_, message) in &world.topic {
            ground.send(message).await;
        }
        assert_eq!(ground.there().await, world.store);
        ground
    }

    async fn send(&self, message: &Message) {
        let value = message.encode();
        let (topic, partition) = ("d.announcements", Some(0));
        let record = Outgoing { topic, partition, value: Some(&value), ..Outgoing::default() };
        self.sender.send(&record).await.unwrap();
    }

    async fn there(&self) -> BTreeSet<String> {
        let listed = self.store.list("d").await.unwrap();
        listed.into_iter().map(|listed| listed.name).collect()
    }

    /// One that keeps a snapshot, and has no grace.
    fn cleaner(&self, topic_id: TopicId) -> Cleaner {
        let admin = Admin::new(&self.options.kafka).unwrap();
        let sweep = Sweep::new(self.options.clone(), admin, topic_id, Shard(0), None);
        let cleaning = Cleaning { keep_snapshots: 1, grace: Duration::ZERO };
        let ground = (Clock::system(), Entropy::system(), Duration::from_millis(1));
        let (announced, keep_from) = (watch::channel(None).1, watch::channel(Version(0)).0);
        let metrics = ProducerMetrics::detached();
        Cleaner::new(sweep, self.life, &cleaning, announced, keep_from, ground, metrics)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_blob_that_is_refused_keeps_no_other_and_a_topic_made_anew_keeps_all() {
    let mut world = thirty();
    world.keep(1);
    world.announce();
    let below = Version(29);
    let kept: BTreeSet<String> = world.retained(below).into_iter().flat_map(named).collect();
    // The first in the order in which they go.
    let blob = world.store.difference(&kept).next().expect("something goes").clone();
    let locked = Arc::new(AtomicBool::new(true));
    let lock = Arc::new(Locked { blob: blob.clone(), locked: Arc::clone(&locked) });
    let ground = Ground::of(&world, |inner| Faulty::beside(inner, lock)).await;
    let stop = CancellationToken::new();

    let anew = ground.cleaner(TopicId([7; 16])).turn(&stop).await.unwrap_err();
    assert!(anew.to_string().contains("was deleted and created again"), "{anew}");
    assert_eq!(ground.there().await, world.store, "nothing is deleted");

    let mut cleaner = ground.cleaner(TopicId::default());
    let refused = cleaner.turn(&stop).await.unwrap_err();
    assert!(refused.is_refusal(), "{refused:?}");
    let left: BTreeSet<String> = kept.iter().cloned().chain([blob.clone()]).collect();
    assert_eq!(ground.there().await, left, "all others are gone");
    assert_eq!(cleaner.grace.due(cleaner.clock.now()), Some(below), "and it is tried again");
    assert!(!cleaner.sweep.is_uncut(), "the announcements were cut off all the same");
    assert_eq!(cleaner.sweep.shelf().oldest(), Version(29));

    locked.store(false, Ordering::Release);
    cleaner.turn(&stop).await.unwrap();
    assert_eq!(ground.there().await, kept);
    assert_eq!(cleaner.grace.due(cleaner.clock.now()), None);
    assert!(!cleaner.sweep.is_uncut());
}

/// What the control topic says by its newest record: a pin to version 18, or that there is none.
async fn say(ground: &Ground, pinned: bool) {
    let pin = control::Pin {
        dataset: "d".to_owned(),
        history: TopicId::default(),
        id: uuid::Uuid::nil(),
        versions: vec![control::Pinned { version: Version(18), epoch: 1, offset: 0 }],
        by: String::new(),
        reason: String::new(),
        at: 0,
    };
    let (key, value) = (control::pin_key("d"), control::Control::Pin(pin).encode());
    let value = pinned.then_some(&*value);
    let (topic, partition) = ("d.control", Some(0));
    let record = Outgoing { topic, partition, key: Some(key.as_bytes()), value, ..Outgoing::default() };
    ground.sender.send(&record).await.unwrap();
}

/// Whoever deletes the control topic, or makes it anew, unpins nobody: readers stay at the version, and so does it.
#[tokio::test(flavor = "multi_thread")]
async fn a_control_topic_made_anew_that_says_nothing_of_the_pin_lets_nothing_go() {
    let mut world = thirty();
    world.keep(1);
    world.announce();
    let ground = Ground::of(&world, |inner| inner).await;
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), u64::MAX).unwrap();
    let stop = CancellationToken::new();
    let pinned = name(Version(18), 1, Kind::Delta).to_string();
    let noted = || Spared::load(dir.path(), "d", Shard(0)).unwrap();
    let cleaner = || {
        let mut cleaner = ground.cleaner(TopicId::default());
        cleaner.sweep = cleaner.sweep.noting(cache.clone());
        cleaner
    };
    // As of another topic of that name.
    let history = TopicId::default();
    let before = Spared { topic: TopicId([7; 16]), history, version: Version(18), epoch: 1 };
    cache.save_spared("d", Shard(0), Some(before)).unwrap();
    let admin = Admin::new(&ground.options.kafka).unwrap();
    let gc = Sweep::new(ground.options.clone(), admin, TopicId::default(), Shard(0), None);
    let mut gc = gc.heeding(dir.path().to_owned());
    for lost in [cleaner().turn(&stop).await.unwrap_err(), gc.confirm(ground.life, &stop).await.unwrap_err()]
    {
        assert!(lost.to_string().contains("says nothing of the pin to version 18"), "{lost}");
        assert!(matches!(lost.kind(), crate::ErrorKind::Rejected));
    }
    assert_eq!((ground.there().await, noted()), (world.store.clone(), Some(before)), "nothing is deleted");

    // Of another history, which is gone.
    let elsewhere = Spared { history: TopicId([8; 16]), ..before };
    cache.save_spared("d", Shard(0), Some(elsewhere)).unwrap();
    gc.confirm(ground.life, &stop).await.unwrap();

    say(&ground, true).await;
    cleaner().turn(&stop).await.unwrap();
    assert_eq!(noted(), Some(Spared { topic: TopicId::default(), ..before }));
    let there = ground.there().await;
    assert!(
        there.contains(&pinned) && there.len() < world.store.len(),
        "the pinned version stays, others went"
    );

    say(&ground, false).await;
    gc.confirm(ground.life, &stop).await.unwrap();
    assert!(noted().is_some(), "who only asks notes nothing");
    cleaner().turn(&stop).await.unwrap();
    assert_eq!(noted(), None);
    assert!(!ground.there().await.contains(&pinned), "unpinned it goes");
}

/// The snapshot of 28 is lost, and a life goes on from that of 18, as below: `blob gc` does not know whether it was restored.
#[tokio::test(flavor = "multi_thread")]
async fn beside_a_life_that_has_said_nothing_yet_only_what_was_never_announced_goes() {
    let mut world = thirty();
    world.keep(1);
    world.announce();
    world.restore();
    let stands_on = name(Version(18), 1, Kind::Snapshot);
    let ground = Ground::of(&world, |inner| inner).await;
    let stop = CancellationToken::new();
    let admin = Admin::new(&ground.options.kafka).unwrap();
    let mut gc = Sweep::new(ground.options.clone(), admin, TopicId::default(), Shard(0), None);
    gc.read(&stop).await.unwrap();
    let (below, life) = (Version(29), ground.life);
    let names = |plan: &Plan| plan.doomed.iter().map(|doomed| doomed.name.clone()).collect::<Vec<_>>();
    let knowing = gc.plan(below, None).await.unwrap();
    assert!(names(&knowing).contains(&stands_on), "by the announcements alone it would go");
    let plan = gc.plan_beside(life, below, None).await.unwrap();
    assert!(
        names(&plan).contains(&name(Version(32), 1, Kind::Delta)),
        "of the life before, and never announced"
    );
    assert!(plan.doomed.iter().all(|doomed| doomed.fate == Fate::Orphan), "{:?}", plan.doomed);
    let stay = (knowing.doomed.len() - plan.doomed.len()) as u64;
    assert_eq!(plan.fresh.blobs, knowing.fresh.blobs + stay, "all others are said to stay");

    world.announce();
    ground.send(&world.topic.last().expect("it was announced").1).await;
    gc.read(&stop).await.unwrap();
    let plan = gc.plan_beside(life, below, None).await.unwrap();
    let goes = names(&plan);
    assert!(!goes.contains(&stands_on), "it is named now");
    assert!(goes.contains(&name(Version(8), 1, Kind::Snapshot)), "all else goes as ever: {goes:?}");
}

/// The snapshot of 28 is lost; a life goes on from that of 18, which by the announcements before its own has passed.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_restored_life_goes_on_from_stays_until_it_has_said_so_itself() {
    let mut world = thirty();
    world.keep(1);
    world.announce();
    world.restore();
    let stands_on = name(Version(18), 1, Kind::Snapshot);
    assert_eq!(world.shelf.fate(&stands_on, Version(29), None), Fate::Passed);
    let ground = Ground::of(&world, |inner| inner).await;
    let stop = CancellationToken::new();
    let mut cleaner = ground.cleaner(TopicId::default()).holding_off(true);
    for _ in 0..2 {
        let held = cleaner.turn(&stop).await.unwrap_err();
        assert!(matches!(held, Error::Unsaid(life) if life == ground.life), "{held}");
    }
    assert_eq!(ground.there().await, world.store, "nothing is deleted");
    assert!(!cleaner.sweep.is_uncut() && cleaner.sweep.shelf().oldest() == Version(1), "nor cut off");

    world.announce();
    ground.send(&world.topic.last().expect("it was announced").1).await;
    let it = world.announced.last().expect("it was announced");
    ground.store.put(&it.delta.blob.name, b"x".to_vec()).await.unwrap();
    cleaner.turn(&stop).await.unwrap();
    let left = ground.there().await;
    let named = named(it);
    assert!(named.contains(&stands_on.to_string()) && left.is_superset(&named), "{named:?} of {left:?}");
    assert!(!left.contains(&name(Version(8), 1, Kind::Snapshot).to_string()), "all else goes as ever");
}
