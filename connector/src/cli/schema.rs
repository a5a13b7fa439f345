//! `stillwell schema`: whether what was written with one schema can be read with another.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::edge::{Answer, Edge, NoInput, print};
use super::table::{self, Column, Output};
use crate::schema::{self, Resolver};
use crate::{Error, ErrorKind, Result};

/// Avro schemas
#[derive(Debug, Args)]
pub struct Schema {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(Check),
}

/// Says whether two schemas are compatible by Avro's rules, and if not, where and by which rule
///
/// Exits with 0 where they are, 1 where not. A mismatch in a single branch of a union is one of the records that hold it.
#[derive(Debug, Args)]
struct Check {
    /// File with the schema as it was
    old: PathBuf,
    /// File with the schema as it is to be
    new: PathBuf,
    /// What has to be possible
    #[arg(long, value_enum, default_value_t)]
    compatibility: Compatibility,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// The words are those of schema registries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Compatibility {
    /// NEW reads what was written with OLD
    #[default]
    Backward,
    /// OLD reads what is written with NEW
    Forward,
    /// Both
    Full,
}

/// One direction.
#[derive(Debug, Serialize)]
struct Row {
    compatibility: &'static str,
    reader: String,
    writer: String,
    /// Whether it is possible.
    compatible: bool,
    /// Whether it has to be.
    asked: bool,
    /// Where in the schemas a rule fails, the first place if there are several.
    at: Option<String>,
    /// Which.
    rule: Option<String>,
    /// All of them.
    mismatches: Vec<Misfit>,
}

#[derive(Debug, Serialize)]
struct Misfit {
    at: String,
    rule: String,
}

impl Schema {
    pub(super) fn run(self, _: &Edge) -> Result<Answer> {
        match self.command {
            Command::Check(check) => check.run(),
        }
    }
}

impl Check {
    fn run(&self) -> Result<Answer> {
        let (old, new) = (read(&self.old)?, read(&self.new)?);
        let name = |file: &Path| file.display().to_string();
        let row = |word, wanted, (reader, reads), (writer, writes)| {
            let mismatches = mismatches(writes, reads);
            Row {
                compatibility: word,
                reader: name(reader),
                writer: name(writer),
                compatible: mismatches.is_empty(),
                asked: [wanted, Compatibility::Full].contains(&self.compatibility),
                at: mismatches.first().map(|first| first.at.clone()),
                rule: mismatches.first().map(|first| first.rule.clone()),
                mismatches,
            }
        };
        let (old, new) = ((self.old.as_path(), &old), (self.new.as_path(), &new));
        let rows = [
            row("backward", Compatibility::Backward, new, old),
            row("forward", Compatibility::Forward, old, new),
        ];
        let good = rows.iter().all(|row| row.compatible || !row.asked);
        print(|out| match self.output {
            Output::Json => table::json(out, &rows),
            Output::Table => {
                let columns =
                    ["compatibility", "reader", "writer", "compatible", "at", "rule"].map(Column::Text);
                let line = |row: &Row, misfit: Option<&Misfit>| {
                    let compatible = if row.compatible { "yes" } else { "no" };
                    let (at, rule) =
                        misfit.map_or_else(Default::default, |one| (one.at.clone(), one.rule.clone()));
                    let (compatibility, compatible) = (row.compatibility.to_owned(), compatible.to_owned());
                    vec![compatibility, row.reader.clone(), row.writer.clone(), compatible, at, rule]
                };
                let cells = rows.iter().flat_map(|row| match row.mismatches.as_slice() {
                    [] => vec![line(row, None)],
                    misfits => misfits.iter().map(|misfit| line(row, Some(misfit))).collect(),
                });
                table::table(out, &columns, cells)
            }
        })?;
        Ok(if good { Answer::Yes } else { Answer::No })
    }
}

/// Where and why what is written with one schema cannot be read with the other.
fn mismatches(writer: &Arc<schema::Schema>, reader: &Arc<schema::Schema>) -> Vec<Misfit> {
    match Resolver::new(writer, reader) {
        Ok(_) => Vec::new(),
        Err(schema::Error::Incompatible(mismatches)) => {
            mismatches.into_iter().map(|one| Misfit { at: one.at, rule: one.rule }).collect()
        }
        Err(other) => vec![Misfit { at: String::new(), rule: other.to_string() }],
    }
}

fn read(file: &Path) -> Result<Arc<schema::Schema>> {
    let text = std::fs::read_to_string(file).map_err(|error| NoInput::error("cannot read", file, error))?;
    schema::Schema::parse(&text).map(Arc::new).map_err(|error| {
        Error::because(ErrorKind::Rejected, format!("reading the schema {}", file.display()), error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Arc<schema::Schema> {
        let json = format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#);
        Arc::new(schema::Schema::parse(&json).unwrap())
    }

    #[test]
    fn a_rule_is_named_with_its_place() {
        let one = parse(r#"{"name":"a","type":"int"}"#);
        let two = parse(r#"{"name":"a","type":"long"},{"name":"b","type":"int","default":0}"#);
        let named = |writer, reader| {
            let mismatches = mismatches(writer, reader);
            mismatches.into_iter().map(|one| format!("{}: {}", one.at, one.rule)).collect::<Vec<_>>()
        };
        assert!(named(&one, &two).is_empty(), "promoted, and a field with a default");
        assert_eq!(named(&two, &one), ["a: long is no int"]);
        let lacks = parse(r#"{"name":"a","type":"string"},{"name":"b","type":"int"}"#);
        assert_eq!(
            named(&one, &lacks),
            ["a: int is no string", "b: the writer's record lacks it, and it has no default"],
            "all of them"
        );
    }
}
