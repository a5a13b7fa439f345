//! From a Kafka record's bytes to a key and a datum of the dataset's schema, or the reason why not.
//!
//! ```text
//!  value --raw---------------> length + bytes                    \
//!        --avro--> validated as it is, or resolved (schema/)       > datum --key--> key
//!   (frame: which schema of the registry's, by its id)            |
//!        --json--> one pass over the text, by the schema's nodes  /
//!
//!  datum --text---> JSON again, whole or one field
//!        --typed--> a type of the caller's, through serde
//!        --filter-> whether it is one of those that are asked for
//! ```
//!
//! Owns: the formats of source records, the rules for keys, JSON in and out (docs/formats.md, "JSON", "Keys"). Does not
//! own: schemas (`schema/`), where a misfit goes (`producer/`, `dead/`).
//!
//! A [`Codec`] belongs to one thread. It keeps its buffers, so that a record that fits allocates nothing.

use std::sync::Arc;

use crate::schema::{self, Schema};

mod avro;
mod frame;
mod registered;
mod json;
mod filter;
mod key;
mod misfit;
mod part;
mod raw;
mod typed;
pub mod text;

pub use filter::{Error as FilterError, Filter};
pub use frame::{KEY_HEADER, SchemaId, VALUE_HEADER};
pub use misfit::{Misfit, Stage};
pub use part::Part;
pub use typed::Error as Unfit;

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
    /// JSON text. A registry's id before it is skipped: no JSON begins as one.
    Json {
        /// What fields unknown to the schema cause.
        extra_fields: ExtraFields,
    },
    /// Avro datums, bare: no container, no registry header.
    Avro {
        /// The schema they were written with.
        writer: Arc<Schema>,
    },
    /// Avro datums, each with the id by which a schema registry knows the schema that it was written with.
    Registered {
        /// Kafka keys are written so, too.
        keys: bool,
    },
    /// Bytes, taken as they come.
    Raw,
}

/// A record as it came: what is encoded, and the headers that name the schemas of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Encoded<'a> {
    /// The Kafka key.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is a Kafka null.
    pub value: Option<&'a [u8]>,
    /// The last header called [`KEY_HEADER`].
    pub key_header: Option<&'a [u8]>,
    /// The last header called [`VALUE_HEADER`].
    pub value_header: Option<&'a [u8]>,
}

/// Why a record was not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    /// It cannot be: a dead letter.
    Misfit(Misfit),
    /// Its schema is not known here yet: it waits, the registry is asked, and [`Codec::learn`] told.
    Unknown {
        /// The schema.
        id: SchemaId,
        /// Of the value ([`Stage::Decode`]) or the key.
        stage: Stage,
    },
}

impl Unread {
    /// What becomes of a record whose schema nobody knows.
    pub fn misfit(self) -> Misfit {
        match self {
            Unread::Misfit(misfit) => misfit,
            Unread::Unknown { id, stage } => registered::unknown(id, stage),
        }
    }
}

impl From<Misfit> for Unread {
    fn from(misfit: Misfit) -> Unread {
        Unread::Misfit(misfit)
    }
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
    schema: Arc<Schema>,
    reader: Reader,
    fields: Option<key::Fields>,
    key: Vec<u8>,
    /// Where Kafka keys are datums, too.
    keys: Option<registered::Keys>,
}

#[derive(Debug)]
enum Reader {
    Json(Box<json::Json>),
    Avro(avro::Avro),
    Registered(registered::Registered),
    Raw(raw::Raw),
}

impl Codec {
    /// A codec for values of `format` in a dataset of `schema`.
    ///
    /// # Errors
    /// [`Error`], where the three do not fit together.
    pub fn new(format: Format, key: KeyRule, schema: Arc<Schema>) -> Result<Codec, Error> {
        let keys = matches!(format, Format::Registered { keys: true }).then(registered::Keys::new);
        let reader = match format {
            Format::Json { extra_fields } => {
                Reader::Json(Box::new(json::Json::new(Arc::clone(&schema), extra_fields)))
            }
            Format::Avro { writer } => Reader::Avro(avro::Avro::new(writer, &schema)?),
            Format::Registered { .. } => Reader::Registered(registered::Registered::new(Arc::clone(&schema))),
            Format::Raw if schema.is_raw() => Reader::Raw(raw::Raw::default()),
            Format::Raw => {
                let title = schema.nodes.title(schema.nodes.root);
                return Err(Error::Format(format!(
                    "raw values need the schema {{\"type\":\"bytes\"}} (or none); this dataset's is {title}"
                )));
            }
        };
        let fields = match key {
            KeyRule::Kafka => None,
            KeyRule::Fields(names) => Some(key::Fields::find(&schema, &names)?),
        };
        Ok(Codec { schema, reader, fields, key: Vec::new(), keys })
    }

    /// Whether headers may name schemas, so that [`Encoded`] needs them.
    pub fn looks_at_headers(&self) -> bool {
        matches!(self.reader, Reader::Registered(_))
    }

    /// A record's key alone: what is wrong with a value whose fields do not make it does not matter.
    ///
    /// # Errors
    /// As [`Codec::read`].
    pub fn key<'a>(&'a mut self, record: Encoded<'a>) -> Result<&'a [u8], Unread> {
        if self.fields.is_some() {
            return Ok(self.read(record)?.key);
        }
        let key = record.key.ok_or_else(|| no_key("the record", ""))?;
        match &mut self.keys {
            Some(keys) => keys.decode(key, record.key_header),
            None => Ok(key),
        }
    }

    /// A schema that this record names and that is not known; for who asks before it reads.
    pub fn unknown(&self, record: Encoded<'_>) -> Option<SchemaId> {
        let Reader::Registered(values) = &self.reader else { return None };
        let keys = self.keys.as_ref().filter(|_| self.fields.is_none() || record.value.is_none());
        let of_value = record.value.and_then(|value| values.unknown(value, record.value_header));
        of_value.or_else(|| keys?.unknown(record.key?, record.key_header))
    }

    /// What a registry says of a schema that was not known: the schema, or why it is of no use for good.
    pub fn learn(&mut self, id: SchemaId, schema: Result<&Arc<Schema>, &str>) {
        if let Reader::Registered(values) = &mut self.reader {
            values.learn(id, schema);
        }
        if let Some(keys) = &mut self.keys {
            keys.learn(id, schema);
        }
    }

    /// Decodes one record; `None` is a Kafka null. As [`Codec::read`], where all schemas are known.
    ///
    /// # Errors
    /// The [`Misfit`], which goes to the dead letters.
    pub fn decode<'a>(
        &'a mut self,
        key: Option<&'a [u8]>,
        value: Option<&'a [u8]>,
    ) -> Result<Decoded<'a>, Misfit> {
        self.read(Encoded { key, value, ..Encoded::default() }).map_err(Unread::misfit)
    }

    /// Decodes one record.
    ///
    /// A null value deletes the key that is the Kafka key, also where keys are made of fields: it has no fields.
    ///
    /// # Errors
    /// [`Unread`].
    pub fn read<'a>(&'a mut self, record: Encoded<'a>) -> Result<Decoded<'a>, Unread> {
        let Encoded { key, value, key_header, value_header } = record;
        // Where the key is made of the value's fields, what the Kafka key is does not matter but for deletes.
        let key = match (&mut self.keys, key) {
            (Some(keys), Some(key)) if self.fields.is_none() || value.is_none() => {
                Some(keys.decode(key, key_header)?)
            }
            (_, key) => key,
        };
        let Some(value) = value else {
            return Ok(Decoded { key: key.ok_or_else(|| no_key("a delete", ""))?, value: None });
        };
        if self.fields.is_none() && key.is_none() {
            return Err(no_key("the record", r#"; `key = ["FIELD"]` makes it of fields"#).into());
        }
        let datum = match &mut self.reader {
            Reader::Json(json) => json.decode(frame::behind(value))?,
            Reader::Avro(avro) => avro.decode(value)?,
            Reader::Registered(registered) => registered.decode(value, value_header)?,
            Reader::Raw(raw) => raw.decode(value),
        };
        let key = match (&self.fields, key) {
            (None, key) => key.unwrap_or_default(),
            (Some(fields), _) => {
                fields.write(&self.schema, datum, &mut self.key)?;
                &self.key
            }
        };
        Ok(Decoded { key, value: Some(datum) })
    }
}

#[cold]
fn no_key(what: &str, hint: &str) -> Misfit {
    Misfit {
        stage: Stage::Key,
        class: "stillwell.codec.MissingKey",
        message: format!("{what} has no Kafka key{hint}"),
    }
}

#[cfg(test)]
mod tests;
