//! Reading: chunks in the order of appending, from memory (where they may not be durable yet) or paged back.

use std::time::Instant;

use super::queue::{Queue, Ready};
use super::{Error, Log, Shared};
use crate::disk::{self, Database};
use crate::format::chunk::Chunk;
use crate::gauge::Lease;
use crate::producer::shed::Shed;

/// Most bytes that one job pages back: as large as helps the disk, as small as lets other jobs in between.
const PAGE_BYTES: u64 = 8 << 20;

/// A chunk as the log hands it on.
#[derive(Debug)]
pub struct Logged {
    /// The chunk. Ranges of it that do not join are gone; see `judge`.
    pub chunk: Chunk,
    /// By slot: the first offset that counts. Records below it were announced, or handed on, before; it may lie beyond
    /// the range's end.
    pub from: Vec<i64>,
    /// Its bytes in memory, until dropped.
    pub lease: Option<Lease>,
    /// When it was appended; of what was found at a resume, when that was.
    pub received_at: Instant,
}

/// Reads the log, for one life.
#[derive(Debug)]
pub struct Reader {
    log: Log,
    life: u64,
}

impl Reader {
    pub(super) fn new(log: Log, life: u64) -> Reader {
        Reader { log, life }
    }

    /// The next chunk; `None` once the log is closed or a later life has begun. Loses nothing if it is dropped while
    /// it waits.
    ///
    /// # Errors
    /// [`Error::Cut`] if the next chunk cannot be read, [`Error::Disk`] if the log has failed: the life is over. What
    /// lay ready is handed on first.
    pub async fn next(&mut self) -> Result<Option<Logged>, Error> {
        let shared = self.log.0.shared.clone();
        loop {
            let changed = shared.changed.notified();
            tokio::pin!(changed);
            // Registered before looking: a change between look and wait still wakes.
            changed.as_mut().enable();
            let wanted = {
                let mut queue = shared.queue();
                if queue.closed || queue.life != self.life {
                    return Ok(None);
                }
                if let Some((ready, from)) = queue.take() {
                    self.read_ahead(&mut queue);
                    let Ready { chunk, lease, received_at, .. } = ready;
                    return Ok(Some(Logged { chunk, from, lease: Some(lease), received_at }));
                }
                if let Some(failed) = &queue.failed {
                    return Err(failed.clone());
                }
                let next = if queue.paging { None } else { queue.spilled().next().copied() };
                next.and_then(|next| Some((u64::from(next.bytes), queue.room.as_ref()?.memory.clone())))
            };
            match wanted {
                None => changed.await,
                Some((bytes, memory)) => tokio::select! {
                    lease = memory.lease(bytes) => self.page(&mut shared.queue(), lease),
                    () = changed => {}
                },
            }
        }
    }

    /// The share of the memory that is in use behind the log.
    pub fn behind(&self) -> f64 {
        self.log.0.shared.queue().behind()
    }

    /// Whether what has not been handed on is more than the log shall hold, and goes to the dead-letter topic then.
    pub fn overflows(&self) -> bool {
        let inner = &*self.log.0;
        inner.options.shed == Shed::DeadLetter
            && inner.shared.queue().waiting_bytes() > inner.options.max_log_bytes
    }

    /// Starts to page back before the last chunk in memory is gone, if there is memory to spare.
    fn read_ahead(&self, queue: &mut Queue) {
        let Some(next) = queue.spilled().next().filter(|_| !queue.paging && queue.runs_low()) else { return };
        let lease = queue.room.as_ref().and_then(|room| room.memory.try_lease(next.bytes.into()));
        if let Some(lease) = lease {
            self.page(queue, lease);
        }
    }

    /// Asks for the chunks on disk only, the first of which has its lease.
    fn page(&self, queue: &mut Queue, lease: Lease) {
        let next = queue.spilled().next();
        if queue.life != self.life
            || queue.paging
            || next.is_none_or(|next| lease.bytes() != u64::from(next.bytes))
        {
            return; // changed while the lease was waited for
        }
        let Some(keeper) = self.log.0.keeper() else {
            // No life has begun since the log failed: said, else the caller would ask again at once, for ever.
            queue.failed.get_or_insert(Error::Closed);
            return;
        };
        let (shared, life) = (self.log.0.shared.clone(), self.life);
        queue.paging = keeper.run(move |database| {
            settle(database, &shared, life, page_back(database, &shared, life, lease));
            let mut queue = shared.queue();
            if queue.life == life {
                queue.paging = false;
            }
            drop(queue);
            shared.changed.notify_waiters();
        });
    }
}

/// Reads as many chunks as there is room for, in order. On the keeper's thread.
fn page_back(database: &Database, shared: &Shared, life: u64, first: Lease) -> Result<(), disk::Error> {
    let mut lease = Some(first);
    let mut read = 0;
    let mut pages = database.pages();
    loop {
        let next = {
            let queue = shared.queue();
            let Some(next) = queue.spilled().next().filter(|_| queue.life == life && !queue.closed) else {
                return Ok(());
            };
            if lease.is_none() && read < PAGE_BYTES && queue.has_room(next.records as usize) {
                lease = queue.room.as_ref().and_then(|room| room.memory.try_lease(next.bytes.into()));
            }
            *next
        };
        let Some(lease) = lease.take() else { return Ok(()) };
        let chunk = pages.chunk(next.seq, next.sum)?;
        read += lease.bytes();
        let mut queue = shared.queue();
        if queue.life != life {
            return Ok(());
        }
        queue.paged(chunk, lease);
        drop(queue);
        shared.changed.notify_waiters();
    }
}

/// What the outcome of reading chunks means for the log.
pub(super) fn settle(database: &Database, shared: &Shared, life: u64, outcome: Result<(), disk::Error>) {
    match outcome {
        Ok(()) => {}
        Err(disk::Error::Corrupt { seq, dir, why }) => {
            cut(database, shared, life, seq, disk::Error::Corrupt { seq, dir, why });
        }
        Err(error) => shared.fail(Error::Disk(error)),
    }
}

/// Takes the chunk that cannot be read out of the log, and all behind it: what comes after a hole cannot be announced
/// anyway, and a log that still held it would stumble there in every life.
fn cut(database: &Database, shared: &Shared, life: u64, seq: u64, error: disk::Error) {
    if let Err(error) = database.forget(seq, u64::MAX, true) {
        return shared.fail(Error::Disk(error));
    }
    let records = {
        let mut queue = shared.queue();
        if queue.life == life { queue.cut() } else { 0 }
    };
    shared.fail(Error::Cut { dir: database.dir().to_owned(), seq, records, source: error });
}
