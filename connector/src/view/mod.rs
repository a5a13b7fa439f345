//! A version in memory, the same for the writer, who compares batches with it, and for readers.
//!
//! ```text
//!  Chain --fetch--> files --map--> base (snapshot + index)  +  overlay (runs of deltas)  =  View  --> get, scan
//!          |          |                    ^                        |        |
//!        Store      cache                  '--------- merge --------'        '-- apply one more delta: the next View
//! ```
//!
//! Owns: how a version is held, read, extended and merged; the cache of blobs. Does not own: which version is the
//! right one (`consumer/follow`, `producer/recover`), when a snapshot is due, where blobs are kept for good (`blob/`).
//!
//! A [`View`] is immutable and cheap to clone. A reader holds the one that it was given for as long as it likes; the
//! files below stay mapped, and are not evicted, until the last clone is gone.
//!
//! What is believed: a delta is checked whole when it is opened; of a snapshot and its index each page is checked when
//! it is first touched. So a damaged byte is an error ([`Error::Corrupt`]) and never a value.

use std::borrow::Cow;
use std::path::Path;
use std::sync::{Arc, Weak};

use crate::format::container::Kind;
use crate::gauge::Budget;
use crate::record::{Entry, Stamp};
use crate::schema::Schema;
use crate::version::{Chain, Version};

mod error;
mod about;
pub mod cache;
mod notes;
mod away;
pub mod map;
mod delta;
mod overlay;
mod sorted;
mod base;
mod line;
mod merge;
mod read;
mod many;
mod hold;
mod kept;
mod lookup;
mod table;
mod charge;
mod changes;
pub mod fetch;
mod parts;
pub mod past;
pub mod fold;

pub use about::{About, Identity};
pub use base::{Base, BaseFiles};
pub use cache::{Cache, FileName, Held};
pub use changes::{Change, ChangeKind, Changes, Update, Updates};
pub use delta::DeltaFile;
pub use error::Error;
pub use fetch::Fetcher;
pub use fold::Fold;
pub use hold::Hold;
pub use lookup::{Matches, Term};
pub use merge::Snapshot;
pub use notes::Spared;
pub use overlay::Compaction;
pub use past::{Past, Restored};
pub use read::{Origin, Reads, Scan, Value};

use line::{Line, Reading};
use lookup::Lookup;
use overlay::Overlay;

/// An entry and what its value is encoded in.
#[derive(Clone, Copy, Debug)]
struct Found<'a> {
    entry: Entry<'a>,
    raw: &'a [u8],
    schema: &'a Arc<Schema>,
}

/// What a version holds for a key: as [`Entry`], in the version's own schema, borrowed wherever it was written so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldEntry<'a> {
    /// Where it came from.
    pub stamp: Stamp,
    /// The datum; `None` is a delete.
    pub value: Option<Cow<'a, [u8]>>,
}

/// How much has gathered over the base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverlaySize {
    /// Runs that a lookup may have to ask.
    pub runs: usize,
    /// Deltas that they refer to.
    pub deltas: usize,
    /// Entries.
    pub entries: u64,
    /// Bytes of those deltas.
    pub plain_bytes: u64,
    /// Bytes of memory (not of mapped files) that it takes.
    pub memory_bytes: u64,
}

/// One version of one shard: immutable, cheap to clone, readable from any thread without a lock.
#[derive(Clone, Debug)]
pub struct View(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    identity: Identity,
    about: About,
    base: Option<Arc<Base>>,
    /// Whether values of the base are read as they lie there.
    direct: bool,
    overlay: Overlay,
    line: Line,
    /// Files of the cache from which a restart makes this version again. Held, so that they are not evicted: also those
    /// that a base without names or a merged run has made superfluous here.
    files: Vec<(Version, Held)>,
    resolvers: Vec<(Arc<Schema>, Reading)>,
    reads: Arc<Reads>,
    /// What is held of the dataset; views that are made of this one hold the same.
    hold: Arc<Hold>,
    /// Where tables of its bases are kept. `None`: only of a version that is held whole, and found by its keys alone.
    cache: Option<Cache>,
    /// What its memory is charged to; `None`: nobody counts it.
    memory: Option<Budget>,
    lookups: Vec<Lookup>,
}

/// What views that are made of one another have in common.
#[derive(Clone, Debug, Default)]
struct Shared {
    reads: Arc<Reads>,
    hold: Arc<Hold>,
    cache: Option<Cache>,
    memory: Option<Budget>,
}

/// The files of a chain, fetched: see `Fetcher::fetch`.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Of its snapshot.
    pub base: Option<BaseFiles>,
    /// Of its deltas, in their order.
    pub deltas: Vec<Held>,
}

impl View {
    /// Version 0: nothing.
    pub fn empty(identity: Identity, schema: Arc<Schema>) -> View {
        View(Arc::new(Inner {
            identity,
            about: About::nothing(schema.clone()),
            base: None,
            direct: false,
            overlay: Overlay::default(),
            line: Line::of(schema, Arc::default()),
            files: Vec::new(),
            resolvers: Vec::new(),
            reads: Arc::new(Reads::default()),
            hold: Arc::new(Hold::default()),
            cache: None,
            memory: None,
            lookups: Vec::new(),
        }))
    }

    /// A version of which nothing can be had any more: its number and what was announced of it, and no key.
    pub fn lost(identity: Identity, about: About) -> View {
        let View(mut inner) = View::empty(identity, about.schema.clone());
        if let Some(inner) = Arc::get_mut(&mut inner) {
            inner.about = About { records: 0, ..about };
        }
        View(inner)
    }

    /// Maps the files of `chain` as one version. Blocking. Cost: a pass over the deltas; nothing for the snapshot.
    ///
    /// Its schema is that of its newest blob, whatever `about` says: that is what was announced with it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the file to discard and fetch again; [`Error::Gap`] if the chain is not one, or not the
    /// one `about` speaks of; [`Error::Schema`]; [`Error::Io`].
    pub fn open(identity: &Identity, files: &Files, chain: &Chain, about: About) -> Result<View, Error> {
        chain.check().map_err(Error::Gap)?;
        if chain.version() != about.version || chain.deltas.len() != files.deltas.len() {
            let (chain, deltas) = (chain.version(), files.deltas.len());
            let about = about.version;
            return Err(Error::Gap(format!(
                "a chain to version {chain} with {deltas} files for version {about}"
            )));
        }
        let each: Vec<_> = files.deltas.iter().zip(&chain.deltas).collect();
        let deltas = DeltaFile::open_all(&each, identity, &about.schema)?;
        let known = deltas.first().map_or(&about.schema, |next| next.schema());
        let base = match (&chain.snapshot, &files.base) {
            (Some(snapshot), Some(files)) => Some(Arc::new(Base::open(files, identity, snapshot, known)?)),
            (None, None) => None,
            _ => return Err(Error::Gap("a chain with a snapshot, and files without, or the reverse".into())),
        };
        let first = base.as_ref().map_or(known, |base| base.schema());
        let mut line = Line::of(first.clone(), Arc::default());
        for delta in &deltas {
            line = line.to(delta.header().version, delta.schema())?;
        }
        let newest = deltas.last().map(DeltaFile::header).or(base.as_ref().map(|base| base.header()));
        if let Some(newest) = newest {
            line = line.knowing(&newest.former);
        }
        let mut held = base.iter().flat_map(|base| base_files(base)).collect::<Vec<_>>();
        held.extend(
            chain.deltas.iter().zip(&files.deltas).map(|(delta, held)| (delta.version, held.clone())),
        );
        let layers = Layers { base, overlay: Overlay::of(&deltas)?, line, files: held };
        View::assemble(identity.clone(), about, layers, Shared::default())
    }

    /// The next version: this one with `delta` on top. Cost: the delta's entries (see `overlay` for the merging that
    /// comes now and then). Blocking only as computing is. Its schema is the delta's, whatever `about` says.
    ///
    /// # Errors
    /// [`Error::Gap`] if the delta does not follow this version, or is of another schema where only a part is held;
    /// [`Error::Foreign`]; [`Error::Schema`].
    pub fn apply(&self, delta: Arc<DeltaFile>, about: About) -> Result<View, Error> {
        self.apply_by(delta, about, usize::MAX)
    }

    /// The same; runs of more entries than `most` together are not merged now ([`View::compact`]).
    pub(super) fn apply_by(&self, delta: Arc<DeltaFile>, about: About, most: usize) -> Result<View, Error> {
        let inner = &*self.0;
        let header = delta.header();
        let follows = header.version == self.version().next() && header.previous == self.version();
        if !follows || about.version != header.version {
            let (have, next, about) = (self.version(), header.version, about.version);
            return Err(Error::Gap(format!(
                "delta {next} (of announcement {about}) does not follow version {have}"
            )));
        }
        inner
            .identity
            .expect(header, Kind::Delta, about.version, about.life.epoch)
            .map_err(|detail| Error::Foreign { what: "the delta".into(), detail })?;
        if inner.hold.is_whole() {
            let line = inner.line.clone().to(header.version, delta.schema())?.knowing(&header.former);
            let mut files = Vec::with_capacity(inner.files.len() + 1);
            files.extend_from_slice(&inner.files);
            files.extend(delta.held().map(|held| (header.version, held.clone())));
            let layers =
                Layers { base: inner.base.clone(), overlay: inner.overlay.with(&delta, most)?, line, files };
            return inner.remade(about, layers);
        }
        let (narrowed, about) = inner.narrowed(&delta, &about)?;
        let mut layers = Layers { overlay: inner.overlay.with(&narrowed, most)?, ..inner.layers() };
        // A restart applies the whole one to what the cache keeps of a version below.
        layers.files.extend(delta.held().map(|held| (about.version, held.clone())));
        inner.remade(about, layers)
    }

    /// The same version as the next one sees it that is of `schema`: each value read in that. The same, where it is its own.
    ///
    /// # Errors
    /// [`Error::Schema`] if its values cannot be.
    pub fn turned_to(&self, schema: &Arc<Schema>) -> Result<View, Error> {
        let inner = &*self.0;
        let line = inner.line.clone().to(self.version().next(), schema)?;
        inner.remade(inner.about.clone(), Layers { line, ..inner.layers() })
    }

    /// How many of its records cannot be read in its schema although that resolves, and the first one's key; `None`: all can.
    /// Blocking. Cost: a pass over all of it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a page is damaged.
    pub fn unreadable(&self) -> Result<Option<(u64, Vec<u8>)>, Error> {
        let mut unreadable: Option<(u64, Vec<u8>)> = None;
        let mut merged = self.merged(&[])?;
        while let Some(found) = merged.next()? {
            match self.0.resolved(&found) {
                Ok(_) => {}
                Err(Error::Schema(_)) => {
                    unreadable.get_or_insert_with(|| (0, found.entry.key.to_vec())).0 += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(unreadable)
    }

    /// The same version on another base: deltas that the base covers are let go of.
    ///
    /// # Errors
    /// [`Error::Gap`] if the base is newer than this version, or older than its present base.
    pub fn rebase(&self, base: Arc<Base>) -> Result<View, Error> {
        let inner = &*self.0;
        let oldest = inner.base.as_ref().map_or(Version(0), |base| base.version());
        let version = base.version();
        if version > self.version() || version < oldest {
            let have = self.version();
            return Err(Error::Gap(format!(
                "base {version} for version {have}, whose deltas start above {oldest}"
            )));
        }
        inner
            .identity
            .expect(base.header(), Kind::Snapshot, version, base.header().life.epoch)
            .map_err(|detail| Error::Foreign { what: "the base".into(), detail })?;
        let mut files = inner.files.clone();
        if base.files().is_some() {
            files.retain(|(of, _)| *of > version);
            files.extend(base_files(&base));
        }
        let line = inner.line.clone().on(&base)?;
        let layers = Layers { base: Some(base), overlay: inner.overlay.above(version), line, files };
        inner.remade(inner.about.clone(), layers)
    }

    /// The same version, which holds in the cache only what a start needs that begins with the snapshot of version `oldest`,
    /// the newest one announced. Without this a view that was made of one delta after another would hold all of them for
    /// as long as the process lives, whatever the cache's budget.
    #[must_use]
    pub fn holding_from(self, oldest: Version) -> View {
        let inner = &*self.0;
        if inner.files.iter().all(|(of, _)| *of >= oldest) {
            return self;
        }
        let mut inner = inner.clone();
        inner.files.retain(|(of, _)| *of >= oldest);
        View(Arc::new(inner))
    }

    /// The same version with other facts about it, as when Kafka is back and confirms that it is the newest.
    ///
    /// # Errors
    /// [`Error::Gap`] if they are another version's.
    pub fn restate(&self, about: About) -> Result<View, Error> {
        let inner = &*self.0;
        if about.version != self.version() {
            return Err(Error::Gap(format!(
                "facts of version {} for version {}",
                about.version,
                self.version()
            )));
        }
        inner.remade(inner.held_about(about), inner.layers())
    }

    /// The same view, counting its reads in `reads`, and all views made from it too.
    pub fn counting(&self, reads: Arc<Reads>) -> View {
        View(Arc::new(Inner { reads, ..(*self.0).clone() }))
    }

    fn assemble(
        identity: Identity,
        about: About,
        layers: Layers,
        Shared { reads, hold, cache, memory }: Shared,
    ) -> Result<View, Error> {
        let Layers { base, overlay, line, files } = layers;
        let about = About { schema: line.schema().clone(), ..about };
        let resolvers = line.readings(base.as_deref(), &overlay)?;
        let direct = base.as_ref().is_some_and(|base| {
            let is = |(have, reading): &(_, Reading)| {
                Arc::ptr_eq(have, base.schema()) && matches!(reading, Reading::AsIs)
            };
            Arc::ptr_eq(base.schema(), &about.schema) || resolvers.iter().any(is)
        });
        let lookups = Vec::new();
        let mut inner = Inner {
            identity,
            about,
            base,
            direct,
            overlay,
            line,
            files,
            resolvers,
            reads,
            hold,
            cache,
            memory,
            lookups,
        };
        inner.lookups = lookup::of(&inner)?;
        if let Some(base) = &inner.base {
            let made = inner.lookups.iter().filter_map(Lookup::held);
            let new = made.filter(|held| !inner.files.iter().any(|(_, have)| have.is(held)));
            let new: Vec<_> = new.map(|held| (base.version(), held.clone())).collect();
            inner.files.extend(new);
        }
        inner.charge();
        Ok(View(Arc::new(inner)))
    }

    /// What this version holds for `key`, a delete included where one is kept; in the version's schema.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a page is damaged.
    #[inline]
    pub fn entry(&self, key: &[u8]) -> Result<Option<HeldEntry<'_>>, Error> {
        match self.0.find(key)? {
            Some(found) => Ok(Some(HeldEntry { stamp: found.entry.stamp, value: self.0.resolved(&found)? })),
            None => Ok(None),
        }
    }

    #[inline]
    fn resolved<'a>(&'a self, found: &Found<'a>) -> Result<Option<Cow<'a, [u8]>>, Error> {
        self.0.resolved(found)
    }

    /// The version.
    pub fn version(&self) -> Version {
        self.0.about.version
    }

    /// What its announcement said.
    pub fn about(&self) -> &About {
        &self.0.about
    }

    /// Which shard it is of.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// Keys in it.
    pub fn records(&self) -> u64 {
        self.0.about.records
    }

    /// When it was announced, milliseconds since the Unix epoch.
    pub fn announced_at_ms(&self) -> i64 {
        self.0.about.announced_at_ms
    }

    /// Whether everything is in it that its sources held when they were first seen.
    pub fn caught_up(&self) -> bool {
        self.0.about.caught_up
    }

    /// Whether it was taken from the cache while Kafka was away.
    pub fn is_stale(&self) -> bool {
        self.0.about.stale
    }

    /// The dataset's schema.
    pub fn schema(&self) -> &Arc<Schema> {
        &self.0.about.schema
    }

    /// The dataset's schema, where the version's own is a part of it.
    pub(crate) fn whole_schema(&self) -> &Arc<Schema> {
        self.0.line.whole()
    }

    /// Whether some of its values were written under schemas before its own, and are decoded to be read.
    pub fn is_resolved(&self) -> bool {
        self.0.line.is_resolved()
    }

    /// Hashes of the texts of schemas that the dataset had before this one, oldest first ([`Schema::text_hash`]).
    pub fn former(&self) -> &Arc<[u64]> {
        self.0.line.former()
    }

    /// The base below, if there is one.
    pub fn base(&self) -> Option<&Arc<Base>> {
        self.0.base.as_ref()
    }

    /// How much has gathered over the base. Cost: a walk over the deltas.
    pub fn overlay(&self) -> OverlaySize {
        self.0.overlay.size()
    }

    /// Its reads, counted together with those of the views that it was made from and that are made from it.
    pub fn reads(&self) -> &Arc<Reads> {
        &self.0.reads
    }

    /// To find it again as long as somebody has it.
    pub fn shadow(&self) -> Shadow {
        Shadow(Arc::downgrade(&self.0))
    }

    /// Files of the base, if a page of them was found damaged: the owner discards them, fetches again and opens anew.
    pub fn damaged(&self) -> Option<[&Path; 2]> {
        self.0.base.as_ref().and_then(|base| base.damaged())
    }
}

/// A view that is there for as long as somebody else has it. The default: none.
#[derive(Clone, Debug, Default)]
pub struct Shadow(Weak<Inner>);

impl Shadow {
    /// Whether somebody has the view.
    pub fn is_there(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// The view, if it is there.
    pub fn view(&self) -> Option<View> {
        self.0.upgrade().map(View)
    }
}

/// What a view is made of.
struct Layers {
    base: Option<Arc<Base>>,
    overlay: Overlay,
    line: Line,
    files: Vec<(Version, Held)>,
}

fn base_files(base: &Base) -> impl Iterator<Item = (Version, Held)> + '_ {
    let files = base.files().into_iter().flat_map(|files| [&files.snapshot, &files.index]);
    files.map(|held| (base.version(), held.clone())).chain(base.note().cloned())
}

impl Inner {
    fn layers(&self) -> Layers {
        let (base, overlay) = (self.base.clone(), self.overlay.clone());
        Layers { base, overlay, line: self.line.clone(), files: self.files.clone() }
    }

    fn shared(&self) -> Shared {
        let (reads, hold) = (self.reads.clone(), self.hold.clone());
        Shared { reads, hold, cache: self.cache.clone(), memory: self.memory.clone() }
    }

    /// A view of other facts or layers that counts and holds as this one does.
    fn remade(&self, about: About, layers: Layers) -> Result<View, Error> {
        View::assemble(self.identity.clone(), about, layers, self.shared())
    }

    /// The value of an entry in the version's schema.
    #[inline]
    fn resolved<'a>(&'a self, found: &Found<'a>) -> Result<Option<Cow<'a, [u8]>>, Error> {
        match found.entry.value {
            None => Ok(None),
            Some(datum) if Arc::ptr_eq(found.schema, &self.about.schema) => Ok(Some(Cow::Borrowed(datum))),
            Some(datum) => self.resolve(found.schema, datum).map(Some),
        }
    }

    #[cold]
    fn resolve<'a>(&self, schema: &Arc<Schema>, datum: &'a [u8]) -> Result<Cow<'a, [u8]>, Error> {
        let reading = self.resolvers.iter().find(|(have, _)| Arc::ptr_eq(have, schema));
        let (_, reading) = reading.ok_or(Error::Internal("no reading for a schema of the view"))?;
        let read = reading.read(datum).map_err(|error| Error::Schema(error.into()))?;
        Ok(read.map_or(Cow::Borrowed(datum), Cow::Owned))
    }
}

#[cfg(test)]
pub(crate) mod tests;
