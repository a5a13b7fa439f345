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

impl<'t> Lex<'t> {
    /// Skips whitespace.
    #[inline]
    pub fn space(&mut self) {
        // most often there is none, which one comparison tells
        if self.rest.first().is_none_or(|byte| *byte > b' ') {
            return;
        }
        self.spaces();
    }

    #[inline(never)]
    fn spaces(&mut self) {
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

    /// Takes `word` if it is next.
    #[inline]
    pub fn known(&mut self, word: &Word) -> bool {
        let is = match (self.rest.first_chunk(), self.rest.first_chunk()) {
            (Some(short), _) if word.text.len() <= 8 => {
                u64::from_le_bytes(*short) & word.mask as u64 == word.head as u64
            }
            (_, Some(long)) if word.text.len() <= 16 => u128::from_le_bytes(*long) & word.mask == word.head,
            _ => self.rest.starts_with(&word.text),
        };
        match self.rest.get(word.text.len()..) {
            Some(rest) if is => {
                self.rest = rest;
                true
            }
            _ => false,
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

/// The text of a field's name, its closing quote and the colon behind it. Up to 16 bytes are compared as a number: a
/// call of `memcmp` takes longer than the comparison.
pub(super) struct Word {
    text: Box<[u8]>,
    head: u128,
    mask: u128,
}

impl Word {
    /// Of a field's name.
    pub fn field(name: &str) -> Word {
        let text = format!("{name}\":").into_bytes();
        let (mut head, mut mask) = ([0; 16], [0; 16]);
        for ((byte, head), mask) in text.iter().zip(&mut head).zip(&mut mask) {
            *head = *byte;
            *mask = 0xff;
        }
        Word { text: text.into(), head: u128::from_le_bytes(head), mask: u128::from_le_bytes(mask) }
    }
}

pub(super) const UNCLOSED: Syntax = "the text ends inside a string";
pub(super) const NO_VALUE: Syntax = "no value where one should be";
pub(super) const OBJECT_NEXT: Syntax = "neither a comma nor a brace behind an object's field";
pub(super) const LIST_NEXT: Syntax = "neither a comma nor a bracket behind a list's item";
pub(in crate::codec) const DEEP: Syntax = "nested deeper than 128 levels";

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

    proptest! {
        #[test]
        fn a_known_word_is_found_wherever_it_stands(name in "[a-z]{1,20}", other in "[a-z]{1,20}", behind in "[0-9]{0,17}") {
            let word = Word::field(&name);
            for (text, found) in [(&name, true), (&other, name == other)] {
                let text = format!("{text}\":{behind}");
                let mut lex = Lex { rest: text.as_bytes() };
                prop_assert_eq!(lex.known(&word), found);
                prop_assert_eq!(lex.rest == behind.as_bytes(), found);
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
