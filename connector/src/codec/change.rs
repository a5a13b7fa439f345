//! Changes of a database's rows, as Debezium writes them: `envelope = "debezium"`.
//!
//! ```text
//!  {"schema": …, "payload":            only where the JsonConverter writes schemas
//!     {"op": "c" | "r" | "u", "after": {row}, "before": …, "source": …, "ts_ms": …}     the row as it is
//!     {"op": "d", "before": {row} or null}                                               it is gone
//!     {"op": "t"}                                                                        all are: a misfit of its own
//! ```
//!
//! A delete is followed by a Kafka null of the same key, for compaction: it deletes what is gone already. Of `before` only
//! the key's fields are read: what a database says of the rest depends on its settings (PostgreSQL's replica identity).
//! A row of which the database left out what was not touched is a misfit: Debezium puts a placeholder there.
//!
//! Avro's rules do the work there: the row is resolved to the dataset's schema by the same act that takes it out of its
//! envelope, whatever its record is called (Debezium calls each `Value`).

use std::sync::Arc;

use memchr::memmem;

use super::json::{self, scan};
use super::room::anew;
use super::{Bound, Error, ExtraFields, Misfit, Part, Stage, Told};
use crate::schema::wire::{put_bytes, put_long};
use crate::schema::{Id, LARGE, Malformed, Node, Resolver, Schema};

/// The class of misfits that say that a table was emptied.
pub const TRUNCATED: &str = "stillwell.codec.Truncated";

/// The class of misfits whose row lacks a column that the change did not touch.
const UNAVAILABLE: &str = "stillwell.codec.UnavailableValue";

/// What stands for a value that the database did not hand out, since it lies apart from its row and was not touched: of
/// PostgreSQL's TOAST, Oracle's LOBs (Debezium's `unavailable.value.placeholder`, as it is by default), as text or bytes and as an
/// item of arrays of those.
const PLACEHOLDER: &[u8] = b"__debezium_unavailable_value";
/// The same of a binary column that is written as base64, or as hexadecimal digits (`binary.handling.mode`), and of an array of
/// UUIDs (`UUID.nameUUIDFromBytes`).
const PLACEHOLDERS: [&[u8]; 4] = [
    PLACEHOLDER,
    b"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==",
    b"5f5f646562657a69756d5f756e617661696c61626c655f76616c7565",
    b"b68a35a7-17ad-35b3-af2a-ae46edb4545a",
];

/// Finds columns that a row lacks: by what stands in their place, as it is in a datum of the dataset's schema. Text is looked for
/// with its length before it, so that text which only mentions it is not meant.
#[derive(Debug)]
struct Lacks(Box<[memmem::Finder<'static>]>);

impl Lacks {
    fn new(schema: &Schema) -> Lacks {
        let text = |text: &[u8]| {
            let mut datum = Vec::new();
            put_bytes(&mut datum, text);
            datum
        };
        let mut all: Vec<Vec<u8>> = PLACEHOLDERS.map(text).to_vec();
        // An array of numbers has its bytes as so many numbers.
        let nodes = &schema.nodes;
        for node in &nodes.all {
            let Node::Array(items) = node else { continue };
            match nodes.get(*items) {
                Node::Union(branches) => {
                    for (index, branch) in (0..).zip(branches.iter()) {
                        all.extend(numbers(nodes.get(*branch), Some(index)));
                    }
                }
                item => all.extend(numbers(item, None)),
            }
        }
        all.sort_unstable();
        all.dedup();
        Lacks(all.iter().map(|one| memmem::Finder::new(one).into_owned()).collect())
    }

    fn nothing<'a>(&self, row: &'a [u8]) -> Result<&'a [u8], Misfit> {
        match self.0.iter().any(|placeholder| placeholder.find(row).is_some()) {
            false => Ok(row),
            true => Err(unavailable()),
        }
    }
}

/// The placeholder as items of an array, each behind the index of its branch in a union.
fn numbers(item: &Node, branch: Option<i64>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for byte in PLACEHOLDER {
        if let Some(index) = branch {
            put_long(&mut out, index);
        }
        match item {
            Node::Int | Node::Long => put_long(&mut out, i64::from(*byte)),
            Node::Float => out.extend_from_slice(&f32::from(*byte).to_le_bytes()),
            Node::Double => out.extend_from_slice(&f64::from(*byte).to_le_bytes()),
            _ => return None,
        }
    }
    Some(out)
}

#[cold]
fn unavailable() -> Misfit {
    Misfit {
        stage: Stage::Validate,
        class: UNAVAILABLE,
        message: "a column that the change did not touch has __debezium_unavailable_value and not its value, which would be lost. \
                  Have the database hand out whole rows (PostgreSQL: REPLICA IDENTITY FULL), or Debezium select them anew \
                  (its ReselectColumnsPostProcessor)"
            .to_owned(),
    }
}

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Write,
    Delete,
}

fn op(text: &[u8]) -> Result<Op, Misfit> {
    match text {
        b"c" | b"r" | b"u" => Ok(Op::Write),
        b"d" => Ok(Op::Delete),
        _ => Err(strange(text)),
    }
}

#[cold]
fn strange(text: &[u8]) -> Misfit {
    match text {
        b"t" => Misfit {
            stage: Stage::Validate,
            class: TRUNCATED,
            message: "the table was truncated, and the change does not say which rows it had: they stay in the dataset. \
                      Delete their keys, as with Kafka nulls"
                .to_owned(),
        },
        _ => Misfit {
            stage: Stage::Validate,
            class: "stillwell.codec.UnknownOperation",
            message: "the change's `op` is none of c, r, u, d and t".to_owned(),
        },
    }
}

#[cold]
fn none(what: &str) -> Misfit {
    Misfit {
        stage: Stage::Decode,
        class: "stillwell.codec.NoEnvelope",
        message: format!("the value is no change as Debezium writes it: {what}"),
    }
}

#[cold]
fn no_row(op: &str) -> Misfit {
    Misfit {
        stage: Stage::Validate,
        class: "stillwell.codec.MissingField",
        message: format!("the change has no row in `after`, and its `op` is {op}"),
    }
}

/// The misfit of a delete that does not say of what.
#[cold]
pub(super) fn unsaid() -> Misfit {
    Misfit {
        stage: Stage::Key,
        class: "stillwell.codec.NullKey",
        message: "the change is a delete without `before`, and what its Kafka key says is not known: say with key_format \
                  how keys are written"
            .to_owned(),
    }
}

/// Reads changes in JSON.
pub(super) struct Json {
    after: json::Json,
    /// Where keys are made of fields: reads those.
    before: Option<json::Json>,
    lacks: Lacks,
    scratch: scan::Scratch,
}

impl std::fmt::Debug for Json {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Json({:?})", self.after)
    }
}

/// Where the parts of a change lie.
#[derive(Default)]
struct Parts {
    op: Option<scan::Place>,
    before: Option<scan::Place>,
    after: Option<scan::Place>,
    payload: Option<scan::Place>,
    twice: bool,
}

impl Json {
    pub fn new(schema: Arc<Schema>, extra_fields: ExtraFields, left: Option<&Arc<Schema>>) -> Json {
        Json {
            lacks: Lacks::new(&schema),
            after: json::Json::new(schema, extra_fields),
            before: left.map(|left| json::Json::new(Arc::clone(left), ExtraFields::Ignore)),
            scratch: scan::Scratch::default(),
        }
    }

    pub fn decode<'a>(&'a mut self, text: &[u8], bound: Bound) -> Result<Told<'a>, Misfit> {
        self.scratch.iter_mut().for_each(|buffer| anew(buffer, text.len()));
        let no_json = |what: String| Misfit {
            stage: Stage::Decode,
            class: "stillwell.codec.MalformedJson",
            message: format!("the value is not JSON: {what}"),
        };
        if let Err(error) = std::str::from_utf8(text) {
            return Err(no_json(format!("not UTF-8 (byte {})", error.valid_up_to())));
        }
        let begin = text.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(text.len());
        if text.get(begin) != Some(&b'{') {
            // For what is no object there are words.
            self.after.decode(text, bound)?;
            return Err(none("it is no object"));
        }
        let fault = |(syntax, at): scan::Fault| match syntax {
            json::DEEP => Misfit {
                stage: Stage::Validate,
                class: "stillwell.codec.TooDeep",
                message: format!("{syntax} (byte {at})"),
            },
            _ => no_json(format!("{syntax} (byte {at})")),
        };
        let (mut parts, end) = self.parts(text, begin).map_err(fault)?;
        scan::end(text, end).map_err(fault)?;
        if let (None, Some((from, _))) = (parts.op, parts.payload) {
            if text.get(from) != Some(&b'{') {
                return Err(none("its `payload` is no object"));
            }
            (parts, _) = self.parts(text, from).map_err(fault)?;
        }
        if parts.twice {
            return Err(Misfit {
                stage: Stage::Validate,
                class: "stillwell.codec.DuplicateField",
                message: "`op`, `before`, `after` or `payload` occurs twice in the change".to_owned(),
            });
        }
        let Some(place) = parts.op else { return Err(none("it has no `op`")) };
        let [_, scratch] = &mut self.scratch;
        let done = match scan::scalar(text, place, scratch) {
            scan::Scalar::Text(text) => op(text)?,
            _ => return Err(none("its `op` is no string")),
        };
        let row = |place: Option<scan::Place>| {
            place.filter(|(from, to)| text.get(*from..*to).is_some_and(|part| part != b"null"))
        };
        match (done, row(parts.after), row(parts.before), &mut self.before) {
            (Op::Write, Some(after), ..) => {
                Ok(Told::Upsert(self.lacks.nothing(self.after.decode_part(text, after, bound)?)?))
            }
            (Op::Write, None, ..) => Err(no_row("a write")),
            (Op::Delete, _, Some(before), Some(reader)) => {
                Ok(Told::Delete(Some(reader.decode_part(text, before, bound)?)))
            }
            (Op::Delete, ..) => Ok(Told::Delete(None)),
        }
    }

    fn parts(&mut self, text: &[u8], from: usize) -> Result<(Parts, usize), scan::Fault> {
        let mut parts = Parts::default();
        let end = scan::members(text, from, &mut self.scratch, |name, place| {
            let part = match name {
                b"op" => &mut parts.op,
                b"before" => &mut parts.before,
                b"after" => &mut parts.after,
                b"payload" => &mut parts.payload,
                _ => return,
            };
            parts.twice |= part.replace(place).is_some();
        })?;
        Ok((parts, end))
    }
}

/// Reads changes in Avro, all of one writer's schema.
#[derive(Debug)]
pub(super) struct Avro {
    writer: Arc<Schema>,
    after: Resolver,
    /// Where keys are made of fields: what is left of `before`.
    before: Option<Resolver>,
    lacks: Lacks,
    out: Vec<u8>,
}

impl Avro {
    pub fn new(writer: Arc<Schema>, schema: &Arc<Schema>, left: Option<&Arc<Schema>>) -> Result<Avro, Error> {
        let row = row(&writer).map_err(|what| {
            Error::Format(format!("the schema is none of a change as Debezium writes it: {what}"))
        })?;
        let take = |field: &str, schema: &Schema| {
            let reader = Arc::new(schema.in_field(field, row.envelope, row.name)?);
            // The row stands in a union, and what a branch has wrong is found with each datum of it only.
            if let (Some(from), Some(to)) = (row_in(&writer, field), row_in(&reader, field)) {
                Resolver::compare((&writer, from), (&reader, to))?;
            }
            Resolver::new(&writer, &reader)
        };
        let after = take("after", schema)?;
        let before = left.map(|left| take("before", left)).transpose()?;
        Ok(Avro { after, before, writer, lacks: Lacks::new(schema), out: Vec::new() })
    }

    pub fn decode<'a>(&'a mut self, value: &[u8], bound: Bound) -> Result<Told<'a>, Misfit> {
        let Avro { writer, after, before, lacks, out } = self;
        let writer = &*writer;
        anew(out, value.len());
        let malformed = |malformed: Malformed| {
            if malformed.what == LARGE {
                return bound.swollen();
            }
            let name = writer.nodes.title(writer.nodes.root);
            let empty = value.is_empty();
            Misfit {
                stage: Stage::Decode,
                class: if empty { "stillwell.codec.EmptyValue" } else { "stillwell.codec.MalformedAvro" },
                message: match empty {
                    true => "the value is empty; a delete is a Kafka null".to_owned(),
                    false => format!("the value is not an Avro datum of {name}: {malformed}"),
                },
            }
        };
        let part = Part::whole(writer, value).and_then(|whole| whole.field("op")).map_err(malformed)?;
        let done = match part.and_then(|part| part.as_str()) {
            Some(text) => op(text.as_bytes())?,
            None => return Err(none("its `op` is no string")),
        };
        let resolver = match (done, before) {
            (Op::Write, _) => after,
            (Op::Delete, Some(before)) => before,
            (Op::Delete, None) => {
                let whole = writer.validate(value).and_then(|length| match length == value.len() {
                    true => Ok(()),
                    false => Err(Malformed { at: length, what: "something behind the datum" }),
                });
                return whole.map(|()| Told::Delete(None)).map_err(malformed);
            }
        };
        // The byte of the union around the row is not the row's.
        resolver.resolve_within(value, out, bound.most().saturating_add(1)).map_err(malformed)?;
        // The row stands in a union with null, which comes first.
        match (out.split_first(), done) {
            (Some((0, _)) | None, Op::Write) => Err(no_row("a write")),
            (Some((0, _)) | None, Op::Delete) => Ok(Told::Delete(None)),
            (Some((_, row)), Op::Write) => Ok(Told::Upsert(lacks.nothing(row)?)),
            (Some((_, row)), Op::Delete) => Ok(Told::Delete(Some(row))),
        }
    }
}

/// The record that a field holds, or holds besides null.
fn row_in(schema: &Schema, field: &str) -> Option<Id> {
    let nodes = &schema.nodes;
    let Node::Record(change) = nodes.get(nodes.root) else { return None };
    let node = change.field(field.as_bytes()).and_then(|at| change.fields.get(at))?.node;
    let is_row = |id: &Id| matches!(nodes.get(*id), Node::Record(_));
    match nodes.get(node) {
        Node::Union(branches) => branches.iter().copied().find(is_row),
        _ => Some(node).filter(is_row),
    }
}

/// What names there are in a change's schema.
struct Names<'a> {
    /// Of the change's own record.
    envelope: &'a str,
    /// Of the row's.
    name: Option<&'a str>,
}

fn row(writer: &Schema) -> Result<Names<'_>, String> {
    let nodes = &writer.nodes;
    let Node::Record(record) = nodes.get(nodes.root) else {
        return Err(format!("it is {}", nodes.title(nodes.root)));
    };
    let field = |name: &str| {
        let at = record.field(name.as_bytes()).and_then(|at| record.fields.get(at));
        at.map(|field| field.node).ok_or_else(|| format!("{} has no field `{name}`", record.name.full))
    };
    let is_text = |id: Id| matches!(nodes.get(id), Node::String | Node::Enum(_));
    let op = field("op")?;
    let says = match nodes.get(op) {
        Node::Union(branches) => branches.iter().any(|branch| is_text(*branch)),
        _ => is_text(op),
    };
    if !says {
        return Err(format!("its field `op` is {}", nodes.title(op)));
    }
    field("after")?;
    field("before")?;
    let name = row_in(writer, "after").map(|row| &*nodes.record(row).name.full);
    Ok(Names { envelope: &record.name.full, name })
}

#[cfg(test)]
mod tests;
