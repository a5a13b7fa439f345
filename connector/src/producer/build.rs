//! Building: a batch becomes the next version, as the difference from the view of the last one.
//!
//! ```text
//!  Batch -> sort by key, last write wins -> compare with the view, unchanged dropped -> delta -> next view
//! ```
//!
//! There is no second copy of the state: the view that the batch is compared with is the one that readers of that
//! version hold. What must be said without a change (positions moved over unchanged records or misfits, new
//! partitions, a snapshot) waits for the next change, at most a second, then goes out as an empty delta.
//!
//! Owns: the numbering of versions, the newest view. Does not own: batches (`batch`), uploads (`store`), when a
//! version is announced, `caught_up` (`announce`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

mod conflict;
mod error;
mod keeping;
mod unsaid;

use conflict::{Conflicts, Guard, Lost};
pub use error::Error;
use keeping::{Keeping, Small};
use unsaid::Unsaid;

use super::announce::Coming;
use super::batch::{Batch, Item};
use super::lap::Lap;
use super::snapshot::{Merged, Rebase};
use super::storm::Storm;
use super::turns::Turn;
use crate::blob::name::{self, Folder, Name};
use crate::clock::Clock;
use crate::codec::Format;
use crate::dead;
use crate::failpoint;
use crate::format::chunk::{Body, Chunk};
use crate::format::container::{self, Counts, Kind};
use crate::format::control::Rebuilt;
use crate::format::letter::Letter;
use crate::gauge::Lease;
use crate::record::{Entry, Position, SourcePartition, Stamp};
use crate::telemetry::ProducerMetrics;
use crate::version::{BlobRef, Checksum, DeltaRef, Life, Version};
use crate::view::{About, Cache, DeltaFile, FileName, Identity, View};

/// Deltas over a snapshot at which no batch is taken until the next one is there: readers refuse a chain of more than
/// 512.
const LONGEST_CHAIN: u64 = 500;
/// Longest that something worth saying without a change waits.
const SAY_AFTER: Duration = Duration::from_secs(1);
/// zstd's fastest positive level: blobs are fetched more often than stored, and the producer has better things to do.
pub(super) const COMPRESSION_LEVEL: i32 = 1;
/// Largest delta that travels inside its announcement, which saves readers the fetch.
pub const INLINE_BYTES: usize = 64 * 1024;

/// A version that is built, not yet stored.
#[derive(Debug)]
pub struct Built {
    /// Its delta, as it will be announced.
    pub delta: DeltaRef,
    /// The delta's bytes as they go into the store.
    pub stored: Bytes,
    /// The same, where they are small enough to travel in the announcement.
    pub inline: Option<Bytes>,
    /// It as readable memory.
    pub view: View,
    /// The positions that it moves.
    pub positions: Vec<Position>,
    /// What goes to the dead-letter topic with it.
    pub letters: Vec<Letter>,
    /// Records that a later one of the same batch made unnecessary.
    pub coalesced: u64,
    /// Records that changed nothing.
    pub unchanged: u64,
    /// The newest source timestamp in it, milliseconds since the Unix epoch.
    pub newest_timestamp: Option<i64>,
    /// When its oldest record was received.
    pub received_at: Option<Instant>,
    /// The memory that its records take until it is announced.
    pub leases: Vec<Lease>,
    /// Of a rebuild: what is said of it in the control topic, by the transaction that announces the version.
    pub outcome: Option<Box<Rebuilt>>,
    /// The version as a snapshot, where no delta leads to it: the one before is lost.
    pub whole: Option<Box<Merged>>,
    /// Its place among the versions on their way to the announcer, until its transaction is at the commit.
    pub turn: Option<Turn>,
    /// How long it has taken so far.
    pub lap: Lap,
}

/// What does not change from version to version.
#[derive(Clone)]
pub struct Constants {
    /// Dataset, announcement topic id, shard.
    pub identity: Identity,
    /// This life.
    pub life: Life,
    /// The dataset's list of source partitions.
    pub sources: Arc<[SourcePartition]>,
    /// The dataset's schema.
    pub schema: Arc<crate::schema::Schema>,
    /// Compress blobs for the store.
    pub compress: bool,
    /// Where the writer's own deltas are mapped from; readers on this machine find them there.
    pub cache: Cache,
    /// Letters beyond this go out at once.
    pub max_letter_bytes: u64,
    /// How values are encoded at the source, and so in the letters of what is shed.
    pub format: Format,
    /// Deltas since the newest announced snapshot.
    pub chain: usize,
}

/// The stage.
pub struct Builder {
    state: State,
    keeping: Keeping,
    /// Say that nothing has changed after this long without a version.
    still: Option<Duration>,
    /// What is to be said of `oldest_kept`.
    keep_from: Option<watch::Receiver<Version>>,
    /// Stops it where too many records lose against others.
    guard: Option<Guard>,
    /// When the last version was minted, or the life began.
    minted_at: Instant,
    clock: Clock,
    metrics: Arc<ProducerMetrics>,
}

struct State {
    constants: Constants,
    view: View,
    unsaid: Unsaid,
    conflicts: Conflicts,
    /// Told of a version without letters before it is built.
    coming: Option<watch::Sender<Option<Coming>>>,
    /// The last delta, where it is small, and its file can wait.
    small: Option<Small>,
    /// The version below the chain: that of the newest snapshot.
    base: Version,
}

impl Builder {
    /// A builder on top of `view`. `must_say`: mint a version at once, though nothing changed.
    pub fn new(
        constants: Constants,
        view: View,
        must_say: bool,
        clock: Clock,
        metrics: Arc<ProducerMetrics>,
    ) -> Builder {
        let mut unsaid = Unsaid::default();
        if must_say {
            unsaid.since = Some(clock.now() - SAY_AFTER);
        }
        let conflicts = Conflicts::new(constants.sources.clone());
        let base = Version(view.version().0.saturating_sub(constants.chain as u64));
        let minted_at = clock.now();
        let state = State { constants, view, unsaid, conflicts, coming: None, small: None, base };
        let keeping = Keeping::default();
        Builder { state, keeping, still: None, keep_from: None, guard: None, minted_at, clock, metrics }
    }

    /// Mints an empty version when there was none for half as long as the sources remember deletes: an announcement's
    /// time says until when they were read at least, which recovery compares with that.
    #[must_use]
    pub fn saying_still(self, remembers: Option<Duration>) -> Builder {
        Builder { still: remembers.map(|remembers| (remembers / 2).max(SAY_AFTER)), ..self }
    }

    /// Mints a version for what is to be said of `oldest_kept`, where none comes by itself.
    #[must_use]
    pub fn saying_what_is_kept(self, keep_from: watch::Receiver<Version>) -> Builder {
        Builder { keep_from: Some(keep_from), ..self }
    }

    /// Tells `coming`, where somebody wants to know, of each version without letters before it is built.
    #[must_use]
    pub fn telling(mut self, coming: Option<watch::Sender<Option<Coming>>>) -> Builder {
        self.state.coming = coming;
        self
    }

    /// Makes letters of records that lose against one of another partition, where there is a `storm` guard to count them, and
    /// takes no more batches while it rages over them. What comes after `drain` then is left to the next life: it is in
    /// the log.
    #[must_use]
    pub fn keeping_losers(mut self, storm: Option<Storm>, drain: CancellationToken) -> Builder {
        self.state.conflicts.keep(storm.as_ref());
        Builder { guard: storm.map(|storm| Guard { storm, drain }), ..self }
    }

    /// Builds what comes. When `batches` closes, says what is unsaid, tells `settled` the last version, and goes on
    /// only for what `rebases` (the last snapshot) makes it say.
    ///
    /// # Errors
    /// [`Error`]; the life ends with it.
    pub async fn run(
        mut self,
        mut batches: mpsc::Receiver<Batch>,
        mut rebases: mpsc::Receiver<Rebase>,
        out: mpsc::Sender<Built>,
        settled: oneshot::Sender<Version>,
        kill: CancellationToken,
    ) -> Result<(), Error> {
        let mut settled = Some(settled);
        let (mut draining, mut refusing) = (false, false);
        loop {
            let shut = !refusing && Guard::is_shut(self.guard.as_ref());
            if draining
                && self.state.unsaid.since.is_none()
                && let Some(settled) = settled.take()
            {
                let _ = settled.send(self.state.view.version());
            }
            // In a drain nothing more will come that could take it along.
            let patience = if draining { Duration::ZERO } else { SAY_AFTER };
            let idle = self.still.filter(|_| !draining && self.state.chain() < LONGEST_CHAIN);
            let say_at = [
                self.state.unsaid.since.map(|since| since + patience),
                idle.map(|idle| self.minted_at + idle),
            ];
            let say_at = say_at.into_iter().flatten().min();
            let (mut turn, mut lap) = (None, Lap::default());
            let input = tokio::select! {
                biased;
                () = kill.cancelled() => return Ok(()),
                () = sleep_until(say_at) => Input::Say,
                rebase = rebases.recv() => match rebase {
                    Some(rebase) => {
                        self.keeping.let_go(rebase.base.version());
                        Input::Rebase(rebase)
                    }
                    // Nothing can come any more; what the last snapshot made worth saying is still said.
                    None if self.state.unsaid.since.is_some() => Input::Say,
                    None => {
                        self.keeping.settle().await;
                        return Ok(());
                    }
                },
                told = told(&mut self.keep_from), if !draining && self.state.chain() < LONGEST_CHAIN => {
                    if told {
                        self.state.unsaid.since.get_or_insert(self.clock.now());
                    } else {
                        self.keep_from = None;
                    }
                    continue;
                }
                drains = Guard::opens(self.guard.as_ref()), if shut => {
                    refusing |= drains;
                    continue;
                }
                batch = batches.recv(), if !draining && !shut && self.state.chain() < LONGEST_CHAIN => match batch {
                    Some(_) if refusing => continue,
                    Some(mut batch) => {
                        (turn, lap) = (batch.turn.take(), batch.lap);
                        lap.pass("turn", self.clock.now(), &self.metrics);
                        Input::Batch(batch)
                    }
                    None => {
                        draining = true;
                        continue;
                    }
                },
            };
            let now = self.clock.now();
            let metrics = self.metrics.clone();
            let mut state = self.state;
            let step = move || {
                let built = state.step(input, now, &metrics);
                (state, built)
            };
            let (state, built) = tokio::task::spawn_blocking(step).await.map_err(Error::Panicked)?;
            self.state = state;
            let small = self.state.small.take();
            let Some(built) = built? else { continue };
            self.minted_at = now;
            lap.pass("build", self.clock.now(), &self.metrics);
            if out.send(Built { turn, lap, ..built }).await.is_err() {
                return Ok(());
            }
            if let Some(small) = small {
                let Constants { cache, identity, .. } = &self.state.constants;
                self.keeping.keep(cache, identity, small).await;
            }
        }
    }
}

/// What makes the builder act.
enum Input {
    Batch(Batch),
    Rebase(Rebase),
    /// What is unsaid has waited long enough.
    Say,
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(tokio::time::Instant::from_std(at)).await,
        None => std::future::pending().await,
    }
}

/// There is something new to say; `false`: there never will be.
async fn told(keep_from: &mut Option<watch::Receiver<Version>>) -> bool {
    match keep_from {
        Some(keep_from) => keep_from.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}

/// An entry of the delta under way.
struct Candidate<'a> {
    /// The key's first eight bytes, big-endian: decides most comparisons without touching the key.
    prefix: u64,
    key: &'a [u8],
    order: u32,
    stamp: Stamp,
    value: Option<&'a [u8]>,
}

impl State {
    /// Deltas that a reader has to apply over the newest snapshot.
    fn chain(&self) -> u64 {
        self.view.version().0.saturating_sub(self.base.0)
    }

    fn step(
        &mut self,
        input: Input,
        now: Instant,
        metrics: &ProducerMetrics,
    ) -> Result<Option<Built>, Error> {
        let version = self.view.version().next();
        let batch = match input {
            Input::Rebase(Rebase { base }) => {
                self.base = base.version();
                self.view = self.view.rebase(base).map_err(|source| Error::View { version, source })?;
                self.unsaid.since.get_or_insert(now);
                return Ok(None);
            }
            Input::Say => {
                self.unsaid.since = None;
                return self.mint(&[], self.view.records(), Vec::new(), version).map(Some);
            }
            Input::Batch(batch) => batch,
        };
        metrics.batches_total.inc();
        metrics.batch_records.observe(batch.records() as f64);
        let Batch { chunks, items, misfits, shed, positions, received_at, leases, .. } = batch;
        for item in &misfits {
            let letter = letter_at(&chunks, *item).map_err(|source| Error::Record { version, source })?;
            self.unsaid.letter_bytes += letter.size() as u64;
            self.unsaid.letters.push(letter);
        }
        for item in &shed {
            let Some(chunk) = chunks.get(item.chunk as usize) else { continue };
            let record = chunk.at(item.cursor);
            let Some(range) = chunk.ranges().get(usize::from(record.slot)) else { continue };
            let constants = &self.constants;
            let letter = dead::letter::of_shed(&record, &range.source, &constants.format, &constants.schema)
                .map_err(|source| Error::Shed { version, source })?;
            self.unsaid.letter_bytes += letter.size() as u64;
            self.unsaid.letters.push(letter);
        }
        self.unsaid.move_to(positions);
        if let Some(received_at) = received_at {
            let oldest = self.unsaid.received_at.get_or_insert(received_at);
            *oldest = (*oldest).min(received_at);
        }
        let (changes, records, lost) = self.changes(&chunks, &items, version)?;
        for letter in self.conflicts.letters(&chunks, &items, lost) {
            self.unsaid.letter_bytes += letter.size() as u64;
            self.unsaid.letters.push(letter);
        }
        if changes.is_empty() && self.unsaid.letter_bytes < self.constants.max_letter_bytes {
            self.unsaid.since.get_or_insert(now);
            return Ok(None);
        }
        self.unsaid.since = None;
        if let Some(coming) = self.coming.as_ref().filter(|_| self.unsaid.letters.is_empty()) {
            coming.send_replace(Some(Coming { version, positions: self.unsaid.positions.clone() }));
        }
        self.mint(&changes, records, leases, version).map(Some)
    }

    /// The batch's net effect on the view, sorted by key, the number of keys that it leaves, and the records that lost,
    /// where they are wanted.
    fn changes<'a>(
        &mut self,
        chunks: &'a [Chunk],
        items: &[Item],
        version: Version,
    ) -> Result<(Vec<Entry<'a>>, u64, Vec<Lost>), Error> {
        // Which source each chunk's slots are: chunks name partitions themselves, blobs by index into one list.
        let sources: Vec<Vec<u32>> = chunks
            .iter()
            .map(|chunk| {
                let index = |range: &crate::format::chunk::Range| {
                    self.constants
                        .sources
                        .iter()
                        .position(|source| *source == range.source)
                        .unwrap_or_default() as u32
                };
                chunk.ranges().iter().map(index).collect()
            })
            .collect();
        let mut candidates = Vec::with_capacity(items.len());
        for (order, item) in items.iter().enumerate() {
            let Some(chunk) = chunks.get(item.chunk as usize) else { continue };
            let record = chunk.at(item.cursor);
            let (key, value) = match record.body {
                Body::Upsert { key, value } => (key, Some(value)),
                Body::Delete { key } => (key, None),
                Body::Misfit { .. } => continue,
            };
            let source = sources
                .get(item.chunk as usize)
                .and_then(|slots| slots.get(usize::from(record.slot)))
                .copied()
                .unwrap_or_default();
            let stamp = Stamp { timestamp: record.timestamp, source, offset: record.offset };
            self.unsaid.newest_timestamp = self.unsaid.newest_timestamp.max(Some(record.timestamp));
            candidates.push(Candidate { prefix: prefix(key), key, order: order as u32, stamp, value });
        }
        candidates.sort_unstable_by(|a, b| {
            a.prefix.cmp(&b.prefix).then_with(|| a.key.cmp(b.key)).then(a.order.cmp(&b.order))
        });

        let mut changes: Vec<Entry<'a>> = Vec::with_capacity(candidates.len());
        let mut records = self.view.records();
        let view = self.view.clone();
        let (mut lost, are_kept) = (Vec::new(), self.conflicts.are_kept());
        for group in candidates.chunk_by(|a, b| a.prefix == b.prefix && a.key == b.key) {
            let Some(first) = group.first() else { continue };
            self.unsaid.coalesced += group.len() as u64 - 1;
            let held = view.entry(first.key).map_err(|source| Error::View { version, source })?;
            // Bytes are compared as such: what is of an older schema was read in this life's.
            let was = held.as_ref().and_then(|held| held.value.as_deref());
            // Each against what is there by then, from the view on: a partition's own order holds wherever batches end.
            let mut winner: Option<&Candidate<'_>> = None;
            for candidate in group {
                let before = winner.map(|winner| (winner.stamp, winner.value));
                let Some((stamp, value)) = before.or(held.as_ref().map(|held| (held.stamp, was))) else {
                    winner = Some(candidate);
                    continue;
                };
                if self.conflicts.wins(candidate.key, &candidate.stamp, &stamp) {
                    winner = Some(candidate);
                } else if are_kept && candidate.value != value {
                    lost.push(Lost { order: candidate.order, to: stamp });
                }
            }
            let Some(winner) = winner.filter(|winner| winner.value != was) else {
                self.unsaid.unchanged += 1;
                continue;
            };
            match (was.is_some(), winner.value.is_some()) {
                (false, true) => records += 1,
                (true, false) => records = records.saturating_sub(1),
                _ => {}
            }
            changes.push(Entry { key: winner.key, stamp: winner.stamp, value: winner.value });
        }
        Ok((changes, records, lost))
    }

    /// Makes the next version out of `changes` and all that is unsaid.
    fn mint(
        &mut self,
        changes: &[Entry<'_>],
        records: u64,
        leases: Vec<Lease>,
        version: Version,
    ) -> Result<Built, Error> {
        let constants = &self.constants;
        let container = |source| Error::Container { version, source };
        let upserts = changes.iter().filter(|entry| entry.value.is_some()).count() as u64;
        let deletes = changes.len() as u64 - upserts;
        let mut header = constants.identity.header(
            Kind::Delta,
            version,
            self.view.version(),
            constants.life,
            &constants.schema,
            constants.sources.to_vec(),
        );
        header.counts = Some(Counts { upserts, deletes });
        header.former = self.view.former().clone();
        let estimate: usize =
            changes.iter().map(|entry| entry.key.len() + entry.value.map_or(0, <[u8]>::len) + 24).sum();
        let mut writer =
            container::Writer::new(Vec::with_capacity(estimate + 4096), &header).map_err(container)?;
        for entry in changes {
            writer.push(entry).map_err(container)?;
        }
        let (summary, plain) = writer.finish().map_err(container)?;
        let plain = Bytes::from(plain);
        let (stored, checksum) = if constants.compress {
            let mut stored = Vec::with_capacity(plain.len() / 2);
            let written = container::compress(&plain, COMPRESSION_LEVEL, &mut stored).map_err(container)?;
            (Bytes::from(stored), written.checksum)
        } else {
            (plain.clone(), summary.plain_checksum)
        };
        let delta = DeltaRef {
            version,
            epoch: constants.life.epoch,
            blob: BlobRef {
                name: blob_name(&constants.identity, name::Kind::Delta, version, constants.life, checksum),
                bytes: stored.len() as u64,
                checksum,
                plain_bytes: plain.len() as u64,
                plain_checksum: summary.plain_checksum,
                location: None,
            },
            upserts,
            deletes,
        };
        let unsaid = std::mem::take(&mut self.unsaid);
        let about = About { version, life: constants.life, records, ..self.view.about().clone() };
        let failed = |source| Error::View { version, source };
        let (cache, identity, name) = (&constants.cache, &constants.identity, FileName::delta(&delta));
        // Opened as readers open it, so that what the next batch is compared with is what they will see.
        let file = if DeltaFile::is_small(&plain) {
            let file = DeltaFile::from_plain(plain.to_vec(), identity, &constants.schema).map_err(failed)?;
            self.small = Some(Small { version, name, plain });
            file
        } else {
            let held = cache.put(identity, &name, &plain).map_err(failed)?;
            failpoint::pass("build.delta");
            DeltaFile::open(&held, identity, &delta, &constants.schema).map_err(failed)?
        };
        self.view = self.view.apply(Arc::new(file), about).map_err(failed)?;
        Ok(Built {
            inline: (stored.len() <= INLINE_BYTES).then(|| stored.clone()),
            delta,
            stored,
            view: self.view.clone(),
            positions: unsaid.positions,
            letters: unsaid.letters,
            coalesced: unsaid.coalesced,
            unchanged: unsaid.unchanged,
            newest_timestamp: unsaid.newest_timestamp,
            received_at: unsaid.received_at,
            leases,
            outcome: None,
            whole: None,
            turn: None,
            lap: Lap::default(),
        })
    }
}

/// The name under which a blob of this life is stored.
pub(super) fn blob_name(
    identity: &Identity,
    kind: name::Kind,
    version: Version,
    life: Life,
    checksum: Checksum,
) -> String {
    let folder =
        Folder { dataset: identity.dataset.to_string(), topic_id: identity.topic_id, shard: identity.shard };
    Name { folder, version, epoch: life.epoch, checksum, kind }.to_string()
}

fn letter_at(chunks: &[Chunk], item: Item) -> Result<Letter, crate::format::letter::Error> {
    let body = chunks.get(item.chunk as usize).map(|chunk| chunk.at(item.cursor).body);
    match body {
        Some(Body::Misfit { letter }) => Letter::decode(letter),
        _ => Letter::decode(&[]),
    }
}

fn prefix(key: &[u8]) -> u64 {
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(key) {
        *to = *from;
    }
    u64::from_be_bytes(first)
}

#[cfg(test)]
pub(super) mod tests;
