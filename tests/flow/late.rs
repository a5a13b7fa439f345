//! Whoever comes late needs the last announcement and nothing before it: it names all that makes its version.

use serde_json::json;
use stillwell::format::announcement::Message;
use stillwell_tests::{Record, Topic, scratch, wait_until, wait_until_async};

use crate::instance::LONG;
use crate::line::SCHEMA;
use crate::setting::Setting;

#[tokio::test(flavor = "multi_thread")]
async fn the_last_announcement_alone_is_enough() {
    let mut setting = Setting::new("late", 2, SCHEMA);
    let first: Vec<_> = (0..500)
        .map(|i| {
            let id = format!("P-{i}");
            setting.upsert(&id, json!({"id": id, "price": f64::from(i), "stock": i}))
        })
        .collect();
    setting.topic.produce(first);
    let producer = setting.producer().await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    // Some versions on top, so that the last announcement has a chain to name.
    for round in 0..3 {
        let changes = [
            setting.upsert(&format!("P-{round}"), json!({"id": "again", "price": 0.5, "stock": round})),
            setting.delete(&format!("P-{}", 100 + round)),
        ];
        setting.topic.produce(changes);
        setting.settled(&consumer).await;
    }

    let announcements = Topic::named(&format!("{}.announcements", setting.dataset()));
    let trim = || {
        // A version that lists a snapshot may come at any time, also in the midst of this.
        wait_until("nothing but the last announcement is there", LONG, || {
            let last = announcements.read().pop().expect("announcements").offset;
            announcements.delete_before(0, last);
            let ((lowest, _), left) = (announcements.watermarks()[0], announcements.read().len());
            assert_eq!(lowest, last, "all that came before is gone");
            if left == 1 { Ok(()) } else { Err(format!("{left} are there")) }
        });
    };
    trim();
    let late = scratch();
    let late = setting.consumer(late.path()).await;
    assert!(late.view().caught_up());
    setting.settled(&late).await;
    late.shutdown().await.expect("it stops");

    // It is followed, too, and so it is when the producer that made it has gone and nothing else is left of it.
    let more = setting.upsert("more", json!({"id": "more", "price": 1.0, "stock": null}));
    setting.topic.produce([more]);
    setting.settled(&consumer).await;
    let version = producer.shutdown().await.expect("the producer stops").version.expect("it announced");
    trim();
    let alone = scratch();
    let alone = setting.consumer(alone.path()).await;
    setting.settled(&alone).await;
    assert_eq!(alone.view().version(), version);

    // Nor does the next writer need more, on another machine.
    std::fs::remove_dir_all(setting.data_dir()).expect("its disk is gone");
    let producer = setting.producer().await;
    let change = setting.upsert("P-1", json!({"id": "P-1", "price": 2.0, "stock": null}));
    setting.topic.produce([change]);
    setting.settled(&alone).await;
    setting.settled(&consumer).await;
    assert!(alone.view().version() > version);
    producer.shutdown().await.expect("the producer stops");
    for consumer in [consumer, alone] {
        consumer.shutdown().await.expect("it stops");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_newer_release_announced_is_said_and_the_last_good_version_stays() {
    let mut setting = Setting::new("newer", 1, SCHEMA);
    let record = setting.upsert("P-1", json!({"id": "P-1", "price": 1.0, "stock": null}));
    setting.topic.produce([record]);
    let producer = setting.producer().await;
    let caches = [scratch(), scratch()];
    let consumer = setting.consumer(caches[0].path()).await;
    setting.settled(&consumer).await;
    producer.shutdown().await.expect("the producer stops");
    let announcements = Topic::named(&format!("{}.announcements", setting.dataset()));
    let last = announcements.read().into_iter().rev().find_map(|record| {
        let value = record.value?;
        matches!(Message::decode(&value), Ok(Message::Announcement(_))).then_some(value)
    });
    let mut newer = last.expect("a version was announced");
    newer[2..10].fill(0xaa);
    announcements.produce([Record { partition: Some(0), ..Record::upsert("x", newer) }]);

    // Who was there before, and who comes now.
    let late = setting.consumer(caches[1].path()).await;
    for consumer in [&consumer, &late] {
        let said = wait_until_async("it says that it is too old", LONG, || {
            std::future::ready(consumer.status().tail.newer.ok_or("nothing is said"))
        })
        .await;
        assert!(said.contains("aaaaaaaaaaaaaaaa") && said.contains("upgrade this one"), "{said}");
        setting.settled(consumer).await;
        assert!(consumer.is_ready(), "{:?}", consumer.status());
    }
    for consumer in [consumer, late] {
        consumer.shutdown().await.expect("it stops");
    }
}
