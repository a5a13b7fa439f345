//! Bare Avro datums, written with a schema that is known: the dataset's own, or one that resolves to it.

use std::sync::Arc;

use super::room::anew;
use super::{Bound, Error, Misfit, Stage};
use crate::schema::{LARGE, Malformed, Resolver, Schema};

/// Reads datums of one writer's schema as datums of the dataset's.
#[derive(Debug)]
pub(super) struct Avro {
    writer: Arc<Schema>,
    /// `None`: the two encode alike, and a datum is passed through.
    resolver: Option<Resolver>,
    out: Vec<u8>,
}

impl Avro {
    pub fn new(writer: Arc<Schema>, schema: &Arc<Schema>) -> Result<Avro, Error> {
        // Compared in any case: decimals of another scale are encoded alike, and are other numbers.
        let resolver = Resolver::new(&writer, schema)?;
        let resolver = (!writer.encodes_like(schema)).then_some(resolver);
        Ok(Avro { writer, resolver, out: Vec::new() })
    }

    /// The datum in the dataset's schema.
    #[inline]
    pub fn decode<'a>(&'a mut self, value: &'a [u8], bound: Bound) -> Result<&'a [u8], Misfit> {
        let result = match &self.resolver {
            None => self.writer.validate(value).and_then(|length| match length == value.len() {
                true => Ok(()),
                false => Err(Malformed { at: length, what: "something behind the datum" }),
            }),
            Some(resolver) => {
                anew(&mut self.out, value.len());
                resolver.resolve_within(value, &mut self.out, bound.most())
            }
        };
        match result {
            Ok(()) if self.resolver.is_none() => Ok(value),
            Ok(()) => Ok(&self.out),
            Err(malformed) if malformed.what == LARGE => Err(bound.swollen()),
            Err(malformed) => Err(self.misfit(value, malformed)),
        }
    }

    #[cold]
    fn misfit(&self, value: &[u8], malformed: Malformed) -> Misfit {
        if value.is_empty() {
            let message = "the value is empty; a delete is a Kafka null".into();
            return Misfit { stage: Stage::Decode, class: "stillwell.codec.EmptyValue", message };
        }
        let name = self.writer.nodes.title(self.writer.nodes.root);
        let mut message = format!("the value is not an Avro datum of {name}: {malformed}");
        // Serializers that speak to a registry put a zero and the schema's id before the datum.
        if let Some((0, framed)) = value.split_first()
            && let Some(datum) = framed.get(4..)
            && self.writer.validate(datum) == Ok(datum.len())
        {
            message.push_str(
                "; without its first 5 bytes it is one: a schema registry's header, which this format lacks",
            );
        }
        Misfit { stage: Stage::Decode, class: "stillwell.codec.MalformedAvro", message }
    }
}
