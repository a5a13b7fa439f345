//! Why bytes are not a chunk, or not its summary.

use super::{MAGIC, MAGIC_KEPT};
use crate::format::wire::Malformed;

/// Why bytes are not a chunk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a chunk.
    #[error("neither a chunk nor its summary")]
    Foreign,
    /// Of a later release.
    #[error("format {format}; this build reads up to {newest}: upgrade it")]
    Unknown {
        /// Its format.
        format: u16,
        /// The newest that this build reads.
        newest: u16,
    },
    /// The bytes are not what was written: cut the log here and read on from Kafka.
    #[error("the checksum does not match")]
    Checksum,
    /// The checksum is right and the content is not: written by something else, or by a bug.
    #[error("the checksum matches, but the content makes no sense")]
    Malformed(#[from] Malformed),
}

impl Error {
    /// Of bytes that do not begin with `magic`, in which the format stands behind four letters.
    pub(super) fn not_begun_by(magic: &[u8; 8], bytes: &[u8]) -> Error {
        let (letters, _) = magic.split_at(4);
        let newest = if magic == MAGIC || magic == MAGIC_KEPT { 3 } else { 1 };
        let format = bytes.strip_prefix(letters).and_then(|rest| rest.first_chunk()).copied();
        match format.map(u16::from_le_bytes) {
            Some(format) if format > newest => Error::Unknown { format, newest },
            _ => Error::Foreign,
        }
    }
}
