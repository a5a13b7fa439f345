//! The compiled form: an arena of nodes, and per node the step that skips it.

use std::collections::HashMap;

/// Index of a node in its schema's arena.
pub(crate) type Id = u32;

/// Most parts that a value may have which takes no bytes: records within records without fields, and nulls.
pub(crate) const MAX_WEIGHTLESS: usize = 256;

/// One type. Named types occur once; every later mention of the name is the same index.
#[derive(Debug)]
pub(crate) enum Node {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Fixed(Box<Fixed>),
    Enum(Box<Enum>),
    Record(Box<Record>),
    Array(Id),
    Map(Id),
    Union(Box<[Id]>),
}

/// A full name and the full names it was known by before.
#[derive(Debug)]
pub(crate) struct Name {
    pub full: Box<str>,
    pub aliases: Vec<Box<str>>,
}

impl Name {
    /// The name without its namespace, by which records, enums and fixeds match in resolution.
    pub fn short(&self) -> &str {
        self.full.rsplit('.').next().unwrap_or(&self.full)
    }
}

#[derive(Debug)]
pub(crate) struct Fixed {
    pub name: Name,
    pub size: usize,
}

#[derive(Debug)]
pub(crate) struct Enum {
    pub name: Name,
    pub symbols: Vec<Box<str>>,
    /// Indexes of `symbols`, sorted by text.
    pub sorted: Vec<u32>,
    /// The symbol that stands for those which a reader does not know.
    pub default: Option<u32>,
}

impl Enum {
    /// Index of a symbol.
    pub fn symbol(&self, text: &[u8]) -> Option<u32> {
        let text_at = |at: &u32| self.symbols.get(*at as usize).map(|symbol| symbol.as_bytes());
        let found = self.sorted.binary_search_by(|at| text_at(at).cmp(&Some(text))).ok()?;
        self.sorted.get(found).copied()
    }
}

#[derive(Debug)]
pub(crate) struct Record {
    pub name: Name,
    pub fields: Vec<Field>,
    /// Indexes of `fields`, sorted by name.
    pub sorted: Vec<u32>,
}

impl Record {
    /// Index of a field.
    pub fn field(&self, name: &[u8]) -> Option<usize> {
        let name_at = |at: &u32| self.fields.get(*at as usize).map(|field| field.name.as_bytes());
        let found = self.sorted.binary_search_by(|at| name_at(at).cmp(&Some(name))).ok()?;
        self.sorted.get(found).map(|at| *at as usize)
    }
}

#[derive(Debug)]
pub(crate) struct Field {
    pub name: Box<str>,
    pub aliases: Vec<Box<str>>,
    pub node: Id,
    pub default: Option<Default>,
}

/// A field's default, encoded.
#[derive(Clone, Debug)]
pub(crate) struct Default {
    /// The datum of the field's type, a union's branch included.
    pub datum: Box<[u8]>,
    /// Levels of records, arrays and maps in it; they count against the depth of what it is put into.
    pub depth: usize,
}

/// Precision and scale of a decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decimal {
    pub precision: u64,
    pub scale: u64,
}

/// Unit of a time of day or a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Millis,
    Micros,
    Nanos,
}

impl Unit {
    /// How many of it make a second.
    pub fn per_second(self) -> i64 {
        match self {
            Unit::Millis => 1_000,
            Unit::Micros => 1_000_000,
            Unit::Nanos => 1_000_000_000,
        }
    }
}

/// What a value means beyond its type, decimals apart. Heeded where other formats have words for it; it changes nothing of
/// how a value is encoded, resolved, or shown as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logical {
    /// Days since the Unix epoch.
    Date,
    /// Since midnight.
    Time(Unit),
    /// Since the Unix epoch, in UTC.
    Timestamp(Unit),
    /// The same on a calendar whose time zone is not said.
    LocalTimestamp(Unit),
    Uuid,
    /// Months, days and milliseconds, four bytes each, least significant first.
    Duration,
}

impl Logical {
    /// By the name that a schema gives; `None` where there is none of this name for this type, which then means nothing.
    pub fn of(name: &str, node: &Node) -> Option<Logical> {
        let fixed = |bytes| matches!(node, Node::Fixed(fixed) if fixed.size == bytes);
        Some(match (name, node) {
            ("date", Node::Int) => Logical::Date,
            ("time-millis", Node::Int) => Logical::Time(Unit::Millis),
            ("time-micros", Node::Long) => Logical::Time(Unit::Micros),
            ("timestamp-millis", Node::Long) => Logical::Timestamp(Unit::Millis),
            ("timestamp-micros", Node::Long) => Logical::Timestamp(Unit::Micros),
            ("timestamp-nanos", Node::Long) => Logical::Timestamp(Unit::Nanos),
            ("local-timestamp-millis", Node::Long) => Logical::LocalTimestamp(Unit::Millis),
            ("local-timestamp-micros", Node::Long) => Logical::LocalTimestamp(Unit::Micros),
            ("local-timestamp-nanos", Node::Long) => Logical::LocalTimestamp(Unit::Nanos),
            ("uuid", Node::String) => Logical::Uuid,
            ("uuid", _) if fixed(16) => Logical::Uuid,
            ("duration", _) if fixed(12) => Logical::Duration,
            _ => return None,
        })
    }
}

/// What skips a value: most types need no look at their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// So many bytes, whatever they are.
    Const(u32),
    Boolean,
    Int,
    Long,
    Bytes,
    Text,
    /// An index below this.
    Enum(u32),
    Record(Id),
    /// Items' step is looked up; `bool`: items take no bytes.
    Array(Id, bool),
    Map(Id),
    Union(Id),
}

/// All nodes of a schema.
#[derive(Debug, std::default::Default)]
pub(crate) struct Nodes {
    pub root: Id,
    pub all: Vec<Node>,
    /// By node.
    pub steps: Vec<Step>,
    /// By node; only records have any.
    pub record_steps: Vec<Box<[Step]>>,
    pub names: HashMap<Box<str>, Id>,
    pub decimals: HashMap<Id, Decimal>,
    pub logical: HashMap<Id, Logical>,
}

impl Nodes {
    /// The node of an id of this arena.
    #[inline]
    pub fn get(&self, id: Id) -> &Node {
        self.all.get(id as usize).expect("an id comes from its own arena, which never shrinks")
    }

    /// The step of a node.
    #[inline]
    pub fn step(&self, id: Id) -> Step {
        *self.steps.get(id as usize).expect("each node has a step")
    }

    /// The record behind an id that is known to be one.
    #[inline]
    pub fn record(&self, id: Id) -> &Record {
        match self.get(id) {
            Node::Record(record) => record,
            _ => unreachable!("the id was made for a record"),
        }
    }

    /// The node of a full name.
    pub fn named(&self, full: &str) -> Option<Id> {
        self.names.get(full).copied()
    }

    /// The name of a type as messages give it: a named type's own, else the kind.
    pub fn title(&self, id: Id) -> &str {
        match self.get(id) {
            Node::Null => "null",
            Node::Boolean => "boolean",
            Node::Int => "int",
            Node::Long => "long",
            Node::Float => "float",
            Node::Double => "double",
            Node::Bytes => "bytes",
            Node::String => "string",
            Node::Fixed(fixed) => &fixed.name.full,
            Node::Enum(symbols) => &symbols.name.full,
            Node::Record(record) => &record.name.full,
            Node::Array(_) => "array",
            Node::Map(_) => "map",
            Node::Union(_) => "union",
        }
    }

    /// Computes the steps, once all nodes are there.
    pub fn compile(&mut self) {
        let empty = self.empty();
        self.steps = self
            .all
            .iter()
            .enumerate()
            .map(|(id, node)| {
                let id = id as Id;
                match node {
                    Node::Null => Step::Const(0),
                    Node::Boolean => Step::Boolean,
                    Node::Int => Step::Int,
                    Node::Long => Step::Long,
                    Node::Float => Step::Const(4),
                    Node::Double => Step::Const(8),
                    Node::Bytes => Step::Bytes,
                    Node::String => Step::Text,
                    Node::Fixed(fixed) => Step::Const(fixed.size as u32),
                    Node::Enum(symbols) => Step::Enum(symbols.symbols.len() as u32),
                    Node::Record(_) => Step::Record(id),
                    Node::Array(items) => {
                        Step::Array(*items, empty.get(*items as usize).copied().unwrap_or(false))
                    }
                    Node::Map(values) => Step::Map(*values),
                    Node::Union(_) => Step::Union(id),
                }
            })
            .collect();
        self.record_steps = self
            .all
            .iter()
            .map(|node| match node {
                Node::Record(record) => fuse(record.fields.iter().map(|field| self.step(field.node))),
                _ => Box::default(),
            })
            .collect();
    }

    /// A node whose values take no bytes, and have more than [`MAX_WEIGHTLESS`] parts. Everything else that walks a datum is
    /// bounded by its bytes; records of records of records that are empty double at each step, and nothing bounds them.
    pub fn too_weightless(&self) -> Option<Id> {
        let empty = self.empty();
        let mut parts = vec![0usize; self.all.len()];
        // Each round adds a level. As many as nodes are enough: a record whose values take no bytes does not hold itself.
        for _ in 0..self.all.len() {
            let of = |id: &Id| parts.get(*id as usize).copied().unwrap_or(0);
            let next: Vec<usize> = (0..)
                .zip(&self.all)
                .map(|(id, node)| match node {
                    Node::Record(record) if empty.get(id).copied().unwrap_or(false) => {
                        record.fields.iter().fold(1, |sum: usize, field| sum.saturating_add(of(&field.node)))
                    }
                    _ => 1,
                })
                .collect();
            if next == parts {
                break;
            }
            parts = next;
        }
        let too_many = (0..).zip(parts).filter(|(_, parts)| *parts > MAX_WEIGHTLESS);
        too_many.min_by_key(|(_, parts)| *parts).map(|(id, _)| id)
    }

    /// Per node, whether every value of it takes no bytes at all. Grows from "none does" up to the least fixed point;
    /// a record that holds itself without a way out has no value, and stays "no".
    fn empty(&self) -> Vec<bool> {
        let mut empty = vec![false; self.all.len()];
        loop {
            let is = |id: &Id| empty.get(*id as usize).copied().unwrap_or(false);
            let next: Vec<bool> = self
                .all
                .iter()
                .map(|node| match node {
                    Node::Null => true,
                    Node::Fixed(fixed) => fixed.size == 0,
                    Node::Record(record) => record.fields.iter().all(|field| is(&field.node)),
                    _ => false,
                })
                .collect();
            if next == empty {
                return empty;
            }
            empty = next;
        }
    }
}

/// Runs of constant length become one step.
fn fuse(steps: impl Iterator<Item = Step>) -> Box<[Step]> {
    let mut fused: Vec<Step> = Vec::new();
    for step in steps {
        match (fused.last_mut(), step) {
            (_, Step::Const(0)) => {}
            (Some(Step::Const(length)), Step::Const(more)) if length.checked_add(more).is_some() => {
                *length += more
            }
            _ => fused.push(step),
        }
    }
    fused.into()
}
