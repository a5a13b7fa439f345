//! `stillwell dlq export`: letters as JSON lines, whole, whatever bytes are in them.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use tokio::runtime::Handle;

use super::{Answer, Edge, Flow, Options, Which, Whose, at_once, go_on, read};
use crate::cli::edge::create_new;
use crate::dead::found::Found;
use crate::dead::held::Held;
use crate::dead::listing::{Among, Chosen, Listing};
use crate::dead::select::Verdict;
use crate::dead::text;
use crate::{Error, ErrorKind, Result};

/// Writes dead letters as JSON lines, the last one of each record, whole: key, value, headers, and why
///
/// Keys, values and headers are strings where they are UTF-8, else {"base64": …}; null where there is none. A record that was
/// replayed and failed again has several letters: `failures` says how many.
#[derive(Debug, Args)]
pub(super) struct Export {
    #[command(flatten)]
    whose: Whose,
    #[command(flatten)]
    which: Which,
    /// At most so many, the first ones
    #[arg(long, value_name = "N", help_heading = "Which letters")]
    max: Option<usize>,
    /// Also those that a later letter of the same record has replaced
    #[arg(long, help_heading = "Which letters")]
    all: bool,
    /// Write to this file, which must not be there yet [default: standard output]
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// What is under way.
struct Writing {
    /// What the first reading has found, without keys and values.
    chosen: Chosen,
    out: Box<dyn Write + Send>,
    count: u64,
    failed: Option<io::Error>,
}

impl Writing {
    /// Takes a letter of the second reading.
    fn take(&mut self, options: &Options, found: &Found<'_>) -> Flow<()> {
        let (among, more) = self.chosen.meet(found);
        if let Some(Among { failures, is_last }) = among {
            let mut held = Held::of(found);
            if let Some(why) = Handle::current().block_on(held.fetch(&options.store))? {
                tracing::warn!("{why}; what of the letter lies there is missing in its line");
            }
            let mut line = text::whole(&options.letters, &held, found.writer, found.owner);
            if let Some(fields) = line.as_object_mut() {
                fields.insert("failures".to_owned(), json!(failures));
                fields.insert("replaced".to_owned(), json!(!is_last));
            }
            match serde_json::to_writer(&mut self.out, &line).map_err(io::Error::from) {
                Ok(()) => self.failed = self.out.write_all(b"\n").err(),
                Err(error) => self.failed = Some(error),
            }
            self.count += 1;
        }
        let go_on = more && self.failed.is_none();
        Ok(if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    }
}

impl Export {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let options = self.whose.load(edge)?;
        let Some(selection) = self.which.selection(edge, &options)? else { return Ok(Answer::Interrupted) };
        let out: Box<dyn Write + Send> = match &self.to {
            None => Box::new(io::stdout()),
            Some(path) => Box::new(create_new(path)?),
        };
        let listing = read(edge, &options, None, Listing::default(), at_once, move |listing, found| {
            let is_meant = selection.judge(&found) == Verdict::Meant;
            listing.take(&found, is_meant)?;
            go_on()
        })?;
        let Some(listing) = listing else { return Ok(Answer::Interrupted) };
        let most = self.max.unwrap_or(usize::MAX);
        let chosen = if self.all { listing.all(most) } else { listing.chosen(most) };
        let out = Box::new(BufWriter::with_capacity(1 << 16, out));
        let mut written = Writing { chosen, out, count: 0, failed: None };
        while let (Some((partition, from)), None) = (written.chosen.next(), &written.failed) {
            let given = options.clone();
            let read =
                read(edge, &options, Some((partition, from)), written, at_once, move |writing, found| {
                    writing.take(&given, &found)
                })?;
            let Some(read) = read else { return Ok(Answer::Interrupted) };
            written = read;
            written.chosen.leave(partition);
        }
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
