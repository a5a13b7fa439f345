//! Messages in Avro's encoding, both ways: what announcements, epoch records and letters are made of.
//!
//! Source: Apache Avro 1.12 specification, "Binary Encoding" and "Single-object encoding"
//! (<https://avro.apache.org/docs/1.12.0/specification/>). Written by hand because these records are read by every
//! version of every reader: the field order is the schema's, seen at a glance, and a decoder that allocates by what
//! the bytes hold, not by what they claim to hold.

pub use crate::schema::wire::{put_bytes, put_long};

/// The two bytes with which a single-object encoding starts.
pub const SINGLE_OBJECT: [u8; 2] = [0xc3, 0x01];

/// Why bytes could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub struct Malformed {
    /// What is wrong.
    pub what: &'static str,
    /// Where, from the start of the message.
    pub at: usize,
}

/// An unsigned number: seven bits a byte, lowest first, the top bit set on all but the last.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A union of null and something: the branch's number.
pub fn put_some(out: &mut Vec<u8>, some: bool) {
    out.push(if some { 2 } else { 0 });
}

/// An array as one block and the empty block that ends it.
pub fn put_array<T>(out: &mut Vec<u8>, items: &[T], mut put: impl FnMut(&mut Vec<u8>, &T)) {
    if !items.is_empty() {
        put_long(out, items.len() as i64);
        for item in items {
            put(out, item);
        }
    }
    out.push(0);
}

/// Reads a message from its start, never beyond its end.
#[derive(Clone, Debug)]
pub struct Take<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Take<'a> {
    /// At the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Take<'a> {
        Take { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub fn at(&self) -> usize {
        self.at
    }

    /// An error at this place.
    pub fn malformed(&self, what: &'static str) -> Malformed {
        Malformed { what, at: self.at }
    }

    /// The next `len` bytes.
    pub fn raw(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(len).ok_or(self.malformed("a length beyond any memory"))?;
        let bytes = self.bytes.get(self.at..end).ok_or(self.malformed("the bytes end too early"))?;
        self.at = end;
        Ok(bytes)
    }

    /// A `fixed` of `N` bytes.
    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.raw(N)?;
        Ok(bytes.try_into().expect("raw gives as many bytes as it was asked for"))
    }

    /// An unsigned varint of at most ten bytes.
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.fixed()?;
            if shift == 63 && byte > 1 {
                return Err(self.malformed("a number above 64 bits"));
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.malformed("a number above 64 bits"))
    }

    /// A `long`.
    pub fn long(&mut self) -> Result<i64, Malformed> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// An `int`.
    pub fn int(&mut self) -> Result<i32, Malformed> {
        let value = self.long()?;
        i32::try_from(value).map_err(|_| self.malformed("a number above 32 bits"))
    }

    /// A `long` that counts something.
    pub fn count(&mut self) -> Result<u64, Malformed> {
        let value = self.long()?;
        u64::try_from(value).map_err(|_| self.malformed("a count below zero"))
    }

    /// A `boolean`.
    pub fn boolean(&mut self) -> Result<bool, Malformed> {
        match self.fixed()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [_] => Err(self.malformed("a boolean that is neither 0 nor 1")),
        }
    }

    /// `bytes`.
    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.count()?;
        let len = usize::try_from(len).map_err(|_| self.malformed("a length beyond any memory"))?;
        self.raw(len)
    }

    /// A `string`.
    pub fn string(&mut self) -> Result<&'a str, Malformed> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).map_err(|_| self.malformed("a string that is not UTF-8"))
    }

    /// The branch of a union of null and something.
    pub fn some(&mut self) -> Result<bool, Malformed> {
        match self.long()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed("a union branch that the schema does not have")),
        }
    }

    /// An array, in as many blocks as its writer liked.
    ///
    /// Takes memory as items come, never by the count that a block claims. An item takes at least a byte in every
    /// schema of ours, so a hostile count ends at the end of the bytes.
    pub fn array<T, E: From<Malformed>>(
        &mut self,
        mut take: impl FnMut(&mut Self) -> Result<T, E>,
    ) -> Result<Vec<T>, E> {
        let mut items = Vec::new();
        loop {
            let count = self.long()?;
            if count == 0 {
                return Ok(items);
            }
            if count < 0 {
                self.count()?; // the block's bytes, for who would skip it
            }
            for _ in 0..count.unsigned_abs() {
                items.push(take(self)?);
            }
        }
    }

    /// Refuses bytes after the end of the message.
    pub fn end(&self) -> Result<(), Malformed> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.malformed("bytes after the end")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_and_bytes_come_back(long: i64, varint: u64, bytes: Vec<u8>, some: bool, longs: Vec<i64>) {
            let mut out = Vec::new();
            put_long(&mut out, long);
            put_varint(&mut out, varint);
            put_bytes(&mut out, &bytes);
            put_some(&mut out, some);
            put_array(&mut out, &longs, |out, item| put_long(out, *item));
            let mut take = Take::new(&out);
            prop_assert_eq!(take.long().unwrap(), long);
            prop_assert_eq!(take.varint().unwrap(), varint);
            prop_assert_eq!(take.bytes().unwrap(), &bytes[..]);
            prop_assert_eq!(take.some().unwrap(), some);
            prop_assert_eq!(take.array(Take::long).unwrap(), longs);
            take.end().unwrap();
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Take::new(&bytes).varint();
            let _ = Take::new(&bytes).int();
            let _ = Take::new(&bytes).string();
            let _ = Take::new(&bytes).array(|take| take.string().map(str::len));
        }
    }

    #[test]
    fn avros_own_examples() {
        // "Binary Encoding" in the specification: 0, -1, 1, -2, 2, -64, 64
        for (value, bytes) in [(0, &[0u8][..]), (-1, &[1]), (1, &[2]), (-64, &[0x7f]), (64, &[0x80, 0x01])] {
            let mut out = Vec::new();
            put_long(&mut out, value);
            assert_eq!(out, bytes);
        }
        // a block with its size in bytes before it, as some writers write arrays
        assert_eq!(Take::new(&[3, 4, 6, 54, 0]).array(Take::long).unwrap(), [3, 27]);
    }
}
