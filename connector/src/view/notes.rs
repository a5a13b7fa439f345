//! What a reader finds in its cache at the next start, besides blobs: small files, each replaced whole.
//!
//! Owns: their form and names. Does not own: when they are written (`consumer`), blobs (`cache`).

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::cache::Cache;
use super::{Error, Identity};
use crate::record::TopicId;
use crate::version::{Checksum, Shard, Version};

impl Cache {
    /// Remembers the announcement that this process is at, so that it can start while Kafka is away.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Name`].
    pub fn save_current(&self, identity: &Identity, announcement: &[u8]) -> Result<(), Error> {
        let dir = self.dataset_dir(&identity.dataset)?;
        let body = [&identity.topic_id.0[..], announcement].concat();
        self.save_note(&dir, &current(&dir, identity.shard), &body)
    }

    /// What [`Cache::save_current`] remembered last: the announcement topic's id and the announcement. `None` if
    /// nothing was, or a power cut tore it: then the start waits for Kafka.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Name`].
    pub fn load_current(&self, dataset: &str, shard: Shard) -> Result<Option<(TopicId, Vec<u8>)>, Error> {
        let body = load_note(&current(&self.dataset_dir(dataset)?, shard))?;
        Ok(body.and_then(|body| {
            body.split_first_chunk::<16>().map(|(id, announcement)| (TopicId(*id), announcement.to_vec()))
        }))
    }

    /// Remembers the pin that readers of the dataset obey, as the control topic has it, over restarts; `None`: there is
    /// none.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Name`].
    pub fn save_pin(&self, dataset: &str, pin: Option<&[u8]>) -> Result<(), Error> {
        let dir = self.dataset_dir(dataset)?;
        self.note(&dir, PIN, pin)
    }

    /// The pin that [`Cache::save_pin`] remembered last.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Name`].
    pub fn load_pin(&self, dataset: &str) -> Result<Option<Vec<u8>>, Error> {
        load_note(&self.dataset_dir(dataset)?.join(PIN))
    }

    /// Remembers the control topic that the pin stands in; `None`: there is no pin.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Name`].
    pub fn save_pin_topic(&self, dataset: &str, topic: Option<TopicId>) -> Result<(), Error> {
        let dir = self.dataset_dir(dataset)?;
        self.note(&dir, PIN_TOPIC, topic.as_ref().map(|topic| &topic.0[..]))
    }

    /// The topic that [`Cache::save_pin_topic`] remembered last.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Name`].
    pub fn load_pin_topic(&self, dataset: &str) -> Result<Option<TopicId>, Error> {
        let body = load_note(&self.dataset_dir(dataset)?.join(PIN_TOPIC))?;
        Ok(body.and_then(|body| body.try_into().ok()).map(TopicId))
    }

    /// Remembers which pinned version the cleaner of a shard spares, and the control topic that said so; `None`: nothing is
    /// pinned. [`Spared::load`] reads it.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Name`].
    pub fn save_spared(&self, dataset: &str, shard: Shard, spared: Option<Spared>) -> Result<(), Error> {
        let dir = self.dataset_dir(dataset)?;
        let body = spared.map(|Spared { topic, history, version, epoch }| {
            [&topic.0[..], &history.0, &version.0.to_le_bytes(), &epoch.to_le_bytes()].concat()
        });
        self.note(&dir, &spared_name(shard), body.as_deref())
    }

    /// Replaces or removes a note.
    fn note(&self, dir: &Path, name: &str, body: Option<&[u8]>) -> Result<(), Error> {
        let path = dir.join(name);
        match body {
            Some(body) => self.save_note(dir, &path, body),
            None => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(Error::io("removing", &path, error))
                }
                _ => Ok(()),
            },
        }
    }

    /// Puts `body` at `path` whole, behind format and checksum.
    fn save_note(&self, dir: &Path, path: &Path, body: &[u8]) -> Result<(), Error> {
        fs::create_dir_all(dir).map_err(|source| Error::io("making", dir, source))?;
        let mut temporary = self.temporary_in(dir)?;
        let written = temporary.write_all(&note_of(body));
        written.map_err(|source| Error::io("writing", temporary.path(), source))?;
        temporary.rename(path)
    }
}

/// A pinned version, and the control topic that the pin stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spared {
    /// The control topic's id.
    pub topic: TopicId,
    /// The id of the announcement topic that the version stands in.
    pub history: TopicId,
    /// The shard's version.
    pub version: Version,
    /// Epoch of the life that announced it.
    pub epoch: u64,
}

impl Spared {
    /// What [`Cache::save_spared`] remembered last in the cache in `dir`, which may be another process's.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn load(dir: &Path, dataset: &str, shard: Shard) -> Result<Option<Spared>, Error> {
        let body = load_note(&dir.join(dataset).join(spared_name(shard)))?;
        Ok(body.and_then(|body| {
            let (topic, rest) = body.split_first_chunk::<16>()?;
            let (history, numbers) = rest.split_first_chunk::<16>()?;
            let ([version, epoch], []) = numbers.as_chunks::<8>() else { return None };
            let (version, epoch) = (Version(u64::from_le_bytes(*version)), u64::from_le_bytes(*epoch));
            Some(Spared { topic: TopicId(*topic), history: TopicId(*history), version, epoch })
        }))
    }
}

fn spared_name(shard: Shard) -> String {
    format!("spared-{shard}")
}

/// What `save_note` has put there; `None` if nothing, or if it is torn.
fn load_note(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::io("reading", path, source)),
    };
    // Notes of format 1 begin with their checksum, which is that of nothing else.
    let checked = bytes.strip_prefix(NOTE).unwrap_or(&bytes);
    let Some((sum, body)) = checked.split_first_chunk::<8>() else { return Ok(None) };
    if Checksum::of(body).0 != u64::from_le_bytes(*sum) {
        tracing::warn!(path = %path.display(), "a note in the cache is torn; Kafka will tell it anew");
        return Ok(None);
    }
    Ok(Some(body.to_vec()))
}

/// `body` as a note of the present format.
pub(super) fn note_of(body: &[u8]) -> Vec<u8> {
    [&NOTE[..], &Checksum::of(body).0.to_le_bytes(), body].concat()
}

/// What [`note_of`] was given; `None`: it is torn, or no such note.
pub(super) fn body_of(note: &[u8]) -> Option<&[u8]> {
    let (sum, body) = note.strip_prefix(NOTE)?.split_first_chunk::<8>()?;
    (Checksum::of(body).0 == u64::from_le_bytes(*sum)).then_some(body)
}

/// What a note begins with: what it is, and the number of its format.
const NOTE: &[u8; 8] = b"SWNOTE\x02\0";
/// The note of the pin.
const PIN: &str = "pin";
/// The note of the control topic that it stands in.
const PIN_TOPIC: &str = "pin-topic";

fn current(dataset_dir: &Path, shard: Shard) -> PathBuf {
    dataset_dir.join(format!("current-{shard}"))
}
