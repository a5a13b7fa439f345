//! What announcements carry on from one to the next, and what is told of the last one.

use crate::format::announcement::{SourcePosition, read_positions};
use crate::record::Position;
use crate::version::{Chain, Version};
use crate::view::View;

/// The newest announced version of this life, for who waits on it.
#[derive(Clone, Debug)]
pub struct Announced {
    /// Its number.
    pub version: Version,
    /// It as readable memory.
    pub view: View,
    /// Its positions.
    pub positions: Vec<Position>,
    /// Whether it has passed the ends that the first life saw.
    pub caught_up: bool,
    /// The deltas since the newest announced snapshot.
    pub chain: ChainSize,
    /// The version of that snapshot.
    pub snapshot: Option<Version>,
    /// From here on all is kept, as it says.
    pub oldest_kept: Version,
}

impl Announced {
    /// What `carried` says, with the view of that version.
    pub(in crate::producer) fn of(version: Version, view: View, carried: &Carried) -> Announced {
        Announced {
            version,
            view,
            positions: read_positions(&carried.positions).map(SourcePosition::position).collect(),
            caught_up: carried.caught_up,
            chain: ChainSize::of(&carried.chain),
            snapshot: carried.chain.snapshot.as_ref().map(|snapshot| snapshot.version),
            oldest_kept: carried.oldest_kept,
        }
    }
}

/// How much a reader that starts from the snapshot has to apply.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChainSize {
    /// Deltas.
    pub deltas: usize,
    /// Their bytes as stored.
    pub bytes: u64,
    /// Their entries.
    pub entries: u64,
}

impl ChainSize {
    pub(in crate::producer) fn of(chain: &Chain) -> ChainSize {
        chain.deltas.iter().fold(ChainSize::default(), |sum, delta| ChainSize {
            deltas: sum.deltas + 1,
            bytes: sum.bytes + delta.blob.bytes,
            entries: sum.entries + delta.upserts + delta.deletes,
        })
    }
}

/// The state that announcements carry on from one to the next.
#[derive(Clone, Debug, Default)]
pub struct Carried {
    /// The last announced version and the epoch that announced it.
    pub previous: Option<(Version, u64)>,
    /// How to make it.
    pub chain: Chain,
    /// The positions, in the order of the dataset's list of source partitions.
    pub positions: Vec<SourcePosition>,
    /// Keys in it.
    pub records: u64,
    /// Whether the positions have passed their targets.
    pub caught_up: bool,
    /// From here on all is kept.
    pub oldest_kept: Version,
}
