//! The effective configuration as it is shown: each value, and where it came from; secrets masked.

use std::fmt::Write as _;

use figment::value::Value;

use super::Config;
use super::layers::Origin;
use super::secret::{MASK, is_secret, without_user};
use super::tree;

/// One value.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Shown {
    /// Path of its section.
    #[serde(skip)]
    pub section: Vec<String>,
    /// Its name there, quoted where TOML wants it.
    #[serde(skip)]
    pub name: String,
    /// The key's path.
    pub key: String,
    /// As TOML; secrets as `"***"`.
    pub value: String,
    /// `default`, `profile NAME`, `FILE:LINE`, `env NAME`, `flag …`; and what was fetched from where.
    pub source: String,
}

impl Config {
    /// All values, in the order of a file: the keys of a section, then the sections below it.
    pub fn shown(&self) -> Vec<Shown> {
        let mut all: Vec<Shown> =
            self.effective().0.iter().map(|(path, (value, origin))| show(path, value, origin)).collect();
        all.sort_by(|a, b| a.section.cmp(&b.section));
        all
    }
}

/// Values as a TOML file that says the same as the configuration, each with its source behind it.
pub fn to_toml(all: &[Shown]) -> String {
    let mut text = String::new();
    for lines in all.chunk_by(|a, b| a.section == b.section) {
        let section = lines.first().map(|first| tree::show(&first.section)).unwrap_or_default();
        if !section.is_empty() {
            let _ = writeln!(text, "{}[{section}]", if text.is_empty() { "" } else { "\n" });
        }
        let lines: Vec<_> =
            lines.iter().map(|one| (format!("{} = {}", one.name, one.value), &one.source)).collect();
        let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0).min(48);
        for (line, source) in lines {
            let _ = writeln!(text, "{line:width$}  # {source}");
        }
    }
    text
}

fn show(path: &[String], value: &Value, origin: &Origin) -> Shown {
    let hidden = origin.via.is_some() || is_secret(path);
    let source = match &origin.via {
        Some(via) => format!("{}, from {via}", origin.place),
        None => origin.place.to_string(),
    };
    let value = if hidden { format!("{MASK:?}") } else { toml(value) };
    let (name, section) =
        path.split_last().map_or((&[][..], path), |(last, section)| (std::slice::from_ref(last), section));
    Shown { section: section.to_vec(), name: tree::show(name), key: tree::show(path), value, source }
}

/// A value as TOML writes it.
fn toml(value: &Value) -> String {
    match value {
        Value::String(_, text) => toml::Value::from(without_user(text)).to_string(),
        Value::Char(_, char) => toml::Value::from(char.to_string()).to_string(),
        Value::Bool(_, on) => on.to_string(),
        Value::Num(_, number) => match (number.to_u128(), number.to_i128(), number.to_f64()) {
            (Some(number), ..) => number.to_string(),
            (_, Some(number), _) => number.to_string(),
            (.., Some(number)) => toml::Value::from(number).to_string(),
            _ => String::new(),
        },
        Value::Array(_, items) => format!("[{}]", items.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Empty(..) | Value::Dict(..) => String::new(),
    }
}
