//! Replays beside which the source is written.

use std::time::Duration;

use serde_json::Value;
use stillwell_tests::{Record, Running, scratch, wait_until};

use crate::letters::{Scene, counts, poison};

const LONG: Duration = Duration::from_secs(90);

/// What others write between two transactions of a replay is looked at, though the replay's own records are not; and the
/// transactions behind it go on as before.
#[test]
fn what_is_written_meanwhile_makes_letters_stale() {
    const LETTERS: usize = 20;
    // So many go into a transaction where a program mends them, or fewer where the machine is slow.
    const CHUNK: usize = 8;
    let scene = Scene::new("meanwhile", 1);
    let keys: Vec<String> = (0..LETTERS).map(|n| format!("K-{n}")).collect();
    scene.fail(&keys.iter().map(|key| poison(key, 5)).collect::<Vec<_>>());
    let folder = scratch();
    let written = folder.path().join("written");
    // In a later chunk than the first, before it is judged.
    let waiting = format!(
        "test \"$STILLWELL_KEY\" != K-{CHUNK} || until test -e {}; do sleep 0.05; done; cat",
        written.display()
    );
    let arguments = ["--quiet", "--output", "json", "--fix", &waiting, "--fix-timeout", "80s"];
    let replay = Running::start(&mut scene.instance.command(&["dlq", "replay"], &arguments));
    wait_until("the first chunk is in the source", LONG, || match scene.replayed().len() {
        0 => Err("nothing is"),
        _ => Ok(()),
    });
    let later = |key: &str| Record { partition: Some(0), ..poison(key, 6) };
    scene.source().produce([
        later("K-8"),
        Record { partition: Some(0), ..Record::delete("K-9") },
        later("nobody's"),
        later("K-17"),
    ]);
    std::fs::write(&written, "").expect("it is written");
    let done = replay.wait(LONG).expect_code(0);
    let last: Value =
        serde_json::from_str(done.stdout.lines().last().unwrap_or_default()).expect("the totals");
    assert_eq!(counts(&last["totals"]), (20, 17, 3, 0, 0), "{last}");
    let stale = ["K-8", "K-9", "K-17"];
    let expected: Vec<String> = keys.into_iter().filter(|key| !stale.contains(&key.as_str())).collect();
    assert_eq!(scene.replayed_keys(), expected);
}
