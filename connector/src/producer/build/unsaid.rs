//! What the next version says beside its changes.

use std::time::Instant;

use crate::format::letter::Letter;
use crate::record::Position;

/// What has to be said, and has not been yet.
#[derive(Debug, Default)]
pub(super) struct Unsaid {
    pub(super) positions: Vec<Position>,
    pub(super) letters: Vec<Letter>,
    pub(super) letter_bytes: u64,
    pub(super) unchanged: u64,
    pub(super) coalesced: u64,
    pub(super) newest_timestamp: Option<i64>,
    pub(super) received_at: Option<Instant>,
    pub(super) since: Option<Instant>,
}

impl Unsaid {
    /// Moves its positions on, never back.
    pub(super) fn move_to(&mut self, moved: Vec<Position>) {
        for position in moved {
            match self.positions.iter_mut().find(|known| known.source == position.source) {
                Some(known) => known.offset = known.offset.max(position.offset),
                None => self.positions.push(position),
            }
        }
    }
}
