//! Large answers, a few at a time: each lies in memory until its client has taken it.
//!
//! ```text
//!  a turn --made--> it lies here --piece by piece--> taken: the turn is over
//!                        |
//!                        +-- another waits for a turn, and this client is slower than PACE: cut off
//! ```
//!
//! So clients that take their answers slowly, or never, may do so for as long as nobody else wants the room, and cannot keep
//! others from theirs.
//!
//! Owns: who may make one, that its turn ends when its last piece is on its way, and whose ends before. Does not own: what is in
//! it (`records`), how long a client may take where there is room (`serve`).

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::problem::Problem;
use crate::error::ErrorKind;

/// Answers that are made or lie here at a time.
pub(super) const MOST: usize = 64;
/// An answer up to so many bytes lies in what a connection has anyway.
pub(super) const LARGE: usize = 64 << 10;
/// How long one waits for its turn.
const WAIT: Duration = Duration::from_secs(10);
/// Between two looks for a client that is too slow, while one waits.
const LOOK: Duration = Duration::from_millis(100);
/// Slower than so many bytes a second an answer is not taken while another waits for its room,
const PACE: usize = 256 << 10;
/// but for so long at its beginning.
const SPARED: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 3_000 });

/// Room for large answers. Clones share.
#[derive(Clone, Debug)]
pub(super) struct Turns {
    room: Arc<Semaphore>,
    /// What lies here; some are gone by now.
    lying: Arc<Mutex<Vec<Weak<Lying>>>>,
}

/// Held for as long as the answer is there.
pub(super) struct Turn {
    permit: OwnedSemaphorePermit,
    turns: Turns,
}

/// An answer that was made.
#[derive(Debug)]
struct Lying {
    since: Instant,
    left: Mutex<Left>,
}

/// What of it is there. Both go together: nobody holds the one without the other.
#[derive(Debug)]
struct Left {
    text: String,
    sent: usize,
    /// `None`: its time was over.
    permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub(super) fn new() -> Turns {
        Turns { room: Arc::new(Semaphore::new(MOST)), lying: Arc::default() }
    }

    /// Waits for a turn. Who takes an answer too slowly meanwhile loses it.
    ///
    /// # Errors
    /// That others take too long, and not for being slow.
    pub(super) async fn take(&self) -> Result<Turn, Problem> {
        let until = Instant::now() + WAIT;
        // One place in the queue, however often it is looked meanwhile.
        let mut permit = std::pin::pin!(Arc::clone(&self.room).acquire_owned());
        loop {
            match tokio::time::timeout(LOOK, permit.as_mut()).await {
                Ok(Ok(permit)) => return Ok(Turn { permit, turns: self.clone() }),
                Err(_) if Instant::now() < until => self.cut_off_slowest(),
                _ => break,
            }
        }
        let detail =
            format!("{MOST} large answers are on their way from here already; try another process, or later");
        Err(Problem::of(ErrorKind::Unavailable, detail))
    }

    /// Ends the turn of the answer that is the furthest behind [`PACE`], if any is.
    fn cut_off_slowest(&self) {
        let now = Instant::now();
        let lying: Vec<Arc<Lying>> = lock(&self.lying).iter().filter_map(Weak::upgrade).collect();
        let behind = lying.iter().filter_map(|lying| Some((lying.behind(now)?, lying)));
        let Some((behind, slowest)) = behind.max_by_key(|(behind, _)| *behind) else { return };
        let mut left = lock(&slowest.left);
        tracing::debug!(
            sent = left.sent,
            of = left.text.len(),
            ?behind,
            "a client takes its answer too slowly, and others wait: it is cut off"
        );
        // The memory before the room.
        left.text = String::new();
        left.permit = None;
    }

    /// How many could be taken now.
    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.room.available_permits()
    }
}

impl Lying {
    /// By how much its client is slower than it may be; `None`: it is not, or was cut off.
    fn behind(&self, now: Instant) -> Option<Duration> {
        let left = lock(&self.left);
        left.permit.as_ref()?;
        let due = SPARED + Duration::from_secs_f64(left.sent as f64 / PACE as f64);
        now.saturating_duration_since(self.since).checked_sub(due).filter(|behind| !behind.is_zero())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body of an answer, whose turn ends with it; at once where it is not large.
pub(super) fn body(text: String, turn: Option<Turn>) -> Body {
    let Some(Turn { permit, turns }) = turn.filter(|_| text.len() > LARGE) else { return Body::from(text) };
    let left = Left { text, sent: 0, permit: Some(permit) };
    let lying = Arc::new(Lying { since: Instant::now(), left: Mutex::new(left) });
    let mut all = lock(&turns.lying);
    all.retain(|lying| lying.strong_count() > 0);
    all.push(Arc::downgrade(&lying));
    Body::new(Pieces(lying))
}

/// Piece by piece, so that the text is there until all but the last is taken; and copied, so that not even that keeps it.
struct Pieces(Arc<Lying>);

/// Why an answer ends before its end.
#[derive(Debug, thiserror::Error)]
#[error("its client took it too slowly while others waited")]
struct CutOff;

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        let mut left = lock(&self.0.left);
        if left.permit.is_none() {
            return Poll::Ready(Some(Err(CutOff)));
        }
        let Some((_, rest)) = left.text.as_bytes().split_at_checked(left.sent) else {
            return Poll::Ready(None);
        };
        let piece = Bytes::copy_from_slice(rest.split_at_checked(LARGE).map_or(rest, |(piece, _)| piece));
        if piece.is_empty() {
            return Poll::Ready(None);
        }
        left.sent += piece.len();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        let left = lock(&self.0.left);
        left.permit.is_some() && left.sent >= left.text.len()
    }

    fn size_hint(&self) -> SizeHint {
        let left = lock(&self.0.left);
        match left.permit {
            Some(_) => SizeHint::with_exact(left.text.len().saturating_sub(left.sent) as u64),
            // It was said when it was whole.
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a piece.
    async fn piece(body: &mut Body) -> Option<Result<Bytes, axum::Error>> {
        let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?;
        Some(frame.map(|frame| frame.into_data().expect("no trailers")))
    }

    async fn rest(body: &mut Body) -> Result<usize, axum::Error> {
        let mut bytes = 0;
        while let Some(piece) = piece(body).await {
            bytes += piece?.len();
        }
        Ok(bytes)
    }

    #[tokio::test]
    async fn who_takes_nothing_loses_the_turn_to_who_waits_and_nobody_else_does() {
        let (turns, large) = (Turns::new(), "x".repeat(20 * LARGE));
        let mut bodies = Vec::new();
        for _ in 0..MOST {
            bodies.push(body(large.clone(), Some(turns.take().await.unwrap())));
        }
        // One takes all but an end that is not worth a second: it is far ahead of its pace.
        let mut quick = bodies.pop().unwrap();
        for _ in 0..19 {
            assert!(piece(&mut quick).await.unwrap().is_ok());
        }
        assert_eq!(turns.left(), 0);
        let mut taken = Vec::new();
        for _ in 0..2 {
            taken.push(turns.take().await.expect("a slow one is cut off"));
        }
        assert_eq!(rest(&mut quick).await.unwrap(), LARGE, "it was quick");
        let mut cut = 0;
        for body in &mut bodies {
            cut += usize::from(rest(body).await.is_err());
        }
        assert_eq!(cut, 2, "no more than were waited for");
        drop((quick, bodies));
        assert_eq!(turns.left(), MOST - 2);
    }

    #[tokio::test]
    async fn where_nobody_waits_nobody_is_cut_off() {
        let turns = Turns::new();
        let mut slow = body("x".repeat(2 * LARGE), Some(turns.take().await.unwrap()));
        tokio::time::sleep(SPARED * 2).await;
        drop(turns.take().await.unwrap());
        assert_eq!(rest(&mut slow).await.unwrap(), 2 * LARGE);
    }
}
