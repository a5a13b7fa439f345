//! Laps: how long a version took from one stage to the next, so that its latency can be told apart.
//!
//! ```text
//!  received -log-> batch -batch-> flushed -turn-> taken up -build-> built -store-> durable -wait-> begun -offsets-> -commit-> -read_back-> told
//! ```
//!
//! Where offsets go ahead of a version (`announce/ahead.rs`), that is in `build`, `store` and `wait`, and `offsets` is next to nothing.
//!
//! Owns: the names of the stages and the moment at which the last one ended. Does not own: what they do.

use std::time::Instant;

use crate::telemetry::ProducerMetrics;

/// Names of the stages, in their order, as the metric's label spells them.
pub const STAGES: &[&str] =
    &["log", "batch", "turn", "build", "store", "wait", "offsets", "commit", "read_back"];

/// When a version left the stage before. Of the oldest record in it; nothing for a version without one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lap(Option<Instant>);

impl Lap {
    /// The record is here.
    pub fn begin(&mut self, at: Instant) {
        self.0.get_or_insert(at);
    }

    /// `stage` has ended.
    pub fn pass(&mut self, stage: &str, now: Instant, metrics: &ProducerMetrics) {
        if let Some(before) = self.0.replace(now) {
            let took = now.saturating_duration_since(before);
            metrics.publish_stage_seconds.with(&[stage]).observe(took.as_secs_f64());
        } else {
            self.0 = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn stages_add_up_to_the_whole() {
        let (metrics, start) = (ProducerMetrics::detached(), Clock::manual(0).now());
        let mut lap = Lap::default();
        lap.pass("log", start, &metrics);
        assert_eq!(metrics.publish_stage_seconds.with(&["log"]).get_sample_count(), 0, "nothing began");
        lap.begin(start);
        lap.begin(start + Duration::from_secs(9));
        for (stage, at) in STAGES.iter().zip(1..) {
            lap.pass(stage, start + Duration::from_millis(at * at), &metrics);
        }
        let sum = |stage: &&str| metrics.publish_stage_seconds.with(&[stage]).get_sample_sum();
        let whole: f64 = STAGES.iter().map(sum).sum();
        assert!((whole - 0.081).abs() < 1e-9, "{whole}");
    }
}
