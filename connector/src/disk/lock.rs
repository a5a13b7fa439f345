//! Who writes where: a file that is locked as long as its process lives, and says which process that is.
//!
//! ```text
//!  DATA_DIR/lock             held by the process that writes datasets here
//!  DATA_DIR/log/NAME.lock    held by who has that log open: the same process, or `log repair`
//! ```
//!
//! The system takes a lock away with its process, however that ends, so that no file has to be removed by hand. Readers
//! take neither: what they share (`view/cache`) is made for several processes.
//!
//! Owns: both locks. Does not own: who needs which.

use std::fs::{self, File, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::Path;

use super::held::Held;
use super::{Error, beside};

/// A data directory that is this process's to write in, until this is dropped.
#[derive(Debug)]
pub struct DataDir(#[expect(dead_code, reason = "its lock goes with it")] Held);

impl DataDir {
    /// Takes `DIR/lock`, and makes the directory where it is missing.
    ///
    /// # Errors
    /// [`Error::Locked`]: another process writes there, or this one does. [`Error::Directory`]: it cannot be made or
    /// written; [`Error::Full`].
    pub fn take(dir: &Path) -> Result<DataDir, Error> {
        fs::create_dir_all(dir).map_err(|why| unusable(dir, why.to_string()))?;
        let mut held = take(&dir.join("lock"), dir)?;
        // Whose it is, is for people to read: a full disk, which passes, must not keep a process from starting.
        let _ = sign(&mut held);
        Ok(DataDir(held))
    }
}

/// Takes `DIR.lock` of a log. RocksDB has a lock of its own inside; this one survives the directory's being put aside, is
/// taken before anything is touched, and says who holds it.
pub(super) fn lock(dir: &Path) -> Result<Held, Error> {
    let path = beside(dir, "lock");
    let mut held = take(&path, dir)?;
    sign(&mut held).map_err(|why| unusable(dir, format!("{}: {why}", path.display())))?;
    Ok(held)
}

/// A full disk is no mistake of the configuration: it passes.
fn unusable(dir: &Path, why: String) -> Error {
    match Error::refused("opening", dir, why) {
        full @ Error::Full { .. } => full,
        Error::Failed { why, .. } => Error::Directory { dir: dir.to_owned(), why },
        other => other,
    }
}

fn take(path: &Path, dir: &Path) -> Result<Held, Error> {
    let unusable = |why: std::io::Error| unusable(dir, format!("{}: {why}", path.display()));
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let by = match file.read_to_string(&mut holder) {
                Ok(_) if !holder.trim().is_empty() => format!(" by process {}", holder.trim()),
                _ => String::new(),
            };
            return Err(Error::Locked { dir: dir.to_owned(), by });
        }
        Err(TryLockError::Error(why)) => return Err(unusable(why)),
    }
    Ok(Held(file))
}

/// Writes who holds it.
fn sign(held: &mut Held) -> std::io::Result<()> {
    held.0.set_len(0)?;
    write!(held.0, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_has_one_writer_who_is_named_and_is_free_after_it() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("not/there/yet");
        let first = DataDir::take(&dir).unwrap();
        let refused = DataDir::take(&dir).unwrap_err();
        let pid = std::process::id().to_string();
        assert!(
            matches!(&refused, Error::Locked { dir: at, by } if *at == dir && by.ends_with(&pid)),
            "{refused}"
        );
        drop(first);
        DataDir::take(&dir).unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(DataDir::take(&file), Err(Error::Directory { .. })));
    }
}
