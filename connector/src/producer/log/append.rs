//! Appending: chunks join what is there, or are refused.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::watch;

use super::{Error, Log, lock};
use crate::disk::PushError;
use crate::format::chunk::{Chunk, Range};
use crate::record::{Position, SourcePartition};

/// Why a chunk was not taken.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Too much waits to become durable: here is the chunk back, try again.
    #[error("the log takes no more at the moment")]
    Full(Chunk),
    /// The log takes nothing more in this life.
    #[error("the log takes nothing more")]
    Failed(#[source] Error),
}

/// Where the log ends, per partition, for the present life.
#[derive(Debug, Default)]
pub struct Ends {
    life: u64,
    /// Between two lives nothing is taken.
    open: bool,
    next: HashMap<SourcePartition, i64>,
}

impl Ends {
    /// The present life.
    pub fn life(&self) -> u64 {
        self.life
    }

    /// Refuses all from now on.
    pub fn end_life(&mut self) {
        self.open = false;
    }

    /// Takes what begins at `next`.
    pub fn begin_life(&mut self, life: u64, next: &[Position]) {
        *self = Ends {
            life,
            open: true,
            next: next.iter().map(|position| (position.source.clone(), position.offset)).collect(),
        };
    }

    /// Whether the ranges join. A range may overlap what is there: the reader enters it where it is new.
    fn check(&self, life: u64, ranges: &[Range]) -> Result<(), Error> {
        if !self.open || life != self.life {
            return Err(Error::Closed);
        }
        for range in ranges {
            let end = self.next.get(&range.source).copied();
            if end.is_none_or(|end| range.from > end) {
                return Err(Error::Gap { source_partition: range.source.clone(), from: range.from, end });
            }
        }
        Ok(())
    }

    fn advance(&mut self, ranges: &[Range]) {
        for range in ranges {
            if let Some(end) = self.next.get_mut(&range.source) {
                *end = range.to.max(*end);
            }
        }
    }
}

/// Appends chunks, for one life.
#[derive(Clone, Debug)]
pub struct Appender {
    log: Log,
    life: u64,
}

impl Appender {
    pub(super) fn new(log: Log, life: u64) -> Appender {
        Appender { log, life }
    }

    /// Takes the chunk, or gives it back. Never blocks on the disk.
    ///
    /// # Errors
    /// [`AppendError`].
    pub fn try_append(&self, chunk: Chunk) -> Result<(), AppendError> {
        let inner = &*self.log.0;
        let writer = inner.writer().ok_or(AppendError::Failed(Error::Closed))?;
        let mut ends = lock(&inner.appending);
        ends.check(self.life, chunk.ranges()).map_err(AppendError::Failed)?;
        // Held while it is pushed, so that it is here before the word that it is durable.
        let mut queue = inner.shared.queue();
        if let Some(failed) = queue.failed.clone() {
            return Err(AppendError::Failed(failed));
        }
        let (now, appended) = (inner.options.clock.now(), chunk.clone());
        match writer.push(chunk, self.life, now) {
            Ok(seq) => {
                let ready = queue.appended(seq, &appended, now);
                drop(queue);
                if ready {
                    inner.shared.changed.notify_waiters();
                }
                ends.advance(appended.ranges());
                Ok(())
            }
            Err(PushError::Full(chunk)) => Err(AppendError::Full(chunk)),
            Err(PushError::Failed(error)) => Err(AppendError::Failed(Error::Disk(error))),
        }
    }

    /// Takes the chunk, after a wait of at most about `patience` for room. Blocks: for a thread of its own.
    ///
    /// # Errors
    /// [`AppendError`]; `Full` after the wait.
    pub fn append_within(&self, chunk: Chunk, patience: Duration) -> Result<(), AppendError> {
        let deadline = self.log.0.options.clock.now() + patience;
        let mut chunk = chunk;
        loop {
            match self.try_append(chunk) {
                Err(AppendError::Full(back)) => chunk = back,
                done => return done,
            }
            let left = deadline.saturating_duration_since(self.log.0.options.clock.now());
            if left.is_zero() {
                return Err(AppendError::Full(chunk));
            }
            self.log.0.writer().ok_or(AppendError::Failed(Error::Closed))?.wait(left);
        }
    }

    /// The number after the last durable chunk; goes up only.
    pub fn persisted(&self) -> watch::Receiver<u64> {
        self.log.0.shared.persisted.subscribe()
    }
}
