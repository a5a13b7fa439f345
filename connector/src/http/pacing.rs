//! The pace of a dataset: what it is, and changed while it runs, for who has the admin token.
//!
//! Until the process ends: the configuration is not touched.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use bytesize::ByteSize;
use serde::Deserialize;
use serde_json::json;

use super::problem::Problem;
use super::{App, records, writes};
use crate::producer::Pacing;
use crate::producer::pace::Pace;

/// What may be changed; what is not given stays as it is. 0 is unlimited.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    max_records_per_second: Option<u32>,
    max_bytes_per_second: Option<Size>,
    pressure_high: Option<f64>,
}

/// `8388608`, or `"8MB"`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Text(String),
}

/// `GET /admin/datasets/{name}/pacing`.
pub(super) async fn get(State(app): State<App>, uri: Uri, headers: HeaderMap) -> Response {
    let shown = || -> Result<Response, Problem> {
        app.authorize(&headers)?;
        Ok(show(pace(&app, &uri)?))
    };
    shown().unwrap_or_else(Problem::into_response)
}

/// `POST /admin/datasets/{name}/pacing`.
pub(super) async fn post(State(app): State<App>, request: Request) -> Response {
    change(&app, request).await.unwrap_or_else(Problem::into_response)
}

async fn change(app: &App, request: Request) -> Result<Response, Problem> {
    app.authorize(request.headers())?;
    let pace = pace(app, request.uri())?;
    let body = writes::read(request.into_body()).await?;
    let change: Change =
        writes::object(&body, "max_records_per_second, max_bytes_per_second and pressure_high")?;
    let now = pace.pacing();
    let bytes = match change.max_bytes_per_second {
        None => now.max_bytes_per_second,
        Some(Size::Bytes(bytes)) => bytes,
        Some(Size::Text(text)) => {
            text.parse::<ByteSize>()
                .map_err(|_| {
                    Problem::rejected(format!("max_bytes_per_second = {text:?} is not a size, as in \"8MB\""))
                })?
                .0
        }
    };
    let pacing = Pacing {
        max_records_per_second: change.max_records_per_second.unwrap_or(now.max_records_per_second),
        max_bytes_per_second: bytes,
        pressure_high: change.pressure_high.unwrap_or(now.pressure_high),
    };
    pace.set(pacing).map_err(|error| Problem::rejected(error.chain()))?;
    Ok(show(pace))
}

fn pace<'a>(app: &'a App, uri: &Uri) -> Result<&'a Pace, Problem> {
    // As it was sent: names are decoded once, where they are looked up.
    let name = uri.path().strip_prefix("/admin/datasets/").and_then(|rest| rest.strip_suffix("/pacing"));
    let dataset = records::dataset(app, name.unwrap_or_default())?;
    dataset.pace().ok_or_else(|| records::unwritten(dataset))
}

/// The limits as they were told, and those of the moment, where null is unlimited.
fn show(pace: &Pace) -> Response {
    let (pacing, (records, bytes)) = (pace.pacing(), pace.now());
    Json(json!({
        "max_records_per_second": pacing.max_records_per_second,
        "max_bytes_per_second": pacing.max_bytes_per_second,
        "pressure_high": pacing.pressure_high,
        "now": { "records_per_second": records, "bytes_per_second": bytes },
    }))
    .into_response()
}
