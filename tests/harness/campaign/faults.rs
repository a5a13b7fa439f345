//! The faults that a scene goes through, each to its end, with the checks after it.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::oracle::{Violation, broken};
use super::scene::Scene;
use crate::{Disk, Volume, held_within};

/// Longest until a failpoint is reached, of the time that counts: one that is not is a mistake in the test or in the list of
/// failpoints. Some take tens of thousands of records until they are.
pub(super) const REACHED: Duration = Duration::from_secs(180);
/// Kafka gives a member up after this (`session.timeout.ms`), and its shard to another.
pub const SESSION: Duration = Duration::from_secs(6);
/// A transaction that nobody ends is aborted by Kafka after this (`transaction.timeout.ms`).
pub const TRANSACTION: Duration = Duration::from_secs(15);
/// Kafka looks so often for transactions that have passed their time, and aborts them only then
/// (`transaction.abort.timed.out.transaction.cleanup.interval.ms`, which our broker leaves as it comes).
const ABORTS: Duration = Duration::from_secs(10);
/// Bytes of log that are forgotten at a time are some two thirds of a megabyte; so many records make them.
const ENOUGH_TO_FORGET: u64 = 5_000;
/// Records that wait for a writer which was away: several times what it may hold in memory.
const BACKLOG: u64 = 12_000;
/// A stop in order takes no longer, of the time that counts. By the clock it may: [`PATIENT`].
pub const STOP: Duration = Duration::from_secs(60);
/// `graceful_shutdown_timeout`, after which a stop gives up what is under way and says that it failed: later than whoever waits
/// for it by the time that counts, however slow the machine.
pub const PATIENT: Duration = Duration::from_secs(600);
/// An hour.
const HOUR_MS: i64 = 3_600_000;
/// What a process that aborts ends with.
const ABORT: i32 = 6;

impl Scene {
    /// SIGKILL after some records, and a start in place; now and then much is written meanwhile.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn killed(&mut self) -> Result<(), Violation> {
        self.after_records(self.chance.between(1, 600));
        self.kill()?;
        if self.chance.one_in(4) {
            self.workload.burst(BACKLOG);
            self.after_records(BACKLOG);
        }
        let now = self.start(0, None)?;
        self.settle(now)
    }

    /// SIGKILL to the reader, which begins with its cache, or with nothing.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn reader_killed(&mut self) -> Result<(), Violation> {
        self.after_records(self.chance.between(1, 300));
        self.fault();
        self.reader.kill();
        if self.chance.one_in(2) {
            self.reader.lose("");
        }
        let now = self.clock().now();
        self.reader.start(None);
        self.settle(now)
    }

    /// The reader stands still while much is announced and cleaned, and goes on: what it knew of is gone.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn reader_stopped(&mut self) -> Result<(), Violation> {
        self.after_records(self.chance.between(1, 100));
        self.fault();
        self.reader.signal("STOP");
        self.after_records(self.chance.between(400, 2_000));
        self.reader.signal("CONT");
        let now = self.clock().now();
        self.settle(now)
    }

    /// SIGKILL, and a start without log and cache, or without one of them.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn disk_lost(&mut self) -> Result<(), Violation> {
        self.after_records(self.chance.between(1, 600));
        self.kill()?;
        let lost = *self.chance.pick(&["", "log", "cache"]);
        self.writer().lose(lost);
        let now = self.start(0, None)?;
        self.settle(now)
    }

    /// Death at each of `points`, one life after the other; then a start that is left alone. Each is passed some times
    /// before it kills; the second often not once, so that the life dies while it comes back.
    ///
    /// # Errors
    /// The first promise that is broken, or that a failpoint is never reached.
    pub fn died_at(&mut self, points: &[&str]) -> Result<(), Violation> {
        self.after_records(self.chance.between(1, 200));
        self.kill()?;
        for (at, point) in points.iter().enumerate() {
            let passed = if at > 0 && self.chance.one_in(2) { 0 } else { self.passes(point, 12) };
            self.start(0, Some(&format!("{point}={passed}*off->return(abort)")))?;
            if *point == "log.forgotten" {
                self.workload.burst(ENOUGH_TO_FORGET * (passed + 1));
            }
            self.dies_at(point)?;
        }
        let now = self.start(0, None)?;
        self.settle(now)
    }

    /// How often a life passes `point` before it is told to do anything there: less than `most` times, and seldom where it
    /// does not come by often.
    fn passes(&self, point: &str, most: u64) -> u64 {
        self.chance.below(match point {
            // Once in a life.
            point if point.starts_with("takeover.") => 1,
            point if point.starts_with("snapshot.") || point.starts_with("log.forgotten") => 2,
            // Once in a cleaning, of which there is one for each snapshot that is not kept any more.
            point if point.starts_with("clean.") => 3,
            _ => most,
        })
    }

    /// Waits until the writer has died at `point`, as it was told to.
    ///
    /// # Errors
    /// That it has not; else as [`Scene::at_rest`].
    pub(super) fn dies_at(&mut self, point: &str) -> Result<(), Violation> {
        let patience = self.patience.clone();
        let ended = patience.held(REACHED, || self.writer().ended().ok_or("it runs"));
        match ended {
            Ok(status) if status.signal() == Some(ABORT) => {
                self.fault();
                self.at_rest()
            }
            Ok(status) => broken(0, format!("{point}: it ended with {status}\n{}", self.logs())),
            Err(_) => broken(0, format!("{point} is never reached\n{}", self.logs())),
        }
    }

    /// SIGKILL with a version in a transaction that nobody ends: until somebody does, or Kafka gives it up after
    /// [`TRANSACTION`] and more, no reader and no next life sees anything behind it.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn left_open(&mut self) -> Result<(), Violation> {
        self.after_records(self.chance.between(1, 200));
        self.kill()?;
        let passed = self.chance.below(8);
        self.start(0, Some(&format!("announce.announcements={passed}*off->sleep(600000)")))?;
        let mut before = None;
        let patience = self.patience.clone();
        let open = patience.held(REACHED, || {
            let ends = self.ends_of_announcements();
            let (committed, end) = ends;
            // Each transaction is open for a moment: this one for several looks.
            let since = match before {
                Some((seen, since)) if seen == ends => since,
                _ => self.clock().now(),
            };
            before = Some((ends, since));
            let stands = self.clock().now() - since > Duration::from_secs(1);
            if committed < end && stands { Ok(()) } else { Err(ends) }
        });
        if let Err((committed, end)) = open {
            let what = format!("no transaction stays open: {committed} of {end} are committed");
            return broken(0, format!("{what}\n{}", self.logs()));
        }
        self.kill()?;
        let now = self.start(0, None)?;
        self.settle(now)
    }

    /// The step at `point` fails once: a life ends, or a retry helps; nobody restarts anything.
    ///
    /// # Errors
    /// The first promise that is broken, or that the step never fails.
    pub fn failed_at(&mut self, point: &str) -> Result<(), Violation> {
        self.after_records(self.chance.between(1, 200));
        self.kill()?;
        let passed = self.passes(point, 8);
        self.start(0, Some(&format!("{point}={passed}*off->1*return(error)->off")))?;
        // Whoever meets the error says it, whatever else is done about it.
        let told = format!("failpoint {point}: told to fail here");
        let patience = self.patience.clone();
        let failed = patience.held(REACHED, || {
            let writer = self.writer();
            match writer.log_of_this_process().contains(&told) {
                true => Ok(true),
                false if writer.is_up() => Err(()),
                false => Ok(false),
            }
        });
        if failed != Ok(true) {
            return broken(0, format!("{point} never fails\n{}", self.logs()));
        }
        self.fault();
        let now = self.clock().now();
        self.settle(now)
    }

    /// The owner stops at `point`, as by SIGSTOP, until another has taken over and written; then it goes on, a zombie,
    /// and must find out. `long`: nobody else comes until Kafka itself has aborted its transaction, its time being over.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn stopped_at(&mut self, point: &str, long: bool) -> Result<(), Violation> {
        let Some(owner) = self.owner() else {
            return broken(9, format!("no writer runs\n{}", self.logs()));
        };
        self.after_records(self.chance.between(1, 200));
        self.fault();
        let passed = match point {
            point if point.starts_with("takeover.") => 0,
            point if point.starts_with("clean.") => self.chance.below(2),
            _ => self.chance.below(8),
        };
        let armed = format!("{point}={passed}*off->1*return(stop)->off");
        // Alone until it has stopped: on a slow machine it would be given up before it is back, and not come there.
        let others: Vec<usize> = (0..self.writers.len()).filter(|at| *at != owner).collect();
        for other in &others {
            self.leave(*other)?;
        }
        self.writers.get_mut(owner).expect("the owner is one of them").kill();
        self.start(owner, Some(&armed))?;
        let instance = self.writers.get_mut(owner).expect("the owner is one of them");
        let stopped = self.patience.held(REACHED, || match instance.is_stopped() {
            true => Ok(()),
            false => Err("it runs"),
        });
        if stopped.is_err() {
            return broken(0, format!("{point} is never reached\n{}", self.logs()));
        }
        if long {
            self.aborted_by_kafka()?;
        }
        let mut now = self.clock().now();
        for other in others {
            now = self.start(other, None)?;
        }
        // The group gives it up too, before anybody else has its shard. After so long a time it has done so.
        self.settle(if long { now } else { now + SESSION })?;
        self.writers.get_mut(owner).expect("the owner is one of them").signal("CONT");
        let now = self.clock().now();
        self.settle(now)?;
        // Once more, when the zombie has had the time to do what it should not.
        self.after_records(self.chance.between(200, 400));
        let now = self.clock().now();
        self.settle(now)
    }

    /// The owner has just stopped and nobody else writes: waits until Kafka has aborted whatever transaction it had begun.
    fn aborted_by_kafka(&self) -> Result<(), Violation> {
        self.wait(TRANSACTION + ABORTS + Duration::from_secs(2));
        // What is aborted by now is so for who reads, a moment later.
        let aborted = self.patience.held(REACHED, || match self.ends_of_announcements() {
            (committed, end) if committed >= end => Ok(()),
            ends => Err(ends),
        });
        let Err((committed, end)) = aborted else { return Ok(()) };
        let what = format!("Kafka aborts nothing by itself: {committed} of {end} are committed");
        broken(0, format!("{what}\n{}", self.logs()))
    }

    /// The shard goes from its owner to the other and back, each time because the one is killed and does not come
    /// back for a while; the first returns with the log that it had.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn there_and_back(&mut self) -> Result<(), Violation> {
        let Some(owner) = self.owner() else {
            return broken(9, format!("no writer runs\n{}", self.logs()));
        };
        let other = (owner + 1) % self.writers.len();
        for (gone, next) in [(owner, other), (other, owner)] {
            self.after_records(self.chance.between(50, 400));
            self.fault();
            self.writers.get_mut(gone).expect("one of them").kill();
            let mut now = self.clock().now();
            if !self.writers.get_mut(next).expect("one of them").is_up() {
                now = self.start(next, None)?;
            }
            self.settle(now + SESSION)?;
        }
        let now = self.start(other, None)?;
        self.settle(now)
    }

    /// Writers leave and join every second or two, in order (SIGTERM) or not (SIGKILL), never all at once.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn storm(&mut self, rounds: u64) -> Result<(), Violation> {
        for _ in 0..rounds {
            self.after_records(self.chance.between(50, 600));
            let at = self.chance.below(self.writers.len() as u64) as usize;
            let kill = self.chance.one_in(3);
            self.fault();
            match kill {
                true => self.writers.get_mut(at).expect("below their number").kill(),
                false => self.leave(at)?,
            }
            self.start(at, None)?;
        }
        let now = self.clock().now();
        self.settle(now)
    }

    /// A writer stops in order.
    fn leave(&mut self, at: usize) -> Result<(), Violation> {
        let leaving = self.writers.get_mut(at).expect("one of them");
        if leaving.is_up() {
            let status = leaving.stop(STOP);
            if !status.success() {
                return broken(0, format!("it stops with {status}\n{}", self.logs()));
            }
        }
        Ok(())
    }

    /// SIGKILL, and what the writer has on its disk is not what it wrote: of its log or its cache (`part`) a bit is flipped, or a
    /// file torn.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn disk_damaged(&mut self, part: &str) -> Result<(), Violation> {
        self.after_records(self.chance.between(1, 600));
        self.kill()?;
        let files = files(&self.writer().data().join(part));
        if files.is_empty() && part == "log" {
            return broken(0, format!("no log lies there that could be damaged\n{}", self.logs()));
        }
        if let Some(path) = (!files.is_empty()).then(|| self.chance.pick(&files)) {
            let mut bytes = std::fs::read(path).expect("nobody has it open");
            // As often near its end, where it was written last.
            let near = if self.chance.one_in(2) { 64 } else { bytes.len() as u64 };
            let back = self.chance.below(near.min(bytes.len() as u64)) as usize + 1;
            let at = bytes.len() - back;
            match bytes.get_mut(at) {
                Some(byte) if !self.chance.one_in(3) => *byte ^= 1 << self.chance.below(8),
                _ => bytes.truncate(at),
            }
            std::fs::write(path, bytes).expect("nobody has it open");
        }
        let now = self.start(0, None)?;
        self.settle(now)
    }

    /// The disk under the log fills up, and is given room. False: this user may not mount one.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn disk_full(&mut self) -> Result<bool, Violation> {
        self.after_records(self.chance.between(1, 300));
        self.kill()?;
        let log = self.writer().data().join("log");
        std::fs::create_dir_all(&log).expect("the folder can be made");
        let Some(volume) = Volume::mount(&log, 128) else {
            self.start(0, None)?;
            return Ok(false);
        };
        // It begins without a log, as on a new disk.
        self.writer().has_another_log();
        let now = self.start(0, None)?;
        self.settle(now)?;
        self.fault();
        volume.fill();
        // Full it stays until nothing is taken any more, by what it says of itself.
        let patience = self.patience.clone();
        let full = patience.held(REACHED, || match self.writer().ask("/health") {
            Ok(health) if health.body.contains("disk") => Ok(()),
            other => Err(format!("{other:?}")),
        });
        if let Err(seen) = full {
            return broken(0, format!("a full disk is not said: {seen}\n{}", self.logs()));
        }
        self.after_records(self.chance.between(200, 600));
        volume.make_room();
        let now = self.clock().now();
        self.settle(now)?;
        // The old disk comes back, and on it the log of long ago.
        self.kill()?;
        drop(volume);
        self.writer().has_another_log();
        let now = self.start(0, None)?;
        self.settle(now)?;
        Ok(true)
    }

    /// The disk under the log breaks and is mended, twice; then it is taken out and put in again, and what was written
    /// while it was broken is not on it. False: this user may not mount one.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn disk_broken(&mut self) -> Result<bool, Violation> {
        self.after_records(self.chance.between(1, 300));
        self.kill()?;
        let log = self.writer().data().join("log");
        std::fs::create_dir_all(&log).expect("the folder can be made");
        let Some(disk) = Disk::mount(&log, 128) else {
            self.start(0, None)?;
            return Ok(false);
        };
        self.writer().has_another_log();
        let now = self.start(0, None)?;
        self.settle(now)?;
        for _ in 0..2 {
            self.after_records(self.chance.between(1, 300));
            if !disk.breaks() {
                return Ok(false);
            }
            self.fault();
            let patience = self.patience.clone();
            let broken_is_said = patience.held(REACHED, || match self.writer().ask("/health") {
                Ok(health) if health.body.contains("Input/output error") => Ok(()),
                other => Err(format!("{other:?}")),
            });
            if let Err(seen) = broken_is_said {
                return broken(0, format!("a broken disk is not said: {seen}\n{}", self.logs()));
            }
            self.after_records(self.chance.between(100, 600));
            disk.mend();
            let now = self.clock().now();
            self.settle(now)?;
        }
        self.after_records(self.chance.between(1, 300));
        if !disk.breaks() {
            return Ok(false);
        }
        self.after_records(self.chance.between(1, 600));
        self.kill()?;
        disk.mend();
        disk.again();
        let now = self.start(0, None)?;
        self.settle(now)?;
        // The old disk comes back, and on it the log of long ago.
        self.kill()?;
        drop(disk);
        self.writer().has_another_log();
        let now = self.start(0, None)?;
        self.settle(now)?;
        Ok(true)
    }

    /// The wall clock of the writer, and half of the time of the reader too, goes an hour forth, back to before, and right again.
    /// What is announced under it says so: a clock that stayed right would show nothing.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn clock_jumps(&mut self) -> Result<(), Violation> {
        for hours in [1, -1, 0] {
            self.after_records(self.chance.between(50, 400));
            self.fault();
            self.writer().skew(hours * HOUR_MS);
            if self.chance.one_in(2) {
                self.reader.skew(hours * HOUR_MS);
            }
            let now = self.clock().now();
            self.settle(now)?;
            self.announced_by_a_clock_off_by(hours * HOUR_MS)?;
            // A life that begins under this clock.
            self.kill()?;
            let now = self.start(0, None)?;
            self.settle(now)?;
            self.announced_by_a_clock_off_by(hours * HOUR_MS)?;
        }
        self.reader.skew(0);
        Ok(())
    }

    /// The newest version, which holds a record that was written since the writer's clock is off by `skew` milliseconds, was
    /// announced by that clock.
    fn announced_by_a_clock_off_by(&self, skew: i64) -> Result<(), Violation> {
        let now = self.clock().wall_ms();
        let Some(at) = self.oracle.newest_at() else { return broken(0, "nothing is announced") };
        let off = at - now;
        if (off - skew).abs() > HOUR_MS / 2 {
            let version = self.oracle.newest().0;
            let what = format!("version {version} was announced {off} ms from now, by a clock {skew} ms off");
            return broken(0, format!("{what}\n{}", self.logs()));
        }
        Ok(())
    }

    /// Which writer owns the shard.
    pub fn owner(&mut self) -> Option<usize> {
        let writers = &mut self.writers;
        self.patience
            .held(REACHED, || {
                let mut running = writers.iter_mut().map(|writer| {
                    let health = writer.ask("/health").ok()?;
                    health.body.contains(r#""writer":"running""#).then_some(())
                });
                running.position(|running| running.is_some()).ok_or(())
            })
            .ok()
    }

    /// Lets the fault last.
    pub fn wait(&self, how_long: Duration) {
        self.until(self.clock().now() + how_long);
    }

    /// Waits until `at`: for what takes its time and shows nothing of it.
    fn until(&self, at: Instant) {
        let left = at.saturating_duration_since(self.clock().now());
        let _ = held_within(left, || Err::<(), ()>(()));
    }
}

/// The files below `folder` that hold anything, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(about) if about.is_dir() => folders.push(entry.path()),
                Ok(about) if about.len() > 0 => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}
