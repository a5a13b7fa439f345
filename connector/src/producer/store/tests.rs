//! Retries, the breaker and time limits of an upload; how uploads overlap.

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::watch;

use super::*;
use crate::blob::faulty::{Beside, Call, Control, Faults, Faulty};
use crate::gauge::Strain;
use crate::producer::build::tests::versions;
use crate::producer::circuit::Circuits;
use crate::record::{SourcePartition, TopicId};
use crate::version::Shard;

const LONG: Duration = Duration::from_secs(60);

/// An uploader to a store with these faults, and what a test looks at.
fn uploader(faults: Faults, reset: Duration) -> (Uploader, Control, Store) {
    let inner = Store::open("memory://").unwrap();
    let (store, control) = Faulty::wrap(inner.clone(), faults, Entropy::seeded(1));
    let performance = Performance { write_timeout: Duration::from_millis(100), ..Performance::default() };
    (uploader_to(store, &performance, reset), control, inner)
}

fn uploader_to(store: Store, performance: &Performance, reset: Duration) -> Uploader {
    let reliability = Reliability {
        max_retry_attempts: 1,
        retry_backoff: Duration::from_millis(1),
        circuit_breaker_threshold: 2,
        circuit_breaker_reset: reset,
        ..Reliability::default()
    };
    let metrics = ProducerMetrics::detached();
    let clock = Clock::system();
    let gate = Circuits::new(&reliability, &clock, &metrics).store;
    let chance = Entropy::seeded(2);
    let pressure = Pressure::new(clock.clone());
    let (store, clock) = ((store, gate), (clock, chance));
    Uploader::new(store, performance, &reliability, clock, pressure, metrics)
}

/// What comes out of a stage with so many uploads at a time, once all of `built` went in.
async fn out_of(store: Store, at_a_time: usize, built: Vec<Built>) -> Vec<Stored> {
    let folder = Folder { dataset: "d".into(), topic_id: TopicId::default(), shard: Shard(0) };
    let storer =
        Storer::new(uploader_to(store, &Performance::default(), LONG), at_a_time, usize::MAX, folder);
    let (built_out, built_in) = mpsc::channel(built.len());
    for built in built {
        built_out.try_send(built).expect("there is room");
    }
    drop(built_out);
    let (stored_out, mut stored_in) = mpsc::channel(1);
    let taken = async {
        let mut taken = Vec::new();
        while let Some(stored) = stored_in.recv().await {
            taken.push(stored);
        }
        taken
    };
    let both = async { tokio::join!(storer.run(built_in, stored_out), taken) };
    let (ended, taken) = tokio::time::timeout(LONG, both).await.expect("nothing stands still");
    ended.expect("all is stored");
    taken
}

/// Versions for the stage behind this one.
pub(in crate::producer) async fn stored(built: Vec<Built>) -> Vec<Stored> {
    out_of(Store::open("memory://").unwrap(), 1, built).await
}

async fn within(time: Duration, put: impl Future<Output = Result<(), blob::Error>>) -> bool {
    tokio::time::timeout(time, put).await.is_ok_and(|put| put.is_ok())
}

async fn until(so: impl Fn() -> bool) {
    let so = async {
        while !so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, so).await.expect("in time");
}

#[tokio::test]
async fn the_time_limit_grows_with_the_blob() {
    let slow = |delay| uploader(Faults { delay, ..Faults::default() }, Duration::from_secs(60)).0;
    // Half a minute, of which it takes half a second where nothing else runs.
    let uploader = slow(Duration::from_millis(500));
    let large = Body::Bytes(vec![0; 30 << 20].into());
    assert!(within(LONG, uploader.put("large", large)).await);
    assert_eq!(uploader.metrics.write_failures_total.get(), 0);
    // A tenth of a second, of a store that takes a day: were it half a second, both might be over when a busy machine looks
    // again, and the put would count as done.
    let uploader = slow(Duration::from_secs(24 * 3_600));
    let small = Body::Bytes(vec![0; 2 << 10].into());
    assert!(!within(Duration::from_secs(1), uploader.put("small", small)).await, "it takes too long");
    assert!(uploader.metrics.write_failures_total.get() > 0);
    assert_eq!(uploader.metrics.active_writes.get(), 0, "given back by who was dropped, too");
}

#[tokio::test]
async fn nothing_is_tried_while_it_is_open_and_nothing_given_up() {
    let (uploader, control, inner) =
        uploader(Faults { put_fails: 1.0, ..Faults::default() }, Duration::from_secs(60));
    let body = || Body::Bytes(vec![1; 10].into());
    let mut waiting = std::pin::pin!(uploader.put("a", body()));
    let opened = until(|| uploader.gate.state() == Circuit::Open);
    tokio::select! {
        put = waiting.as_mut() => panic!("it is away: {put:?}"),
        () = opened => {}
    }
    assert_eq!(control.injected(), 4, "two failures of two attempts each");
    assert_eq!(uploader.pressure.of(Strain::StoreFailures), 1.0, "and the pace hears of it");
    assert!(!within(Duration::from_millis(100), uploader.put("b", body())).await);
    assert_eq!(control.injected(), 4);
    // Somebody else finds that it is back.
    control.set(false);
    uploader.gate.succeeded();
    assert!(within(LONG, waiting).await);
    assert_eq!(inner.head("a").await.unwrap(), Some(10));
    assert_eq!(uploader.pressure.of(Strain::StoreFailures), 0.0);
    assert!(uploader.pressure.of(Strain::StoreLatency) > 0.0);
}

#[tokio::test]
async fn a_large_blob_is_not_the_probe() {
    let faults = Faults { put_fails: 1.0, other_fails: 1.0, ..Faults::default() };
    let (uploader, control, inner) = uploader(faults, Duration::from_millis(50));
    uploader.gate.failed("away".into());
    uploader.gate.failed("away".into());
    let large = Body::Bytes(vec![0; LARGEST_PROBE as usize + 1].into());
    let mut put = std::pin::pin!(uploader.put("large", large));
    // It asks, again and again.
    tokio::select! {
        put = put.as_mut() => panic!("it is away: {put:?}"),
        () = until(|| control.injected() > 2) => {}
    }
    assert_eq!(uploader.metrics.write_failures_total.get(), 0, "but did not send");
    control.set(false);
    assert!(within(LONG, put).await);
    assert_eq!(inner.head("large").await.unwrap(), Some(LARGEST_PROBE + 1));
}

#[tokio::test]
async fn what_is_there_already_is_not_sent_again_over_a_network() {
    let far = Faults { far: true, ..Faults::default() };
    for (faults, before, after) in [
        (far.clone(), "other", "other"),
        // Of another length it is not what its name says.
        (far, "torn", "bytes"),
        (Faults::default(), "other", "bytes"),
    ] {
        let (uploader, _, inner) = uploader(faults, Duration::from_secs(60));
        inner.put("a", Bytes::from_static(before.as_bytes())).await.unwrap();
        uploader.put("a", Body::Bytes(Bytes::from_static(b"bytes"))).await.unwrap();
        assert_eq!(inner.get_bytes("a").await.unwrap(), after, "{before}");
    }
}

#[tokio::test]
async fn what_will_never_be_stored_is_an_error_at_once() {
    let (uploader, ..) = uploader(Faults::default(), Duration::from_secs(60));
    let error = uploader.put("no//name", Body::Bytes(vec![].into())).await.unwrap_err();
    assert!(matches!(error, blob::Error::Name { .. }), "{error}");
    assert_eq!(uploader.gate.report().error, None);
}

/// Makes a store as slow as the test needs: no blob is stored before so many are on their way, and the first one not before
/// all others of these are.
#[derive(Debug)]
struct Slow {
    first: String,
    at_a_time: usize,
    begun: watch::Sender<usize>,
    done: watch::Sender<usize>,
    /// How many had begun when the first one was done.
    begun_by_then: watch::Sender<usize>,
}

impl Beside for Slow {
    fn before<'a>(&'a self, call: Call, name: &'a str) -> BoxFuture<'a, Result<(), blob::Error>> {
        Box::pin(async move {
            if call != Call::Put {
                return Ok(());
            }
            self.begun.send_modify(|begun| *begun += 1);
            let all = |count: &usize| *count >= self.at_a_time;
            let _ = self.begun.subscribe().wait_for(all).await;
            if name == self.first {
                let _ = self.done.subscribe().wait_for(|done| *done >= self.at_a_time - 1).await;
                self.begun_by_then.send_replace(*self.begun.borrow());
            }
            Ok(())
        })
    }

    fn stored(&self, _: &str) {
        self.done.send_modify(|done| *done += 1);
    }
}

#[tokio::test]
async fn uploads_overlap_up_to_the_pools_size_and_come_out_in_order() {
    const AT_A_TIME: usize = 3;
    let (_ground, built) = versions(8);
    let names: Vec<String> = built.iter().map(|built| built.delta.blob.name.clone()).collect();
    let inner = Store::open("memory://").unwrap();
    let counter = || watch::channel(0).0;
    let slow = Arc::new(Slow {
        first: names.first().expect("eight").clone(),
        at_a_time: AT_A_TIME,
        begun: counter(),
        done: counter(),
        begun_by_then: counter(),
    });
    let stored = out_of(Faulty::beside(inner.clone(), slow.clone()), AT_A_TIME, built).await;
    let versions: Vec<u64> = stored.iter().map(|stored| stored.delta.version.0).collect();
    assert_eq!(versions, (1..=8).collect::<Vec<_>>());
    assert_eq!(*slow.begun_by_then.borrow(), AT_A_TIME, "no more than so many at a time");
    for name in &names {
        assert!(inner.head(name).await.unwrap().is_some(), "{name}");
    }
}

/// A source that was made anew has other records at the same offsets: each letter keeps its own value.
#[tokio::test]
async fn the_value_of_a_letter_is_not_put_over_by_that_of_another_record() {
    let (uploader, _, inner) = uploader(Faults::default(), Duration::from_secs(60));
    let folder = Folder { dataset: "products".into(), topic_id: TopicId([1; 16]), shard: Shard(0) };
    let storer = Storer::new(uploader, 1, 2_000, folder);
    let letter = |id: u8| Letter {
        source: SourcePartition { topic: "in".into(), topic_id: TopicId([id; 16]), partition: 0 },
        offset: 7,
        timestamp: 8,
        stage: "VALUE_CONVERTER".to_owned(),
        class: "stillwell.codec.Syntax".to_owned(),
        message: "it ends too early".to_owned(),
        key: None,
        value: Some(vec![id; 3_000].into()),
        headers: Vec::new(),
    };
    let mut names = Vec::new();
    for id in [2, 3, 2] {
        let Elsewhere::Value(name) = storer.store_what_is_too_large(&letter(id)).await.unwrap() else {
            panic!("it is too large for its topic");
        };
        names.push((name, id));
    }
    assert_ne!(names[0], names[1]);
    assert_eq!(names[0], names[2]);
    for (name, id) in names {
        assert_eq!(inner.get_bytes(&name).await.unwrap(), vec![id; 3_000]);
    }
}
