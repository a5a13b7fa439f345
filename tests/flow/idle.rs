//! Nothing is announced: the broker is asked rarely, and a version that comes then is readable as soon as any other.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use stillwell::Consumer;
use stillwell::clock::Clock;
use stillwell_tests::{Broker, Tap, Then, protocol, scratch, wait_until_async};

use crate::instance::LONG;
use crate::line::SCHEMA;
use crate::setting::Setting;

const MAX_BACKOFF: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_reader_fetches_once_in_max_backoff_and_wakes_at_once() {
    let mut setting = Setting::new("idle", 1, SCHEMA);
    let product = |setting: &mut Setting, price: f64| {
        let record = setting.upsert("P-1", json!({"id": "P-1", "price": price, "stock": null}));
        setting.topic.produce([record]);
    };
    product(&mut setting, 1.0);
    let producer = setting.producer().await;
    let tap = Tap::on(Broker::shared().bootstrap());
    let fetches: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let seen = fetches.clone();
    tap.watch(move |request| {
        if request.key == protocol::key::FETCH {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(Clock::system().now());
        }
        Then::Forward
    });
    let cache = scratch();
    let consumer = Consumer::builder(setting.dataset())
        .bootstrap_servers(tap.bootstrap())
        .blobs(setting.blobs())
        .cache_dir(cache.path())
        .max_backoff(MAX_BACKOFF)
        .start()
        .await
        .expect("it starts");
    setting.settled(&consumer).await;

    // Some fetches of the start are under way; then one of the tail after another, and of the control topic one in a
    // long while. So of any three in a row the last is sent an idle wait after the first.
    let gap = wait_until_async("the reader idles", LONG, || {
        let fetches = fetches.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let gaps: Vec<_> = fetches.windows(3).map(|three| three[2] - three[0]).collect();
        std::future::ready(match gaps.as_slice() {
            [.., a, b, c, d] if [a, b, c, d].iter().all(|gap| **gap >= MAX_BACKOFF.mul_f64(0.9)) => {
                Ok(**[a, b, c, d].iter().min().expect("four"))
            }
            gaps => Err(format!("{gaps:?}")),
        })
    })
    .await;
    println!("idle: at least {gap:?} from a fetch to the next but one");

    // In the middle of a wait.
    product(&mut setting, 2.0);
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    producer.shutdown().await.expect("it stops");
}
