//! The effective configuration as it is shown: each value, and where it came from; secrets masked.

use std::fmt::Write as _;

use figment::value::Value;

use super::Config;
use super::layers::Origin;
use super::model::{Apart, SECTIONS, Values as _};
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
    #[serde(skip)]
    pub value: String,
    /// The same as JSON.
    #[serde(rename = "value")]
    pub json: serde_json::Value,
    /// `default`, `profile NAME`, `FILE:LINE`, `env NAME`, `flag …`; and what was fetched from where.
    pub source: String,
}

impl Config {
    /// All values, in the order of the documentation; each dataset's together, at the end. Not of a webhook that has no
    /// receiver: its keys do nothing, and given so they are a mistake.
    pub fn shown(&self) -> Vec<Shown> {
        let effective = &self.effective().0;
        let is_idle = |path: &[String]| {
            let [section @ .., _] = path else { return false };
            let has_url = || effective.contains_key(&[section, &["url".to_owned()]].concat());
            section.ends_with(&["consumer".to_owned(), "webhook".to_owned()]) && !has_url()
        };
        let idle_left_out = effective.iter().filter(|(path, _)| !is_idle(path));
        let mut all: Vec<Shown> =
            idle_left_out.map(|(path, (value, origin))| show(path, value, origin)).collect();
        all.sort_by_cached_key(|shown| rank(&shown.section, &shown.name));
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

/// Where a key stands in the documentation. What is not listed there (properties, options, features) follows its section;
/// each topic's keys stand together.
fn rank(section: &[String], name: &str) -> (String, usize, String, usize, String) {
    let topic = match section {
        [datasets, _, source, formats, topic] => {
            ([datasets, source, formats] == ["datasets", "source", "formats"]).then_some(topic)
        }
        _ => None,
    };
    let (dataset, pattern) = match section {
        [_, dataset, ..] if topic.is_some() => (dataset.as_str(), Apart::SECTION.path.to_owned()),
        [datasets, dataset, producer, below @ ..] if datasets == "datasets" && producer == "producer" => {
            (dataset.as_str(), format!("producer.{}", below.join(".")))
        }
        [datasets, dataset, below @ ..] if datasets == "datasets" => (
            dataset.as_str(),
            ["datasets", "*"]
                .into_iter()
                .chain(below.iter().map(String::as_str))
                .collect::<Vec<_>>()
                .join("."),
        ),
        _ => ("", section.join(".")),
    };
    let own = pattern.starts_with("datasets");
    let index = SECTIONS.iter().position(|section| section.path == pattern);
    let index = index
        .map(|index| if own { index } else { index + SECTIONS.len() * usize::from(!dataset.is_empty()) });
    let keys =
        SECTIONS.iter().find(|section| section.path == pattern).map_or(&[][..], |section| section.keys);
    let key = keys.iter().position(|key| key.name == name).unwrap_or(usize::MAX);
    let after = match pattern.as_str() {
        "storage.options" => SECTIONS.iter().position(|section| section.path == "storage"),
        "kafka.properties" => SECTIONS.iter().position(|section| section.path == "kafka"),
        _ => None,
    };
    let topic = topic.cloned().unwrap_or_default();
    (dataset.to_owned(), index.or(after).unwrap_or(usize::MAX), topic, key, pattern)
}

fn show(path: &[String], value: &Value, origin: &Origin) -> Shown {
    let hidden = origin.via.is_some() || is_secret(path);
    let source = match &origin.via {
        Some(via) => format!("{}, from {via}", origin.place),
        None => origin.place.to_string(),
    };
    let (text, json) = if hidden { (format!("{MASK:?}"), MASK.into()) } else { (toml(value), json(value)) };
    let (name, section) =
        path.split_last().map_or((&[][..], path), |(last, section)| (std::slice::from_ref(last), section));
    Shown {
        section: section.to_vec(),
        name: tree::show(name),
        key: tree::show(path),
        value: text,
        json,
        source,
    }
}

fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::String(_, text) => without_user(text).into(),
        value => serde_json::to_value(value).unwrap_or_default(),
    }
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
