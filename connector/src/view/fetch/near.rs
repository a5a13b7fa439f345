//! A delta that needs no fetching: it is in the cache, it came with its announcement, or it lies in a folder.
//!
//! Each trip to a blocking thread and back costs what it takes to wake one, a quarter of a millisecond and more on a busy machine. So
//! what can be had without waiting for anybody is brought, and applied, in one; or in none, by a thread that may be blocked for a moment.
//! A folder may be another machine's, and hang: there it is read only if it lies on a disk of this one, and only as far as the system
//! has it in memory.
//!
//! Owns: what that is. Does not own: all other ways (`fetch`), which are taken where this has nothing, and say why they fail.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use bytes::Bytes;

use super::{Fetcher, apply, inline_is_damaged, write};
use crate::version::{BlobRef, DeltaRef};
use crate::view::{About, Error, FileName, Held, Identity, View};

/// Most bytes of a blob that is read whole.
const WHOLE: u64 = 4 << 20;

/// How far what lies in a folder may be away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// In the memory of this machine's system, its path included: nobody is waited for.
    Memory,
    /// Wherever the folder is.
    Disk,
}

impl Fetcher {
    /// `view` with a delta that is at hand; `None`: it is to be fetched. Blocks.
    pub(super) fn apply_near(
        &self,
        view: &View,
        delta: &DeltaRef,
        inline: Option<Bytes>,
        about: About,
        reach: Reach,
    ) -> Result<Option<View>, Error> {
        let held = self.at_hand(view.identity(), delta, inline, reach)?;
        held.map(|held| apply(view, &held, delta, about, self.most)).transpose()
    }

    /// It, in the cache.
    pub(super) fn at_hand(
        &self,
        identity: &Identity,
        delta: &DeltaRef,
        inline: Option<Bytes>,
        reach: Reach,
    ) -> Result<Option<Held>, Error> {
        let name = FileName::delta(delta);
        if let Some(held) = self.cache.find(identity, &name)? {
            return Ok(Some(held));
        }
        let within = inline.is_some();
        let Some(stored) = inline.or_else(|| self.in_folder(&delta.blob, reach)) else { return Ok(None) };
        let url = self.store.absolute_url(&delta.blob.name);
        let out = self.cache.temporary(identity)?;
        match write(out, name.kind, &delta.blob, &url, std::iter::once(stored)) {
            Ok(temporary) => self.cache.keep(identity, &name, temporary).map(Some),
            Err(Error::CorruptBlob { detail, .. }) => {
                // A damaged one of the folder is read again by who warns of it.
                if within {
                    inline_is_damaged(&delta.blob, &detail);
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The stored form of a blob that is not large, where the store is a folder. One that cannot be read is left to who says why.
    fn in_folder(&self, blob: &BlobRef, reach: Reach) -> Option<Bytes> {
        if self.local || blob.bytes > WHOLE {
            return None;
        }
        let path = self.store.file(&blob.name)?;
        // One byte more shows that it is another.
        let most = blob.bytes as usize + 1;
        let stored = match reach {
            Reach::Memory if self.own_disk.get() == Some(&true) => in_memory(&path, most)?,
            Reach::Memory => return None,
            Reach::Disk => {
                let file = File::open(path).ok()?;
                self.own_disk.get_or_init(|| is_own_disk(&file));
                let mut stored = Vec::with_capacity(most);
                file.take(most as u64).read_to_end(&mut stored).ok()?;
                stored
            }
        };
        Some(stored.into())
    }
}

/// Whether a file lies on a disk of this machine, or in its memory: to open one of another machine's is to ask that, and it may not
/// answer. Unknown file systems count as another machine's. The numbers are those of `linux/magic.h`, `statfs(2)` names them.
#[cfg(target_os = "linux")]
fn is_own_disk(file: &File) -> bool {
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    const F2FS: u64 = 0xf2f5_2010;
    const TMPFS: u64 = 0x0102_1994;
    const OVERLAYFS: u64 = 0x794c_7630;
    let of = rustix::fs::fstatfs(file).map(|of| of.f_type as u64 & 0xffff_ffff);
    of.is_ok_and(|of| [EXT, XFS, BTRFS, F2FS, TMPFS, OVERLAYFS].contains(&of))
}

/// No other system says whether a read would wait.
#[cfg(not(target_os = "linux"))]
fn is_own_disk(_: &File) -> bool {
    false
}

/// The first `most` bytes of a file, or all that it has, if the system can open and read it without waiting for a disk or for another
/// machine.
#[cfg(target_os = "linux")]
pub(super) fn in_memory(path: &Path, most: usize) -> Option<Vec<u8>> {
    use std::io::IoSliceMut;

    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
    use rustix::io::{ReadWriteFlags, preadv2};

    // Of a pipe it does not wait for who writes.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).ok()?;
    let mut stored = vec![0; most];
    let mut read = 0;
    loop {
        let rest = stored.get_mut(read..).filter(|rest| !rest.is_empty());
        let Some(rest) = rest else { return Some(stored) };
        match preadv2(&file, &mut [IoSliceMut::new(rest)], read as u64, ReadWriteFlags::NOWAIT).ok()? {
            0 => break,
            more => read += more,
        }
    }
    stored.truncate(read);
    Some(stored)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn in_memory(_: &Path, _: usize) -> Option<Vec<u8>> {
    None
}
