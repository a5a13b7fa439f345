//! The log: what was received from Kafka, made durable while more is made of it, and kept until it is announced.
//!
//! ```text
//!                 trimmed            handed on           ready        spilled         durable     appended
//!   numbers  ........|-------------------|------------------|-------------|--------------|-----------|
//!                    |  not announced    |  in memory,      |  on disk    |              |  waits for
//!                    |  yet              |  to be handed on |  only       |              |  the fsync
//!
//!   source ==Chunk==> Appender =======================> memory, or nothing (spilled) => Reader ==Logged==> batch
//!                        '===> disk::Writer =fsync====>      ^--- disk::Keeper pages back, in order ---'
//! ```
//!
//! Chunks are handed on strictly in the order of appending. Up to the reader's room a chunk stays in memory, and is handed
//! on while it becomes durable: a version that is announced before its records are in the log needs them there no more,
//! and of one that is not, the next life reads from Kafka what the log lacks. Beyond that room it is on disk only
//! (spilled) and is paged back when its turn comes. No byte is written for that. Who hands a chunk back does so by
//! dropping its lease.
//!
//! **Lives.** [`Log::resume`] begins a life at the announced positions, for one history, schema and way of reading
//! (its [`Origin`]; a log of another is discarded): what joins them is handed on first, what does not
//! is discarded, Kafka continues after it. Appenders and readers of the life before are closed by that, so that a
//! straggler of an ended life cannot write into the next one. The announced positions come from the outside; the log
//! has no opinion of its own on what is needed.
//!
//! **Failures.** All of them end the life and cost time, not data:
//! - an append, an fsync, a deletion or the giving back of room fails: nothing is taken any more, [`Log::mend`] or
//!   [`Log::resume`] opens the database anew;
//! - a chunk cannot be read: the log is cut before it, said, and the next life reads on from Kafka there;
//! - RocksDB refuses its files: they are put aside, said, and the log begins empty.
//!
//! Owns: what of the log is in memory, what is kept, what is handed on from where. Does not own: bytes and threads
//! (`disk/`), what is announced (`announce`), when the source pauses (`source`).

mod append;
mod error;
mod found;
mod judge;
mod queue;
mod read;
mod room;
mod shed;

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use self::found::{claim, cut_back, ranges, say_cut};
use self::judge::{judge, runs};
use self::queue::{Queue, Room, Spilled};
use self::room::{forget_and_reclaim, write_buffer_bytes};
use super::shed::Shed;
use crate::clock::Clock;
use crate::disk::{self, Database, Keeper, Survey, Waiting, Writer};
use crate::format::chunk::Range;
use crate::format::origin::Origin;
use crate::gauge::Budget;
use crate::record::Position;

pub use self::append::{AppendError, Appender};
pub use self::error::Error;
pub use self::judge::{Cursor, joined};
pub use self::read::{Logged, Reader};
pub use self::room::Fill;
pub use self::shed::OnShed;

/// Most chunks that wait for the fsync, whatever their size.
const MOST_WAITING: usize = 4096;
/// From one fsync to the next, while little comes: nobody waits for one, and each holds up those of the blob store, which is
/// on the same disk more often than not.
const APART: Duration = Duration::from_millis(5);
/// How often it is looked whether all of it is announced: as often as it is trimmed.
const LOOK: Duration = Duration::from_millis(200);
/// Trimmed bytes at which they are deleted: few enough to keep the log from growing, and so many that there are only a
/// few range deletions in a memtable, since each costs every later read a little.
const FORGET_SHARE: usize = 8;
/// Deleted bytes at which the files that held them are looked for, in write buffers.
const RECLAIM_BUFFERS: u64 = 2;

/// Told of each chunk that has become durable: how long after it was appended.
pub type Persisted = Arc<dyn Fn(Duration) + Send + Sync>;

/// How the log is kept.
#[derive(Clone)]
pub struct Options {
    /// Time.
    pub clock: Clock,
    /// Most bytes that wait to become durable.
    pub max_waiting_bytes: u64,
    /// Bytes that RocksDB keeps in memory before it writes a file of them; it may hold three times as many for a
    /// moment. What is announced before that is never written a second time.
    pub write_buffer_bytes: usize,
    /// Most bytes of chunks that it shall hold: what [`Log::fill`] compares with.
    pub max_log_bytes: u64,
    /// What gives way past that.
    pub shed: Shed,
    /// Told of what has given way.
    pub on_shed: Option<OnShed>,
    /// Told of each chunk that has become durable.
    pub on_persisted: Option<Persisted>,
    /// While true, commits fail as on a full disk.
    #[cfg(test)]
    pub full_disk: Arc<std::sync::atomic::AtomicBool>,
}

impl Options {
    /// 32 MiB waiting, 64 MiB in RocksDB's memory, 10 GiB in all, past which nothing gives way.
    pub fn new(clock: Clock) -> Options {
        Options {
            clock,
            max_waiting_bytes: 32 << 20,
            write_buffer_bytes: 64 << 20,
            max_log_bytes: 10 << 30,
            shed: Shed::None,
            on_shed: None,
            on_persisted: None,
            #[cfg(test)]
            full_disk: Arc::default(),
        }
    }
}

impl Options {
    fn reclaim_bytes(&self) -> u64 {
        self.write_buffer_bytes as u64 * RECLAIM_BUFFERS
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("max_waiting_bytes", &self.max_waiting_bytes)
            .field("write_buffer_bytes", &self.write_buffer_bytes)
            .finish_non_exhaustive()
    }
}

/// What the log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of chunks that are not trimmed: durable, or handed on while they become so.
    pub log_bytes: u64,
    /// Records in them.
    pub pending_records: u64,
    /// Records of them that are on disk only and have not been handed on.
    pub spilled_records: u64,
}

/// One shard's log. Clones are handles of the same one.
#[derive(Clone)]
pub struct Log(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    options: Options,
    shared: Arc<Shared>,
    /// `None` once it is closed, and after a failure until it could be opened anew.
    engine: Mutex<Option<Engine>>,
    /// What of the log was found on disk, at the opening or the last resume.
    retained: Mutex<Vec<Range>>,
    /// Held while a chunk is queued: the order of numbers is the order of judging.
    appending: Mutex<append::Ends>,
    /// One resume or close at a time.
    turning: Mutex<()>,
}

/// What the threads of the log share with its handles.
struct Shared {
    queue: Mutex<Queue>,
    /// Something became ready, failed, or ended.
    changed: Notify,
    /// The number after the last durable chunk.
    persisted: watch::Sender<u64>,
}

/// The database and its threads, from one opening to the next. Others hold its threads' handles at most, never the
/// database, so that it is closed once the threads have ended and this is dropped.
struct Engine {
    database: Arc<Database>,
    writer: Arc<Writer>,
    keeper: Arc<Keeper>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is done under these locks leaves them half done; a panic elsewhere is told as a failure.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("dir", &self.0.dir).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    fn fail(&self, error: Error) {
        let mut queue = self.queue();
        queue.refused |= matches!(error, Error::Disk(_));
        if queue.failed.is_none() {
            tracing::error!(error = %error, cause = ?std::error::Error::source(&error).map(ToString::to_string),
                "the log takes and gives nothing more; the next life opens it anew");
            queue.failed = Some(error);
        }
        drop(queue);
        self.changed.notify_waiters();
    }
}

impl Inner {
    fn writer(&self) -> Option<Arc<Writer>> {
        lock(&self.engine).as_ref().map(|engine| engine.writer.clone())
    }

    fn keeper(&self) -> Option<Arc<Keeper>> {
        lock(&self.engine).as_ref().map(|engine| engine.keeper.clone())
    }
}

impl Engine {
    /// Opens the database, and starts its threads. Numbers go on from `next` at least: those that this process has
    /// told of are not used again.
    fn start(
        dir: &Path,
        options: &Options,
        shared: &Arc<Shared>,
        next: u64,
    ) -> Result<(Engine, Survey), Error> {
        let disk =
            disk::Options { clock: options.clock.clone(), write_buffer_bytes: options.write_buffer_bytes };
        let opened = Database::open(dir, &disk)?;
        if let Some((aside, why)) = &opened.aside {
            tracing::error!(
                dir = %dir.display(), aside = %aside.display(), why,
                "RocksDB refused the log; it was put aside, and what was not announced is read from Kafka again"
            );
        }
        say_cut(dir, &opened.survey);
        if opened.survey.missing > 0 {
            tracing::error!(
                dir = %dir.display(), chunks = opened.survey.missing,
                "chunks are gone that were there when the log was closed; what they held is read from Kafka again"
            );
        }
        shared.queue().opened(opened.survey.chunks.first().map_or(opened.survey.next, |(first, _)| *first));
        let database = Arc::new(opened.database);
        let no_thread = |error: std::io::Error| disk::Error::Failed {
            doing: "starting a thread for",
            dir: dir.to_owned(),
            why: error.to_string(),
        };
        let writer = Writer::start(
            opened.survey.next.max(next),
            (options.max_waiting_bytes, MOST_WAITING),
            disk::Pace { apart: APART, clock: options.clock.clone() },
            persist(&database, options),
            committed(shared.clone(), options.clone()),
        )
        .map_err(no_thread)?;
        let keeper = Keeper::start(database.clone(), {
            let shared = shared.clone();
            move |error| shared.fail(Error::Disk(error))
        })
        .map_err(no_thread)?;
        Ok((Engine { database, writer: Arc::new(writer), keeper: Arc::new(keeper) }, opened.survey))
    }

    /// Ends both threads; what waits becomes durable first. Blocks.
    fn stop(&self) -> Result<(), disk::Error> {
        let outcome = self.writer.close();
        self.keeper.close();
        outcome
    }
}

#[cfg(not(test))]
fn persist(database: &Arc<Database>, _: &Options) -> impl disk::Persist + 'static {
    database.clone()
}

#[cfg(test)]
fn persist(database: &Arc<Database>, options: &Options) -> impl disk::Persist + 'static {
    tests::MaybeFull { database: database.clone(), full: options.full_disk.clone() }
}

/// What the writer's thread does after each commit.
fn committed(
    shared: Arc<Shared>,
    options: Options,
) -> impl FnMut(Result<Vec<Waiting>, disk::Error>) + Send + 'static {
    move |outcome| match outcome {
        Ok(group) => {
            let now = options.clock.now();
            let end = group.last().map_or(0, |last| last.seq + 1);
            let received: Vec<_> = group.iter().map(|waiting| waiting.received_at).collect();
            let mut queue = shared.queue();
            for waiting in group {
                // A chunk of an earlier life is durable too; the resume that ended that life reads it from the disk.
                if waiting.tag == queue.life {
                    queue.committed(waiting);
                }
            }
            drop(queue);
            shared.persisted.send_replace(end);
            shared.changed.notify_waiters();
            if let Some(told) = &options.on_persisted {
                received.into_iter().for_each(|at| told(now.saturating_duration_since(at)));
            }
        }
        Err(error) => shared.fail(Error::Disk(error)),
    }
}

impl Log {
    /// Opens the log in `dir`, or makes it. Nothing can be appended or read before [`Log::resume`].
    ///
    /// What cannot be read at its end is cut off; a database that RocksDB refuses is put aside as
    /// `DIR.refused-TIMESTAMP`. Both are said, and cost time, not data. On a full disk it is opened later, by
    /// [`Log::mend`].
    ///
    /// # Errors
    /// [`Error::Disk`]: another process has it open, the directory cannot be written, the disk fails.
    pub async fn open(dir: &Path, options: Options) -> Result<Log, Error> {
        let (dir, mut options) = (dir.to_owned(), options);
        blocking(move || {
            let _ = std::fs::create_dir_all(&dir); // what is wrong with it is said when the database is opened
            options.write_buffer_bytes = write_buffer_bytes(&dir, options.write_buffer_bytes);
            let shared = Arc::new(Shared {
                queue: Mutex::default(),
                changed: Notify::new(),
                persisted: watch::Sender::new(0),
            });
            let (engine, survey) = match Engine::start(&dir, &options, &shared, 0) {
                Ok((engine, survey)) => (Some(engine), survey),
                Err(Error::Disk(full @ disk::Error::Full { .. })) => {
                    tracing::error!(error = %full, "the log cannot be opened yet; it is tried again before each life");
                    (None, Survey::default())
                }
                Err(error) => return Err(error),
            };
            shared.persisted.send_replace(survey.next);
            Ok(Log(Arc::new(Inner {
                dir,
                options,
                shared,
                engine: Mutex::new(engine),
                retained: Mutex::new(ranges(&survey)),
                appending: Mutex::default(),
                turning: Mutex::default(),
            })))
        })
        .await
    }

    /// What was found on disk, at the opening or the last resume: ranges per partition, joined where they join.
    pub fn retained(&self) -> Vec<Range> {
        lock(&self.0.retained).clone()
    }

    /// Begins a life at `positions`, the announced ones: keeps what joins them, per partition and exact to the record,
    /// and discards the rest. Gives where Kafka continues, in the order of `positions`. The life's reader hands on
    /// first what was kept.
    ///
    /// A log that was written for another `origin` is discarded whole, which is said: its chunks would join, and mean
    /// something else.
    ///
    /// Waits until all that was appended before is durable; after a failure opens the database anew.
    ///
    /// # Errors
    /// [`Error::Disk`], [`Error::Closed`].
    pub async fn resume(&self, origin: &Origin, positions: &[Position]) -> Result<Vec<Position>, Error> {
        self.resume_within(origin, positions, &[]).await
    }

    /// As [`Log::resume`], of a log that holds nothing past `ends`: what it does is taken out first, durably, and said. For
    /// partitions that end there, since what they held behind it is gone and its offsets go to other records.
    ///
    /// # Errors
    /// As [`Log::resume`].
    pub async fn resume_within(
        &self,
        origin: &Origin,
        positions: &[Position],
        ends: &[Position],
    ) -> Result<Vec<Position>, Error> {
        let (log, origin) = (self.clone(), *origin);
        let (positions, ends) = (positions.to_vec(), ends.to_vec());
        blocking(move || log.resume_now(&origin, &positions, &ends)).await
    }

    fn resume_now(
        &self,
        origin: &Origin,
        positions: &[Position],
        ends: &[Position],
    ) -> Result<Vec<Position>, Error> {
        let inner = &*self.0;
        let _turn = lock(&inner.turning);
        // From here on appenders and readers of the life before are refused.
        let life = {
            let mut appending = lock(&inner.appending);
            let mut queue = inner.shared.queue();
            if queue.closed {
                return Err(Error::Closed);
            }
            appending.end_life();
            queue.life += 1;
            queue.room = None;
            queue.life
        };
        inner.shared.changed.notify_waiters();

        let (writer, keeper, mut survey) = self.engine_for_next_life()?;
        // A database that has stopped over something goes on being read, and refuses each write: noted, or no life would
        // ever open it anew.
        let refused = |error: Error| {
            inner.shared.fail(error.clone());
            error
        };
        claim(&inner.dir, &keeper, &mut survey, origin).map_err(refused)?;
        cut_back(&inner.dir, &keeper, &mut survey, (ends, inner.options.reclaim_bytes())).map_err(refused)?;
        let judged = judge(positions, survey.chunks.iter().map(|(_, summary)| summary));
        for range in judge::joined(&judged.apart) {
            tracing::warn!(
                source = %range.source, from = range.from, to = range.to,
                "what the log holds here does not join what is announced; it is discarded"
            );
        }
        let dropped =
            runs(survey.chunks.iter().zip(&judged.keep).filter(|(_, keep)| !**keep).map(|(c, _)| c.0));
        let forgotten = keeper.call(move |database| {
            dropped.into_iter().try_for_each(|(from, to)| database.forget(from, to, false))
        });
        forgotten.map_err(|error| refused(error.into()))?;

        let now = inner.options.clock.now();
        let kept: VecDeque<Spilled> = survey
            .chunks
            .iter()
            .zip(&judged.keep)
            .filter(|(_, keep)| **keep)
            .map(|((seq, summary), _)| Spilled {
                seq: *seq,
                bytes: summary.bytes,
                records: summary.records,
                misfits: summary.misfits,
                sum: summary.sum,
                received_at: now,
            })
            .collect();
        // What lives before this one have trimmed, in other processes too, and whose room is not given back. No less than this:
        // chunks take no more on disk than they have bytes, and those that are in the write-ahead log only take nothing here.
        let held: u64 = kept.iter().map(|chunk| u64::from(chunk.bytes)).sum();
        let unreclaimed = disk::chunk_bytes_in(&inner.dir).saturating_sub(held);
        *lock(&inner.retained) = ranges(&survey);
        let mut appending = lock(&inner.appending);
        let mut queue = inner.shared.queue();
        if queue.closed {
            return Err(Error::Closed);
        }
        *queue = queue.next_life(Cursor::at(positions), writer.next(), kept);
        queue.unreclaimed_bytes = queue.unreclaimed_bytes.max(unreclaimed);
        appending.begin_life(life, &judged.next);
        Ok(judged.next)
    }

    /// The threads, with nothing waiting in them, and what is on the disk; opened anew if they have failed, or RocksDB has.
    fn engine_for_next_life(&self) -> Result<(Arc<Writer>, Arc<Keeper>, Survey), Error> {
        let inner = &*self.0;
        if let (Some(writer), Some(keeper)) = (inner.writer(), inner.keeper()) {
            let surveyed = writer.drain().and_then(|()| keeper.call(Database::survey));
            // Asked after it: what the life before has left to the keeper is done by then.
            let refused = inner.shared.queue().refused;
            if let Ok(survey) = surveyed
                && !refused
            {
                say_cut(&inner.dir, &survey);
                return Ok((writer, keeper, survey));
            }
        }
        let survey = self.reopen()?;
        let (writer, keeper) = inner.writer().zip(inner.keeper()).ok_or(Error::Closed)?;
        Ok((writer, keeper, survey))
    }

    /// Appends, for the present life.
    pub fn appender(&self) -> Appender {
        Appender::new(self.clone(), lock(&self.0.appending).life())
    }

    /// Waits until it holds no record that is not announced.
    pub async fn published(&self) {
        while self.stats().pending_records > 0 {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Reads, for the present life: one reader each. At most `max_pending_records` records lie ready, and as many
    /// bytes as `memory` grants, which the stages behind share.
    pub fn reader(&self, max_pending_records: usize, memory: Budget) -> Reader {
        let mut queue = self.0.shared.queue();
        queue.room = Some(Room { records: max_pending_records, memory });
        Reader::new(self.clone(), queue.life)
    }

    /// Lets go of the chunks at the beginning of which all records have been announced.
    ///
    /// Their room on disk is given back in larger pieces, in the background.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn trim(&self, announced: &[Position]) -> Result<(), Error> {
        let inner = &*self.0;
        let keeper = inner.keeper().ok_or(Error::Closed)?;
        let mut queue = inner.shared.queue();
        queue.trim(announced);
        if queue.trimmed_bytes >= (inner.options.write_buffer_bytes / FORGET_SHARE) as u64 {
            let forget = queue.take_forget();
            drop(queue);
            let (shared, reclaim_at) = (inner.shared.clone(), inner.options.reclaim_bytes());
            keeper.run(move |database| {
                if let Err(error) = forget_and_reclaim(database, &shared, forget, reclaim_at) {
                    shared.fail(Error::Disk(error));
                }
            });
        }
        Ok(())
    }

    /// What it holds.
    pub fn stats(&self) -> Stats {
        self.0.shared.queue().stats()
    }

    /// Bytes that its files take on disk: more than [`Stats::log_bytes`], as room is given back in larger pieces.
    /// Asks the file system.
    pub fn disk_bytes(&self) -> u64 {
        disk::bytes_in(&self.0.dir)
    }

    /// Makes durable what waits, deletes what is trimmed, and closes the database. Appenders, readers and this log are
    /// of no use afterwards.
    ///
    /// # Errors
    /// The failure, if what waited could not be made durable.
    pub async fn close(&self) -> Result<(), Error> {
        let log = self.clone();
        blocking(move || log.close_now()).await
    }

    fn close_now(&self) -> Result<(), Error> {
        let inner = &*self.0;
        let _turn = lock(&inner.turning);
        {
            let mut appending = lock(&inner.appending);
            appending.end_life();
            inner.shared.queue().closed = true;
        }
        inner.shared.changed.notify_waiters();
        let Some(engine) = lock(&inner.engine).take() else { return Ok(()) };
        let outcome = engine.stop();
        if outcome.is_ok() {
            let (from, to) = inner.shared.queue().take_forget();
            (from < to).then(|| engine.database.forget(from, to, false)).transpose()?;
            engine.database.clean(engine.writer.next(), to);
        }
        outcome.map_err(Error::Disk)
    }
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(job).await {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

#[cfg(test)]
mod tests;
