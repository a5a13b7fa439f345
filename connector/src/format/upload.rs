//! A blob in a topic, as the topic's catalogue names it (`kafka://`).
//!
//! ```text
//!  c3 01   u64 fingerprint, little-endian   the fields of schemas/upload.avsc, one after the other
//! ```
//!
//! Owns: the bytes of catalogue, chunks and keys. Does not own: which upload is a name's blob (`blob/kafka/catalogue`).

use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use super::wire::{Malformed, SINGLE_OBJECT, Take, put_array, put_long, put_some};

/// Fingerprint of `schemas/upload.avsc`.
pub const UPLOAD_FINGERPRINT: u64 = 0xdfaa_38a9_21c9_aa56;

/// Bytes before a chunk's own.
pub const CHECKSUM_BYTES: usize = 8;

/// Most chunks of an upload: twice what one record of a megabyte can name. Who removes one that says more would be at it for
/// ever.
const MOST_CHUNKS: u64 = 1 << 20;

/// What stands between the parts of a key; no name has it.
const BETWEEN: char = '#';

/// An upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// Length of the blob.
    pub bytes: u64,
    /// Bytes in each chunk but the last; one at least.
    pub chunk: u64,
    /// Partition of the chunks.
    pub partition: i32,
    /// It takes the place of one that was complete before it.
    pub replaces: bool,
    /// When it began, milliseconds since the Unix epoch.
    pub at: i64,
    /// Where each chunk lies, ascending; `None` while it is under way.
    pub offsets: Option<Vec<i64>>,
}

impl Upload {
    /// How many chunks it has.
    pub fn chunks(&self) -> u64 {
        self.bytes.div_ceil(self.chunk.max(1))
    }

    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let chunks = self.offsets.as_ref().map_or(0, Vec::len);
        let mut out = Vec::with_capacity(48 + 2 * chunks);
        out.extend_from_slice(&SINGLE_OBJECT);
        out.extend_from_slice(&UPLOAD_FINGERPRINT.to_le_bytes());
        put_long(&mut out, self.bytes as i64);
        put_long(&mut out, self.chunk as i64);
        put_long(&mut out, self.partition.into());
        out.push(self.replaces.into());
        put_long(&mut out, self.at);
        put_some(&mut out, self.offsets.is_some());
        if let Some(offsets) = &self.offsets {
            let mut before = 0;
            put_array(&mut out, offsets, |out, offset| {
                put_long(out, offset - before);
                before = *offset;
            });
        }
        out
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`Malformed`] where it is none, or says what no upload can be: other counts of chunks than its length has, offsets that
    /// do not ascend.
    pub fn decode(bytes: &[u8]) -> Result<Upload, Malformed> {
        let mut take = Take::new(bytes);
        if take.fixed()? != SINGLE_OBJECT || u64::from_le_bytes(take.fixed()?) != UPLOAD_FINGERPRINT {
            return Err(take.malformed("it is no upload of a blob"));
        }
        let (bytes, chunk, partition) = (take.count()?, take.count()?, take.int()?);
        let (replaces, at) = (take.boolean()?, take.long()?);
        if chunk == 0 || partition < 0 {
            return Err(take.malformed("an upload without room for its chunks"));
        }
        let mut upload = Upload { bytes, chunk, partition, replaces, at, offsets: None };
        if upload.chunks() > MOST_CHUNKS {
            return Err(take.malformed("an upload of more chunks than a record can name"));
        }
        if take.some()? {
            let mut before = None;
            let offsets = take.array(|take| {
                let more = take.long()?;
                let offset = match before {
                    None => Some(more),
                    Some(before) => i64::checked_add(before, more).filter(|offset| *offset > before),
                };
                let offset = offset.filter(|offset| *offset >= 0);
                let offset = offset.ok_or(take.malformed("offsets of chunks that do not ascend"))?;
                before = Some(offset);
                Ok(offset)
            })?;
            if offsets.len() as u64 != upload.chunks() {
                return Err(take.malformed("another number of chunks than the blob's length has"));
            }
            upload.offsets = Some(offsets);
        }
        take.end()?;
        Ok(upload)
    }
}

/// The key of an upload.
pub fn upload_key(name: &str, id: Uuid) -> String {
    format!("{name}{BETWEEN}{}", id.simple())
}

/// A name and an upload's id, out of its key.
pub fn read_key(key: &[u8]) -> Option<(&str, Uuid)> {
    let (name, id) = std::str::from_utf8(key).ok()?.split_once(BETWEEN)?;
    let id = Some(id).filter(|id| id.len() == 32).and_then(|id| Uuid::try_parse(id).ok())?;
    (!name.is_empty()).then_some((name, id))
}

/// The key of an upload's chunk.
pub fn chunk_key(name: &str, id: Uuid, number: u64) -> String {
    format!("{name}{BETWEEN}{}{BETWEEN}{number}", id.simple())
}

/// A chunk's value.
pub fn chunk(key: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(CHECKSUM_BYTES + bytes.len());
    out.extend_from_slice(&checksum(key, bytes).to_be_bytes());
    out.extend_from_slice(bytes);
    out
}

/// The bytes in a chunk's value; `None` where they are not those that were put under this key.
pub fn read_chunk<'a>(key: &str, value: &'a [u8]) -> Option<&'a [u8]> {
    let (sum, bytes) = value.split_first_chunk()?;
    (u64::from_be_bytes(*sum) == checksum(key, bytes)).then_some(bytes)
}

fn checksum(key: &str, bytes: &[u8]) -> u64 {
    let mut sum = Xxh3::new();
    sum.update(key.as_bytes());
    sum.update(bytes);
    sum.digest()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;

    const ID: Uuid = Uuid::from_u128(0x0123_4567_89ab_4def_8123_4567_89ab_cdef);

    fn uploads() -> [Upload; 3] {
        let done = Upload {
            bytes: 2_500,
            chunk: 1_000,
            partition: 3,
            replaces: true,
            at: 1_700_000_000_123,
            offsets: Some(vec![70, 71, 90]),
        };
        let begun = Upload { offsets: None, replaces: false, ..done.clone() };
        [Upload { bytes: 0, offsets: Some(Vec::new()), ..done.clone() }, begun, done]
    }

    #[test]
    fn it_is_what_its_schema_says() {
        let text = include_str!("../../../schemas/upload.avsc");
        let schema = Schema::parse(text).unwrap();
        assert_eq!(schema.fingerprint(), UPLOAD_FINGERPRINT, "{:#018x}", schema.fingerprint());
        let theirs = apache_avro::Schema::parse_str(text).unwrap();
        for upload in uploads() {
            let bytes = upload.encode();
            assert_eq!(schema.validate(&bytes[10..]), Ok(bytes.len() - 10));
            assert_eq!(Upload::decode(&bytes).unwrap(), upload);
            let read = apache_avro::from_avro_datum(&theirs, &mut &bytes[10..], None).unwrap();
            let length = apache_avro::types::Value::Long(upload.bytes as i64);
            assert!(matches!(read, apache_avro::types::Value::Record(fields) if fields[0].1 == length));
        }
    }

    /// As fastavro writes it; what lies in topics cannot be written anew.
    #[test]
    fn it_is_as_it_was() {
        let [_, _, done] = uploads();
        let hex: String = done.encode()[10..].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "8827d00f0601f6a1abfef96202068c01022600");
    }

    #[test]
    fn torn_and_flipped_bytes_are_refused_or_true() {
        for upload in uploads() {
            let bytes = upload.encode();
            for length in 0..bytes.len() {
                assert!(Upload::decode(&bytes[..length]).is_err(), "{length} bytes of it");
            }
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                if let Ok(read) = Upload::decode(&flipped) {
                    assert_eq!(Upload::decode(&read.encode()), Ok(read), "bit {bit}");
                }
            }
        }
    }

    #[test]
    fn more_chunks_than_can_be_are_refused() {
        let [_, begun, _] = uploads();
        let chunks = |bytes| Upload::decode(&Upload { bytes, chunk: 1, ..begun.clone() }.encode()).is_ok();
        assert_eq!(
            (chunks(MOST_CHUNKS), chunks(MOST_CHUNKS + 1), chunks(i64::MAX as u64)),
            (true, false, false)
        );
    }

    #[test]
    fn keys_are_read_back_and_chunks_know_theirs() {
        let key = upload_key("products/a/0/1.delta.avro", ID);
        assert_eq!(key, "products/a/0/1.delta.avro#0123456789ab4def8123456789abcdef");
        assert_eq!(read_key(key.as_bytes()), Some(("products/a/0/1.delta.avro", ID)));
        for none in ["", "a", "#0123456789ab4def8123456789abcdef", "a#0123", &chunk_key("a", ID, 1)] {
            assert_eq!(read_key(none.as_bytes()), None, "{none}");
        }
        let key = chunk_key("a", ID, 7);
        let value = chunk(&key, b"bytes");
        assert_eq!(read_chunk(&key, &value), Some(&b"bytes"[..]));
        assert_eq!(read_chunk(&chunk_key("a", ID, 8), &value), None, "another's chunk");
        assert_eq!(read_chunk(&key, &value[..value.len() - 1]), None);
        assert_eq!(read_chunk(&key, &[]), None);
    }
}
