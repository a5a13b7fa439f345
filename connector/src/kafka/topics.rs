//! Topics: what they are, what they are set to, how far they reach, and making those that are missing.
//!
//! Owns: administration. Does not own: which topics there should be, and with what settings.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::Instant;

use crate::record::TopicId;

use super::client::{Context, make};
use super::tokens::Kept;
use super::{Error, Options, describe, ids, reach};

/// How long one request may take. Longer than any healthy broker needs, short enough that a start which waits for
/// Kafka says so soon.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How often what the client says is looked at while it waits for an answer: that no broker is left is to be heard at
/// once, and not after the time that one request may take.
const SERVE: Duration = Duration::from_millis(100);

/// How long a group's coordinator may be late: a cluster that has just begun makes the topic of all groups' offsets with the
/// first question for one, and loads each of its partitions.
const COORDINATED: Duration = Duration::from_secs(30);

/// How long it is left alone before it is asked again.
const COORDINATOR_PAUSE: Duration = Duration::from_millis(100);

/// After so many of those a broker that is there would have been found again (`reconnect.backoff.max.ms`).
const FOUND_AGAIN: u32 = 11;

/// What a topic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its id; the zero id from the embedded broker, which has none.
    pub id: TopicId,
    /// Its partitions.
    pub partitions: i32,
}

/// What a topic is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Name.
    pub name: String,
    /// Partitions.
    pub partitions: i32,
    /// Replicas; `None`: the broker's default.
    pub replication: Option<i16>,
    /// Settings other than the broker's defaults.
    pub config: BTreeMap<String, String>,
}

/// Which timestamps a topic takes, in milliseconds around the broker's now. Kafka 4 takes none of more than an hour ahead
/// by default (KIP-1030).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamps {
    /// How far back (`message.timestamp.before.max.ms`).
    pub before_ms: i64,
    /// How far ahead (`message.timestamp.after.max.ms`).
    pub after_ms: i64,
}

impl Timestamps {
    /// By a topic's settings.
    pub fn of(config: &BTreeMap<String, String>) -> Timestamps {
        let of = |key: &str| config.get(key).and_then(|ms| ms.parse().ok()).unwrap_or(i64::MAX);
        if config.get("message.timestamp.type").is_some_and(|by| by == "LogAppendTime") {
            // The broker writes its own, whatever is sent.
            return Timestamps { before_ms: i64::MAX, after_ms: i64::MAX };
        }
        // One setting for both before Kafka 3.6.
        let both = of("message.timestamp.difference.max.ms");
        Timestamps {
            before_ms: both.min(of("message.timestamp.before.max.ms")),
            after_ms: both.min(of("message.timestamp.after.max.ms")),
        }
    }

    /// Whether a record of this timestamp is taken at `now`. One without (-1) is.
    pub fn take(&self, timestamp: i64, now: i64) -> bool {
        timestamp < 0
            || (now.saturating_sub(timestamp) <= self.before_ms
                && timestamp.saturating_sub(now) <= self.after_ms)
    }
}

/// The administrative client. Cheap to clone.
#[derive(Clone)]
pub struct Admin(Arc<Inner>);

struct Inner {
    client: Kept<AdminClient<Context>>,
    servers: String,
    embedded: bool,
}

impl Admin {
    /// A client. Does not wait for Kafka.
    ///
    /// # Errors
    /// [`Error::Options`] for a property that librdkafka refuses.
    pub fn new(options: &Options) -> Result<Admin, Error> {
        let doing = || format!("making the administrative client for {}", options.bootstrap_servers);
        // Nothing serves this client between calls, so its statistics would only pile up.
        // rdkafka asks for errors as events for its other clients only; without, they are log lines (8: errors, 4: lines).
        let fixed = [("statistics.interval.ms", "0"), ("enabled_events", "12")];
        let client = make(options, &[], &fixed, Context::new("admin", options), doing)?;
        let (servers, embedded) = (options.bootstrap_servers.clone(), options.embedded);
        Ok(Admin(Arc::new(Inner { client, servers, embedded })))
    }

    /// What a topic is, or `None` if there is none. Never creates it.
    pub async fn describe(&self, topic: &str) -> Result<Option<TopicInfo>, Error> {
        let doing = self.doing("describing topic", topic);
        let name = topic.to_owned();
        let found = self.blocking(move |inner| {
            if inner.embedded {
                return inner.list(&name, &doing);
            }
            match describe::topic(inner.client.inner(), &name, false, TIMEOUT) {
                Ok(found) => {
                    let partitions = i32::try_from(found.partitions).unwrap_or(i32::MAX);
                    Ok(Some(TopicInfo { id: found.id, partitions }))
                }
                Err((Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownTopicId, _)) => {
                    Ok(None)
                }
                Err((code, words)) => Err(Error::from_code(doing, code, &words)),
            }
        });
        found.await
    }

    /// The operations that Kafka allows on a topic, by number, none where it does not tell; `None`: there is no such topic.
    ///
    /// # Errors
    /// [`Error::Denied`] where not even describing it is allowed.
    pub(super) async fn allowed_on_topic(&self, topic: &str) -> Result<Option<Vec<i32>>, Error> {
        let doing = self.doing("asking what is allowed on topic", topic);
        let name = topic.to_owned();
        let found =
            self.blocking(move |inner| match describe::topic(inner.client.inner(), &name, true, TIMEOUT) {
                Ok(found) => Ok(Some(found.allowed)),
                Err((Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownTopicId, _)) => {
                    Ok(None)
                }
                Err((code, words)) => Err(Error::from_code(doing, code, &words)),
            });
        found.await
    }

    /// The same of a group, which need not be there. Waits for its coordinator, which is made with the first question.
    pub(super) async fn allowed_on_group(&self, group: &str) -> Result<Vec<i32>, Error> {
        let doing = self.doing("asking what is allowed on group", group);
        let ask = || {
            let (name, doing) = (group.to_owned(), doing.clone());
            self.blocking(move |inner| match describe::group(inner.client.inner(), &name, TIMEOUT) {
                Ok(allowed) => Ok(Ok(allowed)),
                Err((code, words)) => {
                    let error = Error::from_code(doing, code, &words);
                    // That it is late is an answer, too: Kafka is there.
                    if is_late(code) { Ok(Err(error)) } else { Err(error) }
                }
            })
        };
        coordinated(COORDINATED, ask).await
    }

    /// The settings of a topic, defaults included; secret ones are left out. Empty from the embedded broker.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is no such topic.
    pub async fn topic_config(&self, topic: &str) -> Result<BTreeMap<String, String>, Error> {
        if self.0.embedded {
            return Ok(BTreeMap::new());
        }
        let doing = || self.doing("reading the settings of topic", topic);
        let resource = [ResourceSpecifier::Topic(topic)];
        let options = admin_options();
        let asked = self.0.client.describe_configs(&resource, &options);
        let mut answer =
            self.heard(async { asked.await.map_err(|error| Error::from_kafka(doing(), &error)) }).await?;
        match answer.pop() {
            // rdkafka drops the resource's own error, and a topic always has settings: ask what is wrong.
            Some(Ok(resource)) if resource.entries.is_empty() => Err(match self.describe(topic).await? {
                None => Error::from_code(doing(), Code::UnknownTopicOrPartition, ""),
                Some(_) => Error::from_code(
                    doing(),
                    Code::TopicAuthorizationFailed,
                    "DescribeConfigs is not allowed",
                ),
            }),
            Some(Ok(resource)) => {
                let set = resource.entries.into_iter().filter(|entry| !entry.is_sensitive);
                Ok(set.filter_map(|entry| Some((entry.name, entry.value?))).collect())
            }
            Some(Err(code)) => Err(Error::from_code(doing(), code, "")),
            None => {
                Err(Error::Unavailable { doing: doing(), detail: "the answer names no topic".to_owned() })
            }
        }
    }

    /// Makes a topic.
    ///
    /// # Errors
    /// [`Error::Exists`] where somebody was faster: describe it then. [`Error::Denied`] without the right to create;
    /// [`Error::Rejected`] for a name, count or setting that the broker does not take.
    pub async fn create(&self, spec: &TopicSpec) -> Result<(), Error> {
        let doing = || self.doing("creating topic", &spec.name);
        if self.0.embedded {
            let detail = "the embedded broker creates topics through its Cluster only".to_owned();
            return Err(Error::Rejected { doing: doing(), detail });
        }
        let replication = TopicReplication::Fixed(spec.replication.map_or(-1, i32::from));
        let mut topic = NewTopic::new(&spec.name, spec.partitions, replication);
        for (key, value) in &spec.config {
            topic = topic.set(key, value);
        }
        let options = admin_options().operation_timeout(Some(TIMEOUT));
        let asked = self.0.client.create_topics([&topic], &options);
        let asked = async { asked.await.map_err(|error| Error::from_kafka(doing(), &error)) };
        match self.heard(asked).await?.pop() {
            Some(Ok(_)) => Ok(()),
            Some(Err((_, code))) => Err(Error::from_code(doing(), code, "")),
            None => {
                Err(Error::Unavailable { doing: doing(), detail: "the answer names no topic".to_owned() })
            }
        }
    }

    /// Deletes a topic. One that is not there is no error.
    ///
    /// # Errors
    /// [`Error::Denied`] without the right to delete.
    pub async fn delete(&self, topic: &str) -> Result<(), Error> {
        if self.0.embedded {
            return Ok(());
        }
        let doing = || self.doing("deleting topic", topic);
        let (topics, options) = ([topic], admin_options());
        let asked = self.0.client.delete_topics(&topics, &options);
        let asked = async { asked.await.map_err(|error| Error::from_kafka(doing(), &error)) };
        match self.heard(asked).await?.pop() {
            Some(Ok(_)) | None => Ok(()),
            Some(Err((_, Code::UnknownTopicOrPartition | Code::UnknownTopic))) => Ok(()),
            Some(Err((_, code))) => Err(Error::from_code(doing(), code, "")),
        }
    }

    /// The first offset that is there, and the end up to which `read_committed` readers see: the last stable offset,
    /// which an open transaction holds back.
    pub async fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), Error> {
        let doing = self.doing("reading the ends of", &format!("{topic}[{partition}]"));
        let topic = topic.to_owned();
        let found = self.blocking(move |inner| {
            let client = inner.client.inner();
            let mut ends = client.fetch_watermarks(&topic, partition, TIMEOUT);
            let code = ends.as_ref().err().and_then(|error| error.rdkafka_error_code());
            if let Some(Code::UnknownPartition | Code::UnknownTopic) = code
                && client.fetch_metadata(Some(&topic), TIMEOUT).is_ok()
            {
                // It said so from memory, where a topic that was once found missing stays for `metadata.max.age.ms`, a quarter
                // of an hour, though it was made anew since. Now it has asked.
                ends = client.fetch_watermarks(&topic, partition, TIMEOUT);
            }
            ends.map_err(|error| Error::from_kafka(doing, &error))
        });
        found.await
    }

    /// Deletes a partition's records below `before`. Deleting what is gone already is no error.
    pub async fn delete_records(&self, topic: &str, partition: i32, before: i64) -> Result<(), Error> {
        let what = format!("{topic}[{partition}] below {before}");
        let doing = || self.doing("deleting records of", &what);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(before))
            .map_err(|error| Error::from_kafka(doing(), &error))?;
        if self.0.embedded {
            return Ok(());
        }
        let options = admin_options();
        let asked = self.0.client.delete_records(&list, &options);
        let answer =
            self.heard(async { asked.await.map_err(|error| Error::from_kafka(doing(), &error)) }).await?;
        // Not held while something is asked: librdkafka's list must not go from thread to thread.
        let refused = answer.elements().iter().find_map(|element| element.error().err());
        drop(answer);
        match refused {
            None => Ok(()),
            Some(KafkaError::OffsetFetch(Code::OffsetOutOfRange)) => {
                // Below the first offset: gone already. Above the end: a position of a topic that was made anew.
                let (low, _) = self.watermarks(topic, partition).await?;
                match before > low {
                    true => Err(Error::from_code(doing(), Code::OffsetOutOfRange, "")),
                    false => Ok(()),
                }
            }
            Some(error) => Err(Error::from_kafka(doing(), &error)),
        }
    }

    /// Whether Kafka answers at all: its number of brokers.
    pub async fn brokers(&self) -> Result<usize, Error> {
        let doing = format!("asking for the brokers of {}", self.0.servers);
        let found = self.blocking(move |inner| {
            let metadata = inner.client.inner().fetch_metadata(None, TIMEOUT);
            metadata
                .map(|metadata| metadata.brokers().len())
                .map_err(|error| Error::from_kafka(doing, &error))
        });
        found.await
    }

    fn doing(&self, what: &str, name: &str) -> String {
        format!("{what} {name} at {}", self.0.servers)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = Arc::clone(&self.0);
        let called = tokio::task::spawn_blocking(move || call(&inner));
        self.heard(async { called.await.expect("a call of librdkafka does not panic") }).await
    }

    /// Waits for a request, and meanwhile hears what the client says.
    async fn heard<T>(&self, request: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let client = self.0.client.inner();
        // Of what it said since the last request nobody knows when that was. That no broker is left it says once: it
        // counts if there is no answer either by the time that finding the broker again may take, and nobody listens.
        let before = ids::serve_unread(client, false);
        let mut request = std::pin::pin!(request);
        let mut waits = 0;
        let answer = loop {
            match tokio::time::timeout(SERVE, request.as_mut()).await {
                Ok(answer) => break answer,
                Err(_) => ids::serve_unread(client, true),
            };
            waits += 1;
            if before && waits == FOUND_AGAIN {
                tokio::select! {
                    biased;
                    answer = request.as_mut() => break answer,
                    there = reach::listens(&self.0.servers) => if !there {
                        client.context().lost();
                    },
                }
            }
        };
        ids::serve_unread(client, answer.is_err());
        match answer.map_err(|error| client.context().excused(error)) {
            Err(error) if error.is_transient() => Err(client.context().explain(error)),
            Err(error @ (Error::Options { .. } | Error::Fatal { .. } | Error::Closed { .. })) => Err(error),
            // A refusal is an answer.
            answer => {
                client.context().answered();
                answer
            }
        }
    }
}

impl Inner {
    /// The embedded broker creates a topic that it is asked for by name, hence the list of all.
    fn list(&self, topic: &str, doing: &str) -> Result<Option<TopicInfo>, Error> {
        let metadata = self.client.inner().fetch_metadata(None, TIMEOUT);
        let metadata = metadata.map_err(|error| Error::from_kafka(doing, &error))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        Ok(found.map(|found| TopicInfo {
            id: TopicId::default(),
            partitions: i32::try_from(found.partitions().len()).unwrap_or(i32::MAX),
        }))
    }
}

/// Whether a group has no coordinator yet, and will have one by itself.
fn is_late(code: Code) -> bool {
    matches!(
        code,
        Code::NotCoordinator
            | Code::CoordinatorNotAvailable
            | Code::CoordinatorLoadInProgress
            | Code::WaitingForCoordinator
    )
}

/// Asks until the coordinator is there; the inner error says that it is late.
async fn coordinated<T, Asked: Future<Output = Result<Result<T, Error>, Error>>>(
    patience: Duration,
    mut ask: impl FnMut() -> Asked,
) -> Result<T, Error> {
    let deadline = Instant::now() + patience;
    loop {
        match ask().await? {
            Ok(answer) => return Ok(answer),
            Err(late) if Instant::now() >= deadline => return Err(late),
            Err(_) => tokio::time::sleep(COORDINATOR_PAUSE).await,
        }
    }
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(TIMEOUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_says_which_timestamps_it_takes() {
        let of = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            Timestamps::of(&pairs.collect())
        };
        let hour = ("message.timestamp.after.max.ms", "3600000");
        let four = of(&[hour, ("message.timestamp.before.max.ms", "9223372036854775807")]);
        assert!(four.take(0, i64::MAX) && four.take(3_600_010, 10) && !four.take(3_600_011, 10));
        assert!(four.take(-1, 0));
        let day = of(&[("message.timestamp.before.max.ms", "86400000")]);
        assert!(day.take(0, 86_400_000) && !day.take(0, 86_400_001) && day.take(i64::MAX, 0));
        assert_eq!(of(&[("message.timestamp.difference.max.ms", "7"), hour]).after_ms, 7);
        let stamped = of(&[hour, ("message.timestamp.type", "LogAppendTime")]);
        assert!(stamped.take(i64::MAX, 0));
        assert!(of(&[]).take(i64::MAX, 0), "the embedded broker has no settings");
    }
    #[tokio::test]
    async fn a_coordinator_that_is_late_is_asked_again() {
        let failed = |code| Error::from_code("asking", code, "");
        let mut late =
            vec![Code::NotCoordinator, Code::CoordinatorNotAvailable, Code::CoordinatorLoadInProgress];
        assert!(late.iter().all(|code| is_late(*code)) && !is_late(Code::GroupAuthorizationFailed));
        let mut asked = 0;
        let answer = coordinated(Duration::from_secs(60), || {
            asked += 1;
            std::future::ready(Ok(late.pop().map_or(Ok(7), |code| Err(failed(code)))))
        });
        assert_eq!(answer.await.unwrap(), 7);
        assert_eq!(asked, 4);
        let never = || std::future::ready(Ok(Err::<(), _>(failed(Code::NotCoordinator))));
        assert!(coordinated(Duration::ZERO, never).await.unwrap_err().is_transient());
        let mut asked = 0;
        let denied = coordinated(Duration::from_secs(60), || {
            asked += 1;
            std::future::ready(Err::<Result<(), Error>, _>(failed(Code::GroupAuthorizationFailed)))
        });
        assert!(matches!(denied.await, Err(Error::Denied { .. })));
        assert_eq!(asked, 1);
    }
}
