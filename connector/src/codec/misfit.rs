//! Why a record cannot be taken.

use std::fmt;
use std::str::FromStr;

/// The stage at which a record failed. Displays as Kafka Connect's `Stage`, which tools parse; [`Stage::label`] is the
/// word for metrics and for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The value's bytes are not of the format: no JSON, no Avro datum, empty.
    Decode,
    /// The value is of the format but does not fit the dataset's schema.
    Validate,
    /// The key is missing, or the value's fields do not make one.
    Key,
    /// It is larger than `max_record_size`, and was not looked at; or what it says would be.
    Oversized,
    /// It fits, and the log had no room for it: `shed = "dead_letter"`.
    Shed,
    /// It fits, and a record of its key from another partition is newer: `conflict_letters`.
    Conflict,
}

impl Stage {
    /// All stages.
    pub const ALL: [Stage; 6] =
        [Stage::Decode, Stage::Validate, Stage::Key, Stage::Oversized, Stage::Shed, Stage::Conflict];

    /// The stage as metrics label it.
    pub fn label(self) -> &'static str {
        match self {
            Stage::Decode => "decode",
            Stage::Validate => "validate",
            Stage::Key => "key",
            Stage::Oversized => "oversized",
            Stage::Shed => "shed",
            Stage::Conflict => "conflict",
        }
    }

    /// The stage as Kafka Connect's `org.apache.kafka.connect.runtime.errors.Stage` names it.
    pub fn connect(self) -> &'static str {
        match self {
            Stage::Decode => "VALUE_CONVERTER",
            Stage::Validate => "TRANSFORMATION",
            Stage::Key => "KEY_CONVERTER",
            Stage::Oversized => "KAFKA_CONSUME",
            Stage::Shed => "TASK_PUT",
            // Connect has no such stage.
            Stage::Conflict => "conflict",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.connect())
    }
}

impl FromStr for Stage {
    type Err = String;

    /// Reads either spelling.
    fn from_str(text: &str) -> Result<Stage, String> {
        let found = Stage::ALL.into_iter().find(|stage| stage.label() == text || stage.connect() == text);
        found.ok_or_else(|| "a stage is one of decode, validate, key, oversized, shed, conflict".to_owned())
    }
}

/// A record that cannot be taken, and why. It keeps its place in the log and becomes a dead letter.
///
/// The message names where and what was expected, never what the value holds: letters' headers, logs and metrics show
/// it to people who may not see the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Where it failed.
    pub stage: Stage,
    /// The kind of failure, in the place of Connect's exception class.
    pub class: &'static str,
    /// Why, for people.
    pub message: String,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Misfit {}
