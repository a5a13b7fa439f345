//! Datums and messages whose schema a registry knows, by the id that comes with each of them.
//!
//! ```text
//!  id ---shelf---> known: the writer's schema, compared with the dataset's once --> passed through, or resolved
//!                  not known: the record waits, whoever reads asks the registry and teaches (`Codec::learn`)
//! ```
//!
//! A shelf belongs to one thread and takes no lock. Schemas of an id never change, so nothing on it gets old; it is
//! emptied when it is full, which only a topic with thousands of schemas does.

use std::collections::HashMap;
use std::sync::Arc;

use super::avro::Avro;
use super::frame::{self, KEY_HEADER, SchemaId, Unframed, VALUE_HEADER};
use super::key::Fields;
use super::proto::{self, File, Message, Protobuf};
use super::{Bound, Kind, Misfit, Stage, Told, Unread, Written, change, keys};
use crate::schema::Schema;

/// Most schemas on a shelf.
const MOST: usize = 1_000;

/// What is known of schemas, by their ids.
#[derive(Debug)]
struct Shelf<T> {
    places: HashMap<SchemaId, usize>,
    known: Vec<Result<T, Misfit>>,
    /// Where the last one was found: the next record most likely has the same.
    last: Option<(SchemaId, usize)>,
}

impl<T> Shelf<T> {
    fn new() -> Shelf<T> {
        Shelf { places: HashMap::new(), known: Vec::new(), last: None }
    }

    #[inline(always)]
    fn find(&mut self, id: SchemaId, stage: Stage) -> Result<&mut T, Unread> {
        let place = match self.last {
            Some((last, place)) if last == id => place,
            _ => self.look_up(id).ok_or(Unread::Unknown { id, stage })?,
        };
        match self.known.get_mut(place) {
            Some(Ok(known)) => Ok(known),
            Some(Err(misfit)) => Err(again(misfit)),
            None => unreachable!("places point at what is known, and both are emptied together"),
        }
    }

    #[inline(never)]
    fn look_up(&mut self, id: SchemaId) -> Option<usize> {
        let place = *self.places.get(&id)?;
        self.last = Some((id, place));
        Some(place)
    }

    fn lacks(&self, id: SchemaId) -> bool {
        !self.places.contains_key(&id)
    }

    fn put(&mut self, id: SchemaId, known: Result<T, Misfit>) {
        if self.known.len() >= MOST {
            self.places.clear();
            self.known.clear();
            self.last = None;
        }
        let place = self.known.len();
        self.known.push(known);
        self.places.insert(id, place);
        self.last = None;
    }
}

/// Reads values.
#[derive(Debug)]
pub(super) struct Registered {
    kind: Kind,
    schema: Arc<Schema>,
    /// In Debezium's envelope.
    changes: bool,
    /// The schema of the key's fields, where a change may be a delete that has to say them.
    left: Option<Arc<Schema>>,
    shelf: Shelf<Reader>,
}

/// What reads the values of one schema of the registry's.
#[derive(Debug)]
enum Reader {
    Avro(Avro),
    Changes(change::Avro),
    Protobuf(Types<Protobuf>),
}

impl Registered {
    pub fn new(kind: Kind, schema: Arc<Schema>, changes: bool, left: Option<Arc<Schema>>) -> Registered {
        Registered { kind, schema, changes, left, shelf: Shelf::new() }
    }

    /// The datum in the dataset's schema; `header` is what names the value's schema beside it, if anything does.
    #[inline(always)]
    pub fn decode<'a>(
        &'a mut self,
        value: &'a [u8],
        header: Option<&[u8]>,
        bound: Bound,
    ) -> Result<Told<'a>, Unread> {
        let (id, datum) = framed(value, header).map_err(|why| unframed(why, Stage::Decode, header))?;
        match self.shelf.find(id, Stage::Decode)? {
            Reader::Avro(avro) => Ok(Told::Upsert(avro.decode(datum, bound)?)),
            Reader::Changes(changes) => Ok(changes.decode(datum, bound)?),
            Reader::Protobuf(types) => message(types, &self.schema, (id, datum), header, bound),
        }
    }

    pub fn unknown(&self, value: &[u8], header: Option<&[u8]>) -> Option<SchemaId> {
        framed(value, header).ok().map(|(id, _)| id).filter(|id| self.shelf.lacks(*id))
    }

    pub fn learn(&mut self, id: SchemaId, written: Result<&Written, &str>) {
        let incompatible = |error: super::Error| Misfit {
            stage: Stage::Validate,
            class: "stillwell.codec.Incompatible",
            message: format!("{id} of the registry: {error}"),
        };
        let known = match (written, self.kind) {
            (Ok(Written::Avro(writer)), Kind::Avro) if self.changes => {
                let reader = change::Avro::new(Arc::clone(writer), &self.schema, self.left.as_ref());
                reader.map(Reader::Changes).map_err(incompatible)
            }
            (Ok(Written::Avro(writer)), Kind::Avro) => {
                Avro::new(Arc::clone(writer), &self.schema).map(Reader::Avro).map_err(incompatible)
            }
            (Ok(Written::Protobuf(file)), Kind::Protobuf) => {
                Ok(Reader::Protobuf(Types::new(Arc::clone(file))))
            }
            (Ok(other), kind) => Err(other_kind(id, other, kind.name(), Stage::Decode)),
            (Err(why), _) => Err(unusable(id, why, Stage::Decode)),
        };
        self.shelf.put(id, known);
    }
}

/// Apart, so that what Avro takes is small enough to be inlined.
#[inline(never)]
fn message<'a>(
    types: &'a mut Types<Protobuf>,
    schema: &Arc<Schema>,
    (id, bytes): (SchemaId, &'a [u8]),
    header: Option<&[u8]>,
    bound: Bound,
) -> Result<Told<'a>, Unread> {
    let make = |message: &Message| Protobuf::new(message, schema);
    let (messages, bytes) = types.find(id, bytes, header, Stage::Decode, make)?;
    Ok(Told::Upsert(messages.decode(bytes, bound)?))
}

#[cold]
fn again(misfit: &Misfit) -> Unread {
    Unread::Misfit(misfit.clone())
}

/// Checks the ids of values that need no schema: JSON says itself what it holds.
#[derive(Debug)]
pub(super) struct Ids(Shelf<()>);

impl Ids {
    pub fn new() -> Ids {
        Ids(Shelf::new())
    }

    /// What is behind the id, where that is known as one of a JSON schema.
    pub fn check<'a>(&mut self, value: &'a [u8], header: Option<&[u8]>) -> Result<&'a [u8], Unread> {
        let (id, text) = framed(value, header).map_err(|why| unframed(why, Stage::Decode, header))?;
        self.0.find(id, Stage::Decode)?;
        Ok(text)
    }

    pub fn unknown(&self, value: &[u8], header: Option<&[u8]>) -> Option<SchemaId> {
        framed(value, header).ok().map(|(id, _)| id).filter(|id| self.0.lacks(*id))
    }

    pub fn learn(&mut self, id: SchemaId, written: Result<&Written, &str>) {
        let known = match written {
            Ok(Written::Json) => Ok(()),
            Ok(other) => Err(other_kind(id, other, "JSON", Stage::Decode)),
            Err(why) => Err(unusable(id, why, Stage::Decode)),
        };
        self.0.put(id, known);
    }
}

/// A type's place in its file, and what reads it, or why nothing does.
type Known<R> = (Box<[u32]>, Result<R, Misfit>);

/// The types of a file of the registry's, each read once something is of it.
#[derive(Debug)]
struct Types<R> {
    file: Arc<File>,
    /// Few: a topic has one or two.
    known: Vec<Known<R>>,
    path: Vec<u32>,
}

impl<R> Types<R> {
    fn new(file: Arc<File>) -> Types<R> {
        Types { file, known: Vec::new(), path: Vec::new() }
    }

    /// What reads the message, and the message, behind the indexes that say which type of the file it is of.
    fn find<'a>(
        &mut self,
        id: SchemaId,
        bytes: &'a [u8],
        header: Option<&[u8]>,
        stage: Stage,
        make: impl FnOnce(&Message) -> Result<R, super::Error>,
    ) -> Result<(&mut R, &'a [u8]), Misfit> {
        let Types { file, known, path } = self;
        let bytes = match header.and_then(|header| frame::split(header).ok()) {
            // Beside the id, they stand behind it, or are left out: the first.
            Some((_, [])) => {
                path.clear();
                path.push(0);
                Some(bytes)
            }
            Some((_, indexes)) => frame::indexes(indexes, path).filter(|rest| rest.is_empty()).map(|_| bytes),
            None => frame::indexes(bytes, path),
        };
        let Some(bytes) = bytes else {
            return Err(Misfit {
                stage,
                class: "stillwell.codec.NoMessageIndex",
                message: format!(
                    "the list of indexes behind {id} is none: it says which message of the file it is"
                ),
            });
        };
        let place = known.iter().position(|(known, _)| **known == **path);
        let place = match place {
            Some(place) => place,
            None => {
                let Some(message) = file.message(path) else {
                    return Err(Misfit {
                        stage,
                        class: "stillwell.codec.UnknownMessage",
                        message: format!("{id} of the registry has no message at the indexes {path:?}"),
                    });
                };
                let reader = make(&message).map_err(|error| Misfit {
                    stage: if stage == Stage::Key { stage } else { Stage::Validate },
                    class: "stillwell.codec.Incompatible",
                    message: format!("{} of {id} of the registry: {error}", message.name()),
                });
                known.push((path.as_slice().into(), reader));
                known.len() - 1
            }
        };
        match known.get_mut(place) {
            Some((_, Ok(reader))) => Ok((reader, bytes)),
            Some((_, Err(misfit))) => Err(misfit.clone()),
            None => unreachable!("it was found or pushed"),
        }
    }
}

/// Reads keys: what a key says, whatever the schema's id, so that a key stays the same key when its schema gets
/// another id. A record's fields make it as `key = [FIELDS]` would.
#[derive(Debug)]
pub(super) struct Keys {
    kind: Kind,
    /// The fields that keys are made of, where they are.
    names: Vec<String>,
    shelf: Shelf<Key>,
    out: Vec<u8>,
}

#[derive(Debug)]
enum Key {
    Avro { schema: Arc<Schema>, fields: Fields },
    Protobuf(Types<proto::Key>),
}

impl Keys {
    pub fn new(kind: Kind, names: &[String]) -> Keys {
        Keys { kind, names: names.to_vec(), shelf: Shelf::new(), out: Vec::new() }
    }

    /// The key of the dataset.
    pub fn decode(&mut self, key: &[u8], header: Option<&[u8]>) -> Result<&[u8], Unread> {
        let (id, datum) = framed(key, header).map_err(|why| unframed(why, Stage::Key, header))?;
        let (schema, fields) = match self.shelf.find(id, Stage::Key)? {
            Key::Avro { schema, fields } => (schema, fields),
            Key::Protobuf(types) => {
                let make = |message: &Message| proto::Key::new(message, &self.names);
                let (keys, message) = types.find(id, datum, header, Stage::Key, make)?;
                return Ok(keys.decode(message)?);
            }
        };
        keys::write(schema, fields, datum, id, &mut self.out)?;
        Ok(&self.out)
    }

    pub fn unknown(&self, key: &[u8], header: Option<&[u8]>) -> Option<SchemaId> {
        framed(key, header).ok().map(|(id, _)| id).filter(|id| self.shelf.lacks(*id))
    }

    pub fn learn(&mut self, id: SchemaId, written: Result<&Written, &str>) {
        let known = match (written, self.kind) {
            (Ok(Written::Avro(schema)), Kind::Avro) => match Fields::named_or_whole(schema, &self.names) {
                Ok(fields) => Ok(Key::Avro { schema: Arc::clone(schema), fields }),
                Err(reason) => Err(Misfit {
                    stage: Stage::Key,
                    class: "stillwell.codec.NoKey",
                    message: format!("{id} of the registry does not make a key: {reason}"),
                }),
            },
            (Ok(Written::Protobuf(file)), Kind::Protobuf) => Ok(Key::Protobuf(Types::new(Arc::clone(file)))),
            (Ok(other), kind) => Err(other_kind(id, other, kind.name(), Stage::Key)),
            (Err(why), _) => Err(unusable(id, why, Stage::Key)),
        };
        self.shelf.put(id, known);
    }
}

#[inline]
fn framed<'a>(bytes: &'a [u8], header: Option<&[u8]>) -> Result<(SchemaId, &'a [u8]), Unframed> {
    match header {
        None => frame::split(bytes),
        Some(header) => frame::in_header(header).map(|id| (id, bytes)),
    }
}

#[cold]
fn unframed(why: Unframed, stage: Stage, header: Option<&[u8]>) -> Misfit {
    let class = match why {
        Unframed::Empty if stage == Stage::Decode && header.is_none() => "stillwell.codec.EmptyValue",
        _ => "stillwell.codec.NoSchemaId",
    };
    let (part, name) = match stage {
        Stage::Key => ("key", KEY_HEADER),
        _ => ("value", VALUE_HEADER),
    };
    let message = match (header, why) {
        (None, why) => format!("the {part} {}", why.what()),
        (Some(_), Unframed::Empty) => format!("the header {name} is empty, where a schema's id should be"),
        (Some(_), why) => format!("the header {name} {}", why.what()),
    };
    Misfit { stage, class, message }
}

fn unusable(id: SchemaId, why: &str, stage: Stage) -> Misfit {
    Misfit {
        stage,
        class: "stillwell.codec.UnusableSchema",
        message: format!("{id} of the registry cannot be used: {why}"),
    }
}

#[cold]
fn other_kind(id: SchemaId, written: &Written, wanted: &str, stage: Stage) -> Misfit {
    unusable(id, &format!("it is of type {}, not {wanted}", written.kind()), stage)
}

/// The misfit of a record whose schema the registry does not know.
pub(super) fn unknown(id: SchemaId, stage: Stage) -> Misfit {
    Misfit {
        stage,
        class: "stillwell.codec.UnknownSchema",
        message: format!(
            "the registry does not know {id}: another registry's, or its schema was deleted for good"
        ),
    }
}

#[cfg(test)]
mod tests;
