//! Dead letters on their way back: listed, mended, replayed, each once.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::{Value, json};
use stillwell::Producer;
use stillwell::blob::Store;
use stillwell::format::letter::{Elsewhere, Letter};
use stillwell::producer::Reliability;
use stillwell::record::SourcePartition;
use stillwell_tests::{Broker, Finished, Message, Record, Running, Topic, run, scratch, wait_until};

use crate::instance::Instance;
use crate::line::SCHEMA;
use crate::setting::Setting;

const LONG: Duration = Duration::from_secs(90);

/// A dataset with its letters, all written by the test: no producer runs.
pub(crate) struct Scene {
    setting: Setting,
    pub(crate) letters: Topic,
    pub(crate) instance: Instance,
}

impl Scene {
    pub(crate) fn new(name: &str, partitions: i32) -> Scene {
        let setting = Setting::new(name, partitions, SCHEMA);
        let letters = Topic::create_on(Broker::shared(), &format!("{}.dlq", setting.dataset()), 1, &[]);
        let instance = Instance::new(&setting, "operator");
        Scene { setting, letters, instance }
    }

    pub(crate) fn source(&self) -> &Topic {
        &self.setting.topic
    }

    /// The letter of a record, as the producer would write it.
    pub(crate) fn letter(&self, partition: i32, offset: i64, record: &Record) -> Letter {
        let bytes = |bytes: &Option<Vec<u8>>| bytes.clone().map(Into::into);
        let headers = record.headers.iter().map(|(name, value)| (name.clone(), bytes(value)));
        Letter {
            source: SourcePartition {
                topic: self.setting.dataset().into(),
                topic_id: Default::default(),
                partition,
            },
            offset,
            timestamp: record.timestamp.unwrap_or(0),
            stage: "VALUE_CONVERTER".to_owned(),
            class: "stillwell.codec.Syntax".to_owned(),
            message: "it ends too early".to_owned(),
            key: bytes(&record.key),
            value: bytes(&record.value),
            headers: headers.collect(),
        }
    }

    pub(crate) fn written(&self, letter: &Letter, failed_at: i64, elsewhere: &Elsewhere) -> Record {
        let vec = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
        let (key, value) = letter.kafka_record(elsewhere);
        let headers = letter.kafka_headers(self.setting.dataset(), 0, failed_at, elsewhere);
        Record {
            key: vec(key),
            value: vec(value),
            partition: Some(0),
            timestamp: Some(letter.timestamp),
            headers: headers.into_iter().map(|(name, value)| (name, vec(value.as_deref()))).collect(),
        }
    }

    /// Writes records into partition 0 of the source, and a letter of each.
    pub(crate) fn fail(&self, records: &[Record]) {
        let start = self.source().watermarks()[0].1;
        let placed = records.iter().map(|record| Record { partition: Some(0), ..record.clone() });
        self.source().produce(placed);
        let letters = (start..).zip(records).map(|(offset, record)| {
            let letter = self.letter(0, offset, record);
            self.written(&letter, 1_000 + offset, &Elsewhere::Nothing)
        });
        self.letters.produce(letters.collect::<Vec<_>>());
    }

    pub(crate) fn replay(&self, arguments: &[&str]) -> Finished {
        self.instance.run(&["dlq", "replay"], arguments)
    }

    /// Runs a replay to the exit code, and returns what it says in all.
    pub(crate) fn totals(&self, arguments: &[&str], code: i32) -> Value {
        let mut all = vec!["--output", "json"];
        all.extend(arguments);
        let done = self.replay(&all).expect_code(code);
        let last = done.stdout.lines().last().unwrap_or_else(|| panic!("nothing said:\n{}", done.stderr));
        let last: Value = serde_json::from_str(last).expect("each line is JSON");
        last["totals"].clone()
    }

    /// The records of the source that were replayed.
    pub(crate) fn replayed(&self) -> Vec<Message> {
        let read = self.source().read();
        read.into_iter().filter(|message| message.header("stillwell.replays").is_some()).collect()
    }

    pub(crate) fn replayed_keys(&self) -> Vec<String> {
        let key =
            |message: &Message| String::from_utf8_lossy(message.key.as_deref().unwrap_or(b"-")).into_owned();
        self.replayed().iter().map(key).collect()
    }
}

/// A moment of this day: what is older than its topic's retention may go at any time.
fn at(ms: i64) -> i64 {
    static BEGAN: LazyLock<i64> = LazyLock::new(|| stillwell::clock::Clock::system().wall_ms());
    *BEGAN - 60_000 + ms
}

/// A record that failed once and fits now, as where the schema was mended since.
pub(crate) fn poison(key: &str, ms: i64) -> Record {
    Record {
        timestamp: Some(at(ms)),
        headers: vec![("trace".to_owned(), Some(vec![0xff, 0])), ("trace".to_owned(), None)],
        ..Record::upsert(key, format!(r#"{{"id": "{key}", "price": 1.5, "stock": null}}"#))
    }
}

/// One that would fail again.
fn broken(key: &str, ms: i64) -> Record {
    Record { value: Some(b"{".to_vec()), ..poison(key, ms) }
}

/// What a replay puts on a record that has failed once, in this partition.
pub(crate) fn replayed_once(at: (&str, i32), offset: i64, timestamp: i64) -> [(String, Option<Vec<u8>>); 2] {
    let header = |name: &str, value: String| (format!("stillwell.{name}"), Some(value.into_bytes()));
    [header("origin", format!("{}/{}/{offset}@{timestamp}", at.0, at.1)), header("replays", "1".to_owned())]
}

pub(crate) fn counts(totals: &Value) -> (u64, u64, u64, u64, u64) {
    let count = |name: &str| totals[name].as_u64().unwrap_or_else(|| panic!("{name} of {totals}"));
    (count("selected"), count("replayed"), count("stale"), count("replayed_before"), count("left"))
}

/// The whole way: poison goes in and becomes letters, the rest is readable; the letters are shown, mended and replayed;
/// the dataset holds them.
#[test]
fn poison_is_shown_mended_and_replayed_into_the_dataset() {
    let setting = Setting::new("mended", 3, SCHEMA);
    let instance = Instance::new(&setting, "one");
    let process = instance.started();
    // A price in quotes does not fit; the program takes them off.
    let value = |price: &str| format!(r#"{{"id": "x", "price": {price}, "stock": null}}"#);
    let bad: Vec<Record> = (0..5)
        .map(|n| Record {
            timestamp: Some(at(n)),
            headers: vec![("trace".to_owned(), Some(vec![0xff, n as u8]))],
            ..Record::upsert(format!("bad-{n}"), value(r#""1.5""#))
        })
        .collect();
    setting.topic.produce(bad.clone());
    setting.topic.produce([Record::upsert("good", value("2.5"))]);
    let letters = Topic::named(&format!("{}.dlq", setting.dataset()));
    letters.read_until("each has a letter", LONG, |read| match read.len() {
        5 => Ok(()),
        other => Err(format!("{other} letters")),
    });
    let listed = instance.run(&["dlq", "list"], &["--output", "json", "--stage", "validate"]).expect_code(0);
    let listed: Vec<Value> = serde_json::from_str(&listed.stdout).expect("a list");
    assert_eq!(listed.len(), 5, "{listed:?}");
    assert!(
        listed.iter().all(|letter| letter["written_by"] == "stillwell" && letter["replays"] == 0),
        "{listed:?}"
    );

    let before = setting.topic.read().len();
    let dry = instance.run(&["dlq", "replay"], &["--dry-run"]).expect_code(1);
    assert_eq!(dry.stdout.matches("as it is it does not fit: ").count(), 5, "{}", dry.stdout);
    let dry =
        instance.run(&["dlq", "replay"], &["--dry-run", "--fix", "sed 's/\"1.5\"/1.5/'"]).expect_code(0);
    assert_eq!(
        dry.stdout.lines().filter(|line| line.starts_with("would-replay ")).count(),
        5,
        "{}",
        dry.stdout
    );
    assert_eq!(setting.topic.read().len(), before, "nothing was sent");
    let mended = instance.run(&["dlq", "replay"], &["--fix", "sed 's/\"1.5\"/1.5/'"]).expect_code(0);
    assert!(mended.stdout.contains("5 letters selected: 5 replayed, 0 stale"), "{}", mended.stdout);

    for record in &bad {
        let key = String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned();
        wait_until(&format!("{key} is in the dataset"), LONG, || {
            let path = format!("/v1/datasets/{}/records/{key}", setting.dataset());
            match instance.get(&path) {
                Ok((200, body)) if body.contains("1.5") => Ok(()),
                Ok((status, body)) => Err(format!("{status}: {body}")),
                Err(error) => Err(error.to_string()),
            }
        });
        let of_key: Vec<Message> =
            setting.topic.read().into_iter().filter(|message| message.key == record.key).collect();
        let [was, is] = of_key.as_slice() else { panic!("once as it was, once mended: {of_key:?}") };
        assert_eq!((is.partition, is.timestamp), (was.partition, was.timestamp), "where and when it was");
        assert_eq!(is.value.as_deref(), Some(value("1.5").as_bytes()));
        let mut headers = was.headers.clone();
        let at = (setting.topic.name(), was.partition);
        headers.extend(replayed_once(at, was.offset, was.timestamp.unwrap_or(-1)));
        assert_eq!(is.headers, headers, "byte for byte, and how often");
    }
    let again = instance.run(&["dlq", "replay"], &[]).expect_code(0);
    assert!(again.stdout.contains("0 letters selected"), "{}", again.stdout);
    // Fails again, unmended: one record still, with its last letter.
    setting.topic.produce([Record::upsert("bad-9", value(r#""9""#))]);
    for expected in [6, 7] {
        letters.read_until("it has a letter", LONG, |read| match read.len() {
            found if found == expected => Ok(()),
            other => Err(format!("{other} letters")),
        });
        if expected == 6 {
            let left = instance.run(&["dlq", "replay"], &[]).expect_code(1);
            assert!(left.stdout.contains("1 left (1 does not fit)"), "{}", left.stdout);
            instance.run(&["dlq", "replay"], &["--force"]).expect_code(0);
        }
    }
    let listed = instance.run(&["dlq", "list"], &["--output", "json", "--key", "bad-9"]).expect_code(0);
    let listed: Vec<Value> = serde_json::from_str(&listed.stdout).expect("a list");
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!((&listed[0]["replays"], &listed[0]["failures"]), (&json!(1), &json!(2)));
    process.stop(LONG).expect_code(0);
}

/// Dead in the middle of a replay at each of its steps, and killed at any moment: each letter is in the source once.
#[test]
fn a_replay_that_dies_replays_each_letter_once() {
    const LETTERS: usize = 6_000;
    let scene = Scene::new("killed", 1);
    let records: Vec<Record> = (0..LETTERS).map(|n| poison(&format!("K-{n}"), 1_000 + n as i64)).collect();
    scene.fail(&records);
    // Five hundred letters a transaction.
    let paced = ["--rate", "1000", "--quiet"];
    for step in stillwell::failpoint::REPLAY {
        let mut command = scene.instance.command(&["dlq", "replay"], &paced);
        command.env("FAILPOINTS", format!("{step}=1*off->return(abort)"));
        let died = run(&mut command, LONG);
        assert!(died.status.code().is_none(), "it dies at {step}: {}", died.stderr);
    }
    let committed = scene.replayed().len();
    assert!(committed > 0 && committed < LETTERS, "{committed}");
    let before = scene.source().watermarks()[0].1;
    let mut replay = Running::start(&mut scene.instance.command(&["dlq", "replay"], &paced));
    wait_until("more are replayed", LONG, || {
        let more = scene.source().watermarks()[0].1 - before;
        if more > 600 { Ok(()) } else { Err(format!("{more}")) }
    });
    replay.signal("KILL");
    replay.wait(LONG);
    let rest = scene.totals(&["--quiet"], 0);
    let (selected, replayed, stale, known, left) = counts(&rest);
    assert!(selected <= (LETTERS - committed) as u64, "it went on where it was: {rest}");
    assert_eq!((replayed, stale, known, left), (selected, 0, 0, 0), "{rest}");
    let mut times: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for message in scene.replayed() {
        *times.entry(message.key.unwrap_or_default()).or_default() += 1;
    }
    assert_eq!(times.len(), LETTERS, "none is lost");
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times != 1).take(3).collect();
    assert!(twice.is_empty(), "none comes twice: {twice:?}");
    assert_eq!(counts(&scene.totals(&[], 0)).0, 0, "and all are handled");
}

#[test]
fn what_the_source_has_overtaken_is_dropped_unless_forced() {
    let scene = Scene::new("stale", 1);
    let keys = ["written", "deleted", "untouched", "pending"];
    scene.fail(&keys.map(|key| poison(key, 5)));
    let partition = Some(0);
    scene.source().produce([
        Record { partition, ..Record::upsert("written", r#"{"id": "w", "price": 1.0, "stock": null}"#) },
        Record { partition, ..Record::delete("deleted") },
        Record { partition, ..Record::upsert("pending", "{") },
        Record { partition, ..Record::upsert("other", "{") },
    ]);
    let dry = scene.totals(&["--dry-run"], 0);
    assert_eq!(counts(&dry), (4, 1, 3, 0, 0), "{dry}");
    let done = scene.totals(&[], 0);
    assert_eq!(counts(&done), (4, 1, 3, 0, 0), "{done}");
    assert_eq!(scene.replayed_keys(), ["untouched"]);
    // Another selection begins anew, and knows what was replayed.
    let again = scene.totals(&["--key", "untouched", "--key", "written"], 0);
    assert_eq!(counts(&again), (2, 0, 1, 1, 0), "{again}");
    let forced = scene.totals(&["--key", "deleted", "--force"], 0);
    assert_eq!(counts(&forced), (1, 1, 0, 0, 0), "{forced}");
    assert_eq!(scene.replayed_keys(), ["untouched", "deleted"]);
}

#[test]
fn what_would_fail_again_is_left_unless_forced() {
    let scene = Scene::new("unfit", 1);
    scene.fail(&[poison("first", 5), broken("bad", 5), broken("overtaken", 5), poison("last", 5)]);
    scene.source().produce([Record { partition: Some(0), ..Record::delete("overtaken") }]);
    for arguments in [&["--dry-run"][..], &[]] {
        let done = scene.totals(arguments, 1);
        assert_eq!((counts(&done), &done["left_by"]["does not fit"]), ((4, 2, 1, 0, 1), &json!(1)), "{done}");
    }
    assert_eq!(scene.replayed_keys(), ["first", "last"]);
    let again = scene.totals(&[], 1);
    assert_eq!(counts(&again), (1, 0, 0, 0, 1), "it comes first, and is left again: {again}");
    let forced = scene.totals(&["--force"], 0);
    assert_eq!(counts(&forced), (1, 1, 0, 0, 0), "{forced}");
    assert_eq!(scene.replayed_keys(), ["first", "last", "bad"]);
}

#[test]
fn where_the_source_does_not_reach_back_only_force_replays() {
    let scene = Scene::new("short", 1);
    scene.fail(&[poison("old", 5), poison("gone", 5), poison("new", 5)]);
    scene.source().delete_before(0, 2);
    let done = scene.totals(&[], 1);
    assert_eq!(counts(&done), (3, 2, 0, 0, 1), "{done}");
    assert_eq!(done["left_by"]["staleness unknown"], 1);
    assert_eq!(scene.replayed_keys(), ["gone", "new"], "from the offset behind it on all is there");
    // It is left, and comes first: with one more that is new.
    scene.fail(&[poison("newer", 6)]);
    let forced = scene.totals(&["--force"], 0);
    assert_eq!(counts(&forced), (2, 2, 0, 0, 0), "{forced}");
    assert_eq!(scene.replayed_keys(), ["gone", "new", "old", "newer"]);

    // A topic that was made anew holds something else at that offset, or does not reach so far.
    let letter = scene.letter(0, 6, &poison("nobody", 7));
    let beyond = scene.letter(0, 1_000_000, &poison("beyond", 7));
    let written = [&letter, &beyond].map(|letter| scene.written(letter, 9_000, &Elsewhere::Nothing));
    scene.letters.produce(written);
    let done = scene.totals(&[], 1);
    assert_eq!(counts(&done), (2, 0, 0, 0, 2), "{done}");
}

#[test]
fn filters_take_what_they_say_and_leave_the_rest_for_later() {
    let scene = Scene::new("filters", 1);
    let records: Vec<Record> = (0..6).map(|n| poison(&format!("F-{n}"), 5)).collect();
    scene.fail(&records);
    let capped = Record {
        headers: vec![("stillwell.replays".to_owned(), Some(b"3".to_vec()))],
        ..poison("capped", 5)
    };
    scene.fail(&[capped]);
    // They failed at 1000 + offset.
    let done = scene.totals(&["--until", "1970-01-01T00:00:01.001Z"], 0);
    assert_eq!((counts(&done), &done["not_now"]), ((2, 2, 0, 0, 0), &json!(5)));
    let done = scene.totals(&["--since", "1970-01-01T00:00:01.004Z", "--max", "1"], 0);
    assert_eq!((counts(&done), &done["not_now"]), ((1, 1, 0, 0, 0), &json!(2)), "two before it");
    // The record that had been replayed before stands there as such.
    assert_eq!(scene.replayed_keys(), ["capped", "F-0", "F-1", "F-4"]);
    assert_eq!(counts(&scene.totals(&["--error", "no such thing"], 0)).0, 0);
    assert_eq!(counts(&scene.totals(&["--stage", "key"], 0)).0, 0);
    // A program that will not mend one of them, and then will.
    let only = "test \"$STILLWELL_KEY\" != F-3 && cat || { echo 'not that one' >&2; exit 7; }";
    let done = scene.replay(&["--fix", only]).expect_code(1);
    assert!(
        done.stdout.contains("not that one") && done.stdout.contains("replayed 3 times"),
        "{}",
        done.stdout
    );
    assert!(
        done.stdout.contains("4 letters selected: 2 replayed, 0 stale, 0 replayed before, 2 left"),
        "{}",
        done.stdout
    );
    let done = scene.totals(&["--fix", "cat", "--max-replays", "9"], 0);
    assert_eq!(counts(&done), (2, 2, 0, 0, 0), "{done}");
    assert_eq!(scene.replayed_keys(), ["capped", "F-0", "F-1", "F-4", "F-2", "F-5", "F-3", "capped"]);
    let counted: Vec<Message> = scene.replayed();
    assert_eq!(counted[7].header("stillwell.replays"), Some("4"));
    assert_eq!(counted[7].headers.iter().filter(|(name, _)| name == "stillwell.replays").count(), 1);
}

#[test]
fn letters_of_connect_and_of_spring_are_replayed_too() {
    let scene = Scene::new("foreign", 2);
    let source = scene.setting.dataset().to_owned();
    scene.source().produce([
        Record { partition: Some(1), ..poison("connect", 5) },
        Record { partition: Some(1), ..poison("spring", 6) },
    ]);
    let foreign = Topic::create("foreign.DLT", 1);
    let header = |name: &str, value: &[u8]| (name.to_owned(), Some(value.to_vec()));
    let connect = [
        header("__connect.errors.topic", source.as_bytes()),
        header("__connect.errors.partition", b"1"),
        header("__connect.errors.offset", b"0"),
        header("__connect.errors.connector.name", b"sink"),
        header("__connect.errors.task.id", b"0"),
        header("__connect.errors.stage", b"VALUE_CONVERTER"),
        header("__connect.errors.class.name", b"org.apache.kafka.connect.json.JsonConverter"),
        header("__connect.errors.exception.class.name", b"org.apache.kafka.connect.errors.DataException"),
        header("__connect.errors.exception.message", b"Converting byte[] to Kafka Connect data failed"),
        header("__connect.errors.exception.stacktrace", b"at org.apache.kafka..."),
    ];
    let spring = [
        header("kafka_dlt-original-topic", source.as_bytes()),
        header("kafka_dlt-original-partition", &1i32.to_be_bytes()),
        header("kafka_dlt-original-offset", &1i64.to_be_bytes()),
        header("kafka_dlt-original-timestamp", &at(6).to_be_bytes()),
        header("kafka_dlt-original-timestamp-type", b"CreateTime"),
        header("kafka_dlt-original-consumer-group", b"billing"),
        header(
            "kafka_dlt-exception-fqcn",
            b"org.springframework.kafka.listener.ListenerExecutionFailedException",
        ),
        header("kafka_dlt-exception-cause-fqcn", b"java.lang.IllegalStateException"),
        header("kafka_dlt-exception-message", b"no such customer"),
        header("kafka_dlt-exception-stacktrace", b"java.lang..."),
    ];
    let elsewhere =
        [header("__connect.errors.topic", b"somebody-elses"), connect[1].clone(), connect[2].clone()];
    let letter = |key: &str, timestamp: i64, headers: &[(String, Option<Vec<u8>>)]| {
        let mut record = poison(key, timestamp);
        record.headers.extend(headers.iter().cloned());
        record
    };
    foreign.produce([
        letter("connect", 5, &connect),
        letter("spring", 99, &spring),
        letter("elsewhere", 5, &elsewhere),
        letter("nobody's", 5, &[]),
    ]);
    let topic = ["--topic", foreign.name()];
    let listed =
        scene.instance.run(&["dlq", "list"], &[topic[0], topic[1], "--output", "json"]).expect_code(0);
    let listed: Vec<Value> = serde_json::from_str(&listed.stdout).expect("a list");
    let writers: Vec<_> = listed.iter().map(|line| line["written_by"].as_str().unwrap_or_default()).collect();
    assert_eq!(writers, ["connect", "spring", "connect", "unknown"]);
    assert_eq!((&listed[1]["owner"], &listed[1]["reason"]), (&json!("billing"), &json!("no such customer")));
    let shown = scene.instance.run(&["dlq", "show"], &["1", topic[0], topic[1]]).expect_code(0);
    assert!(
        shown.stdout.contains("IllegalStateException") && shown.stdout.contains("@1"),
        "{}",
        shown.stdout
    );

    let done = scene.totals(&topic, 1);
    assert_eq!((counts(&done), &done["left_by"]["no place in the source"]), ((4, 2, 0, 0, 2), &json!(2)));
    let replayed = scene.replayed();
    assert_eq!(scene.replayed_keys(), ["connect", "spring"]);
    for (message, (offset, timestamp)) in replayed.iter().zip([(0, at(5)), (1, at(6))]) {
        assert_eq!((message.partition, message.timestamp), (1, Some(timestamp)));
        let mut headers = poison("", 0).headers;
        headers.extend(replayed_once((scene.source().name(), 1), offset, timestamp));
        assert_eq!(message.headers, headers, "what was put behind them is gone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_too_large_for_its_topic_comes_back_from_its_blob() {
    let scene = Scene::new("blobs", 1);
    let value = format!(r#"{{"id": "x", "price": 1.5, "stock": null, "note": "{}"}}"#, "n".repeat(200_000));
    let size = value.len();
    let large = |key: &str| Record { value: Some(value.clone().into_bytes()), ..poison(key, 5) };
    let long_key = "k".repeat(5_000);
    let records = [large("value"), large(&long_key), large("lost"), large("overtaken")];
    scene.source().produce(records.clone());
    scene.source().produce([Record::upsert("overtaken", "{")]);
    let store = Store::open(&scene.setting.blobs()).expect("it opens");
    let letters: Vec<Letter> =
        (0..).zip(&records).map(|(offset, record)| scene.letter(0, offset, record)).collect();
    let value = |at: usize| letters[at].value.clone().expect("each has one");
    store.put("d/t/0/0.letter", value(0)).await.expect("it is stored");
    let mut whole = Vec::new();
    letters[1].encode(&mut whole);
    store.put("d/t/0/1.whole.letter", whole).await.expect("it is stored");
    store.put("d/t/0/3.letter", value(3)).await.expect("it is stored");
    let elsewhere = [
        Elsewhere::Value("d/t/0/0.letter".to_owned()),
        Elsewhere::Whole("d/t/0/1.whole.letter".to_owned()),
        Elsewhere::Value("d/t/0/2.letter".to_owned()),
        Elsewhere::Value("d/t/0/3.letter".to_owned()),
    ];
    let written =
        letters.iter().zip(&elsewhere).map(|(letter, elsewhere)| scene.written(letter, 9, elsewhere));
    scene.letters.produce(written.collect::<Vec<_>>());

    let folder = scratch();
    let file = folder.path().join("letters.jsonl");
    let to = file.display().to_string();
    scene.instance.run(&["dlq", "export"], &["--to", &to, "--key", "value"]).expect_code(0);
    let line: Value =
        serde_json::from_str(&std::fs::read_to_string(&file).expect("it is written")).expect("a line");
    assert_eq!(line["value"].as_str().map(str::len), Some(size));
    assert_eq!(line["headers"], json!([["trace", { "base64": "/wA=" }], ["trace", null]]));

    let done = scene.totals(&[], 1);
    assert_eq!((counts(&done), &done["left_by"]["blob lost"]), ((4, 2, 1, 0, 1), &json!(1)));
    let replayed = scene.replayed();
    assert_eq!(scene.replayed_keys(), ["value", long_key.as_str()]);
    for (message, record) in replayed.iter().zip(&records) {
        assert_eq!((&message.value, message.headers.len()), (&record.value, record.headers.len() + 2));
    }
    // The topic takes no more than this any more.
    store.put("d/t/0/2.letter", vec![b'x'; 3_000_000]).await.expect("it is stored");
    let done = scene.totals(&[], 1);
    assert_eq!((counts(&done), &done["left_by"]["too large"]), ((1, 0, 0, 0, 1), &json!(1)));
}

/// Two replays at a time: the second ends the first, and nothing comes twice.
#[test]
fn of_two_replays_at_a_time_one_goes_on() {
    const LETTERS: usize = 3_000;
    let scene = Scene::new("two", 1);
    let records: Vec<Record> = (0..LETTERS).map(|n| poison(&format!("K-{n}"), 1_000 + n as i64)).collect();
    scene.fail(&records);
    // Half a minute, were it alone: the other one has begun by then.
    let mut slow = scene.instance.command(&["dlq", "replay"], &["--rate", "100", "--quiet"]);
    let slow = Running::start(&mut slow);
    wait_until("some are replayed", LONG, || {
        let seen = scene.source().watermarks()[0].1 as usize - LETTERS;
        if seen > 0 { Ok(()) } else { Err("none".to_owned()) }
    });
    let rest = scene.totals(&["--quiet"], 0);
    let slow = slow.wait(LONG).expect_code(69);
    assert!(slow.stderr.contains("taken over"), "{}", slow.stderr);
    let mut keys = scene.replayed_keys();
    keys.sort_unstable();
    let all = keys.len();
    keys.dedup();
    assert_eq!((all, keys.len()), (LETTERS, LETTERS), "{rest}");
}

#[test]
fn wrong_words_are_wrong_command_lines() {
    let scene = Scene::new("words", 1);
    for arguments in
        [&["--since", "yesterday"][..], &["--rate", "0"], &["--fix-timeout", "1s"], &["--base64"]]
    {
        scene.replay(arguments).expect_code(64);
    }
    scene.replay(&["--key", "!", "--base64"]).expect_code(65);
    let none = scene.instance.run(&["dlq", "list"], &["--topic", "no-such-topic-at-all"]).expect_code(65);
    assert!(none.stderr.contains("there is no topic no-such-topic-at-all"), "{}", none.stderr);
    let missing = scene.instance.run(&["dlq", "show"], &["7"]).expect_code(65);
    assert!(missing.stderr.contains("no letter at"), "{}", missing.stderr);
    let empty = run(&mut scene.instance.command(&["dlq", "list"], &[]), LONG).expect_code(0);
    assert_eq!(empty.stdout.lines().count(), 1, "headings: {}", empty.stdout);
}

/// A topic whose records nearly all fail for one reason is not drained into its dead letters, until somebody says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_misfits_pauses_the_source_until_it_is_let_through() {
    const BAD: usize = 3_000;
    let mut setting = Setting::new("storm", 1, SCHEMA);
    let reliability = Reliability { misfit_window: 100, ..Reliability::default() };
    let producer = setting.builder().reliability(reliability.clone()).start().await.expect("it starts");
    // Two of five fail, for one reason: that is within its share.
    let mut records = Vec::new();
    for n in 0..500 {
        match n % 5 {
            0 | 2 => records.push(Record::upsert(format!("bad-{n}"), "{")),
            _ => {
                let value = json!({ "id": format!("P-{n}"), "price": 1.5, "stock": null });
                records.push(setting.upsert(&format!("P-{n}"), value));
            }
        }
    }
    setting.topic.produce(records);
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    assert_eq!(producer.status().paused, None);

    setting.topic.produce((0..BAD).map(|n| Record::upsert(format!("storm-{n}"), "{")));
    let last = setting.upsert("last", json!({ "id": "last", "price": 2.5, "stock": null }));
    setting.topic.produce([last]);
    let paused = |producer: &Producer| producer.status().paused;
    let why = wait_until("the source is paused", LONG, || paused(&producer).ok_or("it is not".to_owned()));
    assert!(why.contains("fail at VALUE_CONVERTER with") && why.contains("/storm"), "{why}");
    let letters = Topic::named(&format!("{}.dlq", setting.dataset()));
    let held = |read: &[Message]| {
        read.iter().filter(|letter| letter.header("__connect.errors.stage").is_some()).count()
    };
    let seen = letters.read_until("those that were taken are letters", LONG, |read| match held(read) {
        some if some > 250 => Ok(some),
        few => Err(format!("{few}")),
    });
    assert!(seen < 1_000, "{seen} of {BAD}");
    // Another life of the process knows too, and a producer that begins anew counts anew.
    producer.shutdown().await.expect("it stops");
    let producer = setting.builder().reliability(reliability).start().await.expect("it starts");
    wait_until("the source is paused again", LONG, || paused(&producer).ok_or("it is not".to_owned()));
    let seen = held(&letters.read());
    assert!(seen < 2_000, "{seen} of {BAD}");

    assert!(producer.let_through().is_some());
    setting.settled(&consumer).await;
    letters.read_until("all are letters", LONG, |read| match held(read) {
        all if all == 200 + BAD => Ok(()),
        few => Err(format!("{few}")),
    });
    assert_eq!((paused(&producer), producer.let_through()), (None, None));
    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
}
