//! Reading back from the end of a partition: the last records that count may lie behind commit markers and aborted
//! transactions, so "end - 1" is rarely a record.
//!
//! Owns: stepping back. Does not own: what the records mean.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{Error, Message, Polled, Poller};
use crate::clock::Clock;

/// First step back, in offsets; doubled until the caller has seen enough.
const FIRST_STEP: i64 = 16;

/// How often a partition may be trimmed beyond where reading begins before that is an error: whoever trims leaves what is
/// needed, so that each time less is left to be trimmed.
const MOST_TRIMS: u32 = 10;

/// A record kept beyond the poll that brought it.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its offset.
    pub offset: i64,
    /// Its timestamp, milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
    /// Its value.
    pub value: Option<Vec<u8>>,
}

/// What was read.
#[derive(Debug)]
pub struct Window {
    /// The committed records, in offset order.
    pub records: Vec<Kept>,
    /// The next offset to read; the poller stands there.
    pub next: i64,
    /// Whether it begins where the partition begins, and nothing was trimmed before it could be read.
    pub whole: bool,
}

/// Reads the last committed records of a partition, stepping back until `enough` says so, or to `low`, the
/// partition's beginning. `end` is the last stable offset; what is committed meanwhile is read too. Where the partition is
/// trimmed meanwhile, it begins again with what is left. Blocks.
///
/// # Errors
/// Kafka's; [`Error::Unavailable`] when the end is not reached by `deadline` (a transaction that hangs, a broker away);
/// [`Error::Closed`] soon after `stop` is cancelled.
#[expect(clippy::too_many_arguments, reason = "what to read, and the two ways in which it ends early")]
pub fn read_back(
    poller: &mut Poller,
    topic: &str,
    partition: i32,
    (low, end): (i64, i64),
    clock: &Clock,
    deadline: Instant,
    stop: &CancellationToken,
    mut enough: impl FnMut(&[Kept]) -> bool,
) -> Result<Window, Error> {
    let (mut step, mut low, mut end, mut trims) = (FIRST_STEP, low, end, 0);
    loop {
        let start = end.saturating_sub(step).max(low);
        let (records, next) = match read_to_end(poller, topic, partition, start, clock, deadline, stop)? {
            Ok(read) => read,
            Err(_) if trims < MOST_TRIMS => {
                (low, end) = poller.reach(topic, partition)?;
                trims += 1;
                tracing::debug!(topic, partition, start, low, "trimmed meanwhile; reading back again");
                continue;
            }
            Err(detail) => return Err(lost(topic, partition, start, detail)),
        };
        let all = start == low;
        if all || enough(&records) {
            // Who takes nothing for a first start has to know that there may have been something.
            return Ok(Window { records, next, whole: all && trims == 0 });
        }
        step = step.saturating_mul(2);
    }
}

fn read_to_end(
    poller: &mut Poller,
    topic: &str,
    partition: i32,
    start: i64,
    clock: &Clock,
    deadline: Instant,
    stop: &CancellationToken,
) -> Result<Result<(Vec<Kept>, i64), String>, Error> {
    let mut records = Vec::new();
    let next = read_from(poller, (topic, partition, start), clock, deadline, stop, |message| {
        records.push(Kept {
            offset: message.offset(),
            timestamp_ms: message.timestamp_ms(),
            value: message.value().map(<[u8]>::to_vec),
        });
    })?;
    Ok(next.map(|next| (records, next)))
}

fn lost(topic: &str, partition: i32, start: i64, detail: String) -> Error {
    Error::Unavailable { doing: format!("reading {topic}[{partition}] at offset {start}"), detail }
}

/// Reads a partition from an offset on to its end, showing each committed record to `each`; gives the next offset to
/// read, where the poller stands. Blocks.
///
/// # Errors
/// As [`read_back`]; [`Error::Unavailable`] where the partition does not reach back so far any more.
pub fn read_on(
    poller: &mut Poller,
    (topic, partition, start): (&str, i32, i64),
    clock: &Clock,
    deadline: Instant,
    stop: &CancellationToken,
    each: impl FnMut(&Message<'_>),
) -> Result<i64, Error> {
    let read = read_from(poller, (topic, partition, start), clock, deadline, stop, each)?;
    read.map_err(|detail| lost(topic, partition, start, detail))
}

/// As [`read_on`]; within, librdkafka's words where the partition does not reach back so far any more.
fn read_from(
    poller: &mut Poller,
    (topic, partition, start): (&str, i32, i64),
    clock: &Clock,
    deadline: Instant,
    stop: &CancellationToken,
    mut each: impl FnMut(&Message<'_>),
) -> Result<Result<i64, String>, Error> {
    poller.assign(&[(topic, partition, start)])?;
    loop {
        match poller.poll(Duration::from_millis(100)) {
            Some(Polled::Record { message, .. }) => each(&message),
            Some(Polled::End { offset, .. }) => return Ok(Ok(offset.max(start))),
            Some(Polled::Lost { detail, .. }) => return Ok(Err(detail)),
            Some(Polled::Error(error)) if !error.is_transient() => return Err(error),
            Some(Polled::Error(error)) => {
                tracing::debug!(%error, topic, partition, "reading back; trying again")
            }
            None => {}
        }
        if stop.is_cancelled() {
            return Err(Error::Closed { doing: format!("reading {topic}[{partition}] to its end") });
        }
        if clock.now() >= deadline {
            return Err(Error::Unavailable {
                doing: format!("reading {topic}[{partition}] to its end from offset {start}"),
                detail: "the end was not reached in time: the broker is slow, or a transaction hangs"
                    .to_owned(),
            });
        }
    }
}
