//! The disk as this machine gives it: a small file beside that is written and synced all the time, and what that took.
//!
//! ```text
//!  append 4 KB, sync |----------------------------|   append 4 KB, sync |--|
//!                    |-USUAL-|== it stood still ==|                     nothing
//! ```
//!
//! Whoever syncs beside it waits for the same journal. A sync that is under way counts up to now, so that a disk which never
//! answers is not taken for one that works.
//!
//! Owns: for how long the disk stood still. Does not own: by whose writing (`fair`).

use std::io::{self, Seek as _, Write as _};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use stillwell::clock::Clock;

/// A disk that works syncs within this, whatever else we do to it; what it takes longer, it stands still.
pub const USUAL: Duration = Duration::from_millis(100);
/// Between two syncs, so that they are no load themselves.
const STEP: Duration = Duration::from_millis(50);
/// The file grows with each: a file's new length is in the journal, as a new file is, and what is written in place is not.
const PIECE: [u8; 4096] = [b'p'; 4096];
/// The most that it grows to.
const MOST: u64 = 1 << 20;

/// Probes a disk until it is dropped.
#[derive(Debug)]
pub struct Probe {
    clock: Clock,
    told: Arc<Mutex<Told>>,
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Told {
    /// Of the syncs that are over.
    stood: Duration,
    /// Since when one is under way.
    since: Option<Instant>,
}

impl Probe {
    /// Of the disk on which `dir` lies.
    pub fn start(clock: &Clock, dir: &Path) -> Probe {
        let path = dir.join("probe");
        let mut opened = None;
        Probe::of(clock, move || {
            let file = match &mut opened {
                Some(file) => file,
                None => opened.insert(std::fs::File::create(&path)?),
            };
            if file.stream_position()? >= MOST {
                file.set_len(0)?;
                file.rewind()?;
            }
            file.write_all(&PIECE)?;
            file.sync_data()
        })
    }

    /// Of whatever `sync` waits for. Once it fails nothing is measured any more, and so nothing found to stand still.
    pub fn of(clock: &Clock, mut sync: impl FnMut() -> io::Result<()> + Send + 'static) -> Probe {
        let told = Arc::<Mutex<Told>>::default();
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new()
            .name("probe".into())
            .spawn({
                let (clock, told) = (clock.clone(), told.clone());
                move || loop {
                    let began = clock.now();
                    lock(&told).since = Some(began);
                    let done = sync();
                    let mut told = lock(&told);
                    told.since = None;
                    if done.is_err() {
                        return;
                    }
                    told.stood += beyond_usual(began, clock.now());
                    drop(told);
                    if stopped.recv_timeout(STEP) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                }
            })
            .expect("a thread can be started");
        Probe { clock: clock.clone(), told, stop: Some(stop), thread: Some(thread) }
    }

    /// For how long the disk has stood still by now.
    pub fn stood(&self) -> Duration {
        let told = lock(&self.told);
        told.stood + told.since.map_or(Duration::ZERO, |since| beyond_usual(since, self.clock.now()))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn beyond_usual(began: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(began).saturating_sub(USUAL)
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}
