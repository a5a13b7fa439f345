//! The topics that a dataset stands on: created where missing, and refused where they would lose what they are for.
//!
//! Owns: their settings. Does not own: Kafka's administration (`kafka::Admin`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::Options;
use crate::kafka::allowed::{self, Need, On, Operation};
use crate::kafka::{self, Admin, Timestamps, TopicSpec};
use crate::record::TopicId;

/// Why the topics are not as they must be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka does not answer, or refuses.
    #[error("preparing topic {topic}")]
    Kafka {
        /// The topic.
        topic: String,
        /// Why.
        #[source]
        source: kafka::Error,
    },
    /// A topic is missing and may not be created.
    #[error(
        "topic {topic} does not exist and create_topics is false: create it with {partitions} partition(s){hint}"
    )]
    Missing {
        /// The topic.
        topic: String,
        /// Partitions that it needs.
        partitions: i32,
        /// Settings that it needs.
        hint: String,
    },
    /// A topic's settings would lose what it is for.
    #[error("topic {topic} has {key}={found}, but {why}: set {key}={wanted}")]
    Setting {
        /// The topic.
        topic: String,
        /// The setting.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it would lose.
        why: &'static str,
        /// What it must be.
        wanted: &'static str,
    },
    /// The announcement topic has another number of partitions than the dataset has shards.
    #[error(
        "topic {topic} has {found} partition(s), but the dataset has {wanted} shard(s): the number is fixed at creation"
    )]
    Shards {
        /// The topic.
        topic: String,
        /// Its partitions.
        found: i32,
        /// The dataset's shards.
        wanted: u32,
    },
}

impl Error {
    /// Whether trying again may help without anybody's doing.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Kafka { source, .. } if source.is_transient())
    }

    /// Whether Kafka does not allow it: somebody may give the right while this process waits.
    pub fn is_denied(&self) -> bool {
        matches!(self, Error::Kafka { source: kafka::Error::Denied { .. }, .. })
    }
}

/// Kept for ever: history and rollback need it, compaction would forget it.
const ANNOUNCEMENTS: &[(&str, &str)] =
    &[("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")];
/// A letter has its record's timestamp, by which retention counts: with the broker's default of a week the letter of an old
/// record would be gone before anybody has seen it.
const LETTERS: &[(&str, &str)] =
    &[("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")];
const CONTROL: &[(&str, &str)] = &[("cleanup.policy", "compact")];

/// Largest record that the transactional client takes (`message.max.bytes`).
const CLIENT_LIMIT: usize = 10 << 20;
/// How often, and how long apart, a new topic is looked for.
const SETTLE_STEPS: u32 = 100;
const SETTLE_STEP: Duration = Duration::from_millis(100);

/// What is known once the topics are there.
#[derive(Clone, Copy, Debug)]
pub struct Prepared {
    /// Id of the announcement topic.
    pub announcements_id: TopicId,
}

/// How long a topic of these settings remembers deletes at least, counted from when they were written; `None`: it is not
/// compacted, and forgets nothing but from its beginning.
pub fn remembers_deletes(config: &BTreeMap<String, String>) -> Option<Duration> {
    let compacted = config.get("cleanup.policy")?.split(',').any(|policy| policy.trim() == "compact");
    let ms = config.get("delete.retention.ms").and_then(|ms| ms.parse().ok()).unwrap_or(24 * 60 * 60 * 1_000);
    compacted.then_some(Duration::from_millis(ms))
}

/// By what setting a control topic forgets its newest records with time, if by any: then a pin is gone without anybody's
/// doing, and with it what it has kept. Compaction keeps the newest record of each key.
fn forgets_pins(config: &BTreeMap<String, String>) -> Option<&str> {
    let policy = config.get("cleanup.policy")?;
    let is = |key: &str, value: &str| config.get(key).is_some_and(|found| found == value);
    let for_ever = is("retention.ms", "-1") && is("retention.bytes", "-1");
    (policy.split(',').any(|policy| policy.trim() == "delete") && !for_ever).then_some(policy)
}

/// Makes sure that the control topic, which is there, keeps what is pinned.
///
/// # Errors
/// [`Error::Setting`], [`Error::Kafka`].
pub async fn keeps_pins(admin: &Admin, options: &Options) -> Result<(), Error> {
    let topic = options.control.clone();
    match admin.topic_config(&topic).await {
        Err(source) => Err(Error::Kafka { topic, source }),
        Ok(config) => match forgets_pins(&config) {
            None => Ok(()),
            Some(found) => Err(Error::Setting {
                topic,
                key: "cleanup.policy",
                found: found.to_owned(),
                why: "what is pinned must not age out",
                wanted: "compact",
            }),
        },
    }
}

/// Whether a dead-letter topic of these settings takes every letter, and by which of them letters age out, if by any.
fn keeps_letters(topic: &str, config: &BTreeMap<String, String>) -> Result<Option<String>, Error> {
    let policy = config.get("cleanup.policy").map_or("delete", String::as_str);
    if policy.split(',').any(|policy| policy.trim() == "compact") {
        return Err(Error::Setting {
            topic: topic.to_owned(),
            key: "cleanup.policy",
            found: policy.to_owned(),
            why: "a letter without a key could not be written, which would stop the dataset, and of two letters of a key one \
                  would go",
            wanted: "delete",
        });
    }
    let ages =
        |key: &str| config.get(key).filter(|value| *value != "-1").map(|value| format!("{key}={value}"));
    Ok(ages("retention.ms").or_else(|| ages("retention.bytes")))
}

/// Makes sure that the dead-letter topic, which is there, takes what it is sent. By what letters age out, if by anything: that
/// is for an operator to know, and may be meant.
///
/// # Errors
/// [`Error::Setting`], [`Error::Kafka`].
async fn takes_letters(admin: &Admin, options: &Options) -> Result<Option<String>, Error> {
    let topic = &options.dead_letters;
    match admin.topic_config(topic).await {
        // Each life asks for it again, and says what it is needed for.
        Err(kafka::Error::Denied { .. }) => Ok(None),
        Err(source) => Err(Error::Kafka { topic: topic.clone(), source }),
        Ok(config) => keeps_letters(topic, &config),
    }
}

/// Makes sure that all topics of the dataset are there and fit.
///
/// # Errors
/// [`Error`]; transient while Kafka is away.
pub async fn prepare(admin: &Admin, options: &Options) -> Result<Prepared, Error> {
    for topic in &options.topics {
        ensure(admin, options, topic, options.source_partitions, &[]).await?;
    }
    ensure(admin, options, &options.dead_letters, 1, LETTERS).await?;
    if let Some(setting) = takes_letters(admin, options).await? {
        tracing::warn!(
            dataset = options.dataset,
            topic = options.dead_letters,
            setting,
            "dead letters age out, and may be gone before anybody has seen them: set it to -1"
        );
    }
    ensure(admin, options, &options.control, 1, CONTROL).await?;
    keeps_pins(admin, options).await?;
    let topic = &options.announcements;
    let announcements = ensure(admin, options, topic, options.shards as i32, ANNOUNCEMENTS).await?;
    fits(admin, options, announcements).await?;
    Ok(Prepared { announcements_id: announcements.id })
}

/// What the dead-letter topic takes.
#[derive(Clone, Copy, Debug)]
pub struct LetterLimit {
    /// Largest record, less room for our headers and the batch around the record.
    pub bytes: usize,
    /// Which timestamps.
    pub timestamps: Timestamps,
}

/// Asked by each life: a transaction that fails because a limit was lowered must not fail again and again.
///
/// # Errors
/// Kafka's.
pub async fn letter_limit(admin: &Admin, options: &Options) -> Result<LetterLimit, kafka::Error> {
    let dead = admin.topic_config(&options.dead_letters).await?;
    // Kafka's default of `max.message.bytes`, where the answer leaves it out.
    let limit = dead.get("max.message.bytes").and_then(|value| value.parse().ok()).unwrap_or(1_048_588usize);
    let bytes = limit.min(CLIENT_LIMIT).saturating_sub(16 * 1024);
    Ok(LetterLimit { bytes, timestamps: Timestamps::of(&dead) })
}

/// A topic that was looked at: its name, and what it is; `None` where it is missing and [`prepare`] would create it, the
/// error where [`prepare`] would end with it. With it what [`prepare`] would warn of.
pub type Seen = (String, Result<(Option<kafka::TopicInfo>, Option<String>), Error>);

/// Looks at all topics of the dataset as [`prepare`] would, creating none. Goes on behind what is wrong with one of them,
/// unless Kafka does not answer.
pub async fn look(admin: &Admin, options: &Options) -> Vec<Seen> {
    let mut seen = Vec::new();
    let sources = options.topics.iter().map(|topic| (topic, options.source_partitions, &[][..]));
    let own: [(_, _, &[_]); 3] = [
        (&options.dead_letters, 1, LETTERS),
        (&options.control, 1, CONTROL),
        (&options.announcements, options.shards as i32, ANNOUNCEMENTS),
    ];
    for (topic, partitions, config) in sources.chain(own) {
        let found = look_at(admin, options, topic, partitions, config).await;
        let is_away = found.as_ref().is_err_and(Error::is_transient);
        seen.push((topic.clone(), found));
        if is_away {
            break;
        }
    }
    seen
}

async fn look_at(
    admin: &Admin,
    options: &Options,
    topic: &str,
    partitions: i32,
    config: &[(&str, &str)],
) -> Result<(Option<kafka::TopicInfo>, Option<String>), Error> {
    let failed = |source| Error::Kafka { topic: topic.to_owned(), source };
    let info = admin.describe(topic).await.map_err(failed)?;
    let mut warning = None;
    match info {
        None if !options.create_topics => return Err(missing(topic, partitions, config)),
        Some(info) if *topic == options.announcements => fits(admin, options, info).await?,
        Some(_) if *topic == options.control => keeps_pins(admin, options).await?,
        Some(_) if *topic == options.dead_letters => {
            let setting = takes_letters(admin, options).await?;
            warning = setting.map(|setting| format!("letters age out by {setting}: set it to -1"));
        }
        _ => {}
    }
    Ok((info, warning))
}

/// What the user of a dataset's writer needs to be allowed; docs/operations.md has the same list.
pub fn needs(options: &Options) -> Vec<Need> {
    use Operation::{Delete, DescribeConfigs, Read, Write};
    let need = |on: On| move |(operation, without)| Need { on: on.clone(), operation, without };
    let topic = |name: &String| need(On::Topic(name.clone()));
    let source = [
        (Read, "nothing is read"),
        (DescribeConfigs, "it is not noticed that a compacted topic has forgotten deletes"),
    ];
    let announcements = [
        (Read, "no life can begin"),
        (Write, "nothing can be announced"),
        (DescribeConfigs, "it is not noticed that the topic loses announcements"),
        (Delete, "announcements of versions that are gone stay"),
    ];
    let letters = [
        (Write, "a record that does not fit stops the dataset"),
        (Read, "no rebuild is carried out that meets records which do not fit"),
        (DescribeConfigs, "it is not known how large a letter may be"),
    ];
    let control = [
        (Read, "pins are not known, and nothing is cleaned"),
        (Write, "no rebuild can be carried out"),
        (DescribeConfigs, "it is not noticed that the topic loses pins"),
    ];
    let group = On::Group(format!("stillwell.{}", options.dataset));
    let sources = options.topics.iter().flat_map(|name| source.map(topic(name)));
    sources
        .chain(announcements.map(topic(&options.announcements)))
        .chain(letters.map(topic(&options.dead_letters)))
        .chain(control.map(topic(&options.control)))
        .chain([(Read, "nobody can own the dataset")].map(need(group)))
        .chain(
            [(Write, "nothing can be announced")]
                .map(need(On::Transactions(format!("{}/", options.dataset)))),
        )
        .collect()
}

/// Says which rights are missing, before what needs them fails: a letter may be long in coming.
pub async fn warn_of_rights(admin: &Admin, options: &Options) {
    if options.kafka.embedded {
        return;
    }
    let (dataset, mut needs) = (&options.dataset, needs(options));
    // Those are tried by the takeover itself.
    needs.retain(|need| !matches!(need.on, On::Transactions(_)));
    match allowed::lacking(admin, &options.kafka, &needs).await {
        Ok(lacking) => {
            for need in lacking {
                tracing::warn!(dataset, "this user lacks the right to {need}");
            }
        }
        Err(error) => tracing::debug!(dataset, %error, "it is not known which rights this user has"),
    }
}

/// Whether the announcement topic keeps what is announced.
async fn fits(admin: &Admin, options: &Options, info: kafka::TopicInfo) -> Result<(), Error> {
    let topic = &options.announcements;
    if info.partitions != options.shards as i32 {
        let (found, wanted) = (info.partitions, options.shards);
        return Err(Error::Shards { topic: topic.clone(), found, wanted });
    }
    let failed = |source| Error::Kafka { topic: topic.clone(), source };
    let config = admin.topic_config(topic).await.map_err(failed)?;
    for (key, wanted) in ANNOUNCEMENTS {
        if let Some(found) = config.get(*key)
            && found != wanted
        {
            let (topic, found) = (topic.clone(), found.clone());
            let why = "announcements are kept for ever";
            return Err(Error::Setting { topic, key, found, why, wanted });
        }
    }
    Ok(())
}

fn missing(topic: &str, partitions: i32, config: &[(&str, &str)]) -> Error {
    let hint = config.iter().map(|(key, value)| format!(", {key}={value}")).collect();
    Error::Missing { topic: topic.to_owned(), partitions, hint }
}

async fn ensure(
    admin: &Admin,
    options: &Options,
    topic: &str,
    partitions: i32,
    config: &[(&str, &str)],
) -> Result<kafka::TopicInfo, Error> {
    let failed = |source| Error::Kafka { topic: topic.to_owned(), source };
    if let Some(info) = admin.describe(topic).await.map_err(failed)? {
        return Ok(info);
    }
    if !options.create_topics {
        return Err(missing(topic, partitions, config));
    }
    let spec = TopicSpec {
        name: topic.to_owned(),
        partitions,
        replication: options.replication,
        config: config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    };
    match admin.create(&spec).await {
        Ok(()) => tracing::info!(topic, partitions, "topic created"),
        // Another instance that starts at the same time was faster.
        Err(kafka::Error::Exists { .. }) => {}
        Err(error) => return Err(failed(error)),
    }
    // Creation is answered by the controller; the broker that is asked next may hear of it a moment later.
    for _ in 0..SETTLE_STEPS {
        if let Some(info) = admin.describe(topic).await.map_err(failed)? {
            return Ok(info);
        }
        tokio::time::sleep(SETTLE_STEP).await;
    }
    Err(failed(kafka::Error::Unavailable {
        doing: format!("creating topic {topic}"),
        detail: "it was created, but the brokers do not show it yet".to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_ages_out_is_no_control_topic() {
        let policy = |policy, ms| {
            let set = of(&[("cleanup.policy", policy), ("retention.ms", ms), ("retention.bytes", "-1")]);
            forgets_pins(&set).map(ToOwned::to_owned)
        };
        assert_eq!(policy("compact", "604800000"), None);
        assert_eq!(policy("delete", "604800000").as_deref(), Some("delete"));
        assert_eq!(policy("compact, delete", "604800000").as_deref(), Some("compact, delete"));
        assert_eq!(policy("delete", "-1"), None, "larger than need be, and whole");
        assert!(forgets_pins(&of(&[("cleanup.policy", "delete"), ("retention.ms", "-1")])).is_some());
        assert_eq!(forgets_pins(&of(&[])), None, "the embedded broker has no settings");
    }

    #[test]
    fn a_letters_topic_is_not_compacted_and_may_age() {
        let keeps = |pairs: &[(&str, &str)]| keeps_letters("p.dlq", &of(pairs));
        for policy in ["compact", "compact,delete", "delete, compact"] {
            let error = keeps(&[("cleanup.policy", policy)]).unwrap_err().to_string();
            assert!(error.contains("p.dlq") && error.ends_with("set cleanup.policy=delete"), "{error}");
        }
        assert_eq!(keeps(&[]).unwrap(), None, "the embedded broker has no settings");
        assert_eq!(keeps(LETTERS).unwrap(), None, "and what we make is right");
        let week = [("cleanup.policy", "delete"), ("retention.ms", "604800000")];
        assert_eq!(keeps(&week).unwrap().as_deref(), Some("retention.ms=604800000"));
        let small = [("retention.ms", "-1"), ("retention.bytes", "1000")];
        assert_eq!(keeps(&small).unwrap().as_deref(), Some("retention.bytes=1000"));
    }

    #[test]
    fn only_what_is_compacted_forgets_deletes() {
        let config = |pairs| remembers_deletes(&of(pairs));
        assert_eq!(config(&[]), None);
        assert_eq!(config(&[("cleanup.policy", "delete"), ("delete.retention.ms", "7")]), None);
        let both = [("cleanup.policy", "delete,compact"), ("delete.retention.ms", "7")];
        assert_eq!(config(&both), Some(Duration::from_millis(7)));
        assert_eq!(
            config(&[("cleanup.policy", "compact")]),
            Some(Duration::from_secs(86_400)),
            "Kafka's default"
        );
    }
}
