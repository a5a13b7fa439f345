//! Taking over: start, handover, an unknown outcome, any abort and any error within a transaction all come here.
//!
//! ```text
//!  (1) fence        a new transactional producer: ends or fences what was under way
//!  (2) epoch record the highest epoch in the topic + 1, committed
//!  (3) read up to it: the last valid announcement is the truth (version, positions)
//!  (4) view         topic ids and schemas compared; the view of that version opened from cache or store
//!      a request    to rebuild that waits in the control topic is looked for before anything is refused
//!  (5) log          what joins the positions is kept, the rest is discarded; Kafka from there on
//! ```
//!
//! Owns: those five steps, each of which may be the last one that this process does: nothing they leave behind is
//! visible to a reader, and the next life starts at step 1. Does not own: when to take over (`own`), the stages that
//! follow (`producer`).

mod ground;
mod schema;

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::Options;
use super::announce::Carried;
use super::clean::spared::Noting;
use super::control;
use super::log::{self, Log};
use super::read_back::{self, ReadBack, Truth};
use super::rebuild::{self, Plan};
use super::topics;
use crate::failpoint;
use crate::format::announcement::{Announcement, EpochRecord, Message, SourcePosition, read_positions};
use crate::format::control::{Rebuild, pending};
use crate::format::origin::Origin;
use crate::format::succession::Verdict;
use crate::kafka::{self, Admin, Outcome, Outgoing, Poller, Transaction, Tuning};
use crate::record::{Position, SourcePartition, TopicId};
use crate::version::{Life, Shard, Version};
use crate::view::{self, About, Cache, Fetcher, Identity, Past, Restored, View};

/// Longest wait for Kafka's transaction coordinator, and for the topic's end: beyond a transaction's own time limit.
const PATIENCE: Duration = Duration::from_secs(30);
/// The broker holds the tail's fetch back this long while nothing is there; what arrives ends it at once. Short: the end
/// of a partition is told only by a fetch that comes back empty, and taking over waits for it.
const FETCH_WAIT: Duration = Duration::from_millis(50);
/// Races for an epoch before the life gives up: each lost one means that another writer is alive.
const MOST_RACES: u32 = 5;

/// Why a life could not take over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka does not answer, or refuses.
    #[error("{doing}")]
    Kafka {
        /// The step.
        doing: &'static str,
        /// Kafka's reason.
        #[source]
        source: kafka::Error,
    },
    /// The announcement topic cannot be read, or holds what is not ours.
    #[error("reading the announcement topic {topic}")]
    Announcements {
        /// Its name.
        topic: String,
        /// Why.
        #[source]
        source: read_back::Error,
    },
    /// Another writer won the race for the epoch, again and again.
    #[error("another writer of {dataset} took epoch {epoch} first, {MOST_RACES} times in a row")]
    Outrun {
        /// The dataset.
        dataset: String,
        /// The last epoch tried.
        epoch: u64,
    },
    /// What the topic says does not fit the configuration or the sources.
    #[error("{0}")]
    Mismatch(String),
    /// The configured schema cannot follow the announced one: another instance may have one that can.
    #[error("{0}")]
    Schema(String),
    /// The last version's blobs cannot be opened.
    #[error("opening version {version} of {dataset}")]
    View {
        /// The dataset.
        dataset: String,
        /// The version.
        version: Version,
        /// Why.
        #[source]
        source: view::Error,
    },
    /// A rebuild that was asked for cannot begin.
    #[error("preparing the rebuild that was asked for")]
    Rebuild(#[source] rebuild::Error),
    /// The log cannot be read.
    #[error("reading the log")]
    Log(#[from] log::Error),
    /// Told to stop between two steps.
    #[error("the takeover was told to end")]
    Stopped,
}

impl Error {
    /// Whether trying again may help without anybody's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Kafka { source, .. } => {
                source.is_transient()
                    || matches!(source, kafka::Error::Fenced { .. } | kafka::Error::Fatal { .. })
            }
            Error::Announcements { .. } => true,
            Error::Outrun { .. } => true,
            Error::Mismatch(_) | Error::Schema(_) => false,
            Error::View { source, .. } => source.is_transient(),
            Error::Rebuild(source) => source.is_transient(),
            Error::Log(_) | Error::Stopped => true,
        }
    }
}

/// A life that has taken over.
pub struct Recovered {
    /// The life.
    pub life: Life,
    /// Its producer, fencing all before it.
    pub transaction: Transaction,
    /// Its tail, read up to its own epoch record.
    pub read_back: ReadBack,
    /// What its announcements carry on.
    pub carried: Carried,
    /// The view of the last announced version.
    pub view: View,
    /// The same as the next version begins with it: of the configured schema.
    pub turned: View,
    /// Where Kafka continues, per source partition.
    pub fetch_from: Vec<Position>,
    /// How long the sources remember deletes, where one of them is compacted.
    pub remembers: Option<Duration>,
    /// Whether something must be said before a record is taken: the first version, or partitions never seen.
    pub must_say: bool,
    /// The view was made by way of an older snapshot, or its values are of an older schema: a new snapshot is due at once, or
    /// every reader has to do the same.
    pub mended: bool,
    /// Where the control topic goes on: a request behind it ends the life.
    pub control_from: control::Place,
    /// The version of which a snapshot was asked for last, made by now or not.
    pub snapshot_asked: Option<Version>,
    /// A rebuild that was asked for: all that this life does. Then `carried` has the positions that it ends at, and
    /// nothing is fetched by other means.
    pub rebuild: Option<(Rebuild, Plan)>,
    /// With a rebuild: nothing of the last version can be had, and `view` holds no key.
    pub lost: bool,
    /// What the dead-letter topic takes.
    pub letter_limit: topics::LetterLimit,
}

/// What taking over needs.
#[derive(Clone)]
pub struct Recovery {
    /// The producer's options.
    pub options: Options,
    /// The shard.
    pub shard: Shard,
    /// Kafka's administration.
    pub admin: Admin,
    /// The announcement topic's id.
    pub topic_id: TopicId,
    /// The blob cache.
    pub cache: Cache,
    /// The log.
    pub log: Log,
}

impl Recovery {
    /// Takes over. Once `stop` is cancelled it takes no further step and ends, within a second or so; who waits for it
    /// then knows that nothing of it writes any more.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn take_over(&self, stop: &CancellationToken) -> Result<Recovered, Error> {
        let origin = tokio::select! {
            () = stop.cancelled() => return Err(Error::Stopped),
            origin = self.origin() => origin?,
        };
        let (this, token) = (self.clone(), stop.clone());
        // Waited for even when told to stop: the thread looks at the token itself, and what it has begun to write must
        // have ended before somebody is told that this life has.
        let (life, transaction, read_back, truth) = tokio::task::spawn_blocking(move || this.fence(&token))
            .await
            .map_err(|panic| Error::Mismatch(format!("taking over panicked: {panic}")))??;
        tokio::select! {
            () = stop.cancelled() => Err(Error::Stopped),
            recovered = self.go_on(origin, life, transaction, read_back, truth) => recovered,
        }
    }

    /// Steps 4 and 5: they write nothing that others could see.
    async fn go_on(
        &self,
        origin: Origin,
        life: Life,
        transaction: Transaction,
        read_back: ReadBack,
        truth: Truth,
    ) -> Result<Recovered, Error> {
        let last = truth.last.as_deref();
        if let Some(last) = last {
            schema::announced(last, &self.options)?;
        }
        let newest = control::newest(&self.admin, &self.options, self.shard).await;
        let (mut newest, control_from) =
            newest.map_err(|source| Error::Kafka { doing: "reading the control topic", source })?;
        self.note_pin(&newest, control_from.topic).await;
        let version = last.map_or(Version(0), |last| last.version);
        let snapshot_asked = newest.standing.snapshots.remove(&self.shard);
        let snapshot_asked = snapshot_asked.filter(|request| request.history == self.topic_id);
        let (mut carried, mut must_say, rebuild) = match pending(newest.control, self.topic_id, version) {
            Some(request) => {
                let wanted = (request.from, request.deletes);
                let plan = rebuild::plan(&self.admin, &self.options, last, wanted).await;
                let plan = plan.map_err(Error::Rebuild)?;
                let carried = Carried { positions: plan.positions.clone(), ..self.announced(last)? };
                (carried, false, Some((request, plan)))
            }
            None => {
                let (carried, must_say) = self.carry_on(last).await?;
                (carried, must_say, None)
            }
        };
        let mut lost = false;
        let (view, mended) = match (self.open_view(last, &mut carried).await, last, &rebuild) {
            // What a rebuild with deletes makes does not depend on what was there.
            (Err(Error::View { source, .. }), Some(last), Some((_, plan)))
                if matches!(source, view::Error::Unrestorable { .. })
                    && plan.is_all(&self.options.topics) =>
            {
                tracing::error!(
                    dataset = self.options.dataset, version = %last.version, error = %source,
                    "nothing of the last version can be had; the next one is made from the source alone"
                );
                let about = About::announced(last, schema::announced(last, &self.options)?);
                lost = true;
                (View::lost(self.identity(), about), false)
            }
            (opened, ..) => opened?,
        };
        reach("takeover.view")?;
        // The list of sources stands in every blob's header, partitions that were never announced included.
        let positions = carried.positions.iter().map(SourcePosition::position).collect();
        let about = About { positions, ..view.about().clone() };
        let version = view.version();
        let view = view.restate(about).map_err(|source| Error::View {
            dataset: self.options.dataset.clone(),
            version,
            source,
        })?;
        let mut turned = view.clone();
        if let Some(last) = last {
            self.can_be_read_again(&origin, last).await?;
            turned = self.turned(view.clone(), last).await?;
        }
        // The change is a version by itself; a rebuild is one.
        must_say |= rebuild.is_none() && !turned.schema().is_same_as(view.schema());
        let mended = mended || turned.is_resolved();
        // A rebuild takes from the log what it needs by itself, and until it is announced nothing there is done with.
        let (mut fetch_from, mut remembers) = (Vec::new(), None);
        if rebuild.is_none() {
            let positions: Vec<Position> =
                read_positions(&carried.positions).map(SourcePosition::position).collect();
            fetch_from = self.log.resume(&origin, &positions).await?;
            reach("takeover.log")?;
            for (position, fetch) in positions.iter().zip(&fetch_from) {
                tracing::info!(announced = %position, from_log = fetch.offset - position.offset, "resuming");
            }
            remembers = self.unread(last, &fetch_from).await?;
        }
        let letter_limit = topics::letter_limit(&self.admin, &self.options).await;
        let letter_limit = letter_limit
            .map_err(|source| Error::Kafka { doing: "asking what the dead-letter topic takes", source })?;
        Ok(Recovered {
            life,
            transaction,
            read_back,
            carried,
            view,
            turned,
            fetch_from,
            must_say,
            remembers,
            mended,
            control_from,
            snapshot_asked: snapshot_asked.map(|request| request.version),
            rebuild,
            lost,
            letter_limit,
        })
    }

    /// Notes what the control topic says of a pin, if anything.
    async fn note_pin(&self, newest: &control::Newest, topic: Option<TopicId>) {
        let is_said = newest.about_pin && newest.unread_pin.is_none();
        let Some(topic) = topic.filter(|_| is_said) else { return };
        let noting = Noting::new(self.cache.clone(), &self.options.dataset, self.shard, self.topic_id);
        let pin = newest.standing.pin.clone();
        // What may not be deleted is asked for again before anything is: this one may fail.
        let _ = tokio::task::spawn_blocking(move || noting.said(topic, pin.as_ref())).await;
    }

    async fn ends(&self, topic: &str, partition: i32) -> Result<(i64, i64), Error> {
        self.admin
            .watermarks(topic, partition)
            .await
            .map_err(|source| Error::Kafka { doing: "asking Kafka where the topic begins and ends", source })
    }

    /// Steps 1 to 3. Blocks.
    fn fence(&self, stop: &CancellationToken) -> Result<(Life, Transaction, ReadBack, Truth), Error> {
        let options = &self.options;
        let kafka = |doing| move |source| Error::Kafka { doing, source };
        let announcements = |source| match source {
            read_back::Error::Stopped => Error::Stopped,
            source => Error::Announcements { topic: options.announcements.clone(), source },
        };
        let go_on = || if stop.is_cancelled() { Err(Error::Stopped) } else { Ok(()) };
        let partition = self.shard.0 as i32;

        let id = format!("{}/{}", options.dataset, self.shard);
        let mut transaction = Transaction::new(&options.kafka, &id, options.clock.clone())
            .map_err(kafka("creating the transactional producer"))?
            .stopped_by(stop.clone());
        go_on()?;
        transaction.init(PATIENCE).map_err(kafka("fencing earlier writers (init_transactions)"))?;
        go_on()?;

        reach("takeover.fenced")?;
        tracing::debug!(dataset = options.dataset, "earlier writers are fenced");
        // Only now: what an earlier writer had under way has ended, so that the end stands still but for new lives.
        let tuning = Tuning::tail(&format!("stillwell.{}", options.dataset), FETCH_WAIT);
        let poller = Poller::new(&options.kafka, &tuning).map_err(kafka("creating the tail's client"))?;
        let (low, end) = Handle::current().block_on(async {
            tokio::select! {
                () = stop.cancelled() => Err(Error::Stopped),
                ends = self.ends(&options.announcements, partition) => ends,
            }
        })?;
        let deadline = || options.clock.now() + PATIENCE;
        let mut read_back = ReadBack::open(
            poller,
            &options.announcements,
            partition,
            (low, end),
            options.clock.clone(),
            deadline(),
            stop.clone(),
        )
        .map_err(announcements)?;
        if read_back.truth().is_history_gone(low) {
            return Err(Error::Mismatch(format!(
                "{} begins at offset {low} and holds no valid announcement: its history was deleted. Set its \
                 retention.ms and retention.bytes to -1 and cleanup.policy to delete, restore it, or choose another \
                 announcement topic to begin a new history",
                options.announcements
            )));
        }

        let mut epoch = 0;
        for _ in 0..MOST_RACES {
            go_on()?;
            epoch = read_back.truth().highest_epoch + 1;
            let life = Life { epoch, writer: options.entropy.uuid() };
            let record = EpochRecord {
                dataset: options.dataset.clone(),
                shard: self.shard,
                shards: options.shards,
                life,
                at: options.clock.wall_ms(),
            };
            let value = Message::Epoch(record).encode();
            reach("takeover.epoch")?;
            let record = Outgoing {
                topic: &options.announcements,
                partition: Some(partition),
                key: Some(id.as_bytes()),
                value: Some(&value),
                ..Outgoing::default()
            };
            transaction
                .begin()
                .and_then(|()| transaction.send(&record, PATIENCE))
                .map_err(kafka("writing the epoch record"))?;
            match transaction.commit(PATIENCE) {
                Outcome::Committed => {}
                Outcome::Aborted(source)
                | Outcome::Unknown(source)
                | Outcome::Fenced(source)
                | Outcome::Fatal(source) => return Err(kafka("committing the epoch record")(source)),
            }
            reach("takeover.begun")?;
            match read_back.until_life(life, deadline()).map_err(announcements)? {
                Verdict::Valid => {
                    tracing::debug!(%life, "the epoch record is valid");
                    let truth = read_back.take_truth();
                    return Ok((life, transaction, read_back, truth));
                }
                Verdict::Superseded | Verdict::Repeated => {
                    tracing::warn!(%life, "another writer took this epoch first; trying the next");
                }
            }
        }
        Err(Error::Outrun { dataset: options.dataset.clone(), epoch })
    }

    /// What the last announcement says, held against the configuration.
    fn announced(&self, last: Option<&Announcement>) -> Result<Carried, Error> {
        let Some(last) = last else { return Ok(Carried::default()) };
        continues(last, &self.options)?;
        Ok(Carried {
            previous: Some((last.version, last.life.epoch)),
            chain: last.chain(),
            positions: last.positions.clone(),
            records: last.records,
            caught_up: last.caught_up,
            oldest_kept: last.oldest_kept,
        })
    }

    /// Step 4, first half: what the last announcement says, held against the configuration and the sources.
    async fn carry_on(&self, last: Option<&Announcement>) -> Result<(Carried, bool), Error> {
        let options = &self.options;
        let mut carried = self.announced(last)?;
        let mut must_say = last.is_none();
        for topic in &options.topics {
            let info = self
                .admin
                .describe(topic)
                .await
                .map_err(|source| Error::Kafka { doing: "describing a source topic", source })?
                .ok_or_else(|| Error::Mismatch(format!("source topic {topic} does not exist: create it")))?;
            // Of a topic that was made anew, and rebuilt from, the list holds what it was before too.
            let known =
                || read_positions(&carried.positions).filter(|position| *position.source.topic == **topic);
            if let Some(stranger) = known().find(|position| position.source.topic_id != info.id) {
                return Err(Error::Mismatch(format!(
                    "source topic {topic} was deleted and created again since version {} (topic id {} then, {} now): \
                     its offsets mean other records. Nothing was read. Run `stillwell rebuild {}`, which reads the \
                     topic as it is now and announces the difference, or restore the old topic",
                    last.map_or(Version(0), |last| last.version),
                    stranger.source.topic_id,
                    info.id,
                    options.dataset
                )));
            }
            let seen = known().count() as i32;
            for partition in seen..info.partitions {
                let (start, end) = self.ends(topic, partition).await?;
                must_say = true;
                carried.positions.push(SourcePosition {
                    source: SourcePartition {
                        topic: Arc::from(topic.as_str()),
                        topic_id: info.id,
                        partition,
                    },
                    start,
                    offset: start,
                    // A partition that appears later does not take `caught_up` back.
                    target: if last.is_none() { end } else { start },
                });
            }
        }
        has_all(&options.dataset, &carried.positions, &options.topics)?;
        Ok((carried, must_say))
    }

    fn identity(&self) -> Identity {
        Identity {
            dataset: Arc::from(self.options.dataset.as_str()),
            topic_id: self.topic_id,
            shard: self.shard,
            shards: self.options.shards,
        }
    }

    /// Step 4, second half: the view, and whether it took older blobs than the announced ones; then what is announced
    /// next carries those on.
    async fn open_view(
        &self,
        last: Option<&Announcement>,
        carried: &mut Carried,
    ) -> Result<(View, bool), Error> {
        let options = &self.options;
        let identity = self.identity();
        let Some(last) = last else { return Ok((View::empty(identity, options.schema.clone()), false)) };
        let failed = |source| Error::View { dataset: options.dataset.clone(), version: last.version, source };
        // A writer maps only what it has checked whole in this life.
        let fetcher = Fetcher::new(options.store.clone(), self.cache.clone()).checking_whole();
        let inline = last.inline.clone().map(|inline| (last.version, inline));
        let about = About::announced(last, schema::announced(last, &self.options)?);
        let error = match fetcher.open(&identity, &last.chain(), inline, about.clone()).await {
            Ok(view) => return Ok((view, false)),
            Err(error) if error.is_gone() => error,
            Err(error) => return Err(failed(error)),
        };
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::error!(
            dataset = options.dataset, version = %last.version, %error, cause,
            "a blob of the last version is gone; looking for older ones that lead to it"
        );
        let mut past = Past::new(options.kafka.clone(), &options.announcements, options.clock.clone());
        let restored = past.restore(&fetcher, &identity, last, about).await.map_err(failed)?;
        let Restored { view, chain, gone } = restored;
        let gone = gone.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        options.metrics.restores_total.inc();
        tracing::error!(
            dataset = options.dataset, version = %last.version, gone,
            from = %chain.snapshot.as_ref().map_or(Version(0), |snapshot| snapshot.version), deltas = chain.deltas.len(),
            "restored from an older snapshot and its deltas; a new snapshot is made at once"
        );
        // What announcements carried goes back to where readers look for it. A store that refuses costs them a way as long
        // as this one was, nothing else.
        match past.put_back(&fetcher, &identity, last, &chain).await {
            Ok(0) => {}
            Ok(deltas) => {
                tracing::warn!(dataset = options.dataset, deltas, "put back what announcements carried")
            }
            Err(error) => {
                tracing::warn!(dataset = options.dataset, %error, "deltas that are gone cannot be put back");
            }
        }
        carried.chain = chain;
        Ok((view, true))
    }
}

/// Whether all source topics of what was announced are configured still.
///
/// # Errors
/// [`Error::Mismatch`], with what to do.
pub fn has_all(dataset: &str, positions: &[SourcePosition], topics: &[String]) -> Result<(), Error> {
    let mut announced = positions.iter().map(|position| &*position.source.topic);
    match announced.find(|topic| !topics.iter().any(|known| known == topic)) {
        None => Ok(()),
        Some(gone) => Err(Error::Mismatch(format!(
            "source topic {gone} is part of dataset {dataset} since an earlier version, but not configured any more. Add it again, \
             or begin a new history under another announcement topic"
        ))),
    }
}

/// Whether what was announced last can be carried on by these options: what `check --connect` asks before `run` does.
///
/// # Errors
/// [`Error::Mismatch`] and [`Error::Schema`], with what to do.
pub fn continues(last: &Announcement, options: &Options) -> Result<(), Error> {
    if last.dataset != options.dataset || last.shards != options.shards {
        return Err(Error::Mismatch(format!(
            "{} holds announcements of dataset {:?} with {} shard(s), configured is {:?} with {}: the \
             number of shards is fixed at creation. Correct the configuration, or choose another \
             announcement topic",
            options.announcements, last.dataset, last.shards, options.dataset, options.shards
        )));
    }
    schema::announced(last, options)?;
    Ok(())
}

/// A failpoint; what it is told to fail with is as good as Kafka's being away.
fn reach(name: &'static str) -> Result<(), Error> {
    failpoint::reach(name).map_err(|injected| Error::Kafka {
        doing: "taking over",
        source: kafka::Error::Unavailable { doing: "taking over".to_owned(), detail: injected.to_string() },
    })
}
