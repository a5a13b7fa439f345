use proptest::prelude::*;
use prost_reflect::prost::Message as _;
use prost_reflect::{DynamicMessage, MapKey, Value};

use super::super::Stage;
use super::super::{
    Bound, Codec, Encoded, Format, KeyFormat, KeyRule, Kind as Registered, SchemaId, Unread, text,
};
use super::*;

mod large;

const FILE: &str = r#"
syntax = "proto3";
package shop;
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
import "parts.proto";

message Other { string x = 1; }

message Product {
  string id = 1;
  int64 stock = 2;
  optional double price = 3;
  repeated int32 sizes = 4;
  map<string, int64> counts = 5;
  Kind kind = 6;
  parts.Part part = 7;
  repeated parts.Part all = 8;
  google.protobuf.Timestamp made_at = 9;
  google.protobuf.StringValue note = 10;
  oneof pay { string cash = 11; uint64 card = 12; bool free = 13; }
  bytes raw = 14;
  Product next = 15;
  map<uint32, parts.Part> by_number = 16;
  uint64 large = 17;
  float ratio = 18;
  sint32 shift = 19;
  fixed64 wide = 20;
  sfixed32 narrow = 21;
  message Inner { bool deep = 1; }
  Inner inner = 22;
  enum Kind { NEW = 0; USED = 1; BROKEN = 2; }
}
"#;

const PARTS: &str =
    r#"syntax = "proto3"; package parts; message Part { int32 number = 1; string name = 2; }"#;

const OWN: &str = r#"{"type":"record","name":"Product","fields":[
    {"name":"stock","type":"long"},
    {"name":"id","type":"string"},
    {"name":"price","type":["null","double"],"default":null},
    {"name":"sizes","type":{"type":"array","items":"long"}},
    {"name":"counts","type":{"type":"map","values":"long"}},
    {"name":"kind","type":{"type":"enum","name":"Kind","symbols":["USED","NEW","OTHER"],"default":"OTHER"}},
    {"name":"part","type":["null",{"type":"record","name":"Part","fields":[
        {"name":"name","type":"string"},{"name":"number","type":"int"}]}],"default":null},
    {"name":"all","type":{"type":"array","items":"Part"}},
    {"name":"madeAt","type":["null",{"type":"long","logicalType":"timestamp-millis"}],"default":null},
    {"name":"note","type":["null","string"],"default":null},
    {"name":"cash","type":["null","string"],"default":null},
    {"name":"card","type":["null","long"],"default":null},
    {"name":"raw","type":"bytes"},
    {"name":"next","type":["null","Product"],"default":null},
    {"name":"by_number","type":{"type":"map","values":"Part"}},
    {"name":"large","type":"double"},
    {"name":"ratio","type":"double"},
    {"name":"shift","type":"int"},
    {"name":"wide","type":"long"},
    {"name":"narrow","type":"int"},
    {"name":"extra","type":"int","default":-1}]}"#;

/// What stands for a message without fields.
const NOTHING: &str = r#"{"stock":0,"id":"","price":null,"sizes":[],"counts":{},"kind":"NEW","part":null,"all":[],"madeAt":null,"note":null,"cash":null,"card":null,"raw":"","next":null,"by_number":{},"large":0.0,"ratio":0.0,"shift":0,"wide":0,"narrow":0,"extra":-1}"#;

fn file() -> File {
    File::compile(FILE, &[("parts.proto".to_owned(), PARTS.to_owned())]).unwrap()
}

fn product() -> Message {
    file().message(&[1]).unwrap()
}

fn own() -> Arc<Schema> {
    Arc::new(Schema::dataset(OWN).unwrap())
}

fn protobuf(schema: &str) -> Result<Protobuf, Error> {
    Protobuf::new(&product(), &Arc::new(Schema::dataset(schema).unwrap()))
}

/// The datum as JSON.
fn shown(schema: &Schema, datum: &[u8]) -> String {
    assert_eq!(schema.validate(datum), Ok(datum.len()));
    let mut out = String::new();
    text::to_json(schema, datum, &mut out).unwrap();
    out
}

fn through(bytes: &[u8]) -> Result<String, Misfit> {
    let mut messages = protobuf(OWN).unwrap();
    Ok(shown(&own(), messages.decode(bytes, Bound::ANY)?))
}

fn message(fields: &[(&str, Value)]) -> DynamicMessage {
    let mut message = DynamicMessage::new(product().0);
    for (name, value) in fields {
        message.set_field_by_name(name, value.clone());
    }
    message
}

fn part(number: i32, name: &str) -> Value {
    let file = file();
    let descriptor = file.pool.get_message_by_name("parts.Part").unwrap();
    let mut part = DynamicMessage::new(descriptor);
    part.set_field_by_name("number", Value::I32(number));
    part.set_field_by_name("name", Value::String(name.to_owned()));
    Value::Message(part)
}

fn known(name: &str, fields: &[(&str, Value)]) -> Value {
    let mut message = DynamicMessage::new(file().pool.get_message_by_name(name).unwrap());
    for (name, value) in fields {
        message.set_field_by_name(name, value.clone());
    }
    Value::Message(message)
}

fn with(changes: &[(&str, &str)]) -> String {
    let mut all: serde_json::Map<String, serde_json::Value> = serde_json::from_str(NOTHING).unwrap();
    for (name, json) in changes {
        all[*name] = serde_json::from_str(json).unwrap();
    }
    let order: Vec<&str> = NOTHING.split('"').skip(1).step_by(2).collect();
    let mut names: Vec<&String> = all.keys().collect();
    names.sort_by_key(|name| order.iter().position(|known| known == name));
    let fields: Vec<String> = names.iter().map(|name| format!("{name:?}:{}", all[*name])).collect();
    format!("{{{}}}", fields.join(","))
}

#[test]
fn a_message_becomes_a_record_field_by_field() {
    assert_eq!(through(b"").unwrap(), NOTHING);
    let map = [(MapKey::String("b".into()), Value::I64(2)), (MapKey::String("a".into()), Value::I64(-1))];
    let numbers = [(MapKey::U32(7), part(1, "x"))];
    let time = [("seconds", Value::I64(1_700_000_000)), ("nanos", Value::I32(5_999_999))];
    let next = message(&[("id", Value::String("P-2".into())), ("kind", Value::EnumNumber(2))]);
    let whole = message(&[
        ("id", Value::String("P-1ä".into())),
        ("stock", Value::I64(i64::MIN)),
        ("price", Value::F64(2.5)),
        ("sizes", Value::List(vec![Value::I32(1), Value::I32(-7), Value::I32(i32::MAX)])),
        ("counts", Value::Map(map.into())),
        ("kind", Value::EnumNumber(1)),
        ("part", part(-3, "lid")),
        ("all", Value::List(vec![part(1, "a"), part(0, "")])),
        ("made_at", known("google.protobuf.Timestamp", &time)),
        ("note", known("google.protobuf.StringValue", &[("value", Value::String("n".into()))])),
        ("card", Value::U64(12)),
        ("raw", Value::Bytes(vec![0, 0xff].into())),
        ("next", Value::Message(next)),
        ("by_number", Value::Map(numbers.into())),
        ("large", Value::U64(1 << 62)),
        ("ratio", Value::F32(0.5)),
        ("shift", Value::I32(-9)),
        ("wide", Value::U64(5)),
        ("narrow", Value::I32(-5)),
    ]);
    let next = with(&[("id", r#""P-2""#), ("kind", r#""OTHER""#)]);
    let expected = with(&[
        ("id", r#""P-1ä""#),
        ("stock", "-9223372036854775808"),
        ("price", "2.5"),
        ("sizes", "[1,-7,2147483647]"),
        ("kind", r#""USED""#),
        ("part", r#"{"name":"lid","number":-3}"#),
        ("all", r#"[{"name":"a","number":1},{"name":"","number":0}]"#),
        ("madeAt", "1700000000005"),
        ("note", r#""n""#),
        ("card", "12"),
        ("raw", r#""AP8=""#),
        ("next", &next),
        ("by_number", r#"{"7":{"name":"x","number":1}}"#),
        ("large", "4.611686018427388e18"),
        ("ratio", "0.5"),
        ("shift", "-9"),
        ("wide", "5"),
        ("narrow", "-5"),
        ("counts", r#"{"a":-1,"b":2}"#),
    ]);
    let read: serde_json::Value = serde_json::from_str(&through(&whole.encode_to_vec()).unwrap()).unwrap();
    assert_eq!(read, serde_json::from_str::<serde_json::Value>(&expected).unwrap());
}

/// A field: its tag, and what is behind it.
fn field(number: u32, wire: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut tag = u64::from(number) << 3 | u64::from(wire);
    while tag >= 0x80 {
        out.push(tag as u8 | 0x80);
        tag >>= 7;
    }
    out.push(tag as u8);
    out.extend_from_slice(content);
    out
}

fn delimited(number: u32, content: &[u8]) -> Vec<u8> {
    assert!(content.len() < 128);
    field(number, 2, &[&[content.len() as u8], content].concat())
}

#[test]
fn what_comes_twice_what_is_unknown_and_what_lies_in_any_order() {
    let says = |parts: &[Vec<u8>], changes: &[(&str, &str)]| {
        assert_eq!(through(&parts.concat()).unwrap(), with(changes), "{parts:?}");
    };
    // Of a scalar the last counts; a message that comes twice has the fields of both.
    says(
        &[field(2, 0, &[1]), delimited(1, b"a"), field(2, 0, &[3]), delimited(1, b"b")],
        &[("stock", "3"), ("id", r#""b""#)],
    );
    says(
        &[
            delimited(7, &[8, 5]),
            delimited(1, b"a"),
            delimited(7, &delimited(2, b"n")),
            delimited(7, &[8, 6]),
        ],
        &[("id", r#""a""#), ("part", r#"{"name":"n","number":6}"#)],
    );
    // Packed or not, and both.
    says(
        &[field(4, 0, &[1]), delimited(4, &[2, 3]), delimited(4, &[]), field(4, 0, &[4])],
        &[("sizes", "[1,2,3,4]")],
    );
    // Of a oneof the last member that is set, whether the dataset has it or not.
    says(&[delimited(11, b"c"), field(12, 0, &[7])], &[("card", "7")]);
    says(&[field(12, 0, &[7]), delimited(11, b"c")], &[("cash", r#""c""#)]);
    says(&[field(12, 0, &[7]), field(13, 0, &[0])], &[]);
    says(&[field(13, 0, &[1]), field(12, 0, &[0])], &[("card", "0")]);
    // Of a key of a map that comes twice the last entry counts; what an entry lacks has its default.
    let entry = |key: &[u8], value: &[u8]| delimited(5, &[delimited(1, key), field(2, 0, value)].concat());
    says(&[entry(b"k", &[1]), entry(b"k", &[2])], &[("counts", r#"{"k":2}"#)]);
    says(&[delimited(5, b"")], &[("counts", r#"{"":0}"#)]);
    says(&[delimited(16, &[8, 9])], &[("by_number", r#"{"9":{"name":"","number":0}}"#)]);
    // An optional that is zero is there; a wrapper without a value is a zero.
    says(&[field(3, 1, &[0; 8])], &[("price", "0.0")]);
    says(&[delimited(10, b"")], &[("note", r#""""#)]);
    says(&[delimited(9, b"")], &[("madeAt", "0")]);
    // Unknown fields of every type on the wire, groups too.
    let group =
        [field(99, 3, &[]), field(1, 0, &[9]), field(98, 3, &[]), field(98, 4, &[]), field(99, 4, &[])]
            .concat();
    says(
        &[group, field(100, 5, &[0; 4]), field(101, 1, &[0; 8]), delimited(102, b"x"), field(2, 0, &[1])],
        &[("stock", "1")],
    );
    // A number of an enum that the dataset has not: its default; of 32 bits what has more is cut.
    says(&[field(6, 0, &[77])], &[("kind", r#""OTHER""#)]);
    says(&[field(6, 0, &[0x81, 0x80, 0x80, 0x80, 0x10])], &[("kind", r#""USED""#)]);
}

#[test]
fn messages_in_parts_are_one_unless_a_oneof_was_something_else_meanwhile() {
    // Seconds, then nanoseconds; a wrapper's value, then a wrapper without one.
    let time = [delimited(9, &[8, 7]), delimited(9, &[16, 0x80, 0x89, 0x7a])];
    let note = [delimited(10, &delimited(1, b"n")), delimited(10, b"")];
    let read = through(&[time.concat(), note.concat()].concat()).unwrap();
    assert_eq!(read, with(&[("madeAt", "7002"), ("note", r#""n""#)]));
    let text = r#"syntax = "proto3"; message A { int32 x = 1; int32 y = 2; }
        message P { oneof which { A a = 1; int32 b = 2; bool c = 3; } }"#;
    let schema = r#"{"type":"record","name":"P","fields":[
        {"name":"a","type":["null",{"type":"record","name":"A","fields":[
            {"name":"x","type":"int"},{"name":"y","type":"int"}]}],"default":null},
        {"name":"b","type":["null","int"],"default":null}]}"#;
    let schema = Arc::new(Schema::dataset(schema).unwrap());
    let message = File::compile(text, &[]).unwrap().message(&[1]).unwrap();
    let mut messages = Protobuf::new(&message, &schema).unwrap();
    for (between, said) in [
        (vec![], r#"{"a":{"x":5,"y":6},"b":null}"#),
        (field(2, 0, &[7]), r#"{"a":{"x":0,"y":6},"b":null}"#),
        (field(3, 0, &[1]), r#"{"a":{"x":0,"y":6},"b":null}"#),
    ] {
        let bytes = [&delimited(1, &[8, 5])[..], &between, &delimited(1, &[16, 6])].concat();
        assert_eq!(shown(&schema, messages.decode(&bytes, Bound::ANY).unwrap()), said);
    }
}

#[test]
fn poison_is_a_misfit_that_says_where() {
    let ten = [0xff; 10];
    let deep = |levels: usize| {
        (0..levels).fold(Vec::new(), |inner: Vec<u8>, _| {
            let (mut length, mut rest) = (Vec::new(), inner.len());
            while rest >= 0x80 {
                length.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            length.push(rest as u8);
            field(15, 2, &[length, inner].concat())
        })
    };
    let groups = |levels: usize| [vec![0x1b; levels], vec![0x1c; levels]].concat();
    for (bytes, class, said) in [
        (&[0x08, 1][..], "MalformedProtobuf", "of another type on the wire"),
        (&[0x10], "MalformedProtobuf", "it ends too early (byte 1)"),
        (&[0x10, 0x80], "MalformedProtobuf", "it ends too early"),
        (&[&[0x10u8][..], &ten].concat(), "MalformedProtobuf", "more than 64 bits"),
        (&[0x0a, 5, b'a'], "MalformedProtobuf", "a length reaches beyond the end"),
        (&[&[0x0au8][..], &[0xff; 9], &[1]].concat(), "MalformedProtobuf", "a length reaches beyond the end"),
        (&[0x0a, 1, 0xff], "MalformedProtobuf", "`id`: a string is not UTF-8"),
        (&[0x00, 0], "MalformedProtobuf", "a field's number is 0 or too large"),
        (&[0x16, 0], "MalformedProtobuf", "a type on the wire that there is not"),
        (&[0x14], "MalformedProtobuf", "a group ends that has not begun"),
        (&[0x9b, 6, 0x94, 6], "MalformedProtobuf", "not the innermost"),
        (&[0x9b, 6], "MalformedProtobuf", "it ends too early"),
        (&[0x1d, 0, 0, 0, 0], "MalformedProtobuf", "another type on the wire"),
        (&[0x19, 0, 0], "MalformedProtobuf", "it ends too early"),
        (&[0x22, 2, 1, 0x80], "MalformedProtobuf", "it ends too early"),
        (&deep(200), "TooDeep", "deeper than 128"),
        (&field(20, 1, &[0xff; 8]), "OutOfRange", "`wide`: a number out of its type's range"),
        (&delimited(9, &field(2, 0, &[0x80, 0x94, 0xeb, 0xdc, 3])), "OutOfRange", "`madeAt`"),
        (
            &delimited(9, &field(1, 0, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f])),
            "OutOfRange",
            "`madeAt`",
        ),
    ] {
        let misfit = through(bytes).unwrap_err();
        assert_eq!(misfit.class, format!("stillwell.codec.{class}"), "{bytes:?}: {misfit}");
        let said = said.split_once("`: ").map_or(said, |(_, said)| said);
        assert!(misfit.message.contains(said), "{bytes:?}: {misfit}");
        assert!(misfit.message.len() < 1_000);
    }
    assert!(through(&deep(100)).is_ok());
    let misfit = through(&groups(200)).unwrap_err();
    assert_eq!(misfit.class, "stillwell.codec.TooDeep", "{misfit}");
}

#[test]
fn what_does_not_fit_is_said_once_and_before() {
    let record = |field: &str| format!(r#"{{"type":"record","name":"P","fields":[{field}]}}"#);
    for (schema, said) in [
        (r#""string""#.to_owned(), "they are string"),
        (record(r#"{"name":"nope","type":"int"}"#), "it has no field `nope`, which has no default"),
        (record(r#"{"name":"id","type":"int"}"#), "`id`: string does not become int"),
        (record(r#"{"name":"stock","type":"string"}"#), "`stock`: int64 does not become string"),
        (record(r#"{"name":"sizes","type":"int"}"#), "`sizes`: it is a list, the dataset's int"),
        (record(r#"{"name":"counts","type":{"type":"array","items":"int"}}"#), "`counts`: it is a map"),
        (record(r#"{"name":"made_at","type":"long"}"#), "logical type timestamp-millis"),
        (
            record(
                r#"{"name":"part","type":{"type":"record","name":"Q","fields":[{"name":"x","type":"int"}]}}"#,
            ),
            "`part`: it has no field `x`",
        ),
        (
            record(r#"{"name":"kind","type":{"type":"enum","name":"K","symbols":["X"]}}"#),
            "none of the names of shop.Product.Kind",
        ),
        (record(r#"{"name":"id","type":"null"}"#), "`id`: string does not become null"),
        (record(r#"{"name":"made_at","type":"null"},{"name":"madeAt","type":"null"}"#), "`made_at`"),
    ] {
        let error = protobuf(&schema).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("shop.Product"), "{error}");
    }
    for (schema, bytes, json) in [
        (record(r#"{"name":"kind","type":"string"}"#), &[0x30, 2][..], r#"{"kind":"BROKEN"}"#),
        (record(r#"{"name":"kind","type":"int"}"#), &[0x30, 9], r#"{"kind":9}"#),
        (
            record(r#"{"name":"raw","type":{"type":"fixed","name":"F","size":2}}"#),
            &[0x72, 2, 0, 0],
            r#"{"raw":"AAA="}"#,
        ),
        (
            record(r#"{"name":"name","aliases":["id"],"type":["null","string"]}"#),
            &[0x0a, 1, b'x'],
            r#"{"name":"x"}"#,
        ),
        (
            record(
                r#"{"name":"made_at","type":{"type":"record","name":"T","fields":[{"name":"seconds","type":"long"}]}}"#,
            ),
            &[0x4a, 2, 8, 7],
            r#"{"made_at":{"seconds":7}}"#,
        ),
        (record(r#"{"name":"stock","type":["string","null","long"]}"#), &[], r#"{"stock":0}"#),
    ] {
        let parsed = Schema::dataset(&schema).unwrap();
        let mut messages = protobuf(&schema).unwrap();
        assert_eq!(shown(&parsed, messages.decode(bytes, Bound::ANY).unwrap()), json);
    }
    // What has to be there, and is not.
    let mut messages = protobuf(&record(r#"{"name":"price","type":"double"}"#)).unwrap();
    let misfit = messages.decode(b"", Bound::ANY).unwrap_err();
    assert_eq!((misfit.stage, misfit.class), (Stage::Validate, "stillwell.codec.MissingField"));
    assert!(misfit.message.starts_with("`price`: "), "{misfit}");
    let mut messages =
        protobuf(&record(r#"{"name":"raw","type":{"type":"fixed","name":"F","size":2}}"#)).unwrap();
    assert_eq!(messages.decode(&[0x72, 1, 0], Bound::ANY).unwrap_err().class, "stillwell.codec.WrongSize");
}

#[test]
fn files_are_compiled_with_what_they_import_and_nothing_else() {
    let refused = |text: &str, imports: &[(String, String)]| File::compile(text, imports).unwrap_err();
    assert!(refused(FILE, &[]).contains("imports parts.proto"));
    assert!(refused("syntax = \"proto3\"; message {", &[]).contains("the schema"));
    let deep = format!("syntax = \"proto3\"; {}{}", "message A {".repeat(100), "}".repeat(100));
    assert!(refused(&deep, &[]).contains("nested deeper"));
    let talk = "// a < b, :( and {\n/* << (( */ // it's \"((\n".repeat(100);
    assert!(File::compile(&format!("syntax = \"proto3\";\n{talk}message A {{ int32 a = 1; }}"), &[]).is_ok());
    let itself = |name: &str| format!("syntax = \"proto3\"; import \"{name}\"; message A {{ int32 a = 1; }}");
    let circle = [("a".to_owned(), itself("b")), ("b".to_owned(), itself("a"))];
    assert!(!refused(&itself("a"), &circle).is_empty());
    let meta = "syntax = \"proto3\"; import \"confluent/meta.proto\";
        message A { int32 a = 1 [(confluent.field_meta).doc = \"the a\"]; }";
    let file = File::compile(meta, &[]).unwrap();
    assert_eq!(file.message(&[0]).unwrap().name(), "A");
    let file = self::file();
    assert_eq!(file.message(&[0]).unwrap().name(), "shop.Other");
    // Before it stand two maps, whose entries are types for the compiler only.
    assert_eq!(file.message(&[1, 0]).unwrap().name(), "shop.Product.Inner");
    for path in [&[][..], &[2], &[1, 1], &[1, 0, 0]] {
        assert!(file.message(path).is_none(), "{path:?}");
    }
}

#[test]
fn a_descriptor_set_has_its_types_by_name() {
    let set = product().0.parent_pool().encode_to_vec();
    let found = Message::find(&set, "shop.Product").unwrap();
    assert_eq!(found.digest(), Message::find(&set, ".shop.Product").unwrap().digest());
    assert_ne!(found.digest(), Message::find(&set, "shop.Other").unwrap().digest());
    assert!(Protobuf::new(&found, &own()).is_ok());
    let error = Message::find(&set, "shop.Produkt").unwrap_err();
    assert!(error.contains("shop.Product") && error.starts_with("has no message"), "{error}");
    assert!(Message::find(b"\xff", "x").unwrap_err().contains("no descriptor set"));
}

fn framed(number: u32, indexes: &[u8], message: &[u8]) -> Vec<u8> {
    [&[0], &number.to_be_bytes()[..], indexes, message].concat()
}

#[test]
fn a_registrys_id_is_followed_by_which_message_it_is() {
    let format =
        Format::registered(Registered::Protobuf).with_keys(KeyFormat::Registered(Registered::Protobuf));
    let mut codec = Codec::new(format, KeyRule::Kafka, own()).unwrap();
    let id = SchemaId::Number(7);
    let key = framed(7, &[0], &[0x0a, 1, b'k']);
    let value = |indexes: &[u8]| framed(7, indexes, &[0x0a, 1, b'x']);
    let whole = value(&[2, 2]);
    let record = Encoded { key: Some(&key), value: Some(&whole), ..Encoded::default() };
    assert_eq!(codec.unknown(record), Some(id));
    codec.learn(id, Ok(&super::super::Written::Protobuf(Arc::new(file()))));
    let decoded = codec.read(record).unwrap();
    assert_eq!(decoded.key, b"k");
    assert_eq!(shown(&own(), decoded.value.unwrap()), with(&[("id", r#""x""#)]));
    for (indexes, class, stage) in [
        (&[0][..], "Incompatible", Stage::Validate),
        (&[2, 4], "UnknownMessage", Stage::Decode),
        (&[4, 2, 20], "UnknownMessage", Stage::Decode),
        (&[1], "NoMessageIndex", Stage::Decode),
        (&[0xfe, 0xff, 0xff, 0xff, 0x0f], "NoMessageIndex", Stage::Decode),
    ] {
        let value = value(indexes);
        let Err(Unread::Misfit(misfit)) = codec.read(Encoded { value: Some(&value), ..record }) else {
            panic!("{indexes:?} was read")
        };
        assert_eq!((misfit.class, misfit.stage), (&*format!("stillwell.codec.{class}"), stage), "{misfit}");
    }
    // Beside it: the indexes behind the id, the message alone in the value.
    for (header, read) in
        [(&framed(7, &[2, 2], b"")[..], true), (&framed(7, b"", b""), false), (&framed(7, &[2], b""), false)]
    {
        let headed = Encoded { value: Some(&[0x0a, 1, b'x']), value_header: Some(header), ..record };
        assert_eq!(codec.read(headed).is_ok(), read, "{header:?}");
    }
    let avro = super::super::Written::Avro(own());
    codec.learn(SchemaId::Number(8), Ok(&avro));
    let value = framed(8, &[0], b"");
    let Err(Unread::Misfit(misfit)) = codec.read(Encoded { value: Some(&value), ..record }) else { panic!() };
    assert!(misfit.message.contains("of type AVRO, not PROTOBUF"), "{misfit}");
}

#[test]
fn a_key_is_what_its_message_says() {
    let text = r#"syntax = "proto3"; message K { string b = 2; int64 a = 1; optional bool c = 3; }
        message Bad { repeated int32 a = 1; } message None { }"#;
    let file = File::compile(text, &[]).unwrap();
    let mut keys = super::Key::new(&file.message(&[0]).unwrap(), &[]).unwrap();
    let whole = [0x08, 7, 0x12, 3, b'x', b'/', b'y', 0x18, 1];
    assert_eq!(keys.decode(&whole).unwrap(), b"7/x%2Fy/true");
    let misfit = keys.decode(&whole[..7]).unwrap_err();
    assert_eq!((misfit.stage, misfit.class), (Stage::Key, "stillwell.codec.NullKey"));
    assert_eq!(keys.decode(&[0x08]).unwrap_err().stage, Stage::Key);
    let mut keys = super::Key::new(&file.message(&[0]).unwrap(), &["b".to_owned()]).unwrap();
    assert_eq!(keys.decode(&whole).unwrap(), b"x/y");
    for path in [1, 2] {
        assert!(matches!(super::Key::new(&file.message(&[path]).unwrap(), &[]), Err(Error::KeyType(_))));
    }
}

proptest! {
    /// Whatever the bytes: a datum or a misfit; and what the reference reads as a message is one, unless text is not UTF-8
    /// or a number too large.
    #[test]
    fn hostile_bytes_are_bounded(
        bytes in proptest::collection::vec(any::<u8>(), 0..64),
        parts in proptest::collection::vec((1u32..24, 0u8..6, proptest::collection::vec(0u8..20, 0..6)), 0..12),
    ) {
        let built: Vec<u8> = parts.iter().flat_map(|(number, wire, content)| match wire {
            2 => delimited(*number, content),
            wire => field(*number, *wire, content),
        }).collect();
        let mut messages = protobuf(OWN).unwrap();
        for bytes in [&bytes, &built] {
            let theirs = DynamicMessage::decode(product().0, bytes.as_slice());
            match (messages.decode(bytes, Bound::ANY), theirs) {
                (Ok(datum), theirs) => {
                    prop_assert_eq!(own().validate(datum), Ok(datum.len()));
                    let ours: serde_json::Value = serde_json::from_str(&shown(&own(), datum)).unwrap();
                    if let Ok(theirs) = theirs {
                        let field = |name: &str| theirs.get_field_by_name(name).unwrap().into_owned();
                        prop_assert!(ours["id"].as_str() == field("id").as_str());
                        prop_assert!(ours["stock"].as_i64() == field("stock").as_i64());
                        let count = field("sizes").as_list().map_or(0, <[Value]>::len);
                        prop_assert_eq!(ours["sizes"].as_array().unwrap().len(), count);
                        let count = field("counts").as_map().map_or(0, |map| map.len());
                        prop_assert_eq!(ours["counts"].as_object().unwrap().len(), count);
                        prop_assert_eq!(ours["price"].is_null(), !theirs.has_field_by_name("price"));
                        prop_assert_eq!(ours["cash"].is_null(), !theirs.has_field_by_name("cash"));
                        prop_assert_eq!(ours["card"].is_null(), !theirs.has_field_by_name("card"));
                    }
                }
                (Err(misfit), Ok(_)) => prop_assert!(
                    ["OutOfRange", "MalformedProtobuf", "TooDeep"].iter().any(|class| misfit.class.ends_with(class)),
                    "{}", misfit
                ),
                (Err(_), Err(_)) => {}
            }
        }
    }

    /// What the reference writes is read as it was meant.
    #[test]
    fn what_the_reference_writes_is_read(
        id in "\\PC{0,8}", stock in any::<i64>(), price in proptest::option::of(any::<i32>()),
        sizes in proptest::collection::vec(any::<i32>(), 0..5), shift in any::<i32>(), narrow in any::<i32>(),
        counts in proptest::collection::btree_map("[a-z]{0,3}", any::<i64>(), 0..5),
    ) {
        let mut written = message(&[
            ("id", Value::String(id.clone())), ("stock", Value::I64(stock)), ("shift", Value::I32(shift)),
            ("narrow", Value::I32(narrow)),
            ("sizes", Value::List(sizes.iter().map(|size| Value::I32(*size)).collect())),
            ("counts", Value::Map(counts.iter().map(|(key, value)| (MapKey::String(key.clone()), Value::I64(*value))).collect())),
        ]);
        if let Some(price) = price {
            written.set_field_by_name("price", Value::F64(f64::from(price) / 4.0));
        }
        let ours: serde_json::Value = serde_json::from_str(&through(&written.encode_to_vec()).unwrap()).unwrap();
        prop_assert_eq!(&ours["id"], &id);
        prop_assert_eq!(&ours["stock"], stock);
        prop_assert_eq!(ours["price"].as_f64(), price.map(|price| f64::from(price) / 4.0));
        prop_assert_eq!(&ours["shift"], shift);
        prop_assert_eq!(&ours["narrow"], narrow);
        prop_assert_eq!(&ours["sizes"], &serde_json::json!(sizes));
        prop_assert_eq!(&ours["counts"], &serde_json::json!(counts));
    }
}
