//! Memory that versions take, counted for as long as anybody has it.
//!
//! A view shares most of its memory with those before and after it, and listeners, streams and readers hold some of these. So each
//! piece is charged once, to the account of its dataset, when it first is a part of a view, and given back when the last view
//! that has it is gone: runs, deltas in memory, tables of indexes in memory, page checksums of bases. What is mapped is none.
//!
//! Owns: that count. Does not own: what is done about it (`consumer/merging`, `consumer/recent`, `consumer/earlier`).

use std::sync::OnceLock;

use super::{Inner, View};
use crate::gauge::{Budget, Lease};

/// What stands for a piece of memory in an account, from when it is known on.
#[derive(Debug, Default)]
pub(super) struct Charge(OnceLock<Lease>);

impl Charge {
    /// Charges it, if that has not been done. Whether it was done now.
    pub fn to(&self, memory: &Budget, bytes: u64) -> bool {
        let mut now = false;
        self.0.get_or_init(|| {
            now = true;
            memory.force_lease(bytes)
        });
        now
    }
}

impl Inner {
    /// Charges what it is made of and what was not charged before.
    pub(super) fn charge(&self) {
        let Some(memory) = &self.memory else { return };
        self.overlay.charge(memory);
        if let Some(base) = &self.base {
            base.charge(memory);
        }
        self.lookups.iter().for_each(|lookup| lookup.charge(memory));
    }
}

impl View {
    /// The same, whose memory, and that of views that are made of it, is charged to `memory`.
    pub(super) fn charged_to(self, memory: Option<&Budget>) -> View {
        let Some(memory) = memory else { return self };
        let inner = Inner { memory: Some(memory.clone()), ..(*self.0).clone() };
        inner.charge();
        View(std::sync::Arc::new(inner))
    }

    /// Bytes of memory that it takes by itself.
    pub(crate) fn own_memory(&self) -> u64 {
        let base = self.0.base.as_ref().map_or(0, |base| base.memory_bytes());
        self.overlay().memory_bytes + self.index_bytes() + base
    }

    /// Bytes of memory that all versions of its dataset take which anybody in this process has; its own, where they are not
    /// counted.
    pub(crate) fn memory(&self) -> u64 {
        self.0.memory.as_ref().map_or_else(|| self.own_memory(), Budget::used)
    }
}
