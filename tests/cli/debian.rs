//! Real data through the real binary: one process that writes, two that serve, and a fold made by other code.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stillwell_tests::debian::{SCHEMA, packages};
use stillwell_tests::{
    Record, Running, Topic, bootstrap, free_port, run, scratch, stillwell, unique, wait_until,
};

use crate::serving::{LONG, configure, get, until_ready};

type Model = BTreeMap<String, Value>;

/// Waits until a process serves as many records as the model has, with the value of a key that was touched last.
fn until_served(process: &mut Running, port: u16, name: &str, model: &Model, key: &str) {
    wait_until("the newest packages are served", LONG, || {
        if let Some(status) = process.ended() {
            panic!("it ended ({status}):\n{}", process.stderr());
        }
        let found = get(port, &format!("/v1/datasets/{name}")).json();
        let answer = get(port, &format!("/v1/datasets/{name}/records/{key}"));
        match found["records"] == model.len() && answer.json() == model[key] {
            true => Ok(()),
            false => Err(format!("{found} {}", answer.body)),
        }
    });
}

/// What `scan` prints, in its order.
fn scanned(config: &str, name: &str, store: &str) -> Vec<(String, Value)> {
    let scan = ["scan", name, "--prefix", "", "-c", config, "--set", store];
    let scan = run(&mut stillwell(scan), LONG).expect_code(0);
    let entry = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        (line["key"].as_str().unwrap().to_owned(), line["value"].take())
    };
    scan.stdout.lines().map(entry).collect()
}

#[test]
fn all_packages_as_json_are_served_by_two_processes_as_a_third_wrote_them() {
    let (topic, name) = (Topic::create("debian", 4), unique("debian"));
    let blobs = scratch();
    let store = format!("storage.blobs=file://{}", blobs.path().display());
    let dirs = [scratch(), scratch(), scratch()];
    let processes = dirs.iter().zip(["producer", "consumer", "consumer"]).map(|(dir, role)| {
        let port = free_port();
        let config = configure(dir.path(), &name, topic.name(), bootstrap(), port);
        std::fs::write(dir.path().join("product.avsc"), SCHEMA).unwrap();
        // The index that other tests ask for is of another schema.
        let text = std::fs::read_to_string(&config).unwrap().replace("indexes = [[\"price\"]]", "");
        std::fs::write(&config, text).unwrap();
        let started = stillwell(["run", "--role", role, "-c", &config, "--set", &store]);
        (config, port, started)
    });
    topic.produce(packages().iter().map(|(key, value)| Record::upsert(key, value.to_string())));
    let mut model: Model = packages().iter().cloned().collect();
    let last = packages().last().unwrap().0.as_str();
    let mut running: Vec<(String, u16, Running)> =
        processes.map(|(config, port, mut started)| (config, port, Running::start(&mut started))).collect();
    for (_, port, process) in &mut running {
        until_ready(process, *port);
    }
    for (_, port, process) in running.iter_mut().skip(1) {
        until_served(process, *port, &name, &model, last);
    }

    // An afternoon of updates: every fifth package is upgraded, every seventh is gone.
    let mut changes = Vec::new();
    for (index, (key, value)) in packages().iter().enumerate() {
        if index % 5 == 0 {
            let mut value = value.clone();
            value["version"] = json!(format!("{}+1", value["version"].as_str().unwrap()));
            changes.push(Record::upsert(key, value.to_string()));
            model.insert(key.clone(), value);
        }
        if index % 7 == 0 {
            changes.push(Record::delete(key));
            model.remove(key);
        }
    }
    let kept =
        packages().iter().rev().map(|(key, _)| key.as_str()).find(|key| model.contains_key(*key)).unwrap();
    topic.produce(changes);
    for (config, port, process) in running.iter_mut().skip(1) {
        until_served(process, *port, &name, &model, kept);
        let config = config.clone();
        // As many records, and the last of them, may be there a version before all are.
        wait_until("the scan equals the fold", LONG, || {
            let held = scanned(&config, &name, &store);
            let same = held.iter().map(|(key, value)| (key, value)).eq(model.iter());
            if same { Ok(()) } else { Err(format!("{} of {} records", held.len(), model.len())) }
        });
        for (key, value) in model.iter().step_by(997) {
            let key: String = key.bytes().map(|byte| format!("%{byte:02x}")).collect();
            assert_eq!(&get(*port, &format!("/v1/datasets/{name}/records/{key}")).json(), value);
        }
    }
    for (_, _, process) in running {
        process.stop(LONG).expect_code(0);
    }
}
