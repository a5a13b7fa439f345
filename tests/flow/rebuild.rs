//! The source's ground shifts: a topic made anew, records gone before they were published. The life refuses with the
//! remedy, and `stillwell rebuild` is that remedy: one next version that equals what the topic holds.

use serde_json::{Value, json};
use stillwell_tests::{Broker, Record, Running, Topic, scratch, wait_until};

use crate::encodings::Several;
use crate::instance::{Instance, LONG};
use crate::line::SCHEMA;
use crate::setting::Setting;

fn product(setting: &mut Setting, i: usize, price: f64) -> Record {
    let id = format!("P-{i}");
    setting.upsert(&id, json!({"id": id, "price": price, "stock": null}))
}

/// The dataset as a fresh reader finds it.
async fn settled(setting: &Setting) {
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
}

/// Deletes the topic and makes it anew.
fn make_anew(topic: &Topic, partitions: i32, config: &[(&str, &str)]) {
    topic.delete();
    wait_until("the topic is gone", LONG, || match topic.partitions() {
        0 => Ok(()),
        seen => Err(format!("{seen} partitions")),
    });
    Topic::create_on(Broker::shared(), topic.name(), partitions, config);
}

fn outcome(finished: stillwell_tests::Finished) -> Value {
    let finished = finished.expect_code(0);
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {}", finished.stdout))
}

/// What is announced for version `version`.
fn version(instance: &Instance, version: u64) -> Value {
    let listed = instance.versions();
    listed.into_iter().find(|listed| listed["version"] == version).expect("it is listed")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_is_refused_until_a_rebuild_makes_it_the_next_version() {
    let mut setting = Setting::new("anew", 2, SCHEMA);
    let first: Vec<_> = (0..300).map(|i| product(&mut setting, i, 1.0)).collect();
    setting.topic.produce(first);
    let instance = Instance::new(&setting, "one");
    let process = instance.started();
    settled(&setting).await;
    process.stop(LONG).expect_code(0);
    let before = instance.newest();

    // 0..100 are gone, 100..200 as they were, 200..250 changed, one deleted in so many words, two are new, one misfits.
    make_anew(&setting.topic, 3, &[("cleanup.policy", "compact")]);
    setting.model.clear();
    let mut anew: Vec<_> = (100..200).map(|i| product(&mut setting, i, 1.0)).collect();
    anew.extend((200..250).map(|i| product(&mut setting, i, 2.0)));
    anew.extend([product(&mut setting, 1_000, 3.0), product(&mut setting, 1_001, 3.0)]);
    anew.extend([product(&mut setting, 299, 9.0), setting.delete("P-299")]);
    anew.push(Record::upsert("misfit", "{\"id\": 7}"));
    setting.topic.produce(anew);

    let mut process = instance.start();
    process.wait_for_text("was deleted and created again", LONG);
    process.wait_for_text(&format!("Run `stillwell rebuild {}`", setting.dataset()), LONG);
    assert_eq!(instance.newest(), before, "nothing was read of it");
    let (_, health) = instance.get("/health").expect("it answers");
    assert!(health.contains("stillwell rebuild"), "{health}");

    // Somebody has to agree.
    instance.run(&["rebuild"], &[]).expect_code(65);
    let would = outcome(instance.run(&["rebuild"], &["--dry-run", "--output", "json"]));
    assert_eq!(would["partitions"].as_array().expect("a list").len(), 3);
    assert_eq!(would["partitions"][0]["state"], "made anew");
    // Without what is gone: 0..100, 250..300, P-299 among them.
    assert_eq!(
        (&would["added"], &would["changed"], &would["deleted"], &would["unchanged"], &would["letters"]),
        (&json!(2), &json!(50), &json!(150), &json!(100), &json!(1)),
        "{would}"
    );
    assert_eq!(instance.newest(), before, "a dry run changes nothing");

    let done = outcome(instance.run(&["rebuild"], &["--yes", "--output", "json"]));
    assert_eq!(
        (&done["version"], &done["upserts"], &done["deletes"], &done["kept"], &done["letters"]),
        (&json!(before + 1), &json!(52), &json!(150), &json!(0), &json!(1)),
        "{done}"
    );
    settled(&setting).await;
    let rebuilt = version(&instance, before + 1);
    assert_eq!(rebuilt["positions"].as_array().expect("a list").len(), 3, "of the topic as it is: {rebuilt}");
    let letters = Topic::named(&format!("{}.dlq", setting.dataset())).read();
    assert_eq!(
        letters.iter().map(|letter| letter.key.as_deref()).collect::<Vec<_>>(),
        [Some(&b"misfit"[..])]
    );

    // It goes on from there, over a restart too, also for keys that came from the topic before.
    let more = [product(&mut setting, 150, 5.0), setting.delete("P-151"), product(&mut setting, 2_000, 5.0)];
    setting.topic.produce(more);
    settled(&setting).await;
    process.stop(LONG).expect_code(0);
    let process = instance.started();
    let more = [product(&mut setting, 160, 6.0)];
    setting.topic.produce(more);
    settled(&setting).await;
    let finished = process.stop(LONG).expect_code(0);
    assert!(!finished.stderr.contains("has moved to another partition"), "{}", finished.stderr);
    instance.newest();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_says_what_is_gone_it_is_kept_and_counted_until_deletes_are_asked_for() {
    let mut setting = Setting::new("kept", 1, SCHEMA);
    let first: Vec<_> = (0..50).map(|i| product(&mut setting, i, 1.0)).collect();
    setting.topic.produce(first);
    let instance = Instance::new(&setting, "one");
    let process = instance.started();
    settled(&setting).await;
    process.stop(LONG).expect_code(0);
    let before = instance.newest();
    make_anew(&setting.topic, 1, &[]);
    let anew: Vec<_> = (40..60).map(|i| product(&mut setting, i, 2.0)).collect();
    setting.topic.produce(anew);

    // Asked for before anybody runs: it is the first thing that the next life does.
    let mut asking = Running::start(&mut instance.command(&["rebuild"], &["--yes", "--output", "json"]));
    asking.wait_for_text("waiting for the owner", LONG);
    let process = instance.start();
    let done = outcome(asking.wait(LONG));
    assert_eq!(
        (&done["version"], &done["upserts"], &done["deletes"], &done["kept"]),
        (&json!(before + 1), &json!(20), &json!(0), &json!(40)),
        "{done}"
    );
    settled(&setting).await;
    // And while a life runs.
    let done = outcome(instance.run(&["rebuild"], &["--yes", "--deletes", "--output", "json"]));
    assert_eq!((&done["upserts"], &done["deletes"]), (&json!(0), &json!(40)), "{done}");
    for i in 0..40 {
        setting.model.remove(format!("P-{i}").as_bytes());
    }
    settled(&setting).await;
    let nothing = outcome(instance.run(&["rebuild"], &["--yes", "--deletes", "--output", "json"]));
    assert_eq!((&nothing["upserts"], &nothing["deletes"]), (&json!(0), &json!(0)), "{nothing}");
    instance.run(&["rebuild"], &["--withdraw"]).expect_code(65);
    process.stop(LONG).expect_code(0);
    instance.newest();
}

/// While it lasts nothing can be stored: a file lies where the dataset's folder has to be.
struct StoreAway {
    folder: std::path::PathBuf,
    aside: std::path::PathBuf,
}

impl StoreAway {
    fn of(setting: &Setting) -> StoreAway {
        let blobs = setting.dir.path().join("blobs");
        let (folder, aside) = (blobs.join(setting.dataset()), blobs.join("aside"));
        std::fs::rename(&folder, &aside).expect("the folder is there");
        std::fs::write(&folder, "").expect("a file in its place");
        StoreAway { folder, aside }
    }

    fn back(self) {
        std::fs::remove_file(&self.folder).expect("the file is there");
        std::fs::rename(&self.aside, &self.folder).expect("the folder is put back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kafka_lost_and_the_log_kept_is_not_lost() {
    let mut setting = Setting::new("trimmed", 1, SCHEMA);
    let first: Vec<_> = (0..50).map(|i| product(&mut setting, i, 1.0)).collect();
    setting.topic.produce(first);
    let instance = Instance::new(&setting, "one");
    let mut process = instance.started();
    settled(&setting).await;

    // Received, durable in the log, and never published: the store is away until the process is killed.
    let away = StoreAway::of(&setting);
    let logged: Vec<_> = (50..80).map(|i| product(&mut setting, i, 2.0)).collect();
    setting.topic.produce(logged);
    wait_until("they are in the log", LONG, || match instance.metric("stillwell_pending_records") {
        Some(pending) if pending >= 30.0 => Ok(()),
        pending => Err(format!("{pending:?}")),
    });
    process.signal("KILL");
    process.wait(LONG);
    away.back();
    let before = instance.newest();
    // While nobody reads, more comes, and retention passes all that was logged and ten of what came: those are lost.
    let unread: Vec<_> = (80..120).map(|i| product(&mut setting, i, 3.0)).collect();
    setting.topic.produce(unread);
    setting.topic.delete_before(0, 90);
    for i in 80..90 {
        setting.model.remove(format!("P-{i}").as_bytes());
    }

    let mut process = instance.start();
    process.wait_for_text("is not in Kafka any more", LONG);
    process.wait_for_text("`stillwell rebuild`", LONG);
    let done = outcome(instance.run(&["rebuild"], &["--yes", "--from", "positions", "--output", "json"]));
    assert_eq!((&done["deletes"], &done["kept"]), (&json!(0), &json!(0)), "{done}");
    settled(&setting).await;
    assert!(instance.newest() > before);
    let more = [product(&mut setting, 0, 7.0)];
    setting.topic.produce(more);
    settled(&setting).await;
    process.stop(LONG).expect_code(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_is_killed_begins_again_and_announces_once() {
    let mut setting = Setting::new("killed", 2, SCHEMA);
    let first: Vec<_> = (0..1_000).map(|i| product(&mut setting, i, 1.0)).collect();
    setting.topic.produce(first);
    let instance = Instance::new(&setting, "one");
    let mut process = instance.started();
    settled(&setting).await;
    process.signal("KILL");
    process.wait(LONG);
    let before = instance.newest();
    make_anew(&setting.topic, 2, &[]);
    setting.model.clear();
    let anew: Vec<_> = (500..60_000).map(|i| product(&mut setting, i % 20_000 + 500, i as f64)).collect();
    setting.topic.produce(anew);

    let mut asking =
        Running::start(&mut instance.command(&["rebuild"], &["--yes", "--deletes", "--output", "json"]));
    asking.wait_for_text("waiting for the owner", LONG);
    // At its beginning, and once the whole version lies ready to be stored.
    for at in ["rebuilding from the source", "rebuilt; the version is stored"] {
        let mut process = instance.start();
        process.wait_for_text(at, LONG);
        process.signal("KILL");
        process.wait(LONG);
    }
    let reached = instance.newest();
    assert!(reached <= before + 1, "at most the whole of it");
    let process = instance.start();
    let done = outcome(asking.wait(LONG));
    assert_eq!(done["version"], before + 1, "{done}");
    settled(&setting).await;
    // The life behind it may make a snapshot at once, and say so in an empty version.
    let versions = instance.versions();
    let behind = versions.iter().filter(|version| version["version"].as_u64() > Some(before));
    let changes = behind.filter(|version| version["upserts"] != 0 || version["deletes"] != 0);
    assert_eq!(changes.count(), 1, "once");
    process.stop(LONG).expect_code(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_before_and_does_not_fit_any_more_is_a_letter_and_no_silent_delete() {
    let mut setting = Setting::new("unfit", 1, SCHEMA);
    let mut records: Vec<_> = (0..10).map(|i| product(&mut setting, i, 1.0)).collect();
    records.push(Record::upsert("misfit", "{\"id\": 7}"));
    setting.topic.produce(records);
    let process = Instance::new(&setting, "one").started();
    settled(&setting).await;
    process.stop(LONG).expect_code(0);
    let letters = Topic::named(&format!("{}.dlq", setting.dataset()));
    assert_eq!(letters.read().len(), 1);

    // The versions follow the alias; the JSON of the records knows nothing of it.
    setting.schema = SCHEMA.replace("\"price\"", "\"cost\", \"aliases\": [\"price\"]");
    for row in setting.model.values_mut() {
        let row = row.as_object_mut().expect("a record");
        let price = row.remove("price").expect("it is there");
        row.insert("cost".to_owned(), price);
    }
    let instance = Instance::new(&setting, "one");
    let process = instance.started();
    settled(&setting).await;
    let asked = ["--deletes", "--dry-run", "--output", "json"];
    let would = outcome(instance.run(&["rebuild"], &asked));
    assert_eq!(
        (&would["letters"], &would["unfit"], &would["deleted"]),
        (&json!(10), &json!(10), &json!(10)),
        "{would}"
    );
    let said = instance.run(&["rebuild"], &["--deletes", "--dry-run"]).expect_code(0).stdout;
    assert!(said.contains("of those 10 were taken when they were first read"), "{said}");
    let done = outcome(instance.run(&["rebuild"], &["--deletes", "--yes", "--output", "json"]));
    assert_eq!((&done["letters"], &done["deletes"]), (&json!(10), &json!(10)), "{done}");
    setting.model.clear();
    settled(&setting).await;
    let keys: Vec<_> = letters.read().into_iter().filter_map(|letter| letter.key).collect();
    assert_eq!(keys.iter().filter(|key| **key == b"misfit").count(), 1, "it was one before");
    assert_eq!(keys.len(), 11, "each record that has gone is in its letter");
    // Once more: now they are letters.
    let would = outcome(instance.run(&["rebuild"], &asked));
    assert_eq!((&would["letters"], &would["unfit"]), (&json!(0), &json!(0)), "{would}");
    process.stop(LONG).expect_code(0);
}

/// Each topic is read anew in its own format, its keys too: what is as it was makes no difference, and what was made anew is
/// found under the keys that it had.
#[tokio::test(flavor = "multi_thread")]
async fn topics_of_several_formats_are_each_read_in_their_own() {
    let mut several = Several::new("formats");
    let bob = b"\x06Bob\x04";
    several.setting.topic.produce([Record::upsert("1", Several::row(1, "Ada").to_string())]);
    several.avro.produce([Record::upsert("2", bob)]);
    several.protobuf.produce([
        Record::upsert("3", several.message(b"\x08\x03\x12\x04Cleo")),
        Record::upsert("30", several.message(b"\x08\x1e\x12\x04Cora")),
    ]);
    several.changes.produce([Several::created(4, "Dan"), Several::created(5, "Eve"), Several::gone(5)]);
    let rows = [(1, "Ada"), (2, "Bob"), (3, "Cleo"), (30, "Cora"), (4, "Dan")];
    for (id, name) in rows {
        several.setting.model.insert(id.to_string().into(), Several::row(id, name));
    }
    let process = several.instance.started();
    settled(&several.setting).await;
    let rebuild = ["--yes", "--deletes", "--output", "json"];
    let done = outcome(several.instance.run(&["rebuild"], &rebuild));
    let counts = |done: &Value| ["upserts", "deletes", "letters"].map(|name| done[name].clone());
    assert_eq!(counts(&done), [json!(0), json!(0), json!(0)], "{done}");
    settled(&several.setting).await;
    process.stop(LONG).expect_code(0);

    make_anew(&several.protobuf, 1, &[]);
    make_anew(&several.changes, 1, &[]);
    several.protobuf.produce([
        Record::upsert("3", several.message(b"\x08\x03\x12\x03Zoe")),
        Record::upsert("31", several.message(b"\x08\x1f\x12\x03Kim")),
        // As the topic in Avro has it.
        Record::upsert("32", bob),
    ]);
    several.changes.produce([
        Several::created(4, "Don"),
        Several::created(6, "Flo"),
        Several::created(7, "Guy"),
        Several::gone(7),
        Several::created(8, "Hal"),
        Record::delete(r#"{"id": 8}"#),
    ]);
    several.setting.model.remove(&b"30"[..]);
    for (id, name) in [(3, "Zoe"), (31, "Kim"), (4, "Don"), (6, "Flo")] {
        several.setting.model.insert(id.to_string().into(), Several::row(id, name));
    }
    let mut process = several.instance.start();
    process.wait_for_text("was deleted and created again", LONG);
    let done = outcome(several.instance.run(&["rebuild"], &rebuild));
    assert_eq!(counts(&done), [json!(4), json!(1), json!(1)], "{done}");
    settled(&several.setting).await;
    let letters = Topic::named(&format!("{}.dlq", several.setting.dataset())).read();
    let keys: Vec<_> = letters.iter().map(|letter| letter.key.as_deref()).collect();
    assert_eq!(keys, [Some(&b"32"[..])]);
    assert_eq!(letters[0].header("__connect.errors.topic"), Some(several.protobuf.name()));
    process.stop(LONG).expect_code(0);
}
