//! What went wrong in a text, kept as plain data while union branches are tried, and made into words at the end.

use std::fmt::Write as _;

use super::lex::Syntax;
use crate::codec::{Misfit, Stage};
use crate::schema::node::Nodes;
use crate::schema::{Id, Node};

/// The text was left at a failure; what it was is in the pass.
#[derive(Debug)]
pub(super) struct Stop;

/// A failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Not JSON.
    Syntax(Syntax),
    /// A value of another type than the node's.
    Type(Id),
    /// A number with fraction or exponent where the node is an integer.
    Fraction(Id),
    /// A number that the node's type cannot hold.
    Range(Id),
    /// A string that is none of the enum's symbols.
    Symbol(Id),
    /// Text that is not base64.
    Base64(Id),
    /// Base64 of another number of bytes than the fixed has.
    Size(Id, usize),
    /// A field without default is not there.
    Missing(Id, usize),
    /// A field that the record does not have; the name's place in the text.
    Unknown(Id, usize, usize),
    /// A field twice.
    Twice,
    /// A map's key twice.
    KeyTwice,
    /// Too deep.
    Deep,
    /// Too many items that take no bytes.
    Empty,
    /// The datum has more bytes than it may; said by the bound itself.
    Large,
    /// Union branches were tried too often.
    Ambiguous,
}

impl What {
    /// Whether no other branch of a union can do better.
    pub fn is_final(self) -> bool {
        matches!(self, What::Syntax(_) | What::Deep | What::Ambiguous | What::Empty | What::Large)
    }
}

/// One step of the way from the root to a failure, noted innermost first.
#[derive(Clone, Copy, Debug)]
pub(super) enum Segment {
    /// A field of a record.
    Field(Id, usize),
    /// An item of a list.
    Item(usize),
    /// A map's value; the key's place in the text.
    Key(usize, usize),
    /// A branch of a union, where several were tried.
    Branch(Id),
}

/// Puts a failure into words. `at` is the byte at which it was seen.
pub(super) fn misfit(nodes: &Nodes, text: &[u8], what: What, at: usize, trail: &[Segment]) -> Misfit {
    let expected = |id| expected(nodes, id);
    let found = found(text.get(at).copied());
    let (class, reason) = match what {
        What::Syntax(syntax) => {
            return Misfit {
                stage: Stage::Decode,
                class: "stillwell.codec.MalformedJson",
                message: format!("the value is not JSON: {syntax} (byte {at})"),
            };
        }
        What::Type(id) => ("stillwell.codec.WrongType", format!("expected {}, found {found}", expected(id))),
        What::Fraction(id) => (
            "stillwell.codec.WrongType",
            format!("expected {}, found a number with fraction or exponent", expected(id)),
        ),
        What::Range(id) => (
            "stillwell.codec.OutOfRange",
            format!("expected {}, found a number out of its range", expected(id)),
        ),
        What::Symbol(id) => {
            ("stillwell.codec.UnknownSymbol", format!("expected {}, found another string", expected(id)))
        }
        What::Base64(id) => (
            "stillwell.codec.WrongEncoding",
            format!("expected {}, found a string that is not base64", expected(id)),
        ),
        What::Size(id, size) => {
            ("stillwell.codec.WrongSize", format!("expected {}, found {size} bytes", expected(id)))
        }
        What::Missing(record, field) => {
            let field = nodes.record(record).fields.get(field);
            let name = field.map_or("", |field| &field.name);
            let kind = field.map_or_else(String::new, |field| expected(field.node));
            (
                "stillwell.codec.MissingField",
                format!("the field `{name}` is missing; expected {kind}, it has no default"),
            )
        }
        What::Unknown(record, from, to) => {
            let record = &nodes.record(record).name.full;
            ("stillwell.codec.UnknownField", format!("{record} has no field `{}`", name(text, from, to)))
        }
        What::Twice => ("stillwell.codec.DuplicateField", "the field occurs twice".to_owned()),
        What::KeyTwice => ("stillwell.codec.DuplicateField", "the key occurs twice".to_owned()),
        What::Deep => ("stillwell.codec.TooDeep", "nested deeper than 128 levels".to_owned()),
        What::Empty => {
            ("stillwell.codec.TooLarge", "more than 65536 list items that take no bytes".to_owned())
        }
        What::Large => ("stillwell.codec.TooLarge", "it would be larger than it may be".to_owned()),
        What::Ambiguous => (
            "stillwell.codec.AmbiguousUnion",
            "too many branches of nested unions fit its beginning; make them differ".to_owned(),
        ),
    };
    let mut message = String::new();
    let path = path(nodes, text, trail);
    if !path.is_empty() {
        let _ = write!(message, "`{path}`: ");
    }
    let _ = write!(message, "{reason} (byte {at})");
    Misfit { stage: Stage::Validate, class, message }
}

/// Longest path and longest foreign name in a message: letters' headers are bounded.
const LONGEST: usize = 256;

fn path(nodes: &Nodes, text: &[u8], trail: &[Segment]) -> String {
    let mut path = String::new();
    for segment in trail.iter().rev() {
        if path.len() > LONGEST {
            path.push('…');
            break;
        }
        let _ = match segment {
            Segment::Field(record, field) => {
                let name = nodes.record(*record).fields.get(*field).map_or("", |field| &field.name);
                write!(path, "{}{name}", if path.is_empty() { "" } else { "." })
            }
            Segment::Item(at) => write!(path, "[{at}]"),
            Segment::Key(from, to) => write!(path, "[\"{}\"]", name(text, *from, *to)),
            Segment::Branch(id) => write!(path, "({})", nodes.title(*id)),
        };
    }
    path
}

/// A name as the text spells it, shortened: it is the only part of a value that a message may show.
fn name(text: &[u8], from: usize, to: usize) -> String {
    const LONGEST_NAME: usize = 40;
    let name = String::from_utf8_lossy(text.get(from..to).unwrap_or_default());
    match name.char_indices().nth(LONGEST_NAME) {
        Some((end, _)) => format!("{}…", name.get(..end).unwrap_or_default()),
        None => name.into_owned(),
    }
}

fn found(byte: Option<u8>) -> &'static str {
    match byte {
        Some(b'"') => "a string",
        Some(b'-' | b'0'..=b'9') => "a number",
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "something else",
    }
}

/// A type, as JSON has to look for it.
pub(super) fn expected(nodes: &Nodes, id: Id) -> String {
    match nodes.get(id) {
        Node::Null => "null".into(),
        Node::Boolean => "a boolean".into(),
        Node::Int => "an integer of 32 bits".into(),
        Node::Long => "an integer of 64 bits".into(),
        Node::Float => "a number (float)".into(),
        Node::Double => "a number (double)".into(),
        Node::Bytes => "bytes as base64".into(),
        Node::String => "a string".into(),
        Node::Fixed(fixed) => format!("{} bytes as base64 ({})", fixed.size, fixed.name.full),
        Node::Enum(symbols) => format!("a symbol of {}", symbols.name.full),
        Node::Record(record) => format!("an object ({})", record.name.full),
        Node::Array(_) => "a list".into(),
        Node::Map(_) => "an object (map)".into(),
        Node::Union(branches) => {
            const MOST: usize = 6;
            let mut words: Vec<String> =
                branches.iter().take(MOST).map(|branch| expected(nodes, *branch)).collect();
            if branches.len() > MOST {
                words.push(format!("one of {} others", branches.len() - MOST));
            }
            words.join(" or ")
        }
    }
}
