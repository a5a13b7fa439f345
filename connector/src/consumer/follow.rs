//! Following: each valid announcement becomes the next view, swapped in whole.
//!
//! ```text
//!  Announced -> the deltas above the view it holds, or all of the chain -> View -> swapped in
//!                                                                            |
//!                     base + overlay merged beside the flow  <---------------+ when the overlay is large, or the next start
//!                                                                              would have to fetch a snapshot
//! ```
//!
//! Announcements that wait are skipped over: the newest says all that it takes. A failure keeps the last good version
//! readable and is tried again, with backoff; within a second where a newer one is announced meanwhile. What is being opened is
//! left when the reader is pinned elsewhere.
//!
//! Owns: the newest view, and when it is merged. Does not own: which announcements count (`tail`), which of them is held
//! (`pin`), bytes (`view`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Options;
use super::cached::{Cached, Outside, Verdict};
use super::control::Told;
use super::earlier::Earlier;
use super::guard::Gate;
use super::mending::{LOOK_EVERY, Mended, Mending};
use super::merging::{Merged, Merging};
use super::next::{Pending, Why, put, sleep_until, sooner};
use super::noted::Noted;
use super::open::{self, Counted, Error, Opener, is_same};
pub use super::readable::{Readable, Slot};
use super::readable::{behind, show_memory};
use super::recent::Recent;
use super::tail::{Announced, Seen, TailStatus};
use crate::error::chain;
use crate::format::announcement::{Announcement, Message, SourcePosition};
use crate::format::control::Refusal;
use crate::record::TopicId;
use crate::retry::Backoff;
use crate::version::{Shard, Version};
use crate::view::{About, Cache, View};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);

/// The stage.
pub struct Follower {
    options: Options,
    shard: Shard,
    cache: Cache,
    opener: Opener,
    slot: Slot,
    /// Told of each version, for who acts on all of them.
    recent: Recent,
    readable: watch::Sender<Readable>,
    merging: Merging,
    /// What the newest view was made of.
    last: Option<Arc<Announced>>,
    /// What is announced, as far as it is known: for the lag.
    announced: Vec<SourcePosition>,
    /// Whether what the cache holds may be shown.
    outside: Outside,
    gate: Gate,
    earlier: Earlier,
    noted: Noted,
    /// The version of which failures were counted last, and at which stages.
    counted: Counted,
    mending: Mending,
}

impl Follower {
    /// A follower that swaps views into the slot of `recent`.
    pub fn new(
        options: Options,
        shard: Shard,
        cache: Cache,
        recent: Recent,
        readable: watch::Sender<Readable>,
        earlier: Earlier,
        (told, tail, gate): (watch::Receiver<Told>, watch::Receiver<TailStatus>, Gate),
    ) -> Follower {
        // Who serves what is stale has said that a start does not wait for Kafka.
        let wait = if options.serve_stale { Duration::ZERO } else { options.control_wait };
        let outside = Outside::new(told, tail, wait);
        let opener = Opener::new(options.clone(), shard, cache.clone(), recent.clone());
        let merging = Merging::new(cache.clone(), options.clock.clone(), options.entropy.clone());
        let noted = Noted::new(cache.clone(), &options.dataset, options.clock.clone());
        let mending = Mending::new(options.max_backoff, options.entropy.clone());
        Follower {
            counted: Counted::default(),
            mending,
            options,
            shard,
            cache,
            opener,
            slot: recent.slot().clone(),
            recent,
            readable,
            merging,
            last: None,
            announced: Vec::new(),
            outside,
            gate,
            earlier,
            noted,
        }
    }

    /// Follows until `stop`, or until the tail is gone.
    pub async fn run(mut self, mut seen: mpsc::Receiver<Seen>, stop: CancellationToken) {
        let mut cached = self.find_cached().await;
        let mut pending: Option<Pending> = None;
        let mut backoff = Backoff::new(FIRST_BACKOFF, self.options.max_backoff);
        let mut retry_at: Option<tokio::time::Instant> = None;
        let mut look_at = tokio::time::Instant::now();
        // What came while a version was being opened.
        let (mut inbox, fixed) = (VecDeque::new(), self.options.fixed.is_some());
        loop {
            if let Some(now) = cached.take() {
                cached = self.settle(now, &mut pending).await;
            }
            // Where versions come as fast as they are opened, nothing below is waited for.
            while let Some(Some(merged)) = self.merging.next().now_or_never() {
                self.merged(merged).await;
            }
            while let Some(Some(mended)) = self.mending.next().now_or_never() {
                self.mended(mended).await;
            }
            if tokio::time::Instant::now() >= look_at {
                look_at = tokio::time::Instant::now() + LOOK_EVERY;
                self.mend();
            }
            if inbox.is_empty() && (pending.is_none() || retry_at.is_some()) {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = self.outside.changed(), if cached.is_some() => {}
                    Some(merged) = self.merging.next() => self.merged(merged).await,
                    () = sleep_until(retry_at) => retry_at = None,
                    Some(mended) = self.mending.next() => self.mended(mended).await,
                    () = tokio::time::sleep_until(look_at) => {}
                    next = seen.recv() => match next {
                        Some(next) => inbox.push_back(next),
                        None => return,
                    },
                }
            }
            // Whatever else waits already: the newest announcement is self-sufficient.
            while let Ok(next) = seen.try_recv() {
                put(&mut inbox, next);
            }
            for next in inbox.drain(..) {
                if let Seen::Announced(_) | Seen::Pinned(_) = next
                    && let Some(now) = cached.take()
                {
                    // Before it is replaced: its deltas may be all that it takes. What the control topic says is known by now.
                    self.settle(now, &mut None).await;
                }
                match next {
                    Seen::Announced(announced) => {
                        self.note_announced(&announced.announcement);
                        let failed = pending.replace(Pending { announced, why: Why::Newest });
                        retry_at = sooner(failed, Why::Newest, retry_at);
                    }
                    Seen::Pinned(announced) => {
                        let failed =
                            pending.replace(Pending { announced, why: Why::Pinned }).filter(|_| fixed);
                        retry_at = sooner(failed, Why::Pinned, retry_at);
                        if !fixed {
                            backoff.reset();
                        }
                    }
                    Seen::Newest(announced) => self.note_announced(&announced.announcement),
                    Seen::UpToDate => self.outside.tail_at_end = true,
                    Seen::Gone => self.doubt(),
                }
            }
            if let Some(now) = &pending
                && retry_at.is_none()
            {
                let advanced = {
                    let mut advance = std::pin::pin!(self.advance(now));
                    loop {
                        tokio::select! {
                            biased;
                            advanced = &mut advance => break Some(advanced),
                            Some(next) = seen.recv() => {
                                let turn = now.is_left_for(&next, fixed);
                                put(&mut inbox, next);
                                if turn {
                                    break None;
                                }
                            }
                        }
                    }
                };
                match advanced {
                    Some(Ok(taken)) => {
                        backoff.reset();
                        let done = pending.take().map(|pending| pending.announced);
                        self.last = done.filter(|_| taken).or(self.last.take());
                    }
                    Some(Err(error)) => {
                        let wait = backoff.next(&self.options.entropy);
                        if let Some(Pending { announced, .. }) = &pending {
                            let Announced { topic_id, announcement, .. } = &**announced;
                            self.failed(announcement, &error, wait);
                            if error.is_full() {
                                let needed =
                                    (self.opener.identity(*topic_id, announcement), announcement.chain());
                                open::relieve(&self.cache, &self.options.dataset, needed).await;
                            }
                        }
                        retry_at = Some(tokio::time::Instant::now() + wait);
                    }
                    None => {}
                }
            }
            self.noted.if_due().await;
            if self.outside.tail_at_end && pending.is_none() {
                self.readable.send_if_modified(|readable| !std::mem::replace(&mut readable.newest, true));
            }
        }
    }

    fn note_announced(&mut self, announcement: &Announcement) {
        let version = announcement.version;
        self.options.metrics.announced_version.set(version.0 as i64);
        self.announced.clone_from(&announcement.positions);
        let held = self.slot.load();
        let held = held.as_deref().map_or(&[][..], |view| &view.about().positions);
        let lag = behind(held, &self.announced);
        self.readable.send_if_modified(|readable| {
            readable.announced = readable.announced.max(version);
            readable.lag = lag;
            false
        });
    }

    fn failed(&mut self, announcement: &Announcement, error: &Error, wait: Duration) {
        let stage = error.stage();
        if self.counted.is_new((announcement.version, announcement.life.epoch), stage) {
            self.options.metrics.errors_total.with(&[stage]).inc();
        }
        let text = chain(error);
        tracing::warn!(
            dataset = self.options.dataset,
            error = text,
            ?wait,
            "a version cannot be opened; the last good one stays readable; trying again"
        );
        self.readable.send_modify(|readable| readable.error = Some(text));
    }

    /// What this machine held last, opened from the cache alone: before Kafka is asked nothing is fetched that it may have
    /// replaced long ago.
    async fn find_cached(&mut self) -> Option<Cached> {
        let (topic_id, encoded) = match self.cache.load_current(&self.options.dataset, self.shard) {
            Ok(cached) => cached?,
            Err(error) => {
                tracing::warn!(dataset = self.options.dataset, %error, "the cached version cannot be read");
                return None;
            }
        };
        let Ok(Message::Announcement(announcement)) = Message::decode(&encoded) else { return None };
        let view = match self.opener.open_held(topic_id, &announcement).await {
            Ok(view) => view,
            Err(error) => {
                let error = chain(&error);
                tracing::info!(dataset = self.options.dataset, error, "the cached version cannot be opened");
                return None;
            }
        };
        Some(Cached { announced: Arc::new(Announced { topic_id, announcement, encoded }), view })
    }

    /// Shows what the cache holds, once it may be shown. Given back: it is not known yet whether.
    async fn settle(&mut self, cached: Cached, pending: &mut Option<Pending>) -> Option<Cached> {
        let pinned = match self.outside.judge(self.options.fixed, self.shard, &cached.announced) {
            Verdict::Wait => return Some(cached),
            Verdict::Leave => return None,
            Verdict::Show { pinned } => pinned,
        };
        match cached.view {
            Some(view) => {
                self.show_cached(view, cached.announced, pinned).await;
                None
            }
            // It is what the next versions are judged by, and what is gone back to where they are refused.
            None if self.gate.judges() => {
                if let Err(error) = self.fetch_cached(&cached.announced).await {
                    let error = chain(&error);
                    tracing::info!(
                        dataset = self.options.dataset,
                        error,
                        "the cached version cannot be opened"
                    );
                }
                None
            }
            // Otherwise what is announced says what to fetch.
            None if (self.outside.tail_at_end || self.outside.is_away()) && pending.is_none() => {
                *pending = Some(Pending { announced: cached.announced, why: Why::Cached });
                None
            }
            None => Some(cached),
        }
    }

    async fn show_cached(&mut self, view: View, announced: Arc<Announced>, pinned: bool) {
        let about = About { stale: true, ..view.about().clone() };
        let view = match view.restate(about) {
            Ok(view) => view,
            Err(error) => {
                tracing::warn!(dataset = self.options.dataset, %error, "the cached version cannot be marked stale");
                return;
            }
        };
        // Taken by a process before this one, whose guard may have been another.
        if !pinned && let Some(objection) = self.gate.objection(None, &view).await {
            self.refused(announced.topic_id, &announced.announcement, None, objection);
            return;
        }
        self.publish(view, &announced.announcement, true, pinned);
        self.last = Some(announced);
    }

    /// As [`Follower::advance`], of the version that was held before this start.
    async fn fetch_cached(&mut self, announced: &Arc<Announced>) -> Result<bool, Error> {
        let view = self.opener.open(announced.topic_id, &announced.announcement).await?;
        // A pin may have become known meanwhile.
        let verdict = self.outside.judge(self.options.fixed, self.shard, announced);
        if let Verdict::Show { pinned } = verdict {
            self.show_cached(view, announced.clone(), pinned).await;
        }
        Ok(false)
    }

    /// `false`: the version is refused, or has been noted as the last one already.
    async fn advance(&mut self, Pending { announced, why }: &Pending) -> Result<bool, Error> {
        if *why == Why::Cached {
            return self.fetch_cached(announced).await;
        }
        let Announced { topic_id, announcement, encoded } = &**announced;
        let (topic_id, pinned) = (*topic_id, *why == Why::Pinned);
        let held = self.slot.load_full();
        if held.as_deref().is_some_and(|held| is_same(held, topic_id, announcement))
            && self.readable.borrow().pinned == pinned
        {
            // Kafka was away, and its newest is what is held; or a pin is taken back that could not be opened.
            self.readable.send_if_modified(|readable| {
                let trouble = readable.error.take().is_some();
                readable.refused.take().is_some() || trouble
            });
            return Ok(true);
        }
        let follows = held.as_deref().is_some_and(|held| self.opener.follows(held, topic_id, announcement));
        // Of an attempt that was left, or failed: they lead to another version.
        self.opener.passed.clear();
        let view = match &held {
            Some(held) if follows => match self.opener.apply(held, announcement).await {
                Err(error) if error.wants_chain() => {
                    self.opener.open_or_restore(topic_id, announcement).await?
                }
                applied => applied?,
            },
            _ => self.opener.open_or_restore(topic_id, announcement).await?,
        };
        // A version that was held already was judged when it was taken.
        let new = held.as_deref().is_none_or(|held| held.version() != view.version());
        if new
            && !pinned
            && let Some(objection) = self.gate.objection(held.as_deref(), &view).await
        {
            self.refused(topic_id, announcement, held.filter(|_| follows), objection);
            return Ok(false);
        }
        let identity = view.identity().clone();
        // Back to an older version: a start without Kafka must not show the one that was left. Where versions are judged,
        // the one that is held is what the next are judged by, and what is gone back to: also after a kill.
        let urgent = pinned || self.gate.judges();
        self.noted.newest(&identity, encoded, urgent);
        if urgent {
            self.noted.if_due().await;
        }
        self.recent.pass(std::mem::take(&mut self.opener.passed), announcement);
        self.publish(view, announcement, false, pinned);
        self.gate.taken();
        let metrics = &self.options.metrics;
        metrics.processed_versions_total.inc();
        if pinned {
            // How long ago it was announced says nothing about how quick this reader is.
            return Ok(true);
        }
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
        Ok(true)
    }

    /// The version is not taken. What is held is the last good one: if it lies on the way to this one, Kafka has just
    /// confirmed that it was announced.
    fn refused(
        &mut self,
        topic_id: TopicId,
        announcement: &Announcement,
        confirmed: Option<Arc<View>>,
        reason: String,
    ) {
        let (version, dataset) = (announcement.version, &self.options.dataset);
        let held = self.slot.load().as_deref().map_or(Version(0), View::version);
        let refusal = Refusal {
            dataset: dataset.clone(),
            shard: self.shard,
            history: topic_id,
            version,
            epoch: announcement.life.epoch,
            held,
            by: self.options.reader.clone(),
            reason,
            at: self.options.clock.wall_ms(),
        };
        if self.gate.refused(refusal.clone()) {
            self.options.metrics.refused_versions_total.inc();
            tracing::error!(dataset, %version, %held, reason = refusal.reason, "a version is refused by this reader's guard");
        }
        if let Some(view) = confirmed.filter(|view| view.is_stale()) {
            let about = About { stale: false, ..view.about().clone() };
            match view.restate(about) {
                Ok(view) => match announcement.earlier(view.version()) {
                    Some(announcement) => self.recent.publish(view, &announcement),
                    // It is the snapshot that the refused one begins with: nobody acts on it before there is another.
                    None => self.slot.store(Some(Arc::new(view))),
                },
                Err(error) => tracing::warn!(dataset, %error, "a view cannot be marked confirmed"),
            }
            self.readable.send_modify(|readable| readable.stale = false);
        }
        self.readable.send_modify(|readable| {
            readable.refused = Some(refusal);
            readable.error = None;
        });
    }

    fn publish(&mut self, view: View, announcement: &Announcement, stale: bool, pinned: bool) {
        let version = view.version();
        self.merging.begin(&view, announcement, self.options.memory_limit);
        show_memory(&view, &self.options.metrics);
        self.earlier.note(&view, announcement);
        let positions = view.about().positions.clone();
        match stale {
            true => self.slot.store(Some(Arc::new(view))),
            false => self.recent.publish(view, announcement),
        }
        let snapshot = announcement.snapshot.as_ref().map_or(Version(0), |snapshot| snapshot.version);
        self.opener.restored.take_if(|(gone, _)| *gone != snapshot);
        let restored = self.opener.restored.as_ref().map(|(_, what)| what.clone());
        let metrics = &self.options.metrics;
        metrics.current_version.set(version.0 as i64);
        metrics.current_version_timestamp_seconds.set(announcement.announced_at as f64 / 1_000.0);
        let lag = match pinned {
            true => behind(&positions, &self.announced),
            false => 0,
        };
        self.readable.send_modify(|readable| {
            readable.pinned = pinned;
            readable.announced_at_ms = announcement.announced_at;
            readable.refused = None;
            readable.restored = restored;
            readable.version = version;
            readable.announced = readable.announced.max(version);
            readable.caught_up = announcement.caught_up;
            readable.stale = stale;
            readable.lag = lag;
            readable.error = None;
        });
    }

    fn mend(&mut self) {
        if let (Some(held), Some(last)) = (self.slot.load_full(), &self.last) {
            self.mending.begin(&held, last, &self.opener, &self.options.dataset);
            self.merging.begin(&held, &last.announcement, self.options.memory_limit);
        }
    }

    /// Damaged files were fetched again: the version that is held by now, on what came.
    async fn mended(&mut self, Mended { announced, opened, restored, damaged }: Mended) {
        match self.on_mended(opened).await {
            Ok(Some(view)) => {
                self.mending.done();
                damaged.clear(&view, &self.cache, &self.options.dataset);
                if restored.is_some() {
                    self.opener.restored = restored;
                }
                let restored = self.opener.restored.as_ref().map(|(_, what)| what.clone());
                show_memory(&view, &self.options.metrics);
                self.slot.store(Some(Arc::new(view)));
                self.recent.rebased();
                self.readable.send_modify(|readable| {
                    readable.restored = restored;
                    readable.error = None;
                });
            }
            // On what came the version that is held by now cannot be made.
            Ok(None) if self.slot.load().as_deref().is_some_and(|held| held.damaged().is_some()) => {
                self.mending.failed();
            }
            // Another base, or another history.
            Ok(None) => self.mending.done(),
            Err(error) => {
                let wait = self.mending.failed();
                self.failed(&announced.announcement, &error, wait);
            }
        }
    }

    /// The version that is held, made of the one that was mended and the deltas since.
    async fn on_mended(&mut self, opened: Result<View, Error>) -> Result<Option<View>, Error> {
        let view = opened?;
        let held = self.slot.load_full().filter(|held| held.damaged().is_some());
        let (Some(held), Some(last)) = (held, self.last.clone()) else { return Ok(None) };
        let Announced { topic_id, announcement, .. } = &*last;
        let is_held = |view: &View| {
            held.version() == view.version()
                && held.about().life == view.about().life
                && held.identity() == view.identity()
        };
        let rebased = || view.base().and_then(|base| held.rebase(base.clone()).ok());
        let view = if is_held(&view) {
            view
        } else if let Some(rebased) = rebased() {
            rebased
        } else if self.opener.follows(&view, *topic_id, announcement) {
            // What is held is on a base of its own, which a merge has made since.
            let view = self.opener.apply(&view, announcement).await?;
            // Who acts on each version was given them as they came.
            self.opener.passed.clear();
            view
        } else {
            return Ok(None);
        };
        if !is_held(&view) {
            return Ok(None);
        }
        let about = About { stale: held.is_stale(), ..view.about().clone() };
        let version = about.version;
        view.restate(about).map(Some).map_err(|source| Error::View { version, source })
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

    /// A merge is done: the same version, and those since, on a newer base, or in fewer runs.
    async fn merged(&mut self, merged: Merged) {
        let below = match (merged, self.slot.load_full()) {
            (Ok(Ok(done)), Some(held)) => done.put_below(held).await,
            (Ok(Ok(_)), None) => return,
            (Ok(Err(error)), _) => Ok(Err(error)),
            (Err(panic), _) => Err(panic),
        };
        let dataset = &self.options.dataset;
        match below {
            Ok(Ok((done, Some(view)))) => {
                show_memory(&view, &self.options.metrics);
                self.slot.store(Some(Arc::new(view)));
                self.merging.tidy(&done);
                self.recent.rebased();
            }
            Ok(Ok((_, None))) => {}
            Ok(Err(error)) => {
                let error = chain(&error);
                tracing::warn!(dataset, error, "merging failed; the overlay stays");
            }
            Err(panic) => tracing::error!(dataset, %panic, "merging panicked; the overlay stays"),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
