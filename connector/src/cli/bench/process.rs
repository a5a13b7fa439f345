//! The bench once more, as a process of its own: for what begins with a process, or ends with its death.

use std::ffi::OsStr;
use std::io::Read as _;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use super::made::failed;
use crate::clock::Clock;
use crate::{Error, ErrorKind, Result};

/// One that says how far it is, by a byte on its standard output each time. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    out: ChildStdout,
    started: Instant,
}

impl Process {
    /// `stillwell bench NAME ARGUMENTS…`. Its standard input stays open for as long as this lives.
    pub(super) fn start(
        clock: &Clock,
        name: &str,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Process> {
        let program = std::env::current_exe().map_err(failed)?;
        let started = clock.now();
        let mut child = Command::new(program)
            .args(["bench", name, "--log-level", "warn"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        match child.stdout.take() {
            Some(out) => Ok(Process { child, out, started }),
            None => Err(Error::new(ErrorKind::Internal, "the bench's child has no output")),
        }
    }

    /// When it began.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// Waits until it says that it is one step further, and tells when that was. Blocks.
    pub(super) fn said(&mut self, clock: &Clock) -> Result<Instant> {
        let read = self.out.read_exact(&mut [0]);
        let now = clock.now();
        let ended = "the bench's child ended before it had done what it was started for";
        read.map_err(|error| Error::because(ErrorKind::Internal, ended, error))?;
        Ok(now)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process says, each time that it is one step further.
pub(super) fn say() -> Result<()> {
    super::print(|out| out.write_all(b"."))
}
