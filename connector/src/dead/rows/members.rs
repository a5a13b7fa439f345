//! Objects of JSON by their members, each as it is written: numbers keep all their digits.
//!
//! Owns: what a change of a database is made of, and what a row leaves out. Does not own: what follows from it (`rows`).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The members of an object, by name. One that is there twice is none: which of them was meant nobody knows, and whoever reads
/// the source takes neither.
#[derive(Clone, Debug, Default)]
pub(super) struct Members(pub(super) BTreeMap<String, Box<RawValue>>);

impl Members {
    /// What is no object, or has a member twice, has none.
    pub(super) fn of(json: &[u8]) -> Option<Members> {
        serde_json::from_slice(json).ok()
    }

    fn take(&mut self, name: &str) -> Option<Box<RawValue>> {
        self.0.remove(name)
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Members, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    match members.entry(name) {
                        Entry::Vacant(free) => free.insert(value),
                        Entry::Occupied(_) => return Err(A::Error::custom("a member is there twice")),
                    };
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(Each)
    }
}

/// A change of a database's row, as Debezium writes it.
#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    members: Members,
    /// What a converter put beside it: its schema.
    schema: Option<Box<RawValue>>,
}

impl Change {
    /// Reads one; it need not be whole.
    pub(super) fn of(json: &[u8]) -> Option<Change> {
        let mut members = Members::of(json)?;
        if members.has("op") || !members.has("payload") {
            return Some(Change { members, schema: None });
        }
        let payload = members.take("payload")?;
        Some(Change { members: Members::of(payload.get().as_bytes())?, schema: members.take("schema") })
    }

    /// Whether it says what was done.
    pub(super) fn says_what(&self) -> bool {
        self.members.has("op")
    }

    /// Whether it says that the row is as it has it. What else has a row (a delete, an operation that nobody knows) says
    /// something of it that is not that, and the source takes no row from it either.
    fn writes(&self) -> bool {
        let op = self.members.0.get("op").and_then(|op| serde_json::from_str::<String>(op.get()).ok());
        matches!(op.as_deref(), Some("c" | "r" | "u"))
    }

    /// The row that it says there is.
    pub(super) fn row(&self) -> Option<&RawValue> {
        let after = self.members.0.get("after").filter(|row| row.get() != "null")?;
        self.writes().then_some(after)
    }

    /// What stands in the place of the row, whatever was done.
    pub(super) fn after(&self) -> Option<&RawValue> {
        self.members.0.get("after").map(|row| &**row)
    }

    /// The change that says this row: the same, as far as it could be read, with this row in its place, beside the schema that
    /// it had.
    pub(super) fn with(mut self, row: &[u8]) -> Result<String, serde_json::Error> {
        let raw = |text: &str| RawValue::from_string(text.to_owned());
        let writes = self.writes();
        let members = &mut self.members.0;
        if !writes {
            members.insert("op".to_owned(), raw(r#""u""#)?);
        }
        members.insert("before".to_owned(), raw("null")?);
        members.insert("after".to_owned(), raw(&String::from_utf8_lossy(row))?);
        let change = serde_json::to_string(&self.members.0)?;
        // A converter that is told of schemas takes nothing without one.
        Ok(match self.schema {
            Some(schema) => format!(r#"{{"schema":{},"payload":{change}}}"#, schema.get()),
            None => change,
        })
    }
}

/// A row with what it leaves out: the members that `told` has, the same row with all its fields, and the row has not, at any
/// depth. Their names, `a.b` for one in a record, are put into `missed`. `None`: it cannot be said, since a member of it is
/// there twice.
pub(super) fn filled(row: &[u8], told: &str, missed: &mut Vec<String>) -> Option<Box<RawValue>> {
    let (row, told): (&RawValue, &RawValue) =
        (serde_json::from_slice(row).ok()?, serde_json::from_str(told).ok()?);
    fill(row, told, "", missed)
}

fn fill(row: &RawValue, told: &RawValue, way: &str, missed: &mut Vec<String>) -> Option<Box<RawValue>> {
    let begins = |raw: &RawValue, with: char| raw.get().starts_with(with);
    let within = |name: &str| if way.is_empty() { name.to_owned() } else { format!("{way}.{name}") };
    if begins(row, '{') && begins(told, '{') {
        let Members(mut row) = Members::of(row.get().as_bytes())?;
        for (name, told) in Members::of(told.get().as_bytes())?.0 {
            match row.get_mut(&name) {
                Some(member) => *member = fill(member, &told, &within(&name), missed)?,
                None => {
                    missed.push(within(&name));
                    row.insert(name, told);
                }
            }
        }
        return serde_json::value::to_raw_value(&row).ok();
    }
    if begins(row, '[') && begins(told, '[') {
        let items = |raw: &RawValue| serde_json::from_str::<Vec<Box<RawValue>>>(raw.get()).ok();
        let (mut row, told) = (items(row)?, items(told)?);
        for (item, told) in row.iter_mut().zip(told) {
            *item = fill(item, &told, way, missed)?;
        }
        return serde_json::value::to_raw_value(&row).ok();
    }
    Some(row.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_written_and_nothing_else_is_one() {
        let row =
            |json: &str| Change::of(json.as_bytes()).and_then(|change| Some(change.row()?.get().to_owned()));
        for (json, is) in [
            (r#"{"op": "c", "after": {"a": 1}}"#, true),
            (r#"{"op": "r", "after": {"a": 1}}"#, true),
            (r#"{"after": {"a": 1}, "op": "u"}"#, true),
            (r#"{"op": "\u0075", "after": {"a": 1}}"#, true),
            (r#"{"payload": {"op": "u", "after": {"a": 1}}, "after": {"b": 1}}"#, true),
            (r#"{"op": "d", "after": {"a": 1}}"#, false),
            (r#"{"op": "x", "after": {"a": 1}}"#, false),
            (r#"{"op": null, "after": {"a": 1}}"#, false),
            (r#"{"after": {"a": 1}}"#, false),
            (r#"{"op": "u", "after": null}"#, false),
            (r#"{"op": "d", "op": "c", "after": {"a": 1}}"#, false),
            (r#"{"op": "c", "after": {"a": 2}, "after": {"a": 1}}"#, false),
        ] {
            assert_eq!(row(json), is.then(|| r#"{"a": 1}"#.to_owned()), "{json}");
        }
    }

    #[test]
    fn what_a_row_leaves_out_is_named_and_put_in_beside_what_it_has() {
        let mut missed = Vec::new();
        let row = r#" {"n": 18446744073709551616, "in": {"a": 1}, "list": [{"b": 2}, 3], "more": [1]} "#;
        let told = r#"{"n":1.8e19,"gone":null,"in":{"a":1,"x":"y"},"list":[{"b":2,"c":4},3],"more":[1]}"#;
        let whole = filled(row.as_bytes(), told, &mut missed).unwrap();
        assert_eq!(missed, ["gone", "in.x", "list.c"]);
        let expected = r#"{"gone":null,"in":{"a":1,"x":"y"},"list":[{"b":2,"c":4},3],"more":[1],"n":18446744073709551616}"#;
        assert_eq!(whole.get(), expected);
        missed.clear();
        assert_eq!(filled(expected.as_bytes(), told, &mut missed).unwrap().get(), expected);
        assert_eq!(missed, Vec::<String>::new(), "it says all");
        assert!(filled(br#"{"a": 1, "a": 2}"#, r#"{"b":1}"#, &mut missed).is_none());
    }
}
