//! JSON lines, as `scan` prints them and `import` takes them.

use std::io::Write;

use super::super::get::put_value;
use super::file::Out;
use super::{Rows, With};
use crate::codec::text;
use crate::host::directory::rfc3339;
use crate::view::{Value, View};
use crate::{Error, ErrorKind, Result};

pub(super) struct Lines {
    out: Out,
    line: String,
    /// The version, where lines say where they are from.
    origin: Option<u64>,
}

impl Lines {
    pub(super) fn new(out: Out, view: &View, with: With) -> Lines {
        Lines { out, line: String::new(), origin: with.origin.then_some(view.version().0) }
    }
}

impl Rows for Lines {
    fn push(&mut self, value: &Value<'_>) -> Result<()> {
        let line = &mut self.line;
        line.clear();
        line.push_str("{\"key\":");
        text::key_to_json(value.key(), line);
        line.push_str(",\"value\":");
        put_value(value, line)?;
        if let Some(version) = self.origin {
            let origin = value.source();
            let whence = serde_json::json!({
                "version": version,
                "timestamp": rfc3339(origin.timestamp_ms),
                "topic": origin.source.map(|source| &source.topic),
                "partition": origin.source.map(|source| source.partition),
                "offset": origin.offset,
            });
            let whence = whence.to_string();
            line.push(',');
            line.push_str(whence.trim_start_matches('{').trim_end_matches('}'));
        }
        line.push_str("}\n");
        self.out.write_all(line.as_bytes()).map_err(unwritten)
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.out.flush().map_err(unwritten)
    }
}

fn unwritten(error: std::io::Error) -> Error {
    Error::because(ErrorKind::Unavailable, "writing the lines", error)
}
