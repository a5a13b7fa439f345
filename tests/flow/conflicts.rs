//! Records that lose to one of their key from another partition, where they are asked for as letters (`conflict_letters`).

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stillwell::clock::Clock;
use stillwell_tests::{Message, Record, Running, Topic, wait_until};

use crate::instance::{Instance, LONG};
use crate::line::SCHEMA;
use crate::setting::Setting;

fn instance(setting: &Setting, name: &str) -> Instance {
    let instance = Instance::new(setting, name);
    instance.append(&format!("[datasets.\"{}\"]\nconflict_letters = true", setting.dataset()));
    instance
}

/// A record of `key` in `partition`, so many seconds ago; spaced as nothing would write it anew.
fn record(key: &str, partition: i32, ago: i64, price: f64) -> Record {
    let value = format!(r#"{{"price" :{price:?}, "id": "{key}",  "stock":null }}"#);
    Record {
        partition: Some(partition),
        timestamp: Some(Clock::system().wall_ms() - ago * 1_000),
        headers: vec![("trace".to_owned(), Some(vec![0xff, 0])), ("trace".to_owned(), None)],
        ..Record::upsert(key, value)
    }
}

fn price(instance: &Instance, setting: &Setting, key: &str, wanted: f64) {
    let path = format!("/v1/datasets/{}/records/{key}", setting.dataset());
    wait_until(&format!("{key} costs {wanted}"), LONG, || {
        let (status, body) = instance.get(&path).map_err(|error| error.to_string())?;
        let record: Value = serde_json::from_str(&body).unwrap_or_default();
        if status == 200 && record["price"] == json!(wanted) {
            Ok(())
        } else {
            Err(format!("{status}: {body}"))
        }
    });
}

fn letters(setting: &Setting) -> Vec<Message> {
    Topic::named(&format!("{}.dlq", setting.dataset())).read()
}

/// The letter holds the record as it came, and says who won. A replay drops it as stale; forced, it is the key's newest record.
#[test]
fn what_lost_is_a_letter_and_wins_when_it_is_sent_again_by_force() {
    let setting = Setting::new("conflict", 2, SCHEMA);
    let instance = instance(&setting, "one");
    let process = instance.started();
    setting.topic.produce([record("k", 0, 100, 2.0), record("gone", 0, 100, 2.0)]);
    price(&instance, &setting, "k", 2.0);
    price(&instance, &setting, "gone", 2.0);
    let late = record("k", 1, 200, 1.0);
    let delete = Record { partition: Some(1), timestamp: late.timestamp, ..Record::delete("gone") };
    // What says the same loses nothing.
    let same = Record { timestamp: late.timestamp, ..record("k", 1, 0, 2.0) };
    setting.topic.produce([late.clone(), delete, same, record("next", 1, 0, 3.0)]);
    price(&instance, &setting, "next", 3.0);
    price(&instance, &setting, "gone", 2.0);
    let found = letters(&setting);
    assert_eq!(found.len(), 2, "in the transaction that announces what is behind them");
    for (offset, letter) in found.iter().enumerate() {
        assert_eq!(letter.header("__connect.errors.partition"), Some("1"));
        assert_eq!(letter.header("__connect.errors.offset"), Some(offset.to_string().as_str()));
        assert_eq!(letter.header("__connect.errors.stage"), Some("conflict"));
        assert_eq!(letter.header("__connect.errors.exception.class.name"), Some("stillwell.Conflict"));
        let said = letter.header("__connect.errors.exception.message").unwrap_or_default();
        assert!(
            said.starts_with(&format!("{}[0] at offset {offset}, timestamp ", setting.dataset())),
            "{said}"
        );
    }
    assert_eq!((&found[0].key, &found[0].value), (&late.key, &late.value), "byte for byte");
    assert_eq!(found[0].headers[..2], late.headers[..]);
    assert_eq!((found[1].key.as_deref(), &found[1].value), (Some(&b"gone"[..]), &None));
    wait_until("both are counted", LONG, || match instance.metric("stillwell_dead_letters_total") {
        Some(2.0) => Ok(()),
        other => Err(format!("{other:?}")),
    });

    let list = ["--output", "json", "--stage", "conflict"];
    let listed = instance.run(&["dlq", "list"], &list).expect_code(0);
    assert_eq!(serde_json::from_str::<Vec<Value>>(&listed.stdout).expect("a list").len(), 2);
    let shown = instance.run(&["dlq", "show"], &["0"]).expect_code(0);
    assert!(
        shown.stdout.contains("stillwell.Conflict") && shown.stdout.contains("[0] at offset 0"),
        "{}",
        shown.stdout
    );
    let stale = instance.run(&["dlq", "replay"], &[]).expect_code(0);
    assert!(stale.stdout.contains("2 letters selected: 0 replayed, 2 stale"), "{}", stale.stdout);
    assert!(stale.stdout.contains("--force sends it with the time of now"), "{}", stale.stdout);
    let forced = instance.run(&["dlq", "replay"], &["--key", "k", "--force"]).expect_code(0);
    assert!(forced.stdout.contains("1 letter selected: 1 replayed"), "{}", forced.stdout);
    price(&instance, &setting, "k", 1.0);
    assert_eq!(letters(&setting).len(), 2, "it has not lost again");
    process.stop(LONG).expect_code(0);
}

/// Died at any step of the way, with its log and without, and in the end by another instance: each loser is a letter once.
#[test]
fn each_that_lost_is_a_letter_once_whatever_dies() {
    const EACH: usize = 3;
    let setting = Setting::new("conflicts", 2, SCHEMA);
    let (one, other) = (instance(&setting, "one"), instance(&setting, "other"));
    let points = ["build.delta", "announce.announcements", "announce.committed"];
    let key = |round: usize, nth: usize| format!("K-{round}-{nth}");
    let process = one.started();
    let won =
        (0..=points.len()).flat_map(|round| (0..EACH).map(move |nth| record(&key(round, nth), 0, 100, 2.0)));
    setting.topic.produce(won);
    price(&one, &setting, &key(points.len(), EACH - 1), 2.0);
    process.stop(LONG).expect_code(0);

    let mut lost = Vec::new();
    let mut lose = |round: usize| {
        let late = (0..EACH).map(|nth| record(&key(round, nth), 1, 200, 1.0));
        lost.extend(late.clone());
        setting.topic.produce(late);
    };
    for (round, point) in points.iter().enumerate() {
        lose(round);
        let mut dying = one.command_to_run(&[]);
        dying.env("FAILPOINTS", format!("{point}=return(abort)"));
        let died = Running::start(&mut dying).wait(LONG);
        assert!(!died.status.success(), "{point}: {}", died.stderr);
        if *point == "build.delta" {
            std::fs::remove_dir_all(setting.dir.path().join("one/log")).expect("the log is wiped");
        }
    }
    lose(points.len());
    let process = other.started();
    setting.topic.produce([record("end", 1, 0, 3.0)]);
    price(&other, &setting, "end", 3.0);
    let mut found: BTreeMap<usize, Vec<Message>> = BTreeMap::new();
    for letter in letters(&setting) {
        let offset = letter.header("__connect.errors.offset").and_then(|offset| offset.parse().ok());
        found.entry(offset.expect("a number")).or_default().push(letter);
    }
    assert_eq!(
        found.keys().copied().collect::<Vec<_>>(),
        (0..lost.len()).collect::<Vec<_>>(),
        "none is lost"
    );
    for ((offset, letters), record) in found.iter().zip(&lost) {
        assert_eq!(letters.len(), 1, "the letter of offset {offset} comes once");
        assert_eq!((&letters[0].key, &letters[0].value), (&record.key, &record.value));
    }
    process.stop(LONG).expect_code(0);
}
