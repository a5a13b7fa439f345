//! Logs: to stderr, as lines for people or as JSON for machines. stdout belongs to data.
//!
//! Owns: format and level. Does not own: what is logged; a log says a sentence, then fields, and never a secret.

use std::fmt;
use std::io::IsTerminal as _;
use std::str::FromStr;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, reload};

/// The shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// A line for people; coloured on a terminal.
    #[default]
    Human,
    /// One JSON object a line: `timestamp`, `level`, `target`, `message`, then the fields.
    Json,
}

impl FromStr for Form {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "human" => Ok(Form::Human),
            "json" => Ok(Form::Json),
            _ => Err(format!("log format {text:?} is neither human nor json")),
        }
    }
}

/// What may be logged: a level, or several directives as in `info,stillwell::producer=debug`
/// (<https://docs.rs/tracing-subscriber/latest/tracing_subscriber/filter/struct.EnvFilter.html#directives>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level(String);

impl Level {
    /// The directives as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn filter(&self) -> EnvFilter {
        // The wrapper's own lines are errors that its calls return as well, and one about a queue that is closed twice at
        // each orderly end; librdkafka's lines come under their own target. Nor does object_store name the blob that it asks
        // for again; who reads or stores it does. A directive that names them still wins.
        let directives = format!("rdkafka=off,object_store=warn,{}", self.0);
        EnvFilter::try_new(directives).expect("parsed when the level was made")
    }
}

impl Default for Level {
    fn default() -> Self {
        Level("info".to_owned())
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        // A bare word that is no level would be taken for a target, and everything else silenced.
        let words = text.split(',').map(str::trim);
        if let Some(word) = words.clone().find(|word| {
            !word.contains(['=', ':', '[']) && !levels.iter().any(|level| level.eq_ignore_ascii_case(word))
        }) {
            return Err(format!("{word:?} is no log level: off, error, warn, info, debug or trace"));
        }
        match EnvFilter::try_new(text) {
            Ok(_) => Ok(Level(text.to_owned())),
            Err(error) => Err(format!("log level {text:?}: {error}")),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Changes the level of the running process.
#[derive(Clone)]
pub struct Handle(reload::Handle<EnvFilter, Registry>);

impl Handle {
    /// Sets the level from here on.
    pub fn set(&self, level: &Level) {
        // Fails only when the subscriber is gone, and then nobody logs.
        let _ = self.0.reload(level.filter());
    }
}

/// Starts logging for the whole process, once; `writer` is stderr, or what shares it with a progress bar. Returns
/// `None` where something else has already taken the process's logs (a test, an embedding application).
pub fn init<W>(form: Form, level: &Level, writer: W) -> Option<Handle>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(level.filter());
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let started = match form {
        Form::Human => {
            let lines = lines.with_ansi(std::io::stderr().is_terminal()).with_target(false);
            tracing_subscriber::registry().with(filter).with(lines).try_init()
        }
        Form::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false);
            tracing_subscriber::registry().with(filter).with(lines).try_init()
        }
    };
    started.ok().map(|()| Handle(handle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_a_level_or_directives() {
        for good in ["info", "DEBUG", "warn,stillwell::producer=debug", "off"] {
            assert!(good.parse::<Level>().is_ok(), "{good}");
        }
        for bad in ["verbose", "info,verbos", "stillwell=loud"] {
            assert!(bad.parse::<Level>().is_err(), "{bad}");
        }
    }
}
