//! The `stillwell` binary, run as its user runs it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use tempfile::TempDir;

use crate::guard::{self, Guard};
use crate::{scratch, wait_until, workspace};

/// The Python with what `testcontainers-config/NAME` wants, which `.ci/python` installs where it is missing.
pub fn python(name: &str) -> String {
    installed(".ci/python", &[name])
}

/// What a script of `.ci` installs, and says where.
pub fn installed(by: &str, arguments: &[&str]) -> String {
    let installed =
        Command::new("bash").arg(workspace().join(by)).args(arguments).stdin(Stdio::null()).output();
    let installed = installed.expect("bash runs");
    let complaint = String::from_utf8_lossy(&installed.stderr);
    assert!(installed.status.success(), "{by} {arguments:?}: {complaint}");
    String::from_utf8_lossy(&installed.stdout).trim().to_owned()
}

/// A command that runs the binary under test, without any `STILLWELL_*` of the surroundings.
///
/// The binary is `STILLWELL_BIN`, as `make test` sets it, else what cargo builds here and now: with the whole workspace
/// selected, as for the tests, so that features and with them the dependencies are the same.
pub fn stillwell<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    static BINARY: LazyLock<PathBuf> = LazyLock::new(binary);
    let mut command = Command::new(&*BINARY);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("STILLWELL_") {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    command
}

/// `command` as a user without rights. Root becomes uid 65534 for it, by setpriv (util-linux, which every Debian has);
/// anybody else is such a user already.
///
/// The binary may lie where only root gets to, so root's is linked or copied into `reachable`, a folder for all.
pub fn unprivileged(command: &Command, reachable: &Path) -> Command {
    let itself = std::fs::metadata("/proc/self").map(|itself| itself.uid());
    let mut binary = PathBuf::from(command.get_program());
    let mut changed = match itself.unwrap_or(0) {
        0 => {
            let copy = reachable.join("stillwell-for-all");
            if !copy.is_file() && std::fs::hard_link(&binary, &copy).is_err() {
                std::fs::copy(&binary, &copy).unwrap_or_else(|e| panic!("copying {}: {e}", binary.display()));
            }
            binary = copy;
            let mut setpriv = Command::new("setpriv");
            setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&binary);
            setpriv
        }
        _ => Command::new(&binary),
    };
    changed.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => changed.env(name, value),
            None => changed.env_remove(name),
        };
    }
    changed
}

fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("STILLWELL_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "STILLWELL_BIN names no file: {}", path.display());
        return path;
    }
    build(&["--bins"]).join("stillwell")
}

/// A command that runs one of the connector's examples. Cargo builds them with all tests; where only some of those were asked
/// for, it is built here and now.
pub fn example(name: &str) -> Command {
    let path = Path::new("examples").join(name);
    let built = profile().join(&path);
    match built.is_file() {
        true => Command::new(built),
        false => Command::new(build(&["--example", name]).join(path)),
    }
}

/// Where cargo puts what it builds as it has built this test.
fn profile() -> PathBuf {
    // TARGET/PROFILE/deps/test-hash
    let test = std::env::current_exe().expect("a test binary knows its path");
    test.ancestors().nth(2).expect("a test binary lies in PROFILE/deps").to_owned()
}

/// Has cargo build this of the workspace; gives where it lies.
fn build(what: &[&str]) -> PathBuf {
    let folder = profile();
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "--workspace"]).args(what).current_dir(workspace());
    if folder.ends_with("release") {
        build.arg("--release");
    }
    let status = build.status().expect("cargo can be started");
    assert!(status.success(), "{what:?} of the workspace does not build: {status}");
    folder
}

/// A process that was started and may still run; killed when dropped, and when the test binary ends.
#[derive(Debug)]
pub struct Running {
    child: Child,
    output: TempDir,
    ended: Option<ExitStatus>,
    _guard: Guard,
}

/// What a process left.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error: the logs.
    pub stderr: String,
}

impl Finished {
    /// The exit code; -1 after a signal.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Panics with all that was printed unless the exit code is `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Finished {
        assert_eq!(self.code(), code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }
}

impl Running {
    /// Starts `command`, its standard input empty unless it says otherwise, its output kept for the test to look at.
    pub fn start(command: &mut Command) -> Running {
        Running::start_with_stdin(command.stdin(Stdio::null()))
    }

    /// Starts `command` with the standard input that it was given.
    pub fn start_with_stdin(command: &mut Command) -> Running {
        let output = scratch();
        let file = |name: &str| {
            std::fs::File::create(output.path().join(name)).expect("a file in a new folder can be made")
        };
        let child = command
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .unwrap_or_else(|e| panic!("starting {}: {e}", command.get_program().display()));
        let guard = guard::kill_at_end(child.id());
        Running { child, output, ended: None, _guard: guard }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        self.text("stdout")
    }

    /// What it has logged so far.
    pub fn stderr(&self) -> String {
        self.text("stderr")
    }

    fn text(&self, name: &str) -> String {
        let bytes = std::fs::read(self.output.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child's state can be asked for");
        }
        self.ended
    }

    /// Sends `TERM`, `INT`, `KILL`, `HUP`, `STOP` or `CONT`.
    pub fn signal(&mut self, name: &str) {
        assert!(self.signal_unless_ended(name), "it has ended already\n{}", self.stderr());
    }

    /// Sends a signal to who may end by itself meanwhile. False: it has ended.
    pub fn signal_unless_ended(&mut self, name: &str) -> bool {
        if self.ended().is_some() {
            return false;
        }
        // One that ends now takes its signal all the same: only `ended` lets go of its id.
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(status.expect("kill can be started").success(), "kill -{name} {}", self.pid());
        true
    }

    /// Waits until it has logged or printed `text`; panics if it ends before.
    #[track_caller]
    pub fn wait_for_text(&mut self, text: &str, deadline: Duration) {
        wait_until(&format!("the process says {text:?}"), deadline, || {
            let ended = self.ended();
            let said = self.stdout() + &self.stderr();
            if said.contains(text) {
                return Ok(());
            }
            if let Some(status) = ended {
                panic!("it ended ({status}) without {text:?}:\n{said}");
            }
            Err(said)
        });
    }

    /// Waits for its end; at the deadline it is killed and the test fails with what it printed.
    #[track_caller]
    pub fn wait(mut self, deadline: Duration) -> Finished {
        let status = wait_until("the process ends", deadline, || {
            self.ended()
                .ok_or_else(|| format!("it runs\nstdout:\n{}\nstderr:\n{}", self.stdout(), self.stderr()))
        });
        Finished { status, stdout: self.stdout(), stderr: self.stderr() }
    }

    /// `TERM`, then its end.
    #[track_caller]
    pub fn stop(mut self, deadline: Duration) -> Finished {
        self.signal("TERM");
        self.wait(deadline)
    }
}

/// Runs `command` to its end.
#[track_caller]
pub fn run(command: &mut Command, deadline: Duration) -> Finished {
    Running::start(command).wait(deadline)
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            // Into the captured output of the failed test.
            let log = self.stderr();
            let lines: Vec<&str> = log.lines().collect();
            let tail: Vec<&str> = lines.iter().copied().skip(lines.len().saturating_sub(60)).collect();
            println!("--- process {} logged last:\n{}", self.pid(), tail.join("\n"));
        }
    }
}
