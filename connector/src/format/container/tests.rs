use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use uuid::Uuid;

use super::unpack::Batch;
use super::*;
use crate::format::index;
use crate::record::{SourcePartition, TopicId};
use crate::version::{Checksum, Life, Shard, Version};

const PRODUCT: &str = r#"{"type":"record","name":"Product","fields":[{"name":"id","type":"string"},
    {"name":"price","type":"long"},{"name":"tags","type":{"type":"array","items":"string"}},
    {"name":"note","type":["null","string"]}]}"#;

fn header(kind: Kind, schema: &Schema) -> Header {
    Header {
        kind,
        dataset: "products".into(),
        topic_id: TopicId([7; 16]),
        shard: Shard(0),
        shards: 1,
        version: Version(12),
        previous: Version(11),
        life: Life { epoch: 3, writer: Uuid::from_u128(9) },
        entry_schema: schema.entry_json().into(),
        sources: vec![SourcePartition { topic: "products".into(), topic_id: TopicId([5; 16]), partition: 2 }],
        counts: None,
        former: Arc::default(),
    }
}

type Rows = BTreeMap<Vec<u8>, (Stamp, Option<Vec<u8>>)>;

fn product(id: &str, price: i64, tags: &[String], note: Option<&str>) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, id.as_bytes());
    put_long(&mut out, price);
    if !tags.is_empty() {
        put_long(&mut out, tags.len() as i64);
        for tag in tags {
            put_bytes(&mut out, tag.as_bytes());
        }
    }
    put_long(&mut out, 0);
    match note {
        None => put_long(&mut out, 0),
        Some(note) => {
            put_long(&mut out, 1);
            put_bytes(&mut out, note.as_bytes());
        }
    }
    out
}

fn rows() -> impl Strategy<Value = Rows> {
    let value = (
        "[a-z]{0,9}",
        any::<i64>(),
        prop::collection::vec("[a-z]{0,5}", 0..3),
        proptest::option::of(".{0,9}"),
    )
        .prop_map(|(id, price, tags, note)| product(&id, price, &tags, note.as_deref()));
    let stamp = (any::<i64>(), 0..4u32, 0..i64::MAX).prop_map(|(timestamp, source, offset)| Stamp {
        timestamp,
        source,
        offset,
    });
    let key = prop::collection::vec(any::<u8>(), 0..12);
    prop::collection::btree_map(key, (stamp, proptest::option::of(value)), 0..60)
}

/// Many rows, over several blocks, one of them larger than a block.
fn many() -> Rows {
    products(4_000)
}

fn products(count: i64) -> Rows {
    let mut rows = Rows::new();
    for number in 0..count {
        let stamp = Stamp { timestamp: number * 10, source: 1, offset: number };
        let note = (number % 3 == 0).then(|| "n".repeat(if number == 600 { 40_000 } else { 30 }));
        let value = product("id", number, &[], note.as_deref());
        rows.insert(format!("P-{number:05}").into_bytes(), (stamp, (number % 50 != 0).then_some(value)));
    }
    rows
}

fn write(header: &Header, rows: &Rows) -> (Summary, Vec<u8>, index::Builder) {
    let mut writer = Writer::indexed(Vec::new(), header).unwrap();
    for (key, (stamp, value)) in rows {
        writer.push(&Entry { key, stamp: *stamp, value: value.as_deref() }).unwrap();
    }
    writer.finish_indexed().unwrap()
}

fn read(bytes: &[u8], schema: &Schema) -> Result<(Header, Rows), Error> {
    let reader = Reader::parse(bytes)?;
    let mut rows = Rows::new();
    for located in reader.entries(schema) {
        let Located { offset, raw, entry } = located?;
        assert_eq!(&bytes[offset as usize..offset as usize + raw.len()], raw);
        rows.insert(entry.key.to_vec(), (entry.stamp, entry.value.map(<[u8]>::to_vec)));
    }
    Ok((reader.into_header(), rows))
}

/// A file of so many bytes at most, and how far it reaches.
struct Filed {
    bytes: Mutex<Vec<u8>>,
    most: usize,
}

impl Filed {
    fn of(most: usize) -> Filed {
        Filed { bytes: Mutex::default(), most }
    }

    fn into_bytes(self) -> Vec<u8> {
        self.bytes.into_inner().unwrap()
    }
}

impl WriteAt for Filed {
    fn write_all_at(&self, bytes: &[u8], at: u64) -> std::io::Result<()> {
        let mut all = self.bytes.lock().unwrap();
        let end = at as usize + bytes.len();
        if end > self.most {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        let reach = end.max(all.len());
        all.resize(reach, 0xee);
        all[at as usize..end].copy_from_slice(bytes);
        Ok(())
    }
}

fn unpack_by<'p>(
    workers: usize,
    pieces: impl IntoIterator<Item = &'p [u8]>,
    most: (u64, u64),
    out: &Filed,
) -> Result<Unpacked, Error> {
    super::unpack::unpack_by(workers, Batch::unpack, pieces, most.0, most.1, out)
}

fn unpack(stored: &[u8], piece: usize) -> Result<(Unpacked, Vec<u8>), Error> {
    let most = (stored.len() as u64, 1 << 20);
    let mut plain = Vec::new();
    let here = super::unpack(stored.chunks(piece), most.0, most.1, &mut plain).map(|done| (done, plain));
    let out = Filed::of(usize::MAX);
    let spread = unpack_by(3, stored.chunks(piece), most, &out).map(|done| {
        let plain = out.into_bytes();
        (Unpacked { plain_checksum: done.plain_checksum.or(Some(Checksum::of(&plain))), ..done }, plain)
    });
    match (&here, &spread) {
        (Ok(here), Ok(spread)) => assert_eq!(here, spread),
        (Err(here), Err(spread)) => assert_eq!(here.to_string(), spread.to_string()),
        other => panic!("one thread and several see different things: {other:?}"),
    }
    spread
}

proptest! {
    #[test]
    fn what_is_written_reads_back_in_both_forms(rows in rows(), piece in 1..200usize) {
        let schema = Schema::dataset(PRODUCT).unwrap();
        let header = header(Kind::Delta, &schema);
        let (summary, plain, _) = write(&header, &rows);
        prop_assert_eq!(summary.plain_bytes, plain.len() as u64);
        prop_assert_eq!(summary.plain_checksum, Checksum::of(&plain));
        prop_assert_eq!(summary.counts.entries(), rows.len() as u64);
        prop_assert_eq!(read(&plain, &schema).unwrap(), (header, rows));

        let mut stored = Vec::new();
        let written = compress(&plain, LEVEL, &mut stored).unwrap();
        prop_assert_eq!(written, Stored { bytes: stored.len() as u64, checksum: Checksum::of(&stored) });
        for form in [&stored, &plain] {
            let (unpacked, back) = unpack(form, piece).unwrap();
            prop_assert_eq!(&back, &plain);
            prop_assert_eq!(unpacked.checksum, Checksum::of(form));
            prop_assert_eq!(unpacked.plain_checksum, Some(summary.plain_checksum));
        }
    }
}

#[test]
fn several_blocks_read_back_and_every_entry_is_in_the_index() {
    let schema = Schema::dataset(PRODUCT).unwrap();
    let header = header(Kind::Snapshot, &schema);
    let rows = products(16_000);
    let (summary, plain, builder) = write(&header, &rows);
    assert_eq!(read(&plain, &schema).unwrap(), (header, rows.clone()));
    let mut file = Vec::new();
    let written = builder.write(&mut file).unwrap();
    assert_eq!((written.bytes, written.checksum), (file.len() as u64, Checksum::of(&file)));
    let layout = index::Layout::parse(&file).unwrap();
    assert_eq!(layout.snapshot_checksum, summary.plain_checksum);
    assert_eq!((layout.entries, layout.records), (summary.counts.entries(), summary.counts.upserts));
    assert!(layout.blocks > 3);
    let sums: Vec<u64> = plain.chunks(index::PAGE).map(|page| Checksum::of(page).0).collect();
    assert_eq!(layout.snapshot_sums(&file), sums);
    let sums: Vec<u64> =
        file[layout.body as usize..].chunks(index::PAGE).map(|page| Checksum::of(page).0).collect();
    assert_eq!(layout.body_sums(&file), sums);
    let find = |key: &[u8]| {
        let hash = index::hash(key);
        let mut slot = index::home(hash, layout.homes);
        loop {
            let taken = layout.slot(index::u64_at(&file, layout.slot_at(slot) as usize).unwrap(), hash)?;
            let (entry, length) = entry(&plain[taken.offset..], &schema).unwrap();
            assert_eq!(taken.length, if length < 4096 { length } else { 0 });
            if taken.is_alike && entry.key == key {
                return Some(entry);
            }
            slot += 1;
        }
    };
    for (key, (stamp, value)) in &rows {
        assert_eq!(find(key), Some(Entry { key, stamp: *stamp, value: value.as_deref() }));
    }
    assert_eq!(find(b"absent"), None);
}

#[test]
fn entries_out_of_order_and_broken_promises_are_refused() {
    let schema = Schema::raw();
    let mut header = header(Kind::Delta, &schema);
    let entry = |key| Entry { key, stamp: Stamp::default(), value: None };
    let mut writer = Writer::new(Vec::new(), &header).unwrap();
    writer.push(&entry(b"b")).unwrap();
    for key in [&b"a"[..], b"b"] {
        assert!(matches!(writer.push(&entry(key)), Err(Error::Order)));
    }
    header.counts = Some(Counts { upserts: 1, deletes: 0 });
    let mut writer = Writer::new(Vec::new(), &header).unwrap();
    writer.push(&entry(b"b")).unwrap();
    assert!(matches!(writer.finish(), Err(Error::Malformed { .. })));
}

#[test]
fn the_same_content_gives_the_same_bytes_and_another_life_another_marker() {
    let schema = Schema::dataset(PRODUCT).unwrap();
    let mut header = header(Kind::Delta, &schema);
    let first = write(&header, &many()).1;
    assert_eq!(first, write(&header, &many()).1);
    let sync = header.sync();
    header.life.writer = Uuid::from_u128(10);
    assert_ne!(sync, header.sync());
    // Blocks of one blob behind the header of another.
    let (metadata, body) = header::Metadata::parse(&first).unwrap();
    let mut mixed = write(&header, &Rows::new()).1;
    mixed.extend_from_slice(&first[body..]);
    assert!(read(&mixed, &schema).is_err());
    assert_eq!(metadata.sync, sync);
}

/// Every flipped bit and every prefix: an error, or, where nothing that matters was hit, the truth. Checksums would catch
/// all of them; this is what stands behind the checksum.
#[test]
fn torn_and_hostile_bytes_never_panic() {
    let schema = Schema::dataset(PRODUCT).unwrap();
    let mut header = header(Kind::Delta, &schema);
    let mut rows = many();
    rows.retain(|key, _| key.ends_with(b"7"));
    header.counts = Some(Counts { upserts: rows.len() as u64, deletes: 0 });
    let plain = write(&header, &rows).1;
    let mut stored = Vec::new();
    compress(&plain, LEVEL, &mut stored).unwrap();
    for end in 0..plain.len() {
        assert!(read(&plain[..end], &schema).is_err(), "cut at {end}");
    }
    for end in 0..stored.len() {
        let whole = unpack(&stored[..end], 512).is_ok_and(|(_, cut)| read(&cut, &schema).is_ok());
        assert!(!whole, "cut at {end}");
    }
    let mut bytes = plain.clone();
    for at in 0..bytes.len() {
        let bit = 1 << (at % 8);
        bytes[at] ^= bit;
        let _ = read(&bytes, &schema);
        bytes[at] ^= bit;
    }
    let mut bytes = stored.clone();
    for at in 0..bytes.len() {
        bytes[at] ^= 1 << (at % 8);
        if let Ok((unpacked, _)) = unpack(&bytes, 512) {
            assert_ne!(unpacked.checksum, Checksum::of(&stored));
        }
        bytes[at] = stored[at];
    }
}

#[test]
fn any_bytes_behind_a_magic_are_an_error_not_a_panic() {
    proptest!(|(tail: Vec<u8>)| {
        let bytes = [b"Obj\x01", tail.as_slice()].concat();
        prop_assert!(Reader::parse(&bytes).is_err());
        let _ = unpack(&bytes, 7);
        let _ = index::Layout::parse(&[b"STWINDEX", tail.as_slice()].concat());
    });
}

#[test]
fn a_length_beyond_what_was_announced_takes_no_memory() {
    let schema = Schema::raw();
    let (_, plain, _) = write(&header(Kind::Delta, &schema), &Rows::new());
    let mut stored = Vec::new();
    compress(&plain, LEVEL, &mut stored).unwrap();
    put_long(&mut stored, 1);
    put_long(&mut stored, 1 << 50);
    assert!(matches!(unpack(&stored, 4096), Err(Error::Malformed { .. })));
    let (_, plain, _) = write(
        &header(Kind::Snapshot, &schema),
        &Rows::from([(
            b"k".to_vec(),
            (
                Stamp::default(),
                Some({
                    let mut value = Vec::new();
                    put_bytes(&mut value, &[0; 100_000]);
                    value
                }),
            ),
        )]),
    );
    let mut stored = Vec::new();
    compress(&plain, LEVEL, &mut stored).unwrap();
    let most = (stored.len() as u64, 50_000);
    let mut out = Vec::new();
    let done = super::unpack([&stored], most.0, most.1, &mut out);
    assert!(matches!(done, Err(Error::Malformed { .. })));
    assert!(out.len() <= 50_000);
    for workers in [1, 2] {
        let out = Filed::of(50_000);
        let done = unpack_by(workers, [&stored[..]], most, &out);
        assert!(matches!(done, Err(Error::Malformed { .. })), "and not that the disk is full: {done:?}");
    }
}

#[test]
fn several_threads_unpack_many_batches_each_at_its_place_and_end_with_what_went_wrong() {
    let schema = Schema::raw();
    let entropy = crate::clock::Entropy::seeded(3);
    let rows: Rows = (0..3_000u32)
        .map(|number| {
            let mut value = Vec::new();
            // Blocks of many sizes, so that buffers go round between larger and smaller ones.
            put_bytes(&mut value, &vec![number as u8; (entropy.next_u64() % 4_000) as usize]);
            (number.to_be_bytes().to_vec(), (Stamp::default(), Some(value)))
        })
        .collect();
    let plain = write(&header(Kind::Snapshot, &schema), &rows).1;
    assert!(plain.len() > 5_000_000, "five batches: {}", plain.len());
    let mut stored = Vec::new();
    compress(&plain, LEVEL, &mut stored).unwrap();
    let most = (stored.len() as u64, plain.len() as u64);
    for (workers, piece) in [(1, 1 << 16), (2, 1 << 16), (4, 1_000), (4, stored.len())] {
        let pieces = || stored.chunks(piece);
        let out = Filed::of(usize::MAX);
        let done = unpack_by(workers, pieces(), most, &out).unwrap();
        assert!(out.into_bytes() == plain, "{workers} workers, pieces of {piece}");
        assert_eq!((done.checksum, done.plain_checksum), (Checksum::of(&stored), None), "{workers} workers");
        let full = unpack_by(workers, pieces(), most, &Filed::of(2_000_000));
        let Err(Error::Io(full)) = full else { panic!("{full:?}") };
        assert_eq!(
            full.kind(),
            std::io::ErrorKind::StorageFull,
            "the reason, not that nobody writes any more"
        );
        let mut bad = stored.clone();
        let at = bad.len() / 2;
        bad[at..at + 200].fill(0xa5);
        let bad = unpack_by(workers, bad.chunks(piece), most, &Filed::of(usize::MAX));
        assert!(bad.is_err_and(|error| matches!(error, Error::Malformed { .. } | Error::Short { .. })));
        // However the workers end, nobody waits for them for ever.
        let panics: super::unpack::Work = |_, _, _| panic!("on purpose");
        let out = Filed::of(usize::MAX);
        let gone = super::unpack::unpack_by(workers, panics, pieces(), most.0, most.1, &out);
        let Err(Error::Io(gone)) = gone else { panic!("{gone:?}") };
        assert!(gone.to_string().contains("has panicked"), "{gone}");
    }
}

/// Another implementation reads both forms, values included.
#[test]
fn apache_avro_reads_both_forms() {
    use apache_avro::types::Value;
    let schema = Schema::dataset(PRODUCT).unwrap();
    let rows = many();
    let plain = write(&header(Kind::Snapshot, &schema), &rows).1;
    let mut stored = Vec::new();
    compress(&plain, LEVEL, &mut stored).unwrap();
    for form in [&plain, &stored] {
        let reader = apache_avro::Reader::new(&form[..]).unwrap();
        assert_eq!(reader.user_metadata().get("stillwell.version"), Some(&b"12".to_vec()));
        let mut expected = rows.iter();
        for entry in reader {
            let Value::Record(fields) = entry.unwrap() else { panic!("not a record") };
            let field = |name: &str| &fields.iter().find(|(field, _)| field == name).unwrap().1;
            let (key, (stamp, value)) = expected.next().unwrap();
            assert_eq!(field("key"), &Value::Bytes(key.clone()));
            assert_eq!(field("timestamp"), &Value::TimestampMillis(stamp.timestamp));
            assert_eq!(field("offset"), &Value::Long(stamp.offset));
            match (field("value"), value) {
                (Value::Union(0, null), None) => assert_eq!(**null, Value::Null),
                (Value::Union(1, record), Some(_)) => {
                    let Value::Record(fields) = &**record else { panic!("not a record") };
                    assert_eq!(fields[1].1, Value::Long(stamp.offset));
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(expected.next().is_none());
    }
}

#[test]
fn the_datasets_schema_comes_back_out_of_the_entries() {
    for json in [PRODUCT, r#"{"type":"bytes"}"#, r#""long""#, r#"{"type":"map","values":"string"}"#] {
        let schema = Schema::dataset(json).unwrap();
        let header = header(Kind::Delta, &schema);
        assert!(header.schema().unwrap().encodes_like(&schema), "{json}");
    }
    let mut strange = header(Kind::Delta, &Schema::raw());
    for text in ["", "7", r#"{"fields":[]}"#, r#"{"fields":[{"name":"value","type":["int","int"]}]}"#] {
        strange.entry_schema = Arc::from(text);
        assert!(strange.schema().is_err());
    }
}

#[test]
fn former_schemas_stand_in_the_header_where_there_are_any() {
    let first = header(Kind::Delta, &Schema::raw());
    let written = |header: &Header| Writer::new(Vec::new(), header).unwrap().finish().unwrap().1;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains("former_schemas");
    assert!(!text(&written(&first)));
    let later = Header { former: [1, u64::MAX].into(), ..first };
    let bytes = written(&later);
    assert!(text(&bytes));
    assert_eq!(Reader::parse(&bytes).unwrap().header(), &later);
    let at = bytes.windows(16).position(|window| window == b"ffffffffffffffff").unwrap();
    let mut bad = bytes.clone();
    bad[at] = b'g';
    let error = Reader::parse(&bad).unwrap_err().to_string();
    assert!(error.contains("stillwell.former_schemas has \"gfffffffffffffff\""), "{error}");
}
