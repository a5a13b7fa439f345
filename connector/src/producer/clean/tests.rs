//! What is kept, against a model that looks at every announcement anew; when a grace is over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use proptest::prelude::*;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::shelf::{Fate, Pin, Shelf};
use super::sweep::{Error, Plan, Refused, Sweep, take_on};
use super::{AGAIN, Cleaner, Cleaning, Grace};
use crate::blob::name::{Folder, Kind, Name};
use crate::blob::{self, Store};
use crate::clock::{Clock, Entropy};
use crate::format::announcement::{Announcement, EpochRecord, Message};
use crate::kafka::{self, Admin, Cluster, Outgoing, Sender};
use crate::record::TopicId;
use crate::telemetry::ProducerMetrics;
use crate::version::{BlobRef, Chain, Checksum, DeltaRef, Life, Shard, SnapshotRef, Version};

mod stage;

fn name(version: Version, epoch: u64, kind: Kind) -> Name {
    // The embedded broker's topics have this id.
    let folder = Folder { dataset: "d".into(), topic_id: TopicId::default(), shard: Shard(0) };
    // One content for each name.
    let checksum = Checksum(version.0 * 1_000 + epoch * 10 + kind as u64);
    Name { folder, version, epoch, checksum, kind }
}

fn blob(name: &Name) -> BlobRef {
    BlobRef {
        name: name.to_string(),
        bytes: 1,
        checksum: name.checksum,
        plain_bytes: 1,
        plain_checksum: name.checksum,
        location: None,
    }
}

fn delta(version: Version, epoch: u64) -> DeltaRef {
    DeltaRef { version, epoch, blob: blob(&name(version, epoch, Kind::Delta)), upserts: 1, deletes: 0 }
}

fn snapshot(version: Version, epoch: u64) -> SnapshotRef {
    let [whole, index] = [Kind::Snapshot, Kind::Index].map(|kind| blob(&name(version, epoch, kind)));
    SnapshotRef { version, epoch, blob: whole, index, records: 1 }
}

fn named(it: &Announcement) -> BTreeSet<String> {
    let deltas = it.chain.iter().chain([&it.delta]).map(|delta| delta.blob.name.clone());
    let snapshot = it.snapshot.iter().flat_map(|snapshot| [&snapshot.blob, &snapshot.index]);
    deltas.chain(snapshot.map(|blob| blob.name.clone())).collect()
}

#[derive(Clone, Debug)]
enum Step {
    /// A version; it lists the snapshot that is done.
    Announce,
    /// A snapshot of the newest version is stored.
    Snapshot,
    /// A new life; the one before leaves a delta that it did not announce.
    Live,
    /// The same, and the newest snapshot is gone: it goes on from the one before.
    Restore,
    /// The next announcement says what keeps so many snapshots.
    Keep(usize),
    Pin(usize),
    Unpin,
    /// What was announced so many announcements of `oldest_kept` ago is over its grace.
    Clean(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => Just(Step::Announce),
        4 => Just(Step::Snapshot),
        1 => Just(Step::Live),
        1 => Just(Step::Restore),
        3 => (1usize..4).prop_map(Step::Keep),
        1 => (0usize..100).prop_map(Step::Pin),
        1 => Just(Step::Unpin),
        3 => (0usize..3).prop_map(Step::Clean),
    ]
}

/// A shard as its writers leave it.
#[derive(Default)]
struct World {
    topic: Vec<(i64, Message)>,
    next: i64,
    /// All that was ever announced.
    announced: Vec<Announcement>,
    store: BTreeSet<String>,
    epoch: u64,
    chain: Chain,
    done: Option<SnapshotRef>,
    keep_from: Version,
    said: Vec<Version>,
    cleaned: Version,
    pin: Pin,
    restored: bool,
    shelf: Shelf,
}

impl World {
    fn write(&mut self, message: Message) {
        self.shelf.take(self.next, &message);
        self.topic.push((self.next, message));
        // A commit marker lies between.
        self.next += 2;
    }

    fn life(&self) -> Life {
        Life { epoch: self.epoch, writer: Uuid::from_u128(self.epoch.into()) }
    }

    fn live(&mut self) {
        let orphan = name(self.version().next(), self.epoch, Kind::Delta);
        self.store.insert(orphan.to_string());
        self.epoch += 1;
        self.done = None;
        let (life, dataset) = (self.life(), "d".to_owned());
        self.write(Message::Epoch(EpochRecord { dataset, shard: Shard(0), shards: 1, life, at: 0 }));
    }

    fn version(&self) -> Version {
        self.announced.last().map_or(Version(0), |last| last.version)
    }

    fn announce(&mut self) {
        let version = self.version().next();
        let delta = delta(version, self.epoch);
        self.store.insert(delta.blob.name.clone());
        if let Some(done) = self.done.take() {
            self.chain.rebase(done);
        }
        self.chain.deltas.push(delta.clone());
        let oldest_kept = self.said.last().copied().unwrap_or(Version(1)).max(self.keep_from);
        if self.said.last() != Some(&oldest_kept) {
            self.said.push(oldest_kept);
        }
        let it = Announcement {
            dataset: "d".into(),
            shard: Shard(0),
            shards: 1,
            life: self.life(),
            version,
            previous: self.announced.last().map(|last| (last.version, last.life.epoch)),
            announced_at: version.0 as i64,
            caught_up: true,
            records: 1,
            upserts: 1,
            deletes: 0,
            letters: 0,
            coalesced: 0,
            unchanged: 0,
            schema: "\"bytes\"".into(),
            schema_fingerprint: 1,
            positions: Vec::new(),
            delta,
            inline: None,
            snapshot: self.chain.snapshot.clone(),
            chain: self.chain.deltas.clone(),
            oldest_kept,
            newest_timestamp: None,
            traceparent: None,
        };
        assert_eq!(it.check(), Ok(()));
        self.announced.push(it.clone());
        self.write(Message::Announcement(Box::new(it)));
    }

    fn make_snapshot(&mut self) {
        let version = self.version();
        let newest = self.chain.snapshot.as_ref().map_or(Version(0), |snapshot| snapshot.version);
        if version > newest && self.done.is_none() {
            let made = snapshot(version, self.epoch);
            self.store.extend([made.blob.name.clone(), made.index.name.clone()]);
            self.done = Some(made);
        }
    }

    /// Another chain to the newest version, from the snapshot before the newest.
    fn restore(&mut self) {
        let Some(lost) = self.chain.snapshot.clone() else { return };
        let retained = self.announced.iter().filter(|it| it.version >= self.cleaned);
        let before =
            retained.filter_map(|it| it.snapshot.clone()).rfind(|older| older.version < lost.version);
        let Some(before) = before else { return };
        let above = |it: &&Announcement| it.version > before.version;
        let deltas = self.announced.iter().filter(above).map(|it| it.delta.clone()).collect();
        self.store.remove(&lost.blob.name);
        self.live();
        self.chain = Chain { snapshot: Some(before), deltas };
        self.restored = true;
    }

    fn keep(&mut self, snapshots: usize) {
        let floor = self.shelf.floor(snapshots);
        if !self.restored {
            assert_eq!(floor, self.naive_floor(snapshots), "{snapshots} snapshots");
        }
        self.keep_from = self.keep_from.max(floor.unwrap_or_default());
    }

    /// The first of the announcements that together list so many snapshots.
    fn naive_floor(&self, snapshots: usize) -> Option<Version> {
        let kept = self.said.last().copied().unwrap_or_default();
        let lists = self.announced.iter().filter(|it| it.version >= kept && it.snapshot.is_some());
        lists.map(|it| it.version).find(|version| self.listed_from(*version).len() == snapshots)
    }

    fn listed_from(&self, version: Version) -> BTreeSet<(Version, u64)> {
        let from = self.announced.iter().filter(|it| it.version >= version);
        from.filter_map(|it| it.snapshot.as_ref().map(|snapshot| (snapshot.version, snapshot.epoch)))
            .collect()
    }

    fn pin(&mut self, at: usize) {
        let kept = self.said.last().copied().unwrap_or_default();
        let can: Vec<_> = self.announced.iter().filter(|it| it.version >= kept).collect();
        if let Some(it) = can.get(at % can.len().max(1)) {
            self.pin = Some((it.version, it.life.epoch));
        }
    }

    fn retained(&self, below: Version) -> Vec<&Announcement> {
        let pinned = self.pin.map(|(version, _)| version);
        self.announced.iter().filter(|it| it.version >= below || Some(it.version) == pinned).collect()
    }

    fn clean(&mut self, ago: usize) {
        let Some(below) = self.said.len().checked_sub(1 + ago).map(|at| self.said[at]) else { return };
        if below < self.cleaned {
            return;
        }
        self.cleaned = below;
        assert_eq!(self.shelf.is_whole(below, self.pin), Ok(()));
        let retained: BTreeSet<String> = self.retained(below).into_iter().flat_map(named).collect();
        let ever: BTreeSet<String> = self.announced.iter().flat_map(named).collect();
        // Who reads the topic anew, as it is by now, finds the same.
        let mut anew = Shelf::default();
        self.topic.iter().for_each(|(offset, message)| anew.take(*offset, message));
        assert_eq!(anew.is_whole(below, self.pin), Ok(()));
        let mut gone = Vec::new();
        for text in &self.store {
            let parsed: Name = text.parse().expect("a name");
            let fate = self.shelf.fate(&parsed, below, self.pin);
            let goes = matches!(fate, Fate::Passed | Fate::Orphan);
            if goes {
                gone.push(text.clone());
            }
            if retained.contains(text) {
                assert_eq!(fate, Fate::Kept, "{text} is named");
            } else if !self.restored {
                assert_eq!(goes, ever.contains(text) || parsed.epoch < self.epoch, "{text}: {fate:?}");
                assert_eq!(anew.fate(&parsed, below, self.pin), fate, "{text}");
            }
            if fate == Fate::Fresh {
                assert!(!ever.contains(text) && parsed.epoch == self.epoch, "{text}");
            }
        }
        self.store.retain(|text| !gone.contains(text));
        let before = self.shelf.trim_to(below, self.pin).expect("something is announced");
        assert_eq!(anew.trim_to(below, self.pin), Some(before));
        self.topic.retain(|(offset, _)| *offset >= before);
        self.shelf.forget(below, self.pin, &[]);
        for it in self.retained(below) {
            let there = self.topic.iter().any(|(_, message)| match message {
                Message::Announcement(other) => **other == *it,
                Message::Epoch(_) => false,
            });
            assert!(there, "version {} is retained, its announcement is gone", it.version);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn what_something_retained_names_stays_and_all_else_goes(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::default();
        world.live();
        for step in steps {
            match step {
                Step::Announce => world.announce(),
                Step::Snapshot => world.make_snapshot(),
                Step::Live => world.live(),
                Step::Restore => world.restore(),
                Step::Keep(snapshots) => world.keep(snapshots),
                Step::Pin(at) => world.pin(at),
                Step::Unpin => world.pin = None,
                Step::Clean(ago) => world.clean(ago),
            }
        }
    }
}

/// 30 versions; snapshots of 8, 18 and 28, each listed by the next version.
fn thirty() -> World {
    let mut world = World::default();
    world.live();
    for version in 1..=30 {
        world.announce();
        if version % 10 == 8 {
            world.make_snapshot();
        }
    }
    world
}

#[test]
fn the_oldest_kept_is_the_first_version_that_lists_the_oldest_snapshot_kept() {
    let world = thirty();
    assert_eq!(world.shelf.floor(1), Some(Version(29)));
    assert_eq!(world.shelf.floor(2), Some(Version(19)));
    assert_eq!(world.shelf.floor(3), Some(Version(9)));
    assert_eq!(world.shelf.floor(4), None, "there are three");
    assert_eq!(world.shelf.floor(0), world.shelf.floor(1), "one is kept in any case");
}

#[test]
fn a_pin_keeps_its_snapshot_and_the_deltas_up_to_it_and_no_more() {
    let world = thirty();
    let fate = |version, kind, pin| world.shelf.fate(&name(Version(version), 1, kind), Version(29), pin);
    let pin = Some((Version(14), 1));
    for (version, kind, kept) in [
        (8, Kind::Snapshot, true),
        (8, Kind::Index, true),
        (8, Kind::Delta, false),
        (9, Kind::Delta, true),
        (14, Kind::Delta, true),
        (15, Kind::Delta, false),
        (18, Kind::Snapshot, false),
        (28, Kind::Snapshot, true),
        (28, Kind::Delta, false),
        (29, Kind::Delta, true),
    ] {
        let expected = if kept { Fate::Kept } else { Fate::Passed };
        assert_eq!(fate(version, kind, pin), expected, "{kind:?} of {version}");
    }
    assert_eq!(fate(8, Kind::Snapshot, None), Fate::Passed);
    let offset = |version| {
        let of = |(offset, message): &(i64, Message)| match message {
            Message::Announcement(it) if it.version == Version(version) => Some(*offset),
            _ => None,
        };
        world.topic.iter().find_map(of)
    };
    assert_eq!(world.shelf.trim_to(Version(29), pin), offset(14));
    assert_eq!(world.shelf.trim_to(Version(29), None), offset(29));
    let mut left = world.shelf.clone();
    // One blob that was to go is there yet.
    let locked = name(Version(3), 1, Kind::Delta);
    left.forget(Version(29), pin, std::slice::from_ref(&locked));
    assert_eq!(left.trim_to(Version(29), pin), offset(14), "what is forgotten before it is cut is cut yet");
    assert_eq!(left.fate(&locked, Version(29), pin), Fate::Passed, "and tried again");
    assert_eq!(left.fate(&name(Version(4), 1, Kind::Delta), Version(29), pin), Fate::Fresh, "forgotten");
}

#[test]
fn what_is_not_known_whole_is_not_cleaned() {
    let world = thirty();
    let mut cut = Shelf::default();
    world.topic.iter().skip(20).for_each(|(offset, message)| cut.take(*offset, message));
    assert_eq!(cut.is_whole(Version(25), None), Ok(()));
    let lacks = cut.is_whole(Version(9), None).unwrap_err();
    assert!(lacks.contains("of versions 9 to 30"), "{lacks}");
    let lost = cut.is_whole(Version(25), Some((Version(9), 1))).unwrap_err();
    assert!(lost.contains("version 9 of epoch 1") && lost.contains("unpin"), "{lost}");
    assert!(world.shelf.is_whole(Version(25), Some((Version(9), 2))).is_err(), "another life's version 9");
    assert!(world.shelf.is_whole(Version(31), None).is_err());
    assert!(Shelf::default().is_whole(Version(1), None).is_err());
}

#[test]
fn of_the_present_life_nothing_goes_that_was_not_announced() {
    let mut world = thirty();
    let fresh = name(Version(31), 1, Kind::Delta);
    assert_eq!(world.shelf.fate(&fresh, Version(29), None), Fate::Fresh);
    world.live();
    assert_eq!(world.shelf.fate(&fresh, Version(29), None), Fate::Orphan);
    let later = name(Version(31), 3, Kind::Snapshot);
    assert_eq!(
        world.shelf.fate(&later, Version(29), None),
        Fate::Fresh,
        "a later life's, whose record comes"
    );
}

#[test]
fn each_oldest_kept_has_its_own_grace() {
    let now = Clock::system().now();
    let at = |seconds| now + Duration::from_secs(seconds);
    let mut grace = Grace { length: Duration::from_secs(10), ..Grace::default() };
    for (version, seconds) in [(3, 0), (3, 4), (7, 4), (9, 8), (7, 9)] {
        grace.note(Version(version), at(seconds));
    }
    assert_eq!(grace.due(at(9)), None);
    assert_eq!(grace.next(), Some(at(10)), "the first time that it was said counts");
    assert_eq!(grace.due(at(10)), Some(Version(3)));
    assert_eq!(grace.due(at(15)), Some(Version(7)), "what was late is done at once");
    grace.done(Version(7), at(15));
    assert_eq!((grace.due(at(17)), grace.due(at(18))), (None, Some(Version(9))));
    grace.done(Version(9), at(18));
    assert_eq!(grace.next(), Some(at(18) + AGAIN), "and nothing of the one before");
    assert_eq!(grace.due(at(18) + AGAIN), Some(Version(9)));
}

#[test]
fn what_was_read_in_part_is_not_read_again() {
    let world = thirty();
    let mut shelf = Shelf::default();
    let away = || kafka::Error::Unavailable { doing: "reading".to_owned(), detail: "too slow".to_owned() };
    let mut next = 0;
    // Each reading gets ten records further, and the last one to the end.
    for turn in 1..=4 {
        let from = world.topic.iter().filter(|(offset, _)| *offset >= next);
        let some: Vec<_> = from.take(10).map(|(offset, message)| (*offset, message.encode())).collect();
        let (reached, done) = take_on(&mut shelf, next, "d", |each| {
            some.iter().for_each(|(offset, value)| each(*offset, value));
            if turn < 4 { Err(away()) } else { Ok(world.next) }
        });
        assert_eq!(done.is_ok(), turn == 4);
        assert!(reached > next, "{reached}");
        next = reached;
    }
    assert_eq!((next, shelf.newest()), (world.next, Some(Version(30))));
    assert_eq!(shelf.is_whole(Version(1), None), Ok(()));
    let mut other = Shelf::default();
    let (_, first) = &world.topic[0];
    let read = |each: &mut dyn FnMut(i64, &[u8])| {
        each(0, &first.encode());
        each(1, b"not ours");
        Ok(2)
    };
    let (reached, done) = take_on(&mut other, 0, "another", read);
    assert_eq!((reached, done.is_ok(), other.life()), (2, true, None));
}

#[test]
fn the_first_refusal_is_kept_and_no_other_failure() {
    let url = |name: &str| name.to_owned();
    let refusal = |name| blob::Error::Refused { doing: "deleting", url: url(name), problem: "locked".into() };
    let away = blob::Error::Unavailable { doing: "deleting", url: url("c"), problem: "away".into() };
    let mut refused = Refused::default();
    let [a, b, c] = [1, 2, 3].map(|version| name(Version(version), 1, Kind::Delta));
    refused.take(&a, refusal("a").into()).unwrap();
    refused.take(&b, refusal("b").into()).unwrap();
    assert!(matches!(refused.take(&c, away.into()), Err(Error::Store(blob::Error::Unavailable { .. }))));
    assert!(matches!(refused.take(&c, Error::Waiting), Err(Error::Waiting)));
    assert_eq!(refused.blobs(), [a, b]);
    let kept = refused.outcome().unwrap_err();
    assert!(matches!(&kept, Error::Store(blob::Error::Refused { url, .. }) if url == "a"), "{kept:?}");
    assert!(Refused::default().outcome().is_ok());
}
