//! `stillwell dlq export`: letters as JSON lines, whole, whatever bytes are in them.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use tokio::runtime::Handle;

use super::{Answer, Edge, Which, Whose, at_once, go_on, read};
use crate::cli::edge::create_new;
use crate::dead::held::Held;
use crate::dead::select::Verdict;
use crate::dead::text;
use crate::{Error, ErrorKind, Result};

/// Writes dead letters as JSON lines, each whole: key, value, headers, and why
///
/// Keys, values and headers are strings where they are UTF-8, else {"base64": …}; null where there is none.
#[derive(Debug, Args)]
pub(super) struct Export {
    #[command(flatten)]
    whose: Whose,
    #[command(flatten)]
    which: Which,
    /// At most so many, the first ones
    #[arg(long, value_name = "N", help_heading = "Which letters")]
    max: Option<u64>,
    /// Write to this file, which must not be there yet [default: standard output]
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// What is under way.
struct Writing {
    out: Box<dyn Write + Send>,
    count: u64,
    failed: Option<io::Error>,
}

impl Export {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let options = self.whose.load(edge)?;
        let Some(selection) = self.which.selection(edge, &options)? else { return Ok(Answer::Interrupted) };
        let out: Box<dyn Write + Send> = match &self.to {
            None => Box::new(io::stdout()),
            Some(path) => Box::new(create_new(path)?),
        };
        let writing =
            Writing { out: Box::new(BufWriter::with_capacity(1 << 16, out)), count: 0, failed: None };
        let (most, given) = (self.max.unwrap_or(u64::MAX), options.clone());
        let written = read(edge, &options, None, writing, at_once, move |writing, found| {
            if selection.judge(&found) != Verdict::Meant {
                return go_on();
            }
            if writing.count >= most {
                return Ok(ControlFlow::Break(()));
            }
            let mut held = Held::of(&found);
            if let Some(why) = Handle::current().block_on(held.fetch(&given.store))? {
                tracing::warn!("{why}; what of the letter lies there is missing in its line");
            }
            let line = text::whole(&given.letters, &held, found.writer, found.owner);
            match serde_json::to_writer(&mut writing.out, &line).map_err(io::Error::from) {
                Ok(()) => writing.failed = writing.out.write_all(b"\n").err(),
                Err(error) => writing.failed = Some(error),
            }
            writing.count += 1;
            Ok(if writing.failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        let Some(mut written) = written else { return Ok(Answer::Interrupted) };
        let failed = match written.failed {
            Some(failed) => Some(failed),
            None => written.out.flush().err(),
        };
        match (failed, &self.to) {
            (None, _) => {}
            (Some(error), None) if error.kind() == io::ErrorKind::BrokenPipe => {}
            (Some(error), _) => {
                return Err(Error::because(ErrorKind::Corrupt, "cannot write the letters", error));
            }
        }
        if let Some(path) = &self.to {
            tracing::info!(letters = written.count, "written to {}", path.display());
        }
        Ok(Answer::Yes)
    }
}
