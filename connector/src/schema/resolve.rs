//! From a writer's datum to a reader's, by the Avro specification's rules ("Schema Resolution").
//!
//! The two schemas are compared once; what is left per datum is a program of copies, drops, conversions and defaults.
//! Where a whole subtree is encoded alike it is validated and copied, not taken apart.
//!
//! Where the specification leaves it open: of a reader's union, the branch of the very type (and full name) is
//! preferred, then one of the same kind, then one that the value can be promoted to, as Avro for Java does. A mismatch
//! inside one branch of a writer's union is an error of the datums that hold it, not of the schemas. Decimals need the
//! same scale and a reader's precision no smaller.

use std::collections::HashMap;
use std::sync::Arc;

use super::node::{Default, Id, Name, Node, Record, Step};
use super::skip::{self, DEEP, count_empty, take_count};
use super::wire::{put_long, take_bytes, take_int, take_long};
use super::{Error, MAX_DEPTH, Malformed, Schema};

/// Index of an act.
type ActId = usize;

/// What is done with a value of the writer's.
#[derive(Clone, Debug)]
enum Act {
    /// Nothing yet: a record that is being compared.
    Open,
    /// Validate a value of the writer's node, and copy it.
    Copy(Id),
    /// Bytes to a string: the same, if they are UTF-8.
    Text,
    IntToFloat,
    IntToDouble,
    LongToFloat,
    LongToDouble,
    FloatToDouble,
    /// By the writer's index, the reader's.
    Enum(Box<[Option<u32>]>),
    Record(Box<Fields>),
    /// Items; `true`: the writer's take no bytes.
    Array(ActId, bool),
    Map(ActId),
    /// By the writer's branch.
    FromUnion(Box<[ActId]>),
    /// The reader's branch.
    ToUnion(usize, ActId),
    /// A branch of the writer's that the reader has nothing for.
    Never,
}

#[derive(Clone, Debug)]
enum Fields {
    /// The reader's fields come in the writer's order.
    Stream(Vec<Part>),
    /// They do not: the writer's are located first.
    Jump { writer: Vec<Id>, reader: Vec<Source> },
}

#[derive(Clone, Debug)]
enum Part {
    Skip(Id),
    Take(ActId),
    Put(Default),
}

#[derive(Clone, Debug)]
enum Source {
    Field(usize, ActId),
    Default(Default),
}

/// Reads datums of a writer's schema as datums of a reader's.
#[derive(Debug)]
pub struct Resolver {
    writer: Arc<Schema>,
    acts: Vec<Act>,
    root: ActId,
}

impl Resolver {
    /// Compares two schemas.
    ///
    /// # Errors
    /// [`Error::Incompatible`]: no datum (save of single branches of unions) could be read.
    pub fn new(writer: &Arc<Schema>, reader: &Arc<Schema>) -> Result<Resolver, Error> {
        let mut compare = Compare {
            writer,
            reader,
            acts: Vec::new(),
            known: HashMap::new(),
            noted: Vec::new(),
            fuel: 100_000,
        };
        let root = compare.pair(writer.nodes.root, reader.nodes.root, 0).map_err(|mismatch| {
            let at: Vec<String> = mismatch.at.into_iter().rev().collect();
            let at = if at.is_empty() { "the schema".into() } else { at.join(".") };
            Error::Incompatible { at, reason: mismatch.reason }
        })?;
        Ok(Resolver { writer: Arc::clone(writer), acts: compare.acts, root })
    }

    /// Appends the reader's datum for the writer's, which has to be all of `datum`.
    ///
    /// # Errors
    /// [`Malformed`]; `out` is as long as before then.
    pub fn resolve(&self, datum: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        let start = out.len();
        let mut run = Run { resolver: self, rest: datum, out, places: Vec::new(), empty_items: 0 };
        let mut result = run.act(self.root, MAX_DEPTH);
        if result.is_ok() && !run.rest.is_empty() {
            result = Err("something behind the datum");
        }
        let at = datum.len() - run.rest.len();
        result.map_err(|what| {
            out.truncate(start);
            Malformed { at, what }
        })
    }
}

/// Why a pair of types does not resolve; the way to it, innermost first.
struct Mismatch {
    at: Vec<String>,
    reason: String,
}

fn mismatch<T>(reason: impl Into<String>) -> Result<T, Mismatch> {
    Err(Mismatch { at: Vec::new(), reason: reason.into() })
}

struct Compare<'a> {
    writer: &'a Schema,
    reader: &'a Schema,
    acts: Vec<Act>,
    /// Pairs that resolve, or are being compared further out: a recursive type resolves if the rest of it does.
    known: HashMap<(Id, Id), ActId>,
    /// The keys of `known`, in order.
    noted: Vec<(Id, Id)>,
    /// Comparisons left; unions of unions of … multiply.
    fuel: usize,
}

impl Compare<'_> {
    fn add(&mut self, act: Act) -> ActId {
        self.acts.push(act);
        self.acts.len() - 1
    }

    fn is_copy(&self, act: ActId) -> bool {
        matches!(self.acts.get(act), Some(Act::Copy(_)))
    }

    fn pair(&mut self, w: Id, r: Id, depth: usize) -> Result<ActId, Mismatch> {
        if let Some(act) = self.known.get(&(w, r)) {
            return Ok(*act);
        }
        self.fuel = match self.fuel.checked_sub(1) {
            Some(fuel) if depth <= 4 * MAX_DEPTH => fuel,
            _ => return mismatch("the schemas are nested too deep to compare"),
        };
        let noted = self.noted.len();
        let slot = self.add(Act::Open);
        self.known.insert((w, r), slot);
        self.noted.push((w, r));
        match self.compare(w, r, depth + 1) {
            Ok(act) => {
                if let Some(open) = self.acts.get_mut(slot) {
                    *open = act;
                }
                Ok(slot)
            }
            Err(mismatch) => {
                // what was found meanwhile may rest on this pair
                for pair in self.noted.drain(noted..) {
                    self.known.remove(&pair);
                }
                Err(mismatch)
            }
        }
    }

    fn compare(&mut self, w: Id, r: Id, depth: usize) -> Result<Act, Mismatch> {
        let (writer, reader) = (&self.writer.nodes, &self.reader.nodes);
        Ok(match (writer.get(w), reader.get(r)) {
            (Node::Union(branches), _) => return self.written_union(w, branches, r, depth),
            (_, Node::Union(branches)) => return self.read_union(w, branches, depth),
            (Node::Null, Node::Null)
            | (Node::Boolean, Node::Boolean)
            | (Node::Int, Node::Int | Node::Long)
            | (Node::Long, Node::Long)
            | (Node::Float, Node::Float)
            | (Node::Double, Node::Double)
            | (Node::String, Node::String | Node::Bytes) => Act::Copy(w),
            (Node::Int, Node::Float) => Act::IntToFloat,
            (Node::Int, Node::Double) => Act::IntToDouble,
            (Node::Long, Node::Float) => Act::LongToFloat,
            (Node::Long, Node::Double) => Act::LongToDouble,
            (Node::Float, Node::Double) => Act::FloatToDouble,
            (Node::Bytes, Node::String) => Act::Text,
            (Node::Bytes, Node::Bytes) => {
                self.decimals(w, r)?;
                Act::Copy(w)
            }
            (Node::Fixed(one), Node::Fixed(two)) => {
                names(&one.name, &two.name)?;
                if one.size != two.size {
                    return mismatch(format!("a fixed of {} bytes is read as one of {}", one.size, two.size));
                }
                self.decimals(w, r)?;
                Act::Copy(w)
            }
            (Node::Enum(one), Node::Enum(two)) => {
                names(&one.name, &two.name)?;
                let index = |symbol: &str| two.symbol(symbol.as_bytes()).or(two.default);
                let indexes: Box<[Option<u32>]> = one.symbols.iter().map(|symbol| index(symbol)).collect();
                if indexes.iter().all(Option::is_none) && !indexes.is_empty() {
                    return mismatch(format!("the reader's {} knows none of the symbols", two.name.full));
                }
                if indexes.iter().enumerate().all(|(at, index)| *index == Some(at as u32)) {
                    Act::Copy(w)
                } else {
                    Act::Enum(indexes)
                }
            }
            (Node::Array(one), Node::Array(two)) => {
                let items = within("items", self.pair(*one, *two, depth))?;
                let empty = matches!(self.writer.nodes.step(w), Step::Array(_, true));
                if self.is_copy(items) { Act::Copy(w) } else { Act::Array(items, empty) }
            }
            (Node::Map(one), Node::Map(two)) => {
                let values = within("values", self.pair(*one, *two, depth))?;
                if self.is_copy(values) { Act::Copy(w) } else { Act::Map(values) }
            }
            (Node::Record(one), Node::Record(two)) => {
                names(&one.name, &two.name)?;
                self.record(w, one, two, depth)?
            }
            _ => return mismatch(format!("{} is no {}", writer.title(w), reader.title(r))),
        })
    }

    fn decimals(&self, w: Id, r: Id) -> Result<(), Mismatch> {
        match (self.writer.nodes.decimals.get(&w), self.reader.nodes.decimals.get(&r)) {
            (Some(one), Some(two)) if one.scale != two.scale => {
                mismatch(format!("a decimal of scale {} is read as one of scale {}", one.scale, two.scale))
            }
            (Some(one), Some(two)) if one.precision > two.precision => mismatch(format!(
                "a decimal of precision {} is read as one of precision {}",
                one.precision, two.precision
            )),
            _ => Ok(()),
        }
    }

    fn written_union(&mut self, w: Id, branches: &[Id], r: Id, depth: usize) -> Result<Act, Mismatch> {
        let mut acts = Vec::with_capacity(branches.len());
        let mut first = None;
        for branch in branches {
            match self.pair(*branch, r, depth) {
                Ok(act) => acts.push(act),
                Err(mismatch) => {
                    acts.push(self.add(Act::Never));
                    first.get_or_insert(mismatch);
                }
            }
        }
        if acts.iter().all(|act| matches!(self.acts.get(*act), Some(Act::Never)))
            && let Some(mismatch) = first
        {
            return Err(mismatch);
        }
        let same = |(at, act): (usize, &ActId)| match self.acts.get(*act) {
            Some(Act::ToUnion(branch, act)) => *branch == at && self.is_copy(*act),
            _ => false,
        };
        Ok(if acts.iter().enumerate().all(same) { Act::Copy(w) } else { Act::FromUnion(acts.into()) })
    }

    fn read_union(&mut self, w: Id, branches: &[Id], depth: usize) -> Result<Act, Mismatch> {
        let (writer, reader) = (self.writer, self.reader);
        let node = writer.nodes.get(w);
        let kind =
            |branch: &Id| std::mem::discriminant(reader.nodes.get(*branch)) == std::mem::discriminant(node);
        // of a type without a name, the title is the kind
        let exact = |branch: &Id| kind(branch) && reader.nodes.title(*branch) == writer.nodes.title(w);
        let mut first = None;
        for preference in 0..3 {
            for (at, branch) in branches.iter().enumerate() {
                let place = if exact(branch) {
                    0
                } else if kind(branch) {
                    1
                } else {
                    2
                };
                if place != preference {
                    continue;
                }
                match self.pair(w, *branch, depth) {
                    Ok(act) => return Ok(Act::ToUnion(at, act)),
                    Err(mismatch) => {
                        first.get_or_insert(mismatch);
                    }
                }
            }
        }
        match first {
            // of a single candidate the reason says more
            Some(first) if branches.iter().filter(|branch| kind(branch)).count() == 1 => Err(first),
            _ => mismatch(format!("no branch of the reader's union takes {}", writer.nodes.title(w))),
        }
    }

    fn record(&mut self, w: Id, one: &Record, two: &Record, depth: usize) -> Result<Act, Mismatch> {
        let mut sources = Vec::with_capacity(two.fields.len());
        for field in &two.fields {
            let aliases = field.aliases.iter().map(|alias| alias.as_bytes());
            let mut names = std::iter::once(field.name.as_bytes()).chain(aliases);
            match names.find_map(|name| one.field(name)) {
                Some(at) => {
                    let node = one.fields.get(at).map_or(field.node, |field| field.node);
                    sources.push(Source::Field(at, within(&field.name, self.pair(node, field.node, depth))?));
                }
                None => match &field.default {
                    Some(default) => sources.push(Source::Default(default.clone())),
                    None => {
                        let reason = "the writer's record lacks it, and it has no default";
                        return within(&field.name, mismatch(reason));
                    }
                },
            }
        }
        let taken: Vec<usize> = sources
            .iter()
            .filter_map(|source| match source {
                Source::Field(at, _) => Some(*at),
                Source::Default(_) => None,
            })
            .collect();
        let copied = |source: &Source| matches!(source, Source::Field(_, act) if self.is_copy(*act));
        if sources.iter().all(copied) && taken.iter().copied().eq(0..one.fields.len()) {
            return Ok(Act::Copy(w));
        }
        let nodes: Vec<Id> = one.fields.iter().map(|field| field.node).collect();
        if !taken.is_sorted_by(|one, two| one < two) {
            return Ok(Act::Record(Box::new(Fields::Jump { writer: nodes, reader: sources })));
        }
        let mut parts = Vec::new();
        let mut next = 0;
        for source in sources {
            match source {
                Source::Field(at, act) => {
                    parts.extend(nodes.iter().take(at).skip(next).map(|node| Part::Skip(*node)));
                    parts.push(Part::Take(act));
                    next = at + 1;
                }
                Source::Default(default) => parts.push(Part::Put(default)),
            }
        }
        parts.extend(nodes.iter().skip(next).map(|node| Part::Skip(*node)));
        Ok(Act::Record(Box::new(Fields::Stream(parts))))
    }
}

fn within<T>(name: &str, result: Result<T, Mismatch>) -> Result<T, Mismatch> {
    result.map_err(|mut mismatch| {
        mismatch.at.push(name.to_owned());
        mismatch
    })
}

/// Named types match by name without namespace, or by an alias of the reader's.
fn names(writer: &Name, reader: &Name) -> Result<(), Mismatch> {
    let short = writer.short();
    let alias = |alias: &str| alias == &*writer.full || alias.rsplit('.').next() == Some(short);
    if short == reader.short() || reader.aliases.iter().any(|name| alias(name)) {
        return Ok(());
    }
    mismatch(format!(
        "the writer's type is called {}, the reader's {}: an alias in the reader's would join them",
        writer.full, reader.full
    ))
}

struct Run<'a, 'b> {
    resolver: &'a Resolver,
    rest: &'b [u8],
    out: &'a mut Vec<u8>,
    /// A stack: where fields of records lie that are read out of order. Counted from the end, since `rest` shrinks.
    places: Vec<&'b [u8]>,
    empty_items: usize,
}

impl Run<'_, '_> {
    fn act(&mut self, act: ActId, depth: usize) -> Result<(), &'static str> {
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
