//! `stillwell versions diff`: what lies between two versions, key by key.

use std::io::{self, Write};

use clap::Args;

use super::super::edge::{Answer, Edge, print};
use super::super::get::put_value;
use super::super::reading::{Which, version_number};
use super::super::table::Output;
use crate::Result;
use crate::codec::text;
use crate::view::{Change, ChangeKind, View};

/// Prints which keys differ between two versions, in the order of their bytes; exits with 1 where any does
///
/// As a table a line each, with + added, - removed or ~ changed before the key; as JSON lines with the value before and after.
#[derive(Debug, Args)]
pub(super) struct Diff {
    #[command(flatten)]
    which: Which,
    /// The version before
    #[arg(value_name = "FROM", value_parser = version_number)]
    from: u64,
    /// The version after [default: the newest]
    #[arg(value_name = "TO", value_parser = version_number)]
    to: Option<u64>,
    /// At most this many keys
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Default)]
struct Counts {
    added: u64,
    removed: u64,
    changed: u64,
}

impl Diff {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let (before, after) = self.which.open_both(edge, self.from, self.to)?;
        let (mut counts, mut unreadable, mut line) = (Counts::default(), None, String::new());
        print(|out| {
            for change in after.changes_from(&before).take(self.limit.unwrap_or(usize::MAX)) {
                line.clear();
                let put = change.and_then(|change| {
                    counts.add(&change);
                    match self.output {
                        Output::Json => json(&change, &mut line)?,
                        Output::Table => short(&change, &mut line),
                    }
                    Ok(())
                });
                // What came before it is right.
                if let Err(error) = put {
                    unreadable = Some(error);
                    break;
                }
                writeln!(out, "{line}")?;
            }
            Ok(())
        })?;
        if let Some(error) = unreadable {
            return Err(error);
        }
        let _ = counts.tell(&mut io::stderr().lock(), &before, &after);
        Ok(if counts.total() == 0 { Answer::Yes } else { Answer::No })
    }
}

impl Counts {
    fn add(&mut self, change: &Change<'_>) {
        *match change.kind() {
            ChangeKind::Added => &mut self.added,
            ChangeKind::Deleted => &mut self.removed,
            ChangeKind::Updated => &mut self.changed,
        } += 1;
    }

    fn total(&self) -> u64 {
        self.added + self.removed + self.changed
    }

    fn tell(&self, out: &mut dyn Write, before: &View, after: &View) -> io::Result<()> {
        let (from, to) = (before.version(), after.version());
        let Counts { added, removed, changed } = self;
        writeln!(out, "version {from} to {to}: {added} added, {removed} removed, {changed} changed")
    }
}

fn short(change: &Change<'_>, line: &mut String) {
    line.push_str(match change.kind() {
        ChangeKind::Added => "+ ",
        ChangeKind::Deleted => "- ",
        ChangeKind::Updated => "~ ",
    });
    text::key_to_json(change.key(), line);
}

fn json(change: &Change<'_>, line: &mut String) -> Result<()> {
    line.push_str("{\"key\":");
    text::key_to_json(change.key(), line);
    line.push_str(",\"change\":\"");
    line.push_str(match change.kind() {
        ChangeKind::Added => "added",
        ChangeKind::Deleted => "removed",
        ChangeKind::Updated => "changed",
    });
    line.push('"');
    for (name, value) in [(",\"before\":", change.before()), (",\"after\":", change.after())] {
        line.push_str(name);
        match value {
            Some(value) => put_value(value, line)?,
            None => line.push_str("null"),
        }
    }
    line.push('}');
    Ok(())
}
