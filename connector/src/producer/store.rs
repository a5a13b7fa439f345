//! Storing: uploads overlap, but come out in the order of their versions.
//!
//! Owns: how many uploads run at a time, their time limit and retries. Does not own: the store itself (`blob/`), what
//! an upload means (nobody sees it before `announce`).

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::mpsc;

use super::build::Built;
use super::{Performance, Reliability};
use crate::blob::name::{self, Folder};
use crate::blob::{self, Body, Store};
use crate::clock::Entropy;
use crate::format::letter::Letter;
use crate::retry::Backoff;
use crate::telemetry::ProducerMetrics;

/// Longest wait between two attempts.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// A letter, and the blob that holds its value where that is too large for the topic.
#[derive(Debug)]
pub struct StoredLetter {
    /// The letter.
    pub letter: Letter,
    /// Name of the blob with its value.
    pub value_blob: Option<String>,
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
    /// The version as built, with its view.
    pub fn into_built(self) -> Built {
        self.built
    }
}

/// Puts blobs, again and again until it works: nothing that was built is given up for a store that is away.
#[derive(Clone)]
pub struct Uploader {
    store: Store,
    timeout: Duration,
    reliability: Reliability,
    entropy: Entropy,
    metrics: Arc<ProducerMetrics>,
}

impl Uploader {
    /// An uploader to `store`.
    pub fn new(
        store: Store,
        performance: &Performance,
        reliability: &Reliability,
        entropy: Entropy,
        metrics: Arc<ProducerMetrics>,
    ) -> Uploader {
        Uploader {
            store,
            timeout: performance.write_timeout,
            reliability: reliability.clone(),
            entropy,
            metrics,
        }
    }

    /// Puts one blob. Retried with backoff while the error is transient; then, and when the store refuses for good,
    /// the error is returned and the life ends with it: the log keeps the records for the next one.
    ///
    /// # Errors
    /// The store's last one.
    pub async fn put(&self, name: &str, body: Body) -> Result<(), blob::Error> {
        let mut backoff = Backoff::new(self.reliability.retry_backoff, LONGEST_BACKOFF);
        loop {
            self.metrics.active_writes.inc();
            let put = tokio::time::timeout(self.timeout, self.store.put(name, body.clone())).await;
            self.metrics.active_writes.dec();
            let error = match put {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => blob::Error::Unavailable {
                    doing: "storing",
                    url: self.store.absolute_url(name),
                    problem: format!("it took longer than write_timeout ({:?})", self.timeout),
                },
            };
            self.metrics.write_failures_total.inc();
            if !error.is_transient() || backoff.failures() >= self.reliability.max_retry_attempts {
                return Err(error);
            }
            let wait = backoff.next(&self.entropy);
            self.metrics.retries_total.inc();
            tracing::warn!(error = %error, blob = name, ?wait, "a blob could not be stored; trying again");
            tokio::time::sleep(wait).await;
        }
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
            let value_blob = match &letter.value {
                Some(value) if letter.size() > self.letter_limit => {
                    let name = name::letter(
                        &self.folder,
                        &letter.source.topic,
                        letter.source.partition,
                        letter.offset,
                    );
                    self.uploader.put(&name, Body::Bytes(value.clone())).await?;
                    Some(name)
                }
                _ => None,
            };
            letter_bytes += if value_blob.is_some() { 1024 } else { letter.size() as u64 };
            letters.push(StoredLetter { letter, value_blob });
        }
        let timer = self.uploader.metrics.write_latency_seconds.start_timer();
        self.uploader.put(&built.delta.blob.name, Body::Bytes(built.stored.clone())).await?;
        timer.observe_duration();
        for (name, body) in built.whole.iter().flat_map(|whole| whole.blobs()) {
            self.uploader.put(name, body).await?;
        }
        Ok(Stored { built, letters, letter_bytes })
    }
}
