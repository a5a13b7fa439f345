//! Processes that are killed at any moment, and everything they promised, checked from outside.
//!
//! Each test prints its seed, and `STILLWELL_SEED` repeats it: the same workload, the same faults in the same order. What
//! the system's scheduler does between them is its own.

mod failpoints;
mod killed;
mod zombies;
