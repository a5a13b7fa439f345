//! Which version readers hold, changed for who has the admin token: pin, unpin. And a snapshot now.
//!
//! Each puts a record into the dataset's control topic, as the commands do, and is answered once it is there. Readers
//! move within a second; the owner makes the snapshot beside its work, and it is listed by an announcement.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::problem::Problem;
use super::{App, records, writes};
use crate::consumer::Steering;
use crate::consumer::steer::Wanted;
use crate::format::control::Pin;
use crate::host::directory::rfc3339;
use crate::version::{ShardVersions, Version};

/// Longest name and reason that are taken, in bytes: they stand in every status.
const LONGEST_TEXT: usize = 1_024;

/// What to pin to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    /// The version; with several shards, `versions`.
    version: Option<Version>,
    versions: Option<ShardVersions>,
    #[serde(default)]
    by: String,
    #[serde(default)]
    reason: String,
}

/// `POST /admin/datasets/{name}/pin`.
pub(super) async fn pin(State(app): State<App>, request: Request) -> Response {
    let pinned = async {
        app.authorize(request.headers())?;
        let steering = steering(&app, request.uri(), "/pin")?;
        let body = writes::read(request.into_body()).await?;
        let wish: Wish = writes::object(
            &body,
            "version (or versions, one of each shard), and by and reason where there are",
        )?;
        let Wish { version, versions, by, reason } = wish;
        let versions = match (version, versions) {
            (Some(version), None) => ShardVersions(vec![version]),
            (None, Some(versions)) => versions,
            _ => return Err(Problem::rejected("either version or versions says what to pin to")),
        };
        for (name, text) in [("by", &by), ("reason", &reason)] {
            if text.len() > LONGEST_TEXT {
                return Err(Problem::rejected(format!("{name} is longer than {LONGEST_TEXT} bytes")));
            }
        }
        let by = if by.is_empty() { "http" } else { &by };
        let pin = steering.pin(&versions, by, &reason).await.map_err(problem)?;
        Ok(Json(json!({ "pinned": show(&pin) })).into_response())
    };
    pinned.await.unwrap_or_else(Problem::into_response)
}

/// `POST /admin/datasets/{name}/unpin`.
pub(super) async fn unpin(State(app): State<App>, uri: Uri, headers: HeaderMap) -> Response {
    let unpinned = async {
        app.authorize(&headers)?;
        let was = steering(&app, &uri, "/unpin")?.unpin().await.map_err(problem)?;
        Ok::<_, Problem>(Json(json!({ "was": was.as_ref().map(show) })).into_response())
    };
    unpinned.await.unwrap_or_else(Problem::into_response)
}

/// `POST /admin/datasets/{name}/snapshot`.
pub(super) async fn snapshot(State(app): State<App>, uri: Uri, headers: HeaderMap) -> Response {
    let asked = async {
        app.authorize(&headers)?;
        let asked = steering(&app, &uri, "/snapshot")?.snapshot().await.map_err(problem)?;
        let (status, version, there) = match asked {
            Wanted::Asked(version) => (StatusCode::ACCEPTED, version, false),
            Wanted::There(version) => (StatusCode::OK, version, true),
        };
        Ok::<_, Problem>((status, Json(json!({ "version": version, "there": there }))).into_response())
    };
    asked.await.unwrap_or_else(Problem::into_response)
}

fn steering<'a>(app: &'a App, uri: &Uri, suffix: &str) -> Result<&'a Steering, Problem> {
    // As it was sent: names are decoded once, where they are looked up.
    let name = uri.path().strip_prefix("/admin/datasets/").and_then(|rest| rest.strip_suffix(suffix));
    let dataset = records::dataset(app, name.unwrap_or_default())?;
    dataset.steering().ok_or_else(|| {
        Problem::not_found(format!("dataset {} has no control topic in this process", dataset.name()))
    })
}

fn problem(error: crate::Error) -> Problem {
    Problem::of(error.kind(), error.chain())
}

fn show(pin: &Pin) -> serde_json::Value {
    json!({
        "id": pin.id,
        "versions": pin.shard_versions(),
        "by": pin.by,
        "reason": pin.reason,
        "at": rfc3339(pin.at),
    })
}
