//! How serializers that speak to a schema registry say which schema a key or value is written with (Confluent's wire
//! format).
//!
//! ```text
//!  00 | id, 4 bytes, big-endian | datum       before the datum, the usual way
//!  01 | guid, 16 bytes          | datum
//!
//!  header __value_schema_id (__key_schema_id): 01 | guid, 16 bytes      beside it, since Confluent 8.1; the last such
//!                                              00 | id, 4 bytes         header counts, before what the datum begins with
//! ```
//!
//! Of Protobuf, the list of indexes that says which message of the file it is stands behind the id, in either place.
//!
//! Both forms are read in both places, as `DualSchemaIdDeserializer` does.

use std::fmt;

use crate::schema::MAX_DEPTH;
use crate::schema::wire::split_int;

/// Header that names the schema of a record's value.
pub const VALUE_HEADER: &str = "__value_schema_id";
/// Header that names the schema of a record's key.
pub const KEY_HEADER: &str = "__key_schema_id";

/// By what a registry knows a schema. It never means another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SchemaId {
    /// A number, unique in one registry.
    Number(u32),
    /// A UUID, unique everywhere.
    Guid([u8; 16]),
}

impl fmt::Display for SchemaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SchemaId::Number(number) => write!(f, "schema id {number}"),
            SchemaId::Guid(guid) => write!(f, "schema guid {}", uuid::Uuid::from_bytes(*guid)),
        }
    }
}

/// Bytes without a schema id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unframed {
    Empty,
    Short,
    Magic,
    Negative,
}

impl Unframed {
    /// What is wrong, for people.
    pub fn what(self) -> &'static str {
        match self {
            Unframed::Empty => "is empty; a delete is a Kafka null",
            Unframed::Short => "ends within the schema id that it begins with",
            Unframed::Magic => {
                "does not begin with a schema registry's id (a byte 0 or 1, then the id); what is written without a \
                 registry is read with `registry = false` and a schema file"
            }
            Unframed::Negative => "begins with a negative schema id, which no registry gives",
        }
    }
}

/// Takes the schema's id off the front.
#[inline]
pub(super) fn split(bytes: &[u8]) -> Result<(SchemaId, &[u8]), Unframed> {
    match bytes.split_first() {
        Some((0, rest)) => {
            let (id, datum) = rest.split_first_chunk::<4>().ok_or(Unframed::Short)?;
            match u32::from_be_bytes(*id) {
                id if id > i32::MAX as u32 => Err(Unframed::Negative),
                id => Ok((SchemaId::Number(id), datum)),
            }
        }
        Some((1, rest)) => {
            let (guid, datum) = rest.split_first_chunk::<16>().ok_or(Unframed::Short)?;
            Ok((SchemaId::Guid(*guid), datum))
        }
        Some(_) => Err(Unframed::Magic),
        None => Err(Unframed::Empty),
    }
}

/// The schema that a value names, before it or in the header beside it, and the datum. `None`: it names none.
pub fn named<'a>(value: &'a [u8], header: Option<&[u8]>) -> Option<(SchemaId, &'a [u8])> {
    match header {
        None => split(value).ok(),
        Some(header) => in_header(header).ok().map(|id| (id, value)),
    }
}

/// An id as it stands before a datum, or alone in a header.
pub fn prefix(id: SchemaId) -> Vec<u8> {
    match id {
        SchemaId::Number(number) => [&[0], &number.to_be_bytes()[..]].concat(),
        SchemaId::Guid(guid) => [&[1], &guid[..]].concat(),
    }
}

/// The id that a header holds. What stands behind it (Protobuf's indexes) is for who needs it.
pub(super) fn in_header(value: &[u8]) -> Result<SchemaId, Unframed> {
    split(value).map(|(id, _)| id)
}

/// Takes the list of indexes off the front that says which message of a Protobuf file the bytes behind it are: a count,
/// then the place of a message in its file, of one within that, and so on, all as zig-zag varints. Of the first message a
/// single 0 is enough. `None`: it is no such list.
#[inline]
pub(super) fn indexes<'a>(bytes: &'a [u8], path: &mut Vec<u32>) -> Option<&'a [u8]> {
    path.clear();
    let (count, mut rest) = split_int(bytes)?;
    if count == 0 {
        path.push(0);
        return Some(rest);
    }
    // Each takes a byte, and messages do not nest deeper than this.
    let count = usize::try_from(count).ok().filter(|count| *count <= MAX_DEPTH)?;
    for _ in 0..count {
        let (index, after) = split_int(rest)?;
        path.push(u32::try_from(index).ok()?);
        rest = after;
    }
    Some(rest)
}

/// What is behind a frame, where there is one: for formats that cannot begin with a byte 0 or 1.
pub(super) fn behind(bytes: &[u8]) -> &[u8] {
    match bytes.first() {
        Some(0 | 1) => split(bytes).map_or(bytes, |(_, rest)| rest),
        _ => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_nothing_else() {
        assert_eq!(split(&[0, 0, 0, 1, 2, 9]), Ok((SchemaId::Number(258), &[9][..])));
        assert_eq!(split(&[0, 0x7f, 0xff, 0xff, 0xff]), Ok((SchemaId::Number(i32::MAX as u32), &[][..])));
        assert_eq!(split(&[0, 0x80, 0, 0, 0, 9]), Err(Unframed::Negative));
        let guid: Vec<u8> = (0..18).map(|n| if n == 0 { 1 } else { n }).collect();
        let (id, rest) = split(&guid).unwrap();
        assert_eq!(rest, [17]);
        assert_eq!(id.to_string(), "schema guid 01020304-0506-0708-090a-0b0c0d0e0f10");
        for (bytes, why) in [
            (&[][..], Unframed::Empty),
            (&[0], Unframed::Short),
            (&[0, 0, 0, 1], Unframed::Short),
            (&guid[..16], Unframed::Short),
            (&[2, 0, 0, 0, 1], Unframed::Magic),
            (b"{\"id\":1}", Unframed::Magic),
        ] {
            assert_eq!(split(bytes), Err(why), "{bytes:?}");
        }
        let mut path = Vec::new();
        for (bytes, indexes, rest) in [
            (&[0, 9][..], &[0u32][..], Some(&[9][..])),
            (&[2, 2, 9], &[1], Some(&[9])),
            (&[4, 0, 6], &[0, 3], Some(&[])),
            (&[2], &[], None),
            (&[1, 0], &[], None),
            (&[2, 1], &[], None),
            (&[0xfe, 0xff, 0xff, 0xff, 0x0f, 0], &[], None),
            (&[], &[], None),
        ] {
            assert_eq!(super::indexes(bytes, &mut path), rest, "{bytes:?}");
            assert!(rest.is_none() || path == indexes, "{bytes:?}: {path:?}");
        }
        for id in [SchemaId::Number(258), SchemaId::Guid([7; 16])] {
            let (alone, whole) = (prefix(id), [&prefix(id)[..], &[9]].concat());
            assert_eq!(named(&whole, None), Some((id, &[9][..])));
            assert_eq!(named(&[9], Some(&alone)), Some((id, &[9][..])));
            assert_eq!(named(&whole, Some(&[])), None, "what a header says counts");
        }
        assert_eq!(behind(b"{}"), b"{}");
        assert_eq!(behind(&[0, 0, 0, 0, 1, b'{', b'}']), b"{}");
        assert_eq!(behind(&[0, 0, b'{']), [0, 0, b'{'], "no frame: what it is, the format says");
    }
}
