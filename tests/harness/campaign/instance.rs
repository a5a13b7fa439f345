//! A `stillwell run` that is killed, stopped and started again; what it says over HTTP, in its log and to the system.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use stillwell::clock::Clock;

use super::fair::Patience;
use crate::process::{Running, stillwell};

/// Longest answer to one HTTP request.
const ANSWER: Duration = Duration::from_secs(5);
/// For what promises no time and takes a moment: the end of a process that was killed, a command that looks at a small log.
/// What takes longer on a machine that works hangs.
const A_MOMENT: Duration = Duration::from_secs(60);

/// Where an instance listens at the moment; `None` while it is down. Shared with who watches it.
pub type Address = Arc<Mutex<Option<SocketAddr>>>;

/// One instance of a dataset, over all of its processes.
#[derive(Debug)]
pub struct Instance {
    name: String,
    role: Option<&'static str>,
    config: PathBuf,
    data: PathBuf,
    running: Option<Running>,
    address: Address,
    /// Log of the processes before the present one.
    past: String,
    deaths: u64,
    /// Whether the last process got so far that its log must be there.
    has_log: bool,
    patience: Patience,
}

/// Offsets `[from, to)` of a partition that a log holds without a gap.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "the command's words")]
pub struct Logged {
    pub partition: i32,
    pub from: i64,
    pub to: i64,
}

/// What a process was when it was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Size {
    /// Highest resident memory, bytes.
    pub rss: u64,
    /// Bytes of its log on disk.
    pub log: u64,
    /// Records that wait in its memory.
    pub pending: u64,
}

impl Instance {
    /// An instance called `name` with a directory of its own under `dir`; `text` is the rest of its configuration.
    /// Without a role it writes and reads.
    pub fn new(dir: &Path, name: &str, role: Option<&'static str>, text: &str) -> Instance {
        let data = dir.join(name);
        std::fs::create_dir_all(&data).expect("a folder can be made");
        let config = data.join("stillwell.toml");
        let whole = format!(
            "instance_id = \"{name}\"\n\
             [log]\nformat = \"json\"\nlevel = \"info,stillwell::producer=debug\"\n\
             [http]\nlisten = \"127.0.0.1:0\"\n\
             {text}"
        );
        std::fs::write(&config, whole.replace("DATA_DIR", &data.join("data").display().to_string()))
            .expect("a configuration can be written");
        Instance {
            name: name.to_owned(),
            role,
            config,
            data: data.join("data"),
            running: None,
            address: Address::default(),
            past: String::new(),
            deaths: 0,
            has_log: false,
            patience: Patience::new(&Clock::system(), dir),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Removes what lies below its data directory: all of it, or the folder called `part`.
    pub fn lose(&mut self, part: &str) {
        let _ = std::fs::remove_dir_all(self.data.join(part));
        if part.is_empty() || part == "log" {
            self.has_another_log();
        }
    }

    /// Another disk lies where its log was, and maybe no log on it.
    pub fn has_another_log(&mut self) {
        self.has_log = false;
    }

    /// What `stillwell log inspect` finds in its log, by partition: first offset and the position behind the last. For
    /// while it is down.
    ///
    /// No log is an empty one where the last process did not come to open it. Where it did, a log that is gone was lost.
    ///
    /// # Errors
    /// What the command said.
    pub fn logged(&self, dataset: &str) -> Result<Vec<Logged>, String> {
        let dir = self.data.join("log").join(dataset);
        if !self.has_log && !dir.exists() {
            return Ok(Vec::new());
        }
        let dir = dir.display().to_string();
        let command = &mut stillwell(["log", "inspect", "--output", "json", "--dir", &dir]);
        let mut inspecting = Running::start(command.stdin(Stdio::null()));
        if self.patience.held(A_MOMENT, || inspecting.ended().ok_or(())).is_err() {
            return Err(format!("log inspect of {dir} does not end\n{}", inspecting.stderr()));
        }
        let done = inspecting.wait(A_MOMENT);
        if !self.has_log && done.stdout.is_empty() && done.stderr.contains("no log lies there") {
            return Ok(Vec::new());
        }
        let seen: Value = serde_json::from_str(&done.stdout)
            .map_err(|error| format!("log inspect: {error}\n{}{}", done.stdout, done.stderr))?;
        let ranges = seen.get("ranges").and_then(Value::as_array).ok_or("log inspect names no ranges")?;
        let logged = |range: &Value| {
            Some(Logged {
                partition: range.get("partition")?.as_i64()? as i32,
                from: range.get("from")?.as_i64()?,
                to: range.get("to")?.as_i64()?,
            })
        };
        ranges.iter().map(|range| logged(range).ok_or_else(|| format!("log inspect: {range}"))).collect()
    }

    /// Starts a process, with `failpoints` armed where there are any.
    pub fn start(&mut self, failpoints: Option<&str>) {
        assert!(self.running.is_none(), "{} runs already", self.name);
        let mut command = stillwell(["run", "-c", &self.config.display().to_string()]);
        if let Some(role) = self.role {
            command.args(["--role", role]);
        }
        command.env_remove("FAILPOINTS");
        if let Some(failpoints) = failpoints {
            command.env("FAILPOINTS", failpoints);
        }
        command.env("FAILPOINTS_CLOCK", self.config.with_file_name("clock"));
        self.running = Some(Running::start(&mut command));
    }

    /// Sets the wall clock of its processes off by so many milliseconds, from now on.
    pub fn skew(&mut self, ms: i64) {
        let path = self.config.with_file_name("clock");
        let next = path.with_extension("next");
        let set = std::fs::write(&next, ms.to_string()).and_then(|()| std::fs::rename(&next, &path));
        set.expect("a file can be written");
    }

    /// Whether a process is there, running or stopped.
    pub fn is_up(&mut self) -> bool {
        self.running.as_mut().is_some_and(|running| running.ended().is_none())
    }

    /// Whether its process is stopped, as by SIGSTOP.
    pub fn is_stopped(&mut self) -> bool {
        let Some(running) = &self.running else { return false };
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", running.pid())).unwrap_or_default();
        // The state stands behind the name, which may hold anything and ends with the last parenthesis.
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    }

    /// Sends a signal to the process.
    pub fn signal(&mut self, name: &str) {
        self.running.as_mut().expect("it runs").signal(name);
    }

    /// SIGKILL, and its end.
    pub fn kill(&mut self) {
        if self.is_up() {
            self.signal("KILL");
        }
        self.wait(A_MOMENT);
    }

    /// Processes of it that died: by SIGKILL, or by their own hand at a failpoint.
    pub fn deaths(&self) -> u64 {
        self.deaths
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self, deadline: Duration) -> ExitStatus {
        self.signal("TERM");
        self.wait(deadline)
    }

    /// Waits for the process's end, `deadline` of the time that counts; its log is kept.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let running = self.running.as_mut().expect("it was started");
        let ended = self.patience.held(deadline, || running.ended().ok_or(()));
        let status = ended.unwrap_or_else(|()| panic!("{} does not end\n{}", self.name, running.stderr()));
        self.forget(status);
        status
    }

    /// Its end, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.running.as_mut()?.ended()?;
        self.forget(status);
        Some(status)
    }

    fn forget(&mut self, status: ExitStatus) {
        self.deaths += u64::from(status.signal().is_some());
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(running) = self.running.take() {
            let log = running.stderr();
            // A writer opens its log before it listens.
            self.has_log |= self.role != Some("consumer") && log.contains("listening for HTTP");
            self.past.push_str(&log);
        }
    }

    /// Everything that its processes have logged.
    pub fn log(&self) -> String {
        let now = self.running.as_ref().map(Running::stderr).unwrap_or_default();
        format!("{}{now}", self.past)
    }

    /// What the present process has logged.
    pub fn log_of_this_process(&self) -> String {
        self.running.as_ref().map(Running::stderr).unwrap_or_default()
    }

    /// Where it listens, once it does.
    pub fn listens(&mut self) -> Option<SocketAddr> {
        let known = *self.address.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_some() {
            return known;
        }
        let found = lines(&self.running.as_ref()?.stderr())
            .find(|line| said(line, "message") == "listening for HTTP")
            .and_then(|line| said(&line, "address").parse().ok());
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = found;
        found
    }

    /// Where it listens, for who watches it.
    pub fn address(&self) -> Address {
        self.address.clone()
    }

    /// Asks the process over HTTP.
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn ask(&mut self, path: &str) -> Result<Answer, String> {
        let address = self.listens().ok_or("it does not listen yet")?;
        ask(address, path, "").map_err(|error| error.to_string())
    }

    /// How large it is; `None` where it is not there or does not answer.
    pub fn size(&mut self) -> Option<Size> {
        let pid = self.running.as_ref()?.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let rss = peak.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024;
        Some(Size { rss, ..Size::told(&self.ask("/metrics").ok()?.body) })
    }
}

impl Size {
    /// What metrics tell of it.
    pub fn told(metrics: &str) -> Size {
        let value = |name: &str| {
            let line = metrics.lines().find(|line| line.starts_with(&format!("stillwell_{name}{{")))?;
            line.rsplit_once(' ')?.1.parse::<f64>().ok().map(|value| value as u64)
        };
        let pending =
            value("pending_records").unwrap_or(0).saturating_sub(value("spilled_records").unwrap_or(0));
        Size { rss: 0, log: value("log_bytes").unwrap_or(0), pending }
    }
}

/// The JSON lines of a log.
pub fn lines(log: &str) -> impl Iterator<Item = Value> {
    log.lines().filter_map(|line| serde_json::from_str(line).ok())
}

/// A text of a line, empty where there is none.
pub fn said<'a>(line: &'a Value, name: &str) -> &'a str {
    line.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// An answer over HTTP.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its head, in lower case.
    pub head: String,
    /// Its body.
    pub body: String,
}

/// Asks over a connection of its own.
///
/// # Errors
/// The connection's.
pub fn ask(address: SocketAddr, path: &str, headers: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok(Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
}
