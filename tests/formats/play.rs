//! Each format, read by everything that reads it.
//!
//! A value is said in a few words, an error in its own; what contradicts itself panics, which the caller tells.

use std::sync::Arc;

use bytes::Bytes;
use stillwell::format::announcement::Message;
use stillwell::format::chunk::{Chunk, Packer, Summary, carve};
use stillwell::format::container::{AnyReader, Kind, LEVEL, Reader, compress, unpack};
use stillwell::format::control::{Control, Standing};
use stillwell::format::index::{Layout, PAGE, u64_at};
use stillwell::format::letter::{Elsewhere, Letter};
use stillwell::format::origin::Origin;
use stillwell::schema::Schema;
use stillwell::version::{BlobRef, Chain, Checksum, SnapshotRef};
use stillwell::view::{About, BaseFiles, Cache, DeltaFile, FileName, Files, Identity, View};
use stillwell::{Shard, TopicId};
use stillwell_tests::{scratch, workspace};

use crate::record::record;
use crate::values;

/// A format.
pub struct Format {
    /// Its folder in the corpus.
    pub name: &'static str,
    /// Golden files that are made worse, too.
    pub golden: &'static [&'static str],
    /// Reads it.
    pub play: fn(&[u8]) -> Result<String, String>,
    /// Makes its checksums right again.
    pub reseal: Option<fn(&mut [u8])>,
    /// Bytes of memory that reading takes, whatever is read.
    pub memory: usize,
}

/// All of them.
pub const ALL: [Format; 16] = [
    Format {
        name: "container",
        golden: &["delta/v1/plain.avro", "delta/v1/stored.avro", "snapshot/v1/stored.avro"],
        play: container,
        reseal: None,
        memory: 8 << 20,
    },
    Format {
        name: "snapshot",
        golden: &["snapshot/v1/plain.avro"],
        play: snapshot,
        reseal: None,
        memory: 8 << 20,
    },
    Format {
        name: "index",
        golden: &["index/v1/of-snapshot.index", "index/v2/of-snapshot.index"],
        play: index,
        reseal: Some(seal_index),
        memory: 8 << 20,
    },
    Format {
        name: "announcement",
        golden: &["announcement/v1/largest.bin", "announcement/v1/smallest.bin", "epoch/v1/epoch.bin"],
        play: announcement,
        reseal: None,
        memory: 256 << 10,
    },
    Format {
        name: "control",
        golden: &[
            "pin/v1/pin.bin",
            "refusal/v1/refusal.bin",
            "rebuild/v1/rebuild.bin",
            "rebuilt/v1/rebuilt.bin",
            "snapshot-request/v1/snapshot-request.bin",
        ],
        play: control,
        reseal: None,
        memory: 256 << 10,
    },
    Format {
        name: "letter",
        golden: &["letter/v1/letter.bin"],
        play: letter,
        reseal: None,
        memory: 256 << 10,
    },
    Format {
        name: "origin",
        golden: &["origin/v1/origin.bin"],
        play: origin,
        reseal: None,
        memory: 256 << 10,
    },
    Format {
        name: "chunk",
        golden: &["chunk/v1/chunk.bin", "chunk/v2/chunk.bin", "chunk/v3/chunk.bin"],
        play: chunk,
        reseal: Some(seal_chunk),
        memory: 256 << 10,
    },
    Format {
        name: "summary",
        golden: &["chunk/v1/summary.bin"],
        play: summary,
        reseal: Some(seal_chunk),
        memory: 256 << 10,
    },
    Format {
        name: "note",
        golden: &["note/v1/current", "note/v2/current"],
        play: note,
        reseal: None,
        memory: 1 << 20,
    },
    Format { name: "schema", golden: &[], play: schema, reseal: None, memory: 8 << 20 },
    Format { name: "avro", golden: &[], play: values::avro, reseal: None, memory: 8 << 20 },
    Format { name: "json", golden: &[], play: values::json, reseal: None, memory: 8 << 20 },
    Format { name: "protobuf", golden: &[], play: values::protobuf, reseal: None, memory: 8 << 20 },
    Format { name: "change", golden: &[], play: values::change, reseal: None, memory: 8 << 20 },
    Format { name: "record", golden: &[], play: record, reseal: None, memory: 8 << 20 },
];

/// All levels of an error.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text += &format!(": {error}");
        next = error.source();
    }
    text
}

/// Plain bytes that a blob was announced with, at most.
const MOST_PLAIN: u64 = 1 << 20;

fn container(bytes: &[u8]) -> Result<String, String> {
    let ways = read(bytes);
    if ways.iter().any(Result::is_ok) { Ok(format!("{ways:?}")) } else { Err(refusals(bytes)) }
}

/// Why bytes are no container, in each of the ways to read one.
pub fn refusals(bytes: &[u8]) -> String {
    let ways = ["mapped", "fetched", "imported"].into_iter().zip(read(bytes));
    ways.filter_map(|(way, read)| Some(format!("{way}: {}; ", read.err()?))).collect()
}

/// Entries, as it is mapped, as it comes from a store, and as anybody's Avro is imported.
fn read(bytes: &[u8]) -> [Result<u64, String>; 3] {
    let plain = plain(bytes);
    let mut out = Vec::new();
    let fetched = unpack(bytes.chunks(1_000), bytes.len() as u64, MOST_PLAIN, &mut out);
    assert!(out.len() as u64 <= MOST_PLAIN);
    let fetched = match fetched {
        Ok(done) => {
            let sum = Some(Checksum::of(&out));
            assert_eq!((done.plain_bytes, done.plain_checksum), (out.len() as u64, sum));
            self::plain(&out)
        }
        Err(error) => Err(chain(&error)),
    };
    if let Ok(entries) = &plain {
        let (mut stored, mut back) = (Vec::new(), Vec::new());
        compress(bytes, LEVEL, &mut stored).expect("what reads as plain compresses");
        unpack([&stored], stored.len() as u64, 2 * bytes.len() as u64, &mut back).expect("and comes back");
        assert_eq!(self::plain(&back).as_ref(), Ok(entries));
    }
    [plain, fetched, any(bytes)]
}

/// As it is mapped: the entries, and as a delta.
fn plain(bytes: &[u8]) -> Result<u64, String> {
    let reader = Reader::parse(bytes).map_err(|error| chain(&error))?;
    let header = reader.header().clone();
    let schema = Arc::new(header.schema().map_err(|error| chain(&error))?);
    let mut count = 0;
    for located in reader.entries(&schema) {
        let located = located.map_err(|error| chain(&error))?;
        let valid = located.entry.value.map(|datum| schema.validate(datum));
        if let Some(Ok(length)) = valid {
            assert!(length <= located.raw.len());
        }
        count += 1;
    }
    let identity = Identity {
        dataset: header.dataset.as_str().into(),
        topic_id: header.topic_id,
        shard: header.shard,
        shards: header.shards,
    };
    match DeltaFile::from_plain(bytes.to_vec(), &identity, &schema) {
        Ok(delta) => assert!(header.kind == Kind::Delta && delta.counts().entries() == count),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    Ok(count)
}

/// As anybody's Avro is imported.
fn any(bytes: &[u8]) -> Result<u64, String> {
    let mut reader = AnyReader::open(bytes, b"").map_err(|error| chain(&error))?;
    let _ = reader.value_schema().map_err(|error| chain(&error))?;
    let (mut datums, mut count) = (Vec::new(), 0u64);
    while let Some(more) = reader.block(&mut datums).map_err(|error| chain(&error))? {
        count = count.saturating_add(more);
    }
    Ok(count)
}

fn golden(name: &str) -> Vec<u8> {
    let path = workspace().join("tests/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A snapshot whose index has the right checksums of whatever it holds.
fn snapshot(bytes: &[u8]) -> Result<String, String> {
    let mut index = golden("index/v2/of-snapshot.index");
    let pages = bytes.len().div_ceil(PAGE);
    let was = Layout::parse(&index).expect("it is whole").snapshot_pages() as usize;
    // The table of the snapshot's pages grows or shrinks in its place; what follows moves with it.
    let sums = bytes.chunks(PAGE).flat_map(|page| Checksum::of(page).0.to_le_bytes());
    index.splice(96..96 + 8 * was, sums);
    let missing = 8 * was as i64 - 8 * pages as i64;
    let padding = 8 * (pages + 2) + 96;
    match usize::try_from(missing) {
        Ok(missing) => drop(index.splice(padding..padding, vec![0; missing])),
        Err(_) => drop(index.drain(padding..padding + missing.unsigned_abs() as usize)),
    }
    put(&mut index, 32, bytes.len() as u64);
    put(&mut index, 40, Checksum::of(bytes).0);
    seal_index(&mut index);
    open(bytes, &index)
}

fn index(bytes: &[u8]) -> Result<String, String> {
    let plain = golden("snapshot/v1/plain.avro");
    let layout = Layout::parse(bytes).map_err(|error| chain(&error))?;
    assert_eq!(layout.bytes, bytes.len() as u64);
    assert_eq!(layout.snapshot_sums(bytes).len() as u64, layout.snapshot_pages());
    assert_eq!(layout.body_sums(bytes).len() as u64, layout.body_pages());
    for slot in 0..layout.slots {
        let word = u64_at(bytes, layout.slot_at(slot) as usize).expect("slots lie in the file");
        let _ = layout.slot(word, slot);
    }
    open(&plain, bytes)
}

/// Opens both as a version, and reads all of it in every way.
fn open(plain: &[u8], index: &[u8]) -> Result<String, String> {
    let reader = Reader::parse(plain).map_err(|error| chain(&error))?;
    let header = reader.header().clone();
    let schema = Arc::new(header.schema().map_err(|error| chain(&error))?);
    let identity = Identity {
        dataset: "products".into(),
        topic_id: header.topic_id,
        shard: header.shard,
        shards: header.shards,
    };
    let blob = |bytes: &[u8]| BlobRef {
        name: String::new(),
        bytes: bytes.len() as u64,
        checksum: Checksum::of(bytes),
        plain_bytes: bytes.len() as u64,
        plain_checksum: Checksum::of(bytes),
        location: None,
    };
    let (version, epoch) = (header.version, header.life.epoch);
    let snapshot = SnapshotRef { version, epoch, blob: blob(plain), index: blob(index), records: 0 };
    let dir = scratch();
    let cache = Cache::open(dir.path(), u64::MAX).expect("a cache");
    let held = |name, bytes| cache.put(&identity, &name, bytes).expect("it can be written");
    let files = BaseFiles {
        snapshot: held(FileName::snapshot(&snapshot), plain),
        index: held(FileName::index(&snapshot), index),
    };
    let files = Files { base: Some(files), deltas: Vec::new() };
    let whole = Chain { snapshot: Some(snapshot), deltas: Vec::new() };
    let about = About { version, life: header.life, ..About::nothing(schema) };
    let view = View::open(&identity, &files, &whole, about).map_err(|error| chain(&error))?;
    let (mut found, mut failed) = (0, String::new());
    for number in 0..1_000 {
        match view.get(format!("P-{number:06}")) {
            Ok(value) => found += usize::from(value.is_some_and(|value| value.to_json().is_ok())),
            Err(error) => failed = error.chain(),
        }
    }
    let mut last: Option<Vec<u8>> = None;
    for (number, value) in view.iter().enumerate() {
        // A lie may lead around in a circle of blocks, each of which is there: who scans sees that it takes too long.
        if number > 5_000 {
            break;
        }
        match value {
            Ok(value) => last = Some(value.key().to_vec()),
            Err(error) => failed = error.chain(),
        }
    }
    let _ = view.prefix("P-0005").take(1_000).filter(Result::is_err).count();
    if let Err(error) = view.merge_snapshot(header.life, &cache) {
        failed = chain(&error);
    }
    if failed.is_empty() { Ok(format!("{found} keys, the last {last:?}")) } else { Err(failed) }
}

fn put(bytes: &mut [u8], at: usize, number: u64) {
    if let Some(place) = bytes.get_mut(at..at + 8) {
        place.copy_from_slice(&number.to_le_bytes());
    }
}

/// The checksums of an index's pages and header, made anew, as far as its numbers can be followed.
fn seal_index(bytes: &mut [u8]) {
    let field = |bytes: &[u8], number: usize| u64_at(bytes, 24 + 8 * number).unwrap_or(0);
    let length = bytes.len() as u64;
    put(bytes, 24, length);
    let body = usize::try_from(field(bytes, 8)).unwrap_or(usize::MAX);
    let table = 96 + 8 * field(bytes, 1).div_ceil(PAGE as u64).min(1 << 20) as usize;
    if let Some(pages) = bytes.get(body..) {
        let sums: Vec<u64> = pages.chunks(PAGE).map(|page| Checksum::of(page).0).collect();
        for (at, sum) in sums.into_iter().enumerate() {
            if table + 8 * at + 8 <= body {
                put(bytes, table + 8 * at, sum);
            }
        }
    }
    if let Some(head) = bytes.get(24..body) {
        let sum = Checksum::of(head).0;
        put(bytes, 16, sum);
    }
}

fn announcement(bytes: &[u8]) -> Result<String, String> {
    let message = Message::decode(bytes).map_err(|error| chain(&error))?;
    assert_eq!(Message::decode(&message.encode()).as_ref(), Ok(&message), "what it says is said again");
    if let Message::Announcement(announcement) = &message {
        assert_eq!(announcement.check(), Ok(()));
        assert_eq!(announcement.chain().version(), announcement.version);
        for delta in announcement.chain.iter().take(4) {
            if let Some(earlier) = announcement.earlier(delta.version) {
                assert_eq!(earlier.version, delta.version);
            }
        }
    }
    Ok(format!("{:?}", message.step()))
}

fn control(bytes: &[u8]) -> Result<String, String> {
    let control = Control::decode(bytes).map_err(|error| chain(&error))?;
    assert_eq!(Control::decode(&control.encode()).as_ref(), Ok(&control), "what it says is said again");
    let mut standing = Standing::default();
    for key in
        ["products/pin", "products/0/refusal/a/b", "products/0/snapshot", "products/x/pin", "products", "/"]
    {
        let _ = standing.take("products", key.as_bytes(), Some(bytes));
        let _ = standing.take("products", key.as_bytes(), None);
    }
    assert_eq!(standing, Standing::default(), "what is deleted does not stand");
    Ok(format!("{control:?}"))
}

fn letter(bytes: &[u8]) -> Result<String, String> {
    let letter = Letter::decode(bytes).map_err(|error| chain(&error))?;
    let mut again = Vec::new();
    letter.encode(&mut again);
    let again = Letter::decode(&again).expect("what it says is said again");
    assert_eq!((&again.key, &again.value, &again.headers), (&letter.key, &letter.value, &letter.headers));
    assert!(letter.message.starts_with(&again.message), "save that texts are bounded");
    let headers = letter.kafka_headers("products", 0, 1, &Elsewhere::Nothing);
    assert!(headers.len() <= letter.headers.len() + 13, "{headers:?}");
    Ok(format!("offset {}", letter.offset))
}

fn origin(bytes: &[u8]) -> Result<String, String> {
    let origin = Origin::parse(bytes).ok_or("no origin of a form that this release reads")?;
    assert_eq!(origin.encode().as_slice(), bytes);
    Ok(origin.topic_id().to_string())
}

fn chunk(bytes: &[u8]) -> Result<String, String> {
    let found = carve(bytes).count();
    assert!(found <= bytes.len() / 40 + 1);
    let chunk = Chunk::parse(Bytes::copy_from_slice(bytes)).map_err(|error| chain(&error))?;
    assert_eq!(chunk.iter().count(), chunk.records(), "each was looked at when it was read");
    for (cursor, record) in chunk.iter() {
        assert_eq!(chunk.at(cursor), record);
        assert!(record.original.is_none_or(|original| original.whole(&record.body).is_ok()));
    }
    assert_eq!(Summary::parse(&chunk.summary().encode()), Ok(chunk.summary()));
    let mut packer = Packer::default();
    let again = Chunk::parse_copy(packer.pack(&chunk)).expect("what it says is said again");
    assert_eq!(again.encoded(), chunk.encoded());
    Ok(format!("{} records", chunk.records()))
}

fn summary(bytes: &[u8]) -> Result<String, String> {
    let summary = Summary::parse(bytes).map_err(|error| chain(&error))?;
    assert_eq!(Summary::parse(&summary.encode()).as_ref(), Ok(&summary), "what it says is said again");
    Ok(format!("{} ranges", summary.ranges.len()))
}

/// The checksum of a chunk or a summary, made anew.
fn seal_chunk(bytes: &mut [u8]) {
    if let Some(sum) = bytes.get(16..).map(|summed| Checksum::of(summed).0) {
        put(bytes, 8, sum);
    }
}

/// What the cache remembers for a start without Kafka: what was noted, or nothing.
fn note(bytes: &[u8]) -> Result<String, String> {
    let dir = scratch();
    let cache = Cache::open(dir.path(), u64::MAX).expect("a cache");
    std::fs::create_dir_all(dir.path().join("products")).expect("a folder");
    for name in ["current-0", "pin"] {
        std::fs::write(dir.path().join("products").join(name), bytes).expect("a note");
    }
    let pin = cache.load_pin("products").map_err(|error| chain(&error))?;
    let current: Option<(TopicId, Vec<u8>)> =
        cache.load_current("products", Shard(0)).map_err(|error| chain(&error))?;
    match (&pin, &current) {
        (None, None) => Err("nothing is remembered".to_owned()),
        _ => Ok(format!("{pin:?}")),
    }
}

fn schema(bytes: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let schema = Schema::parse(text).map_err(|error| chain(&error))?;
    let again = Schema::parse(schema.json()).expect("what it says is said again");
    assert!(again.encodes_like(&schema));
    for datum in [&b""[..], &[0; 64], &[2; 4_096], &[0xff; 32], bytes] {
        if let (Ok(length), Ok(valid)) = (schema.skip(datum), schema.validate(datum)) {
            assert!(length == valid && length <= datum.len());
        }
    }
    if Schema::dataset(text).is_ok() {
        let entry =
            Schema::parse(&schema.entry_json()).map_err(|error| format!("as an entry: {}", chain(&error)))?;
        assert!(entry.skip(&[0; 5]).is_ok(), "a delete");
    }
    Ok(schema.canonical().chars().take(100).collect())
}
