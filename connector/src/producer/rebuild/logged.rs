//! The log in a rebuild: what Kafka holds no more is read from it, and what Kafka will hold otherwise is taken out of it.
//!
//! Owns: those two. Does not own: what a life resumes at (`recover`).

use tokio::runtime::Handle;

use super::{Error, Plan, Planned, Reading, Standing};
use crate::format::chunk::Body;
use crate::format::letter::Letter;
use crate::format::origin::Origin;
use crate::gauge::Budget;
use crate::producer::log::{Cursor, Log};
use crate::record::Stamp;

/// Records and bytes of the log in memory.
const LOG_AHEAD: (usize, u64) = (10_000, 16 << 20);

/// Takes out of the log what it holds of a partition past the end that the version will announce: the next life would take
/// it for what Kafka holds there. As late as may be, since a rebuild can be withdrawn until it is announced, and no later:
/// nobody would know of it after a crash. A crash between the two costs nothing else: the rebuild begins again, and reads of
/// the log only what a partition lacks at its beginning, which is all still there.
///
/// What such a partition had there, unpublished, Kafka has lost.
pub(super) fn cut_back(log: &Log, origin: &Origin, plan: &Plan) -> Result<(), Error> {
    Handle::current().block_on(log.resume_within(origin, &plan.announced(), &plan.ends()))?;
    Ok(())
}

impl Reading<'_> {
    /// What was received and never announced, and is gone from Kafka since.
    pub(super) fn log(&mut self, log: &Log, origin: &Origin) -> Result<(), Error> {
        let plan = self.plan;
        let gaps: Vec<&Planned> =
            plan.partitions.iter().filter(|planned| planned.standing == Standing::Trimmed).collect();
        if gaps.is_empty() {
            return Ok(());
        }
        let runtime = Handle::current();
        // At all positions: of the other partitions nothing is read here, but what the log holds of them may be all that
        // is left by the time when this rebuild was withdrawn, or has to begin again.
        let ends = Cursor::at(&runtime.block_on(log.resume(origin, &plan.announced()))?);
        let mut open: Vec<(&Planned, i64, i64)> = gaps
            .into_iter()
            .map(|planned| {
                let next = planned.announced.unwrap_or_default();
                (planned, next, ends.next(&planned.source).unwrap_or(next))
            })
            .collect();
        let mut reader = log.reader(LOG_AHEAD.0, Budget::new(LOG_AHEAD.1));
        while open.iter().any(|(_, next, end)| next < end) {
            let next = runtime.block_on(async {
                tokio::select! {
                    () = self.stop.cancelled() => Err(Error::Stopped),
                    next = reader.next() => Ok(next?),
                }
            })?;
            let Some(logged) = next else { return Err(Error::Stopped) };
            for (range, from) in logged.chunk.ranges().iter().zip(&logged.from) {
                if let Some((_, next, _)) =
                    open.iter_mut().find(|(planned, ..)| planned.source == range.source)
                {
                    *next = (*next).max(range.to.max(*from));
                }
            }
            for (_, record) in logged.chunk.iter() {
                let slot = usize::from(record.slot);
                let Some((range, from)) = logged.chunk.ranges().get(slot).zip(logged.from.get(slot)) else {
                    continue;
                };
                let Some((planned, ..)) = open.iter().find(|(planned, ..)| planned.source == range.source)
                else {
                    continue;
                };
                // From its beginning on the topic itself is read.
                if record.offset < *from || record.offset >= planned.from {
                    continue;
                }
                self.folded.read += 1;
                let stamp =
                    Stamp { timestamp: record.timestamp, source: planned.index, offset: record.offset };
                match record.body {
                    Body::Upsert { key, value } => self.folded.fold.push(key, Some(value), stamp)?,
                    Body::Delete { key } => self.folded.fold.push(key, None, stamp)?,
                    Body::Misfit { letter } => self.misfit(Letter::decode(letter)?)?,
                }
            }
        }
        let records = self.folded.read;
        if records > 0 {
            tracing::info!(
                dataset = self.options.dataset,
                records,
                "taken from the log: Kafka holds them no more"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
