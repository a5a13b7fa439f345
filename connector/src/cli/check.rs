//! `stillwell check`: is the configuration right?

use clap::Args;

use super::connect::{self, Looked};
use super::edge::{Answer, Edge, print};
use super::given::Given;
use crate::config::Config;
use crate::{Error, Result};

/// Validates the configuration: exits with 78 and one line for each mistake, with its file, line and key
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    given: Given,
    /// Try also what it points at: Kafka, topics, blob store, data directory
    #[arg(long)]
    connect: bool,
}

impl Check {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let config = self.given.load(edge)?;
        print(|out| writeln!(out, "{}: right; {}", config.file(), summary(&config)))?;
        if self.connect {
            connect(&config, edge)?;
        }
        Ok(Answer::Yes)
    }
}

/// Says of everything how it is; fails with the first thing that is not as it must be.
fn connect(config: &Config, edge: &Edge) -> Result<()> {
    let runtime = edge.runtime()?;
    let looked = runtime.block_on(connect::look(config));
    runtime.shutdown_background();
    let looked = looked?;
    print(|out| {
        for Looked { what, found } in &looked {
            match found {
                Ok(found) => writeln!(out, "{what}: right; {found}")?,
                Err(error) => writeln!(out, "{what}: wrong: {}", error.chain())?,
            }
        }
        Ok(())
    })?;
    let wrong = looked.into_iter().find_map(|Looked { what, found }| Some((what, found.err()?)));
    match wrong {
        Some((what, error)) => Err(Error::because(error.kind(), what, error)),
        None => Ok(()),
    }
}

fn summary(config: &Config) -> String {
    let names: Vec<&str> = config.datasets().collect();
    match names.as_slice() {
        [one] => format!("1 dataset: {one}"),
        all => format!("{} datasets: {}", all.len(), all.join(", ")),
    }
}
