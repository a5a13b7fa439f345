//! A transaction that nobody ends: the source's consumers wait before it, and the producer says so.

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::json;
use stillwell_tests::{bootstrap, scratch, unique, wait_until};

use crate::instance::{Instance, LONG};
use crate::line::SCHEMA;
use crate::setting::Setting;

const HANGING: &str = "stillwell_source_hanging_transaction_seconds";
const LAG: &str = "stillwell_source_lag_records";

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_shows_as_time_and_as_lag_until_it_ends() {
    let mut setting = Setting::new("hanging", 1, SCHEMA);
    let first = setting.upsert("P-1", json!({"id": "P-1", "price": 1.0, "stock": null}));
    setting.topic.produce([first]);
    let instance = Instance::new(&setting, "one");
    let process = instance.started();
    wait_until("the survey has looked", LONG, || match (instance.metric(HANGING), instance.metric(LAG)) {
        (Some(0.0), Some(0.0)) => Ok(()),
        seen => Err(format!("{seen:?}")),
    });

    let other: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap())
        .set("transactional.id", unique("somebody-else"))
        .set("transaction.timeout.ms", "120000")
        .create()
        .expect("a producer can be made");
    other.init_transactions(LONG).expect("it registers");
    other.begin_transaction().expect("it begins");
    let open = BaseRecord::to(setting.dataset()).key("P-2").payload("{\"id\": \"P-2\", \"price\": 2.0}");
    other.send(open).map_err(|(error, _)| error).expect("it sends");
    other.flush(LONG).expect("it is there");
    // Behind it lies what is committed and cannot be read.
    let behind = setting.upsert("P-3", json!({"id": "P-3", "price": 3.0, "stock": null}));
    setting.topic.produce([behind]);
    wait_until("it shows", LONG, || match (instance.metric(HANGING), instance.metric(LAG)) {
        (Some(open), Some(lag)) if open >= 4.0 && lag >= 2.0 => Ok(()),
        seen => Err(format!("{seen:?}")),
    });

    setting.upsert("P-2", json!({"id": "P-2", "price": 2.0, "stock": null}));
    other.commit_transaction(LONG).expect("it commits");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    wait_until("it shows no more", LONG, || match (instance.metric(HANGING), instance.metric(LAG)) {
        (Some(0.0), Some(0.0)) => Ok(()),
        seen => Err(format!("{seen:?}")),
    });
    process.stop(LONG).expect_code(0);
}
