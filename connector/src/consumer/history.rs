//! The announcement topic, read once: from its beginning, or back from its end to the last valid announcement.
//!
//! ```text
//!  fold: beginning ----> end       every valid announcement, for a listing, or for one version of the past
//!  last:           <---- end       the newest, as the tail finds it
//!  open: announcement -> chain -> cache -> View
//! ```
//!
//! For who asks once and leaves (commands). Nothing here notes what was found, so a running process's cache says of the
//! newest version what it said before; blobs go into the cache and stay there for it.
//!
//! Owns: the way through the topic. Does not own: following it (`tail`), which announcements count (`succession`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::Options;
use crate::clock::{Clock, Entropy};
use crate::error::{Error, ErrorKind, Result};
use crate::format::announcement::{Announcement, Message};
use crate::format::succession::{Succession, Verdict, window_is_enough};
use crate::kafka::allowed::{Need, On, Operation};
use crate::kafka::{self, Admin, Kept, Polled, Poller, Tuning};
use crate::record::TopicId;
use crate::schema::Schema;
use crate::version::{Shard, Version};
use crate::view::{About, Cache, Fetcher, Identity, Past, View};

/// Longest time without any progress.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the topic may be trimmed beyond where reading stands before that is an error.
const MOST_TRIMS: u32 = 10;
/// How long the broker may hold back a fetch at the end of the topic: that end is what is waited for.
const FETCH_WAIT: Duration = Duration::from_millis(50);

/// An announcement, and the topic's life that it was read from.
#[derive(Clone, Debug)]
pub struct Found {
    /// Id of the announcement topic.
    pub topic_id: TopicId,
    /// Where it lies in it; `None` where it came out of the cache.
    pub offset: Option<i64>,
    /// It.
    pub announcement: Box<Announcement>,
    /// Its bytes.
    pub encoded: Vec<u8>,
}

/// Where a dataset's announcements and its control topic lie: all that it takes to ask about them.
#[derive(Clone, Debug)]
pub struct Topics {
    /// Dataset name.
    pub dataset: String,
    /// Kafka connection.
    pub kafka: kafka::Options,
    /// Announcement topic.
    pub announcements: String,
    /// Control topic.
    pub control: String,
    /// Time.
    pub clock: Clock,
    /// Chance.
    pub entropy: Entropy,
}

impl Topics {
    /// What the user of any reader needs to be allowed; docs/operations.md has the same list.
    pub fn needs(&self) -> Vec<Need> {
        let topic = |name: &String| On::Topic(name.clone());
        let need = |on, operation, without| Need { on, operation, without };
        vec![
            need(topic(&self.announcements), Operation::Read, "nothing can be read"),
            need(topic(&self.control), Operation::Read, "pins are not known"),
        ]
    }
}

/// The versions that a shard's topic holds, as far as they count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The oldest.
    pub first: Version,
    /// The newest.
    pub last: Version,
    /// The newest announcement's: blobs of older versions are kept for nobody.
    pub oldest_kept: Version,
}

impl Range {
    /// The oldest version that can be relied on.
    pub fn oldest(&self) -> Version {
        self.first.max(self.oldest_kept)
    }
}

/// Reads one dataset's announcements once. Reads only.
#[derive(Clone)]
pub struct History {
    options: Topics,
    topic_id: TopicId,
    shards: u32,
    admin: Admin,
}

impl History {
    /// Finds the announcement topic.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where Kafka does not answer, or the topic does not exist yet.
    pub async fn find(options: Topics) -> Result<History> {
        let topic = &options.announcements;
        let admin = Admin::new(&options.kafka).map_err(|error| failed(topic, error))?;
        let info = admin.describe(topic).await.map_err(|error| failed(topic, error))?;
        let info = info.ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                format!(
                    "announcement topic {topic} does not exist: no producer of {} has started",
                    options.dataset
                ),
            )
        })?;
        let shards = u32::try_from(info.partitions).unwrap_or(0);
        Ok(History { options, topic_id: info.id, shards, admin })
    }

    /// Id of the announcement topic.
    pub fn topic_id(&self) -> TopicId {
        self.topic_id
    }

    /// How many shards the topic has.
    pub fn shards(&self) -> u32 {
        self.shards
    }

    /// Folds the valid announcements of a shard, oldest first, into `state`.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where Kafka does not answer, or the end is not reached.
    pub async fn fold<T: Send + 'static>(
        &self,
        shard: Shard,
        state: T,
        mut step: impl FnMut(&mut T, Box<Announcement>) + Send + 'static,
    ) -> Result<T> {
        self.fold_found(shard, state, move |state, found| step(state, found.announcement)).await
    }

    async fn fold_found<T: Send + 'static>(
        &self,
        shard: Shard,
        state: T,
        mut step: impl FnMut(&mut T, Found) + Send + 'static,
    ) -> Result<T> {
        let ends = self.ends(shard).await?;
        let this = self.clone();
        let folded = blocking(move || {
            let mut state = state;
            let mut succession = Succession::default();
            this.read_on(shard, ends, |offset, value| {
                if let Some(found) = this.judge(&mut succession, offset, value) {
                    step(&mut state, found);
                }
                true
            })?;
            Ok(state)
        });
        folded.await.map_err(|error| failed(&self.options.announcements, error))
    }

    /// The last valid announcement of a shard; `None` if nothing is announced yet.
    ///
    /// # Errors
    /// As [`History::fold`].
    pub async fn last(&self, shard: Shard) -> Result<Option<Found>> {
        let ends = self.ends(shard).await?;
        let this = self.clone();
        let last = blocking(move || {
            let (options, topic) = (&this.options, &this.options.announcements);
            let mut poller = this.poller()?;
            let enough = |records: &[Kept]| {
                window_is_enough(
                    records
                        .iter()
                        .filter_map(|record| Some(Message::decode(record.value.as_deref()?).ok()?.step())),
                )
            };
            let (clock, deadline) = (&options.clock, options.clock.now() + PATIENCE);
            let partition = shard.0 as i32;
            // A command that is interrupted ends with its process.
            let stop = CancellationToken::new();
            let window =
                kafka::read_back(&mut poller, topic, partition, ends, clock, deadline, &stop, enough)?;
            let mut succession = Succession::default();
            let judged = window
                .records
                .into_iter()
                .filter_map(|record| this.judge(&mut succession, record.offset, record.value.as_deref()));
            Ok(judged.last())
        });
        last.await.map_err(|error| failed(&self.options.announcements, error))
    }

    /// The announcement of one version of a shard.
    ///
    /// # Errors
    /// As [`History::fold`]; [`ErrorKind::Rejected`] if the topic does not hold it, saying which versions it does.
    pub async fn version(&self, shard: Shard, version: Version) -> Result<Found> {
        let (found, range) = self.look_for(shard, version).await?;
        found.ok_or_else(|| self.no_such(&format!("version {version}"), range, version))
    }

    /// The announcement of one version of a shard, if the topic holds it, and what it holds; `None` where that is
    /// nothing.
    ///
    /// # Errors
    /// As [`History::fold`].
    pub async fn look_for(&self, shard: Shard, version: Version) -> Result<(Option<Found>, Option<Range>)> {
        self.search(shard, move |announcement| announcement.version == version).await
    }

    /// The announcement of the newest version of a shard that was announced at `ms` (milliseconds since the Unix epoch)
    /// or before.
    ///
    /// # Errors
    /// As [`History::version`].
    pub async fn at(&self, shard: Shard, ms: i64) -> Result<Found> {
        let (found, held) = self.search(shard, move |announcement| announcement.announced_at <= ms).await?;
        let time = humantime::format_rfc3339_millis(
            std::time::UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0)),
        );
        found.ok_or_else(|| self.no_such(&format!("version announced by {time}"), held, Version(0)))
    }

    /// The last valid announcement that is `wanted`, and what the topic holds.
    async fn search(
        &self,
        shard: Shard,
        wanted: impl Fn(&Announcement) -> bool + Send + 'static,
    ) -> Result<(Option<Found>, Option<Range>)> {
        let kept = (None, None);
        self.fold_found(shard, kept, move |(found, range): &mut (_, Option<Range>), next| {
            let Announcement { version: last, oldest_kept, .. } = *next.announcement;
            *range = Some(Range { first: range.map_or(last, |range| range.first), last, oldest_kept });
            if wanted(&next.announcement) {
                *found = Some(next);
            }
        })
        .await
    }

    fn no_such(&self, what: &str, range: Option<Range>, version: Version) -> Error {
        let dataset = &self.options.dataset;
        let why = match range {
            Some(Range { first, last, .. }) if version < first => {
                format!("it was cleaned; versions {first} to {last} are kept")
            }
            Some(Range { first, last, .. }) => {
                format!("{last} is the newest, and {first} the oldest that is kept")
            }
            None => "nothing is announced yet".to_owned(),
        };
        Error::new(ErrorKind::Rejected, format!("there is no {what} of dataset {dataset}: {why}"))
    }

    /// The announcement at an offset of a shard, whether it counts or not; `None` if there is none.
    ///
    /// # Errors
    /// As [`History::fold`].
    pub async fn lying_at(&self, shard: Shard, offset: i64) -> Result<Option<Found>> {
        let (low, end) = self.ends(shard).await?;
        if offset < low || offset >= end {
            return Ok(None);
        }
        let this = self.clone();
        let found = blocking(move || {
            let mut found = None;
            this.read_on(shard, (offset, end), |at, value| {
                if at == offset {
                    // Alone it is always the first of its life.
                    found = this.judge(&mut Succession::default(), at, value);
                }
                false
            })?;
            Ok(found)
        });
        found.await.map_err(|error| failed(&self.options.announcements, error))
    }

    async fn ends(&self, shard: Shard) -> Result<(i64, i64)> {
        let topic = &self.options.announcements;
        self.admin.watermarks(topic, shard.0 as i32).await.map_err(|error| failed(topic, error))
    }

    fn poller(&self) -> Result<Poller, kafka::Error> {
        let group = format!("stillwell.{}", self.options.dataset);
        Poller::new(&self.options.kafka, &Tuning::tail(&group, FETCH_WAIT))
    }

    /// Shows each record to `each`, until it says that it is enough, or to the end.
    fn read_on(
        &self,
        shard: Shard,
        (low, _): (i64, i64),
        mut each: impl FnMut(i64, Option<&[u8]>) -> bool,
    ) -> Result<(), kafka::Error> {
        let topic = &self.options.announcements;
        let clock = &self.options.clock;
        let mut poller = self.poller()?;
        poller.assign(&[(topic, shard.0 as i32, low)])?;
        let mut progress: Instant = clock.now();
        let (mut trimmed, mut cut) = (0, false);
        loop {
            if std::mem::take(&mut cut) {
                // The cleaner has trimmed it meanwhile: on from where it begins now.
                let (low, _) = Handle::current().block_on(self.admin.watermarks(topic, shard.0 as i32))?;
                poller.assign(&[(topic, shard.0 as i32, low)])?;
            }
            match poller.poll(Duration::from_millis(100)) {
                Some(Polled::Record { message, .. }) => {
                    if !each(message.offset(), message.value()) {
                        return Ok(());
                    }
                    progress = clock.now();
                }
                Some(Polled::End { .. }) => return Ok(()),
                Some(Polled::Lost { .. }) if trimmed < MOST_TRIMS => (trimmed, cut) = (trimmed + 1, true),
                Some(Polled::Lost { detail, .. }) => {
                    let doing = format!("reading {topic} from its beginning");
                    return Err(kafka::Error::Unavailable { doing, detail });
                }
                Some(Polled::Error(error)) if !error.is_transient() => return Err(error),
                Some(Polled::Error(error)) => tracing::debug!(%error, topic, "reading; trying again"),
                None => {}
            }
            if clock.now().saturating_duration_since(progress) > PATIENCE {
                return Err(kafka::Error::Unavailable {
                    doing: format!("reading {topic}[{shard}] to its end"),
                    detail: format!(
                        "nothing came for {PATIENCE:?}: the broker is slow, or a transaction hangs"
                    ),
                });
            }
        }
    }

    fn judge(&self, succession: &mut Succession, offset: i64, value: Option<&[u8]>) -> Option<Found> {
        let encoded = value.unwrap_or_default();
        match Message::decode(encoded) {
            Ok(message) if message.dataset() != self.options.dataset => {
                let (topic, found) = (&self.options.announcements, message.dataset());
                tracing::warn!(
                    topic,
                    offset,
                    found,
                    "a record of another dataset is passed over: see `announcements`"
                );
                None
            }
            Ok(Message::Announcement(announcement)) => {
                let verdict = succession.announcement(announcement.life, announcement.version);
                (verdict == Verdict::Valid).then(|| Found {
                    topic_id: self.topic_id,
                    offset: Some(offset),
                    announcement,
                    encoded: encoded.to_vec(),
                })
            }
            Ok(Message::Epoch(record)) => {
                succession.epoch(record.life);
                None
            }
            Err(error) => {
                let topic = &self.options.announcements;
                tracing::warn!(topic, offset, %error, "this record is not one of ours; it is passed over");
                None
            }
        }
    }
}

/// Opens the view of an announced version, by way of the cache that a running process shares.
///
/// # Errors
/// What [`Fetcher::open`] says; [`ErrorKind::Config`] where the cache cannot be written.
pub async fn open(options: &Options, found: &Found, stale: bool) -> Result<View> {
    let Found { topic_id, announcement, .. } = found;
    let cache = cache(options)?;
    let schema = Schema::parse(&announcement.schema).map_err(|error| {
        let doing = format!("reading the schema of version {}", announcement.version);
        Error::because(ErrorKind::Internal, doing, error)
    })?;
    let identity = Identity {
        dataset: Arc::from(options.dataset.as_str()),
        topic_id: *topic_id,
        shard: announcement.shard,
        shards: announcement.shards,
    };
    let about = About { stale, ..About::announced(announcement, Arc::new(schema)) };
    let inline = announcement.inline.clone().map(|inline| (announcement.version, inline));
    let fetcher = Fetcher::new(options.store.clone(), cache).telling(options.clock.clone());
    let view = match fetcher.open(&identity, &announcement.chain(), inline, about.clone()).await {
        Err(error) if error.is_gone() => {
            tracing::warn!(version = %announcement.version, %error, "a blob is gone; looking for older ones");
            let mut past = Past::new(options.kafka.clone(), &options.announcements, options.clock.clone());
            let restored = past.restore(&fetcher, &identity, announcement, about).await;
            restored.map(|restored| restored.view)
        }
        opened => opened,
    };
    view.map_err(|error| {
        let version = announcement.version;
        let error = Error::from(error);
        Error::because(
            error.kind(),
            format!("opening version {version} of dataset {}", options.dataset),
            error,
        )
    })
}

/// The announcement that a running process noted last in the cache, for when Kafka is away.
///
/// # Errors
/// [`ErrorKind::Config`] where the cache cannot be opened.
pub fn cached(options: &Options, shard: Shard) -> Result<Option<Found>> {
    let cached = cache(options)?.load_current(&options.dataset, shard)?;
    let Some((topic_id, encoded)) = cached else { return Ok(None) };
    Ok(match Message::decode(&encoded) {
        Ok(Message::Announcement(announcement)) => {
            Some(Found { topic_id, offset: None, announcement, encoded })
        }
        _ => None,
    })
}

fn cache(options: &Options) -> Result<Cache> {
    Cache::open(&options.cache_dir, options.cache_bytes).map_err(|error| {
        let doing = format!("opening the blob cache in {}", options.cache_dir.display());
        Error::because(ErrorKind::Config, doing, error)
    })
}

fn failed(topic: &str, error: kafka::Error) -> Error {
    Error::because(error.kind(), format!("reading the announcement topic {topic}"), error)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, kafka::Error> + Send + 'static,
) -> Result<T, kafka::Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(kafka::Error::Closed { doing: "reading announcements".to_owned() }),
        },
    }
}
