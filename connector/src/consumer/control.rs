//! The control topic, read to its end and tailed: the pin that readers obey, and what other readers refuse.
//!
//! ```text
//!  describe -> from the beginning to the end -> Told { known } -> one long fetch after another -> Told, at each record
//!      ^                                                                        |
//!      +---------------------- backoff <------------- error, lost, made anew ---+
//! ```
//!
//! By a client of its own: what it may not read (a right is missing) must not keep announcements from being read. Nothing
//! is expected of the topic, so the broker may hold a fetch for half a minute; a record that arrives ends it at once.
//!
//! A pin ends by a record that says so, never by the topic's absence: a topic that is deleted, or was made anew and says nothing of the
//! pin, leaves it standing, and that is an error until somebody pins or unpins.
//!
//! Owns: what stands in the topic, as of now. Does not own: what records mean (`format/control`), obeying them (`pin`).

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Options;
use super::history::Topics;
use super::tail::Look;
use crate::clock::Clock;
use crate::error::chain;
use crate::format::control::{Control, Pin, Standing, pin_key};
use crate::kafka::{self, Admin, Message, Polled, Poller, Tuning};
use crate::record::TopicId;
use crate::repeat;
use crate::retry::Backoff;
use crate::threads;

/// How long reading it to its end may take before it counts as an error.
const READ_TO_END: Duration = Duration::from_secs(30);
/// Longest that a poll blocks without looking whether it should stop.
const SLICE: Duration = Duration::from_millis(200);
/// The fetch by which the end is found: it is told only by a fetch that comes back empty, which a start waits for.
const SHORT_FETCH: Duration = Duration::from_millis(1);
/// How long the broker may hold a fetch back while nothing arrives, or as long as one for announcements where that is longer.
const LONG_FETCH: Duration = Duration::from_secs(30);
/// How soon it is looked again for a topic that there has never been: what is pinned as soon as there is one is obeyed within
/// a second too.
const ABSENT: Duration = Duration::from_millis(500);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// What the control topic says.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// It was read to its end since the start, or there is no such topic, or it cannot be read for good. Before that,
    /// `standing` has the pin that the cache remembers.
    pub known: bool,
    /// What stands in it.
    pub standing: Standing,
    /// Why it is not read at the moment.
    pub error: Option<String>,
    /// The topic by which the pin stands, or none does; `None`: not known.
    pub topic: Option<TopicId>,
}

impl Told {
    /// Before anything was read: the pin that was obeyed last, and the topic that it stood in.
    pub fn remembered(pin: Option<Pin>, topic: Option<TopicId>) -> Told {
        let topic = topic.filter(|_| pin.is_some());
        Told { known: false, standing: Standing { pin, ..Standing::default() }, error: None, topic }
    }

    /// Where the topic `now` is another one than this was told by, and has no record about a pin: the pin that stood is
    /// kept. Gives what to say of it.
    fn kept(&self, now: TopicId, read: &mut Read) -> Option<Kept> {
        let topic = self.topic.filter(|was| *was != now)?;
        let pin = self.standing.pin.clone().filter(|_| !read.about_pin)?;
        let versions = pin.shard_versions();
        let error = format!(
            "it was made anew as {now} (its id was {topic}) and says nothing of the pin to {versions}, which stays: pin a \
             version that is kept, or unpin"
        );
        read.standing.pin = Some(pin);
        Some(Kept { topic, error })
    }
}

/// A pin that outlives its topic.
struct Kept {
    topic: TopicId,
    error: String,
}

/// The control topic, as it was read to its end.
#[derive(Default)]
struct Read {
    standing: Standing,
    /// Where it goes on.
    next: i64,
    /// There is a record about the pin, if only that there is none.
    about_pin: bool,
}

/// The stage; runs on a thread of its own.
pub struct ControlTail {
    options: Options,
    out: watch::Sender<Told>,
    clock: Clock,
}

/// Told to stop.
struct Stopped;

impl ControlTail {
    /// Tells what the control topic says through `out`.
    pub fn new(options: Options, out: watch::Sender<Told>) -> ControlTail {
        let clock = options.clock.clone();
        ControlTail { options, out, clock }
    }

    /// Tails until `stop`. Blocks: for a thread of its own, within a runtime.
    pub fn run(self, stop: &CancellationToken) {
        if self.options.kafka.embedded {
            // That broker ends with this process, which pins nothing; and would be asked a hundred times a second.
            self.say(Told { known: true, ..Told::default() });
            return;
        }
        let mut backoff = Backoff::new(FIRST_BACKOFF, self.options.max_backoff);
        while !stop.is_cancelled() {
            match self.follow(stop, &mut backoff) {
                Ok(Stopped) => return,
                Err(_) if stop.is_cancelled() => return,
                Err(error) => self.failed(&error, &backoff),
            }
            let wait = backoff.next(&self.options.entropy);
            // A timer is made within the runtime that has it.
            Handle::current().block_on(async { threads::until(stop, tokio::time::sleep(wait)).await });
        }
    }

    fn failed(&self, error: &kafka::Error, backoff: &Backoff) {
        let text = chain(error);
        if repeat::is_said(u64::from(backoff.failures()) + 1) {
            tracing::warn!(
                dataset = self.options.dataset,
                topic = self.options.control,
                error = text,
                "the control topic cannot be read: what is pinned is not known; trying again"
            );
        }
        self.out.send_modify(|told| {
            // What trying again does not mend must not keep versions from those who may read announcements only.
            told.known |= !error.is_transient();
            told.error = Some(text);
        });
    }

    fn follow(&self, stop: &CancellationToken, backoff: &mut Backoff) -> Result<Stopped, kafka::Error> {
        let topic = &self.options.control;
        let admin = Admin::new(&self.options.kafka)?;
        let asked = Handle::current().block_on(threads::until(stop, self.find(&admin)));
        let Some(asked) = asked else { return Ok(Stopped) };
        let (id, ends) = asked?;
        let topics = self.options.topics();
        let mut read = read(&topics, ends, stop)?;
        backoff.reset();
        let mut kept = self.out.borrow().kept(id, &mut read);
        self.say_read(&read, kept.as_ref(), id);
        let longest = LONG_FETCH.max(self.options.max_backoff);
        let mut poller = Poller::new(&self.options.kafka, &tuning(&topics, longest))?;
        poller.assign(&[(topic, 0, read.next)])?;
        let mut look = Look::new(admin, topic, self.options.look_every, &self.clock);
        while !stop.is_cancelled() {
            match look.answer(&self.clock) {
                Some(Some(info)) if info.id == id => {}
                Some(now) => return Err(made_anew(topic, id, now.map(|info| info.id))),
                None => {}
            }
            match poller.poll(SLICE) {
                Some(Polled::Record { message, .. }) => {
                    if take(&topics, &mut read.standing, &message) {
                        kept = None;
                    }
                    self.say_read(&read, kept.as_ref(), id);
                }
                Some(Polled::Lost { detail, .. }) => {
                    return Err(kafka::Error::Unavailable { doing: format!("reading {topic}"), detail });
                }
                // Nothing tells that Kafka is back but an answer: describing the topic anew asks for one.
                Some(Polled::Error(error)) => return Err(error),
                Some(Polled::End { .. }) | None => {}
            }
        }
        Ok(Stopped)
    }

    fn say_read(&self, read: &Read, kept: Option<&Kept>, id: TopicId) {
        let topic = Some(kept.map_or(id, |kept| kept.topic));
        let error = kept.map(|kept| kept.error.clone());
        self.say(Told { known: true, standing: read.standing.clone(), error, topic });
    }

    /// The topic's id and ends, once it is there. There being none is no mistake, where there never was: a producer has not
    /// started yet.
    async fn find(&self, admin: &Admin) -> Result<(TopicId, (i64, i64)), kafka::Error> {
        let topic = &self.options.control;
        loop {
            if let Some(info) = admin.describe(topic).await? {
                return Ok((info.id, admin.watermarks(topic, 0).await?));
            }
            {
                let was = self.out.borrow();
                if was.topic.is_some() || was.standing.pin.is_some() {
                    return Err(deleted(topic, was.topic));
                }
            }
            self.say(Told { known: true, ..Told::default() });
            tokio::time::sleep(ABSENT.min(self.options.max_backoff)).await;
        }
    }

    fn say(&self, told: Told) {
        self.out.send_if_modified(|was| {
            let changed = !was.known
                || (&was.standing, &was.error, was.topic) != (&told.standing, &told.error, told.topic);
            *was = told;
            changed
        });
    }
}

fn made_anew(topic: &str, was: TopicId, now: Option<TopicId>) -> kafka::Error {
    let now = now.map(|now| format!(" and created again as {now}")).unwrap_or_default();
    let detail = format!("it was deleted{now} (its id was {was})");
    kafka::Error::Unavailable { doing: format!("reading {topic}"), detail }
}

fn deleted(topic: &str, was: Option<TopicId>) -> kafka::Error {
    let was = was.map(|was| format!(" (its id was {was})")).unwrap_or_default();
    let detail = format!("it was deleted{was}; what readers are pinned to stays");
    kafka::Error::Missing { doing: format!("reading {topic}"), detail }
}

fn tuning(options: &Topics, fetch_wait: Duration) -> Tuning {
    let group = format!("stillwell.{}", options.dataset);
    Tuning { role: "control", ..Tuning::tail(&group, fetch_wait) }
}

/// Reads the control topic once, to its end. Blocks.
fn read(options: &Topics, (low, end): (i64, i64), stop: &CancellationToken) -> Result<Read, kafka::Error> {
    let mut read = Read { next: end, ..Read::default() };
    if low >= end {
        return Ok(read);
    }
    let mut poller = Poller::new(&options.kafka, &tuning(options, SHORT_FETCH))?;
    let deadline = options.clock.now() + READ_TO_END;
    let at = (options.control.as_str(), 0, low);
    read.next = kafka::read_on(&mut poller, at, &options.clock, deadline, stop, |message| {
        read.about_pin |= take(options, &mut read.standing, message);
    })?;
    Ok(read)
}

/// What stands in the control topic now, for who asks once; nothing where there is no such topic.
///
/// # Errors
/// Kafka's.
pub async fn standing(options: &Topics, admin: &Admin) -> Result<Standing, kafka::Error> {
    let ends = match admin.watermarks(&options.control, 0).await {
        Err(kafka::Error::Missing { .. }) => return Ok(Standing::default()),
        ends => ends?,
    };
    let stop = CancellationToken::new();
    let _stopped_on_drop = stop.clone().drop_guard();
    let options = options.clone();
    let read = tokio::task::spawn_blocking(move || read(&options, ends, &stop));
    let read =
        read.await.map_err(|_| kafka::Error::Closed { doing: "reading the control topic".to_owned() })?;
    Ok(read?.standing)
}

/// Whether the record was about the pin.
fn take(options: &Topics, standing: &mut Standing, message: &Message<'_>) -> bool {
    let (key, value) = (message.key().unwrap_or_default(), message.value());
    if let Err(error) = standing.take(&options.dataset, key, value) {
        let (topic, offset) = (&options.control, message.offset());
        // A newer release's record is nothing to worry about, unless it should have been a pin.
        tracing::error!(topic, offset, %error, "this record is not one that is understood here; it is passed over");
    }
    key == pin_key(&options.dataset).as_bytes()
}

/// The record of a pin, for the cache.
pub(super) fn encoded(pin: &Pin) -> Vec<u8> {
    Control::Pin(pin.clone()).encode()
}

/// The pin that the cache remembers.
pub(super) fn decoded(bytes: &[u8]) -> Option<Pin> {
    match Control::decode(bytes) {
        Ok(Control::Pin(pin)) => Some(pin),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_topic_made_anew_ends_no_pin_unless_it_says_so() {
        let (old, new) = (TopicId([1; 16]), TopicId([2; 16]));
        let pin = |id| Pin {
            dataset: "products".into(),
            history: TopicId([7; 16]),
            id: Uuid::from_u128(id),
            versions: Vec::new(),
            by: String::new(),
            reason: String::new(),
            at: 0,
        };
        let standing = |pin| Standing { pin, ..Standing::default() };
        let told = |pin, topic| Told { known: true, standing: standing(pin), error: None, topic };
        for (was, now, read, about_pin, stands, is_kept) in [
            (told(Some(pin(1)), Some(old)), new, None, false, Some(1), true),
            (told(Some(pin(1)), Some(old)), new, None, true, None, false), // unpinned there
            (told(Some(pin(1)), Some(old)), new, Some(pin(2)), true, Some(2), false),
            (told(Some(pin(1)), Some(old)), old, None, false, None, false), // compacted away, long after an unpin
            (told(Some(pin(1)), None), new, None, false, None, false), // by a release that did not note the topic
            (told(None, Some(old)), new, None, false, None, false),
        ] {
            let mut read = Read { standing: standing(read), next: 0, about_pin };
            let kept = was.kept(now, &mut read);
            assert_eq!(read.standing.pin, stands.map(pin));
            assert_eq!(kept.map(|kept| kept.topic), is_kept.then_some(old));
        }
    }
}
