//! `stillwell scan`: records in key order.

use clap::Args;

use super::edge::{Answer, Edge, print};
use super::get::put_value;
use super::reading::{Which, version_number};
use crate::Result;
use crate::codec::text;

/// Prints records as JSON lines, {"key":…, "value":…}, in the order of their keys' bytes
#[derive(Debug, Args)]
pub struct Scan {
    #[command(flatten)]
    which: Which,
    /// Only keys that begin with this; empty: all
    #[arg(long, value_name = "P", default_value = "")]
    prefix: String,
    /// At most this many records
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Read this version [default: the one that readers hold: pinned, or the newest]
    #[arg(long, value_name = "V", value_parser = version_number)]
    version: Option<u64>,
}

impl Scan {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let view = self.which.open(edge, self.version)?;
        let mut line = String::new();
        // A record that cannot be read ends the scan after what was printed; what came before it is right.
        let mut unreadable = None;
        print(|out| {
            for value in view.prefix(&self.prefix).take(self.limit.unwrap_or(usize::MAX)) {
                line.clear();
                line.push_str("{\"key\":");
                let put = value.and_then(|value| {
                    text::key_to_json(value.key(), &mut line);
                    line.push_str(",\"value\":");
                    put_value(&value, &mut line)
                });
                if let Err(error) = put {
                    unreadable = Some(error);
                    break;
                }
                writeln!(out, "{line}}}")?;
            }
            Ok(())
        })?;
        match unreadable {
            Some(error) => Err(error),
            None => Ok(Answer::Yes),
        }
    }
}
