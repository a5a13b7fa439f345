//! Requests that nobody should send: `tests/corpus/http`, as they are and made worse, by a seed.
//!
//! Each is answered, or its connection ends; none is a failure of the process (5xx), and the next good one is answered.

use std::path::PathBuf;
use std::time::Duration;

use super::super::changes::tests::publish;
use super::*;
use crate::clock::Entropy;
use crate::view::{Cache, Hold};

/// What is put into a path or a head, beside noise.
const WORDS: [&str; 32] = [
    "%",
    "%00",
    "%FF",
    "%2e%2e%2f",
    "%25",
    "&",
    "=",
    "?",
    "/",
    "//",
    "..",
    ";",
    "+",
    "&key=",
    "&prefix=",
    "&from=",
    "&to=",
    "&limit=",
    "&version=",
    "&next=",
    "?since=",
    "18446744073709551615",
    "-1",
    "1e9",
    "products",
    "records",
    "~",
    "'",
    "\"",
    "\r\n",
    ": ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

fn corpus() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "corpus", "http"].iter().collect()
}

fn seed() -> u64 {
    let given = std::env::var("STILLWELL_SEED").ok();
    given.map_or_else(|| Entropy::system().next_u64(), |seed| seed.parse().unwrap())
}

/// `times` as many cases, by `STILLWELL_FUZZ`.
fn times() -> usize {
    std::env::var("STILLWELL_FUZZ").map_or(1, |times| times.parse().unwrap())
}

/// One to four things put in, taken out, or changed.
fn worse(chance: &Entropy, bytes: &[u8]) -> Vec<u8> {
    let below = |most: usize| (chance.next_u64() % most.max(1) as u64) as usize;
    let mut out = bytes.to_vec();
    for _ in 0..=below(4) {
        let at = below(out.len() + 1);
        match below(5) {
            0 if at < out.len() => out[at] = chance.next_u64() as u8,
            1 => drop(out.drain(at..(at + below(8)).min(out.len()))),
            2 => out.truncate(at),
            _ => drop(out.splice(at..at, WORDS[below(WORDS.len())].bytes())),
        }
    }
    out
}

fn hosted() -> App {
    let clock = Clock::manual(1_700_000_000_000);
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), u64::MAX).unwrap();
    let hold = Arc::new(Hold::new(None, None, vec![vec!["name".to_owned()]]));
    let held = view(3, &[b"P-1", b"P-2", b"a/b", b"\xff\0"]).hold(&hold, &cache).unwrap();
    let reader = Reader::of(held.clone());
    publish(reader.recent(), held);
    let side = ReadingSide::new(reader, ConsumerMetrics::detached(), 10);
    let directory = Directory::new([Dataset::new("products", Some(side), None)], clock.clone());
    let token = serde_json::from_value(json!("t0ken")).unwrap();
    App::with_admin(directory, Metrics::new(), clock, Some(&token))
}

/// Asks in place; `None`: it is no request that HTTP could carry.
async fn answered(app: &App, method: &str, path: &str) -> Option<u16> {
    let request = Request::builder().method(method).uri(path).header("authorization", "Bearer t0ken");
    let request = request.body(Body::from(r#"{"version":3}"#)).ok()?;
    let response = ask(app, request).await;
    let status = response.status().as_u16();
    let kind = response.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
    assert!(status < 500, "{method} {path:?}: {status}");
    if let Some("text/event-stream") = kind.as_deref() {
        let mut stream = response.into_body();
        let first = tokio::time::timeout(Duration::from_secs(60), stream.frame()).await.expect("it begins");
        assert!(method == "HEAD" || first.is_some_and(|first| first.is_ok()), "{method} {path:?}");
        return Some(status);
    }
    if let Some("application/json" | "application/problem+json") = kind.as_deref() {
        let text = tokio::time::timeout(Duration::from_secs(60), body(response)).await.expect("it ends");
        let parsed: Result<Value, _> = serde_json::from_str(&text);
        assert!(parsed.is_ok() || text.is_empty(), "{method} {path:?}: {text}");
    }
    Some(status)
}

#[tokio::test]
async fn whatever_is_asked_for_is_answered() {
    let (app, seed) = (hosted(), seed());
    let chance = Entropy::seeded(seed);
    let text = std::fs::read_to_string(corpus().join("paths.txt")).unwrap();
    let mut seen = std::collections::BTreeMap::<u16, usize>::new();
    println!("STILLWELL_SEED={seed}");
    for line in text.lines() {
        let (method, path) = line.split_once(' ').unwrap();
        if let Some(status) = answered(&app, method, path).await {
            *seen.entry(status).or_default() += 1;
        }
        for _ in 0..30 * times() {
            let path = worse(&chance, path.as_bytes());
            let Ok(path) = std::str::from_utf8(&path) else { continue };
            if let Some(status) = answered(&app, method, path).await {
                *seen.entry(status).or_default() += 1;
            }
        }
    }
    println!("{seen:?}");
    for status in [200, 400, 404, 405] {
        assert!(seen.contains_key(&status), "{seen:?} (STILLWELL_SEED={seed})");
    }
    for path in ["records/P-1", "records?name=P-1", "changes?since=0", "changes?since=3"] {
        assert_eq!(
            answered(&app, "GET", &format!("/v1/datasets/products/{path}")).await,
            Some(200),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_comes_over_a_connection_the_next_one_is_served() {
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop, seed) = (listener.address(), CancellationToken::new(), seed());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(listener.serve(hosted().router(), stop.clone()));
    let chance = Entropy::seeded(seed);
    println!("STILLWELL_SEED={seed}");
    let mut heads: Vec<PathBuf> =
        std::fs::read_dir(corpus()).unwrap().map(|entry| entry.unwrap().path()).collect();
    heads.retain(|path| path.extension().is_some_and(|extension| extension == "http"));
    heads.sort();
    assert!(heads.len() > 5, "{heads:?}");
    for path in heads {
        let whole = std::fs::read(&path).unwrap();
        for number in 0..12 * times() {
            let bytes = if number == 0 { whole.clone() } else { worse(&chance, &whole) };
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            // It may be closed before all of it has been sent.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let mut answer = vec![0; 64];
            let read = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut answer));
            let read =
                read.await.unwrap_or_else(|_| panic!("{path:?}, case {number}: neither answer nor end"));
            let answer = String::from_utf8_lossy(&answer[..read.unwrap_or(0)]).into_owned();
            let status = answer.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
            assert!(status.is_none_or(|status| status < 500 || status == 503), "{path:?} {number}: {answer}");
        }
        let request =
            "GET /v1/datasets/products/records/P-1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let mut good = connect(address, request).await;
        let answer = read_until(&mut good, "{\"name\":\"P-1\"}").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "after {path:?} (STILLWELL_SEED={seed}): {answer}");
    }
    stop.cancel();
    tasks.join_next().await.unwrap().unwrap().unwrap();
}
