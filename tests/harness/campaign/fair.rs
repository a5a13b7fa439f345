//! Time as this machine gives it: where others have the processors while somebody here waits for one, or where the disk
//! stands still by nothing that we did, a second is less.
//!
//! Check 9 promises a time, which no program can keep without a processor or a disk. So what counts against it is
//!
//! ```text
//! wall time x (1 - the larger of min(a, b) and c)
//!     a: share of all processors that others used          /proc/stat, /proc/PID/stat
//!     b: share of the time in which a task waited for one  /proc/pressure/cpu
//!     c: share in which a file beside could not be synced  probe
//!        less what the disk takes for what we wrote        /proc/PID/io, at `SLOW` bytes a second
//! ```
//!
//! Other scenes that run in this process are not told from this one: they and what they start are ours. Where several tests run
//! at a time, what is promised takes so much longer as there are more of them than processors ([`beside`]).
//! `make faults` says nothing of tests at a time, and its campaign is held to the letter.
//!
//! On a machine of our own that is wall time to the letter: however slow we are, nobody else is to blame, and a program that
//! hangs while the disk works has no excuse in it. Where the system tells no pressure, processors are no excuse either. A broker
//! in a container counts as another.
//!
//! Owns: what counts, and waiting by it. Does not own: what is promised within it (`scene`).

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use stillwell::clock::Clock;

use super::probe::Probe;
use crate::held_within;

/// The system's unit of processor time in `/proc`: a hundredth of a second, whatever its timer (proc(5), `USER_HZ`).
const TICK: Duration = Duration::from_millis(10);
/// Between two looks: some ticks, or shares are guesses.
const LOOK: Duration = Duration::from_millis(250);
/// Bytes a second that a disk takes which works, in small pieces that are synced each: what we write is held against us at
/// this rate, until it is worked off.
const SLOW: u64 = 16 << 20;
/// By the clock it is waited no longer than so many times what is promised.
pub const STRETCH: u32 = 8;

/// How many tests share a processor, at least one: 3 where six run at a time on two.
pub fn beside() -> f64 {
    let threads = std::env::var("RUST_TEST_THREADS").ok();
    share_of(threads.as_deref(), std::thread::available_parallelism().map_or(1, usize::from))
}

/// By what the runner of tests is told; untold, it runs as many as there are processors.
fn share_of(threads: Option<&str>, processors: usize) -> f64 {
    let threads = threads.and_then(|text| text.parse().ok()).unwrap_or(processors);
    (threads as f64 / processors as f64).max(1.0)
}

/// Waits by time that counts.
#[derive(Clone, Debug)]
pub struct Patience {
    clock: Clock,
    /// On the disk that is waited for.
    dir: PathBuf,
}

impl Patience {
    /// With what works in `dir`.
    pub fn new(clock: &Clock, dir: &Path) -> Patience {
        Patience { clock: clock.clone(), dir: dir.to_owned() }
    }

    /// Time that counts from `began` on.
    pub fn since(&self, began: Instant) -> Fair {
        Fair::since(&self.clock, Probe::start(&self.clock, &self.dir), began)
    }

    /// Looks until `condition` is `Ok`, and gives up once `most` of the time that counts has passed, or [`STRETCH`] times that by
    /// the clock.
    ///
    /// # Errors
    /// The last state seen.
    pub fn held<T, S>(&self, most: Duration, mut condition: impl FnMut() -> Result<T, S>) -> Result<T, S> {
        if let Ok(held) = condition() {
            return Ok(held);
        }
        let mut fair = self.since(self.clock.now());
        let seen = held_within(most * STRETCH, || match condition() {
            Err(state) if fair.counted() > most => Ok(Err(state)),
            Err(state) => Err(state),
            Ok(held) => Ok(Ok(held)),
        });
        seen.unwrap_or_else(Err)
    }
}

/// Time that counts, from a moment on.
#[derive(Debug)]
pub struct Fair {
    clock: Clock,
    probe: Probe,
    began: Instant,
    counted: Duration,
    /// For how long the disk has still to do with what we wrote.
    owed: Duration,
    /// `None` until it has begun.
    last: Option<Looked>,
}

/// What the system told.
#[derive(Clone, Copy, Debug)]
struct Looked {
    at: Instant,
    /// Processor time of everything that runs, and of this process with all that it started.
    busy: Duration,
    own: Duration,
    /// Time in which some task waited for a processor.
    waited: Duration,
    /// Time in which the disk stood still.
    stood: Duration,
    /// Bytes that this process and all that it started had written to disk.
    wrote: u64,
}

impl Fair {
    /// From `began` on, which may lie ahead; what has passed of it by now counts whole.
    pub fn since(clock: &Clock, probe: Probe, began: Instant) -> Fair {
        let none = Duration::ZERO;
        let mut fair = Fair { clock: clock.clone(), probe, began, counted: none, owed: none, last: None };
        fair.counted();
        fair
    }

    /// The time that counts by now.
    pub fn counted(&mut self) -> Duration {
        let now = self.clock.now();
        if now < self.began {
            return Duration::ZERO;
        }
        if let Some(last) = self.last.filter(|last| now < last.at + LOOK) {
            return self.counted + now.saturating_duration_since(last.at);
        }
        let now = Looked::now(&self.clock, self.probe.stood());
        self.counted += match self.last.replace(now) {
            Some(last) => ours(&last, &now, &mut self.owed),
            None => now.at.saturating_duration_since(self.began),
        };
        self.counted
    }

    /// The wall time by now.
    pub fn wall(&self) -> Duration {
        self.clock.now().saturating_duration_since(self.began)
    }
}

impl fmt::Display for Fair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wall, stood) = (self.wall(), self.probe.stood());
        write!(
            f,
            "{wall:.1?} by the clock, {:.1?} of which were ours (the disk stood still for {stood:.1?})",
            self.counted
        )
    }
}

/// What counts of the time between two looks; `owed` is for how long the disk has to do with what we wrote before.
fn ours(before: &Looked, after: &Looked, owed: &mut Duration) -> Duration {
    let wall = after.at.saturating_duration_since(before.at);
    let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let busy = after.busy.saturating_sub(before.busy);
    let others = busy.saturating_sub(after.own.saturating_sub(before.own));
    let share = |of: Duration, all: f64| if all > 0.0 { (of.as_secs_f64() / all).min(1.0) } else { 0.0 };
    let taken = share(others, wall.as_secs_f64() * processors);
    let waited = share(after.waited.saturating_sub(before.waited), wall.as_secs_f64());
    // What is written is in memory first, and the disk stands still for it later.
    *owed += Duration::from_secs_f64(after.wrote.saturating_sub(before.wrote) as f64 / SLOW as f64);
    let stood = after.stood.saturating_sub(before.stood).saturating_sub(*owed);
    *owed = owed.saturating_sub(wall);
    wall.mul_f64(1.0 - taken.min(waited).max(share(stood, wall.as_secs_f64())))
}

impl Looked {
    fn now(clock: &Clock, stood: Duration) -> Looked {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let (own, wrote) = own();
        Looked {
            at: clock.now(),
            busy: busy(&read("/proc/stat")),
            own,
            waited: waited(&read("/proc/pressure/cpu")),
            stood,
            wrote,
        }
    }
}

fn ticks(count: u64) -> Duration {
    TICK.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Of `/proc/stat`: all but idle and waiting for a disk; what a host took away (steal) is others'.
fn busy(stat: &str) -> Duration {
    let numbers = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let numbers: Vec<u64> = numbers.map(|number| number.parse().unwrap_or(0)).collect();
    // user nice system idle iowait irq softirq steal; guests are in user and nice already.
    ticks(numbers.iter().take(8).enumerate().filter(|(at, _)| ![3, 4].contains(at)).map(|(_, n)| n).sum())
}

/// Of `/proc/pressure/cpu`: microseconds in which some task waited.
fn waited(pressure: &str) -> Duration {
    let some = pressure.lines().find(|line| line.starts_with("some"));
    let total = some.and_then(|line| line.rsplit_once("total=")?.1.trim().parse().ok());
    Duration::from_micros(total.unwrap_or(0))
}

/// Of `/proc/PID/io`: bytes that a process and its children that were waited for had written to disk.
fn wrote(io: &str) -> u64 {
    let bytes = io.lines().find_map(|line| line.strip_prefix("write_bytes:"));
    bytes.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0)
}

/// Processor time of this process, of those that it started, and of theirs, the dead included; and the bytes that they wrote.
fn own() -> (Duration, u64) {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut used = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some((parent, count)) = process(&stat) {
            children.entry(parent).or_default().push(pid);
            used.insert(pid, count);
        }
    }
    let (mut all, mut bytes, mut next) = (0, 0, vec![std::process::id()]);
    while let Some(pid) = next.pop() {
        all += used.get(&pid).copied().unwrap_or(0);
        bytes += wrote(&std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default());
        next.extend(children.remove(&pid).unwrap_or_default());
    }
    (ticks(all), bytes)
}

/// Of `/proc/PID/stat`: the parent, and the ticks of the process and of its children that were waited for.
fn process(stat: &str) -> Option<(u32, u64)> {
    // Behind the name, which may hold anything and ends with the last parenthesis: state, parent, …
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let used = fields.get(11..15)?.iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Some((fields.get(1)?.parse().ok()?, used))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(at: Instant, busy: u64, own: u64, waited: u64) -> Looked {
        let [busy, own, waited] = [busy, own, waited].map(Duration::from_millis);
        Looked { at, busy, own, waited, stood: Duration::ZERO, wrote: 0 }
    }

    #[test]
    fn only_what_others_took_while_we_waited_does_not_count() {
        let began = Clock::system().now();
        let end = began + Duration::from_secs(1);
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let all = 1_000 * processors;
        let before = looked(began, 0, 0, 0);
        let counted = |busy, own, waited| {
            ours(&before, &looked(end, busy, own, waited), &mut Duration::default()).as_millis()
        };
        assert_eq!(counted(all, all, 1_000), 1_000, "we have it all");
        assert_eq!(counted(0, 0, 0), 1_000, "nobody wants it");
        assert_eq!(counted(all, all / 4, 1_000), 250, "others have three quarters");
        assert_eq!(counted(all, all / 4, 100), 900, "and hardly anybody waits");
    }

    #[test]
    fn a_disk_that_stands_still_does_not_count_but_by_what_we_wrote() {
        let began = Clock::system().now();
        let at = |second: u64, stood, wrote| Looked {
            stood: Duration::from_millis(stood),
            wrote,
            ..looked(began + Duration::from_secs(second), 0, 0, 0)
        };
        let mut owed = Duration::ZERO;
        let mut counted = |before: Looked, after: Looked| ours(&before, &after, &mut owed).as_millis();
        assert_eq!(counted(at(0, 0, 0), at(1, 0, 0)), 1_000, "it works, and whoever hangs is to blame");
        assert_eq!(counted(at(1, 0, 0), at(2, 700, 0)), 300, "others have it");
        // Two and a half seconds' worth, most of which is in memory at first.
        let wrote = SLOW / 2 * 5;
        assert_eq!(counted(at(2, 700, 0), at(3, 1_700, wrote)), 1_000, "we wrote for all of it");
        assert_eq!(counted(at(3, 1_700, wrote), at(4, 2_700, wrote)), 1_000, "and a second later still");
        assert_eq!(counted(at(4, 2_700, wrote), at(5, 3_700, wrote)), 500, "until it is worked off");
        assert_eq!(counted(at(5, 3_700, wrote), at(6, 4_700, wrote)), 0, "the rest is not by us");
        // As much as the larger of the two, which may be the same time.
        let both =
            Looked { stood: Duration::from_millis(600), ..looked(began + Duration::from_secs(1), 0, 0, 0) };
        assert_eq!(ours(&at(0, 0, 0), &both, &mut Duration::default()).as_millis(), 400);
    }

    #[test]
    fn who_shares_a_processor_has_longer() {
        assert_eq!(share_of(Some("6"), 2), 3.0);
        assert_eq!(share_of(None, 2), 1.0, "as many as there are processors");
        assert_eq!(share_of(Some("1"), 2), 1.0, "and never less than is promised");
        assert_eq!(share_of(Some("some"), 2), 1.0);
    }

    /// The disk is what `sync` waits for: a channel, which stands still for as long as nobody lets it go.
    #[test]
    fn a_sync_that_is_under_way_counts_up_to_now() {
        let clock = Clock::system();
        let (go, gone) = std::sync::mpsc::channel();
        let probe = Probe::of(&clock, move || gone.recv().map_err(std::io::Error::other));
        let grows = |than: Duration| {
            let grown = || if probe.stood() > than { Ok(probe.stood()) } else { Err(probe.stood()) };
            held_within(Duration::from_secs(30), grown).expect("it stands still")
        };
        let first = grows(Duration::from_millis(1));
        assert!(grows(first) > first);
        for _ in 0..3 {
            go.send(()).expect("the probe waits");
        }
        // Each that is quick adds nothing; at its failure it ends, and what it has found stays.
        drop(go);
        let found = held_within(Duration::from_secs(30), || {
            let before = probe.stood();
            let after =
                held_within(Duration::from_millis(200), || Err::<(), _>(probe.stood())).expect_err("never");
            if before == after { Ok(after) } else { Err(after) }
        });
        assert!(found.expect("it has ended") >= first);
    }

    #[test]
    fn the_system_is_read() {
        let stat = "cpu  100 5 20 900 7 1 2 3 50 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy(stat), Duration::from_millis(1_310));
        assert_eq!(
            waited("some avg10=0.00 avg60=0.00 avg300=0.00 total=1500\n"),
            Duration::from_micros(1_500)
        );
        let line = "7 (a) b) S 3 1 1 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 1 0 5 6 7";
        assert_eq!(process(line), Some((3, 100)));
        assert_eq!(wrote("wchar: 9\nwrite_bytes: 4096\ncancelled_write_bytes: 0\n"), 4_096);
        assert!(own().0 < busy(&std::fs::read_to_string("/proc/stat").expect("a Linux system tells it")));
    }
}
