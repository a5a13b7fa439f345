use std::path::PathBuf;

use apache_avro::types::Value;
use proptest::prelude::*;

use super::*;
use crate::format::letter::LETTER_FINGERPRINT;

fn schema(file: &str) -> apache_avro::Schema {
    let path = format!("{}/../schemas/{file}", env!("CARGO_MANIFEST_DIR"));
    apache_avro::Schema::parse_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Not apache-avro's: it keeps `{"type": "long"}` where a logical type is annotated, against the specification's
/// [PRIMITIVES], so that its fingerprints of such schemas are nobody else's.
fn fingerprint(file: &str) -> u64 {
    let path = format!("{}/../schemas/{file}", env!("CARGO_MANIFEST_DIR"));
    crate::schema::Schema::parse(&std::fs::read_to_string(path).unwrap()).unwrap().fingerprint()
}

/// What another Avro implementation makes of a message, by the schema file.
fn foreign(bytes: &[u8], file: &str) -> serde_json::Value {
    let mut rest = &bytes[10..];
    let value = apache_avro::from_avro_datum(&schema(file), &mut rest, None).unwrap();
    assert!(rest.is_empty());
    json(value)
}

/// As JSON; fixed and bytes in hexadecimal, which apache-avro's own conversion would spell out as arrays of numbers.
fn json(value: Value) -> serde_json::Value {
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
    match value {
        Value::Fixed(_, bytes) | Value::Bytes(bytes) => hex(bytes),
        Value::Union(_, value) => json(*value),
        Value::Array(items) => items.into_iter().map(json).collect(),
        Value::Record(fields) => {
            serde_json::Value::Object(fields.into_iter().map(|(name, value)| (name, json(value))).collect())
        }
        Value::TimestampMillis(at) => at.into(),
        Value::Uuid(uuid) => uuid.to_string().into(),
        other => other.try_into().unwrap(),
    }
}

#[test]
fn the_fingerprints_are_the_schema_files() {
    let in_code = [ANNOUNCEMENT_FINGERPRINT, EPOCH_FINGERPRINT, LETTER_FINGERPRINT];
    let of_files = ["announcement.avsc", "epoch.avsc", "letter.avsc"].map(fingerprint);
    assert_eq!(in_code.map(|f| format!("{f:#018x}")), of_files.map(|f| format!("{f:#018x}")));
}

#[test]
fn the_entry_schema_is_the_one_that_blobs_of_bytes_have() {
    let entry = crate::schema::Schema::raw().entry_json();
    assert_eq!(crate::schema::Schema::parse(&entry).unwrap().fingerprint(), fingerprint("entry.avsc"));
}

fn blob(name: &str, location: Option<BlobLocation>) -> BlobRef {
    BlobRef {
        name: name.into(),
        bytes: 1234,
        checksum: Checksum(0x0102_0304_0506_0708),
        plain_bytes: 5678,
        plain_checksum: Checksum(u64::MAX - 1),
        location,
    }
}

fn delta(version: u64, location: Option<BlobLocation>) -> DeltaRef {
    let blob = blob(&format!("products/T/0/{version:020}-3-0102030405060708.delta.avro"), location);
    DeltaRef { version: Version(version), epoch: 3, blob, upserts: version, deletes: 2 }
}

fn life() -> Life {
    Life { epoch: 3, writer: Uuid::from_u128(0x0123_4567_89ab_4def_8123_4567_89ab_cdef) }
}

/// The first version of a dataset: nothing is there that may be absent.
fn smallest() -> Announcement {
    let delta = DeltaRef { upserts: 0, deletes: 0, ..delta(1, None) };
    Announcement {
        dataset: "products".into(),
        shard: Shard(0),
        shards: 1,
        life: life(),
        version: Version(1),
        previous: None,
        announced_at: 0,
        caught_up: false,
        records: 0,
        upserts: 0,
        deletes: 0,
        letters: 0,
        coalesced: 0,
        unchanged: 0,
        schema: r#""bytes""#.into(),
        schema_fingerprint: 0,
        positions: vec![],
        delta: delta.clone(),
        inline: None,
        snapshot: None,
        chain: vec![delta],
        oldest_kept: Version(1),
        newest_timestamp: None,
        traceparent: None,
    }
}

/// All that there can be.
fn largest() -> Announcement {
    let location = Some(BlobLocation { partition: 2, first: 77, last: 79 });
    let position = |partition| SourcePosition {
        source: SourcePartition { topic: "products".into(), topic_id: TopicId([5; 16]), partition },
        start: 10,
        offset: 1_000_000_007,
        target: 999,
    };
    Announcement {
        shard: Shard(1),
        shards: 2,
        version: Version(43),
        previous: Some((Version(42), 2)),
        announced_at: 1_760_000_000_123,
        caught_up: true,
        records: 1_000,
        upserts: 43,
        deletes: 2,
        letters: 4,
        coalesced: 5,
        unchanged: 6,
        schema_fingerprint: 0xfedc_ba98_7654_3210,
        positions: vec![position(0), position(3)],
        delta: delta(43, location),
        inline: Some(Bytes::from_static(b"Obj\x01...")),
        snapshot: Some(SnapshotRef {
            version: Version(40),
            epoch: 1,
            blob: blob("products/T/1/40.snapshot.avro", None),
            index: blob("products/T/1/40.index", location),
            records: 990,
        }),
        chain: vec![delta(41, None), delta(42, location), delta(43, location)],
        oldest_kept: Version(7),
        newest_timestamp: Some(-5),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        ..smallest()
    }
}

fn epoch() -> EpochRecord {
    EpochRecord {
        dataset: "products".into(),
        shard: Shard(1),
        shards: 2,
        life: life(),
        at: 1_760_000_000_000,
    }
}

fn samples() -> [(&'static str, &'static str, Message); 3] {
    [
        ("announcement", "largest", Message::Announcement(Box::new(largest()))),
        ("announcement", "smallest", Message::Announcement(Box::new(smallest()))),
        ("epoch", "epoch", Message::Epoch(epoch())),
    ]
}

#[test]
fn another_avro_implementation_reads_every_field_by_the_schema_file() {
    for (kind, _, message) in samples() {
        let file = format!("{kind}.avsc");
        let read = foreign(&message.encode(), &file);
        assert_eq!(read["dataset"], "products");
        assert_eq!(read["life"]["writer"], "01234567-89ab-4def-8123-456789abcdef");
    }
    let read = foreign(&Message::Announcement(Box::new(largest())).encode(), "announcement.avsc");
    assert_eq!(read["previous"], serde_json::json!({"version": 42, "epoch": 2}));
    assert_eq!(read["delta"]["blob"]["checksum"], "0102030405060708");
    assert_eq!(read["positions"][1]["partition"], 3);
    assert_eq!(read["earlier"].as_array().unwrap().len(), 2, "the last link is the delta itself");
    assert_eq!(read["snapshot"]["index"]["location"]["last"], 79);
    assert_eq!(read["inline"], "4f626a012e2e2e");
    assert_eq!(read["schema_fingerprint"], 0xfedc_ba98_7654_3210_u64 as i64);
    assert_eq!(read["newest_timestamp"], -5);
    assert_eq!(read["traceparent"].as_str(), largest().traceparent.as_deref());
}

#[test]
fn every_prefix_is_an_error_and_no_flipped_bit_a_panic() {
    for (_, _, message) in samples() {
        let bytes = message.encode();
        assert_eq!(Message::decode(&bytes).unwrap(), message);
        for len in 0..bytes.len() {
            assert!(Message::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        assert!(Message::decode(&[&bytes[..], b"\0"].concat()).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let _ = Message::decode(&flipped);
        }
    }
}

#[test]
fn what_is_not_ours_or_newer_is_said() {
    assert_eq!(Message::decode(b"").unwrap_err(), Error::Foreign);
    assert_eq!(Message::decode(br#"{"version":1}"#).unwrap_err(), Error::Foreign);
    let mut newer = Message::Epoch(epoch()).encode();
    newer[2] ^= 1;
    let error = Message::decode(&newer).unwrap_err();
    assert_eq!(error, Error::UnknownSchema(EPOCH_FINGERPRINT ^ 1));
    assert!(error.to_string().contains("newer"), "{error}");
}

#[test]
fn contradictions_are_found() {
    type Break = fn(&mut Announcement);
    let broken: [(&str, Break); 9] = [
        ("count from 1", |it| it.life.epoch = 0),
        ("shard 2 of 2", |it| it.shard = Shard(2)),
        ("makes version 44", |it| it.delta.version = Version(44)),
        ("not its delta's", |it| it.upserts += 1),
        ("nothing before", |it| it.previous = None),
        ("follows version 41", |it| it.previous = Some((Version(41), 1))),
        ("does not follow", |it| drop(it.chain.remove(0))),
        ("does not end with", |it| it.chain[2].blob.bytes += 1),
        ("begins after", |it| it.positions[0].start = i64::MAX),
    ];
    assert_eq!(largest().check(), Ok(()));
    for (what, break_it) in broken {
        let mut it = largest();
        break_it(&mut it);
        let why = it.check().unwrap_err();
        assert!(why.contains(what) && why.contains("version"), "{why}");
    }
    // and by the reader too, where the bytes are readable
    let mut it = largest();
    it.previous = Some((Version(41), 1));
    let mut bytes = [&SINGLE_OBJECT[..], &ANNOUNCEMENT_FINGERPRINT.to_le_bytes()].concat();
    put_announcement(&mut bytes, &it);
    assert!(matches!(Message::decode(&bytes), Err(Error::Contradiction(_))));
}

#[test]
fn a_snapshot_of_the_very_version_leaves_no_deltas() {
    let mut it = largest();
    it.snapshot.as_mut().unwrap().version = it.version;
    it.chain.clear();
    let message = Message::Announcement(Box::new(it.clone()));
    assert_eq!(Message::decode(&message.encode()).unwrap(), message);
    assert_eq!(it.chain().version(), it.version);
}

proptest! {
    #[test]
    fn any_announcement_comes_back(
        (dataset, schema, trace) in (".{0,20}", ".{0,80}", prop::option::of(".{0,60}")),
        (records, at, newest) in (0..i64::MAX as u64, any::<i64>(), prop::option::of(any::<i64>())),
        (base, deltas, first_epoch) in (0u64..1_000_000, 1usize..40, 1u64..1 << 40),
        offsets in prop::collection::vec((0i64..1 << 50, 0i64..1 << 50, any::<i64>(), any::<i32>()), 0..20),
        inline in prop::option::of(prop::collection::vec(any::<u8>(), 0..200)),
    ) {
        let mut it = largest();
        (it.dataset, it.schema, it.traceparent) = (dataset, schema, trace);
        (it.records, it.announced_at, it.newest_timestamp) = (records, at, newest);
        it.chain = (1..=deltas as u64).map(|n| delta(base + n, None)).collect();
        it.delta = it.chain.last().unwrap().clone();
        it.version = it.delta.version;
        it.upserts = it.delta.upserts;
        it.snapshot = it.snapshot.filter(|_| base > 0).map(|s| SnapshotRef { version: Version(base), ..s });
        it.previous = (it.version > Version(1)).then(|| (Version(it.version.0 - 1), first_epoch));
        it.positions = offsets.iter().map(|(start, more, target, partition)| {
            let source = SourcePartition { topic: "t".into(), topic_id: TopicId([1; 16]), partition: *partition };
            SourcePosition { source, start: *start, offset: start + more, target: *target }
        }).collect();
        it.inline = inline.map(Bytes::from);
        prop_assert_eq!(it.check(), Ok(()));
        let message = Message::Announcement(Box::new(it));
        let bytes = message.encode();
        prop_assert_eq!(&Message::decode(&bytes).unwrap(), &message);
        foreign(&bytes, "announcement.avsc");
    }

    #[test]
    fn any_bytes_behind_our_fingerprints(mut bytes: Vec<u8>, epoch: bool) {
        let fingerprint = if epoch { EPOCH_FINGERPRINT } else { ANNOUNCEMENT_FINGERPRINT };
        bytes.splice(0..0, fingerprint.to_le_bytes());
        bytes.splice(0..0, SINGLE_OBJECT);
        let _ = Message::decode(&bytes);
    }
}

fn golden(kind: &str, name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "golden", kind, "v1", name].iter().collect()
}

/// Writes the golden files where they are missing, and never again: what lies in topics cannot be either.
#[test]
#[ignore = "wrote the golden files, once"]
fn write_them() {
    for (kind, name, message) in samples() {
        std::fs::create_dir_all(golden(kind, "")).unwrap();
        let bytes = message.encode();
        let text = serde_json::to_string_pretty(&foreign(&bytes, &format!("{kind}.avsc"))).unwrap() + "\n";
        for (extension, content) in [("bin", bytes), ("json", text.into_bytes())] {
            let path = golden(kind, &format!("{name}.{extension}"));
            assert!(!path.exists(), "golden files are never written again");
            std::fs::write(path, content).unwrap();
        }
    }
}

#[test]
fn messages_of_the_first_schemas_read_as_they_were_written() {
    for (kind, name, message) in samples() {
        let bytes = std::fs::read(golden(kind, &format!("{name}.bin"))).unwrap();
        assert_eq!(Message::decode(&bytes).unwrap(), message, "{name}");
        assert_eq!(message.encode(), bytes, "{name}: this build writes what that one wrote");
        let text = std::fs::read_to_string(golden(kind, &format!("{name}.json"))).unwrap();
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(foreign(&bytes, &format!("{kind}.avsc")), read, "{name}");
    }
}
