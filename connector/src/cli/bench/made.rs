//! A dataset made without Kafka: a snapshot with its index and deltas, by the code that producers use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::Settings;
use crate::blob::{Body, Store, name};
use crate::clock::Clock;
use crate::format::announcement::{Announcement, Message};
use crate::format::container::{self, Kind, Writer};
use crate::producer::build::INLINE_BYTES;
use crate::record::{Entry, Stamp, TopicId};
use crate::schema::Schema;
use crate::schema::wire::{put_bytes, put_long};
use crate::version::{BlobRef, Chain, Checksum, DeltaRef, Life, Shard, SnapshotRef, Version};
use crate::view::{About, Cache, Fetcher, FileName, Identity, View};
use crate::{Error, ErrorKind, Result};

pub(super) const SCHEMA: &str = r#"{"type":"record","name":"Product","fields":[
    {"name":"id","type":"string"},{"name":"name","type":"string"},{"name":"price","type":"double"},
    {"name":"stock","type":"int"},{"name":"note","type":"string"}]}"#;

const LIFE: Life = Life { epoch: 1, writer: uuid::Uuid::nil() };

/// Deltas over the snapshot where a bench has a chain of them, each of one record in a hundred: as many as lie between two
/// snapshots of the default profile.
pub(super) const DELTAS: u64 = 25;

pub(super) fn key(number: u64) -> String {
    format!("product-{number:010}")
}

/// Letters that look like a note and compress like one.
fn note(number: u64, round: u64, bytes: usize) -> String {
    let mut text = format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round);
    while text.len() < bytes {
        text.push_str(" of some use in house and garden");
    }
    text.truncate(bytes);
    text
}

/// A record as JSON, about `bytes` long.
pub(super) fn json(number: u64, bytes: u64) -> String {
    let head = format!(
        "{{\"id\":\"{}\",\"name\":\"A thing, number {}\",\"price\":{:.2},\"stock\":{},\"note\":\"",
        key(number),
        number % 100_000,
        number as f64 * 0.25,
        number % 500
    );
    let note = note(number, 0, (bytes as usize).saturating_sub(head.len() + 2));
    format!("{head}{note}\"}}")
}

/// A record as a datum, about `bytes` long.
fn datum(number: u64, round: u64, bytes: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes as usize);
    put_bytes(&mut out, key(number).as_bytes());
    put_bytes(&mut out, format!("A thing, number {}", number % 100_000).as_bytes());
    out.extend_from_slice(&(number as f64 * 0.25 + round as f64).to_le_bytes());
    put_long(&mut out, (number % 500) as i64);
    let rest = (bytes as usize).saturating_sub(out.len() + 2);
    put_bytes(&mut out, note(number, round, rest).as_bytes());
    out
}

/// The dataset, in a directory.
pub(super) struct Made {
    pub(super) identity: Identity,
    pub(super) schema: Arc<Schema>,
    pub(super) cache: Cache,
    pub(super) store: Store,
    pub(super) snapshot: SnapshotRef,
    settings: Settings,
}

pub(super) fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::because(ErrorKind::Unavailable, "preparing the bench's dataset", error)
}

impl Made {
    /// A snapshot of all records, in the store (compressed) and in the cache.
    pub(super) async fn new(dir: &Path, settings: &Settings) -> Result<Made> {
        Made::of(dir, settings, "bench", TopicId([1; 16])).await
    }

    /// The same of the dataset whose announcements are in the topic with this id.
    pub(super) async fn of(
        dir: &Path,
        settings: &Settings,
        dataset: &str,
        topic_id: TopicId,
    ) -> Result<Made> {
        let schema = Arc::new(Schema::dataset(SCHEMA).expect("it is a record"));
        let identity = Identity { dataset: dataset.into(), topic_id, shard: Shard(0), shards: 1 };
        let cache = Cache::open(dir.join("cache"), u64::MAX).map_err(failed)?;
        let store = Store::open(&format!("file://{}", dir.join("blobs").display())).map_err(failed)?;
        let header = identity.header(Kind::Snapshot, Version(1), Version(0), LIFE, &schema, Vec::new());
        let mut writer = Writer::indexed(Vec::new(), &header).map_err(failed)?;
        for number in 0..settings.records {
            let value = datum(number, 0, settings.value_bytes);
            let stamp = Stamp { timestamp: 1, source: 0, offset: number as i64 };
            let key = key(number);
            let entry = Entry { key: key.as_bytes(), stamp, value: Some(&value) };
            writer.push(&entry).map_err(failed)?;
        }
        let (summary, plain, builder) = writer.finish_indexed().map_err(failed)?;
        let mut index = Vec::new();
        builder.write(&mut index).map_err(failed)?;
        let mut stored = Vec::new();
        container::compress(&plain, container::LEVEL, &mut stored).map_err(failed)?;
        let first =
            |kind: name::Kind, stored: &[u8], plain: &[u8]| blob(&identity, kind, Version(1), stored, plain);
        let snapshot = SnapshotRef {
            version: Version(1),
            epoch: 1,
            blob: first(name::Kind::Snapshot, &stored, &plain),
            index: first(name::Kind::Index, &index, &index),
            records: summary.counts.upserts,
        };
        cache.put(&identity, &FileName::snapshot(&snapshot), &plain).map_err(failed)?;
        cache.put(&identity, &FileName::index(&snapshot), &index).map_err(failed)?;
        store.put(&snapshot.blob.name, Body::Bytes(stored.into())).await.map_err(failed)?;
        store.put(&snapshot.index.name, Body::Bytes(index.into())).await.map_err(failed)?;
        Ok(Made { identity, schema, cache, store, snapshot, settings: settings.clone() })
    }

    pub(super) fn about(&self, version: u64) -> About {
        let records = self.settings.records;
        About {
            version: Version(version),
            life: LIFE,
            caught_up: true,
            records,
            ..About::nothing(self.schema.clone())
        }
    }

    /// The view, opened as a reader opens it, from `cache`.
    pub(super) async fn open(&self, cache: &Cache) -> Result<View> {
        self.open_from(&self.snapshot, cache).await
    }

    /// The same from another form of the snapshot, as [`Made::stored_plain`] gives one.
    pub(super) async fn open_from(&self, snapshot: &SnapshotRef, cache: &Cache) -> Result<View> {
        let fetcher = Fetcher::new(self.store.clone(), cache.clone());
        let chain = Chain { snapshot: Some(snapshot.clone()), deltas: Vec::new() };
        Ok(fetcher.open(&self.identity, &chain, None, self.about(1)).await?)
    }

    /// The plain snapshot's file in the cache.
    pub(super) fn snapshot_file(&self) -> Result<PathBuf> {
        let held = self.cache.find(&self.identity, &FileName::snapshot(&self.snapshot)).map_err(failed)?;
        held.map(|held| held.path().to_owned())
            .ok_or_else(|| Error::new(ErrorKind::Internal, "the bench's snapshot has left its cache"))
    }

    /// The snapshot as a producer without `enable_compression` stores it, which is in the store too from then on.
    pub(super) async fn stored_plain(&self) -> Result<SnapshotRef> {
        let plain = BlobRef {
            bytes: self.snapshot.blob.plain_bytes,
            checksum: self.snapshot.blob.plain_checksum,
            ..self.snapshot.blob.clone()
        };
        let name = blob_name(&self.identity, name::Kind::Snapshot, self.snapshot.version, plain.checksum);
        let snapshot = SnapshotRef { blob: BlobRef { name, ..plain }, ..self.snapshot.clone() };
        let body = Body::File(self.snapshot_file()?);
        self.store.put(&snapshot.blob.name, body).await.map_err(failed)?;
        Ok(snapshot)
    }

    /// A delta of `count` records, evenly spread, and its bytes as they would travel in an announcement.
    pub(super) fn delta(&self, version: u64, count: u64) -> Result<(DeltaRef, Bytes)> {
        let previous = Version(version - 1);
        let header =
            self.identity.header(Kind::Delta, Version(version), previous, LIFE, &self.schema, Vec::new());
        let mut writer = Writer::new(Vec::new(), &header).map_err(failed)?;
        let step = (self.settings.records / count).max(1);
        for number in (version % step..self.settings.records).step_by(step as usize).take(count as usize) {
            let value = datum(number, version, self.settings.value_bytes);
            let stamp = Stamp { timestamp: version as i64, source: 0, offset: number as i64 };
            let key = key(number);
            let entry = Entry { key: key.as_bytes(), stamp, value: Some(&value) };
            writer.push(&entry).map_err(failed)?;
        }
        let (summary, plain) = writer.finish().map_err(failed)?;
        let checksum = Checksum::of(&plain);
        let blob = BlobRef {
            name: format!("bench/delta-{version}"),
            bytes: plain.len() as u64,
            checksum,
            plain_bytes: plain.len() as u64,
            plain_checksum: checksum,
            location: None,
        };
        let delta = DeltaRef {
            version: Version(version),
            epoch: 1,
            blob,
            upserts: summary.counts.upserts,
            deletes: summary.counts.deletes,
        };
        Ok((delta, plain.into()))
    }

    /// The same as a producer stores it: compressed, in the store, and with the announcement where it is small.
    pub(super) async fn stored(&self, version: u64, count: u64) -> Result<(DeltaRef, Option<Bytes>)> {
        let (delta, plain) = self.delta(version, count)?;
        self.put_delta(delta, &plain).await
    }

    /// As [`Made::stored`], of a delta and its plain form as [`Made::delta`] gives them.
    pub(super) async fn put_delta(
        &self,
        mut delta: DeltaRef,
        plain: &[u8],
    ) -> Result<(DeltaRef, Option<Bytes>)> {
        let mut stored = Vec::new();
        container::compress(plain, container::LEVEL, &mut stored).map_err(failed)?;
        let stored = Bytes::from(stored);
        delta.blob = blob(&self.identity, name::Kind::Delta, delta.version, &stored, plain);
        self.store.put(&delta.blob.name, Body::Bytes(stored.clone())).await.map_err(failed)?;
        Ok((delta, (stored.len() <= INLINE_BYTES).then_some(stored)))
    }

    /// The [`DELTAS`] over the snapshot, in the store and in the cache, as a reader has them that was there when they came.
    pub(super) async fn cached_deltas(&self) -> Result<Vec<DeltaRef>> {
        let mut deltas = Vec::new();
        for version in 2..2 + DELTAS {
            let (delta, plain) = self.delta(version, (self.settings.records / 100).max(1))?;
            let (delta, _) = self.put_delta(delta, &plain).await?;
            self.cache.put(&self.identity, &FileName::delta(&delta), &plain).map_err(failed)?;
            deltas.push(delta);
        }
        Ok(deltas)
    }

    /// Leaves an announcement in the cache as that of the version which was held last, so that a consumer starts from it.
    pub(super) fn note_current(&self, announcement: &[u8]) -> Result<()> {
        self.cache.save_current(&self.identity, announcement).map_err(failed)
    }

    /// An announcement of `delta`'s version, with the deltas since the snapshot, as it lies in its topic.
    pub(super) fn announcement(
        &self,
        clock: &Clock,
        delta: DeltaRef,
        inline: Option<Bytes>,
        chain: Vec<DeltaRef>,
    ) -> Vec<u8> {
        let announcement = Announcement {
            dataset: self.identity.dataset.to_string(),
            shard: self.identity.shard,
            shards: self.identity.shards,
            life: LIFE,
            version: delta.version,
            previous: (delta.version > Version(1)).then(|| (Version(delta.version.0 - 1), LIFE.epoch)),
            announced_at: clock.wall_ms(),
            caught_up: true,
            records: self.settings.records,
            upserts: delta.upserts,
            deletes: delta.deletes,
            letters: 0,
            coalesced: 0,
            unchanged: 0,
            schema: self.schema.json().to_owned(),
            schema_fingerprint: self.schema.fingerprint(),
            positions: Vec::new(),
            delta,
            inline,
            snapshot: Some(self.snapshot.clone()),
            chain,
            oldest_kept: Version(1),
            newest_timestamp: None,
            traceparent: None,
        };
        Message::Announcement(Box::new(announcement)).encode()
    }
}

fn blob(identity: &Identity, kind: name::Kind, version: Version, stored: &[u8], plain: &[u8]) -> BlobRef {
    let checksum = Checksum::of(stored);
    BlobRef {
        name: blob_name(identity, kind, version, checksum),
        bytes: stored.len() as u64,
        checksum,
        plain_bytes: plain.len() as u64,
        plain_checksum: Checksum::of(plain),
        location: None,
    }
}

fn blob_name(identity: &Identity, kind: name::Kind, version: Version, checksum: Checksum) -> String {
    name::Name { folder: identity.folder(), version, epoch: LIFE.epoch, checksum, kind }.to_string()
}
