//! `bench replay`: dead letters back into their source, unthrottled; against bare consumption of the letters and the same
//! records produced in transactions of as many.
//!
//! The letters are of records that fit now, as after a schema was mended: nothing is left, all of them go back. Their
//! staleness is judged, as it is without `--force`; the source holds the records that failed, and no others.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::made::{SCHEMA, json, key};
use super::topic::{Filled, failed};
use super::{Measured, Settings, measured, quantile};
use crate::blob::Store;
use crate::clock::Clock;
use crate::codec::{Bound, ExtraFields, Format, KeyRule};
use crate::dead::replay::{self, Asked, CHUNK, Options};
use crate::dead::rows::Goal;
use crate::dead::select::Selection;
use crate::format::letter::{Elsewhere, Letter, header};
use crate::kafka::{Outcome, Outgoing, Polled, Poller, Transaction, Tuning};
use crate::record::SourcePartition;
use crate::schema::Schema;
use crate::{Error, ErrorKind, Result};

const ROUNDS: usize = 3;
const DEADLINE: Duration = Duration::from_secs(600);
/// Longest that a step of a transaction may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn run(settings: &Settings) -> Result<Vec<Measured>> {
    let (clock, records) = (Clock::system(), settings.records);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        // A source of its own for each round: what one has replayed the next would find there.
        let mut topic = Filled::new(settings, records).await?;
        let (letters, _) = topic.make("dlq").await?;
        let (copies, _) = topic.make("copies").await?;
        fill(&topic, &letters, settings, &clock).await?;
        let topic = Arc::new(topic);
        bare.push(records as f64 / timed(&topic, &clock, (letters.clone(), copies), records, copy).await?);
        ours.push(records as f64 / timed(&topic, &clock, (letters, String::new()), records, replayed).await?);
        if let Some(topic) = Arc::into_inner(topic) {
            topic.delete().await;
        }
    }
    let baseline = "bare consumption, and production in transactions";
    let baseline = (baseline, quantile(&mut bare, 0.5));
    Ok(vec![measured("replay", "letters_per_second", (quantile(&mut ours, 0.5), "letters/s"), baseline)])
}

/// Seconds that `work` takes, from its call to its end.
async fn timed(
    topic: &Arc<Filled>,
    clock: &Clock,
    (from, to): (String, String),
    records: u64,
    work: impl FnOnce(&Filled, &str, &str, u64, &Clock) -> Result<()> + Send + 'static,
) -> Result<f64> {
    let (topic, timer) = (topic.clone(), clock.clone());
    let done = tokio::task::spawn_blocking(move || {
        let began = timer.now();
        work(&topic, &from, &to, records, &timer)?;
        Ok((timer.now() - began).as_secs_f64())
    });
    done.await.map_err(|error| Error::because(ErrorKind::Internal, "benching replays panicked", error))?
}

/// A letter of each record of the source, as the producer writes them.
async fn fill(topic: &Filled, letters: &str, settings: &Settings, clock: &Clock) -> Result<()> {
    let mut line = topic.line()?;
    let start = topic.start().await?;
    let now = clock.wall_ms();
    for number in 0..settings.records {
        let source = SourcePartition { partition: 0, ..start.source.clone() };
        let letter = Letter {
            source,
            offset: number as i64,
            timestamp: now,
            stage: "TRANSFORMATION".to_owned(),
            class: "stillwell.codec.UnknownSymbol".to_owned(),
            message: "at $.category: \"GARDEN\" is no symbol of the enum Category".to_owned(),
            key: Some(Bytes::from(key(number))),
            value: Some(Bytes::from(json(number, settings.value_bytes))),
            headers: Vec::new(),
        };
        let (key, value) = letter.kafka_record(&Elsewhere::Nothing);
        let headers = letter.kafka_headers(&topic.name, 0, now, &Elsewhere::Nothing);
        let record = Outgoing {
            topic: letters,
            key,
            value,
            headers: &headers,
            timestamp: Some(now),
            ..Outgoing::default()
        };
        line.send(&record).await?;
    }
    line.end().await
}

fn replayed(topic: &Filled, letters: &str, _: &str, records: u64, clock: &Clock) -> Result<()> {
    let options = Options {
        kafka: topic.kafka.clone(),
        dataset: topic.name.clone(),
        topics: vec![topic.name.clone()],
        key: KeyRule::Kafka,
        bound: Bound::default(),
        format: Format::json(ExtraFields::Ignore),
        registry: None,
        schema: Arc::new(Schema::dataset(SCHEMA).expect("it is a record")),
        letters: letters.to_owned(),
        store: Store::open("memory://")
            .map_err(|error| Error::because(ErrorKind::Internal, "opening a store in memory", error))?,
        clock: clock.clone(),
    };
    let asked = Asked {
        selection: Selection { dataset: topic.name.clone(), ..Selection::default() },
        max: None,
        rate: None,
        dry_run: false,
        max_replays: 3,
        wait: replay::WAIT,
        force: false,
        fix: None,
        goal: Goal::Source,
    };
    let (totals, ended) = replay::run(&options, &asked, &CancellationToken::new(), |_| {});
    ended.map_err(|error| Error::because(error.kind(), "benching replays", error))?;
    match totals.replayed == records {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Internal, format!("not all went back: {totals:?}"))),
    }
}

/// One call of librdkafka's for each letter that is read, one for each record that is sent.
fn copy(topic: &Filled, letters: &str, copies: &str, records: u64, clock: &Clock) -> Result<()> {
    let tuning = Tuning::source("stillwell.bench", 64 << 20);
    let mut poller = Poller::new(&topic.kafka, &tuning).map_err(failed)?;
    poller.assign(&[(letters, 0, 0)]).map_err(failed)?;
    let id = format!("{}/copy", topic.name);
    let mut transaction = Transaction::bulk(&topic.kafka, &id, clock.clone()).map_err(failed)?;
    transaction.init(PATIENCE).map_err(failed)?;
    let headers = [(header::REPLAYS.to_owned(), Some(Bytes::from_static(b"1")))];
    let deadline = clock.now() + DEADLINE;
    let (mut seen, mut open) = (0, 0);
    while seen < records {
        match poller.poll_one(Duration::from_millis(100)) {
            Some(Polled::Record { message, .. }) => {
                if open == 0 {
                    transaction.begin().map_err(failed)?;
                }
                let record = Outgoing {
                    topic: copies,
                    partition: Some(0),
                    key: message.key(),
                    value: message.value(),
                    headers: &headers,
                    timestamp: Some(message.timestamp_ms()),
                    ..Outgoing::default()
                };
                transaction.send(&record, PATIENCE).map_err(failed)?;
                (seen, open) = (seen + 1, open + 1);
            }
            Some(Polled::Error(error)) if !error.is_transient() => return Err(failed(error)),
            _ if clock.now() > deadline => {
                let doing = format!("only {seen} of {records} letters came within {DEADLINE:?}");
                return Err(Error::new(ErrorKind::Unavailable, doing));
            }
            _ => {}
        }
        if open == CHUNK || (open > 0 && seen == records) {
            open = 0;
            match transaction.commit(PATIENCE) {
                Outcome::Committed => {}
                Outcome::Aborted(error)
                | Outcome::Unknown(error)
                | Outcome::Fenced(error)
                | Outcome::Fatal(error) => return Err(failed(error)),
            }
        }
    }
    Ok(())
}
