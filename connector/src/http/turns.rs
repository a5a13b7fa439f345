//! Large answers, a few at a time: each lies in memory until its client has taken it.
//!
//! Owns: who may make one, and that its turn ends when its last piece is on its way. Does not own: what is in it (`records`),
//! how long a client may take (`serve`).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Problem;
use crate::error::ErrorKind;

/// Answers that are made or lie here at a time.
pub(super) const MOST: usize = 64;
/// An answer up to so many bytes lies in what a connection has anyway.
pub(super) const LARGE: usize = 64 << 10;
/// How long one waits for its turn.
const WAIT: Duration = Duration::from_secs(10);

/// Room for large answers. Clones share.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Semaphore>);

/// Held for as long as the answer is there.
pub(super) struct Turn {
    _permit: OwnedSemaphorePermit,
}

impl Turns {
    pub(super) fn new() -> Turns {
        Turns(Arc::new(Semaphore::new(MOST)))
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// That others take too long.
    pub(super) async fn take(&self) -> Result<Turn, Problem> {
        match tokio::time::timeout(WAIT, Arc::clone(&self.0).acquire_owned()).await {
            Ok(Ok(_permit)) => Ok(Turn { _permit }),
            _ => Err(Problem::of(
                ErrorKind::Unavailable,
                format!(
                    "{MOST} large answers are on their way from here already; try another process, or later"
                ),
            )),
        }
    }

    /// How many could be taken now.
    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.0.available_permits()
    }
}

/// The body of an answer, whose turn ends with it; at once where it is not large.
pub(super) fn body(text: String, turn: Option<Turn>) -> Body {
    match turn.filter(|_| text.len() > LARGE) {
        Some(turn) => Body::new(Pieces { text, sent: 0, _turn: turn }),
        None => Body::from(text),
    }
}

/// Piece by piece, so that the text is there until all but the last is taken; and copied, so that not even that keeps it.
struct Pieces {
    text: String,
    sent: usize,
    _turn: Turn,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some((_, left)) = self.text.as_bytes().split_at_checked(self.sent) else {
            return Poll::Ready(None);
        };
        let piece = Bytes::copy_from_slice(left.split_at_checked(LARGE).map_or(left, |(piece, _)| piece));
        if piece.is_empty() {
            return Poll::Ready(None);
        }
        self.sent += piece.len();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.sent >= self.text.len()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.text.len().saturating_sub(self.sent) as u64)
    }
}
