//! Objects to records: fields in any order, defaults for those that are missing.

use super::fail::{Segment, Stop, What};
use super::lex::OBJECT_NEXT;
use super::plan::{Field, Plan};
use super::{Buffers, Pass, lex};
use crate::schema::Id;

/// A piece that is not there yet.
const ABSENT: (usize, usize) = (usize::MAX, usize::MAX);

impl Pass<'_, '_> {
    pub(super) fn record(&mut self, id: Id, depth: usize) -> Result<(), Stop> {
        let plans = self.plans;
        let Some(Plan::Record(fields)) = plans.get(id as usize) else { unreachable!("planned as a record") };
        if self.lex.rest.first() != Some(&b'{') {
            return self.wrong(id);
        }
        let depth = self.deeper(depth)?;
        self.lex.take(b'{');
        // fields 0..done stand in `out` in order; from the first that is out of order on, pieces are noted
        let mut done = 0;
        let mut pieces = None;
        let mut follows = 0;
        self.lex.space();
        if !self.lex.take(b'}') {
            loop {
                if let Some(at) = self.name(id, fields, follows, depth)? {
                    follows = at + 1;
                    let Some(field) = fields.get(at) else { unreachable!("found among the fields") };
                    if at == done && pieces.is_none() {
                        if let Err(Stop) = self.value(field.node, depth) {
                            return Err(self.within(Segment::Field(id, at)));
                        }
                        done += 1;
                    } else {
                        let base = *pieces.get_or_insert_with(|| {
                            let base = self.buffers.pieces.len();
                            self.buffers.pieces.resize(base + fields.len() - done, ABSENT);
                            (base, self.buffers.out.len())
                        });
                        self.piece(id, at, at.checked_sub(done).map(|at| at + base.0), field.node, depth)?;
                    }
                }
                if let [b',', rest @ ..] = self.lex.rest
                    && rest.first() == Some(&b'"')
                {
                    self.lex.rest = rest;
                    continue;
                }
                self.lex.space();
                if self.lex.take(b',') {
                    self.lex.space();
                } else if self.lex.take(b'}') {
                    break;
                } else {
                    return self.stop(What::Syntax(OBJECT_NEXT));
                }
            }
        }
        match pieces {
            None => {
                for (at, field) in fields.iter().enumerate().skip(done) {
                    match &field.default {
                        Some(default) if default.depth > depth => return self.stop(What::Deep),
                        Some(default) => self.buffers.out.extend_from_slice(&default.datum),
                        None => return self.stop(What::Missing(id, at)),
                    }
                }
            }
            Some((base, start)) => {
                self.reorder(id, fields.get(done..).unwrap_or_default(), done, (base, start), depth)?;
            }
        }
        self.room()
    }

    /// Encodes a field that came out of order; `slot` is where its piece is noted, `None` if it came before.
    fn piece(&mut self, id: Id, at: usize, slot: Option<usize>, node: Id, depth: usize) -> Result<(), Stop> {
        let Some(slot) = slot.filter(|slot| self.buffers.pieces.get(*slot) == Some(&ABSENT)) else {
            let stopped = self.stop(What::Twice);
            self.within(Segment::Field(id, at));
            return stopped;
        };
        let from = self.buffers.out.len();
        if let Err(Stop) = self.value(node, depth) {
            return Err(self.within(Segment::Field(id, at)));
        }
        if let Some(piece) = self.buffers.pieces.get_mut(slot) {
            *piece = (from, self.buffers.out.len());
        }
        Ok(())
    }

    /// Puts the pieces of `fields`, the first of which is the record's field `done`, in order, defaults between them.
    /// `pieces`: from where on they are noted, and from where on they lie in `out`.
    fn reorder(
        &mut self,
        id: Id,
        fields: &[Field],
        done: usize,
        pieces: (usize, usize),
        depth: usize,
    ) -> Result<(), Stop> {
        let (base, start) = pieces;
        let Buffers { out, pieces, ordered, .. } = &mut *self.buffers;
        ordered.clear();
        for (at, field) in fields.iter().enumerate() {
            let (from, to) = pieces.get(base + at).copied().unwrap_or(ABSENT);
            match (out.get(from..to), &field.default) {
                (Some(piece), _) => ordered.extend_from_slice(piece),
                (None, Some(default)) if default.depth <= depth => ordered.extend_from_slice(&default.datum),
                (None, Some(_)) => return self.stop(What::Deep),
                (None, None) => return self.stop(What::Missing(id, done + at)),
            }
        }
        out.truncate(start);
        out.extend_from_slice(ordered);
        pieces.truncate(base);
        Ok(())
    }

    /// Takes a field's name and the colon; an unknown field is taken whole, and `None`.
    #[inline]
    fn name(
        &mut self,
        id: Id,
        fields: &[Field],
        follows: usize,
        depth: usize,
    ) -> Result<Option<usize>, Stop> {
        if !self.lex.take(b'"') {
            return self.stop(What::Syntax("no name where an object's next field should be"));
        }
        let guess = self.buffers.follows.get(id as usize).and_then(|record| record.get(follows));
        let guess = guess.map_or(usize::MAX, |guess| *guess as usize);
        if let Some(field) = fields.get(guess)
            && self.lex.known(&field.word)
        {
            self.lex.space();
            return Ok(Some(guess));
        }
        self.search(id, follows, depth)
    }

    #[inline]
    pub(super) fn colon(&mut self) -> Result<(), Stop> {
        self.lex.space();
        if !self.lex.take(b':') {
            return self.stop(What::Syntax("no colon behind a name"));
        }
        self.lex.space();
        Ok(())
    }

    fn search(&mut self, id: Id, follows: usize, depth: usize) -> Result<Option<usize>, Stop> {
        let left = self.lex.rest.len();
        let name = self.quoted()?.unwrap_or(&self.buffers.text);
        let found = self.nodes.record(id).field(name);
        if let Some(at) = found {
            let record = self.buffers.follows.get_mut(id as usize);
            if let Some(guess) = record.and_then(|record| record.get_mut(follows)) {
                *guess = at as u32;
            }
        } else if self.reject_extra {
            let (from, to) = (self.length - left, self.length - self.lex.rest.len() - 1);
            return self.stop_at(What::Unknown(id, from, to), left);
        }
        self.colon()?;
        if found.is_none()
            && let Err(syntax) = self.lex.ignore(&mut self.buffers.text, depth)
        {
            return self.stop(if syntax == lex::DEEP { What::Deep } else { What::Syntax(syntax) });
        }
        Ok(found)
    }
}
