//! Writers that stop, are given up, and come back.

use stillwell_tests::Broker;
use stillwell_tests::campaign::{Plan, Scene, seeded};

#[test]
fn a_zombie_writes_nothing_that_anybody_sees() {
    seeded(|seed| {
        let mut scene = Scene::set(Broker::shared(), &Plan::new(seed).writers(2))?;
        let points = [
            "takeover.fenced",
            "takeover.begun",
            "announce.announcements",
            "announce.committed",
            "clean.confirmed",
            "clean.delete",
        ];
        let point = *scene.chance.pick(&points);
        scene.stopped_at(point, false)?;
        scene.finish()
    });
}

#[test]
fn a_shard_that_goes_and_comes_back_meets_its_old_log() {
    seeded(|seed| {
        let mut scene = Scene::set(Broker::shared(), &Plan::new(seed).writers(2))?;
        scene.there_and_back()?;
        scene.finish()
    });
}
