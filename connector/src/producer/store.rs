//! Storing: uploads overlap, but come out in the order of their versions.
//!
//! ```text
//!  Built -> letters too large for their topic, delta  --put--> blob store      worker_pool_size at a time
//!                                                       ^ the breaker: closed, or nobody calls
//!  Stored <- in the order of versions
//! ```
//!
//! A store that is away ends no life: its uploads are tried again with backoff, then wait before the breaker until it
//! is back. Meanwhile batches fill, the log holds what comes, and pressure slows the source down.
//!
//! Owns: how many uploads run at a time, their time limit and retries. Does not own: the store itself (`blob/`), the
//! breaker (`circuit`, which outlives the life), what an upload means (nobody sees it before `announce`).

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use tokio::sync::mpsc;

use super::build::Built;
use super::circuit::Gate;
use super::turns::Turn;
use super::{Performance, Reliability};
use crate::blob::name::{self, Folder};
use crate::blob::{self, Body, Put, Store};
use crate::clock::{Clock, Entropy};
use crate::failpoint;
use crate::format::letter::{Elsewhere, Letter};
use crate::gauge::{Outlet, Pressure};
use crate::repeat;
use crate::retry::{Backoff, Circuit};
use crate::telemetry::ProducerMetrics;

/// Longest wait between two attempts. Short, so that versions go on within seconds of the store's return; what spares
/// a store that is away for long is the breaker.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// An upload may take `write_timeout`, and a second more for each of these: a slow line is not a dead one, and a
/// snapshot of some gigabytes must get through without a time limit that lets a delta of some kilobytes hang for an hour.
const SLOWEST_A_SECOND: u64 = 1 << 20;
/// Largest blob that is put as a probe, while all others wait for what it tells. Before a larger one the store is asked
/// for something small.
const LARGEST_PROBE: u64 = 8 << 20;

/// A letter, and where that lies which is too large for its topic.
#[derive(Debug)]
pub struct StoredLetter {
    /// The letter.
    pub letter: Letter,
    /// What of it is in a blob.
    pub elsewhere: Elsewhere,
}

/// A version whose blobs are durable.
#[derive(Debug)]
pub struct Stored {
    built: Built,
    /// Its letters.
    pub letters: Vec<StoredLetter>,
    /// What they take in a transaction, roughly.
    pub letter_bytes: u64,
}

impl Deref for Stored {
    type Target = Built;

    fn deref(&self) -> &Built {
        &self.built
    }
}

impl Stored {
    /// Its place in the line.
    pub fn take_turn(&mut self) -> Option<Turn> {
        self.built.turn.take()
    }

    /// `stage` has ended for it.
    pub fn pass(&mut self, stage: &str, now: Instant, metrics: &ProducerMetrics) {
        self.built.lap.pass(stage, now, metrics);
    }

    /// The version as built, with its view.
    pub fn into_built(self) -> Built {
        self.built
    }
}

/// Puts blobs, again and again until it works: nothing that was built is given up for a store that is away.
#[derive(Clone)]
pub struct Uploader {
    store: Store,
    gate: Gate,
    timeout: Duration,
    reliability: Reliability,
    clock: Clock,
    entropy: Entropy,
    pressure: Pressure,
    metrics: Arc<ProducerMetrics>,
}

impl Uploader {
    /// An uploader to `store`, through its breaker. Tells `pressure` how it goes.
    pub fn new(
        (store, gate): (Store, Gate),
        performance: &Performance,
        reliability: &Reliability,
        (clock, entropy): (Clock, Entropy),
        pressure: Pressure,
        metrics: Arc<ProducerMetrics>,
    ) -> Uploader {
        let (timeout, reliability) = (performance.write_timeout, reliability.clone());
        Uploader { store, gate, timeout, reliability, clock, entropy, pressure, metrics }
    }

    /// Puts one blob. While the error may pass it is tried again, without end: `max_retry_attempts` times with
    /// backoff, then that counts as one failure against the breaker, and so on; while the breaker is open nothing is
    /// tried. Dropping the future ends it; what was sent by then nobody sees.
    ///
    /// # Errors
    /// The store's, where trying again is in vain; the life ends with it, the log keeps the records for the next one.
    pub async fn put(&self, name: &str, body: Body) -> Result<(), blob::Error> {
        let bytes = length(&body).await;
        let mut backoff = Backoff::new(self.reliability.retry_backoff, LONGEST_BACKOFF);
        let mut first = true;
        loop {
            let pass = self.gate.pass().await;
            if pass.is_probe() && bytes > LARGEST_PROBE {
                match self.within(0, name, self.store.head(name)).await {
                    Ok(_) => pass.succeeded(),
                    Err(error) => pass.failed(error.to_string()),
                }
                continue;
            }
            let attempts = if pass.is_probe() { 1 } else { self.reliability.max_retry_attempts + 1 };
            let mut left = attempts;
            let error = loop {
                if !std::mem::take(&mut first) {
                    self.metrics.retries_total.inc();
                }
                let Err(error) = self.attempt(name, &body, bytes).await else {
                    pass.succeeded();
                    return Ok(());
                };
                if !error.is_transient() {
                    // It has answered: that it will not take this one says nothing about the next.
                    pass.succeeded();
                    return Err(error);
                }
                left -= 1;
                if left == 0 {
                    break error;
                }
                let wait = backoff.next(&self.entropy);
                if repeat::is_said(u64::from(backoff.failures())) {
                    let failures = backoff.failures();
                    tracing::warn!(%error, blob = name, failures, ?wait, "a blob could not be stored; trying again");
                }
                tokio::time::sleep(wait).await;
                if !pass.is_probe() && self.gate.state() != Circuit::Closed {
                    // Opened meanwhile by what others saw: no more attempts.
                    break error;
                }
            };
            tracing::debug!(%error, blob = name, attempts, "a blob could not be stored; its version waits");
            pass.failed(error.to_string());
            let (failures, threshold) = self.gate.failures();
            self.pressure.failed(Outlet::Store, failures, threshold);
            tokio::time::sleep(backoff.next(&self.entropy)).await;
        }
    }

    async fn attempt(&self, name: &str, body: &Body, bytes: u64) -> Result<(), blob::Error> {
        let began = self.clock.now();
        self.metrics.active_writes.inc();
        // Given back even where the future is dropped.
        let _active = Active(&self.metrics);
        let put = self.within(bytes, name, self.put_now(name, body.clone())).await;
        match &put {
            Ok(()) => {
                let took = self.clock.now().saturating_duration_since(began);
                self.metrics.write_latency_seconds.observe(took.as_secs_f64());
                self.pressure.succeeded(Outlet::Store, took, self.limit(bytes));
            }
            Err(_) => self.metrics.write_failures_total.inc(),
        }
        put
    }

    async fn put_now(&self, name: &str, body: Body) -> Result<(), blob::Error> {
        failpoint::reach("store.put").map_err(|injected| blob::Error::Unavailable {
            doing: "storing",
            url: self.store.absolute_url(name),
            problem: injected.to_string(),
        })?;
        self.put_where(name, body).await?;
        failpoint::pass("store.stored");
        Ok(())
    }

    /// Over a network, what an attempt without an answer has stored is not sent again: it may be gigabytes. Names carry
    /// their content's checksum, or the record's place, so what is there is it, unless it was damaged; then it is mostly
    /// shorter, and is replaced. The value of a letter is put over nowhere: it may be all there is of its record.
    async fn put_where(&self, name: &str, body: Body) -> Result<(), blob::Error> {
        if !self.store.is_far() && !name.ends_with(name::LETTER) {
            return self.store.put(name, body).await;
        }
        match self.store.put_new(name, body.clone()).await? {
            Put::Stored => Ok(()),
            Put::Found if self.store.head(name).await? == Some(length(&body).await) => Ok(()),
            Put::Found => self.store.put(name, body).await,
        }
    }

    /// How long an attempt may take that moves so much.
    fn limit(&self, bytes: u64) -> Duration {
        self.timeout.saturating_add(Duration::from_secs(bytes / SLOWEST_A_SECOND))
    }

    /// `call`, unless it takes longer than what moves `bytes` may.
    async fn within<T>(
        &self,
        bytes: u64,
        name: &str,
        call: impl Future<Output = Result<T, blob::Error>>,
    ) -> Result<T, blob::Error> {
        let limit = self.limit(bytes);
        tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
            Err(blob::Error::Unavailable {
                doing: "storing",
                url: self.store.absolute_url(name),
                problem: format!(
                    "it took longer than {limit:?}: write_timeout ({:?}), and a second for each MiB of {bytes} bytes",
                    self.timeout
                ),
            })
        })
    }
}

struct Active<'a>(&'a ProducerMetrics);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.active_writes.dec();
    }
}

/// Bytes that a put moves. A file that cannot be looked at counts as empty: the put says why.
async fn length(body: &Body) -> u64 {
    match body {
        Body::Bytes(bytes) => bytes.len() as u64,
        Body::File(path) => tokio::fs::metadata(path).await.map_or(0, |file| file.len()),
    }
}

/// The stage.
pub struct Storer {
    uploader: Uploader,
    at_a_time: usize,
    /// Largest letter that its topic takes.
    letter_limit: usize,
    folder: Folder,
}

impl Storer {
    /// A stage with `at_a_time` uploads under way; letters above `letter_limit` bytes have their value stored in
    /// `folder`.
    pub fn new(uploader: Uploader, at_a_time: usize, letter_limit: usize, folder: Folder) -> Storer {
        Storer { uploader, at_a_time: at_a_time.max(1), letter_limit, folder }
    }

    /// Stores what is built, until the channel closes.
    ///
    /// # Errors
    /// The first blob that cannot be stored; versions after it are not handed on.
    pub async fn run(
        self,
        built: mpsc::Receiver<Built>,
        out: mpsc::Sender<Stored>,
    ) -> Result<(), blob::Error> {
        let uploads =
            futures::stream::unfold(built, |mut built| async { Some((built.recv().await?, built)) })
                .map(|built| self.store(built))
                .buffered(self.at_a_time);
        let mut uploads = std::pin::pin!(uploads);
        while let Some(stored) = uploads.next().await {
            if out.send(stored?).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn store(&self, mut built: Built) -> Result<Stored, blob::Error> {
        let mut letters = Vec::with_capacity(built.letters.len());
        let mut letter_bytes = 0;
        for letter in std::mem::take(&mut built.letters) {
            let elsewhere = self.store_what_is_too_large(&letter).await?;
            letter_bytes += letter.size_without(&elsewhere) as u64;
            letters.push(StoredLetter { letter, elsewhere });
        }
        self.uploader.put(&built.delta.blob.name, Body::Bytes(built.stored.clone())).await?;
        for (name, body) in built.whole.iter().flat_map(|whole| whole.blobs()) {
            self.uploader.put(name, body).await?;
        }
        built.lap.pass("store", self.uploader.clock.now(), &self.uploader.metrics);
        Ok(Stored { built, letters, letter_bytes })
    }

    /// A letter must never stand in the way of the position that it goes out with, so whatever its topic will not take
    /// goes into a blob: the value, or, where key and headers alone are too large, all of it.
    async fn store_what_is_too_large(&self, letter: &Letter) -> Result<Elsewhere, blob::Error> {
        let blob = |part| name::letter(&self.folder, &letter.source, letter.offset, part);
        let (elsewhere, body) = match &letter.value {
            _ if letter.size() <= self.letter_limit => return Ok(Elsewhere::Nothing),
            Some(value) if letter.size() - value.len() <= self.letter_limit => {
                (Elsewhere::Value(blob(name::LetterPart::Value)), value.clone())
            }
            _ => {
                let mut whole = Vec::with_capacity(letter.size());
                letter.encode(&mut whole);
                (Elsewhere::Whole(blob(name::LetterPart::Whole)), whole.into())
            }
        };
        if let Elsewhere::Value(blob) | Elsewhere::Whole(blob) = &elsewhere {
            self.uploader.put(blob, Body::Bytes(body)).await?;
        }
        Ok(elsewhere)
    }
}

#[cfg(test)]
pub(super) mod tests;
