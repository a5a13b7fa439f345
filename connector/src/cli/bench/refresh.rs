//! `bench refresh`: what a new version costs, and what its arrival costs readers.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Runtime;

use super::made::{Made, failed, key};
use super::read::anonymous_bytes;
use super::{Measured, Scratch, Settings, measured, ms, quantile, timed};
use crate::Result;
use crate::clock::{Clock, Entropy};
use crate::view::{Fetcher, View};

const CHANGES: u64 = 10_000;
const VERSIONS: u64 = 40;
/// How long memory that was freed may take to go back to the system: a thread that made it may be idle for a second before it
/// ends, the allocator keeps it for another, and is looked after twice a second.
const PATIENCE: Duration = Duration::from_secs(4);
/// Gets between two looks at the clock, so that looking is not what is measured.
const BURST: usize = 16;

pub(super) fn run(settings: &Settings, runtime: &Runtime) -> Result<Vec<Measured>> {
    let clock = Clock::system();
    let Refreshed { _scratch, made, slot, before, mut applied, mut copied, mut at_rest, mut during } =
        refreshed(&clock, runtime, settings)?;
    let own = slot.load().overlay().memory_bytes as f64;
    let records = settings.records as f64;
    let each = |bytes: u64| (bytes.saturating_sub(before) as f64 / records, "bytes");
    let (with_overlay, merged) = memory(&clock, &made, slot)?;
    let account = ("the overlay's own account, bytes", own / records);
    // The same changes onto a tenth of the records: what a version costs is its delta, not its dataset.
    let tenth = Settings { records: (settings.records / 10).max(1), ..settings.clone() };
    let mut small = refreshed(&clock, runtime, &tenth)?.applied;
    let applied = quantile(&mut applied, 0.5);
    Ok(vec![
        measured("refresh", "anon_bytes_per_record", each(with_overlay), account),
        measured("refresh", "anon_bytes_per_record_merged", each(merged), account),
        measured(
            "refresh",
            "apply_ms",
            (applied, "ms"),
            ("copying the delta's bytes, ms", quantile(&mut copied, 0.5)),
        ),
        measured(
            "refresh",
            "apply_ms_tenth",
            (quantile(&mut small, 0.5), "ms"),
            ("onto all of the records, ms", applied),
        ),
        measured(
            "refresh",
            "reader_p999_us",
            (quantile(&mut during, 0.999), "us"),
            ("the reader at rest, us", quantile(&mut at_rest, 0.999)),
        ),
    ])
}

/// A view over which versions have come, one by one, while it was read.
struct Refreshed {
    _scratch: Scratch,
    made: Made,
    slot: ArcSwap<View>,
    /// Anonymous bytes before the first of them, with what the reader takes for its own list.
    before: u64,
    /// Milliseconds, a version each.
    applied: Vec<f64>,
    copied: Vec<f64>,
    /// Microseconds, a burst each.
    at_rest: Vec<f64>,
    during: Vec<f64>,
}

fn refreshed(clock: &Clock, runtime: &Runtime, settings: &Settings) -> Result<Refreshed> {
    let scratch = Scratch::new("refresh")?;
    let made = runtime.block_on(Made::new(scratch.path(), settings))?;
    let view = runtime.block_on(made.open(&made.cache))?;
    let fetcher = Fetcher::new(made.store.clone(), made.cache.clone());
    let slot = ArcSwap::from_pointee(view);
    let changes = CHANGES.min(settings.records / 2);
    let stop = AtomicBool::new(false);
    let at_rest = read(clock, &slot, settings.records, 200_000, &stop)?;
    let before = settled(clock);
    let deltas = (2..2 + VERSIONS).map(|version| made.delta(version, changes)).collect::<Result<Vec<_>>>()?;
    let (mut applied, mut copied, mut during) = (Vec::new(), Vec::new(), Vec::new());
    std::thread::scope(|scope| -> Result<()> {
        let reader = scope.spawn(|| read(clock, &slot, settings.records, usize::MAX, &stop));
        for (delta, bytes) in &deltas {
            let next: Result<View> = runtime.block_on(async {
                let start = clock.now();
                let held = slot.load_full();
                let about = made.about(delta.version.0);
                let next = fetcher.apply(&held, delta, Some(bytes.clone()), about).await?;
                applied.push(ms(clock.now() - start));
                Ok(next)
            });
            slot.store(Arc::new(next?));
            copied.push(ms(timed(clock, || black_box(bytes.to_vec())).1));
        }
        stop.store(true, Ordering::Release);
        during = reader.join().expect("no panic")?;
        Ok(())
    })?;
    let before = before + during.capacity() as u64 * 8;
    Ok(Refreshed { _scratch: scratch, made, slot, before, applied, copied, at_rest, during })
}

/// Anonymous memory with the view in the slot, and with the same version once its overlay is merged and let go of.
fn memory(clock: &Clock, made: &Made, slot: ArcSwap<View>) -> Result<(u64, u64)> {
    let with = settled(clock);
    let view = slot.into_inner();
    let base = view.merge_snapshot(view.about().life, &made.cache).map_err(failed)?.into_base();
    let merged = view.rebase(base.map_err(failed)?).map_err(failed)?;
    drop(view);
    let left = settled(clock);
    drop(merged);
    Ok((with, left))
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
