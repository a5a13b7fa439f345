//! The values that configurations are written in, and the kinds of them that a key takes.
//!
//! Owns: reading one value, and saying what a right one looks like. Does not own: which key takes what (`model`).

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;
use figment::value::Value;
use serde::{Deserialize, Deserializer};

/// What a key takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Any text that is not empty.
    Text,
    /// `true` or `false`.
    Switch,
    /// A whole number from the first to the second.
    Whole(u64, u64),
    /// A number from 0 to 1.
    Fraction,
    /// A percentage, or a number from 0 to 1.
    Share,
    /// A duration, at least so many milliseconds.
    Span(u64),
    /// A number of bytes, at least so many.
    Size(u64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of texts.
    Texts,
    /// A path, relative to the file that it stands in.
    Path,
    /// The same, for a folder.
    Folder,
    /// `ADDRESS:PORT`, or `off`.
    Listen,
    /// `"kafka"`, or a list of field names.
    KeyRule,
    /// Comparisons of fields.
    Filter,
    /// A list of lists of field names.
    Indexes,
    /// A log level, or directives.
    Level,
    /// A point in time, RFC 3339 in UTC.
    Time,
    /// A value of a librdkafka property: text, a number, true or false.
    Property,
}

/// A value as it was written, before it is known what its key takes.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw {
    /// A TOML string.
    Text(String),
    /// From the environment, the command line or a secret's file: text that may stand for any kind.
    Loose(String),
    /// A TOML integer.
    Whole(i64),
    /// A TOML float.
    Float(f64),
    /// A TOML boolean.
    Switch(bool),
    /// A TOML date or time.
    Time(String),
    /// A TOML array.
    List(Vec<Raw>),
    /// Anything else, by its TOML name.
    Other(&'static str),
}

impl Kind {
    /// Reads a value, or says what is wrong with it and what a right one looks like.
    pub fn read(self, raw: &Raw) -> Result<Value, String> {
        let found = || format!("{}: {}", found(raw), self.wanted());
        match self {
            Kind::Text => match raw.text().map(str::trim) {
                Some("") => Err("is empty".to_owned()),
                Some(text) => Ok(text.into()),
                None => Err(found()),
            },
            Kind::Switch => match raw {
                Raw::Switch(on) => Ok((*on).into()),
                Raw::Loose(text) => text.parse::<bool>().map(Value::from).map_err(|_| found()),
                _ => Err(found()),
            },
            Kind::Whole(least, most) => {
                let number = raw.whole().ok_or_else(found)?;
                match u64::try_from(number) {
                    Ok(number) if (least..=most).contains(&number) => Ok(number.into()),
                    _ if most == u64::MAX => Err(format!("{number} is too low: the least is {least}")),
                    _ => Err(format!("{number} is out of range: {least} to {most}")),
                }
            }
            Kind::Fraction => {
                let number = raw.float().ok_or_else(found)?;
                if (0.0..=1.0).contains(&number) { Ok(number.into()) } else { Err(found()) }
            }
            Kind::Share => {
                let share = match raw.text().and_then(|text| text.trim().strip_suffix('%')) {
                    Some(percent) => percent.trim().parse::<f64>().ok().map(|percent| percent / 100.0),
                    None if matches!(raw, Raw::Text(_)) => None,
                    None => raw.float(),
                };
                match share {
                    // Kept as written, for `config show`.
                    Some(share) if (0.0..=1.0).contains(&share) => {
                        Ok(raw.text().map_or(Value::from(share), |text| text.trim().into()))
                    }
                    _ => Err(found()),
                }
            }
            Kind::Span(least) => {
                let text = raw.text().ok_or_else(found)?.trim();
                let span = humantime::parse_duration(text).map_err(|_| found())?;
                if span < Duration::from_millis(least) {
                    let least = humantime::format_duration(Duration::from_millis(least));
                    return Err(format!("{text:?} is too short: the least is {least}"));
                }
                Ok(text.into())
            }
            Kind::Size(least) => {
                let size = match raw {
                    Raw::Whole(bytes) => u64::try_from(*bytes).ok(),
                    _ => raw.text().and_then(|text| text.trim().parse::<ByteSize>().ok()).map(|size| size.0),
                };
                match size {
                    Some(size) if size >= least => {
                        Ok(raw.text().map_or(Value::from(size), |text| text.trim().into()))
                    }
                    Some(_) => {
                        Err(format!("{} is too small: the least is {}", found_value(raw), show_size(least)))
                    }
                    None => Err(found()),
                }
            }
            Kind::Choice(words) => match raw.text().map(str::trim) {
                Some(text) if words.contains(&text) => Ok(text.into()),
                Some(text) => {
                    let near = crate::words::nearest(text, words.iter().copied());
                    let hint = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
                    Err(format!("{text:?} is not one of {}{hint}", words.join(", ")))
                }
                None => Err(found()),
            },
            Kind::Texts => texts(raw).ok_or_else(found).map(Value::from),
            Kind::Path | Kind::Folder => match raw.text() {
                Some("") => Err("is empty".to_owned()),
                Some(text) => Ok(text.into()),
                None => Err(found()),
            },
            Kind::Listen => match raw.text().map(str::trim) {
                Some(text) if text == "off" || text.parse::<SocketAddr>().is_ok() => Ok(text.into()),
                _ => Err(found()),
            },
            Kind::KeyRule => match raw {
                Raw::Text(text) | Raw::Loose(text) if text.trim() == "kafka" => Ok("kafka".into()),
                Raw::Text(text) => {
                    Err(format!("{text:?} is neither \"kafka\" nor a list of fields: write [{text:?}]"))
                }
                _ => texts(raw).ok_or_else(found).map(Value::from),
            },
            Kind::Filter => match raw.text() {
                Some(text) => match crate::codec::Filter::parse(text) {
                    Ok(_) => Ok(text.into()),
                    Err(error) => Err(error.to_string()),
                },
                None => Err(found()),
            },
            Kind::Indexes => {
                let each: Option<Vec<Vec<String>>> = match raw {
                    Raw::List(indexes) => indexes.iter().map(texts).collect(),
                    Raw::Loose(text) => {
                        text.split(';').map(|index| texts(&Raw::Loose(index.to_owned()))).collect()
                    }
                    _ => None,
                };
                each.ok_or_else(found).map(Value::from)
            }
            Kind::Level => match raw.text().map(str::trim) {
                Some(text) => text.parse::<crate::telemetry::log::Level>().map(|_| text.into()),
                None => Err(found()),
            },
            Kind::Time => match raw {
                Raw::Text(text) | Raw::Loose(text) | Raw::Time(text) => match moment(text) {
                    Some(_) => Ok(text.trim().into()),
                    None => Err(found()),
                },
                _ => Err(found()),
            },
            Kind::Property => match raw {
                Raw::Text(text) | Raw::Loose(text) => Ok(text.as_str().into()),
                Raw::Whole(number) => Ok(number.to_string().into()),
                Raw::Float(number) => Ok(number.to_string().into()),
                Raw::Switch(on) => Ok(on.to_string().into()),
                Raw::List(_) | Raw::Time(_) | Raw::Other(_) => Err(found()),
            },
        }
    }

    /// What a right value looks like, with an example.
    pub fn wanted(self) -> String {
        match self {
            Kind::Text => "write text, as in \"shop-1\"".to_owned(),
            Kind::Switch => "write true or false".to_owned(),
            Kind::Whole(least, most) if most == u64::MAX => format!("write a whole number from {least}"),
            Kind::Whole(least, most) => format!("write a whole number from {least} to {most}"),
            Kind::Fraction => "write a number from 0 to 1, as in 0.8".to_owned(),
            Kind::Share => "write a percentage from \"0%\" to \"100%\", as in \"25%\"".to_owned(),
            Kind::Span(_) => "write a number with its unit, as in \"100ms\", \"1s\" or \"10m\"".to_owned(),
            Kind::Size(_) => "write a number with its unit, as in \"8MB\", \"512MiB\" or \"10GB\"".to_owned(),
            Kind::Choice(words) => format!("write one of {}", words.join(", ")),
            Kind::Texts => "write a list, as in [\"products\"]".to_owned(),
            Kind::Path => "write a path, as in \"schemas/product.avsc\"".to_owned(),
            Kind::Folder => "write a folder, as in \"/var/lib/stillwell\"".to_owned(),
            Kind::Listen => "write an address and a port, as in \"127.0.0.1:8080\", or \"off\"".to_owned(),
            Kind::KeyRule => "write \"kafka\", or a list of fields of the value, as in [\"id\"]".to_owned(),
            Kind::Filter => {
                "write comparisons of fields, as in \"category = 'shoes' and price < 100\"".to_owned()
            }
            Kind::Indexes => {
                "write a list of lists of fields, as in [[\"category\"], [\"brand\", \"size\"]]".to_owned()
            }
            Kind::Level => "write a level, as in \"info\"".to_owned(),
            Kind::Time => "write a time in UTC, as in \"2026-03-01T12:00:00Z\"".to_owned(),
            Kind::Property => "write text, a number, true or false".to_owned(),
        }
    }

    /// The kind in a word or two, for the documentation.
    pub fn word(self) -> String {
        match self {
            Kind::Text => "text".to_owned(),
            Kind::Switch => "true, false".to_owned(),
            Kind::Whole(least, most) if most == u64::MAX => format!("number from {least}"),
            Kind::Whole(least, most) => format!("number, {least} to {most}"),
            Kind::Fraction => "number, 0 to 1".to_owned(),
            Kind::Share => "percentage".to_owned(),
            Kind::Span(_) => "duration".to_owned(),
            Kind::Size(_) => "size".to_owned(),
            Kind::Choice(words) => words.join(", "),
            Kind::Texts => "list of texts".to_owned(),
            Kind::Path => "path".to_owned(),
            Kind::Folder => "path".to_owned(),
            Kind::Listen => "address:port, off".to_owned(),
            Kind::KeyRule => "kafka, or list of fields".to_owned(),
            Kind::Filter => "[filter](#subsets-and-indexes)".to_owned(),
            Kind::Indexes => "list of lists of fields".to_owned(),
            Kind::Level => "log level".to_owned(),
            Kind::Time => "time".to_owned(),
            Kind::Property => "text, number, true, false".to_owned(),
        }
    }
}

impl Raw {
    fn text(&self) -> Option<&str> {
        match self {
            Raw::Text(text) | Raw::Loose(text) => Some(text),
            _ => None,
        }
    }

    fn whole(&self) -> Option<i64> {
        match self {
            Raw::Whole(number) => Some(*number),
            Raw::Loose(text) => text.trim().replace('_', "").parse().ok(),
            _ => None,
        }
    }

    fn float(&self) -> Option<f64> {
        match self {
            Raw::Float(number) => Some(*number),
            Raw::Whole(number) => Some(*number as f64),
            Raw::Loose(text) => text.trim().parse().ok(),
            _ => None,
        }
    }
}

fn texts(raw: &Raw) -> Option<Vec<String>> {
    let list: Vec<String> = match raw {
        Raw::List(items) => items.iter().map(|item| item.text().map(str::to_owned)).collect::<Option<_>>()?,
        Raw::Loose(text) => text.split(',').map(|item| item.trim().to_owned()).collect(),
        _ => return None,
    };
    (!list.is_empty() && list.iter().all(|item| !item.is_empty())).then_some(list)
}

/// What was found where something else is wanted.
fn found(raw: &Raw) -> String {
    match raw {
        Raw::Other(name) => format!("{name} cannot stand here"),
        Raw::Time(_) => "a date cannot stand here".to_owned(),
        Raw::List(items) if items.is_empty() => "the list is empty".to_owned(),
        Raw::List(_) => "a list cannot stand here".to_owned(),
        _ => format!("{} cannot stand here", found_value(raw)),
    }
}

fn found_value(raw: &Raw) -> String {
    match raw {
        Raw::Text(text) | Raw::Loose(text) => format!("{text:?}"),
        Raw::Whole(number) => number.to_string(),
        Raw::Float(number) => number.to_string(),
        Raw::Switch(on) => on.to_string(),
        Raw::List(_) => "a list".to_owned(),
        Raw::Time(text) => text.clone(),
        Raw::Other(name) => (*name).to_owned(),
    }
}

fn show_size(bytes: u64) -> String {
    ByteSize(bytes).display().si().to_string()
}

/// A duration, written as in `1s`, `100ms` or `1h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Span).map_err(serde::de::Error::custom)
    }
}

/// A share from 0 to 1, written as in `25%` or `0.25`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part(pub f64);

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(f64),
            Text(String),
        }
        let number = |text: &str| text.trim().parse::<f64>().map_err(serde::de::Error::custom);
        match Written::deserialize(deserializer)? {
            Written::Number(share) => Ok(Part(share)),
            Written::Text(text) => match text.strip_suffix('%') {
                Some(percent) => number(percent).map(|percent| Part(percent / 100.0)),
                None => number(&text).map(Part),
            },
        }
    }
}

/// Bytes, written as in `8MB` (8,000,000) or `8MiB` (8,388,608).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(Size(bytes)),
            Written::Text(text) => {
                text.parse::<ByteSize>().map(|size| Size(size.0)).map_err(serde::de::Error::custom)
            }
        }
    }
}

/// A point in time, milliseconds since the Unix epoch, written as in `2026-03-01T12:00:00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(pub i64);

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        moment(&text).map(Moment).ok_or_else(|| serde::de::Error::custom("not a time"))
    }
}

fn moment(text: &str) -> Option<i64> {
    let time = humantime::parse_rfc3339_weak(text.trim()).ok()?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok()
}

/// Where HTTP listens: `off`, or an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "off" {
            return Ok(Listen(None));
        }
        text.parse().map(|address| Listen(Some(address))).map_err(serde::de::Error::custom)
    }
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text itself. Compare tokens in constant time.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(super::secret::MASK)
    }
}

/// Where keys come from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Keyed {
    /// `"kafka"`: the record's key.
    Kafka(String),
    /// Fields of the value.
    Fields(Vec<String>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loose(text: &str) -> Raw {
        Raw::Loose(text.to_owned())
    }

    #[test]
    fn what_the_environment_says_is_read_as_the_key_needs_it() {
        assert_eq!(Kind::Whole(1, 10).read(&loose("7")).unwrap(), Value::from(7u64));
        assert_eq!(Kind::Text.read(&loose("7")).unwrap(), Value::from("7"));
        assert_eq!(Kind::Switch.read(&loose("true")).unwrap(), Value::from(true));
        assert_eq!(Kind::Texts.read(&loose("a, b")).unwrap(), Value::from(vec!["a", "b"]));
        assert_eq!(Kind::KeyRule.read(&loose("kafka")).unwrap(), Value::from("kafka"));
        let share = Kind::Share.read(&loose("25%")).unwrap();
        assert!((share.deserialize::<Part>().unwrap().0 - 0.25).abs() < 1e-9);
    }

    #[test]
    fn a_time_is_read_as_text_and_as_tomls_own() {
        for raw in [
            Raw::Text("2025-10-09T08:53:20.123Z".into()),
            loose(" 2025-10-09T08:53:20.123Z"),
            Raw::Time("2025-10-09T08:53:20.123Z".into()),
        ] {
            let value = Kind::Time.read(&raw).unwrap();
            assert_eq!(value.deserialize::<Moment>().unwrap(), Moment(1_760_000_000_123));
        }
    }

    #[test]
    fn a_wrong_value_is_answered_with_a_right_one() {
        for (kind, raw, said) in [
            (
                Kind::Span(0),
                Raw::Whole(100),
                "100 cannot stand here: write a number with its unit, as in \"100ms\"",
            ),
            (
                Kind::Span(0),
                Raw::Text("soon".into()),
                "\"soon\" cannot stand here: write a number with its unit",
            ),
            (Kind::Span(10), Raw::Text("1ms".into()), "\"1ms\" is too short: the least is 10ms"),
            (Kind::Size(1_000), Raw::Text("8 bananas".into()), "as in \"8MB\""),
            (Kind::Size(1_000), Raw::Text("10B".into()), "is too small"),
            (Kind::Whole(1, 9), Raw::Whole(0), "0 is out of range: 1 to 9"),
            (Kind::Whole(1, u64::MAX), Raw::Whole(-3), "-3 is too low: the least is 1"),
            (Kind::Whole(1, 9), Raw::Text("5".into()), "write a whole number from 1 to 9"),
            (Kind::Choice(&["json", "avro"]), Raw::Text("jsn".into()), "did you mean \"json\"?"),
            (Kind::Texts, Raw::Text("products".into()), "write a list, as in [\"products\"]"),
            (Kind::KeyRule, Raw::Text("id".into()), "write [\"id\"]"),
            (Kind::Share, Raw::Text("125%".into()), "from \"0%\" to \"100%\""),
            (Kind::Listen, Raw::Text("8080".into()), "as in \"127.0.0.1:8080\""),
            (Kind::Switch, Raw::Text("true".into()), "write true or false"),
            (
                Kind::Time,
                Raw::Text("yesterday".into()),
                "\"yesterday\" cannot stand here: write a time in UTC",
            ),
            (Kind::Time, Raw::Time("2026-03-01T12:00:00+02:00".into()), "write a time in UTC"),
            (Kind::Time, Raw::Whole(1_760_000_000), "as in \"2026-03-01T12:00:00Z\""),
            (Kind::Text, Raw::Time("2026-03-01".into()), "a date cannot stand here"),
        ] {
            let answer = kind.read(&raw).unwrap_err();
            assert!(answer.contains(said), "{kind:?} of {raw:?} says {answer}");
        }
    }
}
