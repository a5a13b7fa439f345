//! The shard changes hands: by a handover, a kill, again and again under load, and back to an owner whose log is old.
//! Whatever happens, versions are gapless, each is announced once, and the last one equals the fold of the source.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use stillwell::clock::{Clock, Entropy};
use stillwell_tests::{Record, Running, Topic, scratch, wait_until};

use crate::instance::{Instance, LONG};
use crate::line::SCHEMA;
use crate::setting::{Model, Setting};

/// How long members join and leave.
const STORM: Duration = Duration::from_secs(40);

/// Who writes the shard by its health, among processes that answer.
fn writers(instances: &[&Instance]) -> usize {
    let running = |instance: &&&Instance| {
        let health =
            instance.get("/health").ok().and_then(|(_, body)| serde_json::from_str::<Value>(&body).ok());
        health.is_some_and(|health| health["datasets"][0]["writer"] == "running")
    };
    instances.iter().filter(running).count()
}

/// Stops it in order, once it has come so far as to listen to signals: before that it ends by them, as anybody does.
fn stopped(mut process: Running) {
    process.wait_for_text("starting", LONG);
    process.stop(LONG).expect_code(0);
}

async fn settled(setting: &Setting) {
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
}

/// Produces a few hundred records a second until it is told to stop; gives the fold of what Kafka acknowledged.
fn load(topic: Topic, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Model> {
    std::thread::spawn(move || {
        let mut model = BTreeMap::new();
        let mut n = 0;
        while !stop.load(Ordering::Acquire) {
            let batch: Vec<Record> = (0..50)
                .map(|_| {
                    n += 1;
                    let key = format!("P-{}", n % 700);
                    if n % 13 == 0 {
                        model.remove(key.as_bytes());
                        return Record::delete(&key);
                    }
                    let value = json!({"id": key, "price": f64::from(n), "stock": n});
                    model.insert(key.clone().into_bytes(), value.clone());
                    Record::upsert(&key, value.to_string())
                })
                .collect();
            topic.produce(batch);
        }
        model
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_members_loses_nothing_and_announces_nothing_twice() {
    let mut setting = Setting::new("storm", 3, SCHEMA);
    let seed = stillwell_tests::campaign::seed();
    println!("STILLWELL_SEED={seed}");
    let entropy = Entropy::seeded(seed);
    let instances: Vec<Instance> = ["a", "b", "c"].iter().map(|name| Instance::new(&setting, name)).collect();
    let mut processes: Vec<Option<Running>> =
        instances.iter().map(|instance| Some(instance.start())).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let loaded = load(setting.topic.clone(), stop.clone());

    let clock = Clock::system();
    let (began, mut kills, mut leaves) = (clock.now(), 0, 0);
    let mut next = began + Duration::from_secs(6);
    while clock.now() - began < STORM {
        wait_until("the next one's turn", LONG, || if clock.now() >= next { Ok(()) } else { Err("not yet") });
        next = clock.now() + Duration::from_millis(1_500 + entropy.next_u64() % 2_000);
        let one = (entropy.next_u64() % 3) as usize;
        processes[one] = match processes[one].take() {
            None => Some(instances[one].start()),
            Some(mut process) if entropy.next_u64().is_multiple_of(3) => {
                process.signal("KILL");
                process.wait(LONG);
                kills += 1;
                None
            }
            Some(process) => {
                stopped(process);
                leaves += 1;
                None
            }
        };
    }
    stop.store(true, Ordering::Release);
    setting.model = loaded.join().expect("the load ends");
    for (process, instance) in processes.iter_mut().zip(&instances) {
        process.get_or_insert_with(|| instance.start());
    }
    settled(&setting).await;
    let all: Vec<&Instance> = instances.iter().collect();
    wait_until("one writes, and one alone", LONG, || match writers(&all) {
        1 => Ok(()),
        writers => Err(format!("{writers} write")),
    });
    let versions = instances[0].newest();
    println!("{kills} kills, {leaves} leaves, {versions} versions, {} keys", setting.model.len());
    processes.into_iter().flatten().for_each(stopped);
    instances[0].newest();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handover_drains_commits_and_then_lets_go() {
    let mut setting = Setting::new("handover", 1, SCHEMA);
    let (a, b) = (Instance::new(&setting, "a"), Instance::new(&setting, "b"));
    let first = a.started();
    let second = b.start();
    wait_until("the first one writes", LONG, || match writers(&[&a]) {
        1 => Ok(()),
        writers => Err(writers),
    });
    let records: Vec<_> = (0..2_000)
        .map(|i| {
            let id = format!("P-{i}");
            setting.upsert(&id, json!({"id": id, "price": 1.0, "stock": i}))
        })
        .collect();
    setting.topic.produce(records);
    // A drain takes along what is in batches, and leaves what has only been received to whoever comes next.
    wait_until("they are in batches", LONG, || match a.metric("stillwell_batch_records_sum") {
        Some(2_000.0) => Ok(()),
        seen => Err(format!("{seen:?}")),
    });
    let left = first.stop(LONG).expect_code(0);
    assert!(left.stderr.contains("0 records left in the log"), "drained: {}", left.stderr);
    // All of it was published by the one that left; what follows is the other one's.
    let before = b.newest();
    wait_until("the second one writes", LONG, || match writers(&[&b]) {
        1 => Ok(()),
        writers => Err(writers),
    });
    let one = setting.upsert("one more", json!({"id": "one more", "price": 2.0, "stock": null}));
    setting.topic.produce([one]);
    settled(&setting).await;
    let versions = b.versions();
    let epochs: Vec<u64> =
        versions.iter().map(|version| version["epoch"].as_u64().expect("a number")).collect();
    assert!(epochs.is_sorted() && epochs.last() > epochs.first(), "{epochs:?}");
    assert!(b.newest() > before);
    second.stop(LONG).expect_code(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_comes_back_to_an_old_log_takes_nothing_old_from_it() {
    let mut setting = Setting::new("back", 2, SCHEMA);
    let (a, b) = (Instance::new(&setting, "a"), Instance::new(&setting, "b"));
    let some = |setting: &mut Setting, price: f64, keys: std::ops::Range<usize>| {
        let records: Vec<_> = keys
            .map(|i| {
                let id = format!("P-{i}");
                setting.upsert(&id, json!({"id": id, "price": price, "stock": null}))
            })
            .collect();
        setting.topic.produce(records);
    };
    some(&mut setting, 1.0, 0..100);
    let mut process = a.started();
    settled(&setting).await;
    // A receives more than it can publish, for its store is away, and dies with that in its log.
    let folder = setting.dir.path().join("blobs").join(setting.dataset());
    let aside = setting.dir.path().join("aside");
    std::fs::rename(&folder, &aside).expect("the folder is there");
    std::fs::write(&folder, "").expect("a file in its place");
    some(&mut setting, 2.0, 0..60);
    wait_until("it is in the log", LONG, || match a.metric("stillwell_pending_records") {
        Some(pending) if pending >= 60.0 => Ok(()),
        pending => Err(format!("{pending:?}")),
    });
    process.signal("KILL");
    process.wait(LONG);
    std::fs::remove_file(&folder).expect("the file is there");
    std::fs::rename(&aside, &folder).expect("the folder is put back");

    // B publishes all of that, and changes and deletes the same keys.
    let process = b.started();
    settled(&setting).await;
    some(&mut setting, 3.0, 30..90);
    let gone = (0..10).map(|i| setting.delete(&format!("P-{i}"))).collect::<Vec<_>>();
    setting.topic.produce(gone);
    settled(&setting).await;
    process.stop(LONG).expect_code(0);
    some(&mut setting, 4.0, 95..120);

    let mut process = a.start();
    process.wait_for_text("took over", LONG);
    settled(&setting).await;
    a.newest();
    process.stop(LONG).expect_code(0);
}
