//! What is asked of a dataset by records of its control topic: that readers hold a version, or follow again; that the owner
//! makes a snapshot.
//!
//! ```text
//!  pin V:  announcement of V? at or above oldest_kept? --> Pin --> NAME.control --> newest announcement: passed meanwhile?
//!                                                           ^------------- withdrawn <----------------- yes
//! ```
//!
//! The cleaner says first what it keeps and reads the control topic again before it deletes; so of a pin and a cleaning
//! that cross each other at least one sees the other.
//!
//! Owns: writing these records, from any process. Does not own: obeying them (`pin`, `producer/snapshot`).

use std::time::Duration;

use super::control;
use super::history::{History, Range, Topics};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::format::announcement::Announcement;
use crate::format::control::{Control, Pin, Pinned, Snapshot, pin_key, snapshot_key};
use crate::kafka::{self, Admin, Outgoing, Sender};
use crate::version::{Shard, ShardVersions, Version};

/// How often it is asked whether a snapshot is announced by now.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Steers one dataset. Cheap to clone; connects when it is used.
#[derive(Clone, Debug)]
pub struct Steering {
    topics: Topics,
}

/// What was asked of the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A snapshot of this version or a later one.
    Asked(Version),
    /// Nothing: the announced snapshot holds all that the newest version does.
    There(Version),
}

impl Steering {
    /// Of the dataset whose topics these are.
    pub fn new(topics: Topics) -> Steering {
        Steering { topics }
    }

    /// Pins all readers of the dataset to these versions, one of each shard. They move within a second of it. `by` says
    /// who asks and `reason` why, for whoever wonders later.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] for versions that cannot be pinned, with those that can; [`ErrorKind::Unavailable`] where
    /// Kafka does not answer, or has no control topic.
    pub async fn pin(&self, versions: &ShardVersions, by: &str, reason: &str) -> Result<Pin> {
        let admin = self.admin()?;
        self.has_control(&admin).await?;
        let before = self.standing(&admin).await?;
        let history = History::find(self.topics.clone()).await?;
        if versions.0.len() != history.shards() as usize {
            let (shards, given) = (history.shards(), versions.0.len());
            return Err(self.refused(versions, &format!("it has {shards} shard(s), and {given} are named")));
        }
        let mut pinned = Vec::with_capacity(versions.0.len());
        for (shard, version) in (0..).map(Shard).zip(versions.0.iter().copied()) {
            let (found, range) = history.look_for(shard, version).await?;
            // What is pinned already is kept for that, however old it is.
            let kept = before.as_ref().and_then(|pin| pin.versions.get(shard.0 as usize).copied());
            let kept = kept.filter(|_| before.as_ref().is_some_and(|pin| pin.history == history.topic_id()));
            let found = found.filter(|found| {
                let epoch = found.announcement.life.epoch;
                range.is_some_and(|range| version >= range.oldest())
                    || kept.is_some_and(|kept| (kept.version, kept.epoch) == (version, epoch))
            });
            let place = found.and_then(|found| Some((found.announcement.life.epoch, found.offset?)));
            let (epoch, offset) =
                place.ok_or_else(|| self.refused(versions, &cannot_be_pinned(version, range)))?;
            pinned.push(Pinned { version, epoch, offset });
        }
        if let Some(before) = before.as_ref().filter(|pin| pin.history == history.topic_id())
            && before.versions == pinned
        {
            return Ok(before.clone());
        }
        let pin = Pin {
            dataset: self.topics.dataset.clone(),
            history: history.topic_id(),
            id: self.topics.entropy.uuid(),
            versions: pinned,
            by: by.to_owned(),
            reason: reason.to_owned(),
            at: self.topics.clock.wall_ms(),
        };
        let key = pin_key(&self.topics.dataset);
        self.put(&key, Some(Control::Pin(pin.clone()))).await?;
        failpoint::pass("pin.written");
        for (shard, pinned) in fresh(&pin, before.as_ref()) {
            let newest = history.last(shard).await?.map(|found| found.announcement);
            if let Some(oldest) = passed(pinned.version, newest.as_deref()) {
                // Somebody else's pin since then is theirs.
                let ours = self.standing(&admin).await?.is_some_and(|now| now.id == pin.id);
                if ours {
                    self.put(&key, before.map(Control::Pin)).await?;
                }
                let why = format!("it was cleaned just now: {oldest} is the oldest that is kept");
                return Err(self.refused(versions, &why));
            }
        }
        Ok(pin)
    }

    /// Takes the pin back: readers follow the newest version again. Gives what they were pinned to.
    ///
    /// # Errors
    /// As [`Steering::pin`].
    pub async fn unpin(&self) -> Result<Option<Pin>> {
        let admin = self.admin()?;
        self.has_control(&admin).await?;
        let before = self.standing(&admin).await?;
        // Written all the same where none is seen: it may be one that only a newer release can read.
        self.put(&pin_key(&self.topics.dataset), None).await?;
        Ok(before)
    }

    /// What readers are pinned to.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where Kafka does not answer.
    pub async fn pinned(&self) -> Result<Option<Pin>> {
        self.standing(&self.admin()?).await
    }

    /// Asks the owner of shard 0 for a snapshot of the newest version.
    ///
    /// # Errors
    /// As [`Steering::pin`]; [`ErrorKind::Unavailable`] where nothing is announced yet.
    pub async fn snapshot(&self) -> Result<Wanted> {
        let (admin, shard) = (self.admin()?, Shard(0));
        self.has_control(&admin).await?;
        let history = History::find(self.topics.clone()).await?;
        let Some(newest) = history.last(shard).await? else {
            let dataset = &self.topics.dataset;
            let what =
                format!("no version of dataset {dataset} is announced yet: its producer has just started");
            return Err(Error::new(ErrorKind::Unavailable, what));
        };
        if let Some(there) = holds_all(&newest.announcement) {
            return Ok(Wanted::There(there));
        }
        let request = Snapshot {
            dataset: self.topics.dataset.clone(),
            shard,
            history: newest.topic_id,
            id: self.topics.entropy.uuid(),
            version: newest.announcement.version,
            at: self.topics.clock.wall_ms(),
        };
        let version = request.version;
        self.put(&snapshot_key(&self.topics.dataset, shard), Some(Control::Snapshot(request))).await?;
        Ok(Wanted::Asked(version))
    }

    /// Waits until a snapshot of `version` or a later one is announced, and gives its version.
    ///
    /// # Errors
    /// As [`History::fold`].
    pub async fn snapshot_of(&self, version: Version) -> Result<Version> {
        let history = History::find(self.topics.clone()).await?;
        loop {
            let newest = history.last(Shard(0)).await?;
            let snapshot = newest.and_then(|found| found.announcement.snapshot);
            if let Some(snapshot) = snapshot.filter(|snapshot| snapshot.version >= version) {
                return Ok(snapshot.version);
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    fn admin(&self) -> Result<Admin> {
        Admin::new(&self.topics.kafka).map_err(|error| self.failed(error))
    }

    async fn has_control(&self, admin: &Admin) -> Result<()> {
        let control = &self.topics.control;
        let described = admin.describe(control).await.map_err(|error| self.failed(error))?;
        described.map(|_| ()).ok_or_else(|| {
            let dataset = &self.topics.dataset;
            Error::new(
                ErrorKind::Unavailable,
                format!(
                    "control topic {control} does not exist: a producer of {dataset} creates it when it starts, unless \
                     create_topics is false; then create it with one partition and cleanup.policy=compact"
                ),
            )
        })
    }

    async fn standing(&self, admin: &Admin) -> Result<Option<Pin>> {
        let standing = control::standing(&self.topics, admin).await;
        Ok(standing.map_err(|error| self.failed(error))?.pin)
    }

    async fn put(&self, key: &str, control: Option<Control>) -> Result<()> {
        let sender = Sender::new(&self.topics.kafka).map_err(|error| self.failed(error))?;
        let value = control.map(|control| control.encode());
        let record = Outgoing {
            topic: &self.topics.control,
            partition: Some(0),
            key: Some(key.as_bytes()),
            value: value.as_deref(),
            ..Outgoing::default()
        };
        sender.send(&record).await.map(|_| ()).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: kafka::Error) -> Error {
        Error::because(error.kind(), format!("asking the control topic {}", self.topics.control), error)
    }

    fn refused(&self, versions: &ShardVersions, why: &str) -> Error {
        let dataset = &self.topics.dataset;
        Error::new(ErrorKind::Rejected, format!("{dataset} cannot be pinned to version {versions}: {why}"))
    }
}

/// Why a version cannot be pinned, and which can.
fn cannot_be_pinned(version: Version, range: Option<Range>) -> String {
    let Some(range) = range else { return "nothing is announced yet".to_owned() };
    let (oldest, last) = (range.oldest(), range.last);
    let why = match () {
        () if version == Version(0) => "versions count from 1",
        () if version > last => "it is not announced",
        () => "it is not kept any more",
    };
    match oldest == last {
        true => format!("{why}; only {last} can be pinned"),
        false => format!("{why}; {oldest} to {last} can be pinned"),
    }
}

/// What a pin names newly, by shard. What the one before names too is kept for it, however far it was passed.
fn fresh(pin: &Pin, before: Option<&Pin>) -> Vec<(Shard, Pinned)> {
    let before = before.filter(|before| before.history == pin.history);
    let was = |shard: Shard| before.and_then(|before| before.versions.get(shard.0 as usize)).copied();
    let is_kept = |shard, pinned: &Pinned| {
        was(shard).is_some_and(|was| (was.version, was.epoch) == (pinned.version, pinned.epoch))
    };
    let each = (0..).map(Shard).zip(pin.versions.iter().copied());
    each.filter(|(shard, pinned)| !is_kept(*shard, pinned)).collect()
}

/// Whether a version that was pinned is not kept by what is announced by now: then, from which one on all is.
fn passed(pinned: Version, newest: Option<&Announcement>) -> Option<Version> {
    newest.map(|newest| newest.oldest_kept).filter(|oldest| pinned < *oldest)
}

/// The version of the announced snapshot, where nothing has changed since.
fn holds_all(newest: &Announcement) -> Option<Version> {
    let snapshot = newest.snapshot.as_ref()?;
    let changed = newest.chain.iter().any(|delta| delta.upserts + delta.deletes > 0);
    (!changed).then_some(snapshot.version)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::record::TopicId;

    #[test]
    fn what_was_pinned_before_is_not_asked_for_anew() {
        let pin = |history, versions: [(u64, u64); 2]| Pin {
            dataset: "d".to_owned(),
            history: TopicId([history; 16]),
            id: Uuid::nil(),
            versions: versions
                .map(|(version, epoch)| Pinned { version: Version(version), epoch, offset: 0 })
                .to_vec(),
            by: String::new(),
            reason: String::new(),
            at: 0,
        };
        let before = pin(7, [(3, 1), (40, 2)]);
        let shards = |pin: &Pin, before| {
            fresh(pin, before)
                .into_iter()
                .map(|(shard, pinned)| (shard.0, pinned.version.0))
                .collect::<Vec<_>>()
        };
        assert_eq!(shards(&pin(7, [(3, 1), (41, 2)]), Some(&before)), [(1, 41)]);
        assert_eq!(shards(&pin(7, [(3, 2), (40, 2)]), Some(&before)), [(0, 3)], "another life's version 3");
        assert_eq!(shards(&pin(8, [(3, 1), (40, 2)]), Some(&before)), [(0, 3), (1, 40)], "another history");
        assert_eq!(shards(&before, None), [(0, 3), (1, 40)]);
    }

    #[test]
    fn what_cannot_be_pinned_is_answered_with_what_can() {
        let range = Range { first: Version(3), last: Version(42), oldest_kept: Version(17) };
        for (version, said) in [
            (0, "versions count from 1; 17 to 42 can be pinned"),
            (16, "it is not kept any more; 17 to 42 can be pinned"),
            (43, "it is not announced; 17 to 42 can be pinned"),
        ] {
            assert_eq!(cannot_be_pinned(Version(version), Some(range)), said);
        }
        let one = Range { first: Version(1), last: Version(1), oldest_kept: Version(0) };
        assert_eq!(cannot_be_pinned(Version(2), Some(one)), "it is not announced; only 1 can be pinned");
        assert_eq!(cannot_be_pinned(Version(2), None), "nothing is announced yet");
        let trimmed = Range { first: Version(20), ..range };
        assert!(cannot_be_pinned(Version(18), Some(trimmed)).contains("20 to 42"));
    }
}
