//! The changes of a dataset as server-sent events
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>), for who follows it from outside.
//!
//! ```text
//! retry: 1000
//!
//! id: 7.51ab20c1                                 where the client is: it begins here, or was reset to it
//! event: version
//! data: {"version":7,"from":7,"changes":0,"rollback":false}
//!
//! id: 7+8.51ab20c1                               still 7, and a part of 8
//! event: change                                  one for each key
//! data: {"version":8,"key":"P-100","old":{"price":24.5},"new":{"price":22}}
//!
//! id: 8.51ab20c1                                 the version is complete: who comes back goes on behind it
//! event: version
//! data: {"version":8,"from":7,"changes":1,"rollback":false}
//! ```
//!
//! A client that is cut off in the middle of a version has some keys as they were and some as they are in it, and that
//! version may not be on its way any more when it comes back: a pin, or several versions as one. Its id says so (`seen`): each
//! key in which the two differ comes with what it is now, then what has changed since the version that it had whole. The id
//! also says of what: an id of another history, or of other fields, is a `reset`.
//!
//! A rollback begins with an event `rollback`; `reset` says that what the client has cannot be compared with what there is;
//! `goodbye` says why this process ends the stream.
//!
//! A client costs the view that it is at, and one piece of text: the next is made when it has taken the one before. One that
//! is slower than the dataset is given several versions as one. One that takes nothing for 30 seconds is told so, if it ever
//! reads on, and its connection is closed by the system (`serve`).
//!
//! Owns: the events and their order. Does not own: what changed (`view`), which versions there are (`consumer/recent`).

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use prometheus::IntGauge;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::App;
use super::problem::Problem;
use super::query::Query;
use super::records;
use crate::codec::text;
use crate::consumer::recent::{Cursor, Recent, Step, is_same};
use crate::error::ErrorKind;
use crate::host::Dataset;
use crate::version::Version;
use crate::view::{Value, View};

mod seen;
#[cfg(test)]
pub(super) mod tests;

use seen::{MOST_PARTS, Seen};

/// Clients of all datasets at a time.
pub const MAX_STREAMS: usize = 256;
/// How often something is sent when nothing changes, so that nobody between takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a client may leave what it was sent unread.
pub(super) const STALL: Duration = Duration::from_secs(30);
/// Most bytes that are made at a time, a little over.
const PIECE: usize = 64 << 10;

/// The first that is sent: how long a browser waits before it comes back, in milliseconds.
const RETRY: &str = "retry: 1000\n\n";
pub(super) const EVENT_STREAM: &str = "text/event-stream";
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Proxies that collect answers are asked not to.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// `GET /v1/datasets/{name}/changes?since=`.
pub(super) async fn changes(State(app): State<App>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    open(&app, &parts).await.unwrap_or_else(Problem::into_response)
}

async fn open(app: &App, request: &Parts) -> Result<Response, Problem> {
    let name =
        request.uri.path().strip_prefix("/v1/datasets/").and_then(|rest| rest.strip_suffix("/changes"));
    let dataset = records::dataset(app, name.unwrap_or_default())?;
    let query = Query::read(request.uri.query(), ["since"])?;
    // A browser that comes back asks for the same URL, and says where it is.
    let since = match last_event_id(&request.headers)? {
        Some(id) => Some(id),
        None => query
            .bytes("since")
            .filter(|text| !text.is_empty())
            .map(|text| seen("since", text))
            .transpose()?,
    };
    let reader = records::reader(dataset)?;
    let room = Arc::clone(&app.0.streams).try_acquire_owned().map_err(|_| {
        Problem::of(
            ErrorKind::Unavailable,
            format!("{MAX_STREAMS} clients follow changes here already; try another process, or later"),
        )
    })?;
    let cursor = reader.recent().cursor().ok_or_else(|| {
        let why = reader.not_ready().unwrap_or_else(|| "it is just being opened".to_owned());
        let dataset = reader.dataset();
        Problem::of(
            ErrorKind::Unavailable,
            format!("no version of dataset {dataset} is confirmed by Kafka yet: {why}"),
        )
    })?;
    let begun = begin(cursor, since, reader.recent()).await;
    let stream = Stream::new(app, dataset, begun, room);
    let body = Body::from_stream(futures::stream::unfold(stream, Stream::next));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

/// `Last-Event-ID`, where a client says it; an empty one is none.
fn last_event_id(headers: &HeaderMap) -> Result<Option<Seen>, Problem> {
    let text = headers.get(LAST_EVENT_ID).map_or(&[][..], |value| value.as_bytes().trim_ascii());
    if text.is_empty() {
        return Ok(None);
    }
    seen("Last-Event-ID", text).map(Some)
}

fn seen(name: &str, text: &[u8]) -> Result<Seen, Problem> {
    let text = String::from_utf8_lossy(text);
    Seen::read(&text).ok_or_else(|| {
        Problem::rejected(format!(
            "{name} = {text:?} is not the id of an event here, as in 7.51ab20c1 or 7+8.51ab20c1, nor a version's number"
        ))
    })
}

/// Where a stream begins.
struct Begun {
    /// Behind what the client has.
    cursor: Cursor,
    /// What it is told first.
    hello: String,
    /// The first step, where the client is owed more than what has changed.
    under_way: Option<UnderWay>,
}

/// Where a stream begins for who has seen so much; for who does not say, at the newest version.
async fn begin(cursor: Cursor, since: Option<Seen>, recent: &Recent) -> Begun {
    let newest = cursor.newest().view.clone();
    let (at, now) = (newest.version(), Seen::whole(&newest));
    let seen = Seen { mark: now.mark, ..since.clone().unwrap_or_else(|| now.clone()) };
    let is_other = since.and_then(|since| since.mark).is_some_and(|mark| Some(mark) != now.mark);
    if is_other {
        let why = "the id is of another history, or of other fields or another filter than this reader's";
        return reset(cursor, &seen, why);
    }
    if seen == now {
        return Begun { cursor, hello: format!("{RETRY}{}", ends(&newest, at, 0)), under_way: None };
    }
    match resume(cursor, &seen, recent).await {
        Ok((cursor, under_way)) => Begun { cursor, hello: RETRY.to_owned(), under_way },
        Err((cursor, why)) => reset(cursor, &seen, &why),
    }
}

/// At the newest version, of which the client has to read all.
fn reset(cursor: Cursor, seen: &Seen, why: &str) -> Begun {
    let newest = cursor.newest().view.clone();
    let (version, since, id) = (newest.version(), seen.whole, Seen::whole(&newest));
    let data = format!("{{\"version\":{version},\"since\":{since},\"reason\":\"{why}\"}}");
    let hello = format!("{RETRY}id: {id}\nevent: reset\ndata: {data}\n\n");
    Begun { cursor: cursor.from(newest), hello, under_way: None }
}

/// A cursor behind the version that the client has, with its first step where parts of others have to be mended; or why not.
async fn resume(
    cursor: Cursor,
    seen: &Seen,
    recent: &Recent,
) -> Result<(Cursor, Option<UnderWay>), (Cursor, String)> {
    let newest = cursor.newest().view.clone();
    if seen.parts.len() > MOST_PARTS {
        return Err((cursor, format!("it was cut off in {} versions", seen.parts.len())));
    }
    let lost = |version: Version| match version > newest.version() {
        true => format!("version {version} is not the newest, and is not held"),
        false => {
            format!("version {version} is not held any more, nor is what leads from it to the newest")
        }
    };
    let had = async |version: Version| match version {
        version if version == newest.version() => Some(newest.clone()),
        version => recent.open(version).await,
    };
    let before = match seen.whole {
        Version(0) => Some(View::empty(newest.identity().clone(), newest.schema().clone())),
        whole => had(whole).await,
    };
    let Some(before) = before else { return Err((cursor, lost(seen.whole))) };
    let mut cursor = cursor.from(before);
    if seen.parts.is_empty() {
        return Ok((cursor, None));
    }
    let step = match is_same(cursor.at(), &newest) {
        true => cursor.newest().clone(),
        false => cursor.waiting().await.unwrap_or_else(|| cursor.newest().clone()),
    };
    let mut owed = Vec::new();
    // What leads to a version itself names all in which the client may have a part of it.
    for part in seen.parts.iter().filter(|part| **part != step.view.version()) {
        let Some(view) = had(*part).await else { return Err((cursor, lost(*part))) };
        owed.push(view);
    }
    Ok((cursor, Some(UnderWay::new(step, seen.clone(), owed))))
}

/// The event that completes a version.
fn ends(view: &View, from: Version, changes: u64) -> String {
    let (version, id) = (view.version(), Seen::whole(view));
    let rollback = version < from;
    format!(
        "id: {id}\nevent: version\n\
         data: {{\"version\":{version},\"from\":{from},\"changes\":{changes},\"rollback\":{rollback}}}\n\n"
    )
}

/// Why this process ends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Slow,
    Shutdown,
    Unreadable,
    Closed,
}

impl End {
    fn word(self) -> &'static str {
        match self {
            End::Slow => "slow",
            End::Shutdown => "shutdown",
            End::Unreadable => "unreadable",
            End::Closed => "closed",
        }
    }

    fn sentence(self) -> String {
        match self {
            End::Slow => format!("nothing was read for {} seconds", STALL.as_secs()),
            End::Shutdown => "the process is shutting down".to_owned(),
            End::Unreadable => "a stored page is damaged and is being mended".to_owned(),
            End::Closed => "the dataset is not followed here any more".to_owned(),
        }
    }
}

/// One client's stream.
struct Stream {
    app: App,
    dataset: Arc<Dataset>,
    cursor: Cursor,
    /// What was made and not sent yet.
    hello: Option<String>,
    /// The version under way.
    under_way: Option<UnderWay>,
    /// When the last piece was handed over.
    handed: Option<Instant>,
    ended: bool,
    _counted: Counted,
    _room: OwnedSemaphorePermit,
}

/// A version of which a part has been sent.
struct UnderWay {
    step: Step,
    /// Of its changes.
    id: String,
    /// Other versions of which the client may have a part: what they changed comes first, as it is in this one.
    owed: Vec<View>,
    /// Where to go on: in the last of `owed`, or in the step itself.
    key: Vec<u8>,
    changes: u64,
    begun: bool,
}

impl UnderWay {
    /// A step for who has seen so much.
    fn new(step: Step, seen: Seen, owed: Vec<View>) -> UnderWay {
        let id = seen.and(step.view.version()).to_string();
        UnderWay { step, id, owed, key: Vec::new(), changes: 0, begun: false }
    }
}

/// Counts a client for as long as it is there.
struct Counted(Option<IntGauge>);

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(clients) = &self.0 {
            clients.dec();
        }
    }
}

impl Stream {
    fn new(app: &App, dataset: &Arc<Dataset>, begun: Begun, room: OwnedSemaphorePermit) -> Stream {
        let Begun { cursor, hello, under_way } = begun;
        let clients = dataset.reading().map(|reading| reading.metrics().change_streams.clone());
        if let Some(clients) = &clients {
            clients.inc();
        }
        Stream {
            app: app.clone(),
            dataset: Arc::clone(dataset),
            cursor,
            hello: Some(hello),
            under_way,
            handed: None,
            ended: false,
            _counted: Counted(clients),
            _room: room,
        }
    }

    /// The next piece; asked for when the one before has been taken.
    async fn next(mut self) -> Option<(Result<Bytes, std::convert::Infallible>, Stream)> {
        if self.ended {
            return None;
        }
        let text = match self.piece().await {
            Ok(text) => text,
            Err(end) => {
                self.ended = true;
                if let Some(reading) = self.dataset.reading() {
                    reading.metrics().change_streams_ended_total.with(&[end.word()]).inc();
                }
                let (reason, detail) = (end.word(), end.sentence());
                format!("event: goodbye\ndata: {{\"reason\":\"{reason}\",\"detail\":\"{detail}\"}}\n\n")
            }
        };
        self.handed = Some(Instant::now());
        Some((Ok(Bytes::from(text)), self))
    }

    async fn piece(&mut self) -> Result<String, End> {
        if let Some(hello) = self.hello.take() {
            return Ok(hello);
        }
        if self.handed.is_some_and(|handed| handed.elapsed() > STALL) {
            return Err(End::Slow);
        }
        let directory = self.app.0.directory.clone();
        loop {
            let step = match self.under_way.take() {
                Some(under_way) => return self.go_on(under_way).await,
                None => match self.cursor.waiting().await {
                    Some(step) => step,
                    None => tokio::select! {
                        () = directory.drained() => return Err(End::Shutdown),
                        step = self.cursor.next() => step.ok_or(End::Closed)?,
                        () = tokio::time::sleep(KEEP_ALIVE) => return Ok(": nothing new\n\n".to_owned()),
                    },
                },
            };
            if is_same(self.cursor.at(), &step.view) {
                self.cursor.pass(step);
                continue;
            }
            let before = self.cursor.at();
            // Who has a part of another history than before has nothing that can be mended: the mark says so.
            let is_new = before.identity().topic_id != step.view.identity().topic_id;
            let mark = if is_new { before.mark() } else { step.view.mark() };
            let seen = Seen { mark: Some(mark), ..Seen::whole(before) };
            self.under_way = Some(UnderWay::new(step, seen, Vec::new()));
        }
    }

    /// The next piece of a version. Reading it may touch many pages of a file: not on a thread that others wait for.
    async fn go_on(&mut self, mut under_way: UnderWay) -> Result<String, End> {
        if self.app.0.directory.is_draining() {
            return Err(End::Shutdown);
        }
        let before = self.cursor.at().clone();
        let made = tokio::task::spawn_blocking(move || {
            let made = make(&before, &mut under_way);
            made.map(|(text, done)| (text, done, under_way))
        });
        match made.await {
            Ok(Ok((text, done, under_way))) => {
                match done {
                    true => self.cursor.pass(under_way.step),
                    false => self.under_way = Some(under_way),
                }
                Ok(text)
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    dataset = self.dataset.name(),
                    error = error.chain(),
                    "the changes of a version cannot be read for an event stream, which ends"
                );
                Err(End::Unreadable)
            }
            Err(panic) => {
                tracing::error!(%panic, "making events panicked: this is a bug, please report it");
                Err(End::Unreadable)
            }
        }
    }
}

/// Some of the events between two views; and whether they are the last.
fn make(before: &View, under_way: &mut UnderWay) -> crate::Result<(String, bool)> {
    let UnderWay { step, id, owed, key, changes, begun } = under_way;
    let view = &step.view;
    let (version, from) = (view.version(), before.version());
    let mut text = String::new();
    if version < from && !*begun {
        // Writing to a String cannot fail.
        let _ = write!(text, "event: rollback\ndata: {{\"version\":{version},\"from\":{from}}}\n\n");
    }
    *begun = true;
    while let Some(part) = owed.last() {
        for change in part.changes_from_key(before, &*key) {
            let change = change?;
            if text.len() >= PIECE {
                *key = change.key().to_vec();
                return Ok((text, false));
            }
            let now = view.get(change.key())?;
            // Who had nothing is given all that is there below.
            if from == Version(0) && now.is_some() {
                continue;
            }
            event(&mut text, (id.as_str(), version), change.key(), change.before(), now.as_ref())?;
            *changes += 1;
        }
        owed.pop();
        key.clear();
    }
    for change in view.changes_from_key(before, &*key) {
        let change = change?;
        if text.len() >= PIECE {
            *key = change.key().to_vec();
            return Ok((text, false));
        }
        event(&mut text, (id.as_str(), version), change.key(), change.before(), change.after())?;
        *changes += 1;
    }
    text.push_str(&ends(view, from, *changes));
    Ok((text, true))
}

fn event(
    text: &mut String,
    (id, version): (&str, Version),
    key: &[u8],
    old: Option<&Value<'_>>,
    new: Option<&Value<'_>>,
) -> crate::Result<()> {
    let _ = write!(text, "id: {id}\nevent: change\ndata: {{\"version\":{version},\"key\":");
    text::key_to_json(key, text);
    text.push_str(",\"old\":");
    put(old, text)?;
    text.push_str(",\"new\":");
    put(new, text)?;
    text.push_str("}\n\n");
    Ok(())
}

fn put(value: Option<&Value<'_>>, out: &mut String) -> crate::Result<()> {
    let Some(value) = value else {
        out.push_str("null");
        return Ok(());
    };
    text::to_json(value.schema(), value.bytes(), out)
        .map_err(|error| crate::Error::because(ErrorKind::Corrupt, "writing a changed value as JSON", error))
}
