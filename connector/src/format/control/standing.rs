//! The control topic as a whole: of each key the newest record counts, and this is what those leave standing.
//!
//! Owns: the fold over its records, and the names of its keys. Does not own: reading the topic (`consumer/pin`,
//! `producer/control`), acting on what stands.

use std::collections::BTreeMap;

use super::{Control, Pin, Refusal, Snapshot};
use crate::format::announcement::Error;
use crate::version::Shard;

/// The Kafka key of a dataset's pin: `NAME/pin`.
pub fn pin_key(dataset: &str) -> String {
    format!("{dataset}/pin")
}

/// The Kafka key of a reader's refusal: `NAME/SHARD/refusal/READER`.
pub fn refusal_key(dataset: &str, shard: Shard, reader: &str) -> String {
    format!("{dataset}/{shard}/refusal/{reader}")
}

/// The Kafka key of a request for a snapshot: `NAME/SHARD/snapshot`.
pub fn snapshot_key(dataset: &str, shard: Shard) -> String {
    format!("{dataset}/{shard}/snapshot")
}

/// What stands, of one dataset. What else is in the topic (a rebuild, a newer release's records) is passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The pin.
    pub pin: Option<Pin>,
    /// Refusals, by shard and reader.
    pub refusals: BTreeMap<(Shard, String), Refusal>,
    /// Snapshots that are asked for, by shard.
    pub snapshots: BTreeMap<Shard, Snapshot>,
}

impl Standing {
    /// Takes the next record. Of a key whose newest record cannot be read, nothing stands: what it was before is over,
    /// whatever it is now.
    ///
    /// # Errors
    /// As [`Control::decode`]; a record of another dataset, or under the wrong key, is [`Error::Foreign`].
    pub fn take(&mut self, dataset: &str, key: &[u8], value: Option<&[u8]>) -> Result<(), Error> {
        let key = std::str::from_utf8(key).map_err(|_| Error::Foreign)?;
        let rest = key.strip_prefix(dataset).and_then(|rest| rest.strip_prefix('/')).ok_or(Error::Foreign)?;
        let control = value.map(Control::decode).transpose();
        let subject = match rest.split_once('/') {
            None if rest == "pin" => Subject::Pin,
            None => return control.map(|_| ()),
            Some((shard, what)) => {
                let shard = Shard(shard.parse().map_err(|_| Error::Foreign)?);
                match what.split_once('/') {
                    Some(("refusal", reader)) => Subject::Refusal(shard, reader.to_owned()),
                    None if what == "snapshot" => Subject::Snapshot(shard),
                    _ => return control.map(|_| ()),
                }
            }
        };
        match subject {
            Subject::Pin => {
                self.pin = None;
                match control? {
                    Some(Control::Pin(pin)) if pin.dataset == dataset => self.pin = Some(pin),
                    None => {}
                    Some(_) => return Err(Error::Foreign),
                }
            }
            Subject::Refusal(shard, reader) => {
                let at = (shard, reader);
                self.refusals.remove(&at);
                match control? {
                    Some(Control::Refusal(refusal)) if refusal.dataset == dataset => {
                        self.refusals.insert(at, refusal);
                    }
                    None => {}
                    Some(_) => return Err(Error::Foreign),
                }
            }
            Subject::Snapshot(shard) => {
                self.snapshots.remove(&shard);
                match control? {
                    Some(Control::Snapshot(request)) if request.dataset == dataset => {
                        self.snapshots.insert(shard, request);
                    }
                    None => {}
                    Some(_) => return Err(Error::Foreign),
                }
            }
        }
        Ok(())
    }
}

/// What a key is about.
enum Subject {
    Pin,
    Refusal(Shard, String),
    Snapshot(Shard),
}
