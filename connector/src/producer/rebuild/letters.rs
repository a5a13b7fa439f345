//! Which records are dead letters already: those alone a rebuild passes over. That a record does not fit now says nothing of
//! how it was when it was first read: schema, format and bounds change, and so does the codec.
//!
//! Owns: reading the dead-letter topic for them, once, when the first record below its position is met that does not fit.
//! Does not own: what becomes of the others (`rebuild`). A letter that is gone (retention, somebody's delete) was none: its
//! record becomes one again rather than that a key is lost.
//!
//! Memory: 24 bytes for each letter of the topic, and as much again while they grow.

use std::collections::HashSet;

use tokio_util::sync::CancellationToken;

use super::{Error, Plan};
use crate::dead::found::Found;
use crate::dead::{self, topic};
use crate::kafka::Admin;
use crate::producer::Options;
use crate::record::Stamp;

/// A record of the source: partition (by its place in the dataset's list), offset, and the timestamp, since a topic that
/// was made anew has the same offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place(u32, i64, i64);

impl Place {
    /// Of a record that is read.
    pub(super) fn of(stamp: &Stamp) -> Place {
        Place(stamp.source, stamp.offset, stamp.timestamp)
    }

    /// Of the record that a letter tells of, if it did not go into the dataset. What a listener or a webhook did not handle
    /// has.
    fn told(found: &Found<'_>, dataset: &str, plan: &Plan) -> Option<Place> {
        let is_in = matches!(found.stage, "listener" | "webhook");
        let source = found.source.filter(|_| found.owner == dataset && !is_in)?;
        let planned = plan.partitions.iter().find(|planned| {
            *planned.source.topic == *source.topic && planned.source.partition == source.partition
        })?;
        Some(Place(planned.index, source.offset, found.timestamp))
    }
}

/// Reads all letters. Blocks, within a runtime.
///
/// # Errors
/// [`Error::Letters`], [`Error::Stopped`].
pub(super) fn look(
    options: &Options,
    plan: &Plan,
    stop: &CancellationToken,
) -> Result<HashSet<Place>, Error> {
    let failed = |error| match error {
        dead::Error::Stopped => Error::Stopped,
        error => Error::Letters(error),
    };
    let kafka = |source| Error::Kafka { doing: "creating a client to read dead letters with", source };
    let admin = Admin::new(&options.kafka).map_err(kafka)?;
    let letters = match topic::Topic::look(&admin, &options.dead_letters) {
        Err(dead::Error::NoTopic(_)) => return Ok(HashSet::new()),
        letters => letters.map_err(failed)?,
    };
    let group = format!("stillwell.{}", options.dataset);
    let mut known = HashSet::new();
    let take = |found: Found<'_>| known.extend(Place::told(&found, &options.dataset, plan));
    topic::each(&options.kafka, &group, letters, &options.clock, stop, take).map_err(failed)?;
    Ok(known)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Planned, Standing};
    use super::*;
    use crate::codec::Stage;
    use crate::dead::found::Raw;
    use crate::format::letter::{Elsewhere, Letter};
    use crate::record::{SourcePartition, TopicId};

    #[test]
    fn a_letter_tells_of_the_record_that_did_not_go_into_the_dataset() {
        let source = SourcePartition { topic: Arc::from("t"), topic_id: TopicId([1; 16]), partition: 3 };
        let planned = Planned {
            source: source.clone(),
            index: 5,
            standing: Standing::Follows,
            announced: Some(9),
            from: 0,
            to: 9,
        };
        let plan = Plan { partitions: vec![planned], positions: Vec::new(), deleting: Vec::new() };
        let told = |stage: &str, partition: i32, dataset: &str| {
            let letter = Letter {
                source: SourcePartition { partition, ..source.clone() },
                offset: 7,
                timestamp: 1_000,
                key: None,
                value: None,
                headers: Vec::new(),
                stage: stage.into(),
                class: "stillwell.codec.MissingField".into(),
                message: String::new(),
            };
            let headers = letter.kafka_headers(dataset, 0, 55, &Elsewhere::Nothing);
            let raw = Raw { partition: 0, offset: 0, timestamp: 2_000, key: None, value: None };
            let headers = headers.iter().map(|(name, value)| (&**name, value.as_deref()));
            Place::told(&Found::read(raw, headers), "products", &plan)
        };
        let stamp = Stamp { timestamp: 1_000, source: 5, offset: 7 };
        for stage in Stage::ALL {
            assert_eq!(told(stage.connect(), 3, "products"), Some(Place::of(&stamp)), "{stage}");
        }
        let decode = Stage::Decode.connect();
        assert_ne!(told(decode, 3, "products"), Some(Place::of(&Stamp { timestamp: 1_001, ..stamp })));
        assert_eq!(told(decode, 4, "products"), None);
        assert_eq!(told(decode, 3, "others"), None);
        assert_eq!(told("webhook", 3, "products"), None, "it is in the dataset");
    }
}
