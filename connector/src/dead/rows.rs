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
//! What was a change of the dataset is not what the source had: a reader may keep a part of the fields, and none has what the
//! topic's schema has besides. Such a row has to say all fields, the dataset's and the topic's, since a default in the place of
//! one that it leaves out would be written over what is there. What could not be read, and comes back as it was, is a row only
//! where all that it says are fields of the dataset: JSON of any other kind would be a row of nothing but defaults.
//!
//! Where a registry has the schemas, the newest of the subject `TOPIC-value` is taken, as a serializer with
//! `use.latest.version` does; where there is none, that which the letter itself names. Nothing is registered. The id stands where
//! the letter has it: before the value, or in a header.
//!
//! Owns: what a row is, and the record that it makes. Does not own: who mends it (`fix`), whether it is stale (`stale`).

use std::collections::HashMap;
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
use crate::format::letter::header;
use crate::schema::{Node, Schema};

mod members;

use members::{Change, Members, filled};

/// Where letters go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Goal {
    /// Into the source, as they are there.
    #[default]
    Source,
    /// Into the dataset, as its rows: by its source.
    Dataset,
}

/// What a letter was before its value became a row.
#[derive(Debug, Default)]
pub struct Before {
    value: Option<Bytes>,
    /// The change in which the row stood.
    change: Option<Change>,
    /// Why what the letter holds is not known to be a whole row.
    part: Option<Said>,
}

/// How the values of a topic, or those of one schema, are written.
enum Way {
    /// The text of the row.
    Text,
    /// A datum of the topic's schema.
    Datum(Arc<Schema>, Box<Codec>),
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
    /// Rows that nobody has made one of: with fields of the dataset, and no others.
    untouched: Codec,
    /// Reads as the source will.
    check: Codec,
    schema: Arc<Schema>,
    bound: Bound,
    newest: HashMap<String, Option<SchemaId>>,
    ways: HashMap<Place, Way>,
}

/// Why a row makes no record.
type Said = String;

const TWICE: &str = "a member of it is there twice, and which one was meant cannot be known";

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
        let mut untouched = Codec::new(Format::json(ExtraFields::Reject), KeyRule::Kafka, schema.clone())?;
        untouched.set_bound(*bound);
        let mut check = Codec::new(format.clone(), key.clone(), schema.clone())?;
        check.set_bound(*bound);
        Ok(Rows {
            dataset: dataset.clone(),
            format: format.clone(),
            schemas,
            row,
            untouched,
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
            before.part = self.part(held);
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
                before.change = Change::of(&json);
                let row = before.change.as_ref().and_then(Change::row);
                row.map(|row| Bytes::from(row.get().to_owned()))
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
        if held.form == Form::Unread
            && let Some(row) = &row
            && let Some(why) = self.no_row(row, &format, before)
        {
            return Ok(Err(why));
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
        let mut missed = Vec::new();
        let whole = filled(&row, &told(&self.schema, &datum), &mut missed);
        // What cannot be compared is not known to be whole.
        if held.is_change() && whole.is_none() {
            return Ok(Err(TWICE.to_owned()));
        }
        if let Some(part) = &before.part
            && !missed.is_empty()
        {
            return Ok(Err(format!(
                "{part}, and the row that was made of it does not say {}: what it leaves out would be lost",
                listed(&missed)
            )));
        }
        let (place, id) = match self.place(held, &format, before)? {
            Ok(found) => found,
            Err(why) => return Ok(Err(why)),
        };
        let encoded = self.encode(&row, &format, before, &place).or_else(|why| {
            // What the row leaves out the dataset's schema says, and the topic's may not.
            let whole = whole.as_ref().ok_or_else(|| why.clone())?;
            self.encode(whole.get().as_bytes(), &format, before, &place).map_err(|_| why)
        });
        let value = match encoded {
            Ok(value) => value,
            Err(why) => return Ok(Err(format!("in {}: {why}", schema_of(id)))),
        };
        if held.is_change() {
            let Some(mut unsaid) = self.unsaid(&row, &value, &format, &place) else {
                return Ok(Err(TWICE.to_owned()));
            };
            // What is the dataset's was left out by who had it before him.
            unsaid.retain(|name| !missed.contains(name));
            if !unsaid.is_empty() {
                return Ok(Err(format!(
                    "{} has {}, which the dataset's schema has not and the row does not say: what other readers find \
                     there would be lost",
                    schema_of(id),
                    listed(&unsaid)
                )));
            }
        }
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
                change.with(row).map_err(|error| error.to_string())?.into()
            }
        };
        match self.ways.get_mut(place) {
            Some(Way::Datum(_, codec)) => {
                let decoded = codec.decode(Some(b""), Some(&text)).map_err(|misfit| misfit.message)?;
                Ok(Bytes::copy_from_slice(decoded.value.unwrap_or_default()))
            }
            _ => Ok(text),
        }
    }

    /// Why what a letter of a change holds may be less than the row; `None`: it says every field.
    fn part(&self, held: &Held) -> Option<Said> {
        let schema = &self.schema;
        if schema.is_raw() {
            return None;
        }
        let mark = held.headers.iter().find(|(name, _)| name == header::FIELDS);
        if let Some((_, fields)) = mark {
            let fields = String::from_utf8_lossy(fields.as_deref().unwrap_or_default());
            let fields = fields.replace(',', ", ");
            return Some(format!("its letter was made by a reader that keeps the fields {fields} alone"));
        }
        // Earlier releases put no such header there, and the dataset may have got fields since.
        let says = held.value.as_deref().and_then(Members::of);
        let all = match (schema.nodes.get(schema.nodes.root), says) {
            (Node::Record(record), Some(Members(says))) => {
                record.fields.iter().all(|field| says.contains_key(&*field.name))
            }
            // Of nothing else there are parts.
            (Node::Record(_), None) => false,
            _ => held.value.is_some(),
        };
        (!all).then(|| "its letter does not hold the whole row".to_owned())
    }

    /// Why a value that could not be read is no row: given as it was found, it would pass for a row of defaults, or for
    /// somebody's word that the row is to go. `None`: somebody has made one of it, or it is one.
    fn no_row(&mut self, row: &Bytes, format: &Format, before: &Before) -> Option<Said> {
        let nobody = || "it says no row, and nobody has made one of it".to_owned();
        let was = before.value.as_ref()?;
        let json = unframed(row);
        // A program that is made for rows may put a field beside what says that it is none.
        let is_change = matches!(format.envelope, Envelope::Debezium)
            && Change::of(&json).is_some_and(|change| change.says_what());
        if is_change && self.untouched.decode(Some(b""), Some(&json)).is_err() {
            return Some(nobody());
        }
        // Or write the same in another way.
        let object = |json: &[u8]| serde_json::from_slice::<serde_json::Map<String, Value>>(json).ok();
        let same = || object(&json).is_some_and(|json| object(&unframed(was)) == Some(json));
        if **row != *was.trim_ascii() && !same() {
            return None;
        }
        let json = json.trim_ascii();
        if json == b"null" || is_change || Members::of(json).is_some_and(|members| members.0.is_empty()) {
            return Some(nobody());
        }
        let misfit = self.untouched.decode(Some(b""), Some(json)).err()?;
        Some(format!("{}: {}", nobody(), misfit.message))
    }

    /// The fields that the topic's schema has put in where the row does not say them. `None`: that cannot be told.
    fn unsaid(&self, row: &[u8], value: &[u8], format: &Format, place: &Place) -> Option<Vec<String>> {
        let mut unsaid = Vec::new();
        // Of text no schema says what there may be.
        let Some(Way::Datum(schema, _)) = self.ways.get(place) else { return Some(unsaid) };
        let written = told(schema, value);
        match format.envelope {
            Envelope::Upsert => filled(row, &written, &mut unsaid)?,
            Envelope::Debezium => {
                let change = Change::of(written.as_bytes())?;
                filled(row, change.after()?.get(), &mut unsaid)?
            }
        };
        Some(unsaid)
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
                    Values::Avro { writer } => self.writes(writer)?,
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
                Some(Written::Avro(writer)) if kind == Kind::Avro.name() => self.writes(&writer)?,
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

    fn writes(&self, writer: &Arc<Schema>) -> Result<Way, codec::Error> {
        // A writer's schema is read without its defaults, which are for who reads; and here it is JSON that is read by it.
        let written = Schema::parse(writer.json()).map_or_else(|_| writer.clone(), Arc::new);
        let mut codec = json(&written)?;
        codec.set_bound(self.bound);
        Ok(Way::Datum(written, Box::new(codec)))
    }

    /// The first field in which two datums differ.
    #[cold]
    fn lost(&self, row: &[u8], read: &[u8]) -> String {
        let fields = |datum: &[u8]| -> Option<serde_json::Map<String, Value>> {
            serde_json::from_str(&told(&self.schema, datum)).ok()
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

/// A datum with all its fields.
fn told(schema: &Schema, datum: &[u8]) -> String {
    let mut json = String::new();
    // It is one: it was made a moment ago.
    let _ = text::to_json(schema, datum, &mut json);
    json
}

/// Names of fields, for people; of many the first.
fn listed(names: &[String]) -> String {
    const MOST: usize = 5;
    let mut listed: Vec<String> = names.iter().take(MOST).map(|name| format!("`{name}`")).collect();
    if names.len() > MOST {
        listed.push(format!("{} more", names.len() - MOST));
    }
    listed.join(", ")
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

#[cfg(test)]
mod tests;
