//! From the stored form to the plain one, as it comes in, block by block.
//!
//! ```text
//!             +-- blocks --> [decompress, write at its place]
//! pieces --> [frame, checksum]                                     into a file: a bounded queue, a few threads
//!             +-- blocks --> [decompress, write at its place]
//!
//! pieces --> [frame, checksum, decompress, checksum, write]        in order: one thread
//! ```
//!
//! Where a block's plain form begins is known before it is decompressed, since each zstd frame says its size. So no thread
//! waits for another to write, and what one has decompressed is written while it is in that processor's cache.
//!
//! What comes in is hostile until its checksum is known, which is at the end: what was announced of its lengths keeps a
//! damaged one from taking memory or disk meanwhile.

use std::fs::File;
use std::io::Write;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use xxhash_rust::xxh3::Xxh3;
use zstd::bulk;
use zstd::zstd_safe::get_frame_content_size;

use super::header::Metadata;
use super::stored::{NULL, ZSTANDARD};
use super::{BlockHead, Error, SYNC_BYTES};
use crate::format::window::Fault;
use crate::schema::wire::put_long;
use crate::version::Checksum;

/// A header larger than this is not one: the schema and the list of sources are in it, nothing else.
const MOST_HEADER: usize = 64 << 20;

/// Stored bytes from which on threads of its own are worth their start.
const WIDE: u64 = 4 << 20;
/// Threads that decompress and write, at most: one reads for all of them, and the file system lets one at a time into a file.
const WORKERS: usize = 4;
/// Plain bytes that a thread writes at a time. With fewer they wait for each other at the file more often, and more no longer
/// lie in a processor's cache.
const BATCH: usize = 1 << 20;

/// What came out of [`unpack`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes that went in.
    pub bytes: u64,
    /// Their checksum.
    pub checksum: Checksum,
    /// Bytes that came out.
    pub plain_bytes: u64,
    /// Their checksum, where it was asked for.
    pub plain_checksum: Option<Checksum>,
}

/// Writes the plain form of a blob to `out`, whose stored form comes in `pieces` of any size; the checksums of both are made on
/// the way, and are the caller's to compare. A blob stored in plain form passes as it is. Memory: a few blocks.
///
/// # Errors
/// [`Error::Malformed`] as soon as it cannot be a container of at most `most_bytes` stored and `most_plain` plain bytes;
/// [`Error::Short`] if it ends within a header or block; [`Error::Io`].
pub fn unpack<P: AsRef<[u8]>>(
    pieces: impl IntoIterator<Item = P>,
    most_bytes: u64,
    most_plain: u64,
    out: &mut impl Write,
) -> Result<Unpacked, Error> {
    let mut frames = Frames::new(most_bytes, most_plain);
    let mut here = Here { zstd: bulk::Decompressor::new()?, buffer: Vec::new(), out, checksum: Xxh3::new() };
    for piece in pieces {
        frames.push(piece.as_ref(), &mut here)?;
    }
    frames.finish(Some(here.checksum))
}

/// As [`unpack`], into an empty file, and by several threads if the blob is large. The plain form is not summed.
///
/// # Errors
/// As [`unpack`]; what lies in `out` is then of no use.
pub fn unpack_into<P: AsRef<[u8]>>(
    pieces: impl IntoIterator<Item = P>,
    most_bytes: u64,
    most_plain: u64,
    out: &impl WriteAt,
) -> Result<Unpacked, Error> {
    let workers = match thread::available_parallelism().map_or(1, NonZero::get).min(WORKERS) {
        workers if most_bytes >= WIDE => workers,
        _ => 1,
    };
    unpack_by(workers, Batch::unpack, pieces, most_bytes, most_plain, out)
}

/// Where bytes go to places of their own, by several threads.
pub trait WriteAt: Sync {
    /// Writes all of `bytes` to `at`, counted from the beginning.
    ///
    /// # Errors
    /// As [`Write::write_all`].
    fn write_all_at(&self, bytes: &[u8], at: u64) -> std::io::Result<()>;
}

impl WriteAt for File {
    fn write_all_at(&self, bytes: &[u8], at: u64) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, bytes, at)
    }
}

/// Where parts go, in order.
trait Parts {
    /// The header of the plain form.
    fn header(&mut self, bytes: &[u8]) -> Result<(), Error>;
    /// Bytes that are the same in both forms, and summed already.
    fn copy(&mut self, bytes: &[u8]) -> Result<(), Error>;
    /// A block.
    fn block(&mut self, packed: &Packed<'_>) -> Result<(), Error>;
}

/// A compressed block.
struct Packed<'a> {
    at: u64,
    /// The frame before it in the plain form.
    frame: &'a [u8],
    bytes: &'a [u8],
    /// Plain bytes of its entries, as zstd's frame says.
    size: usize,
    sync: [u8; SYNC_BYTES],
}

#[derive(Clone, Copy)]
enum State {
    Header,
    /// Blocks are compressed; the marker is known.
    Blocks([u8; SYNC_BYTES]),
    /// The blob is stored in plain form.
    Copy,
}

/// Takes the stored form apart.
struct Frames {
    most_bytes: u64,
    most_plain: u64,
    state: State,
    /// The beginning of a header or block of which the rest is still to come.
    pending: Vec<u8>,
    bytes: u64,
    checksum: Xxh3,
    plain_bytes: u64,
    frame: Vec<u8>,
}

impl Frames {
    fn new(most_bytes: u64, most_plain: u64) -> Frames {
        Frames {
            most_bytes,
            most_plain,
            state: State::Header,
            pending: Vec::new(),
            bytes: 0,
            checksum: Xxh3::new(),
            plain_bytes: 0,
            frame: Vec::new(),
        }
    }

    fn push(&mut self, mut piece: &[u8], parts: &mut impl Parts) -> Result<(), Error> {
        let start = self.bytes - self.pending.len() as u64;
        self.bytes += piece.len() as u64;
        self.checksum.update(piece);
        if self.bytes > self.most_bytes {
            let what = format!("it goes on beyond the {} bytes that were announced", self.most_bytes);
            return Err(Error::malformed(self.most_bytes, what));
        }
        let mut at = start;
        let mut pending = std::mem::take(&mut self.pending);
        while !pending.is_empty() {
            match self.take(at, &pending, parts)? {
                0 if piece.is_empty() => break,
                0 => {
                    let (now, later) = piece.split_at(self.lacking(&pending).min(piece.len()));
                    pending.extend_from_slice(now);
                    piece = later;
                }
                taken => {
                    at += taken as u64;
                    pending.drain(..taken);
                }
            }
        }
        while !piece.is_empty() {
            match self.take(at, piece, parts)? {
                0 => break,
                taken => {
                    at += taken as u64;
                    piece = piece.get(taken..).unwrap_or_default();
                }
            }
        }
        pending.extend_from_slice(piece);
        self.pending = pending;
        Ok(())
    }

    /// Bytes to add to `pending` before it is looked at again: those that its block lacks, where its frame tells.
    fn lacking(&self, pending: &[u8]) -> usize {
        match self.state {
            State::Blocks(_) => match BlockHead::parse(pending).ok().and_then(|head| head.whole()) {
                Some(whole) => whole.saturating_sub(pending.len()).max(1),
                None => 1,
            },
            State::Header | State::Copy => usize::MAX,
        }
    }

    /// Takes one header or block from the front of `rest`, which lies at `at`; 0 if it is not whole yet.
    fn take(&mut self, at: u64, rest: &[u8], parts: &mut impl Parts) -> Result<usize, Error> {
        match self.state {
            State::Header => {
                let (mut metadata, length) = match Metadata::parse(rest) {
                    Ok(parsed) => parsed,
                    Err(Fault::Short) if rest.len() <= MOST_HEADER => return Ok(0),
                    Err(fault) => return Err(Error::at(at, fault)),
                };
                if metadata.codec() == NULL.as_bytes() {
                    self.state = State::Copy;
                    return self.take(at, rest, parts);
                }
                if metadata.codec() != ZSTANDARD.as_bytes() {
                    let codec = String::from_utf8_lossy(metadata.codec()).into_owned();
                    return Err(Error::malformed(
                        at,
                        format!("codec {codec:?} is neither null nor zstandard"),
                    ));
                }
                metadata.set_codec(NULL);
                self.state = State::Blocks(metadata.sync);
                let header = metadata.encode();
                self.grow(at, header.len())?;
                parts.header(&header)?;
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
                let size = get_frame_content_size(packed).ok().flatten();
                let size =
                    size.ok_or_else(|| Error::malformed(at, "a block that is no zstd frame with a size"))?;
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                self.frame.clear();
                put_long(&mut self.frame, head.count as i64);
                put_long(&mut self.frame, size as i64);
                self.grow(at, size.saturating_add(self.frame.len() + SYNC_BYTES))?;
                parts.block(&Packed { at, frame: &self.frame, bytes: packed, size, sync })?;
                Ok(whole)
            }
            State::Copy => {
                self.grow(at, rest.len())?;
                parts.copy(rest)?;
                Ok(rest.len())
            }
        }
    }

    fn grow(&mut self, at: u64, plain: usize) -> Result<(), Error> {
        self.plain_bytes = self.plain_bytes.saturating_add(plain as u64);
        if self.plain_bytes > self.most_plain {
            let what = format!("it unpacks beyond the {} bytes that were announced", self.most_plain);
            return Err(Error::malformed(at, what));
        }
        Ok(())
    }

    fn finish(self, plain: Option<Xxh3>) -> Result<Unpacked, Error> {
        if !self.pending.is_empty() || matches!(self.state, State::Header) {
            return Err(Error::Short { at: self.bytes });
        }
        let checksum = Checksum(self.checksum.digest());
        let plain_checksum = match self.state {
            State::Copy => Some(checksum),
            _ => plain.map(|plain| Checksum(plain.digest())),
        };
        Ok(Unpacked { bytes: self.bytes, checksum, plain_bytes: self.plain_bytes, plain_checksum })
    }
}

/// The block's plain form with its frame and marker to `at` in `buffer`, which grows as needed; gives where it ends.
fn decompress(
    zstd: &mut bulk::Decompressor<'_>,
    packed: &Packed<'_>,
    buffer: &mut Vec<u8>,
    at: usize,
) -> Result<usize, Error> {
    let body = at + packed.frame.len();
    let end = body + packed.size;
    let whole = end + SYNC_BYTES;
    if buffer.len() < whole {
        buffer.resize(whole, 0);
    }
    let place = |buffer: &'_ mut Vec<u8>, from: usize, bytes: &[u8]| {
        if let Some(place) = buffer.get_mut(from..from + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    place(buffer, at, packed.frame);
    let written = zstd.decompress_to_buffer(packed.bytes, buffer.get_mut(body..end).unwrap_or_default());
    match written {
        Ok(written) if written == packed.size => {}
        Ok(written) => {
            let what = format!("a block of {} bytes unpacks to {written}", packed.size);
            return Err(Error::malformed(packed.at, what));
        }
        Err(error) => return Err(Error::malformed(packed.at, format!("a block does not unpack: {error}"))),
    }
    place(buffer, end, &packed.sync);
    Ok(whole)
}

/// All on the thread that the pieces come to, in order.
struct Here<'w, W: Write> {
    zstd: bulk::Decompressor<'static>,
    buffer: Vec<u8>,
    out: &'w mut W,
    checksum: Xxh3,
}

impl<W: Write> Parts for Here<'_, W> {
    fn header(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.checksum.update(bytes);
        Ok(self.out.write_all(bytes)?)
    }

    fn copy(&mut self, bytes: &[u8]) -> Result<(), Error> {
        Ok(self.out.write_all(bytes)?)
    }

    fn block(&mut self, packed: &Packed<'_>) -> Result<(), Error> {
        let length = decompress(&mut self.zstd, packed, &mut self.buffer, 0)?;
        let plain = self.buffer.get(..length).unwrap_or_default();
        self.checksum.update(plain);
        Ok(self.out.write_all(plain)?)
    }
}

/// Blocks that one worker unpacks, one behind the other.
#[derive(Default)]
pub(super) struct Batch {
    /// Where its plain form begins.
    to: u64,
    /// Frame and compressed bytes of each.
    bytes: Vec<u8>,
    /// Of each: where it was, the lengths of frame and compressed bytes, its plain size.
    blocks: Vec<(u64, usize, usize, usize)>,
    plain: usize,
    sync: [u8; SYNC_BYTES],
}

impl Batch {
    /// Its plain form to the front of `buffer`, which grows as needed; gives where it ends.
    pub(super) fn unpack(
        &self,
        zstd: &mut bulk::Decompressor<'_>,
        buffer: &mut Vec<u8>,
    ) -> Result<usize, Error> {
        let (mut from, mut to) = (0, 0);
        for &(at, frame, packed, size) in &self.blocks {
            let whole = self.bytes.get(from..from + frame + packed).unwrap_or_default();
            let (head, bytes) = whole.split_at_checked(frame).unwrap_or_default();
            let packed = Packed { at, frame: head, bytes, size, sync: self.sync };
            to = decompress(zstd, &packed, buffer, to)?;
            from += whole.len();
        }
        Ok(to)
    }
}

/// What a worker does with a batch before it is written.
pub(super) type Work = fn(&Batch, &mut bulk::Decompressor<'_>, &mut Vec<u8>) -> Result<usize, Error>;

/// Hands blocks to workers.
struct Spread<'s, W> {
    batch: Batch,
    jobs: SyncSender<Batch>,
    out: &'s W,
    /// Where the next part of the plain form begins.
    at: u64,
    /// Something has gone wrong: nobody need do anything any more.
    over: &'s AtomicBool,
}

/// Somebody else has ended, and says why when it is joined.
fn ended<T>(_: T) -> Error {
    Error::Io(std::io::ErrorKind::BrokenPipe.into())
}

impl<W: WriteAt> Spread<'_, W> {
    fn flush(&mut self) -> Result<(), Error> {
        if self.over.load(Ordering::Relaxed) {
            return Err(ended(()));
        }
        if self.batch.blocks.is_empty() {
            return Ok(());
        }
        // The next one will be about as large: grown piece by piece it would be copied several times.
        let bytes = Vec::with_capacity(self.batch.bytes.len() + self.batch.bytes.len() / 8);
        let mut batch = std::mem::replace(&mut self.batch, Batch { bytes, ..Batch::default() });
        batch.to = self.at;
        self.at += batch.plain as u64;
        self.jobs.send(batch).map_err(ended)
    }
}

impl<W: WriteAt> Parts for Spread<'_, W> {
    fn header(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.copy(bytes)
    }

    /// Never after a block: a blob is stored in one form.
    fn copy(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn block(&mut self, packed: &Packed<'_>) -> Result<(), Error> {
        let batch = &mut self.batch;
        batch.sync = packed.sync;
        batch.bytes.extend_from_slice(packed.frame);
        batch.bytes.extend_from_slice(packed.bytes);
        batch.blocks.push((packed.at, packed.frame.len(), packed.bytes.len(), packed.size));
        batch.plain += packed.frame.len() + packed.size + SYNC_BYTES;
        if batch.plain >= BATCH { self.flush() } else { Ok(()) }
    }
}

/// A worker has panicked, and says where.
fn panicked<T>(_: T) -> Error {
    Error::Io(std::io::Error::other(
        "a thread that decompresses has panicked: this is a bug, please report it",
    ))
}

pub(super) fn unpack_by<P: AsRef<[u8]>>(
    workers: usize,
    work: Work,
    pieces: impl IntoIterator<Item = P>,
    most_bytes: u64,
    most_plain: u64,
    out: &impl WriteAt,
) -> Result<Unpacked, Error> {
    let mut frames = Frames::new(most_bytes, most_plain);
    let (jobs, queue) = sync_channel::<Batch>(workers);
    let queue = Arc::new(Mutex::new(queue));
    let over = AtomicBool::new(false);
    let over = &over;
    thread::scope(|scope| {
        let mut working = Vec::with_capacity(workers);
        for _ in 0..workers {
            let mut zstd = bulk::Decompressor::new()?;
            let queue = Arc::clone(&queue);
            let next = move || queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            working.push(thread::Builder::new().spawn_scoped(scope, move || {
                let mut buffer = Vec::with_capacity(BATCH + BATCH / 8);
                while let Ok(batch) = next() {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let done = work(&batch, &mut zstd, &mut buffer).and_then(|end| {
                        Ok(out.write_all_at(buffer.get(..end).unwrap_or_default(), batch.to)?)
                    });
                    if done.is_err() {
                        over.store(true, Ordering::Relaxed);
                        return done;
                    }
                }
                Ok(())
            })?);
        }
        // The workers alone hold it: when the last has ended, by whatever, nobody waits for room in it.
        drop(queue);
        let mut spread = Spread { batch: Batch::default(), jobs, out, at: 0, over };
        let fed = pieces
            .into_iter()
            .try_for_each(|piece| frames.push(piece.as_ref(), &mut spread))
            .and_then(|()| spread.flush());
        if fed.is_err() {
            over.store(true, Ordering::Relaxed);
        }
        drop(spread);
        // Joined by hand: a panic of theirs is an error, and not the end of this thread too.
        let ends: Vec<_> = working.into_iter().map(|worker| worker.join().map_err(panicked)).collect();
        // What ended a worker explains why nothing more could be given to it.
        ends.into_iter().try_for_each(|end| end.and_then(|done| done)).and(fed)
    })?;
    frames.finish(None)
}
