//! What the producer of one dataset needs to know.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::shed::Shed;
use crate::blob::Store;
use crate::clock::{Clock, Entropy};
use crate::codec::{Bound, Format, KeyRule};
use crate::error::{Error, ErrorKind, Result};
use crate::format::origin::Origin;
use crate::kafka;
use crate::record::TopicId;
use crate::registry::Registry;
use crate::schema::Schema;
use crate::telemetry::ProducerMetrics;
use crate::view::Cache;

/// Everything that the producer of one dataset needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Dataset name.
    pub dataset: String,
    /// Static membership: `group.instance.id`.
    pub instance_id: String,
    /// Kafka connection.
    pub kafka: kafka::Options,
    /// Source topics, in the configured order.
    pub topics: Vec<String>,
    /// How values are encoded there.
    pub format: Format,
    /// Where keys come from.
    pub key: KeyRule,
    /// How large a record may be.
    pub bound: Bound,
    /// A record that loses to one of its key from another partition becomes a dead letter.
    pub conflict_letters: bool,
    /// The schema registry, where values of the source name their schemas by its ids.
    pub registry: Option<Registry>,
    /// The dataset's own schema.
    pub schema: Arc<Schema>,
    /// Nobody configured it: it is what was announced once, or the registry's newest at the beginning. It changes nothing.
    pub schema_adopted: bool,
    /// It may follow the schema of this fingerprint although it was in force before that one.
    pub schema_replaces: Option<u64>,
    /// Announcement topic.
    pub announcements: String,
    /// Dead-letter topic.
    pub dead_letters: String,
    /// Control topic.
    pub control: String,
    /// Partitions of the announcement topic.
    pub shards: u32,
    /// Create topics that are missing.
    pub create_topics: bool,
    /// Replication factor of topics created; `None`: the broker's default.
    pub replication: Option<i16>,
    /// Partitions of source topics created.
    pub source_partitions: i32,
    /// Root of this instance's own files; the log is in `DIR/log/DATASET`, the cache in `DIR/cache`.
    pub data_dir: PathBuf,
    /// Most bytes of the cache, beyond what is mapped.
    pub cache_bytes: u64,
    /// Blob store.
    pub store: Store,
    /// Batching.
    pub batching: Batching,
    /// Performance.
    pub performance: Performance,
    /// Pacing.
    pub pacing: Pacing,
    /// Spill.
    pub spill: Spill,
    /// Reliability.
    pub reliability: Reliability,
    /// Cleaning.
    pub cleaning: Cleaning,
    /// How often topics are looked at for what has changed in them.
    pub look_every: Duration,
    /// Time and chance.
    pub clock: Clock,
    /// Chance.
    pub entropy: Entropy,
    /// Metrics of this dataset.
    pub metrics: Arc<ProducerMetrics>,
}

/// `[producer.batching]`.
#[derive(Clone, Debug)]
pub struct Batching {
    /// Most records in a version.
    pub max_batch_size: usize,
    /// Most key and value bytes in a version.
    pub max_batch_bytes: u64,
    /// Longest time that a record waits for its batch to fill.
    pub batch_timeout: Duration,
    /// Records in memory beyond which they spill.
    pub max_pending_records: usize,
    /// Pending records that force a flush.
    pub memory_pressure_threshold: usize,
    /// Most memory for records on their way, all stages together; see [`Batching::memory`].
    pub memory_limit: u64,
}

/// How the memory for records on their way is divided.
///
/// ```text
///  fetched ahead   waiting for the fsync   write buffers, at most three   batches, as in the log   and as they are stored
///       1/10               1/20                     3 x 1/12                       1/6                       1/6
/// ```
///
/// The rest, a quarter, is for what each process has whatever it does: clients, buffers, code. None of it is more than helps: a larger limit only means
/// larger batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes that the source's client fetches ahead: at most, and at a limit of 640 MiB, half a second's worth at full
    /// speed.
    pub fetch_ahead: u64,
    /// Bytes that wait for the log's fsync.
    pub log_waiting: u64,
    /// One of the log's write buffers.
    pub write_buffer: usize,
    /// Bytes of log between the log and the announcement: at most two batches, so that one fills while another is
    /// built. Beyond it chunks stay on disk.
    pub batches: u64,
}

/// `[producer.performance]`.
#[derive(Clone, Debug)]
pub struct Performance {
    /// Uploads at a time.
    pub worker_pool_size: usize,
    /// Longest time that one attempt of an upload may take; a second more for each MiB.
    pub write_timeout: Duration,
    /// Versions between snapshots, at least.
    pub snapshot_frequency: u64,
    /// Share of the last snapshot's bytes that the deltas since must have, 0 to 1.
    pub snapshot_min_change: f64,
    /// A snapshot is due after this long whatever changed.
    pub snapshot_max_interval: Duration,
    /// Compress blobs in the store.
    pub enable_compression: bool,
}

/// `[producer.pacing]`; 0 is unlimited.
#[derive(Clone, Debug)]
pub struct Pacing {
    /// Records a second.
    pub max_records_per_second: u32,
    /// Bytes a second.
    pub max_bytes_per_second: u64,
    /// Pressure above which the source pauses.
    pub pressure_high: f64,
}

/// `[producer.spill]`.
#[derive(Clone, Debug)]
pub struct Spill {
    /// Most bytes of records that wait in the log.
    pub max_log_size: u64,
    /// What gives way past it.
    pub shed: Shed,
}

/// What of the store is kept: `storage.keep_snapshots`, `storage.clean_grace`.
#[derive(Clone, Debug)]
pub struct Cleaning {
    /// Snapshots that are kept, with what follows the oldest of them; at least 1.
    pub keep_snapshots: usize,
    /// From the announcement that something is not kept any more to its being deleted.
    pub grace: Duration,
}

/// `[producer.reliability]`.
#[derive(Clone, Debug)]
pub struct Reliability {
    /// Attempts after the first.
    pub max_retry_attempts: u32,
    /// First wait between attempts.
    pub retry_backoff: Duration,
    /// Failures in a row that open a breaker.
    pub circuit_breaker_threshold: u32,
    /// How long it stays open.
    pub circuit_breaker_reset: Duration,
    /// Share of a window's records that may fail for one reason, 0 to 1; 1 is never too many.
    pub misfit_share: f64,
    /// Records in such a window.
    pub misfit_window: u32,
}

/// How often topics are looked at.
pub const DEFAULT_LOOK_EVERY: Duration = Duration::from_secs(5);

/// Longest time for one question to a schema registry.
pub const DEFAULT_REGISTRY_TIMEOUT: Duration = Duration::from_secs(10);
/// Blob files of versions that nobody holds any more are evicted beyond this.
pub const DEFAULT_CACHE_BYTES: u64 = 10 << 30;

impl Options {
    /// What the log must have been written for, to be of use to the history on that announcement topic.
    pub fn origin(&self, announcements: TopicId) -> Origin {
        Origin::of((announcements, &self.announcements), &self.schema, &self.format, &self.key)
    }

    /// Where the log lies.
    pub fn log_dir(&self) -> PathBuf {
        self.data_dir.join("log").join(&self.dataset)
    }

    /// The directory of its blob cache.
    pub fn cache_dir(&self) -> PathBuf {
        self.data_dir.join("cache")
    }

    /// Opens it.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where it cannot be written.
    pub(crate) fn open_cache(&self) -> Result<Cache> {
        let dir = self.cache_dir();
        Cache::open(&dir, self.cache_bytes).map_err(|error| {
            let doing = format!("opening the blob cache in {}", dir.display());
            Error::because(ErrorKind::Config, doing, error)
        })
    }

    /// Static membership wants a name that stays the same over restarts and differs between instances: the host's
    /// name and the data directory, which only one process can hold.
    pub fn default_instance_id(data_dir: &std::path::Path) -> String {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
            .ok()
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .or_else(|| std::env::var("HOSTNAME").ok())
            .unwrap_or_else(|| "stillwell".to_owned());
        let dir = crate::version::Checksum::of(data_dir.as_os_str().as_encoded_bytes());
        format!("{host}-{}", dir.hex())
    }
}

impl Batching {
    /// What of `memory_limit` goes where.
    pub fn memory(&self) -> Memory {
        let limit = self.memory_limit;
        let two_batches = self.max_batch_bytes.saturating_mul(2).max(16 << 20);
        Memory {
            fetch_ahead: (limit / 10).clamp(1 << 20, 64 << 20),
            log_waiting: (limit / 20).clamp(1 << 20, 32 << 20),
            write_buffer: (limit / 12).clamp(1 << 20, 64 << 20) as usize,
            batches: two_batches.min((limit / 6).max(1 << 20)),
        }
    }
}

impl Default for Batching {
    fn default() -> Batching {
        Batching {
            max_batch_size: 1_000,
            max_batch_bytes: 8 << 20,
            batch_timeout: Duration::from_secs(1),
            max_pending_records: 10_000,
            memory_pressure_threshold: 8_000,
            memory_limit: 512 << 20,
        }
    }
}

impl Default for Performance {
    fn default() -> Performance {
        Performance {
            worker_pool_size: 5,
            write_timeout: Duration::from_secs(30),
            snapshot_frequency: 25,
            snapshot_min_change: 0.25,
            snapshot_max_interval: Duration::from_secs(3600),
            enable_compression: true,
        }
    }
}

impl Default for Pacing {
    fn default() -> Pacing {
        Pacing { max_records_per_second: 0, max_bytes_per_second: 0, pressure_high: 0.8 }
    }
}

impl Default for Spill {
    fn default() -> Spill {
        Spill { max_log_size: 10 << 30, shed: Shed::None }
    }
}

impl Default for Cleaning {
    fn default() -> Cleaning {
        Cleaning { keep_snapshots: 4, grace: Duration::from_secs(600) }
    }
}

impl Default for Reliability {
    fn default() -> Reliability {
        Reliability {
            max_retry_attempts: 3,
            retry_backoff: Duration::from_secs(1),
            circuit_breaker_threshold: 10,
            circuit_breaker_reset: Duration::from_secs(30),
            misfit_share: 0.5,
            misfit_window: 1_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_divided_so_that_all_of_it_together_is_within_the_limit() {
        for megabytes in [32, 64, 128, 256, 512, 4_096] {
            for batch in [1 << 20, 8 << 20, 1 << 30] {
                let batching =
                    Batching { memory_limit: megabytes << 20, max_batch_bytes: batch, ..Batching::default() };
                let Memory { fetch_ahead, log_waiting, write_buffer, batches } = batching.memory();
                let all = fetch_ahead + log_waiting + 3 * write_buffer as u64 + 2 * batches;
                assert!(all <= batching.memory_limit / 4 * 3, "{all} of {megabytes} MiB");
            }
        }
        let small = Batching { memory_limit: 1, ..Batching::default() }.memory();
        assert!(small.batches >= 1 << 20, "a chunk fits whatever was configured: {small:?}");
        let usual = Batching::default().memory();
        assert!(usual.fetch_ahead > 50 << 20 && usual.batches == 16 << 20, "{usual:?}");
    }
}
