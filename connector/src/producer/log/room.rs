//! Room: how full the log is, on its own and on its disk; a log opened anew after a failure; room given back.

use super::{Engine, Error, Log, Shared, blocking, lock};
use crate::disk::{self, Database};
use crate::producer::shed::Shed;

/// What the disk must keep free, in write buffers: RocksDB may have two to write out while a third fills, and one more
/// before the next opening has trimmed anything. What is written out needs room before its write-ahead log gives any.
const RESERVE_BUFFERS: u64 = 4;
/// A small volume gets small buffers, so that the reserve is at most an eighth of it.
const BUFFERS_OF_A_VOLUME: u64 = 8 * RESERVE_BUFFERS;
/// Smallest write buffer: a chunk.
const LEAST_BUFFER: usize = 1 << 20;

/// How full the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Bytes of chunks that are not trimmed, those included that wait for the fsync; with `dead_letter` only of those that
    /// were not handed on.
    pub bytes: u64,
    /// Most of them: `max_log_size`.
    pub most: u64,
    /// Bytes that its file system has free; `None` where that is not known.
    pub free: Option<u64>,
    /// Bytes that must be.
    pub reserve: u64,
    /// There are chunks on disk only.
    pub spills: bool,
    /// Something makes room once there are more than `most`.
    pub sheds: bool,
}

impl Fill {
    /// The share of `most` that is in use; above 1 past it.
    pub fn log(&self) -> f64 {
        self.bytes as f64 / self.most.max(1) as f64
    }

    /// The share of what is free that must stay so; 1 and more: there is no room left.
    pub fn disk(&self) -> f64 {
        self.free.map_or(0.0, |free| self.reserve as f64 / free.max(1) as f64)
    }
}

/// The write buffer for a log in `dir`, which exists.
pub(super) fn write_buffer_bytes(dir: &std::path::Path, wanted: usize) -> usize {
    let most = disk::space(dir).map_or(u64::MAX, |space| space.total / BUFFERS_OF_A_VOLUME);
    wanted.min(usize::try_from(most).unwrap_or(usize::MAX)).max(LEAST_BUFFER)
}

impl Log {
    /// How full it is. Asks the file system, which takes a microsecond.
    pub fn fill(&self) -> Fill {
        let inner = &*self.0;
        let (bytes, spills) = {
            let queue = inner.shared.queue();
            // Letters make room where records are handed on; what was is held by memory alone, and must not keep the
            // source from bringing on what goes out as letters.
            let held = match inner.options.shed {
                Shed::DeadLetter => queue.waiting_bytes(),
                _ => queue.stats().log_bytes,
            };
            (held + queue.coming_bytes(), queue.spilled().next().is_some())
        };
        Fill {
            bytes,
            spills,
            most: inner.options.max_log_bytes,
            free: disk::space(&inner.dir).map(|space| space.free),
            reserve: inner.options.write_buffer_bytes as u64 * RESERVE_BUFFERS,
            sheds: inner.options.shed.makes_room(),
        }
    }

    /// Opens the log anew if it has failed. A life does so before it takes over, so that a disk that is still full
    /// costs one look at it, and no epoch.
    ///
    /// # Errors
    /// [`Error::Disk`], [`Error::Closed`].
    pub async fn mend(&self) -> Result<(), Error> {
        let log = self.clone();
        blocking(move || log.mend_now()).await
    }

    fn mend_now(&self) -> Result<(), Error> {
        let inner = &*self.0;
        let _turn = lock(&inner.turning);
        if inner.shared.queue().closed {
            return Err(Error::Closed);
        }
        let refused = inner.shared.queue().refused;
        match inner.writer() {
            Some(writer) if !refused && writer.failed().is_none() => Ok(()),
            _ => self.reopen().map(|_| ()),
        }
    }

    /// Closes what has failed, and opens it anew. For who holds `turning`.
    pub(super) fn reopen(&self) -> Result<disk::Survey, Error> {
        let inner = &*self.0;
        let failed = lock(&inner.engine).take();
        if let Some(failed) = failed {
            let _ = failed.stop();
        }
        // Only now that its threads, which say so, have ended.
        inner.shared.queue().refused = false;
        let next = *inner.shared.persisted.borrow();
        let (engine, survey) = Engine::start(&inner.dir, &inner.options, &inner.shared, next)?;
        *lock(&inner.engine) = Some(engine);
        Ok(survey)
    }
}

/// Deletes, and once enough has been deleted looks for the files that held it. On the keeper's thread.
pub(super) fn forget_and_reclaim(
    database: &Database,
    shared: &Shared,
    (from, to): (u64, u64),
    reclaim_at: u64,
) -> Result<(), disk::Error> {
    if from < to {
        database.forget(from, to, false)?;
    }
    reclaim_if_due(database, shared, reclaim_at)
}

/// Gives room back to the file system, where enough was deleted since the last time.
pub(super) fn reclaim_if_due(
    database: &Database,
    shared: &Shared,
    reclaim_at: u64,
) -> Result<(), disk::Error> {
    let due = {
        let mut queue = shared.queue();
        let due = queue.unreclaimed_bytes >= reclaim_at;
        if due {
            queue.unreclaimed_bytes = 0;
        }
        due
    };
    if due { database.reclaim() } else { Ok(()) }
}
