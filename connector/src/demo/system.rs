//! The system under demonstration: an embedded broker, a producer, and consumers that join one after the other.
//!
//! Owns: the order in which they start and stop, and the folder for their files. Does not own: what they are fed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::feed::Feed;
use super::{Error, Options};
use crate::blob::{self, Store};
use crate::clock::{Clock, Entropy};
use crate::codec::Bound;
use crate::dead::replay;
use crate::error::ErrorKind;
use crate::host::{Dataset, Directory, ReadingSide, Writes, WritingSide};
use crate::http::{App, Listener};
use crate::kafka::{self, Cluster};
use crate::producer::{Batching, Farewell, Performance};
use crate::telemetry::{ConsumerMetrics, Metrics, ProducerMetrics};
use crate::version::Shard;
use crate::{Consumer, Producer, consumer, producer};

/// Dataset, and source topic.
pub(super) const DATASET: &str = "products";
/// Partitions of the source topic.
pub(super) const PARTITIONS: usize = 3;
/// The consumers; the first is there from the beginning.
pub(super) const CONSUMERS: [&str; 2] = ["early", "late"];

/// Everything that runs.
pub(super) struct System {
    pub(super) producer: Producer,
    pub(super) consumers: Vec<Consumer>,
    pub(super) kafka: kafka::Options,
    pub(super) store: Store,
    pub(super) metrics: Metrics,
    pub(super) wrote: Arc<ProducerMetrics>,
    /// Where HTTP is served.
    pub(super) serving: Option<SocketAddr>,
    front: JoinSet<crate::Result<()>>,
    stop_front: CancellationToken,
    clock: Clock,
    entropy: Entropy,
    // Dropped in this order: nobody uses the folder, or the broker, any more.
    folder: Folder,
    _cluster: Cluster,
}

impl System {
    /// Starts broker, producer and first consumer.
    pub(super) async fn start(feed: &Feed, options: &Options) -> Result<System, Error> {
        let (clock, entropy) = (options.clock.clone(), options.entropy.clone());
        let listener = match &options.listen {
            Some(address) => Some(
                Listener::bind_as("--listen", address)
                    .await
                    .map_err(|source| Error::Part { part: "HTTP cannot be served", source })?,
            ),
            None => None,
        };
        let folder = Folder::make(&entropy)?;
        let failed = |doing: &str| {
            let doing = doing.to_owned();
            move |source| Error::Kafka { doing, source }
        };
        let cluster = Cluster::start(1).map_err(failed("starting the embedded broker"))?;
        let topics = [
            (DATASET.to_owned(), PARTITIONS as i32),
            (announcements(), 1),
            (letters(), 1),
            (format!("{DATASET}.control"), 1),
        ];
        for (topic, partitions) in topics {
            cluster.create_topic(&topic, partitions).map_err(failed("making the demo's topics"))?;
        }
        let kafka = cluster.options("stillwell-demo");
        let store = Store::open("memory://").map_err(|error| {
            let source = crate::Error::because(error.kind(), "opening memory://", error);
            Error::Part { part: "the blob store does not open", source }
        })?;
        let metrics = Metrics::new();
        let wrote = metrics.producer(DATASET, Shard(0));
        let (format, key) = feed.rules();
        let producer = Producer::start(producer::Options {
            dataset: DATASET.to_owned(),
            instance_id: "demo".to_owned(),
            kafka: kafka.clone(),
            topics: vec![DATASET.to_owned()],
            format,
            key,
            bound: Bound::default(),
            conflict_letters: false,
            registry: None,
            schema: feed.schema().clone(),
            schema_adopted: false,
            schema_replaces: None,
            announcements: announcements(),
            dead_letters: letters(),
            control: format!("{DATASET}.control"),
            shards: 1,
            create_topics: false,
            replication: None,
            source_partitions: PARTITIONS as i32,
            look_every: crate::producer::options::DEFAULT_LOOK_EVERY,
            data_dir: folder.path().join("producer"),
            cache_bytes: CACHE_BYTES,
            store: store.clone(),
            batching: Batching {
                max_batch_size: 5_000,
                batch_timeout: Duration::from_millis(50),
                ..Batching::default()
            },
            performance: Performance::default(),
            pacing: producer::Pacing::default(),
            spill: producer::Spill::default(),
            reliability: producer::Reliability::default(),
            cleaning: producer::Cleaning::default(),
            clock: clock.clone(),
            entropy: entropy.clone(),
            metrics: wrote.clone(),
        })
        .await
        .map_err(|source| Error::Part { part: "the producer does not start", source })?;
        let mut system = System {
            producer,
            consumers: Vec::new(),
            kafka,
            store,
            metrics,
            wrote,
            serving: listener.as_ref().map(Listener::address),
            front: JoinSet::new(),
            stop_front: CancellationToken::new(),
            clock,
            entropy,
            folder,
            _cluster: cluster,
        };
        system.join()?;
        if let Some(listener) = listener {
            system.serve(listener);
        }
        Ok(system)
    }

    /// Serves the first consumer's views, as `run` would.
    fn serve(&mut self, listener: Listener) {
        let metrics = self.metrics.consumer(DATASET, Shard(0));
        let reading = self.consumers.first().map(|first| {
            ReadingSide::new(
                first.reader().clone(),
                metrics,
                consumer::options::DEFAULT_MAX_ERRORS_PER_MINUTE,
            )
        });
        let log_dir = self.folder.path().join("producer").join("log").join(DATASET);
        let writing = WritingSide::new(&self.producer, self.wrote.clone(), log_dir);
        let writes = Writes { side: Some(writing), ..Writes::default() };
        let directory = Directory::new([Dataset::new(DATASET, reading, Some(writes))], self.clock.clone());
        let router = App::new(directory, self.metrics.clone(), self.clock.clone()).router();
        self.front.spawn(listener.serve(router, self.stop_front.clone()));
    }

    /// What replays the letters.
    pub(super) fn replay(&self, feed: &Feed) -> replay::Options {
        let (format, key) = feed.rules();
        replay::Options {
            kafka: self.kafka.clone(),
            dataset: DATASET.to_owned(),
            topics: vec![DATASET.to_owned()],
            key,
            bound: Bound::default(),
            format,
            registry: None,
            schema: feed.schema().clone(),
            letters: letters(),
            store: self.store.clone(),
            clock: self.clock.clone(),
        }
    }

    /// Starts the next consumer: with a cache of its own, as if on another machine.
    pub(super) fn join(&mut self) -> Result<(), Error> {
        let Some(name) = CONSUMERS.get(self.consumers.len()) else { return Ok(()) };
        // The first one's metrics are those that /metrics shows, as its views are those that are served.
        let metrics = match self.consumers.is_empty() {
            true => self.metrics.consumer(DATASET, Shard(0)),
            false => ConsumerMetrics::detached(),
        };
        let consumer = Consumer::spawn(consumer::Options {
            dataset: DATASET.to_owned(),
            kafka: self.kafka.clone(),
            announcements: announcements(),
            control: format!("{DATASET}.control"),
            reader: (*name).to_owned(),
            fixed: None,
            guards: consumer::Guards::default(),
            store: self.store.clone(),
            cache_dir: self.folder.path().join(name),
            cache_bytes: CACHE_BYTES,
            poll_interval: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            look_every: crate::consumer::options::DEFAULT_LOOK_EVERY,
            control_wait: crate::consumer::options::DEFAULT_CONTROL_WAIT,
            max_errors_per_minute: 10,
            freshness_slo: None,
            hold: std::sync::Arc::default(),
            listeners: Vec::new(),
            listener_dir: self.folder.path().join("listeners"),
            dead_letters: letters(),
            memory_limit: 512 << 20,
            ready_when_any: false,
            serve_stale: false,
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            metrics,
        })
        .map_err(|source| Error::Part { part: "a consumer does not start", source })?;
        self.consumers.push(consumer);
        Ok(())
    }

    /// Stops the producer, then the consumers; then folder and broker go.
    pub(super) async fn stop(self) -> Result<Farewell, Error> {
        let System { producer, consumers, mut front, stop_front, .. } = self;
        stop_front.cancel();
        // An answer that somebody reads slowly is no reason to stay.
        let _ = tokio::time::timeout(FRONT, async { while front.join_next().await.is_some() {} }).await;
        let farewell = producer
            .shutdown()
            .await
            .map_err(|source| Error::Part { part: "the producer does not stop as it should", source })?;
        for consumer in consumers {
            consumer
                .shutdown()
                .await
                .map_err(|source| Error::Part { part: "a consumer does not stop as it should", source })?;
        }
        Ok(farewell)
    }
}

/// How long answers under way may take when it ends.
const FRONT: Duration = Duration::from_secs(2);
/// More than the demo can need.
const CACHE_BYTES: u64 = 1 << 30;

pub(super) fn announcements() -> String {
    format!("{DATASET}.announcements")
}

pub(super) fn letters() -> String {
    format!("{DATASET}.dlq")
}

/// What lies in a store, by kind of blob.
pub(super) async fn blobs(store: &Store) -> Result<super::Blobs, Error> {
    let listed = store.list("").await.map_err(|error: blob::Error| {
        let source = crate::Error::because(error.kind(), "listing memory://", error);
        Error::Part { part: "the blob store does not answer", source }
    })?;
    let mut blobs = super::Blobs::default();
    for blob in listed {
        if blob.name.ends_with(blob::name::Kind::Delta.suffix()) {
            blobs.deltas += 1;
            blobs.delta_bytes += blob.bytes;
        } else {
            blobs.snapshots += u64::from(blob.name.ends_with(blob::name::Kind::Snapshot.suffix()));
            blobs.snapshot_bytes += blob.bytes;
        }
    }
    Ok(blobs)
}

/// A folder for the system's files, gone with the value.
struct Folder(PathBuf);

impl Folder {
    fn make(entropy: &Entropy) -> Result<Folder, Error> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = std::env::temp_dir().join(format!("stillwell-demo-{:016x}", entropy.next_u64()));
        // Nobody else's business, and an error where it exists: somebody else made it.
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(Error::Folder)?;
        Ok(Folder(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // After a stop that could not wait, a thread may write a last file while they go.
        let mut removed = Ok(());
        for _ in 0..8 {
            removed = std::fs::remove_dir_all(&self.0);
            if removed.is_ok() {
                return;
            }
        }
        if let Err(error) = removed {
            tracing::warn!(folder = %self.0.display(), %error, "the demo's files stay behind");
        }
    }
}

/// The kind of an error that says a part has ended though nobody told it to.
pub(super) fn ended_early() -> crate::Error {
    crate::Error::new(ErrorKind::Internal, "it ended though nobody told it to")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_goes_with_its_value() {
        let folder = Folder::make(&Entropy::system()).unwrap();
        let path = folder.path().to_owned();
        std::fs::write(path.join("file"), "x").unwrap();
        drop(folder);
        assert!(!path.exists());
    }
}
