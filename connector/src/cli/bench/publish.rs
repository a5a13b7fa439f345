//! `bench publish`: JSON records of a topic to announced versions, with the high-throughput profile.

use std::sync::Arc;
use std::time::Duration;

use super::profiled::configured;
use super::topic::{Bare, Compared, Filled};
use super::{Measured, Scratch, Settings};
use crate::clock::Clock;
use crate::producer::Producer;
use crate::version::Version;
use crate::{Error, ErrorKind, Result};

const ROUNDS: usize = 3;
const DEADLINE: Duration = Duration::from_secs(600);

pub(super) async fn run(settings: &Settings) -> Result<Vec<Measured>> {
    let clock = Clock::system();
    let mut topic = Filled::new(settings, settings.records).await?;
    let datasets: Vec<String> = (0..ROUNDS).map(|round| format!("{}-{round}", topic.name)).collect();
    for dataset in &datasets {
        for suffix in ["announcements", "control", "dlq"] {
            topic.and(format!("{dataset}.{suffix}"));
        }
    }
    let topic = Arc::new(topic);
    let mut compared = Compared::default();
    for dataset in &datasets {
        compared.poll.push(topic.bare(Bare::Poll, settings.records, &clock).await?);
        compared.batches.push(topic.bare(Bare::Batches, settings.records, &clock).await?);
        compared.ours.push(settings.records as f64 / round(&topic, dataset, settings.records, &clock).await?);
    }
    if let Some(topic) = Arc::into_inner(topic) {
        topic.delete().await;
    }
    Ok(compared.lines("publish"))
}

/// Seconds from version 1, which the first life announces before it reads, until all records are announced.
async fn round(topic: &Filled, dataset: &str, records: u64, clock: &Clock) -> Result<f64> {
    let scratch = Scratch::new("publish")?;
    let (writes, _) = configured("high-throughput", topic, dataset, &scratch)?;
    let producer = Producer::start(writes).await?;
    let mut announced = producer.announced();
    let wait = async {
        let reached =
            announced.wait_for(|now| now.as_ref().is_some_and(|now| now.version >= Version(1))).await;
        reached.map(|_| ()).ok()?;
        let start = clock.now();
        let all = |offset: i64| offset >= records as i64;
        let done = announced.wait_for(|now| {
            now.as_ref().is_some_and(|now| now.positions.iter().all(|position| all(position.offset)))
        });
        done.await.map(|_| ()).ok()?;
        Some(clock.now() - start)
    };
    let took = tokio::time::timeout(DEADLINE, wait).await;
    producer.shutdown().await?;
    match took {
        Ok(Some(took)) => Ok(took.as_secs_f64()),
        _ => Err(Error::new(
            ErrorKind::Unavailable,
            format!("not all records were announced within {DEADLINE:?}"),
        )),
    }
}
