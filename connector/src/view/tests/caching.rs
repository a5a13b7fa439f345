//! The cache: budget, eviction, restarts, neighbours.

use std::fs;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use super::*;
use crate::blob::name::Kind as Blob;
use crate::failpoint::forks;

fn named(version: u64, bytes: &[u8]) -> FileName {
    FileName {
        kind: Blob::Delta,
        version: Version(version),
        epoch: 1,
        checksum: Checksum::of(bytes),
        bytes: bytes.len() as u64,
    }
}

fn identity() -> Identity {
    World::new().identity
}

/// Sets a file's time, so that eviction's order does not hang on how fast the test runs.
fn age(held: &Held, seconds: u64) {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds);
    fs::File::options().write(true).open(held.path()).unwrap().set_modified(then).unwrap();
}

#[test]
fn the_budget_evicts_the_oldest_that_nothing_holds() {
    let dir = TempDir::new().unwrap();
    let identity = identity();
    let bytes = vec![1; 10_000]; // three blocks of 4 KiB on disk
    let cache = Cache::open(dir.path(), 5 * 12_288).unwrap();
    let mut held: Vec<_> =
        (0..5).map(|version| cache.put(&identity, &named(version, &bytes), &bytes).unwrap()).collect();
    for (at, held) in held.iter().enumerate() {
        age(held, at as u64);
    }
    assert_eq!(cache.used(), 5 * 12_288);
    let kept = held.remove(0);
    held.clear();
    let sixth = cache.put(&identity, &named(5, &bytes), &bytes).unwrap();
    // Down to nine tenths: two had to go, the oldest is in use, so the next two went.
    let here = |version| cache.find(&identity, &named(version, &bytes)).unwrap().is_some();
    assert_eq!((0..6).map(here).collect::<Vec<_>>(), [true, false, false, true, true, true]);
    assert!(cache.used() <= 5 * 12_288 * 9 / 10);
    assert_eq!(fs::read(kept.path()).unwrap(), bytes);
    drop(sixth);
}

#[test]
fn what_is_in_use_stays_although_the_budget_is_passed() {
    let dir = TempDir::new().unwrap();
    let identity = identity();
    let cache = Cache::open(dir.path(), 4096).unwrap();
    let held: Vec<_> =
        (0..4).map(|version| cache.put(&identity, &named(version, b"x"), b"x").unwrap()).collect();
    assert!(held.iter().all(|held| held.path().exists()));
    assert_eq!(cache.used(), 4 * 4096);
    drop(held);
    cache.put(&identity, &named(9, b"x"), b"x").unwrap();
    assert!(cache.used() <= 2 * 4096, "{}", cache.used());
}

/// A view's files outlive the budget for as long as the view, and no longer.
#[test]
fn a_view_keeps_its_files() {
    let dir = TempDir::new().unwrap();
    let cache = Cache::open(dir.path(), 1).unwrap();
    let mut world = World::around(dir, cache, Store::open("memory://").unwrap());
    world.advance(&numbered(0..20_000, "large enough to be mapped"));
    world.advance(&numbered(5..9, "b"));
    let snapshot = world.snapshot(&world.view.clone());
    world.view = world.runtime.block_on(world.fetcher().rebase(&world.view, &snapshot)).unwrap();
    world.advance(&numbered(100..20_000, "c"));
    assert_eq!(contents(&world.view).unwrap(), world.model);
    assert_eq!(world.files(".snapshot.avro").len(), 1);
    assert_eq!(world.files(".index").len(), 1);
    // The newest delta is needed after a restart; those below the snapshot are not.
    assert_eq!(world.files(".delta.avro").len(), 1);
    // A local base makes them superfluous here, but not after a restart.
    let base = world.view.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap();
    world.view = world.view.rebase(base).unwrap();
    world.cache.put(&world.identity, &named(8, b"x"), b"x").unwrap();
    assert_eq!((world.files(".snapshot.avro").len(), world.files(".index").len()), (1, 1));
    assert_eq!(contents(&world.view).unwrap(), world.model);
    world.view = View::empty(world.identity.clone(), world.schema.clone());
    world.cache.put(&world.identity, &named(9, b"x"), b"x").unwrap();
    assert!(world.files(".snapshot.avro").is_empty());
}

#[test]
fn files_are_found_again_after_a_restart_and_by_another_process() {
    let mut world = World::new();
    world.advance(&numbered(0..100, "a"));
    world.advance(&numbered(50..150, "b"));
    let used = world.cache.used();
    // The store is gone: all of it comes from the cache.
    world.store = Store::open("memory://").unwrap();
    world.cache = Cache::open(world.dir.path(), u64::MAX).unwrap();
    assert_eq!(world.cache.used(), used);
    assert_eq!(contents(&world.open().unwrap()).unwrap(), world.model);
}

#[test]
fn a_neighbours_eviction_costs_a_fetch_and_nothing_else() {
    let mut world = World::new();
    world.advance(&numbered(0..20_000, "a value that makes the delta large enough to be mapped"));
    let neighbour = Cache::open(world.dir.path(), 1).unwrap();
    assert!(world.files(".avro").is_empty(), "the neighbour holds nothing of it");
    assert_eq!(contents(&world.view).unwrap(), world.model);
    assert_eq!(contents(&world.open().unwrap()).unwrap(), world.model);
    drop(neighbour);
}

#[test]
fn only_abandoned_temporaries_are_removed() {
    let world = World::new();
    let mut busy = world.cache.temporary(&world.identity).unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    // As a snapshot that waits for its store.
    busy.file().set_modified(long_ago).unwrap();
    let abandoned = busy.path().with_file_name(".tmp-1-1000000");
    fs::write(&abandoned, "x").unwrap();
    fs::File::options().write(true).open(&abandoned).unwrap().set_modified(long_ago).unwrap();
    let foreign = world.dir.path().join("notes.txt");
    fs::write(&foreign, "mine").unwrap();
    Cache::open(world.dir.path(), 0).unwrap();
    assert!(busy.path().exists() && !abandoned.exists() && foreign.exists());
    busy.write_all(b"x").unwrap();
    let kept = world.cache.keep(&world.identity, &named(1, b"x"), busy).unwrap();
    assert_eq!(fs::read(kept.path()).unwrap(), b"x");
    let dropped = world.cache.temporary(&world.identity).unwrap();
    let path = dropped.path().to_owned();
    drop(dropped);
    assert!(!path.exists());
}

#[test]
fn versions_below_the_oldest_are_trimmed_unless_held() {
    let world = World::new();
    let put = |version| world.cache.put(&world.identity, &named(version, b"x"), b"x").unwrap();
    let held = put(1);
    for version in 2..6 {
        put(version);
    }
    world.cache.trim(&world.identity, Version(4)).unwrap();
    let here = |version| world.cache.find(&world.identity, &named(version, b"x")).unwrap().is_some();
    assert_eq!((1..6).map(here).collect::<Vec<_>>(), [true, false, false, true, true]);
    drop(held);
}

#[test]
fn the_last_announcement_is_remembered_whole_or_not_at_all() {
    let world = World::new();
    let load = || world.cache.load_current("products", Shard(0)).unwrap();
    assert_eq!(load(), None);
    world.cache.save_current(&world.identity, b"first").unwrap();
    world.cache.save_current(&world.identity, b"second").unwrap();
    assert_eq!(load(), Some((world.identity.topic_id, b"second".to_vec())));
    assert_eq!(world.cache.load_current("products", Shard(1)).unwrap(), None);
    let path = world.dir.path().join("products/current-0");
    let whole = fs::read(&path).unwrap();
    for end in 0..whole.len() {
        fs::write(&path, &whole[..end]).unwrap();
        assert_eq!(load(), None, "cut at {end}");
    }
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        fs::write(&path, bytes).unwrap();
        assert_eq!(load(), None, "flipped at {at}");
    }
}

/// Made once, by other code, of the layout as docs/formats.md has it.
fn golden(version: u32) -> std::path::PathBuf {
    let version = format!("v{version}");
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "golden", "note", &version, "current"].iter().collect()
}

#[test]
fn notes_of_either_format_read_as_they_were_written() {
    for version in [1, 2] {
        let world = World::new();
        fs::create_dir_all(world.dir.path().join("products")).unwrap();
        fs::copy(golden(version), world.dir.path().join("products/current-0")).unwrap();
        let note = world.cache.load_current("products", Shard(0)).unwrap();
        assert_eq!(note, Some((TopicId([0xa7; 16]), b"an announcement".to_vec())), "format {version}");
    }
    let world = World::new();
    let identity = Identity { topic_id: TopicId([0xa7; 16]), ..world.identity.clone() };
    world.cache.save_current(&identity, b"an announcement").unwrap();
    let written = fs::read(world.dir.path().join("products/current-0")).unwrap();
    assert_eq!(written, fs::read(golden(2)).unwrap(), "this build writes what that one wrote");
}

#[test]
fn a_pin_is_remembered_until_there_is_none() {
    let world = World::new();
    let load = || world.cache.load_pin("products").unwrap();
    assert_eq!(load(), None);
    world.cache.save_pin("products", None).unwrap();
    world.cache.save_pin("products", Some(b"first")).unwrap();
    world.cache.save_pin("products", Some(b"second")).unwrap();
    assert_eq!(load().as_deref(), Some(&b"second"[..]));
    assert_eq!(world.cache.load_pin("others").unwrap(), None);
    let topic = || world.cache.load_pin_topic("products").unwrap();
    assert_eq!(topic(), None);
    world.cache.save_pin_topic("products", Some(TopicId([3; 16]))).unwrap();
    assert_eq!((topic(), load().as_deref()), (Some(TopicId([3; 16])), Some(&b"second"[..])));
    world.cache.save_pin_topic("products", None).unwrap();
    world.cache.save_pin("products", None).unwrap();
    assert_eq!((topic(), load()), (None, None));
}

#[test]
fn a_name_that_climbs_is_refused() {
    let world = World::new();
    for name in ["", "..", ".hidden", "a/b", "a\0"] {
        let mut identity = world.identity.clone();
        identity.dataset = name.into();
        assert!(matches!(world.cache.save_current(&identity, b""), Err(Error::Name(_))), "{name:?}");
        assert!(matches!(world.cache.find(&identity, &named(1, b"")), Err(Error::Name(_))), "{name:?}");
    }
}

#[test]
fn a_directory_that_cannot_be_made_says_which() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Cache::open(file.join("cache"), 0).unwrap_err();
    assert!(error.to_string().contains("file/cache"), "{error}");
}

/// A reader's life in a cache that somebody else uses too: versions, snapshots, views that are held and let go of, with a
/// budget that keeps both evicting. The same versions in each process, so that both want the same files.
fn share(cache: &std::path::Path, store: &std::path::Path) {
    let cache = Cache::open(cache, 600_000).unwrap();
    let store = Store::open(&format!("file://{}", store.display())).unwrap();
    let mut world = World::around(TempDir::new().unwrap(), cache, store);
    world.advance(&numbered(0..3_000, &"first ".repeat(15)));
    let mut held = Vec::new();
    for round in 0..60 {
        world
            .advance(&numbered(round * 50 % 3_000..round * 50 % 3_000 + 40, &format!("{round} ").repeat(30)));
        if round % 7 == 3 {
            let snapshot = world.snapshot(&world.view.clone());
            world.view = world.runtime.block_on(world.fetcher().rebase(&world.view, &snapshot)).unwrap();
        }
        if round % 5 == 0 {
            held.push((world.open().unwrap(), world.model.clone()));
        }
        if held.len() > 3 {
            // Opened some versions ago, and its files may be unlinked by now.
            let (view, model) = held.remove(0);
            assert_eq!(contents(&view).unwrap(), model, "round {round}");
        }
    }
    assert_eq!(contents(&world.view).unwrap(), world.model);
}

/// The other process of the test below: this binary again.
#[test]
#[ignore = "run by another test, as a process of its own"]
fn neighbour() {
    let Ok(dirs) = std::env::var("STILLWELL_TEST_NEIGHBOUR") else { return };
    let (cache, store) = dirs.split_once(':').unwrap();
    share(cache.as_ref(), store.as_ref());
}

#[test]
fn two_processes_share_a_directory() {
    let (cache, store) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let dirs = format!("{}:{}", cache.path().display(), store.path().display());
    let mut other = std::process::Command::new(std::env::current_exe().unwrap());
    other
        .args(["--exact", "view::tests::caching::neighbour", "--ignored", "--nocapture"])
        .env("STILLWELL_TEST_NEIGHBOUR", dirs)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let other = forks::spawn(&mut other).unwrap();
    let here = std::panic::catch_unwind(|| share(cache.path(), store.path()));
    let other = other.wait_with_output().unwrap();
    let said =
        [other.stdout, other.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(other.status.success() && said.contains("1 passed"), "{said}");
    here.unwrap();
    // Whoever comes next finds it within the budget, and nothing half written.
    let next = Cache::open(cache.path(), 600_000).unwrap();
    assert!(next.used() <= 600_000, "{}", next.used());
}

#[test]
fn a_full_disk_is_relieved_of_what_nothing_holds() {
    let world = World::new();
    let put = |version| world.cache.put(&world.identity, &named(version, b"x"), b"x").unwrap();
    let held = put(1);
    for version in 2..6 {
        put(version);
    }
    assert_eq!(world.cache.used(), 5 * 4096);
    assert_eq!(world.cache.relieve().unwrap(), 4 * 4096);
    let here = |version| world.cache.find(&world.identity, &named(version, b"x")).unwrap().is_some();
    assert_eq!((1..6).map(here).collect::<Vec<_>>(), [true, false, false, false, false]);
    assert_eq!(world.cache.used(), 4096);
    drop(held);
}

/// A reader that lives for ever makes each version of the one before: what is below the newest snapshot that is announced,
/// which it need not have, it lets go of.
#[test]
fn what_no_start_begins_with_is_let_go_of() {
    let mut world = World::new();
    for version in 0..20 {
        world.advance(&numbered(version..version + 5, "v"));
    }
    let deltas = |world: &World| world.files(".delta.avro").len();
    world.cache.relieve().unwrap();
    assert_eq!(deltas(&world), 20, "a start needs all of them, as long as there is no snapshot");
    world.view = world.view.clone().holding_from(Version(15));
    world.cache.relieve().unwrap();
    assert_eq!(deltas(&world), 6, "15 to 20");
    // As after a merge of the reader's own, which changes nothing about what a start needs.
    let base = world.view.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap();
    world.view = world.view.rebase(base).unwrap().holding_from(Version(18));
    world.cache.relieve().unwrap();
    assert_eq!(deltas(&world), 3);
    world.advance(&numbered(7..9, "w"));
    assert_eq!(contents(&world.view).unwrap(), world.model);
    // A base that is mapped holds its files itself.
    let snapshot = world.snapshot(&world.view.clone());
    world.view = world.runtime.block_on(world.fetcher().rebase(&world.view, &snapshot)).unwrap();
    world.view = world.view.clone().holding_from(snapshot.version.next());
    world.cache.relieve().unwrap();
    assert_eq!((deltas(&world), world.files(".snapshot.avro").len(), world.files(".index").len()), (0, 1, 1));
}
