//! Kafka answers and refuses announcements: the circuit before its transactions opens, is shown, and closes by itself.

use stillwell_tests::{Setting, scratch, wait_until};

use crate::SCHEMA;
use crate::ground::{instance_with, says};
use crate::history::{DEADLINE, History, announcements, good};

/// Two failures open a circuit, for a moment.
const RELIABILITY: &str = "\
[producer.reliability]
circuit_breaker_threshold = 2
circuit_breaker_reset = \"5s\"
";
/// Takes the marker of an abort (78 bytes), and neither an announcement nor an epoch record.
const TOO_SMALL: &str = "100";
/// Kafka's default.
const LARGE_ENOUGH: &str = "1048588";

/// Sets the largest record that the announcement topic takes. The rest is as Stillwell made it.
fn limit(setting: &Setting, bytes: &str) {
    announcements(setting).set(&[
        ("cleanup.policy", "delete"),
        ("retention.ms", "-1"),
        ("retention.bytes", "-1"),
        ("max.message.bytes", bytes),
    ]);
}

/// What a metric says of Kafka's circuit.
fn of_kafka(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find(|line| {
        line.starts_with(&format!("{name}{{")) && line.contains("dependency=\"kafka_transactions\"")
    });
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} of it in\n{metrics}"))
}

/// The first failure is an announcement, which ends its life, and the second the next life's epoch record: it opens only where
/// takeovers that fail are counted too.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_refuses_announcements_opens_the_circuit_until_it_takes_them() {
    let mut setting = Setting::new("refusing", 1, SCHEMA);
    let cache = scratch();
    let mut instance = instance_with(&setting, "one", None, RELIABILITY);
    let before = [good(&mut setting, "before", 1.0)];
    setting.topic.produce(before);
    instance.start(None);
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    says(&mut instance, "/health", r#""kafka_transactions":"closed""#);

    limit(&setting, TOO_SMALL);
    let meanwhile: Vec<_> =
        (0..10).map(|n| good(&mut setting, &format!("meanwhile {n}"), f64::from(n))).collect();
    setting.topic.produce(meanwhile);
    let health = wait_until("/health shows that the circuit is open", DEADLINE, || {
        let body = instance.ask("/health")?.body;
        if body.contains(r#""kafka_transactions":"open""#) { Ok(body) } else { Err(body) }
    });
    assert!(health.contains("the circuit before kafka_transactions is open, versions wait"), "{health}");
    // As long as all is refused it is half-open at the best.
    let metrics = wait_until("it tells its metrics", DEADLINE, || instance.ask("/metrics"));
    assert!(of_kafka(&metrics.body, "stillwell_circuit_state") > 0.0);
    assert!(of_kafka(&metrics.body, "stillwell_circuit_trips_total") > 0.0);
    assert!(consumer.view().get(b"meanwhile 0").expect("it reads").is_none(), "nothing refused is shown");

    limit(&setting, LARGE_ENOUGH);
    setting.settled(&consumer).await;
    says(&mut instance, "/health", r#""kafka_transactions":"closed""#);
    let metrics = wait_until("it tells its metrics", DEADLINE, || instance.ask("/metrics"));
    assert_eq!(of_kafka(&metrics.body, "stillwell_circuit_state"), 0.0);
    let after = [good(&mut setting, "after", 2.0)];
    setting.topic.produce(after);
    setting.settled(&consumer).await;
    assert!(instance.stop(DEADLINE).success());
    consumer.shutdown().await.expect("it stops");
    let history = History::of(&setting);
    history.assert_gapless().assert_no_branch();
    assert!(history.lives.len() >= 2, "a refused announcement ends a life: {:?}", history.lives);
}
