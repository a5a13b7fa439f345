//! Stores on the `object_store` crate: a folder, and memory.

use std::collections::HashSet;
use std::error::Error as StdError;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{StreamExt as _, TryStreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as Location;
use object_store::{GetResultPayload, ObjectStore, ObjectStoreExt as _, WriteMultipart};

use super::{BlobStore, Body, Content, Error, Listed, Store};

/// Piece in which files are read, here and towards the store: large enough that handing a piece to the blocking pool
/// (some 10 microseconds) does not count, small enough that a few at a time cost no memory.
const PIECE: usize = 1 << 20;

/// Pieces of one upload that may be under way at a time; with [`PIECE`] this bounds its memory.
const PIECES_UNDER_WAY: usize = 4;

/// See [`Store::open`].
pub(super) fn open(url: &str) -> Result<Store, Error> {
    let refused = |problem: String| Error::Url { url: url.to_owned(), problem };
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(refused("it is not a URL; write file:///DIR for a folder".to_owned()));
    };
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
            let folder = Some((folder.to_owned(), synced));
            let inner = Object { base: base.clone(), store: Arc::new(files), folder };
            Ok(Store::new(&base, Arc::new(inner)))
        }
        "memory" => {
            let base = url.trim_end_matches('/').to_owned();
            let inner = Object { base: base.clone(), store: Arc::new(InMemory::new()), folder: None };
            Ok(Store::new(&base, Arc::new(inner)))
        }
        "s3" | "gs" | "az" | "kafka" => Err(refused(format!(
            "{scheme}:// comes with a later release; use file:///DIR, on a file system that all readers mount"
        ))),
        other => Err(refused(format!("the scheme {other}:// is unknown; use file:///DIR or memory://"))),
    }
}

#[derive(Debug)]
struct Object {
    /// What error texts start with.
    base: String,
    store: Arc<dyn ObjectStore>,
    /// Of a `file://` store: its root, and which folders below it are known to be on disk.
    folder: Option<(PathBuf, Arc<Synced>)>,
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

impl Object {
    fn url(&self, name: &str) -> String {
        format!("{}/{name}", self.base)
    }

    fn location(&self, name: &str) -> Result<Location, Error> {
        Location::parse(name)
            .map_err(|_| Error::Name { name: name.to_owned(), problem: "the store does not take it" })
    }

    fn error(&self, doing: &'static str, name: &str, error: &object_store::Error) -> Error {
        let url = self.url(name);
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
        let Some((root, synced)) = &self.folder else { return Ok(()) };
        let folder = root.join(name).parent().map_or_else(|| root.clone(), Path::to_owned);
        if synced.has(&folder) {
            return Ok(());
        }
        let (root, synced) = (root.clone(), Arc::clone(synced));
        let made = tokio::task::spawn_blocking(move || synced.make(&folder, &root)).await;
        let made = made.expect("making a folder does not panic");
        made.map_err(|error| io_error("storing", self.url(name), &error))
    }

    async fn put_file(&self, name: &str, path: PathBuf) -> Result<(), Error> {
        let location = self.location(name)?;
        let opened = tokio::fs::File::open(&path).await;
        let reading = |error: &io::Error| io_error("storing", self.url(name), error);
        let file = opened.map_err(|error| reading(&error))?.into_std().await;
        let storing = |error: object_store::Error| self.error("storing", name, &error);
        let upload = self.store.put_multipart(&location).await.map_err(storing)?;
        // A part has a fixed size in some stores, so it is cut by WriteMultipart and not by how the file was read.
        let mut upload = WriteMultipart::new_with_chunk_size(upload, 5 * PIECE);
        let mut pieces = pieces(file, self.url(name), "storing");
        while let Some(piece) = pieces.next().await {
            let wrote = match piece {
                Ok(piece) => upload
                    .wait_for_capacity(PIECES_UNDER_WAY)
                    .await
                    .map(|()| upload.put(piece))
                    .map_err(storing),
                Err(error) => Err(error),
            };
            if let Err(error) = wrote {
                // The upload is invisible until it is finished; a failed abort leaves a file that listings hide.
                let _ = upload.abort().await;
                return Err(error);
            }
        }
        upload.finish().await.map(drop).map_err(storing)
    }
}

impl BlobStore for Object {
    fn put<'a>(&'a self, name: &'a str, body: Body) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.make_folder(name).await?;
            match body {
                Body::File(path) => self.put_file(name, path).await,
                Body::Bytes(bytes) => {
                    let put = self.store.put(&self.location(name)?, bytes.into()).await;
                    put.map(drop).map_err(|error| self.error("storing", name, &error))
                }
            }
        })
    }

    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Content, Error>> {
        Box::pin(async move {
            let got = self.store.get(&self.location(name)?).await;
            let got = got.map_err(|error| self.error("reading", name, &error))?;
            let url = self.url(name);
            // Files are read here: the crate reads them in pieces of 8 KB, each a trip to the blocking pool.
            Ok(match got.payload {
                GetResultPayload::File(file, _) => pieces(file, url, "reading"),
                GetResultPayload::Stream(stream) => stream
                    .map_err(move |error| Error::Unavailable {
                        doing: "reading",
                        url: url.clone(),
                        problem: error.to_string(),
                    })
                    .boxed(),
            })
        })
    }

    fn head<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<u64>, Error>> {
        Box::pin(async move {
            match self.store.head(&self.location(name)?).await {
                Ok(meta) => Ok(Some(meta.size)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
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

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            match self.store.delete(&self.location(name)?).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(self.error("deleting", name, &error)),
            }
        })
    }
}

/// A file's bytes from where it stands, read on the blocking pool.
fn pieces(file: File, url: String, doing: &'static str) -> Content {
    futures::stream::try_unfold(file, move |mut file| {
        let url = url.clone();
        async move {
            let read = tokio::task::spawn_blocking(move || {
                let mut piece = BytesMut::zeroed(PIECE);
                let mut filled = 0;
                while let Some(free) = piece.get_mut(filled..).filter(|free| !free.is_empty()) {
                    match file.read(free) {
                        Ok(0) => break,
                        Ok(read) => filled += read,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
                piece.truncate(filled);
                Ok((piece.freeze(), file))
            });
            match read.await.expect("reading a file does not panic") {
                Ok((piece, _)) if piece.is_empty() => Ok(None),
                Ok((piece, file)) => Ok::<_, Error>(Some((piece, file))),
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

fn io_error(doing: &'static str, url: String, error: &io::Error) -> Error {
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
