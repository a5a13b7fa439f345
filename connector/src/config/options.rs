//! What each room is given: its own options, made of the configuration.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::Config;
use super::mistakes::Place;
use super::model::{Bounds, DatasetModel, Held, Producer, SchemaRegistry, Webhook};
use super::values::Secret;
use crate::blob::{Store, TopicOptions};
use crate::clock::{Clock, Entropy};
use crate::codec::{Bound, Filter, Values};
use crate::consumer::listen::{Begin, Listening, Tries};
use crate::telemetry::Metrics;
use crate::telemetry::log::{Form, Level};
use crate::version::{Shard, Version};
use crate::view::Hold;
use crate::words::instead;
use crate::{Error, ErrorKind, Result};
use crate::{consumer, kafka, producer};

/// What the options of all datasets have in common.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Opened once: each opening of `memory://` is another store.
    pub store: Store,
    /// Where the rooms' metrics are shown.
    pub metrics: Metrics,
    /// Time.
    pub clock: Clock,
    /// Chance.
    pub entropy: Entropy,
}

/// Which sides a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Both.
    Both,
    /// Writes versions.
    Producer,
    /// Reads them.
    Consumer,
}

impl Config {
    /// Opens the blob store.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where it cannot be.
    pub fn store(&self) -> Result<Store> {
        self.store_made(self.model().kafka.create_topics)
    }

    /// As [`Config::store`]; whether its topic may be made, where it is one.
    ///
    /// # Errors
    /// As [`Config::store`].
    pub fn store_made(&self, create: bool) -> Result<Store> {
        let url = &self.model().storage.blobs;
        let replication = self.model().kafka.replication_factor;
        let topic = TopicOptions { kafka: self.kafka(), create, replication };
        Store::open_among(url, &self.model().options, &topic).map_err(|error| {
            let place = self.place_of("storage.blobs");
            Error::because(
                ErrorKind::Config,
                format!("cannot open the blob store (storage.blobs, {place})"),
                error,
            )
        })
    }

    /// How to reach Kafka.
    pub fn kafka(&self) -> kafka::Options {
        let mut properties = self.model().properties.0.clone();
        let interval = self.model().monitoring.metrics_interval.0;
        properties.insert("statistics.interval.ms".to_owned(), interval.as_millis().to_string());
        kafka::Options {
            bootstrap_servers: self.model().kafka.bootstrap_servers.clone(),
            properties,
            client_id: self.model().kafka.client_id.clone(),
            reach: self.reach.clone(),
            tokens: self.tokens.clone(),
            ..kafka::Options::default()
        }
    }

    /// Whether there is such a dataset.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] where there is none, with what there is.
    pub fn has(&self, name: &str) -> Result<()> {
        self.dataset(name).map(drop)
    }

    fn dataset(&self, name: &str) -> Result<&DatasetModel> {
        let datasets = &self.model().datasets;
        datasets.get(name).ok_or_else(|| {
            let hint = instead(name, datasets.keys().map(String::as_str));
            Error::new(ErrorKind::Rejected, format!("no dataset {name:?} in {}; {hint}", self.file()))
        })
    }

    /// What the producer of a dataset needs.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] where there is no such dataset.
    pub fn producer(&self, name: &str, shared: &Shared) -> Result<producer::Options> {
        let dataset = self.dataset(name)?;
        let reading = self.reading(name);
        let kafka = &self.model().kafka;
        let Producer { batching, performance, pacing, spill, reliability } = &dataset.producer;
        Ok(producer::Options {
            dataset: name.to_owned(),
            instance_id: self.model().process.instance_id.clone(),
            kafka: self.kafka().measured(&shared.metrics, &format!("{name}/{}", Shard(0))),
            topics: dataset.source.topics.clone(),
            format: reading.format.clone(),
            key: reading.key.clone(),
            registry: self.registry().filter(|_| reading.format.asks_registry()).cloned(),
            schema: reading.schema.clone(),
            schema_adopted: dataset.own.schema.is_none()
                && matches!(reading.format.values, Values::Registered(_)),
            schema_replaces: dataset.own.schema_replaces.as_deref().and_then(fingerprint),
            bound: Bound::of(dataset.own.max_record_size.0),
            conflict_letters: dataset.own.conflict_letters,
            announcements: dataset.own.announcements.clone(),
            dead_letters: dataset.own.dead_letters.clone(),
            control: format!("{name}.control"),
            source_partitions: dataset.source.partitions,
            cache_bytes: self.model().storage.cache_size.0,
            shards: dataset.own.shards,
            create_topics: kafka.create_topics,
            replication: kafka.replication_factor,
            data_dir: self.data_dir(),
            store: shared.store.clone(),
            batching: producer::Batching {
                max_batch_size: batching.max_batch_size,
                max_batch_bytes: batching.max_batch_bytes.0,
                batch_timeout: batching.batch_timeout.0,
                max_pending_records: batching.max_pending_records,
                memory_pressure_threshold: batching.memory_pressure_threshold,
                memory_limit: batching.memory_limit.0,
            },
            performance: producer::Performance {
                worker_pool_size: performance.worker_pool_size,
                write_timeout: performance.write_timeout.0,
                snapshot_frequency: performance.snapshot_frequency,
                snapshot_min_change: performance.snapshot_min_change.0,
                snapshot_max_interval: performance.snapshot_max_interval.0,
                enable_compression: performance.enable_compression,
            },
            pacing: producer::Pacing {
                max_records_per_second: pacing.max_records_per_second,
                max_bytes_per_second: pacing.max_bytes_per_second.0,
                pressure_high: pacing.pressure_high,
            },
            spill: producer::Spill {
                max_log_size: spill.max_log_size.0,
                // One of the words, or loading it would have failed.
                shed: spill.shed.parse().unwrap_or_default(),
            },
            reliability: producer::Reliability {
                max_retry_attempts: reliability.max_retry_attempts,
                retry_backoff: reliability.retry_backoff.0,
                circuit_breaker_threshold: reliability.circuit_breaker_threshold,
                circuit_breaker_reset: reliability.circuit_breaker_reset.0,
                misfit_share: reliability.misfit_share.0,
                misfit_window: reliability.misfit_window,
            },
            cleaning: producer::Cleaning {
                keep_snapshots: self.model().storage.keep_snapshots as usize,
                grace: self.model().storage.clean_grace.0,
            },
            look_every: producer::options::DEFAULT_LOOK_EVERY,
            clock: shared.clock.clone(),
            entropy: shared.entropy.clone(),
            metrics: shared.metrics.producer(name, Shard(0)),
        })
    }

    /// What the consumer of a dataset needs.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] where there is no such dataset.
    pub fn consumer(&self, name: &str, shared: &Shared) -> Result<consumer::Options> {
        let dataset = self.dataset(name)?;
        let consumer = &self.model().consumer;
        let http = &self.model().http;
        Ok(consumer::Options {
            dataset: name.to_owned(),
            // Both sides have a tail: told apart, since they may run in one process.
            kafka: self.kafka().measured(&shared.metrics, &format!("{name}/{}/consumer", Shard(0))),
            announcements: dataset.own.announcements.clone(),
            control: format!("{name}.control"),
            reader: self.model().process.instance_id.clone(),
            fixed: match (&dataset.consumer.version, &dataset.consumer.at) {
                (Some(version), _) => Some(consumer::Fixed::Version(Version(*version))),
                (None, Some(at)) => Some(consumer::Fixed::At(at.0)),
                (None, None) => None,
            },
            guards: guards(&dataset.bounds),
            store: shared.store.clone(),
            cache_dir: self.data_dir().join("cache"),
            cache_bytes: self.model().storage.cache_size.0,
            poll_interval: consumer.poll_interval.0,
            max_backoff: consumer.max_backoff.0,
            look_every: consumer::options::DEFAULT_LOOK_EVERY,
            control_wait: consumer::options::DEFAULT_CONTROL_WAIT,
            max_errors_per_minute: consumer.max_errors_per_minute,
            freshness_slo: dataset.own.freshness_slo.map(|slo| slo.0),
            hold: Arc::new(dataset.consumer.hold()),
            memory_limit: consumer.memory_limit.0,
            ready_when_any: http.ready_when == "any",
            serve_stale: http.serve_stale,
            listeners: listeners(&dataset.webhook, &shared.clock)?,
            listener_dir: self.data_dir().join("listeners"),
            dead_letters: dataset.own.dead_letters.clone(),
            clock: shared.clock.clone(),
            entropy: shared.entropy.clone(),
            metrics: shared.metrics.consumer(name, Shard(0)),
        })
    }

    /// Root of this instance's own files.
    pub fn data_dir(&self) -> PathBuf {
        self.model().storage.data_dir.clone()
    }

    /// Where HTTP listens in this role; `None`: nowhere. A producer alone, whose `http.listen` is not given, listens
    /// on its health check port instead.
    pub fn listen(&self, role: Role) -> Option<SocketAddr> {
        let listen = self.model().http.listen.0;
        let given = !matches!(self.place_of("http.listen"), Place::Default | Place::Profile(_));
        match listen {
            Some(address) if role == Role::Producer && !given => {
                Some(SocketAddr::new(address.ip(), self.model().monitoring.health_check_port))
            }
            listen => listen,
        }
    }

    /// Form and level of log lines.
    pub fn log(&self) -> (Form, Level) {
        let log = &self.model().log;
        (log.format.parse().unwrap_or_default(), log.level.parse().unwrap_or_default())
    }
}

impl Held {
    /// As the reading side has it. A filter was read when it was checked.
    pub fn hold(&self) -> Hold {
        let filter = self.filter.as_deref().and_then(|filter| Filter::parse(filter).ok());
        Hold::new(filter, self.fields.clone(), self.indexes.clone().unwrap_or_default())
    }
}

fn guards(bounds: &Bounds) -> consumer::Guards {
    let bounds = consumer::Bounds {
        min_records: bounds.min_records,
        max_records: bounds.max_records,
        max_bytes: bounds.max_bytes.map(|size| size.0),
        max_change: bounds.max_change.map(|share| share.0),
    };
    let mut guards = consumer::Guards::default();
    if bounds.is_some() {
        guards.push(Arc::new(bounds));
    }
    guards
}

/// The schema registry, where there is one.
pub(super) fn registry(model: &SchemaRegistry) -> Option<crate::registry::Options> {
    let urls = model.url.as_ref()?.split(',').map(|url| url.trim().to_owned()).collect();
    let secret = |secret: &Secret| secret.expose().to_owned();
    Some(crate::registry::Options {
        urls,
        user: model.user.clone().zip(model.password.as_ref().map(secret)),
        token: model.token.as_ref().map(secret),
        ca_file: model.ca_file.clone(),
        identity: model.certificate_file.clone().zip(model.key_file.clone()),
        timeout: model.timeout.0,
    })
}

/// A dataset's webhook, where it has one.
pub(super) fn webhook(webhook: &Webhook) -> Option<crate::webhook::Options> {
    Some(crate::webhook::Options {
        url: webhook.url.as_ref()?.expose().to_owned(),
        secret: webhook.secret.as_ref().map(|secret| secret.expose().to_owned()),
        headers: webhook.headers.iter().flatten().map(|header| header.expose().to_owned()).collect(),
        timeout: webhook.timeout.0,
    })
}

fn listeners(model: &Webhook, clock: &Clock) -> Result<Vec<Listening>> {
    let Some(options) = webhook(model) else { return Ok(Vec::new()) };
    let begin = match model.start.as_str() {
        "newest" => Begin::Newest,
        _ => Begin::Everything,
    };
    let tries = Tries {
        more: model.max_retry_attempts,
        first_wait: model.retry_backoff.0,
        longest_wait: model.max_backoff.0,
        breaker_threshold: model.circuit_breaker_threshold,
        breaker_reset: model.circuit_breaker_reset.0,
    };
    let listening = Listening::webhook(&options, model.batch_size, begin, tries, clock.clone());
    let listening =
        listening.map_err(|error| Error::because(ErrorKind::Config, "preparing the webhook", error))?;
    Ok(vec![listening])
}

/// Entropy and clock of the system.
impl Shared {
    /// On the system's clock and chance.
    ///
    /// # Errors
    /// As [`Config::store`].
    pub fn system(config: &Config, metrics: Metrics) -> Result<Shared> {
        Ok(Shared { store: config.store()?, metrics, clock: Clock::system(), entropy: Entropy::system() })
    }
}

/// Out of 16 hexadecimal digits.
pub(super) fn fingerprint(text: &str) -> Option<u64> {
    (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// The schema of a dataset, for commands that read without a producer.
impl Config {
    /// See [`crate::schema::Schema`].
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] where there is no such dataset.
    pub fn schema(&self, name: &str) -> Result<Arc<crate::schema::Schema>> {
        self.dataset(name)?;
        Ok(self.reading(name).schema.clone())
    }
}
