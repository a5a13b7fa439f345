//! What is found on the disk when a life begins: what had to be cut, whose it is, which ranges it holds.

use std::path::Path;

use super::judge::Cursor;
use super::{Error, Log, judge};
use crate::disk::{self, Database, Keeper, Survey};
use crate::format::chunk::{Chunk, ChunkBuilder, ChunkRecord, Range, Summary};
use crate::format::origin::Origin;
use crate::producer::shed::nothing_of;
use crate::record::Position;

/// Chunks that are cut back by one write, and one fsync.
const AT_ONCE: usize = 8;

impl Log {
    /// What the log on the disk was written for; `None`: nobody has said, or it cannot be read now.
    pub async fn written_for(&self) -> Option<Origin> {
        let keeper = self.0.keeper()?;
        let begun_for = super::blocking(move || Ok(keeper.call(|database| Ok(database.begun_for()))?)).await;
        Origin::parse(&begun_for.ok()??)
    }

    /// Whether there is no chunk in it, nor one that cannot be read now.
    pub async fn is_empty(&self) -> bool {
        let Some(keeper) = self.0.keeper() else { return true };
        let last = super::blocking(move || Ok(keeper.call(|database| database.last())?)).await;
        last.is_ok_and(|last| last.is_none())
    }

    /// The newest timestamp (milliseconds since the Unix epoch) of a record of its last chunk: until then at least the
    /// sources were read. `None`: there is none, or it cannot be read now.
    pub async fn newest_timestamp(&self) -> Option<i64> {
        let keeper = self.0.keeper()?;
        let last = super::blocking(move || Ok(keeper.call(|database| database.last())?)).await.ok()??;
        last.iter().map(|(_, record)| record.timestamp).max()
    }
}

pub(super) fn say_cut(dir: &Path, survey: &Survey) {
    for broken in &survey.broken {
        tracing::error!(
            dir = %dir.display(), file = broken.file, at = broken.at, bytes = broken.rest, why = broken.why,
            "the end of a file of the log is not whole: what it held from there on is read from Kafka again"
        );
    }
    if let Some((seq, why)) = &survey.cut {
        say_cut_at(dir, *seq, why, survey.chunks.len());
    }
}

fn say_cut_at(dir: &Path, seq: u64, why: &str, chunks_left: usize) {
    tracing::error!(
        dir = %dir.display(), seq, why, chunks_left,
        "a chunk of the log cannot be read: the log was cut there, and the rest is read from Kafka again"
    );
}

/// Discards all that was found unless it is of `origin`, and makes the log one of that origin. Chunks without any come
/// from a release that did not note it: whose they are cannot be known.
pub(super) fn claim(dir: &Path, keeper: &Keeper, survey: &mut Survey, origin: &Origin) -> Result<(), Error> {
    let noted = survey.origin.as_deref().map(Origin::parse);
    if noted == Some(Some(*origin)) {
        return Ok(());
    }
    let bytes = origin.encode();
    keeper.call(move |database| database.begin(&bytes))?;
    if !survey.chunks.is_empty() {
        let records: u64 = survey.chunks.iter().map(|(_, summary)| u64::from(summary.records)).sum();
        let why = match noted {
            Some(Some(noted)) => origin.differs(&noted).join(", "),
            Some(None) | None => "it does not say for what it was written".to_owned(),
        };
        tracing::error!(
            dir = %dir.display(), chunks = survey.chunks.len(), records, why,
            "the log was written for something else and all of it is discarded; what is not announced is read from Kafka"
        );
        survey.chunks.clear();
    }
    Ok(())
}

/// Takes out of what was found all that lies past `ends`. The rest stays, in chunks of the same numbers: Kafka may have those
/// records no more. Where many chunks are rewritten, room is given back each `reclaim_at` bytes.
pub(super) fn cut_back(
    dir: &Path,
    keeper: &Keeper,
    survey: &mut Survey,
    (ends, reclaim_at): (&[Position], u64),
) -> Result<(), Error> {
    let ends = Cursor::at(ends);
    let past = |range: &&Range| is_past(&ends, range);
    let found: Vec<(u64, bool)> = survey
        .chunks
        .iter()
        .filter(|(_, summary)| summary.ranges.iter().any(|range| past(&range)))
        .map(|(seq, summary)| (*seq, summary.ranges.iter().all(|range| is_beyond(&ends, range))))
        .collect();
    if found.is_empty() {
        return Ok(());
    }
    for range in judge::joined(survey.chunks.iter().flat_map(|(_, summary)| &summary.ranges).filter(past)) {
        let end = ends.next(&range.source).unwrap_or(range.from);
        tracing::warn!(
            source = %range.source, from = range.from.max(end), to = range.to, end,
            "the partition ends before what the log holds of it, and gives those offsets to other records: it is taken out"
        );
    }
    let (left, cut) = keeper.call(move |database| take_out(database, &found, &ends, reclaim_at))?;
    for (seq, summary) in left {
        let at = survey.chunks.binary_search_by_key(&seq, |(seq, _)| *seq);
        if let Some(place) = at.ok().and_then(|at| survey.chunks.get_mut(at)) {
            place.1 = summary;
        }
    }
    if let Some((seq, why)) = cut {
        survey.chunks.retain(|(number, _)| *number < seq);
        say_cut_at(dir, seq, &why, survey.chunks.len());
    }
    Ok(())
}

fn is_past(ends: &Cursor, range: &Range) -> bool {
    ends.next(&range.source).is_some_and(|end| range.to > end)
}

/// Nothing of it lies before its partition's end.
fn is_beyond(ends: &Cursor, range: &Range) -> bool {
    ends.next(&range.source).is_some_and(|end| range.from >= end)
}

/// The chunk, with each of its ranges ended where its partition ends.
fn within(chunk: &Chunk, ends: &Cursor) -> Chunk {
    let mut builder = ChunkBuilder::new();
    let kept: Vec<Option<(u16, i64)>> = chunk
        .ranges()
        .iter()
        .map(|range| {
            let to = ends.next(&range.source).map_or(range.to, |end| range.to.min(end));
            (range.from < to).then(|| (builder.slot(&range.source, range.from), to))
        })
        .collect();
    for (_, record) in chunk.iter() {
        if let Some(Some((slot, to))) = kept.get(usize::from(record.slot))
            && record.offset < *to
        {
            builder.push_record(ChunkRecord { slot: *slot, ..record });
        }
    }
    for (slot, to) in kept.into_iter().flatten() {
        builder.advance(slot, to);
    }
    builder.finish()
}

/// What is left of each chunk that was cut back, and where the log had to be cut, and why.
type TakenOut = (Vec<(u64, Summary)>, Option<(u64, String)>);

/// Cuts back the chunks `found`, which are named with whether nothing is left of them. On the keeper's thread.
fn take_out(
    database: &Database,
    found: &[(u64, bool)],
    ends: &Cursor,
    reclaim_at: u64,
) -> Result<TakenOut, disk::Error> {
    let (mut left, mut freed) = (Vec::new(), 0);
    for some in found.chunks(AT_ONCE) {
        let (mut rest, mut cut): (Vec<(u64, Chunk)>, _) = (Vec::with_capacity(some.len()), None);
        for (seq, whole) in some {
            if *whole {
                // Judging finds that it accounts for nothing, and forgets it.
                rest.push((*seq, nothing_of(&[])));
                continue;
            }
            match database.chunk(*seq) {
                Ok(chunk) => {
                    rest.push((*seq, within(&chunk, ends)));
                    freed += chunk.len() as u64;
                }
                Err(disk::Error::Corrupt { why, .. }) => {
                    cut = Some((*seq, why));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        database.replace(rest.iter().map(|(seq, chunk)| (*seq, *seq, chunk)))?;
        left.extend(rest.iter().map(|(seq, chunk)| (*seq, chunk.summary())));
        if let Some((seq, why)) = cut {
            // As where it is read: what comes after a hole cannot be announced.
            database.forget(seq, u64::MAX, true)?;
            return Ok((left, Some((seq, why))));
        }
        if freed >= reclaim_at {
            database.reclaim()?;
            freed = 0;
        }
    }
    Ok((left, None))
}

/// The ranges on disk, joined.
pub(super) fn ranges(survey: &Survey) -> Vec<Range> {
    judge::joined(survey.chunks.iter().flat_map(|(_, summary)| &summary.ranges))
}
