//! What steers readers and snapshots: a pin, a reader's refusal, a request for a snapshot. Their fields in the order of
//! `schemas/pin.avsc`, `schemas/refusal.avsc` and `schemas/snapshot.avsc`.

use uuid::Uuid;

use super::{put_id, take_id, take_shard};
use crate::format::wire::{Malformed, Take, put_array, put_bytes, put_long};
use crate::record::TopicId;
use crate::version::{Shard, ShardVersions, Version};

/// All readers of the dataset hold these versions, whatever is announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Dataset name.
    pub dataset: String,
    /// Id of the announcement topic: a pin means versions of one history only.
    pub history: TopicId,
    /// Tells two pins apart.
    pub id: Uuid,
    /// One of each shard, in shard order.
    pub versions: Vec<Pinned>,
    /// Who pinned.
    pub by: String,
    /// Why; may be empty.
    pub reason: String,
    /// When, milliseconds since the Unix epoch, by the clock of who pinned.
    pub at: i64,
}

/// The announcement that one shard is pinned to. Version and epoch name it; its offset finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The version.
    pub version: Version,
    /// Epoch of the life that announced it.
    pub epoch: u64,
    /// Offset of its announcement.
    pub offset: i64,
}

/// A reader's guard refuses a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Dataset name.
    pub dataset: String,
    /// The shard.
    pub shard: Shard,
    /// Id of the announcement topic.
    pub history: TopicId,
    /// The version that is refused.
    pub version: Version,
    /// Epoch of the life that announced it.
    pub epoch: u64,
    /// The version on which the reader stays; 0 where it holds none.
    pub held: Version,
    /// The reader's name.
    pub by: String,
    /// The guard's words.
    pub reason: String,
    /// When, milliseconds since the Unix epoch, by the reader's clock.
    pub at: i64,
}

/// Asks the owner of a shard for a snapshot now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Dataset name.
    pub dataset: String,
    /// The shard.
    pub shard: Shard,
    /// Id of the announcement topic.
    pub history: TopicId,
    /// Tells two requests apart.
    pub id: Uuid,
    /// The least version that the snapshot has to hold.
    pub version: Version,
    /// When, milliseconds since the Unix epoch, by the clock of who asked.
    pub at: i64,
}

impl Pin {
    /// Its versions alone.
    pub fn shard_versions(&self) -> ShardVersions {
        ShardVersions(self.versions.iter().map(|pinned| pinned.version).collect())
    }

    /// Whether it names a shard's version in a history.
    pub fn names(&self, shard: Shard, history: TopicId, version: Version, epoch: u64) -> bool {
        let named = self.versions.get(shard.0 as usize);
        self.history == history && named.is_some_and(|named| (named.version, named.epoch) == (version, epoch))
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.dataset.as_bytes());
        out.extend_from_slice(&self.history.0);
        put_id(out, self.id);
        put_array(out, &self.versions, |out, pinned| {
            put_long(out, pinned.version.0 as i64);
            put_long(out, pinned.epoch as i64);
            put_long(out, pinned.offset);
        });
        put_bytes(out, self.by.as_bytes());
        put_bytes(out, self.reason.as_bytes());
        put_long(out, self.at);
    }

    pub(super) fn take(take: &mut Take<'_>) -> Result<Pin, Malformed> {
        Ok(Pin {
            dataset: take.string()?.to_owned(),
            history: TopicId(take.fixed()?),
            id: take_id(take)?,
            versions: take.array(|take| {
                Ok::<_, Malformed>(Pinned {
                    version: Version(take.count()?),
                    epoch: take.count()?,
                    offset: take.long()?,
                })
            })?,
            by: take.string()?.to_owned(),
            reason: take.string()?.to_owned(),
            at: take.long()?,
        })
    }
}

impl Refusal {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.dataset.as_bytes());
        put_long(out, self.shard.0.into());
        out.extend_from_slice(&self.history.0);
        put_long(out, self.version.0 as i64);
        put_long(out, self.epoch as i64);
        put_long(out, self.held.0 as i64);
        put_bytes(out, self.by.as_bytes());
        put_bytes(out, self.reason.as_bytes());
        put_long(out, self.at);
    }

    pub(super) fn take(take: &mut Take<'_>) -> Result<Refusal, Malformed> {
        Ok(Refusal {
            dataset: take.string()?.to_owned(),
            shard: take_shard(take)?,
            history: TopicId(take.fixed()?),
            version: Version(take.count()?),
            epoch: take.count()?,
            held: Version(take.count()?),
            by: take.string()?.to_owned(),
            reason: take.string()?.to_owned(),
            at: take.long()?,
        })
    }
}

impl Snapshot {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.dataset.as_bytes());
        put_long(out, self.shard.0.into());
        out.extend_from_slice(&self.history.0);
        put_id(out, self.id);
        put_long(out, self.version.0 as i64);
        put_long(out, self.at);
    }

    pub(super) fn take(take: &mut Take<'_>) -> Result<Snapshot, Malformed> {
        Ok(Snapshot {
            dataset: take.string()?.to_owned(),
            shard: take_shard(take)?,
            history: TopicId(take.fixed()?),
            id: take_id(take)?,
            version: Version(take.count()?),
            at: take.long()?,
        })
    }
}
