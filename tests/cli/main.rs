//! The binary as its user runs it: arguments, exit codes, what it prints.

mod arguments;
mod serving;
