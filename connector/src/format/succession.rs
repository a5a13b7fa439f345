//! Which announcements count: the one rule by which readers, recovery and the writer's own read-back judge a record
//! of the announcement topic.
//!
//! Valid is an announcement whose life is the highest seen before it and whose version is above the last valid one.
//! Kafka's fencing alone does not give this: a late duplicate EndTxn may commit what its producer aborted, and a
//! producer that was fenced may still have had a commit under way.
//!
//! Owns: the order of lives and versions. Does not own: reading the topic (`kafka`), or what follows from it.

use crate::version::{Life, Version};

/// Most announcements in one transaction.
///
/// A superseded life can write at most one more transaction: after each it reads back up to its own commit, finds the
/// newer life's epoch record, and ends. So of a run of more than this many announcements by one life at most the last
/// transaction can be invalid, and the record that makes it so lies within the run. This is what lets a reader stop
/// stepping back, see [`window_is_enough`].
pub const MAX_RUN: usize = 4;

/// What became of a record of the announcement topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It counts.
    Valid,
    /// A newer life had begun before it; nobody may act on it.
    Superseded,
    /// Its version was announced already: the record is a duplicate.
    Repeated,
}

/// The fold over the topic's records, in offset order.
#[derive(Clone, Debug, Default)]
pub struct Succession {
    life: Option<Life>,
    of_this_life: Version,
}

impl Succession {
    /// The highest life seen.
    pub fn life(&self) -> Option<Life> {
        self.life
    }

    /// Takes an epoch record. Of two with one epoch the first wins.
    pub fn epoch(&mut self, life: Life) -> Verdict {
        match self.life {
            // The same life again is its own record, read twice or after its first announcement.
            Some(seen) if seen == life => Verdict::Valid,
            Some(seen) if life.epoch <= seen.epoch => Verdict::Superseded,
            _ => {
                self.life = Some(life);
                // A life begins by reading the truth, so its first announcement is right whatever came before; what
                // came before may have been judged from too short a window.
                self.of_this_life = Version(0);
                Verdict::Valid
            }
        }
    }

    /// Takes an announcement. One of a life not seen before counts as that life's epoch record too: the record itself
    /// may lie before the place where reading began.
    pub fn announcement(&mut self, life: Life, version: Version) -> Verdict {
        if self.epoch(life) != Verdict::Valid {
            return Verdict::Superseded;
        }
        if version <= self.of_this_life {
            return Verdict::Repeated;
        }
        self.of_this_life = version;
        Verdict::Valid
    }
}

/// Whether a window at the end of the topic, as (life, is an epoch record) in offset order, is long enough that a
/// [`Succession`] over it finds the same last valid announcement as over the whole topic. Where it is not, step back
/// further, to the beginning at the most.
///
/// It is, if it holds one life's epoch record with an announcement of that life behind it (a life announces only
/// after it has read its epoch record back as valid), or more announcements of one life than one transaction can have
/// (see [`MAX_RUN`]): from there on every record is judged as it should be.
pub fn window_is_enough(window: impl IntoIterator<Item = (Life, bool)>) -> bool {
    let mut lives: Vec<(Life, bool, usize)> = Vec::new();
    for (life, is_epoch_record) in window {
        let seen = match lives.iter_mut().find(|(other, ..)| *other == life) {
            Some(seen) => seen,
            None => {
                lives.push((life, false, 0));
                lives.last_mut().expect("just pushed")
            }
        };
        if is_epoch_record {
            seen.1 = true;
        } else {
            seen.2 += 1;
            if seen.1 || seen.2 > MAX_RUN {
                return true;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(epoch: u64, writer: u128) -> Life {
        Life { epoch, writer: uuid::Uuid::from_u128(writer) }
    }

    #[test]
    fn a_newer_life_ends_the_older_ones() {
        let mut topic = Succession::default();
        assert_eq!(topic.epoch(life(1, 1)), Verdict::Valid);
        assert_eq!(topic.announcement(life(1, 1), Version(1)), Verdict::Valid);
        assert_eq!(topic.epoch(life(2, 2)), Verdict::Valid);
        assert_eq!(topic.announcement(life(1, 1), Version(2)), Verdict::Superseded);
        assert_eq!(topic.announcement(life(2, 2), Version(2)), Verdict::Valid);
        assert_eq!(topic.announcement(life(2, 2), Version(2)), Verdict::Repeated);
        assert_eq!(topic.life(), Some(life(2, 2)));
    }

    #[test]
    fn of_two_lives_with_one_epoch_the_first_wins() {
        let mut topic = Succession::default();
        assert_eq!(topic.epoch(life(3, 1)), Verdict::Valid);
        assert_eq!(topic.epoch(life(3, 2)), Verdict::Superseded);
        assert_eq!(topic.announcement(life(3, 2), Version(1)), Verdict::Superseded);
        assert_eq!(topic.announcement(life(3, 1), Version(1)), Verdict::Valid);
    }

    #[test]
    fn a_reader_that_begins_late_takes_the_life_from_the_announcement() {
        let mut topic = Succession::default();
        assert_eq!(topic.announcement(life(5, 5), Version(70)), Verdict::Valid);
        assert_eq!(topic.announcement(life(4, 4), Version(71)), Verdict::Superseded);
    }

    #[test]
    fn a_superseded_record_at_the_start_of_a_window_does_not_hide_the_next_life() {
        // Life 1 was superseded before the window began; its version 50 is judged valid for want of knowledge.
        let mut topic = Succession::default();
        assert_eq!(topic.announcement(life(1, 1), Version(50)), Verdict::Valid);
        assert_eq!(topic.announcement(life(2, 2), Version(50)), Verdict::Valid);
        assert_eq!(topic.announcement(life(2, 2), Version(51)), Verdict::Valid);
    }

    #[test]
    fn a_window_is_enough_once_it_cannot_be_one_superseded_transaction() {
        let run = |count| std::iter::repeat_n((life(1, 1), false), count);
        assert!(!window_is_enough(run(MAX_RUN)));
        assert!(window_is_enough(run(MAX_RUN + 1)));
        assert!(!window_is_enough([(life(2, 2), true)]), "the last valid announcement lies before it");
        assert!(window_is_enough([(life(1, 1), true), (life(1, 1), false), (life(2, 2), true)]));
        assert!(!window_is_enough([(life(1, 1), false), (life(1, 1), true)]), "the order matters");
    }
}
