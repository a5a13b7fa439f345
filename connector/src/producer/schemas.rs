//! The schemas of records, by the ids that come with them: asked of the registry while the source goes on.
//!
//! ```text
//!  source's thread --id--> librarian (a task): one find for each id --some requests at a time--> registry, behind its breaker
//!        ^                      |
//!        +-- schema, or that ---+  away: asked again with backoff for as long as it takes; the records wait in their place
//!            nobody knows it       unknown: after some patience, since one of several registries may lag behind
//! ```
//!
//! Owns: how long is asked, what health says meanwhile. Does not own: the requests and their cache (`registry`), the
//! partitions that wait (`source`), what a schema means for a datum (`codec`).

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc as threads;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::circuit::{Circuits, Gate};
use super::{Options, Status};
use crate::clock::Entropy;
use crate::codec::{SchemaId, Written};
use crate::error::chain;
use crate::kafka::Waker;
use crate::registry::{Error, Found, Registry};
use crate::repeat;
use crate::retry::Backoff;

/// Most ids that are asked for and not answered; who has more asks again later.
const OPEN: usize = 64;
/// Requests at a time. Not finds: one that waits to ask again holds up nobody.
const AT_A_TIME: usize = 8;
/// Longest wait between attempts while the registry is away.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// An id that the registry does not know is asked for again after these: it may have been registered a moment ago, with
/// another of several registries.
const PATIENCE: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(300), Duration::from_secs(1)];
/// So many unknown ids in a row, and each further one is asked for again after the first of these alone, until one is known: else
/// a topic of garbage would take over a second for each of its records. Not none of them: what lags behind for a moment must not
/// make letters of good records because garbage came before them.
const STRANGERS: u32 = 5;
/// An id that nobody knew is asked for again after this long, when a record names it; twice as long each time, up to the second.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
/// For so long it is remembered how often an id was asked for.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Most ids of which it is remembered that patience was had with them.
const MOST_TRIED: usize = 4_096;

/// What has been found out about an id.
#[derive(Clone, Debug)]
pub enum Learnt {
    /// Its schema.
    Schema(Written),
    /// Its schema is of no use, and why: for good.
    Unusable(String),
    /// Nobody knows it, so far.
    Unknown,
}

/// Finds schemas, however long it takes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Library {
    registry: Registry,
    gate: Gate,
    retries: u32,
    first_wait: Duration,
    entropy: Entropy,
    /// A permit for each request.
    requests: Arc<Semaphore>,
    /// Unknown ids in a row.
    strangers: Arc<AtomicU32>,
    /// Ids that were unknown after all patience: what keeps coming costs one request each time.
    tried: Arc<Mutex<HashSet<SchemaId>>>,
    status: Option<watch::Sender<Status>>,
}

impl Library {
    /// The library of a producer that has a registry. `circuits` are the producer's own; without them, and for who only
    /// reads beside one, it has its own.
    pub fn of(options: &Options, circuits: Option<&Circuits>) -> Option<Library> {
        let registry = options.registry.clone()?;
        let gate = circuits.and_then(|circuits| circuits.registry.clone());
        let gate = gate.or_else(|| Circuits::of(options).registry)?;
        Some(Library {
            registry,
            gate,
            retries: options.reliability.max_retry_attempts,
            first_wait: options.reliability.retry_backoff,
            entropy: options.entropy.clone(),
            requests: Arc::new(Semaphore::new(AT_A_TIME)),
            strangers: Arc::default(),
            tried: Arc::default(),
            status: None,
        })
    }

    /// Says in `status` what is waited for.
    #[must_use]
    pub fn saying(mut self, status: watch::Sender<Status>) -> Library {
        self.status = Some(status);
        self
    }

    /// Finds the schema of an id. While the registry is away it does not return: drop it to end it.
    pub async fn find(&self, id: SchemaId) -> Learnt {
        // Also where it is dropped: nobody waits for it then.
        let _said = Said(self);
        let mut backoff = Backoff::new(self.first_wait, LONGEST_WAIT);
        let patience = if self.tried().contains(&id) { 0 } else { PATIENCE.len() };
        let mut patience = (0..patience).zip(PATIENCE);
        let mut attempts = 0;
        loop {
            let pass = self.gate.pass().await;
            let asked = {
                // Never closed: an error here would only mean a request more.
                let _permit = self.requests.acquire().await;
                self.registry.schema(id).await
            };
            let error = match asked {
                Ok(found) => {
                    pass.succeeded();
                    self.strangers.store(0, Ordering::Relaxed);
                    self.tried().remove(&id);
                    tracing::info!(%id, "the schema registry knows a schema that is new here");
                    return match found {
                        Found::Schema(schema) => Learnt::Schema(schema),
                        Found::Unusable(why) => Learnt::Unusable(why),
                    };
                }
                Err(Error::Unknown { .. }) => {
                    pass.succeeded();
                    self.say(None);
                    let are_many = self.strangers.load(Ordering::Relaxed) >= STRANGERS;
                    let Some((_, wait)) = patience.next().filter(|(nth, _)| *nth == 0 || !are_many) else {
                        self.strangers.fetch_add(1, Ordering::Relaxed);
                        let mut tried = self.tried();
                        if tried.len() >= MOST_TRIED {
                            tried.clear();
                        }
                        tried.insert(id);
                        return Learnt::Unknown;
                    };
                    tokio::time::sleep(wait).await;
                    continue;
                }
                Err(error) => chain(&error),
            };
            attempts += 1;
            self.say(Some(format!("{error}; records with {id} wait in their place")));
            if repeat::is_said(u64::from(backoff.failures()) + 1) {
                tracing::warn!(
                    %id, error, failures = backoff.failures() + 1,
                    "the schema of a record cannot be had: its partition waits, and it is asked for again"
                );
            }
            if pass.is_probe() || attempts > self.retries {
                attempts = 0;
                pass.failed(error);
            }
            tokio::time::sleep(backoff.next(&self.entropy)).await;
        }
    }

    fn tried(&self) -> MutexGuard<'_, HashSet<SchemaId>> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, waiting: Option<String>) {
        if let Some(status) = &self.status {
            status.send_if_modified(|status| {
                let differs = status.waiting != waiting;
                status.waiting = waiting;
                differs
            });
        }
    }
}

/// What a find says of waiting, for as long as there is one.
struct Said<'a>(&'a Library);

impl Drop for Said<'_> {
    fn drop(&mut self) {
        self.0.say(None);
    }
}

/// Ids that nobody knew, and when each is asked for again.
#[derive(Debug, Default)]
pub struct Strangers(HashMap<SchemaId, Stranger>);

#[derive(Debug)]
struct Stranger {
    since: Instant,
    wait: Duration,
    is_due: bool,
}

impl Strangers {
    /// What was found out about an id.
    pub fn note(&mut self, id: SchemaId, learnt: &Learnt, now: Instant) {
        if !matches!(learnt, Learnt::Unknown) {
            self.0.remove(&id);
            return;
        }
        let [first, longest] = AGAIN;
        let wait = self.0.get(&id).map_or(first, |known| (known.wait * 2).min(longest));
        self.0.insert(id, Stranger { since: now, wait, is_due: false });
    }

    /// Those that may be known by now: each is told once, until it is unknown again.
    pub fn due(&mut self, now: Instant, mut due: impl FnMut(SchemaId)) {
        self.0.retain(|id, stranger| {
            let waited = now.saturating_duration_since(stranger.since);
            if waited >= stranger.wait && !std::mem::replace(&mut stranger.is_due, true) {
                due(*id);
            }
            waited < REMEMBERED
        });
    }
}

/// The task that finds what the source asks for.
pub struct Librarian {
    library: Library,
    asked: mpsc::Receiver<SchemaId>,
    answers: threads::SyncSender<(SchemaId, Learnt)>,
    waker: Waker,
}

/// Where the source's thread asks, and is answered.
pub struct Desk {
    asks: mpsc::Sender<SchemaId>,
    answers: threads::Receiver<(SchemaId, Learnt)>,
    open: HashSet<SchemaId>,
}

impl Librarian {
    /// A librarian, and the desk to ask at; `waker` ends the source's wait for records when there is an answer.
    pub fn new(library: Library, waker: Waker) -> (Librarian, Desk) {
        let (asks, asked) = mpsc::channel(OPEN);
        let (answers, answered) = threads::sync_channel(OPEN);
        let desk = Desk { asks, answers: answered, open: HashSet::new() };
        (Librarian { library, asked, answers, waker }, desk)
    }

    /// Answers until `cancel`, or until nobody asks any more.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut finding = FuturesUnordered::new();
        let library = &self.library;
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                Some(id) = self.asked.recv(), if finding.len() < OPEN => {
                    finding.push(async move { (id, library.find(id).await) });
                }
                Some(found) = finding.next() => {
                    // There is room for all that can be open; without a desk nobody wants it.
                    let _ = self.answers.try_send(found);
                    self.waker.wake();
                }
                else => break,
            }
        }
    }
}

impl Desk {
    /// Whether nothing is asked for that is not answered.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// Asks for an id, once until it is answered. False: there is no room for it now.
    pub fn ask(&mut self, id: SchemaId) -> bool {
        if self.open.contains(&id) {
            return true;
        }
        let asked = self.open.len() < OPEN && self.asks.try_send(id).is_ok();
        if asked {
            self.open.insert(id);
        }
        asked
    }

    /// The next answer, waiting for up to `wait`. Blocks: for a thread of its own.
    pub fn answer(&mut self, wait: Duration) -> Option<(SchemaId, Learnt)> {
        let answer = match wait.is_zero() {
            true => self.answers.try_recv().ok(),
            false => self.answers.recv_timeout(wait).ok(),
        };
        let (id, learnt) = answer?;
        self.open.remove(&id);
        Some((id, learnt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::Reliability;
    use crate::registry::stub::{Answer, Stub, absent, schema};
    use crate::retry::Circuit;
    use crate::telemetry::ProducerMetrics;

    /// A library on a stub, its breaker and what it says.
    fn library(stub: &Stub) -> (Library, Gate, watch::Receiver<Status>) {
        let builder = crate::Producer::builder("products").source("products").schema("\"string\"");
        let builder = builder.store(crate::blob::Store::open("memory://").unwrap());
        let builder = builder.metrics(ProducerMetrics::detached()).schema_registry(stub.url());
        let reliability = Reliability {
            max_retry_attempts: 1,
            retry_backoff: Duration::from_millis(1),
            circuit_breaker_threshold: 2,
            circuit_breaker_reset: Duration::from_millis(20),
            ..Reliability::default()
        };
        let options = builder.reliability(reliability).options().unwrap();
        let circuits = Circuits::of(&options);
        let (say, said) = watch::channel(Status::default());
        let library = Library::of(&options, Some(&circuits)).unwrap().saying(say);
        (library, circuits.registry.unwrap(), said)
    }

    async fn answering(answers: Vec<Answer>) -> Stub {
        let mut answers = answers.into_iter();
        Stub::start(move |_| answers.next().unwrap_or_else(|| schema("\"int\""))).await
    }

    const SEVEN: SchemaId = SchemaId::Number(7);

    #[tokio::test]
    async fn a_registry_that_is_away_is_asked_until_it_answers_and_said_meanwhile() {
        let away = || (500, String::new());
        let stub =
            answering((0..9).map(|n| if n == 4 { (401, String::new()) } else { away() }).collect()).await;
        let (library, gate, mut said) = library(&stub);
        let find = library.find(SEVEN);
        let opened = async {
            let waiting = said.wait_for(|status| status.waiting.is_some()).await.unwrap().waiting.clone();
            let waiting = waiting.unwrap();
            assert!(
                waiting.contains("answered 500; records with schema id 7 wait in their place"),
                "{waiting}"
            );
        };
        let (found, ()) = tokio::join!(find, opened);
        assert!(matches!(found, Learnt::Schema(_)));
        assert_eq!(stub.seen().len(), 10);
        assert_eq!(said.borrow().waiting, None, "and nothing is said any more");
        let report = gate.report();
        assert_eq!((report.state, report.error), (Circuit::Closed, None));
        // Two failures of two attempts each opened it; each probe that failed did so again.
        assert_eq!(report.dependency.name(), "registry");
    }

    #[tokio::test]
    async fn a_find_that_is_dropped_says_nothing_any_more() {
        let stub = Stub::start(|_| (500, String::new())).await;
        let (library, _, mut said) = library(&stub);
        tokio::select! {
            _ = library.find(SEVEN) => panic!("it is away"),
            // Not out of the block: what it gives locks what is said.
            () = async { drop(said.wait_for(|status| status.waiting.is_some()).await.unwrap()) } => {}
        }
        assert_eq!(said.borrow().waiting, None);
    }

    #[tokio::test]
    async fn ids_that_get_no_answer_hold_up_no_others() {
        let stub =
            Stub::start(|path| if path.ends_with("/7") { schema("\"int\"") } else { (403, String::new()) });
        let stub = stub.await;
        let (library, ..) = library(&stub);
        let kafka = crate::kafka::Options { bootstrap_servers: "127.0.0.1:1".into(), ..Default::default() };
        let poller = crate::kafka::Poller::new(&kafka, &crate::kafka::Tuning::source("g", 1 << 20)).unwrap();
        let (librarian, mut desk) = Librarian::new(library, poller.waker());
        let cancel = CancellationToken::new();
        let mut task = tokio::task::JoinSet::new();
        task.spawn(librarian.run(cancel.clone()));
        for id in (100..).take(2 * AT_A_TIME) {
            assert!(desk.ask(SchemaId::Number(id)));
        }
        assert!(desk.ask(SEVEN));
        let answer = tokio::task::spawn_blocking(move || desk.answer(Duration::from_secs(30))).await.unwrap();
        assert!(matches!(answer, Some((SEVEN, Learnt::Schema(_)))), "{answer:?}");
        cancel.cancel();
        task.join_next().await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_id_that_is_unknown_at_first_is_asked_for_again() {
        let stub = answering(vec![absent(), absent()]).await;
        let (library, ..) = library(&stub);
        assert!(matches!(library.find(SEVEN).await, Learnt::Schema(_)));
        assert_eq!(stub.seen().len(), 3);
    }

    #[tokio::test]
    async fn strangers_cost_patience_only_until_they_are_many() {
        let stub = Stub::start(|path| if path.ends_with("/7") { schema("\"int\"") } else { absent() }).await;
        let (library, ..) = library(&stub);
        let strangers = (100..100 + STRANGERS).map(|id| library.find(SchemaId::Number(id)));
        for found in futures::future::join_all(strangers).await {
            assert!(matches!(found, Learnt::Unknown));
        }
        let asked = stub.seen().len();
        assert_eq!(asked, STRANGERS as usize * (PATIENCE.len() + 1));
        assert!(matches!(library.find(SchemaId::Number(200)).await, Learnt::Unknown));
        assert_eq!(stub.seen().len(), asked + 2, "once more, after a moment");
        assert!(matches!(library.find(SchemaId::Number(200)).await, Learnt::Unknown));
        assert_eq!(stub.seen().len(), asked + 3, "of what keeps coming once each time");
        assert!(matches!(library.find(SEVEN).await, Learnt::Schema(_)));
        assert!(matches!(library.find(SchemaId::Number(201)).await, Learnt::Unknown));
        assert_eq!(stub.seen().len(), asked + 4 + PATIENCE.len() + 1, "patient again");
    }

    /// A registry that lags behind by a moment, after garbage.
    #[tokio::test]
    async fn a_new_id_behind_garbage_is_waited_for() {
        let asked = Arc::new(AtomicU32::new(0));
        let stub = Stub::start(move |path| {
            let late = path.ends_with("/7") && asked.fetch_add(1, Ordering::Relaxed) > 0;
            if late { schema("\"int\"") } else { absent() }
        });
        let stub = stub.await;
        let (library, ..) = library(&stub);
        let strangers = (100..101 + STRANGERS).map(|id| library.find(SchemaId::Number(id)));
        for found in futures::future::join_all(strangers).await {
            assert!(matches!(found, Learnt::Unknown));
        }
        assert!(matches!(library.find(SEVEN).await, Learnt::Schema(_)));
    }

    #[test]
    fn what_keeps_coming_is_asked_for_again_after_a_second_and_then_less_often() {
        let mut strangers = Strangers::default();
        let began = crate::clock::Clock::system().now();
        let due = |strangers: &mut Strangers, ms: u64| {
            let mut all = Vec::new();
            strangers.due(began + Duration::from_millis(ms), |id| all.push(id));
            all
        };
        let note = |strangers: &mut Strangers, learnt: Learnt, ms: u64| {
            strangers.note(SEVEN, &learnt, began + Duration::from_millis(ms));
        };
        note(&mut strangers, Learnt::Unknown, 0);
        assert_eq!(due(&mut strangers, 999), []);
        assert_eq!(due(&mut strangers, 1_000), [SEVEN]);
        assert_eq!(due(&mut strangers, 1_500), [], "it is asked for when a record names it");
        note(&mut strangers, Learnt::Unknown, 2_000);
        assert_eq!(due(&mut strangers, 3_900), []);
        assert_eq!(due(&mut strangers, 4_000), [SEVEN]);
        for _ in 0..5 {
            note(&mut strangers, Learnt::Unknown, 5_000);
        }
        assert_eq!(due(&mut strangers, 14_900), []);
        assert_eq!(due(&mut strangers, 15_000), [SEVEN]);
        assert_eq!(due(&mut strangers, 66_000), []);
        note(&mut strangers, Learnt::Unknown, 70_000);
        assert_eq!(due(&mut strangers, 71_000), [SEVEN], "it was forgotten");
        note(&mut strangers, Learnt::Unusable(String::new()), 71_000);
        assert!(strangers.0.is_empty());
    }
}
