use proptest::prelude::*;

use super::super::{Codec, Decoded, Encoded, ExtraFields, Format, KeyFormat, KeyRule, Stage, Unread};
use super::*;

const OWN: &str = r#"{"type":"record","name":"P","fields":[
    {"name":"id","type":"string"},{"name":"price","type":"double","default":1}]}"#;
const OLD: &str = r#"{"type":"record","name":"P","fields":[{"name":"id","type":"string"}]}"#;

fn schema(json: &str) -> Arc<Schema> {
    Arc::new(Schema::parse(json).unwrap())
}

fn written(json: &str) -> Written {
    schema(json).into()
}

fn codec(keys: bool, key: KeyRule) -> Codec {
    let format = Format::registered(Kind::Avro);
    let format = if keys { format.with_keys(KeyFormat::Registered(Kind::Avro)) } else { format };
    Codec::new(format, key, schema(OWN)).unwrap()
}

fn id(number: u32) -> SchemaId {
    SchemaId::Number(number)
}

fn framed(number: u32, datum: &[u8]) -> Vec<u8> {
    [&[0], &number.to_be_bytes()[..], datum].concat()
}

fn misfit(read: Result<Decoded<'_>, Unread>) -> Misfit {
    match read {
        Err(Unread::Misfit(misfit)) => misfit,
        other => panic!("{other:?}"),
    }
}

fn value(value: &[u8]) -> Encoded<'_> {
    Encoded { key: Some(b"k"), value: Some(value), ..Encoded::default() }
}

/// `{"id": "ab"}` by the old schema, and by the dataset's with a price of 2.
const OLD_AB: &[u8] = b"\x04ab";
const OWN_AB: &[u8] = b"\x04ab\0\0\0\0\0\0\0\x40";

#[test]
fn a_record_waits_for_its_schema_and_is_read_with_it() {
    let mut codec = codec(false, KeyRule::Kafka);
    let (old, own) = (framed(1, OLD_AB), framed(2, OWN_AB));
    assert_eq!(codec.unknown(value(&old)), Some(id(1)));
    for record in [&old, &own] {
        assert!(matches!(codec.read(value(record)), Err(Unread::Unknown { stage: Stage::Decode, .. })));
    }
    codec.learn(id(1), Ok(&written(OLD)));
    codec.learn(id(2), Ok(&written(OWN)));
    assert_eq!(codec.unknown(value(&old)), None);
    let resolved = codec.read(value(&old)).unwrap();
    assert_eq!(resolved.value, Some(&b"\x04ab\0\0\0\0\0\0\xf0\x3f"[..]), "the default is 1");
    let passed = codec.read(value(&own)).unwrap();
    assert_eq!((passed.key, passed.value), (&b"k"[..], Some(OWN_AB)));
    assert_eq!(passed.value.unwrap().as_ptr(), own[5..].as_ptr(), "passed through, not copied");

    // By a header, which comes first: then the whole value is the datum.
    let guid = SchemaId::Guid([7; 16]);
    let header = [&[1][..], &[7; 16]].concat();
    let headed = Encoded { value_header: Some(&header), ..value(OLD_AB) };
    assert_eq!(codec.unknown(headed), Some(guid));
    codec.learn(guid, Ok(&written(OLD)));
    assert!(codec.read(headed).is_ok());
    let wrong = Encoded { value_header: Some(&header[..9]), ..value(OLD_AB) };
    for (wrong, said) in [
        (wrong, "the header __value_schema_id ends within the schema id"),
        (Encoded { value_header: Some(b""), ..wrong }, "the header __value_schema_id is empty, where"),
    ] {
        let misfit = misfit(codec.read(wrong));
        assert_eq!(misfit.class, "stillwell.codec.NoSchemaId");
        assert!(misfit.message.starts_with(said), "{misfit}");
    }
    // A delete names no schema.
    let delete = Encoded { value: None, ..value(b"") };
    assert_eq!(codec.read(delete).unwrap(), Decoded { key: b"k", value: None });
}

#[test]
fn what_cannot_be_read_is_a_misfit_and_says_why() {
    let mut codec = codec(false, KeyRule::Kafka);
    codec.learn(id(1), Ok(&written(OWN)));
    codec.learn(id(2), Ok(&written(r#"{"type":"record","name":"Q","fields":[]}"#)));
    codec.learn(id(3), Err("it is of type JSON, not AVRO"));
    for (bytes, stage, class, said) in [
        (&b""[..], Stage::Decode, "EmptyValue", "a delete is a Kafka null"),
        (b"\0\0", Stage::Decode, "NoSchemaId", "ends within the schema id"),
        (b"\x04ab", Stage::Decode, "NoSchemaId", "does not begin with a schema registry's id"),
        (&framed(1, b"\x04a"), Stage::Decode, "MalformedAvro", "not an Avro datum of P"),
        (&framed(1, &[OWN_AB, b"x"].concat()), Stage::Decode, "MalformedAvro", "something behind"),
        (
            &framed(2, b""),
            Stage::Validate,
            "Incompatible",
            "schema id 2 of the registry: the writer's schema",
        ),
        (&framed(3, b"{}"), Stage::Decode, "UnusableSchema", "of type JSON"),
    ] {
        let misfit = misfit(codec.read(value(bytes)));
        assert_eq!((misfit.stage, misfit.class), (stage, &*format!("stillwell.codec.{class}")), "{misfit}");
        assert!(misfit.message.contains(said), "{misfit}");
    }
    let unknown = codec.read(value(b"\0\0\0\0\x09x")).unwrap_err().misfit();
    assert_eq!(unknown.class, "stillwell.codec.UnknownSchema");
    assert!(unknown.message.contains("does not know schema id 9"), "{unknown}");
}

#[test]
fn keys_say_what_their_datums_do() {
    let mut codec = codec(true, KeyRule::Kafka);
    codec.learn(id(1), Ok(&written("\"string\"")));
    codec.learn(id(2), Ok(&written(r#"["null", "long"]"#)));
    codec.learn(id(3), Ok(&written(
        r#"{"type":"record","name":"K","fields":[{"name":"a","type":"string"},{"name":"b","type":["null","int"]}]}"#,
    )));
    codec.learn(id(4), Ok(&written(r#"{"type":"map","values":"int"}"#)));
    codec.learn(id(5), Ok(&written(r#"{"type":"record","name":"K","fields":[]}"#)));
    let mut read = |key: &[u8]| {
        codec.read(Encoded { key: Some(key), ..Encoded::default() }).map(|decoded| decoded.key.to_vec())
    };
    assert_eq!(read(&framed(1, b"\x06a/b")), Ok(b"a/b".to_vec()), "a single part is not escaped");
    assert_eq!(read(&framed(2, b"\x02\x05")), Ok(b"-3".to_vec()));
    assert_eq!(read(&framed(3, b"\x06a/b\x02\x0e")), Ok(b"a%2Fb/7".to_vec()));
    for (key, class) in [
        (&framed(2, b"\x00")[..], "NullKey"),
        (&framed(3, b"\x02a\x00"), "NullKey"),
        (&framed(1, b"\x06a/"), "MalformedAvro"),
        (&framed(1, b"\x02ab"), "MalformedAvro"),
        (&framed(1, b"\x02\xff"), "MalformedAvro"),
        (&framed(4, b"\x00"), "NoKey"),
        (&framed(5, b""), "NoKey"),
        (b"plain", "NoSchemaId"),
        (b"", "NoSchemaId"),
    ] {
        let Err(Unread::Misfit(misfit)) = read(key) else { panic!("{key:?}") };
        assert_eq!(
            (misfit.stage, misfit.class),
            (Stage::Key, &*format!("stillwell.codec.{class}")),
            "{misfit}"
        );
    }
    assert_eq!(read(&framed(9, b"")), Err(Unread::Unknown { id: id(9), stage: Stage::Key }));
}

#[test]
fn where_fields_make_the_key_the_kafka_key_is_read_for_deletes_only() {
    let mut codec = codec(true, KeyRule::Fields(vec!["id".into()]));
    codec.learn(id(1), Ok(&written(OWN)));
    codec.learn(id(2), Ok(&written(OLD)));
    let own = framed(1, OWN_AB);
    let upsert = Encoded { key: Some(b"any"), ..value(&own) };
    assert_eq!(codec.unknown(upsert), None);
    assert_eq!(codec.read(upsert).unwrap().key, b"ab");
    let key = framed(2, OLD_AB);
    let delete = Encoded { key: Some(&key), ..Encoded::default() };
    assert_eq!(codec.read(delete).unwrap(), Decoded { key: b"ab", value: None });
    assert_eq!(codec.key(delete).unwrap(), b"ab");
    // The only field is the key by any name; of several the right one cannot be guessed.
    let other = |fields: &str| format!(r#"{{"type":"record","name":"K","fields":[{fields}]}}"#);
    let (one, two) =
        (r#"{"name":"no","type":"string"}"#, r#"{"name":"no","type":"string"},{"name":"x","type":"string"}"#);
    codec.learn(id(3), Ok(&written(&other(one))));
    codec.learn(id(4), Ok(&written(&other(two))));
    let (one, two) = (framed(3, OLD_AB), framed(4, b"\x04ab\x02x"));
    assert_eq!(codec.read(Encoded { key: Some(&one), ..Encoded::default() }).unwrap().key, b"ab");
    let misfit = misfit(codec.read(Encoded { key: Some(&two), ..Encoded::default() }));
    assert_eq!((misfit.stage, misfit.class), (Stage::Key, "stillwell.codec.NoKey"), "{misfit}");
}

#[test]
fn json_behind_an_id_is_json() {
    let format = Format::json(ExtraFields::Reject);
    let mut codec = Codec::new(format, KeyRule::Kafka, schema(OWN)).unwrap();
    let json = br#"{"id":"ab","price":2}"#;
    let guid = [&[1][..], &[9; 16], json].concat();
    for record in [&json[..], &framed(u32::MAX >> 1, json), &guid] {
        assert_eq!(codec.read(value(record)).unwrap().value, Some(OWN_AB));
    }
    for record in [&framed(7, b"")[..], b"\0", b"\0\0\0\0{}", &guid[..17]] {
        assert_eq!(misfit(codec.read(value(record))).stage, Stage::Decode);
    }
}

#[test]
fn json_whose_ids_are_checked_has_to_have_one_that_is_known() {
    let format = Format::json(ExtraFields::Reject).checked();
    let mut codec = Codec::new(format, KeyRule::Kafka, schema(OWN)).unwrap();
    let json = br#"{"id":"ab","price":2}"#;
    let framed_json = framed(7, json);
    assert_eq!(codec.unknown(value(&framed_json)), Some(id(7)));
    assert_eq!(codec.read(value(&framed_json)), Err(Unread::Unknown { id: id(7), stage: Stage::Decode }));
    codec.learn(id(7), Ok(&Written::Json));
    codec.learn(id(8), Ok(&written(OWN)));
    assert_eq!(codec.read(value(&framed_json)).unwrap().value, Some(OWN_AB));
    let header = framed(7, b"");
    let headed = Encoded { value_header: Some(&header), ..value(json) };
    assert_eq!(codec.read(headed).unwrap().value, Some(OWN_AB));
    assert_eq!(misfit(codec.read(value(json))).class, "stillwell.codec.NoSchemaId");
    let other = misfit(codec.read(value(&framed(8, json))));
    assert_eq!(other.class, "stillwell.codec.UnusableSchema");
    assert!(other.message.contains("of type AVRO, not JSON"), "{other}");
}

#[test]
fn a_shelf_that_is_full_begins_anew() {
    let mut codec = codec(false, KeyRule::Kafka);
    let own = written(OWN);
    for number in 0..=MOST as u32 {
        codec.learn(id(number), Ok(&own));
    }
    assert!(codec.read(value(&framed(MOST as u32, OWN_AB))).is_ok());
    assert!(matches!(codec.read(value(&framed(0, OWN_AB))), Err(Unread::Unknown { .. })));
}

proptest! {
    /// Whatever the bytes: read, a misfit, or an id to ask for; what is read is a datum.
    #[test]
    fn hostile_bytes_are_bounded(
        number in 0u32..4,
        bytes in proptest::collection::vec(any::<u8>(), 0..64),
        framing in any::<bool>(),
        header in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)),
    ) {
        let own = schema(OWN);
        let deep = written(r#"{"type":"record","name":"P","fields":[{"name":"id","type":"string"},
            {"name":"price","type":"float"},{"name":"more","type":{"type":"array","items":["null","P"]}}]}"#);
        let mut codec = codec(true, KeyRule::Kafka);
        codec.learn(id(1), Ok(&own.clone().into()));
        codec.learn(id(2), Ok(&deep));
        codec.learn(id(3), Ok(&written("\"string\"")));
        let bytes = if framing { framed(number, &bytes) } else { bytes };
        let key = framed(3, b"\x02k");
        let record = Encoded { value_header: header.as_deref(), key: Some(&key), ..value(&bytes) };
        if let Ok(decoded) = codec.read(record) {
            let datum = decoded.value.unwrap();
            prop_assert_eq!(own.validate(datum), Ok(datum.len()));
        }
        let record = Encoded { key: Some(&bytes), key_header: header.as_deref(), ..Encoded::default() };
        let _ = codec.read(record);
    }
}
