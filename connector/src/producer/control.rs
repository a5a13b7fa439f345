//! The control topic, as the writer and who asks it something use it.
//!
//! ```text
//!  stillwell rebuild --Rebuild--> NAME.control --newest--> recover  (before it may refuse)
//!                                      |--------wait_for--> a life under way ends, and the next one finds it
//!                                      <--Rebuilt-- announce, in the transaction of its version
//! ```
//!
//! Requests for a snapshot end no life: they are handed to `snapshot`. Pins are the cleaner's to spare ([`pinned`]), and noted
//! when they are heard (`clean/spared`). Nor does it end one that the topic is deleted: nothing is asked until it is made anew,
//! and then what stands there.
//!
//! Owns: reading the topic to its end, and waiting behind it. Does not own: what a record means (`format/control`), the
//! rebuild (`rebuild`).

use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::Options;
use crate::format::announcement::Error;
use crate::format::control::{Control, Pin, Rebuild, Snapshot, Standing, pin_key, rebuild_key, snapshot_key};
use crate::kafka::{self, Admin, Polled, Poller, Tuning};
use crate::record::TopicId;
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

/// A place in the control topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The topic that `next` is an offset of; `None`: there was none.
    pub topic: Option<TopicId>,
    /// The next offset to read.
    pub next: i64,
}

/// Reads the control topic to its end, which is where [`wait_beside`] goes on. One that was deleted since the start asks for
/// nothing.
///
/// # Errors
/// Kafka's.
pub async fn newest(admin: &Admin, options: &Options, shard: Shard) -> Result<(Newest, Place), kafka::Error> {
    let (topic, ends) = match find(admin, options).await? {
        Some((topic, ends)) => (Some(topic), ends),
        None => (None, (0, 0)),
    };
    let newest = newest_within(ends, options, shard).await?;
    let next = newest.next;
    Ok((newest, Place { topic, next }))
}

/// The topic's id and ends. That there is none is believed where both say so: a broker whose metadata is old does not know a
/// topic for a moment that is there.
async fn find(admin: &Admin, options: &Options) -> Result<Option<(TopicId, (i64, i64))>, kafka::Error> {
    let until = options.clock.now() + PATIENCE;
    loop {
        let described = admin.describe(&options.control).await?;
        match (described, admin.watermarks(&options.control, 0).await) {
            (Some(info), Ok(ends)) => return Ok(Some((info.id, ends))),
            (None, Err(kafka::Error::Missing { .. })) => return Ok(None),
            (None, Ok(_)) | (Some(_), Err(kafka::Error::Missing { .. })) if options.clock.now() < until => {}
            (None, Ok(_)) => return Ok(None),
            // Nothing is known by that, and it passes.
            (_, Err(kafka::Error::Missing { doing, detail })) => {
                return Err(kafka::Error::Unavailable { doing, detail });
            }
            (_, Err(error)) => return Err(error),
        }
        tokio::time::sleep(ABSENT).await;
    }
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
    let mut topic = Topic { options, admin: None, poller: None };
    read_on(&mut topic, Place { topic: None, next }, stop, |_, offset, of, value| {
        match of == key.as_bytes() {
            true => found(offset, read(&options.control, offset, value)),
            false => None,
        }
    })
}

/// What [`wait_beside`] hears.
#[derive(Clone, Debug)]
pub enum Heard {
    /// A rebuild of the shard is asked for.
    Rebuild(Rebuild),
    /// A snapshot of it.
    Snapshot(Snapshot),
    /// Readers are pinned, or (`None`) not any more.
    Pin {
        /// The control topic that says so.
        topic: TopicId,
        /// To what.
        pin: Option<Pin>,
    },
}

/// As [`wait_for`], of all that an owner is told. A topic that is gone is waited for, and one made anew is read from its
/// beginning: of a topic that exists no longer librdkafka says so only once it has known it for
/// `topic.metadata.propagation.max.ms`, and an owner that has nothing to do with it is not to end by that. One that was only
/// said to be gone is read on: what it asked for before `from` was carried out, or refused.
///
/// # Errors
/// As [`wait_for`]. Called on a thread of a runtime.
pub fn wait_beside<T>(
    admin: &Admin,
    options: &Options,
    shard: Shard,
    from: Place,
    stop: &CancellationToken,
    mut found: impl FnMut(Heard) -> Option<T>,
) -> Result<Option<T>, kafka::Error> {
    let rebuilds = rebuild_key(&options.dataset, shard);
    let snapshots = snapshot_key(&options.dataset, shard);
    let pins = pin_key(&options.dataset);
    let mut topic = Topic { options, admin: Some(admin), poller: None };
    read_on(&mut topic, from, stop, |id, offset, of, value| {
        let withdrawn = value.is_none();
        let said = || read(&options.control, offset, value);
        let heard = if of == rebuilds.as_bytes() {
            let Some(Control::Rebuild(request)) = said() else { return None };
            Heard::Rebuild(request)
        } else if of == snapshots.as_bytes() {
            let Some(Control::Snapshot(request)) = said() else { return None };
            Heard::Snapshot(request)
        } else if of == pins.as_bytes() {
            // One that cannot be read may pin anything: what was noted stands, and the cleaner lets nothing go.
            let pin = match said() {
                Some(Control::Pin(pin)) if pin.dataset == options.dataset => Some(pin),
                None if withdrawn => None,
                _ => return None,
            };
            Heard::Pin { topic: id?, pin }
        } else {
            return None;
        };
        found(heard)
    })
}

/// What [`read_on`] reads.
trait Reading {
    /// Whether it is waited for while it is gone.
    fn stays(&self) -> bool;

    /// Its name.
    fn name(&self) -> &str;

    /// Reads from `next` on.
    fn begin(&mut self, next: i64) -> Result<(), kafka::Error>;

    fn step(&mut self) -> Result<Option<Step>, kafka::Error>;

    /// Its first offset, where that is answered.
    fn low(&self) -> Option<i64>;

    /// Which topic there is, asked anew; `None`: there is none, or it was told to `stop`.
    fn topic(&self, stop: &CancellationToken) -> Result<Option<TopicId>, kafka::Error>;

    /// Waits a moment, or until `stop`.
    fn rest(&self, stop: &CancellationToken);
}

/// The control topic itself.
struct Topic<'a> {
    options: &'a Options,
    /// Who tells which topic there is; with it the topic is waited for.
    admin: Option<&'a Admin>,
    poller: Option<Poller>,
}

impl Reading for Topic<'_> {
    fn stays(&self) -> bool {
        self.admin.is_some()
    }

    fn name(&self) -> &str {
        &self.options.control
    }

    fn begin(&mut self, next: i64) -> Result<(), kafka::Error> {
        self.poller = Some(poller(self.options, IDLE_WAIT, next)?);
        Ok(())
    }

    fn step(&mut self) -> Result<Option<Step>, kafka::Error> {
        self.poller.as_mut().map_or(Ok(None), |poller| step(poller, &self.options.control))
    }

    fn low(&self) -> Option<i64> {
        self.poller.as_ref()?.reach(&self.options.control, 0).ok().map(|(low, _)| low)
    }

    fn topic(&self, stop: &CancellationToken) -> Result<Option<TopicId>, kafka::Error> {
        let Some(admin) = self.admin else { return Ok(None) };
        let described = stop.run_until_cancelled(admin.describe(&self.options.control));
        let described = Handle::current().block_on(described).transpose()?;
        Ok(described.flatten().map(|info| info.id))
    }

    fn rest(&self, stop: &CancellationToken) {
        Handle::current().block_on(stop.run_until_cancelled(tokio::time::sleep(ABSENT)));
    }
}

fn read_on<T>(
    reading: &mut impl Reading,
    from: Place,
    stop: &CancellationToken,
    mut each: impl FnMut(Option<TopicId>, i64, &[u8], Option<Vec<u8>>) -> Option<T>,
) -> Result<Option<T>, kafka::Error> {
    let Place { topic: mut id, mut next } = from;
    reading.begin(next)?;
    while !stop.is_cancelled() {
        match reading.step() {
            Ok(Some(Step::Record { offset, key: of, value })) => {
                next = offset + 1;
                if id.is_none() && reading.stays() {
                    // It was made since, and nothing said before that it was missing.
                    id = reading.topic(stop).ok().flatten();
                }
                if let Some(found) = each(id, offset, &of.unwrap_or_default(), value) {
                    return Ok(Some(found));
                }
                continue;
            }
            Ok(Some(Step::End(_)) | None) => continue,
            Ok(Some(Step::Lost(detail))) if !reading.stays() => return Err(lost(reading.name(), detail)),
            Ok(Some(Step::Lost(detail))) => {
                let topic = reading.name();
                tracing::warn!(topic, next, detail, "the topic was made anew; it is read from its beginning");
                // Where that is not answered it is lost, and asked, again.
                next = reading.low().unwrap_or(next);
                id = reading.topic(stop).ok().flatten().or(id);
                reading.rest(stop);
            }
            Err(error @ kafka::Error::Missing { .. }) if reading.stays() => {
                let topic = reading.name();
                tracing::debug!(%error, topic, "nothing is asked before the topic is there again");
                let Some(there) = until_there(reading, stop)? else { return Ok(None) };
                // One made anew holds other records, and the position means nothing in it. The same one was never gone: a
                // broker whose metadata is old said so, and what was read would be read, and obeyed, once more.
                if id != Some(there) {
                    (id, next) = (Some(there), 0);
                }
            }
            Err(error) => return Err(error),
        }
        reading.begin(next)?;
    }
    Ok(None)
}

/// Waits until the topic is there; `None`: until `stop`.
fn until_there(reading: &impl Reading, stop: &CancellationToken) -> Result<Option<TopicId>, kafka::Error> {
    loop {
        reading.rest(stop);
        if stop.is_cancelled() {
            return Ok(None);
        }
        match reading.topic(stop) {
            Ok(None) => {}
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, topic = reading.name(), "asking for the topic; trying again");
            }
            there => return there,
        }
    }
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

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;

    use super::*;

    const OLD: TopicId = TopicId([1; 16]);
    const NEW: TopicId = TopicId([2; 16]);

    /// Plays what Kafka says, and keeps from where it was read.
    struct Played {
        stays: bool,
        steps: VecDeque<Result<Option<Step>, kafka::Error>>,
        topics: RefCell<VecDeque<Result<Option<TopicId>, kafka::Error>>>,
        begun: Vec<i64>,
        rests: Cell<u32>,
        /// Cancelled once nothing is left to play.
        stop: CancellationToken,
    }

    impl Reading for Played {
        fn stays(&self) -> bool {
            self.stays
        }

        fn name(&self) -> &str {
            "products.control"
        }

        fn begin(&mut self, next: i64) -> Result<(), kafka::Error> {
            self.begun.push(next);
            Ok(())
        }

        fn step(&mut self) -> Result<Option<Step>, kafka::Error> {
            self.steps.pop_front().unwrap_or_else(|| {
                self.stop.cancel();
                Ok(None)
            })
        }

        fn low(&self) -> Option<i64> {
            Some(3)
        }

        fn topic(&self, _: &CancellationToken) -> Result<Option<TopicId>, kafka::Error> {
            self.topics.borrow_mut().pop_front().expect("nothing more is asked than was played")
        }

        fn rest(&self, _: &CancellationToken) {
            self.rests.set(self.rests.get() + 1);
        }
    }

    fn record(offset: i64) -> Result<Option<Step>, kafka::Error> {
        Ok(Some(Step::Record { offset, key: Some(b"asked".to_vec()), value: None }))
    }

    fn missing() -> kafka::Error {
        kafka::Error::Missing { doing: "reading products.control".into(), detail: String::new() }
    }

    fn away() -> kafka::Error {
        kafka::Error::Unavailable { doing: "describing".into(), detail: String::new() }
    }

    type Steps = Vec<Result<Option<Step>, kafka::Error>>;
    type Topics = Vec<Result<Option<TopicId>, kafka::Error>>;

    fn play(stays: bool, topic: Option<TopicId>, steps: Steps, topics: Topics) -> (Played, Vec<i64>, bool) {
        let stop = CancellationToken::new();
        let (begun, rests) = (Vec::new(), Cell::new(0));
        let topics = RefCell::new(topics.into());
        let mut played = Played { stays, steps: steps.into(), topics, begun, rests, stop: stop.clone() };
        let mut seen = Vec::new();
        let from = Place { topic, next: 7 };
        let read = read_on(&mut played, from, &stop, |_, offset, _, _| {
            seen.push(offset);
            None::<()>
        });
        assert!(played.topics.borrow().is_empty(), "all that was played is asked");
        (played, seen, read.is_ok())
    }

    #[test]
    fn a_topic_that_was_only_said_to_be_missing_is_read_on_and_one_made_anew_from_its_beginning() {
        let gone = || vec![record(7), Err(missing())];
        for (topic, topics, goes_on) in [
            (Some(OLD), vec![Ok(Some(OLD))], 8),
            // A broker that does not know it either, one that is away: nothing is known by that.
            (Some(OLD), vec![Ok(None), Err(away()), Ok(Some(OLD))], 8),
            (Some(OLD), vec![Ok(None), Ok(Some(NEW))], 0),
            // There was none at first: asked for at its first record, and known from then on.
            (None, vec![Ok(Some(NEW)), Ok(Some(NEW))], 8),
            (None, vec![Ok(None), Ok(Some(NEW))], 0),
        ] {
            let case = format!("{topic:?}, {topics:?}");
            let (played, seen, is_ok) = play(true, topic, gone(), topics);
            assert!(is_ok, "{case}");
            assert_eq!(played.begun, [7, goes_on], "{case}");
            assert_eq!(seen, [7], "{case}");
            assert!(played.rests.get() >= 1, "it is not asked without a pause: {case}");
        }
    }

    #[test]
    fn which_topic_was_read_is_known_again_after_it_was_made_anew() {
        let lost = || Ok(Some(Step::Lost("out of range".into())));
        let (played, ..) = play(
            true,
            Some(OLD),
            vec![lost(), record(3), Err(missing())],
            vec![Ok(Some(NEW)), Ok(Some(NEW))],
        );
        assert_eq!(played.begun, [7, 3, 4]);
    }

    #[test]
    fn who_asked_for_a_rebuild_is_told_that_the_topic_is_gone() {
        let denied = || kafka::Error::Denied { doing: "describing".into(), detail: String::new() };
        assert!(!play(false, None, vec![record(7), Err(missing())], Vec::new()).2);
        assert!(!play(true, Some(OLD), vec![Err(missing())], vec![Err(denied())]).2);
    }
}
