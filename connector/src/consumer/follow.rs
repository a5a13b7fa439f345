//! Following: each valid announcement becomes the next view, swapped in whole.
//!
//! ```text
//!  Announced -> the deltas above the view it holds, or all of the chain -> View -> swapped in
//!                                                                            |
//!                     base + overlay merged beside the flow  <---------------+ when the overlay is large
//! ```
//!
//! Announcements that wait are skipped over: the newest says all that it takes. A failure keeps the last good version
//! readable and is tried again, with backoff, unless a newer announcement comes first.
//!
//! Owns: the newest view, and when it is merged. Does not own: which announcements count (`tail`), bytes (`view`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Options;
use super::earlier::Earlier;
use super::tail::Seen;
use crate::format::announcement::{Announcement, Message, SourcePosition};
use crate::record::{Position, TopicId};
use crate::retry::Backoff;
use crate::schema::{self, Schema};
use crate::version::{Life, Shard, Version};
use crate::view::{self, About, Base, Cache, Fetcher, Identity, Past, Reads, Restored, View};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
/// How often the view is asked whether a page of it was found damaged.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest wait before a damaged file is fetched again.
const LONGEST_MEND: Duration = Duration::from_secs(60);

/// Why a version could not be made readable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Blobs cannot be fetched or opened.
    #[error("opening version {version}")]
    View {
        /// The version.
        version: Version,
        /// Why.
        #[source]
        source: view::Error,
    },
    /// The announced schema does not parse.
    #[error("reading the schema of version {version}")]
    Schema {
        /// The version.
        version: Version,
        /// Why.
        #[source]
        source: schema::Error,
    },
}

impl Error {
    /// Whether a blob is not in the store as it was announced.
    fn is_gone(&self) -> bool {
        matches!(self, Error::View { source, .. } if source.is_gone())
    }
}

/// All levels of an error, outermost first.
fn chain_of(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// What readers can be told about the newest version.
#[derive(Clone, Debug, Default)]
pub struct Readable {
    /// Its number; 0 while none is readable.
    pub version: Version,
    /// The newest version announced, readable or not.
    pub announced: Version,
    /// Whether it holds all that was there when the dataset's first life began.
    pub caught_up: bool,
    /// It came from the cache, and the tail has not confirmed it yet.
    pub stale: bool,
    /// Source records that the newest announced version covers and the readable one does not.
    pub lag: u64,
    /// The tail has reached the topic's end and this is what it found: the newest there is.
    pub newest: bool,
    /// How long after its newest record the newest version became readable, and when that was, where it took longer
    /// than `freshness_slo`. What came before the dataset had caught up is late by nature.
    pub late: Option<(Duration, Instant)>,
    /// The last failure, until the next success.
    pub error: Option<String>,
    /// Blobs that are gone, so that the version was made of older ones; until the writer has made a new snapshot.
    pub restored: Option<String>,
}

/// Where readers find the newest view.
pub type Slot = Arc<ArcSwapOption<View>>;

/// The stage.
pub struct Follower {
    options: Options,
    shard: Shard,
    cache: Cache,
    fetcher: Fetcher,
    slot: Slot,
    reads: Arc<Reads>,
    readable: watch::Sender<Readable>,
    schema: Option<Arc<Schema>>,
    merges: JoinSet<Result<Arc<Base>, view::Error>>,
    /// What the newest view was made of.
    last: Option<(TopicId, Box<Announcement>)>,
    /// Older announcements, once they were needed.
    past: Past,
    /// The snapshot that was gone when the newest view was made, and what was.
    restored: Option<(Version, String)>,
    earlier: Earlier,
    /// When a damaged file is fetched again, after attempts that failed.
    mend_at: Option<tokio::time::Instant>,
    mend_backoff: Backoff,
}

impl Follower {
    /// A follower that swaps views into `slot`.
    pub fn new(
        options: Options,
        shard: Shard,
        cache: Cache,
        slot: Slot,
        readable: watch::Sender<Readable>,
        earlier: Earlier,
    ) -> Follower {
        let fetcher = Fetcher::new(options.store.clone(), cache.clone()).holding(options.hold.clone());
        let fetcher = fetcher.telling(options.clock.clone());
        let past = Past::new(options.kafka.clone(), &options.announcements, options.clock.clone());
        let mend_backoff = Backoff::new(LOOK_EVERY, options.max_backoff.max(LONGEST_MEND));
        let metrics = &options.metrics;
        let reads = Reads::on(metrics.zero_copy_reads_total.clone(), metrics.fallback_reads_total.clone());
        Follower {
            reads: Arc::new(reads),
            mend_at: None,
            mend_backoff,
            options,
            shard,
            cache,
            fetcher,
            slot,
            readable,
            schema: None,
            merges: JoinSet::new(),
            last: None,
            past,
            restored: None,
            earlier,
        }
    }

    /// Follows until `stop`, or until the tail is gone.
    pub async fn run(mut self, mut seen: mpsc::Receiver<Seen>, stop: CancellationToken) {
        self.open_cached().await;
        let mut pending: Option<(TopicId, Box<Announcement>, Vec<u8>)> = None;
        let mut backoff = Backoff::new(FIRST_BACKOFF, self.options.max_backoff);
        let mut retry_at: Option<tokio::time::Instant> = None;
        let mut tail_at_end = false;
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(merged) = self.merges.join_next() => self.merged(merged),
                next = seen.recv() => match next {
                    Some(Seen::Announced { topic_id, announcement, encoded }) => {
                        self.note_announced(&announcement);
                        pending = Some((topic_id, announcement, encoded));
                        backoff.reset();
                        retry_at = None;
                    }
                    Some(Seen::UpToDate) => tail_at_end = true,
                    Some(Seen::Gone) => self.doubt(),
                    None => return,
                },
                () = sleep_until(retry_at) => retry_at = None,
                _ = looks.tick() => self.mend().await,
            }
            // Whatever else waits already: the newest announcement is self-sufficient.
            while let Ok(next) = seen.try_recv() {
                match next {
                    Seen::Announced { topic_id, announcement, encoded } => {
                        self.note_announced(&announcement);
                        pending = Some((topic_id, announcement, encoded));
                        retry_at = None;
                    }
                    Seen::UpToDate => tail_at_end = true,
                    Seen::Gone => self.doubt(),
                }
            }
            if let Some((topic_id, announcement, encoded)) = &pending
                && retry_at.is_none()
            {
                match self.advance(*topic_id, announcement, encoded).await {
                    Ok(()) => {
                        backoff.reset();
                        self.last =
                            pending.take().map(|(topic_id, announcement, _)| (topic_id, announcement));
                    }
                    Err(error) => {
                        let wait = backoff.next(&self.options.entropy);
                        self.failed(&error, wait);
                        retry_at = Some(tokio::time::Instant::now() + wait);
                    }
                }
            }
            if tail_at_end && pending.is_none() {
                self.readable.send_if_modified(|readable| !std::mem::replace(&mut readable.newest, true));
            }
        }
    }

    fn note_announced(&self, announcement: &Announcement) {
        let version = announcement.version;
        self.options.metrics.announced_version.set(version.0 as i64);
        let held = self.slot.load();
        let held = held.as_deref().map_or(&[][..], |view| &view.about().positions);
        let lag = behind(held, &announcement.positions);
        self.readable.send_if_modified(|readable| {
            readable.announced = readable.announced.max(version);
            readable.lag = lag;
            false
        });
    }

    fn failed(&self, error: &Error, wait: Duration) {
        self.options.metrics.errors_total.with(&["follow"]).inc();
        let text = chain_of(error);
        tracing::warn!(
            dataset = self.options.dataset,
            error = text,
            ?wait,
            "a version cannot be opened; the last good one stays readable; trying again"
        );
        self.readable.send_modify(|readable| readable.error = Some(text));
    }

    /// What this machine held last is readable at once, marked stale until the tail confirms or replaces it.
    async fn open_cached(&mut self) {
        let cached = match self.cache.load_current(&self.options.dataset, self.shard) {
            Ok(Some(cached)) => cached,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(dataset = self.options.dataset, %error, "the cached version cannot be read");
                return;
            }
        };
        let (topic_id, encoded) = cached;
        let Ok(Message::Announcement(announcement)) = Message::decode(&encoded) else { return };
        let opened = self.open(topic_id, &announcement).await.and_then(|view| {
            let about = About { stale: true, ..view.about().clone() };
            view.restate(about).map_err(|source| Error::View { version: announcement.version, source })
        });
        match opened {
            Ok(view) => {
                self.publish(view, &announcement, true);
                self.last = Some((topic_id, announcement));
            }
            Err(error) => {
                tracing::info!(dataset = self.options.dataset, %error, "the cached version cannot be opened");
            }
        }
    }

    async fn advance(
        &mut self,
        topic_id: TopicId,
        announcement: &Announcement,
        encoded: &[u8],
    ) -> Result<(), Error> {
        if self.slot.load().as_deref().is_some_and(|held| is_same(held, topic_id, announcement)) {
            // Kafka was away, and what the tail finds on its return is what is held.
            return Ok(());
        }
        let view = match self.slot.load_full() {
            Some(held) if self.follows(&held, topic_id, announcement) => {
                match self.apply(&held, announcement).await {
                    Err(error) if error.is_gone() => self.open_or_restore(topic_id, announcement).await?,
                    applied => applied?,
                }
            }
            _ => self.open_or_restore(topic_id, announcement).await?,
        };
        if let Err(error) = self.cache.save_current(view.identity(), encoded) {
            // Costs the next start some time, nothing else.
            tracing::warn!(dataset = self.options.dataset, %error, "the cache cannot note its newest version");
        }
        self.publish(view, announcement, false);
        let metrics = &self.options.metrics;
        metrics.processed_versions_total.inc();
        metrics.current_version.set(announcement.version.0 as i64);
        let now = self.options.clock.wall_ms();
        let since = |then: i64| (now - then).max(0) as f64 / 1_000.0;
        metrics.processing_latency_seconds.observe(since(announcement.announced_at));
        if let Some(newest) = announcement.newest_timestamp {
            metrics.freshness_seconds.observe(since(newest));
            let took = Duration::from_secs_f64(since(newest));
            let slo = self.options.freshness_slo.filter(|_| announcement.caught_up);
            let late = slo.is_some_and(|slo| took > slo).then(|| (took, self.options.clock.now()));
            self.readable.send_modify(|readable| readable.late = late);
        }
        Ok(())
    }

    /// Whether the deltas above the held version lead to the announced one. Valid announcements form one line, so a
    /// version that was valid when it was opened lies on it, as long as the topic is the same one.
    fn follows(&self, held: &View, topic_id: TopicId, announcement: &Announcement) -> bool {
        let base = announcement.snapshot.as_ref().map_or(Version(0), |snapshot| snapshot.version);
        let at = held.version();
        held.identity().topic_id == topic_id
            && at >= base
            && at <= announcement.version
            && (at != announcement.version || held.about().life == announcement.life)
            && (at.next() != announcement.version
                || announcement
                    .previous
                    .is_none_or(|previous| previous.0 == at && previous.1 == held.about().life.epoch))
    }

    async fn apply(&mut self, held: &View, announcement: &Announcement) -> Result<View, Error> {
        let version = announcement.version;
        let failed = |source| Error::View { version, source };
        let about = About::announced(announcement, self.schema(announcement)?);
        let mut view = held.clone();
        for delta in announcement.chain.iter().filter(|delta| delta.version > held.version()) {
            // Versions in between are stepped over: their facts are not known, and nobody sees them.
            let life = Life { epoch: delta.epoch, ..about.life };
            let facts = About { version: delta.version, life, ..about.clone() };
            let inline = announcement.inline.clone().filter(|_| delta.version == version);
            view = self.fetcher.apply(&view, delta, inline, facts).await.map_err(failed)?;
        }
        view.restate(about).map_err(failed)
    }

    async fn open(&mut self, topic_id: TopicId, announcement: &Announcement) -> Result<View, Error> {
        let version = announcement.version;
        let identity = self.identity(topic_id, announcement);
        let about = About::announced(announcement, self.schema(announcement)?);
        let inline = announcement.inline.clone().map(|inline| (version, inline));
        let view = self.fetcher.open(&identity, &announcement.chain(), inline, about).await;
        // Views made of this one go on counting.
        view.map(|view| view.counting(self.reads.clone())).map_err(|source| Error::View { version, source })
    }

    /// As [`Follower::open`]; where the store does not have a blob any more, by way of older ones.
    async fn open_or_restore(
        &mut self,
        topic_id: TopicId,
        announcement: &Announcement,
    ) -> Result<View, Error> {
        let error = match self.open(topic_id, announcement).await {
            Err(error) if error.is_gone() => error,
            opened => return opened,
        };
        let version = announcement.version;
        let identity = self.identity(topic_id, announcement);
        let about = About::announced(announcement, self.schema(announcement)?);
        tracing::error!(
            dataset = self.options.dataset, %version, error = chain_of(&error),
            "a blob of the newest version is gone; looking for older ones that lead to it"
        );
        let restored = self.past.restore(&self.fetcher, &identity, announcement, about).await;
        let Restored { view, chain, gone } = restored.map_err(|source| Error::View { version, source })?;
        let gone = gone.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let from = chain.snapshot.as_ref().map_or(Version(0), |snapshot| snapshot.version);
        self.options.metrics.errors_total.with(&["restore"]).inc();
        self.options.metrics.restores_total.inc();
        tracing::error!(
            dataset = self.options.dataset, %version, gone, %from, deltas = chain.deltas.len(),
            "restored from an older snapshot and its deltas; the store has to be looked at"
        );
        let announced = announcement.snapshot.as_ref().map_or(Version(0), |snapshot| snapshot.version);
        self.restored = Some((announced, format!("it was made from snapshot {from}, since gone is {gone}")));
        Ok(view.counting(self.reads.clone()))
    }

    fn identity(&self, topic_id: TopicId, announcement: &Announcement) -> Identity {
        let dataset = Arc::from(self.options.dataset.as_str());
        Identity { dataset, topic_id, shard: self.shard, shards: announcement.shards }
    }

    /// The announced schema, parsed once as long as it stays the same.
    fn schema(&mut self, announcement: &Announcement) -> Result<Arc<Schema>, Error> {
        match &self.schema {
            Some(schema) if schema.fingerprint() == announcement.schema_fingerprint => Ok(schema.clone()),
            _ => {
                let schema = Schema::parse(&announcement.schema)
                    .map_err(|source| Error::Schema { version: announcement.version, source })?;
                let schema = Arc::new(schema);
                self.schema = Some(schema.clone());
                Ok(schema)
            }
        }
    }

    fn publish(&mut self, view: View, announcement: &Announcement, stale: bool) {
        let version = view.version();
        if self.merges.is_empty() && view.wants_merge(self.options.memory_limit) {
            let (view, cache, life) = (view.clone(), self.cache.clone(), announcement.life);
            self.merges.spawn_blocking(move || {
                let base = view.merge_snapshot(life, &cache)?.into_base()?;
                // Makes the base's indexes, which the newest view then finds made.
                view.rebase(base.clone())?;
                Ok(base)
            });
        }
        self.show_memory(&view);
        self.earlier.note(&view, announcement);
        self.slot.store(Some(Arc::new(view)));
        let snapshot = announcement.snapshot.as_ref().map_or(Version(0), |snapshot| snapshot.version);
        self.restored.take_if(|(gone, _)| *gone != snapshot);
        let restored = self.restored.as_ref().map(|(_, what)| what.clone());
        self.readable.send_modify(|readable| {
            readable.restored = restored;
            readable.version = version;
            readable.announced = readable.announced.max(version);
            readable.caught_up = announcement.caught_up;
            readable.stale = stale;
            readable.lag = 0;
            readable.error = None;
        });
    }

    fn show_memory(&self, view: &View) {
        let bytes = &self.options.metrics.memory_bytes;
        let overlay = view.overlay();
        bytes.with(&["overlay"]).set(overlay.memory_bytes as i64);
        bytes.with(&["deltas"]).set(overlay.plain_bytes as i64);
        bytes.with(&["indexes"]).set(view.index_bytes() as i64);
        bytes.with(&["base"]).set(view.base().map_or(0, |base| base.bytes()) as i64);
    }

    /// A page that a reader found damaged is never served, and would stay an error in all later versions, which share the
    /// base: its files are discarded and fetched again.
    async fn mend(&mut self) {
        if self.mend_at.is_some_and(|at| tokio::time::Instant::now() < at) {
            return;
        }
        let Some(held) = self.slot.load_full() else { return };
        let Some(paths) = held.damaged().map(|paths| paths.map(std::path::Path::to_owned)) else { return };
        let Some((topic_id, announcement)) = self.last.clone() else { return };
        tracing::warn!(
            dataset = self.options.dataset, files = ?paths, "a file of the blob cache is damaged; fetching it again"
        );
        for path in &paths {
            if let Err(error) = self.cache.discard(path) {
                tracing::warn!(dataset = self.options.dataset, %error, "a damaged file cannot be discarded");
            }
        }
        let stale = held.is_stale();
        let opened = self.open_or_restore(topic_id, &announcement).await.and_then(|view| {
            let about = About { stale, ..view.about().clone() };
            view.restate(about).map_err(|source| Error::View { version: announcement.version, source })
        });
        match opened {
            Ok(view) => {
                self.publish(view, &announcement, stale);
                self.mend_at = None;
                self.mend_backoff.reset();
            }
            Err(error) => {
                let wait = self.mend_backoff.next(&self.options.entropy);
                self.mend_at = Some(tokio::time::Instant::now() + wait);
                self.failed(&error, wait);
            }
        }
    }

    /// What is held stays readable, and is marked as confirmed by nobody.
    fn doubt(&mut self) {
        let Some(held) = self.slot.load_full().filter(|held| !held.is_stale()) else { return };
        let about = About { stale: true, ..held.about().clone() };
        match held.restate(about) {
            Ok(view) => self.slot.store(Some(Arc::new(view))),
            Err(error) => {
                tracing::warn!(dataset = self.options.dataset, %error, "a view cannot be marked stale")
            }
        }
        self.readable.send_modify(|readable| readable.stale = true);
    }

    /// A merge is done: the same version, and those since, on a newer base.
    fn merged(&mut self, merged: Result<Result<Arc<Base>, view::Error>, tokio::task::JoinError>) {
        let rebased = match merged {
            Ok(Ok(base)) => match self.slot.load_full() {
                Some(held) => held.rebase(base),
                None => return,
            },
            Ok(Err(error)) => Err(error),
            Err(panic) => {
                tracing::error!(dataset = self.options.dataset, %panic, "merging panicked; the overlay stays");
                return;
            }
        };
        match rebased {
            Ok(view) => {
                self.show_memory(&view);
                self.slot.store(Some(Arc::new(view)));
            }
            Err(error) => {
                tracing::warn!(dataset = self.options.dataset, %error, "merging failed; the overlay stays");
            }
        }
    }
}

/// Whether what is held is just what is announced, and known to be.
fn is_same(held: &View, topic_id: TopicId, announcement: &Announcement) -> bool {
    held.identity().topic_id == topic_id
        && held.version() == announcement.version
        && held.about().life == announcement.life
        && !held.is_stale()
}

/// How many source records lie between what is held and what is announced. A partition that is not held yet counts from
/// where the dataset began to read it.
fn behind(held: &[Position], announced: &[SourcePosition]) -> u64 {
    let behind = announced.iter().map(|announced| {
        let held = held.iter().find(|held| held.source == announced.source);
        announced.offset.saturating_sub(held.map_or(announced.start, |held| held.offset)).max(0)
    });
    behind.sum::<i64>().unsigned_abs()
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::SourcePartition;

    #[test]
    fn lag_joins_by_partition_and_counts_a_new_one_from_its_start() {
        let source = |partition| SourcePartition { topic: "t".into(), topic_id: TopicId([1; 16]), partition };
        let at =
            |partition, start, offset| SourcePosition { source: source(partition), start, offset, target: 0 };
        let held = [Position { source: source(1), offset: 70 }, Position { source: source(0), offset: 10 }];
        assert_eq!(behind(&held, &[at(0, 0, 10), at(1, 0, 70)]), 0);
        assert_eq!(behind(&held, &[at(0, 0, 15), at(1, 0, 71), at(2, 40, 42)]), 5 + 1 + 2);
        assert_eq!(behind(&[], &[at(0, 3, 10)]), 7);
        assert_eq!(behind(&held, &[at(0, 0, 5)]), 0, "never below zero");
    }
}
