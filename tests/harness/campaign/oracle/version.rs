//! One announcement against the source: its number, its chain, its delta, its snapshot.

use super::super::announced::Announcement;
use super::super::blobs;
use super::super::fold::{Changes, Stamp, Sums};
use super::{Known, Oracle, Violation, broken};

impl Oracle {
    pub(super) fn announced(&mut self, it: &Announcement, offset: i64) -> Result<(), Violation> {
        let trimmed = self.may_be_trimmed(it.version);
        if trimmed && it.life.epoch > self.life.epoch {
            // Its epoch record went with what is missing.
            (self.life, self.of_this_life) = (it.life.clone(), 0);
        }
        if it.life != self.life {
            // Readers would refuse it. Yet whoever writes next has fenced it before, so that it is not even there.
            let why = if it.life.epoch < self.life.epoch { "was replaced" } else { "has not begun" };
            return broken(
                2,
                format!("offset {offset}: version {} of life {:?}, which {why}", it.version, it.life),
            );
        }
        let version = it.version;
        let (last, _) = self.newest();
        if (version != last + 1 && !trimmed) || version <= self.of_this_life {
            return broken(2, format!("offset {offset}: version {version} was announced after {last}"));
        }
        self.of_this_life = version;
        let previous = self.versions.last_key_value().map(|(last, known)| (*last, known.life.epoch));
        if it.previous != previous && !trimmed {
            return broken(2, format!("version {version} follows {:?}, not {previous:?}", it.previous));
        }
        self.self_sufficient(it)?;
        self.tally.count(2);
        if it.oldest_kept > version {
            return broken(2, format!("version {version} says that {} is kept from on", it.oldest_kept));
        }

        let positions = self.positions(it)?;
        let changes = self.fold.on_to(&positions);
        // The source's changes are those of all versions that are missing too.
        if trimmed {
            self.leapt = true;
            self.tally.passed_over += (version - last) as u64;
        } else {
            self.delta(it, &changes)?;
        }
        self.expected.extend(changes.misfits.iter().copied());
        self.names(it);
        let known = Known {
            life: it.life.clone(),
            announced_at: it.announced_at,
            positions,
            records: self.fold.records(),
            sums: self.fold.sums(),
            blob: it.delta.blob.clone(),
        };
        self.versions.insert(version, known);
        self.tally.versions += 1;
        self.tally.records += changes.records;
        self.tally.letters += changes.misfits.len() as u64;
        self.snapshot(it)
    }

    /// Whoever reads this one announcement can make the version: snapshot, then each delta, without a gap.
    fn self_sufficient(&self, it: &Announcement) -> Result<(), Violation> {
        let mut at = it.snapshot.as_ref().map_or(0, |snapshot| snapshot.version);
        let own = (at < it.version).then_some(&it.delta);
        for delta in it.earlier.iter().chain(own) {
            let known = self.versions.get(&delta.version);
            if delta.version != at + 1 || known.is_some_and(|known| known.blob != delta.blob) {
                return broken(
                    2,
                    format!("version {} has a chain with {} after {at}", it.version, delta.version),
                );
            }
            at = delta.version;
        }
        if at != it.version || it.delta.version != it.version {
            return broken(2, format!("version {} has a chain that makes {at}", it.version));
        }
        Ok(())
    }

    fn positions(&self, it: &Announcement) -> Result<Vec<i64>, Violation> {
        let mut positions = Vec::new();
        let before = self.versions.last_key_value().map(|(_, known)| &known.positions);
        for (at, position) in it.positions.iter().enumerate() {
            let last = before.and_then(|before| before.get(at)).copied().unwrap_or(position.start);
            if position.topic != self.source || position.partition != at as i64 || position.offset < last {
                return broken(4, format!("version {} goes from {last} to {position:?}", it.version));
            }
            positions.push(position.offset);
        }
        Ok(positions)
    }

    /// 4 and 10: the delta is there, is what was announced, and is what the source says between the positions.
    fn delta(&mut self, it: &Announcement, changes: &Changes) -> Result<(), Violation> {
        let version = it.version;
        let Some(bytes) = self.bytes_of(&it.delta.blob, version)? else {
            self.tally.passed_over += 1;
            return Ok(());
        };
        if it.inline.as_ref().is_some_and(|inline| *inline != bytes) {
            return broken(10, format!("version {version} brings another delta inline than it names"));
        }
        self.tally.count(10);
        let unlike = |what: String| broken(4, format!("the delta of version {version} {what}"));
        let entries = match blobs::entries(&bytes) {
            Ok(entries) => entries,
            Err(what) => return unlike(format!("does not read: {what}")),
        };
        for (key, (row, at)) in &changes.entries {
            let name = String::from_utf8_lossy(key);
            let Ok(found) = entries.binary_search_by(|entry| entry.key.cmp(key)) else {
                return unlike(format!("lacks {name}, which offset {at:?} makes {row:?}"));
            };
            let Some(entry) = entries.get(found) else { return unlike(format!("lacks {name}")) };
            let stamp = stamp(entry);
            if (&entry.value, stamp) != (row, *at) {
                return unlike(format!("makes {name} {:?} of {stamp:?}, not {row:?} of {at:?}", entry.value));
            }
        }
        if let Some(entry) = entries.iter().find(|entry| !changes.entries.contains_key(&entry.key)) {
            return unlike(format!("changes {}, the source does not", String::from_utf8_lossy(&entry.key)));
        }
        let deletes = entries.iter().filter(|entry| entry.value.is_none()).count() as i64;
        let upserts = entries.len() as i64 - deletes;
        if (it.delta.upserts, it.delta.deletes) != (upserts, deletes) {
            return unlike(format!(
                "holds {upserts} upserts and {deletes} deletes, announced are {:?}",
                it.delta
            ));
        }
        if it.records != self.fold.records() as i64 || it.letters != changes.misfits.len() as i64 {
            return broken(
                4,
                format!(
                    "version {version} has {} records and {} letters by its announcement, {} and {} by the source",
                    it.records,
                    it.letters,
                    self.fold.records(),
                    changes.misfits.len()
                ),
            );
        }
        // Every record is accounted for once: changed, overwritten in its batch, unchanged, or a letter.
        let accounted = upserts + deletes + it.coalesced + it.unchanged + it.letters;
        if accounted != changes.records as i64 {
            return broken(
                4,
                format!("version {version} accounts for {accounted} of {} records", changes.records),
            );
        }
        self.tally.count(4);
        Ok(())
    }

    /// 5 and 10: a snapshot that was not announced before holds what its version does.
    fn snapshot(&mut self, it: &Announcement) -> Result<(), Violation> {
        let Some(snapshot) = it.snapshot.as_ref().filter(|snapshot| snapshot.version != self.snapshot) else {
            return Ok(());
        };
        let version = snapshot.version;
        let Some(known) = self.versions.get(&version).cloned() else {
            if self.tally.passed_over > 0 && version < it.version {
                // Of a version that nobody has looked at.
                return Ok(());
            }
            return broken(5, format!("version {} names a snapshot of {version}", it.version));
        };
        let Some(bytes) = self.bytes_of(&snapshot.blob, it.version)? else { return Ok(()) };
        self.bytes_of(&snapshot.index, it.version)?;
        self.tally.count(10);
        let unlike = |what: String| broken(5, format!("the snapshot of version {version} {what}"));
        let entries = match blobs::entries(&bytes) {
            Ok(entries) => entries,
            Err(what) => return unlike(format!("does not read: {what}")),
        };
        let mut sums = Sums::default();
        for entry in &entries {
            let Some(row) = &entry.value else { return unlike("holds a delete".into()) };
            sums.add(&entry.key, row, stamp(entry));
        }
        if self.leapt {
            sums.stamped = known.sums.stamped;
        }
        if (entries.len() as u64, sums) != (known.records, known.sums)
            || snapshot.records != entries.len() as i64
        {
            let model = self.fold.anew(&known.positions);
            let other = entries.iter().find(|entry| model.get(&entry.key) != entry.value.as_ref());
            return unlike(format!(
                "holds {} of {} records; {other:?} differs",
                entries.len(),
                known.records
            ));
        }
        self.snapshot = version;
        self.tally.snapshots += 1;
        self.tally.count(5);
        Ok(())
    }
}

fn stamp(entry: &blobs::Entry) -> Stamp {
    Stamp { partition: entry.source as i32, offset: entry.offset, timestamp: entry.timestamp }
}
