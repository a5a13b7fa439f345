//! How things are told: numbers of a thing, and the word that was probably meant.
//!
//! Owns: those two. Does not own: who tells what.

/// So many of a thing: `1 record`, `2 records`.
pub fn counted(number: u64, thing: &str) -> String {
    match number {
        1 => format!("1 {thing}"),
        _ => format!("{number} {thing}s"),
    }
}

/// The candidate that `word` was probably meant to be: a slip or two in a short word, more in a long one.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase().replace('-', "_");
    let near = |candidate: &&str| {
        let other = candidate.to_ascii_lowercase().replace('-', "_");
        let slips = strsim::damerau_levenshtein(&word, &other);
        let allowed = (word.chars().count().max(other.chars().count()) / 3).max(1);
        (slips <= allowed).then_some(slips)
    };
    candidates
        .into_iter()
        .filter_map(|candidate| Some((near(&candidate)?, candidate)))
        .min()
        .map(|(_, near)| near)
}

/// What of a list there is instead of `word`: the one that was probably meant, else all of a short list.
pub fn instead<'a>(word: &str, there: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(word, there.clone()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("there are: {}", there.into_iter().take(MOST_LISTED).collect::<Vec<_>>().join(", ")),
    }
}

/// Names in a hint.
const MOST_LISTED: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_understood_and_a_stranger_is_not() {
        let keys = ["max_batch_size", "max_batch_bytes", "batch_timeout"];
        assert_eq!(nearest("max_batchsize", keys), Some("max_batch_size"));
        assert_eq!(nearest("batch-timeout", keys), Some("batch_timeout"));
        assert_eq!(nearest("colour", keys), None);
        assert_eq!(instead("batch_timout", keys), "did you mean \"batch_timeout\"?");
        assert_eq!(instead("colour", keys), "there are: max_batch_size, max_batch_bytes, batch_timeout");
    }

    #[test]
    fn one_is_one() {
        assert_eq!([0, 1, 2].map(|number| counted(number, "record")), ["0 records", "1 record", "2 records"]);
    }
}
