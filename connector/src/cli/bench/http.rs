//! `bench http`: requests a second of a record, and of some at a time, against a handler that does nothing.
//!
//! The handler is served by `axum::serve`, as whoever has nothing but axum does: what our own listener costs is ours.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use axum::serve::ListenerExt as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::made::{Made, failed, key};
use super::{Measured, Scratch, Settings, measured, quantile};
use crate::clock::{Clock, Entropy};
use crate::consumer::Reader;
use crate::host::directory::{Dataset, Directory, ReadingSide};
use crate::http::{App, Listener};
use crate::telemetry::{ConsumerMetrics, Metrics};
use crate::{Error, ErrorKind, Result};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(1);
/// Connections kept alive, each with one request under way.
const CONNECTIONS: usize = 8;
/// Records that one request asks for where it asks for several.
const SEVERAL: usize = 10;
/// What the bare handler answers to where ours is asked for several.
const BARE_SEVERAL: &str = "/several";

/// What each request asks for.
#[derive(Clone, Copy, Debug)]
enum Asked {
    One,
    Several,
}

impl Asked {
    fn of_ours(self, entropy: &Entropy, records: u64) -> String {
        let key = || key(entropy.next_u64() % records);
        match self {
            Asked::One => format!("/v1/datasets/bench/records/{}", key()),
            Asked::Several => {
                let mut path = format!("/v1/datasets/bench/records?key={}", key());
                for _ in 1..SEVERAL {
                    // Writing to a String cannot fail.
                    let _ = write!(path, "&key={}", key());
                }
                path
            }
        }
    }

    /// As ours is made anew each time, this is too: the client has the same to do.
    fn of_bare(self, entropy: &Entropy, records: u64) -> String {
        let ours = self.of_ours(entropy, records);
        match self {
            Asked::One => ours,
            Asked::Several => ours.replace("/v1/datasets/bench/records", BARE_SEVERAL),
        }
    }
}

pub(super) async fn run(settings: &Settings) -> Result<Vec<Measured>> {
    let (clock, records) = (Clock::system(), settings.records);
    let scratch = Scratch::new("http")?;
    let made = Made::new(scratch.path(), settings).await?;
    let view = made.open(&made.cache).await?;
    let side = ReadingSide::new(Reader::of(view), ConsumerMetrics::detached(), 10);
    let directory = Directory::new([Dataset::new("bench", Some(side), None)], clock.clone());
    let router = App::new(directory, Metrics::new(), clock.clone()).router();

    let stop = CancellationToken::new();
    let mut servers = JoinSet::new();
    let listener = Listener::bind("127.0.0.1:0").await?;
    let ours = listener.address();
    servers.spawn(listener.serve(router, stop.clone()));

    // As many bytes as ours answers.
    let sample = |asked: Asked| {
        let path = asked.of_ours(&Entropy::seeded(1), records);
        async move { ask(&mut connect(ours).await?, &path).await }
    };
    let (one, several) = (sample(Asked::One).await?, sample(Asked::Several).await?);
    let router = Router::new()
        .route(BARE_SEVERAL, get(move || std::future::ready(several.clone())))
        .fallback(get(move || std::future::ready(one.clone())));
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    let bare = listener.local_addr().map_err(failed)?;
    // As our own listener does.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let stopped = stop.clone().cancelled_owned();
    let bare_server = axum::serve(listener, router).with_graceful_shutdown(stopped);
    servers.spawn(async move { bare_server.await.map_err(failed) });

    let mut lines = Vec::new();
    let metrics = [
        (Asked::One, "requests_per_second", "requests/s"),
        (Asked::Several, "requests_per_second_of_10_records", "requests/s"),
    ];
    for (asked, metric, unit) in metrics {
        let (mut of_ours, mut of_bare) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            of_ours.push(load(ours, move |entropy| asked.of_ours(entropy, records), &clock).await?);
            of_bare.push(load(bare, move |entropy| asked.of_bare(entropy, records), &clock).await?);
        }
        let baseline = ("a bare handler, by axum::serve, requests/s", quantile(&mut of_bare, 0.5));
        lines.push(measured("http", metric, (quantile(&mut of_ours, 0.5), unit), baseline));
    }
    stop.cancel();
    while let Some(served) = servers.join_next().await {
        served.map_err(failed)??;
    }
    Ok(lines)
}

/// A connection to the server, and what drives it until it is dropped.
struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    _driver: JoinSet<hyper::Result<()>>,
}

async fn connect(address: SocketAddr) -> Result<Connection> {
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    Ok(Connection { sender, _driver: driver })
}

/// The body of the answer, which has to be 200.
async fn ask(connection: &mut Connection, path: &str) -> Result<Bytes> {
    let request = Request::get(path).header("host", "bench").body(Empty::new()).map_err(failed)?;
    let answer = connection.sender.send_request(request).await.map_err(failed)?;
    if answer.status() != 200 {
        let status = answer.status();
        return Err(Error::new(ErrorKind::Internal, format!("the bench was answered {status}")));
    }
    Ok(answer.into_body().collect().await.map_err(failed)?.to_bytes())
}

/// Requests a second that the server answers with 200 for a while.
async fn load(
    address: SocketAddr,
    path: impl Fn(&Entropy) -> String + Clone + Send + 'static,
    clock: &Clock,
) -> Result<f64> {
    let mut clients = JoinSet::new();
    let start = clock.now();
    for number in 0..CONNECTIONS {
        let (clock, path) = (clock.clone(), path.clone());
        clients.spawn(async move {
            let entropy = Entropy::seeded(number as u64);
            let mut connection = connect(address).await?;
            let mut answered = 0u64;
            while clock.now() - start < ROUND {
                ask(&mut connection, &path(&entropy)).await?;
                answered += 1;
            }
            Ok::<u64, Error>(answered)
        });
    }
    let mut answered = 0;
    while let Some(client) = clients.join_next().await {
        answered += client.map_err(failed)??;
    }
    Ok(answered as f64 / (clock.now() - start).as_secs_f64())
}
