//! Acting on changes, on a real broker: a listener over restarts, its letters, a webhook, event streams.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use stillwell::{ChangeSet, Consumer, Failed, Listener, Listening, Tries};
use stillwell_tests::request::header;
use stillwell_tests::{Broker, Message, Record, Request, Topic, wait_until, wait_until_async};

use crate::instance::{Instance, LONG};
use crate::line::SCHEMA;
use crate::setting::Setting;

/// What one version changed, as it was told.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    pub from: u64,
    pub version: u64,
    pub rollback: bool,
    pub changes: BTreeMap<String, (Option<Value>, Option<Value>)>,
}

/// Remembers what it is told; does not take a key that it is told to refuse.
#[derive(Clone, Default)]
pub struct Ear {
    heard: Arc<Mutex<Vec<Heard>>>,
    refused: Option<&'static str>,
}

impl Listener for Ear {
    async fn changed(&self, set: &ChangeSet<'_>) -> Result<(), Failed> {
        let read = |value: Option<&stillwell::Value<'_>>| {
            value.map(|value| serde_json::from_str(&value.to_json().expect("JSON")).expect("JSON"))
        };
        let changes: BTreeMap<_, _> = set
            .changes
            .iter()
            .map(|change| {
                let key = String::from_utf8(change.key().to_vec()).expect("text");
                (key, (read(change.before()), read(change.after())))
            })
            .collect();
        if self.refused.is_some_and(|key| changes.contains_key(key)) {
            return Err(Failed::again(std::io::Error::other("it does not like this one")));
        }
        assert!(set.batch == 0 && set.last, "all of a version's changes come in one set here");
        let (from, version, rollback) = (set.from.0, set.version.0, set.rollback);
        self.heard.lock().expect("no panic").push(Heard { from, version, rollback, changes });
        Ok(())
    }
}

impl Ear {
    pub fn all(&self) -> Vec<Heard> {
        self.heard.lock().expect("no panic").clone()
    }
}

/// What a fold over all that was heard holds; checks on the way that no set begins before the one before ended, and that
/// each old value is the one that is known.
fn fold(heard: &[Heard]) -> BTreeMap<Vec<u8>, Value> {
    let mut at = 0;
    let mut model = BTreeMap::new();
    for set in heard {
        // Not always at it: versions in which nothing changed are not told of, and what is known below shows that.
        assert!(set.from >= at && set.version > set.from && !set.rollback, "{heard:?}");
        at = set.version;
        for (key, (old, new)) in &set.changes {
            let key = key.clone().into_bytes();
            let was = match new {
                Some(new) => model.insert(key, new.clone()),
                None => model.remove(&key),
            };
            assert_eq!(was, *old, "version {at}");
        }
    }
    model
}

pub fn listened(setting: &Setting, listening: Listening) -> stillwell::ConsumerBuilder {
    Consumer::builder(setting.dataset())
        .bootstrap_servers(&setting.bootstrap)
        .blobs(setting.blobs())
        .cache_dir(setting.dir.path().join("reader/cache"))
        .listening(listening)
}

pub fn row(id: &str, stock: i32) -> Value {
    json!({"id": id, "price": 1.5, "stock": stock})
}

pub async fn caught_up(setting: &Setting, ear: &Ear) {
    wait_until_async("the listener has heard of everything", LONG, || {
        let held = fold(&ear.all());
        std::future::ready(match held == setting.model {
            true => Ok(()),
            false => Err(format!("{} of {} keys: {:?}", held.len(), setting.model.len(), ear.all())),
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_hears_each_change_once_and_in_order_over_restarts() {
    let mut setting = Setting::new("listened", 2, SCHEMA);
    let producer = setting.producer().await;
    let ear = Ear::default();
    for round in 0..4 {
        let consumer = listened(&setting, Listening::new("ear", ear.clone()))
            .start()
            .await
            .expect("the consumer starts");
        for step in 0..5 {
            let number = round * 5 + step;
            let (hot, cold) = ("hot".to_owned(), format!("k-{}", number % 7));
            let mut records =
                vec![setting.upsert(&hot, row(&hot, number)), setting.upsert(&cold, row(&cold, number))];
            if step == 3 {
                records.push(setting.delete(&cold));
            }
            setting.topic.produce(records);
            caught_up(&setting, &ear).await;
        }
        consumer.shutdown().await.expect("it stops");
        // While nobody listens.
        let key = format!("away-{round}");
        let records =
            [setting.upsert(&key, row(&key, round)), setting.upsert("hot", row("hot", 100 + round))];
        setting.topic.produce(records);
    }
    let consumer = listened(&setting, Listening::new("ear", ear.clone())).start().await.expect("it starts");
    caught_up(&setting, &ear).await;
    let versions: Vec<u64> = ear.all().iter().map(|set| set.version).collect();
    assert!(versions.is_sorted_by(|a, b| a < b), "once each: {versions:?}");
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("the producer stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_listener_refuses_becomes_a_letter_and_it_goes_on() {
    let mut setting = Setting::new("refused", 1, SCHEMA);
    // Letters of before are not taken with their records' timestamps.
    let hour = [("message.timestamp.before.max.ms", "3600000")];
    Topic::create_on(Broker::shared(), &format!("{}.dlq", setting.dataset()), 1, &hour);
    let long_ago = stillwell::clock::Clock::system().wall_ms() - 7_200_000;
    let producer = setting.producer().await;
    let ear = Ear { refused: Some("bad"), ..Ear::default() };
    let tries = Tries { more: 2, first_wait: Duration::from_millis(5), ..Tries::default() };
    let mut listening = Listening::new("ear", ear.clone());
    listening.tries = tries;
    let consumer = listened(&setting, listening).start().await.expect("the consumer starts");
    for (key, stock) in [("good", 1), ("bad", 2), ("better", 3)] {
        let record = setting.upsert(key, row(key, stock));
        setting.topic.produce([Record { timestamp: Some(long_ago), ..record }]);
        setting.settled(&consumer).await;
    }
    let letters = setting.topic.beside(&format!("{}.dlq", setting.dataset()));
    let letters = letters.read_until("the letter is there", LONG, some);
    let letter = &letters[0];
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letter.key.as_deref(), Some(&b"bad"[..]));
    let value: Value = serde_json::from_slice(letter.value.as_deref().expect("a value")).expect("JSON");
    assert_eq!(value, row("bad", 2));
    for (header, said) in [
        ("__connect.errors.stage", "listener"),
        ("__connect.errors.topic", setting.dataset()),
        ("__connect.errors.partition", "0"),
        ("__connect.errors.offset", "1"),
        ("__connect.errors.class.name", "stillwell.consumer.Listener"),
        ("__connect.errors.exception.message", "it does not like this one"),
        ("stillwell.listener", "ear"),
        ("stillwell.original-timestamp", &long_ago.to_string()),
    ] {
        assert_eq!(letter.header(header), Some(said), "{header}");
    }
    wait_until_async("it goes on", LONG, || {
        let heard = ear.all();
        let last = heard.last().is_some_and(|set| set.changes.contains_key("better"));
        std::future::ready(if last { Ok(()) } else { Err(format!("{heard:?}")) })
    })
    .await;
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("the producer stops");
}

/// All messages, once there is one.
pub fn some(messages: &[Message]) -> Result<Vec<Message>, String> {
    if messages.is_empty() { Err("none yet".to_owned()) } else { Ok(messages.to_vec()) }
}

/// An HTTP server that takes webhooks: fails, is slow, goes away, as it is told to.
pub struct Receiver {
    pub address: SocketAddr,
    state: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    /// Status codes to answer next; 0: no answer for so long that the caller gives up. Then 204.
    next: Vec<u16>,
    /// Head and body of each request, with the answer.
    requests: Vec<(String, Value, u16)>,
    closed: bool,
}

impl Receiver {
    pub fn start(address: SocketAddr) -> Receiver {
        let socket = wait_until("the receiver's address is free", LONG, || TcpListener::bind(address));
        let address = socket.local_addr().expect("bound");
        let state = Arc::new(Mutex::new(Taken::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in socket.incoming() {
                if shared.lock().expect("no panic").closed {
                    return;
                }
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream.expect("a connection"), &shared));
            }
        });
        Receiver { address, state }
    }

    /// Goes away: nobody listens, connections end.
    pub fn stop(self) -> SocketAddr {
        self.state.lock().expect("no panic").closed = true;
        let _ = TcpStream::connect(self.address);
        self.address
    }

    /// What it took, in order: the version and the key of each change.
    pub fn taken(&self) -> Vec<(u64, String)> {
        let requests = self.requests();
        let taken = requests.iter().filter(|(.., status)| *status == 204);
        let changes = taken.flat_map(|(_, body, _)| {
            let version = body["version"].as_u64().expect("a number");
            body["changes"].as_array().expect("a list").iter().map(move |change| (version, &change["key"]))
        });
        changes.map(|(version, key)| (version, key.as_str().expect("text").to_owned())).collect()
    }

    pub fn answer(&self, next: &[u16]) {
        self.state.lock().expect("no panic").next = next.to_vec();
    }

    pub fn requests(&self) -> Vec<(String, Value, u16)> {
        self.state.lock().expect("no panic").requests.clone()
    }

    /// Waits until a change of this key was taken; gives all that came.
    pub fn took(&self, key: &str) -> Vec<(String, Value, u16)> {
        wait_until("the receiver took it", LONG, || {
            let requests = self.requests();
            let has = |body: &Value| {
                body["changes"].as_array().is_some_and(|all| all.iter().any(|c| c["key"] == key))
            };
            match requests.iter().any(|(_, body, status)| *status == 204 && has(body)) {
                true => Ok(requests),
                false => Err(format!("{requests:?}")),
            }
        })
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<Taken>) {
    stream.set_read_timeout(Some(LONG)).expect("a time limit");
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    while let Ok(Some(Request { head, body })) = Request::read(&mut reader) {
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        let status = {
            let mut state = state.lock().expect("no panic");
            if state.closed {
                return;
            }
            let status = if state.next.is_empty() { 204 } else { state.next.remove(0) };
            state.requests.push((head, body, status));
            status
        };
        if status == 0 {
            // Until the caller has enough.
            let _ = reader.read(&mut [0]);
            return;
        }
        if write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").is_err() {
            return;
        }
    }
}

#[test]
fn a_webhook_outlives_failures_slowness_and_a_restart_of_either_side() {
    let mut setting = Setting::new("hooked", 1, SCHEMA);
    let receiver = Receiver::start(SocketAddr::from(([127, 0, 0, 1], 0)));
    let instance = Instance::new(&setting, "one");
    instance.append(&format!(
        r#"
        [datasets."{}".consumer.webhook]
        url = "http://{}/changes"
        secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
        headers = ["X-Shop: one"]
        timeout = "5s"
        retry_backoff = "20ms"
        max_backoff = "200ms"
        max_retry_attempts = 3
        circuit_breaker_threshold = 3
        circuit_breaker_reset = "300ms"
        "#,
        setting.dataset(),
        receiver.address
    ));
    let process = instance.started();
    let send = |setting: &mut Setting, key: &str, stock: i32| {
        let record = setting.upsert(key, row(key, stock));
        setting.topic.produce([record]);
    };
    // It fails, and is slow; then it takes the same again, under the same id.
    receiver.answer(&[500, 0, 429]);
    send(&mut setting, "first", 1);
    let requests = receiver.took("first");
    let ids: Vec<_> =
        requests.iter().map(|(head, ..)| header(head, "webhook-id").expect("an id").to_owned()).collect();
    assert!(ids.len() >= 4 && ids[..4].iter().all(|id| *id == ids[0]), "{ids:?}");
    let (head, body, _) = &requests[3];
    assert!(head.starts_with("POST /changes HTTP/1.1\r\n"), "{head}");
    assert_eq!(header(head, "x-shop"), Some("one"));
    assert!(header(head, "webhook-signature").expect("signed").starts_with("v1,"));
    assert_eq!((&body["type"], &body["dataset"]), (&json!("dataset.changes"), &json!(setting.dataset())));
    // From nothing, or from version 1, which is empty.
    assert_eq!(body["rollback"], false);
    assert!(body["from"].as_u64().is_some_and(|from| from <= 1), "{body}");
    assert_eq!(body["changes"], json!([{"key": "first", "old": null, "new": row("first", 1)}]));

    // It is away for longer than all tries would take, the breaker opens, and nothing is lost or given up.
    let address = receiver.stop();
    send(&mut setting, "second", 2);
    wait_until("the breaker is open, and health says so", LONG, || {
        let (_, health) = instance.get("/health").map_err(|error| error.to_string())?;
        let health: Value = serde_json::from_str(&health).map_err(|error| error.to_string())?;
        let dataset = &health["datasets"][0];
        let open = dataset["circuit"]["webhook"] != "closed" && dataset["status"] == "degraded";
        if open { Ok(()) } else { Err(health.to_string()) }
    });
    let trips = || instance.metric("stillwell_circuit_trips_total").unwrap_or(0.0);
    wait_until("it has been tried for a while", LONG, || if trips() >= 3.0 { Ok(()) } else { Err(trips()) });
    let receiver = Receiver::start(address);
    receiver.took("second");
    assert_eq!(instance.metric("stillwell_dead_letters_total").unwrap_or(0.0), 0.0);

    // The process stops, is missed, and comes back: what was handled does not come again.
    process.stop(LONG);
    receiver.answer(&[422, 422, 422, 422]);
    send(&mut setting, "third", 3);
    let process = instance.started();
    // Refused four times: a letter. Then on.
    let letters = setting.topic.beside(&format!("{}.dlq", setting.dataset()));
    let letters = letters.read_until("the letter is there", LONG, some);
    assert_eq!(letters[0].key.as_deref(), Some(&b"third"[..]));
    assert_eq!(letters[0].header("__connect.errors.stage"), Some("webhook"));
    send(&mut setting, "fourth", 4);
    receiver.took("fourth");
    let taken: Vec<_> = receiver.taken().into_iter().map(|(_, key)| key).collect();
    assert_eq!(taken, ["second", "fourth"], "each once");
    process.stop(LONG);
    receiver.stop();
}

/// A client of an event stream.
pub struct Events(BufReader<TcpStream>);

/// One event: id, name, data.
pub type Event = (Option<String>, String, Value);

impl Events {
    pub fn open(instance: &Instance, dataset: &str, last: Option<u64>) -> Events {
        let mut stream = TcpStream::connect(("127.0.0.1", instance.port)).expect("it listens");
        stream.set_read_timeout(Some(LONG)).expect("a time limit");
        let last = last.map_or(String::new(), |last| format!("last-event-id: {last}\r\n"));
        write!(stream, "GET /v1/datasets/{dataset}/changes HTTP/1.1\r\nhost: localhost\r\n{last}\r\n")
            .expect("asked");
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).expect("a head") > 0, "{head}");
        }
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/event-stream"), "{head}");
        Events(reader)
    }

    /// The next event. Lines of the transfer's own (sizes of pieces) are passed over.
    pub fn next(&mut self) -> Option<Event> {
        let (mut id, mut name) = (None, String::new());
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).expect("it goes on") == 0 {
                return None;
            }
            let line = line.trim_end();
            if let Some(text) = line.strip_prefix("id: ") {
                // What stands behind the dot says of which history the version is.
                id = text.split_once('.').map(|(versions, _)| versions.to_owned());
            } else if let Some(text) = line.strip_prefix("event: ") {
                name = text.to_owned();
            } else if let Some(text) = line.strip_prefix("data: ") {
                return Some((id, name, serde_json::from_str(text).expect("JSON")));
            }
        }
    }

    /// Events up to the completion of the version in which this key changed; the changes among them, and that version.
    fn until(&mut self, key: &str) -> (Vec<Value>, u64) {
        let mut changes = Vec::new();
        loop {
            let (id, name, data) = self.next().expect("the stream goes on");
            match name.as_str() {
                "change" => changes.push(data),
                "version" => {
                    assert_eq!(id, Some(data["version"].to_string()));
                    if changes.iter().any(|change: &Value| change["key"] == key) {
                        return (changes, data["version"].as_u64().expect("a number"));
                    }
                }
                other => panic!("{other}: {data}"),
            }
        }
    }
}

#[test]
fn an_event_stream_goes_on_where_it_broke_off_and_ends_with_the_process() {
    let mut setting = Setting::new("streamed", 1, SCHEMA);
    let instance = Instance::new(&setting, "one");
    let process = instance.started();
    let send = |setting: &mut Setting, key: &str, stock: i32| {
        let record = setting.upsert(key, row(key, stock));
        setting.topic.produce([record]);
    };
    let dataset = setting.dataset().to_owned();
    let mut events = Events::open(&instance, &dataset, None);
    let (id, name, data) = events.next().expect("where it begins");
    assert_eq!(
        (id, name.as_str(), &data["changes"]),
        (Some(data["version"].to_string()), "version", &json!(0))
    );
    send(&mut setting, "a", 1);
    let (changes, _) = events.until("a");
    assert_eq!(
        changes,
        [json!({"version": changes[0]["version"], "key": "a", "old": null, "new": row("a", 1)})]
    );
    send(&mut setting, "b", 1);
    let (_, seen) = events.until("b");
    drop(events);

    // Nobody reads; each version is given by itself when the client is back.
    let mut again = Events::open(&instance, &dataset, None);
    for stock in 2..5 {
        send(&mut setting, "a", stock);
        again.until("a");
    }
    let mut events = Events::open(&instance, &dataset, Some(seen));
    for stock in 2..5 {
        let (changes, _) = events.until("a");
        assert_eq!(changes.len(), 1, "{changes:?}");
        assert_eq!(
            (&changes[0]["old"]["stock"], &changes[0]["new"]["stock"]),
            (&json!(stock - 1), &json!(stock))
        );
    }

    // What was never announced is no place to go on from.
    let mut lost = Events::open(&instance, &dataset, Some(1_000_000));
    let (id, name, data) = lost.next().expect("an answer");
    assert_eq!((id, name.as_str()), (Some(data["version"].to_string()), "reset"), "{data}");

    // The process ends, and says so to each.
    let stopping = std::thread::spawn(move || process.stop(LONG));
    for mut events in [events, lost, again] {
        let rest: Vec<Event> = std::iter::from_fn(|| events.next()).collect();
        let (_, name, data) = rest.last().expect("a last event");
        assert_eq!((name.as_str(), &data["reason"]), ("goodbye", &json!("shutdown")), "{rest:?}");
    }
    stopping.join().expect("it stops in time");
}
