//! Whether a letter is stale: decided by the source, not by a view, which shows neither what is pending, nor deletes,
//! nor writes that changed nothing.
//!
//! ```text
//!   source partition   ... | the record that failed | ... later records ... | end
//!                            ^ the letter's offset    ^ one of its key: the letter is stale
//! ```
//!
//! Each partition that letters came from is read once, from the lowest of their offsets to its end, committed records
//! only, and before each transaction to its new end. Of a record only its key's hash (128 bits) is kept, and that only
//! where a letter has it; where keys are made of fields, or are datums themselves, of all records, since what a letter's key
//! will be is not known before it is mended.
//!
//! Owns: reading the source, and the judgement. Does not own: what follows from it (`replay`).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Error;
use super::fit::Schemas;
use super::found::{Found, Source};
use crate::clock::Clock;
use crate::codec::{self, Codec, Encoded, Format, KeyRule};
use crate::format::letter::header;
use crate::kafka::{self, Admin, Message, Polled, Poller, Tuning, ends::Ends};
use crate::schema::Schema;

/// Bytes that the client fetches ahead.
const FETCH_AHEAD: u64 = 64 << 20;
/// Longest time without any progress.
const PATIENCE: Duration = Duration::from_secs(60);
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
}

/// The source partitions that letters came from.
pub struct Sources {
    keys: Keys,
    clock: Clock,
    slots: Vec<Slot>,
    index: HashMap<(String, i32), usize>,
    latest: HashMap<(u32, u128), Latest>,
    reading: Option<(Poller, Ends)>,
}

impl Sources {
    /// None yet.
    pub fn new(keys: Keys, clock: Clock) -> Sources {
        Sources {
            keys,
            clock,
            slots: Vec::new(),
            index: HashMap::new(),
            latest: HashMap::new(),
            reading: None,
        }
    }

    /// A letter that will be judged, and its record's Kafka key. Before [`Sources::open`].
    pub fn expect(&mut self, found: &Found<'_>, key: Option<&[u8]>) {
        let Some(source) = found.source else { return };
        // Allocates for a new partition only.
        let same = |slot: &Slot| slot.partition == source.partition && slot.topic == source.topic;
        let at = match self.slots.iter().position(same) {
            Some(at) => at,
            None => {
                self.index.insert((source.topic.to_owned(), source.partition), self.slots.len());
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
        let runtime = tokio::runtime::Handle::current();
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
        // Slots of the poller are those of this list: what has no records is read from its end.
        let at: Vec<(&str, i32, i64)> = self
            .slots
            .iter()
            .filter(|slot| slot.end > 0 || slot.low > 0)
            .map(|slot| (&*slot.topic, slot.partition, slot.from.clamp(slot.low, slot.end)))
            .collect();
        poller.assign(&at).map_err(failed)?;
        self.reading = Some((poller, ends));
        Ok(())
    }

    /// Reads each partition to where it ends now. Blocks.
    ///
    /// # Errors
    /// Kafka's; [`Error::Stopped`].
    pub fn catch_up(&mut self, stop: &CancellationToken, mut read: impl FnMut(u64)) -> Result<(), Error> {
        let failed = |source| Error::Kafka { doing: "reading the source topics".to_owned(), source };
        let Sources { keys, clock, slots, index, latest, reading } = self;
        let Some((poller, ends)) = reading else { return Ok(()) };
        let mut behind = Vec::new();
        for at in poller.all() {
            let Some((topic, partition)) = poller.partition(at) else { continue };
            let (stable, _) = ends.of(topic, partition).map_err(failed)?;
            let slot = index.get(&(topic.to_owned(), partition)).copied().unwrap_or(usize::MAX);
            behind.push((at, slot, stable));
        }
        let is_behind =
            |poller: &Poller, at: usize, stable: i64| poller.position(at).is_some_and(|next| next < stable);
        let mut progress: Instant = clock.now();
        let mut count = 0u64;
        while behind.iter().any(|(at, _, stable)| is_behind(poller, *at, *stable)) {
            if stop.is_cancelled() {
                return Err(Error::Stopped);
            }
            match poller.poll(Duration::from_millis(100)) {
                Some(Polled::Record { slot: at, message }) => {
                    count += 1;
                    if count.is_multiple_of(1 << 14) {
                        read(count);
                        progress = clock.now();
                    }
                    let Some((_, slot, _)) = behind.get(at) else { continue };
                    if let Some(found) = slots.get_mut(*slot) {
                        take(keys, found, *slot as u32, latest, &message)?;
                    }
                    if latest.len() > MOST_KEYS {
                        return Err(Error::TooManyKeys(MOST_KEYS));
                    }
                }
                Some(Polled::End { .. }) => progress = clock.now(),
                Some(Polled::Lost { slot: at, detail }) => {
                    let place = poller.partition(at).map(|(topic, at)| format!("{topic}[{at}]"));
                    let doing = format!("reading {}", place.unwrap_or_default());
                    return Err(failed(kafka::Error::Unavailable { doing, detail }));
                }
                Some(Polled::Error(error)) if !error.is_transient() => return Err(failed(error)),
                Some(Polled::Error(error)) => tracing::debug!(%error, "reading the source topics"),
                None => {}
            }
            if clock.now().saturating_duration_since(progress) > PATIENCE {
                let doing = "reading the source topics to their ends".to_owned();
                let detail = format!("nothing came for {PATIENCE:?}");
                return Err(failed(kafka::Error::Unavailable { doing, detail }));
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
        let at = self.index.get(&(topic.to_owned(), partition)).copied().unwrap_or(usize::MAX);
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
        if failed_at < slot.forgets_before {
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
            Some(_) => Standing::Fresh,
            // Where keys are made of fields all are kept: it has not been seen.
            None if self.keys.codec.is_some() => Standing::Fresh,
            None => Standing::Unknown("its key is not the one that was looked for".to_owned()),
        }
    }
}

fn take(
    keys: &mut Keys,
    slot: &mut Slot,
    at: u32,
    latest: &mut HashMap<(u32, u128), Latest>,
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
    let seen = match keys.codec {
        None => latest.get_mut(&(at, key)),
        Some(_) => Some(latest.entry((at, key)).or_default()),
    };
    if let Some(seen) = seen {
        let replays = message.headers().filter(|(name, _)| *name == header::REPLAYS).last();
        let nth = replays.and_then(|(_, value)| std::str::from_utf8(value?).ok()?.parse().ok());
        *seen = Latest { offset, copy: nth.map(|nth| (message.timestamp_ms(), nth)) };
    }
    Ok(())
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
