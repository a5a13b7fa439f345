//! A datum as JSON text: the way back from `json`, by the same rules.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::json::plain;
use super::part::Part;
use crate::schema::node::{Nodes, Step};
use crate::schema::skip::{DEEP, count_empty, take_count};
use crate::schema::wire::{take_bytes, take_int, take_long};
use crate::schema::{Id, MAX_DEPTH, Malformed, Node, Schema};

/// Appends `datum` as JSON, without whitespace, fields in the schema's order.
///
/// # Errors
/// [`Malformed`] where the bytes are no datum of `schema`; nothing is appended then.
pub fn to_json(schema: &Schema, datum: &[u8], out: &mut String) -> Result<(), Malformed> {
    Part::whole(schema, datum)?.write_json(out)
}

/// A field of a record's datum, by name (`a.b` reaches into a record), without decoding the rest. `None`: there is no
/// such field, or what should hold it is null or another branch of a union.
///
/// # Errors
/// [`Malformed`] where the bytes before it are no datum of `schema`.
pub fn field<'a>(schema: &'a Schema, datum: &'a [u8], path: &str) -> Result<Option<Part<'a>>, Malformed> {
    let mut part = Part::whole(schema, datum)?;
    for name in path.split('.') {
        match part.field(name)? {
            Some(inner) => part = inner,
            None => return Ok(None),
        }
    }
    Ok(Some(part))
}

/// Appends a key: a JSON string, or `{"base64":"…"}` where it is not UTF-8.
pub fn key_to_json(key: &[u8], out: &mut String) {
    match std::str::from_utf8(key) {
        Ok(text) => quote(text, out),
        Err(_) => {
            out.push_str(r#"{"base64":""#);
            STANDARD.encode_string(key, out);
            out.push_str("\"}");
        }
    }
}

/// Appends a value of node `id`, which it takes off `rest`.
pub(super) fn value(nodes: &Nodes, id: Id, rest: &mut &[u8], out: &mut String) -> Result<(), &'static str> {
    let mut writer = Writer { nodes, rest, out, empty_items: 0 };
    let result = writer.value(id, MAX_DEPTH);
    *rest = writer.rest;
    result
}

struct Writer<'a, 'b> {
    nodes: &'a Nodes,
    rest: &'b [u8],
    out: &'a mut String,
    empty_items: usize,
}

impl<'a> Writer<'a, '_> {
    fn value(&mut self, id: Id, depth: usize) -> Result<(), &'static str> {
        let nodes: &'a Nodes = self.nodes;
        match nodes.get(id) {
            Node::Null => self.out.push_str("null"),
            Node::Boolean => {
                let (byte, rest) = self.rest.split_first().ok_or("the value ends before a boolean")?;
                self.out.push_str(match byte {
                    0 => "false",
                    1 => "true",
                    _ => return Err("a boolean is neither 0 nor 1"),
                });
                self.rest = rest;
            }
            Node::Int => {
                let value = take_int(&mut self.rest).ok_or("an int is cut off or has more than 32 bits")?;
                number(self.out, value);
            }
            Node::Long => {
                let value = take_long(&mut self.rest).ok_or("a long is cut off or has more than 64 bits")?;
                number(self.out, value);
            }
            Node::Float => {
                let value = f32::from_le_bytes(*self.chunk()?);
                // in its own precision: 0.1, not 0.10000000149011612
                match value.is_finite() {
                    true => number(self.out, value),
                    false => self.out.push_str(word(value.into())),
                }
            }
            Node::Double => {
                let value = f64::from_le_bytes(*self.chunk()?);
                match value.is_finite() {
                    true => number(self.out, value),
                    false => self.out.push_str(word(value)),
                }
            }
            Node::Bytes => {
                let bytes =
                    take_bytes(&mut self.rest).ok_or("the length of bytes is negative or beyond the end")?;
                self.base64(bytes);
            }
            Node::Fixed(fixed) => {
                let (bytes, rest) =
                    self.rest.split_at_checked(fixed.size).ok_or("the value ends within a fixed")?;
                self.rest = rest;
                self.base64(bytes);
            }
            Node::String => self.string()?,
            Node::Enum(symbols) => {
                let index = take_int(&mut self.rest).ok_or("an enum's index is cut off or too long")?;
                let symbol = usize::try_from(index).ok().and_then(|index| symbols.symbols.get(index));
                quote(symbol.ok_or("an enum has no symbol of this index")?, self.out);
            }
            Node::Record(record) => {
                let depth = depth.checked_sub(1).ok_or(DEEP)?;
                let mut open = '{';
                for field in &record.fields {
                    self.out.push(open);
                    open = ',';
                    // a name needs no escapes
                    self.out.push('"');
                    self.out.push_str(&field.name);
                    self.out.push_str("\":");
                    self.value(field.node, depth)?;
                }
                self.out.push_str(if record.fields.is_empty() { "{}" } else { "}" });
            }
            Node::Array(items) => {
                let depth = depth.checked_sub(1).ok_or(DEEP)?;
                let empty = matches!(nodes.step(id), Step::Array(_, true));
                self.blocks('[', |writer| writer.value(*items, depth), empty)?;
                self.out.push(']');
            }
            Node::Map(values) => {
                let depth = depth.checked_sub(1).ok_or(DEEP)?;
                let entry = |writer: &mut Self| {
                    writer.string()?;
                    writer.out.push(':');
                    writer.value(*values, depth)
                };
                self.blocks('{', entry, false)?;
                self.out.push('}');
            }
            Node::Union(branches) => {
                let mut rest = self.rest;
                let index = take_int(&mut rest).ok_or("a union's index is cut off or too long")?;
                let branch = usize::try_from(index).ok().and_then(|index| branches.get(index));
                let branch = *branch.ok_or("a union has no branch of this index")?;
                self.rest = rest;
                return self.value(branch, depth);
            }
        }
        Ok(())
    }

    fn blocks(
        &mut self,
        open: char,
        mut item: impl FnMut(&mut Self) -> Result<(), &'static str>,
        empty: bool,
    ) -> Result<(), &'static str> {
        self.out.push(open);
        let mut first = true;
        loop {
            let count = take_count(&mut self.rest)?;
            if count == 0 {
                return Ok(());
            }
            if empty {
                count_empty(&mut self.empty_items, count)?;
            }
            for _ in 0..count {
                if !first {
                    self.out.push(',');
                }
                first = false;
                item(self)?;
            }
        }
    }

    fn chunk<const N: usize>(&mut self) -> Result<&[u8; N], &'static str> {
        let (chunk, rest) = self.rest.split_first_chunk().ok_or("the value ends within a number")?;
        self.rest = rest;
        Ok(chunk)
    }

    fn string(&mut self) -> Result<(), &'static str> {
        let mut rest = self.rest;
        let bytes = take_bytes(&mut rest).ok_or("the length of a string is negative or beyond the end")?;
        quote(std::str::from_utf8(bytes).map_err(|_| "a string is not UTF-8")?, self.out);
        self.rest = rest;
        Ok(())
    }

    fn base64(&mut self, bytes: &[u8]) {
        self.out.push('"');
        STANDARD.encode_string(bytes, self.out);
        self.out.push('"');
    }
}

/// The words for what JSON has no number for.
fn word(value: f64) -> &'static str {
    match value {
        f64::INFINITY => "\"Infinity\"",
        f64::NEG_INFINITY => "\"-Infinity\"",
        _ => "\"NaN\"",
    }
}

/// Appends a number in the shortest form that reads back the same.
fn number(out: &mut String, value: impl serde::Serialize) {
    struct Ascii<'a>(&'a mut String);
    impl io::Write for Ascii<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push_str(std::str::from_utf8(bytes).map_err(io::Error::other)?);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    serde_json::to_writer(Ascii(out), &value).expect("a number is ASCII, and a String takes it");
}

/// Appends `text` as a JSON string.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    let mut rest = text;
    while let Some((plain, special)) = rest.split_at_checked(plain(rest.as_bytes())) {
        out.push_str(plain);
        let mut chars = special.chars();
        match chars.next() {
            None => break,
            Some('"') => out.push_str("\\\""),
            Some('\\') => out.push_str("\\\\"),
            Some('\n') => out.push_str("\\n"),
            Some('\r') => out.push_str("\\r"),
            Some('\t') => out.push_str("\\t"),
            Some(control) => {
                out.push_str("\\u00");
                let code = u32::from(control);
                out.extend([code >> 4, code & 15].iter().filter_map(|digit| char::from_digit(*digit, 16)));
            }
        }
        rest = chars.as_str();
    }
    out.push('"');
}
