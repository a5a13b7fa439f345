//! `export`: a version as files, read by what is not ours: DuckDB, fastavro, and `import`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use stillwell_tests::{Record, python, read_by_avro_tools, run, stillwell, unprivileged, workspace};

use crate::serving::{LONG, Served};

/// Every type of Avro, and every logical one.
const EVERYTHING: &str = r#"{"type":"record","name":"E","fields":[
    {"name":"id","type":"string"},{"name":"price","type":["null","double"],"default":null},
    {"name":"key","type":"boolean"},
    {"name":"i","type":"int"},{"name":"l","type":"long"},{"name":"f","type":"float"},
    {"name":"b","type":"bytes"},{"name":"x","type":{"type":"fixed","name":"X","size":3}},
    {"name":"e","type":{"type":"enum","name":"Kind","symbols":["NEW","USED"]}},
    {"name":"day","type":{"type":"int","logicalType":"date"}},
    {"name":"t3","type":{"type":"int","logicalType":"time-millis"}},
    {"name":"t6","type":["null",{"type":"long","logicalType":"time-micros"}]},
    {"name":"at3","type":{"type":"long","logicalType":"timestamp-millis"}},
    {"name":"at6","type":{"type":"long","logicalType":"timestamp-micros"}},
    {"name":"at9","type":["null",{"type":"long","logicalType":"local-timestamp-nanos"}]},
    {"name":"local","type":{"type":"long","logicalType":"local-timestamp-micros"}},
    {"name":"who","type":{"type":"string","logicalType":"uuid"}},
    {"name":"d","type":{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}},
    {"name":"df","type":["null",{"type":"fixed","name":"DF","size":16,"logicalType":"decimal","precision":38,"scale":3}]},
    {"name":"for","type":{"type":"fixed","name":"For","size":12,"logicalType":"duration"}},
    {"name":"tags","type":["null",{"type":"array","items":["null","string"]}]},
    {"name":"grid","type":{"type":"array","items":{"type":"array","items":"int"}}},
    {"name":"names","type":{"type":"map","values":["null","long"]}},
    {"name":"part","type":["null",{"type":"record","name":"Part","fields":[
        {"name":"n","type":"int"},{"name":"notes","type":{"type":"array","items":"string"}}]}]},
    {"name":"parts","type":{"type":"array","items":"Part"}},
    {"name":"any","type":["null","int","string","Part"]},
    {"name":"none","type":"null"}]}"#;

/// The file's records, read by what is not ours.
fn read(path: &str) -> Vec<Value> {
    let mut reader = Command::new(python("tables"));
    reader.arg(workspace().join("testcontainers-config/tables/read.py")).arg(path);
    lines(&run(&mut reader, LONG).expect_code(0).stdout)
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Three records as they come in, and as DuckDB shows them.
fn everything() -> [(Value, Value); 3] {
    let common = json!({"id": "a", "price": null, "key": true, "i": -7, "l": 1i64 << 40, "f": 0.5,
        "b": "AP8=", "x": "AQID", "e": "USED", "day": 19_000, "t3": 3_723_004, "t6": null,
        "at3": 1_700_000_000_123i64, "at6": 1_700_000_000_123_456i64, "at9": null,
        "local": 1_700_000_000_123_456i64, "who": "123E4567-e89b-12d3-a456-426614174000",
        "d": "BNI=", "df": null, "for": "AQAAAAIAAAC4CwAA", "tags": null, "grid": [], "names": {},
        "part": null, "parts": [], "any": null, "none": null});
    let shown = json!({"id": "a", "price": null, "key": true, "i": -7, "l": 1i64 << 40, "f": 0.5,
        "b": {"hex": "00ff"}, "x": {"hex": "010203"}, "e": "USED", "day": "2022-01-08", "t3": "01:02:03.004000",
        "t6": null, "at3": "2023-11-14T22:13:20.123000+00:00", "at6": "2023-11-14T22:13:20.123456+00:00",
        "at9": null, "local": "2023-11-14T22:13:20.123456", "who": "123e4567-e89b-12d3-a456-426614174000",
        "d": "12.34", "df": null, "for": "32 days, 0:00:03", "tags": null, "grid": [], "names": {},
        "part": null, "parts": [], "any": null, "none": null});
    let with = |base: &Value, more: Value| {
        let mut all = base.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let any = |m0: Value, m1: Value, m2: Value| json!({"member0": m0, "member1": m1, "member2": m2});
    let lists = json!({"tags": ["x", null, ""], "grid": [[1, 2], [], [3]], "names": {"a": 1, "b": null},
        "part": {"n": 1, "notes": ["p", "q"]}, "parts": [{"n": 2, "notes": []}, {"n": 3, "notes": ["r"]}]});
    let second = with(
        &lists,
        json!({"id": "ünïcode", "price": 1.25, "t6": 1, "any": 5, "d": "//8=",
        "df": "////////////////////Zw==", "at9": 1_700_000_000_123_456_000i64}),
    );
    let second_shown = with(
        &lists,
        json!({"id": "ünïcode", "price": 1.25, "t6": "00:00:00.000001",
        "any": any(json!(5), Value::Null, Value::Null), "d": "-0.01", "df": "-0.153",
        "at9": "2023-11-14T22:13:20.123456"}),
    );
    let third = json!({"id": "", "any": {"n": 9, "notes": ["s"]}, "tags": [], "d": "Aw=="});
    let third_shown = json!({"id": "", "tags": [], "d": "0.03",
        "any": any(Value::Null, Value::Null, json!({"n": 9, "notes": ["s"]}))});
    [
        (common.clone(), shown.clone()),
        (with(&common, second), with(&shown, second_shown)),
        (with(&common, third), with(&shown, third_shown)),
    ]
}

#[test]
fn every_type_is_read_by_others_as_it_came() {
    let served = Served::of(EVERYTHING);
    let records = everything();
    let at = 1_700_000_000_000i64;
    served.topic.produce(records.iter().enumerate().map(|(n, (record, _))| Record {
        timestamp: Some(at + n as i64),
        ..Record::upsert(format!("K-{n}"), record.to_string())
    }));
    let process = served.start();

    // A row group for each two.
    let table = served.path("v.parquet");
    let said = served.run("export", &["--to", &table, "--row-group", "2"]).expect_code(0).stdout;
    assert!(said.starts_with("3 records of version ") && said.trim_end().ends_with(&table), "{said}");
    let mut model: Vec<Value> = Vec::new();
    for (n, (_, shown)) in records.iter().enumerate() {
        let mut row = json!({"_key": format!("K-{n}")});
        row.as_object_mut().unwrap().extend(shown.as_object().unwrap().clone());
        model.push(row);
    }
    model.push(json!({"row groups": 2}));
    assert_eq!(read(&table), model);

    // With where they are from; through a pipe. A field is called `key`, which is why the others' names begin with `_`.
    let piped = served.path("piped.parquet");
    let mut command = served.command("export", &["--to", "-", "--format", "parquet", "--origin"]);
    command.stdout(fs::File::create(&piped).unwrap());
    assert!(command.status().unwrap().success());
    let rows = read(&piped);
    for (n, row) in rows[..3].iter().enumerate() {
        assert_eq!(row["_offset"], n, "{row}");
        assert_eq!(row["_partition"], 0);
        assert_eq!(row["_topic"], served.topic.name());
        assert_eq!(row["_timestamp"], format!("2023-11-14T22:13:20{}+00:00", ["", ".001000", ".002000"][n]));
        assert!(row["_version"].as_u64().unwrap() > 0 && row["key"] == true);
    }
    assert_eq!(rows[3], json!({"row groups": 1}));

    // Avro, read by fastavro: entries as in a snapshot.
    let container = served.path("v.avro");
    served.run("export", &["--to", &container]).expect_code(0);
    let entries = read(&container);
    assert_eq!(entries.len(), 3);
    for (n, (entry, (_, shown))) in entries.iter().zip(&records).enumerate() {
        assert_eq!(entry["key"], json!({"hex": hex(&format!("K-{n}"))}));
        assert_eq!(entry["offset"], n);
        for field in ["id", "price", "l", "b", "d", "df", "day", "who", "tags", "grid", "parts", "names"] {
            assert_eq!(entry["value"][field], shown[field], "{n} {field}");
        }
    }

    // JSON lines are what scan prints, and both they and Avro go in again.
    let text = served.path("v.jsonl");
    served.run("export", &["--to", &text]).expect_code(0);
    let scanned = served.run("scan", &[]).expect_code(0);
    assert_eq!(fs::read_to_string(&text).unwrap(), scanned.stdout);
    assert_eq!(served.run("export", &["--to", "-"]).expect_code(0).stdout, scanned.stdout);
    let whence = served.path("whence.ndjson");
    served.run("export", &["--to", &whence, "--origin"]).expect_code(0);
    let first = lines(&fs::read_to_string(&whence).unwrap()).remove(0);
    assert_eq!((&first["offset"], &first["topic"]), (&json!(0), &json!(served.topic.name())));
    process.stop(LONG).expect_code(0);

    let copy = Served::of(EVERYTHING);
    let process = copy.start();
    let import = |file: &str| copy.run("import", &[file]);
    let scan = || copy.run("scan", &[]).expect_code(0).stdout;
    import(&whence).expect_code(0);
    assert_eq!(scan(), scanned.stdout, "where records were from says nothing of where they go");
    let clear: String = (0..3).map(|n| format!("{{\"key\":\"K-{n}\",\"value\":null}}\n")).collect();
    let cleared = copy.path("clear.jsonl");
    fs::write(&cleared, clear).unwrap();
    import(&cleared).expect_code(0);
    assert_eq!(scan(), "");
    import(&container).expect_code(0);
    assert_eq!(scan(), scanned.stdout);
    process.stop(LONG).expect_code(0);
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// A version has the schema that the dataset had then; a later one has what was written before it as its own schema reads it.
#[test]
fn a_version_is_exported_in_the_schema_that_it_has() {
    let first = r#"{"type":"record","name":"P","fields":[{"name":"id","type":"string"},
        {"name":"price","type":"int"},{"name":"colour","type":"string"}]}"#;
    let second = r#"{"type":"record","name":"P","fields":[{"name":"note","type":"string","default":"none"},
        {"name":"id","type":"string"},{"name":"price","type":"double"},
        {"name":"tint","type":["null","string"],"default":null,"aliases":["colour"]}]}"#;
    let served = Served::of(first);
    let row = |id: &str, price: i32| json!({"id": id, "price": price, "colour": "red"}).to_string();
    served.topic.produce([Record::upsert("a", row("a", 1)), Record::upsert("b", row("b", 2))]);
    served.start().stop(LONG).expect_code(0);
    let listed = ["versions", "list", "-c", &served.config, &served.name, "--output", "json"];
    let listed = run(&mut stillwell(listed), LONG).expect_code(0).stdout;
    let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
    let last = listed.last().unwrap()["version"].as_u64().unwrap();

    fs::write(served.dir.path().join("product.avsc"), second).unwrap();
    let process = served.start();
    let more = served.path("more.jsonl");
    fs::write(&more, r#"{"key":"c","value":{"note":"new","id":"c","price":3.5,"tint":null}}"#).unwrap();
    let import = |file: &str| {
        let mut import = stillwell(["import", "-c", &served.config, &served.name, file]);
        run(&mut import, LONG).expect_code(0)
    };
    import(&more);
    let then = |id: &str, price: i32| json!({"_key": id, "id": id, "price": price, "colour": "red"});
    let now =
        |id: &str, price: f64| json!({"_key": id, "note": "none", "id": id, "price": price, "tint": "red"});
    let new = json!({"_key": "c", "note": "new", "id": "c", "price": 3.5, "tint": null});
    let (before, at, after) = (last.to_string(), (last + 1).to_string(), Vec::from(["--force"]));
    let cases = [
        (vec!["--force", "--version", &before], vec![then("a", 1), then("b", 2)]),
        // The version of the change, of which every value was written before it.
        (vec!["--force", "--version", &at], vec![now("a", 1.0), now("b", 2.0)]),
        (after, vec![now("a", 1.0), now("b", 2.0), new]),
    ];
    let all = ["v.parquet", "v.avro", "v.jsonl"].map(|name| served.path(name));
    let [table, container, text] = &all;
    for (arguments, mut rows) in cases {
        for file in &all {
            served.run("export", &[&arguments[..], &["--to", file]].concat()).expect_code(0);
        }
        let values = rows.iter().cloned().map(|mut row| {
            row.as_object_mut().unwrap().remove("_key");
            row
        });
        let values: Vec<Value> = values.collect();
        rows.push(json!({"row groups": 1}));
        assert_eq!(read(table), rows, "{arguments:?}");
        let read_back = |path: &str| match path.ends_with(".avro") {
            true => read(path),
            false => lines(&fs::read_to_string(path).unwrap()),
        };
        for file in [container, text] {
            let read: Vec<Value> = read_back(file).iter().map(|entry| entry["value"].clone()).collect();
            assert_eq!(read, values, "{arguments:?} {file}");
        }
        // The reference implementation writes unions out, and reads the rest alike.
        let theirs = read_by_avro_tools(Path::new(container));
        assert_eq!(theirs.len(), values.len(), "{arguments:?}");
        for (entry, value) in theirs.iter().zip(&values) {
            let theirs = entry["value"].as_object().unwrap().values().next().unwrap();
            assert_eq!((&theirs["id"], &theirs["price"]), (&value["id"], &value["price"]), "{arguments:?}");
        }
    }

    // What was exported before goes in again, read in today's schema.
    served.run("export", &["--force", "--version", &before, "--to", container]).expect_code(0);
    let clear = served.path("clear.jsonl");
    fs::write(&clear, "{\"key\":\"a\",\"value\":null}\n").unwrap();
    import(&clear);
    import(container);
    served.run("export", &["--force", "--to", table]).expect_code(0);
    let rows = read(table);
    assert_eq!((rows.len(), &rows[0]), (4, &now("a", 1.0)));
    process.stop(LONG).expect_code(0);
}

/// What is in a folder, besides what the tests put there.
fn left(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(".part") || name.contains("out")).collect()
}

#[test]
fn what_cannot_be_exported_leaves_no_file() {
    let tree = r#"{"type":"record","name":"Node","fields":[{"name":"id","type":"string"},
        {"name":"price","type":["null","double"],"default":null},
        {"name":"next","type":["null","Node"],"default":null}]}"#;
    let served = Served::of(tree);
    served.topic.produce([Record::upsert("a", r#"{"id":"a"}"#)]);
    let process = served.start();
    let (out, folder) = (served.path("out.jsonl"), served.path(""));
    let refused = |arguments: &[&str], code: i32, said: &str| {
        let ended = served.run("export", arguments).expect_code(code);
        assert!(ended.stderr.contains(said), "{arguments:?}: {}", ended.stderr);
        assert_eq!(left(served.dir.path()), [] as [&str; 0], "{arguments:?}");
    };
    refused(&["--to", &served.path("out.parquet")], 65, "next: its type holds itself");
    refused(&["--to", &served.path("out.csv")], 65, "--format");
    refused(&["--to", &out, "--version", "999"], 65, "version 999");
    refused(&["--to", &folder], 65, "--format");
    refused(&["--to", &folder, "--format", "avro"], 73, "is a folder");
    refused(&["--to", &served.path("no/such/out.jsonl")], 73, "no such folder");
    refused(&["--to", &out, "--row-group", "0"], 64, "row");
    let nobody = run(&mut stillwell(["export", "-c", &served.config, "nobody", "--to", &out]), LONG);
    assert!(nobody.expect_code(65).stderr.contains("no dataset"));
    assert_eq!(left(served.dir.path()), [] as [&str; 0]);

    // A folder that others own.
    let locked = served.dir.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    let to = locked.join("out.jsonl").display().to_string();
    let ended = run(&mut unprivileged(&served.command("export", &["--to", &to]), served.dir.path()), LONG);
    assert!(ended.expect_code(73).stderr.contains("ermission denied"));

    // A disk that is full, while it is written.
    let mut full = served.command("export", &["--to", "-"]);
    full.stdout(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    assert_eq!(full.status().unwrap().code(), Some(74));

    // One that is there stays as it is, unless it is to go.
    fs::write(&out, "mine").unwrap();
    let ended = served.run("export", &["--to", &out]).expect_code(73);
    assert!(
        ended.stderr.contains("--force") && fs::read_to_string(&out).unwrap() == "mine",
        "{}",
        ended.stderr
    );
    served.run("export", &["--to", &out, "--force"]).expect_code(0);
    assert_eq!(lines(&fs::read_to_string(&out).unwrap())[0]["key"], "a");
    assert_eq!(left(served.dir.path()), ["out.jsonl"]);
    process.stop(LONG).expect_code(0);
}
