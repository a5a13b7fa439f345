//! Blobs out of the store into the cache, and views out of both.
//!
//! ```text
//! Store --pieces--> [checksum, decompress, checksum] --> temporary file --rename--> Cache --map--> View
//!                    on threads of their own, a few pieces behind
//! ```
//!
//! From a store far away the pieces come as `parts` brings them: several at a time, gone on with where a connection broke.
//!
//! Owns: when a blob is whole (its checksums, both lengths), the one repetition after damage, how many come at a time.
//! Does not own: repetition after a store's failure (the caller knows what else waits), the cache's budget (`cache`).

use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use xxhash_rust::xxh3::Xxh3;

use super::cache::Temporary;
use super::kept::Origin;
use super::overlay::{AT_ONCE, MOST};
use super::parts::{self, Room, SILENCE};
use super::{About, Base, BaseFiles, Cache, DeltaFile, Error, FileName, Files, Held, Hold, Identity, View};
use crate::blob::name::Kind;
use crate::blob::{self, Store};
use crate::clock::Clock;
use crate::format::container::{self, Unpacked};
use crate::gauge::Budget;
use crate::version::{BlobRef, Chain, Checksum, DeltaRef, SnapshotRef, Version};

mod again;
mod asking;
mod near;

use again::Again;
use asking::Asking;
use near::Reach;

/// Blobs that are fetched at a time: deltas are small, and a store far away answers late rather than slowly.
const AT_A_TIME: usize = 8;

/// Bytes of a delta, plain, that is applied by who must not be blocked for long; and entries.
const QUICK: (u64, u64) = (4 << 20, 2 * AT_ONCE as u64);

/// Pieces on their way from the store to the disk.
const PIECES: usize = 4;

/// How often a blob that is long in coming is told of.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Fetches blobs of any shard from one store into one cache. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fetcher {
    store: Store,
    cache: Cache,
    whole: bool,
    /// The store is not asked.
    pub(super) local: bool,
    /// Files of the cache that are fetched although they are there.
    anew: Arc<[PathBuf]>,
    hold: Arc<Hold>,
    /// What is held is kept for the next start.
    pub(super) keeps: bool,
    /// Entries that are merged at once where a delta is applied.
    most: usize,
    /// Deltas that are at hand are applied by who asks.
    here: bool,
    /// Whether the store is a folder of this machine's own disks, once one of its blobs was read.
    own_disk: Arc<OnceLock<bool>>,
    asking: Asking,
    /// What the views' memory is charged to.
    memory: Option<Budget>,
    /// `None`: nothing is told of what is long in coming.
    tells: Option<Clock>,
    room: Room,
}

impl Fetcher {
    /// For readers: pages of snapshots are checked when they are first touched.
    pub fn new(store: Store, cache: Cache) -> Fetcher {
        let room = cache.room();
        let (hold, anew) = (Arc::default(), Arc::default());
        Fetcher {
            store,
            cache,
            whole: false,
            local: false,
            anew,
            hold,
            keeps: false,
            most: usize::MAX,
            here: false,
            own_disk: Arc::default(),
            asking: Asking::new(),
            memory: None,
            tells: None,
            room,
        }
    }

    /// A log line now and then of a blob that is long in coming: how far it is, how fast, and the time that is left.
    pub fn telling(self, clock: Clock) -> Fetcher {
        Fetcher { tells: Some(clock), ..self }
    }

    /// Views that it opens hold what `hold` says.
    pub fn holding(self, hold: Arc<Hold>) -> Fetcher {
        Fetcher { hold, ..self }
    }

    /// What they hold, where that is a part, is kept in the cache for the next start, and what is kept there is gone on from:
    /// for who opens the newest version. What others open would take the place of blobs.
    pub fn keeping(self) -> Fetcher {
        Fetcher { keeps: true, ..self }
    }

    /// Larger merges of an overlay's runs than take a moment are left by who applies deltas: for who has them made beside
    /// ([`View::compact`]).
    pub fn leaving_merges(self) -> Fetcher {
        Fetcher { most: AT_ONCE, ..self }
    }

    /// A delta that is not large and for which nobody is waited (`near`) is applied on the thread of who asks, which it blocks for
    /// some milliseconds at most: for one that has nothing else to do.
    pub fn at_hand_here(self) -> Fetcher {
        Fetcher { here: true, ..self }
    }

    /// As before [`Fetcher::at_hand_here`].
    pub fn elsewhere(self) -> Fetcher {
        Fetcher { here: false, ..self }
    }

    /// The memory that views take which it opens, and those that are made of them, is charged to `memory`.
    pub fn charging(self, memory: Option<&Budget>) -> Fetcher {
        Fetcher { memory: memory.cloned(), ..self }
    }

    /// What the memory of its views is charged to.
    pub fn memory(&self) -> Option<&Budget> {
        self.memory.as_ref()
    }

    pub(super) fn hold(&self) -> &Arc<Hold> {
        &self.hold
    }

    /// For writers, who map only what they have checked whole in this life: a page found damaged later would stop a
    /// merge in the middle, and with it the shard.
    pub fn checking_whole(self) -> Fetcher {
        Fetcher { whole: true, ..self }
    }

    /// What is not in the cache is [`Error::Missing`]: the store is not asked for it.
    pub fn from_cache_only(self) -> Fetcher {
        Fetcher { local: true, ..self }
    }

    /// These files are not taken as they are in the cache, but fetched, and replaced once that is done.
    pub fn anew(self, files: &[PathBuf]) -> Fetcher {
        Fetcher { anew: files.into(), ..self }
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Brings all files of `chain` into the cache. `inline` is the stored form of the delta of one version, as its
    /// announcement carries it; it is checked as one from the store is.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Store`], [`Error::CorruptBlob`], [`Error::Gap`], [`Error::Io`].
    pub async fn fetch<'a>(
        &'a self,
        identity: &'a Identity,
        chain: &'a Chain,
        inline: Option<(Version, Bytes)>,
    ) -> Result<Files, Error> {
        chain.check().map_err(Error::Gap)?;
        let base = async {
            match &chain.snapshot {
                Some(snapshot) => self.snapshot(identity, snapshot).await.map(Some),
                None => Ok(None),
            }
        };
        let deltas = self.deltas(identity, &chain.deltas, inline);
        let (base, deltas) = futures::try_join!(base, deltas)?;
        Ok(Files { base, deltas })
    }

    /// Brings deltas into the cache, several at a time.
    pub(super) async fn deltas<'a>(
        &'a self,
        identity: &'a Identity,
        deltas: &'a [DeltaRef],
        inline: Option<(Version, Bytes)>,
    ) -> Result<Vec<Held>, Error> {
        // Boxed: the compiler cannot show a stream of closures over borrowed deltas to be `Send`.
        let each = |delta: &'a DeltaRef| {
            let inline = inline.as_ref().filter(|(version, _)| *version == delta.version);
            self.delta(identity, delta, inline.map(|(_, bytes)| bytes.clone())).boxed()
        };
        let deltas: Vec<_> = deltas.iter().map(each).collect();
        stream::iter(deltas).buffered(AT_A_TIME).try_collect().await
    }

    /// Brings a snapshot and its index into the cache.
    ///
    /// # Errors
    /// As [`Fetcher::fetch`].
    pub async fn snapshot(&self, identity: &Identity, snapshot: &SnapshotRef) -> Result<BaseFiles, Error> {
        let data = self.bring(identity, FileName::snapshot(snapshot), &snapshot.blob, None);
        let index = self.bring(identity, FileName::index(snapshot), &snapshot.index, None);
        let (snapshot, index) = futures::try_join!(data, index)?;
        Ok(BaseFiles { snapshot, index })
    }

    /// Brings a delta into the cache.
    ///
    /// # Errors
    /// As [`Fetcher::fetch`].
    pub async fn delta(
        &self,
        identity: &Identity,
        delta: &DeltaRef,
        inline: Option<Bytes>,
    ) -> Result<Held, Error> {
        self.bring(identity, FileName::delta(delta), &delta.blob, inline).await
    }

    /// Fetches what is missing of `chain` and opens it as a view. A file of the cache that turns out to be damaged is
    /// discarded and fetched again, once.
    ///
    /// # Errors
    /// As [`Fetcher::fetch`], [`View::open`] and [`View::hold`]; [`Error::UnreadableBlob`].
    pub async fn open(
        &self,
        identity: &Identity,
        chain: &Chain,
        inline: Option<(Version, Bytes)>,
        about: About,
    ) -> Result<View, Error> {
        // Who wants files anew wants what is held to be made of them.
        if self.anew.is_empty()
            && let Some(view) = self.open_kept(identity, chain, inline.clone(), &about).await?
        {
            return Ok(view);
        }
        let mut again = Again::new(self, identity, chain.snapshot.as_ref(), &chain.deltas);
        loop {
            let files = self.fetch(identity, chain, inline.clone()).await?;
            let (identity, chain, about, whole) =
                (identity.clone(), chain.clone(), about.clone(), self.whole);
            let (hold, cache, keeps) = (self.hold.clone(), self.cache.clone(), self.keeps);
            let memory = self.memory.clone();
            let opened = blocking(move || {
                let view = View::open(&identity, &files, &chain, about)?;
                match (view.base(), &chain.snapshot) {
                    (Some(base), Some(snapshot)) if whole => base.check_all(snapshot)?,
                    _ => {}
                }
                let origin = keeps.then(|| Origin::of(&chain, &hold, view.schema())).flatten();
                view.hold_as(&hold, &cache, origin).map(|view| view.charged_to(memory.as_ref()))
            });
            if let Some(done) = again.after(opened.await).await? {
                return Ok(done);
            }
        }
    }

    /// Fetches a delta and applies it.
    ///
    /// # Errors
    /// As [`Fetcher::fetch`] and [`View::apply`].
    pub async fn apply(
        &self,
        view: &View,
        delta: &DeltaRef,
        inline: Option<Bytes>,
        about: About,
    ) -> Result<View, Error> {
        let mut again = Again::new(self, view.identity(), None, std::slice::from_ref(delta));
        loop {
            let here = (self.here && is_quick(view, delta, &about))
                .then(|| self.apply_near(view, delta, inline.clone(), about.clone(), Reach::Memory));
            let at_hand = match here {
                None | Some(Ok(None)) => {
                    let (fetcher, over, of, facts) =
                        (self.clone(), view.clone(), delta.clone(), about.clone());
                    let carried = inline.clone().filter(|_| here.is_none());
                    let place = self.asking.place();
                    let at_hand = blocking(move || {
                        let reach = if place.is_some() { Reach::Disk } else { Reach::Memory };
                        fetcher.apply_near(&over, &of, carried, facts, reach)
                    });
                    // A folder that does not answer is asked again by the way that says so.
                    tokio::time::timeout(SILENCE, at_hand).await.unwrap_or(Ok(None))
                }
                Some(done) => done,
            };
            let applied = match at_hand {
                Ok(None) => {
                    // What came with its announcement, or lies in a folder, has been tried.
                    let held = self.delta(view.identity(), delta, None).await?;
                    let (view, delta, about, most) = (view.clone(), delta.clone(), about.clone(), self.most);
                    blocking(move || apply(&view, &held, &delta, about, most)).await
                }
                Ok(Some(applied)) => Ok(applied),
                Err(error) => Err(error),
            };
            if let Some(done) = again.after(applied).await? {
                return Ok(done);
            }
        }
    }

    /// Fetches a snapshot and puts it below `view`, whose version stays.
    ///
    /// # Errors
    /// As [`Fetcher::fetch`] and [`View::rebase`].
    pub async fn rebase(&self, view: &View, snapshot: &SnapshotRef) -> Result<View, Error> {
        let mut again = Again::new(self, view.identity(), Some(snapshot), &[]);
        loop {
            let files = self.snapshot(view.identity(), snapshot).await?;
            let (view, snapshot, whole) = (view.clone(), snapshot.clone(), self.whole);
            let rebased = blocking(move || {
                let base = Base::open(&files, view.identity(), &snapshot, view.whole_schema())?;
                if whole {
                    base.check_all(&snapshot)?;
                }
                view.rebase(Arc::new(base))
            });
            if let Some(done) = again.after(rebased.await).await? {
                return Ok(done);
            }
        }
    }

    /// Brings one file into the cache, unless it is there.
    async fn bring(
        &self,
        identity: &Identity,
        name: FileName,
        blob: &BlobRef,
        inline: Option<Bytes>,
    ) -> Result<Held, Error> {
        let (cache, of, anew) = (self.cache.clone(), identity.clone(), self.anew.clone());
        let found = blocking(move || match anew.is_empty() || !anew.contains(&cache.path(&of, &name)?) {
            true => cache.find(&of, &name),
            false => Ok(None),
        });
        if let Some(held) = found.await? {
            return Ok(held);
        }
        if let Some(inline) = inline {
            match self.unpack(identity, name, blob, stream::iter([Ok(inline)])).await {
                Err(Error::CorruptBlob { detail, .. }) => inline_is_damaged(blob, &detail),
                done => return done,
            }
        }
        if self.local {
            return Err(Error::Missing(blob::Error::Missing { url: self.store.absolute_url(&blob.name) }));
        }
        match self.read_store(identity, name, blob).await {
            Err(Error::CorruptBlob { url, detail }) => {
                tracing::warn!(url, detail, "a blob came damaged from the store; fetching it again");
                self.read_store(identity, name, blob).await
            }
            done => done,
        }
    }

    async fn read_store(&self, identity: &Identity, name: FileName, blob: &BlobRef) -> Result<Held, Error> {
        if self.store.is_far() {
            return self.unpack(identity, name, blob, parts::read(&self.store, blob, &self.room)).await;
        }
        let url = self.store.absolute_url(&blob.name);
        // A folder that hangs does so before its first byte.
        let asked = self.asking.get(&self.store, &blob.name);
        let content = tokio::time::timeout(SILENCE, asked).await.unwrap_or_else(|_| {
            let problem = format!("no answer for {SILENCE:?}");
            Err(blob::Error::Unavailable { doing: "reading", url: url.clone(), problem })
        });
        let content = content.map_err(store)?;
        let pieces = stream::unfold(content, move |mut content| {
            let url = url.clone();
            async move {
                let piece = match tokio::time::timeout(SILENCE, content.next()).await {
                    Ok(piece) => piece?,
                    Err(_) => Err(blob::Error::Unavailable {
                        doing: "reading",
                        url,
                        problem: format!("nothing came for {SILENCE:?}"),
                    }),
                };
                Some((piece.map_err(store), content))
            }
        });
        self.unpack(identity, name, blob, pieces).await
    }

    /// Writes the plain form of what `pieces` are the stored form of into the cache.
    async fn unpack(
        &self,
        identity: &Identity,
        name: FileName,
        blob: &BlobRef,
        pieces: impl stream::Stream<Item = Result<Bytes, Error>>,
    ) -> Result<Held, Error> {
        let (give, mut take) = mpsc::channel::<Bytes>(PIECES);
        let sink = {
            let (cache, identity, blob) = (self.cache.clone(), identity.clone(), blob.clone());
            let url = self.store.absolute_url(&blob.name);
            blocking(move || {
                let pieces = std::iter::from_fn(|| take.blocking_recv());
                let temporary = write(cache.temporary(&identity)?, name.kind, &blob, &url, pieces)?;
                cache.keep(&identity, &name, temporary)
            })
        };
        let mut progress = self.tells.clone().map(|clock| Progress::new(clock, identity, blob));
        let feed = async move {
            futures::pin_mut!(pieces);
            while let Some(piece) = pieces.next().await {
                let piece = piece?;
                let bytes = piece.len() as u64;
                // The sink went first: it says why.
                if give.send(piece).await.is_err() {
                    break;
                }
                if let Some(progress) = &mut progress {
                    progress.came(bytes);
                }
            }
            Ok(())
        };
        // Not `try_join`: the sink is always waited for, so that its temporary file is gone when this returns.
        let (fed, kept) = futures::join!(feed, sink);
        fed.and(kept)
    }
}

fn inline_is_damaged(blob: &BlobRef, detail: &str) {
    tracing::warn!(blob = blob.name, detail, "an announcement's inline delta is damaged; fetching it");
}

/// How far a blob is on its way from the store.
struct Progress<'a> {
    clock: Clock,
    identity: &'a Identity,
    blob: &'a BlobRef,
    start: Instant,
    told: Instant,
    bytes: u64,
}

impl<'a> Progress<'a> {
    fn new(clock: Clock, identity: &'a Identity, blob: &'a BlobRef) -> Progress<'a> {
        let start = clock.now();
        Progress { clock, identity, blob, start, told: start, bytes: 0 }
    }

    fn came(&mut self, bytes: u64) {
        self.bytes += bytes;
        let now = self.clock.now();
        if now.saturating_duration_since(self.told) < TELL_EVERY {
            return;
        }
        self.told = now;
        let (rate, left) = self.pace(now);
        tracing::info!(
            dataset = %self.identity.dataset, blob = self.blob.name, bytes = self.bytes, of_bytes = self.blob.bytes,
            bytes_per_second = rate, seconds_left = left, "fetching a blob"
        );
    }

    /// Bytes a second since it began, and seconds that are left at that.
    fn pace(&self, now: Instant) -> (u64, u64) {
        let took = now.saturating_duration_since(self.start).as_secs_f64();
        let rate = self.bytes as f64 / took.max(f64::EPSILON);
        let left = self.blob.bytes.saturating_sub(self.bytes) as f64 / rate.max(1.0);
        (rate as u64, left.ceil() as u64)
    }
}

/// Whether applying a delta takes some milliseconds at most: it is not large, all runs need not become one, and nothing that is
/// made of the base has to be made anew, as tables for lookups by fields are under another schema.
fn is_quick(view: &View, delta: &DeltaRef, about: &About) -> bool {
    delta.blob.plain_bytes <= QUICK.0
        && delta.upserts + delta.deletes <= QUICK.1
        && view.overlay().runs < MOST
        && view.whole_schema().is_same_as(&about.schema)
}

/// `view` with a delta that is in the cache. Blocks.
pub(super) fn apply(
    view: &View,
    held: &Held,
    delta: &DeltaRef,
    about: About,
    most: usize,
) -> Result<View, Error> {
    let known = view.whole_schema();
    let file = DeltaFile::open(held, view.identity(), delta, known)?.announced_as(known, &about.schema);
    view.apply_by(Arc::new(file), about, most)
}

fn store(error: blob::Error) -> Error {
    match error {
        blob::Error::Missing { .. } => Error::Missing(error),
        error => Error::Store(error),
    }
}

/// Runs `work` on a thread that may block. A panic there is one here.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::Closed),
        },
    }
}

/// Writes the plain form of what comes in `pieces`, and sees that it is what was announced.
fn write(
    out: Temporary,
    kind: Kind,
    blob: &BlobRef,
    url: &str,
    pieces: impl Iterator<Item = Bytes>,
) -> Result<Temporary, Error> {
    let mut out = BufWriter::with_capacity(256 << 10, out);
    let have = match kind {
        Kind::Index => copy(pieces, &mut out).map_err(container::Error::Io),
        Kind::Delta => container::unpack(pieces, blob.bytes, blob.plain_bytes, &mut out),
        // A snapshot's plain form follows from the stored one, whose checksum is made here; and each of its pages is
        // checked when it is first touched, as a file's that was here before. Once more would be a tenth of a cold start.
        Kind::Snapshot => container::unpack_into(pieces, blob.bytes, blob.plain_bytes, out.get_ref().file()),
    };
    let have = have.map_err(|error| match error {
        container::Error::Io(source) => Error::io("writing", out.get_ref().path(), source),
        error => Error::CorruptBlob { url: url.to_owned(), detail: error.to_string() },
    })?;
    let want = Unpacked {
        bytes: blob.bytes,
        checksum: blob.checksum,
        plain_bytes: blob.plain_bytes,
        plain_checksum: have.plain_checksum.map(|_| blob.plain_checksum),
    };
    if have != want {
        let sum = |unpacked: &Unpacked| match unpacked.plain_checksum {
            Some(sum) => format!("{} bytes ({sum})", unpacked.plain_bytes),
            None => format!("{} bytes", unpacked.plain_bytes),
        };
        let detail = format!(
            "{} bytes ({}), plain {}, were announced; {} ({}), plain {}, came",
            want.bytes,
            want.checksum,
            sum(&want),
            have.bytes,
            have.checksum,
            sum(&have),
        );
        return Err(Error::CorruptBlob { url: url.to_owned(), detail });
    }
    if let Err(source) = out.flush() {
        return Err(Error::io("writing", out.get_ref().path(), source));
    }
    out.into_inner().map_err(|_| Error::Internal("a flushed buffer could not be taken apart"))
}

/// Indexes are stored as they are: hashes and offsets do not compress.
fn copy(pieces: impl Iterator<Item = Bytes>, out: &mut impl Write) -> std::io::Result<Unpacked> {
    let (mut bytes, mut checksum) = (0, Xxh3::new());
    for piece in pieces {
        bytes += piece.len() as u64;
        checksum.update(&piece);
        out.write_all(&piece)?;
    }
    let checksum = Checksum(checksum.digest());
    Ok(Unpacked { bytes, checksum, plain_bytes: bytes, plain_checksum: Some(checksum) })
}

#[cfg(test)]
mod tests;
