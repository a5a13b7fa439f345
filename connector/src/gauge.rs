//! How much is under way: byte budgets whose leases travel with the data, and the pressure gauge.
//!
//! Owns: counting what is in memory. Does not own: what is done about it (`producer/source`, `pace`, `batch`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strain {
    /// Records waiting between source and announcement, against `max_pending_records`.
    Pending,
    /// Bytes in memory, against the memory limit.
    Memory,
    /// Bytes in the log, against `max_log_size`.
    Log,
    /// Deltas since the last snapshot, against the longest chain.
    Chain,
}

/// One gauge from 0 (idle) to 1 (full), shared by all stages of a shard.
#[derive(Clone, Debug, Default)]
pub struct Pressure(Arc<[AtomicU64; 4]>);

impl Pressure {
    /// Sets one of its inputs. Not a number counts as full.
    pub fn set(&self, strain: Strain, value: f64) {
        let value = if value.is_nan() { 1.0 } else { value.clamp(0.0, 1.0) };
        if let Some(slot) = self.0.get(strain as usize) {
            slot.store(value.to_bits(), Ordering::Relaxed);
        }
    }

    /// The largest input.
    pub fn value(&self) -> f64 {
        self.0.iter().map(|slot| f64::from_bits(slot.load(Ordering::Relaxed))).fold(0.0, f64::max)
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
}
