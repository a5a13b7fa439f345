//! The plan carried out: messages to datums. Every byte may be hostile.
//!
//! What bounds it: a field that is noted takes at least two bytes of the message; nesting is counted, of groups that are
//! passed over, too; a datum is at most [`GROWTH`] times as long as its message, and [`ROOM`] more, since defaults are
//! written for what takes no bytes there, and no longer than the dataset takes.

use std::fmt::Write as _;
use std::sync::Arc;

use super::Message;
use super::plan::{self, Absent, How, Item, Number, Plan, Source, Target, UNMAPPED, Value, wire};
use super::reader::Reader;
use crate::codec::room::anew;
use crate::codec::{Bound, Error, Misfit, Stage, key};
use crate::schema::wire::{close_block, put_bytes, put_long};
use crate::schema::{MAX_DEPTH, MAX_EMPTY_ITEMS, Schema};

/// Bytes of a datum for each of its message's.
const GROWTH: usize = 64;
/// Bytes of any datum.
const ROOM: usize = 1 << 20;
/// Longest path in a message about a misfit.
const LONGEST: usize = 256;

/// Reads messages of one type. Keeps its buffers.
#[derive(Debug)]
pub(in crate::codec) struct Protobuf {
    plan: Plan,
    name: Box<str>,
    buffers: Buffers,
}

#[derive(Debug, Default)]
struct Buffers {
    out: Vec<u8>,
    /// A stack: of each message on the way, the fields that it has.
    seen: Vec<Seen>,
    /// A stack: of each map on the way, its entries.
    entries: Vec<Entry>,
    /// A map without the entries that came twice.
    kept: Vec<u8>,
    /// Of a failure: record and field, innermost first.
    trail: Vec<(usize, usize)>,
    text: Vec<u8>,
}

/// A field that a message has.
#[derive(Clone, Copy, Debug)]
struct Seen {
    slot: u32,
    oneof: u32,
    wire: u8,
    /// Where its content lies; of a number, where it begins and what it is.
    from: usize,
    to: usize,
    bits: u64,
}

/// Where an entry lies in what was written of its map.
#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: u64,
    from: usize,
    key: usize,
    to: usize,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// With the bytes.
    Bytes(&'static str),
    Missing,
    Range,
    Symbol,
    /// A fixed of another size.
    Size(usize),
    Deep,
    Empty,
    Large,
}

/// It was left at a failure, which lies at this byte.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stop(pub What, pub usize);

impl Protobuf {
    /// For messages of this type in a dataset of this schema.
    pub fn new(message: &Message, schema: &Arc<Schema>) -> Result<Protobuf, Error> {
        let plan = plan::plan(message, schema)?;
        Ok(Protobuf { plan, name: message.name().into(), buffers: Buffers::default() })
    }

    /// The datum of a message, until the next call. No bytes at all are a message without fields.
    pub fn decode(&mut self, bytes: &[u8], bound: Bound) -> Result<&[u8], Misfit> {
        let Buffers { out, seen, entries, kept, trail, text } = &mut self.buffers;
        for buffer in [out, kept, text] {
            anew(buffer, bytes.len());
        }
        anew(seen, bytes.len());
        anew(entries, bytes.len());
        trail.clear();
        let most = bytes.len().saturating_mul(GROWTH).saturating_add(ROOM).min(bound.most());
        seen.push(Seen { slot: 0, oneof: 0, wire: wire::BYTES, from: 0, to: bytes.len(), bits: 0 });
        let mut run = Run { plan: &self.plan, bytes, buffers: &mut self.buffers, most, empty_items: 0 };
        match run.record(0, (0, 1), MAX_DEPTH) {
            Ok(()) => Ok(&self.buffers.out),
            Err(Stop(What::Large, _)) if self.buffers.out.len() > bound.most() => Err(bound.swollen()),
            Err(Stop(what, at)) => Err(self.misfit(what, at)),
        }
    }

    /// Bytes of its buffers.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        let Buffers { out, seen, entries, kept, .. } = &self.buffers;
        let (seen, entries) = (seen.capacity() * size_of::<Seen>(), entries.capacity() * size_of::<Entry>());
        out.capacity() + seen + entries + kept.capacity()
    }

    #[cold]
    fn misfit(&self, what: What, at: usize) -> Misfit {
        let (class, reason) = match what {
            What::Bytes(reason) => {
                let message = format!("the value is no message of {}: {reason} (byte {at})", self.name);
                return Misfit { stage: Stage::Decode, class: "stillwell.codec.MalformedProtobuf", message };
            }
            What::Missing => {
                ("stillwell.codec.MissingField", "it is not there, and has no default".to_owned())
            }
            What::Range => ("stillwell.codec.OutOfRange", "a number out of its type's range".to_owned()),
            What::Symbol => {
                ("stillwell.codec.UnknownSymbol", "a number that is none of the enum's".to_owned())
            }
            What::Size(size) => {
                ("stillwell.codec.WrongSize", format!("{size} bytes, where a fixed has others"))
            }
            What::Deep => ("stillwell.codec.TooDeep", "nested deeper than 128 levels".to_owned()),
            What::Empty => {
                ("stillwell.codec.TooLarge", "more than 65536 list items that take no bytes".to_owned())
            }
            What::Large => (
                "stillwell.codec.TooLarge",
                format!("with its defaults it has more than {GROWTH} times the bytes of the message"),
            ),
        };
        let mut message = String::new();
        let mut path = String::new();
        for (record, slot) in self.buffers.trail.iter().rev() {
            if path.len() > LONGEST {
                path.push('…');
                break;
            }
            let slot = self.plan.records.get(*record).and_then(|record| record.slots.get(*slot));
            let dot = if path.is_empty() { "" } else { "." };
            let _ = write!(path, "{dot}{}", slot.map_or("", |slot| &slot.name));
        }
        if !path.is_empty() {
            let _ = write!(message, "`{path}`: ");
        }
        let _ = write!(message, "{reason} (byte {at})");
        Misfit { stage: Stage::Validate, class, message }
    }
}

/// One walk over one message.
struct Run<'p> {
    plan: &'p Plan,
    bytes: &'p [u8],
    buffers: &'p mut Buffers,
    /// Most bytes of the datum.
    most: usize,
    empty_items: usize,
}

impl Run<'_> {
    /// Writes the record of a message that lies in these parts of what was seen: a message that comes twice is one that has
    /// the fields of both.
    fn record(&mut self, at: usize, parts: (usize, usize), depth: usize) -> Result<(), Stop> {
        let depth = depth.checked_sub(1).ok_or(Stop(What::Deep, self.place(parts.0)))?;
        self.fields(at, parts, depth)
    }

    /// Where what was seen begins in the message.
    fn place(&self, seen: usize) -> usize {
        self.buffers.seen.get(seen).map_or(0, |seen| seen.from)
    }

    /// Begins a list or a map, which is one block: where its count will stand, and how deep its items may be.
    fn block(&mut self, branch: Option<u32>, from: usize, depth: usize) -> Result<(usize, usize), Stop> {
        let depth = depth.checked_sub(1).ok_or(Stop(What::Deep, self.place(from)))?;
        plan::put_branch(branch, &mut self.buffers.out);
        let start = self.buffers.out.len();
        self.buffers.out.push(0);
        Ok((start, depth))
    }

    fn fields(&mut self, at: usize, (first, last): (usize, usize), depth: usize) -> Result<(), Stop> {
        let plan = self.plan;
        let Some(record) = plan.records.get(at) else {
            unreachable!("records refer to records of their plan")
        };
        let base = self.buffers.seen.len();
        let mut end = 0;
        for part in first..last {
            let Some(part) = self.buffers.seen.get(part).copied() else { continue };
            end = part.to;
            self.scan(&record.numbers, part.from, part.to)?;
        }
        let seen = self.buffers.seen.get_mut(base..).unwrap_or_default();
        for oneof in 0..record.oneofs {
            // The last of its members counts; the others are as if they were not there, and so is what it was itself before
            // another was set.
            let mut members = seen.iter_mut().rev().filter(|seen| seen.oneof == oneof);
            let chosen = members.next().map(|seen| seen.slot);
            let mut stays = true;
            for seen in members {
                stays &= Some(seen.slot) == chosen;
                if !stays {
                    seen.slot = UNMAPPED;
                }
            }
        }
        // Most writers write fields in order, and most datasets have them so.
        if !seen.is_sorted_by_key(|seen| seen.slot) {
            seen.sort_unstable_by_key(|seen| (seen.slot, seen.from));
        }
        let mut next = base;
        for (index, slot) in record.slots.iter().enumerate() {
            let from = next;
            while self.buffers.seen.get(next).is_some_and(|seen| seen.slot as usize == index) {
                next += 1;
            }
            let put = match (&slot.how, &slot.absent) {
                (How::Map(branch, entry), _) if next > from => self.map(*branch, *entry, (from, next), depth),
                (How::List(branch, item, empty), _) if next > from => {
                    self.list(*branch, item, *empty, (from, next), depth)
                }
                (How::One(item), _) if next > from => self.item(item, (from, next), depth),
                (_, Absent::Datum(_, levels)) if *levels > depth => Err(Stop(What::Deep, end)),
                (_, Absent::Datum(datum, _)) => {
                    self.buffers.out.extend_from_slice(datum);
                    Ok(())
                }
                (How::One(item), Absent::Message) => self.item(item, (0, 0), depth),
                _ => Err(Stop(What::Missing, end)),
            };
            if let Err(stop) = put {
                self.buffers.trail.push((at, index));
                return Err(stop);
            }
        }
        self.buffers.seen.truncate(base);
        match self.buffers.out.len() > self.most {
            true => Err(Stop(What::Large, end)),
            false => Ok(()),
        }
    }

    /// Notes the fields of a message that the dataset has; the others are passed over.
    fn scan(&mut self, numbers: &[Number], from: usize, to: usize) -> Result<(), Stop> {
        let mut reader = Reader { bytes: self.bytes.get(..to).unwrap_or_default(), at: from };
        // Fields mostly come in the order of their numbers.
        let mut guess = 0;
        while reader.at < to {
            let (number, wire) = reader.tag()?;
            let known = match numbers.get(guess) {
                Some(known) if known.number == number => Some(guess),
                _ => numbers.binary_search_by_key(&number, |known| known.number).ok(),
            };
            let (from, to, bits) = reader.field(number, wire, MAX_DEPTH)?;
            let Some(known) = known else { continue };
            guess = known + 1;
            if let Some(Number { slot, oneof, .. }) = numbers.get(known) {
                self.buffers.seen.push(Seen { slot: *slot, oneof: *oneof, wire, from, to, bits });
            }
        }
        Ok(())
    }

    /// A value that comes once: of a scalar that comes more often the last counts.
    fn item(&mut self, item: &Item, (from, to): (usize, usize), depth: usize) -> Result<(), Stop> {
        plan::put_branch(item.branch, &mut self.buffers.out);
        match &item.value {
            Value::Message(record, group) => {
                for part in from..to {
                    if let Some(part) = self.buffers.seen.get(part) {
                        let wire = if *group { wire::GROUP } else { wire::BYTES };
                        check(part, wire)?;
                    }
                }
                self.record(*record, (from, to), depth)
            }
            Value::Wrapped(inner, zero) => match self.inner((from, to), 1)? {
                Some(found) => self.scalar(inner, &found),
                None => {
                    self.buffers.out.extend_from_slice(zero);
                    Ok(())
                }
            },
            Value::Time(parts) => self.time(*parts, (from, to)),
            value => match to.checked_sub(1).and_then(|last| self.buffers.seen.get(last)).copied() {
                Some(last) => self.scalar(value, &last),
                None => Err(Stop(What::Missing, self.bytes.len())),
            },
        }
    }

    fn list(
        &mut self,
        branch: Option<u32>,
        item: &Item,
        empty: bool,
        (from, to): (usize, usize),
        depth: usize,
    ) -> Result<(), Stop> {
        let (start, depth) = self.block(branch, from, depth)?;
        let mut count = 0;
        for at in from..to {
            let Some(seen) = self.buffers.seen.get(at).copied() else { continue };
            let wire = item.value.wire();
            // Numbers may lie packed, whether or not they are declared so.
            if seen.wire == wire::BYTES && wire != wire::BYTES && wire != wire::GROUP {
                let mut reader =
                    Reader { bytes: self.bytes.get(..seen.to).unwrap_or_default(), at: seen.from };
                while reader.at < seen.to {
                    let (from, to, bits) = reader.field(0, wire, 0)?;
                    plan::put_branch(item.branch, &mut self.buffers.out);
                    self.scalar(&item.value, &Seen { wire, from, to, bits, ..seen })?;
                    count += 1;
                    // A byte may be a name of any length.
                    if self.buffers.out.len() > self.most {
                        return Err(Stop(What::Large, to));
                    }
                }
                continue;
            }
            self.item(item, (at, at + 1), depth)?;
            count += 1;
            if self.buffers.out.len() > self.most {
                return Err(Stop(What::Large, seen.to));
            }
        }
        if empty {
            self.empty_items += count;
            if self.empty_items > MAX_EMPTY_ITEMS {
                return Err(Stop(What::Empty, self.place(from)));
            }
        }
        close_block(&mut self.buffers.out, start, count);
        Ok(())
    }

    fn map(
        &mut self,
        branch: Option<u32>,
        entry: usize,
        (from, to): (usize, usize),
        depth: usize,
    ) -> Result<(), Stop> {
        let (start, depth) = self.block(branch, from, depth)?;
        let base = self.buffers.entries.len();
        for at in from..to {
            if let Some(seen) = self.buffers.seen.get(at) {
                check(seen, wire::BYTES)?;
            }
            let from = self.buffers.out.len() - start;
            self.fields(entry, (at, at + 1), depth)?;
            let Buffers { out, entries, .. } = &mut *self.buffers;
            let written = out.get(start + from..).unwrap_or_default();
            let mut rest = written;
            let key = crate::schema::wire::take_bytes(&mut rest).unwrap_or_default();
            let key_length = written.len() - rest.len();
            let hash = xxhash_rust::xxh3::xxh3_64(key);
            entries.push(Entry { hash, from, key: from + key_length, to: from + written.len() });
        }
        let Buffers { out, entries, kept, .. } = &mut *self.buffers;
        let written = out.get(start..).unwrap_or_default();
        let own = entries.get_mut(base..).unwrap_or_default();
        let key = |entry: &Entry| written.get(entry.from..entry.key);
        own.sort_unstable_by(|one, two| (one.hash, key(one), one.from).cmp(&(two.hash, key(two), two.from)));
        let mut count = own.len();
        let is_last = |pair: &[Entry]| match pair {
            [one, two] => key(one) != key(two),
            _ => true,
        };
        if own.windows(2).any(|pair| !is_last(pair)) {
            // Of a key that comes twice the last entry counts.
            kept.clear();
            count = 0;
            for at in 0..own.len() {
                let pair = own.get(at..own.len().min(at + 2)).unwrap_or_default();
                if is_last(pair)
                    && let Some(entry) = pair.first()
                {
                    kept.extend_from_slice(written.get(entry.from..entry.to).unwrap_or_default());
                    count += 1;
                }
            }
            out.truncate(start + 1);
            out.extend_from_slice(kept);
        }
        entries.truncate(base);
        close_block(out, start, count);
        Ok(())
    }

    fn scalar(&mut self, value: &Value, seen: &Seen) -> Result<(), Stop> {
        check(seen, value.wire())?;
        let content = self.bytes.get(seen.from..seen.to).unwrap_or_default();
        let out = &mut self.buffers.out;
        match value {
            Value::Integer(Source::Uint64 | Source::Fixed64, Target::Float) => {
                out.extend_from_slice(&(seen.bits as f32).to_le_bytes());
            }
            Value::Integer(Source::Uint64 | Source::Fixed64, Target::Double) => {
                out.extend_from_slice(&(seen.bits as f64).to_le_bytes());
            }
            Value::Integer(source, target) => {
                let integer = source.integer(seen.bits).ok_or(Stop(What::Range, seen.from))?;
                match target {
                    Target::Int if i32::try_from(integer).is_err() => {
                        return Err(Stop(What::Range, seen.from));
                    }
                    Target::Int | Target::Long => put_long(out, integer),
                    Target::Float => out.extend_from_slice(&(integer as f32).to_le_bytes()),
                    Target::Double => out.extend_from_slice(&(integer as f64).to_le_bytes()),
                }
            }
            Value::Float(_) => out.extend_from_slice(&(seen.bits as u32).to_le_bytes()),
            Value::Double(true) => out.extend_from_slice(&seen.bits.to_le_bytes()),
            Value::Double(false) => {
                out.extend_from_slice(&f64::from(f32::from_bits(seen.bits as u32)).to_le_bytes());
            }
            Value::Boolean => out.push(u8::from(seen.bits != 0)),
            Value::Text => match std::str::from_utf8(content) {
                Ok(text) => put_bytes(out, text.as_bytes()),
                Err(error) => {
                    return Err(Stop(What::Bytes("a string is not UTF-8"), seen.from + error.valid_up_to()));
                }
            },
            Value::Bytes => put_bytes(out, content),
            Value::Fixed(size) if content.len() == *size => out.extend_from_slice(content),
            Value::Fixed(_) => return Err(Stop(What::Size(content.len()), seen.from)),
            Value::Enum(known, default) => {
                let found = known.binary_search_by_key(&(seen.bits as i32), |(number, _)| *number).ok();
                let found = found.and_then(|at| known.get(at)).map(|(_, index)| *index);
                put_long(out, found.or(default.map(i64::from)).ok_or(Stop(What::Symbol, seen.from))?);
            }
            Value::Named(names) => {
                let found = names.binary_search_by_key(&(seen.bits as i32), |(number, _)| *number).ok();
                let (_, name) = found.and_then(|at| names.get(at)).ok_or(Stop(What::Symbol, seen.from))?;
                put_bytes(out, name.as_bytes());
            }
            Value::Spelled(source) => {
                let integer = |bits| source.integer(bits).ok_or(Stop(What::Range, seen.from));
                let text = &mut self.buffers.text;
                text.clear();
                match source {
                    Source::Bool => text.extend_from_slice(if seen.bits == 0 { b"false" } else { b"true" }),
                    Source::Uint64 | Source::Fixed64 if seen.bits > i64::MAX as u64 => {
                        // Written so rarely that it may be made twice.
                        text.extend_from_slice(seen.bits.to_string().as_bytes());
                    }
                    _ => key::append_integer(integer(seen.bits)?, text),
                }
                put_bytes(out, text);
            }
            Value::Message(..) | Value::Wrapped(..) | Value::Time(_) => {
                unreachable!("messages are written as items, since they may come in parts")
            }
        }
        Ok(())
    }

    /// A timestamp, in so many parts of a second.
    fn time(&mut self, parts: i64, places: (usize, usize)) -> Result<(), Stop> {
        let at = self.place(places.0);
        let range = || Stop(What::Range, at);
        let seconds = self.inner(places, 1)?.map_or(Ok(0), |seen| number(&seen))? as i64;
        let nanos = i64::from(self.inner(places, 2)?.map_or(Ok(0), |seen| number(&seen))? as i32);
        if !(0..1_000_000_000).contains(&nanos) {
            return Err(range());
        }
        let whole = seconds.checked_mul(parts).ok_or_else(range)?;
        let time = whole.checked_add(nanos / (1_000_000_000 / parts)).ok_or_else(range)?;
        put_long(&mut self.buffers.out, time);
        Ok(())
    }

    /// The last field of this number in a message that is one of the well-known, which lies in these parts of what was seen.
    fn inner(&self, (first, last): (usize, usize), wanted: u32) -> Result<Option<Seen>, Stop> {
        let mut found = None;
        for part in first..last {
            let Some(seen) = self.buffers.seen.get(part) else { continue };
            check(seen, wire::BYTES)?;
            let mut reader = Reader { bytes: self.bytes.get(..seen.to).unwrap_or_default(), at: seen.from };
            while reader.at < seen.to {
                let (number, wire) = reader.tag()?;
                let (from, to, bits) = reader.field(number, wire, MAX_DEPTH)?;
                if number == wanted {
                    found = Some(Seen { wire, from, to, bits, ..*seen });
                }
            }
        }
        Ok(found)
    }
}

/// Another type on the wire means another field: a writer has changed it, and what it says now is not known.
fn check(seen: &Seen, wire: u8) -> Result<(), Stop> {
    match seen.wire == wire {
        true => Ok(()),
        false => {
            Err(Stop(What::Bytes("a field is of another type on the wire than the schema says"), seen.from))
        }
    }
}

fn number(seen: &Seen) -> Result<u64, Stop> {
    check(seen, wire::VARINT).map(|()| seen.bits)
}
