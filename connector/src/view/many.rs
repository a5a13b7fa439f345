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
        self.get_each(keys, |_, value| {
            values.push(value);
            Ok::<_, crate::Error>(())
        })?;
        Ok(values)
    }

    /// As [`View::get_many`], and gives one value after the other: for who takes no more than so many bytes. A value that
    /// was written under another schema is a copy, whose size is not known before it is made.
    ///
    /// # Errors
    /// As [`View::get_many`]; what `take` says, which ends it.
    pub(crate) fn get_each<'a, 'k, K: AsRef<[u8]>, E: From<crate::Error>>(
        &'a self,
        keys: &'k [K],
        mut take: impl FnMut(&'k K, Option<Value<'a>>) -> Result<(), E>,
    ) -> Result<(), E> {
        keys.chunks(AT_A_TIME).try_for_each(|keys| self.get_few(keys, &mut take))
    }

    fn get_few<'a, 'k, K: AsRef<[u8]>, E: From<crate::Error>>(
        &'a self,
        keys: &'k [K],
        take: &mut impl FnMut(&'k K, Option<Value<'a>>) -> Result<(), E>,
    ) -> Result<(), E> {
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
        let find = |hash: u64, key: &K| -> Result<Option<Value<'a>>, Error> {
            match inner.find_hashed(hash, key.as_ref())? {
                Some(found) => inner.value(&found),
                None => Ok(None),
            }
        };
        for (hash, key) in hashes.iter().zip(keys) {
            take(key, find(*hash, key).map_err(crate::Error::from)?)?;
        }
        Ok(())
    }
}
