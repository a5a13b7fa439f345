//! Fetching from stores that lie, break off, or have nothing.

use bytes::Bytes;

use super::*;
use crate::blob::faulty::{Faults, Faulty};
use crate::clock::Entropy;

/// A chain with a snapshot in a store, and an empty cache.
fn world() -> World {
    let mut world = World::new();
    world.advance(&numbered(0..3_000, "a"));
    let view = world.view.clone();
    world.snapshot(&view);
    world.advance(&numbered(1_000..1_100, "b"));
    world.advance(&numbered(2_000..2_100, "c"));
    forget(&mut world);
    world
}

/// Another cache, with nothing in it.
fn forget(world: &mut World) {
    world.view = View::empty(world.identity.clone(), world.schema.clone());
    world.dir = TempDir::new().unwrap();
    world.cache = Cache::open(world.dir.path(), u64::MAX).unwrap();
}

/// Waits for them to go: a fetch that was given up because another failed cleans up on its own thread.
fn no_temporaries(world: &World) {
    let left = || world.files("").into_iter().filter(|path| path.to_string_lossy().contains(".tmp-"));
    for _ in 0..6_000 {
        if left().next().is_none() {
            return;
        }
        world.runtime.block_on(async { tokio::time::sleep(std::time::Duration::from_millis(10)).await });
    }
    panic!("left behind: {:?}", left().collect::<Vec<_>>());
}

#[test]
fn what_comes_damaged_is_never_kept_and_fetched_once_more() {
    let mut world = world();
    let store = world.store.clone();
    let (mut mended, mut refused, mut broken) = (0, 0, 0);
    for seed in 0..60 {
        forget(&mut world);
        let faults = Faults { get_flips: 0.15, get_truncates: 0.15, get_breaks: 0.1, ..Faults::default() };
        let (faulty, control) = Faulty::wrap(store.clone(), faults, Entropy::seeded(seed));
        world.store = faulty;
        match world.open() {
            Ok(view) => {
                assert_eq!(contents(&view).unwrap(), world.model);
                mended += u32::from(control.injected() > 0);
            }
            Err(error @ Error::CorruptBlob { .. }) => {
                assert_eq!(crate::Error::from(error).kind(), ErrorKind::Corrupt);
                refused += 1;
            }
            Err(error @ Error::Store(_)) => {
                assert!(error.is_transient());
                broken += 1;
            }
            Err(error) => panic!("{error:?}"),
        }
        no_temporaries(&world);
        // What was kept is whole: with the faults off, the rest comes and all of it is true.
        control.set(false);
        assert_eq!(contents(&world.open().unwrap()).unwrap(), world.model);
    }
    assert!(mended > 0 && refused > 0 && broken > 0, "{mended} {refused} {broken}");
}

#[test]
fn a_blob_that_is_damaged_in_the_store_is_named() {
    let world = world();
    let delta = world.chain.deltas[1].clone();
    let mut bytes = world.runtime.block_on(world.store.get_bytes(&delta.blob.name)).unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    world.runtime.block_on(world.store.put(&delta.blob.name, bytes)).unwrap();
    let error = world.open().unwrap_err();
    assert!(matches!(error, Error::CorruptBlob { .. }));
    let text = error.to_string();
    assert!(text.contains(&delta.blob.name) && text.contains("restore it"), "{text}");
    assert!(!error.is_transient());
}

#[test]
fn a_blob_that_is_gone_is_an_error_of_its_own() {
    let world = world();
    let snapshot = world.chain.snapshot.clone().unwrap();
    world.runtime.block_on(world.store.delete(&snapshot.index.name)).unwrap();
    assert!(matches!(world.open(), Err(Error::Missing(_))));
}

#[test]
fn an_inline_delta_saves_the_fetch_and_a_damaged_one_costs_it() {
    let mut world = world();
    world.view = world.open().unwrap();
    let (delta, about) = world.write(&numbered(5..9, "inline"));
    let stored = world.runtime.block_on(world.store.get_bytes(&delta.blob.name)).unwrap();
    let mut damaged = stored.to_vec();
    damaged[40] ^= 1;
    let apply = |world: &World, inline: &[u8]| {
        let inline = Some(Bytes::copy_from_slice(inline));
        world.runtime.block_on(world.fetcher().apply(&world.view, &delta, inline, about.clone()))
    };
    let next = apply(&world, &damaged).unwrap();
    assert_eq!(contents(&next).unwrap(), world.model);
    for path in world.files(".delta.avro") {
        std::fs::remove_file(path).unwrap();
    }
    world.runtime.block_on(world.store.delete(&delta.blob.name)).unwrap();
    assert!(apply(&world, &damaged).is_err(), "neither inline nor in the store");
    let next = apply(&world, &stored).unwrap();
    assert_eq!(contents(&next).unwrap(), world.model);
}

#[test]
fn plain_blobs_are_taken_as_they_are() {
    let world = world();
    let mut delta = world.chain.deltas[0].clone();
    let held = world.runtime.block_on(world.fetcher().delta(&world.identity, &delta, None)).unwrap();
    let plain = std::fs::read(held.path()).unwrap();
    std::fs::remove_file(held.path()).unwrap();
    delta.blob.bytes = delta.blob.plain_bytes;
    delta.blob.checksum = delta.blob.plain_checksum;
    world.runtime.block_on(world.store.put(&delta.blob.name, plain.clone())).unwrap();
    let held = world.runtime.block_on(world.fetcher().delta(&world.identity, &delta, None)).unwrap();
    assert_eq!(std::fs::read(held.path()).unwrap(), plain);
}

/// The stored form is summed, and the plain one follows from it: a wrong sum of that goes unseen on the way, be it unpacked by
/// one thread or by several, and is seen by the index, before anything is read. A delta and an index are summed whole.
#[test]
fn a_fetched_snapshot_is_not_summed_a_second_time_in_its_plain_form() {
    // The larger one does not compress below what one thread unpacks.
    for bytes in [64, 16 << 10] {
        let mut world = World::new();
        let noise = Entropy::seeded(bytes);
        let value = || (0..bytes / 8).flat_map(|_| noise.next_u64().to_le_bytes()).collect();
        world.advance(&(0..300).map(|number| (key(number), Some(value()))).collect());
        let view = world.view.clone();
        let snapshot = world.snapshot(&view);
        world.advance(&numbered(0..1, "b"));
        let delta = world.chain.deltas[0].clone();
        forget(&mut world);
        let wrong = |blob: BlobRef| BlobRef { plain_checksum: Checksum(!blob.plain_checksum.0), ..blob };
        let claimed = SnapshotRef { blob: wrong(snapshot.blob.clone()), ..snapshot.clone() };
        let (fetcher, of) = (world.fetcher(), &world.identity);

        let fetched = world.runtime.block_on(fetcher.snapshot(of, &claimed)).unwrap();
        assert_eq!(fetched.snapshot.bytes(), snapshot.blob.plain_bytes);
        let opened = Base::open(&fetched, of, &claimed, &world.schema);
        assert!(matches!(opened, Err(Error::Corrupt { .. })), "{opened:?}");

        let claimed = SnapshotRef { index: wrong(snapshot.index.clone()), ..snapshot };
        let fetched = world.runtime.block_on(fetcher.snapshot(of, &claimed));
        assert!(matches!(fetched, Err(Error::CorruptBlob { .. })), "{fetched:?}");
        let claimed = DeltaRef { blob: wrong(delta.blob.clone()), ..delta };
        let fetched = world.runtime.block_on(fetcher.delta(of, &claimed, None));
        assert!(matches!(fetched, Err(Error::CorruptBlob { .. })), "{fetched:?}");
    }
}

/// What was announced, and yet is of no use: of a later release, or of another dataset. It is fetched once, however often it is
/// tried, and older blobs are looked for.
#[test]
fn a_blob_that_came_whole_and_cannot_be_read_is_told_from_a_damaged_one() {
    let bytes_of = |world: &World, blob: &BlobRef| {
        let held = world.runtime.block_on(world.store.get_bytes(&blob.name)).unwrap();
        held.to_vec()
    };
    let index_of_a_later_format = |world: &mut World| {
        let snapshot = world.chain.snapshot.clone().unwrap();
        let mut index = bytes_of(world, &snapshot.index);
        // Behind the magic: see `format/index`.
        index[8] += 1;
        let index = world.put(blob::name::Kind::Index, snapshot.version, index);
        world.chain.snapshot = Some(SnapshotRef { index: index.clone(), ..snapshot });
        (index, "upgrade it")
    };
    let index_of_another_snapshot = |world: &mut World| {
        let mut other = World::new();
        other.advance(&numbered(0..10, "other"));
        let view = other.view.clone();
        let theirs = other.snapshot(&view);
        let theirs = bytes_of(&other, &theirs.index);
        let snapshot = world.chain.snapshot.clone().unwrap();
        let index = world.put(blob::name::Kind::Index, snapshot.version, theirs);
        world.chain.snapshot = Some(SnapshotRef { index: index.clone(), ..snapshot });
        (index, "the index of a snapshot of another length")
    };
    let delta_of_another_dataset = |world: &mut World| {
        let mut other = World::new();
        other.identity.dataset = "orders".into();
        other.view = View::empty(other.identity.clone(), other.schema.clone());
        (0..3).for_each(|round| other.advance(&numbered(0..9, &format!("{round}"))));
        let theirs = other.chain.deltas[1].clone();
        let plain = world.runtime.block_on(other.fetcher().delta(&other.identity, &theirs, None)).unwrap();
        let plain = std::fs::read(plain.path()).unwrap();
        let blob = world.put(blob::name::Kind::Delta, Version(2), plain);
        world.chain.deltas[0] = DeltaRef { blob: blob.clone(), ..theirs };
        (blob, "of orders/0")
    };
    /// Puts a blob in place of another; gives it, and why it cannot be read.
    type Way<'a> = &'a dyn Fn(&mut World) -> (BlobRef, &'static str);
    let ways: [Way<'_>; 3] =
        [&index_of_a_later_format, &index_of_another_snapshot, &delta_of_another_dataset];
    for way in ways {
        let mut world = world();
        let (blob, why) = way(&mut world);
        for round in 0..3 {
            let error = world.open().unwrap_err();
            let text = error.to_string();
            let named = matches!(&error, Error::UnreadableBlob { url, .. } if url.ends_with(&blob.name));
            assert!(named && error.is_gone() && !error.is_transient(), "{error:?}");
            assert!(text.contains(why) && text.contains("later release"), "{text}");
            assert_eq!(crate::Error::from(error).kind(), ErrorKind::Corrupt);
            if round == 0 {
                // All of it is in the cache by now.
                world.runtime.block_on(world.store.delete(&blob.name)).unwrap();
            }
        }
    }
}

#[test]
fn a_full_cache_needs_no_store() {
    let mut world = world();
    world.open().unwrap();
    let faults = Faults { get_fails: 1.0, ..Faults::default() };
    let (faulty, control) = Faulty::wrap(world.store.clone(), faults, Entropy::seeded(1));
    world.store = faulty;
    assert_eq!(contents(&world.open().unwrap()).unwrap(), world.model);
    assert_eq!(control.injected(), 0);
}

/// Tasks of both sides hold these across threads.
#[test]
fn fetching_may_move_between_threads() {
    fn movable<T: Send>(_: &T) {}
    fn shared<T: Send + Sync + Clone>(_: &T) {}
    let mut world = world();
    let (delta, about) = world.write(&numbered(0..1, "d"));
    let snapshot = world.chain.snapshot.clone().unwrap();
    let fetcher = world.fetcher();
    movable(&fetcher.open(&world.identity, &world.chain, None, about.clone()));
    movable(&fetcher.apply(&world.view, &delta, None, about));
    movable(&fetcher.rebase(&world.view, &snapshot));
    shared(&fetcher);
    shared(&world.view);
    shared(&world.cache);
    movable(&world.view.iter());
}
