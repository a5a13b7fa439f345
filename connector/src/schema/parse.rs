//! From the JSON of a schema to the arena. Recursion is bounded by the JSON's own nesting (128, by `serde_json`).

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::Error;
use super::default::{self, Pending};
use super::node::{Decimal, Enum, Field, Fixed, Id, Logical, MAX_WEIGHTLESS, Name, Node, Nodes, Record};

/// Whose a schema is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// Ours: names are Avro's, for blobs are read by any Avro tool, and defaults are values of their types.
    Ours,
    /// Somebody's who has written records with it, so that it is good enough: Avro for Java looks at no namespace (up to 1.11), takes
    /// letters of any script for names, and Confluent's registry looks at the defaults of new schemas only. What reads them needs neither.
    Writers,
}

pub(super) fn parse(value: &Value, whose: Whose) -> Result<Nodes, Error> {
    let mut parser = Parser { whose, nodes: Nodes::default(), pending: Vec::new(), at: Vec::new() };
    parser.nodes.root = parser.schema(value, "")?;
    let Parser { mut nodes, pending, .. } = parser;
    if let Some(id) = nodes.too_weightless() {
        return Err(Error::Invalid {
            at: nodes.title(id).to_owned(),
            reason: format!("a value of it takes no bytes and has more than {MAX_WEIGHTLESS} parts"),
        });
    }
    // Defaults are encoded last: one may be of a type that is defined after it. Those of a writer stand for nothing.
    if whose == Whose::Ours {
        default::encode_all(&mut nodes, &pending)?;
    }
    nodes.compile();
    Ok(nodes)
}

struct Parser<'v> {
    whose: Whose,
    nodes: Nodes,
    pending: Vec<Pending<'v>>,
    /// The way from the root to what is being parsed, for messages.
    at: Vec<String>,
}

impl<'v> Parser<'v> {
    fn invalid<T>(&self, reason: impl Into<String>) -> Result<T, Error> {
        let at = if self.at.is_empty() { "the schema".to_owned() } else { self.at.join(".") };
        Err(Error::Invalid { at, reason: reason.into() })
    }

    /// Whether a part of a name is one. A writer's may be any text that can stand in a canonical form as it is.
    fn is_name(&self, name: &str) -> bool {
        match self.whose {
            Whose::Ours => is_name(name),
            Whose::Writers => !name.contains(|char: char| char == '"' || char == '\\' || char.is_control()),
        }
    }

    fn add(&mut self, node: Node) -> Id {
        self.nodes.all.push(node);
        (self.nodes.all.len() - 1) as Id
    }

    /// Parses one schema; `space` is the enclosing namespace, `""` for none.
    fn schema(&mut self, value: &'v Value, space: &str) -> Result<Id, Error> {
        match value {
            Value::String(name) => self.mention(name, space),
            Value::Array(branches) => self.union(branches, space),
            Value::Object(object) => match object.get("type") {
                Some(Value::String(kind)) => self.complex(object, kind, space),
                // {"type": {...}} is a schema wrapped once more, and common
                Some(inner @ (Value::Object(_) | Value::Array(_))) => self.schema(inner, space),
                Some(_) => self.invalid("`type` is neither a name, an object nor a list"),
                None => self.invalid("the attribute `type` is missing"),
            },
            _ => self.invalid("a schema is a name, an object or a list"),
        }
    }

    /// A primitive type or a type named before.
    fn mention(&mut self, name: &str, space: &str) -> Result<Id, Error> {
        if let Some(node) = primitive(name) {
            return Ok(self.add(node));
        }
        let full = full_name(name, space);
        match self.nodes.named(&full) {
            Some(id) => Ok(id),
            None => self.invalid(format!("no type {} is defined before it is used here", shown(&full))),
        }
    }

    fn complex(&mut self, object: &'v Map<String, Value>, kind: &'v str, space: &str) -> Result<Id, Error> {
        match kind {
            "record" | "error" => self.record(object, space),
            "enum" => self.symbols(object, space),
            "fixed" => self.fixed(object, space),
            "array" => {
                let Some(items) = object.get("items") else {
                    return self.invalid("an array needs the attribute `items`");
                };
                self.at.push("items".into());
                let items = self.schema(items, space)?;
                self.at.pop();
                Ok(self.add(Node::Array(items)))
            }
            "map" => {
                let Some(values) = object.get("values") else {
                    return self.invalid("a map needs the attribute `values`");
                };
                self.at.push("values".into());
                let values = self.schema(values, space)?;
                self.at.pop();
                Ok(self.add(Node::Map(values)))
            }
            name => {
                let id = self.mention(name, space)?;
                if name == "bytes" {
                    self.decimal(object, id, usize::MAX);
                }
                // A named type has the one that its definition gives.
                if primitive(name).is_some() {
                    self.logical(object, id);
                }
                Ok(id)
            }
        }
    }

    /// Notes a decimal. One that is invalid is no decimal, says the specification, but its underlying type.
    fn decimal(&mut self, object: &Map<String, Value>, id: Id, size: usize) {
        if object.get("logicalType").and_then(Value::as_str) != Some("decimal") || size == 0 {
            return;
        }
        let scale = object.get("scale").map_or(Some(0), Value::as_u64);
        if let (Some(precision), Some(scale)) = (object.get("precision").and_then(Value::as_u64), scale)
            && precision > 0
            && scale <= precision
        {
            self.nodes.decimals.insert(id, Decimal { precision, scale });
        }
    }

    /// Notes what else a type is said to mean.
    fn logical(&mut self, object: &Map<String, Value>, id: Id) {
        let name = object.get("logicalType").and_then(Value::as_str);
        if let Some(logical) = name.and_then(|name| Logical::of(name, self.nodes.get(id))) {
            self.nodes.logical.insert(id, logical);
        }
    }

    fn union(&mut self, branches: &'v [Value], space: &str) -> Result<Id, Error> {
        let mut ids: Vec<Id> = Vec::with_capacity(branches.len());
        let mut seen = HashSet::new();
        for (at, branch) in branches.iter().enumerate() {
            self.at.push(format!("[{at}]"));
            let id = self.schema(branch, space)?;
            if matches!(self.nodes.get(id), Node::Union(_)) {
                return self.invalid("a union stands directly in a union");
            }
            // Kinds and full names share no word: a named type cannot be called as a primitive one.
            if !seen.insert(self.nodes.title(id).to_owned()) {
                return self
                    .invalid(format!("the union already has a branch {}", shown(self.nodes.title(id))));
            }
            self.at.pop();
            ids.push(id);
        }
        if ids.is_empty() {
            return self.invalid("a union needs a branch");
        }
        Ok(self.add(Node::Union(ids.into())))
    }

    fn fixed(&mut self, object: &'v Map<String, Value>, space: &str) -> Result<Id, Error> {
        let (name, _) = self.name(object, space)?;
        let Some(size) = object.get("size").and_then(Value::as_u64).and_then(|size| u32::try_from(size).ok())
        else {
            return self.invalid("`size` of a fixed is missing or no number of bytes");
        };
        let size = size as usize;
        let id = self.define(name, |name| Node::Fixed(Box::new(Fixed { name, size })))?;
        self.decimal(object, id, size);
        self.logical(object, id);
        self.at.pop();
        Ok(id)
    }

    fn symbols(&mut self, object: &'v Map<String, Value>, space: &str) -> Result<Id, Error> {
        let (name, _) = self.name(object, space)?;
        let Some(list) = object.get("symbols").and_then(Value::as_array) else {
            return self.invalid("an enum needs the attribute `symbols`, a list");
        };
        let mut symbols: Vec<Box<str>> = Vec::with_capacity(list.len());
        let mut seen = HashSet::new();
        for symbol in list {
            match symbol.as_str() {
                Some(symbol) if self.is_name(symbol) => {
                    if !seen.insert(symbol) {
                        return self.invalid(format!("the symbol {} occurs twice", shown(symbol)));
                    }
                    symbols.push(symbol.into());
                }
                Some(symbol) => return self.invalid(format!("the symbol {} is not a name", shown(symbol))),
                None => return self.invalid("a symbol is not a string"),
            }
        }
        let mut sorted: Vec<u32> = (0..symbols.len() as u32).collect();
        sorted.sort_by_key(|at| symbols.get(*at as usize));
        let default = match object.get("default") {
            None => None,
            // Only a reader's is ever looked at.
            Some(_) if self.whose == Whose::Writers => None,
            Some(default) => {
                let at =
                    default.as_str().and_then(|text| symbols.iter().position(|symbol| **symbol == *text));
                match at {
                    Some(at) => Some(at as u32),
                    None => return self.invalid("the default of an enum is one of its symbols"),
                }
            }
        };
        let id = self.define(name, |name| Node::Enum(Box::new(Enum { name, symbols, sorted, default })))?;
        self.at.pop();
        Ok(id)
    }

    fn record(&mut self, object: &'v Map<String, Value>, space: &str) -> Result<Id, Error> {
        let (name, inner_space) = self.name(object, space)?;
        let Some(list) = object.get("fields").and_then(Value::as_array) else {
            return self.invalid("a record needs the attribute `fields`, a list");
        };
        // Defined before its fields are parsed: they may mention it.
        let id = self.define(name, |name| {
            Node::Record(Box::new(Record { name, fields: Vec::new(), sorted: Vec::new() }))
        })?;
        let mut fields: Vec<Field> = Vec::with_capacity(list.len());
        let mut seen = HashSet::new();
        for field in list {
            let Some(name) = field.get("name").and_then(Value::as_str) else {
                return self.invalid("a field needs the attribute `name`");
            };
            self.at.push(shorten(name));
            if !self.is_name(name) {
                return self.invalid("the field's name has to match [A-Za-z_][A-Za-z0-9_]*");
            }
            if !seen.insert(name) {
                return self.invalid("the record has this field already");
            }
            let Some(schema) = field.get("type") else {
                return self.invalid("the field has no `type`");
            };
            let node = self.schema(schema, &inner_space)?;
            if let Some(value) = field.get("default") {
                self.pending.push(Pending { record: id, field: fields.len(), value, at: self.at.join(".") });
            }
            let aliases = self.alias_list(field.get("aliases"))?.into_iter().map(Into::into).collect();
            fields.push(Field { name: name.into(), aliases, node, default: None });
            self.at.pop();
        }
        let mut sorted: Vec<u32> = (0..fields.len() as u32).collect();
        sorted.sort_by(|one, two| {
            let name = |at: &u32| fields.get(*at as usize).map(|field: &Field| &field.name);
            name(one).cmp(&name(two))
        });
        if let Some(Node::Record(record)) = self.nodes.all.get_mut(id as usize) {
            record.fields = fields;
            record.sorted = sorted;
        }
        self.at.pop();
        Ok(id)
    }

    fn define(&mut self, name: Name, node: impl FnOnce(Name) -> Node) -> Result<Id, Error> {
        let full = name.full.clone();
        if self.nodes.names.contains_key(&full) {
            return self.invalid(format!("{} is defined twice", shown(&full)));
        }
        let id = self.add(node(name));
        self.nodes.names.insert(full, id);
        Ok(id)
    }

    /// The name of a definition, and the namespace for what it encloses. Leaves the name in `self.at`.
    fn name(&mut self, object: &'v Map<String, Value>, space: &str) -> Result<(Name, String), Error> {
        let Some(name) = object.get("name").and_then(Value::as_str) else {
            return self.invalid("a record, enum or fixed needs the attribute `name`");
        };
        self.at.push(shorten(name));
        let space = match object.get("namespace") {
            None | Some(Value::Null) => space,
            Some(Value::String(own)) => own,
            Some(_) => return self.invalid("`namespace` is not a string"),
        };
        let full = full_name(name, space);
        if name.is_empty() || !full.split('.').all(|part| self.is_name(part)) {
            return self.invalid("the parts of a name have to match [A-Za-z_][A-Za-z0-9_]*");
        }
        if primitive(&full).is_some()
            || ["record", "enum", "fixed", "array", "map", "union"].contains(&&*full)
        {
            return self.invalid("a type cannot be called like one of Avro's own");
        }
        let inner_space = full.rsplit_once('.').map_or("", |(space, _)| space).to_owned();
        let aliases = self.alias_list(object.get("aliases"))?;
        let aliases = aliases.into_iter().map(|alias| full_name(alias, &inner_space).into()).collect();
        Ok((Name { full: full.into(), aliases }, inner_space))
    }

    fn alias_list(&self, aliases: Option<&'v Value>) -> Result<Vec<&'v str>, Error> {
        match aliases {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(list)) => match list.iter().map(Value::as_str).collect() {
                Some(list) => Ok(list),
                None => self.invalid("an alias is not a string"),
            },
            Some(_) => self.invalid("`aliases` is not a list"),
        }
    }
}

pub(super) fn primitive(name: &str) -> Option<Node> {
    Some(match name {
        "null" => Node::Null,
        "boolean" => Node::Boolean,
        "int" => Node::Int,
        "long" => Node::Long,
        "float" => Node::Float,
        "double" => Node::Double,
        "bytes" => Node::Bytes,
        "string" => Node::String,
        _ => return None,
    })
}

pub(super) fn full_name(name: &str, space: &str) -> String {
    if name.contains('.') || space.is_empty() {
        name.strip_prefix('.').unwrap_or(name).to_owned()
    } else {
        format!("{space}.{name}")
    }
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A name from outside, for a message: bounded.
fn shorten(name: &str) -> String {
    match name.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", name.get(..end).unwrap_or_default()),
        None => name.to_owned(),
    }
}

fn shown(name: &str) -> String {
    format!("`{}`", shorten(name))
}
