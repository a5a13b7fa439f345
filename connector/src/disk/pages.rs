//! Chunks read back in order, many at a time: each block of keys is read once, and not once for each chunk in it.
//!
//! Owns: nothing on disk; one reading position.

use std::fmt;

use ::rocksdb::{ColumnFamily, DB, DBRawIterator, ReadOptions};

use super::keys::{Kind, key};
use super::rocksdb::passes;
use super::{Database, Error};
use crate::error::chain;
use crate::format::chunk::Chunk;

/// Reads chunks, best in the order of their numbers.
pub struct Pages<'a> {
    database: &'a Database,
    entries: DBRawIterator<'a>,
}

impl fmt::Debug for Pages<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("database", self.database).finish_non_exhaustive()
    }
}

impl<'a> Pages<'a> {
    pub(super) fn new(database: &'a Database, db: &'a DB, family: &ColumnFamily) -> Pages<'a> {
        let mut read = ReadOptions::default();
        read.fill_cache(false);
        read.set_iterate_lower_bound(key(Kind::Chunk, 0));
        read.set_iterate_upper_bound(key(Kind::Chunk, u64::MAX));
        Pages { database, entries: db.raw_iterator_cf_opt(family, read) }
    }

    /// Chunk number `seq`, whole, verified, and the one with checksum `sum`, which stands in its summary.
    ///
    /// # Errors
    /// As [`Database::chunk`].
    pub fn chunk(&mut self, seq: u64, sum: u64) -> Result<Chunk, Error> {
        let wanted = key(Kind::Chunk, seq);
        let corrupt = |why: String| Error::Corrupt { seq, dir: self.database.dir().to_owned(), why };
        if self.entries.key().is_some_and(|at| *at < wanted[..]) {
            self.entries.next();
        }
        // Elsewhere, or stopped on a chunk that nobody asked for.
        if self.entries.key() != Some(&wanted[..]) {
            self.entries.seek(wanted);
        }
        match (self.entries.item(), self.entries.status()) {
            (_, Err(error)) if passes(&error) => {
                Err(Error::refused("reading", self.database.dir(), error.to_string()))
            }
            (_, Err(error)) => Err(corrupt(error.to_string())),
            (Some((at, bytes)), Ok(())) if at == wanted => {
                let chunk = Chunk::parse_copy(bytes).map_err(|error| corrupt(chain(&error)))?;
                match chunk.sum() == sum {
                    true => Ok(chunk),
                    false => Err(corrupt("it is another chunk than its summary says".into())),
                }
            }
            // Written since this reading began, or gone.
            _ => self.database.chunk(seq),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rocksdb::tests::{append, chunk, open};
    use super::*;

    #[test]
    fn chunks_are_read_in_any_order_and_those_that_are_not_whole_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let database = open(&dir.path().join("log")).database;
        append(&database, 0..10, 2_000);
        database.reclaim().unwrap();
        append(&database, 10..20, 2_000);
        database.forget(4, 6, true).unwrap();
        database.damage(12, |bytes| bytes[100] ^= 1);
        let mut pages = database.pages();
        append(&database, 20..21, 2_000);
        for seq in [0, 1, 2, 3, 6, 7, 9, 11, 10, 13, 19, 20, 0] {
            let expected = chunk(seq, 2_000);
            assert_eq!(pages.chunk(seq, expected.sum()).unwrap().encoded(), expected.encoded(), "{seq}");
        }
        for seq in [4, 5, 12, 21] {
            let error = pages.chunk(seq, chunk(seq, 2_000).sum()).unwrap_err();
            assert!(matches!(error, Error::Corrupt { seq: found, .. } if found == seq), "{error}");
        }
        assert!(matches!(pages.chunk(3, 7), Err(Error::Corrupt { seq: 3, .. })));
        assert!(pages.chunk(3, chunk(3, 2_000).sum()).is_ok(), "and on from there");
    }
}
