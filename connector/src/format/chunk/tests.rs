use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn source(topic: &str, partition: i32) -> SourcePartition {
    SourcePartition { topic: topic.into(), topic_id: TopicId([9; 16]), partition }
}

/// A record as the tests write it: partition, offsets skipped before it, timestamp, key, value.
type Row = (i32, i64, i64, Vec<u8>, Value);

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Upsert(Vec<u8>),
    Delete,
    Misfit,
}

fn body(row: &Row) -> Body<'_> {
    match &row.4 {
        Value::Upsert(value) => Body::Upsert { key: &row.3, value },
        Value::Delete => Body::Delete { key: &row.3 },
        Value::Misfit => Body::Misfit { letter: &row.3 },
    }
}

fn record(slot: u16, offset: i64, row: &Row) -> ChunkRecord<'_> {
    ChunkRecord { slot, offset, timestamp: row.2, body: body(row), original: None }
}

/// The row as it came, where that is kept of it: where it is of an even partition, and no misfit.
fn whole_of(row: &Row) -> Option<Whole> {
    let value = match &row.4 {
        Value::Misfit => return None,
        Value::Upsert(value) => Some([b"\0", &value[..]].concat().into()),
        Value::Delete => None,
    };
    let headers = vec![("h".to_owned(), None), ("h".to_owned(), Some(row.3.clone().into()))];
    (row.0 % 2 == 0).then(|| Whole { key: Some(row.3.clone().into()), value, headers })
}

/// Builds a chunk, and says what it should hold: (slot, offset, timestamp), in order.
fn build(builder: &mut ChunkBuilder, rows: &[Row]) -> (Chunk, Vec<(u16, i64, i64)>) {
    let mut next = std::collections::HashMap::new();
    let mut expected = Vec::new();
    for row in rows {
        let next = next.entry(row.0).or_insert(1_000 * i64::from(row.0));
        let slot = builder.slot(&source("orders", row.0), *next);
        let offset = *next + row.1;
        let (mut noted, record) = (Vec::new(), ChunkRecord { original: None, ..record(slot, offset, row) });
        let original = whole_of(row).map(|whole| {
            let headers = whole.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
            let parts = (whole.key.as_deref(), whole.value.as_deref());
            Original::note(&mut noted, &record.body, parts, headers)
        });
        builder.push_record(ChunkRecord { original, ..record });
        expected.push((slot, offset, row.2));
        *next = offset + 1;
    }
    (builder.finish(), expected)
}

fn any_rows() -> impl Strategy<Value = Vec<Row>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    let value = prop_oneof![bytes().prop_map(Value::Upsert), Just(Value::Delete), Just(Value::Misfit)];
    prop::collection::vec(
        (0i32..5, prop_oneof![Just(0i64), 0i64..1_000_000], any::<i64>(), bytes(), value),
        0..30,
    )
}

proptest! {
    #[test]
    fn what_is_built_is_read(first: Vec<bool>, rows in any_rows()) {
        let mut builder = ChunkBuilder::new();
        if !first.is_empty() {
            build(&mut builder, &[(3, 0, 5, vec![1], Value::Delete)]); // the builder is reused
        }
        let (built, expected) = build(&mut builder, &rows);
        prop_assert!(builder.is_empty() && builder.records() == 0 && builder.bytes() == 0);
        let parsed = Chunk::parse(built.encoded().clone()).unwrap();
        for chunk in [&built, &parsed] {
            let found: Vec<_> = chunk.iter().map(|(_, r)| (r.slot, r.offset, r.timestamp)).collect();
            prop_assert_eq!(&found, &expected);
            for ((cursor, record), row) in chunk.iter().zip(&rows) {
                prop_assert_eq!(record.body, body(row));
                let whole = record.original.map(|original| original.whole(&record.body).unwrap());
                prop_assert_eq!(whole, whole_of(row));
                prop_assert_eq!(chunk.at(cursor), record);
                prop_assert_eq!(chunk.iter_from(cursor).next(), Some((cursor, record)));
            }
            prop_assert_eq!(chunk.records(), rows.len());
            prop_assert_eq!(chunk.misfits(), rows.iter().filter(|row| row.4 == Value::Misfit).count());
        }
        prop_assert_eq!(built.ranges(), parsed.ranges());
        let summary = built.summary();
        prop_assert_eq!(Summary::parse(&summary.encode()).unwrap(), summary.clone());
        prop_assert!(summary.is_of(&parsed));
    }

    /// Half of the ranges leave no trace in the rest.
    #[test]
    fn ranges_can_be_left_out(rows in any_rows()) {
        let (chunk, _) = build(&mut ChunkBuilder::new(), &rows);
        let kept = chunk.with_only(|slot| chunk.ranges()[slot].source.partition % 2 == 0);
        let expected: Vec<Range> =
            chunk.ranges().iter().filter(|range| range.source.partition % 2 == 0).cloned().collect();
        prop_assert_eq!(kept.ranges(), expected);
        let row = |chunk: &Chunk, record: ChunkRecord<'_>| {
            let partition = chunk.ranges()[record.slot as usize].source.partition;
            (partition, record.offset, format!("{:?} {:?}", record.body, record.original))
        };
        let expected: Vec<_> = chunk.iter().map(|(_, r)| row(&chunk, r)).filter(|row| row.0 % 2 == 0).collect();
        prop_assert_eq!(kept.iter().map(|(_, r)| row(&kept, r)).collect::<Vec<_>>(), expected);
    }

    /// Bytes with a right checksum and any content: an error or something to be read to its end, never a panic.
    #[test]
    fn any_content_behind_a_right_checksum(rows in any_rows(), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)) {
        let (chunk, _) = build(&mut ChunkBuilder::new(), &rows);
        for (mut bytes, is_chunk) in [(chunk.encoded().to_vec(), true), (chunk.summary().encode(), false)] {
            for (at, byte) in &flips {
                let at = SUMMED + at.index(bytes.len() - SUMMED);
                bytes[at] = *byte;
            }
            seal(&mut bytes);
            if is_chunk {
                if let Ok(chunk) = Chunk::parse(bytes.into()) {
                    prop_assert_eq!(chunk.iter().count(), chunk.records());
                    chunk.with_only(|slot| slot != 0);
                }
            } else {
                let _ = Summary::parse(&bytes);
            }
        }
    }

    #[test]
    fn any_bytes_at_all(mut bytes: Vec<u8>, sealed: bool) {
        let _ = Summary::parse(&bytes);
        prop_assert!(Chunk::parse(bytes.clone().into()).is_err());
        if sealed {
            bytes.splice(0..0, *MAGIC);
            bytes.resize(bytes.len().max(HEADER), 0);
            seal(&mut bytes);
            let _ = Chunk::parse(bytes.into());
        }
    }
}

fn sample() -> Chunk {
    let mut builder = ChunkBuilder::new();
    let (orders, returns) = (source("orders", 0), source("returns", 7));
    let slot = builder.slot(&orders, 100);
    builder.push(slot, 100, 1_760_000_000_000, Body::Upsert { key: b"P-1", value: b"\x06abc" });
    let other = builder.slot(&returns, 0);
    builder.push(other, 5, 1_759_999_999_000, Body::Delete { key: "żółw".as_bytes() });
    let slot = builder.slot(&orders, 101);
    builder.push(slot, 103, 1_760_000_000_500, Body::Misfit { letter: b"a letter" });
    builder.push(slot, 104, -1, Body::Upsert { key: b"", value: b"" });
    builder.advance(slot, 110);
    builder.finish()
}

#[test]
fn every_prefix_and_every_flipped_bit_is_an_error() {
    let chunk = sample();
    let summary = chunk.summary().encode();
    let whole = chunk.encoded();
    for len in 0..whole.len() {
        assert!(Chunk::parse(whole.slice(..len)).is_err(), "{len} bytes");
    }
    for len in 0..summary.len() {
        assert!(Summary::parse(&summary[..len]).is_err(), "{len} bytes");
    }
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Chunk::parse(bytes.into()).is_err(), "bit {bit}");
    }
    for bit in 0..summary.len() * 8 {
        let mut bytes = summary.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Summary::parse(&bytes).is_err(), "bit {bit}");
    }
    let longer = [whole, &b"\0"[..]].concat();
    assert_eq!(Chunk::parse(longer.into()).unwrap_err(), Error::Checksum);
    assert_eq!(Chunk::parse(summary.into()).unwrap_err(), Error::Foreign);
}

#[test]
fn a_chunk_may_account_for_offsets_without_records() {
    let mut builder = ChunkBuilder::new();
    let slot = builder.slot(&source("orders", 0), 7);
    assert!(builder.is_empty());
    builder.advance(slot, 7);
    assert!(builder.is_empty());
    builder.advance(slot, 9);
    assert!(!builder.is_empty());
    let chunk = builder.finish();
    assert!(chunk.is_empty());
    let parsed = Chunk::parse(chunk.encoded().clone()).unwrap();
    assert_eq!(parsed.ranges(), [Range { source: source("orders", 0), from: 7, to: 9 }]);
    assert_eq!(parsed.iter_from(parsed.first()).count(), 0);
}

fn golden(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "golden", "chunk", "v1", name].iter().collect()
}

/// Writes the golden files where they are missing, and never again: logs on disk cannot be either.
#[test]
#[ignore = "wrote the golden files, once"]
fn write_them() {
    std::fs::create_dir_all(golden("")).unwrap();
    for (name, bytes) in
        [("chunk.bin", sample().encoded().to_vec()), ("summary.bin", sample().summary().encode())]
    {
        assert!(!golden(name).exists(), "golden files are never written again");
        std::fs::write(golden(name), bytes).unwrap();
    }
}

/// Written once by what is not of this code (Python's struct and xxhash), and never again.
#[test]
fn chunks_of_format_3_read_as_they_were_written() {
    let path: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "..", "tests", "golden", "chunk", "v3", "chunk.bin"].iter().collect();
    let chunk = Chunk::parse(std::fs::read(path).unwrap().into()).unwrap();
    let bytes = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
    let header = |value| ("trace".to_owned(), value);
    let whole = |key, value, headers| Some(Whole { key, value, headers });
    let headers = vec![header(Some(Bytes::from_static(b"\xff\0"))), header(None)];
    let expected = [
        (
            0,
            100,
            Body::Upsert { key: b"P-1", value: b"\x06abc" },
            whole(bytes("P-1"), bytes("\0\0\0\0\x07\x06abc"), headers),
        ),
        (0, 101, Body::Upsert { key: b"P-2", value: b"\x06xyz" }, whole(None, bytes("xyz"), vec![])),
        (
            0,
            103,
            Body::Upsert { key: b"P-3", value: b"\x02a" },
            whole(bytes("\"P-3\""), bytes("{\"id\":\"a\"}"), vec![]),
        ),
        (1, 5, Body::Delete { key: "żółw".as_bytes() }, whole(bytes("żółw"), None, vec![])),
        (1, 6, Body::Delete { key: b"gone" }, whole(bytes("gone"), bytes("{\"op\":\"d\"}"), vec![])),
        (0, 104, Body::Misfit { letter: b"a letter" }, None),
        (0, 105, Body::Upsert { key: b"", value: b"" }, None),
    ];
    let mut builder = ChunkBuilder::new();
    let slots = [("orders", 0, 100), ("returns", 7, 0)]
        .map(|(topic, partition, from)| builder.slot(&source(topic, partition), from));
    assert_eq!((chunk.records(), chunk.misfits()), (expected.len(), 1));
    for ((_, record), (slot, offset, body, whole)) in chunk.iter().zip(expected) {
        assert_eq!((record.slot, record.offset, record.body), (slot, offset, body));
        assert_eq!(record.original.map(|original| original.whole(&body).unwrap()), whole);
        builder.push_record(record);
    }
    builder.advance(slots[0], 110);
    assert_eq!(builder.finish().encoded(), chunk.encoded(), "this build writes what that one wrote");
    // It says that it is of format 3, for builds that know none: in format 1 there is no such record.
    let mut older = chunk.encoded().to_vec();
    older[4] = 1;
    assert!(matches!(Chunk::parse(older.into()), Err(Error::Malformed(_))));
    // An original of more than there is of its record: caught when it is read, with a right checksum.
    let mut lying = chunk.encoded().to_vec();
    let raw = b"\x06xyz\x03\x00\x01\x01";
    let at = lying
        .windows(raw.len())
        .position(|window| window == raw)
        .expect("null; no bytes, then from the first on");
    lying[at + raw.len() - 1] = 99;
    seal(&mut lying);
    assert!(matches!(Chunk::parse(lying.into()), Err(Error::Malformed(_))));
}

#[test]
fn chunks_of_format_1_read_as_they_were_written() {
    let chunk = Chunk::parse(std::fs::read(golden("chunk.bin")).unwrap().into()).unwrap();
    let ranges: Vec<_> = chunk.ranges().iter().map(|r| (r.source.to_string(), r.from, r.to)).collect();
    assert_eq!(ranges, [("orders[0]".to_owned(), 100, 110), ("returns[7]".to_owned(), 0, 6)]);
    assert!(chunk.ranges().iter().all(|range| range.source.topic_id == TopicId([9; 16])));
    let records: Vec<_> = chunk.iter().map(|(_, r)| (r.slot, r.offset, r.timestamp, r.body)).collect();
    let expected = [
        (0, 100, 1_760_000_000_000, Body::Upsert { key: b"P-1", value: b"\x06abc" }),
        (1, 5, 1_759_999_999_000, Body::Delete { key: "żółw".as_bytes() }),
        (0, 103, 1_760_000_000_500, Body::Misfit { letter: b"a letter" }),
        (0, 104, -1, Body::Upsert { key: b"", value: b"" }),
    ];
    assert_eq!(records, expected);
    assert_eq!((chunk.records(), chunk.misfits()), (4, 1));
    assert_eq!(chunk.encoded(), sample().encoded(), "this build writes what that one wrote");
    let summary = Summary::parse(&std::fs::read(golden("summary.bin")).unwrap()).unwrap();
    assert!(summary.is_of(&chunk));
    assert_eq!(summary, chunk.summary());
}
