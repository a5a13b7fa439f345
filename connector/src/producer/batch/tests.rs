use std::time::Duration;

use super::*;
use crate::format::chunk::ChunkBuilder;
use crate::format::origin::Origin;
use crate::gauge::Budget;
use crate::producer::log::Log;
use crate::producer::{Pacing, log};

pub(in crate::producer) mod rules;

const DEADLINE: Duration = Duration::from_secs(60);

fn position(offset: i64) -> Position {
    let source = SourcePartition { topic: "orders".into(), topic_id: Default::default(), partition: 0 };
    Position { source, offset }
}

/// A chunk with records at `[from, to)`, each of `bytes` bytes.
fn chunk(from: i64, to: i64, bytes: usize) -> Chunk {
    let mut builder = ChunkBuilder::new();
    let slot = builder.slot(&position(0).source, from);
    for offset in from..to {
        builder.push(slot, offset, 0, Body::Upsert { key: b"k", value: &vec![7; bytes] });
    }
    builder.finish()
}

/// Rules by which nothing is ever due by size or time.
fn patient() -> Batching {
    Batching {
        max_batch_size: usize::MAX,
        max_batch_bytes: u64::MAX,
        batch_timeout: Duration::from_secs(3_600),
        memory_pressure_threshold: usize::MAX,
        ..Batching::default()
    }
}

struct Line {
    log: Log,
    memory: Budget,
    metrics: Arc<ProducerMetrics>,
    batches: mpsc::Receiver<Batch>,
    drain: CancellationToken,
    task: tokio::task::JoinSet<Result<(), log::Error>>,
    _dir: tempfile::TempDir,
}

impl Line {
    async fn start(rules: Batching, pacing: Pacing, memory: u64) -> Line {
        Line::over(log::Options::new(Clock::system()), rules, pacing, memory).await
    }

    async fn over(options: log::Options, rules: Batching, pacing: Pacing, memory: u64) -> Line {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let log = Log::open(dir.path(), options).await.unwrap();
        log.resume(&Origin::any(), &[position(0)]).await.unwrap();
        let (memory, metrics) = (Budget::new(memory), ProducerMetrics::detached());
        let (out, batches) = mpsc::channel(1);
        let pace = Pace::new(pacing, clock.clone());
        let reader = log.reader(1_000_000, memory.clone());
        let batcher = Batcher::new(reader, pace, rules, clock, metrics.clone(), Turns::new(4, false), out);
        let (drain, mut task) = (CancellationToken::new(), tokio::task::JoinSet::new());
        task.spawn(batcher.run(drain.clone()));
        Line { log, memory, metrics, batches, drain, task, _dir: dir }
    }

    async fn batch(&mut self) -> Batch {
        let next = tokio::time::timeout(DEADLINE, self.batches.recv()).await;
        next.expect("a batch comes in time").expect("the batcher runs")
    }

    async fn end(mut self) -> Batch {
        self.drain.cancel();
        let mut last = Batch::default();
        while let Some(batch) = self.batches.recv().await {
            last = batch;
        }
        self.task.join_next().await.unwrap().unwrap().unwrap();
        self.log.close().await.unwrap();
        last
    }
}

#[tokio::test]
async fn a_batch_is_flushed_when_the_memory_is_nearly_all_in_use_whatever_it_holds() {
    // Ten chunks of 10 KB fit; nothing else would make this batch due within the hour.
    let mut line = Line::start(patient(), Pacing::default(), 103_000).await;
    for n in 0..20 {
        line.log.appender().try_append(chunk(n * 10, n * 10 + 10, 1_000)).unwrap();
    }
    let first = line.batch().await;
    assert_eq!(first.positions, [position(90)], "nine chunks are more than four fifths of what fits");
    let mut batch = first;
    while batch.positions.first().unwrap().offset < 170 {
        assert!(line.memory.used() <= 103_000, "never more: {}", line.memory.used());
        drop(batch); // announced
        batch = line.batch().await;
    }
    drop(batch);
    assert!(line.metrics.memory_pressure_events_total.get() >= 2);
    line.end().await;
}

#[tokio::test]
async fn pending_records_at_the_threshold_make_a_version_and_a_full_batch_is_no_pressure() {
    let rules = Batching { memory_pressure_threshold: 25, ..patient() };
    let mut line = Line::start(rules, Pacing::default(), 1 << 20).await;
    line.log.appender().try_append(chunk(0, 60, 10)).unwrap();
    let ends = [line.batch().await.positions, line.batch().await.positions];
    assert_eq!(ends, [[position(25)], [position(50)]], "inside the chunk, exact to the record");
    assert_eq!(line.metrics.memory_pressure_events_total.get(), 2);
    assert_eq!(line.end().await.positions, [position(60)]);

    let rules = Batching { max_batch_size: 20, ..patient() };
    let mut line = Line::start(rules, Pacing::default(), 1 << 20).await;
    line.log.appender().try_append(chunk(0, 60, 10)).unwrap();
    assert_eq!(line.batch().await.positions, [position(20)]);
    assert_eq!(line.metrics.memory_pressure_events_total.get(), 0);
    line.end().await;
}

#[tokio::test]
async fn a_batch_goes_on_in_time_however_slow_the_pace_is() {
    let pacing = Pacing { max_records_per_second: 20, ..Pacing::default() };
    let rules = Batching { batch_timeout: Duration::from_millis(200), ..patient() };
    let mut line = Line::start(rules, pacing, 1 << 20).await;
    line.log.appender().try_append(chunk(0, 1_000, 10)).unwrap();
    let first = line.batch().await;
    let records = first.records();
    assert!((1..200).contains(&records), "{records} records within {:?}", Duration::from_millis(200));
    line.end().await;
}

#[tokio::test]
async fn what_overflows_goes_past_the_pace_as_letters_also_out_of_a_chunk_that_was_open() {
    let pacing = Pacing { max_records_per_second: 1, ..Pacing::default() };
    let rules = Batching { max_batch_size: 40, batch_timeout: Duration::from_millis(50), ..patient() };
    let options = log::Options {
        shed: crate::producer::Shed::DeadLetter,
        max_log_bytes: 100_000,
        ..log::Options::new(Clock::system())
    };
    let mut line = Line::over(options, rules, pacing, 1 << 20).await;
    line.log.appender().try_append(chunk(0, 100, 100)).unwrap();
    let first = line.batch().await;
    assert!(first.shed.is_empty() && !first.items.is_empty(), "below the limit all is published");
    // At one a second the rest of that chunk alone would take a minute and a half.
    for n in 0..20 {
        line.log.appender().try_append(chunk(100 + n * 100, 200 + n * 100, 100)).unwrap();
    }
    let (mut published, mut shed) = (first.records(), 0);
    let mut end = first.positions;
    while end.first().unwrap().offset < 1_000 {
        let batch = line.batch().await;
        assert!(batch.records() <= 40, "the batch's limits hold for letters too");
        (published, shed) = (published + batch.items.len(), shed + batch.shed.len());
        end = batch.positions;
    }
    // One a second, for as long as a busy machine takes to shed the rest.
    assert!(published < 200 && shed > 700, "{published} published, {shed} shed");
    assert_eq!((published + shed) as i64, end.first().unwrap().offset, "each is one or the other");
    line.end().await;
}
