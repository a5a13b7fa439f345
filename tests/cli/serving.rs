//! A topic served: `run`, the routes, and the commands that read beside it.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use stillwell_tests::{
    Finished, Record, Running, Topic, bootstrap, free_port, run, scratch, stillwell, unique, wait_until,
};

pub(crate) const LONG: Duration = Duration::from_secs(180);
const SCHEMA: &str = r#"{"type":"record","name":"Product","fields":[
    {"name":"id","type":"string"},{"name":"price","type":["null","double"],"default":null}]}"#;

/// A configuration with one dataset, `name`, from `topic`.
pub(crate) fn configure(dir: &Path, name: &str, topic: &str, servers: &str, port: u16) -> String {
    let data = dir.join("data");
    std::fs::write(dir.join("product.avsc"), SCHEMA).unwrap();
    let file = dir.join("stillwell.toml");
    let text = format!(
        r#"
        [kafka]
        bootstrap_servers = "{servers}"
        [storage]
        data_dir = "{data}"
        blobs = "file://{data}/blobs"
        [http]
        listen = "127.0.0.1:{port}"
        [producer.batching]
        batch_timeout = "50ms"
        [consumer]
        graceful_shutdown_timeout = "80s"
        [datasets."{name}"]
        source = {{ topics = ["{topic}"], format = "json" }}
        schema = "{schema}"
        [datasets."{name}".consumer]
        indexes = [["price"]]
        "#,
        data = data.display(),
        schema = dir.join("product.avsc").display(),
    );
    std::fs::write(&file, text).unwrap();
    file.display().to_string()
}

/// A dataset of a topic of its own, in a folder of its own, and the commands on it.
pub(crate) struct Served {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) topic: Topic,
    pub(crate) name: String,
    pub(crate) config: String,
    port: u16,
}

impl Served {
    pub(crate) fn new(partitions: i32) -> Served {
        let dir = scratch();
        let (topic, name, port) = (Topic::create("products", partitions), unique("shop"), free_port());
        let config = configure(dir.path(), &name, topic.name(), bootstrap(), port);
        Served { dir, topic, name, config, port }
    }

    /// Of one partition, with another schema.
    pub(crate) fn of(schema: &str) -> Served {
        let served = Served::new(1);
        served.file("product.avsc", schema);
        served
    }

    /// `run`, until it is ready.
    pub(crate) fn start(&self) -> Running {
        let mut process = Running::start(&mut stillwell(["run", "-c", &self.config]));
        until_ready(&mut process, self.port);
        process
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// A file in its folder.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn command(&self, what: &str, arguments: &[&str]) -> Command {
        let mut command = stillwell([what, "-c", &self.config, &self.name]);
        command.args(arguments);
        command
    }

    pub(crate) fn run(&self, what: &str, arguments: &[&str]) -> Finished {
        run(&mut self.command(what, arguments), LONG)
    }

    /// All that is read in the newest version.
    pub(crate) fn scan(&self) -> BTreeMap<String, Value> {
        let scanned = self.run("scan", &[]).expect_code(0);
        let line = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            (line["key"].as_str().unwrap().to_owned(), line["value"].clone())
        };
        scanned.stdout.lines().map(line).collect()
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Asks over a connection of its own; an error while nobody listens.
pub(crate) fn ask(port: u16, path: &str, headers: &str) -> std::io::Result<Answer> {
    request(port, "GET", path, headers, b"")
}

/// Sends a request over a connection of its own; an error while nobody listens.
pub(crate) fn request(
    port: u16,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
    stream.set_read_timeout(Some(LONG))?;
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n")?;
    write!(stream, "content-length: {length}\r\n{headers}\r\n")?;
    // A body that is refused is not read to its end.
    let sent = stream.write_all(body);
    let mut text = String::new();
    if let Err(error) = stream.read_to_string(&mut text)
        && text.is_empty()
    {
        sent?;
        return Err(error);
    }
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok(Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
}

pub(crate) fn get(port: u16, path: &str) -> Answer {
    ask(port, path, "").unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Waits until the process is ready.
pub(crate) fn until_ready(process: &mut Running, port: u16) {
    wait_until("/ready says yes", LONG, || {
        if let Some(status) = process.ended() {
            panic!("it ended ({status}):\n{}", process.stderr());
        }
        match ask(port, "/ready", "") {
            Ok(Answer { status: 200, .. }) => Ok(()),
            Ok(answer) => Err(answer.body),
            Err(error) => Err(error.to_string()),
        }
    });
}

/// Waits until a record reads as `expected`, or is absent.
pub(crate) fn until_record(port: u16, path: &str, expected: Option<&Value>) {
    wait_until(&format!("{path} is {expected:?}"), LONG, || {
        let answer = get(port, path);
        let right = match expected {
            Some(expected) => answer.status == 200 && answer.json() == *expected,
            None => answer.status == 404,
        };
        if right { Ok(()) } else { Err(answer.body) }
    });
}

#[test]
fn a_topic_is_served_over_http_and_to_commands_beside_it() {
    let dir = scratch();
    let (topic, name, port) = (Topic::create("products", 2), unique("shop"), free_port());
    let config = configure(dir.path(), &name, topic.name(), bootstrap(), port);
    topic.produce((0..200).map(|n| {
        Record::upsert(
            format!("P/{n:03}"),
            json!({ "id": format!("P/{n:03}"), "price": f64::from(n) }).to_string(),
        )
    }));
    let mut process = Running::start(&mut stillwell(["run", "-c", &config]));
    until_ready(&mut process, port);

    let records = format!("/v1/datasets/{name}/records");
    let answer = get(port, &format!("{records}/P/007"));
    assert_eq!(
        (answer.status, answer.json()),
        (200, json!({ "id": "P/007", "price": 7.0 })),
        "{}",
        answer.head
    );
    let version = get(port, &format!("/v1/datasets/{name}")).json()["version"].as_u64().unwrap();
    let tag = answer.head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    assert!(tag.starts_with(&format!("\"{version}.")), "{}", answer.head);
    let same = ask(port, &format!("{records}/P%2F007"), &format!("if-none-match: {tag}\r\n")).unwrap();
    assert_eq!((same.status, same.body.as_str()), (304, ""));
    let page = get(port, &format!("{records}?prefix=P%2F00&limit=4")).json();
    assert_eq!(page["records"].as_array().unwrap().len(), 4);
    assert_eq!(page["records"][3]["key"], "P/003");
    assert!(page["next"].is_string());
    let both = get(port, &format!("{records}?key=P%2F003&key=P%2F999")).json();
    let both = (&both["records"][0]["value"]["price"], &both["records"][1]["value"]);
    assert_eq!(both, (&json!(3.0), &Value::Null));
    let range = get(port, &format!("{records}?from=P%2F010&to=P%2F013")).json();
    assert_eq!(range["records"].as_array().unwrap().len(), 3);
    let dear = get(port, &format!("{records}?price=42")).json();
    assert_eq!((&dear["records"][0]["key"], &dear["next"]), (&json!("P/042"), &Value::Null));
    assert_eq!(get(port, &format!("{records}?price=dear")).status, 400);
    let health = get(port, "/health").json();
    assert_eq!((&health["status"], &health["datasets"][0]["writer"]), (&json!("healthy"), &json!("running")));
    let metrics = get(port, "/metrics").body;
    assert!(metrics.contains("stillwell_current_version{"));
    assert!(
        metrics.contains("# HELP stillwell_shed_records_total ") && metrics.contains("strategy=\"none\"} 0")
    );
    // That topics were not there at first is how every dataset begins.
    assert_eq!(health["datasets"][0]["error_count"], 0, "{}", process.stderr());
    assert!(!process.stderr().contains("announcements cannot be read"), "{}", process.stderr());
    let reads = metrics.lines().find(|line| line.starts_with("stillwell_zero_copy_reads_total{"));
    let reads = reads.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    assert!(reads.is_some_and(|reads| reads >= 5), "a record and a page of four were read: {reads:?}");

    // A change and a tombstone arrive.
    topic.produce([Record::upsert("P/007", r#"{"id":"P/007"}"#), Record::delete("P/008")]);
    until_record(port, &format!("{records}/P/007"), Some(&json!({ "id": "P/007", "price": null })));
    until_record(port, &format!("{records}/P/008"), None);

    // The commands read beside the running process.
    let command = |arguments: &[&str]| run(stillwell(arguments).args(["-c", &config]), LONG);
    let got = command(&["get", &name, "P/009"]).expect_code(0);
    assert_eq!(serde_json::from_str::<Value>(&got.stdout).unwrap(), json!({ "id": "P/009", "price": 9.0 }));
    let absent = command(&["get", &name, "P/008"]).expect_code(1);
    assert_eq!(absent.stdout, "");
    let (said, version) = absent.stderr.trim_end().rsplit_once(' ').unwrap();
    assert_eq!(said, format!("dataset {name} has no record \"P/008\" in version"), "one line, and no log");
    assert!(version.parse::<u64>().is_ok(), "{}", absent.stderr);
    let explained = command(&["get", &name, "P/007", "--explain"]).expect_code(0);
    let explained: Value = serde_json::from_str(&explained.stdout).unwrap();
    assert_eq!((&explained["topic"], &explained["value"]["price"]), (&json!(topic.name()), &Value::Null));
    for member in ["version", "timestamp", "partition", "offset"] {
        assert!(!explained[member].is_null(), "{member}: {explained}");
    }
    let scanned = command(&["scan", &name, "--prefix", "P/01"]).expect_code(0);
    let keys: Vec<Value> = scanned
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["key"].clone())
        .collect();
    assert_eq!(keys, (10..20).map(|n| json!(format!("P/{n:03}"))).collect::<Vec<_>>());
    assert_eq!(command(&["scan", &name, "--prefix", ""]).expect_code(0).stdout.lines().count(), 199);

    let listed = command(&["versions", "list", &name, "--output", "json"]).expect_code(0);
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    let listed = listed.as_array().unwrap();
    for (at, version) in listed.iter().enumerate() {
        assert_eq!(version["version"], at as u64 + 1, "gapless from 1");
        for member in
            ["dataset", "shard", "epoch", "announced_at", "caught_up", "records", "upserts", "deletes"]
        {
            assert!(!version[member].is_null(), "{member}: {version}");
        }
        let blob = version["delta"]["url"].as_str().unwrap().strip_prefix("file://").unwrap();
        assert_eq!(
            std::fs::metadata(blob).unwrap().len(),
            version["delta"]["bytes"].as_u64().unwrap(),
            "{blob}"
        );
        assert!(version["delta"]["checksum"].as_str().unwrap().starts_with("xxh3:"));
        assert_eq!(version["schema"]["name"], "Product");
        assert!(version.as_object().unwrap().contains_key("snapshot"));
    }
    let last = listed.last().unwrap();
    assert_eq!(last["records"], 199);
    assert_eq!(last["positions"].as_array().unwrap().len(), 2);
    let offsets: i64 =
        last["positions"].as_array().unwrap().iter().map(|p| p["offset"].as_i64().unwrap()).sum();
    assert_eq!(offsets, 202);
    // A version of the past, through the same cache.
    let before =
        listed.iter().rev().find(|version| version["records"] == 200).unwrap()["version"].to_string();
    let old = command(&["get", &name, "P/008", "--version", &before]).expect_code(0);
    assert_eq!(serde_json::from_str::<Value>(&old.stdout).unwrap()["price"], 8.0);
    command(&["get", &name, "P/008", "--version", "9999"]).expect_code(65);
    command(&["get", "shoes", "P/008"]).expect_code(65);
    let shown = command(&["versions", "show", &name, &before]).expect_code(0);
    assert!(shown.stdout.contains("schema") && shown.stdout.contains("Product"), "{}", shown.stdout);
    assert!(command(&["versions", "list", &name]).expect_code(0).stdout.lines().count() > listed.len());
    command(&["healthcheck"]).expect_code(0);
    let checked = command(&["check", "--connect"]).expect_code(0);
    assert!(
        checked.stdout.contains("Kafka at") && checked.stdout.contains("blob store"),
        "{}",
        checked.stdout
    );

    process.signal("HUP");
    process.wait_for_text("SIGHUP", LONG);
    let ended = process.stop(LONG).expect_code(0);
    assert!(ended.stderr.contains("last version"), "{}", ended.stderr);
    assert_eq!(ended.stdout, "", "stdout is for data");

    // A restart serves what there was.
    let mut again = Running::start(&mut stillwell(["run", "-c", &config]));
    until_ready(&mut again, port);
    until_record(port, &format!("{records}/P/009"), Some(&json!({ "id": "P/009", "price": 9.0 })));
    again.stop(LONG).expect_code(0);
}

#[test]
fn an_address_that_is_taken_is_named() {
    let dir = scratch();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let config = configure(dir.path(), "shop", "products", "127.0.0.1:1", port);
    let ended = run(&mut stillwell(["run", "-c", &config]), LONG).expect_code(78);
    assert!(ended.stderr.contains("http.listen"), "{}", ended.stderr);
}

#[test]
fn without_kafka_it_waits_and_says_so_and_ends_when_told() {
    let dir = scratch();
    let port = free_port();
    // Nobody listens on port 1.
    let config = configure(dir.path(), "shop", "products", "127.0.0.1:1", port);
    let mut process = Running::start(&mut stillwell(["run", "-c", &config]));
    wait_until("it answers", LONG, || match ask(port, "/live", "") {
        Ok(Answer { status: 200, .. }) => Ok(()),
        Ok(answer) => Err(answer.body),
        Err(error) => Err(error.to_string()),
    });
    // It listens before the first connection to Kafka is refused.
    wait_until("/ready says that Kafka is not reached", LONG, || {
        let ready = get(port, "/ready");
        assert_eq!(ready.status, 503);
        let why = ready.json()["reasons"][0].as_str().unwrap_or_default().to_owned();
        if why.starts_with("shop: Kafka is not reached") { Ok(()) } else { Err(ready.body) }
    });
    assert_eq!(get(port, "/v1/datasets/shop/records/P").status, 503);
    process.wait_for_text("127.0.0.1:1", LONG);

    // Each tries for ten seconds; all at a time.
    std::thread::scope(|scope| {
        for arguments in [&["get", "shop", "P"][..], &["versions", "list", "shop"], &["check", "--connect"]] {
            let mut command = stillwell(arguments);
            command.args(["-c", &config]);
            scope.spawn(move || {
                let ended = run(&mut command, LONG).expect_code(69);
                assert!(ended.stderr.contains("127.0.0.1:1"), "{}", ended.stderr);
            });
        }
    });
    process.signal("INT");
    process.wait(LONG).expect_code(0);
}

/// That its topic is not there yet is said as it is: Kafka has been reached.
#[test]
fn a_reader_without_a_writer_says_what_it_waits_for() {
    let dir = scratch();
    let (name, port) = (unique("shop"), free_port());
    let config = configure(dir.path(), &name, "products", bootstrap(), port);
    let process = Running::start(&mut stillwell(["run", "--role", "consumer", "-c", &config]));
    let expected = format!("{name}: announcement topic {name}.announcements does not exist yet");
    wait_until("/ready says so", LONG, || match ask(port, "/ready", "") {
        Ok(answer) if answer.json()["reasons"][0].as_str().unwrap_or("").starts_with(&expected) => {
            assert_eq!(answer.status, 503);
            Ok(())
        }
        Ok(answer) => Err(answer.body),
        Err(error) => Err(error.to_string()),
    });
    process.stop(LONG).expect_code(0);
}
