//! The survey: looks now and then at the source topics themselves, for what reading them cannot tell.
//!
//! ```text
//!  high watermark - announced position                      lag
//!  last stable offset stands still below the high watermark  a transaction that hangs: nothing behind it can be read
//! ```
//!
//! Owns: those two. Does not own: positions (`announce`), whether the topics are still the same (`look`), what is made of where
//! they end (`stall`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::announce::Announced;
use super::stall::KnownEnds;
use crate::clock::Clock;
use crate::kafka::{self, ends::Ends};
use crate::record::{Position, SourcePartition};
use crate::telemetry::ProducerMetrics;

/// Between two surveys; longer with many partitions, each of which takes two requests.
const EVERY: Duration = Duration::from_secs(5);
const EACH: Duration = Duration::from_millis(20);
/// A transaction that is open for longer is said. Kafka's clients have a minute by default, after which the coordinator
/// aborts it; what is older hangs, or belongs to somebody with a longer `transaction.timeout.ms`.
const LONG_OPEN: Duration = Duration::from_secs(60);

/// A partition's last stable offset, and since when it stands still with something behind it.
#[derive(Clone, Copy, Debug)]
struct Hang {
    stable: i64,
    since: Instant,
    /// Said at this age, and then at each doubling.
    said: Duration,
}

impl Hang {
    fn new(now: Instant) -> Hang {
        Hang { stable: -1, since: now, said: LONG_OPEN }
    }

    /// For how long nothing behind the last stable offset could be read; zero where nothing is there.
    fn see(&mut self, (stable, high): (i64, i64), now: Instant) -> Duration {
        if high <= stable || stable != self.stable {
            *self = Hang { stable, ..Hang::new(now) };
        }
        now.saturating_duration_since(self.since)
    }

    /// Whether it is time to say so (again).
    fn is_news(&mut self, open: Duration) -> bool {
        let news = open >= self.said;
        if news {
            self.said = open * 2;
        }
        news
    }
}

/// The stage; runs on a thread of its own.
pub struct Survey {
    ends: Ends,
    /// Where the life begins, per partition.
    began: Vec<Position>,
    announced: watch::Receiver<Option<Announced>>,
    clock: Clock,
    metrics: Arc<ProducerMetrics>,
    hangs: HashMap<SourcePartition, Hang>,
    known: KnownEnds,
}

impl Survey {
    /// A survey of the partitions in `began`.
    ///
    /// # Errors
    /// Kafka's, for a property that librdkafka refuses.
    pub fn new(
        options: &super::Options,
        began: &[Position],
        announced: watch::Receiver<Option<Announced>>,
    ) -> Result<Survey, kafka::Error> {
        Ok(Survey {
            ends: Ends::new(&options.kafka, &format!("stillwell.{}", options.dataset))?,
            began: began.to_vec(),
            announced,
            clock: options.clock.clone(),
            metrics: options.metrics.clone(),
            hangs: HashMap::new(),
            known: KnownEnds::new(began.len()),
        })
    }

    /// Where the partitions end, as each survey finds it.
    pub fn ends(&self) -> KnownEnds {
        self.known.clone()
    }

    /// Surveys until `stop`; what cannot be asked for is asked for again the next time. Blocks: for a thread of its own,
    /// within a runtime.
    pub fn run(mut self, stop: &CancellationToken) {
        let every = EVERY.max(EACH * self.began.len() as u32);
        let runtime = Handle::current();
        while !stop.is_cancelled() {
            self.partitions(stop);
            runtime.block_on(async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(every) => {}
                }
            });
        }
    }

    fn partitions(&mut self, stop: &CancellationToken) {
        let announced = self.announced.borrow().clone();
        for (slot, began) in self.began.iter().enumerate() {
            if stop.is_cancelled() {
                return;
            }
            let source = &began.source;
            let found = self.ends.of(&source.topic, source.partition);
            self.known.set(slot, found.as_ref().ok().map(|ends| ends.0));
            let ends = match found {
                Ok(ends) => ends,
                Err(error) => {
                    tracing::debug!(%error, %source, "the survey leaves a partition out");
                    continue;
                }
            };
            let labels = [&*source.topic, &source.partition.to_string()];
            let now = self.clock.now();
            let positions = announced.as_ref().map_or(&[][..], |announced| &announced.positions);
            let position = positions.iter().find(|position| position.source == *source).unwrap_or(began);
            self.metrics.source_lag_records.with(&labels).set((ends.1 - position.offset).max(0));
            let hang = self.hangs.entry(source.clone()).or_insert_with(|| Hang::new(now));
            let before = hang.said;
            let open = hang.see(ends, now);
            self.metrics.source_hanging_transaction_seconds.with(&labels).set(open.as_secs_f64());
            if hang.is_news(open) {
                tracing::warn!(
                    %source, last_stable_offset = ends.0, high_watermark = ends.1, ?open,
                    "a transaction is open in the source and nothing behind it can be read; if it hangs, find and abort \
                     it with kafka-transactions.sh (docs/operations.md, \"A hanging transaction\")"
                );
            } else if before > LONG_OPEN && hang.said == LONG_OPEN {
                tracing::info!(%source, "the transaction that was open in the source has ended");
            }
        }
    }
}

impl Drop for Survey {
    fn drop(&mut self) {
        // Whoever has the shard next shows them.
        for Position { source, .. } in &self.began {
            let labels = [&*source.topic, &source.partition.to_string()];
            self.metrics.source_lag_records.forget(&labels);
            self.metrics.source_hanging_transaction_seconds.forget(&labels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_end_that_stands_still_with_something_behind_it_hangs() {
        let clock = Clock::manual(0);
        let second = Duration::from_secs(1);
        let mut hang = Hang::new(clock.now());
        let mut see = |ends, wait: u32| {
            clock.advance(second * wait);
            hang.see(ends, clock.now())
        };
        assert_eq!(see((10, 10), 5), Duration::ZERO, "nothing behind it");
        assert_eq!(see((10, 14), 5), second * 5, "since it was last seen without");
        assert_eq!(see((10, 99), 60), second * 65, "whatever comes behind it");
        assert_eq!(see((12, 99), 5), Duration::ZERO, "it moved: transactions end, others are open");
        assert_eq!(see((12, 99), 7), second * 7);
        assert_eq!(see((99, 99), 1), Duration::ZERO);
    }

    #[test]
    fn a_hang_is_said_at_a_minute_and_at_each_doubling() {
        let mut hang = Hang::new(Clock::manual(0).now());
        let said: Vec<u64> =
            (0..1000).filter(|seconds| hang.is_news(Duration::from_secs(*seconds))).collect();
        assert_eq!(said, [60, 120, 240, 480, 960]);
    }
}
