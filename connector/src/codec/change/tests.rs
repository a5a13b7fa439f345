use std::sync::Arc;

use apache_avro::types::Value;
use proptest::prelude::*;

use super::super::{Codec, Encoded, Envelope, Format, KeyFormat, KeyRule, Kind, SchemaId, Unread, text};
use super::*;

const OWN: &str = r#"{"type":"record","name":"Product","namespace":"shop","fields":[
    {"name":"id","type":"long"},{"name":"name","type":"string"},{"name":"price","type":["null","double"],"default":null}]}"#;

fn own() -> Arc<Schema> {
    Arc::new(Schema::dataset(OWN).unwrap())
}

fn json(key: KeyRule, keys: KeyFormat) -> Codec {
    let format = Format::json(ExtraFields::Ignore).within(Envelope::Debezium).with_keys(keys);
    Codec::new(format, key, own()).unwrap()
}

fn by_id() -> KeyRule {
    KeyRule::Fields(vec!["id".into()])
}

/// Key and value as JSON; `None`: a delete.
fn read(codec: &mut Codec, key: Option<&str>, value: &str) -> Result<(String, Option<String>), Misfit> {
    let decoded = codec.decode(key.map(str::as_bytes), Some(value.as_bytes()))?;
    let shown = decoded.value.map(|datum| {
        let mut out = String::new();
        text::to_json(&own(), datum, &mut out).unwrap();
        out
    });
    Ok((String::from_utf8(decoded.key.to_vec()).unwrap(), shown))
}

const ROW: &str = r#"{"id":1001,"name":"Cup","price":2.5}"#;

#[test]
fn writes_take_the_row_after_with_and_without_the_schema_around() {
    let mut codec = json(by_id(), KeyFormat::Raw);
    for op in ["c", "r", "u"] {
        let change = format!(
            r#"{{"before":null,"after":{ROW},"source":{{"lsn":7,"op":"x","after":[1]}},"op":"{op}","ts_ms":1}}"#
        );
        let schema = r#"{"type":"struct","fields":[{"field":"op","type":"string"}],"payload":1}"#;
        let wrapped = format!(r#" {{"schema":{schema},"payload":{change}}} "#);
        for value in [&change, &wrapped] {
            assert_eq!(
                read(&mut codec, None, value).unwrap(),
                ("1001".to_owned(), Some(ROW.to_owned())),
                "{value}"
            );
        }
    }
    // Fields in any order, names escaped.
    let odd = format!(r#"{{"\u006fp":"\u0063","after":{ROW}}}"#);
    assert!(read(&mut codec, None, &odd).unwrap().1.is_some());
    // Behind an id of the registry's.
    let framed = [&[0, 0, 0, 0, 7], odd.as_bytes()].concat();
    assert!(codec.decode(None, Some(&framed)).is_ok());
}

#[test]
fn a_delete_takes_its_key_from_what_was_there_or_from_the_kafka_key() {
    // Of what was there only the key counts: PostgreSQL says no more of it unless it is told to.
    let partial = r#"{"op":"d","before":{"id":1001,"name":null},"after":null}"#;
    let mut codec = json(by_id(), KeyFormat::Raw);
    assert_eq!(read(&mut codec, Some("x"), partial).unwrap(), ("1001".to_owned(), None));
    let silent = r#"{"op":"d","before":null,"after":null}"#;
    let misfit = read(&mut codec, Some("x"), silent).unwrap_err();
    assert_eq!((misfit.stage, misfit.class), (Stage::Key, "stillwell.codec.NullKey"), "{misfit}");

    let mut codec = json(by_id(), KeyFormat::Json);
    for key in [r#"{"id":1001}"#, r#"{"schema":{"type":"struct"},"payload":{"id":1001}}"#, "1001"] {
        assert_eq!(read(&mut codec, Some(key), silent).unwrap(), ("1001".to_owned(), None), "{key}");
        let tombstone = codec.decode(Some(key.as_bytes()), None).unwrap();
        assert_eq!((tombstone.key, tombstone.value), (&b"1001"[..], None), "{key}");
    }
    let mut codec = json(KeyRule::Kafka, KeyFormat::Raw);
    assert_eq!(read(&mut codec, Some("k"), silent).unwrap(), ("k".to_owned(), None));
    assert_eq!(read(&mut codec, Some("k"), partial).unwrap(), ("k".to_owned(), None));
    assert_eq!(codec.decode(None, Some(partial.as_bytes())).unwrap_err().class, "stillwell.codec.MissingKey");
}

#[test]
fn what_is_no_change_says_so_and_a_truncated_table_most_of_all() {
    let mut codec = json(by_id(), KeyFormat::Raw);
    for (value, class, said) in [
        (r#"{"op":"t","before":null,"after":null}"#, TRUNCATED, "they stay in the dataset"),
        (r#"{"op":"m"}"#, "stillwell.codec.UnknownOperation", "none of c, r, u, d and t"),
        (r#"{"op":""}"#, "stillwell.codec.UnknownOperation", "none of"),
        (r#"{"op":7}"#, "stillwell.codec.NoEnvelope", "its `op` is no string"),
        (ROW, "stillwell.codec.NoEnvelope", "it has no `op`"),
        (r#"{"schema":null,"payload":null}"#, "stillwell.codec.NoEnvelope", "`payload` is no object"),
        (r#"{"schema":null,"payload":{}}"#, "stillwell.codec.NoEnvelope", "it has no `op`"),
        (r#"{"op":"c","before":null,"after":null}"#, "stillwell.codec.MissingField", "no row in `after`"),
        (r#"{"op":"u"}"#, "stillwell.codec.MissingField", "no row in `after`"),
        (r#"{"op":"c","op":"d","after":{}}"#, "stillwell.codec.DuplicateField", "twice"),
        (r#"{"op":"c","after":{"id":1}}"#, "stillwell.codec.MissingField", "`name` is missing"),
        (
            r#"{"op":"c","after":{"id":"1"}}"#,
            "stillwell.codec.WrongType",
            "`id`: expected an integer of 64 bits, found a string (byte 24)",
        ),
        (r#"{"op":"d","before":{"id":null}}"#, "stillwell.codec.WrongType", "`id`"),
        (r#"{"op":"c","after":"#, "stillwell.codec.MalformedJson", "no value where one should be (byte 18)"),
        (r#"{"op":"d"} {}"#, "stillwell.codec.MalformedJson", "something behind"),
        ("[]", "stillwell.codec.WrongType", "found a list"),
        ("", "stillwell.codec.EmptyValue", "a delete is a Kafka null"),
        ("null", "stillwell.codec.NullLiteral", "a delete is a Kafka null"),
    ] {
        let misfit = read(&mut codec, Some("k"), value).unwrap_err();
        assert!(misfit.class == class && misfit.message.contains(said), "{value}: {misfit:?}");
    }
    // A table that was emptied has no key, and must not hide behind that.
    let truncated = br#"{"op":"t","before":null,"after":null}"#;
    let mut codec = json(KeyRule::Kafka, KeyFormat::Raw);
    assert_eq!(codec.decode(None, Some(truncated)).unwrap_err().class, TRUNCATED);
    let deep = format!(r#"{{"x":{}1{},"op":"c"}}"#, "[".repeat(200), "]".repeat(200));
    assert_eq!(read(&mut codec, None, &deep).unwrap_err().class, "stillwell.codec.TooDeep");
}

#[test]
fn a_row_without_all_its_columns_is_no_row() {
    let base64 = "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==";
    let mut codec = json(by_id(), KeyFormat::Raw);
    let mut of = |name: &str| {
        let change = format!(r#"{{"op":"u","after":{{"id":1,"name":"{name}","price":null}}}}"#);
        read(&mut codec, None, &change).map_err(|misfit| misfit.class)
    };
    let hex = "5f5f646562657a69756d5f756e617661696c61626c655f76616c7565";
    let of_uuids = "b68a35a7-17ad-35b3-af2a-ae46edb4545a";
    for lacking in ["__debezium_unavailable_value", base64, hex, of_uuids] {
        assert_eq!(of(lacking), Err(UNAVAILABLE), "{lacking}");
    }
    for whole in ["", "8", "a __debezium_unavailable_value", "__debezium_unavailable_values", "X19k"] {
        assert!(of(whole).is_ok(), "{whole}");
    }
    let format = Format::avro(Arc::new(Schema::parse(CHANGE).unwrap())).within(Envelope::Debezium);
    let mut codec = Codec::new(format, by_id(), own()).unwrap();
    let mut of = |op, before, after| {
        codec.decode(None, Some(&change(op, before, after))).map(|_| ()).map_err(|misfit| misfit.class)
    };
    let lacking = |id| named(id, "__debezium_unavailable_value");
    assert_eq!(of("u", null(), lacking(1)), Err(UNAVAILABLE));
    // Of what is gone only the key counts.
    assert_eq!(of("d", lacking(1), null()), Ok(()));
    assert_eq!(of("u", lacking(1), row(1)), Ok(()));
}

/// Debezium's `UnchangedToastedPlaceholder` makes of an array of integers the placeholder's bytes.
#[test]
fn an_array_that_was_not_touched_is_no_array() {
    let own = |items: &str| {
        let fields = format!(
            r#"{{"name":"id","type":"long"}},{{"name":"list","type":{{"type":"array","items":{items}}}}}"#
        );
        let text = format!(r#"{{"type":"record","name":"Product","fields":[{fields}]}}"#);
        Arc::new(Schema::dataset(&text).unwrap())
    };
    let numbers = |text: &str| text.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(",");
    let lacking = numbers("__debezium_unavailable_value");
    for items in ["\"int\"", "\"long\"", "\"double\"", "\"float\"", r#"["null","int"]"#, r#"["long","null"]"#]
    {
        let format = Format::json(ExtraFields::Ignore).within(Envelope::Debezium);
        let mut codec = Codec::new(format, by_id(), own(items)).unwrap();
        let mut of = |list: &str| {
            let change = format!(r#"{{"op":"u","after":{{"id":1,"list":[{list}]}}}}"#);
            codec.decode(None, Some(change.as_bytes())).map(|_| ()).map_err(|misfit| misfit.class)
        };
        assert_eq!(of(&lacking), Err(UNAVAILABLE), "{items}");
        for whole in ["", "95", "95,95,100", &numbers("__debezium_unavailable_valu")] {
            assert_eq!(of(whole), Ok(()), "{items}: {whole}");
        }
    }
    // Text in an array.
    let mut codec =
        Codec::new(Format::json(ExtraFields::Ignore).within(Envelope::Debezium), by_id(), own("\"string\""))
            .unwrap();
    let change = br#"{"op":"u","after":{"id":1,"list":["__debezium_unavailable_value"]}}"#;
    assert_eq!(codec.decode(None, Some(change)).unwrap_err().class, UNAVAILABLE);
}

#[test]
fn rows_that_can_never_fit_are_refused_with_field_and_rule() {
    let own = OWN.replace(r#"{"name":"id","#, r#"{"name":"sku","type":"string"},{"name":"id","#);
    let schema = Arc::new(Schema::dataset(&own).unwrap());
    let writer = Arc::new(Schema::parse(CHANGE).unwrap());
    let format = Format::avro(Arc::clone(&writer)).within(Envelope::Debezium);
    let error = Codec::new(format, by_id(), Arc::clone(&schema)).unwrap_err().to_string();
    assert!(error.contains("sku"), "{error}");
    let format = Format::registered(Kind::Avro).within(Envelope::Debezium);
    let mut codec = Codec::new(format, by_id(), schema).unwrap();
    codec.learn(SchemaId::Number(7), Ok(&writer.into()));
    let value = [&[0, 0, 0, 0, 7], &change("c", null(), row(1))[..]].concat();
    let misfit = codec.decode(None, Some(&value)).unwrap_err();
    assert_eq!(misfit.class, "stillwell.codec.Incompatible");
    assert!(misfit.message.contains("sku"), "{misfit:?}");
}

/// As Debezium's Avro converter has it: the row's record is called `Value`.
const CHANGE: &str = r#"{"type":"record","name":"Envelope","namespace":"db.shop.products","fields":[
    {"name":"before","type":["null",{"type":"record","name":"Value","fields":[
        {"name":"price","type":["null","float"],"default":null},{"name":"id","type":"int"},{"name":"name","type":"string"}]}],
        "default":null},
    {"name":"after","type":["null","Value"],"default":null},
    {"name":"source","type":{"type":"record","name":"Source","fields":[{"name":"lsn","type":"long"}]}},
    {"name":"op","type":"string"},{"name":"ts_ms","type":["null","long"],"default":null}]}"#;

fn row(id: i32) -> Value {
    named(id, "Cup")
}

fn named(id: i32, name: &str) -> Value {
    Value::Union(
        1,
        Box::new(Value::Record(vec![
            ("price".into(), Value::Union(1, Box::new(Value::Float(2.5)))),
            ("id".into(), Value::Int(id)),
            ("name".into(), name.into()),
        ])),
    )
}

fn change(op: &str, before: Value, after: Value) -> Vec<u8> {
    let schema = apache_avro::Schema::parse_str(CHANGE).unwrap();
    let fields = vec![
        ("before".into(), before),
        ("after".into(), after),
        ("source".into(), Value::Record(vec![("lsn".into(), Value::Long(9))])),
        ("op".into(), op.into()),
        ("ts_ms".into(), Value::Union(0, Box::new(Value::Null))),
    ];
    apache_avro::to_avro_datum(&schema, Value::Record(fields)).unwrap()
}

fn null() -> Value {
    Value::Union(0, Box::new(Value::Null))
}

#[test]
fn rows_in_avro_are_resolved_out_of_their_envelope() {
    let writer = Arc::new(Schema::parse(CHANGE).unwrap());
    let bare = Format::avro(Arc::clone(&writer)).within(Envelope::Debezium);
    let registered = Format::registered(Kind::Avro).within(Envelope::Debezium);
    for (format, frame) in [(bare, &b""[..]), (registered, &[0, 0, 0, 0, 7])] {
        let mut codec = Codec::new(format, by_id(), own()).unwrap();
        codec.learn(SchemaId::Number(7), Ok(&Arc::clone(&writer).into()));
        let mut read = |datum: Vec<u8>| {
            let value = [frame, &datum].concat();
            let decoded = codec.decode(Some(b"k"), Some(&value))?;
            let shown = decoded.value.map(|datum| {
                assert_eq!(own().validate(datum), Ok(datum.len()));
                let mut out = String::new();
                text::to_json(&own(), datum, &mut out).unwrap();
                out
            });
            Ok::<_, Misfit>((String::from_utf8(decoded.key.to_vec()).unwrap(), shown))
        };
        for op in ["c", "r", "u"] {
            assert_eq!(read(change(op, null(), row(1001))).unwrap(), ("1001".into(), Some(ROW.into())));
        }
        assert_eq!(read(change("d", row(7), null())).unwrap(), ("7".into(), None));
        assert_eq!(read(change("d", null(), null())).unwrap_err().class, "stillwell.codec.NullKey");
        assert_eq!(read(change("t", null(), null())).unwrap_err().class, TRUNCATED);
        assert_eq!(read(change("u", row(7), null())).unwrap_err().class, "stillwell.codec.MissingField");
        assert_eq!(read(change("x", null(), row(1))).unwrap_err().class, "stillwell.codec.UnknownOperation");
        let whole = change("c", null(), row(1001));
        for cut in 0..whole.len() {
            assert_eq!(read(whole[..cut].to_vec()).unwrap_err().stage, Stage::Decode, "{cut}");
        }
        let more = [&whole[..], b"x"].concat();
        assert!(read(more).unwrap_err().message.contains("something behind the datum"));
    }
    // With the Kafka key nothing of `before` is read, and a delete is a datum all the same.
    let format = Format::avro(writer).within(Envelope::Debezium);
    let mut codec = Codec::new(format, KeyRule::Kafka, own()).unwrap();
    let delete = change("d", null(), null());
    assert_eq!(codec.decode(Some(b"k"), Some(&delete)).unwrap().value, None);
    assert!(codec.decode(Some(b"k"), Some(&delete[..delete.len() - 1])).is_err());
}

#[test]
fn a_delete_in_avro_may_wait_for_the_schema_of_its_key() {
    let keys = KeyFormat::Registered(Kind::Avro);
    let format = Format::registered(Kind::Avro).within(Envelope::Debezium).with_keys(keys);
    let mut codec = Codec::new(format, by_id(), own()).unwrap();
    codec.learn(SchemaId::Number(7), Ok(&Arc::new(Schema::parse(CHANGE).unwrap()).into()));
    let value = [&[0, 0, 0, 0, 7], &change("d", null(), null())[..]].concat();
    let record = Encoded { key: Some(&[0, 0, 0, 0, 8, 14]), value: Some(&value), ..Encoded::default() };
    assert_eq!(codec.unknown(record), Some(SchemaId::Number(8)));
    assert!(matches!(codec.read(record), Err(Unread::Unknown { stage: Stage::Key, .. })));
    let key = r#"{"type":"record","name":"Key","fields":[{"name":"id","type":"int"}]}"#;
    codec.learn(SchemaId::Number(8), Ok(&Arc::new(Schema::parse(key).unwrap()).into()));
    assert_eq!(codec.read(record).unwrap().key, b"7");
}

#[test]
fn a_schema_that_is_no_change_is_refused() {
    for (schema, said) in [
        (OWN, "has no field `op`"),
        (r#""string""#, "it is string"),
        (r#"{"type":"record","name":"E","fields":[{"name":"op","type":"int"}]}"#, "its field `op` is int"),
        (r#"{"type":"record","name":"E","fields":[{"name":"op","type":"string"}]}"#, "no field `after`"),
    ] {
        let writer = Arc::new(Schema::parse(schema).unwrap());
        let format = Format::avro(writer).within(Envelope::Debezium);
        let error = Codec::new(format, by_id(), own()).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let format = Format::raw().within(Envelope::Debezium);
    assert!(Codec::new(format, KeyRule::Kafka, Arc::new(Schema::raw())).is_err());
}

proptest! {
    /// Whatever the bytes: a datum, a delete, or a misfit.
    #[test]
    fn hostile_bytes_are_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..80), at in 0usize..90, flip in 1u8..) {
        let writer = Arc::new(Schema::parse(CHANGE).unwrap());
        let avro = Format::avro(writer).within(Envelope::Debezium);
        let jsons = Format::json(ExtraFields::Ignore).within(Envelope::Debezium);
        let text = format!(r#"{{"op":"c","before":{ROW},"after":{ROW}}}"#);
        for (format, whole) in [(avro, change("u", row(1), row(2))), (jsons, text.into_bytes())] {
            let mut codec = Codec::new(format, by_id(), own()).unwrap();
            let mut flipped = whole.clone();
            if let Some(byte) = flipped.get_mut(at) {
                *byte ^= flip;
            }
            for bytes in [&bytes, &flipped] {
                if let Ok(decoded) = codec.decode(Some(b"k"), Some(bytes)) && let Some(datum) = decoded.value {
                    prop_assert_eq!(own().validate(datum), Ok(datum.len()));
                }
            }
        }
    }
}
