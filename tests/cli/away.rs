//! Kafka goes away from a process that serves, and comes back. That takes longest here: by its name it starts early.

use serde_json::{Value, json};
use stillwell_tests::{Broker, Record, Running, Topic, free_port, run, scratch, stillwell, wait_until};

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
        assert_eq!(get(port, "/ready").status, status, "serve_stale = {serve_stale}");
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
