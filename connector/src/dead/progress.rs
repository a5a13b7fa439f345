//! How far a replay has come in one partition of a dead-letter topic: the next letter, and those before it that are left.
//!
//! ```text
//!   handled | left | handled | left left | handled |  new ...
//!            [5,6)            [9,12)                ^ next        committed as  (next, "left:…")
//! ```
//!
//! Letters that could not be replayed must not hold up those behind them, and must not be forgotten either. So the
//! position that is committed for the group moves on over them, and its note says which they are: as ranges, since what
//! fails for one reason mostly fails in a row. The next run takes them first. A note has little room (Kafka's
//! `offset.metadata.max.bytes`, 4,096): where it is full a replay ends, which is right then, for something else is wrong.
//!
//! Owns: both, and the note's form. Does not own: committing them (`replay`), showing them (`fate`).

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::fate::Fate;
use crate::kafka::Committed;

/// What a note of ours begins with.
const LEFT: &str = "left:";
/// Longest note, below the broker's limit by what a last range may grow.
const MAX_NOTE: usize = 4_000;

/// Offsets from the first up to, not including, the second; all letters between are left.
type Range = (i64, i64);

/// The note has no room for one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The progress in one partition. Letters are decided in the order of their offsets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// From here on letters are new.
    next: i64,
    /// Left by former runs, and not reached by this one yet.
    old: VecDeque<Range>,
    /// Left by this run.
    left: Vec<Range>,
    /// The last letter that was handled, by this run or before: nothing is joined over it.
    handled: i64,
}

impl Progress {
    /// As it was committed, in a partition that reaches from the first of `range` to the second. What was committed beyond
    /// its end is of another topic of this name, which is no more: then this is a new one, and the answer true.
    pub fn within(committed: &Committed, (low, end): (i64, i64)) -> (Progress, bool) {
        match committed.offset.is_some_and(|offset| offset > end) {
            true => (Progress::of(&Committed::default(), low), true),
            false => (Progress::of(committed, low), false),
        }
    }

    /// As it was committed, in a partition that begins at `low`. A note that is not ours says nothing.
    fn of(committed: &Committed, low: i64) -> Progress {
        let old = committed.note.strip_prefix(LEFT).and_then(decode).unwrap_or_default();
        let next = committed.offset.unwrap_or(low).max(low);
        let old = old.into_iter().filter(|(start, end)| *end > low && start < end && *end <= next);
        let old = old.map(|(start, end)| (start.max(low), end)).collect();
        Progress { next, old, left: Vec::new(), handled: -1 }
    }

    /// Where reading begins.
    pub fn start(&self) -> i64 {
        self.old.front().map_or(self.next, |(start, _)| *start)
    }

    /// Whether a letter is still to be decided. To be asked, as all else, in the order of offsets.
    pub fn is_open(&self, offset: i64) -> bool {
        offset >= self.next || self.old.iter().any(|(start, end)| (*start..*end).contains(&offset))
    }

    /// What became of a letter that is meant, before this run.
    pub fn fate(&self, offset: i64) -> Fate {
        if offset >= self.next {
            Fate::Waiting
        } else if self.is_open(offset) {
            Fate::Left
        } else {
            Fate::Handled
        }
    }

    /// A letter is replayed or dropped, or was before.
    pub fn handled(&mut self, offset: i64) {
        self.handled = offset;
        self.reach(offset + 1);
    }

    /// A letter is not meant.
    pub fn passed(&mut self, offset: i64) {
        self.reach(offset + 1);
    }

    /// A letter is left for a later run.
    ///
    /// # Errors
    /// [`Full`]; then nothing has changed.
    pub fn left(&mut self, offset: i64) -> Result<(), Full> {
        let before = self.clone();
        match self.left.last_mut() {
            // What lies between was not meant: that it counts as left as well changes nothing for it.
            Some((_, end)) if self.handled < *end => *end = offset + 1,
            _ => self.left.push((offset, offset + 1)),
        }
        self.reach(offset + 1);
        if self.note().len() > MAX_NOTE {
            *self = before;
            return Err(Full);
        }
        Ok(())
    }

    /// All letters below `to` are decided.
    pub fn reach(&mut self, to: i64) {
        self.next = self.next.max(to);
        while let Some((start, end)) = self.old.front_mut() {
            if *end > to {
                *start = (*start).max(to);
                break;
            }
            self.old.pop_front();
        }
    }

    /// What is to be committed: offset and note.
    pub fn position(&self) -> (i64, String) {
        (self.next, self.note())
    }

    fn note(&self) -> String {
        if self.left.is_empty() && self.old.is_empty() {
            return String::new();
        }
        let mut bytes = Vec::new();
        let mut last = 0;
        for (start, end) in self.left.iter().chain(&self.old) {
            put(&mut bytes, start - last);
            put(&mut bytes, end - start);
            last = *end;
        }
        format!("{LEFT}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// A varint: seven bits a byte, the lowest first, the highest bit says that there is more.
fn put(out: &mut Vec<u8>, number: i64) {
    let mut number = number as u64;
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn decode(note: &str) -> Option<Vec<Range>> {
    let bytes = URL_SAFE_NO_PAD.decode(note).ok()?;
    let mut numbers = Vec::new();
    let (mut number, mut shift) = (0u64, 0);
    for byte in bytes {
        if shift > 56 {
            return None;
        }
        number |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            numbers.push(i64::try_from(number).ok()?);
            (number, shift) = (0, 0);
        }
    }
    if shift != 0 || !numbers.len().is_multiple_of(2) {
        return None;
    }
    let mut last = 0i64;
    let ranges = numbers.chunks_exact(2).map(|pair| {
        let start = last.checked_add(*pair.first()?)?;
        last = start.checked_add(*pair.last()?)?;
        Some((start, last))
    });
    ranges.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn committed(progress: &Progress) -> Committed {
        let (offset, note) = progress.position();
        Committed { offset: Some(offset), note }
    }

    #[test]
    fn what_is_left_comes_first_and_what_is_handled_never_again() {
        let mut first = Progress::of(&Committed::default(), 3);
        assert_eq!(first.start(), 3);
        for offset in 3..10 {
            assert!(first.is_open(offset));
            match offset {
                5 | 6 => first.left(offset).unwrap(),
                8 => first.passed(offset),
                _ => first.handled(offset),
            }
        }
        first.reach(11);
        let second = Progress::of(&committed(&first), 0);
        assert_eq!((second.start(), second.position().0), (5, 11));
        let open: Vec<i64> = (0..15).filter(|offset| second.is_open(*offset)).collect();
        assert_eq!(open, [5, 6, 11, 12, 13, 14]);
        // Retention has taken one of them since.
        assert_eq!(Progress::of(&committed(&first), 6).start(), 6);
        assert_eq!(Progress::of(&committed(&first), 20).position(), (20, String::new()));
    }

    #[test]
    fn what_was_committed_of_a_topic_that_is_no_more_says_nothing() {
        let committed = Committed { offset: Some(7), note: String::new() };
        let (progress, anew) = Progress::within(&committed, (0, 7));
        assert_eq!((progress.start(), anew), (7, false));
        let (progress, anew) = Progress::within(&committed, (2, 6));
        assert_eq!((progress.start(), progress.fate(5), anew), (2, Fate::Waiting, true));
    }

    #[test]
    fn many_in_a_row_take_no_room_and_too_many_holes_are_refused() {
        let mut row = Progress::of(&Committed::default(), 0);
        for offset in (0..100_000).step_by(2) {
            row.left(offset).unwrap();
        }
        assert!(row.position().1.len() < 20, "{:?}", row.position());
        let mut holes = Progress::of(&Committed::default(), 1_000_000);
        let mut offset = 1_000_000;
        let full = loop {
            let before = holes.clone();
            if holes.left(offset).is_err() {
                break before;
            }
            holes.handled(offset + 1);
            offset += 2;
        };
        assert_eq!(holes, full, "a refusal changes nothing");
        assert!((1_000..3_000).contains(&((offset - 1_000_000) / 2)), "{offset}");
        assert!(holes.position().1.len() < 4_096);
        holes.handled(offset);
        assert!(!Progress::of(&committed(&holes), 0).is_open(offset));
    }

    /// Made once, by other code, of what is said above.
    fn golden() -> std::path::PathBuf {
        [env!("CARGO_MANIFEST_DIR"), "..", "tests", "golden", "left", "v1", "note.txt"].iter().collect()
    }

    fn sample() -> Progress {
        Progress { next: 5_000, old: [(900, 1_000)].into(), left: vec![(5, 7), (300, 301)], handled: 899 }
    }

    #[test]
    fn a_note_reads_as_it_was_written() {
        let note = std::fs::read_to_string(golden()).unwrap();
        assert_eq!(sample().note(), note, "this build writes what that one wrote");
        let read = Progress::of(&Committed { offset: Some(5_000), note }, 0);
        assert_eq!(read.old, [(5, 7), (300, 301), (900, 1_000)]);
        assert_eq!(read.position().0, 5_000);
    }

    #[test]
    fn a_note_of_somebody_else_says_nothing() {
        for note in ["", "left:", "left:!", "left:gA", "left:AQ", "hello", "left:__________8"] {
            let found = Progress::of(&Committed { offset: Some(7), note: note.to_owned() }, 0);
            assert_eq!((found.start(), found.position()), (7, (7, String::new())), "{note}");
        }
    }

    proptest! {
        /// Any number of runs, each cut short anywhere: what is open is what no run has handled or passed.
        #[test]
        fn runs_agree_with_a_set(runs in proptest::collection::vec(
            proptest::collection::vec(0u8..4, 1..60), 1..6,
        )) {
            let mut open: BTreeSet<i64> = (0..200).collect();
            let mut progress = Progress::of(&Committed::default(), 0);
            for run in runs {
                let letters: Vec<i64> = (0..200).filter(|offset| *offset >= progress.start()).collect();
                let mut decided = run.into_iter();
                for offset in letters {
                    prop_assert_eq!(progress.is_open(offset), open.contains(&offset), "{}", offset);
                    if !progress.is_open(offset) {
                        progress.handled(offset);
                        continue;
                    }
                    match decided.next() {
                        None => break,
                        Some(0) => progress.left(offset).unwrap(),
                        Some(_) => {
                            progress.handled(offset);
                            open.remove(&offset);
                        }
                    }
                }
                progress = Progress::of(&committed(&progress), 0);
            }
            for offset in 0..200 {
                prop_assert_eq!(progress.is_open(offset), open.contains(&offset), "{}", offset);
            }
        }
    }
}
