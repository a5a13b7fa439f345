//! The codecs, measured on one thread: `cargo bench --bench codec [RECORDS]`, a million records of some 200 bytes by default.
//!
//! Each line has a baseline from the same run:
//!
//! - avro, passed through: the dataset's own schema; beside a decoder of this one schema, written by hand, that borrows what it can
//! - avro, by id: the same behind a registry's header
//! - avro, resolved: fields in another order, promoted, left out and added; beside decoding and encoding by hand, and by
//!   serde_avro_fast through a struct that borrows
//! - json: beside serde_json into a struct that borrows (what fits the schema by the types), and into its own tree
//! - json, a change: the same row in Debezium's envelope, with the row before it; beside serde_json in the same two ways
//! - protobuf: beside `prost-reflect`, which has the types at run time as well, into its own tree
//!
//! The record's key is taken along, as in the flow. Trust the ratios, not the figures.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use prost_reflect::{DescriptorPool, DynamicMessage};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_avro_fast::ser::SerializerConfig;
use stillwell::clock::Clock;
use stillwell::codec::proto::File;
use stillwell::codec::{Codec, Encoded, Envelope, ExtraFields, Format, KeyRule, Kind, SchemaId};
use stillwell::schema::Schema;
use stillwell::schema::wire::{put_bytes, put_long, take_bytes, take_long};

const OWN: &str = r#"{"type":"record","name":"Product","fields":[
    {"name":"id","type":"string"},{"name":"name","type":"string"},{"name":"price","type":"double"},
    {"name":"stock","type":"int"},{"name":"tags","type":{"type":"array","items":"string"}},
    {"name":"note","type":["null","string"],"default":null}]}"#;

/// What others write: another order, a float and a long's int, a field that is not of the dataset, one that lacks.
const OTHER: &str = r#"{"type":"record","name":"Product","fields":[
    {"name":"source","type":"string"},{"name":"stock","type":"int"},{"name":"id","type":"string"},
    {"name":"price","type":"float"},{"name":"name","type":"string"},
    {"name":"tags","type":{"type":"array","items":"string"}}]}"#;

const MESSAGE: &str = r#"syntax = "proto3"; message Product {
    string id = 1; string name = 2; double price = 3; int32 stock = 4; repeated string tags = 5; optional string note = 6; }"#;

/// One of each, ten thousand in turn: what is read lies in the caches as little as what comes from Kafka.
const DISTINCT: u64 = 10_000;

#[derive(Deserialize, Serialize)]
struct Product<'a> {
    id: &'a str,
    name: &'a str,
    price: f64,
    stock: i32,
    #[serde(borrow)]
    tags: Vec<&'a str>,
    #[serde(default)]
    note: Option<&'a str>,
}

/// A change of a row, as Debezium writes it.
#[derive(Deserialize)]
struct Change<'a> {
    before: Option<IgnoredAny>,
    #[serde(borrow)]
    after: Option<Product<'a>>,
    op: &'a str,
}

fn product<T>(number: u64, with: impl FnOnce(&Product<'_>) -> T) -> T {
    let id = format!("product-{number:010}");
    let name = format!("A thing of some use, number {}", number.wrapping_mul(0x9e37_79b9) % 100_000);
    let note = format!("{:0100}", number.wrapping_mul(0xd6e8_feb8_6659_fd93));
    with(&Product {
        id: &id,
        name: &name,
        price: number as f64 * 0.25,
        stock: (number % 500) as i32,
        tags: vec!["garden", "red"],
        note: Some(&note),
    })
}

fn own(product: &Product<'_>, out: &mut Vec<u8>) {
    put_bytes(out, product.id.as_bytes());
    put_bytes(out, product.name.as_bytes());
    out.extend_from_slice(&product.price.to_le_bytes());
    put_long(out, product.stock.into());
    put_tags(&product.tags, out);
    match product.note {
        None => put_long(out, 0),
        Some(note) => {
            put_long(out, 1);
            put_bytes(out, note.as_bytes());
        }
    }
}

fn put_tags(tags: &[&str], out: &mut Vec<u8>) {
    put_long(out, tags.len() as i64);
    tags.iter().for_each(|tag| put_bytes(out, tag.as_bytes()));
    if !tags.is_empty() {
        put_long(out, 0);
    }
}

fn other(product: &Product<'_>, out: &mut Vec<u8>) {
    // As long as a note, so that both schemas' datums are alike in length.
    put_bytes(out, product.note.unwrap_or_default().as_bytes());
    put_long(out, product.stock.into());
    put_bytes(out, product.id.as_bytes());
    out.extend_from_slice(&(product.price as f32).to_le_bytes());
    put_bytes(out, product.name.as_bytes());
    put_tags(&product.tags, out);
}

fn json(product: &Product<'_>, out: &mut Vec<u8>) {
    let Product { id, name, price, stock, tags, note } = product;
    let (tags, note) = (tags.join("\",\""), note.unwrap_or_default());
    out.extend_from_slice(
        format!(
            r#"{{"id":"{id}","name":"{name}","price":{price:?},"stock":{stock},"tags":["{tags}"],"note":"{note}"}}"#
        )
        .as_bytes(),
    );
}

fn change(product: &Product<'_>, out: &mut Vec<u8>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    json(&Product { stock: 0, tags: product.tags.clone(), ..*product }, &mut before);
    json(product, &mut after);
    let parts: [&[u8]; 5] = [
        br#"{"before":"#,
        &before,
        br#","after":"#,
        &after,
        br#","source":{"db":"shop","table":"products","lsn":24023128,"ts_ms":1700000000000},"op":"u","ts_ms":1700000000001}"#,
    ];
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// Lengths and numbers as varints; those here are not negative.
fn message(product: &Product<'_>, out: &mut Vec<u8>) {
    fn varint(mut number: u64, out: &mut Vec<u8>) {
        while number >= 0x80 {
            out.push(number as u8 | 0x80);
            number >>= 7;
        }
        out.push(number as u8);
    }
    let mut text = |field: u8, text: &str| {
        out.push(field << 3 | 2);
        varint(text.len() as u64, out);
        out.extend_from_slice(text.as_bytes());
    };
    text(1, product.id);
    text(2, product.name);
    product.tags.iter().for_each(|tag| text(5, tag));
    if let Some(note) = product.note {
        text(6, note);
    }
    out.push(3 << 3 | 1);
    out.extend_from_slice(&product.price.to_le_bytes());
    out.push(4 << 3);
    varint(product.stock.unsigned_abs().into(), out);
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(take_bytes(rest)?).ok()
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

/// Each tag of a list, in its blocks.
fn each_tag<'a>(rest: &mut &'a [u8], mut each: impl FnMut(Part<'a>)) -> Option<()> {
    loop {
        let count = take_long(rest)?;
        each(Part::Count(count));
        if count == 0 {
            return Some(());
        }
        for _ in 0..count {
            each(Part::Tag(take_text(rest)?));
        }
    }
}

enum Part<'a> {
    Count(i64),
    Tag(&'a str),
}

/// By hand: all of a datum, borrowed.
fn decode_own(mut rest: &[u8]) -> Option<(&str, f64)> {
    let rest = &mut rest;
    let id = take_text(rest)?;
    black_box(take_text(rest)?);
    let price = f64::from_le_bytes(take(rest)?);
    black_box(i32::try_from(take_long(rest)?).ok()?);
    each_tag(rest, |part| {
        if let Part::Tag(tag) = part {
            black_box(tag);
        }
    })?;
    if take_long(rest)? == 1 {
        black_box(take_text(rest)?);
    }
    rest.is_empty().then_some((id, price))
}

/// By hand: a datum of the other schema, as one of the dataset's.
fn resolve_other(mut rest: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let rest = &mut rest;
    black_box(take_text(rest)?);
    let stock = i32::try_from(take_long(rest)?).ok()?;
    let id = take_text(rest)?;
    let price = f32::from_le_bytes(take(rest)?);
    let name = take_text(rest)?;
    out.clear();
    put_bytes(out, id.as_bytes());
    put_bytes(out, name.as_bytes());
    out.extend_from_slice(&f64::from(price).to_le_bytes());
    put_long(out, stock.into());
    each_tag(rest, |part| match part {
        Part::Count(count) => put_long(out, count),
        Part::Tag(tag) => put_bytes(out, tag.as_bytes()),
    })?;
    put_long(out, 0);
    rest.is_empty().then_some(())
}

struct Bench {
    clock: Clock,
    records: u64,
}

impl Bench {
    /// Records a second, the best of three times: what disturbs makes slower only.
    fn rate(&self, values: &[Vec<u8>], mut each: impl FnMut(&[u8])) -> f64 {
        let mut best = Duration::MAX;
        for _ in 0..3 {
            let start = self.clock.now();
            for value in values.iter().cycle().take(self.records as usize) {
                each(value);
            }
            best = best.min(self.clock.now() - start);
        }
        self.records as f64 / best.as_secs_f64()
    }

    fn ours(&self, values: &[Vec<u8>], codec: &mut Codec) -> f64 {
        self.rate(values, |value| {
            let record =
                Encoded { key: Some(b"product-0000000000"), value: Some(value), ..Encoded::default() };
            black_box(codec.read(record).expect("it fits"));
        })
    }

    fn line(&self, what: &str, ours: f64, baseline: &str, theirs: f64) {
        println!("{what:28} {ours:>12.0}/s   {baseline:34} {theirs:>12.0}/s   ratio {:.2}", ours / theirs);
    }
}

fn main() {
    let records = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(1_000_000u64);
    let bench = Bench { clock: Clock::system(), records };
    let schema = Arc::new(Schema::dataset(OWN).expect("a schema"));
    let writer = Arc::new(Schema::dataset(OTHER).expect("a schema"));
    let made = |encode: fn(&Product<'_>, &mut Vec<u8>)| -> Vec<Vec<u8>> {
        let one = |number| {
            let mut out = Vec::new();
            product(number, |product| encode(product, &mut out));
            out
        };
        (0..DISTINCT).map(one).collect()
    };
    let codec = |format| Codec::new(format, KeyRule::Kafka, Arc::clone(&schema)).expect("they fit together");

    let values = made(own);
    let bytes = values.iter().map(Vec::len).sum::<usize>() as u64 / DISTINCT;
    println!(
        "{records} records of {bytes} bytes as Avro, of {} as JSON",
        made(json).iter().map(Vec::len).sum::<usize>() as u64 / DISTINCT
    );
    let by_hand = bench.rate(&values, |value| {
        black_box(decode_own(value).expect("it is one"));
    });
    let ours = bench.ours(&values, &mut codec(Format::avro(Arc::clone(&schema))));
    bench.line("avro, passed through", ours, "decoded by hand, borrowed", by_hand);

    let mut registered = codec(Format::registered(Kind::Avro));
    registered.learn(SchemaId::Number(7), Ok(&Arc::clone(&schema).into()));
    let framed: Vec<Vec<u8>> = values.iter().map(|value| [&[0, 0, 0, 0, 7], &value[..]].concat()).collect();
    let ours = bench.ours(&framed, &mut registered);
    bench.line("avro, by id", ours, "decoded by hand, borrowed", by_hand);

    let values = made(other);
    let mut out = Vec::new();
    let by_hand = bench.rate(&values, |value| {
        resolve_other(value, &mut out).expect("it is one");
        black_box(&out);
    });
    let [written, wanted] =
        [OTHER, OWN].map(|text| text.parse::<serde_avro_fast::Schema>().expect("a schema"));
    let mut config = SerializerConfig::new(&wanted);
    let mut through = |value: &[u8], out: Vec<u8>| {
        let product: Product<'_> = serde_avro_fast::from_datum_slice(value, &written).expect("it is one");
        serde_avro_fast::to_datum(&product, out, &mut config).expect("it fits")
    };
    let mut resolving = codec(Format::avro(writer));
    for value in &values {
        let record = Encoded { key: Some(b"k"), value: Some(value), ..Encoded::default() };
        let ours = resolving.read(record).expect("it fits").value.expect("it is no delete");
        assert_eq!(ours, through(value, Vec::new()), "both make the same of it");
    }
    let typed = bench.rate(&values, |value| {
        let mut kept = std::mem::take(&mut out);
        kept.clear();
        out = through(value, kept);
        black_box(&out);
    });
    let ours = bench.ours(&values, &mut resolving);
    bench.line("avro, resolved", ours, "decoded and encoded by hand", by_hand);
    bench.line("avro, resolved", ours, "serde_avro_fast, through a struct", typed);

    let values = made(json);
    let typed = bench.rate(&values, |value| {
        let product: Product<'_> = serde_json::from_slice(value).expect("it is one");
        black_box((product.id, product.name, product.price, product.stock, product.tags, product.note));
    });
    let tree = bench.rate(&values, |value| {
        black_box(serde_json::from_slice::<serde_json::Value>(value).expect("it is JSON"));
    });
    let ours = bench.ours(&values, &mut codec(Format::json(ExtraFields::Ignore)));
    bench.line("json", ours, "serde_json into a struct", typed);
    bench.line("json", ours, "serde_json into its tree", tree);

    let values = made(change);
    let typed = bench.rate(&values, |value| {
        let change: Change<'_> = serde_json::from_slice(value).expect("it is one");
        let Product { id, name, price, stock, tags, note } = change.after.expect("a row");
        black_box((change.before, change.op, id, name, price, stock, tags, note));
    });
    let tree = bench.rate(&values, |value| {
        black_box(serde_json::from_slice::<serde_json::Value>(value).expect("it is JSON"));
    });
    let changes = Format::json(ExtraFields::Ignore).within(Envelope::Debezium);
    let ours = bench.ours(&values, &mut codec(changes));
    bench.line("json, a change", ours, "serde_json into a struct", typed);
    bench.line("json, a change", ours, "serde_json into its tree", tree);

    let values = made(message);
    let file = protox_parse::parse("product.proto", MESSAGE).expect("it is one");
    let mut pool = DescriptorPool::new();
    pool.add_file_descriptor_proto(file).expect("it is whole");
    let product = pool.get_message_by_name("Product").expect("it is there");
    let tree = bench.rate(&values, |value| {
        black_box(DynamicMessage::decode(product.clone(), value).expect("it is one"));
    });
    let file = File::compile(MESSAGE, &[]).expect("it is one");
    let protobuf = Format::protobuf(Arc::new(file.message(&[0]).expect("it is there")));
    let ours = bench.ours(&values, &mut codec(protobuf));
    bench.line("protobuf", ours, "prost-reflect into its tree", tree);
}
