//! Death at a durable step, and at a second one on the way back. Here some, by seed; `make faults` goes through all.

use stillwell::failpoint::ALL;
use stillwell_tests::Broker;
use stillwell_tests::campaign::{Plan, Scene, seeded};

#[test]
fn a_writer_that_dies_at_any_step_and_again_on_its_way_back_loses_nothing() {
    seeded(|seed| {
        let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
        for _ in 0..2 {
            let [first, second] = [*scene.chance.pick(ALL), *scene.chance.pick(ALL)];
            scene.died_at(&[first, second])?;
        }
        scene.left_open()?;
        scene.finish()
    });
}

#[test]
fn a_step_that_fails_costs_a_life_at_most() {
    seeded(|seed| {
        let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
        for point in ["log.append", "store.put", "announce.offsets", "announce.committed", "takeover.view"] {
            scene.failed_at(point)?;
        }
        scene.finish()
    });
}
