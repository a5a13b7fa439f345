//! `stillwell export`: a version as a file that other tools read.
//!
//! ```text
//!  announcement -> cache -> View --in key order--> JSON lines | Avro | Parquet --> FILE.part --synced, renamed--> FILE
//! ```
//!
//! Reads as a consumer does, beside the process that makes the versions. Nothing of the version is held in memory but what
//! one row group of Parquet takes.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use tokio_util::sync::CancellationToken;

mod avro;
mod file;
mod jsonl;
mod parquet;

use self::file::Destination;
use super::edge::{Answer, Edge, print, unwritten_to};
use super::progress::Work;
use super::reading::{self, Which, version_number};
use super::signals::Signals;
use crate::version::Version;
use crate::view::{Value, View};
use crate::{Error, ErrorKind, Result};

/// Records between two looks at the signals and the bar.
const LOOK: u64 = 1_024;

/// Writes a version to a file: Avro, JSON lines or Parquet
///
/// The file is there whole or not at all. `import` takes Avro and JSON lines back.
#[derive(Debug, Args)]
pub struct Export {
    #[command(flatten)]
    which: Which,
    /// Export this version [default: the one that readers hold: pinned, or the newest]
    #[arg(long, value_name = "V", value_parser = version_number)]
    version: Option<u64>,
    /// The file; - writes to standard output
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// How to write it [default: as the file is called: .avro, .jsonl, .parquet; to standard output JSON lines]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,
    /// Say also where each record came from: version, timestamp, topic, partition, offset. Avro always has that
    #[arg(long)]
    origin: bool,
    /// In Parquet: keys are bytes, not text
    #[arg(long)]
    binary_keys: bool,
    /// In Parquet: most rows of a row group, which is what is held in memory and what others read at a time
    #[arg(long, value_name = "ROWS", default_value_t = parquet::MOST_ROWS, value_parser = rows)]
    row_group: usize,
    /// Replace FILE where there is one
    #[arg(long)]
    force: bool,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A JSON object a line, as `scan` prints it
    Jsonl,
    /// An Avro object container file, with the entries of a snapshot
    Avro,
    /// Parquet: a column for the key, and one for each field
    Parquet,
}

impl Format {
    fn of(path: &Path) -> Option<Format> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match extension.as_str() {
            "jsonl" | "ndjson" => Format::Jsonl,
            "avro" => Format::Avro,
            "parquet" => Format::Parquet,
            _ => return None,
        })
    }
}

/// What takes records in one format.
trait Rows {
    /// Writes a record; the next one has a higher key.
    fn push(&mut self, value: &Value<'_>) -> Result<()>;

    /// Writes what is left.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// What is asked for besides the format.
#[derive(Clone, Copy, Debug)]
struct With {
    origin: bool,
    binary_keys: bool,
    row_group: usize,
}

fn rows(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|rows| *rows > 0)
        .ok_or_else(|| "write a number of rows, one at least".to_owned())
}

impl Export {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let (_, options) = self.which.load(edge)?;
        let format = self.format()?;
        let runtime = edge.runtime()?;
        let exported: Result<Option<(Version, u64)>> = runtime.block_on(async {
            let mut signals = Signals::new()?;
            // Before anything is fetched: whether the file can be written at all.
            let destination = Destination::open(&self.to, self.force)?;
            let view = tokio::select! {
                biased;
                () = signals.stop() => return Ok(None),
                view = reading::open(&options, self.version.map(Version)) => view?,
            };
            let what = format!("exporting version {} of {}", view.version(), options.dataset);
            let work = edge.screen.work(&what, "records", Some(view.records()));
            let stop = CancellationToken::new();
            let Export { origin, binary_keys, row_group, .. } = self;
            let with = With { origin, binary_keys, row_group };
            let stopped = stop.clone();
            let mut writing = tokio::task::spawn_blocking(move || {
                write(&view, format, with, destination, &work, &stopped).map(|count| (view.version(), count))
            });
            let written = tokio::select! {
                biased;
                () = signals.stop() => {
                    stop.cancel();
                    tokio::select! {
                        written = &mut writing => written,
                        // Whoever reads it may have stopped reading.
                        () = signals.stop() => return Ok(None),
                    }
                }
                written = &mut writing => written,
            };
            let (version, count) = written.map_err(|panic| {
                Error::because(ErrorKind::Internal, "writing the export panicked", panic)
            })??;
            Ok(count.map(|count| (version, count)))
        });
        runtime.shutdown_background();
        match exported? {
            None => Ok(Answer::Interrupted),
            Some((version, records)) => {
                let (dataset, file) = (&self.which.dataset, self.to.display());
                let line =
                    format!("{records} records of version {version} of dataset {dataset} written to {file}");
                match file::is_stdout(&self.to) {
                    true => tracing::info!("{line}"),
                    false => print(|out| writeln!(out, "{line}"))?,
                }
                Ok(Answer::Yes)
            }
        }
    }

    fn format(&self) -> Result<Format> {
        let to_stdout = file::is_stdout(&self.to);
        let default = if to_stdout { Some(Format::Jsonl) } else { Format::of(&self.to) };
        let format = self.format.or(default).ok_or_else(|| {
            let what = format!(
                "what to write is not told by the name {}: call it .avro, .jsonl or .parquet, or say --format",
                self.to.display()
            );
            Error::new(ErrorKind::Rejected, what)
        })?;
        if to_stdout && format != Format::Jsonl && io::stdout().is_terminal() {
            let what = "bytes are not written to a terminal: send them to a file or another program";
            return Err(Error::new(ErrorKind::Rejected, what));
        }
        Ok(format)
    }
}

/// Writes all of a version, and says how many records that was; `None` where it was told to stop, and no file is left.
fn write(
    view: &View,
    format: Format,
    with: With,
    destination: Destination,
    work: &Work,
    stop: &CancellationToken,
) -> Result<Option<u64>> {
    let out = destination.writer()?;
    let rows = || -> Result<Option<u64>> {
        let mut rows: Box<dyn Rows> = match format {
            Format::Jsonl => Box::new(jsonl::Lines::new(out, view, with)),
            Format::Avro => Box::new(avro::Entries::new(out, view)?),
            Format::Parquet => Box::new(parquet::Table::new(out, view, with)?),
        };
        let mut count = 0;
        for value in view {
            if count % LOOK == 0 {
                if stop.is_cancelled() {
                    return Ok(None);
                }
                work.set(count);
            }
            rows.push(&value?)?;
            count += 1;
        }
        rows.finish()?;
        Ok(Some(count))
    };
    let written = rows();
    // Whatever the format's writer makes of it: that the output ended is what went wrong first.
    if let Some(error) = destination.failed() {
        return Err(unwritten_to(&destination.shown(), error));
    }
    match written? {
        Some(count) => destination.keep().map(|()| Some(count)),
        None => Ok(None),
    }
}
