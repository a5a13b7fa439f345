//! `bench refresh`: what a new version costs, and what its arrival costs readers.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::runtime::Runtime;

use super::made::{Made, failed, key};
use super::read::anonymous_bytes;
use super::{Measured, Scratch, Settings, measured, ms, quantile, timed};
use crate::Result;
use crate::clock::{Clock, Entropy};
use crate::version::DeltaRef;
use crate::view::{Cache, Fetcher, View};

const CHANGES: u64 = 10_000;
/// Versions, one onto the other, from the base on.
const VERSIONS: u64 = 40;
/// Of them, those that are compared with the same ones onto a tenth of the records. Together they change less than that has,
/// so that no key changes twice and both gather the same overlay.
const COMPARED: u64 = 8;
/// How often they come, each time from the base on and into a cache of its own; the first time warms all up, and is not counted.
const ROUNDS: u64 = 6;
/// How long memory that was freed may take to go back to the system: a thread that made it may be idle for a second before it
/// ends, the allocator keeps it for another, and is looked after twice a second.
const PATIENCE: Duration = Duration::from_secs(4);
/// Gets between two looks at the clock, so that looking is not what is measured.
const BURST: usize = 16;

pub(super) fn run(settings: &Settings, runtime: &Runtime) -> Result<Vec<Measured>> {
    let clock = Clock::system();
    let tenth = Settings { records: (settings.records / 10).max(1), ..settings.clone() };
    let (of_tenth, all) = (Versions::of(runtime, &tenth)?, Versions::of(runtime, settings)?);
    let stop = AtomicBool::new(false);
    // Before memory is looked at, too: what this thread has let go of goes back only while it asks for more.
    let mut at_rest = read(&clock, &all.slot, settings.records, 200_000, &stop)?;
    let before = settled(&clock);
    let (of_tenth, all) = (of_tenth.with_deltas(&tenth, COMPARED)?, all.with_deltas(settings, VERSIONS)?);
    let (mut applied, mut compared, mut onto_tenth) = (Vec::new(), Vec::new(), Vec::new());
    let (mut slowest, mut copied) = (Vec::new(), Vec::new());
    let mut during = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&clock, &all.slot, settings.records, usize::MAX, &stop));
        let refreshed = (0..ROUNDS).try_for_each(|round| {
            // In turn, so that both meet the same machine.
            let [ours, tenths, copies] = all.round(&clock, runtime, round, &of_tenth)?;
            if round > 0 {
                slowest.push(ours.iter().copied().fold(0.0, f64::max));
                compared.extend(ours.iter().take(COMPARED as usize));
                applied.extend(ours);
                onto_tenth.extend(tenths);
                copied.extend(copies);
            }
            Ok(())
        });
        stop.store(true, Ordering::Release);
        let read = reader.join().expect("no panic");
        refreshed.and(read)
    })?;
    drop(of_tenth);
    let copied = ("writing the delta's bytes to a file, ms", quantile(&mut copied, 0.5));
    let own = all.slot.load().overlay().memory_bytes as f64;
    let records = settings.records as f64;
    let account = ("the overlay's own account, bytes", own / records);
    let (p999, p999_at_rest) = (quantile(&mut during, 0.999), quantile(&mut at_rest, 0.999));
    drop((during, at_rest));
    let (with_overlay, merged) = all.memory(&clock)?;
    let each = |bytes: u64| (bytes.saturating_sub(before) as f64 / records, "bytes");
    Ok(vec![
        measured("refresh", "anon_bytes_per_record", each(with_overlay), account),
        measured("refresh", "anon_bytes_per_record_merged", each(merged), account),
        measured("refresh", "apply_ms", (quantile(&mut applied, 0.5), "ms"), copied),
        measured("refresh", "apply_p90_ms", (quantile(&mut applied, 0.9), "ms"), copied),
        measured("refresh", "apply_slowest_of_40_ms", (quantile(&mut slowest, 0.5), "ms"), copied),
        measured(
            "refresh",
            "apply_ms_tenth",
            (quantile(&mut onto_tenth, 0.5), "ms"),
            ("the same onto all of the records, ms", quantile(&mut compared, 0.5)),
        ),
        measured("refresh", "reader_p999_us", (p999, "us"), ("the reader at rest, us", p999_at_rest)),
    ])
}

/// A dataset, versions onto it, and the newest of them as it is being read.
struct Versions {
    scratch: Scratch,
    made: Made,
    base: View,
    slot: ArcSwap<View>,
    deltas: Vec<(DeltaRef, Bytes)>,
}

impl Versions {
    fn of(runtime: &Runtime, settings: &Settings) -> Result<Versions> {
        let scratch = Scratch::new("refresh")?;
        let made = runtime.block_on(Made::new(scratch.path(), settings))?;
        let base = runtime.block_on(made.open(&made.cache))?;
        Ok(Versions { scratch, made, slot: ArcSwap::from_pointee(base.clone()), base, deltas: Vec::new() })
    }

    fn with_deltas(mut self, settings: &Settings, versions: u64) -> Result<Versions> {
        let changes = CHANGES.min(settings.records / 2);
        self.deltas =
            (2..2 + versions).map(|version| self.made.delta(version, changes)).collect::<Result<_>>()?;
        Ok(self)
    }

    /// From the base on, with no delta in the cache.
    fn begin(&self, round: u64) -> Result<Fetcher> {
        let cache = Cache::open(self.scratch.path().join(format!("round-{round}")), u64::MAX);
        self.slot.store(Arc::new(self.base.clone()));
        Ok(Fetcher::new(self.made.store.clone(), cache.map_err(failed)?))
    }

    /// The milliseconds of one version onto the one in the slot.
    fn apply(&self, clock: &Clock, runtime: &Runtime, fetcher: &Fetcher, nth: usize) -> Result<Option<f64>> {
        let Some((delta, bytes)) = self.deltas.get(nth) else { return Ok(None) };
        let (next, took) = runtime.block_on(async {
            let start = clock.now();
            let held = self.slot.load_full();
            let about = self.made.about(delta.version.0);
            let next = fetcher.apply(&held, delta, Some(bytes.clone()), about).await?;
            Ok::<_, crate::Error>((next, ms(clock.now() - start)))
        })?;
        self.slot.store(Arc::new(next));
        Ok(Some(took))
    }

    /// All versions once, beside those of another dataset: the milliseconds of each, of the other's, and of writing each delta's
    /// bytes to a file, which is the least that keeping it takes. Where a virtual machine gives memory back to its host, a page
    /// that is new costs several times what one does that was just let go of, so that the copies are to meet the same pages.
    fn round(&self, clock: &Clock, runtime: &Runtime, round: u64, other: &Versions) -> Result<[Vec<f64>; 3]> {
        let (ours, theirs) = (self.begin(round)?, other.begin(round)?);
        let [mut applied, mut onto_other, mut copied] = [Vec::new(), Vec::new(), Vec::new()];
        for (nth, (_, bytes)) in self.deltas.iter().enumerate() {
            applied.extend(self.apply(clock, runtime, &ours, nth)?);
            onto_other.extend(other.apply(clock, runtime, &theirs, nth)?);
            let copy = self.scratch.path().join(format!("copy-{round}-{nth}"));
            let (done, took) = timed(clock, || std::fs::write(&copy, bytes));
            done.map_err(failed)?;
            copied.push(ms(took));
        }
        Ok([applied, onto_other, copied])
    }

    /// Anonymous memory with the view in the slot, and with the same version once its overlay is merged and let go of.
    fn memory(self, clock: &Clock) -> Result<(u64, u64)> {
        let Versions { scratch: _scratch, made, base, slot, deltas } = self;
        drop((base, deltas));
        let with = settled(clock);
        let view = slot.into_inner();
        let merged = view.merge_snapshot(view.about().life, &made.cache).map_err(failed)?.into_base();
        let merged = view.rebase(merged.map_err(failed)?).map_err(failed)?;
        drop(view);
        let left = settled(clock);
        drop(merged);
        Ok((with, left))
    }
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

/// Microseconds a get, in bursts, until told to stop or `most` gets are done.
fn read(
    clock: &Clock,
    slot: &ArcSwap<View>,
    records: u64,
    most: usize,
    stop: &AtomicBool,
) -> Result<Vec<f64>> {
    let entropy = Entropy::seeded(7);
    let mut times = Vec::new();
    while times.len() * BURST < most && !stop.load(Ordering::Acquire) {
        let keys: Vec<String> = (0..BURST).map(|_| key(entropy.next_u64() % records)).collect();
        let view = slot.load();
        let (found, took) = timed(clock, || {
            keys.iter().try_fold(0, |sum, key| {
                Ok::<_, crate::Error>(sum + view.get(key)?.map_or(0, |value| value.bytes().len()))
            })
        });
        black_box(found?);
        times.push(took.as_secs_f64() * 1e6 / BURST as f64);
    }
    Ok(times)
}
