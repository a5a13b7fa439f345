//! A datum as columns, as Parquet stores them: each value that is no record, list or map goes into a column of its own, beside
//! it two levels that say how much of the way to it there was.
//!
//! ```text
//!  schema --new--> tree (what the file's schema says)   datum --row--> columns: levels, values     (Dremel, VLDB 2010)
//!
//!  tags: ["null", {"array": "string"}]     null  []   ["a","b"]       optional tags (LIST) { repeated list { element } }
//!                      repetition level     0    0     0   1           begins a row | goes on in the list
//!                      definition level     0    1     2   2           null | empty | there
//! ```
//!
//! Owns: which columns a schema has, and the shredding. Does not own: the file, or how a column is encoded in it.

use std::ops::Range;

use crate::schema::node::Step;
use crate::schema::{Decimal, Id, Logical, Node, Schema, Unit};

mod shred;

pub use shred::Refused;

/// More columns than this come of types that hold types that hold types: nobody reads such a table.
const MOST_COLUMNS: usize = 10_000;
/// Most digits of a decimal that readers of Parquet take (Arrow's 256 bits).
const MOST_DIGITS: u64 = 76;

/// Bytes that a value of bytes takes beside its own: where it ends, and what points at it while it is written.
const BESIDE: usize = 48;

/// What a column's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Always null.
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    /// UTF-8.
    Text,
    Enum,
    /// So many bytes, one at least.
    Fixed(usize),
    /// See [`Logical`]; durations and UUIDs are 12 and 16 bytes.
    Logical(Logical),
    /// In so many bytes, most significant first, as few as hold its digits.
    Decimal(Decimal, usize),
}

/// Values of a column, in order; those that are absent take no place.
#[derive(Debug)]
pub(crate) enum Values {
    Boolean(Vec<bool>),
    Int(Vec<i32>),
    Long(Vec<i64>),
    Float(Vec<f32>),
    Double(Vec<f64>),
    /// All of them, and where each ends.
    Bytes(Vec<u8>, Vec<usize>),
}

/// One column of the rows so far.
#[derive(Debug)]
pub(crate) struct Column {
    /// Names of the fields that lead to it, joined by dots.
    pub path: String,
    pub kind: Kind,
    /// Bytes of a value in the datum, where its type says them; else its length stands before it.
    size: Option<usize>,
    /// Of an enum.
    symbols: Vec<Box<str>>,
    /// Of each row at least one.
    pub definitions: Vec<i16>,
    pub repetitions: Vec<i16>,
    pub values: Values,
}

/// A field of the file's schema, and the columns below it.
#[derive(Debug)]
pub(crate) struct Tree {
    pub name: String,
    pub optional: bool,
    pub shape: Shape,
    columns: Range<usize>,
}

#[derive(Debug)]
pub(crate) enum Shape {
    /// Of this column.
    Leaf(usize),
    Record(Vec<Tree>),
    /// Of this; whether its items take no bytes in the datum, so that nothing there bounds their number.
    List(Box<Tree>, bool),
    /// Keys and values.
    Map(Box<[Tree; 2]>),
    /// A union that is null or of one type: for each branch whether it is null.
    Maybe(Box<[bool]>, Box<Shape>),
    /// A union of several: for each branch the member that holds it, or that it is null. All members are optional.
    Choice(Box<[Option<usize>]>, Vec<Tree>),
}

/// Why a schema cannot be columns. Nothing in the data changes that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct Unfit {
    /// The field, by the names that lead to it.
    pub path: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// Rows of a schema's datums, as columns.
#[derive(Debug)]
pub struct Columns {
    /// The fields of the schema's record; where it is none, one field by the name of `value`.
    pub(crate) fields: Vec<Tree>,
    pub(crate) columns: Vec<Column>,
    rows: usize,
    bytes: usize,
}

impl Columns {
    /// Columns without rows.
    ///
    /// # Errors
    /// [`Unfit`], which names the field: Parquet has no types that hold themselves, and no empty records.
    pub fn new(schema: &Schema) -> Result<Columns, Unfit> {
        let mut builder = Builder { schema, columns: Vec::new(), path: Vec::new(), open: Vec::new() };
        let root = schema.nodes.root;
        let fields = match schema.nodes.get(root) {
            Node::Record(_) => match builder.shape(root)? {
                Shape::Record(fields) => fields,
                _ => unreachable!("the shape of a record is one"),
            },
            _ => vec![builder.tree("value", root)?],
        };
        Ok(Columns { fields, columns: builder.columns, rows: 0, bytes: 0 })
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes that they take here.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets the rows, and keeps the memory for the next ones.
    pub fn clear(&mut self) {
        (self.rows, self.bytes) = (0, 0);
        for column in &mut self.columns {
            column.definitions.clear();
            column.repetitions.clear();
            column.values.clear();
        }
    }
}

impl Values {
    /// None yet.
    pub fn of(kind: Kind) -> Values {
        match kind {
            Kind::Boolean => Values::Boolean(Vec::new()),
            Kind::Null | Kind::Int => Values::Int(Vec::new()),
            Kind::Logical(Logical::Date | Logical::Time(Unit::Millis)) => Values::Int(Vec::new()),
            Kind::Long
            | Kind::Logical(Logical::Time(_) | Logical::Timestamp(_) | Logical::LocalTimestamp(_)) => {
                Values::Long(Vec::new())
            }
            Kind::Float => Values::Float(Vec::new()),
            Kind::Double => Values::Double(Vec::new()),
            Kind::Bytes
            | Kind::Text
            | Kind::Enum
            | Kind::Fixed(_)
            | Kind::Decimal(..)
            | Kind::Logical(Logical::Uuid | Logical::Duration) => Values::Bytes(Vec::new(), Vec::new()),
        }
    }

    /// Adds a value of bytes, and says how many it takes here and while it is written.
    pub fn put_bytes(&mut self, value: &[u8]) -> usize {
        if let Values::Bytes(bytes, ends) = self {
            bytes.extend_from_slice(value);
            ends.push(bytes.len());
        }
        value.len() + BESIDE
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        match self {
            Values::Boolean(values) => values.clear(),
            Values::Int(values) => values.clear(),
            Values::Long(values) => values.clear(),
            Values::Float(values) => values.clear(),
            Values::Double(values) => values.clear(),
            Values::Bytes(bytes, ends) => {
                bytes.clear();
                ends.clear();
            }
        }
    }
}

struct Builder<'s> {
    schema: &'s Schema,
    columns: Vec<Column>,
    path: Vec<String>,
    /// The records that are being looked into.
    open: Vec<Id>,
}

impl Builder<'_> {
    fn unfit<T>(&self, problem: &'static str) -> Result<T, Unfit> {
        let path = if self.path.is_empty() { "the schema".to_owned() } else { self.path.join(".") };
        Err(Unfit { path, problem })
    }

    fn tree(&mut self, name: &str, id: Id) -> Result<Tree, Unfit> {
        self.path.push(name.to_owned());
        let begin = self.columns.len();
        let shape = self.shape(id)?;
        self.path.pop();
        let nulls = match self.schema.nodes.get(id) {
            Node::Null => true,
            Node::Union(branches) => {
                branches.iter().any(|branch| matches!(self.schema.nodes.get(*branch), Node::Null))
            }
            _ => false,
        };
        let columns = begin..self.columns.len();
        Ok(Tree { name: name.to_owned(), optional: nulls, shape, columns })
    }

    fn shape(&mut self, id: Id) -> Result<Shape, Unfit> {
        let schema = self.schema;
        let kind = match schema.nodes.get(id) {
            Node::Record(record) => {
                if self.open.contains(&id) {
                    return self.unfit("its type holds itself, which Parquet has no way to say");
                }
                if record.fields.is_empty() {
                    return self.unfit("it is a record without fields, which Parquet does not have");
                }
                self.open.push(id);
                let fields = record.fields.iter().map(|field| self.tree(&field.name, field.node));
                let fields = fields.collect::<Result<_, _>>()?;
                self.open.pop();
                return Ok(Shape::Record(fields));
            }
            Node::Array(items) => {
                let weightless = matches!(schema.nodes.step(id), Step::Array(_, true));
                return Ok(Shape::List(Box::new(self.tree("element", *items)?), weightless));
            }
            Node::Map(values) => {
                self.path.push("key".to_owned());
                let key = self.leaf(Kind::Text)?;
                self.path.pop();
                let columns = self.columns.len() - 1..self.columns.len();
                let key = Tree { name: "key".to_owned(), optional: false, shape: key, columns };
                return Ok(Shape::Map(Box::new([key, self.tree("value", *values)?])));
            }
            Node::Union(branches) => return self.union(branches),
            Node::Null => Kind::Null,
            Node::Boolean => Kind::Boolean,
            Node::Int => self.logical(id, Kind::Int),
            Node::Long => self.logical(id, Kind::Long),
            Node::Float => Kind::Float,
            Node::Double => Kind::Double,
            Node::Bytes => self.decimal(id, Kind::Bytes),
            Node::String => self.logical(id, Kind::Text),
            // Parquet's have a byte at least.
            Node::Fixed(fixed) if fixed.size == 0 => Kind::Bytes,
            Node::Fixed(fixed) => self.decimal(id, self.logical(id, Kind::Fixed(fixed.size))),
            Node::Enum(_) => Kind::Enum,
        };
        let leaf = self.leaf(kind)?;
        if let Some(column) = self.columns.last_mut() {
            match schema.nodes.get(id) {
                Node::Fixed(fixed) => column.size = Some(fixed.size),
                Node::Enum(symbols) => column.symbols = symbols.symbols.clone(),
                _ => {}
            }
        }
        Ok(leaf)
    }

    fn union(&mut self, branches: &[Id]) -> Result<Shape, Unfit> {
        let schema = self.schema;
        let is_null = |branch: &Id| matches!(schema.nodes.get(*branch), Node::Null);
        let nulls: Box<[bool]> = branches.iter().map(is_null).collect();
        let mut others = branches.iter().filter(|branch| !is_null(branch));
        match (others.next(), others.next()) {
            (None, _) => {
                let null = self.leaf(Kind::Null)?;
                Ok(Shape::Maybe(nulls, Box::new(null)))
            }
            (Some(one), None) => Ok(Shape::Maybe(nulls, Box::new(self.shape(*one)?))),
            (Some(_), Some(_)) => {
                let (mut of, mut members) = (Vec::with_capacity(branches.len()), Vec::new());
                for branch in branches {
                    of.push((!is_null(branch)).then_some(members.len()));
                    if !is_null(branch) {
                        // As parquet-avro and Spark name them.
                        let member = self.tree(&format!("member{}", members.len()), *branch)?;
                        members.push(Tree { optional: true, ..member });
                    }
                }
                Ok(Shape::Choice(of.into(), members))
            }
        }
    }

    fn logical(&self, id: Id, plain: Kind) -> Kind {
        self.schema.nodes.logical.get(&id).map_or(plain, |logical| Kind::Logical(*logical))
    }

    fn decimal(&self, id: Id, plain: Kind) -> Kind {
        match self.schema.nodes.decimals.get(&id) {
            Some(decimal) if decimal.precision <= MOST_DIGITS => {
                // A power of ten is no power of two, so that no rounding decides.
                let bits = decimal.precision as f64 * std::f64::consts::LOG2_10 + 1.0;
                Kind::Decimal(*decimal, (bits / 8.0).ceil() as usize)
            }
            _ => plain,
        }
    }

    fn leaf(&mut self, kind: Kind) -> Result<Shape, Unfit> {
        if self.columns.len() >= MOST_COLUMNS {
            return self.unfit("it would be more than 10,000 columns");
        }
        self.columns.push(Column {
            path: self.path.join("."),
            kind,
            size: None,
            symbols: Vec::new(),
            definitions: Vec::new(),
            repetitions: Vec::new(),
            values: Values::of(kind),
        });
        Ok(Shape::Leaf(self.columns.len() - 1))
    }
}

#[cfg(test)]
mod tests;
