//! Whose version it is, and what its announcement said about it.

use std::sync::Arc;

use crate::blob;
use crate::format::announcement::Announcement;
use crate::format::container::{Header, Kind};
use crate::record::{Position, SourcePartition, TopicId};
use crate::schema::Schema;
use crate::version::{Checksum, Life, Shard, Version};

/// Which shard of which dataset, in which life of its announcement topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Dataset name.
    pub dataset: Arc<str>,
    /// Id of the announcement topic.
    pub topic_id: TopicId,
    /// The shard.
    pub shard: Shard,
    /// How many shards there are.
    pub shards: u32,
}

impl Identity {
    /// The folder of its blobs, in stores and caches.
    pub fn folder(&self) -> blob::name::Folder {
        blob::name::Folder { dataset: self.dataset.to_string(), topic_id: self.topic_id, shard: self.shard }
    }

    /// The name of a blob in a store; `checksum` is of the stored form.
    pub fn blob_name(
        &self,
        kind: blob::name::Kind,
        version: Version,
        epoch: u64,
        checksum: Checksum,
    ) -> String {
        blob::name::Name { folder: self.folder(), version, epoch, checksum, kind }.to_string()
    }

    /// The header of a blob of this shard.
    pub fn header(
        &self,
        kind: Kind,
        version: Version,
        previous: Version,
        life: Life,
        schema: &Schema,
        sources: Vec<SourcePartition>,
    ) -> Header {
        Header {
            kind,
            dataset: self.dataset.to_string(),
            topic_id: self.topic_id,
            shard: self.shard,
            shards: self.shards,
            version,
            previous,
            life,
            entry_schema: schema.entry_json().into(),
            sources,
            counts: None,
            former: Arc::default(),
        }
    }

    /// Checks that a blob is the one that is spoken of; says how it differs.
    pub(super) fn expect(
        &self,
        header: &Header,
        kind: Kind,
        version: Version,
        epoch: u64,
    ) -> Result<(), String> {
        let have =
            (header.kind, &*header.dataset, header.topic_id, header.shard, header.version, header.life.epoch);
        let want = (kind, &*self.dataset, self.topic_id, self.shard, version, epoch);
        if have == want {
            return Ok(());
        }
        let say = |(kind, dataset, topic_id, shard, version, epoch): (
            Kind,
            &str,
            TopicId,
            Shard,
            Version,
            u64,
        )| {
            format!(
                "the {kind} of version {version} of {dataset}/{shard} (topic id {topic_id}, epoch {epoch})"
            )
        };
        Err(format!("it is {} instead of {}", say(have), say(want)))
    }
}

/// One announcement's facts, which the view of its version carries.
#[derive(Clone, Debug)]
pub struct About {
    /// The version.
    pub version: Version,
    /// The life that announced it.
    pub life: Life,
    /// When, milliseconds since the Unix epoch.
    pub announced_at_ms: i64,
    /// Whether everything is in it that its sources held when they were first seen.
    pub caught_up: bool,
    /// Keys in it.
    pub records: u64,
    /// What it holds of each source, in the order of the dataset's append-only list, into which an entry's source
    /// counts.
    pub positions: Vec<Position>,
    /// The dataset's schema.
    pub schema: Arc<Schema>,
    /// The newest timestamp of a record in it or in a version before.
    pub newest_timestamp_ms: Option<i64>,
    /// The oldest version whose blobs are kept.
    pub oldest_kept: Version,
    /// Taken from the cache while Kafka was away: there may be a newer one.
    pub stale: bool,
}

impl About {
    /// What an announcement says. `schema` is its schema, parsed once by the caller.
    pub fn announced(announcement: &Announcement, schema: Arc<Schema>) -> About {
        About {
            version: announcement.version,
            life: announcement.life,
            announced_at_ms: announcement.announced_at,
            caught_up: announcement.caught_up,
            records: announcement.records,
            positions: announcement.positions.iter().map(|position| position.position()).collect(),
            schema,
            newest_timestamp_ms: announcement.newest_timestamp,
            oldest_kept: announcement.oldest_kept,
            stale: false,
        }
    }

    /// Of version 0, before anything was announced.
    pub fn nothing(schema: Arc<Schema>) -> About {
        About {
            version: Version(0),
            life: Life { epoch: 0, writer: uuid::Uuid::nil() },
            announced_at_ms: 0,
            caught_up: false,
            records: 0,
            positions: Vec::new(),
            schema,
            newest_timestamp_ms: None,
            oldest_kept: Version(0),
            stale: false,
        }
    }
}
