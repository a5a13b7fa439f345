//! The changes of a dataset as server-sent events
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>), for who follows it from outside.
//!
//! ```text
//! retry: 1000
//!
//! id: 7                                          where the client is: it begins here, or was reset to it
//! event: version
//! data: {"version":7,"from":7,"changes":0,"rollback":false}
//!
//! event: change                                  one for each key, without an id
//! data: {"version":8,"key":"P-100","old":{"price":24.5},"new":{"price":22}}
//!
//! id: 8                                          the version is complete: who comes back goes on behind it
//! event: version
//! data: {"version":8,"from":7,"changes":1,"rollback":false}
//! ```
//!
//! Only a complete version has an id, so a client that is cut off in the middle of one is given it again, whole. A rollback
//! begins with an event `rollback`; `reset` says that what the client has cannot be compared with what there is; `goodbye`
//! says why this process ends the stream.
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
use crate::consumer::recent::{Cursor, Step, is_same};
use crate::error::ErrorKind;
use crate::host::Dataset;
use crate::version::Version;
use crate::view::{Value, View};

/// Clients of all datasets at a time.
pub const MAX_STREAMS: usize = 256;
/// How often something is sent when nothing changes, so that nobody between takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a client may leave what it was sent unread.
pub(super) const STALL: Duration = Duration::from_secs(30);
/// Most bytes that are made at a time, a little over.
const PIECE: usize = 64 << 10;

const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");
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
        None => query.number("since")?,
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
    let (cursor, hello) = begin(cursor, since.map(Version), reader.recent()).await;
    let stream = Stream::new(app, dataset, cursor, hello, room);
    let body = Body::from_stream(futures::stream::unfold(stream, Stream::next));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, EVENT_STREAM);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

/// `Last-Event-ID`, where a client says it; an empty one is none.
fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let text = value.to_str().unwrap_or("?").trim();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        Problem::rejected(format!(
            "Last-Event-ID = {text:?} is not the id of an event here: a version's number"
        ))
    })
}

/// A cursor behind what the client has seen, and what it is told first.
async fn begin(
    cursor: Cursor,
    since: Option<Version>,
    recent: &crate::consumer::recent::Recent,
) -> (Cursor, String) {
    let newest = cursor.newest().view.clone();
    let retry = "retry: 1000\n\n";
    let at = |version| format!("{retry}{}", ends(version, version, 0, false));
    let Some(since) = since.filter(|since| *since != newest.version()) else {
        return (cursor, at(newest.version()));
    };
    if since == Version(0) {
        let nothing = View::empty(newest.identity().clone(), newest.schema().clone());
        return (cursor.from(nothing), retry.to_owned());
    }
    match recent.open(since).await {
        Some(view) => (cursor.from(view), retry.to_owned()),
        None => {
            let (version, why) =
                (newest.version(), "is not held any more, nor is what leads from it to the newest");
            let why = if since > version { "is not the newest, and is not held" } else { why };
            let data =
                format!("{{\"version\":{version},\"since\":{since},\"reason\":\"version {since} {why}\"}}");
            (cursor, format!("{retry}id: {version}\nevent: reset\ndata: {data}\n\n"))
        }
    }
}

/// The event that completes a version.
fn ends(version: Version, from: Version, changes: u64, rollback: bool) -> String {
    format!(
        "id: {version}\nevent: version\n\
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
    key: Vec<u8>,
    changes: u64,
    begun: bool,
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
    fn new(
        app: &App,
        dataset: &Arc<Dataset>,
        cursor: Cursor,
        hello: String,
        room: OwnedSemaphorePermit,
    ) -> Stream {
        let clients = dataset.reading().map(|reading| reading.metrics().change_streams.clone());
        if let Some(clients) = &clients {
            clients.inc();
        }
        Stream {
            app: app.clone(),
            dataset: Arc::clone(dataset),
            cursor,
            hello: Some(hello),
            under_way: None,
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
            self.under_way = Some(UnderWay { step, key: Vec::new(), changes: 0, begun: false });
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
    let view = &under_way.step.view;
    let (version, from) = (view.version(), before.version());
    let rollback = version < from;
    let mut text = String::new();
    if rollback && !under_way.begun {
        // Writing to a String cannot fail.
        let _ = write!(text, "event: rollback\ndata: {{\"version\":{version},\"from\":{from}}}\n\n");
    }
    under_way.begun = true;
    for change in view.changes_from_key(before, &under_way.key) {
        let change = change?;
        if text.len() >= PIECE {
            under_way.key = change.key().to_vec();
            return Ok((text, false));
        }
        let _ = write!(text, "event: change\ndata: {{\"version\":{version},\"key\":");
        text::key_to_json(change.key(), &mut text);
        text.push_str(",\"old\":");
        put(change.before(), &mut text)?;
        text.push_str(",\"new\":");
        put(change.after(), &mut text)?;
        text.push_str("}\n\n");
        under_way.changes += 1;
    }
    text.push_str(&ends(version, from, under_way.changes, rollback));
    Ok((text, true))
}

fn put(value: Option<&Value<'_>>, out: &mut String) -> crate::Result<()> {
    let Some(value) = value else {
        out.push_str("null");
        return Ok(());
    };
    text::to_json(value.schema(), value.bytes(), out)
        .map_err(|error| crate::Error::because(ErrorKind::Corrupt, "writing a changed value as JSON", error))
}

#[cfg(test)]
mod tests;
