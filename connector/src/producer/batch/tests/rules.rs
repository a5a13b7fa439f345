//! The flush rules, record by record: a batcher that is polled by hand, with a clock that moves when told.

use std::time::Duration;

use futures::poll;
use tempfile::TempDir;

use crate::format::chunk::ChunkBuilder;
use crate::format::origin::Origin;
use crate::gauge::Budget;
use crate::producer::Pacing;
use crate::producer::batch::*;
use crate::producer::log::{Log, Options};
use crate::record::TopicId;

const LONG: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Limits that nothing in these tests reaches.
fn unlimited() -> Batching {
    Batching {
        max_batch_size: usize::MAX,
        max_batch_bytes: u64::MAX,
        batch_timeout: HOUR,
        memory_pressure_threshold: usize::MAX,
        ..Batching::default()
    }
}

/// Largest batches: records, then bytes.
pub(in crate::producer) type Limits = (usize, u64);

/// The batches that the batcher makes of `chunks`, the first within the first limits, and so on, in a circle. What
/// fills no batch is the last one, as in a drain.
pub(in crate::producer) fn cut(reader: Reader, chunks: Vec<Logged>, limits: &[Limits]) -> Vec<Batch> {
    let (out, _batches) = mpsc::channel(1);
    let (pace, metrics) = (Pace::new(Pacing::default(), Clock::manual(0)), ProducerMetrics::detached());
    let mut batcher =
        Batcher::new(reader, pace, unlimited(), Clock::manual(0), metrics, Turns::new(4, false), out);
    let mut limits = limits.iter().cycle();
    let mut limit = |batcher: &mut Batcher| {
        let (records, bytes) = limits.next().expect("some limits are given");
        (batcher.rules.max_batch_size, batcher.rules.max_batch_bytes) = (*records, *bytes);
    };
    limit(&mut batcher);
    let mut cut = Vec::new();
    for logged in chunks {
        batcher.open = Some(Open { logged, cursor: None });
        while batcher.open.is_some() {
            batcher.step();
            if batcher.is_full() {
                cut.push(std::mem::take(&mut batcher.batch));
                limit(&mut batcher);
            }
        }
    }
    if !batcher.batch.is_empty() {
        cut.push(batcher.batch);
    }
    cut
}

fn source(partition: i32) -> SourcePartition {
    SourcePartition { topic: "orders".into(), topic_id: TopicId::default(), partition }
}

fn at(partition: i32, offset: i64) -> Position {
    Position { source: source(partition), offset }
}

/// A chunk with a record of ten bytes at each offset of `ranges`; a misfit at every offset that ends in 9.
fn chunk(ranges: &[(i32, i64, i64)]) -> Chunk {
    let mut builder = ChunkBuilder::new();
    for (partition, from, to) in ranges {
        let slot = builder.slot(&source(*partition), *from);
        for offset in *from..*to {
            let body = match offset % 10 {
                9 => Body::Misfit { letter: b"ten bytes." },
                _ => Body::Upsert { key: b"key", value: b"7 bytes" },
            };
            builder.push(slot, offset, offset, body);
        }
    }
    builder.finish()
}

/// A log, and the batcher that reads it: polled by hand, so that each test knows how far it has come. The batcher comes
/// first: what is appended before anybody reads is on disk only, and paged back at its own pace.
struct Bench {
    _dir: TempDir,
    log: Log,
    clock: Clock,
    drain: CancellationToken,
    memory: Budget,
    appended: u64,
}

impl Bench {
    async fn new(positions: &[Position]) -> Bench {
        let dir = tempfile::tempdir().expect("a folder");
        let log = Log::open(dir.path(), Options::new(Clock::system())).await.expect("it opens");
        log.resume(&Origin::any(), positions).await.expect("it is empty");
        let (clock, drain) = (Clock::manual(0), CancellationToken::new());
        Bench { _dir: dir, log, clock, drain, memory: Budget::new(1 << 30), appended: 0 }
    }

    fn batcher(
        &self,
        rules: Batching,
    ) -> (impl Future<Output = Result<(), log::Error>> + use<>, mpsc::Receiver<Batch>) {
        self.batcher_in(rules, Turns::new(4, false))
    }

    fn batcher_in(
        &self,
        rules: Batching,
        turns: Turns,
    ) -> (impl Future<Output = Result<(), log::Error>> + use<>, mpsc::Receiver<Batch>) {
        let (out, batches) = mpsc::channel(1);
        let reader = self.log.reader(rules.max_pending_records, self.memory.clone());
        let (pace, metrics) = (Pace::new(Pacing::default(), self.clock.clone()), ProducerMetrics::detached());
        let batcher = Batcher::new(reader, pace, rules, self.clock.clone(), metrics, turns, out);
        (batcher.run(self.drain.clone()), batches)
    }

    /// Appends a chunk and waits until it can be read: a batcher that is polled next sees it.
    async fn append(&mut self, ranges: &[(i32, i64, i64)]) {
        let appender = self.log.appender();
        appender.try_append(chunk(ranges)).expect("there is room");
        self.appended += 1;
        let mut persisted = appender.persisted();
        let durable = persisted.wait_for(|end| *end >= self.appended);
        tokio::time::timeout(LONG, durable).await.expect("in time").expect("the log is open");
    }
}

/// Partition and offset of each of its records, misfits last.
fn offsets(batch: &Batch) -> Vec<i64> {
    let offset = |item: &Item| batch.chunks[item.chunk as usize].at(item.cursor).offset;
    batch.items.iter().chain(&batch.misfits).map(offset).collect()
}

#[tokio::test]
async fn a_batch_is_full_by_records_misfits_among_them_and_ends_inside_a_chunk() {
    let mut bench = Bench::new(&[at(0, 6)]).await;
    let (run, mut batches) = bench.batcher(Batching { max_batch_size: 5, ..unlimited() });
    let mut run = std::pin::pin!(run);
    for from in [6, 8, 10] {
        bench.append(&[(0, from, from + 2)]).await;
    }
    assert!(poll!(&mut run).is_pending());
    let full = batches.try_recv().expect("five records are a batch");
    assert_eq!((offsets(&full), full.records()), (vec![6, 7, 8, 10, 9], 5));
    assert_eq!((full.positions.as_slice(), full.chunks.len(), full.bytes), ([at(0, 11)].as_slice(), 3, 50));
    assert_eq!(full.leases.len(), 2, "the chunk that is not used up keeps its memory");
    assert!(batches.try_recv().is_err(), "one record is none, for an hour");

    bench.drain.cancel();
    run.await.expect("it ends");
    let rest = batches.recv().await.expect("a drain hands on what was begun");
    assert_eq!(
        (offsets(&rest), rest.positions.as_slice(), rest.chunks.len()),
        (vec![11], [at(0, 12)].as_slice(), 1)
    );
    assert!(batches.recv().await.is_none());
    let used = bench.memory.used();
    drop(full);
    assert!(used > bench.memory.used() && bench.memory.used() > 0);
    drop(rest);
    assert_eq!(bench.memory.used(), 0, "memory comes back with the batches");
}

#[tokio::test]
async fn without_a_timeout_a_batch_waits_for_nothing_but_its_turn() {
    let mut bench = Bench::new(&[at(0, 0)]).await;
    let rules = Batching { batch_timeout: Duration::ZERO, ..unlimited() };
    let (run, mut batches) = bench.batcher_in(rules, Turns::new(4, true));
    let mut run = std::pin::pin!(run);
    bench.append(&[(0, 0, 1)]).await;
    assert!(poll!(&mut run).is_pending());
    let first = batches.try_recv().expect("one record is a batch, and no time has passed");
    assert_eq!(offsets(&first), [0]);
    for from in [1, 2, 3] {
        bench.append(&[(0, from, from + 1)]).await;
        assert!(poll!(&mut run).is_pending());
        assert!(batches.try_recv().is_err(), "the one before is on its way");
    }
    drop(first);
    assert!(poll!(&mut run).is_pending());
    let second = batches.try_recv().expect("what came meanwhile");
    assert_eq!(offsets(&second), [1, 2, 3]);
}

#[tokio::test]
async fn a_batch_is_full_by_bytes_with_the_record_that_reaches_them() {
    let mut bench = Bench::new(&[at(0, 0)]).await;
    let (run, mut batches) = bench.batcher(Batching { max_batch_bytes: 25, ..unlimited() });
    let mut run = std::pin::pin!(run);
    bench.append(&[(0, 0, 7)]).await;
    for (from, bytes) in [(0, 30), (3, 30)] {
        assert!(poll!(&mut run).is_pending());
        let full = batches.try_recv().expect("25 bytes are reached");
        assert_eq!((offsets(&full), full.bytes), ((from..from + 3).collect(), bytes));
        assert_eq!(full.positions, [at(0, from + 3)]);
    }
    assert!(poll!(&mut run).is_pending());
    assert!(batches.try_recv().is_err());
}

#[tokio::test]
async fn memory_pressure_flushes_before_the_batch_is_full() {
    let mut bench = Bench::new(&[at(0, 0)]).await;
    let rules = Batching { memory_pressure_threshold: 4, max_batch_size: 1_000, ..unlimited() };
    let (run, mut batches) = bench.batcher(rules);
    let mut run = std::pin::pin!(run);
    bench.append(&[(0, 0, 5)]).await;
    assert!(poll!(&mut run).is_pending());
    assert_eq!(offsets(&batches.try_recv().expect("four are pressure")), [0, 1, 2, 3]);
    assert!(batches.try_recv().is_err());
}

/// The time counts from a batch's first record: neither a timer that fires early, nor a batch before it, nor idle
/// time makes it due.
#[tokio::test]
async fn a_batch_is_due_when_its_first_record_has_waited_long_enough() {
    let mut bench = Bench::new(&[at(0, 0)]).await;
    let wait = Duration::from_millis(10);
    let (run, mut batches) = bench.batcher(Batching { batch_timeout: wait, ..unlimited() });
    let mut run = std::pin::pin!(run);
    for round in 0..2 {
        bench.append(&[(0, round * 2, round * 2 + 1)]).await;
        assert!(poll!(&mut run).is_pending());
        bench.append(&[(0, round * 2 + 1, round * 2 + 2)]).await;
        assert!(poll!(&mut run).is_pending());
        assert!(batches.try_recv().is_err(), "the clock stands still");
        bench.clock.advance(wait);
        let due = tokio::select! {
            ended = &mut run => panic!("{ended:?}"),
            due = tokio::time::timeout(LONG, batches.recv()) => due,
        };
        let due = due.expect("the timer wakes it").expect("it runs");
        assert_eq!(
            (offsets(&due), due.positions),
            (vec![round * 2, round * 2 + 1], vec![at(0, round * 2 + 2)])
        );
        // Idle, and not for longer: tokio's clock, which wakes the batcher, does not jump.
        bench.clock.advance(wait * 4);
    }
}

#[tokio::test]
async fn a_batch_that_is_due_grows_to_its_limits_while_the_builder_is_busy() {
    let mut bench = Bench::new(&[at(0, 0)]).await;
    let rules = Batching { batch_timeout: Duration::ZERO, max_batch_size: 4, ..unlimited() };
    let (run, mut batches) = bench.batcher(rules);
    let mut run = std::pin::pin!(run);
    for from in 0..7 {
        bench.append(&[(0, from, from + 1)]).await;
    }
    // The channel takes one: the builder's next. Nobody has taken it yet.
    assert!(poll!(&mut run).is_pending());
    assert_eq!(offsets(&batches.try_recv().expect("due at once")), [0]);
    assert!(poll!(&mut run).is_pending());
    assert_eq!(offsets(&batches.try_recv().expect("grown to its limit")), [1, 2, 3, 4]);
    assert!(poll!(&mut run).is_pending());
    assert_eq!(offsets(&batches.try_recv().expect("what came meanwhile")), [5, 6]);
}

#[tokio::test]
async fn what_holds_no_record_moves_positions_on_and_a_life_begins_inside_a_chunk() {
    let bench = Bench::new(&[]).await;
    let mut builder = ChunkBuilder::new();
    let slot = builder.slot(&source(1), 20);
    builder.advance(slot, 25);
    let logged = |chunk: Chunk, from: Vec<i64>, received_at| Logged { chunk, from, lease: None, received_at };
    let chunks = vec![
        // Announced before this life, wholly; in part; markers alone.
        logged(chunk(&[(0, 0, 3)]), vec![5], bench.clock.now()),
        logged(chunk(&[(0, 3, 8)]), vec![5], bench.clock.now() + LONG),
        logged(builder.finish(), vec![20], bench.clock.now() + HOUR),
    ];
    let batches = cut(bench.log.reader(10, bench.memory.clone()), chunks, &[(usize::MAX, u64::MAX)]);
    let [batch] = batches.as_slice() else { panic!("{} batches", batches.len()) };
    assert_eq!(
        (offsets(batch), batch.positions.as_slice()),
        (vec![5, 6, 7], [at(0, 8), at(1, 25)].as_slice())
    );
    assert_eq!(batch.received_at, Some(bench.clock.now()), "its oldest");
}

/// A chunk of two partitions that is cut: each partition's position is its own.
#[tokio::test]
async fn a_cut_moves_only_the_partitions_that_it_has_reached() {
    let bench = Bench::new(&[]).await;
    let both = chunk(&[(0, 0, 2), (1, 50, 53)]);
    let logged = Logged { chunk: both, from: vec![0, 50], lease: None, received_at: bench.clock.now() };
    let reader = bench.log.reader(10, bench.memory.clone());
    let batches = cut(reader, vec![logged], &[(2, u64::MAX), (1, u64::MAX), (1, u64::MAX)]);
    let positions: Vec<_> = batches.iter().map(|batch| batch.positions.clone()).collect();
    // The last record takes its whole chunk with it, and with that what the chunk says of the other partition.
    assert_eq!(positions, [vec![at(0, 2)], vec![at(1, 51)], vec![at(1, 52)], vec![at(0, 2), at(1, 53)]]);
}
