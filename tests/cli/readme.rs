//! README.md, word for word: its configuration, its first record, its commands, its example of a reader, on a broker of its own.

use std::path::Path;

use serde_json::Value;
use stillwell_tests::{
    Broker, Record, Running, Topic, example, free_port, run, scratch, stillwell, wait_until, workspace,
};

use crate::serving::{LONG, ask, request, until_ready};

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

/// The lines of the shell, those that go on in the next one as one.
fn shell() -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in blocks("sh") {
        let whole = line.strip_suffix('\\').unwrap_or(&line);
        match lines.last_mut().filter(|_| goes_on) {
            Some(last) => last.push_str(whole),
            None => lines.push(whole.to_owned()),
        }
        goes_on = whole.len() < line.len();
    }
    lines
}

/// The words of a line, as the shell takes them apart; without its comment.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut rest) = (Vec::new(), line.trim());
    while !rest.is_empty() && !rest.starts_with('#') {
        let quote = rest.chars().next().filter(|first| ['\'', '"'].contains(first));
        let (word, after) = match quote {
            Some(quote) => rest[1..].split_once(quote).expect("a quotation ends"),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    words
}

/// A request as `curl` would send it, to this port: method, path, headers, body.
fn curl(words: &[String]) -> (String, String, String, String) {
    let (mut method, mut path, mut headers, mut body) =
        ("GET".to_owned(), None, String::new(), String::new());
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().expect("an option has its value").clone();
        match word.as_str() {
            "-X" => method = value(),
            "-H" => headers += &format!("{}\r\n", value()),
            "--data" => body = value(),
            url => path = url.strip_prefix("http://127.0.0.1:8080").map(str::to_owned),
        }
    }
    (method, path.expect("it asks what was configured"), headers, body)
}

fn configuration(dir: &Path, servers: &str) -> String {
    let toml = blocks("toml").join("\n");
    assert!(toml.lines().count() <= 10, "ten lines are promised:\n{toml}");
    for there in ["localhost:9092", "/var/lib/stillwell"] {
        assert!(toml.contains(there), "{there} is written in another way:\n{toml}");
    }
    toml.replace("localhost:9092", servers).replace("/var/lib/stillwell", &dir.join("data").to_string_lossy())
}

/// What README.md shows of Rust, but for where things are.
#[rustfmt::skip]
async fn own_service(servers: &str, blobs: &str, cache: &Path) -> Result<(), Box<dyn std::error::Error>> {
    // From README.md:
    let products = stillwell::Consumer::builder("products").bootstrap_servers(servers)
        .blobs(blobs).cache_dir(cache)
        .start().await?;
    let view = products.view();
    let can = view.get("P-100")?.ok_or("no such product")?;
    println!("{} costs {}, says {}", can.to_json()?, can.field::<i64>("price_cents")?, view.versions());
    products.shutdown().await?;
    Ok(())
    // To here.
}

/// [`own_service`] is what stands there, and does what is said; so does the example that comes with it.
fn read_in_rust(servers: &str, blobs: &str, dir: &Path, (key, value): (&str, &str)) {
    let shown = blocks("rust,no_run").join("\n");
    let there = [
        ("\"localhost:9092\"", "servers"),
        ("\"file:///var/lib/stillwell/blobs\"", "blobs"),
        ("\"/var/cache/stillwell\"", "cache"),
    ];
    let shown = there.iter().fold(shown, |shown, (there, here)| {
        assert!(shown.contains(there), "{there} is written in another way:\n{shown}");
        shown.replace(there, here)
    });
    let (_, shown) = shown.split_once("{\n").expect("a function's body");
    let (shown, _) = shown.rsplit_once('}').expect("its end");
    let (_, tried) = include_str!("readme.rs").split_once("// From README.md:\n").expect("it is above");
    let (tried, _) = tried.split_once("// To here.").expect("it ends");
    let code = |text: &str| {
        let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default().trim());
        lines.collect::<Vec<_>>().join("\n").trim().to_owned()
    };
    assert_eq!(code(tried), code(shown), "README.md shows what nobody has tried");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cache = dir.join("read");
    let read = async {
        let reading = own_service(servers, blobs, &cache);
        tokio::time::timeout(LONG, reading).await.expect("it is read in time")
    };
    runtime.block_on(read).unwrap();

    let mut reader = example("consumer");
    reader.args([blobs, key, "no-such-key"]).env("KAFKA", servers).env("TMPDIR", dir);
    let printed = run(&mut reader, LONG).expect_code(0).stdout;
    let found = printed.lines().find_map(|line| line.strip_prefix(&format!("{key}: "))).unwrap_or_default();
    let found: Value = serde_json::from_str(found).unwrap_or_else(|error| panic!("{error}: {printed}"));
    let told: Value = serde_json::from_str(value).unwrap();
    for (field, value) in told.as_object().unwrap() {
        assert_eq!(found[field], *value, "{printed}");
    }
    assert!(
        printed.contains("no-such-key is not there") && printed.contains("holds 1 products"),
        "{printed}"
    );
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
        // Settings stand before a command, as the shell has it.
        let (settings, words): (Vec<_>, Vec<_>) =
            words.iter().partition(|word| word.starts_with("STILLWELL_"));
        let mut command = stillwell(words.into_iter().skip(1));
        command.envs(settings.into_iter().filter_map(|setting| setting.split_once('=')));
        command.current_dir(dir.path()).env("STILLWELL_HTTP__LISTEN", format!("127.0.0.1:{port}"));
        command
    };
    let lines: Vec<Vec<String>> = shell().iter().map(|line| words(line)).collect();
    let runs = |words: &&Vec<String>| words.windows(2).any(|pair| pair == ["stillwell", "run"]);
    let running: Vec<_> = lines.iter().filter(runs).collect();
    let [first] = running.as_slice() else { panic!("one command runs it, not {running:?}") };
    let mut process = Running::start(&mut command(first));
    until_ready(&mut process, port);

    // As `kcat -K :` takes it apart, and Kafka's console producer with its key.separator.
    let piped = |words: &Vec<String>| match words.as_slice() {
        [echo, record, pipe] if echo == "echo" && pipe == "|" => Some(record.clone()),
        _ => None,
    };
    let sent: Vec<String> = lines.iter().filter_map(piped).collect();
    assert!(
        sent.len() >= 2 && sent.iter().all(|line| *line == sent[0]),
        "one record, however sent: {sent:?}"
    );
    let (key, value) = sent[0].split_once(':').unwrap();
    Topic::named_on(&broker, "products").produce([Record::upsert(key, value)]);
    let record = wait_until("the record is there", LONG, || {
        match ask(port, &format!("/v1/datasets/products/records/{key}"), "") {
            Ok(answer) if answer.status == 200 => Ok(answer.json()),
            Ok(answer) => Err(answer.body),
            Err(error) => Err(error.to_string()),
        }
    });
    let told: Value = serde_json::from_str(value).unwrap();
    for (field, value) in told.as_object().unwrap() {
        assert_eq!(record[field], *value, "{field}");
    }
    assert_eq!(Topic::named_on(&broker, "products.dlq").read(), [], "it fits its schema");
    let blobs = format!("file://{}", dir.path().join("data/blobs").display());
    read_in_rust(broker.bootstrap(), &blobs, dir.path(), (key, value));

    // Pasted as one, the commands leave it the time that a batch takes by default.
    let first = |word: &str| lines.iter().position(|line| line.first().is_some_and(|first| first == word));
    let (sends, sleeps, asks) = (first("kcat"), first("sleep"), first("curl"));
    assert!(sends.is_some() && sends < sleeps && sleeps < asks, "lines {sends:?} {sleeps:?} {asks:?}");
    let seconds: Option<u64> =
        sleeps.and_then(|at| lines[at].get(1)).and_then(|seconds| seconds.parse().ok());
    assert!(seconds.is_some_and(|seconds| seconds >= 2), "{seconds:?} s is too short");

    // All the rest beside it, word for word and line by line.
    let mut tried = [0; 3];
    for line in &lines {
        let of: Vec<&str> = line.iter().map(String::as_str).collect();
        match of.as_slice() {
            ["curl", ..] => {
                tried[0] += 1;
                let (method, path, headers, body) = curl(line);
                let answer = request(port, &method, &path, &headers, body.as_bytes()).unwrap();
                assert_eq!(answer.status, 200, "{line:?}: {}", answer.body);
                assert!(answer.body.contains("products") || answer.body.contains(key), "{}", answer.body);
            }
            ["echo", text, ">", file] => {
                tried[1] += 1;
                std::fs::write(dir.path().join(file), format!("{text}\n")).unwrap();
            }
            ["stillwell", ..] if !of.iter().any(|word| word.contains('…')) => {
                tried[2] += 1;
                let finished = run(&mut command(line), LONG).expect_code(0);
                assert!(!finished.stdout.is_empty(), "{line:?} prints nothing");
            }
            // Those that are left to the reader; what runs already; what other tests try; a wait that is over.
            ["stillwell", ..] | ["make" | "docker" | "kcat" | "sleep", ..] | ["echo", _, "|"] => {}
            _ if runs(&line) => {}
            _ => panic!("nobody has tried {line:?}"),
        }
    }
    assert!(tried[0] >= 4 && tried[1] >= 1 && tried[2] >= 3, "{tried:?}");
    process.stop(LONG).expect_code(0);
}

/// `make help` names every target, so that nobody has to read the Makefile; README.md's are among them.
#[test]
fn make_help_is_complete() {
    let help = run(std::process::Command::new("make").arg("help").current_dir(workspace()), LONG);
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
