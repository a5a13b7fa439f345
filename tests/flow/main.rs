//! Records through all the stages, on a real broker.

#![expect(clippy::indexing_slicing, reason = "what a test cannot find fails it")]

mod away;
mod bad_input;
mod barred;
mod caches;
mod changed;
mod cleaning;
mod clouds;
mod conflicts;
mod connect;
mod damage;
mod debian;
mod encodings;
mod evolving;
mod foreign;
mod ground;
mod hanging;
mod hooks;
mod idle;
mod instance;
mod kafka;
mod late;
mod letters;
mod line;
mod listening;
mod oversized;
mod pins;
mod pressure;
mod rebalance;
mod rebuild;
mod registry;
mod replays;
mod restart;
mod restore;
mod rights;
mod roles;
mod rollback;
mod rows;
mod s3;
mod secure;
mod sources;
mod shifts;
mod steering;
mod stores;
mod subsets;
mod topic;
mod writes;

use stillwell_tests::setting;
