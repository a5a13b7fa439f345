//! Connections: accepted, bounded, and ended in peace.
//!
//! Owns: the listening socket, a task per connection. Does not own: what is answered.
//!
//! By hand rather than by `axum::serve`, because that neither bounds connections nor ends those that never send a
//! request, and detaches its tasks.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};

/// Most connections at a time; more wait in the system's backlog until one ends.
pub const MAX_CONNECTIONS: usize = 4_096;
/// How long a connection may take to send a request's head, and how long it may idle before the next one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// How long what was sent may stay unread by the other side. Longer than an event stream waits, which then says so.
const UNREAD: Duration = Duration::from_secs(60);
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
        let refused = |error: io::Error| {
            let remedy = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    "another process listens there; stop it, or give http.listen another port"
                }
                io::ErrorKind::AddrNotAvailable => {
                    "it is not an address of this machine; correct http.listen"
                }
                io::ErrorKind::PermissionDenied => {
                    "this user may not listen there; give http.listen a port above 1023"
                }
                _ => "http.listen is HOST:PORT, as in 127.0.0.1:8080",
            };
            let doing = format!("listening on http.listen = {address:?}: {remedy}");
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
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = connections.join_next() => {
                    report(ended);
                    continue;
                }
                accepted = accept(&self.socket, &room) => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    connections.spawn(converse(stream, permit, router.clone(), stop.clone()));
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

/// Accepts the next connection once there is room for it.
async fn accept(
    socket: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.expect("the semaphore is never closed");
    let (stream, _) = socket.accept().await?;
    Ok((stream, permit))
}

async fn converse(
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
    router: Router,
    stop: CancellationToken,
) -> hyper::Result<()> {
    // An answer is one write; waiting for the acknowledgement of the one before would only delay it. That it cannot be
    // set on a connection that is already gone matters to nobody.
    let _ = stream.set_nodelay(true);
    // A client that reads nothing any more would keep its answer, and what that holds, for ever.
    #[cfg(target_os = "linux")]
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, UNREAD.as_millis() as u32);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    drop(permit);
    ended
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
