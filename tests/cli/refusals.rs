//! What `run` refuses: it ends at once, with 78 and with what to do, where waiting would not help.

use std::fs::{Permissions, create_dir, set_permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;
use stillwell_tests::{
    Broker, Finished, Record, Running, Topic, bootstrap, free_port, run, scratch, stillwell, unique,
    unprivileged,
};

use crate::serving::{LONG, configure, get, until_ready, until_record};

fn refused(config: &str, more: &[&str]) -> Finished {
    run(stillwell(["run", "-c", config]).args(more), LONG).expect_code(78)
}

#[track_caller]
fn says(finished: &Finished, all: &[&str]) {
    for said in all {
        assert!(finished.stderr.contains(said), "not said: {said}\n{}", finished.stderr);
    }
    assert_eq!(finished.stdout, "", "stdout is for data");
}

/// One topic after another is named with all that it needs, until what was named has been made and it runs.
#[test]
fn a_missing_topic_that_may_not_be_created_is_named_with_what_it_needs() {
    let dir = scratch();
    let (name, port) = (unique("shop"), free_port());
    let config = configure(dir.path(), &name, &format!("{name}.in"), bootstrap(), port);
    let never = ["--set", "kafka.create_topics=false"];
    let kept = [("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")];
    let topics: [(_, &[(&str, &str)]); 4] = [
        (format!("{name}.in"), &[]),
        (format!("{name}.dlq"), &kept),
        (format!("{name}.control"), &[("cleanup.policy", "compact")]),
        (format!("{name}.announcements"), &kept),
    ];
    let sentence = |(topic, needs): &(String, &[(&str, &str)])| {
        let hint = needs.iter().map(|(key, value)| format!(", {key}={value}")).collect::<String>();
        format!(
            "topic {topic} does not exist and create_topics is false: create it with 1 partition(s){hint}"
        )
    };
    for (at, (topic, needs)) in topics.iter().enumerate() {
        let said: Vec<String> = topics[at..].iter().map(sentence).collect();
        says(&refused(&config, &never), &[&said[0]]);
        assert_eq!(Topic::named(topic).partitions(), 0, "it was not created all the same");
        let check = run(stillwell(["check", "--connect", "-c", &config]).args(never), LONG).expect_code(78);
        for said in &said {
            assert!(check.stderr.contains(said), "check says all that are missing: {said}\n{}", check.stderr);
        }
        Topic::create_on(Broker::shared(), topic, 1, needs);
    }
    let mut process = Running::start(stillwell(["run", "-c", &config]).args(never));
    until_ready(&mut process, port);
    process.stop(LONG).expect_code(0);
}

/// A letter may have no key, which a compacted topic does not take: one such record would stop the dataset for ever.
#[test]
fn a_letters_topic_that_does_not_take_every_letter_is_refused_and_one_that_forgets_is_said() {
    let dir = scratch();
    let (name, port) = (unique("shop"), free_port());
    let source = Topic::create("shop-in", 1);
    let config = configure(dir.path(), &name, source.name(), bootstrap(), port);
    let letters = Topic::create_on(
        Broker::shared(),
        &format!("{name}.dlq"),
        1,
        &[("cleanup.policy", "compact"), ("retention.ms", "604800000")],
    );
    let why = "has cleanup.policy=compact, but a letter without a key could not be written";
    says(&refused(&config, &[]), &[why, "set cleanup.policy=delete"]);
    let check = || run(&mut stillwell(["check", "--connect", "-c", &config]), LONG);
    assert!(check().expect_code(78).stderr.contains(why));

    letters.set(&[("cleanup.policy", "delete"), ("retention.ms", "604800000")]);
    let checked = check().expect_code(0).stdout;
    assert!(checked.contains("letters age out by retention.ms=604800000: set it to -1"), "{checked}");
    let mut process = Running::start(&mut stillwell(["run", "-c", &config]));
    process.wait_for_text("dead letters age out", LONG);
    until_ready(&mut process, port);
    process.stop(LONG).expect_code(0);
}

/// Kafka counts `a.b` and `a_b` as one name in its metrics, and so does not take the second of them.
#[test]
fn a_topic_name_that_is_no_name_or_that_kafka_refuses_ends_it() {
    let dir = scratch();
    let (name, port) = (unique("shop"), free_port());
    let config = configure(dir.path(), &name, "two words", bootstrap(), port);
    let wrong = refused(&config, &[]);
    says(&wrong, &[&format!("datasets.{name}.source.topics: \"two words\" has ' ' in it")]);

    Topic::create_on(Broker::shared(), &format!("{name}_in"), 1, &[]);
    let topic = format!("{name}.in");
    let config = configure(dir.path(), &name, &topic, bootstrap(), port);
    says(
        &refused(&config, &[]),
        &[&format!("creating topic {topic}"), "InvalidTopic", "no two may differ in '.' for '_' alone"],
    );
}

#[test]
fn a_second_process_on_the_same_data_directory_is_refused_until_the_first_has_gone() {
    let dir = scratch();
    let (topic, name) = (Topic::create("products", 1), unique("shop"));
    let (first_port, second_port) = (free_port(), free_port());
    let config = configure(dir.path(), &name, topic.name(), bootstrap(), first_port);
    topic.produce([Record::upsert("P-1", r#"{"id":"one"}"#)]);
    let mut first = Running::start(&mut stillwell(["run", "-c", &config]));
    until_ready(&mut first, first_port);

    // Another name and another port: only the directory is the same.
    let listen = format!("http.listen=127.0.0.1:{second_port}");
    let other = ["--set", listen.as_str(), "--set", "instance_id=other"];
    let data = dir.path().join("data");
    let pid = first.pid().to_string();
    says(&refused(&config, &other), &[&*data.to_string_lossy(), "is in use by process", &pid]);
    // Another dataset is none of an excuse: the directory is taken as a whole.
    let elsewhere = scratch();
    let second = configure(elsewhere.path(), &unique("shop"), topic.name(), bootstrap(), second_port);
    let there = format!("storage.data_dir={}", data.display());
    for role in [&[][..], &["--role", "producer"]] {
        let refused = refused(&second, &[&["--set", &there], role].concat());
        says(&refused, &["storage.data_dir", &*data.to_string_lossy(), "is in use by process", &pid]);
    }
    // A reader shares it.
    let mut reader = Running::start(stillwell(["run", "--role", "consumer", "-c", &config]).args(other));
    until_ready(&mut reader, second_port);
    reader.stop(LONG).expect_code(0);
    let record = format!("/v1/datasets/{name}/records/P-1");
    until_record(first_port, &record, Some(&json!({ "id": "one", "price": null })));
    assert_eq!(get(first_port, "/health").json()["status"], "healthy", "the first one is not disturbed");

    // However the first one ends: the lock goes with it.
    first.signal("KILL");
    first.wait(LONG);
    let mut second = Running::start(stillwell(["run", "-c", &config]).args(other));
    until_ready(&mut second, second_port);
    second.stop(LONG).expect_code(0);
}

fn allow(path: &Path, mode: u32) {
    set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
}

/// As a user without rights, and what is there belongs to somebody else, or is read-only.
#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let dir = scratch();
    allow(dir.path(), 0o755);
    // Nobody listens on port 1: Kafka is not what it fails for.
    let config = configure(dir.path(), "shop", "products", "127.0.0.1:1", free_port());
    let (locked, open) = (dir.path().join("locked"), dir.path().join("open"));
    create_dir(&locked).expect("a folder");
    create_dir(locked.join("there")).expect("a folder");
    create_dir(&open).expect("a folder");
    allow(&open, 0o777);
    allow(&locked.join("there"), 0o555);
    allow(&locked, 0o555);
    let attempt = |data: &Path, blobs: &Path| {
        let settings = [
            format!("storage.data_dir={}", data.display()),
            format!("storage.blobs=file://{}", blobs.display()),
        ];
        let command = stillwell(["run", "-c", &config, "--set", &settings[0], "--set", &settings[1]]);
        run(&mut unprivileged(&command, &open), LONG).expect_code(78)
    };
    for data in [locked.join("data"), locked.join("there")] {
        says(&attempt(&data, &open.join("blobs")), &[&*data.to_string_lossy(), "denied"]);
    }
    let blobs = locked.join("blobs");
    says(&attempt(&open.join("data"), &blobs), &[&*blobs.to_string_lossy(), "denied"]);
    // So that the folder can be removed.
    allow(&locked, 0o755);
}

/// A store that was there and can't be written now is waited for: it is said, and goes on when that is mended.
#[test]
fn a_store_that_cannot_be_written_is_said_and_waited_for() {
    let dir = scratch();
    allow(dir.path(), 0o755);
    let (topic, name, port) = (Topic::create("products", 1), unique("shop"), free_port());
    let config = configure(dir.path(), &name, topic.name(), bootstrap(), port);
    topic.produce([Record::upsert("P-1", r#"{"id":"one"}"#)]);
    let (open, blobs) = (dir.path().join("open"), dir.path().join("blobs"));
    create_dir(&open).expect("a folder");
    create_dir(&blobs).expect("a folder");
    allow(&open, 0o777);
    allow(&blobs, 0o555);
    let settings = [
        format!("storage.data_dir={}", open.join("data").display()),
        format!("storage.blobs=file://{}", blobs.display()),
    ];
    let command = stillwell(["run", "-c", &config, "--set", &settings[0], "--set", &settings[1]]);
    let mut process = Running::start(&mut unprivileged(&command, &open));
    process.wait_for_text("denied", LONG);
    assert_eq!(get(port, "/ready").status, 503);
    allow(&blobs, 0o777);
    until_ready(&mut process, port);
    let record = format!("/v1/datasets/{name}/records/P-1");
    until_record(port, &record, Some(&json!({ "id": "one", "price": null })));
    process.stop(LONG).expect_code(0);
}
