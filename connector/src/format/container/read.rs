//! Reading the plain form where it lies, without a copy.

use super::header::Metadata;
use super::{Error, Header, SYNC_BYTES, entry};
use crate::format::window::{Fault, Window};
use crate::record::Entry;
use crate::schema::Schema;

/// The frame before a block's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHead {
    /// Entries in the block.
    pub count: u64,
    /// Bytes of the frame itself.
    pub frame: usize,
    /// Bytes of the entries, as they lie there (compressed, in a stored blob).
    pub bytes: usize,
}

impl BlockHead {
    /// Longest frame: two integers.
    pub const MOST: usize = 20;

    /// Reads the frame at the start of `window`.
    ///
    /// # Errors
    /// [`Fault::Short`] if the window ends within it.
    pub fn parse(window: &[u8]) -> Result<BlockHead, Fault> {
        let mut rest = Window::new(window);
        let count = u64::try_from(rest.long()?).map_err(|_| Fault::Bad("a negative count of entries"))?;
        let bytes = usize::try_from(rest.long()?).map_err(|_| Fault::Bad("a negative block length"))?;
        Ok(BlockHead { count, frame: window.len() - rest.rest().len(), bytes })
    }

    /// Frame, entries and sync marker together; `None` where no file could be that long.
    pub fn whole(&self) -> Option<usize> {
        self.frame.checked_add(self.bytes)?.checked_add(SYNC_BYTES)
    }
}

/// An entry and where it lies in the plain file.
#[derive(Clone, Copy, Debug)]
pub struct Located<'a> {
    /// Its first byte.
    pub offset: u64,
    /// Its bytes.
    pub raw: &'a [u8],
    /// What they say.
    pub entry: Entry<'a>,
}

/// What a plain container begins with, apart from its bytes: for who reads the entries later, and the header once.
#[derive(Clone, Debug)]
pub struct Head {
    header: Header,
    sync: [u8; SYNC_BYTES],
    body: usize,
}

impl Head {
    /// Reads it.
    ///
    /// # Errors
    /// As [`Reader::parse`].
    pub fn parse(bytes: &[u8]) -> Result<Head, Error> {
        let (metadata, body) =
            Metadata::parse(bytes).map_err(|fault| Error::at(bytes.len() as u64, fault))?;
        if metadata.codec() != b"null" {
            return Err(Error::malformed(0, "the blob is compressed: unpack it first"));
        }
        Ok(Head { header: Header::from_metadata(&metadata)?, sync: metadata.sync, body })
    }

    /// What the blob is.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads on, in the bytes that it was read from.
    pub fn reader(self, bytes: &[u8]) -> Reader<'_> {
        Reader { bytes, head: self }
    }
}

/// A plain container in memory.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    head: Head,
}

impl<'a> Reader<'a> {
    /// Reads the header; the entries are read as they are asked for.
    ///
    /// # Errors
    /// [`Error::Short`], [`Error::Malformed`]; also for the stored form, which has to be unpacked first.
    pub fn parse(bytes: &'a [u8]) -> Result<Reader<'a>, Error> {
        Head::parse(bytes).map(|head| head.reader(bytes))
    }

    /// What the blob is.
    pub fn header(&self) -> &Header {
        &self.head.header
    }

    /// The header, owned.
    pub fn into_header(self) -> Header {
        self.head.header
    }

    /// The marker behind each block.
    pub fn sync(&self) -> [u8; SYNC_BYTES] {
        self.head.sync
    }

    /// Where the first block starts.
    pub fn body(&self) -> usize {
        self.head.body
    }

    /// All entries in order. Checks frames, markers, key order and, at the end, the counts that the header promised;
    /// after an error there is nothing more.
    pub fn entries<'s>(&self, schema: &'s Schema) -> Entries<'a, 's> {
        Entries {
            bytes: self.bytes,
            sync: self.head.sync,
            schema,
            promised: self.head.header.counts.map(|counts| counts.entries()),
            at: self.head.body,
            block_end: 0,
            in_block: 0,
            read: 0,
            last_key: None,
            done: false,
        }
    }
}

/// See [`Reader::entries`].
pub struct Entries<'a, 's> {
    bytes: &'a [u8],
    sync: [u8; SYNC_BYTES],
    schema: &'s Schema,
    promised: Option<u64>,
    at: usize,
    /// End of the open block's entries; the marker follows.
    block_end: usize,
    in_block: u64,
    read: u64,
    last_key: Option<&'a [u8]>,
    done: bool,
}

impl<'a> Entries<'a, '_> {
    fn fault(&self, fault: Fault) -> Error {
        Error::at(self.at as u64, fault)
    }

    fn open_block(&mut self) -> Result<bool, Error> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        if rest.is_empty() {
            return match self.promised {
                Some(promised) if promised != self.read => Err(Error::malformed(
                    self.at as u64,
                    format!("{} entries where the header promised {promised}", self.read),
                )),
                _ => Ok(false),
            };
        }
        let head = BlockHead::parse(rest).map_err(|fault| self.fault(fault))?;
        let whole =
            head.whole().and_then(|whole| rest.get(..whole)).ok_or_else(|| self.fault(Fault::Short))?;
        if !whole.ends_with(&self.sync) {
            return Err(self.fault(Fault::Bad("the sync marker behind the block is not this blob's")));
        }
        if head.count == 0 {
            return Err(self.fault(Fault::Bad("an empty block")));
        }
        self.at += head.frame;
        self.block_end = self.at + head.bytes;
        self.in_block = head.count;
        Ok(true)
    }

    fn step(&mut self) -> Result<Option<Located<'a>>, Error> {
        if self.in_block == 0 && !self.open_block()? {
            return Ok(None);
        }
        let window = self.bytes.get(self.at..self.block_end).unwrap_or_default();
        // The block is whole in memory: what does not fit in it never will.
        let (entry, length) = entry(window, self.schema).map_err(|fault| match fault {
            Fault::Short => self.fault(Fault::Bad("an entry does not fit the block or the schema")),
            bad => self.fault(bad),
        })?;
        if self.last_key.is_some_and(|last| entry.key <= last) {
            return Err(self.fault(Fault::Bad("entries out of key order")));
        }
        let raw = window.get(..length).unwrap_or_default();
        let located = Located { offset: self.at as u64, raw, entry };
        self.last_key = Some(entry.key);
        self.at += length;
        self.in_block -= 1;
        self.read += 1;
        if self.in_block == 0 {
            if self.at != self.block_end {
                return Err(self.fault(Fault::Bad("bytes behind the last entry of a block")));
            }
            self.at += SYNC_BYTES;
        }
        Ok(Some(located))
    }
}

impl<'a> Iterator for Entries<'a, '_> {
    type Item = Result<Located<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.step().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}
