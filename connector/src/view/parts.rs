//! A large blob out of a store far away: in parts, a few at a time, each taken up again where it broke.
//!
//! ```text
//!  get_range 0..4M  ----x  1.2M..4M ---->  |
//!  get_range 4M..8M  ------------------->  | in order ---> [checksum, decompress, checksum] (`fetch`)
//!  get_range 8M..12M ----x ..             |
//!            the tag of the first answer goes with every later question: never a part of another blob
//! ```
//!
//! Owns: parts, their order, how long a break is borne. Does not own: what the bytes are (`fetch` checks them), what
//! happens when it gives up (the caller knows what else waits).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use futures::stream::{self, Stream, StreamExt as _, TryStreamExt as _};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::Error;
use crate::blob::{self, Store, Tag};
use crate::clock::Entropy;
use crate::retry::Backoff;
use crate::version::BlobRef;

/// One part: large enough that asking (some 50 ms, far away) does not count, small enough to lose little and to hold a few.
const PART: u64 = 4 << 20;
/// Parts of one blob that are under way or wait for those before them.
const AT_A_TIME: usize = 4;
/// The same of all blobs: with [`PART`] what fetching takes in memory.
const AT_A_TIME_OF_ALL: usize = 8;
/// Pieces in which a part is handed on.
const PIECE: usize = 1 << 20;
/// Longest wait for an answer, or for its next piece, also of a blob that comes in one.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// A blob of which something has come is waited for as long without a byte more: to begin again later costs all of it.
const HOLD_OUT: Duration = Duration::from_secs(60);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

const REPLACED: &str = "another blob took its place while it was read";

/// Room for parts in memory, shared by all fetches into one cache.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Room {
        Room(Arc::new(Semaphore::new(AT_A_TIME_OF_ALL)))
    }
}

/// The bytes of a blob, in order.
///
/// # Errors
/// [`Error::Missing`], [`Error::Store`]; [`Error::CorruptBlob`] where it is longer or shorter than announced, or another
/// one took its place meanwhile.
pub(super) fn read(
    store: &Store,
    blob: &BlobRef,
    room: &Room,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
    let (store, blob, room) = (store.clone(), blob.clone(), room.clone());
    let parts = ranges(blob.bytes, PART);
    let one = Arc::new(One {
        store,
        blob,
        tag: OnceLock::new(),
        came: AtomicU64::new(0),
        entropy: Entropy::system(),
    });
    stream::iter(parts)
        .map(move |range| {
            let (one, room) = (one.clone(), room.clone());
            // The part holds its place until it is handed on. Those in front asked first, so none waits for one behind it.
            async move {
                let place = room.0.acquire_owned().await.map_err(|_| Error::Closed)?;
                one.part(range).await.map(|bytes| (bytes, place))
            }
            .boxed()
        })
        .buffered(AT_A_TIME)
        .map_ok(|(bytes, place)| {
            stream::unfold((bytes, place), |(mut bytes, place)| async {
                let piece = bytes.split_to(bytes.len().min(PIECE));
                (!piece.is_empty()).then_some((Ok(piece), (bytes, place)))
            })
        })
        .try_flatten()
}

/// Parts of so many bytes. A blob of none has one, which says whether there is that blob.
fn ranges(bytes: u64, part: u64) -> impl Iterator<Item = Range<u64>> {
    let parts = bytes.div_ceil(part).max(1);
    (0..parts).map(move |n| n * part..((n + 1) * part).min(bytes))
}

/// One blob on its way.
#[derive(Debug)]
struct One {
    store: Store,
    blob: BlobRef,
    /// Of the first answer.
    tag: OnceLock<Tag>,
    /// Bytes that came, of any part.
    came: AtomicU64,
    entropy: Entropy,
}

impl One {
    async fn part(&self, range: Range<u64>) -> Result<Bytes, Error> {
        let length = (range.end - range.start) as usize;
        let mut have = BytesMut::with_capacity(length);
        let mut backoff = Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF);
        let mut last = Instant::now();
        loop {
            let before = have.len();
            let error = match self.go_on(&range, &mut have).await {
                Ok(()) => return Ok(have.freeze()),
                Err(Error::Store(error)) if error.is_transient() => error,
                Err(error) => return Err(error),
            };
            if have.len() > before {
                last = Instant::now();
                backoff.reset();
            }
            // Of a blob that never began nothing is lost; and what is refused needs somebody to mend it.
            let begun = self.came.load(Ordering::Relaxed) > 0;
            if !begun || last.elapsed() > HOLD_OUT || matches!(error, blob::Error::Refused { .. }) {
                return Err(Error::Store(error));
            }
            let wait = backoff.next(&self.entropy);
            let at = range.start + have.len() as u64;
            tracing::warn!(%error, blob = self.blob.name, at, of = self.blob.bytes, ?wait, "a download broke; it goes on there");
            tokio::time::sleep(wait).await;
        }
    }

    /// Reads on where `have` ends.
    async fn go_on(&self, range: &Range<u64>, have: &mut BytesMut) -> Result<(), Error> {
        let rest = range.start + have.len() as u64..range.end;
        let name = &self.blob.name;
        let silent = || blob::Error::Unavailable {
            doing: "reading",
            url: self.store.absolute_url(name),
            problem: format!("nothing came for {SILENCE:?}"),
        };
        let asked = self.store.get_range(name, rest.clone(), self.tag.get());
        let part = match timeout(SILENCE, asked).await.unwrap_or_else(|_| Err(silent())) {
            Ok(part) => part,
            Err(blob::Error::Changed { .. }) => return Err(self.corrupt(REPLACED)),
            Err(error @ blob::Error::Missing { .. }) => return Err(Error::Missing(error)),
            Err(error) => return Err(Error::Store(error)),
        };
        if part.total != self.blob.bytes {
            let detail = format!("{} bytes were announced, {} are there", self.blob.bytes, part.total);
            return Err(self.corrupt(detail));
        }
        // Several begin at a time, and not every store heeds the tag that is sent. A weak one, as proxies make them, is for
        // nobody to compare with; the checksums decide in the end.
        if let Some(tag) = part.tag.filter(|tag| !tag.0.starts_with("W/"))
            && *self.tag.get_or_init(|| tag.clone()) != tag
        {
            return Err(self.corrupt(REPLACED));
        }
        let mut content = part.content;
        let wanted = (range.end - range.start) as usize;
        while have.len() < wanted {
            let piece = match timeout(SILENCE, content.next()).await {
                Ok(Some(piece)) => piece.map_err(Error::Store)?,
                // A connection that ends between two pieces looks like an end.
                Ok(None) => {
                    return Err(Error::Store(blob::Error::Unavailable {
                        doing: "reading",
                        url: self.store.absolute_url(name),
                        problem: format!("it ended {} bytes early", wanted - have.len()),
                    }));
                }
                Err(_) => return Err(Error::Store(silent())),
            };
            if piece.len() > wanted - have.len() {
                return Err(self.corrupt("more came than was asked for"));
            }
            self.came.fetch_add(piece.len() as u64, Ordering::Relaxed);
            have.extend_from_slice(&piece);
        }
        Ok(())
    }

    fn corrupt(&self, detail: impl Into<String>) -> Error {
        Error::CorruptBlob { url: self.store.absolute_url(&self.blob.name), detail: detail.into() }
    }
}

#[cfg(test)]
mod tests;
