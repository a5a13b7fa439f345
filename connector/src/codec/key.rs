//! Keys out of a value's fields (docs/formats.md, "Keys").

use super::part::Part;
use super::room::anew;
use super::{Error, Misfit, Stage};
use crate::schema::node::Nodes;
use crate::schema::{Id, Malformed, Node, Schema};

/// The fields that make a key, found in the schema once.
#[derive(Debug)]
pub(super) struct Fields(Vec<Path>);

#[derive(Debug)]
struct Path {
    name: String,
    /// The place of the field in its record, from the root on.
    places: Vec<usize>,
}

impl Fields {
    /// Finds `names` in the schema.
    pub fn find(schema: &Schema, names: &[String]) -> Result<Fields, Error> {
        let error = |field: &str, reason: String| Error::Key { field: field.into(), reason };
        if names.is_empty() {
            return Err(error("", "no field is named; `key = \"kafka\"` takes the Kafka key".into()));
        }
        let mut paths: Vec<Path> = Vec::with_capacity(names.len());
        for name in names {
            if paths.iter().any(|path| path.name == *name) {
                return Err(error(name, "it is named twice".into()));
            }
            let places = find(&schema.nodes, name).map_err(|reason| error(name, reason))?;
            paths.push(Path { name: name.clone(), places });
        }
        Ok(Fields(paths))
    }

    /// All of a key's own schema: a record's fields in their order, or the one value that it is.
    pub fn whole(schema: &Schema) -> Result<Fields, String> {
        let nodes = &schema.nodes;
        let Node::Record(record) = nodes.get(nodes.root) else {
            is_key(nodes, not_null(nodes, nodes.root)?)?;
            return Ok(Fields(vec![Path { name: "the key".into(), places: Vec::new() }]));
        };
        if record.fields.is_empty() {
            return Err(format!("{} has no fields", record.name.full));
        }
        let paths = record.fields.iter().enumerate().map(|(place, field)| {
            let made = not_null(nodes, field.node).and_then(|id| is_key(nodes, id));
            made.map_err(|reason| format!("its field `{}`: {reason}", field.name))?;
            Ok(Path { name: field.name.to_string(), places: vec![place] })
        });
        paths.collect::<Result<_, _>>().map(Fields)
    }

    /// The fields that are named, which a key's own schema has to have. Without names all of it; and where one is named, the
    /// only one that there is, whatever it is called there. Of several, order and number would be a guess, and deletes would
    /// find nothing.
    pub fn named_or_whole(schema: &Schema, names: &[String]) -> Result<Fields, String> {
        let missing = match Fields::find(schema, names) {
            Ok(fields) => return Ok(fields),
            Err(missing) => missing,
        };
        let whole = Fields::whole(schema)?;
        match (names.len(), whole.0.len()) {
            (0, _) | (1, 1) => Ok(whole),
            _ => Err(missing.to_string()),
        }
    }

    /// The name of the only one, from the outside in, where JSON writes it otherwise than it stands in a key: bytes, in base64.
    pub fn only_and_spelled_otherwise(&self, schema: &Schema) -> Option<&str> {
        let [path] = self.0.as_slice() else { return None };
        let nodes = &schema.nodes;
        let mut id = nodes.root;
        for place in &path.places {
            let Node::Record(record) = nodes.get(id) else { return None };
            id = not_null(nodes, record.fields.get(*place)?.node).ok()?;
        }
        matches!(nodes.get(id), Node::Bytes | Node::Fixed(_)).then_some(&*path.name)
    }

    /// Whether keys have several parts.
    pub fn are_several(&self) -> bool {
        self.0.len() > 1
    }

    /// Writes the key of `datum` into `out`, which is cleared first.
    pub fn write(&self, schema: &Schema, datum: &[u8], out: &mut Vec<u8>) -> Result<(), Misfit> {
        anew(out, datum.len());
        let composite = self.0.len() > 1;
        for (at, path) in self.0.iter().enumerate() {
            if at > 0 {
                out.push(b'/');
            }
            let part = path.follow(schema, datum).map_err(|malformed| Misfit {
                stage: Stage::Key,
                class: "stillwell.codec.MalformedAvro",
                message: format!("the key field `{}` cannot be read: {malformed}", path.name),
            })?;
            if !part.is_some_and(|part| append(part, composite, out)) {
                return Err(Misfit {
                    stage: Stage::Key,
                    class: "stillwell.codec.NullKey",
                    message: format!("the key field `{}` is null", path.name),
                });
            }
        }
        Ok(())
    }
}

impl Path {
    fn follow<'a>(&self, schema: &'a Schema, datum: &'a [u8]) -> Result<Option<Part<'a>>, Malformed> {
        let mut part = Part::whole(schema, datum)?;
        for place in &self.places {
            match part.nth(*place)? {
                Some(inner) => part = inner,
                None => return Ok(None),
            }
        }
        Ok(Some(part))
    }
}

/// The places on the way to a field, each null-able.
fn find(nodes: &Nodes, name: &str) -> Result<Vec<usize>, String> {
    let mut places = Vec::new();
    let mut id = nodes.root;
    for step in name.split('.') {
        let Node::Record(record) = nodes.get(id) else {
            return Err(format!("`{step}` is looked for in {}, which is no record", nodes.title(id)));
        };
        let Some(place) = record.field(step.as_bytes()) else {
            let names: Vec<&str> = record.fields.iter().map(|field| &*field.name).take(12).collect();
            return Err(format!("{} has no field `{step}`; it has {}", record.name.full, names.join(", ")));
        };
        let Some(field) = record.fields.get(place) else { unreachable!("found among the fields") };
        places.push(place);
        id = not_null(nodes, field.node)?;
    }
    is_key(nodes, id).map(|()| places)
}

/// Whether a value of this type can be a part of a key.
fn is_key(nodes: &Nodes, id: Id) -> Result<(), String> {
    match nodes.get(id) {
        Node::String
        | Node::Int
        | Node::Long
        | Node::Boolean
        | Node::Bytes
        | Node::Fixed(_)
        | Node::Enum(_) => Ok(()),
        _ => Err(format!(
            "it is of type {}; a key is made of strings, ints, longs, booleans, bytes, fixeds and enums",
            nodes.title(id)
        )),
    }
}

/// The one type that a field has when it is not null.
fn not_null(nodes: &Nodes, id: Id) -> Result<Id, String> {
    let Node::Union(branches) = nodes.get(id) else { return Ok(id) };
    let mut others = branches.iter().filter(|branch| !matches!(nodes.get(**branch), Node::Null));
    match (others.next(), others.next()) {
        (Some(only), None) => Ok(*only),
        _ => Err("it is a union of several types, whose keys could be mistaken for each other".into()),
    }
}

/// Appends a part of a key; `false` where it is null.
fn append(part: Part<'_>, composite: bool, out: &mut Vec<u8>) -> bool {
    if let Some(value) = part.as_i64() {
        append_integer(value, out);
        return true;
    }
    let bytes = match part.as_bool() {
        Some(true) => b"true",
        Some(false) => &b"false"[..],
        None => match part.as_bytes().or_else(|| part.as_str().map(str::as_bytes)) {
            Some(bytes) => bytes,
            None => return false,
        },
    };
    append_bytes(bytes, composite, out);
    true
}

/// Appends bytes as a part of a key; where it has several, a slash in them is not one between them.
pub(super) fn append_bytes(bytes: &[u8], composite: bool, out: &mut Vec<u8>) {
    if !composite {
        out.extend_from_slice(bytes);
        return;
    }
    for byte in bytes {
        match byte {
            b'/' => out.extend_from_slice(b"%2F"),
            b'%' => out.extend_from_slice(b"%25"),
            byte => out.push(*byte),
        }
    }
}

/// Appends an integer as a part of a key, or of a header: in decimal.
pub fn append_integer(value: i64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    out.extend_from_slice(decimal(value, &mut digits));
}

fn decimal(value: i64, digits: &mut [u8; 20]) -> &[u8] {
    let mut rest = value.unsigned_abs();
    let mut length = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        length += 1;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        length += 1;
    }
    let start = digits.len() - length;
    if value < 0
        && let Some(sign) = digits.get_mut(start)
    {
        *sign = b'-';
    }
    digits.get(start..).unwrap_or_default()
}
