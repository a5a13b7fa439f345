//! A webhook as a listener: each set of changes as one JSON body.
//!
//! ```json
//! {"type": "dataset.changes", "timestamp": "2026-01-05T09:00:00.000Z", "dataset": "products", "version": 8, "from": 7,
//!  "rollback": false, "reset": false, "batch": 0, "last": true,
//!  "changes": [{"key": "P-100", "old": {"id": "P-100", "price": 24.5}, "new": {"id": "P-100", "price": 22}}]}
//! ```
//!
//! Owns: the body. Does not own: how it is sent (`webhook`), when (`run`).

use std::fmt::Write as _;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::{Begin, ChangeSet, Failed, Handler, Listening, Tries};
use crate::clock::Clock;
use crate::codec::text;
use crate::view::Value;
use crate::webhook::{self, Endpoint};

/// A webhook that is told of changes.
struct Hook {
    endpoint: Endpoint,
    batch_size: usize,
    clock: Clock,
}

impl Listening {
    /// A webhook: each set of up to `batch_size` changes is sent to `options.url` as JSON.
    ///
    /// # Errors
    /// [`webhook::Error::Options`].
    pub fn webhook(
        options: &webhook::Options,
        batch_size: usize,
        begin: Begin,
        tries: Tries,
        clock: Clock,
    ) -> Result<Listening, webhook::Error> {
        let hook = Hook { endpoint: Endpoint::new(options)?, batch_size, clock };
        Ok(Listening::as_webhook(hook, begin, tries))
    }
}

impl Handler for Hook {
    fn handle<'a>(&'a self, set: &'a ChangeSet<'a>) -> BoxFuture<'a, Result<(), Failed>> {
        Box::pin(async move {
            let body = Bytes::from(body(set)?);
            let seconds = self.clock.wall_ms() / 1_000;
            self.endpoint.post(&set.id, seconds, body).await.map_err(|error| match error {
                webhook::Error::Away { retry_after, .. } => {
                    let failed = Failed::away(error);
                    Failed { wait: retry_after, ..failed }
                }
                // Whatever is sent would be answered so: to give it up would be to give up all.
                webhook::Error::Barred { .. } => Failed::away(error),
                webhook::Error::Failed { .. } => Failed::again(error),
                webhook::Error::Refused { .. } | webhook::Error::Options(_) => Failed::refused(error),
            })
        })
    }

    fn batch_size(&self) -> usize {
        self.batch_size
    }
}

fn body(set: &ChangeSet<'_>) -> crate::Result<String> {
    let mut body = String::with_capacity(256 + set.changes.len() * 256);
    let at =
        std::time::UNIX_EPOCH + std::time::Duration::from_millis(set.announced_at_ms.max(0).unsigned_abs());
    let at = humantime::format_rfc3339_millis(at);
    let dataset = serde_json::Value::from(set.dataset);
    let ChangeSet { version, from, rollback, reset, batch, last, .. } = set;
    // Writing to a String cannot fail.
    let _ = write!(
        body,
        "{{\"type\":\"dataset.changes\",\"timestamp\":\"{at}\",\"dataset\":{dataset},\"version\":{version},\"from\":{from},\
         \"rollback\":{rollback},\"reset\":{reset},\"batch\":{batch},\"last\":{last},\"changes\":["
    );
    for (at, change) in set.changes.iter().enumerate() {
        body.push_str(if at == 0 { "{\"key\":" } else { ",{\"key\":" });
        text::key_to_json(change.key(), &mut body);
        body.push_str(",\"old\":");
        put(change.before(), &mut body)?;
        body.push_str(",\"new\":");
        put(change.after(), &mut body)?;
        body.push('}');
    }
    body.push_str("]}");
    Ok(body)
}

fn put(value: Option<&Value<'_>>, out: &mut String) -> crate::Result<()> {
    let Some(value) = value else {
        out.push_str("null");
        return Ok(());
    };
    text::to_json(value.schema(), value.bytes(), out).map_err(|error| {
        crate::Error::because(crate::ErrorKind::Corrupt, "writing a changed value as JSON", error)
    })
}
