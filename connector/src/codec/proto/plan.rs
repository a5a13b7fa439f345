//! What is done with a message of one type in a dataset of one schema, found out once.

use std::collections::HashMap;

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

use super::Message;
use crate::codec::Error;
use crate::schema::node::{Field, Nodes, Step};
use crate::schema::wire::{put_bytes, put_long};
use crate::schema::{Id, Logical, MAX_DEPTH, Node, Schema};

/// No slot: a field that the dataset does not have.
pub(super) const UNMAPPED: u32 = u32::MAX;

/// Records, which refer to each other by index; the first is the outermost.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub records: Vec<Record>,
}

/// How a message becomes a record.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// By field of the record.
    pub slots: Vec<Slot>,
    /// Numbers of the message's fields, sorted.
    pub numbers: Vec<Number>,
    /// How many oneofs there are of which the record has a member.
    pub oneofs: u32,
}

/// A field by its number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number {
    pub number: u32,
    pub slot: u32,
    /// Which oneof it is a member of; none: as many as there are.
    pub oneof: u32,
}

/// A field of a record.
#[derive(Debug)]
pub(super) struct Slot {
    pub name: Box<str>,
    pub how: How,
    pub absent: Absent,
}

/// Where a field's value comes from.
#[derive(Debug)]
pub(super) enum How {
    /// Nowhere: it is always absent.
    Never,
    One(Item),
    /// The list's own branch, items, whether they take no bytes.
    List(Option<u32>, Item, bool),
    /// The map's own branch, the record of an entry.
    Map(Option<u32>, usize),
}

/// What stands for a field that the message does not have.
#[derive(Debug)]
pub(super) enum Absent {
    /// This, and the levels in it.
    Datum(Box<[u8]>, usize),
    /// A message without fields.
    Message,
    /// Nothing: it has to be there.
    Missing,
}

/// A value, and the branch of the union that it stands in.
#[derive(Debug)]
pub(super) struct Item {
    pub branch: Option<u32>,
    pub value: Value,
}

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Integer(Source, Target),
    /// `true`: of 64 bits in the message.
    Float(bool),
    Double(bool),
    Boolean,
    /// Text, which has to be UTF-8, whatever it becomes; or bytes that become text.
    Text,
    Bytes,
    Fixed(usize),
    /// A number's index in the enum, and that of those unknown.
    Enum(Box<[(i32, i64)]>, Option<u32>),
    /// A number's name.
    Named(Box<[(i32, Box<str>)]>),
    /// The record; `true`: it is a group.
    Message(usize, bool),
    /// The one field of a wrapper.
    Wrapped(Box<Value>, Box<[u8]>),
    /// A timestamp, in parts of a second.
    Time(i64),
    /// A key of a map, as text: of which kind it is, unless it is text.
    Spelled(Source),
}

/// How an integer lies in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Bool,
}

/// What an integer becomes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    Int,
    Long,
    Float,
    Double,
}

/// The wire's types.
pub(super) mod wire {
    pub const VARINT: u8 = 0;
    pub const FIXED64: u8 = 1;
    pub const BYTES: u8 = 2;
    pub const GROUP: u8 = 3;
    pub const GROUP_END: u8 = 4;
    pub const FIXED32: u8 = 5;
}

impl Source {
    fn of(kind: &Kind) -> Option<Source> {
        Some(match kind {
            Kind::Int32 => Source::Int32,
            Kind::Int64 => Source::Int64,
            Kind::Uint32 => Source::Uint32,
            Kind::Uint64 => Source::Uint64,
            Kind::Sint32 => Source::Sint32,
            Kind::Sint64 => Source::Sint64,
            Kind::Fixed32 => Source::Fixed32,
            Kind::Fixed64 => Source::Fixed64,
            Kind::Sfixed32 => Source::Sfixed32,
            Kind::Sfixed64 => Source::Sfixed64,
            _ => return None,
        })
    }

    pub fn wire(self) -> u8 {
        match self {
            Source::Fixed32 | Source::Sfixed32 => wire::FIXED32,
            Source::Fixed64 | Source::Sfixed64 => wire::FIXED64,
            _ => wire::VARINT,
        }
    }

    /// The integer; `None`: it takes more than 63 bits.
    pub fn integer(self, bits: u64) -> Option<i64> {
        Some(match self {
            // What has more bits than its type is cut, as all that read Protobuf do.
            Source::Int32 | Source::Sfixed32 => i64::from(bits as i32),
            Source::Uint32 | Source::Fixed32 => i64::from(bits as u32),
            Source::Int64 | Source::Sfixed64 => bits as i64,
            Source::Uint64 | Source::Fixed64 => return i64::try_from(bits).ok(),
            Source::Sint32 => {
                let bits = bits as u32;
                i64::from((bits >> 1) as i32 ^ -((bits & 1) as i32))
            }
            Source::Sint64 => (bits >> 1) as i64 ^ -((bits & 1) as i64),
            Source::Bool => i64::from(bits != 0),
        })
    }
}

impl Value {
    /// How it lies on the wire.
    pub fn wire(&self) -> u8 {
        match self {
            Value::Integer(source, _) | Value::Spelled(source) => source.wire(),
            Value::Float(wide) | Value::Double(wide) => {
                if *wide {
                    wire::FIXED64
                } else {
                    wire::FIXED32
                }
            }
            Value::Boolean | Value::Enum(..) | Value::Named(_) => wire::VARINT,
            Value::Message(_, true) => wire::GROUP,
            _ => wire::BYTES,
        }
    }
}

/// A plan for messages of this type.
pub(super) fn plan(message: &Message, schema: &Schema) -> Result<Plan, Error> {
    let nodes = &schema.nodes;
    let refused = |reason: String| {
        Error::Format(format!("the message {} does not make the dataset's records: {reason}", message.name()))
    };
    let Node::Record(_) = nodes.get(nodes.root) else {
        return Err(refused(format!("they are {}", nodes.title(nodes.root))));
    };
    let mut make = Make { nodes, plan: Plan::default(), known: HashMap::new(), fuel: 100_000 };
    make.record(&message.0, nodes.root, 0).map_err(refused)?;
    Ok(make.plan)
}

struct Make<'a> {
    nodes: &'a Nodes,
    plan: Plan,
    /// Records that are planned, or being planned further out.
    known: HashMap<(String, Id), usize>,
    /// Pairs left; unions multiply.
    fuel: usize,
}

impl Make<'_> {
    fn record(&mut self, message: &MessageDescriptor, id: Id, depth: usize) -> Result<usize, String> {
        let key = (message.full_name().to_owned(), id);
        if let Some(known) = self.known.get(&key) {
            return Ok(*known);
        }
        self.fuel = match self.fuel.checked_sub(1) {
            Some(fuel) if depth <= 2 * MAX_DEPTH => fuel,
            _ => return Err("the types are nested too deep".to_owned()),
        };
        let at = self.plan.records.len();
        self.plan.records.push(Record::default());
        self.known.insert(key.clone(), at);
        let made = self.fields(message, id, depth + 1);
        match made {
            Ok(record) => {
                if let Some(place) = self.plan.records.get_mut(at) {
                    *place = record;
                }
                Ok(at)
            }
            Err(reason) => {
                // What was found meanwhile may rest on it; of a branch that is not taken nothing stays known.
                self.known.retain(|_, place| *place < at);
                Err(reason)
            }
        }
    }

    fn fields(&mut self, message: &MessageDescriptor, id: Id, depth: usize) -> Result<Record, String> {
        let nodes = self.nodes;
        let record = nodes.record(id);
        let mut made = Record::default();
        let mut oneofs: Vec<String> = Vec::new();
        for (slot, field) in record.fields.iter().enumerate() {
            let names = std::iter::once(&field.name).chain(&field.aliases);
            let found = names.clone().find_map(|name| message.get_field_by_name(name));
            let found = found.or_else(|| names.clone().find_map(|name| message.get_field_by_json_name(name)));
            let (how, absent) = match &found {
                None => match &field.default {
                    Some(default) => (How::Never, Absent::Datum(default.datum.clone(), default.depth)),
                    None => return Err(format!("it has no field `{}`, which has no default", field.name)),
                },
                Some(found) => self.field(found, field, depth).map_err(|reason| {
                    // One way to the innermost, not a sentence for each level.
                    match reason.strip_prefix('`') {
                        Some(inner) => format!("`{}.{inner}", field.name),
                        None => format!("`{}`: {reason}", field.name),
                    }
                })?,
            };
            if let Some(found) = &found {
                made.numbers.push(Number { number: found.number(), slot: slot as u32, oneof: UNMAPPED });
                let oneof = found.containing_oneof().filter(|oneof| !oneof.is_synthetic());
                if let Some(oneof) = oneof
                    && !oneofs.iter().any(|known| known == oneof.full_name())
                {
                    oneofs.push(oneof.full_name().to_owned());
                }
            }
            made.slots.push(Slot { name: field.name.clone(), how, absent });
        }
        // Of a oneof the last member that is set counts, also one that the dataset does not have.
        made.oneofs = oneofs.len() as u32;
        for number in &mut made.numbers {
            number.oneof = made.oneofs;
        }
        for oneof in message.oneofs() {
            let Some(at) = oneofs.iter().position(|name| name == oneof.full_name()) else { continue };
            for member in oneof.fields() {
                match made.numbers.iter_mut().find(|number| number.number == member.number()) {
                    Some(number) => number.oneof = at as u32,
                    None => {
                        made.numbers.push(Number {
                            number: member.number(),
                            slot: UNMAPPED,
                            oneof: at as u32,
                        });
                    }
                }
            }
        }
        made.numbers.sort_unstable_by_key(|number| (number.number, number.slot));
        if let Some(pair) = made.numbers.windows(2).find_map(|pair| match pair {
            [one, two] if one.number == two.number => Some((one.slot, two.slot)),
            _ => None,
        }) {
            let name = |slot: u32| made.slots.get(slot as usize).map_or("", |slot| &slot.name).to_owned();
            return Err(format!(
                "`{}` and `{}` are both made of one field of it",
                name(pair.0),
                name(pair.1)
            ));
        }
        Ok(made)
    }

    fn field(
        &mut self,
        found: &FieldDescriptor,
        field: &Field,
        depth: usize,
    ) -> Result<(How, Absent), String> {
        let id = field.node;
        let mut empty = Vec::new();
        if found.is_map() {
            let (branch, map) = self.branch(id, |node| matches!(node, Node::Map(_)), "a map")?;
            let Node::Map(values) = self.nodes.get(map) else { unreachable!("it was looked for") };
            let entry = self.entry(found, *values, depth)?;
            put_branch(branch, &mut empty);
            empty.push(0);
            return Ok((How::Map(branch, entry), Absent::Datum(empty.into(), 1)));
        }
        if found.is_list() {
            let (branch, list) = self.branch(id, |node| matches!(node, Node::Array(_)), "a list")?;
            let Node::Array(items) = self.nodes.get(list) else { unreachable!("it was looked for") };
            let item = self.item(found, *items, depth)?;
            let weightless = matches!(self.nodes.step(list), Step::Array(_, true));
            put_branch(branch, &mut empty);
            empty.push(0);
            return Ok((How::List(branch, item, weightless), Absent::Datum(empty.into(), 1)));
        }
        let item = self.item(found, id, depth)?;
        let absent = match (found.supports_presence(), &field.default) {
            (true, Some(default)) => Absent::Datum(default.datum.clone(), default.depth),
            (true, None) => match self.null(id) {
                Some(null) => Absent::Datum(null, 0),
                None => Absent::Missing,
            },
            (false, _) => zero(&item),
        };
        Ok((How::One(item), absent))
    }

    /// The datum of null, where it may be that.
    fn null(&self, id: Id) -> Option<Box<[u8]>> {
        let Node::Union(branches) = self.nodes.get(id) else { return None };
        let at = branches.iter().position(|branch| matches!(self.nodes.get(*branch), Node::Null))?;
        let mut datum = Vec::new();
        put_long(&mut datum, at as i64);
        Some(datum.into())
    }

    /// The node that `is`, or the branch of a union.
    fn branch(&self, id: Id, is: fn(&Node) -> bool, what: &str) -> Result<(Option<u32>, Id), String> {
        let wrong = || format!("it is {what}, the dataset's {}", self.nodes.title(id));
        match self.nodes.get(id) {
            Node::Union(branches) => {
                let mut branches = (0..).zip(branches);
                let found = branches.find(|(_, branch)| is(self.nodes.get(**branch)));
                found.map(|(at, branch)| (Some(at), *branch)).ok_or_else(wrong)
            }
            node if is(node) => Ok((None, id)),
            _ => Err(wrong()),
        }
    }

    /// An entry of a map is a message of two fields, and Avro's entry a string and a value.
    fn entry(&mut self, found: &FieldDescriptor, values: Id, depth: usize) -> Result<usize, String> {
        let Kind::Message(entry) = found.kind() else { unreachable!("a map's field is a message") };
        let (key, value) = (entry.map_entry_key_field(), entry.map_entry_value_field());
        let spelled = match key.kind() {
            Kind::String => Value::Text,
            Kind::Bool => Value::Spelled(Source::Bool),
            kind => Value::Spelled(Source::of(&kind).ok_or("a map's key is no key")?),
        };
        let mut none = Vec::new();
        match key.kind() {
            Kind::String => none.push(0),
            Kind::Bool => put_bytes(&mut none, b"false"),
            _ => put_bytes(&mut none, b"0"),
        }
        let item = self.item(&value, values, depth)?;
        let absent = match &item.value {
            Value::Message(..) => Absent::Message,
            _ => zero(&item),
        };
        let key_slot = Slot {
            name: "key".into(),
            how: How::One(Item { branch: None, value: spelled }),
            absent: Absent::Datum(none.into(), 0),
        };
        let slots = vec![key_slot, Slot { name: "value".into(), how: How::One(item), absent }];
        let number = |number: u32| Number { number, slot: number - 1, oneof: 0 };
        self.plan.records.push(Record { slots, numbers: vec![number(1), number(2)], oneofs: 0 });
        Ok(self.plan.records.len() - 1)
    }

    /// A single value of the field as one of the node, or as one of its branches: the first that it can be.
    fn item(&mut self, found: &FieldDescriptor, id: Id, depth: usize) -> Result<Item, String> {
        let Node::Union(branches) = self.nodes.get(id) else {
            return Ok(Item { branch: None, value: self.value(found, id, depth)? });
        };
        let mut failed = None;
        for (at, branch) in (0..).zip(branches) {
            if matches!(self.nodes.get(*branch), Node::Null) {
                continue;
            }
            match self.value(found, *branch, depth) {
                Ok(value) => return Ok(Item { branch: Some(at), value }),
                Err(reason) => failed = failed.or(Some(reason)),
            }
        }
        Err(failed.unwrap_or_else(|| "it is always null in the dataset".to_owned()))
    }

    fn value(&mut self, found: &FieldDescriptor, id: Id, depth: usize) -> Result<Value, String> {
        let kind = found.kind();
        let node = self.nodes.get(id);
        if let Some(source) = Source::of(&kind) {
            return match node {
                Node::Int => Ok(Value::Integer(source, Target::Int)),
                Node::Long => Ok(Value::Integer(source, Target::Long)),
                Node::Float => Ok(Value::Integer(source, Target::Float)),
                Node::Double => Ok(Value::Integer(source, Target::Double)),
                _ => Err(self.wrong(&kind, id)),
            };
        }
        Ok(match (&kind, node) {
            (Kind::Float, Node::Float) => Value::Float(false),
            (Kind::Float, Node::Double) => Value::Double(false),
            (Kind::Double, Node::Double) => Value::Double(true),
            (Kind::Bool, Node::Boolean) => Value::Boolean,
            (Kind::String, Node::String | Node::Bytes) | (Kind::Bytes, Node::String) => Value::Text,
            (Kind::Bytes, Node::Bytes) => Value::Bytes,
            (Kind::Bytes, Node::Fixed(fixed)) => Value::Fixed(fixed.size),
            (Kind::Enum(names), Node::Enum(symbols)) => symbols_of(names, symbols)?,
            (Kind::Enum(names), Node::String) => {
                let mut names: Vec<(i32, Box<str>)> =
                    names.values().map(|value| (value.number(), value.name().into())).collect();
                names.sort_by_key(|(number, _)| *number);
                names.dedup_by_key(|(number, _)| *number);
                Value::Named(names.into())
            }
            (Kind::Enum(_), Node::Int) => Value::Integer(Source::Int32, Target::Int),
            (Kind::Enum(_), Node::Long) => Value::Integer(Source::Int32, Target::Long),
            (Kind::Message(message), Node::Record(_)) => {
                Value::Message(self.record(message, id, depth)?, found.is_group())
            }
            (Kind::Message(message), _) => match message.full_name() {
                "google.protobuf.Timestamp" => match self.nodes.logical.get(&id) {
                    Some(Logical::Timestamp(unit)) => Value::Time(unit.per_second()),
                    _ => {
                        return Err("a Timestamp becomes a long with the logical type timestamp-millis, -micros or -nanos, or a \
                                    record of its fields"
                            .to_owned());
                    }
                },
                "google.protobuf.DoubleValue"
                | "google.protobuf.FloatValue"
                | "google.protobuf.Int64Value"
                | "google.protobuf.UInt64Value"
                | "google.protobuf.Int32Value"
                | "google.protobuf.UInt32Value"
                | "google.protobuf.BoolValue"
                | "google.protobuf.StringValue"
                | "google.protobuf.BytesValue" => {
                    let inner = message.get_field(1).ok_or("a wrapper has no field")?;
                    let item = Item { branch: None, value: self.value(&inner, id, depth)? };
                    match zero(&item) {
                        Absent::Datum(zero, _) => Value::Wrapped(Box::new(item.value), zero),
                        _ => return Err(self.wrong(&kind, id)),
                    }
                }
                _ => return Err(self.wrong(&kind, id)),
            },
            _ => return Err(self.wrong(&kind, id)),
        })
    }

    fn wrong(&self, kind: &Kind, id: Id) -> String {
        let kind = match kind {
            Kind::Message(message) => format!("a message {}", message.full_name()),
            Kind::Enum(names) => format!("an enum {}", names.full_name()),
            kind => format!("{kind:?}").to_lowercase(),
        };
        format!("{kind} does not become {}", self.nodes.title(id))
    }
}

fn symbols_of(names: &EnumDescriptor, symbols: &crate::schema::node::Enum) -> Result<Value, String> {
    let index = |name: &str| symbols.symbol(name.as_bytes());
    let mut known: Vec<(i32, i64)> =
        names.values().filter_map(|value| Some((value.number(), i64::from(index(value.name())?)))).collect();
    // Of several names for a number the first that the dataset has.
    known.sort_by_key(|(number, _)| *number);
    known.dedup_by_key(|(number, _)| *number);
    if known.is_empty() && symbols.default.is_none() {
        let (full, ours) = (names.full_name(), &symbols.name.full);
        return Err(format!("the dataset's {ours} has none of the names of {full} among its symbols"));
    }
    Ok(Value::Enum(known.into(), symbols.default))
}

pub(super) fn put_branch(branch: Option<u32>, out: &mut Vec<u8>) {
    if let Some(branch) = branch {
        put_long(out, i64::from(branch));
    }
}

/// What stands for a scalar that is not there and has no presence: its zero.
fn zero(item: &Item) -> Absent {
    let mut datum = Vec::new();
    put_branch(item.branch, &mut datum);
    match &item.value {
        Value::Integer(_, Target::Int | Target::Long) | Value::Boolean | Value::Text | Value::Bytes => {
            datum.push(0);
        }
        Value::Integer(_, Target::Float) | Value::Float(_) => datum.extend_from_slice(&[0; 4]),
        Value::Integer(_, Target::Double) | Value::Double(_) => datum.extend_from_slice(&[0; 8]),
        Value::Fixed(0) => {}
        Value::Enum(known, default) => {
            let first = known.binary_search_by_key(&0, |(number, _)| *number).ok();
            let first = first.and_then(|at| known.get(at)).map(|(_, index)| *index);
            match first.or(default.map(i64::from)) {
                Some(index) => put_long(&mut datum, index),
                None => return Absent::Missing,
            }
        }
        Value::Named(names) => match names.iter().find(|(number, _)| *number == 0) {
            Some((_, name)) => put_bytes(&mut datum, name.as_bytes()),
            None => return Absent::Missing,
        },
        Value::Wrapped(_, zero) => datum.extend_from_slice(zero),
        Value::Time(_) => datum.push(0),
        Value::Fixed(_) | Value::Message(..) | Value::Spelled(_) => return Absent::Missing,
    }
    Absent::Datum(datum.into(), 0)
}
