//! How the first files of `tests/corpus` were made. Later ones are what cases came upon.

use std::path::PathBuf;

use stillwell::codec::{KEY_HEADER, VALUE_HEADER};
use stillwell::format::announcement::Message;
use stillwell::format::container::{Kind, Reader, Writer};
use stillwell::record::{Entry, SourcePartition, Stamp};
use stillwell::schema::Schema;
use stillwell::version::Checksum;
use stillwell::view::Identity;
use stillwell::{Shard, TopicId, Version};
use stillwell_tests::workspace;

use crate::mutate::{varint, zigzag};
use crate::record::{AVRO, AVRO_KEY, JSON, PROTOBUF};

mod values;

fn put(name: &str, bytes: impl AsRef<[u8]>) {
    let path: PathBuf = workspace().join("tests/corpus").join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
    if !path.exists() {
        std::fs::write(path, bytes).expect("it can be written");
    }
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(workspace().join("tests/golden").join(name)).expect("it is there")
}

fn bytes(of: &[u8]) -> Vec<u8> {
    [zigzag(of.len() as i64), of.to_vec()].concat()
}

/// `whole` with `with` in the place of the first `what`.
fn replaced(whole: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    let at = whole.windows(what.len()).position(|window| window == what).expect("it is in there");
    [&whole[..at], with, &whole[at + what.len()..]].concat()
}

/// A container of one block: count, packed bytes.
fn container(metadata: &[(&str, &[u8])], block: &[u8], count: i64) -> Vec<u8> {
    let pairs: Vec<u8> =
        metadata.iter().flat_map(|(name, value)| [bytes(name.as_bytes()), bytes(value)].concat()).collect();
    let sync = [7; 16];
    let head = [b"Obj\x01", &zigzag(metadata.len() as i64)[..], &pairs, &[0], &sync].concat();
    [&head[..], &zigzag(count), &zigzag(block.len() as i64), block, &sync].concat()
}

/// Records of two records of two records …, over `innermost`.
fn doubling(levels: usize, default: &str) -> String {
    let mut fields = vec![r#"{"name":"r0","type":{"type":"record","name":"R0","fields":[]}}"#.to_owned()];
    for level in 1..=levels {
        let of = |name: &str| format!(r#"{{"name":"{name}","type":"R{}"{default}}}"#, level - 1);
        let (a, b) = (of("a"), of("b"));
        fields.push(format!(
            r#"{{"name":"r{level}","type":{{"type":"record","name":"R{level}","fields":[{a},{b}]}}}}"#
        ));
    }
    format!(r#"{{"type":"record","name":"All","fields":[{}]}}"#, fields.join(","))
}

fn containers() {
    let (plain, stored) = (golden("delta/v1/plain.avro"), golden("delta/v1/stored.avro"));
    let format = |number: &[u8]| [bytes(b"stillwell.format"), bytes(number)].concat();
    put("container/future.avro", replaced(&plain, &format(b"1"), &format(b"7")));
    put("container/cut.avro", &plain[..plain.len() / 2]);
    put("container/stored-as-plain.avro", &stored);
    put("container/not-avro", "PAR1 is Parquet's");
    put("container/empty", "");
    put("container/magic-only", "Obj\x01");
    let schema: &[u8] = br#"{"type":"record","name":"P","fields":[{"name":"id","type":"string"}]}"#;
    put("container/foreign.avro", container(&[("avro.schema", schema)], b"\x06P-1", 1));
    let codec = |codec: &'static [u8]| [("avro.schema", schema), ("avro.codec", codec)];
    put("container/foreign-codec.avro", container(&codec(b"bzip2"), b"BZh9", 1));
    // A snappy block of a few bytes that claims to hold four gigabytes less one.
    let lies = [varint(u64::from(u32::MAX)), vec![0, b'a'], vec![0; 4]].concat();
    put("container/snappy-lies.avro", container(&codec(b"snappy"), &lies, 1));
    put("container/snappy-short.avro", container(&codec(b"snappy"), &[1, 0], 1));
    put("container/deflate-noise.avro", container(&codec(b"deflate"), &[0xed; 40], 1));
    put("container/zstd-noise.avro", container(&codec(b"zstandard"), &[0xed; 40], 1));
    let sized = [0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1, 0, 0];
    put("container/zstd-of-max.avro", container(&codec(b"zstandard"), &sized, 1));
    put("container/count-of-max.avro", container(&codec(b"null"), b"\x06P-1", i64::MAX));
    put("container/count-of-min.avro", container(&codec(b"null"), b"\x06P-1", i64::MIN));
    let whole = container(&codec(b"null"), b"", 1);
    let head = &whole[..whole.len() - 18];
    put("container/block-of-max.avro", [head, &zigzag(1), &zigzag(i64::MAX)].concat());
    put(
        "container/metadata-of-max.avro",
        [b"Obj\x01", &zigzag(i64::MAX)[..], &bytes(b"a"), &bytes(b"b")].concat(),
    );
    put("container/metadata-of-min.avro", [b"Obj\x01", &zigzag(i64::MIN)[..], &zigzag(i64::MIN)].concat());
    let doubling = doubling(60, "");
    let schema = Schema::dataset(r#"{"type":"bytes"}"#).expect("a schema");
    let entry = schema.entry_json().replace(r#"{"type":"bytes"}"#, &doubling);
    put("container/doubling-schema.avro", with_schema(&plain, &entry));
    put("container/out-of-order.avro", out_of_order());
}

/// A container with another schema in its header, its blocks left as they are.
fn with_schema(plain: &[u8], schema: &str) -> Vec<u8> {
    let at = plain.windows(11).position(|window| window == b"avro.schema").expect("it has one") + 11;
    // Its length is a number of two bytes, or three.
    let (mut length, mut shift, mut end) = (0u64, 0, at);
    loop {
        let byte = plain[end];
        length |= u64::from(byte & 0x7f) << shift;
        (shift, end) = (shift + 7, end + 1);
        if byte < 0x80 {
            break;
        }
    }
    [&plain[..at], &bytes(schema.as_bytes()), &plain[end + (length >> 1) as usize..]].concat()
}

/// Two entries the wrong way round, everything else right.
fn out_of_order() -> Vec<u8> {
    let schema = Schema::raw();
    let identity =
        Identity { dataset: "products".into(), topic_id: TopicId([9; 16]), shard: Shard(0), shards: 1 };
    let source = SourcePartition { topic: "products".into(), topic_id: TopicId([1; 16]), partition: 0 };
    let delta = golden("delta/v1/plain.avro");
    let life = Reader::parse(&delta).expect("it is whole").header().life;
    let header = identity.header(Kind::Delta, Version(1), Version(0), life, &schema, vec![source]);
    let mut writer = Writer::new(Vec::new(), &header).expect("a writer");
    for key in [b"aa", b"bb"] {
        writer.push(&Entry { key, stamp: Stamp::default(), value: None }).expect("it is taken");
    }
    let (_, whole) = writer.finish().expect("it ends");
    replaced(&replaced(&replaced(&whole, b"aa", b"cc"), b"bb", b"aa"), b"cc", b"bb")
}

fn indexes() {
    let whole = golden("index/v2/of-snapshot.index");
    let with = |at: usize, number: &[u8], seal: bool| {
        let mut bytes = whole.clone();
        bytes[at..at + number.len()].copy_from_slice(number);
        if seal {
            let body = u64::from_le_bytes(bytes[88..96].try_into().expect("eight")) as usize;
            if let Some(head) = bytes.get(24..body) {
                let sum = Checksum::of(head).0.to_le_bytes();
                bytes[16..24].copy_from_slice(&sum);
            }
        }
        bytes
    };
    put("index/future.index", with(8, &[3], false));
    put("index/foreign.index", with(0, b"OTHERIDX", false));
    put("index/other-pages.index", with(12, &[0, 0x20], false));
    put("index/cut.index", &whole[..whole.len() - 1_000]);
    put("index/header-only.index", &whole[..96]);
    put("index/numbers-of-max.index", with(64, &[0xff; 24], true));
    put("index/homes-of-max.index", with(64, &[0xff; 8], true));
    put("index/body-of-max.index", with(88, &[0xff; 8], true));
    put("index/snapshot-of-max.index", with(32, &[0xff; 8], true));
    put("index/slots-to-anywhere.index", {
        let mut bytes = whole.clone();
        let body = u64::from_le_bytes(bytes[88..96].try_into().expect("eight")) as usize;
        let end = bytes.len();
        // Each slot is taken, and leads to the same place, where no entry begins; sealed when it is played.
        bytes[body..end].fill(0x5a);
        bytes
    });
}

fn messages() {
    let fingerprint = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[2..10].copy_from_slice(&[0xaa; 8]);
        bytes
    };
    let announcement = golden("announcement/v1/smallest.bin");
    put("announcement/future.bin", fingerprint(&announcement));
    put("announcement/foreign.json", r#"{"version": 7}"#);
    put("announcement/empty", "");
    put("announcement/name-of-max.bin", [&announcement[..10], &zigzag(i64::MAX)].concat());
    put("announcement/name-of-min.bin", [&announcement[..10], &zigzag(i64::MIN)].concat());
    let Ok(Message::Announcement(it)) = Message::decode(&announcement) else { panic!("it is one") };
    let schema = [&bytes(it.schema.as_bytes())[..], &zigzag(it.schema_fingerprint as i64)].concat();
    let at = announcement.windows(schema.len()).position(|window| window == schema).expect("its schema");
    let positions = at + schema.len();
    for (name, count) in [("chain-of-max", i64::MAX), ("chain-of-min", i64::MIN)] {
        let bytes = [&announcement[..positions], &zigzag(count), &zigzag(i64::MAX)].concat();
        put(&format!("announcement/{name}.bin"), bytes);
    }
    // Shard 9 of one.
    let shard = [&bytes(it.dataset.as_bytes())[..], &zigzag(it.shard.0.into())].concat();
    let other = [&bytes(it.dataset.as_bytes())[..], &zigzag(9)].concat();
    put("announcement/contradiction.bin", replaced(&announcement, &shard, &other));
    let pin = golden("pin/v1/pin.bin");
    put("control/future.bin", fingerprint(&pin));
    put("control/name-of-max.bin", [&pin[..10], &zigzag(i64::MAX)].concat());
    put("control/empty", "");
    let letter = golden("letter/v1/letter.bin");
    put("letter/future.bin", fingerprint(&letter));
    put("letter/topic-of-max.bin", [&letter[..10], &zigzag(i64::MAX)].concat());
    put("letter/headers-of-max.bin", [&letter[..letter.len() - 1], &zigzag(i64::MAX), &[0; 40]].concat());
}

fn logs() {
    let (chunk, summary, origin) =
        (golden("chunk/v1/chunk.bin"), golden("chunk/v1/summary.bin"), golden("origin/v1/origin.bin"));
    let with = |whole: &[u8], at: usize, number: &[u8]| {
        let mut bytes = whole.to_vec();
        bytes[at..at + number.len()].copy_from_slice(number);
        let sum = Checksum::of(&bytes[16..]).0.to_le_bytes();
        bytes[8..16].copy_from_slice(&sum);
        bytes
    };
    put("chunk/future.bin", with(&chunk, 4, &[9]));
    put("chunk/foreign.bin", "a chunk of something else");
    let mut flipped = chunk.clone();
    flipped[60] ^= 4;
    put("chunk/flipped.bin", flipped);
    put("chunk/ranges-of-max.bin", with(&chunk, 28, &[0xff; 4]));
    put("chunk/ranges-beyond.bin", with(&chunk, 16, &[0xff; 4]));
    put("chunk/records-of-max.bin", with(&chunk, 20, &[0xff; 4]));
    // Packed: a few bytes that claim to be four gigabytes.
    let packed =
        [&b"SWCH\x02\0\0\0"[..], &[0; 8], &4u32.to_le_bytes(), &[0xff; 4], &[0x1f, b'a', 1, 0]].concat();
    put("chunk/packed-of-max.bin", with(&packed, 4, &[2]));
    put("summary/future.bin", with(&summary, 4, &[3]));
    put("summary/ranges-of-max.bin", with(&summary, 28, &[0xff; 4]));
    put("origin/future.bin", [b"SWLORIG2", &origin[8..]].concat());
    put("origin/cut.bin", &origin[..40]);
    let note = golden("note/v2/current");
    put("note/future", [b"SWNOTE\x03\0", &note[8..]].concat());
    put("note/zeros", [0; 47]);
    put("note/empty", "");
}

fn schemas() {
    for name in ["announcement", "product", "pin", "entry", "letter"] {
        let text = std::fs::read(workspace().join(format!("schemas/{name}.avsc"))).expect("it is there");
        put(&format!("schema/{name}.avsc"), text);
    }
    put("schema/doubling.avsc", doubling(60, ""));
    put("schema/doubling-defaults.avsc", doubling(60, r#","default":{}"#));
    put("schema/endless.avsc", r#"{"type":"record","name":"X","fields":[{"name":"x","type":"X"}]}"#);
    put(
        "schema/nested.avsc",
        format!("{}\"int\"{}", r#"{"type":"array","items":"#.repeat(200), "}".repeat(200)),
    );
    put("schema/fixed-of-max.avsc", r#"{"type":"fixed","name":"F","size":18446744073709551615}"#);
    put("schema/empty-items.avsc", r#"{"type":"array","items":"null"}"#);
}

/// A record as Kafka lays it out (`record.rs`).
fn record(key: &[u8], value: &[u8], headers: &[(&str, Option<&[u8]>)]) -> Vec<u8> {
    let mut out = [bytes(key), bytes(value), zigzag(headers.len() as i64)].concat();
    for (name, value) in headers {
        out.extend(bytes(name.as_bytes()));
        out.extend(value.map_or_else(|| zigzag(-1), bytes));
    }
    out
}

fn records() {
    let value = VALUE_HEADER;
    // id "P-1", and all else as little as can be.
    let datum = [&bytes(b"P-1")[..], &[0, 0, 0, 0, 0, 0]].concat();
    let message = b"\x0a\x03P-1";
    let json = br#"{"id":"P-1","stock":1}"#;
    let id = |id: u32| [&[0], &id.to_be_bytes()[..]].concat();
    let key = [&id(AVRO_KEY)[..], &bytes(b"k")].concat();
    let named = |name: &str, content: &[u8], headers: &[(&str, Option<&[u8]>)]| {
        put(&format!("record/{name}.bin"), record(&key, content, headers));
    };
    let with_id = |name: &str, header: &[u8]| named(name, &datum, &[(value, Some(header))]);
    named("id-before-the-value", &[&id(AVRO)[..], &datum].concat(), &[]);
    with_id("id-in-header", &id(AVRO));
    with_id("id-empty", b"");
    with_id("id-short", &[0, 0, 0]);
    with_id("id-of-no-kind", &[5, 0, 0, 0, 7]);
    with_id("id-in-text", b"7");
    with_id("id-negative", &[0, 0xff, 0xff, 0xff, 0xff]);
    with_id("id-unknown", &id(4096));
    with_id("id-of-other-format", &id(PROTOBUF));
    with_id("guid-short", &[1; 10]);
    with_id("guid-unknown", &[1; 17]);
    with_id("id-huge", &[&id(AVRO)[..], &[0xed; 60_000]].concat());
    named("id-null", &datum, &[(value, None)]);
    named("id-null-then-in-value", &[&id(AVRO)[..], &datum].concat(), &[(value, None)]);
    named("id-wrong-then-right", &datum, &[(value, Some(&[9])), (value, Some(&id(AVRO)))]);
    named("id-right-then-wrong", &datum, &[(value, Some(&id(AVRO))), (value, Some(&[0, 0]))]);
    named("id-twice", &[&id(AVRO)[..], &datum].concat(), &[(value, Some(&id(AVRO)))]);
    let by_header = [(KEY_HEADER, Some(&id(AVRO_KEY)[..])), (value, Some(&id(AVRO)[..]))];
    put("record/key-id-in-header.bin", record(&bytes(b"k"), &datum, &by_header));
    put("record/key-id-short.bin", record(&bytes(b"k"), &datum, &[(KEY_HEADER, Some(&[0])), by_header[1]]));
    let indexes = |indexes: &[u8]| [&id(PROTOBUF)[..], indexes].concat();
    named("message", message, &[(value, Some(&indexes(&[0])))]);
    named("message-without-indexes", message, &[(value, Some(&indexes(&[])))]);
    named("message-indexes-of-max", message, &[(value, Some(&indexes(&zigzag(i64::from(i32::MAX)))))]);
    named("json", json, &[(value, Some(&id(JSON)))]);
    put("record/nothing.bin", [zigzag(-1), zigzag(-1), zigzag(0)].concat());
    put("record/empty", "");
    let all_bytes: Vec<u8> = (0..=255).collect();
    named(
        "binary",
        json,
        &[("trace", Some(&all_bytes)), ("", Some(b"nameless")), ("\u{fffd}\0", Some(&[0xff]))],
    );
    put(
        "record/name-not-utf-8.bin",
        [&record(b"", b"", &[])[..2], &zigzag(1), &bytes(&[0xff]), &zigzag(-1)].concat(),
    );
    put(
        "record/name-of-null.bin",
        [&record(b"", b"", &[])[..2], &zigzag(1), &zigzag(-1), &zigzag(-1)].concat(),
    );
    named("many", json, &vec![("", None); 20_000]);
    named("repeated", json, &vec![("trace", Some(&b"00-1"[..])); 500]);
    named("huge", json, &[("trace", Some(&[0xed; 60_000])), (&"n".repeat(20_000), None)]);
    for (name, count) in
        [("count-of-max", i64::MAX), ("count-of-min", i64::MIN), ("count-of-4-gigabytes", 1 << 32)]
    {
        put(&format!("record/{name}.bin"), [&record(b"", b"", &[])[..2], &zigzag(count), &[0, 1]].concat());
    }
    for (name, length) in
        [("length-of-max", i64::MAX), ("length-of-min", i64::MIN), ("length-of-4-gigabytes", 1 << 32)]
    {
        let head = [&record(b"", b"", &[])[..2], &zigzag(1), &bytes(b"trace")].concat();
        put(&format!("record/{name}.bin"), [&head[..], &zigzag(length), b"00"].concat());
    }
    // Letters, or what begins like some.
    let connect = |name: &str| format!("__connect.errors.{name}");
    let [topic, partition, offset] = ["topic", "partition", "offset"].map(connect);
    let place = |topic_is: Option<&'static [u8]>, at: &'static [u8]| {
        [(&*topic, topic_is), (&*partition, Some(&b"2"[..])), (&*offset, Some(at))]
    };
    named("connect", json, &place(Some(b"orders"), b"41"));
    named("connect-offset-of-text", json, &place(Some(b"orders"), b"forty-one"));
    named("connect-offset-beyond", json, &place(Some(b"orders"), b"99999999999999999999999"));
    named("connect-offset-negative", json, &place(Some(b"orders"), b"-1"));
    named("connect-topic-null", json, &place(None, b"41"));
    named("connect-topic-binary", json, &place(Some(&[0xff, 0xfe]), b"41"));
    named("connect-twice", json, &[place(Some(b"a"), b"1"), place(Some(b"b"), b"x")].concat());
    named("connect-topic-alone", json, &[(&*topic, Some(b"orders"))]);
    let claims = [
        ("stillwell.failed-at", Some(&b"soon"[..])),
        ("stillwell.letter-blob", Some(&b"../../etc/passwd"[..])),
    ];
    named("claims-to-be-ours", json, &[&place(Some(b"orders"), b"41")[..], &claims].concat());
    let spring = |offset: &'static [u8]| {
        [
            ("kafka_dlt-original-topic", Some(&b"orders"[..])),
            ("kafka_dlt-original-partition", Some(&[0, 0, 0, 2][..])),
            ("kafka_dlt-original-offset", Some(offset)),
        ]
    };
    named("spring", json, &spring(&[0, 0, 0, 0, 0, 0, 0, 41]));
    named("spring-offset-of-3-bytes", json, &spring(&[0, 0, 41]));
    named("spring-offset-negative", json, &spring(&[0xff; 8]));
    named("spring-topic-null", json, &[("kafka_dlt-original-topic", None)]);
    for (name, count) in
        [("replays-beyond", &b"99999999999"[..]), ("replays-negative", b"-1"), ("replays-binary", &[0xff])]
    {
        named(name, json, &[("stillwell.replays", Some(b"1")), ("stillwell.replays", Some(count))]);
    }
}

/// `cargo test --test formats -- --ignored write_them`
#[test]
#[ignore = "wrote the first files of the corpus, once"]
fn write_them() {
    std::fs::create_dir_all(workspace().join("tests/corpus/container")).expect("a folder");
    std::fs::create_dir_all(workspace().join("tests/corpus/snapshot")).expect("a folder");
    let plain = golden("snapshot/v1/plain.avro");
    put("snapshot/cut.avro", &plain[..20_000]);
    put("snapshot/zeros-in-it.avro", [&plain[..20_000], &[0; 10_000][..], &plain[30_000..]].concat());
    containers();
    indexes();
    messages();
    logs();
    schemas();
    values::write();
    records();
}
