//! What is kept over restarts, and which versions are told apart from their chain.

use super::*;
use crate::blob::faulty::{Faults, Faulty};
use crate::consumer::earlier::Earlier;
use crate::gauge::Budget;

#[tokio::test]
async fn a_checkpoint_comes_back_and_has_one_owner() {
    let mut world = World::new();
    for _ in 0..3 {
        world.write(&[("a", Some("1"))]).await;
    }
    let announced = |version: usize| Box::new(world.versions[version - 1].1.clone());
    let dir = world.dir.path();
    let (file, state) = Checkpoint::open(dir, "products", "audit").unwrap();
    assert_eq!(state, None);
    let mut state = State {
        stamp: [3; 16],
        topic_id: TopicId([7; 16]),
        held: Some(7),
        steps: 1 << 40,
        handled: Some(announced(2)),
        doing: Some(Doing {
            announcement: announced(3),
            reset: true,
            key: b"\0k".to_vec(),
            batch: 7,
            most: 9,
        }),
    };
    file.save(&state).unwrap();
    assert!(matches!(Checkpoint::open(dir, "products", "audit"), Err(checkpoint::Error::Locked(_))));
    drop(file);
    let (file, read) = Checkpoint::open(dir, "products", "audit").unwrap();
    assert_eq!(read.as_ref(), Some(&state));
    state.doing = None;
    state.handled = None;
    file.save(&state).unwrap();
    drop(file);
    assert_eq!(Checkpoint::open(dir, "products", "audit").unwrap().1, Some(state));
    for name in ["", ".", "a/b", "..", "ä"] {
        assert!(matches!(Checkpoint::open(dir, "products", name), Err(checkpoint::Error::Name(_))), "{name}");
    }

    // Cut off or damaged anywhere: put aside, and begun anew.
    let path = dir.join("products/audit.checkpoint");
    let whole = std::fs::read(&path).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    for bytes in (0..whole.len()).flat_map(|at| [whole[..at].to_vec(), flipped(at)]) {
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(Checkpoint::open(dir, "products", "audit").unwrap().1, None);
        assert!(dir.join("products/audit.damaged").exists() && !path.exists());
    }
}

#[tokio::test]
async fn an_earlier_version_of_a_chain_is_announced_as_its_own() {
    let mut world = World::new();
    for _ in 0..4 {
        world.write(&[("a", Some("1"))]).await;
    }
    let newest = &world.versions[3].1;
    for version in 1..=4u64 {
        let earlier = newest.earlier(Version(version)).unwrap();
        earlier.check().unwrap();
        assert_eq!(earlier.chain, world.versions[version as usize - 1].1.chain);
    }
    assert_eq!(newest.earlier(Version(5)), None);
    assert_eq!(newest.earlier(Version(0)), None);
}

#[tokio::test]
async fn a_snapshot_loses_nobody_who_is_a_little_behind() {
    let mut world = World::new();
    for value in ["1", "2", "3", "4"] {
        world.write(&[("a", Some(value))]).await;
    }
    for version in 1..=3 {
        world.show(version);
    }
    // The next announcement's chain begins with a snapshot of version 3, which cannot be had here.
    let (view, announcement) = &world.versions[3];
    let blob = announcement.delta.blob.clone();
    let snapshot = SnapshotRef { version: Version(3), epoch: 1, blob: blob.clone(), index: blob, records: 1 };
    let cut = Announcement {
        snapshot: Some(snapshot),
        chain: vec![announcement.delta.clone()],
        ..announcement.clone()
    };
    cut.check().unwrap();
    world.recent.publish(view.clone(), &cut);
    let second = world.recent.open(Version(2)).await.expect("the chain before reaches back to it");
    let mut cursor = world.recent.cursor().unwrap().from(second);
    for version in [3, 4] {
        let step = cursor.waiting().await.unwrap();
        assert_eq!(step.view.version(), Version(version));
        step.announcement.earlier(Version(version)).unwrap().check().unwrap();
        cursor.pass(step);
    }
    assert!(cursor.waiting().await.is_none());
    assert!(world.recent.open(Version(9)).await.is_none(), "it was never announced");
}

#[tokio::test]
async fn many_who_come_back_to_a_version_share_one_view_of_it() {
    let mut world = World::new();
    for value in ["1", "2", "3"] {
        world.advance(&[("a", Some(value))]).await;
    }
    let views = futures::future::join_all((0..64).map(|_| world.recent.open(Version(2)))).await;
    let first = views[0].as_ref().expect("the chain leads to it");
    for view in &views {
        assert!(std::ptr::eq(view.as_ref().unwrap().about(), first.about()), "a copy of its own");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_version_whose_store_hangs_holds_up_no_other() {
    let mut world = World::new();
    for value in ["1", "2", "3", "4"] {
        world.write(&[("a", Some(value))]).await;
    }
    let hangs = Faults { delay: Duration::from_secs(86_400), ..Faults::default() };
    let (store, faults) = Faulty::wrap(world.store.clone(), hangs, Entropy::seeded(1));
    faults.set(false);
    let cache = Cache::open(world.dir.path().join("reader"), u64::MAX).unwrap();
    let earlier = Earlier::new(Fetcher::new(store, cache), Clock::system());
    let (view, announcement) = &world.versions[3];
    earlier.note(view, announcement);
    let at = async |version| {
        let view = tokio::time::timeout(LONG, earlier.at(Version(version))).await.expect("it is there");
        view.unwrap().unwrap().version()
    };
    assert_eq!(at(2).await, Version(2));
    faults.set(true);
    let mut hanging = Box::pin(earlier.at(Version(3)));
    assert!(futures::poll!(&mut hanging).is_pending());
    assert_eq!(at(2).await, Version(2), "one that is open");
    assert_eq!(at(1).await, Version(1), "one that can be opened out of the cache");
    drop(hanging);
    faults.set(false);
    assert_eq!(at(3).await, Version(3));
}

#[tokio::test]
async fn where_memory_is_short_who_is_far_behind_sees_several_versions_as_one() {
    let seen = async |taken: u64| {
        let mut world = World::new();
        let memory = Budget::new(100_000_000);
        let cache = Cache::open(world.dir.path().join("cache"), u64::MAX).unwrap();
        let fetcher = Fetcher::new(world.store.clone(), cache).charging(Some(&memory));
        let slot = Arc::new(ArcSwapOption::empty());
        world.recent = Recent::new(slot, Some(fetcher), false, world.stop.clone());
        world.advance(&[("a", Some("0"))]).await;
        let mut cursor = world.recent.cursor().unwrap();
        let _held = memory.force_lease(taken);
        for value in 1..=9 {
            world.advance(&[("a", Some(&value.to_string()))]).await;
        }
        let mut seen = Vec::new();
        while let Some(step) = cursor.waiting().await {
            seen.push(step.view.version().0);
            cursor.pass(step);
        }
        seen
    };
    assert_eq!(seen(40_000_000).await, (2..=10).collect::<Vec<_>>());
    assert_eq!(seen(60_000_000).await, [7, 8, 9, 10], "and who is a moment behind misses none");
}
