//! The datasets over HTTP: health, metrics, and records of the version that is readable.
//!
//! ```text
//!  accept (serve.rs) --> route --> records.rs  one record, or a page of them, out of the view of the moment
//!     |                       |--> datasets.rs what there is
//!     |                       |--> vitals.rs   /health /ready /live /metrics
//!     |                       '--> problem.rs  anything else, as application/problem+json
//!     '-- at the stop: no new connections, answers under way are finished
//! ```
//!
//! Owns: routes, their JSON, how requests are read and connections end. Does not own: views (`view`), how a dataset does
//! (`host/health`), which addresses and tokens are configured (`config`).
//!
//! A request for one record takes no lock and copies nothing but the record into its answer: the directory is fixed, the
//! view is found through an atomic slot, and the value is printed straight from the map.

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, Uri};
use axum::routing::get;

use crate::clock::Clock;
use crate::host::Directory;
use crate::telemetry::Metrics;

pub mod problem;
mod datasets;
mod query;
mod records;
mod serve;
mod vitals;

pub use serve::{Listener, MAX_CONNECTIONS};

use problem::Problem;

/// The routes, as a request to an unknown one is told.
const ROUTES: [&str; 8] = [
    "/health",
    "/ready",
    "/live",
    "/metrics",
    "/v1/datasets",
    "/v1/datasets/{name}",
    "/v1/datasets/{name}/records?prefix=&limit=&next=&version=",
    "/v1/datasets/{name}/records/{key}?version=",
];

/// What the routes need. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: Directory,
    metrics: Metrics,
    clock: Clock,
    started_ms: i64,
}

impl App {
    /// Routes over these datasets; `/metrics` shows `metrics`.
    pub fn new(directory: Directory, metrics: Metrics, clock: Clock) -> App {
        let started_ms = clock.wall_ms();
        App(Arc::new(Inner { directory, metrics, clock, started_ms }))
    }

    /// The routes as a service, for [`Listener::serve`], or to be called in place.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/v1/datasets/{name}/records/{*key}", get(records::one))
            // The empty key, which the pattern above does not match.
            .route("/v1/datasets/{name}/records/", get(records::one))
            .route("/v1/datasets/{name}/records", get(records::page))
            .route("/v1/datasets/{name}", get(datasets::one))
            .route("/v1/datasets", get(datasets::all))
            .route("/health", get(vitals::health))
            .route("/ready", get(vitals::ready))
            .route("/live", get(vitals::live))
            .route("/metrics", get(vitals::metrics))
            .fallback(no_such_route)
            .method_not_allowed_fallback(method_not_allowed)
            .with_state(self.clone())
    }
}

async fn no_such_route(uri: Uri) -> Problem {
    Problem::not_found(format!("there is no route {}", uri.path())).with("routes", ROUTES.as_slice())
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    Problem::method_not_allowed(format!("{} does not answer {method}; GET and HEAD it does", uri.path()))
}

#[cfg(test)]
mod tests;
