//! Parsing canonical form and its fingerprint, as the Avro specification has them ("Parsing Canonical Form for Schemas").

use std::collections::HashSet;
use std::fmt::Write as _;

use super::node::{Id, Node, Nodes};

/// The parsing canonical form. A named type is written out where it is first met, then named.
pub(super) fn form(nodes: &Nodes) -> String {
    let mut out = String::new();
    write_node(nodes, nodes.root, &mut HashSet::new(), &mut out);
    out
}

/// Recursion goes no deeper than the schema's own text, whose nesting is bounded: each named type is entered once.
fn write_node(nodes: &Nodes, id: Id, seen: &mut HashSet<Id>, out: &mut String) {
    let node = nodes.get(id);
    match node {
        Node::Fixed(fixed) if seen.insert(id) => {
            let _ = write!(out, r#"{{"name":"{}","type":"fixed","size":{}}}"#, fixed.name.full, fixed.size);
        }
        Node::Enum(symbols) if seen.insert(id) => {
            let _ = write!(out, r#"{{"name":"{}","type":"enum","symbols":["#, symbols.name.full);
            for (at, symbol) in symbols.symbols.iter().enumerate() {
                let _ = write!(out, r#"{}"{symbol}""#, if at == 0 { "" } else { "," });
            }
            out.push_str("]}");
        }
        Node::Record(record) if seen.insert(id) => {
            let _ = write!(out, r#"{{"name":"{}","type":"record","fields":["#, record.name.full);
            for (at, field) in record.fields.iter().enumerate() {
                let _ = write!(out, r#"{}{{"name":"{}","type":"#, if at == 0 { "" } else { "," }, field.name);
                write_node(nodes, field.node, seen, out);
                out.push('}');
            }
            out.push_str("]}");
        }
        Node::Array(items) => {
            out.push_str(r#"{"type":"array","items":"#);
            write_node(nodes, *items, seen, out);
            out.push('}');
        }
        Node::Map(values) => {
            out.push_str(r#"{"type":"map","values":"#);
            write_node(nodes, *values, seen, out);
            out.push('}');
        }
        Node::Union(branches) => {
            out.push('[');
            for (at, branch) in branches.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_node(nodes, *branch, seen, out);
            }
            out.push(']');
        }
        _ => {
            let _ = write!(out, r#""{}""#, nodes.title(id));
        }
    }
}

/// CRC-64-AVRO ("Schema Fingerprints" in the specification).
pub(super) fn crc64(bytes: &[u8]) -> u64 {
    const EMPTY: u64 = 0xc15d_213a_a4d7_a795;
    bytes.iter().fold(EMPTY, |crc, byte| {
        let mut low = (crc ^ u64::from(*byte)) & 0xff;
        for _ in 0..8 {
            low = (low >> 1) ^ (EMPTY & (low & 1).wrapping_neg());
        }
        (crc >> 8) ^ low
    })
}
