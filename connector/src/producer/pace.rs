//! Pacing: how many records and bytes a second go from the log to the batcher.
//!
//! ```text
//!  configured, or as measured ---- share (AIMD) ----> two buckets (governor) <-- pay -- batcher
//!                                     ^ twice a second, by what goes out badly
//! ```
//!
//! At or above `pressure_high` the share of the full rate comes down by a quarter at a time, below it climbs by a
//! twentieth, as TCP does it. It never reaches nothing: what slows the pace is behind the log, and the log must empty
//! for it to end. Why only some of the pressure counts here: `docs/decisions/0005-pressure.md`.
//!
//! Owns: the limits, as they were told and as they are at the moment. Does not own: what happens to records that wait
//! (they stay in the log), or the pressure gauge.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use governor::clock::{Clock as _, DefaultClock};
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::sync::Notify;

use super::Pacing;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};

/// Bytes are counted in kibibytes: a bucket's cell count is a `u32`, which bytes a second would overflow at 4 GiB/s.
const BYTES_PER_CELL: u64 = 1024;
/// How often the share changes: what a change does must be seen in what goes out before the next one.
const ADJUST_EVERY: Duration = Duration::from_millis(500);
/// What the share is multiplied with under pressure.
const DOWN: f64 = 0.75;
/// What is added to it otherwise.
const UP: f64 = 0.05;
/// The smallest share.
const LEAST: f64 = 1.0 / 32.0;
/// The share from which on pressure limits nothing. More than 1: where no rate was configured, the full rate is what
/// was measured, and more may be possible.
const ENOUGH: f64 = 2.0;
/// The smallest rates, whatever was measured: one record, 64 KiB.
const LEAST_RECORDS: f64 = 1.0;
const LEAST_CELLS: f64 = 64.0;
/// The full rates where none was configured and nothing was measured: 1,000 records, 1 MiB.
const USUAL_RECORDS: f64 = 1_000.0;
const USUAL_CELLS: f64 = 1_024.0;
/// How much of the highest rate measured is still held for usual at the next adjustment: half of it after 17 s.
const REMEMBERED: f64 = 0.98;

/// Lets records through at the rate of the moment; without limits it costs an atomic load. Clones are handles of the
/// same one.
#[derive(Clone, Debug)]
pub struct Pace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    /// Held to change the limits.
    state: Mutex<State>,
    /// The limits of the moment.
    buckets: ArcSwap<Buckets>,
    /// The buckets were replaced: who waits at an old one looks again.
    changed: Notify,
    /// Admitted since the start.
    records: AtomicU64,
    bytes: AtomicU64,
}

#[derive(Debug)]
struct State {
    pacing: Pacing,
    share: Share,
    /// Records and cells a second, of late.
    usual: Rates,
    /// When the share was adjusted last, and what had been admitted by then.
    last: Option<(Instant, u64, u64)>,
}

/// What has gone on and is not paid for yet.
#[derive(Clone, Copy, Debug)]
pub struct Debt {
    records: u64,
    cells: u64,
}

/// Records and cells a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rates {
    records: f64,
    cells: f64,
}

/// The share of the full rate that pressure leaves: additive increase, multiplicative decrease. `None`: all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Share(Option<f64>);

impl Share {
    fn step(self, strained: bool) -> Share {
        match (self.0, strained) {
            (None, false) => Share(None),
            (share, true) => Share(Some((share.unwrap_or(1.0).min(1.0) * DOWN).max(LEAST))),
            (Some(share), false) => Share(Some(share + UP).filter(|share| *share < ENOUGH)),
        }
    }

    /// The limit of one rate a second; 0 is unlimited.
    fn limit(self, configured: u32, usual: f64, least: f64) -> u32 {
        let limit = match (self.0, configured) {
            (None, configured) => return configured,
            (Some(share), 0) => usual * share,
            (Some(share), configured) => f64::from(configured) * share.min(1.0),
        };
        let most = if configured == 0 { u32::MAX } else { configured };
        // Rounded up: as a limit, 0 would mean the opposite.
        (limit.max(least).ceil() as u32).min(most)
    }
}

impl State {
    /// Records and cells a second; 0 is unlimited.
    fn limits(&self) -> (u32, u32) {
        let cells = self.pacing.max_bytes_per_second.div_ceil(BYTES_PER_CELL).min(u64::from(u32::MAX)) as u32;
        let usual = &self.usual;
        (
            self.share.limit(
                self.pacing.max_records_per_second,
                usual.records.max(USUAL_RECORDS),
                LEAST_RECORDS,
            ),
            self.share.limit(cells, usual.cells.max(USUAL_CELLS), LEAST_CELLS),
        )
    }
}

impl Pace {
    /// Buckets that hold a tenth of a second's worth, so that a burst after a pause is no larger than that.
    pub fn new(pacing: Pacing, clock: Clock) -> Pace {
        let state = State { pacing, share: Share::default(), usual: Rates::default(), last: None };
        let buckets = Buckets::new(state.limits());
        Pace(Arc::new(Inner {
            clock,
            state: Mutex::new(state),
            buckets: ArcSwap::from_pointee(buckets),
            changed: Notify::new(),
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the limits, at once: what waits at the old ones waits at the new ones.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a `pressure_high` that is not above 0 and at most 1: all would be pressure, or nothing.
    pub fn set(&self, pacing: Pacing) -> Result<()> {
        if !(pacing.pressure_high > 0.0 && pacing.pressure_high <= 1.0) {
            let what =
                format!("pressure_high is {}, and must be above 0 and at most 1", pacing.pressure_high);
            return Err(Error::new(ErrorKind::Config, what));
        }
        let mut state = self.state();
        tracing::info!(
            records_per_second = pacing.max_records_per_second,
            bytes_per_second = pacing.max_bytes_per_second,
            pressure_high = pacing.pressure_high,
            "the pace has new limits (0: none)"
        );
        state.pacing = pacing;
        self.replace(state.limits());
        Ok(())
    }

    /// The limits as they were told last.
    pub fn pacing(&self) -> Pacing {
        self.state().pacing.clone()
    }

    /// Records and bytes a second that go through at the moment; `None` is unlimited.
    pub fn now(&self) -> (Option<u32>, Option<u64>) {
        let buckets = self.0.buckets.load();
        let rate = |bucket: &Option<Bucket>| bucket.as_ref().map(|bucket| bucket.per_second);
        let cells = rate(&buckets.kibibytes);
        (rate(&buckets.records), cells.map(|cells| u64::from(cells) * BYTES_PER_CELL))
    }

    /// Adjusts the rate to the pressure of what goes out. To be called all the time; twice a second it does something.
    pub fn adjust(&self, pressure: f64) {
        let now = self.0.clock.now();
        let (records, bytes) = (self.0.records.load(Ordering::Relaxed), self.0.bytes.load(Ordering::Relaxed));
        let mut state = self.state();
        let Some((at, records_then, bytes_then)) = state.last else {
            state.last = Some((now, records, bytes));
            return;
        };
        let took = now.saturating_duration_since(at);
        if took < ADJUST_EVERY {
            return;
        }
        state.last = Some((now, records, bytes));
        let before = state.share;
        state.share = before.step(pressure >= state.pacing.pressure_high);
        if before.0.is_none() {
            // Under pressure the rate says what the limit is, and no longer what is usual.
            let per_second = |now: u64, then: u64| now.saturating_sub(then) as f64 / took.as_secs_f64();
            let usual = &mut state.usual;
            usual.records = (usual.records * REMEMBERED).max(per_second(records, records_then));
            usual.cells =
                (usual.cells * REMEMBERED).max(per_second(bytes, bytes_then) / BYTES_PER_CELL as f64);
        }
        if state.share != before {
            self.replace(state.limits());
        }
        match (before.0, state.share.0) {
            (None, Some(_)) => {
                let (records, bytes) = self.now();
                tracing::warn!(
                    pressure,
                    records_per_second = records,
                    bytes_per_second = bytes,
                    "the pace comes down: what goes out goes out badly"
                );
            }
            (Some(_), None) => tracing::info!(pressure, "the pace is back to what was configured"),
            _ => {}
        }
    }

    /// Puts new buckets in the place of the old ones. Called with the state held, so that the last one told stays.
    fn replace(&self, limits: (u32, u32)) {
        self.0.buckets.store(Arc::new(Buckets::new(limits)));
        self.0.changed.notify_waiters();
    }

    /// Most records to take before waiting again: asking for more would exceed what a bucket can hold at a time.
    pub fn step(&self) -> usize {
        self.0.buckets.load().records.as_ref().map_or(usize::MAX, |bucket| bucket.burst as usize)
    }

    /// Most bytes to take before waiting again, so that a wait is never longer than a bucket's time.
    pub fn byte_step(&self) -> u64 {
        let buckets = self.0.buckets.load();
        buckets.kibibytes.as_ref().map_or(u64::MAX, |bucket| u64::from(bucket.burst) * BYTES_PER_CELL)
    }

    /// Records of `bytes` together that go on now, and are to be paid for before the next ones do.
    pub fn owe(&self, records: usize, bytes: u64) -> Debt {
        self.0.records.fetch_add(records as u64, Ordering::Relaxed);
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        Debt { records: records as u64, cells: bytes.div_ceil(BYTES_PER_CELL) }
    }

    /// Waits until `debt` is paid; what exceeds a bucket's size is paid in pieces. Dropped while it waits, it keeps what
    /// was paid.
    pub async fn pay(&self, debt: &mut Debt) {
        self.take(&mut debt.records, |buckets| buckets.records.as_ref()).await;
        self.take(&mut debt.cells, |buckets| buckets.kibibytes.as_ref()).await;
    }

    async fn take(&self, cells: &mut u64, bucket: impl Fn(&Buckets) -> Option<&Bucket>) {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            // Registered before looking: limits that change between look and wait still wake.
            changed.as_mut().enable();
            let wait = {
                let buckets = self.0.buckets.load();
                let Some(bucket) = bucket(&buckets) else { return };
                let Some(piece) = NonZeroU32::new((*cells).min(u64::from(bucket.burst)) as u32) else {
                    return;
                };
                match bucket.try_take(piece) {
                    None => {
                        *cells -= u64::from(piece.get());
                        continue;
                    }
                    Some(wait) => wait,
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = changed => {}
            }
        }
    }
}

#[derive(Debug)]
struct Buckets {
    records: Option<Bucket>,
    kibibytes: Option<Bucket>,
}

impl Buckets {
    fn new((records, cells): (u32, u32)) -> Buckets {
        Buckets { records: Bucket::new(records), kibibytes: Bucket::new(cells) }
    }
}

#[derive(Debug)]
struct Bucket {
    limiter: RateLimiter<NotKeyed, InMemoryState, DefaultClock>,
    per_second: u32,
    burst: u32,
}

impl Bucket {
    /// `None`: no limit. It begins empty, so that changing the rate twice a second gives nothing away.
    fn new(per_second: u32) -> Option<Bucket> {
        let rate = NonZeroU32::new(per_second)?;
        let burst = NonZeroU32::new(per_second / 10).unwrap_or(NonZeroU32::MIN);
        let limiter = RateLimiter::direct(Quota::per_second(rate).allow_burst(burst));
        let bucket = Bucket { limiter, per_second, burst: burst.get() };
        bucket.try_take(burst);
        Some(bucket)
    }

    /// Takes so many cells, or says how long it will be until they are there.
    fn try_take(&self, cells: NonZeroU32) -> Option<Duration> {
        let taken = self.limiter.check_n(cells).expect("a piece is never larger than the bucket");
        taken.err().map(|not_until| not_until.wait_time_from(self.limiter.clock().now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn admit(pace: &Pace, records: usize, bytes: u64) {
        pace.pay(&mut pace.owe(records, bytes)).await;
    }

    fn pacing(records: u32, bytes: u64) -> Pacing {
        Pacing { max_records_per_second: records, max_bytes_per_second: bytes, pressure_high: 0.8 }
    }

    #[tokio::test]
    async fn the_rate_holds_for_records_and_for_bytes() {
        let clock = Clock::system();
        for (limits, records, bytes) in
            [(pacing(1_000, 0), 300, 0), (pacing(0, 1 << 20), 0, 300 << 10), (pacing(1_000, 1 << 30), 300, 9)]
        {
            let pace = Pace::new(limits, clock.clone());
            let before = clock.now();
            admit(&pace, records, bytes).await;
            let took = clock.now() - before;
            assert!(took.as_millis() >= 280, "{took:?}");
        }
    }

    #[tokio::test]
    async fn without_limits_nothing_waits() {
        let pace = Pace::new(pacing(0, 0), Clock::system());
        admit(&pace, usize::MAX >> 1, u64::MAX >> 1).await;
        assert_eq!((pace.step(), pace.byte_step(), pace.now()), (usize::MAX, u64::MAX, (None, None)));
    }

    #[tokio::test]
    async fn limits_that_change_meet_what_waits_already() {
        for (slow, other, now, records, bytes) in [
            (pacing(1, 0), pacing(2, 0), (Some(2), None), 1_000, 0),
            (pacing(0, 1_024), pacing(0, 2_048), (None, Some(2_048)), 1, 1_000 << 10),
        ] {
            let pace = Pace::new(slow, Clock::system());
            let waiting = pace.clone();
            let (admitted, ()) = tokio::join!(
                tokio::time::timeout(Duration::from_secs(60), admit(&waiting, records, bytes)),
                async {
                    // A thousand records, or kibibytes, at one a second; then a limit that still is one; then none.
                    tokio::task::yield_now().await;
                    pace.set(other).unwrap();
                    tokio::task::yield_now().await;
                    assert_eq!(pace.now(), now);
                    pace.set(pacing(0, 0)).unwrap();
                }
            );
            admitted.expect("it goes on at once when the limit falls");
            assert_eq!(pace.now(), (None, None));
        }
    }

    /// Adjusts once per entry, each a half second later; gives the limits after each.
    fn adjusted(pace: &Pace, clock: &Clock, pressures: &[f64]) -> Vec<(Option<u32>, Option<u64>)> {
        let step = |pressure: &f64| {
            clock.advance(ADJUST_EVERY);
            pace.adjust(*pressure);
            pace.now()
        };
        pressures.iter().map(step).collect()
    }

    #[test]
    fn pressure_brings_the_rate_down_by_a_quarter_and_it_climbs_back_by_a_twentieth() {
        let clock = Clock::manual(0);
        let pace = Pace::new(pacing(1_000, 1_024_000), clock.clone());
        pace.adjust(1.0);
        assert_eq!(pace.now().0, Some(1_000), "the first call only begins to measure");
        let limits = adjusted(&pace, &clock, &[0.8, 1.0, 0.79, 0.0]);
        let records: Vec<_> = limits.iter().map(|limit| limit.0.unwrap()).collect();
        assert_eq!(records, [750, 563, 613, 663]);
        assert_eq!(limits[1].1, Some(563 * 1_024));
        pace.adjust(1.0);
        assert_eq!(pace.now().0, Some(663), "not twice within a half second");

        // Never to nothing, and never so that it stays there.
        let down = adjusted(&pace, &clock, &[1.0; 100]);
        assert!(down.iter().is_sorted_by(|a, b| a.0 >= b.0));
        assert_eq!(pace.now(), (Some(32), Some(64 * 1_024)));
        let up = adjusted(&pace, &clock, &[0.0; 20]);
        assert!(up.iter().is_sorted_by(|a, b| a.0 <= b.0));
        assert_eq!(pace.now(), (Some(1_000), Some(1_024_000)), "back within ten seconds");
        adjusted(&pace, &clock, &[0.0; 100]);
        assert_eq!(pace.now(), (Some(1_000), Some(1_024_000)), "and not beyond");
    }

    #[tokio::test]
    async fn without_a_limit_it_comes_down_from_what_was_measured_and_is_lifted_again() {
        let clock = Clock::manual(0);
        let pace = Pace::new(pacing(0, 0), clock.clone());
        pace.adjust(0.0);
        for _ in 0..3 {
            admit(&pace, 40_000, 8 << 20).await;
            adjusted(&pace, &clock, &[0.0]);
        }
        assert_eq!(pace.now(), (None, None));
        // Nothing gets through at the moment at which it is seen.
        adjusted(&pace, &clock, &[1.0]);
        let (records, bytes) = pace.now();
        assert!((55_000..60_000).contains(&records.unwrap()), "three quarters of 80,000: {records:?}");
        assert!(bytes.unwrap() > 11 << 20, "{bytes:?}");
        adjusted(&pace, &clock, &[1.0; 60]);
        assert!(pace.now().0.unwrap() > 2_000);
        let lifted = adjusted(&pace, &clock, &[0.0; 41]);
        assert_eq!(pace.now(), (None, None), "after twenty seconds of quiet");
        assert!(lifted[30].0.is_some_and(|records| records > 80_000), "tried carefully: {:?}", lifted[30]);

        // What was never measured has a rate all the same.
        let idle = Pace::new(pacing(0, 0), clock.clone());
        idle.adjust(1.0);
        adjusted(&idle, &clock, &[1.0; 100]);
        assert_eq!(idle.now(), (Some(32), Some(64 * 1_024)));
    }

    #[test]
    fn a_limit_that_is_changed_under_pressure_keeps_its_share() {
        let clock = Clock::manual(0);
        let pace = Pace::new(pacing(1_000, 0), clock.clone());
        pace.adjust(0.0);
        adjusted(&pace, &clock, &[1.0]);
        pace.set(pacing(2_000, 10_240)).unwrap();
        assert_eq!(pace.now(), (Some(1_500), Some(10_240)), "a small limit is not below its own floor");
        pace.set(pacing(1, 0)).unwrap();
        assert_eq!(pace.now().0, Some(1));
        for high in [0.0, 1.1, f64::NAN] {
            assert!(pace.set(Pacing { pressure_high: high, ..pacing(7, 0) }).is_err());
        }
        assert_eq!(pace.now().0, Some(1), "what is refused changes nothing");
    }
}
