//! Many keys at once: what a lookup waits for is memory, and here the waits of many lookups overlap.
//!
//! ```text
//!  32 keys:  hash all, ask for their slots -> read the slots, ask for their entries -> look each up as `get` does
//! ```
//!
//! Owns: the order of the steps. Does not own: lookup itself (`overlay`, `base`).

use super::read::Value;
use super::{Error, View};
use crate::format::index;

/// Keys whose waits overlap: more than a core has outstanding misses, few enough that what came first is still cached.
const AT_A_TIME: usize = 32;

impl View {
    /// Looks many keys up, in any order; the answers come in the order of the keys. What each costs in computing is what
    /// [`View::get`] costs; the waits for memory overlap, which is most of it where the dataset is larger than the
    /// processor's caches.
    ///
    /// # Errors
    /// As [`View::get`]; one key whose page is damaged fails all of them.
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> crate::Result<Vec<Option<Value<'_>>>> {
        let mut values = Vec::with_capacity(keys.len());
        for keys in keys.chunks(AT_A_TIME) {
            self.get_few(keys, &mut values)?;
        }
        Ok(values)
    }

    fn get_few<'a, K: AsRef<[u8]>>(
        &'a self,
        keys: &[K],
        values: &mut Vec<Option<Value<'a>>>,
    ) -> Result<(), Error> {
        let inner = &self.0;
        let mut hashes = [0; AT_A_TIME];
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = index::hash(key.as_ref());
            inner.overlay.prefetch(*hash);
            if let Some(base) = &inner.base {
                base.prefetch_slot(*hash);
            }
        }
        if let Some(base) = &inner.base {
            for (hash, _) in hashes.iter().zip(keys) {
                base.prefetch_entry(*hash);
            }
        }
        for (hash, key) in hashes.iter().zip(keys) {
            let found = inner.find_hashed(*hash, key.as_ref())?;
            values.push(match found {
                Some(found) => inner.value(&found)?,
                None => None,
            });
        }
        Ok(())
    }
}
