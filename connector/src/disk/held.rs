//! A lock on a file, let go of in so many words.

use std::fs::File;

/// A locked file. Closing alone would not free it at once: a child that this process starts at that moment has the file too,
/// from its fork to its exec, and a lock belongs to all who have it.
#[derive(Debug)]
pub(super) struct Held(pub(super) File);

impl Drop for Held {
    fn drop(&mut self) {
        // Where that fails the end of the process does it.
        let _ = self.0.unlock();
    }
}
