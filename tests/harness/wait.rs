//! Waiting on a condition with a deadline: the only place in the tests that sleeps.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

/// Between two looks at the condition.
const STEP: Duration = Duration::from_millis(20);

/// Looks until `condition` is `Ok` and returns what it held; panics at the deadline with the last state seen.
#[track_caller]
pub fn wait_until<T, S: Display>(
    what: &str,
    deadline: Duration,
    condition: impl FnMut() -> Result<T, S>,
) -> T {
    match held_within(deadline, condition) {
        Ok(held) => held,
        Err(state) => panic!("waited {deadline:?} until {what}; last seen: {state}"),
    }
}

/// Looks until `condition` is `Ok` and returns what it held.
///
/// # Errors
/// The last state seen, at the deadline.
#[expect(clippy::disallowed_methods, reason = "the one place where tests wait, always with a deadline")]
pub fn held_within<T, S>(deadline: Duration, mut condition: impl FnMut() -> Result<T, S>) -> Result<T, S> {
    let start = Instant::now();
    loop {
        match condition() {
            Ok(held) => return Ok(held),
            Err(state) if start.elapsed() > deadline => return Err(state),
            Err(_) => std::thread::sleep(STEP),
        }
    }
}

/// [`wait_until`] for a condition that awaits; it leaves the runtime's threads to others meanwhile.
#[expect(clippy::disallowed_methods, reason = "the one place where tests wait, always with a deadline")]
pub async fn wait_until_async<T, S: Display, F: Future<Output = Result<T, S>>>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> F,
) -> T {
    let start = Instant::now();
    loop {
        match condition().await {
            Ok(held) => return held,
            Err(state) if start.elapsed() > deadline => {
                panic!("waited {deadline:?} until {what}; last seen: {state}")
            }
            Err(_) => tokio::time::sleep(STEP).await,
        }
    }
}
