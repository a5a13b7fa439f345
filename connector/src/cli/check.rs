//! `stillwell check`: is the configuration right?

use clap::Args;

use super::connect::{self, Looked};
use super::edge::{Answer, Edge, Faults, print};
use super::given::{Given, Side};
use crate::config::{Config, Role};
use crate::{Error, ErrorKind, Result};

/// Validates the configuration: exits with 78 and one line for each mistake, with its file, line and key
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    given: Given,
    /// Try also what it points at: Kafka, topics and rights on them, schema registry, blob store, data directory
    #[arg(long)]
    connect: bool,
    /// Which sides are to be run by it
    #[arg(long, value_enum, default_value_t, requires = "connect")]
    role: Side,
}

impl Check {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let config = self.given.load_to_run(edge)?;
        print(|out| writeln!(out, "{}: right; {}", config.file(), summary(&config)))?;
        if self.connect {
            connect(&config, self.role.into(), edge)?;
        }
        Ok(Answer::Yes)
    }
}

/// Says of everything that is right how it is; fails with all that is not.
fn connect(config: &Config, role: Role, edge: &Edge) -> Result<()> {
    let runtime = edge.runtime()?;
    let looked = runtime.block_on(connect::look(config, role));
    runtime.shutdown_background();
    let looked = looked?;
    print(|out| {
        looked.iter().try_for_each(|Looked { what, found }| match found {
            Ok(found) => writeln!(out, "{what}: right; {found}"),
            Err(_) => Ok(()),
        })
    })?;
    faults(looked).map_or(Ok(()), Err)
}

/// All that is wrong, as one error; what is wrong for the same reason is one fault. Of its kinds what has to be changed
/// comes before what has to be waited for: `run` would end with it as well.
fn faults(looked: Vec<Looked>) -> Option<Error> {
    let mut kinds = Vec::new();
    let mut faults: Vec<(String, Vec<String>)> = Vec::new();
    for Looked { what, found } in looked {
        let Err(error) = found else { continue };
        kinds.push(error.kind());
        let why = error.chain();
        match faults.iter_mut().find(|(known, _)| *known == why) {
            Some((_, whats)) => whats.push(what),
            None => faults.push((why, vec![what])),
        }
    }
    let kind = *kinds.iter().find(|kind| **kind == ErrorKind::Config).or_else(|| kinds.first())?;
    let said = faults.into_iter().map(|(why, whats)| format!("{}: {why}", whats.join(", "))).collect();
    Some(Error::because(kind, "what the configuration points at is not as it must be", Faults(said)))
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
        let unwritable = || Err(Error::new(ErrorKind::Config, "it cannot be written"));
        let error = faults(vec![
            looked("Kafka", away()),
            looked("store", Ok("it can be written".to_owned())),
            looked("log", unwritable()),
            looked("cache", unwritable()),
        ]);
        let error = error.unwrap();
        assert_eq!(error.kind(), ErrorKind::Config);
        let said = error.chain();
        assert!(said.ends_with(": Kafka: it is away; log, cache: it cannot be written"), "{said}");
        assert_eq!(faults(vec![looked("Kafka", away())]).unwrap().kind(), ErrorKind::Unavailable);
        assert!(faults(vec![looked("cache", Ok(String::new()))]).is_none());
    }
}
