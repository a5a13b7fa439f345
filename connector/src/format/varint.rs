//! Avro's integers: zigzag, then base 128, least group first
//! (<https://avro.apache.org/docs/1.12.0/specification/#primitive-types-1>).

/// Why a window does not hold what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It ends too early; more bytes may help.
    Short,
    /// No further byte can help.
    Bad(&'static str),
}

/// Appends `value`.
pub fn put_long(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Appends a length and the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_long(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

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
        let (&first, rest) = self.rest.split_first().ok_or(Fault::Short)?;
        if first < 0x80 {
            self.rest = rest;
            return Ok(i64::from(first >> 1) ^ -i64::from(first & 1));
        }
        self.long_slow()
    }

    fn long_slow(&mut self) -> Result<i64, Fault> {
        let mut value = 0u64;
        for (at, &byte) in self.rest.iter().enumerate().take(10) {
            // The tenth group has room for one bit only; more would be dropped in silence.
            if at == 9 && byte > 1 {
                return Err(Fault::Bad("an integer beyond 64 bits"));
            }
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                self.rest = self.rest.get(at + 1..).ok_or(Fault::Short)?;
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err(if self.rest.len() < 10 { Fault::Short } else { Fault::Bad("an integer beyond 64 bits") })
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
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn longs_read_back(value: i64, tail: Vec<u8>) {
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
    fn the_examples_of_the_specification() {
        for (value, bytes) in [(0, "00"), (-1, "01"), (1, "02"), (-64, "7f"), (64, "8001")] {
            let mut out = Vec::new();
            put_long(&mut out, value);
            assert_eq!(out.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), bytes);
        }
        assert_eq!(Window::new(&[0xff; 11]).long(), Err(Fault::Bad("an integer beyond 64 bits")));
    }
}
