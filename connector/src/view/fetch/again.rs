//! A file of the cache that no view can be made of: damaged, unreadable, gone before it was mapped, or just what was announced.
//!
//! Owns: whether it is fetched again, and when that cannot help. Does not own: fetching (`fetch`), other blobs that lead to
//! the same version (`past`).

use std::path::{Path, PathBuf};

use super::{Error, Fetcher, FileName, Identity, View, blocking};
use crate::version::{BlobRef, Checksum, DeltaRef, SnapshotRef};
use crate::view::map::Map;

/// What was tried on the way to one view, which is made of a snapshot and deltas.
pub(super) struct Again<'a> {
    fetcher: &'a Fetcher,
    identity: &'a Identity,
    snapshot: Option<&'a SnapshotRef>,
    deltas: &'a [DeltaRef],
    tried: Vec<PathBuf>,
}

impl<'a> Again<'a> {
    pub fn new(
        fetcher: &'a Fetcher,
        identity: &'a Identity,
        snapshot: Option<&'a SnapshotRef>,
        deltas: &'a [DeltaRef],
    ) -> Again<'a> {
        Again { fetcher, identity, snapshot, deltas, tried: Vec::new() }
    }

    /// `None`: a damaged file was discarded, or one is gone, so fetch it and try once more; the second time is an error.
    pub async fn after(&mut self, made: Result<View, Error>) -> Result<Option<View>, Error> {
        match made {
            Err(Error::Corrupt { path, detail }) => {
                // Fetched again it would be the same, as often as it is tried.
                if let Some(url) = self.announced_as(&path).await {
                    return Err(Error::UnreadableBlob { url, detail });
                }
                if self.tried.contains(&path) {
                    return Err(Error::Corrupt { path, detail });
                }
                tracing::warn!(path = %path.display(), detail, "a file of the blob cache is damaged; fetching it again");
                self.discard(path).await
            }
            // Found a moment ago, and evicted by another process on the same directory before it was mapped.
            Err(Error::Io { path, source, .. })
                if source.kind() == std::io::ErrorKind::NotFound && !self.tried.contains(&path) =>
            {
                self.tried.push(path);
                Ok(None)
            }
            // The disk does not give its bytes, or somebody has left a file that this user may not read: the store has it.
            Err(error) => match error.unreadable().map(Path::to_owned) {
                // Where nothing is fetched a file that cannot be read just now may be all there is.
                Some(path) if !self.fetcher.local && !self.tried.contains(&path) => {
                    let error = crate::error::chain(&error);
                    tracing::warn!(error, "a file of the blob cache cannot be read; fetching it again");
                    self.discard(path).await
                }
                _ => Err(error),
            },
            Ok(made) => Ok(Some(made)),
        }
    }

    async fn discard(&mut self, path: PathBuf) -> Result<Option<View>, Error> {
        let (cache, damaged) = (self.fetcher.cache.clone(), path.clone());
        blocking(move || cache.discard(&damaged)).await?;
        self.tried.push(path);
        Ok(None)
    }

    /// Where the blob lies that a file is the plain form of, if its bytes are those that were announced. Cost: a pass over
    /// them.
    async fn announced_as(&self, path: &Path) -> Option<String> {
        let blob = self.blob_at(path)?;
        let (path, bytes, want) = (path.to_owned(), blob.plain_bytes, blob.plain_checksum);
        let is_whole = blocking(move || Ok(Map::open(&path, bytes)?.pass(Checksum::of) == want)).await;
        matches!(is_whole, Ok(true)).then(|| self.fetcher.store.absolute_url(&blob.name))
    }

    fn blob_at(&self, path: &Path) -> Option<&'a BlobRef> {
        let is_there =
            |name: FileName| self.fetcher.cache.path(self.identity, &name).is_ok_and(|at| at == path);
        match self.snapshot {
            Some(of) if is_there(FileName::snapshot(of)) => return Some(&of.blob),
            Some(of) if is_there(FileName::index(of)) => return Some(&of.index),
            _ => {}
        }
        self.deltas.iter().find(|of| is_there(FileName::delta(of))).map(|of| &of.blob)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Store;
    use crate::record::TopicId;
    use crate::version::{Shard, Version};
    use crate::view::Cache;

    const BYTES: &[u8] = b"those that were announced";

    struct World {
        /// Goes with it.
        _dir: tempfile::TempDir,
        fetcher: Fetcher,
        identity: Identity,
        delta: DeltaRef,
        path: PathBuf,
    }

    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), u64::MAX).unwrap();
        let identity =
            Identity { dataset: "products".into(), topic_id: TopicId::default(), shard: Shard(0), shards: 1 };
        let (bytes, checksum) = (BYTES.len() as u64, Checksum::of(BYTES));
        let name = "delta".to_owned();
        let blob =
            BlobRef { name, bytes, checksum, plain_bytes: bytes, plain_checksum: checksum, location: None };
        let delta = DeltaRef { version: Version(1), epoch: 1, blob, upserts: 1, deletes: 0 };
        let path = cache.path(&identity, &FileName::delta(&delta)).unwrap();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let fetcher = Fetcher::new(Store::open("memory://").unwrap(), cache);
        World { _dir: dir, fetcher, identity, delta, path }
    }

    impl World {
        fn again(&self) -> Again<'_> {
            Again::new(&self.fetcher, &self.identity, None, std::slice::from_ref(&self.delta))
        }
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_fetched_again_once() {
        let mut world = world();
        let path = world.path.clone();
        let failed = |doing, errno: i32| {
            let source = std::io::Error::from_raw_os_error(errno);
            Err::<View, _>(Error::Io { doing, path: path.clone(), source })
        };
        const EIO: i32 = 5;
        const EACCES: i32 = 13;
        const EMFILE: i32 = 24;
        const ENOSPC: i32 = 28;
        std::fs::write(&path, BYTES).unwrap();
        for (doing, errno) in [("opening", EMFILE), ("writing", ENOSPC), ("mapping", EACCES)] {
            assert!(world.again().after(failed(doing, errno)).await.is_err());
            assert!(path.exists(), "it is not to blame");
        }
        for (doing, errno) in [("reading", EIO), ("opening", EACCES)] {
            std::fs::write(&path, BYTES).unwrap();
            let mut again = world.again();
            assert!(again.after(failed(doing, errno)).await.unwrap().is_none());
            assert!(!path.exists(), "so that it is fetched");
            assert!(again.after(failed(doing, errno)).await.is_err(), "the disk is at fault");
        }
        world.fetcher = world.fetcher.clone().from_cache_only();
        for (doing, errno) in [("reading", EIO), ("opening", EACCES)] {
            std::fs::write(&path, BYTES).unwrap();
            assert!(world.again().after(failed(doing, errno)).await.is_err() && path.exists(), "all we have");
        }
    }

    #[tokio::test]
    async fn a_damaged_file_is_fetched_again_once_and_one_as_it_was_announced_never() {
        let world = world();
        let corrupt = || Err::<View, _>(Error::corrupt(&world.path, "format 9"));
        for bytes in [&b"cut"[..], b"those that were Announced"] {
            let mut again = world.again();
            std::fs::write(&world.path, bytes).unwrap();
            assert!(again.after(corrupt()).await.unwrap().is_none());
            assert!(!world.path.exists(), "so that it is fetched");
            std::fs::write(&world.path, bytes).unwrap();
            let damaged = again.after(corrupt()).await.unwrap_err();
            assert!(matches!(damaged, Error::Corrupt { .. }), "the disk is at fault: {damaged:?}");
        }
        std::fs::write(&world.path, BYTES).unwrap();
        let error = world.again().after(corrupt()).await.unwrap_err();
        assert!(matches!(&error, Error::UnreadableBlob { url, .. } if url.ends_with("delta")), "{error:?}");
        assert!(world.path.exists(), "to be read by a later release");
    }
}
