//! Time and chance, injected: nothing else in the crate asks for either, so that tests decide both.
//!
//! Owns: [`Clock`], [`Entropy`]. Does not own: waiting (tokio's timers, which tests pause).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::failpoint;

/// Wall clock and monotonic clock.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Kind>);

#[derive(Debug)]
enum Kind {
    System,
    Manual { start: Instant, elapsed_ms: AtomicI64, wall_ms: AtomicI64, step_ms: i64 },
}

impl Clock {
    /// The system's clocks.
    pub fn system() -> Clock {
        Clock(Arc::new(Kind::System))
    }

    /// A clock that stands still at `wall_ms` until [`Clock::advance`] moves it.
    pub fn manual(wall_ms: i64) -> Clock {
        Clock::ticking(wall_ms, Duration::ZERO)
    }

    /// The same, and whoever asks for monotonic time moves it on by a `step` of whole milliseconds: time passes with what is done,
    /// not with how fast.
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the system for the time")]
    pub fn ticking(wall_ms: i64, step: Duration) -> Clock {
        Clock(Arc::new(Kind::Manual {
            start: Instant::now(),
            elapsed_ms: AtomicI64::new(0),
            wall_ms: AtomicI64::new(wall_ms),
            step_ms: step.as_millis() as i64,
        }))
    }

    /// Monotonic time, for durations.
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the system for the time")]
    pub fn now(&self) -> Instant {
        match &*self.0 {
            Kind::System => Instant::now(),
            Kind::Manual { start, elapsed_ms, step_ms, .. } => {
                let elapsed = elapsed_ms.fetch_add(*step_ms, Ordering::Relaxed);
                *start + Duration::from_millis(elapsed.unsigned_abs())
            }
        }
    }

    /// Wall time, milliseconds since the Unix epoch. May jump; never used to measure a duration within a process.
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the system for the time")]
    pub fn wall_ms(&self) -> i64 {
        match &*self.0 {
            Kind::System => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH);
                since.map_or(0, |since| since.as_millis() as i64) + failpoint::skew_ms()
            }
            Kind::Manual { wall_ms, .. } => wall_ms.load(Ordering::Relaxed),
        }
    }

    /// Moves a manual clock on. Does nothing to the system's.
    pub fn advance(&self, by: Duration) {
        if let Kind::Manual { elapsed_ms, wall_ms, .. } = &*self.0 {
            elapsed_ms.fetch_add(by.as_millis() as i64, Ordering::Relaxed);
            wall_ms.fetch_add(by.as_millis() as i64, Ordering::Relaxed);
        }
    }
}

/// Random numbers, from the system or from a seed.
#[derive(Clone, Debug)]
pub struct Entropy(Arc<AtomicU64>);

impl Entropy {
    /// Seeded by the system.
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the system for chance")]
    pub fn system() -> Entropy {
        Entropy::seeded(Uuid::new_v4().as_u64_pair().0)
    }

    /// The same seed gives the same sequence.
    pub fn seeded(seed: u64) -> Entropy {
        Entropy(Arc::new(AtomicU64::new(seed)))
    }

    /// The next 64 random bits: SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>).
    pub fn next_u64(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `[0, 1)`.
    pub fn unit(&self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A random (version 4) UUID.
    pub fn uuid(&self) -> Uuid {
        let bits = (u128::from(self.next_u64()) << 64) | u128::from(self.next_u64());
        uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid()
    }
}

/// Milliseconds since the Unix epoch as RFC 3339, in UTC.
pub fn rfc3339(ms: i64) -> String {
    let ms = u64::try_from(ms).unwrap_or(0);
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = Clock::manual(1_000);
        let before = clock.now();
        clock.advance(Duration::from_millis(250));
        assert_eq!(clock.wall_ms(), 1_250);
        assert_eq!(clock.now() - before, Duration::from_millis(250));
        let ticking = Clock::ticking(0, Duration::from_millis(30));
        let before = ticking.now();
        assert_eq!([ticking.now() - before, ticking.now() - before].map(|since| since.as_millis()), [30, 60]);
    }

    #[test]
    fn a_seed_repeats() {
        let (a, b) = (Entropy::seeded(7), Entropy::seeded(7));
        assert_eq!((a.next_u64(), a.uuid()), (b.next_u64(), b.uuid()));
        assert!((0.0..1.0).contains(&a.unit()));
    }
}
