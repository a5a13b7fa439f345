//! What stands in docker/: right for the program, and as an image should be. `.ci/container` tries it with an engine.

use std::path::Path;
use std::time::Duration;

use stillwell_tests::{run, scratch, stillwell, workspace};

const DEADLINE: Duration = Duration::from_secs(120);

fn text(below: &str) -> String {
    std::fs::read_to_string(workspace().join(below)).unwrap_or_else(|error| panic!("{below}: {error}"))
}

fn there(path: &Path) -> bool {
    path.exists()
}

/// docker/compose.yaml configures by environment alone; what it sets, and what the image sets, must be right.
#[test]
fn the_containers_environment_is_a_right_configuration() {
    let folder = scratch();
    let mut check = stillwell(["check"]);
    check.current_dir(folder.path());
    let mut set = 0;
    let schema = workspace().join("schemas/product.avsc").to_string_lossy().into_owned();
    for (name, value) in environment() {
        // Paths inside the container, put where this machine has them.
        let value = value.replace("/etc/stillwell/product.avsc", &schema);
        check.env(name, value.replace("/var/lib/stillwell", &folder.path().to_string_lossy()));
        set += 1;
    }
    assert!(set > 6, "the environment is written in another way");
    let finished = run(&mut check, DEADLINE).expect_code(0);
    let said = finished.stdout + &finished.stderr;
    assert!(said.contains("products"), "{said}");
}

/// The `STILLWELL_*` of docker/compose.yaml (`NAME: value`) and docker/Dockerfile (`NAME=value`).
fn environment() -> Vec<(String, String)> {
    let (compose, dockerfile) = (text("docker/compose.yaml"), text("docker/Dockerfile"));
    let of_compose = compose.lines().filter_map(|line| line.trim().split_once(": "));
    let words = dockerfile.split_whitespace().filter_map(|word| word.split_once('='));
    of_compose
        .chain(words)
        .filter(|(name, _)| name.starts_with("STILLWELL_") && *name != "STILLWELL_CACHE")
        .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
        .collect()
}

/// A stage of a Dockerfile: what it is made from, its name, its instructions.
struct Stage {
    from: String,
    name: String,
    instructions: Vec<(String, String)>,
}

fn stages(dockerfile: &str) -> Vec<Stage> {
    let joined: String = dockerfile.lines().filter(|line| !line.trim_start().starts_with('#')).fold(
        String::new(),
        |all, line| match line.strip_suffix('\\') {
            Some(open) => all + open,
            None => all + line + "\n",
        },
    );
    let mut stages: Vec<Stage> = Vec::new();
    for line in joined.lines().filter(|line| !line.is_empty()) {
        let (instruction, rest) = line.split_once(' ').expect("an instruction and what it takes");
        match (instruction, stages.last_mut()) {
            ("FROM", _) => {
                let (from, name) = rest.split_once(" AS ").unwrap_or((rest, ""));
                stages.push(Stage { from: from.into(), name: name.into(), instructions: Vec::new() });
            }
            (_, Some(stage)) => stage.instructions.push((instruction.into(), rest.trim().into())),
            ("ARG", None) => {
                assert!(!rest.ends_with(":latest") && rest.contains(':'), "{rest} says no version")
            }
            (_, None) => panic!("{line} stands before any stage"),
        }
    }
    stages
}

#[test]
fn the_image_is_as_an_image_should_be() {
    let dockerfile = text("docker/Dockerfile");
    let stages = stages(&dockerfile);
    let last = stages.last().expect("a stage");
    let runtime =
        stages.iter().find(|stage| stage.name == last.from).expect("the last stage has a base here");
    assert!(runtime.from.starts_with("$BASE_IMAGE"), "the image is not the compiler's");
    let prebuilt = stages.iter().find(|stage| stage.name == "prebuilt").expect("a stage for .ci/container");
    assert_eq!(prebuilt.from, runtime.name, "what CI tries is the same image");
    for stage in [last, prebuilt] {
        let changed: Vec<_> =
            stage.instructions.iter().filter(|(name, _)| !["COPY", "ARG"].contains(&name.as_str())).collect();
        assert!(changed.is_empty(), "{changed:?}: that belongs into the stage that both share");
    }

    let one = |instruction: &str| {
        let found: Vec<_> = runtime.instructions.iter().filter(|(name, _)| name == instruction).collect();
        assert_eq!(found.len(), 1, "one {instruction}");
        found[0].1.as_str()
    };
    assert!(!["root", "0"].contains(&one("USER")), "not as root");
    assert_eq!(one("ENTRYPOINT"), r#"["stillwell"]"#, "no shell between, so that signals arrive");
    assert_eq!(one("STOPSIGNAL"), "SIGTERM");
    let health = one("HEALTHCHECK");
    assert!(health.ends_with(r#"CMD ["stillwell", "healthcheck"]"#), "{health}");
    let (_, start) = health.split_once("--start-period=").expect("time to start");
    assert!(start.split_whitespace().next().and_then(|time| time.strip_suffix('s')).is_some(), "{start}");
    run(&mut stillwell(["healthcheck", "--help"]), DEADLINE).expect_code(0);

    for (instruction, rest) in stages.iter().flat_map(|stage| &stage.instructions) {
        assert_ne!(instruction, "ADD", "COPY says what it does");
        if rest.contains("apt-get install") {
            assert!(rest.contains("--no-install-recommends"), "{rest}");
            assert!(rest.contains("rm -rf /var/lib/apt/lists/*"), "in the same layer: {rest}");
        }
        if instruction == "COPY" && !rest.starts_with("--from") && !rest.starts_with('$') {
            let words: Vec<_> = rest.split_whitespace().collect();
            for source in &words[..words.len() - 1] {
                assert!(there(&workspace().join(source)), "COPY {source}: there is none");
            }
        }
    }
}

/// The lines of each service of docker/compose.yaml.
fn services() -> Vec<(String, Vec<String>)> {
    let mut services: Vec<(String, Vec<String>)> = Vec::new();
    for line in text("docker/compose.yaml").lines().skip_while(|line| *line != "services:").skip(1) {
        if !line.is_empty() && !line.starts_with(' ') {
            break;
        }
        match line.strip_prefix("  ") {
            Some(name) if !name.starts_with([' ', '#']) => {
                services.push((name.trim_end_matches(':').to_owned(), Vec::new()));
            }
            Some(rest) if !rest.trim_start().starts_with('#') => {
                services.last_mut().expect("a service").1.push(rest.trim().to_owned());
            }
            _ => {}
        }
    }
    services
}

#[test]
fn compose_limits_restarts_and_watches_what_it_runs_and_opens_nothing_to_the_network() {
    let services = services();
    let names: Vec<_> = services.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["kafka", "stillwell"]);
    for (name, lines) in &services {
        let has = |key: &str| lines.iter().any(|line| line.starts_with(key));
        for key in ["restart: unless-stopped", "mem_limit: ", "cpus: "] {
            assert!(has(key), "{name} has no {key}");
        }
        // Ours comes with the image.
        assert!(has("healthcheck:") || name == "stillwell", "{name} is not watched");
        let ports: Vec<_> =
            lines.iter().filter(|line| line.starts_with("- \"") && line.contains(':')).collect();
        assert!(!ports.is_empty(), "{name} is reached from this machine");
        for port in ports {
            assert!(port.starts_with("- \"127.0.0.1:"), "{name}: {port} is open to the network");
        }
        for mount in lines.iter().filter_map(|line| line.strip_prefix("- .")) {
            let source = mount.split(':').next().expect("a path");
            assert!(
                there(&workspace().join(format!("docker/.{source}"))),
                "{name}: .{source}: there is none"
            );
        }
    }
}

#[test]
fn scripts_are_written_in_bash() {
    let folder = workspace().join(".ci");
    let scripts =
        std::fs::read_dir(folder).expect("it is there").map(|entry| entry.expect("it can be listed").path());
    let more = ["docker/kafka/build", "docker/kafka/run"].map(|script| workspace().join(script));
    for script in scripts.chain(more) {
        let first = std::fs::read_to_string(&script).expect("text").lines().next().map(str::to_owned);
        assert_eq!(first.as_deref(), Some("#!/usr/bin/env bash"), "{}", script.display());
        run(std::process::Command::new("bash").arg("-n").arg(&script), DEADLINE).expect_code(0);
    }
}
