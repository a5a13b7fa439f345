//! The acts carried out on one datum. Bytes may be hostile; what bounds the work is what bounds `skip`.

use super::{Act, ActId, Fields, LARGE, Part, Resolver, Source};
use crate::schema::node::{Default, Id};
use crate::schema::skip::{self, DEEP, count_empty, take_count};
use crate::schema::wire::{put_long, take_bytes, take_int, take_long};

/// One datum being read.
pub(super) struct Run<'a, 'b> {
    pub resolver: &'a Resolver,
    pub rest: &'b [u8],
    pub out: &'a mut Vec<u8>,
    /// Most bytes of `out`.
    pub most: usize,
    /// A stack: where fields of records lie that are read out of order. Counted from the end, since `rest` shrinks.
    pub places: Vec<&'b [u8]>,
    pub empty_items: usize,
}

impl Run<'_, '_> {
    /// Takes a value off `rest` and appends what the act makes of it.
    pub fn act(&mut self, act: ActId, depth: usize) -> Result<(), &'static str> {
        let resolver = self.resolver;
        let Some(act) = resolver.acts.get(act) else { unreachable!("acts point at acts") };
        const INT: &str = "an int is cut off or has more than 32 bits";
        const LONG: &str = "a long is cut off or has more than 64 bits";
        match act {
            Act::Copy(id) => {
                let start = self.rest;
                self.skip(*id, depth)?;
                let length = start.len() - self.rest.len();
                self.out.extend_from_slice(start.get(..length).unwrap_or_default());
            }
            Act::Text => {
                let start = self.rest;
                let bytes =
                    take_bytes(&mut self.rest).ok_or("the length of bytes is negative or beyond the end")?;
                if std::str::from_utf8(bytes).is_err() {
                    self.rest = start;
                    return Err("bytes that are read as a string are not UTF-8");
                }
                let length = start.len() - self.rest.len();
                self.out.extend_from_slice(start.get(..length).unwrap_or_default());
            }
            Act::IntToFloat => {
                let value = take_int(&mut self.rest).ok_or(INT)?;
                self.out.extend_from_slice(&(value as f32).to_le_bytes());
            }
            Act::IntToDouble => {
                let value = take_int(&mut self.rest).ok_or(INT)?;
                self.out.extend_from_slice(&f64::from(value).to_le_bytes());
            }
            Act::LongToFloat => {
                let value = take_long(&mut self.rest).ok_or(LONG)?;
                self.out.extend_from_slice(&(value as f32).to_le_bytes());
            }
            Act::LongToDouble => {
                let value = take_long(&mut self.rest).ok_or(LONG)?;
                self.out.extend_from_slice(&(value as f64).to_le_bytes());
            }
            Act::FloatToDouble => {
                let (bytes, rest) = self.rest.split_first_chunk().ok_or("the value ends within a float")?;
                self.out.extend_from_slice(&f64::from(f32::from_le_bytes(*bytes)).to_le_bytes());
                self.rest = rest;
            }
            Act::Enum(indexes) => {
                let mut rest = self.rest;
                let index = take_int(&mut rest).ok_or("an enum's index is cut off or too long")?;
                let index = usize::try_from(index).ok().and_then(|index| indexes.get(index));
                let index = index.ok_or("an enum has no symbol of this index")?;
                let index =
                    index.ok_or("a symbol that the reader's enum does not have, nor a default for it")?;
                put_long(self.out, index.into());
                self.rest = rest;
            }
            Act::Record(fields) => self.record(fields, depth.checked_sub(1).ok_or(DEEP)?)?,
            Act::Array(items, empty) => {
                let depth = depth.checked_sub(1).ok_or(DEEP)?;
                loop {
                    let count = take_count(&mut self.rest)?;
                    put_long(self.out, count as i64);
                    if count == 0 {
                        break;
                    }
                    if *empty {
                        count_empty(&mut self.empty_items, count)?;
                    }
                    for _ in 0..count {
                        self.act(*items, depth)?;
                        self.room()?;
                    }
                }
            }
            Act::Map(values) => {
                let depth = depth.checked_sub(1).ok_or(DEEP)?;
                loop {
                    let count = take_count(&mut self.rest)?;
                    put_long(self.out, count as i64);
                    if count == 0 {
                        break;
                    }
                    for _ in 0..count {
                        let start = self.rest;
                        let key = take_bytes(&mut self.rest)
                            .ok_or("the length of a key is negative or beyond the end")?;
                        if std::str::from_utf8(key).is_err() {
                            return Err("a key is not UTF-8");
                        }
                        let length = start.len() - self.rest.len();
                        self.out.extend_from_slice(start.get(..length).unwrap_or_default());
                        self.act(*values, depth)?;
                        self.room()?;
                    }
                }
            }
            Act::FromUnion(branches) => {
                let mut rest = self.rest;
                let index = take_int(&mut rest).ok_or("a union's index is cut off or too long")?;
                let branch = usize::try_from(index).ok().and_then(|index| branches.get(index));
                let branch = *branch.ok_or("a union has no branch of this index")?;
                if matches!(resolver.acts.get(branch), Some(Act::Never)) {
                    return Err("a union's branch that the reader's schema has nothing for");
                }
                self.rest = rest;
                self.act(branch, depth)?;
            }
            Act::ToUnion(branch, act) => {
                put_long(self.out, *branch as i64);
                self.act(*act, depth)?;
            }
            Act::Open | Act::Never => unreachable!("closed when compared; looked for in the union"),
        }
        Ok(())
    }

    /// After each item: an item may be nothing but defaults.
    #[inline]
    pub fn room(&self) -> Result<(), &'static str> {
        if self.out.len() > self.most { Err(LARGE) } else { Ok(()) }
    }

    fn skip(&mut self, id: Id, depth: usize) -> Result<(), &'static str> {
        skip::value::<true>(&self.resolver.writer.nodes, id, &mut self.rest, depth, &mut self.empty_items)
    }

    fn put(&mut self, default: &Default, depth: usize) -> Result<(), &'static str> {
        if default.depth > depth {
            return Err(DEEP);
        }
        self.out.extend_from_slice(&default.datum);
        Ok(())
    }

    fn record(&mut self, fields: &Fields, depth: usize) -> Result<(), &'static str> {
        match fields {
            Fields::Stream(parts) => {
                for part in parts {
                    match part {
                        Part::Skip(id) => self.skip(*id, depth)?,
                        Part::Take(act) => self.act(*act, depth)?,
                        Part::Put(default) => self.put(default, depth)?,
                    }
                }
            }
            Fields::Jump { writer, reader } => {
                let base = self.places.len();
                for id in writer {
                    self.places.push(self.rest);
                    // not counted: what is taken is counted when it is, what is not taken makes nothing
                    skip::value::<true>(&self.resolver.writer.nodes, *id, &mut self.rest, depth, &mut 0)?;
                }
                let end = self.rest;
                for source in reader {
                    match source {
                        Source::Field(at, act) => {
                            self.rest = self.places.get(base + at).copied().unwrap_or_default();
                            self.act(*act, depth)?;
                        }
                        Source::Default(default) => self.put(default, depth)?,
                    }
                }
                self.rest = end;
                self.places.truncate(base);
            }
        }
        Ok(())
    }
}
