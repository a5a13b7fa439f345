//! Records larger than a dataset takes.

use serde_json::{Value, json};
use stillwell_tests::{Record, Topic, wait_until};

use crate::instance::{Instance, LONG};
use crate::line::SCHEMA;
use crate::setting::Setting;

/// What is larger than `max_record_size` is a letter, whole; it goes back once it may be so large.
#[test]
fn what_is_too_large_is_a_letter_and_comes_back_once_it_may() {
    let setting = Setting::new("oversized", 1, SCHEMA);
    let bounded = |name: &str, size: &str| {
        let instance = Instance::new(&setting, name);
        instance.append(&format!("[datasets.\"{}\"]\nmax_record_size = \"{size}\"", setting.dataset()));
        instance
    };
    let small = bounded("small", "100KB");
    let process = small.started();
    let headers = vec![("trace".to_owned(), Some(vec![0xff, 0]))];
    let large = json!({ "id": "x".repeat(150_000), "price": 1.5, "stock": null }).to_string();
    let long_key = "k".repeat(100_001);
    let records = [
        Record { headers: headers.clone(), ..Record::upsert("large", large) },
        Record { headers: headers.clone(), ..Record::delete(&long_key) },
    ];
    setting.topic.produce(records.clone());
    setting.topic.produce([Record::upsert("next", r#"{"id": "next", "price": 2.5, "stock": null}"#)]);
    let readable = |instance: &Instance, key: &str| {
        wait_until(&format!("{key} is in the dataset"), LONG, || {
            let path = format!("/v1/datasets/{}/records/{key}", setting.dataset());
            match instance.get(&path) {
                Ok((200, _)) => Ok(()),
                Ok((status, body)) => Err(format!("{status}: {body}")),
                Err(error) => Err(error.to_string()),
            }
        });
    };
    readable(&small, "next");
    // Counted once the commit is answered, which readers do not wait for.
    wait_until("both are counted", LONG, || match small.metric("stillwell_dead_letters_total") {
        Some(2.0) => Ok(()),
        counted => Err(format!("{counted:?}")),
    });
    let letters = Topic::named(&format!("{}.dlq", setting.dataset())).read();
    assert_eq!(letters.len(), 2, "in the transaction that announces what is behind them");
    for (offset, (letter, record)) in letters.iter().zip(&records).enumerate() {
        assert_eq!((&letter.key, &letter.value), (&record.key, &record.value));
        assert_eq!(letter.headers.first(), headers.first());
        assert_eq!(letter.header("__connect.errors.offset"), Some(offset.to_string().as_str()));
        assert_eq!(letter.header("__connect.errors.stage"), Some("KAFKA_CONSUME"));
        assert_eq!(letter.header("__connect.errors.exception.class.name"), Some("stillwell.Oversized"));
        let said = letter.header("__connect.errors.exception.message").unwrap_or_default();
        assert!(said.ends_with("and max_record_size is 100000"), "{said}");
    }
    let listed = small.run(&["dlq", "list"], &["--output", "json", "--stage", "oversized"]).expect_code(0);
    assert_eq!(serde_json::from_str::<Vec<Value>>(&listed.stdout).expect("a list").len(), 2);
    let left = small.run(&["dlq", "replay"], &[]).expect_code(1);
    assert!(left.stdout.contains("2 left (2 does not fit)"), "{}", left.stdout);
    process.stop(LONG).expect_code(0);

    let large = bounded("large", "200KB");
    let done = large.run(&["dlq", "replay"], &[]).expect_code(0);
    assert!(done.stdout.contains("2 letters selected: 2 replayed"), "{}", done.stdout);
    let process = large.started();
    readable(&large, "large");
    process.stop(LONG).expect_code(0);
}
