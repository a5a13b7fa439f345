//! `bench follow`: how long a reader takes from an announcement's commit to the version being readable; of a delta of 1,000
//! records, one version after another, and after pauses of more than twice the longest wait of the reader's: how it waits then
//! is how it waits after an hour, and by its own clock an hour has passed. Transactions of a topic beside go before, since a
//! broker compiles its code as it is first used.
//!
//! The delta is fetched from a folder, as one that is larger than 64 KiB; of each three that come close behind one another, one
//! comes within its announcement, as a producer sends one of these records, which compress to less than that.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::made::{Made, key};
use super::topic::{Announcer, Filled, failed};
use super::{Measured, Scratch, Settings, measured, ms, quantile};
use crate::clock::Clock;
use crate::consumer::Consumer;
use crate::kafka::{Polled, Poller, Tuning};
use crate::version::{DeltaRef, Version};
use crate::{Error, ErrorKind, Result};

const CHANGES: u64 = 1_000;
/// Versions that come close behind one another; the first tenth of them warms all up and is not counted. With those after a
/// pause a chain that readers take.
const CLOSE: u64 = 360;
/// Of so many of them one comes within its announcement.
const INLINE_EVERY: u64 = 3;
const APART: Duration = Duration::from_millis(30);
/// Versions that come after a pause.
const LATE: u64 = 100;
const MAX_BACKOFF: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(1_200);
const HOUR: Duration = Duration::from_secs(3_600);
/// Transactions before the first version.
const WARM: u64 = 1_000;
const PATIENCE: Duration = Duration::from_secs(30);

/// From commit to readable, and to the bare reader being told, in milliseconds.
#[derive(Default)]
struct Times {
    ours: Vec<f64>,
    bare: Vec<f64>,
}

impl Times {
    fn line(&mut self, metric: &str, share: f64) -> Measured {
        let baseline = ("a bare reader is told, ms", quantile(&mut self.bare, share));
        measured("follow", metric, (quantile(&mut self.ours, share), "ms"), baseline)
    }
}

/// By where the delta comes from, and when.
#[derive(Default)]
struct Followed {
    close: Times,
    inline: Times,
    late: Times,
}

pub(super) async fn run(settings: &Settings) -> Result<Vec<Measured>> {
    let clock = Clock::system();
    let mut topic = Filled::new(settings, 0).await?;
    let followed = follow(&mut topic, settings, &clock).await;
    topic.delete().await;
    let Followed { mut close, mut inline, mut late } = followed?;
    let mut lines = vec![close.line("readable_p50_ms", 0.5), close.line("readable_p99_ms", 0.99)];
    // Where records are so large that none comes in this way there is nothing to tell.
    if !inline.ours.is_empty() {
        lines.push(inline.line("readable_p50_ms_inline", 0.5));
        lines.push(inline.line("readable_p99_ms_inline", 0.99));
    }
    lines.push(late.line("readable_p50_ms_after_a_pause", 0.5));
    lines.push(late.line("readable_p99_ms_after_a_pause", 0.99));
    Ok(lines)
}

async fn follow(topic: &mut Filled, settings: &Settings, clock: &Clock) -> Result<Followed> {
    let dataset = topic.name.clone();
    let (announcements, topic_id) = topic.make("announcements").await?;
    topic.make("control").await?;
    let (beside, _) = topic.make("beside").await?;
    let topic = &*topic;
    let scratch = Scratch::new("follow")?;
    let made = Made::of(scratch.path(), settings, &dataset, topic_id).await?;
    let (first, _) = made.stored(1, 1).await?;
    let mut announcer = tokio::task::block_in_place(|| {
        let record = vec![0; 8 << 10];
        let mut before = Announcer::new(topic, beside, clock)?;
        (0..WARM).try_for_each(|_| before.announce(&record).map(drop))?;
        let mut announcer = Announcer::new(topic, announcements.clone(), clock)?;
        announcer.announce(&made.announcement(clock, first, None, Vec::new()))?;
        Ok::<_, Error>(announcer)
    })?;

    // The reader's own clock, by which an hour passes before each version that comes late.
    let hours = Clock::manual(clock.wall_ms());
    let consumer = Consumer::builder(&*dataset)
        .clock(hours.clone())
        .kafka(topic.kafka.clone())
        .blobs(format!("file://{}", scratch.path().join("blobs").display()))
        .cache_dir(scratch.path().join("reader"))
        .max_backoff(MAX_BACKOFF)
        .start();
    let consumer = tokio::time::timeout(PATIENCE, consumer)
        .await
        .map_err(|late| Error::because(ErrorKind::Unavailable, "the reader had no version", late))??;
    let told = bare(topic, &announcements, clock)?;
    let mut followed = Followed::default();
    let mut chain: Vec<DeltaRef> = Vec::new();
    let mut readable = consumer.watch();
    for number in 0..CLOSE + LATE {
        let version = number + 2;
        let (delta, within) = made.stored(version, CHANGES.min(settings.records / 2)).await?;
        let inline = within.filter(|_| number < CLOSE && number % INLINE_EVERY == 0);
        let is_inline = inline.is_some();
        chain.push(delta.clone());
        let encoded = made.announcement(clock, delta, inline, chain.clone());
        let (apart, passed) = if number < CLOSE { (APART, APART) } else { (PAUSE, HOUR) };
        tokio::time::sleep(apart / 2).await;
        hours.advance(passed);
        tokio::time::sleep(apart / 2).await;
        let at = tokio::task::block_in_place(|| announcer.announce(&encoded))?;
        let became = readable.wait_for(|readable| readable.version >= Version(version));
        let came = tokio::time::timeout(PATIENCE, became).await.is_ok_and(|came| came.is_ok());
        let took = ms(clock.now().saturating_duration_since(at));
        if !came || consumer.view().get(key(version % settings.records))?.is_none() {
            let doing = format!("version {version} was not readable within {PATIENCE:?}");
            return Err(Error::new(ErrorKind::Unavailable, doing));
        }
        let seen = tokio::task::block_in_place(|| told.recv_timeout(PATIENCE)).map_err(|error| {
            Error::because(ErrorKind::Unavailable, "the bare reader was told of nothing", error)
        })?;
        if number < CLOSE / 10 {
            continue;
        }
        let times = match number < CLOSE {
            true if is_inline => &mut followed.inline,
            true => &mut followed.close,
            false => &mut followed.late,
        };
        times.ours.push(took);
        times.bare.push(ms(seen.saturating_duration_since(at)));
    }
    consumer.shutdown().await?;
    Ok(followed)
}

/// When a reader that does nothing else was told of each announcement but the first.
fn bare(topic: &Filled, announcements: &str, clock: &Clock) -> Result<mpsc::Receiver<Instant>> {
    let mut poller =
        Poller::new(&topic.kafka, &Tuning::tail("stillwell.bench", MAX_BACKOFF)).map_err(failed)?;
    poller.assign(&[(announcements, 0, 0)]).map_err(failed)?;
    let (tell, told) = mpsc::channel();
    let (clock, end) = (clock.clone(), clock.now() + 10 * PATIENCE);
    let thread = std::thread::Builder::new().name("bare".into()).spawn(move || {
        let mut seen = 0;
        while seen <= CLOSE + LATE && clock.now() < end {
            if let Some(Polled::Record { .. }) = poller.poll(Duration::from_millis(100)) {
                seen += 1;
                // Nobody listens any more: the bench is over.
                if seen > 1 && tell.send(clock.now()).is_err() {
                    return;
                }
            }
        }
    });
    thread.map_err(|error| Error::because(ErrorKind::Unavailable, "cannot start a thread", error))?;
    Ok(told)
}
