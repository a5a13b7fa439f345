//! SIGKILL after any number of records, and with parts of the disk gone.

use stillwell_tests::Broker;
use stillwell_tests::campaign::{Plan, Scene, seeded};

#[test]
fn a_writer_that_is_killed_again_and_again_loses_nothing_and_says_nothing_twice() {
    seeded(|seed| {
        let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
        for _ in 0..4 {
            scene.killed()?;
        }
        scene.disk_lost()?;
        scene.reader_killed()?;
        scene.finish()
    });
}
