//! Mistakes about formats: how a dataset's records are written, and what does not go together there.

use std::path::Path;
use std::sync::Arc;

use super::check::{Check, Reading};
use super::model::{Apart, DatasetModel};
use super::values::Keyed;
use crate::codec::proto::Message;
use crate::codec::{Codec, Envelope, Error, ExtraFields, Format, KeyFormat, KeyRule, Kind};
use crate::schema::Schema;
use crate::words::nearest;

/// What is said of how records are written, of all topics or of one, and in which section.
#[derive(Clone, Copy)]
struct Said<'a> {
    section: &'a [&'a str],
    of: &'a Apart,
    /// Values name their schemas by a registry's ids.
    registered: bool,
}

impl<'a> Said<'a> {
    fn at(&self, key: &'a str) -> Vec<&'a str> {
        [self.section, &[key]].concat()
    }
}

impl Check<'_> {
    /// The dataset's schema, formats and key rule, as far as they are right and fit together.
    pub(super) fn read(&mut self, name: &str, dataset: &DatasetModel) -> Option<Reading> {
        let (own, of) = (&dataset.own, &dataset.source.written());
        let section = ["datasets", name, "source"];
        let registered = self.is_registered(&section, of)?;
        let said = Said { section: &section, of, registered };
        self.idle(said);
        let adopts = own.schema.is_none() && of.format == "avro";
        if dataset.source.subject.is_some() && !(registered && adopts) {
            let what = "is for avro with a schema registry, where the dataset names no schema of its own";
            self.wrong(&said.at("subject"), what);
            return None;
        }
        let schema = self.own_schema(name, dataset, said)?;
        let key = match &own.key {
            Keyed::Kafka(_) => KeyRule::Kafka,
            Keyed::Fields(fields) => KeyRule::Fields(fields.clone()),
        };
        let known = (!adopts).then_some(&schema);
        let mut format = self.format(said, known, &key)?;
        self.fit(name, said, &format, &key, known)?;
        for (topic, of) in &dataset.formats {
            let section = ["datasets", name, "source", "formats", topic.as_str()];
            let topics = &dataset.source.topics;
            if !topics.contains(topic) {
                let near = nearest(topic, topics.iter().map(String::as_str));
                let hint = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
                self.wrong(&section, format!("is none of the source's topics{hint}"));
            }
            // What is wrong with it has been said; the others are looked at all the same.
            if let Some(other) = self.apart(name, &section, of, &key, known) {
                format = format.but(topic.as_str(), other);
            }
        }
        Some(Reading { schema, format, key, adopts })
    }

    /// How the records of a topic are written that has a section of its own.
    fn apart(
        &mut self,
        name: &str,
        section: &[&str],
        of: &Apart,
        key: &KeyRule,
        schema: Option<&Arc<Schema>>,
    ) -> Option<Format> {
        if !self.is_right(&[section, &["format"]].concat()) {
            return None;
        }
        let registered = self.is_registered(section, of)?;
        let said = Said { section, of, registered };
        self.idle(said);
        let format = self.format(said, schema, key)?;
        self.fit(name, said, &format, key, schema)?;
        Some(format)
    }

    /// The dataset's schema; a stand-in where the registry will give it.
    fn own_schema(&mut self, name: &str, dataset: &DatasetModel, said: Said<'_>) -> Option<Arc<Schema>> {
        let schema_at = ["datasets", name, "schema"];
        let what = match (said.of.format.as_str(), &dataset.own.schema) {
            ("raw", None) => return Some(Arc::new(Schema::raw())),
            ("raw", Some(_)) => "is not for raw values, which are kept as they come: remove it".to_owned(),
            (_, Some(file)) => return self.schema(&schema_at, file, Schema::dataset),
            ("avro", None) if said.registered && said.of.envelope == "upsert" => {
                return Some(Arc::new(Schema::raw()));
            }
            ("avro", None) if said.registered => {
                "is missing: the registry has the schema of changes, and the dataset's is that of rows"
                    .to_owned()
            }
            (format, None) => format!(
                "is missing: {format} values need the dataset's Avro schema, as in schema = \"FILE.avsc\""
            ),
        };
        self.wrong(&schema_at, what);
        None
    }

    /// How records are written. `schema` is the dataset's, where it is known.
    fn format(&mut self, said: Said<'_>, schema: Option<&Arc<Schema>>, key: &KeyRule) -> Option<Format> {
        let Said { of, registered, .. } = said;
        let format = match of.format.as_str() {
            "raw" => Format::raw(),
            "avro" if registered => Format::registered(Kind::Avro),
            "avro" => Format::avro(match (&of.schema, schema) {
                (Some(file), _) => self.schema(&said.at("schema"), file, Schema::parse)?,
                (None, Some(schema)) => Arc::clone(schema),
                (None, None) => {
                    let what = "is missing: the schema of these values, since the dataset's is not known before it runs";
                    self.wrong(&said.at("schema"), what);
                    return None;
                }
            }),
            "protobuf" if registered => Format::registered(Kind::Protobuf),
            "protobuf" => Format::protobuf(self.message(said, "message", of.message.as_deref())?),
            _ => {
                let reject = of.extra_fields == "reject";
                let format = Format::json(if reject { ExtraFields::Reject } else { ExtraFields::Ignore });
                if registered { format.checked() } else { format }
            }
        };
        let keys = match of.key_format.as_str() {
            "string" => KeyFormat::Text,
            "json" => KeyFormat::Json,
            "avro" => match &of.key_schema {
                None => KeyFormat::Registered(Kind::Avro),
                Some(file) => KeyFormat::Avro(self.schema(&said.at("key_schema"), file, Schema::parse)?),
            },
            "protobuf" => match of.key_message.as_deref() {
                None => KeyFormat::Registered(Kind::Protobuf),
                message => KeyFormat::Protobuf(self.message(said, "key_message", message)?),
            },
            _ => KeyFormat::Raw,
        };
        let envelope = if of.envelope == "debezium" { Envelope::Debezium } else { Envelope::Upsert };
        let format = format.with_keys(keys).within(envelope);
        if envelope == Envelope::Debezium
            && matches!((key, &format.keys), (KeyRule::Fields(_), KeyFormat::Raw))
        {
            let what = "the Kafka nulls that Debezium writes behind deletes delete the key that is the Kafka key, byte for byte: \
                        say how keys are written, as in key_format = \"json\"";
            self.warn(&said.at("key_format"), what);
        }
        Some(format)
    }

    /// Whether they fit the dataset's schema, where that is known, and the key rule.
    fn fit(
        &mut self,
        name: &str,
        said: Said<'_>,
        format: &Format,
        key: &KeyRule,
        schema: Option<&Arc<Schema>>,
    ) -> Option<()> {
        let Some(schema) = schema else { return Some(()) };
        match Codec::new(format.clone(), key.clone(), Arc::clone(schema)) {
            Ok(_) => return Some(()),
            Err(Error::KeyType(reason)) => {
                let is_message = matches!(format.keys, KeyFormat::Protobuf(_));
                self.wrong(&said.at(if is_message { "key_message" } else { "key_schema" }), reason);
            }
            Err(Error::Key { field, reason }) => {
                // Each by itself; what is wrong only with them together is that one.
                let alone = |field: &String| {
                    let rule = KeyRule::Fields(vec![field.clone()]);
                    match Codec::new(format.clone(), rule, Arc::clone(schema)) {
                        Err(Error::Key { field, reason }) => Some((field, reason)),
                        _ => None,
                    }
                };
                let mut wrong: Vec<_> = match key {
                    KeyRule::Fields(fields) => fields.iter().filter_map(alone).collect(),
                    KeyRule::Kafka => Vec::new(),
                };
                if wrong.is_empty() {
                    wrong.push((field, reason));
                }
                let names = field_names(schema);
                for (field, reason) in wrong {
                    let near =
                        nearest(&field, names.iter().map(String::as_str)).filter(|near| *near != field);
                    let hint = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
                    // Of several it must be known which.
                    let is_named = field.is_empty() || reason.contains(&format!("`{field}`"));
                    let which = if is_named { String::new() } else { format!("`{field}`: ") };
                    self.wrong(&["datasets", name, "key"], format!("{which}{reason}{hint}"));
                }
            }
            Err(error) => {
                let of_all = said.section.last() == Some(&"source");
                let at = match (&said.of.schema, said.of.format.as_str()) {
                    (Some(_), _) => said.at("schema"),
                    (_, "protobuf") => said.at("message"),
                    _ if of_all => vec!["datasets", name, "schema"],
                    _ => said.at("format"),
                };
                self.wrong(&at, error.to_string());
            }
        }
        None
    }

    /// Whether values name their schemas by a registry's ids; `None`: what says so contradicts.
    fn is_registered(&mut self, section: &[&str], of: &Apart) -> Option<bool> {
        let format = of.format.as_str();
        let there = self.model.schema_registry.url.is_some();
        let needs = "needs a registry: name one with url in [schema_registry]";
        let registered = match format {
            "avro" => of.registry.unwrap_or(there && of.schema.is_none()),
            "protobuf" => of.registry.unwrap_or(there && of.message.is_none()),
            "json" => of.registry.unwrap_or(false),
            _ => false,
        };
        let keys = match of.key_format.as_str() {
            "avro" => of.key_schema.is_none(),
            "protobuf" => of.key_message.is_none(),
            _ => false,
        };
        let wrong = if of.registry == Some(true) && format == "raw" {
            Some(("registry", "is for avro, json and protobuf, not for raw"))
        } else if registered && !there {
            Some(("registry", needs))
        } else if registered && of.schema.is_some() {
            Some((
                "schema",
                "is not for values whose schemas the registry has: remove it, or say registry = false",
            ))
        } else if registered && of.message.is_some() {
            Some((
                "message",
                "is not for values whose schemas the registry has: remove it, or say registry = false",
            ))
        } else if format == "protobuf" && !registered && of.message.is_none() {
            let what = "is missing: protobuf values need their type, by its name in descriptor_set, or a registry that has it";
            Some(("message", what))
        } else if keys && !there {
            let what = match of.key_format.as_str() {
                "avro" => {
                    "needs the schema of keys, as in key_schema = \"FILE.avsc\", or a registry that has it: name one with url in \
                     [schema_registry]"
                }
                _ => {
                    "needs the type of keys, by its name in descriptor_set with key_message, or a registry that has it"
                }
            };
            Some(("key_format", what))
        } else if of.envelope == "debezium" && !matches!(format, "avro" | "json") {
            Some(("envelope", "\"debezium\" is for avro and json: changes in other formats are not read"))
        } else {
            None
        };
        match wrong {
            Some((key, what)) => {
                self.wrong(&[section, &[key]].concat(), what);
                None
            }
            None => Some(registered),
        }
    }

    /// What is given, and nothing asks for.
    fn idle(&mut self, said: Said<'_>) {
        let Apart { format, key_format, .. } = said.of;
        let bare = format == "protobuf" && !said.registered;
        for (key, what) in [
            (
                "schema",
                (format != "avro" && said.of.schema.is_some())
                    .then(|| format!("is for avro; {format} values have no schema of their own")),
            ),
            (
                "extra_fields",
                (format != "json" && said.of.extra_fields != "ignore")
                    .then(|| format!("is for json, not for {format}")),
            ),
            (
                "message",
                (format != "protobuf" && said.of.message.is_some())
                    .then(|| format!("is for protobuf, not for {format}")),
            ),
            (
                "key_schema",
                (key_format != "avro" && said.of.key_schema.is_some())
                    .then(|| "is for keys with key_format = \"avro\"".to_owned()),
            ),
            (
                "key_message",
                (key_format != "protobuf" && said.of.key_message.is_some())
                    .then(|| "is for keys with key_format = \"protobuf\"".to_owned()),
            ),
            (
                "descriptor_set",
                (said.of.descriptor_set.is_some() && !bare && said.of.key_message.is_none()).then(|| {
                    "does nothing without message or key_message, which name a type in it".to_owned()
                }),
            ),
        ] {
            if let Some(what) = what {
                self.wrong(&said.at(key), what);
            }
        }
    }

    /// The type of this name in the descriptor set.
    fn message(&mut self, said: Said<'_>, key: &'static str, message: Option<&str>) -> Option<Arc<Message>> {
        let message = message?;
        let Some(file) = &said.of.descriptor_set else {
            self.wrong(&said.at(key), "needs descriptor_set, the file that has the type");
            return None;
        };
        let set = self.bytes(&said.at("descriptor_set"), file)?;
        match Message::find(&set, message) {
            Ok(message) => Some(Arc::new(message)),
            Err(what) => {
                let at = if what.starts_with("has no message") { key } else { "descriptor_set" };
                self.wrong(&said.at(at), format!("{} {what}", file.display()));
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
