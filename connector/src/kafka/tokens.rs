//! Tokens for Kafka by OIDC, which librdkafka fetches by itself only where it is built with curl.
//!
//! ```text
//!  each client: Kept --holds--> Lease <--gives token, tells failure-- Keeper (thread) --asks--> endpoint
//!               goes first          no client any more: does nothing
//! ```
//!
//! One keeper for all clients that say the same of OIDC, so that a process asks for one token however many clients it has: the
//! first time when the first client is made, then each time that 80% of a token's life are over. While the endpoint fails, clients go
//! on with the token that is there; without one they connect to nobody, and Kafka counts as away.
//!
//! librdkafka asks for tokens by an event of the client's main queue as well. Nobody answers it: half of our clients are not polled,
//! and a token is there before that event comes.
//!
//! Owns: who gets tokens, and when to ask for the next. Does not own: what properties say (`given`), a request and its answer
//! (`fetch`), librdkafka's calls (`kept`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Options;
use crate::clock::{Clock, Entropy};
use crate::repeat::Tally;
use crate::retry::Backoff;

mod fetch;
mod given;
mod kept;

pub use given::NAMED_FILE;
pub(super) use given::{is_ours, refused};
pub(super) use kept::{Kept, Native};

use fetch::Token;
use given::Given;

/// When a token is renewed, in hundredths of its life: as librdkafka does, before it ends a connection that was made by it
/// (at 90%).
const RENEWED_AT: i64 = 80;
/// Tokens that last no time are not asked for more often than this.
const SOONEST: Duration = Duration::from_secs(1);
/// How long after a failure the endpoint is asked again: at first, and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// So long before its end a token counts as ended: brokers go by clocks of their own, which may be ahead of this one.
const AHEAD: Duration = Duration::from_secs(1);
/// Longest wait in one go: the wall clock may be set meanwhile, or the machine have slept.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The keepers of tokens of one process's clients. Cheap to clone; clones share them.
#[derive(Clone, Default)]
pub struct Tokens(Arc<Mutex<Vec<Arc<Keeper>>>>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

/// Who gets tokens for a client with these options; `None`: it needs none of OIDC.
///
/// # Errors
/// What is wrong with the properties, without values.
pub(super) fn keeper(options: &Options) -> Result<Option<Arc<Keeper>>, String> {
    let Some(given) = Given::of(&options.properties)? else { return Ok(None) };
    // Nothing that a panic could leave half done.
    let mut keepers = options.tokens.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(keeper) = keepers.iter().find(|keeper| keeper.given == given) {
        return Ok(Some(Arc::clone(keeper)));
    }
    // Of former properties, once nobody needs them.
    keepers.retain(|keeper| keeper.state().runs);
    let keeper = Arc::new(Keeper::new(given, Clock::system()));
    keepers.push(Arc::clone(&keeper));
    Ok(Some(keeper))
}

/// Whether tokens can be had by these properties, as far as can be told without asking anybody.
///
/// # Errors
/// As [`keeper`], and certificates that are none.
pub(super) fn check(options: &Options) -> Result<(), String> {
    match Given::of(&options.properties)? {
        Some(given) => given.connector().map(drop),
        None => Ok(()),
    }
}

/// Somebody who needs tokens.
pub(super) trait Holder: Send + Sync {
    /// Takes a token, also the next one.
    ///
    /// # Errors
    /// Why it does not.
    fn give(&self, token: &Token) -> Result<(), String>;

    /// There is no token, and why.
    fn fail(&self, why: &str);

    /// Whether it has gone, and needs none any more.
    fn is_gone(&self) -> bool;
}

/// Gets tokens from one endpoint by one secret, in a thread of its own, for as long as somebody needs them. The thread ends by itself
/// then, within the time that is left of a request; nobody waits for it, and it touches no client any more.
pub(super) struct Keeper {
    given: Given,
    clock: Clock,
    entropy: Entropy,
    state: Mutex<State>,
    /// Somebody has gone, or the clock was set (tests).
    woken: Notify,
}

struct State {
    holders: Vec<Arc<dyn Holder>>,
    schedule: Schedule,
    /// Whether there is a thread.
    runs: bool,
}

impl Keeper {
    fn new(given: Given, clock: Clock) -> Keeper {
        let state = State { holders: Vec::new(), schedule: Schedule::new(), runs: false };
        let (entropy, woken) = (Entropy::system(), Notify::new());
        Keeper { given, clock, entropy, state: Mutex::new(state), woken }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A token, and who gets it: what a panic could leave half done is who has got it, and the next one mends that.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives `holder` the token that is there, and each one that follows.
    fn admit(self: &Arc<Keeper>, holder: Arc<dyn Holder>) {
        let now = Moment::of(&self.clock);
        let mut state = self.state();
        if let Some(token) = state.schedule.good(now) {
            hand(&*holder, token);
        } else if let Some(why) = state.schedule.why(now) {
            holder.fail(why);
        }
        state.holders.push(holder);
        state.runs = state.runs || self.start();
    }

    /// Somebody may have gone.
    fn left(&self) {
        self.woken.notify_one();
    }

    fn start(self: &Arc<Keeper>) -> bool {
        let keeper = Arc::clone(self);
        let keep = move || match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                runtime.block_on(keeper.keep());
                // A name that is still being looked up is not waited for.
                runtime.shutdown_background();
            }
            Err(error) => keeper.told(Err(format!("no thread to ask in: {error}")), true),
        };
        match std::thread::Builder::new().name("kafka-tokens".to_owned()).spawn(keep) {
            Ok(_) => true,
            Err(error) => {
                tracing::error!(%error, "no thread to get tokens for Kafka in");
                false
            }
        }
    }

    /// The thread.
    async fn keep(&self) {
        loop {
            let now = Moment::of(&self.clock);
            let (due, look) = {
                let mut state = self.state();
                let Some(look) = self.look(&mut state, now) else {
                    state.runs = false;
                    return;
                };
                (state.schedule.due_in(now), look)
            };
            if !due.is_zero() {
                // Whether woken or not, all is looked at anew.
                let _ = tokio::time::timeout(due.min(look), self.woken.notified()).await;
                continue;
            }
            tokio::select! {
                fetched = fetch::fetch(&self.given, &self.clock, fetch::LIMIT) => self.told(fetched, false),
                () = self.deserted() => {}
            }
        }
    }

    /// Waits until nobody needs a token any more; also says when the one that is there ends, as it may in the middle of a request.
    async fn deserted(&self) {
        loop {
            let look = self.look(&mut self.state(), Moment::of(&self.clock));
            let Some(look) = look else { return };
            let _ = tokio::time::timeout(look, self.woken.notified()).await;
        }
    }

    /// Says, once, that the token that was there has ended: from then on brokers refuse it, and whoever hears of that must know
    /// why already. How long until this is to be looked at again; `None`: nobody needs a token.
    fn look(&self, state: &mut State, now: Moment) -> Option<Duration> {
        if !state.is_needed() {
            return None;
        }
        let State { holders, schedule, .. } = state;
        if schedule.ends_in(now).is_zero() {
            schedule.end_told = true;
            let unknown = || format!("{}: no answer yet", self.given.shown());
            let why = schedule.why.clone().unwrap_or_else(unknown);
            holders.iter().for_each(|holder| holder.fail(&why));
        }
        Some(schedule.ends_in(now).min(LONGEST_WAIT))
    }

    /// The endpoint has given a token, or none; and whether that was the last time for now.
    fn told(&self, fetched: Result<Token, String>, is_last: bool) {
        let now = Moment::of(&self.clock);
        let mut state = self.state();
        let State { holders, schedule, runs } = &mut *state;
        *runs = !is_last;
        match fetched {
            Ok(token) => {
                let seconds = (token.ends_ms - now.wall_ms) / 1_000;
                let times = schedule.failures();
                match times {
                    0 => tracing::debug!("a token for Kafka, for {seconds} s"),
                    _ => tracing::info!(
                        times,
                        "a token for Kafka, for {seconds} s; the endpoint had failed before"
                    ),
                }
                for holder in &*holders {
                    hand(&**holder, &token);
                }
                schedule.got(token, now);
            }
            Err(why) => {
                let again = schedule.failed(why.clone(), now, &self.entropy);
                // Of those that had none yet it is said as of Kafka, which they do not reach.
                if let (Some(token), Some(times)) = (&schedule.token, again) {
                    let seconds = (token.ends_ms - now.wall_ms).max(0) / 1_000;
                    tracing::warn!(
                        times,
                        "no new token for Kafka; the last one lasts for {seconds} s: {why}"
                    );
                }
                if schedule.good(now).is_none() {
                    schedule.end_told = true;
                    holders.iter().for_each(|holder| holder.fail(&why));
                }
            }
        }
    }
}

fn hand(holder: &dyn Holder, token: &Token) {
    if let Err(why) = holder.give(token) {
        holder.fail(&why);
    }
}

impl State {
    /// Whether anybody is there who needs a token.
    fn is_needed(&mut self) -> bool {
        self.holders.retain(|holder| !holder.is_gone());
        !self.holders.is_empty()
    }
}

/// A moment by both clocks. Waits are measured by the one that only goes on: the wall clock may be set, which must not put off a
/// request, nor bring on many. Tokens end by the wall clock.
#[derive(Clone, Copy)]
struct Moment {
    at: Instant,
    /// Milliseconds since the Unix epoch.
    wall_ms: i64,
}

impl Moment {
    fn of(clock: &Clock) -> Moment {
        Moment { at: clock.now(), wall_ms: clock.wall_ms() }
    }
}

/// The token that is there, and when to ask for the next one. Pure: the caller brings the time.
struct Schedule {
    token: Option<Token>,
    /// When to ask, by the clock that only goes on; `None`: it does not say.
    due: Option<Instant>,
    /// The same by the wall clock, in milliseconds since the Unix epoch: a machine that slept, or whose clock was set on, has a token
    /// that is older than it seems. The sooner of the two counts.
    due_ms: i64,
    /// Whether it was said that the token has ended.
    end_told: bool,
    /// Why there was none at the last time.
    why: Option<String>,
    backoff: Backoff,
    said: Tally,
}

impl Schedule {
    fn new() -> Schedule {
        let backoff = Backoff::new(AGAIN.0, AGAIN.1);
        let (due_ms, said) = (i64::MIN, Tally::default());
        Schedule { token: None, due: None, due_ms, end_told: false, why: None, backoff, said }
    }

    /// The token that is there, unless it has ended.
    fn good(&self, now: Moment) -> Option<&Token> {
        self.token.as_ref().filter(|token| !lasts(token, now).is_zero())
    }

    /// How long until it is to be said that the token that is there has ended.
    fn ends_in(&self, now: Moment) -> Duration {
        match &self.token {
            Some(token) if !self.end_told => lasts(token, now),
            _ => Duration::MAX,
        }
    }

    /// Why there is none, as long as that is the last word.
    fn why(&self, now: Moment) -> Option<&str> {
        self.why.as_deref().filter(|_| !self.due_in(now).is_zero())
    }

    fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// How long until the endpoint is to be asked.
    fn due_in(&self, now: Moment) -> Duration {
        let left_ms = self.due_ms.saturating_sub(now.wall_ms);
        let by_wall = Duration::from_millis(u64::try_from(left_ms).unwrap_or(0));
        self.due.map_or(by_wall, |due| by_wall.min(due.saturating_duration_since(now.at)))
    }

    fn got(&mut self, token: Token, now: Moment) {
        let life = token.ends_ms.saturating_sub(now.wall_ms);
        let wait = (life / 100 * RENEWED_AT).max(SOONEST.as_millis() as i64);
        self.due = now.at.checked_add(Duration::from_millis(wait.unsigned_abs()));
        self.due_ms = now.wall_ms.saturating_add(wait);
        self.token = Some(token);
        self.end_told = false;
        self.why = None;
        self.backoff.reset();
        self.said = Tally::default();
    }

    /// How often it has failed by now, where that is to be said.
    fn failed(&mut self, why: String, now: Moment, entropy: &Entropy) -> Option<u64> {
        // At most some seconds: no clock ends there.
        self.due = now.at.checked_add(self.backoff.next(entropy));
        self.due_ms = i64::MAX;
        self.why = Some(why);
        self.said.again()
    }
}

/// How long a token lasts.
fn lasts(token: &Token, now: Moment) -> Duration {
    let left_ms = token.ends_ms.saturating_sub(now.wall_ms);
    Duration::from_millis(u64::try_from(left_ms).unwrap_or(0)).saturating_sub(AHEAD)
}

#[cfg(test)]
mod stub;
#[cfg(test)]
mod tests;
