//! From a datum to levels and values.

use std::ops::Range;

use uuid::Uuid;

use crate::schema::skip::{count_empty, take_count};
use crate::schema::wire::{take_bytes, take_int, take_long};
use crate::schema::{Logical, Malformed};

use super::{BESIDE, Column, Columns, Kind, Shape, Tree, Values};

/// Why a datum is no row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its bytes are no datum of the schema.
    #[error("it is no datum of the schema")]
    Malformed(#[source] Malformed),
    /// A value that its logical type cannot be, which Avro does not mind and Parquet's readers do.
    #[error("{path}: {problem}")]
    Value {
        /// The field, by the names that lead to it.
        path: String,
        /// What it is.
        problem: &'static str,
    },
}

/// What stops the walk: bytes that are none, or a column's value that cannot be.
enum Stop {
    Bytes(&'static str),
    Value(usize, &'static str),
}

impl From<&'static str> for Stop {
    fn from(what: &'static str) -> Stop {
        Stop::Bytes(what)
    }
}

impl Columns {
    /// Adds a row. After an error the rows are not to be used.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn row(&mut self, datum: &[u8]) -> Result<(), Refused> {
        let Columns { fields, columns, rows, bytes } = self;
        let mut walk = Walk { columns, rest: datum, bytes: 0, empty_items: 0 };
        let root = Level { repetition: 0, definition: 0, lists: 0 };
        let done = fields.iter().try_for_each(|field| walk.tree(field, root));
        *bytes += walk.bytes;
        *rows += 1;
        let at = datum.len() - walk.rest.len();
        let malformed = |what| Refused::Malformed(Malformed { at, what });
        match done {
            Ok(()) if walk.rest.is_empty() => Ok(()),
            Ok(()) => Err(malformed("bytes behind the value")),
            Err(Stop::Bytes(what)) => Err(malformed(what)),
            Err(Stop::Value(column, problem)) => {
                let path = columns.get(column).map(|column| column.path.clone()).unwrap_or_default();
                Err(Refused::Value { path, problem })
            }
        }
    }
}

/// Where a value stands.
#[derive(Clone, Copy)]
struct Level {
    repetition: i16,
    /// How many of the optional and repeated fields that lead here are there.
    definition: i16,
    /// How many lists and maps lead here.
    lists: i16,
}

impl Level {
    fn defined(self) -> Level {
        Level { definition: self.definition + 1, ..self }
    }
}

struct Walk<'a, 'b> {
    columns: &'a mut Vec<Column>,
    rest: &'b [u8],
    bytes: usize,
    empty_items: usize,
}

impl Walk<'_, '_> {
    fn tree(&mut self, tree: &Tree, level: Level) -> Result<(), Stop> {
        self.shape(&tree.shape, &tree.columns, level)
    }

    fn shape(&mut self, shape: &Shape, columns: &Range<usize>, level: Level) -> Result<(), Stop> {
        match shape {
            Shape::Leaf(column) => self.leaf(*column, level),
            Shape::Record(fields) => fields.iter().try_for_each(|field| self.tree(field, level)),
            Shape::List(element, weightless) => {
                self.items(columns, level, *weightless, |walk, level| walk.tree(element, level))
            }
            Shape::Map(pair) => self.items(columns, level, false, |walk, level| {
                pair.iter().try_for_each(|part| walk.tree(part, level))
            }),
            Shape::Maybe(nulls, inner) => {
                let branch = self.branch()?;
                match nulls.get(branch).ok_or("a union has no branch of this index")? {
                    true => {
                        self.absent(columns, level);
                        Ok(())
                    }
                    false if nulls.contains(&true) => self.shape(inner, columns, level.defined()),
                    false => self.shape(inner, columns, level),
                }
            }
            Shape::Choice(of, members) => {
                let branch = self.branch()?;
                let chosen = *of.get(branch).ok_or("a union has no branch of this index")?;
                let Some(chosen) = chosen else {
                    self.absent(columns, level);
                    return Ok(());
                };
                let level = if of.contains(&None) { level.defined() } else { level };
                for (number, member) in members.iter().enumerate() {
                    match number == chosen {
                        true => self.tree(member, level.defined())?,
                        false => self.absent(&member.columns, level),
                    }
                }
                Ok(())
            }
        }
    }

    fn items(
        &mut self,
        columns: &Range<usize>,
        level: Level,
        weightless: bool,
        mut item: impl FnMut(&mut Self, Level) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let lists = level.lists + 1;
        let mut next = Level { lists, ..level.defined() };
        let mut none = true;
        loop {
            let count = take_count(&mut self.rest)?;
            if count == 0 {
                break;
            }
            if weightless {
                count_empty(&mut self.empty_items, count)?;
            }
            for _ in 0..count {
                item(self, next)?;
                (none, next.repetition) = (false, lists);
            }
        }
        if none {
            self.absent(columns, level);
        }
        Ok(())
    }

    fn branch(&mut self) -> Result<usize, Stop> {
        let index = take_int(&mut self.rest).ok_or("a union's index is cut off or too long")?;
        Ok(usize::try_from(index).map_err(|_| "a union has no branch of this index")?)
    }

    /// Nothing is there from here on.
    fn absent(&mut self, columns: &Range<usize>, level: Level) {
        for column in self.columns.get_mut(columns.clone()).unwrap_or_default() {
            column.definitions.push(level.definition);
            column.repetitions.push(level.repetition);
            self.bytes += 4;
        }
    }

    fn leaf(&mut self, number: usize, level: Level) -> Result<(), Stop> {
        let column = self.columns.get_mut(number).expect("a leaf's column was made with it");
        column.definitions.push(level.definition);
        column.repetitions.push(level.repetition);
        self.bytes += 4;
        let rest = &mut self.rest;
        let refused = |problem| Stop::Value(number, problem);
        match (&mut column.values, column.kind) {
            (_, Kind::Null) => {}
            (Values::Boolean(values), _) => {
                let (byte, after) = rest.split_first().ok_or("the value ends before a boolean")?;
                values.push(match byte {
                    0 => false,
                    1 => true,
                    _ => return Err("a boolean is neither 0 nor 1".into()),
                });
                (*rest, self.bytes) = (after, self.bytes + 1);
            }
            (Values::Int(values), _) => {
                values.push(take_int(rest).ok_or("an int is cut off or has more than 32 bits")?);
                self.bytes += 4;
            }
            (Values::Long(values), _) => {
                values.push(take_long(rest).ok_or("a long is cut off or has more than 64 bits")?);
                self.bytes += 8;
            }
            (Values::Float(values), _) => {
                values.push(f32::from_le_bytes(*chunk(rest)?));
                self.bytes += 4;
            }
            (Values::Double(values), _) => {
                values.push(f64::from_le_bytes(*chunk(rest)?));
                self.bytes += 8;
            }
            (Values::Bytes(all, ends), kind) => {
                let before = all.len();
                let bytes = match column.size {
                    Some(size) => {
                        let (bytes, after) =
                            rest.split_at_checked(size).ok_or("the value ends within a fixed")?;
                        *rest = after;
                        bytes
                    }
                    None if kind == Kind::Enum => {
                        let index = take_int(rest).ok_or("an enum's index is cut off or too long")?;
                        let index = usize::try_from(index).ok();
                        let symbol = index.and_then(|index| column.symbols.get(index));
                        symbol.ok_or("an enum has no symbol of this index")?.as_bytes()
                    }
                    None => take_bytes(rest).ok_or("a length is negative or beyond the end")?,
                };
                match kind {
                    Kind::Text => {
                        let text = std::str::from_utf8(bytes).map_err(|_| "a string is not UTF-8")?;
                        all.extend_from_slice(text.as_bytes());
                    }
                    Kind::Logical(Logical::Uuid) if column.size.is_none() => {
                        let uuid =
                            std::str::from_utf8(bytes).ok().and_then(|text| Uuid::parse_str(text).ok());
                        let uuid =
                            uuid.ok_or_else(|| refused("it is called a uuid, and the text is none"))?;
                        all.extend_from_slice(uuid.as_bytes());
                    }
                    Kind::Decimal(_, width) => {
                        let problem = "the decimal has more digits than its type says";
                        put_decimal(all, bytes, width).ok_or_else(|| refused(problem))?;
                    }
                    _ => all.extend_from_slice(bytes),
                }
                ends.push(all.len());
                self.bytes += all.len() - before + BESIDE;
            }
        }
        Ok(())
    }
}

fn chunk<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [u8; N], Stop> {
    let (chunk, after) = rest.split_first_chunk().ok_or("the value ends within a number")?;
    *rest = after;
    Ok(chunk)
}

/// Appends a whole number in two's complement, most significant byte first, as one of `width` bytes. `None`: it needs more.
fn put_decimal(out: &mut Vec<u8>, bytes: &[u8], width: usize) -> Option<()> {
    // No bytes at all are no number to some; to those that take them, zero.
    let sign = if bytes.first().is_some_and(|first| *first >= 0x80) { 0xff } else { 0 };
    let (more, number) = bytes.split_at(bytes.len().saturating_sub(width));
    let fits = more.iter().all(|byte| *byte == sign)
        && (more.is_empty() || number.first().is_some_and(|first| (*first >= 0x80) == (sign == 0xff)));
    if !fits {
        return None;
    }
    out.resize(out.len() + width - number.len(), sign);
    out.extend_from_slice(number);
    Some(())
}
