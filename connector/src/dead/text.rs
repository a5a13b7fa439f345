//! Letters and replays as JSON: the forms that the command line and the admin routes share.
//!
//! Owns: names and forms. Does not own: who prints them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::found::Writer;
use super::held::{Held, Place};
use super::listing::Line;
use super::outcome::{Outcome, Totals};
use crate::clock::rfc3339;
use crate::format::letter::Elsewhere;

/// Bytes: text where they are UTF-8, else `{"base64": …}`; what is not there is null.
pub fn bytes(bytes: Option<&[u8]>) -> Value {
    match bytes.map(std::str::from_utf8) {
        None => Value::Null,
        Some(Ok(text)) => Value::String(text.to_owned()),
        Some(Err(_)) => json!({ "base64": STANDARD.encode(bytes.unwrap_or_default()) }),
    }
}

/// Where a record is.
pub fn place(place: Option<&Place>) -> Value {
    match place {
        None => Value::Null,
        Some(Place { topic, partition, offset }) => {
            json!({ "topic": topic, "partition": partition, "offset": offset })
        }
    }
}

/// A letter in a list of those in the topic `letters`.
pub fn line(letters: &str, line: &Line) -> Value {
    let blob = match &line.elsewhere {
        Elsewhere::Nothing => None,
        Elsewhere::Value(name) | Elsewhere::Whole(name) => Some(name),
    };
    json!({
        "topic": letters,
        "partition": line.partition,
        "offset": line.offset,
        "written_by": line.writer,
        "owner": line.owner,
        "failed_at": rfc3339(line.failed_at),
        "stage": line.stage,
        "error": line.class,
        "reason": line.message,
        "key": bytes(line.key.as_deref()),
        "source": place(line.source.as_ref()),
        "timestamp": rfc3339(line.timestamp),
        "replays": line.replays,
        "replay": line.fate,
        "failures": line.failures,
        "value_bytes": line.value_bytes,
        "blob": blob,
    })
}

/// A whole letter.
pub fn whole(letters: &str, held: &Held, writer: Writer, owner: &str) -> Value {
    let headers: Vec<Value> =
        held.headers.iter().map(|(name, value)| json!([name, bytes(value.as_deref())])).collect();
    json!({
        "topic": letters,
        "partition": held.partition,
        "offset": held.offset,
        "written_by": writer,
        "owner": owner,
        "failed_at": rfc3339(held.failed_at),
        "stage": held.stage,
        "error": held.class,
        "reason": held.message,
        "replays": held.replays,
        "source": place(held.source.as_ref()),
        "timestamp": rfc3339(held.timestamp),
        "key": bytes(held.key.as_deref()),
        "value": bytes(held.value.as_deref()),
        "headers": headers,
    })
}

/// What became of a letter.
pub fn outcome(letters: &str, held: &Held, outcome: &Outcome, dry_run: bool) -> Value {
    let mut object = json!({
        "done": outcome.word(dry_run),
        "letter": { "topic": letters, "partition": held.partition, "offset": held.offset },
        "source": place(held.source.as_ref()),
        "key": bytes(held.key.as_deref()),
    });
    if let Some(fields) = object.as_object_mut() {
        match (outcome, &held.source) {
            (Outcome::Replayed(Some((partition, offset))), Some(source)) => {
                let to = Place { topic: source.topic.clone(), partition: *partition, offset: *offset };
                fields.insert("to".to_owned(), place(Some(&to)));
            }
            (Outcome::Stale(at) | Outcome::Known(Some(at)), _) => {
                fields.insert("later_offset".to_owned(), json!(at));
            }
            (Outcome::Replaced(last), _) => {
                let by = json!({ "topic": letters, "partition": last.partition, "offset": last.offset });
                fields.insert("by".to_owned(), by);
            }
            (Outcome::Outdone, _) => {
                fields.insert("reason".to_owned(), json!(held.message));
            }
            (Outcome::Left(why, said), _) => {
                fields.insert("why".to_owned(), json!(why.label()));
                fields.insert("reason".to_owned(), json!(said));
            }
            _ => {}
        }
    }
    object
}

/// What was done in all.
pub fn totals(totals: &Totals, dry_run: bool) -> Value {
    let left: Map<String, Value> =
        totals.left.iter().map(|(why, count)| (why.label().to_owned(), json!(count))).collect();
    json!({
        "selected": totals.selected,
        "replayed": totals.replayed,
        "stale": totals.stale,
        "replayed_before": totals.known,
        "replaced": totals.replaced,
        "left": totals.unhandled(),
        "left_by": left,
        "not_now": totals.not_now,
        "dry_run": dry_run,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_kept_whatever_they_are() {
        assert_eq!(bytes(None), Value::Null);
        assert_eq!(bytes(Some(b"")), json!(""));
        assert_eq!(bytes(Some("é\u{0}".as_bytes())), json!("é\u{0}"));
        assert_eq!(bytes(Some(b"\xff\x00")), json!({ "base64": "/wA=" }));
    }
}
