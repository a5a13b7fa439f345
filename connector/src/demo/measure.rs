//! Durations, counted: a histogram fine enough that a quantile read from it is off by 2 % at most.
//!
//! The metrics have histograms as well, with a few buckets made for alerts; a table that says "p99" needs more.

use std::time::Duration;

/// Buckets within each power of two, as a power of two.
const FINE: u32 = 6;

/// A histogram of durations from a microsecond on.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    /// By bucket; as long as the largest one seen needs.
    counts: Vec<u64>,
    total: u64,
}

impl Latencies {
    /// Counts `times` durations of this length.
    pub fn record(&mut self, took: Duration, times: u64) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = bucket(micros);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += times;
        }
        self.total += times;
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The duration that this share of all did not exceed; `None` if there are none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = (share.clamp(0.0, 1.0) * self.total as f64).ceil().max(1.0) as u64;
        let mut below = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            below += count;
            if below >= rank {
                return Some(Duration::from_micros(highest(bucket)));
            }
        }
        None
    }
}

/// Below 2^FINE each number has its own bucket; above, 2^FINE buckets share each power of two.
fn bucket(micros: u64) -> usize {
    let power = micros.checked_ilog2().unwrap_or(0);
    let shift = power.saturating_sub(FINE);
    ((u64::from(shift) << FINE) + (micros >> shift)) as usize
}

/// The largest number of a bucket.
fn highest(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket >> FINE).saturating_sub(1);
    let first = (bucket - (shift << FINE)) << shift;
    first + (1 << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_without_gaps_and_two_percent_wide() {
        let mut last = 0;
        for micros in (0..4_096).chain((12..40).flat_map(|power| {
            let base = 1u64 << power;
            [base - 1, base, base + 1, base + base / 3]
        })) {
            let bucket = bucket(micros);
            assert!(bucket >= last || micros < 8_192, "{micros}");
            last = last.max(bucket);
            let highest = highest(bucket);
            assert!(
                highest >= micros && (highest - micros) as f64 <= 0.02 * micros as f64,
                "{micros} {highest}"
            );
        }
    }

    #[test]
    fn quantiles_are_those_of_the_numbers() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), None);
        for millis in 1..=1_000 {
            latencies.record(Duration::from_millis(millis), 1);
        }
        for (share, expected) in [(0.0, 1.0), (0.5, 500.0), (0.99, 990.0), (1.0, 1_000.0)] {
            let got = latencies.quantile(share).unwrap().as_secs_f64() * 1_000.0;
            assert!((got / expected - 1.0).abs() < 0.02, "{share}: {got}");
        }
        assert_eq!(latencies.count(), 1_000);
    }
}
