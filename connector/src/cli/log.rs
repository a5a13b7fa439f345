//! `stillwell log`: the write-ahead log on disk: what is in it, whether it is whole, and taking out what is not.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::edge::{Answer, Edge, NoInput, print};
use super::given::Given;
use super::table::{self, Column, Output};
use crate::clock::Clock;
use crate::disk::{self, Checked, Damage, Look, Outcome, Repaired};
use crate::format::chunk::{Range, Summary};
use crate::producer::log::joined;
use crate::words::counted;
use crate::{Error, ErrorKind, Result};

/// Looks into the write-ahead log on disk, checks it, repairs it
#[derive(Debug, Args)]
pub struct Log {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(Inspect),
    Verify(Verify),
    Repair(Repair),
}

/// Prints what the log holds: chunks, positions, records, files; works beside a running process, and writes nothing
#[derive(Debug, Args)]
struct Inspect {
    #[command(flatten)]
    which: Which,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Reads all of the log and checks every checksum: exits with 0 if it is whole, with 1 if not; works beside a running
/// process, and writes nothing
#[derive(Debug, Args)]
struct Verify {
    #[command(flatten)]
    which: Which,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Cuts the log before the first chunk that is not whole, or puts aside what RocksDB does not open; keeps a copy of what
/// it takes out; refuses while a process has the log open
#[derive(Debug, Args)]
struct Repair {
    #[command(flatten)]
    which: Which,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Which log.
#[derive(Debug, Args)]
struct Which {
    #[command(flatten)]
    given: Given,
    /// Dataset whose log it is
    #[arg(required_unless_present = "dir", conflicts_with = "dir")]
    dataset: Option<String>,
    /// The log's own directory, as in DATA_DIR/log/DATASET, instead of a configuration and a dataset
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Which {
    fn dir(&self, edge: &Edge) -> Result<PathBuf> {
        match (&self.dir, &self.dataset) {
            (Some(dir), _) => {
                edge.log(None);
                // Its siblings are found by its name, which `.` does not have.
                std::path::absolute(dir)
                    .and_then(|dir| dir.canonicalize())
                    .map_err(|error| NoInput::error("looking for the log in", dir, error))
            }
            (None, Some(dataset)) => {
                let config = self.given.load(edge)?;
                config.has(dataset)?;
                Ok(config.data_dir().join("log").join(dataset))
            }
            (None, None) => Err(Error::new(ErrorKind::Rejected, "name a dataset, or a directory with --dir")),
        }
    }
}

impl Log {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        match self.command {
            Command::Inspect(Inspect { which, output }) => {
                let dir = which.dir(edge)?;
                let look = Look::at(&dir).map_err(|error| told(&dir, error))?;
                let seen = Seen::of(&dir, look);
                print(|out| match output {
                    Output::Json => table::json(out, &seen),
                    Output::Table => seen.lines(out),
                })?;
                Ok(answer(seen.refused.is_none() && seen.cut.is_none()))
            }
            Command::Verify(Verify { which, output }) => {
                let dir = which.dir(edge)?;
                let work = edge.screen.work("checking", "chunks", None);
                let checked =
                    disk::check(&dir, &mut |done| work.set(done)).map_err(|error| told(&dir, error))?;
                drop(work);
                let verdict = Verdict::of(&dir, &checked);
                print(|out| match output {
                    Output::Json => table::json(out, &verdict),
                    Output::Table => verdict.lines(out),
                })?;
                Ok(answer(verdict.whole))
            }
            Command::Repair(Repair { which, output }) => {
                let dir = which.dir(edge)?;
                let options = disk::Options { clock: Clock::system(), write_buffer_bytes: 64 << 20 };
                let work = edge.screen.work("checking", "chunks", None);
                let repaired = disk::repair(&dir, &options, &mut |done| work.set(done))
                    .map_err(|error| told(&dir, error))?;
                drop(work);
                let done = Done::of(&dir, repaired);
                print(|out| match output {
                    Output::Json => table::json(out, &done),
                    Output::Table => done.lines(out),
                })?;
                Ok(Answer::Yes)
            }
        }
    }
}

fn answer(yes: bool) -> Answer {
    if yes { Answer::Yes } else { Answer::No }
}

/// An error with the exit code that these commands promise: 69 while a process has the log open, 66 where there is none,
/// 74 where the disk cannot be read or written.
fn told(dir: &Path, error: disk::Error) -> Error {
    let doing = "opening the log";
    match error {
        disk::Error::NoLog { why, .. } => {
            NoInput::error("looking for the log in", dir, io::Error::new(io::ErrorKind::NotFound, why))
        }
        error @ disk::Error::Locked { .. } => Error::because(ErrorKind::Unavailable, doing, error),
        error @ (disk::Error::Failed { .. } | disk::Error::Full { .. } | disk::Error::Directory { .. }) => {
            Error::because(ErrorKind::Corrupt, doing, error)
        }
        error => Error::because(error.kind(), doing, error),
    }
}

/// What `inspect` prints.
#[derive(Debug, Serialize)]
struct Seen {
    dir: PathBuf,
    held_by: Option<u32>,
    closed: bool,
    refused: Option<String>,
    cut: Option<Cut>,
    chunks: u64,
    first: Option<u64>,
    last: Option<u64>,
    next: u64,
    records: u64,
    misfits: u64,
    bytes: u64,
    disk_bytes: u64,
    ranges: Vec<Range>,
    files: Vec<OnDisk>,
    beside: Vec<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Cut {
    chunk: u64,
    why: String,
}

#[derive(Debug, Serialize)]
struct OnDisk {
    name: String,
    kind: &'static str,
    bytes: u64,
}

impl Seen {
    fn of(dir: &Path, look: Look) -> Seen {
        let sum = |of: fn(&Summary) -> u32| look.chunks.iter().map(|(_, chunk)| u64::from(of(chunk))).sum();
        Seen {
            dir: dir.to_owned(),
            held_by: look.held_by,
            closed: look.closed,
            chunks: look.chunks.len() as u64,
            first: look.chunks.first().map(|(number, _)| *number),
            last: look.chunks.last().map(|(number, _)| *number),
            next: look.next,
            records: sum(|chunk| chunk.records),
            misfits: sum(|chunk| chunk.misfits),
            bytes: sum(|chunk| chunk.bytes),
            disk_bytes: look.files.iter().map(|(_, _, bytes)| bytes).sum(),
            ranges: joined(look.chunks.iter().flat_map(|(_, chunk)| &chunk.ranges)),
            refused: look.refused,
            cut: look.cut.map(|(chunk, why)| Cut { chunk, why }),
            files: look
                .files
                .into_iter()
                .map(|(name, kind, bytes)| OnDisk { name, kind: kind.name(), bytes })
                .collect(),
            beside: look.beside,
        }
    }

    fn lines(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut line = |name: &str, value: String| writeln!(out, "{name:12} {value}");
        line("log", self.dir.display().to_string())?;
        line(
            "open",
            match (self.held_by, self.closed) {
                (Some(process), _) => format!("by process {process}"),
                (None, true) => "no; closed in order".to_owned(),
                (None, false) => {
                    "no; not closed in order, or the system does not say who has it open".to_owned()
                }
            },
        )?;
        if let Some(why) = &self.refused {
            line("refused", format!("RocksDB does not open it: {why}"))?;
        }
        match (self.first, self.last) {
            (Some(first), Some(last)) => {
                line("chunks", format!("{}, numbers {first} to {last}", self.chunks))?;
                line("trimmed", format!("below {first}"))?;
            }
            _ => line("chunks", "0".to_owned())?,
        }
        line("next", self.next.to_string())?;
        if let Some(Cut { chunk, why }) = &self.cut {
            line("cut", format!("before chunk {chunk}, which cannot be read: {why}"))?;
        }
        line("records", format!("{}, {} of them misfits", self.records, self.misfits))?;
        line("bytes", format!("{} in chunks, {} on disk", ByteSize(self.bytes), ByteSize(self.disk_bytes)))?;
        for path in &self.beside {
            line("beside", path.display().to_string())?;
        }
        writeln!(out)?;
        ranges(out, &self.ranges)?;
        writeln!(out)?;
        let columns = [Column::Text("file"), Column::Text("kind"), Column::Number("bytes")];
        let rows = self
            .files
            .iter()
            .map(|file| vec![file.name.clone(), file.kind.to_owned(), file.bytes.to_string()]);
        table::table(out, &columns, rows)
    }
}

fn ranges(out: &mut dyn Write, ranges: &[Range]) -> io::Result<()> {
    let columns = [
        Column::Text("topic"),
        Column::Text("topic id"),
        Column::Number("partition"),
        Column::Number("from"),
        Column::Number("to"),
    ];
    let rows = ranges.iter().map(|Range { source, from, to }| {
        vec![
            source.topic.to_string(),
            source.topic_id.to_string(),
            source.partition.to_string(),
            from.to_string(),
            to.to_string(),
        ]
    });
    table::table(out, &columns, rows)
}

/// One thing that is not as it was written.
#[derive(Debug, Serialize)]
struct Wrong {
    kind: &'static str,
    chunk: Option<u64>,
    file: Option<String>,
    at: Option<u64>,
    why: String,
}

impl Wrong {
    fn of(damage: &Damage) -> Wrong {
        let (kind, chunk, file, at) = match damage {
            Damage::Refused(_) => ("refused", None, None, None),
            Damage::Sorted(_) => ("sorted", None, None, None),
            Damage::Broken(broken) => ("file", None, Some(broken.file.clone()), Some(broken.at)),
            Damage::Chunk { number, .. } => ("chunk", Some(*number), None, None),
            Damage::Missing(_) => ("missing", None, None, None),
        };
        Wrong { kind, chunk, file, at, why: damage.to_string() }
    }
}

/// What `verify` prints.
#[derive(Debug, Serialize)]
struct Verdict {
    dir: PathBuf,
    whole: bool,
    chunks: u64,
    records: u64,
    bytes: u64,
    damage: Vec<Wrong>,
}

impl Verdict {
    fn of(dir: &Path, checked: &Checked) -> Verdict {
        Verdict {
            dir: dir.to_owned(),
            whole: checked.damage.is_empty(),
            chunks: checked.chunks,
            records: checked.records,
            bytes: checked.bytes,
            damage: checked.damage.iter().map(Wrong::of).collect(),
        }
    }

    fn lines(&self, out: &mut dyn Write) -> io::Result<()> {
        let Verdict { chunks, records, .. } = self;
        let (dir, bytes) = (self.dir.display(), ByteSize(self.bytes));
        let (chunks, records) = (counted(*chunks, "chunk"), counted(*records, "record"));
        if self.whole {
            return writeln!(out, "{dir}: whole; {chunks}, {records}, {bytes}");
        }
        for Wrong { why, .. } in &self.damage {
            writeln!(out, "{dir}: damaged: {why}")?;
        }
        writeln!(out, "{dir}: whole are {chunks} with {records} ({bytes})")?;
        writeln!(
            out,
            "what to do: nothing is lost as long as Kafka has it; the next `run` cuts the log there and asks Kafka \
             again, `stillwell log repair` does so now and keeps a copy of what is cut"
        )
    }
}

/// What `repair` prints.
#[derive(Debug, Serialize)]
struct Done {
    dir: PathBuf,
    outcome: &'static str,
    /// First chunk that was cut.
    from: Option<u64>,
    /// Where all of it was put.
    aside: Option<PathBuf>,
    damage: Vec<Wrong>,
    copied_chunks: u64,
    copied_whole: u64,
    copied_records: u64,
    copied_ranges: Vec<Range>,
    copy: Option<PathBuf>,
    index: Option<PathBuf>,
}

impl Done {
    fn of(dir: &Path, repaired: Repaired) -> Done {
        let Repaired { found, outcome, taken, copy } = repaired;
        let (outcome, from, aside) = match outcome {
            Outcome::Whole => ("whole", None, None),
            Outcome::Cut(from) => ("cut", from, None),
            Outcome::Aside(to) => ("aside", None, Some(to)),
        };
        let (copy, index) = copy.unzip();
        Done {
            dir: dir.to_owned(),
            outcome,
            from,
            aside,
            damage: found.damage.iter().map(Wrong::of).collect(),
            copied_chunks: taken.chunks,
            copied_whole: taken.whole,
            copied_records: taken.records,
            copied_ranges: joined(&taken.ranges),
            copy,
            index,
        }
    }

    fn lines(&self, out: &mut dyn Write) -> io::Result<()> {
        let dir = self.dir.display();
        for Wrong { why, .. } in &self.damage {
            writeln!(out, "{dir}: damaged: {why}")?;
        }
        match (&self.aside, self.from) {
            (Some(aside), _) => {
                writeln!(out, "{dir}: put aside as {}; the log begins empty", aside.display())?
            }
            (None, Some(from)) => writeln!(out, "{dir}: cut before chunk {from}; it is whole now")?,
            (None, None) if self.outcome == "whole" => {
                return writeln!(out, "{dir}: whole; nothing to repair");
            }
            (None, None) => writeln!(out, "{dir}: what can be read of it was kept; it is whole now")?,
        }
        if let (Some(copy), Some(index)) = (&self.copy, &self.index) {
            let Done { copied_chunks, copied_whole, copied_records, .. } = self;
            writeln!(
                out,
                "copied before: {}, {copied_whole} of them whole, {}, as found",
                counted(*copied_chunks, "chunk"),
                counted(*copied_records, "record")
            )?;
            writeln!(out, "  bytes {}", copy.display())?;
            writeln!(out, "  index {}", index.display())?;
        }
        if !self.copied_ranges.is_empty() {
            writeln!(out)?;
            ranges(out, &self.copied_ranges)?;
            writeln!(out)?;
        }
        writeln!(
            out,
            "what may be lost: nothing, as long as Kafka has it: the next `run` asks Kafka again for what is not \
             announced; only what the topic's retention has taken since is in the copy alone"
        )
    }
}
