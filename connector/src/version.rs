//! Versions, and what a version is made of: the chain of blobs that leads to it.
//!
//! Owns: numbering, lives, blob references. Does not own: how they are written (`format/`), or where (`blob/`).

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A version's number: gapless within a shard, counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

impl Version {
    /// The version after this one.
    pub fn next(self) -> Version {
        Version(self.0 + 1)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One partition of the dataset's announcement topic, and the one writer that owns it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shard(pub u32);

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The version of each shard that a read saw, in shard order. Prints as `7`, or `7,9,4` with several shards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardVersions(pub Vec<Version>);

impl fmt::Display for ShardVersions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shard, version) in self.0.iter().enumerate() {
            if shard > 0 {
                f.write_str(",")?;
            }
            version.fmt(f)?;
        }
        Ok(())
    }
}

/// One term of a shard's writer. Lives are ordered by epoch; of two with the same epoch the first epoch record wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Life {
    /// Counts the lives of a shard, from 1.
    pub epoch: u64,
    /// Tells two lives of one epoch apart.
    pub writer: Uuid,
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.epoch, self.writer)
    }
}

/// XXH3-64 of some bytes (<https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>), printed `xxh3:HEX`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Checksum(pub u64);

impl Checksum {
    /// The checksum of `bytes`.
    pub fn of(bytes: &[u8]) -> Checksum {
        Checksum(xxhash_rust::xxh3::xxh3_64(bytes))
    }

    /// Sixteen hexadecimal digits, as they stand in blob names.
    pub fn hex(self) -> String {
        format!("{:016x}", self.0)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "xxh3:{:016x}", self.0)
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Checksum {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A blob as announcements name it: enough to find it in a store and to know that it is whole.
///
/// `bytes` and `checksum` are of the blob as stored (compressed, where compression is on); `plain_bytes` and
/// `plain_checksum` of its uncompressed form, which is what a cache holds and maps. For an uncompressed blob both are
/// the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRef {
    /// Name relative to the store, see `blob/name.rs`.
    pub name: String,
    /// Bytes as stored.
    pub bytes: u64,
    /// Checksum as stored.
    pub checksum: Checksum,
    /// Bytes when uncompressed.
    pub plain_bytes: u64,
    /// Checksum when uncompressed.
    pub plain_checksum: Checksum,
    /// Where it lies in a `kafka://` store; `None` for stores that find a blob by its name.
    pub location: Option<BlobLocation>,
}

/// A blob's place in a `kafka://` store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobLocation {
    /// Partition of the blob topic.
    pub partition: i32,
    /// Offset of its first chunk.
    pub first: i64,
    /// Offset of its last chunk.
    pub last: i64,
}

/// The delta that turns the version before into `version`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaRef {
    /// The version that it makes.
    pub version: Version,
    /// Epoch of the life that wrote it.
    pub epoch: u64,
    /// The blob.
    pub blob: BlobRef,
    /// Entries with a value.
    pub upserts: u64,
    /// Entries that delete.
    pub deletes: u64,
}

/// A snapshot and its index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRef {
    /// The version that it holds.
    pub version: Version,
    /// Epoch of the life that wrote it.
    pub epoch: u64,
    /// The blob with the entries.
    pub blob: BlobRef,
    /// The blob with the index over them.
    pub index: BlobRef,
    /// Keys in it.
    pub records: u64,
}

/// How to make a version: the newest snapshot, and the deltas since, oldest first, the last of which makes it.
///
/// Invariants (see [`Chain::check`]): without a snapshot the first delta makes version 1; the deltas follow one
/// another without a gap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The newest announced snapshot at or below the version.
    pub snapshot: Option<SnapshotRef>,
    /// The deltas above the snapshot, oldest first.
    pub deltas: Vec<DeltaRef>,
}

impl Chain {
    /// The version that the chain makes; 0 if it is empty.
    pub fn version(&self) -> Version {
        let base = self.snapshot.as_ref().map_or(Version(0), |snapshot| snapshot.version);
        self.deltas.last().map_or(base, |delta| delta.version)
    }

    /// Checks the invariants; says which one is broken.
    pub fn check(&self) -> Result<(), String> {
        let mut before = self.snapshot.as_ref().map_or(Version(0), |snapshot| snapshot.version);
        for delta in &self.deltas {
            if delta.version != before.next() {
                return Err(format!("delta {} does not follow version {before}", delta.version));
            }
            before = delta.version;
        }
        Ok(())
    }

    /// Drops the deltas that `snapshot` covers, and puts it below the rest.
    pub fn rebase(&mut self, snapshot: SnapshotRef) {
        self.deltas.retain(|delta| delta.version > snapshot.version);
        self.snapshot = Some(snapshot);
    }
}
