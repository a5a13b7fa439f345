//! Every key, once: its meaning, what it takes, its default, and what a profile makes of it. The structs that hold
//! the values, the check that finds unknown keys, and docs/configuration.md are made from this list.
//!
//! A line is `name: Type = Kind, Default;` or, where profiles differ, `… Default, [low-latency high-throughput
//! small-memory];` with `_` for "as default". Why a profile has its values stands in `profile.rs`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::values::{Keyed, Kind, Listen, Moment, Part, Secret, Size, Span};
use Fallback::{Derived, Is, Required, Unset};
use Kind::{Choice, Filter, Fraction, Indexes, KeyRule, Level, Path, Share, Switch, Text, Texts, Whole};

/// What holds where a key is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// Must be given.
    Required,
    /// Nothing.
    Unset,
    /// This, as it would be written.
    Is(&'static str),
    /// Computed from other values (see `derive.rs`); says how.
    Derived(&'static str),
}

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Its name in its section.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What holds where it is not given.
    pub fallback: Fallback,
    /// What the profiles low-latency, high-throughput and small-memory make of it.
    pub profiles: [Option<&'static str>; 3],
    /// What it means.
    pub about: &'static str,
}

/// A section of keys.
#[derive(Debug)]
pub struct Section {
    /// Its path; empty for the top level, `*` stands for a dataset's name, a second one for a topic's.
    pub path: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Its keys.
    pub keys: &'static [Key],
}

/// A struct that is a section's values.
pub trait Values: for<'de> Deserialize<'de> {
    /// The section.
    const SECTION: Section;
}

macro_rules! profiles {
    () => { [None, None, None] };
    ($low:tt $high:tt $small:tt) => { [profiles!(one $low), profiles!(one $high), profiles!(one $small)] };
    (one _) => { None };
    (one $value:literal) => { Some($value) };
}

macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:ident at $path:literal {
            $(
                $(#[doc = $help:literal])+
                $field:ident: $type:ty = $kind:expr, $fallback:expr $(, [$($profile:tt)+])?;
            )*
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, Deserialize)]
        pub struct $name {
            $( $(#[doc = $help])+ pub $field: $type, )*
        }

        impl Values for $name {
            const SECTION: Section = Section {
                path: $path,
                about: concat!($($about),+),
                keys: &[$( Key {
                    name: stringify!($field),
                    kind: $kind,
                    fallback: $fallback,
                    profiles: profiles!($($($profile)+)?),
                    about: concat!($($help),+),
                }, )*],
            };
        }
    };
}

section! {
    /// The process.
    Process at "" {
        /// Values to start from.
        profile: String = Choice(super::profile::NAMES), Is("default");
        /// Name of this instance in Kafka's groups (static membership): a restart in place under the same name is
        /// instant. Letters, digits, `.`, `_` and `-`; no two running instances may share one.
        instance_id: String = Text, Derived("host name and data_dir");
    }
}

section! {
    /// Log lines, on stderr.
    Log at "log" {
        /// Level, or directives as in `info,stillwell::producer=debug`.
        level: String = Level, Is("info");
        /// Lines for people, or one JSON object a line.
        format: String = Choice(&["human", "json"]), Is("human");
    }
}

section! {
    /// How to reach Kafka.
    Kafka at "kafka" {
        /// Brokers to start from: `HOST:PORT`, separated by commas.
        bootstrap_servers: String = Text, Is("localhost:9092");
        /// Name under which brokers log and limit us.
        client_id: String = Text, Is("stillwell");
        /// Create topics that are missing; `false`: a missing topic is an error.
        create_topics: bool = Switch, Is("true");
        /// Replication factor of topics that are created. Unset: the broker's default.
        replication_factor: Option<i16> = Whole(1, 32_767), Unset;
    }
}

section! {
    /// Schema registry with Confluent's API (Confluent, Apicurio, Karapace, Redpanda); optional. With one, `avro` values
    /// name their schemas by its ids; see operations.md.
    SchemaRegistry at "schema_registry" {
        /// Its URL; several of one registry separated by commas: the next is asked where one does not answer or does not
        /// know. User and password may stand before the host, percent-encoded. Apicurio's ends in `/apis/ccompat/v7`.
        url: Option<String> = Text, Unset;
        /// User, for basic authentication.
        user: Option<String> = Text, Unset;
        /// The user's password.
        password: Option<Secret> = Text, Unset;
        /// Bearer token.
        token: Option<Secret> = Text, Unset;
        /// PEM file of the certificates to trust an `https://` URL by. Unset: this machine's.
        ca_file: Option<PathBuf> = Path, Unset;
        /// PEM file of the certificate to show (mutual TLS), the issuers' behind it.
        certificate_file: Option<PathBuf> = Path, Unset;
        /// PEM file of its key.
        key_file: Option<PathBuf> = Path, Unset;
        /// Longest time for one request. While the registry is away records wait in their place.
        timeout: Span = Kind::Span(1), Is("10s");
    }
}

section! {
    /// Where things lie.
    Storage at "storage" {
        /// Root of this instance's own files: write-ahead log and blob cache.
        data_dir: PathBuf = Kind::Folder, Required;
        /// Where versions are stored, the same for all instances of a dataset: `file:///PATH`, `s3://BUCKET/PREFIX` (also of
        /// what speaks like S3), `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, `kafka://TOPIC`, or `memory://` (demo, tests).
        blobs: String = Text, Derived("blobs in data_dir");
        /// Most bytes of blobs in the cache, in data_dir; what is in use is kept beyond it.
        cache_size: Size = Kind::Size(1_000_000), Is("10GiB"), [_ _ "1GiB"];
        /// Snapshots that are kept, with the versions since; what is pinned is kept beside them.
        keep_snapshots: u32 = Whole(1, 1_000_000), Is("4");
        /// From "no longer kept" being announced to the blobs being deleted: readers that are fetching them have so long.
        clean_grace: Span = Kind::Span(0), Is("10m");
    }
}

section! {
    /// Health, metrics, records.
    Http at "http" {
        /// Where to listen; `off`: nowhere.
        listen: Listen = Kind::Listen, Is("127.0.0.1:8080");
        /// Ready with a version that has caught up with the source, or with any.
        ready_when: String = Choice(&["caught_up", "any"]), Is("caught_up");
        /// Ready at once with the version in the cache, which may be old, before Kafka has answered and while it is away.
        serve_stale: bool = Switch, Is("false");
        /// Bearer token of the admin routes, which write records. Unset: they are off.
        admin_token: Option<Secret> = Text, Unset;
    }
}

section! {
    /// When records become a version. Here for every dataset; `[datasets.NAME.producer.batching]` overrides.
    Batching at "producer.batching" {
        /// Most records in a version.
        max_batch_size: usize = Whole(1, 10_000_000), Is("1000"), [_ "100000" "500"];
        /// Most key and value bytes in a version.
        max_batch_bytes: Size = Kind::Size(1_000), Is("8MB"), ["1MB" "64MB" "1MB"];
        /// Longest time that a record waits for its version to fill. `0ms`: it does not; a version holds what came while the one before was announced.
        batch_timeout: Span = Kind::Span(0), Is("1s"), ["0ms" _ _];
        /// Records in memory; beyond it they are on disk only.
        max_pending_records: usize = Whole(1, 100_000_000), Is("10000"), [_ "1000000" "2000"];
        /// Pending records that make a version whatever its size.
        memory_pressure_threshold: usize = Whole(1, 100_000_000), Derived("80% of max_pending_records");
        /// Memory for records on their way: fetched ahead, in the log's buffers, in batches. At 80% of the batches' share a version is made whatever its size.
        memory_limit: Size = Kind::Size(32_000_000), Is("512MB"), [_ "1GB" "128MB"];
    }
}

section! {
    /// How versions are stored. `[datasets.NAME.producer.performance]` overrides.
    Performance at "producer.performance" {
        /// Uploads at a time.
        worker_pool_size: usize = Whole(1, 1_000), Is("5"), [_ "8" "2"];
        /// Longest time that one attempt of an upload may take; a second more for each MiB.
        write_timeout: Span = Kind::Span(100), Is("30s"), ["10s" "2m" _];
        /// Versions between snapshots, at least. The chain of deltas is cut at 384 in any case.
        snapshot_frequency: u64 = Whole(1, 1_000_000), Is("25"), ["200" _ _];
        /// Share of the last snapshot's bytes that the deltas since must reach before the next.
        snapshot_min_change: Part = Share, Is("25%");
        /// Longest time between snapshots of a dataset that changes.
        snapshot_max_interval: Span = Kind::Span(1_000), Is("1h");
        /// Compress blobs in the store (zstd).
        enable_compression: bool = Switch, Is("true");
    }
}

section! {
    /// How fast records leave the log; 0 is unlimited. `[datasets.NAME.producer.pacing]` overrides.
    Pacing at "producer.pacing" {
        /// Records a second.
        max_records_per_second: u32 = Whole(0, 4_294_967_295), Is("0");
        /// Key and value bytes a second.
        max_bytes_per_second: Size = Kind::Size(0), Is("0B");
        /// Pressure (0 idle, 1 full) at which the pace comes down, or the source is paused: see operations.md.
        pressure_high: f64 = Fraction, Is("0.8");
    }
}

section! {
    /// What happens when records come faster than versions are announced. `[datasets.NAME.producer.spill]` overrides.
    Spill at "producer.spill" {
        /// Most bytes of records that wait in the log.
        max_log_size: Size = Kind::Size(1_000_000), Is("10GB"), [_ "50GB" "1GB"];
        /// What gives way past it: nothing (the source is paused at `pressure_high` of it), or records; see operations.md.
        shed: String = Choice(&["none", "drop_newest", "drop_oldest", "sample", "dead_letter"]), Is("none");
    }
}

section! {
    /// What happens when the store or Kafka fails. `[datasets.NAME.producer.reliability]` overrides.
    Reliability at "producer.reliability" {
        /// Attempts after the first, before the failure counts against the circuit breaker.
        max_retry_attempts: u32 = Whole(0, 1_000), Is("3");
        /// First wait between attempts; it doubles, up to 5 s, and where the store is cleaned up to 300 times this (5 min at the most).
        retry_backoff: Span = Kind::Span(1), Is("1s"), ["50ms" _ _];
        /// Failures in a row that open the circuit breaker.
        circuit_breaker_threshold: u32 = Whole(1, 1_000_000), Is("10");
        /// How long it stays open before it lets one attempt through.
        circuit_breaker_reset: Span = Kind::Span(1), Is("30s"), ["5s" _ _];
        /// Share of `misfit_window` records that may become dead letters for one reason; beyond it the source is paused
        /// until an operator decides. `100%`: never. See operations.md.
        misfit_share: Part = Share, Is("50%");
        /// Records among which they are counted.
        misfit_window: u32 = Whole(1, 1_000_000), Is("1000");
    }
}

section! {
    /// How the producer side of the process is watched.
    Monitoring at "producer.monitoring" {
        /// How often librdkafka's figures are brought up to date.
        metrics_interval: Span = Kind::Span(100), Is("30s"), ["10s" _ _];
        /// Port of `/health` and `/metrics` with `--role producer`, where `http.listen` is not given.
        health_check_port: u16 = Whole(1, 65_535), Is("8081");
        /// Metrics by partition and broker, too. Does nothing in this release: they are always shown.
        enable_detailed_metrics: bool = Switch, Is("true");
    }
}

section! {
    /// The reading side.
    Consumer at "consumer" {
        /// Shortest wait between polls.
        poll_interval: Span = Kind::Span(1), Is("100ms"), ["5ms" _ _];
        /// Longest wait, while idle or failing; an announcement ends it at once.
        max_backoff: Span = Kind::Span(1), Is("5s"), ["1s" _ _];
        /// How often health is judged.
        health_check_interval: Span = Kind::Span(100), Is("30s"), ["5s" _ _];
        /// Errors a minute beyond which it is unhealthy.
        max_errors_per_minute: u32 = Whole(0, 1_000_000), Is("10");
        /// Memory of each dataset for what is not mapped from the cache. Changes since the base, with their indexes, are merged
        /// into it before they take a quarter; the merge itself takes 16 bytes a record while it runs. At half of it versions
        /// but the newest four are let go of.
        memory_limit: Size = Kind::Size(1_000_000), Is("512MB"), [_ "2GB" "64MB"];
        /// Time to end in after SIGTERM or SIGINT; what is unfinished then is aborted, and said.
        graceful_shutdown_timeout: Span = Kind::Span(1), Is("30s"), [_ "1m" _];
    }
}

section! {
    /// A dataset. Its name makes the names of its topics, blobs and routes.
    Dataset at "datasets.*" {
        /// The dataset's own Avro schema, in which values are kept. Not with format `raw`.
        schema: Option<PathBuf> = Path, Unset;
        /// Fingerprint of the announced schema that `schema` may follow although it was in force before: for going back.
        schema_replaces: Option<String> = Text, Unset;
        /// Where keys come from: the record's key, or fields of the value.
        key: Keyed = KeyRule, Is("kafka");
        /// Most bytes of a record, key and value together, and of its datum; a larger one becomes a dead letter. 0: any.
        max_record_size: Size = Kind::Size(0), Is("16MB");
        /// Topic of the announcements.
        announcements: String = Text, Derived("NAME.announcements");
        /// Topic of the dead letters.
        dead_letters: String = Text, Derived("NAME.dlq");
        /// From source timestamp to readable, once caught up: a version that took longer degrades health for a
        /// minute.
        freshness_slo: Option<Span> = Kind::Span(1), Unset;
        /// Which of two writes of a key wins: a key lives in one partition and the later offset wins, or the later
        /// timestamp.
        conflict: String = Choice(&["order", "timestamp"]), Is("order");
        /// With `conflict = "order"`: a record that loses to one of its key from another partition becomes a dead letter.
        /// Otherwise it is counted and said. See operations.md.
        conflict_letters: bool = Switch, Is("false");
        /// Partitions of the announcement topic, each with a writer of its own; fixed when the topic is created.
        shards: u32 = Whole(1, 1_024), Is("1");
    }
}

section! {
    /// What the dataset is made from.
    Source at "datasets.*.source" {
        /// Topics.
        topics: Vec<String> = Texts, Required;
        /// Partitions of a source topic that is created because it is missing.
        partitions: i32 = Whole(1, 100_000), Is("1");
        /// How values are written there; `formats` has what is written otherwise.
        format: String = Choice(&["avro", "json", "protobuf", "raw"]), Required;
        /// What a value is: the record itself, and a Kafka null deletes it (what Flink, Materialize and RisingWave call upsert);
        /// or, in `avro` and `json`, a change of a row as Debezium writes it.
        envelope: String = Choice(&["upsert", "debezium"]), Is("upsert");
        /// Schema with which `avro` values were written, where it is not the dataset's own. Not with a registry.
        schema: Option<PathBuf> = Path, Unset;
        /// Whether values begin with ids of the schema registry (or have them in headers). Unset: `avro` and `protobuf` do
        /// where there is a registry, and no `schema` or `message` here. `json` needs no schema: an id before it is
        /// skipped, and only with `true` it has to be there, and known to the registry as one of a JSON schema.
        registry: Option<bool> = Switch, Unset;
        /// File with the types of `protobuf` messages, as `protoc --include_imports --descriptor_set_out=FILE` writes it,
        /// where no registry has them.
        descriptor_set: Option<PathBuf> = Path, Unset;
        /// Full name of the type in `descriptor_set` that values are of.
        message: Option<String> = Text, Unset;
        /// Subject in the registry whose newest schema becomes the dataset's own at its beginning, where none is named with
        /// `schema`. Unset: the name of the first topic without a format of its own, and `-value`.
        subject: Option<String> = Text, Unset;
        /// How Kafka keys are written. `raw`: bytes, taken as they come; `string`: the same, if they are UTF-8. Of the others
        /// what they say is taken: `json`; `avro` with ids of the registry, or of the schema `key_schema`; `protobuf` with ids of
        /// the registry, or of the type `key_message`.
        key_format: String = Choice(&["raw", "string", "json", "avro", "protobuf"]), Is("raw");
        /// Schema that `avro` keys are of, where no registry has it.
        key_schema: Option<PathBuf> = Path, Unset;
        /// Full name of the type in `descriptor_set` that `protobuf` keys are of.
        key_message: Option<String> = Text, Unset;
        /// Fields in `json` that the schema does not have.
        extra_fields: String = Choice(&["ignore", "reject"]), Is("ignore");
    }
}

section! {
    /// How the records of one of the source's topics are written, where that is otherwise than in the others. It takes nothing
    /// from `source`: what it does not say has the default here. A topic's name with dots is written in quotes.
    Apart at "datasets.*.source.formats.*" {
        /// How its values are written.
        format: String = Choice(&["avro", "json", "protobuf", "raw"]), Required;
        /// As in `source`, as is all that follows.
        envelope: String = Choice(&["upsert", "debezium"]), Is("upsert");
        /// Schema with which `avro` values were written.
        schema: Option<PathBuf> = Path, Unset;
        /// Whether values begin with ids of the schema registry.
        registry: Option<bool> = Switch, Unset;
        /// File with the types of `protobuf` messages.
        descriptor_set: Option<PathBuf> = Path, Unset;
        /// Full name of the type that values are of.
        message: Option<String> = Text, Unset;
        /// How Kafka keys are written.
        key_format: String = Choice(&["raw", "string", "json", "avro", "protobuf"]), Is("raw");
        /// Schema that `avro` keys are of.
        key_schema: Option<PathBuf> = Path, Unset;
        /// Full name of the type that `protobuf` keys are of.
        key_message: Option<String> = Text, Unset;
        /// Fields in `json` that the schema does not have.
        extra_fields: String = Choice(&["ignore", "reject"]), Is("ignore");
    }
}

impl Source {
    /// How the records of its topics are written.
    pub fn written(&self) -> Apart {
        Apart {
            format: self.format.clone(),
            envelope: self.envelope.clone(),
            schema: self.schema.clone(),
            registry: self.registry,
            descriptor_set: self.descriptor_set.clone(),
            message: self.message.clone(),
            key_format: self.key_format.clone(),
            key_schema: self.key_schema.clone(),
            key_message: self.key_message.clone(),
            extra_fields: self.extra_fields.clone(),
        }
    }
}

section! {
    /// What this process holds of the dataset where it reads it, how it is found besides by key, and which version: the newest,
    /// or the one that the dataset is pinned to (`stillwell pin`), where no key here says so.
    Held at "datasets.*.consumer" {
        /// Only records for which this holds. Unset: all.
        filter: Option<String> = Filter, Unset;
        /// Only these fields of the outermost record. Unset: all.
        fields: Option<Vec<String>> = Texts, Unset;
        /// Fields, or several together, by whose values records are looked up.
        indexes: Option<Vec<Vec<String>>> = Indexes, Unset;
        /// This version, whatever is announced or pinned. One that is not announced yet is waited for.
        version: Option<u64> = Whole(1, u64::MAX), Unset;
        /// The newest version announced at this time or before, in UTC.
        at: Option<Moment> = Kind::Time, Unset;
    }
}

section! {
    /// What a version has to be like before it is read here. One that is not is refused: the last good one stays, which
    /// health, metrics and `DATASET.control` say. A version that the dataset is pinned to is taken unasked.
    Bounds at "datasets.*.consumer.guard" {
        /// Fewest keys.
        min_records: Option<u64> = Whole(0, u64::MAX), Unset;
        /// Most keys.
        max_records: Option<u64> = Whole(0, u64::MAX), Unset;
        /// Most bytes of the files that it is read from.
        max_bytes: Option<Size> = Kind::Size(0), Unset;
        /// Share of the last good version's keys that may be added, changed or deleted at once. Not asked of the first.
        max_change: Option<Part> = Share, Unset;
    }
}

section! {
    /// A webhook that is told of the dataset's changes, by each process that reads it with this section; off without a `url`.
    /// See operations.md.
    Webhook at "datasets.*.consumer.webhook" {
        /// Where changes are sent: `http://` or `https://`.
        url: Option<Secret> = Text, Unset;
        /// Signs what is sent, as Standard Webhooks says: `whsec_` and base64, or any text.
        secret: Option<Secret> = Text, Unset;
        /// More headers, each as `Name: value`.
        headers: Option<Vec<Secret>> = Texts, Unset;
        /// Most changes in one request. A request also ends once its keys and values have 4 MiB.
        batch_size: usize = Whole(1, 100_000), Is("100");
        /// Longest time for one attempt.
        timeout: Span = Kind::Span(1), Is("10s");
        /// Attempts after the first, before the changes become dead letters. Attempts while the receiver is away do not count.
        max_retry_attempts: u32 = Whole(0, 1_000), Is("5");
        /// First wait between attempts; it doubles.
        retry_backoff: Span = Kind::Span(1), Is("500ms");
        /// Longest wait between attempts.
        max_backoff: Span = Kind::Span(1), Is("30s");
        /// Failures in a row that open the circuit breaker. Requests that may become dead letters beyond as many as were
        /// handled; then the next one is held until it is handled. See operations.md.
        circuit_breaker_threshold: u32 = Whole(1, 1_000_000), Is("10");
        /// How long it stays open before it lets one attempt through.
        circuit_breaker_reset: Span = Kind::Span(1), Is("30s");
        /// What is sent at its very first start: all records, or only what changes from then on.
        start: String = Choice(&["everything", "newest"]), Is("everything");
    }
}

/// Every section, in the order of the documentation.
pub const SECTIONS: &[Section] = &[
    Process::SECTION,
    Log::SECTION,
    Kafka::SECTION,
    SchemaRegistry::SECTION,
    Storage::SECTION,
    Http::SECTION,
    Batching::SECTION,
    Performance::SECTION,
    Pacing::SECTION,
    Spill::SECTION,
    Reliability::SECTION,
    Monitoring::SECTION,
    Consumer::SECTION,
    Dataset::SECTION,
    Source::SECTION,
    Apart::SECTION,
    Held::SECTION,
    Bounds::SECTION,
    Webhook::SECTION,
];

/// Flags for experimental optimisations: name and meaning. Off by default; this release has none.
pub const FEATURES: &[(&str, &str)] = &[];

/// Other spellings that are taken, and what they mean.
pub const ALIASES: &[(&str, &str)] = &[
    ("create_topics", "kafka.create_topics"),
    ("datasets.*.extra_fields", "datasets.*.source.extra_fields"),
];

/// The producer's sections that a dataset may override.
#[derive(Clone, Debug)]
pub struct Producer {
    /// `batching`
    pub batching: Batching,
    /// `performance`
    pub performance: Performance,
    /// `pacing`
    pub pacing: Pacing,
    /// `spill`
    pub spill: Spill,
    /// `reliability`
    pub reliability: Reliability,
}

/// A dataset with its own sections.
#[derive(Clone, Debug)]
pub struct DatasetModel {
    /// `[datasets.NAME]`
    pub own: Dataset,
    /// `source`
    pub source: Source,
    /// `source.formats`, by topic.
    pub formats: BTreeMap<String, Apart>,
    /// `consumer.guard`
    pub bounds: Bounds,
    /// `consumer.webhook`
    pub webhook: Webhook,
    /// `[producer]` with this dataset's overrides.
    pub producer: Producer,
    /// `consumer`
    pub consumer: Held,
}

/// The effective values. Not `Debug`: there are secrets in it, see [`super::Config`].
#[derive(Clone)]
pub struct Model {
    /// Top level.
    pub process: Process,
    /// `[log]`
    pub log: Log,
    /// `[kafka]`
    pub kafka: Kafka,
    /// `[kafka.properties]`
    pub properties: super::secret::Properties,
    /// `[schema_registry]`
    pub schema_registry: SchemaRegistry,
    /// `[storage]`
    pub storage: Storage,
    /// `[storage.options]`
    pub options: crate::blob::Options,
    /// `[http]`
    pub http: Http,
    /// `[producer.monitoring]`
    pub monitoring: Monitoring,
    /// `[consumer]`
    pub consumer: Consumer,
    /// `[datasets]`, by name.
    pub datasets: BTreeMap<String, DatasetModel>,
    /// `[features]`
    pub features: BTreeMap<String, bool>,
}
