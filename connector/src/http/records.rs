//! Records of a version: one by its key, several by theirs, or a page of them in key order.
//!
//! All answer with the version as `ETag`, and with what is held of which history, so that who asks again with `If-None-Match`
//! is told in a few bytes that nothing has changed. All take `?version=`, which is answered only by that version: a client that reads several records at one
//! version either gets them all from it or learns that it cannot be had here.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::App;
use super::problem::Problem;
use super::query::{Query, decode_path};
use super::turns::{self, Turn};
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
/// Records by their keys that are answered without another thread, where they are small.
const FEW: usize = 16;
/// Most keys that a request may ask for.
pub(super) const MAX_KEYS: usize = 1_000;
/// A page ends before its records are more, whatever the limit: it is made in memory.
const MAX_PAGE_BYTES: usize = 8 << 20;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Says that Kafka has not confirmed the version: there may be a newer one.
const STALE: HeaderName = HeaderName::from_static("stillwell-stale");

/// `GET /v1/datasets/{name}/records/{key}`. The key is what stands in the path, percent-decoded, slashes included.
pub(super) async fn one(State(app): State<App>, request: Request) -> Response {
    let (head, _) = request.into_parts();
    match read_one(&app, &head.uri, &head.headers).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    }
}

async fn read_one(app: &App, uri: &Uri, headers: &HeaderMap) -> Result<Response, Problem> {
    let (name, key) = parts(uri.path());
    let key = decode_path(key)?;
    let query = Query::read(uri.query(), ["version"])?;
    let reader = reader(dataset(app, name)?)?;
    let view = match query.number("version")?.map(Version) {
        Some(version) => {
            let view = at(reader, version).await?;
            if let Some(answer) = answer(&view, reader, &key, headers, None)? {
                return Ok(answer);
            }
            view
        }
        None => {
            // Borrowed from its slot: no count that other requests share is touched.
            let slot = reader.load();
            let view = slot.as_deref().ok_or_else(|| not_readable(reader))?;
            if let Some(answer) = answer(view, reader, &key, headers, None)? {
                return Ok(answer);
            }
            view.clone()
        }
    };
    let turn = app.0.turns.take().await?;
    Ok(answer(&view, reader, &key, headers, Some(turn))?.expect("it has its turn"))
}

/// `None`: the record is large, and it is no `turn` of it.
fn answer(
    view: &View,
    reader: &Reader,
    key: &[u8],
    headers: &HeaderMap,
    turn: Option<Turn>,
) -> Result<Option<Response>, Problem> {
    let Some(value) = view.get(key)? else {
        let (version, dataset) = (view.version(), reader.dataset());
        let detail = format!("dataset {dataset} has no record with this key in version {version}");
        return Err(Problem::not_found(detail).with("version", version));
    };
    let head = Head::of(view);
    if head.is_known_to(headers) {
        return Ok(Some(head.not_modified()));
    }
    if value.bytes().len() > turns::LARGE && turn.is_none() {
        return Ok(None);
    }
    let mut body = String::with_capacity(2 * value.bytes().len() + 32);
    put_value(&value, &mut body)?;
    if body.len() > turns::LARGE && turn.is_none() {
        return Ok(None);
    }
    Ok(Some(head.with(turns::body(body, turn))))
}

/// `GET /v1/datasets/{name}/records`: by `prefix=`, `from=` and `to=` a page of them in the order of the keys' bytes; by
/// `key=`, as often as there are keys, just those, in that order; by the fields of an index the records that have them.
pub(super) async fn several(State(app): State<App>, request: Request) -> Response {
    let (head, _) = request.into_parts();
    let asked = match Asked::read(&app, &head.uri, &head.headers).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(not_modified)) => return not_modified,
        Err(problem) => return problem.into_response(),
    };
    match asked.at_once() {
        Ok(Some(answer)) => return answer,
        Ok(None) => {}
        Err(problem) => return problem.into_response(),
    }
    let turn = match app.0.turns.take().await {
        Ok(turn) => turn,
        Err(problem) => return problem.into_response(),
    };
    // May touch many pages of a file: not on a thread that others wait for.
    match tokio::task::spawn_blocking(move || asked.make(turn)).await {
        Ok(page) => page.unwrap_or_else(Problem::into_response),
        Err(panic) => Problem::of(ErrorKind::Internal, panic.to_string()).into_response(),
    }
}

struct Asked {
    view: View,
    head: Head,
    dataset: String,
    which: Which,
}

enum Which {
    Keys(Vec<Vec<u8>>),
    Page(Page),
}

struct Page {
    prefix: Vec<u8>,
    from: Vec<u8>,
    /// Before this key; `None`: to the end.
    to: Option<Vec<u8>>,
    limit: u64,
    /// Fields of an index and what they have to be; none: all records.
    by: Vec<(String, Vec<u8>)>,
}

impl Asked {
    /// What is asked for, or the answer that the asker has it.
    async fn read(app: &App, uri: &Uri, headers: &HeaderMap) -> Result<Result<Asked, Response>, Problem> {
        let (name, _) = parts(uri.path());
        let reader = reader(dataset(app, name)?)?;
        let known = ["prefix", "from", "to", "limit", "next", "version"];
        let newest = reader.load();
        // Of a field without an index the view says what it has, and how to add one.
        let is_field = |name: &str| newest.as_deref().is_some_and(|view| view.has_field(name));
        let (query, listed) = Query::with_list(uri.query(), known, |name| name == "key" || is_field(name))?;
        let given = |name: &&&str| query.bytes(name).is_some();
        let together =
            |one: &str, other: &str| Err(Problem::rejected(format!("{one} and {other} do not go together")));
        let keys = listed.iter().filter(|(name, _)| *name == "key").count();
        let by = listed.iter().find(|(name, _)| *name != "key").map(|(name, _)| *name);
        let which = if keys > 0 {
            if let Some(other) = known.iter().filter(|other| **other != "version").find(given).copied().or(by)
            {
                return together("key", other);
            }
            if keys > MAX_KEYS {
                return Err(Problem::rejected(format!(
                    "{keys} keys are more than {MAX_KEYS}, the most at a time"
                )));
            }
            Which::Keys(listed.into_iter().map(|(_, key)| key.into_owned()).collect())
        } else {
            if let (Some(by), Some(other)) = (by, ["prefix", "from", "to"].iter().find(given)) {
                return together(by, other);
            }
            let by = listed.into_iter().map(|(name, value)| (name.to_owned(), value.into_owned())).collect();
            Which::Page(Page::read(&query, by)?)
        };
        let version = query.number("version")?.map(Version);
        let view = newest.as_deref().cloned();
        // Not held while something is waited for.
        drop(newest);
        let view = match version {
            Some(version) => at(reader, version).await?,
            None => view.ok_or_else(|| not_readable(reader))?,
        };
        let head = Head::of(&view);
        if head.is_known_to(headers) {
            return Ok(Err(head.not_modified()));
        }
        Ok(Ok(Asked { view, head, dataset: reader.dataset().to_owned(), which }))
    }

    /// The answer where it is a few records by their keys, and they are small: no more than as many requests for one record
    /// would take of this thread, and handing it to another costs more than making it.
    fn at_once(&self) -> Result<Option<Response>, Problem> {
        let Which::Keys(keys) = &self.which else { return Ok(None) };
        if keys.len() > FEW {
            return Ok(None);
        }
        let mut body = self.begin();
        match put_keys(&self.view, keys, turns::LARGE, &mut body) {
            Ok(()) if body.len() <= turns::LARGE => Ok(Some(self.head.clone().with(turns::body(body, None)))),
            Ok(()) | Err(Ends::TooLarge(_)) => Ok(None),
            Err(Ends::Problem(problem)) => Err(problem),
        }
    }

    fn make(self, turn: Turn) -> Result<Response, Problem> {
        let mut body = self.begin();
        match self.which {
            Which::Keys(keys) => put_keys(&self.view, &keys, MAX_PAGE_BYTES, &mut body).map_err(|ends| match ends {
                Ends::TooLarge(count) => Problem::rejected(format!(
                    "the first {count} of these records have {MAX_PAGE_BYTES} bytes, the most at a time: ask for fewer"
                )),
                Ends::Problem(problem) => problem,
            })?,
            Which::Page(page) => page.put(&self.view, &mut body)?,
        }
        Ok(self.head.with(turns::body(body, Some(turn))))
    }

    fn begin(&self) -> String {
        let mut body = String::new();
        let (dataset, version) = (serde_json::Value::from(&*self.dataset), self.view.version());
        // Writing to a String cannot fail.
        let _ = write!(body, "{{\"dataset\":{dataset},\"version\":{version},\"records\":[");
        body
    }
}

/// Why records are not put into an answer.
enum Ends {
    /// So many of them have as many bytes as there may be already.
    TooLarge(usize),
    Problem(Problem),
}

impl From<crate::Error> for Ends {
    fn from(error: crate::Error) -> Ends {
        Ends::Problem(error.into())
    }
}

fn put_keys(view: &View, keys: &[Vec<u8>], most_bytes: usize, body: &mut String) -> Result<(), Ends> {
    let mut count = 0;
    view.get_each(keys, |key, value| {
        if body.len() > most_bytes {
            return Err(Ends::TooLarge(count));
        }
        // What is too large by itself is not written out before it is passed over.
        if most_bytes < MAX_PAGE_BYTES && value.as_ref().is_some_and(|value| value.bytes().len() > most_bytes)
        {
            return Err(Ends::TooLarge(count));
        }
        open_record(key, count == 0, body);
        match value {
            Some(value) => put_value(&value, body).map_err(Ends::Problem)?,
            None => body.push_str("null"),
        }
        body.push('}');
        count += 1;
        Ok(())
    })?;
    body.push_str("]}");
    Ok(())
}

fn open_record(key: &[u8], first: bool, body: &mut String) {
    body.push_str(if first { "{\"key\":" } else { ",{\"key\":" });
    text::key_to_json(key, body);
    body.push_str(",\"value\":");
}

impl Page {
    fn read<const N: usize>(query: &Query<'_, N>, by: Vec<(String, Vec<u8>)>) -> Result<Page, Problem> {
        let limit = query.number("limit")?.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(Problem::rejected(format!("limit = {limit} is not from 1 to {MAX_LIMIT}")));
        }
        let next = URL_SAFE_NO_PAD.decode(query.bytes("next").unwrap_or_default()).map_err(|_| {
            Problem::rejected("next is not what a page gave as its next; leave it out for the first page")
        })?;
        let own = |name| query.bytes(name).unwrap_or_default().to_vec();
        // Of both, whichever begins later; a page's next lies behind where the first one began.
        let from = own("from").max(next);
        Ok(Page { prefix: own("prefix"), from, to: query.bytes("to").map(<[u8]>::to_vec), limit, by })
    }

    fn put(&self, view: &View, body: &mut String) -> Result<(), Problem> {
        if self.by.is_empty() {
            return self.put_all(view.prefix_from(&self.prefix, &self.from), body);
        }
        let mut terms = Vec::with_capacity(self.by.len());
        for (at, (field, text)) in self.by.iter().enumerate() {
            if self.by.iter().take(at).any(|(before, _)| before == field) {
                return Err(Problem::rejected(format!("the parameter {field} stands twice")));
            }
            terms.push((field.as_str(), view.term(field, text)?));
        }
        self.put_all(view.by_all_from(&terms, &self.from)?, body)
    }

    fn put_all<'v>(
        &self,
        records: impl Iterator<Item = crate::Result<Value<'v>>>,
        body: &mut String,
    ) -> Result<(), Problem> {
        let mut next = None;
        for (count, value) in (0u64..).zip(records) {
            let value = value?;
            if self.to.as_deref().is_some_and(|to| value.key() >= to) {
                break;
            }
            if count == self.limit || body.len() > MAX_PAGE_BYTES {
                next = Some(URL_SAFE_NO_PAD.encode(value.key()));
                break;
            }
            open_record(value.key(), count == 0, body);
            put_value(&value, body)?;
            body.push('}');
        }
        body.push_str("],\"next\":");
        match next {
            // Base64 needs no escapes.
            Some(next) => body.extend(["\"", &next, "\"}"]),
            None => body.push_str("null}"),
        }
        Ok(())
    }
}

/// Dataset and key of `/v1/datasets/{name}/records/{key}`, still encoded; the key is empty where there is none.
pub(super) fn parts(path: &str) -> (&str, &str) {
    let rest = path.strip_prefix("/v1/datasets/").unwrap_or_default();
    let (name, rest) = rest.split_once('/').unwrap_or((rest, ""));
    (name, rest.strip_prefix("records/").unwrap_or_default())
}

/// The dataset of an encoded name.
pub(super) fn dataset<'a>(app: &'a App, name: &str) -> Result<&'a Arc<Dataset>, Problem> {
    let decoded = decode_path(name)?;
    let found = std::str::from_utf8(&decoded).ok().and_then(|name| app.0.directory.get(name));
    found.ok_or_else(|| {
        let names: Vec<_> = app.0.directory.all().iter().map(|dataset| dataset.name()).collect();
        let name = String::from_utf8_lossy(&decoded);
        Problem::not_found(format!("there is no dataset {name} here")).with("datasets", names)
    })
}

pub(super) fn reader(dataset: &Dataset) -> Result<&Reader, Problem> {
    dataset.reader().ok_or_else(|| {
        Problem::not_found(format!(
            "this process writes dataset {} and does not read it; ask one that runs with --role consumer, or both",
            dataset.name()
        ))
    })
}

/// Why the writer of a dataset cannot be asked.
pub(super) fn unwritten(dataset: &Dataset) -> Problem {
    let name = dataset.name();
    match (dataset.awaited(), dataset.ended()) {
        (Some(why), _) => {
            Problem::of(ErrorKind::Unavailable, format!("dataset {name} is not written yet: {why}"))
        }
        (None, Some(mistake)) => Problem::of(
            ErrorKind::Unavailable,
            format!("dataset {name} is not written any more, it has ended: {mistake}"),
        ),
        (None, None) => Problem::not_found(format!(
            "this process reads dataset {name} and does not write it; ask one that runs with --role producer, or both"
        )),
    }
}

fn not_readable(reader: &Reader) -> Problem {
    let why = reader.not_ready().unwrap_or_else(|| "it is just being opened".to_owned());
    let dataset = reader.dataset();
    let detail = format!("no version of dataset {dataset} is readable yet: {why}");
    Problem::of(ErrorKind::Unavailable, detail)
}

/// The version that is asked for, and no other.
async fn at(reader: &Reader, version: Version) -> Result<View, Problem> {
    let held = match reader.load().as_deref() {
        Some(view) if view.version() == version => return Ok(view.clone()),
        Some(view) => view.version(),
        None => return Err(not_readable(reader)),
    };
    reader.at(version).await.map_err(|error| match error.kind() {
        ErrorKind::Rejected => Problem::not_found(error.chain()).with("version", held),
        _ => error.into(),
    })
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
#[derive(Clone)]
struct Head {
    etag: String,
    stale: bool,
}

impl Head {
    fn of(view: &View) -> Head {
        // The number alone would name other content after a change of filter or fields, and in another announcement topic.
        Head { etag: format!("\"{}.{:08x}\"", view.versions(), view.mark()), stale: view.about().stale }
    }

    /// Whether the asker has this version, by `If-None-Match` (RFC 9110, 13.1.2).
    fn is_known_to(&self, headers: &HeaderMap) -> bool {
        headers.get_all(IF_NONE_MATCH).iter().any(|value| names(value.as_bytes(), self.etag.as_bytes()))
    }

    fn not_modified(self) -> Response {
        self.dress(StatusCode::NOT_MODIFIED.into_response())
    }

    fn with(self, body: Body) -> Response {
        let mut response = Response::new(body);
        response.headers_mut().insert(CONTENT_TYPE, JSON);
        self.dress(response)
    }

    fn dress(self, mut response: Response) -> Response {
        let etag =
            HeaderValue::try_from(self.etag).expect("digits, commas, dots and quotes may stand in a header");
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
