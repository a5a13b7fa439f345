//! The arguments that name a configuration, the same for every command that has one.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::edge::Edge;
use crate::Result;
use crate::config::{Config, Role};

/// Which configuration.
#[derive(Clone, Debug, Args)]
pub struct Given {
    /// Configuration file [default: stillwell.toml]
    #[arg(short, long, value_name = "FILE", env = "STILLWELL_CONFIG", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// Overrides one value, as in producer.batching.max_batch_size=500; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment, help_heading = "Configuration")]
    pub set: Vec<(String, String)>,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("write KEY=VALUE, as in consumer.max_backoff=2s".to_owned()),
    }
}

impl Given {
    /// Reads the configuration, starts logging by it, and logs what is odd in it.
    ///
    /// # Errors
    /// With all mistakes.
    pub fn load(&self, edge: &Edge) -> Result<Config> {
        Ok(logged(Config::load(self.config.as_deref(), &self.set)?, edge))
    }

    /// The same for who is about to run by it, or to say whether one could; see [`Config::load_to_run`].
    ///
    /// # Errors
    /// With all mistakes.
    pub fn load_to_run(&self, edge: &Edge) -> Result<Config> {
        Ok(logged(Config::load_to_run(self.config.as_deref(), &self.set)?, edge))
    }

    /// Whether there is something to load.
    pub fn is_there(&self) -> bool {
        Config::is_there(self.config.as_deref(), &self.set)
    }
}

fn logged(config: Config, edge: &Edge) -> Config {
    edge.log(Some(&config));
    for warning in config.warnings().list() {
        tracing::warn!("configuration: {warning}");
    }
    config
}

/// Sides of the flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Side {
    /// Writes versions and reads them
    #[default]
    Both,
    /// Writes versions
    Producer,
    /// Reads them
    Consumer,
}

impl From<Side> for Role {
    fn from(side: Side) -> Role {
        match side {
            Side::Both => Role::Both,
            Side::Producer => Role::Producer,
            Side::Consumer => Role::Consumer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_has_a_key() {
        assert_eq!(assignment("a.b = c=d"), Ok(("a.b".into(), "c=d".into())));
        assert!(assignment("a.b").is_err());
        assert!(assignment("=x").is_err());
    }
}
