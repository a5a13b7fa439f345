//! Whether the process lives, is ready, and does well; and its metrics.
//!
//! `/health` is 503 only when somebody must act: an orchestrator that restarts what is merely degraded would, when Kafka
//! is away, take away the last good version too. `/ready` decides whether traffic is sent here. `/live` fails only by not
//! answering.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use super::App;
use crate::host::Status;
use crate::host::directory::rfc3339;
use crate::telemetry::CONTENT_TYPE as PROMETHEUS_TEXT;

/// `GET /health`.
pub(super) async fn health(State(app): State<App>) -> Response {
    let (status, datasets) = app.0.directory.health();
    let code = match status {
        Status::Healthy | Status::Degraded => StatusCode::OK,
        Status::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
    };
    let started = app.0.started_ms;
    let body = json!({
        "status": status,
        "version": env!("CARGO_PKG_VERSION"),
        "started_at": rfc3339(started),
        "uptime_seconds": (app.0.clock.wall_ms() - started).max(0) / 1_000,
        "datasets": datasets,
    });
    (code, Json(body)).into_response()
}

/// `GET /ready`.
pub(super) async fn ready(State(app): State<App>) -> Response {
    let reasons = app.0.directory.not_ready();
    let ready = reasons.is_empty();
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({ "ready": ready, "reasons": reasons }))).into_response()
}

/// The routes of a process that cannot begin yet, since the schema of these datasets is not known.
pub fn waiting(datasets: &str) -> Router {
    let why = format!("the schema of {datasets} is not known yet; all datasets of the process wait for it");
    let (health, ready) = (
        json!({ "status": Status::Degraded, "version": env!("CARGO_PKG_VERSION"), "reason": why, "datasets": [] }),
        json!({ "ready": false, "reasons": [why] }),
    );
    let not_ready = move || async move { (StatusCode::SERVICE_UNAVAILABLE, Json(ready)) };
    Router::new()
        .route("/health", get(move || async move { Json(health) }))
        .route("/live", get(live))
        .fallback(not_ready)
}

/// `GET /live`.
pub(super) async fn live() -> Response {
    Json(json!({ "live": true })).into_response()
}

/// `GET /metrics`.
pub(super) async fn metrics(State(app): State<App>) -> Response {
    ([(CONTENT_TYPE, PROMETHEUS_TEXT)], app.0.metrics.text()).into_response()
}
