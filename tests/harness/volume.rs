//! Small volumes of the test's own: one in memory that can be full, and one that breaks.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A mounted volume, unmounted with the value.
#[derive(Debug)]
pub struct Volume<'a>(&'a Path);

impl<'a> Volume<'a> {
    /// Mounts `megabytes` at `at`, which exists. `None`: this user may not mount.
    pub fn mount(at: &'a Path, megabytes: u32) -> Option<Volume<'a>> {
        let size = format!("size={megabytes}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "stillwell-test"]).arg(at);
        mount.output().ok()?.status.success().then_some(Volume(at))
    }

    /// Fills all that is left of it.
    pub fn fill(&self) {
        let path = self.0.join("filler");
        let mut filler =
            std::fs::File::options().append(true).create(true).open(path).expect("the volume can be written");
        let zeros = vec![0; 64 << 10];
        while filler.write_all(&zeros).is_ok() {}
        // Less than a piece may be left.
        while filler.write_all(&[0]).is_ok() {}
    }

    /// Takes away what filled it.
    pub fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).expect("it was filled before");
    }
}

impl Drop for Volume<'_> {
    fn drop(&mut self) {
        // Lazily: what is still open there is closed soon.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// A disk of the test's own that breaks when it is told to: a file system in a file, of which nothing can be written while
/// that file is immutable. The system says EIO then, as it does of a disk that breaks, and forgets what it could not write.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
    /// Where the file lies: in a file system of its own, since not each knows immutable files.
    around: tempfile::TempDir,
}

impl Disk {
    /// Mounts one of `megabytes` at `at`, which exists. `None`: this user may not, or lacks the tools.
    pub fn mount(at: &Path, megabytes: u64) -> Option<Disk> {
        let disk = Disk { at: at.to_owned(), around: crate::scratch() };
        let (whole, inner) = (disk.around.path().join("whole"), disk.around.path().join("inner"));
        std::fs::create_dir(&inner).ok()?;
        // No journal: with one the file system goes read-only, and stays so until somebody mounts it anew.
        for (file, bytes, folder) in
            [(whole, (megabytes + 64) << 20, &inner), (disk.file(), megabytes << 20, &disk.at)]
        {
            std::fs::File::create(&file).and_then(|file| file.set_len(bytes)).ok()?;
            let made = tool("mkfs.ext4", &["-q", "-F", "-O", "^has_journal"], &[&file]);
            (made && tool("mount", &["-o", "loop"], &[&file, folder])).then_some(())?;
        }
        Some(disk)
    }

    fn file(&self) -> PathBuf {
        self.around.path().join("inner/disk")
    }

    /// Nothing can be written from now on. False: the tool lacks, or the right to.
    pub fn breaks(&self) -> bool {
        tool("chattr", &["+i"], &[&self.file()])
    }

    /// All can be again.
    pub fn mend(&self) {
        assert!(tool("chattr", &["-i"], &[&self.file()]), "the disk can be mended");
    }

    /// Takes it out and puts it in again, nobody using it: what was only in the system's memory of it is gone.
    pub fn again(&self) {
        self.out();
        self.back();
    }

    /// Ends what a broken one began as a power cut does, nobody using it: it is there again, and holds what was synced before it
    /// broke. Of the rest the system tries to write what it has yet, which cannot be done, and forgets it.
    pub fn cut(&self) {
        self.out();
        self.mend();
        self.back();
    }

    fn out(&self) {
        crate::wait_until("nobody uses the disk", Duration::from_secs(60), || {
            if tool("umount", &[], &[&self.at]) { Ok(()) } else { Err("somebody does") }
        });
    }

    fn back(&self) {
        // What it mends it says by its exit code.
        tool("e2fsck", &["-f", "-y"], &[&self.file()]);
        assert!(tool("mount", &["-o", "loop"], &[&self.file(), &self.at]), "the disk can be mounted again");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = tool("chattr", &["-i"], &[&self.file()]);
        // Lazily: what is still open there is closed soon.
        for folder in [&self.at, &self.around.path().join("inner")] {
            let _ = tool("umount", &["-l"], &[folder]);
        }
    }
}

/// Runs a tool; whether it is there, and was content.
fn tool(name: &str, arguments: &[&str], paths: &[&Path]) -> bool {
    // Some are outside a user's path.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let done = Command::new(name).args(arguments).args(paths).env("PATH", path).output();
    done.is_ok_and(|done| done.status.success())
}
