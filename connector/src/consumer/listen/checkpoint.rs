//! What a listener has handled, on disk.
//!
//! ```text
//! DIR/DATASET/NAME.checkpoint     written anew beside it, synced, renamed
//! DIR/DATASET/NAME.lock           held by the process that runs the listener
//!
//! "stillwell-listener-2"  u64 xxh3 of what follows
//! stamp 16 bytes   topic id 16 bytes   held? 8 bytes   steps long   handled: announcement?
//! doing? { announcement, reset, key bytes, batch long, most long }
//!
//! "stillwell-listener-1", which is read: without `held` and `most`
//! ```
//!
//! An announcement says all that it takes to open a version again, from the cache or the store: where a listener stopped can be
//! opened although newer versions have come since, and a version of which it has handled a part is finished first, so that
//! a set keeps its id and its contents. The stamp makes the ids of one checkpoint's sets differ from those of another, which
//! counts from 1 too.
//!
//! Owns: the file and its form. Does not own: when it is written (`run`).

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::format::announcement::{Announcement, Message};
use crate::format::wire::{Malformed, Take, put_bytes, put_long, put_some};
use crate::record::TopicId;
use crate::version::Checksum;

const MAGIC: &[u8; 20] = b"stillwell-listener-2";
/// Before it was known of what the versions are a part, and how large sets are.
const MAGIC_1: &[u8; 20] = b"stillwell-listener-1";

/// Why a checkpoint cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk refuses.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process runs this listener.
    #[error("{} is held already: another process runs this listener with these files, or this one has two of its name", .0.display())]
    Locked(PathBuf),
    /// Neither a listener's nor a dataset's name can be a path.
    #[error("{0:?} cannot be a listener's name: letters, digits, '.', '_' and '-' only, and no '.' in front")]
    Name(String),
}

/// How far a listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Chance, once for each new checkpoint.
    pub stamp: [u8; 16],
    /// Id of the announcement topic that the versions are of.
    pub topic_id: TopicId,
    /// What was held of the dataset ([`Hold::mark`](crate::view::Hold::mark)): rows that another filter lets in or out are in
    /// no difference of two versions, both of which are opened with that one. `None`: not known, in format 1.
    pub held: Option<u64>,
    /// Counts the steps that were begun.
    pub steps: u64,
    /// The version that was handled last; `None`: none.
    pub handled: Option<Box<Announcement>>,
    /// The version that was begun after it.
    pub doing: Option<Doing>,
}

/// A version of which a part may have been handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doing {
    /// It.
    pub announcement: Box<Announcement>,
    /// All of it counts as new, whatever was handled before.
    pub reset: bool,
    /// The first key that was not handled.
    pub key: Vec<u8>,
    /// Sets that were handled.
    pub batch: u64,
    /// Most changes in each: another number would give a set other contents under the id that it has. 0: not known, in
    /// format 1.
    pub most: u64,
}

/// The file. One process has it at a time.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    lock: File,
}

impl Drop for Checkpoint {
    /// In so many words: a child that this process starts at that moment has the file too, until its exec, and closing ours
    /// would leave the lock to it.
    fn drop(&mut self) {
        let _ = self.lock.unlock();
    }
}

impl Checkpoint {
    /// Opens the checkpoint of a listener, and gives what it says. One that cannot be read is put aside and said loudly:
    /// the listener begins anew.
    ///
    /// # Errors
    /// [`Error::Locked`]; [`Error::Name`]; [`Error::Io`].
    pub fn open(dir: &Path, dataset: &str, name: &str) -> Result<(Checkpoint, Option<State>), Error> {
        for part in [dataset, name] {
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            if part.is_empty() || part.starts_with('.') || !part.chars().all(fits) {
                return Err(Error::Name(part.to_owned()));
            }
        }
        let dir = dir.join(dataset);
        fs::create_dir_all(&dir).map_err(|source| failed("making", &dir, source))?;
        let lock_path = dir.join(format!("{name}.lock"));
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(|source| failed("opening", &lock_path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked(lock_path)),
            Err(TryLockError::Error(source)) => return Err(failed("locking", &lock_path, source)),
        }
        let path = dir.join(format!("{name}.checkpoint"));
        let state = match fs::read(&path) {
            Ok(bytes) => decode(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => return Err(failed("reading", &path, source)),
        };
        let state = state.or_else(|why| {
            let aside = dir.join(format!("{name}.damaged"));
            fs::rename(&path, &aside).map_err(|source| failed("renaming", &path, source))?;
            tracing::error!(
                dataset, listener = name, why, kept = %aside.display(),
                "what this listener has handled cannot be read: it begins anew"
            );
            Ok(None)
        })?;
        Ok((Checkpoint { path, lock }, state))
    }

    /// Writes it down, for good: after a power cut too.
    ///
    /// # Errors
    /// [`Error::Io`]; then the file says what it said before.
    pub fn save(&self, state: &State) -> Result<(), Error> {
        let part = self.path.with_extension("part");
        let write = || {
            let mut file = File::create(&part)?;
            file.write_all(&encode(state))?;
            file.sync_all()?;
            fs::rename(&part, &self.path)?;
            match self.path.parent() {
                Some(dir) => File::open(dir)?.sync_all(),
                None => Ok(()),
            }
        };
        write().map_err(|source| failed("writing", &self.path, source))
    }
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { doing, path: path.to_owned(), source }
}

fn encode(state: &State) -> Vec<u8> {
    let mut body = Vec::with_capacity(2048);
    body.extend_from_slice(&state.stamp);
    body.extend_from_slice(&state.topic_id.0);
    put_some(&mut body, state.held.is_some());
    if let Some(held) = state.held {
        body.extend_from_slice(&held.to_le_bytes());
    }
    put_long(&mut body, state.steps as i64);
    put_some(&mut body, state.handled.is_some());
    if let Some(announcement) = &state.handled {
        put_announcement(&mut body, announcement);
    }
    put_some(&mut body, state.doing.is_some());
    if let Some(Doing { announcement, reset, key, batch, most }) = &state.doing {
        put_announcement(&mut body, announcement);
        put_some(&mut body, *reset);
        put_bytes(&mut body, key);
        put_long(&mut body, *batch as i64);
        put_long(&mut body, *most as i64);
    }
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&Checksum::of(&body).0.to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

fn put_announcement(out: &mut Vec<u8>, announcement: &Announcement) {
    put_bytes(out, &Message::Announcement(Box::new(announcement.clone())).encode());
}

fn decode(bytes: &[u8]) -> Result<Option<State>, String> {
    let first = bytes.strip_prefix(MAGIC_1.as_slice());
    let Some(rest) = bytes.strip_prefix(MAGIC.as_slice()).or(first) else {
        return Err("it is of another release, or none of ours".to_owned());
    };
    let whole = rest.split_first_chunk::<8>();
    let body = whole.filter(|(sum, body)| Checksum::of(body).0 == u64::from_le_bytes(**sum));
    let Some((_, body)) = body else { return Err("its checksum does not fit".to_owned()) };
    let mut take = Take::new(body);
    let state = read(&mut take, first.is_some()).map_err(|error| error.to_string())?;
    take.end().map_err(|error| error.to_string())?;
    Ok(Some(state))
}

#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("its fields cannot be read")]
    Malformed(#[from] Malformed),
    #[error("the announcement in it cannot be read: {0}")]
    Announcement(String),
}

fn read(take: &mut Take<'_>, first: bool) -> Result<State, Unreadable> {
    let announcement = |take: &mut Take<'_>| match Message::decode(take.bytes()?) {
        Ok(Message::Announcement(announcement)) => Ok(announcement),
        Ok(Message::Epoch(_)) => Err(Unreadable::Announcement("it is an epoch record".to_owned())),
        Err(error) => Err(Unreadable::Announcement(error.to_string())),
    };
    Ok(State {
        stamp: take.fixed()?,
        topic_id: TopicId(take.fixed()?),
        held: match !first && take.some()? {
            true => Some(u64::from_le_bytes(take.fixed()?)),
            false => None,
        },
        steps: take.long()? as u64,
        handled: match take.some()? {
            true => Some(announcement(take)?),
            false => None,
        },
        doing: match take.some()? {
            true => Some(Doing {
                announcement: announcement(take)?,
                reset: take.some()?,
                key: take.bytes()?.to_vec(),
                batch: take.long()? as u64,
                most: if first { 0 } else { take.long()? as u64 },
            }),
            false => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(kind: &str, version: &str, name: &str) -> PathBuf {
        [env!("CARGO_MANIFEST_DIR"), "..", "tests", "golden", kind, version, name].iter().collect()
    }

    /// The golden files were made once, by other code, of the layout as it is drawn above; of announcements that are golden
    /// themselves.
    fn sample() -> State {
        let announcement =
            |name| match Message::decode(&fs::read(golden("announcement", "v1", name)).unwrap()) {
                Ok(Message::Announcement(announcement)) => announcement,
                other => panic!("{other:?}"),
            };
        State {
            stamp: [3; 16],
            topic_id: TopicId([0xa7; 16]),
            held: Some(0x0123_4567_89ab_cdef),
            steps: 1 << 40,
            handled: Some(announcement("smallest.bin")),
            doing: Some(Doing {
                announcement: announcement("largest.bin"),
                reset: true,
                key: "żółw\0".as_bytes().to_vec(),
                batch: 7,
                most: 100,
            }),
        }
    }

    #[test]
    fn a_checkpoint_of_either_format_reads_as_it_was_written() {
        let bytes = fs::read(golden("listener", "v1", "audit.checkpoint")).unwrap();
        let mut first = State { held: None, ..sample() };
        first.doing.as_mut().unwrap().most = 0;
        assert_eq!(decode(&bytes), Ok(Some(first)));
        let bytes = fs::read(golden("listener", "v2", "audit.checkpoint")).unwrap();
        assert_eq!(decode(&bytes), Ok(Some(sample())));
        assert_eq!(encode(&sample()), bytes, "this build writes what that one wrote");
    }
}
