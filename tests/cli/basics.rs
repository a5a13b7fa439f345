//! What holds for every command.

use std::time::Duration;

use stillwell_tests::{Finished, run, scratch, stillwell};

const DEADLINE: Duration = Duration::from_secs(120);

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
