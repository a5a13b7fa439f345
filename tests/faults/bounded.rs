//! What else is played at random by `make faults`, once each and by a seed that stays, so that `make test` has seen it too:
//! clocks, disks, and the cleaner. Those that take longest in the campaign are cut down to their first steps here.

use stillwell_tests::Broker;
use stillwell_tests::campaign::{Plan, Scene};

use crate::scenes::{self, Outcome};

/// Of every scene here. What the scheduler does between its faults is its own all the same.
const SEED: u64 = 1_961;

#[track_caller]
fn played(scene: impl FnOnce(u64) -> Outcome) {
    match scene(SEED) {
        Ok(tally) => println!("seed {SEED}: {tally}"),
        Err(violation) => panic!("seed {SEED}: {violation}"),
    }
}

#[test]
fn wall_clocks_that_are_wrong_by_an_hour_cost_nothing() {
    played(scenes::clocks);
}

#[test]
fn a_disk_that_is_full_for_a_while_costs_time_and_nothing_else() {
    played(scenes::full);
}

#[test]
fn a_disk_that_breaks_costs_time_and_nothing_else() {
    played(scenes::broken);
}

#[test]
fn what_lies_damaged_on_the_disk_of_a_writer_costs_time_and_nothing_else() {
    played(|seed| {
        let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
        for _ in 0..3 {
            scene.disk_damaged()?;
        }
        scene.finish()
    });
}

#[test]
fn a_writer_that_dies_while_it_cleans_takes_nothing_that_is_kept() {
    played(|seed| {
        let plan = Plan { cleaning: Some([1, 2_000]), rate: 200, batch: [20, 80], ..Plan::new(seed) };
        let mut scene = Scene::set(Broker::shared(), &plan)?;
        scene.died_at(&["clean.delete"])?;
        scene.reader_killed()?;
        scene.finish()
    });
}
