//! Two schemas compared, once: the acts that turn a datum of one into a datum of the other.

use std::collections::HashMap;

use super::{Act, ActId, Fields, Part, Source};
use crate::schema::node::{Id, Name, Node, Record, Step};
use crate::schema::{MAX_DEPTH, Schema};

/// Why a pair of types does not resolve; the way to it, innermost first.
pub(super) struct Misfit {
    pub at: Vec<String>,
    pub rule: String,
}

/// Of a record each field that does not resolve; else one.
pub(super) type Misfits = Vec<Misfit>;

fn mismatch<T>(rule: impl Into<String>) -> Result<T, Misfits> {
    Err(vec![Misfit { at: Vec::new(), rule: rule.into() }])
}

pub(super) struct Compare<'a> {
    writer: &'a Schema,
    reader: &'a Schema,
    pub acts: Vec<Act>,
    /// Pairs that resolve, or are being compared further out: a recursive type resolves if the rest of it does.
    known: HashMap<(Id, Id), ActId>,
    /// The keys of `known`, in order.
    noted: Vec<(Id, Id)>,
    /// Comparisons left; unions of unions of … multiply.
    fuel: usize,
}

impl<'a> Compare<'a> {
    pub fn new(writer: &'a Schema, reader: &'a Schema) -> Compare<'a> {
        Compare { writer, reader, acts: Vec::new(), known: HashMap::new(), noted: Vec::new(), fuel: 100_000 }
    }

    fn add(&mut self, act: Act) -> ActId {
        self.acts.push(act);
        self.acts.len() - 1
    }

    fn is_copy(&self, act: ActId) -> bool {
        matches!(self.acts.get(act), Some(Act::Copy(_)))
    }

    /// What is done with a value of node `w` to make it one of node `r`.
    pub fn pair(&mut self, w: Id, r: Id, depth: usize) -> Result<ActId, Misfits> {
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
            Err(misfits) => {
                // what was found meanwhile may rest on this pair
                for pair in self.noted.drain(noted..) {
                    self.known.remove(&pair);
                }
                Err(misfits)
            }
        }
    }

    fn compare(&mut self, w: Id, r: Id, depth: usize) -> Result<Act, Misfits> {
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

    fn decimals(&self, w: Id, r: Id) -> Result<(), Misfits> {
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

    fn written_union(&mut self, w: Id, branches: &[Id], r: Id, depth: usize) -> Result<Act, Misfits> {
        let mut acts = Vec::with_capacity(branches.len());
        let mut first = None;
        for branch in branches {
            match self.pair(*branch, r, depth) {
                Ok(act) => acts.push(act),
                Err(misfits) => {
                    acts.push(self.add(Act::Never));
                    first.get_or_insert(misfits);
                }
            }
        }
        if acts.iter().all(|act| matches!(self.acts.get(*act), Some(Act::Never)))
            && let Some(misfits) = first
        {
            return Err(misfits);
        }
        let same = |(at, act): (usize, &ActId)| match self.acts.get(*act) {
            Some(Act::ToUnion(branch, act)) => *branch == at && self.is_copy(*act),
            _ => false,
        };
        Ok(if acts.iter().enumerate().all(same) { Act::Copy(w) } else { Act::FromUnion(acts.into()) })
    }

    fn read_union(&mut self, w: Id, branches: &[Id], depth: usize) -> Result<Act, Misfits> {
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
                    Err(misfits) => {
                        first.get_or_insert(misfits);
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

    fn record(&mut self, w: Id, one: &Record, two: &Record, depth: usize) -> Result<Act, Misfits> {
        let mut sources = Vec::with_capacity(two.fields.len());
        let mut misfits = Misfits::new();
        for field in &two.fields {
            let aliases = field.aliases.iter().map(|alias| alias.as_bytes());
            let mut names = std::iter::once(field.name.as_bytes()).chain(aliases);
            let source = match (names.find_map(|name| one.field(name)), &field.default) {
                (Some(at), _) => {
                    let node = one.fields.get(at).map_or(field.node, |field| field.node);
                    self.pair(node, field.node, depth).map(|act| Source::Field(at, act))
                }
                (None, Some(default)) => Ok(Source::Default(default.clone())),
                (None, None) => mismatch("the writer's record lacks it, and it has no default"),
            };
            match within(&field.name, source) {
                Ok(source) => sources.push(source),
                Err(more) => misfits.extend(more),
            }
        }
        if !misfits.is_empty() {
            return Err(misfits);
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

fn within<T>(name: &str, result: Result<T, Misfits>) -> Result<T, Misfits> {
    result.map_err(|mut misfits| {
        misfits.iter_mut().for_each(|misfit| misfit.at.push(name.to_owned()));
        misfits
    })
}

/// Named types match by name without namespace, or by an alias of the reader's.
fn names(writer: &Name, reader: &Name) -> Result<(), Misfits> {
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
