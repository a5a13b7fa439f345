//! Builder against a fold: whatever comes, in whatever batches, each version holds what the records up to its positions
//! say, and its delta, read by another implementation of Avro, is exactly the difference.

use std::collections::BTreeMap;

use futures::poll;
use proptest::prelude::*;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::format::chunk::ChunkBuilder;
use crate::gauge::Budget;
use crate::producer::batch::tests::rules::cut;
use crate::producer::log::{self, Log, Logged};
use crate::record::TopicId;
use crate::schema::Schema;
use crate::schema::wire::put_bytes;
use crate::telemetry::Metrics;
use crate::version::Shard;
use crate::view;

mod conflicts;
mod model;

pub(in crate::producer) const LIFE: Life = Life { epoch: 2, writer: Uuid::from_u128(5) };
/// Two misfits of this size are too many to wait.
const MAX_LETTER_BYTES: u64 = 2 * 1024;
const LONG: Duration = Duration::from_secs(60);

/// The dataset's source partitions: two topics.
fn sources() -> Vec<SourcePartition> {
    let source = |topic: &str, id: u8, partition| SourcePartition {
        topic: topic.into(),
        topic_id: TopicId([id; 16]),
        partition,
    };
    vec![source("orders", 1, 0), source("orders", 1, 1), source("returns", 2, 0)]
}

fn at(partition: usize, offset: i64) -> Position {
    Position { source: sources().swap_remove(partition), offset }
}

/// A value as a datum of the raw schema.
fn datum(value: &[u8]) -> Vec<u8> {
    let mut datum = Vec::new();
    put_bytes(&mut datum, value);
    datum
}

fn letter(partition: usize, offset: i64) -> Letter {
    Letter {
        source: sources().swap_remove(partition),
        offset,
        timestamp: offset,
        stage: "decode".into(),
        class: "malformed".into(),
        message: "it does not fit".into(),
        key: None,
        value: Some(Bytes::from_static(b"misfit")),
        headers: Vec::new(),
    }
}

/// A cache, and builders that start from nothing in it.
pub(in crate::producer) struct Ground {
    _dir: TempDir,
    pub cache: Cache,
    metrics: Arc<ProducerMetrics>,
    clock: Clock,
}

impl Ground {
    fn new() -> Ground {
        let dir = tempfile::tempdir().expect("a folder");
        let cache = Cache::open(dir.path(), u64::MAX).expect("it opens");
        let metrics = Metrics::new().producer("products", Shard(0));
        Ground { _dir: dir, cache, metrics, clock: Clock::manual(0) }
    }

    fn builder(&self, must_say: bool) -> Builder {
        let identity =
            Identity { dataset: "products".into(), topic_id: TopicId([9; 16]), shard: Shard(0), shards: 1 };
        let schema = Arc::new(Schema::raw());
        let positions = (0..sources().len()).map(|partition| at(partition, 0)).collect();
        let about = About { positions, ..About::nothing(schema.clone()) };
        let view = View::empty(identity.clone(), schema.clone()).restate(about).expect("the same version");
        let constants = Constants {
            identity,
            life: LIFE,
            sources: sources().into(),
            schema,
            compress: true,
            cache: self.cache.clone(),
            max_letter_bytes: MAX_LETTER_BYTES,
            format: Format::raw(),
            chain: 0,
        };
        Builder::new(constants, view, must_say, self.clock.clone(), self.metrics.clone())
    }
}

/// Partition, offset, timestamp, key, and value (`None`: a delete).
type Written<'a> = (usize, i64, i64, &'a [u8], Option<&'a [u8]>);

/// A batch of one chunk that holds `records`, in this order.
fn batch(records: &[Written<'_>]) -> Batch {
    let mut builder = ChunkBuilder::new();
    let mut positions: Vec<Position> = Vec::new();
    for (partition, offset, timestamp, key, value) in records {
        let source = sources().swap_remove(*partition);
        let slot = builder.slot(&source, *offset);
        let value = value.map(datum);
        let body = match &value {
            Some(value) => Body::Upsert { key, value },
            None => Body::Delete { key },
        };
        builder.push(slot, *offset, *timestamp, body);
        positions.retain(|position| position.source != source);
        positions.push(Position { source, offset: offset + 1 });
    }
    let chunk = builder.finish();
    let items = chunk.iter().map(|(cursor, _)| Item { chunk: 0, cursor }).collect();
    Batch { chunks: vec![chunk], items, positions, ..Batch::default() }
}

fn contents(view: &View) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let entry = |value: view::Value<'_>| (value.key().to_vec(), value.raw().expect("raw").to_vec());
    view.iter().map(|value| entry(value.expect("it reads"))).collect()
}

/// Positions in the order of the dataset's list.
fn sorted(mut positions: Vec<Position>) -> Vec<Position> {
    positions.sort();
    positions
}

/// The first versions of a dataset, each with a key more, for the stages behind this one.
pub(in crate::producer) fn versions(count: i64) -> (Ground, Vec<Built>) {
    let ground = Ground::new();
    let mut builder = ground.builder(false);
    let built = |n: i64| {
        let (key, now) = (format!("key-{n}"), ground.clock.now());
        let batch = batch(&[(0, n, n + 1, key.as_bytes(), Some(b"value"))]);
        builder.state.step(Input::Batch(batch), now, &ground.metrics).expect("it builds").expect("a change")
    };
    let built = (0..count).map(built).collect();
    (ground, built)
}

/// A key that arrives from two partitions: the later timestamp wins, in one batch as over two; then topic, partition
/// and offset decide.
#[test]
fn a_key_that_moves_to_another_partition_keeps_what_is_later() {
    let (old, new): (&[u8], &[u8]) = (b"old", b"new");
    // The loser: its partition and timestamp; the winner's; in the order of the log the winner comes first, or last.
    for (loser, winner) in [((0, 10), (1, 20)), ((1, 10), (0, 20)), ((0, 10), (1, 10)), ((1, 10), (2, 10))] {
        for winner_first in [false, true] {
            let lost = (loser.0, 3, loser.1, &b"key"[..], Some(old));
            let won = (winner.0, 0, winner.1, &b"key"[..], Some(new));
            let order = if winner_first { [won, lost] } else { [lost, won] };
            for batches in [vec![batch(&order)], order.iter().map(|one| batch(&[*one])).collect()] {
                let ground = Ground::new();
                let mut builder = ground.builder(false);
                let apart = batches.len() == 2;
                for batch in batches {
                    builder
                        .state
                        .step(Input::Batch(batch), ground.clock.now(), &ground.metrics)
                        .expect("built");
                }
                let held = builder.state.view.entry(b"key").expect("it reads").expect("it is there");
                assert_eq!(
                    held.value.as_deref(),
                    Some(&datum(new)[..]),
                    "{loser:?} {winner:?} {winner_first}"
                );
                assert_eq!(held.stamp, Stamp { timestamp: winner.1, source: winner.0 as u32, offset: 0 });
                let lone = builder.state.unsaid;
                assert_eq!(lone.unchanged, u64::from(apart && winner_first), "the loser changes nothing");
            }
        }
    }
}

/// The run loop's channels.
struct Run {
    batches: Option<mpsc::Sender<Batch>>,
    rebases: Option<mpsc::Sender<Rebase>>,
    built: mpsc::Receiver<Built>,
    settled: oneshot::Receiver<Version>,
}

fn run(builder: Builder) -> (impl Future<Output = Result<(), Error>>, Run) {
    let (batches, batches_in) = mpsc::channel(2);
    let (rebases, rebases_in) = mpsc::channel(2);
    let (out, built) = mpsc::channel(8);
    let (settled_out, settled) = oneshot::channel();
    let running = builder.run(batches_in, rebases_in, out, settled_out, CancellationToken::new());
    (running, Run { batches: Some(batches), rebases: Some(rebases), built, settled })
}

/// Waits for `next`; the builder works meanwhile, and does not end before.
async fn meanwhile<T>(
    running: &mut (impl Future<Output = Result<(), Error>> + Unpin),
    next: impl Future<Output = T>,
) -> T {
    tokio::select! {
        biased;
        next = tokio::time::timeout(LONG, next) => next.expect("in time"),
        ended = running => panic!("the builder ended: {ended:?}"),
    }
}

#[tokio::test]
async fn a_drain_says_what_is_unsaid_settles_and_goes_on_for_the_last_snapshot_only() {
    let ground = Ground::new();
    let (running, mut run) = run(ground.builder(true));
    let mut running = std::pin::pin!(running);
    let first = meanwhile(&mut running, run.built.recv()).await.expect("the first life must say something");
    assert_eq!((first.delta.version, first.view.records(), first.positions.len()), (Version(1), 0, 0));

    let batches = run.batches.take().expect("open");
    batches.send(batch(&[(0, 7, 70, b"key", Some(b"value"))])).await.expect("it runs");
    let second = meanwhile(&mut running, run.built.recv()).await.expect("a change");
    assert_eq!((second.delta.version, second.positions.as_slice()), (Version(2), [at(0, 8)].as_slice()));
    assert_eq!((second.newest_timestamp, second.inline.as_ref()), (Some(70), Some(&second.stored)));

    // The same again changes nothing and waits to be said; the end of the batches says it at once.
    batches.send(batch(&[(0, 8, 80, b"key", Some(b"value"))])).await.expect("it runs");
    drop(batches);
    let third = meanwhile(&mut running, run.built.recv()).await.expect("positions moved on");
    assert_eq!((third.delta.version, third.positions.as_slice()), (Version(3), [at(0, 9)].as_slice()));
    assert_eq!((third.delta.upserts, third.delta.deletes, third.unchanged), (0, 0, 1));
    assert_eq!(meanwhile(&mut running, &mut run.settled).await.expect("told"), Version(3));

    let base = third.view.merge_snapshot(LIFE, &ground.cache).expect("merged").into_base().expect("mapped");
    let rebases = run.rebases.take().expect("open");
    rebases.try_send(Rebase { base }).expect("it runs");
    drop(rebases);
    tokio::time::timeout(LONG, running).await.expect("nothing can come any more").expect("it ended well");
    let last = run.built.recv().await.expect("the snapshot is worth a version");
    assert_eq!((last.delta.version, last.view.records()), (Version(4), 1));
    assert!(run.built.recv().await.is_none());
}

/// A change takes what is unsaid along: nothing waits for its own version then, and nothing is said twice.
#[tokio::test]
async fn what_is_unsaid_goes_out_with_the_next_change_or_when_it_has_waited() {
    let ground = Ground::new();
    let mut builder = ground.builder(false);
    let mut step = |input, at| builder.state.step(input, at, &ground.metrics).expect("it builds");
    let start = ground.clock.now();
    assert!(step(Input::Batch(batch(&[(1, 4, 1, b"absent", None)])), start).is_none(), "nothing to delete");
    assert!(step(Input::Batch(batch(&[(2, 9, 1, b"absent", None)])), start + SAY_AFTER).is_none());
    let built = step(Input::Batch(batch(&[(1, 5, 2, b"key", Some(b"1"))])), start + LONG).expect("a change");
    assert_eq!(sorted(built.positions), [at(1, 6), at(2, 10)]);
    assert_eq!((built.unchanged, built.coalesced), (2, 0));
    assert!(builder.state.unsaid.since.is_none() && builder.state.unsaid.positions.is_empty());
}

/// A chain at its limit takes no batch until a snapshot shortens it: readers refuse a longer one.
#[tokio::test]
async fn a_chain_at_its_limit_waits_for_a_snapshot() {
    let ground = Ground::new();
    let mut builder = ground.builder(false);
    for _ in 0..LONGEST_CHAIN {
        builder
            .state
            .step(Input::Say, ground.clock.now(), &ground.metrics)
            .expect("it says")
            .expect("something");
    }
    let view = builder.state.view.clone();
    let (running, mut run) = run(builder);
    let mut running = std::pin::pin!(running);
    let batches = run.batches.take().expect("open");
    batches.send(batch(&[(0, 0, 1, b"key", Some(b"value"))])).await.expect("it runs");
    assert!(poll!(&mut running).is_pending());
    assert_eq!(batches.capacity(), 1, "the batch is not even taken");
    let base = view.merge_snapshot(LIFE, &ground.cache).expect("merged").into_base().expect("mapped");
    run.rebases.as_ref().expect("open").try_send(Rebase { base }).expect("it runs");
    // That there is a snapshot is worth a version, too, where it waits long enough for this machine to notice.
    let mut next = LONGEST_CHAIN;
    let built = loop {
        let built = meanwhile(&mut running, run.built.recv()).await.expect("a change");
        next += 1;
        assert_eq!(built.delta.version.0, next);
        if built.delta.upserts > 0 {
            break built;
        }
    };
    assert_eq!(built.view.records(), 1);
}
