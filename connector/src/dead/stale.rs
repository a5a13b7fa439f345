//! Whether a letter is stale: decided by the source, not by a view, which shows neither what is pending, nor deletes,
//! nor writes that changed nothing.
//!
//! ```text
//!   source partition   ... | the record that failed | ... later records ... | end
//!                            ^ the letter's offset    ^ one of its key: the letter is stale
//! ```
//!
//! Each partition that letters came from is read once, from the lowest of their offsets to its end, committed records
//! only, and before each transaction to its new end; not what this replay has put there itself, where nobody else did:
//!
//! ```text
//!  …looked at | ours ours … ours | marker |          the end is here: nothing to read
//!             ^ next             ^ next'             else: read from next' on, for the marker need not come first
//! ```
//!
//! Of a record only its key's hash (128 bits) is kept, and that only where a letter has it; where keys are made of fields,
//! or are datums themselves, of all records, since what a letter's key will be is not known before it is mended.
//!
//! Owns: reading the source, and the judgement. Does not own: what follows from it (`replay`).

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::fit::Schemas;
use super::found::{Found, Source};
use super::held::Held;
use super::idle::{Idle, PATIENCE};
use super::table::{Map, room};
use crate::clock::Clock;
use crate::codec::{self, Codec, Encoded, Format, KeyRule};
use crate::format::letter::header;
use crate::kafka::{self, Admin, Message, Polled, Poller, Tuning, ends::Ends};
use crate::schema::Schema;

/// Bytes that the client fetches ahead.
const FETCH_AHEAD: u64 = 64 << 20;
/// Between two questions where one was not answered.
const PAUSE: Duration = Duration::from_millis(200);
/// Most keys that are kept where all are: some two gigabytes.
const MOST_KEYS: usize = 20_000_000;
/// Kafka's default of `delete.retention.ms`.
const DELETES_KEPT_MS: i64 = 24 * 60 * 60 * 1_000;

/// How a letter stands to its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is the last of its key.
    Fresh,
    /// A later record of its key stands at this offset.
    Later(i64),
    /// The later record is a replay of this very letter.
    Replayed(i64),
    /// Its key is in its value, which does not give it.
    Keyless,
    /// It cannot be told, and why not.
    Unknown(String),
}

/// The key by which records are the same, hashed.
pub struct Keys {
    /// `None`: the Kafka key is the key.
    codec: Option<Codec>,
    schemas: Schemas,
}

impl Keys {
    /// By the dataset's rule.
    ///
    /// # Errors
    /// The codec's, where format, rule and schema do not go together.
    pub fn new(
        format: &Format,
        rule: &KeyRule,
        schema: &std::sync::Arc<Schema>,
        schemas: Schemas,
    ) -> Result<Keys, codec::Error> {
        let codec = match rule {
            KeyRule::Kafka if format.keys_as_they_come() => None,
            _ => Some(Codec::new(format.clone(), rule.clone(), schema.clone())?),
        };
        Ok(Keys { codec, schemas })
    }

    /// The record's key; `None` where it has none, or it cannot be read. May ask the registry, and blocks then.
    fn of(&mut self, record: Encoded<'_>) -> Result<Option<u128>, Error> {
        let Keys { codec, schemas } = self;
        let Some(codec) = codec else { return Ok(record.key.map(hash)) };
        schemas.teach(codec, record)?;
        Ok(codec.key(record).ok().map(hash))
    }
}

fn hash(key: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(key)
}

/// The newest record of a key that was seen.
#[derive(Clone, Copy, Debug, Default)]
struct Latest {
    offset: i64,
    /// If it is a replay: the original's timestamp, and the how manieth.
    copy: Option<(i64, u32)>,
}

struct Slot {
    topic: String,
    partition: i32,
    /// The lowest offset that a letter names.
    from: i64,
    /// The beginning and the end when it was first looked at.
    low: i64,
    end: i64,
    /// Letters of before this time may have been deleted meanwhile, and the delete forgotten.
    forgets_before: i64,
    /// Offset and Kafka key of the letters, in order, and how many were passed.
    letters: Vec<(i64, u128)>,
    passed: usize,
    /// An offset where another record stands than a letter says.
    foreign: Option<i64>,
    /// Where looking goes on.
    next: i64,
    /// The records before `next` are the last of a transaction of ours, whose marker stands there or behind.
    ours: bool,
    /// A transaction of somebody else's was open when it was last looked at: what is behind `next` is not known.
    open: bool,
}

impl Slot {
    /// Where it is to be read to, if anything is new: `high` is the end for all, `stable`, asked for after it, that for who reads
    /// what is committed. Our last transaction ends with its marker: where nothing but one offset is new behind its records, it
    /// is that.
    fn reach(&mut self, stable: i64, high: i64) -> Option<i64> {
        self.open = self.is_open(stable, high);
        if stable <= self.next {
            // Nothing is new, or not even the marker is there yet.
            return None;
        }
        if std::mem::take(&mut self.ours) && !self.open && stable == self.next + 1 {
            self.next = stable;
            return None;
        }
        Some(stable)
    }

    /// Whether something stands there that is neither committed nor aborted, nor ours.
    fn is_open(&self, stable: i64, high: i64) -> bool {
        high > self.next && stable < high
    }

    /// Records of ours stand at these offsets, `count` of them. True: where looking goes on, in a row, with nothing of
    /// anybody else's between, so that they need not be read; only the marker of our last transaction may stand before.
    fn is_next(&mut self, (first, last): (i64, i64), count: i64) -> bool {
        let begins = first == self.next || self.ours && first == self.next + 1;
        let next = begins && last - first + 1 == count;
        if next {
            (self.next, self.ours) = (last + 1, true);
        }
        next
    }
}

/// The source partitions that letters came from.
pub struct Sources {
    keys: Keys,
    clock: Clock,
    /// Longest wait for a transaction that is open in one.
    wait: Duration,
    slots: Vec<Slot>,
    latest: Map<(u32, u128), Latest>,
    looking: Option<Looking>,
    /// The slot that was asked for last: mostly it is asked for again.
    last: usize,
}

/// The clients that look at the source.
struct Looking {
    poller: Poller,
    ends: Ends,
    /// Of each slot of the poller, the place in the list of partitions.
    of: Vec<usize>,
    /// Nothing is fetched between two looks.
    at_rest: bool,
}

impl Sources {
    /// None yet. A transaction that is open in one is waited for, once and for `wait` at the longest.
    pub fn new(keys: Keys, clock: Clock, wait: Duration) -> Sources {
        Sources { keys, clock, wait, slots: Vec::new(), latest: Map::default(), looking: None, last: 0 }
    }

    /// Whether the Kafka key is the dataset's.
    pub fn keys_as_they_come(&self) -> bool {
        self.keys.codec.is_none()
    }

    /// The place of a partition. Allocates nothing.
    fn place(&mut self, topic: &str, partition: i32) -> Option<usize> {
        let same = |slot: &Slot| slot.partition == partition && slot.topic == topic;
        if !self.slots.get(self.last).is_some_and(same) {
            self.last = self.slots.iter().position(same)?;
        }
        Some(self.last)
    }

    /// So many letters may come: makes room for their keys.
    pub fn prepare(&mut self, letters: u64) {
        if self.keys.codec.is_none() {
            self.latest.reserve(room(letters));
        }
    }

    /// A letter that will be judged, and its record's Kafka key. Before [`Sources::open`].
    pub fn expect(&mut self, found: &Found<'_>, key: Option<&[u8]>) {
        let Some(source) = found.source else { return };
        let at = match self.place(source.topic, source.partition) {
            Some(at) => at,
            None => {
                self.slots.push(Slot {
                    topic: source.topic.to_owned(),
                    partition: source.partition,
                    from: source.offset,
                    low: 0,
                    end: 0,
                    forgets_before: i64::MIN,
                    letters: Vec::new(),
                    passed: 0,
                    foreign: None,
                    next: 0,
                    ours: false,
                    open: false,
                });
                self.slots.len() - 1
            }
        };
        let Some(slot) = self.slots.get_mut(at) else { return };
        slot.from = slot.from.min(source.offset);
        if let Some(key) = key.map(hash) {
            slot.letters.push((source.offset, key));
            if self.keys.codec.is_none() {
                self.latest.entry((at as u32, key)).or_default();
            }
        }
    }

    /// Looks at the partitions, and begins to read them. Blocks, within a runtime.
    ///
    /// # Errors
    /// Kafka's.
    pub fn open(&mut self, options: &kafka::Options, group: &str, admin: &Admin) -> Result<(), Error> {
        let failed = |source| Error::Kafka { doing: "looking at the source topics".to_owned(), source };
        let runtime = Handle::current();
        let mut configs: HashMap<String, (i32, i64)> = HashMap::new();
        let now = self.clock.wall_ms();
        for slot in &mut self.slots {
            slot.letters.sort_unstable_by_key(|(offset, _)| *offset);
            let (partitions, forgets_before) = match configs.get(&slot.topic) {
                Some(known) => *known,
                None => {
                    let known = runtime.block_on(look(admin, &slot.topic, now)).map_err(failed)?;
                    configs.insert(slot.topic.clone(), known);
                    known
                }
            };
            if slot.partition >= partitions {
                // Nothing to read; its letters lie beyond its end.
                continue;
            }
            (slot.low, slot.end) =
                runtime.block_on(admin.watermarks(&slot.topic, slot.partition)).map_err(failed)?;
            slot.forgets_before = forgets_before;
        }
        let tuning = Tuning { role: "replay", ..Tuning::source(group, FETCH_AHEAD) };
        let mut poller = Poller::new(options, &tuning).map_err(failed)?;
        let ends = Ends::new(options, group).map_err(failed)?;
        // Slots of the poller are those of this list.
        let (mut of, mut at) = (Vec::new(), Vec::new());
        for (place, slot) in self.slots.iter_mut().enumerate() {
            slot.next = slot.from.clamp(slot.low, slot.end);
            if slot.end > 0 || slot.low > 0 {
                of.push(place);
                at.push((&*slot.topic, slot.partition, slot.next));
            }
        }
        poller.assign(&at).map_err(failed)?;
        self.looking = Some(Looking { poller, ends, of, at_rest: false });
        Ok(())
    }

    /// Reads each partition to where it ends now. Blocks, within a runtime.
    ///
    /// # Errors
    /// Kafka's; [`Error::Stopped`].
    pub fn catch_up(&mut self, stop: &CancellationToken, mut read: impl FnMut(u64)) -> Result<(), Error> {
        let failed = |source| Error::Kafka { doing: "reading the source topics".to_owned(), source };
        let Sources { keys, clock, wait, slots, latest, looking, .. } = self;
        let Some(Looking { poller, ends, of, at_rest }) = looking else { return Ok(()) };
        let mut behind = Vec::new();
        for (at, place) in of.iter().enumerate() {
            let Some(slot) = slots.get_mut(*place) else { continue };
            let (topic, partition) = (slot.topic.clone(), slot.partition);
            let ask = || answered(clock, stop, || ends.of(&topic, partition));
            if let Some(stable) = settled(slot, (clock, *wait), stop, ask)? {
                behind.push((at, stable));
                if *at_rest {
                    poller.hold(at, slot.next).map_err(failed)?;
                    poller.let_go(at);
                }
            }
        }
        if *at_rest && !behind.is_empty() {
            poller.resume(behind.iter().map(|(at, _)| *at)).map_err(failed)?;
        }
        let is_behind =
            |poller: &Poller, at: usize, stable: i64| poller.position(at).is_some_and(|next| next < stable);
        let mut idle = Idle::default();
        let mut count = 0u64;
        while behind.iter().any(|(at, stable)| is_behind(poller, *at, *stable)) {
            if idle.is_stopped(stop) {
                return Err(Error::Stopped);
            }
            match poller.poll(Duration::from_millis(100)) {
                Some(Polled::Record { slot: at, message }) => {
                    count += 1;
                    idle.came();
                    if count.is_multiple_of(1 << 14) {
                        read(count);
                    }
                    let Some(place) = of.get(at) else { continue };
                    if let Some(slot) = slots.get_mut(*place) {
                        take(keys, slot, *place as u32, latest, &message)?;
                    }
                    if latest.len() > MOST_KEYS {
                        return Err(Error::TooManyKeys(MOST_KEYS));
                    }
                    continue;
                }
                Some(Polled::End { .. }) => {
                    idle.came();
                    continue;
                }
                Some(Polled::Lost { slot: at, detail }) => {
                    let place = poller.partition(at).map(|(topic, at)| format!("{topic}[{at}]"));
                    let doing = format!("reading {}", place.unwrap_or_default());
                    return Err(failed(kafka::Error::Unavailable { doing, detail }));
                }
                Some(Polled::Error(error)) if !error.is_transient() => return Err(failed(error)),
                Some(Polled::Error(error)) => tracing::debug!(%error, "reading the source topics"),
                None => {}
            }
            if idle.is_over(clock) {
                let doing = "reading the source topics to their ends".to_owned();
                let detail = format!("nothing came for {PATIENCE:?}");
                return Err(failed(kafka::Error::Unavailable { doing, detail }));
            }
        }
        // Until the next look nothing is fetched: mostly it would be what this replay sends.
        let all = poller.all().filter(|at| !*at_rest || behind.iter().any(|(behind, _)| behind == at));
        for at in all {
            let slot = of.get(at).and_then(|place| slots.get_mut(*place));
            if let (Some(slot), Some(next)) = (slot, poller.position(at)) {
                slot.next = next;
                poller.hold(at, next).map_err(failed)?;
            }
        }
        *at_rest = true;
        Ok(())
    }

    /// What a transaction of ours has brought into the source: letters, and the offset of each, in the order of sending.
    ///
    /// # Errors
    /// The registry's, where keys are datums or made of fields.
    pub fn sent<'a>(&mut self, sent: impl Iterator<Item = (&'a Held, i64)>) -> Result<(), Error> {
        let mut by_place: BTreeMap<usize, Vec<(&Held, i64)>> = BTreeMap::new();
        for (held, offset) in sent {
            let place = held.source.as_ref().and_then(|source| self.place(&source.topic, source.partition));
            if let (Some(place), true) = (place, self.looking.is_some()) {
                by_place.entry(place).or_default().push((held, offset));
            }
        }
        for (place, sent) in by_place {
            let offsets = sent.first().zip(sent.last()).map(|((_, first), (_, last))| (*first, *last));
            let (Some(slot), Some(offsets)) = (self.slots.get_mut(place), offsets) else { continue };
            if !slot.is_next(offsets, sent.len() as i64) {
                // They are read, as all others.
                continue;
            }
            for (held, offset) in sent {
                let Some(key) = self.keys.of(held.encoded())? else { continue };
                let copy = Some((held.timestamp, held.replays.saturating_add(1)));
                if let Some(seen) = noted(&self.keys, &mut self.latest, (place as u32, key)) {
                    *seen = Latest { offset, copy };
                }
            }
        }
        Ok(())
    }

    /// How a letter stands, by what was read so far. `record` is what will be sent.
    pub fn judge(
        &mut self,
        source: Source<'_>,
        record: Encoded<'_>,
        (timestamp, failed_at, replays): (i64, i64, u32),
    ) -> Standing {
        let Source { topic, partition, offset } = source;
        let at = self.place(topic, partition).unwrap_or(usize::MAX);
        let Some(slot) = self.slots.get(at) else {
            return Standing::Unknown(format!("{topic}[{partition}] was not read"));
        };
        if offset >= slot.end {
            let end = slot.end;
            return Standing::Unknown(format!(
                "{topic}[{partition}] ends at {end}: it is not the topic any more that the record came from"
            ));
        }
        if slot.low > offset + 1 {
            let low = slot.low;
            return Standing::Unknown(format!("{topic}[{partition}] begins at {low} now"));
        }
        if let Some(foreign) = slot.foreign {
            return Standing::Unknown(format!(
                "{topic}[{partition}] holds another record at offset {foreign} than its letter says: the topic was made anew"
            ));
        }
        // It was read between the two: announced long after, where a backlog was worked off.
        if failed_at.min(timestamp) < slot.forgets_before {
            return Standing::Unknown(format!(
                "{topic} is compacted, and forgets deletes as old as the letter (delete.retention.ms)"
            ));
        }
        let key = match self.keys.of(record) {
            Ok(Some(key)) => key,
            // Without a key nothing is the same.
            Ok(None) if self.keys.codec.is_none() => return Standing::Fresh,
            Ok(None) => return Standing::Keyless,
            Err(error) => return Standing::Unknown(crate::error::chain(&error)),
        };
        match self.latest.get(&(at as u32, key)) {
            Some(latest) if latest.offset > offset => {
                let copy = latest.copy.is_some_and(|(of, nth)| of == timestamp && nth > replays);
                if copy { Standing::Replayed(latest.offset) } else { Standing::Later(latest.offset) }
            }
            _ if slot.open => Standing::Unknown(format!(
                "a transaction is open in {topic}[{partition}], and may hold a later record of its key: run the replay again \
                 when it has ended, or wait longer for it (--wait)"
            )),
            Some(_) => Standing::Fresh,
            // Where keys are made of fields all are kept: it has not been seen.
            None if self.keys.codec.is_some() => Standing::Fresh,
            None => Standing::Unknown("its key is not the one that was looked for".to_owned()),
        }
    }
}

/// Where a partition is to be read to, if anything is new, once all that stood in it is decided. That is waited for, but only
/// once for what does not end: it would hold up each transaction of a replay.
fn settled(
    slot: &mut Slot,
    (clock, wait): (&Clock, Duration),
    stop: &CancellationToken,
    ask: impl Fn() -> Result<(i64, i64), Error>,
) -> Result<Option<i64>, Error> {
    let (mut stable, high) = ask()?;
    let wait = if slot.open { Duration::ZERO } else { wait };
    let (began, mut said) = (clock.now(), false);
    // Mostly it is the marker of a transaction that has just ended.
    let mut pause = Duration::from_millis(5);
    while slot.is_open(stable, high) {
        let waited = clock.now().saturating_duration_since(began);
        if waited >= wait {
            break;
        }
        if stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        if waited > PAUSE && !std::mem::replace(&mut said, true) {
            let (topic, partition) = (&slot.topic, slot.partition);
            tracing::info!(
                topic,
                partition,
                ?wait,
                "a transaction is open in the source; waiting for its end"
            );
        }
        Handle::current().block_on(tokio::time::sleep(pause));
        pause = (pause * 2).min(PAUSE);
        stable = ask()?.0;
    }
    Ok(slot.reach(stable, high))
}

/// Asks until there is an answer: one that comes too late once must not end a replay.
fn answered<T>(
    clock: &Clock,
    stop: &CancellationToken,
    ask: impl Fn() -> Result<T, kafka::Error>,
) -> Result<T, Error> {
    let began = clock.now();
    loop {
        match ask() {
            Ok(end) => return Ok(end),
            Err(error) if error.is_transient() && clock.now().saturating_duration_since(began) < PATIENCE => {
                tracing::debug!(%error, "asking where the source topics end; asking again");
            }
            Err(source) => {
                return Err(Error::Kafka { doing: "reading the source topics".to_owned(), source });
            }
        }
        if stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        Handle::current().block_on(tokio::time::sleep(PAUSE));
    }
}

fn take(
    keys: &mut Keys,
    slot: &mut Slot,
    at: u32,
    latest: &mut Map<(u32, u128), Latest>,
    message: &Message<'_>,
) -> Result<(), Error> {
    let offset = message.offset();
    while let Some((expected, key)) = slot.letters.get(slot.passed).filter(|(letter, _)| *letter <= offset) {
        if *expected == offset && message.key().map(hash) != Some(*key) {
            slot.foreign = Some(offset);
        }
        slot.passed += 1;
    }
    let around = keys.codec.as_ref().is_some_and(Codec::looks_around);
    let Some(key) = keys.of(message.encoded(around))? else { return Ok(()) };
    let Some(seen) = noted(keys, latest, (at, key)) else { return Ok(()) };
    let replays = message.headers().filter(|(name, _)| *name == header::REPLAYS).last();
    let nth = replays.and_then(|(_, value)| std::str::from_utf8(value?).ok()?.parse().ok());
    *seen = Latest { offset, copy: nth.map(|nth| (message.timestamp_ms(), nth)) };
    Ok(())
}

/// Where the newest record of a key is noted: of the keys that letters have; of all where that is not known before.
fn noted<'a>(
    keys: &Keys,
    latest: &'a mut Map<(u32, u128), Latest>,
    at: (u32, u128),
) -> Option<&'a mut Latest> {
    match keys.codec {
        None => latest.get_mut(&at),
        Some(_) => Some(latest.entry(at).or_default()),
    }
}

/// Partitions of a topic (none where it is gone), and the time before which it may have forgotten a delete.
async fn look(admin: &Admin, topic: &str, now: i64) -> Result<(i32, i64), kafka::Error> {
    let Some(info) = admin.describe(topic).await? else { return Ok((0, i64::MIN)) };
    let config = admin.topic_config(topic).await?;
    let compacted = config.get("cleanup.policy").is_some_and(|policy| policy.contains("compact"));
    let kept = config.get("delete.retention.ms").and_then(|value| value.parse().ok());
    let forgets = compacted.then(|| now.saturating_sub(kept.unwrap_or(DELETES_KEPT_MS)));
    Ok((info.partitions, forgets.unwrap_or(i64::MIN)))
}

#[cfg(test)]
mod tests;
