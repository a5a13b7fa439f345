//! Few bytes that would become many, and what is kept of giants.

use super::*;

/// A record that may be nothing but a default of a kilobyte, written with a field of another name, in a list.
fn lists() -> (Arc<Schema>, Arc<Schema>) {
    let schema = |field: &str| {
        let item = format!(r#"{{"type":"record","name":"Q","fields":[{field}]}}"#);
        let text = format!(
            r#"{{"type":"record","name":"P","fields":[{{"name":"all","type":{{"type":"array","items":{item}}}}}]}}"#
        );
        Arc::new(Schema::dataset(&text).unwrap())
    };
    let big = format!(r#"{{"name":"big","type":"string","default":"{}"}}"#, "x".repeat(1_000));
    (schema(&big), schema(r#"{"name":"yes","type":"boolean"}"#))
}

fn texts(count: usize) -> String {
    format!(r#"{{"all":[{}]}}"#, vec!["{}"; count].join(","))
}

fn datums(count: usize) -> Vec<u8> {
    let mut datum = Vec::new();
    put_long(&mut datum, count as i64);
    datum.resize(datum.len() + count + 1, 0);
    datum
}

fn bounded(format: Format, schema: &Arc<Schema>, bytes: u64) -> Codec {
    let mut codec = Codec::new(format, KeyRule::Kafka, Arc::clone(schema)).unwrap();
    codec.set_bound(Bound::of(bytes));
    codec
}

#[test]
fn what_becomes_too_large_is_a_misfit_before_it_has() {
    const MOST: u64 = 100_000;
    let (schema, writer) = lists();
    let json = || Format::json(ExtraFields::Ignore);
    let change = |count| format!(r#"{{"op":"c","after":{}}}"#, texts(count)).into_bytes();
    type Made<'a> = &'a dyn Fn(usize) -> Vec<u8>;
    let ways: [(Format, Made<'_>); 3] = [
        (json(), &|count| texts(count).into_bytes()),
        (json().within(Envelope::Debezium), &change),
        (Format::avro(Arc::clone(&writer)), &datums),
    ];
    for (format, made) in ways {
        let mut codec = bounded(format, &schema, MOST);
        let fits = made(90);
        assert!(codec.decode(Some(b"k"), Some(&fits)).unwrap().value.unwrap().len() > 90_000);
        for count in [100, 10_000] {
            let value = made(count);
            assert!((value.len() as u64) < MOST, "as it comes it is small");
            let misfit = codec.decode(Some(b"k"), Some(&value)).unwrap_err();
            assert_eq!((misfit.stage, misfit.class), (Stage::Oversized, "stillwell.Oversized"));
            let said = "the value has more than 100000 bytes, and max_record_size is 100000";
            assert!(misfit.message.ends_with(said), "{misfit}");
        }
        codec.set_bound(Bound::ANY);
        assert!(codec.decode(Some(b"k"), Some(&made(10_000))).unwrap().value.unwrap().len() > 10_000_000);
    }
}

#[test]
fn the_bound_holds_by_id_in_every_topic_and_however_a_text_is_read() {
    let (schema, writer) = lists();
    let mut registered = bounded(Format::registered(Kind::Avro), &schema, 50_000);
    registered.learn(SchemaId::Number(7), Ok(&writer.into()));
    let framed = [&[0, 0, 0, 0, 7], &datums(100)[..]].concat();
    assert_eq!(registered.decode(Some(b"k"), Some(&framed)).unwrap_err().stage, Stage::Oversized);
    // A record that is not looked at names no schema that has to be asked for.
    let unknown = [&[0, 0, 0, 0, 9], &[0; 50_000][..]].concat();
    let record = Encoded { key: Some(b"k"), value: Some(&unknown), ..Encoded::default() };
    assert_eq!(registered.unknown(record), None);
    assert_eq!(registered.read(record).unwrap_err().misfit().stage, Stage::Oversized);

    let format = Format::avro(Arc::clone(&schema)).but("other", Format::json(ExtraFields::Ignore));
    let mut codec = bounded(format, &schema, 50_000);
    let text = texts(100);
    let record =
        Encoded { key: Some(b"k"), value: Some(text.as_bytes()), topic: Some("other"), ..Encoded::default() };
    assert_eq!(codec.read(record).unwrap_err().misfit().stage, Stage::Oversized);

    // Of a union no other branch is tried, and fields may come out of order.
    let item = r#"{"type":"record","name":"Q","fields":[{"name":"all","type":["null",{"type":"array","items":"Q"}]},
        {"name":"big","type":"string","default":"0123456789012345678901234567890123456789"},{"name":"n","type":"int"}]}"#;
    let text = format!(
        r#"{{"type":"record","name":"P","fields":[{{"name":"q","type":["null",{item},{{"type":"map","values":"Q"}}]}}]}}"#
    );
    let schema = Arc::new(Schema::dataset(&text).unwrap());
    let mut codec = bounded(Format::json(ExtraFields::Ignore), &schema, 5_000);
    let nested =
        |count| format!(r#"{{"q":{{"n":1,"all":[{}]}}}}"#, vec![r#"{"n":1,"all":null}"#; count].join(","));
    assert!(codec.decode(Some(b"k"), Some(nested(100).as_bytes())).is_ok());
    let misfit = codec.decode(Some(b"k"), Some(nested(130).as_bytes())).unwrap_err();
    assert_eq!(misfit.stage, Stage::Oversized, "{misfit}");
}

#[test]
fn what_a_giant_text_took_is_let_go_of() {
    let schema = Arc::new(Schema::dataset(PRODUCT).unwrap());
    let mut json = json::Json::new(schema, ExtraFields::Ignore);
    let string = "\\n".repeat(3_000_000);
    let names: Vec<String> = (0..100_000).map(|n| format!(r#""{n}":"""#)).collect();
    let giants = [
        format!(r#"{{"stock":1,"id":"{string}"}}"#),
        format!(r#"{{"id":"a","stock":1,"names":{{{}}}}}"#, names.join(",")),
    ];
    let small = br#"{"stock":1,"id":"a"}"#;
    let least = json.decode(small, Bound::ANY).unwrap().to_vec();
    for giant in giants {
        assert!(json.decode(giant.as_bytes(), Bound::ANY).unwrap().len() > 500_000);
        assert!(json.held() > 3 << 20, "{}", json.held());
        assert_eq!(json.decode(small, Bound::ANY).unwrap(), least);
        assert!(json.held() < 3 << 20, "{}", json.held());
    }
}
