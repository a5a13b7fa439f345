//! What is kept beside a chunk.

use super::{Chunk, Error, HEADER, Range, put_range, seal, take_range, take_u32, unseal};

pub(super) const SUMMARY_MAGIC: &[u8; 8] = b"SWCS\x01\x00\x00\x00";

/// What a chunk accounts for, kept beside it in the log: enough to resume without reading the chunk itself.
///
/// ```text
///  0  "SWCS", u16 = 1, u16 = 0; u64    as in a chunk
/// 16  u32 u32 u32 u32                  the chunk's bytes, records, misfits, ranges
/// 32  u64                              the chunk's checksum: of these bytes and no others
/// 40  range, range, ...                as in a chunk
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The chunk's length.
    pub bytes: u32,
    /// Its records.
    pub records: u32,
    /// Its misfits.
    pub misfits: u32,
    /// Its checksum.
    pub sum: u64,
    /// Its ranges.
    pub ranges: Vec<Range>,
}

impl Summary {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.ranges.len() * 64);
        out.extend_from_slice(SUMMARY_MAGIC);
        out.extend_from_slice(&[0; 8]);
        for number in [self.bytes, self.records, self.misfits, self.ranges.len() as u32] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.sum.to_le_bytes());
        for range in &self.ranges {
            put_range(&mut out, range);
        }
        seal(&mut out);
        out
    }

    /// Reads a summary; any flipped byte is an error.
    pub fn parse(bytes: &[u8]) -> Result<Summary, Error> {
        let (_, mut take) = unseal(bytes, SUMMARY_MAGIC)?;
        let (bytes, records) = (take_u32(&mut take)?, take_u32(&mut take)?);
        let (misfits, slots) = (take_u32(&mut take)?, take_u32(&mut take)?);
        let sum = u64::from_le_bytes(take.fixed()?);
        let mut ranges = Vec::new();
        for _ in 0..slots {
            ranges.push(take_range(&mut take)?);
        }
        take.end()?;
        Ok(Summary { bytes, records, misfits, sum, ranges })
    }

    /// Whether `chunk` is the one that this summary was made of.
    pub fn is_of(&self, chunk: &Chunk) -> bool {
        self.sum == chunk.0.sum && self.bytes as usize == chunk.len()
    }
}
