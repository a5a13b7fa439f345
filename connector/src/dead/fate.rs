//! What replays have made of letters so far, for who lists them.
//!
//! A replay does not mark a letter: how far it has come is in the offsets of its group (`progress`). Each selection has a
//! group of its own, so a list looks into the one that a replay of the same selection has, and into that of all letters.
//!
//! Owns: asking, and the words. Does not own: what progress means (`progress`), where it is shown (`listing`).

use super::Error;
use super::progress::Progress;
use super::select::Selection;
use super::topic::Topic;
use crate::kafka::{self, Group};

/// What replays have made of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// None has come to it.
    Waiting,
    /// One could not handle it; the next tries again.
    Left,
    /// It was replayed, or dropped since it was stale or replayed before.
    Handled,
}

impl Fate {
    /// As it is spelled in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Fate::Waiting => "waiting",
            Fate::Left => "left",
            Fate::Handled => "handled",
        }
    }
}

/// What replays have made of the letters of a topic: those of the same selection, and those of all letters.
#[derive(Debug)]
pub struct Replays {
    /// Of each group, by partition.
    of: Vec<Vec<Progress>>,
}

impl Replays {
    /// As far as it is committed; `None` without the right to ask. Blocks.
    ///
    /// # Errors
    /// Kafka's.
    pub fn look(
        options: &kafka::Options,
        selection: &Selection,
        topic: &Topic,
    ) -> Result<Option<Replays>, Error> {
        let all = Selection { dataset: selection.dataset.clone(), ..Selection::default() };
        let mut groups = vec![all.group(), selection.group()];
        groups.dedup();
        let failed = |source| Error::Kafka { doing: "asking how far replays came".to_owned(), source };
        let progress = |group: &String| {
            let group = Group::new(options, group).map_err(failed)?;
            let committed = group.committed(&topic.name, topic.partitions()).map_err(failed)?;
            let within = committed.iter().zip(&topic.ranges);
            Ok(within.map(|(committed, range)| Progress::within(committed, *range).0).collect())
        };
        match groups.iter().map(progress).collect::<Result<_, Error>>() {
            Ok(of) => Ok(Some(Replays { of })),
            // Who may read letters need not be one who may replay them.
            Err(Error::Kafka { source: source @ kafka::Error::Denied { .. }, .. }) => {
                tracing::warn!(error = %source, "what replays have made of the letters is not known");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What became of a letter that is meant: the most that any of them made of it.
    pub fn fate(&self, partition: i32, offset: i64) -> Fate {
        let at = usize::try_from(partition).ok();
        let each = self.of.iter().filter_map(|group| Some(group.get(at?)?.fate(offset)));
        each.max().unwrap_or(Fate::Waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Committed;

    #[test]
    fn a_list_shows_what_any_of_the_replays_has_made_of_a_letter() {
        let new = || Progress::within(&Committed::default(), (0, 100)).0;
        let mut all = new();
        (0..5).for_each(|offset| all.handled(offset));
        all.left(5).unwrap();
        let mut some = new();
        (0..5).for_each(|offset| some.passed(offset));
        some.handled(5);
        some.left(6).unwrap();
        let replays = |of: &[&Progress]| {
            let committed = of.iter().map(|progress| {
                let (offset, note) = progress.position();
                Committed { offset: Some(offset), note }
            });
            Replays {
                of: committed.map(|committed| vec![Progress::within(&committed, (0, 100)).0]).collect(),
            }
        };
        let fates = |of: &[&Progress]| (4..8).map(|at| replays(of).fate(0, at)).collect::<Vec<_>>();
        use Fate::{Handled, Left, Waiting};
        assert_eq!(fates(&[&all]), [Handled, Left, Waiting, Waiting]);
        assert_eq!(fates(&[&all, &some]), [Handled, Handled, Left, Waiting]);
        assert_eq!(replays(&[&all]).fate(1, 0), Waiting, "a partition that was added since");
    }
}
