//! What holds for every command, and for the configuration that the container files bring.

use std::path::Path;
use std::time::Duration;

use stillwell_tests::{Finished, run, scratch, stillwell, workspace};

const DEADLINE: Duration = Duration::from_secs(30);

fn ran(arguments: &[&str]) -> Finished {
    // In a folder of its own: a stillwell.toml in the working directory would be read.
    let folder = scratch();
    run(stillwell(arguments).current_dir(folder.path()), DEADLINE)
}

#[test]
fn it_says_what_it_is() {
    let version = ran(&["--version"]).expect_code(0);
    assert_eq!(version.stdout, format!("stillwell {}\n", env!("CARGO_PKG_VERSION")));
    let help = ran(&["--help"]).expect_code(0);
    assert!(help.stdout.contains("Usage: stillwell"), "{}", help.stdout);
    assert_eq!(help.stderr, "", "data goes to standard output, and only there");
}

#[test]
fn a_mistake_in_the_arguments_is_64() {
    for arguments in [&["no-such-command"][..], &["check", "--no-such-flag"], &[]] {
        let finished = ran(arguments);
        assert_eq!(finished.code(), 64, "{arguments:?}: {}{}", finished.stdout, finished.stderr);
        assert_eq!(finished.stdout, "", "{arguments:?}: stdout carries data only");
    }
}

/// All mistakes at once, each with file, line and key, and a name that may have been meant.
#[test]
fn a_mistake_in_the_configuration_is_78() {
    let folder = scratch();
    let file = folder.path().join("wrong.toml");
    std::fs::write(&file, "[kafka]\nbootstrap_servers = \"localhost:9092\"\n\n[produser]\n")
        .expect("written");
    let finished = run(stillwell(["check", "-c"]).arg(&file).current_dir(folder.path()), DEADLINE);
    assert_eq!(finished.code(), 78, "{}", finished.stderr);
    let place = format!("{}:4", file.display());
    for said in [place.as_str(), "produser", "did you mean producer", "datasets"] {
        assert!(finished.stderr.contains(said), "not said: {said}\n{}", finished.stderr);
    }
}

/// docker/compose.yaml configures by environment alone; what it sets, and what the image sets, must be right.
#[test]
fn the_containers_environment_is_a_right_configuration() {
    let folder = scratch();
    let mut check = stillwell(["check"]);
    check.current_dir(folder.path());
    let mut set = 0;
    for (name, value) in environment() {
        // Paths inside the container, put where this machine has them.
        let value = value.replace("/etc/stillwell/product.avsc", &path("docker/product.avsc"));
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
    let compose = std::fs::read_to_string(path("docker/compose.yaml")).expect("compose.yaml");
    let dockerfile = std::fs::read_to_string(path("docker/Dockerfile")).expect("Dockerfile");
    let of_compose = compose.lines().filter_map(|line| line.trim().split_once(": "));
    let words = dockerfile.split_whitespace().filter_map(|word| word.split_once('='));
    of_compose
        .chain(words)
        .filter(|(name, _)| name.starts_with("STILLWELL_") && *name != "STILLWELL_CACHE")
        .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
        .collect()
}

fn path(below: &str) -> String {
    let path = workspace().join(below);
    assert!(Path::new(&path).is_file(), "{}", path.display());
    path.to_string_lossy().into_owned()
}
