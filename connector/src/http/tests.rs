//! The routes over a dataset that stands still, in place and over a socket.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use http_body_util::BodyExt as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::codec::{Misfit, Stage};
use crate::consumer::Reader;
use crate::host::{Dataset, ReadingSide, Writes};
use crate::producer::Reliability;
use crate::producer::pace::Pace;
use crate::producer::storm::Storm;
use crate::record::TopicId;
use crate::telemetry::ConsumerMetrics;
use crate::view::View;

mod bounds;
mod hostile;
mod made;
mod reading;

pub(super) use made::view;
use made::{tag, view_named, view_of, view_with};

const SCHEMA: &str = r#"{"type":"record","name":"Product","fields":[{"name":"name","type":"string"}]}"#;

pub(super) fn app(views: impl IntoIterator<Item = View>) -> App {
    let clock = Clock::manual(1_700_000_000_000);
    let sides = views.into_iter().map(|view| {
        let reader = Reader::of(view);
        let name = reader.dataset().to_owned();
        Dataset::new(name, Some(ReadingSide::new(reader, ConsumerMetrics::detached(), 10)), None)
    });
    App::new(Directory::new(sides, clock.clone()), Metrics::new(), clock)
}

pub(super) async fn ask(app: &App, request: Request<Body>) -> Response {
    TowerToHyperService::new(app.router()).call(request).await.unwrap()
}

async fn body(response: Response) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

pub(super) async fn get(app: &App, path: &str) -> Response {
    ask(app, Request::get(path).body(Body::empty()).unwrap()).await
}

async fn get_json(app: &App, path: &str) -> (StatusCode, Value) {
    let response = get(app, path).await;
    let status = response.status();
    let text = body(response).await;
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}")))
}

/// A problem of this status; its detail.
pub(super) async fn problem(app: &App, path: &str, status: u16) -> Value {
    let response = get(app, path).await;
    assert_eq!(response.status(), status, "{path}");
    assert_eq!(response.headers()["content-type"], "application/problem+json", "{path}");
    let problem: Value = serde_json::from_str(&body(response).await).unwrap();
    assert_eq!(problem["status"], status, "{path}");
    assert!(problem["type"].as_str().unwrap().starts_with("urn:stillwell:problem:"), "{path}");
    assert!(!problem["title"].as_str().unwrap().is_empty(), "{path}");
    problem
}

#[tokio::test]
async fn a_record_is_read_by_its_key_whatever_bytes_it_has() {
    // In the order of their bytes, as a writer wants them.
    let app = app([view(3, &[b"", b"%", b"P-1", b"a b", b"a/b", b"a/b/c", b"\xc3\xa9", b"\xff"])]);
    for (path, name) in [
        ("P-1", "P-1"),
        ("a%20b", "a b"),
        ("a/b", "a/b"),
        ("a%2Fb", "a/b"),
        ("a/b/c", "a/b/c"),
        ("%25", "%"),
        ("%FF", "\u{fffd}"),
        ("%C3%A9", "é"),
        ("", ""),
    ] {
        let response = get(&app, &format!("/v1/datasets/products/records/{path}")).await;
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.headers()["etag"], tag(3));
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(body(response).await, json!({ "name": name }).to_string(), "{path}");
    }
    let absent = problem(&app, "/v1/datasets/products/records/P-2", 404).await;
    assert_eq!(absent["version"], 3);
    let bad = problem(&app, "/v1/datasets/products/records/%zz", 400).await;
    assert_eq!(bad["type"], "urn:stillwell:problem:rejected");
}

#[tokio::test]
async fn who_has_the_version_is_told_so() {
    let app = app([view(3, &[b"P-1"])]);
    for path in ["records/P-1", "records", "records?prefix=P"] {
        let path = format!("/v1/datasets/products/{path}");
        let with = |tag: &str| Request::get(&path).header("if-none-match", tag).body(Body::empty()).unwrap();
        let same = ask(&app, with(&format!("\"2\", W/{}", tag(3)))).await;
        assert_eq!(
            (same.status().as_u16(), same.headers()["etag"].to_str().unwrap()),
            (304, &*tag(3)),
            "{path}"
        );
        assert_eq!(body(same).await, "");
        for other in ["\"2\"", "\"3\"", "\"3.00000000\"", &tag(2)] {
            assert_eq!(ask(&app, with(other)).await.status(), 200, "{path} {other}");
        }
    }
    // What does not exist is not "not modified".
    let absent = Request::get("/v1/datasets/products/records/P-2").header("if-none-match", "*");
    assert_eq!(ask(&app, absent.body(Body::empty()).unwrap()).await.status(), 404);
}

#[tokio::test]
async fn only_the_version_that_is_held_is_served() {
    let app = app([view(3, &[b"P-1"])]);
    for path in ["records/P-1", "records"] {
        let path = format!("/v1/datasets/products/{path}?version=");
        assert_eq!(get(&app, &format!("{path}3")).await.status(), 200);
        for (version, why) in [("2", "3 is the oldest"), ("4", "newest announced is 3"), ("0", "from 1")] {
            let gone = problem(&app, &format!("{path}{version}"), 404).await;
            assert!(gone["detail"].as_str().unwrap().contains(why), "{gone}");
            assert_eq!(gone["version"], 3);
        }
        problem(&app, &format!("{path}three"), 400).await;
    }
    problem(&app, "/v1/datasets/products/records/P-1?verison=3", 400).await;
}

#[tokio::test]
async fn pages_follow_one_another_in_key_order() {
    let keys: Vec<String> = (0..25).map(|n| format!("a/{n:02}")).chain(["b".to_owned()]).collect();
    let keys: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
    let app = app([view(3, &keys)]);
    let (mut path, mut seen) = ("/v1/datasets/products/records?prefix=a%2F&limit=10".to_owned(), Vec::new());
    loop {
        let (status, page) = get_json(&app, &path).await;
        assert_eq!(
            (status.as_u16(), &page["version"], &page["dataset"]),
            (200, &json!(3), &json!("products"))
        );
        let records = page["records"].as_array().unwrap();
        assert!(records.len() <= 10);
        seen.extend(records.iter().map(|record| {
            assert_eq!(record["key"], record["value"]["name"]);
            record["key"].as_str().unwrap().to_owned()
        }));
        match page["next"].as_str() {
            Some(next) => path = format!("/v1/datasets/products/records?prefix=a%2F&limit=10&next={next}"),
            None => break,
        }
    }
    assert_eq!(seen, (0..25).map(|n| format!("a/{n:02}")).collect::<Vec<_>>());
    let (_, whole) = get_json(&app, "/v1/datasets/products/records?prefix=a%2F&limit=25").await;
    assert_eq!(whole["next"], Value::Null, "no empty page at the end");
    let (_, none) = get_json(&app, "/v1/datasets/products/records?prefix=zzz").await;
    assert_eq!((none["records"].as_array().unwrap().len(), &none["next"]), (0, &Value::Null));
    for bad in ["limit=0", "limit=10001", "limit=x", "next=%21", "prefix=%x", "size=3"] {
        problem(&app, &format!("/v1/datasets/products/records?{bad}"), 400).await;
    }
}

#[tokio::test]
async fn keys_that_are_no_text_are_base64_in_pages() {
    let app = app([view(1, &[b"\xff\0"])]);
    let (_, page) = get_json(&app, "/v1/datasets/products/records?prefix=%FF").await;
    assert_eq!(page["records"][0]["key"], json!({ "base64": "/wA=" }));
}

#[tokio::test]
async fn what_there_is_is_listed_and_what_there_is_not_is_a_problem() {
    let app = app([view(3, &[b"P-1", b"P-2"])]);
    let (_, listed) = get_json(&app, "/v1/datasets").await;
    assert_eq!(listed["datasets"][0]["name"], "products");
    assert_eq!(listed["datasets"][0]["records"], 2);
    let (_, one) = get_json(&app, "/v1/datasets/products").await;
    assert_eq!((&one["version"], &one["ready"], &one["stale"]), (&json!(3), &json!(true), &json!(false)));
    assert_eq!(one["positions"][0]["offset"], 3);
    assert_eq!(one["schema"]["name"], "Product");
    assert_eq!(one["announced_at"], "2023-11-14T22:13:20.000Z");

    let none = problem(&app, "/v1/datasets/orders", 404).await;
    assert_eq!(none["datasets"], json!(["products"]));
    problem(&app, "/v1/datasets/orders/records/P-1", 404).await;
    problem(&app, "/v1/datasets/%FF/records/P-1", 404).await;
    problem(&app, "/v1/datasets/%f/records/P-1", 400).await;
    for path in ["/", "/v2", "/v1/datasets/products/change", "/admin/pin"] {
        let routes = problem(&app, path, 404).await;
        assert!(routes["routes"].as_array().unwrap().contains(&json!("/health")), "{routes}");
    }
}

#[tokio::test]
async fn a_method_that_does_not_fit_is_a_problem_with_those_that_do() {
    let app = app([view(1, &[b"P-1"])]);
    for path in
        ["/health", "/v1/datasets", "/v1/datasets/products/records/P-1", "/v1/datasets/products/records"]
    {
        let put = ask(&app, Request::put(path).body(Body::from("{}")).unwrap()).await;
        assert_eq!(put.status(), 405, "{path}");
        assert_eq!(put.headers()["allow"], "GET,HEAD", "{path}");
        assert_eq!(put.headers()["content-type"], "application/problem+json");
    }
    let path = "/v1/datasets/products/records/P-1";
    let head = ask(&app, Request::head(path).body(Body::empty()).unwrap()).await;
    assert_eq!((head.status().as_u16(), head.headers()["etag"].to_str().unwrap()), (200, &*tag(1)));
    assert_eq!(head.headers()["content-length"], "14");
    assert_eq!(body(head).await, "");
}

#[tokio::test]
async fn before_the_first_version_nothing_is_ready_but_all_is_alive() {
    let app = app([view(0, &[])]);
    assert_eq!(get(&app, "/live").await.status(), 200);
    let (status, ready) = get_json(&app, "/ready").await;
    assert_eq!((status.as_u16(), &ready["ready"]), (503, &json!(false)));
    assert!(
        ready["reasons"][0].as_str().unwrap().contains("products: no version is readable yet"),
        "{ready}"
    );
    let (status, health) = get_json(&app, "/health").await;
    assert_eq!((status.as_u16(), &health["status"]), (200, &json!("degraded")));
    let response = get(&app, "/v1/datasets/products/records/P-1").await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    problem(&app, "/v1/datasets/products/records", 503).await;
}

#[tokio::test]
async fn a_writer_that_waits_for_its_schema_holds_up_nothing_else_and_says_why() {
    let (clock, token) = (Clock::manual(1_700_000_000_000), serde_json::from_value(json!("t0ken")).unwrap());
    let (say, why) = tokio::sync::watch::channel("its schema is asked for".to_owned());
    let waiting = Dataset::new("orders", None, None).awaiting(why);
    let reading = ReadingSide::new(Reader::of(view(3, &[b"P-1"])), ConsumerMetrics::detached(), 10);
    let products = Dataset::new("products", Some(reading), None);
    let directory = Directory::new([products, waiting], clock.clone());
    let app = App::with_admin(directory, Metrics::new(), clock, Some(&token));
    say.send_replace("nothing is registered".to_owned());
    let (status, health) = get_json(&app, "/health").await;
    assert_eq!((status.as_u16(), &health["status"]), (200, &json!("degraded")));
    let orders = &health["datasets"][0];
    assert_eq!((&orders["name"], &orders["writer"]), (&json!("orders"), &json!("waiting")));
    assert_eq!(orders["reasons"], json!(["no versions are written: nothing is registered"]));
    assert_eq!(health["datasets"][1]["status"], json!("healthy"));
    let (status, ready) = get_json(&app, "/ready").await;
    assert_eq!(status, 503);
    assert_eq!(ready["reasons"], json!(["orders: nothing is registered"]));
    assert_eq!(get(&app, "/v1/datasets/products/records/P-1").await.status(), 200);
    assert_eq!(get(&app, "/metrics").await.status(), 200);
    assert_eq!(get(&app, "/nowhere").await.status(), 404);
    let pacing = Request::get("/admin/datasets/orders/pacing").header("authorization", "Bearer t0ken");
    let refused = ask(&app, pacing.body(Body::empty()).unwrap()).await;
    assert_eq!(refused.status(), 503);
    assert!(body(refused).await.contains("not written yet: nothing is registered"));
}

#[tokio::test]
async fn health_says_what_it_is_asked_for() {
    let app = app([view(3, &[b"P-1"])]);
    let (status, health) = get_json(&app, "/health").await;
    assert_eq!((status.as_u16(), &health["status"]), (200, &json!("healthy")));
    let dataset = health["datasets"][0].as_object().unwrap();
    for (member, value) in [
        ("name", json!("products")),
        ("status", json!("healthy")),
        ("version", json!(3)),
        ("error_count", json!(0)),
        ("dead_letters", json!(0)),
        ("circuit", json!({"kafka_tail": "closed"})),
        ("lag", json!(0)),
        ("last_activity", Value::Null),
    ] {
        assert_eq!(dataset.get(member), Some(&value), "{member}");
    }
    assert!(dataset.contains_key("processed_count") && dataset.contains_key("memory_usage"));
    assert_eq!(get(&app, "/ready").await.status(), 200);
    app.0.directory.drain();
    assert_eq!(get(&app, "/ready").await.status(), 503);
    let metrics = get(&app, "/metrics").await;
    assert_eq!(metrics.headers()["content-type"], "text/plain; version=0.0.4");
    assert!(body(metrics).await.contains("stillwell_build_info"));
}

#[tokio::test]
async fn too_many_errors_a_minute_are_unhealthy_until_the_minute_has_passed() {
    let clock = Clock::manual(1_700_000_000_000);
    let metrics = ConsumerMetrics::detached();
    let side = ReadingSide::new(Reader::of(view(3, &[b"P-1"])), metrics.clone(), 2);
    let directory = Directory::new([Dataset::new("products", Some(side), None)], clock.clone());
    let app = App::new(directory, Metrics::new(), clock.clone());
    assert_eq!(get(&app, "/health").await.status(), 200);
    // However often Kafka was tried: that it is away is not this process's fault.
    metrics.errors_total.with(&["kafka"]).inc_by(100);
    assert_eq!(get(&app, "/health").await.status(), 200);
    metrics.errors_total.with(&["tail"]).inc();
    metrics.errors_total.with(&["follow"]).inc_by(2);
    let (status, health) = get_json(&app, "/health").await;
    assert_eq!((status.as_u16(), &health["status"]), (503, &json!("unhealthy")));
    assert_eq!(health["datasets"][0]["error_count"], 103);
    assert!(health["datasets"][0]["reasons"][0].as_str().unwrap().contains("max_errors_per_minute = 2"));
    for _ in 0..13 {
        clock.advance(std::time::Duration::from_secs(5));
        get(&app, "/health").await;
    }
    let (status, health) = get_json(&app, "/health").await;
    assert_eq!((status.as_u16(), &health["datasets"][0]["error_count"]), (200, &json!(103)));
}

#[tokio::test]
async fn dead_letters_are_counted_whatever_the_stage() {
    let metrics = ConsumerMetrics::detached();
    let side = ReadingSide::new(Reader::of(view(3, &[b"P-1"])), metrics.clone(), 2);
    let directory = Directory::new([Dataset::new("products", Some(side), None)], Clock::manual(0));
    let app = App::new(directory, Metrics::new(), Clock::manual(0));
    metrics.dead_letters_total.with(&["listener"]).inc_by(3);
    metrics.dead_letters_total.with(&["decode"]).inc();
    let (_, health) = get_json(&app, "/health").await;
    assert_eq!(health["datasets"][0]["dead_letters"], 4);
}

/// Sends `text` over a new connection, and returns it for more.
async fn connect(address: std::net::SocketAddr, text: &str) -> tokio::net::TcpStream {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// Reads up to the end of the answer's body, which is known.
async fn read_until(stream: &mut tokio::net::TcpStream, end: &str) -> String {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&all).ends_with(end) {
        let read = stream.read(&mut piece).await.unwrap();
        assert_ne!(read, 0, "the connection ended after {}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&piece[..read]);
    }
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn a_stop_ends_idle_connections_and_refuses_new_ones() {
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.address();
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(listener.serve(app([view(3, &[b"P-1"])]).router(), stop.clone()));

    let request = "GET /v1/datasets/products/records/P-1 HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut stream = connect(address, request).await;
    let answer = read_until(&mut stream, "{\"name\":\"P-1\"}").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    // The connection is kept, and answers again.
    stream.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut stream, "{\"name\":\"P-1\"}").await;

    stop.cancel();
    tasks.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0, "an idle connection is closed");
    // A process that another test starts at this moment has the socket, too, until its exec.
    let refused = async || tokio::net::TcpStream::connect(address).await.is_err();
    bounds::until("no connection is taken any more", refused).await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_a_mistake_in_the_configuration() {
    let first = Listener::bind("127.0.0.1:0").await.unwrap();
    for (address, say) in [(first.address().to_string(), "another process"), ("8080".to_owned(), "HOST:PORT")]
    {
        let error = Listener::bind(&address).await.unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Config);
        let text = error.chain();
        assert!(text.contains("http.listen") && text.contains(say) && text.contains(&address), "{text}");
    }
}

/// An app whose dataset is written, to a broker that nobody reaches, by who has the token.
fn written(token: &str) -> App {
    let clock = Clock::manual(1_700_000_000_000);
    let options = crate::Producer::builder("products")
        .bootstrap_servers("127.0.0.1:1")
        .source("products")
        .schema(SCHEMA)
        .key_fields(["name"])
        .store(crate::blob::Store::open("memory://").unwrap())
        .options()
        .unwrap();
    let writer = crate::producer::Writer::new(&options, crate::producer::write::watch::Watchers::default());
    let pace = Pace::new(options.pacing.clone(), clock.clone());
    let writes = Writes { records: Some(writer.unwrap()), pace: Some(pace), ..Writes::default() };
    let dataset = Dataset::new("products", None, Some(writes));
    let read_only = Dataset::new("orders", None, None);
    let token = serde_json::from_value(json!(token)).unwrap();
    App::with_admin(Directory::new([dataset, read_only], clock.clone()), Metrics::new(), clock, Some(&token))
}

async fn put(app: &App, path: &str, authorization: Option<&str>, body: impl Into<Body>) -> (u16, Value) {
    let mut request = Request::put(path);
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    let response = ask(app, request.body(body.into()).unwrap()).await;
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    (status, serde_json::from_str(&self::body(response).await).unwrap())
}

#[tokio::test]
async fn a_record_is_written_only_with_the_token_and_only_if_it_fits() {
    let app = written("t0ken");
    let path = "/v1/datasets/products/records/P-1";
    let right = Some("Bearer t0ken");
    for (authorization, status, kind) in [
        (None, 401, "unauthorized"),
        (Some("Bearer token"), 403, "forbidden"),
        (Some("t0ken"), 401, "unauthorized"),
    ] {
        let (seen, problem) = put(&app, path, authorization, "{}").await;
        assert_eq!(
            (seen, problem["type"].as_str()),
            (status, Some(&*format!("urn:stillwell:problem:{kind}")))
        );
        assert!(!problem.to_string().contains("t0ken"), "{problem}");
    }
    for (path, body, status, stage) in [
        (path, "nonsense", 400, Some("decode")),
        (path, r#"{"name":7}"#, 422, Some("validate")),
        (path, r#"{"name":"P-2"}"#, 422, Some("key")),
        ("/v1/datasets/products/records/P-1?wait=x", "{}", 400, None),
        ("/v1/datasets/products/records/%zz", "{}", 400, None),
        ("/v1/datasets/products/records/P-1?topic=x", r#"{"name":"P-1"}"#, 400, None),
        ("/v1/datasets/orders/records/P-1", "{}", 404, None),
        ("/v1/datasets/none/records/P-1", "{}", 404, None),
    ] {
        let (seen, problem) = put(&app, path, right, body).await;
        assert_eq!((seen, problem["stage"].as_str()), (status, stage), "{path} {body}: {problem}");
    }
    let (status, large) = put(&app, path, right, vec![b' '; writes::MAX_BODY_BYTES + 1]).await;
    assert_eq!((status, large["type"].as_str()), (413, Some("urn:stillwell:problem:too-large")));
    let routes = problem(&app, "/nowhere", 404).await;
    assert!(routes["routes"].to_string().contains("PUT, DELETE"), "{routes}");
}

#[tokio::test]
async fn the_pace_is_shown_and_changed_with_the_token() {
    let app = written("t0ken");
    let path = "/admin/datasets/products/pacing";
    let ask_for = |method: &str, path: &str, authorization: &str, body: &str| {
        let request = Request::builder().method(method).uri(path).header("authorization", authorization);
        let (app, request) = (app.clone(), request.body(Body::from(body.to_owned())).unwrap());
        async move {
            let response = ask(&app, request).await;
            let status = response.status().as_u16();
            (status, serde_json::from_str::<Value>(&self::body(response).await).unwrap())
        }
    };
    let right = "Bearer t0ken";
    let unlimited = json!({
        "max_records_per_second": 0, "max_bytes_per_second": 0, "pressure_high": 0.8,
        "now": { "records_per_second": null, "bytes_per_second": null },
    });
    assert_eq!(ask_for("GET", path, right, "").await, (200, unlimited.clone()));
    for (method, authorization) in [("GET", ""), ("POST", "Basic t0ken")] {
        assert_eq!(ask_for(method, path, authorization, "{}").await.0, 401);
    }
    assert_eq!(ask_for("POST", path, "Bearer wrong", "{}").await.0, 403);
    let limits = r#"{"max_records_per_second": 500, "max_bytes_per_second": "1MiB"}"#;
    let changed = json!({
        "max_records_per_second": 500, "max_bytes_per_second": 1 << 20, "pressure_high": 0.8,
        "now": { "records_per_second": 500, "bytes_per_second": 1 << 20 },
    });
    assert_eq!(ask_for("POST", path, right, limits).await, (200, changed.clone()));
    for wrong in [
        "",
        "[]",
        r#"{"max_record": 1}"#,
        r#"{"max_records_per_second": -1}"#,
        r#"{"max_bytes_per_second": "a lot"}"#,
        r#"{"pressure_high": 0}"#,
    ] {
        let (status, problem) = ask_for("POST", path, right, wrong).await;
        assert_eq!(
            (status, problem["type"].as_str()),
            (400, Some("urn:stillwell:problem:rejected")),
            "{wrong}"
        );
    }
    assert_eq!(ask_for("POST", path, right, "{}").await, (200, changed), "what was refused changed nothing");
    let bytes = r#"{"max_records_per_second": 0, "max_bytes_per_second": 0}"#;
    assert_eq!(ask_for("POST", path, right, bytes).await, (200, unlimited));
    for (name, status) in [("orders", 404), ("none", 404)] {
        let path = format!("/admin/datasets/{name}/pacing");
        assert_eq!(ask_for("GET", &path, right, "").await.0, status, "{name}");
    }
}

#[tokio::test]
async fn an_empty_token_is_none() {
    for app in [written(""), written("  "), app([view(1, &[b"P-1"])])] {
        for method in ["PUT", "DELETE"] {
            let request = Request::builder().method(method).uri("/v1/datasets/products/records/P-1");
            let request = request.header("authorization", "Bearer ").body(Body::from("{}")).unwrap();
            let response = ask(&app, request).await;
            assert_eq!(
                (response.status().as_u16(), &response.headers()["allow"]),
                (405, &"GET,HEAD".parse().unwrap())
            );
            assert!(body(response).await.contains("http.admin_token"));
        }
    }
}

#[tokio::test]
async fn a_storm_is_shown_and_let_through_with_the_token() {
    let (clock, token) = (Clock::manual(1_700_000_000_000), serde_json::from_value(json!("t0ken")).unwrap());
    let storm = Storm::new(&Reliability { misfit_share: 0.1, misfit_window: 10, ..Reliability::default() });
    let writes = Writes { storm: Some(storm.clone()), ..Writes::default() };
    let dataset = Dataset::new("products", None, Some(writes));
    let directory = Directory::new([dataset, Dataset::new("orders", None, None)], clock.clone());
    let app = App::with_admin(directory, Metrics::new(), clock, Some(&token));
    let ask_for = |method: &str, name: &str, authorization: &str| {
        let uri = format!("/admin/datasets/{name}/storm");
        let request = Request::builder().method(method).uri(uri).header("authorization", authorization);
        let (app, request) = (app.clone(), request.body(Body::empty()).unwrap());
        async move {
            let response = ask(&app, request).await;
            let status = response.status().as_u16();
            (status, serde_json::from_str::<Value>(&body(response).await).unwrap())
        }
    };
    let right = "Bearer t0ken";
    assert_eq!(ask_for("GET", "products", right).await, (200, json!({ "paused_for": null })));
    let misfit = Misfit { stage: Stage::Decode, class: "a", message: "it ends too early".to_owned() };
    assert!(!(0..2).any(|_| storm.window().fails(&misfit)), "each window counts by itself");
    let mut window = storm.window();
    assert!((0..2).any(|_| window.fails(&misfit)));
    let (status, shown) = ask_for("GET", "products", right).await;
    assert!(status == 200 && shown["paused_for"].as_str().unwrap().contains("it ends too early"), "{shown}");
    for method in ["GET", "POST"] {
        assert_eq!(ask_for(method, "products", "Bearer wrong").await.0, 403);
        assert_eq!(ask_for(method, "products", "").await.0, 401);
        assert_eq!(ask_for(method, "orders", right).await.0, 404);
    }
    assert!(storm.raging().is_some());
    let (status, through) = ask_for("POST", "products", right).await;
    assert_eq!((status, &through["let_through"]), (200, &shown["paused_for"]));
    assert_eq!(storm.raging(), None);
    assert_eq!(ask_for("POST", "products", right).await, (200, json!({ "let_through": null })));
}

#[tokio::test]
async fn who_asks_for_the_storm_of_a_listener_that_is_not_there_is_told_so() {
    let (clock, token) = (Clock::manual(1_700_000_000_000), serde_json::from_value(json!("t0ken")).unwrap());
    let reading = ReadingSide::new(Reader::of(view(3, &[b"P-1"])), ConsumerMetrics::detached(), 10);
    let storm = Storm::new(&Reliability { misfit_share: 0.1, misfit_window: 10, ..Reliability::default() });
    let mut window = storm.window();
    let misfit = Misfit { stage: Stage::Decode, class: "a", message: "it ends too early".to_owned() };
    assert!((0..2).any(|_| window.fails(&misfit)));
    let both = Writes { storm: Some(storm.clone()), ..Writes::default() };
    let written = Writes { storm: Some(storm.clone()), ..Writes::default() };
    let datasets =
        [Dataset::new("products", Some(reading), Some(both)), Dataset::new("orders", None, Some(written))];
    let app = App::with_admin(Directory::new(datasets, clock.clone()), Metrics::new(), clock, Some(&token));
    for (path, status, said) in [
        ("products/storm?listener=webhook", 404, "no listener webhook here"),
        ("products/storm?listener=%FF", 404, "no listener"),
        ("orders/storm?listener=webhook", 404, "does not read it"),
        ("products/storm?listner=webhook", 400, "listner"),
    ] {
        for method in ["GET", "POST"] {
            let request = Request::builder().method(method).uri(format!("/admin/datasets/{path}"));
            let request = request.header("authorization", "Bearer t0ken").body(Body::empty()).unwrap();
            let response = ask(&app, request).await;
            assert_eq!(response.status().as_u16(), status, "{path}");
            let told = body(response).await;
            assert!(told.contains(said), "{told}");
        }
    }
    assert!(storm.raging().is_some(), "none of these was a word to the source");
}
