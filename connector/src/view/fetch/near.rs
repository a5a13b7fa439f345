//! A delta that needs no fetching: it is in the cache, it came with its announcement, or it lies in a folder.
//!
//! Each trip to a blocking thread and back costs what it takes to wake one, a quarter of a millisecond and more on a busy machine. So
//! what can be had without waiting for anybody is brought, and applied, in one.
//!
//! Owns: what that is. Does not own: all other ways (`fetch`), which are taken where this has nothing, and say why they fail.

use std::fs::File;
use std::io::Read as _;

use bytes::Bytes;

use super::{Fetcher, inline_is_damaged, write};
use crate::version::{BlobRef, DeltaRef};
use crate::view::{Error, FileName, Held, Identity};

/// Most bytes of a blob that is read whole.
const WHOLE: u64 = 4 << 20;

impl Fetcher {
    /// It, in the cache; `None`: it is to be fetched. Blocks.
    pub(super) fn at_hand(
        &self,
        identity: &Identity,
        delta: &DeltaRef,
        inline: Option<Bytes>,
    ) -> Result<Option<Held>, Error> {
        let name = FileName::delta(delta);
        if let Some(held) = self.cache.find(identity, &name)? {
            return Ok(Some(held));
        }
        let within = inline.is_some();
        let Some(stored) = inline.or_else(|| self.in_folder(&delta.blob)) else { return Ok(None) };
        let url = self.store.absolute_url(&delta.blob.name);
        let out = self.cache.temporary(identity)?;
        match write(out, name.kind, &delta.blob, &url, std::iter::once(stored)) {
            Ok(temporary) => self.cache.keep(identity, &name, temporary).map(Some),
            Err(Error::CorruptBlob { detail, .. }) => {
                // A damaged one of the folder is read again by who warns of it.
                if within {
                    inline_is_damaged(&delta.blob, &detail);
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The stored form of a blob that is not large, where the store is a folder. One that cannot be read is left to who says why.
    fn in_folder(&self, blob: &BlobRef) -> Option<Bytes> {
        if self.local || blob.bytes > WHOLE {
            return None;
        }
        let mut stored = Vec::with_capacity(blob.bytes as usize);
        // One byte more shows that it is another.
        let file = File::open(self.store.file(&blob.name)?).ok()?;
        file.take(blob.bytes + 1).read_to_end(&mut stored).ok()?;
        Some(stored.into())
    }
}
