//! From a Kafka record's bytes to a key and a datum of the dataset's schema, or the reason why not.
//!
//! ```text
//!  value --raw---------------> length + bytes                    \
//!        --avro--> validated as it is, or resolved (schema/)       > datum --key--> key
//!        --json--> one pass over the text, by the schema's nodes  /
//!
//!  datum --text--> JSON again, whole or one field
//! ```
//!
//! Owns: the formats of source records, the rules for keys, JSON in and out (docs/formats.md, "JSON", "Keys"). Does not
//! own: schemas (`schema/`), where a misfit goes (`producer/`, `dead/`).
//!
//! A [`Codec`] belongs to one thread. It keeps its buffers, so that a record that fits allocates nothing.

use std::sync::Arc;

use crate::schema::{self, Schema};

mod misfit;

pub use misfit::{Misfit, Stage};

/// What a JSON value's fields that the schema does not know cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExtraFields {
    /// Nothing: they are dropped.
    #[default]
    Ignore,
    /// A misfit.
    Reject,
}

/// How a source's values are encoded.
#[derive(Clone, Debug)]
pub enum Format {
    /// JSON text.
    Json {
        /// What fields unknown to the schema cause.
        extra_fields: ExtraFields,
    },
    /// Avro datums, bare: no container, no registry header.
    Avro {
        /// The schema they were written with.
        writer: Arc<Schema>,
    },
    /// Bytes, taken as they come.
    Raw,
}

/// Where a record's key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRule {
    /// The Kafka key, byte for byte.
    Kafka,
    /// Fields of the value, by name (`a.b` reaches into a record); several make a composite key.
    Fields(Vec<String>),
}

/// Why a codec cannot be made of what was configured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key rule does not fit the schema.
    #[error("the key field `{field}`: {reason}")]
    Key {
        /// The field as configured.
        field: String,
        /// Why not.
        reason: String,
    },
    /// The format does not fit the schema.
    #[error("{0}")]
    Format(String),
    /// The schemas do not fit.
    #[error(transparent)]
    Schema(#[from] schema::Error),
}

impl Error {
    /// Whether trying again can help: never.
    pub fn is_transient(&self) -> bool {
        false
    }
}

/// A record that fits. Both parts are borrowed until the codec's next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The datum in the dataset's schema; `None` is a delete.
    pub value: Option<&'a [u8]>,
}

/// Decodes the records of one source.
#[derive(Debug)]
pub struct Codec {
    datum: Vec<u8>,
}

impl Codec {
    /// A codec for values of `format` in a dataset of `schema`.
    ///
    /// # Errors
    /// [`Error`], where the three do not fit together.
    pub fn new(format: Format, key: KeyRule, schema: Arc<Schema>) -> Result<Codec, Error> {
        match (&format, &key) {
            (Format::Raw, KeyRule::Kafka) if schema.is_raw() => Ok(Codec { datum: Vec::new() }),
            _ => Err(Error::Format("so far only raw bytes with Kafka's keys".into())),
        }
    }

    /// Decodes one record; `None` is a Kafka null.
    ///
    /// # Errors
    /// The [`Misfit`], which goes to the dead letters.
    pub fn decode<'a>(
        &'a mut self,
        key: Option<&'a [u8]>,
        value: Option<&'a [u8]>,
    ) -> Result<Decoded<'a>, Misfit> {
        let key = key.ok_or_else(|| Misfit {
            stage: Stage::Key,
            class: "MissingKey",
            message: "the record has no Kafka key".into(),
        })?;
        let Some(value) = value else { return Ok(Decoded { key, value: None }) };
        self.datum.clear();
        schema::wire::put_bytes(&mut self.datum, value);
        Ok(Decoded { key, value: Some(&self.datum) })
    }
}
