//! What is wrong with a configuration: everything, in one go, each with its place and the way out.

use std::fmt;
use std::sync::Arc;

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of the file; counted from 1.
    File(Arc<str>, usize),
    /// An environment variable.
    Env(String),
    /// `--set KEY=VALUE`, or another flag.
    Flag(String),
    /// The profile of this name.
    Profile(String),
    /// Computed from other values; says how.
    Derived(&'static str),
    /// Nowhere: the default.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(file, line) => write!(f, "{file}:{line}"),
            Place::Env(name) => write!(f, "env {name}"),
            Place::Flag(flag) => write!(f, "flag {flag}"),
            Place::Profile(name) => write!(f, "profile {name}"),
            Place::Derived(how) => write!(f, "default: {how}"),
            Place::Default => f.write_str("default"),
        }
    }
}

/// One thing that is wrong, or (as a warning) only odd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where; `None` where nothing was given.
    pub place: Option<Place>,
    /// The key's path.
    pub key: String,
    /// What is wrong, and what to do.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// All that is wrong, in the order of the file; then what the environment and the command line got wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// Adds one. The same words about the same key are said once.
    pub fn add(&mut self, place: Option<Place>, key: impl Into<String>, what: impl Into<String>) {
        let mistake = Mistake { place, key: key.into(), what: what.into() };
        if !self.0.contains(&mistake) {
            self.0.push(mistake);
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in order of place.
    pub fn list(&self) -> Vec<&Mistake> {
        let mut list: Vec<&Mistake> = self.0.iter().collect();
        // Without a place comes last: it is what is missing.
        list.sort_by(|a, b| (a.place.is_none(), &a.place).cmp(&(b.place.is_none(), &b.place)));
        list
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.list().into_iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_come_in_the_order_of_the_file_and_once() {
        let mut mistakes = Mistakes::default();
        let file: Arc<str> = "a.toml".into();
        mistakes.add(None, "storage.data_dir", "is missing");
        mistakes.add(Some(Place::Env("STILLWELL_X".into())), "x", "is unknown");
        mistakes.add(Some(Place::File(file.clone(), 12)), "b", "is wrong");
        mistakes.add(Some(Place::File(file.clone(), 3)), "a", "is wrong");
        mistakes.add(Some(Place::File(file, 3)), "a", "is wrong");
        let said = mistakes.to_string();
        assert_eq!(
            said,
            "a.toml:3: a: is wrong\na.toml:12: b: is wrong\nenv STILLWELL_X: x: is unknown\n\
             storage.data_dir: is missing"
        );
    }
}
