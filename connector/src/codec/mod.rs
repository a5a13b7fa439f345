//! From a Kafka record's bytes to a key and a datum of the dataset's schema, or the reason why not.
//!
//! ```text
//!  value --raw---------------> length + bytes                    \
//!        --avro--> validated as it is, or resolved (schema/)       > datum --key--> key
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
mod json;
mod filter;
mod key;
mod misfit;
mod part;
mod raw;
mod typed;
pub mod text;

pub use filter::{Error as FilterError, Filter};
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
    schema: Arc<Schema>,
    reader: Reader,
    fields: Option<key::Fields>,
    key: Vec<u8>,
}

#[derive(Debug)]
enum Reader {
    Json(Box<json::Json>),
    Avro(avro::Avro),
    Raw(raw::Raw),
}

impl Codec {
    /// A codec for values of `format` in a dataset of `schema`.
    ///
    /// # Errors
    /// [`Error`], where the three do not fit together.
    pub fn new(format: Format, key: KeyRule, schema: Arc<Schema>) -> Result<Codec, Error> {
        let reader = match format {
            Format::Json { extra_fields } => {
                Reader::Json(Box::new(json::Json::new(Arc::clone(&schema), extra_fields)))
            }
            Format::Avro { writer } => Reader::Avro(avro::Avro::new(writer, &schema)?),
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
        Ok(Codec { schema, reader, fields, key: Vec::new() })
    }

    /// Decodes one record; `None` is a Kafka null.
    ///
    /// A null value deletes the key that is the Kafka key, also where keys are made of fields: it has no fields.
    ///
    /// # Errors
    /// The [`Misfit`], which goes to the dead letters.
    pub fn decode<'a>(
        &'a mut self,
        key: Option<&'a [u8]>,
        value: Option<&'a [u8]>,
    ) -> Result<Decoded<'a>, Misfit> {
        let Some(value) = value else {
            return Ok(Decoded { key: key.ok_or_else(|| no_key("a delete", ""))?, value: None });
        };
        if self.fields.is_none() && key.is_none() {
            return Err(no_key("the record", r#"; `key = ["FIELD"]` makes it of fields"#));
        }
        let datum = match &mut self.reader {
            Reader::Json(json) => json.decode(value)?,
            Reader::Avro(avro) => avro.decode(value)?,
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
