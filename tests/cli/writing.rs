//! Records written over HTTP: `PUT` and `DELETE`, and who may.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use stillwell_tests::{
    Record, Running, Topic, bootstrap, free_port, run, scratch, stillwell, unique, wait_until,
};

use crate::serving::{Answer, ask, configure, get, request, until_ready, until_record};

const LONG: Duration = Duration::from_secs(180);
const TOKEN: &str = "s3cr3t-0f-the-test";

/// Starts `run` with an admin token.
fn start(config: &str) -> Running {
    Running::start(stillwell(["run", "-c", config]).env("STILLWELL_HTTP__ADMIN_TOKEN", TOKEN))
}

/// Waits for a version for a minute, where the path does not say: ten seconds, as for others, a busy machine may take.
fn send(port: u16, method: &str, path: &str, body: &str) -> Answer {
    let headers = format!("authorization: Bearer {TOKEN}\r\n");
    let path = &if path.contains('?') { path.to_owned() } else { format!("{path}?wait=1m") };
    request(port, method, path, &headers, body.as_bytes()).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn version(answer: &Answer) -> u64 {
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["version"].as_u64().unwrap_or_else(|| panic!("{}", answer.body))
}

/// Reads once, without waiting: what was written before must be there.
fn read_now(port: u16, path: &str, at_least: u64) -> Answer {
    let answer = get(port, path);
    if answer.status == 200 {
        let tag = answer.head.lines().find_map(|line| line.strip_prefix("etag: \"")).unwrap();
        let seen: u64 = tag.split('.').next().unwrap().parse().unwrap();
        assert!(seen >= at_least, "{path} is read in version {seen}, and was written in {at_least}");
    }
    answer
}

#[test]
fn what_is_put_is_read_at_once_and_what_is_deleted_is_gone() {
    let dir = scratch();
    let (topic, name, port) = (Topic::create("products", 3), unique("shop"), free_port());
    let config = configure(dir.path(), &name, topic.name(), bootstrap(), port);
    let mut process = start(&config);
    until_ready(&mut process, port);
    let records = format!("/v1/datasets/{name}/records");

    let mut last = 0;
    for n in 0..20 {
        let path = format!("{records}/P%2F{n}");
        let value = json!({ "id": format!("P/{n}"), "price": f64::from(n) });
        let answer = send(port, "PUT", &path, &value.to_string());
        let now = version(&answer);
        assert!(now > last, "each waited for the one before: {now} after {last}");
        last = now;
        assert_eq!(read_now(port, &path, now).json(), value, "read your writes");
        let put = answer.json();
        assert_eq!((&put["topic"], &put["dataset"]), (&json!(topic.name()), &json!(name)));
        assert!(put["offset"].is_i64() && put["partition"].is_i64(), "{put}");
    }
    // Where Java's clients, and the rest of the world, put the key.
    topic.produce([Record::upsert("P/7", r#"{"id":"P/7","price":70.0}"#)]);
    let read = topic.read();
    let of_key: Vec<_> = read.iter().filter(|message| message.key.as_deref() == Some(b"P/7")).collect();
    assert_eq!(of_key.len(), 2);
    assert_eq!(of_key[0].partition, of_key[1].partition);
    assert_eq!(of_key[0].value.as_deref(), Some(&br#"{"id":"P/7","price":7.0}"#[..]));
    until_record(port, &format!("{records}/P/7"), Some(&json!({ "id": "P/7", "price": 70.0 })));

    let gone = send(port, "DELETE", &format!("{records}/P/7"), "");
    assert!(version(&gone) > last);
    assert_eq!(get(port, &format!("{records}/P/7")).status, 404);
    // What was not there is as gone, and is answered too.
    version(&send(port, "DELETE", &format!("{records}/never"), ""));
    // Writes at a time.
    std::thread::scope(|scope| {
        for n in 0..8 {
            let path = format!("{records}/T-{n}");
            scope.spawn(move || {
                let value = json!({ "id": "T", "price": f64::from(n) });
                let now = version(&send(port, "PUT", &path, &value.to_string()));
                assert_eq!(read_now(port, &path, now).json(), value);
            });
        }
    });
    let metrics = get(port, "/metrics").body;
    let published = metrics.lines().find(|line| {
        line.starts_with("stillwell_written_records_total{") && line.contains("outcome=\"published\"")
    });
    assert!(published.is_some_and(|line| line.ends_with(" 30")), "{published:?}");

    let ended = process.stop(LONG).expect_code(0);
    assert!(!ended.stderr.contains(TOKEN), "the token is in the log");
    let mut show = stillwell(["config", "show", "-c", &config]);
    let shown = run(show.env("STILLWELL_HTTP__ADMIN_TOKEN", TOKEN), LONG).expect_code(0);
    assert!(shown.stdout.contains("admin_token") && !shown.stdout.contains(TOKEN), "{}", shown.stdout);
}

/// What is written while readers are pinned is announced, and read by nobody until they follow again: who wrote is told so,
/// and does not wait for it.
#[test]
fn what_is_written_behind_a_pin_is_said_to_be() {
    let dir = scratch();
    let (topic, name, port) = (Topic::create("products", 1), unique("shop"), free_port());
    let config = configure(dir.path(), &name, topic.name(), bootstrap(), port);
    let mut process = start(&config);
    until_ready(&mut process, port);
    let path = format!("/v1/datasets/{name}/records/P-1");
    let first = version(&send(port, "PUT", &path, r#"{"id":"P-1"}"#));
    let command = |arguments: &[&str]| run(stillwell(arguments).args(["-c", &config]), LONG).expect_code(0);
    command(&["pin", &name, &first.to_string()]);
    let pinned = format!("readers are pinned at {first}");
    wait_until("the reader is pinned", LONG, || match get(port, "/health").body {
        body if body.contains("\"pinned\":{") => Ok(()),
        body => Err(body),
    });
    // Longer than the test may take.
    let put = send(port, "PUT", &format!("{path}?wait=5m"), r#"{"id":"other"}"#);
    let body = put.json();
    // What is said of positions alone may have taken a version between.
    let second = body["version"].as_u64().expect("it is announced");
    assert!(put.status == 202 && second > first, "{body}");
    assert_eq!(body["detail"], json!(format!("written in version {second}; {pinned}")));
    assert_eq!(get(port, &path).json()["id"], "P-1");

    let file = dir.path().join("one.jsonl");
    std::fs::write(&file, r#"{"key":"P-2","value":{"id":"P-2"}}"#).unwrap();
    let file = file.display().to_string();
    let said = command(&["import", &name, &file]).stdout;
    let (begins, ends) =
        (format!("1 record written to dataset {name}, in version "), format!("; {pinned}\n"));
    let third = said.strip_prefix(&begins).and_then(|said| said.strip_suffix(&ends));
    assert!(third.is_some_and(|third| third.parse::<u64>().is_ok_and(|third| third > second)), "{said}");
    command(&["unpin", &name]);
    until_record(
        port,
        &format!("/v1/datasets/{name}/records/P-2"),
        Some(&json!({ "id": "P-2", "price": null })),
    );
    let said = command(&["import", &name, &file]).stdout;
    assert!(said.contains("readable in version"), "{said}");
    process.stop(LONG).expect_code(0);
}

#[test]
fn only_who_has_the_token_writes_and_only_what_fits() {
    let dir = scratch();
    let (topic, name, port) = (Topic::create("products", 1), unique("shop"), free_port());
    let config = configure(dir.path(), &name, topic.name(), bootstrap(), port);
    let mut process = start(&config);
    until_ready(&mut process, port);
    let path = format!("/v1/datasets/{name}/records/P-1");
    let good = r#"{"id":"P-1"}"#;

    for (headers, status) in [
        ("", 401),
        ("authorization: Basic czpj\r\n", 401),
        ("authorization: Bearer wrong\r\n", 403),
        ("authorization: Bearer s3cr3t-0f-the-tes\r\n", 403),
    ] {
        for method in ["PUT", "DELETE"] {
            let answer = request(port, method, &path, headers, good.as_bytes()).unwrap();
            assert_eq!(answer.status, status, "{method} with {headers:?}: {}", answer.body);
            assert!(answer.head.contains("application/problem+json"), "{}", answer.head);
            assert_eq!(answer.head.contains("www-authenticate: bearer"), status == 401, "{}", answer.head);
        }
    }
    for (body, status, stage) in [
        ("{\"id\": ", 400, "decode"),
        ("", 400, "decode"),
        ("null", 400, "decode"),
        (r#"{"id":1}"#, 422, "validate"),
        (r#"{"price":1.5}"#, 422, "validate"),
    ] {
        let answer = send(port, "PUT", &path, body);
        let problem = answer.json();
        assert_eq!((answer.status, &problem["stage"]), (status, &json!(stage)), "{body}: {problem}");
        assert_eq!(problem["type"], "urn:stillwell:problem:misfit");
        assert!(!problem["detail"].as_str().unwrap().is_empty());
    }
    // More than the topic takes, and more than is read at all.
    for bytes in [1_100_000, 11_000_000] {
        let large = json!({ "id": "x".repeat(bytes) }).to_string();
        let answer = send(port, "PUT", &path, &large);
        assert_eq!(answer.status, 413, "{bytes}: {}", answer.body);
    }
    for (path, status) in [
        ("/v1/datasets/shoes/records/P-1", 404),
        (&format!("{path}?wait=soon"), 400),
        (&format!("{path}?wait=6m"), 400),
        (&format!("{path}?wiat=1s"), 400),
        (&format!("{path}?topic=other"), 400),
        (&format!("{path}%zz"), 400),
    ] {
        let answer = send(port, "PUT", path, good);
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
    }
    assert_eq!(send(port, "POST", &path, good).status, 405);
    assert_eq!(topic.read(), [], "nothing of all that was sent");
    version(&send(port, "PUT", &format!("{path}?topic={}&wait=1m", topic.name()), good));
    assert_eq!(topic.read().len(), 1);
    process.stop(LONG).expect_code(0);

    // Without a token there is no such route, whatever is brought.
    let mut process = Running::start(&mut stillwell(["run", "-c", &config]));
    until_ready(&mut process, port);
    for method in ["PUT", "DELETE"] {
        let answer = send(port, method, &path, good);
        assert_eq!(answer.status, 405, "{}", answer.body);
        assert!(answer.head.contains("allow: get,head"), "{}", answer.head);
        assert!(answer.body.contains("http.admin_token"), "{}", answer.body);
    }
    assert_eq!(get(port, &path).json()["id"], "P-1");
    process.stop(LONG).expect_code(0);

    // A process that only reads does not write either.
    let mut process = Running::start(
        stillwell(["run", "-c", &config, "--role", "consumer"]).env("STILLWELL_HTTP__ADMIN_TOKEN", TOKEN),
    );
    until_ready(&mut process, port);
    let answer = send(port, "PUT", &path, good);
    assert_eq!(answer.status, 404, "{}", answer.body);
    assert!(answer.body.contains("--role producer"), "{}", answer.body);
    process.stop(LONG).expect_code(0);
}

/// While blobs cannot be stored no version is announced: the record is durable, and that is what is said.
#[test]
fn without_the_store_a_write_is_accepted_and_published_later() {
    let dir = scratch();
    let (topic, name, port) = (Topic::create("products", 1), unique("shop"), free_port());
    let config = configure(dir.path(), &name, topic.name(), bootstrap(), port);
    let mut process = start(&config);
    until_ready(&mut process, port);
    let path = format!("/v1/datasets/{name}/records/P-1");
    version(&send(port, "PUT", &path, r#"{"id":"before"}"#));

    // A file where the folder was.
    let (blobs, kept) = (dir.path().join("data/blobs"), dir.path().join("kept"));
    std::fs::rename(&blobs, &kept).unwrap();
    std::fs::write(&blobs, "").unwrap();
    let answer = send(port, "PUT", &format!("{path}?wait=300ms"), r#"{"id":"during"}"#);
    let accepted = answer.json();
    assert_eq!((answer.status, &accepted["version"]), (202, &Value::Null), "{accepted}");
    assert_eq!((&accepted["topic"], &accepted["partition"]), (&json!(topic.name()), &json!(0)), "{accepted}");
    assert_eq!(accepted["offset"], 1, "{accepted}");
    assert_eq!(get(port, &path).json()["id"], "before");

    std::fs::remove_file(&blobs).unwrap();
    std::fs::rename(&kept, &blobs).unwrap();
    until_record(port, &path, Some(&json!({ "id": "during", "price": null })));
    let now = version(&send(port, "PUT", &format!("{path}?wait=1m"), r#"{"id":"after"}"#));
    assert_eq!(read_now(port, &path, now).json()["id"], "after");
    process.stop(LONG).expect_code(0);
}

/// A second instance with its own data directory; both have the store.
fn second(dir: &Path, name: &str, topic: &str, port: u16, blobs: &Path) -> String {
    std::fs::create_dir(dir).unwrap();
    let config = configure(dir, name, topic, bootstrap(), port);
    let text = std::fs::read_to_string(&config).unwrap();
    let own = format!("blobs = \"file://{}/blobs\"", dir.join("data").display());
    assert!(text.contains(&own), "{text}");
    std::fs::write(&config, text.replace(&own, &format!("blobs = \"file://{}\"", blobs.display()))).unwrap();
    config
}

/// The version is made by whoever owns the shard; a standby that is written to learns of it from the topic.
#[test]
fn a_standby_takes_writes_too_and_knows_their_version() {
    let dir = scratch();
    let (topic, name) = (Topic::create("products", 2), unique("shop"));
    let (one, two) = (free_port(), free_port());
    let config = configure(dir.path(), &name, topic.name(), bootstrap(), one);
    let mut owner = start(&config);
    until_ready(&mut owner, one);
    let other = second(&dir.path().join("two"), &name, topic.name(), two, &dir.path().join("data/blobs"));
    let mut standby = start(&other);
    until_ready(&mut standby, two);
    wait_until("the second stands by", LONG, || {
        let writer = get(two, "/health").json()["datasets"][0]["writer"].clone();
        if writer == "standby" { Ok(()) } else { Err(writer) }
    });

    let records = format!("/v1/datasets/{name}/records");
    let mut last = 0;
    for n in 0..10 {
        let path = format!("{records}/P-{n}");
        let value = json!({ "id": "P", "price": f64::from(n) });
        let now = version(&send(two, "PUT", &path, &value.to_string()));
        assert!(now > last);
        last = now;
        assert_eq!(read_now(two, &path, now).json(), value);
    }
    assert_eq!(get(two, "/health").json()["datasets"][0]["writer"], "standby");

    // The owner goes: what is written meanwhile waits for the takeover, and is in a version of the new one.
    owner.signal("TERM");
    let path = format!("{records}/late?wait=1m");
    let now = version(&send(two, "PUT", &path, r#"{"id":"late"}"#));
    assert!(now > last);
    assert_eq!(read_now(two, &format!("{records}/late"), now).json()["id"], "late");
    owner.wait(LONG).expect_code(0);
    wait_until("the second writes", LONG, || match ask(two, "/health", "") {
        Ok(answer) if answer.json()["datasets"][0]["writer"] == "running" => Ok(()),
        Ok(answer) => Err(answer.body),
        Err(error) => Err(error.to_string()),
    });
    version(&send(two, "PUT", &format!("{records}/own"), r#"{"id":"own"}"#));
    standby.stop(LONG).expect_code(0);
}
