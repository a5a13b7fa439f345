//! What it takes for a dataset's schema to change: the configured one is held against the announced one.
//!
//! ```text
//!  the same text?   yes: nothing else is looked at                      no: values are read in it from the next version on
//!  resolves?        no: refused, with each field and the rule
//!  in force before? yes: an instance of yesterday. Its datums are encoded alike: it writes under the announced text.
//!                        Else refused, unless `schema_replaces` asks for it
//!  the log's records, all still in Kafka?  no: refused, since datums of the schema before are of no use
//!  each record?     only where single ones may not be readable: a pass over all of them
//! ```
//!
//! Owns: whether it may change. Does not own: how older values are read (`view::line`), what the log is worth
//! (`format::origin`).

use std::sync::Arc;

use super::{Error, Recovery};
use crate::format::announcement::{Announcement, SourcePosition, read_positions};
use crate::format::origin::Origin;
use crate::producer::Options;
use crate::schema::{self, Resolver, Schema};
use crate::version::Version;
use crate::view::{self, View};

/// The announced schema: the configured one where that is the same, else parsed, if the configured one may follow it.
pub(super) fn announced(last: &Announcement, options: &Options) -> Result<Arc<Schema>, Error> {
    if last.schema == options.schema.json() {
        return Ok(options.schema.clone());
    }
    if options.schema_adopted {
        return Err(Error::Schema(format!(
            "the schema of {} has changed with version {} or before: this instance took it over when it started, and is \
             not told by its configuration to change it. Nothing is written. Restart it, and it takes over the one \
             that is announced",
            options.dataset, last.version
        )));
    }
    let announced = Schema::parse(&last.schema).map_err(|error| {
        Error::Mismatch(format!("the schema of version {} of {}: {error}", last.version, options.dataset))
    })?;
    let announced = Arc::new(announced);
    match Resolver::new(&announced, &options.schema) {
        Ok(_) => Ok(announced),
        Err(error) => Err(Error::Schema(refusal(&options.dataset, (last.version, &announced), &error))),
    }
}

impl Recovery {
    /// The view of the last version as the next one begins with it, of the schema that this life writes: the same where that
    /// is its own.
    pub(super) async fn turned(&self, view: View, last: &Announcement) -> Result<View, Error> {
        let (options, version) = (&self.options, last.version);
        let dataset = &options.dataset;
        if view.schema().is_same_as(&options.schema) {
            return Ok(view);
        }
        if view.former().contains(&options.schema.text_hash())
            && options.schema_replaces != Some(last.schema_fingerprint)
        {
            if view.schema().encodes_like(&options.schema) {
                tracing::warn!(
                    dataset, %version,
                    "the schema that is configured here is an older text of the dataset's (documentation, defaults, aliases); \
                     the dataset keeps the newer one"
                );
                return Ok(view);
            }
            return Err(Error::Schema(format!(
                "the schema of {dataset} was in force before that of version {version} (fingerprint {:016x}): this instance \
                 has an older configuration. Nothing is written. Give it the schema that the others have, and restart it; to \
                 go back to this one set `datasets.{dataset}.schema_replaces = \"{:016x}\"`",
                last.schema_fingerprint, last.schema_fingerprint
            )));
        }
        let failed = |source| Error::View { dataset: dataset.clone(), version, source };
        let turned = view.turned_to(&options.schema).map_err(failed)?;
        let resolver = Resolver::new(view.schema(), &options.schema)
            .map_err(|error| Error::Schema(refusal(dataset, (version, view.schema()), &error)))?;
        if !resolver.is_total() {
            let all = turned.clone();
            let unreadable = tokio::task::spawn_blocking(move || all.unreadable()).await;
            let unreadable =
                unreadable.map_err(|_| failed(view::Error::Internal("reading all records panicked")))?;
            if let Some((count, key)) = unreadable.map_err(failed)? {
                return Err(Error::Schema(format!(
                    "{count} of {} records of {dataset} cannot be read in the configured schema, the first of them key {}: \
                     they hold a union's branch or an enum's symbol that it does not have, or bytes that are no text. \
                     Nothing is written, version {version} stays. Have the schema keep those, give the enum a default, or \
                     change the records first",
                    turned.records(),
                    String::from_utf8_lossy(&key)
                )));
            }
        }
        tracing::warn!(
            dataset, %version, from = format!("{:016x}", last.schema_fingerprint),
            to = format!("{:016x}", options.schema.fingerprint()),
            "the dataset's schema changes with the next version"
        );
        Ok(turned)
    }

    /// Nothing in the log is lost with it: what it holds beyond the announced positions is in Kafka, too. Looked at before a
    /// log whose datums are of another schema is discarded.
    pub(super) async fn can_be_read_again(&self, origin: &Origin, last: &Announcement) -> Result<(), Error> {
        let noted = self.log.written_for().await;
        if !noted.is_some_and(|noted| noted.is_of_other_schema(origin)) || self.log.is_empty().await {
            return Ok(());
        }
        for position in read_positions(&last.positions).map(SourcePosition::position) {
            let source = &position.source;
            if !self.options.topics.iter().any(|topic| **topic == *source.topic) {
                continue;
            }
            let (low, _) = self.ends(&source.topic, source.partition).await?;
            if low > position.offset {
                return Err(Error::Schema(format!(
                    "the log may hold records of {} that Kafka does not have any more ({position} is announced, the \
                     partition begins at {low}): they are datums of the schema before, and would be lost. Nothing is \
                     written. Run it with that schema until they are announced, then change it",
                    self.options.dataset
                )));
            }
        }
        Ok(())
    }
}

fn refusal(dataset: &str, (version, announced): (Version, &Schema), error: &schema::Error) -> String {
    let why = match error {
        schema::Error::Incompatible(mismatches) => schema::Mismatch::list(mismatches),
        other => other.to_string(),
    };
    format!(
        "the schema of {dataset} cannot follow that of version {version} (fingerprint {:016x}), whose values cannot be read in \
         it: {why}. Nothing is written. Correct it (`stillwell schema check OLD NEW`), or begin a new dataset",
        announced.fingerprint()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_each_field_and_its_rule() {
        let parse = |fields: &str| {
            let json = format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#);
            Arc::new(Schema::parse(&json).unwrap())
        };
        let was = parse(r#"{"name":"a","type":"long"}"#);
        let is = parse(r#"{"name":"a","type":"int"},{"name":"b","type":"string"}"#);
        let Err(error) = Resolver::new(&was, &is) else { panic!("it resolves") };
        let text = refusal("products", (Version(3), &was), &error);
        assert!(
            text.contains("a: long is no int; b: the writer's record lacks it, and it has no default."),
            "{text}"
        );
    }
}
