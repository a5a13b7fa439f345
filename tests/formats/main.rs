//! Golden bytes, other tools reading what Stillwell writes, and bytes that nobody should have written.

#![expect(clippy::indexing_slicing, reason = "what a test cannot find fails it")]

mod allocator;
mod corpus;
mod hostile;
mod mutate;
mod play;
mod record;
mod reference;
mod resolution;
mod values;
