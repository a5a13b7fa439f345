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

/// What a record of the topic is to this rule: a life's epoch record, or its announcement of a version.
pub type Step = (Life, Option<Version>);

/// Whether a window at the end of the topic, in offset order, is long enough that a [`Succession`] over it finds the same
/// last valid announcement as over the whole topic. Where it is not, step back further, to the beginning at the most.
///
/// It is, if a valid announcement stands behind a valid epoch record of its life: a life that was superseded before its
/// own epoch record announces nothing, since it reads that record back as valid first. Or if more announcements of one
/// life are valid than one transaction can have (see [`MAX_RUN`]). From there on every record is judged as it should be.
///
/// What is judged superseded shows nothing, not even by its number: the window may begin with the epoch record of a life
/// that lost the race for its epoch, which hides the one that won.
pub fn window_is_enough(window: impl IntoIterator<Item = Step>) -> bool {
    let mut succession = Succession::default();
    let mut began = None;
    let mut announced: Vec<(Life, usize)> = Vec::new();
    for (life, version) in window {
        let Some(version) = version else {
            if succession.epoch(life) == Verdict::Valid {
                began = Some(life);
            }
            continue;
        };
        if succession.announcement(life, version) != Verdict::Valid {
            continue;
        }
        if began == Some(life) {
            return true;
        }
        let count = match announced.iter_mut().find(|(other, _)| *other == life) {
            Some((_, count)) => count,
            None => {
                announced.push((life, 0));
                &mut announced.last_mut().expect("just pushed").1
            }
        };
        *count += 1;
        if *count > MAX_RUN {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        let announcement = |life, version| (life, Some(Version(version)));
        let epoch_record = |life| (life, None);
        let (one, two) = (life(1, 1), life(2, 2));
        let run = |count| (1..=count).map(|version| announcement(life(1, 1), version));
        assert!(!window_is_enough(run(MAX_RUN as u64)));
        assert!(window_is_enough(run(MAX_RUN as u64 + 1)));
        assert!(!window_is_enough([epoch_record(two)]), "the last valid announcement lies before it");
        assert!(window_is_enough([epoch_record(one), announcement(one, 1), epoch_record(two)]));
        assert!(!window_is_enough([announcement(one, 1), epoch_record(one)]), "the order matters");
        let superseded = [epoch_record(one), epoch_record(two), announcement(one, 7)];
        assert!(
            !window_is_enough(superseded),
            "life 1 announced before it, and what it says here does not count"
        );
        assert!(window_is_enough(superseded.into_iter().chain([announcement(two, 7)])));
        let lost = epoch_record(life(1, 9));
        assert!(!window_is_enough([lost].into_iter().chain(run(9))), "the window hides that life 1 won");
    }

    /// The last valid announcement of a topic, by its place.
    fn last_valid(topic: &[Step]) -> Option<usize> {
        let mut succession = Succession::default();
        let mut last = None;
        for (at, (life, version)) in topic.iter().enumerate() {
            match version {
                None => {
                    succession.epoch(*life);
                }
                Some(version) if succession.announcement(*life, *version) == Verdict::Valid => {
                    last = Some(at)
                }
                Some(_) => {}
            }
        }
        last
    }

    /// A writer as `recover` and `announce` drive it.
    #[derive(Clone, Debug)]
    struct Writer {
        life: Life,
        next: Version,
        /// Its epoch record is committed; before that it has only looked at the topic.
        began: bool,
    }

    #[derive(Clone, Debug)]
    enum Turn {
        /// Somebody reads the topic, to begin a life.
        Look,
        /// One of those commits its epoch record, and reads it back.
        Begin(usize),
        /// A life announces so many versions in one transaction, and reads them back. Its records lie where it wrote
        /// them, which another's epoch record may come between.
        Announce { who: usize, count: usize, between: Option<usize> },
    }

    fn turn() -> impl Strategy<Value = Turn> {
        let between = prop::option::weighted(0.2, 0usize..6);
        prop_oneof![
            2 => Just(Turn::Look),
            2 => (0usize..6).prop_map(Turn::Begin),
            5 => (0usize..6, 1..=MAX_RUN, between)
                .prop_map(|(who, count, between)| Turn::Announce { who, count, between }),
        ]
    }

    #[derive(Default)]
    struct Topic {
        records: Vec<Step>,
        writers: Vec<Writer>,
        made: u128,
    }

    impl Topic {
        fn highest(&self) -> Succession {
            let mut succession = Succession::default();
            for (life, version) in &self.records {
                match version {
                    None => succession.epoch(*life),
                    Some(version) => succession.announcement(*life, *version),
                };
            }
            succession
        }

        fn begin(&mut self, who: usize) {
            let Some(mut writer) = self.writers.get(who).cloned().filter(|writer| !writer.began) else {
                return;
            };
            let before = self.highest();
            self.records.push((writer.life, None));
            if before.clone().epoch(writer.life) != Verdict::Valid {
                self.writers.remove(who);
                return;
            }
            let last = last_valid(&self.records).and_then(|at| self.records[at].1);
            (writer.began, writer.next) = (true, last.unwrap_or_default().next());
            self.writers[who] = writer;
        }

        fn take(&mut self, turn: Turn) {
            match turn {
                Turn::Look => {
                    self.made += 1;
                    let epoch = self.records.iter().map(|(life, _)| life.epoch).max().unwrap_or(0) + 1;
                    let life = life(epoch, self.made);
                    self.writers.push(Writer { life, next: Version(0), began: false });
                }
                Turn::Begin(who) => self.begin(who),
                Turn::Announce { who, count, between } => {
                    let Some(writer) = self.writers.get(who).cloned().filter(|writer| writer.began) else {
                        return;
                    };
                    let mut next = writer.next;
                    for n in 0..count {
                        if let Some(other) = between.filter(|other| n == count / 2 && *other > who) {
                            self.begin(other);
                        }
                        self.records.push((writer.life, Some(next)));
                        next = next.next();
                    }
                    if self.highest().life() == Some(writer.life) {
                        self.writers[who].next = next;
                    } else {
                        self.writers.remove(who);
                    }
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        /// Whatever writers did that keep to the protocol: who judges a window that is enough finds what who judges the
        /// whole topic finds.
        #[test]
        fn judging_the_window_is_judging_the_whole_topic(turns in prop::collection::vec(turn(), 1..40)) {
            let mut topic = Topic::default();
            for turn in turns {
                topic.take(turn);
                let truth = last_valid(&topic.records);
                for start in 0..topic.records.len() {
                    let window = &topic.records[start..];
                    if window_is_enough(window.iter().copied()) {
                        prop_assert_eq!(
                            last_valid(window).map(|at| start + at), truth, "from {} of {:?}", start, topic.records
                        );
                    }
                }
            }
        }
    }
}
