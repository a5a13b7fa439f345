//! One look at a shard's topic, pin and store: what may go, and letting it go. By its owner (`clean`), or by who asks
//! once (`stillwell blob gc`).
//!
//! ```text
//!  announcements, read on -> Shelf ---+
//!  control topic -> the pin ----------+--> Plan --> each blob: gone
//!  the shard's folder, listed --------+
//! ```
//!
//! Owns: reading them, and the deletes. Does not own: what is kept (`shelf`), when, and who may (`clean`, `cli/blob/gc`).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::shelf::{Fate, Pin, Shelf};
use super::spared;
use crate::blob::name::{self, Folder, Name};
use crate::blob::{self, Listed};
use crate::format::announcement::Message;
use crate::kafka::{self, Admin, Poller, Tuning};
use crate::producer::circuit::Gate;
use crate::producer::{Options, control, topics};
use crate::record::TopicId;
use crate::retry::Circuit;
use crate::version::{Life, Shard, Version};
use crate::view::{self, Cache, Spared};

/// Longest time for reading the announcements on to their end; the first time that is all of them.
const READ: Duration = Duration::from_secs(10 * 60);
/// How long the broker may hold back a fetch while the end is looked for.
const FETCH_WAIT: Duration = Duration::from_millis(50);
/// Longest time for listing a shard's folder.
const LIST: Duration = Duration::from_secs(5 * 60);
/// Older than this no put is under way.
const UNFINISHED: Duration = Duration::from_secs(24 * 60 * 60);
/// Blobs that are deleted at a time.
pub const AT_A_TIME: usize = 8;
/// How long what was read of pin and lives counts. Well below the group's session timeout (6 s): within it nobody else can
/// have been given the shard, so that whoever stood still for longer (SIGSTOP, a machine that hangs) asks again first.
const CONFIRMED_FOR: Duration = Duration::from_secs(2);

/// Why nothing more goes for now.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka does not answer, or refuses.
    #[error("cleaning: asking Kafka")]
    Kafka(#[from] kafka::Error),
    /// The store does not answer, or refuses.
    #[error("cleaning: asking the blob store")]
    Store(#[from] blob::Error),
    /// What this machine remembers of pins cannot be read.
    #[error("cleaning: reading what was noted as pinned")]
    Note(#[source] view::Error),
    /// What is retained is not known whole: nothing may go.
    #[error("cleaning is not safe: {0}; nothing is deleted")]
    Unknown(String),
    /// The control topic is not as it must be: what is pinned may be lost.
    #[error("cleaning is not safe; nothing is deleted")]
    Control(#[from] topics::Error),
    /// A newer life writes the shard: it cleans.
    #[error("cleaning: life {0} has begun meanwhile")]
    Superseded(Life),
    /// The store's breaker is open.
    #[error("cleaning waits for the blob store, whose circuit is open")]
    Waiting,
    /// The life goes on from blobs that no announcement names yet which is kept.
    #[error(
        "cleaning waits for the first announcement of life {0}, which names the older blobs that it goes on from"
    )]
    Unsaid(Life),
    /// A failpoint.
    #[error(transparent)]
    Injected(#[from] crate::failpoint::Injected),
}

impl Error {
    /// Whether the store refuses what it was asked.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Error::Store(blob::Error::Refused { .. }))
    }

    /// What the operator does about it.
    pub fn kind(&self) -> crate::ErrorKind {
        match self {
            Error::Kafka(error) => error.kind(),
            Error::Store(error) => error.kind(),
            Error::Unknown(_) => crate::ErrorKind::Rejected,
            Error::Control(error) if error.is_transient() => crate::ErrorKind::Unavailable,
            Error::Control(_) => crate::ErrorKind::Config,
            Error::Note(_)
            | Error::Superseded(_)
            | Error::Waiting
            | Error::Unsaid(_)
            | Error::Injected(_) => crate::ErrorKind::Unavailable,
        }
    }
}

/// A blob that is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doomed {
    /// Its name.
    pub name: Name,
    /// Its length.
    pub bytes: u64,
    /// [`Fate::Passed`] or [`Fate::Orphan`].
    pub fate: Fate,
}

/// Blobs that stay, of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heap {
    /// How many.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Heap {
    fn add(&mut self, bytes: u64) {
        self.blobs += 1;
        self.bytes += bytes;
    }
}

/// What lies in a shard's folder, and what becomes of it.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// What is to go, in the order of names.
    pub doomed: Vec<Doomed>,
    /// What something retained names: deltas, snapshots, indexes.
    pub kept: [Heap; 3],
    /// What the present life may be about to announce: stored by itself, or what it goes on from.
    pub fresh: Heap,
    /// Values of dead letters. The letters' topic names them, which is nobody's to read here: they stay.
    pub letters: Heap,
    /// What is no blob's name of this release.
    pub strange: Heap,
}

/// Blobs that the store refused to delete. They keep no other from going, and the topic not from being trimmed: what is
/// wrong with one (a lock, an owner) may be wrong with it alone, and for ever.
#[derive(Debug, Default)]
pub struct Refused {
    blobs: Vec<Name>,
    first: Option<Error>,
}

impl Refused {
    /// Keeps a refusal.
    ///
    /// # Errors
    /// Any other failure, behind which nothing goes.
    pub fn take(&mut self, blob: &Name, error: Error) -> Result<(), Error> {
        if !error.is_refusal() {
            return Err(error);
        }
        self.blobs.push(blob.clone());
        self.first.get_or_insert(error);
        Ok(())
    }

    /// Which they are.
    pub fn blobs(&self) -> &[Name] {
        &self.blobs
    }

    /// What was kept, once all others are gone.
    ///
    /// # Errors
    /// The first refusal.
    pub fn outcome(self) -> Result<(), Error> {
        self.first.map_or(Ok(()), Err)
    }
}

/// What was read of pin and lives, and when.
#[derive(Clone, Copy, Debug)]
pub struct Confirmed {
    /// What is pinned.
    pub pin: Pin,
    at: Instant,
}

/// See above.
pub struct Sweep {
    options: Options,
    admin: Admin,
    shard: Shard,
    topic_id: TopicId,
    /// The store's breaker, where there is one: nothing is asked while it is not closed, and it is told nothing. That a
    /// right to delete is missing must not keep uploads waiting.
    gate: Option<Gate>,
    /// The cache's folder in which it is noted which pin is spared, and by which control topic; and the cache, for who notes it.
    notes: Option<(PathBuf, Option<Cache>)>,
    shelf: Shelf,
    /// The next offset to read.
    next: i64,
    /// The offset below which the topic is still to be cut.
    uncut: Option<i64>,
}

impl Sweep {
    /// Of a shard whose announcement topic has this id. Nothing is read yet.
    pub fn new(options: Options, admin: Admin, topic_id: TopicId, shard: Shard, gate: Option<Gate>) -> Sweep {
        let (notes, shelf) = (None, Shelf::default());
        Sweep { options, admin, shard, topic_id, gate, notes, shelf, next: 0, uncut: None }
    }

    /// The same, which notes in `cache` which pin is spared: a pin ends by a record that says so, and not with its topic.
    #[must_use]
    pub fn noting(self, cache: Cache) -> Sweep {
        Sweep { notes: Some((cache.dir().to_owned(), Some(cache))), ..self }
    }

    /// The same, which heeds what the owner has noted in the cache in `dir`, if that is of this machine.
    #[must_use]
    pub fn heeding(self, dir: PathBuf) -> Sweep {
        Sweep { notes: Some((dir, None)), ..self }
    }

    /// What was read.
    pub fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    /// Reads the announcements on to their end.
    ///
    /// # Errors
    /// [`Error::Kafka`].
    pub async fn read(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        let (topic, partition) = (self.options.announcements.clone(), self.shard.0 as i32);
        let (low, end) = self.admin.watermarks(&topic, partition).await?;
        if self.next < low {
            // For the first time, or somebody else has cut it: what it begins with now is all that there is.
            (self.shelf, self.next) = (Shelf::default(), low);
        }
        if self.next >= end {
            return Ok(());
        }
        // Who is dropped here stops the thread; and who is asked again all the same begins anew.
        let stop = stop.child_token();
        let _stopped_on_drop = stop.clone().drop_guard();
        let (options, next) = (self.options.clone(), std::mem::take(&mut self.next));
        let mut shelf = std::mem::take(&mut self.shelf);
        let read = tokio::task::spawn_blocking(move || {
            let read = |each: &mut dyn FnMut(i64, &[u8])| {
                let group = format!("stillwell.{}", options.dataset);
                let tuning = Tuning { role: "cleaner", ..Tuning::tail(&group, FETCH_WAIT) };
                let mut poller = Poller::new(&options.kafka, &tuning)?;
                let (clock, at) = (&options.clock, (topic.as_str(), partition, next));
                kafka::read_on(&mut poller, at, clock, clock.now() + READ, &stop, |message| {
                    each(message.offset(), message.value().unwrap_or_default());
                })
            };
            let (next, done) = take_on(&mut shelf, next, &options.dataset, read);
            (shelf, next, done)
        });
        let read = read.await.map_err(|_| kafka::Error::Closed { doing: "reading announcements".to_owned() });
        let (shelf, next, done) = read?;
        (self.shelf, self.next) = (shelf, next);
        Ok(done?)
    }

    /// Asks for the pin, and whether `life` is still the highest, in a topic that is still the same. In this order, and
    /// after `oldest_kept` was read: who pins looks at the announcements after writing the pin, so that of a pin and a
    /// cleaning that cross at least one sees the other.
    ///
    /// # Errors
    /// [`Error`]: then nothing may go.
    pub async fn confirm(&mut self, life: Life, stop: &CancellationToken) -> Result<Confirmed, Error> {
        let at = self.options.clock.now();
        topics::keeps_pins(&self.admin, &self.options).await?;
        let control = self.control_noted().await?;
        let control::Pinned { pin, is_said } =
            control::pinned(&self.admin, &self.options, self.shard).await?;
        let pin = spared::of_shard(pin.as_ref(), self.topic_id, self.shard);
        self.note(control, pin, is_said).await?;
        self.read(stop).await?;
        // Behind the reading, so that what was read is known to be of it.
        self.is_same().await?;
        match self.shelf.life() {
            Some(highest) if highest != life => Err(Error::Superseded(highest)),
            _ => Ok(Confirmed { pin, at }),
        }
    }

    /// The control topic's id.
    async fn control(&self) -> Result<TopicId, Error> {
        let control = &self.options.control;
        let found = self.admin.describe(control).await?;
        found
            .map(|info| info.id)
            .ok_or_else(|| Error::Unknown(format!("control topic {control} is not there")))
    }

    /// Its id before it is read, where there is a note to write or to compare with it. One that the owner writes meanwhile says
    /// what the topic does, which is read after this.
    async fn control_noted(&self) -> Result<Option<TopicId>, Error> {
        let Some((dir, cache)) = self.notes.clone() else { return Ok(None) };
        if cache.is_none() {
            let (dataset, shard, history) = (self.options.dataset.clone(), self.shard, self.topic_id);
            let noted = tokio::task::spawn_blocking(move || noted_in(&dir, &dataset, shard, history)).await;
            let noted = noted
                .map_err(|_| kafka::Error::Closed { doing: "reading what was noted as pinned".to_owned() })?;
            if noted.map_err(Error::Note)?.is_none() {
                return Ok(None);
            }
        }
        self.control().await.map(Some)
    }

    /// Notes what is pinned. A control topic that was made anew and has no record about a pin leaves standing the one that stood
    /// in the topic before, as it does for readers (`consumer/control`), which may hold that version for as long as they live.
    /// The topic was `before` when it was begun to be read: one that was made anew meanwhile is known by neither id.
    async fn note(&self, before: Option<TopicId>, pin: Pin, is_said: bool) -> Result<(), Error> {
        let (Some((dir, cache)), Some(before)) = (self.notes.clone(), before) else { return Ok(()) };
        let (topic, control) = (self.control().await?, &self.options.control);
        if topic != before {
            return Err(Error::Unknown(format!("control topic {control} was made anew while it was read")));
        }
        let (dataset, shard, history) = (self.options.dataset.clone(), self.shard, self.topic_id);
        let noted = tokio::task::spawn_blocking(move || {
            let noted = noted_in(&dir, &dataset, shard, history)?;
            if let Some(lost) = noted.filter(|noted| noted.topic != topic && !is_said) {
                return Ok(Some(lost));
            }
            let now = pin.map(|(version, epoch)| Spared { topic, history, version, epoch });
            if let Some(cache) = cache.filter(|_| now != noted) {
                spared::save(&cache, &dataset, shard, now);
            }
            Ok(None)
        });
        match noted.await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(Spared { topic: was, version, .. }))) => Err(Error::Unknown(format!(
                "control topic {control} was made anew as {topic} (its id was {was}) and says nothing of the pin to version \
                 {version}, which stays: unpin, or pin a version that is kept"
            ))),
            Ok(Err(error)) => Err(Error::Note(error)),
            Err(_) => Err(kafka::Error::Closed { doing: "noting what is pinned".to_owned() }.into()),
        }
    }

    /// Whether the announcement topic is still the one that was read: in one made anew the same offsets mean other records.
    async fn is_same(&self) -> Result<(), Error> {
        let topic = &self.options.announcements;
        match self.admin.describe(topic).await? {
            Some(info) if info.id == self.topic_id => Ok(()),
            Some(info) => Err(Error::Unknown(format!(
                "announcement topic {topic} was deleted and created again (its topic id was {}, and is {})",
                self.topic_id, info.id
            ))),
            None => Err(Error::Unknown(format!("announcement topic {topic} is not there"))),
        }
    }

    /// Whether what was read is too old to act on.
    pub fn is_stale(&self, confirmed: &Confirmed) -> bool {
        self.options.clock.now().saturating_duration_since(confirmed.at) > CONFIRMED_FOR
    }

    /// Lists the shard's folder, and says what becomes of each blob once nothing below `below` is kept but what is pinned.
    ///
    /// # Errors
    /// [`Error::Unknown`] where the topic does not tell; [`Error::Store`], [`Error::Waiting`].
    pub async fn plan(&self, below: Version, pin: Pin) -> Result<Plan, Error> {
        self.shelf.is_whole(below, pin).map_err(Error::Unknown)?;
        let folder =
            Folder { dataset: self.options.dataset.clone(), topic_id: self.topic_id, shard: self.shard };
        let folder = folder.to_string();
        let listed = self.ask(LIST, &folder, self.options.store.list(&folder)).await?;
        let mut plan = Plan::default();
        for Listed { name, bytes } in listed {
            let Ok(parsed) = name.parse::<Name>() else {
                let heap = if name.ends_with(name::LETTER) { &mut plan.letters } else { &mut plan.strange };
                heap.add(bytes);
                continue;
            };
            match self.shelf.fate(&parsed, below, pin) {
                Fate::Kept => {
                    let [deltas, snapshots, indexes] = &mut plan.kept;
                    match parsed.kind {
                        name::Kind::Delta => deltas.add(bytes),
                        name::Kind::Snapshot => snapshots.add(bytes),
                        name::Kind::Index => indexes.add(bytes),
                    }
                }
                Fate::Fresh => plan.fresh.add(bytes),
                fate @ (Fate::Passed | Fate::Orphan) => {
                    plan.doomed.push(Doomed { name: parsed, bytes, fate })
                }
            }
        }
        Ok(plan)
    }

    /// As [`Sweep::plan`], for who does not know from what the present `life` goes on: one that was restored from an older
    /// snapshot needs blobs that have passed by the announcements before its own. Until it has announced something, whatever was
    /// ever announced may be what it names next.
    ///
    /// # Errors
    /// As [`Sweep::plan`].
    pub async fn plan_beside(&self, life: Life, below: Version, pin: Pin) -> Result<Plan, Error> {
        let mut plan = self.plan(below, pin).await?;
        if self.shelf.newest_epoch() != Some(life.epoch) {
            let passed = plan.doomed.extract_if(.., |doomed| doomed.fate == Fate::Passed);
            passed.for_each(|doomed| plan.fresh.add(doomed.bytes));
        }
        Ok(plan)
    }

    /// Lets go of what puts have left that died. Nobody names it, and nothing depends on it.
    pub async fn unfinished(&self) {
        let before = self.options.clock.wall_ms().saturating_sub(UNFINISHED.as_millis() as i64);
        let folder =
            Folder { dataset: self.options.dataset.clone(), topic_id: self.topic_id, shard: self.shard };
        let folder = folder.to_string();
        match self.ask(LIST, &folder, self.options.store.sweep(&folder, before)).await {
            Ok(0) => {}
            Ok(files) => tracing::info!(folder, files, "deleted what puts that were cut short had left"),
            Err(error) => tracing::debug!(%error, folder, "what puts have left that died is not looked for"),
        }
    }

    /// Deletes those of `doomed` that are still to go by what is known now; gives which they were. Whatever fails, the
    /// others are gone or will be found again. What the store refuses is left to `refused`.
    ///
    /// # Errors
    /// The first of the store's but refusals.
    pub async fn delete<'a>(
        &self,
        doomed: &'a [Doomed],
        below: Version,
        pin: Pin,
        refused: &mut Refused,
    ) -> (Vec<&'a Doomed>, Result<(), Error>) {
        let still = |doomed: &&Doomed| self.shelf.fate(&doomed.name, below, pin) == doomed.fate;
        let limit = self.options.performance.write_timeout;
        let each = doomed.iter().filter(still).map(|doomed| async move {
            let name = doomed.name.to_string();
            (doomed, self.ask(limit, &name, self.options.store.delete(&name)).await)
        });
        let (mut gone, mut failed) = (Vec::new(), Ok(()));
        for (doomed, deleted) in futures::future::join_all(each).await {
            match deleted {
                Ok(()) => gone.push(doomed),
                Err(error) => failed = failed.and(refused.take(&doomed.name, error)),
            }
        }
        (gone, failed)
    }

    /// Forgets what is gone from the store, and notes which announcements are to be cut off. Before Kafka is asked for
    /// it: who may not cut must not remember for ever what is gone. What was refused is remembered, by this life; the next
    /// one, to which no announcement names it any more, takes it for an orphan.
    pub fn forget(&mut self, below: Version, pin: Pin, refused: &Refused) {
        self.uncut = self.shelf.trim_to(below, pin).or(self.uncut);
        self.shelf.forget(below, pin, refused.blobs());
    }

    /// Whether announcements are still to be cut off.
    pub fn is_uncut(&self) -> bool {
        self.uncut.is_some()
    }

    /// Cuts off the announcements that nothing needs; to be confirmed before. Whatever is pinned by then is above: nothing
    /// below what is kept can be pinned newly.
    ///
    /// # Errors
    /// [`Error::Kafka`]: they are still to be cut off.
    pub async fn cut(&mut self) -> Result<(), Error> {
        let (topic, partition) = (&self.options.announcements, self.shard.0 as i32);
        let Some(before) = self.uncut else { return Ok(()) };
        let (low, _) = self.admin.watermarks(topic, partition).await?;
        if before > low {
            self.admin.delete_records(topic, partition, before).await?;
        }
        self.uncut = None;
        Ok(())
    }

    async fn ask<T>(
        &self,
        limit: Duration,
        name: &str,
        call: impl Future<Output = Result<T, blob::Error>>,
    ) -> Result<T, Error> {
        if self.gate.as_ref().is_some_and(|gate| gate.state() != Circuit::Closed) {
            return Err(Error::Waiting);
        }
        let asked = tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
            Err(blob::Error::Unavailable {
                doing: "cleaning",
                url: self.options.store.absolute_url(name),
                problem: format!("it took longer than {limit:?}"),
            })
        });
        Ok(asked?)
    }
}

/// What is noted in the cache in `dir` of a pin of the history. What readers of another one were pinned to is nothing to it.
fn noted_in(
    dir: &Path,
    dataset: &str,
    shard: Shard,
    history: TopicId,
) -> Result<Option<Spared>, view::Error> {
    Ok(Spared::load(dir, dataset, shard)?.filter(|noted| noted.history == history))
}

/// Shows to the shelf what `read` brings, from `next` on; gives the offset to go on with, however it ends. Records come in
/// order, so what was read in part counts: read again, a topic that takes longer than [`READ`] would never be cleaned.
pub(super) fn take_on(
    shelf: &mut Shelf,
    mut next: i64,
    dataset: &str,
    read: impl FnOnce(&mut dyn FnMut(i64, &[u8])) -> Result<i64, kafka::Error>,
) -> (i64, Result<(), kafka::Error>) {
    let end = read(&mut |offset, value| {
        match Message::decode(value) {
            Ok(told) if told.dataset() == dataset => shelf.take(offset, &told),
            Ok(_) => {}
            // If it was an announcement a version is missing, by which `is_whole` knows.
            Err(error) => tracing::debug!(offset, %error, dataset, "passed over"),
        }
        next = offset + 1;
    });
    match end {
        Ok(end) => (end, Ok(())),
        Err(error) => (next, Err(error)),
    }
}
