//! Driving: one loop that sends while there is room, notes what has moved, and ends when all has landed.
//!
//! ```text
//!  Starting --version 1--> Loading --catalogue sent--> Changing --time, number, stop--> Landing --all there--> Comparing
//!                                                                          the poison, mended and replayed ^
//!                            '-----------------------------------------------------------^
//! ```
//!
//! All of the demo's state belongs to this loop, so nothing is locked. Whoever has news wakes it: the producer's and
//! the consumers' watches, the letters' channel, the input.
//!
//! Owns: the phases, the pace, the deadline of what must move. Does not own: the parts that it drives.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::feed::{self, Counts, Feed, Record, What};
use super::flight::{Flight, Mark, Pace};
use super::letters::{self, Account, Letter};
use super::report::{self, Load, Report, Verdict};
use super::system::{self, CONSUMERS, DATASET, PARTITIONS, System};
use super::{Error, Options, Phase, Progress};
use crate::clock::Clock;
use crate::consumer::follow::Readable;
use crate::dead::fix::Fix;
use crate::dead::outcome::{Outcome, Told, Totals};
use crate::dead::replay::{self, Asked};
use crate::dead::rows::Goal;
use crate::dead::select::Selection;
use crate::kafka::{self, Delivered, Outgoing, Sender};
use crate::producer::announce::Announced;
use crate::version::Checksum;
use crate::view::View;

/// When nothing has moved for so long, nothing will.
const PATIENCE: Duration = Duration::from_secs(60);
/// Records sent before anything else gets its turn.
const BURST: usize = 256;
/// How often the progress is told.
const TICK: Duration = Duration::from_millis(100);
/// Letters on their way from the thread that reads them.
const LETTERS: usize = 64;

/// Acknowledgements that are waited for, with what each must say.
type Acks = VecDeque<(Delivered, BoxFuture<'static, Result<Delivered, kafka::Error>>)>;

/// Runs to the end.
pub(super) async fn run(
    feed: Feed,
    system: &mut System,
    options: &Options,
    progress: &watch::Sender<Progress>,
    stop: &CancellationToken,
) -> Result<Report, Error> {
    let (letters_in, letters) = mpsc::channel(LETTERS);
    let reading = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let (kafka, reading_to) = (system.kafka.clone(), reading.clone());
    tasks.spawn_blocking(move || letters::read(&kafka, &system::letters(), &letters_in, &reading_to));
    let sender = Sender::new(&system.kafka).map_err(sending)?;
    let now = options.clock.now();
    let drive = Drive {
        clock: options.clock.clone(),
        announced: system.producer.announced(),
        readers: system.consumers.iter().map(|consumer| consumer.watch()).collect(),
        flight: Flight::new(PARTITIONS, CONSUMERS.len()),
        account: Account::default(),
        acks: VecDeque::new(),
        pending: None,
        began: now,
        moved: now,
        loaded: None,
        load: None,
        joined: None,
        late: None,
        replay: Replay::Due,
        stopped: false,
        phase: Phase::Starting,
        feed,
        system,
        options,
        sender,
        progress,
        letters,
        tasks,
    };
    // However it ends, the thread that reads letters is told so and waited for by its JoinSet's owner.
    let driven = drive.drive(stop, &reading).await;
    reading.cancel();
    driven
}

fn sending(source: kafka::Error) -> Error {
    Error::Kafka { doing: format!("sending to {DATASET}"), source }
}

struct Drive<'a> {
    options: &'a Options,
    clock: Clock,
    feed: Feed,
    system: &'a mut System,
    sender: Sender,
    progress: &'a watch::Sender<Progress>,
    announced: watch::Receiver<Option<Announced>>,
    readers: Vec<watch::Receiver<Readable>>,
    letters: mpsc::Receiver<Letter>,
    tasks: JoinSet<Result<(), Error>>,
    flight: Flight,
    account: Account,
    acks: Acks,
    /// Taken from the feed, and its partition is full.
    pending: Option<Record>,
    phase: Phase,
    /// When the first record went out.
    began: Instant,
    /// When something moved last.
    moved: Instant,
    loaded: Option<Loaded>,
    load: Option<Load>,
    /// The poison's way back, once all else has landed.
    replay: Replay,
    /// When the late consumer was started, and how long it took.
    joined: Option<Instant>,
    late: Option<(Duration, u64)>,
    stopped: bool,
}

/// The moment at which the catalogue, or all there is, was sent.
struct Loaded {
    at: Instant,
    /// By partition, where the load ends.
    ends: Vec<i64>,
    /// What had been sent.
    counts: Counts,
}

/// The poison's way back.
enum Replay {
    /// Nothing was done yet.
    Due,
    /// A thread does it.
    UnderWay(oneshot::Receiver<(Totals, Option<(i32, i64)>)>),
    /// So many letters were replayed.
    Done(u64),
}

/// All letters, mended. By force: the embedded broker forgets records, so that staleness cannot be told; nobody else
/// writes the poison's key.
fn asked() -> Asked {
    Asked {
        selection: Selection { dataset: DATASET.to_owned(), ..Selection::default() },
        max: None,
        rate: None,
        dry_run: false,
        max_replays: 1,
        wait: replay::WAIT,
        force: true,
        fix: Some(Fix::Here(feed::mend)),
        goal: Goal::Source,
    }
}

impl Drive<'_> {
    async fn drive(mut self, stop: &CancellationToken, reading: &CancellationToken) -> Result<Report, Error> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.flight.join(0);
        loop {
            self.note()?;
            self.turn().await?;
            if self.phase == Phase::Comparing {
                break;
            }
            let feeding = matches!(self.phase, Phase::Loading | Phase::Changing);
            let due = self.next_due();
            let sendable = feeding && due.is_none() && self.may_send();
            let stopped = self.stopped;
            let Drive { system, announced, readers, letters, tasks, feed, pending, .. } = &mut self;
            let System { producer, .. } = &mut **system;
            let mut readers = readers.iter_mut();
            let (early, late) = (readers.next(), readers.next());
            tokio::select! {
                () = stop.cancelled(), if !stopped => self.stopped = true,
                ended = producer.ended() => {
                    let source = ended.err().unwrap_or_else(system::ended_early);
                    return Err(Error::Part { part: "the producer has ended", source });
                }
                Ok(()) = announced.changed() => {}
                () = changed(early) => {}
                () = changed(late) => {}
                Some(letter) = letters.recv() => {
                    self.account.arrived(letter);
                    self.moved = self.clock.now();
                }
                Some(ended) = tasks.join_next() => ended.map_err(|panic| Error::Stuck(panic.to_string()))??,
                ready = ready(feed, pending.is_some()), if sendable => {
                    ready?;
                    self.burst().await?;
                }
                () = tokio::time::sleep(due.unwrap_or_default()), if feeding && due.is_some() => {}
                _ = tick.tick() => {
                    self.tell();
                    self.check_patience()?;
                }
            }
        }
        self.tell();
        reading.cancel();
        self.finish().await
    }

    /// Takes note of how far everybody is.
    fn note(&mut self) -> Result<(), Error> {
        let now = self.clock.now();
        let before = (self.flight.waiting_for(), self.account.due());
        let positions = |view: &View| view.about().positions.clone();
        let announced =
            self.announced.borrow_and_update().as_ref().map(|announced| announced.positions.clone());
        for position in announced.unwrap_or_default() {
            let partition = usize::try_from(position.source.partition).unwrap_or(usize::MAX);
            self.flight.reached(Mark::Announced, partition, position.offset, now);
        }
        for (reader, consumer) in self.system.consumers.iter().enumerate() {
            if let Some(watch) = self.readers.get_mut(reader) {
                watch.borrow_and_update();
            }
            for position in positions(&consumer.view()) {
                let partition = usize::try_from(position.source.partition).unwrap_or(usize::MAX);
                self.flight.reached(Mark::Readable(reader), partition, position.offset, now);
            }
        }
        if before != (self.flight.waiting_for(), self.account.due()) {
            self.moved = now;
        }
        while let Some((expected, ack)) = self.acks.front_mut() {
            match ack.now_or_never() {
                None => break,
                Some(delivered) => {
                    let delivered = delivered.map_err(sending)?;
                    if delivered != *expected {
                        return Err(Error::Stuck(format!(
                            "the embedded broker put a record at {delivered:?} that belongs at {expected:?}: it took \
                             one twice; run the demo again"
                        )));
                    }
                    self.acks.pop_front();
                }
            }
        }
        Ok(())
    }

    /// Goes on to the next phase if it is time.
    async fn turn(&mut self) -> Result<(), Error> {
        let now = self.clock.now();
        if self.phase == Phase::Starting && (self.announced.borrow().is_some() || self.stopped) {
            (self.phase, self.began, self.moved) = (Phase::Loading, now, now);
        }
        if self.phase == Phase::Loading && self.feed.is_loaded() && self.pending.is_none() {
            self.phase = Phase::Changing;
            self.loaded = Some(Loaded { at: now, ends: self.flight.ends(), counts: self.feed.counts() });
        }
        if matches!(self.phase, Phase::Loading | Phase::Changing) && self.is_enough(now) {
            // What was taken was counted, so it goes out, room or not: the model holds it already.
            if let Some(record) = self.pending.take() {
                self.send(record).await?;
            }
            if let Some(record) = self.feed.take_last() {
                self.send(record).await?;
            }
            self.sender.flush(PATIENCE).await.map_err(sending)?;
            (self.phase, self.moved) = (Phase::Landing, now);
            let counts = self.feed.counts();
            self.loaded.get_or_insert_with(|| Loaded { at: now, ends: self.flight.ends(), counts });
        }
        if let (Some(loaded), None) = (&self.loaded, self.load)
            && self.flight.has_reached(&loaded.ends)
        {
            let (records, bytes) = (loaded.counts.records(), loaded.counts.bytes);
            self.load = Some(Load { records, bytes, took: now - self.began });
            self.join(now)?;
        }
        if let (Some(joined), None, Some(consumer)) = (self.joined, self.late, self.system.consumers.get(1))
            && consumer.is_ready()
        {
            self.late = Some((now - joined, consumer.view().records()));
        }
        let landed = self.flight.has_landed() && self.account.due() == 0 && self.acks.is_empty();
        if self.phase == Phase::Landing && landed && self.late.is_some() && self.replay(now)? {
            self.phase = Phase::Comparing;
        }
        Ok(())
    }

    /// Has the poison mended and replayed, by what `dlq replay` does. True: there is nothing of it to wait for any more.
    fn replay(&mut self, now: Instant) -> Result<bool, Error> {
        match &mut self.replay {
            Replay::Due if self.feed.is_generated() => {
                let (told, tells) = oneshot::channel();
                let (replay, asked) = (self.system.replay(&self.feed), asked());
                self.tasks.spawn_blocking(move || {
                    let mut to = None;
                    let (totals, done) = replay::run(&replay, &asked, &CancellationToken::new(), |word| {
                        if let Told::Done(_, Outcome::Replayed(place)) = word {
                            to = *place;
                        }
                    });
                    // Nobody is there to hear it where the demo has ended by a mistake.
                    let _ = told.send((totals, to));
                    done.map_err(Error::Replay)
                });
                (self.replay, self.moved) = (Replay::UnderWay(tells), now);
                Ok(false)
            }
            Replay::Due => Ok(true),
            Replay::UnderWay(tells) => {
                let Ok((totals, to)) = tells.try_recv() else { return Ok(false) };
                if let (Some((partition, offset)), Some((key, value))) = (to, self.feed.mended()) {
                    let bytes = (key.len() + value.len()) as u64;
                    let lane = usize::try_from(partition).unwrap_or(usize::MAX);
                    let expected = self.flight.sent(lane, bytes, now, Pace::Load);
                    if expected != offset {
                        return Err(Error::Stuck(format!(
                            "the poison was replayed to offset {offset} of partition {partition}, and {expected} was next"
                        )));
                    }
                }
                (self.replay, self.moved) = (Replay::Done(totals.replayed), now);
                Ok(false)
            }
            Replay::Done(_) => Ok(true),
        }
    }

    /// The late consumer comes: what was loaded is announced, so it starts from a version that others wrote.
    fn join(&mut self, now: Instant) -> Result<(), Error> {
        self.system.join()?;
        self.readers.extend(self.system.consumers.get(1).map(crate::Consumer::watch));
        self.flight.join(1);
        self.joined = Some(now);
        Ok(())
    }

    fn is_enough(&self, now: Instant) -> bool {
        // Who serves over HTTP is there to be asked, also when all lines have been sent.
        let stays = self.options.listen.is_some() && self.options.records.is_none();
        self.stopped
            || (self.feed.is_over() && self.pending.is_none() && !stays)
            || self.options.time.is_some_and(|time| now - self.began >= time)
            || self.options.records.is_some_and(|records| self.feed.counts().records() >= records)
    }

    /// How long until the pace allows the next record; `None`: now.
    fn next_due(&self) -> Option<Duration> {
        let (Phase::Changing, Some(loaded)) = (self.phase, &self.loaded) else { return None };
        if self.options.rate == 0 {
            return None;
        }
        let sent = self.feed.counts().records().saturating_sub(loaded.counts.records());
        let due = Duration::from_secs_f64(sent as f64 / f64::from(self.options.rate));
        due.checked_sub(self.clock.now() - loaded.at).filter(|wait| !wait.is_zero())
    }

    fn may_send(&self) -> bool {
        let room = self.pending.as_ref().is_none_or(|record| self.has_room(record));
        room && !self.account.is_full()
    }

    fn has_room(&self, record: &Record) -> bool {
        self.flight.has_room(partition(record), weight(record))
    }

    /// Sends what the feed has, while there is room and the pace allows.
    async fn burst(&mut self) -> Result<(), Error> {
        for _ in 0..BURST {
            if self.is_enough(self.clock.now()) || self.next_due().is_some() || !self.may_send() {
                break;
            }
            let Some(record) = self.pending.take().or_else(|| self.feed.take()) else { break };
            if !self.has_room(&record) {
                self.pending = Some(record);
                break;
            }
            self.send(record).await?;
        }
        Ok(())
    }

    async fn send(&mut self, record: Record) -> Result<(), Error> {
        let (partition, now) = (partition(&record), self.clock.now());
        let pace = if self.phase == Phase::Changing { Pace::Steady } else { Pace::Load };
        let offset = self.flight.sent(partition, weight(&record), now, pace);
        if let What::Misfit(line) = record.what {
            self.account.expect((partition as i32, offset), &record.key, &record.value, line);
        }
        let outgoing = Outgoing {
            topic: DATASET,
            partition: Some(partition as i32),
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            ..Outgoing::default()
        };
        let ack = self.sender.enqueue(&outgoing).await.map_err(sending)?;
        self.acks.push_back((Delivered { partition: partition as i32, offset }, ack.boxed()));
        self.moved = now;
        Ok(())
    }

    fn tell(&self) {
        let status = self.system.producer.status();
        let counts = self.feed.counts();
        self.progress.send_replace(Progress {
            phase: self.phase,
            elapsed: if self.phase == Phase::Starting {
                Duration::ZERO
            } else {
                self.clock.now() - self.began
            },
            sent: counts.records(),
            announced: self.flight.announced(),
            version: self.announced.borrow().as_ref().map_or(0, |announced| announced.version.0),
            readers: self
                .system
                .consumers
                .iter()
                .map(|consumer| consumer.view())
                .map(|view| (view.version().0, view.records()))
                .collect(),
            letters: self.account.total,
            trouble: status.error,
            serving: self.system.serving,
        });
    }

    /// An end to waiting for what will not come.
    fn check_patience(&self) -> Result<(), Error> {
        let starting = self.phase == Phase::Starting;
        let waiting = self.flight.waiting_for().unwrap_or(0);
        let waits = starting || waiting > 0 || self.account.due() > 0 || self.phase == Phase::Landing;
        if !waits || self.clock.now() - self.moved < PATIENCE {
            return Ok(());
        }
        let mut said = match starting {
            true => format!("no version was announced within {PATIENCE:?}"),
            false => format!(
                "nothing has moved for {PATIENCE:?}: {waiting} records are not readable everywhere, {} letters have \
                 not come back",
                self.account.due()
            ),
        };
        let producer = self.system.producer.status().error;
        let consumers = self.system.consumers.iter().map(|consumer| consumer.status());
        let consumers = consumers.flat_map(|status| [status.readable.error, status.tail.error]);
        for trouble in std::iter::once(producer).chain(consumers).flatten() {
            said = format!("{said}; {trouble}");
        }
        Err(Error::Stuck(said))
    }

    /// Everything has landed: compares, reads, and adds up.
    async fn finish(self) -> Result<Report, Error> {
        let took = self.clock.now() - self.began;
        let views: Vec<View> = self.system.consumers.iter().map(|consumer| consumer.view()).collect();
        let (clock, entropy, feed) = (self.clock, self.options.entropy.clone(), self.feed);
        let compared = tokio::task::spawn_blocking(move || {
            let mut verdicts = Vec::new();
            for (consumer, view) in CONSUMERS.iter().zip(&views) {
                let differences = feed.compare(view)?;
                let (version, records) = (view.version().0, view.records());
                verdicts.push(Verdict { consumer, version, records, differences });
            }
            let reads = match views.first() {
                Some(view) => report::reads(view, &clock, &entropy)?,
                None => None,
            };
            Ok::<_, Error>((feed.counts(), verdicts, reads))
        });
        let compared =
            compared.await.map_err(|panic| Error::Stuck(format!("comparing panicked: {panic}")))?;
        let (counts, verdicts, reads) = compared?;
        let latencies =
            |mark| [self.flight.latencies(mark, Pace::Load), self.flight.latencies(mark, Pace::Steady)];
        let mut wrong_letters = self.account.named.clone();
        let more = self.account.wrong.saturating_sub(wrong_letters.len() as u64);
        if more > 0 {
            wrong_letters.push(format!("and {more} more"));
        }
        Ok(Report {
            counts,
            stopped: self.stopped,
            took,
            load: self.load,
            versions: self.system.wrote.versions_total.get(),
            coalesced: self.system.wrote.coalesced_records_total.get(),
            unchanged: self.system.wrote.unchanged_records_total.get(),
            blobs: system::blobs(&self.system.store).await?,
            publish: latencies(Mark::Announced),
            readable: latencies(Mark::Readable(0)),
            late: self.late,
            reads,
            letters: self.account.total,
            shown: self.account.shown,
            replayed: match self.replay {
                Replay::Done(replayed) => Some(replayed),
                _ => None,
            },
            wrong_letters,
            verdicts,
            farewell: None,
        })
    }
}

/// A key has one partition, for its records must stay in order; what has none goes anywhere.
fn partition(record: &Record) -> usize {
    let bytes = record.key.as_ref().or(record.value.as_ref());
    bytes.map_or(0, |bytes| (Checksum::of(bytes).0 % PARTITIONS as u64) as usize)
}

fn weight(record: &Record) -> u64 {
    [&record.key, &record.value].into_iter().flatten().map(|part| part.len() as u64).sum()
}

/// Waits for a consumer's news, or for ever where there is no consumer.
async fn changed(reader: Option<&mut watch::Receiver<Readable>>) {
    let gone = match reader {
        Some(reader) => reader.changed().await.is_err(),
        None => true,
    };
    if gone {
        std::future::pending::<()>().await;
    }
}

async fn ready(feed: &mut Feed, pending: bool) -> Result<(), Error> {
    if pending { Ok(()) } else { feed.ready().await }
}
