//! The length of a datum, found without decoding it.
//!
//! Bytes may be hostile. What bounds the walk: each step takes at least one byte, save items that take none, which
//! are counted against [`MAX_EMPTY_ITEMS`] and not visited; nesting is counted against [`MAX_DEPTH`].

use super::node::{Nodes, Step};
use super::wire::{take_bytes, take_int, take_long};
use super::{MAX_DEPTH, MAX_EMPTY_ITEMS, Malformed};
use crate::schema::{Id, Node};

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
    let mut walk = Walk::<UTF8> { nodes, rest, empty_items: *empty_items };
    let result = walk.step(nodes.step(id), depth);
    *empty_items = walk.empty_items;
    *rest = walk.rest;
    result
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

struct Walk<'s, 'b, const UTF8: bool> {
    nodes: &'s Nodes,
    rest: &'b [u8],
    empty_items: usize,
}

impl<const UTF8: bool> Walk<'_, '_, UTF8> {
    #[inline]
    fn step(&mut self, step: Step, depth: usize) -> Result<(), &'static str> {
        match step {
            Step::Const(length) => {
                self.rest = self.rest.get(length as usize..).ok_or("the value ends too early")?;
            }
            Step::Boolean => {
                let (&byte, rest) = self.rest.split_first().ok_or("the value ends before a boolean")?;
                if byte > 1 {
                    return Err("a boolean is neither 0 nor 1");
                }
                self.rest = rest;
            }
            Step::Int => {
                take_int(&mut self.rest).ok_or("an int is cut off or has more than 32 bits")?;
            }
            Step::Long => {
                take_long(&mut self.rest).ok_or("a long is cut off or has more than 64 bits")?;
            }
            Step::Bytes => {
                take_bytes(&mut self.rest).ok_or("the length of bytes is negative or beyond the end")?;
            }
            Step::Text => {
                let bytes = take_bytes(&mut self.rest)
                    .ok_or("the length of a string is negative or beyond the end")?;
                if UTF8 && std::str::from_utf8(bytes).is_err() {
                    return Err("a string is not UTF-8");
                }
            }
            Step::Enum(symbols) => {
                let index = take_int(&mut self.rest).ok_or("an enum's index is cut off or too long")?;
                if !u32::try_from(index).is_ok_and(|index| index < symbols) {
                    return Err("an enum has no symbol of this index");
                }
            }
            Step::Record(_) | Step::Array(..) | Step::Map(_) | Step::Union(_) => {
                return self.composite(step, depth);
            }
        }
        Ok(())
    }

    fn composite(&mut self, step: Step, depth: usize) -> Result<(), &'static str> {
        match step {
            Step::Record(id) => {
                let depth = depth.checked_sub(1).ok_or(DEEP)?;
                let nodes = self.nodes;
                for step in nodes.record_steps.get(id as usize).into_iter().flatten() {
                    self.step(*step, depth)?;
                }
            }
            Step::Array(items, empty) => {
                let depth = depth.checked_sub(1).ok_or(DEEP)?;
                let step = self.nodes.step(items);
                loop {
                    let count = take_count(&mut self.rest)?;
                    if count == 0 {
                        break;
                    }
                    if empty {
                        count_empty(&mut self.empty_items, count)?;
                        continue;
                    }
                    for _ in 0..count {
                        self.step(step, depth)?;
                    }
                }
            }
            Step::Map(values) => {
                let depth = depth.checked_sub(1).ok_or(DEEP)?;
                let step = self.nodes.step(values);
                loop {
                    let count = take_count(&mut self.rest)?;
                    if count == 0 {
                        break;
                    }
                    for _ in 0..count {
                        self.step(Step::Text, depth)?;
                        self.step(step, depth)?;
                    }
                }
            }
            Step::Union(id) => {
                let Node::Union(branches) = self.nodes.get(id) else {
                    unreachable!("the step was made for a union");
                };
                let mut rest = self.rest;
                let index = take_int(&mut rest).ok_or("a union's index is cut off or too long")?;
                let branch = usize::try_from(index).ok().and_then(|index| branches.get(index));
                let branch = *branch.ok_or("a union has no branch of this index")?;
                self.rest = rest;
                // unions do not nest, so this does not count: what it leads to does
                return self.step(self.nodes.step(branch), depth);
            }
            _ => unreachable!("only composite steps come here"),
        }
        Ok(())
    }
}
