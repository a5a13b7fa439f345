//! Announcing: one Kafka transaction makes a run of versions visible, moves the source offsets and sends the dead
//! letters, or does none of it.
//!
//! ```text
//!  begin -> letters, delivered -> source offsets -> outcome of a rebuild -> announcements -> commit -> read back
//! ```
//!
//! The order matters: librdkafka has no KIP-890 v2, so a late duplicate EndTxn can end the *next* transaction of the
//! same producer early. With the announcement last, what is committed early holds letters and offsets of versions
//! that the next life makes again from the announced positions; an announcement is never there without them. A letter
//! may then stand in its topic twice, with the same source position in its headers; none is lost. Only what has been
//! read back counts, and after any doubt a new life with a new producer begins (`recover`). While there is nothing to
//! announce the tail is looked at all the same, every few seconds.
//!
//! A version without letters may find its transaction begun, with its offsets in it (`ahead`).
//!
//! Owns: the transactional producer, the chain and the positions as announced. Does not own: uploads (`store`), the
//! log's trimming (told through the watch), deciding to live again (`producer`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

mod ahead;
mod carried;
mod error;
#[cfg(test)]
mod tests;

use ahead::{Ahead, moved};
pub use ahead::{Comes, Coming};
pub use carried::{Announced, Carried, ChainSize};
pub use error::Error;

use super::circuit::Gate;
use super::read_back::ReadBack;
use super::shed::Ledger;
use super::snapshot::Snapshotted;
use super::store::{Stored, StoredLetter};
use super::turns::{Turn, breath};
use super::write::watch::Watchers;
use crate::clock::Clock;
use crate::codec::Stage;
use crate::dead;
use crate::dead::letter::dated;
use crate::error::chain;
use crate::failpoint;
use crate::format::announcement::{self, Announcement, Message, SourcePosition, read_positions};
use crate::format::control::{Control, rebuild_key};
use crate::format::succession::MAX_RUN;
use crate::gauge::{Outlet, Pressure};
use crate::kafka::{self, Membership, Outcome, Outgoing, Timestamps, Transaction};
use crate::telemetry::ProducerMetrics;
use crate::version::{Chain, Life, Version};

/// The group's offsets expire on the broker after a week by default, though positions have not moved.
const RECOMMIT_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// How often the own tail is looked at while nothing is announced: soon enough for a life that was replaced to notice, and
/// for statistics to be taken as they come.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Longest that a step of a transaction may take: beyond the transaction's own time limit, so that its outcome is known.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest wait for the own announcement to be read back.
const READ_BACK: Duration = Duration::from_secs(30);

/// What does not change from announcement to announcement.
#[derive(Clone, Debug)]
pub struct Constants {
    /// Dataset name.
    pub dataset: String,
    /// Shard.
    pub shard: crate::version::Shard,
    /// Number of shards.
    pub shards: u32,
    /// This life.
    pub life: Life,
    /// Announcement topic.
    pub announcements: String,
    /// Dead-letter topic, and which timestamps it takes.
    pub dead_letters: (String, Timestamps),
    /// Control topic.
    pub control: String,
    /// The dataset's schema.
    pub schema: Arc<crate::schema::Schema>,
    /// Most bytes of letters in one transaction.
    pub max_letter_bytes: u64,
    /// Takes note of what was shed among the letters.
    pub ledger: Ledger,
    /// Batches do not wait to fill, so that versions come as fast as they can be announced.
    pub at_once: bool,
}

/// The stage; runs on a thread of its own.
pub struct Announcer {
    constants: Constants,
    carried: Carried,
    /// Turns that are given back when the chain has had its breath, and when that is.
    kept: Vec<Turn>,
    kept_until: Instant,
    /// Versions to come, and what the transaction that is open for the next one holds.
    comes: Comes,
    ahead: Option<Ahead>,
    transaction: Transaction,
    member: Membership,
    read_back: ReadBack,
    snapshots: mpsc::Receiver<Snapshotted>,
    keep_from: watch::Receiver<Version>,
    announced: watch::Sender<Option<Announced>>,
    watchers: Watchers,
    gate: Gate,
    pressure: Pressure,
    clock: Clock,
    metrics: Arc<ProducerMetrics>,
}

impl Announcer {
    /// An announcer that follows what recovery found. It lists what comes out of `snapshots`, says of `oldest_kept` what
    /// `keep_from` does, and begins the transaction of what `comes`.
    #[expect(clippy::too_many_arguments, reason = "a stage's needs come by its constructor, by name")]
    pub fn new(
        constants: Constants,
        carried: Carried,
        transaction: Transaction,
        member: Membership,
        read_back: ReadBack,
        (snapshots, keep_from, comes): (mpsc::Receiver<Snapshotted>, watch::Receiver<Version>, Comes),
        announced: watch::Sender<Option<Announced>>,
        watchers: Watchers,
        (gate, pressure): (Gate, Pressure),
        clock: Clock,
        metrics: Arc<ProducerMetrics>,
    ) -> Announcer {
        Announcer {
            constants,
            carried,
            kept: Vec::new(),
            kept_until: clock.now(),
            comes,
            ahead: None,
            transaction,
            member,
            read_back,
            snapshots,
            keep_from,
            announced,
            watchers,
            gate,
            pressure,
            clock,
            metrics,
        }
    }

    /// Announces what has been stored, in order, until the channel closes. Blocks: for a thread of its own, within
    /// a runtime. `kill` ends it, at the latest half a second after a step of a transaction has begun.
    ///
    /// # Errors
    /// [`Error`]: the life is over, and what has become of the last transaction is for the next one to read.
    pub fn run(mut self, mut stored: mpsc::Receiver<Stored>, kill: &CancellationToken) -> Result<(), Error> {
        let runtime = Handle::current();
        let mut held: Option<Stored> = None;
        // Waits that go on whatever ends another: begun anew each time, the longer one would never end.
        let (mut recommits, mut looks) = (every(RECOMMIT_EVERY), every(LOOK_EVERY));
        loop {
            let first = match held.take() {
                Some(first) => first,
                None => {
                    let kept = (!self.kept.is_empty()).then_some(self.kept_until);
                    let open_until = self.ahead.as_ref().map(|ahead| ahead.until);
                    let next = runtime.block_on(async {
                        tokio::select! {
                            // What is stored is announced at once: for that nothing needs to be sent ahead.
                            biased;
                            () = kill.cancelled() => Next::End,
                            () = until(kept) => Next::Breath,
                            _ = looks.tick() => Next::Look,
                            next = stored.recv() => next.map_or(Next::End, |next| Next::Version(Box::new(next))),
                            () = until(open_until) => Next::Back,
                            coming = self.comes.next(), if open_until.is_none() => Next::Coming(coming),
                            _ = recommits.tick(), if open_until.is_none() => Next::Recommit,
                        }
                    });
                    match next {
                        Next::Version(first) => *first,
                        Next::End if kill.is_cancelled() || self.ahead.is_none() => return Ok(()),
                        Next::End | Next::Back => {
                            let back = self.back();
                            if self.judge(back, kill)? {
                                continue;
                            }
                            return Ok(());
                        }
                        Next::Coming(coming) => {
                            // Nothing is committed by it: that it goes well says nothing about transactions.
                            if let Err(error) = self.begin_ahead(&coming) {
                                return self.judge(Err(error), kill).map(drop);
                            }
                            continue;
                        }
                        Next::Breath => {
                            self.kept.clear();
                            continue;
                        }
                        Next::Look => {
                            // That it goes well says nothing about transactions.
                            if let Err(error) = self.look() {
                                return self.judge(Err(error), kill).map(drop);
                            }
                            continue;
                        }
                        Next::Recommit => {
                            let recommitted = self.recommit();
                            if self.judge(recommitted, kill)? {
                                continue;
                            }
                            return Ok(());
                        }
                    }
                }
            };
            let mut letters = first.letter_bytes;
            let mut run = vec![first];
            while run.len() < MAX_RUN {
                let Ok(next) = stored.try_recv() else { break };
                if letters + next.letter_bytes > self.constants.max_letter_bytes {
                    held = Some(next);
                    break;
                }
                letters += next.letter_bytes;
                run.push(next);
            }
            let began = self.clock.now();
            let announced = self.announce(run);
            if announced.is_ok() {
                let took = self.clock.now().saturating_duration_since(began);
                self.pressure.succeeded(Outlet::Announce, took, PATIENCE);
            }
            if !self.judge(announced, kill)? {
                return Ok(());
            }
            // It has committed the offsets, and read its tail.
            recommits.reset();
            looks.reset();
        }
    }

    /// Whether to go on after a transaction. Tells the breaker, and of failures the gauge.
    fn judge(&self, ended: Result<(), Error>, kill: &CancellationToken) -> Result<bool, Error> {
        let Err(error) = ended else {
            self.gate.succeeded();
            return Ok(true);
        };
        if kill.is_cancelled() {
            tracing::debug!(%error, "the life was told to end within a transaction; the next one reads what became of it");
            return Ok(false);
        }
        if error.is_of_kafka() {
            self.metrics.write_failures_total.inc();
            self.gate.failed(chain(&error));
            let (failures, threshold) = self.gate.failures();
            self.pressure.failed(Outlet::Announce, failures, threshold);
        }
        Err(error)
    }

    fn announce(&mut self, mut run: Vec<Stored>) -> Result<(), Error> {
        let Some(last_version) = run.last().map(|stored| stored.delta.version) else { return Ok(()) };
        let mut carried = self.carried.clone();
        // Each has the whole chain: it is encoded once, and not copied.
        let (mut encoded, mut told) = (Vec::with_capacity(run.len()), Vec::with_capacity(run.len()));
        for stored in &run {
            let announcement = self.next(&mut carried, stored);
            told.push((announcement.version, announcement.positions.clone()));
            encoded.push(Message::Announcement(Box::new(announcement)).encode());
        }
        self.passed(&mut run, "wait");
        if !self.constants.at_once {
            run.iter_mut().for_each(|stored| drop(stored.take_turn()));
        }
        let sent = self.send(&mut run, &encoded, &carried);
        // What is built and stored meanwhile is there when this one is told.
        let before = self.kept.len();
        self.kept.extend(run.iter_mut().filter_map(Stored::take_turn));
        match breath(carried.chain.deltas.len()) {
            Duration::ZERO => self.kept.clear(),
            breath if self.kept.len() > before => self.kept_until = self.clock.now() + breath,
            _ => {}
        }
        self.end(last_version, sent)?;
        self.passed(&mut run, "commit");
        reach("announce.committed").map_err(|source| Error::Kafka {
            what: format!("version {last_version} of {}", self.constants.dataset),
            source,
        })?;
        // Sent last, so delivered last; the embedded broker tells no offsets.
        let written_at = self.transaction.delivered().last().map(|last| last.offset).filter(|at| *at >= 0);
        self.read_back
            .until_version(self.constants.life, last_version, written_at, self.clock.now() + READ_BACK)
            .map_err(|source| Error::ReadBack { version: last_version, source })?;
        self.passed(&mut run, "read_back");
        failpoint::pass("announce.read-back");
        self.carried = carried;
        self.tell(run);
        for (version, positions) in &told {
            self.watchers.announced(*version, positions);
        }
        Ok(())
    }

    /// The announcement of one version, and what the next one carries on.
    fn next(&mut self, carried: &mut Carried, stored: &Stored) -> Announcement {
        while let Ok(done) = self.snapshots.try_recv() {
            // Listed only once its own version is announced: it was made of an announced view.
            carried.chain.rebase(done.snapshot);
        }
        moved(&mut carried.positions, &stored.positions);
        carried.caught_up |=
            read_positions(&carried.positions).all(|position| position.offset >= position.target);
        carried.chain.deltas.push(stored.delta.clone());
        if let Some(whole) = &stored.whole {
            carried.chain = Chain { snapshot: Some(whole.snapshot.clone()), deltas: Vec::new() };
            carried.oldest_kept = stored.delta.version;
        }
        carried.records = stored.view.records();
        let previous = carried.previous.replace((stored.delta.version, self.constants.life.epoch));
        // Never back: what was given up once may be gone.
        carried.oldest_kept = carried.oldest_kept.max(*self.keep_from.borrow()).max(Version(1));
        Announcement {
            dataset: self.constants.dataset.clone(),
            shard: self.constants.shard,
            shards: self.constants.shards,
            life: self.constants.life,
            version: stored.delta.version,
            previous,
            announced_at: self.clock.wall_ms(),
            caught_up: carried.caught_up,
            records: carried.records,
            upserts: stored.delta.upserts,
            deletes: stored.delta.deletes,
            letters: stored.letters.len() as u64,
            coalesced: stored.coalesced,
            unchanged: stored.unchanged,
            schema: self.constants.schema.json().to_owned(),
            schema_fingerprint: self.constants.schema.fingerprint(),
            positions: carried.positions.clone(),
            delta: stored.delta.clone(),
            inline: stored.inline.clone(),
            snapshot: carried.chain.snapshot.clone(),
            chain: carried.chain.deltas.clone(),
            oldest_kept: carried.oldest_kept,
            newest_timestamp: stored.newest_timestamp,
            traceparent: None,
        }
    }

    fn send(
        &mut self,
        run: &mut [Stored],
        announcements: &[Vec<u8>],
        carried: &Carried,
    ) -> Result<(), kafka::Error> {
        let ahead = self.ahead.take();
        if ahead.is_none() {
            reach("announce.begin")?;
            self.transaction.begin()?;
        }
        let failed_at = self.clock.wall_ms();
        let (dead_letters, takes) = &self.constants.dead_letters;
        for letter in run.iter().flat_map(|stored| &stored.letters) {
            let headers = letter.letter.kafka_headers(
                &self.constants.dataset,
                self.constants.shard.0,
                failed_at,
                &letter.elsewhere,
            );
            let (key, value) = letter.letter.kafka_record(&letter.elsewhere);
            let record = Outgoing {
                topic: dead_letters,
                partition: None,
                key,
                value,
                headers: &headers,
                timestamp: Some(dated(letter.letter.timestamp, failed_at, takes)),
                ..Outgoing::default()
            };
            self.transaction.send(&record, PATIENCE)?;
        }
        let with_letters = run.iter().any(|stored| !stored.letters.is_empty());
        if with_letters {
            // Else they race with what is sent after them, to other partitions, and the order above is a wish.
            self.transaction.settle(PATIENCE)?;
        }
        reach("announce.letters")?;
        if ahead.is_none_or(|ahead| with_letters || ahead.positions != carried.positions) {
            self.send_offsets(&carried.positions)?;
        }
        self.passed(run, "offsets");
        reach("announce.offsets")?;
        for outcome in run.iter().filter_map(|stored| stored.outcome.as_deref()) {
            let request = &outcome.request;
            let key = rebuild_key(&request.dataset, request.shard);
            let value = Control::Rebuilt(outcome.clone()).encode();
            let record = Outgoing {
                topic: &self.constants.control,
                partition: Some(0),
                key: Some(key.as_bytes()),
                value: Some(&value),
                ..Outgoing::default()
            };
            self.transaction.send(&record, PATIENCE)?;
            self.transaction.settle(PATIENCE)?;
        }
        let key = announcement::key(&self.constants.dataset, self.constants.shard);
        for value in announcements {
            let record = Outgoing {
                topic: &self.constants.announcements,
                partition: Some(self.constants.shard.0 as i32),
                key: Some(key.as_bytes()),
                value: Some(value),
                ..Outgoing::default()
            };
            self.transaction.send(&record, PATIENCE)?;
        }
        reach("announce.announcements")
    }

    /// Begins the transaction of what comes, if that is the next version, and sends its offsets.
    fn begin_ahead(&mut self, coming: &Coming) -> Result<(), Error> {
        let Some(ahead) = Ahead::of(coming, &self.carried, self.clock.now()) else { return Ok(()) };
        let sent = reach("announce.begin")
            .and_then(|()| self.transaction.begin())
            .and_then(|()| self.send_offsets(&ahead.positions));
        if sent.is_err() {
            return self.end(coming.version, sent);
        }
        self.ahead = Some(ahead);
        Ok(())
    }

    /// Ends the transaction of a version that does not come: with the offsets of what is announced.
    fn back(&mut self) -> Result<(), Error> {
        self.ahead = None;
        tracing::debug!(after = %self.version(), "the next version takes its time; its offsets are taken back");
        let announced = self.carried.positions.clone();
        let sent = self.send_offsets(&announced);
        self.end(self.version(), sent)
    }

    fn send_offsets(&mut self, positions: &[SourcePosition]) -> Result<(), kafka::Error> {
        let offsets: Vec<(&str, i32, i64)> = read_positions(positions)
            .map(|position| (&*position.source.topic, position.source.partition, position.offset))
            .collect();
        let group = self.member.group_metadata().ok_or_else(|| kafka::Error::Closed {
            doing: format!(
                "adding the source offsets of {}: the member has left the group",
                self.constants.dataset
            ),
        })?;
        self.transaction.send_offsets(&offsets, &group, PATIENCE)
    }

    /// The last announced version.
    fn version(&self) -> Version {
        self.carried.previous.map_or(Version(0), |(version, _)| version)
    }

    /// Looks whether another life has begun, and after the tail's client.
    fn look(&mut self) -> Result<(), Error> {
        let looked = self.read_back.look(self.constants.life);
        looked.map_err(|source| Error::ReadBack { version: self.version(), source })
    }

    /// Commits the offsets again though nothing moved, since the broker forgets them otherwise.
    fn recommit(&mut self) -> Result<(), Error> {
        let version = self.version();
        let announced = self.carried.positions.clone();
        let sent = self.transaction.begin().and_then(|()| self.send_offsets(&announced));
        self.end(version, sent)
    }

    /// Commits what was sent, or aborts what was sent in part.
    fn end(&mut self, version: Version, sent: Result<(), kafka::Error>) -> Result<(), Error> {
        let outcome = match sent {
            Ok(()) => self.transaction.commit(PATIENCE),
            Err(error) => self.transaction.abort_after(error, PATIENCE),
        };
        match outcome {
            Outcome::Committed => Ok(()),
            Outcome::Fenced(source) => Err(Error::Fenced(source)),
            Outcome::Aborted(source) | Outcome::Unknown(source) | Outcome::Fatal(source) => {
                Err(Error::Kafka { what: format!("version {version} of {}", self.constants.dataset), source })
            }
        }
    }

    /// `stage` has ended for these.
    fn passed(&self, run: &mut [Stored], stage: &str) {
        let now = self.clock.now();
        run.iter_mut().for_each(|stored| stored.pass(stage, now, &self.metrics));
    }

    /// Tells metrics, log and waiters, after the read-back only.
    fn tell(&mut self, run: Vec<Stored>) {
        let now = self.clock.now();
        for stored in &run {
            self.metrics.versions_total.inc();
            self.constants.ledger.announced(stored.letters.iter().map(|stored| &stored.letter));
            // Decided by this version; those of misfits were counted when they were met.
            let is_loser = |stored: &&StoredLetter| stored.letter.class == dead::letter::CONFLICT;
            let losers = stored.letters.iter().filter(is_loser).count() as u64;
            if losers > 0 {
                let stage = Stage::Conflict.to_string();
                self.metrics.dead_letters_total.with(&[&stage]).inc_by(losers);
            }
            self.metrics.coalesced_records_total.inc_by(stored.coalesced);
            self.metrics.unchanged_records_total.inc_by(stored.unchanged);
            if let Some(received) = stored.received_at {
                let took = now.saturating_duration_since(received);
                self.metrics.publish_latency_seconds.observe(took.as_secs_f64());
            }
        }
        if let Some(last) = run.into_iter().last() {
            tracing::debug!(
                version = %last.delta.version, upserts = last.delta.upserts, deletes = last.delta.deletes,
                letters = last.letters.len(), "announced"
            );
            let version = last.delta.version;
            let announced = Announced::of(version, last.into_built().view, &self.carried);
            self.announced.send_replace(Some(announced));
        }
    }
}

/// What the announcer does next.
enum Next {
    Version(Box<Stored>),
    /// The next one is being built.
    Coming(Coming),
    /// It takes too long.
    Back,
    /// Nothing more comes, or nothing more may.
    End,
    /// Nothing has come for a while.
    Look,
    /// Nothing has come for a day.
    Recommit,
    /// The chain has had its breath.
    Breath,
}

/// A tick each time that so much has passed, and none at once.
fn every(wait: Duration) -> Interval {
    let mut interval = tokio::time::interval(wait);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval.reset();
    interval
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(tokio::time::Instant::from_std(at)).await,
        None => std::future::pending().await,
    }
}

/// A failpoint of the transaction; what it is told to fail with is as good as Kafka's being away.
fn reach(name: &'static str) -> Result<(), kafka::Error> {
    failpoint::reach(name).map_err(|injected| kafka::Error::Unavailable {
        doing: "announcing".to_owned(),
        detail: injected.to_string(),
    })
}
