//! A text's outline: where the members of an object lie, without making anything of them. For what is around records,
//! and for keys, which no schema describes.

use super::lex::{Lex, NO_VALUE, OBJECT_NEXT, Syntax};
use crate::schema::MAX_DEPTH;

/// From where to where in the text.
pub(in crate::codec) type Place = (usize, usize);

/// What is wrong, and at which byte.
pub(in crate::codec) type Fault = (Syntax, usize);

/// Names and values pass through it; kept from text to text.
pub(in crate::codec) type Scratch = [Vec<u8>; 2];

/// The value at `from`, whitespace before it skipped.
pub(in crate::codec) fn value(text: &[u8], from: usize, scratch: &mut Scratch) -> Result<Place, Fault> {
    let mut lex = Lex { rest: text.get(from..).unwrap_or_default() };
    lex.space();
    let from = text.len() - lex.rest.len();
    let [_, scratch] = scratch;
    match lex.ignore(scratch, MAX_DEPTH) {
        Ok(()) => Ok((from, text.len() - lex.rest.len())),
        Err(syntax) => Err((syntax, text.len() - lex.rest.len())),
    }
}

/// The members of the object that begins at `from`, to `each`: the name, unescaped, and the value's place. Gives the
/// object's end.
pub(in crate::codec) fn members(
    text: &[u8],
    from: usize,
    scratch: &mut Scratch,
    mut each: impl FnMut(&[u8], Place),
) -> Result<usize, Fault> {
    let mut lex = Lex { rest: text.get(from..).unwrap_or_default() };
    let [names, values] = scratch;
    let walked = (|| {
        if !lex.take(b'{') {
            return Err(NO_VALUE);
        }
        lex.space();
        if lex.take(b'}') {
            return Ok(());
        }
        loop {
            if !lex.take(b'"') {
                return Err("no name where an object's next field should be");
            }
            let name = lex.string(names)?;
            lex.space();
            if !lex.take(b':') {
                return Err("no colon behind a name");
            }
            lex.space();
            let from = text.len() - lex.rest.len();
            lex.ignore(values, MAX_DEPTH - 1)?;
            each(name.unwrap_or(names.as_slice()), (from, text.len() - lex.rest.len()));
            lex.space();
            if lex.take(b'}') {
                return Ok(());
            }
            if !lex.take(b',') {
                return Err(OBJECT_NEXT);
            }
            lex.space();
        }
    })();
    let at = text.len() - lex.rest.len();
    walked.map(|()| at).map_err(|syntax| (syntax, at))
}

/// Whether nothing but whitespace is behind `at`.
pub(in crate::codec) fn end(text: &[u8], at: usize) -> Result<(), Fault> {
    let mut lex = Lex { rest: text.get(at..).unwrap_or_default() };
    lex.space();
    match lex.rest.is_empty() {
        true => Ok(()),
        false => Err(("something behind the value", text.len() - lex.rest.len())),
    }
}

/// A value without parts.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::codec) enum Scalar<'t> {
    Text(&'t [u8]),
    Integer(i64),
    Boolean(bool),
    Null,
    /// Something else, in words.
    Other(&'static str),
}

/// The value at a place that [`value`] or [`members`] gave.
pub(in crate::codec) fn scalar<'t>(
    text: &'t [u8],
    (from, to): Place,
    scratch: &'t mut Vec<u8>,
) -> Scalar<'t> {
    let mut lex = Lex { rest: text.get(from..to).unwrap_or_default() };
    match lex.rest.first() {
        Some(b'"') => {
            lex.take(b'"');
            match lex.string(scratch) {
                Ok(Some(plain)) => Scalar::Text(plain),
                Ok(None) => Scalar::Text(scratch),
                Err(_) => Scalar::Other("no string"),
            }
        }
        Some(b't') => Scalar::Boolean(true),
        Some(b'f') => Scalar::Boolean(false),
        Some(b'n') => Scalar::Null,
        Some(b'{') => Scalar::Other("an object"),
        Some(b'[') => Scalar::Other("a list"),
        _ => match lex.number() {
            Ok(number) if number.integral => match number.integer() {
                Some(integer) => Scalar::Integer(integer),
                None => Scalar::Other("an integer of more than 64 bits"),
            },
            _ => Scalar::Other("a number with fraction or exponent"),
        },
    }
}
