//! How far a client of an event stream is, as the ids of events say it.
//!
//! ```text
//! 7            it has version 7, whole
//! 7+8          it has 7, and some of the changes to 8: of each key what one of the two says
//! 7+8+9        ... and, since it came back, some of those to 9
//! 7+8.51ab20c1 of what is held of which history (`View::mark`); without that, of what is held now
//! ```
//!
//! Owns: these words. Does not own: what a client is sent by them (`changes`).

use std::fmt;

use crate::version::Version;
use crate::view::View;

/// Versions of which a client may have a part, before it has to read all anew. Each costs one more view to mend.
pub(super) const MOST_PARTS: usize = 4;

/// See above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// What it has, but for the keys in which one of `parts` differs.
    pub(super) whole: Version,
    /// Versions of which it may have a part.
    pub(super) parts: Vec<Version>,
    /// Of what.
    pub(super) mark: Option<u32>,
}

impl Seen {
    /// Who has this version, whole.
    pub(super) fn whole(view: &View) -> Seen {
        Seen { whole: view.version(), parts: Vec::new(), mark: Some(view.mark()) }
    }

    /// The same, and a part of `version`.
    pub(super) fn and(mut self, version: Version) -> Seen {
        if version != self.whole && !self.parts.contains(&version) {
            self.parts.push(version);
        }
        self
    }

    /// Reads an id. In a query, where a plus stands for a space, that counts as one.
    pub(super) fn read(text: &str) -> Option<Seen> {
        let (text, mark) = match text.split_once('.') {
            Some((text, mark)) if mark.len() == 8 && mark.bytes().all(|digit| digit.is_ascii_hexdigit()) => {
                (text, u32::from_str_radix(mark, 16).ok())
            }
            Some(_) => return None,
            None => (text, None),
        };
        let mut versions = text.split(['+', ' ']).map(|number| number.parse().ok().map(Version));
        let whole = Seen { whole: versions.next()??, parts: Vec::new(), mark };
        // One too many says all that more would.
        versions.try_fold(whole, |seen, version| {
            let version = version?;
            Some(if seen.parts.len() > MOST_PARTS { seen } else { seen.and(version) })
        })
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.whole)?;
        self.parts.iter().try_for_each(|part| write!(f, "+{part}"))?;
        self.mark.map_or(Ok(()), |mark| write!(f, ".{mark:08x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_as_it_was_written() {
        for (text, whole, parts, mark) in
            [("7", 7, &[][..], None), ("0+8", 0, &[8], None), ("7+8+9.0000a0b1", 7, &[8, 9], Some(0xa0b1))]
        {
            let seen = Seen::read(text).unwrap();
            let parts = parts.iter().copied().map(Version).collect();
            assert_eq!(seen, Seen { whole: Version(whole), parts, mark });
            assert_eq!(
                (seen.to_string(), Seen::read(&text.replace('+', " "))),
                (text.to_owned(), Some(seen))
            );
        }
        assert_eq!(Seen::read("7+8+7+8").unwrap().to_string(), "7+8", "each once");
        for bad in [
            "",
            "x",
            "-1",
            "+7",
            "7+",
            "7++8",
            "7 ",
            "7+x",
            "7.",
            "7.1",
            "7.+0000001",
            "7.000000000",
            ".00000001",
            "18446744073709551616",
        ] {
            assert_eq!(Seen::read(bad), None, "{bad:?}");
        }
    }
}
