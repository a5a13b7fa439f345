//! The schemas that a version's layers were written in, in the order of the versions.
//!
//! ```text
//!  base  deltas            line
//!  A     A A B B C         A --> B --> C      what is in the base is read as B's, and that as C's
//! ```
//!
//! Why by way of B, and not as C's at once: a version is the same for whoever reads it. Who merged its overlay while B was
//! in force has what was A's as B's by now; and the two ways need not come to the same. A field that B lacks and C has
//! again takes its default on the way, an int that B made a float has lost digits, and of a field that was renamed twice
//! C may know the last name only. So a change of schema changes every value, once, at its version.
//!
//! Owns: that order, how values are read along it. Does not own: which schema may follow which (`producer/recover`).

use std::sync::Arc;

use super::overlay::Overlay;
use super::{Base, Error};
use crate::format::container::Header;
use crate::schema::{Malformed, Resolver, Schema};
use crate::version::Version;

/// Former schemas that are remembered.
const MOST_FORMER: usize = 64;

/// How values of a schema other than the version's own are read.
#[derive(Clone)]
pub(super) enum Reading {
    /// As they are: only documentation, defaults, aliases or names of logical types differ.
    AsIs,
    /// Decoded, and encoded anew, by one schema after the other.
    Resolved(Arc<[Arc<Resolver>]>),
}

impl Reading {
    fn of(passages: impl Iterator<Item = Arc<Resolver>>) -> Reading {
        let passages: Arc<[_]> = passages.collect();
        if passages.is_empty() { Reading::AsIs } else { Reading::Resolved(passages) }
    }

    /// By one resolver.
    pub fn by(resolver: Resolver) -> Reading {
        Reading::Resolved([Arc::new(resolver)].into())
    }

    /// The value as it is read; `None`: as it is.
    pub fn read(&self, datum: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
        let Reading::Resolved(passages) = self else { return Ok(None) };
        let mut read: Option<Vec<u8>> = None;
        for passage in passages.iter() {
            let mut next = Vec::with_capacity(datum.len());
            passage.resolve(read.as_deref().unwrap_or(datum), &mut next)?;
            read = Some(next);
        }
        Ok(read)
    }
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Reading::AsIs => "AsIs",
            Reading::Resolved(_) => "Resolved",
        })
    }
}

/// A schema, and the version that was the first of it.
#[derive(Clone, Debug)]
struct Step {
    since: Version,
    schema: Arc<Schema>,
    /// From the schema before; `None`: as they are.
    passage: Option<Arc<Resolver>>,
}

/// See the module. Never empty; the last schema is the version's own. Of two steps the schemas are never one `Arc`, also
/// where an earlier one came back.
#[derive(Clone, Debug)]
pub(super) struct Line {
    steps: Vec<Step>,
    former: Arc<[u64]>,
    /// The dataset's schema, where only a part of it is held: the line's is of that part.
    pub whole: Option<Arc<Schema>>,
}

impl Line {
    pub fn of(schema: Arc<Schema>, former: Arc<[u64]>) -> Line {
        Line { steps: vec![Step { since: Version(0), schema, passage: None }], former, whole: None }
    }

    /// The version's own schema.
    pub fn schema(&self) -> &Arc<Schema> {
        let Some(last) = self.steps.last() else { unreachable!("a line begins with a schema") };
        &last.schema
    }

    /// The dataset's, of which the version's own may be a part.
    pub fn whole(&self) -> &Arc<Schema> {
        self.whole.as_ref().unwrap_or_else(|| self.schema())
    }

    /// Hashes of the texts of schemas that came before, oldest first.
    pub fn former(&self) -> &Arc<[u64]> {
        &self.former
    }

    /// With what a blob says of those.
    pub fn knowing(self, former: &Arc<[u64]>) -> Line {
        Line { former: former.clone(), ..self }
    }

    /// Whether some values are decoded to be read.
    pub fn is_resolved(&self) -> bool {
        self.steps.iter().any(|step| step.passage.is_some())
    }

    /// Goes on with `schema` from version `since` on; the same where it is the same text.
    ///
    /// # Errors
    /// [`Error::Schema`] if values of the one before cannot be read in it.
    pub fn to(mut self, since: Version, schema: &Arc<Schema>) -> Result<Line, Error> {
        let before = self.schema();
        if Arc::ptr_eq(before, schema) || before.is_same_as(schema) {
            return Ok(self);
        }
        let passage = match before.encodes_like(schema) {
            true => None,
            false => {
                let resolver = Resolver::new(before, schema);
                Some(Arc::new(resolver.map_err(|error| Error::Schema(error.into()))?))
            }
        };
        let (left, come) = (before.text_hash(), schema.text_hash());
        let kept = self.former.iter().copied().filter(|hash| ![left, come].contains(hash));
        let former: Vec<u64> = kept.chain([left]).collect();
        self.former = former.get(former.len().saturating_sub(MOST_FORMER)..).unwrap_or_default().into();
        self.steps.push(Step { since, schema: schema.clone(), passage });
        Ok(self)
    }

    /// Where values of `schema` that stand in a blob of `version` come in.
    fn place(&self, version: Version, schema: &Arc<Schema>) -> Option<usize> {
        let same = |step: &Step| Arc::ptr_eq(&step.schema, schema);
        let alike = |step: &Step| step.since <= version.next() && step.schema.is_same_as(schema);
        self.steps.iter().rposition(same).or_else(|| self.steps.iter().rposition(alike))
    }

    fn reading(&self, place: usize) -> Reading {
        Reading::of(self.steps.iter().skip(place + 1).filter_map(|step| step.passage.clone()))
    }

    /// How values of an older version of `schema` are read in this one's; `None`: not known, since that lies below the base.
    pub fn from(&self, version: Version, schema: &Arc<Schema>) -> Option<Reading> {
        self.place(version, schema).map(|place| self.reading(place))
    }

    /// Without the schemas that no value on top of `base` is of.
    ///
    /// # Errors
    /// [`Error::Schema`] if the base's is none of them.
    pub fn on(mut self, base: &Base) -> Result<Line, Error> {
        let place = self.place(base.version(), base.schema()).ok_or_else(|| stranger(base.version()))?;
        self.steps.drain(..place);
        if let Some(first) = self.steps.first_mut() {
            (first.since, first.passage) = (Version(0), None);
        }
        Ok(self)
    }

    /// Schemas other than the version's own in which layers were written, with how each is read.
    ///
    /// # Errors
    /// [`Error::Schema`] if a layer's is none of the line.
    pub fn readings(
        &self,
        base: Option<&Base>,
        overlay: &Overlay,
    ) -> Result<Vec<(Arc<Schema>, Reading)>, Error> {
        let mut readings: Vec<(Arc<Schema>, Reading)> = Vec::new();
        let base = base.map(|base| (base.version(), base.schema()));
        for (version, schema) in base.into_iter().chain(overlay.schemas()) {
            let known = readings.iter().any(|(have, _)| Arc::ptr_eq(have, schema));
            if known || Arc::ptr_eq(schema, self.schema()) {
                continue;
            }
            let place = self.place(version, schema).ok_or_else(|| stranger(version))?;
            readings.push((schema.clone(), self.reading(place)));
        }
        Ok(readings)
    }

    /// Hashes of the texts of its schemas, in their order: where they are the same, so is what was derived from values.
    pub fn texts(&self) -> impl Iterator<Item = u64> {
        self.steps.iter().map(|step| step.schema.text_hash())
    }

    /// Whether what was derived from values read along the one holds for the other.
    pub fn is_same_way(&self, other: &Line) -> bool {
        let same = |(one, two): (&Step, &Step)| Arc::ptr_eq(&one.schema, &two.schema);
        self.steps.len() == other.steps.len() && self.steps.iter().zip(&other.steps).all(same)
    }
}

/// The schema of a blob's values: `known` if it is the same text, since parsing one for each delta would cost more than the
/// delta. Where the text differs the schema does, too, if only in its defaults: they count when what comes before is read in
/// it.
pub(super) fn schema_of(header: &Header, known: &Arc<Schema>) -> Result<Arc<Schema>, String> {
    if *header.entry_schema == *known.entry_json() {
        return Ok(known.clone());
    }
    header.schema().map(Arc::new).map_err(|error| error.to_string())
}

/// The schema of a blob's values by the announced text, if that is theirs. Parsed anew: whoever gives it may hold a view of
/// which it is an earlier schema.
pub(super) fn as_announced(header: &Header, announced: &Schema) -> Option<Arc<Schema>> {
    let same = *header.entry_schema == *announced.entry_json();
    same.then(|| Schema::parse(announced.json()).ok().map(Arc::new)).flatten()
}

#[cold]
fn stranger(version: Version) -> Error {
    Error::Schema(format!("a blob of version {version} has a schema that no delta led to").into())
}
