//! Entries of deltas in the order of their keys, and many of them made one.
//!
//! ```text
//!  files: [delta 9, delta 8, ..]        refs: [hash, file 1 offset 40 | hash, file 0 offset 16 | ..]   by key
//! ```
//!
//! Nothing is copied: an entry lies where it lay, in its delta. A merge looks at each key once, and compares numbers as long as
//! the first eight bytes behind what all keys share tell two of them apart.
//!
//! Owns: that order. Does not own: finding a key without walking, and when what is merged (`overlay`).

use std::cmp::Ordering;
use std::sync::Arc;

use super::delta::{Content, Data, DeltaFile, Ref};
use super::fold::prefix;
use super::map::prefetch;
use super::{Error, Found};
use crate::format::container;
use crate::threads;
use crate::version::Version;

/// Entries ahead of those that are compared whose keys are asked for: a merge would wait for each one.
const AHEAD: usize = 8;

/// Entries that a thread more is worth.
const WIDE_FROM: usize = 32 << 10;

const OFFSET_BITS: u32 = 40;
const OFFSET_MASK: u64 = (1 << OFFSET_BITS) - 1;

/// Entries of one or more deltas by key, each key once.
#[derive(Clone, Debug)]
pub(super) struct Sorted {
    pub files: Vec<Arc<Content>>,
    pub refs: Arc<[Ref]>,
}

impl Sorted {
    pub fn of(delta: &DeltaFile) -> Sorted {
        let (content, refs) = delta.parts();
        Sorted { refs: refs.clone(), files: vec![content.clone()] }
    }

    #[inline]
    pub fn file(&self, at: Ref) -> Result<(&Arc<Content>, &[u8]), Error> {
        let file = self
            .files
            .get((at.at >> OFFSET_BITS) as usize)
            .ok_or(Error::Internal("a run refers to no file"))?;
        let window = file.data.bytes().get((at.at & OFFSET_MASK) as usize..);
        Ok((file, window.ok_or(Error::Internal("a run refers beyond its file"))?))
    }

    #[inline]
    pub fn key(&self, at: Ref) -> Result<&[u8], Error> {
        let (file, window) = self.file(at)?;
        container::entry_key(window).map(|(key, _)| key).map_err(|_| changed(file))
    }

    #[inline]
    pub fn entry(&self, at: Ref) -> Result<Found<'_>, Error> {
        let (file, window) = self.file(at)?;
        let (entry, length) = container::entry(window, &file.schema).map_err(|_| changed(file))?;
        Ok(Found { entry, raw: window.get(..length).unwrap_or_default(), schema: &file.schema })
    }

    /// All of them as one, newest first; of a key that several have the newest entry counts. Each key is read once; by
    /// several processors, where there is enough for them.
    pub fn merge(all: &[&Sorted]) -> Result<Sorted, Error> {
        let files: usize = all.iter().map(|sorted| sorted.files.len()).sum();
        if files > (u32::MAX >> 8) as usize {
            return Err(Error::Internal(
                "an overlay of more than 16 million deltas: it was never merged into a base",
            ));
        }
        let entries: usize = all.iter().map(|sorted| sorted.refs.len()).sum();
        let parts = parts(all, threads::for_jobs(entries / WIDE_FROM).max(1))?;
        let refs: Arc<[Ref]> = match parts.as_slice() {
            [part] => merged(part)?.into(),
            _ => {
                let merged = threads::several(parts, |part| merged(&part));
                merged.into_iter().collect::<Result<Vec<_>, _>>()?.concat().into()
            }
        };
        let files = all.iter().flat_map(|sorted| &sorted.files).cloned().collect();
        Ok(Sorted { files, refs }.without_idle_files())
    }

    /// Number of its first entry at or above `from`.
    pub fn first_at(&self, from: &[u8]) -> Result<usize, Error> {
        let (mut low, mut high) = (0, self.refs.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let at = self.refs.get(middle).ok_or(Error::Internal("a run shorter than itself"))?;
            if self.key(*at)? < from {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// Lets go of files that no entry is left of: where the same keys change again and again that is most of them.
    fn without_idle_files(mut self) -> Sorted {
        let mut places: Vec<Option<u64>> = vec![None; self.files.len()];
        for at in self.refs.iter() {
            if let Some(place) = places.get_mut((at.at >> OFFSET_BITS) as usize) {
                *place = Some(0);
            }
        }
        if places.iter().all(Option::is_some) {
            return self;
        }
        for (kept, place) in places.iter_mut().flatten().enumerate() {
            *place = kept as u64;
        }
        let mut used = places.iter();
        self.files.retain(|_| used.next().is_some_and(Option::is_some));
        let place = |at: u64| places.get((at >> OFFSET_BITS) as usize).copied().flatten().unwrap_or_default();
        self.refs = self
            .refs
            .iter()
            .map(|at| Ref { hash: at.hash, at: place(at.at) << OFFSET_BITS | at.at & OFFSET_MASK })
            .collect();
        self
    }

    /// Only what deltas above `version` brought.
    pub fn above(&self, version: Version) -> Sorted {
        let newer = |at: &&Ref| {
            let file = self.files.get((at.at >> OFFSET_BITS) as usize);
            file.is_some_and(|file| file.header.version > version)
        };
        let refs = self.refs.iter().filter(newer).copied().collect();
        Sorted { files: self.files.clone(), refs }.without_idle_files()
    }
}

/// Entries of one run, a part of its keys.
struct Part<'a> {
    sorted: &'a Sorted,
    refs: &'a [Ref],
    /// What is added to where its entries lie, in a list of files that has others before its own.
    moved: u64,
}

/// So many parts, each with a range of the keys of all runs; one behind the other they are all. As alike in size as the largest
/// run's keys make them.
fn parts<'a>(all: &[&'a Sorted], many: usize) -> Result<Vec<Vec<Part<'a>>>, Error> {
    let mut parts: Vec<Vec<Part<'a>>> = (0..many).map(|_| Vec::with_capacity(all.len())).collect();
    let largest = all.iter().max_by_key(|sorted| sorted.refs.len());
    let mut files = 0;
    for sorted in all {
        let moved = (files as u64) << OFFSET_BITS;
        let mut begin = 0;
        for (number, part) in parts.iter_mut().enumerate() {
            // Where the next part begins.
            let bound = largest.and_then(|largest| {
                let at = largest.refs.get(largest.refs.len() * (number + 1) / many)?;
                Some(largest.key(*at))
            });
            let end = match bound {
                Some(key) => sorted.first_at(key?)?,
                None => sorted.refs.len(),
            };
            let refs = sorted.refs.get(begin..end).unwrap_or_default();
            if !refs.is_empty() {
                part.push(Part { sorted, refs, moved });
            }
            begin = end;
        }
        files += sorted.files.len();
    }
    Ok(parts)
}

/// The entries of a part of all runs, newest first, each key once.
fn merged(part: &[Part<'_>]) -> Result<Vec<Ref>, Error> {
    let mut refs: Vec<Ref> = Vec::with_capacity(part.iter().map(|part| part.refs.len()).sum());
    let mut heads = Heads::over(part)?;
    while let Some((prefix, walk)) = heads.least_of_several() {
        refs.push(walk.at);
        let key = walk.key;
        heads.step()?;
        // Older ones of the same key.
        while heads.least().is_some_and(|(next, walk)| next == prefix && walk.key == key) {
            heads.step()?;
        }
    }
    if let Some((_, last)) = heads.least() {
        last.rest(&mut refs);
    }
    Ok(refs)
}

/// Walks a part in key order, with what comes next on its way from memory.
struct Walk<'a> {
    part: &'a Part<'a>,
    /// Number of the entry after the one at hand.
    next: usize,
    /// The entry at hand, as it lies in the list of all files.
    at: Ref,
    key: &'a [u8],
}

impl<'a> Walk<'a> {
    /// `None` for one without entries.
    fn begin(part: &'a Part<'a>) -> Result<Option<Walk<'a>>, Error> {
        let mut walk = Walk { part, next: 0, at: Ref { hash: 0, at: 0 }, key: &[] };
        Ok(walk.step()?.then_some(walk))
    }

    /// Goes on to the next entry. False: there is none.
    #[inline]
    fn step(&mut self) -> Result<bool, Error> {
        let Part { sorted, refs, moved } = self.part;
        if let Some(ahead) = refs.get(self.next + AHEAD)
            && let Some(byte) = sorted.file(*ahead)?.1.first()
        {
            prefetch(byte);
        }
        let Some(at) = refs.get(self.next) else { return Ok(false) };
        self.next += 1;
        self.key = sorted.key(*at)?;
        self.at = Ref { hash: at.hash, at: at.at + moved };
        Ok(true)
    }

    /// The entry at hand and all that follow.
    fn rest(&self, refs: &mut Vec<Ref>) {
        refs.push(self.at);
        let rest = self.part.refs.get(self.next..).unwrap_or_default();
        refs.extend(rest.iter().map(|at| Ref { hash: at.hash, at: at.at + self.part.moved }));
    }
}

/// Where one of the walks of a merge stands.
#[derive(Clone, Copy)]
struct Head {
    /// Of the entry's key, without what all keys of the merge begin with alike: see [`prefix`].
    prefix: u64,
    /// Number of the walk, the newest run's first.
    walk: usize,
}

/// Where all of them stand: a binary heap, the least key on top; of one key the newest run.
///
/// Cost of a step: two comparisons for each doubling of the runs, most of two numbers.
struct Heads<'a> {
    heap: Vec<Head>,
    walks: Vec<Walk<'a>>,
    /// Bytes that all keys begin with alike.
    alike: usize,
}

impl<'a> Heads<'a> {
    /// Each at its first entry; the newest first.
    fn over(parts: &'a [Part<'a>]) -> Result<Heads<'a>, Error> {
        let mut alike: Option<&[u8]> = None;
        for Part { sorted, refs, .. } in parts {
            for at in refs.first().into_iter().chain(refs.last()) {
                let key = sorted.key(*at)?;
                let so_far = alike.unwrap_or(key);
                let length = so_far.iter().zip(key).take_while(|(a, b)| a == b).count();
                alike = so_far.get(..length);
            }
        }
        let alike = alike.unwrap_or_default().len();
        let walks = parts.iter().filter_map(|part| Walk::begin(part).transpose());
        let mut heads =
            Heads { heap: Vec::with_capacity(parts.len()), walks: walks.collect::<Result<_, _>>()?, alike };
        for (number, walk) in heads.walks.iter().enumerate() {
            heads.heap.push(Head { prefix: behind(walk.key, alike), walk: number });
        }
        for at in (0..heads.heap.len() / 2).rev() {
            heads.sink(at);
        }
        Ok(heads)
    }

    /// The least key's prefix and walk.
    #[inline]
    fn least(&self) -> Option<(u64, &Walk<'a>)> {
        let head = self.heap.first()?;
        Some((head.prefix, self.walks.get(head.walk)?))
    }

    /// The same, where others are left besides.
    #[inline]
    fn least_of_several(&self) -> Option<(u64, &Walk<'a>)> {
        if self.heap.len() > 1 { self.least() } else { None }
    }

    /// The least goes on to its next entry.
    #[inline]
    fn step(&mut self) -> Result<(), Error> {
        let Heads { heap, walks, alike } = self;
        let Some(head) = heap.first_mut() else { return Ok(()) };
        let Some(walk) = walks.get_mut(head.walk) else { return Ok(()) };
        if walk.step()? {
            head.prefix = behind(walk.key, *alike);
        } else {
            heap.swap_remove(0);
        }
        self.sink(0);
        Ok(())
    }

    /// Puts the one at `at` below those that come before it.
    #[inline]
    fn sink(&mut self, mut at: usize) {
        loop {
            let mut least = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if let (Some(a), Some(b)) = (self.heap.get(child), self.heap.get(least))
                    && self.is_before(*a, *b)
                {
                    least = child;
                }
            }
            if least == at {
                return;
            }
            self.heap.swap(at, least);
            at = least;
        }
    }

    #[inline]
    fn is_before(&self, a: Head, b: Head) -> bool {
        match a.prefix.cmp(&b.prefix) {
            Ordering::Equal => {
                let key = |head: Head| self.walks.get(head.walk).map(|walk| walk.key);
                key(a).cmp(&key(b)).then(a.walk.cmp(&b.walk)).is_lt()
            }
            order => order.is_lt(),
        }
    }
}

/// Of what stands in a key behind the first `alike` bytes.
#[inline]
fn behind(key: &[u8], alike: usize) -> u64 {
    prefix(key.get(alike..).unwrap_or_default())
}

/// A delta was whole when it was opened and now is not: its file was changed under the map.
#[cold]
fn changed(file: &Content) -> Error {
    let what = format!("the delta of version {}", file.header.version);
    match &file.data {
        Data::Mapped(map) => Error::corrupt(map.path(), format!("{what} has changed since it was opened")),
        Data::Owned(_) => Error::Internal("a delta in memory has changed"),
    }
}

#[cfg(test)]
mod tests;
