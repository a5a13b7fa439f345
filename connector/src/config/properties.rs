//! `[kafka.properties]`: what may stand there, by itself and together.
//!
//! Owns: which properties are ours to set, and why. Does not own: what librdkafka takes (`kafka/properties`).

use super::check::Check;
use super::load::path;
use super::secret;
use crate::kafka;
use crate::kafka::properties::{self, KNOWN, Refused};
use crate::words::nearest;

/// librdkafka properties that a key of ours sets.
const TYPED: &[(&str, &str)] = &[
    ("bootstrap.servers", "kafka.bootstrap_servers"),
    ("metadata.broker.list", "kafka.bootstrap_servers"),
    ("client.id", "kafka.client_id"),
    ("group.instance.id", "instance_id"),
    ("statistics.interval.ms", "producer.monitoring.metrics_interval"),
];

/// librdkafka properties on whose values the design depends.
const FIXED: &[(&str, &str)] = &[
    ("group.id", "the group is stillwell.DATASET"),
    ("group.protocol", "ownership of a shard depends on the classic protocol"),
    ("partition.assignment.strategy", "a joining standby must take nothing away: cooperative-sticky"),
    ("transactional.id", "it is DATASET/SHARD: takeover depends on it"),
    ("transaction.timeout.ms", "takeover depends on it"),
    ("enable.idempotence", "nothing may count twice"),
    ("acks", "an announcement must be on all replicas in sync"),
    ("request.required.acks", "an announcement must be on all replicas in sync"),
    ("enable.auto.commit", "positions are committed with what they announce"),
    ("auto.commit.enable", "positions are committed with what they announce"),
    ("enable.auto.offset.store", "positions are committed with what they announce"),
    ("auto.offset.reset", "a lost position must be an error, not a jump"),
    ("isolation.level", "aborted records must not be seen"),
    ("enable.partition.eof", "positions at the end of a partition depend on it"),
    (
        "allow.auto.create.topics",
        "a topic that the broker made by itself would have its settings and not Stillwell's",
    ),
    ("partitioner", "keys must lie where Java's clients put them"),
];

impl Check<'_> {
    /// Properties are librdkafka's, so it is asked for each. Values are not shown, since secrets are among them.
    pub(super) fn properties(&mut self) {
        let properties = &self.model.properties.0;
        for (name, value) in properties {
            let at = ["kafka", "properties", name.as_str()];
            let canonical = name.strip_prefix("topic.").unwrap_or(name);
            if let Some((_, key)) = TYPED.iter().find(|(property, _)| *property == canonical) {
                self.wrong(&at, format!("conflicts with {key}: set that instead"));
            } else if let Some((_, why)) = FIXED.iter().find(|(property, _)| *property == canonical) {
                self.wrong(&at, format!("cannot be changed: {why}"));
            } else if let Some(refused) = properties::refused(name, value) {
                let ours = TYPED.iter().chain(FIXED).map(|(property, _)| *property).collect::<Vec<_>>();
                let near = match refused {
                    Refused::Unknown => {
                        nearest(name, KNOWN.iter().copied().filter(|known| !ours.contains(known)))
                    }
                    Refused::Value(_) => None,
                };
                let hint = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
                self.wrong(&at, format!("{refused}{hint}"));
            }
        }
    }

    /// Whether a client can be made with all of them, where each by itself is right.
    pub(super) fn properties_together(&mut self) {
        let properties = &self.model.properties.0;
        let ours = "kafka.properties.";
        let is_wrong = self.mistakes.list().iter().any(|mistake| mistake.key.starts_with(ours));
        let (Some(first), false) = (properties.keys().next(), is_wrong) else { return };
        if let Some(what) = properties::no_mechanism(properties) {
            self.wrong(&["kafka", "properties", "security.protocol"], what);
            return;
        }
        let options = kafka::Options {
            bootstrap_servers: self.model.kafka.bootstrap_servers.clone(),
            properties: properties.clone(),
            ..kafka::Options::default()
        };
        let fetched =
            |at: &[String]| self.effective.0.get(at).is_some_and(|(_, origin)| origin.via.is_some());
        if let Err(error) = properties::tokens(&options) {
            let mut what = error.to_string();
            // Its words are names, but for that of a file: a secret that is a part of one must not be masked out of it.
            let file = properties.get(properties::NAMED_FILE).map(|file| file.trim_start());
            if let Some(file) = file.filter(|file| !file.is_empty())
                && fetched(&path(&["kafka", "properties", properties::NAMED_FILE]))
            {
                what = what.replace(file, secret::MASK);
            }
            let place = self.place(&path(&["kafka", "properties", first]));
            self.mistakes.add(place, "kafka.properties", what);
        } else if let Err(error) = properties::together(&options) {
            let mut what = error.to_string();
            for (name, value) in properties {
                let at = path(&["kafka", "properties", name]);
                if (fetched(&at) || secret::is_secret(&at)) && !value.is_empty() {
                    what = what.replace(value.as_str(), secret::MASK);
                }
            }
            let place = self.place(&path(&["kafka", "properties", first]));
            self.mistakes.add(place, "kafka.properties", what);
        }
    }
}
