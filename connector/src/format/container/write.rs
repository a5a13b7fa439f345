//! Writing the plain form, in key order, in one pass.

use std::io::Write;

use xxhash_rust::xxh3::Xxh3;

use super::{BLOCK_BYTES, Counts, Error, Header, SYNC_BYTES, put_entry};
use crate::format::index;
use crate::record::Entry;
use crate::schema::wire::put_long;
use crate::version::Checksum;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Upserts and deletes.
    pub counts: Counts,
    /// Bytes of the plain form.
    pub plain_bytes: u64,
    /// Checksum of the plain form.
    pub plain_checksum: Checksum,
}

/// Writes a delta or a snapshot in plain form. Cost: one copy of each entry into a block, and the block's checksum.
pub struct Writer<W: Write> {
    out: W,
    written: u64,
    checksum: Xxh3,
    sync: [u8; SYNC_BYTES],
    block: Vec<u8>,
    in_block: u64,
    frame: Vec<u8>,
    last_key: Vec<u8>,
    counts: Counts,
    promised: Option<Counts>,
    index: Option<index::Builder>,
    /// Hash of each key of the open block, and its entry's place there.
    marks: Vec<(u64, usize)>,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// [`Error::Io`] only.
    pub fn new(out: W, header: &Header) -> Result<Writer<W>, Error> {
        Writer::start(out, header, None)
    }

    /// As [`Writer::new`], and gathers the index beside it; [`Writer::finish_indexed`] hands it out.
    ///
    /// # Errors
    /// [`Error::Io`] only.
    pub fn indexed(out: W, header: &Header) -> Result<Writer<W>, Error> {
        Writer::start(out, header, Some(index::Builder::new()))
    }

    fn start(out: W, header: &Header, index: Option<index::Builder>) -> Result<Writer<W>, Error> {
        let mut writer = Writer {
            out,
            written: 0,
            checksum: Xxh3::new(),
            sync: header.sync(),
            block: Vec::with_capacity(BLOCK_BYTES + (BLOCK_BYTES >> 2)),
            in_block: 0,
            frame: Vec::new(),
            last_key: Vec::new(),
            counts: Counts::default(),
            promised: header.counts,
            index,
            marks: Vec::new(),
        };
        writer.emit(&header.encode())?;
        Ok(writer)
    }

    /// Adds an entry; keys ascend strictly.
    ///
    /// # Errors
    /// [`Error::Order`] if they do not; [`Error::Io`].
    pub fn push(&mut self, entry: &Entry<'_>) -> Result<(), Error> {
        self.admit(entry.key, entry.value.is_some())?;
        put_entry(&mut self.block, entry);
        self.close_when_full()
    }

    /// Adds an entry that is encoded already: `raw` is copied, `entry` says what it is.
    ///
    /// # Errors
    /// As [`Writer::push`].
    pub fn push_raw(&mut self, raw: &[u8], entry: &Entry<'_>) -> Result<(), Error> {
        self.admit(entry.key, entry.value.is_some())?;
        self.block.extend_from_slice(raw);
        self.close_when_full()
    }

    /// Bytes so far, the open block included.
    pub fn bytes(&self) -> u64 {
        self.written + self.block.len() as u64
    }

    fn admit(&mut self, key: &[u8], upsert: bool) -> Result<(), Error> {
        if self.counts.entries() > 0 && key <= self.last_key.as_slice() {
            return Err(Error::Order);
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        if self.index.is_some() {
            self.marks.push((index::hash(key), self.block.len()));
        }
        if upsert {
            self.counts.upserts += 1;
        } else {
            self.counts.deletes += 1;
        }
        self.in_block += 1;
        Ok(())
    }

    fn close_when_full(&mut self) -> Result<(), Error> {
        if self.block.len() >= BLOCK_BYTES { self.close_block() } else { Ok(()) }
    }

    fn close_block(&mut self) -> Result<(), Error> {
        let start = self.written;
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        put_long(&mut frame, self.in_block as i64);
        put_long(&mut frame, self.block.len() as i64);
        self.emit(&frame)?;
        self.frame = frame;
        let data = self.written;
        let block = std::mem::take(&mut self.block);
        self.emit(&block)?;
        self.block = block;
        self.emit(&{ self.sync })?;
        if let Some(index) = &mut self.index {
            index.block(start);
            let ends = self.marks.iter().skip(1).map(|(_, start)| *start).chain([self.block.len()]);
            for ((hash, start), end) in self.marks.iter().zip(ends) {
                index.entry(*hash, data + *start as u64, end - start);
            }
            self.marks.clear();
        }
        self.block.clear();
        self.in_block = 0;
        Ok(())
    }

    fn emit(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes)?;
        self.checksum.update(bytes);
        self.written += bytes.len() as u64;
        if let Some(index) = &mut self.index {
            index.bytes(bytes);
        }
        Ok(())
    }

    /// Closes the last block and flushes.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the header promised other counts; [`Error::Io`].
    pub fn finish(self) -> Result<(Summary, W), Error> {
        let (summary, out, _) = self.end()?;
        Ok((summary, out))
    }

    /// As [`Writer::finish`], with the index of what was written.
    ///
    /// # Errors
    /// As [`Writer::finish`].
    ///
    /// # Panics
    /// If the writer was not made by [`Writer::indexed`].
    pub fn finish_indexed(self) -> Result<(Summary, W, index::Builder), Error> {
        let (summary, out, index) = self.end()?;
        Ok((summary, out, index.expect("the writer was made with an index")))
    }

    fn end(mut self) -> Result<(Summary, W, Option<index::Builder>), Error> {
        if self.in_block > 0 {
            self.close_block()?;
        }
        if self.promised.is_some_and(|promised| promised != self.counts) {
            return Err(Error::malformed(self.written, "other counts than the header promised"));
        }
        self.out.flush()?;
        let summary = Summary {
            counts: self.counts,
            plain_bytes: self.written,
            plain_checksum: Checksum(self.checksum.digest()),
        };
        if let Some(index) = &mut self.index {
            index.end(&summary);
        }
        Ok((summary, self.out, self.index))
    }
}
