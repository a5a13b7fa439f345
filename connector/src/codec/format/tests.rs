use super::*;
use crate::codec::{Codec, Encoded, KeyRule, SchemaId, Unread};

#[test]
fn each_topic_is_read_as_it_is_written() {
    let schema = Arc::new(
        Schema::parse(r#"{"type":"record","name":"P","fields":[{"name":"id","type":"string"}]}"#).unwrap(),
    );
    let json = Format::json(ExtraFields::Ignore);
    let format = json
        .clone()
        .but("avro", Format::avro(Arc::clone(&schema)).with_keys(KeyFormat::Json))
        .but("ids", Format::registered(Kind::Avro));
    assert!(format.asks_registry() && !format.keys_as_they_come());
    let mut codec = Codec::new(format, KeyRule::Kafka, Arc::clone(&schema)).unwrap();
    assert!(codec.looks_around());
    let record = |topic, key: &'static [u8], value: &'static [u8]| Encoded {
        key: Some(key),
        value: Some(value),
        topic: Some(topic),
        ..Encoded::default()
    };
    let mut read = |record| {
        let decoded = codec.read(record)?;
        Ok::<_, Unread>((decoded.key.to_vec(), decoded.value.map(<[u8]>::to_vec)))
    };
    let expected = |key: &[u8]| Ok((key.to_vec(), Some(b"\x02x".to_vec())));
    assert_eq!(read(record("json", b"\"k\"", br#"{"id":"x"}"#)), expected(b"\"k\""));
    assert_eq!(read(record("avro", b"\"k\"", b"\x02x")), expected(b"k"));
    assert!(matches!(read(record("avro", b"\"k\"", br#"{"id":"x"}"#)), Err(Unread::Misfit(_))));
    assert!(matches!(read(record("json", b"k", b"\x02x")), Err(Unread::Misfit(_))));
    let by_id = record("ids", b"k", b"\0\0\0\0\x07\x02x");
    assert!(matches!(read(by_id), Err(Unread::Unknown { id: SchemaId::Number(7), .. })));
    assert_eq!(codec.unknown(by_id), Some(SchemaId::Number(7)));
    assert_eq!(codec.unknown(record("json", b"k", b"\0\0\0\0\x07\x02x")), None, "an id says nothing there");
    codec.learn(SchemaId::Number(7), Ok(&schema.clone().into()));
    assert_eq!(codec.read(by_id).unwrap().value, Some(&b"\x02x"[..]));
    assert_eq!(codec.key(record("avro", b"\"k\"", b"")), Ok(&b"k"[..]));
    // A topic that is named again is written as was said last.
    let again = json.clone().but("t", Format::raw()).but("t", json);
    assert!(matches!(again.of_topic("t").values, Values::Json { .. }));
    assert_eq!(again.others().count(), 1);
}
