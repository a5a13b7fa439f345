//! Blob stores: where deltas, snapshots and their indexes lie, and whence readers fetch them.
//!
//! ```text
//!   producer/store ---- put ---->  Store  <---- get ---- view/fetch
//!                                    |
//!        file:///dir (synced)        |        memory:// (demo, tests)
//!        s3://bucket/prefix   gs://bucket/prefix   az://container/prefix   (far away)
//!        kafka://topic (records; by way of `kafka/`, the one pipe that this one goes through)
//! ```
//!
//! Owns: names relative to a store ([`name`]), opening by URL, and the promise that a `put` which returned is durable
//! and was never seen in part. Does not own: what is in a blob (`format/`), when it is fetched, cached or deleted
//! (`view/`, `producer/clean`), or retries (the caller knows what else waits).

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt as _};

use crate::kafka::allowed::Need;

pub mod name;
pub mod faulty;
mod object;
mod unfinished;
mod remote;
mod profile;
mod container;
mod http;
mod answer;
mod kafka;

pub use self::kafka::Options as TopicOptions;
pub use remote::{OPTIONS, Options, far_url, in_the_clear, is_option, is_secret};

#[cfg(test)]
mod tests;

/// What is put: bytes in memory, or a local file that is read while it is sent.
#[derive(Clone, Debug)]
pub enum Body {
    /// The blob itself.
    Bytes(Bytes),
    /// A local file with the blob. It must not change until the put is done.
    File(PathBuf),
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Body {
        Body::Bytes(bytes)
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Body {
        Body::Bytes(bytes.into())
    }
}

/// A blob's content, in order, in pieces of the store's choice.
pub type Content = BoxStream<'static, Result<Bytes, Error>>;

/// What tells one content of a name from any other, as far as the store knows: its entity tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(pub Arc<str>);

/// A part of a blob.
pub struct Part {
    /// From the range's beginning to its end, or to the blob's where that comes first.
    pub content: Content,
    /// Length of the whole blob.
    pub total: u64,
    /// Which content of the name it is of. `None`: the store does not say.
    pub tag: Option<Tag>,
}

/// What became of a put that must not replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is stored.
    Stored,
    /// There was a blob of that name, which stays.
    Found,
}

/// One blob as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Name relative to the store.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// What a store must do. One contract test runs against every implementation (`tests/flow/stores.rs`).
///
/// Names are relative, of parts joined by `/`; a part is never empty, `.` or `..`, and none starts with a dot.
pub trait BlobStore: fmt::Debug + Send + Sync {
    /// Stores a blob. When this returns, the blob is durable and visible whole; before, it is not visible at all,
    /// and after an error it is either. Putting over an existing name replaces it in one step: readers see the old
    /// or the new bytes, never a mixture.
    fn put<'a>(&'a self, name: &'a str, body: Body) -> BoxFuture<'a, Result<(), Error>>;

    /// Reads a blob from its beginning. [`Error::Missing`] if there is none.
    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Content, Error>>;

    /// Stores a blob unless there is one of that name: of several at a time one does. A store that cannot promise that, or
    /// not for this body, asks before it puts; so does this, unless it is implemented.
    fn put_new<'a>(&'a self, name: &'a str, body: Body) -> BoxFuture<'a, Result<Put, Error>> {
        Box::pin(async move {
            match self.head(name).await? {
                Some(_) => Ok(Put::Found),
                None => self.put(name, body).await.map(|()| Put::Stored),
            }
        })
    }

    /// Reads a part of a blob: nothing of a range that begins at its end or beyond. [`Error::Changed`] if `same` is of
    /// another content of that name, and the store knows. Unless it is implemented, the blob is read up to there.
    fn get_range<'a>(
        &'a self,
        name: &'a str,
        range: Range<u64>,
        same: Option<&'a Tag>,
    ) -> BoxFuture<'a, Result<Part, Error>> {
        let _ = same;
        Box::pin(async move {
            let content = self.get(name).await?;
            let total = self.head(name).await?.unwrap_or(0);
            Ok(Part { content: cut(content, range), total, tag: None })
        })
    }

    /// Whether answers come late and connections break, so that large blobs are better read in several parts at a time.
    fn is_far(&self) -> bool {
        false
    }

    /// Where a blob is a file of this machine's, or of one whose folder is mounted here, whether there is one or not.
    fn file(&self, _name: &str) -> Option<PathBuf> {
        None
    }

    /// A blob's length, or `None` if there is none.
    fn head<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<u64>, Error>>;

    /// All blobs whose names lie below `prefix` (whole parts: `a/b` lists `a/b/c`, not `a/bc`), in name order.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>, Error>>;

    /// Deletes what puts below `prefix` have left that died before `before_ms` (milliseconds since the Unix epoch), where the
    /// store does not do so itself: no blobs, so that no listing has them. How many there were.
    fn sweep<'a>(&'a self, prefix: &'a str, before_ms: i64) -> BoxFuture<'a, Result<u64, Error>> {
        let _ = (prefix, before_ms);
        Box::pin(std::future::ready(Ok(0)))
    }

    /// Deletes a blob. One that is not there is no error: a delete may be repeated.
    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), Error>>;
}

/// Why a store failed, by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL cannot be a store of this release: change the configuration.
    #[error("blob store {url}: {problem}")]
    Url {
        /// As configured.
        url: String,
        /// What is wrong with it, and what to write instead.
        problem: String,
    },
    /// The name breaks the rules of [`BlobStore`]: a bug, or an announcement from elsewhere.
    #[error("{name:?} is not a blob name: {problem}")]
    Name {
        /// The name.
        name: String,
        /// The rule it breaks.
        problem: &'static str,
    },
    /// There is no such blob: it was cleaned, or never put. Jump to a newer version.
    #[error("{url} does not exist; it was cleaned, or another store was meant")]
    Missing {
        /// The blob.
        url: String,
    },
    /// Another blob has taken the place of that of which a part was read before: read it from its beginning.
    #[error("another blob has taken the place of {url} while it was read")]
    Changed {
        /// The blob.
        url: String,
    },
    /// The store refuses: permissions, a read-only or full file system. Retried, since an operator may mend it.
    #[error("{doing} {url}: {problem}")]
    Refused {
        /// `storing`, `reading`, `listing` or `deleting`.
        doing: &'static str,
        /// The blob or the prefix.
        url: String,
        /// What was answered, and what to do.
        problem: String,
    },
    /// The store does not answer, or answers with a failure of its own: try again.
    #[error("{doing} {url}: {problem}")]
    Unavailable {
        /// `storing`, `reading`, `listing` or `deleting`.
        doing: &'static str,
        /// The blob or the prefix.
        url: String,
        /// What was answered.
        problem: String,
    },
}

impl Error {
    /// Whether trying again may succeed with nothing changed here.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Changed { .. } | Error::Refused { .. } | Error::Unavailable { .. })
    }

    /// What the operator does about it.
    pub fn kind(&self) -> crate::ErrorKind {
        match self {
            Error::Url { .. } => crate::ErrorKind::Config,
            Error::Name { .. } => crate::ErrorKind::Internal,
            Error::Missing { .. }
            | Error::Changed { .. }
            | Error::Refused { .. }
            | Error::Unavailable { .. } => crate::ErrorKind::Unavailable,
        }
    }
}

/// Whether what follows `kafka://` can be a store; else what is wrong with it. Opens nothing.
pub fn topic_name(name: &str) -> Result<(), &'static str> {
    self::kafka::check_name(name)
}

/// Rights in Kafka that whoever stores blobs below `url`, or only fetches them, needs; none where it is no topic.
pub fn needs(url: &str, stores: bool) -> Vec<Need> {
    url.strip_prefix("kafka://").map_or(Vec::new(), |topic| self::kafka::needs(topic, stores))
}

/// A blob store and the URL that it was opened by. Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct Store {
    /// Without a slash at its end, so that `base` + `/` + name is a blob's URL.
    base: Arc<str>,
    inner: Arc<dyn BlobStore>,
}

impl Store {
    /// Opens the store of a URL, with what the environment says of it and without further options.
    ///
    /// # Errors
    /// As [`Store::open_with`].
    pub fn open(url: &str) -> Result<Store, Error> {
        Store::open_with(url, &Options::default())
    }

    /// Opens the store of a URL: `file:///DIR` (made if missing); `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or
    /// `az://CONTAINER/PREFIX`, with credentials and endpoint from the providers' usual variables and from `options`, which
    /// go first; `memory://` (every call makes a new, empty one; clone the [`Store`] to share it). Connects to nothing yet.
    ///
    /// # Errors
    /// [`Error::Url`] for any other, for a folder that cannot be made or written, for options that are none.
    pub fn open_with(url: &str, options: &Options) -> Result<Store, Error> {
        object::open(url, options)
    }

    /// As [`Store::open_with`], and `kafka://TOPIC` too, by the clients that `topic` says. Connects to nothing yet.
    ///
    /// # Errors
    /// As [`Store::open_with`]; [`Error::Url`] for properties that librdkafka refuses.
    pub fn open_among(url: &str, options: &Options, topic: &TopicOptions) -> Result<Store, Error> {
        match url.strip_prefix("kafka://") {
            Some(name) if options.0.is_empty() => {
                Ok(Store::new(url, Arc::new(self::kafka::Topic::open(url, name, topic)?)))
            }
            _ => Store::open_with(url, options),
        }
    }

    /// A store of one's own; `base` is what its blobs' absolute URLs start with.
    pub fn new(base: &str, inner: Arc<dyn BlobStore>) -> Store {
        Store { base: base.trim_end_matches('/').into(), inner }
    }

    /// The URL it was opened by, without a slash at its end.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// The absolute URL of a blob. For `file://` stores what follows the scheme is the plain path, not
    /// percent-encoded, so that other programs can open it.
    pub fn absolute_url(&self, name: &str) -> String {
        format!("{}/{name}", self.base)
    }

    /// See [`BlobStore::put`].
    pub async fn put(&self, name: &str, body: impl Into<Body>) -> Result<(), Error> {
        name::check(name)?;
        self.inner.put(name, body.into()).await
    }

    /// See [`BlobStore::put_new`].
    pub async fn put_new(&self, name: &str, body: impl Into<Body>) -> Result<Put, Error> {
        name::check(name)?;
        self.inner.put_new(name, body.into()).await
    }

    /// See [`BlobStore::get_range`].
    pub async fn get_range(&self, name: &str, range: Range<u64>, same: Option<&Tag>) -> Result<Part, Error> {
        name::check(name)?;
        self.inner.get_range(name, range, same).await
    }

    /// See [`BlobStore::is_far`].
    pub fn is_far(&self) -> bool {
        self.inner.is_far()
    }

    /// See [`BlobStore::file`]; `None` also for what is no name of a blob.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        name::check(name).ok()?;
        self.inner.file(name)
    }

    /// See [`BlobStore::get`].
    pub async fn get(&self, name: &str) -> Result<Content, Error> {
        name::check(name)?;
        self.inner.get(name).await
    }

    /// A whole blob in memory; for what is known to be small.
    pub async fn get_bytes(&self, name: &str) -> Result<Bytes, Error> {
        let mut content = self.get(name).await?;
        let mut all = BytesMut::new();
        while let Some(piece) = content.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all.freeze())
    }

    /// See [`BlobStore::sweep`].
    pub async fn sweep(&self, prefix: &str, before_ms: i64) -> Result<u64, Error> {
        name::check(prefix)?;
        self.inner.sweep(prefix, before_ms).await
    }

    /// See [`BlobStore::head`].
    pub async fn head(&self, name: &str) -> Result<Option<u64>, Error> {
        name::check(name)?;
        self.inner.head(name).await
    }

    /// See [`BlobStore::list`]. The empty prefix lists all.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        let prefix = prefix.trim_end_matches('/');
        if !prefix.is_empty() {
            name::check(prefix)?;
        }
        self.inner.list(prefix).await
    }

    /// See [`BlobStore::delete`].
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        name::check(name)?;
        self.inner.delete(name).await
    }

    /// The implementation, for wrappers.
    pub fn inner(&self) -> Arc<dyn BlobStore> {
        Arc::clone(&self.inner)
    }
}

/// Of a whole blob's content what lies in `range`.
fn cut(content: Content, range: Range<u64>) -> Content {
    let mut at = 0;
    let pieces = content.map(move |piece| {
        piece.map(|piece| {
            let from = at;
            at += piece.len() as u64;
            let (start, end) = (range.start.clamp(from, at), range.end.clamp(from, at));
            // Both lie in the piece by now.
            (piece.slice((start - from) as usize..(end.max(start) - from) as usize), at >= range.end)
        })
    });
    let mut over = false;
    pieces
        .take_while(move |piece| {
            let go_on = !over;
            over = piece.as_ref().map_or(true, |(_, last)| *last);
            std::future::ready(go_on)
        })
        .map(|piece| piece.map(|(piece, _)| piece))
        .filter(|piece| std::future::ready(piece.as_ref().map_or(true, |piece| !piece.is_empty())))
        .boxed()
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part").field("total", &self.total).field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.base).finish()
    }
}
