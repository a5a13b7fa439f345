//! Pacing: how many records and bytes a second go from the log to the batcher.
//!
//! Owns: two `governor` buckets. Does not own: what happens to records that wait (they stay in the log), or the
//! pressure gauge.

use std::num::NonZeroU32;

use governor::clock::DefaultClock;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::Pacing;

type Bucket = RateLimiter<NotKeyed, InMemoryState, DefaultClock>;

/// Bytes are counted in kibibytes: a bucket's cell count is a `u32`, which bytes a second would overflow at 4 GiB/s.
const BYTES_PER_CELL: u64 = 1024;

/// Lets records through at a fixed rate; without limits it costs nothing.
pub struct Pace {
    records: Option<(Bucket, u32)>,
    kibibytes: Option<(Bucket, u32)>,
}

impl Pace {
    /// Buckets that hold a tenth of a second's worth, so that a burst after a pause is no larger than that.
    pub fn new(pacing: &Pacing) -> Pace {
        let kibibytes = pacing.max_bytes_per_second.div_ceil(BYTES_PER_CELL).min(u64::from(u32::MAX));
        Pace { records: bucket(pacing.max_records_per_second), kibibytes: bucket(kibibytes as u32) }
    }

    /// Most records to take before waiting again: asking for more would exceed what a bucket can hold at a time.
    pub fn step(&self) -> usize {
        self.records.as_ref().map_or(usize::MAX, |(_, burst)| *burst as usize)
    }

    /// Most bytes to take before waiting again, so that a wait is never longer than a bucket's time.
    pub fn byte_step(&self) -> u64 {
        self.kibibytes.as_ref().map_or(u64::MAX, |(_, burst)| u64::from(*burst) * BYTES_PER_CELL)
    }

    /// Waits until `records` of `bytes` together may go on. What exceeds a bucket's size is taken in pieces.
    pub async fn admit(&self, records: usize, bytes: u64) {
        if let Some((bucket, burst)) = &self.records {
            take(bucket, *burst, records as u64).await;
        }
        if let Some((bucket, burst)) = &self.kibibytes {
            take(bucket, *burst, bytes.div_ceil(BYTES_PER_CELL)).await;
        }
    }
}

fn bucket(per_second: u32) -> Option<(Bucket, u32)> {
    let rate = NonZeroU32::new(per_second)?;
    let burst = NonZeroU32::new(per_second / 10).unwrap_or(NonZeroU32::MIN);
    Some((RateLimiter::direct(Quota::per_second(rate).allow_burst(burst)), burst.get()))
}

async fn take(bucket: &Bucket, burst: u32, mut cells: u64) {
    while let Some(piece) = NonZeroU32::new(cells.min(u64::from(burst)) as u32) {
        bucket.until_n_ready(piece).await.expect("a piece is never larger than the bucket");
        cells -= u64::from(piece.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn pacing(records: u32, bytes: u64) -> Pacing {
        Pacing { max_records_per_second: records, max_bytes_per_second: bytes, pressure_high: 0.8 }
    }

    #[tokio::test]
    async fn the_rate_holds_for_records_and_for_bytes() {
        let clock = Clock::system();
        for (pace, records, bytes) in
            [(Pace::new(&pacing(1_000, 0)), 300, 0), (Pace::new(&pacing(0, 1 << 20)), 0, 300 << 10)]
        {
            let before = clock.now();
            pace.admit(records, bytes).await;
            // A tenth of a second's worth was in the bucket, the other 0.2 s had to be waited for.
            let took = clock.now() - before;
            assert!(took.as_millis() >= 180, "{took:?}");
        }
    }

    #[tokio::test]
    async fn without_limits_nothing_waits() {
        let pace = Pace::new(&pacing(0, 0));
        pace.admit(usize::MAX >> 1, u64::MAX >> 1).await;
        assert_eq!(pace.step(), usize::MAX);
    }
}
