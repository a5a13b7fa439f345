//! From a value as its writer has it to one as the source topic has it, and the check that the dataset will take it.
//!
//! ```text
//!  JSON  --json topic-->  as it is                    \
//!        --avro topic-->  datum of the topic's schema  > decoded as the source will decode it -> key, or the misfit
//!  datum --json topic-->  resolved, as JSON text       |
//!        --avro topic-->  resolved                    /
//! ```
//!
//! Owns: the way into a topic's format. Does not own: what fits (`codec`).

use std::sync::Arc;

use bytes::Bytes;

use super::record::{Payload, Ready, Write};
use crate::codec::{
    self, Bound, Codec, Encoded, ExtraFields, Format, KeyRule, Misfit, Stage, Unread, Values, text,
};
use crate::schema::wire::take_bytes;
use crate::schema::{Resolver, Schema};

/// Why a record was not sent.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It would become a dead letter.
    #[error("it does not fit")]
    Misfit(#[source] Misfit),
    /// The topic would not take it.
    #[error(
        "it has {bytes} bytes, and topic {topic} takes records of {limit} (max.message.bytes), the frame included"
    )]
    TooLarge {
        /// Key, value and headers.
        bytes: usize,
        /// The topic.
        topic: String,
        /// Its limit.
        limit: usize,
    },
    /// What is in the source is written in a way that is only read here, and why.
    #[error("{0}")]
    ReadOnly(&'static str),
    /// It does not say, or says wrongly, where it should go.
    #[error("{0}")]
    Topic(String),
}

/// Encodes records for one dataset's source topics. Keeps its buffers; for one thread at a time.
pub(super) struct Encoder {
    target: Target,
    /// Of the topics whose records are written otherwise.
    others: Vec<(Arc<str>, Target)>,
    /// What the source's validation will do.
    check: Codec,
    bound: Bound,
    /// Keys made of fields that the dataset does not know of: who gives the records says so.
    keys: Option<Codec>,
    schema: Arc<Schema>,
    fields: Option<Vec<String>>,
}

enum Target {
    Json {
        schema: Arc<Schema>,
        /// Fields that the dataset lacks are a misfit: a datum's are told it by their names, and not left out by resolution.
        strict: bool,
        /// How datums of the schema that came last become JSON; `None`: by their names.
        told: Option<(Arc<Schema>, Option<Resolver>)>,
    },
    Avro {
        writer: Arc<Schema>,
        json: Codec,
        /// From the schema of the datums that came last.
        resolver: Option<(Arc<Schema>, Resolver)>,
    },
    Raw {
        json: Codec,
    },
    /// Nothing is written there, and why.
    ReadOnly(&'static str),
}

impl Target {
    fn new(format: &Format, schema: &Arc<Schema>) -> Result<Target, codec::Error> {
        let json = |schema: &Arc<Schema>| {
            let format = Format::json(ExtraFields::Ignore);
            Codec::new(format, KeyRule::Kafka, Arc::clone(schema))
        };
        Ok(match (format.read_only(), &format.values) {
            (Some(why), _) => Target::ReadOnly(why),
            (None, Values::Json { extra_fields, .. }) => Target::Json {
                schema: Arc::clone(schema),
                strict: *extra_fields == ExtraFields::Reject,
                told: None,
            },
            (None, Values::Avro { writer }) => {
                Target::Avro { writer: Arc::clone(writer), json: json(writer)?, resolver: None }
            }
            (None, Values::Raw) => Target::Raw { json: json(schema)? },
            (None, Values::Protobuf { .. } | Values::Registered(_)) => unreachable!("they are only read"),
        })
    }
}

impl Encoder {
    pub fn new(format: &Format, key: &KeyRule, schema: &Arc<Schema>) -> Result<Encoder, codec::Error> {
        let others = format.others().map(|(topic, other)| Ok((topic.into(), Target::new(other, schema)?)));
        Ok(Encoder {
            target: Target::new(format, schema)?,
            others: others.collect::<Result<_, codec::Error>>()?,
            check: Codec::new(format.clone(), key.clone(), Arc::clone(schema))?,
            bound: Bound::ANY,
            keys: None,
            schema: Arc::clone(schema),
            fields: match key {
                KeyRule::Kafka => None,
                KeyRule::Fields(fields) => Some(fields.clone()),
            },
        })
    }

    /// The same for records of at most this size.
    #[must_use]
    pub fn bounded(mut self, bound: Bound) -> Encoder {
        self.bound = bound;
        self.check.set_bound(bound);
        let others = self.others.iter_mut().map(|(_, target)| target);
        for target in others.chain([&mut self.target]) {
            if let Target::Avro { json, .. } | Target::Raw { json } = target {
                json.set_bound(bound);
            }
        }
        self
    }

    /// Whether keys are made of the value's fields.
    pub fn makes_keys(&self) -> bool {
        self.fields.is_some() || self.keys.is_some()
    }

    /// Makes the key of records that come without one of these fields.
    pub fn key_by(&mut self, fields: &[String]) -> Result<(), codec::Error> {
        match &self.fields {
            Some(own) if own == fields => Ok(()),
            Some(own) => Err(codec::Error::Key {
                field: fields.join(", "),
                reason: format!("the dataset's key is made of {}", own.join(", ")),
            }),
            None => {
                // The datum is decoded once more, with the schema in which it then is.
                let format = Format::avro(Arc::clone(&self.schema));
                self.keys =
                    Some(Codec::new(format, KeyRule::Fields(fields.to_vec()), Arc::clone(&self.schema))?);
                Ok(())
            }
        }
    }

    /// The record as it goes to Kafka.
    pub fn prepare(&mut self, record: Write, topics: &[Arc<str>]) -> Result<Ready, Refused> {
        let Write { topic, key: given, value, headers, timestamp } = record;
        let topic = place(topic.as_deref(), topics)?;
        let name = topics.get(topic).map(|name| &**name);
        let other = self.others.iter_mut().find(|(named, _)| Some(&**named) == name);
        let target = other.map_or(&mut self.target, |(_, target)| target);
        if let Target::ReadOnly(why) = target {
            return Err(Refused::ReadOnly(why));
        }
        let value = match value {
            Some(payload) => Some(target.encode(payload).map_err(Refused::Misfit)?),
            None => None,
        };
        // A dataset that takes the Kafka key is shown one, so that what else is wrong is found too.
        let made_here = self.keys.is_some() && given.is_none() && value.is_some();
        let shown = given.as_deref().or(made_here.then_some(&b""[..]));
        let record = Encoded { key: shown, value: value.as_deref(), topic: name, ..Encoded::default() };
        let read = self.check.read(record).map_err(Unread::misfit);
        let decoded = read.map_err(Refused::Misfit)?;
        let own = match (&mut self.keys, decoded.value) {
            (Some(keys), Some(datum)) if made_here => {
                let keyed = keys.decode(None, Some(datum)).map_err(Refused::Misfit)?;
                Some(Bytes::copy_from_slice(keyed.key))
            }
            _ if given.as_deref() == Some(decoded.key) => None,
            _ => Some(Bytes::copy_from_slice(decoded.key)),
        };
        let key = match (given, own) {
            (Some(given), None) => given,
            (Some(_), Some(_)) => return Err(Refused::Misfit(other_key())),
            (None, own) => own.unwrap_or_default(),
        };
        let encoded = Encoded { key: Some(&key), value: value.as_deref(), ..Encoded::default() };
        self.bound.check(encoded).map_err(Refused::Misfit)?;
        Ok(Ready { topic, key, value, headers, timestamp })
    }
}

impl Target {
    /// A value as it is written there.
    fn encode(&mut self, payload: Payload) -> Result<Bytes, Misfit> {
        match (self, payload) {
            // Refused before it comes here.
            (Target::ReadOnly(why), _) => Err(Misfit {
                stage: Stage::Validate,
                class: "stillwell.write.ReadOnly",
                message: (*why).to_owned(),
            }),
            (_, Payload::Encoded(bytes))
            | (Target::Json { .. }, Payload::Json(bytes) | Payload::Plain(bytes))
            | (Target::Raw { .. }, Payload::Plain(bytes)) => Ok(bytes),
            (Target::Avro { json, .. }, Payload::Json(text) | Payload::Plain(text)) => {
                let decoded = json.decode(Some(b""), Some(&text))?;
                Ok(Bytes::copy_from_slice(decoded.value.unwrap_or_default()))
            }
            (Target::Raw { json }, Payload::Json(text)) => {
                let decoded = json.decode(Some(b""), Some(&text))?;
                Ok(content(decoded.value.unwrap_or_default()))
            }
            (Target::Json { schema: own, strict, told }, Payload::Datum { schema, bytes }) => {
                // By its names alone a field that was renamed since would take its default, unseen.
                let known = told.take().filter(|(known, _)| Arc::ptr_eq(known, &schema));
                let (schema, made) = known.unwrap_or_else(|| {
                    let resolves = !*strict && !schema.encodes_like(own);
                    let made = resolves.then(|| Resolver::new(&schema, own).ok()).flatten();
                    (schema, made)
                });
                let (mut json, mut resolved) = (String::new(), Vec::new());
                let written = match &made {
                    Some(made) => made
                        .resolve(&bytes, &mut resolved)
                        .and_then(|()| text::to_json(own, &resolved, &mut json)),
                    None => text::to_json(&schema, &bytes, &mut json),
                };
                *told = Some((schema, made));
                written.map_err(|malformed| unreadable(&malformed))?;
                Ok(json.into())
            }
            (Target::Raw { .. }, Payload::Datum { schema, bytes }) if schema.is_raw() => Ok(content(&bytes)),
            (Target::Raw { .. }, Payload::Datum { .. }) => Err(Misfit {
                stage: Stage::Validate,
                class: "stillwell.write.NotBytes",
                message: "the dataset is raw, and takes datums of bytes only".into(),
            }),
            (Target::Avro { writer, .. }, Payload::Datum { schema, bytes })
                if schema.encodes_like(writer) =>
            {
                Ok(bytes)
            }
            (Target::Avro { writer, resolver, .. }, Payload::Datum { schema, bytes }) => {
                let known = resolver.take().filter(|(known, _)| Arc::ptr_eq(known, &schema));
                let (schema, made) = match known {
                    Some(known) => known,
                    None => {
                        let made = Resolver::new(&schema, writer).map_err(|error| Misfit {
                            stage: Stage::Validate,
                            class: "stillwell.write.Unresolvable",
                            message: error.to_string(),
                        })?;
                        (schema, made)
                    }
                };
                let mut out = Vec::new();
                let resolved = made.resolve(&bytes, &mut out);
                *resolver = Some((schema, made));
                resolved.map_err(|malformed| unreadable(&malformed))?;
                Ok(out.into())
            }
        }
    }
}

/// The place of the topic that is named, or of the only one.
fn place(named: Option<&str>, topics: &[Arc<str>]) -> Result<usize, Refused> {
    let names = || topics.iter().map(|topic| &**topic).collect::<Vec<_>>().join(", ");
    match (named, topics) {
        (None, [_]) => Ok(0),
        (None, _) => {
            Err(Refused::Topic(format!("the dataset has several source topics; name one of {}", names())))
        }
        (Some(named), _) => topics.iter().position(|topic| **topic == *named).ok_or_else(|| {
            Refused::Topic(format!("{named} is not a source topic of the dataset; it has {}", names()))
        }),
    }
}

/// The bytes in a datum of bytes.
fn content(datum: &[u8]) -> Bytes {
    Bytes::copy_from_slice(take_bytes(&mut { datum }).unwrap_or_default())
}

#[cold]
fn other_key() -> Misfit {
    Misfit {
        stage: Stage::Key,
        class: "stillwell.write.OtherKey",
        message: "the key is not the one that the value's fields make; leave it out, or correct it".into(),
    }
}

#[cold]
fn unreadable(malformed: &crate::schema::Malformed) -> Misfit {
    Misfit {
        stage: Stage::Decode,
        class: "stillwell.codec.MalformedAvro",
        message: format!("the value is not a datum of its schema: {malformed}"),
    }
}
