//! Small volumes of the test's own: one in memory that can be full, and one that breaks.
//!
//! A user without the right to mount goes without what needs one. Root, and CI, do not: there it fails, or what it shows
//! could be gone for years and nobody would see.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A mounted volume, unmounted with the value.
#[derive(Debug)]
pub struct Volume<'a>(&'a Path);

impl<'a> Volume<'a> {
    /// Mounts `megabytes` at `at`, which exists. `None`: this user may not mount, and need not.
    pub fn mount(at: &'a Path, megabytes: u32) -> Option<Volume<'a>> {
        let size = format!("size={megabytes}m");
        match tool("mount", &["-t", "tmpfs", "-o", &size, "stillwell-test"], &[at]) {
            Ok(()) => Some(Volume(at)),
            Err(why) => {
                without(&why);
                None
            }
        }
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
    /// Mounts one of `megabytes` at `at`, which exists. `None`: this user may not, or lacks the tools, and need not.
    pub fn mount(at: &Path, megabytes: u64) -> Option<Disk> {
        let disk = Disk { at: at.to_owned(), around: crate::scratch() };
        match disk.make(megabytes) {
            Ok(()) => Some(disk),
            Err(why) => {
                without(&why);
                None
            }
        }
    }

    fn make(&self, megabytes: u64) -> Result<(), String> {
        let (whole, inner) = (self.around.path().join("whole"), self.around.path().join("inner"));
        std::fs::create_dir(&inner).map_err(|error| format!("{}: {error}", inner.display()))?;
        // No journal: with one the file system goes read-only, and stays so until somebody mounts it anew.
        for (file, bytes, folder) in
            [(whole, (megabytes + 64) << 20, &inner), (self.file(), megabytes << 20, &self.at)]
        {
            let sized = std::fs::File::create(&file).and_then(|file| file.set_len(bytes));
            sized.map_err(|error| format!("{}: {error}", file.display()))?;
            tool("mkfs.ext4", &["-q", "-F", "-O", "^has_journal"], &[&file])?;
            tool("mount", &["-o", "loop"], &[&file, folder])?;
        }
        Ok(())
    }

    fn file(&self) -> PathBuf {
        self.around.path().join("inner/disk")
    }

    /// Nothing can be written from now on. False: the tool lacks, or the right to, and this user need not have it.
    pub fn breaks(&self) -> bool {
        match tool("chattr", &["+i"], &[&self.file()]) {
            Ok(()) => true,
            Err(why) => {
                without(&why);
                false
            }
        }
    }

    /// All can be again.
    pub fn mend(&self) {
        tool("chattr", &["-i"], &[&self.file()]).expect("the disk can be mended");
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
            tool("umount", &[], &[&self.at])
        });
    }

    fn back(&self) {
        // What it mends it says by its exit code.
        let _ = tool("e2fsck", &["-f", "-y"], &[&self.file()]);
        tool("mount", &["-o", "loop"], &[&self.file(), &self.at]).expect("the disk can be mounted again");
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

/// Runs a tool.
///
/// # Errors
/// Why it is not there, or what it said against it.
fn tool(name: &str, arguments: &[&str], paths: &[&Path]) -> Result<(), String> {
    // Some are outside a user's path.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let done = Command::new(name).args(arguments).args(paths).env("PATH", path).output();
    let done = done.map_err(|error| format!("{name}: {error}"))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(format!("{name} {arguments:?} {paths:?}: {}", String::from_utf8_lossy(&done.stderr))),
    }
}

/// Says `none` where root is to pass without a disk.
pub const WAIVED: &str = "STILLWELL_TEST_MOUNTS";

/// The test goes without a disk, for this reason; unless whoever runs it is to have all tests.
#[track_caller]
fn without(why: &str) {
    assert!(
        !is_needed(std::env::var_os),
        "no disk of the test's own, without which it shows nothing: {why}\n\
         (who is root where nothing may be mounted, as in most containers, says {WAIVED}=none)"
    );
}

/// Whether a test that has no disk must fail: in CI, and for root, unless somebody has said otherwise.
pub fn is_needed(variable: impl Fn(&'static str) -> Option<OsString>) -> bool {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|itself| itself.uid() == 0);
    let ci = variable("CI").is_some_and(|ci| !ci.is_empty() && ci != "false");
    (is_root || ci) && variable(WAIVED).is_none_or(|waived| waived != "none")
}
