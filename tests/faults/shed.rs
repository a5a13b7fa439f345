//! Death in the midst of shedding: what is shed is taken out of the log for good, or not at all.

use std::os::unix::process::ExitStatusExt as _;

use stillwell_tests::{Setting, scratch, wait_until, wait_until_async};

use crate::SCHEMA;
use crate::ground::instance;
use crate::history::{DEADLINE, History, good};

/// Records of half a kilobyte: three times what the log may hold.
const ALL: usize = 12_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_dies_while_it_sheds_goes_on_with_what_is_left() {
    let mut setting = Setting::new("sheds", 1, SCHEMA);
    let mut producer = instance(&setting, "one", Some("producer"));
    let config = setting.dir.path().join("one").join("stillwell.toml");
    let plain = std::fs::read_to_string(&config).expect("it was written");
    let shedding = plain.replace(
        "[datasets.",
        "[producer.spill]\nmax_log_size = \"2MB\"\nshed = \"sample\"\n\
         [producer.pacing]\nmax_records_per_second = 50\n[datasets.",
    );
    let shedding =
        shedding.replace("batch_timeout", "max_batch_size = 100\nmax_pending_records = 100\nbatch_timeout");
    std::fs::write(&config, shedding).expect("it can be written");

    let padding = "x".repeat(450);
    let records: Vec<_> =
        (0..ALL).map(|n| good(&mut setting, &format!("P-{n}-{padding}"), n as f64)).collect();
    setting.topic.produce(records);
    for passed in 0..2 {
        producer.start(Some(&format!("log.shed={passed}*off->return(abort)")));
        let ended = wait_until("it dies while it sheds", DEADLINE, || {
            producer.ended().ok_or_else(|| producer.log_of_this_process())
        });
        assert_eq!(ended.signal(), Some(6), "{}", producer.log());
    }

    // Without a limit there is nothing to shed: what is left is published, and nothing of it twice.
    std::fs::write(&config, plain).expect("it can be written");
    producer.start(None);
    wait_until_async("all is accounted for", DEADLINE, || {
        let at = History::of(&setting).valid.last().map(|last| last.positions[0].offset);
        std::future::ready(if at == Some(ALL as i64) { Ok(()) } else { Err(format!("{at:?}")) })
    })
    .await;
    let history = History::of(&setting);
    history.assert_gapless().assert_no_branch();
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    let upserts: u64 = history.valid.iter().map(|version| version.upserts).sum();
    let view = consumer.view();
    assert_eq!(view.records(), upserts, "each key was written once");
    assert!((1..ALL as u64).contains(&upserts), "some of {ALL} were shed, {upserts} were not");
    for value in view.iter() {
        let value = value.expect("it reads");
        let json: serde_json::Value =
            serde_json::from_str(&value.to_json().expect("it is JSON")).expect("it parses");
        assert_eq!(setting.model.get(value.key()), Some(&json));
    }
    producer.kill();
    consumer.shutdown().await.expect("it stops");
}
