//! Turns: how many versions made of batches may wait for the announcer.
//!
//! A transaction takes its time whatever it announces. While announcing is the slowest stage, a long line in front of it
//! would only make every version late; in a short one the next batch goes on growing, so that versions become larger
//! instead.
//!
//! Owns: the length of that line. Does not own: how large a batch becomes (`batch`), who is in it (`build` takes a turn,
//! `announce` gives it back when it takes the version up).

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::batch::Batch;
use crate::format::succession::MAX_RUN;

/// A place in the line, until it is dropped.
pub type Turn = OwnedSemaphorePermit;

/// The line.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Semaphore>);

impl Turns {
    /// As many as are uploaded at a time, and no fewer than one transaction announces: what is beyond could only wait.
    pub fn new(uploads: usize) -> Turns {
        Turns(Arc::new(Semaphore::new(uploads.max(MAX_RUN))))
    }

    /// The next batch, once there is room for its version; no batch once the channel is closed. Loses nothing if it is
    /// dropped while it waits.
    pub async fn next(&self, batches: &mut mpsc::Receiver<Batch>) -> (Option<Turn>, Option<Batch>) {
        // An error would say that the semaphore was closed, which nobody does.
        let turn = self.0.clone().acquire_owned().await.ok();
        (turn, batches.recv().await)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_batch_waits_for_a_turn_and_none_is_lost() {
        let (send, mut batches) = mpsc::channel(8);
        for _ in 0..=MAX_RUN {
            send.send(Batch::default()).await.unwrap();
        }
        let turns = Turns::new(1);
        let mut taken = Vec::new();
        for _ in 0..MAX_RUN {
            let (turn, batch) = turns.next(&mut batches).await;
            assert!(batch.is_some());
            taken.push(turn);
        }
        // Given up while it waits, as a `select!` does.
        assert!(turns.next(&mut batches).now_or_never().is_none());
        taken.pop();
        let (turn, batch) = turns.next(&mut batches).await;
        assert!(turn.is_some() && batch.is_some());
        drop((turn, send));
        assert!(turns.next(&mut batches).await.1.is_none(), "the channel is closed and empty");
    }
}
