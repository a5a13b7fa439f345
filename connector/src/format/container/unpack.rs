//! From the stored form to the plain one, as it comes in, block by block.
//!
//! ```text
//!             +-- blocks --> [decompress] --+
//! pieces --> [frame, checksum]              +--> [checksum, write]      in order, each arrow a bounded queue
//!             +-- blocks --> [decompress] --+
//! ```
//!
//! What comes in is hostile until its checksum is known, which is at the end: what was announced of its lengths keeps a
//! damaged one from taking memory or disk meanwhile.

use std::io::Write;
use std::num::NonZero;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
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
/// Threads that decompress, at most: what comes after them is done by one.
const WORKERS: usize = 4;
/// Plain bytes that go from thread to thread at a time.
const BATCH: usize = 512 << 10;

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

/// Writes the plain form of a blob to `out`, whose stored form comes in `pieces` of any size; its checksum is made on
/// the way, and with `sums` that of the plain form too: they are the caller's to compare. A blob stored in plain form passes as it
/// is. Blocks of a large one are decompressed by several threads. Memory: a few blocks.
///
/// # Errors
/// [`Error::Malformed`] as soon as it cannot be a container of at most `most_bytes` stored and `most_plain` plain bytes;
/// [`Error::Short`] if it ends within a header or block; [`Error::Io`].
pub fn unpack<P: AsRef<[u8]>>(
    pieces: impl IntoIterator<Item = P>,
    most_bytes: u64,
    most_plain: u64,
    sums: bool,
    out: &mut (impl Write + Send),
) -> Result<Unpacked, Error> {
    let workers = match thread::available_parallelism().map_or(1, NonZero::get).min(WORKERS) {
        workers if most_bytes >= WIDE => workers,
        _ => 1,
    };
    unpack_with(workers, Batch::unpack, sums, pieces, most_bytes, most_plain, out)
}

#[cfg(test)]
pub(super) fn unpack_by<P: AsRef<[u8]>>(
    workers: usize,
    pieces: impl IntoIterator<Item = P>,
    most_bytes: u64,
    most_plain: u64,
    out: &mut (impl Write + Send),
) -> Result<Unpacked, Error> {
    unpack_with(workers, Batch::unpack, true, pieces, most_bytes, most_plain, out)
}

/// What a worker does with a batch.
pub(super) type Work = fn(&Batch, &mut bulk::Decompressor<'_>, Vec<u8>) -> Result<Unpacking, Error>;

pub(super) fn unpack_with<P: AsRef<[u8]>>(
    workers: usize,
    work: Work,
    sums: bool,
    pieces: impl IntoIterator<Item = P>,
    most_bytes: u64,
    most_plain: u64,
    out: &mut (impl Write + Send),
) -> Result<Unpacked, Error> {
    let mut frames = Frames::new(most_bytes, most_plain);
    let out = Plain { out, checksum: sums.then(Xxh3::new) };
    let plain_checksum = if workers < 2 {
        let mut here = Here { zstd: bulk::Decompressor::new()?, buffer: Vec::new(), out };
        for piece in pieces {
            frames.push(piece.as_ref(), &mut here)?;
        }
        here.out.checksum
    } else {
        spread(workers, work, &mut frames, pieces, out)?
    };
    frames.finish(plain_checksum)
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

/// Output that sums what goes through, if that is asked for.
struct Plain<'w, W: Write> {
    out: &'w mut W,
    checksum: Option<Xxh3>,
}

impl<W: Write> Plain<'_, W> {
    fn emit(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if let Some(checksum) = &mut self.checksum {
            checksum.update(bytes);
        }
        self.copy(bytes)
    }

    fn copy(&mut self, bytes: &[u8]) -> Result<(), Error> {
        Ok(self.out.write_all(bytes)?)
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

/// All on the thread that the pieces come to.
struct Here<'w, W: Write> {
    zstd: bulk::Decompressor<'static>,
    buffer: Vec<u8>,
    out: Plain<'w, W>,
}

impl<W: Write> Parts for Here<'_, W> {
    fn header(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.emit(bytes)
    }

    fn copy(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.copy(bytes)
    }

    fn block(&mut self, packed: &Packed<'_>) -> Result<(), Error> {
        let length = decompress(&mut self.zstd, packed, &mut self.buffer, 0)?;
        self.out.emit(self.buffer.get(..length).unwrap_or_default())
    }
}

/// Blocks that one worker unpacks, one behind the other.
#[derive(Default)]
pub(super) struct Batch {
    /// Frame and compressed bytes of each.
    bytes: Vec<u8>,
    /// Of each: where it was, the lengths of frame and compressed bytes, its plain size.
    blocks: Vec<(u64, usize, usize, usize)>,
    plain: usize,
    sync: [u8; SYNC_BYTES],
}

impl Batch {
    fn unpack(&self, zstd: &mut bulk::Decompressor<'_>, mut buffer: Vec<u8>) -> Result<Unpacking, Error> {
        buffer.reserve(self.plain.saturating_sub(buffer.len()));
        let (mut from, mut to) = (0, 0);
        for &(at, frame, packed, size) in &self.blocks {
            let whole = self.bytes.get(from..from + frame + packed).unwrap_or_default();
            let (head, bytes) = whole.split_at_checked(frame).unwrap_or_default();
            let packed = Packed { at, frame: head, bytes, size, sync: self.sync };
            to = decompress(zstd, &packed, &mut buffer, to)?;
            from += whole.len();
        }
        Ok((buffer, to))
    }
}

/// A buffer, and how much of it is of the batch: the rest is of one before it, and is neither written nor made zero again.
pub(super) type Unpacking = (Vec<u8>, usize);

/// What is written next.
enum Next {
    Header(Vec<u8>),
    /// As it came, and summed already.
    Copy(Vec<u8>),
    /// A worker has it in hand.
    Coming(Receiver<Result<Unpacking, Error>>),
}

type Job = (Batch, SyncSender<Result<Unpacking, Error>>);

/// Hands blocks to workers, and to the writer the promise of what comes of them.
struct Spread {
    batch: Batch,
    jobs: SyncSender<Job>,
    order: SyncSender<Next>,
}

/// The thread at the other end has ended, and says why when it is joined.
fn ended<T>(_: T) -> Error {
    Error::Io(std::io::ErrorKind::BrokenPipe.into())
}

impl Spread {
    fn flush(&mut self) -> Result<(), Error> {
        if self.batch.blocks.is_empty() {
            return Ok(());
        }
        // The next one will be about as large: grown piece by piece it would be copied several times.
        let bytes = Vec::with_capacity(self.batch.bytes.len() + self.batch.bytes.len() / 8);
        let batch = std::mem::replace(&mut self.batch, Batch { bytes, ..Batch::default() });
        let (give, take) = sync_channel(1);
        self.order.send(Next::Coming(take)).map_err(ended)?;
        self.jobs.send((batch, give)).map_err(ended)
    }
}

impl Parts for Spread {
    fn header(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.order.send(Next::Header(bytes.to_vec())).map_err(ended)
    }

    fn copy(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.order.send(Next::Copy(bytes.to_vec())).map_err(ended)
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

fn spread<P: AsRef<[u8]>, W: Write + Send>(
    workers: usize,
    work: Work,
    frames: &mut Frames,
    pieces: impl IntoIterator<Item = P>,
    mut out: Plain<'_, W>,
) -> Result<Option<Xxh3>, Error> {
    let (jobs, queue) = sync_channel::<Job>(workers);
    let (order, coming) = sync_channel(2 * workers);
    let queue = Arc::new(Mutex::new(queue));
    // Buffers go round: a new one costs the zeroing of its pages.
    let spare = Mutex::new(Vec::<Vec<u8>>::new());
    thread::scope(|scope| {
        let mut working = Vec::with_capacity(workers);
        for _ in 0..workers {
            let mut zstd = bulk::Decompressor::new()?;
            let (queue, spare) = (Arc::clone(&queue), &spare);
            let next = move || queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let buffer =
                move || spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
            working.push(thread::Builder::new().spawn_scoped(scope, move || {
                while let Ok((batch, give)) = next() {
                    // Nobody there: the writer has ended.
                    let _ = give.send(work(&batch, &mut zstd, buffer()));
                }
            })?);
        }
        // The workers alone hold it: when the last has ended, by whatever, nobody waits for room in it.
        drop(queue);
        let spare = &spare;
        let writer = thread::Builder::new().spawn_scoped(scope, move || {
            for next in coming {
                match next {
                    Next::Header(bytes) => out.emit(&bytes)?,
                    Next::Copy(bytes) => out.copy(&bytes)?,
                    Next::Coming(take) => {
                        let (buffer, length) = take.recv().map_err(panicked)??;
                        out.emit(buffer.get(..length).unwrap_or_default())?;
                        spare.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
                    }
                }
            }
            Ok(out.checksum)
        })?;
        let mut spread = Spread { batch: Batch::default(), jobs, order };
        let fed = pieces
            .into_iter()
            .try_for_each(|piece| frames.push(piece.as_ref(), &mut spread))
            .and_then(|()| spread.flush());
        drop(spread);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // Joined by hand: a panic of theirs is the writer's error, and not the end of this thread too.
        let ends: Vec<_> = working.into_iter().map(|worker| worker.join().map_err(panicked)).collect();
        let worked = ends.into_iter().collect::<Result<(), Error>>();
        // What ended the writer explains why nothing more could be given to it.
        match (written, fed, worked) {
            (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => Err(error),
            (Ok(checksum), Ok(()), Ok(())) => Ok(checksum),
        }
    })
}
