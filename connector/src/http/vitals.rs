//! Whether the process lives, is ready, and does well; and its metrics.
//!
//! `/health` is 503 only when somebody must act: an orchestrator that restarts what is merely degraded would, when Kafka
//! is away, take away the last good version too. `/ready` decides whether traffic is sent here. `/live` fails only by not
//! answering.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
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

/// `GET /live`.
pub(super) async fn live() -> Response {
    Json(json!({ "live": true })).into_response()
}

/// `GET /metrics`.
pub(super) async fn metrics(State(app): State<App>) -> Response {
    ([(CONTENT_TYPE, PROMETHEUS_TEXT)], app.0.metrics.text()).into_response()
}
