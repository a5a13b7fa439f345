//! What a record was before it became a key and a datum, byte for byte, kept beside them for who has to give it back.
//!
//! ```text
//!  original  part, part                 the key; the value
//!            header, header, ...        to the end, names as often as they came
//!  part      varint 0                   null
//!            varint length + 1, then bytes, varint n     these bytes, then ours from byte n on
//!  header    varint length, then bytes  its name
//!            varint 0                   null
//!            varint length + 1, then bytes               its value
//! ```
//!
//! *Ours* are the record's key and datum. So an Avro value behind its schema's id costs those five bytes, a raw one, whose
//! datum has its length before it, none, a key as Kafka has it none; JSON shares nothing with its datum and stands whole.
//!
//! Owns: this layout. Does not own: which records have one (`producer/validate`), what it is for (`producer/build`).

use bytes::Bytes;

use super::Body;
use crate::format::wire::{Malformed, Take, put_varint};

/// A record as it came, beside what was made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original<'a>(&'a [u8]);

/// A record as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
    /// Its headers: names may repeat, values may be null.
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl<'a> Original<'a> {
    /// Notes in `out`, which is emptied, what key and value were of which `body` was made, and with which headers.
    pub fn note<'h>(
        out: &'a mut Vec<u8>,
        body: &Body<'_>,
        (key, value): (Option<&[u8]>, Option<&[u8]>),
        headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>,
    ) -> Original<'a> {
        out.clear();
        let ours = ours(body);
        put_part(out, key, ours.0);
        put_part(out, value, ours.1);
        for (name, value) in headers {
            put_varint(out, name.len() as u64);
            out.extend_from_slice(name.as_bytes());
            put_bytes(out, value);
        }
        Original(out)
    }

    pub(super) fn of(encoded: &'a [u8]) -> Original<'a> {
        Original(encoded)
    }

    pub(super) fn encoded(self) -> &'a [u8] {
        self.0
    }

    /// Bytes that it takes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it takes none, which none does.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The record as it came, beside the `body` that was made of it.
    ///
    /// # Errors
    /// [`Malformed`]: it is not of this body, or not as it was noted. One out of a chunk was looked at there.
    pub fn whole(&self, body: &Body<'_>) -> Result<Whole, Malformed> {
        let mut headers = Vec::new();
        let [key, value] = self.walk(body, |name, value| {
            headers.push((name.to_owned(), value.map(Bytes::copy_from_slice)));
        })?;
        let joined = |part: Option<[&[u8]; 2]>| part.map(|part| Bytes::from(part.concat()));
        Ok(Whole { key: joined(key), value: joined(value), headers })
    }

    /// Whether it can be read beside `body`.
    pub(super) fn is_of(&self, body: &Body<'_>) -> bool {
        self.walk(body, |_, _| {}).is_ok()
    }

    /// Key and value, each in two pieces; headers are given away.
    fn walk<'s>(
        &'s self,
        body: &Body<'s>,
        mut header: impl FnMut(&str, Option<&[u8]>),
    ) -> Result<[Option<[&'s [u8]; 2]>; 2], Malformed> {
        let mut take = Take::new(self.0);
        let (key, value) = ours(body);
        let parts = [take_part(&mut take, key)?, take_part(&mut take, value)?];
        while take.at() < self.0.len() {
            let length = length(&mut take)?;
            let name =
                std::str::from_utf8(take.raw(length)?).map_err(|_| take.malformed("a name not in UTF-8"))?;
            header(name, take_bytes(&mut take)?);
        }
        Ok(parts)
    }
}

fn ours<'a>(body: &Body<'a>) -> (&'a [u8], &'a [u8]) {
    match body {
        Body::Upsert { key, value } => (key, value),
        Body::Delete { key } => (key, &[]),
        Body::Misfit { .. } => (&[], &[]),
    }
}

fn put_part(out: &mut Vec<u8>, original: Option<&[u8]>, ours: &[u8]) {
    let Some(original) = original else { return out.push(0) };
    // How much of it stands before ours, and how much of ours before it.
    let (before, from) = match original.strip_suffix(ours) {
        Some(before) => (before, 0),
        None if ours.ends_with(original) => (&[][..], ours.len() - original.len()),
        None => (original, ours.len()),
    };
    put_bytes(out, Some(before));
    put_varint(out, from as u64);
}

fn take_part<'a>(take: &mut Take<'a>, ours: &'a [u8]) -> Result<Option<[&'a [u8]; 2]>, Malformed> {
    let Some(before) = take_bytes(take)? else { return Ok(None) };
    let from = length(take)?;
    let rest = ours.get(from..).ok_or(take.malformed("a part of more than there is"))?;
    Ok(Some([before, rest]))
}

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => out.push(0),
        Some(bytes) => {
            put_varint(out, bytes.len() as u64 + 1);
            out.extend_from_slice(bytes);
        }
    }
}

fn take_bytes<'a>(take: &mut Take<'a>) -> Result<Option<&'a [u8]>, Malformed> {
    match length(take)? {
        0 => Ok(None),
        more => take.raw(more - 1).map(Some),
    }
}

fn length(take: &mut Take<'_>) -> Result<usize, Malformed> {
    usize::try_from(take.varint()?).map_err(|_| take.malformed("a length beyond any memory"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noted(body: &Body<'_>, whole: &Whole) -> Vec<u8> {
        let mut out = vec![7; 3];
        let headers = whole.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
        let original =
            Original::note(&mut out, body, (whole.key.as_deref(), whole.value.as_deref()), headers);
        assert!(original.is_of(body));
        assert_eq!(original.whole(body).as_ref(), Ok(whole));
        out
    }

    /// Bytes of few kinds, so that one is often the end of another.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0u8..2, 0..6)
    }

    proptest! {
        #[test]
        fn any_record_comes_back_whatever_was_made_of_it(
            key in bytes(), value in prop::option::of(bytes()), originals in prop::array::uniform2(prop::option::of(bytes())),
            headers in prop::collection::vec((".{0,3}", prop::option::of(bytes())), 0..4),
        ) {
            let body = match &value {
                Some(value) => Body::Upsert { key: &key, value },
                None => Body::Delete { key: &key },
            };
            let [original_key, original_value] = originals.map(|bytes| bytes.map(Bytes::from));
            let headers = headers.into_iter().map(|(name, value)| (name, value.map(Bytes::from))).collect();
            noted(&body, &Whole { key: original_key, value: original_value, headers });
        }

        #[test]
        fn any_bytes_are_read_or_refused(encoded: Vec<u8>, key in bytes(), value in bytes()) {
            let body = Body::Upsert { key: &key, value: &value };
            prop_assert_eq!(Original(&encoded).is_of(&body), Original(&encoded).whole(&body).is_ok());
        }
    }

    #[test]
    fn what_is_shared_with_the_datum_takes_no_bytes() {
        let (key, datum) = (b"P-1", [&b"\x06"[..], &[b'x'; 1_000]].concat());
        let body = Body::Upsert { key, value: &datum };
        let of = |value: &[u8]| {
            let whole = Whole {
                key: Some(Bytes::from_static(key)),
                value: Some(Bytes::copy_from_slice(value)),
                headers: Vec::new(),
            };
            noted(&body, &whole).len()
        };
        assert_eq!(of(&datum), 4, "as it is");
        assert_eq!(of(&[&[0, 0, 0, 0, 7], &datum[..]].concat()), 9, "behind its schema's id");
        assert_eq!(of(&datum[1..]), 4, "raw: without the length that the datum has");
        assert!(of(&[b'y'; 50]) < 60, "something else");
    }
}
