//! What failed, and what becomes of it.

pub mod letter;
