//! `bench propagate`: how long a record takes from being sent to being readable, at 1,000 records a second, with the
//! low-latency profile; and what each stage takes of that, of the oldest record in each version.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::Histogram;
use tokio::sync::oneshot;

use super::made::{json, key};
use super::profiled::configured;
use super::topic::{Filled, failed};
use super::{Measured, Scratch, Settings, measured, ms, quantile};
use crate::clock::Clock;
use crate::consumer::Consumer;
use crate::kafka::{Outcome, Outgoing, Polled, Poller, Sender, Transaction, Tuning};
use crate::producer::Producer;
use crate::producer::lap::STAGES;
use crate::telemetry::{ConsumerMetrics, ProducerMetrics};
use crate::{Error, ErrorKind, Result};

const A_SECOND: u64 = 1_000;
const FOR: Duration = Duration::from_secs(10);
/// Records before the ones that count, of ours and of the baseline: a topic's first transactions load its coordinator
/// and warm the broker's code, half a second that nobody sees again.
const WARM: u64 = 1_000;
/// Records of one bare transaction: what comes in ten milliseconds, about the time that one takes.
const IN_A_TRANSACTION: u64 = 10;
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn run(settings: &Settings) -> Result<Vec<Measured>> {
    let clock = Clock::system();
    let mut topic = Filled::new(settings, 0).await?;
    let dataset = topic.name.clone();
    for suffix in ["announcements", "control", "dlq"] {
        topic.and(format!("{dataset}.{suffix}"));
    }
    let (mut ours, stages) = propagate(&topic, settings, &clock).await?;
    let topic = Arc::new(topic);
    let (bare, timer, value_bytes) = (topic.clone(), clock.clone(), settings.value_bytes);
    let bare = tokio::task::spawn_blocking(move || transactions(&bare, value_bytes, &timer));
    let mut bare =
        bare.await.map_err(|error| Error::because(ErrorKind::Internal, "the baseline panicked", error))??;
    if let Some(topic) = Arc::into_inner(topic) {
        topic.delete().await;
    }
    let mean = ours.iter().sum::<f64>() / ours.len().max(1) as f64;
    let whole = [("p50_ms", 0.5), ("p99_ms", 0.99)].map(|(metric, share)| {
        let baseline = ("a bare transaction, begun to seen, ms", quantile(&mut bare, share));
        measured("propagate", metric, (quantile(&mut ours, share), "ms"), baseline)
    });
    let stages = stages.into_iter().map(|(stage, took)| {
        let baseline = ("all of the way, mean, ms", mean);
        measured("propagate", &format!("{stage}_ms"), (took, "ms"), baseline)
    });
    Ok(whole.into_iter().chain(stages).collect())
}

/// What each stage has taken so far, in seconds, and of how many versions; last the reader, from announced to readable.
fn stages(writes: &ProducerMetrics, reads: &ConsumerMetrics) -> Vec<(&'static str, f64, u64)> {
    let of = |histogram: &Histogram| (histogram.get_sample_sum(), histogram.get_sample_count());
    let writer = STAGES.iter().map(|stage| (*stage, writes.publish_stage_seconds.with(&[stage])));
    let all = writer.chain([("reader", reads.processing_latency_seconds.clone())]);
    all.map(|(stage, histogram)| {
        let (sum, count) = of(&histogram);
        (stage, sum, count)
    })
    .collect()
}

/// The time of each record that counts, and the mean time of each stage, in milliseconds.
async fn propagate(
    topic: &Filled,
    settings: &Settings,
    clock: &Clock,
) -> Result<(Vec<f64>, Vec<(&'static str, f64)>)> {
    let scratch = Scratch::new("propagate")?;
    let (writes, reads) = configured("low-latency", topic, &topic.name, &scratch)?;
    let metrics = (writes.metrics.clone(), reads.metrics.clone());
    let producer = Producer::start(writes).await?;
    let consumer = Consumer::spawn(reads)?;
    consumer.ready().await?;
    let count = WARM + FOR.as_secs() * A_SECOND;
    let (sent, mut received) = tokio::sync::mpsc::unbounded_channel::<Instant>();
    // What is measured begins where the record is sent, and not where its client has waited for others, as the baseline's
    // does not either; a millisecond, since a request for each record would take more of the machine than it saves.
    let mut sending = topic.kafka.clone();
    sending.properties.insert("linger.ms".into(), "1".into());
    let sender = Sender::new(&sending).map_err(failed)?;
    let send = async {
        let mut tick = tokio::time::interval(Duration::from_secs(1) / A_SECOND as u32);
        let mut last = None;
        for number in 0..count {
            tick.tick().await;
            let (key, value) = (key(number), json(number, settings.value_bytes));
            let record = Outgoing {
                topic: &topic.name,
                key: Some(key.as_bytes()),
                value: Some(value.as_bytes()),
                ..Outgoing::default()
            };
            let _ = sent.send(clock.now());
            last = Some(sender.enqueue(&record).await.map_err(failed)?);
        }
        match last {
            Some(last) => last.await.map(|_| ()).map_err(failed),
            None => Ok(()),
        }
    };
    let watch = async {
        let mut readable = consumer.watch();
        let mut times = Vec::new();
        let mut before = Vec::new();
        let mut waiting = received.recv().await;
        while let Some(at) = waiting {
            if times.len() as u64 == WARM && before.is_empty() {
                before = stages(&metrics.0, &metrics.1);
            }
            let view = consumer.view();
            if view.get(key(times.len() as u64))?.is_some() {
                times.push(ms(clock.now() - at));
                waiting = if times.len() as u64 == count { None } else { received.recv().await };
                continue;
            }
            let changed = tokio::time::timeout(PATIENCE, readable.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                let doing = format!("record {} was not readable within {PATIENCE:?}", times.len());
                return Err(Error::new(ErrorKind::Unavailable, doing));
            }
        }
        let since = stages(&metrics.0, &metrics.1).into_iter().zip(before);
        let mean = |((stage, sum, count), (_, sum_then, count_then)): ((_, f64, u64), (_, f64, u64))| {
            (stage, (sum - sum_then) * 1e3 / count.saturating_sub(count_then).max(1) as f64)
        };
        Ok((times, since.map(mean).collect()))
    };
    let ((), (times, stages)) = tokio::try_join!(send, watch)?;
    producer.shutdown().await?;
    consumer.shutdown().await?;
    Ok((times.into_iter().skip(WARM as usize).collect(), stages))
}

/// The same records by bare transactions, begun to seen by a read_committed reader. Blocks.
fn transactions(topic: &Filled, value_bytes: u64, clock: &Clock) -> Result<Vec<f64>> {
    let mut transaction =
        Transaction::new(&topic.kafka, &format!("{}/bare", topic.name), clock.clone()).map_err(failed)?;
    transaction.init(PATIENCE).map_err(failed)?;
    let tuning = Tuning::tail("stillwell.bench", Duration::from_millis(500));
    let mut poller = Poller::new(&topic.kafka, &tuning).map_err(failed)?;
    poller.assign(&[(&topic.name, 0, 0)]).map_err(failed)?;
    let earlier = WARM + FOR.as_secs() * A_SECOND;
    let (report, reported) = oneshot::channel();
    let (begun, begun_in) = std::sync::mpsc::channel::<Instant>();
    let reader_clock = clock.clone();
    std::thread::scope(|scope| -> Result<Vec<f64>> {
        scope.spawn(move || {
            let mut times = Vec::new();
            let mut skipped = 0;
            while (times.len() as u64) < earlier {
                let Some(Polled::Record { .. }) = poller.poll(PATIENCE) else { continue };
                if skipped < earlier {
                    skipped += 1;
                    continue;
                }
                let Ok(at) = begun_in.recv() else { break };
                times.push(ms(reader_clock.now() - at));
            }
            let _ = report.send(times.split_off(times.len().min(WARM as usize)));
        });
        let start = clock.now();
        for round in 0..earlier / IN_A_TRANSACTION {
            let due = start + Duration::from_secs(1) * (round * IN_A_TRANSACTION) as u32 / A_SECOND as u32;
            std::thread::park_timeout(due.saturating_duration_since(clock.now()));
            let at = clock.now();
            transaction.begin().map_err(failed)?;
            for number in 0..IN_A_TRANSACTION {
                let number = round * IN_A_TRANSACTION + number;
                let (key, value) = (key(number), json(number, value_bytes));
                let record = Outgoing {
                    topic: &topic.name,
                    key: Some(key.as_bytes()),
                    value: Some(value.as_bytes()),
                    ..Outgoing::default()
                };
                let _ = begun.send(at);
                transaction.send(&record, PATIENCE).map_err(failed)?;
            }
            match transaction.commit(PATIENCE) {
                Outcome::Committed => {}
                Outcome::Aborted(error)
                | Outcome::Unknown(error)
                | Outcome::Fenced(error)
                | Outcome::Fatal(error) => {
                    return Err(failed(error));
                }
            }
        }
        drop(begun);
        reported.blocking_recv().map_err(|error| {
            Error::because(ErrorKind::Internal, "the reader of bare transactions ended", error)
        })
    })
}
