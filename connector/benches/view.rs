//! The reading side, measured: `cargo bench --bench view [RECORDS]`, a million records of 200 bytes by default.
//!
//! Each line has a baseline from the same run: what a machine like this one needs for the bare minimum of the same
//! work. Trust the ratios, not the figures.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use stillwell::blob::name::Kind as Blob;
use stillwell::clock::{Clock, Entropy};
use stillwell::codec::Filter;
use stillwell::format::container::{Header, Kind, LEVEL, Writer, compress, unpack};
use stillwell::record::{Entry, Stamp, TopicId};
use stillwell::schema::Schema;
use stillwell::schema::wire::{put_bytes, put_long};
use stillwell::version::{BlobRef, Chain, Checksum, DeltaRef, Life, Shard, SnapshotRef, Version};
use stillwell::view::{About, BaseFiles, Cache, DeltaFile, FileName, Files, Held, Hold, Identity, View};

const PRODUCT: &str = r#"{"type":"record","name":"Product","fields":[
    {"name":"id","type":"string"},{"name":"name","type":"string"},{"name":"price","type":"double"},
    {"name":"stock","type":"int"},{"name":"tags","type":{"type":"array","items":"string"}},
    {"name":"note","type":["null","string"]}]}"#;

const LIFE: Life = Life { epoch: 1, writer: uuid::Uuid::nil() };

struct Bench {
    clock: Clock,
    entropy: Entropy,
    cache: Cache,
    identity: Identity,
    schema: Arc<Schema>,
    records: u64,
}

fn key(number: u64) -> Vec<u8> {
    format!("product-{number:010}").into_bytes()
}

/// About 200 bytes that compress as records do: some words, some digits.
fn datum(number: u64, round: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(210);
    put_bytes(&mut out, &key(number));
    put_bytes(
        &mut out,
        format!("A thing of some use, number {}", number.wrapping_mul(0x9e37_79b9) % 100_000).as_bytes(),
    );
    out.extend_from_slice(&(number as f64 * 0.25 + round as f64).to_le_bytes());
    put_long(&mut out, (number % 500) as i64);
    put_long(&mut out, 2);
    put_bytes(&mut out, b"garden");
    put_bytes(&mut out, b"red");
    put_long(&mut out, 0);
    put_long(&mut out, 1);
    let note = format!("{:0100}", number.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ round);
    put_bytes(&mut out, note.as_bytes());
    out
}

impl Bench {
    fn time<T>(&self, work: impl FnOnce() -> T) -> (T, Duration) {
        let start = self.clock.now();
        let done = work();
        (done, self.clock.now() - start)
    }

    fn header(&self, kind: Kind, version: u64) -> Header {
        let previous = Version(version - 1);
        self.identity.header(kind, Version(version), previous, LIFE, &self.schema, Vec::new())
    }

    fn keep(&self, kind: Blob, version: u64, bytes: &[u8]) -> (Held, BlobRef) {
        let checksum = Checksum::of(bytes);
        let name =
            FileName { kind, version: Version(version), epoch: 1, checksum, bytes: bytes.len() as u64 };
        let blob = BlobRef {
            name: String::new(),
            bytes: name.bytes,
            checksum,
            plain_bytes: name.bytes,
            plain_checksum: checksum,
            location: None,
        };
        (self.cache.put(&self.identity, &name, bytes).expect("the cache can be written"), blob)
    }

    /// A delta of `count` random keys; also what a reader would hold of it.
    fn delta(&self, version: u64, count: u64) -> (Held, DeltaRef) {
        let mut numbers: Vec<u64> = (0..count).map(|_| self.entropy.next_u64() % self.records).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut writer =
            Writer::new(Vec::new(), &self.header(Kind::Delta, version)).expect("memory takes it");
        for number in numbers {
            let value = datum(number, version);
            let stamp = Stamp { timestamp: version as i64, source: 0, offset: number as i64 };
            writer.push(&Entry { key: &key(number), stamp, value: Some(&value) }).expect("keys ascend");
        }
        let (summary, plain) = writer.finish().expect("memory takes it");
        let (held, blob) = self.keep(Blob::Delta, version, &plain);
        let counts = summary.counts;
        (held, DeltaRef { version: Version(version), epoch: 1, blob, upserts: counts.upserts, deletes: 0 })
    }

    fn about(&self, version: u64) -> About {
        About { version: Version(version), life: LIFE, ..About::nothing(self.schema.clone()) }
    }

    fn apply(&self, view: &View, held: &Held, delta: &DeltaRef) -> View {
        let file = DeltaFile::open(held, &self.identity, delta, view.schema()).expect("it was just written");
        view.apply(Arc::new(file), self.about(delta.version.0)).expect("it follows")
    }

    fn line(&self, what: &str, ours: f64, unit: &str, baseline: &str, theirs: f64) {
        println!(
            "{what:<44} {ours:>12.1} {unit:<10} {baseline:<36} {theirs:>12.1}   ratio {:>6.2}",
            ours / theirs
        );
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The median of several runs.
fn median(mut runs: Vec<f64>) -> f64 {
    runs.sort_by(f64::total_cmp);
    runs.get(runs.len() / 2).copied().unwrap_or_default()
}

fn main() {
    let records = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(1_000_000u64);
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    let bench = Bench {
        clock: Clock::system(),
        entropy: Entropy::seeded(1),
        cache: Cache::open(dir.path(), u64::MAX).expect("it was just made"),
        identity: Identity {
            dataset: "bench".into(),
            topic_id: TopicId([1; 16]),
            shard: Shard(0),
            shards: 1,
        },
        schema: Arc::new(Schema::dataset(PRODUCT).expect("it is a record")),
        records,
    };
    let values: Vec<(Vec<u8>, Vec<u8>)> =
        (0..records).map(|number| (key(number), datum(number, 0))).collect();
    let bytes: usize = values.iter().map(|(key, value)| key.len() + value.len()).sum();
    println!("{records} records of {} bytes, {:.0} MB\n", bytes as u64 / records, bytes as f64 / 1e6);

    // build + index
    let ((plain, index), built) = bench.time(|| {
        let mut writer = Writer::indexed(Vec::with_capacity(bytes * 5 / 4), &bench.header(Kind::Snapshot, 1))
            .expect("memory takes it");
        for (number, (key, value)) in values.iter().enumerate() {
            let stamp = Stamp { timestamp: 1, source: 0, offset: number as i64 };
            writer.push(&Entry { key, stamp, value: Some(value) }).expect("keys ascend");
        }
        let (_, plain, builder) = writer.finish_indexed().expect("memory takes it");
        let mut index = Vec::new();
        builder.write(&mut index).expect("memory takes it");
        (plain, index)
    });
    let (_, copied) = bench.time(|| {
        let copy = black_box(plain.clone());
        black_box(Checksum::of(&copy))
    });
    bench.line("build and index a snapshot", ms(built), "ms", "copy and checksum its bytes, ms", ms(copied));
    let (stored, packed) = bench.time(|| {
        let mut stored = Vec::with_capacity(plain.len());
        compress(&plain, LEVEL, &mut stored).expect("it is a container");
        stored
    });
    let (_, unpacked) = bench.time(|| {
        let mut out = Vec::with_capacity(plain.len());
        unpack(stored.chunks(64 << 10), stored.len() as u64, plain.len() as u64, &mut out).expect("it is one")
    });
    bench.line("compress it", ms(packed), "ms", "copy and checksum its bytes, ms", ms(copied));
    bench.line("unpack and check it", ms(unpacked), "ms", "copy and checksum its bytes, ms", ms(copied));
    println!(
        "  plain {} MB, stored {} MB, index {} MB",
        plain.len() >> 20,
        stored.len() >> 20,
        index.len() >> 20
    );

    // open
    let (snapshot_held, snapshot_blob) = bench.keep(Blob::Snapshot, 1, &plain);
    let (index_held, index_blob) = bench.keep(Blob::Index, 1, &index);
    let snapshot =
        SnapshotRef { version: Version(1), epoch: 1, blob: snapshot_blob, index: index_blob, records };
    let mut chain = Chain { snapshot: Some(snapshot), deltas: Vec::new() };
    let mut files =
        Files { base: Some(BaseFiles { snapshot: snapshot_held, index: index_held }), deltas: Vec::new() };
    let open = |files: &Files, chain: &Chain| {
        View::open(&bench.identity, files, chain, bench.about(chain.version().0))
            .expect("it was just written")
    };
    let opened = median(
        (0..11)
            .map(|_| ms(bench.time(|| open(&files, &chain).get(key(7)).expect("whole").is_some()).1))
            .collect(),
    );
    bench.line("open warm, to the first get", opened, "ms", "copy and checksum its bytes, ms", ms(copied));

    // get
    let view = open(&files, &chain);
    let map: HashMap<Vec<u8>, Vec<u8>> = values.iter().cloned().collect();
    let wanted: Vec<Vec<u8>> = (0..1_000_000).map(|_| key(bench.entropy.next_u64() % records)).collect();
    let absent: Vec<Vec<u8>> =
        (0..1_000_000).map(|_| key(records + bench.entropy.next_u64() % records)).collect();
    let ours = |view: &View, keys: &[Vec<u8>]| {
        let sum = |key: &Vec<u8>| {
            let value = view.get(key).expect("whole");
            value.map_or(0, |value| value.bytes().last().map_or(0, |byte| u64::from(*byte)))
        };
        bench.time(|| black_box(keys.iter().map(sum).sum::<u64>())).1.as_nanos() as f64 / keys.len() as f64
    };
    let theirs = |keys: &[Vec<u8>]| {
        let sum =
            |key: &Vec<u8>| map.get(key).map_or(0, |value| value.last().map_or(0, |byte| u64::from(*byte)));
        bench.time(|| black_box(keys.iter().map(sum).sum::<u64>())).1.as_nanos() as f64 / keys.len() as f64
    };
    let first = ours(&view, &wanted);
    println!("  first pass over fresh maps, pages checked and faulted in: {first:.0} ns a get");
    for (what, keys) in [("get", &wanted), ("get what is absent", &absent)] {
        let ours = median((0..7).map(|_| ours(&view, keys)).collect());
        let theirs = median((0..7).map(|_| theirs(keys)).collect());
        bench.line(what, ours, "ns", "std HashMap<Vec<u8>, Vec<u8>>, ns", theirs);
    }
    let ns = |threads: usize, work: &(dyn Fn() -> f64 + Sync)| {
        let spent: Vec<f64> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        median(spent)
    };
    let two = ns(2, &|| ours(&view, &wanted));
    bench.line("get, two threads", two, "ns", "std HashMap, two threads, ns", ns(2, &|| theirs(&wanted)));
    let scanned = median(
        (0..3).map(|_| ms(bench.time(|| assert_eq!(view.iter().count() as u64, records)).1)).collect(),
    );
    let walked = ms(bench.time(|| black_box(map.values().map(|value| value.len()).sum::<usize>())).1);
    bench.line("scan all", scanned, "ms", "walk the HashMap, ms", walked);

    // refresh
    let mut latest = view.clone();
    let mut times = Vec::new();
    let mut copies = Vec::new();
    for version in 2..=40 {
        let (held, delta) = bench.delta(version, 10_000);
        let (next, took) = bench.time(|| bench.apply(&latest, &held, &delta));
        let bytes = std::fs::read(held.path()).expect("it was just written");
        copies.push(ms(bench.time(|| black_box(bytes.clone())).1));
        times.push(ms(took));
        latest = next;
        chain.deltas.push(delta);
        files.deltas.push(held);
    }
    let most = times.iter().copied().fold(0.0, f64::max);
    let copied_delta = median(copies);
    bench.line(
        "apply 10,000 changes, median",
        median(times),
        "ms",
        "copy the delta's bytes, ms",
        copied_delta,
    );
    bench.line("apply 10,000 changes, slowest of 39", most, "ms", "copy the delta's bytes, ms", copied_delta);
    let size = latest.overlay();
    println!("  {} deltas, {} entries in {} runs", size.deltas, size.entries, size.runs);
    let covered = median((0..5).map(|_| ours(&latest, &wanted)).collect());
    let plain_get = median((0..5).map(|_| theirs(&wanted)).collect());
    bench.line("get through that overlay", covered, "ns", "std HashMap, ns", plain_get);
    let opened = median(
        (0..3)
            .map(|_| ms(bench.time(|| open(&files, &chain).get(key(7)).expect("whole").is_some()).1))
            .collect(),
    );
    bench.line("open warm with 39 deltas", opened, "ms", "copy and checksum the snapshot, ms", ms(copied));

    // merge
    let (merged, took) = bench.time(|| latest.merge_snapshot(LIFE, &bench.cache).expect("whole"));
    bench.line(
        "merge base and overlay into a snapshot",
        ms(took),
        "ms",
        "copy and checksum its bytes, ms",
        ms(copied),
    );
    let (rebased, took) = bench.time(|| latest.rebase(merged.into_base().expect("whole")).expect("it fits"));
    println!("  rebase onto it: {:.2} ms, {} entries left over it", ms(took), rebased.overlay().entries);
    many(&bench, &rebased, &wanted);
    held(&bench, &rebased, ms(copied));
}

/// Keys one by one, and thirty-two at a time.
fn many(bench: &Bench, view: &View, wanted: &[Vec<u8>]) {
    let each = |took: Duration| took.as_nanos() as f64 / wanted.len() as f64;
    let (mut one, mut many) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let get = || wanted.iter().filter(|key| view.get(key).expect("whole").is_some()).count();
        one.push(each(bench.time(|| black_box(get())).1));
        let get = || -> usize {
            let batches = wanted.chunks(256).map(|keys| view.get_many(keys).expect("whole"));
            batches.map(|values| values.iter().flatten().count()).sum()
        };
        many.push(each(bench.time(|| black_box(get())).1));
    }
    bench.line("get_many, a key", median(many), "ns", "get, ns", median(one));
}

/// An index, and a part of the dataset.
fn held(bench: &Bench, view: &View, copied: f64) {
    let index = || vec![vec!["stock".to_owned()]];
    let baseline = "copy and checksum the snapshot, ms";
    let indexed = Arc::new(Hold::new(None, None, index()));
    let hold = |hold: &Arc<Hold>| view.clone().hold(hold, &bench.cache).expect("it fits");
    let (indexed, took) = bench.time(|| hold(&indexed));
    bench.line("index one field", ms(took), "ms", baseline, copied);
    println!("  {} bytes of indexes for {} records", indexed.index_bytes(), view.records());
    let (found, took) = bench.time(|| {
        let found = (0..500i64).map(|stock| indexed.by("stock", stock).expect("an index").count());
        found.sum::<usize>()
    });
    let walked = bench.time(|| view.iter().count());
    let each = |took: Duration, count: usize| took.as_nanos() as f64 / count.max(1) as f64;
    bench.line(
        "look all up by it, a record",
        each(took, found),
        "ns",
        "scan, a record, ns",
        each(walked.1, walked.0),
    );
    let (file, delta) = bench.delta(view.version().0 + 1, 10_000);
    let (_, plain) = bench.time(|| bench.apply(view, &file, &delta));
    let (_, took) = bench.time(|| bench.apply(&indexed, &file, &delta));
    bench.line("apply 10,000 changes with the index", ms(took), "ms", "the same without, ms", ms(plain));

    let filter = Filter::parse("stock < 50").expect("a filter");
    let part = Arc::new(Hold::new(Some(filter), Some(vec!["id".to_owned(), "stock".to_owned()]), Vec::new()));
    let (part, took) = bench.time(|| hold(&part));
    bench.line("hold two fields of a tenth", ms(took), "ms", baseline, copied);
    let (_, took) = bench.time(|| bench.apply(&part, &file, &delta));
    bench.line("apply 10,000 changes to that", ms(took), "ms", "the same to the whole, ms", ms(plain));
}
