//! Reading a version: get, scan, and what a value says.
//!
//! Owns: values as the outside sees them, and the count of reads. Does not own: where they lie (`overlay`, `base`).

use std::borrow::Cow;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use serde::de::Deserialize;

use super::merge::Merged;
use super::{Base, Error, Found, Inner, View};
use crate::codec::{Part, Unfit, text};
use crate::error::ErrorKind;
use crate::format::container;
use crate::format::window::Window;
use crate::record::{SourcePartition, Stamp};
use crate::schema::{Schema, wire};
use crate::telemetry::Striped;
use crate::version::ShardVersions;

/// How many values were read, by how. Each thread counts on a cache line of its own, so that readers do not slow each
/// other down; a sum is taken when asked for.
#[derive(Clone, Debug, Default)]
pub struct Reads {
    zero_copy: Striped,
    fallback: Striped,
}

impl Reads {
    /// Counts on these: values borrowed from a map, and values decoded and encoded anew.
    pub fn on(zero_copy: Striped, fallback: Striped) -> Reads {
        Reads { zero_copy, fallback }
    }

    #[inline]
    fn count(&self, fallback: bool) {
        let count = if fallback { &self.fallback } else { &self.zero_copy };
        count.inc();
    }

    /// Values that were borrowed from a map.
    pub fn zero_copy(&self) -> u64 {
        self.zero_copy.get()
    }

    /// Values that were decoded and encoded anew, since they were written under another schema.
    pub fn fallback(&self) -> u64 {
        self.fallback.get()
    }
}

/// The branch of an entry's union that is a value, encoded.
const VALUE: u8 = 2;

/// A record in one version. Borrows from the view, which keeps it readable for as long as it is held.
#[derive(Clone)]
pub struct Value<'a> {
    view: &'a Inner,
    key: &'a [u8],
    stamp: Stamped<'a>,
    datum: Cow<'a, [u8]>,
}

/// A stamp, read only when it is asked for: few readers do.
#[derive(Clone, Copy)]
enum Stamped<'a> {
    Read(Stamp),
    /// As an entry has it.
    Written(&'a [u8]),
}

impl Stamped<'_> {
    fn read(self) -> Stamp {
        match self {
            Stamped::Read(stamp) => stamp,
            Stamped::Written(bytes) => container::stamp(&mut Window::new(bytes)).unwrap_or(Stamp {
                // Its page was checked, so this is a bug of whoever wrote it: no source has this number.
                timestamp: 0,
                source: u32::MAX,
                offset: -1,
            }),
        }
    }
}

/// Where a record came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Topic and partition; `None` if the view does not know the dataset's sources.
    pub source: Option<&'a SourcePartition>,
    /// Its offset there.
    pub offset: i64,
    /// Its timestamp, milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
}

impl<'a> Value<'a> {
    /// The value as an Avro datum in the dataset's schema; for a raw dataset see [`Value::raw`].
    pub fn bytes(&self) -> &[u8] {
        &self.datum
    }

    /// The record's own bytes, where the dataset's schema is plain bytes.
    pub fn raw(&self) -> Option<&[u8]> {
        if !self.view.about.schema.is_raw() {
            return None;
        }
        crate::schema::wire::take_bytes(&mut &*self.datum)
    }

    /// The key's bytes.
    pub fn key(&self) -> &'a [u8] {
        self.key
    }

    /// The schema of [`Value::bytes`].
    pub fn schema(&self) -> &'a Arc<Schema> {
        &self.view.about.schema
    }

    /// The dataset's schema, of which [`Value::schema`] may be a part.
    pub(crate) fn whole_schema(&self) -> &'a Arc<Schema> {
        self.view.line.whole()
    }

    /// As its entry has it; its source counts into the positions of [`About`](super::About).
    pub(crate) fn stamp(&self) -> Stamp {
        self.stamp.read()
    }

    /// Topic, partition, offset and timestamp of the record.
    pub fn source(&self) -> Origin<'a> {
        let stamp = self.stamp.read();
        let position = self.view.about.positions.get(stamp.source as usize);
        Origin {
            source: position.map(|position| &position.source),
            offset: stamp.offset,
            timestamp_ms: stamp.timestamp,
        }
    }

    /// The value as JSON, without whitespace, fields in the schema's order. Raw bytes are a base64 string.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if the datum is none of the schema; its page was checked, so
    /// this is a bug of whoever wrote it.
    pub fn to_json(&self) -> crate::Result<String> {
        let mut out = String::with_capacity(self.datum.len() * 2);
        text::to_json(self.schema(), &self.datum, &mut out).map_err(|error| self.malformed(error))?;
        Ok(out)
    }

    /// One field, by name (`a.b` reaches into a record), as a type of the caller's: `let price: f64 =
    /// value.field("price")?`. Skips the fields before it (some 2 ns each) and looks at nothing behind it. A field that
    /// may be null is asked for as an `Option`; text and bytes can be borrowed.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] if the schema has no such field, or it is no `T`; as [`Value::to_json`].
    pub fn field<'v, T: Deserialize<'v>>(&'v self, path: &str) -> crate::Result<T> {
        let whole = self.part()?;
        let (mut part, mut rest) = (whole, path);
        loop {
            let (name, inner) =
                rest.split_once('.').map_or((rest, None), |(name, inner)| (name, Some(inner)));
            part = match part.field(name).map_err(|error| self.malformed(error))? {
                Some(field) => field,
                // Below a null there is nothing, whatever it would be called.
                None if part.is_null() => break,
                None => return Err(self.no_field(path, name, &part)),
            };
            match inner {
                Some(inner) => rest = inner,
                None => break,
            }
        }
        part.read().map_err(|error| self.unfit(&format!("field {path}"), error))
    }

    /// All of it as a type of the caller's, through serde; fields that the type does not name are skipped.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] if it is no `T`; as [`Value::to_json`].
    pub fn decode<'v, T: Deserialize<'v>>(&'v self) -> crate::Result<T> {
        self.part()?.read().map_err(|error| self.unfit("the value", error))
    }

    /// The datum, to be walked by hand where its type is not known beforehand.
    ///
    /// # Errors
    /// As [`Value::to_json`].
    pub fn part(&self) -> crate::Result<Part<'_>> {
        Part::whole(self.schema(), &self.datum).map_err(|error| self.malformed(error))
    }

    #[cold]
    fn unfit(&self, what: &str, error: Unfit) -> crate::Error {
        match error {
            Unfit::Malformed(error) => self.malformed(error),
            Unfit::Mismatch(why) => {
                let key = String::from_utf8_lossy(self.key);
                crate::Error::new(ErrorKind::Rejected, format!("reading {what} of key {key}: {why}"))
            }
        }
    }

    #[cold]
    fn no_field(&self, path: &str, name: &str, part: &Part<'_>) -> crate::Error {
        let have: Vec<_> = part.field_names().collect();
        let (kind, have) = (part.type_name(), have.join(", "));
        crate::Error::new(
            ErrorKind::Rejected,
            format!("there is no field {path}: {kind} has no {name}; it has: {have}"),
        )
    }

    #[cold]
    fn malformed(&self, error: crate::schema::Malformed) -> crate::Error {
        let doing = format!("decoding the value of key {}", String::from_utf8_lossy(self.key));
        crate::Error::because(ErrorKind::Corrupt, doing, error)
    }

    /// Whether it lies in the map, rather than in a copy that was resolved from another schema.
    pub fn is_zero_copy(&self) -> bool {
        matches!(self.datum, Cow::Borrowed(_))
    }

    /// The datum, free of the view.
    pub fn into_bytes(self) -> Vec<u8> {
        self.datum.into_owned()
    }
}

impl std::fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // No content: a value may be anybody's secret, and Debug ends up in logs.
        write!(f, "Value({} bytes from {:?})", self.datum.len(), self.stamp.read())
    }
}

impl Inner {
    /// The newest entry of a key, a delete included.
    #[inline]
    pub(super) fn find(&self, key: &[u8]) -> Result<Option<Found<'_>>, Error> {
        self.find_hashed(crate::format::index::hash(key), key)
    }

    #[inline]
    pub(super) fn find_hashed(&self, hash: u64, key: &[u8]) -> Result<Option<Found<'_>>, Error> {
        if let Some(found) = self.overlay.find(hash, key)? {
            return Ok(Some(found));
        }
        match &self.base {
            Some(base) => base.find(hash, key),
            None => Ok(None),
        }
    }

    /// As [`Inner::find`] and [`Inner::value`], for what most reads find: a key of the base alone, read as it was
    /// written, on pages that were seen before. `None`: ask those.
    #[inline(always)]
    fn glance(&self, hash: u64, key: &[u8]) -> Option<Value<'_>> {
        let base = self.base.as_deref()?;
        if !self.direct || self.overlay.may_hold(hash) {
            return None;
        }
        let (key, rest) = base.glance(hash, key)?;
        // Timestamp, source, offset, then the branch of the union: one, a value.
        let head = wire::length_of(4, rest)?;
        let (stamp, datum) = rest.split_at_checked(head)?;
        if stamp.last() != Some(&VALUE) {
            return None;
        }
        self.reads.count(false);
        Some(Value { view: self, key, stamp: Stamped::Written(stamp), datum: Cow::Borrowed(datum) })
    }

    #[inline]
    pub(super) fn value<'a>(&'a self, found: &Found<'a>) -> Result<Option<Value<'a>>, Error> {
        let Some(datum) = self.resolved(found)? else { return Ok(None) };
        self.reads.count(matches!(datum, Cow::Owned(_)));
        Ok(Some(Value { view: self, key: found.entry.key, stamp: Stamped::Read(found.entry.stamp), datum }))
    }
}

impl View {
    /// Looks `key` up in this version. `Ok(None)`: absent or deleted.
    ///
    /// Borrows from the mapped files; makes a copy (counted in `fallback_reads_total`) only where the value was written
    /// under another schema than the version's. Takes no lock; may fault in a page, and checks each page once.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] if a page that it needs is damaged; other keys stay readable.
    // A read waits for memory twice, for the slot and for the entry, and a processor can wait for several reads at a
    // time if nothing in between makes it finish one first. An atomic addition does, and so does a copy of a struct
    // through the stack whose halves were just written one by one, since such a load is not forwarded from the stores.
    // Hence the glance: it is inlined whole, keeps all in registers, and leaves what is rare to `find`.
    #[inline]
    pub fn get(&self, key: impl AsRef<[u8]>) -> crate::Result<Option<Value<'_>>> {
        let key = key.as_ref();
        let hash = crate::format::index::hash(key);
        match self.0.glance(hash, key) {
            Some(value) => Ok(Some(value)),
            None => self.find(hash, key),
        }
    }

    #[inline(never)]
    fn find(&self, hash: u64, key: &[u8]) -> crate::Result<Option<Value<'_>>> {
        match self.0.find_hashed(hash, key) {
            Ok(Some(found)) => Ok(self.0.value(&found)?),
            Ok(None) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// All records whose key starts with `prefix`, in the order of their keys' bytes.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Scan<'_> {
        self.prefix_from(prefix, [])
    }

    /// As [`View::prefix`], from the first key at or above `from` on: for going on where a page of results ended.
    pub fn prefix_from(&self, prefix: impl AsRef<[u8]>, from: impl AsRef<[u8]>) -> Scan<'_> {
        let prefix = prefix.as_ref().to_vec();
        let from = from.as_ref().max(prefix.as_slice());
        Scan { view: &self.0, merged: self.merged(from).map_err(Some), until: Until::Prefix(prefix) }
    }

    /// All records whose key lies in `range`, in the order of the keys' bytes: `view.range("a".."b")`.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Scan<'_> {
        let until = match range.end_bound() {
            Bound::Included(end) => Until::UpTo(end.as_ref().to_vec()),
            Bound::Excluded(end) => Until::Below(end.as_ref().to_vec()),
            Bound::Unbounded => Until::Prefix(Vec::new()),
        };
        let from = match range.start_bound() {
            Bound::Included(start) => start.as_ref().to_vec(),
            // The key that follows is the one with a zero byte more.
            Bound::Excluded(start) => [start.as_ref(), &[0]].concat(),
            Bound::Unbounded => Vec::new(),
        };
        Scan { view: &self.0, merged: self.merged(&from).map_err(Some), until }
    }

    /// All records, in the order of their keys' bytes.
    pub fn iter(&self) -> Scan<'_> {
        self.prefix([])
    }

    /// Keys in it, counted rather than announced. Cost: a lookup in the base for each entry of the overlay.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn count(&self) -> Result<u64, Error> {
        let base = self.base().map(|base| &**base);
        let mut records = base.map_or(0, Base::records);
        let mut overlay = Merged::from(&self.0.overlay, None, &[])?;
        while let Some(Found { entry, .. }) = overlay.next()? {
            let before = match base {
                Some(base) => base.find(crate::format::index::hash(entry.key), entry.key)?.is_some(),
                None => false,
            };
            match (before, entry.value.is_some()) {
                (false, true) => records += 1,
                (true, false) => records -= 1,
                _ => {}
            }
        }
        Ok(records)
    }

    /// The version of each shard that reads of this view see.
    pub fn versions(&self) -> ShardVersions {
        ShardVersions(vec![self.version()])
    }

    pub(super) fn merged(&self, from: &[u8]) -> Result<Merged<'_>, Error> {
        Merged::from(&self.0.overlay, self.0.base.as_deref(), from)
    }
}

impl<'a> IntoIterator for &'a View {
    type Item = crate::Result<Value<'a>>;
    type IntoIter = Scan<'a>;

    fn into_iter(self) -> Scan<'a> {
        self.iter()
    }
}

/// Where a scan ends.
enum Until {
    /// With the last key that starts so.
    Prefix(Vec<u8>),
    /// Before this key.
    Below(Vec<u8>),
    /// With this key.
    UpTo(Vec<u8>),
}

impl Until {
    #[inline]
    fn holds(&self, key: &[u8]) -> bool {
        match self {
            Until::Prefix(prefix) => key.starts_with(prefix),
            Until::Below(end) => key < end.as_slice(),
            Until::UpTo(end) => key <= end.as_slice(),
        }
    }
}

/// Records in key order; see [`View::prefix`]. After an error there is nothing more.
pub struct Scan<'a> {
    view: &'a Inner,
    /// `Err(None)`: it is over.
    merged: Result<Merged<'a>, Option<Error>>,
    until: Until,
}

impl<'a> Scan<'a> {
    fn step(&mut self) -> Result<Option<Value<'a>>, Error> {
        let merged = match &mut self.merged {
            Ok(merged) => merged,
            Err(error) => return error.take().map_or(Ok(None), Err),
        };
        while let Some(found) = merged.next()? {
            if !self.until.holds(found.entry.key) {
                return Ok(None);
            }
            if let Some(value) = self.view.value(&found)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = crate::Result<Value<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if !matches!(step, Ok(Some(_))) {
            self.merged = Err(None);
        }
        step.map_err(crate::Error::from).transpose()
    }
}
