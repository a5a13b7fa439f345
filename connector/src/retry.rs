//! Waiting after failures: exponential backoff with jitter, and a circuit breaker.
//!
//! Owns: when to try again. Does not own: the trying, or the clock.

use std::time::{Duration, Instant};

use crate::clock::Entropy;

/// Exponential backoff with full jitter above half: the wait doubles from `first` to `longest`; each is drawn from
/// its upper half, so that many waiters spread out and none comes back at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// A backoff that has seen no failure.
    pub fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { first, longest, failures: 0 }
    }

    /// How long to wait after one more failure.
    pub fn next(&mut self, entropy: &Entropy) -> Duration {
        let whole = self.first.saturating_mul(1u32 << self.failures.min(20)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        whole.mul_f64(0.5 + entropy.unit() / 2.0)
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Forgets the failures, after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// State of a [`Breaker`]. The numbers are what `stillwell_circuit_state` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Circuit {
    /// Calls go through.
    Closed = 0,
    /// One call is let through to see whether the dependency is back.
    HalfOpen = 1,
    /// Calls are refused until the reset time has passed.
    Open = 2,
}

impl Circuit {
    /// As it is spelled in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Circuit::Closed => "closed",
            Circuit::HalfOpen => "half-open",
            Circuit::Open => "open",
        }
    }
}

/// Refuses calls to a dependency that failed `threshold` times in a row, for `reset`; then lets one through.
///
/// Pattern: Nygard, *Release It!*. Pure: the caller brings the time.
#[derive(Clone, Debug)]
pub struct Breaker {
    threshold: u32,
    reset: Duration,
    failures: u32,
    opened: Option<Instant>,
    probing: bool,
    trips: u64,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(threshold: u32, reset: Duration) -> Breaker {
        Breaker { threshold: threshold.max(1), reset, failures: 0, opened: None, probing: false, trips: 0 }
    }

    /// Whether a call may be made at `now`. In the half-open state only one may, until its outcome is told.
    pub fn allows(&mut self, now: Instant) -> bool {
        match self.state(now) {
            Circuit::Closed => true,
            Circuit::Open => false,
            Circuit::HalfOpen => !std::mem::replace(&mut self.probing, true),
        }
    }

    /// Tells a success: closes the breaker.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.opened = None;
        self.probing = false;
    }

    /// Tells a failure: opens the breaker at the threshold, or again after a failed probe.
    pub fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if self.probing || (self.opened.is_none() && self.failures >= self.threshold) {
            self.opened = Some(now);
            self.probing = false;
            self.trips += 1;
        }
    }

    /// Tells that a call which was let through has ended without saying anything about the dependency. If it was the
    /// probe, another call may be one.
    pub fn abandoned(&mut self) {
        self.probing = false;
    }

    /// Ends the time for which an open breaker refuses: a probe may be made at `now`.
    pub fn look_now(&mut self, now: Instant) {
        if self.opened.is_some() {
            // An instant that lies `reset` back may not exist, soon after the machine has started.
            self.opened = now.checked_sub(self.reset).or(self.opened);
        }
    }

    /// How long it stays open from `now` on; `None` where it is not open.
    pub fn opens_in(&self, now: Instant) -> Option<Duration> {
        let left = self.reset.checked_sub(now.saturating_duration_since(self.opened?))?;
        (!left.is_zero()).then_some(left)
    }

    /// Failures in a row, and how many of them open it.
    pub fn failures(&self) -> (u32, u32) {
        (self.failures, self.threshold)
    }

    /// The state at `now`.
    pub fn state(&self, now: Instant) -> Circuit {
        match self.opened {
            None => Circuit::Closed,
            Some(opened) if now.saturating_duration_since(opened) < self.reset => Circuit::Open,
            Some(_) => Circuit::HalfOpen,
        }
    }

    /// How often it opened.
    pub fn trips(&self) -> u64 {
        self.trips
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn backoff_doubles_to_its_longest_and_forgets() {
        let entropy = Entropy::seeded(1);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for whole in [100, 200, 400, 800, 1_000, 1_000] {
            let wait = backoff.next(&entropy);
            assert!(
                wait >= Duration::from_millis(whole / 2) && wait <= Duration::from_millis(whole),
                "{wait:?}"
            );
        }
        backoff.reset();
        assert!(backoff.next(&entropy) <= Duration::from_millis(100));
    }

    /// Those who failed together do not come back together.
    #[test]
    fn waits_after_as_many_failures_differ_over_the_whole_upper_half() {
        let entropy = Entropy::seeded(1);
        let (first, longest) = (Duration::from_millis(500), Duration::from_secs(1));
        for step in 0..3 {
            let waits: BTreeSet<Duration> = (0..100)
                .map(|_| {
                    let mut backoff = Backoff { failures: step, ..Backoff::new(first, longest) };
                    backoff.next(&entropy)
                })
                .collect();
            assert!(waits.len() > 90, "{} waits of a hundred: {waits:?}", waits.len());
            let whole = if step == 0 { first } else { longest };
            let (least, most) = (*waits.first().unwrap(), *waits.last().unwrap());
            assert!(
                least < whole.mul_f64(0.6) && most > whole.mul_f64(0.9),
                "{least:?} to {most:?} of {whole:?}"
            );
        }
    }

    #[test]
    fn a_breaker_opens_lets_one_probe_through_and_closes() {
        let clock = Clock::manual(0);
        let mut breaker = Breaker::new(2, Duration::from_secs(30));
        breaker.failed(clock.now());
        assert!(breaker.allows(clock.now()));
        breaker.failed(clock.now());
        assert_eq!(breaker.state(clock.now()), Circuit::Open);
        assert!(!breaker.allows(clock.now()));
        clock.advance(Duration::from_secs(10));
        assert_eq!(breaker.opens_in(clock.now()), Some(Duration::from_secs(20)));
        clock.advance(Duration::from_secs(20));
        assert_eq!(breaker.opens_in(clock.now()), None);
        assert!(breaker.allows(clock.now()));
        assert!(!breaker.allows(clock.now()), "only one probe");
        breaker.abandoned();
        assert!(breaker.allows(clock.now()), "that one came to nothing");
        breaker.failed(clock.now());
        assert_eq!((breaker.state(clock.now()), breaker.trips()), (Circuit::Open, 2));
        clock.advance(Duration::from_secs(30));
        assert!(breaker.allows(clock.now()));
        breaker.succeeded();
        assert_eq!(breaker.state(clock.now()), Circuit::Closed);
    }
}
