//! The control topic, as the writer and who asks it something use it.
//!
//! ```text
//!  stillwell rebuild --Rebuild--> NAME.control --newest--> recover  (before it may refuse)
//!                                      |--------wait_for--> a life under way ends, and the next one finds it
//!                                      <--Rebuilt-- announce, in the transaction of its version
//! ```
//!
//! Requests for a snapshot end no life: they are handed to `snapshot`. Pins are the cleaner's to spare ([`pinned`]). Nor does
//! it end one that the topic is deleted: nothing is asked until it is made anew, and then what stands there.
//!
//! Owns: reading the topic to its end, and waiting behind it. Does not own: what a record means (`format/control`), the
//! rebuild (`rebuild`).

use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::Options;
use crate::format::announcement::Error;
use crate::format::control::{Control, Pin, Snapshot, Standing, pin_key, rebuild_key, snapshot_key};
use crate::kafka::{self, Admin, Polled, Poller, Tuning};
use crate::version::Shard;

/// Longest time without any progress on the way to the end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the broker may hold back a fetch while the end is looked for.
const FETCH_WAIT: Duration = Duration::from_millis(50);
/// How long it may while nothing is expected: what arrives ends it at once.
const IDLE_WAIT: Duration = Duration::from_secs(5);
/// Longest that a poll blocks without looking whether it should stop.
const SLICE: Duration = Duration::from_millis(200);
/// How soon a topic that is gone is looked for again.
const ABSENT: Duration = Duration::from_secs(1);

/// What the control topic says, as of its end.
#[derive(Clone, Debug)]
pub struct Newest {
    /// Of a shard's rebuild the newest record; `None` where there is none, or it was withdrawn.
    pub control: Option<Control>,
    /// What stands beside it: a pin, requests for snapshots.
    pub standing: Standing,
    /// There is a record about the pin, if only that there is none.
    pub about_pin: bool,
    /// Why the newest record of the pin cannot be read, where that is so: then nothing stands, and something may be pinned.
    pub unread_pin: Option<String>,
    /// The next offset to read.
    pub next: i64,
}

/// Reads the control topic to its end. One that was deleted since the start asks for nothing.
///
/// # Errors
/// Kafka's.
pub async fn newest(admin: &Admin, options: &Options, shard: Shard) -> Result<Newest, kafka::Error> {
    let ends = match admin.watermarks(&options.control, 0).await {
        Err(kafka::Error::Missing { .. }) => (0, 0),
        ends => ends?,
    };
    newest_within(ends, options, shard).await
}

async fn newest_within(
    (low, end): (i64, i64),
    options: &Options,
    shard: Shard,
) -> Result<Newest, kafka::Error> {
    let options = options.clone();
    let read = tokio::task::spawn_blocking(move || {
        let key = rebuild_key(&options.dataset, shard);
        let pins = pin_key(&options.dataset);
        let standing = Standing::default();
        let mut newest = Newest { control: None, standing, about_pin: false, unread_pin: None, next: low };
        if low >= end {
            return Ok(newest);
        }
        let mut poller = poller(&options, FETCH_WAIT, low)?;
        let mut progress: Instant = options.clock.now();
        while newest.next < end {
            match step(&mut poller, &options.control)? {
                Some(Step::Record { offset, key: found, value }) => {
                    progress = options.clock.now();
                    newest.next = offset + 1;
                    if found.as_deref() == Some(key.as_bytes()) {
                        newest.control = read(&options.control, offset, value);
                    } else {
                        let found = found.unwrap_or_default();
                        let taken = newest.standing.take(&options.dataset, &found, value.as_deref());
                        if found == pins.as_bytes() {
                            newest.about_pin = true;
                            newest.unread_pin = taken.as_ref().err().map(ToString::to_string);
                        }
                        if let Err(error) = taken {
                            foreign(&options.control, offset, &error);
                        }
                    }
                }
                Some(Step::End(offset)) => newest.next = newest.next.max(offset).max(end),
                Some(Step::Lost(detail)) => return Err(lost(&options.control, detail)),
                None if options.clock.now().saturating_duration_since(progress) > PATIENCE => {
                    return Err(kafka::Error::Unavailable {
                        doing: format!("reading {} to its end", options.control),
                        detail: format!("nothing came for {PATIENCE:?}"),
                    });
                }
                None => {}
            }
        }
        Ok(newest)
    });
    read.await.map_err(|_| kafka::Error::Closed { doing: "reading the control topic".to_owned() })?
}

/// What the control topic says of a pin.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// What readers are pinned to.
    pub pin: Option<Pin>,
    /// There is a record about it, if only that there is none.
    pub is_said: bool,
}

/// The versions that readers are pinned to, whose blobs and announcements are to be spared however old they are. Asked
/// by the cleaner, after it has announced what it keeps and before it deletes: see `consumer/steer`.
///
/// # Errors
/// Kafka's: without an answer nothing may be deleted. So it is where the pin's record cannot be read, which a newer release
/// wrote; and where the topic is missing, other than for [`newest`]: one broker may not show it for a moment, and what was
/// pinned would be deleted.
pub async fn pinned(admin: &Admin, options: &Options, shard: Shard) -> Result<Pinned, kafka::Error> {
    let ends = admin.watermarks(&options.control, 0).await?;
    let newest = newest_within(ends, options, shard).await?;
    match newest.unread_pin {
        None => Ok(Pinned { pin: newest.standing.pin, is_said: newest.about_pin }),
        Some(detail) => Err(kafka::Error::Unavailable {
            doing: format!("reading what is pinned in {}", options.control),
            detail,
        }),
    }
}

/// Reads on from `next` until `found` makes something of a record of the shard's rebuild and its offset, or until `stop`
/// (`None`).
/// Blocks: for a thread of its own. What the broker does not answer is asked again by the client.
///
/// # Errors
/// Kafka's, where asking again is in vain.
pub fn wait_for<T>(
    options: &Options,
    shard: Shard,
    next: i64,
    stop: &CancellationToken,
    mut found: impl FnMut(i64, Option<Control>) -> Option<T>,
) -> Result<Option<T>, kafka::Error> {
    let key = rebuild_key(&options.dataset, shard);
    read_on(options, next, stop, false, |offset, of, value| match of == key.as_bytes() {
        true => found(offset, read(&options.control, offset, value)),
        false => None,
    })
}

/// As [`wait_for`]; requests for snapshots of the shard are handed to `snapshot` meanwhile. A topic that is gone is waited
/// for, and one made anew is read from its beginning: of a topic that exists no longer librdkafka says so only once it has
/// known it for `topic.metadata.propagation.max.ms`, and an owner that has nothing to do with it is not to end by that.
///
/// # Errors
/// As [`wait_for`]. Called on a thread of a runtime.
pub fn wait_beside<T>(
    options: &Options,
    shard: Shard,
    next: i64,
    stop: &CancellationToken,
    mut snapshot: impl FnMut(Snapshot),
    mut found: impl FnMut(Option<Control>) -> Option<T>,
) -> Result<Option<T>, kafka::Error> {
    let rebuilds = rebuild_key(&options.dataset, shard);
    let snapshots = snapshot_key(&options.dataset, shard);
    read_on(options, next, stop, true, |offset, of, value| {
        if of == rebuilds.as_bytes() {
            return found(read(&options.control, offset, value));
        }
        if of == snapshots.as_bytes()
            && let Some(Control::Snapshot(request)) = read(&options.control, offset, value)
        {
            snapshot(request);
        }
        None
    })
}

/// `stays`: also while the topic is gone.
fn read_on<T>(
    options: &Options,
    mut next: i64,
    stop: &CancellationToken,
    stays: bool,
    mut each: impl FnMut(i64, &[u8], Option<Vec<u8>>) -> Option<T>,
) -> Result<Option<T>, kafka::Error> {
    let topic = &options.control;
    let mut poller = poller(options, IDLE_WAIT, next)?;
    while !stop.is_cancelled() {
        match step(&mut poller, topic) {
            Ok(Some(Step::Record { offset, key: of, value })) => {
                next = offset + 1;
                if let Some(found) = each(offset, &of.unwrap_or_default(), value) {
                    return Ok(Some(found));
                }
                continue;
            }
            Ok(Some(Step::End(_)) | None) => continue,
            Ok(Some(Step::Lost(detail))) if !stays => return Err(lost(topic, detail)),
            Ok(Some(Step::Lost(detail))) => {
                tracing::warn!(topic, next, detail, "the topic was made anew; it is read from its beginning");
                // Where that is not answered it is lost, and asked, again.
                next = poller.reach(topic, 0).map_or(next, |(low, _)| low);
            }
            Err(error @ kafka::Error::Missing { .. }) if stays => {
                tracing::debug!(%error, topic, "nothing is asked before the topic is there again");
                // What is there then is another topic's: the position means nothing in it.
                next = 0;
            }
            Err(error) => return Err(error),
        }
        Handle::current().block_on(stop.run_until_cancelled(tokio::time::sleep(ABSENT)));
        poller = self::poller(options, IDLE_WAIT, next)?;
    }
    Ok(None)
}

fn read(topic: &str, offset: i64, value: Option<Vec<u8>>) -> Option<Control> {
    match Control::decode(&value?) {
        Ok(control) => Some(control),
        Err(error) => {
            foreign(topic, offset, &error);
            None
        }
    }
}

fn foreign(topic: &str, offset: i64, error: &Error) {
    tracing::error!(topic, offset, %error, "this record is not one of ours; it is passed over");
}

fn poller(options: &Options, fetch_wait: Duration, from: i64) -> Result<Poller, kafka::Error> {
    let group = format!("stillwell.{}", options.dataset);
    let mut poller =
        Poller::new(&options.kafka, &Tuning { role: "control", ..Tuning::tail(&group, fetch_wait) })?;
    poller.assign(&[(&options.control, 0, from)])?;
    Ok(poller)
}

enum Step {
    Record {
        offset: i64,
        key: Option<Vec<u8>>,
        value: Option<Vec<u8>>,
    },
    End(i64),
    /// The topic holds no such position any more; librdkafka's words.
    Lost(String),
}

fn lost(topic: &str, detail: String) -> kafka::Error {
    kafka::Error::Unavailable { doing: format!("reading {topic}"), detail }
}

fn step(poller: &mut Poller, topic: &str) -> Result<Option<Step>, kafka::Error> {
    match poller.poll(SLICE) {
        Some(Polled::Record { message, .. }) => Ok(Some(Step::Record {
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.value().map(<[u8]>::to_vec),
        })),
        Some(Polled::End { offset, .. }) => Ok(Some(Step::End(offset))),
        Some(Polled::Lost { detail, .. }) => Ok(Some(Step::Lost(detail))),
        Some(Polled::Error(error)) if !error.is_transient() => Err(error),
        Some(Polled::Error(error)) => {
            tracing::debug!(%error, topic, "reading; trying again");
            Ok(None)
        }
        None => Ok(None),
    }
}
