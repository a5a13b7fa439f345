//! What a request says, read as bytes: keys need not be text.
//!
//! Owns: percent-decoding, query parameters. Does not own: what they mean.

use std::borrow::Cow;

use super::problem::Problem;

/// Decodes `%XX` in a path. Borrows where there is none. A `+` stands for itself.
///
/// # Errors
/// A percent sign that is not followed by two hexadecimal digits.
pub(super) fn decode_path(text: &str) -> Result<Cow<'_, [u8]>, Problem> {
    decode(text, false)
}

/// Decodes a value of a query: as a path, and a `+` stands for a space, as HTML forms write it.
fn decode_value(text: &str) -> Result<Cow<'_, [u8]>, Problem> {
    decode(text, true)
}

fn decode(text: &str, form: bool) -> Result<Cow<'_, [u8]>, Problem> {
    let special = |byte: &u8| *byte == b'%' || (form && *byte == b'+');
    if !text.as_bytes().iter().any(special) {
        return Ok(Cow::Borrowed(text.as_bytes()));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'%' => match (after.first().copied().and_then(nibble), after.get(1).copied().and_then(nibble)) {
                (Some(high), Some(low)) => {
                    decoded.push(high << 4 | low);
                    rest = after.get(2..).unwrap_or_default();
                }
                _ => {
                    let at = text.len() - after.len() - 1;
                    return Err(Problem::rejected(format!(
                        "{text:?} is not percent-encoded: the % at byte {at} is not followed by two hexadecimal \
                         digits; a % that stands for itself is written %25"
                    )));
                }
            },
            b'+' if form => decoded.push(b' '),
            byte => decoded.push(byte),
        }
    }
    Ok(Cow::Owned(decoded))
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// The parameters of a query, each at most once and each one that the route knows: a misspelt one would be an answer to
/// a question that was not asked.
#[derive(Debug)]
pub(super) struct Query<'a, const N: usize> {
    known: [&'static str; N],
    values: [Option<Cow<'a, [u8]>>; N],
}

/// Names and values, in the order in which they stand.
pub(super) type Listed<'a> = Vec<(&'a str, Cow<'a, [u8]>)>;

impl<'a, const N: usize> Query<'a, N> {
    /// Reads `query`, which may have the parameters `known`.
    ///
    /// # Errors
    /// An unknown parameter, one that stands twice, a bad encoding.
    pub(super) fn read(query: Option<&'a str>, known: [&'static str; N]) -> Result<Query<'a, N>, Problem> {
        Query::with_list(query, known, |_| false).map(|(query, _)| query)
    }

    /// As [`Query::read`]; parameters for which `list` is true, and which may stand any number of times, come apart, in
    /// their order.
    ///
    /// # Errors
    /// As [`Query::read`].
    pub(super) fn with_list(
        query: Option<&'a str>,
        known: [&'static str; N],
        list: impl Fn(&str) -> bool,
    ) -> Result<(Query<'a, N>, Listed<'a>), Problem> {
        let mut listed = Vec::new();
        let mut values = [const { None }; N];
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let at = known.iter().position(|known| *known == name);
            if at.is_none() && list(name) {
                listed.push((name, decode_value(value)?));
                continue;
            }
            let Some(slot) = at.and_then(|at| values.get_mut(at)) else {
                let known = known.join(", ");
                return Err(Problem::rejected(format!(
                    "there is no parameter {name:?} here; there is: {known}"
                )));
            };
            if slot.replace(decode_value(value)?).is_some() {
                return Err(Problem::rejected(format!("the parameter {name} stands twice")));
            }
        }
        Ok((Query { known, values }, listed))
    }

    /// The value of a parameter, which must be one of the known.
    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        let at = self.known.iter().position(|known| *known == name);
        debug_assert!(at.is_some(), "{name} is not asked for");
        self.values.get(at?)?.as_deref()
    }

    /// The value as a number; absent if it stands empty.
    ///
    /// # Errors
    /// What is no number.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Problem> {
        let Some(bytes) = self.bytes(name).filter(|bytes| !bytes.is_empty()) else { return Ok(None) };
        let number = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
        let number = number.ok_or_else(|| {
            let value = String::from_utf8_lossy(bytes);
            Problem::rejected(format!("{name} = {value:?} is not a whole number"))
        });
        number.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("%{byte:02X}")).collect()
    }

    proptest! {
        #[test]
        fn any_bytes_come_back_and_any_text_is_read_or_refused(
            keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 0..5),
            text in "[%+&=a-c0-9\\PC]{0,40}",
        ) {
            let query = keys.iter().map(|key| format!("key={}", encode(key))).collect::<Vec<_>>().join("&");
            let (_, read) = Query::with_list(Some(&query), ["limit"], |name| name == "key").unwrap();
            let read: Vec<Vec<u8>> = read.into_iter().map(|(_, key)| key.into_owned()).collect();
            prop_assert_eq!(read, keys);
            if let Ok((query, listed)) = Query::with_list(Some(&text), ["limit"], |_| true) {
                let limits = text.split("&").filter(|pair| pair.split("=").next() == Some("limit")).count();
                prop_assert!(limits <= 1 && query.bytes("limit").is_some() == (limits == 1));
                prop_assert_eq!(listed.len() + limits, text.split("&").filter(|pair| !pair.is_empty()).count());
            }
            if let Ok(decoded) = decode_path(&text) {
                prop_assert!(decoded.len() <= text.len());
            }
        }
    }

    #[test]
    fn paths_are_bytes() {
        for (text, bytes) in [
            ("P-100", &b"P-100"[..]),
            ("a/b", b"a/b"),
            ("a%2Fb%2fc", b"a/b/c"),
            ("a+b%20c", b"a+b c"),
            ("%FF%00", b"\xff\0"),
            ("%252F", b"%2F"),
        ] {
            assert_eq!(decode_path(text).unwrap(), bytes, "{text}");
        }
        assert!(matches!(decode_path("plain").unwrap(), Cow::Borrowed(_)));
        for bad in ["%", "%2", "%zz", "a%2", "%+1", "%é"] {
            assert_eq!(decode_path(bad).unwrap_err().status(), 400, "{bad}");
        }
    }

    #[test]
    fn a_list_has_its_values_in_their_order() {
        let is_key = |name: &str| name == "key" || name == "limit";
        let (query, keys) =
            Query::with_list(Some("key=b&limit=2&key=a%2Fb&key="), ["limit"], is_key).unwrap();
        let keys: Vec<_> = keys.iter().map(|(name, value)| (*name, &**value)).collect();
        assert_eq!(query.number("limit").unwrap(), Some(2), "what is known is not of the list");
        assert_eq!(keys, [("key", &b"b"[..]), ("key", b"a/b"), ("key", b"")]);
        let error = Query::with_list(Some("keys=b"), ["limit"], is_key).unwrap_err();
        assert_eq!(error.status(), 400);
        assert!(Query::with_list(Some("key=%x"), ["limit"], is_key).is_err());
        assert!(Query::read(Some("=b"), ["limit"]).is_err());
    }

    #[test]
    fn a_query_has_known_parameters_once() {
        let read = |query| Query::read(Some(query), ["prefix", "limit"]);
        let query = read("prefix=a%2Fb+c&limit=7").unwrap();
        assert_eq!(query.bytes("prefix"), Some(&b"a/b c"[..]));
        assert_eq!(query.number("limit").unwrap(), Some(7));
        assert_eq!(read("prefix=").unwrap().bytes("prefix"), Some(&b""[..]));
        assert_eq!(read("limit=").unwrap().number("limit").unwrap(), None);
        assert_eq!(Query::read(None, ["prefix"]).unwrap().bytes("prefix"), None);
        for bad in ["limits=1", "limit=1&limit=2", "prefix=%x"] {
            assert_eq!(read(bad).unwrap_err().status(), 400, "{bad}");
        }
        for bad in ["limit=-1", "limit=many", "limit=%FF", "limit=99999999999999999999"] {
            assert_eq!(read(bad).unwrap().number("limit").unwrap_err().status(), 400, "{bad}");
        }
    }
}
