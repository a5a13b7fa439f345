//! Replays beside which the source is written.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::{Value, json};
use stillwell::blob::Store;
use stillwell::clock::Clock;
use stillwell::codec::{Bound, ExtraFields, Format, KeyRule};
use stillwell::dead::replay;
use stillwell::dead::rows::Goal;
use stillwell::dead::select::Selection;
use stillwell::format::letter::Elsewhere;
use stillwell::kafka;
use stillwell::schema::Schema;
use stillwell_tests::{Message, Record, Running, Topic, bootstrap, scratch, wait_until};
use tokio_util::sync::CancellationToken;

use crate::letters::{Scene, counts, poison, replayed_once};
use crate::line::SCHEMA;

const LONG: Duration = Duration::from_secs(90);

/// Looking at a source ends when nothing has come for a minute, and each record is something: of large ones 16,384, by which
/// it is said how far it has come, take longer. Here the clock goes on with what is done: a minute is some hundred records.
#[tokio::test(flavor = "multi_thread")]
async fn every_record_of_the_source_is_progress() {
    let scene = Scene::new("progress", 1);
    scene.fail(&[poison("K-0", 5)]);
    let other = |n| Record { partition: Some(0), ..poison(&format!("other-{n}"), 6) };
    scene.source().produce((0..2_000).map(other));
    let kafka = kafka::Options { bootstrap_servers: bootstrap().to_owned(), ..kafka::Options::default() };
    let dataset = scene.source().name().to_owned();
    let wall_ms = Clock::system().wall_ms();
    let options = replay::Options {
        kafka,
        topics: vec![dataset.clone()],
        key: KeyRule::Kafka,
        bound: Bound::default(),
        format: Format::json(ExtraFields::Ignore),
        registry: None,
        schema: Arc::new(Schema::dataset(SCHEMA).expect("it is one")),
        letters: format!("{dataset}.dlq"),
        store: Store::open("memory://").expect("it opens"),
        // As long as one wait for records: while none comes, it is no faster than others.
        clock: Clock::ticking(wall_ms, Duration::from_millis(100)),
        dataset: dataset.clone(),
    };
    let asked = replay::Asked {
        selection: Selection { dataset, ..Selection::default() },
        max: None,
        rate: None,
        dry_run: true,
        max_replays: 3,
        wait: LONG,
        force: false,
        fix: None,
        goal: Goal::Source,
    };
    let replaying =
        tokio::task::spawn_blocking(move || replay::run(&options, &asked, &CancellationToken::new(), |_| {}));
    let (totals, ended) = replaying.await.expect("it does not panic");
    ended.expect("all of the source is looked at");
    assert_eq!((totals.selected, totals.replayed), (1, 1), "{totals:?}");
}

/// What others write between two transactions of a replay is looked at, though the replay's own records are not; and the
/// transactions behind it go on as before.
#[test]
fn what_is_written_meanwhile_makes_letters_stale() {
    const LETTERS: usize = 20;
    // So many go into a transaction where a program mends them, or fewer where the machine is slow.
    const CHUNK: usize = 8;
    let scene = Scene::new("meanwhile", 1);
    let keys: Vec<String> = (0..LETTERS).map(|n| format!("K-{n}")).collect();
    scene.fail(&keys.iter().map(|key| poison(key, 5)).collect::<Vec<_>>());
    let folder = scratch();
    let written = folder.path().join("written");
    // In a later chunk than the first, before it is judged.
    let waiting = format!(
        "test \"$STILLWELL_KEY\" != K-{CHUNK} || until test -e {}; do sleep 0.05; done; cat",
        written.display()
    );
    let arguments = ["--quiet", "--output", "json", "--fix", &waiting, "--fix-timeout", "80s"];
    let replay = Running::start(&mut scene.instance.command(&["dlq", "replay"], &arguments));
    wait_until("the first chunk is in the source", LONG, || match scene.replayed().len() {
        0 => Err("nothing is"),
        _ => Ok(()),
    });
    let later = |key: &str| Record { partition: Some(0), ..poison(key, 6) };
    scene.source().produce([
        later("K-8"),
        Record { partition: Some(0), ..Record::delete("K-9") },
        later("nobody's"),
        later("K-17"),
    ]);
    std::fs::write(&written, "").expect("it is written");
    let done = replay.wait(LONG).expect_code(0);
    let last: Value =
        serde_json::from_str(done.stdout.lines().last().unwrap_or_default()).expect("the totals");
    assert_eq!(counts(&last["totals"]), (20, 17, 3, 0, 0), "{last}");
    let stale = ["K-8", "K-9", "K-17"];
    let expected: Vec<String> = keys.into_iter().filter(|key| !stale.contains(&key.as_str())).collect();
    assert_eq!(scene.replayed_keys(), expected);
}

/// A newer value that stands in a transaction which is not ended is seen by nobody yet, and must not be overwritten.
#[test]
fn a_later_record_in_an_open_transaction_is_waited_for() {
    let scene = Scene::new("open", 1);
    scene.fail(&[poison("pending", 5), poison("other", 5)]);
    let writer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap())
        .set("transactional.id", scene.source().name())
        .set("transaction.timeout.ms", "600000")
        .create()
        .expect("a transactional producer can be made");
    writer.init_transactions(LONG).expect("init");
    writer.begin_transaction().expect("begin");
    let newer = poison("pending", 6).value.expect("it has one");
    let record =
        BaseRecord::<str, [u8]>::to(scene.source().name()).key("pending").payload(&newer).partition(0);
    writer.send(record).expect("queued");
    writer.flush(LONG).expect("flushed");

    let left = scene.totals(&["--wait", "500ms"], 1);
    assert_eq!(
        (counts(&left), &left["left_by"]["staleness unknown"]),
        ((2, 0, 0, 0, 2), &json!(2)),
        "{left}"
    );
    assert_eq!(scene.replayed().len(), 0);
    let arguments = ["--quiet", "--output", "json", "--wait", "85s"];
    let mut replay = Running::start(&mut scene.instance.command(&["dlq", "replay"], &arguments));
    replay.wait_for_text("a transaction is open in the source", LONG);
    writer.commit_transaction(LONG).expect("commit");
    let done = replay.wait(LONG).expect_code(0);
    let last: Value =
        serde_json::from_str(done.stdout.lines().last().unwrap_or_default()).expect("the totals");
    assert_eq!(counts(&last["totals"]), (2, 1, 1, 0, 0), "{last}");
    assert_eq!(scene.replayed_keys(), ["other"]);
}

/// So many letters a second are not sent in less time than that, however fast the machine is.
#[test]
fn a_rate_is_kept() {
    const LETTERS: usize = 40;
    let scene = Scene::new("paced", 1);
    scene.fail(&(0..LETTERS).map(|n| poison(&format!("K-{n}"), 5)).collect::<Vec<_>>());
    let clock = stillwell::clock::Clock::system();
    let began = clock.now();
    let done = scene.totals(&["--rate", "10", "--quiet"], 0);
    let took = clock.now().saturating_duration_since(began);
    assert_eq!(counts(&done), (40, 40, 0, 0, 0), "{done}");
    // Half a second's worth may go at once.
    assert!(took >= Duration::from_millis(3_400), "{LETTERS} letters at 10 a second took {took:?}");
}

/// A record as it stands in the source.
fn stood(message: Message) -> Record {
    let Message { partition, timestamp, key, value, headers, .. } = message;
    Record { partition: Some(partition), timestamp, key, value, headers }
}

/// The letters of a topic as they are listed, or written to a file: key, how many there are of its record, and whether a later
/// one has replaced it.
fn told(scene: &Scene, arguments: &[&str]) -> Vec<(String, u64, bool)> {
    let (verb, more) = arguments.split_first().expect("a command");
    let text = scene.instance.run(&["dlq", *verb], more).expect_code(0).stdout;
    let lines: Vec<Value> = match *verb {
        "list" => serde_json::from_str(&text).expect("a list"),
        _ => text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect(),
    };
    let one = |line: &Value| {
        let key = line["key"].as_str().expect("it has one").to_owned();
        (key, line["failures"].as_u64().expect("it says how many"), line["replaced"] == true)
    };
    lines.iter().map(one).collect()
}

/// A record that was mended, replayed, and has failed again: its first letter, unmended, must not go behind the mended value,
/// whatever is asked for; nor is it one more letter for who lists or exports them.
#[test]
fn a_letter_that_a_later_one_has_replaced_is_passed_over_also_by_force() {
    let scene = Scene::new("replaced", 1);
    scene.fail(&[poison("again", 5), poison("other", 6)]);
    let mended = scene.totals(&["--fix", "sed s/1.5/2.5/"], 0);
    assert_eq!((counts(&mended), &mended["replaced"]), ((2, 2, 0, 0, 0), &json!(0)), "{mended}");
    let back = scene.replayed().into_iter().find(|message| message.key.as_deref() == Some(b"again"));
    let back = back.expect("it was replayed");
    let letter = scene.letter(0, back.offset, &stood(back));
    // The letter of the other one is in the topic twice, as where a transaction of the dataset was made again.
    let other = scene.letter(0, 1, &poison("other", 6));
    let written = [(&letter, 9_000), (&other, 9_001)];
    scene.letters.produce(written.map(|(letter, at)| scene.written(letter, at, &Elsewhere::Nothing)));

    let of = |key: &str, failures, replaced| (key.to_owned(), failures, replaced);
    let last = [of("again", 2, false), of("other", 2, false)];
    assert_eq!(told(&scene, &["list", "--output", "json"]), last);
    assert_eq!(told(&scene, &["export"]), last);
    let all = [of("again", 2, true), of("other", 2, true), of("again", 2, false), of("other", 2, false)];
    assert_eq!(told(&scene, &["export", "--all"]), all);
    assert_eq!(told(&scene, &["export", "--all", "--key", "again", "--max", "1"]), all[..1]);
    // The last letter of the record failed at another time: the earlier one is not shown in its place.
    assert!(told(&scene, &["export", "--key", "again", "--until", "1970-01-01T00:00:02Z"]).is_empty());

    let forced = ["--error", "too early", "--force"];
    let expected = ((4, 2, 0, 1, 0), &json!(1));
    let dry = scene.totals(&[&forced[..], &["--dry-run"]].concat(), 0);
    assert_eq!((counts(&dry), &dry["replaced"]), expected, "{dry}");
    let done = scene.totals(&forced, 0);
    assert_eq!((counts(&done), &done["replaced"]), expected, "{done}");
    let mut values = scene.replayed();
    values.retain(|message| message.key.as_deref() == Some(b"again"));
    let prices = values.iter().map(|message| {
        let value: Value =
            serde_json::from_slice(message.value.as_deref().unwrap_or_default()).expect("JSON");
        value["price"].clone()
    });
    assert_eq!(prices.collect::<Vec<_>>(), [2.5, 2.5], "as it was mended, and last so");
    let first = poison("again", 5).timestamp.expect("it has one");
    let origin = format!("{}/0/0@{first}", scene.source().name());
    let said = values
        .iter()
        .map(|message| [message.header("stillwell.origin"), message.header("stillwell.replays")]);
    assert_eq!(said.collect::<Vec<_>>(), [[Some(&*origin), Some("1")], [Some(&*origin), Some("2")]]);
    assert_eq!(counts(&scene.totals(&forced, 0)).0, 0, "it is handled, as the others are");

    // The later letter is not asked for, and the earlier one is replaced all the same.
    let early = ["--key", "again", "--force", "--until", "1970-01-01T00:00:02Z"];
    let done = scene.totals(&early, 0);
    assert_eq!((counts(&done), &done["replaced"], &done["not_now"]), ((1, 0, 0, 0, 0), &json!(1), &json!(1)));
    // Neither is it where the source is looked at, which tells of the others that they were replayed.
    let said = scene.replay(&["--stage", "decode"]).expect_code(0).stdout;
    assert!(
        said.contains("4 letters selected: 0 replayed, 0 stale, 3 replayed before, 1 replaced"),
        "{said}"
    );
    let line = said.lines().find(|line| line.starts_with("replaced ")).expect("it is named");
    assert!(
        line.contains("key \"again\"") && line.ends_with(&format!("{}[0]@2", scene.letters.name())),
        "{line}"
    );
}

/// Where letters without a key, or of before partitions were added, stand is nobody's choice: the later one may be in a
/// partition that is handled.
#[test]
fn the_later_letter_may_stand_in_another_partition_and_be_handled() {
    let scene = Scene::new("spread", 1);
    let letters = Topic::create("spread.letters", 2);
    let first = Record { partition: Some(0), ..poison("again", 5) };
    let mut again = first.clone();
    again.headers.extend(replayed_once((scene.source().name(), 0), 0, first.timestamp.expect("it has one")));
    scene.source().produce([first.clone(), again.clone()]);
    let letter = |partition: i32, offset: i64, record: &Record| Record {
        partition: Some(partition),
        ..scene.written(&scene.letter(0, offset, record), 1_000 + offset, &Elsewhere::Nothing)
    };
    letters.produce([letter(0, 1, &again)]);
    let topic = ["--topic", letters.name(), "--key", "again", "--force"];
    let done = scene.totals(&topic, 0);
    assert_eq!((counts(&done), &done["replaced"]), ((1, 1, 0, 0, 0), &json!(0)), "{done}");
    letters.produce([letter(1, 0, &first)]);
    let done = scene.totals(&topic, 0);
    assert_eq!((counts(&done), &done["replaced"]), ((1, 0, 0, 0, 0), &json!(1)), "{done}");
    assert_eq!(told(&scene, &["list", "--output", "json", "--topic", letters.name()]).len(), 1);
    assert_eq!(counts(&scene.totals(&topic, 0)).0, 0, "it is handled");
}

/// What a program has garbled would only come back as the letter that replaces this one, whose value no replay takes up then:
/// it is left, also by force. What the program leaves as it is goes by force as ever.
#[test]
fn what_a_program_has_garbled_does_not_go_back_by_force() {
    let scene = Scene::new("garbled", 1);
    let unfit = Record { value: Some(b"{".to_vec()), ..poison("unfit", 5) };
    scene.fail(&[poison("good", 5), unfit]);
    let garbled = scene.totals(&["--force", "--fix", "tr '{' '['"], 1);
    assert_eq!(
        (counts(&garbled), &garbled["left_by"]["does not fit"]),
        ((2, 0, 0, 0, 2), &json!(2)),
        "{garbled}"
    );
    assert!(scene.replayed().is_empty());
    let forced = scene.totals(&["--force", "--fix", "cat"], 0);
    assert_eq!(counts(&forced), (2, 2, 0, 0, 0), "{forced}");
    assert_eq!(scene.replayed_keys(), ["good", "unfit"]);
}
