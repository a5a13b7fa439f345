use proptest::prelude::*;

use super::*;
use crate::schema::reference::{self, Dice, Style};
use crate::schema::wire::{put_bytes, put_long};

mod large;
mod properties;

fn codec(schema: &str, extra_fields: ExtraFields) -> Codec {
    let schema = Arc::new(Schema::parse(schema).unwrap());
    Codec::new(Format::json(extra_fields), KeyRule::Kafka, schema).unwrap()
}

/// Decodes JSON and prints it again.
fn through(schema: &str, text: &str) -> Result<String, Misfit> {
    let mut codec = codec(schema, ExtraFields::Ignore);
    let datum = codec.decode(Some(b"k"), Some(text.as_bytes()))?.value.unwrap().to_vec();
    let schema = Schema::parse(schema).unwrap();
    assert_eq!(schema.validate(&datum), Ok(datum.len()), "{text}");
    let mut out = String::new();
    text::to_json(&schema, &datum, &mut out).unwrap();
    Ok(out)
}

fn misfit(schema: &str, text: &str) -> Misfit {
    match through(schema, text) {
        Ok(out) => panic!("{text} was taken as {out}"),
        Err(misfit) => misfit,
    }
}

const PRODUCT: &str = r#"{"type":"record","name":"shop.Product","fields":[
    {"name":"id","type":"string"},
    {"name":"price","type":"double","default":1.5},
    {"name":"stock","type":"int"},
    {"name":"tags","type":{"type":"array","items":"string"},"default":[]},
    {"name":"parts","type":{"type":"array","items":{"type":"record","name":"Part","fields":[
        {"name":"number","type":"long"},{"name":"note","type":["null","string"],"default":null}]}},"default":[]},
    {"name":"names","type":{"type":"map","values":"string"},"default":{}},
    {"name":"kind","type":{"type":"enum","name":"Kind","symbols":["new","used"]},"default":"new"}]}"#;

#[test]
fn fields_come_in_any_order_and_defaults_fill_in() {
    let full = r#"{"id":"a","price":2.0,"stock":3,"tags":["x"],"parts":[{"number":1,"note":"n"}],"names":{"de":"b"},"kind":"used"}"#;
    assert_eq!(through(PRODUCT, full).unwrap(), full);
    assert_eq!(
        through(PRODUCT, r#" { "stock" : 3 , "id" : "a" } "#).unwrap(),
        r#"{"id":"a","price":1.5,"stock":3,"tags":[],"parts":[],"names":{},"kind":"new"}"#
    );
    assert_eq!(
        through(PRODUCT, r#"{"kind":"used","parts":[{"note":null,"number":7},{"number":8}],"x":[1,{"y":"z"}],"stock":-1,"id":""}"#)
            .unwrap(),
        r#"{"id":"","price":1.5,"stock":-1,"tags":[],"parts":[{"number":7,"note":null},{"number":8,"note":null}],"names":{},"kind":"used"}"#
    );
}

#[test]
fn each_misfit_says_where_and_what_was_expected() {
    for (text, stage, class, message) in [
        ("", Stage::Decode, "stillwell.codec.EmptyValue", "the value is empty; a delete is a Kafka null"),
        ("  \n", Stage::Decode, "stillwell.codec.EmptyValue", "the value is empty; a delete is a Kafka null"),
        (
            "null",
            Stage::Decode,
            "stillwell.codec.NullLiteral",
            "the value is the word null; a delete is a Kafka null",
        ),
        (
            "{",
            Stage::Decode,
            "stillwell.codec.MalformedJson",
            "no name where an object's next field should be (byte 1)",
        ),
        (
            "{\"id\":\"a\" \"stock\":1}",
            Stage::Decode,
            "stillwell.codec.MalformedJson",
            "neither a comma nor a brace behind an object's field (byte 10)",
        ),
        ("{\"id\" \"a\"}", Stage::Decode, "stillwell.codec.MalformedJson", "no colon behind a name (byte 6)"),
        (
            "{\"id\":a}",
            Stage::Decode,
            "stillwell.codec.MalformedJson",
            "no value where one should be (byte 6)",
        ),
        ("{\"id\":\"\\ud800\"}", Stage::Decode, "stillwell.codec.MalformedJson", "an unpaired surrogate"),
        ("{\"id\":\"a\",\"stock\":01}", Stage::Decode, "stillwell.codec.MalformedJson", "leading zero"),
        (
            "{\"id\":\"a\",\"stock\":1} {}",
            Stage::Decode,
            "stillwell.codec.MalformedJson",
            "something behind the value (byte 21)",
        ),
        ("{\"id\":\"a\",\"stock\":1,}", Stage::Decode, "stillwell.codec.MalformedJson", "no name where"),
        (
            "[1]",
            Stage::Validate,
            "stillwell.codec.WrongType",
            "expected an object (shop.Product), found a list (byte 0)",
        ),
        (
            "\"null\"",
            Stage::Validate,
            "stillwell.codec.WrongType",
            "expected an object (shop.Product), found a string (byte 0)",
        ),
        (
            "{\"id\":1}",
            Stage::Validate,
            "stillwell.codec.WrongType",
            "`id`: expected a string, found a number (byte 6)",
        ),
        (
            "{\"id\":null}",
            Stage::Validate,
            "stillwell.codec.WrongType",
            "`id`: expected a string, found null (byte 6)",
        ),
        (
            "{\"id\":\"a\",\"stock\":\"1\"}",
            Stage::Validate,
            "stillwell.codec.WrongType",
            "`stock`: expected an integer of 32 bits, found a string (byte 18)",
        ),
        (
            "{\"stock\":1.0}",
            Stage::Validate,
            "stillwell.codec.WrongType",
            "`stock`: expected an integer of 32 bits, found a number with fraction or exponent (byte 9)",
        ),
        (
            "{\"stock\":2147483648}",
            Stage::Validate,
            "stillwell.codec.OutOfRange",
            "`stock`: expected an integer of 32 bits, found a number out of its range (byte 9)",
        ),
        (
            "{\"price\":1e999}",
            Stage::Validate,
            "stillwell.codec.OutOfRange",
            "`price`: expected a number (double), found a number out of its range (byte 9)",
        ),
        (
            "{\"parts\":[{\"number\":1},{\"number\":9223372036854775808}]}",
            Stage::Validate,
            "stillwell.codec.OutOfRange",
            "`parts[1].number`: expected an integer of 64 bits",
        ),
        (
            "{\"parts\":[{\"note\":\"n\"}]}",
            Stage::Validate,
            "stillwell.codec.MissingField",
            "`parts[0]`: the field `number` is missing; expected an integer of 64 bits, it has no default",
        ),
        (
            "{\"parts\":[{\"number\":1,\"note\":true}]}",
            Stage::Validate,
            "stillwell.codec.WrongType",
            "`parts[0].note`: expected null or a string, found a boolean (byte 29)",
        ),
        (
            "{\"id\":\"a\"}",
            Stage::Validate,
            "stillwell.codec.MissingField",
            "the field `stock` is missing; expected an integer of 32 bits",
        ),
        (
            "{\"names\":{\"de\":1}}",
            Stage::Validate,
            "stillwell.codec.WrongType",
            "`names[\"de\"]`: expected a string, found a number (byte 15)",
        ),
        (
            "{\"names\":{\"de\":\"a\",\"d\\u0065\":\"b\"}}",
            Stage::Validate,
            "stillwell.codec.DuplicateField",
            "`names`: the key occurs twice",
        ),
        (
            "{\"stock\":1,\"id\":\"a\",\"stock\":2}",
            Stage::Validate,
            "stillwell.codec.DuplicateField",
            "`stock`: the field occurs twice",
        ),
        (
            "{\"id\":\"a\",\"id\":\"b\"}",
            Stage::Validate,
            "stillwell.codec.DuplicateField",
            "`id`: the field occurs twice",
        ),
        (
            "{\"kind\":\"old\"}",
            Stage::Validate,
            "stillwell.codec.UnknownSymbol",
            "`kind`: expected a symbol of shop.Kind, found another string (byte 8)",
        ),
    ] {
        let misfit = misfit(PRODUCT, text);
        assert_eq!((misfit.stage, misfit.class), (stage, class), "{text}: {misfit}");
        assert!(misfit.message.contains(message), "{text}: {misfit}");
    }
    let mut strict = codec(PRODUCT, ExtraFields::Reject);
    let long = format!("{{\"id\":\"a\",\"{}\":1}}", "secret".repeat(100));
    for (text, message) in [
        ("{\"id\":\"a\",\"stok\":1}", "shop.Product has no field `stok` (byte 11)".to_owned()),
        (long.as_str(), format!("shop.Product has no field `{}…` (byte 11)", &"secret".repeat(7)[..40])),
        ("{\"parts\":[{\"x\":1}]}", "`parts[0]`: shop.Part has no field `x` (byte 12)".to_owned()),
    ] {
        let misfit = strict.decode(Some(b"k"), Some(text.as_bytes())).unwrap_err();
        assert_eq!((misfit.class, misfit.message), ("stillwell.codec.UnknownField", message));
    }
    let misfit = strict.decode(Some(b"k"), Some(b"{\"id\":\"\xff\"}")).unwrap_err();
    assert_eq!(misfit.message, "the value is not JSON: not UTF-8 (byte 7)");
}

#[test]
fn a_codec_goes_on_after_a_misfit() {
    let mut codec = codec(PRODUCT, ExtraFields::Ignore);
    let good = br#"{"stock":3,"id":"a"}"#;
    let datum = codec.decode(Some(b"k"), Some(good)).unwrap().value.unwrap().to_vec();
    for bad in
        [&b"{\"stock\":3,\"id\":7}"[..], b"{\"stock\":3,\"parts\":[{\"note\":\"\",\"number\":\"\"", b"[["]
    {
        codec.decode(Some(b"k"), Some(bad)).unwrap_err();
        assert_eq!(codec.decode(Some(b"k"), Some(good)).unwrap().value, Some(&datum[..]));
    }
}

#[test]
fn a_union_takes_the_first_branch_that_fits() {
    let numbers = r#"{"type":"array","items":["null","int","long","float","double"]}"#;
    let text = r#"[null,1,3000000000,0.5,0.1,1e300,1e20,-0.0]"#;
    let schema = Schema::parse(numbers).unwrap();
    let mut decoder = codec(numbers, ExtraFields::Ignore);
    let datum = decoder.decode(Some(b""), Some(text.as_bytes())).unwrap().value.unwrap().to_vec();
    let value = apache_avro::from_avro_datum(
        &apache_avro::Schema::parse_str(numbers).unwrap(),
        &mut &datum[..],
        None,
    )
    .unwrap();
    let apache_avro::types::Value::Array(items) = value else { panic!() };
    let branches: Vec<u32> = items
        .iter()
        .map(|item| match item {
            apache_avro::types::Value::Union(branch, _) => *branch,
            other => panic!("{other:?}"),
        })
        .collect();
    // no float is exactly 0.1, 1e300 or 1e20
    assert_eq!(branches, [0, 1, 2, 3, 4, 4, 4, 3]);
    let mut out = String::new();
    text::to_json(&schema, &datum, &mut out).unwrap();
    assert_eq!(out, r#"[null,1,3000000000,0.5,0.1,1e+300,1e+20,-0.0]"#);

    // nothing is lost that another branch could hold
    let either = r#"{"type":"array","items":["double","long"]}"#;
    assert_eq!(through(either, "[9007199254740993,1,1.5]").unwrap(), "[9007199254740993,1.0,1.5]");
    assert_eq!(
        misfit(r#"{"type":"array","items":["int","long"]}"#, "[1e3]").class,
        "stillwell.codec.WrongType"
    );
    assert_eq!(
        misfit(r#"{"type":"array","items":["int","long"]}"#, "[9223372036854775808]").class,
        "stillwell.codec.OutOfRange"
    );

    let texts =
        r#"{"type":"array","items":[{"type":"enum","name":"E","symbols":["A"]},"double","bytes","string"]}"#;
    assert_eq!(through(texts, r#"["A","NaN","AAAA","!"]"#).unwrap(), r#"["A","NaN","AAAA","!"]"#);
}

#[test]
fn records_in_unions_are_told_by_what_they_need() {
    let shapes = r#"{"type":"array","items":[
        {"type":"record","name":"Circle","fields":[{"name":"r","type":"double"}]},
        {"type":"record","name":"Box","fields":[{"name":"w","type":"double"},{"name":"h","type":"double"}]},
        {"type":"map","values":"string"}]}"#;
    assert_eq!(
        through(shapes, r#"[{"h":1,"w":2},{"r":3},{"a":"b"}]"#).unwrap(),
        r#"[{"w":2.0,"h":1.0},{"r":3.0},{"a":"b"}]"#
    );
    // a field that nobody knows decides nothing
    assert_eq!(through(shapes, r#"[{"h":1,"w":2,"x":3}]"#).unwrap(), r#"[{"w":2.0,"h":1.0}]"#);
    // a record that is content with less does not take a larger one's
    let sizes = r#"{"type":"array","items":[
        {"type":"record","name":"Small","fields":[{"name":"a","type":"int"}]},
        {"type":"record","name":"Large","fields":[{"name":"a","type":"int"},{"name":"b","type":"int"}]}]}"#;
    assert_eq!(
        through(sizes, r#"[{"a":1,"b":2},{"a":1},{"a":1,"c":3}]"#).unwrap(),
        r#"[{"a":1,"b":2},{"a":1},{"a":1}]"#
    );
    let misfit = misfit(shapes, r#"[{"w":2,"h":"x"}]"#);
    assert_eq!(misfit.message, "`[0](Box).h`: expected a number (double), found a string (byte 12)");
}

#[test]
fn nested_unions_cannot_be_made_to_work_for_ever() {
    let schema = r#"{"type":"record","name":"A","fields":[
        {"name":"next","type":["null",{"type":"record","name":"B","fields":[{"name":"next","type":["null","A","B"]},{"name":"b","type":"int"}]},"A"]},
        {"name":"a","type":"int"}]}"#;
    let text = "{\"next\":".repeat(100) + "null" + &"}".repeat(100);
    let misfit = misfit(schema, &text);
    assert!(
        ["stillwell.codec.AmbiguousUnion", "stillwell.codec.MissingField"].contains(&misfit.class),
        "{misfit}"
    );
    assert!(misfit.message.len() < 1000);
}

#[test]
fn depth_is_bounded_alike_in_json_and_avro() {
    let list =
        r#"{"type":"record","name":"L","fields":[{"name":"next","type":["null","L"],"default":null}]}"#;
    let nested = |levels: usize| "{\"next\":".repeat(levels - 1) + "{}" + &"}".repeat(levels - 1);
    assert!(through(list, &nested(128)).is_ok());
    assert_eq!(misfit(list, &nested(129)).class, "stillwell.codec.TooDeep");
    assert_eq!(misfit(list, &nested(100_000)).class, "stillwell.codec.TooDeep");
    let ignored = |levels: usize| format!("{{\"x\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
    assert!(through(list, &ignored(127)).is_ok());
    assert_eq!(misfit(list, &ignored(128)).class, "stillwell.codec.TooDeep");
    assert_eq!(misfit(list, &ignored(1_000_000)).class, "stillwell.codec.TooDeep");
}

#[test]
fn a_default_counts_against_the_depth() {
    let schema = r#"{"type":"record","name":"R","fields":[
        {"name":"next","type":["null","R"],"default":null},
        {"name":"deep","type":{"type":"array","items":{"type":"array","items":"int"}},"default":[[1]]}]}"#;
    let nested = |levels: usize| "{\"next\":".repeat(levels - 1) + "{}" + &"}".repeat(levels - 1);
    assert!(through(schema, &nested(126)).is_ok());
    assert_eq!(misfit(schema, &nested(127)).class, "stillwell.codec.TooDeep");
    let reordered = nested(126).replacen("{}", "{\"deep\":[[]]}", 1);
    assert!(through(schema, &reordered).is_ok());
}

#[test]
fn bytes_are_base64_and_a_fixed_has_its_size() {
    let schema = r#"{"type":"record","name":"R","fields":[
        {"name":"b","type":"bytes"},{"name":"f","type":{"type":"fixed","name":"F","size":4}}]}"#;
    assert_eq!(through(schema, r#"{"b":"+/8","f":"AAECAw=="}"#).unwrap(), r#"{"b":"+/8=","f":"AAECAw=="}"#);
    assert_eq!(through(schema, r#"{"f":"AAECAw","b":""}"#).unwrap(), r#"{"b":"","f":"AAECAw=="}"#);
    for (text, class) in [
        (r#"{"b":"-_8="}"#, "stillwell.codec.WrongEncoding"),
        (r#"{"b":"A"}"#, "stillwell.codec.WrongEncoding"),
        (r#"{"b":"AB"}"#, "stillwell.codec.WrongEncoding"), // bits that are dropped
        (r#"{"b":"A===="}"#, "stillwell.codec.WrongEncoding"),
        (r#"{"b":"AA=A"}"#, "stillwell.codec.WrongEncoding"),
        (r#"{"b":"","f":"AAEC"}"#, "stillwell.codec.WrongSize"),
        (r#"{"b":"","f":"AAEC_w"}"#, "stillwell.codec.WrongEncoding"),
    ] {
        assert_eq!(misfit(schema, text).class, class, "{text}");
    }
}

#[test]
fn logical_types_are_what_lies_beneath() {
    let schema = r#"{"type":"record","name":"R","fields":[
        {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"}},
        {"name":"day","type":{"type":"int","logicalType":"date"}},
        {"name":"id","type":{"type":"string","logicalType":"uuid"}},
        {"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}}]}"#;
    let text = r#"{"at":1700000000000,"day":19700,"id":"not checked","price":"BNI="}"#;
    assert_eq!(through(schema, text).unwrap(), text);
}

#[test]
fn lists_of_nothing_are_bounded() {
    let schema = r#"{"type":"array","items":"null"}"#;
    let list = |count: usize| format!("[{}]", vec!["null"; count].join(","));
    assert!(through(schema, &list(65_536)).is_ok());
    assert_eq!(misfit(schema, &list(65_537)).class, "stillwell.codec.TooLarge");
}

#[test]
fn raw_bytes_come_as_they_are() {
    let mut codec = Codec::new(Format::raw(), KeyRule::Kafka, Arc::new(Schema::raw())).unwrap();
    let decoded = codec.decode(Some(b"k"), Some(b"\x00abc")).unwrap();
    assert_eq!((decoded.key, decoded.value), (&b"k"[..], Some(&b"\x08\x00abc"[..])));
    assert_eq!(codec.decode(Some(b"k"), Some(b"")).unwrap().value, Some(&b"\x00"[..]));
    assert_eq!(codec.decode(Some(b"k"), None).unwrap().value, None);
    for value in [Some(&b"v"[..]), None] {
        let misfit = codec.decode(None, value).unwrap_err();
        assert_eq!((misfit.stage, misfit.class), (Stage::Key, "stillwell.codec.MissingKey"));
    }
    let error = Codec::new(Format::raw(), KeyRule::Kafka, Arc::new(Schema::parse(r#""string""#).unwrap()))
        .unwrap_err();
    assert!(error.to_string().contains("raw values need the schema"), "{error}");
}

#[test]
fn avro_of_the_same_schema_passes_through_and_is_checked() {
    let schema = Arc::new(
        Schema::parse(r#"{"type":"record","name":"R","fields":[{"name":"a","type":"string"}]}"#).unwrap(),
    );
    // the same but for what no datum shows
    let writer =
        r#"{"type":"record","name":"R","doc":"other","fields":[{"name":"a","type":"string","default":""}]}"#;
    let writer = Arc::new(Schema::parse(writer).unwrap());
    let mut codec = Codec::new(Format::avro(writer), KeyRule::Fields(vec!["a".into()]), schema).unwrap();
    let value = b"\x04ab";
    let decoded = codec.decode(None, Some(value)).unwrap();
    assert_eq!(decoded.key, b"ab");
    assert_eq!(decoded.value.unwrap().as_ptr(), value.as_ptr(), "not copied");
    for (value, class, message) in [
        (&b""[..], "stillwell.codec.EmptyValue", "the value is empty"),
        (
            b"\x04a",
            "stillwell.codec.MalformedAvro",
            "the value is not an Avro datum of R: byte 0: the length of a string is negative or beyond the end",
        ),
        (b"\x04a\xff", "stillwell.codec.MalformedAvro", "a string is not UTF-8"),
        (b"\x04abc", "stillwell.codec.MalformedAvro", "byte 3: something behind the datum"),
        (b"\x00\x00\x00\x00\x07\x04ab", "stillwell.codec.MalformedAvro", "a schema registry's header"),
    ] {
        let misfit = codec.decode(Some(b"k"), Some(value)).unwrap_err();
        assert_eq!((misfit.stage, misfit.class), (Stage::Decode, class));
        assert!(misfit.message.contains(message), "{misfit}");
    }
}

#[test]
fn avro_of_another_schema_is_resolved() {
    let schema = r#"{"type":"record","name":"R","fields":[{"name":"n","type":"long"},{"name":"a","type":"string","default":"?"}]}"#;
    let writer = r#"{"type":"record","name":"R","fields":[{"name":"gone","type":"double"},{"name":"n","type":"int"}]}"#;
    let parse = |json| Arc::new(Schema::parse(json).unwrap());
    let mut codec = Codec::new(Format::avro(parse(writer)), KeyRule::Kafka, parse(schema)).unwrap();
    let mut value = 1.5f64.to_le_bytes().to_vec();
    put_long(&mut value, 7);
    assert_eq!(codec.decode(Some(b"k"), Some(&value)).unwrap().value, Some(&b"\x0e\x02?"[..]));
    let misfit = codec.decode(Some(b"k"), Some(&value[..8])).unwrap_err();
    assert_eq!(
        misfit.message,
        "the value is not an Avro datum of R: byte 8: an int is cut off or has more than 32 bits"
    );
    let error = Codec::new(Format::avro(parse(r#""int""#)), KeyRule::Kafka, parse(schema)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the writer's schema does not resolve to the dataset's: the schema: int is no R"
    );
}

#[test]
fn keys_are_made_of_fields() {
    const SCHEMA: &str = r#"{"type":"record","name":"R","fields":[
        {"name":"s","type":["null","string"],"default":null},
        {"name":"n","type":"long","default":0},
        {"name":"ok","type":"boolean","default":false},
        {"name":"b","type":"bytes","default":""},
        {"name":"e","type":{"type":"enum","name":"E","symbols":["X","Y"]},"default":"Y"},
        {"name":"in","type":["null",{"type":"record","name":"I","fields":[{"name":"id","type":"int"}]}],"default":null},
        {"name":"d","type":"double","default":0},
        {"name":"u","type":["string","int"],"default":""}]}"#;
    let schema = Arc::new(Schema::parse(SCHEMA).unwrap());
    let codec = |fields: &[&str]| {
        let rule = KeyRule::Fields(fields.iter().map(|field| field.to_string()).collect());
        Codec::new(Format::json(ExtraFields::Ignore), rule, Arc::clone(&schema))
    };
    for (fields, text, key) in [
        (&["s"][..], r#"{"s":"a/b%c"}"#, &b"a/b%c"[..]),
        (&["s"], r#"{"s":""}"#, b""),
        (&["n"], r#"{"n":-9223372036854775808}"#, b"-9223372036854775808"),
        (&["n"], r#"{"n":9223372036854775807}"#, b"9223372036854775807"),
        (&["n"], r#"{}"#, b"0"),
        (&["ok"], r#"{"ok":true}"#, b"true"),
        (&["b"], r#"{"b":"AP8="}"#, b"\x00\xff"),
        (&["e"], r#"{"e":"X"}"#, b"X"),
        (&["in.id"], r#"{"in":{"id":-5}}"#, b"-5"),
        (&["s", "n", "ok"], r#"{"s":"a/b%c","n":-7}"#, b"a%2Fb%25c/-7/false"),
        (&["n", "s"], r#"{"s":"","n":1}"#, b"1/"),
        (&["b", "e"], r#"{"b":"Lw=="}"#, b"%2F/Y"),
    ] {
        let mut codec = codec(fields).unwrap();
        assert_eq!(codec.decode(None, Some(text.as_bytes())).unwrap().key, key, "{text}");
        // a delete has no fields
        assert_eq!(codec.decode(Some(b"k"), None).unwrap(), Decoded { key: b"k", value: None });
        assert_eq!(codec.decode(None, None).unwrap_err().message, "a delete has no Kafka key");
    }
    for (field, text, message) in
        [("s", "{}", "the key field `s` is null"), ("in.id", "{}", "the key field `in.id` is null")]
    {
        let misfit = codec(&[field]).unwrap().decode(Some(b"k"), Some(text.as_bytes())).unwrap_err();
        assert_eq!((misfit.stage, misfit.message.as_str()), (Stage::Key, message));
    }
    for (fields, words) in [
        (&["x"][..], "the key field `x`: R has no field `x`; it has s, n, ok, b"),
        (&["d"], "it is of type double"),
        (&["u"], "a union of several types"),
        (&["in"], "it is of type I"),
        (&["n.x"], "which is no record"),
        (&["n", "n"], "named twice"),
        (&[], "no field is named"),
    ] {
        let error = codec(fields).unwrap_err();
        assert!(error.to_string().contains(words) && !error.is_transient(), "{error}");
    }
    let raw =
        Codec::new(Format::raw(), KeyRule::Fields(vec!["id".into()]), Arc::new(Schema::raw())).unwrap_err();
    assert!(raw.to_string().contains("which is no record"), "{raw}");
}

#[test]
fn composite_keys_are_injective() {
    let schema = r#"{"type":"record","name":"R","fields":[{"name":"a","type":"string"},{"name":"b","type":"string"}]}"#;
    let schema = Arc::new(Schema::parse(schema).unwrap());
    let mut codec =
        Codec::new(Format::avro(Arc::clone(&schema)), KeyRule::Fields(vec!["a".into(), "b".into()]), schema)
            .unwrap();
    let parts = ["", "/", "%", "%2F", "//", "a", "/%", "%25"];
    let mut seen = std::collections::HashMap::new();
    for a in parts {
        for b in parts {
            let mut value = Vec::new();
            put_bytes(&mut value, a.as_bytes());
            put_bytes(&mut value, b.as_bytes());
            let key = codec.decode(None, Some(&value)).unwrap().key.to_vec();
            assert_eq!(seen.insert(key, (a, b)), None);
        }
    }
}

#[test]
fn fields_of_a_datum_are_read_by_name() {
    let schema = Schema::parse(PRODUCT).unwrap();
    let mut codec = codec(PRODUCT, ExtraFields::Ignore);
    let text = r#"{"id":"P-1","price":2.5,"stock":3,"tags":["x"],"parts":[{"number":1}],"names":{"a":"b"},"kind":"used"}"#;
    let datum = codec.decode(Some(b"k"), Some(text.as_bytes())).unwrap().value.unwrap().to_vec();
    let field = |path| text::field(&schema, &datum, path).unwrap().unwrap();
    assert_eq!(field("id").as_str(), Some("P-1"));
    assert_eq!(field("price").as_f64(), Some(2.5));
    assert_eq!(field("stock").as_i64(), Some(3));
    assert_eq!(field("kind").as_str(), Some("used"));
    assert_eq!(field("id").as_i64(), None);
    assert_eq!(field("stock").datum().unwrap(), [6]);
    let mut out = String::new();
    field("parts").write_json(&mut out).unwrap();
    assert_eq!(out, r#"[{"number":1,"note":null}]"#);
    for absent in ["x", "id.x", "parts.number"] {
        assert!(text::field(&schema, &datum, absent).unwrap().is_none(), "{absent}");
    }
    // what lies behind a field is not looked at, what lies before it is
    assert_eq!(text::field(&schema, &datum[..5], "id").unwrap().unwrap().as_str(), Some("P-1"));
    assert_eq!(text::field(&schema, &datum[..5], "stock").unwrap_err().at, 4);
}

#[test]
fn keys_print_as_text_or_base64() {
    let print = |key: &[u8]| {
        let mut out = String::new();
        text::key_to_json(key, &mut out);
        out
    };
    assert_eq!(print(b"a\"\\\n\x01\xc3\xa4"), r#""a\"\\\n\u0001ä""#);
    assert_eq!(print(b"\xff\x00"), r#"{"base64":"/wA="}"#);
}

#[test]
fn stages_have_two_spellings() {
    for stage in Stage::ALL {
        assert_eq!(stage.label().parse(), Ok(stage));
        assert_eq!(stage.to_string().parse(), Ok(stage));
    }
    assert!("x".parse::<Stage>().is_err());
}
