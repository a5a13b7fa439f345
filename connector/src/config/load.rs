//! From layers to effective values: defaults < profile < file < environment < flags (figment merges them), then each
//! dataset's inheritance from `[producer]`, then what is computed from other values.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use figment::value::{Dict, Value};
use figment::{Figment, Profile, Provider as _};

use super::derive;
use super::layers::{Layer, Origin, Reader};
use super::mistakes::{Mistakes, Place};
use super::model::{
    Apart, Bounds, Dataset, DatasetModel, Fallback, Held, Http, Kafka, Log, Model, Process, Producer,
    SECTIONS, SchemaRegistry, Source, Storage, Values, Webhook,
};
use super::profile;
use super::secret::Properties;
use super::tree::{self, OVERRIDABLE};
use super::values::{Kind, Raw};
use crate::blob;

/// Everything that a configuration is read from. Not `Debug`: there are secrets in it.
#[derive(Clone, Default)]
pub struct Sources {
    /// The file: its path, and its text.
    pub file: Option<(PathBuf, String)>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// `--set KEY=VALUE` and what other flags stand for.
    pub flags: Vec<(String, String)>,
}

/// Effective values by path, each with where it came from.
#[derive(Clone, Default)]
pub struct Effective(pub BTreeMap<Vec<String>, (Value, Origin)>);

/// What reading gave: the values as far as they are right, and what is wrong.
pub struct Loaded {
    /// The values. Where a required one is missing there is a stand-in, which is listed in `wrong`.
    pub effective: Effective,
    /// The same, typed.
    pub model: Model,
    /// Paths whose values are not what was meant: given wrongly, or missing.
    pub wrong: BTreeSet<Vec<String>>,
    /// Where each dataset was named first.
    pub datasets: BTreeMap<String, Place>,
    /// What is wrong so far.
    pub mistakes: Mistakes,
    /// The file is no TOML, so that all else was made without it.
    pub torn: bool,
}

/// A path from its parts.
pub fn path(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| (*part).to_owned()).collect()
}

/// Reads all layers and merges them.
pub fn load(sources: &Sources) -> Loaded {
    let mut reader = Reader::new(&sources.env);
    let file = match &sources.file {
        Some((path, text)) => reader.file(path, text),
        None => Layer::new("file"),
    };
    let env = reader.environment();
    let flags = reader.flags(&sources.flags);
    let given = [file, env, flags];
    let name = given.iter().rev().find_map(|layer| layer.dict.get("profile")?.as_str()).unwrap_or("default");
    let layers: Vec<Layer> = [defaults(&reader), preset(name)].into_iter().chain(given.clone()).collect();

    let mut effective = merge(&layers);
    inherit(&mut effective, &reader.datasets);
    require(&mut effective, &mut reader);
    derive::derive(&mut effective, &reader.datasets, &sources.env);
    let model = model(&effective, &reader);
    let Reader { wrong, datasets, mistakes, torn, .. } = reader;
    Loaded { effective, model, wrong, datasets, mistakes, torn }
}

/// Paths of a section: one, or one for each dataset, or for each topic with a format of its own.
fn places(section: &str, reader: &Reader<'_>) -> Vec<Vec<String>> {
    let parts = || section.split('.').filter(|part| !part.is_empty());
    let named = |names: &[String]| {
        let mut names = names.iter();
        let mut own = |part| if part == "*" { names.next().cloned() } else { None };
        parts().map(|part| own(part).unwrap_or_else(|| part.to_owned())).collect()
    };
    match parts().filter(|part| *part == "*").count() {
        0 => vec![named(&[])],
        1 => reader.datasets.keys().map(|name| named(std::slice::from_ref(name))).collect(),
        _ => reader.topics.keys().map(|names| named(names)).collect(),
    }
}

fn defaults(reader: &Reader<'_>) -> Layer {
    let mut layer = Layer::new("default");
    for section in SECTIONS {
        for above in places(section.path, reader) {
            for key in section.keys {
                if let Fallback::Is(text) = key.fallback {
                    let origin = Origin { place: Place::Default, via: None };
                    layer.set(&[&above[..], &[key.name.to_owned()]].concat(), own(key.kind, text), origin);
                }
            }
        }
    }
    layer
}

fn preset(name: &str) -> Layer {
    let mut layer = Layer::new("profile");
    for (section, key, text) in profile::values(name) {
        let dotted = format!("{section}.{key}");
        let kind = tree::find(&dotted).and_then(tree::Node::kind).expect("profile values belong to keys");
        let origin = Origin { place: Place::Profile(name.to_owned()), via: None };
        layer.set(&path(&dotted.split('.').collect::<Vec<_>>()), own(kind, text), origin);
    }
    layer
}

/// One of our own values; a test reads them all.
fn own(kind: Kind, text: &str) -> Value {
    kind.read(&Raw::Loose(text.to_owned())).expect("defaults and profiles are right")
}

fn merge(layers: &[Layer]) -> Effective {
    let figment = layers.iter().fold(Figment::new(), |figment, layer| figment.merge(layer));
    // The layers hand out dicts that they own: nothing in them can fail.
    let dict = figment.data().ok().and_then(|mut data| data.remove(&Profile::Default)).unwrap_or_default();
    let mut effective = Effective::default();
    flatten(&figment, layers, &mut Vec::new(), &dict, &mut effective);
    effective
}

fn flatten(
    figment: &Figment,
    layers: &[Layer],
    path: &mut Vec<String>,
    dict: &Dict,
    effective: &mut Effective,
) {
    for (name, value) in dict {
        path.push(name.clone());
        if let Value::Dict(_, below) = value {
            flatten(figment, layers, path, below, effective);
        } else {
            // figment tags each value with the provider that won.
            let winner = figment.get_metadata(value.tag()).map(|metadata| metadata.name.clone());
            let layer = layers.iter().find(|layer| Some(layer.name) == winner.as_deref());
            if let Some(origin) = layer.and_then(|layer| layer.origins.get(path)) {
                effective.0.insert(path.clone(), (value.clone(), origin.clone()));
            }
        }
        path.pop();
    }
}

/// A dataset has the producer's values where it has none of its own.
fn inherit(effective: &mut Effective, datasets: &BTreeMap<String, Place>) {
    let shared: Vec<_> = effective
        .0
        .iter()
        .filter(|(path, _)| {
            matches!(path.as_slice(), [producer, section, _]
                if producer == "producer" && OVERRIDABLE.contains(&section.as_str()))
        })
        .map(|(path, value)| (path.clone(), value.clone()))
        .collect();
    for dataset in datasets.keys() {
        for (below, value) in &shared {
            let own = [path(&["datasets", dataset]), below.clone()].concat();
            effective.0.entry(own).or_insert_with(|| value.clone());
        }
    }
}

/// Says which required keys are missing, and puts something in their place so that all else can be checked.
fn require(effective: &mut Effective, reader: &mut Reader<'_>) {
    for section in SECTIONS {
        for above in places(section.path, reader) {
            for key in section.keys.iter().filter(|key| key.fallback == Fallback::Required) {
                let full = [&above[..], &[key.name.to_owned()]].concat();
                if effective.0.contains_key(&full) {
                    continue;
                }
                let place = match above.as_slice() {
                    [_, name, .., formats, topic] if formats == "formats" => {
                        reader.topics.get(&[name.clone(), topic.clone()]).cloned()
                    }
                    [datasets, name, ..] if datasets == "datasets" => reader.datasets.get(name).cloned(),
                    _ => None,
                };
                if !reader.torn && !reader.wrong.contains(&full) && !reader.wrong.contains(&above) {
                    let what = format!("is missing: {}", key.kind.wanted());
                    reader.mistakes.add(place, tree::show(&full), what);
                }
                reader.wrong.insert(full.clone());
                let standin = match key.kind {
                    Kind::Texts => Value::from(vec!["?"]),
                    Kind::Choice(words) => words.last().copied().unwrap_or_default().into(),
                    _ => "?".into(),
                };
                effective.0.insert(full, (standin, Origin { place: Place::Default, via: None }));
            }
        }
    }
}

impl Effective {
    /// The value at a path.
    pub fn get(&self, path: &[String]) -> Option<&Value> {
        self.0.get(path).map(|(value, _)| value)
    }

    /// Where the value at a path came from.
    pub fn place(&self, path: &[String]) -> Option<Place> {
        self.0.get(path).map(|(_, origin)| origin.place.clone())
    }

    /// The values of a section, typed.
    fn section<T: Values>(&self, above: &[String]) -> T {
        let dict: Dict = T::SECTION
            .keys
            .iter()
            .filter_map(|key| {
                let value = self.get(&[above, &[key.name.to_owned()]].concat())?;
                Some((key.name.to_owned(), value.clone()))
            })
            .collect();
        let section = T::SECTION.path;
        match Value::from(dict).deserialize() {
            Ok(values) => values,
            Err(error) => panic!("each kind reads what its field takes; [{section}]: {error}"),
        }
    }

    /// What stands directly below a section that has names of the user's choice.
    fn below<T>(&self, above: &[String], read: impl Fn(&Value) -> T) -> BTreeMap<String, T> {
        self.0
            .iter()
            .filter_map(|(path, (value, _))| match path.strip_prefix(above)? {
                [name] => Some((name.clone(), read(value))),
                _ => None,
            })
            .collect()
    }
}

fn model(effective: &Effective, reader: &Reader<'_>) -> Model {
    let producer = |above: &[&str]| {
        let at = |section| [path(above), path(&[section])].concat();
        Producer {
            batching: effective.section(&at("batching")),
            performance: effective.section(&at("performance")),
            pacing: effective.section(&at("pacing")),
            spill: effective.section(&at("spill")),
            reliability: effective.section(&at("reliability")),
        }
    };
    let dataset = |name: &String| DatasetModel {
        own: effective.section::<Dataset>(&path(&["datasets", name])),
        source: effective.section::<Source>(&path(&["datasets", name, "source"])),
        formats: reader
            .topics
            .keys()
            .filter(|[dataset, _]| dataset == name)
            .map(|[_, topic]| {
                let at = path(&["datasets", name, "source", "formats", topic]);
                (topic.clone(), effective.section::<Apart>(&at))
            })
            .collect(),
        bounds: effective.section::<Bounds>(&path(&["datasets", name, "consumer", "guard"])),
        webhook: effective.section::<Webhook>(&path(&["datasets", name, "consumer", "webhook"])),
        producer: producer(&["datasets", name, "producer"]),
        consumer: effective.section::<Held>(&path(&["datasets", name, "consumer"])),
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Model {
        process: effective.section::<Process>(&[]),
        log: effective.section::<Log>(&path(&["log"])),
        kafka: effective.section::<Kafka>(&path(&["kafka"])),
        properties: Properties(effective.below(&path(&["kafka", "properties"]), text)),
        schema_registry: effective.section::<SchemaRegistry>(&path(&["schema_registry"])),
        storage: effective.section::<Storage>(&path(&["storage"])),
        options: blob::Options(effective.below(&path(&["storage", "options"]), text)),
        http: effective.section::<Http>(&path(&["http"])),
        monitoring: effective.section(&path(&["producer", "monitoring"])),
        consumer: effective.section(&path(&["consumer"])),
        datasets: reader.datasets.keys().map(|name| (name.clone(), dataset(name))).collect(),
        features: effective.below(&path(&["features"]), |on| on.to_bool().unwrap_or(false)),
    }
}

/// Reads the file at `path`, if there is one.
pub fn read(path: &Path) -> std::io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
