//! Version after version: what is let go of is gone, in memory, in maps, in descriptors and on the disk.

use std::fs;

use super::super::overlay::AT_ONCE;
use super::*;
use crate::threads;

const KEYS: u32 = 2_250;
const BUDGET: u64 = 5 << 18;
/// Versions from one look to the next.
const LOOK_EVERY: u32 = 400;
/// Looks after which the same keys change again, as many versions after a snapshot, a merge and a wave.
const ROUND: usize = 45;
/// Versions, one behind the other, that change every key: the last of them finds more entries than are merged at once.
const WAVE: u32 = 4;
const _: () = assert!((WAVE * KEYS) as usize > AT_ONCE);
/// Versions from one wave to the next.
const WAVE_EVERY: u32 = 3 * LOOK_EVERY;
/// How long what it brought is left to lie: until it was looked at.
const WAVE_LIES: u32 = 8;
const WAVE_AT: u32 = 2 * LOOK_EVERY - WAVE_LIES;
/// Versions that come while runs are merged.
const MEANWHILE: u32 = 2;
/// What may be held at one look and not a round before: threads for blocking work come and go, each with its own.
const THREADS: i64 = 64 << 10;

/// What this process has mapped or open below `dir`, from the kernel's own account.
fn in_use(dir: &std::path::Path) -> (usize, usize) {
    let dir = dir.to_string_lossy();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let maps = maps.lines().filter(|line| line.contains(&*dir)).count();
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    (maps, open.filter(|path| path.to_string_lossy().contains(&*dir)).count())
}

/// Kilobytes of memory of this process that no file is behind, open descriptors, and maps.
fn of_the_process() -> (u64, usize, usize) {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let anonymous = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    let anonymous = anonymous.trim().trim_end_matches(" kB").parse().unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    (anonymous, fs::read_dir("/proc/self/fd").unwrap().count(), maps)
}

/// What is in use at one moment.
#[derive(Debug)]
#[expect(dead_code, reason = "the version is printed")]
struct Look {
    version: u32,
    overlay: u64,
    runs: usize,
    held: (usize, usize),
    disk: u64,
    /// Bytes of the whole process's memory that are in use.
    heap: usize,
    process: (u64, usize, usize),
}

/// A reader through so many versions, as the writer makes them: small deltas, waves of large ones, snapshots, merges of its own,
/// compactions, slow readers that hold a version for a while. What the writer cleans away is gone from the store. With how many
/// compactions came to something: of each wave one, but where a snapshot has taken the runs meanwhile, which one wave of three meets.
fn churn(versions: u32) -> (World, Vec<Look>, u32) {
    let dir = TempDir::new().unwrap();
    let cache = Cache::open(dir.path(), BUDGET).unwrap();
    let mut world = World::around(dir, cache, Store::open("memory://").unwrap());
    world.advance(&numbered(0..KEYS, "the first value of each"));
    let (mut held, mut stored) = (Vec::new(), Vec::new());
    let mut compacting: Option<(u32, Compaction)> = None;
    let mut compactions = 0;
    let mut looks = Vec::with_capacity((versions / LOOK_EVERY) as usize);
    for version in 0..versions {
        let from = version * 7 % KEYS;
        let of_wave = (version % WAVE_EVERY).checked_sub(WAVE_AT).filter(|nth| *nth < WAVE_LIES);
        let changed =
            if of_wave.is_some_and(|nth| nth < WAVE) { 0..KEYS } else { from..(from + 20).min(KEYS) };
        let mut changes = numbered(changed, &format!("version {version}"));
        if version % 3 == 0 {
            changes.insert(key(version % KEYS), None);
        }
        // As they come: most with their announcement, larger ones to be fetched.
        let (delta, about) = world.write(&changes);
        let inline = (version % 4 != 0)
            .then(|| world.runtime.block_on(world.store.get_bytes(&delta.blob.name)).unwrap());
        let fetcher = world.fetcher().leaving_merges().at_hand_here();
        world.view = world.runtime.block_on(fetcher.apply(&world.view, &delta, inline, about)).unwrap();
        stored.push(delta.blob.name);
        // Beside the flow, as a follower has it, but for when it is done: always after as many versions, so that rounds are alike.
        if let Some((_, runs)) = compacting.take_if(|(begun, _)| version == *begun + MEANWHILE)
            && let Some(compacted) = world.view.compacted(&runs).unwrap()
        {
            world.view = compacted;
            compactions += 1;
        }
        if compacting.is_none() && world.view.wants_compaction() {
            let runs = threads::apart("compact", || world.view.compact()).unwrap();
            compacting = runs.map(|runs| (version, runs));
        }
        if version % 90 == 45 {
            // As the writer does, and the reader who merges for itself.
            let snapshot = world.snapshot(&world.view.clone());
            world.view = world.runtime.block_on(world.fetcher().rebase(&world.view, &snapshot)).unwrap();
            for name in stored.drain(..) {
                world.runtime.block_on(world.store.delete(&name)).unwrap();
            }
            stored.extend([snapshot.blob.name, snapshot.index.name]);
        } else if version % WAVE_EVERY == WAVE_AT - 1
            || (of_wave.is_none() && world.view.overlay().entries >= 900)
        {
            // Also right before a wave: runs behind it would become one with its first deltas at once.
            world.view = world
                .view
                .rebase(world.view.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap())
                .unwrap();
        }
        // A reader that is slow, and lets go in the end.
        if version % 100 == 0 {
            held.push(world.view.clone());
        }
        if version % LOOK_EVERY == LOOK_EVERY - 1 {
            held.clear();
            assert_eq!(contents(&world.view).unwrap(), world.model);
            looks.push(Look {
                version,
                overlay: world.view.overlay().memory_bytes,
                runs: world.view.overlay().runs,
                held: in_use(world.dir.path()),
                disk: world.cache.used(),
                heap: heap::held(),
                process: of_the_process(),
            });
        }
    }
    drop(held);
    (world, looks, compactions)
}

fn is_flat(world: &mut World, looks: &[Look]) {
    for look in looks {
        let (maps, open) = look.held;
        // Of a wave that is compacted the last delta is left, as one run, and the small ones since; all four would take 600,000 bytes.
        assert!(look.overlay < 400_000 && look.runs <= 3, "{look:?}");
        // A base is two files. Small deltas are read, not mapped, and no map keeps a descriptor.
        assert!(maps <= 4 && open == 0, "{look:?}");
        // While slow readers hold more than the budget, nothing is looked for until a tenth more has come.
        assert!(look.disk <= 2 * BUDGET + BUDGET / 4, "{look:?}");
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
fn churn_leaves_nothing_behind() {
    let (mut world, looks, compactions) = churn(3 * LOOK_EVERY);
    assert_eq!((looks.len(), compactions), (3, 1));
    is_flat(&mut world, &looks);
}

/// A million versions, or as many as `STILLWELL_VERSIONS` says: of the whole process too, since nothing else runs beside it.
/// `make test TESTS="--lib view::tests::churn -- --ignored --nocapture"`
#[test]
#[ignore = "takes ten minutes; a sample of it is run always"]
fn a_million_versions_leave_nothing_behind() {
    let versions = std::env::var("STILLWELL_VERSIONS").map_or(1_000_000, |number| number.parse().unwrap());
    let (mut world, looks, compactions) = churn(versions);
    let disk = looks.iter().map(|look| look.disk).max();
    println!("{compactions} compactions, at most {disk:?} bytes of disk");
    assert!(compactions >= versions / WAVE_EVERY / 2, "{compactions}");
    let some = looks.len() / 20;
    for look in looks.iter().step_by(some.max(1)) {
        println!("{look:?}");
    }
    is_flat(&mut world, &looks);
    // Each look, against the one in the second round after which as much had been put and merged.
    let growth = |(n, look): (usize, &Look)| look.heap as i64 - looks[ROUND + n % ROUND].heap as i64;
    let most = looks.iter().enumerate().skip(2 * ROUND).max_by_key(|at| growth(*at));
    let (n, most) = most.expect("three rounds, or there is nothing to compare");
    println!("at most {} bytes more in use than rounds before: {most:?}", growth((n, most)));
    assert!(growth((n, most)) <= THREADS, "{:?}, then {most:?}", looks[ROUND + n % ROUND]);
    // The first tenth is for what grows once: the allocator's caches, the model.
    let early: Vec<_> = looks.iter().take(looks.len().div_ceil(10)).map(|look| look.process).collect();
    let most = |of: fn(&(u64, usize, usize)) -> u64| early.iter().map(of).max().unwrap();
    let (memory, open, maps) = (most(|p| p.0), most(|p| p.1 as u64), most(|p| p.2 as u64));
    for look in &looks {
        let (now_memory, now_open, now_maps) = look.process;
        assert!(now_memory <= memory + memory / 10 + 4_096, "{memory} kB, then {look:?}");
        // Threads for blocking work come and go, each with a stack and an arena of the allocator's.
        assert!(now_open as u64 <= open && now_maps as u64 <= maps + 100, "{open} and {maps}, then {look:?}");
    }
}

#[test]
fn an_overlay_is_merged_when_it_is_large_or_takes_much_memory() {
    let mut world = World::new();
    world.advance(&numbered(0..9_999, "a"));
    let base = world.view.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap();
    let merged = world.view.rebase(base).unwrap();
    let small = world.view.overlay().memory_bytes;
    assert!(small > 9_999 * 25 && small < 9_999 * 57, "25 bytes an entry, and the delta: {small}");
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
