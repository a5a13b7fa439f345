//! A part of a datum: reached by field names, without decoding what lies beside it.

use crate::schema::node::Nodes;
use crate::schema::wire::{take_bytes, take_int, take_long};
use crate::schema::{Id, MAX_DEPTH, Malformed, Node, Schema, skip};

/// A value within a datum (or the datum itself), its type known, its bytes untouched. Never a union: it is the branch
/// that the union holds. Costs nothing to copy.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    nodes: &'a Nodes,
    id: Id,
    /// From the value's beginning to the end of the whole datum.
    bytes: &'a [u8],
    /// Bytes of the whole datum before it.
    before: usize,
}

impl<'a> Part<'a> {
    /// The whole of a datum.
    ///
    /// # Errors
    /// [`Malformed`], as in all of these methods: where the bytes that it looks at are no datum of the schema.
    pub fn whole(schema: &'a Schema, datum: &'a [u8]) -> Result<Part<'a>, Malformed> {
        Part::new(&schema.nodes, schema.nodes.root, datum, 0)
    }

    /// Schema, node, bytes to the end of the whole datum, and how many there are before them.
    pub(super) fn inside(&self) -> (&'a Nodes, Id, &'a [u8], usize) {
        (self.nodes, self.id, self.bytes, self.before)
    }

    /// The names of its fields; none where it is no record.
    pub fn field_names(&self) -> impl Iterator<Item = &'a str> {
        let fields = match self.nodes.get(self.id) {
            Node::Record(record) => record.fields.as_slice(),
            _ => &[],
        };
        fields.iter().map(|field| &*field.name)
    }

    /// Steps into a union's branch.
    fn new(
        nodes: &'a Nodes,
        mut id: Id,
        mut bytes: &'a [u8],
        mut before: usize,
    ) -> Result<Part<'a>, Malformed> {
        if let Node::Union(branches) = nodes.get(id) {
            let length = bytes.len();
            let index = take_int(&mut bytes).and_then(|index| usize::try_from(index).ok());
            let what = "a union has no branch of this index";
            id = *index.and_then(|index| branches.get(index)).ok_or(Malformed { at: before, what })?;
            before += length - bytes.len();
        }
        Ok(Part { nodes, id, bytes, before })
    }

    /// A field of a record, by name; `None` where this is no record, or the record has no such field.
    ///
    /// Skips the fields before it (about 2 ns each) and looks at nothing behind it.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn field(&self, name: &str) -> Result<Option<Part<'a>>, Malformed> {
        let Node::Record(record) = self.nodes.get(self.id) else { return Ok(None) };
        match record.field(name.as_bytes()) {
            Some(at) => self.nth(at),
            None => Ok(None),
        }
    }

    /// A field of a record, by its place.
    pub(super) fn nth(&self, at: usize) -> Result<Option<Part<'a>>, Malformed> {
        let Node::Record(record) = self.nodes.get(self.id) else { return Ok(None) };
        let Some((before, [wanted, ..])) = record.fields.split_at_checked(at) else { return Ok(None) };
        let mut rest = self.bytes;
        for field in before {
            skip::value::<false>(self.nodes, field.node, &mut rest, MAX_DEPTH, &mut 0)
                .map_err(|what| Malformed { at: self.before + self.bytes.len() - rest.len(), what })?;
        }
        Part::new(self.nodes, wanted.node, rest, self.before + self.bytes.len() - rest.len()).map(Some)
    }

    /// Exactly its bytes.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn datum(&self) -> Result<&'a [u8], Malformed> {
        let mut rest = self.bytes;
        skip::value::<false>(self.nodes, self.id, &mut rest, MAX_DEPTH, &mut 0)
            .map_err(|what| Malformed { at: self.before + self.bytes.len() - rest.len(), what })?;
        Ok(self.bytes.get(..self.bytes.len() - rest.len()).unwrap_or_default())
    }

    /// The name of its type: a primitive type's, or a named type's full name.
    pub fn type_name(&self) -> &'a str {
        self.nodes.title(self.id)
    }

    /// Whether it is null.
    pub fn is_null(&self) -> bool {
        matches!(self.nodes.get(self.id), Node::Null)
    }

    /// A boolean's value; `None`, here and below: it is of another type.
    pub fn as_bool(&self) -> Option<bool> {
        match (self.nodes.get(self.id), self.bytes.first()) {
            (Node::Boolean, Some(0)) => Some(false),
            (Node::Boolean, Some(1)) => Some(true),
            _ => None,
        }
    }

    /// An int's or long's value.
    pub fn as_i64(&self) -> Option<i64> {
        match self.nodes.get(self.id) {
            Node::Int => take_int(&mut { self.bytes }).map(i64::from),
            Node::Long => take_long(&mut { self.bytes }),
            _ => None,
        }
    }

    /// A float's or double's value.
    pub fn as_f64(&self) -> Option<f64> {
        match self.nodes.get(self.id) {
            Node::Float => self.bytes.first_chunk().map(|bytes| f32::from_le_bytes(*bytes).into()),
            Node::Double => self.bytes.first_chunk().map(|bytes| f64::from_le_bytes(*bytes)),
            _ => None,
        }
    }

    /// A string's text or an enum's symbol; `None` also for a string that is not UTF-8.
    pub fn as_str(&self) -> Option<&'a str> {
        match self.nodes.get(self.id) {
            Node::String => std::str::from_utf8(take_bytes(&mut { self.bytes })?).ok(),
            Node::Enum(symbols) => {
                let index = usize::try_from(take_int(&mut { self.bytes })?).ok()?;
                symbols.symbols.get(index).map(|symbol| &**symbol)
            }
            _ => None,
        }
    }

    /// The content of bytes, a fixed or a string.
    pub fn as_bytes(&self) -> Option<&'a [u8]> {
        match self.nodes.get(self.id) {
            Node::Bytes | Node::String => take_bytes(&mut { self.bytes }),
            Node::Fixed(fixed) => self.bytes.get(..fixed.size),
            _ => None,
        }
    }

    /// Appends it as JSON.
    ///
    /// # Errors
    /// [`Malformed`]; what was appended by then is cut off again.
    pub fn write_json(&self, out: &mut String) -> Result<(), Malformed> {
        let start = out.len();
        let mut rest = self.bytes;
        super::text::value(self.nodes, self.id, &mut rest, out).map_err(|what| {
            out.truncate(start);
            Malformed { at: self.before + self.bytes.len() - rest.len(), what }
        })
    }
}

impl std::fmt::Debug for Part<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Part({} at byte {})", self.type_name(), self.before)
    }
}
