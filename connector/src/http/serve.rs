//! Connections: accepted, bounded, and ended in peace.
//!
//! Owns: the listening socket, a task per connection, how much of each lies in memory and for how long. Does not own: what is
//! answered.
//!
//! By hand rather than by `axum::serve`, because that neither bounds connections nor ends those that never send a
//! request, and detaches its tasks.
//!
//! ```text
//!  4096 places       a connection stays for as long as it is used
//!    64 more         one request each, at once: probes and metrics are answered, all else is 503
//! ```
//!
//! So who takes all places, by opening connections and no more, does not have an orchestrator kill the process.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::changes::EVENT_STREAM;
use super::problem::Problem;
use crate::error::{Error, ErrorKind, Result};

/// Most connections at a time, save those of the reserve.
pub const MAX_CONNECTIONS: usize = 4_096;
/// What is read ahead, or waits to be written, of a connection. A request's head has to fit: a URI has less than 64 KiB.
const BUFFER: usize = 96 << 10;

/// How much is given to whom, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at a time.
    pub(super) connections: usize,
    /// More of them, each for one request, once those are taken.
    pub(super) reserve: usize,
    /// How long a connection may take to send a request's head, and how long it may idle before the next one.
    pub(super) head: Duration,
    /// The same, of the reserve.
    pub(super) head_of_reserve: Duration,
    /// How long what was sent may stay unread by the other side. Longer than an event stream waits, which then says so.
    pub(super) unread: Duration,
    /// How long an answer may take, from the request's head until its last piece is on its way; an event stream as long as
    /// it likes. Longer than a write may wait for its version.
    pub(super) answer: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: MAX_CONNECTIONS,
            reserve: 64,
            head: Duration::from_secs(75),
            head_of_reserve: Duration::from_secs(5),
            unread: Duration::from_secs(60),
            answer: Duration::from_secs(600),
        }
    }
}

/// After an error that accepting again at once would only repeat: out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket. What connects before it is served waits.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Listens on `address`, as `http.listen` gives it: `HOST:PORT`; port 0 takes a free one.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] naming `http.listen`: the address is taken, is not this machine's, may not be bound, or is
    /// none. A host name that does not resolve is an error too, and never "all interfaces".
    pub async fn bind(address: &str) -> Result<Listener> {
        Listener::bind_as("http.listen", address).await
    }

    /// As [`Listener::bind`], where not `http.listen` gives the address but `setting`, such as a flag.
    ///
    /// # Errors
    /// Those of [`Listener::bind`], naming `setting`.
    pub async fn bind_as(setting: &str, address: &str) -> Result<Listener> {
        let refused = |error: io::Error| {
            let remedy = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    format!("another process listens there; stop it, or give {setting} another port")
                }
                io::ErrorKind::AddrNotAvailable => {
                    format!("it is not an address of this machine; correct {setting}")
                }
                io::ErrorKind::PermissionDenied => {
                    format!("this user may not listen there; give {setting} a port above 1023")
                }
                _ => format!("{setting} is HOST:PORT, as in 127.0.0.1:8080"),
            };
            let doing = format!("listening on {setting} = {address:?}: {remedy}");
            Error::because(ErrorKind::Config, doing, error)
        };
        let socket = TcpListener::bind(address).await.map_err(refused)?;
        let address = socket.local_addr().map_err(refused)?;
        Ok(Listener { socket, address })
    }

    /// Where it listens, with the port that port 0 was given.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`, then accepts no more, lets each connection finish the answer that is under way, and returns
    /// when all have ended. Dropping the future cuts them off.
    ///
    /// # Errors
    /// None at present: what fails is one connection, or passes.
    pub async fn serve(self, router: Router, stop: CancellationToken) -> Result<()> {
        self.serve_within(Limits::default(), router, stop).await
    }

    pub(super) async fn serve_within(
        self,
        limits: Limits,
        router: Router,
        stop: CancellationToken,
    ) -> Result<()> {
        let places = Places {
            ordinary: Arc::new(Semaphore::new(limits.connections)),
            reserve: Arc::new(Semaphore::new(limits.reserve)),
        };
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = connections.join_next() => {
                    report(ended);
                    continue;
                }
                accepted = places.accept(&self.socket) => accepted,
            };
            match accepted {
                Ok((stream, place)) => {
                    connections.spawn(converse(stream, place, limits, router.clone(), stop.clone()));
                }
                // The client went away between connecting and being accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.socket);
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
        Ok(())
    }
}

/// Room for connections.
struct Places {
    ordinary: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
}

/// A connection's, until it ends.
struct Place {
    _permit: OwnedSemaphorePermit,
    of_reserve: bool,
}

impl Places {
    /// Accepts the next connection once there is room for it.
    async fn accept(&self, socket: &TcpListener) -> io::Result<(TcpStream, Place)> {
        let take = |room: &Arc<Semaphore>| {
            let room = Arc::clone(room);
            async move { room.acquire_owned().await.expect("the semaphore is never closed") }
        };
        let mut place = tokio::select! {
            biased;
            permit = take(&self.ordinary) => Place { _permit: permit, of_reserve: false },
            permit = take(&self.reserve) => Place { _permit: permit, of_reserve: true },
        };
        let (stream, _) = socket.accept().await?;
        // Meanwhile another connection may have ended.
        if place.of_reserve
            && let Ok(permit) = Arc::clone(&self.ordinary).try_acquire_owned()
        {
            place = Place { _permit: permit, of_reserve: false };
        }
        Ok((stream, place))
    }
}

async fn converse(
    stream: TcpStream,
    place: Place,
    limits: Limits,
    router: Router,
    stop: CancellationToken,
) -> hyper::Result<()> {
    // An answer is one write; waiting for the acknowledgement of the one before would only delay it. That it cannot be
    // set on a connection that is already gone matters to nobody.
    let _ = stream.set_nodelay(true);
    // A client that reads nothing any more would keep its answer, and what that holds, for ever.
    #[cfg(target_os = "linux")]
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, limits.unread.as_millis() as u32);
    let (under_way, router) = (Arc::new(UnderWay::new()), TowerToHyperService::new(router));
    let of_reserve = place.of_reserve;
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let answering = Answering::begin(&under_way);
        let turned_away = of_reserve && !is_vital(request.uri().path());
        let answer = (!turned_away).then(|| router.call(request));
        let connections = limits.connections;
        async move {
            let response = match answer {
                Some(answer) => answer.await?,
                None => turned_away_by(connections),
            };
            if response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == EVENT_STREAM) {
                answering.takes_its_time();
            }
            Ok::<_, Infallible>(response.map(|body| Watched { body, _answering: answering }))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(if of_reserve { limits.head_of_reserve } else { limits.head })
        .keep_alive(!of_reserve)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut overdue = std::pin::pin!(under_way.overdue(limits.answer));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = overdue.as_mut() => Ok(()),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = overdue => Ok(()),
            }
        }
    };
    drop(place);
    ended
}

/// What tells an orchestrator how the process does.
fn is_vital(path: &str) -> bool {
    matches!(path, "/health" | "/ready" | "/live" | "/metrics")
}

fn turned_away_by(connections: usize) -> Response {
    let detail = format!("{connections} connections are open here already; try another process, or later");
    Problem::of(ErrorKind::Unavailable, detail).into_response()
}

/// Since when a connection's request is answered.
struct UnderWay {
    opened: Instant,
    /// Milliseconds from `opened`, and one; 0: none is, or it may take its time.
    since: AtomicU64,
}

impl UnderWay {
    fn new() -> UnderWay {
        UnderWay { opened: Instant::now(), since: AtomicU64::new(0) }
    }

    /// Returns once an answer takes longer than `limit`, or up to a quarter of it later. Hyper does not ask for more of a body
    /// whose client does not take what there is, so a body cannot see to that itself.
    async fn overdue(&self, limit: Duration) {
        loop {
            tokio::time::sleep(limit / 4).await;
            let since = self.since.load(Ordering::Relaxed);
            let now = self.opened.elapsed().as_millis() as u64;
            if since > 0 && u128::from(now.saturating_sub(since)) > limit.as_millis() {
                tracing::debug!(?limit, "a client takes too long to take its answer, and is cut off");
                return;
            }
        }
    }
}

/// A request's, until its answer has been sent or dropped.
struct Answering(Arc<UnderWay>);

impl Answering {
    fn begin(under_way: &Arc<UnderWay>) -> Answering {
        let now = under_way.opened.elapsed().as_millis() as u64;
        under_way.since.store(now + 1, Ordering::Relaxed);
        Answering(Arc::clone(under_way))
    }

    fn takes_its_time(&self) {
        self.0.since.store(0, Ordering::Relaxed);
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.takes_its_time();
    }
}

/// An answer's body.
struct Watched {
    body: Body,
    _answering: Answering,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn report(ended: Result<hyper::Result<()>, tokio::task::JoinError>) {
    match ended {
        Ok(Ok(())) => {}
        // A client that goes away, or speaks something else: its business.
        Ok(Err(error)) => tracing::debug!(%error, "a connection ended"),
        Err(panic) => {
            tracing::error!(%panic, "answering a request panicked: this is a bug, please report it")
        }
    }
}
