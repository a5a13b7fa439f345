//! Records written: put or deleted by their key, for who has the admin token.
//!
//! A write goes to the source topic as anybody's does, and is answered once it is readable: 200 with the version from
//! which on a read here shows it. Where that takes longer than `?wait=`, 202 says where the record lies; the version
//! will come. Where readers here are pinned to an earlier one, waiting would be for an operator: 202 says so at once.

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::App;
use super::problem::Problem;
use super::query::{Query, decode_path};
use super::records;
use crate::error::ErrorKind;
use crate::host::Dataset;
use crate::producer::write::Refused;
use crate::producer::{Landed, Publication, Write, Writer};
use crate::version::Version;

/// Largest body that is read: what Kafka's client takes. A topic may take less.
pub(super) const MAX_BODY_BYTES: usize = 10 << 20;
/// How long a body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an answer waits for the version, where the request does not say.
const DEFAULT_WAIT: Duration = Duration::from_secs(10);
/// The longest that it may ask for.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// `PUT /v1/datasets/{name}/records/{key}`. The body is the value: JSON, or bytes where the dataset is raw.
pub(super) async fn put(State(app): State<App>, request: Request) -> Response {
    write(&app, request, true).await.unwrap_or_else(Problem::into_response)
}

/// `DELETE /v1/datasets/{name}/records/{key}`.
pub(super) async fn delete(State(app): State<App>, request: Request) -> Response {
    write(&app, request, false).await.unwrap_or_else(Problem::into_response)
}

async fn write(app: &App, request: Request, upsert: bool) -> Result<Response, Problem> {
    app.authorize(request.headers())?;
    let (parts, body) = request.into_parts();
    let (name, key) = records::parts(parts.uri.path());
    let key = Bytes::from(decode_path(key)?.into_owned());
    let query = Query::read(parts.uri.query(), ["wait", "topic"])?;
    let until = Instant::now() + wait(query.bytes("wait"))?;
    let dataset = records::dataset(app, name)?;
    let writer = writer(dataset)?;
    let mut record = if upsert { Write::upsert(key, read(body).await?) } else { Write::delete(key) };
    if let Some(topic) = query.bytes("topic") {
        record = record.topic(String::from_utf8_lossy(topic));
    }
    let ready = writer.prepare(record).map_err(refused)?;
    let written = writer.send(vec![ready]).await.map_err(|error| {
        match std::error::Error::source(&error).and_then(|source| source.downcast_ref::<Refused>()) {
            Some(Refused::TooLarge { .. }) => Problem::too_large(error.chain()),
            _ => Problem::from(error),
        }
    })?;
    let left = until.saturating_duration_since(Instant::now());
    match written.published(left).await {
        Publication::Published { version, records } => {
            let read = read_in(dataset, version, until).await;
            Ok(answer(dataset, records.first(), Some((version, read))))
        }
        Publication::Durable { records } => Ok(answer(dataset, records.first(), None)),
        Publication::Rejected { reason, .. } => Err(Problem::rejected(reason)),
        Publication::Unsent { reason, .. } => Err(Problem::of(
            ErrorKind::Unavailable,
            format!("the record was not sent; send it again: {reason}"),
        )),
        Publication::Unknown { reason, .. } => Err(Problem::of(
            ErrorKind::Unavailable,
            format!(
                "Kafka did not acknowledge the record, which may be written or not; send it again: {reason}"
            ),
        )
        .with("outcome", "unknown")),
    }
}

fn writer(dataset: &Dataset) -> Result<&Writer, Problem> {
    dataset.records().ok_or_else(|| records::unwritten(dataset))
}

/// `?wait=`, as in `500ms` or `10s`.
fn wait(given: Option<&[u8]>) -> Result<Duration, Problem> {
    let Some(given) = given.filter(|given| !given.is_empty()) else { return Ok(DEFAULT_WAIT) };
    let text = String::from_utf8_lossy(given);
    let wait = match &*text {
        "0" => Some(Duration::ZERO),
        text => humantime::parse_duration(text).ok(),
    };
    wait.filter(|wait| *wait <= MAX_WAIT).ok_or_else(|| {
        let most = humantime::format_duration(MAX_WAIT);
        Problem::rejected(format!("wait = {text:?} is not a time from 0 to {most}, as in 500ms or 10s"))
    })
}

pub(super) async fn read(body: axum::body::Body) -> Result<Bytes, Problem> {
    let limited = Limited::new(body, MAX_BODY_BYTES);
    match tokio::time::timeout(BODY_TIMEOUT, limited.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Problem::too_large(format!("the body has more than {MAX_BODY_BYTES} bytes")))
        }
        Ok(Err(error)) => Err(Problem::rejected(format!("the body cannot be read: {error}"))),
        Err(_) => Err(Problem::timeout(format!("the body did not come within {BODY_TIMEOUT:?}"))),
    }
}

/// A body that is a JSON object of these keys. Said here, since an array would be taken for one, field by field.
pub(super) fn object<T: DeserializeOwned>(body: &[u8], keys: &str) -> Result<T, Problem> {
    let wrong =
        |why: &dyn std::fmt::Display| Problem::rejected(format!("the body is an object of {keys}: {why}"));
    if body.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        return Err(wrong(&"this is something else"));
    }
    serde_json::from_slice(body).map_err(|error| wrong(&error))
}

fn refused(refused: Refused) -> Problem {
    match refused {
        Refused::Misfit(misfit) => Problem::misfit(&misfit),
        Refused::TooLarge { .. } => Problem::too_large(refused.to_string()),
        Refused::ReadOnly(_) => Problem::rejected(refused.to_string()),
        Refused::Topic(detail) => Problem::rejected(detail),
    }
}

/// How a version stands to what is read here.
#[derive(Clone, Copy)]
enum Read {
    /// It is readable, or nothing is read here.
    Here,
    /// Readers are held to this earlier one.
    PinnedAt(Version),
    /// It is not readable yet.
    Later,
}

/// Waits until what is read here is at least `version`, or held before it. A process that does not read has nothing to
/// wait for.
async fn read_in(dataset: &Dataset, version: Version, until: Instant) -> Read {
    let Some(reader) = dataset.reader() else { return Read::Here };
    let mut readable = reader.watch();
    let settled = readable.wait_for(|readable| readable.version >= version || readable.pinned);
    match tokio::time::timeout_at(until, settled).await {
        Ok(Ok(readable)) if readable.version < version => Read::PinnedAt(readable.version),
        Ok(Ok(_)) => Read::Here,
        Ok(Err(_)) | Err(_) => Read::Later,
    }
}

/// 200 with the version, where it is readable; else 202.
fn answer(dataset: &Dataset, landed: Option<&Landed>, version: Option<(Version, Read)>) -> Response {
    let mut body = json!({
        "dataset": dataset.name(),
        "version": version.map(|(version, _)| version),
        "topic": landed.map(|landed| &*landed.topic),
        "partition": landed.map(|landed| landed.partition),
        "offset": landed.map(|landed| landed.offset),
    });
    let why = match version {
        Some((_, Read::Here)) => return Json(body).into_response(),
        Some((version, Read::PinnedAt(pinned))) => {
            format!("written in version {version}; readers are pinned at {pinned}")
        }
        Some((version, Read::Later)) => {
            format!("announced in version {version}, which is not readable here yet")
        }
        None => "durable in the source topic; the version that holds it is not announced yet".to_owned(),
    };
    if let Value::Object(members) = &mut body {
        members.insert("detail".to_owned(), why.into());
    }
    (StatusCode::ACCEPTED, Json(body)).into_response()
}
