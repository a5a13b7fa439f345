//! The storm guard: where too large a share of the records fails for one reason, something else is wrong than the records
//! (a new schema, another format, the wrong topic), and a topic must not be drained into its dead letters.
//!
//! ```text
//!   calm --more than misfit_share of misfit_window records fail for one reason--> storm: the source is paused
//!    ^                                                                              |
//!    +-- the operator lets that reason through (until the process ends) ------------+
//! ```
//!
//! Records are counted in windows of `misfit_window`; a reason is over its share as soon as that is sure, before the
//! window is full. What was taken by then becomes letters: two windows' share at the most, and what one poll has brought.
//! Who loses a conflict is known to the builder only: it counts them, and takes no more batches while a storm is of them, however
//! much the log holds; then it is a batch more that became letters.
//! It is a decision for people, so nothing but one of them ends it: an admin route, [`Storm::let_through`], or another
//! configuration. A life that ends takes nothing of it along; a new process counts anew.
//!
//! Owns: the counting and the decision. Does not own: pausing (`intake`, and `build` over conflicts), what is a misfit (`validate`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Reliability;
use crate::codec::{Misfit, Stage};

/// Why records fail: where, and the kind of failure.
type Reason = (Stage, &'static str);

/// The guard of one dataset. Cheap to clone; clones are the same one.
#[derive(Clone, Debug)]
pub struct Storm(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    share: f64,
    window: u32,
    state: Mutex<State>,
    /// Wakes who waits for a storm's end.
    calm: Notify,
}

#[derive(Debug, Default)]
struct State {
    raging: Option<Raging>,
    /// Reasons that an operator has let through.
    through: Vec<Reason>,
}

#[derive(Clone, Debug)]
struct Raging {
    reason: Reason,
    said: String,
}

impl Storm {
    /// A calm one.
    pub fn new(reliability: &Reliability) -> Storm {
        let (share, window) = (reliability.misfit_share, reliability.misfit_window.max(1));
        Storm(Arc::new(Inner { share, window, state: Mutex::default(), calm: Notify::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the source is paused for, and what to do about it.
    pub fn raging(&self) -> Option<String> {
        self.state().raging.as_ref().map(|raging| raging.said.clone())
    }

    /// Whether it rages over what fails at this stage.
    pub fn rages_at(&self, stage: Stage) -> bool {
        self.state().raging.as_ref().is_some_and(|raging| raging.reason.0 == stage)
    }

    /// Waits until it does not.
    pub async fn until_calm_at(&self, stage: Stage) {
        loop {
            let calm = self.0.calm.notified();
            tokio::pin!(calm);
            calm.as_mut().enable();
            if !self.rages_at(stage) {
                return;
            }
            calm.await;
        }
    }

    /// Ends the storm: from now on records may fail for its reason, however many. What it was, if there was one.
    pub fn let_through(&self) -> Option<String> {
        let mut state = self.state();
        let Raging { reason, said } = state.raging.take()?;
        state.through.push(reason);
        self.0.calm.notify_waiters();
        tracing::warn!(stage = %reason.0, class = reason.1, "an operator lets records through that fail for this reason");
        Some(said)
    }

    /// A window of one's own, to count in.
    pub fn window(&self) -> Window {
        Window { storm: self.clone(), seen: 0, failed: Vec::new() }
    }

    /// More than so many failures of a window are too many.
    fn most(&self) -> u32 {
        (f64::from(self.0.window) * self.0.share).floor() as u32
    }
}

/// Counts the records of one source. For one thread: a record that fits costs an addition.
#[derive(Debug)]
pub struct Window {
    storm: Storm,
    seen: u32,
    failed: Vec<(Reason, u32)>,
}

impl Window {
    /// A record fits.
    pub fn fits(&mut self) {
        self.seen += 1;
        if self.seen >= self.storm.0.window {
            self.seen = 0;
            self.failed.clear();
        }
    }

    /// A record does not. True: by this one it has become too many, and no more is to be taken.
    pub fn fails(&mut self, misfit: &Misfit) -> bool {
        let reason = (misfit.stage, misfit.class);
        let count = match self.failed.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => {
                *count += 1;
                *count
            }
            None => {
                self.failed.push((reason, 1));
                1
            }
        };
        let (seen, most) = (self.seen + 1, self.storm.most());
        self.fits();
        if count <= most {
            return false;
        }
        let mut state = self.storm.state();
        if state.raging.is_some() || state.through.contains(&reason) {
            return state.raging.is_some();
        }
        let Misfit { stage, class, message } = misfit;
        let look_at = match stage {
            Stage::Conflict => "what writes one key to several partitions",
            _ => "what writes the source, and at source.format and schema",
        };
        let said = format!(
            "{count} of the last {seen} records fail at {stage} with {class}, the last one because {message}: that is more \
             than misfit_share of misfit_window ({} allows {most}). They are dead letters; no more are taken. Look at \
             {look_at}; to let such records become letters, POST to /admin/datasets/NAME/storm, or raise \
             producer.reliability.misfit_share",
            self.storm.0.window
        );
        tracing::error!(stage = %stage, class, count, seen, "a storm of misfits: {said}");
        state.raging = Some(Raging { reason, said });
        (self.seen, self.failed) = (0, Vec::new());
        true
    }

    /// What the source is paused for.
    pub fn raging(&self) -> Option<String> {
        self.storm.raging()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storm(share: f64, window: u32) -> Storm {
        Storm::new(&Reliability { misfit_share: share, misfit_window: window, ..Reliability::default() })
    }

    fn misfit(class: &'static str) -> Misfit {
        Misfit { stage: Stage::Decode, class, message: "it ends too early".to_owned() }
    }

    #[test]
    fn more_than_the_share_of_one_reason_is_a_storm() {
        let storm = storm(0.5, 100);
        let mut window = storm.window();
        for _ in 0..10 {
            for at in 0..100 {
                // Half of them, for two reasons; then half of them for one.
                let class = if at % 4 == 0 { "a" } else { "b" };
                if at % 2 == 0 { assert!(!window.fails(&misfit(class))) } else { window.fits() }
            }
        }
        assert_eq!(storm.raging(), None);
        let failed: Vec<bool> = (0..51).map(|_| window.fails(&misfit("a"))).collect();
        assert_eq!(failed.iter().position(|failed| *failed), Some(50), "the one that is too many");
        let said = storm.raging().unwrap();
        assert!(said.contains("51 of the last 51") && said.contains("it ends too early"), "{said}");
    }

    #[test]
    fn only_an_operator_ends_it_and_then_for_that_reason_only() {
        let storm = storm(0.1, 10);
        let mut window = storm.window();
        assert!((0..2).any(|_| window.fails(&misfit("a"))));
        (0..1_000).for_each(|_| window.fits());
        assert!(storm.raging().is_some(), "it does not blow over");
        assert!(storm.window().raging().is_some(), "the next life knows");
        assert!(storm.let_through().is_some());
        assert_eq!((storm.raging(), storm.let_through()), (None, None));
        assert!(!(0..100).any(|_| window.fails(&misfit("a"))));
        assert!((0..100).any(|_| window.fails(&misfit("b"))));
    }

    #[test]
    fn all_is_never_too_many() {
        let storm = storm(1.0, 10);
        let mut window = storm.window();
        assert!(!(0..100).any(|_| window.fails(&misfit("a"))));
    }
}
