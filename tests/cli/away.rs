//! Kafka, or the blob store, goes away from a process that serves, and comes back. That takes longest here: by its name it
//! starts early.

use serde_json::{Value, json};
use stillwell_tests::{
    Broker, Record, Running, Topic, bootstrap, free_port, run, scratch, stillwell, unique, wait_until,
};

use crate::serving::{Answer, LONG, ask, configure, get, until_ready, until_record};

/// Runs a dataset, takes Kafka away and brings it back, with a restart in between. `serve_stale` as configured.
#[test]
fn an_outage_of_kafka_takes_nothing_away_that_was_readable() {
    let dir = scratch();
    let mut broker = Broker::own();
    let (name, port) = ("shop", free_port());
    let topic = Topic::create_on(&broker, "products", 1, &[]);
    let config = configure(dir.path(), name, topic.name(), broker.bootstrap(), port);
    topic.produce([Record::upsert("P-1", r#"{"id":"one"}"#)]);
    let mut process = Running::start(&mut stillwell(["run", "-c", &config]));
    until_ready(&mut process, port);
    let record = format!("/v1/datasets/{name}/records/P-1");
    let one = json!({ "id": "one", "price": null });
    until_record(port, &record, Some(&one));

    broker.stop();
    let why = wait_until("/ready says no", LONG, || match get(port, "/ready") {
        Answer { status: 503, body, .. } => Ok(body),
        answer => Err(answer.body),
    });
    assert!(why.contains("Kafka is not reached"), "{why}");
    assert_eq!(get(port, &record).json(), one, "the last good version stays readable");
    let health = get(port, "/health");
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("degraded")), "{}", health.body);
    process.stop(LONG);

    // A start without Kafka: what was there before is readable, marked, and ready only where that is wished for.
    for (serve_stale, status) in [("false", 503), ("true", 200)] {
        let assignment = format!("http.serve_stale={serve_stale}");
        let mut process = Running::start(&mut stillwell(["run", "-c", &config, "--set", &assignment]));
        wait_until("the cached version is readable", LONG, || match ask(port, &record, "") {
            Ok(answer) if answer.status == 200 => {
                assert!(answer.head.contains("stillwell-stale: true"), "{}", answer.head);
                assert_eq!(answer.json(), one);
                Ok(())
            }
            Ok(answer) => Err(answer.body),
            Err(error) => Err(error.to_string()),
        });
        wait_until(&format!("/ready says {status}: serve_stale = {serve_stale}"), LONG, || {
            match get(port, "/ready") {
                answer if answer.status == status => Ok(()),
                answer => Err(answer.body),
            }
        });
        assert_eq!(get(port, "/v1/datasets").json()["datasets"][0]["stale"], true);
        let got = run(&mut stillwell(["get", name, "P-1", "-c", &config, "--set", &assignment]), LONG);
        if serve_stale == "true" {
            let got = got.expect_code(0);
            assert_eq!(serde_json::from_str::<Value>(&got.stdout).unwrap(), one);
            // Kafka returns to a process that began without it.
            broker.restart();
            topic.produce([Record::upsert("P-1", r#"{"id":"two"}"#)]);
            until_record(port, &record, Some(&json!({ "id": "two", "price": null })));
            until_ready(&mut process, port);
            assert!(!get(port, &record).head.contains("stillwell-stale"));
            wait_until("/health says so", LONG, || match get(port, "/health").json() {
                health if health["status"] == "healthy" => Ok(()),
                health => Err(health.to_string()),
            });
            process.stop(LONG).expect_code(0);
        } else {
            got.expect_code(69);
            process.stop(LONG);
        }
    }
}

/// Digits that do not compress.
fn noise(bytes: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let digit = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        char::from(b'0' + (*state >> 58) as u8)
    };
    (0..bytes).map(|_| digit(&mut state)).filter(char::is_ascii_alphanumeric).collect()
}

/// A reader that an orchestrator restarted for that would lose the version that it still serves.
#[test]
fn a_store_that_is_away_degrades_a_reader_however_often_it_tries() {
    let (writing, reading) = (scratch(), scratch());
    let (name, ports) = (unique("storeless"), [free_port(), free_port()]);
    let topic = Topic::create("storeless", 1);
    let start = |dir: &std::path::Path, port: u16, role: &str| {
        let config = configure(dir, &name, topic.name(), bootstrap(), port);
        let blobs = format!("storage.blobs=file://{}", writing.path().join("blobs").display());
        let often = "consumer.max_backoff=100ms";
        let run = ["run", "--role", role, "-c", &config, "--set", &blobs, "--set", often];
        Running::start(&mut stillwell(run))
    };
    let writer = start(writing.path(), ports[0], "producer");
    let mut reader = start(reading.path(), ports[1], "consumer");
    topic.produce([Record::upsert("P-1", r#"{"id":"one"}"#)]);
    until_ready(&mut reader, ports[1]);
    let record = |key: &str| format!("/v1/datasets/{name}/records/{key}");
    let one = json!({ "id": "one", "price": null });
    until_record(ports[1], &record("P-1"), Some(&one));

    // A version that is too large to travel in its announcement, and is gone before the reader hears of it.
    reader.signal("STOP");
    let two = json!({ "id": noise(200_000), "price": null });
    topic.produce([Record::upsert("P-2", two.to_string())]);
    // By its position: a version of the writer's own, which only lists a snapshot, may come before it.
    let config = writing.path().join("stillwell.toml");
    wait_until("the version is announced", LONG, || {
        let mut list = stillwell(["versions", "list", &name, "--output", "json", "-c"]);
        let listed = run(list.arg(&config), LONG).expect_code(0);
        let versions: Vec<Value> = serde_json::from_str(&listed.stdout).expect("a list");
        let last = versions.last().expect("a version");
        if last["positions"][0]["offset"] == 2 { Ok(()) } else { Err(last.to_string()) }
    });
    writer.stop(LONG).expect_code(0);
    let (blobs, aside) = (writing.path().join("blobs"), writing.path().join("aside"));
    std::fs::rename(&blobs, &aside).unwrap();
    reader.signal("CONT");
    wait_until("it has tried often", LONG, || {
        let tried = reader.stderr().matches("a version cannot be opened").count();
        if tried > 15 { Ok(()) } else { Err(tried) }
    });
    let health = get(ports[1], "/health");
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("degraded")), "{}", health.body);
    assert!(health.body.contains("cannot be opened"), "{}", health.body);
    assert_eq!(get(ports[1], &record("P-1")).json(), one, "the last good version stays readable");
    std::fs::rename(&aside, &blobs).unwrap();
    until_record(ports[1], &record("P-2"), Some(&two));
    reader.stop(LONG).expect_code(0);
}
