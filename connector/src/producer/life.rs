//! One life of a shard's writer: takes over, then runs the stages until it is told to end or one of them fails.
//!
//! ```text
//!  source ==chunks==> log ==chunks==> batch ==Batch==> build ==Built==> store ==Stored==> announce
//!  thread             thread          task   (2)       task   (uploads)  task   (uploads)   thread
//!                       ^ trim                 ^ Rebase                                        |
//!                       +---- keeper <---------|---- snapshot <---------- Announced (watch) ---+
//! ```
//!
//! A drain closes the line from the left: the source stops, the log syncs, the batch is flushed, and each stage ends
//! when the channel before it does. A kill cancels all at once; what was not announced is left to the next life.
//!
//! Owns: the stages' tasks and channels. Does not own: whether there is a next life (`producer`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod error;

pub use error::Error;

use super::announce::{self, Announced, Announcer, Carried, ChainSize, Comes};
use super::batch::Batcher;
use super::build::{self, Builder, Built};
use super::circuit::Circuits;
use super::clean::Cleaner;
use super::clean::spared::Noting;
use super::clean::sweep::Sweep;
use super::control::{self, Heard};
use super::intake::Intake;
use super::keep::{Keeper, LONGEST_CHAIN};
use super::look::Look;
use super::pace::Pace;
use super::read_back::ReadBack;
use super::rebuild::{Plan, Rebuilder};
use super::recover::{Recovered, Recovery};
use super::schemas::{Librarian, Library};
use super::shed::Ledger;
use super::snapshot::{Snapshotted, Snapshotter};
use super::source::{self, Source};
use super::store::{Storer, Uploader};
use super::survey::Survey;
use super::turns::Turns;
use super::validate::Validator;
use super::write::watch::Watchers;
use crate::blob::name::Folder;
use crate::error::chain;
use crate::format::control::Rebuild;
use crate::gauge::{Budget, Pressure, Strain};
use crate::kafka::{Membership, Poller, Transaction, Tuning};
use crate::schema::Schema;
use crate::version::{Life, Version};
use crate::view::Identity;

/// Batches that wait for the builder beside the one that is being built: the next one goes on growing meanwhile.
const BATCHES: usize = 1;
/// Snapshots that wait to be listed; the next one is made once this one is.
const SNAPSHOTS: usize = 2;

/// What a life works on; the same for all lives of a process.
#[derive(Clone)]
pub struct Ground {
    /// How to take over.
    pub recovery: Recovery,
    /// Membership in the group.
    pub member: Membership,
    /// The newest announced version, for who waits on it.
    pub announced: watch::Sender<Option<Announced>>,
    /// Who waits for a version that holds what was written here.
    pub watchers: Watchers,
    /// Shared by the stages.
    pub pressure: Pressure,
    /// How fast records leave the log.
    pub pace: Pace,
    /// What was shed.
    pub ledger: Ledger,
    /// What the producer is doing, for who asks.
    pub status: watch::Sender<super::Status>,
    /// The breakers, which outlive the lives.
    pub circuits: Circuits,
}

/// How a life is told to end.
#[derive(Clone)]
pub struct End {
    /// Finish what has begun.
    pub drain: CancellationToken,
    /// End at once.
    pub kill: CancellationToken,
    /// With the drain: make a last snapshot. Set before `drain` is cancelled.
    pub last_snapshot: Arc<AtomicBool>,
}

impl Default for End {
    /// Nobody has told it yet.
    fn default() -> End {
        let kill = CancellationToken::new();
        End { drain: kill.child_token(), kill, last_snapshot: Arc::default() }
    }
}

/// A stage that has ended well.
enum Done {
    Source,
    Announcer,
    /// A rebuild is asked for, which is the next life's to do.
    Asked,
    Other,
}

/// Lives once: takes over, says so through `recovered`, runs until `end` says so.
///
/// # Errors
/// The first error of a stage; all tasks are joined by then.
pub async fn live(ground: Ground, end: End, recovered: oneshot::Sender<()>) -> Result<(), Error> {
    // A stage on a thread cannot be aborted: whoever drops this future must still end it.
    let _killed_on_drop = end.kill.clone().drop_guard();
    let pass = tokio::select! {
        () = end.kill.cancelled() => return Ok(()),
        pass = ground.circuits.kafka.pass() => pass,
    };
    tokio::select! {
        () = end.kill.cancelled() => return Ok(()),
        mended = ground.recovery.log.mend() => mended?,
    };
    let mut taken = match ground.recovery.take_over(&end.kill).await.map_err(Error::from) {
        // Told to end, and now it has: whatever came of it, nobody reads it and the next life starts at the beginning.
        _ if end.kill.is_cancelled() => return Ok(()),
        Err(error) if error.is_of_kafka() => {
            pass.failed(chain(&error));
            return Err(error);
        }
        taken => taken?,
    };
    // A takeover closes the breaker that it was the probe of. Else it forgets no failure: lives that take over well and
    // then fail to announce must open it all the same. But the failure is over, and not what the shard is in until there is
    // something to announce.
    match pass.is_probe() {
        true => pass.succeeded(),
        false => ground.circuits.kafka.answered(),
    }
    tracing::info!(life = %taken.life, version = %taken.view.version(), records = taken.view.records(), "took over");
    if let Some((request, plan)) = taken.rebuild.take() {
        return rebuild(ground, end, taken, request, plan).await;
    }
    let _ = recovered.send(());
    // What a life before this one, here or elsewhere, announced last: who waits on the watch must not see less, and must
    // not see what this process announced before somebody else went on.
    if let Some((version, _)) = taken.carried.previous {
        ground.watchers.announced(version, &taken.carried.positions);
    }
    let chain = ChainSize::of(&taken.carried.chain);
    let carried = &taken.carried;
    ground.announced.send_replace(
        carried.previous.map(|(version, _)| Announced::of(version, taken.view.clone(), carried)),
    );
    ground.pressure.set(Strain::Chain, chain.deltas as f64 / LONGEST_CHAIN);
    let mut stages = JoinSet::new();
    let source_stop = end.drain.child_token();
    let batch_stop = end.kill.child_token();
    let keeper_stop = end.kill.child_token();
    spawn(&mut stages, &ground, taken, &end, [&source_stop, &batch_stop, &keeper_stop])?;

    join(&mut stages, &end, &batch_stop, &keeper_stop).await
}

/// Waits for all stages; the first error ends the others.
async fn join(
    stages: &mut Stages,
    end: &End,
    batch_stop: &CancellationToken,
    keeper_stop: &CancellationToken,
) -> Result<(), Error> {
    let mut outcome = Ok(());
    while let Some(ended) = stages.join_next().await {
        match ended.map_err(Error::from).and_then(|stage| stage) {
            Ok(Done::Source) if end.drain.is_cancelled() && !end.kill.is_cancelled() => {
                batch_stop.cancel();
            }
            Ok(Done::Announcer) => keeper_stop.cancel(),
            // What is under way is of no use to it: the source is read anew.
            Ok(Done::Asked) => end.kill.cancel(),
            Ok(Done::Source | Done::Other) => {}
            Err(error) => {
                outcome = outcome.and(Err(error));
                end.kill.cancel();
            }
        }
    }
    outcome
}

type Stages = JoinSet<Result<Done, Error>>;

fn spawn(
    stages: &mut Stages,
    ground: &Ground,
    taken: Recovered,
    end: &End,
    [source_stop, batch_stop, keeper_stop]: [&CancellationToken; 3],
) -> Result<(), Error> {
    let Recovery { options, shard, admin, topic_id, cache, log } = &ground.recovery;
    let Recovered {
        life,
        transaction,
        read_back,
        carried,
        turned: view,
        fetch_from,
        must_say,
        remembers,
        mended,
        control_from,
        snapshot_asked,
        letter_limit,
        ..
    } = taken;
    let (clock, metrics) = (options.clock.clone(), options.metrics.clone());
    let identity = Identity {
        dataset: Arc::from(options.dataset.as_str()),
        topic_id: *topic_id,
        shard: *shard,
        shards: options.shards,
    };
    let sources: Arc<[_]> = carried.positions.iter().map(|position| position.source.clone()).collect();
    let look = Look::new(admin.clone(), options, *topic_id, &fetch_from, end.drain.clone());
    let (batches, batches_in) = mpsc::channel(BATCHES);
    let (built, built_in) = mpsc::channel(options.performance.worker_pool_size.max(1));
    let (listed, listed_in) = mpsc::channel(SNAPSHOTS);
    let (rebases, rebases_in) = mpsc::channel(SNAPSHOTS);
    let ((settled, settled_in), (keep_from, kept_from)) = (oneshot::channel(), watch::channel(Version(0)));
    let (coming, comes) = watch::channel(None);

    // source -> log
    let divided = options.batching.memory();
    let tuning = Tuning::source(&format!("stillwell.{}", options.dataset), divided.fetch_ahead);
    let poller = Poller::new(&options.kafka, &tuning)?;
    let validator = Validator::of(options, ground.circuits.misfits.clone())?;
    let library = Library::of(options, Some(&ground.circuits));
    let saying = |library: Library| Librarian::new(library.saying(ground.status.clone()), poller.waker());
    let (librarian, desk) = library.map(saying).unzip();
    if let Some(librarian) = librarian {
        let stop = source_stop.clone();
        stages.spawn(async move {
            librarian.run(stop).await;
            Ok(Done::Other)
        });
    }
    let survey = Survey::new(options, &fetch_from, ground.announced.subscribe())?;
    let mut source = Source::new(
        poller,
        &fetch_from,
        validator,
        log.appender(),
        Intake::new(
            (log.clone(), ground.circuits.storm.clone()),
            ground.pressure.clone(),
            ground.pace.clone(),
            ground.status.clone(),
            metrics.clone(),
        ),
        clock.clone(),
        metrics.clone(),
    )?
    .asking(desk)
    .knowing(survey.ends());
    let (stop, logged, status) = (source_stop.clone(), log.clone(), ground.status.clone());
    let (schema, first, mut told) =
        (view.schema().clone(), view.version().next(), ground.announced.subscribe());
    stages.spawn(async move {
        // A partition's start is announced first: nothing is logged that might lack its beginning.
        let said = told.wait_for(|told| !must_say || told.as_ref().is_some_and(|told| told.version >= first));
        tokio::select! {
            () = stop.cancelled() => return Ok(Done::Source),
            said = source.until(said) => drop(said),
        }
        let token = stop.clone();
        let ended = tokio::task::spawn_blocking(move || source.run(&token)).await?;
        let Err(error @ source::Error::Lost { .. }) = ended else { return Ok(ended.map(|()| Done::Source)?) };
        // Every life would end here at its first poll, and what the log holds from before never be published.
        tracing::error!(%error, "the source ends; what the log still holds is published first");
        status.send_modify(|status| status.error = Some(chain(&error)));
        match stop.run_until_cancelled(logged.published()).await {
            Some(()) => Err(error.into()),
            None => Ok(Done::Source),
        }
    });

    let stop = keeper_stop.clone();
    stages.spawn_blocking(move || {
        survey.run(&stop);
        Ok(Done::Other)
    });

    // log -> batch
    let memory = Budget::new(divided.batches);
    let reader = log.reader(options.batching.max_pending_records, memory.clone());
    let at_once = options.batching.batch_timeout.is_zero();
    let turns = Turns::new(options.performance.worker_pool_size, at_once);
    let batcher = Batcher::new(
        reader,
        ground.pace.clone(),
        options.batching.clone(),
        clock.clone(),
        metrics.clone(),
        turns,
        batches,
    );
    let stop = batch_stop.clone();
    stages.spawn(async move { Ok(batcher.run(stop).await.map(|()| Done::Other)?) });

    // batch -> build
    let constants = build::Constants {
        identity: identity.clone(),
        life,
        sources,
        schema: schema.clone(),
        compress: options.performance.enable_compression,
        cache: cache.clone(),
        max_letter_bytes: options.batching.max_batch_bytes,
        format: options.format.clone(),
        chain: carried.chain.deltas.len(),
    };
    let losers = options.conflict_letters.then(|| ground.circuits.storm.clone());
    let builder = Builder::new(constants, view, must_say, clock.clone(), metrics.clone())
        .saying_still(remembers)
        .saying_what_is_kept(kept_from.clone())
        .telling(at_once.then_some(coming))
        .keeping_losers(losers, end.drain.clone());
    let kill = end.kill.clone();
    stages.spawn(async move {
        Ok(builder.run(batches_in, rebases_in, built, settled, kill).await.map(|()| Done::Other)?)
    });

    // build -> store -> announce
    let snapshot = carried.chain.snapshot.as_ref().map(|snapshot| (snapshot.version, snapshot.blob.bytes));
    publish(
        stages,
        ground,
        end,
        (built_in, listed_in, kept_from, Comes::of(comes)),
        letter_limit,
        (life, transaction, read_back, carried, schema.clone()),
    );

    // beside the flow
    let (asked, at, stop) = (options.clone(), *shard, keeper_stop.clone());
    let asks = admin.clone();
    let (wanted, snapshot_wanted) = watch::channel(snapshot_asked);
    let history = *topic_id;
    let noting = Noting::new(cache.clone(), &options.dataset, at, history);
    stages.spawn_blocking(move || {
        let heard = |heard| match heard {
            Heard::Rebuild(request) => Some(request),
            Heard::Snapshot(request) => {
                if request.history == history {
                    tracing::info!(dataset = asked.dataset, request = %request.id, "a snapshot is asked for");
                    wanted.send_replace(Some(request.version));
                }
                None
            }
            Heard::Pin { topic, pin } => {
                noting.said(topic, pin.as_ref());
                None
            }
        };
        let request = control::wait_beside(&asks, &asked, at, control_from, &stop, heard)?;
        let Some(request) = request else { return Ok(Done::Other) };
        tracing::warn!(dataset = asked.dataset, request = %request.id, "a rebuild is asked for; this life ends for it");
        Ok(Done::Asked)
    });
    let snapshotter = Snapshotter {
        identity,
        life,
        schema: schema.clone(),
        rules: options.performance.clone(),
        cache: cache.clone(),
        uploader: uploader(ground),
        last: snapshot,
        due: mended,
        clock,
        metrics: metrics.clone(),
    };
    let announced = ground.announced.subscribe();
    let kill = end.kill.clone();
    let last_snapshot = end.last_snapshot.clone();
    stages.spawn(async move {
        let last = async { (settled_in.await.unwrap_or(Version(0)), last_snapshot.load(Ordering::Acquire)) };
        tokio::select! {
            () = kill.cancelled() => {}
            () = snapshotter.run(announced, snapshot_wanted, listed, rebases, last) => {}
        }
        Ok(Done::Other)
    });
    // The embedded broker trims nothing, and lives no longer than what would be cleaned.
    if !options.kafka.embedded {
        let gate = Some(ground.circuits.store.clone());
        let cleaner = Cleaner::new(
            Sweep::new(options.clone(), admin.clone(), *topic_id, *shard, gate).noting(cache.clone()),
            life,
            &options.cleaning,
            ground.announced.subscribe(),
            keep_from,
            (options.clock.clone(), options.entropy.clone(), options.reliability.retry_backoff),
            metrics.clone(),
        )
        .holding_off(mended);
        // Ends with the drain's begin: whoever is given the shard next finds nobody at it.
        let stop = end.drain.clone();
        stages.spawn(async move {
            cleaner.run(stop).await;
            Ok(Done::Other)
        });
    }
    let keeper = Keeper {
        log: log.clone(),
        announced: ground.announced.subscribe(),
        pressure: ground.pressure.clone(),
        pace: ground.pace.clone(),
        ledger: ground.ledger.clone(),
        memory,
        max_pending_records: options.batching.max_pending_records,
        metrics,
    };
    stages.spawn(async move { Ok(look.run().await.map(|()| Done::Other)?) });
    let stop = keeper_stop.clone();
    stages.spawn(async move { Ok(keeper.run(stop).await.map(|()| Done::Other)?) });
    Ok(())
}

/// The end of the line, the same for whatever builds versions: stored, then announced.
fn publish(
    stages: &mut Stages,
    ground: &Ground,
    end: &End,
    (built, listed, kept_from, comes): (
        mpsc::Receiver<Built>,
        mpsc::Receiver<Snapshotted>,
        watch::Receiver<Version>,
        Comes,
    ),
    letter_limit: super::topics::LetterLimit,
    (life, transaction, read_back, carried, schema): (Life, Transaction, ReadBack, Carried, Arc<Schema>),
) {
    let Recovery { options, shard, topic_id, .. } = &ground.recovery;
    let (stored, stored_in) = mpsc::channel(options.performance.worker_pool_size.max(1));
    let folder = Folder { dataset: options.dataset.clone(), topic_id: *topic_id, shard: *shard };
    let storer =
        Storer::new(uploader(ground), options.performance.worker_pool_size, letter_limit.bytes, folder);
    let kill = end.kill.clone();
    stages.spawn(async move {
        tokio::select! {
            () = kill.cancelled() => Ok(Done::Other),
            ended = storer.run(built, stored) => Ok(ended.map(|()| Done::Other)?),
        }
    });

    let constants = announce::Constants {
        dataset: options.dataset.clone(),
        shard: *shard,
        shards: options.shards,
        life,
        announcements: options.announcements.clone(),
        dead_letters: (options.dead_letters.clone(), letter_limit.timestamps),
        control: options.control.clone(),
        schema,
        max_letter_bytes: options.batching.max_batch_bytes,
        ledger: ground.ledger.clone(),
        at_once: options.batching.batch_timeout.is_zero(),
    };
    let announcer = Announcer::new(
        constants,
        carried,
        transaction,
        ground.member.clone(),
        read_back,
        (listed, kept_from, comes),
        ground.announced.clone(),
        ground.watchers.clone(),
        (ground.circuits.kafka.clone(), ground.pressure.clone()),
        options.clock.clone(),
        options.metrics.clone(),
    );
    let kill = end.kill.clone();
    stages.spawn_blocking(move || Ok(announcer.run(stored_in, &kill).map(|()| Done::Announcer)?));
}

fn uploader(ground: &Ground) -> Uploader {
    let options = &ground.recovery.options;
    Uploader::new(
        (options.store.clone(), ground.circuits.store.clone()),
        &options.performance,
        &options.reliability,
        (options.clock.clone(), options.entropy.clone()),
        ground.pressure.clone(),
        options.metrics.clone(),
    )
}

/// The life that rebuilds: one version, stored and announced as any other, and nothing else.
async fn rebuild(
    ground: Ground,
    end: End,
    taken: Recovered,
    request: Rebuild,
    plan: Plan,
) -> Result<(), Error> {
    let Recovery { options, shard, topic_id, cache, log, .. } = &ground.recovery;
    let Recovered { life, transaction, read_back, carried, turned: view, lost, letter_limit, .. } = taken;
    let identity = Identity {
        dataset: Arc::from(options.dataset.as_str()),
        topic_id: *topic_id,
        shard: *shard,
        shards: options.shards,
    };
    let writing = (life, transaction, read_back, carried, view.schema().clone());
    let rebuilder = Rebuilder {
        options: options.clone(),
        request,
        plan,
        view,
        lost,
        life,
        identity,
        cache: cache.clone(),
        log: log.clone(),
        library: Library::of(options, Some(&ground.circuits))
            .map(|library| library.saying(ground.status.clone())),
    };
    let mut stages = JoinSet::new();
    let (built, built_in) = mpsc::channel(1);
    let kill = end.kill.clone();
    stages.spawn(async move { Ok(rebuilder.run(built, kill).await.map(|()| Done::Other)?) });
    // Nobody lists snapshots or cleans beside it.
    let ((_, listed), (_, kept_from)) = (mpsc::channel(1), watch::channel(Version(0)));
    let inputs = (built_in, listed, kept_from, Comes::never());
    publish(&mut stages, &ground, &end, inputs, letter_limit, writing);
    join(&mut stages, &end, &CancellationToken::new(), &CancellationToken::new()).await
}
