//! `stillwell snapshot`: asks the owner of a dataset for a snapshot now, and waits for it.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::edge::{Answer, Edge, print};
use super::reading::Which;
use super::table::{self, Output};
use crate::consumer::Steering;
use crate::consumer::steer::Wanted;
use crate::{Error, ErrorKind, Result};

/// Has a snapshot of the newest version made now, whatever the rules say, and waits until it is announced
#[derive(Debug, Args)]
pub struct Snapshot {
    #[command(flatten)]
    which: Which,
    /// Longest time to wait; the request stays [default: without end]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

impl Snapshot {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let (_, options) = self.which.load(edge)?;
        let runtime = edge.runtime()?;
        let steering = Steering::new(options.topics());
        let made = runtime.block_on(async {
            tokio::select! {
                made = self.ask(&steering) => made.map(Some),
                _ = tokio::signal::ctrl_c() => Ok(None),
            }
        });
        runtime.shutdown_background();
        let Some((version, made)) = made? else { return Ok(Answer::Interrupted) };
        let dataset = &options.dataset;
        print(|out| match self.output {
            Output::Json => {
                table::json(out, &json!({ "dataset": dataset, "version": version, "made": made }))
            }
            Output::Table if made => writeln!(out, "{dataset}: snapshot of version {version} is announced"),
            Output::Table => {
                writeln!(out, "{dataset}: nothing has changed since the snapshot of version {version}")
            }
        })?;
        Ok(Answer::Yes)
    }

    /// The snapshot's version, and whether it had to be made.
    async fn ask(&self, steering: &Steering) -> Result<(crate::Version, bool)> {
        let version = match steering.snapshot().await? {
            Wanted::There(version) => return Ok((version, false)),
            Wanted::Asked(version) => version,
        };
        tracing::info!(%version, "asked; waiting for the owner");
        let made = steering.snapshot_of(version);
        let made = match self.wait {
            None => made.await?,
            Some(longest) => tokio::time::timeout(longest, made).await.unwrap_or_else(|_| {
                let within = humantime::format_duration(longest);
                let what = format!(
                    "no snapshot within {within}: does a producer run, and what does its health say? The request stays, \
                     and is carried out once one does"
                );
                Err(Error::new(ErrorKind::Unavailable, what))
            })?,
        };
        Ok((made, true))
    }
}
