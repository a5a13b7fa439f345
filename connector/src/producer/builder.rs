//! A producer out of a few words, for who embeds one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Producer;
use super::options::{
    Batching, Cleaning, DEFAULT_CACHE_BYTES, DEFAULT_LOOK_EVERY, DEFAULT_REGISTRY_TIMEOUT, Options, Pacing,
    Performance, Reliability, Spill,
};
use crate::blob::{self, Store, TopicOptions};
use crate::clock::{Clock, Entropy};
use crate::codec::proto::Message;
use crate::codec::{Bound, Envelope, ExtraFields, Format, KeyFormat, KeyRule, Kind};
use crate::error::{Error, ErrorKind, Result};
use crate::kafka;
use crate::registry::{self, Registry};
use crate::schema::Schema;
use crate::telemetry::ProducerMetrics;

/// How the values of the source topics are encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Encoding {
    Json,
    /// With schema ids that are checked.
    CheckedJson,
    Avro,
    /// The descriptor set, and the type's name.
    Protobuf(Vec<u8>, String),
    /// With schema ids.
    Registered(Kind),
    Raw,
}

/// Builds a [`Producer`]. What is not given has the defaults of the configuration file.
#[derive(Clone, Debug)]
pub struct ProducerBuilder {
    dataset: String,
    instance_id: Option<String>,
    kafka: kafka::Options,
    topics: Vec<String>,
    encoding: Encoding,
    keys: KeyFormat,
    envelope: Envelope,
    others: Vec<(String, Format)>,
    key: KeyRule,
    bound: Bound,
    conflict_letters: bool,
    registry: Option<registry::Options>,
    schema: Option<String>,
    schema_replaces: Option<u64>,
    schema_file: Option<PathBuf>,
    data_dir: PathBuf,
    blobs: Option<String>,
    store: Option<Store>,
    batching: Batching,
    performance: Performance,
    pacing: Pacing,
    spill: Spill,
    metrics: Arc<ProducerMetrics>,
    reliability: Reliability,
    cleaning: Cleaning,
    announcements: Option<String>,
    look_every: Duration,
}

impl ProducerBuilder {
    pub(super) fn new(dataset: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder {
            dataset: dataset.into(),
            instance_id: None,
            kafka: kafka::Options { bootstrap_servers: "localhost:9092".into(), ..Default::default() },
            topics: Vec::new(),
            encoding: Encoding::Json,
            keys: KeyFormat::Raw,
            envelope: Envelope::Upsert,
            others: Vec::new(),
            key: KeyRule::Kafka,
            bound: Bound::default(),
            conflict_letters: false,
            registry: None,
            schema: None,
            schema_replaces: None,
            schema_file: None,
            data_dir: PathBuf::from("stillwell-data"),
            blobs: None,
            store: None,
            batching: Batching::default(),
            performance: Performance::default(),
            pacing: Pacing::default(),
            spill: Spill::default(),
            metrics: ProducerMetrics::detached(),
            reliability: Reliability::default(),
            cleaning: Cleaning::default(),
            announcements: None,
            look_every: DEFAULT_LOOK_EVERY,
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

    /// Adds a source topic; at least one.
    #[must_use]
    pub fn source(mut self, topic: impl Into<String>) -> Self {
        self.topics.push(topic.into());
        self
    }

    /// Values are JSON, made to fit the schema. The default.
    #[must_use]
    pub fn json(mut self) -> Self {
        self.encoding = Encoding::Json;
        self
    }

    /// Values are Avro datums in the schema.
    #[must_use]
    pub fn avro(mut self) -> Self {
        self.encoding = Encoding::Avro;
        self
    }

    /// Values are Avro datums with the ids by which a schema registry knows their schemas (Confluent's wire format, or its
    /// headers); they are resolved to the dataset's schema. [`ProducerBuilder::avro_keys`]: keys as well.
    #[must_use]
    pub fn schema_registry(mut self, url: impl Into<String>) -> Self {
        self.encoding = Encoding::Registered(Kind::Avro);
        self.asking(&url.into())
    }

    /// Values are Protobuf messages with the ids by which a schema registry knows their types (Confluent's wire format); they
    /// become records of the dataset's schema, field by field, by name.
    #[must_use]
    pub fn protobuf_registry(mut self, url: impl Into<String>) -> Self {
        self.encoding = Encoding::Registered(Kind::Protobuf);
        self.asking(&url.into())
    }

    /// Values are Protobuf messages of the type that has this full name in a descriptor set, as
    /// `protoc --include_imports --descriptor_set_out` writes it.
    #[must_use]
    pub fn protobuf(mut self, descriptor_set: impl Into<Vec<u8>>, message: impl Into<String>) -> Self {
        self.encoding = Encoding::Protobuf(descriptor_set.into(), message.into());
        self
    }

    /// Values are JSON with the ids by which a schema registry knows their JSON schemas, which have to be there and known.
    /// Without this an id before the text is skipped.
    #[must_use]
    pub fn json_registry(mut self, url: impl Into<String>) -> Self {
        self.encoding = Encoding::CheckedJson;
        self.asking(&url.into())
    }

    fn asking(mut self, url: &str) -> Self {
        let urls = url.split(',').map(|url| url.trim().to_owned()).collect();
        self.registry =
            Some(registry::Options { urls, timeout: DEFAULT_REGISTRY_TIMEOUT, ..Default::default() });
        self
    }

    /// With a schema registry: Kafka keys are Avro datums with ids, too. A key is then what its datum says, as text.
    #[must_use]
    pub fn avro_keys(mut self) -> Self {
        self.keys = KeyFormat::Registered(Kind::Avro);
        self
    }

    /// Kafka keys are JSON. A key is then what it says, as text.
    #[must_use]
    pub fn json_keys(mut self) -> Self {
        self.keys = KeyFormat::Json;
        self
    }

    /// Values are changes of rows as Debezium writes them, in JSON or Avro.
    #[must_use]
    pub fn debezium(mut self) -> Self {
        self.envelope = Envelope::Debezium;
        self
    }

    /// Adds a source topic whose records are written otherwise than those of the others.
    #[doc(hidden)]
    #[must_use]
    pub fn source_as(mut self, topic: impl Into<String>, format: Format) -> Self {
        let topic = topic.into();
        self.topics.push(topic.clone());
        self.others.push((topic, format));
        self
    }

    /// Values are bytes, kept as they are; needs no schema.
    #[must_use]
    pub fn raw(mut self) -> Self {
        self.encoding = Encoding::Raw;
        self
    }

    /// The dataset's Avro schema, as a file.
    #[must_use]
    pub fn schema_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.schema_file = Some(file.into());
        self
    }

    /// Goes back: lets the dataset's schema follow the one of this fingerprint although it was in force before that.
    #[must_use]
    pub fn schema_replaces(mut self, fingerprint: u64) -> Self {
        self.schema_replaces = Some(fingerprint);
        self
    }

    /// The dataset's Avro schema, as text.
    #[must_use]
    pub fn schema(mut self, json: impl Into<String>) -> Self {
        self.schema = Some(json.into());
        self
    }

    /// Most bytes of a record, key and value together; a larger one becomes a dead letter. 0: any. Default: 16 MB.
    #[must_use]
    pub fn max_record_bytes(mut self, bytes: u64) -> Self {
        self.bound = Bound::of(bytes);
        self
    }

    /// A record that loses to one of its key from another partition becomes a dead letter. Default: it is counted and said.
    #[must_use]
    pub fn conflict_letters(mut self, letters: bool) -> Self {
        self.conflict_letters = letters;
        self
    }

    /// The key is made of these fields of the value. Default: the Kafka key.
    #[must_use]
    pub fn key_fields<T: Into<String>>(mut self, fields: impl IntoIterator<Item = T>) -> Self {
        self.key = KeyRule::Fields(fields.into_iter().map(Into::into).collect());
        self
    }

    /// Where log and cache lie. Default `stillwell-data` in the working directory. One process at a time.
    #[must_use]
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.data_dir = dir.into();
        self
    }

    /// Blob store, as a URL that [`Store::open_among`] takes. Default: `file://` and the folder `blobs` in the data directory.
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

    /// `group.instance.id`. Default: made of the host's name and the data directory.
    #[must_use]
    pub fn instance_id(mut self, id: impl Into<String>) -> Self {
        self.instance_id = Some(id.into());
        self
    }

    /// When a batch becomes a version.
    #[must_use]
    pub fn batching(mut self, batching: Batching) -> Self {
        self.batching = batching;
        self
    }

    /// Uploads and snapshots.
    #[must_use]
    pub fn performance(mut self, performance: Performance) -> Self {
        self.performance = performance;
        self
    }

    /// How fast records leave the log.
    #[must_use]
    pub fn pacing(mut self, pacing: Pacing) -> Self {
        self.pacing = pacing;
        self
    }

    /// How much may wait in the log, and what gives way past that.
    #[must_use]
    pub fn spill(mut self, spill: Spill) -> Self {
        self.spill = spill;
        self
    }

    /// Where to count. Default: nowhere that can be seen.
    #[doc(hidden)]
    #[must_use]
    pub fn metrics(mut self, metrics: Arc<ProducerMetrics>) -> Self {
        self.metrics = metrics;
        self
    }

    /// Retries and circuit breakers.
    #[must_use]
    pub fn reliability(mut self, reliability: Reliability) -> Self {
        self.reliability = reliability;
        self
    }

    /// What of the store is kept, and for how long what is not.
    #[must_use]
    pub fn cleaning(mut self, cleaning: Cleaning) -> Self {
        self.cleaning = cleaning;
        self
    }

    /// Announcement topic. Default `NAME.announcements`.
    #[must_use]
    pub fn announcements(mut self, topic: impl Into<String>) -> Self {
        self.announcements = Some(topic.into());
        self
    }

    /// How often topics are looked at for what has changed in them. Default 30 s.
    #[doc(hidden)]
    #[must_use]
    pub fn look_every(mut self, every: Duration) -> Self {
        self.look_every = every;
        self
    }

    /// Starts it. Kafka need not be there yet: it is waited for.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for what is missing or cannot be opened, with what to do.
    pub async fn start(self) -> Result<Producer> {
        Producer::start(self.options()?).await
    }

    /// What it would start with.
    ///
    /// # Errors
    /// As [`ProducerBuilder::start`].
    #[doc(hidden)]
    pub fn options(self) -> Result<Options> {
        let dataset = &self.dataset;
        let config = |text: String| Error::new(ErrorKind::Config, text);
        if self.topics.is_empty() {
            return Err(config(format!(
                "dataset {dataset} has no source topic: name one with source(TOPIC)"
            )));
        }
        let schema = match (&self.schema, &self.schema_file, &self.encoding) {
            (None, None, Encoding::Raw) => Schema::raw(),
            (None, None, _) => {
                return Err(config(format!(
                    "dataset {dataset} has no schema: give one with schema_file(FILE)"
                )));
            }
            (Some(json), ..) => Schema::dataset(json).map_err(|error| {
                Error::because(ErrorKind::Config, format!("parsing the schema of {dataset}"), error)
            })?,
            (None, Some(file), _) => {
                let doing = || format!("reading the schema of {dataset} from {}", file.display());
                let json = std::fs::read_to_string(file)
                    .map_err(|error| Error::because(ErrorKind::Config, doing(), error))?;
                Schema::dataset(&json).map_err(|error| Error::because(ErrorKind::Config, doing(), error))?
            }
        };
        let schema = Arc::new(schema);
        let format = match self.encoding {
            Encoding::Json => Format::json(ExtraFields::Ignore),
            Encoding::CheckedJson => Format::json(ExtraFields::Ignore).checked(),
            Encoding::Avro => Format::avro(schema.clone()),
            Encoding::Protobuf(set, name) => {
                let found = Message::find(&set, &name);
                let wrong = |what| config(format!("dataset {dataset}: the descriptor set {what}"));
                Format::protobuf(Arc::new(found.map_err(wrong)?))
            }
            Encoding::Registered(kind) => Format::registered(kind),
            Encoding::Raw => Format::raw(),
        };
        let format = format.with_keys(self.keys).within(self.envelope);
        let format = self.others.into_iter().fold(format, |format, (topic, other)| format.but(topic, other));
        let registry = match (&self.registry, format.asks_registry()) {
            (Some(options), true) => {
                let doing = || format!("preparing the schema registry of {dataset}");
                let registry = Registry::new(options);
                Some(registry.map_err(|error| Error::because(ErrorKind::Config, doing(), error))?)
            }
            (None, true) => {
                return Err(config(format!(
                    "dataset {dataset} has Avro keys and no schema registry: name one with schema_registry(URL)"
                )));
            }
            _ => None,
        };
        let read_only = self.topics.iter().find_map(|topic| format.of_topic(topic).read_only());
        if let (Some(why), super::Shed::DeadLetter) = (read_only, self.spill.shed) {
            return Err(config(format!(
                "dataset {dataset} cannot shed into dead letters, since they could not be replayed: {why}"
            )));
        }
        let data_dir = std::path::absolute(&self.data_dir).map_err(|error| {
            Error::because(ErrorKind::Config, format!("finding {}", self.data_dir.display()), error)
        })?;
        let store = match self.store {
            Some(store) => store,
            None => {
                let url =
                    self.blobs.unwrap_or_else(|| format!("file://{}", data_dir.join("blobs").display()));
                let doing = format!("opening the blob store {url}");
                let topic = TopicOptions { kafka: self.kafka.clone(), create: true, replication: None };
                Store::open_among(&url, &blob::Options::default(), &topic)
                    .map_err(|error| Error::because(ErrorKind::Config, doing, error))?
            }
        };
        Ok(Options {
            instance_id: self.instance_id.unwrap_or_else(|| Options::default_instance_id(&data_dir)),
            kafka: self.kafka,
            topics: self.topics,
            format,
            key: self.key,
            bound: self.bound,
            conflict_letters: self.conflict_letters,
            registry,
            schema,
            schema_adopted: false,
            schema_replaces: self.schema_replaces,
            announcements: self.announcements.unwrap_or_else(|| format!("{dataset}.announcements")),
            dead_letters: format!("{dataset}.dlq"),
            control: format!("{dataset}.control"),
            shards: 1,
            create_topics: true,
            replication: None,
            source_partitions: 1,
            data_dir,
            cache_bytes: DEFAULT_CACHE_BYTES,
            store,
            batching: self.batching,
            performance: self.performance,
            pacing: self.pacing,
            spill: self.spill,
            reliability: self.reliability,
            cleaning: self.cleaning,
            look_every: self.look_every,
            clock: Clock::system(),
            entropy: Entropy::system(),
            metrics: self.metrics,
            dataset: self.dataset,
        })
    }
}
