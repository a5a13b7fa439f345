use std::fs;

use rustix::fs::{CWD, Mode, mkfifoat};
use tempfile::TempDir;

use super::*;
use crate::record::TopicId;
use crate::version::Shard;
use crate::view::tests::{World, contents, numbered};

#[test]
fn what_is_long_in_coming_is_told_now_and_then() {
    let clock = Clock::manual(0);
    let identity = Identity { dataset: "d".into(), topic_id: TopicId::default(), shard: Shard(0), shards: 1 };
    let checksum = Checksum(0);
    let (bytes, plain_bytes) = (1_000_000, 4_000_000);
    let name = "snapshot".to_owned();
    let blob = BlobRef { name, bytes, checksum, plain_bytes, plain_checksum: checksum, location: None };
    let mut progress = Progress::new(clock.clone(), &identity, &blob);
    let start = progress.told;
    clock.advance(Duration::from_secs(4));
    progress.came(100_000);
    assert_eq!(progress.told, start, "too soon");
    clock.advance(Duration::from_secs(1));
    progress.came(100_000);
    assert_eq!((progress.told, progress.pace(progress.told)), (start + TELL_EVERY, (40_000, 20)));
    clock.advance(Duration::from_secs(3));
    progress.came(100_000);
    assert_eq!(progress.told, start + TELL_EVERY);
}

#[test]
fn a_delta_in_a_folder_is_at_hand_unless_it_is_not_what_was_announced() {
    let (dir, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let cache = Cache::open(dir.path(), u64::MAX).unwrap();
    let store = Store::open(&format!("file://{}", folder.path().display())).unwrap();
    let mut world = World::around(dir, cache, store);
    let (delta, about) = world.write(&numbered(0..50, "a"));
    let path = world.store.file(&delta.blob.name).unwrap();
    let right = fs::read(&path).unwrap();
    let at_hand =
        |world: &World| world.fetcher().at_hand(&world.identity, &delta, None, Reach::Disk).unwrap();

    let mut damaged = right.clone();
    damaged[right.len() / 2] ^= 1;
    let longer = [&*right, b"x"].concat();
    for wrong in [&*damaged, &longer, &right[..right.len() - 1]] {
        fs::write(&path, wrong).unwrap();
        assert!(at_hand(&world).is_none());
        let near = near_folder(&world).at_hand(&world.identity, &delta, None, Reach::Memory).unwrap();
        assert!(near.is_none());
        let fetcher = world.fetcher();
        let applied = fetcher.apply(&world.view, &delta, None, about.clone());
        let error = world.runtime.block_on(applied).unwrap_err();
        assert!(matches!(error, Error::CorruptBlob { .. }), "{error}");
        assert!(world.files(".delta.avro").is_empty(), "what is wrong is not kept");
    }
    fs::remove_file(&path).unwrap();
    assert!(at_hand(&world).is_none());
    fs::write(&path, &right).unwrap();
    let local = world.fetcher().from_cache_only();
    assert!(
        local.at_hand(&world.identity, &delta, None, Reach::Disk).unwrap().is_none(),
        "the store is not to be asked"
    );
    let held = at_hand(&world).unwrap();
    assert_eq!(world.files(".delta.avro"), [held.path()]);
    let applied = world.runtime.block_on(world.fetcher().apply(&world.view, &delta, None, about.clone()));
    assert_eq!(contents(&applied.unwrap()).unwrap(), world.model);
    world.store = Store::open("memory://").unwrap();
    assert!(world.store.file(&delta.blob.name).is_none());
}

/// A fetcher that takes the store's folder to be on a disk of this machine.
fn near_folder(world: &World) -> Fetcher {
    let fetcher = world.fetcher();
    fetcher.own_disk.set(true).unwrap();
    fetcher
}

#[test]
fn what_only_waiting_brings_is_left_to_who_may_wait() {
    let (dir, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let cache = Cache::open(dir.path(), u64::MAX).unwrap();
    let store = Store::open(&format!("file://{}", folder.path().display())).unwrap();
    let mut world = World::around(dir, cache, store);
    let (delta, about) = world.write(&numbered(0..50, "a"));
    let path = world.store.file(&delta.blob.name).unwrap();
    let stored = fs::read(&path).unwrap();
    let near = |world: &World, inline| {
        near_folder(world).at_hand(&world.identity, &delta, inline, Reach::Memory).unwrap()
    };

    // As a folder of a machine that does not answer: who opens it by the usual call waits until somebody writes.
    fs::remove_file(&path).unwrap();
    mkfifoat(CWD, &path, Mode::RWXU).unwrap();
    assert!(near(&world, None).is_none());
    // What came with its announcement needs no folder.
    assert!(near(&world, Some(stored.clone().into())).is_some());
    let fetcher = world.fetcher().at_hand_here();
    let held = world.runtime.block_on(fetcher.apply(&world.view, &delta, None, about)).unwrap();
    assert_eq!(contents(&held).unwrap(), world.model);
    drop(world);

    // Just written it is in memory, and taken from there, once it is known whose disk it is; where the file system says so.
    let dir = TempDir::new().unwrap();
    let cache = Cache::open(dir.path(), u64::MAX).unwrap();
    let store = Store::open(&format!("file://{}", folder.path().display())).unwrap();
    let mut world = World::around(dir, cache, store);
    let (delta, about) = world.write(&numbered(0..50, "b"));
    let fetcher = world.fetcher().at_hand_here();
    let near = || fetcher.at_hand(&world.identity, &delta, None, Reach::Memory).unwrap();
    assert!(near().is_none(), "whose disk it is, is not known yet");
    let held = fetcher.at_hand(&world.identity, &delta, None, Reach::Disk).unwrap().unwrap();
    assert!(fetcher.own_disk.get().is_some());
    world.cache.discard(held.path()).unwrap();
    let path = world.store.file(&delta.blob.name).unwrap();
    let in_memory = near::in_memory(&path, delta.blob.bytes as usize + 1);
    match (fetcher.own_disk.get(), in_memory) {
        (Some(true), Some(stored)) => {
            assert_eq!(stored, fs::read(&path).unwrap());
            assert!(near().is_some());
        }
        // Of a disk of this machine, that it is not in memory is said for the moment.
        (Some(true), None) => {}
        _ => assert!(near().is_none()),
    }
    let held = world.runtime.block_on(fetcher.apply(&world.view, &delta, None, about)).unwrap();
    assert_eq!(contents(&held).unwrap(), world.model);
}
