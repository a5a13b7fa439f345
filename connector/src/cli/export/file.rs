//! Where an export goes: a file that is there whole or not at all, or standard output.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::edge::{not_made, unwritten_to};
use crate::Result;

/// Whether a path means standard output.
pub(super) fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// A file under another name, until it is kept; gone again if it never is.
pub(super) struct Destination {
    /// `None`: standard output.
    file: Option<Part>,
    /// Why the output ended.
    failed: Arc<Mutex<Option<io::Error>>>,
}

struct Part {
    path: PathBuf,
    part: PathBuf,
    file: File,
    replaces: bool,
    kept: bool,
}

/// What a format writes to.
pub(super) struct Out {
    inner: BufWriter<Box<dyn Write + Send>>,
    failed: Arc<Mutex<Option<io::Error>>>,
}

/// Begins a file beside `path` that is of this export alone: two that export to one file do not meet, not even where two
/// containers count their processes alike; and a link that somebody laid there is not followed.
fn begin(path: &Path, name: &OsStr) -> io::Result<(PathBuf, File)> {
    let mut nth = 0u32;
    loop {
        let mut part = OsString::from(".");
        part.push(name);
        part.push(format!(".{}-{nth}.part", std::process::id()));
        let part = path.with_file_name(part);
        match File::create_new(&part) {
            Ok(file) => return Ok((part, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && nth < 1_000 => nth += 1,
            Err(error) => return Err(error),
        }
    }
}

impl Destination {
    /// Begins a file beside `path`; `replaces`: there may be one of that name.
    ///
    /// # Errors
    /// That it cannot be made, as where there is one: exit code 73.
    pub(super) fn open(path: &Path, replaces: bool) -> Result<Destination> {
        let failed = Arc::default();
        if is_stdout(path) {
            return Ok(Destination { file: None, failed });
        }
        let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
            let folder = io::Error::new(io::ErrorKind::IsADirectory, "it is a folder: name a file");
            return Err(not_made(path, folder));
        };
        if !replaces && path.symlink_metadata().is_ok() {
            return Err(not_made(path, exists()));
        }
        let (part, file) = begin(path, name).map_err(|error| match error.kind() {
            // Else it would seem to be the file that has to be there.
            io::ErrorKind::NotFound => {
                not_made(path, io::Error::new(error.kind(), "there is no such folder"))
            }
            _ => not_made(path, error),
        })?;
        let path = path.to_owned();
        Ok(Destination { file: Some(Part { path, part, file, replaces, kept: false }), failed })
    }

    /// How a person knows it.
    pub(super) fn shown(&self) -> String {
        match &self.file {
            Some(part) => part.path.display().to_string(),
            None => "standard output".to_owned(),
        }
    }

    /// What to write to; what it does not take is kept for [`Destination::failed`].
    pub(super) fn writer(&self) -> Result<Out> {
        let out: Box<dyn Write + Send> = match &self.file {
            Some(part) => {
                let file = part.file.try_clone().map_err(|error| unwritten_to(&self.shown(), error))?;
                Box::new(file)
            }
            None => Box::new(io::stdout()),
        };
        Ok(Out { inner: BufWriter::with_capacity(256 << 10, out), failed: Arc::clone(&self.failed) })
    }

    /// Why the output ended, if it did.
    pub(super) fn failed(&self) -> Option<io::Error> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Makes what was written durable, and gives it its name.
    ///
    /// # Errors
    /// As [`Destination::open`] where somebody else has made a file of that name meanwhile; else that it cannot be written.
    pub(super) fn keep(mut self) -> Result<()> {
        let Some(part) = &mut self.file else { return Ok(()) };
        match part.keep() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(not_made(&part.path, exists())),
            kept => kept.map_err(|error| unwritten_to(&part.path.display().to_string(), error)),
        }
    }
}

fn exists() -> io::Error {
    let what = "it is there already: name another file, or say --force to replace it";
    io::Error::new(io::ErrorKind::AlreadyExists, what)
}

impl Part {
    fn keep(&mut self) -> io::Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        self.file.sync_all()?;
        let unknown = [rustix::io::Errno::INVAL, rustix::io::Errno::NOSYS, rustix::io::Errno::NOTSUP];
        match self.replaces {
            true => fs::rename(&self.part, &self.path)?,
            false => match renameat_with(CWD, &self.part, CWD, &self.path, RenameFlags::NOREPLACE) {
                // A file system that cannot promise it: between the look and the rename another's file may come.
                Err(error) if unknown.contains(&error) => {
                    if self.path.symlink_metadata().is_ok() {
                        return Err(io::ErrorKind::AlreadyExists.into());
                    }
                    fs::rename(&self.part, &self.path)?;
                }
                renamed => renamed?,
            },
        }
        self.kept = true;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept {
            // Of what cannot be removed either, the name says what it is.
            let _ = fs::remove_file(&self.part);
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes).inspect_err(|error| note(&self.failed, error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush().inspect_err(|error| note(&self.failed, error))
    }
}

fn note(failed: &Mutex<Option<io::Error>>, error: &io::Error) {
    if error.kind() == io::ErrorKind::Interrupted {
        return;
    }
    let again = match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    };
    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(again);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let names =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    fn written(path: &Path, replaces: bool, bytes: &[u8]) -> Destination {
        let destination = Destination::open(path, replaces).unwrap();
        let mut out = destination.writer().unwrap();
        out.write_all(bytes).unwrap();
        out.flush().unwrap();
        destination
    }

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let half = written(&path, false, b"ha");
        assert!(!path.exists() && names(folder.path()).len() == 1, "under another name");
        drop(half);
        assert_eq!(names(folder.path()), [] as [String; 0]);
        written(&path, false, b"whole").keep().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(names(folder.path()), ["a.jsonl"]);
        let there = Destination::open(&path, false).err().unwrap();
        assert!(there.chain().contains("--force"), "{}", there.chain());
        written(&path, true, b"another").keep().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"another");
        let a_folder = Destination::open(folder.path(), true).err().unwrap();
        assert!(a_folder.chain().contains("is a folder"), "{}", a_folder.chain());
    }

    #[test]
    fn what_came_meanwhile_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let ours = written(&path, false, b"ours");
        fs::write(&path, b"theirs").unwrap();
        assert!(ours.keep().is_err());
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        assert_eq!(names(folder.path()), ["a.jsonl"], "and nothing is left of ours");
    }
}
