use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn letter() -> Letter {
    Letter {
        source: SourcePartition { topic: "orders".into(), topic_id: TopicId([5; 16]), partition: 3 },
        offset: 41,
        timestamp: 1_760_000_000_000,
        stage: "VALUE_CONVERTER".into(),
        class: "stillwell.codec.NotJson".into(),
        message: "not JSON: a value was expected at byte 7".into(),
        key: Some(Bytes::from_static(b"P-1")),
        value: Some(Bytes::from_static(b"{\"id\": oops}")),
        headers: vec![
            (
                "traceparent".into(),
                Some(Bytes::from_static(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")),
            ),
            ("twice".into(), Some(Bytes::from_static(&[0, 255]))),
            ("twice".into(), None),
        ],
    }
}

fn bytes(letter: &Letter) -> Vec<u8> {
    let mut out = Vec::new();
    letter.encode(&mut out);
    out
}

fn text(headers: &[(String, Option<Bytes>)], name: &str) -> Vec<String> {
    let named = headers.iter().filter(|(header, _)| header == name);
    named.map(|(_, value)| String::from_utf8(value.as_deref().unwrap().to_vec()).unwrap()).collect()
}

#[test]
fn headers_are_the_originals_then_connects_then_ours() {
    let headers = letter().kafka_headers("orders", 0, 1_760_000_000_777, &Elsewhere::Nothing);
    assert_eq!(headers[..3], letter().headers, "untouched");
    let put: Vec<(&str, &str)> = headers[3..]
        .iter()
        .map(|(name, value)| (name.as_str(), std::str::from_utf8(value.as_deref().unwrap()).unwrap()))
        .collect();
    let expected = [
        ("__connect.errors.topic", "orders"),
        ("__connect.errors.partition", "3"),
        ("__connect.errors.offset", "41"),
        ("__connect.errors.connector.name", "orders"),
        ("__connect.errors.task.id", "0"),
        ("__connect.errors.stage", "VALUE_CONVERTER"),
        ("__connect.errors.class.name", "stillwell.producer.Validator"),
        ("__connect.errors.exception.class.name", "stillwell.codec.NotJson"),
        ("__connect.errors.exception.message", "not JSON: a value was expected at byte 7"),
        ("stillwell.replays", "0"),
        ("stillwell.failed-at", "1760000000777"),
        ("stillwell.original-timestamp", "1760000000000"),
    ];
    assert_eq!(put, expected);
    let with_blob = letter().kafka_headers("orders", 0, 0, &Elsewhere::Value("orders/letters/3-41".into()));
    assert_eq!(text(&with_blob, header::VALUE_BLOB), ["orders/letters/3-41"]);
}

#[test]
fn a_letter_that_lies_elsewhere_goes_out_small_whatever_its_parts_are() {
    let mut large = letter();
    large.key = Some(Bytes::from(vec![b'k'; 1 << 20]));
    large.headers.push(("h".repeat(1 << 20), Some(Bytes::from(vec![b'v'; 1 << 20]))));
    large.headers.push((header::ORIGIN.into(), Some(Bytes::from_static(b"orders/3/7@1760000000000"))));
    large.headers.push((header::REPLAYS.into(), Some(Bytes::from_static(b"2"))));
    let whole = Elsewhere::Whole("orders/letters/3-41".into());
    let out = large.kafka_headers("orders", 0, 0, &whole);
    let bytes: usize = out.iter().map(|(name, value)| name.len() + value.as_ref().unwrap().len()).sum();
    assert!(bytes < large.size_without(&whole), "{bytes}");
    assert_eq!(large.kafka_record(&whole), (None, None));
    assert_eq!(text(&out, header::LETTER_BLOB), ["orders/letters/3-41"]);
    assert_eq!(text(&out, header::REPLAYS), ["2"], "a loop guard must not be reset by size");
    assert_eq!(text(&out, header::ORIGIN), ["orders/3/7@1760000000000"], "nor must it be another record");
    let value = Elsewhere::Value("orders/letters/3-41".into());
    assert_eq!(letter().kafka_record(&value), (letter().key.as_deref(), None));
    assert_eq!(letter().kafka_record(&whole), (letter().key.as_deref(), None), "a short key stays");
}

#[test]
fn a_record_that_fails_again_and_again_does_not_grow() {
    let mut again = letter();
    let first = again.kafka_headers("orders", 0, 1, &Elsewhere::Nothing);
    let mut sizes = Vec::new();
    for replay in 1..=5 {
        // a replay that leaves everything on, and counts
        again.headers = again.kafka_headers("orders", 0, replay, &Elsewhere::Nothing);
        let count = again.headers.iter_mut().find(|(name, _)| name == header::REPLAYS).unwrap();
        count.1 = Some(Bytes::from(replay.to_string()));
        let out = again.kafka_headers("orders", 0, replay, &Elsewhere::Nothing);
        assert_eq!(text(&out, header::REPLAYS), [replay.to_string()], "carried over, not piled up");
        assert_eq!(text(&out, header::FAILED_AT), [replay.to_string()], "the latest failure");
        assert_eq!(out[..3], letter().headers);
        sizes.push(out.len());
    }
    assert_eq!(sizes, [first.len(); 5]);
}

/// Kafka's names are bytes, ours text: what has none here had one.
#[test]
fn headers_without_their_names_are_counted() {
    let named = letter().kafka_headers("orders", 0, 1, &Elsewhere::Nothing);
    assert!(text(&named, header::UNNAMED).is_empty());
    let mut letter = letter();
    letter.headers.extend([(String::new(), Some(Bytes::from_static(b"1"))), (String::new(), None)]);
    let out = letter.kafka_headers("orders", 0, 1, &Elsewhere::Nothing);
    assert_eq!(out[..5], letter.headers, "their values stay");
    assert_eq!(text(&out, header::UNNAMED), ["2"]);
}

#[test]
fn a_letter_of_somebody_else_keeps_its_own_headers() {
    // Connect's dead letters as a source topic: that they failed there is part of the record.
    let mut theirs = letter();
    theirs.headers.push((header::STAGE.into(), Some(Bytes::from_static(b"TASK_PUT"))));
    let out = theirs.kafka_headers("orders", 0, 0, &Elsewhere::Nothing);
    assert_eq!(out[..4], theirs.headers);
    assert_eq!(text(&out, header::STAGE), ["TASK_PUT", "VALUE_CONVERTER"], "readers take the last");
}

#[test]
fn what_is_put_behind_is_bounded() {
    let mut long = letter();
    long.message = "é".repeat(5_000);
    long.class = "x".repeat(5_000);
    let back = Letter::decode(&bytes(&long)).unwrap();
    assert_eq!((back.message.len(), back.class.len()), (1024, 256));
    for letter in [&long, &back] {
        let headers = letter.kafka_headers(&"n".repeat(1_000), 0, 0, &Elsewhere::Nothing);
        let message = text(&headers, header::EXCEPTION_MESSAGE);
        assert_eq!(message[0].len(), 1024);
        assert!(message[0].chars().all(|c| c == 'é'));
        let put: usize =
            headers[3..].iter().map(|(name, value)| name.len() + value.as_ref().unwrap().len()).sum();
        assert!(put < 2_500, "{put}");
    }
    assert_eq!(bounded("aé", 2), "a");
    assert_eq!(bounded("aé", 3), "aé");
}

#[test]
fn another_avro_implementation_reads_it_by_the_schema_file() {
    let path = format!("{}/../schemas/letter.avsc", env!("CARGO_MANIFEST_DIR"));
    let schema = apache_avro::Schema::parse_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let bytes = bytes(&letter());
    let mut rest = &bytes[10..];
    let value = apache_avro::from_avro_datum(&schema, &mut rest, None).unwrap();
    assert!(rest.is_empty());
    let shown = format!("{value:?}");
    for part in ["orders", "NotJson", "at byte 7", "traceparent"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}

#[test]
fn every_prefix_is_an_error_and_no_flipped_bit_a_panic() {
    let whole = bytes(&letter());
    assert_eq!(Letter::decode(&whole).unwrap(), letter());
    for len in 0..whole.len() {
        assert!(Letter::decode(&whole[..len]).is_err(), "{len} bytes");
    }
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let _ = Letter::decode(&flipped);
    }
}

proptest! {
    #[test]
    fn any_letter_comes_back(
        key in prop::option::of(prop::collection::vec(any::<u8>(), 0..30)),
        value in prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
        headers in prop::collection::vec((".{0,12}", prop::option::of(prop::collection::vec(any::<u8>(), 0..20))), 0..8),
        (offset, timestamp, message) in (any::<i64>(), any::<i64>(), ".{0,100}"),
    ) {
        let letter = Letter {
            key: key.map(Bytes::from),
            value: value.map(Bytes::from),
            headers: headers.into_iter().map(|(name, value)| (name, value.map(Bytes::from))).collect(),
            offset, timestamp, message,
            ..letter()
        };
        let bytes = bytes(&letter);
        prop_assert_eq!(Letter::decode(&bytes).unwrap(), letter.clone());
        prop_assert!(letter.size() >= bytes.len());
    }

    #[test]
    fn any_bytes(mut bytes: Vec<u8>) {
        prop_assert!(Letter::decode(&bytes).is_err());
        bytes.splice(0..0, LETTER_FINGERPRINT.to_le_bytes());
        bytes.splice(0..0, SINGLE_OBJECT);
        let _ = Letter::decode(&bytes);
    }
}

fn golden() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "golden", "letter", "v1", "letter.bin"].iter().collect()
}

#[test]
#[ignore = "wrote the golden file, once"]
fn write_it() {
    std::fs::create_dir_all(golden().parent().unwrap()).unwrap();
    assert!(!golden().exists(), "golden files are never written again");
    std::fs::write(golden(), bytes(&letter())).unwrap();
}

#[test]
fn letters_of_the_first_schema_read_as_they_were_written() {
    let found = std::fs::read(golden()).unwrap();
    assert_eq!(Letter::decode(&found).unwrap(), letter());
    assert_eq!(bytes(&letter()), found, "this build writes what that one wrote");
}
