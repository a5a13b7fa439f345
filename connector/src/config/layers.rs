//! The layers that a configuration is made of: what the file, the environment and the command line give, each value
//! with its place.
//!
//! Owns: finding each value's key, fetching `{ file = }` and `{ env = }`, and reading the value as its key wants it.
//! Wrong ones are said and left out, so that one mistake does not hide the next. Does not own: which layer wins.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::mistakes::{Mistakes, Place};
use super::secret::{MASK, is_secret};
use super::tree::{self, Node, TREE};
use super::values::{Kind, Raw};
use crate::words::nearest;

/// Prefix of the environment variables that are configuration.
pub const PREFIX: &str = "STILLWELL_";

/// Variables with the prefix that are flags of the command line, and no keys.
const FLAGS: &[&str] = &["CONFIG", "ROLE"];
/// Variables with the prefix that are something else: what the build scripts use.
const NOT_KEYS: &[&str] = &["CACHE"];

/// One source of values.
#[derive(Clone)]
pub struct Layer {
    /// As `config show` names it.
    pub name: &'static str,
    /// The values.
    pub dict: Dict,
    /// Where each was given.
    pub origins: BTreeMap<Vec<String>, Origin>,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Where it was given.
    pub place: Place,
    /// From where it was fetched, as in `file /run/secrets/x`: such values are never shown.
    pub via: Option<String>,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

impl Layer {
    /// A layer without values.
    pub fn new(name: &'static str) -> Layer {
        Layer { name, dict: Dict::new(), origins: BTreeMap::new() }
    }

    /// Puts a value in.
    pub fn set(&mut self, path: &[String], value: Value, origin: Origin) {
        insert(&mut self.dict, path, value);
        self.origins.insert(path.to_vec(), origin);
    }
}

/// Puts a value into a tree of dicts.
pub fn insert(dict: &mut Dict, path: &[String], value: Value) {
    match path {
        [] => {}
        [name] => {
            dict.insert(name.clone(), value);
        }
        [name, rest @ ..] => {
            let below = dict.entry(name.clone()).or_insert_with(|| Value::from(Dict::new()));
            if let Value::Dict(_, below) = below {
                insert(below, rest, value);
            }
        }
    }
}

/// Reads layers, and remembers what was wrong with them.
pub struct Reader<'a> {
    env: &'a BTreeMap<String, String>,
    /// All that was wrong.
    pub mistakes: Mistakes,
    /// Keys that were given, wrongly: that they are missing need not be said too.
    pub wrong: BTreeSet<Vec<String>>,
    /// The datasets, and where each was named first.
    pub datasets: BTreeMap<String, Place>,
    /// The same of topics that have a format of their own, each behind its dataset.
    pub topics: BTreeMap<[String; 2], Place>,
    /// The file is no TOML: what it says is not known, so that nothing is missing.
    pub torn: bool,
    /// Variables that `{ env = }` names: they are not keys, whatever their prefix.
    fetched: BTreeSet<String>,
}

/// What the value of a key is relative to, and how its place is made.
struct Context<'a> {
    place: &'a dyn Fn(usize) -> Place,
    /// Folder that paths are relative to; `None`: the working directory.
    base: Option<&'a Path>,
}

impl<'a> Reader<'a> {
    /// A reader that fetches `{ env = }` from `env`.
    pub fn new(env: &'a BTreeMap<String, String>) -> Reader<'a> {
        Reader {
            env,
            mistakes: Mistakes::default(),
            wrong: BTreeSet::new(),
            datasets: BTreeMap::new(),
            topics: BTreeMap::new(),
            torn: false,
            fetched: BTreeSet::new(),
        }
    }

    /// Reads a TOML file's text. `file` is its path as it is to be named.
    pub fn file(&mut self, file: &Path, text: &str) -> Layer {
        let name: Arc<str> = file.display().to_string().into();
        let lines: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
        let place = |at: usize| Place::File(name.clone(), lines.partition_point(|end| *end < at) + 1);
        let mut layer = Layer::new("file");
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            self.mistakes.add(Some(place(at)), "", format!("not TOML: {}", error.message().trim()));
            self.torn = true;
        }
        if self.torn {
            // Behind a broken line keys stand in a section that was not meant: what would be said of them is no help.
            return layer;
        }
        let context = Context { place: &place, base: file.parent() };
        self.table(&mut layer, &TREE, &mut Vec::new(), table.get_ref(), &context);
        layer
    }

    /// Reads the variables of the environment that are keys: `STILLWELL_A__B` is `a.b`. An empty one counts as not
    /// set, since compose files pass on variables that way.
    pub fn environment(&mut self) -> Layer {
        let mut layer = Layer::new("env");
        let env = self.env;
        for (variable, value) in env {
            let Some(name) = variable.strip_prefix(PREFIX) else { continue };
            let other = NOT_KEYS.contains(&name) || FLAGS.contains(&name);
            if other || self.fetched.contains(variable) || value.is_empty() {
                continue;
            }
            let parts: Vec<String> = name.split("__").map(str::to_ascii_lowercase).collect();
            let place = Place::Env(variable.clone());
            match self.locate(&parts) {
                Ok((node, path)) => self.loose(&mut layer, node, path, value, place),
                Err(meant) => self.unknown_variable(&parts, place, meant),
            }
        }
        layer
    }

    /// Reads `--set a.b=value` and the like.
    pub fn flags(&mut self, flags: &[(String, String)]) -> Layer {
        let mut layer = Layer::new("flag");
        for (key, value) in flags {
            let parts: Vec<String> = key.split('.').map(|part| part.trim_matches('"').to_owned()).collect();
            let place = Place::Flag(format!("--set {key}"));
            match self.locate(&parts) {
                Ok((node, path)) => self.loose(&mut layer, node, path, value, place),
                Err(meant) => self.unknown(place, &parts, meant),
            }
        }
        layer
    }

    /// What stands at a path from outside TOML, and the path as TOML would have it; or what was meant.
    fn locate(&self, parts: &[String]) -> Result<(&'static Node, Vec<String>), Option<String>> {
        let mut node: &'static Node = &TREE;
        let mut path: Vec<String> = Vec::new();
        // A variable's name has no case, no dashes and no dots; the name in the file may have all of them.
        let fold = |name: &str| name.to_ascii_lowercase().replace(['-', '.'], "_");
        for (index, part) in parts.iter().enumerate() {
            match node {
                Node::Topics(each) => {
                    let rest = parts.get(index..).unwrap_or_default();
                    // The last part is a key, or what was meant to be one, unless all of the topic is given at once.
                    let (last, above) = rest.split_last().unwrap_or((part, &[]));
                    let is_key = each.below(last).is_some() || tree::sibling(each, last).is_some();
                    let topic = if is_key && !above.is_empty() { above } else { rest }.join(".");
                    let of = path.get(1);
                    let known = self.topics.keys().filter(|[dataset, _]| Some(dataset) == of);
                    let mut alike = known.map(|[_, named]| named).filter(|named| fold(named) == fold(&topic));
                    let same = alike.clone().find(|named| **named == topic).or_else(|| alike.next());
                    path.push(same.cloned().unwrap_or(topic));
                    if !is_key || above.is_empty() {
                        return Ok((&**each, path));
                    }
                    path.push(last.clone());
                    let found = each.below(last).ok_or_else(|| tree::meant(each, &path))?;
                    return Ok((found, path));
                }
                Node::Datasets(each) => {
                    let known = self.datasets.keys().find(|name| *name == part || fold(name) == fold(part));
                    path.push(known.unwrap_or(part).clone());
                    node = each;
                }
                Node::Properties => {
                    let rest = parts.get(index..).unwrap_or_default().join(".");
                    path.push(if rest.contains('.') { rest } else { rest.replace('_', ".") });
                    return Ok((node, path));
                }
                Node::Options => {
                    path.push(parts.get(index..).unwrap_or_default().join("."));
                    return Ok((node, path));
                }
                _ => {
                    path.push(part.clone());
                    node = match node.below(part) {
                        Some(below) => below,
                        None => return Err(tree::meant(node, &path)),
                    };
                }
            }
        }
        Ok((node, path))
    }

    fn unknown_variable(&mut self, parts: &[String], place: Place, meant: Option<String>) {
        let squeeze = |text: &str| text.to_ascii_uppercase().replace(['_', '.'], "");
        let variable = |path: &str| format!("{PREFIX}{}", path.to_ascii_uppercase().replace('.', "__"));
        // Single underscores are how other things name variables with our prefix (a Kubernetes service called
        // `stillwell` sets STILLWELL_PORT and more in every pod): those are left alone, unless they look like a slip.
        let leaves = TREE.leaves().into_iter().map(|path| path.join("."));
        let meant = match parts {
            [single] => {
                let wanted = squeeze(single);
                let same = leaves.into_iter().find(|path| squeeze(path) == wanted);
                let Some(meant) = same.or_else(|| {
                    let Node::Section(top) = &*TREE else { return None };
                    // Sections of one word stand for nothing by themselves, and are near to many a word.
                    let keys = top.iter().filter(|(name, node)| {
                        name.contains('_') || matches!(node, Node::Leaf(_) | Node::Alias(_))
                    });
                    let words = keys.map(|(name, _)| *name).chain(FLAGS.iter().copied());
                    nearest(single, words).map(str::to_ascii_lowercase)
                }) else {
                    return;
                };
                Some(meant)
            }
            _ => meant,
        };
        let hint = meant.map_or(String::new(), |path| format!("; did you mean {}?", variable(&path)));
        self.mistakes.add(Some(place), tree::show(parts), format!("unknown key{hint}"));
    }

    fn unknown(&mut self, place: Place, path: &[String], meant: Option<String>) {
        let special = match path {
            [datasets, _, producer, name, ..] if datasets == "datasets" && producer == "producer" => {
                (name == "monitoring").then_some("belongs to the process: write it in [producer.monitoring]")
            }
            [features, _] if features == "features" => Some("this release has no such flag"),
            _ => None,
        };
        let what = match (special, meant) {
            (Some(special), _) => special.to_owned(),
            (None, Some(meant)) => format!("unknown key; did you mean {meant}?"),
            (None, None) => "unknown key".to_owned(),
        };
        self.mistakes.add(Some(place), tree::show(path), what);
    }

    /// Reads text from outside TOML. Text in braces is a TOML table, so that `{ file = … }` works there too.
    fn loose(&mut self, layer: &mut Layer, node: &'static Node, path: Vec<String>, text: &str, place: Place) {
        self.note_dataset(&path, &place);
        let at = |_| place.clone();
        let context = Context { place: &at, base: None };
        let trimmed = text.trim();
        if trimmed.starts_with('{') || trimmed.starts_with('[') {
            match DeValue::parse(trimmed) {
                Ok(value) => {
                    let mut path = path;
                    return self.value(layer, node, &mut path, 0, &value, &context);
                }
                // A text may begin like that, too.
                Err(_) if matches!(node, Node::Properties | Node::Options) => {}
                Err(error) => {
                    self.mistakes.add(
                        Some(place),
                        tree::show(&path),
                        format!("not TOML: {}", error.message()),
                    );
                    self.wrong.insert(path);
                    return;
                }
            }
        }
        let named_at_will = matches!(node, Node::Properties | Node::Options);
        let kind = if named_at_will { Some(Kind::Property) } else { node.kind() };
        match kind {
            Some(kind) => {
                self.leaf(layer, node, &path, kind, Ok((Raw::Loose(text.to_owned()), None)), 0, &context)
            }
            None => {
                let what = "is a section: name one of its keys";
                self.mistakes.add(Some(place), tree::show(&path), what);
            }
        }
    }

    fn note_dataset(&mut self, path: &[String], place: &Place) {
        if let [datasets, name, ..] = path
            && datasets == "datasets"
        {
            let first = self.datasets.entry(name.clone()).or_insert_with(|| place.clone());
            if place < first {
                *first = place.clone();
            }
        }
        if let [datasets, name, source, formats, topic, ..] = path
            && [datasets, source, formats] == ["datasets", "source", "formats"]
        {
            let named = [name.clone(), topic.clone()];
            let first = self.topics.entry(named).or_insert_with(|| place.clone());
            if place < first {
                *first = place.clone();
            }
        }
    }

    fn table(
        &mut self,
        layer: &mut Layer,
        node: &'static Node,
        path: &mut Vec<String>,
        table: &DeTable<'_>,
        context: &Context<'_>,
    ) {
        for (name, value) in table {
            let at = name.span().start;
            path.push(name.get_ref().to_string());
            match (node, node.below(name.get_ref())) {
                (Node::Properties | Node::Options, _) => self.property(layer, path, at, value, context),
                (_, Some(below)) => self.value(layer, below, path, at, value, context),
                (_, None) => {
                    let meant = tree::meant(node, path);
                    self.unknown((context.place)(at), path, meant);
                    if let Some(near) = tree::sibling(node, name.get_ref()) {
                        path.pop();
                        path.push(near.to_owned());
                        let is_given = table.keys().any(|key| key.get_ref() == near);
                        self.as_meant(layer, node, path, is_given, at, value, context);
                    }
                }
            }
            path.pop();
        }
    }

    /// What stands in a misspelt section is read as if it were the one that was meant, and of a misspelt key it is not said
    /// that it is missing: one slip hides no other mistake, and makes none. Where the right one `is_given` as well, its
    /// values are those that count.
    #[expect(clippy::too_many_arguments, reason = "as for every value, and whether it is there twice")]
    fn as_meant(
        &mut self,
        layer: &mut Layer,
        parent: &'static Node,
        path: &mut Vec<String>,
        is_given: bool,
        at: usize,
        value: &Spanned<DeValue<'_>>,
        context: &Context<'_>,
    ) {
        let Some(node) = path.last().and_then(|name| parent.below(name)) else { return };
        match (node, value.get_ref()) {
            (Node::Leaf(_) | Node::Alias(_) | Node::Feature, _) if is_given => {}
            (Node::Alias(target), _) => {
                self.wrong.insert(spelled_out(path, target));
            }
            (Node::Leaf(_) | Node::Feature, _) => {
                self.wrong.insert(path.clone());
            }
            (_, DeValue::Table(_)) if is_given => {
                self.value(&mut Layer::new(layer.name), node, path, at, value, context);
            }
            (_, DeValue::Table(_)) => self.value(layer, node, path, at, value, context),
            _ => {}
        }
    }

    fn value(
        &mut self,
        layer: &mut Layer,
        node: &'static Node,
        path: &mut Vec<String>,
        at: usize,
        value: &Spanned<DeValue<'_>>,
        context: &Context<'_>,
    ) {
        let place = (context.place)(at);
        self.note_dataset(path, &place);
        match (node, value.get_ref()) {
            (Node::Leaf(_) | Node::Alias(_) | Node::Feature, value) => {
                let Some(kind) = node.kind() else { return };
                let raw = self.raw(value, context.base);
                self.leaf(layer, node, path, kind, raw, at, context);
            }
            (_, DeValue::Table(table)) => self.table(layer, node, path, table, context),
            (_, other) => {
                let found = other.type_str();
                let what =
                    format!("is a section, not {found}: write [{}] and its keys below", tree::show(path));
                self.mistakes.add(Some(place), tree::show(path), what);
                self.wrong.insert(path.clone());
            }
        }
    }

    /// `security.protocol = "…"` without quotes is a table in TOML; it means the property all the same.
    fn property(
        &mut self,
        layer: &mut Layer,
        path: &mut Vec<String>,
        at: usize,
        value: &Spanned<DeValue<'_>>,
        context: &Context<'_>,
    ) {
        match value.get_ref() {
            DeValue::Table(table) if indirection(table).is_none() => {
                for (name, value) in table {
                    let Some(property) = path.pop() else { return };
                    path.push(format!("{property}.{}", name.get_ref()));
                    self.property(layer, path, name.span().start, value, context);
                    path.pop();
                    path.push(property);
                }
            }
            value => {
                let raw = self.raw(value, context.base);
                self.leaf(layer, &Node::Properties, path, Kind::Property, raw, at, context);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one place where a value, its key and its place meet")]
    fn leaf(
        &mut self,
        layer: &mut Layer,
        node: &'static Node,
        path: &[String],
        kind: Kind,
        raw: Result<(Raw, Option<String>), String>,
        at: usize,
        context: &Context<'_>,
    ) {
        let place = (context.place)(at);
        let target = match node {
            Node::Alias(target) => spelled_out(path, target),
            _ => path.to_vec(),
        };
        if let Some(other) = layer.origins.get(&target) {
            let what =
                format!("was given at {} already, in another spelling: write one of them", other.place);
            return self.mistakes.add(Some(place), tree::show(path), what);
        }
        let read = raw.and_then(|(raw, via)| match kind.read(&raw) {
            Ok(value) => Ok((value, via)),
            // What a secret is must not stand in the message either.
            Err(_) if via.is_some() || is_secret(path) => {
                Err(format!("{MASK} cannot stand here: {}", kind.wanted()))
            }
            Err(what) => Err(what),
        });
        match read {
            Ok((value, via)) => {
                let value = match (kind, context.base, value.as_str()) {
                    (Kind::Path | Kind::Folder, Some(base), Some(path)) => {
                        base.join(path).display().to_string().into()
                    }
                    _ => value,
                };
                layer.set(&target, value, Origin { place, via });
            }
            Err(what) => {
                self.mistakes.add(Some(place), tree::show(path), what);
                self.wrong.insert(target);
            }
        }
    }

    /// A TOML value without its spans; what `{ file = }` and `{ env = }` point at is fetched, and said as `via`.
    fn raw(&mut self, value: &DeValue<'_>, base: Option<&Path>) -> Result<(Raw, Option<String>), String> {
        Ok(match value {
            DeValue::String(text) => (Raw::Text(text.to_string()), None),
            DeValue::Integer(number) => (integer(number)?, None),
            DeValue::Float(number) => {
                let number = number.as_str().replace('_', "").parse();
                (Raw::Float(number.map_err(|_| "is not a number".to_owned())?), None)
            }
            DeValue::Boolean(on) => (Raw::Switch(*on), None),
            DeValue::Datetime(time) => (Raw::Time(time.to_string()), None),
            DeValue::Array(items) => {
                let mut list = Vec::new();
                let mut all = None;
                for item in items {
                    let (item, via) = self.raw(item.get_ref(), base)?;
                    list.push(item);
                    all = all.or(via);
                }
                (Raw::List(list), all)
            }
            DeValue::Table(table) => match indirection(table) {
                Some(("file", path)) => {
                    let path = base.map_or_else(|| PathBuf::from(path), |base| base.join(path));
                    let shown = path.display();
                    let text = std::fs::read_to_string(&path);
                    let text = text.map_err(|error| format!("cannot read {shown}: {error}"))?;
                    // Files end in a newline, which is not part of the secret.
                    (
                        Raw::Loose(text.trim_end_matches(['\n', '\r']).to_owned()),
                        Some(format!("file {shown}")),
                    )
                }
                Some((_, variable)) => {
                    self.fetched.insert(variable.to_owned());
                    let text = self.env.get(variable).filter(|text| !text.is_empty());
                    let text = text.ok_or_else(|| format!("environment variable {variable} is not set"))?;
                    (Raw::Loose(text.clone()), Some(format!("env {variable}")))
                }
                None => (Raw::Other("a table"), None),
            },
        })
    }
}

/// Whether a variable looks like a slip in `PREFIX` and `name`.
pub fn is_meant(variable: &str, name: &str) -> bool {
    variable.strip_prefix(PREFIX).is_some_and(|found| found != name && nearest(found, [name]).is_some())
}

/// The path that an alias stands for; `*` is the dataset of the alias.
fn spelled_out(path: &[String], target: &str) -> Vec<String> {
    let parts = target.split('.').enumerate();
    parts
        .map(|(index, part)| match (part, path.get(index)) {
            ("*", Some(name)) => name.clone(),
            _ => part.to_owned(),
        })
        .collect()
}

/// `{ file = "…" }` or `{ env = "…" }`.
fn indirection<'t>(table: &'t DeTable<'_>) -> Option<(&'static str, &'t str)> {
    let mut entries = table.iter();
    let (name, value) = entries.next()?;
    let text = value.get_ref().as_str()?;
    match (&**name.get_ref(), entries.next()) {
        ("file", None) => Some(("file", text)),
        ("env", None) => Some(("env", text)),
        _ => None,
    }
}

fn integer(number: &DeInteger<'_>) -> Result<Raw, String> {
    let digits = number.as_str().replace('_', "");
    i64::from_str_radix(&digits, number.radix())
        .map(Raw::Whole)
        .map_err(|_| format!("{digits} does not fit into 64 bits"))
}
