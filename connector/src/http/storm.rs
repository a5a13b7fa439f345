//! The storm guard of a dataset: why its source is paused, and the decision to let such records through.
//!
//! Until the process ends: the configuration is not touched.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::problem::Problem;
use super::{App, records};
use crate::producer::storm::Storm;

/// `GET /admin/datasets/{name}/storm`.
pub(super) async fn get(State(app): State<App>, uri: Uri, headers: HeaderMap) -> Response {
    let shown = || -> Result<Response, Problem> {
        app.authorize(&headers)?;
        Ok(Json(json!({ "paused_for": storm(&app, &uri)?.raging() })).into_response())
    };
    shown().unwrap_or_else(Problem::into_response)
}

/// `POST /admin/datasets/{name}/storm`: lets through what fails for the reason of the storm. Without a storm it does
/// nothing, so that it may be repeated.
pub(super) async fn post(State(app): State<App>, uri: Uri, headers: HeaderMap) -> Response {
    let done = || -> Result<Response, Problem> {
        app.authorize(&headers)?;
        Ok(Json(json!({ "let_through": storm(&app, &uri)?.let_through() })).into_response())
    };
    done().unwrap_or_else(Problem::into_response)
}

fn storm<'a>(app: &'a App, uri: &Uri) -> Result<&'a Storm, Problem> {
    // As it was sent: names are decoded once, where they are looked up.
    let name = uri.path().strip_prefix("/admin/datasets/").and_then(|rest| rest.strip_suffix("/storm"));
    let dataset = records::dataset(app, name.unwrap_or_default())?;
    dataset.storm().ok_or_else(|| records::unwritten(dataset))
}
