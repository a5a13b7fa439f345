//! Receivers and listeners that take nothing: nothing is given up for what is not the changes' fault, and little for what may be.

use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;
use crate::kafka::Cluster;
use crate::webhook;

/// Takes webhooks, and answers each with one status.
struct Receiver {
    url: String,
    status: Arc<AtomicU16>,
    /// Status and body of each request.
    requests: Arc<Mutex<Vec<(u16, Value)>>>,
    _task: JoinSet<()>,
}

impl Receiver {
    async fn start(status: u16) -> Receiver {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", socket.local_addr().unwrap());
        let (status, requests) = (Arc::new(AtomicU16::new(status)), Arc::<Mutex<Vec<_>>>::default());
        let (answer, seen) = (status.clone(), requests.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = socket.accept().await.unwrap();
                connections.spawn(serve(stream, answer.clone(), seen.clone()));
            }
        });
        Receiver { url, status, requests, _task: task }
    }

    fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// Versions and keys that it took, in order.
    fn taken(&self) -> Vec<(u64, String)> {
        let requests = self.requests.lock().unwrap();
        let taken = requests.iter().filter(|(status, _)| *status == 204);
        let changes = taken.flat_map(|(_, body)| {
            let version = body["version"].as_u64().unwrap();
            body["changes"].as_array().unwrap().iter().map(move |change| (version, change["key"].clone()))
        });
        changes.map(|(version, key)| (version, key.as_str().unwrap().to_owned())).collect()
    }
}

/// Until the client closes the connection.
async fn serve(stream: TcpStream, status: Arc<AtomicU16>, seen: Arc<Mutex<Vec<(u16, Value)>>>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        let status = status.load(Ordering::SeqCst);
        seen.lock().unwrap().push((status, serde_json::from_slice(&body).unwrap()));
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
        if stream.get_mut().write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_lets_nothing_in_costs_no_letter_and_gets_all_once_and_in_order() {
    let (mut world, receiver) = (World::new(), Receiver::start(401).await);
    // Where letters could be written: none is for lack of a broker.
    let cluster = Cluster::start(1).unwrap();
    cluster.create_topic("products.dlq", 1).unwrap();
    world.kafka = cluster.options("listener");
    let options =
        webhook::Options { url: receiver.url.clone(), secret: None, headers: Vec::new(), timeout: LONG };
    let tries = quick("webhook", &Scribe::default()).tries;
    let hook = Listening::webhook(&options, 1, Begin::Everything, tries, Clock::system()).unwrap();
    world.advance(&[("a", Some("1")), ("b", Some("1"))]).await;
    let (report, task) = world.listen(hook);
    let failures = world.metrics.listener_failures_total.with(&["webhook"]);
    until(&report, |_| failures.get() > 0).await;
    world.advance(&[("a", Some("2"))]).await;
    for status in [401, 404, 302] {
        receiver.answer(status);
        let answered = format!("it answered {status}; ");
        let says = |told: &Told| {
            let words = told.error.as_deref().unwrap_or_default();
            words.contains(&answered) && words.contains("correct") && told.circuit != Circuit::Closed
        };
        until(&report, says).await;
        // More often than all that there is would have been tried.
        let enough = failures.get() + 12;
        until(&report, |_| failures.get() >= enough).await;
    }
    let told = report.told();
    assert_eq!((told.version, told.letters, told.held), (Version(0), 0, false), "{told:?}");
    assert!(receiver.taken().is_empty(), "{:?}", receiver.taken());

    receiver.answer(204);
    until(&report, |told| told.version == Version(2) && told.error.is_none()).await;
    assert_eq!(receiver.taken(), [(1, "a".to_owned()), (1, "b".to_owned()), (2, "a".to_owned())]);
    assert_eq!(world.metrics.dead_letters_total.with(&["webhook"]).get(), 0);
    assert_eq!(report.told().letters, 0);
    ends(&world, task).await;
}

/// What a [`Picky`] does with what it is told.
#[derive(Clone, Copy, Default)]
enum Mood {
    #[default]
    Takes,
    Refuses,
    IsAway,
}

/// A listener that takes one change at a time, as it is in the mood to.
#[derive(Clone, Default)]
struct Picky(Arc<Mutex<(Mood, Vec<String>)>>);

impl Listener for Picky {
    async fn changed(&self, set: &ChangeSet<'_>) -> Result<(), Failed> {
        let mut state = self.0.lock().unwrap();
        let error = std::io::Error::other("no such column");
        match state.0 {
            Mood::Takes => {}
            Mood::Refuses => return Err(Failed::refused(error)),
            Mood::IsAway => return Err(Failed::away(error)),
        }
        state.1.extend(set.changes.iter().map(|change| String::from_utf8(change.key().to_vec()).unwrap()));
        Ok(())
    }

    fn batch_size(&self) -> usize {
        1
    }
}

impl Picky {
    fn is_now(&self, mood: Mood) {
        self.0.lock().unwrap().0 = mood;
    }

    /// What it took since the last time.
    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().1)
    }
}

/// Sets that `quick` allows to be given up in a row.
const MOST: u64 = 3;

struct Scene {
    world: World,
    picky: Picky,
    report: Report,
    task: tokio::task::JoinHandle<()>,
    _cluster: Cluster,
}

impl Scene {
    /// A listener that has taken version 1.
    async fn new() -> Scene {
        let cluster = Cluster::start(1).unwrap();
        cluster.create_topic("products.dlq", 1).unwrap();
        let (mut world, picky) = (World::new(), Picky::default());
        world.kafka = cluster.options("listener");
        world.advance(&[("first", Some("1"))]).await;
        let tries = quick("audit", &Scribe::default()).tries;
        assert_eq!(u64::from(tries.breaker_threshold), MOST);
        let (report, task) = world.listen(Listening { tries, ..Listening::new("audit", picky.clone()) });
        let scene = Scene { world, picky, report, task, _cluster: cluster };
        scene.has_handled(1).await;
        assert_eq!(scene.picky.taken(), ["first"]);
        scene
    }

    /// One version with a change of each key.
    async fn changes(&mut self, keys: &[&str]) {
        let value = self.world.versions.len().to_string();
        let changes: Vec<_> = keys.iter().map(|key| (*key, Some(value.as_str()))).collect();
        self.world.advance(&changes).await;
    }

    async fn has_handled(&self, version: u64) {
        until(&self.report, |told| told.version == Version(version) && told.error.is_none()).await;
    }

    /// It has failed so many times more.
    async fn goes_on_failing(&self, times: u64) {
        let failures = self.world.metrics.listener_failures_total.with(&["audit"]);
        let enough = failures.get() + times;
        until(&self.report, |_| failures.get() >= enough).await;
    }

    /// What is shown of it, which must be what is told.
    fn shows_held(&self) -> bool {
        self.world.metrics.listener_held.with(&["audit"]).get() == 1
    }

    fn letters(&self) -> u64 {
        let letters = self.report.told().letters;
        assert_eq!(self.world.metrics.dead_letters_total.with(&["listener"]).get(), letters);
        letters
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_refuses_all_is_held_after_a_few_until_it_takes_the_next() {
    let mut scene = Scene::new().await;
    scene.picky.is_now(Mood::Refuses);
    scene.changes(&["a", "b", "c", "d", "e", "f", "g"]).await;
    until(&scene.report, |told| told.held).await;
    scene.goes_on_failing(20).await;
    assert!(scene.shows_held());
    let told = scene.report.told();
    assert_eq!((told.version, told.circuit), (Version(1), Circuit::Closed), "{told:?}");
    assert_eq!(scene.letters(), MOST);
    let words = scene.report.held_for().unwrap();
    for said in ["3 sets", "circuit_breaker_threshold", "/storm?listener=audit", "no such column"] {
        assert!(words.contains(said), "{words}");
    }
    assert_eq!(told.error, Some(words));

    scene.picky.is_now(Mood::Takes);
    scene.has_handled(2).await;
    assert_eq!(scene.picky.taken(), ["d", "e", "f", "g"], "each once, and in order");
    assert_eq!((scene.letters(), scene.report.held_for()), (MOST, None));
    assert!(!scene.shows_held(), "by itself");
    ends(&scene.world, scene.task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_lets_through_what_is_held_until_it_handles_sets_again() {
    let mut scene = Scene::new().await;
    assert_eq!(scene.report.let_through(), None, "it is not held, and this changes nothing");
    scene.picky.is_now(Mood::Refuses);
    scene.changes(&["a", "b", "c", "d", "e", "f"]).await;
    until(&scene.report, |told| told.held).await;
    assert_eq!(scene.letters(), MOST);
    let words = scene.report.held_for();
    assert!(words.is_some() && scene.shows_held());
    assert_eq!((scene.report.let_through(), scene.report.let_through()), (words, None));
    assert!(!scene.shows_held(), "it is let through");
    scene.has_handled(2).await;
    assert_eq!((scene.letters(), scene.report.held_for()), (6, None));
    // They go on so, until as many were handled as may be given up.
    scene.changes(&["a"]).await;
    scene.has_handled(3).await;
    assert_eq!(scene.letters(), 7);
    scene.picky.is_now(Mood::Takes);
    scene.changes(&["a", "b", "c"]).await;
    scene.has_handled(4).await;
    scene.picky.is_now(Mood::Refuses);
    scene.changes(&["a", "b", "c", "d", "e"]).await;
    until(&scene.report, |told| told.held).await;
    scene.goes_on_failing(5).await;
    assert_eq!(scene.letters(), 7 + MOST, "the guard is there again");
    ends(&scene.world, scene.task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_away_by_now_is_no_letter_though_it_was_let_through() {
    let mut scene = Scene::new().await;
    scene.picky.is_now(Mood::Refuses);
    scene.changes(&["a", "b", "c", "d", "e"]).await;
    until(&scene.report, |told| told.held).await;
    scene.picky.is_now(Mood::IsAway);
    // The first of these may have been refused still.
    scene.goes_on_failing(2).await;
    assert!(scene.report.let_through().is_some());
    scene.goes_on_failing(8).await;
    assert_eq!(scene.letters(), MOST);
    scene.picky.is_now(Mood::Refuses);
    scene.has_handled(2).await;
    assert_eq!((scene.letters(), scene.picky.taken()), (5, Vec::new()));
    ends(&scene.world, scene.task).await;
}
