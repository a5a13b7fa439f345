//! Whether Kafka answers: said at once, then ever more rarely, and once when it does again; for all clients together.
//!
//! librdkafka says of each attempt to connect that it failed, some forty times a second and client while nobody
//! listens, and never that one went well. So what clients say is told to this place, which decides what an operator
//! hears; all of it is in the log at level debug.
//!
//! ```text
//!  clients: "no broker is left" ---> lost ------> warn: at once, after 10 s, and at each doubling
//!  Admin:   an answer -------------> answered --> info: once
//!  clients: other warnings --------> again -----> warn: the first, and at each doubling of their number
//! ```
//!
//! Owns: what of it is worth a line. Does not own: when to try again, how repetitions are counted (`repeat`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::select_ok;
use tokio::net::TcpStream;

use crate::clock::Clock;
use crate::repeat::Repeats;

/// Longest wait for somebody to open.
const KNOCK: Duration = Duration::from_secs(1);
/// Kafka's port, where a server is named without.
const PORT: u16 = 9092;
/// When an outage that was said is said again; then at each doubling.
const AGAIN: Duration = Duration::from_secs(10);
/// After an answer, what clients had still in their queues of before is no new outage.
const STALE: Duration = Duration::from_secs(2);

/// So long after there is a token again, that Kafka refuses one may be of the one before: as long as librdkafka lets an attempt to
/// connect take (`socket.connection.setup.timeout.ms`).
const REFUSED_LATE: Duration = Duration::from_secs(30);

/// What the clients of one process have seen of Kafka. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct Reach(Arc<Shared>);

struct Shared {
    clock: Clock,
    away: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    outage: Outage,
    warnings: Repeats,
    /// Why the last connection failed, in librdkafka's words; `None` while none has since Kafka answered last.
    why: Option<(String, Instant)>,
    /// Why there is no token to come in by. As long as there is none, that connections fail follows from it.
    tokenless: Option<String>,
    /// The same of the last time, and when that was over.
    was_tokenless: Option<(String, Instant)>,
}

impl Seen {
    fn why(&self) -> Option<String> {
        self.tokenless.clone().or_else(|| self.why.as_ref().map(|(words, _)| words.clone()))
    }
}

impl Default for Reach {
    fn default() -> Self {
        Reach::new(Clock::system())
    }
}

impl std::fmt::Debug for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reach").field("away", &self.is_away()).finish()
    }
}

impl Reach {
    /// Of clients that have seen nothing yet.
    pub fn new(clock: Clock) -> Reach {
        Reach(Arc::new(Shared { clock, away: AtomicBool::new(false), seen: Mutex::default() }))
    }

    /// Whether no broker was left when last heard of.
    pub fn is_away(&self) -> bool {
        self.0.away.load(Ordering::Acquire)
    }

    /// Why not, in librdkafka's words; `None` while Kafka is there, or no connection has failed yet.
    pub fn why(&self) -> Option<String> {
        self.is_away().then(|| self.seen().why()).flatten()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Counts and words: nothing that a panic could leave half done.
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection failed; whether Kafka is away is told by [`Reach::lost`].
    pub(super) fn failed(&self, words: &str) {
        let now = self.0.clock.now();
        self.seen().why = Some((words.to_owned(), now));
    }

    /// Clients have no token that is good, and why; `None`: they have.
    pub(super) fn tokenless(&self, why: Option<String>) {
        let now = self.0.clock.now();
        let mut seen = self.seen();
        if let (None, Some(was)) = (&why, seen.tokenless.take()) {
            seen.was_tokenless = Some((was, now));
        }
        seen.tokenless = why;
    }

    /// Why there is no token that is good; `None`: there is one, or none is needed.
    pub(super) fn no_token(&self) -> Option<String> {
        self.seen().tokenless.clone()
    }

    /// The same, also for some time after there is one again: what clients had still begun by the one that has ended, or had in
    /// their queues, is no news of the other.
    pub(super) fn no_token_lately(&self) -> Option<String> {
        let now = self.0.clock.now();
        let seen = self.seen();
        let lately = |(_, over): &&(String, Instant)| now.saturating_duration_since(*over) < REFUSED_LATE;
        let was = || seen.was_tokenless.as_ref().filter(lately).map(|(why, _)| why.clone());
        seen.tokenless.clone().or_else(was)
    }

    /// A client has no broker left.
    pub(super) fn lost(&self, servers: &str) {
        let now = self.0.clock.now();
        let mut seen = self.seen();
        if seen.outage.since.is_none() {
            // An idle connection that ended hours ago is no reason.
            seen.why.take_if(|(_, at)| now.saturating_duration_since(*at) > AGAIN);
        }
        let said = seen.outage.lost(now);
        self.0.away.store(seen.outage.since.is_some(), Ordering::Release);
        let why = seen.why();
        drop(seen);
        match said {
            None => {}
            Some(Duration::ZERO) => {
                tracing::warn!(why = why.as_deref(), "Kafka at {servers} is not reachable; it is waited for");
            }
            Some(time) => {
                let time = humantime::format_duration(Duration::from_secs(time.as_secs()));
                let why = why.as_deref();
                tracing::warn!(why, "Kafka at {servers} has not been reachable for {time}; it is waited for");
            }
        }
    }

    /// A broker has answered a request.
    pub(super) fn answered(&self, servers: &str) {
        if !self.is_away() {
            return;
        }
        let after = {
            let mut seen = self.seen();
            // The next outage has reasons of its own.
            seen.why = None;
            seen.outage.answered(self.0.clock.now())
        };
        self.0.away.store(false, Ordering::Release);
        if let Some(after) = after {
            let after = humantime::format_duration(Duration::from_secs(after.as_secs()));
            tracing::info!("Kafka at {servers} answers again, after {after}");
        }
    }

    /// A warning of this kind: how often there has been one, where it is to be said.
    pub fn again(&self, kind: &str) -> Option<u64> {
        self.seen().warnings.again(kind, self.0.clock.now())
    }
}

/// Whether somebody listens at one of `servers`. An answer that is long in coming is no outage then: who has lost its
/// connections some time ago, and is not heard to have made new ones, cannot tell the two apart.
pub(super) async fn listens(servers: &str) -> bool {
    let address = |server: &str| {
        let server = server.rsplit("://").next().unwrap_or(server);
        let has_port = server.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if has_port { server.to_owned() } else { format!("{server}:{PORT}") }
    };
    let servers = servers.split(',').map(str::trim).filter(|server| !server.is_empty());
    let knocks: Vec<_> = servers.map(|server| Box::pin(TcpStream::connect(address(server)))).collect();
    if knocks.is_empty() {
        return false;
    }
    matches!(tokio::time::timeout(KNOCK, select_ok(knocks)).await, Ok(Ok(_)))
}

/// An outage, as arithmetic.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
    /// How long it has lasted when it is said next.
    next: Duration,
    answered: Option<Instant>,
}

impl Outage {
    /// No broker is left. How long that has been so, where it is to be said.
    fn lost(&mut self, now: Instant) -> Option<Duration> {
        let Some(since) = self.since else {
            if self.answered.is_some_and(|at| now.saturating_duration_since(at) < STALE) {
                return None;
            }
            (self.since, self.next) = (Some(now), AGAIN);
            return Some(Duration::ZERO);
        };
        let lasts = now.saturating_duration_since(since);
        if lasts < self.next {
            return None;
        }
        while self.next <= lasts {
            self.next *= 2;
        }
        Some(lasts)
    }

    /// It is over. How long it was, where there was one.
    fn answered(&mut self, now: Instant) -> Option<Duration> {
        let since = self.since.take()?;
        self.answered = Some(now);
        Some(now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_said_at_once_then_at_each_doubling_and_its_end_once() {
        let clock = Clock::manual(0);
        let mut outage = Outage::default();
        assert_eq!(outage.answered(clock.now()), None);
        let mut said = Vec::new();
        // Forty times a second, for a hundred seconds.
        for _ in 0..4_000 {
            said.extend(outage.lost(clock.now()).map(|time| time.as_secs()));
            clock.advance(Duration::from_millis(25));
        }
        assert_eq!(said, [0, 10, 20, 40, 80]);
        assert_eq!(outage.answered(clock.now()), Some(Duration::from_secs(100)));
        assert_eq!(outage.answered(clock.now()), None);
        clock.advance(Duration::from_secs(1));
        assert_eq!(outage.lost(clock.now()), None, "of before the answer");
        clock.advance(Duration::from_secs(1));
        assert_eq!(outage.lost(clock.now()), Some(Duration::ZERO), "another outage");
    }

    #[test]
    fn a_long_silence_in_an_outage_skips_what_was_not_said() {
        let clock = Clock::manual(0);
        let mut outage = Outage::default();
        outage.lost(clock.now());
        clock.advance(Duration::from_secs(70));
        assert_eq!(outage.lost(clock.now()), Some(Duration::from_secs(70)));
        clock.advance(Duration::from_secs(5));
        assert_eq!(outage.lost(clock.now()), None);
    }

    #[tokio::test]
    async fn who_listens_is_there_however_slow() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap();
        // Nobody listens on port 1, nor is there such a name.
        for (servers, expected) in [
            (format!("{there}"), true),
            (format!("127.0.0.1:1, SASL_SSL://{there}"), true),
            ("127.0.0.1:1".to_owned(), false),
            ("no-such-name.invalid".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(listens(&servers).await, expected, "{servers}");
        }
    }

    #[test]
    fn an_outage_without_a_reason_has_none_and_the_next_not_the_last_one_s() {
        let clock = Clock::manual(0);
        let reach = Reach::new(clock.clone());
        reach.lost("kafka:9092");
        assert_eq!((reach.is_away(), reach.why()), (true, None));
        reach.failed("connection refused");
        reach.answered("kafka:9092");
        clock.advance(STALE);
        reach.lost("kafka:9092");
        assert_eq!((reach.is_away(), reach.why()), (true, None));
    }

    #[test]
    fn that_there_is_no_token_is_the_reason_for_all_that_follows_from_it() {
        let reach = Reach::new(Clock::manual(0));
        reach.tokenless(Some("the endpoint is away".to_owned()));
        assert_eq!(reach.no_token().as_deref(), Some("the endpoint is away"));
        assert_eq!(reach.why(), None, "there may be connections still");
        reach.lost("kafka:9092");
        reach.failed("SASL authentication error");
        assert_eq!(reach.why().as_deref(), Some("the endpoint is away"));
        reach.tokenless(None);
        assert_eq!(reach.why().as_deref(), Some("SASL authentication error"));
    }

    #[test]
    fn that_there_was_no_token_is_known_for_a_while() {
        let clock = Clock::manual(0);
        let reach = Reach::new(clock.clone());
        // Each client says that it has one, each time that it gets one.
        reach.tokenless(None);
        assert_eq!(reach.no_token_lately(), None);
        reach.tokenless(Some("the endpoint is away".to_owned()));
        assert_eq!(reach.no_token_lately().as_deref(), Some("the endpoint is away"));
        clock.advance(REFUSED_LATE * 2);
        reach.tokenless(None);
        clock.advance(REFUSED_LATE - Duration::from_secs(1));
        reach.tokenless(None);
        assert_eq!(reach.no_token(), None);
        assert_eq!(reach.no_token_lately().as_deref(), Some("the endpoint is away"));
        clock.advance(Duration::from_secs(1));
        assert_eq!(reach.no_token_lately(), None);
    }

    #[test]
    fn clones_share_what_was_seen() {
        let reach = Reach::new(Clock::manual(0));
        reach.failed("connection refused");
        assert_eq!(reach.why(), None, "one connection is not all");
        reach.clone().lost("kafka:9092");
        assert_eq!(reach.why().as_deref(), Some("connection refused"));
        reach.answered("kafka:9092");
        assert!(!reach.is_away());
    }
}
