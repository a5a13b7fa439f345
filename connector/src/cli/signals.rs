//! The signals that end a command which runs for long: the first gracefully, the second at once.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{Error, ErrorKind, Result};

/// How long threads may still take that wait for a broker, or for input, at the end: nothing depends on them any more.
pub(super) const LEFT_BEHIND: Duration = Duration::from_millis(200);

/// SIGTERM and SIGINT. From its making on neither is the default's sudden end.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Signals> {
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// The next one. Cancel safe.
    pub(super) async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Listens to signals of this kind from now on.
pub(super) fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|error| Error::because(ErrorKind::Internal, "cannot listen to signals", error))
}
