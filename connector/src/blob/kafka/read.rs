//! Reading the topic: the catalogue, followed, and chunks, where they are asked for.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::mpsc;

use super::catalogue::{Catalogue, Entry};
use super::{CATALOGUE, locked};
use crate::blob::{Content, Error};
use crate::clock::Clock;
use crate::format::upload::{Upload, chunk_key, read_chunk};
use crate::kafka::{self, Polled, Poller, Tuning};
use crate::record::TopicId;

/// Longest time without any progress.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the broker may hold back a fetch at the end of the catalogue. What arrives ends it at once.
const FETCH_WAIT: Duration = Duration::from_millis(500);
/// After so long without a look the catalogue is read from its beginning again: what was deleted meanwhile may have left no
/// trace, for compaction keeps deletes for `delete.retention.ms`, a day.
const TRUSTED: Duration = Duration::from_secs(12 * 60 * 60);
/// Bytes of chunks that a client fetches ahead.
const AHEAD: u64 = 8 << 20;
/// Clients that are kept for the next blob: making one and finding the brokers takes some milliseconds.
const KEPT: usize = 4;
/// Other uploads' chunks that are read over before the next of ours is gone to directly.
const BETWEEN: i64 = 16;
/// Chunks that wait for whoever reads the blob.
const WAITING: usize = 2;
/// One wait for records: how soon it is seen that nobody reads the blob any more.
const POLL: Duration = Duration::from_millis(100);

/// What came of reading on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Followed {
    /// All is known that was there when it was asked for.
    Through,
    /// What was asked may be of a topic that is no more: ask again.
    Outdated,
}

/// The catalogue as far as it was read.
pub(super) struct Book {
    catalogue: Arc<Mutex<Catalogue>>,
    kafka: kafka::Options,
    topic: String,
    tuning: Tuning,
    poller: Option<Poller>,
    /// The topic that was read.
    id: TopicId,
    /// The next offset to read.
    next: i64,
    /// When all of it was last known.
    known: Option<Instant>,
    /// When it was last read on: all before `next` was there by then.
    read_on: Option<Instant>,
}

impl Book {
    pub(super) fn new(
        kafka: &kafka::Options,
        topic: &str,
        group: &str,
        catalogue: Arc<Mutex<Catalogue>>,
    ) -> Book {
        let tuning = Tuning { role: "blobs", ..Tuning::tail(group, FETCH_WAIT) };
        let (kafka, topic) = (kafka.clone(), topic.to_owned());
        let (id, poller, known, read_on) = (TopicId::default(), None, None, None);
        Book { catalogue, kafka, topic, tuning, poller, id, next: 0, known, read_on }
    }

    /// Reads on to `end` of the topic `id`; `low` is where the partition begins: as they were at some time since `asked`.
    /// Blocks.
    pub(super) fn follow(
        &mut self,
        (id, (low, end)): (TopicId, (i64, i64)),
        asked: Instant,
        clock: &Clock,
    ) -> Result<Followed, kafka::Error> {
        let meanwhile = self.read_on.is_some_and(|read_on| asked <= read_on);
        if id != self.id && meanwhile {
            // One of two topics was read since the other was asked about; which is the newer, who asks now is told.
            return Ok(Followed::Outdated);
        }
        // Another one, who asked later, has read on beyond it meanwhile: the end is older than what is known, and says nothing
        // of the topic. Else all would be forgotten and read again, while the other looks for what it has just read.
        if self.next > end && meanwhile {
            return Ok(Followed::Through);
        }
        // A topic that was made anew has another id, also where it has grown past what was read of the other. Where the
        // broker has no ids, it begins before that, or ends there.
        let now = clock.now();
        let old = self.known.is_some_and(|known| now.saturating_duration_since(known) > TRUSTED);
        let anew = id != self.id || self.next > end || self.next < low || old;
        if self.next >= end && !anew {
            self.known = Some(now);
            return Ok(Followed::Through);
        }
        self.id = id;
        if anew || self.poller.is_none() {
            if anew {
                *locked(&self.catalogue) = Catalogue::default();
                self.next = low;
            }
            let mut poller = Poller::new(&self.kafka, &self.tuning)?;
            poller.assign(&[(&self.topic, CATALOGUE, self.next)])?;
            self.poller = Some(poller);
        }
        let read = self.read(end, clock);
        self.read_on = Some(clock.now());
        match read {
            Ok(()) => self.known = Some(now),
            // Where it stands is known; what it is is not.
            Err(_) => self.poller = None,
        }
        read.map(|()| Followed::Through)
    }

    fn read(&mut self, end: i64, clock: &Clock) -> Result<(), kafka::Error> {
        let Book { catalogue, topic, poller, next, .. } = self;
        let doing = || format!("reading {topic}[{CATALOGUE}], the blobs' catalogue, to offset {end}");
        let Some(poller) = poller else { return Err(kafka::Error::Closed { doing: doing() }) };
        let mut progress = clock.now();
        while *next < end {
            match poller.poll(POLL) {
                Some(Polled::Record { message, .. }) => {
                    locked(catalogue).apply(message.offset(), message.key(), message.value());
                    *next = message.offset() + 1;
                    progress = clock.now();
                }
                // Behind what compaction has taken away.
                Some(Polled::End { offset, .. }) => *next = offset.max(*next),
                Some(Polled::Lost { detail, .. }) => {
                    return Err(kafka::Error::Unavailable { doing: doing(), detail });
                }
                Some(Polled::Error(error)) if !error.is_transient() => return Err(error),
                Some(Polled::Error(error)) => tracing::debug!(%error, "reading the blobs' catalogue"),
                None => {}
            }
            if clock.now().saturating_duration_since(progress) > PATIENCE {
                let detail = format!("nothing came for {PATIENCE:?}");
                return Err(kafka::Error::Unavailable { doing: doing(), detail });
            }
        }
        Ok(())
    }
}

/// Clients that read chunks.
#[derive(Clone)]
pub(super) struct Readers(Arc<Kept>);

struct Kept {
    kafka: kafka::Options,
    topic: String,
    tuning: Tuning,
    free: Mutex<Vec<Poller>>,
}

/// What is read of a blob.
struct Wanted {
    url: String,
    name: String,
    entry: Entry,
    range: Range<u64>,
    clock: Clock,
}

/// Why reading ended early.
enum Stop {
    /// Nobody reads any more.
    Unread,
    Failed(Error),
}

impl Readers {
    pub(super) fn new(kafka: &kafka::Options, topic: &str, group: &str) -> Readers {
        let fetch_wait = FETCH_WAIT;
        let tuning = Tuning { role: "blobs", group: group.to_owned(), fetch_wait, fetch_ahead: AHEAD };
        let (kafka, topic) = (kafka.clone(), topic.to_owned());
        Readers(Arc::new(Kept { kafka, topic, tuning, free: Mutex::default() }))
    }

    /// None is kept: those there are know the topic as it was.
    pub(super) fn forget(&self) {
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The bytes of a blob that lie in `range`, which is within it.
    pub(super) fn content(
        &self,
        url: String,
        name: &str,
        entry: &Entry,
        range: Range<u64>,
        clock: Clock,
    ) -> Content {
        if range.is_empty() {
            return futures::stream::empty().boxed();
        }
        let wanted = Wanted { url, name: name.to_owned(), entry: entry.clone(), range, clock };
        let (out, pieces) = mpsc::channel(WAITING);
        let this = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(Stop::Failed(error)) = this.read(&wanted, &out) {
                let _ = out.blocking_send(Err(error));
            }
        });
        futures::stream::unfold(pieces, async |mut pieces| Some((pieces.recv().await?, pieces))).boxed()
    }

    fn read(&self, wanted: &Wanted, out: &mpsc::Sender<Result<Bytes, Error>>) -> Result<(), Stop> {
        let failed = |error| Stop::Failed(explain("reading", wanted.url.clone(), error));
        let kept = self.0.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut poller = match kept {
            Some(poller) => poller,
            None => Poller::new(&self.0.kafka, &self.0.tuning).map_err(failed)?,
        };
        let read = wanted.read(&mut poller, &self.0.topic, out);
        // One that has failed may be at fault.
        if !matches!(read, Err(Stop::Failed(_))) && poller.assign(&[]).is_ok() {
            let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
            if free.len() < KEPT {
                free.push(poller);
            }
        }
        read
    }
}

impl Wanted {
    fn read(
        &self,
        poller: &mut Poller,
        topic: &str,
        out: &mpsc::Sender<Result<Bytes, Error>>,
    ) -> Result<(), Stop> {
        let Upload { chunk, partition, ref offsets, .. } = *self.entry.upload;
        let failed = |error| Stop::Failed(explain("reading", self.url.clone(), error));
        let first = self.range.start / chunk;
        let wanted = offsets.iter().flatten().copied().enumerate().skip(first as usize);
        let mut at = i64::MIN;
        for (number, offset) in wanted {
            let begin = number as u64 * chunk;
            if begin >= self.range.end {
                break;
            }
            if at == i64::MIN || offset - at > BETWEEN {
                poller.assign(&[(topic, partition, offset)]).map_err(failed)?;
            }
            at = offset + 1;
            let key = chunk_key(&self.name, self.entry.id, number as u64);
            let bytes = self.chunk(poller, offset, &key, out)?;
            let last = (self.range.end - begin).min(bytes.len() as u64) as usize;
            let from = self.range.start.saturating_sub(begin) as usize;
            let wrong = begin + bytes.len() as u64 != (begin + chunk).min(self.entry.upload.bytes);
            if wrong || from > last {
                return Err(self.damaged(offset));
            }
            out.blocking_send(Ok(bytes.slice(from..last))).map_err(|_| Stop::Unread)?;
        }
        Ok(())
    }

    /// The chunk at an offset, at or behind which the poller stands.
    fn chunk(
        &self,
        poller: &mut Poller,
        offset: i64,
        key: &str,
        out: &mpsc::Sender<Result<Bytes, Error>>,
    ) -> Result<Bytes, Stop> {
        let began = self.clock.now();
        loop {
            match poller.poll(POLL) {
                Some(Polled::Record { message, .. }) if message.offset() == offset => {
                    let value = message.value().filter(|_| message.key() == Some(key.as_bytes()));
                    let bytes = value.and_then(|value| read_chunk(key, value));
                    return bytes.map(Bytes::copy_from_slice).ok_or_else(|| self.damaged(offset));
                }
                Some(Polled::Record { message, .. }) if message.offset() < offset => {}
                // Compacted away: the blob was deleted after its catalogue was read.
                Some(Polled::Record { .. } | Polled::Lost { .. }) => return Err(self.gone()),
                Some(Polled::End { offset: end, .. }) if end > offset => return Err(self.gone()),
                Some(Polled::Error(error)) if !error.is_transient() => {
                    return Err(Stop::Failed(explain("reading", self.url.clone(), error)));
                }
                Some(Polled::Error(error)) => tracing::debug!(%error, "reading a blob; trying again"),
                Some(Polled::End { .. }) | None => {}
            }
            if out.is_closed() {
                return Err(Stop::Unread);
            }
            if self.clock.now().saturating_duration_since(began) > PATIENCE {
                return Err(Stop::Failed(Error::Unavailable {
                    doing: "reading",
                    url: self.url.clone(),
                    problem: format!("nothing came for {PATIENCE:?}"),
                }));
            }
        }
    }

    fn gone(&self) -> Stop {
        Stop::Failed(Error::Missing { url: self.url.clone() })
    }

    fn damaged(&self, offset: i64) -> Stop {
        Stop::Failed(Error::Unavailable {
            doing: "reading",
            url: self.url.clone(),
            problem: format!("the record at offset {offset} is not the chunk that the catalogue says"),
        })
    }
}

/// An error of Kafka's as a store's.
pub(super) fn explain(doing: &'static str, url: String, error: kafka::Error) -> Error {
    let problem = error.to_string();
    match error {
        kafka::Error::Unavailable { .. } | kafka::Error::Fatal { .. } | kafka::Error::Closed { .. } => {
            Error::Unavailable { doing, url, problem }
        }
        kafka::Error::Options { .. }
        | kafka::Error::Denied { .. }
        | kafka::Error::Missing { .. }
        | kafka::Error::Exists { .. }
        | kafka::Error::Rejected { .. }
        | kafka::Error::Fenced { .. } => Error::Refused { doing, url, problem },
    }
}
