//! The comparison: what a consumer holds against what it should hold, key by key.
//!
//! Owns: finding every difference between two sequences in key order. Does not own: where either comes from, or what
//! makes two values the same.

use std::cmp::Ordering;
use std::fmt;

/// Differences that are named; the rest are counted.
const NAMED: usize = 5;

/// How what is held differs from what is expected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Keys compared.
    pub compared: u64,
    /// Keys expected and not held.
    pub missing: u64,
    /// Keys held and not expected.
    pub unexpected: u64,
    /// Keys with another value than expected.
    pub different: u64,
    /// Of the first few, what is wrong.
    pub named: Vec<String>,
}

impl Differences {
    /// Whether there are none.
    pub fn none(&self) -> bool {
        self.missing == 0 && self.unexpected == 0 && self.different == 0
    }

    fn name(&mut self, key: &[u8], what: impl fmt::Display) {
        if self.named.len() < NAMED {
            self.named.push(format!("{}: {what}", String::from_utf8_lossy(key)));
        }
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.none() {
            return write!(f, "{} records, all as they must be", self.compared);
        }
        let (missing, unexpected, different) = (self.missing, self.unexpected, self.different);
        write!(f, "{missing} missing, {unexpected} unexpected, {different} different of {}", self.compared)?;
        for named in &self.named {
            write!(f, "\n  {named}")?;
        }
        Ok(())
    }
}

/// Compares two sequences, each in the order of its keys' bytes and with no key twice. `judge` says what is wrong with
/// a value that is held; nothing, if it is the one expected.
///
/// # Errors
/// The first error of what is held.
pub fn compare<K, V, L, W, E>(
    held: impl IntoIterator<Item = Result<(K, V), E>>,
    expected: impl IntoIterator<Item = (L, W)>,
    mut judge: impl FnMut(&V, &W) -> Option<String>,
) -> Result<Differences, E>
where
    K: AsRef<[u8]>,
    L: AsRef<[u8]>,
{
    let mut held = held.into_iter();
    let mut expected = expected.into_iter();
    let mut found = Differences::default();
    let (mut have, mut want) = (held.next().transpose()?, expected.next());
    loop {
        let order = match (&have, &want) {
            (None, None) => return Ok(found),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((key, _)), Some((other, _))) => key.as_ref().cmp(other.as_ref()),
        };
        found.compared += 1;
        match order {
            Ordering::Less => {
                if let Some((key, _)) = &have {
                    found.unexpected += 1;
                    found.name(key.as_ref(), "held, and nobody wrote it or it was deleted");
                }
            }
            Ordering::Greater => {
                if let Some((key, _)) = &want {
                    found.missing += 1;
                    found.name(key.as_ref(), "written, and not held");
                }
            }
            Ordering::Equal => {
                if let (Some((key, value)), Some((_, other))) = (&have, &want)
                    && let Some(wrong) = judge(value, other)
                {
                    found.different += 1;
                    found.name(key.as_ref(), wrong);
                }
            }
        }
        if order.is_le() {
            have = held.next().transpose()?;
        }
        if order.is_ge() {
            want = expected.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differences(held: &[(&str, i32)], expected: &[(&str, i32)]) -> Differences {
        let held = held.iter().map(|&pair| Ok::<_, ()>(pair));
        let judge =
            |have: &i32, want: &i32| (have != want).then(|| format!("{have} is held, {want} was written"));
        compare(held, expected.iter().copied(), judge).unwrap()
    }

    #[test]
    fn equal_is_equal() {
        let same = [("a", 1), ("b", 2)];
        let found = differences(&same, &same);
        assert!(found.none());
        assert_eq!(found.to_string(), "2 records, all as they must be");
        assert!(differences(&[], &[]).none());
    }

    #[test]
    fn each_kind_of_difference_is_found_and_named() {
        let found = differences(&[("a", 1), ("b", 2), ("d", 4)], &[("b", 3), ("c", 3), ("d", 4), ("e", 5)]);
        assert_eq!((found.missing, found.unexpected, found.different, found.compared), (2, 1, 1, 5));
        assert!(!found.none());
        let text = found.to_string();
        for named in ["a: held", "b: 2 is held, 3 was written", "c: written", "e: written"] {
            assert!(text.contains(named), "{text}");
        }
    }

    #[test]
    fn one_side_empty_is_no_agreement() {
        assert_eq!(differences(&[], &[("a", 1)]).missing, 1);
        assert_eq!(differences(&[("a", 1)], &[]).unexpected, 1);
        let many: Vec<(String, i32)> = (0..100).map(|n| (format!("{n:03}"), n)).collect();
        let many: Vec<(&str, i32)> = many.iter().map(|(key, n)| (key.as_str(), *n)).collect();
        let found = differences(&many, &[]);
        assert_eq!((found.unexpected, found.named.len()), (100, NAMED));
    }

    #[test]
    fn an_error_of_what_is_held_is_not_taken_for_its_end() {
        let held = [Ok(("a", 1)), Err("a page is damaged")];
        let found = compare(held, [("a", 1)], |_, _| None);
        assert_eq!(found, Err("a page is damaged"));
    }
}
