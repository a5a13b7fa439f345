//! The log, measured: `cargo bench --bench log [MEGABYTES]`, 1000 by default, in STILLWELL_BENCH_DIR or the system's
//! temporary folder.
//!
//! - append: how fast chunks become durable, beside the same bytes into one file, each synced; of JSON, as services send it,
//!   and of noise, which nothing compresses
//! - write amplification: bytes that this process caused to be written (`/proc/self/io`), for each byte appended
//! - recovery: from opening to the first chunk, and to the last, of a million records that no version holds
//!
//! Trust the ratios, not the figures. The recovery reads files that were just written: from the page cache.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stillwell::clock::{Clock, Entropy};
use stillwell::disk;
use stillwell::format::chunk::{Body, Chunk, ChunkBuilder};
use stillwell::format::origin::Origin;
use stillwell::gauge::Budget;
use stillwell::producer::log::{AppendError, Appender, Log, Options};
use stillwell::record::{Position, SourcePartition};
use tokio::sync::Semaphore;

const RECORDS: i64 = 1_000_000;
const VALUE: usize = 200;
/// Chunks of a megabyte between appending and announcing: some tenths of a second.
const BEHIND: usize = 16;
/// Pending records that are kept in memory; all else is bounded by bytes.
const PLENTY: usize = 1_000_000_000;

fn source() -> SourcePartition {
    SourcePartition { topic: "bench".into(), topic_id: Default::default(), partition: 0 }
}

fn at(offset: i64) -> Position {
    Position { source: source(), offset }
}

/// What the records hold.
#[derive(Clone, Copy, Debug)]
enum Values {
    Json,
    Noise,
}

/// Each `#` is a digit that cannot be foreseen.
const JSON: &[u8] = br##"{"id":"P-##########","name":"Watering can, ### litres","category":"GARDEN","price_cents":#####,"size":{"width_mm":###,"height_mm":###,"depth_mm":###},"supplier":"S-####","in_stock":true,"rank":#######}"##;

impl Values {
    fn put(self, random: &Entropy, out: &mut Vec<u8>) {
        out.clear();
        match self {
            Values::Json => {
                let (mut digits, mut left) = (0, 0);
                out.extend_from_slice(JSON);
                for byte in out.iter_mut().filter(|byte| **byte == b'#') {
                    if left == 0 {
                        (digits, left) = (random.next_u64(), 18);
                    }
                    *byte = b'0' + (digits % 10) as u8;
                    (digits, left) = (digits / 10, left - 1);
                }
            }
            Values::Noise => {
                (0..VALUE / 8).for_each(|_| out.extend_from_slice(&random.next_u64().to_le_bytes()))
            }
        }
    }
}

/// A chunk of the records `[from, to)`.
fn chunk(builder: &mut ChunkBuilder, values: Values, from: i64, to: i64) -> Chunk {
    let slot = builder.slot(&source(), from);
    let (random, mut value) = (Entropy::seeded(from as u64), Vec::new());
    for offset in from..to {
        values.put(&random, &mut value);
        builder.push(slot, offset, offset, Body::Upsert { key: &offset.to_be_bytes(), value: &value });
    }
    builder.finish()
}

fn append(appender: &Appender, mut chunk: Chunk) {
    loop {
        match appender.append_within(chunk, Duration::from_secs(1)) {
            Ok(()) => return,
            Err(AppendError::Full(back)) => chunk = back,
            Err(AppendError::Failed(error)) => panic!("{error}"),
        }
    }
}

/// Bytes that this process has caused to be written to disk, as Linux counts them.
fn written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or_default()
}

struct Bench {
    clock: Clock,
    megabytes: i64,
    root: tempfile::TempDir,
}

impl Bench {
    async fn open(&self, dir: &Path) -> Log {
        Log::open(dir, Options::new(self.clock.clone())).await.expect("the log opens")
    }

    /// The same bytes into one file, a megabyte at a time, each synced: what the disk can do.
    fn baseline(&self) -> f64 {
        let path = self.root.path().join("baseline");
        let file = File::create(&path).expect("a file");
        let bytes = vec![7; 1 << 20];
        let megabytes = self.megabytes.min(500) as u64;
        let began = self.clock.now();
        for n in 0..megabytes {
            file.write_all_at(&bytes, n << 20).expect("written");
            file.sync_data().expect("synced");
        }
        let rate = megabytes as f64 / (self.clock.now() - began).as_secs_f64();
        std::fs::remove_file(path).expect("removed");
        rate
    }

    /// Appends; either all is announced and trimmed within [`BEHIND`] chunks, or all of it stays.
    async fn amplification(&self, name: &str, values: Values, announced: bool) {
        let baseline = self.baseline();
        let dir = self.root.path().join(name.replace(' ', "-"));
        let log = self.open(&dir).await;
        log.resume(&Origin::any(), &[at(0)]).await.expect("a life");
        let mut reader = log.reader(PLENTY, Budget::new(64 << 20));
        let appender = log.appender();
        let per_chunk = (1 << 20) / (VALUE as i64 + 16);
        let chunks = self.megabytes;
        let (began, before) = (self.clock.now(), written());
        let ahead = Arc::new(Semaphore::new(if announced { BEHIND } else { Semaphore::MAX_PERMITS }));
        let announcing = ahead.clone();
        let appending = tokio::task::spawn_blocking(move || {
            let mut builder = ChunkBuilder::new();
            let mut payload = 0;
            for n in 0..chunks {
                futures::executor::block_on(ahead.acquire()).expect("it stays open").forget();
                let chunk = chunk(&mut builder, values, n * per_chunk, (n + 1) * per_chunk);
                payload += chunk.len() as u64;
                append(&appender, chunk);
            }
            let mut persisted = appender.persisted();
            futures::executor::block_on(persisted.wait_for(|end| *end >= chunks as u64)).expect("durable");
            payload
        });
        if announced {
            for n in 0..chunks {
                reader.next().await.expect("read").expect("open");
                log.trim(&[at((n + 1) * per_chunk)]).await.expect("trimmed");
                announcing.add_permits(1);
            }
        }
        let payload = appending.await.expect("appended");
        let took = (self.clock.now() - began).as_secs_f64();
        let rate = payload as f64 / took / (1 << 20) as f64;
        let disk = log.disk_bytes();
        log.close().await.expect("closed");
        println!(
            "append {values:?}, {name}: {rate:.0} MB/s ({:.2} of the synced file's {baseline:.0}), {:.2} bytes written for each, \
             {} MB on disk",
            rate / baseline,
            (written() - before) as f64 / payload as f64,
            disk >> 20
        );
        std::fs::remove_dir_all(dir).expect("removed");
    }

    /// A million records that wait in the log, in chunks of so many; the process was killed.
    async fn recovery(&self, per_chunk: i64) {
        let dir = self.root.path().join("recovery");
        let log = self.open(&dir).await;
        log.resume(&Origin::any(), &[at(0)]).await.expect("a life");
        let (appender, mut builder) = (log.appender(), ChunkBuilder::new());
        for from in (0..RECORDS).step_by(per_chunk as usize) {
            append(&appender, chunk(&mut builder, Values::Json, from, (from + per_chunk).min(RECORDS)));
        }
        let chunks = (RECORDS + per_chunk - 1) / per_chunk;
        let mut persisted = appender.persisted();
        persisted.wait_for(|end| *end >= chunks as u64).await.expect("durable");
        // Killed: what lies there at this moment, without anything that closing would tidy.
        let left = self.root.path().join("left");
        std::fs::create_dir(&left).expect("a folder");
        for file in std::fs::read_dir(&dir).expect("listed") {
            let file = file.expect("a file");
            std::fs::copy(file.path(), left.join(file.file_name())).expect("copied");
        }
        log.close().await.expect("closed");

        let began = self.clock.now();
        let log = self.open(&left).await;
        let opened = self.clock.now();
        let next = log.resume(&Origin::any(), &[at(0)]).await.expect("a life");
        assert_eq!(next, [at(RECORDS)], "all of it is there");
        let resumed = self.clock.now();
        let mut reader = log.reader(PLENTY, Budget::new(64 << 20));
        let (mut first, mut records) = (None, 0);
        while records < RECORDS as usize {
            let logged = reader.next().await.expect("read").expect("open");
            records += logged.chunk.records();
            first.get_or_insert(self.clock.now());
        }
        let done = self.clock.now();
        let ms = |at: std::time::Instant| (at - began).as_millis();
        println!(
            "recovery, {RECORDS} records in {chunks} chunks, {} MB: open {} ms, resumed {} ms, first chunk {} ms, all {} ms",
            disk::bytes_in(&left) >> 20,
            ms(opened),
            ms(resumed),
            ms(first.expect("there was one")),
            ms(done)
        );
        log.close().await.expect("closed");
        for dir in [dir, left] {
            std::fs::remove_dir_all(dir).expect("removed");
        }
    }
}

fn main() {
    let megabytes = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1000);
    let root = match std::env::var_os("STILLWELL_BENCH_DIR") {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    };
    let bench = Bench { clock: Clock::system(), megabytes, root: root.expect("a temporary folder") };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("threads").block_on(async {
        for values in [Values::Json, Values::Noise] {
            bench.amplification("all announced at once", values, true).await;
            bench.amplification("all of it stays", values, false).await;
        }
        for per_chunk in [5_000, 500, 10] {
            bench.recovery(per_chunk).await;
        }
    });
}
