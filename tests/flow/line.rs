//! The whole line, by the library's public names: a topic in, versions out, two consumers that hold what a fold made
//! by other code holds.

use serde_json::json;
use stillwell_tests::scratch;

use crate::setting::Setting;

pub const SCHEMA: &str = r#"{"type": "record", "name": "Product", "fields": [
    {"name": "id", "type": "string"},
    {"name": "price", "type": "double"},
    {"name": "stock", "type": ["null", "int"], "default": null}
]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn records_become_versions_that_two_consumers_hold() {
    let mut setting = Setting::new("products", 2, SCHEMA);
    let caches = [scratch(), scratch(), scratch()];
    let first: Vec<_> = (0..2_500)
        .map(|i| {
            let id = format!("P-{i}");
            setting.upsert(&id, json!({"id": id, "price": f64::from(i) / 4.0, "stock": i}))
        })
        .collect();
    setting.topic.produce(first);

    let producer = setting.producer().await;
    let (one, two) = tokio::join!(setting.consumer(caches[0].path()), setting.consumer(caches[1].path()));
    assert!(one.view().caught_up(), "start() waits until the first load is whole");
    setting.settled(&one).await;
    setting.settled(&two).await;

    let held = one.view();
    let version = held.version();
    let changes = [
        setting.delete("P-7"),
        setting.upsert("P-1", json!({"id": "P-1", "price": 9.5, "stock": null})),
        setting.upsert("new", json!({"id": "new", "price": 1.0, "stock": 1})),
    ];
    setting.topic.produce(changes);
    setting.settled(&one).await;
    setting.settled(&two).await;
    assert_eq!(held.version(), version, "a view that is held never changes");
    assert!(held.get("P-7").expect("it reads").is_some());
    assert!(one.view().get("P-7").expect("it reads").is_none());

    let farewell = producer.shutdown().await.expect("the producer stops");
    assert_eq!(farewell.left_in_log, 0, "{farewell}");
    let late = setting.consumer(caches[2].path()).await;
    setting.settled(&late).await;
    for consumer in [one, two, late] {
        consumer.shutdown().await.expect("it stops");
    }
}
