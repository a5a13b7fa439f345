//! `stillwell check`: is the configuration right?

use clap::Args;

use super::edge::{Answer, Edge, print};
use super::given::Given;
use crate::Result;
use crate::config::Config;

/// Validates the configuration: exits with 78 and one line for each mistake, with its file, line and key
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    given: Given,
}

impl Check {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let config = self.given.load(edge)?;
        print(|out| writeln!(out, "{}: right; {}", config.file(), summary(&config)))?;
        Ok(Answer::Yes)
    }
}

fn summary(config: &Config) -> String {
    let names: Vec<&str> = config.datasets().collect();
    match names.as_slice() {
        [one] => format!("1 dataset: {one}"),
        all => format!("{} datasets: {}", all.len(), all.join(", ")),
    }
}
