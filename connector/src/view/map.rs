//! Files as memory, and pages that are checked before they are believed.
//!
//! Owns: the mapping (the only `unsafe` of the room), the record of which pages were seen whole. Does not own: what the
//! bytes mean (`format/`), nor which files there are (`cache`).

use std::fs::File;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memmap2::{Advice, Mmap};
use xxhash_rust::xxh3::xxh3_64;

use super::Error;
use super::away::drop_elsewhere;
use crate::format::index::PAGE;

/// From so many bytes on a file is unmapped elsewhere than by who lets go of it: for less, to wake a thread takes as long.
pub(super) const LARGE: usize = 1 << 20;

/// A file mapped for reading.
#[derive(Debug)]
pub struct Map {
    /// Until it is dropped.
    map: ManuallyDrop<Mmap>,
    path: PathBuf,
}

impl Drop for Map {
    #[expect(unsafe_code, reason = "taking the map out of what is dropped; see SAFETY")]
    fn drop(&mut self) {
        // SAFETY: nothing looks at `self.map` any more, whose only owner is being dropped, once.
        let map = unsafe { ManuallyDrop::take(&mut self.map) };
        if map.len() >= LARGE {
            drop_elsewhere(Box::new(map));
        }
    }
}

impl Map {
    /// Maps the file at `path`, which has to have exactly `bytes` bytes.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is shorter or longer, [`Error::Io`].
    #[expect(unsafe_code, reason = "mapping a file; see SAFETY")]
    pub fn open(path: &Path, bytes: u64) -> Result<Map, Error> {
        let io = |source| Error::io("opening", path, source);
        let file = File::open(path).map_err(io)?;
        let have = file.metadata().map_err(io)?.len();
        if have != bytes {
            return Err(Error::corrupt(path, format!("it has {have} bytes instead of {bytes}")));
        }
        // SAFETY: the bytes of a map must not change while it lives. Files of the cache are written under a temporary
        // name and renamed once whole; after that nothing of Stillwell writes or truncates them, eviction only unlinks
        // (a mapped file keeps its bytes), and a second process follows the same rules. Someone who truncates a cache
        // file by hand while it is mapped ends this process with SIGBUS; nothing in a process can prevent that, and it
        // is the price of reading without a copy (docs/decisions/0001-mapped-cache.md).
        let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::io("mapping", path, source))?;
        Ok(Map { map: ManuallyDrop::new(map), path: path.to_owned() })
    }

    /// All bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the system to read far ahead: for a map that is passed over and then let go of.
    pub fn will_scan(&self) {
        // Advice only: where the system takes none, the pass is merely slower.
        let _ = self.map.advise(Advice::Sequential);
    }

    /// A pass over all of it, for which the system reads far ahead; afterwards it does not.
    pub fn pass<T>(&self, over: impl FnOnce(&[u8]) -> T) -> T {
        self.will_scan();
        let done = over(&self.map);
        let _ = self.map.advise(Advice::Normal);
        done
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

/// Asks the processor to bring what lies here into its caches. Where it knows no such hint, nothing happens.
#[inline]
#[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "a hint to the processor; see SAFETY"))]
pub fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint reads and writes nothing, faults on no address, and this one is a valid reference's besides.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// A mapped file, or the end of one, whose pages are checked when they are first touched.
///
/// The record of what was checked is a bit per page, set without ordering: two threads that both find it unset both
/// check, and come to the same answer about bytes that never change.
#[derive(Debug)]
pub struct Paged {
    map: Map,
    /// Where the pages start in the file.
    start: usize,
    sums: Vec<u64>,
    seen: Vec<AtomicU64>,
    damaged: AtomicBool,
}

impl Paged {
    /// The bytes of `map` from `start` on, whose pages have the checksums `sums`.
    pub fn new(map: Map, start: usize, sums: Vec<u64>) -> Paged {
        let seen = (0..sums.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Paged { map, start, sums, seen, damaged: AtomicBool::new(false) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// Bytes behind `start`.
    #[inline]
    pub fn len(&self) -> usize {
        self.map.bytes().len().saturating_sub(self.start)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pages that were read.
    #[cfg(test)]
    pub fn touched(&self) -> u32 {
        self.seen.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum()
    }

    /// Whether a page was found damaged.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// The map below.
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// The bytes `from..to`, checked.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if one of their pages is not what it was, or they lie beyond the end.
    #[inline]
    pub fn range(&self, from: usize, to: usize) -> Result<&[u8], Error> {
        let mut page = from / PAGE;
        while page * PAGE < to {
            self.check(page)?;
            page += 1;
        }
        let bytes = self.start.checked_add(from).zip(self.start.checked_add(to));
        match bytes.and_then(|(from, to)| self.map.bytes().get(from..to)) {
            Some(bytes) => Ok(bytes),
            None => Err(self.beyond(to)),
        }
    }

    /// The little-endian word at `at`, checked. Words lie at multiples of eight, so none crosses a page.
    ///
    /// # Errors
    /// As [`Paged::range`].
    #[inline]
    pub fn word(&self, at: usize) -> Result<u64, Error> {
        self.check(at / PAGE)?;
        let bytes = self.start.checked_add(at).and_then(|at| self.map.bytes().get(at..));
        match bytes.and_then(|bytes| bytes.first_chunk()) {
            Some(word) => Ok(u64::from_le_bytes(*word)),
            None => Err(self.beyond(at.saturating_add(8))),
        }
    }

    /// The bytes from `from` to the end of its page, checked.
    ///
    /// # Errors
    /// As [`Paged::range`].
    #[inline]
    pub fn window(&self, from: usize) -> Result<&[u8], Error> {
        let page = from / PAGE;
        self.check(page)?;
        let end = ((page + 1) * PAGE).min(self.len());
        match self.map.bytes().get(self.start.saturating_add(from)..self.start + end) {
            Some(bytes) => Ok(bytes),
            None => Err(self.beyond(end)),
        }
    }

    /// Asks for the byte at `at`, without checking its page.
    #[inline]
    pub fn prefetch(&self, at: usize) {
        if let Some(byte) = self.start.checked_add(at).and_then(|at| self.map.bytes().get(at)) {
            prefetch(byte);
        }
    }

    /// Hands `read` a window from `from` on that grows until it says more than `None`, or the file ends.
    ///
    /// # Errors
    /// As [`Paged::range`]; [`Error::Corrupt`] if `read` is not content with all there is.
    #[inline]
    pub fn growing<'a, T>(
        &'a self,
        from: usize,
        mut read: impl FnMut(&'a [u8]) -> Option<T>,
    ) -> Result<T, Error> {
        match read(self.window(from)?) {
            Some(read) => Ok(read),
            None => self.growing_slow(from, read),
        }
    }

    #[cold]
    fn growing_slow<'a, T>(
        &'a self,
        from: usize,
        mut read: impl FnMut(&'a [u8]) -> Option<T>,
    ) -> Result<T, Error> {
        let mut pages = 2;
        loop {
            let to = ((from / PAGE + pages) * PAGE).min(self.len());
            if let Some(read) = read(self.range(from, to)?) {
                return Ok(read);
            }
            if to == self.len() {
                let detail = format!("no entry can be read at byte {from}");
                return Err(Error::corrupt(self.map.path(), detail));
            }
            pages *= 2;
        }
    }

    #[inline]
    fn check(&self, page: usize) -> Result<(), Error> {
        if self.was_seen(page) { Ok(()) } else { self.check_slow(page) }
    }

    #[inline(always)]
    fn was_seen(&self, page: usize) -> bool {
        let word = self.seen.get(page / 64).map_or(0, |word| word.load(Ordering::Relaxed));
        word & 1 << (page % 64) != 0
    }

    /// As [`Paged::word`], where its page was seen before; see [`View::get`](super::View::get) for why it matters.
    #[inline(always)]
    pub fn seen_word(&self, at: usize) -> Option<u64> {
        if !self.was_seen(at / PAGE) {
            return None;
        }
        let bytes = self.map.bytes().get(self.start.wrapping_add(at)..)?;
        bytes.first_chunk().map(|word| u64::from_le_bytes(*word))
    }

    /// `length` bytes from `from` on, where they lie on one page that was seen before, and are any.
    #[inline(always)]
    pub fn seen(&self, from: usize, length: usize) -> Option<&[u8]> {
        let to = from + length;
        if length == 0 || (from ^ (to - 1)) / PAGE != 0 || !self.was_seen(from / PAGE) {
            return None;
        }
        self.map.bytes().get(self.start.wrapping_add(from)..self.start.wrapping_add(to))
    }

    #[cold]
    fn check_slow(&self, page: usize) -> Result<(), Error> {
        let bytes = self.map.bytes();
        let from = (self.start + page * PAGE).min(bytes.len());
        let to = (from + PAGE).min(bytes.len());
        let sum = xxh3_64(bytes.get(from..to).unwrap_or_default());
        if self.sums.get(page) != Some(&sum) {
            self.damaged.store(true, Ordering::Relaxed);
            let detail = format!("page {page} (bytes {from} to {to}) does not have its checksum");
            return Err(Error::corrupt(self.map.path(), detail));
        }
        if let Some(word) = self.seen.get(page / 64) {
            word.fetch_or(1 << (page % 64), Ordering::Relaxed);
        }
        Ok(())
    }

    #[cold]
    fn beyond(&self, to: usize) -> Error {
        self.damaged.store(true, Ordering::Relaxed);
        Error::corrupt(self.map.path(), format!("something points at byte {to}, beyond its end"))
    }

    /// Checks every page now.
    ///
    /// # Errors
    /// [`Error::Corrupt`] at the first that is not what it was.
    pub fn check_all(&self) -> Result<(), Error> {
        (0..self.sums.len()).try_for_each(|page| self.check(page))
    }
}
