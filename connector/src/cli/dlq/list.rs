//! `stillwell dlq list`: one line for each record that failed.

use std::ops::ControlFlow;

use clap::Args;
use serde_json::Value;

use super::{Answer, Edge, Which, Whose, at_once, go_on, read, shown_key, shown_place};
use crate::Result;
use crate::cli::edge::print;
use crate::cli::table::{self, Column, Output};
use crate::dead::fate::{Fate, Replays};
use crate::dead::listing::{Line, Listing};
use crate::dead::select::Verdict;
use crate::dead::text;
use crate::dead::topic::Topic;
use crate::host::directory::rfc3339;

/// Lists dead letters, the last one of each record, in the order of the topic
#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    whose: Whose,
    #[command(flatten)]
    which: Which,
    /// At most so many, the first ones
    #[arg(long, value_name = "N", help_heading = "Which letters")]
    max: Option<usize>,
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

impl List {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let options = self.whose.load(edge)?;
        let Some(selection) = self.which.selection(edge, &options)? else { return Ok(Answer::Interrupted) };
        let (kafka, of) = (options.kafka.clone(), selection.clone());
        let begin = move |listing: &mut Listing, topic: &Topic| {
            listing.knowing(Replays::look(&kafka, &of, topic)?);
            Ok(())
        };
        let listing = read(edge, &options, None, Listing::default(), begin, move |listing, found| {
            let is_meant = selection.judge(&found) == Verdict::Meant;
            listing.take(&found, is_meant)?;
            go_on()
        })?;
        let Some(listing) = listing else { return Ok(Answer::Interrupted) };
        let mut chosen = listing.chosen(self.max.unwrap_or(usize::MAX));
        while let Some((partition, from)) = chosen.next() {
            let read = read(edge, &options, Some((partition, from)), chosen, at_once, |chosen, found| {
                Ok(if chosen.take(&found) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            let Some(read) = read else { return Ok(Answer::Interrupted) };
            chosen = read;
            chosen.leave(partition);
        }
        let lines = chosen.lines();
        print(|out| match self.output {
            Output::Json => {
                let lines: Vec<Value> = lines.iter().map(|line| text::line(&options.letters, line)).collect();
                table::json(out, &lines)
            }
            Output::Table => table::table(out, &COLUMNS, lines.iter().map(row)),
        })?;
        Ok(Answer::Yes)
    }
}

const COLUMNS: [Column; 10] = [
    Column::Number("partition"),
    Column::Number("offset"),
    Column::Text("failed at"),
    Column::Text("stage"),
    Column::Text("error"),
    Column::Text("key"),
    Column::Text("source"),
    Column::Number("replays"),
    Column::Text("replay"),
    Column::Text("reason"),
];

fn row(line: &Line) -> Vec<String> {
    let class = line.class.rsplit(['.', '$']).next().unwrap_or(&line.class);
    vec![
        line.partition.to_string(),
        line.offset.to_string(),
        rfc3339(line.failed_at),
        line.stage.clone(),
        class.to_owned(),
        shown_key(line.key.as_deref()),
        shown_place(line.source.as_ref()),
        line.replays.to_string(),
        line.fate.map_or("not known", Fate::name).to_owned(),
        line.message.clone(),
    ]
}
