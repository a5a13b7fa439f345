//! Turns: how many versions made of batches may be on their way to the announcer.
//!
//! A transaction takes its time whatever it announces. While announcing is the slowest stage, a long line in front of it
//! would only make every version late; in a short one the next batch goes on growing, so that versions become larger
//! instead.
//!
//! Owns: the length of that line. Does not own: how large a batch becomes (`batch`, which takes a turn with each), when
//! one is given back (`announce`, once the version's transaction is at its commit).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::format::succession::MAX_RUN;

/// A chain so long lets versions come as fast as they can be announced.
const CALM: usize = 256;

/// A place in the line, until it is dropped.
pub type Turn = OwnedSemaphorePermit;

/// The line.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Semaphore>);

impl Turns {
    /// As many as are uploaded at a time, and no fewer than one transaction announces: what is beyond could only wait.
    ///
    /// `at_once`: batches do not wait to fill, so the line alone says how large they become, and it has one place: built
    /// and stored while the transaction before commits, a version is there just when the announcer is free. With more,
    /// each transaction would announce several small ones, and the chain that readers apply grow as much faster.
    pub fn new(uploads: usize, at_once: bool) -> Turns {
        Turns(Arc::new(Semaphore::new(if at_once { 1 } else { uploads.max(MAX_RUN) })))
    }

    /// A place, once there is one. Loses nothing if it is dropped while it waits.
    pub async fn take(&self) -> Option<Turn> {
        // An error would say that the semaphore was closed, which nobody does.
        self.0.clone().acquire_owned().await.ok()
    }
}

/// How long after a version the next one may be begun, for the sake of the chain: from `CALM` deltas on 5 ms, twice as
/// long for each 64 more. Else a dataset of small, quick versions would stand still whenever a snapshot of it takes longer
/// than the chain can grow; so versions become fewer and larger for as long as that takes.
pub fn breath(deltas: usize) -> Duration {
    deltas.checked_sub(CALM).map_or(Duration::ZERO, |over| Duration::from_millis(5 << (over / 64).min(8)))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn the_line_is_as_long_as_a_run_or_as_one_version() {
        for (turns, places) in
            [(Turns::new(1, false), MAX_RUN), (Turns::new(9, false), 9), (Turns::new(9, true), 1)]
        {
            let mut taken = Vec::new();
            for _ in 0..places {
                taken.push(turns.take().await.unwrap());
            }
            // Given up while it waits, as a `select!` does.
            assert!(turns.take().now_or_never().is_none());
            taken.pop();
            assert!(turns.take().now_or_never().is_some());
        }
    }

    #[test]
    fn a_chain_leaves_a_snapshot_seconds_to_be_made() {
        assert_eq!((breath(0), breath(CALM - 1)), (Duration::ZERO, Duration::ZERO));
        // A snapshot is due at 384 at the latest; from 500 on nothing is built.
        let left: Duration = (384..500).map(breath).sum();
        assert!(left > Duration::from_secs(3), "{left:?}");
        assert!((0..512).all(|deltas| breath(deltas) <= breath(deltas + 1)));
        assert!(breath(512) < Duration::from_millis(100), "and is no standstill itself");
    }
}
