//! Configuration: from a file, the environment and flags to each room's own options.
//!
//! ```text
//!  model: every key, its kind, its default, its value in each profile
//!    |
//!    v
//!  defaults < profile < file < environment < flags      (layers: values with places; load: merged by figment)
//!    |
//!    v
//!  inherited (datasets from [producer]), derived, checked  -> all mistakes in one go, each with its place
//!    |
//!    v
//!  producer::Options, consumer::Options, kafka::Options    (options)         config show (show)
//! ```
//!
//! Owns: names, defaults and meanings of keys; saying what is wrong and what to write instead; masking secrets. Does
//! not own: what the values do (each room), opening anything but schema and secret files.
//!
//! docs/configuration.md is made from `model.rs` and checked by a test.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

pub mod values;
pub mod secret;
pub mod mistakes;
pub mod model;
pub mod profile;
mod tree;
mod layers;
mod load;
mod derive;
mod check;
mod formats;
mod registry;
mod properties;
mod options;
mod show;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub use load::Sources;
pub use mistakes::{Mistake, Mistakes, Place};
pub use options::{Role, Shared};
pub use show::{Shown, to_toml};

use crate::kafka::{Reach, Tokens};
use crate::registry::Registry;
use crate::words::counted;
use check::{Check, Reading};
use load::{Effective, Loaded};
use model::Model;

/// The file that is read where none is named.
pub const DEFAULT_FILE: &str = "stillwell.toml";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there.
    #[error("{path}: no such file; name one with -c FILE or STILLWELL_CONFIG{hint}")]
    Missing {
        /// The file.
        path: String,
        /// A variable that may have been meant to name it.
        hint: String,
    },
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// What it says is wrong.
    #[error("{} in {file}:\n{mistakes}", counted(mistakes.list().len() as u64, "mistake"))]
    Mistakes {
        /// The configuration, with its file where it has one.
        file: String,
        /// All that is wrong.
        mistakes: Mistakes,
        /// What is only odd.
        warnings: Mistakes,
    },
}

impl Error {
    /// Whether trying again may succeed with nothing changed: never.
    pub fn is_transient(&self) -> bool {
        false
    }
}

impl From<Error> for crate::Error {
    fn from(error: Error) -> crate::Error {
        crate::Error::because(crate::ErrorKind::Config, "the configuration cannot be used", error)
    }
}

fn environment() -> BTreeMap<String, String> {
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    std::env::vars_os().filter_map(text).collect()
}

/// Containers are often configured by their environment alone.
fn is_configured(env: &BTreeMap<String, String>) -> bool {
    env.keys().any(|name| name.starts_with(layers::PREFIX) && name.contains("__"))
}

/// A configuration without mistakes.
#[derive(Clone)]
pub struct Config {
    file: Option<PathBuf>,
    effective: Effective,
    model: Model,
    reading: BTreeMap<String, Reading>,
    warnings: Mistakes,
    registry: Option<Registry>,
    /// What the clients of this process have seen of Kafka.
    reach: Reach,
    /// Who gets tokens for them.
    tokens: Tokens,
}

impl Config {
    /// Reads the file (`None`: [`DEFAULT_FILE`] if it is there), the process's environment, and `flags`: dotted keys
    /// with values, as `--set` gives them.
    ///
    /// # Errors
    /// [`Error`], with all mistakes.
    pub fn load(file: Option<&Path>, flags: &[(String, String)]) -> Result<Config, Error> {
        Config::read(&Config::sources(file, flags)?)
    }

    /// The same for who is about to run by it: librdkafka is asked as well whether its properties go together, for which it
    /// makes a client and reads the files that they name. Who only looks at something must not fail while one of them is
    /// exchanged.
    ///
    /// # Errors
    /// [`Error`], with all mistakes.
    pub fn load_to_run(file: Option<&Path>, flags: &[(String, String)]) -> Result<Config, Error> {
        Config::read_to_run(&Config::sources(file, flags)?)
    }

    fn sources(file: Option<&Path>, flags: &[(String, String)]) -> Result<Sources, Error> {
        let env = environment();
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let shown = || path.display().to_string();
        let text = load::read(path).map_err(|source| Error::Unreadable { path: shown(), source })?;
        let file = match text {
            Some(text) => Some((path.to_owned(), text)),
            None if file.is_none() && (is_configured(&env) || !flags.is_empty()) => None,
            None => {
                let slip = env.keys().find(|name| layers::is_meant(name, "CONFIG"));
                let hint = slip.map_or(String::new(), |name| format!("; did you mean that by {name}?"));
                return Err(Error::Missing { path: shown(), hint });
            }
        };
        Ok(Sources { file, env, flags: flags.to_vec() })
    }

    /// Whether [`Config::load`] would find anything.
    pub fn is_there(file: Option<&Path>, flags: &[(String, String)]) -> bool {
        file.is_some()
            || !flags.is_empty()
            || Path::new(DEFAULT_FILE).exists()
            || is_configured(&environment())
    }

    /// Reads sources that are in memory already.
    ///
    /// # Errors
    /// [`Error::Mistakes`], with all of them.
    pub fn read(sources: &Sources) -> Result<Config, Error> {
        Config::checked(sources, false)
    }

    /// The same for who is about to run by them; see [`Config::load_to_run`].
    ///
    /// # Errors
    /// [`Error::Mistakes`], with all of them.
    pub fn read_to_run(sources: &Sources) -> Result<Config, Error> {
        Config::checked(sources, true)
    }

    fn checked(sources: &Sources, to_run: bool) -> Result<Config, Error> {
        let loaded = load::load(sources);
        let mut check = Check::all(&loaded);
        if to_run && !loaded.torn {
            check.properties_together();
        }
        let Check { mistakes, warnings, reading, registry, .. } = check;
        if !mistakes.is_empty() {
            let file = sources.file.as_ref().map_or("the configuration".to_owned(), |(path, _)| {
                format!("the configuration {}", path.display())
            });
            return Err(Error::Mistakes { file, mistakes, warnings });
        }
        let file = sources.file.as_ref().map(|(path, _)| path.clone());
        let Loaded { effective, model, .. } = loaded;
        Ok(Config {
            file,
            effective,
            model,
            reading,
            warnings,
            registry,
            reach: Reach::default(),
            tokens: Tokens::default(),
        })
    }

    /// The file's name, for messages.
    pub fn file(&self) -> String {
        self.file.as_ref().map_or("the environment".to_owned(), |file| file.display().to_string())
    }

    /// The values.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The datasets' names.
    pub fn datasets(&self) -> impl Iterator<Item = &str> {
        self.model.datasets.keys().map(String::as_str)
    }

    /// What is odd, and no mistake.
    pub fn warnings(&self) -> &Mistakes {
        &self.warnings
    }

    /// The schema registry, where one is configured. Connections and cache are the process's.
    pub fn registry(&self) -> Option<&Registry> {
        self.registry.as_ref()
    }

    fn effective(&self) -> &Effective {
        &self.effective
    }

    /// Where the value of a key that no dataset is part of came from.
    pub fn place_of(&self, dotted: &str) -> Place {
        let path = load::path(&dotted.split('.').collect::<Vec<_>>());
        self.effective.place(&path).unwrap_or(Place::Default)
    }

    fn reading(&self, name: &str) -> &Reading {
        self.reading.get(name).expect("a configuration without mistakes knows how to read each dataset")
    }
}

impl fmt::Debug for Config {
    /// What `config show` prints, which has no secrets in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.shown();
        f.debug_map().entries(shown.iter().map(|one| (&one.key, &one.value))).finish()
    }
}
