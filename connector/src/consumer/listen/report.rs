//! How a listener is doing, for health.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::retry::Circuit;
use crate::version::Version;

/// Written by the runner, read by health. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Report(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    /// Held to read or write it.
    told: Mutex<Told>,
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
    /// Changes that became dead letters since the start.
    pub letters: u64,
}

impl Report {
    /// Of a listener that has done nothing yet.
    pub fn new(name: &str) -> Report {
        let told = Told {
            name: name.to_owned(),
            version: Version(0),
            circuit: Circuit::Closed,
            error: None,
            letters: 0,
        };
        Report(Arc::new(Inner { name: name.to_owned(), told: Mutex::new(told) }))
    }

    /// The listener's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How it is doing.
    pub fn told(&self) -> Told {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn tell(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.0.told.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
