//! Following the announcements for those who wait for a version: where this process makes the versions it is told by
//! its own announcer; where another does, or none at present, it reads the announcement topic.
//!
//! ```text
//!  nobody waits --a ticket--> is the shard written here? --no, or not heard of for a while--> tail the topic
//!       ^                            | yes: the announcer tells                                   |
//!       +----------------------------+<-------- nobody waits for a while, or it is ours ----------+
//! ```
//!
//! Owns: a client on the announcement topic, while it is needed. Does not own: the tickets (`watch`).

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::watch::Watchers;
use crate::kafka::{self, Admin, Poller, Tuning};
use crate::producer::own::State;
use crate::producer::read_back::{self, ReadBack};
use crate::producer::{Options, Status};
use crate::retry::Backoff;

/// How long a client stays that nobody waits for: the next write most often comes soon.
const LINGER: Duration = Duration::from_secs(30);
/// How long a write waits for the announcer of its own process before the topic is looked at too: a life that was
/// fenced while it slept announces nothing and may not know it.
const OWN_PATIENCE: Duration = Duration::from_secs(5);
/// How long the broker may hold a fetch back. The end of the topic is told by one that comes back empty.
const FETCH_WAIT: Duration = Duration::from_millis(100);
/// Longest that a poll blocks without looking whether it should stop.
const SLICE: Duration = Duration::from_millis(200);
/// How long reading back may take.
const READ_BACK: Duration = Duration::from_secs(30);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// Why following broke off.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("reaching the announcement topic {topic}")]
    Kafka {
        topic: String,
        #[source]
        source: kafka::Error,
    },
    #[error("reading the announcement topic {topic}")]
    Read {
        topic: String,
        #[source]
        source: read_back::Error,
    },
}

/// The task.
pub struct Follower {
    options: Options,
    watchers: Watchers,
    /// Whether this process writes the shard; `None`: it never does.
    status: Option<watch::Receiver<Status>>,
}

impl Follower {
    /// A follower for the dataset of `options`.
    pub fn new(options: Options, watchers: Watchers, status: Option<watch::Receiver<Status>>) -> Follower {
        Follower { options, watchers, status }
    }

    /// Follows while somebody waits, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let ended = stop.run_until_cancelled(self.follow(&stop)).await;
        debug_assert!(ended.is_none(), "it follows until it is told to stop");
    }

    async fn follow(&self, stop: &CancellationToken) {
        let mut waiting = self.watchers.waiting();
        let mut status = self.status.clone();
        let mut backoff = Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF);
        // The watchers, which this holds, keep the channel open: its errors cannot be.
        loop {
            let _ = waiting.wait_for(|waiting| *waiting > 0).await;
            let idle = async {
                let mut waiting = waiting.clone();
                let _ = waiting.wait_for(|waiting| *waiting == 0).await;
            };
            tokio::select! {
                () = idle => continue,
                // Whoever waits is told by the announcer meanwhile.
                () = written_elsewhere(&mut status) => {}
                () = tokio::time::sleep(OWN_PATIENCE), if status.is_some() => {}
            }
            let quit = stop.child_token();
            // However this ends, the thread below is told.
            let _told = quit.clone().drop_guard();
            let (options, watchers, token) = (self.options.clone(), self.watchers.clone(), quit.clone());
            let mut tail = JoinSet::new();
            tail.spawn_blocking(move || tail_on(&options, &watchers, &token));
            tokio::select! {
                ended = tail.join_next() => {
                    let wait = backoff.next(&self.options.entropy);
                    if let Some(Ok(Err(error))) = ended {
                        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                        tracing::warn!(
                            dataset = self.options.dataset, %error, source, ?wait,
                            "a write waits for its version, and announcements cannot be read; trying again"
                        );
                    }
                    tokio::time::sleep(wait).await;
                }
                () = long_idle(&mut waiting) => {
                    backoff.reset();
                    quit.cancel();
                    while tail.join_next().await.is_some() {}
                }
            }
        }
    }
}

/// Resolves when this process does not write the shard, or writes it no more.
async fn written_elsewhere(status: &mut Option<watch::Receiver<Status>>) {
    if let Some(status) = status {
        // An error means that its producer has ended.
        let _ = status.wait_for(|status| status.state != Some(State::Running)).await;
    }
}

/// Resolves when nobody has waited for a while.
async fn long_idle(waiting: &mut watch::Receiver<usize>) {
    loop {
        let _ = waiting.wait_for(|waiting| *waiting == 0).await;
        let again = waiting.wait_for(|waiting| *waiting > 0);
        if tokio::time::timeout(LINGER, again).await.is_err() {
            return;
        }
    }
}

/// Tells the watchers of the last valid announcement, and of each that follows, until `quit`. Blocks.
fn tail_on(options: &Options, watchers: &Watchers, quit: &CancellationToken) -> Result<(), Error> {
    let topic = &options.announcements;
    let failed = |source| Error::Kafka { topic: topic.clone(), source };
    let unread = |source| Error::Read { topic: topic.clone(), source };
    let partition = 0;
    let admin = Admin::new(&options.kafka).map_err(failed)?;
    let asked = Handle::current().block_on(quit.run_until_cancelled(admin.watermarks(topic, partition)));
    let Some(ends) = asked else { return Ok(()) };
    let ends = ends.map_err(failed)?;
    drop(admin);
    let tuning = Tuning::tail(&format!("stillwell.{}", options.dataset), FETCH_WAIT);
    let poller = Poller::new(&options.kafka, &tuning).map_err(failed)?;
    let deadline = options.clock.now() + READ_BACK;
    let clock = options.clock.clone();
    let mut read_back = match ReadBack::open(poller, topic, partition, ends, clock, deadline, quit.clone()) {
        Err(read_back::Error::Stopped) => return Ok(()),
        opened => opened.map_err(unread)?,
    };
    tracing::debug!(
        dataset = options.dataset,
        "following the announcements of another instance for who writes here"
    );
    if let Some(last) = &read_back.truth().last {
        watchers.announced(last.version, &last.positions);
    }
    while !quit.is_cancelled() {
        if let Some(announcement) = read_back.next_valid(SLICE).map_err(unread)? {
            watchers.announced(announcement.version, &announcement.positions);
        }
    }
    Ok(())
}
