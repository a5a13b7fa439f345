//! Bytes on disk and on the wire, to values and back. No I/O beyond `Read` and `Write`, no tasks.
//!
//! ```text
//! container   delta and snapshot blobs: Avro object container files, plain (as mapped) and stored (compressed)
//! index       beside a snapshot: hash table, key index, page checksums
//! lookup      beside a snapshot in a reader's cache: an index over fields
//! ```
//!
//! Owns: every layout, drawn above its codec, and its golden files (`tests/golden/FORMAT/vN`). Does not own: where the
//! bytes lie (`blob/`, `disk/`, `kafka/`), who maps them (`view/`), what a datum means (`schema/`, `codec/`).

pub mod window;
pub mod container;
pub mod index;
pub mod lookup;
pub mod wire;
pub mod chunk;
pub mod origin;
pub mod announcement;
pub mod succession;
pub mod control;
pub mod letter;
pub mod upload;

#[cfg(test)]
mod golden;
