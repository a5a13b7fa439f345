//! A consumer out of a few words, for who embeds one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::guard::{Bounds, Guard, Guards};
use super::listen::{Listener, Listening};
use super::pin::Fixed;
use super::{Consumer, Options};
use crate::blob::{self, Store, TopicOptions};
use crate::clock::{Clock, Entropy};
use crate::codec::Filter;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka;
use crate::telemetry::ConsumerMetrics;
use crate::version::Version;
use crate::view::{Cache, Hold};

/// Builds a [`Consumer`]. What is not given has the defaults of the configuration file.
#[derive(Clone, Debug)]
pub struct ConsumerBuilder {
    dataset: String,
    kafka: kafka::Options,
    announcements: Option<String>,
    control: Option<String>,
    reader: Option<String>,
    fixed: Option<Fixed>,
    guards: Guards,
    blobs: Option<String>,
    store: Option<Store>,
    cache_dir: PathBuf,
    cache: Option<Cache>,
    cache_size: u64,
    memory_limit: u64,
    serve_stale: bool,
    ready_when_any: bool,
    poll_interval: Duration,
    max_backoff: Duration,
    look_every: Duration,
    control_wait: Duration,
    clock: Clock,
    filter: Option<String>,
    fields: Option<Vec<String>>,
    indexes: Vec<Vec<String>>,
    listeners: Vec<Listening>,
    listener_dir: Option<PathBuf>,
    dead_letters: Option<String>,
}

impl ConsumerBuilder {
    pub(super) fn new(dataset: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder {
            dataset: dataset.into(),
            kafka: kafka::Options { bootstrap_servers: "localhost:9092".into(), ..Default::default() },
            announcements: None,
            control: None,
            reader: None,
            fixed: None,
            guards: Guards::default(),
            blobs: None,
            store: None,
            cache_dir: PathBuf::from("stillwell-cache"),
            cache: None,
            cache_size: super::options::DEFAULT_CACHE_BYTES,
            memory_limit: super::options::DEFAULT_MEMORY_LIMIT,
            serve_stale: false,
            ready_when_any: false,
            poll_interval: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            look_every: super::options::DEFAULT_LOOK_EVERY,
            control_wait: super::options::DEFAULT_CONTROL_WAIT,
            clock: Clock::system(),
            filter: None,
            fields: None,
            indexes: Vec::new(),
            listeners: Vec::new(),
            listener_dir: None,
            dead_letters: None,
        }
    }

    /// Kafka's `bootstrap.servers`. Default `localhost:9092`.
    #[must_use]
    pub fn bootstrap_servers(mut self, servers: impl Into<String>) -> Self {
        self.kafka.bootstrap_servers = servers.into();
        self
    }

    /// Any librdkafka property, for TLS and SASL.
    #[must_use]
    pub fn kafka_property(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.kafka.properties.insert(key.into(), value.into());
        self
    }

    /// All of the Kafka connection.
    #[doc(hidden)]
    #[must_use]
    pub fn kafka(mut self, options: kafka::Options) -> Self {
        self.kafka = options;
        self
    }

    /// Announcement topic. Default `NAME.announcements`.
    #[must_use]
    pub fn announcements(mut self, topic: impl Into<String>) -> Self {
        self.announcements = Some(topic.into());
        self
    }

    /// Control topic, with pins and refusals. Default `NAME.control`.
    #[must_use]
    pub fn control(mut self, topic: impl Into<String>) -> Self {
        self.control = Some(topic.into());
        self
    }

    /// Name under which this reader says on the control topic what it refuses; no two of a dataset should share one.
    /// Default: this machine's name and the cache directory.
    #[must_use]
    pub fn reader(mut self, name: impl Into<String>) -> Self {
        self.reader = Some(name.into());
        self
    }

    /// Holds this version, whatever is announced, and whatever the dataset is pinned to. One that is not announced yet is
    /// waited for.
    #[must_use]
    pub fn version(mut self, version: Version) -> Self {
        self.fixed = Some(Fixed::Version(version));
        self
    }

    /// As [`ConsumerBuilder::version`], with the newest version announced at this time or before.
    #[must_use]
    pub fn at(mut self, time: SystemTime) -> Self {
        let ms = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        self.fixed = Some(Fixed::At(i64::try_from(ms).unwrap_or(i64::MAX)));
        self
    }

    /// Judges each version before it is read: one that is refused is not taken, the last good one stays, and the refusal
    /// stands in status, log and control topic. May be given more than once. A pinned version is not judged.
    ///
    /// ```
    /// # use stillwell::{Consumer, View};
    /// let products = Consumer::builder("products").guard(|_: Option<&View>, next: &View| {
    ///     match next.get("P-100") {
    ///         Ok(Some(_)) => Ok(()),
    ///         _ => Err("P-100 is missing".to_owned()),
    ///     }
    /// });
    /// ```
    #[must_use]
    pub fn guard(mut self, guard: impl Guard + 'static) -> Self {
        self.guards.push(Arc::new(guard));
        self
    }

    /// Refuses versions outside these bounds, as [`ConsumerBuilder::guard`] does.
    #[must_use]
    pub fn bounds(self, bounds: Bounds) -> Self {
        if bounds.is_some() { self.guard(bounds) } else { self }
    }

    /// Blob store of the producer, as a URL that [`Store::open_among`] takes. Default: `file://` and the folder `blobs` beside the cache.
    #[must_use]
    pub fn blobs(mut self, url: impl Into<String>) -> Self {
        self.blobs = Some(url.into());
        self
    }

    /// A store that is open already, as by [`Store::open_with`] with options; needed for `memory://`, which lives in one
    /// process.
    #[must_use]
    pub fn store(mut self, store: Store) -> Self {
        self.store = Some(store);
        self
    }

    /// Where blobs are cached; kept over restarts. Default `stillwell-cache` in the working directory.
    #[must_use]
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache_dir = dir.into();
        self.cache = None;
        self
    }

    /// Uses the cache of another consumer of this process, of the same dataset or of another one, under one budget: what
    /// one of them holds, none of them evicts. (Consumers that are merely given one directory may evict each other's files,
    /// which then have to be fetched again at the next start.)
    #[must_use]
    pub fn cache_of(mut self, other: &Consumer) -> Self {
        self.cache_dir = other.cache().dir().to_owned();
        self.cache = Some(other.cache().clone());
        self
    }

    /// Most bytes of blobs in the cache's directory; what is in use is kept beyond it. Default 10 GiB. With
    /// [`ConsumerBuilder::cache_of`] the other one's counts.
    #[must_use]
    pub fn cache_size(mut self, bytes: u64) -> Self {
        self.cache_size = bytes;
        self
    }

    /// Bytes of memory for what is not mapped from the cache. Changes since the base are merged into it before they take a
    /// quarter of it; the merge itself takes 16 bytes a record while it runs. Default 512 MiB.
    ///
    /// What is let go of, after a merge for one, is freed. When the system gets it back is the matter of your program's
    /// allocator: mimalloc, for one, looks for free pages only when it is asked for memory, which a reader at rest does not
    /// do. The `stillwell` binary calls `mi_collect` twice a second for that.
    #[must_use]
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = bytes;
        self
    }

    /// Serve the cached version while Kafka is away, and at a start before it has answered, unless the cache remembers that
    /// readers are pinned to another one.
    #[must_use]
    pub fn serve_stale(mut self, serve: bool) -> Self {
        self.serve_stale = serve;
        self
    }

    /// Be ready with the first version, though it may hold only part of what the sources held at the beginning.
    #[must_use]
    pub fn ready_when_any(mut self, any: bool) -> Self {
        self.ready_when_any = any;
        self
    }

    /// Longest wait between polls while idle or failing; an announcement ends it at once. Default 5 s.
    #[must_use]
    pub fn max_backoff(mut self, longest: Duration) -> Self {
        self.max_backoff = longest;
        self
    }

    /// Holds only records for which this is true: `"category = 'shoes' and price < 100"` (docs/configuration.md has the
    /// language). Costs a pass over the whole version, unless the cache has what an earlier start made of it, and a lookup for
    /// each entry of a delta.
    #[must_use]
    pub fn filter(mut self, filter: impl Into<String>) -> Self {
        self.filter = Some(filter.into());
        self
    }

    /// Holds only these fields of the outermost record; costs what a filter costs.
    #[must_use]
    pub fn fields<F: Into<String>>(mut self, fields: impl IntoIterator<Item = F>) -> Self {
        self.fields = Some(fields.into_iter().map(Into::into).collect());
        self
    }

    /// An index of one field or several together: records are looked up by their values with [`View::by`] and
    /// [`View::by_all`]. Takes 8 bytes a record in the cache, mapped, and a pass over the version unless the cache has
    /// what an earlier start made of it.
    ///
    /// [`View::by`]: crate::View::by
    /// [`View::by_all`]: crate::View::by_all
    #[must_use]
    pub fn index<F: Into<String>>(mut self, fields: impl IntoIterator<Item = F>) -> Self {
        self.indexes.push(fields.into_iter().map(Into::into).collect());
        self
    }

    /// Acts on the changes of each version, in order: see [`Listener`]. What it has handled is remembered under `name`
    /// (letters, digits, `.`, `_`, `-`), so that a restart goes on where it stopped. At its first start it is given all
    /// records, as changes from nothing.
    #[must_use]
    pub fn listener(self, name: impl Into<String>, listener: impl Listener) -> Self {
        self.listening(Listening::new(name, listener))
    }

    /// The same, with where it begins and how often it is tried.
    #[must_use]
    pub fn listening(mut self, listening: Listening) -> Self {
        self.listeners.push(listening);
        self
    }

    /// Where it is remembered what listeners have handled. Not a cache: without it they begin anew. Default: the folder
    /// `listeners` beside the cache.
    #[must_use]
    pub fn listener_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.listener_dir = Some(dir.into());
        self
    }

    /// Topic of the dead letters of what a listener does not handle. Default `NAME.dlq`, which the producer makes.
    #[must_use]
    pub fn dead_letters(mut self, topic: impl Into<String>) -> Self {
        self.dead_letters = Some(topic.into());
        self
    }

    /// How often the announcement topic is looked at, for whether it is still the same one. Default 1 min.
    #[doc(hidden)]
    #[must_use]
    pub fn look_every(mut self, every: Duration) -> Self {
        self.look_every = every;
        self
    }

    /// How long a cached version is held back while it is not known whether readers are pinned to another one, where Kafka
    /// neither answers nor fails. Default 2 s.
    #[doc(hidden)]
    #[must_use]
    pub fn control_wait(mut self, longest: Duration) -> Self {
        self.control_wait = longest;
        self
    }

    /// Another clock than the system's.
    #[doc(hidden)]
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Starts it; returns when a version is readable.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a store or directory that cannot be opened, or a filter that is none.
    pub async fn start(self) -> Result<Consumer> {
        let consumer = self.spawn()?;
        consumer.ready().await?;
        Ok(consumer)
    }

    /// Starts it without waiting for a version. Needs a tokio runtime.
    ///
    /// # Errors
    /// As [`ConsumerBuilder::start`].
    pub fn spawn(self) -> Result<Consumer> {
        let store = match self.store {
            Some(store) => store,
            None => {
                let url = self.blobs.unwrap_or_else(|| {
                    let beside = self.cache_dir.parent().unwrap_or(&self.cache_dir).join("blobs");
                    format!("file://{}", beside.display())
                });
                let doing = format!("opening the blob store {url}");
                let topic = TopicOptions { kafka: self.kafka.clone(), create: false, replication: None };
                Store::open_among(&url, &blob::Options::default(), &topic)
                    .map_err(|error| Error::because(ErrorKind::Config, doing, error))?
            }
        };
        let filter = self.filter.as_deref().map(Filter::parse).transpose().map_err(|error| {
            Error::because(
                ErrorKind::Config,
                format!("the filter of the consumer of {}", self.dataset),
                error,
            )
        })?;
        let reader = self.reader.unwrap_or_else(|| super::options::default_reader(&self.cache_dir));
        let control = self.control.unwrap_or_else(|| format!("{}.control", self.dataset));
        let announcements = self.announcements.unwrap_or_else(|| format!("{}.announcements", self.dataset));
        let beside = |name| self.cache_dir.parent().unwrap_or(&self.cache_dir).join(name);
        let listener_dir = self.listener_dir.unwrap_or_else(|| beside("listeners"));
        let dead_letters = self.dead_letters.unwrap_or_else(|| format!("{}.dlq", self.dataset));
        let options = Options {
            listeners: self.listeners,
            listener_dir,
            dead_letters,
            metrics: ConsumerMetrics::detached(),
            dataset: self.dataset,
            kafka: self.kafka,
            announcements,
            control,
            reader,
            fixed: self.fixed,
            guards: self.guards,
            store,
            cache_dir: self.cache_dir,
            cache_bytes: self.cache_size,
            poll_interval: self.poll_interval,
            max_backoff: self.max_backoff,
            look_every: self.look_every,
            control_wait: self.control_wait,
            max_errors_per_minute: super::options::DEFAULT_MAX_ERRORS_PER_MINUTE,
            freshness_slo: None,
            hold: Arc::new(Hold::new(filter, self.fields, self.indexes)),
            memory_limit: self.memory_limit,
            ready_when_any: self.ready_when_any,
            serve_stale: self.serve_stale,
            clock: self.clock,
            entropy: Entropy::system(),
        };
        Consumer::spawn_in(options, self.cache)
    }
}
