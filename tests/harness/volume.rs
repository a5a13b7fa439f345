//! A small volume of the test's own, in memory, that can be full.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

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
