//! Values as they come from topics; no seals, so that each bit counts.

use super::{bytes, put};
use crate::mutate::{varint, zigzag};
use crate::values::{OTHER_ID, OWN_ID};

/// All of them.
pub fn write() {
    datums();
    texts();
    messages();
}

/// Datums of products (`values.rs`), and what begins like some.
fn datums() {
    let put = |name: &str, bytes: &[u8]| put(&format!("avro/{name}.bin"), bytes);
    // id, stock, no price, no sizes, no counts.
    let [id, stock] = [bytes(b"P-1"), zigzag(7)];
    let start = [&id[..], &stock, &[0, 0, 0]].concat();
    let least = [&start[..], &[0, 0]].concat();
    let sizes = |list: &[u8]| [&id[..], &stock, &[0], list, &[0, 0, 0]].concat();
    let counts = |map: &[u8]| [&id[..], &stock, &[0, 0], map, &[0, 0]].concat();
    let all = |list: &[u8]| [&start[..], &[0], list].concat();
    let price = [&[2][..], &2.5f64.to_le_bytes()].concat();
    let whole = [
        &id[..],
        &stock,
        &price,
        &[4, 2, 4, 0],
        &[2, 2, b'a', 2, 2, 2, b'b', 4, 0],
        &[2],
        &least,
        &[2],
        &least,
        &[0],
    ];
    put("whole", &whole.concat());
    put("empty", &[]);
    put("cut", &whole.concat()[..20]);
    put("more", &[&least[..], &[0]].concat());
    put("length-of-max", &[&zigzag(i64::MAX)[..], b"P-1"].concat());
    put("length-negative", &[&zigzag(-3)[..], b"P-1", &[0; 6]].concat());
    put("length-of-4-gigabytes", &[&zigzag(1 << 32)[..], b"P-1"].concat());
    put("not-utf-8", &[&bytes(&[0xff, 0xfe])[..], &[0; 6]].concat());
    put("varint-cut", &[&id[..], &[0x80, 0x80]].concat());
    put("varint-of-11-bytes", &[&id[..], &[0xff; 10], &[1], &[0; 5]].concat());
    put("varint-of-65-bits", &[&id[..], &[0xff; 9], &[2], &[0; 5]].concat());
    put("branch-unknown", &[&id[..], &stock, &zigzag(2), &[0; 4]].concat());
    put("branch-negative", &[&id[..], &stock, &zigzag(-1), &[0; 4]].concat());
    put("double-cut", &[&id[..], &stock, &[2], &[0; 5]].concat());
    put("int-of-33-bits", &sizes(&[&[2][..], &zigzag(1 << 31), &[0]].concat()));
    put("array-of-max", &sizes(&[&zigzag(i64::MAX)[..], &[2; 40]].concat()));
    put("array-of-4-gigabytes", &sizes(&[&zigzag(1 << 32)[..], &[2; 40], &[0]].concat()));
    put("array-of-min", &sizes(&[&zigzag(i64::MIN)[..], &zigzag(2), &[2; 40]].concat()));
    put("block-with-its-size", &sizes(&[&zigzag(-2)[..], &zigzag(2), &[2, 4, 0]].concat()));
    put("block-of-other-size", &sizes(&[&zigzag(-2)[..], &zigzag(1), &[2, 4, 0]].concat()));
    put("block-of-negative-size", &sizes(&[&zigzag(-2)[..], &zigzag(-2), &[2, 4, 0]].concat()));
    put("block-of-max", &sizes(&[&zigzag(-2)[..], &zigzag(i64::MAX), &[2, 4, 0]].concat()));
    put("many-blocks", &sizes(&[&[2u8, 2].repeat(2_000)[..], &[0]].concat()));
    put("array-without-end", &[&id[..], &stock, &[0, 2, 2]].concat());
    put("map-of-max", &counts(&[&zigzag(i64::MAX)[..], &[2, b'a', 2]].concat()));
    put("map-key-of-max", &counts(&[&[2][..], &zigzag(i64::MAX), &[2, 0]].concat()));
    put("map-key-twice", &counts(&[4, 2, b'a', 2, 2, b'a', 4, 0]));
    put("records-of-4-gigabytes", &all(&[&zigzag(1 << 32)[..], &least, &[0]].concat()));
    put("many-records", &all(&[&zigzag(2_000)[..], &[0; 14_000], &[0]].concat()));
    let nested = |levels: usize| [[0u8, 0, 0, 0, 0, 2].repeat(levels), vec![0; 7], vec![0; levels]].concat();
    put("nested", &nested(60));
    put("deep", &nested(4_000));
    put("deep-in-lists", &[[0u8, 0, 0, 0, 0, 0, 2].repeat(4_000), vec![0; 7], vec![0; 4_000]].concat());
    // As others write it: voids, stock, id, price, next, note.
    let other = |voids: &[u8], rest: &[u8]| [voids, &zigzag(7), &bytes(b"P-1"), rest].concat();
    put("other", &other(&[0], &[4, 0, 0, 0x20, 0x40, 0, 0, 2, b'x']));
    put("other-voids-of-max", &other(&[&zigzag(i64::MAX)[..], &[0]].concat(), &[0, 0, 0, 0]));
    put("other-voids-of-4-gigabytes", &other(&[&zigzag(1 << 32)[..], &[0]].concat(), &[0, 0, 0, 0]));
    put("other-voids-in-blocks", &other(&[&zigzag(60_000).repeat(2)[..], &[0]].concat(), &[0, 0, 0, 0]));
    put("other-not-utf-8", &[&[0][..], &zigzag(7), &bytes(&[0xed, 0xa0, 0x80]), &[0; 4]].concat());
    put("other-note-of-max", &other(&[0], &[&[0, 0, 2][..], &zigzag(i64::MAX), &[2, b'a', 0]].concat()));
    let by_id = |magic: u8, id: u32, datum: &[u8]| [&[magic], &id.to_be_bytes()[..], datum].concat();
    put("by-id", &by_id(0, OWN_ID, &whole.concat()));
    put("by-id-of-others", &by_id(0, OTHER_ID, &other(&[0], &[0, 0, 0, 0])));
    put("by-id-cut", &by_id(0, OWN_ID, &whole.concat()[..20]));
    put("magic-wrong", &by_id(0x7b, OWN_ID, &least));
    put("magic-twice", &by_id(0, OWN_ID, &by_id(0, OWN_ID, &least)));
    put("id-alone", &by_id(0, OWN_ID, &[]));
    put("id-cut", &[0, 0, 0]);
    put("id-negative", &by_id(0, u32::MAX, &least));
    put("id-unknown", &by_id(0, 4096, &least));
    put("guid-unknown", &[&[1; 17][..], &least].concat());
    put("single-object", &[&[0xc3, 1][..], &[7; 8], &least].concat());
    put("foreign.json", br#"{"id":"P-1"}"#);
}

/// Texts (`values.rs`), and what begins like some.
fn texts() {
    let put = |name: &str, text: &[u8]| put(&format!("json/{name}.json"), text);
    let with = |field: &str, value: &str| format!(r#"{{"id":"P-1","{field}":{value}}}"#);
    let many = |what: &str, times: usize, between: &str| vec![what; times].join(between);
    let whole = r#"{"id":"P-\u00e9\n","yes":true,"int":-7,"long":9007199254740993,"float":0.1,"double":1e-300,"bytes":"AP8=","fixed":"AQID","state":"USED","list":[1,2],"map":{"a":0.5,"b":-0.0},"any":[{"id":"P-2","any":{"id":7}}]}"#;
    for (name, text) in [
        ("whole", whole.to_owned()),
        ("reordered", r#"{"any":{"a":1},"state":"NEW","long":1,"int":2,"id":"P-1"}"#.to_owned()),
        ("spaced", " {\r\n\t\"id\" : \"P-1\" , \"list\" : [ 1 , 2 ] } ".to_owned()),
        ("empty", String::new()),
        ("null", "null".to_owned()),
        ("space", " \n ".to_owned()),
        ("other-type", r#"["P-1"]"#.to_owned()),
        ("without-id", r#"{"int":1}"#.to_owned()),
        // Nesting: where the schema looks, where it does not, and where it tries.
        ("nested", format!("{}7{}", r#"{"id":"n","any":"#.repeat(60), "}".repeat(60))),
        ("deep", format!("{}7{}", r#"{"id":"n","any":"#.repeat(400), "}".repeat(400))),
        ("deep-lists", with("any", &format!("{}{}", "[".repeat(20_000), "]".repeat(20_000)))),
        ("deep-unknown", with("what", &format!("{}{}", "[".repeat(20_000), "]".repeat(20_000)))),
        ("deep-without-end", "[".repeat(20_000)),
        ("deep-objects-without-end", r#"{"any":"#.repeat(5_000)),
        ("in-vain", format!("{}{}", r#"{"id":1,"any":"#.repeat(40), "}".repeat(40))),
        // Twice.
        ("twice", r#"{"id":"a","id":"b"}"#.to_owned()),
        ("twice-escaped", r#"{"id":"a","\u0069d":"b"}"#.to_owned()),
        ("twice-unknown", r#"{"id":"a","what":1,"what":2}"#.to_owned()),
        ("key-twice", with("map", r#"{"a":1,"b":2,"\u0061":3}"#)),
        ("many-unknown", format!(r#"{{"id":"a",{}}}"#, many(r#""x":0"#, 4_000, ","))),
        ("many-keys", {
            let keys: Vec<String> = (0..3_000).map(|n| format!(r#""{n}":{n}"#)).collect();
            with("map", &format!("{{{}}}", keys.join(",")))
        }),
        ("many-items", with("list", &format!("[{}]", many("0", 10_000, ",")))),
        // Numbers.
        ("number-of-5000-digits", with("long", &"9".repeat(5_000))),
        ("double-of-5000-digits", with("double", &"9".repeat(5_000))),
        ("fraction-of-5000-digits", with("double", &format!("0.{}1", "0".repeat(5_000)))),
        ("exponent-huge", with("double", "1e999999999999999999999")),
        ("exponent-tiny", with("double", "1e-999999999999999999999")),
        ("exponent-of-zero", with("double", "0e999999999999999999999")),
        ("long-beyond", with("long", "9223372036854775808")),
        ("long-least", with("long", "-9223372036854775808")),
        ("int-beyond", with("int", "2147483648")),
        ("int-with-fraction", with("int", "1.0")),
        ("float-beyond", with("float", "1e39")),
        ("any-beyond-long", with("any", "9223372036854775808")),
        ("minus-zero", with("any", "-0")),
        ("zeros-before", with("int", "007")),
        ("plus", with("int", "+7")),
        ("hexadecimal", with("int", "0x7")),
        ("point-alone", with("double", "1.")),
        ("exponent-alone", with("double", "1e")),
        ("minus-alone", with("int", "-")),
        ("nan", with("double", "NaN")),
        ("nan-in-words", with("double", r#""NaN""#)),
        ("infinity", with("double", "-Infinity")),
        ("infinity-in-words", with("float", r#""-Infinity""#)),
        // Strings.
        ("surrogate-alone", r#"{"id":"\ud800"}"#.to_owned()),
        ("surrogates-reversed", r#"{"id":"\udc00\ud800"}"#.to_owned()),
        ("surrogates", r#"{"id":"\ud83d\ude00","any":"\u0000"}"#.to_owned()),
        ("escape-unknown", r#"{"id":"\x41"}"#.to_owned()),
        ("escape-cut", r#"{"id":"\u00"#.to_owned()),
        ("escapes", format!(r#"{{"id":"{}"}}"#, r"\u0041".repeat(5_000))),
        ("control", "{\"id\":\"a\nb\"}".to_owned()),
        ("zero", "{\"id\":\"a\0b\"}".to_owned()),
        ("quoted-singly", "{'id':'a'}".to_owned()),
        ("string-without-end", format!(r#"{{"id":"{}"#, "a".repeat(20_000))),
        ("not-base64", with("bytes", r#""A*==""#)),
        ("fixed-of-other-size", with("fixed", r#""AQI=""#)),
        ("symbol-unknown", with("state", r#""LOST""#)),
        // Grammar.
        ("comma-behind", r#"{"id":"a",}"#.to_owned()),
        ("comma-alone", r#"{,}"#.to_owned()),
        ("without-colon", r#"{"id" "a"}"#.to_owned()),
        ("comment", "{\"id\":\"a\" /* b */}".to_owned()),
        ("two", r#"{"id":"a"}{"id":"b"}"#.to_owned()),
        ("cut", whole[..whole.len() / 2].to_owned()),
        ("marked", "\u{feff}{\"id\":\"a\"}".to_owned()),
        ("word-cut", with("yes", "tru")),
    ] {
        put(name, text.as_bytes());
    }
    let string = |bytes: &[u8]| [br#"{"id":""#, bytes, br#""}"#].concat();
    put("not-utf-8", &string(&[0xff]));
    put("utf-8-overlong", &string(&[0xc0, 0xaf]));
    put("utf-8-surrogate", &string(&[0xed, 0xa0, 0x80]));
    put("utf-8-beyond", &string(&[0xf4, 0x90, 0x80, 0x80]));
    put("utf-8-cut", &string(&[0xe2, 0x82]));
    put("utf-16", &r#"{"id":"a"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
    put("by-id", &[&[0, 0, 0, 0, 7][..], br#"{"id":"a"}"#].concat());
    put("by-id-cut", &[0, 0, 0]);
}

/// Messages, and changes of a database.
fn messages() {
    let field = |number: u64, wire: u64, content: &[u8]| [&varint(number << 3 | wire)[..], content].concat();
    let within = |number: u64, content: &[u8]| {
        field(number, 2, &[&varint(content.len() as u64)[..], content].concat())
    };
    let nested = |levels: usize| (0..levels).fold(Vec::new(), |inner: Vec<u8>, _| within(6, &inner));
    let entry =
        |key: &str, value: u64| within(5, &[within(1, key.as_bytes()), field(2, 0, &varint(value))].concat());
    let whole = [
        within(1, b"P-1"),
        field(2, 0, &varint(u64::MAX)),
        field(3, 1, &2.5f64.to_le_bytes()),
        within(4, &[1, 2, 3]),
        entry("a", 1),
        entry("a", 2),
        within(6, &within(1, b"P-2")),
        within(7, b""),
        within(8, b"x"),
        within(9, b"y"),
        field(100, 3, &field(100, 4, b"")),
    ];
    put("protobuf/whole.bin", whole.concat());
    put("protobuf/empty", "");
    put("protobuf/nested.bin", nested(60));
    put("protobuf/deep.bin", nested(400));
    put("protobuf/deep-groups.bin", [[0xa3u8, 6].repeat(400), [0xa4, 6].repeat(400)].concat());
    put("protobuf/many.bin", [0x3au8, 0].repeat(5_000));
    put("protobuf/same-key.bin", entry("k", 1).repeat(1_000));
    put("protobuf/length-of-max.bin", field(1, 2, &varint(u64::MAX)));
    put("protobuf/length-of-4-gigabytes.bin", field(4, 2, &varint(u64::from(u32::MAX))));
    put("protobuf/not-utf-8.bin", within(1, &[0xff, 0xfe]));
    put("protobuf/varint-of-11-bytes.bin", field(2, 0, &[&[0xffu8; 10][..], &[1]].concat()));
    put("protobuf/cut.bin", &whole.concat()[..20]);
    put("protobuf/other-wire-type.bin", field(1, 0, &[1]));
    put("protobuf/field-0.bin", [0u8, 0]);
    put("protobuf/field-of-max.bin", field((1 << 29) - 1, 0, &[1]));
    put("protobuf/wire-type-7.bin", [0x0fu8]);
    put("protobuf/group-without-end.bin", [0xa3u8, 6]);
    put("protobuf/end-without-group.bin", [0xa4u8, 6]);
    put("protobuf/foreign.json", r#"{"id": "P-1"}"#);

    let row = r#"{"id":"P-1","stock":1,"counts":{"a":1},"sizes":[1,2]}"#;
    let change = |op: &str, before: &str, after: &str| {
        format!(r#"{{"before":{before},"after":{after},"source":{{"lsn":[1]}},"op":"{op}","ts_ms":1}}"#)
    };
    put("change/created.json", change("c", "null", row));
    put(
        "change/wrapped.json",
        format!(r#"{{"schema":{{"fields":[]}},"payload":{}}}"#, change("u", row, row)),
    );
    put("change/deleted.json", change("d", r#"{"id":"P-1","stock":null}"#, "null"));
    put("change/deleted-silently.json", change("d", "null", "null"));
    put("change/truncated-table.json", change("t", "null", "null"));
    put("change/strange-op.json", change("m", "null", row));
    put("change/no-row.json", change("u", row, "null"));
    put("change/op-twice.json", r#"{"op":"c","after":{},"op":"d"}"#);
    put("change/payload-of-payload.json", r#"{"payload":{"payload":{"op":"c"}}}"#);
    put("change/plain.json", row);
    put("change/deep.json", format!(r#"{{"x":{}{},"op":"c"}}"#, "[".repeat(400), "]".repeat(400)));
    put("change/escaped.json", format!(r#"{{"\u006fp":"\u0063","\u0061fter":{row}}}"#));
    put("change/empty", "");
}
