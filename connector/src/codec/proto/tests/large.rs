//! Few bytes that would become many.

use super::*;

#[test]
fn a_datum_is_bounded_by_its_message() {
    // Two bytes each, and a record of defaults for each of them.
    let mut many = protobuf(&format!(
        r#"{{"type":"record","name":"P","fields":[{{"name":"all","type":{{"type":"array","items":
            {{"type":"record","name":"Q","fields":[{{"name":"big","type":"string","default":"{}"}}]}}}}}}]}}"#,
        "x".repeat(4_000)
    ))
    .unwrap();
    let bytes = [0x42, 0].repeat(50_000);
    assert_eq!(many.decode(&bytes, Bound::ANY).unwrap_err().class, "stillwell.codec.TooLarge");
    assert!(many.held() < 64 << 20, "{}", many.held());
    // A byte each (131,072: 80 80 08), and a name of a thousand for each of them.
    let name = "X".repeat(1_000);
    let text = format!("syntax = \"proto3\"; enum E {{ {name} = 0; }} message P {{ repeated E a = 1; }}");
    let schema =
        r#"{"type":"record","name":"P","fields":[{"name":"a","type":{"type":"array","items":"string"}}]}"#;
    let message = File::compile(&text, &[]).unwrap().message(&[0]).unwrap();
    let mut named = Protobuf::new(&message, &Arc::new(Schema::dataset(schema).unwrap())).unwrap();
    let bytes = [&[0x0a, 0x80, 0x80, 0x08][..], &[0; 1 << 17]].concat();
    assert_eq!(named.decode(&bytes, Bound::ANY).unwrap_err().class, "stillwell.codec.TooLarge");
    assert!(named.held() < 32 << 20, "{}", named.held());
    let mut nothing = protobuf(
        r#"{"type":"record","name":"P","fields":[{"name":"all","type":{"type":"array","items":
            {"type":"record","name":"Q","fields":[]}}}]}"#,
    )
    .unwrap();
    assert!(nothing.decode(&[0x42, 0].repeat(1 << 16), Bound::ANY).is_ok());
    assert_eq!(
        nothing.decode(&[0x42, 0].repeat((1 << 16) + 1), Bound::ANY).unwrap_err().class,
        "stillwell.codec.TooLarge"
    );
}

#[test]
fn a_datum_is_no_larger_than_the_dataset_takes_and_a_giant_leaves_nothing_behind() {
    let text = r#"syntax = "proto3"; enum E { A_NAME_OF_TWENTY_BYTES = 0; } message P { repeated E a = 1; map<int32, int32> b = 2; }"#;
    let schema = r#"{"type":"record","name":"P","fields":[
        {"name":"a","type":{"type":"array","items":"string"}},{"name":"b","type":{"type":"map","values":"int"}}]}"#;
    let message = File::compile(text, &[]).unwrap().message(&[0]).unwrap();
    let mut messages = Protobuf::new(&message, &Arc::new(Schema::dataset(schema).unwrap())).unwrap();
    let packed = |count: usize| {
        let (mut length, mut rest) = (Vec::new(), count);
        while rest >= 0x80 {
            length.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        length.push(rest as u8);
        [&[0x0a][..], &length, &vec![0; count]].concat()
    };
    // 23 bytes for each of theirs.
    let bound = Bound::of(1_000_000);
    assert!(messages.decode(&packed(43_000), bound).is_ok());
    let misfit = messages.decode(&packed(300_000), bound).unwrap_err();
    assert_eq!((misfit.stage, misfit.class), (Stage::Oversized, "stillwell.Oversized"));
    assert!(misfit.message.contains("more than 1000000 bytes"), "{misfit}");
    assert!(messages.held() < 4 << 20, "no more was made of it: {}", messages.held());

    let entries: Vec<u8> = (0..100_000u32).flat_map(|_| [0x12, 4, 8, 1, 16, 1]).collect();
    for giant in [packed(300_000), entries] {
        assert!(messages.decode(&giant, Bound::ANY).is_ok());
        assert!(messages.held() > 3 << 20, "{}", messages.held());
        assert!(messages.decode(&[0x0a, 1, 0], bound).is_ok());
        assert!(messages.held() < 3 << 20, "{}", messages.held());
    }
}
