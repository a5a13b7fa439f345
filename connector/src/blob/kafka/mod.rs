//! A store in a topic: nothing but Kafka is needed.
//!
//! ```text
//!  put:  begun ----------> partition 0 (catalogue)                          each acknowledged by all replicas
//!        chunks -----------------------------------> one of partitions 1..  before the next
//!        complete -------> partition 0       <- from here on there is such a blob
//!  get:  catalogue, read on to its end -> which offsets -> those chunks, each with its checksum
//! ```
//!
//! The topic is compacted: what is deleted is a record without a value. The catalogue is small, a record for each blob, so that
//! a process reads it once and follows it; of the chunks only what is asked for is read. Two uploads of one name have
//! chunks of their own, told apart by a random id, and their order in the catalogue says which is the blob
//! ([`catalogue`]): nothing of one life's ever mixes with another's. An upload that ended in the middle is seen by nobody,
//! and is cleaned up after a day by who uploads next: it said beforehand how many chunks it would have.
//!
//! Owns: blobs as records. Does not own: Kafka's clients (`kafka/`), the records' bytes (`format/upload`).

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::object::pieces;
use super::{BlobStore, Body, Content, Error, Listed, Part, Put, Tag};
use crate::clock::{Clock, Entropy};
use crate::failpoint;
use crate::format::upload::{Upload, chunk, chunk_key, upload_key};
use crate::kafka::{self, Admin, Outgoing, Receipt, Sender};
use crate::record::TopicId;

mod catalogue;
mod read;
mod topic;

pub(in crate::blob) use topic::{check_name, needs};

use catalogue::{Catalogue, Entry};
use read::{Book, Followed, Readers};

/// The partition with the catalogue.
const CATALOGUE: i32 = 0;
/// Chunks of an upload that may be under way; with the size of a chunk this bounds its memory.
const UNDER_WAY: usize = 4;
/// After so long an upload that was not completed is nobody's any more. The longest attempt allowed by `write_timeout` moves
/// 80 GB in that time.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);
/// An upload that took longer than this is not completed: who cleans up might be at it.
const LONGEST: Duration = Duration::from_secs(12 * 60 * 60);

/// How often, and how long after each other, a topic that was made is looked for.
const SETTLE_STEPS: u32 = 100;
const SETTLE_STEP: Duration = Duration::from_millis(50);

/// What a store in a topic needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster.
    pub kafka: kafka::Options,
    /// Whether a missing topic is made by who first puts into it.
    pub create: bool,
    /// Replicas of a topic that is made; `None`: the broker's default.
    pub replication: Option<i16>,
}

/// The store.
pub(super) struct Topic {
    base: String,
    name: String,
    options: Options,
    admin: Admin,
    /// Made by the first put: who only reads needs no producer. Another one is made after an error that this one keeps, or
    /// that a topic which was changed meanwhile explains.
    writing: Mutex<Arc<OnceCell<Arc<Writing>>>>,
    /// Partitions; 0 before they are known.
    partitions: AtomicI32,
    /// Its id when it was last looked at: one that was made anew has another.
    id: Mutex<Option<TopicId>>,
    catalogue: Arc<Mutex<Catalogue>>,
    /// Held by threads alone, for as long as they read.
    book: Arc<Mutex<Book>>,
    readers: Readers,
    clock: Clock,
    entropy: Entropy,
}

/// What it takes to put.
struct Writing {
    sender: Sender,
    /// Bytes of a record's key and value together, at most.
    record: usize,
    partitions: i32,
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topic").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Topic {
    /// A store in topic `name`. Connects to nothing yet.
    pub(super) fn open(base: &str, name: &str, options: &Options) -> Result<Topic, Error> {
        let refused = |problem: String| Error::Url { url: base.to_owned(), problem };
        topic::check_name(name).map_err(|problem| refused(problem.to_owned()))?;
        if options.kafka.embedded {
            return Err(refused("the embedded broker keeps too little for blobs; use memory://".to_owned()));
        }
        let admin = Admin::new(&options.kafka).map_err(|error| refused(error.to_string()))?;
        let group = format!("stillwell.{name}");
        let readers = Readers::new(&options.kafka, name, &group);
        let catalogue = Arc::default();
        let book = Book::new(&options.kafka, name, &group, Arc::clone(&catalogue));
        Ok(Topic {
            base: base.to_owned(),
            name: name.to_owned(),
            options: options.clone(),
            admin,
            writing: Mutex::default(),
            partitions: AtomicI32::new(0),
            id: Mutex::default(),
            catalogue,
            book: Arc::new(Mutex::new(book)),
            readers,
            clock: Clock::system(),
            entropy: Entropy::system(),
        })
    }

    fn url(&self, name: &str) -> String {
        if name.is_empty() { self.base.clone() } else { format!("{}/{name}", self.base) }
    }

    fn error(&self, doing: &'static str, name: &str, error: kafka::Error) -> Error {
        if !error.is_transient() {
            self.forget();
        }
        read::explain(doing, self.url(name), error)
    }

    /// Whoever tries again looks at the topic first: it may be gone, another one, or have other settings.
    fn forget(&self) {
        self.partitions.store(0, Ordering::Relaxed);
        *locked(&self.writing) = Arc::default();
    }

    /// The topic's partitions, two at least.
    async fn partitions(&self, doing: &'static str, name: &str) -> Result<i32, Error> {
        let known = self.partitions.load(Ordering::Relaxed);
        if known > 0 {
            return Ok(known);
        }
        let info = self.admin.describe(&self.name).await.map_err(|error| self.error(doing, name, error))?;
        let refused = |problem| Err(Error::Refused { doing, url: self.url(name), problem });
        let Some(info) = info else {
            return refused(format!(
                "topic {} does not exist: its first writer makes it where create_topics allows that, or make it by hand: {}",
                self.name,
                topic::WANTED
            ));
        };
        if info.partitions < 2 {
            let what =
                format!("topic {} has one partition, and blobs need two: {}", self.name, topic::WANTED);
            return refused(what);
        }
        self.partitions.store(info.partitions, Ordering::Relaxed);
        Ok(info.partitions)
    }

    /// Looks at the topic, makes it where it is missing, and makes the producer.
    async fn writing(&self, name: &str) -> Result<Arc<Writing>, Error> {
        let make = async {
            let error = |error| self.error("storing", name, error);
            if self.options.create && self.admin.describe(&self.name).await.map_err(error)?.is_none() {
                self.make().await.map_err(error)?;
            }
            let partitions = self.partitions("storing", name).await?;
            let settings = self.admin.topic_config(&self.name).await.map_err(error)?;
            let record = topic::record_limit(&settings).map_err(|problem| {
                let problem = format!("topic {} {problem}", self.name);
                Error::Refused { doing: "storing", url: self.url(name), problem }
            })?;
            let mut kafka = self.options.kafka.clone();
            // The broker's limit is of a batch of records; librdkafka's is a megabyte, whatever the topic's is.
            kafka.properties.insert("batch.size".to_owned(), record.to_string());
            // What is waited for, each by itself, is not to wait for company.
            kafka.properties.insert("linger.ms".to_owned(), "0".to_owned());
            let sender = Sender::new(&kafka).map_err(error)?;
            Ok(Arc::new(Writing { sender, record, partitions }))
        };
        let writing = locked(&self.writing).clone();
        writing.get_or_try_init(|| make).await.cloned()
    }

    /// Makes the topic, and waits until brokers show it and lead its partitions.
    async fn make(&self) -> Result<(), kafka::Error> {
        match self.admin.create(&topic::spec(&self.name, self.options.replication)).await {
            Ok(()) => tracing::info!(topic = self.name, "made the topic of the blob store"),
            // Another instance that starts at the same time was faster.
            Err(kafka::Error::Exists { .. }) => {}
            Err(error) => return Err(error),
        }
        // Creation is answered by the controller; the broker that is asked next may hear of it a moment later.
        let mut unseen = "the brokers do not show it yet".to_owned();
        for _ in 0..SETTLE_STEPS {
            match self.led().await {
                Ok(()) => return Ok(()),
                Err(error @ (kafka::Error::Missing { .. } | kafka::Error::Unavailable { .. })) => {
                    unseen = error.to_string();
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(SETTLE_STEP).await;
        }
        Err(kafka::Error::Unavailable {
            doing: format!("creating topic {}", self.name),
            detail: format!("it was created, but {unseen}"),
        })
    }

    async fn led(&self) -> Result<(), kafka::Error> {
        let info = self.admin.describe(&self.name).await?;
        for partition in 0..info.map_or(1, |info| info.partitions) {
            self.admin.watermarks(&self.name, partition).await?;
        }
        Ok(())
    }

    /// Reads the catalogue to where it ends now.
    async fn follow(&self, doing: &'static str, name: &str) -> Result<(), Error> {
        loop {
            let asked = self.clock.now();
            let of = self.look(doing, name).await?;
            let (book, clock) = (Arc::clone(&self.book), self.clock.clone());
            let read = tokio::task::spawn_blocking(move || {
                book.lock().unwrap_or_else(PoisonError::into_inner).follow(of, asked, &clock)
            });
            let read = read.await.expect("following the catalogue does not panic");
            if read.map_err(|error| self.error(doing, name, error))? == Followed::Through {
                return Ok(());
            }
        }
    }

    /// Which topic it is by now, and where its catalogue begins and ends: asked for between two looks at the same topic.
    async fn look(&self, doing: &'static str, name: &str) -> Result<(TopicId, (i64, i64)), Error> {
        let error = |error| self.error(doing, name, error);
        loop {
            self.partitions(doing, name).await?;
            let ends = self.admin.watermarks(&self.name, CATALOGUE).await.map_err(error)?;
            let Some(info) = self.admin.describe(&self.name).await.map_err(error)? else {
                // Deleted meanwhile: said in the next turn, or there again.
                self.forget();
                continue;
            };
            match locked(&self.id).replace(info.id) {
                Some(before) if before == info.id => return Ok((info.id, ends)),
                Some(_) => {
                    tracing::warn!(
                        topic = self.name,
                        "the blob store's topic was made anew: what was in it is gone"
                    );
                    self.forget();
                    self.readers.forget();
                }
                None => {}
            }
        }
    }

    /// A name's blob, if there is one now.
    async fn find(&self, doing: &'static str, name: &str) -> Result<Option<Entry>, Error> {
        self.follow(doing, name).await?;
        Ok(locked(&self.catalogue).blob(name).cloned())
    }

    /// Sends a record that is waited for.
    async fn send(
        &self,
        writing: &Writing,
        partition: i32,
        key: &str,
        value: Option<&[u8]>,
    ) -> Result<Receipt, kafka::Error> {
        let record = Outgoing {
            topic: &self.name,
            partition: Some(partition),
            key: Some(key.as_bytes()),
            value,
            ..Outgoing::default()
        };
        writing.sender.put_in_line(&record, None).await
    }

    /// Sends a record of the catalogue, and says at which offset it lies, durable.
    async fn note(
        &self,
        doing: &'static str,
        writing: &Writing,
        (name, id): (&str, Uuid),
        upload: Option<&Upload>,
    ) -> Result<i64, Error> {
        let (key, value) = (upload_key(name, id), upload.map(Upload::encode));
        let sent = async { self.send(writing, CATALOGUE, &key, value.as_deref()).await?.delivered().await };
        let delivered = sent.await.map_err(|error| self.error(doing, name, error))?;
        Ok(delivered.offset)
    }

    /// Stores a blob; gives its upload's id, and the offset from which on it is complete.
    async fn upload(&self, name: &str, body: Body, replaces: bool) -> Result<(Uuid, i64), Error> {
        let writing = &*self.writing(name).await?;
        let (bytes, content) = self.content(name, body).await?;
        self.clean_up(writing, name).await?;
        if let Some(offset) = locked(&self.catalogue).in_other_use() {
            let problem = format!(
                "topic {} is in use for something else, as its record at offset {offset} of partition {CATALOGUE} shows: \
                 blobs need a topic of their own",
                self.name
            );
            return Err(Error::Refused { doing: "storing", url: self.url(name), problem });
        }
        let id = self.entropy.uuid();
        let spread = (id.as_u128() % (writing.partitions as u128 - 1)) as i32;
        let room = writing.record.saturating_sub(chunk_key(name, id, u64::MAX).len());
        let mut upload = Upload {
            bytes,
            chunk: room.max(1) as u64,
            partition: CATALOGUE + 1 + spread,
            replaces,
            at: self.clock.wall_ms(),
            offsets: None,
        };
        if upload.chunks() > topic::most_chunks(writing.record) {
            let problem = format!(
                "{bytes} bytes are {} chunks of {} bytes, more than one record of topic {} can name: raise its \
                 max.message.bytes",
                upload.chunks(),
                upload.chunk,
                self.name
            );
            // Also where that is done by now: it is looked at again.
            *locked(&self.writing) = Arc::default();
            return Err(Error::Refused { doing: "storing", url: self.url(name), problem });
        }
        let began = self.clock.now();
        self.note("storing", writing, (name, id), Some(&upload)).await?;
        match self.chunks(writing, (name, id), &upload, content).await {
            Ok(offsets) => upload.offsets = Some(offsets),
            Err(error) => {
                // What this cannot do now is done by who comes by in a day.
                if let Err(left) = self.remove("storing", writing, name, id, &upload).await {
                    tracing::debug!(%left, name, "an upload that failed is left for later");
                }
                return Err(error);
            }
        }
        if self.clock.now().saturating_duration_since(began) > LONGEST {
            let problem = format!("it took longer than {LONGEST:?}");
            return Err(Error::Unavailable { doing: "storing", url: self.url(name), problem });
        }
        let offset = self.note("storing", writing, (name, id), Some(&upload)).await?;
        Ok((id, offset))
    }

    /// Sends the chunks, and says where they lie.
    async fn chunks(
        &self,
        writing: &Writing,
        (name, id): (&str, Uuid),
        upload: &Upload,
        mut content: Content,
    ) -> Result<Vec<i64>, Error> {
        let storing = |error| self.error("storing", name, error);
        let other = |problem: &str| Error::Unavailable {
            doing: "storing",
            url: self.url(name),
            problem: problem.to_owned(),
        };
        let mut offsets: Vec<i64> = Vec::new();
        let mut under_way: FuturesOrdered<BoxFuture<'static, Result<kafka::Delivered, kafka::Error>>> =
            FuturesOrdered::new();
        let mut pending: Vec<u8> = Vec::new();
        let (mut sent, mut came, mut over) = (0, 0, false);
        loop {
            let full = pending.len() as u64 >= upload.chunk || (over && !pending.is_empty());
            if under_way.len() >= UNDER_WAY || (over && !full) {
                let Some(delivered) = under_way.next().await else { break };
                let kafka::Delivered { offset, .. } = delivered.map_err(storing)?;
                if offsets.last().is_some_and(|last| *last >= offset) {
                    return Err(other("its chunks did not stay in order"));
                }
                offsets.push(offset);
            } else if full {
                let length = (upload.chunk.min(pending.len() as u64)) as usize;
                let rest = pending.split_off(length);
                let key = chunk_key(name, id, sent);
                let value = chunk(&key, &std::mem::replace(&mut pending, rest));
                failpoint::reach("store.chunk").map_err(|injected| other(&injected.to_string()))?;
                let receipt = self.send(writing, upload.partition, &key, Some(&value)).await;
                under_way.push_back(Box::pin(receipt.map_err(storing)?.delivered()));
                sent += 1;
            } else {
                match content.next().await {
                    Some(piece) => {
                        let piece = piece?;
                        came += piece.len() as u64;
                        pending.extend_from_slice(&piece);
                    }
                    None => over = true,
                }
            }
        }
        match came == upload.bytes {
            true => Ok(offsets),
            false => Err(other("the file changed while it was sent")),
        }
    }

    /// What is put: its length, and its bytes in pieces.
    async fn content(&self, name: &str, body: Body) -> Result<(u64, Content), Error> {
        match body {
            Body::Bytes(bytes) => {
                let length = bytes.len() as u64;
                Ok((length, futures::stream::iter([Ok(bytes)]).boxed()))
            }
            Body::File(path) => {
                let url = self.url(name);
                let opened = tokio::task::spawn_blocking(move || {
                    let file = std::fs::File::open(path)?;
                    let length = file.metadata()?.len();
                    Ok((file, length))
                });
                let opened = opened.await.expect("opening a file does not panic");
                let (file, length) =
                    opened.map_err(|error| super::object::io_error("storing", url.clone(), &error))?;
                Ok((length, pieces(file, u64::MAX, url, "storing")))
            }
        }
    }

    /// Removes an upload: its chunks, then its record, so that one that is interrupted is found again.
    async fn remove(
        &self,
        doing: &'static str,
        writing: &Writing,
        name: &str,
        id: Uuid,
        upload: &Upload,
    ) -> Result<(), Error> {
        let error = |error| self.error(doing, name, error);
        let mut under_way = FuturesOrdered::new();
        for number in 0..upload.chunks() {
            let key = chunk_key(name, id, number);
            let receipt = self.send(writing, upload.partition, &key, None).await.map_err(error)?;
            under_way.push_back(receipt.delivered());
            if under_way.len() > 1_000 {
                under_way.next().await.transpose().map_err(error)?;
            }
        }
        while let Some(delivered) = under_way.next().await {
            delivered.map_err(error)?;
        }
        self.note(doing, writing, (name, id), None).await.map(drop)
    }

    /// Removes the uploads of a name that `which` says.
    async fn remove_all(
        &self,
        doing: &'static str,
        writing: &Writing,
        name: &str,
        which: impl Fn(&Entry) -> bool,
    ) -> Result<(), Error> {
        let all: Vec<Entry> = locked(&self.catalogue).of(name).to_vec();
        for entry in all.into_iter().filter(which) {
            self.remove(doing, writing, name, entry.id, &entry.upload).await?;
        }
        Ok(())
    }

    /// Removes an upload that somebody left a day ago, if there is one: each put one.
    async fn clean_up(&self, writing: &Writing, name: &str) -> Result<(), Error> {
        self.follow("storing", name).await?;
        let before = self.clock.wall_ms().saturating_sub(ABANDONED.as_millis() as i64);
        let found =
            locked(&self.catalogue).abandoned(before).map(|(of, entry)| (of.to_owned(), entry.clone()));
        if let Some((of, entry)) = found {
            tracing::info!(blob = of, "an upload that was never completed is removed");
            // Whoever puts has nothing to do with it: with a partition of no leader, or one that is not there.
            if let Err(left) = self.remove("storing", writing, &of, entry.id, &entry.upload).await {
                tracing::warn!(%left, blob = of, "an upload that was never completed is left for later");
            }
        }
        Ok(())
    }
}

fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BlobStore for Topic {
    fn put<'a>(&'a self, name: &'a str, body: Body) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let (id, offset) = self.upload(name, body, true).await?;
            self.follow("storing", name).await?;
            let writing = self.writing(name).await?;
            // What it took the place of. One that came after it takes its own place, and removes it.
            let replaced = |entry: &Entry| entry.is_whole() && entry.offset < offset && entry.id != id;
            self.remove_all("storing", &writing, name, replaced).await
        })
    }

    fn put_new<'a>(&'a self, name: &'a str, body: Body) -> BoxFuture<'a, Result<Put, Error>> {
        Box::pin(async move {
            let writing = self.writing(name).await?;
            if self.find("storing", name).await?.is_some() {
                return Ok(Put::Found);
            }
            let (id, offset) = self.upload(name, body, false).await?;
            let blob = self.find("storing", name).await?;
            match blob {
                Some(blob) if blob.id != id && blob.offset < offset => {
                    self.remove_all("storing", &writing, name, |entry| entry.id == id).await?;
                    Ok(Put::Found)
                }
                _ => Ok(Put::Stored),
            }
        })
    }

    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Content, Error>> {
        Box::pin(async move { Ok(self.get_range(name, 0..u64::MAX, None).await?.content) })
    }

    fn get_range<'a>(
        &'a self,
        name: &'a str,
        range: Range<u64>,
        same: Option<&'a Tag>,
    ) -> BoxFuture<'a, Result<Part, Error>> {
        Box::pin(async move {
            let known = same.and_then(|tag| {
                let catalogue = locked(&self.catalogue);
                catalogue.blob(name).filter(|entry| entry.tag() == *tag).cloned()
            });
            // A part of what is known needs no look at the catalogue: it is there, or its chunks are not.
            let entry = match known {
                Some(entry) => entry,
                None => {
                    let entry = self.find("reading", name).await?;
                    entry.ok_or_else(|| Error::Missing { url: self.url(name) })?
                }
            };
            let tag = entry.tag();
            if same.is_some_and(|same| *same != tag) {
                return Err(Error::Changed { url: self.url(name) });
            }
            let total = entry.upload.bytes;
            let range = range.start.min(total)..range.end.min(total);
            let content = self.readers.content(self.url(name), name, &entry, range, self.clock.clone());
            Ok(Part { content, total, tag: Some(tag) })
        })
    }

    fn is_far(&self) -> bool {
        true
    }

    fn head<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<u64>, Error>> {
        Box::pin(async move { Ok(self.find("reading", name).await?.map(|entry| entry.upload.bytes)) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>, Error>> {
        Box::pin(async move {
            self.follow("listing", prefix).await?;
            let listed = locked(&self.catalogue).list(prefix);
            Ok(listed.into_iter().map(|(name, bytes)| Listed { name, bytes }).collect())
        })
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.follow("deleting", name).await?;
            if locked(&self.catalogue).of(name).is_empty() {
                return Ok(());
            }
            let writing = self.writing(name).await?;
            // One that is under way is another's.
            self.remove_all("deleting", &writing, name, Entry::is_whole).await
        })
    }
}
