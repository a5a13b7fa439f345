//! A record on its way in: as its writer says it, and as it goes to Kafka.

use std::sync::Arc;

use bytes::Bytes;

use crate::schema::Schema;

/// One record to write: a key, and a value or its absence.
///
/// ```
/// use stillwell::Write;
///
/// let price = Write::upsert("P-100", r#"{"id":"P-100","name":"Kettle","price":24.5}"#)
///     .header("source", "back-office")
///     .timestamp_ms(1_700_000_000_000);
/// let gone = Write::delete("P-7");
/// // Where the dataset's keys are fields of the value, the value is enough.
/// let keyed_by_id = Write::value(r#"{"id":"P-8","name":"Cup","price":4}"#);
/// # let _ = (price, gone, keyed_by_id);
/// ```
#[derive(Clone, Debug)]
pub struct Write {
    pub(super) topic: Option<String>,
    pub(super) key: Option<Bytes>,
    pub(super) value: Option<Payload>,
    pub(super) headers: Vec<(String, Option<Bytes>)>,
    pub(super) timestamp: Option<i64>,
}

/// A value as its writer has it.
#[derive(Clone, Debug)]
pub(super) enum Payload {
    /// JSON, or bytes where the source is raw.
    Plain(Bytes),
    /// JSON, where the source is raw too: the bytes in base64.
    Json(Bytes),
    /// As the source topic has it.
    Encoded(Bytes),
    /// An Avro datum.
    Datum { schema: Arc<Schema>, bytes: Bytes },
}

impl Write {
    fn of(key: Option<Bytes>, value: Option<Payload>) -> Write {
        Write { topic: None, key, value, headers: Vec::new(), timestamp: None }
    }

    /// `key` gets `value`: JSON text, whether the topic's values are JSON or Avro; bytes, where they are raw.
    #[must_use]
    pub fn upsert(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Write {
        Write::of(Some(key.into()), Some(Payload::Plain(value.into())))
    }

    /// A value whose fields are its key, by the dataset's `key`.
    #[must_use]
    pub fn value(value: impl Into<Bytes>) -> Write {
        Write::of(None, Some(Payload::Plain(value.into())))
    }

    /// `key` goes: a Kafka null. Where keys are made of fields, this is their text, as a reader sees it.
    #[must_use]
    pub fn delete(key: impl Into<Bytes>) -> Write {
        Write::of(Some(key.into()), None)
    }

    /// JSON, also where the dataset is raw: bytes in base64 there, as everywhere in JSON. No key: the value's fields.
    pub(crate) fn json(key: Option<Bytes>, value: impl Into<Bytes>) -> Write {
        Write::of(key, Some(Payload::Json(value.into())))
    }

    /// A datum of any schema that resolves to the topic's.
    pub(crate) fn datum(key: Option<Bytes>, schema: Arc<Schema>, datum: impl Into<Bytes>) -> Write {
        Write::of(key, Some(Payload::Datum { schema, bytes: datum.into() }))
    }

    /// The value is encoded already as the source topic has it: an Avro datum, where that is its format.
    #[must_use]
    pub fn encoded(mut self) -> Write {
        if let Some(Payload::Plain(bytes)) = self.value {
            self.value = Some(Payload::Encoded(bytes));
        }
        self
    }

    /// The source topic to write to; needed only where the dataset has several.
    #[must_use]
    pub fn topic(mut self, topic: impl Into<String>) -> Write {
        self.topic = Some(topic.into());
        self
    }

    /// Adds a header, behind those there are.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Write {
        self.headers.push((name.into(), Some(value.into())));
        self
    }

    /// The record's timestamp, in milliseconds since the Unix epoch. Default: when it is sent.
    #[must_use]
    pub fn timestamp_ms(mut self, at: i64) -> Write {
        self.timestamp = Some(at);
        self
    }
}

/// A record that fits its dataset, as it goes to Kafka.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Place in the dataset's list of source topics.
    pub(super) topic: usize,
    pub(super) key: Bytes,
    pub(super) value: Option<Bytes>,
    pub(super) headers: Vec<(String, Option<Bytes>)>,
    pub(super) timestamp: Option<i64>,
}

impl Ready {
    /// The key.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The value as the topic has it; `None`: a delete.
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }

    /// Bytes of key, value and headers.
    pub fn bytes(&self) -> usize {
        let headers =
            self.headers.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Bytes::len) + 4);
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len) + headers.sum::<usize>()
    }
}
