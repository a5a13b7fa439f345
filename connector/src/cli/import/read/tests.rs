//! Files of every kind, into a dataset that nobody reaches: reading and checking need no Kafka.

use std::io::Cursor;

use super::*;
use crate::blob::Store;
use crate::producer::ProducerBuilder;
use crate::producer::write::watch::Watchers;
use crate::{ErrorKind, Producer};

const SCHEMA: &str = r#"{"type":"record","name":"Product","fields":[
    {"name":"id","type":"string"},{"name":"price","type":["null","double"],"default":null}]}"#;

fn reader(build: impl FnOnce(ProducerBuilder) -> ProducerBuilder) -> Reader {
    let builder = Producer::builder("products").source("products").store(Store::open("memory://").unwrap());
    let writer = Writer::new(&build(builder).options().unwrap(), Watchers::default()).unwrap();
    let makes_keys = writer.makes_keys();
    Reader { writer, format: None, keyed: false, makes_keys, topic: None, skip_bad: true, chunk: 2 }
}

fn json() -> Reader {
    reader(|builder| builder.schema(SCHEMA))
}

/// Keys and values of what fits, what does not, and how it ended.
type Seen = (Vec<(String, Option<String>)>, Vec<String>, Result<()>);

fn read(reader: Reader, file: impl Into<Vec<u8>>) -> Seen {
    let (out, mut chunks) = mpsc::channel(1_000);
    let ended = reader.run(Box::new(Cursor::new(file.into())), &out);
    drop(out);
    let (mut fits, mut bad, mut through) = (Vec::new(), Vec::new(), 0);
    while let Ok(chunk) = chunks.try_recv() {
        assert!(chunk.records.len() <= 2, "no more than a chunk holds");
        assert!(chunk.through >= through);
        through = chunk.through;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        fits.extend(chunk.records.iter().map(|ready| (text(ready.key()), ready.value().map(text))));
        bad.extend(chunk.bad.iter().map(ToString::to_string));
    }
    (fits, bad, ended)
}

fn upsert(key: &str, value: &str) -> (String, Option<String>) {
    (key.to_owned(), Some(value.to_owned()))
}

#[test]
fn lines_are_entries_as_scan_prints_them() {
    let file = "{\"key\":\"a\",\"value\":{\"id\":\"1\"}}\r\n\n  \n{ \"value\" : { \"id\" : \"2\" }, \"key\" : {\"base64\":\"Yg==\"} }\n\
                {\"key\":\"c\",\"value\":null}\n{\"key\":\"é\\n\",\"value\":{\"id\":\"3\"}}";
    let (fits, bad, ended) = read(json(), file);
    ended.unwrap();
    assert_eq!(bad, [""; 0]);
    assert_eq!(
        fits,
        [
            upsert("a", r#"{"id":"1"}"#),
            upsert("b", r#"{ "id" : "2" }"#),
            ("c".to_owned(), None),
            upsert("é\n", r#"{"id":"3"}"#)
        ]
    );
}

#[test]
fn what_does_not_fit_is_named_by_its_line() {
    let file = [
        r#"{"key":1,"value":{"id":"1"}}"#,
        r#"{"key":{"base64":"?"},"value":{"id":"1"}}"#,
        r#"{"key":"a","value":{"id":1}}"#,
        r#"{"key":"a","value":{"id":"1"},"more":1}"#,
        r#"{"id":"1"}"#,
        r#"{"key":"a","value":{"id":"1"}"#,
        r#"{"key":"ok","value":{"id":"1"}}"#,
        "[]",
    ];
    let (fits, bad, ended) = read(json(), file.join("\n"));
    ended.unwrap();
    assert_eq!(fits, [upsert("ok", r#"{"id":"1"}"#)]);
    let lines: Vec<_> = bad.iter().map(|bad| bad.split(':').next().unwrap()).collect();
    assert_eq!(lines, ["line 1", "line 2", "line 3", "line 4", "line 5", "line 6", "line 8"], "{bad:#?}");
    for (at, say) in
        [(0, "its key"), (1, "base64"), (3, "neither"), (4, "--key"), (5, "not JSON"), (6, "neither")]
    {
        assert!(bad[at].contains(say), "{}", bad[at]);
    }

    // Without skipping, the first ends it, behind what fits.
    let file =
        "{\"key\":\"a\",\"value\":{\"id\":\"1\"}}\nnonsense\n{\"key\":\"b\",\"value\":{\"id\":\"2\"}}\n";
    let (fits, bad, ended) = read(Reader { skip_bad: false, ..json() }, file);
    ended.unwrap();
    assert_eq!((fits.len(), bad.len()), (1, 1));
}

#[test]
fn records_that_make_their_keys_may_come_plain_or_as_entries() {
    let keyed = || reader(|builder| builder.schema(SCHEMA).key_fields(["id"]));
    let file = "{\"id\":\"1\"}\n{\"key\":\"2\",\"value\":{\"id\":\"2\"}}\n{\"key\":\"3\",\"value\":{\"id\":\"4\"}}\n{\"price\":1}\n";
    let (fits, bad, ended) = read(keyed(), file);
    ended.unwrap();
    assert_eq!(fits, [upsert("1", r#"{"id":"1"}"#), upsert("2", r#"{"id":"2"}"#)]);
    assert!(bad[0].starts_with("line 3: ") && bad[1].starts_with("line 4: "), "{bad:?}");

    // Where --key says so, a line is a record whatever it looks like.
    let schema = r#"{"type":"record","name":"Pair","fields":[{"name":"key","type":"string"},{"name":"value","type":"int"}]}"#;
    let pairs = reader(|builder| builder.schema(schema));
    pairs.writer.keyed_by(&["key".to_owned()]).unwrap();
    let pair = r#"{"key":"k","value":7}"#;
    let (fits, _, ended) = read(Reader { keyed: true, makes_keys: true, ..pairs }, pair);
    ended.unwrap();
    assert_eq!(fits, [upsert("k", pair)]);
}

#[test]
fn bytes_are_base64_in_lines() {
    let raw = reader(ProducerBuilder::raw);
    let (fits, bad, ended) =
        read(raw, "{\"key\":\"a\",\"value\":\"aGk=\"}\n{\"key\":\"b\",\"value\":\"?\"}\n");
    ended.unwrap();
    assert_eq!(fits, [upsert("a", "hi")]);
    assert!(bad[0].starts_with("line 2: "), "{bad:?}");
}

#[test]
fn what_is_no_file_of_its_kind_is_refused() {
    let (_, _, ended) = read(Reader { format: Some(FileFormat::Avro), ..json() }, "{\"id\":\"1\"}\n");
    let error = ended.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.chain().contains("not an Avro object container"), "{}", error.chain());
    let (fits, _, ended) = read(json(), "");
    ended.unwrap();
    assert_eq!(fits, []);
    let mut long = b"{\"key\":\"a\",\"value\":{\"id\":\"1\"}}\n".to_vec();
    long.resize(long.len() + MOST_LINE as usize, b' ');
    let (fits, _, ended) = read(json(), long);
    assert_eq!(fits.len(), 1, "what came before");
    assert!(ended.unwrap_err().chain().contains("line 2: "));
}
