//! Letters that go straight into the dataset: mended as rows in JSON, whatever the source is written in.

use std::collections::BTreeMap;
use std::time::Duration;

use apache_avro::types::Value as Avro;
use apache_avro::{Schema, to_avro_datum};
use serde_json::{Value, json};
use stillwell::format::letter::Elsewhere;
use stillwell_tests::{Message, Record, Registry, Running, Topic, run, wait_until};

use crate::instance::Instance;
use crate::letters::{Scene, counts, poison, replayed_once};
use crate::setting::Setting;

const LONG: Duration = Duration::from_secs(90);

/// The dataset's, and the newest of its subject.
const OWN: &str = r#"{"type": "record", "name": "Product", "fields": [
    {"name": "id", "type": "string"}, {"name": "price", "type": "double"},
    {"name": "stock", "type": ["null", "int"], "default": null}]}"#;
/// Somebody's whose prices are texts: no rule of Avro's makes numbers of them.
const TEXT: &str = r#"{"type": "record", "name": "Product", "fields": [
    {"name": "id", "type": "string"}, {"name": "price", "type": "string"}]}"#;

fn datum(schema: &str, fields: &[(&str, Avro)]) -> Vec<u8> {
    let schema = Schema::parse_str(schema).expect("a schema");
    let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    to_avro_datum(&schema, Avro::Record(fields)).expect("it fits")
}

fn own(id: &str, price: f64) -> Vec<u8> {
    let stock = Avro::Union(0, Box::new(Avro::Null));
    datum(OWN, &[("id", id.into()), ("price", price.into()), ("stock", stock)])
}

fn text(id: &str, price: &str) -> Vec<u8> {
    datum(TEXT, &[("id", id.into()), ("price", price.into())])
}

fn framed(id: u32, datum: &[u8]) -> Vec<u8> {
    [&[0], &id.to_be_bytes()[..], datum].concat()
}

fn header(id: u32) -> (String, Option<Vec<u8>>) {
    ("__value_schema_id".to_owned(), Some(framed(id, &[])))
}

/// One whose source is Avro by the registry, with `more` of its source.
fn instance(setting: &Setting, more: &str) -> Instance {
    let instance = Instance::new(setting, "one");
    let config = std::fs::read_to_string(instance.config()).expect("there is one");
    let config = config.replace("format = \"json\"", &format!("format = \"avro\"{more}"));
    std::fs::write(instance.config(), config).expect("it is written");
    instance.append(&format!("[schema_registry]\nurl = \"{}\"\n", Registry::shared().url()));
    instance.append("[http]\nadmin_token = \"s3cret\"\n");
    instance
}

fn letters(setting: &Setting, count: usize) -> Topic {
    let letters = Topic::named(&format!("{}.dlq", setting.dataset()));
    letters.read_until("each has a letter", LONG, |read| match read.len() {
        found if found == count => Ok(()),
        other => Err(format!("{other} letters")),
    });
    letters
}

fn replayed(setting: &Setting) -> Vec<Message> {
    let read = setting.topic.read();
    read.into_iter().filter(|message| message.header("stillwell.replays").is_some()).collect()
}

fn serves(instance: &Instance, setting: &Setting, key: &str, expected: Option<&str>) {
    wait_until(&format!("{key} is as it was mended"), LONG, || {
        let path = format!("/v1/datasets/{}/records/{key}", setting.dataset());
        match (instance.get(&path), expected) {
            (Ok((200, body)), Some(expected)) if body.contains(expected) => Ok(()),
            (Ok((404, _)), None) => Ok(()),
            (Ok((status, body)), _) => Err(format!("{status}: {body}")),
            (Err(error), _) => Err(error.to_string()),
        }
    });
}

/// A program that knows nothing of Avro: it takes quotes off, deletes one, and makes up what could not be read.
const PROGRAM: &str = r#"case "$STILLWELL_VALUE $STILLWELL_KEY" in
    "row gone") echo null ;;
    "unread cut") printf '{"id": "%s", "price": 1.5}\n' "$STILLWELL_KEY" ;;
    *) sed 's/"price":"\([0-9.]*\)"/"price":\1/' ;;
esac"#;

#[test]
fn avro_is_mended_as_json_and_comes_into_the_dataset_by_its_source_once() {
    const PRICED: usize = 20;
    let setting = Setting::new("rows", 2, OWN);
    let registry = Registry::shared();
    let subject = format!("{}-value", setting.dataset());
    let newest = registry.register(&subject, OWN, &[]);
    let theirs = registry.register(&format!("{subject}-theirs"), TEXT, &[]);
    let instance = instance(&setting, "");
    let process = instance.started();
    let now = stillwell::clock::Clock::system().wall_ms() - 60_000;
    let placed = |key: &str, value: Vec<u8>| Record {
        partition: Some(1),
        timestamp: Some(now),
        headers: vec![("trace".to_owned(), Some(vec![0xff, 0]))],
        ..Record::upsert(key, value)
    };
    let whole = own("cut", 2.5);
    let mut bad: Vec<Record> = (0..PRICED)
        .map(|n| format!("T-{n}"))
        .map(|key| placed(&key, framed(theirs, &text(&key, "1.5"))))
        .collect();
    let headed = placed("headed", text("headed", "1.5"));
    bad.push(Record { headers: vec![header(999_999), header(theirs)], ..headed });
    bad.push(placed("cut", framed(newest, &whole[..whole.len() - 1])));
    bad.push(placed("plain", br#"{"id": "plain", "price": 1.5}"#.to_vec()));
    bad.push(placed("free", framed(theirs, &text("free", "for nothing"))));
    bad.push(placed("gone", framed(theirs, &text("gone", "1.5"))));
    bad.push(placed("stale", framed(theirs, &text("stale", "1.5"))));
    setting.topic.produce([placed("gone", framed(newest, &own("gone", 9.0)))]);
    setting.topic.produce(bad.clone());
    setting.topic.produce([placed("stale", framed(newest, &own("stale", 9.0)))]);
    letters(&setting, bad.len());
    serves(&instance, &setting, "stale", Some("9.0"));

    let dry = instance.run(&["dlq", "replay"], &["--dry-run", "--into", "dataset", "--key", "plain"]);
    assert!(dry.stdout.contains("1 would be replayed"), "{}{}", dry.stdout, dry.stderr);
    // By the route, which runs no program: JSON that was put into a topic of Avro is a row.
    let path = format!("/admin/datasets/{}/replay", setting.dataset());
    let ask = |body: &str| instance.post(&path, Some("s3cret"), body).expect("it listens");
    assert_eq!(ask(r#"{"into": "nowhere"}"#).0, 400);
    let (status, body) = ask(r#"{"into": "dataset", "key": ["plain", "free"]}"#);
    assert_eq!(status, 202, "{body}");
    let report = wait_until("the replay has ended", LONG, || {
        let (_, body) = instance.get_as(&path, "s3cret").map_err(|error| error.to_string())?;
        let report: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
        if report["replay"]["running"] == false { Ok(report) } else { Err(report.to_string()) }
    });
    assert_eq!(counts(&report["replay"]["totals"]), (2, 1, 0, 0, 1), "{report}");
    serves(&instance, &setting, "plain", Some("1.5"));

    let arguments = ["--into", "dataset", "--fix", PROGRAM];
    let with = |more: &[&'static str]| [&arguments[..], more].concat();
    let dry = instance.run(&["dlq", "replay"], &with(&["--dry-run"])).expect_code(1);
    assert!(dry.stdout.contains("26 letters selected: 23 would be replayed, 1 stale"), "{}", dry.stdout);
    assert_eq!(replayed(&setting).len(), 1, "nothing was sent");

    // Killed at each step of a transaction, and in between.
    for step in stillwell::failpoint::REPLAY {
        let mut command = instance.command(&["dlq", "replay"], &arguments);
        command.env("FAILPOINTS", format!("{step}=return(abort)"));
        let died = run(&mut command, LONG);
        assert!(died.status.code().is_none(), "it dies at {step}: {}", died.stderr);
    }
    let mut replay = Running::start(&mut instance.command(&["dlq", "replay"], &with(&["--rate", "2"])));
    let before = replayed(&setting).len();
    wait_until("more are replayed", LONG, || match replayed(&setting).len() {
        more if more > before => Ok(()),
        more => Err(format!("{more}")),
    });
    replay.signal("KILL");
    replay.wait(LONG);
    let rest = instance.run(&["dlq", "replay"], &arguments).expect_code(1);
    assert!(rest.stdout.contains("1 left (1 does not fit)"), "{}", rest.stdout);
    let line = rest.stdout.lines().find(|line| line.contains("\"free\"")).expect("it is named");
    assert!(line.starts_with("left") && line.contains("no record for") && line.contains("price"), "{line}");

    let mut times: BTreeMap<Vec<u8>, Vec<Message>> = BTreeMap::new();
    for message in replayed(&setting) {
        times.entry(message.key.clone().unwrap_or_default()).or_default().push(message);
    }
    assert_eq!(times.len(), PRICED + 4, "{:?}", times.keys());
    for (key, messages) in &times {
        let key = String::from_utf8_lossy(key).into_owned();
        let [message] = messages.as_slice() else { panic!("{key}: {} times", messages.len()) };
        // One record stands before them.
        let first = bad.iter().position(|record| record.key.as_deref() == Some(key.as_bytes()));
        let at = (setting.topic.name(), message.partition);
        let [origin, count] = replayed_once(at, 1 + first.expect("it was bad") as i64, now);
        let trace = ("trace".to_owned(), Some(vec![0xff, 0]));
        let (value, headers) = match key.as_str() {
            "gone" => (None, vec![trace, origin, count]),
            // Where it stood before.
            "headed" => (Some(own("headed", 1.5)), vec![header(newest), origin, count]),
            _ => (Some(framed(newest, &own(&key, 1.5))), vec![trace, origin, count]),
        };
        assert_eq!((&message.value, &message.headers), (&value, &headers), "{key}");
        assert_eq!((message.partition, message.timestamp), (1, Some(now)), "where and when it was");
    }
    for key in ["T-0", "T-19", "headed", "cut"] {
        serves(&instance, &setting, key, Some("1.5"));
    }
    serves(&instance, &setting, "gone", None);
    serves(&instance, &setting, "stale", Some("9.0"));
    process.stop(LONG).expect_code(0);
}

/// A database's row.
const ROW: &str = r#"{"type": "record", "name": "Value", "fields": [
    {"name": "id", "type": "int"}, {"name": "name", "type": "string"}]}"#;

#[test]
fn a_row_is_put_into_the_change_that_its_letter_holds() {
    let setting = Setting::new("rows-of-changes", 1, ROW);
    let registry = Registry::shared();
    let change = format!(
        r#"{{"type": "record", "name": "Envelope", "fields": [
        {{"name": "before", "type": ["null", {ROW}], "default": null}},
        {{"name": "after", "type": ["null", "Value"], "default": null}},
        {{"name": "source", "type": {{"type": "record", "name": "Source", "fields": [{{"name": "lsn", "type": "long"}}]}}}},
        {{"name": "op", "type": "string"}}]}}"#
    );
    let schema = r#"{"type": "record", "name": "Key", "fields": [{"name": "id", "type": "int"}]}"#;
    let value_id = registry.register(&format!("{}-value", setting.dataset()), &change, &[]);
    let key_id = registry.register(&format!("{}-key", setting.dataset()), schema, &[]);
    let instance = instance(&setting, ", envelope = \"debezium\", key_format = \"avro\"");
    let process = instance.started();
    let written = |name: &str| {
        let row = Avro::Record(vec![("id".into(), 7.into()), ("name".into(), name.into())]);
        let fields = [
            ("before", Avro::Union(0, Box::new(Avro::Null))),
            ("after", Avro::Union(1, Box::new(row))),
            ("source", Avro::Record(vec![("lsn".into(), Avro::Long(1 << 60))])),
            ("op", "u".into()),
        ];
        framed(value_id, &datum(&change, &fields))
    };
    let key = framed(key_id, &[14]);
    // The database did not hand it out.
    let bad =
        Record { key: Some(key.clone()), ..Record::upsert("", written("__debezium_unavailable_value")) };
    setting.topic.produce([bad]);
    letters(&setting, 1);
    let fix = "test \"$STILLWELL_VALUE\" = row && sed s/__debezium_unavailable_value/Ada/";
    let done = instance.run(&["dlq", "replay"], &["--into", "dataset", "--fix", fix]).expect_code(0);
    assert!(done.stdout.contains("1 letter selected: 1 replayed"), "{}", done.stdout);
    serves(&instance, &setting, "7", Some("Ada"));
    let replayed = replayed(&setting);
    assert_eq!(replayed.len(), 1);
    assert_eq!((&replayed[0].key, &replayed[0].value), (&Some(key), &Some(written("Ada"))), "lsn and all");
    process.stop(LONG).expect_code(0);
}

/// What a webhook did not take is in the dataset: it goes there again only changed, and only where it is asked for.
#[test]
fn a_change_that_a_webhook_did_not_take_is_mended_in_the_dataset() {
    let scene = Scene::new("mended-changes", 1);
    let row = |price: f64| json!({"id": "x", "price": price, "stock": null}).to_string().into_bytes();
    let record = |key: &str| Record { partition: Some(0), value: Some(row(1.5)), ..poison(key, 5) };
    scene.source().produce([record("first"), record("changed"), record("stale"), record("stale")]);
    let letters: Vec<Record> = [("changed", 1), ("stale", 2)]
        .into_iter()
        .map(|(key, offset)| {
            let mut letter = scene.letter(0, offset, &record(key));
            letter.stage = "webhook".to_owned();
            letter.headers = vec![("stillwell.listener".to_owned(), Some("hook".into()))];
            scene.written(&letter, 1_000, &Elsewhere::Nothing)
        })
        .collect();
    scene.letters.produce(letters);
    let refused = scene.replay(&["--stage", "webhook"]).expect_code(65);
    assert!(refused.stderr.contains("their records are in the dataset"), "{}", refused.stderr);
    let fix = ["--into", "dataset", "--fix", "sed s/1.5/2.5/"];
    assert_eq!(counts(&scene.totals(&fix, 0)), (0, 0, 0, 0, 0), "not meant for that program");
    let of_webhook = |more: &[&'static str]| [&["--stage", "webhook"], more].concat();
    let same = scene.totals(&of_webhook(&["--into", "dataset"]), 1);
    assert_eq!((counts(&same), &same["left_by"]["not mended"]), ((2, 0, 0, 0, 2), &json!(2)), "{same}");
    let done = scene.totals(&of_webhook(&fix), 0);
    assert_eq!(counts(&done), (2, 1, 1, 0, 0), "{done}");
    let replayed = scene.replayed();
    assert_eq!((scene.replayed_keys(), &replayed[0].value), (vec!["changed".to_owned()], &Some(row(2.5))));
    let timestamp = poison("", 5).timestamp.expect("it has one");
    assert_eq!(replayed[0].headers, replayed_once((scene.source().name(), 0), 1, timestamp));
}
