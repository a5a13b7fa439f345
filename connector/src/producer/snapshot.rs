//! Snapshots: a whole version as one blob with its index, made beside the flow, so that a reader's start does not
//! depend on how many versions there were.
//!
//! Owns: when one is due, and making it, one at a time. Does not own: the merge itself (`view/`), or listing it in an
//! announcement (`announce`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::Performance;
use super::announce::Announced;
use super::build::{COMPRESSION_LEVEL, blob_name};
use super::store::Uploader;
use crate::blob::{self, Body, name};
use crate::clock::Clock;
use crate::failpoint;
use crate::format::container;
use crate::schema::Schema;
use crate::telemetry::ProducerMetrics;
use crate::version::{BlobRef, Life, SnapshotRef, Version};
use crate::view::cache::Temporary;
use crate::view::map::Map;
use crate::view::{self, Base, Cache, Identity, View};

/// How soon a snapshot that failed is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// A chain this long makes a snapshot due whatever changed: it must never pass 512, or readers refuse it.
const LONGEST_CHAIN: usize = 384;

/// A snapshot that is stored, for the next announcement to list.
#[derive(Debug)]
pub struct Snapshotted {
    /// Where it is.
    pub snapshot: SnapshotRef,
}

/// The same snapshot as files on this machine, for the builder to put under its view.
#[derive(Debug)]
pub struct Rebase {
    /// The snapshot, mapped.
    pub base: Arc<Base>,
}

/// Why a snapshot could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The merge failed.
    #[error("merging version {version} into a snapshot")]
    Merge {
        /// The version.
        version: Version,
        /// Why.
        #[source]
        source: view::Error,
    },
    /// It could not be stored.
    #[error("storing the snapshot of version {version}")]
    Store {
        /// The version.
        version: Version,
        /// Why.
        #[source]
        source: blob::Error,
    },
    /// It panicked: a bug.
    #[error("merging a snapshot panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

/// What the rule looks at.
#[derive(Clone, Copy, Debug)]
struct Since {
    versions: u64,
    chain: usize,
    /// Entries of the deltas since.
    entries: u64,
    /// Stored bytes of the deltas since.
    changed_bytes: u64,
    /// Stored bytes of the last snapshot; `None` before the first.
    snapshot_bytes: Option<u64>,
    age: Duration,
    first_load_done: bool,
}

/// Whether a snapshot is due.
fn is_due(since: &Since, rules: &Performance) -> bool {
    // Versions that only say something (positions, a snapshot) add nothing to one, but for the chain's length.
    if since.entries == 0 {
        return since.chain >= LONGEST_CHAIN;
    }
    let Some(snapshot_bytes) = since.snapshot_bytes else {
        // The first one when the first load is done: a snapshot in its midst would be outgrown at once.
        return since.first_load_done
            || since.chain >= LONGEST_CHAIN
            || since.age >= rules.snapshot_max_interval;
    };
    let grown = since.changed_bytes as f64 >= snapshot_bytes as f64 * rules.snapshot_min_change;
    (since.versions >= rules.snapshot_frequency && grown)
        || since.age >= rules.snapshot_max_interval
        || since.chain >= LONGEST_CHAIN
}

fn reached(announced: Option<&Announced>, version: Version) -> bool {
    announced.map_or(Version(0), |announced| announced.version) >= version
}

/// The stage.
pub struct Snapshotter {
    /// Dataset, topic id, shard.
    pub identity: Identity,
    /// This life.
    pub life: Life,
    /// The schema of its versions.
    pub schema: Arc<Schema>,
    /// When one is due; whether to compress.
    pub rules: Performance,
    /// Where its files are made.
    pub cache: Cache,
    /// Uploads.
    pub uploader: Uploader,
    /// The version and the stored bytes of the newest snapshot that recovery found.
    pub last: Option<(Version, u64)>,
    /// One is due whatever the rules say: recovery found the newest one gone.
    pub due: bool,
    /// Time.
    pub clock: Clock,
    /// Metrics.
    pub metrics: Arc<ProducerMetrics>,
}

impl Snapshotter {
    /// Makes snapshots of announced versions as they become due, until `last` says which version is the life's last
    /// and whether to make one of it. A failure costs nothing but time: it is said, and tried again when the next
    /// version is announced. `wanted` says of which version somebody asked for one last.
    pub async fn run(
        mut self,
        mut announced: watch::Receiver<Option<Announced>>,
        mut wanted: watch::Receiver<Option<Version>>,
        listed: mpsc::Sender<Snapshotted>,
        rebases: mpsc::Sender<Rebase>,
        last: impl Future<Output = (Version, bool)>,
    ) {
        let mut last = std::pin::pin!(last);
        let mut last_made = self.clock.now();
        let mut ending = false;
        let mut failed = false;
        let mut asking = true;
        let mut looked = false;
        while !ending {
            // First what is there already: nothing may be announced for long after a takeover.
            if std::mem::replace(&mut looked, true) {
                tokio::select! {
                    (version, wanted) = &mut last => {
                        if !wanted || announced.wait_for(|now| reached(now.as_ref(), version)).await.is_err() {
                            return;
                        }
                        ending = true;
                    }
                    changed = announced.changed() => if changed.is_err() { return },
                    // Who hears of it ends before this does.
                    changed = wanted.changed(), if asking => asking = changed.is_ok(),
                    // After a failure soon again, though nothing new is announced: a chain at its limit lets nothing be.
                    () = tokio::time::sleep(if failed { RETRY } else { self.rules.snapshot_max_interval }) => {}
                }
            }
            let now = announced.borrow_and_update().clone();
            // One of another schema is that of a life before: the version that says the change comes by itself, and readers
            // are spared the change only by a snapshot of that one.
            let of_schema = |now: &Announced| now.view.schema().is_same_as(&self.schema);
            let Some(now) = now.filter(of_schema) else { continue };
            // The newest announcement may be older than the newest snapshot: that of a life before this one.
            if self.last.is_some_and(|(version, _)| now.version <= version) {
                continue;
            }
            let since = self.since(&now, last_made);
            let newest = self.last.map_or(Version(0), |(version, _)| version);
            let asked = wanted.borrow_and_update().is_some_and(|version| version > newest);
            let due =
                if ending { since.entries > 0 } else { is_due(&since, &self.rules) } || self.due || asked;
            if !due {
                continue;
            }
            match self.make(&now).await {
                Ok((snapshot, base)) => {
                    last_made = self.clock.now();
                    (failed, self.due) = (false, false);
                    self.last = Some((snapshot.version, snapshot.blob.bytes));
                    let _ = listed.send(Snapshotted { snapshot }).await;
                    // After it is listed: the rebase mints the version that says so.
                    let _ = rebases.send(Rebase { base }).await;
                }
                Err(error) => {
                    failed = true;
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "no snapshot; the deltas since the last one are still there");
                }
            }
        }
    }

    fn since(&self, now: &Announced, last_made: Instant) -> Since {
        let base = self.last.map_or(Version(0), |(version, _)| version);
        Since {
            versions: now.version.0.saturating_sub(base.0),
            chain: now.chain.deltas,
            entries: now.chain.entries,
            changed_bytes: now.chain.bytes,
            snapshot_bytes: self.last.map(|(_, bytes)| bytes),
            age: self.clock.now().saturating_duration_since(last_made),
            first_load_done: now.caught_up && now.view.records() > 0,
        }
    }

    /// Merges the view of an announced version, stores snapshot and index.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn make(&self, of: &Announced) -> Result<(SnapshotRef, Arc<Base>), Error> {
        let version = of.version;
        let began = self.clock.now();
        let (view, cache, life, compress) =
            (of.view.clone(), self.cache.clone(), self.life, self.rules.enable_compression);
        let merged = tokio::task::spawn_blocking(move || merge(&view, &cache, life, compress))
            .await
            .map_err(Error::Panicked)?
            .map_err(|source| Error::Merge { version, source })?;
        failpoint::pass("snapshot.merged");
        let store = |source| Error::Store { version, source };
        for (name, body) in merged.blobs() {
            self.uploader.put(name, body).await.map_err(store)?;
            failpoint::pass("snapshot.stored");
        }
        failpoint::pass("snapshot.indexed");
        let Merged { snapshot, base, .. } = merged;
        let took = self.clock.now() - began;
        self.metrics.snapshot_seconds.observe(took.as_secs_f64());
        tracing::info!(%version, records = snapshot.records, bytes = snapshot.blob.bytes, ?took, "snapshot stored");
        Ok((snapshot, base))
    }
}

/// A merged snapshot: what the store gets, and what this machine keeps.
#[derive(Debug)]
pub struct Merged {
    /// As it is announced.
    pub snapshot: SnapshotRef,
    base: Arc<Base>,
    body: Upload,
    index: PathBuf,
}

impl Merged {
    /// What goes into the store, by name.
    pub fn blobs(&self) -> [(&str, Body); 2] {
        let index = Body::File(self.index.clone());
        [(&self.snapshot.blob.name, self.body.body()), (&self.snapshot.index.name, index)]
    }
}

/// The snapshot as stored: compressed into a file of its own, or the plain file itself.
#[derive(Debug)]
enum Upload {
    Compressed(Temporary),
    Plain(PathBuf),
}

impl Upload {
    fn body(&self) -> Body {
        Body::File(match self {
            Upload::Compressed(file) => file.path().to_owned(),
            Upload::Plain(path) => path.clone(),
        })
    }
}

/// Merges a view into a snapshot of this version, in files of the cache. Blocking.
///
/// # Errors
/// What [`View::merge_snapshot`] says.
pub fn merge(view: &View, cache: &Cache, life: Life, compress: bool) -> Result<Merged, view::Error> {
    let identity = view.identity();
    let merged = view.merge_snapshot(life, cache)?;
    let (summary, index) = (*merged.summary(), *merged.index());
    let (stored, compressed) = if compress {
        let plain = Map::open(merged.snapshot_path(), summary.plain_bytes)?;
        plain.will_scan();
        let file = cache.temporary(identity)?;
        let failed =
            |source| view::Error::Io { doing: "compressing into", path: file.path().to_owned(), source };
        let mut out = std::io::BufWriter::with_capacity(1 << 20, file.file());
        let stored =
            container::compress(plain.bytes(), COMPRESSION_LEVEL, &mut out).map_err(|error| match error {
                container::Error::Io(source) => failed(source),
                _ => view::Error::Internal("the snapshot that was just written does not read back"),
            })?;
        std::io::Write::flush(&mut out).map_err(failed)?;
        drop(out);
        ((stored.bytes, stored.checksum), Some(file))
    } else {
        ((summary.plain_bytes, summary.plain_checksum), None)
    };
    let version = view.version();
    let blob = |kind, (bytes, checksum), (plain_bytes, plain_checksum)| BlobRef {
        name: blob_name(identity, kind, version, life, checksum),
        bytes,
        checksum,
        plain_bytes,
        plain_checksum,
        location: None,
    };
    let of_index = (index.bytes, index.checksum);
    let snapshot = SnapshotRef {
        version,
        epoch: life.epoch,
        blob: blob(name::Kind::Snapshot, stored, (summary.plain_bytes, summary.plain_checksum)),
        index: blob(name::Kind::Index, of_index, of_index),
        records: summary.counts.upserts,
    };
    let files = merged.keep(cache, identity)?;
    let base = Arc::new(Base::open(&files, identity, &snapshot, view.schema())?);
    let body = match compressed {
        Some(file) => Upload::Compressed(file),
        None => Upload::Plain(files.snapshot.path().to_owned()),
    };
    Ok(Merged { snapshot, base, body, index: files.index.path().to_owned() })
}

#[cfg(test)]
mod tests;
