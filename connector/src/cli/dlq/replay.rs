//! `stillwell dlq replay`: letters go back to their source.

use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Answer, Edge, Which, Whose, failed, shown_key, shown_place};
use crate::cli::edge::print;
use crate::cli::progress::Work;
use crate::cli::table::Output;
use crate::dead::fix::{Fix, Program};
use crate::dead::held::Held;
use crate::dead::outcome::{Outcome, Told, Totals};
use crate::dead::replay::{self, Asked, Options};
use crate::dead::rows::Goal;
use crate::dead::text;
use crate::words::counted;
use crate::{Error, ErrorKind, Result, failpoint};

/// Sends dead letters back to the partitions that they came from, once each
///
/// Key, value, headers and timestamp are the original's, with the headers stillwell.origin and stillwell.replays. What is stale
/// is dropped: the source holds a later record of the key. Of a record that has failed again the last letter counts; earlier ones are passed
/// over. What would fail again, or cannot be replayed, is left, and taken first by the next run. Exits with 0
/// when all selected letters were handled, with 1 when some could not be.
#[derive(Debug, Args)]
pub(super) struct Replay {
    #[command(flatten)]
    whose: Whose,
    #[command(flatten)]
    which: Which,
    /// At most so many, the first ones
    #[arg(long, value_name = "N", help_heading = "Which letters")]
    max: Option<u64>,
    /// Most letters a second
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Leave a record that was replayed so often
    #[arg(long, value_name = "N", default_value_t = 3)]
    max_replays: u32,
    /// Longest time to wait for a transaction that is open in the source: it may hold a later record of a letter's key
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Replay also what is stale, what the source cannot tell of any more, and what does not fit as it is; what lost a conflict
    /// is sent with the time of now, so that it wins. Not what a later letter of the same record has replaced, nor what the
    /// program of --fix has changed and does not fit
    #[arg(long)]
    force: bool,
    /// Where letters go: to the source as they are there, or into the dataset as its rows: a value is JSON then, as in `import`,
    /// and is written to the source in the form that records have there. `null` deletes
    #[arg(long, value_enum, value_name = "WHERE", default_value_t)]
    into: Where,
    /// Have a program mend each value: the shell is given COMMAND, the value is on its standard input, what it writes to its
    /// standard output is the new one; an exit code other than 0 leaves the letter
    #[arg(long, value_name = "COMMAND")]
    fix: Option<String>,
    /// Longest time for that program, for one letter
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration, requires = "fix")]
    fix_timeout: Duration,
    /// Print only the totals
    #[arg(long)]
    quiet: bool,
    /// How to print what was done: lines for people, or a JSON object a line
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Where letters go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Where {
    /// To the source topic, byte for byte or as mended
    #[default]
    Source,
    /// Into the dataset, as rows in JSON
    Dataset,
}

impl Replay {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let options = self.whose.load(edge)?;
        let _armed = failpoint::arm().map_err(|mistake| Error::new(ErrorKind::Config, mistake))?;
        let Some(selection) = self.which.selection(edge, &options)? else { return Ok(Answer::Interrupted) };
        let asked = Asked {
            selection,
            max: self.max,
            rate: self.rate,
            dry_run: self.dry_run,
            max_replays: self.max_replays,
            wait: self.wait,
            force: self.force,
            fix: self.fix.clone().map(|command| Fix::Program(Program { command, timeout: self.fix_timeout })),
            goal: match self.into {
                Where::Source => Goal::Source,
                Where::Dataset => Goal::Dataset,
            },
        };
        let runtime = edge.runtime()?;
        let ended = runtime.block_on(self.follow(edge, &options, asked));
        runtime.shutdown_background();
        let Some((totals, done, interrupted)) = ended? else { return Ok(Answer::Interrupted) };
        print(|out| {
            writeln!(
                out,
                "{}",
                match self.output {
                    Output::Table => self.totals(&totals),
                    Output::Json => json!({ "totals": text::totals(&totals, self.dry_run) }).to_string(),
                }
            )
        })?;
        match done {
            Err(crate::dead::Error::Stopped) if interrupted => Ok(Answer::Interrupted),
            Err(error) => Err(failed(&options.letters, error)),
            Ok(()) if totals.full => Err(Error::new(
                ErrorKind::Rejected,
                format!(
                    "too many letters of {} are left among others to be remembered: replay those that failed for \
                     another reason (--stage, --error), mend what fails (--fix), or say --force or --max-replays",
                    options.letters
                ),
            )),
            Ok(()) if totals.unhandled() > 0 => Ok(Answer::No),
            Ok(()) => Ok(Answer::Yes),
        }
    }

    /// Runs it on a thread of its own, and prints what it tells. A first interrupt ends it after the transaction that is
    /// under way, a second one at once (`None`).
    async fn follow(
        &self,
        edge: &Edge,
        options: &Options,
        asked: Asked,
    ) -> Result<Option<(Totals, Result<(), crate::dead::Error>, bool)>> {
        let stop = CancellationToken::new();
        let _stopped_on_drop = stop.clone().drop_guard();
        let (lines, mut lines_in) = mpsc::channel::<String>(16);
        let (given, stopped, screen) = (options.clone(), stop.clone(), edge.screen.clone());
        let (quiet, output, dry_run) = (self.quiet, self.output, self.dry_run);
        let running = tokio::task::spawn_blocking(move || {
            let mut work: Option<Work> = None;
            let mut looking = Some(screen.work("looking at the source", "records", None));
            let (mut lines_out, mut done) = (String::new(), 0);
            replay::run(&given, &asked, &stopped, |told| match told {
                Told::Selected(total) => {
                    work = Some(screen.work(&format!("replaying {}", given.letters), "letters", Some(total)));
                }
                Told::Looked(records) => {
                    if let Some(looking) = &looking {
                        looking.set(records);
                    }
                }
                Told::Done(held, outcome) => {
                    done += 1;
                    if !quiet {
                        match output {
                            Output::Table => line(&mut lines_out, &given.letters, held, outcome, dry_run),
                            Output::Json => {
                                let done = text::outcome(&given.letters, held, outcome, dry_run);
                                let _ = writeln!(lines_out, "{done}");
                            }
                        }
                    }
                }
                Told::Through => {
                    looking = None;
                    if let Some(work) = &work {
                        work.set(done);
                    }
                    if !lines_out.is_empty() && lines.blocking_send(std::mem::take(&mut lines_out)).is_err() {
                        // Nobody reads what it says: it ends with this chunk.
                        stopped.cancel();
                    }
                }
            })
        });
        let mut running = std::pin::pin!(running);
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        let (mut interrupted, mut unwritten) = (false, None);
        let ended = loop {
            tokio::select! {
                biased;
                _ = &mut interrupt => {
                    if std::mem::replace(&mut interrupted, true) {
                        return Ok(None);
                    }
                    interrupt.set(tokio::signal::ctrl_c());
                    stop.cancel();
                }
                Some(text) = lines_in.recv() => {
                    if let Err(error) = print(|out| out.write_all(text.as_bytes())) {
                        unwritten.get_or_insert(error);
                        lines_in.close();
                    }
                }
                ended = &mut running => break ended,
            }
        };
        while let Ok(text) = lines_in.try_recv() {
            if unwritten.is_none() {
                print(|out| out.write_all(text.as_bytes()))?;
            }
        }
        if let Some(error) = unwritten {
            return Err(error);
        }
        let (totals, done) =
            ended.map_err(|panic| Error::because(ErrorKind::Internal, "replaying panicked", panic))?;
        Ok(Some((totals, done, interrupted)))
    }

    fn totals(&self, totals: &Totals) -> String {
        let Totals { selected, replayed, stale, known, replaced, left, not_now, .. } = totals;
        let verb = if self.dry_run { "would be replayed" } else { "replayed" };
        let letters = counted(*selected, "letter");
        let mut line =
            format!("{letters} selected: {replayed} {verb}, {stale} stale, {known} replayed before");
        if *replaced > 0 {
            let _ = write!(line, ", {replaced} replaced by later ones");
        }
        let _ = write!(line, ", {} left", totals.unhandled());
        let whys: Vec<String> = left.iter().map(|(why, count)| format!("{count} {}", why.label())).collect();
        if !whys.is_empty() {
            let _ = write!(line, " ({})", whys.join(", "));
        }
        if *not_now > 0 {
            let _ = write!(line, "; {not_now} outside of the time asked for");
        }
        line
    }
}

/// One line for people: what was done, which letter, which record, and where to or why not.
fn line(out: &mut String, letters: &str, held: &Held, outcome: &Outcome, dry_run: bool) {
    let (partition, offset) = (held.partition, held.offset);
    let key = shown_key(held.key.as_deref());
    let source = shown_place(held.source.as_ref());
    let _ =
        write!(out, "{:<12} {letters}[{partition}]@{offset} key {key} of {source}", outcome.word(dry_run));
    let _ = match outcome {
        Outcome::Replayed(Some((partition, at))) => writeln!(out, " to [{partition}]@{at}"),
        Outcome::Replayed(None) => writeln!(out),
        Outcome::Stale(at) => writeln!(out, ": a later record of the key is at {at}"),
        Outcome::Outdone if dry_run => {
            writeln!(out, ": {}; --force sends it with the time of now", held.message)
        }
        // It counts as handled for this selection, so that the same command passes over it.
        Outcome::Outdone => {
            let what = "--force sends it with the time of now, where it is selected anew, as by --key";
            writeln!(out, ": {}; {what}", held.message)
        }
        Outcome::Known(Some(at)) => writeln!(out, ": it was replayed before, to {at}"),
        Outcome::Replaced(last) => {
            let (partition, at) = (last.partition, last.offset);
            writeln!(out, ": its record has failed again since, see {letters}[{partition}]@{at}")
        }
        Outcome::Known(None) => writeln!(out, ": it was replayed as another letter of the same record"),
        Outcome::Left(_, why) => writeln!(out, ": {why}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead::held::Place;
    use crate::dead::outcome::Why;
    use crate::dead::record::Last;

    fn held() -> Held {
        Held {
            partition: 0,
            offset: 12,
            source: Some(Place { topic: "orders".to_owned(), partition: 1, offset: 7 }),
            key: Some(bytes::Bytes::from_static(b"P-1")),
            ..Held::default()
        }
    }

    #[test]
    fn each_letter_has_a_line_that_says_what_was_done() {
        let said = |outcome: Outcome, dry_run| {
            let mut text = String::new();
            line(&mut text, "products.dlq", &held(), &outcome, dry_run);
            text
        };
        assert_eq!(
            said(Outcome::Replayed(Some((1, 57))), false),
            "replayed     products.dlq[0]@12 key \"P-1\" of orders[1]@7 to [1]@57\n"
        );
        assert!(said(Outcome::Replayed(None), true).starts_with("would-replay products"));
        let last = Last { partition: 3, offset: 57, replays: 1 };
        let replaced = said(Outcome::Replaced(last), false);
        assert!(
            replaced.starts_with("replaced ") && replaced.ends_with("products.dlq[3]@57\n"),
            "{replaced}"
        );
        assert!(said(Outcome::Stale(9), false).contains("later record of the key is at 9"));
        assert!(
            said(Outcome::Outdone, false).starts_with("stale")
                && said(Outcome::Outdone, false).contains("--force")
        );
        assert!(
            said(Outcome::Left(Why::Unmended, "no such unit".to_owned()), false)
                .ends_with(": no such unit\n")
        );
        let value = text::outcome("products.dlq", &held(), &Outcome::Replayed(Some((1, 57))), false);
        assert_eq!(value["to"], json!({ "topic": "orders", "partition": 1, "offset": 57 }));
    }
}
