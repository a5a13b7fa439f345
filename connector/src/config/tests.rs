use std::time::Duration;

use super::*;
use crate::codec::KeyRule;

mod slips;
mod storage;

/// A folder with a schema, and a configuration file in it.
pub(super) struct Case {
    dir: tempfile::TempDir,
    sources: Sources,
}

const SCHEMA: &str = r#"{"type":"record","name":"Product","fields":[
    {"name":"id","type":"string"},{"name":"price","type":"double"}]}"#;

/// The least that is right; its first line is line 1 of the file.
pub(super) const LEAST: &str = r#"[storage]
data_dir = "data"
[datasets.products]
source = { topics = ["products"], format = "json" }
schema = "product.avsc"
key = ["id"]
"#;

pub(super) fn case(text: &str) -> Case {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("product.avsc"), SCHEMA).unwrap();
    let file = Some((dir.path().join("stillwell.toml"), text.to_owned()));
    Case { dir, sources: Sources { file, ..Sources::default() } }
}

impl Case {
    pub(super) fn env(mut self, name: &str, value: &str) -> Case {
        self.sources.env.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(super) fn set(mut self, key: &str, value: &str) -> Case {
        self.sources.flags.push((key.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn bytes(self, name: &str, bytes: &[u8]) -> Case {
        std::fs::write(self.dir.path().join(name), bytes).unwrap();
        self
    }

    fn file(self, name: &str, text: &str) -> Case {
        self.bytes(name, text.as_bytes())
    }

    pub(super) fn right(&self) -> Config {
        Config::read(&self.sources).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The mistakes as lines, without the folder.
    pub(super) fn wrong(&self) -> Vec<String> {
        let Err(Error::Mistakes { mistakes, .. }) = Config::read(&self.sources) else {
            panic!("no mistake found")
        };
        let dir = format!("{}/", self.dir.path().display());
        mistakes.to_string().replace(&dir, "").lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn says(&self, lines: &[&str]) {
        assert_eq!(self.wrong(), lines, "\n{}", self.wrong().join("\n"));
    }
}

fn shown(config: &Config, key: &str) -> (String, String) {
    let all = config.shown();
    let one = all.iter().find(|shown| shown.key == key).unwrap_or_else(|| panic!("{key} is not shown"));
    (one.value.clone(), one.source.clone())
}

#[test]
fn the_interface_page_is_understood_as_written() {
    let text = r#"
instance_id = "shop-1"
[kafka]
bootstrap_servers = "localhost:9092"
[kafka.properties]
"security.protocol" = "SASL_SSL"
"sasl.mechanisms" = "PLAIN"
"sasl.username" = "shop"
"sasl.password" = "hush"
[schema_registry]
url = "http://localhost:8081"
[storage]
data_dir = "/var/lib/stillwell"
blobs    = "file:///var/lib/stillwell/blobs"
keep_snapshots = 4
clean_grace = "10m"
[http]
listen = "127.0.0.1:8080"
ready_when = "caught_up"
serve_stale = false
admin_token = { env = "STILLWELL_ADMIN_TOKEN" }
[producer.batching]
max_batch_size = 1000
max_batch_bytes = "8MB"
batch_timeout = "1s"
max_pending_records = 10000
memory_pressure_threshold = 8000
[producer.performance]
worker_pool_size = 5
write_timeout = "30s"
snapshot_frequency = 25
snapshot_min_change = "25%"
snapshot_max_interval = "1h"
enable_compression = true
[producer.pacing]
max_records_per_second = 0
max_bytes_per_second = "0B"
pressure_high = 0.8
[producer.spill]
max_log_size = "10GB"
shed = "none"
[producer.reliability]
max_retry_attempts = 3
retry_backoff = "1s"
circuit_breaker_threshold = 10
circuit_breaker_reset = "30s"
[producer.monitoring]
metrics_interval = "30s"
health_check_port = 8081
enable_detailed_metrics = true
[consumer]
poll_interval = "100ms"
max_backoff = "5s"
health_check_interval = "30s"
max_errors_per_minute = 10
memory_limit = "512MB"
graceful_shutdown_timeout = "30s"
[datasets.products]
source   = { topics = ["products"], format = "avro" }
schema   = "product.avsc"
key      = "kafka"
max_record_size = "16MB"
announcements = "products.announcements"
dead_letters  = "products.dlq"
freshness_slo = "2s"
conflict = "order"
shards = 1
[features]
"#;
    let given = case(text).env("STILLWELL_ADMIN_TOKEN", "s3cret");
    let config = given.right();
    assert_eq!(config.model().http.admin_token.as_ref().unwrap().expose(), "s3cret");
    let idle: Vec<&str> = config.warnings().list().iter().map(|warning| warning.key.as_str()).collect();
    let expected = ["detailed_metrics"];
    assert_eq!(idle.len(), expected.len(), "what does nothing is said, and nothing else: {idle:?}");
    assert!(expected.iter().all(|key| idle.iter().any(|said| said.ends_with(key))), "{idle:?}");

    // What the page gives are the defaults: leaving all out that can be left out changes nothing.
    let least = case(&LEAST.replace("\"data\"", "\"/var/lib/stillwell\"").replace("json", "avro")).right();
    for one in config.shown() {
        let same = ["datasets.products.key", "instance_id"].contains(&one.key.as_str());
        let unset = ["admin_token", "url", "kafka.properties", "freshness_slo", ".schema"];
        if !same && !unset.iter().any(|name| one.key.contains(name)) {
            assert_eq!(shown(&least, &one.key).0, one.value, "{}", one.key);
        }
    }
}

#[test]
fn layers_win_in_order_and_are_named() {
    let text =
        format!("profile = \"high-throughput\"\n{LEAST}[producer.batching]\nmax_batch_bytes = \"5MB\"\n");
    let case = case(&text)
        .env("STILLWELL_PRODUCER__BATCHING__BATCH_TIMEOUT", "20ms")
        .env("STILLWELL_CONSUMER__POLL_INTERVAL", "1s")
        .set("consumer.poll_interval", "2s");
    let config = case.right();
    let batching = |key: &str| shown(&config, &format!("producer.batching.{key}"));
    assert_eq!(batching("max_batch_size"), ("100000".into(), "profile high-throughput".into()));
    let file = format!("{}/stillwell.toml:9", case.dir.path().display());
    assert_eq!(batching("max_batch_bytes"), ("\"5MB\"".into(), file.clone()));
    assert_eq!(
        batching("batch_timeout"),
        ("\"20ms\"".into(), "env STILLWELL_PRODUCER__BATCHING__BATCH_TIMEOUT".into())
    );
    assert_eq!(
        batching("memory_pressure_threshold"),
        ("800000".into(), "default: 80% of max_pending_records".into())
    );
    assert_eq!(
        shown(&config, "consumer.poll_interval"),
        ("\"2s\"".into(), "flag --set consumer.poll_interval".into())
    );
    assert_eq!(shown(&config, "producer.pacing.pressure_high"), ("0.8".into(), "default".into()));
    // A dataset's own value is inherited with where it came from.
    assert_eq!(shown(&config, "datasets.products.producer.batching.max_batch_bytes").1, file);
}

#[test]
fn a_dataset_overrides_the_producer() {
    let text = format!("{LEAST}producer.batching = {{ max_batch_size = 7, max_pending_records = 100 }}\n");
    let config = case(&text).right();
    let batching = &config.model().datasets["products"].producer.batching;
    assert_eq!((batching.max_batch_size, batching.memory_pressure_threshold), (7, 80));
    assert_eq!(batching.batch_timeout.0, Duration::from_secs(1));
}

#[test]
fn every_mistake_is_said_at_once_with_its_line() {
    case(
        r#"instance_idd = "x"
[kafka]
bootstrap_servers = "localhost:9092"
[kafka.properties]
"isolation.level" = "read_uncommitted"
client.id = "me"
"securty.protocol" = "hush"
"fetch.wait.max.ms" = 900001
[storage]
blobs = "/var/lib/blobs"
[http]
listen = 8080
[producer]
max_batch_size = 10
[producer.batching]
max_batchsize = 10
batch_timeout = 100
max_batch_bytes = "8 bananas"
[producr.pacing]
x = 1
[consumer]
poll_interval = "10s"
[datasets.products]
source = { topics = "products", format = "jsn" }
shards = 4
[datasets."a b"]
source = { topics = ["x", "x"], format = "json" }
schema = "missing.avsc"
[features]
warp = true
"#,
    )
    .says(&[
        "stillwell.toml:1: instance_idd: unknown key; did you mean instance_id?",
        "stillwell.toml:5: kafka.properties.\"isolation.level\": cannot be changed: aborted records must not be seen",
        "stillwell.toml:6: kafka.properties.\"client.id\": conflicts with kafka.client_id: set that instead",
        "stillwell.toml:7: kafka.properties.\"securty.protocol\": is none of librdkafka's; did you mean \
         \"security.protocol\"?",
        "stillwell.toml:8: kafka.properties.\"fetch.wait.max.ms\": is outside of 0..300000",
        "stillwell.toml:10: storage.blobs: \"/var/lib/blobs\" is not a URL: write a folder as \"file:///var/lib/blobs\"",
        "stillwell.toml:12: http.listen: 8080 cannot stand here: write an address and a port, as in \
         \"127.0.0.1:8080\", or \"off\"",
        "stillwell.toml:14: producer.max_batch_size: unknown key; did you mean producer.batching.max_batch_size?",
        "stillwell.toml:16: producer.batching.max_batchsize: unknown key; did you mean \
         producer.batching.max_batch_size?",
        "stillwell.toml:17: producer.batching.batch_timeout: 100 cannot stand here: write a number with its unit, as \
         in \"100ms\", \"1s\" or \"10m\"",
        "stillwell.toml:18: producer.batching.max_batch_bytes: \"8 bananas\" cannot stand here: write a number with \
         its unit, as in \"8MB\", \"512MiB\" or \"10GB\"",
        "stillwell.toml:19: producr: unknown key; did you mean producer?",
        "stillwell.toml:20: producer.pacing.x: unknown key",
        "stillwell.toml:22: consumer.poll_interval: is longer than max_backoff (5s)",
        "stillwell.toml:24: datasets.products.source.format: \"jsn\" is not one of avro, json, protobuf, raw; did you mean \
         \"json\"?",
        "stillwell.toml:24: datasets.products.source.topics: \"products\" cannot stand here: write a list, as in \
         [\"products\"]",
        "stillwell.toml:25: datasets.products.shards: 4 shards are not in this release: 1 is",
        "stillwell.toml:26: datasets.\"a b\": \"a b\" has ' ' in it: write letters, digits, '.', '_' and '-'",
        "stillwell.toml:27: datasets.\"a b\".source.topics: names \"x\" twice",
        "stillwell.toml:28: datasets.\"a b\".schema: cannot read missing.avsc: No such file or directory (os error 2)",
        "stillwell.toml:30: features.warp: this release has no such flag",
        "storage.data_dir: is missing: write a folder, as in \"/var/lib/stillwell\"",
    ]);
}

#[test]
fn not_toml_is_said_with_its_lines() {
    let wrong = case("[storage]\ndata_dir = \n[http\nlisten = \"off\"\n").wrong();
    assert!(wrong.iter().any(|line| line.starts_with("stillwell.toml:2: not TOML: ")), "{wrong:#?}");
    assert!(wrong.iter().any(|line| line.starts_with("stillwell.toml:3: not TOML: ")), "{wrong:#?}");
    case(&format!("{LEAST}key = \"kafka\"\n")).says(&["stillwell.toml:7: not TOML: duplicate key"]);
    // Nothing is missing in a file that cannot be read, nor stands where it was not meant; what is beside it is checked.
    let beside = case("listen = \"off\"\n[storage\n").env("STILLWELL_HTTP__LISTN", "off").wrong();
    assert_eq!(beside.len(), 2, "{beside:#?}");
    assert!(
        beside[0].starts_with("stillwell.toml:2: not TOML: ")
            && beside[1].contains("STILLWELL_HTTP__LISTEN?")
    );
}

#[test]
fn properties_that_contradict_are_found_without_a_broker_and_secrets_not_said() {
    let lines = "[kafka.properties]\n\"ssl.key.pem\" = \"s3cret\"\n\"security.protocol\" = \"SSL\"\n";
    let case = case(&format!("{LEAST}{lines}"));
    let wrong = Config::read_to_run(&case.sources).unwrap_err().to_string();
    assert!(wrong.contains("kafka.properties: making a client"), "{wrong}");
    assert!(!wrong.contains("s3cret"), "{wrong}");
    // Who only looks at something goes on while a key is exchanged.
    case.right();
}

#[test]
fn a_schema_that_cannot_be_read_is_said_whatever_the_format() {
    let text = LEAST.replace("\"json\"", "\"jsn\"").replace("product.avsc", "missing.avsc");
    let wrong = case(&text).wrong();
    assert_eq!(wrong.len(), 2, "{wrong:#?}");
    assert!(wrong.iter().any(|line| line.contains("datasets.products.schema: cannot read")), "{wrong:#?}");
}

#[test]
fn the_environment_alone_is_enough() {
    let mut case = case("")
        .env("STILLWELL_STORAGE__DATA_DIR", "/var/lib/stillwell")
        .env("STILLWELL_DATASETS__PRODUCTS__SOURCE__TOPICS", "a, b")
        .env("STILLWELL_DATASETS__PRODUCTS__SOURCE__FORMAT", "raw")
        .env("STILLWELL_KAFKA__PROPERTIES__SASL_PASSWORD", "hush")
        .env("STILLWELL_PROFILE", "low-latency")
        .env("STILLWELL_HTTP__ADMIN_TOKEN", "");
    case.sources.file = None;
    let config = case.right();
    assert_eq!(config.model().datasets["products"].source.topics, ["a", "b"]);
    assert_eq!(config.model().properties.0["sasl.password"], "hush");
    assert_eq!(config.model().datasets["products"].producer.batching.batch_timeout.0, Duration::ZERO);
    assert!(config.model().http.admin_token.is_none(), "an empty variable is one that is not set");
}

#[test]
fn a_wrong_variable_is_named_and_a_strange_one_left_alone() {
    case(LEAST)
        .env("STILLWELL_PRODUCER__BATCHING__MAX_BATCHSIZE", "7")
        .env("STILLWELL_PRODUCER_BATCHING_MAX_BATCH_SIZE", "7")
        .env("STILLWELL_CONSUMER__POLL_INTERVAL", "7")
        .env("STILLWELL_HTTP", "x")
        .env("STILLWELL_INSTANCEID", "x")
        .env("STILLWELL_PORT", "tcp://10.0.0.1:80")
        .env("STILLWELL_SERVICE_HOST", "10.0.0.1")
        .env("STILLWELL_CONFIG", "x.toml")
        .env("STILLWELL_CONFG", "x.toml")
        .env("STILLWELL_PROFIL", "low-latency")
        .env("STILLWELL_ROLE", "consumer")
        .env("STILLWELL_ROEL", "consumer")
        .says(&[
            "env STILLWELL_CONFG: confg: unknown key; did you mean STILLWELL_CONFIG?",
            "env STILLWELL_CONSUMER__POLL_INTERVAL: consumer.poll_interval: \"7\" cannot stand here: write a number \
             with its unit, as in \"100ms\", \"1s\" or \"10m\"",
            "env STILLWELL_HTTP: http: is a section: name one of its keys",
            "env STILLWELL_INSTANCEID: instanceid: unknown key; did you mean STILLWELL_INSTANCE_ID?",
            "env STILLWELL_PRODUCER_BATCHING_MAX_BATCH_SIZE: producer_batching_max_batch_size: unknown key; did you \
             mean STILLWELL_PRODUCER__BATCHING__MAX_BATCH_SIZE?",
            "env STILLWELL_PRODUCER__BATCHING__MAX_BATCHSIZE: producer.batching.max_batchsize: unknown key; did you \
             mean STILLWELL_PRODUCER__BATCHING__MAX_BATCH_SIZE?",
            "env STILLWELL_PROFIL: profil: unknown key; did you mean STILLWELL_PROFILE?",
            "env STILLWELL_ROEL: roel: unknown key; did you mean STILLWELL_ROLE?",
        ]);
}

#[test]
fn a_variable_finds_the_dataset_that_the_file_names() {
    let text = LEAST.replace("datasets.products", "datasets.Shop-Products");
    let config = case(&text).env("STILLWELL_DATASETS__SHOP_PRODUCTS__FRESHNESS_SLO", "2s").right();
    assert_eq!(config.datasets().collect::<Vec<_>>(), ["Shop-Products"]);
    assert_eq!(config.model().datasets["Shop-Products"].own.freshness_slo.unwrap().0, Duration::from_secs(2));
}

#[test]
fn secrets_are_fetched_and_never_shown() {
    let text = format!(
        "{LEAST}[http]\nadmin_token = {{ file = \"token\" }}\n[kafka]\nclient_id = {{ env = \"WHO\" }}\n\
         [kafka.properties]\n\"sasl.password\" = \"pa55\"\n[schema_registry]\nurl = \"http://me:pa55@reg:8081\"\n"
    );
    let case = case(&text).file("token", "pa55word\n").env("WHO", "pa55er");
    let config = case.right();
    assert_eq!(config.model().http.admin_token.as_ref().unwrap().expose(), "pa55word");
    assert_eq!(config.kafka().client_id, "pa55er");
    let everything = format!("{}{:?}{config:?}", to_toml(&config.shown()), config.shown());
    assert!(!everything.contains("pa55"), "{everything}");
    let (value, source) = shown(&config, "http.admin_token");
    assert_eq!(value, "\"***\"");
    assert!(source.ends_with(&format!("from file {}/token", case.dir.path().display())), "{source}");
    assert!(to_toml(&config.shown()).contains("url = \"http://***@reg:8081\""));
}

#[test]
fn a_secret_that_cannot_be_fetched_or_used_is_said_without_it() {
    let text = format!(
        "{LEAST}[http]\nlisten = {{ env = \"WHERE\" }}\nadmin_token = {{ file = \"nowhere\" }}\n\
         [kafka]\nclient_id = {{ env = \"NOT_SET\" }}\n"
    );
    case(&text).env("WHERE", "pa55").says(&[
        "stillwell.toml:8: http.listen: *** cannot stand here: write an address and a port, as in \
         \"127.0.0.1:8080\", or \"off\"",
        "stillwell.toml:9: http.admin_token: cannot read nowhere: No such file or directory (os error 2)",
        "stillwell.toml:11: kafka.client_id: environment variable NOT_SET is not set",
    ]);
}

#[test]
fn what_this_release_does_not_have_is_refused() {
    let text = format!("{LEAST}conflict = \"timestamp\"\n");
    case(&text).says(&[
        "stillwell.toml:7: datasets.products.conflict: \"timestamp\" is not in this release: \"order\" is",
    ]);
}

#[test]
fn every_shed_strategy_is_taken_and_letters_must_fit_their_source() {
    use crate::producer::Shed;
    for shed in Shed::ALL {
        let config =
            case(&format!("{LEAST}[producer.spill]\nshed = \"{shed}\"\n")).set("storage.blobs", "memory://");
        let config = config.right();
        let shared = Shared::system(&config, crate::telemetry::Metrics::new()).unwrap();
        assert_eq!(config.producer("products", &shared).unwrap().spill.shed, shed);
    }
    let writer = r#"{"type":"record","name":"Product","fields":[{"name":"id","type":"string"}]}"#;
    let avro = LEAST.replace("\"json\"", "\"avro\", schema = \"writer.avsc\"");
    let reader = r#"{"type":"record","name":"Product","fields":[{"name":"id","type":"string"},
        {"name":"price","type":"double","default":0}]}"#;
    let text = format!("{avro}[datasets.products.producer.spill]\nshed = \"dead_letter\"\n");
    let wrong = case(&text).file("writer.avsc", writer).file("product.avsc", reader).wrong();
    assert!(
        wrong.len() == 1 && wrong[0].contains("producer.spill.shed: \"dead_letter\" is not for"),
        "{wrong:#?}"
    );
    case(&text.replace("dead_letter", "sample"))
        .file("writer.avsc", writer)
        .file("product.avsc", reader)
        .right();
}

#[test]
fn schemas_keys_and_topics_must_fit() {
    case(&LEAST.replace("[\"id\"]", "[\"idd\"]")).says(&[
        "stillwell.toml:6: datasets.products.key: Product has no field `idd`; it has id, price; did you mean \"id\"?",
    ]);
    let bad =
        case(LEAST).file("product.avsc", r#"{"type":"record","name":"P","fields":[{"name":"x"}]}"#).wrong();
    assert!(
        bad.len() == 1 && bad[0].starts_with("stillwell.toml:5: datasets.products.schema: product.avsc: "),
        "{bad:#?}"
    );
    let nothing = LEAST.replace("schema = \"product.avsc\"\n", "");
    case(&nothing).says(&[
        "stillwell.toml:3: datasets.products.schema: is missing: json values need the dataset's Avro schema, as in \
         schema = \"FILE.avsc\"",
    ]);
    let two = "[datasets.prices]\nsource = { topics = [\"products.dlq\"], format = \"raw\" }\n\
               announcements = \"products.announcements\"\ndead_letters = \"products.dlq\"\n";
    case(&format!("{LEAST}{two}")).says(&[
        "stillwell.toml:8: datasets.prices.source.topics: \"products.dlq\" is also datasets.products.dead_letters, \
         which would be read as records",
        "stillwell.toml:9: datasets.prices.announcements: \"products.announcements\" is also \
         datasets.products.announcements: each needs a topic of its own",
    ]);
    let control = "[datasets.prices]\nsource = { topics = [\"products.control\"], format = \"raw\" }\n\
                   dead_letters = \"prices.control\"\n";
    case(&format!("{LEAST}{control}")).says(&[
        "stillwell.toml:8: datasets.prices.source.topics: \"products.control\" is the control topic of dataset \
         products, which would be read as records",
        "stillwell.toml:9: datasets.prices.dead_letters: \"prices.control\" is the control topic of dataset prices: \
         choose another",
    ]);
    for (topic, what) in [
        ("products", "a source of dataset products"),
        ("products.dlq", "datasets.products.dead_letters"),
        ("products.control", "the control topic of dataset products"),
    ] {
        case(&LEAST.replace("[storage]\n", &format!("[storage]\nblobs = \"kafka://{topic}\"\n"))).says(&[
            &format!(
                "stillwell.toml:2: storage.blobs: \"{topic}\" is also {what}: blobs need a topic of their own"
            ),
        ]);
    }
}

#[test]
fn what_is_held_has_to_fit_the_schema() {
    let held = |text: &str| format!("{LEAST}[datasets.products.consumer]\n{text}");
    let config =
        case(&held("filter = \"price < 5 or id = 'a'\"\nfields = [\"id\"]\nindexes = [[\"id\"]]\n")).right();
    let shared = Shared::system(&config, crate::telemetry::Metrics::new()).unwrap();
    assert!(!config.consumer("products", &shared).unwrap().hold.is_whole());
    let whole = case(LEAST).right();
    assert!(whole.consumer("products", &shared).unwrap().hold.is_whole());
    let from_env =
        case(LEAST).env("STILLWELL_DATASETS__PRODUCTS__CONSUMER__INDEXES", "id; id, price").right();
    let indexes = from_env.model().datasets["products"].consumer.indexes.clone().unwrap();
    assert_eq!(indexes, [vec!["id"], vec!["id", "price"]]);
    case(&held("filter = \"price <\"\n")).says(&[
        "stillwell.toml:8: datasets.products.consumer.filter: the filter cannot be read at its end: expected text in \
         quotes, a number, true or false",
    ]);
    case(&held("indexes = [\"id\"]\n")).says(&[
        "stillwell.toml:8: datasets.products.consumer.indexes: a list cannot stand here: write a list of lists of \
         fields, as in [[\"category\"], [\"brand\", \"size\"]]",
    ]);
    case(&held("filter = \"cost = 1\"\nfields = [\"cost\"]\nindexes = [[\"price\", \"cost\"]]\n")).says(&[
        "stillwell.toml:8: datasets.products.consumer.filter: the filter does not fit the schema: there is no field cost; \
         there are: id, price",
        "stillwell.toml:9: datasets.products.consumer.fields: the schema cannot be a dataset's: it has no field \"cost\"; \
         there are: id, price",
        "stillwell.toml:10: datasets.products.consumer.indexes: the schema has no field cost",
    ]);
    // An index needs what is kept.
    case(&held("fields = [\"id\"]\nindexes = [[\"price\"]]\n"))
        .says(&["stillwell.toml:9: datasets.products.consumer.indexes: the schema has no field price"]);
}

#[test]
fn both_spellings_are_taken_and_both_at_once_are_not() {
    let config = case(&format!("create_topics = false\n{LEAST}extra_fields = \"reject\"\n")).right();
    assert!(!config.model().kafka.create_topics);
    let text = LEAST.replace("\"json\"", "\"json\", extra_fields = \"ignore\"");
    let wrong = case(&format!("{text}extra_fields = \"reject\"\n")).wrong();
    assert!(wrong.len() == 1 && wrong[0].contains("was given at"), "{wrong:#?}");
}

#[test]
fn options_say_what_the_configuration_says() {
    let text = format!("{LEAST}[kafka.properties]\n\"security.protocol\" = \"SSL\"\n");
    let case = case(&text).set("storage.blobs", "memory://");
    let config = case.right();
    let shared = Shared::system(&config, crate::telemetry::Metrics::new()).unwrap();
    let producer = config.producer("products", &shared).unwrap();
    assert_eq!(producer.key, KeyRule::Fields(vec!["id".into()]));
    assert_eq!(
        (producer.announcements.as_str(), producer.dead_letters.as_str()),
        ("products.announcements", "products.dlq")
    );
    assert_eq!(producer.data_dir, case.dir.path().join("data"));
    assert_eq!(producer.kafka.properties["security.protocol"], "SSL");
    assert_eq!(producer.kafka.properties["statistics.interval.ms"], "30000");
    assert!((producer.performance.snapshot_min_change - 0.25).abs() < 1e-9);
    let consumer = config.consumer("products", &shared).unwrap();
    assert_eq!(consumer.memory_limit, 512_000_000);
    assert!(!consumer.ready_when_any);
    let error = config.consumer("product", &shared).unwrap_err().to_string();
    assert!(error.contains("did you mean \"products\"?"), "{error}");

    assert_eq!(config.listen(Role::Both).unwrap().port(), 8080);
    assert_eq!(config.listen(Role::Producer).unwrap().port(), 8081);
    let given = super::tests::case(&format!("{LEAST}[http]\nlisten = \"127.0.0.1:8080\"\n")).right();
    assert_eq!(given.listen(Role::Producer).unwrap().port(), 8080);
}

#[test]
fn what_a_reader_holds_and_takes_is_read_and_contradictions_are_said() {
    let bounds =
        "[datasets.products.consumer.guard]\nmin_records = 10\nmax_records = 20\nmax_change = \"25%\"\n";
    let held = "[datasets.products.consumer]\nat = 2025-10-09T08:53:20.123Z\n";
    let config = case(&format!("{LEAST}{held}{bounds}")).right();
    let dataset = &config.model().datasets["products"];
    assert_eq!((dataset.consumer.version, dataset.consumer.at.unwrap().0), (None, 1_760_000_000_123));
    assert_eq!((dataset.bounds.min_records, dataset.bounds.max_bytes.is_none()), (Some(10), true));
    let version = "[datasets.products.consumer]\nversion = 7\n";
    let config = case(&format!("{LEAST}{version}")).right();
    assert_eq!(config.model().datasets["products"].consumer.version, Some(7));

    for (text, said) in [
        (format!("{held}version = 7\n"), "cannot both say which version is held"),
        ("[datasets.products.consumer]\nversion = 0\n".to_owned(), "the least is 1"),
        (bounds.replace("20", "9"), "no version would be taken"),
    ] {
        let wrong = case(&format!("{LEAST}{text}")).wrong().join("\n");
        assert!(wrong.contains(said), "{wrong}");
    }
}

#[test]
fn a_webhook_is_checked_and_never_shown() {
    let webhook = |lines: &str| format!("{LEAST}[datasets.products.consumer.webhook]\n{lines}\n");
    let text = webhook("url = \"https://me:pa55@host/pa55\"\nsecret = \"pa55\"\nheaders = [\"X-Key: pa55\"]");
    let config = case(&text).right();
    let everything = format!("{}{:?}{config:?}", to_toml(&config.shown()), config.shown());
    assert!(
        !everything.contains("pa55") && !format!("{:?}", config.model().datasets).contains("pa55"),
        "{everything}"
    );
    let webhook_at = "datasets.products.consumer.webhook";
    let at = text.lines().position(|line| line.starts_with("url")).unwrap() + 1;
    let says = |lines: &str, said: &str| {
        case(&webhook(lines)).says(&[&format!("stillwell.toml:{at}: {webhook_at}.{said}")]);
    };
    says("url = \"ftp://pa55\"", "url: the URL is neither http:// nor https://");
    says(
        "batch_size = 5",
        "batch_size: does nothing without a url: name the receiver, as in url = \"https://…\"",
    );
    let url = "\nurl = \"http://host/\"";
    says(
        &format!("secret = \"whsec_pa55!\"{url}"),
        "secret: the secret begins with whsec_ and goes on as no base64",
    );
    says(
        &format!("headers = [\"a: b\", \"pa55\"]{url}"),
        "headers: header 2 of the list has no colon: write Name: value",
    );
    says(&format!("max_backoff = \"1ms\"{url}"), "max_backoff: is shorter than retry_backoff");
    says(&format!("urll = \"x\"{url}"), &format!("urll: unknown key; did you mean {webhook_at}.url?"));
}
