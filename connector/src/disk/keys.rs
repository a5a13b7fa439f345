//! Keys of the column family `log`: a kind, then a chunk's number, big-endian, so that each kind is one run in order.
//!
//! ```text
//!  kind 0  origin    format::origin::Origin; number 0, the only one
//!  kind 1  summary   format::chunk::Summary
//!  kind 2  chunk     format::chunk::Chunk
//! ```
//!
//! Kinds are never used again for anything else. Kind 0 holds facts about the log as a whole; its numbers 1 and up are
//! reserved.

/// Bytes of a key.
pub const KEY: usize = size_of::<Kind>() + size_of::<u64>();
const _: () = assert!(KEY == 9, "keys of logs on disk have nine bytes");

/// What a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// What the log belongs to.
    Origin = 0,
    /// The summary of a chunk.
    Summary = 1,
    /// A chunk.
    Chunk = 2,
}

/// The key of chunk number `seq`.
pub const fn key(kind: Kind, seq: u64) -> [u8; KEY] {
    let [a, b, c, d, e, f, g, h] = seq.to_be_bytes();
    [kind as u8, a, b, c, d, e, f, g, h]
}

/// The number in a key of `kind`; `None` if it is another kind's, or none of ours.
pub fn seq(kind: Kind, key: &[u8]) -> Option<u64> {
    let (&first, rest) = key.split_first()?;
    (first == kind as u8).then_some(())?;
    Some(u64::from_be_bytes(rest.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_by_kind_then_number() {
        let keys =
            [key(Kind::Summary, 0), key(Kind::Summary, 255), key(Kind::Summary, 256), key(Kind::Chunk, 0)];
        assert!(keys.is_sorted());
        assert_eq!(seq(Kind::Summary, &keys[2]), Some(256));
        assert_eq!(seq(Kind::Chunk, &keys[2]), None);
        assert_eq!(seq(Kind::Summary, b""), None);
        assert_eq!(seq(Kind::Summary, b"\x01short"), None);
    }
}
