//! Replay: letters go back to the partition that they came from, once.
//!
//! ```text
//!  1  letters in topic order --selection--> how many, and which keys of which source partitions; all: which have failed again
//!  2  those partitions, from the lowest offset to the end: what is stale?
//!  3  letters again, in chunks, one ahead of what is done with it:
//!       replaced? -> cap -> blob -> fix -> source to its new end: stale? -> [ records to the source | the group's offsets ]
//!                                                                one Kafka transaction, at least once a second
//! ```
//!
//! The records and the offsets of their letters are in one transaction of the id DATASET/replay, so that each letter is
//! replayed once, whatever dies when: the next run ends or aborts what was under way, then reads how far it came. Two
//! runs at a time fence each other. Should a late duplicate of an ending transaction end the next one too early
//! (librdkafka has no KIP-890 part 2), records stand in the source whose letters are not counted as handled: records
//! are delivered before offsets are added, so never the reverse, and such a record is a later one of its key, by which
//! the next run knows that its letter has been replayed. Only where records have no key it would come twice.
//!
//! A record of the key that is written between the last look at the source and the transaction, some tens of
//! milliseconds, is not seen, and the letter lands behind it. What was written before and stands in a transaction that is
//! not ended is waited for, and where that takes too long the letter is left.
//!
//! A letter whose record was replayed and has failed again is replaced by the letter of that (`record`), also one that is not
//! selected, or that another selection has handled: it is passed over, also by force, which would put the older value behind the
//! newer. So all that may hold the later letter is read: its own partition, where it stands behind, from the first
//! letter that is to be decided, to the end even where fewer are asked for; of several partitions each from its beginning.
//!
//! What lost a conflict is stale by what its letter says: the record that won stands in another partition. By force it goes
//! back as of now, since with its own time it would lose again.
//!
//! The topic is the only way in, also for what goes straight into the dataset (`rows`).
//!
//! Owns: the order of it all, and what is committed. Does not own: what is selected (`select`), staleness (`stale`),
//! progress (`progress`), what is in a chunk (`ahead`), what is shown (`cli/dlq`).

use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

mod ahead;
mod decide;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use ahead::{AHEAD, Chunk, Entry, Reading};

use super::Error;
use super::fit::{Fit, Schemas};
use super::fix::Fix;
use super::found::Found;
use super::held::Held;
use super::letter::{CHANGES, CONFLICT};
use super::outcome::{Outcome, Told, Totals};
use super::progress::Progress;
use super::record::{Again, Origin};
use super::rows::{Goal, Rows};
use super::select::{Selection, Verdict};
use super::stale::{Keys, Sources};
use super::table::{Set, room};
use super::topic::{Reader, Topic};
use crate::blob::Store;
use crate::clock::Clock;
use crate::codec::{Bound, Format, KeyRule, append_integer};
use crate::failpoint;
use crate::format::letter::{Elsewhere, header};
use crate::kafka::transaction::BULK_LIMIT;
use crate::kafka::{self, Admin, Group, Outcome as Ended, Outgoing, Timestamps, Transaction};
use crate::registry::Registry;
use crate::schema::Schema;

/// Most letters in a transaction.
pub const CHUNK: usize = 20_000;
/// Most of them while each is given to a program: a second's worth.
const CHUNK_TO_MEND: usize = 8;
/// Longest that a step of a transaction may take: beyond the transaction's own time limit.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest wait for a transaction that is open in the source, where nobody says another: beyond the minute after which Kafka
/// ends one by default.
pub const WAIT: Duration = Duration::from_secs(90);
/// Room for what the broker puts around a record.
const AROUND: usize = 1_024;

/// The dataset whose letters they are.
#[derive(Clone)]
pub struct Options {
    /// How to reach Kafka.
    pub kafka: kafka::Options,
    /// Its name.
    pub dataset: String,
    /// Its source topics.
    pub topics: Vec<String>,
    /// Where its keys come from.
    pub key: KeyRule,
    /// How large a record may be.
    pub bound: Bound,
    /// How values are encoded in the source.
    pub format: Format,
    /// The schema registry, where values name their schemas by its ids.
    pub registry: Option<Registry>,
    /// Its schema.
    pub schema: Arc<Schema>,
    /// The topic with the letters: its own, or one that Kafka Connect or Spring wrote.
    pub letters: String,
    /// Where values lie that are too large for their topic.
    pub store: Store,
    /// Time.
    pub clock: Clock,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Which letters.
    pub selection: Selection,
    /// At most so many of them.
    pub max: Option<u64>,
    /// At most so many a second.
    pub rate: Option<NonZeroU32>,
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
    /// A record that was replayed so often is left.
    pub max_replays: u32,
    /// Longest wait for a transaction that is open in the source ([`WAIT`]).
    pub wait: Duration,
    /// Replay what is stale too, or cannot be judged.
    pub force: bool,
    /// What mends values.
    pub fix: Option<Fix>,
    /// Where they go.
    pub goal: Goal,
}

/// A replay.
pub struct Replay<'a> {
    options: &'a Options,
    asked: &'a Asked,
    stop: CancellationToken,
    /// Ends the reading of letters.
    reading: CancellationToken,
    admin: Admin,
    group: Group,
    /// None in a dry run.
    transaction: Option<Transaction>,
    progress: Vec<Progress>,
    sources: Sources,
    /// What has replaced letters.
    again: Again,
    fit: Fit,
    /// Where letters go into the dataset.
    rows: Option<Rows>,
    limits: Vec<(String, Limit)>,
    /// Source positions of what this run has sent: the same letter may stand in its topic twice.
    sent: Set<(u64, i32, i64)>,
    limiter: Option<DefaultDirectRateLimiter>,
    totals: Totals,
}

#[derive(Clone, Copy)]
struct Limit {
    partitions: i32,
    bytes: usize,
    timestamps: Timestamps,
}

/// Replays letters until all that are selected are seen, or `stop` is cancelled. Returns what was done in any case.
/// Blocks, within a runtime.
pub fn run(
    options: &Options,
    asked: &Asked,
    stop: &CancellationToken,
    mut tell: impl FnMut(Told<'_>),
) -> (Totals, Result<(), Error>) {
    let (mut replay, topic) = match Replay::begin(options, asked, stop) {
        Ok(begun) => begun,
        Err(error) => return (Totals::default(), Err(error)),
    };
    let done = replay.all(topic, &mut tell);
    (replay.totals, done)
}

fn failed(doing: &str) -> impl Fn(kafka::Error) -> Error + '_ {
    move |source| Error::Kafka { doing: doing.to_owned(), source }
}

impl<'a> Replay<'a> {
    fn begin(
        options: &'a Options,
        asked: &'a Asked,
        stop: &CancellationToken,
    ) -> Result<(Replay<'a>, Topic), Error> {
        let into_source = asked.goal == Goal::Source;
        let changes = asked.selection.stages.iter().find(|stage| is_of_changes(stage));
        if let (true, Some(stage)) = (into_source, changes) {
            return Err(Error::InTheDataset(stage.clone()));
        }
        let admin = Admin::new(&options.kafka).map_err(failed("making a client"))?;
        // First, so that what a former run has under way is ended before it is asked how far that came.
        let transaction = match asked.dry_run {
            true => None,
            false => {
                let id = format!("{}/replay", options.dataset);
                let transaction = Transaction::bulk(&options.kafka, &id, options.clock.clone());
                let transaction = transaction.map_err(failed("making a client"))?;
                transaction.init(PATIENCE).map_err(failed("beginning to replay"))?;
                Some(transaction)
            }
        };
        // Behind it: a letter of what that run still committed stands in what is read.
        let topic = Topic::look(&admin, &options.letters)?;
        let group =
            Group::new(&options.kafka, &asked.selection.group()).map_err(failed("making a client"))?;
        let committed = group
            .committed(&topic.name, topic.partitions())
            .map_err(failed("asking how far replays came"))?;
        let progress = committed.iter().zip(&topic.ranges).map(|(committed, range)| {
            let (progress, anew) = Progress::within(committed, *range);
            if anew {
                tracing::warn!(
                    topic = topic.name,
                    "the topic was made anew since the last replay, which began again"
                );
            }
            progress
        });
        let progress = progress.collect();
        let schemas = Schemas::new(options.registry.clone());
        let keys = Keys::new(&options.format, &options.key, &options.schema, schemas.clone())?;
        let rows = match into_source {
            true => None,
            false => Some(Rows::new(options, schemas.clone())?),
        };
        let fit = Fit::new(&options.format, &options.key, &options.schema, options.bound, schemas)?;
        let limiter = asked
            .rate
            .map(|rate| RateLimiter::direct(Quota::per_second(rate).allow_burst(half_a_second(rate))));
        let replay = Replay {
            options,
            asked,
            stop: stop.clone(),
            reading: stop.child_token(),
            admin,
            group,
            transaction,
            progress,
            sources: Sources::new(keys, options.clock.clone(), asked.wait),
            again: Again::default(),
            fit,
            rows,
            limits: Vec::new(),
            sent: Set::default(),
            limiter,
            totals: Totals::default(),
        };
        Ok((replay, topic))
    }

    fn all(&mut self, topic: Topic, tell: &mut impl FnMut(Told<'_>)) -> Result<(), Error> {
        let group = self.asked.selection.group();
        let (clock, stop) = (self.options.clock.clone(), self.reading.clone());
        let mut reader = Reader::new(&self.options.kafka, &group, topic, clock, stop)?;
        self.count(&mut reader)?;
        tell(Told::Selected(self.totals.selected));
        self.sent.reserve(room(self.totals.selected));
        self.replay(reader, &group, tell)
    }

    /// The first reading: how many, what of the source has to be looked at for them, and which of all are replaced.
    fn count(&mut self, reader: &mut Reader) -> Result<(), Error> {
        let most = self.asked.max.unwrap_or(u64::MAX);
        let partitions = reader.topic().partitions();
        let is_new = |(at, progress): (i32, &Progress)| progress.start() < reader.range(at).1;
        if !(0..).zip(&self.progress).any(is_new) {
            return Ok(());
        }
        if !self.asked.force {
            let new = |(at, progress): (i32, &Progress)| reader.range(at).1.saturating_sub(progress.start());
            let letters: i64 = (0..).zip(&self.progress).map(new).map(|new| new.max(0)).sum();
            self.sources.prepare(most.min(letters.unsigned_abs()));
        }
        for partition in 0..partitions {
            let Some(progress) = self.progress.get(partition as usize) else { continue };
            let (low, end) = reader.range(partition);
            // A later letter of a record stands behind it, or anywhere in another partition.
            let from = if partitions == 1 { progress.start() } else { low };
            if from >= end {
                continue;
            }
            reader.begin(partition, from)?;
            let Replay { sources, totals, options, asked, stop, again, .. } = self;
            reader.read(partition, |found| {
                again.take(&found)?;
                let is_open = totals.selected < most && progress.is_open(found.raw.offset);
                if is_open && meant(asked, &found) == Verdict::Meant {
                    totals.selected += 1;
                    // The source says nothing of what lost against another partition, and by force it is not asked.
                    if !asked.force && found.class != CONFLICT {
                        expect(sources, &found, options, stop)?;
                    }
                }
                Ok(ControlFlow::<()>::Continue(()))
            })?;
        }
        Ok(())
    }

    fn look_at_topics(&mut self) -> Result<(), Error> {
        let Replay { admin, options, limits, .. } = self;
        let look = async {
            for topic in &options.topics {
                let Some(info) = admin.describe(topic).await? else { continue };
                let config = admin.topic_config(topic).await?;
                let bytes = config.get("max.message.bytes").and_then(|value| value.parse().ok());
                let bytes = bytes.unwrap_or(1_048_588usize).min(BULK_LIMIT).saturating_sub(AROUND);
                let timestamps = Timestamps::of(&config);
                limits.push((topic.clone(), Limit { partitions: info.partitions, bytes, timestamps }));
            }
            Ok(())
        };
        Handle::current().block_on(look).map_err(failed("looking at the source topics"))
    }

    /// Looks at the source, while the second reading begins, and does what follows from both.
    fn replay(&mut self, reader: Reader, group: &str, tell: &mut impl FnMut(Told<'_>)) -> Result<(), Error> {
        let topic = reader.topic().clone();
        let (chunks, coming) = sync_channel(AHEAD);
        let reading = Reading {
            reader,
            asked: self.asked,
            clock: &self.options.clock,
            progress: self.progress.clone(),
            replaced: !self.again.is_empty(),
            most: self.totals.selected,
            most_letters: self.most_letters(),
            chunks,
        };
        std::thread::scope(|scope| {
            // Whoever ends here first ends the thread, too, which may wait for letters or for its next chunk to be taken.
            let _ended = self.reading.clone().drop_guard();
            scope.spawn(move || reading.run());
            self.look_at_topics()?;
            if !self.asked.force {
                self.sources.open(&self.options.kafka, group, &self.admin)?;
                self.sources.catch_up(&self.stop, |looked| tell(Told::Looked(looked)))?;
            }
            for chunk in coming {
                let chunk = chunk?;
                if self.stop.is_cancelled() {
                    return Err(Error::Stopped);
                }
                self.wait_for_rate(chunk.letters)?;
                if !self.settle(chunk, &topic, tell)? {
                    return Ok(());
                }
            }
            Ok(())
        })
    }

    fn most_letters(&self) -> usize {
        let mending = if self.asked.fix.is_some() { CHUNK_TO_MEND } else { CHUNK };
        self.asked.rate.map_or(mending, |rate| mending.min(half_a_second(rate).get() as usize))
    }

    fn wait_for_rate(&self, letters: usize) -> Result<(), Error> {
        let (Some(limiter), Some(letters)) = (&self.limiter, NonZeroU32::new(letters as u32)) else {
            return Ok(());
        };
        // A chunk is never larger than the bucket.
        while let Ok(Err(not_until)) = limiter.check_n(letters) {
            let wait = not_until.wait_time_from(DefaultClock::default().now());
            let stopped = Handle::current().block_on(async {
                tokio::select! {
                    () = self.stop.cancelled() => true,
                    () = tokio::time::sleep(wait) => false,
                }
            });
            if stopped {
                return Err(Error::Stopped);
            }
        }
        Ok(())
    }

    /// Decides over a chunk, sends what is to be sent, and commits how far it came. False: no more can be left.
    fn settle(
        &mut self,
        chunk: Chunk,
        topic: &Topic,
        tell: &mut impl FnMut(Told<'_>),
    ) -> Result<bool, Error> {
        let Chunk { partition, mut entries, letters: count, through } = chunk;
        let mut letters: Vec<&mut Held> = Vec::with_capacity(count);
        for entry in &mut entries {
            if let Entry::Letter(held) = entry {
                letters.push(held);
            }
        }
        let mut outcomes = self.decide(&mut letters)?;
        let Some(progress) = self.progress.get_mut(partition as usize) else { return Ok(true) };
        let (mut seen, mut not_now, mut full) = (0, 0, false);
        for entry in &entries {
            let noted = match entry {
                Entry::Handled(offset) => {
                    progress.handled(*offset);
                    Ok(())
                }
                Entry::NotNow(offset) => progress.left(*offset).map(|()| not_now += 1),
                Entry::Letter(held) => {
                    let noted = match outcomes.get(seen) {
                        Some(Outcome::Left(..)) => progress.left(held.offset),
                        _ => {
                            progress.handled(held.offset);
                            Ok(())
                        }
                    };
                    noted.map(|()| seen += 1)
                }
            };
            if noted.is_err() {
                full = true;
                break;
            }
        }
        outcomes.truncate(seen);
        if let (Some(through), false) = (through, full) {
            progress.reach(through);
        }
        let letters: Vec<&Held> = entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::Letter(held) => Some(&**held),
                _ => None,
            })
            .take(seen)
            .collect();
        self.commit(partition, &letters, &mut outcomes, topic)?;
        self.totals.not_now += not_now;
        self.totals.full |= full;
        for (held, outcome) in letters.iter().zip(&outcomes) {
            self.totals.count(outcome);
            tell(Told::Done(held, outcome));
        }
        tell(Told::Through);
        Ok(!full)
    }

    /// Sends what is to be sent, and commits how far it came, in one transaction.
    fn commit(
        &mut self,
        partition: i32,
        letters: &[&Held],
        outcomes: &mut [Outcome],
        topic: &Topic,
    ) -> Result<(), Error> {
        let Some(progress) = self.progress.get(partition as usize) else { return Ok(()) };
        let Some(transaction) = &mut self.transaction else { return Ok(()) };
        let (next, note) = progress.position();
        let group = self.group.metadata().map_err(failed("asking for the group"))?;
        let send = |transaction: &mut Transaction| -> Result<(), kafka::Error> {
            transaction.begin()?;
            let (mut origin, mut count) = (Vec::new(), Vec::new());
            for (held, outcome) in letters.iter().zip(outcomes.iter()) {
                let (Outcome::Replayed(_), Some(source)) = (outcome, &held.source) else { continue };
                let own = Origin { offset: source.offset, timestamp: held.timestamp };
                origin.clear();
                held.origin.unwrap_or(own).write(&source.topic, source.partition, &mut origin);
                count.clear();
                append_integer(held.replays.saturating_add(1).into(), &mut count);
                let record = Outgoing {
                    topic: &source.topic,
                    partition: Some(source.partition),
                    key: held.key.as_deref(),
                    value: held.value.as_deref(),
                    headers: &held.headers,
                    behind: &[(header::ORIGIN, origin.as_slice()), (header::REPLAYS, count.as_slice())],
                    timestamp: held.sent_at(),
                };
                transaction.send(&record, PATIENCE)?;
            }
            // Else the offsets could be committed without the records, see above.
            transaction.settle(PATIENCE)?;
            failpoint::pass("replay.sent");
            transaction.send_positions(&[(&topic.name, partition, next, &note)], &group, PATIENCE)?;
            failpoint::pass("replay.offsets");
            Ok(())
        };
        let sent = send(transaction);
        let ended = match sent {
            Ok(()) => transaction.commit(PATIENCE),
            Err(error) => transaction.abort_after(error, PATIENCE),
        };
        match ended {
            Ended::Committed => {}
            Ended::Aborted(source) => {
                return Err(failed("replaying: this chunk was not, and the next run goes on with it")(
                    source,
                ));
            }
            Ended::Fenced(source) => {
                return Err(failed("replaying: another replay of this dataset has taken over")(source));
            }
            Ended::Unknown(source) | Ended::Fatal(source) => {
                let doing =
                    "replaying: what became of the last chunk is not known; the next run looks, and goes on";
                return Err(failed(doing)(source));
            }
        }
        failpoint::pass("replay.committed");
        let mut delivered = transaction.delivered().into_iter();
        let sent = letters.iter().zip(outcomes.iter_mut()).filter_map(|(held, outcome)| {
            let Outcome::Replayed(place) = outcome else { return None };
            let to = delivered.next()?;
            *place = Some((to.partition, to.offset));
            Some((&**held, to.offset))
        });
        // Also where nobody asks: each has to be given its place.
        self.sources.sent(sent)
    }
}

fn is_of_changes(stage: &str) -> bool {
    CHANGES.iter().any(|of| of.eq_ignore_ascii_case(stage))
}

/// What a listener or a webhook did not handle is in the dataset already: the source has nothing to do with it, and rows are
/// made of it where that is asked for by its stage. Who mends the other letters is not to be given these.
fn meant(asked: &Asked, found: &Found<'_>) -> Verdict {
    let named = || asked.selection.stages.iter().any(|stage| is_of_changes(stage));
    match is_of_changes(found.stage) && (asked.goal == Goal::Source || !named()) {
        true => Verdict::Other,
        false => asked.selection.judge(found),
    }
}

/// A letter that will be judged, by its key; where even that lies in a blob, it is fetched for it.
fn expect(
    sources: &mut Sources,
    found: &Found<'_>,
    options: &Options,
    stop: &CancellationToken,
) -> Result<(), Error> {
    // What is not ours to read is not asked for.
    if !found.source.is_some_and(|source| options.topics.iter().any(|topic| topic == source.topic)) {
        return Ok(());
    }
    if found.raw.key.is_none() && matches!(found.elsewhere, Elsewhere::Whole(_)) {
        // Before each: many may come before the reader looks whether to stop, and a store may take its time.
        if stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        let mut held = Held::alone(found);
        if Handle::current().block_on(held.fetch(&options.store))?.is_none() {
            sources.expect(found, held.key.as_deref());
            return Ok(());
        }
    }
    // The key of a change is the dataset's, which need not be the Kafka key of its record.
    let key = found.raw.key.filter(|_| !is_of_changes(found.stage) || sources.keys_as_they_come());
    sources.expect(found, key);
    Ok(())
}

fn half_a_second(rate: NonZeroU32) -> NonZeroU32 {
    NonZeroU32::new(rate.get() / 2).unwrap_or(NonZeroU32::MIN)
}
