//! What must be true whatever died when, checked from outside: topics by librdkafka, blobs by apache-avro, readers
//! over HTTP, processes by what the system says of them.
//!
//! Owns: the ten checks. Does not own: the faults (`scene`).

mod kept;
mod version;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use serde_json::Value;

use super::announced::{Blob, Life};
use super::archive::Archive;
use super::blobs::Blobs;
use super::fair::Patience;
use super::fold::{Fold, Sums};
use super::instance::{Logged, Size, lines, said};
use super::watcher::Scan;
use super::workload::Acknowledged;
use crate::topic::{Message, Topic};

/// What a life says of a file of its log that is damaged at its end.
const NOT_WHOLE: &str =
    "the end of a file of the log is not whole: what it held from there on is read from Kafka again";
/// What it says where it takes nothing of the log that it found.
const DISCARDED: &str = "the log was written for something else and all of it is discarded; what is not announced is read from Kafka";

/// The checks, by their numbers from 1.
pub const CHECKS: [&str; 10] = [
    "every acknowledged record is in a published version or a dead letter",
    "versions are gapless, each announced once, by one writer",
    "only whole versions are visible",
    "a version is the fold of the source up to its positions",
    "a snapshot is its chain of deltas, and every reader holds the fold",
    "recovery keeps a prefix of the log",
    "committed offsets never pass what is announced",
    "memory, log and queue stay within their bounds",
    "after the fault a fresh record is readable within 10 s",
    "no announced blob is missing or other than announced",
];

/// How long the two ends of one transaction may be apart for who reads both topics, of the time that counts: a broker that
/// hardly gets any time was seen to take more than five seconds.
const MARKERS: Duration = Duration::from_secs(30);

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which check; 0 where it is none of the ten, as a panic.
    pub check: usize,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.check.checked_sub(1).and_then(|at| CHECKS.get(at));
        write!(f, "check {} ({}): {}", self.check, name.unwrap_or(&"nothing panics"), self.what)
    }
}

pub(super) fn broken<T>(check: usize, what: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { check, what: what.into() })
}

/// What has been checked.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Faults, of any kind.
    pub faults: u64,
    /// Processes that died of them: by SIGKILL, or by their own hand at a failpoint.
    pub kills: u64,
    /// How often each check found what it should; by number, 0 is none.
    pub checks: [u64; 11],
    /// Versions announced.
    pub versions: u64,
    /// Source records in them.
    pub records: u64,
    /// Dead letters.
    pub letters: u64,
    /// Snapshots announced.
    pub snapshots: u64,
    /// Announced blobs that were seen to be cleaned.
    pub cleaned: u64,
    /// Versions whose announcements or deltas were cleaned before anybody had looked: not compared with the source.
    pub passed_over: u64,
    /// Lives that began.
    pub lives: u64,
    /// Most resident bytes of any process.
    pub resident: u64,
    /// Fresh records that took more than their time by the clock, since others had the machine ([`super::fair`]).
    pub stretched: u64,
}

impl Tally {
    pub(super) fn count(&mut self, check: usize) {
        if let Some(count) = self.checks.get_mut(check) {
            *count += 1;
        }
    }

    /// Takes another's counts in.
    pub fn add(&mut self, other: &Tally) {
        for (mine, theirs) in self.checks.iter_mut().zip(other.checks) {
            *mine += theirs;
        }
        self.faults += other.faults;
        self.kills += other.kills;
        self.versions += other.versions;
        self.records += other.records;
        self.letters += other.letters;
        self.snapshots += other.snapshots;
        self.cleaned += other.cleaned;
        self.passed_over += other.passed_over;
        self.lives += other.lives;
        self.stretched += other.stretched;
        self.resident = self.resident.max(other.resident);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} faults, {} kills, {} lives, {} versions of {} records with {} letters, {} snapshots, {} blobs cleaned, {} \
             versions passed over, {} MB at most; checks",
            self.faults,
            self.kills,
            self.lives,
            self.versions,
            self.records,
            self.letters,
            self.snapshots,
            self.cleaned,
            self.passed_over,
            self.resident / 1_000_000
        )?;
        let mut numbered = self.checks.iter().enumerate().skip(1);
        numbered.try_for_each(|(check, count)| write!(f, " {check}:{count}"))
    }
}

/// A version that was announced, and what it must hold.
#[derive(Clone, Debug)]
struct Known {
    life: Life,
    /// By its writer's wall clock.
    announced_at: i64,
    positions: Vec<i64>,
    records: u64,
    sums: Sums,
    blob: Blob,
}

/// A blob that announcements name, and the last version that does.
#[derive(Clone, Debug)]
struct Named {
    blob: Blob,
    last: i64,
}

/// The oracle of one dataset.
#[derive(Debug)]
pub struct Oracle {
    dataset: String,
    source: String,
    fold: Fold,
    announcements: Topic,
    letters: Topic,
    blobs: Blobs,
    /// What was there before it was cleaned.
    archived: Blobs,
    archive: Archive,
    bounds: Size,
    patience: Patience,
    next: i64,
    life: Life,
    of_this_life: i64,
    /// Those that were looked at; some may be missing that were cleaned before.
    versions: BTreeMap<i64, Known>,
    /// Some are missing: of a key that became another value and back in one of those, the fold does not know the last record.
    leapt: bool,
    /// What announcements that are kept name, by the blob's name; and the names of all that ever were.
    named: HashMap<String, Named>,
    ever: HashSet<String>,
    /// The newest version that was looked at, and what whoever has no cache must fetch of it.
    needed: (i64, Vec<Blob>),
    /// From which version on all is kept, by the newest announcement.
    oldest_kept: i64,
    snapshot: i64,
    next_letters: Vec<i64>,
    expected: BTreeSet<(i32, i64)>,
    found: BTreeSet<(i32, i64)>,
    acknowledged: Vec<Acknowledged>,
    takeovers: BTreeMap<String, usize>,
    shown: BTreeMap<String, i64>,
    left: BTreeMap<String, Vec<Logged>>,
    /// What has been checked.
    pub tally: Tally,
}

impl Oracle {
    /// Of `dataset`, fed by `source`, with the blobs in a folder.
    pub fn new(
        dataset: &str,
        source: Topic,
        topics: [Topic; 2],
        (blobs, archived): (Blobs, Blobs),
        archive: Archive,
        (bounds, patience): (Size, Patience),
    ) -> Oracle {
        let [announcements, letters] = topics;
        Oracle {
            dataset: dataset.to_owned(),
            source: source.name().to_owned(),
            fold: Fold::new(source),
            announcements,
            letters,
            blobs,
            archived,
            archive,
            bounds,
            patience,
            next: 0,
            life: Life::default(),
            of_this_life: 0,
            versions: BTreeMap::new(),
            leapt: false,
            named: HashMap::new(),
            ever: HashSet::new(),
            needed: (0, Vec::new()),
            oldest_kept: 0,
            snapshot: 0,
            next_letters: Vec::new(),
            expected: BTreeSet::new(),
            found: BTreeSet::new(),
            acknowledged: Vec::new(),
            takeovers: BTreeMap::new(),
            shown: BTreeMap::new(),
            left: BTreeMap::new(),
            tally: Tally::default(),
        }
    }

    /// The last version that counts, and its positions.
    pub fn newest(&self) -> (i64, Vec<i64>) {
        let newest = self.versions.last_key_value();
        newest.map(|(version, last)| (*version, last.positions.clone())).unwrap_or_default()
    }

    /// When the last version that counts was announced, by its writer's wall clock: milliseconds since 1970.
    pub fn newest_at(&self) -> Option<i64> {
        self.versions.last_key_value().map(|(_, last)| last.announced_at)
    }

    /// Kafka has acknowledged these.
    pub fn acknowledged(&mut self, records: Vec<Acknowledged>) {
        self.acknowledged.extend(records);
    }

    /// Checks all that there is by now. Whoever writes may go on meanwhile.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn look(&mut self) -> Result<(), Violation> {
        let committed = self.committed();
        self.read_announcements()?;
        self.not_ahead(committed)?;
        self.read_letters()
    }

    /// 1: all that was acknowledged before the positions `covered` were announced is in a version or a letter.
    ///
    /// # Errors
    /// What is missing.
    pub fn settled(&mut self) -> Result<(), Violation> {
        let (version, positions) = self.newest();
        for record in std::mem::take(&mut self.acknowledged) {
            let place = format!("{}[{}] offset {}", self.source, record.partition, record.offset);
            let position = positions.get(record.partition as usize).copied().unwrap_or(0);
            let Some(sourced) = self.fold.at(record.partition, record.offset) else {
                let way = if record.transactional { "a transaction" } else { "itself" };
                let found = self.fold.whatever_is_at(record.partition, record.offset);
                return broken(
                    1,
                    format!(
                        "{place} was acknowledged, sent by {way}, and is not in the topic; there {found}"
                    ),
                );
            };
            if (&sourced.message.key, &sourced.message.value) != (&record.key, &record.value) {
                return broken(1, format!("{place} holds another record than was acknowledged"));
            }
            if record.offset >= position {
                return broken(1, format!("{place} was acknowledged; version {version} ends at {position}"));
            }
        }
        self.letters_as_announced()?;
        self.tally.count(1);
        Ok(())
    }

    /// Each record that cannot be processed has its letter, and no other has one. The two topics are read one after the
    /// other while the writer goes on: what the first does not hold yet, the second must.
    fn letters_as_announced(&mut self) -> Result<(), Violation> {
        let (expected, patience) = (self.expected.clone(), self.patience.clone());
        patience.held(MARKERS, || {
            let Some((partition, offset)) = expected.difference(&self.found).next().copied() else {
                return Ok(());
            };
            self.read_letters()?;
            broken(1, format!("the record at {}[{partition}] offset {offset} has no letter", self.source))
        })?;
        let found = self.found.clone();
        patience.held(MARKERS, || {
            let Some((partition, offset)) = found.difference(&self.expected).next().copied() else {
                return Ok(());
            };
            self.read_announcements()?;
            broken(
                1,
                format!(
                    "the record at {}[{partition}] offset {offset} has a letter, not announced",
                    self.source
                ),
            )
        })
    }

    /// 3 and 5: what readers showed is the fold at the version's positions.
    ///
    /// # Errors
    /// Where it is not.
    pub fn readers(&mut self, scans: &[Scan]) -> Result<(), Violation> {
        for scan in scans {
            let Scan { reader, version, rows } = scan;
            if *version > self.newest().0 {
                // Announced after the topic was read.
                self.read_announcements()?;
            }
            let before = self.shown.insert(reader.clone(), *version).unwrap_or(0);
            if before > *version {
                return broken(3, format!("{reader} showed version {version} after {before}"));
            }
            let Some(known) = self.versions.get(version) else {
                if (1..=self.newest().0).contains(version) {
                    // Cleaned before it was looked at.
                    continue;
                }
                return broken(3, format!("{reader} shows version {version}, which was never announced"));
            };
            let sum =
                rows.iter().fold(0u128, |sum, (key, row)| sum.wrapping_add(super::row::digest(key, row)));
            if (rows.len() as u64, sum) != (known.records, known.sums.rows) {
                let model = self.fold.anew(&known.positions);
                let key = model.keys().chain(rows.keys()).find(|key| model.get(*key) != rows.get(*key));
                return broken(
                    3,
                    format!(
                        "{reader} shows {} records in version {version}, the fold has {}; {:?} differs: {:?} and {:?}",
                        rows.len(),
                        model.len(),
                        key.map(|key| String::from_utf8_lossy(key)),
                        key.and_then(|key| rows.get(key)),
                        key.and_then(|key| model.get(key))
                    ),
                );
            }
            self.tally.count(3);
            self.tally.count(5);
        }
        Ok(())
    }

    /// The instance called `name` is down and has `logged` on its disk: what its next life resumes with.
    pub fn left(&mut self, name: &str, logged: Vec<Logged>) {
        self.left.insert(name.to_owned(), logged);
    }

    /// 6: a life takes from its log what joins the announced positions, all of it and nothing else; and nothing
    /// panicked. `log` is all that the instance called `name` has said. Of a log whose manifest was damaged, RocksDB may have lost the
    /// file in which it says for what it was written: then a life takes nothing of it, and says both.
    ///
    /// # Errors
    /// What it said.
    pub fn recovery(&mut self, name: &str, log: &str) -> Result<(), Violation> {
        if let Some(line) = log.lines().find(|line| line.contains("panicked")) {
            return broken(0, format!("{name}: {line}"));
        }
        let seen = self.takeovers.get(name).copied().unwrap_or(0);
        let mut resumed: BTreeMap<i32, (i64, i64)> = BTreeMap::new();
        let (mut takeovers, mut manifest_cut, mut discarded) = (0, false, false);
        for line in lines(log) {
            match said(&line, "message") {
                NOT_WHOLE => manifest_cut |= said(&line, "file").starts_with("MANIFEST-"),
                DISCARDED => discarded |= said(&line, "why") == "it does not say for what it was written",
                "resuming" => {
                    let at = place(said(&line, "announced"));
                    if let (Some((partition, offset)), Some(from_log)) =
                        (at, line.get("from_log").and_then(Value::as_i64))
                    {
                        resumed.insert(partition, (offset, from_log));
                    }
                }
                "took over" => {
                    takeovers += 1;
                    let resumed = std::mem::take(&mut resumed);
                    let nothing = std::mem::take(&mut manifest_cut) & std::mem::take(&mut discarded);
                    if takeovers > seen {
                        if nothing && let Some(left) = self.left.get_mut(name) {
                            left.clear();
                        }
                        let version = said(&line, "version").parse::<i64>().ok();
                        self.resumed(name, version.unwrap_or(-1), &resumed)?;
                    }
                }
                _ => {}
            }
        }
        self.takeovers.insert(name.to_owned(), takeovers);
        Ok(())
    }

    fn resumed(
        &mut self,
        name: &str,
        version: i64,
        resumed: &BTreeMap<i32, (i64, i64)>,
    ) -> Result<(), Violation> {
        self.tally.lives += 1;
        // Only the first life of a process meets the log as it was left; a later one meets what the first has added.
        let left = self.left.remove(name);
        let known = self.versions.get(&version);
        if known.is_none() && (1..=self.newest().0).contains(&version) {
            return Ok(());
        }
        for (partition, (announced, from_log)) in resumed {
            let place = format!("{name} took over at version {version}: {}[{partition}]", self.source);
            let position = match known {
                Some(known) => known.positions.get(*partition as usize).copied(),
                // Before version 1 nothing is announced, and the topic begins at 0.
                None => Some(0),
            };
            if position != Some(*announced) {
                return broken(6, format!("{place} resumes at {announced}, announced is {position:?}"));
            }
            let Some(left) = &left else { continue };
            let joins = |logged: &&Logged| {
                logged.partition == *partition && (logged.from..=logged.to).contains(announced)
            };
            let prefix = left.iter().find(joins).map_or(0, |logged| logged.to - announced);
            if *from_log != prefix {
                return broken(6, format!("{place} takes {from_log} records from a log with {left:?}"));
            }
        }
        self.tally.count(6);
        Ok(())
    }

    /// 8: what a process takes.
    ///
    /// # Errors
    /// What is too much.
    pub fn size(&mut self, name: &str, size: Size) -> Result<(), Violation> {
        let most = self.bounds;
        self.tally.resident = self.tally.resident.max(size.rss);
        if size.rss > most.rss || size.log > most.log || size.pending > most.pending {
            return broken(8, format!("{name} takes {size:?}, allowed are {most:?}"));
        }
        self.tally.count(8);
        Ok(())
    }

    /// 8: what it took at the most, since it was asked last.
    ///
    /// # Errors
    /// What was too much.
    pub fn peak(&mut self, name: &str, most: Size, allowed: Size) -> Result<(), Violation> {
        if most.log > allowed.log || most.pending > allowed.pending {
            return broken(8, format!("{name} took {most:?} for a while, allowed are {allowed:?}"));
        }
        self.tally.count(8);
        Ok(())
    }

    fn read_letters(&mut self) -> Result<(), Violation> {
        if self.next_letters.is_empty() {
            self.next_letters = vec![0; usize::try_from(self.letters.partitions()).unwrap_or(0)];
        }
        if self.next_letters.is_empty() {
            return Ok(());
        }
        let letters = self.letters.read_from(&self.next_letters.clone());
        // What they are of was committed before them, and maybe after the source was read last.
        self.fold.read();
        for letter in letters {
            if let Some(next) = self.next_letters.get_mut(letter.partition as usize) {
                *next = letter.offset + 1;
            }
            let number = |name: &str| {
                letter.header(&format!("__connect.errors.{name}")).and_then(|text| text.parse::<i64>().ok())
            };
            let at = (number("partition").unwrap_or(-1) as i32, number("offset").unwrap_or(-1));
            let about = format!("the letter of {}[{}] offset {}", self.source, at.0, at.1);
            if letter.header("__connect.errors.topic") != Some(&self.source) {
                return broken(1, format!("{about} names another topic"));
            }
            if !self.found.insert(at) {
                return broken(1, format!("{about} was sent twice"));
            }
            let Some(sourced) = self.fold.at(at.0, at.1) else {
                return broken(1, format!("{about} is of no record that was committed"));
            };
            let value = self.value_of(&letter).map_err(|what| Violation { check: 1, what })?;
            if (&sourced.message.key, &sourced.message.value) != (&letter.key, &value) {
                return broken(1, format!("{about} holds other bytes than the record"));
            }
        }
        Ok(())
    }

    fn value_of(&self, letter: &Message) -> Result<Option<Vec<u8>>, String> {
        match letter.header("stillwell.value-blob") {
            Some(name) => self.blobs.unverified(name).map(Some),
            None => Ok(letter.value.clone()),
        }
    }

    /// What the group has committed, by partition.
    fn committed(&self) -> Vec<Option<i64>> {
        // Not there while the group's coordinator is away.
        let group = format!("stillwell.{}", self.dataset);
        self.fold.topic().committed(&group, Duration::from_secs(10)).unwrap_or_default()
    }

    /// 7: what was committed before the announcements were read is announced. The markers of one transaction come to
    /// its topics one after the other, so that a reader of both may see the offsets a moment earlier.
    fn not_ahead(&mut self, committed: Vec<Option<i64>>) -> Result<(), Violation> {
        let patience = self.patience.clone();
        let ahead = patience.held(MARKERS, || {
            let (version, positions) = self.newest();
            let ahead = (0..).zip(committed.iter().copied().chain([None])).find(|(at, offset)| {
                offset.is_some_and(|offset| offset > positions.get(*at).copied().unwrap_or(0))
            });
            let Some((partition, offset)) = ahead else { return Ok(()) };
            self.read_announcements()?;
            let what = format!(
                "offset {offset:?} of {}[{partition}] is committed, version {version} is announced with {positions:?}",
                self.source
            );
            broken(7, what)
        });
        ahead?;
        if !committed.is_empty() {
            self.tally.count(7);
        }
        Ok(())
    }
}

/// `topic[partition]@offset`.
fn place(text: &str) -> Option<(i32, i64)> {
    let (source, offset) = text.rsplit_once('@')?;
    let (_, partition) = source.strip_suffix(']')?.rsplit_once('[')?;
    Some((partition.parse().ok()?, offset.parse().ok()?))
}
