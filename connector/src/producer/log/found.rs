//! What is found on the disk when a life begins: what had to be cut, whose it is, which ranges it holds.

use std::path::Path;

use super::{Error, Log, judge};
use crate::disk::{Keeper, Survey};
use crate::format::chunk::Range;
use crate::format::origin::Origin;

impl Log {
    /// What the log on the disk was written for; `None`: nobody has said, or it cannot be read now.
    pub async fn written_for(&self) -> Option<Origin> {
        let keeper = self.0.keeper()?;
        let begun_for = super::blocking(move || Ok(keeper.call(|database| Ok(database.begun_for()))?)).await;
        Origin::parse(&begun_for.ok()??)
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
        tracing::error!(
            dir = %dir.display(), seq, why, chunks_left = survey.chunks.len(),
            "a chunk of the log cannot be read: the log was cut there, and the rest is read from Kafka again"
        );
    }
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

/// The ranges on disk, joined.
pub(super) fn ranges(survey: &Survey) -> Vec<Range> {
    judge::joined(survey.chunks.iter().flat_map(|(_, summary)| &summary.ranges))
}
