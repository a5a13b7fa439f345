//! Processes that tests start: from its fork to its exec a child has all sockets of this process, and keeps them open.

use std::io;
use std::process::{Child, Command, Output, Stdio};
use std::sync::RwLock;

/// Held shared by who starts a process, alone by who closes a socket and needs its port at once.
pub(crate) static FORKS: RwLock<()> = RwLock::new(());

/// Starts a process. Back from here it has run its exec.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let _shared = FORKS.read();
    command.spawn()
}

/// What a process says until its end.
pub(crate) fn output(command: &mut Command) -> io::Result<Output> {
    spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?.wait_with_output()
}
