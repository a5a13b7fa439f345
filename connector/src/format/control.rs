//! What the control topic holds: requests to a shard's owner and what became of them, pins, refusals.
//!
//! ```text
//!  c3 01   u64 fingerprint, little-endian   the fields of the schema, one after the other
//! ```
//!
//! Avro single-object encoding, as announcements are; the schemas are `schemas/{rebuild,rebuilt,pin,refusal,snapshot}.avsc`.
//! The topic is compacted: of each key the newest record counts, so an outcome carries its request, which it replaces.
//!
//! Owns: the bytes, what they leave standing ([`Standing`]), when a request is done ([`pending`]). Does not own: carrying
//! it out (`producer/rebuild`), obeying it (`consumer/pin`).

use std::fmt;

use uuid::Uuid;

use super::announcement::Error;
use super::wire::{Malformed, SINGLE_OBJECT, Take, put_bytes, put_long};
use crate::record::TopicId;
use crate::version::{Shard, Version};

mod standing;
mod steer;

pub use standing::{Standing, pin_key, refusal_key, snapshot_key};
pub use steer::{Pin, Pinned, Refusal, Snapshot};

/// Fingerprint of `schemas/rebuild.avsc`.
pub const REBUILD_FINGERPRINT: u64 = 0xfccb_2682_1ea0_cfcd;
/// Fingerprint of `schemas/rebuilt.avsc`.
pub const REBUILT_FINGERPRINT: u64 = 0x8f4b_ae54_03e1_94dd;
/// Fingerprint of `schemas/pin.avsc`.
pub const PIN_FINGERPRINT: u64 = 0xc0e8_3f38_b966_3ee0;
/// Fingerprint of `schemas/refusal.avsc`.
pub const REFUSAL_FINGERPRINT: u64 = 0x7ada_7314_6687_85dc;
/// Fingerprint of `schemas/snapshot.avsc`.
pub const SNAPSHOT_FINGERPRINT: u64 = 0x1b6d_c52c_a3b2_f5f9;

/// What a rebuild reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Every partition from its beginning.
    Earliest,
    /// On from the announced positions; from the beginning where the topic does not hold them any more.
    Positions,
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            From::Earliest => "earliest",
            From::Positions => "positions",
        })
    }
}

/// Asks the owner of a shard to read its source anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuild {
    /// Dataset name.
    pub dataset: String,
    /// The shard.
    pub shard: Shard,
    /// Id of the announcement topic.
    pub history: TopicId,
    /// Tells two requests apart.
    pub id: Uuid,
    /// What is read.
    pub from: From,
    /// Delete what the source does not hold, though its topic is not compacted.
    pub deletes: bool,
    /// When, milliseconds since the Unix epoch, by the clock of who asked.
    pub at: i64,
}

/// What a rebuild did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// What was asked for.
    pub request: Rebuild,
    /// The version that it made.
    pub version: Version,
    /// Epoch of the life that made it.
    pub epoch: u64,
    /// When, milliseconds since the Unix epoch, by the writer's clock.
    pub at: i64,
    /// Records read.
    pub read: u64,
    /// Dead letters sent with it.
    pub letters: u64,
    /// Keys added or changed.
    pub upserts: u64,
    /// Keys deleted.
    pub deletes: u64,
    /// Keys that the source does not hold, and that were kept since nobody said to delete them.
    pub kept: u64,
}

/// A record of the control topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// A request.
    Rebuild(Rebuild),
    /// Its outcome.
    Rebuilt(Rebuilt),
    /// Readers hold these versions.
    Pin(Pin),
    /// A reader does not take a version.
    Refusal(Refusal),
    /// A snapshot is asked for.
    Snapshot(Snapshot),
}

/// The Kafka key of a shard's rebuild: `NAME/SHARD/rebuild`.
pub fn rebuild_key(dataset: &str, shard: Shard) -> String {
    format!("{dataset}/{shard}/rebuild")
}

/// The request that the newest record of its key leaves to be carried out, in the history `history` whose last
/// announced version is `last`.
///
/// An outcome counts only once its version is announced: both are of one transaction, yet a late duplicate of an ending
/// may have committed that one before its announcement was in it. No later life announces the version by other means,
/// since each looks here first.
pub fn pending(newest: Option<Control>, history: TopicId, last: Version) -> Option<Rebuild> {
    let request = match newest? {
        Control::Rebuild(request) => request,
        Control::Rebuilt(outcome) if outcome.version > last => outcome.request,
        _ => return None,
    };
    (request.history == history).then_some(request)
}

impl Control {
    /// The record's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.extend_from_slice(&SINGLE_OBJECT);
        match self {
            Control::Rebuild(request) => {
                out.extend_from_slice(&REBUILD_FINGERPRINT.to_le_bytes());
                put_request(&mut out, request);
            }
            Control::Rebuilt(outcome) => {
                out.extend_from_slice(&REBUILT_FINGERPRINT.to_le_bytes());
                put_request(&mut out, &outcome.request);
                put_long(&mut out, outcome.version.0 as i64);
                put_long(&mut out, outcome.epoch as i64);
                put_long(&mut out, outcome.at);
                for count in [outcome.read, outcome.letters, outcome.upserts, outcome.deletes, outcome.kept] {
                    put_long(&mut out, count as i64);
                }
            }
            Control::Pin(pin) => {
                out.extend_from_slice(&PIN_FINGERPRINT.to_le_bytes());
                pin.put(&mut out);
            }
            Control::Refusal(refusal) => {
                out.extend_from_slice(&REFUSAL_FINGERPRINT.to_le_bytes());
                refusal.put(&mut out);
            }
            Control::Snapshot(request) => {
                out.extend_from_slice(&SNAPSHOT_FINGERPRINT.to_le_bytes());
                request.put(&mut out);
            }
        }
        out
    }

    /// Reads a record's value.
    ///
    /// # Errors
    /// As for announcements; [`Error::UnknownSchema`] where a newer release wrote it.
    pub fn decode(bytes: &[u8]) -> Result<Control, Error> {
        let mut take = Take::new(bytes);
        if take.fixed::<2>().map_err(|_| Error::Foreign)? != SINGLE_OBJECT {
            return Err(Error::Foreign);
        }
        let control = match u64::from_le_bytes(take.fixed().map_err(|_| Error::Foreign)?) {
            REBUILD_FINGERPRINT => Control::Rebuild(take_request(&mut take)?),
            REBUILT_FINGERPRINT => Control::Rebuilt(Rebuilt {
                request: take_request(&mut take)?,
                version: Version(take.count()?),
                epoch: take.count()?,
                at: take.long()?,
                read: take.count()?,
                letters: take.count()?,
                upserts: take.count()?,
                deletes: take.count()?,
                kept: take.count()?,
            }),
            PIN_FINGERPRINT => Control::Pin(Pin::take(&mut take)?),
            REFUSAL_FINGERPRINT => Control::Refusal(Refusal::take(&mut take)?),
            SNAPSHOT_FINGERPRINT => Control::Snapshot(Snapshot::take(&mut take)?),
            unknown => return Err(Error::UnknownSchema(unknown)),
        };
        take.end()?;
        Ok(control)
    }
}

fn put_request(out: &mut Vec<u8>, request: &Rebuild) {
    put_bytes(out, request.dataset.as_bytes());
    put_long(out, request.shard.0.into());
    out.extend_from_slice(&request.history.0);
    put_id(out, request.id);
    put_long(
        out,
        match request.from {
            From::Earliest => 0,
            From::Positions => 1,
        },
    );
    out.push(request.deletes.into());
    put_long(out, request.at);
}

fn take_request(take: &mut Take<'_>) -> Result<Rebuild, Malformed> {
    let dataset = take.string()?.to_owned();
    let shard = take_shard(take)?;
    let history = TopicId(take.fixed()?);
    let id = take_id(take)?;
    let from = match take.int()? {
        0 => From::Earliest,
        1 => From::Positions,
        _ => return Err(take.malformed("a symbol that the enum does not have")),
    };
    Ok(Rebuild { dataset, shard, history, id, from, deletes: take.boolean()?, at: take.long()? })
}

fn put_id(out: &mut Vec<u8>, id: Uuid) {
    let mut text = Uuid::encode_buffer();
    put_bytes(out, id.hyphenated().encode_lower(&mut text).as_bytes());
}

fn take_id(take: &mut Take<'_>) -> Result<Uuid, Malformed> {
    Uuid::try_parse(take.string()?).map_err(|_| take.malformed("an id that is not a UUID"))
}

fn take_shard(take: &mut Take<'_>) -> Result<Shard, Malformed> {
    u32::try_from(take.int()?).map(Shard).map_err(|_| take.malformed("a number below zero"))
}

#[cfg(test)]
mod tests;
