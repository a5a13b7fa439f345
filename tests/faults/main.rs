//! What goes wrong around Stillwell, put there by hand: on the wire, in the topics, in the blob store. Each rule of
//! "nothing lost, nothing twice" has a test here.
//!
//! `around`, `scenes` and `campaign` do it to the scenes of tests/crash, the last at random: `make faults`.

#![expect(clippy::indexing_slicing, reason = "what a test cannot find fails it")]

mod around;
mod backlog;
mod branch;
mod campaign;
mod ground;
mod history;
mod letters;
mod outage;
mod power;
mod rebuild;
mod refusing;
mod scenes;
mod shed;
mod takeover;
mod transactions;

/// The dataset of these tests.
const SCHEMA: &str = r#"{"type": "record", "name": "Product", "fields": [
    {"name": "id", "type": "string"},
    {"name": "price", "type": "double"}
]}"#;
