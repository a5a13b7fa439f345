//! Failpoints: one at each durable step, where a test lets this process die, stop or fail.
//!
//! ```text
//! FAILPOINTS='announce.committed=3*off->return(abort)' stillwell run …   dies at the fourth commit
//! ```
//!
//! Armed only by [`arm`], which `stillwell run` and `dlq replay` call at their start and which does nothing without `FAILPOINTS` in the
//! environment. The syntax is that of the crate fail (<https://docs.rs/fail/0.5>): tasks joined by `->`, each with a count
//! (`3*`) or a percentage. What `return` is given says what happens: `abort` ends the process at once, as a power cut
//! does; `stop` stops it there, as SIGSTOP does, until somebody sends SIGCONT; `error` makes the step fail. `sleep(ms)`
//! holds the step.
//!
//! Not armed, reaching one costs a read lock and a look into an empty table: nothing beside the fsync, upload or
//! transaction that it stands at. There is none on the way of a single record.
//!
//! `FAILPOINTS_CLOCK` names a file with the milliseconds by which the wall clock of this process is off, from the moment on
//! at which they are written there. It is armed in the same way.
//!
//! Owns: the names, and what happens there. Does not own: where they are reached (the rooms), what is checked after
//! (tests/crash).

#[cfg(test)]
pub(crate) mod forks;

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Every failpoint, in the order in which a record comes by; last those of taking over.
pub const ALL: &[&str] = &[
    "log.append",
    "log.synced",
    "log.handed-on",
    "build.delta",
    "store.put",
    "store.stored",
    "announce.begin",
    "announce.letters",
    "announce.offsets",
    "announce.announcements",
    "announce.committed",
    "announce.read-back",
    "log.trim",
    "log.forgotten",
    "snapshot.merged",
    "snapshot.stored",
    "snapshot.indexed",
    "clean.confirmed",
    "clean.delete",
    "clean.deleted",
    "clean.trimmed",
    "takeover.fenced",
    "takeover.epoch",
    "takeover.begun",
    "takeover.view",
    "takeover.log",
];

/// Those of a replay of dead letters, in order.
pub const REPLAY: &[&str] = &["replay.sent", "replay.offsets", "replay.committed"];

/// Those that a writer passes only when it is asked to, or told to by its configuration: of a rebuild, of shedding, and of
/// a store in a topic.
pub const SELDOM: &[&str] =
    &["rebuild.folded", "rebuild.packed", "rebuild.handed-on", "log.shed", "store.chunk"];

/// Those that only somebody's asking reaches.
pub const ASKED: &[&str] = &["pin.written"];

/// The environment variable that arms them.
const VARIABLE: &str = "FAILPOINTS";
/// The one that arms the clock.
const CLOCK: &str = "FAILPOINTS_CLOCK";

/// The file of [`CLOCK`]; never set but by [`arm`].
static SKEW: OnceLock<PathBuf> = OnceLock::new();

/// What a step fails with at a failpoint that was told `return(error)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failpoint {0}: told to fail here")]
pub struct Injected(&'static str);

/// Failpoints that are armed; none is any more when this is dropped.
pub struct Armed(#[expect(dead_code, reason = "disarms them when dropped")] fail::FailScenario<'static>);

/// Arms what `FAILPOINTS` says, for the whole process, and says so. `None`: it says nothing.
///
/// # Errors
/// What is wrong with it: a failpoint that never fires would make a test that tests nothing.
pub fn arm() -> Result<Option<Armed>, String> {
    if let Some(file) = std::env::var_os(CLOCK).filter(|given| !given.is_empty()) {
        tracing::warn!(file = %file.to_string_lossy(), "{CLOCK} is set: this process's wall clock goes wrong. It is a test");
        // A second time it is the same file.
        let _ = SKEW.set(file.into());
    }
    let Some(given) = std::env::var_os(VARIABLE).filter(|given| !given.is_empty()) else { return Ok(None) };
    let text = given.to_string_lossy().into_owned();
    check(&text)?;
    tracing::warn!(
        failpoints = text,
        "FAILPOINTS is set: this process will die, stop or fail on purpose. It is a test"
    );
    Ok(Some(Armed(fail::FailScenario::setup())))
}

/// Names and tasks, before the crate panics over them.
fn check(text: &str) -> Result<(), String> {
    for one in text.split(';').map(str::trim).filter(|one| !one.is_empty()) {
        let Some((name, tasks)) = one.split_once('=') else {
            return Err(format!("{VARIABLE}: {one:?} is not NAME=TASKS"));
        };
        let known = [ALL, SELDOM, REPLAY, ASKED].concat();
        if !known.contains(&name) {
            let known = known.join(", ");
            return Err(format!("{VARIABLE}: there is no failpoint {name:?}; there are {known}"));
        }
        for task in tasks.split("->") {
            let task = task.rsplit_once(['*', '%']).map_or(task, |(_, task)| task);
            let known = ["off", "return(abort)", "return(stop)", "return(error)"].contains(&task)
                || task
                    .strip_prefix("sleep(")
                    .is_some_and(|rest| rest.strip_suffix(')').is_some_and(|ms| ms.parse::<u64>().is_ok()));
            if !known {
                return Err(format!(
                    "{VARIABLE}: {task:?} of {name} is not off, sleep(MS), return(abort), return(stop) or \
                     return(error), with a count (3*) or percentage (5%) before it"
                ));
            }
        }
    }
    Ok(())
}

/// Milliseconds by which the wall clock is said to be off: none, unless a test has armed it.
pub(crate) fn skew_ms() -> i64 {
    let Some(file) = SKEW.get() else { return 0 };
    std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Reaches failpoint `name`.
///
/// # Errors
/// [`Injected`], where it is told to fail.
pub fn reach(name: &'static str) -> Result<(), Injected> {
    match fail::eval(name, |what| what.unwrap_or_default()).as_deref() {
        None => Ok(()),
        Some("abort") => {
            tracing::warn!(failpoint = name, "told to die here");
            std::process::abort();
        }
        Some("stop") => {
            tracing::warn!(failpoint = name, "told to stop here");
            stop();
            tracing::warn!(failpoint = name, "going on");
            Ok(())
        }
        Some(_) => Err(Injected(name)),
    }
}

/// [`reach`], at a step that cannot fail.
pub fn pass(name: &'static str) {
    // What is told to fail where nothing can goes on.
    let _ = reach(name);
}

/// Stops this process, all threads of it. By `kill`, since a signal to oneself takes unsafe code; it is for tests.
fn stop() {
    // It reaches one thread, which stops the others a moment later: until then this one must not go on.
    let wait = r#"kill -STOP "$0" && sleep 0.5"#;
    let told = Command::new("sh").args(["-c", wait, &std::process::id().to_string()]).status();
    if !told.is_ok_and(|status| status.success()) {
        tracing::error!("kill -STOP does not run; going on");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_never_fire_is_refused() {
        for good in
            ["log.append=return(abort)", "log.trim=3*off->1*return(stop)->off; store.put=5%sleep(20)", ""]
        {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["log.apend=return(abort)", "log.append", "log.append=abort", "log.append=sleep(x)"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn unarmed_nothing_happens() {
        for name in ALL.iter().chain(SELDOM) {
            assert_eq!(reach(name), Ok(()));
        }
        assert_eq!(skew_ms(), 0);
    }
}
