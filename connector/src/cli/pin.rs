//! `stillwell pin` and `unpin`: which version all readers of a dataset hold.

use std::fmt::Write as _;

use clap::Args;
use serde_json::json;

use super::edge::{Answer, Edge, print};
use super::reading::Which;
use super::table::{self, Output};
use crate::consumer::Steering;
use crate::format::control::Pin as Record;
use crate::host::directory::rfc3339;
use crate::version::{ShardVersions, Version};
use crate::{Error, ErrorKind, Result};

/// Pins all readers of a dataset to a version: they move to it within a second, and hold it over restarts
///
/// The writer goes on, and so does the tail of each reader: after unpin they are at the newest version at once.
#[derive(Debug, Args)]
pub struct Pin {
    #[command(flatten)]
    which: Which,
    /// The version; with several shards one of each, separated by commas
    #[arg(value_name = "V")]
    versions: String,
    /// Why, for whoever wonders later: it stands in each reader's health
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Takes a pin back: readers follow the newest version again
#[derive(Debug, Args)]
pub struct Unpin {
    #[command(flatten)]
    which: Which,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

impl Pin {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let versions = parse(&self.versions)?;
        let (_, options) = self.which.load(edge)?;
        let runtime = edge.runtime()?;
        let steering = Steering::new(options.topics());
        let pinned = runtime.block_on(steering.pin(&versions, &who(), &self.reason));
        runtime.shutdown_background();
        let pin = pinned?;
        print(|out| match self.output {
            Output::Json => table::json(out, &show(&pin)),
            Output::Table => writeln!(out, "{}", said(&pin, "is pinned")),
        })?;
        Ok(Answer::Yes)
    }
}

impl Unpin {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let (_, options) = self.which.load(edge)?;
        let runtime = edge.runtime()?;
        let unpinned = runtime.block_on(Steering::new(options.topics()).unpin());
        runtime.shutdown_background();
        let was = unpinned?;
        print(|out| match (self.output, &was) {
            (Output::Json, was) => table::json(out, &json!({ "was": was.as_ref().map(show) })),
            (Output::Table, Some(was)) => writeln!(out, "{}", said(was, "was pinned")),
            (Output::Table, None) => writeln!(out, "{} was not pinned", options.dataset),
        })?;
        Ok(Answer::Yes)
    }
}

fn parse(text: &str) -> Result<ShardVersions> {
    let versions = text.split(',').map(|version| version.trim().parse().map(Version));
    versions.collect::<std::result::Result<Vec<_>, _>>().map(ShardVersions).map_err(|_| {
        Error::new(ErrorKind::Rejected, format!("{text:?} is not a version: write its number, as in 41"))
    })
}

/// Who asks, as far as the environment says.
fn who() -> String {
    let user = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}@{}", user.as_deref().unwrap_or("somebody"), host.trim())
}

fn show(pin: &Record) -> serde_json::Value {
    json!({
        "dataset": pin.dataset,
        "id": pin.id,
        "versions": pin.shard_versions(),
        "by": pin.by,
        "reason": pin.reason,
        "at": rfc3339(pin.at),
    })
}

fn said(pin: &Record, is: &str) -> String {
    let mut said = format!("{} {is} to version {}", pin.dataset, pin.shard_versions());
    // Writing to a String cannot fail.
    let _ = write!(said, ", by {} at {}", pin.by, rfc3339(pin.at));
    if !pin.reason.is_empty() {
        let _ = write!(said, ": {}", pin.reason);
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers_one_of_each_shard() {
        assert_eq!(parse("41").unwrap(), ShardVersions(vec![Version(41)]));
        assert_eq!(parse("7, 9,4").unwrap(), ShardVersions(vec![Version(7), Version(9), Version(4)]));
        for wrong in ["", "v41", "-1", "4,", "4.5"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
