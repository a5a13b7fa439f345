//! Topics: ids, settings, creation, ends.

use std::collections::BTreeMap;

use stillwell::kafka::{Admin, Error, TopicSpec};
use stillwell::record::TopicId;
use stillwell_tests::{Record, Topic, bootstrap, unique};

use super::{LONG, now, options, runtime};

#[test]
fn a_topic_made_anew_has_another_id() {
    let runtime = runtime();
    let admin = Admin::new(&options()).expect("an admin");
    let topic = Topic::create("ids", 3);
    let first = runtime.block_on(admin.describe(topic.name())).expect("described").expect("it is there");
    assert_eq!(first.partitions, 3);
    assert_ne!(first.id, TopicId::default());
    assert_eq!(runtime.block_on(admin.describe(topic.name())).expect("described"), Some(first));

    topic.delete();
    let deadline = now() + LONG;
    while runtime.block_on(admin.describe(topic.name())).expect("described").is_some() {
        assert!(now() < deadline, "still there");
    }
    let spec = TopicSpec {
        name: topic.name().to_owned(),
        partitions: 1,
        replication: None,
        config: BTreeMap::from([("retention.ms".to_owned(), "-1".to_owned())]),
    };
    runtime.block_on(admin.create(&spec)).expect("created");
    let mut second = None;
    while second.is_none() {
        assert!(now() < deadline, "not there");
        second = runtime.block_on(admin.describe(topic.name())).expect("described");
    }
    let second = second.expect("just seen");
    assert_eq!(second.partitions, 1);
    assert_ne!(second.id, first.id);

    let config = runtime.block_on(admin.topic_config(topic.name())).expect("settings");
    assert_eq!(config.get("retention.ms").map(String::as_str), Some("-1"));
    assert_eq!(config.get("cleanup.policy").map(String::as_str), Some("delete"));
    assert!(matches!(runtime.block_on(admin.create(&spec)), Err(Error::Exists { .. })));
}

#[test]
fn what_kafka_refuses_says_what_and_where() {
    let runtime = runtime();
    let admin = Admin::new(&options()).expect("an admin");
    let missing = unique("missing");
    assert_eq!(runtime.block_on(admin.describe(&missing)).expect("described"), None);
    assert_eq!(runtime.block_on(admin.describe(&missing)).expect("asking does not create it"), None);
    let error = runtime.block_on(admin.topic_config(&missing)).expect_err("there is none");
    assert!(matches!(error, Error::Missing { .. }), "{error:?}");
    assert!(error.to_string().contains(&missing) && error.to_string().contains(bootstrap()), "{error}");

    let spec = |partitions, key: &str, value: &str| TopicSpec {
        name: unique("refused"),
        partitions,
        replication: Some(1),
        config: BTreeMap::from([(key.to_owned(), value.to_owned())]),
    };
    for spec in [spec(0, "retention.ms", "1"), spec(1, "retention.ms", "soon"), spec(1, "no.such.key", "1")] {
        let error = runtime.block_on(admin.create(&spec)).expect_err("refused");
        assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
        assert!(error.to_string().contains(&spec.name), "{error}");
    }
    assert_eq!(runtime.block_on(admin.brokers()).expect("answered"), 1);
}

#[test]
fn deleted_records_move_the_low_watermark_and_deleting_twice_is_fine() {
    let runtime = runtime();
    let admin = Admin::new(&options()).expect("an admin");
    let topic = Topic::create("trim", 1);
    topic.produce((0..10).map(|n| Record::upsert("k", n.to_string())));
    let trim = |before| runtime.block_on(admin.delete_records(topic.name(), 0, before));
    trim(7).expect("deleted");
    trim(3).expect("gone already");
    assert_eq!(runtime.block_on(admin.watermarks(topic.name(), 0)).expect("ends"), (7, 10));
    let error = trim(99).expect_err("beyond the end");
    assert!(!error.is_transient(), "{error:?}");
}
