//! A version as a container that any Avro tool opens: entries as in a snapshot, compressed by `deflate`, which the
//! specification demands of every implementation. For exports; nothing of ours maps or fetches it.

use std::io::Write;

use apache_avro::{Codec, DeflateSettings};

use super::header::Metadata;
use super::{Error, Header, SYNC_BYTES, put_entry};
use crate::record::Entry;
use crate::schema::wire::put_long;

/// Bytes of entries in a block: larger than in a blob, since nobody looks for one entry in it.
const BLOCK: usize = 64 << 10;

/// Writes one, in key order, in one pass.
pub struct Portable<W: Write> {
    out: W,
    sync: [u8; SYNC_BYTES],
    block: Vec<u8>,
    in_block: i64,
}

impl<W: Write> Portable<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// [`Error::Io`] only.
    pub fn new(mut out: W, header: &Header) -> Result<Portable<W>, Error> {
        let plain = header.encode();
        let (mut metadata, _) =
            Metadata::parse(&plain).map_err(|fault| Error::at(plain.len() as u64, fault))?;
        metadata.set_codec("deflate");
        out.write_all(&metadata.encode())?;
        Ok(Portable { out, sync: metadata.sync, block: Vec::with_capacity(BLOCK * 2), in_block: 0 })
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn push(&mut self, entry: &Entry<'_>) -> Result<(), Error> {
        put_entry(&mut self.block, entry);
        self.in_block += 1;
        if self.block.len() >= BLOCK { self.close() } else { Ok(()) }
    }

    fn close(&mut self) -> Result<(), Error> {
        Codec::Deflate(DeflateSettings::default())
            .compress(&mut self.block)
            .map_err(|error| std::io::Error::other(error.to_string()))?;
        let mut frame = Vec::with_capacity(20);
        put_long(&mut frame, self.in_block);
        put_long(&mut frame, self.block.len() as i64);
        for bytes in [frame.as_slice(), self.block.as_slice(), &self.sync] {
            self.out.write_all(bytes)?;
        }
        self.block.clear();
        self.in_block = 0;
        Ok(())
    }

    /// Closes the last block and flushes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(mut self) -> Result<(), Error> {
        if self.in_block > 0 {
            self.close()?;
        }
        Ok(self.out.flush()?)
    }
}
