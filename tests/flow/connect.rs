//! Letters of a real Kafka Connect worker and ours, of the same record, beside each other; its letter replayed by us; and what
//! an operator reads by kcat of what we write.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use stillwell_tests::campaign::announced::Told;
use stillwell_tests::connect::{Connect, kcat};
use stillwell_tests::{Message, Record, Topic, bootstrap, unique, wait_until};

use crate::instance::Instance;
use crate::line::SCHEMA;
use crate::setting::Setting;

/// A JVM on a busy machine.
const LONG: Duration = Duration::from_secs(120);

const CONNECT: &str = "__connect.errors.";

/// Headers by kcat: `NAME=VALUE,NAME=VALUE`. Only of letters whose values hold neither.
fn headers(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The header's value, as Connect's own reader takes it: UTF-8 text.
fn header<'a>(letter: &'a Message, name: &str) -> &'a str {
    letter.header(&format!("{CONNECT}{name}")).unwrap_or_else(|| panic!("{name} of {letter:?}"))
}

#[test]
fn a_letter_of_connect_and_one_of_ours_say_the_same_and_both_come_back() {
    let mut setting = Setting::new("connected", 2, SCHEMA);
    let trace = vec![("trace".to_owned(), Some(vec![0xff, 0])), ("trace".to_owned(), None)];
    let bad = Record {
        partition: Some(1),
        headers: trace.clone(),
        timestamp: Some(stillwell::clock::Clock::system().wall_ms() - 60_000),
        ..Record::upsert("bad", r#"{"id": "bad", "price": 2.5, "stock": null"#)
    };
    let good = setting.upsert("good", json!({ "id": "good", "price": 1.5, "stock": null }));
    // Not the first of its partition, so that its offset tells something.
    let before = setting.upsert("before", json!({ "id": "before", "price": 1.5, "stock": 2 }));
    setting.topic.produce([Record { partition: Some(1), ..before }, bad.clone(), good]);
    let foreign = setting.topic.beside(&unique("connect.letters"));
    let own = format!("{}.dlq", setting.dataset());
    let worker = Connect::sink(bootstrap(), setting.topic.name(), foreign.name(), &own);
    let instance = Instance::new(&setting, "one");
    let process = instance.started();
    let ours = Topic::named(&own);
    let one = |letters: &Topic, who: &str| {
        letters.read_until(&format!("{who} has written a letter"), LONG, |read| match read {
            [letter] => Ok(letter.clone()),
            other => Err(format!("{} letters; {}", other.len(), worker.log())),
        })
    };
    let (ours, theirs) = (one(&ours, "Stillwell"), one(&foreign, "Connect"));

    // What Connect's letters hold, ours hold, in the same form; but for its stack trace, which may be of any size.
    for letter in [&ours, &theirs] {
        assert_eq!((&letter.key, &letter.value), (&bad.key, &bad.value), "byte for byte");
        assert_eq!(letter.timestamp, bad.timestamp);
        assert_eq!(letter.headers[..2], trace[..], "the record's own come first");
        assert_eq!(header(letter, "topic"), setting.topic.name());
        assert_eq!((header(letter, "partition"), header(letter, "offset")), ("1", "1"));
        assert_eq!(header(letter, "task.id"), "0");
        assert_eq!(header(letter, "stage"), "VALUE_CONVERTER");
        for name in ["connector.name", "class.name", "exception.class.name", "exception.message"] {
            assert!(!header(letter, name).is_empty());
        }
    }
    let names = |letter: &Message| -> Vec<String> {
        let names = letter.headers.iter().map(|(name, _)| name.clone());
        names.filter(|name| name.starts_with(CONNECT) && !name.ends_with("stacktrace")).collect()
    };
    assert_eq!(names(&ours), names(&theirs), "the same names in the same order");

    shown_by_connect(&worker, &ours);

    // An operator's eye.
    let format = "%k\t%p/%o\t%h\n";
    let read = kcat(bootstrap(), &format!("{}.dlq", setting.dataset()), format);
    let read = String::from_utf8_lossy(&read).into_owned();
    let line = read.lines().next().expect("a letter");
    let told = headers(line.rsplit('\t').next().unwrap_or_default());
    assert!(line.starts_with("bad\t0/0\t"), "{line}");
    assert_eq!(told.get("__connect.errors.topic").map(String::as_str), Some(setting.topic.name()), "{line}");
    assert_eq!(told.get("__connect.errors.offset").map(String::as_str), Some("1"), "{line}");
    assert_eq!(told.get("stillwell.replays").map(String::as_str), Some("0"), "{line}");

    // Connect's letter comes back by us.
    let topic = ["--topic", foreign.name()];
    let listed = instance.run(&["dlq", "list"], &[topic[0], topic[1], "--output", "json"]).expect_code(0);
    let listed: Vec<Value> = serde_json::from_str(&listed.stdout).expect("a list");
    assert_eq!((listed.len(), &listed[0]["written_by"]), (1, &json!("connect")), "{listed:?}");
    let mended = instance.run(&["dlq", "replay"], &[topic[0], topic[1], "--fix", "cat; echo '}'"]);
    let mended = mended.expect_code(0);
    assert!(mended.stdout.contains("1 letter selected: 1 replayed"), "{}", mended.stdout);
    wait_until("what Connect could not read is in the dataset", LONG, || {
        match instance.get(&format!("/v1/datasets/{}/records/bad", setting.dataset())) {
            Ok((200, body)) if body.contains("2.5") => Ok(()),
            Ok((status, body)) => Err(format!("{status}: {body}")),
            Err(error) => Err(error.to_string()),
        }
    });
    let again = setting.topic.read().into_iter().rfind(|message| message.key == bad.key).expect("it is back");
    assert_eq!((again.partition, again.timestamp), (1, bad.timestamp), "where and when it was");
    assert_eq!(again.headers[..2], trace[..]);
    let ours: Vec<_> = again.headers[2..].iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(ours, ["stillwell.origin", "stillwell.replays"], "Connect's are gone: {again:?}");
    let origin = format!("{}/1/1@{}", setting.topic.name(), bad.timestamp.unwrap_or(-1));
    assert_eq!(again.header("stillwell.origin"), Some(&*origin));
    process.stop(LONG).expect_code(0);
    announcements_are_read(&setting);
}

/// Our letter as a Connect worker reads it: by its reporter's own names, all of them, and its own converter of headers.
fn shown_by_connect(worker: &Connect, ours: &Message) {
    let line = wait_until("Connect has read our letter", LONG, || {
        let read = worker.letters();
        match read.split_once('\n') {
            Some((line, "")) => Ok(line.to_owned()),
            _ => Err(format!("{read:?}; {}", worker.log())),
        }
    });
    let told: BTreeMap<&str, &str> =
        line.split('\t').map(|told| told.split_once('=').unwrap_or_else(|| panic!("{line}"))).collect();
    let text = |name: &str| format!("STRING:{}", header(ours, name));
    let mut expected: BTreeMap<&str, String> = [
        ("ERROR_HEADER_ORIG_TOPIC", "topic"),
        ("ERROR_HEADER_CONNECTOR_NAME", "connector.name"),
        ("ERROR_HEADER_STAGE", "stage"),
        ("ERROR_HEADER_EXECUTING_CLASS", "class.name"),
        ("ERROR_HEADER_EXCEPTION", "exception.class.name"),
        ("ERROR_HEADER_EXCEPTION_MESSAGE", "exception.message"),
    ]
    .map(|(constant, name)| (constant, text(name)))
    .into();
    // Numbers to Connect, of the smallest type that holds them.
    expected.insert("ERROR_HEADER_ORIG_PARTITION", "INT8:1".to_owned());
    expected.insert("ERROR_HEADER_ORIG_OFFSET", "INT8:1".to_owned());
    expected.insert("ERROR_HEADER_TASK_ID", "INT8:0".to_owned());
    // All that there are, save the stack trace, which may be of any size.
    let told: BTreeMap<&str, String> = told.into_iter().map(|(name, told)| (name, told.to_owned())).collect();
    assert_eq!(told, expected);
}

/// The announcements as kcat gives their bytes, by the published schemas and apache-avro.
fn announcements_are_read(setting: &Setting) {
    let topic = format!("{}.announcements", setting.dataset());
    let read = kcat(bootstrap(), &topic, "%o %S %s\n");
    let (mut rest, mut versions) = (&read[..], Vec::new());
    while !rest.is_empty() {
        let mut number = || {
            let end = rest.iter().position(|byte| *byte == b' ').expect("a number ends with a blank");
            let number = String::from_utf8_lossy(&rest[..end]).parse::<usize>().expect("a number");
            rest = &rest[end + 1..];
            number
        };
        let (offset, length) = (number(), number());
        let (value, behind) = rest.split_at(length);
        rest = &behind[1..];
        let message = Message {
            partition: 0,
            offset: offset as i64,
            timestamp: None,
            key: None,
            value: Some(value.to_vec()),
            headers: Vec::new(),
        };
        match Told::read(&message).unwrap_or_else(|why| panic!("at {offset}: {why}")) {
            Told::Announcement(announcement) => versions.push(announcement.version),
            Told::Epoch(_) => {}
        }
    }
    let gapless: Vec<i64> = (1..=versions.len() as i64).collect();
    assert_eq!(versions, gapless);
    assert!(versions.len() > 1, "{versions:?}");
}
