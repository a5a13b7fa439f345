//! Time as this machine gives it: where others have the processors while somebody here waits for one, a second is less.
//!
//! Check 9 promises a time, which no program can keep without a processor. So what counts against it is
//!
//! ```text
//! wall time x (1 - min(a, b))     a: share of all processors that others used       /proc/stat, /proc/PID/stat
//!                                 b: share of the time in which a task waited for one  /proc/pressure/cpu
//! ```
//!
//! On a machine of our own that is wall time to the letter: however slow we are, nobody else is to blame. Where the system
//! tells no pressure it is wall time as well. A broker in a container counts as another.
//!
//! Owns: what counts. Does not own: what is promised within it (`scene`).

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use stillwell::clock::Clock;

/// The system's unit of processor time in `/proc`: a hundredth of a second, whatever its timer (proc(5), `USER_HZ`).
const TICK: Duration = Duration::from_millis(10);
/// Between two looks: some ticks, or shares are guesses.
const LOOK: Duration = Duration::from_millis(250);

/// Time that counts, from a moment on.
#[derive(Debug)]
pub struct Fair {
    clock: Clock,
    began: Instant,
    counted: Duration,
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
}

impl Fair {
    /// From `began` on, which may lie ahead; what has passed of it by now counts whole.
    pub fn since(clock: &Clock, began: Instant) -> Fair {
        let mut fair = Fair { clock: clock.clone(), began, counted: Duration::ZERO, last: None };
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
        let now = Looked::now(&self.clock);
        self.counted += match self.last.replace(now) {
            Some(last) => ours(&last, &now),
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
        write!(f, "{:.1?} by the clock, {:.1?} of which were ours", self.wall(), self.counted)
    }
}

/// What counts of the time between two looks.
fn ours(before: &Looked, after: &Looked) -> Duration {
    let wall = after.at.saturating_duration_since(before.at);
    let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let busy = after.busy.saturating_sub(before.busy);
    let others = busy.saturating_sub(after.own.saturating_sub(before.own));
    let share = |of: Duration, all: f64| if all > 0.0 { (of.as_secs_f64() / all).min(1.0) } else { 0.0 };
    let taken = share(others, wall.as_secs_f64() * processors);
    let waited = share(after.waited.saturating_sub(before.waited), wall.as_secs_f64());
    wall.mul_f64(1.0 - taken.min(waited))
}

impl Looked {
    fn now(clock: &Clock) -> Looked {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Looked {
            at: clock.now(),
            busy: busy(&read("/proc/stat")),
            own: own(),
            waited: waited(&read("/proc/pressure/cpu")),
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

/// Processor time of this process, of those that it started, and of theirs, the dead included.
fn own() -> Duration {
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
    let (mut all, mut next) = (0, vec![std::process::id()]);
    while let Some(pid) = next.pop() {
        all += used.get(&pid).copied().unwrap_or(0);
        next.extend(children.remove(&pid).unwrap_or_default());
    }
    ticks(all)
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
        Looked { at, busy, own, waited }
    }

    #[test]
    fn only_what_others_took_while_we_waited_does_not_count() {
        let began = Clock::system().now();
        let end = began + Duration::from_secs(1);
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let all = 1_000 * processors;
        let before = looked(began, 0, 0, 0);
        let counted = |busy, own, waited| ours(&before, &looked(end, busy, own, waited)).as_millis();
        assert_eq!(counted(all, all, 1_000), 1_000, "we have it all");
        assert_eq!(counted(0, 0, 0), 1_000, "nobody wants it");
        assert_eq!(counted(all, all / 4, 1_000), 250, "others have three quarters");
        assert_eq!(counted(all, all / 4, 100), 900, "and hardly anybody waits");
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
        assert!(own() < busy(&std::fs::read_to_string("/proc/stat").expect("a Linux system tells it")));
    }
}
