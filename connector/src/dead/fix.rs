//! A program that mends values: `--fix COMMAND`.
//!
//! For each letter `sh -c COMMAND` is started anew. On its standard input it finds the value, byte for byte; what it
//! writes to its standard output is the new one, byte for byte. Exit code 0: the record is replayed with it. Any other:
//! the letter is left for a later run, and its first line on standard error is said. Environment:
//!
//! | variable | |
//! | --- | --- |
//! | `STILLWELL_KEY`, `STILLWELL_KEY_BASE64` | the key, as text (what is not UTF-8 replaced) and exactly; unset where it has none |
//! | `STILLWELL_STAGE`, `STILLWELL_ERROR`, `STILLWELL_REASON` | where it failed, the kind of failure, what was wrong |
//! | `STILLWELL_TOPIC`, `STILLWELL_PARTITION`, `STILLWELL_OFFSET` | where the record was; unset where that is not known |
//! | `STILLWELL_TIMESTAMP`, `STILLWELL_REPLAYS` | milliseconds since the Unix epoch; how often it was replayed |
//! | `STILLWELL_VALUE` | `--into dataset` only: `row` where the value is JSON, `unread` where it is as in the source, since it cannot be read |
//! | `STILLWELL_NULL` | `1` where it has no value (a delete): what is written then makes it one with a value, nothing leaves it |
//!
//! A program has a bounded time, after which it is killed with all that it started, and its output is bounded: the key
//! and headers stay as they were in any case, and no program holds up a replay.
//!
//! Owns: the processes. Does not own: which letters, and what becomes of them (`replay`).

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::held::{Form, Held};
use crate::clock::Clock;
use crate::kafka::transaction::BULK_LIMIT;

/// Most of what it says on standard error that is kept.
const MOST_SAID: u64 = 4_096;

/// How to mend.
#[derive(Clone, Debug)]
pub enum Fix {
    /// By a program, as above.
    Program(Program),
    /// Here, by a function: the new value, or why there is none.
    Here(fn(&Held) -> Mended),
}

/// A value that was mended, `None` where it is null; or why it was not.
pub type Mended = Result<Option<Bytes>, String>;

impl Fix {
    /// Mends letters, and says of each what came of it. In their order. Blocks.
    ///
    /// # Errors
    /// Where no process can be started at all.
    pub fn mend(&self, clock: &Clock, letters: &[&Held]) -> io::Result<Vec<Mended>> {
        match self {
            Fix::Program(program) => program.mend(clock, letters),
            Fix::Here(function) => Ok(letters.iter().map(|letter| function(letter)).collect()),
        }
    }
}

/// In unit tests not while another one closes a socket and needs its port at once.
fn start(command: &mut Command) -> io::Result<Child> {
    #[cfg(test)]
    let _shared = crate::failpoint::forks::FORKS.read();
    command.spawn()
}

/// What a shell ends with where it finds no such program, or may not run it.
const NOT_RUN: [Option<i32>; 2] = [Some(126), Some(127)];

/// A program.
#[derive(Clone, Debug)]
pub struct Program {
    /// What the shell is given.
    pub command: String,
    /// Longest time for one letter.
    pub timeout: Duration,
}

impl Program {
    /// As many at a time as there are processors.
    fn mend(&self, clock: &Clock, letters: &[&Held]) -> io::Result<Vec<Mended>> {
        let at_a_time = std::thread::available_parallelism().map_or(1, usize::from);
        let mut mended = Vec::with_capacity(letters.len());
        for some in letters.chunks(at_a_time) {
            let done: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> =
                    some.iter().map(|letter| scope.spawn(|| self.one(clock, letter))).collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                    .collect()
            });
            for one in done {
                mended.push(one?);
            }
        }
        Ok(mended)
    }

    fn one(&self, clock: &Clock, letter: &Held) -> io::Result<Mended> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(&self.command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: what it starts ends with it.
        command.process_group(0);
        environment(&mut command, letter);
        let mut child = Running(start(&mut command)?);
        let (mut input, output, errors) =
            (child.0.stdin.take(), child.0.stdout.take(), child.0.stderr.take());
        let value = letter.value.clone().unwrap_or_default();
        let deadline = clock.now() + self.timeout;
        let (told, tells) = mpsc::channel();
        // Not scoped: a process that got out of its group could hold a pipe open for ever, and its thread with it.
        std::thread::spawn(move || {
            // One that does not read its input is free not to.
            let _ = input.as_mut().map(|input| input.write_all(&value));
            drop(input);
        });
        let said = std::thread::spawn(move || {
            let mut said = Vec::new();
            let mut errors = errors?;
            let read = errors.by_ref().take(MOST_SAID).read_to_end(&mut said);
            // The rest is read too, or it would wait for somebody who does.
            let _ = io::copy(&mut errors, &mut io::sink());
            read.ok().map(|_| said)
        });
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let read =
                output.map_or(Ok(0), |output| output.take(BULK_LIMIT as u64 + 1).read_to_end(&mut bytes));
            let _ = told.send(read.map(|_| bytes));
        });
        let left = deadline.saturating_duration_since(clock.now());
        let Ok(read) = tells.recv_timeout(left) else {
            return Ok(Err(format!(
                "the program took longer than {}",
                humantime::format_duration(self.timeout)
            )));
        };
        let bytes = match read {
            Err(error) => return Ok(Err(format!("what the program wrote cannot be read: {error}"))),
            Ok(bytes) if bytes.len() > BULK_LIMIT => {
                return Ok(Err(format!("the program wrote more than {BULK_LIMIT} bytes")));
            }
            Ok(bytes) => bytes,
        };
        // It has closed its output, and may go on all the same.
        let Some(status) = child.wait_until(clock, deadline)? else {
            return Ok(Err(format!(
                "the program took longer than {}",
                humantime::format_duration(self.timeout)
            )));
        };
        if !status.success() {
            drop(child);
            let said = said.join().ok().flatten().unwrap_or_default();
            if NOT_RUN.contains(&status.code()) {
                return Err(io::Error::new(io::ErrorKind::NotFound, first_line(&said).unwrap_or_default()));
            }
            return Ok(Err(refusal(status, &said)));
        }
        let none = letter.value.is_none() && bytes.is_empty();
        Ok(Ok((!none).then(|| Bytes::from(bytes))))
    }
}

fn environment(command: &mut Command, letter: &Held) {
    let source = letter.source.as_ref();
    let set = [
        (
            "STILLWELL_KEY",
            letter.key.as_ref().map(|key| String::from_utf8_lossy(key).replace('\0', "\u{fffd}")),
        ),
        ("STILLWELL_KEY_BASE64", letter.key.as_ref().map(|key| STANDARD.encode(key))),
        ("STILLWELL_STAGE", Some(letter.stage.clone())),
        ("STILLWELL_ERROR", Some(letter.class.clone())),
        ("STILLWELL_REASON", Some(letter.message.replace('\0', "\u{fffd}"))),
        ("STILLWELL_TOPIC", source.map(|source| source.topic.clone())),
        ("STILLWELL_PARTITION", source.map(|source| source.partition.to_string())),
        ("STILLWELL_OFFSET", source.map(|source| source.offset.to_string())),
        ("STILLWELL_TIMESTAMP", Some(letter.timestamp.to_string())),
        ("STILLWELL_REPLAYS", Some(letter.replays.to_string())),
        (
            "STILLWELL_VALUE",
            match letter.form {
                Form::Source => None,
                Form::Row => Some("row".to_owned()),
                Form::Unread => Some("unread".to_owned()),
            },
        ),
        ("STILLWELL_NULL", letter.value.is_none().then(|| "1".to_owned())),
    ];
    for (name, value) in set {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
}

fn first_line(said: &[u8]) -> Option<String> {
    let said = String::from_utf8_lossy(said);
    said.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

fn refusal(status: ExitStatus, said: &[u8]) -> String {
    match first_line(said) {
        Some(line) => format!("the program would not mend it ({status}): {line}"),
        None => format!("the program would not mend it ({status})"),
    }
}

/// A process, killed with its group when dropped.
struct Running(Child);

impl Running {
    /// Its end; `None` where it has none by then.
    fn wait_until(&mut self, clock: &Clock, deadline: std::time::Instant) -> io::Result<Option<ExitStatus>> {
        let mut pause = Duration::from_micros(100);
        let (_never, waits) = mpsc::channel::<()>();
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            if clock.now() >= deadline {
                return Ok(None);
            }
            // Mostly it has ended, or is about to.
            let _ = waits.recv_timeout(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = rustix::process::Pid::from_raw(self.0.id() as i32) {
            // Gone already is as good.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(value: Option<&'static [u8]>) -> Held {
        Held {
            key: Some(Bytes::from_static(b"P-\xff1")),
            value: value.map(Bytes::from_static),
            stage: "VALUE_CONVERTER".to_owned(),
            message: "it ends too early".to_owned(),
            replays: 3,
            ..Held::default()
        }
    }

    fn mend(command: &str, value: Option<&'static [u8]>) -> Mended {
        let fix = Program { command: command.to_owned(), timeout: Duration::from_secs(30) };
        fix.mend(&Clock::system(), &[&letter(value)]).unwrap().pop().unwrap()
    }

    #[test]
    fn a_value_goes_through_byte_for_byte() {
        let any = Bytes::from_static(b"\x00\xff{\n");
        assert_eq!(mend("cat", Some(b"\x00\xff{\n")), Ok(Some(any)));
        assert_eq!(mend("true", Some(b"x")), Ok(Some(Bytes::new())), "empty is not null");
        assert_eq!(mend("cat", None), Ok(None));
        assert_eq!(mend("printf '{}'", None), Ok(Some(Bytes::from_static(b"{}"))));
        let large: &'static [u8] = vec![b'x'; 3 << 20].leak();
        assert_eq!(mend("cat", Some(large)).map(|value| value.map(|value| value.len())), Ok(Some(3 << 20)));
        assert_eq!(mend("printf y", Some(large)), Ok(Some(Bytes::from_static(b"y"))), "it need not read");
    }

    #[test]
    fn it_is_told_what_was_wrong() {
        let told = mend(
            "printf '%s|%s|%s|%s|%s' \"$STILLWELL_KEY_BASE64\" \"$STILLWELL_STAGE\" \"$STILLWELL_REASON\" \
             \"$STILLWELL_REPLAYS\" \"${STILLWELL_TOPIC-unset}\"",
            Some(b"x"),
        );
        let expected = "UC3/MQ==|VALUE_CONVERTER|it ends too early|3|unset";
        assert_eq!(told, Ok(Some(Bytes::from_static(expected.as_bytes()))));
    }

    #[test]
    fn who_will_not_mend_says_why() {
        let refused = mend("echo 'no such unit' >&2; echo more >&2; exit 3", Some(b"x")).unwrap_err();
        assert!(
            refused.contains("no such unit") && refused.contains('3') && !refused.contains("more"),
            "{refused}"
        );
        assert!(mend("kill -9 $$", Some(b"x")).is_err());
    }

    #[test]
    fn a_program_that_is_not_there_leaves_no_letter_but_ends_it() {
        let fix =
            Program { command: "no-such-program-anywhere".to_owned(), timeout: Duration::from_secs(30) };
        let error = fix.mend(&Clock::system(), &[&letter(Some(b"x"))]).unwrap_err();
        assert!(
            error.kind() == io::ErrorKind::NotFound && error.to_string().contains("not found"),
            "{error}"
        );
    }

    #[test]
    fn who_takes_too_long_is_killed_with_all_that_it_started() {
        let mark = tempfile::NamedTempFile::new().unwrap();
        let command = format!("sleep 600 & echo $! > {}; wait", mark.path().display());
        // A second is enough for a shell to start; not on any machine at any moment.
        let killed = [1, 5, 30].into_iter().find_map(|seconds| {
            let fix = Program { command: command.clone(), timeout: Duration::from_secs(seconds) };
            let said =
                fix.mend(&Clock::system(), &[&letter(Some(b"x"))]).unwrap().pop().unwrap().unwrap_err();
            assert!(said.contains(&format!("longer than {seconds}s")), "{said}");
            std::fs::read_to_string(mark.path()).unwrap().trim().parse::<i32>().ok()
        });
        let pid = killed.expect("it starts, within half a minute");
        let deadline = Clock::system().now() + Duration::from_secs(30);
        // Killed by then; whoever inherits it may take a moment to bury it.
        let is_gone = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        while !is_gone() {
            assert!(Clock::system().now() < deadline, "{pid} runs");
            std::thread::yield_now();
        }
    }

    #[test]
    fn letters_come_back_in_their_order() {
        let values: [&'static [u8]; 5] = [b"1", b"2", b"3", b"4", b"5"];
        let letters = values.map(|value| letter(Some(value)));
        let fix = Program { command: "cat".to_owned(), timeout: Duration::from_secs(30) };
        let mended = fix.mend(&Clock::system(), &letters.iter().collect::<Vec<_>>()).unwrap();
        let mended: Vec<_> = mended.into_iter().map(|one| one.unwrap().unwrap()).collect();
        assert_eq!(mended, values);
    }
}
