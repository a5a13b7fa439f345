//! What the consumer of one dataset needs to know.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::guard::Guards;
use super::history::Topics;
use super::listen::Listening;
use super::pin::Fixed;
use crate::blob::Store;
use crate::clock::{Clock, Entropy};
use crate::kafka;
use crate::kafka::allowed::{Need, On, Operation};
use crate::telemetry::ConsumerMetrics;
use crate::view::Hold;

/// Blob files of versions that nobody holds any more are evicted beyond this.
pub const DEFAULT_CACHE_BYTES: u64 = 10 << 30;

/// Memory for what is not mapped, where nothing else is said.
pub const DEFAULT_MEMORY_LIMIT: u64 = 512 << 20;

/// How often topics are looked at.
pub const DEFAULT_LOOK_EVERY: Duration = Duration::from_secs(60);

/// How long a version out of the cache waits for the control topic to be read, where Kafka neither answers nor fails.
pub const DEFAULT_CONTROL_WAIT: Duration = Duration::from_secs(2);

/// Errors a minute beyond which a dataset is unhealthy, where nothing else is configured.
pub const DEFAULT_MAX_ERRORS_PER_MINUTE: u32 = 10;

/// This machine's name and where it caches: what tells readers apart that were given no name.
pub fn default_reader(cache_dir: &Path) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let cache = std::path::absolute(cache_dir).unwrap_or_else(|_| cache_dir.to_owned());
    format!("{}:{}", host.trim(), cache.display())
}

/// Everything that the consumer of one dataset needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Dataset name.
    pub dataset: String,
    /// Kafka connection.
    pub kafka: kafka::Options,
    /// Announcement topic.
    pub announcements: String,
    /// Control topic.
    pub control: String,
    /// Name of this reader, under which it says what it refuses: no two of a dataset should share one.
    pub reader: String,
    /// Hold this version, whatever is announced, and whatever the dataset is pinned to.
    pub fixed: Option<Fixed>,
    /// What a version has to pass before it is read.
    pub guards: Guards,
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
    /// How long a version out of the cache is not shown until it is known whether readers are pinned to another one, where
    /// Kafka neither answers nor fails.
    pub control_wait: Duration,
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
    /// Who acts on changes.
    pub listeners: Vec<Listening>,
    /// Where it is written down what they have handled.
    pub listener_dir: PathBuf,
    /// Topic of the dead letters of what they do not handle.
    pub dead_letters: String,
    /// Time.
    pub clock: Clock,
    /// Chance.
    pub entropy: Entropy,
    /// Metrics of this dataset.
    pub metrics: Arc<ConsumerMetrics>,
}

impl Options {
    /// What this reader's user needs to be allowed; docs/operations.md has the same list.
    pub fn needs(&self) -> Vec<Need> {
        let mut needs = self.topics().needs();
        let mut write = |topic: &String, without| {
            needs.push(Need { on: On::Topic(topic.clone()), operation: Operation::Write, without });
        };
        if !self.guards.is_empty() {
            write(&self.control, "what its guard refuses is not published");
        }
        if !self.listeners.is_empty() {
            write(&self.dead_letters, "a change that cannot be handed over stops its webhook or listener");
        }
        needs
    }

    /// Where the dataset's topics lie.
    pub fn topics(&self) -> Topics {
        Topics {
            dataset: self.dataset.clone(),
            kafka: self.kafka.clone(),
            announcements: self.announcements.clone(),
            control: self.control.clone(),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
        }
    }
}
