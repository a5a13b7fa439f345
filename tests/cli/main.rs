//! The binary as its user runs it: arguments, exit codes, what it prints.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what a test cannot set up or find fails it"
)]

mod arguments;
mod away;
mod basics;
mod container;
mod debian;
mod demo;
mod exporting;
mod history;
mod importing;
mod letters;
mod log;
mod nowhere;
mod readme;
mod refusals;
mod serving;
mod writing;
