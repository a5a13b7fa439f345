//! `bench http`: requests a second of one route, against a handler that does nothing.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
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

pub(super) async fn run(settings: &Settings) -> Result<Vec<Measured>> {
    let clock = Clock::system();
    let scratch = Scratch::new("http")?;
    let made = Made::new(scratch.path(), settings).await?;
    let view = made.open(&made.cache).await?;
    let sample = view.get(key(1))?.map_or(Ok(String::new()), |value| value.to_json())?;
    let side = ReadingSide::new(Reader::of(view), ConsumerMetrics::detached(), 10);
    let directory = Directory::new([Dataset::new("bench", Some(side), None)], clock.clone());
    let ours = App::new(directory, Metrics::new(), clock.clone()).router();
    let bare = Router::new().fallback(get(move || std::future::ready(sample.clone())));

    let stop = CancellationToken::new();
    let mut servers = JoinSet::new();
    let mut addresses = Vec::new();
    for router in [ours, bare] {
        let listener = Listener::bind("127.0.0.1:0").await?;
        addresses.push(listener.address());
        servers.spawn(listener.serve(router, stop.clone()));
    }
    let [ours, bare] = addresses.as_slice() else {
        return Err(Error::new(ErrorKind::Internal, "two servers were started"));
    };
    let (mut of_ours, mut of_bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        of_ours.push(load(*ours, settings.records, &clock).await?);
        of_bare.push(load(*bare, settings.records, &clock).await?);
    }
    stop.cancel();
    while servers.join_next().await.is_some() {}
    Ok(vec![measured(
        "http",
        "requests_per_second",
        (quantile(&mut of_ours, 0.5), "requests/s"),
        ("a bare handler, requests/s", quantile(&mut of_bare, 0.5)),
    )])
}

/// Requests a second that the server answers with 200 for a while.
async fn load(address: SocketAddr, records: u64, clock: &Clock) -> Result<f64> {
    let mut clients = JoinSet::new();
    let start = clock.now();
    for number in 0..CONNECTIONS {
        let clock = clock.clone();
        clients.spawn(async move {
            let entropy = Entropy::seeded(number as u64);
            let stream = TcpStream::connect(address).await.map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
            let mut driver = JoinSet::new();
            driver.spawn(connection);
            let mut answered = 0u64;
            while clock.now() - start < ROUND {
                let path = format!("/v1/datasets/bench/records/{}", key(entropy.next_u64() % records));
                let request = Request::get(path).header("host", "bench").body(Empty::<bytes::Bytes>::new());
                let answer = sender.send_request(request.map_err(failed)?).await.map_err(failed)?;
                if answer.status() != 200 {
                    let status = answer.status();
                    return Err(Error::new(ErrorKind::Internal, format!("the bench was answered {status}")));
                }
                answer.into_body().collect().await.map_err(failed)?;
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
