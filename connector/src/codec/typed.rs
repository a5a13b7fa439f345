//! A part of a datum as a type of the caller's, through serde.
//!
//! ```text
//!  null            unit, None            string, enum   str, String, a unit variant      array   seq
//!  boolean         bool                  bytes, fixed   bytes, or a seq of u8            map     map, struct
//!  int, long       any integer, float    union          what its branch is              record  struct, map
//!  float, double   f32, f64
//! ```
//!
//! Text and bytes are borrowed where the type borrows. Fields that the type does not name are skipped, not decoded.

use std::fmt;

use serde::de::value::{BorrowedStrDeserializer, SeqDeserializer};
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer as _, Visitor};
use serde::forward_to_deserialize_any;

use super::part::Part;
use crate::schema::node::{Nodes, Step};
use crate::schema::skip::{self, DEEP, count_empty, take_count};
use crate::schema::wire::{take_bytes, take_int, take_long};
use crate::schema::{Id, MAX_DEPTH, Malformed, Node};

/// Why a part cannot be had as a type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are no datum of the schema.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The schema's type is another than the one that is asked for.
    #[error("{0}")]
    Mismatch(String),
}

/// As serde's traits want it; becomes an [`Error`] once it is known where.
#[derive(Debug)]
enum Fault {
    Bytes(&'static str),
    Type(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Bytes(what) => f.write_str(what),
            Fault::Type(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(what: T) -> Fault {
        Fault::Type(what.to_string())
    }
}

impl From<&'static str> for Fault {
    fn from(what: &'static str) -> Fault {
        Fault::Bytes(what)
    }
}

impl<'a> Part<'a> {
    /// Itself as a `T`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if it is none; [`Error::Malformed`].
    pub fn read<T: de::Deserialize<'a>>(&self) -> Result<T, Error> {
        let (nodes, id, bytes, before) = self.inside();
        let mut cursor = Cursor { nodes, rest: bytes, empty_items: 0 };
        let read = T::deserialize(Reading { cursor: &mut cursor, id, depth: MAX_DEPTH });
        read.map_err(|fault| match fault {
            Fault::Bytes(what) => Malformed { at: before + bytes.len() - cursor.rest.len(), what }.into(),
            Fault::Type(what) => Error::Mismatch(what),
        })
    }
}

/// Where in the datum it is.
struct Cursor<'de> {
    nodes: &'de Nodes,
    rest: &'de [u8],
    empty_items: usize,
}

impl<'de> Cursor<'de> {
    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (chunk, rest) = self.rest.split_first_chunk().ok_or("the value ends within a number")?;
        self.rest = rest;
        Ok(*chunk)
    }

    fn bytes(&mut self) -> Result<&'de [u8], Fault> {
        take_bytes(&mut self.rest).ok_or("the length of bytes is negative or beyond the end".into())
    }

    fn fixed(&mut self, size: usize) -> Result<&'de [u8], Fault> {
        let (bytes, rest) = self.rest.split_at_checked(size).ok_or("the value ends within a fixed")?;
        self.rest = rest;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'de str, Fault> {
        let mut rest = self.rest;
        let bytes = take_bytes(&mut rest).ok_or("the length of a string is negative or beyond the end")?;
        let text = std::str::from_utf8(bytes).map_err(|_| "a string is not UTF-8")?;
        self.rest = rest;
        Ok(text)
    }
}

/// A value that is about to be taken off the cursor.
struct Reading<'c, 'de> {
    cursor: &'c mut Cursor<'de>,
    id: Id,
    depth: usize,
}

impl<'c, 'de> Reading<'c, 'de> {
    /// Into the branch, if it is a union.
    fn branch(mut self) -> Result<Self, Fault> {
        if let Node::Union(branches) = self.cursor.nodes.get(self.id) {
            let index = take_int(&mut self.cursor.rest).ok_or("a union's index is cut off or too long")?;
            let branch = usize::try_from(index).ok().and_then(|index| branches.get(index));
            self.id = *branch.ok_or("a union has no branch of this index")?;
        }
        Ok(self)
    }

    fn items(self, id: Id) -> Result<Items<'c, 'de>, Fault> {
        let empty = matches!(self.cursor.nodes.step(self.id), Step::Array(_, true));
        let depth = self.depth.checked_sub(1).ok_or(DEEP)?;
        Ok(Items { of: Reading { depth, ..self }, id, left: 0, over: false, empty })
    }
}

impl<'de> Deserializer<'de> for Reading<'_, 'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let this = self.branch()?;
        let nodes: &'de Nodes = this.cursor.nodes;
        match nodes.get(this.id) {
            Node::Null => visitor.visit_unit(),
            Node::Boolean => match this.cursor.chunk()? {
                [0] => visitor.visit_bool(false),
                [1] => visitor.visit_bool(true),
                _ => Err("a boolean is neither 0 nor 1".into()),
            },
            Node::Int => {
                let value = take_int(&mut this.cursor.rest);
                visitor.visit_i32(value.ok_or("an int is cut off or has more than 32 bits")?)
            }
            Node::Long => {
                let value = take_long(&mut this.cursor.rest);
                visitor.visit_i64(value.ok_or("a long is cut off or has more than 64 bits")?)
            }
            Node::Float => visitor.visit_f32(f32::from_le_bytes(this.cursor.chunk()?)),
            Node::Double => visitor.visit_f64(f64::from_le_bytes(this.cursor.chunk()?)),
            Node::Bytes => visitor.visit_borrowed_bytes(this.cursor.bytes()?),
            Node::String => visitor.visit_borrowed_str(this.cursor.text()?),
            Node::Fixed(fixed) => visitor.visit_borrowed_bytes(this.cursor.fixed(fixed.size)?),
            Node::Enum(symbols) => {
                let index =
                    take_int(&mut this.cursor.rest).ok_or("an enum's index is cut off or too long")?;
                let symbol = usize::try_from(index).ok().and_then(|index| symbols.symbols.get(index));
                visitor.visit_borrowed_str(symbol.ok_or("an enum has no symbol of this index")?)
            }
            Node::Record(_) => {
                let depth = this.depth.checked_sub(1).ok_or(DEEP)?;
                visitor.visit_map(Fields { of: Reading { depth, ..this }, next: 0 })
            }
            Node::Array(items) => visitor.visit_seq(this.items(*items)?),
            Node::Map(values) => visitor.visit_map(this.items(*values)?),
            Node::Union(_) => unreachable!("unions do not nest"),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let this = self.branch()?;
        match this.cursor.nodes.get(this.id) {
            Node::Null => visitor.visit_none(),
            _ => visitor.visit_some(this),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    /// Bytes are a sequence for who asks for one, as `Vec<u8>` and `[u8; 16]` do.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let this = self.branch()?;
        let bytes = match this.cursor.nodes.get(this.id) {
            Node::Bytes => this.cursor.bytes()?,
            Node::Fixed(fixed) => this.cursor.fixed(fixed.size)?,
            _ => return this.deserialize_any(visitor),
        };
        visitor.visit_seq(SeqDeserializer::new(bytes.iter().copied()))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    /// An enum's symbol, or a string, is a unit variant's name.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        struct Symbol<V>(V);
        impl<'de, V: Visitor<'de>> Visitor<'de> for Symbol<V> {
            type Value = V::Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an enum's symbol")
            }

            fn visit_str<E: de::Error>(self, symbol: &str) -> Result<V::Value, E> {
                self.0.visit_enum(symbol.into_deserializer())
            }
        }
        self.deserialize_any(Symbol(visitor))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let Cursor { nodes, rest, empty_items } = self.cursor;
        skip::value::<false>(nodes, self.id, rest, self.depth, empty_items)?;
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct map struct
        identifier
    }
}

/// The fields of a record, as a map.
struct Fields<'c, 'de> {
    of: Reading<'c, 'de>,
    next: usize,
}

impl<'de> de::MapAccess<'de> for Fields<'_, 'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let nodes: &'de Nodes = self.of.cursor.nodes;
        match nodes.record(self.of.id).fields.get(self.next) {
            Some(field) => seed.deserialize(BorrowedStrDeserializer::new(&field.name)).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let field = self.of.cursor.nodes.record(self.of.id).fields.get(self.next);
        let field = field.ok_or_else(|| Fault::Type("a value is asked for without its key".to_owned()))?;
        self.next += 1;
        let value = Reading { cursor: self.of.cursor, id: field.node, depth: self.of.depth };
        seed.deserialize(value).map_err(|fault| match fault {
            Fault::Type(what) => Fault::Type(format!("field {}: {what}", field.name)),
            fault => fault,
        })
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.of.cursor.nodes.record(self.of.id).fields.len() - self.next)
    }
}

/// The items of an array, or the entries of a map.
struct Items<'c, 'de> {
    of: Reading<'c, 'de>,
    id: Id,
    left: usize,
    over: bool,
    empty: bool,
}

impl<'de> Items<'_, 'de> {
    /// Whether there is one more; goes into the next block where one ends.
    fn more(&mut self) -> Result<bool, Fault> {
        while self.left == 0 && !self.over {
            self.left = take_count(&mut self.of.cursor.rest)?;
            self.over = self.left == 0;
            if self.empty {
                count_empty(&mut self.of.cursor.empty_items, self.left)?;
            }
        }
        Ok(!self.over)
    }

    fn value(&mut self) -> Reading<'_, 'de> {
        self.left = self.left.saturating_sub(1);
        Reading { cursor: self.of.cursor, id: self.id, depth: self.of.depth }
    }
}

impl<'de> de::SeqAccess<'de> for Items<'_, 'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        match self.more()? {
            true => seed.deserialize(self.value()).map(Some),
            false => Ok(None),
        }
    }
}

impl<'de> de::MapAccess<'de> for Items<'_, 'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        match self.more()? {
            true => seed.deserialize(BorrowedStrDeserializer::new(self.of.cursor.text()?)).map(Some),
            false => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        seed.deserialize(self.value())
    }
}

#[cfg(test)]
mod tests;
