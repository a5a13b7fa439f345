//! What a rebuild reads: each source partition as it stands now, held against what was announced of it.
//!
//! Owns: from where to which end, which positions come of it, and where an absent key is deleted. Does not own: the
//! reading (`rebuild`).

use std::sync::Arc;

use super::Error;
use crate::format::announcement::{Announcement, SourcePosition};
use crate::format::control::From;
use crate::kafka::Admin;
use crate::producer::Options;
use crate::record::{Position, SourcePartition, Stamp};
use crate::view::fold::Absent;

/// How a partition stands to what was announced of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing was announced of it, nor of a topic of its name.
    New,
    /// The topic holds what comes next.
    Follows,
    /// The topic begins behind what comes next: records are gone that were never announced.
    Trimmed,
    /// The topic ends before what comes next, as after an unclean leader election.
    Shorter,
    /// A topic of its name was announced, and this is another one.
    Recreated,
}

/// What is read of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The partition.
    pub source: SourcePartition,
    /// Its place in the dataset's list of source partitions.
    pub index: u32,
    /// How it stands.
    pub standing: Standing,
    /// The next offset by the last announcement; `None` for one that it does not know.
    pub announced: Option<i64>,
    /// Where reading begins.
    pub from: i64,
    /// Where it ends: the position that is announced.
    pub to: i64,
}

/// What a rebuild reads, and what comes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Partition by partition.
    pub partitions: Vec<Planned>,
    /// The dataset's list of source partitions, as the version will announce it.
    pub positions: Vec<SourcePosition>,
    /// Topics whose keys are deleted where the topic does not hold them.
    pub deleting: Vec<String>,
}

impl Plan {
    /// Offsets between beginning and end: an upper bound of the records to read.
    pub fn offsets(&self) -> u64 {
        self.partitions.iter().map(|planned| (planned.to - planned.from).max(0).unsigned_abs()).sum()
    }

    /// What is announced before the rebuild: a log resumed there keeps all that no version holds, whatever becomes of the
    /// rebuild. Of a topic that was made anew it is what it was before.
    pub fn announced(&self) -> Vec<Position> {
        let announced = |known: &SourcePosition| {
            let planned = self.partitions.iter().find(|planned| planned.source == known.source);
            let offset = planned.map_or(Some(known.offset), |planned| planned.announced)?;
            Some(Position { source: known.source.clone(), offset })
        };
        self.positions.iter().filter_map(announced).collect()
    }

    /// Where the topics end that are read.
    pub fn ends(&self) -> Vec<Position> {
        let end = |planned: &Planned| Position { source: planned.source.clone(), offset: planned.to };
        self.partitions.iter().map(end).collect()
    }

    /// Whether the version becomes what the source holds and nothing else, whatever was there before.
    pub fn is_all(&self, topics: &[String]) -> bool {
        topics.iter().all(|topic| self.deleting.contains(topic))
    }

    pub(super) fn absent(&self, stamp: &Stamp) -> Absent {
        let topic = self.positions.get(stamp.source as usize).map(|position| &*position.source.topic);
        match topic {
            Some(topic) if self.deleting.iter().any(|deleting| deleting == topic) => Absent::Delete,
            _ => Absent::Keep,
        }
    }
}

/// Looks at the source topics, and says what a rebuild would read of them.
///
/// # Errors
/// [`Error::Kafka`], [`Error::Mismatch`].
pub async fn plan(
    admin: &Admin,
    options: &Options,
    last: Option<&Announcement>,
    (from, deletes): (From, bool),
) -> Result<Plan, Error> {
    let kafka = |doing| move |source| Error::Kafka { doing, source };
    let announced = last.map_or(&[][..], |last| &last.positions);
    let mut plan = Plan { partitions: Vec::new(), positions: announced.to_vec(), deleting: Vec::new() };
    for topic in &options.topics {
        let info = admin.describe(topic).await.map_err(kafka("describing a source topic"))?;
        let info =
            info.ok_or_else(|| Error::Mismatch(format!("source topic {topic} does not exist: create it")))?;
        let config = admin.topic_config(topic).await.map_err(kafka("reading a source topic's settings"))?;
        let compacted = config.get("cleanup.policy").is_some_and(|policy| policy == "compact");
        if from == From::Earliest && (compacted || deletes) {
            plan.deleting.push(topic.clone());
        }
        for partition in 0..info.partitions {
            let ends = admin.watermarks(topic, partition).await;
            let ends = ends.map_err(kafka("asking Kafka where a source topic begins and ends"))?;
            let source = SourcePartition { topic: Arc::from(topic.as_str()), topic_id: info.id, partition };
            let planned = stand(announced, &mut plan.positions, source, ends, from);
            plan.partitions.push(planned);
        }
    }
    let stranger = announced.iter().find(|known| !options.topics.iter().any(|t| **t == *known.source.topic));
    if let Some(stranger) = stranger {
        return Err(Error::Mismatch(format!(
            "source topic {} is part of dataset {} since an earlier version, but not configured any more. Add it again",
            stranger.source.topic, options.dataset
        )));
    }
    Ok(plan)
}

/// One partition: how it stands, and its place in `positions`, with the position at its end.
fn stand(
    announced: &[SourcePosition],
    positions: &mut Vec<SourcePosition>,
    source: SourcePartition,
    (low, end): (i64, i64),
    from: From,
) -> Planned {
    if let Some((index, known)) = positions.iter_mut().enumerate().find(|(_, known)| known.source == source) {
        let next = known.offset;
        let (standing, on) = match next {
            next if next < low => (Standing::Trimmed, low),
            next if next > end => (Standing::Shorter, end),
            next => (Standing::Follows, next),
        };
        let from = if from == From::Earliest { low } else { on };
        known.offset = end;
        known.start = known.start.min(end);
        return Planned { source, index: index as u32, standing, announced: Some(next), from, to: end };
    }
    let of_its_name = || announced.iter().filter(|known| known.source.topic == source.topic);
    let anew = of_its_name().all(|known| known.source.topic_id != source.topic_id);
    let standing = if anew && of_its_name().next().is_some() { Standing::Recreated } else { Standing::New };
    let index = positions.len() as u32;
    positions.push(SourcePosition { source: source.clone(), start: low, offset: end, target: end });
    Planned { source, index, standing, announced: None, from: low, to: end }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::TopicId;

    fn source(id: u8, partition: i32) -> SourcePartition {
        SourcePartition { topic: "t".into(), topic_id: TopicId([id; 16]), partition }
    }

    fn at(id: u8, partition: i32, offset: i64) -> SourcePosition {
        SourcePosition { source: source(id, partition), start: 3, offset, target: 5 }
    }

    #[test]
    fn a_partition_stands_as_its_ends_and_its_topic_say() {
        let announced = [at(1, 0, 50), at(1, 1, 60)];
        for (id, partition, ends, from, want) in [
            (1, 0, (0, 80), From::Earliest, (Standing::Follows, 0, Some(50), 0, 80)),
            (1, 0, (0, 80), From::Positions, (Standing::Follows, 0, Some(50), 50, 80)),
            (1, 1, (70, 80), From::Positions, (Standing::Trimmed, 1, Some(60), 70, 80)),
            (1, 1, (0, 40), From::Earliest, (Standing::Shorter, 1, Some(60), 0, 40)),
            (1, 2, (0, 9), From::Positions, (Standing::New, 2, None, 0, 9)),
            (2, 0, (7, 9), From::Positions, (Standing::Recreated, 2, None, 7, 9)),
        ] {
            let mut positions = announced.to_vec();
            let planned = stand(&announced, &mut positions, source(id, partition), ends, from);
            let Planned { standing, index, announced, from, to, .. } = planned;
            assert_eq!((standing, index, announced, from, to), want, "{id} {partition} {ends:?}");
            assert_eq!(positions[index as usize].offset, ends.1);
            assert!(positions.iter().all(|position| position.start <= position.offset));
        }
    }

    #[test]
    fn only_keys_of_topics_that_delete_are_deleted() {
        let mut plan =
            Plan { partitions: Vec::new(), positions: vec![at(1, 0, 1), at(2, 0, 1)], deleting: Vec::new() };
        let stamp = Stamp { timestamp: 0, source: 1, offset: 0 };
        assert_eq!(plan.absent(&stamp), Absent::Keep);
        plan.deleting.push("t".into());
        assert_eq!(plan.absent(&stamp), Absent::Delete);
        assert_eq!(plan.absent(&Stamp { source: 9, ..stamp }), Absent::Keep, "of nowhere");
    }
}
