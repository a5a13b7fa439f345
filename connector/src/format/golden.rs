//! Blobs that earlier builds wrote, read by this one: `tests/golden/{delta,snapshot,index}/v1`, `tests/golden/index/v2`.
//!
//! They were written once, by [`write_them`], and are never written again: what lies in stores and caches cannot be
//! either. A change of the layout gets a new number (`container::FORMAT`, `index::FORMAT`) and a `v2` beside the `v1`,
//! which stays readable. Each file of rows says what is in the blob beside it, in a form that no code here reads back
//! from: key, timestamp, source, offset, then the datum in hexadecimal or `-` for a delete.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use uuid::Uuid;

use super::container::{Header, Kind, LEVEL, Reader, Writer, compress, entry};
use super::index::{FORMAT, Layout, hash, home, u64_at};
use crate::record::{Entry, SourcePartition, Stamp, TopicId};
use crate::schema::Schema;
use crate::schema::wire::{put_bytes, put_long};
use crate::version::{Checksum, Life, Shard, Version};

const SCHEMA: &str = r#"{"type":"record","name":"Product","namespace":"shop","fields":[{"name":"id","type":"string"},{"name":"price","type":"long"},{"name":"note","type":["null","string"],"default":null}]}"#;

fn of_version(kind: &str, version: u32) -> PathBuf {
    let version = format!("v{version}");
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "golden", kind, &version].iter().collect()
}

fn dir(kind: &str) -> PathBuf {
    of_version(kind, 1)
}

fn read(kind: &str, name: &str) -> Vec<u8> {
    let path = dir(kind).join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn row(entry: &Entry<'_>) -> String {
    let Stamp { timestamp, source, offset } = entry.stamp;
    let value = entry.value.map_or("-".to_owned(), hex);
    format!("{} {timestamp} {source} {offset} {value}\n", hex(entry.key))
}

fn rows(plain: &[u8], schema: &Schema) -> String {
    let reader = Reader::parse(plain).unwrap();
    reader.entries(schema).map(|located| row(&located.unwrap().entry)).collect()
}

fn header(kind: Kind) -> Header {
    let source =
        |partition| SourcePartition { topic: "products".into(), topic_id: TopicId([5; 16]), partition };
    Header {
        kind,
        dataset: "products".into(),
        topic_id: TopicId([0xa7; 16]),
        shard: Shard(0),
        shards: 1,
        version: Version(41),
        previous: Version(40),
        life: Life { epoch: 3, writer: Uuid::from_u128(0x0123_4567_89ab_4def_8123_4567_89ab_cdef) },
        entry_schema: Schema::dataset(SCHEMA).unwrap().entry_json().into(),
        sources: vec![source(0), source(1)],
        counts: None,
        former: std::sync::Arc::default(),
    }
}

/// Writes the golden files where they are missing; never over one that exists.
/// `cargo test -p stillwell --lib format::golden -- --ignored`
#[test]
#[ignore = "wrote the golden files, once"]
fn write_them() {
    for (kind, name, count) in [(Kind::Delta, "delta", 40), (Kind::Snapshot, "snapshot", 1_000)] {
        let mut writer = Writer::indexed(Vec::new(), &header(kind)).unwrap();
        let mut lines = String::new();
        for number in 0..count {
            let key = format!("P-{number:06}");
            let mut datum = Vec::new();
            put_bytes(&mut datum, key.as_bytes());
            put_long(&mut datum, number * 100 - 5_000);
            match number % 3 {
                0 => put_long(&mut datum, 0),
                _ => {
                    put_long(&mut datum, 1);
                    put_bytes(&mut datum, "żółw ".repeat((number % 7) as usize).as_bytes());
                }
            }
            let stamp = Stamp {
                timestamp: 1_760_000_000_000 + number * 37,
                source: (number % 2) as u32,
                offset: number * 3,
            };
            let gone = kind == Kind::Delta && number % 5 == 0;
            let entry = Entry { key: key.as_bytes(), stamp, value: (!gone).then_some(&datum[..]) };
            writer.push(&entry).unwrap();
            write!(lines, "{}", row(&entry)).unwrap();
        }
        let (summary, plain, builder) = writer.finish_indexed().unwrap();
        let mut stored = Vec::new();
        compress(&plain, LEVEL, &mut stored).unwrap();
        let put = |kind: &str, name: &str, bytes: &[u8]| {
            fs::create_dir_all(dir(kind)).unwrap();
            let path = dir(kind).join(name);
            if !path.exists() {
                fs::write(path, bytes).unwrap();
            }
        };
        put(name, "plain.avro", &plain);
        put(name, "stored.avro", &stored);
        put(name, "rows.txt", lines.as_bytes());
        put(name, "checksum.txt", format!("{}\n", summary.plain_checksum).as_bytes());
        if kind == Kind::Snapshot {
            let path = of_version("index", FORMAT).join("of-snapshot.index");
            if !path.exists() {
                fs::create_dir_all(of_version("index", FORMAT)).unwrap();
                builder.write(&mut fs::File::create(path).unwrap()).unwrap();
            }
        }
    }
}

#[test]
fn containers_of_format_1_read_as_they_were_written() {
    let schema = Schema::dataset(SCHEMA).unwrap();
    for (kind, name) in [(Kind::Delta, "delta"), (Kind::Snapshot, "snapshot")] {
        let (plain, stored) = (read(name, "plain.avro"), read(name, "stored.avro"));
        assert_eq!(Reader::parse(&plain).unwrap().header(), &header(kind));
        assert_eq!(rows(&plain, &schema).into_bytes(), read(name, "rows.txt"));
        assert_eq!(format!("{}\n", Checksum::of(&plain)).into_bytes(), read(name, "checksum.txt"));
        let mut unpacked = Vec::new();
        let (stored_bytes, plain_bytes) = (stored.len() as u64, plain.len() as u64);
        let sums = super::container::unpack([&stored], stored_bytes, plain_bytes, &mut unpacked).unwrap();
        assert_eq!(sums.plain_checksum, Some(Checksum::of(&plain)));
        assert_eq!(unpacked, plain);
        assert!(header(kind).schema().unwrap().encodes_like(&schema));
    }
}

#[test]
fn an_index_of_either_format_finds_every_key() {
    for version in [1, 2] {
        an_index_finds_every_key(version);
    }
}

fn an_index_finds_every_key(version: u32) {
    let schema = Schema::dataset(SCHEMA).unwrap();
    let plain = read("snapshot", "plain.avro");
    let file = fs::read(of_version("index", version).join("of-snapshot.index")).unwrap();
    let layout = Layout::parse(&file).unwrap();
    assert_eq!(layout.snapshot_checksum, Checksum::of(&plain));
    assert_eq!(layout.snapshot_bytes, plain.len() as u64);
    let page_sums: Vec<u64> = plain.chunks(16 << 10).map(|page| Checksum::of(page).0).collect();
    assert_eq!(layout.snapshot_sums(&file), page_sums);
    let reader = Reader::parse(&plain).unwrap();
    for located in reader.entries(&schema) {
        let located = located.unwrap();
        let hash = hash(located.entry.key);
        let found = (home(hash, layout.homes)..layout.slots)
            .map_while(|slot| layout.slot(u64_at(&file, layout.slot_at(slot) as usize).unwrap(), hash))
            .filter(|taken| taken.is_alike)
            .find(|taken| entry(&plain[taken.offset..], &schema).unwrap().0.key == located.entry.key)
            .expect("it is there");
        assert_eq!(found.offset as u64, located.offset);
        let (_, length) = entry(&plain[found.offset..], &schema).unwrap();
        assert_eq!(found.length, if version == 1 { 0 } else { length });
    }
    let first = u64_at(&file, layout.block_at(0) as usize);
    assert_eq!(first, Some(reader.body() as u64));
}
