//! Ends what a test binary started, however that binary ends: by its last test, a panic, an abort or a signal.
//!
//! Nothing in the dying process can be trusted with that: statics are not dropped, and a killed process runs no code.
//! So a small shell beside it holds a list of commands and reads its standard input; that pipe closes with the process,
//! and the shell then runs the list, newest first. (A parent-death signal would be tied to the *thread* that
//! started the child, which for a test ends with the test.)

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};

/// `+command` remembers, `-command` forgets. Signals to the terminal's group do not reach it: it outlives Ctrl-C.
const SCRIPT: &str = r#"
todo=
while IFS= read -r line; do
  case $line in
    +*) todo="${line#+}
$todo" ;;
    -*) todo="$(printf '%s' "$todo" | grep -vxF -e "${line#-}")
" ;;
  esac
done
printf '%s\n' "$todo" | sh
"#;

#[expect(clippy::zombie_processes, reason = "it ends after this process, which cannot wait for it then")]
static SHELL: LazyLock<Mutex<ChildStdin>> = LazyLock::new(|| {
    let mut shell = Command::new("sh")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("sh can be started");
    Mutex::new(shell.stdin.take().expect("its standard input is a pipe"))
});

/// A command that runs when this process has ended, unless this value is dropped before.
#[derive(Debug)]
#[must_use = "dropping it forgets the command"]
pub struct Guard(String);

/// Runs `command` (one line of shell) when this process has ended.
pub fn at_end(command: impl Into<String>) -> Guard {
    let command = command.into();
    assert!(!command.contains('\n'), "a guard's command is one line: {command}");
    tell('+', &command);
    Guard(command)
}

/// Kills process `pid` when this process has ended, and waits a moment until it is gone.
pub fn kill_at_end(pid: u32) -> Guard {
    at_end(format!("kill -9 {pid}; for n in 1 2 3 4 5 6 7 8 9; do kill -0 {pid} || break; sleep 0.1; done"))
}

/// `text` as one word of shell.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

impl Drop for Guard {
    fn drop(&mut self) {
        tell('-', &self.0);
    }
}

fn tell(sign: char, command: &str) {
    let mut shell = SHELL.lock().unwrap_or_else(PoisonError::into_inner);
    writeln!(shell, "{sign}{command}").expect("the guard lives as long as this process");
}
