//! The binary as its user runs it: arguments, exit codes, what it prints.

#![expect(clippy::unwrap_used, reason = "what a test cannot set up fails it")]

mod arguments;
mod basics;
mod demo;
mod serving;
