//! What is noted in the cache of the pin that is spared: a pin ends by a record that says so, and not with its topic, so that
//! what stood in one that is gone must be known elsewhere.
//!
//! Noted whenever the owner reads the pin: at a takeover, when a record about it arrives, and before something is cleaned.
//! What was noted by the last alone could be missing for hours, in which the topic may be made anew.
//!
//! Owns: the note. Does not own: what comes of it (`sweep`), its bytes (`view`).

use super::shelf::Pin;
use crate::error::chain;
use crate::format::control;
use crate::record::TopicId;
use crate::version::Shard;
use crate::view::{Cache, Spared};

/// What of a pin is this shard's, in the history `history`.
pub fn of_shard(pin: Option<&control::Pin>, history: TopicId, shard: Shard) -> Pin {
    let pin = pin.filter(|pin| pin.history == history)?;
    let pinned = pin.versions.get(shard.0 as usize)?;
    Some((pinned.version, pinned.epoch))
}

/// Who notes it, for a shard.
#[derive(Clone)]
pub struct Noting {
    cache: Cache,
    dataset: String,
    shard: Shard,
    history: TopicId,
}

impl Noting {
    /// For a shard whose announcement topic is `history`, in this cache.
    pub fn new(cache: Cache, dataset: &str, shard: Shard, history: TopicId) -> Noting {
        Noting { cache, dataset: dataset.to_owned(), shard, history }
    }

    /// Notes what the newest record about the pin says, in the control topic of this id. Blocks.
    pub fn said(&self, topic: TopicId, pin: Option<&control::Pin>) {
        let history = self.history;
        let now = of_shard(pin, history, self.shard);
        let now = now.map(|(version, epoch)| Spared { topic, history, version, epoch });
        match Spared::load(self.cache.dir(), &self.dataset, self.shard) {
            Ok(noted) if noted == now => {}
            _ => save(&self.cache, &self.dataset, self.shard, now),
        }
    }
}

/// Notes it. Where that fails it is said, and read anew before something is cleaned.
pub(super) fn save(cache: &Cache, dataset: &str, shard: Shard, now: Option<Spared>) {
    if let Err(error) = cache.save_spared(dataset, shard, now) {
        // A full disk, say, on which cleaning may be what makes room.
        tracing::warn!(error = chain(&error), dataset, "it cannot be noted what is pinned");
    }
}
