//! What is cleaned is kept here: announcements that are trimmed and blobs that are deleted before the oracle has looked.
//!
//! ```text
//!  announcement topic --one consumer, all the time--> messages      for the oracle, which reads in leaps
//!  store's folder -----a hard link of each blob-----> archive/      a link outlives the name that is deleted
//! ```
//!
//! It may be late where the machine is slow: then the oracle passes over what it cannot have seen, and counts that.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use super::blobs::{Blobs, is_whole};
use crate::topic::Message;

/// Between two looks at the folder.
const STEP: Duration = Duration::from_millis(20);

/// Watches a topic and a folder until it is dropped.
#[derive(Debug)]
pub struct Archive {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    messages: Mutex<BTreeMap<i64, Message>>,
    stop: Mutex<bool>,
}

impl Archive {
    /// Keeps what is written to partition 0 of `topic`, and the blobs that come into `store`, in the folder `into`.
    pub fn start(bootstrap: &str, topic: &str, store: &Path, into: &Path) -> Archive {
        std::fs::create_dir_all(into).expect("a folder can be made");
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", "stillwell-tests")
            .set("allow.auto.create.topics", "false")
            // What was trimmed before it came is gone.
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "20")
            .set("isolation.level", "read_committed")
            // A broker that is back is read from at once: what is announced then may soon be cleaned.
            .set("reconnect.backoff.max.ms", "200")
            // The topic is made by the first writer.
            .set("topic.metadata.refresh.interval.ms", "200")
            .set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg)
            .create()
            .expect("a consumer can be made");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, 0, Offset::Beginning).expect("a plain offset");
        consumer.assign(&list).expect("a partition can be assigned");
        let shared = Arc::new(Shared { messages: Mutex::default(), stop: Mutex::new(false) });
        let thread = std::thread::Builder::new()
            .name("archive".into())
            .spawn({
                let (shared, store, into) = (shared.clone(), store.to_owned(), into.to_owned());
                move || keep(&shared, &consumer, &store, &into)
            })
            .expect("a thread can be started");
        Archive { shared, thread: Some(thread) }
    }

    /// The announcement topic's messages from an offset on, as far as they have come; those before are let go of.
    pub fn messages_from(&self, offset: i64) -> Vec<Message> {
        let mut messages = lock(&self.shared.messages);
        *messages = messages.split_off(&offset);
        messages.values().cloned().collect()
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        *lock(&self.shared.stop) = true;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep(shared: &Shared, consumer: &BaseConsumer, store: &Path, into: &Path) {
    let (mut linked, store) = (HashSet::new(), Blobs::new(store));
    while !*lock(&shared.stop) {
        // Errors pass: a broker that is away comes back, a topic that is not there yet comes.
        while let Some(polled) = consumer.poll(STEP) {
            let Ok(message) = polled else { break };
            let kept = Message {
                partition: message.partition(),
                offset: message.offset(),
                timestamp: message.timestamp().to_millis(),
                key: message.key().map(Into::into),
                value: message.payload().map(Into::into),
                headers: Vec::new(),
            };
            lock(&shared.messages).insert(kept.offset, kept);
            link(&store, into, &mut linked);
        }
        link(&store, into, &mut linked);
    }
}

fn link(store: &Blobs, into: &Path, linked: &mut HashSet<String>) {
    for (name, _) in store.all() {
        if !is_whole(&name) || linked.contains(&name) {
            continue;
        }
        let to = into.join(&name);
        let made = to.parent().map_or(Ok(()), std::fs::create_dir_all);
        // Gone meanwhile, or the store is away: then it was late.
        if made.and_then(|()| std::fs::hard_link(store.path(&name), &to)).is_ok() {
            linked.insert(name);
        }
    }
}

/// The folder beside a scene's store.
pub fn folder(dir: &Path) -> PathBuf {
    dir.join("archive")
}
