//! What the consumer of one dataset needs to know.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::blob::Store;
use crate::clock::{Clock, Entropy};
use crate::kafka;
use crate::telemetry::ConsumerMetrics;
use crate::view::Hold;

/// Blob files of versions that nobody holds any more are evicted beyond this.
pub const DEFAULT_CACHE_BYTES: u64 = 10 << 30;

/// How often topics are looked at.
pub const DEFAULT_LOOK_EVERY: Duration = Duration::from_secs(60);

/// Errors a minute beyond which a dataset is unhealthy, where nothing else is configured.
pub const DEFAULT_MAX_ERRORS_PER_MINUTE: u32 = 10;

/// Everything that the consumer of one dataset needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Dataset name.
    pub dataset: String,
    /// Kafka connection.
    pub kafka: kafka::Options,
    /// Announcement topic.
    pub announcements: String,
    /// Blob store.
    pub store: Store,
    /// Where blobs are cached.
    pub cache_dir: PathBuf,
    /// Most bytes of the cache, beyond what is mapped.
    pub cache_bytes: u64,
    /// Shortest wait between polls.
    pub poll_interval: Duration,
    /// Longest wait between polls, while idle or failing.
    pub max_backoff: Duration,
    /// How often the announcement topic is looked at, for whether it is still the same one.
    pub look_every: Duration,
    /// Errors a minute that make it unhealthy.
    pub max_errors_per_minute: u32,
    /// From source timestamp to readable: what is worse is said by health.
    pub freshness_slo: Option<Duration>,
    /// What is held of the dataset, and by what it is found.
    pub hold: Arc<Hold>,
    /// Bytes of memory and cache.
    pub memory_limit: u64,
    /// `start` returns on the first version (`false`: on the first caught-up one).
    pub ready_when_any: bool,
    /// Serve a cached version while Kafka is away.
    pub serve_stale: bool,
    /// Time.
    pub clock: Clock,
    /// Chance.
    pub entropy: Entropy,
    /// Metrics of this dataset.
    pub metrics: Arc<ConsumerMetrics>,
}
