//! Which letters are meant: by key, stage, error and time.
//!
//! Key, stage and error say *what* is meant; time says *which of it, for now*. A replay keeps its own progress for each
//! what ([`Selection::group`]), since passing over a letter of another stage must not mean that it was handled. A letter
//! outside of the time is not passed over but left for later ([`Verdict::NotNow`]).
//!
//! Owns: the decision. Does not own: how it is asked for (`cli`), how many are taken.

use super::found::{Found, Writer};
use crate::codec::Stage;
use crate::version::Checksum;

/// Stages of our letters, as people write them.
pub const OURS: [&str; 8] =
    ["decode", "validate", "key", "oversized", "shed", "conflict", "listener", "webhook"];

/// Stages of Kafka Connect's letters (`org.apache.kafka.connect.runtime.errors.Stage`), by some of which ours go in headers.
pub const CONNECTS: [&str; 13] = [
    "PRODUCE",
    "CONSUME",
    "CLOSE",
    "TRANSFORMATION",
    "TASK_START",
    "TASK_POLL",
    "TASK_PUT",
    "TASK_CLOSE",
    "KAFKA_PRODUCE",
    "KAFKA_CONSUME",
    "KEY_CONVERTER",
    "VALUE_CONVERTER",
    "HEADER_CONVERTER",
];

/// What is asked for; by default all of a dataset's letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The dataset; letters that we wrote for another one are not meant.
    pub dataset: String,
    /// One of these keys, byte for byte; empty: any key, or none.
    pub keys: Vec<Vec<u8>>,
    /// One of these stages, by our words or Connect's; empty: any.
    pub stages: Vec<String>,
    /// One of these is in the kind of failure or in the message; empty: any.
    pub errors: Vec<String>,
    /// Failed at this time or later, milliseconds since the Unix epoch.
    pub since: Option<i64>,
    /// Failed at this time or earlier.
    pub until: Option<i64>,
}

/// Whether a letter is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Meant,
    /// It would be at another time.
    NotNow,
    /// It is not.
    Other,
}

impl Selection {
    /// Judges a letter.
    pub fn judge(&self, found: &Found<'_>) -> Verdict {
        let other = found.writer == Writer::Stillwell && found.owner != self.dataset;
        let key = || {
            self.keys.is_empty()
                || found.raw.key.is_some_and(|key| self.keys.iter().any(|wanted| wanted == key))
        };
        let stage =
            || self.stages.is_empty() || self.stages.iter().any(|wanted| is_stage(wanted, found.stage));
        let error = || {
            self.errors.is_empty()
                || self
                    .errors
                    .iter()
                    .any(|wanted| found.class.contains(&**wanted) || found.message.contains(&**wanted))
        };
        if other || !key() || !stage() || !error() {
            return Verdict::Other;
        }
        let early = self.since.is_some_and(|since| found.failed_at < since);
        let late = self.until.is_some_and(|until| found.failed_at > until);
        if early || late { Verdict::NotNow } else { Verdict::Meant }
    }

    /// Stages that are asked for and that neither we nor Kafka Connect name: a slip, or somebody else's.
    pub fn strange_stages(&self) -> impl Iterator<Item = &str> {
        let is_known =
            |stage: &str| OURS.iter().chain(&CONNECTS).any(|known| known.eq_ignore_ascii_case(stage));
        self.stages.iter().map(String::as_str).filter(move |stage| !is_known(stage))
    }

    /// The consumer group that keeps the progress of replaying these: one for all letters of a dataset, and one more for
    /// each combination of keys, stages and errors.
    pub fn group(&self) -> String {
        let mut all = Vec::new();
        let stages = self.stages.iter().map(|stage| connects(stage).as_bytes());
        let errors = self.errors.iter().map(String::as_bytes);
        let mut put = |kind: u8, of: Vec<&[u8]>| {
            let mut of = of;
            of.sort_unstable();
            of.dedup();
            for text in of {
                all.push(kind);
                all.extend_from_slice(&(text.len() as u64).to_le_bytes());
                all.extend_from_slice(text);
            }
        };
        put(b'k', self.keys.iter().map(Vec::as_slice).collect());
        put(b's', stages.collect());
        put(b'e', errors.collect());
        let dataset = &self.dataset;
        match all.is_empty() {
            true => format!("stillwell.{dataset}.replay"),
            false => format!("stillwell.{dataset}.replay.{}", Checksum::of(&all).hex()),
        }
    }
}

/// A moment, or a time before now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Milliseconds since the Unix epoch.
    At(i64),
    /// So many milliseconds ago.
    Ago(i64),
}

impl std::str::FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<When, String> {
        if let Ok(ago) = humantime::parse_duration(text) {
            return i64::try_from(ago.as_millis())
                .map(When::Ago)
                .map_err(|_| "it is too long ago".to_owned());
        }
        let at = humantime::parse_rfc3339_weak(text)
            .map_err(|_| "write a time as 2026-01-31T12:00:00Z, or 2h for two hours ago".to_owned())?;
        let since = at.duration_since(std::time::UNIX_EPOCH).map_err(|_| "it is before 1970".to_owned())?;
        i64::try_from(since.as_millis()).map(When::At).map_err(|_| "it is too far away".to_owned())
    }
}

impl When {
    /// Milliseconds since the Unix epoch.
    pub fn ms(self, now: i64) -> i64 {
        match self {
            When::At(at) => at,
            When::Ago(ago) => now.saturating_sub(ago),
        }
    }
}

/// Whether a letter's stage is the one that is wanted, by whichever of its names.
pub fn is_stage(wanted: &str, stage: &str) -> bool {
    connects(wanted).eq_ignore_ascii_case(stage)
}

/// The stage as letters spell it; a word of somebody else's stays.
fn connects(word: &str) -> &str {
    match word.to_ascii_lowercase().parse::<Stage>() {
        Ok(stage) => stage.connect(),
        Err(_) => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead::found::Raw;
    use crate::format::letter::header;

    fn found<'a>(headers: &'a [(&'a str, &'a str)], key: Option<&'a [u8]>) -> Found<'a> {
        let raw = Raw { partition: 0, offset: 1, timestamp: 100, key, value: None };
        Found::read(raw, headers.iter().map(|(name, value)| (*name, Some(value.as_bytes()))))
    }

    #[test]
    fn a_letter_is_meant_where_each_filter_says_so() {
        let headers = [
            (header::TOPIC, "t"),
            (header::CONNECTOR_NAME, "products"),
            (header::STAGE, "VALUE_CONVERTER"),
            (header::EXCEPTION_CLASS_NAME, "stillwell.codec.Syntax"),
            (header::EXCEPTION_MESSAGE, "it ends too early"),
            (header::FAILED_AT, "500"),
        ];
        let letter = found(&headers, Some(b"P-1"));
        let all = Selection { dataset: "products".to_owned(), ..Selection::default() };
        let is = |change: &dyn Fn(&mut Selection)| {
            let mut selection = all.clone();
            change(&mut selection);
            selection.judge(&letter)
        };
        use Verdict::{Meant, NotNow, Other};
        assert_eq!(is(&|_| {}), Meant);
        assert_eq!(is(&|of| of.dataset = "orders".to_owned()), Other, "another dataset's");
        assert_eq!(is(&|of| of.keys = vec![b"P-2".to_vec(), b"P-1".to_vec()]), Meant);
        assert_eq!(is(&|of| of.keys = vec![b"P-".to_vec()]), Other);
        for (stage, expected) in [
            ("decode", Meant),
            ("Decode", Meant),
            ("VALUE_CONVERTER", Meant),
            ("value_converter", Meant),
            ("key", Other),
        ] {
            assert_eq!(is(&|of| of.stages = vec![stage.to_owned()]), expected, "{stage}");
        }
        assert_eq!(is(&|of| of.errors = vec!["Syntax".to_owned()]), Meant);
        assert_eq!(is(&|of| of.errors = vec!["too early".to_owned()]), Meant);
        assert_eq!(is(&|of| of.errors = vec!["syntax".to_owned()]), Other);
        assert_eq!(is(&|of| of.since = Some(500)), Meant);
        assert_eq!(is(&|of| of.since = Some(501)), NotNow);
        assert_eq!(is(&|of| of.until = Some(500)), Meant);
        assert_eq!(is(&|of| of.until = Some(499)), NotNow);
        let other = |of: &mut Selection| {
            of.until = Some(499);
            of.stages = vec!["key".to_owned()];
        };
        assert_eq!(is(&other), Other);
        assert_eq!(
            Selection { keys: vec![vec![]], ..all.clone() }.judge(&found(&headers, None)),
            Other,
            "no key is not the empty one"
        );
    }

    #[test]
    fn a_stage_of_nobodys_is_strange() {
        let stages = ["decode", "Value_Converter", "TASK_PUT", "webhook", "decod", "their-own"];
        let selection = Selection { stages: stages.map(str::to_owned).to_vec(), ..Selection::default() };
        assert_eq!(selection.strange_stages().collect::<Vec<_>>(), ["decod", "their-own"]);
        for stage in Stage::ALL {
            let connects = stage.connect();
            let is_known = CONNECTS.contains(&connects) || OURS.contains(&connects);
            assert!(OURS.contains(&stage.label()) && is_known, "{stage}");
        }
    }

    #[test]
    fn a_time_is_a_moment_or_how_long_ago() {
        assert_eq!("2h".parse(), Ok(When::Ago(7_200_000)));
        assert_eq!("1970-01-01T00:00:01Z".parse(), Ok(When::At(1_000)));
        assert!("1970-01-02 00:00:00".parse::<When>().is_ok());
        assert!("yesterday".parse::<When>().is_err());
        assert_eq!(When::Ago(10).ms(100), 90);
    }

    #[test]
    fn progress_is_kept_for_what_is_meant_and_not_for_when() {
        let all = Selection { dataset: "products".to_owned(), ..Selection::default() };
        assert_eq!(all.group(), "stillwell.products.replay");
        let at = Selection { since: Some(1), until: Some(2), ..all.clone() };
        assert_eq!(at.group(), all.group());
        let of = |keys: &[&str], stages: &[&str], errors: &[&str]| {
            let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            let keys = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
            Selection { keys, stages: owned(stages), errors: owned(errors), ..all.clone() }.group()
        };
        assert_eq!(of(&["a", "b"], &[], &[]), of(&["b", "a", "a"], &[], &[]));
        assert_eq!(of(&[], &["decode"], &[]), of(&[], &["VALUE_CONVERTER"], &[]));
        let distinct = [
            all.group(),
            of(&["a"], &[], &[]),
            of(&["ab"], &[], &[]),
            of(&["a", "b"], &[], &[]),
            of(&[], &["a"], &[]),
            of(&[], &[], &["a"]),
        ];
        for (at, one) in distinct.iter().enumerate() {
            assert!(distinct.iter().skip(at + 1).all(|other| other != one), "{one}");
        }
    }
}
