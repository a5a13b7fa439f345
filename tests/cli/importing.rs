//! `import`: files into a dataset that a running process serves.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use apache_avro::types::Value as Avro;
use apache_avro::{Codec, Schema, Writer};
use serde_json::{Value, json};
use stillwell_tests::{Running, free_port, run, stillwell};

use crate::serving::{LONG, Served, configure};

#[test]
fn json_lines_are_readable_when_it_ends() {
    let served = Served::new(3);
    let process = served.start();
    let value = |n: u32| json!({ "id": format!("P-{n}"), "price": f64::from(n) });
    let lines: String =
        (0..2_500).map(|n| format!("{}\n", json!({ "key": format!("K-{n}"), "value": value(n) }))).collect();
    let file = served.file("a.jsonl", lines);
    let done = served.run("import", &[&file]).expect_code(0);
    assert!(done.stdout.starts_with("2500 records written to dataset"), "{}", done.stdout);
    assert!(done.stdout.contains(", readable in version "), "{}", done.stdout);
    let mut model: BTreeMap<String, Value> = (0..2_500).map(|n| (format!("K-{n}"), value(n))).collect();
    assert_eq!(served.scan(), model, "no wait in between");

    // What scan prints goes in again, deletes too; from standard input.
    let mut import = stillwell(["import", "-c", &served.config, &served.name, "-"]);
    let process_in = import.stdin(Stdio::piped());
    let mut child = process_in.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, r#"{{"key":"K-1","value":null}}"#).unwrap();
    writeln!(stdin).unwrap();
    write!(stdin, r#"{{"key":"K-2","value":{{"id":"two"}}}}"#).unwrap();
    drop(stdin);
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    model.remove("K-1");
    model.insert("K-2".into(), json!({ "id": "two", "price": null }));
    assert_eq!(served.scan(), model);

    // Plain records, keyed by a field, slowly.
    let plain: String = (0..30).map(|n| format!("{}\n", value(n))).collect();
    let file = served.file("plain.jsonl", plain);
    let clock = stillwell::clock::Clock::system();
    let began = clock.now();
    served.run("import", &[&file, "--key", "id", "--rate", "20"]).expect_code(0);
    let took = clock.now() - began;
    assert!(took >= Duration::from_secs(1), "30 records at 20 a second took {took:?}");
    model.extend((0..30).map(|n| (format!("P-{n}"), value(n))));
    assert_eq!(served.scan(), model);
    process.stop(LONG).expect_code(0);
}

#[test]
fn a_line_that_does_not_fit_is_named_and_ends_it() {
    let served = Served::new(3);
    let process = served.start();
    let file = served.file(
        "bad.jsonl",
        "{\"key\":\"a\",\"value\":{\"id\":\"a\"}}\n\n{\"key\":\"b\",\"value\":{\"id\":2}}\n{\"key\":\"c\",\"value\":{\"id\":\"c\"}}\nnonsense\n{\"id\":\"d\"}\n",
    );
    // Nothing is sent, and all mistakes are found.
    let dry = served.run("import", &[&file, "--dry-run", "--skip-bad"]).expect_code(1);
    assert!(dry.stdout.contains("2 records fit") && dry.stdout.contains("3 did not fit"), "{}", dry.stdout);
    for line in ["line 3: ", "line 5: it is not JSON", "line 6: it is neither", "name them with --key"] {
        assert!(dry.stderr.contains(line), "{line} is not in\n{}", dry.stderr);
    }
    assert_eq!(served.topic.read(), []);

    let ended = served.run("import", &[&file]).expect_code(65);
    assert!(ended.stderr.contains("line 3: "), "{}", ended.stderr);
    assert!(
        ended.stdout.contains("1 record written") && ended.stdout.contains("1 did not fit"),
        "{}",
        ended.stdout
    );
    assert_eq!(
        served.scan().into_keys().collect::<Vec<_>>(),
        ["a"],
        "what comes before it, and nothing after"
    );

    let skipped = served.run("import", &[&file, "--skip-bad"]).expect_code(1);
    assert!(
        skipped.stdout.contains("2 records written") && skipped.stdout.contains("3 did not fit"),
        "{}",
        skipped.stdout
    );
    assert_eq!(served.scan().into_keys().collect::<Vec<_>>(), ["a", "c"]);

    for (arguments, code) in [
        (&["/no/such/file"][..], 66),
        (&[&file, "--key", "name"], 65),
        (&[&file, "--topic", "other"], 65),
        (&[&file, "--format", "avro"], 65),
    ] {
        let ended = served.run("import", arguments);
        assert_eq!(ended.code(), code, "{arguments:?}: {}{}", ended.stdout, ended.stderr);
    }
    process.stop(LONG).expect_code(0);
}

/// A container as another service would write it.
fn container(records: u32, codec: Codec) -> Vec<u8> {
    let schema = r#"{"type":"record","name":"Product","namespace":"elsewhere","fields":[
        {"name":"price","type":"float"},{"name":"id","type":"string"},{"name":"more","type":"long"}]}"#;
    let schema = Schema::parse_str(schema).unwrap();
    let mut writer = Writer::with_codec(&schema, Vec::new(), codec);
    for n in 0..records {
        let fields = vec![
            ("price".to_owned(), Avro::Float(n as f32)),
            ("id".to_owned(), Avro::String(format!("P-{n}"))),
            ("more".to_owned(), Avro::Long(i64::from(n))),
        ];
        writer.append(Avro::Record(fields)).unwrap();
    }
    writer.into_inner().unwrap()
}

#[test]
fn avro_containers_go_in_anybodys_and_ours() {
    let served = Served::new(3);
    let process = served.start();
    let file =
        served.file("others.avro", container(1_500, Codec::Deflate(apache_avro::DeflateSettings::default())));
    let keyless = served.run("import", &[&file]).expect_code(65);
    assert!(keyless.stderr.contains("--key"), "{}", keyless.stderr);
    let done = served.run("import", &[&file, "--key", "id"]).expect_code(0);
    assert!(done.stdout.starts_with("1500 records"), "{}", done.stdout);
    let model: BTreeMap<String, Value> = (0..1_500)
        .map(|n| (format!("P-{n}"), json!({ "id": format!("P-{n}"), "price": f64::from(n) })))
        .collect();
    assert_eq!(served.scan(), model);
    let cut = served.file("cut.avro", &container(1_500, Codec::Null)[..10_000]);
    let ended = served.run("import", &[&cut, "--key", "id"]).expect_code(65);
    assert!(ended.stderr.contains("cut short"), "{}", ended.stderr);
    process.stop(LONG).expect_code(0);

    // The snapshot that a graceful stop leaves, into another dataset.
    let listed = run(
        &mut stillwell(["versions", "list", "-c", &served.config, &served.name, "--output", "json"]),
        LONG,
    );
    let listed: Value = serde_json::from_str(&listed.expect_code(0).stdout).unwrap();
    let snapshots =
        listed.as_array().unwrap().iter().rev().filter_map(|version| version["snapshot"]["url"].as_str());
    let snapshot = snapshots.map(|url| url.strip_prefix("file://").unwrap().to_owned()).next();
    let snapshot = snapshot.expect("a graceful stop leaves a snapshot");
    let copy = Served::new(3);
    let process = copy.start();
    let done = copy.run("import", &[&snapshot]).expect_code(0);
    assert!(done.stdout.starts_with("1500 records"), "{}", done.stdout);
    assert_eq!(copy.scan(), model);
    process.stop(LONG).expect_code(0);
}

#[test]
fn an_interrupted_import_says_how_far_it_came() {
    let served = Served::new(3);
    let lines: String =
        (0..1_000).map(|n| format!("{{\"key\":\"{n}\",\"value\":{{\"id\":\"{n}\"}}}}\n")).collect();
    let file = served.file("a.jsonl", lines);
    let mut import = Running::start(
        stillwell(["import", "-c", &served.config, &served.name, &file, "--rate", "10"]).arg("--no-wait"),
    );
    served.topic.read_until("some are written", LONG, |messages| match messages.len() {
        0 => Err("none is written".to_owned()),
        some => Ok(some),
    });
    import.signal("INT");
    let ended = import.wait(LONG).expect_code(130);
    let written: usize = ended.stdout.split(' ').next().unwrap().parse().unwrap();
    assert!(ended.stdout.trim_end().ends_with("; interrupted"), "{}", ended.stdout);
    assert_eq!(served.topic.read().len(), written, "what it says is what is there");
}

#[test]
fn without_a_producer_it_is_durable_and_says_so() {
    let served = Served::new(3);
    let file = served.file("a.jsonl", "{\"key\":\"a\",\"value\":{\"id\":\"a\"}}\n");
    let done = served.run("import", &[&file, "--no-wait"]).expect_code(0);
    assert!(done.stdout.starts_with("1 record written"), "{}", done.stdout);
    let ended = served.run("import", &[&file, "--patience", "1s"]).expect_code(69);
    assert!(ended.stderr.contains("durable in the source topic"), "{}", ended.stderr);
    assert_eq!(served.topic.read().len(), 2);
    // They are in the first version of whoever comes.
    let process = served.start();
    assert_eq!(served.scan().len(), 1);
    process.stop(LONG).expect_code(0);

    let away = configure(served.dir.path(), "shop", "products", "127.0.0.1:1", free_port());
    let ended = run(&mut stillwell(["import", "-c", &away, "shop", &file]), LONG).expect_code(69);
    assert!(ended.stderr.contains("127.0.0.1:1"), "{}", ended.stderr);
}
