//! The length of a datum, found without decoding it.
//!
//! Bytes may be hostile. What bounds the walk: each step takes at least one byte, save items that take none, which
//! are counted against [`MAX_EMPTY_ITEMS`] and not visited; nesting is counted against [`MAX_DEPTH`].

use super::node::{Nodes, Step};
use super::wire::{skip_int, skip_long, split_bytes, split_int, take_long};
use super::{Id, MAX_DEPTH, MAX_EMPTY_ITEMS, Malformed, Node};

pub(super) fn datum<const UTF8: bool>(nodes: &Nodes, bytes: &[u8]) -> Result<usize, Malformed> {
    let mut rest = bytes;
    match value::<UTF8>(nodes, nodes.root, &mut rest, MAX_DEPTH, &mut 0) {
        Ok(()) => Ok(bytes.len() - rest.len()),
        Err(what) => Err(Malformed { at: bytes.len() - rest.len(), what }),
    }
}

/// Takes a value of node `id` off `rest`, which an error leaves where it was seen. `depth` levels may follow; items
/// that take no bytes are added to `empty_items`.
pub(crate) fn value<const UTF8: bool>(
    nodes: &Nodes,
    id: Id,
    rest: &mut &[u8],
    depth: usize,
    empty_items: &mut usize,
) -> Result<(), &'static str> {
    let mut walk = Walk::<UTF8> { nodes, empty_items: *empty_items, what: "", left: 0 };
    let after = walk.step(nodes.step(id), rest, depth);
    *empty_items = walk.empty_items;
    match after {
        Some(after) => {
            *rest = after;
            Ok(())
        }
        None => {
            *rest = rest.get(rest.len().saturating_sub(walk.left)..).unwrap_or_default();
            Err(walk.what)
        }
    }
}

/// Counts `more` items that take no bytes.
pub(crate) fn count_empty(empty_items: &mut usize, more: usize) -> Result<(), &'static str> {
    *empty_items = empty_items.saturating_add(more);
    if *empty_items > MAX_EMPTY_ITEMS { Err("more than 65536 items that take no bytes") } else { Ok(()) }
}

/// Takes the count of an array's or map's next block off `rest`; zero ends it. A negative count is followed by the
/// block's size in bytes, which is not believed: items are walked all the same.
#[inline]
pub(crate) fn take_count(rest: &mut &[u8]) -> Result<usize, &'static str> {
    let count = take_long(rest).ok_or("a block's count is cut off or too long")?;
    if count < 0 {
        let size = take_long(rest).ok_or("a block's size is cut off or too long")?;
        if size < 0 {
            return Err("a block's size is negative");
        }
    }
    usize::try_from(count.unsigned_abs()).map_err(|_| "a block's count is too large")
}

/// More levels than [`MAX_DEPTH`].
pub(crate) const DEEP: &str = "nested deeper than 128 levels";

/// What is left goes through the steps by value, and comes back in two registers; an error is noted on the side.
struct Walk<'s, const UTF8: bool> {
    nodes: &'s Nodes,
    empty_items: usize,
    what: &'static str,
    /// Bytes that were left at the error.
    left: usize,
}

impl<const UTF8: bool> Walk<'_, UTF8> {
    #[cold]
    fn fail<'b>(&mut self, rest: &[u8], what: &'static str) -> Option<&'b [u8]> {
        self.what = what;
        self.left = rest.len();
        None
    }

    // Always: the loops over fields and items each get their own copy, without a call for a plain value.
    #[inline(always)]
    fn step<'b>(&mut self, step: Step, rest: &'b [u8], depth: usize) -> Option<&'b [u8]> {
        let (after, what) = match step {
            Step::Const(length) => (rest.get(length as usize..), "the value ends too early"),
            Step::Boolean => match rest.split_first() {
                Some((0 | 1, after)) => (Some(after), ""),
                Some(_) => (None, "a boolean is neither 0 nor 1"),
                None => (None, "the value ends before a boolean"),
            },
            Step::Int => (skip_int(rest), "an int is cut off or has more than 32 bits"),
            Step::Long => (skip_long(rest), "a long is cut off or has more than 64 bits"),
            Step::Bytes => (
                split_bytes(rest).map(|(_, after)| after),
                "the length of bytes is negative or beyond the end",
            ),
            Step::Text => match split_bytes(rest) {
                Some((text, _)) if UTF8 && std::str::from_utf8(text).is_err() => {
                    (None, "a string is not UTF-8")
                }
                Some((_, after)) => (Some(after), ""),
                None => (None, "the length of a string is negative or beyond the end"),
            },
            Step::Enum(symbols) => match split_int(rest) {
                Some((index, after)) if u32::try_from(index).is_ok_and(|index| index < symbols) => {
                    (Some(after), "")
                }
                Some(_) => (None, "an enum has no symbol of this index"),
                None => (None, "an enum's index is cut off or too long"),
            },
            Step::Record(_) | Step::Array(..) | Step::Map(_) | Step::Union(_) => {
                return self.composite(step, rest, depth);
            }
        };
        match after {
            Some(after) => Some(after),
            None => self.fail(rest, what),
        }
    }

    #[inline(never)]
    fn composite<'b>(&mut self, step: Step, mut rest: &'b [u8], depth: usize) -> Option<&'b [u8]> {
        if let Step::Union(id) = step {
            let Node::Union(branches) = self.nodes.get(id) else {
                unreachable!("the step was made for a union")
            };
            let Some((index, after)) = split_int(rest) else {
                return self.fail(rest, "a union's index is cut off or too long");
            };
            let Some(branch) = usize::try_from(index).ok().and_then(|index| branches.get(index)) else {
                return self.fail(rest, "a union has no branch of this index");
            };
            // unions do not nest, so this does not count: what it leads to does
            return self.step(self.nodes.step(*branch), after, depth);
        }
        let Some(depth) = depth.checked_sub(1) else { return self.fail(rest, DEEP) };
        match step {
            Step::Record(id) => {
                let steps = self.nodes.record_steps.get(id as usize).map_or(&[][..], |steps| steps);
                for step in steps {
                    rest = self.step(*step, rest, depth)?;
                }
                Some(rest)
            }
            Step::Array(items, empty) => {
                let step = self.nodes.step(items);
                loop {
                    let (count, after) = self.count(rest)?;
                    rest = after;
                    if count == 0 {
                        return Some(rest);
                    }
                    if empty {
                        if let Err(what) = count_empty(&mut self.empty_items, count) {
                            return self.fail(rest, what);
                        }
                        continue;
                    }
                    for _ in 0..count {
                        rest = self.step(step, rest, depth)?;
                    }
                }
            }
            Step::Map(values) => {
                let step = self.nodes.step(values);
                loop {
                    let (count, after) = self.count(rest)?;
                    rest = after;
                    if count == 0 {
                        return Some(rest);
                    }
                    for _ in 0..count {
                        rest = self.step(Step::Text, rest, depth)?;
                        rest = self.step(step, rest, depth)?;
                    }
                }
            }
            _ => unreachable!("only composite steps come here"),
        }
    }

    #[inline]
    fn count<'b>(&mut self, rest: &'b [u8]) -> Option<(usize, &'b [u8])> {
        let mut after = rest;
        match take_count(&mut after) {
            Ok(count) => Some((count, after)),
            Err(what) => {
                self.fail(rest, what);
                None
            }
        }
    }
}
