//! From a Kafka record's bytes to a key and a datum of the dataset's schema, or the reason why not.
//!
//! ```text
//!  value --raw---------------> length + bytes                    \
//!        --avro--> validated as it is, or resolved (schema/)      |
//!        --proto-> one pass over the message, fields put in order  > datum --key--> key
//!        --json--> one pass over the text, by the schema's nodes  /
//!   (frame: which schema of the registry's, by its id; change: the row in Debezium's envelope)
//!
//!  Kafka key --keys--> what it says, whatever it is written in
//!
//!  datum --text---> JSON again, whole or one field
//!        --typed--> a type of the caller's, through serde
//!        --columns-> values of a table's columns
//!        --filter-> whether it is one of those that are asked for
//! ```
//!
//! Owns: the formats of source records, the rules for keys, JSON in and out (docs/formats.md, "JSON", "Keys"). Does not
//! own: schemas (`schema/`), where a misfit goes (`producer/`, `dead/`).
//!
//! A [`Codec`] belongs to one thread. It keeps its buffers, so that a record that fits allocates nothing.

use std::sync::Arc;

use crate::schema::{self, Schema};

mod format;
mod avro;
mod bound;
pub mod columns;
mod frame;
mod registered;
mod change;
mod json;
mod filter;
mod key;
mod keys;
mod misfit;
mod part;
pub mod proto;
mod raw;
mod room;
mod typed;
pub mod text;

pub use bound::Bound;
pub use change::TRUNCATED;
pub use filter::{Error as FilterError, Filter};
pub use format::{Envelope, ExtraFields, Format, KeyFormat, Kind, Values, Written};
pub use frame::{KEY_HEADER, SchemaId, VALUE_HEADER, named, prefix};
pub use key::append_integer;
pub use misfit::{Misfit, Stage};
pub use part::Part;
pub use typed::Error as Unfit;

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
    /// The topic, where it matters (see [`Codec::looks_around`]). Unknown: one that is written as most are.
    pub topic: Option<&'a str>,
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
    /// The type that Kafka keys are of makes no key of the dataset: why not.
    #[error("Kafka keys of this type make no key of the dataset: {0}")]
    KeyType(String),
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
    /// For the topics whose records are written otherwise: few, where there are any.
    others: Vec<(Arc<str>, Codec)>,
    schema: Arc<Schema>,
    reader: Reader,
    fields: Option<key::Fields>,
    key: Vec<u8>,
    /// Where Kafka keys are not taken as they come.
    keys: Option<keys::Keys>,
    /// Where values may be deletes: what is left of a record that is gone, and the key's fields in it.
    gone: Option<(Arc<Schema>, key::Fields)>,
    changes: bool,
    bound: Bound,
}

#[derive(Debug)]
enum Reader {
    Json(Box<json::Json>),
    JsonChanges(Box<change::Json>),
    /// JSON whose ids are checked.
    Checked(registered::Ids, Box<Reader>),
    Avro(avro::Avro),
    AvroChanges(change::Avro),
    Protobuf(proto::Protobuf),
    Registered(registered::Registered),
    Raw(raw::Raw),
}

/// What a value says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told<'a> {
    /// The record as it is from now on.
    Upsert(&'a [u8]),
    /// It is gone. What the value says of it, of the schema of the key's fields.
    Delete(Option<&'a [u8]>),
}

impl Codec {
    /// A codec for values of `format` in a dataset of `schema`.
    ///
    /// # Errors
    /// [`Error`], where the three do not fit together.
    pub fn new(format: Format, key: KeyRule, schema: Arc<Schema>) -> Result<Codec, Error> {
        let (Format { values, envelope, keys, .. }, topics) = format.apart();
        let others = topics.into_iter().map(|(topic, other)| {
            let codec = Codec::new(other, key.clone(), Arc::clone(&schema))?;
            Ok((topic, codec))
        });
        let others = others.collect::<Result<Vec<_>, Error>>();
        // What is wrong with the values is said first.
        let fields = match &key {
            KeyRule::Kafka => Ok(None),
            KeyRule::Fields(names) => key::Fields::find(&schema, names).map(Some),
        };
        let changes = envelope == Envelope::Debezium;
        // The schema of the key's fields alone: for what is left of a record that is gone, and for keys that have them.
        let alone = match &key {
            KeyRule::Fields(names) if fields.is_ok() && (changes || matches!(keys, KeyFormat::Json)) => {
                let outermost = names.iter().map(|name| name.split('.').next().unwrap_or(name).to_owned());
                let alone = Arc::new(schema.only(&outermost.collect::<Vec<_>>())?);
                Some((Arc::clone(&alone), names))
            }
            _ => None,
        };
        let gone = match &alone {
            Some((alone, names)) if changes => Some((Arc::clone(alone), key::Fields::find(alone, names)?)),
            _ => None,
        };
        let left = gone.as_ref().map(|(schema, _)| schema);
        let reader = match values {
            Values::Json { extra_fields, checked } => {
                let reader = match changes {
                    false => Reader::Json(Box::new(json::Json::new(Arc::clone(&schema), extra_fields))),
                    true => Reader::JsonChanges(Box::new(change::Json::new(
                        Arc::clone(&schema),
                        extra_fields,
                        left,
                    ))),
                };
                match checked {
                    true => Reader::Checked(registered::Ids::new(), Box::new(reader)),
                    false => reader,
                }
            }
            Values::Avro { writer } if changes => {
                Reader::AvroChanges(change::Avro::new(writer, &schema, left)?)
            }
            Values::Avro { writer } => Reader::Avro(avro::Avro::new(writer, &schema)?),
            Values::Registered(Kind::Protobuf) | Values::Protobuf { .. } | Values::Raw if changes => {
                return Err(Error::Format(
                    "changes in Debezium's envelope are read as json or avro, not in this format".to_owned(),
                ));
            }
            Values::Protobuf { message } => Reader::Protobuf(proto::Protobuf::new(&message, &schema)?),
            Values::Registered(kind) => {
                let reader = registered::Registered::new(kind, Arc::clone(&schema), changes, left.cloned());
                Reader::Registered(reader)
            }
            Values::Raw if schema.is_raw() => Reader::Raw(raw::Raw::default()),
            Values::Raw => {
                let title = schema.nodes.title(schema.nodes.root);
                return Err(Error::Format(format!(
                    "raw values need the schema {{\"type\":\"bytes\"}} (or none); this dataset's is {title}"
                )));
            }
        };
        let fields = fields?;
        let names = match &key {
            KeyRule::Fields(names) => names.as_slice(),
            KeyRule::Kafka => &[],
        };
        let keys = keys::Keys::new(keys, names, alone.as_ref().map(|(alone, _)| alone))?;
        let bound = Bound::ANY;
        Ok(Codec { others: others?, schema, reader, fields, key: Vec::new(), keys, gone, changes, bound })
    }

    /// From now on records may be so large. Without: of any size.
    pub fn set_bound(&mut self, bound: Bound) {
        self.bound = bound;
        self.others.iter_mut().for_each(|(_, other)| other.set_bound(bound));
    }

    /// Whether more of a record is looked at than its key and value, so that [`Encoded`] needs it: headers, which may name
    /// schemas, and the topic.
    pub fn looks_around(&self) -> bool {
        let of_values = matches!(self.reader, Reader::Registered(_) | Reader::Checked(..));
        !self.others.is_empty() || of_values || self.keys.as_ref().is_some_and(keys::Keys::are_registered)
    }

    /// The codec of a record's topic.
    #[inline]
    fn of(&mut self, topic: Option<&str>) -> &mut Codec {
        if self.others.is_empty() {
            return self;
        }
        match self.others.iter().position(|(named, _)| Some(&**named) == topic) {
            Some(at) => self.others.get_mut(at).map(|(_, codec)| codec).expect("it was found there"),
            None => self,
        }
    }

    /// A record's key alone: what is wrong with a value whose fields do not make it does not matter.
    ///
    /// # Errors
    /// As [`Codec::read`].
    pub fn key<'a>(&'a mut self, record: Encoded<'a>) -> Result<&'a [u8], Unread> {
        let codec = self.of(record.topic);
        if codec.fields.is_some() {
            return Ok(codec.read(record)?.key);
        }
        let key = record.key.ok_or_else(|| no_key("the record", ""))?;
        match &mut codec.keys {
            Some(keys) => keys.decode(key, record.key_header),
            None => Ok(key),
        }
    }

    /// A schema that this record names and that is not known; for who asks before it reads. None of one that is too large.
    pub fn unknown(&self, record: Encoded<'_>) -> Option<SchemaId> {
        if self.bound.check(record).is_err() {
            return None;
        }
        if let Some((_, other)) = self.others.iter().find(|(named, _)| Some(&**named) == record.topic) {
            return other.unknown(record);
        }
        let of_value = record.value.and_then(|value| match &self.reader {
            Reader::Registered(values) => values.unknown(value, record.value_header),
            Reader::Checked(ids, _) => ids.unknown(value, record.value_header),
            _ => None,
        });
        // A change may be a delete that says nothing of the row.
        let wants_key = self.fields.is_none() || record.value.is_none() || self.changes;
        let keys = self.keys.as_ref().filter(|_| wants_key);
        of_value.or_else(|| keys?.unknown(record.key?, record.key_header))
    }

    /// What a registry says of a schema that was not known: the schema, or why it is of no use for good.
    pub fn learn(&mut self, id: SchemaId, written: Result<&Written, &str>) {
        for (_, other) in &mut self.others {
            other.learn(id, written);
        }
        match &mut self.reader {
            Reader::Registered(values) => values.learn(id, written),
            Reader::Checked(ids, _) => ids.learn(id, written),
            _ => {}
        }
        if let Some(keys) = &mut self.keys {
            keys.learn(id, written);
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
        self.bound.check(record)?;
        // One body, with one place where values are decoded, and what reads Avro inlined into it: a record and a result
        // are ten and six words, which each call between would copy once more.
        let Encoded { key, value, key_header, value_header, topic } = record;
        let Codec { schema, reader, fields, key: made, keys, gone, bound, .. } = self.of(topic);
        let told = match value {
            Some(value) => reader.decode(value, value_header, *bound)?,
            None => Told::Delete(None),
        };
        // Where a change comes without a key it has said what it is: a table that was emptied has none.
        if value.is_some() && key.is_none() && fields.is_none() {
            return Err(no_key("the record", r#"; `key = ["FIELD"]` makes it of fields"#).into());
        }
        // Where the key is made of the value's fields, what the Kafka key is does not matter but for deletes without any.
        let key: &[u8] = match (fields, told) {
            (Some(fields), Told::Upsert(datum)) => {
                fields.write(schema, datum, made)?;
                &*made
            }
            (Some(_), Told::Delete(Some(left))) => {
                let Some((schema, fields)) = gone else { unreachable!("it was read by this schema") };
                fields.write(schema, left, made)?;
                &*made
            }
            (Some(_), Told::Delete(None)) if value.is_some() && keys.is_none() => {
                return Err(change::unsaid().into());
            }
            (_, told) => {
                let what = if matches!(told, Told::Delete(_)) { "a delete" } else { "the record" };
                let key = key.ok_or_else(|| no_key(what, ""))?;
                match keys {
                    Some(keys) => keys.decode(key, key_header)?,
                    None => key,
                }
            }
        };
        let value = match told {
            Told::Upsert(datum) => Some(datum),
            Told::Delete(_) => None,
        };
        Ok(Decoded { key, value })
    }
}

impl Reader {
    #[inline(always)]
    fn decode<'a>(
        &'a mut self,
        value: &'a [u8],
        header: Option<&[u8]>,
        bound: Bound,
    ) -> Result<Told<'a>, Unread> {
        Ok(match self {
            Reader::Json(json) => Told::Upsert(json.decode(frame::behind(value), bound)?),
            Reader::JsonChanges(changes) => changes.decode(frame::behind(value), bound)?,
            Reader::Checked(ids, reader) => return checked(ids, reader, value, header, bound),
            Reader::Avro(avro) => Told::Upsert(avro.decode(value, bound)?),
            Reader::AvroChanges(changes) => changes.decode(value, bound)?,
            Reader::Protobuf(messages) => Told::Upsert(messages.decode(value, bound)?),
            Reader::Registered(registered) => registered.decode(value, header, bound)?,
            Reader::Raw(raw) => Told::Upsert(raw.decode(value)),
        })
    }
}

/// Apart: what calls itself is not inlined.
#[inline(never)]
fn checked<'a>(
    ids: &mut registered::Ids,
    reader: &'a mut Reader,
    value: &'a [u8],
    header: Option<&[u8]>,
    bound: Bound,
) -> Result<Told<'a>, Unread> {
    reader.decode(ids.check(value, header)?, None, bound)
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
