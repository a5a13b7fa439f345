//! Records by the values of some of their fields, rather than by their key.
//!
//! ```text
//!  each layer (base, runs), each index:   [ 24 bits of the fields' hash | 40 bits where the entry lies ], sorted
//!
//!  lookup: in each layer the entries of that hash  ==by key==>  those that no newer layer replaces  ==>  those that match
//! ```
//!
//! A layer's table is made with the layer, and kept with it for all views that share it; it never changes. It takes 8 bytes a
//! record and index: of a run in memory, of a base in a file of the cache (`table`). Entries of one hash lie in the order of
//! their keys, so a lookup gives its records in that order, and can begin at any key.
//!
//! Values are compared as values: an int equals a long of the same value, an enum's symbol its text. A union is what its
//! branch is.
//!
//! Owns: what is in the tables, and lookup through them. Does not own: where they are (`table`), which indexes there are (`hold`).

use std::borrow::Cow;

use super::cache::Held;
use super::overlay::Run;
use super::read::Value;
use super::table::{Table, Word};
use super::{Base, Error, Found, Inner, View};
use crate::codec::Part;
use crate::error::ErrorKind;
use crate::format::index;
use crate::gauge::Budget;
use crate::schema::{Id, Malformed, Node, Schema};

const WHERE_BITS: u32 = 40;
/// Where an entry lies: its offset in the base, its number in the run.
pub(super) const WHERE_MASK: u64 = (1 << WHERE_BITS) - 1;

/// What a field is looked up by.
#[derive(Clone, Debug, PartialEq)]
pub enum Term<'t> {
    /// Null, or a branch of a union that has no such field.
    Null,
    /// A boolean.
    Bool(bool),
    /// An int or a long; or a float or double of just this value.
    Int(i64),
    /// A float or a double.
    Float(f64),
    /// A string, or an enum's symbol.
    Text(Cow<'t, str>),
    /// Bytes, or a fixed.
    Bytes(Cow<'t, [u8]>),
}

impl<'t> From<&'t str> for Term<'t> {
    fn from(text: &'t str) -> Self {
        Term::Text(Cow::Borrowed(text))
    }
}

impl<'t> From<&'t String> for Term<'t> {
    fn from(text: &'t String) -> Self {
        Term::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Term<'_> {
    fn from(text: String) -> Self {
        Term::Text(Cow::Owned(text))
    }
}

impl<'t> From<&'t [u8]> for Term<'t> {
    fn from(bytes: &'t [u8]) -> Self {
        Term::Bytes(Cow::Borrowed(bytes))
    }
}

impl From<bool> for Term<'_> {
    fn from(value: bool) -> Self {
        Term::Bool(value)
    }
}

impl From<i32> for Term<'_> {
    fn from(value: i32) -> Self {
        Term::Int(value.into())
    }
}

impl From<i64> for Term<'_> {
    fn from(value: i64) -> Self {
        Term::Int(value)
    }
}

impl From<f64> for Term<'_> {
    fn from(value: f64) -> Self {
        Term::Float(value)
    }
}

impl<'t, T: Into<Term<'t>>> From<Option<T>> for Term<'t> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Term::Null, Into::into)
    }
}

impl Term<'_> {
    /// Appends what it is compared by: the same in each release, since tables in caches are by its hash.
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Term::Null => out.push(0),
            Term::Bool(value) => out.extend([1, u8::from(*value)]),
            Term::Int(value) => {
                out.push(2);
                out.extend(value.to_le_bytes());
            }
            Term::Float(value) => {
                out.push(3);
                // One zero, and one that is not a number.
                let value = if value.is_nan() { f64::NAN } else { value + 0.0 };
                out.extend(value.to_le_bytes());
            }
            Term::Text(text) => put_bytes(4, text.as_bytes(), out),
            Term::Bytes(bytes) => put_bytes(5, bytes, out),
        }
    }
}

fn put_bytes(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

/// The fields of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Index {
    fields: Vec<String>,
}

impl Index {
    pub fn new(fields: Vec<String>) -> Index {
        Index { fields }
    }

    pub fn fields(&self) -> &[String] {
        &self.fields
    }

    /// Why values of `schema` cannot be found by it.
    pub fn misfit(&self, schema: &Schema) -> Option<String> {
        self.fields.iter().find_map(|field| match kinds(schema, field) {
            kinds if kinds.is_empty() => Some(format!("the schema has no field {field}")),
            kinds if kinds.iter().all(|id| is_composite(schema.nodes.get(*id))) => {
                Some(format!("field {field} is no single value"))
            }
            _ => None,
        })
    }

    /// Appends what the fields of a datum are compared by.
    fn put(&self, schema: &Schema, datum: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        let whole = Part::whole(schema, datum)?;
        for field in &self.fields {
            let mut part = Some(whole);
            for name in field.split('.') {
                part = match part {
                    Some(part) => part.field(name)?,
                    None => None,
                };
            }
            put_part(part, out);
        }
        Ok(())
    }
}

fn put_part(part: Option<Part<'_>>, out: &mut Vec<u8>) {
    let Some(part) = part else { return Term::Null.put(out) };
    let number = || part.as_i64().map(Term::Int).or_else(|| part.as_f64().map(Term::Float));
    let term = part.as_bool().map(Term::Bool).or_else(number);
    let term = term.or_else(|| part.as_str().map(Term::from)).or_else(|| part.as_bytes().map(Term::from));
    match term {
        Some(term) => term.put(out),
        None if part.is_null() => Term::Null.put(out),
        // A record, an array or a map in a union: equals nothing that can be asked for.
        None => out.push(6),
    }
}

/// The nodes that a field can be, branches of unions each by itself.
fn kinds(schema: &Schema, field: &str) -> Vec<Id> {
    let nodes = &schema.nodes;
    let branches = |id: Id| match nodes.get(id) {
        Node::Union(branches) => branches.to_vec(),
        _ => vec![id],
    };
    let mut here = branches(nodes.root);
    for name in field.split('.') {
        let fields = here.iter().filter_map(|id| match nodes.get(*id) {
            Node::Record(record) => record.field(name.as_bytes()).and_then(|at| record.fields.get(at)),
            _ => None,
        });
        here = fields.flat_map(|field| branches(field.node)).collect();
    }
    here
}

fn is_composite(node: &Node) -> bool {
    matches!(node, Node::Record(_) | Node::Array(_) | Node::Map(_) | Node::Null)
}

/// One index of a view.
#[derive(Clone, Debug)]
pub(super) struct Lookup {
    index: Index,
    /// Of the base, then of the runs, newest first; or why there are none.
    tables: Result<(Option<Table>, Vec<Table>), String>,
}

impl Lookup {
    fn tables(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter().flat_map(|(base, runs)| base.iter().chain(runs))
    }

    pub fn charge(&self, memory: &Budget) {
        self.tables().for_each(|table| table.charge(memory));
    }

    /// Bytes of the tables of runs, all of which are memory.
    pub fn run_bytes(&self) -> u64 {
        self.tables.iter().flat_map(|(_, runs)| runs).map(|table| table.bytes().0).sum()
    }

    /// Its base's file in the cache.
    pub fn held(&self) -> Option<&Held> {
        self.tables.as_ref().ok().and_then(|(base, _)| base.as_ref()?.held())
    }
}

/// The lookups that a view has, out of its layers' tables; what is not there yet is made.
pub(super) fn of(view: &Inner) -> Result<Vec<Lookup>, Error> {
    let line = &view.line;
    let lookups = view.hold.indexes().iter().map(|index| {
        if let Some(why) = index.misfit(&view.about.schema) {
            return Ok(Lookup { index: index.clone(), tables: Err(why) });
        }
        let base = view.base.as_ref().map(|base| {
            base.tables().get(index, line, || {
                let make = || words_of(view, index, base);
                match &view.cache {
                    Some(cache) => Table::kept(cache, &view.identity, (base, index, line), make),
                    None => make().map(Table::of),
                }
            })
        });
        let base = base.transpose()?;
        let mut words = Words::of(view, index);
        let runs = view.overlay.runs().iter().map(|run| {
            run.tables().get(index, line, || {
                let mut table = Vec::with_capacity(run.len());
                for at in 0..run.len() {
                    table.extend(words.word(&run.nth(at)?, at as u64)?);
                }
                Ok(Table::of(table))
            })
        });
        let runs = runs.collect::<Result<Vec<_>, Error>>()?;
        Ok(Lookup { index: index.clone(), tables: Ok((base, runs)) })
    });
    lookups.collect()
}

/// The words of a base's table. Cost: a pass over all of it.
fn words_of(view: &Inner, index: &Index, base: &Base) -> Result<Vec<u64>, Error> {
    let mut words = Words::of(view, index);
    let mut table = Vec::with_capacity(base.records() as usize);
    base.each(|at, found| {
        table.extend(words.word(found, at)?);
        Ok(())
    })?;
    Ok(table)
}

/// Makes words of tables.
struct Words<'v> {
    view: &'v Inner,
    index: &'v Index,
    buffer: Vec<u8>,
}

impl<'v> Words<'v> {
    fn of(view: &'v Inner, index: &'v Index) -> Words<'v> {
        Words { view, index, buffer: Vec::new() }
    }

    /// That of an entry which lies at `at`; `None` for a delete.
    fn word(&mut self, found: &Found<'_>, at: u64) -> Result<Option<u64>, Error> {
        let Some(datum) = self.view.resolved(found)? else { return Ok(None) };
        self.buffer.clear();
        let put = self.index.put(&self.view.about.schema, &datum, &mut self.buffer);
        put.map_err(|error| Error::Schema(error.into()))?;
        Ok(Some(hash_of(&self.buffer) | at & WHERE_MASK))
    }
}

/// The high 24 bits of a table's word.
fn hash_of(terms: &[u8]) -> u64 {
    index::hash(terms) & !WHERE_MASK
}

impl View {
    /// The records whose `field` (`a.b` reaches into a record) is `value`, in the order of the keys' bytes. Needs an index
    /// of just that field.
    ///
    /// Cost: a search in a sorted table for each layer, then for each record found what a `get` costs.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`]: there is no such index, or the field is never a value of this type.
    pub fn by<'t>(&self, field: &str, value: impl Into<Term<'t>>) -> crate::Result<Matches<'_>> {
        self.by_all(&[(field, value.into())])
    }

    /// The records in which each of these fields is its value. Needs an index of just these fields, in whatever order.
    ///
    /// # Errors
    /// As [`View::by`].
    pub fn by_all(&self, terms: &[(&str, Term<'_>)]) -> crate::Result<Matches<'_>> {
        self.by_all_from(terms, [])
    }

    /// As [`View::by_all`], from the first key at or above `from` on: for going on where a page of results ended.
    ///
    /// # Errors
    /// As [`View::by`].
    pub fn by_all_from(
        &self,
        terms: &[(&str, Term<'_>)],
        from: impl AsRef<[u8]>,
    ) -> crate::Result<Matches<'_>> {
        let lookup = self.lookup(terms.iter().map(|(field, _)| *field))?;
        let tables = lookup.tables.as_ref().map_err(|why| {
            let fields = lookup.index.fields.join(", ");
            crate::Error::new(
                ErrorKind::Rejected,
                format!("version {} has no index of {fields}: {why}", self.version()),
            )
        })?;
        let mut wanted = Vec::new();
        for field in &lookup.index.fields {
            let term = terms.iter().find(|(of, _)| of == field).map(|(_, term)| term);
            let term = term
                .ok_or_else(|| crate::Error::new(ErrorKind::Internal, "an index was mistaken for another"))?;
            self.fitting(field, term)?.put(&mut wanted);
        }
        Ok(Matches::of(&self.0, &lookup.index, tables, wanted, from.as_ref())?)
    }

    /// What a text stands for where it is looked up in `field`: text as it is, a number, `true` or `false`.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`]: the field is never such a value.
    pub fn term<'t>(&self, field: &str, text: &'t [u8]) -> crate::Result<Term<'t>> {
        let (schema, utf8) = (self.schema(), std::str::from_utf8(text).ok());
        let read = |id: &Id| match schema.nodes.get(*id) {
            Node::Boolean => utf8?.parse().ok().map(Term::Bool),
            Node::Int | Node::Long => utf8?.parse().ok().map(Term::Int),
            Node::Float | Node::Double => utf8?.parse().ok().map(Term::Float),
            Node::String | Node::Enum(_) => utf8.map(Term::from),
            Node::Bytes | Node::Fixed(_) => Some(Term::from(text)),
            _ => None,
        };
        let kinds = kinds(schema, field);
        kinds.iter().find_map(read).ok_or_else(|| {
            let kinds: Vec<_> = kinds.iter().map(|id| schema.nodes.title(*id)).collect();
            let (text, kinds) = (String::from_utf8_lossy(text), kinds.join(" or "));
            crate::Error::new(
                ErrorKind::Rejected,
                format!("{text:?} is no value of field {field}, which is {kinds}"),
            )
        })
    }

    /// The fields of each index.
    pub fn indexes(&self) -> impl Iterator<Item = &[String]> {
        self.0.lookups.iter().map(|lookup| lookup.index.fields.as_slice())
    }

    /// Whether records may have such a field, indexed or not.
    pub fn has_field(&self, field: &str) -> bool {
        !kinds(self.schema(), field).is_empty()
    }

    /// Bytes of memory that the indexes take, besides what is mapped.
    pub fn index_bytes(&self) -> u64 {
        self.index_sizes().0
    }

    /// Bytes that the indexes take: of memory, and of files that are mapped.
    pub(crate) fn index_sizes(&self) -> (u64, u64) {
        let tables = self.0.lookups.iter().flat_map(Lookup::tables);
        tables.map(Table::bytes).fold((0, 0), |(memory, mapped), of| (memory + of.0, mapped + of.1))
    }

    fn lookup<'f>(&self, fields: impl Iterator<Item = &'f str> + Clone) -> crate::Result<&Lookup> {
        let count = fields.clone().count();
        let fits = |lookup: &&Lookup| {
            let of = &lookup.index.fields;
            of.len() == count && of.iter().all(|field| fields.clone().any(|asked| asked == field))
        };
        self.0.lookups.iter().find(fits).ok_or_else(|| {
            let asked = fields.clone().collect::<Vec<_>>().join(", ");
            let have: Vec<_> = self.indexes().map(|fields| fields.join(", ")).collect();
            let have = match have.as_slice() {
                [] => "there is none".to_owned(),
                have => format!("there is: {}", have.join("; ")),
            };
            crate::Error::new(
                ErrorKind::Rejected,
                format!(
                    "there is no index of {asked}; {have}. A consumer has those that `indexes` in its \
                     [datasets.{}.consumer] names: add [{}], and restart it",
                    self.identity().dataset,
                    fields.clone().map(|field| format!("{field:?}")).collect::<Vec<_>>().join(", "),
                ),
            )
        })
    }

    /// The term as the field's type has it: a whole number is a float where the field is one.
    fn fitting<'t>(&self, field: &str, term: &'t Term<'t>) -> crate::Result<Cow<'t, Term<'t>>> {
        let (schema, kinds) = (self.schema(), kinds(self.schema(), field));
        let is = |wanted: fn(&Node) -> bool| kinds.iter().any(|id| wanted(schema.nodes.get(*id)));
        let integer = || is(|node| matches!(node, Node::Int | Node::Long));
        let float = || is(|node| matches!(node, Node::Float | Node::Double));
        let fits = match term {
            Term::Null => true,
            Term::Bool(_) => is(|node| matches!(node, Node::Boolean)),
            Term::Int(_) => integer(),
            Term::Float(_) => float(),
            Term::Text(_) => is(|node| matches!(node, Node::String | Node::Enum(_))),
            Term::Bytes(_) => is(|node| matches!(node, Node::Bytes | Node::Fixed(_))),
        };
        match term {
            term if fits => Ok(Cow::Borrowed(term)),
            Term::Int(value) if float() => Ok(Cow::Owned(Term::Float(*value as f64))),
            // What lies between two integers equals none, and is no mistake.
            Term::Float(value) if integer() && value.fract() == 0.0 => {
                Ok(Cow::Owned(Term::Int(*value as i64)))
            }
            Term::Float(_) if integer() => Ok(Cow::Borrowed(term)),
            _ => {
                let kinds: Vec<_> = kinds.iter().map(|id| schema.nodes.title(*id)).collect();
                let what = format!("field {field} is {}, and is never {term:?}", kinds.join(" or "));
                Err(crate::Error::new(ErrorKind::Rejected, what))
            }
        }
    }
}

/// A layer's entries of one hash.
struct Source<'a> {
    layer: Layer<'a>,
    words: &'a [Word],
    head: Option<Found<'a>>,
}

#[derive(Clone, Copy)]
enum Layer<'a> {
    Base(&'a Base),
    /// And how many newer ones there are.
    Run(&'a Run, usize),
}

impl<'a> Layer<'a> {
    fn entry(self, word: &Word) -> Result<Found<'a>, Error> {
        let word = u64::from_le_bytes(*word);
        match self {
            Layer::Base(base) => base.entry_at(word & WHERE_MASK),
            Layer::Run(run, _) => run.nth((word & WHERE_MASK) as usize),
        }
    }
}

impl<'a> Source<'a> {
    fn new(layer: Layer<'a>, mut words: &'a [Word], from: &[u8]) -> Result<Source<'a>, Error> {
        // Those of one hash lie in the order of their keys.
        let (mut low, mut high) = (0, if from.is_empty() { 0 } else { words.len() });
        while low < high {
            let middle = low + (high - low) / 2;
            let word = words.get(middle).ok_or(Error::Internal("a table shorter than itself"))?;
            if layer.entry(word)?.entry.key < from {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        words = words.get(low..).unwrap_or_default();
        let mut source = Source { layer, words, head: None };
        source.advance()?;
        Ok(source)
    }

    fn advance(&mut self) -> Result<Option<Found<'a>>, Error> {
        let next = match self.words.split_first() {
            Some((word, rest)) => {
                self.words = rest;
                Some(self.layer.entry(word)?)
            }
            None => None,
        };
        Ok(std::mem::replace(&mut self.head, next))
    }
}

/// Records in key order; see [`View::by`]. After an error there is nothing more.
pub struct Matches<'a> {
    view: &'a Inner,
    index: &'a Index,
    wanted: Vec<u8>,
    /// Newest first, the base last.
    sources: Vec<Source<'a>>,
    buffer: Vec<u8>,
    over: bool,
}

impl<'a> Matches<'a> {
    fn of(
        view: &'a Inner,
        index: &'a Index,
        (base, runs): &'a (Option<Table>, Vec<Table>),
        wanted: Vec<u8>,
        from: &[u8],
    ) -> Result<Matches<'a>, Error> {
        let hash = hash_of(&wanted);
        let mut sources = Vec::with_capacity(runs.len() + 1);
        for (newer, (run, table)) in view.overlay.runs().iter().zip(runs).enumerate() {
            let words = table.those(hash, None, || Err(Error::Internal("a table in memory is damaged")))?;
            sources.push(Source::new(Layer::Run(run, newer), words, from)?);
        }
        if let (Some(of), Some(table)) = (&view.base, base) {
            let words = table.those(hash, view.cache.as_ref(), || words_of(view, index, of))?;
            sources.push(Source::new(Layer::Base(of), words, from)?);
        }
        Ok(Matches { view, index, wanted, sources, buffer: Vec::new(), over: false })
    }

    fn step(&mut self) -> Result<Option<Value<'a>>, Error> {
        loop {
            let heads = self.sources.iter().enumerate();
            let heads = heads.filter_map(|(at, source)| Some((source.head.as_ref()?.entry.key, at)));
            let Some((_, at)) = heads.min() else { return Ok(None) };
            let Some(source) = self.sources.get_mut(at) else { return Ok(None) };
            let layer = source.layer;
            let Some(found) = source.advance()? else { return Ok(None) };
            let (key, runs) = (found.entry.key, self.view.overlay.runs());
            let newer = match layer {
                Layer::Base(_) => runs,
                Layer::Run(_, newer) => runs.get(..newer).unwrap_or_default(),
            };
            if !newer.is_empty() {
                let hash = index::hash(key);
                let mut replaced = false;
                for run in newer {
                    replaced = replaced || run.find(hash, key)?.is_some();
                }
                if replaced {
                    continue;
                }
            }
            let Some(datum) = self.view.resolved(&found)? else { continue };
            self.buffer.clear();
            let put = self.index.put(&self.view.about.schema, &datum, &mut self.buffer);
            put.map_err(|error| Error::Schema(error.into()))?;
            if self.buffer == self.wanted {
                return self.view.value(&found);
            }
        }
    }
}

impl<'a> Iterator for Matches<'a> {
    type Item = crate::Result<Value<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let step = self.step();
        self.over = !matches!(step, Ok(Some(_)));
        step.map_err(crate::Error::from).transpose()
    }
}
