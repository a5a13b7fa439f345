use super::*;
use crate::blob::Store;
use crate::clock::Clock;
use crate::dead::found::{Found, Raw};
use crate::dead::held::Place as Where;
use crate::dead::letter::{Unhandled, of_change};
use crate::format::container::{Kind as Blob, Writer};
use crate::format::letter::Elsewhere;
use crate::kafka;
use crate::record::{Entry, Position, SourcePartition, Stamp, TopicId};
use crate::version::{Life, Shard, Version};
use crate::view::{About, Cache, DeltaFile, Hold, Identity, View};

/// The dataset's.
const OWN: &str = r#"{"type": "record", "name": "P", "fields": [{"name": "id", "type": "string"},
    {"name": "price", "type": "double"}, {"name": "stock", "type": ["null", "int"], "default": null}]}"#;

fn schema(text: &str) -> Arc<Schema> {
    Arc::new(Schema::dataset(text).unwrap())
}

fn rows(format: Format, own: &Arc<Schema>) -> Rows {
    let options = Options {
        kafka: kafka::Options::default(),
        dataset: "products".to_owned(),
        topics: vec!["products".to_owned()],
        key: KeyRule::Kafka,
        bound: Bound::of(1_000),
        format,
        registry: None,
        schema: own.clone(),
        letters: "products.dlq".to_owned(),
        store: Store::open("memory://").unwrap(),
        clock: Clock::manual(0),
    };
    Rows::new(&options, Schemas::new(None)).unwrap()
}

fn letter(value: Option<&[u8]>) -> Held {
    Held {
        source: Some(Where { topic: "products".to_owned(), partition: 0, offset: 7 }),
        key: Some(Bytes::from_static(b"P-1")),
        value: value.map(Bytes::copy_from_slice),
        stage: "TRANSFORMATION".to_owned(),
        headers: vec![("trace".to_owned(), None)],
        ..Held::default()
    }
}

/// What a program finds, and what becomes of what it writes; `None`: of what it finds.
fn through(
    rows: &mut Rows,
    mut held: Held,
    mended: Option<&str>,
) -> (Held, Form, Option<Bytes>, Option<String>) {
    let before = rows.read(&mut held).unwrap();
    let (form, found) = (held.form, held.value.clone());
    if let Some(mended) = mended {
        held.value = Some(Bytes::copy_from_slice(mended.as_bytes()));
    }
    let why = rows.write(&mut held, before).unwrap();
    (held, form, found, why)
}

fn datum(schema: &Arc<Schema>, text: &str) -> Bytes {
    let mut codec = json(schema).unwrap();
    Bytes::copy_from_slice(codec.decode(Some(b""), Some(text.as_bytes())).unwrap().value.unwrap())
}

/// The letter of a change that a webhook did not take, by way of its topic: of a reader with these fields.
fn refused(schema: &Arc<Schema>, row: &str, fields: Option<&[&str]>) -> Held {
    let source = SourcePartition { topic: "products".into(), topic_id: TopicId([3; 16]), partition: 0 };
    let identity =
        Identity { dataset: "products".into(), topic_id: TopicId([9; 16]), shard: Shard(0), shards: 1 };
    let life = Life { epoch: 1, writer: uuid::Uuid::nil() };
    let (version, before) = (Version(1), Version(0));
    let header = identity.header(Blob::Delta, version, before, life, schema, vec![source.clone()]);
    let mut writer = Writer::new(Vec::new(), &header).unwrap();
    let stamp = Stamp { timestamp: 8, source: 0, offset: 7 };
    writer.push(&Entry { key: b"P-1", stamp, value: Some(&datum(schema, row)) }).unwrap();
    let delta = DeltaFile::from_plain(writer.finish().unwrap().1, &identity, schema).unwrap();
    let positions = vec![Position { source, offset: 8 }];
    let about = About { version, life, positions, ..About::nothing(schema.clone()) };
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), u64::MAX).unwrap();
    let fields = fields.map(|fields| fields.iter().map(|field| (*field).to_owned()).collect());
    let hold = Arc::new(Hold::new(None, fields, Vec::new()));
    let empty = View::empty(identity, schema.clone()).hold(&hold, &cache).unwrap();
    let view = empty.apply(Arc::new(delta), about).unwrap();
    let change = view.changes_from(&empty).next().unwrap().unwrap();
    let unhandled = Unhandled { listener: "hook", stage: "webhook", why: "it answered 400", version };
    let letter = of_change(&change, &unhandled);
    let headers = letter.kafka_headers("products", 0, 9, &Elsewhere::Nothing);
    let raw = Raw {
        partition: 0,
        offset: 0,
        timestamp: 8,
        key: letter.key.as_deref(),
        value: letter.value.as_deref(),
    };
    Held::of(&Found::read(raw, headers.iter().map(|(name, value)| (&**name, value.as_deref()))))
}

#[test]
fn a_datum_is_shown_as_json_and_a_row_becomes_a_datum_of_the_topics_schema() {
    // Writers have another order, another type, and a field more.
    let writer = schema(
        r#"{"type": "record", "name": "P", "fields": [{"name": "note", "type": "string", "default": "none"},
            {"name": "price", "type": "float"}, {"name": "id", "type": "string"},
            {"name": "stock", "type": ["null", "int"], "default": null}]}"#,
    );
    let mut rows = rows(Format::avro(writer.clone()), &schema(OWN));
    let value = datum(&writer, r#"{"note": "seen", "price": 1.5, "id": "P-1", "stock": 3}"#);
    let mended = r#" {"id": "P-1", "price": 2.5, "stock": null}
"#;
    let (held, form, found, why) = through(&mut rows, letter(Some(&value)), Some(mended));
    assert_eq!((form, why), (Form::Row, None));
    assert_eq!(found.unwrap(), r#"{"note":"seen","price":1.5,"id":"P-1","stock":3}"#);
    assert_eq!(held.value.unwrap(), datum(&writer, r#"{"id": "P-1", "price": 2.5}"#), "defaults as in a PUT");
    assert_eq!((held.form, held.headers), (Form::Source, letter(None).headers));

    // What is no datum is given as it is, and is no row by itself; JSON, put there by mistake, is one.
    let cut = &value[..3];
    let (held, form, found, why) = through(&mut rows, letter(Some(cut)), None);
    assert_eq!((form, found.as_deref()), (Form::Unread, Some(cut)));
    assert!(why.unwrap().contains("JSON") && held.value.as_deref() == Some(cut), "it stays as it was");
    let text = r#"{"id": "P-1", "price": 2.5}"#;
    let (held, .., why) = through(&mut rows, letter(Some(text.as_bytes())), None);
    assert_eq!((why, held.value.unwrap()), (None, datum(&writer, text)));

    // Where the topic's schema has no default the dataset's counts.
    let strict = schema(&OWN.replace(r#", "default": null"#, ""));
    let mut others = super::tests::rows(Format::avro(strict.clone()), &schema(OWN));
    let (held, .., why) = through(&mut others, letter(Some(b"x")), Some(text));
    assert_eq!((why, held.value.unwrap()), (None, datum(&schema(OWN), text)));

    // What the topic has besides stays, whatever else is put in.
    let noted = schema(&OWN.replace(r#", "default": null"#, "").replace(
        r#"{"name": "price""#,
        r#"{"name": "note", "type": "string", "default": "none"}, {"name": "price""#,
    ));
    let mut others = super::tests::rows(Format::avro(noted.clone()), &schema(OWN));
    let text = r#"{"id": "P-1", "price": 2.5, "note": "seen"}"#;
    let (held, .., why) = through(&mut others, letter(Some(b"x")), Some(text));
    let whole = r#"{"id": "P-1", "note": "seen", "price": 2.5, "stock": null}"#;
    assert_eq!((why, held.value.unwrap()), (None, datum(&noted, whole)));

    // A float cannot hold it: it would be read with another price, and nobody would know.
    let (held, .., why) = through(&mut rows, letter(Some(&value)), Some(r#"{"id": "P-1", "price": 0.1}"#));
    assert!(why.as_ref().unwrap().contains("`price`"), "{why:?}");
    assert_eq!(held.value.unwrap(), value);
    for (mended, said) in [
        (r#"{"id": "P-1", "price": "2.5"}"#, "price"),
        (r#"{"id": "P-1"}"#, "price"),
        ("{", "JSON"),
        ("", "`null` deletes"),
        ("  \n", "`null` deletes"),
    ] {
        let (held, .., why) = through(&mut rows, letter(Some(&value)), Some(mended));
        assert!(why.as_ref().unwrap().contains(said), "{mended}: {why:?}");
        assert_eq!(held.value.unwrap(), value);
    }
}

#[test]
fn null_deletes_and_what_has_no_value_stays_so() {
    let mut rows = rows(Format::json(ExtraFields::Ignore), &schema(OWN));
    let (held, .., why) = through(&mut rows, letter(Some(b"{")), Some("null\n"));
    assert_eq!((held.value, why), (None, None));
    let (held, form, found, why) = through(&mut rows, letter(None), None);
    assert_eq!((held.value, form, found, why), (None, Form::Source, None, None));
    // Nobody knows of which key.
    let keyless = Held { key: None, ..letter(Some(b"{")) };
    let (held, .., why) = through(&mut rows, keyless, Some("null"));
    assert!(why.unwrap().contains("no Kafka key") && held.value.unwrap() == "{");
}

#[test]
fn of_raw_bytes_all_are_rows() {
    let mut rows = rows(Format::raw(), &Arc::new(Schema::raw()));
    for value in ["null", "", " a\n"] {
        let (held, form, _, why) = through(&mut rows, letter(Some(b"x")), Some(value));
        assert_eq!((held.value.unwrap(), form, why), (Bytes::from(value), Form::Row, None));
    }
}

#[test]
fn a_change_of_a_database_shows_its_row_and_gets_another() {
    let mut rows = rows(Format::json(ExtraFields::Ignore).within(Envelope::Debezium), &schema(OWN));
    let row = r#"{"id": "P-1", "price": 2.5}"#;
    let change = r#"{"op": "c", "before": {"x": 1}, "after": {"id": "P-1", "price": "2.5"}, "source": {"lsn": 18446744073709551616}}"#;
    let with_schema = format!(r#"{{"schema": {{"type": "struct"}}, "payload": {change}}}"#);
    for value in [change, &with_schema] {
        let (held, form, found, why) = through(&mut rows, letter(Some(value.as_bytes())), Some(row));
        assert_eq!((form, why), (Form::Row, None));
        assert_eq!(found.unwrap(), r#"{"id": "P-1", "price": "2.5"}"#);
        let expected =
            format!(r#"{{"after":{row},"before":null,"op":"c","source":{{"lsn": 18446744073709551616}}}}"#);
        let expected = match value == with_schema {
            true => format!(r#"{{"schema":{{"type": "struct"}},"payload":{expected}}}"#),
            false => expected,
        };
        assert_eq!(held.value.unwrap(), expected, "number for number");
    }
    let (held, form, _, why) = through(&mut rows, letter(Some(b"{")), Some(row));
    assert_eq!((form, why), (Form::Unread, None));
    assert_eq!(held.value.unwrap(), format!(r#"{{"after":{row},"before":null,"op":"u"}}"#));
    // A table that was emptied: whoever says which row it was has it deleted.
    let (held, form, _, why) = through(&mut rows, letter(Some(br#"{"op": "t"}"#)), Some("null"));
    assert_eq!((held.value, form, why), (None, Form::Unread, None));
}

#[test]
fn what_a_listener_did_not_handle_is_a_row_and_has_no_headers_of_its_record() {
    let mut rows = rows(Format::avro(schema(OWN)), &schema(OWN));
    let row = r#"{"id": "P-1", "price": 2.5, "stock": null}"#;
    let held = Held { stage: "webhook".to_owned(), ..letter(Some(row.as_bytes())) };
    let (held, form, found, why) = through(&mut rows, held, None);
    assert_eq!((form, found.unwrap(), why), (Form::Row, Bytes::from(row), None));
    assert_eq!((held.value.unwrap(), held.headers), (datum(&schema(OWN), row), Vec::new()));
}

#[test]
fn a_change_without_its_value_is_no_delete() {
    let held = |value: Option<&[u8]>| Held { stage: "listener".to_owned(), ..letter(value) };
    let mut rows = rows(Format::json(ExtraFields::Ignore), &schema(OWN));
    // Too large for the letters' topic, or gone, and a program that printed nothing of nothing.
    let (held_after, form, _, why) = through(&mut rows, held(None), None);
    assert!(form == Form::Unread && why.as_ref().unwrap().contains("no value"), "{form:?} {why:?}");
    assert_eq!(held_after.headers, Vec::new(), "what is ours stays here");
    let (held_after, .., why) = through(&mut rows, held(None), Some("null"));
    assert_eq!((held_after.value, held_after.headers, why), (None, Vec::new(), None), "somebody says so");
    // Of what there is nobody knows anything, so all has to be said.
    let (.., why) = through(&mut rows, held(None), Some(r#"{"id": "P-1", "price": 2.5}"#));
    assert!(why.as_ref().unwrap().contains("does not say `stock`"), "{why:?}");
    let whole = r#"{"id": "P-1", "price": 2.5, "stock": null}"#;
    let (held_after, .., why) = through(&mut rows, held(None), Some(whole));
    assert_eq!((held_after.value.unwrap(), why), (Bytes::from(whole), None));
}

#[test]
fn a_letter_of_a_part_of_the_fields_goes_back_as_the_whole_row_or_not_at_all() {
    let own = schema(
        r#"{"type": "record", "name": "P", "fields": [
            {"name": "id", "type": "string"}, {"name": "name", "type": "string"},
            {"name": "price", "type": "double", "default": 0},
            {"name": "stock", "type": ["null", "int"], "default": null}]}"#,
    );
    let stored = r#"{"id":"P-1","name":"y","price":24.5,"stock":3}"#;
    let marked = |held: &Held| held.headers.iter().find(|(name, _)| name == header::FIELDS).cloned();
    let part = refused(&own, stored, Some(&["name", "id"]));
    assert_eq!(marked(&part).unwrap().1.unwrap(), "id,name");
    // As earlier releases wrote it.
    let mut unmarked = part.clone();
    unmarked.headers.retain(|(name, _)| name != header::FIELDS);
    let (cut, mended) = (r#"{"id":"P-1","name":"x"}"#, stored.replace('y', "x"));
    for (held, said) in [(part, "keeps the fields id, name alone"), (unmarked, "does not hold the whole row")]
    {
        for format in [Format::json(ExtraFields::Ignore), Format::avro(own.clone())] {
            let mut rows = rows(format.clone(), &own);
            let (after, form, found, why) = through(&mut rows, held.clone(), Some(cut));
            assert_eq!((form, found.unwrap()), (Form::Row, Bytes::from(r#"{"id":"P-1","name":"y"}"#)));
            let why = why.unwrap();
            assert!(why.contains(said) && why.contains("does not say `price`, `stock`"), "{why}");
            assert_eq!(after.value, held.value, "it stays as it was");
            let (after, .., why) = through(&mut rows, held.clone(), Some(&mended));
            let expected = match format.values {
                Values::Avro { .. } => datum(&own, &mended),
                _ => Bytes::from(mended.clone()),
            };
            assert_eq!((after.value.unwrap(), why), (expected, None));
            let (after, .., why) = through(&mut rows, held.clone(), Some("null"));
            assert_eq!((after.value, why), (None, None), "that says all");
        }
    }
    // A reader that has all of them, in whatever way: what somebody leaves out then is left out on purpose.
    for fields in [None, Some(&["stock", "price", "name", "id"][..])] {
        let held = refused(&own, stored, fields);
        assert_eq!((marked(&held), held.value.as_deref()), (None, Some(stored.as_bytes())));
        let (after, .., why) = through(&mut rows(Format::avro(own.clone()), &own), held, Some(cut));
        assert_eq!((after.value.unwrap(), why), (datum(&own, cut), None));
    }
}

/// A topic's schema, with a field that the dataset lacks, by itself and in a change.
fn with_note() -> [(Format, Arc<Schema>); 2] {
    let row = OWN.replace(
        "\"fields\": [",
        "\"fields\": [{\"name\": \"note\", \"type\": \"string\", \"default\": \"none\"},",
    );
    let change = format!(
        r#"{{"type": "record", "name": "Envelope", "fields": [
            {{"name": "before", "type": ["null", {row}], "default": null}},
            {{"name": "after", "type": ["null", "P"], "default": null}},
            {{"name": "ts_ms", "type": ["null", "long"], "default": null}},
            {{"name": "op", "type": "string"}}]}}"#
    );
    let (row, change) = (schema(&row), schema(&change));
    [(Format::avro(row.clone()), row), (Format::avro(change.clone()).within(Envelope::Debezium), change)]
}

#[test]
fn a_change_does_not_take_from_the_topic_what_the_dataset_lacks() {
    let row = r#"{"id":"P-1","price":2.5,"stock":null}"#;
    let noted = r#"{"id":"P-1","note":"seen","price":2.5,"stock":null}"#;
    for (format, writer) in with_note() {
        let mut rows = rows(format.clone(), &schema(OWN));
        let held = refused(&schema(OWN), row, None);
        let (after, .., why) = through(&mut rows, held.clone(), None);
        let why = why.unwrap();
        assert!(why.contains("has `note`, which the dataset's schema has not"), "{why}");
        assert_eq!(after.value.unwrap(), row);
        let (after, .., why) = through(&mut rows, held.clone(), Some(noted));
        let expected = match format.envelope {
            Envelope::Upsert => noted.to_owned(),
            Envelope::Debezium => format!(r#"{{"op": "u", "after": {noted}}}"#),
        };
        assert_eq!((after.value.unwrap(), why), (datum(&writer, &expected), None));
        // Which of the two it is to be nobody knows.
        let twice = noted.replace("\"price\"", "\"more\":1,\"more\":2,\"price\"");
        let (.., why) = through(&mut rows, held, Some(&twice));
        assert!(why.as_ref().unwrap().contains("there twice"), "{why:?}");
        // A record of the source's own says what it says.
        let (.., why) = through(&mut rows, letter(Some(b"x")), Some(row));
        assert_eq!(why, None);
    }
}

#[test]
fn a_datum_that_deletes_is_no_row_whatever_row_it_has() {
    let [_, (format, writer)] = with_note();
    for (op, form, goes) in [("d", Form::Unread, false), ("x", Form::Unread, false), ("r", Form::Row, true)] {
        let text = format!(r#"{{"op": "{op}", "after": {{"id": "P-1", "price": 2.5}}}}"#);
        let value = datum(&writer, &text);
        let mut rows = rows(format.clone(), &schema(OWN));
        let (after, is, _, why) = through(&mut rows, letter(Some(&value)), None);
        assert_eq!((is, why.is_none(), after.value.unwrap()), (form, goes, value.clone()), "{op}: {why:?}");
        // Whoever makes a row of it says that there is one.
        let row = r#"{"id": "P-1", "price": 3.5}"#;
        let (after, .., why) = through(&mut rows, letter(Some(&value)), Some(row));
        let expected =
            text.replace("2.5", "3.5").replace(&format!("\"{op}\""), if goes { "\"r\"" } else { "\"u\"" });
        assert_eq!((after.value.unwrap(), why), (datum(&writer, &expected), None), "{op}");
    }
}

#[test]
fn a_change_has_the_datasets_key_and_is_left_where_kafkas_are_written_otherwise() {
    let row = r#"{"id": "P-1", "price": 2.5, "stock": null}"#;
    for (keys, goes) in [(KeyFormat::Raw, true), (KeyFormat::Text, true), (KeyFormat::Json, false)] {
        let mut rows = rows(Format::json(ExtraFields::Ignore).with_keys(keys), &schema(OWN));
        let key = Some(Bytes::from_static(br#""P-1""#));
        for mended in [row, "null"] {
            let held = Held { stage: "webhook".to_owned(), key: key.clone(), ..letter(Some(b"{}")) };
            let (.., why) = through(&mut rows, held, Some(mended));
            assert_eq!(why.is_none(), goes, "{why:?}");
            assert!(why.is_none_or(|why| why.contains("its key is the dataset's")));
        }
        let (.., why) = through(&mut rows, Held { key, ..letter(Some(b"{")) }, Some(row));
        assert_eq!(why, None, "a record's own key is as it is there");
    }
}

#[test]
fn an_id_that_nobody_checks_stays() {
    let mut rows = rows(Format::json(ExtraFields::Ignore), &schema(OWN));
    let framed = |text: &str| [&[0, 0, 0, 0, 5], text.as_bytes()].concat();
    let row = r#"{"id": "P-1", "price": 2.5}"#;
    let bad = r#"{"id": "P-1", "price": "2.5"}"#;
    let id = (VALUE_HEADER.to_owned(), Some(Bytes::from_static(&[0, 0, 0, 0, 7])));
    for headers in [vec![], vec![id]] {
        let held = Held { headers: headers.clone(), ..letter(Some(&framed(bad))) };
        let (held, form, found, why) = through(&mut rows, held, Some(row));
        assert_eq!((form, found.unwrap(), why), (Form::Row, Bytes::from(bad), None));
        assert_eq!((held.value.unwrap(), held.headers), (Bytes::from(framed(row)), headers));
    }
    // Unread, it is given with its id, which the program may leave there.
    let again = String::from_utf8(framed(row)).unwrap();
    for mended in [row, &again] {
        let (held, form, _, why) = through(&mut rows, letter(Some(&framed("{"))), Some(mended));
        assert_eq!((form, why, held.value.unwrap()), (Form::Unread, None, Bytes::from(framed(row))));
    }
}

#[test]
fn what_says_no_row_is_none_unless_somebody_makes_it_one() {
    let defaults = schema(
        r#"{"type": "record", "name": "P", "fields": [{"name": "id", "type": "string", "default": ""}]}"#,
    );
    let upsert = Format::json(ExtraFields::Ignore);
    let changes = || upsert.clone().within(Envelope::Debezium);
    let avro = Format::avro(defaults.clone());
    let payload = r#"{"schema": null, "payload": {"op": "t"}}"#;
    for (format, value) in [
        (upsert.clone(), "null"),
        (upsert.clone(), " null\n"),
        (upsert.clone(), "\0\0\0\0\u{5}null"),
        (avro.clone(), "null"),
        (avro.clone(), r#"{"ts_ms": 1}"#),
        (avro.clone(), r#"{"id": "P-1", "ts_ms": 1}"#),
        (avro, " {} "),
        (changes(), "null"),
        (changes(), r#"{"op": "d", "before": {"id": "P-1"}, "after": null}"#),
        (changes(), "\0\0\0\0\u{5}{\"op\": \"t\"}"),
        (changes(), payload),
        (changes(), r#"{"op": "d", "after": {"id": "P-1"}}"#),
        (changes(), r#"{"op": "x", "after": {"id": "P-1"}}"#),
        (changes(), r#"{"payload": {"op": "d", "after": {"id": "P-1"}}}"#),
        (changes(), r#"{"op": "d", "op": "c", "after": {"id": "P-1"}}"#),
        (changes(), r#"{"ts_ms": 1}"#),
        (changes(), "{}"),
        (Format::registered(Kind::Avro).within(Envelope::Debezium), r#"{"op": "d", "after": null}"#),
    ] {
        let mut rows = rows(format, &defaults);
        let (held, form, _, why) = through(&mut rows, letter(Some(value.as_bytes())), None);
        assert!(form == Form::Unread && why.as_ref().unwrap().contains("says no row"), "{value}: {why:?}");
        assert_eq!(held.value.unwrap(), value, "it stays as it was");
        if value.trim() != "null" {
            let (held, .., why) = through(&mut rows, letter(Some(value.as_bytes())), Some("null"));
            assert_eq!((held.value, why), (None, None), "{value}");
        }
        // A program for rows that writes the same in its own way, and one that puts something beside it.
        let plain = value.trim_start_matches("\0\0\0\0\u{5}");
        if let Ok(Value::Object(mut object)) = serde_json::from_str(plain) {
            let same = Value::from(object.clone()).to_string();
            let (.., why) = through(&mut rows, letter(Some(value.as_bytes())), Some(&same));
            assert!(why.as_ref().unwrap().contains("says no row"), "{value}: {why:?}");
            object.insert("id".to_owned(), "x".into());
            let more = Value::from(object).to_string();
            let (.., why) = through(&mut rows, letter(Some(value.as_bytes())), Some(&more));
            assert_eq!(why.is_some(), more.contains("\"op\""), "{more}: {why:?}");
        }
    }
    // JSON that says what the dataset has is a row, wherever it was put.
    for format in [Format::avro(defaults.clone()), changes()] {
        let text = r#"{"id": "P-1"}"#;
        let (held, form, _, why) = through(&mut rows(format, &defaults), letter(Some(text.as_bytes())), None);
        assert_eq!((form, why, held.value.is_some()), (Form::Unread, None, true));
    }
}

#[test]
fn what_is_only_read_says_so() {
    for format in [Format::registered(Kind::Protobuf), Format::registered(Kind::Avro)] {
        let protobuf = matches!(format.values, Values::Registered(Kind::Protobuf));
        let mut rows = rows(format, &schema(OWN));
        let (.., why) = through(&mut rows, letter(Some(b"x")), Some(r#"{"id": "P-1", "price": 2.5}"#));
        let said = if protobuf { "only read here" } else { "subject products-value" };
        assert!(why.as_ref().unwrap().contains(said), "{why:?}");
    }
}
