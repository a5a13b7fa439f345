//! Mistakes that lie between values: what contradicts, does not exist, or is not in this release.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::load::{Effective, Loaded, path};
use super::mistakes::{Mistakes, Place};
use super::model::{DatasetModel, Model, Values as _, Webhook};
use super::options::fingerprint;
use super::secret;
use super::tree;
use crate::blob;
use crate::codec::{Format, KeyRule, Values};
use crate::kafka::properties::schemes;
use crate::registry::Registry;
use crate::schema::Schema;
use crate::webhook::Endpoint;
use crate::words::nearest;

/// What a dataset's records are read with.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The dataset's own schema.
    pub schema: Arc<Schema>,
    /// How its topics' records are written.
    pub format: Format,
    /// Where keys come from.
    pub key: KeyRule,
    /// `schema` only stands in: the dataset's is not known before it runs.
    pub adopts: bool,
}

/// Keys that are taken, and change nothing in this release.
const IDLE: &[(&[&str], &str)] = &[(
    &["producer", "monitoring", "enable_detailed_metrics"],
    "metrics by partition and broker are always shown",
)];

/// Everything that is checked, with what was found.
pub struct Check<'a> {
    pub(super) model: &'a Model,
    pub(super) effective: &'a Effective,
    wrong: &'a BTreeSet<Vec<String>>,
    datasets: &'a BTreeMap<String, Place>,
    /// What is wrong.
    pub mistakes: Mistakes,
    /// What is odd.
    pub warnings: Mistakes,
    /// How each dataset is read, where that is right.
    pub reading: BTreeMap<String, Reading>,
    /// The schema registry, where one is configured.
    pub registry: Option<Registry>,
}

impl<'a> Check<'a> {
    /// Checks all.
    pub fn all(loaded: &'a Loaded) -> Check<'a> {
        let mut check = Check {
            model: &loaded.model,
            effective: &loaded.effective,
            wrong: &loaded.wrong,
            datasets: &loaded.datasets,
            mistakes: loaded.mistakes.clone(),
            warnings: Mistakes::default(),
            reading: BTreeMap::new(),
            registry: None,
        };
        if loaded.torn {
            return check;
        }
        check.process();
        check.kafka();
        check.registry();
        check.storage();
        check.consumer();
        if check.datasets.is_empty() {
            let what = "no dataset is configured: write [datasets.NAME] with a source";
            check.mistakes.add(None, "datasets", what);
        }
        for (name, dataset) in &check.model.datasets {
            check.dataset(name, dataset);
        }
        check.topics();
        for (key, why) in IDLE {
            if check.is_given(key) {
                check.warn(key, format!("does nothing in this release: {why}"));
            }
        }
        check
    }

    /// Adds a mistake about the value at a path. Says nothing where the value is a stand-in.
    pub(super) fn wrong(&mut self, parts: &[&str], what: impl Into<String>) {
        let path = path(parts);
        if !self.wrong.contains(&path) {
            self.mistakes.add(self.place(&path), tree::show(&path), what);
        }
    }

    pub(super) fn warn(&mut self, parts: &[&str], what: impl Into<String>) {
        let path = path(parts);
        self.warnings.add(self.place(&path), tree::show(&path), what);
    }

    /// The place of a value; of its dataset, where it was not given.
    pub(super) fn place(&self, path: &[String]) -> Option<Place> {
        match self.effective.place(path) {
            Some(Place::Default | Place::Derived(_)) | None => match path {
                [datasets, name, ..] if datasets == "datasets" => self.datasets.get(name).cloned(),
                _ => None,
            },
            given => given,
        }
    }

    pub(super) fn is_given(&self, parts: &[&str]) -> bool {
        let place = self.effective.place(&path(parts));
        matches!(place, Some(Place::File(..) | Place::Env(_) | Place::Flag(_)))
    }

    pub(super) fn is_right(&self, parts: &[&str]) -> bool {
        !self.wrong.contains(&path(parts))
    }

    fn process(&mut self) {
        let id = &self.model.process.instance_id;
        if let Err(what) = topic_like(id) {
            self.wrong(&["instance_id"], format!("{id:?} {what}"));
        }
        for (name, on) in &self.model.features {
            tracing::debug!(feature = name, on, "feature");
        }
    }

    fn kafka(&mut self) {
        for server in self.model.kafka.bootstrap_servers.split(',').map(str::trim) {
            // librdkafka would take its own default, which is a guess that Kafka's other clients do not make.
            let (host, port) = server.rsplit_once(':').unwrap_or((server, ""));
            let host = host.rsplit("://").next().unwrap_or(host);
            if host.is_empty() || port.parse::<u16>().is_err() {
                let what = format!(
                    "{server:?} is not HOST:PORT; write them separated by commas, as in \"kafka-1:9092,kafka-2:9092\""
                );
                self.wrong(&["kafka", "bootstrap_servers"], what);
            }
        }
        for what in schemes(&self.model.kafka.bootstrap_servers, &self.model.properties.0) {
            self.wrong(&["kafka", "bootstrap_servers"], what);
        }
        self.properties();
    }

    fn storage(&mut self) {
        let dir = &self.model.storage.data_dir;
        if dir.exists() && !dir.is_dir() {
            self.wrong(&["storage", "data_dir"], format!("{} is not a folder", dir.display()));
        }
        if let Err(what) = blobs_url(&self.model.storage.blobs)
            && self.is_given(&["storage", "blobs"])
        {
            self.wrong(&["storage", "blobs"], what);
        }
        let scheme = self.model.storage.blobs.split("://").next().unwrap_or_default();
        for name in self.model.options.0.keys() {
            if !blob::is_option(scheme, name) {
                let known =
                    blob::OPTIONS.iter().find(|(of, _)| *of == scheme).map_or(&[][..], |(_, known)| known);
                let near = nearest(name, known.iter().copied());
                let hint = near.map_or(String::new(), |near| format!("; did you mean {near}?"));
                self.wrong(
                    &["storage", "options", name],
                    format!("is no option of {scheme}:// stores{hint}"),
                );
            }
        }
        let storage = &self.model.storage;
        if let Some((option, what)) = blob::in_the_clear(&storage.blobs, &self.model.options) {
            match option {
                Some(name) => self.wrong(&["storage", "options", &name], what),
                None => self.wrong(&["storage", "blobs"], what),
            }
        }
    }

    fn consumer(&mut self) {
        let consumer = &self.model.consumer;
        if consumer.max_backoff.0 < consumer.poll_interval.0 {
            let shown = humantime::format_duration;
            let (poll, backoff) = (shown(consumer.poll_interval.0), shown(consumer.max_backoff.0));
            // Of the two, the one that was given is the one to change.
            if self.is_given(&["consumer", "max_backoff"]) {
                self.wrong(&["consumer", "max_backoff"], format!("is shorter than poll_interval ({poll})"));
            } else {
                self.wrong(&["consumer", "poll_interval"], format!("is longer than max_backoff ({backoff})"));
            }
        }
    }

    fn dataset(&mut self, name: &str, dataset: &DatasetModel) {
        let at = |key: &'static str| ["datasets", name, key];
        let named = topic_like(name);
        if let Err(what) = &named {
            self.wrong(&["datasets", name], format!("{name:?} {what}"));
        }
        let (own, source) = (&dataset.own, &dataset.source);
        for (key, topic) in [("announcements", &own.announcements), ("dead_letters", &own.dead_letters)] {
            // Where the dataset's name is wrong, so are the names made of it.
            if let Err(what) = topic_like(topic)
                && named.is_ok()
            {
                self.wrong(&at(key), format!("{topic:?} {what}"));
            }
        }
        let topics_at = ["datasets", name, "source", "topics"];
        let mut seen = BTreeSet::new();
        for topic in &source.topics {
            if !seen.insert(topic) {
                self.wrong(&topics_at, format!("names {topic:?} twice"));
            } else if let Err(what) = topic_like(topic) {
                self.wrong(&topics_at, format!("{topic:?} {what}"));
            }
        }
        if own.conflict != "order" {
            self.wrong(&at("conflict"), format!("{:?} is not in this release: \"order\" is", own.conflict));
        }
        if own.shards != 1 {
            self.wrong(&at("shards"), format!("{} shards are not in this release: 1 is", own.shards));
        }
        if let Some(text) = own.schema_replaces.as_deref().filter(|text| fingerprint(text).is_none()) {
            let what =
                format!("{text:?} is no fingerprint: 16 hexadecimal digits, as `versions show` prints it");
            self.wrong(&at("schema_replaces"), what);
        }
        self.batching(name, dataset);
        self.bounded(name, dataset);
        self.webhook(name, dataset);
        if self.is_right(&["datasets", name, "source", "format"])
            && let Some(reading) = self.read(name, dataset)
        {
            self.shed(name, dataset, &reading);
            if !reading.adopts {
                self.held(name, dataset, &reading);
            }
            self.reading.insert(name.to_owned(), reading);
        }
        if !self.is_right(&["datasets", name, "source", "format"]) {
            // How values are read is not known; that a schema cannot be read is a mistake in any case.
            if let Some(file) = &own.schema {
                self.schema(&at("schema"), file, Schema::dataset);
            }
            if let Some(file) = &source.schema {
                self.schema(&["datasets", name, "source", "schema"], file, Schema::parse);
            }
        }
    }

    /// A dead letter is replayed into its source topic, so it must be written as values are there; the log holds them in
    /// the dataset's schema.
    fn shed(&mut self, name: &str, dataset: &DatasetModel, reading: &Reading) {
        if dataset.producer.spill.shed != "dead_letter" {
            return;
        }
        let mut topics = dataset.source.topics.iter();
        let what = topics.find_map(|topic| {
            let format = reading.format.of_topic(topic);
            let section = match dataset.formats.contains_key(topic) {
                true => path(&["datasets", name, "source", "formats", topic]),
                false => path(&["datasets", name, "source"]),
            };
            let section = tree::show(&section);
            match (format.read_only(), &format.values) {
                (Some(why), _) => Some(format!(
                    "\"dead_letter\" is not for a source that is only read ({section}): its letters could not be replayed \
                     ({why}). Take another strategy"
                )),
                (None, Values::Avro { writer }) if writer.fingerprint() != reading.schema.fingerprint() => {
                    Some(format!(
                        "\"dead_letter\" is not for values with a schema of their own ({section}.schema): their letters could \
                         not be replayed. Take another strategy, or have them written in the dataset's schema"
                    ))
                }
                _ => None,
            }
        });
        if let Some(what) = what {
            self.wrong(&["datasets", name, "producer", "spill", "shed"], what);
        }
    }

    /// Filter, fields and indexes ask for what the schema has.
    fn held(&mut self, name: &str, dataset: &DatasetModel, reading: &Reading) {
        let hold = dataset.consumer.hold();
        for (key, misfit) in [
            ("filter", hold.filter_misfit(&reading.schema)),
            ("fields", hold.fields_misfit(&reading.schema)),
            ("indexes", hold.index_misfit(&reading.schema)),
        ] {
            if let Some(what) = misfit {
                self.wrong(&["datasets", name, "consumer", key], what);
            }
        }
    }

    /// What it holds and takes must be possible at all.
    fn bounded(&mut self, name: &str, dataset: &DatasetModel) {
        if let (Some(version), Some(_)) = (dataset.consumer.version, &dataset.consumer.at) {
            let what = format!("and version = {version} cannot both say which version is held: remove one");
            self.wrong(&["datasets", name, "consumer", "at"], what);
        }
        if let (Some(least), Some(most)) = (dataset.bounds.min_records, dataset.bounds.max_records)
            && least > most
        {
            let what = format!("{most} is less than min_records ({least}): no version would be taken");
            self.wrong(&["datasets", name, "consumer", "guard", "max_records"], what);
        }
    }

    fn webhook(&mut self, name: &str, dataset: &DatasetModel) {
        let webhook = &dataset.webhook;
        let at = |key: &'static str| ["datasets", name, "consumer", "webhook", key];
        if webhook.url.is_none() {
            let idle = Webhook::SECTION.keys.iter().find(|key| self.is_given(&at(key.name)));
            if let Some(key) = idle {
                self.wrong(
                    &at(key.name),
                    "does nothing without a url: name the receiver, as in url = \"https://…\"",
                );
            }
        } else if let Some(Err(error)) =
            super::options::webhook(webhook).map(|options| Endpoint::new(&options))
        {
            let text = error.to_string();
            let key = ["secret", "header"].into_iter().find(|word| text.contains(&format!("{word} ")));
            let key = key.map_or("url", |word| if word == "secret" { "secret" } else { "headers" });
            self.wrong(&at(key), text);
        }
        if webhook.max_backoff.0 < webhook.retry_backoff.0 {
            self.wrong(&at("max_backoff"), "is shorter than retry_backoff");
        }
    }

    /// What is allowed, and still cannot be meant.
    fn batching(&mut self, name: &str, dataset: &DatasetModel) {
        let batching = &dataset.producer.batching;
        let (size, pending) = (batching.max_batch_size, batching.max_pending_records);
        let threshold = batching.memory_pressure_threshold;
        let at = |key: &'static str| ["datasets", name, "producer", "batching", key];
        if threshold > pending {
            let what =
                format!("never takes effect: records above max_pending_records ({pending}) are on disk only");
            self.warn(&at("memory_pressure_threshold"), what);
        }
        let limit = threshold.min(pending);
        if size > limit {
            let what = format!(
                "{size} is never reached: {limit} pending records make a version in any case; raise \
                 max_pending_records or memory_pressure_threshold"
            );
            self.warn(&at("max_batch_size"), what);
        }
    }

    pub(super) fn schema(
        &mut self,
        at: &[&str],
        file: &Path,
        parse: fn(&str) -> Result<Schema, crate::schema::Error>,
    ) -> Option<Arc<Schema>> {
        if !self.is_right(at) {
            return None;
        }
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => {
                // A relative path is where the surprise is: say from where it was looked for.
                let from = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
                self.wrong(at, format!("cannot read {}: {error}", from.display()));
                return None;
            }
        };
        match parse(&text) {
            Ok(schema) => Some(Arc::new(schema)),
            Err(error) => {
                self.wrong(at, format!("{}: {error}", file.display()));
                None
            }
        }
    }

    /// What two datasets, or two roles of one, must not share.
    fn topics(&mut self) {
        let mut written: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
        // Each dataset's control topic is called after it, and has no key of its own.
        let controls: Vec<(&str, String)> =
            self.model.datasets.keys().map(|name| (name.as_str(), format!("{name}.control"))).collect();
        for (name, dataset) in &self.model.datasets {
            for (key, topic) in
                [("announcements", &dataset.own.announcements), ("dead_letters", &dataset.own.dead_letters)]
            {
                if let Some((whose, _)) = controls.iter().find(|(_, control)| control == topic) {
                    let what = format!("{topic:?} is the control topic of dataset {whose}: choose another");
                    self.wrong(&["datasets", name, key], what);
                }
            }
            for (key, topic) in
                [("announcements", &dataset.own.announcements), ("dead_letters", &dataset.own.dead_letters)]
            {
                // Two datasets may share a dead-letter topic: each letter says whose it is.
                if let Some((other, role)) = written.insert(topic, (name, key))
                    && (role, key) != ("dead_letters", "dead_letters")
                {
                    // Of the two, the one that was given is the one to change.
                    let (here, there) = match self.is_given(&["datasets", name, key]) {
                        true => ((name.as_str(), key), (other, role)),
                        false => ((other, role), (name.as_str(), key)),
                    };
                    let what = format!(
                        "{topic:?} is also datasets.{}.{}: each needs a topic of its own",
                        there.0, there.1
                    );
                    self.wrong(&["datasets", here.0, here.1], what);
                }
            }
        }
        for (name, dataset) in &self.model.datasets {
            for topic in &dataset.source.topics {
                if let Some((other, role)) = written.get(topic.as_str()) {
                    let what =
                        format!("{topic:?} is also datasets.{other}.{role}, which would be read as records");
                    self.wrong(&["datasets", name, "source", "topics"], what);
                } else if let Some((whose, _)) = controls.iter().find(|(_, control)| control == topic) {
                    let what = format!(
                        "{topic:?} is the control topic of dataset {whose}, which would be read as records"
                    );
                    self.wrong(&["datasets", name, "source", "topics"], what);
                }
            }
        }
        if let Some(blobs) = self.model.storage.blobs.strip_prefix("kafka://") {
            let control = controls.iter().find(|(_, control)| control == blobs);
            let control = control.map(|(whose, _)| format!("the control topic of dataset {whose}"));
            let of = written.get(blobs).map(|(name, role)| format!("datasets.{name}.{role}"));
            let read = |(_, dataset): &(&String, &DatasetModel)| {
                dataset.source.topics.iter().any(|topic| topic == blobs)
            };
            let read = self.model.datasets.iter().find(read);
            let read = read.map(|(name, _)| format!("a source of dataset {name}"));
            if let Some(what) = control.or(of).or(read) {
                self.wrong(
                    &["storage", "blobs"],
                    format!("{blobs:?} is also {what}: blobs need a topic of their own"),
                );
            }
        }
    }
}

/// Kafka's rule for the names of topics, which instance ids obey too, and which is safe in blob names.
fn topic_like(name: &str) -> Result<(), String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match name {
        "" => Err("is empty".to_owned()),
        "." | ".." => Err("is no name".to_owned()),
        _ if name.len() > 249 => Err("is longer than 249 characters".to_owned()),
        _ => match name.chars().find(|c| !legal(*c)) {
            Some(c) => Err(format!("has {c:?} in it: write letters, digits, '.', '_' and '-'")),
            None => Ok(()),
        },
    }
}

/// What the blob store will say, without opening it.
fn blobs_url(url: &str) -> Result<(), String> {
    let shown = secret::without_user(url);
    let Some((scheme, rest)) = url.split_once("://") else {
        let guess = if url.starts_with('/') { url } else { "/DIR" };
        return Err(format!("{shown:?} is not a URL: write a folder as \"file://{guess}\""));
    };
    match scheme {
        "file" if !rest.starts_with('/') => Err(format!(
            "{shown:?} is not absolute: write three slashes, as in \"file:///var/lib/stillwell/blobs\""
        )),
        "file" | "memory" => Ok(()),
        "s3" | "gs" | "az" => blob::far_url(url).map_err(|what| format!("{shown:?}: {what}")),
        "kafka" => blob::topic_name(rest).map_err(|what| format!("{shown:?}: {what}")),
        _ => {
            let near = nearest(scheme, ["file", "memory", "s3", "gs", "az", "kafka"]);
            let hint = near.map_or(String::new(), |near| format!(" (did you mean {near}://?)"));
            let known = "there are file:///DIR, s3://BUCKET, gs://BUCKET, az://CONTAINER, kafka://TOPIC and memory://";
            Err(format!("{shown:?} has an unknown scheme{hint}; {known}"))
        }
    }
}
