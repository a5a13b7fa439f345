//! A rollback, by a pin: listener, webhook and event stream each see it as one change set, the difference of the two versions,
//! marked as what it is; a reader that its own configuration pins does not move.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};
use stillwell::Listening;
use stillwell_tests::{Running, wait_until, wait_until_async};

use crate::instance::{Instance, LONG};
use crate::line::SCHEMA;
use crate::listening::{Ear, Event, Events, Receiver, caught_up, listened};
use crate::pins::{one, produce, steering};
use crate::setting::{Model, Setting};

/// Key to what it was and what it is then.
type Changes = BTreeMap<String, (Option<Value>, Option<Value>)>;

/// What leads from one to the other.
fn difference(from: &Model, to: &Model) -> Changes {
    let keys = from.keys().chain(to.keys());
    let pair = |key: &Vec<u8>| (from.get(key).cloned(), to.get(key).cloned());
    let differ = keys.map(|key| (key, pair(key))).filter(|(_, (old, new))| old != new);
    differ.map(|(key, pair)| (String::from_utf8_lossy(key).into_owned(), pair)).collect()
}

/// A set of changes as a webhook or a stream tells it.
fn told(changes: &[Value]) -> Changes {
    let value = |change: &Value, name: &str| Some(change[name].clone()).filter(|value| !value.is_null());
    let pair = |change: &Value| (value(change, "old"), value(change, "new"));
    changes.iter().map(|change| (change["key"].as_str().expect("text").to_owned(), pair(change))).collect()
}

/// A model after a set of changes; checks that each old value is the one that is known.
fn apply(model: &mut Model, changes: &Changes) {
    for (key, (old, new)) in changes {
        let was = match new {
            Some(new) => model.insert(key.clone().into_bytes(), new.clone()),
            None => model.remove(key.as_bytes()),
        };
        assert_eq!(was, *old, "{key}");
    }
}

/// The next version of a stream that is a rollback (or is none) and changes something: its events.
fn next_version(events: &mut Events, rollback: bool) -> (Value, Vec<Event>) {
    let mut before = Vec::new();
    loop {
        let (id, name, data) = events.next().expect("the stream goes on");
        if name != "version" {
            before.push((id, name, data));
        } else if data["rollback"] == rollback && data["changes"] != 0 {
            return (data, before);
        } else {
            before.clear();
        }
    }
}

fn wait_for_version(instance: &Instance, dataset: &str, version: u64) {
    wait_until(&format!("version {version} is served"), LONG, || {
        let (_, body) =
            instance.get(&format!("/v1/datasets/{dataset}")).map_err(|error| error.to_string())?;
        let shown: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
        if shown["version"] == version && shown["ready"] == true { Ok(()) } else { Err(body) }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_one_change_set_for_listener_webhook_and_stream() {
    let mut setting = Setting::new("rolled-back", 1, SCHEMA);
    let receiver = Receiver::start(SocketAddr::from(([127, 0, 0, 1], 0)));
    let instance = Instance::new(&setting, "one");
    let hook = format!(
        "[datasets.\"{}\".consumer.webhook]\nurl = \"http://{}/\"\nbatch_size = 1000\n",
        setting.dataset(),
        receiver.address
    );
    instance.append(&hook);
    produce(&mut setting, 0);
    let process = instance.started();
    let ear = Ear::default();
    let consumer = listened(&setting, Listening::new("ear", ear.clone())).start().await.expect("it starts");
    setting.settled(&consumer).await;
    let (first, before) = (consumer.view().version(), setting.model.clone());
    let announced_at = consumer.view().announced_at_ms();
    let dataset = setting.dataset().to_owned();
    let mut events = Events::open(&instance, &dataset, None);
    for round in 1..4 {
        produce(&mut setting, round);
        setting.settled(&consumer).await;
    }
    let after = setting.model.clone();
    let all_heard = |version: u64| {
        let (ear, receiver) = (ear.clone(), &receiver);
        async move {
            wait_until_async("listener and webhook are there", LONG, || {
                let ear = ear.all().last().map(|set| set.version);
                let hook = receiver.requests().last().map(|(_, body, _)| body["version"].as_u64());
                std::future::ready(match (ear, hook.flatten()) {
                    (Some(ear), Some(hook)) if ear == version && hook == version => Ok(()),
                    at => Err(format!("{at:?}")),
                })
            })
            .await;
        }
    };
    caught_up(&setting, &ear).await;
    // Versions without a change may have come since, which nobody is told of.
    let last = ear.all().last().expect("it has heard").version;
    all_heard(last).await;
    let (sets, bodies) = (ear.all().len(), receiver.requests().len());

    steering(&setting).pin(&one(first), "the test", "a mistake").await.expect("it can be pinned");
    all_heard(first.0).await;
    let back = difference(&after, &before);
    let heard = ear.all();
    assert_eq!(heard.len(), sets + 1, "one set: {heard:?}");
    let set = heard.last().expect("a set");
    assert_eq!((set.rollback, set.version), (true, first.0), "{set:?}");
    let newest = consumer.status().readable.announced;
    assert!(set.from <= newest.0 && set.from >= last, "{set:?}, of {newest}");
    assert_eq!(set.changes, back);
    let requests = receiver.requests();
    assert_eq!(requests.len(), bodies + 1, "one body");
    let (_, body, _) = requests.last().expect("a body");
    assert_eq!(
        (&body["rollback"], &body["version"], &body["last"]),
        (&json!(true), &json!(first.0), &json!(true))
    );
    assert_eq!(told(body["changes"].as_array().expect("a list")), back);
    let (version, told_before) = next_version(&mut events, true);
    assert_eq!((&version["version"], &version["changes"]), (&json!(first.0), &json!(back.len())));
    let names: Vec<&str> = told_before.iter().map(|(_, name, _)| name.as_str()).collect();
    assert!(names[0] == "rollback" && names[1..].iter().all(|name| *name == "change"), "{names:?}");
    let changes: Vec<Value> = told_before.into_iter().skip(1).map(|(_, _, data)| data).collect();
    assert_eq!(told(&changes), back);

    // And free again: forward, each version by itself, to what was there all the time.
    steering(&setting).unpin().await.expect("it can be");
    setting.settled(&consumer).await;
    let forward = wait_until_async("the listener has followed", LONG, || {
        let forward = ear.all().split_off(sets + 1);
        let mut at = before.clone();
        forward.iter().for_each(|set| apply(&mut at, &set.changes));
        std::future::ready(if at == after { Ok(forward) } else { Err(format!("{forward:?}")) })
    })
    .await;
    // Of a version without a change between them nobody is told.
    assert!(forward.iter().all(|set| !set.rollback) && forward[0].from >= first.0, "{forward:?}");
    let mut at = before.clone();
    while at != after {
        let (_, told_before) = next_version(&mut events, false);
        let changes: Vec<Value> = told_before.into_iter().map(|(_, _, data)| data).collect();
        apply(&mut at, &told(&changes));
    }

    // Readers with a version, or a time, in their configuration stay where they are told to be.
    for (name, fixed) in [
        ("of-version", format!("version = {first}")),
        ("of-time", format!("at = \"{}\"", stillwell::clock::rfc3339(announced_at))),
    ] {
        let reader = Instance::new(&setting, name);
        reader.append(&format!("[datasets.\"{dataset}\".consumer]\n{fixed}\n"));
        let process = Running::start(&mut reader.command_to_run(&["--role", "consumer"]));
        wait_for_version(&reader, &dataset, first.0);
        let (_, health) = reader.get("/health").expect("it answers");
        let health: Value = serde_json::from_str(&health).expect("JSON");
        assert_eq!(health["datasets"][0]["pinned"]["versions"], json!([first.0]), "{health}");
        process.stop(LONG).expect_code(0);
    }
    consumer.shutdown().await.expect("it stops");
    process.stop(LONG).expect_code(0);
    receiver.stop();
}
