//! Who owns the shard, as data: what the membership, the life and the operator say goes in, what to do next comes out.
//!
//! ```text
//!            Assigned             Recovered            Revoked | Stop          Ended
//!  Standby ----------> Recovering ---------> Running ----------------> Draining -----> Standby | Gone
//!     ^                  |    ^                 |                          ^
//!     |                  |    +--- Ended -------+ (still owned: a new life after a backoff)
//!     +------------------+---------- Revoked | Lost | Stop: the life is killed ---+
//! ```
//!
//! Owns: the order of those steps. Does not own: Kafka's membership (`kafka::Member`), the life's tasks
//! (`producer`), the fence between two lives (`recover`, Kafka's transactions).

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The group gave this member the shard.
    Assigned,
    /// The group wants it back, and waits for the answer.
    Revoked,
    /// The group took it without asking: somebody else may hold it already.
    Lost,
    /// The life that was begun has taken over.
    Recovered,
    /// The life has ended, for whatever reason; all its tasks are joined.
    Ended,
    /// The operator wants the producer to stop.
    Stop,
}

/// Where the shard stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not owned, or owned by nobody here: warm, nothing runs.
    Standby,
    /// A life takes over: fence, epoch record, last announcement, view, log.
    Recovering,
    /// A life writes versions.
    Running,
    /// The life finishes what it can (or was killed) and is waited for.
    Draining,
    /// Left the group; final.
    Gone,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Wait,
    /// Begin a life.
    Begin,
    /// Begin a life after a backoff: the last one failed while the shard was still owned.
    BeginAgain,
    /// Let the life finish: source paused, batch flushed, versions in flight announced.
    Drain,
    /// End the life at once: what it had not announced is left to the next one.
    Kill,
    /// Answer the group's revocation.
    Release,
    /// Answer a revocation if one waits, leave the group, close.
    Leave,
}

/// The state machine.
#[derive(Clone, Debug)]
pub struct Ownership {
    state: State,
    owned: bool,
    revoking: bool,
    stopping: bool,
}

impl Default for Ownership {
    fn default() -> Self {
        Ownership { state: State::Standby, owned: false, revoking: false, stopping: false }
    }
}

impl Ownership {
    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Takes an event, says what to do.
    pub fn on(&mut self, event: Event) -> Action {
        use State::{Draining, Gone, Recovering, Running, Standby};
        match event {
            Event::Assigned => self.owned = true,
            Event::Revoked => {
                self.owned = false;
                self.revoking = true;
            }
            Event::Lost => self.owned = false,
            Event::Stop => self.stopping = true,
            Event::Recovered | Event::Ended => {}
        }
        match (self.state, event) {
            (Gone, _) => Action::Wait,
            (Standby, Event::Assigned) if !self.stopping => {
                self.state = Recovering;
                Action::Begin
            }
            (Standby, Event::Revoked) => {
                self.revoking = false;
                Action::Release
            }
            (Standby, Event::Stop) => {
                self.state = Gone;
                Action::Leave
            }
            (Recovering, Event::Recovered) => {
                self.state = Running;
                Action::Wait
            }
            // Nothing that a drain could save: a life that has not taken over has announced nothing of its own.
            (Recovering, Event::Revoked | Event::Lost | Event::Stop) | (Running, Event::Lost) => {
                self.state = Draining;
                Action::Kill
            }
            (Running, Event::Revoked | Event::Stop) => {
                self.state = Draining;
                Action::Drain
            }
            // Taken away for good while it drains: whoever holds it now fences this life, waiting is in vain.
            (Draining, Event::Lost) => Action::Kill,
            (Recovering | Running | Draining, Event::Ended) => self.ended(),
            _ => Action::Wait,
        }
    }

    fn ended(&mut self) -> Action {
        if self.stopping {
            self.state = State::Gone;
            return Action::Leave;
        }
        if self.owned {
            self.state = State::Recovering;
            return Action::BeginAgain;
        }
        self.state = State::Standby;
        if std::mem::take(&mut self.revoking) { Action::Release } else { Action::Wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(events: &[Event]) -> (State, Vec<Action>) {
        let mut ownership = Ownership::default();
        let actions = events.iter().map(|event| ownership.on(*event)).collect();
        (ownership.state(), actions)
    }

    #[test]
    fn a_life_begins_runs_and_stops_gracefully() {
        let (state, actions) = walk(&[Event::Assigned, Event::Recovered, Event::Stop, Event::Ended]);
        assert_eq!(state, State::Gone);
        assert_eq!(actions, [Action::Begin, Action::Wait, Action::Drain, Action::Leave]);
    }

    #[test]
    fn a_handover_drains_before_it_lets_go() {
        let (state, actions) =
            walk(&[Event::Assigned, Event::Recovered, Event::Revoked, Event::Ended, Event::Assigned]);
        assert_eq!(state, State::Recovering);
        assert_eq!(actions, [Action::Begin, Action::Wait, Action::Drain, Action::Release, Action::Begin]);
    }

    #[test]
    fn a_failed_life_is_followed_by_another_while_the_shard_is_owned() {
        let (state, actions) = walk(&[Event::Assigned, Event::Recovered, Event::Ended, Event::Recovered]);
        assert_eq!((state, actions[2]), (State::Running, Action::BeginAgain));
        let (state, actions) = walk(&[Event::Assigned, Event::Ended]);
        assert_eq!((state, actions[1]), (State::Recovering, Action::BeginAgain));
    }

    #[test]
    fn what_is_lost_is_killed_and_not_begun_again() {
        let (state, actions) = walk(&[Event::Assigned, Event::Recovered, Event::Lost, Event::Ended]);
        assert_eq!(state, State::Standby);
        assert_eq!(actions[2..], [Action::Kill, Action::Wait]);
        let (_, actions) =
            walk(&[Event::Assigned, Event::Recovered, Event::Revoked, Event::Lost, Event::Ended]);
        assert_eq!(actions[2..], [Action::Drain, Action::Kill, Action::Release]);
    }

    #[test]
    fn a_takeover_is_killed_not_drained() {
        for event in [Event::Revoked, Event::Lost, Event::Stop] {
            assert_eq!(walk(&[Event::Assigned, event]).1[1], Action::Kill);
        }
    }

    #[test]
    fn every_path_of_six_events_answers_each_revocation_and_ends_after_a_stop() {
        let all = [Event::Assigned, Event::Revoked, Event::Lost, Event::Recovered, Event::Ended, Event::Stop];
        for path in 0..6usize.pow(6) {
            let mut ownership = Ownership::default();
            let (mut waiting, mut life) = (false, false);
            let mut step = path;
            for _ in 0..6 {
                let event = all[step % 6];
                step /= 6;
                if matches!(event, Event::Recovered | Event::Ended) && !life {
                    continue;
                }
                // The group asks for one revocation at a time, and gives nothing while it waits.
                if waiting && matches!(event, Event::Assigned | Event::Revoked) {
                    continue;
                }
                waiting |= event == Event::Revoked;
                life &= event != Event::Ended;
                match ownership.on(event) {
                    Action::Begin | Action::BeginAgain => {
                        assert!(!life, "two lives at once on path {path}");
                        life = true;
                    }
                    action @ (Action::Release | Action::Leave) => {
                        assert!(!life, "let go with a life running on path {path}");
                        waiting = false;
                        if action == Action::Leave {
                            break; // out of the group, nothing more comes
                        }
                    }
                    Action::Wait | Action::Drain | Action::Kill => {}
                }
            }
            if life {
                let action = ownership.on(Event::Ended);
                assert!(!waiting || matches!(action, Action::Release | Action::Leave), "path {path}");
            } else {
                assert!(!waiting, "a revocation was left unanswered on path {path}");
            }
        }
    }
}
