//! Circuit breakers: whether a dependency is asked at all. One for each, for all lives of a producer: a life that ends
//! takes its experience with it, and the next one would begin by asking again what has just failed ten times.
//!
//! ```text
//!  closed --threshold failures in a row--> open --reset time--> half-open --one call, well--> closed
//!                                           ^------------------ it fails ---+
//! ```
//!
//! A failure is told when the retries are used up. While a breaker is open nobody calls: uploads, or the next takeover,
//! wait before it. Nothing is given up meanwhile; the log and Kafka hold what comes.
//!
//! Owns: the breakers, waiting before them, their metrics. Does not own: the arithmetic (`retry`), the calls (`store`,
//! `announce`, `recover`), what health says of it (`host`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{IntCounter, IntGauge};
use tokio::sync::Notify;

use super::storm::Storm;
use super::validate::Misfits;
use super::{Options, Reliability};
use crate::clock::Clock;
use crate::retry::{Breaker, Circuit};
use crate::telemetry::ProducerMetrics;

/// Longest that a waiter sleeps before it looks again.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What the writing side depends on and asks through a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependency {
    /// Uploads.
    BlobStore,
    /// Takeovers and announcements.
    KafkaTransactions,
    /// Schemas by id.
    Registry,
}

impl Dependency {
    /// As metrics and health spell it.
    pub fn name(self) -> &'static str {
        match self {
            Dependency::BlobStore => "blob_store",
            Dependency::KafkaTransactions => "kafka_transactions",
            Dependency::Registry => "registry",
        }
    }
}

/// One breaker at one moment.
#[derive(Clone, Debug)]
pub struct Report {
    /// Of what.
    pub dependency: Dependency,
    /// Its state.
    pub state: Circuit,
    /// The last failure, until the next success.
    pub error: Option<String>,
}

/// All breakers of a producer. Cheap to clone; clones are the same breakers.
#[derive(Clone, Debug)]
pub struct Circuits {
    /// Uploads.
    pub store: Gate,
    /// Takeovers and announcements.
    pub kafka: Gate,
    /// Schemas by id, where there is a registry.
    pub registry: Option<Gate>,
    /// The breaker before the dead letters: it opens by what fails, and is closed by people.
    pub storm: Storm,
    /// What is said of those letters: one life after the other counts on.
    pub misfits: Misfits,
}

impl Circuits {
    /// All closed.
    pub fn new(reliability: &Reliability, clock: &Clock, metrics: &ProducerMetrics) -> Circuits {
        let gate = |dependency| Gate::new(dependency, reliability, clock.clone(), metrics);
        Circuits {
            store: gate(Dependency::BlobStore),
            kafka: gate(Dependency::KafkaTransactions),
            registry: None,
            storm: Storm::new(reliability),
            misfits: Misfits::default(),
        }
    }

    /// All closed, for these options: with one before the registry where they name one.
    pub fn of(options: &Options) -> Circuits {
        let (reliability, clock, metrics) = (&options.reliability, &options.clock, &options.metrics);
        let registry = options.registry.as_ref();
        let registry = registry.map(|_| Gate::new(Dependency::Registry, reliability, clock.clone(), metrics));
        Circuits { registry, ..Circuits::new(reliability, clock, metrics) }
    }

    /// All of them at this moment.
    pub fn report(&self) -> Vec<Report> {
        [Some(&self.store), Some(&self.kafka), self.registry.as_ref()]
            .into_iter()
            .flatten()
            .map(Gate::report)
            .collect()
    }

    /// What failed when it was last asked, as often as that is tried in a row, and why: what waits for it would wait for a
    /// change that nobody has announced.
    pub fn failing(&self) -> Option<(Dependency, String)> {
        let reports = [self.store.report(), self.kafka.report()];
        reports.into_iter().find_map(|report| Some((report.dependency, report.error?)))
    }

    /// The dependency whose breaker is open, if any, and without which nothing that has begun can be finished: what waits
    /// for it waits longer than anybody should be kept waiting. Records that wait for the registry have not begun.
    pub fn open(&self) -> Option<Dependency> {
        [self.store.report(), self.kafka.report()]
            .into_iter()
            .find(|report| report.state == Circuit::Open)
            .map(|report| report.dependency)
    }
}

/// The breaker before one dependency, with those who wait for it.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dependency: Dependency,
    clock: Clock,
    /// Held for a few instructions, never across an await.
    held: Mutex<Held>,
    /// Told whenever a call has ended, so that who waits looks again.
    changed: Notify,
    state: IntGauge,
    trips: IntCounter,
}

#[derive(Debug)]
struct Held {
    breaker: Breaker,
    error: Option<String>,
}

impl Gate {
    fn new(
        dependency: Dependency,
        reliability: &Reliability,
        clock: Clock,
        metrics: &ProducerMetrics,
    ) -> Gate {
        let breaker = Breaker::new(reliability.circuit_breaker_threshold, reliability.circuit_breaker_reset);
        let name = dependency.name();
        let state = metrics.circuit_state.with(&[name]);
        state.set(Circuit::Closed as i64);
        Gate(Arc::new(Shared {
            dependency,
            clock,
            held: Mutex::new(Held { breaker, error: None }),
            changed: Notify::new(),
            state,
            trips: metrics.circuit_trips_total.with(&[name]),
        }))
    }

    /// Waits until a call may be made. In the half-open state one caller gets through, as the probe; the others wait
    /// for what it tells.
    pub async fn pass(&self) -> Pass {
        loop {
            // Registered before the look: what is told between look and wait still wakes this one.
            let mut changed = std::pin::pin!(self.0.changed.notified());
            changed.as_mut().enable();
            let wait = {
                let mut held = self.lock();
                let now = self.0.clock.now();
                let probe = held.breaker.state(now) != Circuit::Closed;
                if held.breaker.allows(now) {
                    self.show(&held);
                    return Pass { gate: self.clone(), probe, told: false };
                }
                self.show(&held);
                held.breaker.opens_in(now)
            };
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(wait.unwrap_or(LONGEST_WAIT)) => {}
            }
        }
    }

    /// Its state now.
    pub fn state(&self) -> Circuit {
        let held = self.lock();
        self.show(&held);
        held.breaker.state(self.0.clock.now())
    }

    /// How many calls have failed in a row, and how many of them open it.
    pub fn failures(&self) -> (u32, u32) {
        self.lock().breaker.failures()
    }

    /// All of it at this moment.
    pub fn report(&self) -> Report {
        let held = self.lock();
        self.show(&held);
        let state = held.breaker.state(self.0.clock.now());
        Report { dependency: self.0.dependency, state, error: held.error.clone() }
    }

    /// There is reason to think that the dependency is back: the next call is let through as a probe.
    pub fn look_now(&self) {
        let mut held = self.lock();
        held.breaker.look_now(self.0.clock.now());
        self.tell(held);
    }

    /// Tells a success of who did not have to ask: closes the breaker.
    pub fn succeeded(&self) {
        let mut held = self.lock();
        if held.breaker.state(self.0.clock.now()) != Circuit::Closed {
            tracing::info!(dependency = self.0.dependency.name(), "it answers again; the circuit is closed");
        }
        held.breaker.succeeded();
        held.error = None;
        self.tell(held);
    }

    /// Tells that it has answered, by a call that is not the one that failed: what is shown of the failure is over, and it
    /// counts all the same. An open breaker shows why it is until a probe went well.
    pub fn answered(&self) {
        let mut held = self.lock();
        if held.breaker.state(self.0.clock.now()) == Circuit::Closed {
            held.error = None;
        }
    }

    /// Tells a failure of who did not have to ask.
    pub fn failed(&self, error: String) {
        self.fail(error, false);
    }

    fn fail(&self, error: String, probe: bool) {
        let mut held = self.lock();
        let now = self.0.clock.now();
        let trips = held.breaker.trips();
        // What was begun before it opened says nothing about the probe that is under way.
        if probe || held.breaker.state(now) == Circuit::Closed {
            held.breaker.failed(now);
        }
        if held.breaker.trips() > trips {
            self.0.trips.inc_by(held.breaker.trips() - trips);
            tracing::warn!(
                dependency = self.0.dependency.name(),
                error,
                "the circuit is open: it is left alone for circuit_breaker_reset; nothing is lost, versions wait"
            );
        }
        held.error = Some(error);
        self.tell(held);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, held: &Held) {
        self.0.state.set(held.breaker.state(self.0.clock.now()) as i64);
    }

    fn tell(&self, held: std::sync::MutexGuard<'_, Held>) {
        self.show(&held);
        drop(held);
        self.0.changed.notify_waiters();
    }
}

/// Leave for one call. Dropped without a word (its caller was told to end), it says nothing about the dependency, and
/// another may be the probe.
#[derive(Debug)]
#[must_use = "the call's outcome is to be told"]
pub struct Pass {
    gate: Gate,
    probe: bool,
    told: bool,
}

impl Pass {
    /// Whether the dependency was away and this call is to find out whether it is back: one attempt, no retries.
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// The call went well.
    pub fn succeeded(mut self) {
        self.told = true;
        self.gate.succeeded();
    }

    /// The call failed, its retries too.
    pub fn failed(mut self, error: String) {
        self.told = true;
        self.gate.fail(error, self.probe);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.probe && !self.told {
            let mut held = self.gate.lock();
            held.breaker.abandoned();
            self.gate.tell(held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than a busy machine holds a test up between two of its steps.
    const RESET: Duration = Duration::from_secs(3);

    fn circuits(clock: &Clock) -> (Circuits, Arc<ProducerMetrics>) {
        let reliability = Reliability {
            circuit_breaker_threshold: 2,
            circuit_breaker_reset: RESET,
            ..Reliability::default()
        };
        let metrics = ProducerMetrics::detached();
        (Circuits::new(&reliability, clock, &metrics), metrics)
    }

    #[tokio::test]
    async fn who_waits_before_an_open_breaker_goes_on_once_a_probe_went_well() {
        let (Circuits { store, kafka, .. }, metrics) = circuits(&Clock::system());
        for _ in 0..2 {
            store.pass().await.failed("away".into());
        }
        let report = store.report();
        assert_eq!((report.state, report.error.as_deref()), (Circuit::Open, Some("away")));
        assert_eq!(kafka.state(), Circuit::Closed, "each dependency has its own");
        assert_eq!(metrics.circuit_state.with(&["blob_store"]).get(), 2);
        assert_eq!(metrics.circuit_trips_total.with(&["blob_store"]).get(), 1);

        let probe = store.pass().await;
        assert!(probe.is_probe());
        let mut second = std::pin::pin!(store.pass());
        assert!(futures::poll!(&mut second).is_pending(), "one probe at a time");
        probe.failed("still away".into());
        assert!(futures::poll!(&mut second).is_pending(), "open again");
        let probe = second.await;
        assert!(probe.is_probe());
        let mut third = std::pin::pin!(store.pass());
        assert!(futures::poll!(&mut third).is_pending());
        probe.succeeded();
        assert!(!third.await.is_probe());
        assert_eq!(metrics.circuit_trips_total.with(&["blob_store"]).get(), 2);
        assert_eq!((store.state(), store.report().error), (Circuit::Closed, None));
    }

    #[tokio::test]
    async fn a_reason_to_think_that_it_is_back_lets_a_probe_through_at_once() {
        let clock = Clock::manual(0);
        let (Circuits { kafka, .. }, _) = circuits(&clock);
        kafka.look_now();
        assert_eq!(kafka.state(), Circuit::Closed, "nothing to look at");
        kafka.failed("away".into());
        kafka.failed("away".into());
        let mut waiting = std::pin::pin!(kafka.pass());
        assert!(futures::poll!(&mut waiting).is_pending());
        kafka.look_now();
        assert!(waiting.await.is_probe());
    }

    #[tokio::test]
    async fn what_is_answered_ends_what_is_shown_of_a_failure_and_forgets_none() {
        let (circuits, _) = circuits(&Clock::manual(0));
        circuits.kafka.failed("away".into());
        assert!(circuits.failing().is_some());
        circuits.kafka.answered();
        assert_eq!((circuits.failing(), circuits.kafka.failures().0), (None, 1));
        circuits.kafka.failed("away".into());
        assert_eq!(circuits.open(), Some(Dependency::KafkaTransactions), "the second in a row");
        circuits.kafka.answered();
        assert_eq!(circuits.kafka.report().error.as_deref(), Some("away"), "why it is open");
    }

    #[tokio::test]
    async fn a_probe_that_is_cut_off_leaves_the_next_one_to_another() {
        let (Circuits { store, .. }, _) = circuits(&Clock::system());
        store.failed("away".into());
        store.failed("away".into());
        drop(store.pass().await);
        let next = tokio::time::timeout(Duration::from_secs(60), store.pass()).await;
        assert!(next.expect("it is let through").is_probe());
    }

    #[tokio::test]
    async fn what_began_before_it_opened_does_not_speak_for_the_probe() {
        let clock = Clock::manual(0);
        let (Circuits { store, .. }, _) = circuits(&clock);
        let early = store.pass().await;
        store.failed("away".into());
        store.failed("away".into());
        clock.advance(RESET);
        let probe = store.pass().await;
        early.failed("away".into());
        assert_eq!(store.state(), Circuit::HalfOpen);
        probe.succeeded();
        assert_eq!(store.state(), Circuit::Closed);
    }
}
