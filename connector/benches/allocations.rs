//! Allocations on the way of a record, counted: `cargo bench --bench allocations [RECORDS]`, 1,000,000 by default.
//!
//! JSON records of about 200 bytes are decoded into chunks, appended to the log, batched and built into versions, as the
//! producer does it; what is counted is every call to the allocator by Rust code, whatever thread makes it, once all
//! buffers have grown to their size. librdkafka's and RocksDB's own are not seen: theirs are by fetch and by group.
//!
//! Ends with 1 if a stage takes more than one allocation for each [`RECORDS_EACH`] records.

#![expect(
    unsafe_code,
    reason = "an allocator is unsafe by its signature; this one passes on to the system's"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stillwell::clock::Clock;
use stillwell::codec::{Codec, ExtraFields, Format, KeyRule};
use stillwell::format::chunk::{Body, Chunk, ChunkBuilder};
use stillwell::format::origin::Origin;
use stillwell::gauge::Budget;
use stillwell::producer::batch::{Batch, Batcher};
use stillwell::producer::build::{Builder, Built, Constants};
use stillwell::producer::log::{AppendError, Log, Options};
use stillwell::producer::pace::Pace;
use stillwell::producer::turns::Turns;
use stillwell::producer::{Batching, Pacing};
use stillwell::record::{Position, SourcePartition, TopicId};
use stillwell::schema::Schema;
use stillwell::telemetry::ProducerMetrics;
use stillwell::version::{Life, Shard};
use stillwell::view::{About, Cache, Identity, View};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A stage may take one allocation for so many records.
const RECORDS_EACH: u64 = 20;
const CHUNK_BYTES: usize = 1 << 20;
const VERSION: usize = 100_000;
const SCHEMA: &str = r#"{"type":"record","name":"Product","fields":[
    {"name":"id","type":"string"},{"name":"name","type":"string"},{"name":"price","type":"double"},
    {"name":"stock","type":"int"},{"name":"note","type":"string"}]}"#;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

fn source() -> SourcePartition {
    SourcePartition { topic: "bench".into(), topic_id: TopicId([1; 16]), partition: 0 }
}

fn start() -> Position {
    Position { source: source(), offset: 0 }
}

/// The texts of records, made before anything is counted.
fn texts(records: u64) -> Vec<(String, String)> {
    let text = |number: u64| {
        let key = format!("product-{number:010}");
        let note = "of some use in house and garden ".repeat(4);
        let value = format!(
            "{{\"id\":\"{key}\",\"name\":\"A thing\",\"price\":{}.25,\"stock\":{},\"note\":\"{note}\"}}",
            number % 100,
            number % 500
        );
        (key, value)
    };
    (0..records).map(text).collect()
}

/// Decodes all of them; gives the chunks, and the allocations of the second half.
fn decode(schema: &Arc<Schema>, texts: &[(String, String)]) -> (Vec<Chunk>, u64) {
    let format = Format::json(ExtraFields::Ignore);
    let mut codec = Codec::new(format, KeyRule::Kafka, schema.clone()).expect("a codec");
    let (mut builder, source) = (ChunkBuilder::new(), source());
    let mut chunks = Vec::with_capacity(texts.len() * 200 / CHUNK_BYTES + 2);
    let mut before = 0;
    for (offset, (key, value)) in texts.iter().enumerate() {
        if offset == texts.len() / 2 {
            before = allocations();
        }
        let slot = builder.slot(&source, offset as i64);
        let decoded = codec.decode(Some(key.as_bytes()), Some(value.as_bytes())).expect("it fits");
        let body = Body::Upsert { key: decoded.key, value: decoded.value.expect("no delete") };
        builder.push(slot, offset as i64, 0, body);
        if builder.bytes() >= CHUNK_BYTES {
            chunks.push(builder.finish());
        }
    }
    chunks.push(builder.finish());
    let counted = allocations() - before;
    (chunks, counted)
}

fn builder(
    dir: &std::path::Path,
    schema: &Arc<Schema>,
    clock: &Clock,
    metrics: &Arc<ProducerMetrics>,
) -> Builder {
    let identity =
        Identity { dataset: "bench".into(), topic_id: TopicId([9; 16]), shard: Shard(0), shards: 1 };
    let view = View::empty(identity.clone(), schema.clone());
    let about = About { positions: vec![start()], ..About::nothing(schema.clone()) };
    let constants = Constants {
        identity,
        life: Life { epoch: 1, writer: uuid::Uuid::nil() },
        sources: [source()].into(),
        schema: schema.clone(),
        compress: true,
        cache: Cache::open(dir.join("cache"), u64::MAX).expect("a cache"),
        max_letter_bytes: 1 << 20,
        format: Format::json(ExtraFields::Ignore),
        chain: 0,
    };
    Builder::new(
        constants,
        view.restate(about).expect("the same version"),
        false,
        clock.clone(),
        metrics.clone(),
    )
}

/// Appends `chunks`, and takes them over into batches; gives the batches, and what that took.
async fn batch(dir: &std::path::Path, chunks: Vec<Chunk>, records: u64) -> (Vec<Batch>, u64) {
    let (clock, metrics) = (Clock::system(), ProducerMetrics::detached());
    let log = Log::open(&dir.join("log"), Options::new(clock.clone())).await.expect("a log");
    log.resume(&Origin::any(), &[start()]).await.expect("a life");
    let reader = log.reader(usize::MAX, Budget::new(u64::MAX >> 1));
    let rules = Batching {
        max_batch_size: VERSION,
        max_batch_bytes: u64::MAX,
        memory_pressure_threshold: usize::MAX,
        ..Batching::default()
    };
    let pace = Pace::new(Pacing::default(), clock.clone());
    let (out, mut batches_in) = mpsc::channel(1);
    let batcher = Batcher::new(reader, pace, rules, clock, metrics, Turns::new(1 << 20, false), out);
    let before = allocations();
    let appender = log.appender();
    let appending = tokio::task::spawn_blocking(move || {
        for mut chunk in chunks {
            while let Err(AppendError::Full(back)) = appender.try_append(chunk) {
                chunk = back;
                std::thread::yield_now();
            }
        }
    });
    let stop = CancellationToken::new();
    let mut batching = JoinSet::new();
    batching.spawn(batcher.run(stop.clone()));
    let mut batches = Vec::new();
    let mut seen = 0;
    while seen < records {
        let batch = batches_in.recv().await.expect("more batches");
        seen += batch.records() as u64;
        batches.push(batch);
    }
    let counted = allocations() - before;
    stop.cancel();
    appending.await.expect("appended");
    batching.join_next().await.expect("it runs").expect("no panic").expect("it reads");
    log.close().await.expect("it closes");
    (batches, counted)
}

/// Builds a version of each batch; gives what the second half of them took.
async fn build(builder: Builder, batches: Vec<Batch>) -> (u64, u64) {
    let (send, batches_in) = mpsc::channel(1);
    let (rebases, rebases_in) = mpsc::channel(1);
    let (out, mut built) = mpsc::channel::<Built>(1);
    let (settled, _) = oneshot::channel();
    let mut building = JoinSet::new();
    building.spawn(builder.run(batches_in, rebases_in, out, settled, CancellationToken::new()));
    let half = batches.len() / 2;
    let (mut before, mut records) = (0, 0);
    for (number, batch) in batches.into_iter().enumerate() {
        if number == half {
            before = allocations();
        }
        if number >= half {
            records += batch.records() as u64;
        }
        send.send(batch).await.expect("it builds");
        built.recv().await.expect("a version");
    }
    let counted = allocations() - before;
    drop((send, rebases));
    building.join_next().await.expect("it runs").expect("no panic").expect("it builds");
    (counted, records)
}

fn main() -> ExitCode {
    let records = std::env::args().filter_map(|word| word.parse().ok()).next().unwrap_or(1_000_000);
    let dir = tempfile::tempdir().expect("a folder");
    let schema = Arc::new(Schema::dataset(SCHEMA).expect("a schema"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let texts = texts(records);
    let (chunks, decoding) = decode(&schema, &texts);
    let (batches, batching) = runtime.block_on(batch(dir.path(), chunks, records));
    let builder = builder(dir.path(), &schema, &Clock::system(), &ProducerMetrics::detached());
    let (building, built) = runtime.block_on(build(builder, batches));
    let mut too_many = false;
    println!("{:<44} {:>12} {:>16}", "stage", "allocations", "for each record");
    for (stage, count, of) in [
        ("JSON decoded into chunks", decoding, records - records / 2),
        ("logged, handed on, batched", batching, records),
        ("compared, sorted, written, next view", building, built),
    ] {
        println!("{stage:<44} {count:>12} {:>16.4}", count as f64 / of as f64);
        too_many |= count * RECORDS_EACH > of;
    }
    ExitCode::from(u8::from(too_many))
}
