//! The faults that a scene goes through, each to its end, with the checks after it.

use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use super::oracle::{Violation, broken};
use super::scene::Scene;
use crate::held_within;

/// Longest until a failpoint is reached: one that is not is a mistake in the test or in the list of failpoints.
const REACHED: Duration = Duration::from_secs(60);
/// Kafka gives a member up after this (`session.timeout.ms`), and its shard to another.
pub const SESSION: Duration = Duration::from_secs(6);
/// A transaction that nobody ends is aborted by Kafka after this (`transaction.timeout.ms`).
pub const TRANSACTION: Duration = Duration::from_secs(15);
/// Bytes of log that are forgotten at a time are some megabytes; so many records make them.
const ENOUGH_TO_FORGET: u64 = 30_000;
/// Records that wait for a writer which was away: several times what it may hold in memory.
const BACKLOG: u64 = 12_000;
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
        let now = self.clock().now();
        self.start(0, None)?;
        self.settle(now)
    }

    /// SIGKILL to the reader, which begins with its cache, or with nothing.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn reader_killed(&mut self) -> Result<(), Violation> {
        self.after_records(self.chance.between(1, 300));
        self.kills += 1;
        self.reader.kill();
        if self.chance.one_in(2) {
            let _ = std::fs::remove_dir_all(self.reader.data());
        }
        let now = self.clock().now();
        self.reader.start(None);
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
        let _ = std::fs::remove_dir_all(self.writer().data().join(lost));
        let now = self.clock().now();
        self.start(0, None)?;
        self.settle(now)
    }

    /// Death at each of `points`, one life after the other; then a start that is left alone. Each is passed some times
    /// before it kills.
    ///
    /// # Errors
    /// The first promise that is broken, or that a failpoint is never reached.
    pub fn died_at(&mut self, points: &[&str]) -> Result<(), Violation> {
        self.after_records(self.chance.between(1, 200));
        self.kill()?;
        for point in points {
            let passed = match *point {
                // Once in a life.
                point if point.starts_with("takeover.") => 0,
                point if point.starts_with("snapshot.") || point.starts_with("log.forgotten") => {
                    self.chance.below(2)
                }
                _ => self.chance.below(12),
            };
            self.start(0, Some(&format!("{point}={passed}*off->return(abort)")))?;
            if *point == "log.forgotten" {
                self.workload.burst(ENOUGH_TO_FORGET * (passed + 1));
            }
            let ended = held_within(REACHED, || self.writer().ended().ok_or("it runs"));
            match ended {
                Ok(status) if status.signal() == Some(ABORT) => {
                    self.kills += 1;
                    self.at_rest()?;
                }
                Ok(status) => return broken(0, format!("{point}: it ended with {status}\n{}", self.logs())),
                Err(_) => return broken(0, format!("{point} is never reached\n{}", self.logs())),
            }
        }
        let now = self.clock().now();
        self.start(0, None)?;
        self.settle(now)
    }

    /// The step at `point` fails once: a life ends, or a retry helps; nobody restarts anything.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn failed_at(&mut self, point: &str) -> Result<(), Violation> {
        self.after_records(self.chance.between(1, 200));
        self.kill()?;
        let passed = self.chance.below(8);
        let now = self.clock().now();
        self.start(0, Some(&format!("{point}={passed}*off->1*return(error)->off")))?;
        self.settle(now)
    }

    /// The owner stops at `point`, as by SIGSTOP, until another has taken over and written; then it goes on, a zombie,
    /// and must find out. `long`: beyond the time limit of its transaction too.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn stopped_at(&mut self, point: &str, long: bool) -> Result<(), Violation> {
        let Some(owner) = self.owner() else {
            return broken(9, format!("no writer runs\n{}", self.logs()));
        };
        self.after_records(self.chance.between(1, 200));
        self.kills += 1;
        let passed = if point.starts_with("takeover.") { 0 } else { self.chance.below(8) };
        let armed = format!("{point}={passed}*off->1*return(stop)->off");
        self.writers.get_mut(owner).expect("the owner is one of them").kill();
        self.start(owner, Some(&armed))?;
        let instance = self.writers.get_mut(owner).expect("the owner is one of them");
        let stopped = held_within(REACHED, || match instance.is_stopped() {
            true => Ok(()),
            false => Err("it runs"),
        });
        if stopped.is_err() {
            return broken(0, format!("{point} is never reached\n{}", self.logs()));
        }
        let now = self.clock().now();
        self.settle(now + SESSION)?;
        if long {
            self.until(now + TRANSACTION + Duration::from_secs(2));
        }
        self.writers.get_mut(owner).expect("the owner is one of them").signal("CONT");
        let now = self.clock().now();
        self.settle(now)?;
        // Once more, when the zombie has had the time to do what it should not.
        self.after_records(self.chance.between(200, 400));
        let now = self.clock().now();
        self.settle(now)
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
            self.kills += 1;
            self.writers.get_mut(gone).expect("one of them").kill();
            let now = self.clock().now();
            if !self.writers.get_mut(next).expect("one of them").is_up() {
                self.start(next, None)?;
            }
            self.settle(now + SESSION)?;
        }
        let now = self.clock().now();
        self.start(other, None)?;
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
            self.kills += 1;
            let leaving = self.writers.get_mut(at).expect("below their number");
            match kill {
                true => leaving.kill(),
                false => {
                    let status = leaving.stop(Duration::from_secs(40));
                    if !status.success() {
                        return broken(0, format!("it stops with {status}\n{}", self.logs()));
                    }
                }
            }
            self.start(at, None)?;
        }
        let now = self.clock().now();
        self.settle(now)
    }

    /// The blob store is away for a while: a file stands where its folder was.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn store_away(&mut self) -> Result<(), Violation> {
        self.after_records(self.chance.between(1, 300));
        let (blobs, aside) = (self.dir().join("blobs"), self.dir().join("aside"));
        self.kills += 1;
        std::fs::rename(&blobs, &aside).expect("the store's folder can be moved");
        std::fs::write(&blobs, "no folder").expect("a file can be written");
        self.after_records(self.chance.between(200, 1_500));
        // What was stored into the folder by whoever had it open is there; what was refused is not.
        std::fs::remove_file(&blobs).expect("the file can be removed");
        std::fs::rename(&aside, &blobs).expect("the store's folder can be moved back");
        let now = self.clock().now();
        self.settle(now)
    }

    /// Which writer owns the shard.
    pub fn owner(&mut self) -> Option<usize> {
        let writers = &mut self.writers;
        held_within(REACHED, || {
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
