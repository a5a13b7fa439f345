//! Letters that go straight into the dataset (`--into dataset`): their values are rows, that is, records of the dataset as JSON,
//! and what its source has of such a row is made here.
//!
//! ```text
//!  value as the topic has it --id and envelope off, by the schema that it names--> JSON --(--fix)--> row
//!
//!  row --JSON of the dataset's schema--> datum ----------------------------------------------+  the same?
//!   +--> envelope --> JSON or datum of the topic's schema --> id --> read as the source will: datum
//! ```
//!
//! Into the dataset there is no way past its source: a version is the fold of its source up to its positions, which rebuilds,
//! other readers of the topic and our own checks rely on. So a row becomes a record of the topic, in the form that records
//! have there, and takes the letter's place: its partition, key, timestamp and headers. What is read back must be the row: a
//! topic's schema that lacks a field of it would lose that field without a word.
//!
//! Where a registry has the schemas, the newest of the subject `TOPIC-value` is taken, as a serializer with
//! `use.latest.version` does; where there is none, that which the letter itself names. Nothing is registered. The id stands where
//! the letter has it: before the value, or in a header.
//!
//! Owns: what a row is, and the record that it makes. Does not own: who mends it (`fix`), whether it is stale (`stale`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;

use super::Error;
use super::fit::Schemas;
use super::held::{Form, Held};
use super::replay::Options;
use crate::codec::{
    self, Bound, Codec, Encoded, Envelope, ExtraFields, Format, KeyFormat, KeyRule, Kind, SchemaId, Unread,
    VALUE_HEADER, Values, Written, text,
};
use crate::schema::Schema;

/// Where letters go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Goal {
    /// Into the source, as they are there.
    #[default]
    Source,
    /// Into the dataset, as its rows: by its source.
    Dataset,
}

/// A change's members, as they are written.
type Members = BTreeMap<String, Box<RawValue>>;

/// What a letter was before its value became a row.
#[derive(Debug, Default)]
pub struct Before {
    value: Option<Bytes>,
    /// The change in which the row stood.
    change: Option<Members>,
    /// What a converter put beside the change: its schema.
    schema: Option<Box<RawValue>>,
}

/// How the values of a topic, or those of one schema, are written.
enum Way {
    /// The text of the row.
    Text,
    /// A datum of the topic's schema.
    Datum(Box<Codec>),
}

/// The way of each topic, or of each schema of the registry's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    Topic(String),
    Id(SchemaId),
}

/// Makes rows of letters, and records of rows.
pub struct Rows {
    dataset: String,
    format: Format,
    schemas: Schemas,
    /// Rows.
    row: Codec,
    /// Reads as the source will.
    check: Codec,
    schema: Arc<Schema>,
    bound: Bound,
    newest: HashMap<String, Option<SchemaId>>,
    ways: HashMap<Place, Way>,
}

/// Why a row makes no record.
type Said = String;

/// A value as its topic has it, and the id that goes into a header, if it does; or why there is none.
type Made = Result<(Option<Bytes>, Option<Bytes>), Said>;

impl Rows {
    /// Of a dataset.
    ///
    /// # Errors
    /// The codec's, where format, rule and schema do not go together.
    pub fn new(options: &Options, schemas: Schemas) -> Result<Rows, codec::Error> {
        let Options { format, key, schema, bound, dataset, .. } = options;
        let mut row = json(schema)?;
        row.set_bound(*bound);
        let mut check = Codec::new(format.clone(), key.clone(), schema.clone())?;
        check.set_bound(*bound);
        Ok(Rows {
            dataset: dataset.clone(),
            format: format.clone(),
            schemas,
            row,
            check,
            schema: schema.clone(),
            bound: *bound,
            newest: HashMap::new(),
            ways: HashMap::new(),
        })
    }

    /// Makes a letter's value JSON, where it can be read by the schema that it names; else it stays as it is. May ask the
    /// registry, and blocks then.
    ///
    /// # Errors
    /// [`Error::Registry`].
    pub fn read(&mut self, held: &mut Held) -> Result<Before, Error> {
        let mut before = Before { value: held.value.clone(), ..Before::default() };
        if held.is_change() {
            // What stands beside it is ours, of its failure.
            held.headers.clear();
            held.form = if held.value.is_some() { Form::Row } else { Form::Unread };
            return Ok(before);
        }
        let Some(value) = held.value.clone() else { return Ok(before) };
        held.form = Form::Unread;
        let format = self.format.of_topic(topic_of(held)).clone();
        let header = held.encoded().value_header;
        let named = codec::named(&value, header);
        let json = match &format.values {
            Values::Raw => Some(value.clone()),
            Values::Json { .. } => Some(unframed(&value)),
            Values::Avro { writer } => as_json(writer, &value),
            Values::Registered(Kind::Avro) => match named {
                Some((id, datum)) => match self.schemas.find(id)? {
                    Some(Written::Avro(writer)) => as_json(&writer, datum),
                    _ => None,
                },
                None => None,
            },
            Values::Protobuf { .. } | Values::Registered(Kind::Protobuf) => None,
        };
        let Some(json) = json else { return Ok(before) };
        if matches!(format.values, Values::Raw) {
            (held.value, held.form) = (Some(json), Form::Row);
            return Ok(before);
        }
        // That text is no row, and a delete only where somebody says so.
        if json.trim_ascii() == b"null" || serde_json::from_slice::<&RawValue>(&json).is_err() {
            return Ok(before);
        }
        let row = match format.envelope {
            Envelope::Upsert => Some(json),
            Envelope::Debezium => {
                if let Some((members, schema)) = change(&json) {
                    (before.change, before.schema) = (Some(members), schema);
                }
                let after = before.change.as_ref().and_then(|change| change.get("after"));
                after.filter(|row| row.get() != "null").map(|row| Bytes::from(row.get().to_owned()))
            }
        };
        if let Some(row) = row {
            (held.value, held.form) = (Some(row), Form::Row);
        }
        Ok(before)
    }

    /// Makes the record of the source of a letter whose value is a row. `Some(why)`: it is none, or none that the topic can
    /// hold, and the letter's value is what it was before. May ask the registry, and blocks then.
    ///
    /// # Errors
    /// [`Error::Registry`].
    pub fn write(&mut self, held: &mut Held, before: Before) -> Result<Option<Said>, Error> {
        let row = held.value.take();
        let made = self.made(held, row, &before)?;
        held.form = Form::Source;
        match made {
            Ok((value, id)) => {
                held.value = value;
                if let Some(id) = id {
                    // Of several the last counts: there is one from here on.
                    held.headers.retain(|(name, _)| name != VALUE_HEADER);
                    held.headers.push((VALUE_HEADER.to_owned(), Some(id)));
                }
                Ok(None)
            }
            Err(why) => {
                held.value = before.value;
                Ok(Some(format!("it is no record for {}: {why}", self.dataset)))
            }
        }
    }

    fn made(&mut self, held: &Held, row: Option<Bytes>, before: &Before) -> Result<Made, Error> {
        let format = self.format.of_topic(topic_of(held)).clone();
        let raw = matches!(format.values, Values::Raw);
        if held.is_change() {
            if row.is_none() {
                let deletes = if raw { "" } else { "; `null` deletes" };
                return Ok(Err(format!(
                    "its letter has no value: the row is gone, or too large for the letters' topic{deletes}"
                )));
            }
            if !matches!(format.keys, KeyFormat::Raw | KeyFormat::Text) {
                let why =
                    "its key is the dataset's, and Kafka keys are written in a format of their own there";
                return Ok(Err(why.to_owned()));
            }
        }
        let row = row.map(|row| if raw { row } else { row.slice_ref(row.trim_ascii()) });
        // Given as it was found, it would pass for a row of defaults, or for somebody's word that the row is to go.
        if held.form == Form::Unread
            && let (Some(row), Some(was)) = (&row, &before.value)
            && **row == *was.trim_ascii()
        {
            let json = unframed(row);
            let is_change = || {
                let change = change(&json).filter(|_| matches!(format.envelope, Envelope::Debezium));
                change.is_some_and(|(change, _)| change.contains_key("op"))
            };
            if json.trim_ascii() == b"null" || is_change() {
                return Ok(Err("it says no row, and nobody has made one of it".to_owned()));
            }
        }
        let Some(row) = row.filter(|row| raw || **row != *b"null") else {
            return Ok(self.read_back(held, None, None)?.map(|_| (None, None)));
        };
        if raw {
            return Ok(self.read_back(held, Some(&row), None)?.map(|_| (Some(row), None)));
        }
        if row.is_empty() {
            return Ok(Err("it is empty; `null` deletes the row".to_owned()));
        }
        // What could not be read was given with its id, which a program may have left there.
        let row = unframed(&row);
        let datum = match self.row.decode(Some(b""), Some(&row)) {
            Ok(decoded) => Bytes::copy_from_slice(decoded.value.unwrap_or_default()),
            Err(misfit) => return Ok(Err(misfit.message)),
        };
        let (place, id) = match self.place(held, &format, before)? {
            Ok(found) => found,
            Err(why) => return Ok(Err(why)),
        };
        let value = match self.encode(&row, &format, before, &place) {
            Ok(value) => value,
            // What the row leaves out the dataset's schema says, and the topic's may not.
            Err(why) => match self.encode(self.told(&datum).as_bytes(), &format, before, &place) {
                Ok(value) => value,
                Err(_) => return Ok(Err(format!("in {}: {why}", schema_of(id)))),
            },
        };
        // An id that nobody checks here other readers of the topic may need.
        let unchecked = match (&format.values, &before.value) {
            (Values::Json { checked: false, .. }, Some(was)) => codec::named(was, None).map(|(id, _)| id),
            _ => None,
        };
        let in_header = unchecked.is_none() && held.encoded().value_header.is_some();
        let (value, header) = match id.or(unchecked).map(codec::prefix) {
            None => (value, None),
            Some(id) if in_header => (value, Some(Bytes::from(id))),
            Some(id) => ([&id[..], &value].concat().into(), None),
        };
        let read = match self.read_back(held, Some(&value), header.as_deref())? {
            Ok(read) => read.unwrap_or_default(),
            Err(why) => return Ok(Err(why)),
        };
        if read != datum {
            let field = self.lost(&datum, &read);
            return Ok(Err(format!(
                "{} cannot say what it says: it would be read with another {field}",
                schema_of(id)
            )));
        }
        Ok(Ok((Some(value), header)))
    }

    /// A row as it stands behind the id.
    fn encode(&mut self, row: &[u8], format: &Format, before: &Before, place: &Place) -> Result<Bytes, Said> {
        let text = match format.envelope {
            Envelope::Upsert => Bytes::copy_from_slice(row),
            Envelope::Debezium => {
                let change = before.change.clone().unwrap_or_default();
                wrapped(row, change, before.schema.as_deref()).map_err(|error| error.to_string())?.into()
            }
        };
        match self.ways.get_mut(place) {
            Some(Way::Datum(codec)) => {
                let decoded = codec.decode(Some(b""), Some(&text)).map_err(|misfit| misfit.message)?;
                Ok(Bytes::copy_from_slice(decoded.value.unwrap_or_default()))
            }
            _ => Ok(text),
        }
    }

    /// A row as the dataset has it, with all its fields.
    fn told(&self, datum: &[u8]) -> String {
        let mut json = String::new();
        // It is one: it was made a moment ago.
        let _ = text::to_json(&self.schema, datum, &mut json);
        json
    }

    /// The datum that the source will read, of a record with this value; or why it will not.
    fn read_back(
        &mut self,
        held: &Held,
        value: Option<&[u8]>,
        header: Option<&[u8]>,
    ) -> Result<Result<Option<Bytes>, Said>, Error> {
        let around = held.encoded();
        let record = Encoded { value, value_header: header.or(around.value_header), ..around };
        self.schemas.teach(&mut self.check, record)?;
        let read = self.check.read(record).map_err(Unread::misfit);
        Ok(match read {
            Ok(decoded) => Ok(decoded.value.map(Bytes::copy_from_slice)),
            Err(misfit) => Err(misfit.message),
        })
    }

    /// How rows are written in the letter's topic, and the schema's id.
    fn place(
        &mut self,
        held: &Held,
        format: &Format,
        before: &Before,
    ) -> Result<Result<(Place, Option<SchemaId>), Said>, Error> {
        let topic = topic_of(held);
        let (by_id, kind) = match &format.values {
            Values::Raw => (false, ""),
            Values::Json { checked, .. } => (*checked, "JSON"),
            Values::Avro { .. } => (false, Kind::Avro.name()),
            Values::Registered(Kind::Avro) => (true, Kind::Avro.name()),
            Values::Protobuf { .. } | Values::Registered(Kind::Protobuf) => {
                let why = "the values of its topic are Protobuf messages, which are only read here: mend the message, \
                           without --into dataset";
                return Ok(Err(why.to_owned()));
            }
        };
        if !by_id {
            let place = Place::Topic(topic.to_owned());
            if !self.ways.contains_key(&place) {
                let way = match &format.values {
                    Values::Avro { writer } => Way::Datum(Box::new(self.writes(writer)?)),
                    _ => Way::Text,
                };
                self.ways.insert(place.clone(), way);
            }
            return Ok(Ok((place, None)));
        }
        let subject = format!("{topic}-value");
        if !self.newest.contains_key(topic) {
            let newest = self.schemas.newest(&subject)?;
            self.newest.insert(topic.to_owned(), newest);
        }
        let own = || {
            let value = before.value.as_deref().unwrap_or_default();
            codec::named(value, held.encoded().value_header).map(|(id, _)| id)
        };
        let Some(id) = self.newest.get(topic).copied().flatten().or_else(own) else {
            return Ok(Err(format!(
                "with which schema is not known: nothing is registered under subject {subject}, and the letter names none"
            )));
        };
        let place = Place::Id(id);
        if !self.ways.contains_key(&place) {
            let way = match self.schemas.find(id)? {
                Some(Written::Avro(writer)) if kind == Kind::Avro.name() => {
                    Way::Datum(Box::new(self.writes(&writer)?))
                }
                Some(Written::Json) if kind == "JSON" => Way::Text,
                Some(other) => {
                    return Ok(Err(format!(
                        "{id} is of type {}, and the topic's values are {kind}",
                        other.kind()
                    )));
                }
                None => return Ok(Err(format!("the schema registry has no {id} that can be used"))),
            };
            self.ways.insert(place.clone(), way);
        }
        Ok(Ok((place, Some(id))))
    }

    fn writes(&self, writer: &Arc<Schema>) -> Result<Codec, codec::Error> {
        // A writer's schema is read without its defaults, which are for who reads; and here it is JSON that is read by it.
        let written = Schema::parse(writer.json()).map_or_else(|_| writer.clone(), Arc::new);
        let mut codec = json(&written)?;
        codec.set_bound(self.bound);
        Ok(codec)
    }

    /// The first field in which two datums differ.
    #[cold]
    fn lost(&self, row: &[u8], read: &[u8]) -> String {
        let fields = |datum: &[u8]| -> Option<serde_json::Map<String, Value>> {
            serde_json::from_str(&self.told(datum)).ok()
        };
        let (Some(row), Some(read)) = (fields(row), fields(read)) else { return "value".to_owned() };
        let lost = row.into_iter().find(|(name, value)| read.get(name) != Some(value));
        lost.map_or_else(|| "value".to_owned(), |(name, _)| format!("`{name}`"))
    }
}

/// Reads JSON by a schema.
fn json(schema: &Arc<Schema>) -> Result<Codec, codec::Error> {
    Codec::new(Format::json(ExtraFields::Ignore), KeyRule::Kafka, schema.clone())
}

fn topic_of(held: &Held) -> &str {
    held.source.as_ref().map_or("", |source| &source.topic)
}

fn schema_of(id: Option<SchemaId>) -> String {
    match id {
        Some(id) => format!("the topic's schema ({id})"),
        None => "the topic's schema".to_owned(),
    }
}

/// A whole datum as JSON.
fn as_json(schema: &Schema, datum: &[u8]) -> Option<Bytes> {
    let mut json = String::new();
    let whole = schema.validate(datum).is_ok_and(|length| length == datum.len());
    let written = whole && text::to_json(schema, datum, &mut json).is_ok();
    written.then(|| json.into())
}

/// JSON without an id before it: no JSON begins as one does.
fn unframed(value: &Bytes) -> Bytes {
    codec::named(value, None).map_or_else(|| value.clone(), |(_, json)| value.slice_ref(json))
}

/// The members of a change, and the schema that a converter put beside it.
fn change(json: &[u8]) -> Option<(Members, Option<Box<RawValue>>)> {
    let mut members: Members = serde_json::from_slice(json).ok()?;
    match members.get("payload") {
        Some(payload) if !members.contains_key("op") => {
            let change = serde_json::from_str(payload.get()).ok()?;
            Some((change, members.remove("schema")))
        }
        _ => Some((members, None)),
    }
}

/// The change that says this row: the letter's own, as far as that can be read, with this row in its place,
/// beside the schema that it had.
fn wrapped(row: &[u8], mut change: Members, schema: Option<&RawValue>) -> Result<String, serde_json::Error> {
    let writes = |op: &RawValue| matches!(op.get(), r#""c""# | r#""r""# | r#""u""#);
    let raw = |text: &str| RawValue::from_string(text.to_owned());
    if !change.get("op").is_some_and(|op| writes(op)) {
        change.insert("op".to_owned(), raw(r#""u""#)?);
    }
    change.insert("before".to_owned(), raw("null")?);
    change.insert("after".to_owned(), raw(&String::from_utf8_lossy(row))?);
    let change = serde_json::to_string(&change)?;
    // A converter that is told of schemas takes nothing without one.
    Ok(match schema {
        Some(schema) => format!(r#"{{"schema":{},"payload":{change}}}"#, schema.get()),
        None => change,
    })
}

#[cfg(test)]
mod tests;
