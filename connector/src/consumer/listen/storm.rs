//! The storm guard of a listener: where one set after the other is given up, something else is wrong than the sets, and a
//! dataset must not be drained into its dead letters.
//!
//! ```text
//!   calm --breaker_threshold sets more were given up than handled--> held: the next that fails is tried on, and is no letter
//!    ^                                                                |
//!    +-- it is handled after all -------------------------------------+
//!    +-- the operator lets sets through: until as many were handled --'
//! ```
//!
//! Each set that is given up counts one up, each that is handled one down, not below 0. So no more are given up than were
//! handled, and `breaker_threshold`: a poisoned set here and there holds nobody up, and a receiver that refuses all gets no
//! further. Why each failed is not asked: a listener that handles less than half of what it is told is of no use for
//! whatever reason. A new process counts anew.
//!
//! Owns: the counting, and what is said. Does not own: trying, letters (`run`), the operator's word (`report`).

/// Counts the sets of one listener.
#[derive(Debug)]
pub(super) struct Storm {
    most: u32,
    /// Sets that were given up, less those that were handled since.
    ahead: u32,
}

impl Storm {
    /// A calm one, that allows so many.
    pub(super) fn new(most: u32) -> Storm {
        Storm { most: most.max(1), ahead: 0 }
    }

    /// A set was given up.
    pub(super) fn gave_up(&mut self) {
        // No further where an operator lets them through, so that it takes no longer to be calm again.
        self.ahead = self.most.min(self.ahead + 1);
    }

    /// A set was handled. True: by now as many as were given up.
    pub(super) fn handled(&mut self) -> bool {
        self.ahead = self.ahead.saturating_sub(1);
        self.ahead == 0
    }

    /// No more is to be given up.
    pub(super) fn rages(&self) -> bool {
        self.ahead >= self.most
    }

    /// What the listener is held for, and what to do about it.
    pub(super) fn said(&self, listener: &str, why: &str) -> String {
        let most = self.most;
        format!(
            "held, since {most} sets of changes more were given up than handled (circuit_breaker_threshold), and then it is \
             not the changes that are wrong. Those are dead letters; no more become any, and the next set is tried until \
             it is handled. Look at what it is sent to; to let such changes become letters, POST to \
             /admin/datasets/NAME/storm?listener={listener}. It fails with: {why}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_given_up_than_was_handled_and_the_limit() {
        let mut storm = Storm::new(3);
        let (mut given_up, mut handled) = (0, 0);
        // Good ones count for nothing in advance.
        for _ in 0..100 {
            storm.handled();
        }
        for _ in 0..50 {
            while !storm.rages() {
                storm.gave_up();
                given_up += 1;
            }
            assert!(given_up == handled + 3, "{given_up} and {handled}");
            storm.handled();
            handled += 1;
        }
    }

    #[test]
    fn less_than_half_is_never_too_many() {
        let mut storm = Storm::new(2);
        for _ in 0..1_000 {
            assert!(!storm.rages());
            storm.gave_up();
            assert!(storm.handled());
        }
    }

    #[test]
    fn what_was_let_through_takes_no_longer_to_be_calm_again() {
        let mut storm = Storm::new(2);
        (0..1_000).for_each(|_| storm.gave_up());
        assert_eq!((storm.rages(), storm.handled(), storm.handled()), (true, false, true));
        assert!(!storm.rages());
    }
}
