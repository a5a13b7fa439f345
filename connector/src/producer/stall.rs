//! Stalls: a partition that holds more than was read of it, and of which nothing comes although it is being read.
//!
//! Seen once under load, and not again in some 14,000 tries with librdkafka's (2.12) debug log: of two partitions that had been
//! assigned anew one was fetched and the other was not, for half a minute, and nothing was said. Why is not known. The remedy is to
//! assign it once again, from where it stands, which loses nothing;
//! without one it would stand until the next rebalance.
//!
//! Owns: when that is to be done. Does not own: where partitions end (`survey`), assigning (`source`).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Looks at which a partition stood still before its end, one after the other, that make a stall: longer than a survey and
/// some fetches take.
const LOOKS: u32 = 15;
/// Not known, now: the broker did not say.
const UNKNOWN: i64 = -1;

/// Where the partitions of a life end, by its last survey: last stable offsets, in the order of the life's positions.
#[derive(Clone, Debug)]
pub struct KnownEnds(Arc<[AtomicI64]>);

impl KnownEnds {
    /// Nothing is known of `partitions` partitions.
    pub fn new(partitions: usize) -> KnownEnds {
        KnownEnds((0..partitions).map(|_| AtomicI64::new(UNKNOWN)).collect())
    }

    /// A partition's last stable offset; `None` where it could not be asked for.
    pub fn set(&self, slot: usize, end: Option<i64>) {
        if let Some(known) = self.0.get(slot) {
            known.store(end.unwrap_or(UNKNOWN), Ordering::Relaxed);
        }
    }

    fn is_beyond(&self, slot: usize, next: i64) -> bool {
        self.0.get(slot).is_some_and(|end| end.load(Ordering::Relaxed) > next)
    }
}

/// How long each partition has stood still before its end.
#[derive(Debug)]
pub struct Stalls {
    ends: KnownEnds,
    looked: Instant,
    /// The position at the last look, and at how many looks it was the same.
    stands: Vec<(i64, u32)>,
}

impl Stalls {
    /// Begins to look at `now`, at as many partitions as `ends` knows.
    pub fn new(ends: KnownEnds, now: Instant) -> Stalls {
        let stands = ends.0.iter().map(|_| (UNKNOWN, 0)).collect();
        Stalls { ends, looked: now, stands }
    }

    /// Looks, at most once a second: `next` are the partitions' positions, `None` where nothing is to come (paused, held). The
    /// slots that stall; each is told again after as long.
    pub fn look(&mut self, now: Instant, next: impl Iterator<Item = Option<i64>>) -> Vec<usize> {
        // Nearly all calls end here.
        if now.saturating_duration_since(self.looked) < EVERY {
            return Vec::new();
        }
        self.looked = now;
        let mut stalled = Vec::new();
        for (slot, (stand, next)) in self.stands.iter_mut().zip(next).enumerate() {
            let stood = next.is_some_and(|next| next == stand.0 && self.ends.is_beyond(slot, next));
            *stand = (next.unwrap_or(UNKNOWN), if stood { stand.1 + 1 } else { 0 });
            if stand.1 == LOOKS {
                stand.1 = 0;
                stalled.push(slot);
            }
        }
        stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    struct Looking {
        clock: Clock,
        ends: KnownEnds,
        stalls: Stalls,
    }

    impl Looking {
        fn new(ends: [i64; 2]) -> Looking {
            let (clock, known) = (Clock::manual(0), KnownEnds::new(2));
            ends.iter().enumerate().for_each(|(slot, end)| known.set(slot, Some(*end)));
            Looking { stalls: Stalls::new(known.clone(), clock.now()), clock, ends: known }
        }

        /// The seconds, of those to come, in which something was told, and what.
        fn seconds(
            &mut self,
            count: u32,
            mut at: impl FnMut(u32) -> [Option<i64>; 2],
        ) -> Vec<(u32, Vec<usize>)> {
            let mut told = Vec::new();
            for second in 1..=count {
                self.clock.advance(EVERY);
                let slots = self.stalls.look(self.clock.now(), at(second).into_iter());
                if !slots.is_empty() {
                    told.push((second, slots));
                }
            }
            told
        }
    }

    #[test]
    fn a_partition_that_stands_before_its_end_stalls_and_its_neighbour_does_not() {
        let mut looking = Looking::new([10, 10]);
        // The first look learns where it stands.
        assert_eq!(looking.seconds(40, |_| [Some(10), Some(3)]), [(16, vec![1]), (31, vec![1])]);
    }

    #[test]
    fn what_moves_is_paused_or_ends_is_no_stall() {
        let mut looking = Looking::new([1_000, 1_000]);
        assert_eq!(looking.seconds(100, |second| [Some(i64::from(second) / 10), None]), []);
        let pauses = |second: u32| [(!second.is_multiple_of(15)).then_some(3), Some(1_000)];
        assert_eq!(looking.seconds(100, pauses), []);
    }

    #[test]
    fn where_the_end_is_not_known_nothing_is_told() {
        let mut looking = Looking::new([1_000, 1_000]);
        looking.ends.set(0, None);
        looking.ends.set(1, None);
        assert_eq!(looking.seconds(100, |_| [Some(3), Some(3)]), []);
    }

    #[test]
    fn a_look_that_comes_late_counts_once() {
        let mut looking = Looking::new([1_000, 1_000]);
        for _ in 0..15 {
            looking.clock.advance(EVERY * 60);
            assert_eq!(looking.stalls.look(looking.clock.now(), [Some(3), None].into_iter()), [0; 0]);
        }
    }
}
