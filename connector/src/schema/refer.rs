//! Schemas that refer to types which other texts define (a registry's references): one text that needs no other.
//!
//! Each named type is put where it is mentioned first, as Avro wants it, and keeps its namespace whatever it then stands
//! in. Types within the other texts count as well: parsers that read those first know them, too.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::parse::{full_name, primitive};
use super::{Error, MAX_DEPTH};

/// A schema in one text, with the types that it refers to taken out of `others`.
///
/// # Errors
/// [`Error::NotJson`]. That a type is nowhere, or too deep, is for [`Schema::parse`](super::Schema::parse) to say.
pub(super) fn inline<'t>(json: &str, others: impl IntoIterator<Item = &'t str>) -> Result<String, Error> {
    let parse = |text: &str| serde_json::from_str::<Value>(text).map_err(Error::NotJson);
    let main = parse(json)?;
    let mut types = HashMap::new();
    for text in others {
        find(&parse(text)?, "", &mut types);
    }
    let mut writer = Writer { types, defined: HashSet::new() };
    // What it defines itself comes before what others say of the same name.
    let mut own = HashMap::new();
    find(&main, "", &mut own);
    writer.types.retain(|name, _| !own.contains_key(name));
    Ok(writer.write(&main, "", 0).to_string())
}

const NAMED: [&str; 4] = ["record", "error", "enum", "fixed"];

/// Full name of the type that an object defines, and the namespace of what is in it.
fn defines(object: &Map<String, Value>, space: &str) -> Option<(String, String)> {
    let kind = object.get("type").and_then(Value::as_str)?;
    let name = object.get("name").and_then(Value::as_str).filter(|_| NAMED.contains(&kind))?;
    let space = object.get("namespace").and_then(Value::as_str).unwrap_or(space);
    let full = full_name(name, space);
    let inner = full.rsplit_once('.').map_or(String::new(), |(space, _)| space.to_owned());
    Some((full, inner))
}

/// Notes every named type of a text, with its namespace written out. Nesting is bounded by the JSON's.
fn find(value: &Value, space: &str, types: &mut HashMap<String, Value>) {
    match value {
        Value::Array(branches) => branches.iter().for_each(|branch| find(branch, space, types)),
        Value::Object(object) => match defines(object, space) {
            Some((full, inner)) => {
                let mut own = object.clone();
                let short = full.rsplit('.').next().unwrap_or(&full).to_owned();
                own.insert("name".into(), short.into());
                own.insert("namespace".into(), inner.as_str().into());
                types.entry(full).or_insert(Value::Object(own));
                for field in object.get("fields").and_then(Value::as_array).into_iter().flatten() {
                    field.get("type").into_iter().for_each(|kind| find(kind, &inner, types));
                }
            }
            None => {
                for part in ["type", "items", "values"] {
                    object.get(part).into_iter().for_each(|part| find(part, space, types));
                }
            }
        },
        _ => {}
    }
}

struct Writer {
    types: HashMap<String, Value>,
    defined: HashSet<String>,
}

impl Writer {
    /// `depth`: what this one stands in. A chain of types nests some levels for each, however shallow the texts are:
    /// past [`MAX_DEPTH`], which is deeper than the parser goes, what is mentioned is left as it is.
    fn write(&mut self, value: &Value, space: &str, depth: usize) -> Value {
        if depth > MAX_DEPTH {
            return value.clone();
        }
        let depth = depth + 1;
        match value {
            Value::String(name) if primitive(name).is_none() => {
                let full = full_name(name, space);
                match self.types.get(&full).filter(|_| !self.defined.contains(&full)).cloned() {
                    Some(definition) => self.write(&definition, space, depth),
                    None => value.clone(),
                }
            }
            Value::Array(branches) => {
                branches.iter().map(|branch| self.write(branch, space, depth)).collect()
            }
            Value::Object(object) => self.object(object, space, depth),
            _ => value.clone(),
        }
    }

    fn object(&mut self, object: &Map<String, Value>, space: &str, depth: usize) -> Value {
        let mut out = object.clone();
        let Some((full, inner)) = defines(object, space) else {
            for part in ["type", "items", "values"] {
                if let Some(value) = object.get(part) {
                    out.insert(part.into(), self.write(value, space, depth));
                }
            }
            return out.into();
        };
        // Written before, where it was mentioned first.
        if self.types.contains_key(&full) && self.defined.contains(&full) {
            return full.into();
        }
        self.defined.insert(full);
        if let Some(fields) = object.get("fields").and_then(Value::as_array) {
            let fields = fields.iter().map(|field| {
                let mut field = field.clone();
                if let Some(kind) = field.get("type").cloned() {
                    let kind = self.write(&kind, &inner, depth);
                    if let Some(field) = field.as_object_mut() {
                        field.insert("type".into(), kind);
                    }
                }
                field
            });
            let fields: Vec<Value> = fields.collect();
            out.insert("fields".into(), fields.into());
        }
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;

    #[test]
    fn types_stand_where_they_are_mentioned_first_and_keep_their_names() {
        let money = r#"{"type": "record", "name": "Money", "namespace": "bank", "fields": [
            {"name": "unit", "type": {"type": "enum", "name": "Unit", "symbols": ["EUR"]}}, {"name": "cents", "type": "long"}]}"#;
        let bare =
            r#"{"type": "record", "name": "Bare", "fields": [{"name": "next", "type": ["null", "Bare"]}]}"#;
        let main = r#"{"type": "record", "name": "Order", "namespace": "shop", "fields": [
            {"name": "unit", "type": "bank.Unit"},
            {"name": "sums", "type": {"type": "array", "items": "bank.Money"}},
            {"name": "more", "type": ["null", "bank.Money", "Own"]},
            {"name": "own", "type": {"type": "fixed", "name": "Own", "size": 2}}]}"#;
        // `Own` is mentioned before it is defined, which Avro refuses, and so do we.
        let text = inline(main, [money, bare]).unwrap();
        assert!(Schema::parse(&text).unwrap_err().to_string().contains("Own"), "{text}");
        let text = inline(&main.replace(r#", "Own"]"#, "]"), [money, bare]).unwrap();
        let schema = Schema::parse(&text).unwrap();
        for name in ["bank.Unit", "bank.Money", "shop.Own", "shop.Order"] {
            assert!(schema.nodes.named(name).is_some(), "{name} in {text}");
        }
        assert!(schema.nodes.named("Bare").is_none(), "what nobody mentions is left out");
        // A type without a namespace stays without one, also within a type that has one.
        let main = r#"["null", "Bare", {"type": "map", "values": "bank.Money"}]"#;
        let schema = Schema::parse(&inline(main, [money, bare]).unwrap()).unwrap();
        assert!(schema.nodes.named("Bare").is_some() && schema.nodes.named("bank.Money").is_some());
        // References of references.
        let outer =
            r#"{"type": "record", "name": "a.Outer", "fields": [{"name": "m", "type": "bank.Money"}]}"#;
        let schema = Schema::parse(&inline(r#""a.Outer""#, [money, outer]).unwrap()).unwrap();
        assert!(schema.nodes.named("bank.Unit").is_some());
    }

    #[test]
    fn a_chain_of_types_ends_where_the_parser_does() {
        let chain = |length: usize| {
            let texts = (0..length).map(|n| {
                let kind = if n + 1 < length { format!("n.T{}", n + 1) } else { "int".to_owned() };
                format!(
                    r#"{{"type": "record", "name": "n.T{n}", "fields": [{{"name": "f", "type": "{kind}"}}]}}"#
                )
            });
            let texts: Vec<String> = texts.collect();
            Schema::with_references("\"n.T0\"", texts.iter().map(String::as_str))
        };
        assert!(chain(40).unwrap().nodes.named("n.T39").is_some());
        // On the stack of a thread: the depth of the text, not of the chain.
        for length in [60, 200, 20_000] {
            chain(length).unwrap_err();
        }
    }

    #[test]
    fn what_is_no_json_is_refused_and_what_is_nowhere_is_left() {
        assert!(matches!(inline("{", []), Err(Error::NotJson(_))));
        assert!(matches!(inline("\"int\"", ["{"]), Err(Error::NotJson(_))));
        assert_eq!(inline("\"x.Y\"", []).unwrap(), "\"x.Y\"");
    }
}
