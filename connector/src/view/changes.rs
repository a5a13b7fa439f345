//! What differs between two versions, in the order of the keys' bytes.
//!
//! ```text
//!  two views of one line      deltas above the older one ==> keys;       each looked up in both       cost: those deltas
//!  on the same base           both overlays              ==> keys;       each looked up in both       cost: the overlays
//!  anything else              all of both, side by side                                               cost: both
//! ```
//!
//! Which of the two is the newer does not matter: from a newer version to an older one it is the inverse.
//!
//! Owns: which keys differ, with what they were and are. Does not own: who is told (`consumer/`, `http/`).

use std::cmp::Ordering;
use std::sync::Arc;

use super::line::Reading;
use super::merge::Merged;
use super::read::Value;
use super::{Error, Found, Inner, View};
use crate::schema::Resolver;
use crate::version::Version;

/// A key whose value differs between two versions, and both values; at least one of them is there.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    old: Option<Value<'a>>,
    new: Option<Value<'a>>,
}

/// What became of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was not there.
    Added,
    /// It has another value.
    Updated,
    /// It is not there any more.
    Deleted,
}

impl<'a> Change<'a> {
    /// The key's bytes.
    pub fn key(&self) -> &'a [u8] {
        self.new.as_ref().or(self.old.as_ref()).map_or(&[], Value::key)
    }

    /// The value before, in the schema of the version before; `None`: the key was not there.
    pub fn before(&self) -> Option<&Value<'a>> {
        self.old.as_ref()
    }

    /// The value now; `None`: the key is deleted.
    pub fn after(&self) -> Option<&Value<'a>> {
        self.new.as_ref()
    }

    /// What became of the key.
    pub fn kind(&self) -> ChangeKind {
        match (&self.old, &self.new) {
            (None, _) => ChangeKind::Added,
            (Some(_), Some(_)) => ChangeKind::Updated,
            (Some(_), None) => ChangeKind::Deleted,
        }
    }
}

/// A key that was written since some version, and its value now: what [`View::changes_since`] gives.
#[derive(Clone, Debug)]
pub struct Update<'a> {
    key: &'a [u8],
    value: Option<Value<'a>>,
}

impl<'a> Update<'a> {
    /// The key's bytes.
    pub fn key(&self) -> &'a [u8] {
        self.key
    }

    /// The value now; `None`: the key is deleted.
    pub fn value(&self) -> Option<&Value<'a>> {
        self.value.as_ref()
    }
}

impl View {
    /// What changed from `before` to this version: each key once, in the order of the keys' bytes, with both values.
    /// Keys that changed and changed back are left out. `before` may be the newer one; then it is the inverse.
    ///
    /// Cost: the deltas between the two, with a lookup in both for each of their keys, as long as neither has merged
    /// them into its base; else, where both lie on the same base, the overlays of both; else a pass over both.
    /// Each value that is given counts as read.
    pub fn changes_from<'a>(&'a self, before: &'a View) -> Changes<'a> {
        self.changes_from_key(before, [])
    }

    /// As [`View::changes_from`], from the first key at or above `from` on: for going on where a batch ended.
    pub fn changes_from_key<'a>(&'a self, before: &'a View, from: impl AsRef<[u8]>) -> Changes<'a> {
        Changes { pairs: Pairs::of(before, self, from.as_ref()).map_err(Some) }
    }

    /// The oldest version that [`View::changes_since`] can start from: that of its base.
    pub fn changes_known_since(&self) -> Version {
        self.base().map_or(Version(0), |base| base.version())
    }

    /// The keys that were written since `version`, with their values now, in the order of the keys' bytes: for who
    /// holds no view of `version` any more. A key is named also where its value is again what it was. `None`: the
    /// deltas since were merged into the base ([`View::changes_known_since`]), or `version` is above this one.
    ///
    /// Cost: the runs of the overlay that hold those deltas.
    pub fn changes_since(&self, version: Version) -> Option<Updates<'_>> {
        let held = (self.changes_known_since()..=self.version()).contains(&version);
        let merged = Merged::above(&self.0.overlay, version, &[]).map_err(Some);
        held.then_some(Updates { view: &self.0, merged })
    }
}

/// See [`View::changes_from`]. After an error there is nothing more.
pub struct Changes<'a> {
    /// `Err(None)`: it is over.
    pairs: Result<Pairs<'a>, Option<Error>>,
}

impl<'a> Iterator for Changes<'a> {
    type Item = crate::Result<Change<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = match &mut self.pairs {
            Ok(pairs) => pairs.next(),
            Err(error) => error.take().map_or(Ok(None), Err),
        };
        if !matches!(step, Ok(Some(_))) {
            self.pairs = Err(None);
        }
        step.map_err(crate::Error::from).transpose()
    }
}

/// See [`View::changes_since`]. After an error there is nothing more.
pub struct Updates<'a> {
    view: &'a Inner,
    /// `Err(None)`: it is over.
    merged: Result<Merged<'a>, Option<Error>>,
}

impl<'a> Updates<'a> {
    fn step(&mut self) -> Result<Option<Update<'a>>, Error> {
        let merged = match &mut self.merged {
            Ok(merged) => merged,
            Err(error) => return error.take().map_or(Ok(None), Err),
        };
        let Some(found) = merged.next()? else { return Ok(None) };
        Ok(Some(Update { key: found.entry.key, value: self.view.value(&found)? }))
    }
}

impl<'a> Iterator for Updates<'a> {
    type Item = crate::Result<Update<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if !matches!(step, Ok(Some(_))) {
            self.merged = Err(None);
        }
        step.map_err(crate::Error::from).transpose()
    }
}

/// One of the two views, and its entries that may differ.
struct Side<'a> {
    view: &'a Inner,
    merged: Merged<'a>,
    head: Option<Found<'a>>,
}

impl<'a> Side<'a> {
    fn new(view: &'a View, mut merged: Merged<'a>) -> Result<Side<'a>, Error> {
        let head = merged.next()?;
        Ok(Side { view: &view.0, merged, head })
    }

    fn take(&mut self) -> Result<Option<Found<'a>>, Error> {
        let next = self.merged.next()?;
        Ok(std::mem::replace(&mut self.head, next))
    }
}

/// How values of the older version are held against those of the newer one.
enum Compare {
    /// As bytes.
    Bytes,
    /// Read under the newer schema first.
    Resolved(Reading),
    /// Not at all: the schemas do not resolve, so each value that was written between them is another.
    Never,
}

/// The keys that may differ, walked on both sides at once.
struct Pairs<'a> {
    before: Side<'a>,
    after: Side<'a>,
    /// Whether what one side does not list has to be looked up there; else it does not have it.
    look: bool,
    compare: Compare,
    /// `before` is the newer version.
    inverse: bool,
}

impl<'a> Pairs<'a> {
    fn of(before: &'a View, after: &'a View, from: &[u8]) -> Result<Pairs<'a>, Error> {
        let inverse = before.version() > after.version();
        let (older, newer) = if inverse { (after, before) } else { (before, after) };
        let (older_entries, newer_entries, look) = if one_line(older, newer) {
            let above = Merged::above(&newer.0.overlay, older.version(), from)?;
            (Merged::nothing(), above, true)
        } else if same_base(older, newer) {
            let overlay = |view: &'a View| Merged::from(&view.0.overlay, None, from);
            (overlay(older)?, overlay(newer)?, true)
        } else {
            (older.merged(from)?, newer.merged(from)?, false)
        };
        let (was, is) = (older.schema(), newer.schema());
        let compare = match newer.0.line.from(older.version(), was) {
            _ if Arc::ptr_eq(was, is) => Compare::Bytes,
            Some(Reading::AsIs) => Compare::Bytes,
            Some(reading) => Compare::Resolved(reading),
            // What was in force between the two is not known here.
            None => match Resolver::new(was, is) {
                Ok(_) if was.encodes_like(is) => Compare::Bytes,
                Ok(resolver) => Compare::Resolved(Reading::by(resolver)),
                Err(_) => Compare::Never,
            },
        };
        let (older, newer) = (Side::new(older, older_entries)?, Side::new(newer, newer_entries)?);
        let (before, after) = if inverse { (newer, older) } else { (older, newer) };
        Ok(Pairs { before, after, look, compare, inverse })
    }

    fn next(&mut self) -> Result<Option<Change<'a>>, Error> {
        loop {
            let order = match (&self.before.head, &self.after.head) {
                (None, None) => return Ok(None),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => old.entry.key.cmp(new.entry.key),
            };
            let (mut old, mut new) = (None, None);
            if order != Ordering::Greater {
                old = self.before.take()?;
            }
            if order != Ordering::Less {
                new = self.after.take()?;
            }
            if self.look {
                match (&old, &new) {
                    (Some(found), None) => new = self.after.view.find(found.entry.key)?,
                    (None, Some(found)) => old = self.before.view.find(found.entry.key)?,
                    _ => {}
                }
            }
            if self.differ(old.as_ref(), new.as_ref())? {
                let value = |view: &'a Inner, found: Option<Found<'a>>| {
                    found.map_or(Ok(None), |found| view.value(&found))
                };
                let (old, new) = (value(self.before.view, old)?, value(self.after.view, new)?);
                return Ok(Some(Change { old, new }));
            }
        }
    }

    fn differ(&self, old: Option<&Found<'a>>, new: Option<&Found<'a>>) -> Result<bool, Error> {
        let datum = |view: &'a Inner, found: Option<&Found<'a>>| match found {
            Some(found) => view.resolved(found),
            None => Ok(None),
        };
        let (old, new) = (datum(self.before.view, old)?, datum(self.after.view, new)?);
        let (Some(old), Some(new)) = (&old, &new) else { return Ok(old.is_some() != new.is_some()) };
        match &self.compare {
            Compare::Bytes => Ok(old != new),
            Compare::Never => Ok(true),
            Compare::Resolved(reading) => {
                let (older, newer) = if self.inverse { (new, old) } else { (old, new) };
                // A single value that has no form under the newer schema is another than whatever is there now.
                Ok(reading.read(older).map_or(true, |read| read.as_deref() != Some(&**newer)))
            }
        }
    }
}

/// Whether `older` lies on the line of deltas that led to `newer`, all of which are in its overlay. Announced versions
/// of one topic form one line (`Identity` names the topic); a version that was announced twice, by two lives, is none.
fn one_line(older: &View, newer: &View) -> bool {
    older.identity() == newer.identity()
        && (Arc::ptr_eq(&older.0.hold, &newer.0.hold) || older.0.hold.is_whole() && newer.0.hold.is_whole())
        && newer.changes_known_since() <= older.version()
        && (older.version() < newer.version() || older.about().life == newer.about().life)
}

/// Whether both lie on the same snapshot, be it mapped once or twice.
fn same_base(one: &View, other: &View) -> bool {
    match (one.base(), other.base()) {
        (None, None) => one.identity() == other.identity(),
        (Some(one), Some(other)) => one.is_same_as(other),
        _ => false,
    }
}
