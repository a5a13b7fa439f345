//! `bench ingest`: records from Kafka into the log, durable.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::topic::{Bare, Compared, Filled};
use super::{Measured, Scratch, Settings};
use crate::clock::Clock;
use crate::codec::{Format, KeyRule};
use crate::format::origin::Origin;
use crate::gauge::Pressure;
use crate::kafka::{Poller, Tuning};
use crate::producer::intake::Intake;
use crate::producer::log::{self, Log};
use crate::producer::pace::Pace;
use crate::producer::source::Source;
use crate::producer::storm::Storm;
use crate::producer::validate::{Misfits, Validator};
use crate::producer::{self};
use crate::record::TopicId;
use crate::schema::Schema;
use crate::telemetry::ProducerMetrics;
use crate::{Error, ErrorKind, Result};

const ROUNDS: usize = 7;
const DEADLINE: Duration = Duration::from_secs(600);

pub(super) fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::because(ErrorKind::Unavailable, "benching the log", error)
}

pub(super) async fn run(settings: &Settings) -> Result<Vec<Measured>> {
    let clock = Clock::system();
    let topic = Arc::new(Filled::new(settings, settings.records).await?);
    let mut compared = Compared::default();
    for _ in 0..ROUNDS {
        compared.poll.push(topic.bare(Bare::Poll, settings.records, &clock).await?);
        compared.batches.push(topic.bare(Bare::Batches, settings.records, &clock).await?);
        compared.ours.push(settings.records as f64 / round(&topic, settings.records, &clock).await?);
    }
    if let Some(topic) = Arc::into_inner(topic) {
        topic.delete().await;
    }
    Ok(compared.lines("ingest"))
}

/// What the log is of.
pub(super) fn origin() -> Origin {
    Origin::of((TopicId::default(), "bench"), &Schema::raw(), &Format::raw(), &KeyRule::Kafka)
}

/// Seconds from the first record received until all are durable.
async fn round(topic: &Filled, records: u64, clock: &Clock) -> Result<f64> {
    let scratch = Scratch::new("ingest")?;
    let (log, took) = fill(topic, scratch.path(), records, clock).await?;
    log.close().await.map_err(failed)?;
    Ok(took)
}

/// A log in `dir` with all of the topic's records, durable and in no version; and the seconds from the first received on.
pub(super) async fn fill(topic: &Filled, dir: &Path, records: u64, clock: &Clock) -> Result<(Log, f64)> {
    let metrics = ProducerMetrics::detached();
    let log = Log::open(dir, log::Options::new(clock.clone())).await.map_err(failed)?;
    let start = topic.start().await?;
    let schema = Arc::new(Schema::raw());
    let from = log.resume(&origin(), std::slice::from_ref(&start)).await.map_err(failed)?;
    let misfits = Misfits::default();
    let validator =
        Validator::new(Format::raw(), KeyRule::Kafka, schema, metrics.clone(), misfits).map_err(failed)?;
    let poller = Poller::new(&topic.kafka, &Tuning::source("stillwell.bench", 64 << 20))
        .map_err(super::topic::failed)?;
    let appender = log.appender();
    let (status, _) = tokio::sync::watch::channel(producer::Status::default());
    let pace = Pace::new(producer::Pacing::default(), clock.clone());
    let storm = Storm::new(&producer::Reliability::default());
    let intake = Intake::new((log.clone(), storm), Pressure::default(), pace, status, metrics.clone());
    let source = Source::new(poller, &from, validator, appender, intake, clock.clone(), metrics.clone())
        .map_err(failed)?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let running = tokio::task::spawn_blocking(move || source.run(&stopped));

    let begun = clock.now();
    let mut first = None;
    let took = loop {
        if first.is_none() && metrics.records_total.get() > 0 {
            first = Some(clock.now());
        }
        // Durable: nothing is announced here, and without a reader nothing is handed on before it is.
        let durable = log.stats().pending_records;
        if durable >= records {
            break clock.now() - first.unwrap_or(begun);
        }
        if clock.now() - begun > DEADLINE {
            let doing = format!("only {durable} of {records} records were durable within {DEADLINE:?}");
            return Err(Error::new(ErrorKind::Unavailable, doing));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    stop.cancel();
    running.await.map_err(failed)?.map_err(failed)?;
    Ok((log, took.as_secs_f64()))
}
