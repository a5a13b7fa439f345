//! JSON text to an Avro datum, in one pass over the text, without a tree in between.
//!
//! ```text
//!  {"name":"Cup", "id":7, "price":2.5}          the text's order
//!        |           |        |     each value is encoded where the buffer ends
//!        v           v        v
//!  [ "Cup" | 7 | 2.5 ]                          out, if the order is not the schema's: its pieces are put in order,
//!  [ 7 | "Cup" | <default> | 2.5 ]              defaults between them, when the object ends
//! ```
//!
//! Texts whose fields come in the schema's order are written once and moved never. Which field follows which is
//! remembered from the record before, so that a name is compared once and not searched.

use std::sync::Arc;

use self::fail::{Segment, Stop, What};
use self::lex::{LIST_NEXT, Lex, NO_VALUE, OBJECT_NEXT};
use self::plan::Plan;
use super::room::anew;
use super::{Bound, ExtraFields, Misfit, Stage};
use crate::schema::node::{Nodes, Step};
use crate::schema::wire::{close_block, put_bytes};
use crate::schema::{Id, MAX_DEPTH, MAX_EMPTY_ITEMS, Node, Schema};

mod fail;
mod lex;
mod number;
mod plan;
mod record;
mod scalar;
pub(super) mod scan;
mod union;

pub(super) use lex::{DEEP, plain};

/// Encodes JSON texts as datums of one schema.
pub(super) struct Json {
    schema: Arc<Schema>,
    plans: Vec<Plan>,
    reject_extra: bool,
    buffers: Buffers,
}

impl std::fmt::Debug for Json {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Json({:?})", self.schema)
    }
}

/// Kept from text to text.
#[derive(Default)]
struct Buffers {
    out: Vec<u8>,
    /// An unescaped string.
    text: Vec<u8>,
    /// A stack: per record whose fields came out of order, where each field's piece lies in `out`.
    pieces: Vec<(usize, usize)>,
    /// The pieces in order, before they go back to `out`.
    ordered: Vec<u8>,
    /// By record and 1 + field (0: the beginning), which field followed last time.
    follows: Vec<Box<[u32]>>,
    trail: Vec<Segment>,
    /// A stack: per map, hash and place in `out` of each key.
    keys: Vec<Key>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    hash: u64,
    from: usize,
    to: usize,
}

impl Json {
    pub fn new(schema: Arc<Schema>, extra_fields: ExtraFields) -> Json {
        let plans = plan::plans(&schema);
        let follows = plans
            .iter()
            .map(|plan| match plan {
                Plan::Record(fields) => (0..=fields.len() as u32).collect(),
                _ => Box::default(),
            })
            .collect();
        let buffers = Buffers { follows, ..Buffers::default() };
        Json { schema, plans, reject_extra: extra_fields == ExtraFields::Reject, buffers }
    }

    /// The datum of `text`, until the next call.
    pub fn decode(&mut self, text: &[u8], bound: Bound) -> Result<&[u8], Misfit> {
        let malformed = |class, message: String| Misfit { stage: Stage::Decode, class, message };
        // Once for the whole text, so that strings can be copied as they are; for ASCII it takes next to nothing.
        if let Err(error) = std::str::from_utf8(text) {
            let message = format!("the value is not JSON: not UTF-8 (byte {})", error.valid_up_to());
            return Err(malformed("stillwell.codec.MalformedJson", message));
        }
        self.decode_part(text, (0, text.len()), bound)
    }

    /// The datum of a part of `text`, which is known to be UTF-8, until the next call. Places in messages are the text's.
    pub fn decode_part(
        &mut self,
        text: &[u8],
        (from, to): scan::Place,
        bound: Bound,
    ) -> Result<&[u8], Misfit> {
        let malformed = |class, message: String| Misfit { stage: Stage::Decode, class, message };
        let nodes = &self.schema.nodes;
        let part = text.get(from..to).unwrap_or_default();
        self.buffers.anew(part.len());
        let mut pass = Pass {
            nodes,
            plans: &self.plans,
            reject_extra: self.reject_extra,
            lex: Lex { rest: part },
            length: to,
            buffers: &mut self.buffers,
            fuel: part.len().saturating_mul(16).saturating_add(4096),
            most: bound.most(),
            empty_items: 0,
            what: What::Syntax(NO_VALUE),
            left: 0,
        };
        if let Err(Stop) = pass.whole() {
            let (what, at) = (pass.what, to - pass.left);
            if what == What::Large {
                return Err(bound.swollen());
            }
            return Err(match part.trim_ascii() {
                b"" => malformed(
                    "stillwell.codec.EmptyValue",
                    "the value is empty; a delete is a Kafka null".into(),
                ),
                b"null" => malformed(
                    "stillwell.codec.NullLiteral",
                    "the value is the word null; a delete is a Kafka null".into(),
                ),
                _ => fail::misfit(nodes, text, what, at, &self.buffers.trail),
            });
        }
        Ok(&self.buffers.out)
    }
}

impl Buffers {
    /// For a text of so many bytes.
    fn anew(&mut self, bytes: usize) {
        let Buffers { out, text, pieces, ordered, follows: _, trail, keys } = self;
        for buffer in [out, text, ordered] {
            anew(buffer, bytes);
        }
        anew(pieces, bytes);
        anew(keys, bytes);
        trail.clear();
    }
}

#[cfg(test)]
impl Json {
    /// Bytes of its buffers.
    pub fn held(&self) -> usize {
        let Buffers { out, text, pieces, ordered, keys, .. } = &self.buffers;
        let stacks = pieces.capacity() * size_of::<(usize, usize)>() + keys.capacity() * size_of::<Key>();
        out.capacity() + text.capacity() + ordered.capacity() + stacks
    }
}

/// One walk over one text.
struct Pass<'p, 't> {
    nodes: &'p Nodes,
    plans: &'p [Plan],
    reject_extra: bool,
    lex: Lex<'t>,
    length: usize,
    buffers: &'p mut Buffers,
    /// Bytes that may still be read in vain, by trying union branches.
    fuel: usize,
    /// Most bytes of the datum.
    most: usize,
    empty_items: usize,
    /// After a [`Stop`]: what it was, and how many bytes were left.
    what: What,
    left: usize,
}

impl<'t> Pass<'_, 't> {
    #[cold]
    fn stop<T>(&mut self, what: What) -> Result<T, Stop> {
        self.what = what;
        self.left = self.lex.rest.len();
        Err(Stop)
    }

    /// As [`Pass::stop`], for a value whose token has been taken: it began where `left` bytes were left.
    #[cold]
    fn stop_at<T>(&mut self, what: What, left: usize) -> Result<T, Stop> {
        self.what = what;
        self.left = left;
        Err(Stop)
    }

    /// Notes where on the way to the root a failure passes.
    #[cold]
    fn within(&mut self, segment: Segment) -> Stop {
        self.buffers.trail.push(segment);
        Stop
    }

    fn whole(&mut self) -> Result<(), Stop> {
        self.lex.space();
        self.value(self.nodes.root, MAX_DEPTH)?;
        self.lex.space();
        if !self.lex.rest.is_empty() {
            return self.stop(What::Syntax("something behind the value"));
        }
        Ok(())
    }

    /// Encodes the value that the text goes on with, whitespace skipped.
    #[inline]
    fn value(&mut self, id: Id, depth: usize) -> Result<(), Stop> {
        let nodes = self.nodes;
        match nodes.get(id) {
            Node::String => {
                match self.string(id)? {
                    Some(text) => put_bytes(&mut self.buffers.out, text),
                    None => put_bytes(&mut self.buffers.out, &self.buffers.text),
                }
                Ok(())
            }
            Node::Int => self.int(id),
            Node::Long => self.long(id),
            Node::Double => self.double(id),
            Node::Union(_) => self.union(id, depth),
            Node::Record(_) => self.record(id, depth),
            Node::Boolean => {
                let value = self.lex.word(b"true");
                if !value && !self.lex.word(b"false") {
                    return self.wrong(id);
                }
                self.buffers.out.push(u8::from(value));
                Ok(())
            }
            Node::Null => match self.lex.word(b"null") {
                true => Ok(()),
                false => self.wrong(id),
            },
            Node::Float => self.float(id),
            Node::Bytes => self.base64(id, None),
            Node::Fixed(fixed) => self.base64(id, Some(fixed.size)),
            Node::Enum(_) => self.symbol(id),
            Node::Array(items) => self.list(id, *items, depth),
            Node::Map(values) => self.map(id, *values, depth),
        }
    }

    /// A value of another type than `id`, or no value at all.
    #[cold]
    fn wrong<T>(&mut self, id: Id) -> Result<T, Stop> {
        let left = self.lex.rest.len();
        let begins = match self.lex.rest.first() {
            Some(b'"' | b'{' | b'[' | b'-' | b'0'..=b'9') => true,
            _ => self.lex.word(b"true") || self.lex.word(b"false") || self.lex.word(b"null"),
        };
        self.stop_at(if begins { What::Type(id) } else { What::Syntax(NO_VALUE) }, left)
    }

    #[inline]
    fn deeper(&mut self, depth: usize) -> Result<usize, Stop> {
        match depth.checked_sub(1) {
            Some(depth) => Ok(depth),
            None => self.stop(What::Deep),
        }
    }

    /// After each item, and each record: both may be nothing but defaults.
    #[inline]
    fn room(&mut self) -> Result<(), Stop> {
        if self.buffers.out.len() > self.most { self.stop(What::Large) } else { Ok(()) }
    }

    fn list(&mut self, id: Id, items: Id, depth: usize) -> Result<(), Stop> {
        if self.lex.rest.first() != Some(&b'[') {
            return self.wrong(id);
        }
        let depth = self.deeper(depth)?;
        self.lex.take(b'[');
        self.lex.space();
        let start = self.buffers.out.len();
        self.buffers.out.push(0);
        if self.lex.take(b']') {
            return Ok(());
        }
        let mut count = 0;
        loop {
            if let Err(Stop) = self.value(items, depth) {
                return Err(self.within(Segment::Item(count)));
            }
            self.room()?;
            count += 1;
            self.lex.space();
            if self.lex.take(b',') {
                self.lex.space();
            } else if self.lex.take(b']') {
                break;
            } else {
                return self.stop(What::Syntax(LIST_NEXT));
            }
        }
        if matches!(self.nodes.step(id), Step::Array(_, true)) {
            self.empty_items += count;
            if self.empty_items > MAX_EMPTY_ITEMS {
                return self.stop(What::Empty);
            }
        }
        close_block(&mut self.buffers.out, start, count);
        Ok(())
    }

    fn map(&mut self, id: Id, values: Id, depth: usize) -> Result<(), Stop> {
        if self.lex.rest.first() != Some(&b'{') {
            return self.wrong(id);
        }
        let depth = self.deeper(depth)?;
        self.lex.take(b'{');
        self.lex.space();
        let start = self.buffers.out.len();
        self.buffers.out.push(0);
        if self.lex.take(b'}') {
            return Ok(());
        }
        let keys = self.buffers.keys.len();
        let mut count = 0;
        loop {
            if !self.lex.take(b'"') {
                return self.stop(What::Syntax("no name where an object's next field should be"));
            }
            let left = self.lex.rest.len();
            let plain = self.quoted()?;
            let Buffers { out, text, keys, .. } = &mut *self.buffers;
            let key = plain.unwrap_or(text);
            put_bytes(out, key);
            let hash = xxhash_rust::xxh3::xxh3_64(key);
            // within the map: what lies before it may still grow by bytes of a count
            let to = out.len() - start;
            keys.push(Key { hash, from: to - key.len(), to });
            let named = Segment::Key(self.length - left, self.length - self.lex.rest.len() - 1);
            self.colon()?;
            if let Err(Stop) = self.value(values, depth) {
                return Err(self.within(named));
            }
            self.room()?;
            count += 1;
            self.lex.space();
            if self.lex.take(b',') {
                self.lex.space();
            } else if self.lex.take(b'}') {
                break;
            } else {
                return self.stop(What::Syntax(OBJECT_NEXT));
            }
        }
        let Buffers { out, keys: all, .. } = &mut *self.buffers;
        let map = out.get(start..).unwrap_or_default();
        let own = all.get_mut(keys..).unwrap_or_default();
        own.sort_unstable();
        let key = |key: &Key| map.get(key.from..key.to);
        // sorted by hash: equal keys are neighbours, or three of one hash are, which nobody but an attacker meets
        let twice = own.windows(2).any(|pair| match pair {
            [one, two] => one.hash == two.hash && key(one) == key(two),
            _ => false,
        });
        all.truncate(keys);
        if twice {
            return self.stop(What::KeyTwice);
        }
        close_block(&mut self.buffers.out, start, count);
        Ok(())
    }
}
