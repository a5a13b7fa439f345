//! A record's schema with some of its fields only: a reader's schema to which all of the record's datums resolve.
//!
//! What is kept stays as it was given; a record that holds itself has those fields only within itself too. A type that is defined in a field that goes and mentioned in one that stays is
//! defined where it is mentioned first.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::Error;
use crate::words::instead;

/// The text of `json`'s schema with only these fields of its outermost record, in the schema's order.
pub(super) fn json(json: &str, fields: &[String]) -> Result<String, Error> {
    let mut schema: Value = serde_json::from_str(json).map_err(Error::NotJson)?;
    let unsuitable = |reason: String| Err(Error::Unsuitable(reason));
    let mut root = &mut schema;
    // {"type": {...}} is a schema wrapped once more.
    while root.get("type").is_some_and(Value::is_object) {
        root = root.get_mut("type").expect("it was just seen");
    }
    let mut definitions = HashMap::new();
    gather(root, "", &mut definitions);
    let full = root.as_object().map(|object| full_name(object, ""));
    let Some(all) = root.get_mut("fields").and_then(Value::as_array_mut) else {
        return unsuitable("it is no record, so it has no fields to choose from".into());
    };
    let name = |field: &Value| field.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let have: Vec<String> = all.iter().map(name).collect();
    if let Some(unknown) = fields.iter().find(|field| !have.contains(field)) {
        return unsuitable(format!(
            "it has no field {unknown:?}; {}",
            instead(unknown, have.iter().map(String::as_str))
        ));
    }
    all.retain(|field| fields.contains(&name(field)));
    let full = full.unwrap_or_default();
    let mut keep = Keep { definitions: &definitions, defined: HashSet::from([full.clone()]) };
    for field in all {
        if let Some(kind) = field.get_mut("type") {
            keep.schema(kind, space_of(&full))?;
        }
    }
    Ok(schema.to_string())
}

/// The text of `json`'s schema without the defaults of fields.
pub(super) fn without_defaults(json: &str) -> Result<String, Error> {
    let mut schema: Value = serde_json::from_str(json).map_err(Error::NotJson)?;
    take_defaults(&mut schema);
    Ok(schema.to_string())
}

fn take_defaults(value: &mut Value) {
    match value {
        Value::Array(branches) => branches.iter_mut().for_each(take_defaults),
        Value::Object(object) => {
            for field in object.get_mut("fields").and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(field) = field.as_object_mut() {
                    field.remove("default");
                    field.get_mut("type").into_iter().for_each(take_defaults);
                }
            }
            for part in ["type", "items", "values"] {
                object.get_mut(part).into_iter().for_each(take_defaults);
            }
        }
        _ => {}
    }
}

fn full_name(object: &Map<String, Value>, space: &str) -> String {
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    let name = text("name").unwrap_or_default();
    full_of(name, text("namespace").unwrap_or(space))
}

fn full_of(name: &str, space: &str) -> String {
    match name.contains('.') || space.is_empty() {
        true => name.to_owned(),
        false => format!("{space}.{name}"),
    }
}

fn space_of(full: &str) -> &str {
    full.rsplit_once('.').map_or("", |(space, _)| space)
}

fn names_a_type(object: &Map<String, Value>) -> bool {
    matches!(object.get("type").and_then(Value::as_str), Some("record" | "error" | "enum" | "fixed"))
}

/// All named types, by full name.
fn gather(value: &Value, space: &str, definitions: &mut HashMap<String, Value>) {
    match value {
        Value::Array(branches) => branches.iter().for_each(|branch| gather(branch, space, definitions)),
        Value::Object(object) if names_a_type(object) => {
            let full = full_name(object, space);
            for field in object.get("fields").and_then(Value::as_array).into_iter().flatten() {
                if let Some(kind) = field.get("type") {
                    gather(kind, space_of(&full), definitions);
                }
            }
            definitions.insert(full, value.clone());
        }
        Value::Object(object) => {
            for part in ["type", "items", "values"] {
                if let Some(inner) = object.get(part) {
                    gather(inner, space, definitions);
                }
            }
        }
        _ => {}
    }
}

struct Keep<'a> {
    definitions: &'a HashMap<String, Value>,
    /// Full names that stand before what is looked at.
    defined: HashSet<String>,
}

impl Keep<'_> {
    /// Sees to it that each type is defined where it is met first, and only there.
    fn schema(&mut self, value: &mut Value, space: &str) -> Result<(), Error> {
        match value {
            Value::String(name) => {
                let full = full_of(name, space);
                let Some(definition) = self.definitions.get(&full) else { return Ok(()) };
                if self.defined.contains(&full) {
                    return Ok(());
                }
                let mut definition = definition.clone();
                if let Some(object) = definition.as_object_mut() {
                    // Where it stands now, another namespace may be in force.
                    let short = full.rsplit('.').next().unwrap_or(&full);
                    object.insert("name".into(), short.into());
                    object.insert("namespace".into(), space_of(&full).into());
                }
                *value = definition;
                self.schema(value, "")
            }
            Value::Array(branches) => branches.iter_mut().try_for_each(|branch| self.schema(branch, space)),
            Value::Object(object) if names_a_type(object) => {
                let full = full_name(object, space);
                if !self.defined.insert(full.clone()) {
                    if space_of(&full).is_empty() && !space.is_empty() {
                        return Err(Error::Unsuitable(format!(
                            "type {full}, which has no namespace, cannot be named within namespace {space}: keep the \
                             field that defines it"
                        )));
                    }
                    *value = full.into();
                    return Ok(());
                }
                for field in object.get_mut("fields").and_then(Value::as_array_mut).into_iter().flatten() {
                    if let Some(kind) = field.get_mut("type") {
                        self.schema(kind, space_of(&full))?;
                    }
                }
                Ok(())
            }
            Value::Object(object) => {
                for part in ["type", "items", "values"] {
                    if let Some(inner) = object.get_mut(part) {
                        self.schema(inner, space)?;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::reference::{self, Dice};
    use super::super::{Id, Node, Resolver, Schema};

    fn only(json: &str, fields: &[&str]) -> Result<Schema, super::Error> {
        let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
        Schema::parse(json)?.only(&fields)
    }

    const NAMED: &str = r#"{"type":"record","name":"P","namespace":"a","doc":"kept","fields":[
        {"name":"gone","type":{"type":"record","name":"b.Box","fields":[
            {"name":"side","type":{"type":"enum","name":"Side","symbols":["l","r"]}},
            {"name":"inner","type":["null","Box"]}]}},
        {"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":9,"scale":2},"default":""},
        {"name":"side","type":"b.Side"},
        {"name":"boxes","type":{"type":"array","items":["null","b.Box"]}},
        {"name":"next","type":["null","P"]}]}"#;

    #[test]
    fn types_move_to_where_they_are_named_first() {
        let whole = Arc::new(Schema::parse(NAMED).unwrap());
        for fields in [&["side"][..], &["boxes"], &["price", "boxes", "side"], &["gone", "side"], &["price"]]
        {
            let kept = Arc::new(only(NAMED, fields).unwrap());
            Resolver::new(&whole, &kept).unwrap();
            let Node::Record(record) = kept.nodes.get(kept.nodes.root) else { panic!("no record") };
            assert_eq!(record.fields.len(), fields.len(), "{fields:?}");
            assert!(kept.json().contains("kept"));
        }
        let both = only(NAMED, &["side", "boxes"]).unwrap();
        assert_eq!(both.json().matches("\"symbols\"").count(), 1, "defined once: {}", both.json());
        assert!(only(NAMED, &["price"]).unwrap().json().contains("decimal"));
    }

    #[test]
    fn what_cannot_be_chosen_says_why() {
        let error = only(NAMED, &["price", "cost"]).unwrap_err().to_string();
        assert!(error.contains("\"cost\"") && error.contains("gone, price, side, boxes, next"), "{error}");
        assert!(only(r#""string""#, &["a"]).unwrap_err().to_string().contains("no record"));
    }

    /// Whether values of a node may hold one of the node `root`.
    fn holds(schema: &Schema, id: Id, root: Id, seen: &mut Vec<Id>) -> bool {
        if id == root || seen.contains(&id) {
            return id == root;
        }
        seen.push(id);
        match schema.nodes.get(id) {
            Node::Record(record) => record.fields.iter().any(|field| holds(schema, field.node, root, seen)),
            Node::Array(inner) | Node::Map(inner) => holds(schema, *inner, root, seen),
            Node::Union(branches) => branches.iter().any(|branch| holds(schema, *branch, root, seen)),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn any_choice_of_fields_reads_what_the_whole_holds(seed in any::<u64>()) {
            let mut dice = Dice::new(seed);
            let made = reference::schema(&mut dice, true);
            let whole = Arc::new(Schema::parse(&made.json.to_string()).unwrap());
            let Node::Record(record) = whole.nodes.get(whole.nodes.root) else { return Ok(()) };
            let fields: Vec<String> =
                record.fields.iter().map(|field| field.name.to_string()).filter(|_| dice.one_in(2)).collect();
            let Ok(kept) = whole.only(&fields) else { return Ok(()) };
            let kept = Arc::new(kept);
            let resolver = Resolver::new(&whole, &kept).unwrap();
            for _ in 0..4 {
                let value = reference::value(&mut dice, &made);
                let datum = apache_avro::to_avro_datum(&made.avro(), value).unwrap();
                let mut read = Vec::new();
                resolver.resolve(&datum, &mut read).unwrap();
                for field in &fields {
                    let node = record.field(field.as_bytes()).map(|at| record.fields[at].node).unwrap();
                    if holds(&whole, node, whole.nodes.root, &mut Vec::new()) {
                        continue;
                    }
                    let part = |schema: &Schema, datum: &[u8]| {
                        crate::codec::Part::whole(schema, datum).unwrap().field(field).unwrap().unwrap().datum().unwrap().to_vec()
                    };
                    prop_assert_eq!(part(&whole, &datum), part(&kept, &read), "{}", field);
                }
            }
        }
    }
}
