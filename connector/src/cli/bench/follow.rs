//! `bench follow`: how long a reader takes from an announcement's commit to the version being readable; of a delta of 1,000
//! records in a folder, one version after another, and the first after a pause longer than any wait of the reader's.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::made::{Made, key};
use super::topic::{Filled, failed};
use super::{Measured, Scratch, Settings, measured, ms, quantile};
use crate::clock::Clock;
use crate::consumer::Consumer;
use crate::format::announcement;
use crate::kafka::{Outcome, Outgoing, Polled, Poller, Transaction, Tuning};
use crate::version::{DeltaRef, Shard, Version};
use crate::{Error, ErrorKind, Result};

const CHANGES: u64 = 1_000;
/// Versions that come close behind one another; the first tenth of them warms all up and is not counted.
const CLOSE: u64 = 300;
const APART: Duration = Duration::from_millis(30);
/// Versions that come after a pause.
const LATE: u64 = 10;
const MAX_BACKOFF: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(2_500);
const PATIENCE: Duration = Duration::from_secs(30);

/// From commit to readable, and to the bare reader being told, in milliseconds.
type Times = (Vec<f64>, Vec<f64>);

pub(super) async fn run(settings: &Settings) -> Result<Vec<Measured>> {
    let clock = Clock::system();
    let mut topic = Filled::new(settings, 0).await?;
    let followed = follow(&mut topic, settings, &clock).await;
    topic.delete().await;
    let (mut close, mut late) = followed?;
    let baseline = "a bare reader is told, ms";
    let line = |metric: &str, (ours, bare): &mut Times, share| {
        measured("follow", metric, (quantile(ours, share), "ms"), (baseline, quantile(bare, share)))
    };
    Ok(vec![
        line("readable_p50_ms", &mut close, 0.5),
        line("readable_p99_ms", &mut close, 0.99),
        line("readable_p50_ms_after_a_pause", &mut late, 0.5),
        line("readable_slowest_ms_after_a_pause", &mut late, 1.0),
    ])
}

async fn follow(topic: &mut Filled, settings: &Settings, clock: &Clock) -> Result<(Times, Times)> {
    let dataset = topic.name.clone();
    let (announcements, topic_id) = topic.make("announcements").await?;
    topic.make("control").await?;
    let scratch = Scratch::new("follow")?;
    let made = Made::of(scratch.path(), settings, &dataset, topic_id).await?;
    let mut transaction =
        Transaction::new(&topic.kafka, &format!("{dataset}/follow"), clock.clone()).map_err(failed)?;
    transaction.init(PATIENCE).map_err(failed)?;
    let (announced_key, clock) = (announcement::key(&dataset, Shard(0)), clock.clone());
    let mut announce = |encoded: Vec<u8>| -> Result<Instant> {
        transaction.begin().map_err(failed)?;
        let record = Outgoing {
            topic: &announcements,
            key: Some(announced_key.as_bytes()),
            value: Some(&encoded),
            ..Outgoing::default()
        };
        transaction.send(&record, PATIENCE).map_err(failed)?;
        match transaction.commit(PATIENCE) {
            Outcome::Committed => Ok(clock.now()),
            Outcome::Aborted(error)
            | Outcome::Unknown(error)
            | Outcome::Fenced(error)
            | Outcome::Fatal(error) => Err(failed(error)),
        }
    };
    let (first, _) = made.stored(1, 1).await?;
    tokio::task::block_in_place(|| announce(made.announcement(&clock, first, None, Vec::new())))?;

    let consumer = Consumer::builder(&*dataset)
        .kafka(topic.kafka.clone())
        .blobs(format!("file://{}", scratch.path().join("blobs").display()))
        .cache_dir(scratch.path().join("reader"))
        .max_backoff(MAX_BACKOFF)
        .start()
        .await?;
    let told = bare(topic, &announcements, &clock)?;
    let (mut close, mut late) = (Times::default(), Times::default());
    let mut chain: Vec<DeltaRef> = Vec::new();
    let mut readable = consumer.watch();
    for number in 0..CLOSE + LATE {
        let version = number + 2;
        let (delta, inline) = made.stored(version, CHANGES.min(settings.records / 2)).await?;
        chain.push(delta.clone());
        let encoded = made.announcement(&clock, delta, inline, chain.clone());
        tokio::time::sleep(if number < CLOSE { APART } else { PAUSE }).await;
        let at = tokio::task::block_in_place(|| announce(encoded))?;
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
        let (ours, bare) = if number < CLOSE { &mut close } else { &mut late };
        ours.push(took);
        bare.push(ms(seen.saturating_duration_since(at)));
    }
    consumer.shutdown().await?;
    Ok((close, late))
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
