//! Any flipped byte, any cut: an error or the truth.

use std::fs;

use super::*;

/// A version with a snapshot of a few pages and a delta above it.
fn world() -> World {
    let mut world = World::new();
    world.advance(&numbered(0..2_500, &"v".repeat(20)));
    let view = world.view.clone();
    world.snapshot(&view);
    let mut changes = numbered(2_000..2_020, "changed");
    changes.insert(key(7), None);
    world.advance(&changes);
    world.view = world.open().unwrap();
    assert_eq!(contents(&world.view).unwrap(), world.model);
    world
}

fn files(world: &World) -> Files {
    world.runtime.block_on(world.fetcher().fetch(&world.identity, &world.chain, None)).unwrap()
}

fn about(world: &World) -> About {
    About { version: world.chain.version(), life: LIFE, ..About::nothing(world.schema.clone()) }
}

/// Opens and reads all of it, by keys and by scan; panics on anything untrue; says how many reads failed.
fn errors(world: &World, files: &Files) -> usize {
    let view = match View::open(&world.identity, files, &world.chain, about(world)) {
        Ok(view) => view,
        Err(Error::Corrupt { .. }) => return 1,
        Err(error) => panic!("{error:?}"),
    };
    let mut failed = 0;
    for number in (0..2_510).step_by(3) {
        match view.get(key(number)) {
            Ok(value) => {
                let value = value.map(|value| value.raw().unwrap().to_vec());
                assert_eq!(value.as_ref(), world.model.get(&key(number)));
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                failed += 1;
            }
        }
    }
    let mut expected = world.model.iter();
    for value in view.iter() {
        match value {
            Ok(value) => assert_eq!((value.key(), value.raw().unwrap()), {
                let (key, value) = expected.next().unwrap();
                (key.as_slice(), value.as_slice())
            }),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                failed += 1;
            }
        }
    }
    assert_eq!(failed > 0, view.damaged().is_some());
    failed
}

#[test]
fn a_flipped_byte_is_never_served() {
    let mut world = world();
    world.view = View::empty(world.identity.clone(), world.schema.clone());
    let files = files(&world);
    assert_eq!(errors(&world, &files), 0);
    for (ending, stride) in [(".snapshot.avro", 97), (".index", 101), (".delta.avro", 1)] {
        // The delta that the chain names, not the one below the snapshot.
        let path = world.files(ending).pop().unwrap();
        let whole = fs::read(&path).unwrap();
        let mut seen = 0;
        for at in (0..whole.len()).step_by(stride) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, &bytes).unwrap();
            seen += usize::from(errors(&world, &files) > 0);
        }
        fs::write(&path, &whole).unwrap();
        // Every byte of these files is under some checksum, and all of them were read.
        assert_eq!(seen, whole.len().div_ceil(stride), "{ending}");
    }
    assert_eq!(errors(&world, &files), 0);
}

#[test]
fn a_cut_file_is_seen_when_it_is_opened() {
    let world = world();
    let files = files(&world);
    for ending in [".snapshot.avro", ".index", ".delta.avro"] {
        let path = world.files(ending).pop().unwrap();
        let whole = fs::read(&path).unwrap();
        // Not under the maps of this process: another file of the same name.
        for end in [0, 1, 7, whole.len() / 2, whole.len() - 1] {
            fs::remove_file(&path).unwrap();
            fs::write(&path, &whole[..end]).unwrap();
            let opened = View::open(&world.identity, &files, &world.chain, about(&world));
            assert!(matches!(opened, Err(Error::Corrupt { .. })), "{ending} cut at {end}: {opened:?}");
        }
        fs::remove_file(&path).unwrap();
        fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(
            View::open(&world.identity, &files, &world.chain, about(&world)).is_err(),
            "{ending} too long"
        );
        fs::remove_file(&path).unwrap();
        fs::write(&path, &whole).unwrap();
    }
}

/// What a power cut leaves is mended from the store: files of the wrong length, of zeros, or with a damaged page.
#[test]
fn damaged_files_of_the_cache_are_fetched_again() {
    let mut world = world();
    world.view = View::empty(world.identity.clone(), world.schema.clone());
    for ending in [".snapshot.avro", ".index", ".delta.avro"] {
        let path = world.files(ending).pop().unwrap();
        let whole = fs::read(&path).unwrap();
        for damaged in [Vec::new(), vec![0; whole.len()], whole[..whole.len() / 3].to_vec()] {
            fs::remove_file(&path).unwrap();
            fs::write(&path, damaged).unwrap();
            assert_eq!(contents(&world.open().unwrap()).unwrap(), world.model);
        }
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
    // A page in the middle shows when it is read; then the owner discards and opens anew.
    let path = world.files(".snapshot.avro").pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    let view = world.open().unwrap();
    assert!(contents(&view).is_err());
    for path in view.damaged().unwrap() {
        world.cache.discard(path).unwrap();
    }
    assert_eq!(contents(&world.open().unwrap()).unwrap(), world.model);
}

/// A writer finds it at once, and mends it before it goes on.
#[test]
fn a_writer_checks_all_of_it_when_it_opens() {
    let mut world = world();
    world.view = View::empty(world.identity.clone(), world.schema.clone());
    for ending in [".snapshot.avro", ".index"] {
        let path = world.files(ending).pop().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let late = bytes.len() * 9 / 10;
        bytes[late] ^= 1;
        fs::remove_file(&path).unwrap();
        fs::write(&path, &bytes).unwrap();
        let fetcher = world.fetcher().checking_whole();
        let opened = world.runtime.block_on(fetcher.open(&world.identity, &world.chain, None, about(&world)));
        assert_eq!(contents(&opened.unwrap()).unwrap(), world.model);
        bytes[late] ^= 1;
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

/// Deltas that several threads open: of two that are damaged one is named, and both are fetched again.
#[test]
fn damaged_deltas_that_are_opened_together_are_named_and_fetched_again() {
    let mut world = World::new();
    for version in 0..4u32 {
        world.advance(&numbered(version * 5_000..version * 5_000 + 10_000, &"v".repeat(40)));
    }
    world.view = View::empty(world.identity.clone(), world.schema.clone());
    let files = files(&world);
    let bytes: u64 = files.deltas.iter().map(Held::bytes).sum();
    assert!(bytes > 1 << 20, "{bytes} bytes are opened by one thread");
    let damage = |at: usize| {
        let path = files.deltas[at].path();
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
        path.to_owned()
    };
    let damaged = [damage(1), damage(3)];
    match View::open(&world.identity, &files, &world.chain, about(&world)) {
        Err(Error::Corrupt { path, .. }) => assert!(damaged.contains(&path), "{}", path.display()),
        opened => panic!("{opened:?}"),
    }
    assert_eq!(contents(&world.open().unwrap()).unwrap(), world.model);
}
