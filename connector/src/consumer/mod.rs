//! The consumer side of one dataset: announcements in, readable views out.
//!
//! ```text
//!  tail ==Seen==> pin ==Seen==> follow -> guard --swaps--> slot <--loads-- view()
//!  thread ............. ^ ........ thread   |     \        (lock-free)     any thread
//!  control --Told------'                    |      '--> recent ==each version==> listen (a thread each), event streams
//!  thread                                   '--Judged--> publish (task): refusals, into the control topic
//! ```
//!
//! Tail, pin and follow share one thread. An announcement that comes wakes it, and it has the version readable before it waits
//! again, where the delta is at hand: to wake a thread takes a tenth of a millisecond, and two or three where all processors are busy,
//! and a runtime that is busy with other things does not delay it. What may wait for others (a store, Kafka), or takes longer than some
//! milliseconds, is done on other threads; the cache's disk alone is waited for.
//!
//! Owns: the dataset's reading tasks and the slot with the newest view. Does not own: the view itself (`view/`), the
//! writing side (`producer`), HTTP.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

pub mod options;
pub mod builder;
pub mod tail;
pub mod control;
pub mod pin;
pub mod open;
pub mod noted;
pub mod readable;
pub mod next;
pub mod cached;
pub mod merging;
pub mod mending;
pub mod follow;
pub mod guard;
mod shelf;
pub mod recent;
pub mod listen;
pub mod reader;
pub mod history;
pub mod earlier;
pub mod steer;

pub use builder::ConsumerBuilder;
pub use guard::{Bounds, Guard, Guards};
pub use options::Options;
pub use pin::{Fixed, PinStatus, Pinned};
pub use reader::Reader;
pub use steer::Steering;

use crate::error::{Error, ErrorKind, Result};
use crate::gauge::Budget;
use crate::record::TopicId;
use crate::schema::Schema;
use crate::version::{Shard, Version};
use crate::view::{Cache, Fetcher, Identity, View};
use control::{ControlTail, Told};
use earlier::Earlier;
use follow::{Follower, Readable, Slot};
use guard::{Gate, Judged};
use listen::{Report, Runner};
use pin::PinStage;
use recent::Recent;
use tail::{Tail, TailStatus};

/// Announcements that wait for the follower: it skips to the newest, so more would only be memory.
const ANNOUNCEMENTS: usize = 16;

/// What the consumer is doing, for health and for who embeds it.
#[derive(Clone, Debug)]
pub struct Status {
    /// The newest version.
    pub readable: Readable,
    /// The tail.
    pub tail: TailStatus,
    /// What it is pinned to, and what readers refuse.
    pub pin: PinStatus,
}

/// A running consumer of one dataset. Dropping it cancels its tasks without waiting; [`Consumer::shutdown`] waits.
#[derive(Debug)]
pub struct Consumer {
    reader: Reader,
    cache: Cache,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Consumer {
    /// A builder for the consumer of `dataset`.
    pub fn builder(dataset: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(dataset)
    }

    /// Starts the consumer and returns at once; [`Consumer::ready`] waits for the first version.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where the cache directory cannot be written, or librdkafka refuses a property.
    pub fn spawn(options: Options) -> Result<Consumer> {
        Consumer::spawn_in(options, None)
    }

    /// The same in a cache that others of this process have open: what one of them holds, none of them evicts.
    ///
    /// # Errors
    /// As [`Consumer::spawn`].
    pub fn spawn_in(options: Options, cache: Option<Cache>) -> Result<Consumer> {
        // Here, since the tail tries all again that it meets: a file of keys that is just being exchanged passes.
        options.kafka.check().map_err(|error| {
            Error::because(error.kind(), format!("starting the consumer of {}", options.dataset), error)
        })?;
        let opened = cache.map_or_else(|| Cache::open(&options.cache_dir, options.cache_bytes), Ok);
        let cache = opened.map_err(|error| {
            let doing = format!("opening the blob cache in {}", options.cache_dir.display());
            Error::because(ErrorKind::Config, doing, error)
        })?;
        let slot: Slot = Arc::new(ArcSwapOption::empty());
        let (readable_in, readable) = watch::channel(Readable::default());
        let (tail_in, tail_status) = watch::channel(tail::unknown());
        let remembered = cache.load_pin(&options.dataset).unwrap_or_else(|error| {
            tracing::warn!(dataset = options.dataset, %error, "the cached pin cannot be read");
            None
        });
        let remembered = remembered.and_then(|bytes| control::decoded(&bytes));
        let (pin_in, pin_status) = watch::channel(PinStatus::remembered(&options, remembered.as_ref()));
        let control_topic = cache.load_pin_topic(&options.dataset).unwrap_or_default();
        let (told, told_in) = watch::channel(Told::remembered(remembered, control_topic));
        let (judged, judged_in) = watch::channel(Judged::default());
        let (seen, seen_in) = mpsc::channel(ANNOUNCEMENTS);
        let (held, held_in) = mpsc::channel(ANNOUNCEMENTS);
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        // A runtime that ends before its reader drops its tasks first, then its timers, and waits for its threads: by that they are
        // told to end.
        let (told_to_end, with_it) = (stop.clone(), stop.clone().drop_guard());
        tasks.spawn(async move {
            told_to_end.cancelled().await;
            drop(with_it);
        });
        let memory = Budget::new(options.memory_limit);
        let fetcher = Fetcher::new(options.store.clone(), cache.clone())
            .holding(options.hold.clone())
            .charging(Some(&memory));
        let recent =
            Recent::new(slot.clone(), Some(fetcher.clone()), !options.guards.is_empty(), stop.clone());
        let (mut reports, mut runners) = (Vec::new(), Vec::new());
        for listening in &options.listeners {
            let report = Report::new(&listening.name, &options.metrics);
            reports.push(report.clone());
            let runner = Runner::new(listening.clone(), &options, recent.clone(), report, stop.clone());
            let runner = runner.map_err(|error| {
                let doing = format!("starting the listener {} of {}", listening.name, options.dataset);
                Error::because(ErrorKind::Config, doing, error)
            })?;
            runners.push(runner);
        }
        let tail = Tail::new(options.clone(), Shard(0), seen, tail_in);
        for runner in runners {
            tasks.spawn_blocking(move || runner.run());
        }
        let control = ControlTail::new(options.clone(), told);
        let stop_control = stop.clone();
        tasks.spawn_blocking(move || control.run(&stop_control));
        let pin =
            PinStage::new(options.clone(), Shard(0), cache.clone(), seen_in, told_in.clone(), held, pin_in);
        let told_follower = told_in.clone();
        if !options.guards.is_empty() {
            tasks.spawn(guard::publish(options.clone(), Shard(0), judged_in, told_in, stop.clone()));
        }
        let earlier = Earlier::new(fetcher, options.clock.clone());
        let gate = Gate::new(options.guards.clone(), judged);
        let follower = Follower::new(
            options.clone(),
            Shard(0),
            cache.clone(),
            recent.clone(),
            readable_in,
            earlier.clone(),
            (told_follower, tail_status.clone(), gate),
        );
        let stop_line = stop.clone();
        tasks.spawn_blocking(move || {
            let followed =
                async { tokio::join!(pin.run(stop_line.clone()), follower.run(held_in, stop_line.clone())) };
            // A fetch that hangs must not hold up a shutdown. The tail ends by itself, once its clients have.
            let until_stopped = async {
                tokio::select! {
                    biased;
                    () = stop_line.cancelled() => {}
                    _ = followed => {}
                }
            };
            // Asks Kafka first: that takes longest.
            Handle::current().block_on(async { tokio::join!(tail.run(&stop_line), until_stopped) });
        });
        let reader = Reader::new(&options, (recent, reports), readable, tail_status, pin_status, earlier);
        Ok(Consumer { reader, cache, tasks, stop })
    }

    /// What reads the dataset, for others to hold.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Its cache, for others of this process to share.
    #[doc(hidden)]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Waits until a version is readable that may be served: a caught-up one confirmed by the tail, or what the
    /// options `ready_when_any` and `serve_stale` allow.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] if it is shut down meanwhile.
    pub async fn ready(&self) -> Result<()> {
        self.reader.ready().await
    }

    /// Whether the newest view may be served now: the answer of `/ready`.
    pub fn is_ready(&self) -> bool {
        self.reader.not_ready().is_none()
    }

    /// The newest readable version: immutable, never locks, stays readable as long as it is held. Before the first
    /// one is readable, version 0, which is empty.
    pub fn view(&self) -> View {
        self.reader.view()
    }

    /// The view of a version: the newest, or one before it back to the newest snapshot, opened out of the cache.
    ///
    /// # Errors
    /// As [`Reader::at`].
    pub async fn at(&self, version: Version) -> Result<View> {
        self.reader.at(version).await
    }

    /// Follows what is readable.
    pub fn watch(&self) -> watch::Receiver<Readable> {
        self.reader.watch()
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        self.reader.status()
    }

    /// Ends the hold of a listener of which too many sets were given up ([`Tries::breaker_threshold`](listen::Tries)): what it
    /// does not handle becomes letters again, until it has handled as many, or the process ends. What it was held for; `None`
    /// where it was not, or there is none of that name.
    pub fn let_through(&self, listener: &str) -> Option<String> {
        self.reader.listener(listener)?.let_through()
    }

    /// Stops its tasks and waits for them. Views that are held stay readable.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] if one of them had panicked.
    pub async fn shutdown(mut self) -> Result<()> {
        self.stop.cancel();
        let (mut outcome, mut ended_before) = (Ok(()), false);
        while let Some(ended) = self.tasks.join_next().await {
            ended_before |= ended.as_ref().is_err_and(JoinError::is_cancelled);
            if let Err(panic) = ended
                && panic.is_panic()
            {
                outcome = Err(Error::because(
                    ErrorKind::Internal,
                    format!("a task of the consumer of {} panicked", self.reader.dataset()),
                    panic,
                ));
            }
        }
        // Of a runtime that ended first the timers were gone: whoever asked one just then panicked, and no harm is done.
        if ended_before { Ok(()) } else { outcome }
    }
}

/// Version 0 of a dataset of which nothing is known yet.
fn nothing(dataset: &str) -> View {
    let identity =
        Identity { dataset: Arc::from(dataset), topic_id: TopicId::default(), shard: Shard(0), shards: 1 };
    View::empty(identity, Arc::new(Schema::raw()))
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[cfg(test)]
mod tests;
