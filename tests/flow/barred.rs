//! A webhook whose receiver takes nothing: not let in, and then refusing whatever it is sent.

use std::net::SocketAddr;

use serde_json::Value;
use stillwell_tests::wait_until;

use crate::instance::{Instance, LONG};
use crate::line::SCHEMA;
use crate::listening::{Receiver, row};
use crate::setting::Setting;

#[test]
fn a_webhook_that_takes_nothing_drains_nothing_into_letters() {
    let mut setting = Setting::new("barred", 1, SCHEMA);
    let receiver = Receiver::start(SocketAddr::from(([127, 0, 0, 1], 0)));
    let instance = Instance::new(&setting, "one");
    instance.append("[http]\nadmin_token = \"s3cret\"\n");
    instance.append(&format!(
        r#"
        [datasets."{}".consumer.webhook]
        url = "http://{}/changes"
        batch_size = 1
        retry_backoff = "20ms"
        max_backoff = "100ms"
        max_retry_attempts = 1
        circuit_breaker_threshold = 3
        circuit_breaker_reset = "100ms"
        "#,
        setting.dataset(),
        receiver.address
    ));
    let send = |setting: &mut Setting, word: &str, count: i32| {
        let keys = (0..count).map(|n| format!("{word}-{n}"));
        let records: Vec<_> = keys.map(|key| setting.upsert(&key, row(&key, 1))).collect();
        setting.topic.produce(records);
    };
    let health = |what: &str, fits: &dyn Fn(&Value) -> bool| {
        wait_until(what, LONG, || {
            let (_, health) = instance.get("/health").map_err(|error| error.to_string())?;
            let health: Value = serde_json::from_str(&health).map_err(|error| error.to_string())?;
            if fits(&health["datasets"][0]) { Ok(()) } else { Err(health.to_string()) }
        });
    };
    let letters = || instance.metric("stillwell_dead_letters_total").unwrap_or(0.0);
    let fails_on = |times: f64| {
        let failures = || instance.metric("stillwell_listener_failures_total").unwrap_or(0.0);
        let enough = failures() + times;
        wait_until("it is tried on", LONG, || match failures() {
            failures if failures >= enough => Ok(()),
            failures => Err(failures),
        });
    };
    let takes = |all: usize| {
        wait_until("the receiver took all", LONG, || match receiver.taken() {
            taken if taken.len() >= all => Ok(()),
            taken => Err(format!("{taken:?}")),
        });
        let taken = receiver.taken();
        assert!(taken.is_sorted_by(|a, b| a < b), "once each, by version and key: {taken:?}");
        assert_eq!(taken.len(), all, "{taken:?}");
    };

    // The credentials are wrong: it would be so for anything, and all of the first load is still there to be sent.
    receiver.answer(&[401; 50_000]);
    send(&mut setting, "first", 20);
    let process = instance.started();
    health("health says that it is not let in", &|dataset| {
        let said = dataset["reasons"].to_string().contains("it answered 401; correct the webhook's headers");
        said && dataset["status"] == "degraded" && dataset["circuit"]["webhook"] != "closed"
    });
    fails_on(10.0);
    assert_eq!(letters(), 0.0);
    receiver.answer(&[]);
    takes(20);

    // It refuses what it is sent, whatever that is: three become letters, and then none.
    let held = |dataset: &Value| {
        let said = dataset["reasons"].to_string().contains("/storm?listener=webhook");
        said && dataset["status"] == "degraded" && dataset["listeners"][0]["held"] == true
    };
    receiver.answer(&[422; 50_000]);
    send(&mut setting, "second", 10);
    health("the webhook is held", &held);
    fails_on(6.0);
    assert_eq!(letters(), 3.0);
    receiver.answer(&[]);
    takes(27);
    health("all is well", &|dataset| dataset["listeners"][0]["held"] == false);

    // And once more, until somebody wants the letters.
    receiver.answer(&[422; 50_000]);
    send(&mut setting, "third", 6);
    health("the webhook is held again", &held);
    assert_eq!(letters(), 6.0);
    let route = format!("/admin/datasets/{}/storm?listener=webhook", setting.dataset());
    let (status, shown) = instance.get_as(&route, "s3cret").expect("it answers");
    assert!(status == 200 && shown.contains("held, since 3 sets"), "{status}: {shown}");
    assert_eq!(instance.post(&route, None, "").expect("it answers").0, 401);
    let (status, answer) = instance.post(&route, Some("s3cret"), "").expect("it answers");
    assert!(status == 200 && answer.contains("held, since 3 sets"), "{status}: {answer}");
    let topic = setting.topic.beside(&format!("{}.dlq", setting.dataset()));
    topic.read_until("all are letters", LONG, |read| match read.len() {
        9 => Ok(()),
        other => Err(format!("{other}")),
    });
    receiver.answer(&[]);
    send(&mut setting, "last", 1);
    takes(28);
    assert_eq!(letters(), 9.0);
    process.stop(LONG);
    receiver.stop();
}
