//! The way back: where a blob of the newest announcement is gone, older announcements name older ones.
//!
//! ```text
//!  announcement 40:  snapshot 30 (gone), deltas 31..40
//!  announcement 29:  snapshot 10,        deltas 11..29      =>  snapshot 10, deltas 11..40
//!  announcement  1:  no snapshot,        delta 1            =>  deltas 1..40
//! ```
//!
//! Read are the announcements before the wanted one, from its `previous` back, link by link: (version, epoch) names
//! one announcement, so no life that was superseded can slip in. A delta that is gone from the store is taken out of
//! its own announcement, where it was small enough to travel in it.
//!
//! Owns: finding another chain to the same version, and saying what is missing where there is none. Does not own:
//! which version is wanted (`consumer/follow`, `producer/recover`), or putting back what is gone.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{About, Error, Fetcher, Held, Identity, View};
use crate::clock::Clock;
use crate::format::announcement::{Announcement, Message};
use crate::kafka::{self, Admin, Polled, Poller, Tuning};
use crate::version::{BlobRef, Chain, DeltaRef, SnapshotRef, Version};

/// Announcements that the first step back covers; doubled with each further one.
const FIRST_STEP: i64 = 256;
/// Longest time without any progress.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the broker may hold back a fetch at the end of what is read.
const FETCH_WAIT: Duration = Duration::from_millis(50);
/// How often the topic may be trimmed beyond where reading stands before that is an error.
const MOST_TRIMS: u32 = 10;
/// Deltas that are fetched at a time.
const AT_A_TIME: usize = 8;

/// A blob that would have to be put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// What it is, as in "the snapshot of version 30".
    pub what: String,
    /// Where it has to lie.
    pub url: String,
    /// Why it is of no use as it is.
    pub why: String,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} ({})", self.what, self.url, self.why)
    }
}

/// A version that was opened by way of older blobs.
#[derive(Debug)]
pub struct Restored {
    /// It.
    pub view: View,
    /// The chain that makes it.
    pub chain: Chain,
    /// What was found to be gone of the announced one.
    pub gone: Vec<Need>,
}

/// What one announcement says about the way to its version.
#[derive(Clone, Debug)]
struct Link {
    offset: i64,
    previous: Option<(Version, u64)>,
    delta: DeltaRef,
    snapshot: Option<SnapshotRef>,
    inline: bool,
}

/// The announcements of one shard, as far back as they were needed yet. Kept while the same version is tried again, so
/// that a blob that stays away costs the topic's reading once.
#[derive(Clone)]
pub struct Past {
    kafka: kafka::Options,
    topic: String,
    clock: Clock,
    of: Option<(Version, u64)>,
    links: BTreeMap<(Version, u64), Link>,
    /// Everything from this offset on was read; `None` before the first step.
    from: Option<i64>,
}

impl Past {
    /// Of the announcements in `topic`. Nothing is read before something is to be restored.
    pub fn new(kafka: kafka::Options, topic: &str, clock: Clock) -> Past {
        Past { kafka, topic: topic.to_owned(), clock, of: None, links: BTreeMap::new(), from: None }
    }

    /// Opens the version of `target` by another chain than the announced one, blobs of which are gone.
    ///
    /// # Errors
    /// [`Error::Unrestorable`] with what is missing; [`Error::Announcements`] where they cannot be read; whatever else
    /// [`Fetcher::open`] says.
    pub async fn restore(
        &mut self,
        fetcher: &Fetcher,
        identity: &Identity,
        target: &Announcement,
        about: About,
    ) -> Result<Restored, Error> {
        let of = Some((target.version, target.life.epoch));
        if self.of != of {
            (self.of, self.from) = (of, None);
            self.links.clear();
        }
        let mut search = Search::new(target);
        let known = search.deltas.clone();
        // The deltas above the announced snapshot are part of every chain.
        let mut lost = self.bring(fetcher, identity, &mut search, &known, target).await?;
        loop {
            if !lost.is_empty() {
                return Err(search.unrestorable(lost));
            }
            if let Some(chain) = search.candidate() {
                match fetcher.open(identity, &chain, None, about.clone()).await {
                    Ok(view) => {
                        return Ok(Restored { view, chain, gone: search.gone });
                    }
                    Err(error) if error.is_gone() => {
                        // Each chain that is further back holds this delta, too.
                        if let Some(delta) = unreadable(&chain, &error) {
                            let lost = need(fetcher, Kind::Delta(delta.version), &delta.blob, &error);
                            return Err(search.unrestorable(vec![lost]));
                        }
                        search.refused(fetcher, &chain, &error);
                    }
                    Err(error) => return Err(error),
                }
            }
            // One version further back, with the delta that leads up from there.
            let Some(key) = search.before else { return Err(search.unrestorable(Vec::new())) };
            let Some(link) = self.link(identity, key).await? else {
                return Err(search.unrestorable(Vec::new()));
            };
            search.go_back_to(&link);
            let wanted: Vec<DeltaRef> = search.wanted(&link).into_iter().collect();
            lost = self.bring(fetcher, identity, &mut search, &wanted, target).await?;
        }
    }

    /// Brings deltas into the cache, out of their announcements where the store has them no more. Gives what is lost.
    async fn bring(
        &mut self,
        fetcher: &Fetcher,
        identity: &Identity,
        search: &mut Search,
        deltas: &[DeltaRef],
        target: &Announcement,
    ) -> Result<Vec<Need>, Error> {
        let mut lost = Vec::new();
        for some in deltas.chunks(AT_A_TIME) {
            let fetched = some.iter().map(|delta| fetcher.delta(identity, delta, None));
            let fetched = futures::future::join_all(fetched).await;
            for (delta, held) in some.iter().zip(fetched) {
                let error = match held {
                    Ok(held) => {
                        search.held.push(held);
                        continue;
                    }
                    Err(error) if error.is_gone() => error,
                    Err(error) => return Err(error),
                };
                let inline = match &target.inline {
                    Some(inline) if delta.version == target.version => Some(inline.clone()),
                    _ => self.inline(identity, delta).await?,
                };
                match inline {
                    Some(inline) => {
                        search.held.push(fetcher.delta(identity, delta, Some(inline)).await?);
                        search.gone.push(need(fetcher, Kind::Delta(delta.version), &delta.blob, &error));
                    }
                    None => lost.push(need(fetcher, Kind::Delta(delta.version), &delta.blob, &error)),
                }
            }
        }
        Ok(lost)
    }

    /// Puts the deltas of `chain` back that the store has no more and that announcements carry. Gives how many.
    ///
    /// # Errors
    /// As [`Past::restore`]; [`Error::Store`].
    pub async fn put_back(
        &mut self,
        fetcher: &Fetcher,
        identity: &Identity,
        target: &Announcement,
        chain: &Chain,
    ) -> Result<u64, Error> {
        let mut put = 0;
        for delta in &chain.deltas {
            // Asked of the store itself: what was opened may have come out of the cache.
            if fetcher.store().head(&delta.blob.name).await.map_err(Error::Store)?.is_some() {
                continue;
            }
            let inline = match &target.inline {
                Some(inline) if delta.version == target.version => Some(inline.clone()),
                _ => self.inline(identity, delta).await?,
            };
            if let Some(inline) = inline {
                fetcher.store().put(&delta.blob.name, inline).await.map_err(Error::Store)?;
                put += 1;
            }
        }
        Ok(put)
    }

    /// The stored bytes of a delta, if its announcement carries them.
    async fn inline(&mut self, identity: &Identity, delta: &DeltaRef) -> Result<Option<Bytes>, Error> {
        let offset = match self.link(identity, (delta.version, delta.epoch)).await? {
            Some(link) if link.inline && link.delta == *delta => link.offset,
            _ => return Ok(None),
        };
        let read = self.read(identity, offset, offset + 1, |_, announcement| announcement.inline).await?;
        Ok(read.into_iter().flatten().next())
    }

    /// The announcement of a version by the life of an epoch, read if it was not yet.
    async fn link(&mut self, identity: &Identity, key: (Version, u64)) -> Result<Option<Link>, Error> {
        while !self.links.contains_key(&key) {
            if !self.step_back(identity).await? {
                break;
            }
        }
        Ok(self.links.get(&key).cloned())
    }

    /// Reads announcements before those that were read. `false`: there are none.
    async fn step_back(&mut self, identity: &Identity) -> Result<bool, Error> {
        let admin = Admin::new(&self.kafka).map_err(|source| self.unread(source))?;
        let partition = identity.shard.0 as i32;
        let ends = admin.watermarks(&self.topic, partition).await;
        let (low, end) = ends.map_err(|source| self.unread(source))?;
        let upto = self.from.unwrap_or(end);
        if upto <= low {
            return Ok(false);
        }
        let step = self.from.map_or(FIRST_STEP, |from| (end - from).max(FIRST_STEP));
        let from = upto.saturating_sub(step).max(low);
        let links = self
            .read(identity, from, upto, |offset, announcement| {
                let Announcement { version, life, previous, delta, snapshot, inline, .. } = announcement;
                let link = Link { offset, previous, delta, snapshot, inline: inline.is_some() };
                ((version, life.epoch), link)
            })
            .await?;
        for (key, link) in links {
            // Of two records of one version and life the first counts (`succession`).
            self.links.entry(key).or_insert(link);
        }
        self.from = Some(from);
        Ok(true)
    }

    /// What `keep` makes of the committed announcements at offsets `from` to `upto`. Each is let go of before the next
    /// is read: their chains together may be far larger than what is kept of them.
    async fn read<T: Send + 'static>(
        &self,
        identity: &Identity,
        from: i64,
        upto: i64,
        keep: impl FnMut(i64, Announcement) -> T + Send + 'static,
    ) -> Result<Vec<T>, Error> {
        let (kafka, topic, clock) = (self.kafka.clone(), self.topic.clone(), self.clock.clone());
        let (partition, group) = (identity.shard.0 as i32, format!("stillwell.{}", identity.dataset));
        let read = tokio::task::spawn_blocking(move || {
            let mut poller = Poller::new(&kafka, &Tuning::tail(&group, FETCH_WAIT))?;
            poller.assign(&[(&topic, partition, from)])?;
            read_range(&mut poller, (&topic, partition), upto, &clock, keep)
        });
        read.await.map_err(|_| Error::Closed)?.map_err(|source| self.unread(source))
    }

    fn unread(&self, source: kafka::Error) -> Error {
        Error::Announcements { topic: self.topic.clone(), source }
    }
}

fn read_range<T>(
    poller: &mut Poller,
    (topic, partition): (&str, i32),
    upto: i64,
    clock: &Clock,
    mut keep: impl FnMut(i64, Announcement) -> T,
) -> Result<Vec<T>, kafka::Error> {
    let mut read = Vec::new();
    let mut progress: Instant = clock.now();
    let (mut trims, mut trimmed) = (0, false);
    loop {
        if std::mem::take(&mut trimmed) {
            // The cleaner was there meanwhile: on from where the topic begins now.
            let (low, _) = poller.reach(topic, partition)?;
            if low >= upto {
                return Ok(read);
            }
            poller.assign(&[(topic, partition, low)])?;
        }
        match poller.poll(Duration::from_millis(100)) {
            Some(Polled::Record { message, .. }) => {
                let offset = message.offset();
                if offset >= upto {
                    return Ok(read);
                }
                progress = clock.now();
                let decoded = Message::decode(message.value().unwrap_or_default());
                if let Ok(Message::Announcement(announcement)) = decoded {
                    read.push(keep(offset, *announcement));
                }
            }
            Some(Polled::End { .. }) => return Ok(read),
            Some(Polled::Lost { .. }) if trims < MOST_TRIMS => (trims, trimmed) = (trims + 1, true),
            Some(Polled::Lost { detail, .. }) => {
                let doing = format!("reading older announcements of {topic}");
                return Err(kafka::Error::Unavailable { doing, detail });
            }
            Some(Polled::Error(error)) if !error.is_transient() => return Err(error),
            Some(Polled::Error(error)) => tracing::debug!(%error, topic, "reading back; trying again"),
            None => {}
        }
        if clock.now().saturating_duration_since(progress) > PATIENCE {
            return Err(kafka::Error::Unavailable {
                doing: format!("reading older announcements of {topic}"),
                detail: format!("nothing came for {PATIENCE:?}"),
            });
        }
    }
}

enum Kind {
    Snapshot(Version),
    Index(Version),
    Delta(Version),
}

fn need(fetcher: &Fetcher, kind: Kind, blob: &BlobRef, error: &Error) -> Need {
    let what = match kind {
        Kind::Snapshot(version) => format!("the snapshot of version {version}"),
        Kind::Index(version) => format!("the index of the snapshot of version {version}"),
        Kind::Delta(version) => format!("the delta of version {version}"),
    };
    let why = match error {
        Error::CorruptBlob { detail, .. } => format!("damaged: {detail}"),
        Error::UnreadableBlob { detail, .. } => format!("as it was announced, but unreadable: {detail}"),
        _ => "missing".to_owned(),
    };
    Need { what, url: fetcher.store().absolute_url(&blob.name), why }
}

/// Whether it is this blob that the store does not have, or that cannot be read.
fn is_about(error: &Error, blob: &BlobRef) -> bool {
    match error {
        Error::CorruptBlob { url, .. }
        | Error::UnreadableBlob { url, .. }
        | Error::Missing(crate::blob::Error::Missing { url }) => url.ends_with(&blob.name),
        _ => false,
    }
}

/// The delta of `chain` that is here as it was announced, and cannot be read.
fn unreadable<'a>(chain: &'a Chain, error: &Error) -> Option<&'a DeltaRef> {
    let of =
        |delta: &&DeltaRef| matches!(error, Error::UnreadableBlob { .. }) && is_about(error, &delta.blob);
    chain.deltas.iter().find(of)
}

/// One search for a chain to one version.
struct Search {
    version: Version,
    /// Deltas up to `version`, oldest first, as far back as they are known and here.
    deltas: Vec<DeltaRef>,
    /// Snapshots to try once the deltas lead up from them; `None` stands for the beginning.
    ahead: Vec<Option<SnapshotRef>>,
    /// Version and epoch of each snapshot that was tried.
    tried: Vec<(Version, u64)>,
    /// Version and epoch of the announcement before those that were followed.
    before: Option<(Version, u64)>,
    gone: Vec<Need>,
    /// Keeps the deltas from being evicted until the version is open.
    held: Vec<Held>,
}

impl Search {
    fn new(target: &Announcement) -> Search {
        Search {
            version: target.version,
            // Where the snapshot holds this very version, its own delta leads up to it all the same.
            deltas: match target.chain.as_slice() {
                [] => vec![target.delta.clone()],
                chain => chain.to_vec(),
            },
            // With all deltas here, out of their announcements perhaps, the announced snapshot may do.
            ahead: vec![target.snapshot.clone()],
            tried: Vec::new(),
            before: target.previous,
            gone: Vec::new(),
            held: Vec::new(),
        }
    }

    /// The lowest version that the deltas lead up from.
    fn floor(&self) -> Version {
        self.deltas.first().map_or(self.version, |delta| Version(delta.version.0.saturating_sub(1)))
    }

    /// A chain that was not tried yet.
    fn candidate(&mut self) -> Option<Chain> {
        let floor = self.floor();
        let here = self.ahead.iter().position(|snapshot| match snapshot {
            Some(snapshot) => snapshot.version >= floor,
            None => floor == Version(0),
        })?;
        let snapshot = self.ahead.remove(here);
        let base = snapshot.as_ref().map_or(Version(0), |snapshot| snapshot.version);
        let deltas = self.deltas.iter().filter(|delta| delta.version > base).cloned().collect();
        Some(Chain { snapshot, deltas })
    }

    /// The chain could not be opened.
    fn refused(&mut self, fetcher: &Fetcher, chain: &Chain, error: &Error) {
        let Some(snapshot) = &chain.snapshot else { return };
        self.tried.push((snapshot.version, snapshot.epoch));
        let (kind, blob) = match is_about(error, &snapshot.index) {
            true => (Kind::Index(snapshot.version), &snapshot.index),
            false => (Kind::Snapshot(snapshot.version), &snapshot.blob),
        };
        self.gone.push(need(fetcher, kind, blob, error));
    }

    fn go_back_to(&mut self, link: &Link) {
        self.before = link.previous;
        let id = |snapshot: &SnapshotRef| (snapshot.version, snapshot.epoch);
        let of = link.snapshot.as_ref().map(id);
        let known = self.ahead.iter().any(|ahead| ahead.as_ref().map(id) == of);
        if !known && !of.is_some_and(|of| self.tried.contains(&of)) {
            self.ahead.push(link.snapshot.clone());
        }
    }

    /// The link's delta, if it leads up to the lowest that is known; then it is the lowest.
    fn wanted(&mut self, link: &Link) -> Option<DeltaRef> {
        let leads = link.delta.version == self.floor() && link.delta.version > Version(0);
        leads.then(|| {
            self.deltas.insert(0, link.delta.clone());
            link.delta.clone()
        })
    }

    fn unrestorable(self, lost: Vec<Need>) -> Error {
        let snapshots: Vec<Need> =
            self.gone.into_iter().filter(|need| !need.what.starts_with("the delta")).collect();
        Error::Unrestorable { version: self.version, snapshots, deltas: lost }
    }
}

/// What has to be put back, in words: any of the snapshots, or all of the deltas.
pub(super) fn needed(snapshots: &[Need], deltas: &[Need]) -> String {
    let join =
        |needs: &[Need], with: &str| needs.iter().map(ToString::to_string).collect::<Vec<_>>().join(with);
    match (snapshots, deltas) {
        ([], []) => "the announcements of older versions, which are gone too".to_owned(),
        (snapshots, []) => join(snapshots, ", or "),
        ([], deltas) => join(deltas, ", and "),
        (snapshots, deltas) => format!("{}, or {}", join(snapshots, ", or "), join(deltas, " and ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Checksum;

    fn blob(name: &str) -> BlobRef {
        let sum = Checksum(1);
        BlobRef {
            name: name.to_owned(),
            bytes: 1,
            checksum: sum,
            plain_bytes: 1,
            plain_checksum: sum,
            location: None,
        }
    }

    fn delta(version: u64) -> DeltaRef {
        DeltaRef { version: Version(version), epoch: 1, blob: blob("d"), upserts: 1, deletes: 0 }
    }

    fn snapshot(version: u64) -> SnapshotRef {
        let (blob, index) = (blob(&format!("s{version}")), blob(&format!("i{version}")));
        SnapshotRef { version: Version(version), epoch: 1, blob, index, records: 1 }
    }

    fn link(version: u64, under: Option<u64>) -> Link {
        let previous = (version > 1).then(|| (Version(version - 1), 1));
        let snapshot = under.map(snapshot);
        Link { offset: 0, previous, delta: delta(version), snapshot, inline: false }
    }

    fn search(version: u64, under: u64) -> Search {
        Search {
            version: Version(version),
            deltas: (under + 1..=version).map(delta).collect(),
            ahead: Vec::new(),
            tried: vec![(Version(under), 1)],
            before: None,
            gone: Vec::new(),
            held: Vec::new(),
        }
    }

    /// Walks back over the links, and gives each chain that comes up, as snapshot and deltas.
    fn chains(mut search: Search, links: &[Link]) -> Vec<(Option<u64>, usize)> {
        let mut found = Vec::new();
        for link in links.iter().rev() {
            search.go_back_to(link);
            search.wanted(link);
            if let Some(chain) = search.candidate() {
                chain.check().unwrap();
                assert_eq!(chain.version(), search.version);
                let snapshot = chain.snapshot.map(|snapshot| (snapshot.version.0, snapshot.epoch));
                search.tried.extend(snapshot.map(|(version, epoch)| (Version(version), epoch)));
                found.push((snapshot.map(|(version, _)| version), chain.deltas.len()));
            }
        }
        found
    }

    #[test]
    fn each_older_snapshot_is_tried_once_the_newest_first_and_the_beginning_last() {
        // Snapshot 2 is listed from version 4 on, snapshot 5 from version 6 on, snapshot 8 (gone) from 9 on.
        let under = |version: u64| match version {
            9.. => Some(8),
            6.. => Some(5),
            4.. => Some(2),
            _ => None,
        };
        let links: Vec<Link> = (1..10).map(|version| link(version, under(version))).collect();
        assert_eq!(chains(search(10, 8), &links), [(Some(5), 5), (Some(2), 8), (None, 10)]);
        // A topic trimmed to what was kept: announcements 6 to 10.
        assert_eq!(chains(search(10, 8), &links[5..]), [(Some(5), 5)]);
    }

    /// It is part of each chain that is further back, so nothing is looked for there.
    #[test]
    fn a_delta_that_cannot_be_read_is_told_from_a_snapshot() {
        let chain = Chain { snapshot: Some(snapshot(3)), deltas: vec![delta(4)] };
        let unreadable_at = |name: &str| Error::UnreadableBlob {
            url: format!("file:///x/{name}"),
            detail: "format 9".to_owned(),
        };
        assert_eq!(unreadable(&chain, &unreadable_at("d")), Some(&chain.deltas[0]));
        for name in ["s3", "i3"] {
            assert_eq!(unreadable(&chain, &unreadable_at(name)), None);
        }
        let damaged = Error::CorruptBlob { url: "file:///x/d".to_owned(), detail: String::new() };
        assert_eq!(unreadable(&chain, &damaged), None, "its announcement may carry it");
    }

    #[test]
    fn what_is_needed_is_said_as_a_choice() {
        let need = |what: &str| Need { what: what.into(), url: "file:///x".into(), why: "missing".into() };
        let text = needed(&[need("snapshot 8"), need("snapshot 5")], &[need("delta 4")]);
        let one = |what: &str| format!("{what} at file:///x (missing)");
        assert_eq!(text, format!("{}, or {}, or {}", one("snapshot 8"), one("snapshot 5"), one("delta 4")));
        assert!(needed(&[], &[]).contains("announcements"));
    }
}
