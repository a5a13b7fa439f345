//! Chunks and summaries found in bytes that nothing else can make sense of any more.
//!
//! Both begin with a magic, say how long they are, and carry a checksum of all of it: what is found is what was written.

use super::pack::{self, PACKED};
use super::summary::SUMMARY_MAGIC;
use super::{Chunk, HEADER, MAGIC, MAGIC_KEPT, Summary, take_range, take_u32};
use crate::format::wire::Take;

/// What was found.
#[derive(Clone, Debug)]
pub enum Carved {
    /// A whole chunk.
    Chunk(Chunk),
    /// A whole summary.
    Summary(Summary),
}

/// All that is whole in `bytes`, with where it begins, in order.
pub fn carve(bytes: &[u8]) -> impl Iterator<Item = (usize, Carved)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = bytes.get(at..)?;
            let begins = |window: &[u8]| {
                [MAGIC, MAGIC_KEPT, PACKED, SUMMARY_MAGIC].iter().any(|magic| window == *magic)
            };
            at += rest.windows(MAGIC.len()).position(begins)?;
            match bytes.get(at..).and_then(whole) {
                Some((carved, length)) => {
                    let found = at;
                    at += length;
                    return Some((found, carved));
                }
                None => at += 1,
            }
        }
    })
}

/// What begins here, and its length, if all of it is as it was written.
fn whole(bytes: &[u8]) -> Option<(Carved, usize)> {
    let is_chunk = bytes.starts_with(MAGIC) || bytes.starts_with(MAGIC_KEPT);
    let mut take = Take::new(bytes);
    take.raw(16).ok()?;
    if bytes.starts_with(PACKED) {
        let length = pack::HEADER + take_u32(&mut take).ok()? as usize;
        let chunk = Chunk::parse_copy(bytes.get(..length)?).ok()?;
        return Some((Carved::Chunk(chunk), length));
    }
    let ranges_at = take_u32(&mut take).ok()? as usize;
    take.raw(8).ok()?;
    let ranges = take_u32(&mut take).ok()?;
    let ranges_at = if is_chunk { ranges_at } else { HEADER };
    let mut take = Take::new(bytes.get(ranges_at..)?);
    for _ in 0..ranges {
        take_range(&mut take).ok()?;
    }
    let length = ranges_at + take.at();
    let bytes = bytes.get(..length)?;
    let carved = if is_chunk {
        Carved::Chunk(Chunk::parse_copy(bytes).ok()?)
    } else {
        Carved::Summary(Summary::parse(bytes).ok()?)
    };
    Some((carved, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::chunk::{Body, ChunkBuilder};
    use crate::record::SourcePartition;

    fn chunk(offset: i64) -> Chunk {
        let source = SourcePartition { topic: "orders".into(), topic_id: Default::default(), partition: 3 };
        let mut builder = ChunkBuilder::new();
        let slot = builder.slot(&source, offset);
        builder.push(slot, offset, 7, Body::Upsert { key: b"k", value: MAGIC });
        builder.finish()
    }

    #[test]
    fn what_is_whole_is_found_among_anything_and_what_is_not_is_not() {
        let (first, second) = (chunk(4), chunk(9));
        let mut bytes = b"SWCH\x01\0\0\0 not a chunk".to_vec();
        let first_at = bytes.len();
        bytes.extend_from_slice(first.encoded());
        let spoiled_at = bytes.len();
        bytes.extend_from_slice(second.encoded());
        bytes.extend_from_slice(b"between");
        let summary_at = bytes.len();
        bytes.extend_from_slice(&second.summary().encode());
        let second_at = bytes.len();
        bytes.extend_from_slice(second.encoded());
        bytes[spoiled_at + 50] ^= 4;
        let found: Vec<_> = carve(&bytes).collect();
        assert_eq!(found.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [first_at, summary_at, second_at]);
        assert!(matches!(&found[0].1, Carved::Chunk(chunk) if chunk.encoded() == first.encoded()));
        assert!(matches!(&found[1].1, Carved::Summary(summary) if *summary == second.summary()));
        // Cut anywhere: never more than what is whole, never a panic.
        for end in 0..bytes.len() {
            let count = carve(&bytes[..end]).count();
            assert!(count <= 3 && (end > summary_at || count <= 1));
        }
    }
}
