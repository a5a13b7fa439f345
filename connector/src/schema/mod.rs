//! Schemas: what a dataset's values look like, compiled once so that bytes can be walked without looking at JSON again.
//!
//! ```text
//!  .avsc text --parse--> nodes (an arena; named types by index, so recursion is an index that points back)
//!                          |-- canonical  parsing canonical form, CRC-64-AVRO fingerprint
//!                          |-- default    each field's default, already encoded
//!                          |-- project    the same with some of its fields only
//!                          |-- refer      types of other texts, put where they are mentioned
//!                          |-- skip       the length of a datum; every byte may be hostile
//!                          '-- resolve    writer's datum -> reader's datum, by Avro's resolution rules
//! ```
//!
//! Owns: Avro schemas, their identity, the shape of their datums. Does not own: JSON values and keys (`codec/`), blobs
//! and announcements (`format/`).
//!
//! Written against the Avro 1.12 specification; `apache-avro` is the reference in the tests. Why not `apache-avro`
//! itself: it decodes into a tree of values (2.8 µs a record); what is done here per record needs no tree at all.

use std::fmt;

mod canonical;
mod default;
mod entry;
pub(crate) mod node;
mod parse;
mod project;
mod refer;
mod resolve;
pub(crate) mod skip;
pub mod wire;

use parse::Whose;

pub(crate) use node::{Decimal, Id, Logical, Node, Unit};
pub use resolve::Resolver;

/// Deepest nesting of records, arrays and maps in one value, in JSON and in Avro alike. Deeper ones are refused, since
/// every walk over a value recurses and a thread's stack ends. The figure is `serde_json`'s.
pub const MAX_DEPTH: usize = 128;

/// Most array items in one datum that take no bytes at all (nulls, empty records). Without a limit five hostile bytes
/// could claim four billion of them.
pub const MAX_EMPTY_ITEMS: usize = 1 << 16;

/// What is wrong with a datum that would be longer than it may be ([`Resolver::resolve_within`]).
pub const LARGE: &str = "it would be longer than it may be";

/// Why a schema cannot be used. None goes away by itself: somebody changes the schema.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not JSON.
    #[error("the schema is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// The JSON is not an Avro schema.
    #[error("not a valid Avro schema: {at}: {reason}")]
    Invalid {
        /// Where in the schema.
        at: String,
        /// What is wrong there.
        reason: String,
    },
    /// A valid schema that cannot be a dataset's own.
    #[error("the schema cannot be a dataset's: {0}")]
    Unsuitable(String),
    /// Data of the writer's schema cannot be read as the reader's.
    #[error("the writer's schema does not resolve to the dataset's: {}", Mismatch::list(.0))]
    Incompatible(Vec<Mismatch>),
}

/// Where two schemas do not resolve, and by which rule of Avro's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The way to it: names of fields, `items`, `values`.
    pub at: String,
    /// The rule that fails.
    pub rule: String,
}

impl Mismatch {
    /// All of them in one line.
    pub fn list(mismatches: &[Mismatch]) -> String {
        mismatches.iter().map(|one| format!("{}: {}", one.at, one.rule)).collect::<Vec<_>>().join("; ")
    }
}

impl Error {
    /// Whether trying again can help: never.
    pub fn is_transient(&self) -> bool {
        false
    }
}

/// Bytes that are not a datum of the schema. Carries no content, so that it may be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {what}")]
pub struct Malformed {
    /// Offset of the byte at which it was seen.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

/// An Avro schema, parsed and compiled. Immutable; share it in an `Arc`.
pub struct Schema {
    json: Box<str>,
    canonical: Box<str>,
    fingerprint: u64,
    pub(crate) nodes: node::Nodes,
}

impl Schema {
    /// Parses any Avro schema.
    ///
    /// Names are checked strictly, since blobs must be readable by any Avro tool. A default of a union may fit any
    /// branch (the first that does is taken, as in Avro 1.12). Logical types stay in [`Schema::json`] and change
    /// nothing else, save that decimals of different scale do not resolve.
    ///
    /// # Errors
    /// [`Error::NotJson`], [`Error::Invalid`].
    pub fn parse(json: &str) -> Result<Schema, Error> {
        Schema::parse_as(json, Whose::Ours)
    }

    /// Parses the schema of somebody who has written records with it: as [`Schema::parse`], but names may have any characters
    /// save quotes, backslashes and control characters, and defaults, which only a reader's schema needs, are not looked at.
    ///
    /// # Errors
    /// As [`Schema::parse`].
    pub fn writers(json: &str) -> Result<Schema, Error> {
        Schema::parse_as(json, Whose::Writers)
    }

    fn parse_as(json: &str, whose: Whose) -> Result<Schema, Error> {
        let value: serde_json::Value = serde_json::from_str(json).map_err(Error::NotJson)?;
        let nodes = parse::parse(&value, whose)?;
        let canonical = canonical::form(&nodes);
        Ok(Schema {
            json: minify(json).into(),
            fingerprint: canonical::crc64(canonical.as_bytes()),
            canonical: canonical.into(),
            nodes,
        })
    }

    /// Parses a [writer's](Schema::writers) schema that mentions types which other texts define; [`Schema::json`] is one text
    /// with all of them.
    ///
    /// # Errors
    /// As [`Schema::parse`].
    pub fn with_references<'t>(
        json: &str,
        others: impl IntoIterator<Item = &'t str>,
    ) -> Result<Schema, Error> {
        Schema::writers(&refer::inline(json, others)?)
    }

    /// Parses a dataset's own schema: one that can stand in `["null", S]`, which is the type of a value in a blob.
    ///
    /// # Errors
    /// As [`Schema::parse`], and [`Error::Unsuitable`] with the reason.
    pub fn dataset(json: &str) -> Result<Schema, Error> {
        let schema = Schema::parse(json)?;
        let reason = match schema.nodes.get(schema.nodes.root) {
            Node::Union(_) => Some(
                "it is a union at the top; a value stands in [\"null\", S] and unions do not nest: wrap it in a record",
            ),
            Node::Null => Some("it is null at the top, and null means deleted"),
            _ => None,
        };
        if let Some(reason) = reason {
            return Err(Error::Unsuitable(reason.into()));
        }
        if schema.nodes.named(entry::NAME).is_some() {
            return Err(Error::Unsuitable(format!(
                "it defines {}, the name of the record that holds a value in a blob: rename it",
                entry::NAME
            )));
        }
        Ok(schema)
    }

    /// The same with some of the fields of its outermost record only, in their order: a reader's schema, to which every
    /// datum of this one resolves.
    ///
    /// # Errors
    /// [`Error::Unsuitable`]: it is no record, has no such field, or a type could not be named any more.
    pub fn only(&self, fields: &[String]) -> Result<Schema, Error> {
        Schema::dataset(&project::json(&self.json, fields)?)
    }

    /// The same without the defaults of its fields: a value has to have them all.
    ///
    /// # Errors
    /// As [`Schema::parse`]: nothing that a schema holds should lead to one.
    pub fn without_defaults(&self) -> Result<Schema, Error> {
        Schema::parse(&project::without_defaults(&self.json)?)
    }

    /// The schema of `format = "raw"`: bytes, taken as they come.
    pub fn raw() -> Schema {
        Schema::parse(r#"{"type":"bytes"}"#).expect("a schema of one primitive type is valid")
    }

    /// The text it was parsed from, without the whitespace.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The parsing canonical form: equal for schemas whose datums are encoded alike.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// CRC-64-AVRO of the parsing canonical form.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Whether a datum of one is a datum of the other, byte for byte. Compares the canonical forms themselves: a
    /// 64-bit CRC can collide.
    pub fn encodes_like(&self, other: &Schema) -> bool {
        self.fingerprint == other.fingerprint && self.canonical == other.canonical
    }

    /// Whether both are the same text, so that what does not change a datum is the same too: defaults, aliases, logical
    /// types. With or without the namespace that [`Schema::entry_json`] adds.
    pub fn is_same_as(&self, other: &Schema) -> bool {
        self.json == other.json || self.encodes_like(other) && self.entry_json() == other.entry_json()
    }

    /// XXH3-64 of the text, the same for schemas that [are the same](Schema::is_same_as).
    pub fn text_hash(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(self.entry_json().as_bytes())
    }

    /// Whether it is the schema of raw bytes.
    pub fn is_raw(&self) -> bool {
        matches!(self.nodes.get(self.nodes.root), Node::Bytes)
    }

    /// The length of the datum at the start of `bytes`.
    ///
    /// Checks everything that the length depends on, and indexes of unions and enums, but not that text is UTF-8:
    /// meant for bytes that were validated once. Allocates nothing; takes about 2 ns a field.
    ///
    /// # Errors
    /// [`Malformed`] where the bytes end early or no datum of this schema looks so, for whatever bytes.
    pub fn skip(&self, bytes: &[u8]) -> Result<usize, Malformed> {
        skip::datum::<false>(&self.nodes, bytes)
    }

    /// As [`Schema::skip`], and checks that all text is UTF-8: meant for bytes that come from outside.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn validate(&self, bytes: &[u8]) -> Result<usize, Malformed> {
        skip::datum::<true>(&self.nodes, bytes)
    }

    /// A reader's schema that takes a value of this one out of a record's field: a record `{field: [null, this]}`, which goes
    /// by the name of `envelope`, and this schema's own record by that of `row`, too.
    ///
    /// # Errors
    /// As [`Schema::parse`]: nothing that a schema holds should lead to one.
    pub fn in_field(&self, field: &str, envelope: &str, row: Option<&str>) -> Result<Schema, Error> {
        Schema::parse(&entry::in_field(&self.json, field, envelope, row)?)
    }

    /// The Avro schema of a blob's entry that holds this schema's values (docs/formats.md, "Blobs").
    ///
    /// This schema is inlined as it was given. Only where its outermost named type has no namespace, an empty one is
    /// added: without it the type would move into the namespace of the entry.
    pub fn entry_json(&self) -> String {
        entry::json(&self.json)
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schema({:016x} {})", self.fingerprint, self.json)
    }
}

/// `json` without the whitespace between its tokens; it is known to be JSON. Not by way of a value, which would lose
/// the order of attributes.
fn minify(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let (mut inside, mut escaped) = (false, false);
    for char in json.chars() {
        if inside {
            inside = escaped || char != '"';
            escaped = !escaped && char == '\\';
        } else if char == '"' {
            inside = true;
        } else if char.is_ascii_whitespace() {
            continue;
        }
        out.push(char);
    }
    out
}

#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
mod tests;
