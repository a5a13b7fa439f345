//! Event streams over versions that are published by hand.

use axum::http::Request;
use http_body_util::BodyExt as _;
use serde_json::{Value as Json, json};

use super::super::tests::{app, ask, get, problem, view};
use super::*;
use crate::consumer::recent::Recent;
use crate::format::announcement::{Announcement, SourcePosition};
use crate::version::{BlobRef, Checksum, DeltaRef};

mod cut;

const PATH: &str = "/v1/datasets/products/changes";

/// What announces a view; its blobs are nowhere.
fn announcement(view: &View) -> Announcement {
    let about = view.about();
    let delta = |version: u64| DeltaRef {
        version: Version(version),
        epoch: 1,
        blob: BlobRef {
            name: format!("{version}"),
            bytes: 1,
            checksum: Checksum(1),
            plain_bytes: 1,
            plain_checksum: Checksum(1),
            location: None,
        },
        upserts: 0,
        deletes: 0,
    };
    let chain: Vec<_> = (1..=view.version().0).map(delta).collect();
    let position = |position: &crate::record::Position| SourcePosition {
        source: position.source.clone(),
        start: 0,
        offset: position.offset,
        target: 0,
    };
    Announcement {
        dataset: "products".into(),
        shard: view.identity().shard,
        shards: 1,
        life: about.life,
        version: view.version(),
        previous: (view.version() > Version(1)).then(|| (Version(view.version().0 - 1), 1)),
        announced_at: about.announced_at_ms,
        caught_up: true,
        records: about.records,
        upserts: 0,
        deletes: 0,
        letters: 0,
        coalesced: 0,
        unchanged: 0,
        schema: view.schema().json().to_owned(),
        schema_fingerprint: view.schema().fingerprint(),
        positions: about.positions.iter().map(position).collect(),
        delta: delta(view.version().0),
        inline: None,
        snapshot: None,
        chain,
        oldest_kept: Version(0),
        newest_timestamp: None,
        traceparent: None,
    }
}

pub(in crate::http) fn publish(recent: &Recent, view: View) {
    let announcement = announcement(&view);
    recent.publish(view, &announcement);
}

/// The routes over version 1, which is confirmed, and what publishes the next.
pub(in crate::http) fn confirmed(keys: &[&[u8]]) -> (App, Recent) {
    let first = view(1, keys);
    let app = app([first.clone()]);
    let recent = app.0.directory.get("products").unwrap().reader().unwrap().recent().clone();
    publish(&recent, first);
    (app, recent)
}

/// Reads a stream event by event.
struct Client {
    body: Body,
    text: String,
    /// The last id, as it came.
    last: String,
}

impl Client {
    async fn open(app: &App, query: &str, last: Option<&str>) -> Client {
        let mut request = Request::get(format!("{PATH}{query}"));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = ask(app, request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Client { body: response.into_body(), text: String::new(), last: String::new() }
    }

    /// The next event: id without its mark, name and data; `None` at the end.
    async fn next(&mut self) -> Option<(String, String, Json)> {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| {
                    event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned()
                };
                let (id, data) = (field("id: "), field("data: "));
                let (versions, mark) = id.split_once('.').unwrap_or_default();
                assert!(id.is_empty() || mark.len() == 8, "{id}");
                if !data.is_empty() {
                    if !id.is_empty() {
                        self.last = id.clone();
                    }
                    let data = serde_json::from_str(&data).unwrap();
                    return Some((versions.to_owned(), field("event: "), data));
                }
            }
            let frame = tokio::time::timeout(Duration::from_secs(60), self.body.frame());
            let frame = frame.await.expect("something comes")?.unwrap().into_data().unwrap();
            self.text += std::str::from_utf8(&frame).unwrap();
        }
    }

    async fn expect(&mut self, id: &str, name: &str, data: Json) {
        assert_eq!(self.next().await, Some((id.to_owned(), name.to_owned(), data)));
    }
}

#[tokio::test]
async fn changes_come_key_by_key_and_a_version_is_complete_by_its_id() {
    let (app, recent) = confirmed(&[b"a"]);
    let gauge = || {
        let dataset = app.0.directory.get("products").unwrap();
        dataset.reading().unwrap().metrics().change_streams.get()
    };
    let mut client = Client::open(&app, "", None).await;
    assert_eq!(gauge(), 1);
    let version = |version: u64, from: u64, changes: u64, rollback: bool| json!({"version": version, "from": from, "changes": changes, "rollback": rollback});
    client.expect("1", "version", version(1, 1, 0, false)).await;
    publish(&recent, view(2, &[b"a", b"b\n", b"\xff"]));
    let new = |key: &str| json!({ "name": key });
    client.expect("1+2", "change", json!({"version": 2, "key": "b\n", "old": null, "new": new("b\n")})).await;
    let key = json!({"base64": "/w=="});
    client
        .expect("1+2", "change", json!({"version": 2, "key": key, "old": null, "new": new("\u{fffd}")}))
        .await;
    client.expect("2", "version", version(2, 1, 2, false)).await;
    publish(&recent, view(1, &[b"a"]));
    client.expect("", "rollback", json!({"version": 1, "from": 2})).await;
    client.expect("2+1", "change", json!({"version": 1, "key": "b\n", "old": new("b\n"), "new": null})).await;
    client.next().await.unwrap();
    client.expect("1", "version", version(1, 2, 2, true)).await;
    app.0.directory.drain();
    let goodbye = json!({"reason": "shutdown", "detail": "the process is shutting down"});
    client.expect("", "goodbye", goodbye).await;
    assert_eq!(client.next().await, None);
    drop(client);
    assert_eq!(gauge(), 0);
}

#[tokio::test]
async fn it_goes_on_behind_what_the_client_has_or_says_that_it_cannot() {
    let (app, recent) = confirmed(&[b"a"]);
    let mut all = Client::open(&app, "?since=0", None).await;
    all.expect("0+1", "change", json!({"version": 1, "key": "a", "old": null, "new": {"name": "a"}})).await;
    assert_eq!(all.next().await.unwrap().0, "1");
    // The header counts: a browser that comes back asks for the URL of the beginning.
    let mut client = Client::open(&app, "?since=0", Some("1")).await;
    assert_eq!(client.next().await.unwrap().2["from"], 1);
    publish(&recent, view(2, &[b"b"]));
    for client in [&mut all, &mut client] {
        client
            .expect("1+2", "change", json!({"version": 2, "key": "b", "old": null, "new": {"name": "b"}}))
            .await;
        assert_eq!(client.next().await.unwrap().0, "2");
    }
    // Version 1 cannot be opened any more (here its blobs never were), and version 9 was never heard of.
    for last in ["1", "9"] {
        let (id, name, data) = Client::open(&app, "", Some(last)).await.next().await.unwrap();
        assert_eq!((id.as_str(), name.as_str(), &data["version"]), ("2", "reset", &json!(2)));
        assert_eq!(data["since"].to_string(), last);
    }
    for (path, last) in [(PATH, "x"), (PATH, "-1"), ("/v1/datasets/products/changes?since=x", "")] {
        let request = Request::get(path).header("last-event-id", last).body(Body::empty()).unwrap();
        assert_eq!(ask(&app, request).await.status(), 400, "{path} {last}");
    }
    problem(&app, "/v1/datasets/products/changes?sinc=1", 400).await;
    problem(&app, "/v1/datasets/nothing/changes", 404).await;
}

#[tokio::test]
async fn a_large_version_comes_in_pieces() {
    let (app, recent) = confirmed(&[]);
    let keys: Vec<Vec<u8>> = (0..4_000).map(|number| format!("key-{number:05}").into_bytes()).collect();
    let mut client = Client::open(&app, "", None).await;
    client.next().await.unwrap();
    publish(&recent, view(2, &keys.iter().map(Vec::as_slice).collect::<Vec<_>>()));
    for key in &keys {
        let (id, name, data) = client.next().await.unwrap();
        assert_eq!((id.as_str(), name.as_str()), ("1+2", "change"));
        assert_eq!(data["key"], *String::from_utf8_lossy(key));
        assert!(client.text.len() < 2 * PIECE, "{} bytes at a time", client.text.len());
    }
    assert_eq!(client.next().await.unwrap().2["changes"], 4_000);
}

#[tokio::test]
async fn clients_are_bounded_and_a_version_is_confirmed_first() {
    let unconfirmed = app([view(1, &[b"a"])]);
    problem(&unconfirmed, PATH, 503).await;
    let (app, _recent) = confirmed(&[b"a"]);
    let mut clients = Vec::new();
    for _ in 0..MAX_STREAMS {
        clients.push(Client::open(&app, "", None).await);
    }
    let full = problem(&app, PATH, 503).await;
    assert!(full["detail"].as_str().unwrap().starts_with("256 clients"), "{full}");
    clients.pop();
    assert_eq!(get(&app, PATH).await.status(), 200);
}

#[tokio::test]
async fn who_reads_nothing_for_too_long_is_told_and_let_go() {
    let (app, recent) = confirmed(&[b"a"]);
    let dataset = app.0.directory.get("products").unwrap();
    let room = Arc::clone(&app.0.streams).try_acquire_owned().unwrap();
    let begun = Begun { cursor: recent.cursor().unwrap(), hello: "hello".to_owned(), under_way: None };
    let mut stream = Stream::new(&app, dataset, begun, room);
    stream.handed = Instant::now().checked_sub(STALL + Duration::from_secs(1));
    // The first piece was never waited for.
    let (hello, mut stream) = stream.next().await.unwrap();
    assert_eq!(hello.unwrap(), "hello");
    stream.handed = Instant::now().checked_sub(STALL + Duration::from_secs(1));
    let (goodbye, stream) = stream.next().await.unwrap();
    let goodbye = String::from_utf8(goodbye.unwrap().to_vec()).unwrap();
    assert!(goodbye.starts_with("event: goodbye\ndata: {\"reason\":\"slow\""), "{goodbye}");
    assert!(stream.next().await.is_none());
    assert_eq!(dataset.reading().unwrap().metrics().change_streams_ended_total.with(&["slow"]).get(), 1);
}
