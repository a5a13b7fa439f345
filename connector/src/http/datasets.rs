//! What datasets there are, and what is known of one.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::App;
use super::problem::Problem;
use super::records;
use crate::consumer;
use crate::host::Dataset;
use crate::host::directory::{Held, Refused, rfc3339};
use crate::record::{Position, which_are_read};
use crate::version::Version;

/// One dataset in the listing.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    /// The readable version; where nothing is read here, the last one announced here.
    version: Version,
    /// The newest version announced, as far as this process knows.
    announced_version: Version,
    /// Keys in the readable version; null where nothing is read here.
    records: Option<u64>,
    announced_at: Option<String>,
    caught_up: bool,
    stale: bool,
    ready: bool,
    /// Why it is not ready.
    reason: Option<String>,
    /// What readers are held to; null: to nothing.
    pinned: Option<Held>,
    /// The newest version, where this reader's guard refuses it.
    refused: Option<Refused>,
}

/// One dataset by itself.
#[derive(Debug, Serialize)]
struct Described {
    #[serde(flatten)]
    listed: Listed,
    shards: Option<u32>,
    epoch: Option<u64>,
    /// How far the version holds each source partition: the next offset to read.
    positions: Vec<Position>,
    newest_timestamp: Option<String>,
    oldest_kept: Option<Version>,
    /// What readers of the dataset refuse at the moment, this one among them.
    refusals: Vec<Refused>,
    schema: Option<Box<serde_json::value::RawValue>>,
}

/// `GET /v1/datasets`.
pub(super) async fn all(State(app): State<App>) -> Response {
    let datasets: Vec<_> = app.0.directory.all().iter().map(|dataset| list(dataset)).collect();
    Json(serde_json::json!({ "datasets": datasets })).into_response()
}

/// `GET /v1/datasets/{name}`.
pub(super) async fn one(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let name = request.uri().path().rsplit('/').next().unwrap_or_default();
    let dataset = records::dataset(&app, name)?;
    Ok(Json(describe(dataset)).into_response())
}

fn list(dataset: &Dataset) -> Listed {
    let reason = dataset.not_ready();
    let announced = dataset.announced().map(|(version, _)| version).unwrap_or_default();
    let mut listed = Listed {
        name: dataset.name().to_owned(),
        version: announced,
        announced_version: announced,
        records: None,
        announced_at: None,
        caught_up: false,
        stale: false,
        ready: reason.is_none(),
        reason,
        pinned: None,
        refused: None,
    };
    if let Some(reader) = dataset.reader() {
        let consumer::Status { readable, pin, .. } = reader.status();
        listed.pinned = pin.pinned.as_ref().map(Held::of);
        listed.refused = readable.refused.as_ref().map(Refused::of);
        listed.announced_version = announced.max(readable.announced);
        let slot = reader.load();
        listed.version = slot.as_deref().map_or(Version(0), |view| view.version());
        if let Some(view) = slot.as_deref() {
            let about = view.about();
            listed.records = Some(about.records);
            listed.announced_at = Some(rfc3339(about.announced_at_ms));
            listed.caught_up = about.caught_up;
            listed.stale = about.stale;
        }
    }
    listed
}

fn describe(dataset: &Dataset) -> Described {
    let mut described = Described {
        listed: list(dataset),
        shards: None,
        epoch: None,
        positions: dataset.announced().map(|(_, positions)| positions).unwrap_or_default(),
        newest_timestamp: None,
        oldest_kept: None,
        refusals: Vec::new(),
        schema: None,
    };
    if let Some(reader) = dataset.reader() {
        described.refusals = reader.status().pin.refusals.iter().map(Refused::of).collect();
    }
    if let Some(reader) = dataset.reader()
        && let Some(view) = reader.load().as_deref()
    {
        let about = view.about();
        described.shards = Some(view.identity().shards);
        described.epoch = Some(about.life.epoch);
        let read = which_are_read(about.positions.iter().map(|position| &position.source));
        let positions = about.positions.iter().zip(read).filter(|(_, read)| *read);
        described.positions = positions.map(|(position, _)| position.clone()).collect();
        described.newest_timestamp = about.newest_timestamp_ms.map(rfc3339);
        described.oldest_kept = Some(about.oldest_kept);
        described.schema = serde_json::value::RawValue::from_string(about.schema.json().to_owned()).ok();
    }
    described
}
