use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::schema::reference::{self, Dice};
use crate::schema::wire::{put_bytes, put_long};

fn parse(json: &str) -> Arc<Schema> {
    Arc::new(Schema::parse(json).unwrap_or_else(|error| panic!("{error}: {json}")))
}

/// What a datum of `writer` is as one of `reader`.
fn resolve(writer: &str, reader: &str, datum: &[u8]) -> Result<Vec<u8>, &'static str> {
    let (writer, reader) = (parse(writer), parse(reader));
    let mut out = vec![99];
    let result = Resolver::new(&writer, &reader).unwrap().resolve(datum, &mut out);
    match result {
        Ok(()) => {
            assert_eq!(reader.validate(&out[1..]), Ok(out.len() - 1));
            Ok(out[1..].to_vec())
        }
        Err(malformed) => {
            assert_eq!(out, [99], "nothing is left behind");
            Err(malformed.what)
        }
    }
}

fn refusal(writer: &str, reader: &str) -> String {
    match Resolver::new(&parse(writer), &parse(reader)) {
        Ok(_) => panic!("resolves: {writer} {reader}"),
        Err(error) => error.to_string(),
    }
}

fn record(fields: &str) -> String {
    format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#)
}

#[test]
fn fields_are_found_by_name_and_alias() {
    let writer =
        record(r#"{"name":"a","type":"int"},{"name":"b","type":"string"},{"name":"c","type":"double"}"#);
    let mut datum = Vec::new();
    put_long(&mut datum, 7);
    put_bytes(&mut datum, b"x");
    datum.extend_from_slice(&1.5f64.to_le_bytes());
    let order = record(
        r#"{"name":"b","type":"bytes"},{"name":"new","type":["null","int"],"default":null},{"name":"a","type":"long"}"#,
    );
    assert_eq!(resolve(&writer, &order, &datum), Ok(vec![2, b'x', 0, 14]));
    let renamed = r#"{"type":"record","name":"n.New","aliases":["R"],"fields":[
        {"name":"one","aliases":["zero","a"],"type":"int"},{"name":"more","type":"int","default":-3}]}"#;
    assert_eq!(resolve(&writer, renamed, &datum), Ok(vec![14, 5]));
    assert_eq!(
        refusal(&writer, r#"{"type":"record","name":"New","fields":[]}"#),
        "the writer's schema does not resolve to the dataset's: the schema: the writer's type is called R, the reader's \
         New: an alias in the reader's would join them"
    );
    // the namespace does not matter
    assert_eq!(resolve(&writer, r#"{"type":"record","name":"x.y.R","fields":[]}"#, &datum), Ok(vec![]));
    let missing = refusal(&writer, &record(r#"{"name":"in","type":"int"}"#));
    assert!(missing.ends_with("in: the writer's record lacks it, and it has no default"), "{missing}");
    let deep = |kind| {
        record(&format!(
            r#"{{"name":"l","type":{{"type":"array","items":{{"type":"record","name":"I","fields":[{{"name":"v","type":"{kind}"}}]}}}}}}"#
        ))
    };
    let message = refusal(&deep("string"), &deep("int"));
    assert!(message.ends_with("l.items.v: string is no int"), "{message}");
}

#[test]
fn numbers_are_promoted_and_never_cut() {
    let number = |value: i64| {
        let mut out = Vec::new();
        put_long(&mut out, value);
        out
    };
    let long = 9007199254740993;
    for (writer, reader, datum, expected) in [
        ("int", "long", number(-7), number(-7)),
        ("int", "float", number(-7), (-7f32).to_le_bytes().to_vec()),
        ("int", "double", number(-7), (-7f64).to_le_bytes().to_vec()),
        ("long", "float", number(long), (long as f32).to_le_bytes().to_vec()),
        ("long", "double", number(long), (long as f64).to_le_bytes().to_vec()),
        ("float", "double", 0.1f32.to_le_bytes().to_vec(), f64::from(0.1f32).to_le_bytes().to_vec()),
        ("string", "bytes", vec![2, b'a'], vec![2, b'a']),
        ("bytes", "string", vec![2, b'a'], vec![2, b'a']),
    ] {
        assert_eq!(resolve(&format!("\"{writer}\""), &format!("\"{reader}\""), &datum), Ok(expected));
    }
    assert_eq!(
        resolve(r#""bytes""#, r#""string""#, &[2, 0xff]),
        Err("bytes that are read as a string are not UTF-8")
    );
    assert!(resolve(r#""int""#, r#""long""#, &number(1 << 40)).is_err(), "it is no int");
    for (writer, reader) in
        [("long", "int"), ("double", "float"), ("float", "long"), ("string", "int"), ("null", "int")]
    {
        let message = refusal(&format!("\"{writer}\""), &format!("\"{reader}\""));
        assert!(message.ends_with(&format!("{writer} is no {reader}")), "{message}");
    }
}

#[test]
fn enums_and_fixeds_go_by_name() {
    let symbols =
        |list: &str, rest: &str| format!(r#"{{"type":"enum","name":"E","symbols":[{list}]{rest}}}"#);
    let writer = symbols(r#""A","B","C""#, "");
    assert_eq!(resolve(&writer, &symbols(r#""C","A""#, ""), &[4]), Ok(vec![0]));
    assert_eq!(
        resolve(&writer, &symbols(r#""C","A""#, ""), &[2]),
        Err("a symbol that the reader's enum does not have, nor a default for it")
    );
    assert_eq!(resolve(&writer, &symbols(r#""C","A""#, r#","default":"A""#), &[2]), Ok(vec![2]));
    assert_eq!(resolve(&writer, &symbols(r#""A","B","C","D""#, ""), &[2]), Ok(vec![2]));
    assert_eq!(
        resolve(&writer, &symbols(r#""C","A""#, ""), &[6]),
        Err("an enum has no symbol of this index")
    );
    assert!(refusal(&writer, &symbols(r#""X""#, "")).contains("knows none of the symbols"));
    let fixed = |name: &str, size: u8| format!(r#"{{"type":"fixed","name":"{name}","size":{size}}}"#);
    assert_eq!(resolve(&fixed("a.F", 2), &fixed("b.F", 2), &[1, 2]), Ok(vec![1, 2]));
    assert!(refusal(&fixed("F", 2), &fixed("F", 3)).contains("a fixed of 2 bytes is read as one of 3"));
    assert!(refusal(&fixed("F", 2), &fixed("G", 2)).contains("alias"));
}

#[test]
fn decimals_keep_their_scale() {
    let decimal = |precision: u8, scale: u8| {
        format!(r#"{{"type":"bytes","logicalType":"decimal","precision":{precision},"scale":{scale}}}"#)
    };
    assert_eq!(resolve(&decimal(4, 2), &decimal(9, 2), &[2, 1]), Ok(vec![2, 1]));
    assert_eq!(resolve(&decimal(4, 2), r#""bytes""#, &[2, 1]), Ok(vec![2, 1]));
    assert!(
        refusal(&decimal(4, 2), &decimal(4, 3)).contains("a decimal of scale 2 is read as one of scale 3")
    );
    assert!(refusal(&decimal(4, 2), &decimal(3, 2)).contains("precision"));
    // scale above precision: no decimal at all, says the specification
    assert_eq!(resolve(&decimal(2, 4), &decimal(4, 3), &[2, 1]), Ok(vec![2, 1]));
}

#[test]
fn unions_resolve_by_the_branch_that_was_written() {
    // not the union's order but the very type
    assert_eq!(resolve(r#""int""#, r#"["double","long","int"]"#, &[2]), Ok(vec![4, 2]));
    // no such type: the first that takes it
    assert_eq!(resolve(r#""int""#, r#"["string","long","double"]"#, &[2]), Ok(vec![2, 2]));
    assert_eq!(resolve(r#"["null","int"]"#, r#"["int","null"]"#, &[2, 2]), Ok(vec![0, 2]));
    assert_eq!(resolve(r#"["null","int"]"#, r#"["int","null"]"#, &[0]), Ok(vec![2]));
    assert_eq!(resolve(r#"["null","int"]"#, r#""long""#, &[2, 2]), Ok(vec![2]));
    assert_eq!(
        resolve(r#"["null","int"]"#, r#""long""#, &[0]),
        Err("a union's branch that the reader's schema has nothing for")
    );
    assert_eq!(resolve(r#"["null","int"]"#, r#"["null","int","string"]"#, &[2, 2]), Ok(vec![2, 2]));
    assert_eq!(
        resolve(r#"["null","int"]"#, r#"["null","int"]"#, &[4]),
        Err("a union has no branch of this index")
    );
    assert!(refusal(r#"["null","string"]"#, r#""int""#).contains("null is no int"));
    assert!(
        refusal(r#""string""#, r#"["null","int"]"#).contains("no branch of the reader's union takes string")
    );
    // two records: the full name before the short one
    let one = |name: &str| format!(r#"{{"type":"record","name":"{name}","fields":[]}}"#);
    let both = format!("[{},{}]", one("b.R"), one("a.R"));
    assert_eq!(resolve(&one("a.R"), &both, &[]), Ok(vec![2]));
    assert_eq!(resolve(&one("c.R"), &both, &[]), Ok(vec![0]));
}

#[test]
fn recursive_types_resolve() {
    let list = |kind: &str, more: &str| {
        format!(
            r#"{{"type":"record","name":"L","fields":[{{"name":"v","type":"{kind}"}}{more},{{"name":"next","type":["null","L"]}}]}}"#
        )
    };
    let datum = [2, 2, 4, 2, 6, 0];
    assert_eq!(resolve(&list("int", ""), &list("int", ""), &datum), Ok(datum.to_vec()));
    let more = r#",{"name":"d","type":"string","default":"x"}"#;
    assert_eq!(
        resolve(&list("int", ""), &list("long", more), &datum),
        Ok(vec![2, 2, b'x', 2, 4, 2, b'x', 2, 6, 2, b'x', 0])
    );
    // out of order at each level
    let turned = r#"{"type":"record","name":"L","fields":[{"name":"next","type":["null","L"]},{"name":"v","type":"int"}]}"#;
    assert_eq!(resolve(&list("int", ""), turned, &datum), Ok(vec![2, 2, 0, 6, 4, 2]));
    let deep = |levels: usize| [[2, 2].repeat(levels - 1), vec![2, 0]].concat();
    for reader in [turned, &list("long", more)] {
        assert!(resolve(&list("int", ""), reader, &deep(128)).is_ok());
        assert_eq!(resolve(&list("int", ""), reader, &deep(129)), Err("nested deeper than 128 levels"));
        assert_eq!(resolve(&list("int", ""), reader, &deep(100_000)), Err("nested deeper than 128 levels"));
    }
    // what fails on the way round fails as a whole
    let other = list("string", "");
    assert!(refusal(&list("int", ""), &other).contains("v: int is no string"));
}

#[test]
fn hostile_datums_are_bounded() {
    let writer = r#"{"type":"array","items":{"type":"record","name":"R","fields":[]}}"#;
    let reader = r#"{"type":"array","items":{"type":"record","name":"R","fields":[{"name":"s","type":"string","default":"0123456789"}]}}"#;
    let mut datum = Vec::new();
    put_long(&mut datum, i64::MAX);
    datum.push(0);
    assert_eq!(resolve(writer, reader, &datum), Err("more than 65536 items that take no bytes"));
    // a schema that is all unions of each other
    let chain = |names: usize| {
        let fields: Vec<String> = (0..names)
            .map(|at| {
                let inner: Vec<String> = (0..names)
                    .map(|to| format!(r#"{{"name":"f{to}","type":["null","R{to}"]}}"#))
                    .take(at)
                    .collect();
                format!(
                    r#"{{"name":"d{at}","type":{{"type":"record","name":"R{at}","fields":[{}]}}}}"#,
                    inner.join(",")
                )
            })
            .collect();
        record(&fields.join(","))
    };
    let schema = parse(&chain(60));
    assert!(Resolver::new(&schema, &schema).is_ok());
}

/// A schema that reads what `schema` wrote: fields moved, dropped and added, types promoted, nulls allowed.
fn evolve(dice: &mut Dice, schema: &Json) -> Json {
    let evolved = match schema {
        Json::String(name) => {
            let wider: &[&str] = match name.as_str() {
                "int" => &["int", "long", "float", "double"],
                "long" => &["long", "float", "double"],
                "float" => &["float", "double"],
                "string" => &["string", "bytes"],
                "bytes" => &["bytes", "bytes", "string"],
                name => &[name][..],
            };
            json!(wider[dice.below(wider.len())])
        }
        Json::Array(branches) => {
            let mut branches = branches.clone();
            for at in (1..branches.len()).rev() {
                branches.swap(at, dice.below(at + 1));
            }
            return Json::Array(branches);
        }
        Json::Object(object) => {
            let mut object = object.clone();
            if let Some(items) = object.get_mut("items") {
                *items = evolve(dice, items);
            }
            if let Some(values) = object.get_mut("values") {
                *values = evolve(dice, values);
            }
            if let Some(Json::Array(fields)) = object.get_mut("fields") {
                for field in fields.iter_mut() {
                    field["type"] = evolve(dice, &field["type"]);
                }
                if dice.one_in(2) {
                    for at in (1..fields.len()).rev() {
                        fields.swap(at, dice.below(at + 1));
                    }
                }
                if dice.one_in(3) && !fields.is_empty() {
                    fields.remove(dice.below(fields.len()));
                }
                if dice.one_in(3) {
                    let added = [
                        json!({"name": "g", "type": "string", "default": "d"}),
                        json!({"name": "g", "type": ["null", "long"], "default": null}),
                        json!({"name": "g", "type": {"type": "array", "items": "int"}, "default": [1, 2]}),
                        json!({"name": "g", "type": "double", "default": 1.5}),
                    ];
                    let at = dice.below(fields.len() + 1);
                    fields.insert(at, added[dice.below(4)].clone());
                }
            }
            if let Some(Json::Array(symbols)) = object.get_mut("symbols") {
                symbols.reverse();
                if dice.one_in(3) {
                    symbols.remove(0);
                    symbols.push(json!("Other"));
                    object.insert("default".into(), json!("Other"));
                }
            }
            Json::Object(object)
        }
        other => other.clone(),
    };
    if dice.one_in(6) && evolved != "null" { json!(["null", evolved]) } else { evolved }
}

proptest! {
    #[test]
    fn datums_resolve_as_apache_avro_resolves_them(seed in any::<u64>()) {
        let mut dice = Dice::new(seed);
        let made = reference::schema(&mut dice, false);
        let (writer, their_writer) = (parse(&made.json.to_string()), made.avro());
        let json = evolve(&mut dice, &made.json).to_string();
        // a name may be mentioned before it is defined now
        let Ok(reader) = Schema::parse(&json) else { return Ok(()) };
        let reader = Arc::new(reader);
        let their_reader = apache_avro::Schema::parse_str(&json).unwrap();
        let resolver = Resolver::new(&writer, &reader).unwrap();
        for _ in 0..4 {
            let datum = apache_avro::to_avro_datum(&their_writer, reference::value(&mut dice, &made)).unwrap();
            let mut out = Vec::new();
            let ours = resolver.resolve(&datum, &mut out);
            let theirs = apache_avro::from_avro_datum(&their_writer, &mut &datum[..], Some(&their_reader));
            match theirs {
                Ok(theirs) => {
                    prop_assert_eq!(ours, Ok(()), "{}\n{}", made.json, json);
                    prop_assert_eq!(reader.validate(&out), Ok(out.len()));
                    let ours = apache_avro::from_avro_datum(&their_reader, &mut &out[..], None).unwrap();
                    prop_assert_eq!(ours, theirs, "{}\n{}", made.json, json);
                }
                Err(error) => prop_assert!(ours.is_err(), "{error}\n{}\n{}", made.json, json),
            }
            for _ in 0..datum.len().min(50) {
                let cut = dice.below(datum.len());
                prop_assert!(resolver.resolve(&datum[..cut], &mut Vec::new()).is_err());
            }
        }
    }

    #[test]
    fn spoilt_datums_never_resolve_to_invalid_ones(seed in any::<u64>()) {
        let mut dice = Dice::new(seed);
        let made = reference::schema(&mut dice, true);
        let writer = parse(&made.json.to_string());
        let Ok(reader) = Schema::parse(&evolve(&mut dice, &made.json).to_string()) else { return Ok(()) };
        let reader = Arc::new(reader);
        let Ok(resolver) = Resolver::new(&writer, &reader) else { return Ok(()) };
        let mut datum = apache_avro::to_avro_datum(&made.avro(), reference::value(&mut dice, &made)).unwrap();
        for _ in 0..16 {
            if !datum.is_empty() {
                let at = dice.below(datum.len());
                datum[at] = if dice.one_in(2) { dice.next() as u8 } else { dice.below(4) as u8 };
            }
            let mut out = Vec::new();
            match resolver.resolve(&datum, &mut out) {
                Ok(()) => {
                    prop_assert_eq!(writer.skip(&datum), Ok(datum.len()));
                    prop_assert_eq!(reader.validate(&out), Ok(out.len()));
                }
                Err(malformed) => prop_assert!(out.is_empty() && malformed.at <= datum.len()),
            }
        }
    }
}
