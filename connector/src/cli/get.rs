//! `stillwell get`: one record.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;

use super::edge::{Answer, Edge, print, say};
use super::reading::{Which, version_number};
use crate::codec::text;
use crate::host::directory::rfc3339;
use crate::view::{Value, View};
use crate::{Error, ErrorKind, Result};

/// Prints a record as JSON, as a consumer reads it; exits with 1 where the key is absent
#[derive(Debug, Args)]
pub struct Get {
    #[command(flatten)]
    which: Which,
    /// The record's key
    key: String,
    /// KEY is base64, for keys that are not text
    #[arg(long)]
    base64: bool,
    /// Read this version [default: the one that readers hold: pinned, or the newest]
    #[arg(long, value_name = "V", value_parser = version_number)]
    version: Option<u64>,
    /// Print also where the record came from: version, timestamp, topic, partition, offset
    #[arg(long)]
    explain: bool,
}

impl Get {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let key = if self.base64 {
            let doing = || format!("the key {:?} is not base64", self.key);
            STANDARD.decode(&self.key).map_err(|error| Error::because(ErrorKind::Rejected, doing(), error))?
        } else {
            self.key.clone().into_bytes()
        };
        let view = self.which.open(edge, self.version)?;
        let Some(value) = view.get(&key)? else {
            let (key, version) = (&self.key, view.version());
            say(&format!("dataset {} has no record {key:?} in version {version}", self.which.dataset));
            return Ok(Answer::No);
        };
        let mut line = String::new();
        if self.explain {
            explain(&view, &value, &mut line)?
        } else {
            put_value(&value, &mut line)?
        }
        print(|out| writeln!(out, "{line}"))?;
        Ok(Answer::Yes)
    }
}

/// The record and where it came from, as one JSON object.
fn explain(view: &View, value: &Value<'_>, line: &mut String) -> Result<()> {
    let origin = value.source();
    line.push_str("{\"key\":");
    text::key_to_json(value.key(), line);
    line.push_str(",\"value\":");
    put_value(value, line)?;
    let whence = serde_json::json!({
        "version": view.version(),
        "timestamp": rfc3339(origin.timestamp_ms),
        "topic": origin.source.map(|source| &source.topic),
        "partition": origin.source.map(|source| source.partition),
        "offset": origin.offset,
    });
    // One object out of two: the value is printed from its bytes, without a tree of it in between.
    let whence = whence.to_string();
    line.push(',');
    line.push_str(whence.strip_prefix('{').unwrap_or(&whence));
    Ok(())
}

/// A value as JSON.
///
/// # Errors
/// [`ErrorKind::Corrupt`] where the bytes are no datum of the dataset's schema.
pub(super) fn put_value(value: &Value<'_>, out: &mut String) -> Result<()> {
    text::to_json(value.schema(), value.bytes(), out).map_err(|malformed| {
        Error::because(ErrorKind::Corrupt, "the record is no datum of the dataset's schema", malformed)
    })
}
