//! Dead letters: what could not be processed, kept with why, where and when.
//!
//! Owns: what a letter is made of. Does not own: its bytes and headers (`format/letter`), or when it goes out
//! (`producer/announce`).

pub mod letter;
