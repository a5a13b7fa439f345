//! Files of small deltas: put into the cache beside the flow, one after the other, and held there as a view holds those that
//! it maps.
//!
//! A version need not wait for its delta's file: a new file may itself have to wait for the file system, and a start
//! fetches what is not there. So one that cannot be put costs a line in the log, and no life.

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::error::chain;
use crate::failpoint;
use crate::repeat::Tally;
use crate::version::Version;
use crate::view::{Cache, FileName, Held, Identity};

/// A delta whose bytes are in memory, and whose file is not there yet.
pub(super) struct Small {
    pub(super) version: Version,
    pub(super) name: FileName,
    pub(super) plain: Bytes,
}

/// The files.
#[derive(Default)]
pub(super) struct Keeping {
    under_way: Option<JoinHandle<Option<Held>>>,
    /// The version of what is under way, and then of what is held.
    version: Version,
    held: Vec<(Version, Held)>,
    failures: Tally,
}

impl Keeping {
    /// Begins to put one, once the one before is there: a disk that hangs holds up its builder, and takes no more threads.
    pub(super) async fn keep(&mut self, cache: &Cache, identity: &Identity, small: Small) {
        self.settle().await;
        let (cache, identity, failures) = (cache.clone(), identity.clone(), self.failures.clone());
        self.version = small.version;
        self.under_way = Some(tokio::task::spawn_blocking(move || {
            match cache.put(&identity, &small.name, &small.plain) {
                Ok(held) => {
                    failpoint::pass("build.delta");
                    Some(held)
                }
                Err(error) => {
                    if let Some(times) = failures.again() {
                        let error = chain(&error);
                        tracing::warn!(
                            error,
                            times,
                            "a delta's file is not in the cache; the next start fetches it"
                        );
                    }
                    None
                }
            }
        }));
    }

    /// Waits for what is under way.
    pub(super) async fn settle(&mut self) {
        let Some(under_way) = self.under_way.take() else { return };
        // One that panicked has said so; its file is fetched.
        self.held.extend(under_way.await.ok().flatten().map(|held| (self.version, held)));
    }

    /// Lets go of those that a snapshot of `base` has taken in.
    pub(super) fn let_go(&mut self, base: Version) {
        self.held.retain(|(version, _)| *version > base);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::{Checksum, Shard};

    #[tokio::test]
    async fn files_are_held_until_a_snapshot_has_them_and_one_that_cannot_be_put_costs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 1 << 20).unwrap();
        let topic_id = crate::record::TopicId([7; 16]);
        let identity = Identity { dataset: "d".into(), topic_id, shard: Shard(0), shards: 1 };
        let small = |version| Small {
            version: Version(version),
            name: FileName::delta(&crate::version::DeltaRef {
                version: Version(version),
                epoch: 1,
                blob: crate::version::BlobRef {
                    name: String::new(),
                    bytes: 5,
                    checksum: Checksum::of(b"delta"),
                    plain_bytes: 5,
                    plain_checksum: Checksum::of(b"delta"),
                    location: None,
                },
                upserts: 1,
                deletes: 0,
            }),
            plain: Bytes::from_static(b"delta"),
        };
        let mut keeping = Keeping::default();
        for version in 1..=3 {
            keeping.keep(&cache, &identity, small(version)).await;
        }
        keeping.settle().await;
        let versions =
            |keeping: &Keeping| keeping.held.iter().map(|(version, _)| version.0).collect::<Vec<_>>();
        assert_eq!(versions(&keeping), [1, 2, 3]);
        assert!(keeping.held.iter().all(|(_, held)| held.path().exists()));
        keeping.let_go(Version(2));
        assert_eq!(versions(&keeping), [3]);

        let elsewhere = Identity { dataset: "".into(), ..identity };
        keeping.keep(&cache, &elsewhere, small(4)).await;
        keeping.settle().await;
        assert_eq!(
            (versions(&keeping), keeping.failures.again()),
            (vec![3], Some(2)),
            "said, and nothing more"
        );
    }
}
