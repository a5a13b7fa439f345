//! A test's own topics: made, filled, read back; by librdkafka alone, so that ours is checked by what is not ours.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use crate::{Broker, unique, wait_until};

/// Longest answer of the broker to one request: long past what a loaded machine takes, for it only fails.
const REQUEST: Duration = Duration::from_secs(120);
/// Records that are made before the first is sent: what a batch holds.
const AT_ONCE: usize = 10_000;
/// Lost connections that one reading bears with.
const LOSSES: usize = 20;

/// A topic on a broker.
#[derive(Clone, Debug)]
pub struct Topic {
    bootstrap: String,
    name: String,
}

/// A record to write.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// `None`: no key.
    pub key: Option<Vec<u8>>,
    /// `None`: a delete.
    pub value: Option<Vec<u8>>,
    /// `None`: by `murmur2_random`, as Java's clients choose it.
    pub partition: Option<i32>,
    /// Milliseconds; `None`: now.
    pub timestamp: Option<i64>,
    /// In this order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    /// `key` gets `value`.
    pub fn upsert(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Record {
        Record { key: Some(key.as_ref().into()), value: Some(value.as_ref().into()), ..Record::default() }
    }

    /// `key` goes: a tombstone.
    pub fn delete(key: impl AsRef<[u8]>) -> Record {
        Record { key: Some(key.as_ref().into()), ..Record::default() }
    }
}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Where it stands.
    pub partition: i32,
    /// Its own offset.
    pub offset: i64,
    /// Milliseconds, where the broker gave one.
    pub timestamp: Option<i64>,
    /// As written.
    pub key: Option<Vec<u8>>,
    /// As written.
    pub value: Option<Vec<u8>>,
    /// As written, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Message {
    /// The last header of that name, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rev().find(|(key, _)| key == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }
}

impl Topic {
    /// Makes a topic of the test's own on the shared broker: `name` and something that makes it unique.
    pub fn create(name: &str, partitions: i32) -> Topic {
        Topic::create_on(Broker::shared(), &unique(name), partitions, &[])
    }

    /// Makes topic `name`, exactly so called, on `broker`.
    pub fn create_on(broker: &Broker, name: &str, partitions: i32, config: &[(&str, &str)]) -> Topic {
        let admin = admin(broker.bootstrap());
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(REQUEST)).request_timeout(Some(REQUEST));
        let made = futures::executor::block_on(admin.create_topics([&topic], &options));
        for outcome in made.unwrap_or_else(|e| panic!("creating topic {name}: {e}")) {
            if let Err((topic, code)) = outcome {
                panic!("creating topic {topic}: {code}");
            }
        }
        let topic = Topic { bootstrap: broker.bootstrap().to_owned(), name: name.to_owned() };
        // The controller has it before every broker's metadata does.
        wait_until("the new topic is in the metadata", REQUEST, || {
            let seen = topic.partitions();
            if seen == partitions { Ok(()) } else { Err(format!("{name} has {seen} partitions")) }
        });
        // And who is to lead a partition may not do so yet.
        let asking = topic.consumer();
        wait_until("the new topic's partitions are led", REQUEST, || {
            (0..partitions).try_for_each(|partition| {
                let asked = asking.fetch_watermarks(name, partition, REQUEST);
                asked.map(drop).map_err(|e| format!("partition {partition} of {name}: {e}"))
            })
        });
        topic
    }

    /// A topic of the shared broker that something else makes.
    pub fn named(name: &str) -> Topic {
        Topic::named_on(Broker::shared(), name)
    }

    /// A topic of `broker` that something else makes.
    pub fn named_on(broker: &Broker, name: &str) -> Topic {
        Topic { bootstrap: broker.bootstrap().to_owned(), name: name.to_owned() }
    }

    /// Another topic of the same broker, which something else makes.
    pub fn beside(&self, name: &str) -> Topic {
        Topic { bootstrap: self.bootstrap.clone(), name: name.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many partitions it has; 0 where it does not exist.
    pub fn partitions(&self) -> i32 {
        let metadata = self
            .consumer()
            .fetch_metadata(Some(&self.name), REQUEST)
            .unwrap_or_else(|e| panic!("metadata of {}: {e}", self.name));
        metadata.topics().first().map_or(0, |topic| topic.partitions().len() as i32)
    }

    /// Lowest and next offset of each partition, commit markers included.
    pub fn watermarks(&self) -> Vec<(i64, i64)> {
        let consumer = self.consumer();
        (0..self.partitions())
            .map(|partition| {
                consumer
                    .fetch_watermarks(&self.name, partition, REQUEST)
                    .unwrap_or_else(|e| panic!("watermarks of {}/{partition}: {e}", self.name))
            })
            .collect()
    }

    /// Gives it more partitions, `partitions` in all.
    pub fn grow(&self, partitions: i32) {
        let new = NewPartitions::new(&self.name, partitions as usize);
        let grown = futures::executor::block_on(
            admin(&self.bootstrap).create_partitions([&new], &AdminOptions::new()),
        );
        for outcome in grown.unwrap_or_else(|e| panic!("growing topic {}: {e}", self.name)) {
            if let Err((topic, code)) = outcome {
                panic!("growing topic {topic}: {code}");
            }
        }
        wait_until("the new partitions are in the metadata", REQUEST, || {
            let seen = self.partitions();
            if seen == partitions { Ok(()) } else { Err(format!("{} has {seen} partitions", self.name)) }
        });
    }

    /// Gives it these settings, and the defaults for all others.
    pub fn set(&self, config: &[(&str, &str)]) {
        let change = AlterConfig::new(ResourceSpecifier::Topic(&self.name));
        let change = config.iter().fold(change, |change, (key, value)| change.set(key, value));
        let set = futures::executor::block_on(
            admin(&self.bootstrap).alter_configs([&change], &AdminOptions::new()),
        );
        let set = set.unwrap_or_else(|e| panic!("the settings of topic {}: {e}", self.name));
        assert!(set.iter().all(Result::is_ok), "the settings of topic {}: {set:?}", self.name);
        // The controller has them before the broker acts by them.
        wait_until("the new settings are in force", REQUEST, || {
            let asked = [ResourceSpecifier::Topic(&self.name)];
            let seen = futures::executor::block_on(
                admin(&self.bootstrap).describe_configs(&asked, &AdminOptions::new()),
            );
            let seen = seen.unwrap_or_else(|e| panic!("the settings of topic {}: {e}", self.name)).pop();
            let Some(Ok(seen)) = seen else { return Err(format!("{seen:?}")) };
            let is_set = |(key, value): &(&str, &str)| {
                seen.entries.iter().any(|entry| entry.name == *key && entry.value.as_deref() == Some(*value))
            };
            match config.iter().all(is_set) {
                true => Ok(()),
                false => Err(format!("{config:?} is not in force")),
            }
        });
    }

    /// Deletes it.
    pub fn delete(&self) {
        let gone = futures::executor::block_on(
            admin(&self.bootstrap).delete_topics(&[&self.name], &AdminOptions::new()),
        );
        for outcome in gone.unwrap_or_else(|e| panic!("deleting topic {}: {e}", self.name)) {
            if let Err((topic, code)) = outcome {
                panic!("deleting topic {topic}: {code}");
            }
        }
    }

    /// Deletes the records of `partition` below `offset`, as retention would.
    pub fn delete_before(&self, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.name, partition, Offset::Offset(offset)).expect("a plain offset");
        futures::executor::block_on(admin(&self.bootstrap).delete_records(&list, &AdminOptions::new()))
            .unwrap_or_else(|e| panic!("deleting records of {}: {e}", self.name));
    }

    /// Writes all `records`, in order within a key, and returns their number once the broker has each of them.
    ///
    /// Few records of a partition (up to a megabyte) come to the broker in one piece, and so to who reads them, or a version
    /// were made of half of them: all are there before the client is, which takes longer to connect than to queue them.
    pub fn produce(&self, records: impl IntoIterator<Item = Record>) -> usize {
        let mut records = records.into_iter();
        let first: Vec<Record> = records.by_ref().take(AT_ONCE).collect();
        let producer: BaseProducer<Deliveries> = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "20")
            .set("batch.size", "1000000")
            .set("compression.type", "lz4")
            .set("message.max.bytes", "50000000")
            .set("queue.buffering.max.messages", "500000")
            .set("queue.buffering.max.kbytes", "262144")
            .create_with_context(Deliveries::default())
            .expect("a producer can be made");
        let mut sent = 0;
        for record in first.into_iter().chain(records) {
            self.send(&producer, &record);
            sent += 1;
            if sent % 1_000 == 0 {
                producer.poll(Duration::ZERO);
            }
        }
        producer.flush(Duration::from_secs(120)).unwrap_or_else(|e| panic!("flushing {}: {e}", self.name));
        let failed = producer.context().failed.lock().expect("no callback panics").clone();
        if let Some(first) = failed.first() {
            panic!("{} of {sent} records were not written to {}, first: {first}", failed.len(), self.name);
        }
        sent
    }

    fn send(&self, producer: &BaseProducer<Deliveries>, record: &Record) {
        let mut out: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&self.name);
        out.key = record.key.as_deref();
        out.payload = record.value.as_deref();
        out.partition = record.partition;
        out.timestamp = record.timestamp;
        if !record.headers.is_empty() {
            out.headers =
                Some(
                    record.headers.iter().fold(
                        OwnedHeaders::new_with_capacity(record.headers.len()),
                        |headers, (key, value)| headers.insert(Header { key, value: value.as_deref() }),
                    ),
                );
        }
        loop {
            match producer.send(out) {
                Ok(()) => return,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    producer.poll(Duration::from_millis(100));
                    out = back;
                }
                Err((e, _)) => panic!("writing to {}: {e}", self.name),
            }
        }
    }

    /// All committed records, from each partition's beginning to its end as it stands now, partition by partition.
    pub fn read(&self) -> Vec<Message> {
        self.read_at(&vec![
            Offset::Beginning;
            usize::try_from(self.partitions()).expect("no fewer than none")
        ])
    }

    /// [`Topic::read`], each partition from the offset given for it on.
    pub fn read_from(&self, offsets: &[i64]) -> Vec<Message> {
        self.read_at(&offsets.iter().map(|offset| Offset::Offset(*offset)).collect::<Vec<_>>())
    }

    /// [`Topic::read_from`], from the beginning where that is not there any more.
    pub fn read_on(&self, offsets: &[i64]) -> Vec<Message> {
        let offsets = offsets.iter().map(|offset| Offset::Offset(*offset)).collect::<Vec<_>>();
        self.read_by(&self.consumer_from("earliest"), &offsets)
    }

    /// The records of one partition from an offset on, aborted and open transactions' too.
    pub fn uncommitted_at(&self, partition: i32, offset: i64) -> Vec<Message> {
        let consumer = self.configured("earliest").set("isolation.level", "read_uncommitted").create();
        let consumer: BaseConsumer = consumer.expect("a consumer can be made");
        let from: Vec<Offset> = (0..self.partitions())
            .map(|other| if other == partition { Offset::Offset(offset) } else { Offset::End })
            .collect();
        self.read_by(&consumer, &from)
    }

    /// What a group has committed of each partition by now, whatever a transaction under way would commit.
    ///
    /// # Errors
    /// The group's coordinator does not answer within `patience`.
    pub fn committed(&self, group: &str, patience: Duration) -> Result<Vec<Option<i64>>, KafkaError> {
        let mut config = self.configured("error");
        let client: BaseConsumer = config
            .set("group.id", group)
            .set("isolation.level", "read_uncommitted")
            .set_log_level(RDKafkaLogLevel::Emerg)
            .create()
            .expect("a consumer can be made");
        let mut list = TopicPartitionList::new();
        for partition in 0..self.partitions() {
            list.add_partition(&self.name, partition);
        }
        let offset = |offset| match offset {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        let committed = client.committed_offsets(list, patience)?;
        Ok(committed.elements().iter().map(|element| offset(element.offset())).collect())
    }

    fn read_at(&self, from: &[Offset]) -> Vec<Message> {
        self.read_by(&self.consumer(), from)
    }

    fn read_by(&self, consumer: &BaseConsumer, from: &[Offset]) -> Vec<Message> {
        let mut open: HashSet<i32> = (0..from.len() as i32).collect();
        let mut list = TopicPartitionList::new();
        for (partition, offset) in (0..).zip(from) {
            list.add_partition_offset(&self.name, partition, *offset).expect("a plain offset");
        }
        consumer.assign(&list).unwrap_or_else(|e| panic!("assigning {}: {e}", self.name));
        let (mut messages, mut losses) = (Vec::new(), 0);
        while !open.is_empty() {
            // An end event comes for every partition; what makes no progress in this time is stuck.
            let polled = consumer
                .poll(REQUEST)
                .unwrap_or_else(|| panic!("{}: no record and no end of partitions {open:?}", self.name));
            match polled {
                Ok(message) => messages.push(Message {
                    partition: message.partition(),
                    offset: message.offset(),
                    timestamp: message.timestamp().to_millis(),
                    key: message.key().map(Into::into),
                    value: message.payload().map(Into::into),
                    headers: message
                        .headers()
                        .map(|headers| {
                            headers
                                .iter()
                                .map(|header| (header.key.to_owned(), header.value.map(Into::into)))
                                .collect()
                        })
                        .unwrap_or_default(),
                }),
                Err(KafkaError::PartitionEOF(partition)) => {
                    open.remove(&partition);
                }
                // A connection that broke off, which the client makes anew.
                Err(e) if is_lost(&e) && losses < LOSSES => losses += 1,
                Err(e) => panic!("reading {}: {e}", self.name),
            }
        }
        messages.sort_by_key(|message| (message.partition, message.offset));
        messages
    }

    /// Reads again and again until `done` is `Ok`, and returns what it held.
    #[track_caller]
    pub fn read_until<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut done: impl FnMut(&[Message]) -> Result<T, String>,
    ) -> T {
        wait_until(what, deadline, || {
            if self.partitions() == 0 {
                return Err(format!("topic {} does not exist", self.name));
            }
            done(&self.read())
        })
    }

    fn consumer(&self) -> BaseConsumer {
        self.consumer_from("error")
    }

    fn consumer_from(&self, lost: &str) -> BaseConsumer {
        self.configured(lost).create().expect("a consumer can be made")
    }

    fn configured(&self, lost: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            // Never joined: even `assign` needs one.
            .set("group.id", "stillwell-tests")
            .set("allow.auto.create.topics", "false")
            .set("auto.offset.reset", lost)
            .set("check.crcs", "true")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "50")
            .set("isolation.level", "read_committed");
        config
    }
}

/// Whether it says that a connection is gone, and nothing else.
fn is_lost(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(code, Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown))
}

fn admin(bootstrap: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", bootstrap).create().expect("an admin client can be made")
}

/// Keeps what was not delivered.
#[derive(Default)]
struct Deliveries {
    failed: Mutex<Vec<String>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, outcome: &DeliveryResult<'_>, (): ()) {
        if let Err((e, _)) = outcome {
            self.failed.lock().expect("no callback panics").push(e.to_string());
        }
    }
}
