//! Broker, network and store fail once each; `make faults` goes on with that for as long as it is told to.
//! That takes longest here: by its name it starts first.

use stillwell_tests::campaign::seeded;

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
