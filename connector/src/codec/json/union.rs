//! Unions, which JSON does not tag: a value's text says which branches it can be; the first that fits is taken.
//!
//! What can go wrong: two records tried after each other at each of many levels double the work at each level. Bytes
//! read in vain are therefore counted against a multiple of the text's length.

use super::Pass;
use super::fail::{Segment, Stop, What};
use super::plan::{Branch, Plan};
use crate::schema::wire::put_long;
use crate::schema::{Id, Node};

impl Pass<'_, '_> {
    #[inline]
    pub(super) fn union(&mut self, id: Id, depth: usize) -> Result<(), Stop> {
        let plans = self.plans;
        let Some(Plan::Union(union)) = plans.get(id as usize) else { unreachable!("planned as a union") };
        let branches = match self.lex.rest.first() {
            Some(b'"') => &union.string,
            Some(b'-' | b'0'..=b'9') => &union.number,
            Some(b'{') => &union.object,
            Some(b'[') => &union.list,
            Some(b'n') => &union.null,
            Some(b't' | b'f') => &union.boolean,
            _ => return self.wrong(id),
        };
        match branches.as_slice() {
            [] => self.wrong(id),
            [only] => {
                put_long(&mut self.buffers.out, only.index as i64);
                self.value(only.node, depth)
            }
            several if matches!(self.lex.rest.first(), Some(b'-' | b'0'..=b'9')) => {
                self.union_number(id, several)
            }
            several => self.first_that_fits(several, depth),
        }
    }

    /// A number where several branches are numbers: the first that holds it exactly, else the widest that comes near.
    fn union_number(&mut self, id: Id, branches: &[Branch]) -> Result<(), Stop> {
        let left = self.lex.rest.len();
        let number = self.number(id)?;
        let integer = if number.integral { number.integer() } else { None };
        let double = number.double();
        for Branch { index, node } in branches {
            let out = &mut self.buffers.out;
            match (self.nodes.get(*node), integer, double) {
                (Node::Int, Some(value), _) if i32::try_from(value).is_ok() => {
                    put_long(out, *index as i64);
                    put_long(out, value);
                }
                (Node::Long, Some(value), _) => {
                    put_long(out, *index as i64);
                    put_long(out, value);
                }
                (Node::Double, _, Some(value)) if integer.is_none_or(|integer| is_exact(integer, value)) => {
                    put_long(out, *index as i64);
                    out.extend_from_slice(&value.to_le_bytes());
                }
                (Node::Float, _, Some(value))
                    if f64::from(value as f32) == value
                        && integer.is_none_or(|integer| is_exact(integer, value)) =>
                {
                    put_long(out, *index as i64);
                    out.extend_from_slice(&(value as f32).to_le_bytes());
                }
                _ => continue,
            }
            return Ok(());
        }
        let of =
            |wanted: fn(&Node) -> bool| branches.iter().find(|branch| wanted(self.nodes.get(branch.node)));
        if let (Some(branch), Some(value)) = (of(|node| matches!(node, Node::Double)), double) {
            put_long(&mut self.buffers.out, branch.index as i64);
            self.buffers.out.extend_from_slice(&value.to_le_bytes());
        } else if let (Some(branch), Some(value)) = (of(|node| matches!(node, Node::Float)), number.float()) {
            put_long(&mut self.buffers.out, branch.index as i64);
            self.buffers.out.extend_from_slice(&value.to_le_bytes());
        } else {
            let what = if number.integral || double.is_none() { What::Range(id) } else { What::Fraction(id) };
            return self.stop_at(what, left);
        }
        Ok(())
    }

    /// First without unknown fields, even where they are ignored: else a small record would take what is a larger one's,
    /// and drop the rest.
    fn first_that_fits(&mut self, branches: &[Branch], depth: usize) -> Result<(), Stop> {
        let lenient = !self.reject_extra && matches!(self.lex.rest.first(), Some(b'{'));
        let mut closest = None;
        if lenient {
            self.reject_extra = true;
            let fits = self.any_that_fits(branches, depth, &mut closest);
            self.reject_extra = false;
            if fits? {
                return Ok(());
            }
            closest = None;
        }
        if self.any_that_fits(branches, depth, &mut closest)? {
            return Ok(());
        }
        // Once more the one that came closest, for its reason: most likely it is the one that was meant.
        let Some((_, branch)) = closest else { unreachable!("several branches were tried") };
        self.branch(branch, depth).map_err(|Stop| self.within(Segment::Branch(branch.node)))
    }

    /// Whether a branch fits; if none does, nothing is taken, and `closest` is the one that came closest.
    fn any_that_fits(
        &mut self,
        branches: &[Branch],
        depth: usize,
        closest: &mut Option<((bool, usize), Branch)>,
    ) -> Result<bool, Stop> {
        let begin = self.lex.rest;
        let mark = self.mark();
        for branch in branches {
            if self.branch(*branch, depth).is_ok() {
                return Ok(true);
            }
            if self.what.is_final() {
                return Err(self.within(Segment::Branch(branch.node)));
            }
            let read = begin.len() - self.lex.rest.len();
            // a field that the branch lacks or misses says that another shape was meant, a field's value does not
            let shape = matches!(self.what, What::Missing(..) | What::Unknown(..))
                && self.buffers.trail.len() == mark.trail;
            self.lex.rest = begin;
            self.back_to(mark);
            match self.fuel.checked_sub(read) {
                Some(fuel) => self.fuel = fuel,
                None => return self.stop(What::Ambiguous),
            }
            if closest.is_none_or(|(most, _)| (!shape, read) > most) {
                *closest = Some(((!shape, read), *branch));
            }
        }
        Ok(false)
    }

    fn branch(&mut self, branch: Branch, depth: usize) -> Result<(), Stop> {
        put_long(&mut self.buffers.out, branch.index as i64);
        self.value(branch.node, depth)
    }

    fn mark(&self) -> Mark {
        let buffers = &self.buffers;
        Mark {
            out: buffers.out.len(),
            pieces: buffers.pieces.len(),
            keys: buffers.keys.len(),
            trail: buffers.trail.len(),
        }
    }

    fn back_to(&mut self, mark: Mark) {
        self.buffers.out.truncate(mark.out);
        self.buffers.pieces.truncate(mark.pieces);
        self.buffers.keys.truncate(mark.keys);
        self.buffers.trail.truncate(mark.trail);
    }
}

/// How long the buffers were.
#[derive(Clone, Copy)]
struct Mark {
    out: usize,
    pieces: usize,
    keys: usize,
    trail: usize,
}

/// Whether the double is the very integer. (The comparison at the upper end saturates: 2^63 is no `i64`.)
fn is_exact(integer: i64, double: f64) -> bool {
    double as i128 == i128::from(integer)
}
