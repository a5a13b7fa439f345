//! The dataset's schema changes: at a version, for everybody, whenever they came and with whatever they have; and one that
//! may not follow is refused, by an instance that then lets others write.

use serde_json::{Value, json};
use stillwell::Producer;
use stillwell_tests::{read_by_avro_tools, run, scratch, stillwell, wait_until, wait_until_async};

use crate::instance::{Instance, LONG};
use crate::pins::{one, steering};
use crate::setting::{Model, Setting, contents};

const FIRST: &str = r#"{"type": "record", "name": "Product", "fields": [
    {"name": "id", "type": "string"}, {"name": "price", "type": "int"},
    {"name": "colour", "type": "string"}, {"name": "old", "type": "string", "default": "-"}]}"#;
/// A field more, one less, one promoted, one renamed, and all in another order.
const SECOND: &str = r#"{"type": "record", "name": "shop.Product", "aliases": ["Product"], "fields": [
    {"name": "tint", "type": ["null", "string"], "default": null, "aliases": ["colour"]},
    {"name": "price", "type": "double"}, {"name": "note", "type": "string", "default": "none"},
    {"name": "id", "type": "string"}]}"#;
/// Follows the second, which follows it.
const THIRD: &str = r#"{"type": "record", "name": "shop.Product", "fields": [
    {"name": "id", "type": "string"}, {"name": "price", "type": "double"},
    {"name": "tint", "type": ["null", "string"], "default": null}]}"#;
const UNFIT: &str = r#"{"type": "record", "name": "Product", "fields": [
    {"name": "id", "type": "string"}, {"name": "price", "type": "string"}, {"name": "weight", "type": "int"}]}"#;

fn fingerprint(schema: &str) -> u64 {
    stillwell::schema::Schema::parse(schema).expect("a schema").fingerprint()
}

/// 40 products of the first schema.
fn first(setting: &mut Setting, round: i32) {
    let records: Vec<_> = (round * 20..round * 20 + 40)
        .map(|n| {
            let id = format!("P-{n:02}");
            setting.upsert(&id, json!({"id": id, "price": n, "colour": "red", "old": format!("was {round}")}))
        })
        .collect();
    setting.topic.produce(records);
}

fn as_second(model: &Model) -> Model {
    let row = |row: &Value| {
        let price = row["price"].as_f64().expect("a number");
        json!({"tint": row["colour"], "price": price, "note": "none", "id": row["id"]})
    };
    model.iter().map(|(key, value)| (key.clone(), row(value))).collect()
}

async fn refused(producer: &Producer, words: &[&str]) {
    wait_until_async("the producer says why it does not write", LONG, || {
        let error = producer.status().error.unwrap_or_default();
        std::future::ready(if words.iter().all(|word| error.contains(word)) { Ok(()) } else { Err(error) })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_changes_at_a_version_and_everybody_reads_on() {
    let mut setting = Setting::new("evolving", 2, FIRST);
    let (kept, fresh) = (scratch(), scratch());
    first(&mut setting, 0);
    let producer = setting.producer().await;
    let consumer = setting.consumer(kept.path()).await;
    setting.settled(&consumer).await;
    first(&mut setting, 1);
    setting.settled(&consumer).await;
    let before = setting.model.clone();
    let last = producer.shutdown().await.expect("it stops").version.expect("it announced");
    let held = consumer.view();

    // What does not resolve is refused, with each field, and changes nothing.
    let unfit = setting.builder().schema(UNFIT).start().await.expect("it starts");
    refused(
        &unfit,
        &["price: int is no string", "weight: the writer's record lacks it, and it has no default"],
    )
    .await;
    unfit.shutdown().await.expect("it stops");

    setting.schema = SECOND.to_owned();
    setting.model = as_second(&before);
    let producer = setting.producer().await;
    setting.settled(&consumer).await;
    let turned = consumer.view();
    assert_eq!(turned.schema().fingerprint(), fingerprint(SECOND));
    // Whoever holds the version before reads it as it was; between the two no key has changed.
    assert_eq!(contents(&held), before);
    assert_eq!(held.schema().fingerprint(), fingerprint(FIRST));
    assert_eq!(turned.changes_from(&held).count(), 0);
    let opened = setting.consumer(fresh.path()).await;
    setting.settled(&opened).await;

    // Values of both schemas in one version, and a deletion of one from before.
    let mut records: Vec<_> = (30..70)
        .map(|n| {
            let id = format!("P-{n:02}");
            setting.upsert(&id, json!({"tint": null, "price": 0.5, "note": "new", "id": id}))
        })
        .collect();
    records.push(setting.delete("P-03"));
    // The same as it was read anyway: no change.
    let same = setting.model[&b"P-05"[..]].clone();
    records.push(setting.upsert("P-05", same));
    setting.topic.produce(records);
    for consumer in [&consumer, &opened] {
        setting.settled(consumer).await;
    }

    // The change is a version by itself, and a snapshot all of which is of the new schema follows at once.
    let instance = Instance::new(&setting, "commands");
    let snapshot = wait_until("a snapshot of the new schema is announced", LONG, || {
        let versions = instance.versions();
        let newest = versions.last().expect("there are some");
        match newest["snapshot"]["version"].as_u64() {
            Some(version) if version > last.0 => {
                Ok(newest["snapshot"]["url"].as_str().expect("text").to_owned())
            }
            _ => Err(newest.to_string()),
        }
    });
    let versions = instance.versions();
    for version in &versions {
        let number = version["version"].as_u64().expect("a number");
        let expected = fingerprint(if number <= last.0 { FIRST } else { SECOND });
        assert_eq!(fingerprint(&version["schema"].to_string()), expected, "version {number}");
    }
    let boundary = &versions[last.0 as usize];
    assert_eq!((&boundary["upserts"], &boundary["deletes"]), (&json!(0), &json!(0)), "{boundary}");
    assert_eq!(boundary["records"], json!(before.len()));
    for url in [
        &snapshot,
        boundary["delta"]["url"].as_str().expect("text"),
        versions[1]["delta"]["url"].as_str().expect("text"),
    ] {
        run(&mut stillwell(["blob", "verify", url]), LONG).expect_code(0);
    }
    let path = snapshot.strip_prefix("file://").expect("a file");
    for entry in read_by_avro_tools(std::path::Path::new(path)) {
        let fields = entry["value"].as_object().and_then(|branch| branch.values().next()).expect("a value");
        assert!(
            fields["price"].is_f64() && fields.get("tint").is_some() && fields.get("old").is_none(),
            "{entry}"
        );
    }

    // Back over the change by a pin, also for who comes with nothing; and forth.
    let steering = steering(&setting);
    steering.pin(&one(last), "a test", "").await.expect("it is kept");
    let empty = scratch();
    let pinned = setting.consumer(empty.path()).await;
    for consumer in [&consumer, &pinned] {
        wait_until_async("the pinned version is read", LONG, || {
            let view = consumer.view();
            std::future::ready(match view.version() == last && contents(&view) == before {
                true => Ok(()),
                false => Err(format!("version {} of {:?}", view.version(), view.schema())),
            })
        })
        .await;
    }
    steering.unpin().await.expect("it is taken back");
    for consumer in [&consumer, &pinned] {
        setting.settled(consumer).await;
    }
    pinned.shutdown().await.expect("it stops");

    // Started again with what they had, and with nothing.
    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
    std::fs::remove_dir_all(setting.data_dir()).expect("the disk is wiped");
    let producer = setting.producer().await;
    let record = setting.upsert("P-77", json!({"tint": "blue", "price": 1.5, "note": "last", "id": "P-77"}));
    setting.topic.produce([record]);
    let consumer = setting.consumer(kept.path()).await;
    for consumer in [&consumer, &opened] {
        setting.settled(consumer).await;
    }
    consumer.shutdown().await.expect("it stops");
    opened.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn yesterdays_schema_does_not_come_back_unasked() {
    let mut setting = Setting::new("yesterday", 1, SECOND);
    let cache = scratch();
    let row = |id: &str, note: &str| json!({"tint": "red", "price": 1.5, "note": note, "id": id});
    let record = setting.upsert("a", row("a", "mine"));
    setting.topic.produce([record]);
    let producer = setting.producer().await;
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    producer.shutdown().await.expect("it stops");

    setting.schema = THIRD.to_owned();
    let third = |id: &str| json!({"id": id, "price": 1.5, "tint": "red"});
    setting.model = Model::from([(b"a".to_vec(), third("a"))]);
    let producer = setting.producer().await;
    setting.settled(&consumer).await;
    // What only the schema before had is an unknown field by now.
    let record = setting.upsert("b", row("b", "more"));
    setting.topic.produce([record]);
    setting.model.insert(b"b".to_vec(), third("b"));
    setting.settled(&consumer).await;
    let version = producer.shutdown().await.expect("it stops").version.expect("it announced");
    // What it announced at its end lists a snapshot, and changes nothing.
    wait_until_async("the last version is read", LONG, || {
        let held = consumer.view().version();
        std::future::ready(if held == version { Ok(()) } else { Err(held) })
    })
    .await;

    let outdated = setting.builder().schema(SECOND).start().await.expect("it starts");
    let fingerprint = fingerprint(THIRD);
    let remedy = format!("schema_replaces = \"{fingerprint:016x}\"");
    refused(&outdated, &["was in force before", &remedy]).await;
    assert_eq!(consumer.view().version(), version);
    outdated.shutdown().await.expect("it stops");

    // Another text of the schema in force is no other schema.
    let documented = THIRD.replacen("\"name\"", "\"doc\": \"What is sold.\", \"name\"", 1);
    let producer = setting.builder().schema(&documented).start().await.expect("it starts");
    let told = |text: &'static str| {
        let consumer = &consumer;
        wait_until_async("the schema's text is announced", LONG, move || {
            let schema = consumer.view().schema().json().to_owned();
            std::future::ready(if schema.contains(text) { Ok(()) } else { Err(schema) })
        })
    };
    told("What is sold.").await;
    producer.shutdown().await.expect("it stops");
    // And an instance with the older text writes under the newer one.
    let producer = setting.producer().await;
    let record = setting.upsert("c", third("c"));
    setting.topic.produce([record]);
    setting.settled(&consumer).await;
    assert!(consumer.view().schema().json().contains("What is sold."));
    producer.shutdown().await.expect("it stops");

    // Asked for, it comes back; what the schema in between lacks has its default.
    let producer = setting.builder().schema(SECOND).schema_replaces(fingerprint).start().await;
    let producer = producer.expect("it starts");
    for (key, value) in &mut setting.model {
        *value = row(std::str::from_utf8(key).expect("text"), "none");
    }
    setting.settled(&consumer).await;
    // It may stay set.
    producer.shutdown().await.expect("it stops");
    let producer = setting.builder().schema(SECOND).schema_replaces(fingerprint).start().await;
    let record = setting.upsert("d", row("d", "mine"));
    setting.topic.produce([record]);
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    producer.expect("it starts").shutdown().await.expect("it stops");
}

/// An instance with a schema of its own.
fn instance(setting: &Setting, name: &str, schema: &str) -> Instance {
    let instance = Instance::new(setting, name);
    let file = setting.dir.path().join(format!("{name}.avsc"));
    std::fs::write(&file, schema).expect("the schema is written");
    let text = std::fs::read_to_string(instance.config()).expect("it was written");
    let text = text.replace("dataset.avsc", &format!("{name}.avsc"));
    std::fs::write(instance.config(), text).expect("the configuration is written");
    instance
}

#[test]
fn an_instance_whose_schema_will_not_do_says_so_and_leaves_the_shard_to_others() {
    let mut setting = Setting::new("unfit", 1, FIRST);
    first(&mut setting, 0);
    let (good, bad) = (instance(&setting, "good", FIRST), instance(&setting, "bad", UNFIT));
    let process = good.started();
    let mut unfit = bad.started();
    process.stop(LONG).expect_code(0);

    // It is given the shard, and refuses: each field is named. What it holds is read all the same.
    wait_until("health names the fields", LONG, || {
        let (_, body) = bad.get("/health").map_err(|error| error.to_string())?;
        let named = ["price: int is no string", "weight: the writer's record lacks it"]
            .iter()
            .all(|word| body.contains(word));
        if named { Ok(()) } else { Err(body) }
    });
    let record = format!("/v1/datasets/{}/records/P-07", setting.dataset());
    let (status, body) = bad.get(&record).expect("it answers");
    assert_eq!(status, 200, "{body}");
    unfit.wait_for_text("the shard is left to another instance", LONG);

    // Another one has it, while the one that refused is still there, and still says so.
    let process = good.start();
    let late = setting.upsert("P-99", json!({"id": "P-99", "price": 9, "colour": "late", "old": "-"}));
    setting.topic.produce([late]);
    wait_until("the new record is read by the one that cannot write", LONG, || {
        let (status, body) = bad.get(&record.replace("P-07", "P-99")).map_err(|error| error.to_string())?;
        if status == 200 { Ok(()) } else { Err(body) }
    });
    let (_, body) = bad.get("/health").expect("it answers");
    assert!(body.contains("price: int is no string"), "{body}");
    wait_until("both list the same versions", LONG, || {
        // One may come between the two.
        let newest = (bad.newest(), good.newest());
        if newest.0 == newest.1 { Ok(()) } else { Err(format!("{newest:?}")) }
    });
    unfit.stop(LONG).expect_code(0);
    process.stop(LONG).expect_code(0);
}
