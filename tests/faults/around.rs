//! Broker, network, store, disk and clock fail once each; `make faults` goes on with that for as long as it is told to.
//! That takes longest here: by its name it starts first.

use stillwell_tests::Broker;
use stillwell_tests::campaign::{Plan, Scene, seeded};

use crate::scenes;

#[test]
fn a_broker_that_is_killed_or_frozen_costs_time_and_nothing_else() {
    seeded(scenes::broker);
}

#[test]
fn a_network_that_does_its_worst_costs_time_and_nothing_else() {
    seeded(scenes::network);
}

#[test]
fn a_store_that_is_away_costs_time_and_nothing_else() {
    seeded(scenes::store);
}

#[test]
fn a_disk_that_breaks_costs_time_and_nothing_else() {
    seeded(scenes::broken);
}

#[test]
fn a_clock_that_is_wrong_by_an_hour_costs_nothing() {
    seeded(scenes::clocks);
}

/// Half of what the campaign plays of it, the log for certain.
#[test]
fn a_log_or_cache_that_is_damaged_costs_time_and_nothing_else() {
    seeded(|seed| {
        let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
        for part in ["log", "cache", "log", "log"] {
            scene.disk_damaged(part)?;
        }
        scene.finish()
    });
}
