//! What a consumer holds of its dataset: all of it, or the records and fields that it needs.
//!
//! ```text
//!  snapshot + deltas --[filter, fields]--> a base, kept in the cache          (a pass over all of it; the next start finds it: `kept`)
//!  delta             --[filter, fields]--> a smaller delta, in memory         (a lookup for each of its entries)
//! ```
//!
//! A record that no longer is one of those that are held is a delete here; one whose kept fields stay what they were is no
//! change here, and keeps the source that it had. What is thrown away lies in the cache for as long as its budget allows.
//!
//! Owns: what is kept of what comes. Does not own: the language of filters (`codec`), schemas of some fields (`schema`),
//! how what is kept is found (`lookup`), and found again (`kept`).

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use super::kept::Origin;
use super::line::Line;
use super::lookup::Index;
use super::merge::Kept;
use super::overlay::Overlay;
use super::{About, Cache, DeltaFile, Error, Inner, Layers, Shared, View, base_files};
use crate::codec::Filter;
use crate::format::container::{Reader, Writer};
use crate::record::Entry;
use crate::schema::{Resolver, Schema};
use crate::version::Checksum;

/// What of a dataset is held, and by which fields it is found besides the key. The default: all, by the key alone.
#[derive(Debug, Default)]
pub struct Hold {
    filter: Option<Filter>,
    fields: Option<Vec<String>>,
    indexes: Vec<Index>,
    /// 0: nothing is left out.
    mark: u64,
    /// The last schema of the dataset, and what it is with the kept fields only.
    kept: Mutex<Option<(Arc<Schema>, Arc<Schema>)>>,
}

impl Hold {
    /// Records for which `filter` holds, with these fields, found by these indexes.
    pub fn new(filter: Option<Filter>, fields: Option<Vec<String>>, indexes: Vec<Vec<String>>) -> Hold {
        let indexes = indexes.into_iter().map(Index::new).collect();
        let mark = mark(filter.as_ref(), fields.as_deref());
        Hold { filter, fields, indexes, mark, kept: Mutex::default() }
    }

    /// Names what is left out: the same in each process and release where filter and fields are, whatever the order of the
    /// fields. 0: nothing is.
    pub fn mark(&self) -> u64 {
        self.mark
    }

    /// Whether nothing is left out.
    pub fn is_whole(&self) -> bool {
        self.filter.is_none() && self.fields.is_none()
    }

    /// Why records of this schema cannot be filtered so.
    pub fn filter_misfit(&self, schema: &Schema) -> Option<String> {
        self.filter.as_ref().and_then(|filter| filter.check(schema).err()).map(|error| error.to_string())
    }

    /// Why just these fields of this schema cannot be kept.
    pub fn fields_misfit(&self, schema: &Schema) -> Option<String> {
        self.fields.as_ref().and_then(|fields| schema.only(fields).err()).map(|error| error.to_string())
    }

    /// Why what is kept of records of this schema cannot be found by one of the indexes.
    pub fn index_misfit(&self, schema: &Schema) -> Option<String> {
        let kept = self.fields.as_ref().and_then(|fields| schema.only(fields).ok());
        self.indexes.iter().find_map(|index| index.misfit(kept.as_ref().unwrap_or(schema)))
    }

    pub(super) fn indexes(&self) -> &[Index] {
        &self.indexes
    }

    /// The schema of what is kept. Parsed once as long as the dataset's stays the same.
    pub(super) fn schema(&self, whole: &Arc<Schema>) -> Result<Arc<Schema>, Error> {
        let Some(fields) = &self.fields else { return Ok(whole.clone()) };
        let mut known = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((dataset, kept)) = &*known
            && (Arc::ptr_eq(dataset, whole) || dataset.json() == whole.json())
        {
            return Ok(kept.clone());
        }
        let kept = Arc::new(whole.only(fields).map_err(|error| Error::Unfit(error.into()))?);
        *known = Some((whole.clone(), kept.clone()));
        Ok(kept)
    }

    /// What it takes to go from values of the dataset's schema to what is kept.
    fn narrow(&self, whole: &Arc<Schema>) -> Result<Narrow<'_>, Error> {
        if let Some(filter) = &self.filter {
            filter.check(whole).map_err(|error| Error::Unfit(error.into()))?;
        }
        let kept = self.schema(whole)?;
        let project = match Arc::ptr_eq(whole, &kept) {
            true => None,
            false => Some(Resolver::new(whole, &kept).map_err(|error| Error::Schema(error.into()))?),
        };
        Ok(Narrow { filter: self.filter.as_ref(), whole: whole.clone(), kept, project })
    }
}

/// Stands in checkpoints and entity tags: what it is made of does not change.
fn mark(filter: Option<&Filter>, fields: Option<&[String]>) -> u64 {
    if filter.is_none() && fields.is_none() {
        return 0;
    }
    let mut said = String::new();
    if let Some(filter) = filter {
        said.extend(["filter\0", filter.text(), "\0"]);
    }
    let mut fields: Vec<_> = fields.unwrap_or_default().iter().map(String::as_str).collect();
    fields.sort_unstable();
    fields.dedup();
    for field in fields {
        said.extend(["field\0", field, "\0"]);
    }
    Checksum::of(said.as_bytes()).0
}

/// What is kept of single values.
struct Narrow<'h> {
    filter: Option<&'h Filter>,
    whole: Arc<Schema>,
    kept: Arc<Schema>,
    project: Option<Resolver>,
}

impl Narrow<'_> {
    /// What is kept of a datum of the dataset's schema; `None`: nothing.
    fn value<'d>(&self, datum: Cow<'d, [u8]>) -> Result<Option<Cow<'d, [u8]>>, Error> {
        let malformed = |error: crate::schema::Malformed| Error::Schema(error.into());
        if let Some(filter) = self.filter
            && !filter.holds(&self.whole, &datum).map_err(malformed)?
        {
            return Ok(None);
        }
        let Some(project) = &self.project else { return Ok(Some(datum)) };
        let mut kept = Vec::with_capacity(datum.len());
        project.resolve(&datum, &mut kept).map_err(malformed)?;
        Ok(Some(Cow::Owned(kept)))
    }
}

impl View {
    /// Names what is held of which history: where this is the same, a version of the same number has the same content. The
    /// schema is not in it, since it follows from the version and the fields.
    pub fn mark(&self) -> u32 {
        let mut said = [0; 24];
        let (topic_id, hold) = said.split_at_mut(16);
        topic_id.copy_from_slice(&self.0.identity.topic_id.0);
        hold.copy_from_slice(&self.0.hold.mark.to_le_bytes());
        Checksum::of(&said).0 as u32
    }

    /// What `hold` says is to be held of this version, which is whole. Blocking. Cost: a pass over all of it where
    /// something is left out, which is written into a base of this process's own; a pass over the records that are held
    /// for each index, save those whose tables `cache` has.
    ///
    /// # Errors
    /// [`Error::Unfit`] if filter or fields do not fit the schema; [`Error::Corrupt`]; [`Error::Io`].
    pub fn hold(self, hold: &Arc<Hold>, cache: &Cache) -> Result<View, Error> {
        self.hold_as(hold, cache, None)
    }

    /// The same; what is held of a version of this `origin` is kept in the cache, where the next start finds it.
    pub(super) fn hold_as(
        self,
        hold: &Arc<Hold>,
        cache: &Cache,
        origin: Option<Origin>,
    ) -> Result<View, Error> {
        if hold.is_whole() && hold.indexes.is_empty() {
            return Ok(self);
        }
        let inner = &self.0;
        let identity = inner.identity.clone();
        let shared = Shared { hold: hold.clone(), cache: Some(cache.clone()), ..inner.shared() };
        if hold.is_whole() {
            return View::assemble(identity, inner.about.clone(), inner.layers(), shared);
        }
        let narrow = hold.narrow(self.schema())?;
        let life = self.about().life;
        let written = self.write_base(life, &narrow.kept, cache, |found| {
            Ok(match self.0.resolved(found)?.map(|datum| narrow.value(datum)).transpose()?.flatten() {
                None => Kept::No,
                Some(Cow::Borrowed(_)) if Arc::ptr_eq(found.schema, &narrow.kept) => Kept::AsItIs,
                Some(value) => Kept::Value(value),
            })
        })?;
        let about =
            About { schema: narrow.kept, records: written.summary().counts.upserts, ..inner.about.clone() };
        let base = match origin {
            Some(origin) => origin.keep(written, cache, &identity)?,
            None => written.into_base()?,
        };
        // Nothing of the whole is held on to, save what the cache keeps by itself.
        let mut line = Line::of(about.schema.clone(), self.former().clone());
        line.whole = Some(self.schema().clone());
        let files = base_files(&base).collect();
        let layers = Layers { base: Some(base), overlay: Overlay::default(), line, files };
        View::assemble(identity, about, layers, shared)
    }
}

impl Inner {
    /// What is held of `delta`, which follows this version and makes the one that `about` speaks of; and `about` as it
    /// is of what is held.
    ///
    /// Where the dataset's schema changes there is none: what was left out may be held by the new one, and what was held
    /// be read in it otherwise.
    pub(super) fn narrowed(&self, delta: &DeltaFile, about: &About) -> Result<(DeltaFile, About), Error> {
        let whole = self.line.whole();
        if !Arc::ptr_eq(delta.schema(), whole) && !delta.schema().is_same_as(whole) {
            return Err(Error::Gap(format!(
                "version {} is of another schema than the one before: what is held of it is made anew",
                about.version
            )));
        }
        let narrow = self.hold.narrow(whole)?;
        let kept = &self.about.schema;
        let internal = |_| Error::Internal("a delta in memory cannot be written");
        let mut records = self.about.records;
        let mut header = delta.header().clone();
        header.entry_schema = kept.entry_json().into();
        header.counts = None;
        let mut writer = Writer::new(Vec::new(), &header).map_err(internal)?;
        let reader = Reader::parse(delta.plain()).map_err(internal)?;
        for located in reader.entries(delta.schema()) {
            let entry =
                located.map_err(|_| Error::Internal("a delta that was checked cannot be read"))?.entry;
            let value = entry.value.map(|datum| narrow.value(Cow::Borrowed(datum))).transpose()?.flatten();
            let held = match self.find(entry.key)? {
                Some(found) => self.resolved(&found)?,
                None => None,
            };
            match (held, &value) {
                (None, None) => continue,
                (Some(held), Some(value)) if held == *value => continue,
                (None, Some(_)) => records += 1,
                (Some(_), None) => records = records.saturating_sub(1),
                (Some(_), Some(_)) => {}
            }
            writer.push(&Entry { value: value.as_deref(), ..entry }).map_err(internal)?;
        }
        let (_, plain) = writer.finish().map_err(internal)?;
        let delta = DeltaFile::from_plain(plain, &self.identity, kept)?;
        Ok((delta, About { records, ..about.clone() }))
    }

    /// Facts about this very version, as they are of what is held of it.
    pub(super) fn held_about(&self, about: About) -> About {
        if self.hold.is_whole() { about } else { About { records: self.about.records, ..about } }
    }
}
