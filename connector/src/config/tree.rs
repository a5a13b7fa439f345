//! The keys as a tree, by which paths are looked up, and the search for what an unknown key was meant to be.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::model::{ALIASES, FEATURES, Key, SECTIONS};
use super::values::Kind;
use crate::words::nearest;

/// What stands at a path.
#[derive(Debug)]
pub enum Node {
    /// A key.
    Leaf(&'static Key),
    /// Another spelling of this path.
    Alias(&'static str),
    /// `[features]` has this flag.
    Feature,
    /// A section.
    Section(BTreeMap<&'static str, Node>),
    /// `[datasets]`: any name, below which there is this section.
    Datasets(Box<Node>),
    /// `formats` of a source: the same by a topic's name, which may have dots.
    Topics(Box<Node>),
    /// `[kafka.properties]`: any name, of words with dots between them.
    Properties,
    /// `[storage.options]`: any name, of words with `_` between them.
    Options,
}

/// The whole tree.
pub static TREE: LazyLock<Node> = LazyLock::new(tree);

/// Producer sections that a dataset may override; `monitoring` is the process's.
pub const OVERRIDABLE: &[&str] = &["batching", "performance", "pacing", "spill", "reliability"];

fn tree() -> Node {
    let mut root = BTreeMap::new();
    let mut dataset = BTreeMap::new();
    let mut overrides = BTreeMap::new();
    for section in SECTIONS {
        let mut path: Vec<&'static str> = section.path.split('.').filter(|part| !part.is_empty()).collect();
        let level = match path.as_slice() {
            ["datasets", "*", ..] => {
                path.drain(..2);
                &mut dataset
            }
            _ => &mut root,
        };
        insert(level, &path, section.keys);
        if let ["producer", name] = path.as_slice()
            && OVERRIDABLE.contains(name)
        {
            insert(&mut overrides, &[*name], section.keys);
        }
    }
    for (spelling, target) in ALIASES {
        match spelling.strip_prefix("datasets.*.") {
            Some(name) => dataset.insert(name, Node::Alias(target)),
            None => root.insert(*spelling, Node::Alias(target)),
        };
    }
    dataset.insert("producer", Node::Section(overrides));
    root.insert("datasets", Node::Datasets(Box::new(Node::Section(dataset))));
    root.insert("features", Node::Section(FEATURES.iter().map(|(name, _)| (*name, Node::Feature)).collect()));
    if let Some(Node::Section(kafka)) = root.get_mut("kafka") {
        kafka.insert("properties", Node::Properties);
    }
    if let Some(Node::Section(storage)) = root.get_mut("storage") {
        storage.insert("options", Node::Options);
    }
    Node::Section(root)
}

fn insert(level: &mut BTreeMap<&'static str, Node>, path: &[&'static str], keys: &'static [Key]) {
    match path.split_first() {
        Some((first, ["*"])) => {
            let each = keys.iter().map(|key| (key.name, Node::Leaf(key))).collect();
            level.insert(first, Node::Topics(Box::new(Node::Section(each))));
        }
        None => level.extend(keys.iter().map(|key| (key.name, Node::Leaf(key)))),
        Some((first, rest)) => {
            if let Node::Section(below) = level.entry(first).or_insert_with(|| Node::Section(BTreeMap::new()))
            {
                insert(below, rest, keys);
            }
        }
    }
}

impl Node {
    /// What stands at `name` below.
    pub fn below(&self, name: &str) -> Option<&Node> {
        match self {
            Node::Section(below) => below.get(name),
            Node::Datasets(each) | Node::Topics(each) => Some(each),
            Node::Leaf(_) | Node::Alias(_) | Node::Feature | Node::Properties | Node::Options => None,
        }
    }

    /// What a leaf takes; `None` for what has keys below it.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Node::Leaf(key) => Some(key.kind),
            Node::Alias(target) => find(target).and_then(Node::kind),
            Node::Feature => Some(Kind::Switch),
            Node::Section(_) | Node::Datasets(_) | Node::Topics(_) | Node::Properties | Node::Options => None,
        }
    }

    /// Each key below, with its path from here. A topic's are the source's, which are those that a slip means.
    pub fn leaves(&self) -> Vec<Vec<&'static str>> {
        match self {
            Node::Section(below) => below
                .iter()
                .flat_map(|(name, node)| {
                    node.leaves().into_iter().map(|path| [vec![*name], path].concat()).collect::<Vec<_>>()
                })
                .collect(),
            Node::Datasets(each) => {
                each.leaves().into_iter().map(|path| [vec!["*"], path].concat()).collect()
            }
            Node::Topics(_) | Node::Properties | Node::Options => Vec::new(),
            Node::Leaf(_) | Node::Alias(_) | Node::Feature => vec![Vec::new()],
        }
    }
}

/// What stands at a dotted path, in which `*` is any dataset.
pub fn find(path: &str) -> Option<&'static Node> {
    path.split('.').try_fold(&*TREE, |node, name| node.below(name))
}

/// The key of a section that an unknown one in it was probably meant to be.
pub fn sibling(parent: &Node, name: &str) -> Option<&'static str> {
    let Node::Section(siblings) = parent else { return None };
    nearest(name, siblings.keys().copied())
}

/// The path that an unknown key was probably meant to be: first among its siblings, then anywhere.
pub fn meant(parent: &Node, path: &[String]) -> Option<String> {
    let (name, above) = path.split_last()?;
    let dotted = |names: &[&str]| {
        let above = above.iter().map(String::as_str);
        show(&above.chain(names.iter().copied()).map(str::to_owned).collect::<Vec<_>>())
    };
    if let Some(near) = sibling(parent, name) {
        return Some(dotted(&[near]));
    }
    // Right name, wrong section: below here first, then elsewhere.
    if let Some(inner) = parent.leaves().into_iter().find(|leaf| leaf.last() == Some(&name.as_str())) {
        return Some(dotted(&inner));
    }
    let all = TREE.leaves();
    let elsewhere = all.iter().find(|leaf| leaf.last() == Some(&name.as_str()))?;
    Some(elsewhere.iter().map(|name| if *name == "*" { "NAME" } else { name }).collect::<Vec<_>>().join("."))
}

/// A path as TOML writes it: parts joined by dots, quoted where they must be.
pub fn show(path: &[String]) -> String {
    let bare = |part: &String| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    };
    let parts: Vec<String> =
        path.iter().map(|part| if bare(part) { part.clone() } else { format!("{part:?}") }).collect();
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Vec<String> {
        text.split('.').map(str::to_owned).collect()
    }

    #[test]
    fn every_section_and_alias_leads_somewhere() {
        for section in SECTIONS {
            for key in section.keys {
                let path = [section.path, key.name].join(".");
                let path = path.trim_start_matches('.').to_owned();
                assert!(matches!(find(&path), Some(Node::Leaf(_))), "{path}");
            }
        }
        for (spelling, target) in ALIASES {
            assert!(find(spelling).and_then(Node::kind).is_some(), "{spelling} of {target}");
        }
        assert!(find("datasets.*.producer.batching.max_batch_size").is_some());
        assert!(find("datasets.*.producer.monitoring").is_none());
    }

    #[test]
    fn what_was_meant() {
        let parent = |path: &str| if path.is_empty() { &*TREE } else { find(path).unwrap() };
        for (section, unknown, expected) in [
            (
                "producer.batching",
                "producer.batching.max_batchsize",
                Some("producer.batching.max_batch_size"),
            ),
            ("producer", "producer.max_batch_size", Some("producer.batching.max_batch_size")),
            ("", "data_dir", Some("storage.data_dir")),
            ("", "kafak", Some("kafka")),
            ("datasets.*", "datasets.products.topics", Some("datasets.products.source.topics")),
            ("http", "http.colour", None),
        ] {
            assert_eq!(meant(parent(section), &path(unknown)).as_deref(), expected, "{unknown}");
        }
    }
}
