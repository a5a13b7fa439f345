use apache_avro::rabin::Rabin;
use proptest::prelude::*;

use super::reference::{self, Dice};
use super::wire::{put_bytes, put_long};
use super::*;

fn parse(json: &str) -> Schema {
    Schema::parse(json).unwrap_or_else(|error| panic!("{error}: {json}"))
}

fn refusal(json: &str) -> String {
    match Schema::parse(json) {
        Ok(_) => panic!("taken: {json}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_raw_datum_is_as_long_as_it_says() {
    let raw = Schema::raw();
    assert_eq!(raw.json(), r#"{"type":"bytes"}"#);
    assert!(raw.is_raw());
    assert_eq!(raw.skip(&[6, 1, 2, 3, 99]), Ok(4));
    assert_eq!(raw.skip(&[6, 1, 2]).unwrap_err().at, 0);
}

#[test]
fn the_text_is_kept_in_its_order_without_whitespace() {
    let schema =
        parse("{\"type\" : \"enum\",\n \"symbols\": [ \"A\" ], \"name\":\"E\", \"doc\":\" a \\\" b\\\\\" }");
    assert_eq!(schema.json(), r#"{"type":"enum","symbols":["A"],"name":"E","doc":" a \" b\\"}"#);
}

#[test]
fn fingerprints_are_those_of_the_specification() {
    // from Avro's share/test/data/schema-tests.txt
    for (json, fingerprint) in [
        (r#""null""#, 7195948357588979594i64),
        (r#"{"type":"boolean"}"#, -6970731678124411036),
        (r#""int""#, 8247732601305521295),
        (r#""string""#, -8142146995180207161),
        (r#"{"name":"foo","type":"fixed","size":15}"#, 1756455273707447556),
        (r#"{"type":"record","name":"foo","fields":[]}"#, -4824392279771201922),
    ] {
        assert_eq!(parse(json).fingerprint() as i64, fingerprint, "{json}");
    }
}

#[test]
fn the_canonical_form_has_full_names_and_nothing_else() {
    let schema = parse(
        r#"{"doc":"d","type":"record","name":"R","namespace":"a.b","aliases":["Q"],"fields":[
            {"default":1,"type":{"logicalType":"date","type":"int"},"name":"x","doc":"e"},
            {"name":"y","type":["null",{"type":"fixed","size":2,"name":"c.F"},"R"]},
            {"name":"z","type":{"type":"array","items":"c.F"}},
            {"name":"n","type":{"type":"enum","name":"N","namespace":"","symbols":["A"]}}]}"#,
    );
    assert_eq!(
        schema.canonical(),
        concat!(
            r#"{"name":"a.b.R","type":"record","fields":[{"name":"x","type":"int"},"#,
            r#"{"name":"y","type":["null",{"name":"c.F","type":"fixed","size":2},"a.b.R"]},"#,
            r#"{"name":"z","type":{"type":"array","items":"c.F"}},"#,
            r#"{"name":"n","type":{"name":"N","type":"enum","symbols":["A"]}}]}"#
        )
    );
}

#[test]
fn what_is_no_schema_is_refused_with_where_and_why() {
    for (json, words) in [
        ("{", "not JSON"),
        ("1", "a schema is a name"),
        (r#""Product""#, "no type `Product` is defined"),
        (r#"{"type":"record","name":"R","fields":[{"name":"a","type":"strin"}]}"#, "R.a: no type `strin`"),
        (r#"{"type":"record","name":"R"}"#, "R: a record needs the attribute `fields`"),
        (r#"{"type":"record","name":"R-1","fields":[]}"#, "have to match"),
        (
            r#"{"type":"record","name":"R","fields":[{"name":"a b","type":"int"}]}"#,
            "R.a b: the field's name has to match [A-Za-z_]",
        ),
        (r#"{"type":"record","name":"int","fields":[]}"#, "like one of Avro's own"),
        (
            r#"{"type":"record","name":"R","fields":[{"name":"a","type":"int"},{"name":"a","type":"int"}]}"#,
            "R.a: the record has this field already",
        ),
        (r#"["int","int"]"#, "[1]: the union already has a branch `int`"),
        (r#"["int",["null"]]"#, "a union stands directly in a union"),
        ("[]", "a union needs a branch"),
        (r#"{"type":"enum","name":"E","symbols":["A","A"]}"#, "the symbol `A` occurs twice"),
        (r#"{"type":"enum","name":"E","symbols":["A"],"default":"B"}"#, "one of its symbols"),
        (r#"{"type":"fixed","name":"F","size":-1}"#, "`size` of a fixed"),
        (r#"{"type":"array"}"#, "needs the attribute `items`"),
        (
            r#"{"type":"record","name":"R","fields":[{"name":"a","type":{"type":"fixed","name":"R","size":1}}]}"#,
            "`R` is defined twice",
        ),
        (
            r#"{"type":"record","name":"R","fields":[{"name":"a","type":"int","default":"x"}]}"#,
            "R.a: its default does not fit: expected an integer of 32 bits, found a string",
        ),
        (
            r#"{"type":"record","name":"R","fields":[{"name":"a","type":"int","default":3000000000}]}"#,
            "an integer of 32 bits",
        ),
        (
            r#"{"type":"record","name":"R","fields":[{"name":"a","type":"R","default":{}}]}"#,
            "does a type hold itself",
        ),
        (
            r#"{"type":"record","name":"R","fields":[{"name":"a","type":{"type":"array","items":"null"},"default":[null]}]}"#,
            "take no bytes",
        ),
    ] {
        let message = refusal(json);
        assert!(message.contains(words) || words == "not JSON", "{json}: {message}");
        assert!(!Schema::parse(json).unwrap_err().is_transient());
    }
    // field names: the pattern is said, too
    assert!(
        refusal(r#"{"type":"record","name":"R","fields":[{"name":"a b","type":"int"}]}"#).contains("R.a b")
    );
}

#[test]
fn defaults_that_double_at_each_level_are_refused() {
    let mut fields = r#"{"name":"x","type":"long","default":0}"#.to_owned();
    let mut before = String::new();
    for level in 0..40 {
        let name = format!("L{level}");
        before = format!(
            r#"{{"name":"d{level}","type":{{"type":"record","name":"{name}","fields":[{fields}]}},"default":{{}}}}"#
        ) + if before.is_empty() { "" } else { "," }
            + &before;
        fields = format!(
            r#"{{"name":"a","type":"{name}","default":{{}}}},{{"name":"b","type":"{name}","default":{{}}}}"#
        );
        // defined in order: each level's record stands before the next mentions it
        if level == 39 {
            let mut all: Vec<&str> = before.split(r#",{"name":"d"#).collect();
            all.reverse();
            let json: Vec<String> = all
                .iter()
                .map(|field| {
                    if field.starts_with('{') { field.to_string() } else { format!(r#"{{"name":"d{field}"#) }
                })
                .collect();
            let json = format!(r#"{{"type":"record","name":"Top","fields":[{}]}}"#, json.join(","));
            assert!(refusal(&json).contains("1 MiB"), "{}", refusal(&json));
        }
    }
}

#[test]
fn a_dataset_schema_can_stand_beside_null() {
    for (json, words) in [
        (r#"["null","string"]"#, "a union at the top"),
        (r#""null""#, "null means deleted"),
        (r#"{"type":"record","name":"stillwell.Entry","fields":[]}"#, "defines stillwell.Entry"),
    ] {
        let message = Schema::dataset(json).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
    assert!(Schema::dataset(r#""string""#).is_ok());
    assert!(Schema::dataset(r#"{"type":"record","name":"Entry","fields":[]}"#).is_ok());
}

#[test]
fn the_entry_holds_the_schema_and_its_names_stay_what_they_are() {
    for (json, inlined) in [
        (r#"{"type":"bytes"}"#, None),
        (r#""string""#, None),
        (r#"{"type":"record","name":"a.R","fields":[]}"#, None),
        (
            r#"{"namespace":"n","type":"record","name":"R","fields":[{"name":"again","type":["null","R"]}]}"#,
            None,
        ),
        (
            r#"{"type":"record","name":"Entry","fields":[{"name":"again","type":["null","Entry"]}]}"#,
            Some(
                r#"{"namespace":"","type":"record","name":"Entry","fields":[{"name":"again","type":["null","Entry"]}]}"#,
            ),
        ),
        (
            r#"{"type":"array","default":[{"type":"record"}],"items":{"type":"map","values":{"name":"E","type":"enum","symbols":["A"]}}}"#,
            Some(
                r#"{"type":"array","default":[{"type":"record"}],"items":{"type":"map","values":{"namespace":"","name":"E","type":"enum","symbols":["A"]}}}"#,
            ),
        ),
    ] {
        let schema = Schema::dataset(json).unwrap();
        let entry = schema.entry_json();
        assert!(entry.contains(inlined.unwrap_or(json)), "{entry}");
        let parsed = parse(&entry);
        // the value's type within the entry is the very type
        assert!(parsed.canonical().ends_with(&format!(r#"["null",{}]}}]}}"#, schema.canonical())), "{entry}");
        apache_avro::Schema::parse_str(&entry).unwrap();
    }
}

#[test]
fn hostile_bytes_are_bounded() {
    let nulls = parse(r#"{"type":"array","items":"null"}"#);
    let mut bytes = Vec::new();
    put_long(&mut bytes, i64::MAX);
    bytes.push(0);
    assert_eq!(nulls.skip(&bytes).unwrap_err().what, "more than 65536 items that take no bytes");
    let empties = parse(
        r#"{"type":"array","items":{"type":"array","items":{"type":"record","name":"E","fields":[{"name":"n","type":"null"}]}}}"#,
    );
    let mut bytes = Vec::new();
    put_long(&mut bytes, 3);
    for _ in 0..3 {
        put_long(&mut bytes, 30_000);
        bytes.push(0);
    }
    bytes.push(0);
    assert!(empties.skip(&bytes).is_err(), "they add up");
    let strings = parse(r#"{"type":"array","items":"string"}"#);
    let mut bytes = Vec::new();
    put_long(&mut bytes, i64::MAX);
    put_bytes(&mut bytes, b"one");
    assert!(strings.skip(&bytes).is_err());
    // the smallest count that has no positive counterpart
    let mut bytes = Vec::new();
    put_long(&mut bytes, i64::MIN);
    put_long(&mut bytes, 0);
    assert!(strings.skip(&bytes).is_err());
}

#[test]
fn recursion_ends_where_it_is_said_to() {
    let list = parse(r#"{"type":"record","name":"L","fields":[{"name":"next","type":["null","L"]}]}"#);
    for (levels, fits) in [(MAX_DEPTH, true), (MAX_DEPTH + 1, false), (1_000_000, false)] {
        let mut bytes = vec![2; levels - 1];
        bytes.push(0);
        assert_eq!(list.skip(&bytes).is_ok(), fits, "{levels}");
    }
    // has no value at all; must not run for ever
    let endless = parse(r#"{"type":"record","name":"X","fields":[{"name":"x","type":"X"}]}"#);
    assert_eq!(endless.skip(&[]).unwrap_err().what, "nested deeper than 128 levels");
    let endless =
        parse(r#"{"type":"array","items":{"type":"record","name":"X","fields":[{"name":"x","type":"X"}]}}"#);
    assert!(endless.skip(&[200, 1, 0]).is_err());
}

/// Records of two records of two records …, `levels` of them, over `innermost`; and a field of the last kind.
fn doubling(levels: usize, innermost: &str, default: &str) -> String {
    let mut fields = vec![format!(r#"{{"name":"r0","type":{innermost}}}"#)];
    for level in 1..=levels {
        let (below, at) = (level - 1, level);
        let of = |name: &str| format!(r#"{{"name":"{name}","type":"R{below}"{default}}}"#);
        fields.push(format!(
            r#"{{"name":"r{at}","type":{{"type":"record","name":"R{at}","fields":[{},{}]}}}}"#,
            of("a"),
            of("b")
        ));
    }
    format!(r#"{{"type":"record","name":"All","fields":[{}]}}"#, fields.join(","))
}

/// A few hundred bytes of schema that no walk over a datum, and none over a default, would come to the end of.
#[test]
fn what_doubles_without_taking_bytes_is_refused_at_once() {
    let refused = |json: &str| Schema::parse(json).unwrap_err().to_string();
    let empty = r#"{"type":"record","name":"R0","fields":[]}"#;
    assert!(Schema::parse(&doubling(5, empty, "")).unwrap().skip(b"").is_ok());
    let why = refused(&doubling(60, empty, ""));
    assert!(why.contains("R8") && why.contains("takes no bytes and has more than 256 parts"), "{why}");
    let why = refused(&doubling(60, empty, r#","default":{}"#));
    assert!(why.contains("takes no bytes"), "{why}");
    let long = r#"{"type":"record","name":"R0","fields":[{"name":"x","type":"long","default":0}]}"#;
    assert!(Schema::parse(&doubling(60, long, "")).is_ok(), "a value of it takes its bytes");
    let why = refused(&doubling(60, long, r#","default":{}"#));
    assert!(why.contains("defaults take more than 1 MiB"), "{why}");

    // Two branches at each level, neither of which fits, which shows at the innermost alone.
    let mut types = vec![r#"{"type":"record","name":"P0","fields":[{"name":"x","type":"int"}]}"#.to_owned()];
    types.push(types[0].replace("P0", "Q0"));
    for level in 1..40 {
        let below = level - 1;
        for name in ["P", "Q"] {
            types.push(format!(
                r#"{{"type":"record","name":"{name}{level}","fields":[{{"name":"a","type":["P{below}","Q{below}"]}}]}}"#
            ));
        }
    }
    let default = (0..40).fold(r#"{"y":1}"#.to_owned(), |inner, _| format!(r#"{{"a":{inner}}}"#));
    let fields = types.iter().enumerate().map(|(at, of)| format!(r#"{{"name":"f{at}","type":{of}}}"#));
    let fields = fields.collect::<Vec<_>>().join(",");
    let json = format!(
        r#"{{"type":"record","name":"All","fields":[{fields},{{"name":"z","type":"P39","default":{default}}}]}}"#
    );
    let why = refused(&json);
    assert!(why.contains("its default does not fit"), "{why}");
}

#[test]
fn blocks_with_sizes_are_walked_like_those_without() {
    let schema = parse(r#"{"type":"map","values":"int"}"#);
    let mut bytes = Vec::new();
    put_long(&mut bytes, -1);
    put_long(&mut bytes, 999); // a lie
    put_bytes(&mut bytes, b"a");
    put_long(&mut bytes, 7);
    put_long(&mut bytes, 1);
    put_bytes(&mut bytes, b"b");
    put_long(&mut bytes, 8);
    bytes.push(0);
    assert_eq!(schema.skip(&bytes), Ok(bytes.len()));
}

#[test]
fn text_is_checked_by_validate_and_not_by_skip() {
    let schema = parse(r#""string""#);
    assert_eq!(schema.skip(&[2, 0xff]), Ok(2));
    assert_eq!(schema.validate(&[2, 0xff]).unwrap_err().what, "a string is not UTF-8");
}

proptest! {
    #[test]
    fn identity_and_length_are_those_of_apache_avro(seed in any::<u64>()) {
        let mut dice = Dice::new(seed);
        let ambiguous = dice.one_in(2);
        let made = reference::schema(&mut dice, ambiguous);
        let theirs = made.avro();
        let ours = parse(&made.json.to_string());
        prop_assert_eq!(ours.canonical(), theirs.canonical_form());
        prop_assert_eq!(&ours.fingerprint().to_le_bytes()[..], &theirs.fingerprint::<Rabin>().bytes[..]);
        for _ in 0..4 {
            let mut datum = apache_avro::to_avro_datum(&theirs, reference::value(&mut dice, &made)).unwrap();
            let length = datum.len();
            for _ in 0..length.min(50) {
                let cut = dice.below(length);
                prop_assert!(ours.skip(&datum[..cut]).is_err(), "a part is no whole");
            }
            datum.extend_from_slice(&[0xab; 3]);
            prop_assert_eq!(ours.skip(&datum), Ok(length));
            prop_assert_eq!(ours.validate(&datum), Ok(length));
        }
    }

    #[test]
    fn any_bytes_have_a_length_or_not_but_never_a_panic(seed in any::<u64>(), noise in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut dice = Dice::new(seed);
        let made = reference::schema(&mut dice, true);
        let schema = parse(&made.json.to_string());
        let mut datum = apache_avro::to_avro_datum(&made.avro(), reference::value(&mut dice, &made)).unwrap();
        for _ in 0..8 {
            if !datum.is_empty() {
                let at = dice.below(datum.len());
                datum[at] = dice.next() as u8;
            }
            for bytes in [&datum, &noise] {
                match (schema.skip(bytes), schema.validate(bytes)) {
                    (Ok(length), Ok(valid)) => prop_assert!(length == valid && length <= bytes.len()),
                    (Ok(_), Err(malformed)) => prop_assert_eq!(malformed.what, "a string is not UTF-8"),
                    (Err(malformed), Err(_)) => prop_assert!(malformed.at <= bytes.len()),
                    (Err(_), Ok(_)) => prop_assert!(false, "validate is the stricter one"),
                }
            }
        }
    }
}
