//! What operators ask for: pins by command and route, a pin that the cleaner passes, a snapshot now.

use serde_json::{Value, json};
use stillwell::Version;
use stillwell::format::announcement::Message;
use stillwell_tests::{Record, Running, scratch, wait_until, wait_until_async};

use crate::instance::{Instance, LONG};
use crate::line::SCHEMA;
use crate::pins::{one, produce, steering};
use crate::setting::Setting;

/// A route's answer as JSON.
fn json_of(answer: std::io::Result<(u16, String)>, status: u16) -> Value {
    let (code, body) = answer.expect("it answers");
    assert_eq!(code, status, "{body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_pin_by_command_and_route_and_see_it_everywhere() {
    let mut setting = Setting::new("operated", 1, SCHEMA);
    produce(&mut setting, 0);
    let instance = Instance::new(&setting, "one");
    instance.append("[http]\nadmin_token = \"s3cret\"\n");
    let process = instance.started();
    let at = |path: &str| json_of(instance.get(path), 200);
    let dataset = format!("/v1/datasets/{}", setting.dataset());
    let is_at = |version: u64| {
        wait_until(&format!("version {version} is served"), LONG, || {
            let shown = at(&dataset);
            if shown["version"] == version { Ok(()) } else { Err(shown.to_string()) }
        });
    };
    // An empty version that lists the first snapshot may come a second later, and this test pins the one that it saw.
    let first = wait_until("the newest version is served", LONG, || {
        let (newest, shown) = (instance.newest(), at(&dataset));
        if shown["version"] == newest { Ok(newest) } else { Err(format!("{newest}: {shown}")) }
    });
    produce(&mut setting, 1);
    wait_until("all of it is announced", LONG, || {
        let last = instance.versions().pop().expect("a version");
        if last["positions"][0]["offset"] == 41 { Ok(()) } else { Err(last["positions"].to_string()) }
    });

    let out = instance.run(&["pin"], &[&first.to_string(), "--reason", "a test", "--output", "json"]);
    let out = out.expect_code(0);
    let pinned: Value = serde_json::from_str(&out.stdout).expect("it is JSON");
    assert_eq!((&pinned["versions"], &pinned["reason"]), (&json!([first]), &json!("a test")), "{pinned}");
    is_at(first);
    let shown = at(&dataset);
    assert_eq!(shown["pinned"]["versions"], json!([first]), "{shown}");
    assert_eq!(shown["ready"], true, "{shown}");
    let health = at("/health");
    assert_eq!(health["datasets"][0]["pinned"]["reason"], "a test", "{health}");
    assert!(health["datasets"][0]["age_seconds"].as_f64().expect("an age") > 0.0, "{health}");
    assert_eq!(instance.metric("stillwell_pinned_version"), Some(first as f64));
    // Commands read as a reader would: P-1 was deleted by the second round.
    instance.run(&["get"], &["P-1"]).expect_code(0);
    let newest = instance.newest();
    instance.run(&["get"], &["P-1", "--version", &newest.to_string()]).expect_code(1);

    // What lies between the two, and what comes.
    let (from, to) = (first.to_string(), newest.to_string());
    let same = instance.run(&["versions", "diff"], &[&from, &from]).expect_code(0);
    assert_eq!(same.stdout, "");
    let differ = instance.run(&["versions", "diff"], &[&from, &to, "--output", "json"]).expect_code(1);
    let changes: Vec<Value> =
        differ.stdout.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    let of = |word: &str| changes.iter().filter(|change| change["change"] == word).count();
    // 0..20 were there; 10..30 were written anew, and P-1 went.
    assert_eq!((of("added"), of("changed"), of("removed")), (10, 10, 1), "{}", differ.stdout);
    let gone = changes.iter().find(|change| change["key"] == "P-1").expect("it is gone");
    assert_eq!((&gone["before"]["id"], &gone["after"]), (&json!("P-1"), &Value::Null));
    assert!(differ.stderr.contains("10 added, 1 removed, 10 changed"), "{}", differ.stderr);
    let tail = ["--from", &from, "--max", "2", "--output", "json"];
    let tail = instance.run(&["versions", "tail"], &tail).expect_code(0);
    let told: Vec<Value> =
        tail.stdout.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    let told: Vec<_> = told.iter().map(|version| version["version"].as_u64()).collect();
    assert_eq!(told, [Some(first), Some(first + 1)]);
    let tail = instance.run(&["versions", "tail"], &["--max", "1"]).expect_code(0);
    assert!(tail.stdout.lines().count() == 1 && tail.stdout.contains("  version "), "{}", tail.stdout);

    let refused = instance.run(&["pin"], &["999"]).expect_code(65);
    assert!(refused.stderr.contains("can be pinned"), "{}", refused.stderr);
    let pin = format!("/admin/datasets/{}/pin", setting.dataset());
    let body = json!({"version": newest, "by": "a client", "reason": "over HTTP"}).to_string();
    json_of(instance.post(&pin, None, &body), 401);
    json_of(instance.post(&pin, Some("wrong"), &body), 403);
    json_of(instance.post(&pin, Some("s3cret"), "{}"), 400);
    let too_high = json_of(instance.post(&pin, Some("s3cret"), "{\"version\": 999}"), 400);
    assert!(too_high["detail"].as_str().expect("a text").contains("can be pinned"), "{too_high}");
    let answer = json_of(instance.post(&pin, Some("s3cret"), &body), 200);
    assert_eq!(answer["pinned"]["by"], "a client", "{answer}");
    is_at(newest);
    let unpin = pin.replace("/pin", "/unpin");
    let answer = json_of(instance.post(&unpin, Some("s3cret"), ""), 200);
    assert_eq!(answer["was"]["versions"], json!([newest]), "{answer}");
    wait_until("it is free again", LONG, || match at(&dataset)["pinned"].take() {
        Value::Null => Ok(()),
        pinned => Err(pinned.to_string()),
    });
    let again = instance.run(&["unpin"], &[]).expect_code(0);
    assert!(again.stdout.contains("was not pinned"), "{}", again.stdout);
    process.stop(LONG).expect_code(0);
}

/// An announcement that follows on `last` and changes nothing but what is kept.
fn keeping_less(last: &[u8]) -> Vec<u8> {
    let Ok(Message::Announcement(mut next)) = Message::decode(last) else { panic!("it is an announcement") };
    next.previous = Some((next.version, next.life.epoch));
    next.version = next.version.next();
    next.delta.version = next.version;
    let delta = next.delta.clone();
    next.chain.push(delta);
    next.oldest_kept = next.version;
    next.inline = None;
    Message::Announcement(next).encode()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_is_passed_by_the_cleaner_while_it_is_written_is_withdrawn() {
    let mut setting = Setting::new("passed", 1, SCHEMA);
    produce(&mut setting, 0);
    let producer = setting.producer().await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    produce(&mut setting, 1);
    setting.settled(&consumer).await;
    let newest = consumer.view().version();
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("it stops");
    let steering = steering(&setting);
    let before = steering.pin(&one(newest), "the test", "").await.expect("it can be pinned");

    let instance = Instance::new(&setting, "one");
    instance.append("[http]\nadmin_token = \"s3cret\"\n");
    let mut command = instance.command_to_run(&["--role", "consumer"]);
    let mut process = Running::start(command.env("FAILPOINTS", "pin.written=return(stop)"));
    wait_until("it is ready", LONG, || match instance.get("/ready") {
        Ok((200, _)) => Ok(()),
        answer => Err(format!("{answer:?}")),
    });
    let route = format!("/admin/datasets/{}/pin", setting.dataset());
    let port = instance.port;
    let asked =
        std::thread::spawn(move || Instance::post_to(port, &route, Some("s3cret"), "{\"version\": 2}"));
    wait_until_async("the pin is written", LONG, || async {
        match steering.pinned().await {
            Ok(Some(pin)) if pin.versions[0].version == Version(2) => Ok(()),
            pinned => Err(format!("{pinned:?}")),
        }
    })
    .await;
    let state = format!("/proc/{}/status", process.pid());
    wait_until("the process stands still", LONG, || {
        let status = std::fs::read_to_string(&state).unwrap_or_default();
        if status.contains("State:\tT") { Ok(()) } else { Err(status) }
    });
    // A writer says that it keeps less.
    let announcements = setting.topic.beside(&format!("{}.announcements", setting.dataset()));
    let last = announcements.read().into_iter().rev().find_map(|record| {
        let value = record.value?;
        matches!(Message::decode(&value), Ok(Message::Announcement(_))).then_some(value)
    });
    let less = keeping_less(&last.expect("a version was announced"));
    announcements.produce([Record { partition: Some(0), ..Record::upsert("x", less) }]);
    process.signal("CONT");
    let refused = json_of(asked.join().expect("it asked"), 400);
    assert!(refused["detail"].as_str().expect("a text").contains("it was cleaned just now"), "{refused}");
    let now = steering.pinned().await.expect("it answers").expect("the pin before stands again");
    assert_eq!(now.id, before.id);
    // Nor can it be pinned anew, though the topic holds it; what is pinned already can stay.
    let refused = steering.pin(&one(Version(2)), "the test", "").await.expect_err("it is not kept");
    assert!(refused.chain().contains("it is not kept any more"), "{}", refused.chain());
    assert_eq!(steering.pin(&one(newest), "the test", "").await.expect("it stands").id, before.id);
    process.stop(LONG);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_made_when_somebody_asks_for_it() {
    let mut setting = Setting::new("asked", 1, SCHEMA);
    produce(&mut setting, 0);
    let instance = Instance::new(&setting, "one");
    instance.append("[http]\nadmin_token = \"s3cret\"\n");
    let process = instance.started();
    let ask = || -> Value {
        let out = instance.run(&["snapshot"], &["--output", "json", "--wait", "60s"]).expect_code(0);
        serde_json::from_str(&out.stdout).expect("it is JSON")
    };
    // The first load makes one anyway.
    let first = ask()["version"].as_u64().expect("a number");
    produce(&mut setting, 1);
    let changed = wait_until("the change is announced", LONG, || {
        let versions = instance.versions();
        let last = versions.last().cloned().expect("a version");
        let changed = versions.iter().filter(|version| version["upserts"].as_u64() > Some(0)).count();
        if changed >= 2 { Ok(last["version"].as_u64().expect("a number")) } else { Err(last.to_string()) }
    });
    let made = ask();
    assert_eq!(made["made"], true, "{made}");
    assert!(made["version"].as_u64() >= Some(changed) && made["version"].as_u64() > Some(first), "{made}");
    let again = ask();
    assert_eq!((&again["made"], &again["version"]), (&json!(false), &made["version"]), "{again}");
    let route = format!("/admin/datasets/{}/snapshot", setting.dataset());
    let there = json_of(instance.post(&route, Some("s3cret"), ""), 200);
    assert_eq!((&there["there"], &there["version"]), (&json!(true), &made["version"]), "{there}");
    process.stop(LONG).expect_code(0);
}
