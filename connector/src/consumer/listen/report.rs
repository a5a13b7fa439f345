//! How a listener is doing, for health; and the operator's word to one that is held.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::IntGauge;
use serde::Serialize;
use tokio::sync::watch;

use crate::retry::Circuit;
use crate::telemetry::ConsumerMetrics;
use crate::version::Version;

/// Written by the runner, read by health. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Report(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    /// Held to read or write it.
    told: Mutex<Told>,
    /// Shows [`Told::held`]. Set with `told` locked.
    held: IntGauge,
    /// Whether sets may be given up, however many were. Set with `told` locked.
    through: watch::Sender<bool>,
}

/// How a listener is doing at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// The version that it has handled; 0: none yet.
    pub version: Version,
    /// The breaker before what it needs.
    pub circuit: Circuit,
    /// Why the next set is not handled, until it is.
    pub error: Option<String>,
    /// Too many sets were given up: the next one is tried until it is handled, and nothing becomes a letter.
    pub held: bool,
    /// Changes that became dead letters since the start.
    pub letters: u64,
}

impl Report {
    /// Of a listener that has done nothing yet.
    pub fn new(name: &str, metrics: &ConsumerMetrics) -> Report {
        let told = Told {
            name: name.to_owned(),
            version: Version(0),
            circuit: Circuit::Closed,
            error: None,
            held: false,
            letters: 0,
        };
        let (told, through) = (Mutex::new(told), watch::Sender::new(false));
        // Shown as soon as there is the listener: a series that begins with the hold is one that no alert waits for.
        let held = metrics.listener_held.with(&[name]);
        // Of one that was held in this process before nothing stands.
        held.set(0);
        Report(Arc::new(Inner { name: name.to_owned(), told, held, through }))
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The listener's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How it is doing.
    pub fn told(&self) -> Told {
        self.lock().clone()
    }

    pub(super) fn tell<T>(&self, change: impl FnOnce(&mut Told) -> T) -> T {
        let mut told = self.lock();
        let made = change(&mut told);
        self.0.held.set(told.held.into());
        made
    }

    /// What it is held for; `None`: it is not.
    pub fn held_for(&self) -> Option<String> {
        let told = self.lock();
        told.held.then(|| told.error.clone().unwrap_or_default())
    }

    /// Ends a hold: sets may be given up, and become letters, until the listener has handled as many again, or the process
    /// ends. What it was held for; `None`: it was not.
    pub fn let_through(&self) -> Option<String> {
        self.tell(|told| {
            if !std::mem::take(&mut told.held) {
                return None;
            }
            self.0.through.send_replace(true);
            tracing::warn!(
                listener = self.0.name,
                "an operator lets changes become letters that it does not handle"
            );
            Some(told.error.clone().unwrap_or_default())
        })
    }

    /// Holds it, and says why. False: an operator lets sets through.
    pub(super) fn hold(&self, said: String) -> bool {
        self.tell(|told| {
            told.held = !*self.0.through.borrow();
            if told.held {
                told.error = Some(said);
            }
            told.held
        })
    }

    /// Waits until an operator lets sets through.
    pub(super) async fn until_let_through(&self) {
        // The sender lives as long as this does.
        let _ = self.0.through.subscribe().wait_for(|through| *through).await;
    }

    /// No more are let through.
    pub(super) fn guard_again(&self) {
        self.0.through.send_if_modified(std::mem::take);
    }
}
