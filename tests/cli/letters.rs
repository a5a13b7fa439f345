//! Dead letters over HTTP: listed and replayed, for who has the token.

use std::time::Duration;

use serde_json::{Value, json};
use stillwell_tests::{
    Record, Running, Topic, bootstrap, free_port, run, scratch, stillwell, unique, wait_until,
};

use crate::serving::{Answer, configure, get, request, until_ready};

const LONG: Duration = Duration::from_secs(90);
/// So many that one a second is under way for as long as some requests may take on a busy machine.
const COUNT: usize = 30;
const TOKEN: &str = "s3cr3t-0f-the-letters";

fn send(port: u16, method: &str, path: &str, body: &str) -> Answer {
    let headers = format!("authorization: Bearer {TOKEN}\r\n");
    request(port, method, path, &headers, body.as_bytes()).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn letters_are_listed_and_replayed_over_http() {
    let dir = scratch();
    let (topic, name, port) = (Topic::create("products", 1), unique("shop"), free_port());
    let config = configure(dir.path(), &name, topic.name(), bootstrap(), port);
    let mut process =
        Running::start(stillwell(["run", "-c", &config]).env("STILLWELL_HTTP__ADMIN_TOKEN", TOKEN));
    until_ready(&mut process, port);
    let (letters, replay) =
        (format!("/admin/datasets/{name}/letters"), format!("/admin/datasets/{name}/replay"));
    topic.produce((0..COUNT).map(|n| Record::upsert(format!("bad-{n}"), r#"{"id": 7}"#)));
    let listed = |query: &str| -> Vec<Value> {
        let answer = send(port, "GET", &format!("{letters}{query}"), "");
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()["letters"].as_array().unwrap().clone()
    };
    wait_until("each has a letter", LONG, || match listed("?stage=validate").len() {
        COUNT => Ok(()),
        other => Err(format!("{other}")),
    });
    // Counted once the commit is answered, which who reads the topic does not wait for.
    let counted =
        |count: usize| {
            wait_until("they are counted", LONG, || {
                match &get(port, "/health").json()["datasets"][0]["dead_letters"] {
                    dead if *dead == count => Ok(()),
                    dead => Err(dead.to_string()),
                }
            });
        };
    counted(COUNT);
    assert_eq!(listed("?key=bad-1").len(), 1);
    assert_eq!(listed("?max=2").len(), 2);
    assert_eq!(listed("?stage=key").len(), 0);
    assert_eq!(send(port, "GET", &replay, "").json(), json!({ "replay": null }));

    let ended = |what: &str| {
        wait_until(what, LONG, || {
            let report = send(port, "GET", &replay, "").json()["replay"].clone();
            if report["running"] == false { Ok(report) } else { Err(report.to_string()) }
        })
    };
    let begun = send(port, "POST", &replay, r#"{"dry_run": true}"#);
    assert_eq!((begun.status, &begun.json()["replay"]["running"]), (202, &json!(true)), "{}", begun.body);
    let report = ended("the dry run ends");
    let (replayed, unfit) = (&report["totals"]["replayed"], &report["totals"]["left_by"]["does not fit"]);
    assert_eq!((replayed, unfit, &report["error"]), (&json!(0), &json!(COUNT), &Value::Null), "{report}");
    assert_eq!(topic.read().len(), COUNT, "nothing was sent");

    // One at a time; it can be ended, and the next one goes on.
    assert_eq!(send(port, "POST", &replay, r#"{"rate": 1, "force": true}"#).status, 202);
    assert_eq!(send(port, "POST", &replay, "").status, 400);
    assert_eq!(send(port, "DELETE", &replay, "").status, 202);
    let first = ended("it ends when told to");
    let second = send(port, "POST", &replay, r#"{"force": true}"#);
    assert_eq!(second.status, 202, "{}", second.body);
    let second = ended("the next one ends");
    let count = |report: &Value| report["totals"]["replayed"].as_u64().unwrap();
    assert_eq!(count(&first) + count(&second), COUNT as u64, "{first} {second}");
    wait_until("they have failed again", LONG, || {
        let listed = listed("");
        let again = listed.iter().filter(|letter| letter["replays"] == 1 && letter["failures"] == 2).count();
        if again == COUNT && listed.len() == COUNT { Ok(()) } else { Err(format!("{listed:?}")) }
    });
    counted(2 * COUNT);

    // A list shows what a replay of the same letters has made of them; that they have failed again is another letter.
    let fates = |letters: &[Value]| letters.iter().map(|letter| letter["replay"].clone()).collect::<Vec<_>>();
    assert_eq!(fates(&listed("")), vec![json!("waiting"); COUNT]);
    let dlq = |arguments: &[&str]| {
        let (verb, more) = arguments.split_first().unwrap();
        run(stillwell(["dlq", verb, &name, "-c", &config]).args(more), LONG)
    };
    let one = ["--key", "bad-0"];
    dlq(&[&["replay", "--fix", "exit 1"], &one[..]].concat()).expect_code(1);
    assert_eq!(fates(&listed("?key=bad-0")), [json!("left")]);
    dlq(&[&["replay", "--fix", r#"printf '{"id":"mended"}'"#], &one[..]].concat()).expect_code(0);
    assert_eq!(fates(&listed("?key=bad-0")), [json!("handled")]);
    let table = dlq(&[&["list"], &one[..]].concat()).expect_code(0).stdout;
    assert!(table.lines().last().is_some_and(|line| line.contains("handled")), "{table}");

    for command in ["list", "export", "replay"] {
        let slip = dlq(&[command, "--stage", "decod"]).expect_code(64);
        assert!(slip.stderr.contains("did you mean decode?"), "{}", slip.stderr);
        assert_eq!(slip.stdout, "");
    }
    for (method, path, body) in [
        ("GET", format!("{letters}?stage=decod").as_str(), ""),
        ("POST", replay.as_str(), r#"{"stage": ["decod"]}"#),
        ("POST", replay.as_str(), "[]"),
        ("POST", replay.as_str(), r#"{"fix": "rm -rf /"}"#),
        ("POST", replay.as_str(), r#"{"since": "yesterday"}"#),
        ("GET", &format!("{letters}?max=1000000"), ""),
        ("GET", &format!("{letters}?stages=key"), ""),
    ] {
        assert_eq!(send(port, method, path, body).status, 400, "{method} {path} {body}");
    }
    for (method, path) in [("GET", &letters), ("GET", &replay), ("POST", &replay), ("DELETE", &replay)] {
        assert_eq!(request(port, method, path, "", b"").unwrap().status, 401, "{method} {path}");
    }
    let said = process.stop(LONG).expect_code(0).stderr;
    // Twice COUNT, of which the first and each doubling.
    let times = said.matches("becomes a dead letter; `stillwell dlq list` shows why").count();
    assert_eq!(times, (2 * COUNT).ilog2() as usize + 1, "{said}");
}
