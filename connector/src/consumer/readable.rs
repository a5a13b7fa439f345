//! What a reader can be told about the version that it holds.
//!
//! Owns: those facts, and how far one version is behind another. Does not own: when they change (`follow`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use crate::format::announcement::SourcePosition;
use crate::format::control::Refusal;
use crate::record::Position;
use crate::telemetry::ConsumerMetrics;
use crate::version::Version;
use crate::view::View;

/// What readers can be told about the newest version.
#[derive(Clone, Debug, Default)]
pub struct Readable {
    /// Its number; 0 while none is readable.
    pub version: Version,
    /// The newest version announced, readable or not.
    pub announced: Version,
    /// When the readable version was announced, milliseconds since the Unix epoch; 0 while none is.
    pub announced_at_ms: i64,
    /// The version that this reader is pinned to is readable, and stays.
    pub pinned: bool,
    /// The newest version, where this reader's guard refuses it; until a later one is taken.
    pub refused: Option<Refusal>,
    /// Whether it holds all that was there when the dataset's first life began.
    pub caught_up: bool,
    /// It came from the cache, and the tail has not confirmed it yet.
    pub stale: bool,
    /// Source records that the newest announced version covers and the readable one does not.
    pub lag: u64,
    /// The tail has reached the topic's end and this is what it found: the newest there is.
    pub newest: bool,
    /// How long after its newest record the newest version became readable, and when that was, where it took longer
    /// than `freshness_slo`. What came before the dataset had caught up is late by nature.
    pub late: Option<(Duration, Instant)>,
    /// The last failure, until the next success.
    pub error: Option<String>,
    /// Blobs that are gone, so that the version was made of older ones; until the writer has made a new snapshot.
    pub restored: Option<String>,
}

/// Where readers find the newest view.
pub type Slot = Arc<ArcSwapOption<View>>;

/// How many source records lie between what is held and what is announced. A partition that is not held yet counts from
/// where the dataset began to read it.
pub(super) fn behind(held: &[Position], announced: &[SourcePosition]) -> u64 {
    let behind = announced.iter().map(|announced| {
        let held = held.iter().find(|held| held.source == announced.source);
        announced.offset.saturating_sub(held.map_or(announced.start, |held| held.offset)).max(0)
    });
    behind.sum::<i64>().unsigned_abs()
}

/// Tells what a view takes of memory, and of files.
pub(super) fn show_memory(view: &View, metrics: &ConsumerMetrics) {
    let (bytes, overlay) = (&metrics.memory_bytes, view.overlay());
    bytes.with(&["overlay"]).set(overlay.memory_bytes as i64);
    bytes.with(&["deltas"]).set(overlay.plain_bytes as i64);
    let (indexes, mapped) = view.index_sizes();
    bytes.with(&["indexes"]).set(indexes as i64);
    bytes.with(&["kept"]).set(view.memory().saturating_sub(view.own_memory()) as i64);
    bytes.with(&["base"]).set((view.base().map_or(0, |base| base.bytes()) + mapped) as i64);
}
