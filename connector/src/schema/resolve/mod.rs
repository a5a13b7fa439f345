//! From a writer's datum to a reader's, by the Avro specification's rules ("Schema Resolution").
//!
//! The two schemas are compared once; what is left per datum is a program of copies, drops, conversions and defaults.
//! Where a whole subtree is encoded alike it is validated and copied, not taken apart.
//!
//! Where the specification leaves it open: of a reader's union, the branch of the very type (and full name) is
//! preferred, then one of the same kind, then one that the value can be promoted to, as Avro for Java does. A mismatch
//! inside one branch of a writer's union is an error of the datums that hold it, not of the schemas. Decimals need the
//! same scale and a reader's precision no smaller.

use std::sync::Arc;

use self::compare::{Compare, Misfits};
use self::run::Run;
use super::node::{Default, Id};
use super::{Error, LARGE, MAX_DEPTH, Malformed, Mismatch, Schema};

mod compare;
mod run;
#[cfg(test)]
mod tests;

/// Index of an act.
type ActId = usize;

/// What is done with a value of the writer's.
#[derive(Clone, Debug)]
enum Act {
    /// Nothing yet: a record that is being compared.
    Open,
    /// Validate a value of the writer's node, and copy it.
    Copy(Id),
    /// Bytes to a string: the same, if they are UTF-8.
    Text,
    IntToFloat,
    IntToDouble,
    LongToFloat,
    LongToDouble,
    FloatToDouble,
    /// By the writer's index, the reader's.
    Enum(Box<[Option<u32>]>),
    Record(Box<Fields>),
    /// Items; `true`: the writer's take no bytes.
    Array(ActId, bool),
    Map(ActId),
    /// By the writer's branch.
    FromUnion(Box<[ActId]>),
    /// The reader's branch.
    ToUnion(usize, ActId),
    /// A branch of the writer's that the reader has nothing for.
    Never,
}

#[derive(Clone, Debug)]
enum Fields {
    /// The reader's fields come in the writer's order.
    Stream(Vec<Part>),
    /// They do not: the writer's are located first.
    Jump { writer: Vec<Id>, reader: Vec<Source> },
}

#[derive(Clone, Debug)]
enum Part {
    Skip(Id),
    Take(ActId),
    Put(Default),
}

#[derive(Clone, Debug)]
enum Source {
    Field(usize, ActId),
    Default(Default),
}

/// Reads datums of a writer's schema as datums of a reader's.
#[derive(Debug)]
pub struct Resolver {
    writer: Arc<Schema>,
    acts: Vec<Act>,
    root: ActId,
}

impl Resolver {
    /// Compares two schemas.
    ///
    /// # Errors
    /// [`Error::Incompatible`], with each field that does not resolve: no datum (save of single branches of unions) could
    /// be read.
    pub fn new(writer: &Arc<Schema>, reader: &Arc<Schema>) -> Result<Resolver, Error> {
        let mut compare = Compare::new(writer, reader);
        let root = compare.pair(writer.nodes.root, reader.nodes.root, 0).map_err(incompatible)?;
        Ok(Resolver { writer: Arc::clone(writer), acts: compare.acts, root })
    }

    /// Whether values of a node of the writer's resolve as those of a node of the reader's: of a union's branch, say, whose
    /// mismatch would else be an error of each datum, and none of the schemas.
    ///
    /// # Errors
    /// As [`Resolver::new`].
    pub(crate) fn compare((writer, from): (&Schema, Id), (reader, to): (&Schema, Id)) -> Result<(), Error> {
        Compare::new(writer, reader).pair(from, to, 0).map(|_| ()).map_err(incompatible)
    }

    /// Whether each datum of the writer's can be read. `false`: some may not, those of a union's branch or with an enum's
    /// symbol that the reader does not have, and bytes that are no text; that a default is nested deeper than a datum may
    /// be counts too.
    pub fn is_total(&self) -> bool {
        let deep = |default: &Default| default.depth > 0;
        !self.acts.iter().any(|act| match act {
            Act::Never | Act::Text => true,
            Act::Enum(indexes) => indexes.iter().any(Option::is_none),
            Act::Record(fields) => match &**fields {
                Fields::Stream(parts) => {
                    parts.iter().any(|part| matches!(part, Part::Put(default) if deep(default)))
                }
                Fields::Jump { reader, .. } => {
                    reader.iter().any(|source| matches!(source, Source::Default(default) if deep(default)))
                }
            },
            _ => false,
        })
    }

    /// Appends the reader's datum for the writer's, which has to be all of `datum`.
    ///
    /// # Errors
    /// [`Malformed`]; `out` is as long as before then.
    pub fn resolve(&self, datum: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        self.resolve_within(datum, out, usize::MAX)
    }

    /// The same for a reader's datum of at most so many bytes: of any length are defaults, for a writer's that may have none.
    ///
    /// # Errors
    /// As [`Resolver::resolve`]; [`LARGE`] where it would be longer.
    pub fn resolve_within(&self, datum: &[u8], out: &mut Vec<u8>, most: usize) -> Result<(), Malformed> {
        let start = out.len();
        let most = start.saturating_add(most);
        let mut run = Run { resolver: self, rest: datum, out, most, places: Vec::new(), empty_items: 0 };
        let mut result = run.act(self.root, MAX_DEPTH).and_then(|()| run.room());
        if result.is_ok() && !run.rest.is_empty() {
            result = Err("something behind the datum");
        }
        let at = datum.len() - run.rest.len();
        result.map_err(|what| {
            out.truncate(start);
            Malformed { at, what }
        })
    }
}

fn incompatible(misfits: Misfits) -> Error {
    let named = misfits.into_iter().map(|misfit| {
        let at: Vec<String> = misfit.at.into_iter().rev().collect();
        let at = if at.is_empty() { "the schema".into() } else { at.join(".") };
        Mismatch { at, rule: misfit.rule }
    });
    Error::Incompatible(named.collect())
}
