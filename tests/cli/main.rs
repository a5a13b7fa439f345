//! The binary as its user runs it: arguments, exit codes, what it prints.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what a test cannot set up or find fails it"
)]

mod arguments;
mod basics;
mod demo;
mod importing;
mod serving;
mod writing;
