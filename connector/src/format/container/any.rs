//! Any Avro object container file, whoever wrote it, read block by block: for importing.
//!
//! Blobs of ours are such files, and are told by their metadata; their entries are datums of [`Schema::entry_json`].
//! Unlike [`super::Reader`], which needs the plain form in memory and trusts nothing else, this streams, takes the usual
//! codecs, and knows nothing of the datums.

use std::io::Read;

use apache_avro::{Codec, DeflateSettings, ZstandardSettings};

use super::header::{Metadata, value_schema};
use super::{BlockHead, Error, SYNC_BYTES};
use crate::format::window::Fault;
use crate::format::wire::Take;
use crate::schema::Schema;

/// A header larger than this is not one: the schema is in it, and a few words.
const MOST_HEADER: usize = 64 << 20;
/// A block longer than this is a damaged length: writers make them of some kilobytes to some megabytes.
const MOST_BLOCK: usize = 1 << 30;
/// Most bytes that a block may unpack to.
const MOST_UNPACKED: u64 = 1 << 30;
/// Snappy's densest element makes 64 bytes of three.
const MOST_OF_SNAPPY: u64 = 22;
/// Read at a time.
const PIECE: usize = 256 << 10;

/// A container that is read from its beginning.
pub struct AnyReader<R> {
    input: R,
    /// Read and not yet handed out.
    pending: Vec<u8>,
    /// Where `pending` begins in the file.
    at: u64,
    schema: String,
    ours: bool,
    codec: Codec,
    sync: [u8; SYNC_BYTES],
}

impl<R: Read> AnyReader<R> {
    /// Reads the header. `begun` is what was read of the file before.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is no container, or compressed by a codec other than null, deflate, snappy and
    /// zstandard; [`Error::Short`]; [`Error::Io`].
    pub fn open(input: R, begun: &[u8]) -> Result<AnyReader<R>, Error> {
        let mut this = AnyReader {
            input,
            pending: begun.to_vec(),
            at: 0,
            schema: String::new(),
            ours: false,
            codec: Codec::Null,
            sync: [0; SYNC_BYTES],
        };
        let (metadata, length) = loop {
            match Metadata::parse(&this.pending) {
                Ok(parsed) => break parsed,
                Err(Fault::Short) if this.pending.len() <= MOST_HEADER => {
                    if !this.more()? {
                        return Err(Error::Short { at: this.pending.len() as u64 });
                    }
                }
                Err(fault) => return Err(Error::at(0, fault)),
            }
        };
        this.schema = match metadata.get("avro.schema").map(std::str::from_utf8) {
            Some(Ok(schema)) => schema.to_owned(),
            Some(Err(_)) | None => return Err(Error::malformed(0, "avro.schema is missing, or no text")),
        };
        this.ours = metadata.get("stillwell.format").is_some();
        this.codec = match metadata.codec() {
            b"null" => Codec::Null,
            b"deflate" => Codec::Deflate(DeflateSettings::default()),
            b"snappy" => Codec::Snappy,
            b"zstandard" => Codec::Zstandard(ZstandardSettings::default()),
            other => {
                let codec = String::from_utf8_lossy(other).into_owned();
                let what = format!(
                    "codec {codec:?} is not read here; write it with null, deflate, snappy or zstandard"
                );
                return Err(Error::malformed(0, what));
            }
        };
        this.sync = metadata.sync;
        this.consume(length);
        Ok(this)
    }

    /// The schema of its datums.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// The schema of the values, where it is a blob of ours, whose datums are entries.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it says that it is and its schema is not that of entries.
    pub fn value_schema(&self) -> Result<Option<Schema>, Error> {
        if self.ours { value_schema(&self.schema).map(Some) } else { Ok(None) }
    }

    /// Reads the next block into `datums`, unpacked, and says how many there are; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Malformed`], [`Error::Short`], [`Error::Io`].
    pub fn block(&mut self, datums: &mut Vec<u8>) -> Result<Option<u64>, Error> {
        datums.clear();
        let head = loop {
            match BlockHead::parse(&self.pending) {
                Ok(head) => break head,
                Err(Fault::Short) => {
                    if !self.more()? {
                        return if self.pending.is_empty() { Ok(None) } else { Err(self.short()) };
                    }
                }
                Err(fault) => return Err(Error::at(self.at, fault)),
            }
        };
        let whole = head.whole().filter(|whole| *whole <= MOST_BLOCK);
        let whole = whole.ok_or_else(|| Error::malformed(self.at, "a block of more than 1 GiB"))?;
        while self.pending.len() < whole {
            if !self.more()? {
                return Err(self.short());
            }
        }
        let body = self.pending.get(head.frame..whole).unwrap_or_default();
        let (packed, sync) = body.split_at_checked(head.bytes).unwrap_or_default();
        if sync != self.sync {
            return Err(Error::malformed(self.at, "the sync marker behind the block is not this file's"));
        }
        unpack(self.codec, packed, datums).map_err(|what| Error::malformed(self.at, what))?;
        self.consume(whole);
        Ok(Some(head.count))
    }

    /// Bytes of the file that have been read through.
    pub fn position(&self) -> u64 {
        self.at
    }

    fn consume(&mut self, length: usize) {
        self.pending.drain(..length.min(self.pending.len()));
        self.at += length as u64;
    }

    fn short(&self) -> Error {
        Error::Short { at: self.at + self.pending.len() as u64 }
    }

    /// Reads on; `false` at the end.
    fn more(&mut self) -> Result<bool, Error> {
        let before = self.pending.len();
        (&mut self.input).take(PIECE as u64).read_to_end(&mut self.pending)?;
        Ok(self.pending.len() > before)
    }
}

/// Appends what is packed in a block. Takes memory by what is in it, never by what it says of itself.
fn unpack(codec: Codec, packed: &[u8], datums: &mut Vec<u8>) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("a block does not unpack: {error}");
    match codec {
        Codec::Zstandard(_) => {
            let input = zstd::stream::read::Decoder::new(packed).map_err(|error| failed(&error))?;
            let read = input.take(MOST_UNPACKED + 1).read_to_end(datums).map_err(|error| failed(&error))?;
            if read as u64 > MOST_UNPACKED { Err(failed(&"it is more than 1 GiB")) } else { Ok(()) }
        }
        codec => {
            if codec == Codec::Snappy {
                // apache-avro takes the checksum's four bytes for granted, and the length at the beginning as it stands.
                let body = packed.len().checked_sub(4).ok_or("a block without a checksum")?;
                let length = Take::new(packed).varint().map_err(|error| failed(&error))?;
                if length > (body as u64).saturating_mul(MOST_OF_SNAPPY) {
                    return Err(failed(&format!("{body} bytes that claim to hold {length}")));
                }
            }
            datums.extend_from_slice(packed);
            codec.decompress(datums).map_err(|error| failed(&error))
        }
    }
}

#[cfg(test)]
mod tests {
    use apache_avro::Writer;
    use apache_avro::types::Value;

    use super::*;

    const SCHEMA: &str = r#"{"type":"record","name":"P","fields":[{"name":"id","type":"string"}]}"#;

    fn written(codec: Codec, records: usize) -> Vec<u8> {
        let schema = apache_avro::Schema::parse_str(SCHEMA).unwrap();
        let mut writer =
            Writer::builder().schema(&schema).writer(Vec::new()).codec(codec).block_size(200).build();
        for n in 0..records {
            writer.append(Value::Record(vec![("id".into(), Value::String(format!("P-{n}")))])).unwrap();
        }
        writer.into_inner().unwrap()
    }

    fn ids(bytes: &[u8]) -> Result<Vec<String>, Error> {
        let mut reader = AnyReader::open(bytes, b"")?;
        let schema = Schema::parse(reader.schema()).unwrap();
        let (mut ids, mut datums) = (Vec::new(), Vec::new());
        while let Some(count) = reader.block(&mut datums)? {
            let mut rest = &datums[..];
            for _ in 0..count {
                let (datum, after) = rest.split_at(schema.skip(rest).unwrap());
                ids.push(String::from_utf8(datum[1..].to_vec()).unwrap());
                rest = after;
            }
            assert_eq!(rest, b"");
        }
        Ok(ids)
    }

    #[test]
    fn what_apache_avro_writes_is_read_whatever_its_codec() {
        let expected: Vec<String> = (0..100).map(|n| format!("P-{n}")).collect();
        for codec in [
            Codec::Null,
            Codec::Deflate(DeflateSettings::default()),
            Codec::Snappy,
            Codec::Zstandard(ZstandardSettings::default()),
        ] {
            assert_eq!(ids(&written(codec, 100)).unwrap(), expected, "{codec:?}");
        }
        assert_eq!(ids(&written(Codec::Null, 0)).unwrap(), [""; 0]);
    }

    #[test]
    fn a_cut_or_changed_file_is_an_error_or_the_truth() {
        for codec in [Codec::Null, Codec::Snappy, Codec::Deflate(DeflateSettings::default())] {
            let whole = written(codec, 40);
            let all = ids(&whole).unwrap();
            for cut in 0..whole.len() {
                // A cut between two blocks is a shorter file.
                if let Ok(ids) = ids(&whole[..cut]) {
                    assert!(all.starts_with(&ids) && ids.len() < all.len(), "{cut}");
                }
            }
        }
        let mut other = written(Codec::Null, 40);
        let last = other.len() - 1;
        other[last] ^= 1;
        assert!(ids(&other).unwrap_err().to_string().contains("sync marker"));
    }

    #[test]
    fn it_says_what_it_is_not() {
        assert!(matches!(AnyReader::open(&b"{\"id\":\"P-1\"}"[..], b""), Err(Error::Malformed { .. })));
        let mut bzip = written(Codec::Null, 1);
        let at = bzip.windows(5).position(|word| word == b"\x08null").unwrap();
        bzip[at + 1..at + 5].copy_from_slice(b"bzip");
        let error = AnyReader::open(&bzip[..], b"").err().unwrap();
        assert!(error.to_string().contains("bzip"), "{error}");
    }
}
