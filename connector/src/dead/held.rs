//! A letter on its way back: taken out of its topic, made whole from its blob.
//!
//! Owns: the copy, and fetching what lies elsewhere. Does not own: whether it goes back (`replay`).

use std::time::Duration;

use bytes::Bytes;

use super::Error;
use super::found::{Found, Source, is_of_replays};
use super::letter::{CHANGES, CONFLICT};
use super::record::{Origin, Record};
use crate::blob::{self, Store};
use crate::codec::{Encoded, KEY_HEADER, VALUE_HEADER};
use crate::format::letter::{Elsewhere, Letter};

/// Longest time for one blob.
const FETCH: Duration = Duration::from_secs(60);

/// Where the record that failed stands, or stood.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its own offset.
    pub offset: i64,
}

impl Place {
    /// A copy.
    pub fn of(source: Source<'_>) -> Place {
        Place { topic: source.topic.to_owned(), partition: source.partition, offset: source.offset }
    }

    /// Borrowed.
    pub fn as_source(&self) -> Source<'_> {
        Source { topic: &self.topic, partition: self.partition, offset: self.offset }
    }
}

/// What a letter's value is, for who mends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// A value as the source has it.
    #[default]
    Source,
    /// A row of the dataset, or what was to be one, as JSON ([`super::rows`]).
    Row,
    /// A value as the source has it, since it could not be read as JSON.
    Unread,
}

/// A letter of one's own.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Its partition in the dead-letter topic.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// Where the record was.
    pub source: Option<Place>,
    /// The record's timestamp, milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// When it failed.
    pub failed_at: i64,
    /// How often it was replayed.
    pub replays: u32,
    /// Where it failed.
    pub stage: String,
    /// The kind of failure.
    pub class: String,
    /// What was wrong.
    pub message: String,
    /// The record's key.
    pub key: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
    /// The record that failed first, of which it is a replay.
    pub origin: Option<Origin>,
    /// What all letters of that record have in common; `None` where they do not say where it was, and where nobody asks.
    pub record: Option<Record>,
    /// Its headers, without our count and origin.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// What of it is still in a blob.
    pub elsewhere: Elsewhere,
    /// What its value is.
    pub form: Form,
}

impl Held {
    /// A copy.
    pub fn of(found: &Found<'_>) -> Held {
        Held { record: Record::of(found), ..Held::alone(found) }
    }

    /// A copy, for who does not ask which other letters are of its record.
    pub fn alone(found: &Found<'_>) -> Held {
        let copy = |bytes: Option<&[u8]>| bytes.map(Bytes::copy_from_slice);
        Held {
            partition: found.raw.partition,
            offset: found.raw.offset,
            source: found.source.map(Place::of),
            timestamp: found.timestamp,
            failed_at: found.failed_at,
            replays: found.replays,
            stage: found.stage.to_owned(),
            class: found.class.to_owned(),
            message: found.message.to_owned(),
            key: copy(found.raw.key),
            value: copy(found.raw.value),
            origin: found.origin,
            record: None,
            headers: found.headers.iter().map(|(name, value)| ((*name).to_owned(), copy(*value))).collect(),
            elsewhere: found.elsewhere.clone(),
            form: Form::Source,
        }
    }

    /// Whether it lost to a record of its key in another partition.
    pub fn is_outdone(&self) -> bool {
        self.class == CONFLICT
    }

    /// Whether it is a change of the dataset that was not handled, and not a record that could not be taken.
    pub fn is_change(&self) -> bool {
        CHANGES.contains(&&*self.stage)
    }

    /// The timestamp with which it goes back, milliseconds since the Unix epoch; `None`: that of now. With its own, what lost
    /// to a later one would only lose again.
    pub fn sent_at(&self) -> Option<i64> {
        (self.timestamp >= 0 && !self.is_outdone()).then_some(self.timestamp)
    }

    /// Bytes that it takes as a record, a little over.
    pub fn size(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + len(value) + 10).sum();
        len(&self.key) + len(&self.value) + headers + 128
    }

    /// As codecs take it: of several headers of one name the last names the schema, as where it is a record of Kafka's.
    pub fn encoded(&self) -> Encoded<'_> {
        let last = |wanted| {
            let found = self.headers.iter().rev().find(|(name, _)| name == wanted);
            found.and_then(|(_, value)| value.as_deref())
        };
        Encoded {
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            key_header: last(KEY_HEADER),
            value_header: last(VALUE_HEADER),
            topic: self.source.as_ref().map(|source| &*source.topic),
        }
    }

    /// Fetches what lies in a blob. `Ok(Some(why))`: it cannot be had, and will not be.
    ///
    /// # Errors
    /// [`Error::Blob`] where the store does not answer.
    pub async fn fetch(&mut self, store: &Store) -> Result<Option<String>, Error> {
        let name = match &self.elsewhere {
            Elsewhere::Nothing => return Ok(None),
            Elsewhere::Value(name) | Elsewhere::Whole(name) => name.clone(),
        };
        let failed = |source| Error::Blob { name: name.clone(), source };
        let fetched = tokio::time::timeout(FETCH, store.get_bytes(&name)).await.unwrap_or_else(|_| {
            let problem = format!("it took longer than {FETCH:?}");
            Err(blob::Error::Unavailable { doing: "reading", url: store.absolute_url(&name), problem })
        });
        let bytes = match fetched {
            Ok(bytes) => bytes,
            Err(error) if error.is_transient() => return Err(failed(error)),
            Err(error) => return Ok(Some(error.to_string())),
        };
        match &self.elsewhere {
            Elsewhere::Value(_) => self.value = Some(bytes),
            _ => match Letter::decode(&bytes) {
                Ok(Letter { key, value, headers, .. }) => {
                    (self.key, self.value) = (key, value);
                    self.headers = headers.into_iter().filter(|(name, _)| !is_of_replays(name)).collect();
                }
                Err(error) => return Ok(Some(format!("the blob {name} is {error}"))),
            },
        }
        self.elsewhere = Elsewhere::Nothing;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_headers_that_name_schemas_the_last_counts() {
        let header = |name: &str, value: Option<&'static str>| (name.to_owned(), value.map(Bytes::from));
        let held = Held {
            key: Some("k".into()),
            value: Some("v".into()),
            headers: vec![
                header(VALUE_HEADER, Some("1")),
                header(KEY_HEADER, Some("2")),
                header("other", Some("3")),
                header(VALUE_HEADER, Some("4")),
                header(KEY_HEADER, None),
            ],
            ..Held::default()
        };
        let Encoded { key, value, key_header, value_header, topic } = held.encoded();
        assert_eq!((key, value), (Some(&b"k"[..]), Some(&b"v"[..])));
        assert_eq!((key_header, value_header, topic), (None, Some(&b"4"[..]), None));
    }
}
