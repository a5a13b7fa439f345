//! `stillwell dlq`: what could not be processed, shown, written to a file, and replayed.
//!
//! Runs beside the process that makes the versions, and needs neither its log nor its lock.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::ControlFlow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

mod list;
mod show;
mod export;
mod replay;

use super::adopt;
use super::edge::{Answer, Edge};
use super::given::Given;
use crate::codec::text;
use crate::config::Shared;
use crate::dead::found::Found;
use crate::dead::held::Place;
use crate::dead::replay::Options;
use crate::dead::select::{OURS, Selection, When};
use crate::dead::topic::{Flow, Reader, Topic};
use crate::host::letters;
use crate::kafka::Admin;
use crate::telemetry::Metrics;
use crate::{Error, ErrorKind, Result, dead};

/// Shows and replays the dead letters of a dataset
///
/// They are in its own dead-letter topic, or in one that Kafka Connect or Spring wrote (--topic).
#[derive(Debug, Args)]
pub struct Dlq {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(list::List),
    Show(show::Show),
    Export(export::Export),
    Replay(replay::Replay),
}

impl Dlq {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        match self.command {
            Command::List(command) => command.run(edge),
            Command::Show(command) => command.run(edge),
            Command::Export(command) => command.run(edge),
            Command::Replay(command) => command.run(edge),
        }
    }
}

/// Whose letters, and where they are.
#[derive(Debug, Args)]
struct Whose {
    #[command(flatten)]
    given: Given,
    /// Dataset
    dataset: String,
    /// Topic with the letters [default: the dataset's own]
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
}

impl Whose {
    fn load(&self, edge: &Edge) -> Result<Options> {
        let mut config = self.given.load(edge)?;
        adopt::now(&mut config, &self.dataset, edge)?;
        let shared = Shared::system(&config, Metrics::new())?;
        let options = config.producer(&self.dataset, &shared)?;
        let mut replays = letters::options(&options);
        if let Some(topic) = &self.topic {
            replays.letters.clone_from(topic);
        }
        Ok(replays)
    }
}

/// Which letters.
#[derive(Debug, Args)]
struct Which {
    /// Only letters of this key; repeatable
    #[arg(long, value_name = "KEY", help_heading = "Which letters")]
    key: Vec<String>,
    /// Each KEY is base64, for keys that are not text
    #[arg(long, requires = "key", help_heading = "Which letters")]
    base64: bool,
    #[arg(long, value_name = "STAGE", help = stage_help(), help_heading = "Which letters")]
    stage: Vec<String>,
    /// Only those whose kind of failure or message has this in it; repeatable
    #[arg(long, value_name = "TEXT", help_heading = "Which letters")]
    error: Vec<String>,
    /// Only those that failed since then: 2026-01-31T12:00:00Z, or 2h for two hours ago
    #[arg(long, value_name = "TIME", help_heading = "Which letters")]
    since: Option<When>,
    /// Only those that failed until then
    #[arg(long, value_name = "TIME", help_heading = "Which letters")]
    until: Option<When>,
}

fn stage_help() -> String {
    let ours = OURS.join(", ");
    format!("Only those that failed at this stage: {ours}, or as Kafka Connect names it; repeatable")
}

impl Which {
    /// What is asked for; `None`: interrupted while it was looked whether the topic has such a stage.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] for a key that is not base64, and for a stage of which nobody knows.
    fn selection(&self, edge: &Edge, options: &Options) -> Result<Option<Selection>> {
        let key = |key: &String| match self.base64 {
            false => Ok(key.clone().into_bytes()),
            true => STANDARD.decode(key).map_err(|error| {
                Error::because(ErrorKind::Rejected, format!("the key {key:?} is not base64"), error)
            }),
        };
        let now = options.clock.wall_ms();
        let selection = Selection {
            dataset: options.dataset.clone(),
            keys: self.key.iter().map(key).collect::<Result<_>>()?,
            stages: self.stage.clone(),
            errors: self.error.clone(),
            since: self.since.map(|when| when.ms(now)),
            until: self.until.map(|when| when.ms(now)),
        };
        if selection.strange_stages().next().is_none() {
            return Ok(Some(selection));
        }
        let seen = read(edge, options, None, BTreeSet::new(), at_once, |seen, found| {
            seen.insert(found.stage.to_owned());
            go_on()
        })?;
        let Some(seen) = seen else { return Ok(None) };
        letters::known_stages(&selection, &options.letters, &seen)?;
        Ok(Some(selection))
    }
}

/// Reads the letters that are there now, from the beginning or from one offset of one partition on, on a thread of its
/// own, until `each` breaks off or an interrupt does; `begin` looks at their topic before. `None`: interrupted.
fn read<T: Send + 'static>(
    edge: &Edge,
    options: &Options,
    only: Option<(i32, i64)>,
    mut state: T,
    begin: impl FnOnce(&mut T, &Topic) -> Result<(), dead::Error> + Send + 'static,
    mut each: impl FnMut(&mut T, Found<'_>) -> Flow<()> + Send + 'static,
) -> Result<Option<T>> {
    let runtime = edge.runtime()?;
    let stop = CancellationToken::new();
    let (given, stopped) = (options.clone(), stop.clone());
    let work = edge.screen.work(&format!("reading {}", options.letters), "letters", None);
    let reading = runtime.spawn_blocking(move || {
        let admin = Admin::new(&given.kafka);
        let admin =
            admin.map_err(|source| dead::Error::Kafka { doing: "making a client".to_owned(), source })?;
        let topic = Topic::look(&admin, &given.letters)?;
        begin(&mut state, &topic)?;
        let group = format!("stillwell.{}", given.dataset);
        let ranges = topic.ranges.clone();
        let mut reader = Reader::new(&given.kafka, &group, topic, given.clock.clone(), stopped)?;
        let mut count = 0;
        for (partition, (low, _)) in (0..).zip(ranges) {
            let from = match only {
                None => low,
                Some((wanted, from)) if wanted == partition => from,
                Some(_) => continue,
            };
            reader.begin(partition, from)?;
            let broke = reader.read(partition, |found| {
                count += 1;
                work.set(count);
                each(&mut state, found)
            })?;
            if let Some(()) = broke {
                break;
            }
        }
        Ok::<_, dead::Error>(state)
    });
    let read = runtime.block_on(async {
        tokio::select! {
            read = reading => Some(read),
            _ = tokio::signal::ctrl_c() => {
                stop.cancel();
                None
            }
        }
    });
    runtime.shutdown_background();
    let Some(read) = read else { return Ok(None) };
    let read =
        read.map_err(|panic| Error::because(ErrorKind::Internal, "reading letters panicked", panic))?;
    read.map(Some).map_err(|error| failed(&options.letters, error))
}

fn failed(letters: &str, error: dead::Error) -> Error {
    Error::because(error.kind(), format!("dead letters in {letters}"), error)
}

/// For who has nothing to look at before the letters.
fn at_once<T>(_: &mut T, _: &Topic) -> Result<(), dead::Error> {
    Ok(())
}

/// The answer of a reading: broken off, with its state, by what was found.
fn go_on() -> Flow<()> {
    Ok(ControlFlow::Continue(()))
}

/// A key for people, on one line.
fn shown_key(key: Option<&[u8]>) -> String {
    let mut line = String::new();
    match key {
        None => line.push_str("none"),
        Some(key) => text::key_to_json(key, &mut line),
    }
    line
}

/// Where a record is: `orders[1]@57`.
fn shown_place(place: Option<&Place>) -> String {
    let mut shown = String::new();
    match place {
        None => shown.push_str("unknown"),
        Some(Place { topic, partition, offset }) => {
            let _ = write!(shown, "{topic}[{partition}]@{offset}");
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::consumer::listen;

    #[test]
    fn the_help_names_every_stage_of_our_letters() {
        let command = Which::augment_args(clap::Command::new("dlq"));
        let stage = command.get_arguments().find(|argument| argument.get_id() == "stage").unwrap();
        let help = stage.get_help().unwrap().to_string();
        let words: Vec<&str> = help.split([' ', ',', ':']).collect();
        let of_listeners = [listen::Stage::Listener, listen::Stage::Webhook].map(listen::Stage::label);
        for label in codec::Stage::ALL.map(codec::Stage::label).into_iter().chain(of_listeners) {
            assert!(words.contains(&label), "{label} is not in {help:?}");
        }
    }
}
