//! What holds for any schema and any text.

use super::*;

proptest! {
    #[test]
    fn text_and_datum_are_each_others_picture(seed in any::<u64>()) {
        let mut dice = Dice::new(seed);
        let ambiguous = dice.one_in(3);
        let made = reference::schema(&mut dice, ambiguous);
        let avro = made.avro();
        let schema = Arc::new(Schema::parse(&made.json.to_string()).unwrap());
        let json = Format::json(ExtraFields::Ignore);
        let mut codec = Codec::new(json, KeyRule::Kafka, Arc::clone(&schema)).unwrap();
        for _ in 0..4 {
            let value = reference::value(&mut dice, &made);
            let datum = apache_avro::to_avro_datum(&avro, value.clone()).unwrap();
            let mut ours = String::new();
            text::to_json(&schema, &datum, &mut ours).unwrap();
            prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&ours).is_ok(), "{}", ours);
            if !has_maps(&made.json) {
                let mut plain = String::new();
                reference::print(&mut dice, &value, Style::Plain, &mut plain);
                prop_assert_eq!(&ours, &plain);
            }
            if ours == "null" {
                continue;
            }
            let back = codec.decode(Some(b""), Some(ours.as_bytes())).map(|decoded| decoded.value.unwrap().to_vec());
            match back {
                Ok(back) if !made.ambiguous => prop_assert_eq!(back, datum.clone()),
                // another branch may have been taken, but the text is the same
                Ok(back) => {
                    let mut again = String::new();
                    text::to_json(&schema, &back, &mut again).unwrap();
                    prop_assert_eq!(numbers_alike(&again), numbers_alike(&ours));
                }
                Err(misfit) => prop_assert!(false, "{}: {}", misfit, ours),
            }
            if !made.ambiguous && !has_maps(&made.json) {
                let mut wild = String::new();
                reference::print(&mut dice, &value, Style::Wild, &mut wild);
                let back = codec.decode(Some(b""), Some(wild.as_bytes())).unwrap().value.unwrap();
                prop_assert_eq!(back, &datum[..], "{}", wild);
            }
        }
    }

    #[test]
    fn spoilt_text_is_a_misfit_or_a_valid_datum(seed in any::<u64>()) {
        let mut dice = Dice::new(seed);
        let made = reference::schema(&mut dice, true);
        let schema = Arc::new(Schema::parse(&made.json.to_string()).unwrap());
        let extra_fields = if dice.one_in(2) { ExtraFields::Ignore } else { ExtraFields::Reject };
        let mut codec = Codec::new(Format::json(extra_fields), KeyRule::Kafka, Arc::clone(&schema)).unwrap();
        let mut text = String::new();
        let value = reference::value(&mut dice, &made);
        reference::print(&mut dice, &value, Style::Wild, &mut text);
        let mut text = text.into_bytes();
        for _ in 0..16 {
            let at = dice.below(text.len() + 1);
            match dice.below(3) {
                0 if at < text.len() => text[at] = b"{}[],:\"\\0-e.tn \x00\xff"[dice.below(17)],
                1 if at < text.len() => { text.remove(at); }
                _ => text.insert(at, b"{}[],:\"\\0-e.tn \x00\xff"[dice.below(17)]),
            }
            if let Ok(decoded) = codec.decode(Some(b""), Some(&text)) {
                let datum = decoded.value.unwrap();
                prop_assert_eq!(schema.validate(datum), Ok(datum.len()));
                // Behind a zero byte comes the id of a schema, four bytes, and then the text.
                let json = if text.first() == Some(&0) { text.get(5..).unwrap_or_default() } else { &text };
                prop_assert!(serde_json::from_slice::<serde::de::IgnoredAny>(json).is_ok(), "{:?}", String::from_utf8_lossy(&text));
            }
        }
    }

    #[test]
    fn whatever_is_valid_prints_and_whatever_is_not_does_not(seed in any::<u64>()) {
        let mut dice = Dice::new(seed);
        let made = reference::schema(&mut dice, true);
        let schema = Schema::parse(&made.json.to_string()).unwrap();
        let mut datum = apache_avro::to_avro_datum(&made.avro(), reference::value(&mut dice, &made)).unwrap();
        for _ in 0..16 {
            if !datum.is_empty() {
                let at = dice.below(datum.len());
                datum[at] = if dice.one_in(2) { dice.next() as u8 } else { dice.below(4) as u8 };
            }
            let mut out = String::new();
            let printed = text::to_json(&schema, &datum, &mut out);
            prop_assert_eq!(printed.is_ok(), schema.validate(&datum).is_ok());
            prop_assert!(out.is_empty() == printed.is_err());
        }
    }
}

fn has_maps(schema: &serde_json::Value) -> bool {
    // their values are printed in the order of a HashMap
    schema.to_string().contains("\"map\"")
}

/// JSON with each number as a double: `1` and `1.0` are one number, of different branches. And without padding: text that is
/// base64 without it may be taken for bytes, which are printed with it.
fn numbers_alike(text: &str) -> serde_json::Value {
    fn walk(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Number(number) => {
                *value = serde_json::json!(number.as_f64().map(|value| value as f32))
            }
            serde_json::Value::String(text) => text.truncate(text.trim_end_matches('=').len()),
            serde_json::Value::Array(items) => items.iter_mut().for_each(walk),
            serde_json::Value::Object(fields) => fields.values_mut().for_each(walk),
            _ => {}
        }
    }
    let mut value = serde_json::from_str(text).unwrap();
    walk(&mut value);
    value
}
