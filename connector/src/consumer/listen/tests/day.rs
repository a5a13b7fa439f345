//! A day of a reader, by the manual clock: hours of nothing, hours of a version a minute, a store that fails, rollbacks. What it
//! holds in the evening is what it held in the morning.

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::*;
use crate::blob::faulty::{Faults, Faulty};
use crate::consumer::control;
use crate::consumer::earlier::Earlier;
use crate::consumer::follow::{Follower, Readable};
use crate::consumer::guard::{Gate, Judged};
use crate::consumer::tail::{self, Announced, Seen};
use crate::format::announcement::Message;
use crate::view::Fetcher;
use crate::view::tests::heap;

const MINUTE: Duration = Duration::from_secs(60);
const CACHE: u64 = 400 << 10;

/// Counts what it is told, and keeps none of it.
#[derive(Clone, Default)]
struct Counter(Arc<Mutex<(u64, u64)>>);

impl Listener for Counter {
    async fn changed(&self, set: &ChangeSet<'_>) -> Result<(), Failed> {
        let mut told = self.0.lock().unwrap();
        *told = (told.0 + 1, told.1 + u64::from(set.rollback));
        Ok(())
    }
}

impl World {
    /// Makes a snapshot of the newest version, which announcements list from the next one on. Gives the names of its blobs.
    pub(in crate::consumer) async fn snapshot(&mut self, cache: &Cache) -> [String; 2] {
        let (view, announcement) = self.versions.last_mut().unwrap();
        let made = view.merge_snapshot(LIFE, cache).unwrap();
        let (plain, index) =
            (std::fs::read(made.snapshot_path()).unwrap(), std::fs::read(made.index_path()).unwrap());
        let mut stored = Vec::new();
        compress(&plain, LEVEL, &mut stored).unwrap();
        let version = view.version();
        let blob = |kind, plain: &[u8], stored: &[u8]| {
            let checksum = Checksum::of(stored);
            BlobRef {
                name: view.identity().blob_name(kind, version, LIFE.epoch, checksum),
                bytes: stored.len() as u64,
                checksum,
                plain_bytes: plain.len() as u64,
                plain_checksum: Checksum::of(plain),
                location: None,
            }
        };
        let snapshot = SnapshotRef {
            version,
            epoch: LIFE.epoch,
            blob: blob(blob::name::Kind::Snapshot, &plain, &stored),
            index: blob(blob::name::Kind::Index, &index, &index),
            records: made.summary().counts.upserts,
        };
        self.store.put(&snapshot.blob.name, stored).await.unwrap();
        self.store.put(&snapshot.index.name, index).await.unwrap();
        let names = [snapshot.blob.name.clone(), snapshot.index.name.clone()];
        (announcement.snapshot, announcement.chain) = (Some(snapshot), Vec::new());
        *view = view.rebase(made.into_base().unwrap()).unwrap();
        names
    }
}

/// Maps and descriptors below `dir`, by the kernel's own account, and files.
fn in_use(dir: &std::path::Path) -> (usize, usize, usize) {
    let text = dir.to_string_lossy().into_owned();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let maps = maps.lines().filter(|line| line.contains(&text)).count();
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let open = open.filter(|path| path.to_string_lossy().contains(&text)).count();
    let (mut files, mut dirs) = (0, vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => dirs.push(path),
                _ => files += 1,
            }
        }
    }
    (maps, open, files)
}

fn announced(announcement: &Announcement, pinned: bool) -> Seen {
    let encoded = Message::Announcement(Box::new(announcement.clone())).encode();
    let announced =
        Announced { topic_id: TopicId([7; 16]), announcement: Box::new(announcement.clone()), encoded };
    if pinned { Seen::Pinned(Arc::new(announced)) } else { Seen::Announced(Arc::new(announced)) }
}

async fn reached(readable: &mut watch::Receiver<Readable>, version: Version, pinned: bool) {
    let reached = readable.wait_for(|readable| readable.version == version && readable.pinned == pinned);
    let reached = tokio::time::timeout(LONG, reached).await.map(|reached| reached.map(drop));
    if !matches!(reached, Ok(Ok(()))) {
        panic!("version {version} is not reached: {:?}", readable.borrow());
    }
}

/// Memory that may be held in the evening and was not in the morning: threads come and go, each with its own.
const THREADS: i64 = 64 << 10;

/// Snapshots of the morning.
const FIRST: usize = 5;

#[test]
fn a_day_leaves_nothing_behind() {
    heap::alone("consumer::listen::tests::day::the_day");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by another test, as a process of its own"]
async fn the_day() {
    let mut world = World::new();
    let clock = Clock::manual(1_700_000_000_000);
    let failing = Faults { get_fails: 0.4, get_breaks: 0.3, ..Faults::default() };
    let (store, faults) = Faulty::wrap(world.store.clone(), failing, Entropy::seeded(24));
    faults.set(false);
    let listening = Counter::default();
    let options = Options {
        store: store.clone(),
        clock: clock.clone(),
        max_backoff: Duration::from_millis(5),
        ..world.options()
    };
    // Apart from the writer's, so that each delta and snapshot has to be fetched.
    let dir = world.dir.path().join("reader");
    let cache = Cache::open(&dir, CACHE).unwrap();
    let fetcher = Fetcher::new(store, cache.clone());
    world.recent =
        Recent::new(Arc::new(ArcSwapOption::empty()), Some(fetcher.clone()), false, world.stop.clone());
    let (readable_in, mut readable) = watch::channel(Readable::default());
    let (seen, seen_in) = mpsc::channel(16);
    let earlier = Earlier::new(fetcher, clock.clone());
    let gate = Gate::new(options.guards.clone(), watch::channel(Judged::default()).0);
    let outside = (watch::channel(control::Told::default()).1, watch::channel(tail::unknown()).1, gate);
    let recent = world.recent.clone();
    let follower = Follower::new(
        options,
        Shard(0),
        cache.clone(),
        recent.clone(),
        readable_in,
        earlier.clone(),
        outside,
    );
    let mut tasks = JoinSet::new();
    tasks.spawn(follower.run(seen_in, world.stop.clone()));
    let (report, listener) = world.listen(Listening::new("counter", listening.clone()));

    let writer = Cache::open(world.dir.path().join("writer"), u64::MAX).unwrap();
    let (mut stored, mut superseded) = (Vec::<String>::new(), Vec::<String>::new());
    let (mut looks, mut heaps, mut rollbacks) = (Vec::new(), Vec::new(), 0);
    for minute in 0..24 * 60u64 {
        clock.advance(MINUTE);
        // By night a version in half an hour; by day one a minute.
        let busy = (7 * 60..19 * 60).contains(&minute);
        if !busy && minute % 30 != 0 {
            continue;
        }
        let value = format!("{minute} {}", "v".repeat(200));
        let keys: Vec<String> = (0..20).map(|n| format!("P-{:04}", (minute * 7 + n) % 500)).collect();
        let mut keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        keys.sort_unstable();
        keys.dedup();
        let changes: Vec<_> =
            keys.iter().map(|key| (*key, (minute % 7 > 0).then_some(value.as_str()))).collect();
        world.write(&changes).await;
        let keep = world.versions.len().saturating_sub(8);
        world.versions.drain(..keep);
        let newest = world.versions.last().unwrap().1.clone();
        stored.push(newest.delta.blob.name.clone());
        // Five minutes of each hour and a half the store fails.
        faults.set(busy && minute % 90 < 5);
        seen.send(announced(&newest, false)).await.unwrap();
        reached(&mut readable, newest.version, false).await;
        if minute % 400 == 40 && world.versions.len() > 4 {
            // Who is more than 32 versions behind would see there and back as nothing.
            until(&report, |told| told.version == newest.version).await;
            // A snapshot may lie between.
            let pinned = world.versions[world.versions.len() - 4].1.clone();
            seen.send(announced(&pinned, true)).await.unwrap();
            reached(&mut readable, pinned.version, true).await;
            until(&report, |told| told.version == pinned.version).await;
            seen.send(announced(&newest, false)).await.unwrap();
            reached(&mut readable, newest.version, false).await;
            rollbacks += 1;
        }
        if minute % 7 == 0 && newest.chain.len() > 2 {
            // Somebody asks for the one before: it stays open for a minute.
            faults.set(false);
            let before = Version(newest.version.0 - 1);
            assert_eq!(earlier.at(before).await.unwrap().unwrap().version(), before);
        }
        if newest.chain.len() >= 40 {
            for name in superseded.drain(..) {
                world.store.delete(&name).await.unwrap();
            }
            superseded.append(&mut stored);
            stored.extend(world.snapshot(&writer).await);
            // Now the writer and the store hold as much as at any other snapshot. Of the reader the newest version is not
            // counted, which is small today and large tomorrow.
            until(&report, |told| told.version == newest.version).await;
            let held = || {
                let view = View::clone(recent.slot().load().as_deref().unwrap());
                heap::held() as i64 - view.own_memory() as i64
            };
            // A merge that still runs beside holds what it merges: given back, it was no leak.
            let first = heaps.iter().take(FIRST).copied().min().unwrap_or(i64::MAX - THREADS);
            let (mut least, mut looked) = (held(), 0);
            while heaps.len() >= FIRST && least - first > THREADS && looked < 500 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                (least, looked) = (least.min(held()), looked + 1);
            }
            heaps.push(least);
        }
        if minute % 180 == 0 {
            until(&report, |told| told.version == newest.version).await;
            let overlay = recent.slot().load().as_deref().unwrap().overlay();
            looks.push((minute / 60, overlay.memory_bytes, in_use(&dir), cache.used()));
        }
    }
    println!("hour, overlay, (maps, descriptors, files), cache: {looks:?}");
    for (hour, overlay, (maps, open, files), used) in &looks {
        assert!(*overlay < 400_000, "hour {hour}: {looks:?}");
        // The newest view's base, and those of the few earlier versions and of the listener.
        assert!(*maps <= 16 && *open <= 2, "hour {hour}: {looks:?}");
        assert!(*used <= 2 * CACHE && *files <= 2 * (CACHE / 4_096) as usize, "hour {hour}: {looks:?}");
    }
    // Bytes of the process's memory: the least of the last snapshots against the least of the first.
    println!("heap: {heaps:?}");
    let all = heaps.len();
    assert!(all >= 2 * FIRST, "{all} snapshots");
    let least = |of: &[i64]| of.iter().copied().min().unwrap();
    let (morning, evening) = (least(&heaps[..FIRST]), least(&heaps[all - FIRST..]));
    assert!(evening - morning <= THREADS, "{morning} bytes, then {evening}: {heaps:?}");
    assert!(faults.injected() > 20, "the store failed {} times", faults.injected());
    let errors = world.metrics.errors_total.all();
    assert!(errors.len() <= 4, "one count for each stage, however often: {}", errors.len());
    assert!(errors.iter().map(|errors| errors.get()).sum::<u64>() > 0);
    let (sets, back) = *listening.0.lock().unwrap();
    assert!(sets > 500 && back == rollbacks && rollbacks >= 2, "{sets} sets, {back} of {rollbacks} back");
    world.stop.cancel();
    drop(seen);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    ends(&world, listener).await;
    world.versions.clear();
    let slot = recent.slot().clone();
    drop((world, earlier, recent, readable));
    slot.store(None);
    // A merge that was begun beside holds what it merges until it is done.
    let mut looked = 0;
    while in_use(&dir).0 > 0 && looked < 6_000 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        looked += 1;
    }
    assert_eq!(in_use(&dir).0, 0, "the last reader has let go");
}
