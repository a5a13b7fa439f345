//! Mistakes about formats: how a dataset's records are written, and what does not go together there.

use std::path::Path;
use std::sync::Arc;

use super::check::{Check, Reading};
use super::model::{DatasetModel, Source};
use super::values::Keyed;
use crate::codec::proto::Message;
use crate::codec::{Codec, Envelope, Error, ExtraFields, Format, KeyFormat, KeyRule, Kind};
use crate::schema::Schema;
use crate::words::nearest;

impl Check<'_> {
    /// The dataset's schema, format and key rule, as far as they are right and fit together.
    pub(super) fn read(&mut self, name: &str, dataset: &DatasetModel) -> Option<Reading> {
        let (own, source) = (&dataset.own, &dataset.source);
        let schema_at = ["datasets", name, "schema"];
        let at = |key: &'static str| ["datasets", name, "source", key];
        let registered = self.is_registered(name, dataset)?;
        self.idle(name, source, registered);
        let schema = match (source.format.as_str(), &own.schema) {
            ("raw", None) => Arc::new(Schema::raw()),
            ("raw", Some(_)) => {
                self.wrong(&schema_at, "is not for raw values, which are kept as they come: remove it");
                return None;
            }
            (_, Some(file)) => self.schema(&schema_at, file, Schema::dataset)?,
            ("avro", None) if registered && source.envelope == "upsert" => Arc::new(Schema::raw()),
            ("avro", None) if registered => {
                self.wrong(
                    &schema_at,
                    "is missing: the registry has the schema of changes, and the dataset's is that of rows",
                );
                return None;
            }
            (format, None) => {
                let what = format!(
                    "is missing: {format} values need the dataset's Avro schema, as in schema = \"FILE.avsc\""
                );
                self.wrong(&schema_at, what);
                return None;
            }
        };
        let format = match source.format.as_str() {
            "raw" => Format::raw(),
            "avro" if registered => Format::registered(Kind::Avro),
            "avro" => Format::avro(match &source.schema {
                Some(file) => self.schema(&at("schema"), file, Schema::parse)?,
                None => schema.clone(),
            }),
            "protobuf" if registered => Format::registered(Kind::Protobuf),
            "protobuf" => {
                Format::protobuf(self.message(name, source, "message", source.message.as_deref())?)
            }
            _ => {
                let reject = source.extra_fields == "reject";
                let format = Format::json(if reject { ExtraFields::Reject } else { ExtraFields::Ignore });
                if registered { format.checked() } else { format }
            }
        };
        let keys = match source.key_format.as_str() {
            "string" => KeyFormat::Text,
            "json" => KeyFormat::Json,
            "avro" => KeyFormat::Registered(Kind::Avro),
            "protobuf" => match source.key_message.as_deref() {
                None => KeyFormat::Registered(Kind::Protobuf),
                message => KeyFormat::Protobuf(self.message(name, source, "key_message", message)?),
            },
            _ => KeyFormat::Raw,
        };
        let envelope = if source.envelope == "debezium" { Envelope::Debezium } else { Envelope::Upsert };
        let format = format.with_keys(keys).within(envelope);
        let key = match &own.key {
            Keyed::Kafka(_) => KeyRule::Kafka,
            Keyed::Fields(fields) => KeyRule::Fields(fields.clone()),
        };
        if envelope == Envelope::Debezium
            && matches!((&key, &format.keys), (KeyRule::Fields(_), KeyFormat::Raw))
        {
            let what = "the Kafka nulls that Debezium writes behind deletes delete the key that is the Kafka key, byte for byte: \
                        say how keys are written, as in key_format = \"json\"";
            self.warn(&at("key_format"), what);
        }
        if own.schema.is_none() && source.format == "avro" {
            return Some(Reading { schema, format, key, adopts: true });
        }
        match Codec::new(format.clone(), key.clone(), schema.clone()) {
            Ok(_) => Some(Reading { schema, format, key, adopts: false }),
            Err(Error::Key { field, reason }) if Some(&field) == source.key_message.as_ref() => {
                self.wrong(&at("key_message"), reason);
                None
            }
            Err(Error::Key { field, reason }) => {
                // Each by itself; what is wrong only with them together is that one.
                let alone = |field: &String| {
                    let rule = KeyRule::Fields(vec![field.clone()]);
                    match Codec::new(format.clone(), rule, schema.clone()) {
                        Err(Error::Key { field, reason }) => Some((field, reason)),
                        _ => None,
                    }
                };
                let mut wrong: Vec<_> = match &own.key {
                    Keyed::Fields(fields) => fields.iter().filter_map(alone).collect(),
                    Keyed::Kafka(_) => Vec::new(),
                };
                if wrong.is_empty() {
                    wrong.push((field, reason));
                }
                let names = field_names(&schema);
                for (field, reason) in wrong {
                    let near =
                        nearest(&field, names.iter().map(String::as_str)).filter(|near| *near != field);
                    let hint = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
                    // Of several it must be known which.
                    let is_named = field.is_empty() || reason.contains(&format!("`{field}`"));
                    let which = if is_named { String::new() } else { format!("`{field}`: ") };
                    self.wrong(&["datasets", name, "key"], format!("{which}{reason}{hint}"));
                }
                None
            }
            Err(error) => {
                match (&source.schema, source.format.as_str()) {
                    (Some(_), _) => self.wrong(&at("schema"), error.to_string()),
                    (_, "protobuf") => self.wrong(&at("message"), error.to_string()),
                    _ => self.wrong(&schema_at, error.to_string()),
                }
                None
            }
        }
    }

    /// Whether values name their schemas by a registry's ids; `None`: what says so contradicts.
    fn is_registered(&mut self, name: &str, dataset: &DatasetModel) -> Option<bool> {
        let source = &dataset.source;
        let format = source.format.as_str();
        let there = self.model.schema_registry.url.is_some();
        let needs = "needs a registry: name one with url in [schema_registry]";
        let registered = match format {
            "avro" => source.registry.unwrap_or(there && source.schema.is_none()),
            "protobuf" => source.registry.unwrap_or(there && source.message.is_none()),
            "json" => source.registry.unwrap_or(false),
            _ => false,
        };
        let keys =
            matches!((source.key_format.as_str(), &source.key_message), ("avro", _) | ("protobuf", None));
        let wrong = if source.registry == Some(true) && format == "raw" {
            Some(("registry", "is for avro, json and protobuf, not for raw"))
        } else if registered && !there {
            Some(("registry", needs))
        } else if registered && source.schema.is_some() {
            Some((
                "schema",
                "is not for values whose schemas the registry has: remove it, or say registry = false",
            ))
        } else if registered && source.message.is_some() {
            Some((
                "message",
                "is not for values whose schemas the registry has: remove it, or say registry = false",
            ))
        } else if format == "protobuf" && !registered && source.message.is_none() {
            let what = "is missing: protobuf values need their type, by its name in descriptor_set, or a registry that has it";
            Some(("message", what))
        } else if keys && !there {
            let what = match source.key_format.as_str() {
                "avro" => needs,
                _ => {
                    "needs the type of keys, by its name in descriptor_set with key_message, or a registry that has it"
                }
            };
            Some(("key_format", what))
        } else if source.subject.is_some()
            && !(registered && format == "avro" && dataset.own.schema.is_none())
        {
            Some((
                "subject",
                "is for avro with a schema registry, where the dataset names no schema of its own",
            ))
        } else if source.envelope == "debezium" && !matches!(format, "avro" | "json") {
            Some(("envelope", "\"debezium\" is for avro and json: changes in other formats are not read"))
        } else {
            None
        };
        match wrong {
            Some((key, what)) => {
                self.wrong(&["datasets", name, "source", key], what);
                None
            }
            None => Some(registered),
        }
    }

    /// What is given, and nothing asks for.
    fn idle(&mut self, name: &str, source: &Source, registered: bool) {
        let Source { format, key_format, .. } = source;
        let bare = format == "protobuf" && !registered;
        for (key, what) in [
            (
                "schema",
                (format != "avro" && source.schema.is_some())
                    .then(|| format!("is for avro; {format} values have no schema of their own")),
            ),
            (
                "extra_fields",
                (format != "json" && source.extra_fields != "ignore")
                    .then(|| format!("is for json, not for {format}")),
            ),
            (
                "message",
                (format != "protobuf" && source.message.is_some())
                    .then(|| format!("is for protobuf, not for {format}")),
            ),
            (
                "key_message",
                (key_format != "protobuf" && source.key_message.is_some())
                    .then(|| "is for keys with key_format = \"protobuf\"".to_owned()),
            ),
            (
                "descriptor_set",
                (source.descriptor_set.is_some() && !bare && source.key_message.is_none()).then(|| {
                    "does nothing without message or key_message, which name a type in it".to_owned()
                }),
            ),
        ] {
            if let Some(what) = what {
                self.wrong(&["datasets", name, "source", key], what);
            }
        }
    }

    /// The type of this name in the descriptor set.
    fn message(
        &mut self,
        name: &str,
        source: &Source,
        key: &'static str,
        message: Option<&str>,
    ) -> Option<Arc<Message>> {
        let message = message?;
        let set_at = ["datasets", name, "source", "descriptor_set"];
        let Some(file) = &source.descriptor_set else {
            self.wrong(
                &["datasets", name, "source", key],
                "needs descriptor_set, the file that has the type",
            );
            return None;
        };
        let set = self.bytes(&set_at, file)?;
        match Message::find(&set, message) {
            Ok(message) => Some(Arc::new(message)),
            Err(what) => {
                let at = if what.starts_with("has no message") { key } else { "descriptor_set" };
                self.wrong(&["datasets", name, "source", at], format!("{} {what}", file.display()));
                None
            }
        }
    }

    fn bytes(&mut self, at: &[&str], file: &Path) -> Option<Vec<u8>> {
        if !self.is_right(at) {
            return None;
        }
        std::fs::read(file)
            .map_err(|error| {
                let from = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
                self.wrong(at, format!("cannot read {}: {error}", from.display()));
            })
            .ok()
    }
}

/// The names of a record schema's fields.
fn field_names(schema: &Schema) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Record {
        #[serde(default)]
        fields: Vec<Field>,
    }
    #[derive(serde::Deserialize)]
    struct Field {
        name: String,
    }
    let record = serde_json::from_str::<Record>(schema.json());
    record.map_or(Vec::new(), |record| record.fields.into_iter().map(|field| field.name).collect())
}

#[cfg(test)]
mod tests;
