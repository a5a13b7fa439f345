//! A counter that many threads may count on at once.
//!
//! Owns: counting reads. A plain atomic costs a reader the cache line of every other reader (some 50 to 100 ns when
//! contended, as much as the read itself), and even an uncontended one makes the processor finish what came before it,
//! so that the misses of one read no longer overlap with those of the next. Here each thread has a seat, and with it in
//! each counter a line that nobody else writes: it counts with a plain load and store.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::Metric;
use prometheus::proto::{self, LabelPair, MetricType};

use super::family::Instrument;

/// Lines of one thread each. Threads beyond them share one more, which is slower and still right.
const SEATS: usize = 64;

/// Two lines' worth: x86 fetches cache lines in pairs.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Line(AtomicU64);

/// A counter spread over cache lines. Cloning shares the count.
#[derive(Clone, Debug, Default)]
pub struct Striped(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    lines: [Line; SEATS],
    shared: Line,
    labels: Vec<LabelPair>,
}

impl Default for Shared {
    fn default() -> Shared {
        Shared {
            lines: std::array::from_fn(|_| Line::default()),
            shared: Line::default(),
            labels: Vec::new(),
        }
    }
}

/// Seats that a thread has left. Its line is handed on through this lock: who takes the seat sees what was counted.
static LEFT: Mutex<Seats> = Mutex::new(Seats { free: Vec::new(), next: 0 });

struct Seats {
    free: Vec<usize>,
    /// The first that nobody has ever had.
    next: usize,
}

/// A thread's place in every counter, its own for as long as it lives; [`SEATS`] is the place that is shared.
struct Seat(usize);

impl Seat {
    fn take() -> Seat {
        let mut seats = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seat) = seats.free.pop() {
            return Seat(seat);
        }
        let seat = seats.next;
        seats.next = (seat + 1).min(SEATS);
        Seat(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.0 < SEATS {
            LEFT.lock().unwrap_or_else(PoisonError::into_inner).free.push(self.0);
        }
    }
}

thread_local! {
    static SEAT: Seat = Seat::take();
}

impl Striped {
    /// Counts one.
    #[inline]
    pub fn inc(&self) {
        self.inc_by(1);
    }

    /// Counts `n`.
    #[inline]
    pub fn inc_by(&self, n: u64) {
        // A thread that is being torn down may have given its seat back; then the shared line will do.
        let seat = SEAT.try_with(|seat| seat.0).unwrap_or(SEATS);
        match self.0.lines.get(seat) {
            // Nobody else writes this line while the thread has the seat.
            Some(Line(count)) => {
                count.store(count.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed)
            }
            None => {
                self.0.shared.0.fetch_add(n, Ordering::Relaxed);
            }
        }
    }

    /// The sum. Not a moment's picture while others count.
    pub fn get(&self) -> u64 {
        self.0.lines.iter().chain([&self.0.shared]).map(|line| line.0.load(Ordering::Relaxed)).sum()
    }
}

impl Metric for Striped {
    fn metric(&self) -> proto::Metric {
        let mut counter = proto::Counter::default();
        counter.set_value(self.get() as f64);
        let mut metric = proto::Metric::default();
        metric.set_label(self.0.labels.clone());
        metric.set_counter(counter);
        metric
    }
}

impl Instrument for Striped {
    const TYPE: MetricType = MetricType::COUNTER;

    fn make(_name: &str, _help: &str, labels: HashMap<String, String>) -> Self {
        let mut pairs: Vec<LabelPair> = labels
            .into_iter()
            .map(|(name, value)| {
                let mut pair = LabelPair::default();
                pair.set_name(name);
                pair.set_value(value);
                pair
            })
            .collect();
        pairs.sort_by(|a, b| a.name().cmp(b.name()));
        Striped(Arc::new(Shared { labels: pairs, ..Shared::default() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_add_up() {
        let counter = Striped::make("reads_total", "Reads.", HashMap::new());
        // More at a time than there are seats; then others, who take over the seats of those.
        for _ in 0..3 {
            let all_there = std::sync::Barrier::new(100);
            std::thread::scope(|scope| {
                for _ in 0..100 {
                    scope.spawn(|| {
                        counter.inc();
                        all_there.wait();
                        (1..1_000).for_each(|_| counter.inc());
                    });
                }
            });
        }
        assert_eq!(counter.get(), 300_000);
    }
}
