//! `stillwell log`: beside a process that has the log open, on a log that is whole, and on one that is not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use stillwell::clock::Clock;
use stillwell::format::chunk::{Body, Chunk, ChunkBuilder};
use stillwell::format::origin::Origin;
use stillwell::producer::log::{Log, Options};
use stillwell::{Position, SourcePartition};
use stillwell_tests::{Finished, run, scratch, stillwell};

const DEADLINE: Duration = Duration::from_secs(120);

fn source() -> SourcePartition {
    SourcePartition { topic: "orders".into(), topic_id: Default::default(), partition: 0 }
}

fn chunk(from: i64, to: i64) -> Chunk {
    let mut builder = ChunkBuilder::new();
    let slot = builder.slot(&source(), from);
    for offset in from..to {
        builder.push(slot, offset, 0, Body::Upsert { key: b"key", value: &[offset as u8; 300] });
    }
    builder.finish()
}

/// The log of dataset `orders` under a data directory, with the records 0 to 50 in five chunks.
async fn made(data: &Path) -> (PathBuf, Log) {
    let dir = data.join("log/orders");
    let log = Log::open(&dir, Options::new(Clock::system())).await.unwrap();
    log.resume(&Origin::any(), &[Position { source: source(), offset: 0 }]).await.unwrap();
    let appender = log.appender();
    let mut persisted = appender.persisted();
    for n in 0..5 {
        appender.try_append(chunk(n * 10, n * 10 + 10)).unwrap();
        // One by one: what is made durable together is damaged together.
        let durable = persisted.wait_for(|end| *end == n as u64 + 1);
        tokio::time::timeout(DEADLINE, durable).await.expect("durable").unwrap();
    }
    (dir, log)
}

fn configured(root: &Path) -> PathBuf {
    let file = root.join("stillwell.toml");
    let schema = root.join("order.avsc");
    std::fs::write(&schema, r#"{"type":"record","name":"Order","fields":[{"name":"id","type":"string"}]}"#)
        .unwrap();
    let text = format!(
        "[kafka]\nbootstrap_servers = \"127.0.0.1:1\"\n[storage]\ndata_dir = \"{}\"\n[datasets.orders]\n\
         source = {{ topics = [\"orders\"], format = \"json\" }}\nschema = \"{}\"\n",
        root.join("data").display(),
        schema.display()
    );
    std::fs::write(&file, text).unwrap();
    file
}

/// `stillwell log COMMAND`, once with a configuration and once with the directory, which must say the same.
fn log(root: &Path, command: &str, output: &str) -> Finished {
    let file = configured(root);
    let named = run(stillwell(["log", command, "orders", "--output", output, "-c"]).arg(&file), DEADLINE);
    if command == "repair" {
        return named;
    }
    let dir = root.join("data/log/orders");
    let given = run(stillwell(["log", command, "--output", output, "--dir"]).arg(dir), DEADLINE);
    assert_eq!(
        (given.code(), &given.stdout),
        (named.code(), &named.stdout),
        "{}{}",
        given.stderr,
        named.stderr
    );
    named
}

fn json(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout)
        .unwrap_or_else(|_| panic!("{}{}", finished.stdout, finished.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_looked_at_beside_the_process_that_has_it_open_and_not_repaired() {
    let root = scratch();
    let (dir, held) = made(&root.path().join("data")).await;
    let process = u64::from(std::process::id());
    let seen = json(&log(root.path(), "inspect", "json").expect_code(0));
    for (name, value) in
        [("chunks", 5), ("records", 50), ("first", 0), ("last", 4), ("next", 5), ("held_by", process)]
    {
        assert_eq!(seen[name].as_u64(), Some(value), "{name} in {seen}");
    }
    let range = &seen["ranges"][0];
    assert_eq!(
        (range["topic"].as_str(), range["from"].as_i64(), range["to"].as_i64()),
        (Some("orders"), Some(0), Some(50))
    );
    assert!(seen["files"].as_array().unwrap().iter().any(|file| file["kind"] == "write-ahead log"), "{seen}");
    let table = log(root.path(), "inspect", "table").expect_code(0).stdout;
    for said in
        ["5, numbers 0 to 4", "below 0", &format!("by process {process}"), "orders", "write-ahead log"]
    {
        assert!(table.contains(said), "{said} is not in\n{table}");
    }
    let whole = log(root.path(), "verify", "table").expect_code(0).stdout;
    assert!(whole.contains("whole; 5 chunks, 50 records"), "{whole}");

    let refused = log(root.path(), "repair", "table").expect_code(69);
    assert!(refused.stderr.contains(&format!("in use by process {process}")), "{}", refused.stderr);
    held.close().await.unwrap();
    assert!(log(root.path(), "repair", "table").expect_code(0).stdout.contains("nothing to repair"));
    assert!(log(root.path(), "inspect", "table").expect_code(0).stdout.contains("closed in order"));
    assert!(dir.join("CLEAN").exists(), "and it is left as it was closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_is_said_to_be_repaired_once_and_whole_afterwards() {
    let root = scratch();
    let (dir, made) = made(&root.path().join("data")).await;
    made.close().await.unwrap();
    let file = std::fs::read_dir(&dir)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .max_by_key(|path| std::fs::metadata(path).unwrap().len())
        .unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let fourth = chunk(30, 40);
    let at = bytes.windows(64).position(|window| window == fourth.encoded().get(..64).unwrap()).unwrap();
    *bytes.get_mut(at + 20).unwrap() ^= 4;
    std::fs::write(&file, &bytes).unwrap();

    let verdict = log(root.path(), "verify", "json");
    assert_eq!(verdict.code(), 1, "{}", verdict.stderr);
    let verdict = json(&verdict);
    assert_eq!((verdict["whole"].as_bool(), verdict["chunks"].as_u64()), (Some(false), Some(3)), "{verdict}");
    assert_eq!(verdict["damage"][0]["kind"], "file", "{verdict}");
    let said = log(root.path(), "verify", "table").stdout;
    assert!(said.contains("is not whole from byte") && said.contains("log repair"), "{said}");

    let repaired = json(&log(root.path(), "repair", "json").expect_code(0));
    assert_eq!(repaired["outcome"], "cut", "{repaired}");
    let copy = std::fs::read(repaired["copy"].as_str().unwrap()).unwrap();
    let index = std::fs::read_to_string(repaired["index"].as_str().unwrap()).unwrap();
    let line: Value = serde_json::from_str(index.lines().next().unwrap()).unwrap();
    assert_eq!(line["file"].as_str(), file.file_name().unwrap().to_str());
    let from = line["file_at"].as_u64().unwrap() as usize;
    assert_eq!(copy.get(..bytes.len() - from), bytes.get(from..), "the bytes as found");

    log(root.path(), "verify", "table").expect_code(0);
    assert!(log(root.path(), "repair", "table").expect_code(0).stdout.contains("nothing to repair"));
    let log = Log::open(&dir, Options::new(Clock::system())).await.unwrap();
    let next = log.resume(&Origin::any(), &[Position { source: source(), offset: 0 }]).await.unwrap();
    assert_eq!(next.first().unwrap().offset, 30, "Kafka is asked from here on");
    log.close().await.unwrap();
}

#[test]
fn what_is_no_log_or_no_dataset_is_said() {
    let root = scratch();
    let file = configured(root.path());
    for command in ["inspect", "verify", "repair"] {
        let none = run(stillwell(["log", command, "orders", "-c"]).arg(&file), DEADLINE).expect_code(66);
        assert!(none.stderr.contains("data/log/orders"), "{}", none.stderr);
        run(stillwell(["log", command, "odrers", "-c"]).arg(&file), DEADLINE).expect_code(65);
        run(stillwell(["log", command, "--dir"]).arg(root.path()), DEADLINE).expect_code(66);
        run(stillwell(["log", command, "--dir"]).arg(root.path().join("none")), DEADLINE).expect_code(66);
        run(&mut stillwell(["log", command]), DEADLINE).expect_code(64);
    }
    assert!(!root.path().join("data").exists(), "nothing was made");
}
