//! What is held of a version, kept for the next start: what was passed over for a part of it, or merged beside the flow.
//!
//! ```text
//!  chain of a start:      snapshot  delta  delta  ..  delta     passed over, or merged, once: what is held of them
//!                                                       '-------- VERSION-EPOCH-SUBJECT.kept: a note of two files, snapshot and index
//!  chain of a later one:  snapshot  delta  delta  ..  delta  delta  delta
//!                                                       |        '----'---- applied to those
//!                                                       '-------- has a note
//! ```
//!
//! Who follows by deltas never fetches the snapshots that are announced meanwhile, which the chain of its next start begins
//! with. So what it holds is merged and kept where the cache has nothing else to begin that chain with
//! ([`View::can_begin`]): one base written for each snapshot announced, and nothing fetched.
//!
//! A version is what the last blob of its chain makes it: the valid announcements are one line, so who finds this blob in a
//! newer chain finds the same version below. The note's subject says which blob that is, what is held and the dataset's
//! schema; a chain that changes that on its way from there is passed over anew. The two files are as any snapshot and index of the
//! cache, and named by their content, so that two processes which keep the same do not mix theirs.
//!
//! Whatever cannot be gone on from is made anew of the whole: none of it is a failure.
//!
//! Owns: the notes' form, and the way from one to a view. Does not own: what is held (`hold`), files (`cache`), when a merge
//! runs (`consumer/merging`).

use std::fs;
use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;

use super::cache::{KEPT, made_name};
use super::fetch::{apply, blocking};
use super::line::Line;
use super::notes::{body_of, note_of};
use super::overlay::Overlay;
use super::{
    About, Base, BaseFiles, Cache, Error, Fetcher, FileName, Held, Hold, Identity, Layers, Shared, Snapshot,
    View, base_files,
};
use crate::error::chain as causes;
use crate::schema::Schema;
use crate::version::{BlobRef, Chain, Checksum, Life, SnapshotRef, Version};

/// What stands behind a note's subject: version, epoch, bytes and checksum of the snapshot, the same of the index, records.
const NUMBERS: usize = 7;

/// Of which version something is held, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    version: Version,
    epoch: u64,
    subject: Vec<u8>,
}

impl Origin {
    /// What `hold` says of each version on the way to that of `chain`, the newest first, if the dataset's schema is this.
    fn all<'a>(chain: &'a Chain, hold: &Hold, schema: &Schema) -> impl Iterator<Item = Origin> + 'a {
        // What a filter holds is what the release takes it to say: a mistake that is mended must not live on in the cache. The
        // whole is what the formats of its files say.
        let release = if hold.is_whole() { "" } else { env!("CARGO_PKG_VERSION") };
        let held =
            format!("release {release}\0hold {:016x}\0schema {:016x}\0", hold.mark(), schema.text_hash());
        let deltas =
            chain.deltas.iter().rev().map(|delta| ("delta", delta.version, delta.epoch, &delta.blob));
        let snapshot = chain.snapshot.iter();
        let snapshot = snapshot.map(|of| ("snapshot", of.version, of.epoch, &of.blob));
        deltas.chain(snapshot).map(move |(kind, version, epoch, blob)| {
            let (checksum, bytes) = (blob.plain_checksum, blob.plain_bytes);
            let subject = format!("kept 1\0{kind} {version} {epoch} {checksum} {bytes}\0{held}").into_bytes();
            Origin { version, epoch, subject }
        })
    }

    /// What `hold` says of the version of `chain`, whose schema is this. `None`: of nothing.
    pub fn of(chain: &Chain, hold: &Hold, schema: &Schema) -> Option<Origin> {
        Origin::all(chain, hold, schema).next()
    }

    fn name(&self) -> String {
        made_name(self.version, self.epoch, &self.subject, KEPT)
    }

    /// Keeps what was written of it. Where the cache takes no note this process has its base all the same.
    pub fn keep(self, written: Snapshot, cache: &Cache, identity: &Identity) -> Result<Arc<Base>, Error> {
        let schema = written.schema().clone();
        let snapshot = reference(
            (written.header().version, written.header().life.epoch),
            (written.summary().plain_bytes, written.summary().plain_checksum),
            (written.index().bytes, written.index().checksum),
            written.summary().counts.upserts,
        );
        let files = written.keep(cache, identity)?;
        let base = Base::open(&files, identity, &snapshot, &schema)?;
        Ok(Arc::new(match self.note(&snapshot, cache, identity) {
            Ok(note) => base.noted(self.version, note),
            Err(error) => {
                let error = causes(&error);
                tracing::warn!(
                    error,
                    "the blob cache cannot note what is held of the dataset; the next start makes it anew"
                );
                base
            }
        }))
    }

    fn note(&self, snapshot: &SnapshotRef, cache: &Cache, identity: &Identity) -> Result<Held, Error> {
        let (blob, index) = (&snapshot.blob, &snapshot.index);
        let numbers: [u64; NUMBERS] = [
            snapshot.version.0,
            snapshot.epoch,
            blob.plain_bytes,
            blob.plain_checksum.0,
            index.plain_bytes,
            index.plain_checksum.0,
            snapshot.records,
        ];
        let body = [&self.subject[..], numbers.map(u64::to_le_bytes).as_flattened()].concat();
        let note = note_of(&body);
        let mut temporary = cache.temporary(identity)?;
        let done = temporary.write_all(&note);
        done.map_err(|source| Error::io("writing", temporary.path(), source))?;
        cache.keep_made(identity, &self.name(), note.len() as u64, temporary)
    }

    /// What a note of it says; `None` if it is torn or of something else.
    fn read(&self, note: &[u8]) -> Option<SnapshotRef> {
        let (subject, numbers) = body_of(note)?.split_last_chunk::<{ NUMBERS * 8 }>()?;
        let (numbers, _) = numbers.as_chunks::<8>();
        let mut numbers = numbers.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || numbers.next();
        let of = (Version(next()?), next()?);
        let snapshot = (next()?, Checksum(next()?));
        let index = (next()?, Checksum(next()?));
        let records = next()?;
        (subject == self.subject).then(|| reference(of, snapshot, index, records))
    }
}

/// A snapshot that is in no store.
fn reference(
    (version, epoch): (Version, u64),
    snapshot: (u64, Checksum),
    index: (u64, Checksum),
    records: u64,
) -> SnapshotRef {
    let blob = |(bytes, checksum): (u64, Checksum)| BlobRef {
        name: String::new(),
        bytes,
        checksum,
        plain_bytes: bytes,
        plain_checksum: checksum,
        location: None,
    };
    SnapshotRef { version, epoch, blob: blob(snapshot), index: blob(index), records }
}

/// What the cache keeps of a version.
struct Kept {
    origin: Origin,
    snapshot: SnapshotRef,
    files: BaseFiles,
    note: Held,
}

/// What the cache keeps of the newest version on the way to that of `chain`, if it does of any. Blocking.
fn find(cache: &Cache, identity: &Identity, chain: &Chain, hold: &Hold, schema: &Schema) -> Option<Kept> {
    Origin::all(chain, hold, schema).find_map(|origin| {
        let (note, _) = cache.find_made(identity, &origin.name()).ok()??;
        let snapshot = origin.read(&fs::read(note.path()).ok()?)?;
        let file = |name| cache.find(identity, &name).ok().flatten();
        let files = BaseFiles {
            snapshot: file(FileName::snapshot(&snapshot))?,
            index: file(FileName::index(&snapshot))?,
        };
        Some(Kept { origin, snapshot, files, note })
    })
}

impl Kept {
    /// The version that it is of.
    fn open(
        self,
        identity: &Identity,
        hold: &Arc<Hold>,
        cache: &Cache,
        about: &About,
    ) -> Result<View, Error> {
        let (whole, schema) = (&about.schema, hold.schema(&about.schema)?);
        let Origin { version, epoch, .. } = self.origin;
        let base = Base::open(&self.files, identity, &self.snapshot, &schema)?.noted(version, self.note);
        if !Arc::ptr_eq(base.schema(), &schema) {
            return Err(Error::corrupt(
                self.files.snapshot.path(),
                "it is of another schema than its note says",
            ));
        }
        let mut line = Line::of(schema.clone(), base.header().former.clone());
        line.whole = (!hold.is_whole()).then(|| whole.clone());
        let life = Life { epoch, ..about.life };
        let about = About { version, life, schema, records: self.snapshot.records, ..about.clone() };
        let files = base_files(&base).collect();
        let layers = Layers { base: Some(Arc::new(base)), overlay: Overlay::default(), line, files };
        let shared = Shared { hold: hold.clone(), cache: Some(cache.clone()), ..Shared::default() };
        View::assemble(identity.clone(), about, layers, shared)
    }
}

impl View {
    /// Merges base and overlay into a base that the cache keeps for the next start, by the chain that leads to this
    /// version. Cost and memory are those of [`View::merge_snapshot`]. Blocking.
    ///
    /// # Errors
    /// As [`View::merge_snapshot`].
    pub fn merge_kept(&self, life: Life, chain: &Chain, cache: &Cache) -> Result<Arc<Base>, Error> {
        let written = self.merge_snapshot(life, cache)?;
        match Origin::of(chain, &self.0.hold, self.whole_schema()) {
            Some(origin) => origin.keep(written, cache, self.identity()),
            None => written.into_base(),
        }
    }

    /// Whether `cache` has what a start begins with that finds `chain` announced: its snapshot, or what is kept of a version
    /// above that. A chain without a snapshot begins with its deltas, which are there. Blocking.
    pub fn can_begin(&self, chain: &Chain, cache: &Cache) -> bool {
        let (identity, hold) = (self.identity(), &self.0.hold);
        let Some(snapshot) = &chain.snapshot else { return true };
        let file = |name| cache.find(identity, &name).ok().flatten();
        // One that a later release wrote is there, and is nothing to begin with. A part is not made of it without a pass over all.
        if hold.is_whole()
            && let Some(data) = file(FileName::snapshot(snapshot))
            && let Some(index) = file(FileName::index(snapshot))
            && Base::open(&BaseFiles { snapshot: data, index }, identity, snapshot, self.whole_schema())
                .is_ok()
        {
            return true;
        }
        find(cache, identity, chain, hold, self.whole_schema()).is_some()
    }
}

impl Fetcher {
    /// What is held of the version of `chain`, by what the cache keeps of one below. Cost: the deltas above that. `None`: it
    /// keeps nothing that this can be made of.
    pub(super) async fn open_kept(
        &self,
        identity: &Identity,
        chain: &Chain,
        inline: Option<(Version, Bytes)>,
        about: &About,
    ) -> Result<Option<View>, Error> {
        // Of the whole, what was merged is for who merges: others go by what was announced.
        if self.hold().is_whole() && !self.keeps {
            return Ok(None);
        }
        let mut fetched = false;
        loop {
            let (cache, of, hold) = (self.cache().clone(), identity.clone(), self.hold().clone());
            let (whole, schema) = (chain.clone(), about.schema.clone());
            let found = blocking(move || Ok(find(&cache, &of, &whole, &hold, &schema))).await?;
            let Some(kept) = found else { return Ok(None) };
            let own = [&kept.files.snapshot, &kept.files.index].map(|held| held.path().to_owned());
            let error = match self.on(kept, identity, chain, inline.clone(), about).await {
                Ok(view) => return Ok(Some(view.charged_to(self.memory()))),
                // The whole is made of these blobs, too.
                Err(
                    error @ (Error::Missing(_) | Error::Store(_) | Error::CorruptBlob { .. } | Error::Closed),
                ) => return Err(error),
                // Nor is there room for the whole.
                Err(error) if error.is_full() => return Err(error),
                Err(error) => error,
            };
            // Without Kafka and store a damaged file is all that there is: it stays for who can make it anew.
            let damaged = match &error {
                Error::Corrupt { path, .. } if !self.local => Some(path.clone()),
                _ => None,
            };
            // A delta above it is fetched again: what is kept is as good as before.
            let is_delta = damaged.as_ref().is_some_and(|path| !own.contains(path));
            if let Some(path) = damaged {
                let cache = self.cache().clone();
                // What cannot be removed is replaced, or passed over again by the next start.
                let _ = blocking(move || cache.discard(&path)).await;
            }
            if is_delta && !std::mem::replace(&mut fetched, true) {
                continue;
            }
            let error = causes(&error);
            tracing::info!(
                error,
                "what the blob cache keeps of the dataset leads to no view; it is made anew of the whole"
            );
            return Ok(None);
        }
    }

    async fn on(
        &self,
        kept: Kept,
        identity: &Identity,
        chain: &Chain,
        inline: Option<(Version, Bytes)>,
        about: &About,
    ) -> Result<View, Error> {
        let above = chain.deltas.iter().filter(|delta| delta.version > kept.origin.version);
        let above: Vec<_> = above.cloned().collect();
        let deltas = self.deltas(identity, &above, inline).await?;
        let (identity, hold) = (identity.clone(), self.hold().clone());
        let (cache, about) = (self.cache().clone(), about.clone());
        blocking(move || {
            let mut view = kept.open(&identity, &hold, &cache, &about)?;
            for (held, delta) in deltas.iter().zip(&above) {
                let life = Life { epoch: delta.epoch, ..about.life };
                view = apply(
                    &view,
                    held,
                    delta,
                    About { version: delta.version, life, ..about.clone() },
                    usize::MAX,
                )?;
            }
            view.restate(about)
        })
        .await
    }
}
