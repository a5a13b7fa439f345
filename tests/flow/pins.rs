//! Pins and refusals: all readers hold the version that they are told to, over restarts and with Kafka away; a version
//! that a reader's guard refuses is not shown.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use stillwell::clock::{Clock, Entropy};
use stillwell::consumer::Steering;
use stillwell::consumer::history::Topics;
use stillwell::format::control::Control;
use stillwell::{Bounds, Consumer, ErrorKind, ShardVersions, Version, View, kafka};
use stillwell_tests::{Topic, mostly_within, scratch, wait_until_async};

use crate::instance::LONG;
use crate::line::SCHEMA;
use crate::setting::{Model, Setting, contents};

/// The discard port of this machine, where nobody listens.
const NOWHERE: &str = "127.0.0.1:9";

pub fn steering(setting: &Setting) -> Steering {
    let dataset = setting.dataset().to_owned();
    Steering::new(Topics {
        announcements: format!("{dataset}.announcements"),
        control: format!("{dataset}.control"),
        kafka: kafka::Options { bootstrap_servers: setting.bootstrap.clone(), ..kafka::Options::default() },
        dataset,
        clock: Clock::system(),
        entropy: Entropy::system(),
    })
}

pub fn one(version: Version) -> ShardVersions {
    ShardVersions(vec![version])
}

/// Changes 20 of 50 products, and takes one more away with each round.
pub fn produce(setting: &mut Setting, round: i32) {
    let mut records: Vec<_> = (round * 10..round * 10 + 20)
        .map(|i| {
            let id = format!("P-{}", i % 50);
            setting.upsert(&id, json!({"id": id, "price": f64::from(round), "stock": i}))
        })
        .collect();
    if round > 0 {
        records.push(setting.delete(&format!("P-{round}")));
    }
    setting.topic.produce(records);
}

async fn holds(consumer: &Consumer, version: Version, model: &Model) {
    wait_until_async(&format!("the reader holds version {version}"), LONG, || {
        let status = consumer.status();
        std::future::ready(match consumer.view().version() {
            held if held == version => Ok(()),
            held => Err(format!("version {held}; {status:?}")),
        })
    })
    .await;
    assert_eq!(&contents(&consumer.view()), model);
}

/// From the moment in which it is decided to pin to this version, before the record of it is written, until all readers hold it.
/// By the time that `pin` returns they may have held it for long: it looks once more at what is kept.
async fn moves(steering: &Steering, consumers: &[Consumer], version: Version) -> Duration {
    let pinned = async {
        steering.pin(&one(version), "the test", "prices are wrong").await.expect("it can be pinned")
    };
    let moved = async {
        for consumer in consumers {
            let mut readable = consumer.watch();
            let moved = readable.wait_for(|readable| readable.version == version && readable.pinned);
            tokio::time::timeout(LONG, moved).await.expect("it moves").expect("it runs");
        }
        Clock::system().wall_ms()
    };
    let (pinned, moved) = tokio::join!(pinned, moved);
    Duration::from_millis((moved - pinned.at).max(0) as u64)
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_move_to_a_pin_hold_it_over_restarts_and_without_kafka_and_follow_again() {
    let mut setting = Setting::new("pinned", 1, SCHEMA);
    produce(&mut setting, 0);
    let producer = setting.producer().await;
    let (caches, fresh) = ([scratch(), scratch()], scratch());
    let mut consumers = Vec::new();
    for cache in &caches {
        consumers.push(setting.consumer(cache.path()).await);
    }
    for consumer in &consumers {
        setting.settled(consumer).await;
    }
    let (first, before) = (consumers[0].view().version(), setting.model.clone());
    produce(&mut setting, 1);
    for consumer in &consumers {
        setting.settled(consumer).await;
    }
    let held = consumers[0].view();

    let steering = steering(&setting);
    let pin = steering.pin(&one(first), "the test", "prices are wrong").await.expect("it can be pinned");
    for consumer in &consumers {
        holds(consumer, first, &before).await;
    }
    let mut versions = [held.version(), first].into_iter().cycle();
    let moved = mostly_within("readers move to a pin", Duration::from_secs(1), async || {
        let version = versions.next().expect("without an end");
        moves(&steering, &consumers, version).await
    })
    .await;
    println!("readers moved {moved:?} after the pin");
    if consumers[0].view().version() != first {
        moves(&steering, &consumers, first).await;
    }
    let pin = steering.pinned().await.expect("it answers").unwrap_or(pin);
    assert!(held.version() > first, "a view that is held stays");
    assert_eq!(steering.pin(&one(first), "again", "").await.expect("it is").id, pin.id, "once is enough");

    // What is announced meanwhile is known, and not shown.
    produce(&mut setting, 2);
    for consumer in &consumers {
        wait_until_async("the announcement is seen", LONG, || {
            let readable = consumer.status().readable;
            std::future::ready(match readable.announced > held.version() && readable.lag > 0 {
                true => Ok(()),
                false => Err(format!("{readable:?}")),
            })
        })
        .await;
        assert_eq!(consumer.view().version(), first);
        let told = consumer.status().pin.pinned.expect("it says so");
        assert_eq!(
            (told.versions, told.by.as_str(), told.reason.as_str()),
            (one(first), "the test", "prices are wrong")
        );
        assert!(consumer.is_ready(), "{:?}", consumer.status());
    }

    // A restart, and a reader that never held anything: neither shows any other version first.
    consumers.remove(0).shutdown().await.expect("it stops");
    for cache in [&caches[0], &fresh] {
        let again = setting.consumer(cache.path()).await;
        assert_eq!(again.view().version(), first);
        assert_eq!(contents(&again.view()), before);
        assert!(!again.view().is_stale());
        consumers.push(again);
    }
    // Kafka is away: the cache remembers both, the version and that it is pinned to it.
    consumers.remove(0).shutdown().await.expect("it stops");
    let away = Consumer::builder(setting.dataset())
        .bootstrap_servers(NOWHERE)
        .blobs(setting.blobs())
        .cache_dir(caches[1].path())
        .serve_stale(true)
        .start()
        .await
        .expect("the cached version will do");
    assert_eq!(contents(&away.view()), before);
    let status = away.status();
    assert_eq!(status.pin.pinned.expect("it remembers").versions, one(first));
    assert!(status.readable.pinned && status.readable.stale, "{:?}", status.readable);
    away.shutdown().await.expect("it stops");

    // From pin to pin, and free again.
    steering.pin(&one(held.version()), "the test", "").await.expect("it can be pinned");
    for consumer in &consumers {
        holds(consumer, held.version(), &contents(&held)).await;
    }
    let was = steering.unpin().await.expect("it can be").expect("it was pinned");
    assert_eq!(was.shard_versions(), one(held.version()));
    for consumer in &consumers {
        setting.settled(consumer).await;
        let status = consumer.status();
        assert!(status.pin.pinned.is_none() && !status.readable.pinned, "{status:?}");
    }
    produce(&mut setting, 3);
    for consumer in consumers {
        setting.settled(&consumer).await;
        consumer.shutdown().await.expect("it stops");
    }
    producer.shutdown().await.expect("it stops");
}

/// A pin that was set while a reader was down: what its cache holds is newer, and not shown, not even for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_starts_shows_no_version_that_was_pinned_away_meanwhile() {
    let mut setting = Setting::new("pinned-away", 1, SCHEMA);
    produce(&mut setting, 0);
    let producer = setting.producer().await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let (first, before) = (consumer.view().version(), setting.model.clone());
    produce(&mut setting, 1);
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    steering(&setting).pin(&one(first), "the test", "").await.expect("it can be pinned");
    // The guard is asked about each version before it is shown, but not about a pinned one.
    let judged: Arc<Mutex<Vec<Version>>> = Arc::default();
    let seen = judged.clone();
    let consumer = Consumer::builder(setting.dataset())
        .bootstrap_servers(&setting.bootstrap)
        .blobs(setting.blobs())
        .cache_dir(cache.path())
        .control_wait(LONG)
        .guard(move |_: Option<&View>, next: &View| {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(next.version());
            Ok(())
        })
        .start()
        .await
        .expect("it starts");
    assert_eq!(consumer.view().version(), first);
    assert_eq!(contents(&consumer.view()), before);
    assert_eq!(*judged.lock().unwrap_or_else(PoisonError::into_inner), [], "another version was shown");
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_pinned_is_refused_with_what_can_and_a_pin_that_cannot_be_opened_keeps_what_is_held() {
    let mut setting = Setting::new("unpinnable", 1, SCHEMA);
    let steering = steering(&setting);
    let none = steering.pin(&one(Version(1)), "the test", "").await.expect_err("nobody has started");
    assert_eq!(none.kind(), ErrorKind::Unavailable);
    assert!(none.chain().contains("does not exist"), "{}", none.chain());

    produce(&mut setting, 0);
    let producer = setting.producer().await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    produce(&mut setting, 1);
    setting.settled(&consumer).await;
    let newest = consumer.view().version();
    for (version, said) in [(0, "versions count from 1"), (newest.0 + 1_000, "it is not announced")] {
        let refused = steering.pin(&one(Version(version)), "the test", "").await.expect_err("it cannot be");
        assert_eq!(refused.kind(), ErrorKind::Rejected);
        let text = refused.chain();
        assert!(text.contains(said) && text.contains("1 to ") && text.contains("can be pinned"), "{text}");
    }
    let both = ShardVersions(vec![Version(1), Version(1)]);
    let refused = steering.pin(&both, "the test", "").await.expect_err("it has one shard");
    assert!(refused.chain().contains("1 shard(s), and 2 are named"), "{}", refused.chain());
    assert!(steering.pinned().await.expect("it answers").is_none(), "nothing was written");
    assert!(steering.unpin().await.expect("it answers").is_none());

    // The store loses what version 2 is made of; its announcement is there.
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("it stops");
    let fresh = scratch();
    let consumer = setting.consumer(fresh.path()).await;
    setting.settled(&consumer).await;
    let held = consumer.view().version();
    steering.pin(&one(Version(2)), "the test", "").await.expect("it is announced");
    holds_pinned(&consumer, Version(2)).await;
    steering.unpin().await.expect("it can be");
    setting.settled(&consumer).await;
    lose(&setting, fresh.path());
    steering.pin(&one(Version(2)), "the test", "").await.expect("it is announced");
    let error = wait_until_async("the reader says that it cannot", LONG, || {
        let status = consumer.status();
        std::future::ready(match (status.readable.error, status.pin.pinned) {
            (Some(error), Some(pinned)) if pinned.versions == one(Version(2)) => Ok(error),
            (error, pinned) => Err(format!("{error:?} {pinned:?}")),
        })
    })
    .await;
    assert!(error.contains("version 2"), "{error}");
    assert_eq!(consumer.view().version(), held, "what is held stays");
    assert!(consumer.is_ready());
    steering.unpin().await.expect("it can be");
    wait_until_async("it is well again", LONG, || {
        let readable = consumer.status().readable;
        std::future::ready(match readable.error {
            None => Ok(()),
            Some(error) => Err(error),
        })
    })
    .await;
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
}

async fn holds_pinned(consumer: &Consumer, version: Version) {
    wait_until_async(&format!("the reader is at version {version}"), LONG, || {
        let readable = consumer.status().readable;
        std::future::ready(match readable.version == version && readable.pinned {
            true => Ok(()),
            false => Err(format!("{readable:?}")),
        })
    })
    .await;
}

/// Takes the dataset's blobs out of store and cache. A file in the place of its folder: announcements carry small deltas,
/// which could be put into the cache again.
fn lose(setting: &Setting, cache: &std::path::Path) {
    for folder in [setting.dir.path().join("blobs"), cache.to_owned()] {
        let dataset = folder.join(setting.dataset());
        std::fs::rename(&dataset, folder.join("aside")).expect("it is there");
        std::fs::write(&dataset, "").expect("a file in its place");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_is_pinned_by_its_own_configuration_whatever_the_dataset_is_pinned_to() {
    let mut setting = Setting::new("fixed", 1, SCHEMA);
    produce(&mut setting, 0);
    let producer = setting.producer().await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let (first, before) = (consumer.view(), setting.model.clone());
    produce(&mut setting, 1);
    setting.settled(&consumer).await;
    let newest = consumer.view().version();
    steering(&setting).pin(&one(newest), "the test", "").await.expect("it can be pinned");

    let builder = |cache: &std::path::Path| {
        Consumer::builder(setting.dataset())
            .bootstrap_servers(&setting.bootstrap)
            .blobs(setting.blobs())
            .cache_dir(cache)
    };
    let (of_version, of_time) = (scratch(), scratch());
    let announced = std::time::UNIX_EPOCH + Duration::from_millis(first.announced_at_ms() as u64);
    for fixed in [builder(of_version.path()).version(first.version()), builder(of_time.path()).at(announced)]
    {
        let fixed = fixed.start().await.expect("the version is there");
        assert_eq!((fixed.view().version(), contents(&fixed.view())), (first.version(), before.clone()));
        let told = fixed.status().pin.pinned.expect("it says so");
        assert_eq!((told.versions, told.fixed), (one(first.version()), true));
        fixed.shutdown().await.expect("it stops");
    }
    // One that was never announced: it says which is the newest, and is not ready.
    let waiting = builder(scratch().path()).version(Version(1_000)).spawn().expect("it starts");
    let error = wait_until_async("it says so", LONG, || {
        std::future::ready(waiting.status().pin.error.ok_or("no error yet"))
    })
    .await;
    assert!(error.contains("there is no version 1000 yet"), "{error}");
    assert!(!waiting.is_ready());
    let why = waiting.reader().not_ready().expect("it is not");
    assert!(why.contains("pinned to version 1000"), "{why}");
    for consumer in [waiting, consumer] {
        consumer.shutdown().await.expect("it stops");
    }
    producer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_the_guard_refuses_is_not_shown_said_published_and_left_behind_by_a_good_one() {
    let mut setting = Setting::new("guarded", 1, SCHEMA);
    let all: Vec<_> = (0..100)
        .map(|i| {
            let id = format!("P-{i}");
            setting.upsert(&id, json!({"id": id, "price": 1.0, "stock": i}))
        })
        .collect();
    setting.topic.produce(all);
    let producer = setting.producer().await;
    let (cache, free_cache) = (scratch(), scratch());
    let (dataset, bootstrap, blobs) =
        (setting.dataset().to_owned(), setting.bootstrap.clone(), setting.blobs());
    let guarded = |cache: &std::path::Path| {
        Consumer::builder(&dataset)
            .bootstrap_servers(&bootstrap)
            .blobs(&blobs)
            .cache_dir(cache)
            .reader("the guarded one")
            .bounds(Bounds { min_records: Some(50), ..Bounds::default() })
    };
    let consumer = guarded(cache.path()).start().await.expect("it starts");
    let careful_cache = scratch();
    let careful = Consumer::builder(&dataset)
        .bootstrap_servers(&bootstrap)
        .blobs(&blobs)
        .cache_dir(careful_cache.path())
        .reader("the careful one")
        .bounds(Bounds { max_change: Some(0.5), ..Bounds::default() })
        .start()
        .await
        .expect("it starts: what comes first differs from nothing");
    let free = setting.consumer(free_cache.path()).await;
    setting.settled(&consumer).await;
    let (good, held) = (setting.model.clone(), consumer.view().version());

    let most: Vec<_> = (0..80).map(|i| setting.delete(&format!("P-{i}"))).collect();
    setting.topic.produce(most);
    setting.settled(&free).await;
    let refused = refusal_of(&consumer).await;
    // Empty versions in between, which list a snapshot, were good ones.
    assert!(refused.held >= held && refused.held < refused.version, "{refused:?}");
    assert_eq!(refused.by, "the guarded one");
    assert!(refused.reason.contains("min_records = 50"), "{refused:?}");
    assert_eq!(contents(&consumer.view()), good, "the last good one stays");
    assert!(consumer.is_ready());
    let too_much = refusal_of(&careful).await;
    assert!(too_much.reason.contains("more than 50 of the 100 keys"), "{too_much:?}");
    // Published for all: the other reader, which took the version, hears of it.
    wait_until_async("the other reader hears of it", LONG, || {
        let refusals = free.status().pin.refusals;
        std::future::ready(match refusals.as_slice() {
            [careful, other]
                if (&other.reason, &other.by) == (&refused.reason, &refused.by)
                    && careful.by == too_much.by =>
            {
                Ok(())
            }
            _ => Err(format!("{refusals:?}")),
        })
    })
    .await;
    let control =
        Topic::named_on(stillwell_tests::Broker::shared(), &format!("{}.control", setting.dataset()));
    // Which of the two readers refused first nobody knows.
    let key = format!("{}/0/refusal/the guarded one", setting.dataset());
    let published = control.read();
    let mut of_it = published.iter().rev().filter(|record| record.key.as_deref() == Some(key.as_bytes()));
    let last = of_it.next().expect("a record");
    let decoded = Control::decode(last.value.as_deref().expect("a value")).expect("it is one of ours");
    // An empty version that follows, which lists a snapshot, is refused anew.
    assert!(matches!(decoded, Control::Refusal(refusal) if refusal.version >= refused.version));

    // A start in that state: the good version out of the cache stays, and is confirmed; without one it is not ready.
    consumer.shutdown().await.expect("it stops");
    let consumer = guarded(cache.path()).start().await.expect("the good version is in the cache");
    assert_eq!(contents(&consumer.view()), good);
    let empty = scratch();
    let nothing = guarded(empty.path()).spawn().expect("it starts");
    let refused = refusal_of(&nothing).await;
    assert_eq!(refused.held, Version(0));
    assert!(!nothing.is_ready());
    let why = nothing.reader().not_ready().expect("it is not");
    assert!(why.contains("no version is readable yet") && why.contains("min_records"), "{why}");
    nothing.shutdown().await.expect("it stops");

    // A pin is somebody's decision: the guard is not asked.
    let steering = steering(&setting);
    steering.pin(&one(refused.version), "the test", "it is right").await.expect("it can be pinned");
    holds(&consumer, refused.version, &setting.model).await;
    steering.pin(&one(held), "the test", "it was not").await.expect("it can be pinned");
    holds(&consumer, held, &good).await;
    steering.unpin().await.expect("it can be");
    refusal_of(&consumer).await;

    let back: Vec<_> = (0..60)
        .map(|i| {
            let id = format!("P-{i}");
            setting.upsert(&id, json!({"id": id, "price": 2.0, "stock": i}))
        })
        .collect();
    setting.topic.produce(back);
    setting.settled(&consumer).await;
    assert!(consumer.status().readable.refused.is_none());
    wait_until_async("nothing is refused any more", LONG, || {
        let refusals = free.status().pin.refusals;
        let over = refusals.iter().all(|refusal| refusal.by == "the careful one");
        std::future::ready(if over { Ok(()) } else { Err(format!("{refusals:?}")) })
    })
    .await;
    // 60 keys have another value than in its last good version, and 20 are gone.
    wait_until_async("the careful one refuses that too", LONG, || {
        let readable = careful.status().readable;
        std::future::ready(match readable.refused {
            Some(refusal) if refusal.version > too_much.version => Ok(()),
            refused => Err(format!("{refused:?}")),
        })
    })
    .await;
    assert_eq!(contents(&careful.view()), good);
    for consumer in [consumer, careful, free] {
        consumer.shutdown().await.expect("it stops");
    }
    producer.shutdown().await.expect("it stops");
}

async fn refusal_of(consumer: &Consumer) -> stillwell::format::control::Refusal {
    wait_until_async("the version is refused", LONG, || {
        let readable = consumer.status().readable;
        std::future::ready(readable.refused.clone().ok_or(format!("{readable:?}")))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_topic_that_is_deleted_or_made_anew_unpins_nobody() {
    let mut setting = Setting::new("unpinned-by-nobody", 1, SCHEMA);
    produce(&mut setting, 0);
    let producer = setting.producer().await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let (first, before) = (consumer.view().version(), setting.model.clone());
    produce(&mut setting, 1);
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("it stops");
    let steering = steering(&setting);
    steering.pin(&one(first), "the test", "").await.expect("it can be pinned");
    let start = || {
        Consumer::builder(setting.dataset())
            .bootstrap_servers(&setting.bootstrap)
            .blobs(setting.blobs())
            .cache_dir(cache.path())
            .look_every(Duration::from_millis(200))
            .max_backoff(Duration::from_millis(500))
            .start()
    };
    let says = async |consumer: &Consumer, what: &str| {
        wait_until_async("the reader says what is wrong", LONG, || {
            let control = consumer.status().pin.control;
            std::future::ready(match control.as_deref().is_some_and(|error| error.contains(what)) {
                true => Ok(()),
                false => Err(format!("{control:?}")),
            })
        })
        .await;
        let status = consumer.status();
        assert!(status.readable.pinned && status.pin.pinned.is_some(), "{status:?}");
        assert_eq!((consumer.view().version(), contents(&consumer.view())), (first, before.clone()));
    };
    let consumer = start().await.expect("it starts");
    holds(&consumer, first, &before).await;
    let name = format!("{}.control", setting.dataset());
    setting.topic.beside(&name).delete();
    says(&consumer, "was deleted").await;
    consumer.shutdown().await.expect("it stops");
    let consumer = start().await.expect("it starts where it was");
    says(&consumer, "was deleted").await;
    let broker = stillwell_tests::Broker::shared();
    Topic::create_on(broker, &name, 1, &[("cleanup.policy", "compact")]);
    says(&consumer, "made anew").await;
    consumer.shutdown().await.expect("it stops");
    let consumer = start().await.expect("it starts where it was");
    says(&consumer, "made anew").await;
    steering.unpin().await.expect("it can be");
    setting.settled(&consumer).await;
    let status = consumer.status().pin;
    assert!(status.control.is_none() && status.pinned.is_none(), "{status:?}");
    consumer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_without_a_control_topic_reads() {
    let mut setting = Setting::new("uncontrolled", 1, SCHEMA);
    produce(&mut setting, 0);
    let producer = setting.producer().await;
    let cache = scratch();
    let consumer = Consumer::builder(setting.dataset())
        .bootstrap_servers(&setting.bootstrap)
        .blobs(setting.blobs())
        .cache_dir(cache.path())
        .control(format!("{}.nowhere", setting.dataset()))
        .start()
        .await
        .expect("it starts");
    setting.settled(&consumer).await;
    assert!(consumer.status().pin.control.is_none(), "there being none is no mistake");
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("it stops");
}
