//! One dataset: its source topic, its directories, and the model that it must come to equal.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use stillwell::{Consumer, Producer, ProducerBuilder, View};

use crate::{Broker, Record, Topic, scratch, unique, wait_until_async};

/// Longest that a version may take to become readable.
const DEADLINE: Duration = Duration::from_secs(180);

/// Key to JSON: what a fold over the source says.
pub type Model = BTreeMap<Vec<u8>, Value>;

/// A dataset under test.
pub struct Setting {
    /// Its source topic; the dataset is called as it is.
    pub topic: Topic,
    /// Its own files and its blobs.
    pub dir: tempfile::TempDir,
    /// The dataset's schema.
    pub schema: String,
    /// What its readers must come to hold.
    pub model: Model,
    /// Where producers and consumers reach Kafka.
    pub bootstrap: String,
    /// Its blob store, where that is not a folder of its own.
    pub store: Option<String>,
}

impl Setting {
    /// A dataset on the shared broker.
    pub fn new(name: &str, partitions: i32, schema: &str) -> Setting {
        Setting::on(Broker::shared(), name, partitions, schema)
    }

    /// A dataset on a broker of the test's own.
    pub fn on(broker: &Broker, name: &str, partitions: i32, schema: &str) -> Setting {
        if let Ok(level) = std::env::var("STILLWELL_TEST_LOG") {
            // The first test that asks starts it, for all of them.
            let level = level.parse().expect("STILLWELL_TEST_LOG is a level");
            stillwell::telemetry::log::init(stillwell::telemetry::log::Form::Human, &level, std::io::stderr);
        }
        Setting {
            topic: Topic::create_on(broker, &unique(name), partitions, &[]),
            bootstrap: broker.bootstrap().to_owned(),
            dir: scratch(),
            schema: schema.to_owned(),
            model: Model::new(),
            store: None,
        }
    }

    /// Its name.
    pub fn dataset(&self) -> &str {
        self.topic.name()
    }

    /// Where its log and cache lie.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Its blob store.
    pub fn blobs(&self) -> String {
        self.store.clone().unwrap_or_else(|| format!("file://{}", self.dir.path().join("blobs").display()))
    }

    /// An upsert, for the model too.
    pub fn upsert(&mut self, key: &str, value: Value) -> Record {
        self.model.insert(key.into(), value.clone());
        Record::upsert(key, value.to_string())
    }

    /// A tombstone, for the model too.
    pub fn delete(&mut self, key: &str) -> Record {
        self.model.remove(key.as_bytes());
        Record::delete(key)
    }

    /// A producer of it, not started yet. Kafka gives it up after twenty seconds of silence, not after six: tests count its
    /// lives, epochs and failures, and a broker that a loaded machine stalls for some seconds would cost one. Nobody here waits
    /// for the end of a session: whoever comes next has its name, that of the data directory.
    pub fn builder(&self) -> ProducerBuilder {
        Producer::builder(self.dataset())
            .bootstrap_servers(&self.bootstrap)
            .kafka_property("session.timeout.ms", "20000")
            .source(self.dataset())
            .schema(&self.schema)
            .data_dir(self.data_dir())
            .blobs(self.blobs())
    }

    /// A producer of it.
    pub async fn producer(&self) -> Producer {
        self.builder().start().await.expect("the producer starts")
    }

    /// A consumer of it that is caught up.
    pub async fn consumer(&self, cache: &Path) -> Consumer {
        Consumer::builder(self.dataset())
            .bootstrap_servers(&self.bootstrap)
            .blobs(self.blobs())
            .cache_dir(cache)
            .start()
            .await
            .expect("the consumer starts")
    }

    /// Waits until the consumer holds exactly the model.
    pub async fn settled(&self, consumer: &Consumer) {
        wait_until_async("the consumer holds the model", DEADLINE, || {
            std::future::ready(difference(&consumer.view(), &self.model))
        })
        .await;
    }
}

/// What a view holds, read by a scan.
pub fn contents(view: &View) -> Model {
    let entry = |value: stillwell::Value<'_>| {
        let json = value.to_json().expect("it is JSON");
        (value.key().to_vec(), serde_json::from_str(&json).expect("it parses"))
    };
    view.iter().map(|value| entry(value.expect("every entry reads"))).collect()
}

/// How a view differs from the model: by a scan, by its count, and by a lookup of each key.
fn difference(view: &View, model: &Model) -> Result<(), String> {
    let held = contents(view);
    if held != *model {
        let key = model
            .keys()
            .chain(held.keys())
            .find(|key| model.get(*key) != held.get(*key))
            .map(|key| String::from_utf8_lossy(key).into_owned());
        let (version, have, want) = (view.version(), held.len(), model.len());
        return Err(format!("version {version} holds {have} of {want} keys; {key:?} differs"));
    }
    if view.records() != model.len() as u64 {
        return Err(format!("{} records announced, {} held", view.records(), model.len()));
    }
    for (key, value) in model {
        let found = view.get(key).map_err(|error| error.chain())?.ok_or("a key of the scan has no lookup")?;
        let json: Value = serde_json::from_str(&found.to_json().map_err(|error| error.to_string())?)
            .map_err(|error| error.to_string())?;
        if json != *value {
            return Err(format!("{} reads {json}", String::from_utf8_lossy(key)));
        }
    }
    Ok(())
}
