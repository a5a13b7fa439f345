//! Records of the readable version: one by its key, or a page of them by a prefix of their keys.
//!
//! Both answer with the version as `ETag`, so that who asks again with `If-None-Match` is told in a few bytes that
//! nothing has changed. Both take `?version=`, which is answered only by that version: a client that reads several
//! records at one version either gets them all from it or learns that it is no longer held.

use std::fmt::Write as _;

use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::App;
use super::problem::Problem;
use super::query::{Query, decode_path};
use crate::codec::text;
use crate::consumer::Reader;
use crate::error::ErrorKind;
use crate::host::Dataset;
use crate::version::Version;
use crate::view::{Value, View};

/// Records in a page where the request does not say how many.
pub(super) const DEFAULT_LIMIT: u64 = 100;
/// Most records that a request may ask for in one page.
pub(super) const MAX_LIMIT: u64 = 10_000;
/// A page ends before its records are more, whatever the limit: it is made in memory.
const MAX_PAGE_BYTES: usize = 8 << 20;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Says that Kafka has not confirmed the version: there may be a newer one.
const STALE: HeaderName = HeaderName::from_static("stillwell-stale");

/// `GET /v1/datasets/{name}/records/{key}`. The key is what stands in the path, percent-decoded, slashes included.
pub(super) async fn one(State(app): State<App>, request: Request) -> Response {
    read_one(&app, &request).unwrap_or_else(Problem::into_response)
}

fn read_one(app: &App, request: &Request) -> Result<Response, Problem> {
    let (name, key) = parts(request.uri().path());
    let key = decode_path(key)?;
    let query = Query::read(request.uri().query(), ["version"])?;
    let reader = reader(dataset(app, name)?)?;
    let slot = reader.load();
    let view = readable(reader, slot.as_deref(), query.number("version")?)?;
    let Some(value) = view.get(&key)? else {
        let (version, dataset) = (view.version(), reader.dataset());
        let detail = format!("dataset {dataset} has no record with this key in version {version}");
        return Err(Problem::not_found(detail).with("version", version));
    };
    let head = Head::of(view);
    if head.is_known_to(request.headers()) {
        return Ok(head.not_modified());
    }
    let mut body = String::with_capacity(2 * value.bytes().len() + 32);
    put_value(&value, &mut body)?;
    Ok(head.with(body))
}

/// `GET /v1/datasets/{name}/records?prefix=&limit=&next=&version=`: in the order of the keys' bytes.
pub(super) async fn page(State(app): State<App>, request: Request) -> Response {
    let asked = match Page::read(&app, &request) {
        Ok(Ok(asked)) => asked,
        Ok(Err(not_modified)) => return not_modified,
        Err(problem) => return problem.into_response(),
    };
    // May touch many pages of a file: not on a thread that others wait for.
    match tokio::task::spawn_blocking(move || asked.make()).await {
        Ok(page) => page.unwrap_or_else(Problem::into_response),
        Err(panic) => Problem::of(ErrorKind::Internal, panic.to_string()).into_response(),
    }
}

struct Page {
    view: View,
    head: Head,
    dataset: String,
    prefix: Vec<u8>,
    from: Vec<u8>,
    limit: u64,
}

impl Page {
    /// What is asked for, or the answer that the asker has it.
    fn read(app: &App, request: &Request) -> Result<Result<Page, Response>, Problem> {
        let (name, _) = parts(request.uri().path());
        let query = Query::read(request.uri().query(), ["prefix", "limit", "next", "version"])?;
        let limit = query.number("limit")?.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(Problem::rejected(format!("limit = {limit} is not from 1 to {MAX_LIMIT}")));
        }
        let from = URL_SAFE_NO_PAD.decode(query.bytes("next").unwrap_or_default()).map_err(|_| {
            Problem::rejected("next is not what a page gave as its next; leave it out for the first page")
        })?;
        let prefix = query.bytes("prefix").unwrap_or_default().to_vec();
        let reader = reader(dataset(app, name)?)?;
        let slot = reader.load();
        let view = readable(reader, slot.as_deref(), query.number("version")?)?;
        let head = Head::of(view);
        if head.is_known_to(request.headers()) {
            return Ok(Err(head.not_modified()));
        }
        Ok(Ok(Page { view: view.clone(), head, dataset: reader.dataset().to_owned(), prefix, from, limit }))
    }

    fn make(self) -> Result<Response, Problem> {
        let mut body = String::new();
        let dataset = serde_json::Value::from(self.dataset);
        let version = self.view.version();
        // Writing to a String cannot fail.
        let _ = write!(body, "{{\"dataset\":{dataset},\"version\":{version},\"records\":[");
        let mut next = None;
        for (count, value) in (0u64..).zip(self.view.prefix_from(&self.prefix, &self.from)) {
            let value = value?;
            if count == self.limit || body.len() > MAX_PAGE_BYTES {
                next = Some(URL_SAFE_NO_PAD.encode(value.key()));
                break;
            }
            body.push_str(if count == 0 { "{\"key\":" } else { ",{\"key\":" });
            text::key_to_json(value.key(), &mut body);
            body.push_str(",\"value\":");
            put_value(&value, &mut body)?;
            body.push('}');
        }
        body.push_str("],\"next\":");
        match next {
            // Base64 needs no escapes.
            Some(next) => body.extend(["\"", &next, "\"}"]),
            None => body.push_str("null}"),
        }
        Ok(self.head.with(body))
    }
}

/// Dataset and key of `/v1/datasets/{name}/records/{key}`, still encoded; the key is empty where there is none.
pub(super) fn parts(path: &str) -> (&str, &str) {
    let rest = path.strip_prefix("/v1/datasets/").unwrap_or_default();
    let (name, rest) = rest.split_once('/').unwrap_or((rest, ""));
    (name, rest.strip_prefix("records/").unwrap_or_default())
}

/// The dataset of an encoded name.
pub(super) fn dataset<'a>(app: &'a App, name: &str) -> Result<&'a Dataset, Problem> {
    let decoded = decode_path(name)?;
    let found = std::str::from_utf8(&decoded).ok().and_then(|name| app.0.directory.get(name));
    found.map(|dataset| &**dataset).ok_or_else(|| {
        let names: Vec<_> = app.0.directory.all().iter().map(|dataset| dataset.name()).collect();
        let name = String::from_utf8_lossy(&decoded);
        Problem::not_found(format!("there is no dataset {name} here")).with("datasets", names)
    })
}

fn reader(dataset: &Dataset) -> Result<&Reader, Problem> {
    dataset.reader().ok_or_else(|| {
        Problem::not_found(format!(
            "this process writes dataset {} and does not read it; ask one that runs with --role consumer, or both",
            dataset.name()
        ))
    })
}

/// The view, if it is one, and the one that is asked for.
fn readable<'a>(reader: &Reader, view: Option<&'a View>, version: Option<u64>) -> Result<&'a View, Problem> {
    let Some(view) = view else {
        let why = reader.not_ready().unwrap_or_else(|| "it is just being opened".to_owned());
        let dataset = reader.dataset();
        return Err(Problem::of(
            ErrorKind::Unavailable,
            format!("no version of dataset {dataset} is readable yet: {why}"),
        ));
    };
    let held = view.version();
    match version.map(Version) {
        Some(asked) if asked != held => {
            let announced = reader.status().readable.announced;
            let dataset = reader.dataset();
            let why = match asked {
                Version(0) => "versions count from 1".to_owned(),
                asked if asked < held => "a newer one has replaced it".to_owned(),
                asked if asked <= announced => "it is announced, and not readable here yet".to_owned(),
                _ => format!("the newest announced is {announced}"),
            };
            let detail = format!("version {asked} of dataset {dataset} is not held here, {held} is: {why}");
            Err(Problem::not_found(detail).with("version", held))
        }
        _ => Ok(view),
    }
}

fn put_value(value: &Value<'_>, out: &mut String) -> Result<(), Problem> {
    text::to_json(value.schema(), value.bytes(), out).map_err(|malformed| {
        Problem::of(
            ErrorKind::Corrupt,
            format!("the record is no datum of the dataset's schema: {malformed}"),
        )
    })
}

/// What an answer says about the version that it comes from.
struct Head {
    etag: String,
    stale: bool,
}

impl Head {
    fn of(view: &View) -> Head {
        Head { etag: format!("\"{}\"", view.versions()), stale: view.about().stale }
    }

    /// Whether the asker has this version, by `If-None-Match` (RFC 9110, 13.1.2).
    fn is_known_to(&self, headers: &HeaderMap) -> bool {
        headers.get_all(IF_NONE_MATCH).iter().any(|value| names(value.as_bytes(), self.etag.as_bytes()))
    }

    fn not_modified(self) -> Response {
        self.dress(StatusCode::NOT_MODIFIED.into_response())
    }

    fn with(self, body: String) -> Response {
        let mut response = body.into_response();
        response.headers_mut().insert(CONTENT_TYPE, JSON);
        self.dress(response)
    }

    fn dress(self, mut response: Response) -> Response {
        let etag = HeaderValue::try_from(self.etag).expect("digits, commas and quotes may stand in a header");
        response.headers_mut().insert(ETAG, etag);
        if self.stale {
            response.headers_mut().insert(STALE, HeaderValue::from_static("true"));
        }
        response
    }
}

/// Whether a list of entity tags, as `If-None-Match` has it, names `etag` (with its quotes) or is `*`. Tags are compared
/// weakly: `W/` does not count. A tag may have commas in it, so the list is not split at them.
fn names(list: &[u8], etag: &[u8]) -> bool {
    let mut rest = list.trim_ascii();
    if rest == b"*" {
        return true;
    }
    while let Some(start) = rest.iter().position(|byte| *byte == b'"') {
        let (_, tag) = rest.split_at(start);
        let Some(end) = tag.iter().skip(1).position(|byte| *byte == b'"') else { return false };
        let Some((tag, after)) = tag.split_at_checked(end + 2) else { return false };
        if tag == etag {
            return true;
        }
        rest = after;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_tags_names_one_of_them() {
        for list in ["*", "\"7\"", "W/\"7\"", " \"6\" , \"7\"", "\"6\",W/\"7\",\"8\""] {
            assert!(names(list.as_bytes(), b"\"7\""), "{list}");
        }
        for list in ["", "7", "\"77\"", "\"7", "\"6,7\"", "W/", "\"", "**"] {
            assert!(!names(list.as_bytes(), b"\"7\""), "{list}");
        }
        assert!(names(b"\"1,2\", \"7,9,4\"", b"\"7,9,4\""));
        assert!(!names(b"\"1,7\", \"9,4\"", b"\"7\""));
    }

    #[test]
    fn a_key_is_all_that_follows() {
        assert_eq!(parts("/v1/datasets/p/records/a/b//c"), ("p", "a/b//c"));
        assert_eq!(parts("/v1/datasets/p/records/"), ("p", ""));
        assert_eq!(parts("/v1/datasets/p/records"), ("p", ""));
        assert_eq!(parts("/v1/datasets/p/records/records/x"), ("p", "records/x"));
    }
}
