//! The table of one index over one layer: where the entries lie, by the hash of the index's fields.
//!
//! ```text
//!  run                 in memory, gone with the run
//!  base of the cache   a file beside it, `.lookup`, which the next start maps as it is       (`format/lookup`)
//!  base of our own     a file without a name, gone with the base as the base's own are
//! ```
//!
//! A file that is damaged, cut or of something else is made anew. Its header is checked when it is opened; a page when it is
//! first touched, by a lookup, which then makes the table anew in memory and goes on: nobody is told of what can be made
//! again. Where the disk does not take a file, the table is in memory too.
//!
//! Owns: where tables are, and their search. Does not own: what is hashed, and what a lookup does with a place (`lookup`).

use std::io::{BufWriter, Write as _};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::cache::{Cache, Held};
use super::charge::Charge;
use super::delta::MAP_FROM;
use super::line::Line;
use super::lookup::{Index, WHERE_MASK};
use super::map::{Map, Paged};
use super::{Base, Error, Identity};
use crate::error::chain;
use crate::format::lookup::{self, Layout};
use crate::gauge::Budget;

/// A word, as it lies in a file and in memory.
pub(super) type Word = [u8; 8];

/// A layer's entries by the hash of an index's fields, sorted. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Table(Arc<Words>, Arc<Charge>);

#[derive(Debug)]
enum Words {
    Memory(Box<[Word]>),
    Mapped(Mapped),
}

#[derive(Debug)]
struct Mapped {
    pages: Paged,
    words: usize,
    /// `None`: the file has no name any more.
    held: Option<Held>,
    /// What was made anew, since a page was found damaged.
    anew: OnceLock<Box<[Word]>>,
    making: Mutex<()>,
}

fn in_memory(mut words: Vec<u64>) -> Box<[Word]> {
    words.sort_unstable();
    words.into_iter().map(u64::to_le_bytes).collect()
}

/// The words of one hash, out of all of them.
fn those(words: &[Word], hash: u64) -> &[Word] {
    let of = |word: &Word| u64::from_le_bytes(*word) & !WHERE_MASK;
    let start = words.partition_point(|word| of(word) < hash);
    let rest = words.get(start..).unwrap_or_default();
    rest.get(..rest.partition_point(|word| of(word) <= hash)).unwrap_or_default()
}

impl Table {
    /// In memory.
    pub fn of(words: Vec<u64>) -> Table {
        Table(Arc::new(Words::Memory(in_memory(words))), Arc::default())
    }

    /// That of `base` for `index`, read along `line`: the one that `cache` has, or what `make` makes, which it then keeps if
    /// it has the base too.
    pub fn kept(
        cache: &Cache,
        identity: &Identity,
        (base, index, line): (&Base, &Index, &Line),
        make: impl FnOnce() -> Result<Vec<u64>, Error>,
    ) -> Result<Table, Error> {
        let subject = subject(base, index, line);
        let name = base.files().map(|_| base.made_name(&subject, lookup::SUFFIX));
        if let Some(name) = &name {
            match cache.find_made(identity, name) {
                Ok(Some((held, bytes))) => match Table::open(&held, bytes, base, &subject) {
                    Ok(table) => return Ok(table),
                    Err(error) => {
                        let why = chain(&error);
                        tracing::info!(error = why, "a lookup table of the blob cache is made anew");
                        // What cannot be removed is replaced; what cannot be opened for now stays.
                        if matches!(error, Error::Corrupt { .. }) {
                            let _ = cache.discard(held.path());
                        }
                    }
                },
                Ok(None) => {}
                Err(error) => tracing::info!(%error, "a lookup table is made anew"),
            }
        }
        let mut words = make()?;
        words.sort_unstable();
        if name.is_none() && words.len() as u64 * 8 < MAP_FROM {
            return Ok(Table::of(words));
        }
        match Table::write(cache, identity, name.as_deref(), &subject, &words) {
            Ok(table) => Ok(table),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(
                    error,
                    "a lookup table is held in memory, since the blob cache does not take it"
                );
                Ok(Table::of(words))
            }
        }
    }

    fn open(held: &Held, bytes: u64, base: &Base, subject: &[u8]) -> Result<Table, Error> {
        let table = Table::map(Map::open(held.path(), bytes)?, Some(held.clone()), subject)?;
        match &*table.0 {
            Words::Mapped(mapped) if mapped.words as u64 > base.records() => {
                Err(Error::corrupt(held.path(), "it has more words than its base has records"))
            }
            _ => Ok(table),
        }
    }

    fn map(map: Map, held: Option<Held>, subject: &[u8]) -> Result<Table, Error> {
        let layout = Layout::parse(map.bytes(), subject)
            .map_err(|error| Error::corrupt(map.path(), error.to_string()))?;
        let sums = layout.sums(map.bytes());
        let pages = Paged::new(map, layout.body as usize, sums);
        let (anew, making) = Default::default();
        let words = layout.words as usize;
        Ok(Table(Arc::new(Words::Mapped(Mapped { pages, words, held, anew, making })), Arc::default()))
    }

    fn write(
        cache: &Cache,
        identity: &Identity,
        name: Option<&str>,
        subject: &[u8],
        words: &[u64],
    ) -> Result<Table, Error> {
        let temporary = cache.temporary(identity)?;
        let path = temporary.path().to_owned();
        let mut out = BufWriter::with_capacity(1 << 20, temporary);
        let bytes = lookup::write(subject, words, &mut out).map_err(|error| Error::writing(&path, error))?;
        out.flush().map_err(|source| Error::io("writing", &path, source))?;
        let temporary = out.into_inner().map_err(|error| Error::io("writing", &path, error.into_error()))?;
        match name {
            None => Table::map(Map::open(&path, bytes)?, None, subject),
            Some(name) => {
                let held = cache.keep_made(identity, name, bytes, temporary)?;
                Table::map(Map::open(held.path(), bytes)?, Some(held), subject)
            }
        }
    }

    /// Where the entries of one hash lie, in the order of their keys. Should a page turn out to be damaged, the table is what
    /// `make` makes from now on, and its file is gone from `cache`.
    pub fn those(
        &self,
        hash: u64,
        cache: Option<&Cache>,
        make: impl FnOnce() -> Result<Vec<u64>, Error>,
    ) -> Result<&[Word], Error> {
        let mapped = match &*self.0 {
            Words::Memory(words) => return Ok(those(words, hash)),
            Words::Mapped(mapped) => mapped,
        };
        if let Some(anew) = mapped.anew.get() {
            return Ok(those(anew, hash));
        }
        let error = match mapped.those(hash) {
            Err(error @ Error::Corrupt { .. }) => error,
            found => return found,
        };
        let _one = mapped.making.lock().unwrap_or_else(PoisonError::into_inner);
        if mapped.anew.get().is_none() {
            let error = chain(&error);
            tracing::warn!(error, "a lookup table of the blob cache is damaged; it is made anew");
            if let Some(cache) = cache {
                // What cannot be removed is found damaged once more.
                let _ = cache.discard(mapped.pages.path());
            }
            let _ = mapped.anew.set(in_memory(make()?));
        }
        Ok(mapped.anew.get().map(|anew| those(anew, hash)).unwrap_or_default())
    }

    /// Its file in the cache.
    pub fn held(&self) -> Option<&Held> {
        match &*self.0 {
            Words::Memory(_) => None,
            Words::Mapped(mapped) => mapped.held.as_ref(),
        }
    }

    /// Charges its memory, once it takes any.
    pub fn charge(&self, memory: &Budget) {
        match self.bytes() {
            (0, _) => {}
            (bytes, _) => _ = self.1.to(memory, bytes),
        }
    }

    /// Bytes of memory, and of files that are mapped.
    pub fn bytes(&self) -> (u64, u64) {
        let of = |words: &[Word]| words.len() as u64 * 8;
        match &*self.0 {
            Words::Memory(words) => (of(words), 0),
            Words::Mapped(mapped) => {
                (mapped.anew.get().map_or(0, |anew| of(anew)), mapped.pages.map().bytes().len() as u64)
            }
        }
    }
}

impl Mapped {
    fn those(&self, hash: u64) -> Result<&[Word], Error> {
        let start = self.first(0, |of| of >= hash)?;
        let end = self.first(start, |of| of > hash)?;
        let (words, _) = self.pages.range(start * 8, end * 8)?.as_chunks::<8>();
        Ok(words)
    }

    /// The first word from `low` on whose hash is such; those before it are not, and those after it are.
    fn first(&self, mut low: usize, is: impl Fn(u64) -> bool) -> Result<usize, Error> {
        let mut high = self.words;
        while low < high {
            let middle = low + (high - low) / 2;
            if is(self.pages.word(middle * 8)? & !WHERE_MASK) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(low)
    }
}

/// What the table of a base is made of: its snapshot, the schemas that values are read by, the fields. A change of what is
/// said here, or of what a field's value is hashed as, is another format of the file.
fn subject(base: &Base, index: &Index, line: &Line) -> Vec<u8> {
    let mut said = format!("snapshot {} {}\0", base.checksum(), base.snapshot_bytes());
    for text in line.texts() {
        said.push_str(&format!("schema {text:016x}\0"));
    }
    for field in index.fields() {
        said.extend(["field ", field, "\0"]);
    }
    said.into_bytes()
}

/// The tables that were made of a layer, each once, whatever view asked first.
#[derive(Debug, Default)]
pub(super) struct Tables(Mutex<Vec<(Index, Line, Table)>>);

impl Tables {
    /// That of `index` along `line`: the one there is, or what `make` makes.
    pub fn get(
        &self,
        index: &Index,
        line: &Line,
        make: impl FnOnce() -> Result<Table, Error>,
    ) -> Result<Table, Error> {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |along: &Line| along.is_same_way(line);
        if let Some((.., table)) = tables.iter().find(|(of, along, _)| of == index && same(along)) {
            return Ok(table.clone());
        }
        let table = make()?;
        // What another schema's views hold, they hold themselves.
        tables.retain(|(_, along, _)| same(along));
        tables.push((index.clone(), line.clone(), table.clone()));
        Ok(table)
    }
}
