//! JSON's numbers: short ways for the common ones, and one way for all.

use super::lex::{Lex, Syntax};

/// A number's token, taken apart but not yet made a number, since its type is the schema's business.
pub(super) struct Number<'t> {
    text: &'t [u8],
    negative: bool,
    /// All digits as one integer, if `exact`.
    mantissa: u64,
    exact: bool,
    /// Power of ten that the mantissa is times.
    exponent: i32,
    /// Written without fraction and exponent.
    pub integral: bool,
}

/// Powers of ten that a double holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];

impl Number<'_> {
    /// The integer; `None` where it has more than 64 bits. Only for one that is [`Number::integral`].
    #[inline]
    pub fn integer(&self) -> Option<i64> {
        if !self.exact {
            return None;
        }
        if self.negative {
            0i64.checked_sub_unsigned(self.mantissa)
        } else {
            i64::try_from(self.mantissa).ok()
        }
    }

    /// The double nearest to the number; `None` where it is beyond the largest.
    #[inline]
    pub fn double(&self) -> Option<f64> {
        // Mantissa and power are both exact, so that one operation rounds once (Clinger, 1990).
        if self.exact
            && self.mantissa <= 1 << 53
            && let Some(power) = POWERS.get(self.exponent.unsigned_abs() as usize)
        {
            let mantissa = self.mantissa as f64;
            let value = if self.exponent < 0 { mantissa / power } else { mantissa * power };
            return Some(if self.negative { -value } else { value });
        }
        self.parse().filter(|value: &f64| value.is_finite())
    }

    /// The float nearest to the number, not by way of the double, which would round twice.
    pub fn float(&self) -> Option<f32> {
        // as above; the largest power of ten that a float holds exactly is the tenth
        if self.exact
            && self.mantissa <= 1 << 24
            && self.exponent.unsigned_abs() <= 10
            && let Some(power) = POWERS.get(self.exponent.unsigned_abs() as usize)
        {
            let (mantissa, power) = (self.mantissa as f32, *power as f32);
            let value = if self.exponent < 0 { mantissa / power } else { mantissa * power };
            return Some(if self.negative { -value } else { value });
        }
        self.parse().filter(|value: &f32| value.is_finite())
    }

    fn parse<T: std::str::FromStr>(&self) -> Option<T> {
        std::str::from_utf8(self.text).ok()?.parse().ok()
    }
}

impl<'t> Lex<'t> {
    /// Takes an integer of at most 18 digits, if that is all there is to the number; else takes nothing: the number may
    /// be longer, have a fraction, or be none.
    #[inline]
    pub fn short_integer(&mut self) -> Option<i64> {
        let mut rest = self.rest;
        let negative = match rest.split_first() {
            Some((b'-', tail)) => {
                rest = tail;
                true
            }
            _ => false,
        };
        let zero = rest.first() == Some(&b'0');
        let mut value = 0;
        let count = digits(&mut rest, &mut value);
        if count == 0 || count > 18 || (zero && count > 1) || matches!(rest.first(), Some(b'.' | b'e' | b'E'))
        {
            return None;
        }
        self.rest = rest;
        let value = value as i64;
        Some(if negative { -value } else { value })
    }

    /// Takes a number of at most 15 digits without exponent, if that is all there is to it; else takes nothing. Mantissa
    /// and power of ten are both exact as doubles, so that one division rounds once (Clinger, 1990).
    #[inline]
    pub fn short_double(&mut self) -> Option<f64> {
        let mut rest = self.rest;
        let negative = rest.first() == Some(&b'-');
        if negative {
            rest = rest.get(1..)?;
        }
        let zero = rest.first() == Some(&b'0');
        let mut mantissa = 0;
        let whole = digits(&mut rest, &mut mantissa);
        if whole == 0 || (zero && whole > 1) {
            return None;
        }
        let mut fraction = 0;
        if let [b'.', tail @ ..] = rest {
            rest = tail;
            fraction = digits(&mut rest, &mut mantissa);
            if fraction == 0 {
                return None;
            }
        }
        if whole + fraction > 15 || matches!(rest.first(), Some(b'e' | b'E')) {
            return None;
        }
        self.rest = rest;
        let value = mantissa as f64 / POWERS.get(fraction)?;
        Some(if negative { -value } else { value })
    }

    /// Takes a number.
    #[inline]
    pub fn number(&mut self) -> Result<Number<'t>, Syntax> {
        let start = self.rest;
        let mut rest = start;
        let negative = match rest.split_first() {
            Some((b'-', tail)) => {
                rest = tail;
                true
            }
            _ => false,
        };
        let mut number =
            Number { text: start, negative, mantissa: 0, exact: true, exponent: 0, integral: true };
        let zero = rest.first() == Some(&b'0');
        let count = digits(&mut rest, &mut number.mantissa);
        if zero && count > 1 {
            return Err("a number with a leading zero");
        }
        if count == 0 {
            return Err("a minus without a number");
        }
        // 19 digits fit into 64 bits
        number.exact = count <= 19;
        if let Some(b'.' | b'e' | b'E') = rest.first() {
            fraction(&mut rest, &mut number, count)?;
        }
        number.text = start.get(..start.len() - rest.len()).unwrap_or(start);
        self.rest = rest;
        Ok(number)
    }
}

fn fraction(rest: &mut &[u8], number: &mut Number<'_>, mut count: usize) -> Result<(), Syntax> {
    number.integral = false;
    if let Some((b'.', tail)) = rest.split_first() {
        *rest = tail;
        let more = digits(rest, &mut number.mantissa);
        if more == 0 {
            return Err("a decimal point without digits behind it");
        }
        count += more;
        number.exact = count <= 19;
        number.exponent = -i32::try_from(more).unwrap_or(i32::MAX);
    }
    if let Some((b'e' | b'E', tail)) = rest.split_first() {
        let negative = tail.first() == Some(&b'-');
        *rest = match tail.split_first() {
            Some((b'-' | b'+', tail)) => tail,
            _ => tail,
        };
        let mut exponent = 0;
        match digits(rest, &mut exponent) {
            0 => return Err("an exponent without digits"),
            1..=6 => {
                let exponent = i32::try_from(exponent).unwrap_or(i32::MAX);
                let signed = if negative { -exponent } else { exponent };
                number.exponent = number.exponent.saturating_add(signed);
            }
            // what no power of ten in the table covers anyway
            _ => number.exact = false,
        }
    }
    Ok(())
}

/// Takes digits off `rest`, appends them to `value` (wrapping), says how many.
#[inline]
fn digits(rest: &mut &[u8], value: &mut u64) -> usize {
    let (before, mut tail, mut total) = (rest.len(), *rest, *value);
    while let Some(word) = tail.first_chunk::<8>()
        && let Some(eight) = eight_digits(u64::from_le_bytes(*word))
    {
        total = total.wrapping_mul(100_000_000).wrapping_add(eight);
        tail = tail.get(8..).unwrap_or_default();
    }
    while let Some((&digit @ b'0'..=b'9', next)) = tail.split_first() {
        total = total.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        tail = next;
    }
    *value = total;
    *rest = tail;
    before - tail.len()
}

/// Eight digits at once, the first in the lowest byte; `None` if one is none. Pairs, then pairs of pairs, are summed by
/// multiplications whose upper half is the sum (Lemire's `parse_eight_digits_unrolled`).
#[inline]
fn eight_digits(word: u64) -> Option<u64> {
    const HIGH: u64 = 0xf0f0_f0f0_f0f0_f0f0;
    const ZEROS: u64 = 0x3030_3030_3030_3030;
    // '0'..='9' are 30 to 39: with six added they are still 3x
    if word & HIGH != ZEROS || word.wrapping_add(0x0606_0606_0606_0606) & HIGH != ZEROS {
        return None;
    }
    let pairs = (word - ZEROS).wrapping_mul(10).wrapping_add((word - ZEROS) >> 8);
    let one = (pairs & 0x0000_00ff_0000_00ff).wrapping_mul(0x000f_4240_0000_0064);
    let two = ((pairs >> 16) & 0x0000_00ff_0000_00ff).wrapping_mul(0x0000_2710_0000_0001);
    Some(one.wrapping_add(two) >> 32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(text: &str) -> Result<Number<'_>, Syntax> {
        let mut lex = Lex { rest: text.as_bytes() };
        let number = lex.number()?;
        assert!(lex.rest.is_empty(), "{text}: left over");
        Ok(number)
    }

    #[test]
    fn integers_have_64_bits_and_no_more() {
        for value in [0, 1, -1, 42, i64::MAX, i64::MIN] {
            assert_eq!(number(&value.to_string()).unwrap().integer(), Some(value));
        }
        for text in
            ["9223372036854775808", "-9223372036854775809", "18446744073709551616", "99999999999999999999999"]
        {
            assert_eq!(number(text).unwrap().integer(), None, "{text}");
        }
    }

    #[test]
    fn what_json_calls_no_number_is_none() {
        for text in ["-", "01", "-01", "1.", "1.e3", "1e", "1e+", "+1", ".5", "NaN"] {
            assert!(number(text).is_err(), "{text}");
        }
        assert_eq!(number("-0").unwrap().double().map(f64::to_bits), Some((-0.0f64).to_bits()));
        assert_eq!(number("1e400").unwrap().double(), None);
        assert_eq!(number("1e-400").unwrap().double(), Some(0.0));
        assert_eq!(number("0e99999999999").unwrap().double(), Some(0.0));
        assert_eq!(number("1e39").unwrap().float(), None);
    }

    proptest! {
        #[test]
        fn numbers_are_what_the_standard_library_makes_of_them(bits in any::<u64>(), small in -1e9..1e9f64) {
            for value in [f64::from_bits(bits), small, small.round() / 100.0] {
                if value.is_finite() {
                    for text in [format!("{value:e}"), format!("{value:?}"), format!("{value}")] {
                        prop_assert_eq!(number(&text).unwrap().double().map(f64::to_bits), Some(value.to_bits()));
                        let float = text.parse::<f32>().ok().filter(|value| value.is_finite());
                        prop_assert_eq!(number(&text).unwrap().float(), float);
                    }
                }
            }
        }

        #[test]
        fn short_ways_say_the_same_or_nothing(text in "-?[0-9]{1,20}(\\.[0-9]{0,20})?([eE][0-9]{1,3})?|-|\\.[0-9]") {
            let mut lex = Lex { rest: text.as_bytes() };
            if let Some(value) = lex.short_double() {
                prop_assert!(lex.rest.is_empty());
                prop_assert_eq!(Some(value), number(&text).unwrap().double());
            }
            let mut lex = Lex { rest: text.as_bytes() };
            if let Some(value) = lex.short_integer() {
                prop_assert!(lex.rest.is_empty());
                prop_assert_eq!(Some(value), number(&text).unwrap().integer());
            }
        }

        #[test]
        fn integers_are_what_the_standard_library_makes_of_them(value in any::<i64>(), shift in 0..64u32) {
            let value = value >> shift;
            prop_assert_eq!(number(&value.to_string()).unwrap().integer(), Some(value));
        }

        #[test]
        fn eight_bytes_are_digits_or_not(bytes in prop::collection::vec("[/0-9:]|[0-9]".prop_map(|text| text.as_bytes()[0]), 8)) {
            let word = u64::from_le_bytes(bytes[..].try_into().unwrap());
            prop_assert_eq!(eight_digits(word), std::str::from_utf8(&bytes).unwrap().parse().ok());
        }
    }
}
