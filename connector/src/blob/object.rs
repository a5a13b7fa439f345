//! Stores on the `object_store` crate: a folder, memory, and those far away (`remote`).

use std::collections::HashSet;
use std::error::Error as StdError;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{StreamExt as _, TryStreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as Location;
use object_store::{
    GetOptions, GetRange, GetResultPayload, ObjectStore, ObjectStoreExt as _, PutMode, WriteMultipart,
};

use super::answer::{self, Far};
use super::remote::{self, Options};
use super::unfinished;
use super::{BlobStore, Body, Content, Error, Listed, Part, Put, Store, Tag};

/// Piece in which files are read, here and towards the store: large enough that handing a piece to the blocking pool
/// (some 10 microseconds) does not count, small enough that a few at a time cost no memory.
const PIECE: usize = 1 << 20;

/// Part in which a large blob is uploaded, at least; what S3 demands is 5 MiB.
const PART: usize = 8 << 20;

/// Parts of one upload that may be under way at a time; with [`PART`] this bounds its memory.
const PARTS_UNDER_WAY: usize = 4;

/// See [`Store::open_with`].
pub(super) fn open(url: &str, options: &Options) -> Result<Store, Error> {
    let refused = |problem: String| Error::Url { url: url.to_owned(), problem };
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(refused("it is not a URL; write file:///DIR for a folder".to_owned()));
    };
    // Without what somebody may have written before an `@`: it is refused, but said.
    let refused = |problem: String| {
        let url = match rest.split_once('@') {
            Some((_, rest)) => format!("{scheme}://***@{rest}"),
            None => url.to_owned(),
        };
        Error::Url { url, problem }
    };
    if let Some(opened) = remote::open(scheme, rest, options, remote::variables()) {
        let (store, far) = opened.map_err(refused)?;
        let base = url.trim_end_matches('/').to_owned();
        return Ok(Object::store(base, store, Place::Far(far)));
    }
    if let Some(name) = options.0.keys().next() {
        return Err(refused(format!("{name} in [storage.options] is no option of {scheme}:// stores")));
    }
    match scheme {
        "file" => {
            let folder = Path::new(rest);
            if !folder.is_absolute() {
                return Err(refused(format!("its path is not absolute; write file:///{rest}")));
            }
            let synced = Arc::new(Synced::default());
            synced.make(folder, folder).map_err(|error| {
                refused(format!(
                    "its folder cannot be made: {error}; make it, or let this user write above it"
                ))
            })?;
            let files = LocalFileSystem::new_with_prefix(folder)
                .map_err(|error| refused(format!("its folder cannot be opened: {error}")))?
                .with_fsync(true);
            // The path as configured, not resolved: operators search for what they wrote.
            let base = format!("file://{}", rest.trim_end_matches('/'));
            Ok(Object::store(base, Arc::new(files), Place::Folder(folder.to_owned(), synced)))
        }
        "memory" => {
            let base = url.trim_end_matches('/').to_owned();
            Ok(Object::store(base, Arc::new(InMemory::new()), Place::Memory))
        }
        "kafka" => {
            Err(refused("it is read and written by Kafka's clients, and none is configured here".to_owned()))
        }
        other => Err(refused(format!(
            "the scheme {other}:// is unknown; use file:///DIR, s3://BUCKET, gs://BUCKET, az://CONTAINER, kafka://TOPIC or memory://"
        ))),
    }
}

/// What differs between the stores.
#[derive(Debug)]
enum Place {
    /// Its root, and which folders below it are known to be on disk.
    Folder(PathBuf, Arc<Synced>),
    Memory,
    Far(Far),
}

struct Object {
    /// What error texts start with.
    base: String,
    store: Arc<dyn ObjectStore>,
    place: Place,
    /// It was found not to know puts that must not replace.
    replaces: AtomicBool,
}

/// Folders that are known to be durable, with all folders above them.
///
/// `LocalFileSystem::with_fsync` syncs a blob, its folder, and the folders that the same call made. It does not sync
/// those that another call, or a process that died, has made and not yet synced: such a blob would be durable in a
/// folder that is not. So each folder is synced once, by whoever first puts into it.
#[derive(Debug, Default)]
struct Synced(Mutex<HashSet<PathBuf>>);

impl Synced {
    /// Makes a folder of the store below `root` where it is missing, and syncs it and all above it. Blocks.
    fn make(&self, folder: &Path, root: &Path) -> io::Result<()> {
        if self.has(folder) {
            return Ok(());
        }
        std::fs::create_dir_all(folder)?;
        for above in folder.ancestors() {
            match File::open(above).and_then(|folder| folder.sync_all()) {
                Ok(()) => {}
                // Above the store there are folders, and whole file systems, that may not or cannot be synced. They
                // were there before.
                Err(_) if !above.starts_with(root) => break,
                Err(error) => return Err(error),
            }
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.to_owned());
        Ok(())
    }

    fn has(&self, folder: &Path) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(folder)
    }
}

/// Without what the crate's stores show of their credentials.
impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Object {
    fn store(base: String, store: Arc<dyn ObjectStore>, place: Place) -> Store {
        let object = Object { base: base.clone(), store, place, replaces: AtomicBool::new(false) };
        Store::new(&base, Arc::new(object))
    }

    fn url(&self, name: &str) -> String {
        format!("{}/{name}", self.base)
    }

    fn location(&self, name: &str) -> Result<Location, Error> {
        Location::parse(name)
            .map_err(|_| Error::Name { name: name.to_owned(), problem: "the store does not take it" })
    }

    fn error(&self, doing: &'static str, name: &str, error: &object_store::Error) -> Error {
        let url = self.url(name);
        if matches!(error, object_store::Error::Precondition { .. }) {
            return Error::Changed { url };
        }
        if let Place::Far(far) = &self.place {
            return answer::explain(doing, url, error, far);
        }
        if matches!(error, object_store::Error::NotFound { .. }) {
            return Error::Missing { url };
        }
        match io_cause(error) {
            Some(io) => io_error(doing, url, io),
            None => match error {
                object_store::Error::PermissionDenied { .. }
                | object_store::Error::Unauthenticated { .. } => Error::Refused {
                    doing,
                    url,
                    problem: format!("{error}; give this process the permission"),
                },
                _ => Error::Unavailable { doing, url, problem: error.to_string() },
            },
        }
    }

    async fn make_folder(&self, name: &str) -> Result<(), Error> {
        let Place::Folder(root, synced) = &self.place else { return Ok(()) };
        let folder = root.join(name).parent().map_or_else(|| root.clone(), Path::to_owned);
        if synced.has(&folder) {
            return Ok(());
        }
        let (root, synced) = (root.clone(), Arc::clone(synced));
        let made = tokio::task::spawn_blocking(move || synced.make(&folder, &root)).await;
        let made = made.expect("making a folder does not panic");
        made.map_err(|error| io_error("storing", self.url(name), &error))
    }

    /// Of a blob that is not there: an error if that is so because its bucket is not.
    async fn missing_alone(&self, doing: &'static str, name: &str) -> Result<(), Error> {
        if self.is_far() {
            let first = self.store.list(None).next().await.transpose();
            first.map_err(|error| self.error(doing, name, &error))?;
        }
        Ok(())
    }

    async fn put_bytes(&self, name: &str, bytes: Bytes, mode: PutMode) -> object_store::Result<()> {
        let location = Location::parse(name)?;
        self.store.put_opts(&location, bytes.into(), mode.into()).await.map(drop)
    }

    async fn put_file(&self, name: &str, path: PathBuf) -> Result<(), Error> {
        let location = self.location(name)?;
        let reading = |error: &io::Error| io_error("storing", self.url(name), error);
        let file = tokio::fs::File::open(&path).await.map_err(|error| reading(&error))?;
        let length = file.metadata().await.map_err(|error| reading(&error))?.len();
        let mut pieces = pieces(file.into_std().await, u64::MAX, self.url(name), "storing");
        let storing = |error: object_store::Error| self.error("storing", name, &error);
        let part = part_size(length);
        if matches!(self.place, Place::Far(_)) && length <= part as u64 {
            // One request, not three; and some stores take no upload without a part.
            let mut whole = BytesMut::with_capacity(length as usize);
            while let Some(piece) = pieces.next().await {
                whole.extend_from_slice(&piece?);
            }
            return self.put_bytes(name, whole.freeze(), PutMode::Overwrite).await.map_err(storing);
        }
        let upload = self.store.put_multipart(&location).await.map_err(storing)?;
        // A part has a fixed size in some stores, so it is cut by WriteMultipart and not by how the file was read.
        let mut upload = WriteMultipart::new_with_chunk_size(upload, part);
        while let Some(piece) = pieces.next().await {
            let wrote = match piece {
                Ok(piece) => upload
                    .wait_for_capacity(PARTS_UNDER_WAY)
                    .await
                    .map(|()| upload.put(piece))
                    .map_err(storing),
                Err(error) => Err(error),
            };
            if let Err(error) = wrote {
                // The upload is invisible until it is finished. What a failed abort leaves, listings hide: of a folder a
                // file, of a store far away parts, which its lifecycle rule removes.
                let _ = upload.abort().await;
                return Err(error);
            }
        }
        upload.finish().await.map(drop).map_err(storing)
    }

    /// The part of a blob that lies in `range`, as far as there is one.
    async fn part(
        &self,
        name: &str,
        range: Range<u64>,
        same: Option<&Tag>,
    ) -> Result<Result<Part, object_store::Error>, Error> {
        let location = self.location(name)?;
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            if_match: same.map(|tag| tag.0.to_string()),
            ..GetOptions::default()
        };
        let got = match self.store.get_opts(&location, options).await {
            Ok(got) => got,
            Err(error) => return Ok(Err(error)),
        };
        let (total, tag) = (got.meta.size, got.meta.e_tag.as_deref().map(|tag| Tag(tag.into())));
        let content = self.content(name, got.payload, got.range).await?;
        Ok(Ok(Part { content, total, tag }))
    }

    async fn content(
        &self,
        name: &str,
        payload: GetResultPayload,
        range: Range<u64>,
    ) -> Result<Content, Error> {
        let url = self.url(name);
        // Files are read here: the crate reads them in pieces of 8 KB, each a trip to the blocking pool.
        Ok(match payload {
            GetResultPayload::File(mut file, _) => {
                if range.start > 0 {
                    let sought = tokio::task::spawn_blocking(move || {
                        file.seek(SeekFrom::Start(range.start)).map(|_| file)
                    });
                    let sought = sought.await.expect("seeking in a file does not panic");
                    file = sought.map_err(|error| io_error("reading", url.clone(), &error))?;
                }
                pieces(file, range.end - range.start, url, "reading")
            }
            GetResultPayload::Stream(stream) => {
                let far = match &self.place {
                    Place::Far(far) => Some(far.clone()),
                    _ => None,
                };
                stream.map_err(move |error| broken("reading", &url, &error, far.as_ref())).boxed()
            }
        })
    }
}

/// An answer that broke off in its middle.
fn broken(doing: &'static str, url: &str, error: &object_store::Error, far: Option<&Far>) -> Error {
    match far {
        Some(far) => answer::explain(doing, url.to_owned(), error, far),
        None => Error::Unavailable { doing, url: url.to_owned(), problem: error.to_string() },
    }
}

/// Parts of an upload of so many bytes: stores take 10,000 at most.
fn part_size(bytes: u64) -> usize {
    PART.max((bytes / 9_000).next_multiple_of(PIECE as u64) as usize)
}

impl BlobStore for Object {
    fn put<'a>(&'a self, name: &'a str, body: Body) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.make_folder(name).await?;
            match body {
                Body::File(path) => self.put_file(name, path).await,
                Body::Bytes(bytes) => {
                    let put = self.put_bytes(name, bytes, PutMode::Overwrite).await;
                    put.map_err(|error| self.error("storing", name, &error))
                }
            }
        })
    }

    fn put_new<'a>(&'a self, name: &'a str, body: Body) -> BoxFuture<'a, Result<Put, Error>> {
        Box::pin(async move {
            let bytes = match body {
                Body::Bytes(bytes) if !self.replaces.load(Ordering::Relaxed) => bytes,
                // An upload in parts cannot be made conditional, so it is asked before.
                body => {
                    if self.head(name).await?.is_some() {
                        return Ok(Put::Found);
                    }
                    return self.put(name, body).await.map(|()| Put::Stored);
                }
            };
            self.make_folder(name).await?;
            match self.put_bytes(name, bytes.clone(), PutMode::Create).await {
                Ok(()) => Ok(Put::Stored),
                Err(error @ object_store::Error::AlreadyExists { .. }) => {
                    // 409 has other reasons too: a container that is being deleted, a policy, another put at the same time.
                    if !self.is_far() || matches!(self.head(name).await, Ok(Some(_))) {
                        return Ok(Put::Found);
                    }
                    Err(self.error("storing", name, &error))
                }
                Err(error) if answer::knows_no_create(&error) => {
                    tracing::info!(
                        store = self.base,
                        "the store does not know If-None-Match: a put asks before"
                    );
                    self.replaces.store(true, Ordering::Relaxed);
                    self.put_new(name, Body::Bytes(bytes)).await
                }
                Err(error) => Err(self.error("storing", name, &error)),
            }
        })
    }

    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Content, Error>> {
        Box::pin(async move {
            let got = self.store.get(&self.location(name)?).await;
            let got = got.map_err(|error| self.error("reading", name, &error))?;
            self.content(name, got.payload, got.range).await
        })
    }

    fn get_range<'a>(
        &'a self,
        name: &'a str,
        range: Range<u64>,
        same: Option<&'a Tag>,
    ) -> BoxFuture<'a, Result<Part, Error>> {
        Box::pin(async move {
            let error = match self.part(name, range.clone(), same).await? {
                Ok(part) => return Ok(part),
                Err(error) => error,
            };
            // Where the range begins beyond the end there is nothing to be had, which is no failure.
            let asks = match self.place {
                Place::Far(_) => answer::is_beyond(&error),
                _ => !matches!(error, object_store::Error::NotFound { .. }),
            };
            if asks
                && let Ok(Some(total)) = self.head(name).await
                && total <= range.start
            {
                return Ok(Part { content: futures::stream::empty().boxed(), total, tag: None });
            }
            Err(self.error("reading", name, &error))
        })
    }

    fn is_far(&self) -> bool {
        matches!(self.place, Place::Far(_))
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        match &self.place {
            Place::Folder(root, _) => Some(root.join(name)),
            Place::Memory | Place::Far(_) => None,
        }
    }

    fn head<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<u64>, Error>> {
        Box::pin(async move {
            match self.store.head(&self.location(name)?).await {
                Ok(meta) => Ok(Some(meta.size)),
                // The answer to HEAD has no body that would tell a missing blob from a missing bucket.
                Err(object_store::Error::NotFound { .. }) => {
                    self.missing_alone("reading", name).await.map(|()| None)
                }
                Err(error) => Err(self.error("reading", name, &error)),
            }
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>, Error>> {
        Box::pin(async move {
            let location = if prefix.is_empty() { None } else { Some(self.location(prefix)?) };
            let listed = self.store.list(location.as_ref());
            let listed = listed.map_ok(|meta| Listed { name: meta.location.to_string(), bytes: meta.size });
            let mut listed: Vec<Listed> =
                listed.try_collect().await.map_err(|error| self.error("listing", prefix, &error))?;
            listed.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            Ok(listed)
        })
    }

    fn sweep<'a>(&'a self, prefix: &'a str, before_ms: i64) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(async move {
            // Far away a lifecycle rule does it.
            let Place::Folder(root, _) = &self.place else { return Ok(0) };
            let folder = root.join(prefix);
            let swept = tokio::task::spawn_blocking(move || unfinished::sweep(&folder, before_ms)).await;
            let swept = swept.expect("sweeping a folder does not panic");
            swept.map_err(|error| io_error("deleting", self.url(prefix), &error))
        })
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let deleted = self.store.delete(&self.location(name)?).await;
            match deleted.map_err(|error| self.error("deleting", name, &error)) {
                // Azure's answer to a delete is one of several in one, which have a status and no words.
                Err(Error::Missing { .. }) => self.missing_alone("deleting", name).await,
                done => done,
            }
        })
    }
}

/// A file's bytes from where it stands, `bytes` at most, read on the blocking pool.
pub(super) fn pieces(file: File, bytes: u64, url: String, doing: &'static str) -> Content {
    futures::stream::try_unfold((file, bytes), move |(mut file, left)| {
        let url = url.clone();
        async move {
            let read = tokio::task::spawn_blocking(move || {
                let most = left.min(PIECE as u64);
                // Not zeroed first: a snapshot's worth of it is milliseconds of a cold start.
                let mut piece = Vec::with_capacity(most as usize);
                file.by_ref().take(most).read_to_end(&mut piece)?;
                Ok((Bytes::from(piece), file))
            });
            match read.await.expect("reading a file does not panic") {
                Ok((piece, _)) if piece.is_empty() => Ok(None),
                Ok((piece, file)) => {
                    let left = left.saturating_sub(piece.len() as u64);
                    Ok::<_, Error>(Some((piece, (file, left))))
                }
                Err(error) => Err(io_error(doing, url, &error)),
            }
        }
    })
    .map_ok(|piece: Bytes| piece)
    .boxed()
}

/// The system's error below one of the crate's, if that is what it was.
fn io_cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        next = error.source();
    }
    None
}

pub(super) fn io_error(doing: &'static str, url: String, error: &io::Error) -> Error {
    use io::ErrorKind;
    let remedy = match error.kind() {
        ErrorKind::PermissionDenied => "let this user read and write there",
        ErrorKind::ReadOnlyFilesystem => "mount it for writing",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free space there, or keep fewer snapshots",
        ErrorKind::NotADirectory | ErrorKind::IsADirectory => "something else lies there; move it away",
        ErrorKind::NotFound => "the folder was removed meanwhile",
        _ => return Error::Unavailable { doing, url, problem: error.to_string() },
    };
    Error::Refused { doing, url, problem: format!("{error}; {remedy}") }
}
