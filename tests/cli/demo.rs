//! `stillwell demo`: the whole system, seen from outside.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use stillwell_tests::{Finished, Running, run, scratch, stillwell, wait_until, workspace};

/// The embedded broker takes 3 s to form a group; the rest is room for a busy machine.
const DEADLINE: Duration = Duration::from_secs(180);

const AGREED: &str = "both consumers hold exactly what was sent";

/// The demo, its files below a folder of the test's own.
fn demo(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = stillwell(["demo"].iter().chain(arguments));
    command.current_dir(folder).env("TMPDIR", folder);
    command
}

/// Nothing of the demo's own is left.
#[track_caller]
fn nothing_left(folder: &Path) {
    let left: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("it can be listed").file_name())
        .filter(|name| name.to_string_lossy().starts_with("stillwell-demo-"))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[track_caller]
fn says(finished: &Finished, all: &[&str]) {
    for said in all {
        assert!(finished.stdout.contains(said), "not said: {said}\n{}{}", finished.stdout, finished.stderr);
    }
}

#[test]
fn both_consumers_hold_what_was_generated_and_the_poison_is_a_letter() {
    let folder = scratch();
    let finished =
        run(&mut demo(folder.path(), &["--for", "3s", "--records", "2000"]), DEADLINE).expect_code(0);
    says(
        &finished,
        &[
            "2,000 records",
            "1 misfit",
            "dead letter: partition",
            "stage validate",
            "price_cents",
            "1 of them mended and replayed",
            "publish",
            AGREED,
            "make demo ARGS=\"--listen 127.0.0.1:8080 --for 10m\"",
            "README.md",
        ],
    );
    // No command reaches the embedded broker from outside.
    assert!(!finished.stderr.contains("dlq list"), "{}", finished.stderr);
    nothing_left(folder.path());
}

#[test]
fn lines_of_ones_own_are_sent_and_bad_ones_are_listed() {
    let folder = scratch();
    let schema = r#"{"type": "record", "name": "City", "fields": [
        {"name": "name", "type": "string"},
        {"name": "country", "type": "string"},
        {"name": "people", "type": "long", "default": 0}
    ]}"#;
    std::fs::write(folder.path().join("city.avsc"), schema).expect("written");
    let mut lines = String::from("{\"name\": \"Ulm\", \"country\": \"DE\", \"people\": 1}\n\n");
    lines += "{\"name\": \"Ulm\", \"country\": \"DE\", \"people\": \"many\"}\n";
    lines += "{\"name\": \"Oslo\", \"country\": \"NO\", \"mayor\": \"ignored\"}\nno JSON\n";
    lines += "{\"name\": \"Ulm\", \"country\": \"DE\", \"people\": 129942}";
    std::fs::write(folder.path().join("cities.jsonl"), &lines).expect("written");

    let arguments = ["--input", "cities.jsonl", "--schema", "city.avsc", "--key", "country,name"];
    let finished = run(&mut demo(folder.path(), &arguments), DEADLINE).expect_code(0);
    let expected = [
        "5 records",
        "2 misfits",
        "line 3: stage validate",
        "line 5: stage decode",
        "2 records, all",
        AGREED,
    ];
    says(&finished, &expected);
    nothing_left(folder.path());

    // The same through standard input.
    let arguments = ["--input", "-", "--schema", "city.avsc", "--key", "country,name"];
    let input = std::fs::File::open(folder.path().join("cities.jsonl")).expect("just written");
    let mut command = demo(folder.path(), &arguments);
    let finished = Running::start_with_stdin(command.stdin(Stdio::from(input))).wait(DEADLINE).expect_code(0);
    says(&finished, &expected);
}

#[test]
fn it_ends_when_told_to_and_compares_all_the_same() {
    let folder = scratch();
    let mut running = Running::start(&mut demo(folder.path(), &["--for", "10m", "--rate", "200"]));
    running.wait_for_text("steady rate", DEADLINE);
    running.signal("INT");
    let finished = running.wait(DEADLINE).expect_code(0);
    says(&finished, &["ended before its time", AGREED]);
    nothing_left(folder.path());
}

/// The thread that reads standard input waits for a line that never comes, and is not waited for.
#[test]
fn a_second_signal_ends_it_at_once() {
    let (folder, clock) = (scratch(), stillwell::clock::Clock::system());
    let schema = workspace().join("schemas/product.avsc").display().to_string();
    let arguments = ["--input", "-", "--schema", &schema, "--key", "id"];
    let mut seen = Vec::new();
    // Of several: a busy machine may hold up any one, and without a record to wait for it may be faster than the signal.
    while !seen.iter().any(|(code, took)| *code == 130 && *took < Duration::from_secs(4)) {
        assert!(seen.len() < 5, "it used to take 5 s: {seen:?}");
        let mut command = demo(folder.path(), &arguments);
        let mut running = Running::start_with_stdin(command.stdin(Stdio::piped()));
        running.wait_for_text("sending as fast as it is taken", DEADLINE);
        running.signal("INT");
        running.wait_for_text("once more to end at once", DEADLINE);
        let told = clock.now();
        running.signal_unless_ended("TERM");
        let finished = running.wait(DEADLINE);
        seen.push((finished.code(), clock.now() - told));
        nothing_left(folder.path());
    }
}

#[test]
fn it_serves_what_it_shows() {
    let folder = scratch();
    let arguments = ["--records", "500", "--for", "10m", "--rate", "20", "--listen", "127.0.0.1:0"];
    let mut running = Running::start(&mut demo(folder.path(), &arguments));
    running.wait_for_text("serving http://", DEADLINE);
    let said = running.stderr();
    let url = said.split("serving http://").nth(1).and_then(|rest| rest.split_whitespace().next());
    let (host, _) = url.expect("it has said so").split_once('/').expect("a path follows");
    wait_until("the first product is served", DEADLINE, || {
        let answer = get(host, "/v1/datasets/products/records/P-000000000");
        if answer.starts_with("HTTP/1.1 200") && answer.contains("\"price_cents\"") {
            Ok(())
        } else {
            Err(answer)
        }
    });
    running.signal("TERM");
    let finished = running.wait(DEADLINE).expect_code(0);
    says(&finished, &[AGREED, "README.md"]);
    assert!(!finished.stdout.contains("--listen"), "it has served: {}", finished.stdout);
}

fn get(host: &str, path: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(host).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}

#[test]
fn what_cannot_be_used_is_said_with_its_own_code() {
    let folder = scratch();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    write(
        "good.avsc",
        &std::fs::read_to_string(workspace().join("schemas/product.avsc")).expect("it is there"),
    );
    write("bad.avsc", "{\"type\": \"recor\"}");
    write("lines.jsonl", "{\"id\": \"a\"}\n");
    write("long.jsonl", &format!("{}\n", "x".repeat(1_000_001)));
    let cases: [(&[&str], i32, &str); 12] = [
        (&["--for", "fast"], 64, "30s"),
        (&["--for", "0s"], 64, "longer than nothing"),
        (&["--records", "0"], 64, "--records"),
        (&["--input", "lines.jsonl"], 64, "--schema"),
        (&["--schema", "good.avsc"], 64, "--input"),
        (&["--input", "lines.jsonl", "--schema", "good.avsc", "--key", "id", "--seed", "2"], 64, "--seed"),
        (&["--listen", "80"], 78, "--listen is HOST:PORT"),
        (&["--input", "none.jsonl", "--schema", "good.avsc", "--key", "id"], 66, "none.jsonl"),
        (&["--input", "lines.jsonl", "--schema", ".", "--key", "id"], 66, "director"),
        (&["--input", "lines.jsonl", "--schema", "bad.avsc", "--key", "id"], 65, "bad.avsc"),
        (&["--input", "lines.jsonl", "--schema", "good.avsc", "--key", "idd"], 78, "idd"),
        (&["--input", "long.jsonl", "--schema", "good.avsc", "--key", "id"], 65, "line 1 of long.jsonl"),
    ];
    for (arguments, code, said) in cases {
        let finished = run(&mut demo(folder.path(), arguments), DEADLINE);
        assert_eq!(finished.code(), code, "{arguments:?}: {}", finished.stderr);
        assert!(finished.stderr.contains(said), "{arguments:?} does not say {said:?}: {}", finished.stderr);
        assert_eq!(finished.stdout, "", "{arguments:?}");
        // It has none.
        let elsewhere = ["http.listen", "configuration"].iter().find(|word| finished.stderr.contains(**word));
        assert_eq!(elsewhere, None, "{arguments:?}: {}", finished.stderr);
    }
    // Nothing fits: that is worth an error, after the reasons.
    let finished = run(
        &mut demo(folder.path(), &["--input", "lines.jsonl", "--schema", "good.avsc", "--key", "id"]),
        DEADLINE,
    );
    assert_eq!(finished.code(), 65, "{}", finished.stderr);
    says(&finished, &["line 1: stage validate"]);
    nothing_left(folder.path());
}

#[test]
fn its_help_says_what_it_cannot_show() {
    let folder = scratch();
    let help = run(&mut demo(folder.path(), &["--help"]), DEADLINE).expect_code(0);
    says(&help, &["What it cannot show", "fences no second writer", "Exit codes"]);
}
