//! How the records of a source topic are written, as it is configured: values, what is around them, keys.

use std::sync::Arc;

use super::proto::Message;
use crate::schema::Schema;

/// What a JSON value's fields that the schema does not know cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExtraFields {
    /// Nothing: they are dropped.
    #[default]
    Ignore,
    /// A misfit.
    Reject,
}

/// How a source's records are written.
#[derive(Clone, Debug)]
pub struct Format {
    /// How values are encoded.
    pub values: Values,
    /// What a value says: the record, or a change of it.
    pub envelope: Envelope,
    /// How Kafka keys are encoded.
    pub keys: KeyFormat,
    /// The topics whose records are written otherwise than those of the source's other topics, and how.
    topics: Vec<(Arc<str>, Format)>,
}

/// How values are encoded.
#[derive(Clone, Debug)]
pub enum Values {
    /// JSON text.
    Json {
        /// What fields unknown to the schema cause.
        extra_fields: ExtraFields,
        /// A registry's id before it, or in a header, has to be there and known as one of a JSON schema. False: one before
        /// it is skipped (no JSON begins as one).
        checked: bool,
    },
    /// Avro datums, bare: no container, no registry header.
    Avro {
        /// The schema they were written with.
        writer: Arc<Schema>,
    },
    /// Protobuf messages, bare.
    Protobuf {
        /// Their type.
        message: Arc<Message>,
    },
    /// Each with the id by which a schema registry knows the schema that it was written with.
    Registered(Kind),
    /// Bytes, taken as they come.
    Raw,
}

/// A kind of schema that a registry has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Avro.
    Avro,
    /// Protobuf.
    Protobuf,
}

impl Kind {
    /// As registries spell it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Avro => "AVRO",
            Kind::Protobuf => "PROTOBUF",
        }
    }
}

/// What a value says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Envelope {
    /// The record as it is from now on; a Kafka null deletes it. What Materialize, RisingWave and Flink call upsert.
    #[default]
    Upsert,
    /// A change as Debezium writes it: `op`, the row `before` and `after`.
    Debezium,
}

/// How Kafka keys are encoded.
#[derive(Clone, Debug, Default)]
pub enum KeyFormat {
    /// Bytes, taken as they come.
    #[default]
    Raw,
    /// Text: bytes that have to be UTF-8.
    Text,
    /// JSON.
    Json,
    /// Avro datums of this schema, bare.
    Avro(Arc<Schema>),
    /// Protobuf messages, bare.
    Protobuf(Arc<Message>),
    /// With a registry's ids.
    Registered(Kind),
}

impl Format {
    fn of(values: Values) -> Format {
        Format { values, envelope: Envelope::Upsert, keys: KeyFormat::Raw, topics: Vec::new() }
    }

    /// JSON.
    pub fn json(extra_fields: ExtraFields) -> Format {
        Format::of(Values::Json { extra_fields, checked: false })
    }

    /// Bare Avro datums of this schema.
    pub fn avro(writer: Arc<Schema>) -> Format {
        Format::of(Values::Avro { writer })
    }

    /// Bare Protobuf messages of this type.
    pub fn protobuf(message: Arc<Message>) -> Format {
        Format::of(Values::Protobuf { message })
    }

    /// With ids of a schema registry.
    pub fn registered(kind: Kind) -> Format {
        Format::of(Values::Registered(kind))
    }

    /// Bytes.
    pub fn raw() -> Format {
        Format::of(Values::Raw)
    }

    /// The same, with keys of that format.
    #[must_use]
    pub fn with_keys(self, keys: KeyFormat) -> Format {
        Format { keys, ..self }
    }

    /// JSON whose ids of a registry have to be there and known.
    #[must_use]
    pub fn checked(self) -> Format {
        let values = match self.values {
            Values::Json { extra_fields, .. } => Values::Json { extra_fields, checked: true },
            values => values,
        };
        Format { values, ..self }
    }

    /// The same in an envelope.
    #[must_use]
    pub fn within(self, envelope: Envelope) -> Format {
        Format { envelope, ..self }
    }

    /// The same, but for the records of this topic, which are written as `other` says.
    #[must_use]
    pub fn but(mut self, topic: impl Into<Arc<str>>, other: Format) -> Format {
        let topic = topic.into();
        self.topics.retain(|(named, _)| *named != topic);
        // What `other` says of topics is said of its own source's.
        self.topics.push((topic, Format { topics: Vec::new(), ..other }));
        // In one order, whoever says it: what is made of a format must not depend on that.
        self.topics.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        self
    }

    /// How this topic's records are written.
    pub fn of_topic(&self, topic: &str) -> &Format {
        self.topics.iter().find(|(named, _)| **named == *topic).map_or(self, |(_, other)| other)
    }

    /// The topics that are written otherwise, by name, and how.
    pub fn others(&self) -> impl Iterator<Item = (&str, &Format)> {
        self.topics.iter().map(|(topic, other)| (&**topic, other))
    }

    /// Apart: how most topics are written, and those that are written otherwise.
    pub(super) fn apart(mut self) -> (Format, Vec<(Arc<str>, Format)>) {
        let topics = std::mem::take(&mut self.topics);
        (self, topics)
    }

    /// Whether every topic's keys are taken as they come.
    pub fn keys_as_they_come(&self) -> bool {
        let raw = |format: &Format| matches!(format.keys, KeyFormat::Raw);
        raw(self) && self.others().all(|(_, other)| raw(other))
    }

    /// Whether schemas have to be asked of a registry, for any topic.
    pub fn asks_registry(&self) -> bool {
        self.names_schemas() || self.others().any(|(_, other)| other.names_schemas())
    }

    /// Whether its records name their schemas by ids of a registry.
    fn names_schemas(&self) -> bool {
        let of_values = matches!(self.values, Values::Registered(_) | Values::Json { checked: true, .. });
        of_values || matches!(self.keys, KeyFormat::Registered(_))
    }

    /// Why no record can be written as they are there, only read; `None`: it can. Of topics that are written otherwise it says
    /// nothing: ask [`Format::of_topic`].
    pub fn read_only(&self) -> Option<&'static str> {
        match (self, &self.values, &self.keys) {
            (format, ..) if format.names_schemas() => Some(
                "the records of the source name their schemas by ids of a schema registry: write them to the topic with \
                 a serializer that registers schemas",
            ),
            (Format { envelope: Envelope::Debezium, .. }, ..) => Some(
                "the values of the source are changes of a database, which Debezium writes: change the database",
            ),
            (_, Values::Protobuf { .. }, _) => Some(
                "the values of the source are Protobuf messages, which are only read here: write them to the topic",
            ),
            (_, _, KeyFormat::Json | KeyFormat::Avro(_) | KeyFormat::Protobuf(_)) => Some(
                "the keys of the source are written in a format that is only read here: write the records to the topic",
            ),
            _ => None,
        }
    }
}

/// A schema as a registry has it, to be learnt by a codec.
#[derive(Clone, Debug)]
pub enum Written {
    /// Avro, all that it refers to inlined.
    Avro(Arc<Schema>),
    /// Protobuf: a file of messages.
    Protobuf(Arc<super::proto::File>),
    /// JSON Schema. What it says is not looked at.
    Json,
}

impl Written {
    /// What it is, as registries spell it.
    pub fn kind(&self) -> &'static str {
        match self {
            Written::Avro(_) => Kind::Avro.name(),
            Written::Protobuf(_) => Kind::Protobuf.name(),
            Written::Json => "JSON",
        }
    }
}

impl From<Arc<Schema>> for Written {
    fn from(schema: Arc<Schema>) -> Written {
        Written::Avro(schema)
    }
}

#[cfg(test)]
mod tests;
