//! The datasets over HTTP: health, metrics, and records of the version that is readable.
//!
//! ```text
//!  accept (serve.rs) --> route --> records.rs  one record, some, or a page of them, out of the view of the moment
//!     |                       |--> changes.rs what changes, as server-sent events, for as long as the client likes
//!     |                       |--> writes.rs   a record put or deleted, for who has the token (token.rs)
//!     |                       |--> letters.rs  dead letters listed and replayed; with the token too
//!     |                       |--> storm.rs    whether too much fails, there or at a listener, and that it may; with the token too
//!     |                       |--> pacing.rs   how fast a dataset is written, shown and changed; with the token too
//!     |                       |--> steer.rs    pinned, unpinned, a snapshot asked for; with the token too
//!     |                       |--> datasets.rs what there is
//!     |                       |--> vitals.rs   /health /ready /live /metrics
//!     |                       '--> problem.rs  anything else, as application/problem+json
//!     |                        |--> squeeze.rs   large answers compressed, for who takes that
//!     |                        '--> turns.rs     and a few of them at a time
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
use axum::extract::State;
use axum::http::{HeaderMap, Method, Uri};
use axum::routing::{get, post};
use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::config::values::Secret;
use crate::host::Directory;
use crate::telemetry::Metrics;

pub mod problem;
mod changes;
mod datasets;
mod letters;
mod pacing;
mod query;
mod records;
mod serve;
mod squeeze;
mod storm;
mod steer;
mod token;
mod turns;
mod vitals;
mod writes;

pub use changes::MAX_STREAMS;
pub use serve::{Listener, MAX_CONNECTIONS};

use problem::Problem;
use token::Token;
use turns::Turns;

/// The routes, as a request to an unknown one is told.
const ROUTES: [&str; 10] = [
    "/health",
    "/ready",
    "/live",
    "/metrics",
    "/v1/datasets",
    "/v1/datasets/{name}",
    "/v1/datasets/{name}/records?prefix=&from=&to=&limit=&next=&version=",
    "/v1/datasets/{name}/records?key=&key=&version=",
    "/v1/datasets/{name}/records/{key}?version=",
    "/v1/datasets/{name}/changes?since=",
];

/// The routes that want the token.
const ADMIN_ROUTES: [&str; 8] = [
    "PUT, DELETE /v1/datasets/{name}/records/{key}?topic=&wait=",
    "GET, POST /admin/datasets/{name}/pacing",
    "GET, POST /admin/datasets/{name}/storm?listener=",
    "POST /admin/datasets/{name}/pin",
    "POST /admin/datasets/{name}/unpin",
    "POST /admin/datasets/{name}/snapshot",
    "GET /admin/datasets/{name}/letters?key=&stage=&error=&since=&until=&max=",
    "GET, POST, DELETE /admin/datasets/{name}/replay",
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
    /// Without one the admin routes are off.
    token: Option<Token>,
    /// Room for clients that follow changes.
    streams: Arc<Semaphore>,
    /// Room for large answers.
    turns: Turns,
}

impl App {
    /// Routes over these datasets, to read; `/metrics` shows `metrics`.
    pub fn new(directory: Directory, metrics: Metrics, clock: Clock) -> App {
        App::with_admin(directory, metrics, clock, None)
    }

    /// The same, and with a token the admin routes for who brings it. An empty one is none.
    pub fn with_admin(directory: Directory, metrics: Metrics, clock: Clock, token: Option<&Secret>) -> App {
        let started_ms = clock.wall_ms();
        let (token, streams) = (token.and_then(Token::new), Arc::new(Semaphore::new(MAX_STREAMS)));
        App(Arc::new(Inner { directory, metrics, clock, started_ms, token, streams, turns: Turns::new() }))
    }

    /// Whether a request may use the admin routes.
    fn authorize(&self, headers: &HeaderMap) -> Result<(), Problem> {
        match &self.0.token {
            Some(token) => token.check(headers),
            // There is no such route then; who wires it all the same must not open it.
            None => Err(Problem::forbidden("http.admin_token is not set")),
        }
    }

    /// The routes as a service, for [`Listener::serve`], or to be called in place.
    pub fn router(&self) -> Router {
        let record = || match self.0.token {
            Some(_) => get(records::one).put(writes::put).delete(writes::delete),
            None => get(records::one),
        };
        let admin = match self.0.token {
            Some(_) => Router::new()
                .route("/admin/datasets/{name}/pacing", get(pacing::get).post(pacing::post))
                .route("/admin/datasets/{name}/storm", get(storm::get).post(storm::post))
                .route("/admin/datasets/{name}/pin", post(steer::pin))
                .route("/admin/datasets/{name}/unpin", post(steer::unpin))
                .route("/admin/datasets/{name}/snapshot", post(steer::snapshot))
                .route("/admin/datasets/{name}/letters", get(letters::list))
                .route(
                    "/admin/datasets/{name}/replay",
                    get(letters::report).post(letters::begin).delete(letters::end),
                ),
            None => Router::new(),
        };
        admin
            .route("/v1/datasets/{name}/records/{*key}", record())
            // The empty key, which the pattern above does not match.
            .route("/v1/datasets/{name}/records/", record())
            .route("/v1/datasets/{name}/records", get(records::several))
            .route("/v1/datasets/{name}/changes", get(changes::changes))
            .route("/v1/datasets/{name}", get(datasets::one))
            .route("/v1/datasets", get(datasets::all))
            .route("/health", get(vitals::health))
            .route("/ready", get(vitals::ready))
            .route("/live", get(vitals::live))
            .route("/metrics", get(vitals::metrics))
            .fallback(no_such_route)
            .method_not_allowed_fallback(method_not_allowed)
            .with_state(self.clone())
            .layer(squeeze::layer())
            .layer(axum::middleware::map_response(squeeze::weaken))
    }
}

async fn no_such_route(State(app): State<App>, uri: Uri) -> Problem {
    let admin = app.0.token.as_ref().map_or(&[][..], |_| ADMIN_ROUTES.as_slice());
    let routes: Vec<_> = ROUTES.iter().chain(admin).collect();
    Problem::not_found(format!("there is no route {}", uri.path())).with("routes", routes)
}

async fn method_not_allowed(State(app): State<App>, method: Method, uri: Uri) -> Problem {
    let off = match method {
        Method::PUT | Method::DELETE if app.0.token.is_none() && uri.path().contains("/records/") => {
            "; records are written here only where http.admin_token is set"
        }
        _ => "",
    };
    Problem::method_not_allowed(format!("{} does not answer {method}{off}", uri.path()))
}

#[cfg(test)]
mod tests;
