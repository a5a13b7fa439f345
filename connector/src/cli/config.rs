//! `stillwell config`: what holds, and where it comes from.

use clap::{Args, Subcommand, ValueEnum};

use super::edge::{Answer, Edge, print};
use super::given::Given;
use super::table::{self, Column};
use crate::Result;

/// What the configuration says
#[derive(Debug, Args)]
pub struct Config {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Show(Show),
}

/// Prints the effective configuration, each value with where it came from; secrets as ***
#[derive(Debug, Args)]
struct Show {
    #[command(flatten)]
    given: Given,
    /// Only what differs from the defaults
    #[arg(long)]
    changed: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Form,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Form {
    /// A configuration file that says the same
    #[default]
    Toml,
    /// Aligned columns
    Table,
    /// JSON
    Json,
}

impl Config {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        match self.command {
            Command::Show(show) => show.run(edge),
        }
    }
}

impl Show {
    fn run(self, edge: &Edge) -> Result<Answer> {
        let config = self.given.load(edge)?;
        let mut shown = config.shown();
        if self.changed {
            shown.retain(|shown| !shown.source.starts_with("default"));
        }
        print(|out| match self.output {
            Form::Toml => write!(out, "{}", crate::config::to_toml(&shown)),
            Form::Json => table::json(out, &shown),
            Form::Table => {
                let columns = [Column::Text("key"), Column::Text("value"), Column::Text("source")];
                table::table(out, &columns, shown.into_iter().map(|one| vec![one.key, one.value, one.source]))
            }
        })?;
        Ok(Answer::Yes)
    }
}
