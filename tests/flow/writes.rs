//! `Producer::write`: records from within, and the version that they are read in.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use stillwell::format::announcement::Message;
use stillwell::{ErrorKind, Producer, Publication, Version, Write};
use stillwell_tests::{Topic, bootstrap, scratch, unique};

use crate::line::SCHEMA;
use crate::setting::{Model, Setting, contents};

const LONG: Duration = Duration::from_secs(180);

/// The first version of each position: by partition, (version, next offset) in order.
fn announced(dataset: &str) -> BTreeMap<i32, Vec<(Version, i64)>> {
    let mut positions: BTreeMap<i32, Vec<(Version, i64)>> = BTreeMap::new();
    for message in Topic::named(&format!("{dataset}.announcements")).read() {
        let Ok(Message::Announcement(announcement)) = Message::decode(&message.value.unwrap_or_default())
        else {
            continue;
        };
        for position in &announcement.positions {
            let of = positions.entry(position.source.partition).or_default();
            of.push((announcement.version, position.offset));
        }
    }
    positions
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_resolves_to_the_first_version_that_holds_it() {
    let mut setting = Setting::new("products", 3, SCHEMA);
    let producer = setting.producer().await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;

    let mut published = Vec::new();
    for round in 0..5 {
        // Several at a time, each on its own; then all together.
        let writes: Vec<_> = (0..20)
            .map(|n| {
                let (key, value) =
                    (format!("P-{n}"), json!({"id": format!("P-{n}"), "price": 1.0, "stock": round}));
                setting.model.insert(key.clone().into(), value.clone());
                Write::upsert(key, value.to_string()).header("round", round.to_string())
            })
            .collect();
        let mut under_way = Vec::new();
        for write in writes {
            under_way.push(producer.write([write]).await.expect("it is taken"));
        }
        for written in under_way {
            match written.published(LONG).await {
                Publication::Published { version, records } => published.push((version, records[0].clone())),
                other => panic!("{other}"),
            }
        }
        let last = published.iter().map(|(version, _)| *version).max().expect("some");
        consumer.watch().wait_for(|readable| readable.version >= last).await.expect("it lives");
        assert_eq!(contents(&consumer.view()), setting.model, "read your writes");
    }
    // Said of the announcements by what reads them here.
    let positions = announced(setting.dataset());
    for (version, landed) in &published {
        let first = positions[&landed.partition].iter().find(|(_, offset)| *offset > landed.offset);
        assert_eq!(first.map(|(first, _)| first), Some(version), "{landed}");
    }

    let gone: Vec<_> = (0..10).map(|n| format!("P-{n}")).collect();
    let publication =
        producer.write(gone.iter().map(|key| Write::delete(key.clone()))).await.expect("taken").await;
    let Publication::Published { version, records } = publication else { panic!("{publication}") };
    assert_eq!(records.len(), 10);
    consumer.watch().wait_for(|readable| readable.version >= version).await.expect("it lives");
    for key in &gone {
        setting.model.remove(key.as_bytes());
    }
    assert_eq!(contents(&consumer.view()), setting.model);
    let messages = setting.topic.read();
    assert!(messages.iter().any(|message| message.header("round") == Some("4")));

    let bad =
        [Write::upsert("a", r#"{"id":"a","price":1}"#), Write::upsert("b", r#"{"id":"b","price":"much"}"#)];
    let error = producer.write(bad).await.expect_err("the second does not fit");
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.chain().contains("record 1") && error.chain().contains("price"), "{}", error.chain());
    assert_eq!(setting.topic.read().len(), messages.len(), "nothing of it was sent");

    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_of_fields_and_raw_is_raw() {
    let dir = scratch();
    let (keyed, raw) = (unique("keyed"), unique("raw"));
    let blobs = format!("file://{}", dir.path().join("blobs").display());
    let builder = |name: &str| {
        Producer::builder(name)
            .bootstrap_servers(bootstrap())
            .source(name)
            .blobs(&blobs)
            .data_dir(dir.path().join(name))
    };
    let producer = builder(&keyed).schema(SCHEMA).key_fields(["id"]).start().await.expect("it starts");
    // The topic is made by the producer: until then a write says so, and sends nothing.
    let value = r#"{"id":"P-1","price":2}"#;
    // Taken before the first try: what changes between a try and the wait counts.
    let mut status = producer.watch();
    let written = loop {
        match producer.write([Write::value(value)]).await {
            Ok(written) => break written,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain()),
        }
        // The topic may be there a moment before the broker tells of it, and then nothing changes any more.
        let _ = tokio::time::timeout(Duration::from_millis(200), status.changed()).await;
    };
    let publication = written.published(LONG).await;
    assert!(publication.version().is_some(), "{publication}");
    let record = Topic::named(&keyed).read().remove(0);
    assert_eq!((record.key.as_deref(), record.value.as_deref()), (Some(&b"P-1"[..]), Some(value.as_bytes())));
    producer.shutdown().await.expect("it stops");

    Topic::create_on(stillwell_tests::Broker::shared(), &raw, 1, &[]);
    let producer = builder(&raw).raw().start().await.expect("it starts");
    let written = producer.write([Write::upsert("k", &b"\xff\x00"[..])]).await.expect("it is taken");
    let publication = written.published(LONG).await;
    let version = publication.version().unwrap_or_else(|| panic!("{publication}"));
    // A write may be told by the topic itself, before the announcer has read its own announcement back.
    let mut announced = producer.announced();
    let held = announced
        .wait_for(|announced| announced.as_ref().is_some_and(|announced| announced.version >= version))
        .await
        .expect("it lives")
        .clone()
        .expect("announced")
        .view;
    let held: Vec<_> = held.iter().map(|value| value.expect("it reads").key().to_vec()).collect();
    assert_eq!(held, [b"k"]);
    producer.shutdown().await.expect("it stops");
}

/// What was written and is not in a version when the producer ends is durable: the next one publishes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_between_leaves_it_durable() {
    let mut setting = Setting::new("products", 1, SCHEMA);
    let producer = setting.producer().await;
    let written =
        producer.write([Write::upsert("P-1", r#"{"id":"P-1","price":2}"#)]).await.expect("it is taken");
    producer.shutdown().await.expect("it stops");
    match written.published(LONG).await {
        Publication::Published { records, .. } | Publication::Durable { records } => {
            assert_eq!(records[0].offset, 0)
        }
        other => panic!("{other}"),
    }
    let producer = setting.producer().await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.model = Model::from([(b"P-1".to_vec(), json!({"id": "P-1", "price": 2.0, "stock": null}))]);
    setting.settled(&consumer).await;
    producer.shutdown().await.expect("it stops");
    consumer.shutdown().await.expect("it stops");
}
