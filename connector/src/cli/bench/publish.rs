//! `bench publish`: JSON records of a topic to announced versions, with the high-throughput profile; the same with one in a
//! hundred that becomes a dead letter, and with a backlog that is paged back from the disk; what is written for it.

use std::sync::Arc;
use std::time::Duration;

use super::profiled::configured;
use super::topic::{Bare, Compared, Filled};
use super::{Measured, Scratch, Settings, measured, quantile};
use crate::clock::Clock;
use crate::producer::Producer;
use crate::version::Version;
use crate::{Error, ErrorKind, Result};

const ROUNDS: usize = 5;
const DEADLINE: Duration = Duration::from_secs(600);

/// How records go through.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// In memory, all of them fit.
    Plain,
    /// As above, one in a hundred a misfit.
    Poisoned,
    /// Hardly any room in memory: what comes goes to the disk, and is read back from there.
    Spilled,
}

pub(super) async fn run(settings: &Settings) -> Result<Vec<Measured>> {
    let clock = Clock::system();
    let mut topic = Filled::new(settings, settings.records).await?;
    let mut poisoned = Filled::poisoned(settings, settings.records).await?;
    let mut compared = Compared::default();
    let (mut misfits, mut spilled, mut amplified) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for way in [Way::Plain, Way::Poisoned, Way::Spilled] {
            let of = if way == Way::Poisoned { &mut poisoned } else { &mut topic };
            let dataset = format!("{}-{round}-{way:?}", of.name);
            for suffix in ["announcements", "control", "dlq"] {
                of.and(format!("{dataset}.{suffix}"));
            }
            let before = written();
            let took = publish(of, &dataset, way, settings.records, &clock).await?;
            if let (Way::Plain, Some(before), Some(after)) = (way, before, written()) {
                amplified.push((after - before) as f64 / 1e6);
            }
            let into = match way {
                Way::Plain => &mut compared.ours,
                Way::Poisoned => &mut misfits,
                Way::Spilled => &mut spilled,
            };
            into.push(settings.records as f64 / took);
        }
        let whole = Arc::new(topic);
        compared.poll.push(whole.bare(Bare::Poll, settings.records, &clock).await?);
        compared.batches.push(whole.bare(Bare::Batches, settings.records, &clock).await?);
        topic = Arc::into_inner(whole).expect("nobody else has it any more");
    }
    for topic in [topic, poisoned] {
        topic.delete().await;
    }
    let plain = ("the same without", quantile(&mut compared.ours, 0.5));
    let rate = |rates: &mut Vec<f64>| (quantile(rates, 0.5), "records/s");
    let with_poison = measured("publish", "records_per_second_1%_poison", rate(&mut misfits), plain);
    let with_spill = measured("publish", "records_per_second_spilled", rate(&mut spilled), plain);
    let mut lines = compared.lines("publish");
    lines.extend([with_poison, with_spill]);
    if !amplified.is_empty() {
        let values = ("bytes of the records' values", (settings.records * settings.value_bytes) as f64 / 1e6);
        let bytes = (quantile(&mut amplified, 0.5), "MB");
        lines.push(measured("publish", "written_to_disk", bytes, values));
    }
    Ok(lines)
}

/// Bytes that this process has caused to be written, as Linux counts them: log, blobs and cache of a producer from its start
/// to its stop, snapshots included; Kafka's are another process's. `None` on other systems.
fn written() -> Option<u64> {
    let io = std::fs::read_to_string("/proc/self/io").ok()?;
    io.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.parse().ok()
}

/// Seconds from version 1, which the first life announces before it reads, until all records are announced.
async fn publish(topic: &Filled, dataset: &str, way: Way, records: u64, clock: &Clock) -> Result<f64> {
    let scratch = Scratch::new("publish")?;
    let (mut writes, _) = configured("high-throughput", topic, dataset, &scratch)?;
    if way == Way::Spilled {
        writes.batching.max_pending_records = 1;
    }
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
