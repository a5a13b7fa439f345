//! What JSON needs of a schema beyond its nodes, made once per codec.

use super::lex::Word;
use crate::schema::node::{self, Nodes};
use crate::schema::{Id, Node, Schema};

/// By node; most need nothing.
pub(super) enum Plan {
    Nothing,
    Record(Box<[Field]>),
    Union(Box<Union>),
}

/// A record's field.
pub(super) struct Field {
    /// What follows the opening quote if the text's next field is this one.
    pub word: Word,
    pub node: Id,
    pub default: Option<node::Default>,
}

/// A union's branches, by what a value's text begins with, each list in the order in which they are tried.
#[derive(Default)]
pub(super) struct Union {
    pub null: Vec<Branch>,
    pub boolean: Vec<Branch>,
    pub number: Vec<Branch>,
    /// Doubles come last: only the words for what JSON has no number for are strings.
    pub string: Vec<Branch>,
    pub list: Vec<Branch>,
    pub object: Vec<Branch>,
}

/// Index of a branch, and its type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Branch {
    pub index: usize,
    pub node: Id,
}

pub(super) fn plans(schema: &Schema) -> Vec<Plan> {
    let nodes = &schema.nodes;
    let plan = |node: &Node| match node {
        Node::Record(record) => {
            let field = |field: &node::Field| Field {
                word: Word::field(&field.name),
                node: field.node,
                default: field.default.clone(),
            };
            Plan::Record(record.fields.iter().map(field).collect())
        }
        Node::Union(branches) => Plan::Union(Box::new(union(nodes, branches))),
        _ => Plan::Nothing,
    };
    nodes.all.iter().map(plan).collect()
}

fn union(nodes: &Nodes, branches: &[Id]) -> Union {
    let mut union = Union::default();
    let mut words = Vec::new();
    for (index, node) in branches.iter().enumerate() {
        let branch = Branch { index, node: *node };
        match nodes.get(*node) {
            Node::Null => union.null.push(branch),
            Node::Boolean => union.boolean.push(branch),
            Node::Int | Node::Long => union.number.push(branch),
            Node::Float | Node::Double => {
                union.number.push(branch);
                words.push(branch);
            }
            Node::Bytes | Node::String | Node::Fixed(_) | Node::Enum(_) => union.string.push(branch),
            Node::Array(_) => union.list.push(branch),
            Node::Record(_) | Node::Map(_) => union.object.push(branch),
            Node::Union(_) => unreachable!("a union stands in no union"),
        }
    }
    union.string.append(&mut words);
    union
}
