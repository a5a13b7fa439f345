//! `stillwell bench`: ours against a baseline, in the same run.
//!
//! Absolute figures are one machine's; the ratio says how far ours is from the bare minimum of the same work.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::edge::{Answer, Edge, print};
use super::table::{self, Column, Output};
use crate::clock::Clock;
use crate::{Error, ErrorKind, Result};

mod made;
mod topic;
mod process;
mod profiled;
mod spread;
mod ingest;
mod recovery;
mod publish;
mod replay;
mod propagate;
mod follow;
mod open;
mod read;
mod refresh;
mod http;

/// Measures ours and a baseline in the same run; the ratio is ours divided by the baseline
#[derive(Debug, Args)]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Kafka records into the log, durable; against bare consumption of the same topic
    Ingest(Settings),
    /// A log of records that no version holds, process start to the last handed on; against consuming them again
    Recovery(recovery::Recovery),
    /// JSON records to announced versions; against bare consumption of the same topic
    Publish(Settings),
    /// Dead letters back into their source; against bare consumption and production in transactions
    Replay(Settings),
    /// Sent to readable at 1,000 records a second; against a bare Kafka transaction, begun to seen
    Propagate(Settings),
    /// An announcement committed to its version readable; against a bare reader being told of it
    Follow(Settings),
    /// From nothing, and from the cache, to the first get, with a broker also by default; against copying and checksumming the
    /// same bytes
    Open(open::Open),
    /// Random gets; against a HashMap with the same keys and values
    Read(Settings),
    /// 10,000 changes fetched onto a version that is being read, and merged; against copying the delta, and the reader at rest
    Refresh(Settings),
    /// Requests a second of records/KEY, and of ten keys; against a bare axum handler that answers as many bytes
    Http(Settings),
}

/// How much to measure, with which broker.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Records
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    records: u64,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(120..=1_000_000))]
    value_bytes: u64,
    /// Kafka, for the benches that need one; a topic is made there, and deleted at the end
    #[arg(long, value_name = "HOST:PORT")]
    bootstrap_servers: Option<String>,
    /// How to print what was measured; json is one line a metric
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

impl Settings {
    fn bootstrap(&self) -> Result<&str> {
        self.bootstrap_servers.as_deref().ok_or_else(|| {
            Error::new(ErrorKind::Rejected, "this bench needs a broker: give --bootstrap-servers HOST:PORT")
        })
    }
}

/// One line of the result.
#[derive(Clone, Debug, Serialize)]
struct Measured {
    bench: &'static str,
    metric: String,
    value: f64,
    unit: &'static str,
    baseline: &'static str,
    baseline_value: f64,
    ratio: f64,
}

fn measured(
    bench: &'static str,
    metric: &str,
    (value, unit): (f64, &'static str),
    (baseline, baseline_value): (&'static str, f64),
) -> Measured {
    let ratio = value / baseline_value;
    Measured { bench, metric: metric.to_owned(), value, unit, baseline, baseline_value, ratio }
}

impl Bench {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        edge.log(None);
        let (output, lines) = match self.what {
            What::Ingest(settings) => (settings.output, edge.runtime()?.block_on(ingest::run(&settings))?),
            What::Recovery(recovery) => match edge.runtime()?.block_on(recovery.run())? {
                Some((output, lines)) => (output, lines),
                None => return Ok(Answer::Yes),
            },
            What::Publish(settings) => (settings.output, edge.runtime()?.block_on(publish::run(&settings))?),
            What::Replay(settings) => (settings.output, edge.runtime()?.block_on(replay::run(&settings))?),
            What::Propagate(settings) => {
                (settings.output, edge.runtime()?.block_on(propagate::run(&settings))?)
            }
            What::Follow(settings) => (settings.output, edge.runtime()?.block_on(follow::run(&settings))?),
            What::Open(open) => match edge.runtime()?.block_on(open.run())? {
                Some((output, lines)) => (output, lines),
                None => return Ok(Answer::Yes),
            },
            What::Read(settings) => (settings.output, read::run(&settings, &edge.runtime()?)?),
            What::Refresh(settings) => (settings.output, refresh::run(&settings, &edge.runtime()?)?),
            What::Http(settings) => (settings.output, edge.runtime()?.block_on(http::run(&settings))?),
        };
        show(output, &lines)?;
        Ok(Answer::Yes)
    }
}

fn show(output: Output, lines: &[Measured]) -> Result<()> {
    print(|out| match output {
        Output::Json => {
            for line in lines {
                serde_json::to_writer(&mut *out, line)?;
                writeln!(out)?;
            }
            Ok(())
        }
        Output::Table => {
            let columns = [
                Column::Text("METRIC"),
                Column::Number("VALUE"),
                Column::Text("UNIT"),
                Column::Text("BASELINE"),
                Column::Number("BASELINE VALUE"),
                Column::Number("RATIO"),
            ];
            let rows = lines.iter().map(|line| {
                vec![
                    format!("{} {}", line.bench, line.metric),
                    figure(line.value),
                    line.unit.to_owned(),
                    line.baseline.to_owned(),
                    figure(line.baseline_value),
                    format!("{:.3}", line.ratio),
                ]
            });
            table::table(out, &columns, rows)
        }
    })
}

/// Seconds, too, are to be told apart.
fn figure(value: f64) -> String {
    if value.abs() < 10.0 { format!("{value:.3}") } else { format!("{value:.1}") }
}

/// The value at a share of the sorted list: 0.5 the median.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = ((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1));
    values.get(at).copied().unwrap_or_default()
}

fn timed<T>(clock: &Clock, work: impl FnOnce() -> T) -> (T, Duration) {
    let start = clock.now();
    let done = work();
    (done, clock.now().saturating_duration_since(start))
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A directory of the bench's own, gone at its end.
#[derive(Debug)]
struct Scratch {
    all: std::path::PathBuf,
    /// Within it, since a log's lock lies beside the log.
    dir: std::path::PathBuf,
}

impl Scratch {
    fn new(what: &str) -> Result<Scratch> {
        let unique = crate::clock::Entropy::system().uuid();
        let all = std::env::temp_dir().join(format!("stillwell-bench-{what}-{unique}"));
        let dir = all.join("data");
        std::fs::create_dir_all(&dir).map_err(|error| {
            Error::because(ErrorKind::Unavailable, format!("cannot make {}", dir.display()), error)
        })?;
        Ok(Scratch { all, dir })
    }

    fn path(&self) -> &std::path::Path {
        &self.dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_small_lists() {
        let mut values = vec![3.0, 1.0, 2.0];
        assert_eq!((quantile(&mut values, 0.5), quantile(&mut values, 0.99)), (2.0, 3.0));
        assert_eq!(quantile(&mut [], 0.5), 0.0);
    }
}
