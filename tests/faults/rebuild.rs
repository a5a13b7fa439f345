//! A rebuild that dies at each of its steps begins again, and is one version in the end.

use std::os::unix::process::ExitStatusExt as _;

use serde_json::{Value, json};
use stillwell::failpoint::SELDOM;
use stillwell_tests::{Broker, Running, Setting, Topic, scratch, stillwell, wait_until};

use crate::SCHEMA;
use crate::ground::{instance, says};
use crate::history::{DEADLINE, History, good};

/// What a process that aborts ends with.
const ABORT: i32 = 6;

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_dies_at_each_of_its_steps_is_one_version_in_the_end() {
    let mut setting = Setting::new("rebuilds", 2, SCHEMA);
    let first: Vec<_> = (0..200).map(|n| good(&mut setting, &format!("P-{n}"), 1.0)).collect();
    setting.topic.produce(first);
    let mut owner = instance(&setting, "owner", None);
    owner.start(None);
    says(&mut owner, &format!("/v1/datasets/{}/records/P-199", setting.dataset()), "P-199");
    let consumer = setting.consumer(scratch().path()).await;
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    owner.kill();
    let before = History::of(&setting).valid.len();

    setting.topic.delete();
    wait_until("the topic is gone", DEADLINE, || match setting.topic.partitions() {
        0 => Ok(()),
        partitions => Err(partitions),
    });
    Topic::create_on(Broker::shared(), setting.topic.name(), 2, &[]);
    setting.model.clear();
    let anew: Vec<_> = (100..300).map(|n| good(&mut setting, &format!("P-{n}"), 2.0)).collect();
    setting.topic.produce(anew);

    let config = setting.dir.path().join("owner").join("stillwell.toml");
    let mut asking = Running::start(
        stillwell(["rebuild", setting.dataset(), "--yes", "--deletes", "--output", "json", "-c"]).arg(config),
    );
    asking.wait_for_text("waiting for the owner", DEADLINE);
    let steps = SELDOM.iter().filter(|step| step.starts_with("rebuild."));
    let shared =
        ["store.put", "store.stored", "announce.begin", "announce.announcements", "announce.committed"];
    for step in steps.chain(&shared) {
        owner.start(Some(&format!("{step}=return(abort)")));
        let ended = wait_until(&format!("it dies at {step}"), DEADLINE, || {
            owner.ended().ok_or_else(|| owner.log_of_this_process())
        });
        assert_eq!(ended.signal(), Some(ABORT), "{step}: {}", owner.log());
        let reached = History::of(&setting).valid.len();
        let most = if *step == "announce.committed" { before + 1 } else { before };
        assert_eq!(reached, most, "after its death at {step}");
    }
    owner.start(None);
    let done = asking.wait(DEADLINE).expect_code(0);
    let done: Value = serde_json::from_str(&done.stdout).expect("JSON");
    assert_eq!(done["version"], json!(before + 1), "{done}");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let record = good(&mut setting, "after", 3.0);
    setting.topic.produce([record]);
    setting.settled(&consumer).await;
    consumer.shutdown().await.expect("it stops");
    owner.kill();
    History::of(&setting).assert_gapless().assert_no_branch();
}
