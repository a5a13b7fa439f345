//! Tables of what is hashed already, or is a number.
//!
//! The standard library hashes such a key once more (SipHash), and a replay does that some times for each letter. Yet a key cannot
//! be taken as it is: those of records are hashed without a secret, so that whoever writes records can find any number whose
//! hashes end in the same bits, and a table of those would be a list. So each word is multiplied by a number that every table
//! draws for itself, and the halves of the product are laid over each other: which keys meet depends on that number then.
//!
//! Owns: the hashing. Does not own: what is in a table. None is gone through in its own order.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};

/// A map by such keys.
pub type Map<K, V> = HashMap<K, V, Secret>;
/// A set of such keys.
pub type Set<K> = HashSet<K, Secret>;

/// Most entries for which room is made before they come: some sixty megabytes of addresses, touched as they are needed.
const MOST_AHEAD: u64 = 1 << 19;

/// For how many entries to make room where so many may come.
pub fn room(entries: u64) -> usize {
    entries.min(MOST_AHEAD) as usize
}

/// What a table draws for itself.
#[derive(Clone)]
pub struct Secret {
    start: u64,
    by: u64,
}

impl Default for Secret {
    fn default() -> Secret {
        let chance = RandomState::new();
        // An even one would lose what it shifts out.
        Secret { start: chance.hash_one(0u64), by: chance.hash_one(1u64) | 1 }
    }
}

impl BuildHasher for Secret {
    type Hasher = Mixing;

    fn build_hasher(&self) -> Mixing {
        Mixing { state: self.start, by: self.by }
    }
}

/// A key on its way to its place.
pub struct Mixing {
    state: u64,
    by: u64,
}

/// The halves of `number` times `by`, one over the other.
fn folded(number: u64, by: u64) -> u64 {
    let product = u128::from(number) * u128::from(by);
    product as u64 ^ (product >> 64) as u64
}

impl Hasher for Mixing {
    fn finish(&self) -> u64 {
        // Once more: what differs in its highest bits alone would be no more than numbers at even distances.
        folded(self.state, self.by)
    }

    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word.iter_mut().zip(part).for_each(|(to, byte)| *to = *byte);
            self.write_u64(u64::from_le_bytes(word));
        }
        self.write_u64(bytes.len() as u64);
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.state = folded(self.state ^ number, self.by);
    }

    fn write_u128(&mut self, number: u128) {
        self.write_u64(number as u64);
        self.write_u64((number >> 64) as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Of 4,096 keys, how many places there are by the lowest 12 bits, and by the highest 7, which is where a table looks.
    fn places(keys: impl Iterator<Item = (u32, u128)>) -> (usize, usize) {
        let secret = Secret::default();
        let hashes: Vec<u64> = keys.map(|key| secret.hash_one(key)).collect();
        assert_eq!(hashes.len(), 4_096);
        let different = |place: &dyn Fn(u64) -> u64| {
            hashes.iter().map(|hash| place(*hash)).collect::<BTreeSet<_>>().len()
        };
        (different(&|hash| hash & 0xfff), different(&|hash| hash >> 57))
    }

    #[test]
    fn keys_that_agree_in_any_half_are_spread() {
        let numbers = || 0..4_096u128;
        let all: [(&str, Vec<(u32, u128)>); 5] = [
            ("the lower half is the same", numbers().map(|number| (0, number << 64)).collect()),
            ("the upper half is the same", numbers().map(|number| (0, number)).collect()),
            ("only the highest bits differ", numbers().map(|number| (0, number << 116)).collect()),
            (
                "only the highest bits of the lower half differ",
                numbers().map(|number| (0, number << 52)).collect(),
            ),
            ("only the place differs", numbers().map(|number| (number as u32, 7)).collect()),
        ];
        for (what, keys) in all {
            let (low, high) = places(keys.into_iter());
            // By chance they are some 2,589; taken as they are, one for the first of these.
            assert!(low > 2_200 && high > 100, "{what}: {low} and {high}");
        }
    }

    #[test]
    fn each_table_has_its_own_order_and_finds_what_is_in_it() {
        let of = |secret: &Secret| [0u64, 1, u64::MAX].map(|number| secret.hash_one(number));
        assert_ne!(of(&Secret::default()), of(&Secret::default()));
        let mut map = Map::default();
        for number in 0..1_000u128 {
            assert_eq!(map.insert((1u32, number), number), None);
        }
        assert_eq!(map.len(), 1_000);
        assert!((0..1_000).all(|number| map.get(&(1, number)) == Some(&number)));
        assert_eq!((map.get(&(1, 1_000)), map.get(&(0, 1))), (None, None));
        assert_eq!((room(7), room(u64::MAX)), (7, 1 << 19));
    }
}
