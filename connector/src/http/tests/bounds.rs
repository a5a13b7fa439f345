//! What a client can take from a process: memory, places, time. Over real sockets.

use std::time::Duration;

use super::super::changes::MAX_STREAMS;
use super::super::changes::tests::{confirmed, publish};
use super::super::serve::Limits;
use super::super::turns;
use super::*;

/// Longest that anything may take.
const LONG: Duration = Duration::from_secs(60);

/// Serves within these limits, until the guard is dropped.
struct Served {
    address: std::net::SocketAddr,
    app: App,
    _tasks: tokio::task::JoinSet<crate::Result<()>>,
}

async fn served(limits: Limits, app: App) -> Served {
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.address();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(listener.serve_within(limits, app.router(), CancellationToken::new()));
    Served { address, app, _tasks: tasks }
}

/// 16 records of 1 MiB.
fn large() -> App {
    let products: Vec<_> = (b'a'..b'q').map(|key| (vec![key], "x".repeat(1 << 20))).collect();
    app([view_with(TopicId([7; 16]), 3, &products)])
}

/// Asks, and gives the status; `None`: the connection ended without an answer.
async fn status(address: std::net::SocketAddr, path: &str) -> Option<u16> {
    let mut stream = connect(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
    let mut head = [0; 64];
    let read = tokio::time::timeout(LONG, stream.read(&mut head)).await.expect("answer or end").unwrap_or(0);
    String::from_utf8_lossy(&head[..read]).split(' ').nth(1)?.parse().ok()
}

/// Waits until it is so.
pub(super) async fn until(what: &str, so: impl AsyncFn() -> bool) {
    let waiting = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

const PAGE: &str = "/v1/datasets/products/records";

/// A client that asks for what it never reads loses its connection, and what its answer held is free again.
async fn lets_go(limits: Limits, path: &str, app: App) {
    let served = served(limits, app).await;
    let mut stream = connect(served.address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
    let mut head = [0; 15];
    // Where it has been cut off already, that is what is asked for.
    if let Ok(read) = tokio::time::timeout(LONG, stream.read(&mut head)).await.expect("an answer") {
        assert!(b"HTTP/1.1 200 OK".starts_with(&head[..read]), "{:?}", &head[..read]);
    }
    let turns = &served.app.0.turns;
    until("its turn ends", async || turns.left() == turns::MOST).await;
    // Where that takes longer than a whole answer may here, once more.
    until("others are answered", async || status(served.address, "/live").await == Some(200)).await;
    drop(stream);
}

#[tokio::test]
async fn a_large_answer_keeps_its_turn_until_its_client_is_gone() {
    let served = served(Limits::default(), large()).await;
    let turns = &served.app.0.turns;
    let ask = format!("GET {PAGE} HTTP/1.1\r\nhost: x\r\n\r\n");
    let streams = [connect(served.address, &ask).await, connect(served.address, &ask).await];
    until("both hold their turns", async || turns.left() == turns::MOST - 2).await;
    // A small one does not: it lies in what the connection has.
    let small = format!("GET {PAGE}?from=z HTTP/1.1\r\nhost: x\r\n\r\n");
    let mut small = connect(served.address, &small).await;
    read_until(&mut small, "\"next\":null}").await;
    until("its turn is over", async || turns.left() == turns::MOST - 2).await;
    drop(streams);
    until("both are free", async || turns.left() == turns::MOST).await;
}

#[tokio::test]
async fn who_reads_nothing_loses_the_connection_by_the_system() {
    let limits = Limits { unread: Duration::from_millis(500), ..Limits::default() };
    lets_go(limits, PAGE, large()).await;
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_cut_off() {
    let limits = Limits { answer: Duration::from_millis(500), ..Limits::default() };
    lets_go(limits, PAGE, large()).await;
    // A single record that is large is bounded as a page is.
    lets_go(limits, &format!("{PAGE}/k"), app([view_named(3, b"k", 9 << 20)])).await;
}

#[tokio::test]
async fn an_event_stream_may_take_as_long_as_it_likes() {
    let limits = Limits { answer: Duration::from_millis(40), ..Limits::default() };
    let (app, _recent) = confirmed(&[b"a"]);
    let served = served(limits, app).await;
    let request = "GET /v1/datasets/products/changes HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut stream = connect(served.address, request).await;
    let mut seen = [0; 1024];
    assert!(stream.read(&mut seen).await.unwrap() > 0);
    // Ten answers' time: nothing comes, and the connection is there.
    let more = tokio::time::timeout(Duration::from_millis(400), async {
        while stream.read(&mut seen).await.unwrap() > 0 {}
    });
    assert!(more.await.is_err(), "it ended");
}

/// A stream is never too long, so its client is bounded by what it takes: one that reads no more holds a connection, a view and
/// a place among those that follow.
#[tokio::test]
async fn who_reads_no_more_of_an_event_stream_loses_it_and_others_go_on() {
    // Long enough for who reads, however busy the machine is.
    let limits = Limits { unread: Duration::from_secs(15), ..Limits::default() };
    let (app, recent) = confirmed(&[b"a"]);
    let served = served(limits, app).await;
    let streams = &served.app.0.streams;
    let request = "GET /v1/datasets/products/changes HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut stuck = connect(served.address, request).await;
    let mut reading = connect(served.address, request).await;
    for stream in [&mut stuck, &mut reading] {
        read_until(stream, "\"rollback\":false}\n\n\r\n").await;
    }
    assert_eq!(streams.available_permits(), MAX_STREAMS - 2);
    // Far more than lies between two sockets.
    let products: Vec<_> = (b'a'..=b'z').map(|key| (vec![key], "x".repeat(1 << 20))).collect();
    publish(&recent, view_with(TopicId([7; 16]), 2, &products));
    let mut taken = 0;
    let mut piece = vec![0; 1 << 20];
    while taken < products.len() << 20 {
        let read = tokio::time::timeout(LONG, reading.read(&mut piece)).await.expect("it goes on").unwrap();
        assert_ne!(read, 0, "it ended after {taken} bytes");
        taken += read;
    }
    until("the place of the other is free", async || streams.available_permits() == MAX_STREAMS - 1).await;
    drop((stuck, reading));
    until("both are", async || streams.available_permits() == MAX_STREAMS).await;
}

#[tokio::test]
async fn who_sends_no_head_is_closed() {
    let limits = Limits { head: Duration::from_millis(300), ..Limits::default() };
    let served = served(limits, app([view(3, &[b"P-1"])])).await;
    for begun in ["", "GET /live HT"] {
        let mut stream = connect(served.address, begun).await;
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(LONG, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{begun:?}: it stays open");
    }
}

#[tokio::test]
async fn a_head_is_bounded_and_the_longest_address_fits() {
    let served = served(Limits::default(), app([view(3, &[b"P-1"])])).await;
    let key = "k".repeat(65_000);
    assert_eq!(status(served.address, &format!("/v1/datasets/products/records/{key}")).await, Some(404));
    let mut stream = tokio::net::TcpStream::connect(served.address).await.unwrap();
    let head = format!("GET /live HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(200 << 10));
    // It may be closed before all of it has been sent.
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = [0; 64];
    let read =
        tokio::time::timeout(LONG, stream.read(&mut answer)).await.expect("answer or end").unwrap_or(0);
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn probes_are_answered_when_all_places_are_taken() {
    let limits = Limits { connections: 2, reserve: 1, ..Limits::default() };
    let served = served(limits, app([view(3, &[b"P-1"])])).await;
    let listed = "/v1/datasets";
    let request = format!("GET {listed} HTTP/1.1\r\nhost: x\r\n\r\n");
    let mut taken = Vec::new();
    for _ in 0..2 {
        let mut stream = connect(served.address, &request).await;
        assert!(stream.read(&mut [0; 64]).await.unwrap() > 0);
        taken.push(stream);
    }
    for path in ["/health", "/ready", "/live", "/metrics"] {
        assert_eq!(status(served.address, path).await, Some(200), "{path}");
    }
    assert_eq!(status(served.address, listed).await, Some(503));
    drop(taken);
    until("a place is free", async || status(served.address, listed).await == Some(200)).await;
}

/// Of keys that are asked for none is looked up behind the bound, however often one stands there.
#[tokio::test]
async fn keys_beyond_the_bound_are_not_read() {
    let held = view_named(3, b"k", 1 << 20);
    let app = app([held.clone()]);
    let before = held.reads().zero_copy();
    let path = format!("/v1/datasets/products/records?{}", vec!["key=k"; 1_000].join("&"));
    let refused = problem(&app, &path, 400).await;
    assert!(refused["detail"].as_str().unwrap().contains("ask for fewer"), "{refused}");
    let read = held.reads().zero_copy() - before;
    assert!((8..=16).contains(&read), "{read} were read");
}
