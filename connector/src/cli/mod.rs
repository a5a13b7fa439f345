//! The command line: one file per command, which parses its arguments and does it.
//!
//! ```text
//! arguments -> Cli -> command (its file) -> Config, rooms ... -> stdout: data only
//!                          |                                    stderr: logs, progress, what went wrong
//!                          v
//!                      exit code: 0, 1 (the answer is no), or why not (sysexits)
//! ```
//!
//! Owns: arguments, exit codes, how an error is told to a person. Does not own: anything a library user could not do.

use std::io::Write as _;
use std::process::ExitCode;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind as Usage};
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::Result;
use crate::telemetry::log as logging;
use crate::words::nearest;

mod given;
mod edge;
mod signals;
pub mod progress;
pub mod table;
pub mod run;
pub mod demo;
pub mod check;
mod connect;
pub mod config;
mod adopt;
mod downloads;
mod reading;
pub mod versions;
pub mod pin;
pub mod snapshot;
pub mod get;
pub mod scan;
pub mod export;
pub mod import;
pub mod dlq;
pub mod blob;
pub mod log;
pub mod rebuild;
pub mod schema;
pub mod bench;
pub mod healthcheck;

pub use edge::Answer;
pub use given::Given;

/// Exit code of a wrong command line (`EX_USAGE`).
const USAGE: u8 = 64;
/// Exit code of what a signal has ended at once, as shells have it for Ctrl-C: 128 and the signal.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Parser)]
#[command(name = "stillwell", version, about, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    logging: Logging,
    #[command(subcommand)]
    command: Command,
}

/// How to log; the configuration's `[log]` says it for commands that have one.
#[derive(Clone, Debug, Args)]
struct Logging {
    /// Log lines for people, or one JSON object a line [default: human]
    #[arg(long, global = true, value_name = "human|json", help_heading = "Logging")]
    log_format: Option<logging::Form>,
    /// Level, or directives as in info,stillwell::producer=debug [default: info]
    #[arg(long, global = true, value_name = "LEVEL", help_heading = "Logging")]
    log_level: Option<logging::Level>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Demo(demo::Demo),
    Check(check::Check),
    Config(config::Config),
    Versions(versions::Versions),
    Pin(pin::Pin),
    Unpin(pin::Unpin),
    Snapshot(snapshot::Snapshot),
    Get(get::Get),
    Scan(scan::Scan),
    Export(export::Export),
    Import(import::Import),
    Dlq(dlq::Dlq),
    Blob(blob::Blob),
    Log(log::Log),
    Rebuild(rebuild::Rebuild),
    Schema(schema::Schema),
    Bench(bench::Bench),
    Healthcheck(healthcheck::Healthcheck),
}

impl Command {
    fn run(self, edge: &edge::Edge) -> Result<Answer> {
        match self {
            Command::Run(command) => command.run(edge),
            Command::Demo(command) => command.run(edge),
            Command::Check(command) => command.run(edge),
            Command::Config(command) => command.run(edge),
            Command::Versions(command) => command.run(edge),
            Command::Pin(command) => command.run(edge),
            Command::Unpin(command) => command.run(edge),
            Command::Snapshot(command) => command.run(edge),
            Command::Get(command) => command.run(edge),
            Command::Scan(command) => command.run(edge),
            Command::Export(command) => command.run(edge),
            Command::Import(command) => command.run(edge),
            Command::Dlq(command) => command.run(edge),
            Command::Blob(command) => command.run(edge),
            Command::Log(command) => command.run(edge),
            Command::Rebuild(command) => command.run(edge),
            Command::Schema(command) => command.run(edge),
            Command::Bench(command) => command.run(edge),
            Command::Healthcheck(command) => command.run(edge),
        }
    }
}

/// Runs the process's command line.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(mut error) => {
            suggest(&mut error);
            hint_at_file(&mut error);
            // Help and version that were asked for are data; all else is a wrong command line.
            let asked = matches!(error.kind(), Usage::DisplayHelp | Usage::DisplayVersion);
            let _ = error.print();
            return ExitCode::from(if asked { 0 } else { USAGE });
        }
    };
    let edge = edge::Edge::new(cli.logging);
    let runs = matches!(cli.command, Command::Run(_));
    match cli.command.run(&edge) {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::FAILURE,
        Ok(Answer::Interrupted) => ExitCode::from(INTERRUPTED),
        // `stillwell … | head` has seen what it wanted.
        Err(error) if edge::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = write!(std::io::stderr().lock(), "{}", edge::tell(&error, runs));
            ExitCode::from(edge::exit_code(&error))
        }
    }
}

/// The command that the arguments before `word` name.
fn command_before<'t>(tree: &'t clap::Command, word: &str) -> &'t clap::Command {
    let mut command = tree;
    for argument in std::env::args().skip(1).take_while(|argument| argument != word) {
        command = command.find_subcommand(&argument).unwrap_or(command);
    }
    command
}

/// Says how to name a configuration where one stands among the arguments without `-c`.
fn hint_at_file(error: &mut clap::Error) {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else { return };
    let word = word.clone();
    let tree = Cli::command();
    let takes_one =
        command_before(&tree, &word).get_arguments().any(|argument| argument.get_id() == "config");
    let is_file = word.ends_with(".toml") || std::path::Path::new(&word).is_file();
    if error.kind() == Usage::UnknownArgument && takes_one && is_file && !word.starts_with('-') {
        let tip = StyledStr::from(format!("did you mean '-c {word}'?"));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
}

/// Names the command that was probably meant where clap knows none: its measure is blind to letters that have changed
/// places in a short word, as in `rnu`.
fn suggest(error: &mut clap::Error) {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return };
    if error.get(ContextKind::SuggestedSubcommand).is_some() {
        return;
    }
    let tree = Cli::command();
    let command = command_before(&tree, word);
    if let Some(near) = nearest(word, command.get_subcommands().map(clap::Command::get_name)) {
        let near = ContextValue::Strings(vec![near.to_owned()]);
        error.insert(ContextKind::SuggestedSubcommand, near);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_sound_and_everything_has_help() {
        let mut tree = Cli::command();
        tree.build();
        fn walk(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} of {} has no help",
                    argument.get_id(),
                    command.get_name()
                );
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&tree);
        tree.debug_assert();
    }

    #[test]
    fn wrong_levels_are_wrong_command_lines() {
        assert!(Cli::try_parse_from(["stillwell", "--log-level", "loud", "check"]).is_err());
        assert!(Cli::try_parse_from(["stillwell", "check", "--log-level", "debug"]).is_ok());
    }
}
