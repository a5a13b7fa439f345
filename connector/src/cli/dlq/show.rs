//! `stillwell dlq show`: one letter, whole.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::str::FromStr;

use clap::Args;

use super::{Answer, Edge, Whose, at_once, failed, read, shown_key, shown_place};
use crate::cli::edge::print;
use crate::cli::table::{self, Output};
use crate::dead::found::Writer;
use crate::dead::held::Held;
use crate::dead::text;
use crate::host::directory::rfc3339;
use crate::{Error, ErrorKind, Result};

/// Prints one dead letter whole: key, value, headers, and why
#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    whose: Whose,
    /// The letter: OFFSET, or PARTITION/OFFSET
    #[arg(value_name = "LETTER")]
    at: At,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Where the letter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct At {
    partition: i32,
    offset: i64,
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<At, String> {
        let (partition, offset) = text.split_once('/').unwrap_or(("0", text));
        let (partition, offset) = (partition.parse().ok(), offset.parse().ok());
        match (partition, offset) {
            (Some(partition @ 0..), Some(offset @ 0..)) => Ok(At { partition, offset }),
            _ => Err("write OFFSET, or PARTITION/OFFSET, as `dlq list` shows them".to_owned()),
        }
    }
}

impl Show {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let options = self.whose.load(edge)?;
        let At { partition, offset } = self.at;
        let found = read(
            edge,
            &options,
            Some((partition, offset)),
            None::<(Held, Writer, String)>,
            at_once,
            move |letter, found| {
                if found.raw.offset == offset {
                    *letter = Some((Held::of(&found), found.writer, found.owner.to_owned()));
                }
                Ok(ControlFlow::Break(()))
            },
        )?;
        let Some(found) = found else { return Ok(Answer::Interrupted) };
        let Some((mut held, writer, owner)) = found else {
            let what = format!("there is no letter at {}[{partition}]@{offset}", options.letters);
            return Err(Error::new(ErrorKind::Rejected, what));
        };
        let runtime = edge.runtime()?;
        let lost = runtime.block_on(held.fetch(&options.store));
        if let Some(why) = lost.map_err(|error| failed(&options.letters, error))? {
            tracing::warn!("{why}; what of the letter lies there is missing below");
        }
        print(|out| match self.output {
            Output::Json => table::json(out, &text::whole(&options.letters, &held, writer, &owner)),
            Output::Table => lines(out, &held, writer, &owner),
        })?;
        Ok(Answer::Yes)
    }
}

fn lines(out: &mut dyn Write, held: &Held, writer: Writer, owner: &str) -> io::Result<()> {
    let by = format!("{writer:?}").to_lowercase();
    let pairs = [
        ("written by", if owner.is_empty() { by } else { format!("{by}, {owner}") }),
        ("failed at", rfc3339(held.failed_at)),
        ("stage", held.stage.clone()),
        ("error", held.class.clone()),
        ("reason", held.message.clone()),
        ("source", shown_place(held.source.as_ref())),
        ("timestamp", rfc3339(held.timestamp)),
        ("replays", held.replays.to_string()),
        ("key", shown_key(held.key.as_deref())),
    ];
    for (name, value) in pairs {
        writeln!(out, "{name:<11} {value}")?;
    }
    for (name, value) in &held.headers {
        writeln!(out, "{:<11} {name} = {}", "header", shown_key(value.as_deref()))?;
    }
    match held.value.as_deref().map(std::str::from_utf8) {
        None => writeln!(out, "{:<11} none", "value"),
        Some(Ok(text)) => writeln!(out, "{:<11} {text}", "value"),
        Some(Err(_)) => writeln!(out, "{:<11} {}", "value", shown_key(held.value.as_deref())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_named_by_offset_or_by_both() {
        assert_eq!("12".parse(), Ok(At { partition: 0, offset: 12 }));
        assert_eq!("3/12".parse(), Ok(At { partition: 3, offset: 12 }));
        for wrong in ["", "/", "-1", "1/", "1/-1", "a/1", "1/2/3"] {
            assert!(wrong.parse::<At>().is_err(), "{wrong}");
        }
    }
}
