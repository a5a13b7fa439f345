//! Keeping house while a life runs: trims the log behind the announcements, feeds the pressure gauge, and has the pace
//! follow it.
//!
//! Owns: when that is done. Does not own: the log, the gauge and the pace themselves.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::announce::Announced;
use super::log::{self, Log};
use super::pace::Pace;
use super::shed::Ledger;
use crate::failpoint;
use crate::gauge::{Budget, Pressure, Strain};
use crate::telemetry::ProducerMetrics;

/// How often the log is trimmed and the gauges are set.
const KEEP_EVERY: Duration = Duration::from_millis(200);
/// Deltas at which readers refuse a chain.
pub const LONGEST_CHAIN: f64 = 512.0;

/// The task.
pub struct Keeper {
    /// The log.
    pub log: Log,
    /// What is announced: the log is trimmed behind it.
    pub announced: watch::Receiver<Option<Announced>>,
    /// The gauge that it feeds.
    pub pressure: Pressure,
    /// What follows the gauge.
    pub pace: Pace,
    /// What was shed, to be said.
    pub ledger: Ledger,
    /// The batches' share of memory.
    pub memory: Budget,
    /// Records that may lie in memory.
    pub max_pending_records: usize,
    /// What it shows.
    pub metrics: Arc<ProducerMetrics>,
}

impl Keeper {
    /// Keeps until `stop`, and once more then.
    ///
    /// # Errors
    /// The log's.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), log::Error> {
        loop {
            let stopping = tokio::select! {
                () = stop.cancelled() => true,
                () = tokio::time::sleep(KEEP_EVERY) => false,
            };
            let announced = match self.announced.has_changed() {
                Ok(true) => self.announced.borrow_and_update().clone(),
                _ => None,
            };
            if let Some(announced) = announced {
                self.pressure.set(Strain::Chain, announced.chain.deltas as f64 / LONGEST_CHAIN);
                failpoint::pass("log.trim");
                self.log.trim(&announced.positions).await?;
            }
            let stats = self.log.stats();
            let in_memory = stats.pending_records.saturating_sub(stats.spilled_records);
            self.pressure.set(Strain::Pending, in_memory as f64 / self.max_pending_records.max(1) as f64);
            self.pressure.set(Strain::Memory, self.memory.fill());
            self.metrics.log_bytes.set(stats.log_bytes as i64);
            self.metrics.pending_records.set(stats.pending_records as i64);
            self.metrics.spilled_records.set(stats.spilled_records as i64);
            self.metrics.pressure.set(self.pressure.value());
            self.ledger.say();
            self.pace.adjust(self.pressure.outflow());
            self.metrics.pace_records_per_second.set(self.pace.now().0.map_or(0.0, f64::from));
            if stopping {
                return Ok(());
            }
        }
    }
}
