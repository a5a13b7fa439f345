//! What is under way: sent, and not yet announced or not yet readable.
//!
//! ```text
//!  partition 0   ...announced | sent, waiting ......... | room
//!                             |<--- at most LANE_BYTES -->|
//! ```
//!
//! The embedded broker keeps 5 MB or 100,000 batches a partition and forgets what is older without a word. So nothing
//! is sent until what lies before it is announced, up to far less than that: what is announced is in a blob and will
//! not be asked of the broker again. What is measured on the way is how long each record took.
//!
//! Owns: how much may be sent, and the latencies. Does not own: sending, or what else is measured.

use std::collections::VecDeque;
use std::time::Instant;

use super::measure::Latencies;

/// What records weigh that wait in one partition, at most.
const LANE_BYTES: u64 = 2 << 20;
/// What a record weighs beside key and value: its share of a batch of its own.
const OVERHEAD: u64 = 128;

/// When a record was sent, since its latency is told by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as there is room: latency is mostly waiting in line.
    Load = 0,
    /// At a steady rate.
    Steady = 1,
}

/// Who is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The producer has announced it.
    Announced,
    /// This consumer's view holds it.
    Readable(usize),
}

/// What is under way, in all partitions.
#[derive(Debug)]
pub struct Flight {
    lanes: Vec<Lane>,
    /// Announced, then each consumer.
    marks: Vec<Track>,
}

#[derive(Debug, Default)]
struct Lane {
    /// Offset of the first record in `sent`.
    first: i64,
    sent: VecDeque<Sent>,
    waiting: u64,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Instant,
    pace: Pace,
    weight: u64,
}

#[derive(Clone, Debug)]
struct Track {
    /// By partition, the next offset.
    positions: Vec<i64>,
    /// By partition, the first offset whose latency says something.
    counts_from: Vec<i64>,
    /// By pace.
    latencies: [Latencies; 2],
    /// Consumers that have not joined yet hold nothing back.
    joined: bool,
}

impl Flight {
    /// Nothing under way in `partitions` partitions, with `consumers` to wait for once they have joined.
    pub fn new(partitions: usize, consumers: usize) -> Flight {
        let start = vec![0; partitions];
        let track = Track {
            positions: start.clone(),
            counts_from: start,
            latencies: Default::default(),
            joined: false,
        };
        let mut marks = vec![track; consumers + 1];
        if let Some(announced) = marks.first_mut() {
            announced.joined = true;
        }
        Flight { lanes: (0..partitions).map(|_| Lane::default()).collect(), marks }
    }

    /// Whether the partition takes another record of `bytes` of key and value. An empty one takes any.
    pub fn has_room(&self, partition: usize, bytes: u64) -> bool {
        let weight = bytes + OVERHEAD;
        self.lanes.get(partition).is_some_and(|lane| lane.waiting == 0 || lane.waiting + weight <= LANE_BYTES)
    }

    /// A record has been put in line as the partition's next. Returns its offset, which is known because nobody else
    /// writes to the topic.
    pub fn sent(&mut self, partition: usize, bytes: u64, at: Instant, pace: Pace) -> i64 {
        let weight = bytes + OVERHEAD;
        let Some(lane) = self.lanes.get_mut(partition) else { return -1 };
        lane.sent.push_back(Sent { at, pace, weight });
        lane.waiting += weight;
        lane.end() - 1
    }

    /// A consumer has joined. It is waited for until it holds everything; how long a record took is counted of those
    /// that are sent from here on.
    pub fn join(&mut self, consumer: usize) {
        let ends = self.ends();
        if let Some(track) = self.marks.get_mut(consumer + 1) {
            track.counts_from = ends;
            track.joined = true;
        }
    }

    /// All records of the partition below `position` have come this far.
    pub fn reached(&mut self, mark: Mark, partition: usize, position: i64, at: Instant) {
        let index = match mark {
            Mark::Announced => 0,
            Mark::Readable(consumer) => consumer + 1,
        };
        let (Some(lane), Some(track)) = (self.lanes.get_mut(partition), self.marks.get_mut(index)) else {
            return;
        };
        // Nobody else writes to the topic; whoever says to be further than what was sent is not believed.
        let position = position.min(lane.end());
        if let (Some(known), Some(counts_from)) =
            (track.positions.get_mut(partition), track.counts_from.get(partition))
            && track.joined
            && *known < position
        {
            let from = (*known).max(*counts_from).max(lane.first);
            let skip = usize::try_from(from - lane.first).unwrap_or(0);
            let many = usize::try_from(position - from).unwrap_or(0);
            for sent in lane.sent.iter().skip(skip).take(many) {
                if mark == Mark::Announced {
                    lane.waiting = lane.waiting.saturating_sub(sent.weight);
                }
                if let Some(latencies) = track.latencies.get_mut(sent.pace as usize) {
                    latencies.record(at.saturating_duration_since(sent.at), 1);
                }
            }
            *known = position;
        }
        let joined = self.marks.iter().filter(|track| track.joined);
        let least = joined.filter_map(|track| track.positions.get(partition)).min();
        while lane.first < least.copied().unwrap_or(0) && lane.sent.pop_front().is_some() {
            lane.first += 1;
        }
    }

    /// Whether all that was sent has come this far for all who joined.
    pub fn has_landed(&self) -> bool {
        self.waiting_for().is_none()
    }

    /// Records that somebody still waits for, for an error that says what did not come.
    pub fn waiting_for(&self) -> Option<u64> {
        let joined = self.marks.iter().filter(|track| track.joined);
        let behind = |track: &Track| -> u64 {
            let lanes = self.lanes.iter().zip(&track.positions);
            lanes.map(|(lane, position)| u64::try_from(lane.end() - position).unwrap_or(0)).sum()
        };
        joined.map(behind).max().filter(|behind| *behind > 0)
    }

    /// By partition, the offset that the next record will have.
    pub fn ends(&self) -> Vec<i64> {
        self.lanes.iter().map(Lane::end).collect()
    }

    /// Whether all below these offsets, by partition, is announced.
    pub fn has_reached(&self, ends: &[i64]) -> bool {
        self.marks.first().is_some_and(|track| track.positions.iter().zip(ends).all(|(at, end)| at >= end))
    }

    /// Records announced so far.
    pub fn announced(&self) -> u64 {
        let announced = self.marks.first().map(|track| track.positions.iter().sum::<i64>());
        announced.and_then(|sum| u64::try_from(sum).ok()).unwrap_or(0)
    }

    /// How long records took to get this far; those of the consumer that did not join have no count.
    pub fn latencies(&self, mark: Mark, pace: Pace) -> Latencies {
        let index = match mark {
            Mark::Announced => 0,
            Mark::Readable(consumer) => consumer + 1,
        };
        self.marks
            .get(index)
            .and_then(|track| track.latencies.get(pace as usize))
            .cloned()
            .unwrap_or_default()
    }
}

impl Lane {
    fn end(&self) -> i64 {
        self.first + self.sent.len() as i64
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_partition_is_full_until_what_waits_in_it_is_announced() {
        let now = Clock::manual(0).now();
        let mut flight = Flight::new(2, 0);
        let mut sent = 0;
        while flight.has_room(0, 10_000) {
            assert_eq!(flight.sent(0, 10_000, now, Pace::Load), sent);
            sent += 1;
        }
        assert!((100..250).contains(&sent), "{sent}");
        assert!(flight.has_room(1, 10_000), "the other one has room");
        assert!(flight.has_room(1, 50 << 20), "an empty one takes any");
        flight.reached(Mark::Announced, 0, 1, now);
        assert!(flight.has_room(0, 10_000));
        assert_eq!(flight.waiting_for(), Some(sent as u64 - 1));
        flight.reached(Mark::Announced, 0, sent, now);
        assert!(flight.has_landed());
        assert_eq!(flight.announced(), sent as u64);
    }

    #[test]
    fn latencies_are_told_by_mark_and_pace() {
        let clock = Clock::manual(0);
        let mut flight = Flight::new(1, 2);
        flight.join(0);
        flight.sent(0, 10, clock.now(), Pace::Load);
        flight.join(1);
        flight.sent(0, 10, clock.now(), Pace::Steady);
        clock.advance(Duration::from_millis(10));
        flight.reached(Mark::Announced, 0, 2, clock.now());
        clock.advance(Duration::from_millis(10));
        flight.reached(Mark::Readable(0), 0, 2, clock.now());
        assert_eq!(flight.waiting_for(), Some(2), "the second consumer holds nothing yet");
        clock.advance(Duration::from_millis(20));
        flight.reached(Mark::Readable(1), 0, 1, clock.now());
        flight.reached(Mark::Readable(1), 0, 2, clock.now());
        assert!(flight.has_landed());
        let p50 = |mark, pace| flight.latencies(mark, pace).quantile(0.5).map(|took| took.as_millis());
        assert_eq!(p50(Mark::Announced, Pace::Load), Some(10));
        assert_eq!(p50(Mark::Readable(0), Pace::Steady), Some(20));
        assert_eq!(p50(Mark::Readable(1), Pace::Steady), Some(40));
        assert_eq!(p50(Mark::Readable(1), Pace::Load), None, "sent before it joined");
    }
}
