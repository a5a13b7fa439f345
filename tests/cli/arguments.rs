//! Commands that need no broker: what they print where, and the codes they end with.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use stillwell_tests::{Finished, free_port, run, scratch, stillwell, workspace};

const SHORT: Duration = Duration::from_secs(120);

const LEAST: &str = r#"[storage]
data_dir = "data"
[datasets.products]
source = { topics = ["products"], format = "json" }
schema = "product.avsc"
key = ["id"]
"#;

/// A folder with a schema and the configuration `text`; the path of the latter.
fn configured(text: &str) -> (tempfile::TempDir, String) {
    let dir = scratch();
    let schema = r#"{"type":"record","name":"Product","fields":[{"name":"id","type":"string"}]}"#;
    std::fs::write(dir.path().join("product.avsc"), schema).unwrap();
    let file = dir.path().join("stillwell.toml");
    std::fs::write(&file, text).unwrap();
    (dir, file.display().to_string())
}

fn told(arguments: &[&str]) -> Finished {
    run(&mut stillwell(arguments), SHORT)
}

#[test]
fn a_right_configuration_is_said_to_be() {
    let (_dir, file) = configured(LEAST);
    let finished = told(&["check", "-c", &file]).expect_code(0);
    assert_eq!(finished.stdout, format!("{file}: right; 1 dataset: products\n"));
    assert_eq!(finished.stderr, "");
}

#[test]
fn every_mistake_has_its_line_and_the_way_out() {
    let (_dir, file) = configured(&format!("{LEAST}shards = 4\n[htpp]\n[consumer]\npoll_interval = 3\n"));
    let finished =
        run(stillwell(["check", "-c", &file]).env("STILLWELL_HTTP__LISTEN", "here"), SHORT).expect_code(78);
    assert_eq!(finished.stdout, "");
    let expected = format!(
        "error: {file}:7: datasets.products.shards: 4 shards are not in this release: 1 is\n\
         error: {file}:8: htpp: unknown key; did you mean http?\n\
         error: {file}:10: consumer.poll_interval: 3 cannot stand here: write a number with its unit, as in \"100ms\", \
         \"1s\" or \"10m\"\n\
         error: env STILLWELL_HTTP__LISTEN: http.listen: \"here\" cannot stand here: write an address and a port, as in \
         \"127.0.0.1:8080\", or \"off\"\n\
         4 mistakes in the configuration {file}\n"
    );
    assert_eq!(finished.stderr, expected);
}

/// By the check, and by a start: a reader that could never connect is not left trying.
#[test]
fn a_property_that_librdkafka_does_not_take_has_its_line_too() {
    let properties = "[kafka.properties]\n\"securty.protocol\" = \"hush\"\n\"check.crcs\" = \"hush\"\n";
    let (_dir, file) = configured(&format!("{LEAST}{properties}"));
    for command in [&["check"][..], &["run", "--role", "consumer"], &["run"], &["get", "products", "P-1"]] {
        let finished = told(&[command, &["-c", &file]].concat()).expect_code(78);
        let expected = format!(
            "error: {file}:8: kafka.properties.\"securty.protocol\": is none of librdkafka's; did you mean \
             \"security.protocol\"?\n\
             error: {file}:9: kafka.properties.\"check.crcs\": is neither true nor false\n\
             2 mistakes in the configuration {file}\n"
        );
        assert_eq!(finished.stderr, expected);
    }
}

/// What is missing has no line; the file in which it is missed is named all the same.
#[test]
fn an_empty_file_is_named() {
    let (_dir, file) = configured("");
    let empty = told(&["check", "-c", &file]).expect_code(78);
    assert!(empty.stderr.contains("error: storage.data_dir: is missing"), "{}", empty.stderr);
    assert!(empty.stderr.ends_with(&format!(" mistakes in the configuration {file}\n")), "{}", empty.stderr);
}

/// A name with a slip in it is understood, wherever it stands.
#[test]
fn names_are_understood_with_a_slip() {
    let more = "[datasets.products.consumer]\nfilter = \"idd = 'a'\"\nfields = [\"di\"]\n\
                [storage.options]\naws_reigon = \"x\"\n";
    let (_dir, file) = configured(&format!("{LEAST}{more}"));
    let blobs = ["--set", "storage.blobs=s3://bucket"];
    let checked = run(stillwell(["check", "-c", &file]).args(blobs), SHORT).expect_code(78);
    for said in [
        "schema: there is no field idd; did you mean \"id\"?",
        "it has no field \"di\"; did you mean \"id\"?",
        "storage.options.aws_reigon: is no option of s3:// stores; did you mean aws_region?",
    ] {
        assert!(checked.stderr.contains(said), "{said}\n{}", checked.stderr);
    }
    let (_dir, file) = configured(LEAST);
    let log = told(&["log", "verify", "prodcts", "-c", &file]).expect_code(65);
    assert!(log.stderr.contains("did you mean \"products\"?"), "{}", log.stderr);
    assert_eq!(log.stderr.lines().count(), 1, "it has said what to do: {}", log.stderr);
}

#[test]
fn without_a_file_it_says_how_to_name_one() {
    let dir = scratch();
    let slip = run(stillwell(["check"]).current_dir(dir.path()).env("STILLWELL_CONFG", "x.toml"), SHORT);
    assert!(slip.expect_code(78).stderr.contains("did you mean that by STILLWELL_CONFG?"));
    let finished = run(stillwell(["check"]).current_dir(dir.path()), SHORT).expect_code(78);
    assert!(
        finished.stderr.contains("stillwell.toml: no such file; name one with -c FILE"),
        "{}",
        finished.stderr
    );
    let (dir, _) = configured(LEAST);
    run(stillwell(["check"]).current_dir(dir.path()), SHORT).expect_code(0);
    let elsewhere = scratch();
    let file = dir.path().join("stillwell.toml");
    run(stillwell(["check"]).current_dir(elsewhere.path()).env("STILLWELL_CONFIG", file), SHORT)
        .expect_code(0);
}

/// A file that is named as people expect it, without `-c`.
#[test]
fn a_file_without_its_option_is_understood() {
    let (_dir, file) = configured(LEAST);
    for command in [&["check"][..], &["run"], &["config", "show"], &["get", "products", "P-1"]] {
        let finished = told(&[command, &[&file]].concat()).expect_code(64);
        assert!(finished.stderr.contains(&format!("did you mean '-c {file}'?")), "{}", finished.stderr);
    }
    for other in [&["check", "colour"][..], &["demo", "x.toml"]] {
        let finished = told(other).expect_code(64);
        assert!(!finished.stderr.contains("did you mean"), "{}", finished.stderr);
    }
}

/// Nobody is sent to a check by the check, or where there is nothing to check.
#[test]
fn an_advice_is_given_where_it_helps() {
    let dir = scratch();
    for command in [&["check"][..], &["run"], &["get", "products", "P-1"]] {
        let missing = run(stillwell(command).current_dir(dir.path()), SHORT).expect_code(78);
        assert_eq!(missing.stderr.lines().count(), 1, "{}", missing.stderr);
    }
    let (_dir, file) = configured(LEAST);
    let blocked = dir.path().join("blocked");
    std::fs::write(&blocked, "").unwrap();
    let settings = [
        format!("storage.data_dir={}", blocked.join("data").display()),
        "kafka.bootstrap_servers=127.0.0.1:1".to_owned(),
    ];
    let [data, kafka] = settings.each_ref().map(String::as_str);
    let checked = told(&["check", "--connect", "-c", &file, "--set", data, "--set", kafka]).expect_code(78);
    let errors: Vec<&str> = checked.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    // One of Kafka, one of the store, and one of both folders, whose reason is the same.
    assert_eq!(errors.len(), 3, "{}", checked.stderr);
    assert!(errors.iter().any(|error| error.starts_with("error: log in ") && error.contains(", cache in ")));
    assert!(!checked.stderr.contains("stillwell check"), "{}", checked.stderr);
    assert!(!checked.stdout.contains("wrong"), "{}", checked.stdout);
}

#[test]
fn a_wrong_command_line_is_64_and_help_is_data() {
    for wrong in [&["chekc"][..], &[], &["check", "--colour"], &["blob", "inspect"], &["check", "--set", "x"]]
    {
        let finished = told(wrong).expect_code(64);
        assert_eq!(finished.stdout, "", "{wrong:?}");
        assert!(!finished.stderr.is_empty(), "{wrong:?}");
    }
    for (slip, meant) in [(&["rnu"][..], "'run'"), (&["versions", "lsit"], "'list'")] {
        let finished = told(slip).expect_code(64);
        assert!(finished.stderr.contains(meant), "{}", finished.stderr);
    }
    let (_dir, file) = configured("x = 1\n");
    for role in ["both", "producer", "consumer"] {
        told(&["run", "--role", role, "-c", &file]).expect_code(78);
    }
    assert!(told(&["--help"]).expect_code(0).stdout.contains("check"));
    assert!(told(&["--version"]).expect_code(0).stdout.starts_with("stillwell "));
}

#[test]
fn what_is_shown_is_a_configuration_that_says_the_same() {
    let (dir, file) = configured(&format!("profile = \"small-memory\"\n{LEAST}"));
    let first = told(&["config", "show", "-c", &file, "--set", "kafka.client_id=me"]).expect_code(0).stdout;
    let again = dir.path().join("again.toml");
    std::fs::write(&again, &first).unwrap();
    let second = told(&["config", "show", "-c", &again.display().to_string()]).expect_code(0).stdout;
    let values = |text: &str| {
        text.lines().map(|line| line.split("  # ").next().unwrap().trim_end().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(values(&first), values(&second));
    assert!(
        first.contains("# profile small-memory") && first.contains("# flag --set kafka.client_id"),
        "{first}"
    );
    assert!(second.lines().all(|line| !line.contains("  # ") || line.contains("again.toml:")), "{second}");
}

#[test]
fn sources_are_named_and_secrets_are_not_shown() {
    let text = format!("{LEAST}[http]\nadmin_token = {{ env = \"STILLWELL_ADMIN_TOKEN\" }}\n");
    let (_dir, file) = configured(&text);
    let mut command = stillwell(["config", "show", "--changed", "--output", "json", "-c", &file]);
    command.env("STILLWELL_ADMIN_TOKEN", "s3same").env("STILLWELL_PRODUCER__BATCHING__MAX_BATCH_SIZE", "500");
    command.env("STILLWELL_KAFKA__PROPERTIES__SASL_PASSWORD", "s3same");
    let finished = run(&mut command, SHORT).expect_code(0);
    assert!(
        !finished.stdout.contains("s3same") && !finished.stderr.contains("s3same"),
        "{}",
        finished.stdout
    );
    let shown: Vec<Value> = serde_json::from_str(&finished.stdout).unwrap();
    let one = |key: &str| {
        shown.iter().find(|one| one["key"] == key).unwrap_or_else(|| panic!("{key} is not shown"))
    };
    assert_eq!(one("producer.batching.max_batch_size")["value"], 500);
    let source = "env STILLWELL_PRODUCER__BATCHING__MAX_BATCH_SIZE";
    assert_eq!(one("producer.batching.max_batch_size")["source"], source);
    assert_eq!(one("http.admin_token")["value"], "***");
    assert_eq!(one("http.admin_token")["source"], format!("{file}:8, from env STILLWELL_ADMIN_TOKEN"));
    assert_eq!(one("storage.data_dir")["source"], format!("{file}:2"));
}

#[test]
fn logs_go_to_stderr_as_json_where_wanted() {
    let (_dir, file) = configured(&format!(
        "{LEAST}[producer.batching]\nmax_batch_size = 50000\n[log]\nformat = \"json\"\n"
    ));
    let finished = told(&["check", "-c", &file]).expect_code(0);
    assert_eq!(finished.stdout.lines().count(), 1);
    let line: Value = serde_json::from_str(finished.stderr.trim()).unwrap();
    assert_eq!(line["level"], "WARN");
    assert!(line["message"].as_str().unwrap().contains("max_batch_size: 50000 is never reached"), "{line}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let (_dir, file) = configured(LEAST);
    let mut child = stillwell(["config", "show", "-c", &file]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn golden(name: &str) -> String {
    workspace().join("tests/golden").join(name).display().to_string()
}

#[test]
fn a_blob_says_what_it_is() {
    for (name, kind, codec) in [
        ("delta/v1/plain.avro", "delta", "null"),
        ("delta/v1/stored.avro", "delta", "zstandard"),
        ("snapshot/v1/stored.avro", "snapshot", "zstandard"),
    ] {
        let url = format!("file://{}", golden(name));
        let finished = told(&["blob", "inspect", &url, "--output", "json"]).expect_code(0);
        let said: Value = serde_json::from_str(&finished.stdout).unwrap();
        assert_eq!((said["kind"].as_str(), said["codec"].as_str()), (Some(kind), Some(codec)), "{said}");
        assert!(said["checksum"].as_str().unwrap().starts_with("xxh3:"), "{said}");
        assert!(said["schema"].is_object() || said["schema"].is_string(), "{said}");
        assert!(told(&["blob", "inspect", &golden(name)]).expect_code(0).stdout.contains("plain_checksum"));
        assert!(told(&["blob", "verify", &url]).expect_code(0).stdout.contains(": whole; "));
    }
    for index in ["index/v1/of-snapshot.index", "index/v2/of-snapshot.index"].map(golden) {
        assert!(told(&["blob", "inspect", &index]).expect_code(0).stdout.contains("snapshot_checksum"));
        told(&["blob", "verify", &index]).expect_code(0);
    }
}

#[test]
fn a_damaged_blob_is_told_from_a_missing_one() {
    let dir = scratch();
    for name in ["delta/v1/stored.avro", "snapshot/v1/plain.avro", "index/v1/of-snapshot.index"] {
        let whole = std::fs::read(golden(name)).unwrap();
        let copy = dir.path().join(Path::new(name).file_name().unwrap());
        // Cut short, and a byte flipped within the last block.
        std::fs::write(&copy, &whole[..whole.len() - 3]).unwrap();
        let cut = told(&["blob", "verify", &copy.display().to_string()]).expect_code(74);
        assert!(cut.stderr.contains("is not whole"), "{}", cut.stderr);
        assert_eq!(cut.stdout, "");
        let mut flipped = whole.clone();
        let at = flipped.len() - 5;
        flipped[at] ^= 0x40;
        std::fs::write(&copy, &flipped).unwrap();
        told(&["blob", "verify", &copy.display().to_string()]).expect_code(74);
    }
    for command in ["inspect", "verify"] {
        for name in ["x.delta.avro", "x.snapshot.avro", "x.index"] {
            let missing = told(&["blob", command, &format!("/nowhere/{name}")]).expect_code(66);
            assert!(missing.stderr.contains(&format!("cannot read /nowhere/{name}")), "{}", missing.stderr);
        }
    }
    // Of other stores the configuration knows how to reach them, and which one it is.
    let away = ["blob", "inspect", "s3://bucket/x.delta.avro"];
    told(&away).expect_code(78);
    let (_dir, file) = configured(LEAST);
    let other = told(&[&away[..], &["-c", &file]].concat()).expect_code(65);
    assert!(other.stderr.contains("is not in file://"), "{}", other.stderr);
}

/// A file that the command line names and that is not there, or is a folder, is 66 whatever the command does with it.
#[test]
fn what_is_not_there_has_a_code_of_its_own() {
    let (dir, file) = configured(LEAST);
    let (schema, folder) =
        (dir.path().join("product.avsc").display().to_string(), dir.path().display().to_string());
    for arguments in [
        &["import", "products", "/nowhere", "-c", &file][..],
        &["import", "products", &folder, "-c", &file],
        &["schema", "check", "/nowhere", &schema],
        &["schema", "check", &schema, &folder],
        &["demo", "--input", "/nowhere", "--schema", &schema, "--key", "id"],
        &["demo", "--input", &schema, "--schema", "/nowhere", "--key", "id"],
        &["log", "verify", "--dir", "/nowhere"],
        &["blob", "verify", "/nowhere"],
        &["blob", "verify", &folder],
        &["blob", "inspect", &folder],
    ] {
        let missing = told(arguments).expect_code(66);
        let named = arguments.iter().filter(|argument| **argument == "/nowhere" || **argument == folder);
        for name in named {
            assert!(missing.stderr.contains(name), "{arguments:?}: {}", missing.stderr);
        }
        assert_eq!(missing.stdout, "", "{arguments:?}");
    }
    // As a store is named in the configuration.
    let store = told(&["blob", "inspect", &format!("file://{folder}/")]).expect_code(66);
    assert!(store.stderr.contains("it is a folder; name one blob, whose URL `versions show` prints"));
    assert_eq!(store.stderr.lines().count(), 1, "it has said what to do: {}", store.stderr);
}

#[test]
fn a_version_that_is_none_is_a_wrong_command_line() {
    let (_dir, file) = configured(LEAST);
    for (wrong, said) in
        [("abc", "it is not a version: write its number, as in 41"), ("0", "versions count from 1")]
    {
        for arguments in [
            &["scan", "products", "--version", wrong][..],
            &["get", "products", "P-1", "--version", wrong],
            &["versions", "show", "products", wrong],
            &["versions", "diff", "products", "1", wrong],
        ] {
            let told = told(&[arguments, &["-c", &file]].concat()).expect_code(64);
            assert!(told.stderr.contains(said), "{arguments:?}: {}", told.stderr);
        }
    }
}

/// Before anything is asked of Kafka, and not of each line anew.
#[test]
fn a_topic_that_the_dataset_does_not_have_is_a_mistake_of_the_flag() {
    let (dir, file) = configured(LEAST);
    let lines = dir.path().join("a.jsonl").display().to_string();
    std::fs::write(&lines, "{\"id\":\"a\"}\n").unwrap();
    let wrong = told(&["import", "products", &lines, "--topic", "produkts", "-c", &file]).expect_code(65);
    let said = "error: --topic: produkts is not a source topic of dataset products; it has products; did you mean \
                \"products\"?\n";
    assert_eq!((wrong.stderr.as_str(), wrong.stdout.as_str()), (said, ""));
}

/// 0 where one reads what the other has written, 1 where not, with where and by which rule.
#[test]
fn schemas_that_do_not_go_together_are_told_by_the_rule() {
    let dir = scratch();
    let file = |name: &str, fields: &str| {
        let path = dir.path().join(name);
        let text = format!(r#"{{"type": "record", "name": "P", "fields": [{fields}]}}"#);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let old = file("old.avsc", r#"{"name": "id", "type": "int"}"#);
    let new = file(
        "new.avsc",
        r#"{"name": "id", "type": "long"}, {"name": "note", "type": "string", "default": ""}"#,
    );
    let unfit = file("unfit.avsc", r#"{"name": "id", "type": "string"}, {"name": "note", "type": "string"}"#);
    let good = told(&["schema", "check", &old, &new]).expect_code(0);
    assert!(good.stdout.lines().any(|line| line.starts_with("backward") && line.contains("yes")), "{good:?}");
    // The other way it does not go, which is said, and was not asked.
    assert!(good.stdout.contains("long is no int"), "{}", good.stdout);
    for asked in ["forward", "full"] {
        told(&["schema", "check", &old, &new, "--compatibility", asked]).expect_code(1);
    }
    let bad = told(&["schema", "check", &old, &unfit]).expect_code(1);
    let rules = [("id", "int is no string"), ("note", "the writer's record lacks it, and it has no default")];
    for (at, rule) in rules {
        let line = bad.stdout.lines().find(|line| line.contains(rule));
        assert!(line.is_some_and(|line| line.contains(&format!(" {at} "))), "{at}: {}", bad.stdout);
    }
    let bad = told(&["schema", "check", &old, &unfit, "--output", "json"]).expect_code(1);
    let rows: Value = serde_json::from_str(&bad.stdout).unwrap();
    assert_eq!((&rows[0]["compatible"], &rows[0]["asked"]), (&false.into(), &true.into()), "{rows}");
    for (nth, (at, rule)) in rules.into_iter().enumerate() {
        let mismatch = &rows[0]["mismatches"][nth];
        assert_eq!((&mismatch["at"], &mismatch["rule"]), (&at.into(), &rule.into()), "{rows}");
    }
    let none = file("none.avsc", r#"{"name": "id"}"#);
    assert!(told(&["schema", "check", &old, &none]).expect_code(65).stderr.contains("none.avsc"));
}

#[test]
fn health_is_asked_for_where_the_configuration_says() {
    let port = free_port();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let (_dir, file) = configured(&format!("{LEAST}[http]\nlisten = \"0.0.0.0:{port}\"\n"));
    let server = std::thread::spawn(move || {
        for status in ["200 OK", "503 Service Unavailable"] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 1024];
            let read = stream.read(&mut asked).unwrap();
            assert!(asked[..read].starts_with(b"GET /health "));
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n{{}}").unwrap();
        }
    });
    told(&["healthcheck", "-c", &file]).expect_code(0);
    let url = format!("http://127.0.0.1:{port}");
    told(&["healthcheck", "--url", &url]).expect_code(1);
    server.join().unwrap();
    let nobody = told(&["healthcheck", "--url", &url]).expect_code(1);
    assert!(nobody.stdout.contains("cannot connect"), "{}", nobody.stdout);
    let nobody = told(&["healthcheck", "-c", &file]).expect_code(1);
    assert!(
        nobody.stdout.contains(&format!("/health, where {file} has a process listen: ")),
        "{}",
        nobody.stdout
    );
    // Whoever listens on the default's port, it is asked within no time.
    let nowhere = scratch();
    let mut default = stillwell(["healthcheck", "--timeout", "1ns"]);
    let default = run(default.current_dir(nowhere.path()), SHORT).expect_code(1);
    let said = "http://127.0.0.1:8080/health, the default, since no configuration is named";
    assert!(default.stdout.starts_with(said), "{}", default.stdout);
}
