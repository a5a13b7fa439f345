//! The two threads of a log: one that makes chunks durable, one that does everything slow.
//!
//! Owns: group commit, the bound on what waits for it, what happens after a failure. Does not own: the database, what
//! the jobs of the second thread are.
//!
//! After a failed or panicked commit nobody knows what is on the disk: the kernel may have dropped the pages that
//! could not be written, so that a second fsync would succeed without them (the "fsyncgate" of PostgreSQL, 2018,
//! <https://wiki.postgresql.org/wiki/Fsync_Errors>). So the writer refuses all that comes later, with the reason, until
//! the log has been opened anew and read back from the disk.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Database, Error};
use crate::clock::Clock;
use crate::failpoint::{self, Injected};
use crate::format::chunk::Chunk;

/// Most bytes in one commit. More would not make the disk faster, only the first of them wait longer; RocksDB's batch
/// is that large too.
const GROUP_BYTES: u64 = 8 << 20;

/// Bytes that are committed at once, however short the time since the last commit.
const SOON_BYTES: u64 = 256 << 10;

/// How close commits may follow one another.
#[derive(Clone, Debug)]
pub struct Pace {
    /// From the beginning of one to that of the next, unless `SOON_BYTES` wait or somebody waits for them.
    pub apart: Duration,
    /// Time.
    pub clock: Clock,
}

/// A chunk on its way to the disk.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Its number.
    pub seq: u64,
    /// The chunk.
    pub chunk: Chunk,
    /// What its owner gave with it.
    pub tag: u64,
    /// When it was pushed.
    pub received_at: Instant,
}

/// Makes chunks durable: [`Database`], or what stands in for it in tests.
pub trait Persist: Send {
    /// Returns once all of them are on the disk.
    ///
    /// # Errors
    /// After one the writer takes no more.
    fn persist(&mut self, group: &[Waiting]) -> Result<(), Error>;
}

impl Persist for Arc<Database> {
    fn persist(&mut self, group: &[Waiting]) -> Result<(), Error> {
        let failed = |injected: Injected| Error::Failed {
            doing: "appending to",
            dir: self.dir().to_owned(),
            why: injected.to_string(),
        };
        failpoint::reach("log.append").map_err(failed)?;
        self.append(group.iter().map(|waiting| (waiting.seq, &waiting.chunk)))?;
        // As a sync that fails: all of it may be there after the next opening, and nobody was told so.
        failpoint::reach("log.synced").map_err(failed)
    }
}

/// Why a chunk was not taken.
#[derive(Debug)]
pub enum PushError {
    /// Too much waits: here it is back.
    Full(Chunk),
    /// Nothing is taken any more.
    Failed(Error),
}

/// The thread that makes chunks durable: takes all that waits, writes one batch, syncs once, tells.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when something waits, or the end is near.
    work: Condvar,
    /// Signalled after each commit, and after a failure.
    done: Condvar,
    most_bytes: u64,
    most_chunks: usize,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Waiting>,
    /// Chunks and bytes that are not durable yet: in the queue, and in the commit under way.
    chunks: usize,
    bytes: u64,
    next: u64,
    failed: Option<Error>,
    closing: bool,
    /// Somebody waits until nothing waits.
    hurry: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in here leaves the counts as they were before or after; the writer's own panics set `failed`.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// Starts the thread; the first chunk gets the number `next`. At most `most_bytes` and `most_chunks` wait (a chunk
    /// that alone is larger may wait alone). `told` hears of each group after it is durable, in order, and of the
    /// failure that is the last thing it hears.
    ///
    /// # Errors
    /// The system's, if it has no thread to give.
    pub fn start(
        next: u64,
        (most_bytes, most_chunks): (u64, usize),
        pace: Pace,
        persist: impl Persist + 'static,
        told: impl FnMut(Result<Vec<Waiting>, Error>) + Send + 'static,
    ) -> std::io::Result<Writer> {
        let state = State {
            queue: VecDeque::new(),
            chunks: 0,
            bytes: 0,
            next,
            failed: None,
            closing: false,
            hurry: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            done: Condvar::new(),
            most_bytes,
            most_chunks,
        });
        let thread = std::thread::Builder::new().name("log-writer".into()).spawn({
            let shared = shared.clone();
            move || write(&shared, &pace, persist, told)
        })?;
        Ok(Writer { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Queues a chunk; gives its number. Never blocks.
    ///
    /// # Errors
    /// [`PushError`].
    pub fn push(&self, chunk: Chunk, tag: u64, received_at: Instant) -> Result<u64, PushError> {
        let mut state = self.shared.lock();
        if let Some(failed) = &state.failed {
            return Err(PushError::Failed(failed.clone()));
        }
        if state.closing {
            return Err(PushError::Failed(Error::Closed));
        }
        let bytes = chunk.len() as u64;
        let fits = state.bytes + bytes <= self.shared.most_bytes && state.chunks < self.shared.most_chunks;
        if state.chunks > 0 && !fits {
            return Err(PushError::Full(chunk));
        }
        let seq = state.next;
        state.next += 1;
        state.chunks += 1;
        state.bytes += bytes;
        state.queue.push_back(Waiting { seq, chunk, tag, received_at });
        self.shared.work.notify_one();
        Ok(seq)
    }

    /// Waits until a commit or a failure, or for `patience`. Blocks.
    pub fn wait(&self, patience: Duration) {
        let state = self.shared.lock();
        if state.chunks > 0 && state.failed.is_none() && !state.closing {
            let _ = self.shared.done.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until nothing waits any more; gives the failure, if there was one. Blocks.
    ///
    /// # Errors
    /// The failure.
    pub fn drain(&self) -> Result<(), Error> {
        let mut state = self.shared.lock();
        state.hurry = state.chunks > 0;
        self.shared.work.notify_one();
        while state.chunks > 0 && state.failed.is_none() {
            state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.failed.clone().map_or(Ok(()), Err)
    }

    /// Why nothing is taken any more.
    pub fn failed(&self) -> Option<Error> {
        self.shared.lock().failed.clone()
    }

    /// The number of the next chunk.
    pub fn next(&self) -> u64 {
        self.shared.lock().next
    }

    /// Makes durable what waits, and ends the thread. Blocks. Nothing is taken from now on.
    ///
    /// # Errors
    /// The failure, if there was one.
    pub fn close(&self) -> Result<(), Error> {
        self.begin_close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // Its own panics are caught and told; there is nothing more to learn from the handle.
            let _ = thread.join();
        }
        self.failed().map_or(Ok(()), Err)
    }

    fn begin_close(&self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
        self.shared.done.notify_all();
    }
}

impl Drop for Writer {
    /// Lets the thread go: it still makes durable what waits. Who wants to know waits with [`Writer::close`].
    fn drop(&mut self) {
        self.begin_close();
    }
}

fn write(
    shared: &Shared,
    pace: &Pace,
    mut persist: impl Persist,
    mut told: impl FnMut(Result<Vec<Waiting>, Error>) + Send,
) {
    let mut last: Option<Instant> = None;
    loop {
        let group = {
            let mut state = shared.lock();
            while state.queue.is_empty() && !state.closing {
                state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            while !state.closing
                && !state.hurry
                && state.bytes < SOON_BYTES
                && let Some(last) = last
            {
                let left = pace.apart.saturating_sub(pace.clock.now().saturating_duration_since(last));
                if left.is_zero() {
                    break;
                }
                let waited = shared.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
                state = waited.0;
                if waited.1.timed_out() {
                    break;
                }
            }
            state.hurry = false;
            take_group(&mut state.queue)
        };
        last = Some(pace.clock.now());
        if group.is_empty() {
            return;
        }
        let (chunks, bytes) =
            (group.len(), group.iter().map(|waiting| waiting.chunk.len() as u64).sum::<u64>());
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            persist.persist(&group)?;
            told(Ok(group));
            failpoint::pass("log.handed-on");
            Ok(())
        }));
        let failed = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(panic) => Some(Error::Failed {
                doing: "appending to",
                dir: "the log's thread".into(),
                why: words(&*panic),
            }),
        };
        let mut state = shared.lock();
        state.chunks -= chunks;
        state.bytes -= bytes;
        if let Some(error) = failed {
            state.queue.clear();
            (state.chunks, state.bytes) = (0, 0);
            state.failed = Some(error.clone());
            drop(state);
            shared.done.notify_all();
            let _ = catch_unwind(AssertUnwindSafe(|| told(Err(error))));
            return;
        }
        drop(state);
        shared.done.notify_all();
    }
}

/// All that waits, up to [`GROUP_BYTES`], and at least one.
fn take_group(queue: &mut VecDeque<Waiting>) -> Vec<Waiting> {
    let mut bytes = 0;
    let fits = queue
        .iter()
        .take_while(|waiting| {
            let first = bytes == 0;
            bytes += waiting.chunk.len() as u64;
            first || bytes <= GROUP_BYTES
        })
        .count();
    queue.drain(..fits).collect()
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the thread panicked: {}", text.unwrap_or("without a word"))
}

type Job = Box<dyn FnOnce(&Database) + Send>;

/// The thread that does what takes long: scans, pages back, forgets, reclaims. In the order of asking.
#[derive(Debug)]
pub struct Keeper {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    /// Starts the thread. `panicked` hears of a job that panicked; the thread goes on.
    ///
    /// # Errors
    /// The system's, if it has no thread to give.
    pub fn start(
        database: Arc<Database>,
        panicked: impl Fn(Error) + Send + 'static,
    ) -> std::io::Result<Keeper> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new().name("log-keeper".into()).spawn(move || {
            for job in todo {
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(&database))) {
                    let why = words(&*panic);
                    panicked(Error::Failed { doing: "keeping", dir: database.dir().to_owned(), why });
                }
            }
        })?;
        Ok(Keeper { jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)) })
    }

    /// Asks for a job to be done. False: the keeper was closed, and the job dropped.
    pub fn run(&self, job: impl FnOnce(&Database) + Send + 'static) -> bool {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.as_ref().is_some_and(|jobs| jobs.send(Box::new(job)).is_ok())
    }

    /// Asks for a job, and waits for its answer. Blocks.
    ///
    /// # Errors
    /// [`Error::Closed`], also if the job panicked (which has been told).
    pub fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Database) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.run(move |database| {
            let _ = answer.send(job(database));
        });
        answered.recv().unwrap_or(Err(Error::Closed))
    }

    /// Does the jobs that wait, and ends the thread. Blocks.
    pub fn close(&self) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
