//! Instructions of one read, counted by Callgrind: `cargo bench --bench instructions`. Needs valgrind.
//!
//! Two cores that are shared give other times in each run; instructions are the same in all of them, so that a change of a few
//! shows. They say nothing of the memory that a read waits for, which is most of its time: that is `stillwell bench read`.
//!
//! ```text
//! cases --one process each--> valgrind --tool=callgrind, counting within `counted_*` alone --> a table
//! ```

use std::collections::HashMap;
use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use stillwell::blob::name::Kind as Blob;
use stillwell::clock::Entropy;
use stillwell::format::container::{Header, Kind, Writer};
use stillwell::record::{Entry, Stamp, TopicId};
use stillwell::schema::Schema;
use stillwell::schema::wire::{put_bytes, put_long};
use stillwell::version::{BlobRef, Chain, Checksum, DeltaRef, Life, Shard, SnapshotRef, Version};
use stillwell::view::{About, BaseFiles, Cache, DeltaFile, FileName, Files, Held, Identity, View};

const PRODUCT: &str = r#"{"type":"record","name":"Product","fields":[
    {"name":"id","type":"string"},{"name":"name","type":"string"},{"name":"price","type":"double"},
    {"name":"stock","type":"int"},{"name":"note","type":"string"}]}"#;
const LIFE: Life = Life { epoch: 1, writer: uuid::Uuid::nil() };

/// What a read takes hardly depends on how many records there are; that valgrind is fifty times slower does.
const RECORDS: u64 = 20_000;
const DELTAS: u64 = 25;
const CHANGES: u64 = 200;
const GETS: usize = 10_000;

/// What is counted, and what it is called.
const CASES: [(&str, &str); 6] = [
    ("base", "get, a fresh base"),
    ("absent", "get what is absent, a fresh base"),
    ("beneath", "get of the base, 25 deltas over it"),
    ("changed", "get of a delta, 25 of them"),
    ("field", "get and its fourth field, a fresh base"),
    ("map", "std HashMap<Vec<u8>, Vec<u8>>"),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().position(|word| word == "--case").and_then(|at| words.get(at + 1)) {
        Some(case) => count(case),
        None => return table(),
    }
    ExitCode::SUCCESS
}

/// Runs each case under valgrind.
fn table() -> ExitCode {
    let program = std::env::current_exe().expect("this program has a path");
    println!("{:<42} {:>12}", "INSTRUCTIONS", "OF ONE");
    for (case, what) in CASES {
        let run = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
            .args(["--toggle-collect=*counted_*"])
            .arg(&program)
            .args(["--case", case])
            .output();
        let said = match run {
            Ok(run) if run.status.success() => String::from_utf8_lossy(&run.stderr).into_owned(),
            Ok(run) => {
                eprintln!("valgrind ended with {}:\n{}", run.status, String::from_utf8_lossy(&run.stderr));
                return ExitCode::FAILURE;
            }
            Err(error) => {
                eprintln!("valgrind cannot be run ({error}): install the package valgrind");
                return ExitCode::FAILURE;
            }
        };
        let counted =
            said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse::<u64>().ok());
        match counted {
            Some(counted @ 1..) => println!("{what:<42} {:>12.1}", counted as f64 / GETS as f64),
            _ => {
                eprintln!("valgrind counted nothing:\n{said}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

#[inline(never)]
fn counted_gets(view: &View, keys: &[Vec<u8>]) -> u64 {
    let read = |key: &Vec<u8>| view.get(key).expect("whole").map_or(0, |value| last(value.bytes()));
    keys.iter().map(read).sum()
}

#[inline(never)]
fn counted_fields(view: &View, keys: &[Vec<u8>]) -> i64 {
    let stock = |key: &Vec<u8>| {
        let value = view.get(key).expect("whole");
        value.map_or(0, |value| i64::from(value.field::<i32>("stock").expect("an int")))
    };
    keys.iter().map(stock).sum()
}

#[inline(never)]
fn counted_map(map: &HashMap<Vec<u8>, Vec<u8>>, keys: &[Vec<u8>]) -> u64 {
    keys.iter().map(|key| map.get(key).map_or(0, |value| last(value))).sum()
}

fn last(value: &[u8]) -> u64 {
    value.last().map_or(0, |byte| u64::from(*byte))
}

/// One case, once all pages were seen and mapped.
fn count(case: &str) {
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    let dataset = Dataset::new(dir.path());
    let entropy = Entropy::seeded(1);
    let some = |of: &dyn Fn(u64) -> u64| -> Vec<Vec<u8>> {
        (0..GETS).map(|_| key(of(entropy.next_u64()))).collect()
    };
    let any = some(&|chance| chance % RECORDS);
    let base = dataset.base();
    let warm = |view: &View| {
        assert_eq!(view.iter().count() as u64, RECORDS);
        assert!((0..RECORDS).all(|number| view.get(key(number)).expect("whole").is_some()));
    };
    match case {
        "map" => {
            let value = |number| (key(number), datum(number, 0));
            let map = (0..RECORDS).map(value).collect();
            black_box(counted_map(&map, &any));
        }
        "base" => {
            warm(&base);
            black_box(counted_gets(&base, &any));
        }
        "field" => {
            warm(&base);
            black_box(counted_fields(&base, &any));
        }
        "absent" => {
            warm(&base);
            black_box(counted_gets(&base, &some(&|chance| RECORDS + chance % RECORDS)));
        }
        "beneath" | "changed" => {
            let view = dataset.with_deltas(base);
            warm(&view);
            let keys = match case {
                "changed" => some(&|chance| touched(chance % DELTAS, chance / DELTAS % CHANGES)),
                _ => some(&untouched),
            };
            black_box(counted_gets(&view, &keys));
        }
        other => panic!("there is no case {other}"),
    }
}

/// The record that is the `nth` of those that delta number `delta` changes.
fn touched(delta: u64, nth: u64) -> u64 {
    nth * (RECORDS / CHANGES) + delta
}

/// A record that no delta changes.
fn untouched(chance: u64) -> u64 {
    let step = RECORDS / CHANGES;
    chance % CHANGES * step + DELTAS + chance / CHANGES % (step - DELTAS)
}

fn key(number: u64) -> Vec<u8> {
    format!("product-{number:010}").into_bytes()
}

fn datum(number: u64, round: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(200);
    put_bytes(&mut out, &key(number));
    put_bytes(&mut out, format!("A thing, number {}", number % 100_000).as_bytes());
    out.extend_from_slice(&(number as f64 * 0.25 + round as f64).to_le_bytes());
    put_long(&mut out, (number % 500) as i64);
    put_bytes(&mut out, format!("{:0130}", number.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ round).as_bytes());
    out
}

struct Dataset {
    cache: Cache,
    identity: Identity,
    schema: Arc<Schema>,
}

impl Dataset {
    fn new(dir: &std::path::Path) -> Dataset {
        let topic_id = TopicId([1; 16]);
        Dataset {
            cache: Cache::open(dir, u64::MAX).expect("it was just made"),
            identity: Identity { dataset: "bench".into(), topic_id, shard: Shard(0), shards: 1 },
            schema: Arc::new(Schema::dataset(PRODUCT).expect("it is a record")),
        }
    }

    fn header(&self, kind: Kind, version: u64) -> Header {
        let previous = Version(version - 1);
        self.identity.header(kind, Version(version), previous, LIFE, &self.schema, Vec::new())
    }

    fn about(&self, version: u64) -> About {
        About { version: Version(version), life: LIFE, ..About::nothing(self.schema.clone()) }
    }

    fn keep(&self, kind: Blob, version: u64, bytes: &[u8]) -> (Held, BlobRef) {
        let checksum = Checksum::of(bytes);
        let length = bytes.len() as u64;
        let name = FileName { kind, version: Version(version), epoch: 1, checksum, bytes: length };
        let blob = BlobRef {
            name: String::new(),
            bytes: length,
            checksum,
            plain_bytes: length,
            plain_checksum: checksum,
            location: None,
        };
        (self.cache.put(&self.identity, &name, bytes).expect("the cache can be written"), blob)
    }

    fn base(&self) -> View {
        let mut writer =
            Writer::indexed(Vec::new(), &self.header(Kind::Snapshot, 1)).expect("memory takes it");
        for number in 0..RECORDS {
            let stamp = Stamp { timestamp: 1, source: 0, offset: number as i64 };
            let entry = Entry { key: &key(number), stamp, value: Some(&datum(number, 0)) };
            writer.push(&entry).expect("keys ascend");
        }
        let (_, plain, builder) = writer.finish_indexed().expect("memory takes it");
        let mut index = Vec::new();
        builder.write(&mut index).expect("memory takes it");
        let (snapshot, blob) = self.keep(Blob::Snapshot, 1, &plain);
        let (index, of_index) = self.keep(Blob::Index, 1, &index);
        let files = Files { base: Some(BaseFiles { snapshot, index }), deltas: Vec::new() };
        let snapshot = SnapshotRef { version: Version(1), epoch: 1, blob, index: of_index, records: RECORDS };
        let chain = Chain { snapshot: Some(snapshot), deltas: Vec::new() };
        View::open(&self.identity, &files, &chain, self.about(1)).expect("it was just written")
    }

    fn with_deltas(&self, mut view: View) -> View {
        for delta in 0..DELTAS {
            let version = delta + 2;
            let mut writer =
                Writer::new(Vec::new(), &self.header(Kind::Delta, version)).expect("memory takes it");
            for nth in 0..CHANGES {
                let number = touched(delta, nth);
                let stamp = Stamp { timestamp: version as i64, source: 0, offset: number as i64 };
                let entry = Entry { key: &key(number), stamp, value: Some(&datum(number, version)) };
                writer.push(&entry).expect("keys ascend");
            }
            let (summary, plain) = writer.finish().expect("memory takes it");
            let (held, blob) = self.keep(Blob::Delta, version, &plain);
            let upserts = summary.counts.upserts;
            let delta = DeltaRef { version: Version(version), epoch: 1, blob, upserts, deletes: 0 };
            let file = DeltaFile::open(&held, &self.identity, &delta, view.schema()).expect("it is whole");
            view = view.apply(Arc::new(file), self.about(version)).expect("it follows");
        }
        view
    }
}
