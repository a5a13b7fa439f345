//! Announcements and epoch records: what the announcement topic holds.
//!
//! ```text
//!  c3 01   u64 fingerprint, little-endian   the fields of the schema, one after the other
//! ```
//!
//! Avro single-object encoding; the schemas are `schemas/announcement.avsc` and `schemas/epoch.avsc`, whose fingerprints
//! (CRC-64-AVRO of the parsing canonical form) say which of the two a record is. A record with another fingerprint is
//! refused: a reader that is older than its writer says so, instead of guessing. A later schema gets its own file and
//! fingerprint, and this codec goes on reading the old ones.
//!
//! Two things are in the struct but not on the wire, because they follow from the rest: the counts of upserts and
//! deletes, which are the delta's, and the last link of the chain, which is the delta.
//!
//! Owns: the bytes, and the invariants that an announcement has by itself ([`Announcement::check`]). Does not own: which
//! announcements count (`succession`).

use std::fmt::Display;

use bytes::Bytes;
use uuid::Uuid;

use super::wire::{self, Malformed, SINGLE_OBJECT, Take, put_bytes, put_long, put_some};
use crate::format::succession::Step;
use crate::record::{Position, SourcePartition, TopicId, which_are_read};
use crate::version::{BlobLocation, BlobRef, Chain, Checksum, DeltaRef, Life, Shard, SnapshotRef, Version};

/// Fingerprint of `schemas/announcement.avsc`.
pub const ANNOUNCEMENT_FINGERPRINT: u64 = 0x51a7_5557_54b4_794a;
/// Fingerprint of `schemas/epoch.avsc`.
pub const EPOCH_FINGERPRINT: u64 = 0x6de4_6f4d_4183_f8a1;

/// Longest delta that travels inside its announcement, in bytes as stored.
pub const MAX_INLINE: usize = 64 * 1024;

/// Why bytes are not a message of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not Avro single-object encoding: something else writes to the topic.
    #[error("not a Stillwell record: it does not begin as Avro single-object encoding does")]
    Foreign,
    /// Of a schema that this release does not know: upgrade the reader.
    #[error(
        "written with the schema of fingerprint {0:016x}, which this release does not know: a newer one wrote it, upgrade this one"
    )]
    UnknownSchema(u64),
    /// The fields cannot be read.
    #[error("not readable by its schema")]
    Malformed(#[from] Malformed),
    /// Readable, and impossible.
    #[error("it contradicts itself: {0}")]
    Contradiction(String),
}

/// A source partition and how far it has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePosition {
    /// The partition.
    pub source: SourcePartition,
    /// The offset at which the dataset began to read it.
    pub start: i64,
    /// The next offset to read.
    pub offset: i64,
    /// The end that `caught_up` must pass, as seen when the partition was first announced.
    pub target: i64,
}

impl SourcePosition {
    /// The next offset to read.
    pub fn position(&self) -> Position {
        Position { source: self.source.clone(), offset: self.offset }
    }
}

/// Makes a version visible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Dataset name.
    pub dataset: String,
    /// The shard.
    pub shard: Shard,
    /// Number of shards.
    pub shards: u32,
    /// The writer's life.
    pub life: Life,
    /// The version.
    pub version: Version,
    /// The version before and the epoch that announced it; `None` for version 1.
    pub previous: Option<(Version, u64)>,
    /// When, milliseconds since the Unix epoch, by the writer's clock.
    pub announced_at: i64,
    /// Whether the positions have passed their targets.
    pub caught_up: bool,
    /// Keys with a value in the version.
    pub records: u64,
    /// Entries of its delta with a value.
    pub upserts: u64,
    /// Entries of its delta that delete.
    pub deletes: u64,
    /// Dead letters sent with it.
    pub letters: u64,
    /// Records that a later one of the same key in the same batch replaced.
    pub coalesced: u64,
    /// Records that brought the value which the key had already.
    pub unchanged: u64,
    /// The dataset's schema, as JSON.
    pub schema: String,
    /// CRC-64-AVRO of the schema's parsing canonical form.
    pub schema_fingerprint: u64,
    /// The dataset's append-only list of source partitions.
    pub positions: Vec<SourcePosition>,
    /// The delta that makes the version.
    pub delta: DeltaRef,
    /// The delta's blob, exactly the bytes that are in the store (compressed or not), where they are few.
    pub inline: Option<Bytes>,
    /// The newest snapshot whose own version has been announced.
    pub snapshot: Option<SnapshotRef>,
    /// The deltas since the snapshot, oldest first; the last one is [`Announcement::delta`], unless the snapshot
    /// holds this very version.
    pub chain: Vec<DeltaRef>,
    /// From this version on all blobs are kept.
    pub oldest_kept: Version,
    /// Newest timestamp of the batch's source records.
    pub newest_timestamp: Option<i64>,
    /// W3C trace context.
    pub traceparent: Option<String>,
}

/// The positions of partitions that are read; see [`which_are_read`].
pub fn read_positions(list: &[SourcePosition]) -> impl Iterator<Item = &SourcePosition> {
    let read = which_are_read(list.iter().map(|position| &position.source));
    list.iter().zip(read).filter(|(_, read)| *read).map(|(position, _)| position)
}

impl Announcement {
    /// How to make the version.
    pub fn chain(&self) -> Chain {
        Chain { snapshot: self.snapshot.clone(), deltas: self.chain.clone() }
    }

    /// What the announcement of an earlier version of its chain would say, as far as opening that version goes: its
    /// positions and counts are this one's. `None`: the chain has no delta of that version.
    pub fn earlier(&self, version: Version) -> Option<Announcement> {
        if version == self.version {
            return Some(Announcement { inline: None, ..self.clone() });
        }
        let chain: Vec<_> = self.chain.iter().filter(|delta| delta.version <= version).cloned().collect();
        let delta = chain.last().filter(|delta| delta.version == version)?.clone();
        let before = match chain.iter().rev().nth(1) {
            Some(before) => Some((before.version, before.epoch)),
            None => self.snapshot.as_ref().map(|snapshot| (snapshot.version, snapshot.epoch)),
        };
        Some(Announcement {
            version,
            life: Life { epoch: delta.epoch, ..self.life },
            previous: before,
            upserts: delta.upserts,
            deletes: delta.deletes,
            inline: None,
            delta,
            chain,
            ..self.clone()
        })
    }

    /// Checks what must hold within one announcement; says what does not.
    pub fn check(&self) -> Result<(), String> {
        let broken = |what: &dyn Display| Err(format!("version {}: {what}", self.version));
        if self.version == Version(0) || self.life.epoch == 0 {
            return broken(&"versions and epochs count from 1");
        }
        if self.shard.0 >= self.shards {
            return broken(&format_args!("shard {} of {}", self.shard, self.shards));
        }
        if self.delta.version != self.version {
            return broken(&format_args!("its delta makes version {}", self.delta.version));
        }
        if (self.upserts, self.deletes) != (self.delta.upserts, self.delta.deletes) {
            return broken(&"the counts are not its delta's");
        }
        match self.previous {
            None if self.version != Version(1) => return broken(&"nothing before it"),
            Some((previous, _)) if previous.next() != self.version => {
                return broken(&format_args!("it follows version {previous}"));
            }
            _ => {}
        }
        let chain = self.chain();
        chain.check().or_else(|what| broken(&what))?;
        if chain.version() != self.version {
            return broken(&format_args!("its chain makes version {}", chain.version()));
        }
        if self.chain.last().is_some_and(|last| *last != self.delta) {
            return broken(&"its chain does not end with its delta");
        }
        if let Some(position) = self.positions.iter().find(|position| position.start > position.offset) {
            return broken(&format_args!("{} begins after its position", position.source));
        }
        Ok(())
    }
}

/// Begins a life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochRecord {
    /// Dataset name.
    pub dataset: String,
    /// The shard.
    pub shard: Shard,
    /// Number of shards.
    pub shards: u32,
    /// The life that begins.
    pub life: Life,
    /// When, milliseconds since the Unix epoch, by the writer's clock.
    pub at: i64,
}

/// A record of the announcement topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Makes a version visible.
    Announcement(Box<Announcement>),
    /// Begins a life.
    Epoch(EpochRecord),
}

/// The Kafka key of a shard's messages: `NAME/SHARD`.
pub fn key(dataset: &str, shard: Shard) -> String {
    format!("{dataset}/{shard}")
}

impl Message {
    /// The life that wrote it.
    pub fn life(&self) -> Life {
        match self {
            Message::Announcement(announcement) => announcement.life,
            Message::Epoch(record) => record.life,
        }
    }

    /// What it is to the succession of lives.
    pub fn step(&self) -> Step {
        match self {
            Message::Announcement(announcement) => (announcement.life, Some(announcement.version)),
            Message::Epoch(record) => (record.life, None),
        }
    }

    /// The dataset that it is about.
    pub fn dataset(&self) -> &str {
        match self {
            Message::Announcement(announcement) => &announcement.dataset,
            Message::Epoch(record) => &record.dataset,
        }
    }

    /// The record's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        out.extend_from_slice(&SINGLE_OBJECT);
        match self {
            Message::Announcement(announcement) => {
                debug_assert_eq!(announcement.check(), Ok(()));
                out.extend_from_slice(&ANNOUNCEMENT_FINGERPRINT.to_le_bytes());
                put_announcement(&mut out, announcement);
            }
            Message::Epoch(record) => {
                out.extend_from_slice(&EPOCH_FINGERPRINT.to_le_bytes());
                put_bytes(&mut out, record.dataset.as_bytes());
                put_long(&mut out, record.shard.0.into());
                put_long(&mut out, record.shards.into());
                put_life(&mut out, record.life);
                put_long(&mut out, record.at);
            }
        }
        out
    }

    /// Reads a record's value; an announcement is checked too.
    pub fn decode(bytes: &[u8]) -> Result<Message, Error> {
        let mut take = Take::new(bytes);
        if take.fixed::<2>().map_err(|_| Error::Foreign)? != SINGLE_OBJECT {
            return Err(Error::Foreign);
        }
        let message = match u64::from_le_bytes(take.fixed().map_err(|_| Error::Foreign)?) {
            ANNOUNCEMENT_FINGERPRINT => Message::Announcement(Box::new(take_announcement(&mut take)?)),
            EPOCH_FINGERPRINT => Message::Epoch(EpochRecord {
                dataset: take.string()?.to_owned(),
                shard: Shard(take_u32(&mut take)?),
                shards: take_u32(&mut take)?,
                life: take_life(&mut take)?,
                at: take.long()?,
            }),
            unknown => return Err(Error::UnknownSchema(unknown)),
        };
        take.end()?;
        if let Message::Announcement(announcement) = &message {
            announcement.check().map_err(Error::Contradiction)?;
        }
        Ok(message)
    }
}

fn put_announcement(out: &mut Vec<u8>, it: &Announcement) {
    put_bytes(out, it.dataset.as_bytes());
    put_long(out, it.shard.0.into());
    put_long(out, it.shards.into());
    put_long(out, it.version.0 as i64);
    put_life(out, it.life);
    put_some(out, it.previous.is_some());
    if let Some((version, epoch)) = it.previous {
        put_long(out, version.0 as i64);
        put_long(out, epoch as i64);
    }
    put_long(out, it.announced_at);
    out.push(it.caught_up.into());
    for count in [it.records, it.letters, it.coalesced, it.unchanged] {
        put_long(out, count as i64);
    }
    put_some(out, it.newest_timestamp.is_some());
    if let Some(timestamp) = it.newest_timestamp {
        put_long(out, timestamp);
    }
    put_bytes(out, it.schema.as_bytes());
    put_long(out, it.schema_fingerprint as i64);
    wire::put_array(out, &it.positions, |out, position| {
        put_bytes(out, position.source.topic.as_bytes());
        out.extend_from_slice(&position.source.topic_id.0);
        put_long(out, position.source.partition.into());
        for offset in [position.start, position.offset, position.target] {
            put_long(out, offset);
        }
    });
    put_delta(out, &it.delta);
    put_some(out, it.inline.is_some());
    if let Some(inline) = &it.inline {
        put_bytes(out, inline);
    }
    put_some(out, it.snapshot.is_some());
    if let Some(snapshot) = &it.snapshot {
        put_long(out, snapshot.version.0 as i64);
        put_long(out, snapshot.epoch as i64);
        put_blob(out, &snapshot.blob);
        put_blob(out, &snapshot.index);
        put_long(out, snapshot.records as i64);
    }
    let earlier = it.chain.split_last().map_or(&[][..], |(_, earlier)| earlier);
    wire::put_array(out, earlier, put_delta);
    put_long(out, it.oldest_kept.0 as i64);
    put_some(out, it.traceparent.is_some());
    if let Some(traceparent) = &it.traceparent {
        put_bytes(out, traceparent.as_bytes());
    }
}

fn take_announcement(take: &mut Take<'_>) -> Result<Announcement, Malformed> {
    let dataset = take.string()?.to_owned();
    let shard = Shard(take_u32(take)?);
    let shards = take_u32(take)?;
    let version = take_version(take)?;
    let life = take_life(take)?;
    let previous = take.some()?.then(|| Ok((take_version(take)?, take.count()?))).transpose()?;
    let announced_at = take.long()?;
    let caught_up = take.boolean()?;
    let (records, letters, coalesced, unchanged) =
        (take.count()?, take.count()?, take.count()?, take.count()?);
    let newest_timestamp = take.some()?.then(|| take.long()).transpose()?;
    let schema = take.string()?.to_owned();
    let schema_fingerprint = take.long()? as u64;
    let positions = take.array(|take| {
        Ok::<_, Malformed>(SourcePosition {
            source: SourcePartition {
                topic: take.string()?.into(),
                topic_id: TopicId(take.fixed()?),
                partition: take.int()?,
            },
            start: take.long()?,
            offset: take.long()?,
            target: take.long()?,
        })
    })?;
    let delta = take_delta(take)?;
    let inline = take.some()?.then(|| take.bytes().map(Bytes::copy_from_slice)).transpose()?;
    let snapshot = take
        .some()?
        .then(|| {
            Ok::<_, Malformed>(SnapshotRef {
                version: take_version(take)?,
                epoch: take.count()?,
                blob: take_blob(take)?,
                index: take_blob(take)?,
                records: take.count()?,
            })
        })
        .transpose()?;
    let mut chain = take.array(take_delta)?;
    if snapshot.as_ref().is_none_or(|snapshot| snapshot.version < version) {
        chain.push(delta.clone());
    }
    Ok(Announcement {
        dataset,
        shard,
        shards,
        life,
        version,
        previous,
        announced_at,
        caught_up,
        records,
        upserts: delta.upserts,
        deletes: delta.deletes,
        letters,
        coalesced,
        unchanged,
        schema,
        schema_fingerprint,
        positions,
        delta,
        inline,
        snapshot,
        chain,
        oldest_kept: take_version(take)?,
        newest_timestamp,
        traceparent: take.some()?.then(|| take.string().map(str::to_owned)).transpose()?,
    })
}

fn put_life(out: &mut Vec<u8>, life: Life) {
    put_long(out, life.epoch as i64);
    let mut text = Uuid::encode_buffer();
    put_bytes(out, life.writer.hyphenated().encode_lower(&mut text).as_bytes());
}

fn take_life(take: &mut Take<'_>) -> Result<Life, Malformed> {
    let epoch = take.count()?;
    let writer =
        Uuid::try_parse(take.string()?).map_err(|_| take.malformed("a writer that is not a UUID"))?;
    Ok(Life { epoch, writer })
}

fn put_delta(out: &mut Vec<u8>, delta: &DeltaRef) {
    put_long(out, delta.version.0 as i64);
    put_long(out, delta.epoch as i64);
    put_blob(out, &delta.blob);
    put_long(out, delta.upserts as i64);
    put_long(out, delta.deletes as i64);
}

fn take_delta(take: &mut Take<'_>) -> Result<DeltaRef, Malformed> {
    Ok(DeltaRef {
        version: take_version(take)?,
        epoch: take.count()?,
        blob: take_blob(take)?,
        upserts: take.count()?,
        deletes: take.count()?,
    })
}

fn put_blob(out: &mut Vec<u8>, blob: &BlobRef) {
    put_bytes(out, blob.name.as_bytes());
    put_long(out, blob.bytes as i64);
    out.extend_from_slice(&blob.checksum.0.to_be_bytes());
    put_long(out, blob.plain_bytes as i64);
    out.extend_from_slice(&blob.plain_checksum.0.to_be_bytes());
    put_some(out, blob.location.is_some());
    if let Some(location) = blob.location {
        put_long(out, location.partition.into());
        put_long(out, location.first);
        put_long(out, location.last);
    }
}

fn take_blob(take: &mut Take<'_>) -> Result<BlobRef, Malformed> {
    Ok(BlobRef {
        name: take.string()?.to_owned(),
        bytes: take.count()?,
        checksum: Checksum(u64::from_be_bytes(take.fixed()?)),
        plain_bytes: take.count()?,
        plain_checksum: Checksum(u64::from_be_bytes(take.fixed()?)),
        location: take
            .some()?
            .then(|| {
                Ok::<_, Malformed>(BlobLocation {
                    partition: take.int()?,
                    first: take.long()?,
                    last: take.long()?,
                })
            })
            .transpose()?,
    })
}

fn take_version(take: &mut Take<'_>) -> Result<Version, Malformed> {
    Ok(Version(take.count()?))
}

fn take_u32(take: &mut Take<'_>) -> Result<u32, Malformed> {
    let value = take.int()?;
    u32::try_from(value).map_err(|_| take.malformed("a number below zero"))
}

#[cfg(test)]
mod tests;
