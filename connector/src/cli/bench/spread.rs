//! How long each of very many short things took, without a list of them: where a bench looks at its own memory, a list of
//! millions would be most of it.

use std::time::Duration;

/// A doubling has two to the power of this many steps: a duration is told to a sixty-fourth.
const STEP_BITS: u32 = 6;
const STEPS: usize = 1 << STEP_BITS;
/// Of all nanoseconds that a `u64` can say.
const PLACES: usize = (u64::BITS - STEP_BITS + 1) as usize * STEPS;

/// How many took how long.
#[derive(Debug)]
pub(super) struct Spread {
    counts: Vec<u64>,
    of: u64,
}

impl Spread {
    pub(super) fn new() -> Spread {
        Spread { counts: vec![0; PLACES], of: 0 }
    }

    pub(super) fn add(&mut self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(place(nanos)) {
            *count += 1;
        }
        self.of += 1;
    }

    /// How many there were.
    pub(super) fn of(&self) -> u64 {
        self.of
    }

    /// The microseconds at a share of them: 0.5 the median. Less than a sixty-fourth too low.
    pub(super) fn quantile_us(&self, share: f64) -> f64 {
        let at = ((self.of as f64 * share) as u64).min(self.of.saturating_sub(1));
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen > at
        });
        found.map_or(0.0, |place| lowest(place) as f64 / 1e3)
    }
}

/// Below two doublings' worth of steps each nanosecond has a place of its own; above it what is left of the number once it is
/// shifted down to that.
fn place(nanos: u64) -> usize {
    let shift = (u64::BITS - nanos.leading_zeros()).saturating_sub(STEP_BITS + 1);
    shift as usize * STEPS + (nanos >> shift) as usize
}

/// The lowest number that has this place.
fn lowest(place: usize) -> u64 {
    let shift = (place / STEPS).saturating_sub(1);
    ((place - shift * STEPS) as u64) << shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_a_place_and_places_are_in_order() {
        let numbers = (0..u64::BITS).flat_map(|bit| {
            let power = 1u64 << bit;
            [power - 1, power, power + power / 3]
        });
        let mut before = 0;
        for number in numbers.chain([u64::MAX]) {
            let place = place(number);
            assert!(place >= before && place < PLACES, "{number} has place {place} after {before}");
            let lowest = lowest(place);
            assert!(
                lowest <= number && number - lowest <= number / STEPS as u64,
                "{number} is told as {lowest}"
            );
            before = place;
        }
    }

    #[test]
    fn quantiles_are_those_of_the_list() {
        let mut spread = Spread::new();
        assert_eq!(spread.quantile_us(0.5), 0.0, "of nothing");
        for micros in 1..=1_000 {
            spread.add(Duration::from_micros(micros));
        }
        assert_eq!(spread.of(), 1_000);
        for (share, wanted) in [(0.0, 1.0), (0.5, 501.0), (0.999, 1_000.0), (1.0, 1_000.0)] {
            let told = spread.quantile_us(share);
            assert!(told <= wanted && wanted - told <= wanted / 64.0, "{share}: {told} and not {wanted}");
        }
    }
}
