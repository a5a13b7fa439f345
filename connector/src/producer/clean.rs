//! Cleaning: keeps the newest snapshots with what follows them and what is pinned, and lets the rest go, in two steps.
//!
//! ```text
//!  a snapshot more is listed -> an announcement says oldest_kept -> clean_grace -> pin and lives read again
//!                                                                     -> blobs below go, but what is pinned
//!                                                                     -> the topic is trimmed, below the oldest pin
//! ```
//!
//! The grace is for readers that are at it: whoever begins after `oldest_kept` was announced opens what is kept. Nothing
//! of it is durable but what it leaves: a life that ends in the grace, or between two deletes, leaves the rest to the
//! next one, whose grace begins anew, and which finds it by the same rules.
//!
//! Owns: when each step is due. Does not own: what is kept (`shelf`), reading and deleting (`sweep`), the announcement
//! that says it (`announce`, which is told through a watch; `build` mints a version for it, where none comes by itself).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::announce::Announced;
use super::options::Cleaning;
use crate::clock::{Clock, Entropy};
use crate::error::chain;
use crate::failpoint;
use crate::repeat;
use crate::retry::Backoff;
use crate::telemetry::ProducerMetrics;
use crate::version::{Life, Version};
use shelf::Fate;
use sweep::{AT_A_TIME, Confirmed, Error, Plan, Refused, Sweep};

pub mod shelf;
pub mod spared;
pub mod sweep;

#[cfg(test)]
mod tests;

/// Longest wait after a failure, and the same in first waits. What waits costs room, nothing else.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5 * 60);
const LONGEST_IN_FIRST: u32 = 300;
/// It is looked again after this long though nothing new is announced: for what was unpinned, and for what a writer that
/// had been replaced stored after the last look.
const AGAIN: Duration = Duration::from_secs(60 * 60);

/// `oldest_kept` as it was announced, each with the time at which its grace is over.
#[derive(Debug, Default)]
struct Grace {
    length: Duration,
    noted: Version,
    /// Of what was cleaned last the time at which it is looked at again stands here too.
    waiting: Vec<(Version, Instant)>,
}

impl Grace {
    /// It was announced that everything is kept from `oldest_kept` on.
    fn note(&mut self, oldest_kept: Version, now: Instant) {
        if oldest_kept > self.noted {
            self.noted = oldest_kept;
            self.waiting.push((oldest_kept, now + self.length));
        }
    }

    /// The highest whose grace is over.
    fn due(&self, now: Instant) -> Option<Version> {
        self.waiting.iter().filter(|(_, at)| *at <= now).map(|(version, _)| *version).max()
    }

    /// What lies below it is gone.
    fn done(&mut self, below: Version, now: Instant) {
        self.waiting.retain(|(version, _)| *version > below);
        self.waiting.push((below, now + AGAIN));
    }

    fn next(&self) -> Option<Instant> {
        self.waiting.iter().map(|(_, at)| *at).min()
    }
}

/// The stage.
pub struct Cleaner {
    sweep: Sweep,
    life: Life,
    keep: usize,
    grace: Grace,
    /// The life may go on from blobs that no announcement names which is kept, until it has announced something itself.
    holds_off: bool,
    announced: watch::Receiver<Option<Announced>>,
    keep_from: watch::Sender<Version>,
    clock: Clock,
    backoff: Backoff,
    entropy: Entropy,
    metrics: Arc<ProducerMetrics>,
}

impl Cleaner {
    /// A cleaner for `life`. It tells through `keep_from` what the next announcement is to say.
    pub fn new(
        sweep: Sweep,
        life: Life,
        cleaning: &Cleaning,
        announced: watch::Receiver<Option<Announced>>,
        keep_from: watch::Sender<Version>,
        (clock, entropy, first_wait): (Clock, Entropy, Duration),
        metrics: Arc<ProducerMetrics>,
    ) -> Cleaner {
        let grace = Grace { length: cleaning.grace, ..Grace::default() };
        let backoff =
            Backoff::new(first_wait, first_wait.saturating_mul(LONGEST_IN_FIRST).min(LONGEST_BACKOFF));
        let keep = cleaning.keep_snapshots;
        let holds_off = false;
        Cleaner {
            sweep,
            life,
            keep,
            grace,
            holds_off,
            announced,
            keep_from,
            clock,
            backoff,
            entropy,
            metrics,
        }
    }

    /// The same, which lets nothing go before an announcement of its life was read: for a life whose view was `restored`
    /// from an older snapshot. By the announcements before its own that one has passed, and the way to it in the topic too.
    #[must_use]
    pub fn holding_off(self, restored: bool) -> Cleaner {
        Cleaner { holds_off: restored, ..self }
    }

    /// Cleans until `stop`, or until another life writes the shard. No failure ends it: each is said, counted, and what
    /// it left is tried again.
    pub async fn run(mut self, stop: CancellationToken) {
        // What the newest announcement said of snapshot and oldest_kept when the topic was read last.
        let mut read = None;
        let mut retry_at: Option<Instant> = None;
        loop {
            let now = self.clock.now();
            let told =
                self.announced.borrow_and_update().as_ref().map(|told| (told.snapshot, told.oldest_kept));
            let due = self.sweep.is_uncut() || self.grace.due(now).is_some();
            let wanted = told.is_some() && (told != read || due);
            if wanted && retry_at.is_none_or(|at| at <= now) {
                let Some(turn) = stop.run_until_cancelled(self.turn(&stop)).await else { return };
                match turn {
                    Ok(()) => {
                        (read, retry_at) = (told, None);
                        self.backoff.reset();
                    }
                    Err(Error::Superseded(newer)) => {
                        tracing::info!(%newer, "another life writes the shard; it cleans");
                        return;
                    }
                    Err(_) if stop.is_cancelled() => return,
                    Err(error) => {
                        self.failed(&error);
                        retry_at = Some(now + self.backoff.next(&self.entropy));
                    }
                }
                continue;
            }
            // Not when it may be retried, where nothing is wanted: that may have passed long ago.
            let wake = if wanted { retry_at } else { self.grace.next() };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.announced.changed() => if changed.is_err() { return },
                () = until(wake) => {}
            }
        }
    }

    fn failed(&self, error: &Error) {
        if matches!(error, Error::Waiting | Error::Unsaid(_)) {
            tracing::debug!(%error);
            return;
        }
        self.metrics.clean_failures_total.inc();
        let failures = self.backoff.failures();
        let error = chain(error);
        if repeat::is_said(u64::from(failures) + 1) {
            tracing::warn!(
                error,
                failures,
                "the store cannot be cleaned; nothing depends on it, and it is tried again"
            );
        } else {
            tracing::debug!(error, failures, "the store cannot be cleaned");
        }
    }

    /// Reads what is announced, says what is kept, and cleans where a grace is over.
    async fn turn(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        self.sweep.read(stop).await?;
        if let Some(highest) = self.sweep.shelf().life().filter(|highest| *highest != self.life) {
            return Err(Error::Superseded(highest));
        }
        let oldest_kept = self.sweep.shelf().oldest_kept();
        self.metrics.oldest_kept_version.set(oldest_kept.0 as i64);
        if let Some(floor) = self.sweep.shelf().floor(self.keep).filter(|floor| *floor > oldest_kept) {
            self.keep_from.send_if_modified(|said| {
                let raised = floor > *said;
                *said = floor.max(*said);
                raised
            });
        }
        let now = self.clock.now();
        self.grace.note(oldest_kept, now);
        self.holds_off &= self.sweep.shelf().newest_epoch() != Some(self.life.epoch);
        if self.holds_off && (self.grace.due(now).is_some() || self.sweep.is_uncut()) {
            return Err(Error::Unsaid(self.life));
        }
        if let Some(below) = self.grace.due(now) {
            self.clean((below, now), stop).await?;
        }
        if self.sweep.is_uncut() {
            // What is left of a cleaning: Kafka refused it, or was away.
            self.sweep.confirm(self.life, stop).await?;
            self.sweep.cut().await?;
        }
        Ok(())
    }

    /// Lets go of all that nothing retained names.
    async fn clean(
        &mut self,
        (below, now): (Version, Instant),
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let mut confirmed = self.sweep.confirm(self.life, stop).await?;
        let plan = self.sweep.plan(below, confirmed.pin).await?;
        self.show(&plan);
        failpoint::reach("clean.confirmed")?;
        let (mut blobs, mut bytes, mut orphans) = (0u64, 0u64, 0u64);
        let mut refused = Refused::default();
        for some in plan.doomed.chunks(AT_A_TIME) {
            failpoint::reach("clean.delete")?;
            confirmed = self.confirmed(confirmed, stop).await?;
            let (gone, failed) = self.sweep.delete(some, below, confirmed.pin, &mut refused).await;
            for doomed in gone {
                (blobs, bytes) = (blobs + 1, bytes + doomed.bytes);
                orphans += u64::from(doomed.fate == Fate::Orphan);
                self.metrics.cleaned_blobs_total.with(&[doomed.name.kind.word()]).inc();
                self.metrics.cleaned_bytes_total.inc_by(doomed.bytes);
            }
            failed?;
        }
        if blobs > 0 {
            let pinned = confirmed.pin.map(|(version, _)| version.0);
            tracing::info!(oldest_kept = %below, blobs, bytes, orphans, pinned, "cleaned");
        }
        self.sweep.unfinished().await;
        failpoint::reach("clean.deleted")?;
        // Last: what the topic names is known to the next life too.
        confirmed = self.confirmed(confirmed, stop).await?;
        self.sweep.forget(below, confirmed.pin, &refused);
        let refused = refused.outcome();
        if refused.is_ok() {
            self.grace.done(below, now);
        }
        self.sweep.cut().await?;
        failpoint::reach("clean.trimmed")?;
        refused
    }

    /// What was confirmed, or what is by now where that is too long ago.
    async fn confirmed(
        &mut self,
        confirmed: Confirmed,
        stop: &CancellationToken,
    ) -> Result<Confirmed, Error> {
        if self.sweep.is_stale(&confirmed) {
            return self.sweep.confirm(self.life, stop).await;
        }
        Ok(confirmed)
    }

    fn show(&self, plan: &Plan) {
        let [deltas, snapshots, indexes] = plan.kept;
        let heaps =
            [("delta", deltas), ("snapshot", snapshots), ("index", indexes), ("letter", plan.letters)];
        for (kind, heap) in heaps {
            self.metrics.stored_bytes.with(&[kind]).set(heap.bytes as i64);
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(tokio::time::Instant::from_std(at)).await,
        None => std::future::pending().await,
    }
}
