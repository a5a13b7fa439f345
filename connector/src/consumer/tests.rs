//! A consumer as a whole, by librdkafka's broker for tests.

use std::time::Duration;

use super::follow::tests::World;
use super::listen::{ChangeSet, Failed, Listener, Listening};
use super::*;
use crate::kafka::Cluster;

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
