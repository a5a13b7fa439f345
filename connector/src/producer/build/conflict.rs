//! Conflicts: a key whose records come by several partitions, and which of them it keeps.
//!
//! ```text
//!  held p0@7, 10:00  <- p1@3, 10:01  wins: the later timestamp        <- p0@8, 10:00  loses: a letter, where that is asked for
//!                       (of two partitions of a topic, or of two topics)   (`conflict_letters`)
//! ```
//!
//! Within a partition the later offset wins, always. Who loses is decided in the order of the log, record by record, against
//! what is held by then; a record that is taken and overwritten later, within its batch or after, has not lost. A loser that says
//! what is held anyway is none either: nothing of it is missing. The letter goes out with the version that moves the position
//! over its record, as any letter does, and is made again, of the log, by whoever has to make that version again.
//!
//! Owns: the rule, saying that keys move, what a loser's letter holds, stopping where too many lose. Does not own: the
//! original (`validate` keeps it, `format/chunk`), the counting of failures (`storm`).

use std::cmp::Ordering;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::super::batch::Item;
use super::super::storm::{Storm, Window};
use crate::codec::{Misfit, Stage};
use crate::dead::letter::{self, CONFLICT};
use crate::format::chunk::Chunk;
use crate::format::letter::Letter;
use crate::record::{SourcePartition, Stamp, which_are_read};
use crate::repeat;

/// A record that lost: its place among the batch's items, and which one won.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) order: u32,
    pub(super) to: Stamp,
}

/// What stops the builder where too many records lose.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    pub(super) storm: Storm,
    pub(super) drain: CancellationToken,
}

impl Guard {
    /// Whether no more batches are to be taken.
    pub(super) fn is_shut(guard: Option<&Guard>) -> bool {
        guard.is_some_and(|guard| guard.storm.rages_at(Stage::Conflict))
    }

    /// Waits until they are to be taken again, or the life drains: true.
    pub(super) async fn opens(guard: Option<&Guard>) -> bool {
        let Some(Guard { storm, drain }) = guard else { return std::future::pending().await };
        tokio::select! {
            () = drain.cancelled() => true,
            () = storm.until_calm_at(Stage::Conflict) => false,
        }
    }
}

/// The rule, for one life.
pub(super) struct Conflicts {
    sources: Arc<[SourcePartition]>,
    /// Which of them are read, and not of a topic that has been made anew since.
    read: Vec<bool>,
    met: u64,
    /// Where losers are to become letters: counts them.
    window: Option<Window>,
    /// Losers that could not, since the log had them from before.
    bare: u64,
}

impl Conflicts {
    pub(super) fn new(sources: Arc<[SourcePartition]>) -> Conflicts {
        let read = which_are_read(sources.iter());
        Conflicts { sources, read, met: 0, window: None, bare: 0 }
    }

    /// Losers become letters from now on, if there is a guard to count them.
    pub(super) fn keep(&mut self, storm: Option<&Storm>) {
        self.window = storm.map(Storm::window);
    }

    /// Whether losers become letters.
    pub(super) fn are_kept(&self) -> bool {
        self.window.is_some()
    }

    /// Whether a record that comes later in the log replaces an earlier one of its key. Within a partition it does. A
    /// key that arrives from another partition breaks the order that Kafka gives: the later timestamp wins, then topic,
    /// partition and offset decide; and it is said. Between partitions the log's order is that of arrival.
    pub(super) fn wins(&mut self, key: &[u8], later: &Stamp, earlier: &Stamp) -> bool {
        // What came from a topic that has been made anew since gives way to anything.
        if later.source == earlier.source || !self.is_read(earlier.source) {
            return true;
        }
        self.met += 1;
        if repeat::is_said(self.met) {
            let name = |stamp: &Stamp| self.source(stamp).map(ToString::to_string);
            tracing::warn!(
                conflicts = self.met, key = %String::from_utf8_lossy(key),
                from = ?name(earlier), to = ?name(later),
                "a key has moved to another partition; the later timestamp wins. Keep a key in one partition"
            );
        }
        let rank = |stamp: &Stamp| {
            let source = self.source(stamp);
            (stamp.timestamp, source.map(|source| (source.topic.clone(), source.partition)), stamp.offset)
        };
        rank(later).cmp(&rank(earlier)) == Ordering::Greater
    }

    fn is_read(&self, source: u32) -> bool {
        self.read.get(source as usize).is_none_or(|read| *read)
    }

    fn source(&self, stamp: &Stamp) -> Option<&SourcePartition> {
        self.sources.get(stamp.source as usize)
    }

    /// The letters of the losers among `items`, which are a batch's, in the order of the log; and counts all of them, for the
    /// storm guard. A record that was logged before letters were asked for has no original, and is none.
    pub(super) fn letters(&mut self, chunks: &[Chunk], items: &[Item], mut lost: Vec<Lost>) -> Vec<Letter> {
        let Some(mut window) = self.window.take() else { return Vec::new() };
        lost.sort_unstable_by_key(|lost| lost.order);
        let (mut letters, mut lost) = (Vec::with_capacity(lost.len()), lost.into_iter().peekable());
        for (order, item) in items.iter().enumerate() {
            let letter = lost.next_if(|lost| lost.order as usize == order).and_then(|lost| {
                let letter = self.letter(chunks, *item, &lost.to);
                self.bare += u64::from(letter.is_none());
                letter
            });
            let Some(letter) = letter else {
                window.fits();
                continue;
            };
            let message = letter.message.clone();
            window.fails(&Misfit { stage: Stage::Conflict, class: CONFLICT, message });
            letters.push(letter);
        }
        self.window = Some(window);
        letters
    }

    fn letter(&self, chunks: &[Chunk], item: Item, winner: &Stamp) -> Option<Letter> {
        let chunk = chunks.get(item.chunk as usize)?;
        let record = chunk.at(item.cursor);
        let source = &chunk.ranges().get(usize::from(record.slot))?.source;
        let letter = letter::of_loser(&record, source, (self.source(winner), winner));
        if letter.is_none() && repeat::is_said(self.bare + 1) {
            tracing::warn!(
                source = %source, offset = record.offset, so_far = self.bare + 1,
                "a record lost a conflict and becomes no letter: it was logged before conflict_letters was set, without what a letter needs"
            );
        }
        letter
    }
}
