//! Kafka keys that are not taken as they come: what a key says is the key, not how it is written.
//!
//! ```text
//!  text      a/b                                     a/b
//!  json      "a/b"   7   {"id": "a/b", "no": 7}      a/b   7   a%2Fb/7     members in the order of their names,
//!            {"schema": …, "payload": …}                                   or the key's fields, where it is made of fields;
//!                                                                          one value is read as the only field would be
//!  avro      a datum of a schema that is configured
//!  registry  a datum or message by its schema (`registered`)
//! ```

use std::sync::Arc;

use super::json::{self, scan};
use super::key::{self, Fields};
use super::room::anew;
use super::{Bound, Error, ExtraFields, KeyFormat, Misfit, SchemaId, Stage, Unread, Written};
use super::{frame, proto, registered};
use crate::schema::{Malformed, Schema};

/// Reads keys.
#[derive(Debug)]
pub(super) enum Keys {
    Text,
    Json(Box<Json>),
    Avro(Datum),
    Protobuf(proto::Key),
    Registered(registered::Keys),
}

/// Reads keys that are datums of one schema. Keeps its buffer.
#[derive(Debug)]
pub(super) struct Datum {
    schema: Arc<Schema>,
    fields: Fields,
    out: Vec<u8>,
}

/// Reads keys of JSON. Keeps its buffers.
pub(super) struct Json {
    /// Where keys are made of fields: reads them.
    named: Option<(json::Json, Arc<Schema>, Fields)>,
    /// What stands around the only one of them in a record, where a key that is one value has to be read as it is there, and
    /// room for it.
    around: Option<[Vec<u8>; 2]>,
    record: Vec<u8>,
    scratch: scan::Scratch,
    names: Vec<u8>,
    members: Vec<Member>,
    out: Vec<u8>,
}

/// An object's member: its name in `names`, its value in the text.
#[derive(Clone, Copy)]
struct Member {
    name: scan::Place,
    value: scan::Place,
}

impl std::fmt::Debug for Json {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Json({})", if self.named.is_some() { "the key's fields" } else { "all members" })
    }
}

impl Keys {
    /// `None`: they are taken as they come. `names` are the fields that keys are made of, `alone` the dataset's schema with
    /// only those.
    pub fn new(
        format: KeyFormat,
        names: &[String],
        alone: Option<&Arc<Schema>>,
    ) -> Result<Option<Keys>, Error> {
        Ok(Some(match format {
            KeyFormat::Raw => return Ok(None),
            KeyFormat::Text => Keys::Text,
            KeyFormat::Json => {
                let named = match alone {
                    None => None,
                    Some(alone) => {
                        // A default would make a key that nobody wrote, and delete what nobody meant.
                        let alone = Arc::new(alone.without_defaults()?);
                        let reader = json::Json::new(Arc::clone(&alone), ExtraFields::Ignore);
                        let fields = Fields::find(&alone, names)?;
                        Some((reader, alone, fields))
                    }
                };
                let only =
                    named.as_ref().and_then(|(_, alone, fields)| fields.only_and_spelled_otherwise(alone));
                Keys::Json(Box::new(Json {
                    around: only.map(around),
                    record: Vec::new(),
                    named,
                    scratch: scan::Scratch::default(),
                    names: Vec::new(),
                    members: Vec::new(),
                    out: Vec::new(),
                }))
            }
            KeyFormat::Avro(schema) => Keys::Avro(Datum::new(schema, names)?),
            KeyFormat::Protobuf(message) => Keys::Protobuf(proto::Key::new(&message, names)?),
            KeyFormat::Registered(kind) => Keys::Registered(registered::Keys::new(kind, names)),
        }))
    }

    /// The key of the dataset.
    pub fn decode<'a>(&'a mut self, key: &'a [u8], header: Option<&[u8]>) -> Result<&'a [u8], Unread> {
        match self {
            Keys::Text => match std::str::from_utf8(key) {
                Ok(_) => Ok(key),
                Err(error) => {
                    let at = error.valid_up_to();
                    let what = format!("the key is no text: not UTF-8 (byte {at})");
                    Err(misfit("stillwell.codec.WrongEncoding", what).into())
                }
            },
            // With an id of a JSON Schema before it, as in values.
            Keys::Json(json) => Ok(json.decode(frame::behind(key))?),
            Keys::Avro(datum) => Ok(datum.decode(key)?),
            Keys::Protobuf(keys) => Ok(keys.decode(key)?),
            Keys::Registered(keys) => keys.decode(key, header),
        }
    }

    pub fn are_registered(&self) -> bool {
        matches!(self, Keys::Registered(_))
    }

    pub fn unknown(&self, key: &[u8], header: Option<&[u8]>) -> Option<SchemaId> {
        match self {
            Keys::Registered(keys) => keys.unknown(key, header),
            _ => None,
        }
    }

    pub fn learn(&mut self, id: SchemaId, written: Result<&Written, &str>) {
        if let Keys::Registered(keys) = self {
            keys.learn(id, written);
        }
    }
}

impl Datum {
    fn new(schema: Arc<Schema>, names: &[String]) -> Result<Datum, Error> {
        let fields = Fields::named_or_whole(&schema, names).map_err(Error::KeyType)?;
        Ok(Datum { schema, fields, out: Vec::new() })
    }

    fn decode(&mut self, datum: &[u8]) -> Result<&[u8], Misfit> {
        write(&self.schema, &self.fields, datum, "key_schema", &mut self.out)?;
        Ok(&self.out)
    }
}

/// Writes the key that `fields` of a datum make, which has to be one of `schema` and nothing else; `of` names that in messages.
pub(super) fn write(
    schema: &Schema,
    fields: &Fields,
    datum: &[u8],
    of: impl std::fmt::Display,
    out: &mut Vec<u8>,
) -> Result<(), Misfit> {
    let whole = schema.validate(datum).and_then(|length| match length == datum.len() {
        true => Ok(()),
        false => Err(Malformed { at: length, what: "something behind the datum" }),
    });
    whole.map_err(|malformed| {
        misfit("stillwell.codec.MalformedAvro", format!("the key is not an Avro datum of {of}: {malformed}"))
    })?;
    fields.write(schema, datum, out)
}

impl Json {
    fn decode(&mut self, text: &[u8]) -> Result<&[u8], Misfit> {
        let no_json =
            |what: String| misfit("stillwell.codec.MalformedJson", format!("the key is not JSON: {what}"));
        let fault = |(syntax, at): scan::Fault| no_json(format!("{syntax} (byte {at})"));
        if let Err(error) = std::str::from_utf8(text) {
            return Err(no_json(format!("not UTF-8 (byte {})", error.valid_up_to())));
        }
        let mut place = scan::value(text, 0, &mut self.scratch).map_err(fault)?;
        scan::end(text, place.1).map_err(fault)?;
        if text.get(place.0) == Some(&b'{') {
            self.collect(text, place.0).map_err(fault)?;
            // What the JsonConverter of Kafka Connect writes unless it is told not to.
            if let [payload, schema] = self.members.as_slice()
                && self.name(payload) == b"payload"
                && self.name(schema) == b"schema"
            {
                place = payload.value;
                if text.get(place.0) == Some(&b'{') {
                    self.collect(text, place.0).map_err(fault)?;
                }
            }
        }
        anew(&mut self.out, text.len());
        if text.get(place.0) != Some(&b'{') {
            if self.named.as_ref().is_some_and(|(_, _, fields)| fields.are_several()) {
                let what = "the key is one value, and those of the dataset are made of several";
                return Err(misfit("stillwell.codec.NoKey", what.to_owned()));
            }
            match (&self.around, &mut self.named, text.get(place.0..place.1)) {
                (Some([before, behind]), Some((reader, schema, fields)), Some(value)) if value != b"null" => {
                    self.record.clear();
                    [before, value, behind].iter().for_each(|part| self.record.extend_from_slice(part));
                    let datum = reader.decode(&self.record, Bound::ANY).map_err(of_key)?;
                    fields.write(schema, datum, &mut self.out)?;
                }
                _ => self.part(text, place, false)?,
            }
        } else if let Some((reader, schema, fields)) = &mut self.named {
            let datum = reader.decode_part(text, place, Bound::ANY).map_err(of_key)?;
            fields.write(schema, datum, &mut self.out)?;
        } else {
            self.whole(text)?;
        }
        Ok(&self.out)
    }

    /// The members of the object at `from`, by name.
    fn collect(&mut self, text: &[u8], from: usize) -> Result<(), scan::Fault> {
        let Json { scratch, names, members, .. } = self;
        anew(names, text.len());
        anew(members, text.len());
        scan::members(text, from, scratch, |name, value| {
            let start = names.len();
            names.extend_from_slice(name);
            members.push(Member { name: (start, names.len()), value });
        })?;
        let name = |member: &Member| names.get(member.name.0..member.name.1);
        members.sort_unstable_by(|one, two| name(one).cmp(&name(two)));
        Ok(())
    }

    fn name(&self, member: &Member) -> &[u8] {
        self.names.get(member.name.0..member.name.1).unwrap_or_default()
    }

    /// The key that all members make, in the order of their names: an object's own order means nothing.
    fn whole(&mut self, text: &[u8]) -> Result<(), Misfit> {
        if self.members.is_empty() {
            return Err(misfit("stillwell.codec.NoKey", "the key is an object without members".to_owned()));
        }
        let twice = self.members.windows(2).any(|pair| match pair {
            [one, two] => self.name(one) == self.name(two),
            _ => false,
        });
        if twice {
            return Err(misfit(
                "stillwell.codec.DuplicateField",
                "a member of the key occurs twice".to_owned(),
            ));
        }
        let members = std::mem::take(&mut self.members);
        let composite = members.len() > 1;
        let mut made = Ok(());
        for (at, member) in members.iter().enumerate() {
            if at > 0 {
                self.out.push(b'/');
            }
            made = made.and_then(|()| self.part(text, member.value, composite));
        }
        self.members = members;
        made
    }

    fn part(&mut self, text: &[u8], place: scan::Place, composite: bool) -> Result<(), Misfit> {
        let [_, scratch] = &mut self.scratch;
        match scan::scalar(text, place, scratch) {
            scan::Scalar::Text(text) => key::append_bytes(text, composite, &mut self.out),
            scan::Scalar::Integer(integer) => key::append_integer(integer, &mut self.out),
            scan::Scalar::Boolean(true) => self.out.extend_from_slice(b"true"),
            scan::Scalar::Boolean(false) => self.out.extend_from_slice(b"false"),
            scan::Scalar::Null => {
                let what = format!("the key is null, or a part of it (byte {})", place.0);
                return Err(misfit("stillwell.codec.NullKey", what));
            }
            scan::Scalar::Other(what) => {
                let what = format!(
                    "the key is {what}, or a part of it (byte {}); keys are made of strings, integers and booleans",
                    place.0
                );
                return Err(misfit("stillwell.codec.NoKey", what));
            }
        }
        Ok(())
    }
}

/// What stands in JSON before and behind the field of this name, in records of which it is the only one.
fn around(name: &str) -> [Vec<u8>; 2] {
    let steps = || name.split('.');
    let before: String = steps().map(|step| format!("{{\"{step}\":")).collect();
    [before.into_bytes(), vec![b'}'; steps().count()]]
}

/// A misfit of a key that was read as values are.
#[cold]
pub(super) fn of_key(misfit: Misfit) -> Misfit {
    let message = format!("the key does not say what the key is: {}", misfit.message);
    Misfit { stage: Stage::Key, message, ..misfit }
}

#[cold]
fn misfit(class: &'static str, message: String) -> Misfit {
    Misfit { stage: Stage::Key, class, message }
}

#[cfg(test)]
mod tests;
