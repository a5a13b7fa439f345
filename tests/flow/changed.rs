//! A dataset whose configured schema is not the one that it was written with, and cannot be read as it.

use serde_json::json;
use stillwell_tests::{run, stillwell, wait_until};

use crate::instance::{Instance, LONG};
use crate::line::SCHEMA;
use crate::setting::Setting;

#[test]
fn a_schema_that_cannot_follow_is_found_by_the_check_and_leaves_a_process_that_says_so() {
    let mut setting = Setting::new("changed", 1, SCHEMA);
    let instance = Instance::new(&setting, "one");
    let record = setting.upsert("P-1", json!({"id": "P-1", "price": 1.0, "stock": 1}));
    setting.topic.produce([record]);
    let path = format!("/v1/datasets/{}/records/P-1", setting.dataset());
    let is_served = || {
        wait_until("the record is served", LONG, || match instance.get(&path) {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    let process = instance.started();
    is_served();
    process.stop(LONG).expect_code(0);
    let check = || run(stillwell(["check", "--connect", "-c"]).arg(instance.config()), LONG);
    let right = check().expect_code(0);
    assert!(right.stdout.contains("is announced, and can be carried on"), "{}", right.stdout);

    // Nor can a history go on without a topic that it was made of.
    let text = std::fs::read_to_string(instance.config()).expect("the configuration is there");
    let topics = |name: &str| format!("topics = [\"{name}\"]");
    let mistyped = text.replace(&topics(setting.dataset()), &topics("chagned"));
    assert_ne!(mistyped, text);
    let file = setting.dir.path().join("mistyped.toml");
    std::fs::write(&file, mistyped).expect("it is written");
    let gone = format!(
        "source topic {0} is part of dataset {0} since an earlier version, but not configured any more",
        setting.dataset()
    );
    let wrong = run(stillwell(["check", "--connect", "-c"]).arg(&file), LONG).expect_code(78);
    assert!(wrong.stderr.contains(&gone), "{}", wrong.stderr);

    let other = SCHEMA.replace("\"id\", \"type\": \"string\"", "\"id\", \"type\": \"int\"");
    assert_ne!(other, SCHEMA);
    std::fs::write(setting.dir.path().join("dataset.avsc"), other).expect("it is written");
    let said = format!("the schema of {} ", setting.dataset());
    let wrong = check().expect_code(78);
    assert!(wrong.stderr.contains(&said), "{}", wrong.stderr);

    // What was announced stays readable; but who rolls this out is told, and so is who looks.
    let process = instance.start();
    is_served();
    for (route, status) in [("/health", 503), ("/ready", 503)] {
        wait_until("the refusal is said", LONG, || match instance.get(route) {
            Ok((is, body)) if is == status && body.contains(&said) => Ok(()),
            other => Err(format!("{route}: {other:?}")),
        });
    }
    process.stop(LONG);
}
