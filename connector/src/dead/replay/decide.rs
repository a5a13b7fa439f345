//! What is to become of letters, before anything is sent.
//!
//! Owns: the order of the questions: those that cost nothing first, staleness last. Does not own: what follows.

use tokio::runtime::Handle;

use super::{Limit, Replay};
use crate::dead::Error;
use crate::dead::held::Held;
use crate::dead::outcome::{Outcome, Why};
use crate::dead::stale::Standing;
use crate::format::letter::Elsewhere;
use crate::kafka::Timestamps;

/// What a topic takes. There are few.
fn limit<'a>(limits: &'a [(String, Limit)], topic: &str) -> Option<&'a Limit> {
    limits.iter().find(|(name, _)| name == topic).map(|(_, limit)| limit)
}

fn unfit(misfit: &str) -> Outcome {
    Outcome::Left(Why::Unfit, format!("as it is it does not fit: {misfit}; mend it (--fix)"))
}

impl Replay<'_> {
    /// What is to become of each letter.
    pub(super) fn decide(&mut self, letters: &mut [&mut Held]) -> Result<Vec<Outcome>, Error> {
        let mut outcomes: Vec<Option<Outcome>> = Vec::with_capacity(letters.len());
        for held in letters.iter_mut() {
            outcomes.push(self.refusal(held)?);
        }
        let mut before = Vec::new();
        if let Some(rows) = &mut self.rows {
            for (held, outcome) in letters.iter_mut().zip(&mut outcomes) {
                before.push(match outcome {
                    None => Some(rows.read(held)?),
                    Some(_) => None,
                });
                if outcome.is_none() && held.is_change() && self.asked.fix.is_none() {
                    let what = "it is a row of the dataset already: change it (--fix)";
                    *outcome = Some(Outcome::Left(Why::Unmended, what.to_owned()));
                }
            }
        }
        // What the program made something else of than it was.
        let mut changed = vec![false; letters.len()];
        if let Some(fix) = &self.asked.fix {
            let open: Vec<usize> =
                outcomes.iter().enumerate().filter(|(_, one)| one.is_none()).map(|(at, _)| at).collect();
            let given: Vec<&Held> =
                open.iter().filter_map(|at| letters.get(*at).map(|held| &**held)).collect();
            let mended = fix.mend(&self.options.clock, &given).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Error::NoProgram(error),
                _ => Error::Fix(error),
            })?;
            for (at, mended) in open.into_iter().zip(mended) {
                match (mended, letters.get_mut(at), outcomes.get_mut(at), changed.get_mut(at)) {
                    (Ok(value), Some(held), _, Some(changed)) => {
                        *changed = held.value != value;
                        held.value = value;
                    }
                    (Err(why), _, Some(outcome), _) => *outcome = Some(Outcome::Left(Why::Unmended, why)),
                    _ => {}
                }
            }
        }
        let mut misfits = vec![None; letters.len()];
        if let Some(rows) = &mut self.rows {
            let open = letters.iter_mut().zip(&outcomes).zip(before).zip(&mut misfits);
            for (((held, outcome), before), misfit) in open {
                if let (None, Some(before)) = (outcome, before) {
                    *misfit = rows.write(held, before)?;
                }
            }
        }
        if !self.asked.force && outcomes.iter().any(Option::is_none) {
            self.sources.catch_up(&self.stop, |_| {})?;
        }
        let now = self.options.clock.wall_ms();
        let open = letters.iter().zip(outcomes).zip(misfits).zip(changed);
        let decided = open.map(|(((held, outcome), misfit), is_changed)| match outcome {
            Some(outcome) => Ok(outcome),
            None => self.judge(held, misfit, is_changed, now),
        });
        decided.collect()
    }

    /// What speaks against a letter whatever the source holds. Fetches what of it lies in a blob.
    fn refusal(&self, held: &mut Held) -> Result<Option<Outcome>, Error> {
        let left = |why, said: String| Ok(Some(Outcome::Left(why, said)));
        // Also by force, and where the later letter is not selected: its record is this one, and newer.
        if let Some(last) = self.again.replaced(held.record, held.replays) {
            return Ok(Some(Outcome::Replaced(last)));
        }
        // What it lost to is newer still, or gave way to something that is.
        if held.is_outdone() && !self.asked.force {
            return Ok(Some(Outcome::Outdone));
        }
        if held.replays >= self.asked.max_replays {
            let most = self.asked.max_replays;
            return left(
                Why::Capped,
                format!("it was replayed {} times, and may be {most} times", held.replays),
            );
        }
        let Some(source) = &held.source else {
            return left(Why::Misplaced, "it does not say where the record was".to_owned());
        };
        let Some(limit) = limit(&self.limits, &source.topic) else {
            let topics = self.options.topics.join(", ");
            return left(
                Why::Misplaced,
                format!(
                    "it came from {}, which is no source of {} ({topics})",
                    source.topic, self.options.dataset
                ),
            );
        };
        if source.partition >= limit.partitions {
            return left(
                Why::Misplaced,
                format!(
                    "it came from {}[{}], and there is no such partition",
                    source.topic, source.partition
                ),
            );
        }
        // Into the runtime and out again is not for nothing.
        if held.elsewhere == Elsewhere::Nothing {
            return Ok(None);
        }
        let lost = Handle::current().block_on(held.fetch(&self.options.store))?;
        Ok(lost.map(|why| Outcome::Left(Why::BlobLost, why)))
    }

    /// The last questions, once its value is what will be sent, which is another than it was (`is_changed`); or a row of which
    /// nothing could be made, and why. `now`: milliseconds since the Unix epoch.
    fn judge(
        &mut self,
        held: &Held,
        misfit: Option<String>,
        is_changed: bool,
        now: i64,
    ) -> Result<Outcome, Error> {
        let no_row = |why: &String| Outcome::Left(Why::Unfit, format!("{why}; mend it (--fix)"));
        let Some(source) = &held.source else {
            return Ok(Outcome::Left(Why::Misplaced, "it does not say where the record was".to_owned()));
        };
        let limit = limit(&self.limits, &source.topic);
        let most = limit.map_or(0, |limit| limit.bytes);
        if held.size() > most {
            let what = format!("it has {} bytes, and {} takes {most}", held.size(), source.topic);
            return Ok(Outcome::Left(Why::TooLarge, what));
        }
        let takes = limit.map(|limit| limit.timestamps);
        // What is sent with the time of now is always taken.
        let refuses = |takes: &Timestamps| held.sent_at().is_some_and(|at| !takes.take(at, now));
        if let Some(takes) = takes.filter(refuses) {
            let what = format!(
                "{} takes no timestamp of more than {} ms ago or {} ms ahead, and it has {}",
                source.topic, takes.before_ms, takes.after_ms, held.timestamp
            );
            return Ok(Outcome::Left(Why::Untimely, what));
        }
        if !self.asked.force {
            match self.sources.judge(
                source.as_source(),
                held.encoded(),
                (held.timestamp, held.failed_at, held.replays),
            ) {
                Standing::Fresh => {}
                Standing::Later(at) => return Ok(Outcome::Stale(at)),
                Standing::Replayed(at) => return Ok(Outcome::Known(Some(at))),
                Standing::Keyless if misfit.is_some() => {}
                Standing::Keyless => {
                    let unread = || "the key of its value cannot be read".to_owned();
                    return Ok(unfit(&self.fit.misfit(held.encoded())?.unwrap_or_else(unread)));
                }
                Standing::Unknown(why) => return Ok(Outcome::Left(Why::Unjudged, why)),
            }
        }
        // The writer has the last word; but what would only come back as the next letter of its record stays. So does, by force
        // too, what the program has garbled: that next letter would replace this one, whose value no replay takes up then. A row
        // was read as the writer will.
        if (!self.asked.force || is_changed)
            && self.rows.is_none()
            && let Some(misfit) = self.fit.misfit(held.encoded())?
        {
            return Ok(unfit(&misfit));
        }
        if let Some(why) = &misfit {
            return Ok(no_row(why));
        }
        let topic = xxhash_rust::xxh3::xxh3_64(source.topic.as_bytes());
        Ok(match self.sent.insert((topic, source.partition, source.offset)) {
            true => Outcome::Replayed(None),
            false => Outcome::Known(None),
        })
    }
}
