//! `stillwell check`: is the configuration right?

use clap::Args;

use super::connect::{self, Looked};
use super::edge::{Answer, Edge, print};
use super::given::Given;
use crate::config::Config;
use crate::{Error, ErrorKind, Result};

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

/// Says of everything how it is; fails with all that is not as it must be.
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
    faults(looked).map_or(Ok(()), Err)
}

/// All that is wrong, as one error. Of its kinds what has to be changed comes before what has to be waited for: `run`
/// would end with it as well.
fn faults(looked: Vec<Looked>) -> Option<Error> {
    let wrong: Vec<(String, Error)> =
        looked.into_iter().filter_map(|Looked { what, found }| Some((what, found.err()?))).collect();
    let kinds = || wrong.iter().map(|(_, error)| error.kind());
    let kind = kinds().find(|kind| *kind == ErrorKind::Config).or_else(|| kinds().next())?;
    let said: Vec<String> = wrong.iter().map(|(what, error)| format!("{what}: {}", error.chain())).collect();
    Some(Error::new(kind, said.join("; ")))
}

fn summary(config: &Config) -> String {
    let names: Vec<&str> = config.datasets().collect();
    match names.as_slice() {
        [one] => format!("1 dataset: {one}"),
        all => format!("{} datasets: {}", all.len(), all.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_said_and_what_has_to_be_changed_decides_the_code() {
        let looked = |what: &str, found: Result<String>| Looked { what: what.to_owned(), found };
        let away = || Err(Error::new(ErrorKind::Unavailable, "it is away"));
        let error = faults(vec![
            looked("Kafka", away()),
            looked("cache", Ok("it can be written".to_owned())),
            looked("log", Err(Error::new(ErrorKind::Config, "it cannot be written"))),
        ]);
        let error = error.unwrap();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert_eq!(error.chain(), "Kafka: it is away; log: it cannot be written");
        assert_eq!(faults(vec![looked("Kafka", away())]).unwrap().kind(), ErrorKind::Unavailable);
        assert!(faults(vec![looked("cache", Ok(String::new()))]).is_none());
    }
}
