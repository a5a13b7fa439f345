//! How the process ended: what each task said last, and what was left where by those that the deadline cut off.

use std::fmt;

use super::directory::Dataset;
use super::task::{Label, Task};
use crate::error::{Error, ErrorKind, Result};
use crate::producer::Farewell;
use crate::words::counted;

/// The report of a shutdown. Prints as sentences, one a line.
#[derive(Debug, Default)]
pub struct Goodbye {
    said: Vec<String>,
    left: Vec<String>,
    error: Option<Error>,
}

impl Goodbye {
    pub(super) fn ended(&mut self, label: &Label, outcome: Result<Option<Farewell>>) {
        match outcome {
            Ok(Some(farewell)) => self.said.push(format!("{label}: {farewell}")),
            Ok(None) => {}
            Err(error) => {
                self.said.push(format!("{label}: {}", error.chain()));
                self.error.get_or_insert(error);
            }
        }
    }

    pub(super) fn cut_off(&mut self, label: &Label, dataset: Option<&Dataset>) {
        let left = match label.task {
            Task::Producer => {
                let version = match dataset.and_then(Dataset::announced) {
                    Some((version, positions)) => {
                        let positions: Vec<_> = positions.iter().map(ToString::to_string).collect();
                        format!("version {version} was the last announced, up to {}", positions.join(", "))
                    }
                    None => "no version was announced".to_owned(),
                };
                let log = match dataset.and_then(Dataset::log) {
                    Some((dir, records)) => {
                        let (records, dir) = (counted(records.unsigned_abs(), "record"), dir.display());
                        format!("left in the log in {dir}, where the next start goes on: {records}")
                    }
                    None => "what was logged is left in the log".to_owned(),
                };
                format!("{label} was cut off: {version}; {log}")
            }
            Task::Consumer => format!("{label} was cut off; it leaves nothing but its cache"),
            Task::Front => format!("{label} was cut off with answers under way"),
            Task::Watch => return,
        };
        self.left.push(left);
    }

    /// Whether all ended in time, and well.
    pub fn is_clean(&self) -> bool {
        self.left.is_empty() && self.error.is_none()
    }

    /// What each task said, then what was cut off.
    pub fn sentences(&self) -> impl Iterator<Item = &str> {
        self.said.iter().chain(&self.left).map(String::as_str)
    }

    /// As a result: the first mistake, or that the time was too short.
    ///
    /// # Errors
    /// See there. [`ErrorKind::Unavailable`] for the time: what the tasks waited for did not answer.
    pub fn into_result(self) -> Result<()> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if self.left.is_empty() {
            return Ok(());
        }
        let left = self.left.join("; ");
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("graceful_shutdown_timeout passed before everything had ended: {left}"),
        ))
    }
}

impl fmt::Display for Goodbye {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, sentence) in self.sentences().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            f.write_str(sentence)?;
        }
        Ok(())
    }
}
