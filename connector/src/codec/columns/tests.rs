//! Columns against what the specification of Parquet's levels says, counted by hand.

use super::*;

fn columns(schema: &str) -> Result<Columns, Unfit> {
    Columns::new(&Schema::parse(schema).unwrap())
}

fn rows(schema: &str, datums: &[&[u8]]) -> Columns {
    let mut columns = columns(schema).unwrap();
    for datum in datums {
        columns.row(datum).unwrap();
    }
    assert_eq!(columns.rows(), datums.len());
    columns
}

/// Path, definition levels, repetition levels.
fn levels(columns: &Columns) -> Vec<(&str, &[i16], &[i16])> {
    let levels = columns
        .columns
        .iter()
        .map(|column| (column.path.as_str(), column.definitions.as_slice(), column.repetitions.as_slice()));
    levels.collect()
}

fn texts(column: &Column) -> Vec<&[u8]> {
    let Values::Bytes(bytes, ends) = &column.values else { panic!("{column:?}") };
    let begins = std::iter::once(&0).chain(ends);
    begins.zip(ends).map(|(begin, end)| &bytes[*begin..*end]).collect()
}

#[test]
fn null_empty_and_there_are_three_levels() {
    let schema = r#"{"type":"record","name":"R","fields":[
        {"name":"tags","type":["null",{"type":"array","items":"string"}]}]}"#;
    // null; []; ["a","bc"] in one block; ["d","e"] in two, the second with its size.
    let datums: [&[u8]; 4] =
        [&[0], &[2, 0], &[2, 4, 2, b'a', 4, b'b', b'c', 0], &[2, 2, 2, b'd', 1, 4, 2, b'e', 0]];
    let columns = rows(schema, &datums);
    assert_eq!(levels(&columns), [("tags.element", &[0i16, 1, 2, 2, 2, 2][..], &[0i16, 0, 0, 1, 0, 1][..])]);
    assert_eq!(texts(&columns.columns[0]), [&b"a"[..], b"bc", b"d", b"e"]);
}

#[test]
fn lists_in_lists_say_which_of_them_goes_on() {
    let schema = r#"{"type":"array","items":{"type":"array","items":"int"}}"#;
    // [[1,2],[],[3]]; []
    let columns = rows(schema, &[&[6, 4, 2, 4, 0, 0, 2, 6, 0, 0], &[0]]);
    assert_eq!(
        levels(&columns),
        [("value.element.element", &[2i16, 2, 1, 2, 0][..], &[0i16, 2, 1, 1, 0][..])]
    );
}

#[test]
fn a_union_of_several_is_one_member_each_or_none() {
    let schema = r#"{"type":"record","name":"R","fields":[
        {"name":"u","type":["int","null","string"]},{"name":"v","type":["int","string"]},
        {"name":"w","type":["string"]},{"name":"n","type":"null"}]}"#;
    let columns =
        rows(schema, &[&[0, 2, 0, 4, 0, 2, b'w'], &[2, 2, 2, b'b', 0, 0], &[4, 2, b'c', 0, 6, 0, 0]]);
    assert_eq!(
        levels(&columns),
        [
            ("u.member0", &[2i16, 0, 1][..], &[0i16; 3][..]),
            ("u.member1", &[1i16, 0, 2][..], &[0i16; 3][..]),
            ("v.member0", &[1i16, 0, 1][..], &[0i16; 3][..]),
            ("v.member1", &[0i16, 1, 0][..], &[0i16; 3][..]),
            ("w", &[0i16; 3][..], &[0i16; 3][..]),
            ("n", &[0i16; 3][..], &[0i16; 3][..]),
        ]
    );
    let optional: Vec<bool> = columns.fields.iter().map(|field| field.optional).collect();
    assert_eq!(optional, [true, false, false, true]);
}

#[test]
fn decimals_have_the_width_of_their_digits() {
    let schema = r#"{"type":"record","name":"R","fields":[
        {"name":"a","type":{"type":"bytes","logicalType":"decimal","precision":4,"scale":2}},
        {"name":"b","type":{"type":"fixed","name":"F","size":4,"logicalType":"decimal","precision":2}}]}"#;
    let columns = rows(
        schema,
        &[
            &[4, 0x04, 0xd2, 0, 0, 0, 99],
            &[2, 0xff, 0xff, 0xff, 0xff, 0x9d],
            &[0, 0, 0, 0, 0],
            &[8, 0, 0, 0x7f, 0xff, 0, 0, 0, 1],
        ],
    );
    let wide = [&[0x04, 0xd2][..], &[0xff, 0xff], &[0, 0], &[0x7f, 0xff]];
    assert_eq!(texts(&columns.columns[0]), wide);
    assert_eq!(texts(&columns.columns[1]), [&[99u8][..], &[0x9d], &[0], &[1]]);
    let refused = |datum: &[u8]| self::columns(schema).unwrap().row(datum).unwrap_err().to_string();
    assert!(refused(&[6, 0x00, 0x80, 0x00, 0, 0, 0, 1]).starts_with("a: "), "it needs three bytes");
    assert!(refused(&[2, 1, 0, 0, 1, 0]).starts_with("b: "));
    for (digits, width) in [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (9, 4), (18, 8), (38, 16), (76, 32)] {
        let schema = format!(r#"{{"type":"bytes","logicalType":"decimal","precision":{digits}}}"#);
        let kind = self::columns(&schema).unwrap().columns[0].kind;
        assert!(matches!(kind, Kind::Decimal(_, have) if have == width), "{digits}: {kind:?}");
    }
    let long = self::columns(r#"{"type":"bytes","logicalType":"decimal","precision":77}"#).unwrap();
    assert_eq!(long.columns[0].kind, Kind::Bytes, "no reader takes so many digits");
}

#[test]
fn logical_types_that_do_not_fit_their_type_mean_nothing() {
    let kind = |schema: &str| columns(schema).unwrap().columns[0].kind;
    assert_eq!(kind(r#"{"type":"int","logicalType":"date"}"#), Kind::Logical(Logical::Date));
    assert_eq!(kind(r#"{"type":"long","logicalType":"date"}"#), Kind::Long);
    assert_eq!(kind(r#"{"type":"string","logicalType":"uuid"}"#), Kind::Logical(Logical::Uuid));
    assert_eq!(kind(r#"{"type":"bytes","logicalType":"uuid"}"#), Kind::Bytes);
    let fixed = |size: u32, logical: &str| {
        kind(&format!(r#"{{"type":"fixed","name":"F","size":{size},"logicalType":"{logical}"}}"#))
    };
    assert_eq!(fixed(16, "uuid"), Kind::Logical(Logical::Uuid));
    assert_eq!(fixed(12, "duration"), Kind::Logical(Logical::Duration));
    assert_eq!(fixed(13, "duration"), Kind::Fixed(13));
    assert_eq!(fixed(0, "duration"), Kind::Bytes);
    let mut uuids = columns(r#"{"type":"string","logicalType":"uuid"}"#).unwrap();
    let text = b"123E4567-e89b-12d3-a456-426614174000";
    let mut datum = vec![72];
    datum.extend_from_slice(text);
    uuids.row(&datum).unwrap();
    assert_eq!(texts(&uuids.columns[0])[0][..4], [0x12, 0x3e, 0x45, 0x67]);
    let refused = uuids.row(&[4, b'n', b'o']).unwrap_err();
    assert!(
        matches!(refused, Refused::Value { .. }) && refused.to_string().starts_with("value: "),
        "{refused}"
    );
}

#[test]
fn what_parquet_cannot_say_is_refused_by_name() {
    let itself = r#"{"type":"record","name":"N","fields":[
        {"name":"id","type":"int"},{"name":"next","type":["null",{"type":"array","items":"N"}]}]}"#;
    let unfit = columns(itself).unwrap_err();
    assert_eq!(unfit.path, "next.element");
    assert!(unfit.problem.contains("holds itself"));
    let empty = r#"{"type":"record","name":"R","fields":[
        {"name":"a","type":"int"},{"name":"b","type":{"type":"record","name":"E","fields":[]}}]}"#;
    assert_eq!(columns(empty).unwrap_err().path, "b");
    // The same type twice is two sets of columns; doubled thirty times it is none.
    let mut kind = r#"{"type":"record","name":"T0","fields":[{"name":"x","type":"int"}]}"#.to_owned();
    for n in 1..30 {
        kind = format!(
            r#"{{"type":"record","name":"T{n}","fields":[{{"name":"a","type":{kind}}},{{"name":"b","type":"T{}"}}]}}"#,
            n - 1
        );
    }
    assert!(columns(&kind).unwrap_err().problem.contains("10,000"));
}

#[test]
fn bytes_that_are_none_are_refused_and_bound_what_they_take() {
    let schema = r#"{"type":"record","name":"R","fields":[
        {"name":"a","type":{"type":"map","values":["null","double"]}},
        {"name":"n","type":{"type":"array","items":"null"}},
        {"name":"e","type":{"type":"enum","name":"E","symbols":["A","B"]}}]}"#;
    let mut datum = vec![4, 2, b'x', 2];
    datum.extend_from_slice(&1.5f64.to_le_bytes());
    datum.extend_from_slice(&[2, b'y', 0, 0, 4, 0, 2]);
    let whole = rows(schema, &[&datum]);
    assert_eq!(
        levels(&whole),
        [
            ("a.key", &[1i16, 1][..], &[0i16, 1][..]),
            ("a.value", &[2i16, 1][..], &[0i16, 1][..]),
            ("n.element", &[1i16, 1][..], &[0i16, 1][..]),
            ("e", &[0i16][..], &[0i16][..]),
        ]
    );
    assert_eq!(texts(&whole.columns[3]), [b"B"]);
    for length in 0..datum.len() {
        assert!(columns(schema).unwrap().row(&datum[..length]).is_err(), "{length} bytes of it");
    }
    let refused = |datum: &[u8]| columns(schema).unwrap().row(datum).unwrap_err().to_string();
    datum.push(0);
    assert!(matches!(columns(schema).unwrap().row(&datum), Err(Refused::Malformed(_))), "bytes behind it");
    assert!(!refused(&[0, 0, 4]).is_empty(), "no such symbol");
    // A billion nulls in five bytes.
    let hostile = [0, 0x80, 0xa8, 0xd6, 0xb9, 0x07, 0, 2];
    assert!(refused(&hostile).contains("no datum"));
}
