//! Between the plain and the stored form, block by block.

use std::io::Write;

use xxhash_rust::xxh3::Xxh3;
use zstd::bulk;
use zstd::zstd_safe::get_frame_content_size;

use super::header::Metadata;
use super::{BlockHead, Error, SYNC_BYTES};
use crate::format::window::Fault;
use crate::schema::wire::put_long;
use crate::version::Checksum;

/// zstd's fastest regular level. Blocks are small, so that higher ones gain a few percent of bytes for several times
/// the CPU, which the writer pays for each version before anyone can read it.
pub const LEVEL: i32 = 1;

const NULL: &[u8] = b"null";
const ZSTANDARD: &str = "zstandard";

/// A header larger than this is not one: the schema and the list of sources are in it, nothing else.
const MOST_HEADER: usize = 64 << 20;

/// The stored form, as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its bytes.
    pub bytes: u64,
    /// Its checksum.
    pub checksum: Checksum,
}

/// Output that counts and checks what goes through.
struct Checked<'w, W: Write> {
    out: &'w mut W,
    bytes: u64,
    checksum: Xxh3,
}

impl<W: Write> Checked<'_, W> {
    fn emit(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes)?;
        self.checksum.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// Writes the stored form of `plain` to `out`.
///
/// # Errors
/// [`Error::Malformed`], [`Error::Short`] if `plain` is no plain container; [`Error::Io`].
pub fn compress(plain: &[u8], level: i32, out: &mut impl Write) -> Result<Stored, Error> {
    let (mut metadata, mut at) =
        Metadata::parse(plain).map_err(|fault| Error::at(plain.len() as u64, fault))?;
    if metadata.codec() != NULL {
        return Err(Error::malformed(0, "the blob is compressed already"));
    }
    metadata.set_codec(ZSTANDARD);
    let mut out = Checked { out, bytes: 0, checksum: Xxh3::new() };
    out.emit(&metadata.encode())?;
    let mut zstd = bulk::Compressor::new(level)?;
    let (mut frame, mut packed) = (Vec::new(), Vec::new());
    while let Some(rest) = plain.get(at..).filter(|rest| !rest.is_empty()) {
        let head = BlockHead::parse(rest).map_err(|fault| Error::at(at as u64, fault))?;
        let whole = head.whole().and_then(|whole| rest.get(..whole));
        let whole = whole.ok_or(Error::Short { at: plain.len() as u64 })?;
        let (block, sync) = whole
            .get(head.frame..)
            .and_then(|body| body.split_at_checked(head.bytes))
            .ok_or(Error::Short { at: plain.len() as u64 })?;
        packed.clear();
        packed.reserve(zstd::zstd_safe::compress_bound(block.len()));
        zstd.compress_to_buffer(block, &mut packed)?;
        frame.clear();
        put_long(&mut frame, head.count as i64);
        put_long(&mut frame, packed.len() as i64);
        out.emit(&frame)?;
        out.emit(&packed)?;
        out.emit(sync)?;
        at += whole.len();
    }
    out.out.flush()?;
    Ok(Stored { bytes: out.bytes, checksum: Checksum(out.checksum.digest()) })
}

/// What came out of a [`Decompressor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes that went in.
    pub bytes: u64,
    /// Their checksum.
    pub checksum: Checksum,
    /// Bytes that came out.
    pub plain_bytes: u64,
    /// Their checksum.
    pub plain_checksum: Checksum,
}

/// Turns the stored form, pushed in pieces of any size, into the plain one; both checksums are made on the way.
///
/// Memory: one block. What comes in is hostile until its checksum is known, which is at the end: the two limits keep
/// a damaged length from taking memory or disk meanwhile.
pub struct Decompressor {
    most_bytes: u64,
    most_plain: u64,
    state: State,
    /// What is not yet a whole header or block.
    pending: Vec<u8>,
    bytes: u64,
    checksum: Xxh3,
    plain_bytes: u64,
    plain_checksum: Xxh3,
    block: Vec<u8>,
    zstd: bulk::Decompressor<'static>,
}

#[derive(Clone, Copy)]
enum State {
    Header,
    /// Blocks are compressed; the marker is known.
    Blocks([u8; SYNC_BYTES]),
    /// The blob is stored in plain form.
    Copy,
}

impl Decompressor {
    /// For a blob of at most `most_bytes` stored and `most_plain` plain bytes.
    ///
    /// # Errors
    /// [`Error::Io`] if zstd has no memory.
    pub fn new(most_bytes: u64, most_plain: u64) -> Result<Decompressor, Error> {
        Ok(Decompressor {
            most_bytes,
            most_plain,
            state: State::Header,
            pending: Vec::new(),
            bytes: 0,
            checksum: Xxh3::new(),
            plain_bytes: 0,
            plain_checksum: Xxh3::new(),
            block: Vec::new(),
            zstd: bulk::Decompressor::new()?,
        })
    }

    /// Takes the next piece and writes what it completes.
    ///
    /// # Errors
    /// [`Error::Malformed`] as soon as it cannot be a container; [`Error::Io`].
    pub fn push(&mut self, piece: &[u8], out: &mut impl Write) -> Result<(), Error> {
        self.bytes += piece.len() as u64;
        self.checksum.update(piece);
        if self.bytes > self.most_bytes {
            let what = format!("it goes on beyond the {} bytes that were announced", self.most_bytes);
            return Err(Error::malformed(self.most_bytes, what));
        }
        if let State::Copy = self.state {
            return self.emit(piece, out);
        }
        let mut pending = std::mem::take(&mut self.pending);
        pending.extend_from_slice(piece);
        let mut at = 0;
        while let Some(rest) = pending.get(at..).filter(|rest| !rest.is_empty()) {
            match self.take(rest, out)? {
                0 => break,
                taken => at += taken,
            }
        }
        pending.drain(..at);
        self.pending = pending;
        Ok(())
    }

    /// Takes one header or block from the front of `rest`; 0 if it is not whole yet.
    fn take(&mut self, rest: &[u8], out: &mut impl Write) -> Result<usize, Error> {
        let at = self.bytes - rest.len() as u64;
        match self.state {
            State::Header => {
                let (mut metadata, length) = match Metadata::parse(rest) {
                    Ok(parsed) => parsed,
                    Err(Fault::Short) if rest.len() <= MOST_HEADER => return Ok(0),
                    Err(fault) => return Err(Error::at(at, fault)),
                };
                if metadata.codec() == NULL {
                    self.state = State::Copy;
                    self.emit(rest, out)?;
                    return Ok(rest.len());
                }
                if metadata.codec() != ZSTANDARD.as_bytes() {
                    let codec = String::from_utf8_lossy(metadata.codec()).into_owned();
                    return Err(Error::malformed(
                        at,
                        format!("codec {codec:?} is neither null nor zstandard"),
                    ));
                }
                metadata.set_codec("null");
                self.state = State::Blocks(metadata.sync);
                self.emit(&metadata.encode(), out)?;
                Ok(length)
            }
            State::Blocks(sync) => {
                let head = match BlockHead::parse(rest) {
                    Ok(head) => head,
                    Err(Fault::Short) => return Ok(0),
                    Err(fault) => return Err(Error::at(at, fault)),
                };
                let whole = head.whole().filter(|&whole| whole as u64 <= self.most_bytes);
                let whole = whole.ok_or_else(|| Error::malformed(at, "a block longer than the blob"))?;
                let Some(body) = rest.get(head.frame..whole) else { return Ok(0) };
                let (packed, marker) = body
                    .split_at_checked(head.bytes)
                    .ok_or_else(|| Error::malformed(at, "a block without marker"))?;
                if marker != sync {
                    return Err(Error::malformed(at, "the sync marker behind the block is not this blob's"));
                }
                self.unpack(at, head.count, packed, sync, out)?;
                Ok(whole)
            }
            State::Copy => {
                self.emit(rest, out)?;
                Ok(rest.len())
            }
        }
    }

    fn unpack(
        &mut self,
        at: u64,
        count: u64,
        packed: &[u8],
        sync: [u8; SYNC_BYTES],
        out: &mut impl Write,
    ) -> Result<(), Error> {
        let size = get_frame_content_size(packed).ok().flatten();
        let size = size.ok_or_else(|| Error::malformed(at, "a block that is no zstd frame with a size"))?;
        if size > self.most_plain.saturating_sub(self.plain_bytes) {
            return Err(Error::malformed(at, "a block that unpacks beyond the bytes that were announced"));
        }
        let mut block = std::mem::take(&mut self.block);
        block.clear();
        block.reserve(size as usize);
        self.zstd
            .decompress_to_buffer(packed, &mut block)
            .map_err(|error| Error::malformed(at, format!("a block does not unpack: {error}")))?;
        let mut frame = Vec::with_capacity(BlockHead::MOST);
        put_long(&mut frame, count as i64);
        put_long(&mut frame, block.len() as i64);
        self.emit(&frame, out)?;
        self.emit(&block, out)?;
        self.emit(&sync, out)?;
        self.block = block;
        Ok(())
    }

    fn emit(&mut self, bytes: &[u8], out: &mut impl Write) -> Result<(), Error> {
        self.plain_bytes += bytes.len() as u64;
        if self.plain_bytes > self.most_plain {
            let what = format!("it unpacks beyond the {} bytes that were announced", self.most_plain);
            return Err(Error::malformed(self.bytes, what));
        }
        self.plain_checksum.update(bytes);
        out.write_all(bytes)?;
        Ok(())
    }

    /// Ends it. That the checksums are the announced ones is the caller's to see.
    ///
    /// # Errors
    /// [`Error::Short`] if a header or block is incomplete.
    pub fn finish(self) -> Result<Unpacked, Error> {
        if !self.pending.is_empty() || matches!(self.state, State::Header) {
            return Err(Error::Short { at: self.bytes });
        }
        Ok(Unpacked {
            bytes: self.bytes,
            checksum: Checksum(self.checksum.digest()),
            plain_bytes: self.plain_bytes,
            plain_checksum: Checksum(self.plain_checksum.digest()),
        })
    }
}
