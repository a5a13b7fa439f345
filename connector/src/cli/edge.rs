//! The edge between the process and the world: logging, the runtime, stdout, and how an error is told.

use std::error::Error as _;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::Path;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use super::progress::Screen;
use super::{Logging, USAGE};
use crate::config::{Config, Error as Mistaken};
use crate::dead;
use crate::demo;
use crate::host::letters::NoStage;
use crate::kafka;
use crate::producer::topics;
use crate::telemetry::log::{self, Form, Handle, Level};
use crate::words::counted;
use crate::{Error, ErrorKind, Result};

/// What a command found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Exit code 0.
    Yes,
    /// Exit code 1: it worked, and the answer is no (a key is absent, a service is not healthy).
    No,
    /// Exit code 130: told to end at once (Ctrl-C, or twice where the first is graceful), it did.
    Interrupted,
}

/// What every command is given.
#[derive(Debug)]
pub struct Edge {
    logging: Logging,
    /// stderr, shared by logs and progress bars.
    pub screen: Screen,
}

impl Edge {
    pub(super) fn new(logging: Logging) -> Edge {
        Edge { logging, screen: Screen::new() }
    }

    /// Starts logging as flags say, else as the configuration says, else for people. The handle changes the level.
    pub fn log(&self, config: Option<&Config>) -> Option<Handle> {
        let (form, level) = config.map_or((Form::default(), Level::default()), Config::log);
        let form = self.logging.log_format.unwrap_or(form);
        let level = self.logging.log_level.clone().unwrap_or(level);
        log::init(form, &level, self.screen.clone())
    }

    /// Starts logging for a command without a configuration, from `level` up where no flag says another.
    pub fn log_at(&self, level: &str) -> Option<Handle> {
        let level = self.logging.log_level.clone().or_else(|| level.parse().ok()).unwrap_or_default();
        log::init(self.logging.log_format.unwrap_or_default(), &level, self.screen.clone())
    }

    /// A runtime for commands that wait for the network.
    pub fn runtime(&self) -> Result<Runtime> {
        let runtime = Builder::new_multi_thread()
            .enable_all()
            .thread_name("stillwell")
            // A thread that has made a large thing keeps what others have freed of it until it is asked for more, or ends.
            .thread_keep_alive(Duration::from_secs(1))
            .build();
        runtime.map_err(|error| Error::because(ErrorKind::Unavailable, "cannot start threads", error))
    }
}

/// Writes data to stdout, buffered, and flushes it.
pub fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let stdout = io::stdout();
    let is_terminal = stdout.is_terminal();
    let mut out = BufWriter::new(stdout.lock());
    match is_terminal {
        true => {
            let mut out = Escaping { out, lead: false };
            write(&mut out).and_then(|()| out.flush())
        }
        false => write(&mut out).and_then(|()| out.flush()),
    }
    .map_err(unwritten)
}

/// Writes control characters but for ends of lines and tabs as `\u001b`: a record's bytes are anybody's, and must not steer the
/// terminal of who looks at them. Of ours there are none.
struct Escaping<W> {
    out: W,
    /// The last byte begins a character that may be one (U+0080 to U+009F).
    lead: bool,
}

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            match (std::mem::take(&mut self.lead), *byte) {
                (true, 0x80..=0x9f) => write!(self.out, "\\u{byte:04x}")?,
                (lead, byte) => {
                    if lead {
                        self.out.write_all(&[0xc2])?;
                    }
                    match byte {
                        0xc2 => self.lead = true,
                        b'\n' | b'\t' => self.out.write_all(&[byte])?,
                        0..0x20 | 0x7f => write!(self.out, "\\u{byte:04x}")?,
                        _ => self.out.write_all(&[byte])?,
                    }
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.lead) {
            self.out.write_all(&[0xc2])?;
        }
        self.out.flush()
    }
}

/// Why standard output, or a file that the command line names, could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unwritten(io::Error);

/// Tells a person something that is neither data nor an error.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

fn unwritten(error: io::Error) -> Error {
    unwritten_to("standard output", error)
}

/// The error of output that cannot be written, to a file or to standard output.
pub(super) fn unwritten_to(what: &str, error: io::Error) -> Error {
    Error::because(ErrorKind::Unavailable, format!("cannot write to {what}"), Unwritten(error))
}

/// A file that the command line names, and that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoInput(io::Error);

/// Opens a file that the command line names, to read it; a folder is none.
///
/// # Errors
/// [`NoInput`].
pub fn open(path: &Path) -> Result<File> {
    let failed = |error| NoInput::error("cannot read", path, error);
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    Ok(file)
}

/// A file that the command line names, and that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NoOutput(io::Error);

/// Makes a file that the command line names, which must not be there yet.
///
/// # Errors
/// That it cannot be made: exit code 73.
pub fn create_new(path: &Path) -> Result<File> {
    File::create_new(path).map_err(|error| not_made(path, error))
}

/// The error of a file that the command line names, and that cannot be made.
pub(super) fn not_made(path: &Path, error: io::Error) -> Error {
    Error::because(ErrorKind::Rejected, format!("cannot write {}", path.display()), NoOutput(error))
}

impl NoInput {
    /// The error, with what was being done to which file.
    pub fn error(doing: &str, path: &Path, error: io::Error) -> Error {
        Error::because(ErrorKind::Rejected, format!("{doing} {}", path.display()), NoInput(error))
    }
}

fn unwritten_because(error: &Error) -> Option<io::ErrorKind> {
    Some(error.source()?.downcast_ref::<Unwritten>()?.0.kind())
}

/// Whether an error is that nobody reads our output any more.
pub(super) fn is_broken_pipe(error: &Error) -> bool {
    unwritten_because(error) == Some(io::ErrorKind::BrokenPipe)
}

/// The exit code: by kind, save that output that cannot be written is an I/O error (`EX_IOERR`), that a file or program
/// that the command line names and that is not there has a code of its own (`EX_NOINPUT`), as one that cannot be made has
/// (`EX_CANTCREAT`), and that a misspelt stage is a wrong command line.
pub(super) fn exit_code(error: &Error) -> u8 {
    match error.source() {
        _ if unwritten_because(error).is_some() => 74,
        Some(source) if source.is::<NoInput>() => 66,
        Some(source) if matches!(source.downcast_ref(), Some(dead::Error::NoProgram(_))) => 66,
        Some(source) if source.is::<NoOutput>() => 73,
        Some(source) if source.is::<NoStage>() => USAGE,
        _ => error.kind().exit_code(),
    }
}

/// An error as a person reads it: what and where in one line, from the outermost to the cause, then what to do where the
/// line does not say so itself. A configuration's mistakes, and what a check has found, have a line each. `runs`: it is
/// `run`'s, so that a check would have found what is wrong with Kafka's topics and rights.
pub(super) fn tell(error: &Error, runs: bool) -> String {
    let mut text = String::new();
    let configuration = error.source().and_then(|source| source.downcast_ref::<Mistaken>());
    if let Some(Mistaken::Mistakes { file, mistakes, warnings }) = configuration {
        for warning in warnings.list() {
            let _ = writeln!(text, "warning: {warning}");
        }
        for mistake in mistakes.list() {
            let _ = writeln!(text, "error: {mistake}");
        }
        let count = mistakes.list().len();
        let _ = writeln!(text, "{} in {file}", counted(count as u64, "mistake"));
        return text;
    }
    match error.source().and_then(|source| source.downcast_ref::<Faults>()) {
        Some(Faults(faults)) => {
            for fault in faults {
                let _ = writeln!(text, "error: {fault}");
            }
        }
        None => {
            let _ = writeln!(text, "error: {}", error.chain());
        }
    }
    let advice = match error.kind() {
        // It says which file is missing, and how to name another.
        ErrorKind::Config if configuration.is_some() => return text,
        ErrorKind::Config if runs && is_of_kafka(error) => {
            "change it there or in the configuration; `stillwell check --connect` says all that is wrong between them"
        }
        ErrorKind::Config if is_of_demo(error) => "correct what it names, and start again",
        ErrorKind::Config => "correct what it names, or what the configuration says of it, and start again",
        ErrorKind::Unavailable => "look at what it names; once that answers, run this again",
        ErrorKind::Fenced => "nothing: a newer writer has taken over, and this one has stopped",
        ErrorKind::Corrupt => {
            "look at the disk or the store it names; what can be fetched again is, on the next run"
        }
        // What is not acceptable, and what would be, it has said.
        ErrorKind::Rejected => return text,
        ErrorKind::Closed => "it was shut down; start it again if it should run",
        ErrorKind::Internal => "this is a bug: please report it with this line and the log before it",
    };
    let _ = writeln!(text, "what to do: {advice}");
    text
}

/// Whether the cause is Kafka's topics or rights, which `check --connect` looks at.
fn is_of_kafka(error: &Error) -> bool {
    let mut next = error.source();
    while let Some(cause) = next {
        if cause.is::<kafka::Error>() || cause.is::<topics::Error>() {
            return true;
        }
        next = cause.source();
    }
    false
}

/// Whether the demo says it, which has no configuration: all that it is told stands on its command line.
fn is_of_demo(error: &Error) -> bool {
    error.source().is_some_and(|source| source.is::<demo::Error>())
}

/// All that a check has found to be wrong: a sentence each, each once.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Faults(pub Vec<String>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Mistakes, Place};

    #[test]
    fn what_would_steer_a_terminal_is_written_out() {
        let shown = |pieces: &[&[u8]]| {
            let mut out = Vec::new();
            let mut escaping = Escaping { out: &mut out, lead: false };
            pieces.iter().for_each(|piece| escaping.write_all(piece).unwrap());
            escaping.flush().unwrap();
            out
        };
        assert_eq!(shown(&[b"a\x1b[2Jb\tc\r\n\0\x7f"]), b"a\\u001b[2Jb\tc\\u000d\n\\u0000\\u007f");
        assert_eq!(shown(&["\u{9b}31m".as_bytes()]), b"\\u009b31m");
        assert_eq!(shown(&[&[0xc2], &[0x9b]]), b"\\u009b", "in two pieces");
        let text = "größe £ \u{a0} 漢字";
        assert_eq!(shown(&[text.as_bytes()]), text.as_bytes());
        assert_eq!(shown(&[&[0xc2], b"a", &[0xc2]]), [0xc2, b'a', 0xc2], "whatever it is, it is not lost");
    }

    #[test]
    fn an_error_says_what_where_and_what_to_do_once() {
        let cause = io::Error::new(io::ErrorKind::PermissionDenied, "permission denied");
        let error =
            Error::because(ErrorKind::Config, "cannot open /var/lib/x (storage.data_dir, a.toml:3)", cause);
        assert_eq!(
            tell(&error, true),
            "error: cannot open /var/lib/x (storage.data_dir, a.toml:3): permission denied\nwhat to do: correct what it \
             names, or what the configuration says of it, and start again\n"
        );
        assert_eq!(exit_code(&error), 78);
    }

    #[test]
    fn a_check_is_advised_where_it_helps() {
        let missing = topics::Error::Missing { topic: "t".into(), partitions: 1, hint: String::new() };
        let error = Error::because(ErrorKind::Config, "preparing the topics of dataset d", missing);
        assert!(tell(&error, true).contains("check --connect"));
        assert!(!tell(&error, false).contains("check"), "it is the check's own, or of who needs no topic");
        let missing = Mistaken::Missing { path: "a.toml".to_owned(), hint: String::new() };
        let told = tell(&missing.into(), true);
        assert_eq!(told.lines().count(), 1, "{told}");
    }

    #[test]
    fn what_a_check_finds_has_a_line_each() {
        let faults = Faults(vec!["Kafka: away".to_owned(), "log: full".to_owned()]);
        let error = Error::because(ErrorKind::Unavailable, "what the configuration points at", faults);
        assert!(tell(&error, false).starts_with("error: Kafka: away\nerror: log: full\nwhat to do: "));
    }

    #[test]
    fn mistakes_have_a_line_each() {
        let mut mistakes = Mistakes::default();
        mistakes.add(
            Some(Place::File("a.toml".into(), 3)),
            "http.lisen",
            "unknown key; did you mean http.listen?",
        );
        mistakes.add(None, "storage.data_dir", "is missing");
        let file = "the configuration a.toml".to_owned();
        let error: Error = Mistaken::Mistakes { file, mistakes, warnings: Mistakes::default() }.into();
        assert_eq!(
            tell(&error, false),
            "error: a.toml:3: http.lisen: unknown key; did you mean http.listen?\nerror: storage.data_dir: is \
             missing\n2 mistakes in the configuration a.toml\n"
        );
    }

    #[test]
    fn files_of_the_command_line_have_codes_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let code = |error: Error| exit_code(&error);
        assert_eq!(code(open(&dir.path().join("nothing")).unwrap_err()), 66);
        assert_eq!(code(open(dir.path()).unwrap_err()), 66, "a folder");
        let there = dir.path().join("there");
        create_new(&there).unwrap();
        assert_eq!(code(create_new(&there).unwrap_err()), 73);
        let program = dead::Error::NoProgram(io::ErrorKind::NotFound.into());
        assert_eq!(code(Error::because(program.kind(), "dead letters in d.dlq", program)), 66);
    }

    #[test]
    fn a_reader_that_leaves_is_no_failure_and_a_full_disk_is() {
        let told = |kind: io::ErrorKind| unwritten(io::Error::from(kind));
        assert!(is_broken_pipe(&told(io::ErrorKind::BrokenPipe)));
        let full = told(io::ErrorKind::StorageFull);
        assert!(!is_broken_pipe(&full));
        assert_eq!(exit_code(&full), 74);
    }
}
