//! README.md, word for word: its configuration, its first record, its commands, on a broker of its own. Its Rust example is
//! compiled with the documentation's.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use stillwell_tests::{
    Broker, Record, Running, Topic, free_port, run, scratch, stillwell, wait_until, workspace,
};

use crate::serving::{LONG, ask, get, until_ready};

fn readme() -> String {
    std::fs::read_to_string(workspace().join("README.md")).unwrap()
}

/// The lines of all code blocks in this language.
fn blocks(language: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut within = None;
    for line in readme().lines() {
        match (line.strip_prefix("```"), &within) {
            (Some(opened), None) => within = Some(opened.to_owned()),
            (Some(_), Some(_)) => within = None,
            (None, Some(opened)) if opened == language => lines.push(line.to_owned()),
            (None, _) => {}
        }
    }
    assert!(!lines.is_empty(), "README.md has no {language}");
    lines
}

/// The arguments of each `stillwell …` line, but for those that leave something to the reader.
fn commands() -> Vec<Vec<String>> {
    let commands = blocks("sh").into_iter().filter_map(|line| {
        let words = line.split(" # ").next()?.trim().strip_prefix("stillwell ")?.to_owned();
        (!words.contains('…')).then(|| words.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    });
    commands.collect()
}

/// Paths of `curl` lines.
fn routes() -> Vec<String> {
    let path = |line: String| {
        let (_, path) = line.strip_prefix("curl ")?.trim_matches('\'').split_once("http://127.0.0.1:8080")?;
        Some(path.to_owned())
    };
    blocks("sh").into_iter().filter_map(path).collect()
}

fn configuration(dir: &Path, servers: &str) -> String {
    let toml = blocks("toml").join("\n");
    assert!(toml.lines().count() <= 10, "ten lines are promised:\n{toml}");
    for there in ["localhost:9092", "/var/lib/stillwell"] {
        assert!(toml.contains(there), "{there} is written in another way:\n{toml}");
    }
    toml.replace("localhost:9092", servers).replace("/var/lib/stillwell", &dir.join("data").to_string_lossy())
}

#[test]
fn what_the_readme_says_works() {
    let broker = Broker::own();
    let (dir, port) = (scratch(), free_port());
    let schemas = dir.path().join("schemas");
    std::fs::create_dir(&schemas).unwrap();
    std::fs::copy(workspace().join("schemas/product.avsc"), schemas.join("product.avsc")).unwrap();
    std::fs::write(dir.path().join("stillwell.toml"), configuration(dir.path(), broker.bootstrap())).unwrap();
    let command = |words: &[String]| {
        let mut command = stillwell(words);
        command.current_dir(dir.path()).env("STILLWELL_HTTP__LISTEN", format!("127.0.0.1:{port}"));
        command
    };

    let (running, others): (Vec<_>, Vec<_>) = commands().into_iter().partition(|words| words[0] == "run");
    let [words] = running.as_slice() else { panic!("one command runs it, not {running:?}") };
    let mut process = Running::start(&mut command(words));
    until_ready(&mut process, port);

    // As `kcat -K :` takes it apart, and Kafka's console producer with its key.separator.
    let sent: Vec<_> = blocks("sh")
        .into_iter()
        .filter_map(|line| Some(line.strip_prefix("echo '")?.strip_suffix("' |")?.to_owned()))
        .collect();
    assert!(
        sent.len() >= 2 && sent.iter().all(|line| *line == sent[0]),
        "one record, however sent: {sent:?}"
    );
    let (key, value) = sent[0].split_once(':').unwrap();
    Topic::named_on(&broker, "products").produce([Record::upsert(key, value)]);
    let routes = routes();
    assert!(routes.len() >= 3, "{routes:?}");
    let record = wait_until("the record is there", LONG, || match ask(port, &routes[0], "") {
        Ok(answer) if answer.status == 200 => Ok(answer.json()),
        Ok(answer) => Err(answer.body),
        Err(error) => Err(error.to_string()),
    });
    let told: Value = serde_json::from_str(value).unwrap();
    for (field, value) in told.as_object().unwrap() {
        assert_eq!(record[field], *value, "{field}");
    }
    assert_eq!(Topic::named_on(&broker, "products.dlq").read(), [], "it fits its schema");
    for route in &routes {
        let answer = get(port, route);
        assert_eq!(answer.status, 200, "{route}: {}", answer.body);
        assert!(answer.body.contains("products") || answer.body.contains(key), "{route}: {}", answer.body);
    }

    // The other commands, beside it, with the file that one of them reads.
    std::fs::write(dir.path().join("records.jsonl"), value.replace("P-100", "P-101")).unwrap();
    assert!(others.len() >= 3, "{others:?}");
    for words in &others {
        let finished = run(&mut command(words), LONG).expect_code(0);
        assert!(!finished.stdout.is_empty(), "{words:?} prints nothing");
    }
    process.stop(LONG).expect_code(0);
}

/// `make help` names every target, so that nobody has to read the Makefile; README.md's are among them.
#[test]
fn make_help_is_complete() {
    let help =
        run(std::process::Command::new("make").arg("help").current_dir(workspace()), Duration::from_secs(30));
    let help = help.expect_code(0).stdout;
    let makefile = std::fs::read_to_string(workspace().join("Makefile")).unwrap();
    let targets = makefile.lines().find_map(|line| line.strip_prefix(".PHONY:")).unwrap();
    let explained = |target: &str| {
        let prefix = format!("make {target}\t");
        help.lines().any(|line| line.strip_prefix(&prefix).is_some_and(|about| !about.trim().is_empty()))
    };
    for target in targets.split_whitespace() {
        assert!(explained(target), "make {target} is not in make help:\n{help}");
    }
    let of_rules = makefile.lines().filter_map(|line| line.split_once(':').map(|(target, _)| target));
    for target in
        of_rules.filter(|target| target.chars().all(|c| c.is_ascii_lowercase()) && !target.is_empty())
    {
        assert!(targets.split_whitespace().any(|phony| phony == target), "{target} is not in .PHONY");
    }
    let named = blocks("sh").into_iter().filter_map(|line| {
        Some(line.strip_prefix("make ")?.split_whitespace().next().unwrap_or_default().to_owned())
    });
    for target in named {
        assert!(explained(&target), "README.md says make {target}");
    }
}
