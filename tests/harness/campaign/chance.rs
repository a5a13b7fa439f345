//! Chance from one seed, so that a run that failed can be tried again.

use stillwell::clock::Entropy;

/// A seeded source of choices.
#[derive(Clone, Debug)]
pub struct Chance(Entropy);

impl Chance {
    /// The same seed makes the same choices.
    pub fn seeded(seed: u64) -> Chance {
        Chance(Entropy::seeded(seed))
    }

    /// A number below `bound`, which is above 0.
    pub fn below(&self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True once in `n` times.
    pub fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `choices`, which are not empty.
    pub fn pick<'a, T>(&self, choices: &'a [T]) -> &'a T {
        let at = self.below(choices.len() as u64) as usize;
        choices.get(at).expect("below their number")
    }

    /// A source of its own for another thread, so that neither hears of the other's choices.
    pub fn fork(&self) -> Chance {
        Chance::seeded(self.0.next_u64())
    }

    /// The next seed.
    pub fn next_seed(&self) -> u64 {
        // Short enough to be typed.
        self.0.next_u64() >> 32
    }
}

/// The seed of `STILLWELL_SEED`, else a new one.
pub fn seed() -> u64 {
    match std::env::var("STILLWELL_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("STILLWELL_SEED is a number, not {text:?}")),
        Err(_) => Entropy::system().next_u64() >> 32,
    }
}
