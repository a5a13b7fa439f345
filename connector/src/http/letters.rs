//! The dead letters of a dataset: listed, and replayed, for who has the admin token.

use std::num::NonZeroU32;
use std::str::FromStr as _;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::problem::Problem;
use super::query::Query;
use super::{App, records, writes};
use crate::dead::replay::{self, Asked};
use crate::dead::rows::Goal;
use crate::dead::select::{Selection, When};
use crate::dead::text;
use crate::error::ErrorKind;
use crate::host::letters::Letters;

/// Letters in an answer, where the request does not say; and the most that it may ask for.
const LISTED: usize = 100;
const MOST_LISTED: usize = 10_000;
/// As `dlq replay` has it.
const MAX_REPLAYS: u32 = 3;

/// What to replay; what is not given is not limited.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wanted {
    key: Vec<String>,
    stage: Vec<String>,
    error: Vec<String>,
    since: Option<String>,
    until: Option<String>,
    max: Option<u64>,
    rate: Option<NonZeroU32>,
    dry_run: bool,
    max_replays: Option<u32>,
    force: bool,
    into: Where,
}

/// Where letters go, as `dlq replay --into` has it.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Where {
    #[default]
    Source,
    Dataset,
}

/// `GET /admin/datasets/{name}/letters`.
pub(super) async fn list(State(app): State<App>, uri: Uri, headers: HeaderMap) -> Response {
    listed(&app, &uri, &headers).await.unwrap_or_else(Problem::into_response)
}

async fn listed(app: &App, uri: &Uri, headers: &HeaderMap) -> Result<Response, Problem> {
    app.authorize(headers)?;
    let letters = letters(app, uri, "/letters")?;
    let query = Query::read(uri.query(), ["key", "stage", "error", "since", "until", "max"])?;
    let text = |name: &str| query.bytes(name).map(|value| String::from_utf8_lossy(value).into_owned());
    let most = match text("max") {
        None => LISTED,
        Some(max) => max.parse().ok().filter(|max| *max <= MOST_LISTED).ok_or_else(|| {
            Problem::rejected(format!("max is a number of up to {MOST_LISTED}, not {max:?}"))
        })?,
    };
    let selection = Selection {
        dataset: letters.options().dataset.clone(),
        keys: query.bytes("key").map(<[u8]>::to_vec).into_iter().collect(),
        stages: text("stage").into_iter().collect(),
        errors: text("error").into_iter().collect(),
        since: time(letters, "since", text("since"))?,
        until: time(letters, "until", text("until"))?,
    };
    let topic = &letters.options().letters;
    let lines =
        letters.list(selection, most).await.map_err(|error| Problem::of(error.kind(), error.chain()))?;
    let lines: Vec<_> = lines.iter().map(|line| text::line(topic, line)).collect();
    Ok(Json(json!({ "letters": lines })).into_response())
}

/// `GET /admin/datasets/{name}/replay`.
pub(super) async fn report(State(app): State<App>, uri: Uri, headers: HeaderMap) -> Response {
    let shown = || -> Result<Response, Problem> {
        app.authorize(&headers)?;
        let report = letters(&app, &uri, "/replay")?.report();
        Ok(Json(json!({ "replay": report })).into_response())
    };
    shown().unwrap_or_else(Problem::into_response)
}

/// `DELETE /admin/datasets/{name}/replay`: ends what runs, after the transaction that has begun.
pub(super) async fn end(State(app): State<App>, uri: Uri, headers: HeaderMap) -> Response {
    let ended = || -> Result<Response, Problem> {
        app.authorize(&headers)?;
        let report = letters(&app, &uri, "/replay")?.end();
        Ok((StatusCode::ACCEPTED, Json(json!({ "replay": report }))).into_response())
    };
    ended().unwrap_or_else(Problem::into_response)
}

/// `POST /admin/datasets/{name}/replay`.
pub(super) async fn begin(State(app): State<App>, request: Request) -> Response {
    begun(&app, request).await.unwrap_or_else(Problem::into_response)
}

async fn begun(app: &App, request: Request) -> Result<Response, Problem> {
    app.authorize(request.headers())?;
    let letters = letters(app, request.uri(), "/replay")?;
    let body = writes::read(request.into_body()).await?;
    let wanted: Wanted = match body.is_empty() {
        true => Wanted::default(),
        false => writes::object(
            &body,
            "key, stage, error, since, until, max, rate, dry_run, max_replays, force and into",
        )?,
    };
    let selection = Selection {
        dataset: letters.options().dataset.clone(),
        keys: wanted.key.into_iter().map(String::into_bytes).collect(),
        stages: wanted.stage,
        errors: wanted.error,
        since: time(letters, "since", wanted.since)?,
        until: time(letters, "until", wanted.until)?,
    };
    let asked = Asked {
        selection,
        max: wanted.max,
        rate: wanted.rate,
        dry_run: wanted.dry_run,
        max_replays: wanted.max_replays.unwrap_or(MAX_REPLAYS),
        wait: replay::WAIT,
        force: wanted.force,
        fix: None,
        goal: match wanted.into {
            Where::Source => Goal::Source,
            Where::Dataset => Goal::Dataset,
        },
    };
    letters.check(&asked.selection).await.map_err(|error| Problem::of(error.kind(), error.chain()))?;
    match letters.begin(asked) {
        Ok(report) => Ok((StatusCode::ACCEPTED, Json(json!({ "replay": report }))).into_response()),
        Err(error) => Err(Problem::of(ErrorKind::Rejected, error.chain())),
    }
}

fn time(letters: &Letters, name: &str, given: Option<String>) -> Result<Option<i64>, Problem> {
    let Some(given) = given else { return Ok(None) };
    let when =
        When::from_str(&given).map_err(|error| Problem::rejected(format!("{name}={given:?}: {error}")))?;
    Ok(Some(when.ms(letters.options().clock.wall_ms())))
}

fn letters<'a>(app: &'a App, uri: &Uri, route: &str) -> Result<&'a Letters, Problem> {
    // As it was sent: names are decoded once, where they are looked up.
    let name = uri.path().strip_prefix("/admin/datasets/").and_then(|rest| rest.strip_suffix(route));
    let dataset = records::dataset(app, name.unwrap_or_default())?;
    dataset.letters().ok_or_else(|| records::unwritten(dataset))
}
