//! Protobuf messages to Avro datums, in one pass over the bytes, without a tree in between (docs/formats.md, "Protobuf").
//!
//! ```text
//!  descriptor set --\                          wire: 08 07 12 03 … in any order, anything twice
//!                    > Message --plan--\          |  scan: where each field lies
//!  registry's text --/                  > Protobuf --> run: the dataset's fields in their order --> datum
//!                     dataset's schema /
//! ```
//!
//! A message's fields are matched with the dataset's by name, once. What is read is bounded by the bytes that are there, not
//! by what they say; so is what is written, by a multiple of them.
//!
//! Owns: types of messages, the rules by which they become Avro. Does not own: where they come from (`registry`), which one a
//! record is of (`registered`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use prost_reflect::{DescriptorPool, Kind, MessageDescriptor};

use super::key::Fields;
use super::{Bound, Error, Misfit};
use crate::schema::Schema;

mod plan;
mod reader;
mod run;

pub(super) use run::Protobuf;

/// Deepest nesting of a file's text, as braces tell it: whoever parses it recurses.
const DEEPEST: usize = 64;
/// Files that Confluent's serializers refer to without a reference.
const BUILT_IN: [(&str, &str); 2] = [
    (
        "confluent/meta.proto",
        r#"syntax = "proto3";
        package confluent;
        import "google/protobuf/descriptor.proto";
        message Meta { string doc = 1; map<string, string> params = 2; repeated string tags = 3; }
        extend google.protobuf.FileOptions { Meta file_meta = 1088; }
        extend google.protobuf.MessageOptions { Meta message_meta = 1088; }
        extend google.protobuf.FieldOptions { Meta field_meta = 1088; }
        extend google.protobuf.EnumOptions { Meta enum_meta = 1088; }
        extend google.protobuf.EnumValueOptions { Meta enum_value_meta = 1088; }"#,
    ),
    (
        "confluent/type/decimal.proto",
        r#"syntax = "proto3";
        package confluent.type;
        message Decimal { bytes value = 1; uint32 precision = 2; int32 scale = 3; }"#,
    ),
];

/// A message's type.
#[derive(Clone, Debug)]
pub struct Message(MessageDescriptor);

impl Message {
    /// The type of this full name in a descriptor set, as `protoc --include_imports --descriptor_set_out` writes it.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn find(set: &[u8], name: &str) -> Result<Message, String> {
        let pool = DescriptorPool::decode(set).map_err(|error| {
            format!(
                "is no descriptor set ({error}); `protoc --include_imports \
                                      --descriptor_set_out=FILE` writes one"
            )
        })?;
        let found = pool.get_message_by_name(name.trim_start_matches('.'));
        found.map(Message).ok_or_else(|| {
            const MOST: usize = 12;
            let there = pool.all_messages().filter(|message| !message.is_map_entry());
            let there = there.filter(|message| !message.full_name().starts_with("google.protobuf."));
            let names: Vec<String> = there.take(MOST).map(|message| message.full_name().to_owned()).collect();
            format!("has no message {name:?}; it has {}", names.join(", "))
        })
    }

    /// Its full name.
    pub fn name(&self) -> &str {
        self.0.full_name()
    }

    /// All that makes it what it is, for comparing: the descriptors of its file and of all that this rests on.
    pub fn digest(&self) -> u64 {
        let mut digest = xxhash_rust::xxh3::Xxh3::new();
        digest.update(self.name().as_bytes());
        let (mut open, mut seen) = (vec![self.0.parent_file()], HashSet::new());
        while let Some(file) = open.pop() {
            if seen.insert(file.name().to_owned()) {
                digest.update(&file.encode_to_vec());
                open.extend(file.dependencies());
            }
        }
        digest.digest()
    }

    /// An Avro schema for messages that are keys: a record of their fields, in the order of their numbers.
    fn key_schema(&self) -> Result<Schema, String> {
        let mut fields: Vec<_> = self.0.fields().collect();
        fields.sort_unstable_by_key(prost_reflect::FieldDescriptor::number);
        let field = |field: &prost_reflect::FieldDescriptor| {
            let kind = match field.kind() {
                _ if field.is_list() || field.is_map() => None,
                Kind::Bool => Some("boolean"),
                Kind::String | Kind::Enum(_) => Some("string"),
                Kind::Bytes => Some("bytes"),
                Kind::Float | Kind::Double | Kind::Message(_) => None,
                _ => Some("long"),
            };
            match (kind, field.supports_presence()) {
                (None, _) => Err(format!(
                    "the field `{}` of {} is none that a key is made of: integers, bools, strings, bytes and enums are",
                    field.name(),
                    self.name()
                )),
                (Some(kind), true) => Ok(serde_json::json!({"name": field.name(), "type": ["null", kind]})),
                (Some(kind), false) => Ok(serde_json::json!({"name": field.name(), "type": kind})),
            }
        };
        let fields = fields.iter().map(field).collect::<Result<Vec<_>, _>>()?;
        let json = serde_json::json!({"type": "record", "name": "Key", "fields": fields});
        Schema::parse(&json.to_string()).map_err(|error| error.to_string())
    }
}

/// A file of messages, as a registry has it.
#[derive(Clone, Debug)]
pub struct File {
    pool: DescriptorPool,
    name: String,
}

impl File {
    /// Compiles a file's text, with those that it imports by these names.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn compile(text: &str, imports: &[(String, String)]) -> Result<File, String> {
        const MAIN: &str = "the schema";
        let mut texts: HashMap<&str, &str> = BUILT_IN.into_iter().collect();
        texts.extend(imports.iter().map(|(name, text)| (&**name, &**text)));
        texts.insert(MAIN, text);
        // Parsed is what everything that it imports is before it: a file goes in when it is met the second time.
        let mut pool = DescriptorPool::global();
        let mut parsed = HashMap::new();
        let mut open = vec![MAIN.to_owned()];
        while let Some(name) = open.last().cloned() {
            if pool.get_file_by_name(&name).is_some() {
                open.pop();
                continue;
            }
            if let Some(file) = parsed.remove(&name) {
                pool.add_file_descriptor_proto(file).map_err(|error| format!("{name}: {error}"))?;
                open.pop();
                continue;
            }
            let text = texts.remove(&*name).ok_or_else(|| {
                format!("it imports {name}, which is none of its references, or imports itself by it")
            })?;
            if is_deep(text) {
                return Err(format!("{name}: it is nested deeper than {DEEPEST} levels"));
            }
            let file = protox_parse::parse(&name, text).map_err(|error| format!("{name}: {error}"))?;
            open.extend(file.dependency.iter().cloned());
            parsed.insert(name, file);
        }
        Ok(File { pool, name: MAIN.to_owned() })
    }

    /// The message at these indexes: its place in the file, then within that message, and so on. What the compiler makes of
    /// maps has none, as Confluent's Java client counts.
    pub fn message(&self, path: &[u32]) -> Option<Message> {
        let (first, rest) = path.split_first()?;
        let mut found = self.pool.get_file_by_name(&self.name)?.messages().nth(*first as usize)?;
        for index in rest {
            let child = found.child_messages().filter(|child| !child.is_map_entry()).nth(*index as usize);
            found = child?;
        }
        Some(Message(found))
    }
}

/// Braces in comments and strings nest nothing: a file may be full of `a < b`, or of smileys.
fn is_deep(text: &str) -> bool {
    let mut depth = 0usize;
    let mut rest = text;
    while let Some(at) = rest.find(['{', '[', '(', '<', '}', ']', ')', '>', '/', '"', '\'']) {
        let (_, from) = rest.split_at(at);
        let mut chars = from.chars();
        let first = chars.next();
        rest = chars.as_str();
        match first {
            Some('{' | '[' | '(' | '<') => depth += 1,
            Some('}' | ']' | ')' | '>') => depth = depth.saturating_sub(1),
            Some('/') if rest.starts_with('/') => rest = rest.split_once('\n').map_or("", |(_, rest)| rest),
            Some('/') if rest.starts_with('*') => {
                rest = rest.get(1..).and_then(|rest| rest.split_once("*/")).map_or("", |(_, rest)| rest);
            }
            Some(quote @ ('"' | '\'')) => loop {
                match chars.next() {
                    Some('\\') => {
                        chars.next();
                    }
                    Some(char) if char != quote => {}
                    _ => {
                        rest = chars.as_str();
                        break;
                    }
                }
            },
            _ => {}
        }
        if depth > DEEPEST {
            return true;
        }
    }
    false
}

/// Reads keys that are messages.
#[derive(Debug)]
pub(super) struct Key {
    messages: Protobuf,
    schema: Arc<Schema>,
    fields: Fields,
    out: Vec<u8>,
}

impl Key {
    /// By the fields of these names, where the message has them all; else by all that it has.
    pub fn new(message: &Message, names: &[String]) -> Result<Key, Error> {
        let schema = Arc::new(message.key_schema().map_err(Error::KeyType)?);
        let fields = Fields::named_or_whole(&schema, names).map_err(Error::KeyType)?;
        Ok(Key { messages: Protobuf::new(message, &schema)?, schema, fields, out: Vec::new() })
    }

    pub fn decode(&mut self, bytes: &[u8]) -> Result<&[u8], Misfit> {
        let datum = self.messages.decode(bytes, Bound::ANY).map_err(super::keys::of_key)?;
        self.fields.write(&self.schema, datum, &mut self.out)?;
        Ok(&self.out)
    }
}

#[cfg(test)]
mod tests;
