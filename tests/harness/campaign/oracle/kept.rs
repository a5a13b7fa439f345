//! What is kept, and what is cleaned: by the rule as docs/formats.md states it. Kept is what the announcements from the
//! newest `oldest_kept` on name; what is named by none of them goes.

use super::super::announced::{Announcement, Blob, Told};
use super::super::blobs::Blobs;
use super::{Named, Oracle, Violation, broken};
use crate::topic::Message;

impl Oracle {
    /// 10: every blob that is kept is still what it was.
    ///
    /// # Errors
    /// The first that is not.
    pub fn blobs(&mut self) -> Result<(), Violation> {
        self.each_blob(|blobs, blob| blobs.bytes(blob).map(drop))
    }

    /// [`Oracle::blobs`], by their names and lengths only.
    ///
    /// # Errors
    /// The first that is not there.
    pub fn blobs_are_there(&mut self) -> Result<(), Violation> {
        self.each_blob(Blobs::is_there)
    }

    fn each_blob(&mut self, holds: impl Fn(&Blobs, &Blob) -> Result<(), String>) -> Result<(), Violation> {
        self.let_go();
        let named: Vec<Named> = self.named.values().cloned().collect();
        for Named { blob, last } in named {
            let Err(what) = holds(&self.blobs, &blob) else { continue };
            // The writer goes on: it may have announced meanwhile that this one is not kept.
            let oldest_kept = self.kept_by_now()?;
            if last >= oldest_kept {
                let what =
                    format!("{what}; version {last} names it, and {oldest_kept} is the oldest that is kept");
                return broken(10, what);
            }
        }
        self.announcements_are_there()?;
        self.tally.count(10);
        Ok(())
    }

    /// 10: the topic holds the announcements of all versions that are kept.
    fn announcements_are_there(&self) -> Result<(), Violation> {
        if self.announcements.partitions() == 0 {
            return Ok(());
        }
        let (mut first, mut oldest_kept) = (None, 0);
        for message in self.announcements.read_on(&[0]) {
            if let Told::Announcement(it) = told(&message)? {
                first.get_or_insert(it.version);
                oldest_kept = oldest_kept.max(it.oldest_kept);
            }
        }
        match first {
            Some(first) if first > oldest_kept => broken(
                10,
                format!(
                    "the topic begins with version {first}, and {oldest_kept} is the oldest that is kept"
                ),
            ),
            _ => Ok(()),
        }
    }

    /// 10: what was announced and is not kept any more goes, once the writer has nothing else to do.
    ///
    /// # Errors
    /// What stays.
    pub fn cleaned(&mut self, within: std::time::Duration) -> Result<(), Violation> {
        self.patience.clone().held(within, || {
            self.read_announcements()?;
            self.let_go();
            let all = self.blobs.all();
            let stays =
                |(name, _): &&(String, u64)| self.ever.contains(name) && !self.named.contains_key(name);
            let staying: Vec<&str> = all.iter().filter(stays).map(|(name, _)| name.as_str()).collect();
            if let Some(first) = staying.first() {
                let (count, kept) = (staying.len(), self.oldest_kept);
                return broken(
                    10,
                    format!("{count} blobs stay though {kept} is the oldest that is kept: {first}"),
                );
            }
            let there = all.iter().filter(|(name, _)| self.ever.contains(name)).count();
            self.tally.cleaned += (self.ever.len() - there) as u64;
            self.tally.count(10);
            Ok(())
        })
    }

    fn let_go(&mut self) {
        let oldest_kept = self.oldest_kept;
        self.named.retain(|_, named| named.last >= oldest_kept);
    }

    /// From which version on all is kept at this moment.
    pub(super) fn kept_by_now(&mut self) -> Result<i64, Violation> {
        for message in self.announcements.read_on(&[self.next]) {
            self.note_kept(&message)?;
        }
        Ok(self.oldest_kept)
    }

    fn note_kept(&mut self, message: &Message) -> Result<(), Violation> {
        if let Told::Announcement(it) = told(message)? {
            self.oldest_kept = self.oldest_kept.max(it.oldest_kept);
        }
        Ok(())
    }

    /// The newest version that was looked at, and the blobs without which nobody who has no cache makes it: the snapshot, if
    /// there is one, and then the deltas on top of it. Not its own delta, which its announcement may bring along.
    pub fn needed(&self) -> (i64, Vec<Blob>) {
        self.needed.clone()
    }

    /// Notes what an announcement names.
    pub(super) fn names(&mut self, it: &Announcement) {
        let earlier = it.earlier.iter().map(|delta| delta.blob.clone());
        let snapshot = it.snapshot.iter().map(|snapshot| snapshot.blob.clone());
        self.needed = (it.version, snapshot.chain(earlier).collect());
        let deltas = it.earlier.iter().chain([&it.delta]).map(|delta| &delta.blob);
        for blob in deltas.chain(it.snapshot.iter().flat_map(|snapshot| [&snapshot.blob, &snapshot.index])) {
            self.ever.insert(blob.name.clone());
            self.named.insert(blob.name.clone(), Named { blob: blob.clone(), last: it.version });
        }
    }

    /// The bytes of a blob that version `version` was the first to name; `None` where it was cleaned before it was looked
    /// at, and may have been.
    pub(super) fn bytes_of(&mut self, blob: &Blob, version: i64) -> Result<Option<Vec<u8>>, Violation> {
        let missing = match self.blobs.bytes(blob) {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(missing) => missing,
        };
        if version >= self.oldest_kept && version >= self.kept_by_now()? {
            return broken(10, missing);
        }
        if !self.archived.path(&blob.name).exists() {
            return Ok(None);
        }
        self.archived.bytes(blob).map(Some).map_err(|what| Violation { check: 10, what })
    }

    /// Reads what was announced by now, out of the archive where the topic is trimmed.
    pub(super) fn read_announcements(&mut self) -> Result<(), Violation> {
        if self.next == 0 && self.announcements.partitions() == 0 {
            return Ok(());
        }
        let direct = self.announcements.read_on(&[self.next]);
        let begins = direct.first().map_or(i64::MAX, |first| first.offset);
        let archived = self.archive.messages_from(self.next);
        let messages: Vec<Message> =
            archived.into_iter().filter(|message| message.offset < begins).chain(direct).collect();
        // After the announcements: what their positions cover is then there to be read.
        self.fold.read();
        for message in &messages {
            self.note_kept(message)?;
        }
        for message in messages {
            self.next = message.offset + 1;
            match told(&message)? {
                Told::Epoch(life) => {
                    if life.epoch > self.life.epoch {
                        (self.life, self.of_this_life) = (life, 0);
                    }
                }
                Told::Announcement(announcement) => self.announced(&announcement, message.offset)?,
            }
        }
        Ok(())
    }

    /// Whether the versions between the last that was looked at and `version` may be missing: all of them are below what is
    /// kept, so that the topic was trimmed behind them.
    pub(super) fn may_be_trimmed(&self, version: i64) -> bool {
        version > self.newest().0 + 1 && version <= self.oldest_kept
    }
}

fn told(message: &Message) -> Result<Told, Violation> {
    Told::read(message)
        .map_err(|what| Violation { check: 2, what: format!("offset {}: {what}", message.offset) })
}
