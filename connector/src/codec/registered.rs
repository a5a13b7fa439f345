//! Avro datums whose schema a registry knows, by the id that comes with each of them.
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
use super::frame::{self, SchemaId, Unframed};
use super::key::Fields;
use super::{Misfit, Stage, Unread};
use crate::schema::{Malformed, Schema};

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

    #[inline]
    fn find(&mut self, id: SchemaId, stage: Stage) -> Result<&mut T, Unread> {
        let place = match self.last {
            Some((last, place)) if last == id => Some(place),
            _ => self.places.get(&id).copied(),
        };
        let Some(place) = place else { return Err(Unread::Unknown { id, stage }) };
        self.last = Some((id, place));
        match self.known.get_mut(place) {
            Some(Ok(known)) => Ok(known),
            Some(Err(misfit)) => Err(Unread::Misfit(misfit.clone())),
            None => unreachable!("places point at what is known, and both are emptied together"),
        }
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
    schema: Arc<Schema>,
    shelf: Shelf<Avro>,
}

impl Registered {
    pub fn new(schema: Arc<Schema>) -> Registered {
        Registered { schema, shelf: Shelf::new() }
    }

    /// The datum in the dataset's schema; `header` is what names the value's schema beside it, if anything does.
    pub fn decode<'a>(&'a mut self, value: &'a [u8], header: Option<&[u8]>) -> Result<&'a [u8], Unread> {
        let (id, datum) = framed(value, header).map_err(|why| unframed(why, Stage::Decode, "value"))?;
        Ok(self.shelf.find(id, Stage::Decode)?.decode(datum)?)
    }

    pub fn unknown(&self, value: &[u8], header: Option<&[u8]>) -> Option<SchemaId> {
        framed(value, header).ok().map(|(id, _)| id).filter(|id| self.shelf.lacks(*id))
    }

    pub fn learn(&mut self, id: SchemaId, writer: Result<&Arc<Schema>, &str>) {
        let known = match writer {
            Ok(writer) => Avro::new(Arc::clone(writer), &self.schema).map_err(|error| Misfit {
                stage: Stage::Validate,
                class: "stillwell.codec.Incompatible",
                message: format!("{id} of the registry: {error}"),
            }),
            Err(why) => Err(unusable(id, why, Stage::Decode)),
        };
        self.shelf.put(id, known);
    }
}

/// Reads keys: what a key says, whatever the schema's id, so that a key stays the same key when its schema gets
/// another id. A record's fields make it as `key = [FIELDS]` would.
#[derive(Debug)]
pub(super) struct Keys {
    shelf: Shelf<Key>,
    out: Vec<u8>,
}

#[derive(Debug)]
struct Key {
    schema: Arc<Schema>,
    fields: Fields,
}

impl Keys {
    pub fn new() -> Keys {
        Keys { shelf: Shelf::new(), out: Vec::new() }
    }

    /// The key of the dataset.
    pub fn decode(&mut self, key: &[u8], header: Option<&[u8]>) -> Result<&[u8], Unread> {
        let (id, datum) = framed(key, header).map_err(|why| unframed(why, Stage::Key, "key"))?;
        let Key { schema, fields } = self.shelf.find(id, Stage::Key)?;
        let whole = schema.validate(datum).and_then(|length| match length == datum.len() {
            true => Ok(()),
            false => Err(Malformed { at: length, what: "something behind the datum" }),
        });
        whole.map_err(|malformed| Misfit {
            stage: Stage::Key,
            class: "stillwell.codec.MalformedAvro",
            message: format!("the key is not an Avro datum of {id}: {malformed}"),
        })?;
        fields.write(schema, datum, &mut self.out)?;
        Ok(&self.out)
    }

    pub fn unknown(&self, key: &[u8], header: Option<&[u8]>) -> Option<SchemaId> {
        framed(key, header).ok().map(|(id, _)| id).filter(|id| self.shelf.lacks(*id))
    }

    pub fn learn(&mut self, id: SchemaId, writer: Result<&Arc<Schema>, &str>) {
        let known = match writer {
            Ok(schema) => match Fields::whole(schema) {
                Ok(fields) => Ok(Key { schema: Arc::clone(schema), fields }),
                Err(reason) => Err(Misfit {
                    stage: Stage::Key,
                    class: "stillwell.codec.NoKey",
                    message: format!("{id} of the registry does not make a key: {reason}"),
                }),
            },
            Err(why) => Err(unusable(id, why, Stage::Key)),
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
fn unframed(why: Unframed, stage: Stage, what: &str) -> Misfit {
    let class = match why {
        Unframed::Empty if stage == Stage::Decode => "stillwell.codec.EmptyValue",
        _ => "stillwell.codec.NoSchemaId",
    };
    Misfit { stage, class, message: format!("the {what} {}", why.what()) }
}

fn unusable(id: SchemaId, why: &str, stage: Stage) -> Misfit {
    Misfit {
        stage,
        class: "stillwell.codec.UnusableSchema",
        message: format!("{id} of the registry cannot be used: {why}"),
    }
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
