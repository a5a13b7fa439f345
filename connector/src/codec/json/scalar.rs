//! Values without parts: each is taken off the text and appended to the datum.

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::fail::{Stop, What};
use super::number::Number;
use super::{Buffers, Pass};
use crate::schema::wire::put_long;
use crate::schema::{Id, Node};

/// Standard alphabet; padding as it pleases the sender.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl<'t> Pass<'_, 't> {
    /// Takes a string for a value of `id`; `None`: it is in `buffers.text`.
    #[inline]
    pub(super) fn string(&mut self, id: Id) -> Result<Option<&'t [u8]>, Stop> {
        if !self.lex.take(b'"') {
            return self.wrong(id);
        }
        self.quoted()
    }

    /// Takes the rest of a string.
    #[inline]
    pub(super) fn quoted(&mut self) -> Result<Option<&'t [u8]>, Stop> {
        match self.lex.string(&mut self.buffers.text) {
            Ok(text) => Ok(text),
            Err(syntax) => self.stop(What::Syntax(syntax)),
        }
    }

    pub(super) fn number(&mut self, id: Id) -> Result<Number<'t>, Stop> {
        if !matches!(self.lex.rest.first(), Some(b'-' | b'0'..=b'9')) {
            return self.wrong(id);
        }
        match self.lex.number() {
            Ok(number) => Ok(number),
            Err(syntax) => self.stop(What::Syntax(syntax)),
        }
    }

    #[inline]
    pub(super) fn integer(&mut self, id: Id) -> Result<i64, Stop> {
        match self.lex.short_integer() {
            Some(value) => Ok(value),
            None => self.long_integer(id),
        }
    }

    #[cold]
    fn long_integer(&mut self, id: Id) -> Result<i64, Stop> {
        let left = self.lex.rest.len();
        let number = self.number(id)?;
        if !number.integral {
            return self.stop_at(What::Fraction(id), left);
        }
        match number.integer() {
            Some(value) => Ok(value),
            None => self.stop_at(What::Range(id), left),
        }
    }

    #[inline]
    pub(super) fn long(&mut self, id: Id) -> Result<(), Stop> {
        let value = self.integer(id)?;
        put_long(&mut self.buffers.out, value);
        Ok(())
    }

    #[inline]
    pub(super) fn int(&mut self, id: Id) -> Result<(), Stop> {
        let left = self.lex.rest.len();
        let value = self.integer(id)?;
        if i32::try_from(value).is_err() {
            return self.stop_at(What::Range(id), left);
        }
        put_long(&mut self.buffers.out, value);
        Ok(())
    }

    #[inline]
    pub(super) fn double(&mut self, id: Id) -> Result<(), Stop> {
        let value = match self.lex.short_double() {
            Some(value) => value,
            None => self.long_double(id)?,
        };
        self.buffers.out.extend_from_slice(&value.to_le_bytes());
        Ok(())
    }

    #[inline(never)]
    fn long_double(&mut self, id: Id) -> Result<f64, Stop> {
        let left = self.lex.rest.len();
        match self.lex.rest.first() {
            Some(b'"') => self.not_finite(id),
            _ => match self.number(id)?.double() {
                Some(value) => Ok(value),
                None => self.stop_at(What::Range(id), left),
            },
        }
    }

    pub(super) fn float(&mut self, id: Id) -> Result<(), Stop> {
        let left = self.lex.rest.len();
        let value = match self.lex.rest.first() {
            Some(b'"') => self.not_finite(id)? as f32,
            _ => match self.number(id)?.float() {
                Some(value) => value,
                None => return self.stop_at(What::Range(id), left),
            },
        };
        self.buffers.out.extend_from_slice(&value.to_le_bytes());
        Ok(())
    }

    /// The words for doubles that JSON has no numbers for.
    fn not_finite(&mut self, id: Id) -> Result<f64, Stop> {
        let left = self.lex.rest.len();
        Ok(match self.string(id)? {
            Some(b"NaN") => f64::NAN,
            Some(b"Infinity") => f64::INFINITY,
            Some(b"-Infinity") => f64::NEG_INFINITY,
            _ => return self.stop_at(What::Type(id), left),
        })
    }

    pub(super) fn symbol(&mut self, id: Id) -> Result<(), Stop> {
        let left = self.lex.rest.len();
        let text = self.string(id)?.unwrap_or(&self.buffers.text);
        let Node::Enum(symbols) = self.nodes.get(id) else { unreachable!("called for an enum") };
        match symbols.symbol(text) {
            Some(index) => put_long(&mut self.buffers.out, index.into()),
            None => return self.stop_at(What::Symbol(id), left),
        }
        Ok(())
    }

    /// Bytes (`size`: none) or a fixed.
    pub(super) fn base64(&mut self, id: Id, size: Option<usize>) -> Result<(), Stop> {
        let left = self.lex.rest.len();
        let plain = self.string(id)?;
        let Buffers { out, text, .. } = &mut *self.buffers;
        let text = plain.unwrap_or(text);
        let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
        // four characters are three bytes; of an impossible remainder, decoding complains
        let length = (text.len() - padding) / 4 * 3 + ((text.len() - padding) % 4).saturating_sub(1);
        if let Some(size) = size
            && size != length
        {
            return self.stop_at(What::Size(id, length), left);
        }
        if size.is_none() {
            put_long(out, length as i64);
        }
        let start = out.len();
        out.resize(start + length, 0);
        let room = out.get_mut(start..).unwrap_or_default();
        match BASE64.decode_slice(text, room) {
            Ok(written) if written == length => Ok(()),
            _ => self.stop_at(What::Base64(id), left),
        }
    }
}
