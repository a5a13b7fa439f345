//! From the plain form to the stored one, block by block. The way back is `unpack`.

use std::io::Write;

use xxhash_rust::xxh3::Xxh3;
use zstd::bulk;

use super::header::Metadata;
use super::{BlockHead, Error};
use crate::schema::wire::put_long;
use crate::version::Checksum;

/// zstd's fastest regular level. Blocks are small, so that higher ones gain a few percent of bytes for several times
/// the CPU, which the writer pays for each version before anyone can read it.
pub const LEVEL: i32 = 1;

pub(super) const NULL: &str = "null";
pub(super) const ZSTANDARD: &str = "zstandard";

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
    if metadata.codec() != NULL.as_bytes() {
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
