//! The writer of the source: upserts, deletes, values that are there already, poison, transactions that commit and
//! that abort; all of it from one seed, by librdkafka. It remembers what Kafka acknowledged.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use serde_json::json;
use stillwell::clock::Clock;

use super::chance::Chance;

/// Keys that are written again and again, and keys that come now and then.
const HOT: u64 = 12;
const WIDE: u64 = 1_500;
/// Longest answer of a transaction's step.
const PATIENCE: Duration = Duration::from_secs(10);

/// What Kafka has acknowledged: committed, where it was part of a transaction.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "Kafka's words")]
pub struct Acknowledged {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub transactional: bool,
}

/// A record on its way: key and value.
type Sent = (Option<Vec<u8>>, Option<Vec<u8>>);

#[derive(Debug, Default)]
struct Shared {
    acknowledged: Mutex<Vec<Acknowledged>>,
    count: AtomicU64,
    /// Records to be written at once, beside the steady stream.
    burst: AtomicU64,
    /// Records a second.
    rate: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    fn take(&self, new: &mut Vec<Acknowledged>) {
        self.count.fetch_add(new.len() as u64, Ordering::Relaxed);
        lock(&self.acknowledged).append(new);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A workload under way; it ends when dropped.
#[derive(Debug)]
pub struct Workload {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Workload {
    /// Starts writing `rate` records a second to `topic`.
    pub fn start(bootstrap: &str, topic: &str, rate: u64, chance: Chance) -> Workload {
        let shared = Arc::new(Shared { rate: AtomicU64::new(rate), ..Shared::default() });
        let thread = std::thread::Builder::new()
            .name("workload".into())
            .spawn({
                let (shared, writer) = (shared.clone(), Writer::new(bootstrap, topic, chance));
                move || writer.run(&shared)
            })
            .expect("a thread can be started");
        Workload { shared, thread: Some(thread) }
    }

    /// Records acknowledged so far.
    pub fn count(&self) -> u64 {
        self.shared.count.load(Ordering::Relaxed)
    }

    /// What was acknowledged since this was asked last.
    pub fn acknowledged(&self) -> Vec<Acknowledged> {
        std::mem::take(&mut *lock(&self.shared.acknowledged))
    }

    /// Writes `records` more, as fast as it goes.
    pub fn burst(&self, records: u64) {
        self.shared.burst.fetch_add(records, Ordering::Relaxed);
    }

    /// Records a second from now on; 0 rests.
    pub fn set_rate(&self, rate: u64) {
        self.shared.rate.store(rate, Ordering::Relaxed);
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Keeps what was delivered until somebody takes it.
#[derive(Default)]
struct Deliveries(Mutex<Vec<Acknowledged>>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, outcome: &DeliveryResult<'_>, (): ()) {
        // What was not delivered is not acknowledged: nothing was promised.
        if let Ok(message) = outcome {
            lock(&self.0).push(Acknowledged {
                partition: message.partition(),
                offset: message.offset(),
                key: message.key().map(Into::into),
                value: message.payload().map(Into::into),
                transactional: false,
            });
        }
    }
}

struct Writer {
    bootstrap: String,
    topic: String,
    chance: Chance,
    plain: BaseProducer<Deliveries>,
    transactional: Option<BaseProducer<Deliveries>>,
    last: HashMap<Vec<u8>, Vec<u8>>,
    number: i64,
}

impl Writer {
    fn new(bootstrap: &str, topic: &str, chance: Chance) -> Writer {
        let plain = producer(bootstrap, None);
        Writer {
            bootstrap: bootstrap.to_owned(),
            topic: topic.to_owned(),
            chance,
            plain,
            transactional: None,
            last: HashMap::new(),
            number: 0,
        }
    }

    fn run(mut self, shared: &Shared) {
        let clock = Clock::system();
        let (mut since, mut written) = (clock.now(), 0);
        while !shared.stop.load(Ordering::Relaxed) {
            let rate = shared.rate.load(Ordering::Relaxed);
            let burst = shared.burst.load(Ordering::Relaxed);
            let due = (clock.now() - since).as_secs_f64() * rate as f64;
            if burst == 0 && written as f64 >= due {
                self.plain.poll(Duration::from_millis(5));
            } else {
                let step = self.step(shared);
                if burst > 0 {
                    shared.burst.fetch_sub(step.min(burst), Ordering::Relaxed);
                } else {
                    written += step;
                }
                self.plain.poll(Duration::ZERO);
            }
            // A broker that was away must not be answered with all that was due meanwhile.
            if clock.now() - since > Duration::from_secs(1) {
                (since, written) = (clock.now(), 0);
            }
            shared.take(&mut lock(&self.plain.context().0));
        }
        let _ = self.plain.flush(PATIENCE);
        shared.take(&mut lock(&self.plain.context().0));
    }

    /// Writes some records; says how many.
    fn step(&mut self, shared: &Shared) -> u64 {
        let records: Vec<Sent> = match self.chance.below(10) {
            0 => (0..self.chance.between(2, 20)).map(|_| self.record()).collect(),
            _ => vec![self.record()],
        };
        let count = records.len() as u64;
        // A transaction takes as long as hundreds of records outside of one: in a burst few are.
        let (of, plain) = if shared.burst.load(Ordering::Relaxed) > 0 { (10, 9) } else { (4, 1) };
        if count > 1 && self.chance.below(of) >= plain {
            self.transaction(records, shared);
        } else {
            for record in records {
                self.send(&self.plain, &record);
            }
        }
        count
    }

    fn record(&mut self) -> Sent {
        let key = match self.chance.below(3) {
            0 => format!("hot-{}", self.chance.below(HOT)),
            _ => format!("key-{:05}", self.chance.below(WIDE)),
        };
        let key = key.into_bytes();
        match self.chance.below(100) {
            0..12 => {
                self.last.remove(&key);
                (Some(key), None)
            }
            // What it is already, or was when its last record was part of a transaction that came to nothing.
            12..24 if self.last.contains_key(&key) => {
                let value = self.last.get(&key).cloned();
                (Some(key), value)
            }
            24..29 => self.poison(key),
            _ => {
                let value = self.value(&key);
                self.last.insert(key.clone(), value.clone());
                (Some(key), Some(value))
            }
        }
    }

    fn poison(&mut self, key: Vec<u8>) -> Sent {
        let value = self.value(&key);
        let text = String::from_utf8_lossy(&value).into_owned();
        match self.chance.below(6) {
            0 => (Some(key), Some(b"not JSON at all".to_vec())),
            1 => (Some(key), Some(Vec::new())),
            2 => (Some(key), Some(b"null".to_vec())),
            3 => (None, Some(value)),
            4 => (Some(key), Some(text.replace("\"stock\":", "\"stock\":5000000000,\"x\":").into_bytes())),
            _ => (Some(key), Some(text.replace("\"price\"", "\"prise\"").into_bytes())),
        }
    }

    fn value(&mut self, key: &[u8]) -> Vec<u8> {
        self.number += 1;
        let length = match self.chance.below(200) {
            0 => 30_000,
            1..20 => 2_000,
            _ => self.chance.below(150) as usize,
        };
        let letter = char::from(b'a' + (self.number % 26) as u8);
        let stock = (!self.chance.one_in(4)).then(|| self.chance.below(1 << 31));
        let value = json!({
            "id": String::from_utf8_lossy(key),
            "n": self.number,
            "price": self.chance.below(1_000_000) as f64 / 4.0,
            "stock": stock,
            "pad": letter.to_string().repeat(length),
        });
        value.to_string().into_bytes()
    }

    fn send(&self, producer: &BaseProducer<Deliveries>, (key, value): &Sent) {
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&self.topic);
        record.key = key.as_deref();
        record.payload = value.as_deref();
        // A full queue: the broker is away, and what cannot be sent has not been written.
        if let Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) = producer.send(record) {
            producer.poll(Duration::from_millis(50));
        }
    }

    /// One transaction, committed or aborted. Whatever goes wrong, nothing of it counts as acknowledged.
    fn transaction(&mut self, records: Vec<Sent>, shared: &Shared) {
        let abort = self.chance.one_in(3);
        let producer = match self.transactional.take() {
            Some(producer) => producer,
            None => {
                let producer = producer(&self.bootstrap, Some(&format!("workload-{}", self.topic)));
                if producer.init_transactions(PATIENCE).is_err() {
                    return;
                }
                producer
            }
        };
        let ended = producer.begin_transaction().and_then(|()| {
            for record in &records {
                self.send(&producer, record);
            }
            producer.flush(PATIENCE)?;
            match abort {
                true => producer.abort_transaction(PATIENCE),
                false => producer.commit_transaction(PATIENCE),
            }
        });
        let mut delivered = std::mem::take(&mut *lock(&producer.context().0));
        if ended.is_ok() {
            if !abort {
                delivered.iter_mut().for_each(|record| record.transactional = true);
                shared.take(&mut delivered);
            }
            self.transactional = Some(producer);
        }
    }
}

fn producer(bootstrap: &str, transactional: Option<&str>) -> BaseProducer<Deliveries> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "2")
        .set("reconnect.backoff.max.ms", "500")
        .set("retry.backoff.ms", "5")
        .set("retry.backoff.max.ms", "100")
        .set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg);
    if let Some(id) = transactional {
        config.set("transactional.id", id);
    }
    config.create_with_context(Deliveries::default()).expect("a producer can be made")
}
