use proptest::prelude::*;

use super::super::{Codec, Format, KeyRule};
use super::*;

const OWN: &str =
    r#"{"type":"record","name":"P","fields":[{"name":"no","type":"int"},{"name":"id","type":"string"}]}"#;

fn codec(keys: KeyFormat, names: &[&str]) -> Codec {
    let rule = match names {
        [] => KeyRule::Kafka,
        names => KeyRule::Fields(names.iter().map(ToString::to_string).collect()),
    };
    let schema = Arc::new(Schema::dataset(OWN).unwrap());
    Codec::new(Format::json(ExtraFields::Ignore).with_keys(keys), rule, schema).unwrap()
}

/// The key of a delete.
fn key(codec: &mut Codec, key: &[u8]) -> Result<String, Misfit> {
    codec.decode(Some(key), None).map(|decoded| String::from_utf8_lossy(decoded.key).into_owned())
}

#[test]
fn a_key_in_avro_is_what_its_datum_says() {
    let schema = |text: &str| KeyFormat::Avro(Arc::new(Schema::parse(text).unwrap()));
    let mut text = codec(schema(r#""string""#), &[]);
    assert_eq!(key(&mut text, b"\x06a/b").unwrap(), "a/b");
    let both =
        r#"{"type":"record","name":"K","fields":[{"name":"no","type":"int"},{"name":"id","type":"string"}]}"#;
    let mut whole = codec(schema(both), &[]);
    assert_eq!(key(&mut whole, b"\x0e\x06a/b").unwrap(), "7/a%2Fb", "in the order of its fields");
    // By name, in the order of the dataset's.
    let mut named = codec(schema(both), &["id", "no"]);
    assert_eq!(key(&mut named, b"\x0e\x06a/b").unwrap(), "a%2Fb/7");
    for wrong in [&b""[..], b"\x0e", b"\x0e\x06a/", b"\x0e\x06a/bc", b"\x0e\x07a"] {
        let misfit = key(&mut whole, wrong).unwrap_err();
        assert_eq!((misfit.stage, misfit.class), (Stage::Key, "stillwell.codec.MalformedAvro"), "{wrong:?}");
        assert!(misfit.message.contains("not an Avro datum of key_schema"), "{}", misfit.message);
    }
    let rule = KeyRule::Fields(vec!["id".to_owned(), "no".to_owned()]);
    let keys = schema(
        r#"{"type":"record","name":"K","fields":[{"name":"a","type":"int"},{"name":"b","type":"int"}]}"#,
    );
    let format = Format::json(ExtraFields::Ignore).with_keys(keys);
    let wrong = Codec::new(format, rule, Arc::new(Schema::dataset(OWN).unwrap()));
    assert!(matches!(wrong, Err(Error::KeyType(_))), "neither field is there");
}

#[test]
fn an_id_before_a_key_in_json_is_passed_over() {
    let mut codec = codec(KeyFormat::Json, &[]);
    assert_eq!(key(&mut codec, b"\0\0\0\0\x07\"a/b\"").unwrap(), "a/b");
    assert_eq!(key(&mut codec, b"\0\0\0\0\x07{\"no\":7,\"id\":\"a\"}").unwrap(), "a/7");
    for wrong in [&b"\0\0\0"[..], b"\0\0\0\0\x07", b"\0\0\0\0\x07{"] {
        assert_eq!(key(&mut codec, wrong).unwrap_err().class, "stillwell.codec.MalformedJson", "{wrong:?}");
    }
}

#[test]
fn a_key_in_json_is_what_it_says() {
    let mut codec = codec(KeyFormat::Json, &[]);
    for (text, said) in [
        (r#""a/b""#, "a/b"),
        (r#" "a\u0041" "#, "aA"),
        ("-7", "-7"),
        ("true", "true"),
        (r#"{"id":"a/b"}"#, "a/b"),
        (r#"{"no":7,"id":"a/%b"}"#, "a%2F%25b/7"),
        (r#"{"id":"a/%b" , "no":7}"#, "a%2F%25b/7"),
        (r#"{"schema":{"type":"struct"},"payload":{"id":"a"}}"#, "a"),
        (r#"{"payload":5,"schema":{"type":"int32"}}"#, "5"),
        (r#"{"payload":5}"#, "5"),
        ("9223372036854775807", "9223372036854775807"),
    ] {
        assert_eq!(key(&mut codec, text.as_bytes()).unwrap(), said, "{text}");
    }
    for (text, class) in [
        ("", "MalformedJson"),
        ("{", "MalformedJson"),
        ("1 2", "MalformedJson"),
        ("null", "NullKey"),
        (r#"{"id":null}"#, "NullKey"),
        (r#"{"schema":null,"payload":null}"#, "NullKey"),
        ("1.0", "NoKey"),
        ("9223372036854775808", "NoKey"),
        ("[1]", "NoKey"),
        ("{}", "NoKey"),
        (r#"{"id":{"a":1}}"#, "NoKey"),
        (r#"{"id":1,"id":2}"#, "DuplicateField"),
    ] {
        let misfit = key(&mut codec, text.as_bytes()).unwrap_err();
        assert_eq!(
            (misfit.stage, misfit.class),
            (Stage::Key, &*format!("stillwell.codec.{class}")),
            "{text}"
        );
    }
    assert_eq!(key(&mut codec, b"\"\xff\"").unwrap_err().class, "stillwell.codec.MalformedJson");
}

#[test]
fn where_keys_are_made_of_fields_a_key_in_json_has_them_by_name() {
    let mut codec = codec(KeyFormat::Json, &["no", "id"]);
    for text in
        [r#"{"id":"a","no":7}"#, r#"{"x":0,"no":7,"id":"a"}"#, r#"{"schema":1,"payload":{"id":"a","no":7}}"#]
    {
        assert_eq!(key(&mut codec, text.as_bytes()).unwrap(), "7/a", "{text}");
    }
    for text in [r#"{"id":"a"}"#, r#"{"id":"a","no":"7"}"#, r#""7/a""#] {
        assert_eq!(key(&mut codec, text.as_bytes()).unwrap_err().stage, Stage::Key, "{text}");
    }
    // Of values it is not asked.
    let value = br#"{"id":"b","no":1}"#;
    assert_eq!(codec.decode(Some(b"{"), Some(value)).unwrap().key, b"1/b");
    assert_eq!(codec.decode(None, Some(value)).unwrap().key, b"1/b");
}

/// Else a delete would look for a key that no value has, and find nothing.
#[test]
fn one_value_is_read_as_the_only_field_of_the_key_is_in_values() {
    let schema = r#"{"type":"record","name":"P","fields":[{"name":"id","type":"bytes"},
        {"name":"at","type":["null",{"type":"int","logicalType":"date"}]},
        {"name":"in","type":{"type":"record","name":"I","fields":[
            {"name":"id","type":{"type":"fixed","name":"F","size":2}}]}},
        {"name":"text","type":"string"}]}"#;
    let schema = Arc::new(Schema::dataset(schema).unwrap());
    let value = r#"{"id":"AQI=","at":19000,"in":{"id":"AwQ="},"text":"7"}"#;
    let cases: [(&str, &[u8], &[&str]); 4] = [
        (
            "id",
            &[1, 2],
            &[r#""AQI=""#, r#"{"id":"AQI="}"#, r#"{"schema":{"type":"bytes"},"payload":"AQI="}"#],
        ),
        ("in.id", &[3, 4], &[r#""AwQ=""#, r#"{"in":{"id":"AwQ="}}"#]),
        ("at", b"19000", &["19000", r#"{"at":19000}"#]),
        ("text", b"7", &[r#""7""#, "7"]),
    ];
    for (name, expected, keys) in cases {
        let rule = KeyRule::Fields(vec![name.to_owned()]);
        let format = Format::json(ExtraFields::Ignore).with_keys(KeyFormat::Json);
        let mut codec = Codec::new(format, rule, Arc::clone(&schema)).unwrap();
        let made = codec.decode(None, Some(value.as_bytes())).unwrap();
        assert_eq!((made.key, made.value.is_some()), (expected, true), "{name}");
        for key in keys {
            let gone = codec.decode(Some(key.as_bytes()), None).unwrap();
            assert_eq!((gone.key, gone.value), (expected, None), "{name}: {key}");
        }
        let misfit = codec.decode(Some(b"null"), None).unwrap_err();
        assert_eq!((misfit.stage, misfit.class), (Stage::Key, "stillwell.codec.NullKey"), "{name}");
    }
    let rule = KeyRule::Fields(vec!["id".to_owned()]);
    let format = Format::json(ExtraFields::Ignore).with_keys(KeyFormat::Json);
    let mut codec = Codec::new(format, rule, schema).unwrap();
    let misfit = codec.decode(Some(br#""no base64!""#), None).unwrap_err();
    assert_eq!(misfit.stage, Stage::Key, "{misfit:?}");
}

#[test]
fn a_field_that_a_key_lacks_takes_no_default() {
    let own = r#"{"type":"record","name":"P","fields":[{"name":"id","type":"string","default":""}]}"#;
    let format = Format::json(ExtraFields::Ignore).with_keys(KeyFormat::Json);
    let rule = KeyRule::Fields(vec!["id".to_owned()]);
    let mut codec = Codec::new(format, rule, Arc::new(Schema::dataset(own).unwrap())).unwrap();
    assert_eq!(key(&mut codec, br#"{"id":"a"}"#).unwrap(), "a");
    let misfit = key(&mut codec, br#"{"no":7}"#).unwrap_err();
    assert_eq!((misfit.stage, misfit.class), (Stage::Key, "stillwell.codec.MissingField"));
}

#[test]
fn text_is_utf_8() {
    let mut codec = codec(KeyFormat::Text, &[]);
    assert_eq!(key(&mut codec, "ä".as_bytes()).unwrap(), "ä");
    let misfit = key(&mut codec, b"a\xff").unwrap_err();
    assert_eq!((misfit.stage, misfit.class), (Stage::Key, "stillwell.codec.WrongEncoding"));
}

proptest! {
    /// The same members in any order are the same key, and others are another.
    #[test]
    fn an_objects_order_means_nothing(members in proptest::collection::btree_map("[a-c/%]{0,3}", "[a-c/%]{0,3}", 1..5), turn in 0usize..5) {
        let mut codec = codec(KeyFormat::Json, &[]);
        let text = |members: Vec<(&String, &String)>| {
            let members: Vec<String> = members.iter().map(|(name, value)| format!("{name:?}:{value:?}")).collect();
            format!("{{{}}}", members.join(","))
        };
        let mut turned: Vec<_> = members.iter().collect();
        turned.rotate_left(turn % members.len());
        let plain = key(&mut codec, text(members.iter().collect()).as_bytes()).unwrap();
        prop_assert_eq!(&plain, &key(&mut codec, text(turned).as_bytes()).unwrap());
        if members.len() > 1 {
            let parts: Vec<String> = plain.split('/').map(|part| part.replace("%2F", "/").replace("%25", "%")).collect();
            let values: Vec<String> = members.into_values().collect();
            prop_assert_eq!(parts, values);
        }
    }
}
