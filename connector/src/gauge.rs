//! How much is under way: byte budgets whose leases travel with the data, and the pressure gauge.
//!
//! Owns: counting what is in memory. Does not own: what is done about it (`producer/source`, `pace`, `batch`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::clock::Clock;

/// A bound on the bytes that are in memory at a time. Cheap to clone: all clones share one count.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    capacity: u64,
    used: AtomicU64,
    freed: Notify,
}

impl Budget {
    /// A budget of `capacity` bytes.
    pub fn new(capacity: u64) -> Budget {
        Budget(Arc::new(Shared { capacity, used: AtomicU64::new(0), freed: Notify::new() }))
    }

    /// Takes `bytes` if they fit. What is larger than the whole budget fits when nothing else is out, so that one
    /// large record is slow rather than stuck.
    pub fn try_lease(&self, bytes: u64) -> Option<Lease> {
        let taken = self.0.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            (used == 0 || used + bytes <= self.0.capacity).then_some(used + bytes)
        });
        taken.ok().map(|_| Lease { budget: self.clone(), bytes })
    }

    /// Waits until `bytes` fit, then takes them.
    pub async fn lease(&self, bytes: u64) -> Lease {
        loop {
            // Registered before the check: a lease dropped between check and wait still wakes this one.
            let freed = self.0.freed.notified();
            if let Some(lease) = self.try_lease(bytes) {
                return lease;
            }
            freed.await;
        }
    }

    /// Takes `bytes` whether they fit or not: for data that already is in memory.
    pub fn force_lease(&self, bytes: u64) -> Lease {
        self.0.used.fetch_add(bytes, Ordering::AcqRel);
        Lease { budget: self.clone(), bytes }
    }

    /// Bytes that are out.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Acquire)
    }

    /// Bytes in all.
    pub fn capacity(&self) -> u64 {
        self.0.capacity
    }

    /// Share in use, 0 to 1 (more, where leases were forced).
    pub fn fill(&self) -> f64 {
        if self.0.capacity == 0 { 0.0 } else { self.used() as f64 / self.0.capacity as f64 }
    }
}

/// Some bytes of a [`Budget`]; given back on drop.
#[derive(Debug)]
pub struct Lease {
    budget: Budget,
    bytes: u64,
}

impl Lease {
    /// The bytes it stands for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.0.used.fetch_sub(self.bytes, Ordering::AcqRel);
        self.budget.0.freed.notify_waiters();
    }
}

/// What the pressure gauge is fed with; its value is the largest of them.
///
/// Which of them slow the pace, which pause the source, and which only show: `docs/decisions/0005-pressure.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strain {
    /// Records in memory between source and announcement, against `max_pending_records`.
    Pending,
    /// Bytes of log in memory between the log and the announcement, against their budget.
    Memory,
    /// Bytes in the log, against `max_log_size`.
    Log,
    /// What the log's disk must keep free, against what is free.
    Disk,
    /// Deltas since the last snapshot, against the longest chain.
    Chain,
    /// How long uploads take; see [`Pressure::succeeded`].
    StoreLatency,
    /// Uploads that failed in a row; see [`Pressure::failed`].
    StoreFailures,
    /// How long announcements take.
    AnnounceLatency,
    /// Announcements that failed in a row.
    AnnounceFailures,
}

const STRAINS: [Strain; 9] = [
    Strain::Pending,
    Strain::Memory,
    Strain::Log,
    Strain::Disk,
    Strain::Chain,
    Strain::StoreLatency,
    Strain::StoreFailures,
    Strain::AnnounceLatency,
    Strain::AnnounceFailures,
];

/// What versions go out through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlet {
    /// The blob store.
    Store,
    /// Kafka's transactions.
    Announce,
}

impl Outlet {
    fn strains(self) -> (Strain, Strain) {
        match self {
            Outlet::Store => (Strain::StoreLatency, Strain::StoreFailures),
            Outlet::Announce => (Strain::AnnounceLatency, Strain::AnnounceFailures),
        }
    }
}

/// For so long an outlet's last report counts in full. Longer than the longest wait between two attempts at it.
const HOLD: Duration = Duration::from_secs(60);
/// After that it fades by half in each of these: when nothing is written any more, nobody says that all is well again.
const HALF_LIFE: Duration = Duration::from_secs(5);
/// Share of the newest report in a latency: one slow upload among quick ones is no trouble yet.
const NEWEST: f64 = 0.3;

/// One gauge from 0 (idle) to 1 (full), shared by all stages of a shard, and by all of its lives.
///
/// *Levels* ([`Pressure::set`]) stand until they are set again, by whoever measures them all the time. *Reports*
/// ([`Pressure::succeeded`], [`Pressure::failed`]) come with each attempt to write, and fade when none is made.
#[derive(Clone, Debug)]
pub struct Pressure(Arc<Gauge>);

#[derive(Debug)]
struct Gauge {
    clock: Clock,
    /// Held to read or write one number.
    readings: Mutex<[Reading; STRAINS.len()]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    value: f64,
    /// `None`: a level.
    reported: Option<Instant>,
}

impl Reading {
    fn at(&self, now: Instant) -> f64 {
        let age = self.reported.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let faded = age.saturating_sub(HOLD).as_secs_f64() / HALF_LIFE.as_secs_f64();
        let value = self.value * 0.5f64.powf(faded);
        if faded > 0.0 && value < 0.01 { 0.0 } else { value }
    }
}

impl Pressure {
    /// A gauge at rest.
    pub fn new(clock: Clock) -> Pressure {
        Pressure(Arc::new(Gauge { clock, readings: Mutex::default() }))
    }

    /// Sets a level. Not a number counts as full.
    pub fn set(&self, strain: Strain, value: f64) {
        self.put(strain, value, None);
    }

    /// Tells that something was written through `outlet`, which took `took`, and is given up after `limit`. The strain
    /// is full at half of the limit; the newest report counts for three tenths. Ends the failures.
    pub fn succeeded(&self, outlet: Outlet, took: Duration, limit: Duration) {
        let (latency, failures) = outlet.strains();
        let share = took.as_secs_f64() / (limit.as_secs_f64() / 2.0).max(0.001);
        let smooth = self.of(latency) * (1.0 - NEWEST) + share.min(1.0) * NEWEST;
        let now = self.0.clock.now();
        self.put(latency, smooth, Some(now));
        self.put(failures, 0.0, Some(now));
    }

    /// Tells that an attempt through `outlet` failed, the `failures`-th in a row, where `threshold` of them open its
    /// circuit breaker: then the strain is full.
    pub fn failed(&self, outlet: Outlet, failures: u32, threshold: u32) {
        let share = f64::from(failures) / f64::from(threshold.max(1));
        self.put(outlet.strains().1, share, Some(self.0.clock.now()));
    }

    fn put(&self, strain: Strain, value: f64, reported: Option<Instant>) {
        let value = if value.is_nan() { 1.0 } else { value.clamp(0.0, 1.0) };
        let mut readings = self.0.readings.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reading) = readings.get_mut(strain as usize) {
            *reading = Reading { value, reported };
        }
    }

    /// One input.
    pub fn of(&self, strain: Strain) -> f64 {
        let readings = self.0.readings.lock().unwrap_or_else(PoisonError::into_inner);
        readings.get(strain as usize).map_or(0.0, |reading| reading.at(self.0.clock.now()))
    }

    /// The largest input.
    pub fn value(&self) -> f64 {
        self.largest(&STRAINS)
    }

    /// The largest of what slows the pace: what goes out goes out badly.
    pub fn outflow(&self) -> f64 {
        self.largest(&[
            Strain::Chain,
            Strain::StoreLatency,
            Strain::StoreFailures,
            Strain::AnnounceLatency,
            Strain::AnnounceFailures,
        ])
    }

    fn largest(&self, strains: &[Strain]) -> f64 {
        strains.iter().map(|strain| self.of(*strain)).fold(0.0, f64::max)
    }
}

impl Default for Pressure {
    /// On the system's clock.
    fn default() -> Pressure {
        Pressure::new(Clock::system())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn leases_come_back_and_wake_who_waits() {
        let budget = Budget::new(10);
        let first = budget.try_lease(8).unwrap();
        assert!(budget.try_lease(3).is_none());
        let waiting = budget.clone();
        let second = async move { waiting.lease(3).await.bytes() };
        let (second, ()) = tokio::join!(second, async move { drop(first) });
        assert_eq!((second, budget.used()), (3, 0));
    }

    #[test]
    fn what_is_larger_than_the_budget_goes_alone() {
        let budget = Budget::new(10);
        let large = budget.try_lease(100).unwrap();
        assert!(budget.try_lease(1).is_none());
        drop(large);
        assert!(budget.try_lease(1).is_some());
    }

    #[test]
    fn pressure_is_the_largest_strain() {
        let pressure = Pressure::default();
        pressure.set(Strain::Pending, 0.3);
        pressure.set(Strain::Log, 7.0);
        assert_eq!(pressure.value(), 1.0);
        pressure.set(Strain::Log, 0.1);
        assert_eq!(pressure.value(), 0.3);
    }
    #[test]
    fn reports_count_smoothly_end_with_a_success_and_fade_when_nobody_reports() {
        let clock = Clock::manual(0);
        let pressure = Pressure::new(clock.clone());
        let limit = Duration::from_secs(30);
        pressure.succeeded(Outlet::Store, Duration::from_millis(30), limit);
        assert!(pressure.value() < 0.01, "{}", pressure.value());
        pressure.succeeded(Outlet::Store, Duration::from_secs(20), limit);
        assert!(pressure.value() < 0.35, "one slow upload: {}", pressure.value());
        for _ in 0..6 {
            pressure.succeeded(Outlet::Store, Duration::from_secs(15), limit);
        }
        assert!(pressure.outflow() > 0.8, "they stay slow: {}", pressure.outflow());
        for _ in 0..12 {
            pressure.succeeded(Outlet::Store, Duration::ZERO, limit);
        }
        assert!(pressure.value() < 0.05, "quick again: {}", pressure.value());

        for failures in 1..=8 {
            pressure.failed(Outlet::Announce, failures, 10);
        }
        assert_eq!(pressure.of(Strain::AnnounceFailures), 0.8);
        pressure.failed(Outlet::Announce, 30, 10);
        assert_eq!(pressure.value(), 1.0);
        clock.advance(HOLD);
        assert_eq!(pressure.value(), 1.0, "the next attempt may be that far off");
        clock.advance(HALF_LIFE);
        assert_eq!(pressure.value(), 0.5);
        clock.advance(HALF_LIFE * 10);
        assert_eq!(pressure.value(), 0.0);
        pressure.failed(Outlet::Announce, 10, 10);
        pressure.succeeded(Outlet::Announce, Duration::ZERO, limit);
        assert_eq!(pressure.value(), 0.0, "a success ends it at once");
    }

    #[test]
    fn levels_stand_until_they_are_set_again_and_what_comes_in_does_not_slow_what_goes_out() {
        let clock = Clock::manual(0);
        let pressure = Pressure::new(clock.clone());
        for strain in [Strain::Pending, Strain::Memory, Strain::Log, Strain::Disk] {
            pressure.set(strain, f64::NAN);
        }
        clock.advance(HOLD * 100);
        assert_eq!((pressure.value(), pressure.outflow()), (1.0, 0.0));
        pressure.set(Strain::Chain, 0.9);
        assert_eq!(pressure.outflow(), 0.9);
    }

    #[test]
    fn every_strain_has_a_reading_of_its_own() {
        for (index, strain) in STRAINS.iter().enumerate() {
            assert_eq!(*strain as usize, index);
        }
    }
}
