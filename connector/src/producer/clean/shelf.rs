//! What of a shard is kept: a fold over its announcements, and the arithmetic of what may go.
//!
//! ```text
//!  announcement     1 .. 9    10 .. 14    15 .. 19    20 .. 24
//!  lists snapshot    none         7          13          18        three snapshots kept: oldest_kept = 10
//!  and the deltas  1 ..      8 ..       14 ..       19 ..          what 10 and later ones name stays, the rest goes
//! ```
//!
//! `oldest_kept` is not a snapshot's own version but the first one whose announcement lists it: from there on every
//! announcement can be opened by what it names itself. So one rule says what stays: what a *retained* announcement names,
//! which are those from `oldest_kept` on, and the pinned one.
//!
//! What nothing retained names goes where an announcement below named it, or where a life wrote it that has been
//! replaced: an orphan. What the present life wrote and never announced may be on its way, and stays.
//!
//! Owns: that arithmetic. Does not own: reading the topic, the store (`sweep`), when it is done (`clean`).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use crate::blob::name::{Kind, Name};
use crate::format::announcement::{Announcement, Message};
use crate::format::succession::{Succession, Verdict};
use crate::version::{Checksum, Life, Version};

/// What is pinned of the shard: a version, and the epoch of the life that announced it.
pub type Pin = Option<(Version, u64)>;

/// What tells a blob from the others of its folder.
type Key = (Version, u64, Checksum, Kind);

/// The first and the last version whose announcements name a blob. Those between do too, but for a chain that went back
/// to an older snapshot since a newer one was lost; then more is kept than is named.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: Version,
    last: Version,
}

/// An announcement, as far as it matters here.
#[derive(Clone, Copy, Debug)]
struct Seen {
    offset: i64,
    epoch: u64,
    /// The version of its snapshot.
    base: Option<Version>,
    oldest_kept: Version,
    announced_at: i64,
}

/// A snapshot, by version and epoch, and the first version that lists it.
#[derive(Clone, Copy, Debug)]
struct Listed {
    snapshot: (Version, u64),
    from: Version,
}

/// What becomes of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Something retained names it.
    Kept,
    /// It was announced, and nothing retained names it any more.
    Passed,
    /// It was never announced, and whoever wrote it has been replaced.
    Orphan,
    /// Of the present life or a later one, and not announced: on its way perhaps.
    Fresh,
}

/// The announcements of one shard, as far as they count and as far back as the topic reaches.
#[derive(Clone, Debug, Default)]
pub struct Shelf {
    succession: Succession,
    seen: BTreeMap<Version, Seen>,
    spans: HashMap<Key, Span>,
    /// Oldest first.
    listed: VecDeque<Listed>,
}

impl Shelf {
    /// Takes the next record of the topic.
    pub fn take(&mut self, offset: i64, message: &Message) {
        match message {
            Message::Epoch(record) => {
                self.succession.epoch(record.life);
            }
            Message::Announcement(it) => {
                if self.succession.announcement(it.life, it.version) == Verdict::Valid {
                    self.announced(offset, it);
                }
            }
        }
    }

    fn announced(&mut self, offset: i64, it: &Announcement) {
        let version = it.version;
        // Only where the topic was cut by somebody else, so that what it begins with was taken for valid.
        self.seen.split_off(&version);
        self.seen.insert(
            version,
            Seen {
                offset,
                epoch: it.life.epoch,
                base: it.snapshot.as_ref().map(|snapshot| snapshot.version),
                oldest_kept: it.oldest_kept,
                announced_at: it.announced_at,
            },
        );
        for delta in it.chain.iter().chain([&it.delta]) {
            self.names(version, (delta.version, delta.epoch, delta.blob.checksum, Kind::Delta));
        }
        if let Some(snapshot) = &it.snapshot {
            let of = (snapshot.version, snapshot.epoch);
            self.names(version, (of.0, of.1, snapshot.blob.checksum, Kind::Snapshot));
            self.names(version, (of.0, of.1, snapshot.index.checksum, Kind::Index));
            // An older one than before: those since are lost.
            while self.listed.back().is_some_and(|last| last.snapshot != of && last.snapshot.0 >= of.0) {
                self.listed.pop_back();
            }
            if self.listed.back().is_none_or(|last| last.snapshot != of) {
                self.listed.push_back(Listed { snapshot: of, from: version });
            }
        }
        while self.listed.front().is_some_and(|first| first.from < it.oldest_kept) {
            self.listed.pop_front();
        }
    }

    fn names(&mut self, version: Version, key: Key) {
        self.spans.entry(key).or_insert(Span { first: version, last: version }).last = version;
    }

    /// The highest life.
    pub fn life(&self) -> Option<Life> {
        self.succession.life()
    }

    /// The newest version.
    pub fn newest(&self) -> Option<Version> {
        self.seen.last_key_value().map(|(version, _)| *version)
    }

    /// The epoch of the life that announced it.
    pub fn newest_epoch(&self) -> Option<u64> {
        self.seen.last_key_value().map(|(_, seen)| seen.epoch)
    }

    /// The oldest version whose announcement is held; 0 where none is.
    pub fn oldest(&self) -> Version {
        self.seen.first_key_value().map_or(Version(0), |(version, _)| *version)
    }

    /// What the newest announcement says of `oldest_kept`.
    pub fn oldest_kept(&self) -> Version {
        self.seen.last_key_value().map_or(Version(0), |(_, seen)| seen.oldest_kept)
    }

    /// The highest `oldest_kept` that was announced by then (milliseconds since the Unix epoch, by the writers' clocks).
    pub fn oldest_kept_by(&self, ms: i64) -> Option<Version> {
        self.seen.values().filter(|seen| seen.announced_at <= ms).map(|seen| seen.oldest_kept).max()
    }

    /// From which version on the newest `keep` snapshots are listed; `None` while there are fewer.
    pub fn floor(&self, keep: usize) -> Option<Version> {
        self.listed.get(self.listed.len().checked_sub(keep.max(1))?).map(|listed| listed.from)
    }

    /// Whether the topic holds all that is retained from `below` on: only then is known what that names.
    ///
    /// # Errors
    /// What it does not hold.
    pub fn is_whole(&self, below: Version, pin: Pin) -> Result<(), String> {
        let newest = self.newest().ok_or("no version is announced")?;
        let held = self.seen.range(below..).count() as u64;
        if below > newest || held != newest.0 - below.0 + 1 {
            return Err(format!(
                "of versions {below} to {newest}, which are kept, the topic holds {held} only"
            ));
        }
        match pin {
            Some((version, epoch)) if version < below => match self.seen.get(&version) {
                Some(seen) if seen.epoch == epoch => Ok(()),
                _ => Err(format!(
                    "the topic does not hold version {version} of epoch {epoch}, to which readers are pinned: unpin it"
                )),
            },
            _ => Ok(()),
        }
    }

    /// What becomes of a blob once nothing below `below` is kept but what is pinned.
    pub fn fate(&self, name: &Name, below: Version, pin: Pin) -> Fate {
        match self.spans.get(&key(name)) {
            Some(span) if span.is_retained(below, pin) => Fate::Kept,
            Some(_) => Fate::Passed,
            None if self.life().is_some_and(|life| name.epoch < life.epoch) => Fate::Orphan,
            None => Fate::Fresh,
        }
    }

    /// The offset below which the topic holds nothing that is needed.
    ///
    /// Announcements right before `below` are needed though they are not retained: those of the deltas between the oldest
    /// snapshot and the first version that lists it. Where a newer snapshot is lost they tell the way from that one.
    pub fn trim_to(&self, below: Version, pin: Pin) -> Option<i64> {
        self.seen.range(self.lowest(below, pin)?..).next().map(|(_, seen)| seen.offset)
    }

    fn lowest(&self, below: Version, pin: Pin) -> Option<Version> {
        let base = self.seen.get(&below)?.base;
        let lowest = base.map_or(below, |base| below.min(base.next()));
        Some(pin.map_or(lowest, |(version, _)| lowest.min(version)))
    }

    /// Lets go of what is gone by now, from store and topic; what is `left` in the store is still known to have passed.
    pub fn forget(&mut self, below: Version, pin: Pin, left: &[Name]) {
        let Some(lowest) = self.lowest(below, pin) else { return };
        let left: HashSet<Key> = left.iter().map(key).collect();
        self.spans.retain(|key, span| span.is_retained(below, pin) || left.contains(key));
        self.seen = self.seen.split_off(&lowest);
    }
}

fn key(name: &Name) -> Key {
    (name.version, name.epoch, name.checksum, name.kind)
}

impl Span {
    fn is_retained(&self, below: Version, pin: Pin) -> bool {
        let is_pinned = |(version, _)| (self.first..=self.last).contains(&version);
        self.last >= below || pin.is_some_and(is_pinned)
    }
}
