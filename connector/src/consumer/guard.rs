//! The guard: a version that is no good is not taken, and the last good one stays.
//!
//! ```text
//!  follow --next view--> guard --taken--> swapped in
//!                          '-----refused--> said: health, metrics, log; and published: NAME.control (best effort)
//! ```
//!
//! Asked of each version that is about to be shown, out of the cache too. Not of one that the dataset is pinned to: a pin
//! is somebody's decision, and the way to take a version that a guard refuses.
//!
//! Owns: the judgement, and telling it. Does not own: what stays readable meanwhile (`follow`).

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Options;
use super::control::Told;
use crate::format::control::{Control, Refusal, refusal_key};
use crate::kafka::{self, Outgoing, Sender};
use crate::version::{Life, Shard, Version};
use crate::view::View;

/// Shortest time between two records about refusals: a source that goes on being bad must not fill the control topic.
const PUBLISH_EVERY: Duration = Duration::from_secs(10);
/// Longest reason that is published, in bytes.
const LONGEST_REASON: usize = 1_024;

/// Judges versions before they are read. Implemented by any `Fn(Option<&View>, &View) -> Result<(), String>`.
pub trait Guard: Send + Sync {
    /// Whether `next` may replace `held`, the last good version; `None` where there is none. It may read both, and
    /// take its time: the version waits for it, and readers go on with `held`.
    ///
    /// # Errors
    /// Why not, in words for an operator.
    fn check(&self, held: Option<&View>, next: &View) -> Result<(), String>;
}

impl<F: Fn(Option<&View>, &View) -> Result<(), String> + Send + Sync> Guard for F {
    fn check(&self, held: Option<&View>, next: &View) -> Result<(), String> {
        self(held, next)
    }
}

/// What a version's size must be like.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bounds {
    /// Fewest keys.
    pub min_records: Option<u64>,
    /// Most keys.
    pub max_records: Option<u64>,
    /// Most bytes of the files that it is read from.
    pub max_bytes: Option<u64>,
    /// Share of the last good version's keys that may be added, changed or deleted at once. Not asked of the first
    /// version.
    pub max_change: Option<f64>,
}

impl Bounds {
    /// Whether there is any.
    pub fn is_some(&self) -> bool {
        *self != Bounds::default()
    }
}

impl Guard for Bounds {
    fn check(&self, held: Option<&View>, next: &View) -> Result<(), String> {
        let overlay = next.overlay();
        let bytes = next.base().map_or(0, |base| base.bytes()) + overlay.plain_bytes;
        within(self, next.records(), bytes)?;
        match (self.max_change, held) {
            (Some(most), Some(held)) => changed(most, held, next),
            _ => Ok(()),
        }
    }
}

/// Counts what differs, as far as it may.
fn changed(most: f64, held: &View, next: &View) -> Result<(), String> {
    let records = held.records();
    let limit = (records as f64 * most) as u64;
    // Whoever counts reads means those of readers.
    let (held, next) = (held.counting(Arc::default()), next.counting(Arc::default()));
    let mut changes = 0;
    for change in next.changes_from(&held) {
        change.map_err(|error| {
            format!("it cannot be compared with version {}: {}", held.version(), error.chain())
        })?;
        changes += 1;
        if changes > limit {
            let percent = most * 100.0;
            let of = held.version();
            return Err(format!(
                "more than {limit} of the {records} keys of version {of} differ: max_change = {percent}%"
            ));
        }
    }
    Ok(())
}

fn within(bounds: &Bounds, records: u64, bytes: u64) -> Result<(), String> {
    if let Some(least) = bounds.min_records.filter(|least| records < *least) {
        return Err(format!("{records} records, fewer than min_records = {least}"));
    }
    if let Some(most) = bounds.max_records.filter(|most| records > *most) {
        return Err(format!("{records} records, more than max_records = {most}"));
    }
    if let Some(most) = bounds.max_bytes.filter(|most| bytes > *most) {
        return Err(format!("{bytes} bytes, more than max_bytes = {most}"));
    }
    Ok(())
}

/// All guards of one consumer, asked in order.
#[derive(Clone, Default)]
pub struct Guards(Vec<Arc<dyn Guard>>);

impl Guards {
    /// One more.
    pub fn push(&mut self, guard: Arc<dyn Guard>) {
        self.0.push(guard);
    }

    /// Whether every version is taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first objection. A guard that panics objects.
    fn objection(&self, held: Option<&View>, next: &View) -> Option<String> {
        self.0.iter().find_map(|guard| {
            let judged = std::panic::catch_unwind(AssertUnwindSafe(|| guard.check(held, next)));
            judged.unwrap_or_else(|_| Err("the guard panicked; see the log".to_owned())).err()
        })
    }
}

impl fmt::Debug for Guards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guards({})", self.0.len())
    }
}

/// What was judged last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Judged {
    /// Nothing yet.
    #[default]
    Nothing,
    /// A version that was taken.
    Taken,
    /// A version that was not.
    Refused(Refusal),
}

/// Asks the guards, and remembers what they said of the newest version.
pub struct Gate {
    guards: Guards,
    judged: watch::Sender<Judged>,
    last: Option<(Version, Life, Option<String>)>,
}

impl Gate {
    /// A gate that tells `judged` what is refused.
    pub fn new(guards: Guards, judged: watch::Sender<Judged>) -> Gate {
        Gate { guards, judged, last: None }
    }

    /// Whether `next` may replace `held`. Said again of the same version it is not judged again.
    pub async fn objection(&mut self, held: Option<&View>, next: &View) -> Option<String> {
        if self.guards.is_empty() {
            return None;
        }
        let (version, life) = (next.version(), next.about().life);
        if let Some((of, by, said)) = &self.last
            && (*of, *by) == (version, life)
        {
            return said.clone();
        }
        let (guards, held, next) = (self.guards.clone(), held.cloned(), next.clone());
        let judged = tokio::task::spawn_blocking(move || guards.objection(held.as_ref(), &next)).await;
        // Panics of guards are caught; that the runtime ends is no judgement.
        let said = judged.unwrap_or_else(|_| Some("it could not be judged: the process ends".to_owned()));
        self.last = Some((version, life, said.clone()));
        said
    }

    /// Whether versions are judged at all.
    pub fn judges(&self) -> bool {
        !self.guards.is_empty()
    }

    /// Tells that a version was taken, whoever decided it.
    pub fn taken(&self) {
        if !self.guards.is_empty() {
            self.judged.send_if_modified(|judged| std::mem::replace(judged, Judged::Taken) != Judged::Taken);
        }
    }

    /// Tells that one was not; `false` where that is known.
    pub fn refused(&self, refusal: Refusal) -> bool {
        self.judged.send_if_modified(|judged| {
            let of = (refusal.version, refusal.epoch);
            if matches!(judged, Judged::Refused(before) if (before.version, before.epoch) == of) {
                return false;
            }
            *judged = Judged::Refused(refusal);
            true
        })
    }
}

/// Publishes refusals on the control topic, until `stop`. Nothing depends on it: what cannot be written (a right is
/// missing, say) is said and left.
pub async fn publish(
    options: Options,
    shard: Shard,
    mut judged: watch::Receiver<Judged>,
    told: watch::Receiver<Told>,
    stop: CancellationToken,
) {
    let mut sender: Option<Sender> = None;
    let mut published = false;
    let key = refusal_key(&options.dataset, shard, &options.reader);
    while stop.run_until_cancelled(judged.changed()).await.is_some_and(|changed| changed.is_ok()) {
        let now = judged.borrow_and_update().clone();
        let value = match now {
            Judged::Nothing => continue,
            Judged::Refused(mut refusal) => {
                while refusal.reason.len() > LONGEST_REASON {
                    refusal.reason.pop();
                }
                Some(Control::Refusal(refusal).encode())
            }
            Judged::Taken => {
                // Also what a process before this one said under the same name.
                let stands = told.borrow().standing.refusals.contains_key(&(shard, options.reader.clone()));
                if !published && !stands {
                    continue;
                }
                None
            }
        };
        let record = Outgoing {
            topic: &options.control,
            partition: Some(0),
            key: Some(key.as_bytes()),
            value: value.as_deref(),
            ..Outgoing::default()
        };
        match stop.run_until_cancelled(send(&options, &mut sender, &record)).await {
            None => return,
            Some(Ok(())) => published = value.is_some(),
            Some(Err(error)) => {
                // The next refusal is published by another one: somebody may have given the right meanwhile.
                sender.take_if(|sender| sender.over(&options.control).is_some());
                let error = crate::error::chain(&error);
                options.metrics.errors_total.with(&["refusal"]).inc();
                tracing::warn!(
                    dataset = options.dataset,
                    topic = options.control,
                    error,
                    "what this reader refuses cannot be published; it is refused all the same"
                );
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(PUBLISH_EVERY)).await.is_none() {
            return;
        }
    }
}

async fn send(
    options: &Options,
    sender: &mut Option<Sender>,
    record: &Outgoing<'_>,
) -> Result<(), kafka::Error> {
    let sender = match sender {
        Some(sender) => sender,
        none => none.insert(Sender::new(&options.kafka)?),
    };
    sender.send(record).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_refuse_what_lies_outside_and_say_which() {
        let bounds = Bounds {
            min_records: Some(10),
            max_records: Some(1_000),
            max_bytes: Some(50_000),
            max_change: None,
        };
        assert_eq!(within(&bounds, 10, 50_000), Ok(()));
        assert_eq!(within(&bounds, 1_000, 1), Ok(()));
        for (records, bytes, said) in
            [(9, 1, "min_records = 10"), (1_001, 1, "max_records = 1000"), (10, 50_001, "max_bytes = 50000")]
        {
            let refused = within(&bounds, records, bytes).unwrap_err();
            assert!(refused.contains(said), "{refused}");
        }
        assert_eq!(within(&Bounds::default(), 0, u64::MAX), Ok(()));
        assert!(!Bounds::default().is_some() && bounds.is_some());
    }
}
