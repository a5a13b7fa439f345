//! `bench read`: random gets against a HashMap.
//!
//! The lines of 25 deltas are of two views of the same version. In one all runs are merged that are to be, as where a reader has
//! had a moment since the last delta. The other is the worst that a follower gives to readers: it leaves larger merges to compactions,
//! and none of them is done yet. A lookup of what no delta changed asks every run.

use std::collections::HashMap;
use std::hint::black_box;

use tokio::runtime::Runtime;

use super::made::{Made, key};
use super::{Measured, Scratch, Settings, measured, quantile, timed};
use crate::Result;
use crate::clock::{Clock, Entropy};
use crate::version::{Chain, DeltaRef};
use crate::view::{Fetcher, View};

type Map = HashMap<Vec<u8>, Vec<u8>>;

const RUNS: usize = 7;
const GETS: usize = 1_000_000;
/// Deltas that a reader found when it started, which are one run. With one of each that came later 25 deltas are two dozen runs,
/// and from so many on a follower leaves no merge any more.
const AT_START: usize = 2;

pub(super) fn run(settings: &Settings, runtime: &Runtime) -> Result<Vec<Measured>> {
    let clock = Clock::system();
    let entropy = Entropy::seeded(1);
    let scratch = Scratch::new("read")?;
    let made = runtime.block_on(Made::new(scratch.path(), settings))?;

    let view = runtime.block_on(made.open(&made.cache))?;
    let wanted: Vec<Vec<u8>> =
        (0..GETS).map(|_| key(entropy.next_u64() % settings.records).into_bytes()).collect();
    let deltas = runtime.block_on(made.cached_deltas())?;
    let overlaid = runtime.block_on(overlaid(&made, &view, &deltas))?;
    let uncompacted = runtime.block_on(uncompacted(&made, &deltas))?;
    let keys = anonymous_bytes();
    ours(&clock, &view, &wanted)?;
    // Without what the list of keys takes, which is the bench's own.
    let grown = anonymous_bytes().saturating_sub(keys) as f64;
    let filled = anonymous_bytes();
    let mut map = Map::new();
    for value in view.iter() {
        let value = value?;
        map.insert(value.key().to_vec(), value.bytes().to_vec());
    }
    let map_bytes = anonymous_bytes().saturating_sub(filled) as f64;

    let (mut one, mut two, mut map_one, mut map_two) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut with_deltas, mut with_runs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        one.push(ours(&clock, &view, &wanted)?);
        with_deltas.push(ours(&clock, &overlaid, &wanted)?);
        with_runs.push(ours(&clock, &uncompacted, &wanted)?);
        map_one.push(theirs(&clock, &map, &wanted));
        two.push(both(|| ours(&clock, &view, &wanted))?);
        map_two.push(both(|| Ok(theirs(&clock, &map, &wanted)))?);
    }
    let records = settings.records as f64;
    let [one, two, map_one, map_two] = [one, two, map_one, map_two].map(|mut runs| quantile(&mut runs, 0.5));
    Ok(vec![
        measured("read", "get_ns", (one, "ns"), ("std HashMap, ns", map_one)),
        measured(
            "read",
            "get_ns_25_deltas",
            (quantile(&mut with_deltas, 0.5), "ns"),
            ("std HashMap, ns", map_one),
        ),
        measured(
            "read",
            "get_ns_25_deltas_uncompacted",
            (quantile(&mut with_runs, 0.5), "ns"),
            ("std HashMap, ns", map_one),
        ),
        measured(
            "read",
            "runs_25_deltas_uncompacted",
            (uncompacted.overlay().runs as f64, "runs"),
            ("merged as they come, runs", overlaid.overlay().runs as f64),
        ),
        measured("read", "get_ns_2_threads", (two, "ns"), ("std HashMap, two threads, ns", map_two)),
        // Where the machine's two processors are one core's, no program comes to two.
        measured(
            "read",
            "gets_of_2_threads_to_1",
            (2.0 * one / two, "times"),
            ("std HashMap, times", 2.0 * map_one / map_two),
        ),
        measured(
            "read",
            "anon_bytes_per_record",
            (grown / records, "bytes"),
            ("std HashMap, bytes", map_bytes / records),
        ),
    ])
}

/// `view` with `deltas` over it, all merges of runs made as they come.
async fn overlaid(made: &Made, view: &View, deltas: &[DeltaRef]) -> Result<View> {
    let fetcher = Fetcher::new(made.store.clone(), made.cache.clone());
    applied(made, &fetcher, view.clone(), deltas).await
}

/// The same version as a follower has it that no compaction has come to yet.
async fn uncompacted(made: &Made, deltas: &[DeltaRef]) -> Result<View> {
    let fetcher = Fetcher::new(made.store.clone(), made.cache.clone()).leaving_merges();
    let (at_start, since) = deltas.split_at(AT_START.min(deltas.len()));
    let chain = Chain { snapshot: Some(made.snapshot.clone()), deltas: at_start.to_vec() };
    let view = fetcher.open(&made.identity, &chain, None, made.about(chain.version().0)).await?;
    applied(made, &fetcher, view, since).await
}

async fn applied(made: &Made, fetcher: &Fetcher, mut view: View, deltas: &[DeltaRef]) -> Result<View> {
    for delta in deltas {
        view = fetcher.apply(&view, delta, None, made.about(delta.version.0)).await?;
    }
    Ok(view)
}

fn ours(clock: &Clock, view: &View, keys: &[Vec<u8>]) -> Result<f64> {
    let (sum, took) = timed(clock, || {
        keys.iter().try_fold(0u64, |sum, key| {
            let value = view.get(key)?;
            Ok::<_, crate::Error>(sum + value.map_or(0, |value| last(value.bytes())))
        })
    });
    black_box(sum?);
    Ok(took.as_nanos() as f64 / keys.len() as f64)
}

fn theirs(clock: &Clock, map: &Map, keys: &[Vec<u8>]) -> f64 {
    let (sum, took) =
        timed(clock, || keys.iter().map(|key| map.get(key).map_or(0, |value| last(value))).sum::<u64>());
    black_box(sum);
    took.as_nanos() as f64 / keys.len() as f64
}

/// Touches the value, as a reader would.
fn last(value: &[u8]) -> u64 {
    value.last().map_or(0, |byte| u64::from(*byte))
}

/// The slower of two threads that do the same at the same time.
fn both(work: impl Fn() -> Result<f64> + Sync) -> Result<f64> {
    std::thread::scope(|scope| {
        let (a, b) = (scope.spawn(&work), scope.spawn(&work));
        let (a, b) = (a.join().expect("no panic")?, b.join().expect("no panic")?);
        Ok(a.max(b))
    })
}

/// Anonymous memory of this process, from the kernel's own account; 0 where there is none.
pub(super) fn anonymous_bytes() -> u64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}
