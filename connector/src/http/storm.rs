//! The storm guards of a dataset, of its source and of each listener: what is paused or held, and why, and the decision to let
//! such records, or changes, become letters.
//!
//! Until the process ends, or the listener handles what it is told: the configuration is not touched.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::problem::Problem;
use super::query::Query;
use super::{App, records};
use crate::consumer::listen::Report;
use crate::producer::storm::Storm;

/// What watches.
enum Guard<'a> {
    Source(&'a Storm),
    Listener(&'a Report),
}

/// `GET /admin/datasets/{name}/storm?listener=`.
pub(super) async fn get(State(app): State<App>, uri: Uri, headers: HeaderMap) -> Response {
    let shown = || -> Result<Response, Problem> {
        app.authorize(&headers)?;
        Ok(Json(match guard(&app, &uri)? {
            Guard::Source(storm) => json!({ "paused_for": storm.raging() }),
            Guard::Listener(report) => json!({ "held_for": report.held_for() }),
        })
        .into_response())
    };
    shown().unwrap_or_else(Problem::into_response)
}

/// `POST /admin/datasets/{name}/storm?listener=`: lets through what fails for the reason of the storm, or what the listener
/// does not handle. Without a storm it does nothing, so that it may be repeated.
pub(super) async fn post(State(app): State<App>, uri: Uri, headers: HeaderMap) -> Response {
    let done = || -> Result<Response, Problem> {
        app.authorize(&headers)?;
        let was = match guard(&app, &uri)? {
            Guard::Source(storm) => storm.let_through(),
            Guard::Listener(report) => report.let_through(),
        };
        Ok(Json(json!({ "let_through": was })).into_response())
    };
    done().unwrap_or_else(Problem::into_response)
}

fn guard<'a>(app: &'a App, uri: &Uri) -> Result<Guard<'a>, Problem> {
    // As it was sent: names are decoded once, where they are looked up.
    let name = uri.path().strip_prefix("/admin/datasets/").and_then(|rest| rest.strip_suffix("/storm"));
    let dataset = records::dataset(app, name.unwrap_or_default())?;
    let query = Query::read(uri.query(), ["listener"])?;
    let Some(listener) = query.bytes("listener") else {
        let storm = dataset.storm().ok_or_else(|| records::unwritten(dataset))?;
        return Ok(Guard::Source(storm));
    };
    let reader = records::reader(dataset)?;
    let report = std::str::from_utf8(listener).ok().and_then(|listener| reader.listener(listener));
    report.map(Guard::Listener).ok_or_else(|| {
        let names: Vec<_> = reader.listeners().into_iter().map(|told| told.name).collect();
        let listener = String::from_utf8_lossy(listener);
        Problem::not_found(format!("dataset {} has no listener {listener} here", dataset.name()))
            .with("listeners", names)
    })
}
