//! What is said of something that happens again and again: the first time, then at each doubling of its number.
//!
//! So an outage of an hour, or a million records that do not fit, are a handful of lines, each with how often by then.
//!
//! Owns: whether it is said this time. Does not own: saying it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// After so much quiet a kind counts from one again.
const QUIET: Duration = Duration::from_secs(60);
/// Kinds that are counted apart; more are counted together.
const KINDS: usize = 64;

/// Whether something that has now happened so many times is said.
pub fn is_said(times: u64) -> bool {
    times.is_power_of_two()
}

/// Counts one thing, for as long as there is a clone. Cheap to clone; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<AtomicU64>);

impl Tally {
    /// It has happened: how often by now, where that is to be said.
    pub fn again(&self) -> Option<u64> {
        let times = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        is_said(times).then_some(times)
    }
}

/// Counts things by kind, each anew after a quiet time. Pure: the caller brings the time.
#[derive(Debug, Default)]
pub struct Repeats(BTreeMap<String, (u64, Instant)>);

impl Repeats {
    /// Something of this kind has happened: how often by now, where that is to be said.
    pub fn again(&mut self, kind: &str, now: Instant) -> Option<u64> {
        let is_new = |kinds: &BTreeMap<_, _>| kinds.len() >= KINDS && !kinds.contains_key(kind);
        if is_new(&self.0) {
            self.0.retain(|_, (_, last)| now.saturating_duration_since(*last) < QUIET);
        }
        let kind = if is_new(&self.0) { "" } else { kind };
        let (times, last) = self.0.entry(kind.to_owned()).or_insert((0, now));
        if now.saturating_duration_since(*last) >= QUIET {
            *times = 0;
        }
        *times += 1;
        *last = now;
        is_said(*times).then_some(*times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_kind_is_said_at_doublings_of_its_number_and_anew_after_quiet() {
        let clock = Clock::manual(0);
        let mut repeats = Repeats::default();
        let said: Vec<u64> = (0..100).filter_map(|_| repeats.again("tail MAXPOLL", clock.now())).collect();
        assert_eq!(said, [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(repeats.again("source MAXPOLL", clock.now()), Some(1), "another kind");
        clock.advance(QUIET);
        assert_eq!(repeats.again("tail MAXPOLL", clock.now()), Some(1));
        for kind in 0..1_000 {
            repeats.again(&kind.to_string(), clock.now());
        }
        assert!(repeats.0.len() <= KINDS + 1, "{}", repeats.0.len());
    }

    #[test]
    fn clones_of_a_tally_count_together() {
        let tally = Tally::default();
        let (one, two) = (tally.clone(), tally);
        let said = (0..20).filter_map(|n| if n % 2 == 0 { one.again() } else { two.again() });
        assert_eq!(said.collect::<Vec<_>>(), [1, 2, 4, 8, 16]);
    }
}
