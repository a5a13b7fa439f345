//! Waiting on a condition with a deadline: the only place in the tests that sleeps.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

/// Between two looks at the condition.
const STEP: Duration = Duration::from_millis(20);
/// What is measured so often is late at its median if so many of them are.
const ROUND: usize = 11;
const MOST: usize = 6;
/// Rounds at most; and none is begun after this time, of what is late by far.
const ROUNDS: usize = 5;
const ENOUGH: Duration = Duration::from_secs(180);

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

/// Measures in rounds until the median of one of them is within `limit`, and gives that round. What a machine that stands still
/// makes of some of them, or of a whole round, does not count; what is late most of the time fails. Panics with all that was
/// measured.
#[expect(clippy::disallowed_methods, reason = "speed is measured by the system's clock")]
pub async fn mostly_within(
    what: &str,
    limit: Duration,
    mut measure: impl AsyncFnMut() -> Duration,
) -> Vec<Duration> {
    let (start, mut rounds) = (Instant::now(), Vec::new());
    while rounds.len() < ROUNDS && (rounds.is_empty() || start.elapsed() < ENOUGH) {
        let mut round = Vec::with_capacity(ROUND);
        // It ends as soon as its median's side is known.
        loop {
            round.push(measure().await);
            let within = round.iter().filter(|took| **took <= limit).count();
            if within == MOST {
                return round;
            }
            if round.len() - within == MOST {
                break;
            }
        }
        rounds.push(round);
    }
    panic!("{what}: not within {limit:?} most of the time: {rounds:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    /// What is measured takes so many seconds, one after another and again from the first; with how often it was asked.
    async fn of(seconds: &[u64]) -> (Vec<Duration>, usize) {
        let (mut asked, mut seconds) = (0, seconds.iter().cycle());
        let round = mostly_within("a test", LIMIT, async || {
            asked += 1;
            Duration::from_secs(*seconds.next().expect("some"))
        })
        .await;
        (round, asked)
    }

    #[tokio::test]
    async fn a_median_is_what_counts_and_one_round_is_enough() {
        assert_eq!(of(&[1]).await, (vec![LIMIT; MOST], MOST));
        let (round, asked) = of(&[5, 0]).await;
        assert_eq!((round.len(), asked), (ROUND, 2 * ROUND), "the first had six that were late");
        // A round in which the machine stood still.
        let (round, _) = of(&[9, 9, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0]).await;
        assert_eq!(round, vec![Duration::ZERO; MOST]);
    }

    #[tokio::test]
    #[should_panic(expected = "most of the time")]
    async fn what_is_late_nine_times_of_ten_fails() {
        of(&[0, 5, 5, 5, 5, 5, 5, 5, 5, 5]).await;
    }
}
