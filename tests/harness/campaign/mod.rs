//! The campaign: a dataset that is written, killed, read and checked, all of it from one seed.
//!
//! ```text
//!  chance -> workload -> source topic -> [stillwell run] -> announcements, letters, blobs, HTTP
//!               |             |                |                      |
//!               |           fold            instance      announced, blobs, watcher
//!               +------------ + ---- oracle ---+----------------------+
//! ```
//!
//! Owns: the workload, the processes, the model and the ten checks. Does not own: which faults there are (tests/crash,
//! tests/faults). What is in topics, blobs and readers is judged without Stillwell's own code: topics are read by
//! librdkafka, blobs and announcements by apache-avro, versions over HTTP. Two checks take a process's word for what nobody
//! else can see: 6 what `stillwell log inspect` and the writer's log say of its log, 8 what `/metrics` says of log and queue.

pub mod announced;
pub mod archive;
pub mod blobs;
pub mod chance;
pub mod fair;
pub mod faults;
pub mod fold;
pub mod instance;
pub mod oracle;
pub mod probe;
pub mod row;
pub mod scene;
pub mod store;
pub mod watcher;
pub mod workload;

pub use chance::{Chance, seed};
pub use oracle::{CHECKS, Tally, Violation};
pub use scene::{Plan, Scene};

/// Runs `scene` with the seed of `STILLWELL_SEED`, or a new one; panics with the seed and the promise that was broken.
#[track_caller]
pub fn seeded(scene: impl FnOnce(u64) -> Result<Tally, Violation>) {
    let seed = seed();
    match scene(seed) {
        Ok(tally) => println!("STILLWELL_SEED={seed}: {tally}"),
        Err(violation) => panic!("STILLWELL_SEED={seed}: {violation}"),
    }
}
