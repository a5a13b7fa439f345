//! What the follower is to open next, of all that comes while it opens something.
//!
//! Owns: what replaces what. Does not own: opening it (`follow`).

use std::collections::VecDeque;
use std::sync::Arc;

use super::tail::{Announced, Seen};

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

impl Pending {
    /// Whether opening it is of no use any more: the reader is to hold another one, however new. A newer announcement
    /// is no reason: where versions come faster than they are opened, none would be.
    pub fn is_left_for(&self, next: &Seen) -> bool {
        match next {
            Seen::Pinned(_) => true,
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
