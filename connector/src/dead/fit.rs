//! Whether a record fits the dataset as it is: what does not, and is replayed, fails once more.
//!
//! Owns: the question, and asking the registry for schemas that records name. Does not own: what follows (`replay`).

use std::collections::HashSet;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::Error;
use crate::codec::{self, Bound, Codec, Encoded, Format, KeyRule, SchemaId, Written};
use crate::registry::{self, Registry};
use crate::schema::Schema;

/// The registry's schemas, each asked for once, where records name them.
#[derive(Clone)]
pub struct Schemas {
    registry: Option<Registry>,
    /// Those that it does not know.
    strangers: HashSet<SchemaId>,
}

impl Schemas {
    /// Of this registry, if there is one.
    pub fn new(registry: Option<Registry>) -> Schemas {
        Schemas { registry, strangers: HashSet::new() }
    }

    /// A schema by its id; `None` where nobody knows it, or it is of no use. Blocks, within a runtime.
    ///
    /// # Errors
    /// [`Error::Registry`]: it does not answer.
    pub fn find(&mut self, id: SchemaId) -> Result<Option<Written>, Error> {
        let Some(registry) = self.registry.as_ref().filter(|_| !self.strangers.contains(&id)) else {
            return Ok(None);
        };
        match Handle::current().block_on(registry.schema(id)) {
            Ok(registry::Found::Schema(schema)) => Ok(Some(schema)),
            Ok(registry::Found::Unusable(_)) => Ok(None),
            Err(registry::Error::Unknown { .. }) => {
                self.strangers.insert(id);
                Ok(None)
            }
            Err(error) => Err(Error::Registry(error)),
        }
    }

    /// The newest schema of a subject; `None` where there is none. Blocks, within a runtime.
    ///
    /// # Errors
    /// [`Error::Registry`]: it does not answer.
    pub fn newest(&self, subject: &str) -> Result<Option<SchemaId>, Error> {
        let Some(registry) = &self.registry else { return Ok(None) };
        match Handle::current().block_on(registry.newest(subject)) {
            Ok(id) => Ok(Some(id)),
            Err(registry::Error::Unknown { .. }) => Ok(None),
            Err(error) => Err(Error::Registry(error)),
        }
    }

    /// Tells the codec all schemas that a record names, as far as anybody knows them. Blocks, within a runtime.
    ///
    /// # Errors
    /// [`Error::Registry`]: it does not answer.
    pub fn teach(&mut self, codec: &mut Codec, record: Encoded<'_>) -> Result<(), Error> {
        while let (Some(id), Some(registry)) = (codec.unknown(record), &self.registry) {
            if self.strangers.contains(&id) {
                break;
            }
            match Handle::current().block_on(registry.schema(id)) {
                Ok(registry::Found::Schema(schema)) => codec.learn(id, Ok(&schema)),
                Ok(registry::Found::Unusable(why)) => codec.learn(id, Err(&why)),
                Err(registry::Error::Unknown { .. }) => {
                    self.strangers.insert(id);
                }
                Err(error) => return Err(Error::Registry(error)),
            }
        }
        Ok(())
    }
}

/// Reads records as the dataset's writer would.
pub struct Fit {
    codec: Codec,
    schemas: Schemas,
}

impl Fit {
    /// By the dataset's format, key rule and schema, and how large a record may be.
    ///
    /// # Errors
    /// The codec's, where these do not go together.
    pub fn new(
        format: &Format,
        rule: &KeyRule,
        schema: &Arc<Schema>,
        bound: Bound,
        schemas: Schemas,
    ) -> Result<Fit, codec::Error> {
        let mut codec = Codec::new(format.clone(), rule.clone(), schema.clone())?;
        codec.set_bound(bound);
        Ok(Fit { codec, schemas })
    }

    /// Why a record would fail; `None`: it fits. Blocks, within a runtime.
    ///
    /// # Errors
    /// [`Error::Registry`]: it does not answer.
    pub fn misfit(&mut self, record: Encoded<'_>) -> Result<Option<String>, Error> {
        self.schemas.teach(&mut self.codec, record)?;
        Ok(self.codec.read(record).err().map(|unread| unread.misfit().message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::ExtraFields;

    #[test]
    fn the_value_is_blamed_and_not_the_key_that_it_would_make() {
        let schema = r#"{"type":"record","name":"P","fields":[{"name":"id","type":"string"},{"name":"price","type":"double"}]}"#;
        let schema = Arc::new(Schema::dataset(schema).unwrap());
        let format = Format::json(ExtraFields::Ignore);
        let rule = KeyRule::Fields(vec!["id".to_owned()]);
        let mut fit = Fit::new(&format, &rule, &schema, Bound::of(40), Schemas::new(None)).unwrap();
        let mut misfit = |value: &str| {
            let record = Encoded { value: Some(value.as_bytes()), ..Encoded::default() };
            fit.misfit(record).unwrap()
        };
        assert_eq!(misfit(r#"{"id":"P-1","price":1}"#), None);
        let why = misfit(r#"{"id":"P-1","price":"1.5"}"#).unwrap();
        assert!(why.contains("price") && !why.contains("key"), "{why}");
        let why = misfit(r#"{"id":"P-1","price":1,"note":"0123456789"}"#).unwrap();
        assert!(why.contains("max_record_size"), "{why}");
    }
}
