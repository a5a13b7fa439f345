//! `bench refresh`: what a new version costs, and what its arrival costs readers.
//!
//! Each version's delta goes the way that it goes in use: it lies compressed in a folder, and is fetched, unpacked into the cache
//! and applied. Only one of at most 64 KiB is given along, as it would stand in its announcement.
//!
//! It is applied as a follower applies it, on the thread that asks for it: larger merges of runs are left to compactions, one at a time, on a thread that gives way
//! to others, and what one has made is put below whatever version is held by then. What that takes of a version's way to readers is
//! in its time. Nothing is left out by it: a compaction that falls behind shows in the runs that a lookup asks (`runs_p50`), in the
//! reader's gets, and at two dozen runs in the time of the version that merges them all. Versions come close behind one another, and
//! the reader never rests, so that on two processors compactions have less time than in use.
//!
//! Merges of all changes into a new base are measured apart (`merging`): how often they come depends on how much changes of how much.
//!
//! The reader's gets are of a round of their own, in which versions come one after another with pauses, twenty a second. They are held
//! against two readers at rest. The one reads the same versions, one after the other, when nothing else runs any more; the other the base
//! alone, once all of it was read before: pages are checked at their first read, which no version causes. So the first ratio has
//! in it what the arrival of deltas costs a reader, the second all that they do. A third is of the rounds without a pause, beside all else
//! that these do, where a processor of two is never idle.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::task::{JoinError, JoinSet};

use super::made::{Made, failed, key};
use super::read::anonymous_bytes;
use super::spread::Spread;
use super::{Measured, Scratch, Settings, measured, ms, quantile, timed};
use crate::Result;
use crate::clock::{Clock, Entropy};
use crate::consumer::merging::Done;
use crate::threads;
use crate::version::DeltaRef;
use crate::view::{self, Cache, Compaction, Fetcher, View};

const CHANGES: u64 = 10_000;
/// Versions, one onto the other, from the base on.
const VERSIONS: u64 = 40;
/// Of them, those that are compared with the same ones onto a tenth of the records. Together they change less than that has,
/// so that no key changes twice and both gather the same overlay.
const COMPARED: u64 = 8;
/// How often they come, each time from the base on and into a cache of its own; the first time warms all up, and is not counted.
const ROUNDS: u64 = 6;
/// From one version to the next while a reader's gets are timed.
const APART: Duration = Duration::from_millis(50);
/// Merges of all their changes into a new base, one after the other.
const MERGES: usize = 3;
/// Gets of a reader at rest.
const AT_REST: u64 = 1_000_000;
/// How long memory that was freed may take to go back to the system: a thread that made it may be idle for a second before it
/// ends, the allocator keeps it for another, and is looked after twice a second.
const PATIENCE: Duration = Duration::from_secs(4);

pub(super) fn run(settings: &Settings, runtime: &Runtime) -> Result<Vec<Measured>> {
    let clock = Clock::system();
    let tenth = Settings { records: (settings.records / 10).max(1), ..settings.clone() };
    let (of_tenth, all) = (Versions::of(runtime, &tenth)?, Versions::of(runtime, settings)?);
    let stop = AtomicBool::new(false);
    let quiet = |times: Spread, most| read(&clock, &all.slot, settings.records, times, most, &stop);
    quiet(Spread::new(), settings.records.max(AT_REST))?;
    // Before memory is looked at, too: what this thread has let go of goes back only while it asks for more.
    let at_rest = quiet(Spread::new(), AT_REST)?;
    let before = settled(&clock);
    let of_tenth = of_tenth.with_deltas(runtime, &tenth, COMPARED)?;
    let all = all.with_deltas(runtime, settings, VERSIONS)?;
    let (mut times, mut compared, mut slowest) = (Times::default(), Vec::new(), Vec::new());
    let during = std::thread::scope(|scope| {
        let reader =
            scope.spawn(|| read(&clock, &all.slot, settings.records, Spread::new(), u64::MAX, &stop));
        let refreshed = (0..ROUNDS).try_for_each(|round| {
            // In turn, so that both meet the same machine.
            let took = all.round(&clock, runtime, round, &of_tenth)?;
            if round > 0 {
                slowest.push(took.applied.iter().copied().fold(0.0, f64::max));
                compared.extend(took.applied.iter().take(COMPARED as usize));
                times.extend(took);
            }
            Ok(())
        });
        stop.store(true, Ordering::Release);
        let read = reader.join().expect("no panic");
        refreshed.and(read)
    })?;
    drop(of_tenth);
    let close_at_rest = all.each_at_rest(&clock, settings.records, std::mem::take(&mut times.versions))?;
    stop.store(false, Ordering::Release);
    let (apart, versions) = std::thread::scope(|scope| {
        let reader =
            scope.spawn(|| read(&clock, &all.slot, settings.records, Spread::new(), u64::MAX, &stop));
        let versions = all.one_by_one(&clock, runtime);
        stop.store(true, Ordering::Release);
        let read = reader.join().expect("no panic");
        versions.and_then(|versions| Ok((read?, versions)))
    })?;
    let same_at_rest = all.each_at_rest(&clock, settings.records, versions)?;
    let copied = ("writing the delta's bytes to a file, ms", quantile(&mut times.copied, 0.5));
    let own = all.slot.load().overlay().memory_bytes as f64;
    let records = settings.records as f64;
    let account = ("the overlay's own account, bytes", own / records);
    let merged = all.merged(&clock, settings.records)?;
    let each = |bytes: u64| (bytes.saturating_sub(before) as f64 / records, "bytes");
    let gets = |metric, during: &Spread, what, at_rest: &Spread| {
        let baseline = (what, at_rest.quantile_us(0.999));
        measured("refresh", metric, (during.quantile_us(0.999), "us"), baseline)
    };
    let same_versions = "the same versions at rest, us";
    Ok(vec![
        measured("refresh", "anon_bytes_per_record", each(merged.bytes_before), account),
        measured("refresh", "anon_bytes_per_record_merged", each(merged.bytes_after), account),
        measured("refresh", "apply_p50_ms", (quantile(&mut times.applied, 0.5), "ms"), copied),
        measured("refresh", "apply_p90_ms", (quantile(&mut times.applied, 0.9), "ms"), copied),
        measured("refresh", "apply_slowest_of_40_ms", (quantile(&mut slowest, 0.5), "ms"), copied),
        measured("refresh", "apply_slowest_ms", (quantile(&mut times.applied, 1.0), "ms"), copied),
        measured("refresh", "apply_p50_ms_from_cache", (quantile(&mut times.from_cache, 0.5), "ms"), copied),
        measured(
            "refresh",
            "apply_p50_ms_tenth",
            (quantile(&mut times.onto_tenth, 0.5), "ms"),
            ("the same onto all of the records, ms", quantile(&mut compared, 0.5)),
        ),
        measured(
            "refresh",
            "runs_p50",
            (quantile(&mut times.runs, 0.5), "runs"),
            ("at most, runs", quantile(&mut times.runs, 1.0)),
        ),
        gets("reader_p999_us", &apart, same_versions, &same_at_rest),
        gets("reader_p999_us_to_base", &apart, "the base alone at rest, us", &at_rest),
        gets("reader_p999_us_without_a_pause", &during, same_versions, &close_at_rest),
        gets("reader_p999_us_merging", &merged.during, "the same version at rest, us", &merged.at_rest),
    ])
}

/// Of each version: milliseconds, and what came of it.
#[derive(Default)]
struct Times {
    /// Fetched and applied.
    applied: Vec<f64>,
    /// The same once more, when it lies in the cache.
    from_cache: Vec<f64>,
    /// Fetched and applied onto a tenth of the records.
    onto_tenth: Vec<f64>,
    /// The delta's bytes written to a file, which is the least that keeping it takes.
    copied: Vec<f64>,
    /// Runs that a lookup may have to ask.
    runs: Vec<f64>,
    /// The views of the last round.
    versions: Vec<Arc<View>>,
}

impl Times {
    fn extend(&mut self, more: Times) {
        self.applied.extend(more.applied);
        self.from_cache.extend(more.from_cache);
        self.onto_tenth.extend(more.onto_tenth);
        self.copied.extend(more.copied);
        self.runs.extend(more.runs);
        self.versions.extend(more.versions);
    }
}

/// What came of merging all changes into a new base.
struct Merged {
    /// Anonymous memory with the changes outstanding.
    bytes_before: u64,
    /// The same once they are merged and let go of.
    bytes_after: u64,
    /// Gets while merges ran.
    during: Spread,
    /// Gets of the same view while nothing ran.
    at_rest: Spread,
}

/// One version's delta.
struct Delta {
    announced: DeltaRef,
    /// Its stored form, where it comes with the announcement.
    inline: Option<Bytes>,
    plain: Bytes,
}

/// A dataset, versions onto it, and the newest of them as it is being read.
struct Versions {
    scratch: Scratch,
    made: Made,
    base: View,
    slot: ArcSwap<View>,
    deltas: Vec<Delta>,
}

impl Versions {
    fn of(runtime: &Runtime, settings: &Settings) -> Result<Versions> {
        let scratch = Scratch::new("refresh")?;
        let made = runtime.block_on(Made::new(scratch.path(), settings))?;
        let base = runtime.block_on(made.open(&made.cache))?;
        Ok(Versions { scratch, made, slot: ArcSwap::from_pointee(base.clone()), base, deltas: Vec::new() })
    }

    /// With so many versions' deltas in the store.
    fn with_deltas(mut self, runtime: &Runtime, settings: &Settings, versions: u64) -> Result<Versions> {
        let changes = CHANGES.min(settings.records / 2);
        for version in 2..2 + versions {
            let (delta, plain) = self.made.delta(version, changes)?;
            let (announced, inline) = runtime.block_on(self.made.put_delta(delta, &plain))?;
            self.deltas.push(Delta { announced, inline, plain });
        }
        Ok(self)
    }

    /// From the base on, with no delta in the cache.
    fn begin(&self, round: u64) -> Result<Follower> {
        let cache = Cache::open(self.scratch.path().join(format!("round-{round}")), u64::MAX);
        self.slot.store(Arc::new(self.base.clone()));
        let fetcher = Fetcher::new(self.made.store.clone(), cache.map_err(failed)?);
        Ok(Follower { fetcher: fetcher.leaving_merges().at_hand_here(), compacting: JoinSet::new() })
    }

    /// One version onto the one in the slot, whose place it takes: how many milliseconds until it could, and the one before.
    fn apply(
        &self,
        clock: &Clock,
        runtime: &Runtime,
        follower: &mut Follower,
        delta: &Delta,
    ) -> Result<(f64, Arc<View>)> {
        let start = clock.now();
        while let Some(made) = follower.compacting.try_join_next() {
            put_below(&self.slot, made)?;
        }
        let held = self.slot.load_full();
        let next = self.next(runtime, &follower.fetcher, &held, delta, delta.inline.clone())?;
        follower.compact(runtime, &next);
        self.slot.store(Arc::new(next));
        Ok((ms(clock.now() - start), held))
    }

    fn next(
        &self,
        runtime: &Runtime,
        fetcher: &Fetcher,
        held: &View,
        delta: &Delta,
        inline: Option<Bytes>,
    ) -> Result<View> {
        let about = self.made.about(delta.announced.version.0);
        Ok(runtime.block_on(fetcher.apply(held, &delta.announced, inline, about))?)
    }

    /// All versions once, beside those of another dataset, and beside writing each delta's bytes to a file. Where a virtual
    /// machine gives memory back to its host, a page that is new costs several times what one does that was just let go of, so
    /// that the copies are to meet the same pages.
    fn round(&self, clock: &Clock, runtime: &Runtime, round: u64, other: &Versions) -> Result<Times> {
        let (mut ours, mut theirs) = (self.begin(round)?, other.begin(round)?);
        let mut times = Times::default();
        let mut others = other.deltas.iter();
        for (nth, delta) in self.deltas.iter().enumerate() {
            let (took, held) = self.apply(clock, runtime, &mut ours, delta)?;
            times.applied.push(took);
            let readable = self.slot.load_full();
            times.runs.push(readable.overlay().runs as f64);
            if round + 1 == ROUNDS {
                times.versions.push(readable);
            }
            let (again, took) = timed(clock, || self.next(runtime, &ours.fetcher, &held, delta, None));
            drop(again?);
            times.from_cache.push(ms(took));
            if let Some(theirs_next) = others.next() {
                let (took, _) = other.apply(clock, runtime, &mut theirs, theirs_next)?;
                times.onto_tenth.push(took);
            }
            let copy = self.scratch.path().join(format!("copy-{round}-{nth}"));
            let (done, took) = timed(clock, || std::fs::write(&copy, &delta.plain));
            done.map_err(failed)?;
            times.copied.push(ms(took));
        }
        ours.finish(runtime, &self.slot)?;
        theirs.finish(runtime, &other.slot)?;
        Ok(times)
    }

    /// All versions once, with pauses; gives them.
    fn one_by_one(&self, clock: &Clock, runtime: &Runtime) -> Result<Vec<Arc<View>>> {
        let mut follower = self.begin(ROUNDS)?;
        let mut versions = Vec::with_capacity(self.deltas.len());
        for delta in &self.deltas {
            let next = clock.now() + APART;
            self.apply(clock, runtime, &mut follower, delta)?;
            versions.push(self.slot.load_full());
            while let Some(left) = next.checked_duration_since(clock.now()).filter(|left| !left.is_zero()) {
                std::thread::park_timeout(left);
            }
        }
        follower.finish(runtime, &self.slot)?;
        Ok(versions)
    }

    /// Gets of each of these versions, as many of each, while nothing else runs.
    fn each_at_rest(&self, clock: &Clock, records: u64, versions: Vec<Arc<View>>) -> Result<Spread> {
        let newest = self.slot.load_full();
        let (mut times, stop) = (Spread::new(), AtomicBool::new(false));
        let each = AT_REST / (versions.len() as u64).max(1);
        for view in versions {
            self.slot.store(view);
            let most = times.of() + each;
            times = read(clock, &self.slot, records, times, most, &stop)?;
        }
        self.slot.store(newest);
        Ok(times)
    }

    /// Merges the overlay of the view in the slot into a new base, several times, while it is read; and looks at anonymous memory
    /// before and after.
    fn merged(self, clock: &Clock, records: u64) -> Result<Merged> {
        let Versions { scratch: _scratch, made, base, slot, deltas } = self;
        drop((base, deltas));
        let bytes_before = settled(clock);
        let stop = AtomicBool::new(false);
        let at_rest = read(clock, &slot, records, Spread::new(), AT_REST, &stop)?;
        let during = std::thread::scope(|scope| {
            let reader = scope.spawn(|| read(clock, &slot, records, Spread::new(), u64::MAX, &stop));
            let merged = (0..MERGES).try_for_each(|_| {
                let view = slot.load_full();
                slot.store(Arc::new(merge(&view, &made.cache)?));
                // And back, so that the next merge has as much to do.
                slot.store(view);
                Ok(())
            });
            stop.store(true, Ordering::Release);
            let read = reader.join().expect("no panic");
            merged.and(read)
        })?;
        let view = slot.into_inner();
        let merged = merge(&view, &made.cache)?;
        drop(view);
        let bytes_after = settled(clock);
        drop(merged);
        Ok(Merged { bytes_before, bytes_after, during, at_rest })
    }
}

/// What brings versions to readers: as `consumer/follow` does it, with compactions as `consumer/merging` runs them.
struct Follower {
    fetcher: Fetcher,
    compacting: JoinSet<Compacted>,
}

type Compacted = Result<Option<Compaction>, view::Error>;

impl Follower {
    /// Begins a compaction, if one is to be made and none runs.
    fn compact(&mut self, runtime: &Runtime, view: &View) {
        if self.compacting.is_empty() && view.wants_compaction() {
            let view = view.clone();
            let compact = move || threads::apart("compact", || view.compact());
            self.compacting.spawn_blocking_on(compact, runtime.handle());
        }
    }

    /// Makes all that is left to be made, as where no version comes for a while.
    fn finish(&mut self, runtime: &Runtime, slot: &ArcSwap<View>) -> Result<()> {
        self.compact(runtime, &slot.load_full());
        while let Some(made) = runtime.block_on(self.compacting.join_next()) {
            put_below(slot, made)?;
            self.compact(runtime, &slot.load_full());
        }
        Ok(())
    }
}

/// What a compaction made, below the version that is held by now.
fn put_below(slot: &ArcSwap<View>, made: Result<Compacted, JoinError>) -> Result<()> {
    let Some(runs) = made.expect("no panic")? else { return Ok(()) };
    if let Some(view) = Done::Runs(runs).below(&slot.load_full())? {
        slot.store(Arc::new(view));
    }
    Ok(())
}

/// The same version without an overlay, by the code with which consumers merge.
fn merge(view: &View, cache: &Cache) -> Result<View> {
    let merged = view.merge_snapshot(view.about().life, cache).map_err(failed)?;
    let base = merged.into_base().map_err(failed)?;
    view.rebase(base).map_err(failed)
}

/// Anonymous memory once what is free has gone back to the system.
fn settled(clock: &Clock) -> u64 {
    let (start, mut least) = (clock.now(), anonymous_bytes());
    while clock.now() - start < PATIENCE {
        std::thread::park_timeout(PATIENCE / 20);
        least = least.min(anonymous_bytes());
    }
    least
}

/// How long each get took, of a key at random out of the newest view, added to `times` until told to stop or these are `most`.
/// Looking at the clock twice is in it, some tens of nanoseconds.
fn read(
    clock: &Clock,
    slot: &ArcSwap<View>,
    records: u64,
    mut times: Spread,
    most: u64,
    stop: &AtomicBool,
) -> Result<Spread> {
    // Who goes on asks for other keys: those of before lie in the processor's caches.
    let entropy = Entropy::seeded(7 + times.of());
    while times.of() < most && !stop.load(Ordering::Acquire) {
        let wanted = key(entropy.next_u64() % records);
        let (found, took) = timed(clock, || {
            let view = slot.load();
            Ok::<_, crate::Error>(view.get(&wanted)?.map_or(0, |value| value.bytes().len()))
        });
        black_box(found?);
        times.add(took);
    }
    Ok(times)
}
