//! Defaults of fields, encoded once.
//!
//! In a schema, a default is JSON by Avro's rules, not by ours: bytes and fixed are strings whose characters are the
//! bytes (U+0000 to U+00FF).

use std::collections::HashMap;

use serde_json::Value;

use super::node::{Default, Id, Node, Nodes};
use super::wire::{put_bytes, put_long};
use super::{Error, MAX_DEPTH};

/// Most bytes that the defaults of one schema may take. Records whose defaults hold records whose defaults … double
/// at each step.
const MAX_BYTES: usize = 1 << 20;
/// Most values that are looked at for them. Branches of unions that do not fit leave no bytes behind, and double all the same.
const MAX_STEPS: usize = 1 << 22;

/// A default that waits until all types are known.
pub(super) struct Pending<'v> {
    pub record: Id,
    pub field: usize,
    pub value: &'v Value,
    pub at: String,
}

/// Encodes all defaults into their fields.
pub(super) fn encode_all(nodes: &mut Nodes, pending: &[Pending<'_>]) -> Result<(), Error> {
    let defaults = pending.iter().map(|default| ((default.record, default.field), default.value)).collect();
    let (mut total, mut steps) = (0, MAX_STEPS);
    for default in pending {
        let Some(field) = nodes.record(default.record).fields.get(default.field) else { continue };
        let room = MAX_BYTES - total;
        let mut encoder = Encoder { nodes, defaults: &defaults, out: Vec::new(), room, steps, deepest: 0 };
        encoder.value(field.node, default.value, 0).map_err(|reason| Error::Invalid {
            at: default.at.clone(),
            reason: format!("its default does not fit: {reason}"),
        })?;
        steps = encoder.steps;
        let encoded = Default { datum: encoder.out.into(), depth: encoder.deepest };
        total += encoded.datum.len();
        if let Some(Node::Record(record)) = nodes.all.get_mut(default.record as usize)
            && let Some(field) = record.fields.get_mut(default.field)
        {
            field.default = Some(encoded);
        }
    }
    Ok(())
}

struct Encoder<'a, 'v> {
    nodes: &'a Nodes,
    defaults: &'a HashMap<(Id, usize), &'v Value>,
    out: Vec<u8>,
    room: usize,
    steps: usize,
    deepest: usize,
}

impl Encoder<'_, '_> {
    fn value(&mut self, id: Id, value: &Value, depth: usize) -> Result<(), String> {
        let depth = match self.nodes.get(id) {
            Node::Record(_) | Node::Array(_) | Node::Map(_) => depth + 1,
            _ => depth,
        };
        if depth > MAX_DEPTH {
            return Err("nested too deep; does a type hold itself?".into());
        }
        self.deepest = self.deepest.max(depth);
        if self.out.len() > self.room {
            return Err("the schema's defaults take more than 1 MiB".into());
        }
        let Some(steps) = self.steps.checked_sub(1) else {
            return Err("the schema's defaults hold more than four million values".into());
        };
        self.steps = steps;
        let expected = |what: &str| Err(format!("expected {what}, found {}", kind(value)));
        match self.nodes.get(id) {
            Node::Null => match value {
                Value::Null => {}
                _ => return expected("null"),
            },
            Node::Boolean => match value {
                Value::Bool(value) => self.out.push(u8::from(*value)),
                _ => return expected("a boolean"),
            },
            Node::Int => match value.as_i64().and_then(|value| i32::try_from(value).ok()) {
                Some(value) => put_long(&mut self.out, value.into()),
                None => return expected("an integer of 32 bits"),
            },
            Node::Long => match value.as_i64() {
                Some(value) => put_long(&mut self.out, value),
                None => return expected("an integer of 64 bits"),
            },
            Node::Float => match double(value) {
                Some(value) => self.out.extend_from_slice(&(value as f32).to_le_bytes()),
                None => return expected("a number"),
            },
            Node::Double => match double(value) {
                Some(value) => self.out.extend_from_slice(&value.to_le_bytes()),
                None => return expected("a number"),
            },
            Node::String => match value {
                Value::String(text) => put_bytes(&mut self.out, text.as_bytes()),
                _ => return expected("a string"),
            },
            Node::Bytes => match bytes(value) {
                Some(bytes) => put_bytes(&mut self.out, &bytes),
                None => return expected("a string of characters up to U+00FF"),
            },
            Node::Fixed(fixed) => match bytes(value) {
                Some(bytes) if bytes.len() == fixed.size => self.out.extend_from_slice(&bytes),
                _ => return expected(&format!("a string of {} characters up to U+00FF", fixed.size)),
            },
            Node::Enum(symbols) => match value.as_str().and_then(|text| symbols.symbol(text.as_bytes())) {
                Some(index) => put_long(&mut self.out, index.into()),
                None => return expected(&format!("a symbol of {}", symbols.name.full)),
            },
            Node::Record(record) => {
                let Value::Object(object) = value else { return expected("an object") };
                for (at, field) in record.fields.iter().enumerate() {
                    let value = object.get(&*field.name).or_else(|| self.defaults.get(&(id, at)).copied());
                    let value = value.ok_or_else(|| format!("the field {} is missing in it", field.name))?;
                    self.value(field.node, value, depth)
                        .map_err(|reason| format!("{}: {reason}", field.name))?;
                }
            }
            Node::Array(items) => {
                let Value::Array(list) = value else { return expected("a list") };
                if !list.is_empty() {
                    put_long(&mut self.out, list.len() as i64);
                    let start = self.out.len();
                    for item in list {
                        self.value(*items, item, depth)?;
                    }
                    if self.out.len() == start {
                        // They count against a limit per datum, which a default must not use up unseen.
                        return Err("it has items that take no bytes".into());
                    }
                }
                self.out.push(0);
            }
            Node::Map(values) => {
                let Value::Object(object) = value else { return expected("an object") };
                if !object.is_empty() {
                    put_long(&mut self.out, object.len() as i64);
                    for (key, value) in object {
                        put_bytes(&mut self.out, key.as_bytes());
                        self.value(*values, value, depth)?;
                    }
                }
                self.out.push(0);
            }
            Node::Union(branches) => {
                let start = self.out.len();
                for (index, branch) in branches.iter().enumerate() {
                    put_long(&mut self.out, index as i64);
                    if self.value(*branch, value, depth).is_ok() {
                        return Ok(());
                    }
                    self.out.truncate(start);
                }
                return expected("a value of one of the union's branches");
            }
        }
        Ok(())
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A number; the words are those that Avro's own tools write for what JSON has no number for.
fn double(value: &Value) -> Option<f64> {
    match value.as_str() {
        None => value.as_f64(),
        Some("NaN") => Some(f64::NAN),
        Some("Infinity" | "INF") => Some(f64::INFINITY),
        Some("-Infinity" | "-INF") => Some(f64::NEG_INFINITY),
        Some(_) => None,
    }
}

fn bytes(value: &Value) -> Option<Vec<u8>> {
    value.as_str()?.chars().map(|char| u8::try_from(u32::from(char)).ok()).collect()
}
