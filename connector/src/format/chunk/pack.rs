//! A chunk as it lies on the disk: compressed, where that is worth it.
//!
//! ```text
//!  0  "SWCH"                          magic
//!  4  u16 = 2, u16 = 0                format, reserved
//!  8  u64                             XXH3-64 of everything after this field
//! 16  u32 u32                         length of the block; length of the chunk of format 1 or 3 that is in it
//! 24  block                           LZ4, to the end
//! ```
//!
//! What is written to a log is copied, summed and synced several times on its way (batch, write-ahead log, memtable,
//! blob file), and LZ4 takes less time than a quarter of that saves: JSON comes out at a fifth. What does not shrink by
//! an eighth stays as it is, and costs hardly anything, since LZ4 steps over what it cannot compress.

use bytes::Bytes;
use lz4::block::{CompressionMode, compress_to_buffer, decompress_to_buffer};

use super::{Chunk, Error, SUMMED, seal, take_u32, unseal};

pub(super) const PACKED: &[u8; 8] = b"SWCH\x02\x00\x00\x00";
pub(super) const HEADER: usize = 24;
/// Below this a chunk costs its fsync, not its bytes.
const WORTHWHILE: usize = 32 << 10;
/// LZ4's acceleration: a quarter faster than 1, for a twentieth more bytes.
const ACCELERATION: i32 = 8;
/// Most bytes of the buffer that are kept for the next chunk.
const KEPT: usize = 4 << 20;
/// LZ4 makes at most so many bytes of one.
const MOST_FROM_ONE: usize = 255;

/// Packs chunks. Reuses its buffer.
#[derive(Debug, Default)]
pub struct Packer {
    bytes: Vec<u8>,
}

impl Packer {
    /// The bytes that the disk is to hold: [`Chunk::parse`] reads them.
    pub fn pack<'a>(&'a mut self, chunk: &'a Chunk) -> &'a [u8] {
        let plain = chunk.encoded();
        if plain.len() < WORTHWHILE {
            return plain;
        }
        match self.compress(plain) {
            Some(length) => self.bytes.get(..length).unwrap_or(plain),
            None => plain,
        }
    }

    /// The length of what is in the buffer then; `None`: it would be about as long.
    fn compress(&mut self, plain: &[u8]) -> Option<usize> {
        let most = HEADER + plain.len() - plain.len() / 8;
        if self.bytes.len() < most {
            self.bytes.resize(most, 0);
        } else if self.bytes.len() > most.max(KEPT) {
            self.bytes = vec![0; most];
        }
        let block = self.bytes.get_mut(HEADER..most)?;
        let mode = Some(CompressionMode::FAST(ACCELERATION));
        // An error says that it does not fit, or is longer than LZ4 takes.
        let length = compress_to_buffer(plain, mode, false, block).ok()?;
        let packed = self.bytes.get_mut(..HEADER + length)?;
        let (magic, rest) = packed.split_at_mut(8);
        magic.copy_from_slice(PACKED);
        let (_sum, rest) = rest.split_at_mut(SUMMED - 8);
        let (lengths, _) = rest.split_at_mut(8);
        for (out, number) in lengths.chunks_exact_mut(4).zip([length, plain.len()]) {
            out.copy_from_slice(&u32::try_from(number).ok()?.to_le_bytes());
        }
        seal(packed);
        Some(packed.len())
    }
}

impl Chunk {
    /// As [`Chunk::parse`], of bytes that stay another's: copied, or unpacked.
    ///
    /// # Errors
    /// As [`Chunk::parse`].
    pub fn parse_copy(bytes: &[u8]) -> Result<Chunk, Error> {
        Chunk::plain(unpack(bytes).unwrap_or_else(|| Ok(Bytes::copy_from_slice(bytes)))?)
    }
}

/// The chunk of format 1 or 3 that is packed in `bytes`; `None`: they are not of format 2.
pub(super) fn unpack(bytes: &[u8]) -> Option<Result<Bytes, Error>> {
    bytes.starts_with(PACKED).then(|| unpacked(bytes))
}

fn unpacked(bytes: &[u8]) -> Result<Bytes, Error> {
    let (_, mut take) = unseal(bytes, PACKED)?;
    let (length, plain_length) = (take_u32(&mut take)? as usize, take_u32(&mut take)? as usize);
    let block = take.raw(length)?;
    take.end()?;
    let malformed = || take.malformed("a block that is not LZ4's, or of another length");
    if plain_length > length.saturating_mul(MOST_FROM_ONE) {
        return Err(malformed().into());
    }
    let mut plain = vec![0; plain_length];
    let size = i32::try_from(plain_length).map_err(|_| malformed())?;
    match decompress_to_buffer(block, Some(size), &mut plain) {
        Ok(written) if written == plain_length => Ok(plain.into()),
        _ => Err(malformed().into()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::format::chunk::{Body, Carved, ChunkBuilder, carve};
    use crate::record::{SourcePartition, TopicId};

    /// A chunk of so many records whose values repeat themselves, or do not.
    fn chunk(records: i64, repeats: bool) -> Chunk {
        let source = SourcePartition { topic: "orders".into(), topic_id: TopicId([9; 16]), partition: 3 };
        let mut builder = ChunkBuilder::new();
        let slot = builder.slot(&source, 100);
        let mut noise = 0x9e37_79b9_7f4a_7c15u64;
        for offset in 100..100 + records {
            let mut value =
                format!("{{\"id\":\"P-{offset}\",\"category\":\"GARDEN\",\"price_cents\":{offset}}}")
                    .into_bytes();
            if !repeats {
                value = (0..64)
                    .map(|_| {
                        noise ^= noise << 13;
                        noise ^= noise >> 7;
                        noise ^= noise << 17;
                        noise as u8
                    })
                    .collect();
            }
            let key = offset.to_be_bytes();
            builder.push(slot, offset, 1_760_000_000_000 + offset, Body::Upsert { key: &key, value: &value });
        }
        builder.finish()
    }

    #[test]
    fn what_was_packed_is_read_as_it_was_and_what_does_not_shrink_is_left() {
        let mut packer = Packer::default();
        for (records, repeats, shrinks) in
            [(5_000, true, true), (5_000, false, false), (20, true, false), (1_000, true, true)]
        {
            let chunk = chunk(records, repeats);
            let packed = packer.pack(&chunk);
            assert_eq!(packed.starts_with(PACKED), shrinks, "{records}, {repeats}");
            assert!(if shrinks { packed.len() < chunk.len() / 2 } else { packed == &chunk.encoded()[..] });
            let read = Chunk::parse(Bytes::copy_from_slice(packed)).unwrap();
            assert_eq!(read.encoded(), chunk.encoded());
            assert!(chunk.summary().is_of(&read));
        }
    }

    #[test]
    fn any_prefix_any_flipped_bit_and_any_lie_is_an_error() {
        let chunk = chunk(1_000, true);
        let mut packer = Packer::default();
        let packed = packer.pack(&chunk).to_vec();
        for len in (0..packed.len()).step_by(7) {
            assert!(Chunk::parse(packed[..len].to_vec().into()).is_err(), "{len} bytes");
        }
        for bit in (0..HEADER * 8).chain((HEADER * 8..packed.len() * 8).step_by(41)) {
            let mut bytes = packed.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Chunk::parse(bytes.into()).is_err(), "bit {bit}");
        }
        // With a right checksum: neither a length nor a block that lies does more than fail.
        for at in (16..HEADER).chain((HEADER..packed.len()).step_by(97)) {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut bytes = packed.clone();
                bytes[at] = byte;
                seal(&mut bytes);
                if let Ok(read) = Chunk::parse(bytes.into()) {
                    assert_eq!(read.encoded(), chunk.encoded(), "byte {at}");
                }
            }
        }
        let longer = [&packed[..], b"\0"].concat();
        assert_eq!(Chunk::parse(longer.into()).unwrap_err(), Error::Checksum);
    }

    #[test]
    fn a_packed_chunk_is_found_among_anything() {
        let chunk = chunk(1_000, true);
        let mut packer = Packer::default();
        let mut bytes = b"SWCH\x02\0\0\0 none".to_vec();
        for part in [packer.pack(&chunk), b"between", chunk.encoded()] {
            bytes.extend_from_slice(part);
        }
        let found: Vec<_> = carve(&bytes).collect();
        let whole =
            |carved: &Carved| matches!(carved, Carved::Chunk(found) if found.encoded() == chunk.encoded());
        assert!(found.len() == 2 && found.iter().all(|(_, carved)| whole(carved)));
        assert_eq!(found[0].0, 13);
    }

    /// Written once by what is not of this code (Python's xxhash, Debian's liblz4), and never again.
    fn golden() -> PathBuf {
        [env!("CARGO_MANIFEST_DIR"), "..", "tests", "golden", "chunk", "v2", "chunk.bin"].iter().collect()
    }

    #[test]
    fn chunks_of_format_2_read_as_they_were_written() {
        let bytes = std::fs::read(golden()).unwrap();
        assert!(bytes.starts_with(PACKED));
        assert_eq!(Chunk::parse(bytes.into()).unwrap().encoded(), chunk(700, true).encoded());
    }
}
