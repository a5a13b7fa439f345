use std::path::Path;

use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::*;
use crate::clock::Clock;
use crate::format::announcement::SourcePosition;
use crate::format::chunk::ChunkBuilder;
use crate::format::control::{From, Rebuild};
use crate::producer::rebuild::Rebuilder;
use crate::producer::{Options, Producer, log};
use crate::record::{Position, SourcePartition, TopicId};
use crate::version::{Life, Shard};
use crate::view::{Cache, Identity, View};

fn source(partition: i32) -> SourcePartition {
    SourcePartition { topic: "t".into(), topic_id: TopicId([3; 16]), partition }
}

fn at(partition: i32, offset: i64) -> Position {
    Position { source: source(partition), offset }
}

fn identity() -> Identity {
    Identity { dataset: "d".into(), topic_id: TopicId([9; 16]), shard: Shard(0), shards: 1 }
}

fn planned(partition: i32, standing: Standing, announced: i64, (from, to): (i64, i64)) -> Planned {
    let (source, index) = (source(partition), partition as u32);
    Planned { source, index, standing, announced: Some(announced), from, to }
}

fn plan(partitions: [Planned; 2]) -> Plan {
    let position = |planned: &Planned| SourcePosition {
        source: planned.source.clone(),
        start: 0,
        offset: planned.to,
        target: 0,
    };
    Plan {
        positions: partitions.iter().map(position).collect(),
        partitions: partitions.into(),
        deleting: vec![],
    }
}

/// Options that name a Kafka which nobody asks, and a log of these ranges, each a chunk with a record at each offset.
async fn made(dir: &Path, ranges: &[(i32, i64, i64)]) -> (Options, Log) {
    let builder = Producer::builder("d").bootstrap_servers("127.0.0.1:1").source("t").raw();
    let options = builder.data_dir(dir).options().unwrap();
    let log = Log::open(&options.log_dir(), log::Options::new(Clock::system())).await.unwrap();
    log.resume(&options.origin(identity().topic_id), &[at(0, 0), at(1, 0)]).await.unwrap();
    for (partition, from, to) in ranges {
        let mut builder = ChunkBuilder::new();
        let slot = builder.slot(&source(*partition), *from);
        for offset in *from..*to {
            let key = format!("{partition}/{offset}");
            builder.push(slot, offset, offset, Body::Upsert { key: key.as_bytes(), value: b"\x02v" });
        }
        log.appender().try_append(builder.finish()).unwrap();
    }
    (options, log)
}

/// Where the log lets a life at `positions` read on.
fn resumed(runtime: &Runtime, log: &Log, options: &Options, positions: &[Position]) -> Vec<Position> {
    runtime.block_on(log.resume(&options.origin(identity().topic_id), positions)).unwrap()
}

#[test]
fn what_the_log_holds_of_a_partition_that_is_not_read_from_it_outlives_the_rebuild() {
    let (runtime, dir) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let (options, log) =
        runtime.block_on(made(dir.path(), &[(0, 0, 10), (1, 0, 10), (0, 10, 15), (1, 10, 12)]));
    let plan = plan([planned(0, Standing::Trimmed, 0, (12, 30)), planned(1, Standing::Follows, 4, (4, 30))]);
    let cache = Cache::open(options.cache_dir(), u64::MAX).unwrap();
    let stop = CancellationToken::new();
    let mut reading = Reading::new(&options, &plan, (&cache, &identity()), None, &stop).unwrap();
    let _within = runtime.enter();
    reading.log(&log, &options.origin(identity().topic_id)).unwrap();
    assert_eq!(reading.folded.read, 12, "of partition 0 what Kafka lacks, of the other one nothing");
    // It is withdrawn, or has to begin again, and Kafka has lost more meanwhile.
    let announced = [at(0, 0), at(1, 4)];
    assert_eq!(resumed(&runtime, &log, &options, &announced), [at(0, 15), at(1, 12)]);
    runtime.block_on(log.close()).unwrap();
}

#[test]
fn what_the_log_holds_past_an_end_that_is_announced_is_gone_before_that() {
    let (runtime, dir) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    // Partition 0 was announced up to 60, then cut to 40.
    let (options, log) = runtime.block_on(made(dir.path(), &[(0, 0, 70), (1, 0, 10)]));
    let plan =
        plan([planned(0, Standing::Shorter, 60, (40, 40)), planned(1, Standing::Trimmed, 0, (10, 10))]);
    let announced = [at(0, 60), at(1, 0)];
    assert_eq!(resumed(&runtime, &log, &options, &announced), [at(0, 70), at(1, 10)]);
    let life = Life { epoch: 2, writer: Uuid::from_u128(5) };
    let request = Rebuild {
        dataset: "d".into(),
        shard: Shard(0),
        history: identity().topic_id,
        id: Uuid::from_u128(6),
        from: From::Positions,
        deletes: false,
        at: 0,
    };
    let rebuilder = Rebuilder {
        options: options.clone(),
        request,
        plan,
        view: View::empty(identity(), options.schema.clone()),
        lost: false,
        life,
        identity: identity(),
        cache: Cache::open(options.cache_dir(), u64::MAX).unwrap(),
        log: log.clone(),
        library: None,
    };
    let _within = runtime.enter();
    let built = rebuilder.build(&CancellationToken::new()).unwrap();
    assert_eq!(built.delta.upserts, 10, "of the other partition, from the log");
    // A crash before it is announced costs that partition nothing.
    assert_eq!(resumed(&runtime, &log, &options, &announced), [at(0, 60), at(1, 10)]);
    // Announced, and what Kafka holds at 40 now is read there.
    assert_eq!(resumed(&runtime, &log, &options, &[at(0, 40), at(1, 10)]), [at(0, 40), at(1, 10)]);
    runtime.block_on(log.close()).unwrap();
}

/// The fold has read the beginning of a partition from the log; a rebuild that begins again must find it there.
#[test]
fn what_the_log_holds_before_an_end_stays_where_the_rest_of_the_chunk_goes() {
    let (runtime, dir) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let (options, log) = runtime.block_on(made(dir.path(), &[(0, 0, 70), (1, 0, 10)]));
    let plan = plan([planned(0, Standing::Trimmed, 0, (12, 40)), planned(1, Standing::Trimmed, 0, (10, 10))]);
    let origin = options.origin(identity().topic_id);
    let _within = runtime.enter();
    let read = |read: u64| {
        let cache = Cache::open(options.cache_dir(), u64::MAX).unwrap();
        let stop = CancellationToken::new();
        let mut reading = Reading::new(&options, &plan, (&cache, &identity()), None, &stop).unwrap();
        reading.log(&log, &origin).unwrap();
        assert_eq!(reading.folded.read, read);
    };
    read(22);
    cut_back(&log, &origin, &plan).unwrap();
    read(22);
    assert_eq!(resumed(&runtime, &log, &options, &[at(0, 0), at(1, 0)]), [at(0, 40), at(1, 10)]);
    runtime.block_on(log.close()).unwrap();
}

#[test]
fn a_log_is_held_against_what_was_announced_also_of_a_topic_that_is_gone() {
    let mut plan = plan([
        planned(0, Standing::Follows, 4, (0, 30)),
        Planned { announced: None, ..planned(1, Standing::New, 0, (0, 20)) },
    ]);
    let before = SourcePartition { topic_id: TopicId([2; 16]), ..source(0) };
    plan.positions.push(SourcePosition { source: before.clone(), start: 0, offset: 7, target: 7 });
    assert_eq!(plan.announced(), [at(0, 4), Position { source: before, offset: 7 }]);
    assert_eq!(plan.ends(), [at(0, 30), at(1, 20)]);
}
