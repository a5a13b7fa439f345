//! Reading on and on: how long nothing has come, and when to look whether to stop.
//!
//! Neither is asked for each record: the clock and the token would cost as much as reading does.
//!
//! Owns: counting. Does not own: what is read, and what follows.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// Longest time without any progress.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Records after which it is asked whether to stop. Of 1 MB each over a thin line, a tenth of a second apart, so many take less
/// than a second.
const RECORDS: u32 = 8;

/// What is known of a reading.
#[derive(Debug, Default)]
pub struct Idle {
    /// Records since it was asked whether to stop, up to [`RECORDS`].
    records: u32,
    /// When it was seen first that nothing comes.
    since: Option<Instant>,
}

impl Idle {
    /// A record came, or the word that there are no more.
    pub fn came(&mut self) {
        self.since = None;
    }

    /// Nothing came. Whether that has been so for too long.
    pub fn is_over(&mut self, clock: &Clock) -> bool {
        let now = clock.now();
        now.saturating_duration_since(*self.since.get_or_insert(now)) > PATIENCE
    }

    /// Whether to stop, asked before each record: of a row of them now and then, and each time that nothing came.
    pub fn is_stopped(&mut self, stop: &CancellationToken) -> bool {
        let asked = self.records == 0 || self.since.is_some();
        self.records = (self.records + 1) % RECORDS;
        asked && stop.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_comes_is_progress() {
        let (clock, mut idle) = (Clock::manual(0), Idle::default());
        for _ in 0..3 {
            assert!(!idle.is_over(&clock), "nothing has just begun to come");
            clock.advance(PATIENCE);
            assert!(!idle.is_over(&clock));
            idle.came();
            clock.advance(PATIENCE * 2);
        }
        assert!(!idle.is_over(&clock));
        clock.advance(PATIENCE + Duration::from_millis(1));
        assert!(idle.is_over(&clock));
    }

    #[test]
    fn a_stop_is_seen_soon_and_at_once_where_nothing_comes() {
        let (clock, stop, mut idle) = (Clock::manual(0), CancellationToken::new(), Idle::default());
        assert!(!idle.is_stopped(&stop));
        stop.cancel();
        let unseen = (0..1_000).take_while(|_| !idle.is_stopped(&stop)).count();
        assert_eq!(unseen as u32, RECORDS - 1);
        assert!(!idle.is_stopped(&stop), "not for each");
        assert!(!idle.is_over(&clock));
        assert!(idle.is_stopped(&stop));
        assert!(Idle::default().is_stopped(&stop), "before the first");
    }
}
