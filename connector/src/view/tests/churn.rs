//! Version after version: what is let go of is gone, in memory, in maps, in descriptors and on the disk.

use std::fs;

use super::*;

const KEYS: u32 = 1_500;
const VERSIONS: u32 = 1_200;
const BUDGET: u64 = 1 << 20;

/// What this process has mapped or open below `dir`, from the kernel's own account.
fn in_use(dir: &std::path::Path) -> (usize, usize) {
    let dir = dir.to_string_lossy();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let maps = maps.lines().filter(|line| line.contains(&*dir)).count();
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    (maps, open.filter(|path| path.to_string_lossy().contains(&*dir)).count())
}

#[test]
fn churn_leaves_nothing_behind() {
    let dir = TempDir::new().unwrap();
    let cache = Cache::open(dir.path(), BUDGET).unwrap();
    let mut world = World::around(dir, cache, Store::open("memory://").unwrap());
    world.advance(&numbered(0..KEYS, "the first value of each"));
    let (mut held, mut memory) = (Vec::new(), Vec::new());
    for version in 0..VERSIONS {
        let from = version * 7 % KEYS;
        let mut changes = numbered(from..(from + 20).min(KEYS), &format!("version {version}"));
        if version % 3 == 0 {
            changes.insert(key(version % KEYS), None);
        }
        world.advance(&changes);
        if version % 90 == 45 {
            // As the writer does, and the reader who merges for itself.
            let snapshot = world.snapshot(&world.view.clone());
            world.view = world.runtime.block_on(world.fetcher().rebase(&world.view, &snapshot)).unwrap();
        } else if world.view.overlay().entries >= 900 {
            world.view = world
                .view
                .rebase(world.view.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap())
                .unwrap();
        }
        // A reader that is slow, and lets go in the end.
        if version % 100 == 0 {
            held.push(world.view.clone());
        }
        if version % 400 == 399 {
            held.clear();
            assert_eq!(contents(&world.view).unwrap(), world.model);
            let overlay = world.view.overlay();
            memory.push((overlay.memory_bytes, in_use(world.dir.path()), world.cache.used()));
        }
    }
    for (overlay, (maps, open), disk) in &memory {
        assert!(*overlay < 400_000, "{memory:?}");
        // A base is two files. Small deltas are read, not mapped, and no map keeps a descriptor.
        assert!(*maps <= 4 && *open == 0, "{memory:?}");
        // While slow readers hold more than the budget, nothing is looked for until a tenth more has come.
        assert!(*disk <= 2 * BUDGET, "{memory:?}");
    }
    let files = world.files("");
    let bytes: u64 = files
        .iter()
        .map(|path| fs::metadata(path).map_or(0, |metadata| metadata.len().div_ceil(4096) * 4096))
        .sum();
    assert!(bytes <= 2 * BUDGET, "{} files of {bytes} bytes", files.len());
    world.view = View::empty(world.identity.clone(), world.schema.clone());
    assert_eq!(in_use(world.dir.path()), (0, 0), "the last reader has let go");
}

#[test]
fn an_overlay_is_merged_when_it_is_large_or_takes_much_memory() {
    let mut world = World::new();
    world.advance(&numbered(0..9_999, "a"));
    let base = world.view.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap();
    let merged = world.view.rebase(base).unwrap();
    let small = world.view.overlay().memory_bytes;
    assert!(small > 9_999 * 32 && small < 9_999 * 64, "32 bytes an entry, and the delta: {small}");
    assert!(!world.view.wants_merge(4 * small + 1), "a handful");
    assert!(world.view.wants_merge(4 * small), "a quarter of the memory");
    assert!(!merged.wants_merge(1), "there is nothing to merge");
    world.advance(&numbered(9_999..10_000, "a"));
    assert!(world.view.wants_merge(u64::MAX), "no base, and ten thousand entries");
    // Over a base: a quarter of its bytes.
    world.view = merged;
    world.chain.deltas.truncate(1);
    world.model.remove(&key(9_999));
    world.advance(&numbered(0..1_000, "b"));
    assert!(!world.view.wants_merge(u64::MAX));
}
