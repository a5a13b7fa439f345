//! What the follower is to open next, of all that comes while it opens something.
//!
//! Owns: what replaces what. Does not own: opening it (`follow`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::tail::{Announced, Seen};

/// Longest wait after a failure, once a newer version is announced.
const SOON: Duration = Duration::from_secs(1);

/// What is to be opened next.
pub struct Pending {
    /// What announced it.
    pub announced: Arc<Announced>,
    /// Why this one.
    pub why: Why,
}

/// Why a version is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is the newest.
    Newest,
    /// The reader is pinned to it.
    Pinned,
    /// It was held before this start, its blobs are not in the cache, and Kafka is away, or tells of no other one.
    Cached,
}

/// Until then; for ever where there is no such time.
pub(super) async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// When to try again after `failed` did, now that there is a newer version to be opened, for the reason `why`. That may ask for other
/// blobs than those that are not to be had; but how fast versions come says nothing about when a store is back. After what was to be
/// opened for another reason, at once.
pub(super) fn sooner(
    failed: Option<Pending>,
    why: Why,
    again: Option<tokio::time::Instant>,
) -> Option<tokio::time::Instant> {
    let same = failed.is_some_and(|failed| failed.why == why);
    again.filter(|_| same).map(|at| at.min(tokio::time::Instant::now() + SOON))
}

impl Pending {
    /// Whether opening it is of no use any more: the reader is to hold another one, however new. A newer announcement
    /// is no reason: where versions come faster than they are opened, none would be. Nor is a later one that is the newest by a time
    /// still to come, at which the reader is `fixed` by its configuration; or the same one, found in two ways.
    pub fn is_left_for(&self, next: &Seen, fixed: bool) -> bool {
        match next {
            Seen::Pinned(next) => {
                let of = |a: &Announced| (a.topic_id, a.announcement.version, a.announcement.life);
                self.why != Why::Pinned || !fixed && of(&self.announced) != of(next)
            }
            Seen::Announced(_) => self.why != Why::Newest,
            Seen::Newest(_) | Seen::UpToDate | Seen::Gone => false,
        }
    }
}

/// Puts what came behind what waits: of each kind the newest says it all.
pub fn put(inbox: &mut VecDeque<Seen>, next: Seen) {
    inbox.retain(|waiting| std::mem::discriminant(waiting) != std::mem::discriminant(&next));
    inbox.push_back(next);
}
