//! What a datum becomes under serde, against its JSON; and what cannot be had.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::codec::text;
use crate::schema::Schema;
use crate::schema::reference::{self, Dice};
use crate::schema::wire::{put_bytes, put_long};

/// Whatever comes, as `text::to_json` prints it.
struct Json(String);

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(Print)
    }
}

struct Print;

fn quoted(text: &str) -> String {
    let mut out = String::new();
    text::key_to_json(text.as_bytes(), &mut out);
    out
}

fn number(value: f64, text: String) -> Json {
    Json(match value {
        f64::INFINITY => "\"Infinity\"".into(),
        f64::NEG_INFINITY => "\"-Infinity\"".into(),
        value if value.is_nan() => "\"NaN\"".into(),
        _ => text,
    })
}

impl<'de> Visitor<'de> for Print {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json("null".into()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json(value.to_string()))
    }

    fn visit_f32<E>(self, value: f32) -> Result<Json, E> {
        Ok(number(value.into(), serde_json::to_string(&value).unwrap()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(number(value, serde_json::to_string(&value).unwrap()))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Json, E> {
        Ok(Json(quoted(value)))
    }

    fn visit_borrowed_bytes<E>(self, value: &'de [u8]) -> Result<Json, E> {
        Ok(Json(format!("{:?}", STANDARD.encode(value))))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut all = Vec::new();
        while let Some(Json(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(Json(format!("[{}]", all.join(","))))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut all = Vec::new();
        while let Some((key, Json(value))) = entries.next_entry::<&str, Json>()? {
            all.push(format!("{}:{value}", quoted(key)));
        }
        Ok(Json(format!("{{{}}}", all.join(","))))
    }
}

proptest! {
    #[test]
    fn all_of_a_datum_comes_out_as_its_json_says(seed in any::<u64>()) {
        let mut dice = Dice::new(seed);
        let made = reference::schema(&mut dice, true);
        let schema = Schema::parse(&made.json.to_string()).unwrap();
        for _ in 0..4 {
            let value = reference::value(&mut dice, &made);
            let mut datum = apache_avro::to_avro_datum(&made.avro(), value).unwrap();
            let mut expected = String::new();
            text::to_json(&schema, &datum, &mut expected).unwrap();
            let part = Part::whole(&schema, &datum).unwrap();
            prop_assert_eq!(part.read::<Json>().unwrap().0, expected);
            prop_assert!(part.read::<de::IgnoredAny>().is_ok());
            // Spoilt bytes are an error, or other values; never a panic, and never more than there is.
            for _ in 0..8 {
                if datum.is_empty() {
                    break;
                }
                let at = dice.below(datum.len());
                datum[at] ^= 1 << dice.below(8);
                if dice.one_in(3) {
                    datum.truncate(at);
                }
                if let Ok(part) = Part::whole(&schema, &datum) {
                    let mut text = String::new();
                    prop_assert_eq!(part.read::<Json>().is_ok(), part.write_json(&mut text).is_ok());
                }
            }
        }
    }
}

const SCHEMA: &str = r#"{"type":"record","name":"P","fields":[
    {"name":"id","type":"string"},
    {"name":"size","type":{"type":"enum","name":"S","symbols":["small","large"]}},
    {"name":"price","type":["null","double"]},
    {"name":"stock","type":"long"},
    {"name":"tags","type":{"type":"array","items":"string"}},
    {"name":"names","type":{"type":"map","values":"string"}},
    {"name":"digest","type":{"type":"fixed","name":"F","size":2}},
    {"name":"maker","type":{"type":"record","name":"M","fields":[{"name":"city","type":"string"},{"name":"raw","type":"bytes"}]}}]}"#;

fn datum() -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, b"P-1");
    put_long(&mut out, 1);
    put_long(&mut out, 1);
    out.extend(2.5f64.to_le_bytes());
    put_long(&mut out, 300);
    put_long(&mut out, 2);
    put_bytes(&mut out, b"red");
    put_bytes(&mut out, b"new");
    put_long(&mut out, 0);
    put_long(&mut out, 1);
    put_bytes(&mut out, b"de");
    put_bytes(&mut out, b"Ding");
    put_long(&mut out, 0);
    out.extend([7, 8]);
    put_bytes(&mut out, b"Bonn");
    put_bytes(&mut out, &[9, 255]);
    out
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Size {
    Small,
    Large,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Maker<'a> {
    city: &'a str,
    raw: Vec<u8>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Product<'a> {
    #[serde(borrow)]
    id: &'a str,
    size: Size,
    price: Option<f32>,
    #[serde(default)]
    colour: Option<String>,
    tags: Vec<&'a str>,
    names: BTreeMap<String, String>,
    digest: [u8; 2],
    maker: Maker<'a>,
}

#[test]
fn a_record_is_a_struct_and_what_it_does_not_name_is_passed_over() {
    let (schema, datum) = (Schema::parse(SCHEMA).unwrap(), datum());
    let product: Product<'_> = Part::whole(&schema, &datum).unwrap().read().unwrap();
    let names = [("de".to_owned(), "Ding".to_owned())].into();
    let maker = Maker { city: "Bonn", raw: vec![9, 255] };
    let expected = Product {
        id: "P-1",
        size: Size::Large,
        price: Some(2.5),
        colour: None,
        tags: vec!["red", "new"],
        names,
        digest: [7, 8],
        maker,
    };
    assert_eq!(product, expected);
    assert!(datum.as_ptr_range().contains(&product.id.as_ptr()), "text is borrowed");
}

#[test]
fn a_type_that_does_not_fit_says_so_and_a_number_that_does_not_fit_too() {
    let (schema, datum) = (Schema::parse(SCHEMA).unwrap(), datum());
    let part = |name: &str| Part::whole(&schema, &datum).unwrap().field(name).unwrap().unwrap();
    assert_eq!(part("stock").read::<u16>(), Ok(300));
    assert_eq!(part("stock").read::<f64>(), Ok(300.0));
    assert_eq!(part("price").read::<Option<f64>>(), Ok(Some(2.5)));
    let mismatch = |error: Error| match error {
        Error::Mismatch(what) => what,
        error => panic!("{error}"),
    };
    assert!(mismatch(part("stock").read::<u8>().unwrap_err()).contains("300"));
    assert!(mismatch(part("id").read::<i64>().unwrap_err()).contains("string"));
    #[derive(Debug, Deserialize)]
    struct Wrong {
        #[serde(rename = "tags")]
        _tags: Vec<u8>,
    }
    let wrong = mismatch(Part::whole(&schema, &datum).unwrap().read::<Wrong>().unwrap_err());
    assert!(wrong.starts_with("field tags: "), "{wrong}");
    let cut = &datum[..datum.len() - 1];
    let error = Part::whole(&schema, cut).unwrap().read::<Product<'_>>().unwrap_err();
    assert!(matches!(error, Error::Malformed(_)), "{error:?}");
}
