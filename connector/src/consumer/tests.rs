//! A consumer as a whole, by librdkafka's broker for tests.

use std::time::Duration;

use super::follow::tests::World;
use super::listen::{ChangeSet, Failed, Listener, Listening};
use super::*;
use crate::kafka::{Admin, Cluster, Outgoing, Sender};

/// Longest that anything may take.
const LONG: Duration = Duration::from_secs(90);

struct Nobody;

impl Listener for Nobody {
    async fn changed(&self, _: &ChangeSet<'_>) -> std::result::Result<(), Failed> {
        Ok(())
    }
}

/// Whoever embeds a reader may drop the runtime first: fields of a struct go in their order.
#[test]
fn a_runtime_that_ends_before_its_reader_ends_the_readers_threads() {
    let cluster = Cluster::start(1).unwrap();
    let world = World::new();
    let options = Options {
        kafka: cluster.options("reader"),
        listeners: vec![Listening::new("nobody", Nobody)],
        ..world.options()
    };
    cluster.create_topic(&options.announcements, 1).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let consumer = runtime.block_on(async {
        let consumer = Consumer::spawn(options).unwrap();
        let reached = async {
            while consumer.status().tail.reachable != Some(true) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LONG, reached).await.expect("Kafka is there");
        consumer
    });
    let (ended, end) = std::sync::mpsc::channel();
    let ending = std::thread::spawn(move || {
        drop(runtime);
        ended.send(()).unwrap();
    });
    end.recv_timeout(LONG).expect("the runtime waits for no thread of the reader's");
    ending.join().unwrap();
    assert_eq!(consumer.view().version(), Version(0), "it reads on");
    let another = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    another.block_on(consumer.shutdown()).expect("none of its threads panicked");
}

/// What a program does that reads something and is over, without [`Consumer::shutdown`].
#[test]
fn a_program_that_ends_once_a_version_is_readable_ends_in_silence() {
    let cluster = Cluster::start(1).unwrap();
    let (topic, kafka) = (World::new().options().announcements, cluster.options("writer"));
    cluster.create_topic(&topic, 1).unwrap();
    let writing = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = writing.block_on(async {
        let info = Admin::new(&kafka).unwrap().describe(&topic).await.unwrap().expect("it is there");
        let mut world = World::of(info.id);
        let first = world.write(0..1_000).await;
        let value = Some(&first.encoded[..]);
        let record = Outgoing { topic: &topic, partition: Some(0), value, ..Outgoing::default() };
        Sender::new(&kafka).unwrap().send(&record).await.unwrap();
        world
    });
    for _ in 0..40 {
        let caches = tempfile::tempdir().unwrap();
        let options = Options {
            kafka: cluster.options("reader"),
            cache_dir: caches.path().to_owned(),
            ..world.options()
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut tasks = runtime.block_on(async {
            let mut consumer = Consumer::spawn(options).unwrap();
            tokio::time::timeout(LONG, consumer.ready()).await.expect("Kafka is there").unwrap();
            assert_eq!(consumer.view().iter().count(), 1_000);
            std::mem::take(&mut consumer.tasks)
        });
        drop(runtime);
        while let Some(ended) = writing.block_on(tasks.join_next()) {
            assert!(!ended.is_err_and(|error| error.is_panic()));
        }
    }
}
