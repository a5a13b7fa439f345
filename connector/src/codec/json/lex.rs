//! JSON's tokens (RFC 8259), off the front of a text that is known to be UTF-8.
//!
//! Strict: no comments, no trailing commas, no leading zeros, no unpaired surrogates. Errors are words; where they
//! happened is the length of what is left.

/// Why a text is not JSON.
pub(super) type Syntax = &'static str;

/// What is left of a text.
pub(super) struct Lex<'t> {
    pub rest: &'t [u8],
}

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
        self.parse().filter(|value: &f32| value.is_finite())
    }

    fn parse<T: std::str::FromStr>(&self) -> Option<T> {
        std::str::from_utf8(self.text).ok()?.parse().ok()
    }
}

impl<'t> Lex<'t> {
    /// Skips whitespace.
    #[inline]
    pub fn space(&mut self) {
        while let Some((b' ' | b'\t' | b'\n' | b'\r', rest)) = self.rest.split_first() {
            self.rest = rest;
        }
    }

    /// Takes `byte` if it is next.
    #[inline]
    pub fn take(&mut self, byte: u8) -> bool {
        match self.rest.split_first() {
            Some((&next, rest)) if next == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// Takes `word` if it is next.
    #[inline]
    pub fn word(&mut self, word: &[u8]) -> bool {
        match self.rest.strip_prefix(word) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Takes a string up to its closing quote; the opening one is gone already. `None`: it has escapes, and stands
    /// unescaped in `scratch`.
    #[inline]
    pub fn string(&mut self, scratch: &mut Vec<u8>) -> Result<Option<&'t [u8]>, Syntax> {
        let length = plain(self.rest);
        let (text, rest) = self.rest.split_at_checked(length).ok_or(UNCLOSED)?;
        if let Some((b'"', rest)) = rest.split_first() {
            self.rest = rest;
            return Ok(Some(text));
        }
        scratch.clear();
        self.escaped(scratch)?;
        Ok(None)
    }

    #[cold]
    fn escaped(&mut self, scratch: &mut Vec<u8>) -> Result<(), Syntax> {
        loop {
            let (text, rest) = self.rest.split_at_checked(plain(self.rest)).ok_or(UNCLOSED)?;
            scratch.extend_from_slice(text);
            self.rest = rest;
            let (&byte, rest) = rest.split_first().ok_or(UNCLOSED)?;
            match byte {
                b'"' => {
                    self.rest = rest;
                    return Ok(());
                }
                b'\\' => {
                    let (&kind, rest) = rest.split_first().ok_or(UNCLOSED)?;
                    self.rest = rest;
                    scratch.push(match kind {
                        b'"' | b'\\' | b'/' => kind,
                        b'b' => 8,
                        b'f' => 12,
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'u' => {
                            let char = self.unicode()?;
                            scratch.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
                            continue;
                        }
                        _ => return Err("an unknown escape in a string"),
                    });
                }
                _ => return Err("a control character in a string"),
            }
        }
    }

    fn unicode(&mut self) -> Result<char, Syntax> {
        const UNPAIRED: Syntax = "an unpaired surrogate in a string";
        let first = self.hex()?;
        let code = match first {
            0xd800..=0xdbff => {
                if !self.word(b"\\u") {
                    return Err(UNPAIRED);
                }
                let second = self.hex()?;
                if !(0xdc00..=0xdfff).contains(&second) {
                    return Err(UNPAIRED);
                }
                0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
            }
            _ => first,
        };
        char::from_u32(code).ok_or(UNPAIRED)
    }

    fn hex(&mut self) -> Result<u32, Syntax> {
        let (digits, rest) = self.rest.split_at_checked(4).ok_or(UNCLOSED)?;
        self.rest = rest;
        digits.iter().try_fold(0, |code, digit| {
            let digit =
                char::from(*digit).to_digit(16).ok_or("an escape \\u without four hexadecimal digits")?;
            Ok(code << 4 | digit)
        })
    }

    /// Takes a number.
    #[inline]
    pub fn number(&mut self) -> Result<Number<'t>, Syntax> {
        let start = self.rest;
        let negative = self.take(b'-');
        let mut number =
            Number { text: start, negative, mantissa: 0, exact: true, exponent: 0, integral: true };
        let digits = match self.rest.first() {
            Some(b'0') => {
                self.take(b'0');
                if matches!(self.rest.first(), Some(b'0'..=b'9')) {
                    return Err("a number with a leading zero");
                }
                0
            }
            Some(b'1'..=b'9') => self.digits(&mut number.mantissa),
            _ => return Err("a minus without a number"),
        };
        // 19 digits fit into 64 bits
        number.exact = digits <= 19;
        if let Some(b'.' | b'e' | b'E') = self.rest.first() {
            self.fraction(&mut number, digits)?;
        }
        number.text = start.get(..start.len() - self.rest.len()).unwrap_or(start);
        Ok(number)
    }

    fn fraction(&mut self, number: &mut Number<'t>, mut digits: usize) -> Result<(), Syntax> {
        number.integral = false;
        if self.take(b'.') {
            let more = self.digits(&mut number.mantissa);
            if more == 0 {
                return Err("a decimal point without digits behind it");
            }
            digits += more;
            number.exact = digits <= 19;
            number.exponent = -i32::try_from(more).unwrap_or(i32::MAX);
        }
        if self.take(b'e') || self.take(b'E') {
            let negative = self.take(b'-');
            if !negative {
                self.take(b'+');
            }
            let mut exponent = 0;
            match self.digits(&mut exponent) {
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

    /// Takes digits, appends them to `value` (wrapping), says how many.
    #[inline]
    fn digits(&mut self, value: &mut u64) -> usize {
        let before = self.rest.len();
        while let Some((&digit @ b'0'..=b'9', rest)) = self.rest.split_first() {
            *value = value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
            self.rest = rest;
        }
        before - self.rest.len()
    }

    /// Takes a whole value without making anything of it, checking that it is JSON.
    pub fn ignore(&mut self, scratch: &mut Vec<u8>, depth: usize) -> Result<(), Syntax> {
        match self.rest.first() {
            Some(b'"') => {
                self.take(b'"');
                self.string(scratch)?;
            }
            Some(b'-' | b'0'..=b'9') => {
                self.number()?;
            }
            Some(open @ (b'{' | b'[')) => {
                let depth = depth.checked_sub(1).ok_or(DEEP)?;
                self.take(*open);
                return self.ignore_inner(*open == b'{', scratch, depth);
            }
            _ => {
                if !(self.word(b"true") || self.word(b"false") || self.word(b"null")) {
                    return Err(NO_VALUE);
                }
            }
        }
        Ok(())
    }

    fn ignore_inner(&mut self, object: bool, scratch: &mut Vec<u8>, depth: usize) -> Result<(), Syntax> {
        let close = if object { b'}' } else { b']' };
        self.space();
        if self.take(close) {
            return Ok(());
        }
        loop {
            if object {
                if !self.take(b'"') {
                    return Err("no name where an object's next field should be");
                }
                self.string(scratch)?;
                self.space();
                if !self.take(b':') {
                    return Err("no colon behind a name");
                }
                self.space();
            }
            self.ignore(scratch, depth)?;
            self.space();
            if self.take(close) {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(if object { OBJECT_NEXT } else { LIST_NEXT });
            }
            self.space();
        }
    }
}

pub(super) const UNCLOSED: Syntax = "the text ends inside a string";
pub(super) const NO_VALUE: Syntax = "no value where one should be";
pub(super) const OBJECT_NEXT: Syntax = "neither a comma nor a brace behind an object's field";
pub(super) const LIST_NEXT: Syntax = "neither a comma nor a bracket behind a list's item";
pub(super) const DEEP: Syntax = "nested deeper than 128 levels";

/// How many bytes come before the first that ends or escapes a string, or may not be in one. Eight at a time: a test
/// for zero bytes, `(x - 01…) & !x & 80…`, whose lowest hit is exact.
#[inline]
pub(in crate::codec) fn plain(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let (words, tail) = bytes.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let quote = word ^ (ONES * b'"' as u64);
        let escape = word ^ (ONES * b'\\' as u64);
        let hits = (quote.wrapping_sub(ONES) & !quote)
            | (escape.wrapping_sub(ONES) & !escape)
            | (word.wrapping_sub(ONES * 0x20) & !word);
        let hits = hits & HIGH;
        if hits != 0 {
            return at * 8 + hits.trailing_zeros() as usize / 8;
        }
    }
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20);
    bytes.len() - tail.len() + tail.iter().position(special).unwrap_or(tail.len())
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
                    }
                }
            }
        }

        #[test]
        fn any_text_is_read_as_serde_json_reads_it(text in "[ -~\\\\\"]{0,12}|\\PC{0,12}|(\\\\u[dD][89c-f][0-9a-f]{2}){0,3}") {
            let quoted = format!("\"{text}\"");
            let mut lex = Lex { rest: &quoted.as_bytes()[1..] };
            let mut scratch = Vec::new();
            let ours = lex.string(&mut scratch).map(|plain| plain.map(<[u8]>::to_vec));
            let ours = ours.map(|plain| plain.unwrap_or(scratch)).ok().filter(|_| lex.rest.is_empty());
            let theirs = serde_json::from_str::<String>(&quoted).ok().map(String::into_bytes);
            prop_assert_eq!(ours, theirs);
        }

        #[test]
        fn ignoring_accepts_what_serde_json_accepts(text in r#"([\[\]{},:" \\0-9.eE+-]|true|null|"a"){0,16}"#) {
            let mut lex = Lex { rest: text.as_bytes() };
            lex.space();
            let ours = lex.ignore(&mut Vec::new(), 128).is_ok() && { lex.space(); lex.rest.is_empty() };
            prop_assert_eq!(ours, serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok(), "{}", text);
        }
    }
}
