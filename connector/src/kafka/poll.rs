//! Reading partitions that are assigned by hand: the source's client, and the tail's.
//!
//! Owns: where each partition stands. Does not own: which partitions, from where, or what a lost offset means.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::Notify;

use super::client::{Context, make};
use super::ids::{Bell, Inlet, Message, code_of};
use super::{Error, Options};

/// How long one request for a partition's ends may take.
const ASK: Duration = Duration::from_secs(5);

/// Longest fetch of the embedded broker, in milliseconds: as long as a record may wait for its reader.
const EMBEDDED_FETCH_WAIT: u128 = 10;

/// How a poller fetches.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// What the client is for, in log lines.
    pub role: &'static str,
    /// `group.id`. A consumer needs one, even where it joins no group; a right on it it does not need.
    pub group: String,
    /// Longest time that the broker holds a fetch back while nothing is there. What arrives ends it at once; what
    /// else is asked of the same broker by this client waits behind it.
    pub fetch_wait: Duration,
    /// Most bytes that are fetched ahead, of all partitions together.
    pub fetch_ahead: u64,
}

impl Tuning {
    /// For source topics: throughput, within `fetch_ahead` bytes.
    pub fn source(group: &str, fetch_ahead: u64) -> Tuning {
        Tuning {
            role: "source",
            group: group.to_owned(),
            fetch_wait: Duration::from_millis(100),
            fetch_ahead,
        }
    }

    /// For announcements: one long fetch, which an announcement ends at once.
    pub fn tail(group: &str, longest_wait: Duration) -> Tuning {
        Tuning { role: "tail", group: group.to_owned(), fetch_wait: longest_wait, fetch_ahead: 8 << 20 }
    }
}

/// What [`Poller::poll`] found.
pub enum Polled<'a> {
    /// A record.
    Record {
        /// Index of its partition in the list given to [`Poller::assign`].
        slot: usize,
        /// The record.
        message: Message<'a>,
    },
    /// All there is in the partition was read: `offset` is where it ends now, behind transaction markers and aborted
    /// records too. With an open transaction, the end lies before it.
    End {
        /// Index of the partition in the list given to [`Poller::assign`].
        slot: usize,
        /// The partition's position.
        offset: i64,
    },
    /// The position no longer exists (retention passed it, or the topic was made anew), and nothing more comes from
    /// this partition.
    Lost {
        /// Index of the partition in the list given to [`Poller::assign`].
        slot: usize,
        /// librdkafka's words.
        detail: String,
    },
    /// An error that concerns one partition, or the client: that no broker is left, or that none will have it.
    /// Reading goes on by itself where it can. That Kafka is back is told by nothing but what is read.
    Error(Error),
}

#[derive(Clone, Debug)]
struct Slot {
    topic: String,
    partition: i32,
    position: i64,
    /// librdkafka's handle of the topic once seen; 0 before.
    handle: usize,
    /// Nothing is handed out of it, and it stays where it stands.
    held: bool,
    /// It has not been assigned anew since it was held: what was fetched before may still come, from somewhere behind
    /// `position`. Handed out once the slot is let go, it would pass over what was dropped until then.
    stale: bool,
}

impl Slot {
    /// Whether records of it are dropped, and with them what is said of where it ends.
    fn is_silent(&self) -> bool {
        self.held || self.stale
    }
}

/// Ends a [`Poller`]'s wait from another thread: its `poll` returns `None`.
#[derive(Clone)]
pub struct Waker(Bell);

impl Waker {
    /// Ends the wait, or the next one if there is none now.
    pub fn wake(&self) {
        self.0.ring();
    }
}

/// A client that reads partitions assigned by hand, `read_committed`, and says where it stands. For one thread.
pub struct Poller {
    inlet: Inlet,
    slots: Vec<Slot>,
    /// Where the last record was found: the next one most likely is of the same partition.
    last: usize,
}

impl Poller {
    /// A poller without partitions.
    ///
    /// # Errors
    /// [`Error::Options`] for a property that librdkafka refuses. Does not wait for Kafka.
    pub fn new(options: &Options, tuning: &Tuning) -> Result<Poller, Error> {
        let doing = || format!("making the {} client for {}", tuning.role, options.bootstrap_servers);
        let no_group = || Error::Options {
            doing: doing(),
            detail: "group.id is empty, and a consumer needs one".to_owned(),
        };
        if tuning.group.is_empty() {
            return Err(no_group());
        }
        // The embedded broker holds an empty fetch for all of its time, whatever arrives meanwhile.
        let longest = if options.embedded { EMBEDDED_FETCH_WAIT } else { 300_000 };
        let fetch_wait = tuning.fetch_wait.as_millis().clamp(1, longest).to_string();
        let fetch_ahead = (tuning.fetch_ahead >> 10).clamp(1, 2_097_151).to_string();
        // What is ahead is compared with the bound before a fetch, not after: a fetch may not be as large as it likes.
        let fetch_most = (tuning.fetch_ahead / 2).clamp(1 << 20, 50 << 20).to_string();
        // Nor does the bound count what librdkafka needs beside the bytes, some 400 for each record, or that what came
        // compressed is larger unpacked: by default 100,000 records may be ahead, and a megabyte more of each partition,
        // which together took 140 MB of a limit of 256 (records of 90 bytes). From 50 MB on neither is changed.
        let most_records = (tuning.fetch_ahead / 512).clamp(1_000, 100_000).to_string();
        let partition_most = (tuning.fetch_ahead / 48).clamp(64 << 10, 1 << 20).to_string();
        let consumer = make(
            options,
            &[
                ("fetch.wait.max.ms", &fetch_wait),
                ("queued.max.messages.kbytes", &fetch_ahead),
                ("fetch.max.bytes", &fetch_most),
                ("queued.min.messages", &most_records),
                ("max.partition.fetch.bytes", &partition_most),
                // How soon a fetch that waits for room is tried again. librdkafka's second halves the throughput of a
                // bound as low as ours.
                ("fetch.queue.backoff.ms", "5"),
                ("fetch.error.backoff.ms", "100"),
                ("check.crcs", "true"),
            ],
            &[
                ("group.id", &tuning.group),
                ("fetch.min.bytes", "1"),
                ("enable.auto.commit", "false"),
                ("enable.auto.offset.store", "false"),
                ("enable.partition.eof", "true"),
                // A lost position is an error with a remedy, never a silent jump.
                ("auto.offset.reset", "error"),
                ("isolation.level", "read_committed"),
            ],
            Context::new(tuning.role, options),
            doing,
        )?;
        let inlet = Inlet::new(consumer).ok_or_else(no_group)?;
        Ok(Poller { inlet, slots: Vec::new(), last: 0 })
    }

    /// Reads these partitions from these positions from now on, and no others. The place of a partition in the list
    /// is its slot. An empty list stops reading.
    pub fn assign(&mut self, partitions: &[(&str, i32, i64)]) -> Result<(), Error> {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for (topic, partition, offset) in partitions {
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset)).map_err(|error| {
                Error::from_kafka(format!("assigning {topic}[{partition}] at {offset}"), &error)
            })?;
        }
        self.inlet.discard();
        let replaces = !self.slots.is_empty();
        let assigned = self.inlet.consumer().assign(&list);
        assigned.map_err(|error| Error::from_kafka("assigning partitions", &error))?;
        self.last = 0;
        self.slots = partitions
            .iter()
            .map(|&(topic, partition, position)| Slot {
                topic: topic.to_owned(),
                partition,
                position,
                handle: 0,
                held: false,
                // What was fetched before is gone: here it was just discarded, and librdkafka drops what it has of it.
                stale: false,
            })
            .collect();
        if replaces { self.settle() } else { Ok(()) }
    }

    /// Waits until librdkafka has stopped what was assigned before, and starts what is assigned now: two answers of its
    /// main thread, and no request to Kafka.
    ///
    /// Until then nothing else may be asked of these partitions. A stop is an operation in that thread's queue, its end is
    /// another one, and only then is the partition started again. What is assigned anew or closed in between is stopped
    /// twice, and the second end aborts the process (<https://github.com/confluentinc/librdkafka/issues/5573>, in 2.15
    /// too). What is paused or resumed just when it is started may not be started: the older of the two operations is
    /// dropped if it comes into the queue behind the newer.
    ///
    /// The queue is worked off in order. By the first answer each stop was served, and its end is in the queue; by the
    /// second each end was served, and each start is in the queue.
    fn settle(&self) -> Result<(), Error> {
        for _ in 0..2 {
            let asked = self.inlet.consumer().assignment();
            asked.map_err(|error| Error::from_kafka("waiting for partitions to be assigned", &error))?;
        }
        Ok(())
    }

    /// Stops fetching from the slots listed. What was fetched ahead is dropped, and fetched again after
    /// [`Poller::resume`]; up to 256 records that are past that point still come.
    pub fn pause(&mut self, slots: impl IntoIterator<Item = usize>) -> Result<(), Error> {
        let list = self.list(slots);
        self.inlet.consumer().pause(&list).map_err(|error| Error::from_kafka("pausing partitions", &error))
    }

    /// Hands out no more records of a slot, which from now on stands at `offset`: a record that was handed out and comes
    /// again, after [`Poller::let_go`] and [`Poller::resume`]. Others go on.
    pub fn hold(&mut self, slot: usize, offset: i64) -> Result<(), Error> {
        if let Some(slot) = self.slots.get_mut(slot) {
            (slot.position, slot.held, slot.stale) = (offset, true, true);
        }
        self.pause([slot])
    }

    /// A slot is not held any more. No records of it come before it is resumed, be that much later: then it is fetched
    /// again, from where it was held.
    pub fn let_go(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.held = false;
        }
    }

    /// Fetches again from the slots listed, from where each of them stands; not from those that are held.
    ///
    /// They are assigned anew. By itself librdkafka (2.12) goes on behind what it handed out last, and there it counts
    /// the word that a partition has ended as a record (`rd_kafka_q_serve_rkmessages`): a partition paused at its end
    /// would go on one offset too far, past what came meanwhile, in silence; or beyond the end, as a lost position.
    pub fn resume(&mut self, slots: impl IntoIterator<Item = usize>) -> Result<(), Error> {
        let list =
            self.list(slots.into_iter().filter(|slot| self.slots.get(*slot).is_some_and(|slot| !slot.held)));
        let now = self.slots.clone();
        let at: Vec<(&str, i32, i64)> =
            now.iter().map(|slot| (&*slot.topic, slot.partition, slot.position)).collect();
        self.assign(&at)?;
        for (slot, was) in self.slots.iter_mut().zip(&now) {
            slot.held = was.held;
        }
        // Being paused outlives an assignment, of these as of the others.
        self.inlet.consumer().resume(&list).map_err(|error| Error::from_kafka("resuming partitions", &error))
    }

    /// All slots, for [`Poller::pause`] and [`Poller::resume`].
    pub fn all(&self) -> std::ops::Range<usize> {
        0..self.slots.len()
    }

    /// The next thing that happened, waiting for up to `timeout`. Call it also while paused: it serves librdkafka's log
    /// lines and statistics. `None` before that time says that a waker rang, or that one message was passed over, such as what
    /// was fetched of a slot before it was held; more may lie behind it.
    pub fn poll(&mut self, timeout: Duration) -> Option<Polled<'_>> {
        if let Some((code, words)) = self.inlet.trouble() {
            let context = self.inlet.consumer().client().context();
            return Some(Polled::Error(context.sorted("reaching Kafka", code_of(code), &words)));
        }
        let message = self.inlet.next(timeout)?;
        told(&mut self.slots, &mut self.last, message)
    }

    /// For who waits for other things, too: told when something has come to be polled where there was nothing, from now on. Once
    /// told, poll with no timeout until nothing is there; who holds slots cannot know by a `None` that nothing is. Log lines and
    /// troubles are not told of: poll now and then.
    pub fn arrivals(&self) -> Arc<Notify> {
        self.inlet.arrivals()
    }

    /// Looks after log lines and statistics and takes no record, for who is not to take any yet: in a client that nobody
    /// polls they pile up, tens of megabytes a day. Errors of the client as a whole are passed over: what is still wrong
    /// once it is polled is told then.
    pub fn tend(&mut self) {
        self.inlet.tend();
    }

    /// As [`Poller::poll`], by one call of librdkafka's for each record, as its users do: what benches compare with. Not
    /// to be mixed with `poll` on one poller.
    pub fn poll_one(&mut self, timeout: Duration) -> Option<Polled<'_>> {
        let message = self.inlet.one(timeout)?;
        told(&mut self.slots, &mut self.last, message)
    }

    /// A partition's position: the next offset to read, as far as records and ends were handed out.
    pub fn position(&self, slot: usize) -> Option<i64> {
        self.slots.get(slot).map(|slot| slot.position)
    }

    /// Topic and partition of a slot.
    pub fn partition(&self, slot: usize) -> Option<(&str, i32)> {
        self.slots.get(slot).map(|slot| (slot.topic.as_str(), slot.partition))
    }

    /// Where a partition begins and ends now, for who reads committed records. Blocks; not within [`Poller::poll`]'s wait.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the partition's leader does not answer.
    pub fn reach(&self, topic: &str, partition: i32) -> Result<(i64, i64), Error> {
        let ends = self.inlet.consumer().fetch_watermarks(topic, partition, ASK);
        ends.map_err(|error| {
            let asked = Error::from_kafka(format!("asking where {topic}[{partition}] begins"), &error);
            self.inlet.consumer().client().context().excused(asked)
        })
    }

    /// What ends a wait early.
    pub fn waker(&self) -> Waker {
        Waker(self.inlet.bell())
    }

    fn list(&self, slots: impl IntoIterator<Item = usize>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for slot in slots.into_iter().filter_map(|slot| self.slots.get(slot)) {
            list.add_partition(&slot.topic, slot.partition);
        }
        list
    }
}

/// What a message says. `None`: it is passed over.
fn told<'a>(slots: &mut [Slot], last: &mut usize, message: Message<'a>) -> Option<Polled<'a>> {
    let slot = slot_of(slots, last, &message);
    let code = message.code();
    let silent = slot.and_then(|slot| slots.get(slot)).is_some_and(Slot::is_silent);
    if code == 0 {
        // A record of a partition that is no longer assigned: librdkafka drops those itself, this is the belt.
        let slot = slot?;
        // It was fetched before the slot was held, and is fetched again.
        if silent {
            return None;
        }
        if let Some(entry) = slots.get_mut(slot) {
            entry.position = message.offset() + 1;
        }
        return Some(Polled::Record { slot, message });
    }
    match (code_of(code), slot) {
        // These are of what lies behind such records, and are told again. Other errors are told: some come only once.
        (
            Code::PartitionEOF
            | Code::AutoOffsetReset
            | Code::OffsetOutOfRange
            | Code::LogTruncation
            | Code::BadMessage
            | Code::BadCompression
            | Code::NotImplemented
            | Code::MessageSizeTooLarge,
            Some(_),
        ) if silent => None,
        (Code::PartitionEOF, Some(slot)) => {
            let offset = message.offset();
            if let Some(entry) = slots.get_mut(slot) {
                entry.position = offset;
            }
            Some(Polled::End { slot, offset })
        }
        (Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation, Some(slot)) => {
            Some(Polled::Lost { slot, detail: message.words().to_owned() })
        }
        // A consumer asks for its group's coordinator, though it joins none and commits nothing: who only reads needs no
        // right on a group.
        (Code::GroupAuthorizationFailed, None) => None,
        (code, _) => {
            let doing = match message.topic() {
                "" => "reading".to_owned(),
                topic => format!("reading {topic}[{}]", message.partition()),
            };
            Some(Polled::Error(Error::from_code(doing, code, message.words())))
        }
    }
}

fn slot_of(slots: &mut [Slot], last: &mut usize, message: &Message<'_>) -> Option<usize> {
    let (handle, partition) = (message.topic_handle(), message.partition());
    let same = |slot: &Slot| slot.partition == partition && slot.handle == handle && handle != 0;
    if slots.get(*last).is_some_and(same) {
        return Some(*last);
    }
    let found = slots.iter().position(same).or_else(|| {
        let topic = message.topic();
        slots.iter().position(|slot| slot.partition == partition && slot.topic == topic)
    })?;
    if let Some(slot) = slots.get_mut(found) {
        slot.handle = handle;
    }
    *last = found;
    Some(found)
}
