//! The schema of a blob's entry, around the schema of its values.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// Full name of the entry's record.
pub(super) const NAME: &str = "stillwell.Entry";

/// The entry's schema with `value` inlined.
pub(super) fn json(value: &str) -> String {
    let value = without_namespace(value);
    format!(
        concat!(
            r#"{{"type":"record","name":"Entry","namespace":"stillwell","fields":["#,
            r#"{{"name":"key","type":"bytes"}},"#,
            r#"{{"name":"timestamp","type":{{"type":"long","logicalType":"timestamp-millis"}}}},"#,
            r#"{{"name":"source","type":"int"}},"#,
            r#"{{"name":"offset","type":"long"}},"#,
            r#"{{"name":"value","type":["null",{value}]}}]}}"#
        ),
        value = value
    )
}

/// The schema of a record with one field, which holds null or `value`. `envelope` and `row` are further names of the two:
/// by them they match what a writer calls them.
pub(super) fn in_field(
    value: &str,
    field: &str,
    envelope: &str,
    row: Option<&str>,
) -> Result<String, super::Error> {
    let value = without_namespace(value);
    let mut inner: Value = serde_json::from_str(&value).map_err(super::Error::NotJson)?;
    let mut root = &mut inner;
    // {"type": {...}} is a schema wrapped once more.
    while root.get("type").is_some_and(Value::is_object) {
        root = root.get_mut("type").expect("it was just seen");
    }
    if let (Some(row), Some("record" | "error")) = (row, root.get("type").and_then(Value::as_str))
        && let Some(object) = root.as_object_mut()
    {
        let aliases = object.entry("aliases").or_insert_with(|| Value::Array(Vec::new()));
        if let Some(aliases) = aliases.as_array_mut()
            && !aliases.iter().any(|alias| alias == row)
        {
            aliases.push(row.into());
        }
    }
    let fields = serde_json::json!([{"name": field, "type": ["null", inner]}]);
    Ok(serde_json::json!({"type": "record", "name": "stillwell.Change", "aliases": [envelope], "fields": fields})
        .to_string())
}

/// Puts `"namespace":""` into the outermost named type where it has no namespace of its own, so that being inside
/// `stillwell.Entry` does not give it one. There is at most one such type: what encloses it can only be arrays and
/// maps, and what it encloses follows its namespace. Everything else stays as it was given, in its order.
fn without_namespace(json: &str) -> String {
    let Ok(Attributes(attributes)) = serde_json::from_str(json) else {
        return json.to_owned(); // a name, and a primitive type at that
    };
    let get = |name: &str| attributes.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.get());
    let text = |name: &str| get(name).and_then(|raw| serde_json::from_str::<String>(raw).ok());
    let inner = match text("type").as_deref() {
        Some("record" | "error" | "enum" | "fixed") => {
            let has_one = get("namespace").is_some() || text("name").is_some_and(|name| name.contains('.'));
            return match json.strip_prefix('{') {
                Some(rest) if !has_one => format!(r#"{{"namespace":"",{rest}"#),
                _ => json.to_owned(),
            };
        }
        Some("array") => "items",
        Some("map") => "values",
        Some(_) => return json.to_owned(),
        None => "type",
    };
    let mut out = String::with_capacity(json.len() + 16);
    for (key, value) in &attributes {
        out.push(if out.is_empty() { '{' } else { ',' });
        out.push_str(&serde_json::Value::from(key.as_str()).to_string());
        out.push(':');
        if key == inner {
            out.push_str(&without_namespace(value.get()));
        } else {
            out.push_str(value.get());
        }
    }
    out.push('}');
    out
}

/// A JSON object's attributes in their order, each value as its text.
struct Attributes(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Attributes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Attributes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Attributes, A::Error> {
                let mut attributes = Vec::new();
                while let Some(attribute) = map.next_entry()? {
                    attributes.push(attribute);
                }
                Ok(Attributes(attributes))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}
