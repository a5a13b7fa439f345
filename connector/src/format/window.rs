//! Bytes read from the front, where it matters why they do not suffice: Avro's encoding of integers and bytes
//! (`schema/wire`), and whether more bytes could help.

use crate::schema::wire::take_long;

/// Why a window does not hold what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It ends too early; more bytes may help.
    Short,
    /// No further byte can help.
    Bad(&'static str),
}

/// Longest encoding of a `long`.
const LONGEST: usize = 10;

/// A window that is read from the front.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    rest: &'a [u8],
}

impl<'a> Window<'a> {
    /// Over `bytes`, from their beginning.
    pub fn new(bytes: &'a [u8]) -> Window<'a> {
        Window { rest: bytes }
    }

    /// What has not been read.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `long` (or `int`).
    #[inline]
    pub fn long(&mut self) -> Result<i64, Fault> {
        match take_long(&mut self.rest) {
            Some(value) => Ok(value),
            None if self.rest.len() < LONGEST && self.rest.iter().all(|byte| *byte >= 0x80) => {
                Err(Fault::Short)
            }
            None => Err(Fault::Bad("an integer beyond 64 bits")),
        }
    }

    /// The next `count` bytes.
    #[inline]
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Fault::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    /// A length, then as many bytes.
    #[inline]
    pub fn bytes(&mut self) -> Result<&'a [u8], Fault> {
        let length = self.long()?;
        let length = usize::try_from(length).map_err(|_| Fault::Bad("a negative length"))?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::schema::wire::put_long;

    proptest! {
        #[test]
        fn a_cut_integer_is_short_and_a_whole_one_reads_back(value: i64, tail: Vec<u8>) {
            let mut bytes = Vec::new();
            put_long(&mut bytes, value);
            for cut in 0..bytes.len() {
                prop_assert_eq!(Window::new(&bytes[..cut]).long(), Err(Fault::Short));
            }
            bytes.extend_from_slice(&tail);
            let mut window = Window::new(&bytes);
            prop_assert_eq!(window.long(), Ok(value));
            prop_assert_eq!(window.rest(), &tail[..]);
        }

        #[test]
        fn any_bytes_are_a_value_or_a_fault(bytes: Vec<u8>) {
            let _ = Window::new(&bytes).long();
            let _ = Window::new(&bytes).bytes();
        }
    }

    #[test]
    fn what_no_byte_can_mend_is_bad() {
        assert_eq!(Window::new(&[0xff; 11]).long(), Err(Fault::Bad("an integer beyond 64 bits")));
        assert_eq!(Window::new(&[1, 2, 3]).bytes(), Err(Fault::Bad("a negative length")));
    }
}
