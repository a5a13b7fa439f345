//! A history ended and another begun over the same directories, as docs/errors.md tells people to do.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use stillwell_tests::{Record, Running, Topic, bootstrap, run, scratch, stillwell, unique, wait_until};

const LONG: Duration = Duration::from_secs(180);

/// A configuration of dataset `name`, which writes versions of `schema` to `announcements`.
fn configure(dir: &Path, name: &str, topic: &str, schema: &str, announcements: &str) -> String {
    let data = dir.join("data");
    std::fs::write(dir.join("schema.avsc"), schema).unwrap();
    let file = dir.join("stillwell.toml");
    let text = format!(
        r#"
        [kafka]
        bootstrap_servers = "{servers}"
        [storage]
        data_dir = "{data}"
        blobs = "file://{data}/blobs"
        [http]
        listen = "127.0.0.1:0"
        [producer.batching]
        batch_timeout = "50ms"
        [datasets."{name}"]
        source = {{ topics = ["{topic}"], format = "json" }}
        schema = "{schema}"
        announcements = "{announcements}"
        "#,
        servers = bootstrap(),
        data = data.display(),
        schema = dir.join("schema.avsc").display(),
    );
    std::fs::write(&file, text).unwrap();
    file.display().to_string()
}

/// Waits until a reading command prints exactly the model, in the order of its keys.
fn until_scan(process: &mut Running, config: &str, name: &str, model: &BTreeMap<String, Value>) {
    wait_until("the dataset equals the fold", LONG, || {
        if let Some(status) = process.ended() {
            panic!("it ended ({status}):\n{}", process.stderr());
        }
        let scan = run(&mut stillwell(["scan", name, "--prefix", "", "-c", config]), LONG);
        let lines: Result<Vec<Value>, _> = scan.stdout.lines().map(serde_json::from_str).collect();
        let held: BTreeMap<String, Value> = lines
            .map_err(|error| error.to_string())?
            .into_iter()
            .map(|line| (line["key"].as_str().unwrap_or_default().to_owned(), line["value"].clone()))
            .collect();
        if held == *model { Ok(()) } else { Err(format!("{held:?}\n{}", scan.stderr)) }
    });
}

#[test]
fn a_log_left_behind_does_not_leak_into_the_next_history() {
    let dir = scratch();
    let (topic, name) = (Topic::create("history", 1), unique("history"));
    let id = |n: u32| format!("P-{n}");
    topic.produce((0..300).map(|n| {
        Record::upsert(id(n), json!({ "id": id(n), "price": f64::from(n), "stock": n }).to_string())
    }));
    let first = r#"{"type": "record", "name": "Product", "fields": [
        {"name": "id", "type": "string"}, {"name": "stock", "type": "int"}]}"#;
    let announcements = format!("{name}.announcements");
    let config = configure(dir.path(), &name, topic.name(), first, &announcements);
    let model = (0..300).map(|n| (id(n), json!({ "id": id(n), "stock": n }))).collect();
    let mut process = Running::start(&mut stillwell(["run", "-c", &config]));
    until_scan(&mut process, &config, &name, &model);
    // Too little for the log to have deleted anything: all of it is still there, as datums of the first schema.
    process.signal("KILL");
    process.wait(LONG);

    let second = r#"{"type": "record", "name": "Product", "fields": [
        {"name": "price", "type": "double"}, {"name": "id", "type": "string"}]}"#;
    let config = configure(dir.path(), &name, topic.name(), second, &format!("{name}.announcements.2"));
    let model = (0..300).map(|n| (id(n), json!({ "price": f64::from(n), "id": id(n) }))).collect();
    let mut process = Running::start(&mut stillwell(["run", "-c", &config]));
    process.wait_for_text("the log was written for something else", LONG);
    until_scan(&mut process, &config, &name, &model);
    process.stop(LONG).expect_code(0);
}
